-- Forget a tenant that has no job in its request streams.
-- ARGV: prefix, epoch, tenant
-- Returns 1; or 0: it has; or -1: the lease is another's.
local prefix, tenant = ARGV[1], ARGV[3]
if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[2] then return -1 end
local streams = {}
for i, level in ipairs({'high', 'normal', 'low'}) do
  streams[i] = prefix .. 'requests:' .. level .. ':' .. tenant
  if redis.call('XLEN', streams[i]) > 0 then return 0 end
end
redis.call('DEL', unpack(streams))
redis.call('SREM', prefix .. 'tenants', tenant)
return 1

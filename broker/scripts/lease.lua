-- Take or renew the pool's lease. ARGV: prefix, owner, ttl_ms. Returns the epoch, or 0: another holds it.
local key = ARGV[1] .. 'lease'
local owner = redis.call('HGET', key, 'owner')
if owner and owner ~= ARGV[2] then return 0 end
local epoch = redis.call('HGET', key, 'epoch')
if not owner then
  epoch = redis.call('INCR', ARGV[1] .. 'epoch')
  redis.call('HSET', key, 'owner', ARGV[2], 'epoch', epoch, 'since', clock())
end
redis.call('PEXPIRE', key, ARGV[3])
return tonumber(epoch)

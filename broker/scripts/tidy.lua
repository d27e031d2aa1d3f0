-- Take batches that have expired out of the list of batches, the oldest first. (Not at submit: whoever submits may not
-- see which batches there are.)
-- ARGV: prefix, epoch, how many to look at
-- Returns how many went; or -1: the lease is another's.
local prefix = ARGV[1]
if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[2] then return -1 end
local gone = 0
for _, batch in ipairs(redis.call('ZRANGE', prefix .. 'batches', 0, ARGV[3] - 1)) do
  if redis.call('EXISTS', prefix .. 'batch:' .. batch) == 0 then
    gone = gone + redis.call('ZREM', prefix .. 'batches', batch)
  end
end
return gone

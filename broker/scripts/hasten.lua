-- Delayed jobs of a cancelled batch are due now: due.lua ends them. (Not at its cancellation: whoever cancels may not see
-- others' jobs.) ARGV: prefix, epoch, batch
-- Returns how many; or -1: the lease is another's.
local prefix, batch = ARGV[1], ARGV[3]
if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[2] then return -1 end
local hastened = 0
for _, id in ipairs(redis.call('ZRANGE', prefix .. 'delayed', 0, -1)) do
  if string.sub(id, 1, #batch + 1) == batch .. '.' then
    redis.call('ZADD', prefix .. 'delayed', 0, id)
    hastened = hastened + 1
  end
end
return hastened

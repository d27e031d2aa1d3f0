-- What the time has come for, with no event: jobs whose delay is over wait again, and batches whose completion window is
-- over expire. ARGV: prefix, epoch, ttl_s, most jobs a call
-- Returns {members looked at, [members of `delayed` that are no delayed job], [batches of `windows` that are not there]};
-- or -1: the lease is another's.
local prefix = ARGV[1]
if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[2] then return -1 end
local now = clock()
local tally = batch_tally(prefix, ARGV[3])
local foreign, gone = {}, {}
local due = redis.call('ZRANGEBYSCORE', prefix .. 'delayed', '-inf', now, 'LIMIT', 0, ARGV[4])
for _, id in ipairs(due) do
  redis.call('ZREM', prefix .. 'delayed', id)
  local f = redis.call('HMGET', prefix .. 'job:' .. id, 'state', 'batch')
  if f[1] == 'delayed' and f[2] then
    if is_cancelled(tally, f[2]) then finish_cancelled(tally, id) else wait_again(prefix, id, false) end
  else
    foreign[#foreign + 1] = id
  end
end
for _, batch in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'windows', '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('ZREM', prefix .. 'windows', batch)
  if stop_batch(prefix, batch, 'expired') == 0 then gone[#gone + 1] = batch end
end
write_tally(tally)
return {#due, foreign, gone}

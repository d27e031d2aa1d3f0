-- Move jobs from the request streams to device queues, only while the caller holds the lease.
-- ARGV: prefix, epoch, ttl_s, msgpack [[worker, [[job id, level, entry id, prompt tokens, output tokens], ...]], ...]
-- Returns {workers that take no jobs now, jobs that need no device any more}; or -1: the lease is another's.
local prefix = ARGV[1]
if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[2] then return -1 end
local at = clock()
local tally = batch_tally(prefix, ARGV[3])
local closed, dropped, acked = {}, {}, {}
for _, group in ipairs(cmsgpack.unpack(ARGV[4])) do
  local worker, jobs = group[1], group[2]
  local stream = prefix .. 'device:' .. worker
  if redis.call('HGET', prefix .. 'worker:' .. worker, 'state') ~= 'ready' then
    closed[#closed + 1] = worker
  else
    for _, j in ipairs(jobs) do
      local id, level = j[1], j[2]
      local key = prefix .. 'job:' .. id
      local job = redis.call('HMGET', key, 'state', 'attempt', 'batch', 'custom_id')
      if job[1] == 'queued' and not is_cancelled(tally, job[3]) then
        redis.call('XADD', stream, '*', 'job', id, 'attempt', job[2], 'prompt_tokens', j[4], 'output_tokens', j[5])
        redis.call('HSET', key, 'state', 'dispatched', 'worker', worker, 'dispatched', at)
      else
        if job[1] == 'queued' then finish_cancelled(tally, id, job[3], job[4], job[2], at) end
        dropped[#dropped + 1] = id
      end
      if not acked[level] then acked[level] = {} end
      table.insert(acked[level], j[3])
    end
  end
end
for level, ids in pairs(acked) do remove_entries(prefix .. 'requests:' .. level, 'scheduler', ids) end
write_tally(tally)
return {closed, dropped}

-- Move jobs from the request streams to device queues, only while the caller holds the lease.
-- ARGV: prefix, epoch, ttl_s, msgpack [[worker, [[job id, batch, level, entry id, prompt tokens, output tokens,
--   predicted s, reason, charges or 0, deaths or 0], ...], incarnation or ''], ...]: charges and deaths of suspects. To
--   a worker of another incarnation nothing goes: what the caller knows of its jobs is of the one before.
-- Returns {workers that take no jobs now, jobs that need no device any more}; or -1: the lease is another's.
local prefix = ARGV[1]
if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[2] then return -1 end
local at = clock()
local tally = batch_tally(prefix, ARGV[3])
local job_prefix = prefix .. 'job:'
local closed, dropped, acked = {}, {}, {}

-- What a later scheduler must know of a suspect that runs.
local function of_suspect(charges, deaths)
  if deaths > 0 then return 'charges', charges, 'deaths', deaths end
end

for _, group in ipairs(cmsgpack.unpack(ARGV[4])) do
  local worker, jobs = group[1], group[2]
  local stream = prefix .. 'device:' .. worker
  local known = redis.call('HMGET', prefix .. 'worker:' .. worker, 'state', 'incarnation')
  if known[1] ~= 'ready' or group[3] ~= '' and known[2] ~= group[3] then
    closed[#closed + 1] = worker
  else
    for _, j in ipairs(jobs) do
      local id, level = j[1], j[3]
      if redis.call('HGET', job_prefix .. id, 'state') ~= 'queued' then
        dropped[#dropped + 1] = id
      elseif is_cancelled(tally, j[2]) then
        finish_cancelled(tally, id)
        dropped[#dropped + 1] = id
      else
        local entry = redis.call('XADD', stream, '*', 'job', id, 'prompt_tokens', j[5], 'output_tokens', j[6],
          of_suspect(j[9], j[10]))
        redis.call('HSET', job_prefix .. id, 'state', 'dispatched', 'worker', worker, 'entry', entry,
          'dispatched', at, 'predicted_s', j[7], 'output_tokens', j[6], 'reason', j[8])
      end
      if not acked[level] then acked[level] = {} end
      table.insert(acked[level], j[4])
    end
  end
end
for level, ids in pairs(acked) do remove_entries(prefix .. 'requests:' .. level, 'scheduler', ids) end
write_tally(tally)
return {closed, dropped}

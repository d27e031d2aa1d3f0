-- End attempts: result, acknowledgement, counters, in one move. Only the job's current attempt counts.
-- ARGV: prefix, worker, incarnation, ttl_s, msgpack [[job id, entry id, attempt, status code, body,
--   prompt tokens, output tokens, error code, error message], ...]
-- Returns a list of 1 (counted) and 0 (late: the job is another's, or has ended); or -1: this worker is not known any more.
local prefix, worker = ARGV[1], ARGV[2]
if not is_current(prefix .. 'worker:' .. worker, ARGV[3]) then return -1 end
local at = clock()
local tally = batch_tally(prefix, ARGV[4])
local flags, gone, ended = {}, {}, {}
for i, o in ipairs(cmsgpack.unpack(ARGV[5])) do
  local id, entry, attempt = o[1], o[2], o[3]
  local job = redis.call('HMGET', prefix .. 'job:' .. id, 'state', 'worker', 'attempt', 'batch', 'custom_id')
  flags[i] = 0
  if job[1] == 'running' and job[2] == worker and tonumber(job[3]) == attempt then
    flags[i] = 1
    local state = 'failed'
    if o[8] == 'batch_cancelled' then state = 'cancelled' elseif o[4] == 200 and o[8] == '' then state = 'done' end
    finish(tally, id, job[4], job[5], attempt, {state = state, status_code = o[4], body = o[5], prompt_tokens = o[6],
      output_tokens = o[7], error_code = o[8], error_message = o[9], worker = worker}, at)
  end
  gone[i] = entry
  ended[i] = id .. ':' .. string.format('%.0f', o[6]) .. ':' .. string.format('%.0f', o[7])
end
remove_entries(prefix .. 'device:' .. worker, 'worker', gone)
write_tally(tally)
announce(prefix, 'kind', 'completed', 'worker', worker, 'jobs', table.concat(ended, ' '))
return flags

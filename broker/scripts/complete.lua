-- End attempts: result, acknowledgement, counters, in one move. An attempt counts only while its entry is pending in
-- this worker's queue: once the job went to another, it is not.
-- ARGV: prefix, worker, incarnation, ttl_s, msgpack [[entry id, job id, batch, custom_id, attempt, submitted, started,
--   state, status code, body, prompt tokens, output tokens, error code, error message], ...]
-- Returns a list of 1 (counted) and 0 (late); or -1: this worker is not known any more.
local prefix, worker = ARGV[1], ARGV[2]
if not is_current(prefix .. 'worker:' .. worker, ARGV[3]) then return -1 end
local stream = prefix .. 'device:' .. worker
local tally = batch_tally(prefix, ARGV[4])
local flags, entries, ended = {}, {}, {}
for i, o in ipairs(cmsgpack.unpack(ARGV[5])) do
  local entry, id = o[1], o[2]
  local counts = redis.call('XACK', stream, 'worker', entry)
  if counts == 1 then
    local error_code = o[13] ~= '' and o[13] or nil
    counts = finish(tally, id, o[3], o[4], o[5], o[6], o[7], worker, o[8], o[9], o[10], o[11], o[12], error_code, o[14])
  end
  flags[i] = counts
  entries[i] = entry
  ended[i] = string.format('%s:%.0f:%.0f', id, o[11], o[12])
end
redis.call('XDEL', stream, unpack(entries))
write_tally(tally)
announce(prefix, 'kind', 'completed', 'worker', worker, 'jobs', table.concat(ended, ' '))
return flags

-- End attempts: result, acknowledgement, counters, in one move. An attempt counts only while its entry is pending in
-- this worker's queue: once the job went to another, or its copy ended it, it is not.
-- ARGV: prefix, worker, incarnation, ttl_s, max attempts, msgpack [[entry id, job id, batch, custom_id, attempt,
--   submitted, started, state, status code, body, prompt tokens, output tokens, cached tokens, error code,
--   error message, retry after s], ...]; error code "aborted": this side was told to stop, its tokens are what it had
--   computed; a retry after more than 0 s: the failure may pass
-- Returns a list of 1 (counted, as a result or as work in vain) and 0 (late); or -1: this worker is not known any more.
local prefix, worker = ARGV[1], ARGV[2]
if not is_current(prefix .. 'worker:' .. worker, ARGV[3]) then return -1 end
local stream, losers = prefix .. 'device:' .. worker, prefix .. 'losers:' .. worker
local job_prefix = prefix .. 'job:'
local tally = batch_tally(prefix, ARGV[4])
local max_attempts = tonumber(ARGV[5])
local flags, entries, ended = {}, {}, {}

-- A side that lost says what it had computed: once.
local function count_lost(o)
  local batch = redis.call('HGET', losers, o[1])
  if not batch then return 0 end
  redis.call('HDEL', losers, o[1])
  count_wasted(tally, batch, o[11], o[12])
  return 1
end

-- Why an attempt failed, in a line.
local function why_of(o)
  if o[14] then return o[15] ~= '' and o[15] or o[14] end
  return string.format('status %.0f: %s', o[9], string.sub(o[10], 1, 250))
end

-- The failure of a job that has no other side may pass: it waits, then runs again. False where its attempts are used
-- up, its batch takes no more, or it has ended.
local function try_again(o)
  local id, batch, key = o[2], o[3], job_prefix .. o[2]
  if charge(key, 'charges') >= max_attempts or is_cancelled(tally, batch) then return false end
  count_wasted(tally, batch, o[11], o[12])
  unbind(key, 'delayed', true)
  redis.call('ZADD', prefix .. 'delayed', tonumber(clock()) + o[16], id)
  note_gone(tally, 'returned', worker, id)
  return true
end

-- End a job of two sides by one of them. Returns the record of the side that ended it; or nil: the job goes on at the
-- other side, for this one failed as another device may not.
local function end_race(o)
  local entry, id, batch, state, status = o[1], o[2], o[3], o[8], o[9]
  if state == 'failed' and (status >= 500 or status == 0) then
    count_wasted(tally, batch, o[11], o[12])
    note_attempt(tally, id, o[5], worker, o[7], why_of(o))
    charge(job_prefix .. id, 'charges')
    leave(tally, id, worker, entry, false, max_attempts)
    return nil
  end
  local f = redis.call('HMGET', job_prefix .. id, 'worker', 'entry', 'copy', 'copy_entry', 'copy_dispatched',
    'copy_predicted_s', 'copy_output_tokens', 'dispatched', 'predicted_s', 'output_tokens', 'reason', 'traceparent')
  if not (f[1] == worker and f[2] == entry) then drop_side(tally, id, batch, f[1], f[2]) end
  if not (f[3] == worker and f[4] == entry) then
    drop_side(tally, id, batch, f[3], f[4])
    return {f[8], f[9], f[10], f[11], f[12]}
  end
  if state ~= 'cancelled' then
    local counts = counts_of(tally, batch)
    counts.copies_won = counts.copies_won + 1
  end
  return {f[5], f[6], f[7], 'copy', f[12]}
end

local function settle(o)
  local id = o[2]
  local record = redis.call('HMGET', job_prefix .. id, 'dispatched', 'predicted_s', 'output_tokens', 'reason',
    'traceparent', 'copy')
  local raced = record[6]
  if raced then
    record = end_race(o)
    if not record then return 1 end
  end
  if o[8] == 'failed' and redis.call('EXISTS', job_prefix .. id) == 1 then
    note_attempt(tally, id, o[5], worker, o[7], why_of(o))
    if o[16] > 0 and not raced and try_again(o) then return 1 end
  end
  local error_code = o[14]
  local counts = finish(tally, id, o[3], o[4], o[5], o[6], o[7], worker, o[8], o[9], o[10], o[11], o[12], o[13],
    record, error_code, o[15])
  if counts == 1 then ended[#ended + 1] = string.format('%s:%.0f:%.0f:%.0f', id, o[11], o[12], o[13]) end
  return counts
end

for i, o in ipairs(cmsgpack.unpack(ARGV[6])) do
  entries[i] = o[1]
  if o[14] == '' then o[14] = nil end
  if redis.call('XACK', stream, 'worker', o[1]) == 0 then
    flags[i] = count_lost(o)
  elseif o[14] == 'aborted' then  -- by an order that was written by hand: it was no loser
    flags[i] = 0
    leave(tally, o[2], worker, o[1], true, max_attempts)
  else
    flags[i] = settle(o)
  end
end
redis.call('XDEL', stream, unpack(entries))
if #ended > 0 then announce(prefix, 'kind', 'completed', 'worker', worker, 'jobs', table.concat(ended, ' ')) end
write_tally(tally)
return flags

-- A worker takes jobs from its device queue: an entry that was taken (is pending) has started.
-- ARGV: prefix, worker, incarnation, count, ttl_s, '>' for new entries or '0' for those it was given before
-- Returns {now, [[entry id, job id, batch, custom_id, attempt, submitted, url, body,
--   predicted prompt tokens, max_tokens, timeout s, follow], ...], [entry that is no job]};
--   or -1: the pool does not know this worker.
local prefix, worker = ARGV[1], ARGV[2]
if not is_current(prefix .. 'worker:' .. worker, ARGV[3]) then return -1 end
local stream = prefix .. 'device:' .. worker
local read = redis.call('XREADGROUP', 'GROUP', 'worker', ARGV[3], 'COUNT', ARGV[4], 'STREAMS', stream, ARGV[6])
if not read then return {'', {}, {}} end
local tally = batch_tally(prefix, ARGV[5])
local job_prefix, body_prefix = prefix .. 'job:', prefix .. 'body:'
local out, gone, bad = {}, {}, {}
for _, e in ipairs(read[1][2]) do
  local id = e[2] and e[2][2] or ''
  local job = redis.call('HMGET', job_prefix .. id, 'batch', 'custom_id', 'attempt', 'submitted', 'url', 'max_tokens',
    'timeout_s', 'follow')
  local whole = job[1] and job[2] and job[3] and job[4] and job[5]
  local body = whole and redis.call('GET', body_prefix .. id)
  if body and not is_cancelled(tally, job[1]) then
    out[#out + 1] = {e[1], id, job[1], job[2], job[3], job[4], job[5], body, e[2][4] or '', job[6] or '', job[7] or '',
      job[8] or ''}
  else
    if body then
      leave(tally, id, worker, e[1], false, 0)
    else  -- what is left of a job that is none, nobody would ask for
      redis.call('DEL', job_prefix .. id, body_prefix .. id)
      bad[#bad + 1] = e[1]
    end
    gone[#gone + 1] = e[1]
  end
end
remove_entries(stream, 'worker', gone)
write_tally(tally)
return {clock(), out, bad}

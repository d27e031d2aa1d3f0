-- A worker takes jobs from its device queue: what it gets is running from here on.
-- ARGV: prefix, worker, incarnation, count, ttl_s, '>' for new entries or '0' for those it was given before
-- Returns [[entry id, job id, batch, attempt, url, body], ...]; or -1: the pool does not know this worker any more.
local prefix, worker = ARGV[1], ARGV[2]
if not is_current(prefix .. 'worker:' .. worker, ARGV[3]) then return -1 end
local stream = prefix .. 'device:' .. worker
local read = redis.call('XREADGROUP', 'GROUP', 'worker', ARGV[3], 'COUNT', ARGV[4], 'STREAMS', stream, ARGV[6])
if not read then return {} end
local at = clock()
local tally = batch_tally(prefix, ARGV[5])
local out, gone = {}, {}
for _, e in ipairs(read[1][2]) do
  local id, attempt = e[2][2], e[2][4]
  local key = prefix .. 'job:' .. id
  local job = redis.call('HMGET', key, 'state', 'worker', 'attempt', 'batch', 'custom_id', 'url')
  local mine = job[2] == worker and job[3] == attempt and (job[1] == 'dispatched' or job[1] == 'running')
  if mine and is_cancelled(tally, job[4]) then
    finish_cancelled(tally, id, job[4], job[5], attempt, at)
    mine = false
  end
  if mine then
    redis.call('HSET', key, 'state', 'running', 'started', at)
    out[#out + 1] = {e[1], id, job[4], attempt, job[6], redis.call('GET', prefix .. 'body:' .. id) or ''}
  else
    gone[#gone + 1] = e[1]
  end
end
remove_entries(stream, 'worker', gone)
if #gone > 0 then write_tally(tally) end
return out

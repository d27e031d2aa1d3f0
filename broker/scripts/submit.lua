-- Write jobs, add them to the request stream, count the batch. The same job id twice is one job.
-- ARGV: prefix, batch id, priority, msgpack [[job id, custom_id, url, body, max_tokens, prefix marks or ''], ...]
-- Returns how many were new, or -1 where the batch is cancelled.
local prefix, batch, priority = ARGV[1], ARGV[2], ARGV[3]
local batch_key, ended = prefix .. 'batch:' .. batch, prefix .. 'ended:' .. batch
local at = clock()
if redis.call('HGET', batch_key, 'state') == 'cancelled' then return -1 end
local stream = prefix .. 'requests:' .. priority
local some_ended = redis.call('EXISTS', ended) == 1
local job_prefix, body_prefix = prefix .. 'job:', prefix .. 'body:'
local new = 0
for _, j in ipairs(cmsgpack.unpack(ARGV[4])) do
  local id, body, max_tokens, marks = j[1], j[4], j[5], j[6]
  local has_ended = some_ended and redis.call('HEXISTS', ended, short_id(batch, id)) == 1
  if not has_ended and redis.call('SET', body_prefix .. id, body, 'NX') then
    new = new + 1
    redis.call('HSET', job_prefix .. id, 'state', 'queued', 'batch', batch, 'custom_id', j[2], 'url', j[3],
      'priority', priority, 'max_tokens', max_tokens, 'attempt', 1, 'submitted', at, with_prefix(marks))
    redis.call('XADD', stream, '*', 'job', id, 'batch', batch, 'priority', priority, 'body_bytes', #body,
      'max_tokens', max_tokens, with_prefix(marks))
  end
end
list_batch(prefix, batch, at)
redis.call('HSETNX', batch_key, 'state', 'open')
if new > 0 then
  redis.call('HINCRBY', batch_key, 'total', new)
  redis.call('PERSIST', batch_key)
  redis.call('PERSIST', prefix .. 'results:' .. batch)
  redis.call('PERSIST', ended)
end
return new

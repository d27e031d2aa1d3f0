-- Write jobs, add them to the request stream, count the batch. The same job id twice is one job.
-- ARGV: prefix, batch id, priority, msgpack [[job id, custom_id, url, body, max_tokens], ...]
-- Returns how many were new, or -1 where the batch is cancelled.
local prefix, batch, priority = ARGV[1], ARGV[2], ARGV[3]
local batch_key = prefix .. 'batch:' .. batch
local at = clock()
if redis.call('HGET', batch_key, 'state') == 'cancelled' then return -1 end
local stream = prefix .. 'requests:' .. priority
local new = 0
for _, j in ipairs(cmsgpack.unpack(ARGV[4])) do
  local id, custom_id, url, body, max_tokens = j[1], j[2], j[3], j[4], j[5]
  local key = prefix .. 'job:' .. id
  if redis.call('EXISTS', key) == 0 then
    new = new + 1
    redis.call('HSET', key, 'state', 'queued', 'batch', batch, 'custom_id', custom_id, 'url', url, 'priority', priority,
      'body_bytes', #body, 'max_tokens', max_tokens, 'attempt', 1, 'worker', '', 'submitted', at)
    redis.call('SET', prefix .. 'body:' .. id, body)
    redis.call('XADD', stream, '*', 'job', id, 'batch', batch, 'priority', priority, 'body_bytes', #body,
      'max_tokens', max_tokens)
  end
end
redis.call('HSETNX', batch_key, 'created', at)
redis.call('HSETNX', batch_key, 'state', 'open')
if new > 0 then
  redis.call('HINCRBY', batch_key, 'total', new)
  redis.call('PERSIST', batch_key)
  redis.call('PERSIST', prefix .. 'results:' .. batch)
end
return new

-- Write jobs, add them to the request stream, count the batch. The same job id twice is one job.
-- ARGV: prefix, batch id, priority, msgpack [[job id, custom_id, url, body, max_tokens, prefix marks or '', whether it is
--   followed, traceparent (the last two may be missing)], ...]
--   most waiting jobs, most bytes of bodies held (0: no limit), timeout s, completion window s (0: none),
--   tenant ('' for the default one)
-- Returns how many were new; or -1: the batch is cancelled; or -2: the backlog is full; or -3: the batch
-- has expired.
local prefix, batch, priority = ARGV[1], ARGV[2], ARGV[3]
local batch_key, ended = prefix .. 'batch:' .. batch, prefix .. 'ended:' .. batch
local at = clock()
local state = redis.call('HGET', batch_key, 'state')
if state == 'cancelled' then return -1 end
if state == 'expired' then return -3 end
local jobs = cmsgpack.unpack(ARGV[4])
local max_jobs, max_bytes, timeout_s, window_s = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local of_tenant = ARGV[9] ~= '' and ':' .. ARGV[9] or ''
local held_key, new_bytes = prefix .. 'held_bytes', 0

-- Whether these jobs would be too many. Into an empty backlog some always go, however large: that ends any wait.
local function is_full()
  local waiting = redis.call('ZCARD', prefix .. 'delayed')
  for _, level in ipairs({'high', 'normal', 'low'}) do
    waiting = waiting + redis.call('XLEN', prefix .. 'requests:' .. level .. of_tenant)
  end
  waiting = waiting + redis.call('XLEN', prefix .. 'requests:returned')
  if waiting == 0 then return false end
  local bytes = tonumber(redis.pcall('GET', held_key)) or 0
  for _, j in ipairs(jobs) do bytes = bytes + #j[4] end
  if not (max_jobs > 0 and waiting + #jobs > max_jobs or max_bytes > 0 and bytes > max_bytes) then return false end
  for _, j in ipairs(jobs) do  -- those it has already take no room
    local ended_before = redis.call('HEXISTS', ended, short_id(batch, j[1])) == 1
    if not ended_before and redis.call('EXISTS', prefix .. 'body:' .. j[1]) == 0 then return true end
  end
  return false
end

if is_full() then return -2 end
local stream = prefix .. 'requests:' .. priority .. of_tenant
local some_ended = redis.call('EXISTS', ended) == 1
local job_prefix, body_prefix = prefix .. 'job:', prefix .. 'body:'
local new = 0
for _, j in ipairs(jobs) do
  local id, body, max_tokens, marks = j[1], j[4], j[5], j[6]
  local has_ended = some_ended and redis.call('HEXISTS', ended, short_id(batch, id)) == 1
  if not has_ended and redis.call('SET', body_prefix .. id, body, 'NX') then
    new, new_bytes = new + 1, new_bytes + #body
    redis.call('HSET', job_prefix .. id, 'state', 'queued', 'batch', batch, 'custom_id', j[2], 'url', j[3],
      'priority', priority, 'max_tokens', max_tokens, 'attempt', 1, 'submitted', at, with_prefix(marks))
    redis.call('XADD', stream, '*', 'job', id, 'batch', batch, 'priority', priority, 'body_bytes', #body,
      'max_tokens', max_tokens, with_prefix(marks))
    if j[7] then redis.call('HSET', job_prefix .. id, 'follow', 1) end
    if j[8] then redis.call('HSET', job_prefix .. id, 'traceparent', j[8]) end
    if timeout_s ~= '0' then redis.call('HSET', job_prefix .. id, 'timeout_s', timeout_s) end
  end
end
list_batch(prefix, batch, at)
redis.call('HSETNX', batch_key, 'state', 'open')
if window_s > 0 and redis.call('HSETNX', batch_key, 'expires', tonumber(at) + window_s) == 1 then
  redis.call('ZADD', prefix .. 'windows', tonumber(at) + window_s, batch)
end
if new > 0 then
  if of_tenant ~= '' then
    redis.call('SADD', prefix .. 'tenants', ARGV[9])
    announce(prefix, 'kind', 'submitted', 'tenant', ARGV[9])
  end
  if type(redis.pcall('INCRBY', held_key, new_bytes)) ~= 'number' then redis.call('SET', held_key, new_bytes) end
  redis.call('HINCRBY', batch_key, 'total', new)
  redis.call('PERSIST', batch_key)
  redis.call('PERSIST', prefix .. 'results:' .. batch)
  redis.call('PERSIST', ended)
end
return new

-- Cancel a batch: nothing of it starts from here on; workers are told to abort what runs.
-- ARGV: prefix, batch id. A complete batch stays as it is.
-- Returns 1, or 0 where there is no such batch.
local prefix, batch = ARGV[1], ARGV[2]
local key = prefix .. 'batch:' .. batch
if redis.call('EXISTS', key) == 0 then return 0 end
local have = redis.call('HMGET', key, 'total', 'done', 'failed', 'cancelled', 'sealed')
local ended = tonumber(have[2] or 0) + tonumber(have[3] or 0) + tonumber(have[4] or 0)
if have[5] and ended >= tonumber(have[1] or 0) then return 1 end
redis.call('HSET', key, 'state', 'cancelled', 'sealed', 1)
announce(prefix, 'kind', 'cancelled', 'batch', batch)
for _, worker in ipairs(redis.call('ZRANGE', prefix .. 'workers', 0, -1)) do
  local control = prefix .. 'control:' .. worker
  redis.call('XADD', control, 'MAXLEN', '~', 1000, '*', 'order', 'cancel', 'batch', batch)
  redis.call('EXPIRE', control, 60)
end
return 1

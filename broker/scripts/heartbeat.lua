-- ARGV: prefix, worker, incarnation, ttl_ms, field, value, ...
-- Returns 1; or 0: the pool does not know this worker any more.
local prefix, worker = ARGV[1], ARGV[2]
local key = prefix .. 'worker:' .. worker
if not is_current(key, ARGV[3]) then return 0 end
local at = clock()
local before = redis.call('HGET', key, 'state')
redis.call('HSET', key, 'seen', at, unpack(ARGV, 5))
redis.call('PEXPIRE', key, ARGV[4])
redis.call('ZADD', prefix .. 'workers', at, worker)
if redis.call('HGET', key, 'state') ~= before then announce(prefix, 'kind', 'worker', 'worker', worker) end
return 1

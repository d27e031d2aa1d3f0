-- A worker joins under its name. Whoever bore the name before is declared dead and its jobs go back.
-- ARGV: prefix, worker, incarnation, heartbeat ttl_ms, result ttl_s, max attempts, takeover (1 or 0), field, value, ...
-- Returns 1; or 0: another living worker has the name, and takeover was not asked for.
local prefix, worker = ARGV[1], ARGV[2]
local key = prefix .. 'worker:' .. worker
if ARGV[7] == '0' and redis.call('EXISTS', key) == 1 then return 0 end
local at = clock()
local tally = batch_tally(prefix, ARGV[5])
give_all_back(tally, worker, tonumber(ARGV[6]), 'worker ' .. worker .. ' started anew')
write_tally(tally)
redis.call('DEL', key, prefix .. 'device:' .. worker, prefix .. 'control:' .. worker,
  prefix .. 'losers:' .. worker)
redis.call('XGROUP', 'CREATE', prefix .. 'device:' .. worker, 'worker', '0', 'MKSTREAM')
redis.call('HSET', key, 'incarnation', ARGV[3], 'seen', at, unpack(ARGV, 8))
redis.call('PEXPIRE', key, ARGV[4])
redis.call('ZADD', prefix .. 'workers', at, worker)
announce(prefix, 'kind', 'worker', 'worker', worker)
return 1

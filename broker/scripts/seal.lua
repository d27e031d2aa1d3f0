-- The batch has all its jobs: readers know when they have seen the last. ARGV: prefix, batch id, ttl_s
local key = ARGV[1] .. 'batch:' .. ARGV[2]
redis.call('HSET', key, 'sealed', 1)
list_batch(ARGV[1], ARGV[2], clock())
redis.call('HSETNX', key, 'state', 'open')
redis.call('HSETNX', key, 'total', 0)
local tally = batch_tally(ARGV[1], ARGV[3])
tally.counts[ARGV[2]] = {}
write_tally(tally)
return 1

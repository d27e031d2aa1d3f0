-- A living worker gives back jobs of its queue: what it has not started (draining), or all (its engine died).
-- From here on it is in a state in which it gets no more: its next heartbeat may be a while away.
-- ARGV: prefix, worker, incarnation, result ttl_s, also running (1 or 0), max attempts, state
-- Returns how many went back; or -1: not known any more.
local prefix, worker = ARGV[1], ARGV[2]
if not is_current(prefix .. 'worker:' .. worker, ARGV[3]) then return -1 end
redis.call('HSET', prefix .. 'worker:' .. worker, 'state', ARGV[7])
announce(prefix, 'kind', 'worker', 'worker', worker)
-- An engine that died lost what it had computed: nobody will say how much that was.
if ARGV[5] == '1' then redis.call('DEL', prefix .. 'losers:' .. worker) end
local tally = batch_tally(prefix, ARGV[4])
local n = give_back(tally, worker, ARGV[5] == '1', tonumber(ARGV[6]), 100000,
  'the engine of worker ' .. worker .. ' died')
write_tally(tally)
return n

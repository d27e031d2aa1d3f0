-- A living worker gives back jobs of its queue: what it has not started (draining), or all (its engine died).
-- ARGV: prefix, worker, incarnation, result ttl_s, also running (1 or 0), max attempts
-- Returns how many went back; or -1: not known any more.
local prefix, worker = ARGV[1], ARGV[2]
if not is_current(prefix .. 'worker:' .. worker, ARGV[3]) then return -1 end
local tally = batch_tally(prefix, ARGV[4])
local n = give_back(tally, worker, ARGV[5] == '1', tonumber(ARGV[6]), 100000, clock())
write_tally(tally)
return n

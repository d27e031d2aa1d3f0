-- A worker leaves the pool, by its own will (it names its incarnation) or because the scheduler declares it dead
-- (it names its epoch). All its jobs go back, those that had started with attempt + 1.
-- ARGV: prefix, worker, 'incarnation' or 'epoch', that value, result ttl_s, max attempts;
--   epoch only: silent for s on Redis' clock, or (else '') the last heartbeat's stamp: watched by a clock that is not set
-- Returns how many jobs went back; or -1: the caller has no say over it; or -2: it has left.
local prefix, worker = ARGV[1], ARGV[2]
local key = prefix .. 'worker:' .. worker
if ARGV[3] == 'incarnation' then
  if not is_current(key, ARGV[4]) then return -1 end
else
  if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[4] then return -1 end
  if not redis.call('ZSCORE', prefix .. 'workers', worker) then return -2 end
  local stamp = redis.pcall('HGET', key, 'seen')
  local seen = tonumber(stamp)  -- nil: expired, or not a heartbeat
  local watched = ARGV[8] ~= '' and stamp == ARGV[8]
  if seen and not watched and (ARGV[8] ~= '' or tonumber(clock()) - seen < tonumber(ARGV[7])) then return -1 end
end
local tally = batch_tally(prefix, ARGV[5])
-- A worker that leaves by its own will says nothing against its jobs.
local why = ARGV[3] == 'epoch' and 'worker ' .. worker .. ' died' or nil
local n = give_all_back(tally, worker, tonumber(ARGV[6]), why)
write_tally(tally)
redis.call('DEL', key, prefix .. 'device:' .. worker, prefix .. 'control:' .. worker,
  prefix .. 'losers:' .. worker)
redis.call('ZREM', prefix .. 'workers', worker)
announce(prefix, 'kind', 'worker', 'worker', worker)
return n

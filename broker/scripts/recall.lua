-- Take jobs back that have not started, only while the caller holds the lease: they wait again, attempt unchanged.
-- A side that is not the job's only one just goes.
-- ARGV: prefix, epoch, ttl_s, msgpack [[worker, [job id, ...]], ...]
-- Returns the jobs that wait again (or ended, their batch being cancelled); or -1: the lease is another's.
local prefix = ARGV[1]
if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[2] then return -1 end
local tally = batch_tally(prefix, ARGV[3])
local back = {}

-- The job's entry in this worker's device queue. (pcall: what a job's hash says may have been written by hand.)
local function entry_at(worker, id)
  local f = redis.call('HMGET', prefix .. 'job:' .. id, 'worker', 'entry', 'copy', 'copy_entry')
  if f[1] == worker then return f[2] end
  return f[3] == worker and f[4]
end

for _, group in ipairs(cmsgpack.unpack(ARGV[4])) do
  local worker = group[1]
  local stream = prefix .. 'device:' .. worker
  for _, id in ipairs(group[2]) do
    local entry = entry_at(worker, id)
    local has_started = entry and redis.pcall('XPENDING', stream, 'worker', entry, entry, 1)[1]
    if entry and not has_started and redis.pcall('XDEL', stream, entry) == 1 then
      if leave(tally, id, worker, entry, false, 0) == 1 then back[#back + 1] = id end
    end
  end
end
write_tally(tally)
return back

-- Run dispatched jobs a second time, each on a worker that is ready and not its own; the first result wins. Only while
-- the caller holds the lease.
-- ARGV: prefix, epoch, ttl_s, msgpack [[job id, worker, prompt tokens, output tokens, predicted s], ...]
-- Returns the jobs that got their copy; or -1: the lease is another's.
local prefix = ARGV[1]
if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[2] then return -1 end
local at = clock()
local tally = batch_tally(prefix, ARGV[3])
local copied = {}
for _, c in ipairs(cmsgpack.unpack(ARGV[4])) do
  local id, worker = c[1], c[2]
  local key = prefix .. 'job:' .. id
  local job = redis.call('HMGET', key, 'state', 'worker', 'batch', 'copy')
  local may = job[1] == 'dispatched' and job[2] ~= worker and not job[4] and not is_cancelled(tally, job[3])
  if may and redis.call('HGET', prefix .. 'worker:' .. worker, 'state') == 'ready' then
    local entry = redis.call('XADD', prefix .. 'device:' .. worker, '*', 'job', id, 'prompt_tokens', c[3],
      'output_tokens', c[4])
    redis.call('HSET', key, 'copy', worker, 'copy_entry', entry, 'copy_dispatched', at, 'copy_predicted_s', c[5],
      'copy_output_tokens', c[4])
    local counts = counts_of(tally, job[3])
    counts.copies = counts.copies + 1
    copied[#copied + 1] = id
  end
end
write_tally(tally)
return copied

-- End waiting jobs of cancelled batches. ARGV: prefix, epoch, ttl_s, msgpack [[job id, level, entry id], ...]
-- Returns how many there were; or -1: the lease is another's.
local prefix = ARGV[1]
if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[2] then return -1 end
local at = clock()
local tally = batch_tally(prefix, ARGV[3])
local acked, n = {}, 0
for _, j in ipairs(cmsgpack.unpack(ARGV[4])) do
  local id, level = j[1], j[2]
  local job = redis.call('HMGET', prefix .. 'job:' .. id, 'state', 'attempt', 'batch', 'custom_id')
  if job[1] == 'queued' and is_cancelled(tally, job[3]) then
    finish_cancelled(tally, id, job[3], job[4], job[2], at)
    n = n + 1
  end
  if not acked[level] then acked[level] = {} end
  table.insert(acked[level], j[3])
end
for level, ids in pairs(acked) do remove_entries(prefix .. 'requests:' .. level, 'scheduler', ids) end
write_tally(tally)
return n

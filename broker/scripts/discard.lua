-- End waiting jobs of cancelled batches.
-- ARGV: prefix, epoch, ttl_s, msgpack [[job id, batch, level, entry id], ...]
-- Returns 1; or -1: the lease is another's.
local prefix = ARGV[1]
if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[2] then return -1 end
local tally = batch_tally(prefix, ARGV[3])
local acked = {}
for _, j in ipairs(cmsgpack.unpack(ARGV[4])) do
  local id, level = j[1], j[3]
  local waits = redis.call('HGET', prefix .. 'job:' .. id, 'state') == 'queued'
  if is_cancelled(tally, j[2]) or not waits then
    if waits then finish_cancelled(tally, id) end
    if not acked[level] then acked[level] = {} end
    table.insert(acked[level], j[4])
  end
end
for level, ids in pairs(acked) do remove_entries(prefix .. 'requests:' .. level, 'scheduler', ids) end
write_tally(tally)
return 1

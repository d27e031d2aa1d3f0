-- Cancel single jobs: they end now; what runs of them is aborted by its worker.
-- ARGV: prefix, ttl_s, job id, ...
-- Returns how many had not ended.
local prefix = ARGV[1]
local tally = batch_tally(prefix, ARGV[2])
local ended = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  local f = redis.call('HMGET', prefix .. 'job:' .. id, 'batch', 'worker', 'entry', 'copy', 'copy_entry')
  if f[1] then
    finish_without_response(tally, id, 'cancelled', '', 'batch_cancelled', 'This request was cancelled.')
    if f[2] and f[2] ~= '' then drop_side(tally, id, f[1], f[2], f[3] or '') end
    if f[4] then drop_side(tally, id, f[1], f[4], f[5] or '') end
    redis.call('ZREM', prefix .. 'delayed', id)
    ended[#ended + 1] = id
  end
end
if #ended > 0 then announce(prefix, 'kind', 'withdrawn', 'jobs', table.concat(ended, ' ')) end
write_tally(tally)
return #ended

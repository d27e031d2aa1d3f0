-- Waiting jobs of a batch go over to another priority, some of them: the streams may be long.
-- A scheduler that has read such a job already may hold it twice now. It runs once all the same: only the first dispatch
-- of a job that waits counts. ARGV: prefix, batch, from stream, to stream, priority, after entry, most entries to look at
-- Returns {jobs moved, last entry looked at, '' at the end of the stream}.
local prefix, batch = ARGV[1], ARGV[2]
local from, to = prefix .. 'requests:' .. ARGV[3], prefix .. 'requests:' .. ARGV[4]
local moved, gone, last = 0, {}, ''
local entries = redis.call('XRANGE', from, '(' .. ARGV[6], '+', 'COUNT', ARGV[7])
for _, e in ipairs(entries) do
  local fields = {}
  for i = 1, #e[2], 2 do fields[e[2][i]] = i + 1 end
  local id = fields.job and e[2][fields.job]
  if id and fields.batch and e[2][fields.batch] == batch
    and redis.call('HGET', prefix .. 'job:' .. id, 'state') == 'queued' then
    if fields.priority then e[2][fields.priority] = ARGV[5] end
    redis.call('HSET', prefix .. 'job:' .. id, 'priority', ARGV[5])
    redis.call('XADD', to, '*', unpack(e[2]))
    gone[#gone + 1] = e[1]
    moved = moved + 1
  end
end
remove_entries(from, 'scheduler', gone)
if #entries == tonumber(ARGV[7]) then last = entries[#entries][1] end
return {moved, last}

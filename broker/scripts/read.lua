-- Read jobs of one request stream, only while the caller holds the lease: what a stale scheduler read, nobody would
-- look for any more. ARGV: prefix, epoch, level, count, '>' for new entries, or an id: those read before, after it
-- Returns [[entry id, [field, value, ...] or false where the entry is gone], ...]; or -1: the lease is another's.
local prefix = ARGV[1]
if redis.call('HGET', prefix .. 'lease', 'epoch') ~= ARGV[2] then return -1 end
local read = redis.call('XREADGROUP', 'GROUP', 'scheduler', 'scheduler', 'COUNT', ARGV[4], 'STREAMS',
  prefix .. 'requests:' .. ARGV[3], ARGV[5])
if not read then return {} end
return read[1][2]

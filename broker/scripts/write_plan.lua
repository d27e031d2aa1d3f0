-- Write a plan, if the one that is there is still the one that its writer read.
-- ARGV: prefix, version that was read as text ('' where there was none), new version, the plan as JSON
-- Returns 1; or 0: another plan was written meanwhile.
local key = ARGV[1] .. 'plan'
if redis.call('TYPE', key).ok ~= 'hash' then redis.call('DEL', key) end
local version = redis.call('HGET', key, 'version') or ''
if string.sub(version, 1, 20) ~= ARGV[2] then return 0 end  -- no version that we wrote is longer
redis.call('HSET', key, 'version', ARGV[3], 'plan', ARGV[4])
return 1

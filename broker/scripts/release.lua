-- Give the lease up, so that a standby need not wait for its end. ARGV: prefix, owner
local key = ARGV[1] .. 'lease'
if redis.call('HGET', key, 'owner') == ARGV[2] then return redis.call('DEL', key) end
return 0

-- Take or renew the pool's lease. ARGV: prefix, owner, ttl_ms, the mark that the caller has seen unchanged for longer
-- than a lease lives ('' else): Redis' clock, which ends leases, may have been set back.
-- Returns the epoch; or {mark}: another holds it. Every renewal changes the mark.
local key = ARGV[1] .. 'lease'
if redis.call('TYPE', key).ok ~= 'hash' then redis.call('DEL', key) end
local owner = redis.call('HGET', key, 'owner')
local renewed = redis.call('HGET', key, 'renewed') or ''
local mark = (redis.call('HGET', key, 'epoch') or '') .. ':' .. renewed
if owner and owner ~= ARGV[2] and mark == ARGV[4] then
  redis.call('DEL', key)
  owner = false
end
if owner and owner ~= ARGV[2] then
  if redis.call('PTTL', key) < 0 then redis.call('PEXPIRE', key, ARGV[3]) end  -- no lease of ours is for ever
  return {mark}
end
local epoch = tonumber(redis.call('HGET', key, 'epoch'))
if not owner or not epoch then
  epoch = redis.pcall('INCR', ARGV[1] .. 'epoch')
  if type(epoch) ~= 'number' then  -- written by hand: go on above all that there was
    epoch = math.floor(tonumber(clock()) * 1000)
    redis.call('SET', ARGV[1] .. 'epoch', string.format('%.0f', epoch))
  end
  epoch = string.format('%.0f', epoch)
  redis.call('HSET', key, 'owner', ARGV[2], 'epoch', epoch, 'since', clock())
end
redis.call('HSET', key, 'renewed', string.format('%.0f', (tonumber(renewed) or 0) + 1))
redis.call('PEXPIRE', key, ARGV[3])
return tonumber(epoch)

-- Prepended to every script: the moves that several of them share.

-- Seconds since the epoch on Redis' clock, the only clock that stored times use.
local function clock()
  local t = redis.call('TIME')
  return string.format('%.3f', tonumber(t[1]) + tonumber(t[2]) / 1e6)
end

-- Acknowledge and delete entries of a stream, 1000 a call (Lua's unpack is bounded).
local function remove_entries(stream, group, ids)
  for first = 1, #ids, 1000 do
    local last = math.min(first + 999, #ids)
    redis.call('XACK', stream, group, unpack(ids, first, last))
    redis.call('XDEL', stream, unpack(ids, first, last))
  end
end

-- Whether the caller is still the worker that the pool knows by this name.
local function is_current(worker_key, incarnation)
  return redis.call('HGET', worker_key, 'incarnation') == incarnation
end

-- Counters of the batches that one call touches, written once at its end.
local function batch_tally(prefix, ttl_s)
  return {prefix = prefix, ttl_s = ttl_s, counts = {}, cancelled = {}}
end

local function is_cancelled(tally, batch)
  local known = tally.cancelled[batch]
  if known == nil then
    known = redis.call('HGET', tally.prefix .. 'batch:' .. batch, 'state') == 'cancelled'
    tally.cancelled[batch] = known
  end
  return known
end

-- What an ended job is called in its batch's index: its id without the batch.
local function short_id(batch, id) return string.sub(id, #batch + 2) end

-- The one way a job ends: its result becomes visible and is found by the job's id, all else of it goes.
-- `state`: done, failed or cancelled. The last two are given where there is no response. Returns 1; or 0 and changes
-- nothing: the job has ended.
local function finish(tally, id, batch, custom_id, attempt, submitted, started, worker, state, status_code, body,
    prompt_tokens, output_tokens, error_code, error_message)
  local prefix = tally.prefix
  if redis.call('DEL', prefix .. 'job:' .. id, prefix .. 'body:' .. id) == 0 then return 0 end
  local results = prefix .. 'results:' .. batch
  local entry
  if error_code then
    entry = redis.call('XADD', results, '*', 'job', id, 'custom_id', custom_id, 'status_code', 0,
      'error_code', error_code, 'error_message', error_message, 'worker', worker, 'attempt', attempt,
      'submitted', submitted, 'started', started)
  else
    entry = redis.call('XADD', results, '*', 'job', id, 'custom_id', custom_id, 'status_code', status_code,
      'body', body, 'prompt_tokens', prompt_tokens, 'output_tokens', output_tokens, 'worker', worker,
      'attempt', attempt, 'submitted', submitted, 'started', started)
  end
  redis.call('HSET', prefix .. 'ended:' .. batch, short_id(batch, id), entry)
  local c = tally.counts[batch]
  if not c then
    c = {done = 0, failed = 0, cancelled = 0, prompt_tokens = 0, output_tokens = 0}
    tally.counts[batch] = c
  end
  c[state] = c[state] + 1
  c.prompt_tokens = c.prompt_tokens + prompt_tokens
  c.output_tokens = c.output_tokens + output_tokens
  return 1
end

-- End a job that has no response. Nothing happens where it has ended already.
local function finish_without_response(tally, id, state, worker, error_code, error_message)
  local f = redis.call('HMGET', tally.prefix .. 'job:' .. id, 'batch', 'custom_id', 'attempt', 'submitted')
  if not f[4] then return end
  finish(tally, id, f[1], f[2], f[3], f[4], '', worker, state, 0, '', 0, 0, error_code, error_message)
end

local function finish_cancelled(tally, id)
  finish_without_response(tally, id, 'cancelled', '', 'batch_cancelled',
    'The batch was cancelled before this request ran.')
end

local function write_tally(tally)
  for batch, counts in pairs(tally.counts) do
    local key = tally.prefix .. 'batch:' .. batch
    for field, n in pairs(counts) do
      if n ~= 0 then redis.call('HINCRBY', key, field, n) end
    end
    local have = redis.call('HMGET', key, 'total', 'done', 'failed', 'cancelled')
    local ended = tonumber(have[2] or 0) + tonumber(have[3] or 0) + tonumber(have[4] or 0)
    if ended >= tonumber(have[1] or 0) then
      redis.call('HSET', key, 'finished', clock())
      redis.call('EXPIRE', key, tally.ttl_s)
      redis.call('EXPIRE', tally.prefix .. 'results:' .. batch, tally.ttl_s)
      redis.call('EXPIRE', tally.prefix .. 'ended:' .. batch, tally.ttl_s)
    end
  end
end

-- A batch that is new enters the list of batches; the oldest ones leave it where they have expired.
local function list_batch(prefix, batch, at)
  if redis.call('HSETNX', prefix .. 'batch:' .. batch, 'created', at) == 0 then return end
  redis.call('ZADD', prefix .. 'batches', at, batch)
  for _, old in ipairs(redis.call('ZRANGE', prefix .. 'batches', 0, 9)) do
    if redis.call('EXISTS', prefix .. 'batch:' .. old) == 0 then redis.call('ZREM', prefix .. 'batches', old) end
  end
end

local function announce(prefix, ...)
  redis.call('XADD', prefix .. 'events', 'MAXLEN', '~', 10000, '*', ...)
end

-- The entries of a device queue that its worker has taken: these jobs have started. (No group: nobody took any.)
local function taken_entries(stream, limit)
  local taken = {}
  for _, p in ipairs(redis.pcall('XPENDING', stream, 'worker', '-', '+', limit)) do taken[p[1]] = true end
  return taken
end

local function wait_again(prefix, id, job, started)
  local key = prefix .. 'job:' .. id
  if started then redis.call('HINCRBY', key, 'attempt', 1) end
  redis.call('HSET', key, 'state', 'queued', 'worker', '')
  redis.call('XADD', prefix .. 'requests:returned', '*', 'job', id, 'batch', job[1], 'priority', job[3],
    'body_bytes', redis.call('STRLEN', prefix .. 'body:' .. id), 'max_tokens', job[4])
end

-- Jobs of a device queue back to the request stream. A device queue holds just the jobs bound to its worker.
-- `also_running`: the ones that had started, too, with attempt + 1. Returns how many went back.
local function give_back(tally, worker, also_running, max_attempts, limit)
  local prefix = tally.prefix
  local stream = prefix .. 'device:' .. worker
  if redis.call('EXISTS', stream) == 0 then return 0 end
  local taken = taken_entries(stream, limit)
  local gone, returned = {}, {}
  for _, e in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', limit)) do
    local id, started = e[2][2] or '', taken[e[1]]
    if also_running or not started then
      gone[#gone + 1] = e[1]
      local job = redis.call('HMGET', prefix .. 'job:' .. id, 'batch', 'attempt', 'priority', 'max_tokens')
      if job[4] then
        returned[#returned + 1] = id
        if is_cancelled(tally, job[1]) then
          finish_cancelled(tally, id)
        elseif started and tonumber(job[2]) >= max_attempts then
          finish_without_response(tally, id, 'failed', worker, 'attempts_exhausted',
            'Its worker went away in each of ' .. job[2] .. ' attempts.')
        else
          wait_again(prefix, id, job, started)
        end
      end
    end
  end
  remove_entries(stream, 'worker', gone)
  if #returned > 0 then
    announce(prefix, 'kind', 'returned', 'worker', worker, 'jobs', table.concat(returned, ' '))
  end
  return #returned
end

-- Everything of a device queue back, in steps of bounded size. Returns how many jobs went back.
local function give_all_back(tally, worker, max_attempts)
  local stream = tally.prefix .. 'device:' .. worker
  local n = 0
  while redis.call('XLEN', stream) > 0 do n = n + give_back(tally, worker, true, max_attempts, 1000) end
  return n
end

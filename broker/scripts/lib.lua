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

-- The one way a job ends: its result becomes visible, its body goes, its hash gets a time to live.
-- r = {state, status_code, body, prompt_tokens, output_tokens, error_code, error_message, worker}
local function finish(tally, id, batch, custom_id, attempt, r, at)
  local prefix = tally.prefix
  local entry = redis.call('XADD', prefix .. 'results:' .. batch, '*', 'job', id, 'custom_id', custom_id,
    'status_code', r.status_code, 'body', r.body, 'error_code', r.error_code, 'error_message', r.error_message,
    'prompt_tokens', r.prompt_tokens, 'output_tokens', r.output_tokens, 'worker', r.worker, 'attempt', attempt)
  redis.call('HSET', prefix .. 'job:' .. id, 'state', r.state, 'finished', at, 'status_code', r.status_code,
    'prompt_tokens', r.prompt_tokens, 'output_tokens', r.output_tokens, 'result', entry)
  redis.call('EXPIRE', prefix .. 'job:' .. id, tally.ttl_s)
  redis.call('DEL', prefix .. 'body:' .. id)
  local c = tally.counts[batch]
  if not c then
    c = {done = 0, failed = 0, cancelled = 0, prompt_tokens = 0, output_tokens = 0}
    tally.counts[batch] = c
  end
  c[r.state] = c[r.state] + 1
  c.prompt_tokens = c.prompt_tokens + r.prompt_tokens
  c.output_tokens = c.output_tokens + r.output_tokens
end

local function finish_cancelled(tally, id, batch, custom_id, attempt, at)
  finish(tally, id, batch, custom_id, attempt, {state = 'cancelled', status_code = 0, body = '', prompt_tokens = 0,
    output_tokens = 0, error_code = 'batch_cancelled', error_message = 'The batch was cancelled before this request ran.',
    worker = ''}, at)
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
    end
  end
end

local function announce(prefix, ...)
  redis.call('XADD', prefix .. 'events', 'MAXLEN', '~', 10000, '*', ...)
end

-- Jobs of a device queue back to the request stream. `also_running`: the ones that had started, too, with
-- attempt + 1. Returns how many went back.
local function give_back(tally, worker, also_running, max_attempts, limit, at)
  local prefix = tally.prefix
  local stream = prefix .. 'device:' .. worker
  local gone, returned = {}, {}
  for _, e in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', limit)) do
    local id = e[2][2]
    local job = redis.call('HMGET', prefix .. 'job:' .. id, 'state', 'worker', 'attempt', 'batch', 'custom_id',
      'priority', 'body_bytes', 'max_tokens')
    local mine = job[2] == worker and (job[1] == 'dispatched' or job[1] == 'running')
    local started = job[1] == 'running'
    if not mine then
      gone[#gone + 1] = e[1]
    elseif also_running or not started then
      gone[#gone + 1] = e[1]
      returned[#returned + 1] = id
      local attempt = tonumber(job[3])
      if is_cancelled(tally, job[4]) then
        finish_cancelled(tally, id, job[4], job[5], attempt, at)
      elseif started and attempt >= max_attempts then
        finish(tally, id, job[4], job[5], attempt, {state = 'failed', status_code = 0, body = '', prompt_tokens = 0,
          output_tokens = 0, error_code = 'attempts_exhausted', worker = worker,
          error_message = 'Its worker went away in each of ' .. attempt .. ' attempts.'}, at)
      else
        if started then attempt = attempt + 1 end
        redis.call('HSET', prefix .. 'job:' .. id, 'state', 'queued', 'worker', '', 'attempt', attempt)
        redis.call('XADD', prefix .. 'requests:returned', '*', 'job', id, 'batch', job[4], 'priority', job[6],
          'body_bytes', job[7], 'max_tokens', job[8])
      end
    end
  end
  remove_entries(stream, 'worker', gone)
  if #returned > 0 then
    announce(prefix, 'kind', 'returned', 'worker', worker, 'jobs', table.concat(returned, ' '))
  end
  return #returned
end

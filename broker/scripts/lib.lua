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

local function announce(prefix, ...)
  redis.call('XADD', prefix .. 'events', 'MAXLEN', '~', 1000, '*', ...)
end

-- What one call changes of the batches and says of the workers it touches, written once at its end.
local function batch_tally(prefix, ttl_s)
  return {prefix = prefix, ttl_s = ttl_s, counts = {}, wasted = {}, ended = {}, cancelled = {}, freed_bytes = 0,
    gone = {returned = {}, dropped = {}}}
end

-- Whether nothing of the batch may run any more: 'cancelled', 'expired' (its completion window is over), or false.
local function is_cancelled(tally, batch)
  local known = tally.cancelled[batch]
  if known == nil then
    local state = redis.call('HGET', tally.prefix .. 'batch:' .. batch, 'state')
    known = (state == 'cancelled' or state == 'expired') and state
    tally.cancelled[batch] = known
  end
  return known
end

local function counts_of(tally, batch)
  local c = tally.counts[batch]
  if not c then
    c = {done = 0, failed = 0, cancelled = 0, prompt_tokens = 0, output_tokens = 0, copies = 0, copies_won = 0}
    tally.counts[batch] = c
  end
  return c
end

-- Work that no result shows. Its batch may have ended meanwhile.
local function count_wasted(tally, batch, prompt_tokens, output_tokens)
  local w = tally.wasted[batch] or {0, 0}
  tally.wasted[batch] = {w[1] + prompt_tokens, w[2] + output_tokens}
end

-- A job is off a worker: `how` is returned (it waits again, or has ended) or dropped (it goes on, or ended, elsewhere).
local function note_gone(tally, how, worker, id)
  local of_worker = tally.gone[how][worker]
  if not of_worker then
    of_worker = {}
    tally.gone[how][worker] = of_worker
  end
  of_worker[#of_worker + 1] = id
end

-- What an ended job is called in its batch's index: its id without the batch.
local function short_id(batch, id) return string.sub(id, #batch + 2) end

-- How an attempt of a job failed, for its dead letter. `started`: seconds since the epoch.
local function note_attempt(tally, id, attempt, worker, started, why)
  local key = tally.prefix .. 'job:' .. id
  local record = cjson.encode({attempt = tonumber(attempt) or 0, worker = worker, started = tonumber(started) or 0,
    ended = tonumber(clock()), why = string.sub(why, 1, 300)})
  local before = redis.call('HGET', key, 'history')
  redis.call('HSET', key, 'history', before and before .. '\n' .. record or record)
end

-- Jobs that failed for good, by reason. (pcall: the key may be of another kind, written by hand.)
local function count_given_up(prefix, status_code, error_code)
  local key, reason = prefix .. 'given_up', error_code or string.format('status_%.0f', tonumber(status_code) or 0)
  local reasons = redis.pcall('HLEN', key)
  if type(reasons) == 'number' and reasons >= 100 and redis.call('HEXISTS', key, reason) == 0 then reason = 'other' end
  redis.pcall('HINCRBY', key, string.sub(reason, 1, 64), 1)
end

local LETTERS, LETTER_BODY_BYTES = 10000, 65536

-- A dead letter: the job as it was, and how each of its attempts failed. A pool keeps the newest, each for its time to
-- live; a long body is not kept: the job's own file has it.
local function bury(tally, id, status_code, error_code, error_message)
  local prefix, at = tally.prefix, clock()
  local letter, dead = prefix .. 'letter:' .. id, prefix .. 'dead'
  local f = redis.call('HMGET', prefix .. 'job:' .. id, 'batch', 'custom_id', 'url', 'priority', 'max_tokens', 'prefix',
    'submitted', 'history', 'timeout_s')
  if not f[1] then return end
  count_given_up(prefix, status_code, error_code)
  redis.call('HSET', letter, 'batch', f[1], 'custom_id', f[2] or '', 'url', f[3] or '', 'priority', f[4] or '',
    'max_tokens', tonumber(f[5]) or 0, 'prefix', f[6] or '', 'submitted', tonumber(f[7]) or 0, 'history', f[8] or '',
    'timeout_s', tonumber(f[9]) or 0, 'died', at, 'status_code', status_code, 'error_code', error_code or '',
    'error_message', error_message or '')
  if redis.call('STRLEN', prefix .. 'body:' .. id) <= LETTER_BODY_BYTES then
    redis.call('HSET', letter, 'body', redis.call('GET', prefix .. 'body:' .. id) or '')
  end
  redis.call('EXPIRE', letter, tally.ttl_s)
  redis.call('ZADD', dead, at, id)
  redis.call('EXPIRE', dead, tally.ttl_s)
  redis.call('ZREMRANGEBYSCORE', dead, '-inf', tonumber(at) - tonumber(tally.ttl_s))
  local over = redis.call('ZCARD', dead) - LETTERS
  if over > 0 then
    for _, old in ipairs(redis.call('ZRANGE', dead, 0, over - 1)) do redis.call('DEL', prefix .. 'letter:' .. old) end
    redis.call('ZREMRANGEBYRANK', dead, 0, over - 1)
  end
end

-- The span of whoever submitted a job, as a field of calls that end with it; no field where none was named.
local function with_caller(traceparent)
  if traceparent then return 'traceparent', traceparent end
end

-- The one way a job ends: its result becomes visible and is found by the job's id, all else of it goes; but for a dead
-- letter where it failed. `state`: done, failed or cancelled. `record`: dispatched, predicted_s, output_tokens, reason,
-- traceparent. The last two are given where there is no response. Returns 1; or 0 and changes nothing: the job has ended.
local function finish(tally, id, batch, custom_id, attempt, submitted, started, worker, state, status_code, body,
    prompt_tokens, output_tokens, cached_tokens, record, error_code, error_message)
  local prefix = tally.prefix
  if state == 'failed' and error_code ~= 'batch_expired' then bury(tally, id, status_code, error_code, error_message) end
  local bytes = redis.call('STRLEN', prefix .. 'body:' .. id)
  if redis.call('DEL', prefix .. 'job:' .. id, prefix .. 'body:' .. id) == 0 then return 0 end
  tally.freed_bytes = tally.freed_bytes + bytes
  local results = prefix .. 'results:' .. batch
  local entry
  if error_code then
    entry = redis.call('XADD', results, '*', 'job', id, 'custom_id', custom_id, 'status_code', 0,
      'error_code', error_code, 'error_message', error_message, 'worker', worker, 'attempt', attempt,
      'submitted', submitted, 'started', started, 'dispatched', record[1] or '', 'predicted_s', record[2] or '',
      'predicted_output_tokens', record[3] or '', 'reason', record[4] or '', with_caller(record[5]))
  else
    entry = redis.call('XADD', results, '*', 'job', id, 'custom_id', custom_id, 'status_code', status_code,
      'body', body, 'prompt_tokens', prompt_tokens, 'output_tokens', output_tokens, 'cached_tokens', cached_tokens,
      'worker', worker, 'attempt', attempt, 'submitted', submitted, 'started', started,
      'dispatched', record[1] or '', 'predicted_s', record[2] or '',
      'predicted_output_tokens', record[3] or '', 'reason', record[4] or '', with_caller(record[5]))
  end
  local ended = tally.ended[batch]
  if not ended then
    ended = {}
    tally.ended[batch] = ended
  end
  ended[#ended + 1] = short_id(batch, id)
  ended[#ended + 1] = entry
  local c = counts_of(tally, batch)
  c[state] = c[state] + 1
  c.prompt_tokens = c.prompt_tokens + prompt_tokens
  c.output_tokens = c.output_tokens + output_tokens
  return 1
end

-- End a job that has no response and no other side. Nothing happens where it has ended already.
local function finish_without_response(tally, id, state, worker, error_code, error_message)
  local f = redis.call('HMGET', tally.prefix .. 'job:' .. id, 'batch', 'custom_id', 'attempt', 'submitted',
    'dispatched', 'predicted_s', 'output_tokens', 'reason', 'traceparent')
  if not f[1] then return end
  finish(tally, id, f[1], f[2] or '', f[3] or 0, f[4] or '', '', worker, state, 0, '', 0, 0, 0,
    {f[5], f[6], f[7], f[8], f[9]}, error_code, error_message)
end

local function finish_cancelled(tally, id)
  local batch = redis.call('HGET', tally.prefix .. 'job:' .. id, 'batch')
  if batch and is_cancelled(tally, batch) == 'expired' then
    return finish_without_response(tally, id, 'failed', '', 'batch_expired',
      "The batch's completion window was over before this request ran.")
  end
  finish_without_response(tally, id, 'cancelled', '', 'batch_cancelled',
    'The batch was cancelled before this request ran.')
end

local function write_ended(tally)
  for batch, pairs_of in pairs(tally.ended) do
    for first = 1, #pairs_of, 1000 do
      local last = math.min(first + 999, #pairs_of)
      redis.call('HSET', tally.prefix .. 'ended:' .. batch, unpack(pairs_of, first, last))
    end
  end
end

-- A batch that is not there any more was forgotten: nobody will ask.
local function write_wasted(tally)
  for batch, tokens in pairs(tally.wasted) do
    local key = tally.prefix .. 'batch:' .. batch
    if redis.call('EXISTS', key) == 1 then
      redis.call('HINCRBY', key, 'wasted_prompt_tokens', tokens[1])
      redis.call('HINCRBY', key, 'wasted_output_tokens', tokens[2])
    end
  end
end

local function announce_gone(tally)
  for how, workers in pairs(tally.gone) do
    for worker, ids in pairs(workers) do
      for first = 1, #ids, 1000 do
        local last = math.min(first + 999, #ids)
        announce(tally.prefix, 'kind', how, 'worker', worker, 'jobs', table.concat(ids, ' ', first, last))
      end
    end
  end
end

-- Bodies that are not held any more. (What the counter says may have been written by hand: never below nothing.)
local function write_freed_bytes(tally)
  if tally.freed_bytes == 0 then return end
  local held = redis.pcall('DECRBY', tally.prefix .. 'held_bytes', tally.freed_bytes)
  if type(held) ~= 'number' or held < 0 then redis.call('SET', tally.prefix .. 'held_bytes', 0) end
end

-- A count that a batch's hash has; what is none (it may have been written by hand) counts as nothing.
local function count(text) return tonumber(text or 0) or 0 end

local function write_tally(tally)
  write_freed_bytes(tally)
  write_ended(tally)
  write_wasted(tally)
  announce_gone(tally)
  for batch, counts in pairs(tally.counts) do
    local key = tally.prefix .. 'batch:' .. batch
    for field, n in pairs(counts) do
      if n ~= 0 and type(redis.pcall('HINCRBY', key, field, n)) ~= 'number' then redis.call('HSET', key, field, n) end
    end
    local have = redis.call('HMGET', key, 'total', 'done', 'failed', 'cancelled')
    if count(have[2]) + count(have[3]) + count(have[4]) >= count(have[1]) then
      redis.call('HSET', key, 'finished', clock())
      redis.call('EXPIRE', key, tally.ttl_s)
      redis.call('EXPIRE', tally.prefix .. 'results:' .. batch, tally.ttl_s)
      redis.call('EXPIRE', tally.prefix .. 'ended:' .. batch, tally.ttl_s)
    end
  end
end

-- A batch that is new enters the list of batches (tidy.lua: and leaves it once it has expired).
local function list_batch(prefix, batch, at)
  if redis.call('HSETNX', prefix .. 'batch:' .. batch, 'created', at) == 1 then
    redis.call('ZADD', prefix .. 'batches', at, batch)
  end
end

-- The entries of a device queue that its worker has taken: these jobs have started, at the time that is given.
-- (No group: nobody took any.)
local function taken_entries(stream, limit)
  local taken, now = {}, tonumber(clock())
  for _, p in ipairs(redis.pcall('XPENDING', stream, 'worker', '-', '+', limit)) do taken[p[1]] = now - p[3] / 1000 end
  return taken
end

-- The marks of a job's prefix as a field, in calls that end with it; no field where it has none.
local function with_prefix(marks)
  if marks and marks ~= '' then return 'prefix', marks end
end

-- A job that lost a worker waits as a suspect: see broker/quarantine.py.
local function with_suspicion(deaths, charges, marks)
  if deaths then return 'deaths', deaths, 'charges', charges or deaths, with_prefix(marks) end
  return with_prefix(marks)
end

local function unbind(key, state, started)
  if started and type(redis.pcall('HINCRBY', key, 'attempt', 1)) ~= 'number' then redis.call('HSET', key, 'attempt', 1) end
  redis.call('HSET', key, 'state', state, 'worker', '', 'entry', '')
  redis.call('HDEL', key, 'dispatched', 'predicted_s', 'output_tokens', 'reason')
end

-- A number of tokens or attempts; 0 where it is none that makes sense.
local function a_number(text)
  local n = tonumber(text or 0)
  return n and n >= 0 and n <= 1e9 and math.floor(n) or 0
end

local function wait_again(prefix, id, started)
  local key = prefix .. 'job:' .. id
  unbind(key, 'queued', started)
  local f = redis.call('HMGET', key, 'batch', 'priority', 'max_tokens', 'prefix', 'deaths', 'charges')
  -- What the hash says may have been written by hand: an entry that is no job would lose the job.
  local priority = (f[2] == 'high' or f[2] == 'low') and f[2] or 'normal'
  redis.call('XADD', prefix .. 'requests:returned', '*', 'job', id, 'batch', f[1] or '', 'priority', priority,
    'body_bytes', redis.call('STRLEN', prefix .. 'body:' .. id), 'max_tokens', string.format('%.0f', a_number(f[3])),
    with_suspicion(f[5] and a_number(f[5]), f[6] and a_number(f[6]), f[4]))
end

local function forget_copy(key)
  redis.call('HDEL', key, 'copy', 'copy_entry', 'copy_dispatched', 'copy_predicted_s', 'copy_output_tokens')
end

-- The copy of a job becomes the job.
local function promote_copy(key)
  local c = redis.call('HMGET', key, 'copy', 'copy_entry', 'copy_dispatched', 'copy_predicted_s', 'copy_output_tokens')
  redis.call('HSET', key, 'worker', c[1], 'entry', c[2] or '', 'dispatched', c[3] or '', 'predicted_s', c[4] or '',
    'output_tokens', c[5] or '', 'reason', 'copy')
  forget_copy(key)
end

-- One of the attempts that a job has is used up. Returns how many are. (pcall: the field may be written by hand.)
local function charge(key, field)
  local n = redis.pcall('HINCRBY', key, field, 1)
  if type(n) == 'number' then return n end
  redis.call('HSET', key, field, 1)
  return 1
end

-- A side of a job leaves its worker without a result; the caller removes its entry. `started`: when it did, or false.
-- `why` is given where the job itself may be the cause: that charges it an attempt. Where the job has another side it
-- goes on there; else it waits again, or ends. Returns 1 where it went back or ended; else 0.
local function leave(tally, id, worker, entry, started, max_attempts, why)
  local key = tally.prefix .. 'job:' .. id
  local f = redis.call('HMGET', key, 'batch', 'attempt', 'worker', 'entry', 'copy', 'copy_entry')
  local is_copy = f[5] == worker and f[6] == entry
  if not f[1] or not (is_copy or f[3] == worker and f[4] == entry) then return 0 end
  local charges = 0
  if started and why then
    note_attempt(tally, id, f[2], worker, started, why)
    charges = charge(key, 'charges')
    charge(key, 'deaths')
  end
  if f[5] then
    if is_copy then forget_copy(key) else promote_copy(key) end
    note_gone(tally, 'dropped', worker, id)
    return 0
  end
  if is_cancelled(tally, f[1]) then
    finish_cancelled(tally, id)
  elseif charges > 0 and charges >= max_attempts then
    finish_without_response(tally, id, 'failed', worker, 'attempts_exhausted',
      string.format('Given up after %d attempts; the last: %s.', charges, why))
  else
    wait_again(tally.prefix, id, started)
  end
  note_gone(tally, 'returned', worker, id)
  return 1
end

-- Jobs of a device queue back to the request stream. A device queue holds just the jobs bound to its worker.
-- `also_running`: the ones that had started, too; `why` as for leave. Returns how many went back.
local function give_back(tally, worker, also_running, max_attempts, limit, why)
  local stream = tally.prefix .. 'device:' .. worker
  if redis.call('EXISTS', stream) == 0 then return 0 end
  local taken = taken_entries(stream, limit)
  local gone, returned = {}, 0
  for _, e in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', limit)) do
    local started = taken[e[1]]
    if also_running or not started then
      gone[#gone + 1] = e[1]
      returned = returned + leave(tally, e[2][2] or '', worker, e[1], started, max_attempts, why)
    end
  end
  remove_entries(stream, 'worker', gone)
  return returned
end

-- Everything of a device queue back, in steps of bounded size. Returns how many jobs went back.
local function give_all_back(tally, worker, max_attempts, why)
  local stream = tally.prefix .. 'device:' .. worker
  local n = 0
  while redis.call('XLEN', stream) > 0 do n = n + give_back(tally, worker, true, max_attempts, 1000, why) end
  return n
end

-- A side of an ended job goes. Where it runs, its worker is told to abort it, and may say once what it had computed in
-- vain. (pcall: what the job's hash says may have been written by hand.)
local function drop_side(tally, id, batch, other, entry)
  if not other or not entry then return end
  local prefix = tally.prefix
  local queue = prefix .. 'device:' .. other
  if redis.pcall('XACK', queue, 'worker', entry) == 1 then
    local control = prefix .. 'control:' .. other
    redis.call('HSET', prefix .. 'losers:' .. other, entry, batch)
    redis.call('EXPIRE', prefix .. 'losers:' .. other, tally.ttl_s)
    redis.call('XADD', control, 'MAXLEN', '~', 1000, '*', 'order', 'cancel_job', 'job', id, 'entry', entry)
    redis.call('EXPIRE', control, 60)
  end
  redis.pcall('XDEL', queue, entry)
  note_gone(tally, 'dropped', other, id)
end

-- Nothing of the batch starts from here on; workers are told to abort what runs. `state`: cancelled or expired. A
-- complete batch stays as it is. Returns 1, or 0 where there is no such batch.
local function stop_batch(prefix, batch, state)
  local key = prefix .. 'batch:' .. batch
  if redis.call('EXISTS', key) == 0 then return 0 end
  local have = redis.call('HMGET', key, 'total', 'done', 'failed', 'cancelled', 'sealed', 'state')
  local ended = count(have[2]) + count(have[3]) + count(have[4])
  if have[6] ~= 'open' or have[5] and ended >= count(have[1]) then return 1 end
  redis.call('HSET', key, 'state', state, 'sealed', 1)
  announce(prefix, 'kind', 'cancelled', 'batch', batch)
  local order = state == 'expired' and 'expire' or 'cancel'
  for _, worker in ipairs(redis.call('ZRANGE', prefix .. 'workers', 0, -1)) do
    local control = prefix .. 'control:' .. worker
    redis.call('XADD', control, 'MAXLEN', '~', 1000, '*', 'order', order, 'batch', batch)
    redis.call('EXPIRE', control, 60)
  end
  return 1
end

"""What one node of a quorum does, in Lua. Which of it counts, a majority decides: protocol.py.

Two keys are the node's own: ``holdfast:quorum:node`` (a hash: ``v`` the layout, ``run`` the server process that counts,
``floor`` what every new number is above, ``longest`` the longest lease in ms, ``whole`` whether it has all cells,
``since`` when it was noticed that it lost its memory) and ``holdfast:quorum:numbers`` (a hash: the counters). A counter
serves all names of one shard, so counters are bounded in number and never expire; it starts from the server's time,
once.

A turnstile is three keys: ``h`` (who holds, packed, for as long as its lease), ``w`` (sorted set: who waits, by
arrival) and ``c`` (a hash: who waits, packed). A tombstone ``x`` is a key of its own.

Every script's last two arguments are added by the link: whether each write is on this server's disk before it is
answered, and the id of the server process. Where another process is noted, or none, the server restarted or lost its
data: it answers ``Q`` and does nothing until it is admitted again.
"""

from __future__ import annotations

from ...contract import LAYOUT
from ..redis.scripts import Script

LAYOUT_LINE = f"local LAYOUT = '{LAYOUT}'"

NODE = r"""
local call, pack, unpack = redis.call, cmsgpack.pack, cmsgpack.unpack
local time = call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local node = call('HMGET', KEYS[1], 'run', 'floor', 'v', 'whole')
if node[3] and node[3] ~= LAYOUT then return 'L ' .. node[3] end
if node[1] ~= ARGV[#ARGV] then return 'Q' end
local floor = tonumber(node[2])
"""

_COMMON = r"""
local NEXT, TURN_MS = '\0next', 50
local notes = {}

local function publish(reply)
  for _, one in ipairs(notes) do
    if one[1] ~= '' then redis.pcall('PUBLISH', one[1], one[2]) end
  end
  return reply
end

-- Who holds: id, attempt, number, ttl, since, ends, channel, owner, payload, wanted.
local function store(key, held)
  call('SET', key, pack(held), 'PX', math.max(1, math.ceil(held[6] - now)))
end

local function holder(key)
  local found = call('GET', key)
  if not found then return nil end
  local held = unpack(found)
  if held[6] <= now then return nil end
  if held[6] > now + held[4] then  -- the clock went back
    held[6] = now + held[4]
    store(key, held)
  end
  return held
end

local function number_of(shard)
  local last = tonumber(call('HGET', KEYS[2], shard)) or time[1] * 1000000
  return math.max(last, floor)
end

local function raise(shard, number)
  call('HSET', KEYS[2], shard, string.format('%.0f', number))
end

local function want(key, held)
  if held[10] ~= 1 then
    held[10] = 1
    store(key, held)
    notes[#notes + 1] = {held[7], 'w' .. held[1]}
  end
end

local function forget(w, c, id)
  call('ZREM', w, id)
  call('HDEL', c, id)
end

-- Who waits: ttl, since, ends, channel, owner, payload. Its place in the queue is the one of its first arrival.
local function await(w, c, id, ttl, channel, owner, payload)
  local found = call('HGET', c, id)
  local since = found and unpack(found)[2] or now
  if not found then call('ZADD', w, now, id) end
  call('HSET', c, id, pack({ttl, since, now + ttl, channel, owner, payload}))
  for _, key in ipairs({w, c}) do
    call('PEXPIRE', key, math.ceil(math.max(call('PTTL', key), ttl + 1000)))
  end
end

-- It is free: tell the first of those who still wait, and keep it for that one for as long as coming takes. Without,
-- whoever released would always be quicker to take it again.
local function nudge(w, c, keeps)
  for _ = 1, 100 do
    local id = call('ZRANGE', w, 0, 0)[1]
    if not id then return end
    local found = call('HGET', c, id)
    if found then
      local one = unpack(found)
      if one[3] > now then
        notes[#notes + 1] = {one[4], 'a' .. id}
        if keeps then call('HSET', c, NEXT, pack({id, now + TURN_MS})) end
        return
      end
    end
    forget(w, c, id)
  end
end

-- Whether it is kept for another. One that did not come in its turn goes to the end.
local function is_kept(w, c, id)
  local found = call('HGET', c, NEXT)
  if not found then return false end
  local turn = unpack(found)
  local one = turn[1]
  if one ~= id and turn[2] > now then return true end
  call('HDEL', c, NEXT)
  if one ~= id and call('ZSCORE', w, one) then call('ZADD', w, now, one) end
  return false
end

local function waiting(held, w, id)
  local place = call('ZRANK', w, id) or 0
  return string.format('W %d %d', held and math.max(1, math.ceil(held[6] - now)) or 2 * TURN_MS, place)
end
"""

_CLAIM = r"""
local h, w, c = KEYS[3], KEYS[4], KEYS[5]
local id, attempt, waits, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local channel, owner, payload, shard = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local held = holder(h)
local ours = held and held[1] == id
"""

# id, attempt, waits, ttl, channel, owner, payload, shard
TAKE = Script(
    LAYOUT_LINE,
    NODE,
    _COMMON,
    _CLAIM,
    r"""
if call('EXISTS', KEYS[6]) == 1 then return 'B' end
if ours then  -- an earlier attempt that comes late may not take it over, and then undo it
  held[2], held[6] = math.max(held[2], attempt), now + ttl
  store(h, held)
  return string.format('H %.0f %d', held[3], (held[10] == 1 or call('ZCARD', w) > 0) and 1 or 0)
end
if held or is_kept(w, c, id) then
  if held then want(h, held) end
  if waits == '1' then await(w, c, id, ttl, channel, owner, payload) end
  return publish(waiting(held, w, id))
end
local number = number_of(shard) + 1
raise(shard, number)
forget(w, c, id)
local wanted = call('ZCARD', w) > 0 and 1 or 0
store(h, {id, attempt, number, ttl, now, now + ttl, channel, owner, payload, wanted})
return string.format('G %.0f %d', number, wanted)
""",
)

# the same, and the number to raise to
MARK = Script(
    LAYOUT_LINE,
    NODE,
    _COMMON,
    _CLAIM,
    r"""
if not ours or held[2] ~= attempt then return 0 end
held[3] = tonumber(ARGV[9])
raise(shard, math.max(number_of(shard), held[3]))
store(h, held)
return 1
""",
)

# the same as for TAKE
UNDO = Script(
    LAYOUT_LINE,
    NODE,
    _COMMON,
    _CLAIM,
    r"""
if not ours or held[2] ~= attempt then return 0 end
call('DEL', h)
nudge(w, c, false)
if waits == '1' and call('EXISTS', KEYS[6]) == 0 then await(w, c, id, ttl, channel, owner, payload) end
return publish(1)
""",
)

# id, bury, how long a tombstone lives
LEAVE = Script(
    LAYOUT_LINE,
    NODE,
    _COMMON,
    r"""
local h, w, c, id, bury = KEYS[3], KEYS[4], KEYS[5], ARGV[1], ARGV[2]
local stone = call('GET', KEYS[6])
if stone then return tonumber(stone) end
local held = holder(h)
local ours = held and held[1] == id
local there = (ours or call('HEXISTS', c, id) == 1) and 1 or 0
forget(w, c, id)
if ours then
  call('DEL', h)
  nudge(w, c, true)
end
if bury == '1' or there == 0 then call('SET', KEYS[6], there, 'PX', ARGV[3]) end
return publish(there)
""",
)

# for each claim: id, ttl, channel
RENEW = Script(
    LAYOUT_LINE,
    NODE,
    _COMMON,
    r"""
local replies = {}
for i = 1, (#ARGV - 2) / 3 do
  local id, ttl, channel = ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1]), ARGV[3 * i]
  local h, w, c = KEYS[3 * i], KEYS[3 * i + 1], KEYS[3 * i + 2]
  call('HDEL', c, '')  -- needs no memory: a server that is full refuses only the first write of a script
  local held = holder(h)
  if held and held[1] == id then
    held[4], held[6], held[7] = ttl, now + ttl, channel
    store(h, held)
    replies[i] = string.format('H %.0f %d', held[3], (held[10] == 1 or call('ZCARD', w) > 0) and 1 or 0)
  else
    local found = call('HGET', c, id)
    local one = found and unpack(found)
    if one and one[3] > now then
      await(w, c, id, ttl, channel, one[5], one[6])
      replies[i] = waiting(held, w, id)
    else
      replies[i] = held and '- 0 0' or '- 1 0'
    end
  end
end
return table.concat(replies, ' ')
""",
)

# as for TAKE, the token, and whether a later one may have been granted
REGRANT = Script(
    LAYOUT_LINE,
    NODE,
    _COMMON,
    _CLAIM,
    r"""
if call('EXISTS', KEYS[6]) == 1 then return 0 end
local token, strict = tonumber(ARGV[9]), ARGV[10]
local last = tonumber(call('HGET', KEYS[2], shard)) or 0
if strict == '1' then last = math.max(last, floor) end
if held and (not ours or held[3] > token) or not held and last > token then return 0 end
if ours then
  held[3] = token
else
  held = {id, attempt, token, ttl, now, now + ttl, channel, owner, payload, 0}
  forget(w, c, id)
end
raise(shard, math.max(last, token))
store(h, held)
return 1
""",
)

LOOK = Script(
    LAYOUT_LINE,
    NODE,
    _COMMON,
    r"""
local held = holder(KEYS[3])
local reply = {}
if held then
  reply[1] = {held[1], string.format('%.0f', held[3]), 1, held[8], held[9],
    string.format('%.3f', now - held[5]), string.format('%.3f', held[6] - now)}
end
for _, id in ipairs(call('ZRANGE', KEYS[4], 0, -1)) do
  local found = call('HGET', KEYS[5], id)
  local one = found and unpack(found)
  if one and one[3] > now and not (held and held[1] == id) then
    reply[#reply + 1] = {id, '0', 0, one[5], one[6],
      string.format('%.3f', now - one[2]), string.format('%.3f', one[3] - now)}
  end
end
return reply
""",
)

# how long the longest lease is
ANNOUNCE = Script(
    LAYOUT_LINE,
    NODE,
    r"""
local longest = tonumber(call('HGET', KEYS[1], 'longest')) or 0
if tonumber(ARGV[1]) > longest then call('HSET', KEYS[1], 'longest', ARGV[1]) end
return 1
""",
)

STATE = Script(
    LAYOUT_LINE,
    r"""
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local layout, run, floor, longest, since, noticed =
  unpack(call('HMGET', KEYS[1], 'v', 'run', 'floor', 'longest', 'since', 'noticed'))
if layout and layout ~= LAYOUT then return 'L ' .. layout end
if run and run ~= ARGV[2] and ARGV[1] == '1' then  -- it restarted, and has lost nothing
  call('HSET', KEYS[1], 'run', ARGV[2])
  run = ARGV[2]
end
local highest = tonumber(floor) or 0
for _, number in ipairs(call('HVALS', KEYS[2])) do highest = math.max(highest, tonumber(number)) end
local counts = run == ARGV[2]
if not counts and noticed ~= ARGV[2] then
  since = string.format('%.3f', now)
  call('HSET', KEYS[1], 'since', since, 'noticed', ARGV[2])
end
return {counts and 1 or 0, string.format('%.0f', highest), longest or '0', since or '',
  string.format('%.3f', counts and 0 or now - tonumber(since))}
""",
)

# when its loss was noticed, the highest number of a majority, the longest lease, whole
ADMIT = Script(
    LAYOUT_LINE,
    r"""
local call = redis.call
local run, floor, longest, since, noticed =
  unpack(call('HMGET', KEYS[1], 'run', 'floor', 'longest', 'since', 'noticed'))
local process = ARGV[#ARGV]
if run == process then return 1 end
if noticed ~= process or since ~= ARGV[1] then return 0 end
floor = math.max(tonumber(floor) or 0, tonumber(ARGV[2]))
longest = math.max(tonumber(longest) or 0, tonumber(ARGV[3]))
call('HSET', KEYS[1], 'v', LAYOUT, 'run', process, 'floor', string.format('%.0f', floor), 'longest', tostring(longest),
  'whole', ARGV[4])
call('HDEL', KEYS[1], 'since', 'noticed')
return 1
""",
)

# a cursor, a pattern
SCAN = Script(LAYOUT_LINE, NODE, "return call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 1000)")

"""The turnstile and the cell in Lua: one script call per operation, O(log n) in the number of claims.

A turnstile is five keys of one hash tag, in this order: ``h`` (a hash: ``v`` the layout, ``s`` the totals, and under
``c<id>`` a record of each claim), ``a`` (sorted set: who is admitted, by the end of the lease), ``w`` (who waits, by
token), ``e`` (who waits, by the end of the lease) and ``t`` (the last token, which outlives the others by an hour).
A tombstone ``x`` is a key of its own, so that it can expire by itself.

Three things to keep in mind when changing them:

* A token is written with ``%.0f``: Lua's own conversion keeps 14 digits, and a token has 16.
* `leave` and `renew` start with a write that never needs memory. A server that is out of memory refuses only the
  first write of a script, so the others pass.
* `publish` comes last and by pcall: whatever happens to a signal, what was done stays done.
"""

from __future__ import annotations

import hashlib

from ...contract import LAYOUT


class Script:
    """One script, packed in both ways to ask for it."""

    def __init__(self, *parts: str) -> None:
        source = "\n".join(part.strip() for part in parts).encode()
        sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
        self.by_sha = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % sha
        self.by_text = b"$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (len(source), source)


_LAYOUT = f"local LAYOUT = '{LAYOUT}'"

_COMMON = r"""
local BATCH = 100
local call, pack, unpack = redis.call, cmsgpack.pack, cmsgpack.unpack
local time = call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local notes = {}

local function note(channel, text)
  if channel ~= '' then
    notes[#notes + 1] = {channel, text}
  end
end

-- That the turnstile changed. Announces of 2: within its shard of the cluster, where the server (Redis 7) can.
local function announce(s)
  if s.announces > 0 then
    notes[#notes + 1] = {s.h, '', s.announces}
  end
end

local function publish(reply)
  for _, one in ipairs(notes) do
    local told = one[3] == 2 and redis.pcall('SPUBLISH', one[1], one[2])
    if type(told) ~= 'number' then redis.pcall('PUBLISH', one[1], one[2]) end
  end
  return reply
end

-- A claim's record: token, weight, ttl, since, channel, owner, payload.
local function record(s, id)
  return unpack(call('HGET', s.h, 'c' .. id))
end

-- Store the totals (and a new claim with its token), and let every key live as long as the last lease.
local function save(s, token, id, claim)
  if s.admitted + s.waiting == 0 then
    call('DEL', s.h)
    return
  end
  local live = math.ceil(s.last - now) + 1000
  if token then
    call('SET', s.t, token, 'PX', live + 3600000)
  else
    call('PEXPIRE', s.t, live + 3600000)
  end
  local totals = pack(s.capacity, s.announces, s.load, s.admitted, s.waiting, s.last, s.longest, s.top, s.wanted)
  if claim then
    call('HSET', s.h, 'v', LAYOUT, 's', totals, 'c' .. id, claim)
  else
    call('HSET', s.h, 's', totals)
  end
  call('PEXPIRE', s.h, live)
  call('PEXPIRE', s.a, live)
  if s.waiting > 0 then
    call('PEXPIRE', s.w, live)
    call('PEXPIRE', s.e, live)
  end
end

local function remove(s, id)
  local _, weight = record(s, id)
  call('HDEL', s.h, 'c' .. id)
  if call('ZREM', s.a, id) == 1 then
    s.admitted, s.load = s.admitted - 1, s.load - weight
  else
    call('ZREM', s.w, id)
    call('ZREM', s.e, id)
    s.waiting = s.waiting - 1
  end
end

-- After someone went: admit whoever now fits, in the order of the tokens, and tell them in one message each whether
-- others still wait. While anyone does, all who are admitted were told that they are wanted.
local function settle(s)
  local fresh = {}
  for _ = 1, BATCH do
    if s.waiting == 0 then break end
    local id = call('ZRANGE', s.w, 0, 0)[1]
    local token, weight, _, _, channel = record(s, id)
    if s.load + weight > s.capacity then break end
    call('ZADD', s.a, call('ZSCORE', s.e, id), id)
    call('ZREM', s.w, id)
    call('ZREM', s.e, id)
    s.load, s.admitted, s.waiting, s.top = s.load + weight, s.admitted + 1, s.waiting - 1, token
    fresh[#fresh + 1] = {channel, id}
  end
  local kind = 'a'
  if s.waiting > 0 then kind, s.wanted = 'b', s.top end
  for _, one in ipairs(fresh) do note(one[1], kind .. one[2]) end
  announce(s)
  save(s)
end

-- The server's clock went back: no lease lies further ahead than its own ttl.
local function rewind(s)
  for _, ends in ipairs({s.a, s.e}) do
    local all = call('ZRANGE', ends, 0, -1, 'WITHSCORES')
    for i = 1, #all, 2 do
      local _, _, ttl = record(s, all[i])
      if tonumber(all[i + 1]) > now + ttl then call('ZADD', ends, now + ttl, all[i]) end
    end
  end
  s.last = now + s.longest
  save(s)
end

-- What stands, swept; this claim's record; and the stored layout where it is not ours.
local function find(o, id)
  local h = KEYS[o + 1]
  local found = call('HMGET', h, 'v', 's', 'c' .. id)
  if not found[1] then return nil end
  if found[1] ~= LAYOUT then return nil, nil, found[1] end
  local s = {h = h, a = KEYS[o + 2], w = KEYS[o + 3], e = KEYS[o + 4], t = KEYS[o + 5]}
  s.capacity, s.announces, s.load, s.admitted, s.waiting, s.last, s.longest, s.top, s.wanted = unpack(found[2])
  local claim = found[3]
  if s.last - s.longest > now then rewind(s) end
  local over = call('ZRANGEBYSCORE', s.a, '-inf', now, 'LIMIT', 0, BATCH)
  if s.waiting > 0 then
    for _, one in ipairs(call('ZRANGEBYSCORE', s.e, '-inf', now, 'LIMIT', 0, BATCH)) do over[#over + 1] = one end
  end
  if #over > 0 then
    for _, one in ipairs(over) do
      if one == id then claim = nil end
      remove(s, one)
    end
    settle(s)
    if s.admitted + s.waiting == 0 then return nil end
  end
  return s, claim
end

-- All who are admitted are wanted; tell those who were not told yet. All up to the token `wanted` were.
local function want(s)
  if s.wanted >= s.top then return false end
  for _, id in ipairs(call('ZRANGE', s.a, 0, BATCH - 1)) do
    local token, _, _, _, channel = record(s, id)
    if token > s.wanted then note(channel, 'w' .. id) end
  end
  s.wanted = s.top
  return true
end

local function standing(s, id, token, admitted)
  if admitted then
    local wanted = (s.waiting > 0 or token <= s.wanted) and 1 or 0
    return string.format('1 %.0f %d -1', token, wanted)
  end
  local place, ends = call('ZRANK', s.w, id), nil
  if place == 0 then
    ends = call('ZRANGE', s.a, 0, 0, 'WITHSCORES')[2]
  else
    ends = call('ZSCORE', s.e, call('ZRANGE', s.w, place - 1, place - 1)[1])
  end
  return string.format('2 %.0f 0 %d', token, ends and math.max(0, math.ceil(ends - now)) or -1)
end
"""

ENTER = Script(
    _LAYOUT,
    _COMMON,
    r"""
local id, nowait, weight, ttl, capacity = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local s, claim, layout = find(0, id)
if layout then return 'L ' .. layout end
if call('EXISTS', KEYS[6]) == 1 then return publish('5 0 0 -1') end
if s and s.capacity ~= capacity then return publish('C ' .. s.capacity) end
if claim then
  return publish(standing(s, id, unpack(claim), call('ZSCORE', s.a, id)))
end
if not s then
  s = {h = KEYS[1], a = KEYS[2], w = KEYS[3], e = KEYS[4], t = KEYS[5], capacity = capacity,
    announces = tonumber(ARGV[6]), load = 0, admitted = 0, waiting = 0, last = 0, longest = 0, top = 0, wanted = 0}
end
local fits = s.waiting == 0 and s.load + weight <= capacity
if nowait == '1' and not fits then
  if want(s) then save(s) end
  return publish('3 0 0 -1')
end
local token = math.max((tonumber(call('GET', s.t)) or 0) + 1, time[1] * 1000000 + time[2])
s.last, s.longest = math.max(s.last, now + ttl), math.max(s.longest, ttl)
if fits then
  s.load, s.admitted, s.top = s.load + weight, s.admitted + 1, token
else
  s.waiting = s.waiting + 1
end
local wanted = not fits and want(s)
announce(s)
if fits then
  call('ZADD', s.a, now + ttl, id)
else
  call('ZADD', s.w, token, id)
  call('ZADD', s.e, now + ttl, id)
end
save(s, string.format('%.0f', token), id, pack(token, weight, ttl, now, ARGV[7], ARGV[8], ARGV[9]))
return publish(standing(s, id, token, fits))
""",
)

LEAVE = Script(
    _LAYOUT,
    _COMMON,
    r"""
local id, bury = ARGV[1], ARGV[2]
call('HDEL', KEYS[1], '')
local s, claim, layout = find(0, id)
if layout then return 'L ' .. layout end
local stone = call('GET', KEYS[6])
if stone then return publish(tonumber(stone)) end
local there = claim and 1 or 0
if bury == '1' or not claim then call('SET', KEYS[6], there, 'PX', ARGV[3]) end
if claim then
  remove(s, id)
  settle(s)
end
return publish(there)
""",
)

RENEW = Script(
    _LAYOUT,
    _COMMON,
    r"""
local replies = {}
for i = 1, #ARGV / 3 do
  local id, ttl, channel = ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1]), ARGV[3 * i]
  call('HDEL', KEYS[5 * i - 4], '')
  local s, claim = find(5 * i - 5, id)
  if claim then
    local token, weight, old_ttl, since, old_channel, owner, payload = unpack(claim)
    claim = nil
    if ttl ~= old_ttl or channel ~= old_channel then
      claim = pack(token, weight, ttl, since, channel, owner, payload)
    end
    local admitted = s.waiting == 0 or call('ZSCORE', s.a, id)
    call('ZADD', admitted and s.a or s.e, now + ttl, id)
    s.last, s.longest = math.max(s.last, now + ttl), math.max(s.longest, ttl)
    save(s, nil, id, claim)
    replies[i] = standing(s, id, token, admitted)
  else
    replies[i] = '4 0 0 -1'
  end
end
return publish(table.concat(replies, ' '))
""",
)

LOOK = Script(
    _LAYOUT,
    _COMMON,
    r"""
local s, _, layout = find(0, '')
if layout then return 'L ' .. layout end
if not s then return publish({0}) end
local ends = {}
for _, key in ipairs({s.a, s.e}) do
  local all = call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #all, 2 do ends[all[i]] = {key == s.a and 1 or 0, tonumber(all[i + 1])} end
end
local reply, fields = {s.capacity}, call('HGETALL', s.h)
for i = 1, #fields, 2 do
  local id = string.sub(fields[i], 2)
  local one = ends[id]
  if one and string.sub(fields[i], 1, 1) == 'c' then
    local token, weight, _, since, _, owner, payload = unpack(fields[i + 1])
    reply[#reply + 1] = {id, string.format('%.0f', token), weight, one[1], owner, payload,
      string.format('%.3f', now - since), string.format('%.3f', one[2] - now)}
  end
end
return publish(reply)
""",
)

STANDS = Script(
    _LAYOUT,
    _COMMON,
    r"""
local s, _, layout = find(0, '')
if layout then return 'L ' .. layout end
return publish({s and s.capacity or 0, s and s.announces or 0})
""",
)

_CELL = r"""
local call = redis.call
local meta, entries = KEYS[1], KEYS[2]
local found = call('HMGET', meta, 'layout', 'turnstile', 'token', 'claim', 'opening', 'version', 'value', 'op',
  'applied')
local layout, turnstile, token, claim, opening, version, value, op, applied = unpack(found)
if layout and layout ~= LAYOUT then return 'L ' .. layout end
"""

# A cell is two hashes: what it is, and its entries. A reply is {accepted, version, token, value, applied, foreign,
# turnstile}; a missing value is nil.
OPEN = Script(
    _LAYOUT,
    _CELL,
    r"""
if not layout then
  call('HSET', meta, 'layout', LAYOUT, 'turnstile', ARGV[1], 'token', ARGV[2], 'claim', ARGV[3], 'opening', ARGV[4],
    'version', 1)
  return {1, 1, ARGV[2], false, '', 0, ARGV[1]}
end
if turnstile ~= ARGV[1] then return {0, tonumber(version), token, false, '', 1, turnstile} end
local ours = token == ARGV[2] and claim == ARGV[3]
local newer = tonumber(ARGV[2]) > tonumber(token) or (ours and tonumber(ARGV[4]) > tonumber(opening))
if newer then
  version = call('HINCRBY', meta, 'version', 1)
  token = ARGV[2]
  call('HSET', meta, 'token', token, 'claim', ARGV[3], 'opening', ARGV[4])
  call('HDEL', meta, 'op', 'applied')
end
local accepted = newer or (ours and opening == ARGV[4])
return {accepted and 1 or 0, tonumber(version), token, value, '', 0, turnstile}
""",
)

PUT = Script(
    _LAYOUT,
    _CELL,
    r"""
if not layout then return {0, 0, '0', false, '', 0, ''} end
local ours = turnstile == ARGV[1] and token == ARGV[2] and claim == ARGV[3] and opening == ARGV[4]
if ours and op == ARGV[6] then return {1, tonumber(version), token, false, applied, 0, turnstile} end
if not ours or version ~= ARGV[5] then return {0, tonumber(version), token, false, '', 0, turnstile} end
version = call('HINCRBY', meta, 'version', 1)
if ARGV[7] == '1' then call('HSET', meta, 'value', ARGV[8]) end
local done = {}
for i = 9, #ARGV, 3 do
  local verb, key, content = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if verb == 'delete' then
    done[#done + 1] = call('HDEL', entries, key)
  elseif verb == 'create' then
    done[#done + 1] = call('HSETNX', entries, key, content)
  else
    call('HSET', entries, key, content)
    done[#done + 1] = 1
  end
end
applied = table.concat(done)
call('HSET', meta, 'op', ARGV[6], 'applied', applied)
return {1, version, token, false, applied, 0, turnstile}
""",
)

READ = Script(
    _LAYOUT,
    _CELL,
    r"""
if not layout then return {false, 0, '0', '', {}} end
local reply = {}
if #ARGV == 0 then
  reply = call('HGETALL', entries)
else
  for i = 2, #ARGV do
    local content = call('HGET', entries, ARGV[i])
    if content then
      reply[#reply + 1] = ARGV[i]
      reply[#reply + 1] = content
    end
  end
end
return {value, tonumber(version), token, claim, reply}
""",
)

DROP = Script(_LAYOUT, _CELL, "return call('DEL', meta, entries)")

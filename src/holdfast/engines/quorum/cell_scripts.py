"""A cell on one node of a quorum, in Lua: two hashes, what it is and its entries.

``token``, ``claim`` and ``opening`` are the fence, which may have been raised here and on too few others. ``at``,
``in`` and ``version`` are the stamp: under which token and opening, and as which version, the content was written. A
node writes only to content that is stamped by the very fence that writes, so that one which missed something takes
nothing more until it has been given the newest.
"""

from __future__ import annotations

from ..redis.scripts import Script
from .scripts import LAYOUT_LINE, NODE

_CELL = r"""
if ARGV[#ARGV - 1] ~= '1' then return 'U' end
local meta, entries = KEYS[3], KEYS[4]
local found = call('HMGET', meta, 'turnstile', 'token', 'claim', 'opening', 'at', 'in', 'version', 'value', 'op',
  'applied', 'dropped')
local turnstile, token, claim, opening = found[1], found[2], found[3], found[4]
local at, within, version = found[5] or '0', found[6] or '0', found[7] or '0'
local value, op, applied, dropped = found[8], found[9], found[10], found[11]
local stands = found[5] or node[4] == '1'  -- a node that lost its cells has each again once it is written to
local same = turnstile == ARGV[1] and token == ARGV[2] and claim == ARGV[3] and opening == ARGV[4]

-- Whether this fence may come after the one that stands.
local function newer()
  if not token then return true end
  local ahead = tonumber(ARGV[2]) - tonumber(token)
  return ahead > 0 or (ahead == 0 and claim == ARGV[3] and tonumber(ARGV[4]) > tonumber(opening))
end

local function fence()
  call('HSET', meta, 'turnstile', ARGV[1], 'token', ARGV[2], 'claim', ARGV[3], 'opening', ARGV[4])
  call('PERSIST', meta)
end

local function stamp(number)
  call('HSET', meta, 'at', ARGV[2], 'in', ARGV[4], 'version', number)
  call('HDEL', meta, 'dropped')
end
"""


def _script(body: str) -> Script:
    return Script(LAYOUT_LINE, NODE, _CELL, body)


# In all: turnstile, token, claim, opening. {outcome, token, at, in, version, stands, value}; 2: another turnstile's
RAISE = _script(r"""
if turnstile and turnstile ~= ARGV[1] then return {2, token, at, within, version, 1, turnstile} end
local accepted = same or newer()
if accepted and not same then fence() end
return {accepted and 1 or 0, accepted and ARGV[2] or token, at, within, version, stands and 1 or 0, value}
""")

# the stamp that is there, and the version that it gets under this fence
COMMIT = _script(r"""
if not same then return 0 end
if at == ARGV[2] and within == ARGV[4] then return 1 end
if not stands or at ~= ARGV[5] or within ~= ARGV[6] or version ~= ARGV[7] then return 0 end
stamp(ARGV[8])
call('HDEL', meta, 'op', 'applied')
return 1
""")

DUMP = _script(r"""
return {at, within, version, dropped and '' or value, value and not dropped and 1 or 0, op or '', applied or '',
  call('HGETALL', entries)}
""")

# version, value, whether there is one, op, applied, and the entries
RESTORE = _script(r"""
if turnstile and turnstile ~= ARGV[1] then return 0 end
if not same and not newer() then return 0 end
if at == ARGV[2] and within == ARGV[4] and tonumber(version) >= tonumber(ARGV[5]) then return 1 end
call('DEL', meta, entries)
fence()
call('HSET', meta, 'at', ARGV[2], 'in', ARGV[4], 'version', ARGV[5])
if ARGV[7] == '1' then call('HSET', meta, 'value', ARGV[6]) end
if ARGV[8] ~= '' then call('HSET', meta, 'op', ARGV[8], 'applied', ARGV[9]) end
for i = 10, #ARGV - 2, 2 do call('HSET', entries, ARGV[i], ARGV[i + 1]) end
return 1
""")

# version, op, whether there is a value, value, and the changes. {outcome, token, version, applied}; 3: it is behind
PUT = _script(r"""
if not same then return {0, token or '0', version, ''} end
if at ~= token or within ~= opening then return {3, token, version, ''} end
if op == ARGV[6] then return {1, token, version, applied} end
if version ~= ARGV[5] then return {3, token, version, ''} end
version = call('HINCRBY', meta, 'version', 1)
if ARGV[7] == '1' then call('HSET', meta, 'value', ARGV[8]) end
local done = {}
for i = 9, #ARGV - 2, 3 do
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
return {1, token, tostring(version), applied}
""")

# 'all' or 'keys' and the keys. {stands, token, claim, at, in, version, value, entries}
READ = Script(
    LAYOUT_LINE,
    NODE,
    _CELL,
    r"""
if dropped then return {stands and 1 or 0, '0', '', at, within, '0', false, {}} end
local reply = {}
if ARGV[1] == 'all' then
  reply = call('HGETALL', entries)
else
  for i = 2, #ARGV - 2 do
    local content = call('HGET', entries, ARGV[i])
    if content then
      reply[#reply + 1] = ARGV[i]
      reply[#reply + 1] = content
    end
  end
end
return {stands and 1 or 0, token or '0', claim or '', at, within, version, value, reply}
""",
)

# It leaves a stamp for a day, so that a node which missed it does not bring the content back.
DROP = _script(r"""
if not found[5] and not token then return 0 end
call('DEL', meta, entries)
call('HSET', meta, 'dropped', 1, 'at', at, 'in', within, 'version', string.format('%.0f', tonumber(version) + 1))
call('PEXPIRE', meta, 86400000)
return dropped and 0 or 1
""")

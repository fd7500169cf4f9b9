"""The Lua scripts that keep messages and read them again (https://redis.io/docs/latest/develop/programmability/eval-intro/).

A channel with a history has two keys:

- its place, a string: epoch 8 | offset 8 | check 4 of the newest message | time 10. It lives longer than the messages.
- its log, a list, oldest first: check 4 of the message before it | time 10 | payload. The newest element has the offset
  of the place, the one before it the offset less one, and so on: the list is counted from its end. So a log that was
  trimmed, evicted, deleted or has expired is only shorter, and never wrong. A log without a place is deleted.

The time is the server's, so that one clock decides how old a message is. It is in seconds since 1970, in ten digits, as
a script gets it: to convert it would cost more than the bytes. The time to live of a log is set by the first message of
a second alone, so it is a second longer than the age. Numbers are big-endian.

A script is not rolled back where a command in it fails. So the first command that writes is the one that can be refused
(out of memory, a replica), and a refused PUBLISH is undone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1
from typing import Final

__all__ = ["GRANTS", "PERMITTED", "SCRIPTS", "SHARD_SCRIPTS", "Script", "Scripts"]

_ONCE_MILLISECONDS: Final = 300_000

GRANTS: Final = "+evalsha +script|load +get +set +del +rpush +rpop +ltrim +lrange +lindex +pexpire +time"
"""What an ACL must grant, beside PUBLISH and the keys."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script, which a server knows by the SHA-1 of its text.

    Attributes:
        text: What SCRIPT LOAD gets.
        digest: What EVALSHA gets.
    """

    text: bytes
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", sha1(self.text, usedforsecurity=False).hexdigest().encode())


@dataclass(frozen=True, slots=True)
class Scripts:
    """What a server must know while a link is used.

    Attributes:
        keep: Publishes and stores one message.
        keep_once: The same with a third key, that of the idempotency key. Returns epoch 8 | offset 8 | check 4 of the
            first message where this one is a repetition: the lengths differ.
        recall: Reads from the log, and makes the epoch of a channel that was never used.
    """

    keep: Script
    keep_once: Script
    recall: Script

    @property
    def all(self) -> tuple[Script, ...]:
        """All three."""
        return self.keep, self.keep_once, self.recall


# KEYS: place, log. ARGV: channel, most elements, milliseconds that the log lives, and the place, then for this message:
# epoch of a new history, check, payload. Returns epoch 8 | offset 8.
_KEEP: Final = rb"""
local place = redis.call('GET', KEYS[1])
local epoch, offset, before
if place and #place >= 20 then
  epoch = string.sub(place, 1, 8)
  offset = struct.pack('>I8', struct.unpack('>I8', place, 9) + 1)
  before = string.sub(place, 17, 20)
else
  epoch, offset, before = ARGV[5], '\0\0\0\0\0\0\0\1', '\0\0\0\0'
  redis.call('DEL', KEYS[2])
end
local time = redis.call('TIME')[1]
local length = redis.call('RPUSH', KEYS[2], before .. time .. ARGV[7])
local published = redis.pcall('@PUBLISH@', ARGV[1], '\191BP\3' .. epoch .. offset .. before .. ARGV[6] .. ARGV[7])
if type(published) == 'table' then
  redis.call('RPOP', KEYS[2])
  return published
end
if length > tonumber(ARGV[2]) then redis.call('LTRIM', KEYS[2], -ARGV[2], -1) end
if length == 1 or time ~= string.sub(place, 21) then redis.call('PEXPIRE', KEYS[2], ARGV[3]) end
redis.call('SET', KEYS[1], epoch .. offset .. ARGV[6] .. time, 'PX', ARGV[4])
"""


# KEYS: place, log. ARGV: milliseconds that the log lives, and the place, epoch of a new history, limit, most bytes;
# then epoch, offset and check of a position, or nothing. A check of 2 bytes is the short form of one: `ShortCheck`.
# Returns {place, found, more, elements}, elements oldest first.
# It reads in pieces, because a script takes the memory of all that it reads, and cannot ask how large an element is.
_RECALL: Final = Script(rb"""
local log = KEYS[2]
local place = redis.call('GET', KEYS[1])
if place and #place >= 20 then
  local kept = redis.pcall('PEXPIRE', KEYS[1], ARGV[2])
  if type(kept) == 'table' and string.find(kept.err, 'READONLY') then return kept end
else
  place = ARGV[3] .. '\0\0\0\0\0\0\0\0\0\0\0\0'
  redis.call('SET', KEYS[1], place, 'PX', ARGV[2])
  redis.call('DEL', log)
end
local top = struct.unpack('>I8', place, 9)
local now = redis.call('TIME')
local oldest = now[1] + (now[2] / 1000 - ARGV[1]) / 1000
local limit, max_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local step, index = -1, -1
if ARGV[6] then
  local offset = tonumber(ARGV[7])
  local function is_its(check)
    if #ARGV[8] == 2 and check ~= '\0\0\0\0' then
      check = struct.pack('>I2', struct.unpack('>I4', check) % 65535 + 1)
    end
    return check == ARGV[8]
  end
  if ARGV[6] ~= string.sub(place, 1, 8) or offset > top then return {place, 0, 0, {}} end
  if offset == top then return {place, is_its(string.sub(place, 17, 20)) and 1 or 0, 0, {}} end
  step, index = 1, offset - top
  local successor = redis.call('LINDEX', log, index)
  if not successor or not is_its(string.sub(successor, 1, 4)) or tonumber(string.sub(successor, 5, 14)) < oldest then
    return {place, 0, 0, {}}
  end
end
local elements, count, bytes, largest, ahead, more = {}, 0, 0, 1, 1, 0
while more == 0 and index < 0 do
  local piece
  if step > 0 then
    piece = redis.call('LRANGE', log, index, math.min(index + ahead - 1, -1))
  else
    piece = redis.call('LRANGE', log, index - ahead + 1, index)
  end
  if #piece == 0 then break end
  local is_fresh = step > 0 or tonumber(string.sub(piece[1], 5, 14)) >= oldest
  for number = 1, #piece do
    local element = piece[step > 0 and number or #piece + 1 - number]
    if not is_fresh and tonumber(string.sub(element, 5, 14)) < oldest then index = 0 break end
    if count == limit or bytes > max_bytes then more = 1 break end
    count = count + 1
    elements[count] = element
    bytes = bytes + #element - 14
    if #element > largest then largest = #element end
  end
  if index == 0 or #piece < ahead and step < 0 then break end
  index = index + step * #piece
  ahead = math.max(1, math.min(16, limit - count + 1, math.ceil((max_bytes - bytes) / largest) + 1))
end
if step < 0 then
  for number = 1, math.floor(count / 2) do
    elements[number], elements[count + 1 - number] = elements[count + 1 - number], elements[number]
  end
end
return {place, 1, more, elements}
""")

# KEYS: place and log of a name that no channel has.
PERMITTED: Final = Script(rb"""
redis.call('RPUSH', KEYS[2], '1', '2', '3', '4')
redis.call('LTRIM', KEYS[2], 1, -1)
redis.call('RPOP', KEYS[2])
redis.call('LRANGE', KEYS[2], 0, -1)
redis.call('LINDEX', KEYS[2], 0)
redis.call('PEXPIRE', KEYS[2], 1000)
redis.call('SET', KEYS[1], '', 'PX', 1000)
redis.call('GET', KEYS[1])
redis.call('TIME')
redis.call('DEL', KEYS[2])
redis.call('DEL', KEYS[1])
return struct.pack('>I8', 1)
""")
"""Runs every command of the others, so that a missing permission is found before there is a message."""


def _publishing_by(command: bytes) -> Scripts:
    keep = _KEEP.replace(b"@PUBLISH@", command)
    first = b"local first = redis.call('GET', KEYS[3])\nif first then return first end"
    once = b"redis.call('SET', KEYS[3], epoch .. offset .. ARGV[6], 'PX', %d)\n" % _ONCE_MILLISECONDS
    done = b"return epoch .. offset\n"
    return Scripts(Script(keep + done), Script(first + keep + once + done), _RECALL)


SCRIPTS: Final = _publishing_by(b"PUBLISH")
"""Those of a single server."""

SHARD_SCRIPTS: Final = _publishing_by(b"SPUBLISH")
"""Those of a node of a cluster. Keys and channel must be in one slot."""

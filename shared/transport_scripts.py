"""The transport's scripts: what must happen to a message at once, or not at all.

A message is in its queue, or recorded as unacknowledged: its text in one hash, and since when it is held in one sorted set, the index. A full
server refuses a script that begins with what may take memory, and lets one go on that has written before: each frees first, and so
works there too.
"""

from __future__ import annotations

# The server's clock, in seconds.
_NOW = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
"""
_SETTLE = """
for i = {first}, #ARGV do
  redis.call('ZREM', KEYS[1], ARGV[i])
  redis.call('HDEL', KEYS[2], ARGV[i])
end
"""

# KEYS: unacked index, unacked, queues. ARGV: the largest message, how many to take, the queues' names, then the tags of what was acknowledged.
# The tag of what is taken was given by the publisher. The recorded value is kombu's own format, [message, exchange, routing key], which its
# stock transport reads as well. What is no message at all is dropped here: recorded, it would stop whoever restores it. Messages come from the
# first queue that has any: one, or a quarter of it at most, so that of a short queue other workers have their share.
TAKE = (
    _NOW
    + _SETTLE.format(first="#KEYS + 1")
    + """
local function take(queue, message)
  if #message > tonumber(ARGV[1]) then
    return {queue, '', '', #message .. ' bytes are more than ' .. ARGV[1]}
  end
  local known, parsed = pcall(cjson.decode, message)
  local properties = known and type(parsed) == 'table' and type(parsed['headers']) == 'table' and parsed['properties']
  local info = type(properties) == 'table' and type(properties['delivery_tag']) == 'string' and properties['delivery_info']
  if type(info) ~= 'table' or type(info['exchange']) ~= 'string' or type(info['routing_key']) ~= 'string' then
    return {queue, '', '', 'it is not JSON of the form that Celery writes'}
  end
  local record = '[' .. message .. ',' .. cjson.encode(info['exchange']) .. ',' .. cjson.encode(info['routing_key']) .. ']'
  redis.call('ZADD', KEYS[1], now, properties['delivery_tag'])
  redis.call('HSET', KEYS[2], properties['delivery_tag'], record)
  return {queue, message, properties['delivery_tag']}
end

local taken = {}
for i = 3, #KEYS do
  local waiting = redis.call('LLEN', KEYS[i])
  if waiting > 0 then
    for _ = 1, math.min(tonumber(ARGV[2]), math.max(1, math.floor(waiting / 4))) do
      taken[#taken + 1] = take(ARGV[i], redis.call('RPOP', KEYS[i]))
    end
    return taken
  end
end
return taken
"""
)

# KEYS: unacked index, unacked. ARGV: the tags.
FORGET = _SETTLE.format(first="1")

# KEYS: unacked index. ARGV: the tags. XX: a message acknowledged meanwhile must not come back into the index. No tag is empty.
RENEW = (
    _NOW
    + """
redis.call('ZREM', KEYS[1], '')
for _, tag in ipairs(ARGV) do redis.call('ZADD', KEYS[1], 'XX', now, tag) end
"""
)

# KEYS: unacked index, unacked. ARGV: the visibility timeout. What is in the index alone has been settled.
EXPIRED = (
    _NOW
    + """
local expired = {}
for _, tag in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now - ARGV[1], 'BYSCORE')) do
  if redis.call('HEXISTS', KEYS[2], tag) == 1 then
    expired[#expired + 1] = tag
  else
    redis.call('ZREM', KEYS[1], tag)
  end
end
return expired
"""
)

# KEYS: unacked index, unacked, queues. ARGV: tag, message, LPUSH or RPUSH, and for how long its lease must not have been renewed, or nothing.
RESTORE = (
    _NOW
    + """
local since = redis.call('ZSCORE', KEYS[1], ARGV[1])
if since and ARGV[4] ~= '' and now - since < tonumber(ARGV[4]) then return end
if redis.call('HDEL', KEYS[2], ARGV[1]) == 1 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  for i = 3, #KEYS do redis.call(ARGV[3], KEYS[i], ARGV[2]) end
end
"""
)

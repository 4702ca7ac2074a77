"""What changes a job's progress in more than one place at once: Lua scripts that Redis runs in one step."""

from __future__ import annotations

_FORGET_FAILURE = """
local function forget_failure(failed, failures, reasons, index)
  local old = redis.call('HGET', failures, index)
  if old then
    redis.call('HINCRBY', reasons, cjson.decode(old)['reason'], -1)
    redis.call('HDEL', failures, index)
    redis.call('SETBIT', failed, index, 0)
  end
end
"""
# A message may outlive its job, which was dropped meanwhile: what it writes must not stay for ever. `keep` is in seconds.
_KEEP_NO_ORPHANS = """
local function keep_no_orphans(info, keep)
  if redis.call('HEXISTS', info, 'destination') == 0 then
    for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, keep) end
  end
end
"""
# KEYS: attempts, info. ARGV: index, seconds to keep.
ATTEMPT = (
    _KEEP_NO_ORPHANS
    + """
local starts = redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
keep_no_orphans(KEYS[2], ARGV[2])
return {starts, redis.call('HGET', KEYS[2], 'state')}
"""
)
# Why an item failed may have been moved to the storage. It stands, then, until the item is run again.
_STANDS = """
local function stands(failed, failures, index)
  return redis.call('GETBIT', failed, index) == 1 and redis.call('HEXISTS', failures, index) == 0
end
"""
# A failure never overwrites a finished item: a message delivered twice may fail the second time. KEYS: failed, failures, done, info, reasons.
# ARGV: index, failure, its reason, seconds to keep.
FAIL = (
    _FORGET_FAILURE
    + _STANDS
    + _KEEP_NO_ORPHANS
    + """
if redis.call('GETBIT', KEYS[3], ARGV[1]) == 1 or stands(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
forget_failure(KEYS[1], KEYS[2], KEYS[5], ARGV[1])
redis.call('SETBIT', KEYS[1], ARGV[1], 1)
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('HINCRBY', KEYS[5], ARGV[3], 1)
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('EXPIRE', KEYS[5], ARGV[4])
redis.call('HSET', KEYS[4], 'changed', redis.call('TIME')[1])
keep_no_orphans(KEYS[4], ARGV[4])
return 1
"""
)
# In one step, so that no count ever sees an item both done and failed. KEYS: done, attempts, ran in an earlier stage, ran, review,
# failed, failures, info, reasons. ARGV: index, whether this stage ran, whether to review, whether it is the last stage, seconds to keep.
FINISH = (
    _FORGET_FAILURE
    + _STANDS
    + _KEEP_NO_ORPHANS
    + """
redis.call('HDEL', KEYS[2], ARGV[1], ARGV[1] .. ':alone')
if ARGV[4] == '1' and stands(KEYS[6], KEYS[7], ARGV[1]) then return end
if ARGV[4] == '0' then
  if ARGV[2] == '1' then redis.call('SETBIT', KEYS[3], ARGV[1], 1) end
else
  if ARGV[2] == '1' or redis.call('GETBIT', KEYS[3], ARGV[1]) == 1 then redis.call('SETBIT', KEYS[4], ARGV[1], 1) end
  if ARGV[3] == '1' then redis.call('SETBIT', KEYS[5], ARGV[1], 1) end
  forget_failure(KEYS[6], KEYS[7], KEYS[9], ARGV[1])
  redis.call('HSET', KEYS[8], 'changed', redis.call('TIME')[1])
end
redis.call('SETBIT', KEYS[1], ARGV[1], 1)
keep_no_orphans(KEYS[8], ARGV[5])
"""
)
# Items are to be run again from some stage on. KEYS: failed, failures, reasons, ran in an earlier stage, ran, review, then of each such stage
# done and attempts. ARGV: the indices, each with the reason for which it failed: of a failure that is kept in the storage nothing else tells it.
FORGET = (
    _FORGET_FAILURE
    + _STANDS
    + """
for n = 1, #ARGV, 2 do
  local index, reason = ARGV[n], ARGV[n + 1]
  if stands(KEYS[1], KEYS[2], index) then
    redis.call('HINCRBY', KEYS[3], reason, -1)
    redis.call('SETBIT', KEYS[1], index, 0)
  end
  forget_failure(KEYS[1], KEYS[2], KEYS[3], index)
  for i = 4, 6 do redis.call('SETBIT', KEYS[i], index, 0) end
  for i = 7, #KEYS, 2 do
    redis.call('SETBIT', KEYS[i], index, 0)
    redis.call('HDEL', KEYS[i + 1], index, index .. ':alone')
  end
end
"""
)
# Failures that are kept in the storage now. KEYS: failures. ARGV: each index with its failure. One that failed anew meanwhile stays.
RELEASE = """
for n = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[n]) == ARGV[n + 1] then redis.call('HDEL', KEYS[1], ARGV[n]) end
end
"""

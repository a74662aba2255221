-- Where a shard stands.  KEYS: epoch, stream, due.  ARGV: group.
-- Answers {open epoch, last seq appended or -1, entries, pending, scheduled}.
local open = tonumber(redis.call('GET', KEYS[1]) or '0')
if redis.call('EXISTS', KEYS[2]) == 0 then return {open, -1, 0, 0, 0} end
local info = redis.call('XINFO', 'STREAM', KEYS[2])
local last, length = -1, 0
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then last = tonumber(string.match(info[i + 1], '^%d+')) end
  if info[i] == 'length' then length = info[i + 1] end
end
return {open, last, length, redis.call('XPENDING', KEYS[2], ARGV[1])[1], redis.call('ZCARD', KEYS[3])}

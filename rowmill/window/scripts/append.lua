-- Append a block of rows to one shard, or nothing at all.
-- KEYS: epoch, stream.  ARGV: epoch, seq of the last row that must be there, then seq and payload of each row.
-- Answers {1, length}, or {0, last seq found} when the stream does not end where the engine left it
-- (wiped, rolled back, another engine), or {-1, open epoch} when this epoch is not the open one.
local open = redis.call('GET', KEYS[1])
if open ~= ARGV[1] then return {-1, tonumber(open or '0')} end
if redis.call('EXISTS', KEYS[2]) == 0 then return {0, -1} end
local info = redis.call('XINFO', 'STREAM', KEYS[2])
local last = nil
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then last = string.match(info[i + 1], '^%d+') end
end
if last ~= ARGV[2] then return {0, tonumber(last)} end
for i = 3, #ARGV, 2 do
  redis.call('XADD', KEYS[2], ARGV[i] .. '-0', 'r', ARGV[i + 1])
end
return {1, redis.call('XLEN', KEYS[2])}

-- Rows whose outcome is in the ledger leave the window.
-- KEYS: epoch, stream, due, tries, deaths, started.  ARGV: epoch, group, ids (a line each).
-- Answers how many entries were deleted, or -1 when this epoch is not the open one.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local ids, text, n, at = {}, ARGV[3], 0, 1
while at <= #text do
  local stop = string.find(text, '\n', at, true)
  n = n + 1
  ids[n] = string.sub(text, at, stop - 1)
  at = stop + 1
end
redis.call('XACK', KEYS[2], ARGV[2], unpack(ids))
local deleted = redis.call('XDEL', KEYS[2], unpack(ids))
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('ZREM', KEYS[3], unpack(ids)) end
for i = 4, 6 do
  if redis.call('EXISTS', KEYS[i]) == 1 then redis.call('HDEL', KEYS[i], unpack(ids)) end
end
return deleted

-- Put rows back for later: a retry, a hand-back, a row that is locked elsewhere.
-- KEYS: epoch, stream, due, tries, started.  ARGV: epoch, group, consumer, then id, delay in ms, attempts spent of each;
-- -1 attempts: a lost delivery, to be scheduled only where nobody has done so meanwhile.
-- Only rows that are still pending with this consumer are scheduled: a late call revives nothing.
-- Answers how many were scheduled, or -1 when this epoch is not the open one.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local n = 0
for i = 4, #ARGV, 3 do
  local id = ARGV[i]
  local pending = redis.call('XPENDING', KEYS[2], ARGV[2], id, id, 1)
  if pending[1] and pending[1][2] == ARGV[3] then
    local attempts, added = tonumber(ARGV[i + 2]), 1
    if attempts < 0 then
      added = redis.call('ZADD', KEYS[3], 'NX', now, id)
    else
      redis.call('ZADD', KEYS[3], now + tonumber(ARGV[i + 1]), id)
    end
    if attempts > 0 then redis.call('HSET', KEYS[4], id, ARGV[i + 2]) end
    if added == 1 then redis.call('HDEL', KEYS[5], id) end
    n = n + added
  end
end
return n

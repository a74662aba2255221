-- Schedule, for everyone and at once, the rows that a dead consumer left behind.
-- KEYS: epoch, stream, due, deaths, started.  ARGV: epoch, group, dead consumer, id to start after, count.
-- A row that had started there counts one death and waits the longer the more it has, so that a node whose workers die
-- for another reason meets other rows next. From the second on it runs alone (the worker sees to that); one that died alone
-- twice is convicted: it stays pending, unscheduled, until its outcome is recorded. A row of which no start was noted
-- becomes a suspect: its next starts are noted.
-- Answers {id to go on after or '', rows scheduled, convicted ids}, or {'', -1, {}} when this epoch is not the open one.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'', -1, {}} end
local pending = redis.call('XPENDING', KEYS[2], ARGV[2], '(' .. ARGV[4], '+', ARGV[5], ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ALONE_FROM = 2
local DELAYS = {1000, 4000, 8000}
local scheduled, convicted = 0, {}
for _, p in ipairs(pending) do
  local id = p[1]
  if not redis.call('ZSCORE', KEYS[3], id) then
    local mark = redis.call('HGET', KEYS[5], id)
    local deaths = 0
    if mark == ARGV[3] or mark == ARGV[3] .. '!' then
      deaths = redis.call('HINCRBY', KEYS[4], id, 1)
    else
      redis.call('HSETNX', KEYS[4], id, 0)
    end
    if mark == ARGV[3] .. '!' and deaths >= ALONE_FROM + 2 then
      convicted[#convicted + 1] = id
    else
      redis.call('HDEL', KEYS[5], id)
      redis.call('ZADD', KEYS[3], now + (DELAYS[deaths] or 0), id)
      scheduled = scheduled + 1
    end
  end
end
local next_id = ''
if #pending == tonumber(ARGV[5]) then next_id = pending[#pending][1] end
return {next_id, scheduled, convicted}

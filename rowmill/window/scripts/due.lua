-- Hand rows whose time has come to a consumer: popped, claimed and unscheduled in one step.
-- KEYS: epoch, stream, due, tries, deaths.  ARGV: epoch, group, consumer, count.
-- Answers a list of {id, payload, attempts spent, deaths or -1}.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {} end
if redis.call('EXISTS', KEYS[3]) == 0 then return {} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local out = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, ARGV[4])) do
  redis.call('ZREM', KEYS[3], id)
  local got = redis.call('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, id)
  if got[1] and got[1][2] then
    out[#out + 1] = {id, got[1][2][2], tonumber(redis.call('HGET', KEYS[4], id) or '0'),
                     tonumber(redis.call('HGET', KEYS[5], id) or '-1')}
  else
    redis.call('XACK', KEYS[2], ARGV[2], id)
  end
end
return out

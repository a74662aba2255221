-- Rows pending with a consumer that nobody has scheduled: it must be running them, or they are lost replies.
-- KEYS: epoch, stream, due.  ARGV: epoch, group, consumer, id to start after, count.
-- Answers {id to go on after or '', ids}.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'', {}} end
local pending = redis.call('XPENDING', KEYS[2], ARGV[2], '(' .. ARGV[4], '+', ARGV[5], ARGV[3])
local out = {}
for _, p in ipairs(pending) do
  if not redis.call('ZSCORE', KEYS[3], p[1]) then out[#out + 1] = p[1] end
end
local next_id = ''
if #pending == tonumber(ARGV[5]) then next_id = pending[#pending][1] end
return {next_id, out}

-- Begin a feed epoch on one shard: an empty stream, its group at 0, and nothing of older epochs.
-- KEYS: epoch, stream, then every key of older epochs.  ARGV: epoch, group.
-- Answers 1, or 0 when a newer epoch is open (another engine went on without us). May be repeated.
local open = tonumber(redis.call('GET', KEYS[1]) or '0')
local wanted = tonumber(ARGV[1])
if open > wanted then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
for i = 3, #KEYS do redis.call('UNLINK', KEYS[i]) end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[2], '0', 'MKSTREAM')
end
return 1

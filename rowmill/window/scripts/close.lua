-- Remove everything of a shard, unless a newer epoch is open.  KEYS: epoch, then every key.  ARGV: epoch.
local open = tonumber(redis.call('GET', KEYS[1]) or '0')
if open > tonumber(ARGV[1]) then return 0 end
for i = 1, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1

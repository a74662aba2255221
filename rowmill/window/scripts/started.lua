-- Note that suspect rows are about to start in a consumer, so that its death can be counted against them.
-- KEYS: epoch, started.  ARGV: epoch, mark (consumer, or consumer and '!' for a row that runs alone), ids.
-- Answers 1, or 0 when this epoch is not the open one.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 3, #ARGV do redis.call('HSET', KEYS[2], ARGV[i], ARGV[2]) end
return 1

-- Forget a dead consumer, but only with nothing pending: XGROUP DELCONSUMER drops pending rows without a trace.
-- KEYS: epoch, stream.  ARGV: epoch, group, consumer.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if #redis.call('XPENDING', KEYS[2], ARGV[2], '-', '+', 1, ARGV[3]) > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[2], ARGV[3])
return 1

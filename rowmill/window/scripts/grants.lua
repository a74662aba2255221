-- Hands out what a group of jobs may send: how many calls, when, and how many of them at once.
-- KEYS: the group.  ARGV: what one worker says, packed; the server's clock in seconds, or '' to ask it.
-- Answers, packed: {now, {{time, tokens}, ...}, seconds until asking again is worth it, {limits that hold}, {other jobs}};
-- or nil for an ask that comes late, after a younger one of the same worker.
--
-- The state is one packed table, so that it is there as a whole or not at all:
--   next, next_tokens  the earliest time of the next call, by requests and by tokens
--   used               tokens by the second in which they were granted, over the last window
--   free               times that were given and not used
--   jobs               job -> {p priority, v virtual time, seen, r, t, f: its limits, 0 for none}
--   pods               worker -> {j job, v virtual time, seen, n number of its last ask, wants {tokens, ...} by its rows,
--                      given {{time, tokens}, ...} not fetched yet, holds calls, until when they may be in flight, w timeout}
local WINDOW, AHEAD, SILENT, GATHER, STALE = 62, 0.5, 3, 3.5, 0.75
local BURST = 10 -- seconds of tokens that may be reserved at once: they are reserved at their upper bound
local MOST, FORGET = 500, 3600000

local ask, now = cmsgpack.unpack(ARGV[1]), tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end
local text = redis.call('GET', KEYS[1])
local s = text and cmsgpack.unpack(text)
local fresh = not s
if fresh then s = {born = now, next = 0, next_tokens = 0, used = {}, jobs = {}, pods = {}, v = 0, paused = 0} end
if now < s.born then s.born, s.next, s.next_tokens = now, math.min(s.next, now + WINDOW), now end

-- What the worker says of itself.
local pod = s.pods[ask.pod]
if pod and pod.n >= ask.n then return nil end
if not pod then pod = {v = 0, given = {}, wants = {}, ['until'] = 0} end
local job = s.jobs[ask.job] or {v = s.v}
job.p, job.r, job.t, job.f, job.seen = ask.p, ask.r, ask.t, ask.f, now
s.jobs[ask.job] = job
pod.n, pod.j, pod.holds, pod.wants, pod.seen, pod.w = ask.n, ask.job, ask.holds, ask.wants, now, ask.w
s.pods[ask.pod] = pod
s.paused = math.max(s.paused, math.min(now + ask.pause, now + 30))
if ask.leaves then
  s.pods[ask.pod] = nil
  pod.wants, pod.given = {}, {}
end

-- Who is there. A silent worker fetches nothing any more; what it sent may be in flight until its timeout is over.
local count, alive = 0, {}
for name, one in pairs(s.pods) do
  if now - one.seen > SILENT then
    one.wants, one.given = {}, {}
    if one.holds == 0 or now > one['until'] then s.pods[name] = nil end
  end
  if s.pods[name] then
    alive[one.j] = true
    count = count + 1
  end
end
local rate, tokens, most = 0, 0, 0
local function lowest(a, b) if a == 0 or (b > 0 and b < a) then return b end return a end
local others = {}
for name, one in pairs(s.jobs) do
  if not alive[name] and now - one.seen > SILENT then
    s.jobs[name] = nil
  else
    rate, tokens, most = lowest(rate, one.r), lowest(tokens, one.t), lowest(most, one.f)
    if name ~= ask.job and (one.r ~= ask.r or one.t ~= ask.t or one.f ~= ask.f) then others[#others + 1] = name end
  end
end
local gap = rate > 0 and WINDOW / rate * 1.000001 or 0
local a_token = tokens > 0 and WINDOW / tokens or 0

-- A limiter that knows nothing may have been wiped: all that could be granted a moment ago is taken for granted.
if fresh then
  s.next = now + AHEAD + gap
  if tokens > 0 then
    for second = math.floor(now) - WINDOW + 1, math.floor(now) do s.used[tostring(second)] = tokens / WINDOW end
  end
end
s.next = math.max(s.next, ask.latest + gap)
if s.next > now + AHEAD + gap then s.next = now + AHEAD + gap end
s.next_tokens = math.min(s.next_tokens, now + 2 * WINDOW)

-- Tokens that were reserved and not used.
for _, refund in ipairs(ask.refunds) do
  local second = tostring(math.floor(refund[1]))
  if s.used[second] then
    s.used[second] = math.max(0, s.used[second] - refund[2])
    s.next_tokens = s.next_tokens - refund[2] * a_token
  end
end
-- Times that were given and not used, to be given again while they are good for somebody.
local free = {}
for _, times in ipairs({s.free or {}, ask.unused}) do
  for _, time in ipairs(times) do
    if gap > 0 and time > now - STALE / 2 and #free < 100 then free[#free + 1] = time end
  end
end
table.sort(free)
s.free = free
local used = 0
for second, spent in pairs(s.used) do
  if tonumber(second) < now - WINDOW - 1 then s.used[second] = nil else used = used + spent end
end

-- Who wants something. Shares are counted from when a job, or a worker, begins to want.
local flows, held, of_job = {}, 0, {}
for name, one in pairs(s.pods) do
  held = held + one.holds + #one.given
  if #one.wants > #one.given then
    flows[#flows + 1] = one
    if not one.wanted then
      one.v = math.max(one.v, s.jobs[one.j].pv or 0)
      if not s.jobs[one.j].wanted then s.jobs[one.j].v = math.max(s.jobs[one.j].v, s.v) end
    end
  end
  one.wanted = #one.wants > #one.given
  if one.wanted then of_job[one.j] = true end
end
for name, one in pairs(s.jobs) do one.wanted = of_job[name] or false end

local again = 1
local left = MOST
while left > 0 and #flows > 0 do
  left = left - 1
  if most > 0 and held >= most then again = 0.05 break end
  if most > 0 and now < s.born + GATHER then again = s.born + GATHER - now break end
  local best, at
  for i = 1, #flows do
    local one = flows[i]
    local its = s.jobs[one.j]
    local than = best and s.jobs[best.j]
    if not best or its.p > than.p or (its.p == than.p and (its.v < than.v or (its.v == than.v and
        (one.j < best.j or (one.j == best.j and one.v < best.v))))) then
      best, at = one, i
    end
  end
  local cost = tokens > 0 and math.min(best.wants[#best.given + 1], tokens) or 0
  local time = math.max(now, s.paused)
  local again_given = gap > 0 and free[1] and time <= free[1] + STALE / 2
  if again_given then time = free[1] elseif gap > 0 then time = math.max(time, s.next) end
  if tokens > 0 then
    if s.next_tokens > now + BURST then again = 0.1 break end
    if used + cost > tokens then again = math.min(1, math.max(0.1, cost * a_token / 4)) break end
  end
  if time > now + AHEAD then again = time - now - AHEAD / 2 break end
  best.given[#best.given + 1] = {time, cost}
  best['until'] = math.max(best['until'], time + best.w + 3)
  held = held + 1
  if again_given then table.remove(free, 1) else s.next = time + gap end
  if tokens > 0 then
    s.next_tokens = math.max(s.next_tokens, time) + cost * a_token
    local second = tostring(math.floor(time))
    s.used[second] = (s.used[second] or 0) + cost
    used = used + cost
  end
  local its = s.jobs[best.j]
  s.v = its.v
  its.v = its.v + 1
  its.pv = best.v
  best.v = best.v + 1
  if #best.given >= #best.wants then
    best.wanted = false
    table.remove(flows, at)
  end
end

-- What is given to the asker goes with the answer; what lay here too long is too late to be sent.
local grants = {}
for _, one in ipairs(pod.given) do
  if not (gap > 0 or tokens > 0) or one[1] > now - STALE then grants[#grants + 1] = one end
end
pod.given = {}
pod.holds = pod.holds + #grants
if #grants < #pod.wants then
  again = math.max(0.01, math.min(again, most > 0 and #flows > 0 and 0.1 or 0.4))
end
for i = 1, #grants do table.remove(pod.wants, 1) end
redis.call('SET', KEYS[1], cmsgpack.pack(s), 'PX', FORGET)
return cmsgpack.pack({now, grants, math.max(again, count * 0.001), {rate, tokens, most}, others})

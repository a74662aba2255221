-- Which limits hold in a group, and which of its jobs set them. Changes nothing.
-- KEYS: the group.  ARGV: the asking job; its own limits: requests, tokens, in flight, 0 for none; how many jobs to name
-- at most; the server's clock in seconds, or '' to ask it.
-- Answers, packed: {{limits that hold}, {jobs that set lower ones than the asker}, {jobs for which the asker's hold}}.
-- The state is that of grants.lua, and so is the judgement of who is there.
local SILENT = 3

local own = {tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])}
local named, now = tonumber(ARGV[5]), tonumber(ARGV[6])
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end
local text = redis.call('GET', KEYS[1])
local s = text and cmsgpack.unpack(text) or {jobs = {}, pods = {}}

local alive = {}
for _, pod in pairs(s.pods) do
  if now - pod.seen <= SILENT or (pod.holds > 0 and now <= pod['until']) then alive[pod.j] = true end
end
local held, others = {own[1], own[2], own[3]}, {}
for name, job in pairs(s.jobs) do
  if name ~= ARGV[1] and (alive[name] or now - job.seen <= SILENT) then
    local its = {job.r, job.t, job.f}
    others[name] = its
    for i = 1, 3 do
      if its[i] > 0 and (held[i] == 0 or its[i] < held[i]) then held[i] = its[i] end
    end
  end
end

local lowered_by, lowers = {}, {}
for name, its in pairs(others) do
  local above, below = false, false
  for i = 1, 3 do
    if held[i] > 0 and own[i] ~= held[i] and its[i] == held[i] then above = true end
    if held[i] > 0 and own[i] == held[i] and its[i] ~= held[i] then below = true end
  end
  if above then lowered_by[#lowered_by + 1] = name end
  if below then lowers[#lowers + 1] = name end
end
local function first(names)
  table.sort(names)
  while #names > named do table.remove(names) end
  return names
end
return cmsgpack.pack({held, first(lowered_by), first(lowers)})

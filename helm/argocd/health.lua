-- Argo CD: the health of rowmill.dev/BatchJob, from its conditions.
-- Install it as resource.customizations.health.rowmill.dev_BatchJob in the ConfigMap argocd-cm; see docs/gitops.md.
local health = { status = "Progressing", message = "waiting for the operator to see the job" }

if obj.metadata ~= nil and obj.metadata.deletionTimestamp ~= nil then
  health.message = "being deleted"
  return health
end

local status = obj.status
if status == nil or status.conditions == nil then
  return health
end

-- What follows an edit is not known before the operator has seen it.
if obj.metadata ~= nil and obj.metadata.generation ~= nil and status.observedGeneration ~= obj.metadata.generation then
  health.message = "waiting for the operator to see the last edit"
  return health
end

local found = {}
for _, condition in ipairs(status.conditions) do
  found[condition.type] = condition
end

local function is(name)
  return found[name] ~= nil and found[name].status == "True"
end

local function say(name)
  local condition = found[name]
  local text = condition.reason or name
  if condition.message ~= nil and condition.message ~= "" then
    text = text .. ": " .. condition.message
  end
  return text
end

if is("Stalled") then
  health.status = "Degraded"
  health.message = say("Stalled")
elseif is("Reconciling") then
  health.status = "Progressing"
  health.message = say("Reconciling")
  -- How far it is, where nothing is in the way.
  if found["Reconciling"].reason == "Running" and status.done ~= nil then
    health.message = "Running: " .. status.done .. " rows"
    if status.progress ~= nil then
      health.message = health.message .. " (" .. status.progress .. ")"
    end
  end
elseif is("Suspended") then
  health.status = "Suspended"
  health.message = say("Suspended")
elseif is("Complete") then
  health.status = "Healthy"
  health.message = say("Complete")
end

return health

-- HAProxy's side of the check: what a request says of itself, and what its caller is told.

local tollkeeper = require "tollkeeper"

-- HAProxy's sockets live as long as the request that opened them, so each check has a connection of its own.
local client = tollkeeper.new {
  host = "127.0.0.1", port = 7440, timeout = 1000, seconds = true,
  socket = function() return core.tcp() end,
}

-- Each thread learns the handle's rule before the daemon may be gone.
core.register_task(function()
  while not client:warm("media") do core.msleep(1000) end
end)

core.register_action("toll_check", { "http-req" }, function(txn, api)
  local answer = client:check(api, {
    method = txn.f:method(),
    path = txn.f:pathq(),
    -- Whoever knows the caller says who it is: here a header that your authentication sets.
    team = txn:get_var("txn.team"),
    ip = txn.f:src(),
  })
  if answer.failed then core.Alert("tollkeeper: " .. answer.failed) end
  if answer.allowed then
    txn:set_priv(answer.headers)
    return
  end
  local reply = txn:reply { status = answer.status, body = answer.body or "" }
  for _, header in ipairs(answer.headers) do reply:add_header(header[1], header[2]) end
  if answer.content_type then reply:add_header("Content-Type", answer.content_type) end
  txn:done(reply)
end, 1)

core.register_action("toll_headers", { "http-res" }, function(txn)
  for _, header in ipairs(txn:get_priv() or {}) do
    txn.http:res_set_header(header[1], header[2])
  end
end)

-- A client for the Tollkeeper protocol, version 1 (protocol/SPEC.md), for nginx's cosockets and HAProxy's core.tcp.
--
--   local tollkeeper = require "tollkeeper"
--   local client = tollkeeper.new { host = "127.0.0.1", port = 7440, socket = ngx.socket.tcp }
--   local answer = client:check("media", { method = "POST", path = "/v1/images", team = "t1" })
--   -- answer.allowed, answer.status, answer.headers { {name, value}, ... }, answer.body, answer.content_type
--
-- `check` always answers. When the daemon cannot be asked, the answer is the handle's own rule (`when_unavailable`), with
-- `answer.failed` saying why; before a handle was ever prepared it is `fail_open`, true unless told otherwise. So call
-- `client:warm(api)` when a worker or thread starts: it prepares the handle, and returns whether it could.
--
-- Options: host, port, socket (a function that makes a socket), timeout in ms (50), idle in ms that a connection is kept
-- (60000), connections kept (64), seconds (true where the socket's timeouts are in seconds, as HAProxy's are), fail_open.
-- Numbers of 64 bits that are only handed back (layout, call id) stay strings, so Lua 5.1 suffices.

local tollkeeper = {}
local Client = {}
Client.__index = Client

local byte, char, floor = string.byte, string.char, math.floor

local HELLO, PREPARE, CHECK, ERROR = 0x0001, 0x0004, 0x0010, 0xFFFF
local ANSWER, RENDERED = 0x8000, 0x0002
local UNKNOWN_HANDLE, STALE_HANDLE, BAD_ATTRIBUTE, TABLE_FULL = 0x010A, 0x010B, 0x010C, 0x0203
local UNMATCHED, FAILED_OPEN, PERMIT = 0x0100, 0x0200, 0x0800
local ANSWER_BYTES_MAX = 262144
local VALUE_BYTES_MAX = 1024

-- Little-endian numbers.

local function u8(n) return char(n) end
local function u16(n) return char(n % 256, floor(n / 256) % 256) end
local function u32(n) return u16(n % 65536) .. u16(floor(n / 65536)) end
local function u64(n) return u32(n % 4294967296) .. u32(floor(n / 4294967296)) end
local function name(text) return u8(#text) .. text end
local function counted(text) return u16(#text) .. text end

-- Reads fields one after the other; an answer that ends within a field is an error.
local Reader = {}
Reader.__index = Reader

local function reader(data) return setmetatable({ data = data, at = 1 }, Reader) end

function Reader:raw(count)
  local from = self.at
  if from + count - 1 > #self.data then error("an answer ends within a field", 0) end
  self.at = from + count
  return self.data:sub(from, from + count - 1)
end

function Reader:number(bytes)
  local data, number = self:raw(bytes), 0
  for place = bytes, 1, -1 do number = number * 256 + byte(data, place) end
  return number
end

function Reader:name() return self:raw(self:number(1)) end
function Reader:counted() return self:raw(self:number(2)) end

-- Whether bit `n` of a number in little-endian bytes is set.
local function bit_of(bytes, n)
  local of = byte(bytes, floor(n / 8) + 1) or 0
  return floor(of / 2 ^ (n % 8)) % 2 == 1
end

local function has(flags, flag) return floor(flags / flag) % 2 == 1 end

local function read_handle(r)
  local handle = { number = r:number(4), denies = r:number(1) == 2 }
  r:raw(1)
  handle.denied_status = r:number(2)
  handle.layout = r:raw(8)
  r:raw(8)
  handle.api = r:name()
  r:name()
  handle.slots, handle.headers, handle.static = {}, {}, {}
  for slot = 1, r:number(1) do
    r:raw(2)
    handle.slots[slot] = r:name()
  end
  handle.meters = {}
  for meter = 1, r:number(1) do handle.meters[meter] = r:name() end
  for _ = 1, r:number(2) do
    r:raw(10)
    r:name()
    r:name()
  end
  for header = 1, r:number(1) do handle.headers[header] = r:name() end
  for header = 1, r:number(1) do handle.static[header] = { r:name(), r:counted() } end
  return handle
end

local function read_answer(handle, flags, r)
  local answer = { allowed = r:number(1) == 1, headers = {} }
  r:raw(39)
  answer.unmatched, answer.failed_open = has(flags, UNMATCHED), has(flags, FAILED_OPEN)
  if has(flags, RENDERED) then
    answer.status = r:number(2)
    local present = r:raw(8)
    for index, header in ipairs(handle.headers) do
      if bit_of(present, index - 1) then
        answer.headers[#answer.headers + 1] = { header, r:counted() }
      end
    end
    answer.content_type = r:counted()
    local length = r:number(4)
    if length ~= 4294967295 then answer.body = r:raw(length) end
  end
  if has(flags, PERMIT) then answer.permit = r:raw(16) end
  return answer
end

function tollkeeper.new(options)
  return setmetatable({
    host = options.host or "127.0.0.1",
    port = options.port or 7440,
    socket = options.socket,
    timeout = options.timeout or 50,
    idle = options.idle or 60000,
    connections = options.connections or 64,
    seconds = options.seconds,
    fail_open = options.fail_open ~= false,
    handles = {},
    calls = 0,
  }, Client)
end

-- The answer when no decision can be had.
function Client:unavailable(api, why)
  local handle = self.handles[api]
  local denies = not self.fail_open
  if handle then denies = handle.denies end
  local answer = { allowed = not denies, headers = {}, failed = why }
  answer.status = denies and (handle and handle.denied_status or 503) or 200
  if denies and handle then answer.headers = handle.static end
  return answer
end

function Client:connect()
  local socket = self.socket()
  socket:settimeout(self.seconds and self.timeout / 1000 or self.timeout)
  local connected, why = socket:connect(self.host, self.port)
  if not connected then return nil, why or "cannot connect" end
  if not socket.getreusedtimes or socket:getreusedtimes() == 0 then
    local hello = "TOLL" .. u16(1) .. u16(1) .. name("tollkeeper-lua/1") .. u8(0) .. u16(0)
    local op, body = self:call(socket, HELLO, 0, hello)
    if op ~= HELLO + ANSWER then
      socket:close()
      return nil, body or "the server refused HELLO"
    end
  end
  return socket
end

-- Sends a frame and reads the answer to it. Returns op, body, flags; or nil and why.
function Client:call(socket, op, flags, body)
  self.calls = self.calls + 1
  local id = u64(self.calls)
  local sent, why = socket:send(u32(16 + #body) .. u16(op) .. u16(flags) .. id .. body)
  if not sent then return nil, why or "cannot send" end
  while true do
    local head, why = socket:receive(16)
    if not head or #head < 16 then return nil, why or "the server closed" end
    local r = reader(head)
    local length, op, flags, answers = r:number(4), r:number(2), r:number(2), r:raw(8)
    if length < 16 or length > ANSWER_BYTES_MAX then return nil, "a frame of a wrong length" end
    local body = ""
    if length > 16 then
      body, why = socket:receive(length - 16)
      if not body or #body < length - 16 then return nil, why or "the server closed" end
    end
    -- Others are for nobody: GOAWAY, or an answer that came too late for its caller.
    if answers == id then return op, body, flags end
    if op == ERROR then return nil, "the server closes: " .. body:sub(17, 272) end
  end
end

function Client:prepare(socket, api)
  local op, body = self:call(socket, PREPARE, 0, name(api) .. name(""))
  if op ~= PREPARE + ANSWER then return nil, op and body:sub(19) or body end
  local handle = read_handle(reader(body))
  self.handles[api] = handle
  return handle
end

local function check_body(handle, values, cost)
  local presence, given = 0, {}
  for index, slot in ipairs(handle.slots) do
    local value = values[slot]
    if value ~= nil then
      presence = presence + 2 ^ (index - 1)
      given[#given + 1] = counted(tostring(value):sub(1, VALUE_BYTES_MAX + 1))
    end
  end
  local costs = cost and u8(1) .. u64(cost) or u8(0)
  return u32(handle.number) .. u32(presence) .. handle.layout .. costs .. table.concat(given)
end

-- Asks on a connection. Returns the answer, or nil and why; and whether the connection is still good.
function Client:ask(socket, api, values, cost)
  for _ = 1, 2 do
    local handle, why = self.handles[api]
    if not handle then
      handle, why = self:prepare(socket, api)
      if not handle then return nil, why, false end
    end
    local op, body, flags = self:call(socket, CHECK, RENDERED, check_body(handle, values, cost))
    if not op then return nil, body, false end
    if op == CHECK + ANSWER then return read_answer(handle, flags, reader(body)), nil, true end
    local r = reader(body)
    local code, closes = r:number(2), r:number(1) % 2 == 1
    r:raw(13)
    local message = r:counted()
    if code == UNKNOWN_HANDLE or code == STALE_HANDLE then
      -- The policy changed: nothing was charged.
      self.handles[api] = nil
    else
      return nil, message, not closes
    end
    if closes then return nil, message, false end
  end
  return nil, "the policy changes too often", true
end

function Client:warm(api)
  local socket, why = self:connect()
  if not socket then return false, why end
  local fine, handle, why = pcall(self.prepare, self, socket, api)
  socket:close()
  return fine and handle ~= nil, why or handle
end

function Client:check(api, values, cost)
  local socket, why = self:connect()
  if not socket then return self:unavailable(api, why) end
  local fine, answer, why, good = pcall(self.ask, self, socket, api, values, cost)
  if fine and good and socket.setkeepalive then
    socket:setkeepalive(self.idle, self.connections)
  else
    socket:close()
  end
  if not fine then return self:unavailable(api, answer) end
  return answer or self:unavailable(api, why)
end

return tollkeeper

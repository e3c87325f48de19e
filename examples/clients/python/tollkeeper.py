"""A client for the Tollkeeper protocol, version 1. Needs Python 3.8 and nothing else.

    with Client("127.0.0.1", 7440) as client:
        api = client.prepare("media")
        answer = client.check(api, {"method": "POST", "path": "/v1/images", "team": "t1"})
        if not answer.allowed:
            print("wait", answer.retry_ns, "ns")

Every call raises `Refused` when the server answers ERROR, and `ConnectionError` when the connection is gone.
To pipeline, call `send_...` for each request, then `wait(call_id)` for each answer, in any order.
One `Client` is for one thread.
"""

import select
import socket
import struct
from dataclasses import dataclass, field
from typing import Dict, List, Optional

HELLO, PING, GOAWAY, PREPARE = 0x0001, 0x0002, 0x0003, 0x0004
CHECK, CHECK_INLINE, PEEK, PEEK_INLINE = 0x0010, 0x0011, 0x0012, 0x0013
SET, SET_INLINE, BATCH = 0x0014, 0x0015, 0x0018
ANSWER, ERROR = 0x8000, 0xFFFF

NUMBERS, RENDERED, DEADLINE = 0x0001, 0x0002, 0x0004
UNMATCHED, FAILED_OPEN, BODY_OMITTED = 0x0100, 0x0200, 0x0400

BUCKET, FIXED = 1, 3
ALL_LIMITS = 0xFFFF
UNLIMITED = NO_SUCH_TIME = 2**64 - 1
SECOND = 1_000_000_000

RETRY_KINDS = {0: "none", 1: "after", 2: "never", 3: "on others"}
MAX_IN_FLIGHT = 5  # codes of maxima that this client uses
CODES = {
    0x0101: "BAD_FRAME", 0x0102: "UNSUPPORTED_VERSION", 0x0103: "UNSUPPORTED_OP", 0x0104: "UNSUPPORTED_FLAG",
    0x0105: "TOO_LARGE", 0x0106: "TOO_MANY_ITEMS", 0x0107: "TIMED_OUT", 0x0108: "UNKNOWN_API",
    0x0109: "UNKNOWN_CLASS", 0x010A: "UNKNOWN_HANDLE", 0x010B: "STALE_HANDLE", 0x010C: "BAD_ATTRIBUTE",
    0x010D: "BAD_LIMIT", 0x010E: "BAD_COST", 0x010F: "DEADLINE_EXCEEDED", 0x0110: "UNKNOWN_OUTCOME",
    0x0201: "UNAUTHENTICATED", 0x0202: "FORBIDDEN", 0x0203: "TABLE_FULL", 0x0204: "OVERLOADED",
    0x0205: "SHUTTING_DOWN", 0x0206: "NO_QUORUM", 0x0207: "NOT_LEADER", 0x0208: "DISK_FULL",
    0x0301: "INTERNAL",
}


class Refused(Exception):
    """The server answered ERROR. `name` is the code's name, `detail` a dictionary (a `Handle` for STALE_HANDLE)."""

    def __init__(self, body):
        r = Reader(body)
        self.code, closes, kind, offset, self.retry_ns = r.take("<HBBIQ")
        self.name = CODES.get(self.code, "INTERNAL")
        self.closes = bool(closes & 1)
        self.offset = None if offset == 0xFFFFFFFF else offset
        self.message = r.text()
        self.detail = self._detail(kind, r.raw(r.take("<I")[0]))
        super().__init__(f"{self.name}: {self.message}")

    @staticmethod
    def _detail(kind, data):
        r = Reader(data)
        if not data:
            return None
        if kind == 1:
            return dict(zip(("lowest", "highest"), r.take("<HH")))
        if kind == 2:
            return {**dict(zip(("found", "lowest", "highest"), r.take("<QQQ"))), "field": r.name()}
        if kind == 3:
            return {"limit": r.name(), "attribute": r.name(), "was_sent": bool(r.take("<B")[0]), "value": r.bytes()}
        if kind == 4:
            return Handle.read(r)
        if kind == 5:
            return {"capabilities": r.take("<I")[0]}
        return None


class Reader:
    """Reads fields one after the other. Bytes after the last field that is read are ignored, as answers may grow."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def raw(self, count):
        if self.at + count > len(self.data):
            raise ConnectionError("an answer ends within a field")
        self.at += count
        return self.data[self.at - count : self.at]

    def name(self):
        return self.raw(self.take("<B")[0]).decode()

    def text(self):
        return self.bytes().decode()

    def bytes(self):
        return self.raw(self.take("<H")[0])


def name(value):
    data = value.encode()
    return struct.pack("<B", len(data)) + data


def counted(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<H", len(data)) + data


@dataclass
class Hello:
    version: int
    capabilities: int
    features: int
    instance: bytes
    principal: str
    server: str
    maxima: Dict[int, int]

    @classmethod
    def read(cls, r):
        version, _, capabilities, features = r.take("<HHIQ")
        instance, principal, server = r.raw(16), r.name(), r.name()
        maxima = dict(r.take("<HQ") for _ in range(r.take("<H")[0]))
        return cls(version, capabilities, features, instance, principal, server, maxima)


@dataclass
class Slot:
    use: int
    required: bool
    attribute: str


@dataclass
class Limit:
    kind: int
    mode: int
    limit: int
    name: str
    window: str


@dataclass
class Handle:
    number: int
    allow_when_unavailable: bool
    denied_status: int
    layout: int
    policy_version: int
    api: str
    class_name: str
    slots: List[Slot]
    meters: List[str]
    limits: List[Limit]
    headers: List[str]
    static_headers: Dict[str, bytes]

    @classmethod
    def read(cls, r):
        number, unavailable, _, status, layout, version = r.take("<IBBHQQ")
        api, class_name = r.name(), r.name()
        slots = []
        for _ in range(r.take("<B")[0]):
            use, bits = r.take("<BB")
            slots.append(Slot(use, bool(bits & 1), r.name()))
        meters = [r.name() for _ in range(r.take("<B")[0])]
        limits = [Limit(*r.take("<BBQ"), r.name(), r.name()) for _ in range(r.take("<H")[0])]
        headers = [r.name() for _ in range(r.take("<B")[0])]
        static = [(r.name(), r.bytes()) for _ in range(r.take("<B")[0])]
        return cls(number, unavailable == 1, status, layout, version, api, class_name, slots, meters, limits, headers,
                   dict(static))

    def values(self, attributes):
        """Presence bits and values in the order of the slots. Attributes without a slot are left out."""
        presence, body = 0, b""
        for index, slot in enumerate(self.slots):
            if slot.attribute in attributes:
                presence |= 1 << index
                body += counted(attributes[slot.attribute])
        return presence, body


@dataclass
class LimitNumbers:
    index: int
    allowed: bool
    retry_kind: str
    shadow: bool
    limit: int
    remaining: int
    retry_ns: int
    next_unit_ns: int
    full_or_end_ns: int

    @classmethod
    def read(cls, r):
        index, verdict, retry_kind, bits, *times = r.take("<HBBIQQQQQ")
        return cls(index, verdict == 1, RETRY_KINDS.get(retry_kind, "none"), bool(bits & 1), *times)


@dataclass
class Rendered:
    status: int
    headers: Dict[str, bytes]
    content_type: str
    body: Optional[bytes]

    @classmethod
    def read(cls, r, handle):
        status, presence = r.take("<HQ")
        headers = {}
        for bit in range(64):
            if presence >> bit & 1:
                headers[handle.headers[bit]] = r.bytes()
        content_type, length = r.text(), r.take("<I")[0]
        return cls(status, headers, content_type, None if length == 0xFFFFFFFF else r.raw(length))


@dataclass
class Answer:
    allowed: bool
    retry_kind: str
    binding_limit: Optional[int]
    policy_version: int
    cluster_time_ns: int
    retry_ns: int
    unmatched: bool
    failed_open: bool
    body_omitted: bool
    wall_time_ns: Optional[int] = None
    numbers: List[LimitNumbers] = field(default_factory=list)
    rendered: Optional[Rendered] = None

    @classmethod
    def read(cls, r, flags, handle):
        decision, retry_kind, binding, _, policy, _, cluster, retry = r.take("<BBHIQQQQ")
        answer = cls(decision == 1, RETRY_KINDS.get(retry_kind, "none"), None if binding == 0xFFFF else binding, policy,
                     cluster, retry, bool(flags & UNMATCHED), bool(flags & FAILED_OPEN), bool(flags & BODY_OMITTED))
        if flags & NUMBERS:
            answer.wall_time_ns, count = r.take("<QH")
            answer.numbers = [LimitNumbers.read(r) for _ in range(count)]
        if flags & RENDERED:
            answer.rendered = Rendered.read(r, handle)
        return answer


@dataclass
class SetAnswer:
    counters: int
    policy_version: int
    cluster_time_ns: int

    @classmethod
    def read(cls, r):
        counters, _, policy, _, cluster = r.take("<IIQQQ")
        return cls(counters, policy, cluster)


@dataclass
class Pong:
    cluster_time_ns: int
    wall_time_ns: int
    payload: bytes

    @classmethod
    def read(cls, r):
        return cls(*r.take("<QQ"), r.bytes())


@dataclass
class Inline:
    """A limit that the request itself carries."""

    key: bytes
    units: int
    window_ns: int
    burst: int = 0
    kind: int = BUCKET
    from_first_charge: bool = False
    cost: int = 1

    def pack(self):
        burst = (self.burst or self.units) if self.kind == BUCKET else 0
        return struct.pack("<QQQQBB", self.cost, self.units, self.window_ns, burst, self.kind,
                           int(self.from_first_charge)) + counted(self.key)


@dataclass
class Request:
    """What goes out, and the handle that its answer is read with."""

    op: int
    flags: int
    body: bytes
    handle: Optional[Handle] = None


def check(handle, attributes, costs=(), numbers=False, rendered=False, deadline_ns=None, peek=False):
    presence, values = handle.values(attributes)
    flags, deadline = _options(numbers, rendered, deadline_ns)
    body = struct.pack("<IIQB", handle.number, presence, handle.layout, len(costs)) + deadline
    body += struct.pack(f"<{len(costs)}Q", *costs) + values
    return Request(PEEK if peek else CHECK, flags, body, handle)


def check_inline(limits, numbers=False, deadline_ns=None, peek=False):
    flags, deadline = _options(numbers, False, deadline_ns)
    body = struct.pack("<B", len(limits)) + deadline + b"".join(limit.pack() for limit in limits)
    return Request(PEEK_INLINE if peek else CHECK_INLINE, flags, body)


def _options(numbers, rendered, deadline_ns):
    flags = NUMBERS * numbers | RENDERED * rendered | DEADLINE * (deadline_ns is not None)
    return flags, b"" if deadline_ns is None else struct.pack("<Q", deadline_ns)


class Client:
    def __init__(self, host, port, client="python-example/1", timeout=10.0):
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.timeout = timeout
        self.received = bytearray()
        self.next_call_id = 1
        self.in_flight = {}  # call id -> Request
        self.answers = {}  # call id -> (op, flags, body)
        self.going_away = None  # the message of a GOAWAY
        self.closed_by = None  # an ERROR about the connection itself
        self.window = 1  # until HELLO is answered
        try:
            hello = struct.pack("<4sHH", b"TOLL", 1, 1) + name(client) + struct.pack("<B", 0) + counted(b"")
            self.hello = self.wait(self.send(Request(HELLO, 0, hello)))
            self.window = self.hello.maxima.get(MAX_IN_FLIGHT, 256)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    # One blocking request each.

    def ping(self, payload=b""):
        return self.wait(self.send(Request(PING, 0, counted(payload))))

    def prepare(self, api, class_name=""):
        return self.wait(self.send(Request(PREPARE, 0, name(api) + name(class_name))))

    def check(self, handle, attributes, **options):
        """Checks, once more when the policy's layout has changed. `handle` is then brought up to date in place."""
        try:
            return self.wait(self.send(check(handle, attributes, **options)))
        except Refused as refused:
            if refused.name not in ("STALE_HANDLE", "UNKNOWN_HANDLE"):
                raise
            fresh = refused.detail if isinstance(refused.detail, Handle) else self.prepare(handle.api, handle.class_name)
            handle.__dict__.update(fresh.__dict__)
            return self.wait(self.send(check(handle, attributes, **options)))

    def peek(self, handle, attributes, **options):
        return self.check(handle, attributes, peek=True, **options)

    def check_inline(self, limits, **options):
        return self.wait(self.send(check_inline(limits, **options)))

    def peek_inline(self, limits, **options):
        return self.check_inline(limits, peek=True, **options)

    def set(self, handle, attributes, used, limit=ALL_LIMITS):
        presence, values = handle.values(attributes)
        body = struct.pack("<IIQQH", handle.number, presence, handle.layout, used, limit) + values
        return self.wait(self.send(Request(SET, 0, body)))

    def set_inline(self, limit):
        """The limit's `cost` is the units used from now on."""
        return self.wait(self.send(Request(SET_INLINE, 0, limit.pack())))

    def batch(self, requests):
        """Answers in the order of the requests: an `Answer` each, or a `Refused` (returned, not raised)."""
        body = struct.pack("<I", len(requests))
        for request in requests:
            body += struct.pack("<IHH", 8 + len(request.body), request.op, request.flags) + request.body
        r = Reader(self.wait(self.send(Request(BATCH, 0, body))))
        answers = []
        for index in range(r.take("<I")[0]):
            length, op, flags = r.take("<IHH")
            item = r.raw(length - 8)
            answers.append(Refused(item) if op == ERROR else self._read(requests[index], op, flags, item))
        return answers

    # Pipelining: send as many as you like, then wait for each.

    def send(self, request):
        """Sends, reading whatever answers come meanwhile, and gives the call id to wait for."""
        while len(self.in_flight) - len(self.answers) >= self.window:
            self._receive()
        call_id, self.next_call_id = self.next_call_id, self.next_call_id + 1
        self.in_flight[call_id] = request
        frame = struct.pack("<IHHQ", 16 + len(request.body), request.op, request.flags, call_id) + request.body
        while frame:
            readable, writable, _ = select.select([self.socket], [self.socket], [], self.timeout)
            if not readable and not writable:
                raise TimeoutError("the server takes nothing")
            if readable:
                self._receive()
            if writable:
                frame = frame[self.socket.send(frame) :]
        return call_id

    def wait(self, call_id):
        while call_id not in self.answers:
            self._receive()
        op, flags, body = self.answers.pop(call_id)
        request = self.in_flight.pop(call_id)
        if op == ERROR:
            raise Refused(body)
        return self._read(request, op, flags, body)

    def _receive(self):
        if self.closed_by:
            raise self.closed_by
        if not select.select([self.socket], [], [], self.timeout)[0]:
            raise TimeoutError("no answer in time")
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.received += data
        while len(self.received) >= 16:
            length, op, flags, call_id = struct.unpack_from("<IHHQ", self.received)
            if not 16 <= length <= 262_144:
                raise ConnectionError(f"an answer of {length} bytes")
            if len(self.received) < length:
                break
            body = bytes(self.received[16:length])
            del self.received[:length]
            if call_id in self.in_flight:
                self.answers[call_id] = (op, flags, body)
            elif op == ERROR:
                self.closed_by = Refused(body)
            elif op == GOAWAY | ANSWER:
                r = Reader(body)
                r.take("<HHI")
                self.going_away = r.text()

    @staticmethod
    def _read(request, op, flags, body):
        if op != request.op | ANSWER:
            raise ConnectionError(f"an answer with op {op:#06x} to {request.op:#06x}")
        r = Reader(body)
        if op & ~ANSWER in (CHECK, PEEK, CHECK_INLINE, PEEK_INLINE):
            return Answer.read(r, flags, request.handle)
        if op & ~ANSWER == BATCH:
            return body
        return {HELLO: Hello, PING: Pong, PREPARE: Handle, SET: SetAnswer, SET_INLINE: SetAnswer}[op & ~ANSWER].read(r)


def _refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Refused as refused:
        return refused
    raise AssertionError("the server should have refused")


def exercise_inline(client, run):
    bucket = Inline(b"bucket:" + run, units=10, window_ns=10 * SECOND, burst=3)
    answer = client.check_inline([bucket], numbers=True)
    assert answer.allowed and answer.retry_kind == "none" and answer.retry_ns == 0
    assert [(n.index, n.limit, n.remaining) for n in answer.numbers] == [(0, 3, 2)]
    assert 0 < answer.numbers[0].next_unit_ns <= SECOND
    assert 0 < answer.numbers[0].full_or_end_ns <= SECOND
    assert client.peek_inline([bucket], numbers=True).numbers[0].remaining == 2  # a peek takes nothing
    assert client.check_inline([bucket]).allowed and client.check_inline([bucket]).allowed
    denied = client.check_inline([bucket], numbers=True, deadline_ns=5 * SECOND)
    assert not denied.allowed and denied.retry_kind == "after" and 0 < denied.retry_ns <= SECOND
    assert denied.binding_limit == 0 and denied.numbers[0].remaining == 0
    assert client.set_inline(Inline(bucket.key, 10, 10 * SECOND, 3, cost=0)).counters == 1
    assert client.check_inline([bucket]).allowed
    huge = Inline(b"huge:" + run, units=10, window_ns=SECOND, burst=10, cost=11)
    never = client.check_inline([huge])
    assert not never.allowed and never.retry_kind == "never" and never.retry_ns == 0

    fixed = Inline(b"fixed:" + run, units=2, window_ns=3600 * SECOND, kind=FIXED, from_first_charge=True)
    assert client.check_inline([fixed]).allowed
    both = client.check_inline([fixed, bucket], numbers=True)
    assert both.allowed and [n.index for n in both.numbers] == [0, 1]
    denied = client.check_inline([bucket, fixed], numbers=True)
    assert not denied.allowed and denied.binding_limit == 1 and 0 < denied.retry_ns <= 3600 * SECOND
    assert denied.numbers[0].allowed and not denied.numbers[1].allowed
    refused = _refused(client.check_inline, [Inline(b"k", units=0, window_ns=SECOND, burst=1)])
    assert refused.name == "BAD_LIMIT" and refused.detail["field"] == "units", refused.detail


def exercise_pipelining(client, run):
    limit = Inline(b"pipeline:" + run, units=1000, window_ns=3600 * SECOND, kind=FIXED, from_first_charge=True)
    calls = [client.send(check_inline([limit], numbers=True)) for _ in range(1500)]
    answers = [client.wait(call) for call in reversed(calls)]
    answers.reverse()
    # Decided in the order in which they were sent.
    assert [a.allowed for a in answers] == [True] * 1000 + [False] * 500
    assert [a.numbers[0].remaining for a in answers[:1000]] == list(range(999, -1, -1))


def exercise_batch(client, run):
    bucket = Inline(b"batch:" + run, units=1, window_ns=3600 * SECOND, burst=2)
    wrong = Inline(b"batch:" + run, units=1, window_ns=1, burst=2)
    first, bad, second, third, peek = client.batch(
        [
            check_inline([bucket], numbers=True),
            check_inline([wrong]),
            check_inline([bucket]),
            check_inline([bucket]),
            check_inline([bucket], peek=True),
        ]
    )
    assert first.allowed and first.numbers[0].remaining == 1
    assert isinstance(bad, Refused) and bad.name == "BAD_LIMIT", bad
    assert second.allowed and not third.allowed and not peek.allowed


def exercise_api(client, api, class_name, attributes):
    assert _refused(client.prepare, "no-such-api").name == "UNKNOWN_API"
    assert _refused(client.prepare, api, "no-such-class").name == "UNKNOWN_CLASS"
    handle = client.prepare(api, class_name)
    assert handle.api == api and handle.class_name == class_name and handle.limits
    print("slots:", [slot.attribute for slot in handle.slots], "limits:", [limit.name for limit in handle.limits])
    client.set(handle, attributes, 0)
    peek = client.peek(handle, attributes, numbers=True)
    answer = client.check(handle, attributes, numbers=True, rendered=True, deadline_ns=5 * SECOND)
    assert answer.allowed and answer.rendered.status == 200 and answer.numbers
    assert peek.allowed and [n.index for n in peek.numbers] == [n.index for n in answer.numbers]
    print("allowed:", answer.rendered, answer.numbers)
    reset = client.set(handle, attributes, 2**53)
    assert reset.counters == len(answer.numbers), (reset, answer)
    denied = client.check(handle, attributes, numbers=True, rendered=True)
    assert not denied.allowed and denied.retry_kind == "after" and denied.retry_ns > 0
    assert denied.rendered.status == handle.denied_status
    assert set(denied.rendered.headers) <= set(handle.headers)
    print("denied:", denied.rendered)
    client.set(handle, attributes, 0)
    assert client.check(handle, attributes).allowed
    first, second = client.batch([check(handle, attributes, peek=True), check(handle, attributes, rendered=True)])
    assert first.allowed and second.allowed and second.rendered.status == 200
    stale = client.prepare(api, class_name)
    stale.layout ^= 1
    assert client.check(stale, attributes).allowed and stale.layout == handle.layout
    stale.number = 0xFFFFFFFF
    assert client.check(stale, attributes).allowed and stale.number == handle.number
    too_many = (1,) * (len(handle.meters) + 1)
    assert _refused(client.check, handle, attributes, costs=too_many).name == "BAD_COST"
    assert client.check(handle, attributes, costs=(0,) * len(handle.meters)).allowed


def main():
    import argparse
    import os

    parser = argparse.ArgumentParser(description="Exercises a Tollkeeper server and asserts its answers.")
    parser.add_argument("address", help="host:port of the server")
    parser.add_argument("--api", help="an API of the server's policy to check against as well")
    parser.add_argument("--class", dest="class_name", default="", help="a class of that API")
    parser.add_argument("attributes", nargs="*", help="name=value: the attributes to check with")
    options = parser.parse_intermixed_args()
    host, _, port = options.address.rpartition(":")
    run = os.urandom(4).hex().encode()

    with Client(host.strip("[]"), int(port)) as client:
        print("connected to", client.hello.server, "as", client.hello.principal)
        pong = client.ping(b"hello")
        assert pong.payload == b"hello" and client.ping().cluster_time_ns >= pong.cluster_time_ns
        assert _refused(client.ping, b"x" * 65).name == "TOO_LARGE"
        op = _refused(lambda: client.wait(client.send(Request(0x7000, 0, b""))))
        assert op.name == "UNSUPPORTED_OP" and not op.closes
        flag = _refused(lambda: client.wait(client.send(Request(PING, NUMBERS, counted(b"")))))
        assert flag.name == "UNSUPPORTED_FLAG" and not flag.closes
        exercise_inline(client, run)
        exercise_pipelining(client, run)
        exercise_batch(client, run)
        if options.api:
            exercise_api(client, options.api, options.class_name, dict(a.split("=", 1) for a in options.attributes))
    print("all answers are as they should be")


if __name__ == "__main__":
    main()

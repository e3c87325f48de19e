//! The binary door over real sockets, with clients that are broken, slow or ill-willed: each gets a
//! clear error or a closed connection, the daemon's memory stays bounded, and a good client is
//! served meanwhile.
//!
//! `TOLLKEEPER_HOSTILE=full` gives the full dose: 10,000 silent connections and 1,000 that never
//! read (`ulimit -n 20000`). Ignored tests wait for deadlines of ten seconds.

// The figures are what these tests are for.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const HELLO: u16 = 0x0001;
const PING: u16 = 0x0002;
const PREPARE: u16 = 0x0004;
const CHECK: u16 = 0x0010;
const CHECK_INLINE: u16 = 0x0011;
const PEEK_INLINE: u16 = 0x0013;
const SET: u16 = 0x0014;
const BATCH: u16 = 0x0018;
const ERROR: u16 = 0xFFFF;

const NUMBERS: u16 = 1;
const RENDERED: u16 = 2;

const BAD_FRAME: u16 = 0x0101;
const UNSUPPORTED_VERSION: u16 = 0x0102;
const UNSUPPORTED_OP: u16 = 0x0103;
const UNSUPPORTED_FLAG: u16 = 0x0104;
const TOO_LARGE: u16 = 0x0105;
const TOO_MANY_ITEMS: u16 = 0x0106;
const TIMED_OUT: u16 = 0x0107;
const UNKNOWN_HANDLE: u16 = 0x010A;
const STALE_HANDLE: u16 = 0x010B;
const BAD_LIMIT: u16 = 0x010D;
const BAD_COST: u16 = 0x010E;
const UNAUTHENTICATED: u16 = 0x0201;
const OVERLOADED: u16 = 0x0204;

const CONNECTIONS: &str = "tollkeeper_connections{protocol=\"binary\"}";

/// Frames answered, as the metrics page has them.
const FRAMES: &str = "tollkeeper_decision_duration_seconds_count{protocol=\"binary\"}";

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What one answer of the good client may take at the 99th percentile. Other tests run on the same
/// processors, and the daemon is not optimised.
const PROMPT: Duration = Duration::from_millis(500);

fn full_dose() -> bool {
    std::env::var("TOLLKEEPER_HOSTILE").is_ok_and(|dose| dose == "full")
}

/// A daemon of its own for one test, on ports that the system chose.
struct Daemon {
    child: Child,
    binary: SocketAddr,
    admin: SocketAddr,
}

impl Daemon {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tollkeeper"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let after = |word: &str| {
            let (_, rest) = ready.split_once(word).unwrap_or_else(|| panic!("{ready:?}"));
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self { binary: after("binary "), admin: after("admin http://"), child }
    }

    fn connect(&self) -> Peer {
        Peer::connect(self.binary)
    }

    /// A connection that has its answer to HELLO.
    fn greeted(&self) -> Peer {
        let mut peer = self.connect();
        peer.send(&hello(1, 1));
        let answer = peer.receive().expect("an answer to HELLO");
        assert_eq!(answer.op, HELLO | 0x8000);
        peer
    }

    /// Resident memory, in bytes.
    fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * KIB
    }

    /// A sample of the metrics page, its labels included.
    fn metric(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name}")).parse::<f64>().unwrap() as u64
    }

    /// Waits until so many connections are open.
    fn await_connections(&self, wanted: u64, within: Duration) {
        let began = Instant::now();
        loop {
            let open = self.metric(CONNECTIONS);
            if open == wanted {
                return;
            }
            assert!(began.elapsed() < within, "{open} connections are open, not {wanted}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A frame as it came.
#[derive(Debug)]
struct Frame {
    op: u16,
    flags: u16,
    call: u64,
    body: Vec<u8>,
}

impl Frame {
    /// Code of an error, and whether the server closes after it.
    fn error(&self) -> (u16, bool) {
        assert_eq!(self.op, ERROR, "{self:?}");
        error_of(&self.body)
    }

    fn allowed(&self) -> bool {
        assert_ne!(self.op, ERROR, "{self:?}");
        self.body[0] == 1
    }
}

fn error_of(body: &[u8]) -> (u16, bool) {
    (u16::from_le_bytes([body[0], body[1]]), body[2] & 1 == 1)
}

/// A raw connection.
struct Peer {
    stream: TcpStream,
}

impl Peer {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream }
    }

    /// Sends as much as the server takes: it may close at the first wrong byte.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next frame, or `None` at the end of the connection.
    fn receive(&mut self) -> Option<Frame> {
        let mut header = [0; 16];
        if let Err(error) = self.stream.read_exact(&mut header) {
            assert!(!is_late(&error), "no answer and no end: {error}");
            return None;
        }
        let length = u32::from_le_bytes(header[..4].try_into().unwrap()) as usize;
        assert!((16..=262_144).contains(&length), "an answer of {length} bytes");
        let mut body = vec![0; length - 16];
        self.stream.read_exact(&mut body).expect("the rest of an answer");
        Some(Frame {
            op: u16::from_le_bytes([header[4], header[5]]),
            flags: u16::from_le_bytes([header[6], header[7]]),
            call: u64::from_le_bytes(header[8..].try_into().unwrap()),
            body,
        })
    }

    fn ask(&mut self, frame: &[u8]) -> Frame {
        self.send(frame);
        self.receive().expect("an answer")
    }

    /// Everything up to the end of the connection.
    fn receive_all(&mut self) -> Vec<Frame> {
        core::iter::from_fn(|| self.receive()).collect()
    }

    /// Says that nothing more will be sent.
    fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Asserts that the connection is alive.
    fn assert_served(&mut self) {
        assert_eq!(self.ask(&frame(PING, 0, 77, &[0, 0])).op, PING | 0x8000);
    }
}

fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn frame(op: u16, flags: u16, call: u64, body: &[u8]) -> Vec<u8> {
    let mut frame = ((16 + body.len()) as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(&op.to_le_bytes());
    frame.extend_from_slice(&flags.to_le_bytes());
    frame.extend_from_slice(&call.to_le_bytes());
    frame.extend_from_slice(body);
    frame
}

fn hello(lowest: u16, highest: u16) -> Vec<u8> {
    let mut body = b"TOLL".to_vec();
    body.extend_from_slice(&lowest.to_le_bytes());
    body.extend_from_slice(&highest.to_le_bytes());
    body.extend_from_slice(b"\x07hostile\x00\x00\x00");
    frame(HELLO, 0, 1, &body)
}

/// A bucket of 1,000,000 a second.
fn inline_limit(cost: u64, units: u64, key: &[u8]) -> Vec<u8> {
    let mut limit = Vec::new();
    for number in [cost, units, 1_000_000_000, units] {
        limit.extend_from_slice(&number.to_le_bytes());
    }
    limit.extend_from_slice(&[1, 0]);
    limit.extend_from_slice(&(key.len() as u16).to_le_bytes());
    limit.extend_from_slice(key);
    limit
}

fn inline(cost: u64, units: u64) -> Vec<u8> {
    [vec![1], inline_limit(cost, units, b"k")].concat()
}

fn item(op: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut item = ((8 + body.len()) as u32).to_le_bytes().to_vec();
    item.extend_from_slice(&op.to_le_bytes());
    item.extend_from_slice(&flags.to_le_bytes());
    item.extend_from_slice(body);
    item
}

fn batch(items: &[Vec<u8>]) -> Vec<u8> {
    [(items.len() as u32).to_le_bytes().to_vec(), items.concat()].concat()
}

/// The items of an answer to BATCH: op and body each.
fn items(body: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let (mut rest, mut items) = (&body[4..], Vec::new());
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        items.push((u16::from_le_bytes([rest[4], rest[5]]), rest[8..length].to_vec()));
        rest = &rest[length..];
    }
    assert_eq!(items.len(), u32::from_le_bytes(body[..4].try_into().unwrap()) as usize);
    items
}

/// Handle and layout of the built-in API.
struct Handle {
    number: u32,
    layout: u64,
}

impl Handle {
    fn prepare(peer: &mut Peer) -> Self {
        let answer = peer.ask(&frame(PREPARE, 0, 2, b"\x05media\x00"));
        assert_eq!(answer.op, PREPARE | 0x8000);
        let number = u32::from_le_bytes(answer.body[..4].try_into().unwrap());
        let layout = u64::from_le_bytes(answer.body[8..16].try_into().unwrap());
        Self { number, layout }
    }

    fn head(&self, presence: u32) -> Vec<u8> {
        let mut body = self.number.to_le_bytes().to_vec();
        body.extend_from_slice(&presence.to_le_bytes());
        body.extend_from_slice(&self.layout.to_le_bytes());
        body
    }

    /// The body of a check.
    fn check(&self, presence: u32, costs: &[u64], values: &[&[u8]]) -> Vec<u8> {
        let mut body = self.head(presence);
        body.push(costs.len() as u8);
        costs.iter().for_each(|cost| body.extend_from_slice(&cost.to_le_bytes()));
        for value in values {
            body.extend_from_slice(&(value.len() as u16).to_le_bytes());
            body.extend_from_slice(value);
        }
        body
    }
}

const REQUEST: [&[u8]; 3] = [b"POST", b"/v1/images", b"t1"];

/// Random numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.roll() as u8).collect()
    }
}

/// A good client that checks all the time, on one connection, and notes how long each answer took.
struct GoodClient {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl GoodClient {
    fn start(daemon: &Daemon) -> Self {
        let mut peer = daemon.greeted();
        let handle = Handle::prepare(&mut peer);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut took = Vec::new();
            let check = handle.check(0b111, &[0], &[b"POST", b"/v1/images", b"good"]);
            while !stopped.load(Ordering::Relaxed) || took.len() < 20 {
                let began = Instant::now();
                let call = took.len() as u64;
                let answer = peer.ask(&frame(CHECK, NUMBERS | RENDERED, call, &check));
                took.push(began.elapsed());
                assert!(answer.allowed() && answer.call == call && answer.flags & 3 == 3);
                std::thread::sleep(Duration::from_millis(1));
            }
            took
        });
        Self { stop, thread }
    }

    /// Ends it and asserts that it was served well.
    fn assert_served(self, while_what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let mut took = self.thread.join().expect("the good client was served");
        took.sort_unstable();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        println!(
            "{while_what}: good client {} answers, p50 {:?}, p99 {:?}, max {:?}",
            took.len(),
            at(50),
            at(99),
            at(100)
        );
        assert!(at(99) < PROMPT);
    }
}

fn assert_grown_below(daemon: &Daemon, before: u64, most: u64, while_what: &str) {
    let after = daemon.resident();
    let grown = after.saturating_sub(before);
    println!(
        "{while_what}: resident {} KiB before, {} KiB after, {} KiB more; allowed {} KiB",
        before / KIB,
        after / KIB,
        grown / KIB,
        most / KIB
    );
    assert!(grown < most);
}

#[test]
fn a_stream_that_ends_within_a_frame_is_answered_up_to_there() {
    let daemon = Daemon::start(&[]);
    let good = GoodClient::start(&daemon);
    let greeting = hello(1, 1);
    let stream = [
        greeting.clone(),
        frame(PING, 0, 2, &[0, 0]),
        frame(CHECK_INLINE, NUMBERS, 3, &inline(1, 1_000_000)),
    ];
    let ends: Vec<usize> = stream
        .iter()
        .scan(0, |end, frame| {
            *end += frame.len();
            Some(*end)
        })
        .collect();
    let stream = stream.concat();
    for cut in 0..=stream.len() {
        let mut peer = daemon.connect();
        peer.send(&stream[..cut]);
        peer.finish();
        let answers = peer.receive_all();
        let whole = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(answers.len(), whole, "cut at {cut}");
        assert!(answers.iter().all(|answer| answer.op != ERROR));
        // And with no word at all, which resets the connection if answers are unread.
        let mut peer = daemon.connect();
        peer.send(&stream[..cut]);
    }
    daemon.await_connections(1, Duration::from_secs(10));
    good.assert_served("truncated streams");
}

#[test]
fn a_length_out_of_range_ends_the_connection_before_its_bytes_come() {
    let daemon = Daemon::start(&[]);
    let before = daemon.resident();
    let good = GoodClient::start(&daemon);
    let lengths = [0, 1, 4, 15, 65_537, 262_145, 1 << 24, i32::MAX as u32, u32::MAX];
    for length in lengths.into_iter().chain([4097, 65_536]) {
        let code = if length < 16 { BAD_FRAME } else { TOO_LARGE };
        // Four bytes are enough to be refused, before HELLO and after it.
        let mut peer = daemon.connect();
        peer.send(&length.to_le_bytes());
        let answers = peer.receive_all();
        assert_eq!(answers.len(), 1, "{length}");
        assert_eq!((answers[0].error(), answers[0].call), ((code, true), 0), "{length}");
        let mut peer = daemon.greeted();
        if (16..=65_536).contains(&length) {
            continue;
        }
        let mut bytes = frame(PING, 0, 2, &[0, 0]);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.resize(bytes.len() + 100_000, 0xAA);
        peer.send(&bytes);
        let answers = peer.receive_all();
        assert_eq!(answers.len(), 2, "{length}");
        assert_eq!(answers[0].op, PING | 0x8000);
        assert_eq!((answers[1].error(), answers[1].call), ((code, true), 0), "{length}");
    }
    good.assert_served("lengths out of range");
    assert_grown_below(&daemon, before, 16 * MIB, "lengths out of range");
}

#[test]
fn frames_of_exactly_the_maxima_are_taken() {
    let daemon = Daemon::start(&[]);
    let mut greeting = hello(1, 1);
    // HELLO may go on, for later versions.
    greeting.resize(4096, 0);
    greeting[..4].copy_from_slice(&4096u32.to_le_bytes());
    let mut peer = daemon.connect();
    assert_eq!(peer.ask(&greeting).op, HELLO | 0x8000);

    let limit = |key: usize| inline_limit(1, 1_000_000, &vec![b'k'; key]);
    let mut items: Vec<_> =
        (0..118).map(|_| item(CHECK_INLINE, NUMBERS, &[vec![1], limit(509)].concat())).collect();
    let rest = 65_536 - 20 - items.concat().len() - 8 - 1 - 36;
    items.push(item(CHECK_INLINE, NUMBERS, &[vec![1], limit(rest)].concat()));
    let request = frame(BATCH, 0, 2, &batch(&items));
    assert_eq!(request.len(), 65_536);
    let answer = peer.ask(&request);
    assert_eq!(answer.op, BATCH | 0x8000);
    assert!(self::items(&answer.body).iter().all(|(op, _)| *op == CHECK_INLINE | 0x8000));
}

#[test]
fn a_bad_greeting_is_told_why_and_ends() {
    let daemon = Daemon::start(&[]);
    let mut magic = hello(1, 1);
    magic[16] = b'X';
    let mut scheme = hello(1, 1);
    let at = scheme.len() - 3;
    scheme[at] = 1;
    let mut flagged = hello(1, 1);
    flagged[6] = 1;
    let mut short = hello(1, 1);
    short.truncate(24);
    short[..4].copy_from_slice(&24u32.to_le_bytes());
    for (greeting, code) in [
        (hello(2, 9), UNSUPPORTED_VERSION),
        (hello(0, 0), UNSUPPORTED_VERSION),
        (hello(0xFFFF, 0xFFFF), UNSUPPORTED_VERSION),
        (hello(2, 1), BAD_FRAME),
        (magic, BAD_FRAME),
        (short, BAD_FRAME),
        (scheme, UNAUTHENTICATED),
        (flagged, UNSUPPORTED_FLAG),
        (frame(PING, 0, 1, &[0, 0]), UNAUTHENTICATED),
        (frame(0x7777, 0, 1, &[]), UNAUTHENTICATED),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), TOO_LARGE),
    ] {
        let mut peer = daemon.connect();
        peer.send(&greeting);
        // What comes behind it is not answered.
        peer.send(&frame(PING, 0, 2, &[0, 0]));
        let answers = peer.receive_all();
        assert_eq!(answers.len(), 1, "{greeting:x?}");
        assert_eq!(answers[0].error(), (code, true), "{greeting:x?}");
        if code == UNSUPPORTED_VERSION {
            let detail = answers[0].body.len() - 4;
            assert_eq!(answers[0].body[3], 1, "detail kind");
            assert_eq!(answers[0].body[detail..], [1, 0, 1, 0]);
        }
    }
    // From 0 to 5 there is a version in common.
    assert_eq!(daemon.connect().ask(&hello(0, 5)).body[..2], [1, 0]);
    let mut peer = daemon.greeted();
    assert_eq!(peer.ask(&hello(1, 1)).error(), (BAD_FRAME, false));
    peer.assert_served();
}

#[test]
fn what_is_wrong_with_a_request_is_said_and_the_connection_goes_on() {
    let daemon = Daemon::start(&[]);
    let mut peer = daemon.greeted();
    let handle = Handle::prepare(&mut peer);
    let good = handle.check(0b111, &[], &REQUEST);
    let long = [REQUEST[0], REQUEST[1], &[b'x'; 1025]];
    let stale = Handle { layout: handle.layout ^ 1, ..handle };
    let unknown = Handle { number: 0xFFFF_FFFF, ..handle };
    let deadline = [&good[..], &[0]].concat();
    let limits = |count: usize| {
        let mut body = vec![count as u8];
        (0..count).for_each(|_| body.extend_from_slice(&inline_limit(1, 1000, b"k")));
        body
    };
    let mut sliding = inline(1, 1000);
    sliding[1 + 32] = 2;
    let set = [handle.head(0b111), (1u64 << 53 | 1).to_le_bytes().to_vec(), vec![0, 0]].concat();
    let mut wrongs = vec![
        (frame(CHECK, 0, 9, &handle.check(1 << 4, &[], &[b"x"])), BAD_FRAME),
        (frame(CHECK, 0, 9, &handle.check(1 << 31, &[], &[b"x"])), BAD_FRAME),
        (frame(CHECK, 0, 9, &handle.check(u32::MAX, &[], &[&b"x"[..]; 32])), BAD_FRAME),
        (frame(CHECK, 0, 9, &handle.check(0b1111, &[], &REQUEST)), BAD_FRAME),
        (frame(CHECK, 0, 9, &good[..good.len() - 1]), BAD_FRAME),
        (frame(CHECK, 0, 9, &deadline), BAD_FRAME),
        (frame(CHECK, 0, 9, &good[..10]), BAD_FRAME),
        (frame(CHECK, 0, 9, &handle.check(0b111, &[], &long)), TOO_LARGE),
        (frame(CHECK, 0, 9, &handle.check(0b111, &[1, 1], &REQUEST)), BAD_COST),
        (frame(CHECK, 0, 9, &handle.check(0b111, &[1; 255], &REQUEST)), BAD_COST),
        (frame(CHECK, 0, 9, &handle.check(0b111, &[u64::MAX], &REQUEST)), BAD_COST),
        (frame(CHECK, 0, 9, &handle.check(0b111, &[(1 << 53) + 1], &REQUEST)), BAD_COST),
        (frame(CHECK, 0, 9, &stale.check(0b111, &[], &REQUEST)), STALE_HANDLE),
        (frame(CHECK, 0, 9, &unknown.check(0b111, &[], &REQUEST)), UNKNOWN_HANDLE),
        (frame(CHECK_INLINE, 0, 9, &limits(0)), BAD_FRAME),
        (frame(CHECK_INLINE, 0, 9, &limits(17)), TOO_MANY_ITEMS),
        (frame(CHECK_INLINE, 0, 9, &inline(1, 0)), BAD_LIMIT),
        (frame(CHECK_INLINE, 0, 9, &inline(1, u64::MAX)), BAD_LIMIT),
        (frame(CHECK_INLINE, 0, 9, &inline(u64::MAX, 1)), BAD_COST),
        (frame(CHECK_INLINE, 0, 9, &sliding), BAD_LIMIT),
        (frame(CHECK_INLINE, 0, 9, &[vec![1], inline_limit(1, 1, &[0; 513])].concat()), TOO_LARGE),
        (frame(SET, 0, 9, &set), BAD_COST),
        (frame(PING, 0, 9, &[3, 0, 1, 2]), BAD_FRAME),
        (frame(PING, 0, 9, &[&[65, 0][..], &[0; 65]].concat()), TOO_LARGE),
        (frame(PREPARE, 0, 9, &[&[65][..], &[b'a'; 65], &[0]].concat()), TOO_LARGE),
        (frame(PREPARE, 0, 9, b"\x02\xFF\xFE\x00"), BAD_FRAME),
        (frame(BATCH, 0, 9, &batch(&[])), BAD_FRAME),
        (frame(BATCH, 0, 9, &u32::MAX.to_le_bytes()), TOO_MANY_ITEMS),
        (frame(BATCH, 0, 9, &[2, 0, 0, 0, 8, 0, 0, 0, 0x10, 0, 0, 0]), BAD_FRAME),
        (frame(BATCH, 0, 9, &[1, 0, 0, 0, 7, 0, 0, 0, 0x10, 0, 0, 0]), BAD_FRAME),
        (frame(BATCH, 0, 9, &[1, 0, 0, 0, 255, 255, 255, 255, 0x10, 0, 0, 0]), BAD_FRAME),
        (frame(BATCH, NUMBERS, 9, &batch(&[item(CHECK, 0, &good)])), UNSUPPORTED_FLAG),
    ];
    // GOAWAY, reserved, private, unassigned and answers' ops.
    for op in [0, 3, 5, 0x19, 0x22, 0x23, 0x24, 0x29, 0x7000, 0x7FFF, 0x8001, 0x8010, ERROR] {
        wrongs.push((frame(op, 0, 9, &good), UNSUPPORTED_OP));
    }
    for bit in 0..12 {
        // Numbers, rendered, a deadline, a request id, tied permits and not to be handed on are what a
        // check may ask for.
        if ![0, 1, 2, 3, 6, 7].contains(&bit) {
            wrongs.push((frame(CHECK, 1 << bit, 9, &good), UNSUPPORTED_FLAG));
        }
        wrongs.push((frame(PING, 1 << bit, 9, &[0, 0]), UNSUPPORTED_FLAG));
    }
    wrongs.push((frame(CHECK_INLINE, RENDERED, 9, &inline(1, 1000)), UNSUPPORTED_FLAG));
    for (index, (wrong, code)) in wrongs.iter().enumerate() {
        // A new connection now and then: sixteen errors end one.
        if index % 8 == 0 {
            peer = daemon.greeted();
        }
        let answer = peer.ask(wrong);
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!((answer.error(), answer.call), ((*code, false), 9), "{wrong:x?}: {text}");
        peer.assert_served();
    }
    // Bits 12 to 15 may be ignored.
    assert!(peer.ask(&frame(CHECK, 0xF000, 9, &good)).allowed());
}

#[test]
fn the_sixteenth_protocol_error_is_the_last_word() {
    let daemon = Daemon::start(&[]);
    let wrong = frame(0x7000, 0, 5, &[]);
    let mut peer = daemon.greeted();
    for _ in 0..15 {
        assert_eq!(peer.ask(&wrong).error(), (UNSUPPORTED_OP, false));
        peer.assert_served();
    }
    assert_eq!(peer.ask(&wrong).error(), (UNSUPPORTED_OP, true));
    assert!(peer.receive().is_none());

    let mut peer = daemon.greeted();
    let flood = [wrong.repeat(16), frame(PING, 0, 6, &[0, 0]).repeat(9)].concat();
    peer.send(&flood);
    let answers = peer.receive_all();
    assert_eq!(answers.len(), 16);
    assert!(answers.iter().enumerate().all(|(index, answer)| answer.error().1 == (index == 15)));

    let mut peer = daemon.greeted();
    peer.send(&frame(BATCH, 0, 5, &batch(&vec![item(PING, 0, &[0, 0]); 20])));
    let answers = peer.receive_all();
    assert_eq!(answers.len(), 2);
    assert_eq!(items(&answers[0].body).len(), 20);
    assert_eq!((answers[1].error().1, answers[1].call), (true, 0));
}

#[test]
fn a_bad_item_of_a_batch_leaves_the_others_alone() {
    let daemon = Daemon::start(&[]);
    let mut peer = daemon.greeted();
    let handle = Handle::prepare(&mut peer);
    let good = item(CHECK, NUMBERS, &handle.check(0b111, &[], &REQUEST));
    let request = batch(&[
        good.clone(),
        item(CHECK, 0, &handle.check(1 << 9, &[], &[b"x"])),
        item(PING, 0, &[0, 0]),
        good.clone(),
        item(CHECK, 1 << 11, &handle.check(0b111, &[], &REQUEST)),
        item(CHECK, 0, &[]),
        item(CHECK_INLINE, 0, &inline(1, 0)),
        item(BATCH, 0, &batch(core::slice::from_ref(&good))),
        item(CHECK, 0, &handle.check(0b111, &[1, 1], &REQUEST)),
        good,
    ]);
    let answer = peer.ask(&frame(BATCH, 0, 3, &request));
    assert_eq!(answer.op, BATCH | 0x8000);
    let items = items(&answer.body);
    let codes: HashMap<usize, u16> = items
        .iter()
        .enumerate()
        .filter(|(_, (op, _))| *op == ERROR)
        .map(|(index, (_, body))| (index, error_of(body).0))
        .collect();
    let wanted = [
        (1, BAD_FRAME),
        (2, UNSUPPORTED_OP),
        (4, UNSUPPORTED_FLAG),
        (5, BAD_FRAME),
        (6, BAD_LIMIT),
        (7, UNSUPPORTED_OP),
        (8, BAD_COST),
    ];
    assert_eq!(codes, HashMap::from(wanted));
    let remaining = |index: usize| {
        let (op, body) = &items[index];
        assert_eq!((*op, body[0]), (CHECK | 0x8000, 1));
        u64::from_le_bytes(body[40 + 10 + 16..][..8].try_into().unwrap())
    };
    assert_eq!([remaining(0), remaining(3), remaining(9)], [119, 118, 117]);
    peer.assert_served();
}

#[test]
fn random_bytes_get_answers_or_an_end() {
    const SEED: u64 = 20_260_101;
    let daemon = Daemon::start(&[]);
    let good = GoodClient::start(&daemon);
    let mut dice = Dice(SEED);
    let connections = if full_dose() { 20_000 } else { 3_000 };
    let mut before = 0;
    let (mut sent, mut errors, mut answers) = (0, 0, 0);
    for index in 0..connections {
        if index == connections / 10 {
            // The first tenth warms the buffers.
            before = daemon.resident();
        }
        let mut bytes = if dice.below(4) > 0 { hello(1, 1) } else { Vec::new() };
        match dice.below(3) {
            0 => {
                let count = dice.below(3000);
                bytes.extend(dice.bytes(count));
            }
            // Frames whose lengths are right.
            1 => {
                for _ in 0..dice.below(30) {
                    let count = dice.below(80);
                    let body = dice.bytes(count);
                    let (op, flags) = (dice.below(0x30) as u16, dice.below(8) as u16);
                    bytes.extend(frame(op, flags, dice.roll(), &body));
                }
            }
            // Good frames, spoiled in a few places.
            _ => {
                for _ in 0..10 {
                    let limit = inline(1, 1_000_000);
                    bytes.extend(frame(CHECK_INLINE, 0, 4, &limit));
                    bytes.extend(frame(
                        BATCH,
                        0,
                        5,
                        &batch(&vec![item(PEEK_INLINE, 0, &limit); 3]),
                    ));
                }
                for _ in 0..dice.below(8) {
                    let place = dice.below(bytes.len());
                    bytes[place] = dice.roll() as u8;
                }
            }
        }
        let mut peer = daemon.connect();
        peer.send(&bytes);
        peer.finish();
        sent += bytes.len();
        for answer in peer.receive_all() {
            errors += usize::from(answer.op == ERROR);
            answers += usize::from(answer.op != ERROR);
        }
    }
    println!(
        "random bytes (seed {SEED}): {connections} connections, {sent} bytes, {answers} answers, \
         {errors} errors"
    );
    assert!(errors > connections / 2 && answers > connections / 2);
    good.assert_served("random bytes");
    assert_grown_below(&daemon, before, 8 * MIB, "random bytes");
}

#[test]
fn a_client_that_dribbles_is_answered() {
    let daemon = Daemon::start(&[]);
    let good = GoodClient::start(&daemon);
    let mut peer = daemon.connect();
    let request = frame(CHECK_INLINE, NUMBERS, 3, &inline(1, 1_000_000));
    for byte in [hello(1, 1), request].concat() {
        peer.send(&[byte]);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(peer.receive().unwrap().op, HELLO | 0x8000);
    assert!(peer.receive().unwrap().allowed());
    good.assert_served("a client that dribbles");
}

#[test]
fn a_greeting_that_does_not_come_in_five_seconds_ends() {
    let daemon = Daemon::start(&[]);
    let good = GoodClient::start(&daemon);
    let greeting = hello(1, 1);
    let mut peers: Vec<_> = [0, 1, 4, 17, greeting.len() - 1]
        .into_iter()
        .map(|sent| {
            let mut peer = daemon.connect();
            peer.send(&greeting[..sent]);
            (peer, Instant::now())
        })
        .collect();
    // A byte now and then does not put it off.
    for byte in 0..4 {
        std::thread::sleep(Duration::from_secs(1));
        peers[1].0.send(&greeting[1 + byte..][..1]);
    }
    for (peer, began) in &mut peers {
        let answers = peer.receive_all();
        let took = began.elapsed();
        assert_eq!(answers.len(), 1);
        assert_eq!((answers[0].error(), answers[0].call), ((TIMED_OUT, true), 0));
        assert!((4_900..7_000).contains(&took.as_millis()), "{took:?}");
    }
    good.assert_served("late greetings");
}

#[test]
fn one_connection_too_many_is_told_so() {
    let daemon = Daemon::start(&["--max-connections", "20"]);
    let mut peers: Vec<_> = (0..20).map(|_| daemon.greeted()).collect();
    for _ in 0..50 {
        let mut peer = daemon.connect();
        let answers = peer.receive_all();
        assert_eq!(answers.len(), 1);
        assert_eq!((answers[0].error(), answers[0].call), ((OVERLOADED, true), 0));
    }
    peers.iter_mut().for_each(Peer::assert_served);
    peers.truncate(15);
    daemon.await_connections(15, Duration::from_secs(10));
    peers.extend((0..5).map(|_| daemon.greeted()));
    peers.iter_mut().for_each(Peer::assert_served);
}

#[test]
fn silent_connections_cost_little_and_disturb_nobody() {
    let count = if full_dose() { 10_000 } else { 500 };
    let daemon = Daemon::start(&["--max-connections", "10100"]);
    let good = GoodClient::start(&daemon);
    let before = daemon.resident();
    let began = Instant::now();
    // These greet and then say nothing.
    let mut greeted: Vec<_> = (0..count).map(|_| daemon.greeted()).collect();
    println!("{count} connections greeted in {:?}", began.elapsed());
    daemon.await_connections(count + 1, Duration::from_secs(10));
    std::thread::sleep(Duration::from_secs(1));
    good.assert_served(&format!("{count} silent connections"));
    // A debug build's task is larger than a release build's.
    assert_grown_below(&daemon, before, 4 * MIB + count * 2 * KIB, "silent connections");
    greeted.iter_mut().for_each(Peer::assert_served);
    drop(greeted);
    daemon.await_connections(0, Duration::from_secs(20));

    // And these never say anything.
    let good = GoodClient::start(&daemon);
    let silent: Vec<_> = (0..count).map(|_| daemon.connect()).collect();
    std::thread::sleep(Duration::from_millis(500));
    good.assert_served(&format!("{count} connections without a word"));
    assert_grown_below(&daemon, before, 4 * MIB + count * 2 * KIB, "connections without a word");
    daemon.await_connections(0, Duration::from_secs(20));
    for mut peer in silent {
        assert_eq!(peer.receive_all()[0].error(), (TIMED_OUT, true));
    }
}

/// Writes until the server takes nothing for a while, reading nothing.
fn stuff(peer: &mut Peer, bytes: &[u8], most: usize) -> usize {
    peer.stream.set_nonblocking(true).unwrap();
    let (mut written, mut progress_at) = (0, Instant::now());
    while written < most {
        match peer.stream.write(&bytes[written % bytes.len()..]) {
            Ok(count) => {
                written += count;
                progress_at = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if progress_at.elapsed() > Duration::from_millis(500) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    peer.stream.set_nonblocking(false).unwrap();
    written
}

/// Peeks whose answers are longer than they are, as many in a batch as a frame takes. A debug build
/// takes so long for each that the good client would tell of nothing else, so it gets fewer.
fn peeks() -> Vec<u8> {
    let limits = [&[16][..], &inline_limit(1, 1000, b"").repeat(16)].concat();
    let peek = item(PEEK_INLINE, NUMBERS, &limits);
    let request = batch(&vec![peek; if cfg!(debug_assertions) { 8 } else { 110 }]);
    let prepare = frame(PREPARE, 0, 4, b"\x05media\x00");
    [frame(BATCH, 0, 3, &request), prepare.repeat(256)].concat()
}

/// What a connection may cost: frames that wait for their turn, answers that wait to be taken, one
/// more answer to the frame that was the last, and a little.
const STALLED_BYTES_MAX: u64 = 128 * KIB + 256 * KIB + 256 * KIB + 64 * KIB;

#[test]
fn clients_that_never_read_are_no_longer_read() {
    let count = if full_dose() { 1_000 } else { 24 };
    let daemon = Daemon::start(&[]);
    let good = GoodClient::start(&daemon);
    let before = daemon.resident();
    let requests = peeks();
    let most = 64 << 20;
    let stuffed: Vec<_> = {
        // Many at a time, as each waits for the moment when nothing moves.
        let peers: Vec<_> = (0..count).map(|_| daemon.greeted()).collect();
        let mut waiting = peers.into_iter();
        let mut done = Vec::new();
        loop {
            let threads: Vec<_> = waiting
                .by_ref()
                .take(100)
                .map(|mut peer| {
                    let requests = requests.clone();
                    std::thread::spawn(move || {
                        let written = stuff(&mut peer, &requests, most);
                        (peer, written)
                    })
                })
                .collect();
            if threads.is_empty() {
                break done;
            }
            done.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
        }
    };
    let written = stuffed.iter().map(|(_, written)| *written);
    println!(
        "never read: {count} connections, {} to {} bytes taken of each",
        written.clone().min().unwrap(),
        written.clone().max().unwrap()
    );
    assert!(written.clone().all(|written| written < most), "the server reads on and on");
    assert_grown_below(&daemon, before, 8 * MIB + count * STALLED_BYTES_MAX, "never read");
    good.assert_served("never read");
    // One that reads at last within the deadline gets every answer to what was read.
    if !full_dose() {
        let (mut peer, _) = stuffed.into_iter().next_back().unwrap();
        peer.finish();
        let answers = peer.receive_all();
        assert!(answers.iter().all(|answer| answer.op != ERROR));
        assert!(answers.len() > 64);
    }
}

#[test]
#[ignore = "waits for deadlines of ten seconds"]
fn clients_that_never_read_are_closed_after_ten_seconds() {
    let daemon = Daemon::start(&[]);
    let requests = peeks();
    let mut peers: Vec<_> = (0..10).map(|_| daemon.greeted()).collect();
    for peer in &mut peers {
        stuff(peer, &requests, 64 << 20);
    }
    // Some were being told their last word when nothing more fitted: they stayed open without end.
    // After how many answers that is, one that is stuffed shows.
    let prepare = frame(PREPARE, 0, 4, b"\x05media\x00");
    let before = daemon.metric(FRAMES);
    peers.push(daemon.greeted());
    stuff(peers.last_mut().unwrap(), &prepare.repeat(100), 64 << 20);
    let fit = (daemon.metric(FRAMES) - before) as usize;
    for fewer in (0..400).step_by(10) {
        let mut peer = daemon.greeted();
        let last = [prepare.repeat(fit.saturating_sub(fewer)), vec![5, 0, 0, 0]].concat();
        peer.send(&last);
        peers.push(peer);
    }
    println!("never read: the answers to {fit} frames fit");
    let began = Instant::now();
    let good = GoodClient::start(&daemon);
    daemon.await_connections(1, Duration::from_secs(15));
    println!("never read: all closed after {:?}", began.elapsed());
    good.assert_served("never read, to the deadline");
}

#[test]
#[ignore = "waits for deadlines of ten seconds"]
fn a_frame_begun_and_not_ended_in_ten_seconds_ends_the_connection() {
    let daemon = Daemon::start(&[]);
    let good = GoodClient::start(&daemon);
    let request = frame(CHECK_INLINE, NUMBERS, 3, &inline(1, 1_000_000));
    let mut peers: Vec<_> = [1, 4, 16, request.len() - 1]
        .into_iter()
        .map(|sent| {
            let mut peer = daemon.greeted();
            // Whole frames before it do not put it off.
            peer.send(&[&request.repeat(3), &request[..sent]].concat());
            (peer, Instant::now())
        })
        .collect();
    for byte in 1..9 {
        std::thread::sleep(Duration::from_secs(1));
        peers[0].0.send(&request[byte..][..1]);
    }
    for (peer, began) in &mut peers {
        let answers = peer.receive_all();
        let took = began.elapsed();
        assert_eq!(answers.len(), 4);
        assert_eq!((answers[3].error(), answers[3].call), ((TIMED_OUT, true), 0));
        assert!((9_900..12_000).contains(&took.as_millis()), "{took:?}");
    }
    good.assert_served("frames that do not end");
}

/// The full dose at once: silent connections, clients that never read, and a good client.
#[test]
#[ignore = "takes 11,000 descriptors with TOLLKEEPER_HOSTILE=full, and a while"]
fn everything_at_once() {
    let (silent, stuffed) = if full_dose() { (10_000, 1_000) } else { (500, 50) };
    let daemon = Daemon::start(&["--max-connections", "11100"]);
    let good = GoodClient::start(&daemon);
    let before = daemon.resident();
    let silent: Vec<_> = (0..silent).map(|_| daemon.greeted()).collect();
    let with_silent = daemon.resident();
    println!(
        "everything: resident {} KiB, with {} silent connections {} KiB",
        before / KIB,
        silent.len(),
        with_silent / KIB
    );
    let requests = Arc::new(peeks());
    let stop = Arc::new(AtomicBool::new(false));
    let mut peers: Vec<_> = (0..stuffed).map(|_| daemon.greeted()).collect();
    peers.iter_mut().for_each(|peer| peer.stream.set_nonblocking(true).unwrap());
    let stuffing = {
        let (requests, stop) = (Arc::clone(&requests), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut written = vec![0; peers.len()];
            while !stop.load(Ordering::Relaxed) {
                for (peer, written) in peers.iter_mut().zip(&mut written) {
                    let at = *written % requests.len();
                    if let Ok(count) = peer.stream.write(&requests[at..]) {
                        *written += count;
                    }
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            (written.iter().min().copied(), written.iter().max().copied())
        })
    };
    let (began, mut peak) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(8) {
        peak = daemon.resident().max(peak);
        std::thread::sleep(Duration::from_millis(50));
    }
    let open = daemon.metric(CONNECTIONS);
    println!("everything: {open} connections are open, peak resident {} KiB", peak / KIB);
    // Whoever takes nothing for ten seconds is closed; the silent ones stay.
    let within = Duration::from_secs(120);
    daemon.await_connections(silent.len() as u64 + 1, within);
    println!("everything: all that never read are closed after {:?}", began.elapsed());
    stop.store(true, Ordering::Relaxed);
    println!("everything: bytes taken of each that never read {:?}", stuffing.join().unwrap());
    good.assert_served("everything");
    let most = silent.len() as u64 * 2 * KIB + stuffed * STALLED_BYTES_MAX + 8 * MIB;
    assert!(peak - before < most, "allowed {} KiB", most / KIB);
    println!("everything: resident {} KiB when they are gone", daemon.resident() / KIB);
}

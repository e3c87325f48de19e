//! Load over the binary protocol: connections that each keep a number of checks in flight, as a
//! gateway's worker would. Closed loop: a new check is sent for each answer.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tollkeeper_protocol::limits::{ANSWER_BYTES_MAX, IN_FLIGHT_MAX};
use tollkeeper_protocol::request::{Check, Form, Hello, Intent, Prepare};
use tollkeeper_protocol::{Decision, Envelope, Op, Request, Response, next_frame};

/// What is sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to.
    pub server: SocketAddr,
    /// Connections, each with its own checks in flight.
    pub connections: usize,
    /// Checks in flight on each connection.
    pub in_flight: usize,
    /// Different keys, drawn evenly.
    pub keys: u64,
    /// Checks to send in all, or how long to send.
    pub until: Until,
    /// Whose class is checked; `None` sends frames of the same shape to an echo server.
    pub target: Option<Target>,
}

/// An API and one of its classes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The API.
    pub api: String,
    /// The class.
    pub class: String,
}

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After this many checks.
    Requests(u64),
    /// After this long.
    Elapsed(Duration),
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Report {
    /// Checks that passed.
    pub allowed: u64,
    /// Checks that were refused.
    pub denied: u64,
    /// Checks answered with an error.
    pub errors: u64,
    /// From the first check to the last answer.
    pub elapsed: Duration,
    /// From sending a check to reading its answer, in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Report {
    /// Answers in all.
    pub fn answers(&self) -> u64 {
        self.allowed + self.denied + self.errors
    }

    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.answers() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// The latency below which this share of the answers came, in nanoseconds.
    pub fn latency_at(&self, share: f64) -> u64 {
        self.latency.value_at_quantile(share)
    }
}

/// How far a load has come, for a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    sent: AtomicU64,
    answered: AtomicU64,
}

impl Progress {
    /// Answers so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

/// Sends a load on a single-threaded event loop and waits for its end.
///
/// # Errors
/// A connection that fails, or a server that does not know the target.
pub fn run(load: &Load, progress: &Arc<Progress>) -> io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connections = Vec::new();
        for seed in 0..load.connections {
            connections.push(Connection::open(load, seed as u64, Arc::clone(progress)).await?);
        }
        let began_at = Instant::now();
        let ends_at = match load.until {
            Until::Elapsed(elapsed) => Some(began_at + elapsed),
            Until::Requests(_) => None,
        };
        let tasks: Vec<_> = connections
            .into_iter()
            .map(|connection| tokio::spawn(connection.run(ends_at)))
            .collect();
        let mut report = Report {
            allowed: 0,
            denied: 0,
            errors: 0,
            elapsed: Duration::ZERO,
            latency: histogram(),
        };
        for task in tasks {
            let counts = task.await.map_err(io::Error::other)??;
            report.allowed += counts.allowed;
            report.denied += counts.denied;
            report.errors += counts.errors;
            report.latency.add(counts.latency).map_err(io::Error::other)?;
        }
        report.elapsed = began_at.elapsed();
        Ok(report)
    })
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are in order")
}

/// Digits of a key; the value of every check is this long.
const KEY_DIGITS: usize = 8;

struct Counts {
    allowed: u64,
    denied: u64,
    errors: u64,
    latency: Histogram<u64>,
}

struct Connection {
    stream: TcpStream,
    /// A check as a frame, in which only call id and key change.
    frame: Vec<u8>,
    key_at: usize,
    keys: u64,
    in_flight: usize,
    random: u64,
    requests_max: Option<u64>,
    progress: Arc<Progress>,
}

impl Connection {
    async fn open(load: &Load, seed: u64, progress: Arc<Progress>) -> io::Result<Self> {
        let mut stream = TcpStream::connect(load.server).await?;
        stream.set_nodelay(true)?;
        let (handle, layout) = match &load.target {
            Some(target) => prepare(&mut stream, target).await?,
            None => (1, 1),
        };
        let value = [b'0'; KEY_DIGITS];
        let values = [Some(&value[..])];
        let mut frame = Vec::new();
        let check = Check {
            intent: Intent::Charge,
            form: Form::TERSE,
            tied: false,
            no_forward: false,
            handle,
            layout,
            id: None,
            deadline_nanos: None,
            costs: [][..].into(),
            values: values[..].into(),
        };
        check.encode(Envelope::Call(0), &mut frame).map_err(io::Error::other)?;
        let requests_max = match load.until {
            Until::Requests(requests) => Some(requests),
            Until::Elapsed(_) => None,
        };
        Ok(Self {
            stream,
            key_at: frame.len() - KEY_DIGITS,
            frame,
            keys: load.keys.max(1),
            in_flight: load.in_flight.clamp(1, IN_FLIGHT_MAX),
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            requests_max,
            progress,
        })
    }

    async fn run(mut self, ends_at: Option<Instant>) -> io::Result<Counts> {
        let mut counts = Counts { allowed: 0, denied: 0, errors: 0, latency: histogram() };
        let mut sent_at = vec![Instant::now(); self.in_flight];
        let mut free: Vec<u64> = (0..self.in_flight as u64).collect();
        let (mut out, mut input) = (Vec::new(), vec![0; ANSWER_BYTES_MAX]);
        let (mut held, mut waiting) = (0, 0_usize);
        loop {
            let now = Instant::now();
            let ended = ends_at.is_some_and(|ends_at| now >= ends_at);
            out.clear();
            while !ended && !free.is_empty() && self.may_send() {
                let Some(call) = free.pop() else { break };
                sent_at[call as usize] = now;
                self.push_check(call, &mut out);
                waiting += 1;
            }
            if waiting == 0 {
                return Ok(counts);
            }
            if !out.is_empty() {
                self.stream.write_all(&out).await?;
            }
            let stream = &mut self.stream;
            let read = poll_fn(|context| {
                let mut buffer = ReadBuf::new(&mut input[held..]);
                let polled = Pin::new(&mut *stream).poll_read(context, &mut buffer);
                polled.map_ok(|()| buffer.filled().len())
            })
            .await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            held += read;
            let now = Instant::now();
            let mut done = 0;
            while let Some((frame, bytes)) =
                next_frame(&input[done..held], ANSWER_BYTES_MAX).map_err(io::Error::other)?
            {
                done += bytes;
                // The first byte of an answer to a check is its decision.
                match (frame.header.op == Op::CHECK.answer(), frame.body.first()) {
                    (true, Some(&decision)) if decision == Decision::Allow.to_wire() => {
                        counts.allowed += 1;
                    }
                    (true, _) => counts.denied += 1,
                    _ => counts.errors += 1,
                }
                let call = frame.header.call;
                let Some(&sent_at) = sent_at.get(call as usize) else {
                    return Err(io::Error::other("an answer to a call that was not made"));
                };
                counts.latency.saturating_record((now - sent_at).as_nanos() as u64);
                free.push(call);
                waiting -= 1;
                self.progress.answered.fetch_add(1, Ordering::Relaxed);
            }
            input.copy_within(done..held, 0);
            held -= done;
        }
    }

    fn may_send(&self) -> bool {
        let sent = self.progress.sent.fetch_add(1, Ordering::Relaxed);
        self.requests_max.is_none_or(|most| sent < most)
    }

    fn push_check(&mut self, call: u64, out: &mut Vec<u8>) {
        // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators".
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let random = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D);
        let mut key = ((u128::from(random) * u128::from(self.keys)) >> 64) as u64;
        for digit in self.frame[self.key_at..].iter_mut().rev() {
            *digit = b'0' + (key % 10) as u8;
            key /= 10;
        }
        self.frame[8..16].copy_from_slice(&call.to_le_bytes());
        out.extend_from_slice(&self.frame);
    }
}

/// Says HELLO and prepares the target's handle.
async fn prepare(stream: &mut TcpStream, target: &Target) -> io::Result<(u32, u64)> {
    let mut out = Vec::new();
    let hello = Request::Hello(Hello {
        version_min: 1,
        version_max: 1,
        client: "tollkeeper-bench",
        credential_scheme: 0,
        credential: &[],
    });
    let prepare = Request::Prepare(Prepare { api: &target.api, class: Some(&target.class) });
    for (call, request) in [(1, hello), (2, prepare)] {
        out.clear();
        request.encode(Envelope::Call(call), &mut out).map_err(io::Error::other)?;
        stream.write_all(&out).await?;
        let frame = read_frame(stream).await?;
        let Some((frame, _)) = next_frame(&frame, ANSWER_BYTES_MAX).map_err(io::Error::other)?
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match Response::decode(&frame.message()).map_err(io::Error::other)? {
            Response::Prepare(prepared) => return Ok((prepared.handle, prepared.layout)),
            Response::Error(error) => {
                return Err(io::Error::other(format!("{}: {}", error.code, error.message)));
            }
            _ => {}
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

async fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).await?;
    let length = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
    if !(16..=ANSWER_BYTES_MAX).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    frame.resize(length, 0);
    stream.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}

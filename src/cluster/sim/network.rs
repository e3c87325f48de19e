//! The network: connections of bytes between nodes, each way a pipe that keeps order, as TCP does.
//! What is lost on the way is sent again and so comes late; what is sent while the way is cut
//! comes once it is whole, unless somebody gave the connection up; connections break.

use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;

use crate::cluster::peer::{BoxFuture, Listen, Net, Stream};

use super::random::Random;

/// Bytes on their way in one direction of a connection, at most.
const PIPE_BYTES_MAX: usize = 256 << 10;

/// Ticks until what was lost is sent again: the shortest and the longest time.
const SENT_AGAIN_AFTER: (u64, u64) = (20, 220);

/// How often a connection is tried that cannot be made.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// The whole network. Clones are the same one.
#[derive(Clone)]
pub(super) struct Network(Arc<Mutex<State>>);

/// What befell bytes on their way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Befell {
    /// Sent.
    pub(super) sent: u64,
    /// Lost, and sent again.
    pub(super) lost: u64,
    /// Held up by a cut, or not connected because of one.
    pub(super) held: u64,
    /// Connections broken.
    pub(super) broken: u64,
}

struct State {
    now: u64,
    random: Random,
    latency: (u64, u64),
    loss: u64,
    cuts: BTreeSet<(usize, usize)>,
    nodes: Vec<Node>,
    pipes: BTreeMap<u64, Pipe>,
    next: u64,
    befell: Befell,
}

#[derive(Default)]
struct Node {
    boot: u64,
    listens: bool,
    backlog: VecDeque<(End, usize)>,
    accepts: Option<Waker>,
}

struct Pipe {
    from: usize,
    to: usize,
    queue: VecDeque<(u64, Bytes)>,
    bytes: usize,
    last_at: u64,
    closes_at: Option<u64>,
    is_broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    ends: u8,
}

/// A node's end of a connection.
struct End {
    network: Network,
    node: usize,
    boot: u64,
    reads: u64,
    writes: u64,
}

impl Network {
    pub(super) fn new(nodes: usize, random: Random) -> Self {
        Self(Arc::new(Mutex::new(State {
            now: 0,
            random,
            latency: (1, 2),
            loss: 0,
            cuts: BTreeSet::new(),
            nodes: (0..nodes).map(|_| Node::default()).collect(),
            pipes: BTreeMap::new(),
            next: 1,
            befell: Befell::default(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The network as this node has it.
    pub(super) fn of(&self, node: usize) -> Arc<dyn Net> {
        Arc::new(Interface { network: self.clone(), node })
    }

    pub(super) fn befell(&self) -> Befell {
        self.lock().befell
    }

    /// It is this tick.
    pub(super) fn tick(&self, now: u64) {
        let mut state = self.lock();
        state.now = now;
        let State { pipes, cuts, .. } = &mut *state;
        let mut woken = Vec::new();
        for pipe in pipes.values_mut() {
            let is_due = pipe.queue.front().is_some_and(|(at, _)| *at <= now)
                || (pipe.queue.is_empty() && pipe.closes_at.is_some_and(|at| at <= now));
            if is_due && !cuts.contains(&(pipe.from, pipe.to)) {
                woken.extend(pipe.reader.take());
            }
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    pub(super) fn set_latency(&self, least: u64, most: u64) {
        self.lock().latency = (least, most);
    }

    /// So many of a thousand sendings are lost.
    pub(super) fn set_loss(&self, in_thousand: u64) {
        self.lock().loss = in_thousand;
    }

    pub(super) fn cut(&self, from: usize, to: usize) {
        self.lock().cuts.insert((from, to));
    }

    pub(super) fn mend(&self, from: usize, to: usize) {
        self.lock().cuts.remove(&(from, to));
    }

    /// All ways are whole and fast.
    pub(super) fn heal(&self) {
        let mut state = self.lock();
        state.cuts.clear();
        (state.loss, state.latency) = (0, (1, 2));
    }

    /// Breaks all connections between two nodes.
    pub(super) fn reset(&self, one: usize, other: usize) {
        self.break_pipes(|pipe| {
            (pipe.from.min(pipe.to), pipe.from.max(pipe.to)) == (one.min(other), one.max(other))
        });
    }

    /// A node lost power. What it sent is lost with it; others hear of it at once, or only by the
    /// silence.
    pub(super) fn crash(&self, node: usize, is_silent: bool) {
        let mut state = self.lock();
        state.nodes[node].boot += 1;
        state.nodes[node].listens = false;
        state.nodes[node].accepts = None;
        let backlog = core::mem::take(&mut state.nodes[node].backlog);
        for pipe in state.pipes.values_mut().filter(|pipe| pipe.from == node || pipe.to == node) {
            pipe.queue.clear();
            pipe.bytes = 0;
        }
        drop(state);
        drop(backlog);
        if !is_silent {
            self.break_pipes(|pipe| pipe.from == node || pipe.to == node);
        }
    }

    fn break_pipes(&self, which: impl Fn(&Pipe) -> bool) {
        let mut state = self.lock();
        let State { pipes, befell, .. } = &mut *state;
        let mut woken = Vec::new();
        for pipe in pipes.values_mut().filter(|pipe| which(pipe) && !pipe.is_broken) {
            befell.broken += 1;
            pipe.is_broken = true;
            woken.extend(pipe.reader.take());
            woken.extend(pipe.writer.take());
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn pipe(&mut self, from: usize, to: usize) -> u64 {
        let id = self.next;
        self.next += 1;
        let pipe = Pipe {
            from,
            to,
            queue: VecDeque::new(),
            bytes: 0,
            last_at: 0,
            closes_at: None,
            is_broken: false,
            reader: None,
            writer: None,
            ends: 2,
        };
        self.pipes.insert(id, pipe);
        id
    }

    fn delay(&mut self) -> u64 {
        let (least, most) = self.latency;
        let mut delay = self.random.between(least, most);
        self.befell.sent += 1;
        while self.random.in_thousand(self.loss) {
            self.befell.lost += 1;
            delay += self.random.between(SENT_AGAIN_AFTER.0, SENT_AGAIN_AFTER.1);
        }
        delay
    }
}

struct Interface {
    network: Network,
    node: usize,
}

struct Listener {
    network: Network,
    node: usize,
}

fn place(address: &str) -> io::Result<usize> {
    let number = address.strip_prefix("node-").and_then(|rest| rest.strip_suffix(":1"));
    let number = number.and_then(|number| number.parse::<usize>().ok());
    number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, address.to_owned()))
}

/// The address of a node.
pub(super) fn address(node: usize) -> String {
    format!("node-{node}:1")
}

impl Net for Interface {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let (from, to) = (self.node, place(address)?);
            loop {
                let delay = {
                    let mut state = self.network.lock();
                    if state.cuts.contains(&(from, to)) || state.cuts.contains(&(to, from)) {
                        state.befell.held += 1;
                        None
                    } else {
                        Some(state.delay() + state.delay())
                    }
                };
                let Some(delay) = delay else {
                    sleep(TRY_AGAIN).await;
                    continue;
                };
                sleep(Duration::from_millis(delay)).await;
                let mut state = self.network.lock();
                if !state.nodes[to].listens {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                let (there, back) = (state.pipe(from, to), state.pipe(to, from));
                let boots = (state.nodes[from].boot, state.nodes[to].boot);
                let network = || self.network.clone();
                let theirs =
                    End { network: network(), node: to, boot: boots.1, reads: there, writes: back };
                let ours = End {
                    network: network(),
                    node: from,
                    boot: boots.0,
                    reads: back,
                    writes: there,
                };
                state.nodes[to].backlog.push_back((theirs, from));
                let accepts = state.nodes[to].accepts.take();
                drop(state);
                accepts.into_iter().for_each(Waker::wake);
                return Ok(Box::new(ours) as Stream);
            }
        })
    }

    fn listen<'a>(&'a self, _address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listen>>> {
        Box::pin(async move {
            self.network.lock().nodes[self.node].listens = true;
            let listener = Listener { network: self.network.clone(), node: self.node };
            Ok(Box::new(listener) as Box<dyn Listen>)
        })
    }

    fn aside(&self, work: Box<dyn FnOnce() + Send>) {
        work();
    }
}

impl Listen for Listener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, String)>> {
        Box::pin(core::future::poll_fn(|cx| {
            let mut state = self.network.lock();
            let node = &mut state.nodes[self.node];
            match node.backlog.pop_front() {
                Some((end, from)) => Poll::Ready(Ok((Box::new(end) as Stream, address(from)))),
                None => {
                    node.accepts = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }

    fn address(&self) -> io::Result<String> {
        Ok(address(self.node))
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.network.lock();
        let State { pipes, cuts, now, befell, .. } = &mut *state;
        let Some(pipe) = pipes.get_mut(&self.reads) else { return Poll::Ready(Ok(())) };
        if pipe.is_broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let is_cut = cuts.contains(&(pipe.from, pipe.to));
        let is_due = pipe.queue.front().is_some_and(|(at, _)| at <= now);
        if is_due && is_cut {
            befell.held += 1;
        }
        if is_due && !is_cut {
            if let Some((_, bytes)) = pipe.queue.front_mut() {
                let count = bytes.len().min(buffer.remaining());
                buffer.put_slice(&bytes[..count]);
                bytes.advance(count);
                pipe.bytes -= count;
                if bytes.is_empty() {
                    pipe.queue.pop_front();
                }
            }
            let writer = pipe.writer.take();
            drop(state);
            writer.into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(()));
        }
        if pipe.queue.is_empty() && !is_cut && pipe.closes_at.is_some_and(|at| at <= *now) {
            return Poll::Ready(Ok(()));
        }
        pipe.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.network.lock();
        let (now, delay) = (state.now, state.delay());
        let State { pipes, cuts, befell, .. } = &mut *state;
        let Some(pipe) = pipes.get_mut(&self.writes) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if pipe.is_broken || pipe.ends < 2 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = bytes.len().min(PIPE_BYTES_MAX - pipe.bytes);
        if count == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if cuts.contains(&(pipe.from, pipe.to)) {
            befell.held += 1;
        }
        pipe.last_at = pipe.last_at.max(now + delay);
        pipe.queue.push_back((pipe.last_at, Bytes::copy_from_slice(&bytes[..count])));
        pipe.bytes += count;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.network.lock();
        let now = state.now;
        if let Some(pipe) = state.pipes.get_mut(&self.writes) {
            pipe.closes_at.get_or_insert(pipe.last_at.max(now + 1));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.network.lock();
        let now = state.now;
        // Who lost power says nothing more.
        let is_alive = state.nodes[self.node].boot == self.boot;
        let mut woken = Vec::new();
        for (id, is_ours) in [(self.writes, true), (self.reads, false)] {
            let Some(pipe) = state.pipes.get_mut(&id) else { continue };
            if is_alive {
                pipe.ends -= 1;
                if is_ours {
                    pipe.closes_at.get_or_insert(pipe.last_at.max(now + 1));
                } else {
                    woken.extend(pipe.writer.take());
                }
            }
            let is_over = pipe.ends == 0;
            if is_over {
                state.pipes.remove(&id);
            }
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

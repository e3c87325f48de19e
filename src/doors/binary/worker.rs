//! One thread's share of the connections: a single-threaded runtime, its buffers, its deadlines.

use std::cell::RefCell;
use std::io;
use std::net::TcpStream;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tollkeeper_protocol::limits::FRAME_BYTES_MAX;

use crate::clock::LocalClock;
use crate::doors::{ConnectionGuard, Desk, Instance};
use crate::engine::time::Timestamp;

use super::connection::{self, Watch};
use super::session::SessionBuffers;

/// How often deadlines are looked at; they are kept to within this span.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Accepted connections that wait for their worker.
const HANDED_OVER_MAX: usize = 1024;

/// Room for the largest frame's begin and for one read of the same size behind it.
const INPUT_BYTES: usize = 2 * FRAME_BYTES_MAX;

/// What all connections of a worker share: they take turns.
pub(super) struct State {
    pub(super) desk: Desk,
    pub(super) buffers: SessionBuffers,
    pub(super) clock: LocalClock,
    pub(super) input: Box<[u8]>,
    pub(super) out: Vec<u8>,
    grace: Duration,
}

impl State {
    /// How long clients are told that the end may take.
    pub(super) fn grace_millis(&self) -> u32 {
        u32::try_from(self.grace.as_millis()).unwrap_or(u32::MAX)
    }
}

/// A connection on its way to a worker.
pub(super) struct Handover {
    pub(super) stream: TcpStream,
    pub(super) guard: ConnectionGuard,
}

/// A worker thread, seen from outside.
pub(super) struct Worker {
    pub(super) handover: mpsc::Sender<Handover>,
    pub(super) thread: JoinHandle<()>,
}

/// Starts a worker. It ends once `stop` says so and its connections are closed, at the latest
/// after `grace`.
pub(super) fn start(
    index: usize,
    instance: Arc<Instance>,
    stop: watch::Receiver<bool>,
    grace: Duration,
) -> io::Result<Worker> {
    let (handover, handed_over) = mpsc::channel(HANDED_OVER_MAX);
    let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let thread = std::thread::Builder::new().name(format!("binary-{index}")).spawn(move || {
        let local = LocalSet::new();
        local.block_on(&runtime, run(instance, handed_over, stop, grace));
    })?;
    Ok(Worker { handover, thread })
}

async fn run(
    instance: Arc<Instance>,
    mut handed_over: mpsc::Receiver<Handover>,
    mut stop: watch::Receiver<bool>,
    grace: Duration,
) {
    let clock = instance.clock.local();
    let grace_nanos = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
    let state = Rc::new(RefCell::new(State {
        desk: Desk::new(instance),
        buffers: SessionBuffers::default(),
        clock,
        input: vec![0; INPUT_BYTES].into_boxed_slice(),
        out: Vec::new(),
        grace,
    }));
    let mut watches: Vec<Weak<Watch>> = Vec::new();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stopped_at = None;
    loop {
        tokio::select! {
            Some(Handover { stream, guard }) = handed_over.recv(), if stopped_at.is_none() => {
                let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
                let watch = Watch::new(state.borrow_mut().clock.now().time);
                watches.push(Rc::downgrade(&watch));
                let state = Rc::clone(&state);
                tokio::task::spawn_local(async move {
                    connection::run(stream, watch, state).await;
                    drop(guard);
                });
            }
            _ = looks.tick() => {
                let now = state.borrow_mut().clock.now().time;
                watches.retain(|watch| watch.upgrade().is_some_and(|watch| {
                    watch.look(now);
                    true
                }));
                let overdue = stopped_at.is_some_and(|at: Timestamp| now.since(at).get() >= grace_nanos);
                if stopped_at.is_some() && (watches.is_empty() || overdue) {
                    return;
                }
            }
            _ = stop.wait_for(|stop| *stop), if stopped_at.is_none() => {
                stopped_at = Some(state.borrow_mut().clock.now().time);
                for watch in watches.iter().filter_map(Weak::upgrade) {
                    watch.wake();
                }
            }
        }
    }
}

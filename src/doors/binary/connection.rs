//! One connection: moves bytes between a socket and its [`Session`], and keeps to the deadlines.
//! No rule of rate limiting is here.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tollkeeper_protocol::limits::{
    FRAME_MILLIS_MAX, HANDSHAKE_MILLIS_MAX, IDLE_MILLIS_MAX, STALL_MILLIS_MAX,
};
use tollkeeper_protocol::status::Code;

use crate::doors::Kept;
use crate::engine::table::Stamp;
use crate::engine::time::{Nanos, Timestamp};

use crate::doors::{Awaited, Docket, Loaded, TRIES_MAX};
use crate::engine::group::Undecided;

use super::session::{Progress, Session};
use super::worker::State;

/// From GOAWAY to the server's last word: what crossed the GOAWAY is still refused in words.
const LINGER: Duration = Duration::from_millis(100);

/// Room for the front of a frame that a connection keeps. A longer frame's is given back, so that
/// idle connections cost little whatever they once sent.
const UNREAD_BYTES_KEPT: usize = 4096;

/// What a connection waits for, and until when. The worker looks at all of them now and then, so
/// that no read or write needs a timer of its own.
pub(super) struct Watch {
    deadline_at: Cell<Timestamp>,
    awaits: Cell<Awaits>,
    expired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    Hello,
    Frame,
    RestOfFrame,
    Reader,
    Goodbye,
}

impl Watch {
    pub(super) fn new(now: Timestamp) -> Rc<Self> {
        let watch = Self {
            deadline_at: Cell::new(now),
            awaits: Cell::new(Awaits::Hello),
            expired: Cell::new(false),
            waker: RefCell::new(None),
        };
        watch.set(Awaits::Hello, now);
        Rc::new(watch)
    }

    fn set(&self, awaits: Awaits, now: Timestamp) {
        let millis = match awaits {
            Awaits::Hello => HANDSHAKE_MILLIS_MAX,
            Awaits::Frame => IDLE_MILLIS_MAX,
            Awaits::RestOfFrame => FRAME_MILLIS_MAX,
            Awaits::Reader => STALL_MILLIS_MAX,
            Awaits::Goodbye => LINGER.as_millis() as u64,
        };
        self.awaits.set(awaits);
        self.deadline_at.set(now.after(Nanos::new(millis * 1_000_000)));
    }

    /// Waits for something; the deadline stays if the wait for it goes on.
    fn wait_for(&self, awaits: Awaits, now: Timestamp) {
        if self.awaits.get() != awaits {
            self.set(awaits, now);
        }
    }

    /// Wakes the connection if its deadline has passed.
    pub(super) fn look(&self, now: Timestamp) {
        if self.deadline_at.get() <= now {
            self.expired.set(true);
            self.wake();
        }
    }

    /// Wakes the connection.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn remember(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }
}

/// A connection with what it has read and not yet understood, and written and not yet sent.
struct Connection {
    stream: TcpStream,
    session: Session,
    watch: Rc<Watch>,
    state: Rc<RefCell<State>>,
    /// The front of a frame whose rest has not come, or whole frames whose turn has not come.
    unread: Vec<u8>,
    /// Whether `unread` may hold whole frames.
    more: bool,
    /// Whether the client sends as fast as it is answered, so that the last read was as much as
    /// fits or left work behind.
    hurried: bool,
    unsent: Vec<u8>,
    sent: usize,
    /// What a cluster was asked and has not answered. Until it has nothing more is read, so what
    /// one connection asks is performed in its order.
    asking: Option<Box<Asking>>,
    /// What must be on disk before `unsent` goes out.
    kept: Option<Kept>,
    closes: bool,
}

/// Frames that wait for a cluster.
struct Asking {
    frames: Vec<u8>,
    loaded: Arc<Loaded>,
    docket: Docket,
    awaited: Awaited,
    /// How often they were resolved.
    tries: u32,
    more: bool,
    began_at: Timestamp,
}

/// Serves a connection until either side closes it.
pub(super) async fn run(stream: TcpStream, watch: Rc<Watch>, state: Rc<RefCell<State>>) {
    let mut connection = Connection {
        stream,
        session: Session::default(),
        watch,
        state,
        unread: Vec::new(),
        more: false,
        hurried: false,
        unsent: Vec::new(),
        sent: 0,
        asking: None,
        kept: None,
        closes: false,
    };
    // A broken socket ends a connection like a closed one: there is nobody to tell.
    let _ = poll_fn(|context| connection.poll(context)).await;
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Whoever ends the connection, its thread is in no other one's poll meanwhile.
        if let Ok(mut state) = self.state.try_borrow_mut() {
            let state = &mut *state;
            let clock = &mut state.clock;
            self.session.end(&state.desk, &mut Stamp::new(|| clock.now()));
        }
    }
}

impl Connection {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll_bytes(context);
        if polled.is_pending() {
            self.watch.remember(context);
        }
        polled
    }

    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.watch.expired.replace(false) {
                self.expire();
            }
            if let Some(kept) = &mut self.kept {
                let told = ready!(Pin::new(kept).poll(context));
                self.kept = None;
                if let Err(not_kept) = told {
                    // No answer may say that it is done, and which ones do is not known here.
                    self.unsent.clear();
                    self.session.close(Code::DiskFull, &not_kept.to_string(), &mut self.unsent);
                    self.closes = true;
                }
            }
            if self.sent < self.unsent.len() {
                ready!(self.poll_unsent(context))?;
            }
            if self.asking.is_some() {
                ready!(self.poll_asking(context))?;
                continue;
            }
            if self.closes {
                return Pin::new(&mut self.stream).poll_shutdown(context);
            }
            ready!(self.poll_answer(context))?;
            if self.hurried {
                // The other connections of this thread come first.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Says what took too long, and closes.
    fn expire(&mut self) {
        if self.closes {
            // The last word was said, and nobody takes it.
            self.unsent.clear();
            self.sent = 0;
            return;
        }
        self.state.borrow().desk.cells.connections_dropped.add(1);
        let reason = match self.watch.awaits.get() {
            Awaits::Hello => "HELLO did not come in time",
            Awaits::Frame => "no frame came for too long",
            Awaits::RestOfFrame => "a frame was begun and not ended in time",
            Awaits::Reader | Awaits::Goodbye => {
                // It takes nothing, or was told already.
                self.unsent.clear();
                self.sent = 0;
                self.closes = true;
                return;
            }
        };
        self.session.close(Code::TimedOut, reason, &mut self.unsent);
        self.closes = true;
    }

    /// Writes what is left of earlier answers.
    fn poll_unsent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.unsent.len() {
            let rest = &self.unsent[self.sent..];
            let Poll::Ready(sent) = Pin::new(&mut self.stream).poll_write(context, rest)? else {
                let now = self.state.borrow_mut().clock.now().time;
                self.watch.wait_for(Awaits::Reader, now);
                return Poll::Pending;
            };
            self.sent += sent;
            let now = self.state.borrow_mut().clock.now().time;
            self.watch.set(Awaits::Reader, now);
        }
        // Buffers that a slow reader made grow are not kept.
        self.unsent = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads once, answers what is whole, and writes as much as the socket takes.
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = Rc::clone(&self.state);
        let state = &mut *state.borrow_mut();
        state.out.clear();
        if state.desk.instance.is_draining() && self.watch.awaits.get() != Awaits::Goodbye {
            self.session.leave(state.grace_millis(), &mut state.out);
            let now = state.clock.now().time;
            self.watch.set(Awaits::Goodbye, now);
            return Poll::Ready(self.write(&state.out));
        }
        let kept = self.unread.len();
        state.input[..kept].copy_from_slice(&self.unread);
        let mut arrived = kept;
        if !self.more {
            let mut buffer = ReadBuf::new(&mut state.input[kept..]);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            arrived += buffer.filled().len();
            if arrived == kept {
                self.hurried = false;
                self.closes = true;
                return Poll::Ready(Ok(()));
            }
        }
        if state.desk.instance.consensus.get().is_some() {
            return self.ask(state, arrived);
        }
        let clock = &mut state.clock;
        let mut stamp = Stamp::new(|| clock.now());
        let began_at = stamp.now().time;
        let progress = self.session.handle_bytes(
            &mut state.desk,
            &mut state.buffers,
            &mut stamp,
            &state.input[..arrived],
            &mut state.out,
        );
        self.note(state, began_at, &progress, arrived);
        self.kept = self.session.take_kept();
        if self.kept.is_some() {
            self.unsent.extend_from_slice(&state.out);
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(self.write(&state.out))
    }

    /// Asks a cluster what the frames in the worker's input want, if they want anything of it.
    fn ask(&mut self, state: &mut State, arrived: usize) -> Poll<io::Result<()>> {
        let loaded = state.desk.instance.policy.load_full();
        let State { desk, buffers, clock, input, .. } = state;
        let mut stamp = Stamp::new(|| clock.now());
        let began_at = stamp.now().time;
        let input = &input[..arrived];
        let (collected, mut docket) =
            self.session.collect(desk, buffers, &loaded, &mut stamp, input);
        if let Some(consensus) = desk.instance.consensus.get() {
            consensus.count_shortcuts(docket.denied());
            if let Some(group) = docket.group() {
                let version = loaded.policy.version();
                let awaited = consensus.perform(group, version, docket.deadline_nanos());
                self.unread.clear();
                self.unread.extend_from_slice(&input[collected.consumed..]);
                self.asking = Some(Box::new(Asking {
                    frames: input[..collected.consumed].to_vec(),
                    loaded,
                    docket,
                    awaited,
                    tries: 1,
                    more: collected.more,
                    began_at,
                }));
                self.hurried = false;
                return Poll::Ready(Ok(()));
            }
        }
        docket.hear(None);
        let (input, out) = (&input[..collected.consumed], &mut state.out);
        let progress = self.session.hear(desk, buffers, (&loaded, docket), &mut stamp, input, out);
        let progress = Progress { more: collected.more, ..progress };
        self.note(state, began_at, &progress, arrived);
        Poll::Ready(self.write(&state.out))
    }

    /// Waits for the cluster, and answers what it was asked.
    fn poll_asking(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(mut asking) = self.asking.take() else { return Poll::Ready(Ok(())) };
        let Poll::Ready(heard) = asking.awaited.as_mut().poll(context) else {
            self.asking = Some(asking);
            return Poll::Pending;
        };
        let state = Rc::clone(&self.state);
        let state = &mut *state.borrow_mut();
        state.out.clear();
        let State { desk, buffers, clock, out, .. } = state;
        let mut stamp = Stamp::new(|| clock.now());
        if matches!(heard, Err(Undecided::Stale)) && asking.tries < TRIES_MAX {
            let loaded = desk.instance.policy.load_full();
            let (_, docket) =
                self.session.collect(desk, buffers, &loaded, &mut stamp, &asking.frames);
            if let Some(consensus) = desk.instance.consensus.get()
                && let Some(group) = docket.group()
            {
                let version = loaded.policy.version();
                let awaited = consensus.perform(group, version, docket.deadline_nanos());
                let tries = asking.tries + 1;
                self.asking = Some(Box::new(Asking { loaded, docket, awaited, tries, ..*asking }));
                return Poll::Ready(Ok(()));
            }
            asking.docket = docket;
            asking.loaded = loaded;
            asking.docket.hear(None);
        } else {
            asking.docket.hear(Some(heard));
        }
        let Asking { frames, loaded, docket, more, began_at, .. } = *asking;
        let progress =
            self.session.hear(desk, buffers, (&loaded, docket), &mut stamp, &frames, out);
        let ended_at = state.clock.now().time;
        state.desk.cells.duration(ended_at.since(began_at).get(), progress.frames as u64);
        self.more = more;
        self.hurried = more;
        self.closes |= progress.closes;
        if self.watch.awaits.get() != Awaits::Goodbye {
            self.watch.set(
                if self.unread.is_empty() { Awaits::Frame } else { Awaits::RestOfFrame },
                ended_at,
            );
        }
        Poll::Ready(self.write(&state.out))
    }

    /// Keeps what was not understood yet, and sets the next deadline.
    fn note(
        &mut self,
        state: &mut State,
        began_at: Timestamp,
        progress: &Progress,
        arrived: usize,
    ) {
        let ended_at = state.clock.now().time;
        let took = ended_at.since(began_at).get();
        state.desk.cells.duration(took, progress.frames as u64);
        if self.unread.capacity() > UNREAD_BYTES_KEPT {
            self.unread = Vec::new();
        }
        self.unread.clear();
        self.unread.extend_from_slice(&state.input[progress.consumed..arrived]);
        self.more = progress.more;
        self.hurried = self.more || arrived == state.input.len();
        self.closes |= progress.closes;
        if self.watch.awaits.get() != Awaits::Goodbye {
            match (self.session.is_open(), self.unread.is_empty()) {
                (false, _) => self.watch.wait_for(Awaits::Hello, ended_at),
                (true, true) => self.watch.set(Awaits::Frame, ended_at),
                // A frame's time runs from its first byte, but frames that wait here for their
                // turn have come in time.
                (true, false) if progress.consumed > 0 || self.more => {
                    self.watch.set(Awaits::RestOfFrame, ended_at);
                }
                (true, false) => self.watch.wait_for(Awaits::RestOfFrame, ended_at),
            }
        }
    }

    /// Writes what the socket takes at once and keeps the rest.
    fn write(&mut self, out: &[u8]) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let sent = match self.stream.try_write(out) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if sent < out.len() {
            self.unsent.extend_from_slice(&out[sent..]);
        }
        Ok(())
    }
}

//! Moves bytes between a socket and its session, and keeps to the deadlines.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::doors::threads::{Accepted, Serve};
use crate::doors::{Batch, SharedDesk};

use super::parse::Command;
use super::reply;
use super::session::{Ground, Plan, Progress, Session};
use super::{COMMAND_BYTES_MAX, COMMAND_TIME_MAX, IDLE_TIME_MAX, LOOK_EVERY, STALL_TIME_MAX};

/// Room for the longest command's begin and for one read of the same size behind it.
const INPUT_BYTES: usize = 2 * COMMAND_BYTES_MAX;

/// Room that a connection keeps for its plans and answers; what long ones took is given back.
const KEPT_BYTES: usize = 4096;

/// Numbers the connections of a process.
static IDS: AtomicU64 = AtomicU64::new(1);

/// What the connections of a thread share: they take turns.
struct Lent {
    input: Box<[u8]>,
    command: Command,
}

struct Connection {
    stream: TcpStream,
    session: Session,
    ground: Arc<Ground>,
    desk: Arc<SharedDesk>,
    lent: Rc<RefCell<Lent>>,
    /// The front of a command whose rest has not come, or commands whose turn has not come.
    unread: Vec<u8>,
    plan: Plan,
    out: Vec<u8>,
}

/// What a read brought.
struct Round {
    batch: Batch,
    progress: Progress,
}

/// How a thread serves its connections.
pub(super) fn serve(desk: Arc<SharedDesk>, ground: Arc<Ground>) -> Serve {
    let input = vec![0; INPUT_BYTES].into_boxed_slice();
    let lent = Rc::new(RefCell::new(Lent { input, command: Command::default() }));
    Box::new(move |accepted| {
        let Accepted { stream, stopped, .. } = accepted;
        let session = Session::new(IDS.fetch_add(1, Ordering::Relaxed), &ground);
        let connection = Connection {
            stream,
            session,
            ground: Arc::clone(&ground),
            desk: Arc::clone(&desk),
            lent: Rc::clone(&lent),
            unread: Vec::new(),
            plan: Plan::default(),
            out: Vec::new(),
        };
        Box::pin(async move {
            let mut stopped = stopped;
            // A broken socket ends a connection like a closed one: there is nobody to tell.
            let _ = connection.run(async move { drop(stopped.wait_for(|stop| *stop).await) }).await;
        })
    })
}

impl Connection {
    async fn run(mut self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let mut stop = pin!(stop);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut quiet, mut more) = (Duration::ZERO, false);
        loop {
            let began = self.unread.is_empty();
            let round = tokio::select! {
                biased;
                // What has been read is answered by now.
                () = &mut stop => return Ok(()),
                round = poll_fn(|context| self.poll_round(context, more)) => round?,
                _ = looks.tick() => {
                    quiet += LOOK_EVERY;
                    match self.overdue(quiet) {
                        None => continue,
                        Some(message) => {
                            self.desk.count_dropped();
                            reply::error(&mut self.out, message);
                            return self.send().await;
                        }
                    }
                }
            };
            let Some(Round { mut batch, progress }) = round else { return Ok(()) };
            // The time of a command runs from its first byte.
            if progress.consumed > 0 || began {
                quiet = Duration::ZERO;
            }
            if !batch.is_empty() {
                batch.decide().await;
            }
            if self.plan.commands > 0 {
                let errors = self.plan.write(&batch, &mut self.out);
                self.desk.count_requests(self.plan.commands, errors);
                self.plan.clear();
                self.send().await?;
            }
            if progress.closes {
                return self.stream.shutdown().await;
            }
            more = progress.more;
            if more {
                // The other connections of this thread come first.
                tokio::task::yield_now().await;
            }
        }
    }

    /// What took too long.
    fn overdue(&self, quiet: Duration) -> Option<&'static str> {
        // The first look comes at once, and the last one may come late.
        match self.unread.is_empty() {
            false if quiet > COMMAND_TIME_MAX + LOOK_EVERY => {
                Some("ERR a command was begun and not ended in time")
            }
            true if quiet > IDLE_TIME_MAX + LOOK_EVERY => Some("ERR no command came for too long"),
            _ => None,
        }
    }

    /// Reads once, unless there is `more` from the last time, and makes a plan of what has come.
    /// `None`: the client has closed.
    fn poll_round(
        &mut self,
        context: &mut Context<'_>,
        more: bool,
    ) -> Poll<io::Result<Option<Round>>> {
        let mut lent = self.lent.borrow_mut();
        let Lent { input, command } = &mut *lent;
        let kept = self.unread.len();
        let mut arrived = kept;
        if more {
            input[..kept].copy_from_slice(&self.unread);
        } else {
            let mut buffer = ReadBuf::new(&mut input[kept..]);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            arrived += buffer.filled().len();
            if arrived == kept {
                return Poll::Ready(Ok(None));
            }
            input[..kept].copy_from_slice(&self.unread);
        }
        let mut batch = Batch::new(&self.desk);
        let (ground, input) = (&*self.ground, &input[..arrived]);
        let progress = self.session.read(ground, input, command, &mut batch, &mut self.plan);
        if self.unread.capacity() > KEPT_BYTES {
            self.unread = Vec::new();
        }
        self.unread.clear();
        self.unread.extend_from_slice(&input[progress.consumed..]);
        Poll::Ready(Ok(Some(Round { batch, progress })))
    }

    /// Sends all answers. A client that takes none of them for too long is left.
    async fn send(&mut self) -> io::Result<()> {
        let mut sent = match self.stream.try_write(&self.out) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        while sent < self.out.len() {
            let Ok(written) = timeout(STALL_TIME_MAX, self.stream.write(&self.out[sent..])).await
            else {
                self.desk.count_dropped();
                return Err(io::ErrorKind::TimedOut.into());
            };
            sent += written?;
        }
        for buffer in [&mut self.out, &mut self.plan.text] {
            buffer.clear();
            if buffer.capacity() > KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
        Ok(())
    }
}

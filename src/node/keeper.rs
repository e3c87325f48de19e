//! The keeper of snapshots: one thread that takes them, every so often and when asked.
//!
//! It works in short steps and rests as long as each took (`disk::rest`), so that on a busy machine
//! no worker waits for it longer than a step.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::{self, Os};
use crate::disk::{Ahead, Beside, Directory, Header, Home, KEPT, LimitName, rest};
use crate::doors::report::SnapshotReport;
use crate::doors::{Instance, Turn};
use crate::engine::command::LimitId;
use crate::engine::quota::Kind;
use crate::engine::time::Now;
use crate::policy::Numbers;

/// Of the most counters that the table may hold, the part that may change before a snapshot has
/// come to them; a snapshot for which it is not enough is given up. A noted counter takes 40 bytes
/// and what lies beside its slot.
const NOTED_PARTS: u64 = 2;

/// Fewest counters that may change.
const NOTED_MIN: u64 = 65_536;

/// How far the thread stands back where processors are short: a third of a worker's share. Further
/// back it could be kept waiting while it holds a wide counter, and so would whoever needs that.
const NICE: i32 = 5;

type Reply = oneshot::Sender<Result<SnapshotReport, String>>;

enum Ask {
    Now(Reply),
    /// Take the last one, if anything changed, and end.
    Last,
}

/// The thread that takes snapshots.
pub(super) struct Keeper {
    ask: Sender<Ask>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Starts the thread, and lets the doors ask it.
    ///
    /// # Errors
    /// The operating system's, which has no thread to give.
    pub(super) fn start(
        home: Home<Directory>,
        instance: &Arc<Instance>,
        interval: Duration,
    ) -> std::io::Result<Self> {
        let (ask, asked) = mpsc::channel();
        let desk = ask.clone();
        let handle = move || {
            let (reply, answer) = oneshot::channel();
            // Where nobody keeps snapshots any more, the reply is dropped, which is an answer.
            let _ = desk.send(Ask::Now(reply));
            answer
        };
        let _ = instance.snapshots.set(Box::new(handle));
        let seen = changes(instance);
        let work = Work { home, instance: Arc::clone(instance), seen, changed: VecDeque::new() };
        let thread = std::thread::Builder::new().name("snapshots".to_owned());
        let thread = thread.spawn(move || work.run(interval, &asked))?;
        Ok(Self { ask, thread })
    }

    /// Has the last snapshot taken. Nobody decides any more.
    pub(super) fn stop(self) {
        let _ = self.ask.send(Ask::Last);
        if self.thread.join().is_err() {
            tracing::error!("the thread that takes snapshots had ended");
        }
    }
}

struct Work {
    home: Home<Directory>,
    instance: Arc<Instance>,
    /// [`changes`] at the last snapshot.
    seen: u64,
    /// Numbers of the last changes by hand in this run's last snapshots.
    changed: VecDeque<u64>,
}

/// Grows with every request that may have changed a counter.
fn changes(instance: &Instance) -> u64 {
    instance.cells.sum(|worker| &worker.requests)
}

impl Work {
    fn run(mut self, interval: Duration, asked: &Receiver<Ask>) {
        // Of this thread alone. A refusal costs nothing but that.
        let _ = rustix::process::nice(NICE);
        loop {
            match asked.recv_timeout(interval) {
                Ok(Ask::Now(reply)) => _ = reply.send(self.take(&mut rest())),
                Err(RecvTimeoutError::Timeout) => {
                    if changes(&self.instance) != self.seen {
                        let _ = self.take(&mut rest());
                    }
                }
                Ok(Ask::Last) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if changes(&self.instance) != self.seen {
            // Nobody is left to make way for.
            let _ = self.take(&mut std::thread::yield_now);
        }
    }

    fn take(&mut self, pace: &mut dyn FnMut()) -> Result<SnapshotReport, String> {
        let began = Os::raw();
        let seen = changes(&self.instance);
        let taken = self.write(pace);
        let duration = Os::raw().saturating_sub(began);
        let cells = &self.instance.cells.snapshots;
        match taken {
            Ok((report, now, noted)) => {
                self.seen = seen;
                cells.written.fetch_add(1, Ordering::Relaxed);
                cells.taken_at.store(now.utc.as_nanos(), Ordering::Relaxed);
                cells.duration.store(duration, Ordering::Relaxed);
                cells.bytes.store(report.bytes, Ordering::Relaxed);
                cells.noted.store(noted, Ordering::Relaxed);
                let seconds = duration as f64 / 1e9;
                tracing::debug!(file = report.file, seconds, noted, "snapshot");
                Ok(SnapshotReport { seconds, ..report })
            }
            Err(error) => {
                cells.failed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(error, "no snapshot was written; the one before it still counts");
                Err(error)
            }
        }
    }

    fn write(&mut self, pace: &mut dyn FnMut()) -> Result<(SnapshotReport, Now, u64), String> {
        let instance = &self.instance;
        let policy = instance.policy.load_full();
        let noted_max = (instance.table.load().usage().keys_max / NOTED_PARTS).max(NOTED_MIN);
        // Who waits for the locks below may be in the table, and this may wait for them to leave it.
        let ahead = Ahead::of(instance.table.load_full());
        let ahead = ahead.ok_or("another snapshot is being taken")?;
        // No request that may be sent again is between its charge and its mark meanwhile, and no
        // counter is between being set and being kept.
        let sessions = instance.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = instance.changes.turn();
        // Read before the moment: a counter charged in between is later than the snapshot says,
        // and so refills later.
        let (now, wall) = (instance.clock.now(), clock::wall_now());
        let moment = ahead.mark(noted_max);
        let changed = turn.as_ref().map_or(0, Turn::last);
        drop(turn);
        let (sessions_opened, saved) = sessions.saved();
        drop(sessions);
        let identity = self.home.identity();
        let number = self.home.next_number();
        let header = Header {
            instance: identity.id,
            seed: identity.seed,
            number,
            time: now.time,
            utc: now.utc,
            wall,
            policy: policy.policy.version(),
            next_permit: moment.next_permit(),
            applied: (changed, 0),
            sessions_opened,
        };
        // After the moment, so that all counters of then have a name, also those of limits that are
        // no more: a policy may bring them back.
        let limits = limit_names(&instance.numbers());
        let beside = Beside { header, limits, sessions: saved, cluster: Vec::new() };
        let written = self.home.write(&beside, moment, pace).map_err(|error| error.to_string())?;
        self.changed.push_back(changed);
        if self.changed.len() >= KEPT {
            // The oldest one that is kept has these, and so have those after it.
            let oldest = self.changed.pop_front().unwrap_or_default();
            instance.changes.note_in_snapshots(oldest);
        }
        let report = SnapshotReport {
            file: self.home.path_of(number),
            counters: written.totals.counters(),
            bytes: written.totals.bytes,
            seconds: 0.0,
        };
        Ok((report, now, written.noted))
    }
}

/// The names of all limits that ever had a number, as snapshots have them.
pub(super) fn limit_names(numbers: &Numbers) -> Vec<LimitName> {
    numbers.limits().map(name_of).collect()
}

fn name_of((id, kind, names): (LimitId, Kind, &[Box<str>; 3])) -> LimitName {
    let [api, name, window] = names.each_ref().map(ToString::to_string);
    LimitName { id, kind, api, name, window }
}

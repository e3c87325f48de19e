//! The recorder of changes by hand: one thread that writes what the doors hand over, and tells them
//! once it is synced. It never makes a check wait, and many changes share one sync.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock;
use crate::disk::{ChangeFile, Directory, Place, Record};
use crate::doors::report::SnapshotReport;
use crate::doors::{ChangeBatch, InForce, Instance, NotKept};
use crate::policy::{ByHand, Identities, OverrideRecord};

/// How long a file that could not be written waits for the next attempt.
const PATIENCE: Duration = Duration::from_secs(1);

/// Counters set by hand that are kept beside snapshots: with more of them a snapshot is asked for.
const COUNTERS_MANY: usize = 50_000;

/// With so many no counter can be set until there was one.
const COUNTERS_MAX: usize = 200_000;

/// The thread that writes changes by hand.
pub(super) struct Recorder {
    instance: Arc<Instance>,
    thread: JoinHandle<()>,
}

impl Recorder {
    /// Writes the file anew with what was restored, and starts the thread. Changes that come from
    /// now on are numbered after `last`.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn start(
        file: ChangeFile<Directory>,
        instance: &Arc<Instance>,
        last: u64,
        sets: impl IntoIterator<Item = Record>,
    ) -> std::io::Result<Self> {
        instance.changes.keep_after(last);
        let instance = Arc::clone(instance);
        let mut work = Work {
            file,
            instance: Arc::clone(&instance),
            sets: VecDeque::new(),
            counters: 0,
            fails: false,
            snapshot: None,
        };
        work.remember(sets);
        let (begun, _) = work.rewrite(ChangeBatch::default());
        begun?;
        let thread = std::thread::Builder::new().name("changes".to_owned());
        let thread = thread.spawn(move || work.run())?;
        Ok(Self { instance, thread })
    }

    /// Ends the thread. Nobody changes anything any more.
    pub(super) fn stop(self) {
        self.instance.changes.end();
        if self.thread.join().is_err() {
            tracing::error!("the thread that writes changes by hand had ended");
        }
    }
}

struct Work {
    file: ChangeFile<Directory>,
    instance: Arc<Instance>,
    /// Counters that were set and are not in every snapshot that may be restored.
    sets: VecDeque<Record>,
    /// How many counters these are.
    counters: usize,
    /// Whether changes are not kept at present.
    fails: bool,
    /// A snapshot that was asked for.
    snapshot: Option<oneshot::Receiver<Result<SnapshotReport, String>>>,
}

impl Work {
    fn run(mut self) {
        loop {
            let batch = self.instance.changes.take(PATIENCE);
            let is_last = batch.is_last;
            if !batch.changes.is_empty() {
                self.keep(batch);
            } else if !self.file.is_open() {
                // What was not kept then is now, if there is room again.
                self.keep_anew(batch);
            }
            self.tidy();
            if is_last {
                return;
            }
        }
    }

    /// Writes a batch behind what there is, or else all anew, and tells.
    fn keep(&mut self, mut batch: ChangeBatch) {
        let place = self.place(batch.last);
        let changes = std::mem::take(&mut batch.changes);
        let records: Vec<Record> = records(place, changes).collect();
        let added = if self.file.is_open() {
            let added = self.file.add(&records);
            if let Err(error) = &added {
                tracing::warn!(%error, "a change by hand was not written; all are written anew");
            }
            added.is_ok()
        } else {
            false
        };
        self.remember(records);
        if added {
            batch.tell(Ok(()));
        } else {
            self.keep_anew(batch);
        }
    }

    /// Writes all anew, whatever was written of it before, and tells.
    fn keep_anew(&mut self, batch: ChangeBatch) {
        let (rewritten, mut batch) = self.rewrite(batch);
        match &rewritten {
            Err(error) if !self.fails => {
                tracing::error!(%error, "changes by hand are not kept: a restart forgets them");
            }
            Ok(()) if self.fails => tracing::info!("changes by hand are kept again"),
            _ => {}
        }
        self.fails = rewritten.is_err();
        batch.tell(rewritten.map_err(|_| NotKept));
    }

    /// Counters that were set are needed until snapshots have them; the rest is in force.
    fn remember(&mut self, records: impl IntoIterator<Item = Record>) {
        for record in records {
            if let ByHand::SetCounters(set) = &record.change {
                self.counters += set.counters.len();
                self.sets.push_back(record);
            }
        }
    }

    /// Writes the file anew: what is in force now, and the counters that are only here. Returns the
    /// batch, joined by the changes that were waiting.
    fn rewrite(&mut self, mut batch: ChangeBatch) -> (std::io::Result<()>, ChangeBatch) {
        let InForce { overrides, identities, batch: waiting } = self.instance.in_force();
        batch.join(waiting);
        let place = self.place(batch.last);
        let changes = std::mem::take(&mut batch.changes);
        self.remember(records(place, changes));
        self.forget();
        let in_force = standing(&overrides, &identities).map(|change| (batch.last, change));
        let records = self.sets.iter().cloned().chain(records(place, in_force));
        (self.file.rewrite(place, records), batch)
    }

    /// Lets go of counters that are in snapshots.
    fn forget(&mut self) {
        let in_snapshots = self.instance.changes.in_snapshots();
        let is_there = |record: &mut Record| record.number <= in_snapshots;
        while let Some(record) = self.sets.pop_front_if(is_there) {
            if let ByHand::SetCounters(set) = &record.change {
                self.counters -= set.counters.len();
            }
        }
    }

    /// Keeps the file, and what is remembered of it, within bounds.
    fn tidy(&mut self) {
        self.forget();
        if self.file.is_long() {
            self.keep_anew(ChangeBatch::default());
        }
        self.instance.changes.note_full(self.counters >= COUNTERS_MAX);
        let is_asked = self.snapshot.as_mut().is_some_and(|asked| {
            matches!(asked.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        });
        if self.counters >= COUNTERS_MANY && !is_asked {
            self.snapshot = self.instance.snapshots.get().map(|ask| ask());
        }
    }

    fn place(&self, number: u64) -> Place {
        let time = self.instance.clock.now().time;
        Place { number, time, wall: clock::wall_now() }
    }
}

/// Numbered changes as they are written now.
fn records(
    Place { time, wall, .. }: Place,
    changes: impl IntoIterator<Item = (u64, ByHand)>,
) -> impl Iterator<Item = Record> {
    changes.into_iter().map(move |(number, change)| Record { number, time, wall, change })
}

/// What is in force, as the changes that make it so.
fn standing<'a>(
    overrides: &'a [OverrideRecord],
    identities: &'a Identities,
) -> impl Iterator<Item = ByHand> + 'a {
    let overrides = overrides.iter().cloned().map(ByHand::SetOverride);
    overrides.chain(identities.iter().cloned().map(ByHand::PutIdentity))
}

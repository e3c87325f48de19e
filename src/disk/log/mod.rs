//! THE LOG. Votes, entries, truncations and purges of a node of a cluster, one after the other in
//! one file after the other (segments), as `FORMAT.md` says by byte offset.
//!
//! What waits is written with one write and one sync; what comes meanwhile waits for the next.
//! So a vote is on disk only after all that was asked for before it. The first error ends
//! all writing, because nobody knows what became of the bytes: it is handed to all who wait and all
//! who come, and the process has to stop.
//!
//! [`Log::open`] starts a thread that writes. [`begin`] does not: whoever has the [`Writer`]
//! calls it, step by step, and nothing happens in between.

mod facts;

mod layout;

mod replay;

mod held;

mod shared;

mod writer;

mod open;

mod read;

mod stored;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod oracle;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Os;

use super::error::DiskError;
use super::storage::Storage;

use layout::Record;
use shared::{Item, Shared, Woken};

pub use facts::{Entry, Position, Vote};
pub use layout::VERSION;
pub use open::begin;
pub use shared::{Done, OnFailure, QUEUE_BYTES_MAX, TURN_BYTES_MAX};
pub use stored::Stored;
pub use writer::Writer;

/// Bytes of a segment, unless settings say otherwise.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Bytes of a segment, at least.
pub const SEGMENT_BYTES_MIN: u64 = 4096;

/// Bytes of an entry's payload, at most. In smaller segments it is less: an entry lies in one.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// Bytes of entries that stay in memory, unless settings say otherwise.
pub const RECENT_BYTES: usize = 64 << 20;

/// What nobody waits for is written after this time, unless something else is before.
const NOTES_AFTER: Duration = Duration::from_secs(1);

/// When those who wait are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Once it is on disk: it outlives a loss of power.
    #[default]
    Always,
    /// Once it is written: it outlives the end of the process. It is on disk after this time.
    Interval(Duration),
    /// Once it is written. When it comes to be on disk, the operating system decides.
    Os,
}

/// How a log is opened.
pub struct Settings {
    /// Whose log it is. Another one's is refused.
    pub id: [u8; 16],
    /// Its directory, for people.
    pub path: String,
    /// Bytes of a new segment, [`SEGMENT_BYTES_MIN`] at least.
    pub segment_bytes: u64,
    /// Bytes of entries that stay in memory once they are written.
    pub recent_bytes: usize,
    /// When those who wait are called.
    pub durability: Durability,
    /// The kernel's present run, see [`super::boot_id`].
    pub boot: [u8; 16],
    /// A random number, another one each time.
    pub salt: u64,
    /// Is called with the first error, after which nothing is written any more.
    pub on_failure: Option<OnFailure>,
}

/// What was found when a log was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Records that were ever written and still count.
    pub records: u64,
    /// What was cut off: writing that never came to its end, of which nobody was told that it had.
    pub cut: Option<Cut>,
    /// Whether all is there that somebody was told is there.
    pub tail: Tail,
}

/// Where a log was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub path: String,
    /// Behind so many of its bytes.
    pub offset: u64,
    /// What was found there.
    pub what: String,
}

/// Whether all is there that somebody was told is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// It is.
    Whole,
    /// Power was lost, now or once before, while those who waited were called before it was on
    /// disk. The node must neither vote nor lead under its number: it does not know what it said.
    MayBeGone,
}

/// A log. Reading it never waits for the disk to be synced.
pub struct Log<S: Storage> {
    shared: Arc<Shared<S::File>>,
    path: String,
    payload_max: usize,
    thread: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

impl Settings {
    /// The usual ones.
    pub fn new(id: [u8; 16], path: String, boot: [u8; 16], salt: u64) -> Self {
        Self {
            id,
            path,
            segment_bytes: SEGMENT_BYTES,
            recent_bytes: RECENT_BYTES,
            durability: Durability::Always,
            boot,
            salt,
            on_failure: None,
        }
    }
}

impl<S: Storage> Log<S> {
    /// Opens a log, or begins one in an empty directory, and starts the thread that writes it.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(storage: S, settings: Settings) -> Result<(Self, Recovered), DiskError>
    where
        S: Send + 'static,
        S::File: Send + Sync + 'static,
    {
        let path = settings.path.clone();
        let (log, writer, recovered) = begin(storage, settings)?;
        log.shared.lock().has_thread = true;
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(|| run(writer));
        let thread = thread.map_err(|source| DiskError::Io {
            doing: "start the thread that writes",
            path,
            source,
        })?;
        *log.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok((log, recovered))
    }

    fn new(shared: Arc<Shared<S::File>>, path: String, segment_bytes: u64) -> Self {
        let payload_max = writer::payload_max(segment_bytes).min(PAYLOAD_BYTES_MAX);
        Self { shared, path, payload_max, thread: Mutex::new(None) }
    }

    /// Adds entries. `done` is called once they are on disk (or written, see [`Durability`]); its
    /// error is either about these entries alone (of kind `InvalidInput`: one is not the next, or
    /// too long; none was added) or the one that ended all writing. May wait for room.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        let mut state = self.shared.lock_with_room();
        if state.is_closed {
            drop(state);
            return done(Err(closed()));
        }
        let mut facts = state.facts;
        let is_allowed = entries.iter().try_for_each(|entry| {
            if entry.payload.len() > self.payload_max {
                let (found, allowed) = (entry.payload.len(), self.payload_max);
                let index = entry.position.index;
                return Err(format!("entry {index} has {found} bytes, allowed are {allowed}"));
            }
            facts.push(entry.position)
        });
        if let Err(what) = is_allowed {
            let refused = Some(io::Error::new(io::ErrorKind::InvalidInput, what));
            state.put(Item { record: None, refused, done: Some(done) });
        } else {
            state.facts = facts;
            let mut done = Some(done);
            let count = entries.len();
            for (place, entry) in entries.into_iter().enumerate() {
                let number = state.next_record;
                state.recent.push(number, entry.clone());
                let done = if place + 1 == count { done.take() } else { None };
                state.put(Item { record: Some(Record::Entry(entry)), refused: None, done });
            }
            if done.is_some() {
                state.put(Item { record: None, refused: None, done });
            }
        }
        drop(state);
        self.shared.announce_work();
    }

    /// Notes a vote. `done` is called once it and all that was asked for before it is on disk.
    /// May wait for room.
    pub fn save_vote(&self, vote: Vote, done: Done) {
        let mut state = self.shared.lock_with_room();
        if state.is_closed {
            drop(state);
            return done(Err(closed()));
        }
        state.facts.vote = Some(vote);
        state.put(Item { record: Some(Record::Vote(vote)), refused: None, done: Some(done) });
        drop(state);
        self.shared.announce_work();
    }

    /// Drops the entries behind this index; without one, all. They are never read again, and
    /// gone from the disk before anything that is asked for later is called back. What is purged
    /// stays purged.
    ///
    /// # Errors
    /// The entry of this index is purged, or cannot be read.
    pub fn truncate_after(&self, index: Option<u64>) -> io::Result<()> {
        let kept = match index {
            None => None,
            Some(index) if self.last().is_none_or(|last| last.index <= index) => return Ok(()),
            Some(index) => Some(self.position(index)?.ok_or_else(|| {
                let what = format!("there is no entry {index} behind which to truncate");
                io::Error::new(io::ErrorKind::InvalidInput, what)
            })?),
        };
        let mut state = self.shared.lock();
        state.facts.truncate(kept);
        let next = state.facts.next().unwrap_or_default();
        state.recent.truncate(next);
        state.put(Item { record: Some(Record::Truncate(kept)), refused: None, done: None });
        drop(state);
        self.shared.announce_work();
        Ok(())
    }

    /// Drops the entries up to this one, which are in a snapshot. If the log does not come so far,
    /// it goes on behind it. Files are removed once it is certain that nobody needs them.
    pub fn purge_to(&self, position: Position) {
        let mut state = self.shared.lock();
        state.facts.purge(position);
        state.recent.purge(position.index);
        state.put(Item { record: Some(Record::Purge(position)), refused: None, done: None });
        drop(state);
        self.shared.announce_work();
    }

    /// Notes that entries up to this one are committed. The note may be lost.
    pub fn note_committed(&self, position: Position) {
        let mut state = self.shared.lock();
        state.facts.committed = Some(position);
        // Nobody is woken for it.
        state.put(Item { record: Some(Record::Committed(position)), refused: None, done: None });
    }

    /// The last vote.
    pub fn vote(&self) -> Option<Vote> {
        self.shared.lock().facts.vote
    }

    /// What was last noted as committed.
    pub fn committed(&self) -> Option<Position> {
        self.shared.lock().facts.committed
    }

    /// The index of the first entry.
    pub fn first(&self) -> Option<u64> {
        self.shared.lock().facts.first()
    }

    /// The last entry, or, if there is none, the last one purged.
    pub fn last(&self) -> Option<Position> {
        self.shared.lock().facts.last
    }

    /// The last entry purged.
    pub fn purged(&self) -> Option<Position> {
        self.shared.lock().facts.purged
    }

    /// Whether there is room in the queue, so that nothing has to wait.
    pub fn has_room(&self) -> bool {
        self.shared.lock().has_room()
    }

    /// Whether reading from this index on needs no file.
    pub fn is_in_memory(&self, index: u64) -> bool {
        let state = self.shared.lock();
        state.recent.first().is_none_or(|first| first <= index) || state.facts.first().is_none()
    }

    /// The entries of these indices that there are, from the first one on: one at least, if there
    /// is any, and then so many that their payloads are no more than `bytes_max`.
    ///
    /// # Errors
    /// The operating system's, or (of kind `InvalidData`) a file is no longer as it was written.
    pub fn read(&self, indices: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        read::read(&self.shared, &self.path, indices, bytes_max)
    }

    /// The place of the entry of this index, or of the last one purged.
    ///
    /// # Errors
    /// See [`Log::read`].
    pub fn position(&self, index: u64) -> io::Result<Option<Position>> {
        if let Some(purged) = self.purged()
            && purged.index == index
        {
            return Ok(Some(purged));
        }
        let entries = self.read(index..index.saturating_add(1), 0)?;
        Ok(entries.first().map(|entry| entry.position))
    }

    /// Writes and syncs all that waits, and ends the thread. What comes later is refused.
    ///
    /// # Errors
    /// The first error that there was.
    pub fn close(&self) -> io::Result<()> {
        self.shared.lock().is_closing = true;
        self.shared.announce_work();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread.map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(closed)) => closed,
            Some(Err(_)) => Err(io::Error::other("the thread that writes the log has panicked")),
        }
    }
}

impl<S: Storage> Drop for Log<S> {
    fn drop(&mut self) {
        // Whoever wants to know has closed it.
        let _ = self.close();
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the log is closed")
}

/// Writes a log until it is closed.
fn run<S: Storage>(mut writer: Writer<S>) -> io::Result<()> {
    let mut sync_at = None;
    loop {
        let until = |at: u64| Duration::from_nanos(at.saturating_sub(Os::raw()));
        let wait = sync_at.map_or(NOTES_AFTER, |at| until(at).min(NOTES_AFTER));
        match writer.shared.wait(wait) {
            Woken::Work => writer.turn(),
            Woken::Closing => return writer.close(),
        }
        if sync_at.is_some_and(|at| at <= Os::raw()) {
            writer.sync();
            sync_at = None;
        }
        if let Durability::Interval(interval) = writer.durability
            && sync_at.is_none()
            && writer.is_behind()
        {
            let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
            sync_at = Some(Os::raw().saturating_add(interval));
        }
    }
}

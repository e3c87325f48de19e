//! What readers, those who append and the writer share, under one lock.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::facts::Facts;
use super::held::{Points, Recent};
use super::layout::Record;

/// What is called when what was asked for is on disk, or will never be.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What is called with the first error.
pub type OnFailure = Box<dyn FnOnce(&io::Error) + Send>;

/// Bytes that wait to be written, at most; who brings more waits.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Bytes that are written and synced at once, about.
pub const TURN_BYTES_MAX: usize = 8 << 20;

/// A segment's file, as the writer and readers have it.
pub(super) struct Segment<F> {
    pub(super) number: u64,
    pub(super) seed: u32,
    pub(super) file: F,
}

/// What is to be done next.
pub(super) struct Item {
    pub(super) record: Option<Record>,
    /// It cannot be done, and this is why.
    pub(super) refused: Option<io::Error>,
    pub(super) done: Option<Done>,
}

impl Item {
    fn bytes(&self) -> usize {
        self.record.as_ref().map_or(0, Record::bytes)
    }

    fn is_urgent(&self) -> bool {
        !matches!(self.record, Some(Record::Committed(_)))
    }
}

/// The first error, which ends all writing.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    kind: io::ErrorKind,
    number: Option<i32>,
    text: String,
}

pub(super) struct State<F> {
    /// What the log comes to once all that waits is written.
    pub(super) facts: Facts,
    pub(super) recent: Recent,
    /// Of what is written.
    pub(super) points: Points,
    pub(super) segments: BTreeMap<u64, Arc<Segment<F>>>,
    queue: VecDeque<Item>,
    queue_bytes: usize,
    /// Of what is in the queue, all but notes.
    urgent: usize,
    /// The number of the next record that is put into the queue.
    pub(super) next_record: u64,
    pub(super) failure: Option<Failure>,
    /// A thread of its own writes, so waiting for it makes sense.
    pub(super) has_thread: bool,
    pub(super) is_closing: bool,
    pub(super) is_closed: bool,
}

pub(super) struct Shared<F> {
    state: Mutex<State<F>>,
    /// There is something to write.
    work: Condvar,
    /// There is room in the queue.
    room: Condvar,
}

/// Why the writer need not wait any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// There may be something to do.
    Work,
    /// All is done, and nothing more comes.
    Closing,
}

impl Failure {
    pub(super) fn of(error: &io::Error) -> Self {
        Self { kind: error.kind(), number: error.raw_os_error(), text: error.to_string() }
    }

    /// The error once more.
    pub(super) fn error(&self) -> io::Error {
        match self.number {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::new(self.kind, self.text.clone()),
        }
    }
}

impl<F> State<F> {
    pub(super) fn new(facts: Facts, recent: Recent, points: Points, next_record: u64) -> Self {
        Self {
            facts,
            recent,
            points,
            segments: BTreeMap::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            urgent: 0,
            next_record,
            failure: None,
            has_thread: false,
            is_closing: false,
            is_closed: false,
        }
    }

    pub(super) fn put(&mut self, item: Item) {
        if self.is_closed {
            return;
        }
        self.queue_bytes += item.bytes();
        self.urgent += usize::from(item.is_urgent());
        self.next_record += u64::from(item.record.is_some());
        self.queue.push_back(item);
    }

    /// Whether nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.queue_bytes <= QUEUE_BYTES_MAX || self.is_closed
    }

    /// What is done in one turn.
    pub(super) fn take(&mut self, items: &mut Vec<Item>) {
        let mut bytes = 0;
        while bytes < TURN_BYTES_MAX
            && let Some(item) = self.queue.pop_front()
        {
            bytes += item.bytes();
            self.urgent -= usize::from(item.is_urgent());
            items.push(item);
        }
        self.queue_bytes -= bytes;
    }
}

impl<F> Shared<F> {
    pub(super) fn new(state: State<F>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(state), work: Condvar::new(), room: Condvar::new() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks once there is room in the queue.
    pub(super) fn lock_with_room(&self) -> MutexGuard<'_, State<F>> {
        let state = self.lock();
        self.room
            .wait_while(state, |state| state.has_thread && !state.has_room())
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn announce_work(&self) {
        self.work.notify_one();
    }

    pub(super) fn announce_room(&self) {
        self.room.notify_all();
    }

    /// Waits until there is something to do, but no longer than this.
    pub(super) fn wait(&self, longest: Duration) -> Woken {
        let idle = |state: &mut State<F>| state.urgent == 0 && !state.is_closing;
        let waited = self.work.wait_timeout_while(self.lock(), longest, idle);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if state.urgent == 0 && state.is_closing { Woken::Closing } else { Woken::Work }
    }
}

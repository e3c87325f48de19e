//! Changes by hand on their way to the disk. Whoever makes one hands it over in its turn and is told
//! once it is kept; whoever has the disk takes all that wait together, so that many share one sync.
//!
//! Without a data directory nothing is kept and nobody waits.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::policy::ByHand;

/// Changes that wait for the disk; no more are made then.
const WAITING_MAX: usize = 65_536;

/// Changes on their way.
#[derive(Default)]
pub struct Changes {
    queue: Mutex<Queue>,
    filled: Condvar,
    /// Whether anybody keeps them.
    are_kept: AtomicBool,
    /// Whether more counters were set than are kept at a time.
    is_full: AtomicBool,
    /// Counters set by changes with numbers up to this are in every snapshot that may be restored.
    in_snapshots: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// Number of the last change.
    last: u64,
    waiting: Vec<(u64, ByHand)>,
    replies: Vec<oneshot::Sender<Result<(), NotKept>>>,
    is_over: bool,
}

/// Operator: what was changed holds, and is not on disk: a restart may forget it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotKept;

impl core::fmt::Display for NotKept {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(
            "the change holds, but could not be written to the data directory: a restart may \
             forget it; the log says why",
        )
    }
}

/// Too many changes wait, or too many counters were set since the last snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl core::fmt::Display for Full {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("more is changed by hand than the disk keeps up with; nothing was changed")
    }
}

/// Tells when a change is on disk.
#[derive(Debug, Default)]
pub struct Kept(Option<oneshot::Receiver<Result<(), NotKept>>>);

impl Future for Kept {
    type Output = Result<(), NotKept>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(receiver) = &mut self.0 else { return Poll::Ready(Ok(())) };
        // Whoever keeps changes is gone: this one is not kept.
        Pin::new(receiver).poll(context).map(|told| told.unwrap_or(Err(NotKept)))
    }
}

/// The right to make a change that is kept. Changes are kept in the order in which they are made,
/// and none is made while the moment of a snapshot is marked, so each is before it or after it.
pub struct Turn<'a> {
    queue: MutexGuard<'a, Queue>,
    filled: &'a Condvar,
}

/// Changes that are to be kept, and who wants to know.
#[derive(Default)]
pub struct Batch {
    /// Each with its number.
    pub changes: Vec<(u64, ByHand)>,
    /// Number of the last change, taken here or before.
    pub last: u64,
    /// No more will come.
    pub is_last: bool,
    replies: Vec<oneshot::Sender<Result<(), NotKept>>>,
}

impl Batch {
    /// Tells everybody what became of their changes.
    pub fn tell(&mut self, told: Result<(), NotKept>) {
        for reply in self.replies.drain(..) {
            // Whoever asked may be gone.
            let _ = reply.send(told);
        }
    }

    /// Takes in the changes that came after these.
    pub fn join(&mut self, mut after: Self) {
        self.changes.append(&mut after.changes);
        self.replies.append(&mut after.replies);
        (self.last, self.is_last) = (after.last, self.is_last | after.is_last);
    }
}

impl Changes {
    /// From now on changes are kept, numbered after this one.
    pub fn keep_after(&self, last: u64) {
        self.lock().last = last;
        self.are_kept.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn, which lasts for a change of a few counters. `None`: nothing is kept.
    pub fn turn(&self) -> Option<Turn<'_>> {
        if !self.are_kept.load(Ordering::Acquire) {
            return None;
        }
        Some(Turn { queue: self.lock(), filled: &self.filled })
    }

    /// Tests whether one more change may be made now.
    ///
    /// # Errors
    /// If too many wait.
    pub fn has_room(&self) -> Result<(), Full> {
        match self.turn() {
            Some(turn) if turn.queue.waiting.len() >= WAITING_MAX => Err(Full),
            _ => Ok(()),
        }
    }

    /// Hands over a change that was just made. Whoever changes overrides and identities holds a lock
    /// that gives these changes their order.
    pub fn keep(&self, change: ByHand) -> Kept {
        self.turn().map(|mut turn| turn.keep(change)).unwrap_or_default()
    }

    /// As [`Changes::turn`], to set counters.
    ///
    /// # Errors
    /// If too many changes wait, or too many counters were set since the last snapshots.
    pub fn turn_to_set(&self) -> Result<Option<Turn<'_>>, Full> {
        match self.turn() {
            Some(_) if self.is_full.load(Ordering::Relaxed) => Err(Full),
            Some(turn) if turn.queue.waiting.len() >= WAITING_MAX => Err(Full),
            turn => Ok(turn),
        }
    }

    /// Waits until changes come, or so long, and takes them.
    pub fn take(&self, patience: Duration) -> Batch {
        let queue = self.lock();
        let is_empty = |queue: &mut Queue| queue.waiting.is_empty() && !queue.is_over;
        let waited = self.filled.wait_timeout_while(queue, patience, is_empty);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.take()
    }

    /// No more changes will come: whoever waits in [`Changes::take`] is told so.
    pub fn end(&self) {
        self.lock().is_over = true;
        self.filled.notify_all();
    }

    /// Notes whether no more counters can be set for now.
    pub fn note_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Relaxed);
    }

    /// Notes that every snapshot that may be restored has the counters set by changes with numbers
    /// up to this.
    pub fn note_in_snapshots(&self, number: u64) {
        self.in_snapshots.fetch_max(number, Ordering::Relaxed);
    }

    /// Up to which number counters need not be kept any more.
    pub fn in_snapshots(&self) -> u64 {
        self.in_snapshots.load(Ordering::Relaxed)
    }
}

impl Queue {
    fn take(&mut self) -> Batch {
        Batch {
            changes: core::mem::take(&mut self.waiting),
            replies: core::mem::take(&mut self.replies),
            last: self.last,
            is_last: self.is_over,
        }
    }
}

impl Turn<'_> {
    /// Number of the last change.
    pub fn last(&self) -> u64 {
        self.queue.last
    }

    /// Hands over a change that was made in this turn.
    pub fn keep(&mut self, change: ByHand) -> Kept {
        let queue = &mut *self.queue;
        queue.last += 1;
        queue.waiting.push((queue.last, change));
        let (reply, kept) = oneshot::channel();
        queue.replies.push(reply);
        self.filled.notify_all();
        Kept(Some(kept))
    }

    /// Takes all changes that wait.
    pub fn take(&mut self) -> Batch {
        self.queue.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(number: u8) -> ByHand {
        let (api, attribute) = ("a".into(), "k".into());
        ByHand::RemoveIdentity { api, attribute, value: [number].into() }
    }

    #[tokio::test]
    async fn many_changes_are_taken_together_and_all_are_told() {
        let changes = Changes::default();
        assert!(changes.turn().is_none(), "nobody keeps them");
        assert_eq!(Kept::default().await, Ok(()));
        changes.keep_after(6);
        changes.has_room().unwrap();
        let first = changes.keep(change(1));
        let second = changes.turn_to_set().unwrap().unwrap().keep(change(2));
        let mut batch = changes.take(Duration::ZERO);
        assert_eq!(batch.changes, [(7, change(1)), (8, change(2))]);
        assert_eq!((batch.last, batch.is_last), (8, false));
        batch.tell(Ok(()));
        assert_eq!((first.await, second.await), (Ok(()), Ok(())));
        let third = changes.turn().unwrap().keep(change(3));
        drop(changes.take(Duration::ZERO));
        assert_eq!(third.await, Err(NotKept), "whoever was to keep it is gone");
        changes.end();
        assert!(changes.take(Duration::from_secs(60)).is_last);
    }

    #[test]
    fn there_may_be_too_many() {
        let changes = Changes::default();
        changes.keep_after(0);
        changes.note_full(true);
        assert_eq!(changes.turn_to_set().err(), Some(Full));
        changes.note_full(false);
        for _ in 0..WAITING_MAX {
            drop(changes.turn_to_set().unwrap().unwrap().keep(change(1)));
        }
        assert_eq!(changes.has_room(), Err(Full));
        assert_eq!(changes.turn_to_set().err(), Some(Full));
    }
}

//! Raft's log: the one of [`crate::disk::log`], in Raft's words.

use core::fmt::Debug;
use core::ops::{Bound, RangeBounds};
use std::io;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};

use crate::disk::Storage;
use crate::disk::log::{self, Log, Position};

use super::aside::aside;
use super::types::{Entry, LeaderId, LogEntry, LogId, TypeConfig, Vote};
use super::wire;

/// Bytes of entries that are read at once, at most, but for one entry that is longer.
pub(super) const READ_BYTES_MAX: usize = 2 << 20;

/// Kinds of entries in the log. Their bytes are those of a peer's frame.
const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// A node's log. A clone is the same one.
pub(super) struct LogStore<S: Storage> {
    log: Arc<Log<S>>,
}

impl<S: Storage> Clone for LogStore<S> {
    fn clone(&self) -> Self {
        Self { log: Arc::clone(&self.log) }
    }
}

impl<S> LogStore<S>
where
    S: Storage + Send + Sync + 'static,
    S::File: Send + Sync,
{
    /// This log, for Raft.
    pub(super) fn new(log: Arc<Log<S>>) -> Self {
        Self { log }
    }

    /// Runs what may wait for the disk where nothing else waits for it.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Log<S>) -> T + Send + 'static,
    ) -> io::Result<T> {
        let log = Arc::clone(&self.log);
        aside(move || work(&log)).await
    }

    /// Entries from the first of these indices on, one at least if there is any.
    async fn some(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        let entries = if self.log.is_in_memory(from) {
            self.log.read(from..to, bytes_max)
        } else {
            self.aside(move |log| log.read(from..to, bytes_max)).await?
        };
        entries?.into_iter().map(entry_of).collect()
    }

    /// Entries of these indices, read as they are asked for.
    fn rest(
        &self,
        from: u64,
        to: u64,
    ) -> impl Stream<Item = io::Result<LogEntry>> + Send + 'static {
        let store = self.clone();
        let parts = stream::try_unfold((store, from), move |(store, from)| async move {
            let entries = store.some(from, to, READ_BYTES_MAX).await?;
            let next = entries.last().map(|entry| entry.log_id.index.saturating_add(1));
            Ok::<_, io::Error>(next.map(|next| {
                let entries = stream::iter(entries.into_iter().map(Ok::<_, io::Error>));
                (entries, (store, next))
            }))
        });
        parts.try_flatten().boxed()
    }
}

impl<S> RaftLogReader<TypeConfig> for LogStore<S>
where
    S: Storage + Send + Sync + 'static,
    S::File: Send + Sync,
{
    /// All of it in memory: for few entries. Whoever reads many takes the stream.
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<LogEntry>, io::Error> {
        let (from, to) = indices(&range);
        self.some(from, to, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.log.vote().map(vote_of))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<LogEntry>, io::Error> {
        self.some(start, end, READ_BYTES_MAX).await
    }

    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<LogEntry, io::Error>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = indices(&range);
        self.rest(from, to)
    }
}

impl<S> RaftLogStorage<TypeConfig> for LogStore<S>
where
    S: Storage + Send + Sync + 'static,
    S::File: Send + Sync,
{
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        Ok(LogState {
            last_purged_log_id: self.log.purged().map(log_id_of),
            last_log_id: self.log.last().map(log_id_of),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (sender, saved) = tokio::sync::oneshot::channel();
        let vote = log::Vote {
            term: vote.leader_id.term,
            node: vote.leader_id.node_id,
            is_committed: vote.committed,
        };
        let done: log::Done = Box::new(move |outcome| {
            // Whoever asked may have gone.
            let _ = sender.send(outcome);
        });
        if self.log.has_room() {
            self.log.save_vote(vote, done);
        } else {
            self.aside(move |log| log.save_vote(vote, done)).await?;
        }
        saved.await.map_err(io::Error::other)?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.log.note_committed(position_of(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.committed().map(log_id_of))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Result<Vec<_>, io::Error> = entries.into_iter().map(stored).collect();
        let entries = entries?;
        let done: log::Done = Box::new(move |outcome| callback.io_completed(outcome));
        if self.log.has_room() {
            self.log.append(entries, done);
            return Ok(());
        }
        self.aside(move |log| log.append(entries, done)).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.log.truncate_after(last.map(|last| last.index))
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.log.purge_to(position_of(&upto));
        Ok(())
    }
}

/// From the first index to the one after the last.
fn indices(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(from) => from.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(to) => to.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

fn position_of(log_id: &LogId) -> Position {
    let LeaderId { term, node_id: node } = log_id.leader_id;
    Position { term, node, index: log_id.index }
}

fn log_id_of(position: Position) -> LogId {
    let Position { term, node, index } = position;
    LogId { leader_id: LeaderId { term, node_id: node }, index }
}

fn vote_of(vote: log::Vote) -> Vote {
    let leader_id = LeaderId { term: vote.term, node_id: vote.node };
    Vote { leader_id, committed: vote.is_committed }
}

/// As the log has it.
fn stored(entry: LogEntry) -> io::Result<log::Entry> {
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (BLANK, bytes::Bytes::new()),
        EntryPayload::Normal(Entry(bytes)) => (NORMAL, bytes),
        EntryPayload::Membership(members) => (MEMBERSHIP, wire::encode_membership(&members)?),
    };
    Ok(log::Entry { position: position_of(&entry.log_id), kind, payload })
}

/// As Raft has it.
pub(super) fn entry_of(entry: log::Entry) -> io::Result<LogEntry> {
    let payload = match entry.kind {
        BLANK => EntryPayload::Blank,
        NORMAL => EntryPayload::Normal(Entry(entry.payload)),
        MEMBERSHIP => EntryPayload::Membership(wire::decode_membership(&entry.payload)?),
        kind => {
            let what =
                format!("entry {} of the log is of unknown kind {kind}", entry.position.index);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    };
    Ok(LogEntry { log_id: log_id_of(entry.position), payload })
}

#[cfg(test)]
mod tests;

//! A log and a machine in memory, for Raft, that keep what they are given.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use openraft::EntryPayload;
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder,
    RaftStateMachine,
};

use crate::cluster::peer::{Reading, Receiving, Snapshots};
use crate::cluster::types::{
    Applied, Entry, LogEntry, LogId, Membership, Snapshot, SnapshotFile, SnapshotMeta, TypeConfig,
    Vote,
};

#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Logged>>);

#[derive(Default)]
struct Logged {
    entries: BTreeMap<u64, LogEntry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<LogEntry>> {
        let log = self.0.lock().unwrap();
        Ok(log.entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.lock().unwrap().vote)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let log = self.0.lock().unwrap();
        let last = log.entries.values().next_back().map(|entry| entry.log_id).or(log.purged);
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.0.lock().unwrap().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry> + Send,
        I::IntoIter: Send,
    {
        let entries = entries.into_iter().map(|entry| (entry.log_id.index, entry));
        self.0.lock().unwrap().entries.extend(entries);
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |last| last.index + 1);
        self.0.lock().unwrap().entries.split_off(&from);
        Ok(())
    }

    async fn purge(&mut self, to: LogId) -> io::Result<()> {
        let mut log = self.0.lock().unwrap();
        log.purged = Some(to);
        log.entries = log.entries.split_off(&(to.index + 1));
        Ok(())
    }
}

/// A machine that remembers every entry, and its snapshots.
#[derive(Clone, Default)]
pub(super) struct Machine(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    applied: Option<LogId>,
    membership: Membership,
    entries: Vec<Bytes>,
    files: BTreeMap<u64, Bytes>,
    current: Option<(SnapshotMeta, SnapshotFile)>,
    /// Whether the disk of received snapshots is broken.
    refuses: bool,
}

impl Machine {
    pub(super) fn entries(&self) -> Vec<Bytes> {
        self.0.lock().unwrap().entries.clone()
    }

    pub(super) fn has_snapshot(&self) -> bool {
        self.0.lock().unwrap().current.is_some()
    }

    pub(super) fn refuse(&self, refuses: bool) {
        self.0.lock().unwrap().refuses = refuses;
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let mut state = self.0.lock().unwrap();
        let mut out = BytesMut::new();
        for entry in &state.entries {
            out.put_u32_le(entry.len() as u32);
            out.put_slice(entry);
        }
        let number = state.files.len() as u64;
        state.files.insert(number, out.freeze());
        let last_membership = state.membership.clone();
        let meta = SnapshotMeta { last_log_id: state.applied, last_membership };
        let file = SnapshotFile { number };
        state.current = Some((meta.clone(), file));
        Ok(Snapshot { meta, snapshot: file })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        let state = self.0.lock().unwrap();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let mut state = self.0.lock().unwrap();
            state.applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(Entry(bytes)) => state.entries.push(bytes),
                EntryPayload::Membership(members) => {
                    state.membership = Membership::new(Some(entry.log_id), members);
                }
            }
            drop(state);
            if let Some(responder) = responder {
                responder.send(Applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let mut bytes = state.files[&file.number].clone();
        state.entries.clear();
        while !bytes.is_empty() {
            let length = bytes.get_u32_le() as usize;
            let entry = bytes.split_to(length);
            state.entries.push(entry);
        }
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.current = Some((meta.clone(), file));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let current = self.0.lock().unwrap().current.clone();
        Ok(current.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

impl Snapshots for Machine {
    fn read(&self, file: SnapshotFile) -> io::Result<Box<dyn Reading>> {
        Ok(Box::new(self.0.lock().unwrap().files[&file.number].clone()))
    }

    fn receive(&self, _: &SnapshotMeta, length: u64) -> io::Result<Box<dyn Receiving>> {
        if self.0.lock().unwrap().refuses {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(Box::new(Half { machine: self.clone(), length, bytes: BytesMut::new() }))
    }
}

impl Reading for Bytes {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn chunk(&mut self, offset: u64, length: usize) -> io::Result<Bytes> {
        Ok(self.slice(offset as usize..offset as usize + length))
    }
}

struct Half {
    machine: Machine,
    length: u64,
    bytes: BytesMut,
}

impl Receiving for Half {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.put_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<SnapshotFile> {
        assert_eq!(self.bytes.len() as u64, self.length);
        let mut state = self.machine.0.lock().unwrap();
        let number = state.files.len() as u64;
        state.files.insert(number, self.bytes.freeze());
        Ok(SnapshotFile { number })
    }
}

//! openraft's own cases for a log, on real files; and that long reads come in parts.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{
    EntryResponder, IOFlushed, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, OptionalSend, RaftLogReader, StorageError};

use crate::cluster::types::{
    Applied, Entry, LeaderId, LogEntry, LogId, Membership, Snapshot, SnapshotFile, SnapshotMeta,
    TypeConfig, Vote,
};
use crate::disk::Directory;
use crate::disk::log::{Log, Settings};

use super::{LogStore, READ_BYTES_MAX};

/// A directory that is removed in the end.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(recent_bytes: usize) -> (Place, LogStore<Directory>) {
    static PLACES: AtomicU64 = AtomicU64::new(0);
    let number = PLACES.fetch_add(1, Ordering::Relaxed);
    let name = format!("tollkeeper-log-store-{}-{number}", std::process::id());
    let place = Place(std::env::temp_dir().join(name));
    let directory = Directory::open(&place.0).unwrap();
    let settings = Settings {
        segment_bytes: 32 << 10,
        recent_bytes,
        ..Settings::new([1; 16], place.0.display().to_string(), [2; 16], number)
    };
    let (log, _) = Log::open(directory, settings).unwrap();
    (place, LogStore::new(Arc::new(log)))
}

/// Remembers what was applied, and nothing of it.
#[derive(Default)]
struct Machine {
    applied: Option<LogId>,
    membership: Membership,
    snapshot: Option<SnapshotMeta>,
}

struct Builder(SnapshotMeta);

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        Ok(Snapshot { meta: self.0.clone(), snapshot: SnapshotFile { number: 1 } })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(members) = entry.payload {
                self.membership = Membership::new(Some(entry.log_id), members);
            }
            if let Some(responder) = responder {
                responder.send(Applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        self.snapshot = Some(meta.clone());
        Builder(meta)
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        _: SnapshotFile,
    ) -> Result<(), io::Error> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let snapshot = SnapshotFile { number: 1 };
        Ok(self.snapshot.clone().map(|meta| Snapshot { meta, snapshot }))
    }
}

/// Counts the cases: each asks for a log of its own.
struct Stores {
    recent_bytes: usize,
    built: Arc<AtomicU64>,
}

impl StoreBuilder<TypeConfig, LogStore<Directory>, Machine, Place> for Stores {
    async fn build(
        &self,
    ) -> Result<(Place, LogStore<Directory>, Machine), StorageError<TypeConfig>> {
        self.built.fetch_add(1, Ordering::Relaxed);
        let (place, store) = open(self.recent_bytes);
        Ok((place, store, Machine::default()))
    }
}

/// All that openraft asks of a log, with entries in memory and with all of them in files.
#[test]
fn openraft_is_content() {
    for recent_bytes in [1 << 20, 0] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let built = Arc::new(AtomicU64::new(0));
        let stores = Stores { recent_bytes, built: Arc::clone(&built) };
        runtime.block_on(Suite::test_all(stores)).unwrap();
        assert!(built.load(Ordering::Relaxed) >= 44, "{built:?} cases");
    }
}

/// What is read at once is bounded by bytes, an entry at least, and a stream has it all.
#[test]
fn long_reads_come_in_parts() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (recent_bytes, entries) in [(64 << 20, 200_u64), (0, 200)] {
        let (_place, mut store) = open(recent_bytes);
        let entry = |index: u64| {
            let leader_id = LeaderId { term: 1, node_id: 1 };
            let bytes = Bytes::from(vec![index as u8; 30_000]);
            LogEntry::new(LogId { leader_id, index }, EntryPayload::Normal(Entry(bytes)))
        };
        runtime.block_on(async {
            store.append((0..entries).map(entry), IOFlushed::noop()).await.unwrap();
            // All before it is written then.
            store.save_vote(&Vote::new(2, 1)).await.unwrap();
            let part = store.limited_get_log_entries(3, entries).await.unwrap();
            assert_eq!(part.len(), READ_BYTES_MAX / 30_000);
            assert!(part.iter().cloned().eq((3..).take(part.len()).map(entry)));
            let all: Vec<_> = store.entries_stream(5..).await.try_collect().await.unwrap();
            assert!(all.into_iter().eq((5..entries).map(entry)));
        });
    }
}

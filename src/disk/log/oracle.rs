//! The log against one that others wrote: whatever is done to both, both say the same.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use proptest::prelude::*;
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::{Config, RaftLog, Types};

use crate::disk::faulty::Disk;

use super::facts::Position;
use super::tests::{Op, Plain, Run, ops, settings};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ours;

impl Types for Ours {
    type LogId = (u64, u64);
    type LogPayload = Vec<u8>;
    type Vote = (u64, u64);
    type Callback = SyncSender<io::Result<()>>;
    type UserData = String;

    fn log_index(log_id: &Self::LogId) -> u64 {
        log_id.1
    }

    fn payload_size(payload: &Self::LogPayload) -> u64 {
        payload.len() as u64
    }
}

fn id(position: Position) -> (u64, u64) {
    (position.term, position.index)
}

/// Does to the other log what was done to ours.
fn follow(other: &mut RaftLog<Ours>, op: &Op, before: &Plain, now: &Plain) -> io::Result<()> {
    match op {
        Op::Append(..) => {
            let new = now
                .entries
                .values()
                .filter(|entry| before.entries.get(&entry.position.index) != Some(entry));
            let new = new.map(|entry| (id(entry.position), entry.payload.to_vec()));
            other.append(new.collect::<Vec<_>>())?;
        }
        Op::Vote => {
            let vote = now.vote.unwrap();
            other.save_vote((vote.term, vote.node))?;
        }
        Op::Truncate(_) => {
            other.truncate(now.last().map_or(0, |last| last.index + 1))?;
        }
        Op::Purge(_) | Op::Jump(_) => {
            if let Some(purged) = now.purged {
                other.purge(id(purged))?;
            }
        }
        Op::Note => {
            if let Some(committed) = now.committed {
                other.commit(id(committed))?;
            }
        }
        Op::Turn => {
            let (sender, receiver) = std::sync::mpsc::sync_channel(1);
            other.flush(true, Some(sender))?;
            receiver.recv().unwrap()?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn it_says_what_another_log_says(ops in ops(), opened_after in 0..60_usize) {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "tollkeeper-oracle-{}-{}",
            std::process::id(),
            RUNS.fetch_add(1, Ordering::Relaxed)
        );
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let mut config = Config::new(directory.display());
        config.wal.chunk_max_records = Some(20);
        let config = Arc::new(config);
        let mut other = RaftLog::<Ours>::open(Arc::clone(&config)).unwrap();
        let disk = Disk::default();
        let mut run = Run::begin(&disk, settings(1), Plain::default()).unwrap();
        for (number, op) in ops.iter().enumerate() {
            let before = run.now().clone();
            if let Op::Truncate(count) = op {
                // The other one refuses to drop what is committed.
                let kept = before.last().map_or(0, |last| last.index + 1).checked_sub(*count);
                let committed = before.committed.map_or(0, |committed| committed.index + 1);
                if *count > before.entries.len() as u64 || kept.is_none_or(|kept| kept < committed) {
                    continue;
                }
            }
            run.act(op);
            let now = run.now().clone();
            follow(&mut other, op, &before, &now).unwrap();
            if number == opened_after {
                run.act(&Op::Turn);
                follow(&mut other, &Op::Turn, &now, &now).unwrap();
                drop((run, other));
                run = Run::begin(&disk, settings(2), now).unwrap();
                other = RaftLog::open(Arc::clone(&config)).unwrap();
            }
            let state = other.log_state();
            prop_assert_eq!(run.log.last().map(id), state.last().copied());
            prop_assert_eq!(run.log.purged().map(id), state.purged().copied());
            prop_assert_eq!(run.log.committed().map(id), state.committed().copied());
            prop_assert_eq!(
                run.log.vote().map(|vote| (vote.term, vote.node)),
                state.vote().copied()
            );
            let ours = run.log.read(0..u64::MAX, usize::MAX).unwrap();
            let ours: BTreeMap<_, _> =
                ours.into_iter().map(|entry| (id(entry.position), entry.payload.to_vec())).collect();
            let theirs: Result<BTreeMap<_, _>, _> = other.read(0, u64::MAX).collect();
            prop_assert_eq!(ours, theirs.unwrap());
        }
        drop(other);
        std::fs::remove_dir_all(directory).unwrap();
    }
}

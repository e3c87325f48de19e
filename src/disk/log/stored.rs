//! A log as it lies there, for whoever looks into it while nobody writes it. Changes nothing, not
//! even what the next start would mend.

use std::collections::BTreeMap;

use crate::disk::error::DiskError;
use crate::disk::storage::Storage;

use super::facts::{Entry, Facts, Position, Vote};
use super::layout::{Mark, Record};
use super::open::{numbers_of, read_mark, read_segments, split_needed};
use super::replay::{Replayed, name_of, replay};
use super::{Cut, Tail};

/// A log that was read whole. Its segments are in memory, or mapped.
pub struct Stored<S: Storage> {
    path: String,
    id: [u8; 16],
    mark: Option<Mark>,
    segments: Vec<(u64, S::Bytes)>,
    facts: Facts,
    /// Of the entries that count: by index, the number of the record.
    entries: BTreeMap<u64, u64>,
    records: u64,
    bytes: u64,
    cut: Option<Cut>,
    tail: Tail,
}

impl<S: Storage> Stored<S> {
    /// Reads the log of this instance, whose directory is called `path`. `boot` is the kernel's
    /// present run, see [`crate::disk::boot_id`].
    ///
    /// # Errors
    /// See [`DiskError`]; also if there is no log.
    pub fn read(storage: &S, path: &str, id: [u8; 16], boot: [u8; 16]) -> Result<Self, DiskError> {
        let names = storage.names().map_err(|source| DiskError::Io {
            doing: "list",
            path: path.to_owned(),
            source,
        })?;
        let mark = read_mark(storage, &names, path, id)?;
        let needed = split_needed(&mut numbers_of(&names));
        let segments = read_segments(storage, needed, path)?;
        let mut entries = BTreeMap::new();
        let replayed = replay(path, id, mark, &segments, |place, record, facts| match record {
            Record::Entry(entry) => _ = entries.insert(entry.position.index, place.record),
            Record::Truncate(_) => _ = entries.split_off(&facts.next().unwrap_or_default()),
            Record::Purge(position) => {
                entries = entries.split_off(&position.index.saturating_add(1));
            }
            Record::Vote(_) | Record::Committed(_) | Record::Opened(_) => {}
        })?;
        let Replayed { facts, next, torn, .. } = replayed;
        let cut = torn.map(|what| Cut {
            path: format!("{path}/{}", name_of(next.segment)),
            offset: next.offset,
            what,
        });
        let is_short = mark.is_some_and(|mark| mark.may_be_short(boot));
        Ok(Self {
            path: path.to_owned(),
            id,
            mark,
            facts,
            entries,
            records: next.record - 1,
            bytes: segments.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
            segments,
            cut,
            tail: if is_short { Tail::MayBeGone } else { Tail::Whole },
        })
    }

    /// Hands over the entries that count, in order. Ends with the first error.
    ///
    /// # Errors
    /// That of `each`.
    pub fn for_each<E>(&self, mut each: impl FnMut(Entry) -> Result<(), E>) -> Result<(), E> {
        let mut outcome = Ok(());
        let replayed =
            replay(&self.path, self.id, self.mark, &self.segments, |place, record, _| {
                let Record::Entry(entry) = record else { return };
                let counts = self.entries.get(&entry.position.index) == Some(&place.record);
                if counts && outcome.is_ok() {
                    outcome = each(entry.clone());
                }
            });
        debug_assert!(replayed.is_ok(), "it was read before");
        outcome
    }

    /// The last vote.
    pub fn vote(&self) -> Option<Vote> {
        self.facts.vote
    }

    /// The index of the first entry.
    pub fn first(&self) -> Option<u64> {
        self.facts.first()
    }

    /// The last entry, or, if there is none, the last one purged.
    pub fn last(&self) -> Option<Position> {
        self.facts.last
    }

    /// The last entry purged.
    pub fn purged(&self) -> Option<Position> {
        self.facts.purged
    }

    /// What was last noted as committed. Later entries may be as well: the note may be lost.
    pub fn committed(&self) -> Option<Position> {
        self.facts.committed
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Bytes of them.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Records that were ever written and still count.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// What the next start will cut off.
    pub fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }

    /// Whether all is there that somebody was told is there.
    pub fn tail(&self) -> Tail {
        self.tail
    }
}

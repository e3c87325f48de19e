//! Writes the log, step by step: what waits goes out with one write and one sync, then whoever
//! waited for it is called.

use std::io;
use std::sync::Arc;

use crate::disk::home::put_whole;
use crate::disk::storage::{File, Storage};
use crate::engine::mutant::{Mutant, planted};

use super::Durability;
use super::facts::Facts;
use super::layout::{Mark, RECORD_HEADER_BYTES, Record, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::replay::{Place, apply, name_of};
use super::shared::{Failure, Item, OnFailure, Segment, Shared};

/// The file that says how the log was left.
pub(super) const MARK: &str = "mark";

/// How names of files end that are being written.
pub(super) const UNFINISHED: &str = ".tmp";

/// Writes a log. Whoever has it decides when.
pub struct Writer<S: Storage> {
    pub(super) storage: S,
    pub(super) shared: Arc<Shared<S::File>>,
    pub(super) durability: Durability,
    pub(super) segment_bytes: u64,
    pub(super) on_failure: Option<OnFailure>,
    pub(super) mark: Mark,
    pub(super) active: Arc<Segment<S::File>>,
    /// Bytes that the active segment has room for.
    pub(super) room: u64,
    /// Where the next record goes.
    pub(super) next: Place,
    /// Records up to this one are synced.
    pub(super) floor: u64,
    /// What the written records come to.
    pub(super) facts: Facts,
    /// Segments but the active one, and the highest index that each has an entry of.
    pub(super) sealed: Vec<(u64, Option<u64>)>,
    /// The highest index that the active one has an entry of.
    pub(super) highest: Option<u64>,
    pub(super) buffer: Vec<u8>,
    pub(super) written: Vec<Written>,
}

/// What readers must be told once it is written.
pub(super) enum Written {
    Entry(u64, Place),
    Truncated(Facts),
    Purged(Facts),
}

impl<S: Storage> Writer<S> {
    /// Writes what waits, syncs if somebody waits for that, and calls them, the last one first;
    /// those of the next turn come after them. The first error ends all writing: it is handed to
    /// everybody from then on.
    pub fn turn(&mut self) {
        let mut items = Vec::new();
        let failure = {
            let mut state = self.shared.lock();
            state.take(&mut items);
            state.failure.clone()
        };
        self.shared.announce_room();
        if let Some(failure) = failure {
            return call(items, &Err(failure));
        }
        let outcome = self.put(&mut items).map_err(|error| self.fail(&error));
        let purges = items.iter().any(|item| matches!(item.record, Some(Record::Purge(_))));
        call(items, &outcome);
        if purges
            && outcome.is_ok()
            && let Err(error) = self.unlink()
        {
            self.fail(&error);
        }
    }

    /// Waits until all that was written is on disk.
    pub fn sync(&mut self) {
        let is_well = self.shared.lock().failure.is_none();
        if is_well && let Err(error) = self.sync_active() {
            self.fail(&error);
        }
    }

    /// Whether something is written that is not on disk.
    pub fn is_behind(&self) -> bool {
        self.floor + 1 < self.next.record
    }

    /// Writes and syncs all that waits, and notes that the log was left in order. What comes
    /// later is refused.
    ///
    /// # Errors
    /// The first error that there was.
    pub fn close(&mut self) -> io::Result<()> {
        loop {
            self.turn();
            let mut state = self.shared.lock();
            if state.is_idle() {
                state.is_closed = true;
                break;
            }
        }
        self.shared.announce_room();
        self.sync();
        let failure = self.shared.lock().failure.clone();
        if let Some(failure) = failure {
            return Err(failure.error());
        }
        self.mark.is_weak = false;
        self.put_mark().inspect_err(|error| drop(self.fail(error)))
    }

    /// The last vote that was written; after a turn its caller was told that it is on disk.
    #[cfg(test)]
    pub(crate) fn vote(&self) -> Option<super::Vote> {
        self.facts.vote
    }

    /// Keeps the first error.
    fn fail(&mut self, error: &io::Error) -> Failure {
        let failure = Failure::of(error);
        self.shared.lock().failure.get_or_insert_with(|| failure.clone());
        if let Some(on_failure) = self.on_failure.take() {
            on_failure(error);
        }
        failure
    }

    fn put(&mut self, items: &mut [Item]) -> io::Result<()> {
        let mut is_awaited = false;
        for item in items {
            is_awaited |= match &item.record {
                // Segments are removed only once it is certain that they are not needed.
                Some(Record::Purge(_)) => true,
                Some(Record::Entry(_)) if planted(Mutant::EntriesNotSynced) => false,
                Some(Record::Vote(_)) if planted(Mutant::VoteNotSynced) => false,
                _ => item.done.is_some() && self.durability == Durability::Always,
            };
            if let Some(record) = &item.record {
                self.encode(record)?;
            }
        }
        self.write()?;
        if is_awaited { self.sync_active() } else { Ok(()) }
    }

    /// Puts a record into the buffer, or, if the segment is full, into the next one's.
    pub(super) fn encode(&mut self, record: &Record) -> io::Result<()> {
        if self.next.offset + record.bytes() as u64 > self.room {
            self.rotate()?;
        }
        let place = self.next;
        // Readers were promised that it can be read.
        apply(&mut self.facts, record).map_err(io::Error::other)?;
        match record {
            Record::Entry(entry) => {
                let index = entry.position.index;
                self.highest = self.highest.max(Some(index));
                self.written.push(Written::Entry(index, place));
            }
            Record::Truncate(_) => self.written.push(Written::Truncated(self.facts)),
            Record::Purge(_) => self.written.push(Written::Purged(self.facts)),
            Record::Vote(_) | Record::Committed(_) | Record::Opened(_) => {}
        }
        let numbers = (place.record, self.floor, place.chain);
        self.next.chain = record.encode(&mut self.buffer, self.active.seed, numbers);
        self.next.record += 1;
        self.next.offset += record.bytes() as u64;
        Ok(())
    }

    /// Writes what is in the buffer, and lets readers see it.
    pub(super) fn write(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let offset = self.next.offset - self.buffer.len() as u64;
        self.active.file.write_all_at(&self.buffer, offset)?;
        self.buffer.clear();
        let mut state = self.shared.lock();
        for written in self.written.drain(..) {
            match written {
                Written::Entry(index, place) => state.points.push(index, place),
                Written::Truncated(facts) => {
                    state.points.truncate(facts.next().unwrap_or_default());
                }
                Written::Purged(facts) if facts.first().is_none() => state.points.clear(),
                Written::Purged(facts) => {
                    state.points.purge(facts.purged.map_or(0, |purged| purged.index));
                }
            }
        }
        state.recent.evict(self.next.record - 1);
        Ok(())
    }

    fn sync_active(&mut self) -> io::Result<()> {
        if self.is_behind() {
            self.active.file.sync()?;
            self.floor = self.next.record - 1;
        }
        Ok(())
    }

    /// Goes on in a new segment. The one before is on disk then, and the new one's name.
    pub(super) fn rotate(&mut self) -> io::Result<()> {
        self.write()?;
        self.sync_active()?;
        let header = SegmentHeader {
            id: self.mark.id,
            number: self.next.segment + 1,
            first_record: self.next.record,
            bytes: self.segment_bytes,
            chain: self.next.chain,
            facts: self.facts,
        };
        let active = create(&self.storage, &header)?;
        self.sealed.push((self.active.number, self.highest.take()));
        self.shared.lock().segments.insert(active.number, Arc::clone(&active));
        self.active = active;
        self.room = header.bytes;
        self.next.segment = header.number;
        self.next.offset = SEGMENT_HEADER_BYTES as u64;
        self.put_mark()
    }

    /// Notes how the log is. All that the floor names is on disk.
    pub(super) fn put_mark(&mut self) -> io::Result<()> {
        self.mark.segment = self.active.number;
        self.mark.floor = self.floor;
        put_whole(&self.storage, &format!("{MARK}{UNFINISHED}"), MARK, &self.mark.encode())
    }

    /// Removes the segments that only have entries that are purged. That they are is on disk.
    fn unlink(&mut self) -> io::Result<()> {
        let Some(purged) = self.facts.purged else { return Ok(()) };
        let is_needed = |highest: &Option<u64>| highest.is_some_and(|index| index > purged.index);
        let needed = self.sealed.iter().position(|(_, highest)| is_needed(highest));
        for (number, _) in self.sealed.drain(..needed.unwrap_or(self.sealed.len())) {
            self.shared.lock().segments.remove(&number);
            self.storage.remove(&name_of(number))?;
        }
        Ok(())
    }
}

/// The most bytes that an entry's payload may have in segments of this size.
pub(super) const fn payload_max(segment_bytes: u64) -> usize {
    segment_bytes as usize - SEGMENT_HEADER_BYTES - RECORD_HEADER_BYTES
}

/// Makes a segment. It has its name only once it is whole, so none is ever found by halves.
pub(super) fn create<S: Storage>(
    storage: &S,
    header: &SegmentHeader,
) -> io::Result<Arc<Segment<S::File>>> {
    let name = name_of(header.number);
    let unfinished = format!("{name}{UNFINISHED}");
    let file = storage.create(&unfinished)?;
    file.allocate(header.bytes)?;
    let bytes = header.encode();
    file.write_all_at(&bytes, 0)?;
    file.sync()?;
    storage.rename(&unfinished, &name)?;
    storage.sync_names()?;
    let (_, seed) = SegmentHeader::decode(&bytes).expect("it was just encoded");
    Ok(Arc::new(Segment { number: header.number, seed, file }))
}

/// Calls everybody, the last one first: whoever follows how far the log is on disk then hears of
/// it once.
fn call(items: Vec<Item>, outcome: &Result<(), Failure>) {
    for Item { refused, done, .. } in items.into_iter().rev() {
        let Some(done) = done else { continue };
        done(match (outcome, refused) {
            (Err(failure), _) => Err(failure.error()),
            (Ok(()), Some(refused)) => Err(refused),
            (Ok(()), None) => Ok(()),
        });
    }
}

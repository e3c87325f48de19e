//! Entries at hand: the recent ones in memory, and where in the segments the older ones are.

use std::collections::VecDeque;

use super::facts::Entry;
use super::replay::Place;

/// The places of entries are noted at about this distance. Between two of them one has to look.
pub(super) const POINT_BYTES: u64 = 64 << 10;

/// What an entry in memory takes beside its payload, about.
const ENTRY_BYTES: usize = 96;

/// The last entries of the log, without a gap. All that are not written yet are among them.
pub(super) struct Recent {
    entries: VecDeque<(u64, Entry)>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Adds the record with this number.
    pub(super) fn push(&mut self, number: u64, entry: Entry) {
        self.bytes += ENTRY_BYTES + entry.payload.len();
        self.entries.push_back((number, entry));
    }

    /// Drops the oldest of those that are written, until the others fit.
    pub(super) fn evict(&mut self, written: u64) {
        while self.bytes > self.bytes_max
            && self.entries.front().is_some_and(|(number, _)| *number <= written)
        {
            let oldest = self.entries.pop_front();
            self.forget(oldest);
        }
    }

    /// Drops those from this index on.
    pub(super) fn truncate(&mut self, next: u64) {
        while self.entries.back().is_some_and(|(_, entry)| entry.position.index >= next) {
            let last = self.entries.pop_back();
            self.forget(last);
        }
    }

    /// Drops those up to this index.
    pub(super) fn purge(&mut self, index: u64) {
        while self.entries.front().is_some_and(|(_, entry)| entry.position.index <= index) {
            let oldest = self.entries.pop_front();
            self.forget(oldest);
        }
    }

    fn forget(&mut self, entry: Option<(u64, Entry)>) {
        self.bytes -= entry.map_or(0, |(_, entry)| ENTRY_BYTES + entry.payload.len());
    }

    /// The index of the oldest one.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.front().map(|(_, entry)| entry.position.index)
    }

    /// Those from this index on; none if it is not here.
    pub(super) fn from(&self, index: u64) -> impl Iterator<Item = &Entry> {
        let skipped = self.first().and_then(|first| index.checked_sub(first));
        let skipped = skipped.map_or(usize::MAX, |skipped| skipped as usize);
        self.entries.iter().skip(skipped).map(|(_, entry)| entry)
    }
}

/// Where an entry is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) index: u64,
    pub(super) place: Place,
}

/// Places of some of the written entries: of the first one of each segment, the first one after
/// each truncation, and in between every [`POINT_BYTES`]. So from one to the next all entries
/// follow one another.
#[derive(Default)]
pub(super) struct Points {
    points: VecDeque<Point>,
    /// What follows does not follow the last point.
    is_broken: bool,
}

impl Points {
    /// Notes an entry that was written.
    pub(super) fn push(&mut self, index: u64, place: Place) {
        let is_near = self.points.back().is_some_and(|last| {
            last.place.segment == place.segment && place.offset - last.place.offset < POINT_BYTES
        });
        if !is_near || self.is_broken {
            self.points.push_back(Point { index, place });
            self.is_broken = false;
        }
    }

    /// Entries from this index on are none any more.
    pub(super) fn truncate(&mut self, next: u64) {
        while self.points.back().is_some_and(|point| point.index >= next) {
            self.points.pop_back();
        }
        self.is_broken = true;
    }

    /// Entries up to this index are none any more.
    pub(super) fn purge(&mut self, index: u64) {
        while self.points.get(1).is_some_and(|point| point.index <= index + 1) {
            self.points.pop_front();
        }
    }

    /// There are no entries.
    pub(super) fn clear(&mut self) {
        self.points.clear();
        self.is_broken = true;
    }

    /// The point at or before this index, and the index from which another one leads.
    pub(super) fn find(&self, index: u64) -> Option<(Point, u64)> {
        let after = self.points.partition_point(|point| point.index <= index);
        let point = self.points.get(after.checked_sub(1)?)?;
        Some((*point, self.points.get(after).map_or(u64::MAX, |next| next.index)))
    }
}

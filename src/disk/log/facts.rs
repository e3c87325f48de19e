//! What a log comes to: the vote, and which entries there are. Pure.

use bytes::Bytes;

/// The place of an entry in the log, and who put it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The term.
    pub term: u64,
    /// The leader of that term.
    pub node: u64,
    /// Entries are numbered one after the other.
    pub index: u64,
}

/// Whom a node stands by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vote {
    /// The term.
    pub term: u64,
    /// The node voted for.
    pub node: u64,
    /// Whether a quorum granted it.
    pub is_committed: bool,
}

/// An entry. A clone shares the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub position: Position,
    /// What kind of entry, in the words of whoever put it there.
    pub kind: u8,
    /// Its bytes.
    pub payload: Bytes,
}

/// What all records up to one come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) vote: Option<Vote>,
    /// The last entry, or the last one purged.
    pub(super) last: Option<Position>,
    pub(super) purged: Option<Position>,
    pub(super) committed: Option<Position>,
    /// Index of the first entry, if there is one.
    start: u64,
}

impl Facts {
    /// As a segment's header says it. Entries before the segment are not counted.
    pub(super) fn at_segment(
        vote: Option<Vote>,
        last: Option<Position>,
        purged: Option<Position>,
        committed: Option<Position>,
    ) -> Self {
        let start = last.map_or(0, |last| last.index.saturating_add(1));
        Self { vote, last, purged, committed, start }
    }

    /// Index of the first entry, if there is one.
    pub(super) fn first(&self) -> Option<u64> {
        self.last.filter(|last| last.index >= self.start).map(|_| self.start)
    }

    /// The index that the next entry must have; `None`: any.
    pub(super) fn next(&self) -> Option<u64> {
        self.last.map(|last| last.index.saturating_add(1))
    }

    /// Counts one more entry.
    ///
    /// # Errors
    /// It is not the next one.
    pub(super) fn push(&mut self, position: Position) -> Result<(), String> {
        if let Some(next) = self.next()
            && position.index != next
        {
            return Err(format!("entry {} where {next} is the next", position.index));
        }
        if self.first().is_none() {
            self.start = position.index;
        }
        self.last = Some(position);
        Ok(())
    }

    /// Forgets the entries behind this one; without it, all.
    pub(super) fn truncate(&mut self, kept: Option<Position>) {
        let last = kept.max_by_index(self.purged);
        let next = last.map_or(0, |last| last.index.saturating_add(1));
        self.last = last;
        self.start = self.start.min(next);
    }

    /// Forgets the entries up to this one.
    pub(super) fn purge(&mut self, position: Position) {
        if self.purged.is_some_and(|purged| purged.index >= position.index) {
            return;
        }
        self.purged = Some(position);
        self.last = self.last.max_by_index(Some(position));
        self.start = self.start.max(position.index.saturating_add(1));
    }
}

trait MaxByIndex {
    fn max_by_index(self, other: Self) -> Self;
}

impl MaxByIndex for Option<Position> {
    /// The one that is further on; of two with one index this one.
    fn max_by_index(self, other: Self) -> Self {
        match (self, other) {
            (Some(this), Some(other)) if other.index > this.index => Some(other),
            (None, other) => other,
            (this, _) => this,
        }
    }
}

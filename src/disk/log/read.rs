//! Reads entries: recent ones from memory, older ones from the segments, verified again.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::disk::storage::File;

use super::facts::Entry;
use super::held::{POINT_BYTES, Point};
use super::layout::{RECORD_HEADER_BYTES, Record, RecordHeader};
use super::replay::name_of;
use super::shared::{Segment, Shared};

/// Entries up to some number of bytes.
struct Taken {
    entries: Vec<Entry>,
    bytes: usize,
    bytes_max: usize,
}

impl Taken {
    /// Whether there was room for it.
    fn take(&mut self, entry: Entry) -> bool {
        self.bytes = self.bytes.saturating_add(entry.payload.len());
        let has_room = self.entries.is_empty() || self.bytes <= self.bytes_max;
        if has_room {
            self.entries.push(entry);
        }
        has_room
    }
}

/// See [`super::Log::read`].
pub(super) fn read<F: File>(
    shared: &Shared<F>,
    path: &str,
    indices: Range<u64>,
    bytes_max: usize,
) -> io::Result<Vec<Entry>> {
    let mut taken = Taken { entries: Vec::new(), bytes: 0, bytes_max };
    let mut at = indices.start;
    loop {
        let state = shared.lock();
        let (Some(first), Some(last)) = (state.facts.first(), state.facts.last) else {
            return Ok(taken.entries);
        };
        if at < first && !taken.entries.is_empty() {
            // The rest was purged meanwhile.
            return Ok(taken.entries);
        }
        at = at.max(first);
        let end = indices.end.min(last.index.saturating_add(1));
        if at >= end {
            return Ok(taken.entries);
        }
        let in_memory = state.recent.first().unwrap_or(u64::MAX);
        if at >= in_memory {
            for entry in state.recent.from(at).take((end - at) as usize) {
                if !taken.take(entry.clone()) {
                    break;
                }
            }
            return Ok(taken.entries);
        }
        let found = state.points.find(at).and_then(|(point, next)| {
            let segment = state.segments.get(&point.place.segment)?;
            Some((point, next, Arc::clone(segment)))
        });
        drop(state);
        let Some((point, next, segment)) = found else {
            return Err(io::Error::other(format!("entry {at} is nowhere: a defect")));
        };
        let until = next.min(end).min(in_memory);
        if !scan(&segment, path, point, at..until, &mut taken)? {
            return Ok(taken.entries);
        }
        at = until;
    }
}

/// Takes these entries, which follow one another from the point on. `false`: there was no room.
fn scan<F: File>(
    segment: &Segment<F>,
    path: &str,
    point: Point,
    indices: Range<u64>,
    taken: &mut Taken,
) -> io::Result<bool> {
    let mut place = point.place;
    let mut window = Window { file: &segment.file, offset: place.offset, bytes: Vec::new() };
    let mut expected = point.index;
    while expected < indices.end {
        let damaged = |what: &str| {
            let path = format!("{path}/{}", name_of(segment.number));
            let what = format!("{path} is damaged at offset {}: {what}", place.offset);
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        let head = window.at(place.offset, RECORD_HEADER_BYTES)?;
        let head = head.and_then(|head| RecordHeader::decode(head, segment.seed));
        let Some(head) = head.filter(|head| head.number == place.record) else {
            return Err(damaged("the header of a record is not as it was written"));
        };
        let bytes = window.at(place.offset, head.bytes())?;
        let Some(bytes) = bytes.filter(|bytes| head.is_chained(bytes, place.chain)) else {
            return Err(damaged("a record is not as it was written"));
        };
        if head.entry_index() == Some(expected) {
            if expected >= indices.start
                && let Some(Record::Entry(entry)) = head.record(bytes)
                && !taken.take(entry)
            {
                return Ok(false);
            }
            expected += 1;
        }
        place.offset += bytes.len() as u64;
        place.record += 1;
        place.chain = head.chain;
    }
    Ok(true)
}

/// A part of a file.
struct Window<'a, F> {
    file: &'a F,
    offset: u64,
    bytes: Vec<u8>,
}

impl<F: File> Window<'_, F> {
    /// So many bytes at this place; `None`: the file ends before.
    fn at(&mut self, offset: u64, length: usize) -> io::Result<Option<&[u8]>> {
        let is_here = |window: &Self| {
            offset >= window.offset
                && offset - window.offset + length as u64 <= window.bytes.len() as u64
        };
        if !is_here(self) {
            self.offset = offset;
            self.bytes.resize(length.max(POINT_BYTES as usize), 0);
            let mut read = 0;
            while read < self.bytes.len() {
                match self.file.read_at(&mut self.bytes[read..], offset + read as u64) {
                    Ok(0) => break,
                    Ok(some) => read += some,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.bytes.truncate(read);
        }
        if !is_here(self) {
            return Ok(None);
        }
        let from = (offset - self.offset) as usize;
        Ok(Some(&self.bytes[from..from + length]))
    }
}

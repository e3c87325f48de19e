//! Reads a log's segments one after the other, and tells a torn end from lost data. Pure.
//!
//! A record is written only after all that its floor names is on disk. So damage above the highest
//! floor is a write that never came to its end, and nobody was told that it had. Damage at or
//! below it is the loss of what somebody was told is safe.

use core::ops::Deref;

use crate::disk::error::DiskError;

use super::facts::Facts;
use super::layout::{
    ALIGN, Flaw, Mark, RECORD_HEADER_BYTES, Record, RecordHeader, SEGMENT_HEADER_BYTES,
    SegmentHeader,
};

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of its segment.
    pub(super) segment: u64,
    /// Byte of the segment at which it begins.
    pub(super) offset: u64,
    /// Its number.
    pub(super) record: u64,
    /// The chain before it.
    pub(super) chain: u32,
}

/// What a log comes to, and where it goes on.
#[derive(Clone, Debug)]
pub(super) struct Replayed {
    pub(super) facts: Facts,
    /// The last segment.
    pub(super) header: SegmentHeader,
    /// Where the next record goes.
    pub(super) next: Place,
    /// Records up to this one are proven to be on disk.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests ask"))]
    pub(super) floor: u64,
    /// Where in the last segment the first record is of which that is not proven.
    pub(super) unproven: u64,
    /// What is to be cut off at `next`.
    pub(super) torn: Option<String>,
    /// Segments that were read: number, seed, highest index of an entry.
    pub(super) segments: Vec<(u64, u32, Option<u64>)>,
}

/// The name of a segment's file.
pub(super) fn name_of(number: u64) -> String {
    format!("{number:012}{ENDING}")
}

/// How names of segments end.
pub(super) const ENDING: &str = ".log";

/// Reads the segments, by number and in order, each but the first right after the one before it.
/// `each` is given all records.
///
/// # Errors
/// What was on disk is gone, or is another log's, or of another version.
pub(super) fn replay<B: Deref<Target = [u8]>>(
    path: &str,
    id: [u8; 16],
    mark: Option<Mark>,
    segments: &[(u64, B)],
    mut each: impl FnMut(Place, &Record, &Facts),
) -> Result<Replayed, DiskError> {
    let damaged = |number: u64, offset: u64, what: String| DiskError::LogDamaged {
        path: format!("{path}/{}", name_of(number)),
        offset,
        what,
    };
    let gone = |number: u64, what: String| DiskError::LogGone {
        path: format!("{path}/{}", name_of(number)),
        what,
    };
    let mut headers = Vec::with_capacity(segments.len());
    for (number, bytes) in segments {
        let (header, seed) = SegmentHeader::decode(bytes).map_err(|flaw| match flaw {
            Flaw::Damage(what) => damaged(*number, 0, format!("header: {what}")),
            Flaw::Version(found) => {
                DiskError::LogVersion { path: format!("{path}/{}", name_of(*number)), found }
            }
        })?;
        if header.id != id {
            let path = format!("{path}/{}", name_of(*number));
            return Err(DiskError::OtherInstance { path, found: header.id, expected: id });
        }
        if header.number != *number {
            let what = format!("header: it is segment {}", header.number);
            return Err(damaged(*number, 32, what));
        }
        headers.push((header, seed));
    }
    let marked = mark.map_or((1, 0), |mark| (mark.segment, mark.floor));
    let Some((&(first, _), &(last, _))) = headers.first().zip(headers.last()) else {
        return Err(gone(marked.0, "the log had it as its last segment".to_owned()));
    };
    if last.number < marked.0 {
        return Err(gone(marked.0, "the log had it as its last segment".to_owned()));
    }
    let mut facts = first.facts;
    let mut floor = marked.1;
    let mut next =
        Place { segment: first.number, offset: 0, record: first.first_record, chain: first.chain };
    let mut read = Vec::with_capacity(segments.len());
    let mut unproven = std::collections::VecDeque::new();
    let mut torn = None;
    for (place, ((number, bytes), (header, seed))) in segments.iter().zip(&headers).enumerate() {
        let following = headers.get(place + 1).map(|(header, _)| header);
        if next.record != header.first_record || next.chain != header.chain {
            let what = format!("header: it does not follow record {}", next.record - 1);
            return Err(damaged(*number, 40, what));
        }
        floor = floor.max(header.first_record.saturating_sub(1));
        next.segment = *number;
        next.offset = SEGMENT_HEADER_BYTES as u64;
        let mut highest = None;
        let room = bytes.len().min(usize::try_from(header.bytes).unwrap_or(usize::MAX));
        let bytes = &bytes[..room];
        unproven.clear();
        while following.is_none_or(|following| next.record < following.first_record) {
            let at = next.offset as usize;
            let (head, record) = match whole(&bytes[at..], *seed, next.chain) {
                Ok(found) => found,
                Err(what) => {
                    if following.is_none() {
                        torn = what;
                    } else {
                        let what = what.unwrap_or_else(|| "nothing is there".to_owned());
                        return Err(damaged(*number, next.offset, lost(next.record, &what)));
                    }
                    break;
                }
            };
            // From here on the bytes are what was written.
            let strange = |what: String| damaged(*number, next.offset, what);
            if head.number != next.record || head.floor >= head.number {
                let what = format!("it is record {}, expected {}", head.number, next.record);
                return Err(strange(what));
            }
            let Some(record_found) = head.record(record) else {
                return Err(strange(format!("record {} is of an unknown kind", next.record)));
            };
            apply(&mut facts, &record_found).map_err(strange)?;
            if let Some(index) = head.entry_index() {
                highest = highest.max(Some(index));
            }
            each(next, &record_found, &facts);
            floor = floor.max(head.floor);
            unproven.push_back((head.number, next.offset));
            while unproven.front().is_some_and(|(number, _)| *number <= floor) {
                unproven.pop_front();
            }
            next.record += 1;
            next.chain = head.chain;
            next.offset += record.len() as u64;
        }
        read.push((*number, *seed, highest));
        if following.is_none() {
            let rest = &bytes[next.offset as usize..];
            let proof = proof(rest, *seed, next.record);
            if next.record <= floor.max(proof.map_or(0, |(_, _, floor)| floor)) {
                let mut what = torn.unwrap_or_else(|| "nothing is there".to_owned());
                what = lost(next.record, &what);
                if let Some((offset, number, floor)) = proof
                    && floor >= next.record
                {
                    let offset = next.offset + offset as u64;
                    what += &format!(
                        " (record {number} at offset {offset} was written when records up to \
                         {floor} were on disk)"
                    );
                }
                return Err(damaged(*number, next.offset, what));
            }
        }
    }
    if let Some(missing) = first.facts.last
        && facts.purged.is_none_or(|purged| purged.index < missing.index)
    {
        let what = format!(
            "entries up to {} were in it and in others before it, and only those up to {} are \
             purged",
            missing.index,
            facts.purged.map_or(0, |purged| purged.index)
        );
        return Err(gone(first.number.saturating_sub(1), what));
    }
    let (header, _) = headers.pop().expect("there is a last one");
    let unproven = unproven.front().map_or(next.offset, |(_, offset)| *offset);
    Ok(Replayed { facts, header, next, floor, unproven, torn, segments: read })
}

/// Counts a record.
///
/// # Errors
/// It cannot be here.
pub(super) fn apply(facts: &mut Facts, record: &Record) -> Result<(), String> {
    match record {
        Record::Entry(entry) => return facts.push(entry.position),
        Record::Vote(vote) => facts.vote = Some(*vote),
        Record::Truncate(kept) => facts.truncate(*kept),
        Record::Purge(position) => facts.purge(*position),
        Record::Committed(position) => facts.committed = Some(*position),
        Record::Opened(_) => {}
    }
    Ok(())
}

/// The record that these bytes begin with.
///
/// # Errors
/// There is none; and if it is not that the log ends here: why not.
fn whole(bytes: &[u8], seed: u32, chain: u32) -> Result<(RecordHeader, &[u8]), Option<String>> {
    if bytes.len() < RECORD_HEADER_BYTES {
        let is_end = bytes.iter().all(|byte| *byte == 0);
        return Err((!is_end).then(|| "there is no room for a record".to_owned()));
    }
    let Some(head) = RecordHeader::decode(bytes, seed) else {
        let is_end = bytes.iter().all(|byte| *byte == 0);
        return Err((!is_end).then(|| "the checksum of its header is wrong".to_owned()));
    };
    let Some(record) = bytes.get(..head.bytes()) else {
        let (found, left) = (head.bytes(), bytes.len());
        return Err(Some(format!("it has {found} bytes, the segment only {left} more")));
    };
    if !head.is_chained(record, chain) {
        return Err(Some("its checksum is wrong, or it does not follow the one before".to_owned()));
    }
    Ok((head, record))
}

fn lost(record: u64, what: &str) -> String {
    format!("record {record}, which was on disk: {what}")
}

/// Of the headers that may still be found behind damage at record `damaged`, the one with the
/// highest floor: where it is, its number, its floor.
fn proof(rest: &[u8], seed: u32, damaged: u64) -> Option<(usize, u64, u64)> {
    let numbers = damaged..=damaged.saturating_add((rest.len() / RECORD_HEADER_BYTES) as u64);
    let offsets = (0..rest.len().saturating_sub(RECORD_HEADER_BYTES - 1)).step_by(ALIGN);
    offsets
        .filter_map(|offset| {
            let bytes = &rest[offset..];
            let number = u64::from_le_bytes(*bytes[8..].first_chunk()?);
            // Most places are told by this alone.
            if !numbers.contains(&number) {
                return None;
            }
            let head = RecordHeader::decode(bytes, seed)?;
            (head.floor < head.number).then_some((offset, head.number, head.floor))
        })
        .max_by_key(|(_, _, floor)| *floor)
}

//! The log's bytes, as values and back. Pure; `FORMAT.md` is the same by byte offset.
//!
//! A length is believed only after the checksum of the header that it is in was compared, and a
//! record only after the chain that it ends.

use bytes::Bytes;

use super::facts::{Entry, Facts, Position, Vote};

/// What every segment begins with. Its line ends show a transfer that changed them.
const MAGIC: [u8; 8] = *b"TKLOGS\r\n";

/// What the mark begins with.
const MARK_MAGIC: [u8; 8] = *b"TKMARK\r\n";

/// The version that is written, and the only one there is.
pub const VERSION: u32 = 1;

/// Bytes of a segment's header.
pub(super) const SEGMENT_HEADER_BYTES: usize = 160;

/// Bytes of a record's header.
pub(super) const RECORD_HEADER_BYTES: usize = 56;

/// Bytes of the mark.
pub(super) const MARK_BYTES: usize = 72;

/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 8;

/// What a segment says of itself first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Whose log it is.
    pub(super) id: [u8; 16],
    /// Segments of a log are numbered from 1.
    pub(super) number: u64,
    /// The number of its first record. All records before it were on disk when it was made.
    pub(super) first_record: u64,
    /// Bytes of the file.
    pub(super) bytes: u64,
    /// The chain so far.
    pub(super) chain: u32,
    /// What all records before it come to.
    pub(super) facts: Facts,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// One more entry.
    Entry(Entry),
    /// A vote.
    Vote(Vote),
    /// Entries behind this one are none any more; without it, all.
    Truncate(Option<Position>),
    /// Entries up to this one are in a snapshot.
    Purge(Position),
    /// Entries up to this one are committed. May be lost.
    Committed(Position),
    /// The log was opened. The number is random, so that what follows chains to nothing that was
    /// there before.
    Opened(u64),
}

/// What a record's header says, verified against its own checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    /// Bytes of the payload.
    pub(super) payload_bytes: usize,
    /// Records of a log are numbered from 1.
    pub(super) number: u64,
    /// Records up to this one were on disk when it was written.
    pub(super) floor: u64,
    /// Checksum of all that led here.
    pub(super) chain: u32,
    kind: u8,
    detail: u8,
    words: [u64; 3],
}

/// What is known beside the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Whose log it is.
    pub(super) id: [u8; 16],
    /// The kernel's run in which it was written.
    pub(super) boot: [u8; 16],
    /// The segment that was the last one.
    pub(super) segment: u64,
    /// Records up to this one are on disk.
    pub(super) floor: u64,
    /// Records are called back before they are on disk, and the log is in use.
    pub(super) is_weak: bool,
    /// Records that were called back may have been lost once. For good.
    pub(super) is_short: bool,
}

/// Why a header cannot be used.
#[derive(Debug)]
pub(super) enum Flaw {
    /// It is not what was written.
    Damage(String),
    /// It is whole, and of a version that we do not know.
    Version(u32),
}

const KIND_ENTRY: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_TRUNCATE: u8 = 3;
const KIND_PURGE: u8 = 4;
const KIND_COMMITTED: u8 = 5;
const KIND_OPENED: u8 = 6;

/// Bytes that a record with a payload of so many takes.
pub(super) const fn record_bytes(payload_bytes: usize) -> usize {
    RECORD_HEADER_BYTES + payload_bytes.next_multiple_of(ALIGN)
}

impl Record {
    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        record_bytes(match self {
            Self::Entry(entry) => entry.payload.len(),
            _ => 0,
        })
    }

    /// Puts the record's bytes; returns the chain with it. `seed` is the segment's, see
    /// [`SegmentHeader::encode`].
    pub(super) fn encode(
        &self,
        out: &mut Vec<u8>,
        seed: u32,
        (number, floor, chain): (u64, u64, u32),
    ) -> u32 {
        let none = (0, [0; 3]);
        let at = |position: &Position| [position.term, position.node, position.index];
        let (kind, (detail, words)) = match self {
            Self::Entry(entry) => (KIND_ENTRY, (entry.kind, at(&entry.position))),
            Self::Vote(vote) => {
                (KIND_VOTE, (u8::from(vote.is_committed), [vote.term, vote.node, 0]))
            }
            Self::Truncate(kept) => {
                (KIND_TRUNCATE, kept.as_ref().map_or(none, |kept| (1, at(kept))))
            }
            Self::Purge(position) => (KIND_PURGE, (0, at(position))),
            Self::Committed(position) => (KIND_COMMITTED, (0, at(position))),
            Self::Opened(salt) => (KIND_OPENED, (0, [*salt, 0, 0])),
        };
        let payload = match self {
            Self::Entry(entry) => &entry.payload[..],
            _ => &[],
        };
        let start = out.len();
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&[kind, detail, 0, 0]);
        for word in [number, floor, words[0], words[1], words[2]] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let head = out.len();
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(payload);
        out.resize(start + self.bytes(), 0);
        let chain = crc32c::crc32c_append(chain, &out[start..head]);
        let chain = crc32c::crc32c_append(chain, &out[start + RECORD_HEADER_BYTES..]);
        out[head..head + 4].copy_from_slice(&chain.to_le_bytes());
        let checksum = crc32c::crc32c_append(seed, &out[start..head + 4]);
        out[head + 4..head + 8].copy_from_slice(&checksum.to_le_bytes());
        chain
    }
}

impl Mark {
    /// Whether records that somebody was told of may be lost, in this run of the kernel.
    pub(super) fn may_be_short(&self, boot: [u8; 16]) -> bool {
        self.is_short || (self.is_weak && self.boot != boot)
    }
}

impl RecordHeader {
    /// Reads a header and compares its checksum; `None` if it is none.
    pub(super) fn decode(bytes: &[u8], seed: u32) -> Option<Self> {
        let bytes = bytes.first_chunk::<RECORD_HEADER_BYTES>()?;
        let checksum = crc32c::crc32c_append(seed, &bytes[..RECORD_HEADER_BYTES - 4]);
        (word(bytes, RECORD_HEADER_BYTES - 4) == checksum).then(|| Self {
            payload_bytes: word(bytes, 0) as usize,
            kind: bytes[4],
            detail: bytes[5],
            number: long(bytes, 8),
            floor: long(bytes, 16),
            words: [long(bytes, 24), long(bytes, 32), long(bytes, 40)],
            chain: word(bytes, 48),
        })
    }

    /// Bytes of the whole record.
    pub(super) fn bytes(&self) -> usize {
        record_bytes(self.payload_bytes)
    }

    /// Whether the record of these bytes, this header first, follows what led to `chain`.
    pub(super) fn is_chained(&self, record: &[u8], chain: u32) -> bool {
        let chain = crc32c::crc32c_append(chain, &record[..RECORD_HEADER_BYTES - 8]);
        crc32c::crc32c_append(chain, &record[RECORD_HEADER_BYTES..]) == self.chain
    }

    /// The index of the entry that it is, if it is one.
    pub(super) fn entry_index(&self) -> Option<u64> {
        (self.kind == KIND_ENTRY).then_some(self.words[2])
    }

    /// The record. `record` are its bytes, this header first, whose chain was compared. `None`:
    /// no version that we know wrote it.
    pub(super) fn record(&self, record: &[u8]) -> Option<Record> {
        let [term, node, index] = self.words;
        let position = Position { term, node, index };
        Some(match (self.kind, self.detail) {
            (KIND_ENTRY, kind) => {
                let payload = &record[RECORD_HEADER_BYTES..][..self.payload_bytes];
                Record::Entry(Entry { position, kind, payload: Bytes::copy_from_slice(payload) })
            }
            (KIND_VOTE, 0) => Record::Vote(Vote { term, node, is_committed: false }),
            (KIND_VOTE, 1) => Record::Vote(Vote { term, node, is_committed: true }),
            (KIND_TRUNCATE, 0) => Record::Truncate(None),
            (KIND_TRUNCATE, 1) => Record::Truncate(Some(position)),
            (KIND_PURGE, 0) => Record::Purge(position),
            (KIND_COMMITTED, 0) => Record::Committed(position),
            (KIND_OPENED, 0) => Record::Opened(term),
            _ => return None,
        })
    }
}

impl SegmentHeader {
    /// The header's bytes. Its checksum is the seed of those of its records, so that no record of
    /// another segment is taken for one of this.
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let Facts { vote, last, purged, committed, .. } = self.facts;
        let mut flags = 0;
        for (bit, is_set) in [
            vote.is_some(),
            vote.is_some_and(|vote| vote.is_committed),
            last.is_some(),
            purged.is_some(),
            committed.is_some(),
        ]
        .into_iter()
        .enumerate()
        {
            flags |= u32::from(is_set) << bit;
        }
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(SEGMENT_HEADER_BYTES as u32).to_le_bytes());
        out.extend_from_slice(&self.id);
        for word in [self.number, self.first_record, self.bytes] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.chain.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        let vote = vote.map_or([0; 2], |vote| [vote.term, vote.node]);
        out.extend(vote.into_iter().flat_map(u64::to_le_bytes));
        for at in [last, purged, committed] {
            let words = at.map_or([0; 3], |at| [at.term, at.node, at.index]);
            out.extend(words.into_iter().flat_map(u64::to_le_bytes));
        }
        out.resize(SEGMENT_HEADER_BYTES - 4, 0);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.try_into().expect("the fields make up the header")
    }

    /// Reads a header; also returns its checksum.
    ///
    /// # Errors
    /// See [`Flaw`].
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, u32), Flaw> {
        let Some(bytes) = bytes.first_chunk::<SEGMENT_HEADER_BYTES>() else {
            let (found, expected) = (bytes.len(), SEGMENT_HEADER_BYTES);
            let what = format!("the file has {found} bytes, a header has {expected}");
            return Err(Flaw::Damage(what));
        };
        let seed = verify(bytes, MAGIC, "segment of a log")?;
        let flags = word(bytes, 60);
        let has = |bit: u32| flags & (1 << bit) != 0;
        let position = |bit: u32, at: usize| {
            let [term, node, index] = [0, 8, 16].map(|place| long(bytes, at + place));
            has(bit).then_some(Position { term, node, index })
        };
        let vote = Vote { term: long(bytes, 64), node: long(bytes, 72), is_committed: has(1) };
        let facts = Facts::at_segment(
            has(0).then_some(vote),
            position(2, 80),
            position(3, 104),
            position(4, 128),
        );
        let header = Self {
            id: core::array::from_fn(|byte| bytes[16 + byte]),
            number: long(bytes, 32),
            first_record: long(bytes, 40),
            bytes: long(bytes, 48),
            chain: word(bytes, 56),
            facts,
        };
        Ok((header, seed))
    }
}

impl Mark {
    /// The mark's bytes.
    pub(super) fn encode(&self) -> [u8; MARK_BYTES] {
        let mut out = [0; MARK_BYTES];
        out[..8].copy_from_slice(&MARK_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12] = u8::from(self.is_weak) | u8::from(self.is_short) << 1;
        out[16..32].copy_from_slice(&self.id);
        out[32..48].copy_from_slice(&self.boot);
        out[48..56].copy_from_slice(&self.segment.to_le_bytes());
        out[56..64].copy_from_slice(&self.floor.to_le_bytes());
        let checksum = crc32c::crc32c(&out[..MARK_BYTES - 4]);
        out[MARK_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads the mark's bytes.
    ///
    /// # Errors
    /// See [`Flaw`].
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Flaw> {
        let Ok(bytes) = <&[u8; MARK_BYTES]>::try_from(bytes) else {
            let what = format!("it has {} bytes, expected {MARK_BYTES}", bytes.len());
            return Err(Flaw::Damage(what));
        };
        verify(bytes, MARK_MAGIC, "mark of a log")?;
        Ok(Self {
            id: core::array::from_fn(|byte| bytes[16 + byte]),
            boot: core::array::from_fn(|byte| bytes[32 + byte]),
            segment: long(bytes, 48),
            floor: long(bytes, 56),
            is_weak: bytes[12] & 1 != 0,
            is_short: bytes[12] & 2 != 0,
        })
    }
}

/// Compares magic, version and the checksum at the end, which is returned.
fn verify(bytes: &[u8], magic: [u8; 8], what: &str) -> Result<u32, Flaw> {
    if bytes[..8] != magic {
        return Err(Flaw::Damage(format!("this is no {what}: it does not begin as one")));
    }
    let end = bytes.len() - 4;
    let (found, expected) = (word(bytes, end), crc32c::crc32c(&bytes[..end]));
    if found != expected {
        return Err(Flaw::Damage(format!("checksum is {found:#010x}, expected {expected:#010x}")));
    }
    let version = word(bytes, 8);
    if version != VERSION {
        return Err(Flaw::Version(version));
    }
    Ok(found)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(core::array::from_fn(|byte| bytes[at + byte]))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(core::array::from_fn(|byte| bytes[at + byte]))
}

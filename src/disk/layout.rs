//! A snapshot's bytes, as values and back. Pure; `FORMAT.md` is the same by byte offset.
//!
//! Nothing here trusts a length or a count before the checksum over it has been compared.

mod sections;

mod records;

mod words;

use core::fmt;

use crate::engine::command::LimitId;
use crate::engine::quota::Kind;
use crate::engine::session::WINDOW;
use crate::engine::time::{Timestamp, UtcTime};

pub(super) use records::{
    kind, kind_of, put_counter, put_granted, put_limit, put_session, put_window,
};
pub(super) use sections::{Encoder, outline};
pub use sections::{Outline, Section, verify};
pub(super) use words::{Read, put_words, u32_at, unequal};

/// What every snapshot begins with. Its line ends show a transfer that changed them.
pub(super) const MAGIC: [u8; 8] = *b"TKSNAP\r\n";

/// The version that is written, and the only one there is.
pub const VERSION: u32 = 1;

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 128;

/// Bytes before the payload of each section.
pub(super) const SECTION_HEADER_BYTES: usize = 32;

const END_BYTES: usize = 64;
const NARROW_BYTES: usize = 32;
const CELL_BYTES: usize = 56;
const SHARE_BYTES: usize = 56;
const WINDOW_BYTES: usize = 8;
const DONE_WORDS: usize = (WINDOW / 64) as usize;
const SESSION_BYTES: usize = 24 + DONE_WORDS * 8;
const GRANTED_BYTES: usize = 32;

/// A section ends once its payload has so many bytes.
pub(super) const SECTION_BYTES: usize = 256 << 10;

/// What a snapshot says of itself first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The instance whose counters they are.
    pub instance: [u8; 16],
    /// The seed that their keys derive from.
    pub seed: [u8; 16],
    /// Snapshots of an instance are numbered from 1.
    pub number: u64,
    /// The one moment at which the counters stood so, in cluster time.
    pub time: Timestamp,
    /// That moment in wall time as decisions saw it.
    pub utc: UtcTime,
    /// That moment by the system's wall clock, from which time down is told.
    pub wall: UtcTime,
    /// The policy in force.
    pub policy: u64,
    /// Permits given so far have lower numbers.
    pub next_permit: u64,
    /// Index and term of the last log entry applied; zero without a log.
    pub applied: (u64, u64),
    /// Sessions of clients opened so far.
    pub sessions_opened: u64,
}

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum SectionKind {
    /// Names of the limits that counters name by number.
    Limits = 1,
    /// Lengths of windows that counters name by number.
    Windows = 2,
    /// Counters of one number.
    Narrow = 3,
    /// Counters of four numbers.
    Cells = 4,
    /// Counters of sliding windows.
    Rings = 5,
    /// Shares of permits.
    Shares = 6,
    /// Sessions of requests that may be sent again.
    Sessions = 7,
    /// What a cluster keeps beside its counters: a record of bytes that `disk` does not look into.
    Cluster = 8,
    /// Permits that requests of sessions were given.
    Granted = 9,
    /// How much there was of everything.
    End = 255,
}

impl SectionKind {
    const ALL: [Self; 10] = [
        Self::Limits,
        Self::Windows,
        Self::Narrow,
        Self::Cells,
        Self::Rings,
        Self::Shares,
        Self::Sessions,
        Self::Cluster,
        Self::Granted,
        Self::End,
    ];

    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Limits => "names of limits",
            Self::Windows => "lengths of windows",
            Self::Narrow => "narrow counters",
            Self::Cells => "wide counters",
            Self::Rings => "sliding windows",
            Self::Shares => "permits",
            Self::Sessions => "sessions",
            Self::Cluster => "cluster",
            Self::Granted => "permits of sessions",
            Self::End => "end",
        }
    }

    /// Bytes of each record, where all are alike.
    const fn record_bytes(self) -> Option<usize> {
        match self {
            Self::Limits | Self::Rings | Self::Cluster => None,
            Self::Windows => Some(WINDOW_BYTES),
            Self::Narrow => Some(NARROW_BYTES),
            Self::Cells => Some(CELL_BYTES),
            Self::Shares => Some(SHARE_BYTES),
            Self::Sessions => Some(SESSION_BYTES),
            Self::Granted => Some(GRANTED_BYTES),
            Self::End => Some(END_BYTES),
        }
    }
}

/// How much there is of everything, as the last section says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Counters of one number.
    pub narrow: u64,
    /// Counters of four numbers.
    pub cells: u64,
    /// Counters of sliding windows.
    pub rings: u64,
    /// Shares of permits.
    pub shares: u64,
    /// Sessions.
    pub sessions: u64,
    /// Of the counters and shares, those that changed while the snapshot was taken.
    pub noted: u64,
    /// Sections, the last one included.
    pub sections: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Totals {
    /// Counters and shares.
    pub const fn counters(&self) -> u64 {
        self.narrow + self.cells + self.rings + self.shares
    }

    fn count(&mut self, kind: SectionKind, is_noted: bool, records: u64) {
        match kind {
            SectionKind::Narrow => self.narrow += records,
            SectionKind::Cells => self.cells += records,
            SectionKind::Rings => self.rings += records,
            SectionKind::Shares => self.shares += records,
            SectionKind::Sessions => self.sessions += records,
            _ => {}
        }
        self.noted += if is_noted { records } else { 0 };
        self.sections += 1;
    }
}

/// The names of one limit, by which a policy is asked for its number there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitName {
    /// Its number in the snapshot.
    pub id: LimitId,
    /// Its kind.
    pub kind: Kind,
    /// Name of its API.
    pub api: String,
    /// Its name.
    pub name: String,
    /// Name of its window; empty for a bucket.
    pub window: String,
}

/// Where a snapshot is damaged, and how one can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The section, by number and kind where it got as far as that.
    pub section: Option<(u32, SectionKind)>,
    /// Byte of the file at which what is wrong begins.
    pub offset: u64,
    /// What was found, and what was expected.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.section {
            Some((number, kind)) => write!(f, "section {number} ({})", kind.name())?,
            None => f.write_str("header")?,
        }
        write!(f, ", offset {}: {}", self.offset, self.what)
    }
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        out.extend_from_slice(&self.instance);
        out.extend_from_slice(&self.seed);
        for word in [
            self.number,
            self.time.as_nanos(),
            self.utc.as_nanos(),
            self.wall.as_nanos(),
            self.policy,
            self.next_permit,
            self.applied.0,
            self.applied.1,
            self.sessions_opened,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&[0; 4]);
        let checksum = crc32c::crc32c(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out.try_into().expect("the fields make up the header")
    }

    /// Reads a header, and its checksum, with which the chain of sections begins.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32), Damage> {
        let damage = |offset, what| Damage { section: None, offset, what };
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            let what = format!("the file has {} bytes, a header has {HEADER_BYTES}", bytes.len());
            return Err(damage(0, what));
        };
        if bytes[..8] != MAGIC {
            return Err(damage(0, "this is no snapshot: it does not begin as one".to_owned()));
        }
        let mut read = Read(&bytes[8..]);
        let version = read.u32();
        if version != VERSION {
            let what = format!("format version is {version}, this program reads {VERSION}");
            return Err(damage(8, what));
        }
        let found = u32_at(bytes, HEADER_BYTES - 4);
        let checksum = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        if found != checksum {
            return Err(damage(0, unequal(checksum, found)));
        }
        read.u32();
        let header = Self {
            instance: read.array(),
            seed: read.array(),
            number: read.u64(),
            time: Timestamp::from_nanos(read.u64()),
            utc: UtcTime::from_nanos(read.u64()),
            wall: UtcTime::from_nanos(read.u64()),
            policy: read.u64(),
            next_permit: read.u64(),
            applied: (read.u64(), read.u64()),
            sessions_opened: read.u64(),
        };
        Ok((header, checksum))
    }
}

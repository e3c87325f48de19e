//! A snapshot's bytes, as values and back. Pure; `FORMAT.md` is the same by byte offset.
//!
//! Nothing here trusts a length or a count before the checksum over it has been compared.

use core::fmt;
use core::ops::Range;

use crate::engine::command::LimitId;
use crate::engine::key::Key;
use crate::engine::kinds::{Ring, SUBS};
use crate::engine::permit::PermitId;
use crate::engine::quota::Kind;
use crate::engine::session::{RequestId, SavedSession, WINDOW};
use crate::engine::table::{Counter, Permitted, State};
use crate::engine::time::{Nanos, Timestamp, UtcTime};

/// What every snapshot begins with. Its line ends show a transfer that changed them.
pub(super) const MAGIC: [u8; 8] = *b"TKSNAP\r\n";

/// The version that is written, and the only one there is.
pub const VERSION: u32 = 1;

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 128;

/// Bytes before the payload of each section.
pub(super) const SECTION_HEADER_BYTES: usize = 32;

const SECTION_MAGIC: [u8; 4] = *b"SECT";
const END_BYTES: usize = 64;
const NARROW_BYTES: usize = 32;
const CELL_BYTES: usize = 56;
const SHARE_BYTES: usize = 56;
const RING_HEAD_BYTES: usize = 40;
const WINDOW_BYTES: usize = 8;
const LIMIT_HEAD_BYTES: usize = 10;
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

/// A section whose header was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its number.
    pub number: u32,
    /// What it holds.
    pub kind: SectionKind,
    /// Whether these are counters that changed while the snapshot was taken.
    pub is_noted: bool,
    /// How many.
    pub records: u32,
    /// Where its payload is in the file.
    pub payload: Range<usize>,
    checksum: u32,
}

/// A snapshot whose headers have been verified, and whose payloads are still to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// What it says of itself.
    pub header: Header,
    /// All sections but the last.
    pub sections: Vec<Section>,
    /// What the last one says.
    pub totals: Totals,
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

/// Turns sections into bytes, each chained to what came before it.
pub(super) struct Encoder {
    chain: u32,
    totals: Totals,
}

impl Encoder {
    /// Begins behind this header.
    pub(super) fn begin(header: &[u8; HEADER_BYTES]) -> Self {
        let totals = Totals { bytes: HEADER_BYTES as u64, ..Totals::default() };
        Self { chain: u32_at(header, HEADER_BYTES - 4), totals }
    }

    /// The header of a section with this payload of so many records.
    pub(super) fn section(
        &mut self,
        kind: SectionKind,
        is_noted: bool,
        records: u32,
        payload: &[u8],
    ) -> [u8; SECTION_HEADER_BYTES] {
        let number = self.totals.sections as u32;
        self.totals.count(kind, is_noted, records.into());
        self.totals.bytes += (SECTION_HEADER_BYTES + payload.len()) as u64;
        let mut out = Vec::with_capacity(SECTION_HEADER_BYTES);
        out.extend_from_slice(&SECTION_MAGIC);
        out.extend_from_slice(&(kind as u16).to_le_bytes());
        out.extend_from_slice(&u16::from(is_noted).to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&records.to_le_bytes());
        out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        self.chain = crc32c::crc32c_append(self.chain, &out);
        out.extend_from_slice(&self.chain.to_le_bytes());
        out.try_into().expect("the fields make up the header")
    }

    /// The last section.
    pub(super) fn end(mut self) -> (Totals, [u8; SECTION_HEADER_BYTES + END_BYTES]) {
        let mut totals = self.totals;
        totals.sections += 1;
        totals.bytes += (SECTION_HEADER_BYTES + END_BYTES) as u64;
        let mut payload = [0; END_BYTES];
        for (to, word) in payload.chunks_exact_mut(8).zip([
            totals.narrow,
            totals.cells,
            totals.rings,
            totals.shares,
            totals.sessions,
            totals.noted,
            totals.sections,
            totals.bytes,
        ]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let header = self.section(SectionKind::End, false, 1, &payload);
        let mut out = [0; SECTION_HEADER_BYTES + END_BYTES];
        out[..SECTION_HEADER_BYTES].copy_from_slice(&header);
        out[SECTION_HEADER_BYTES..].copy_from_slice(&payload);
        (totals, out)
    }
}

/// Reads all headers of a snapshot and checks that they follow one another to the file's end.
///
/// # Errors
/// The first damage.
pub(super) fn outline(bytes: &[u8]) -> Result<Outline, Damage> {
    let (header, mut chain) = Header::decode(bytes)?;
    let mut sections = Vec::new();
    let mut counted = Totals::default();
    let mut at = HEADER_BYTES;
    loop {
        let number = sections.len() as u32;
        let section = section(bytes, at, number, &mut chain)?;
        counted.count(section.kind, section.is_noted, section.records.into());
        at = section.payload.end;
        if section.kind != SectionKind::End {
            sections.push(section);
            continue;
        }
        section.verify(bytes)?;
        let damage = |offset: usize, what| Damage {
            section: Some((number, SectionKind::End)),
            offset: offset as u64,
            what,
        };
        let totals = totals(&bytes[section.payload.clone()]);
        counted.bytes = at as u64;
        if totals != counted {
            let what = format!("it counts {totals:?}, found were {counted:?}");
            return Err(damage(section.payload.start, what));
        }
        if bytes.len() != at {
            let what = format!("the file goes on for {} bytes after its end", bytes.len() - at);
            return Err(damage(at, what));
        }
        return Ok(Outline { header, sections, totals });
    }
}

/// Verifies a whole snapshot.
///
/// # Errors
/// The first damage.
pub fn verify(bytes: &[u8]) -> Result<Outline, Damage> {
    let outline = outline(bytes)?;
    outline.sections.iter().try_for_each(|section| section.verify(bytes))?;
    Ok(outline)
}

fn section(bytes: &[u8], at: usize, number: u32, chain: &mut u32) -> Result<Section, Damage> {
    let damage = |kind: Option<SectionKind>, offset: usize, what: String| Damage {
        section: kind.map(|kind| (number, kind)),
        offset: offset as u64,
        what: if kind.is_some() { what } else { format!("section {number}: {what}") },
    };
    let Some(head) = bytes[at..].first_chunk::<SECTION_HEADER_BYTES>() else {
        return Err(damage(None, at, "the file ends where it should begin".to_owned()));
    };
    let expected = crc32c::crc32c_append(*chain, &head[..SECTION_HEADER_BYTES - 4]);
    let found = u32_at(head, SECTION_HEADER_BYTES - 4);
    if expected != found {
        return Err(damage(None, at, format!("its header's {}", unequal(expected, found))));
    }
    *chain = found;
    let mut read = Read(&head[4..]);
    let (kind, noted) = (read.u16(), read.u16());
    let Some(kind) = SectionKind::ALL.into_iter().find(|known| *known as u16 == kind) else {
        return Err(damage(None, at + 4, format!("kind {kind} is unknown")));
    };
    let (numbered, records, length) = (read.u32(), read.u32(), read.u64());
    if head[..4] != SECTION_MAGIC || numbered != number || noted > 1 {
        return Err(damage(Some(kind), at, "it is not what should follow here".to_owned()));
    }
    let start = at + SECTION_HEADER_BYTES;
    let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
    let Some(end) = end.filter(|end| *end <= bytes.len()) else {
        let left = bytes.len() - start;
        let what = format!("it has {length} bytes, the file only {left} more");
        return Err(damage(Some(kind), at, what));
    };
    let alike = kind.record_bytes().map(|each| each as u64 * u64::from(records));
    if alike.is_some_and(|alike| alike != length) {
        let what = format!("it has {length} bytes for {records} records");
        return Err(damage(Some(kind), at, what));
    }
    let checksum = read.u32();
    Ok(Section { number, kind, is_noted: noted == 1, records, payload: start..end, checksum })
}

fn totals(payload: &[u8]) -> Totals {
    let mut read = Read(payload);
    Totals {
        narrow: read.u64(),
        cells: read.u64(),
        rings: read.u64(),
        shares: read.u64(),
        sessions: read.u64(),
        noted: read.u64(),
        sections: read.u64(),
        bytes: read.u64(),
    }
}

impl Section {
    /// Compares the payload with its checksum.
    ///
    /// # Errors
    /// The damage.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), Damage> {
        let found = crc32c::crc32c(&bytes[self.payload.clone()]);
        if found == self.checksum {
            return Ok(());
        }
        Err(self.damage(0, unequal(self.checksum, found)))
    }

    /// Damage at this byte of the payload.
    pub fn damage(&self, offset: usize, what: String) -> Damage {
        let offset = (self.payload.start + offset) as u64;
        Damage { section: Some((self.number, self.kind)), offset, what }
    }

    /// Reads each record of a section of counters. What `each` finds wrong is damage where the
    /// record begins.
    ///
    /// # Errors
    /// The first damage.
    pub(super) fn counters(
        &self,
        bytes: &[u8],
        mut each: impl FnMut(&Counter<'_>) -> Result<(), &'static str>,
    ) -> Result<(), Damage> {
        let payload = &bytes[self.payload.clone()];
        let mut read = Read(payload);
        let mut ring = Ring { sub_ns: 0, newest: 0, counts: [0; SUBS], total: 0 };
        for _ in 0..self.records {
            let at = payload.len() - read.0.len();
            let counter = match self.kind {
                SectionKind::Narrow => read.narrow(),
                SectionKind::Cells => read.cell(),
                SectionKind::Shares => Ok(read.share()),
                SectionKind::Rings => read.ring(&mut ring),
                _ => Err("a section that holds no counters"),
            };
            counter
                .and_then(|counter| each(&counter))
                .map_err(|what| self.damage(at, what.to_owned()))?;
        }
        self.read_all(payload, &read)
    }

    /// The names of a section of limits.
    ///
    /// # Errors
    /// A record that is none.
    pub fn limits(&self, bytes: &[u8]) -> Result<Vec<LimitName>, Damage> {
        let payload = &bytes[self.payload.clone()];
        let mut read = Read(payload);
        let mut limits = Vec::new();
        for _ in 0..self.records {
            let at = payload.len() - read.0.len();
            let limit = read.limit();
            limits.push(limit.ok_or_else(|| self.damage(at, "no limit's names".to_owned()))?);
        }
        self.read_all(payload, &read)?;
        Ok(limits)
    }

    /// The lengths of a section of windows.
    pub fn windows(&self, bytes: &[u8]) -> Vec<Nanos> {
        let words = bytes[self.payload.clone()].chunks_exact(WINDOW_BYTES);
        words.map(|word| Nanos::new(Read(word).u64())).collect()
    }

    /// The sessions of a section of them.
    pub fn sessions(&self, bytes: &[u8]) -> Vec<SavedSession> {
        let records = bytes[self.payload.clone()].chunks_exact(SESSION_BYTES);
        records.map(|record| Read(record).session()).collect()
    }

    /// Which requests were given which permits, of a section that tells.
    pub fn granted(&self, bytes: &[u8]) -> Vec<(RequestId, PermitId)> {
        let records = bytes[self.payload.clone()].chunks_exact(GRANTED_BYTES);
        records.map(|record| Read(record).granted()).collect()
    }

    fn read_all(&self, payload: &[u8], read: &Read<'_>) -> Result<(), Damage> {
        if read.0.is_empty() {
            return Ok(());
        }
        let what = format!("{} bytes are left after {} records", read.0.len(), self.records);
        Err(self.damage(payload.len() - read.0.len(), what))
    }
}

/// Which section a counter goes to.
pub(super) fn kind_of(counter: &Counter<'_>) -> SectionKind {
    match counter.state {
        State::Narrow(_) => SectionKind::Narrow,
        State::Cell(_) => SectionKind::Cells,
        State::Ring(_) => SectionKind::Rings,
        State::Permitted(_) => SectionKind::Shares,
    }
}

/// Adds a counter's record.
pub(super) fn put_counter(out: &mut Vec<u8>, counter: &Counter<'_>) {
    let [high, low] = counter.key.words();
    let limit = counter.limit.0.to_le_bytes();
    match counter.state {
        State::Narrow(value) => {
            let mut record = [0; NARROW_BYTES];
            record[..8].copy_from_slice(&high.to_le_bytes());
            record[8..16].copy_from_slice(&low.to_le_bytes());
            record[16..24].copy_from_slice(&value.to_le_bytes());
            record[24..26].copy_from_slice(&limit);
            record[26] = counter.kind as u8;
            record[28..].copy_from_slice(&counter.detail.to_le_bytes());
            out.extend_from_slice(&record);
        }
        State::Cell([a, b, c, d]) => {
            put_words(out, &[high, low, a, b, c, d]);
            out.extend_from_slice(&limit);
            out.extend_from_slice(&[counter.kind as u8, 0]);
            out.extend_from_slice(&counter.detail.to_le_bytes());
        }
        State::Ring(ring) => {
            let most = ring.counts.iter().copied().max().unwrap_or_default();
            let width: usize = match most {
                0..=0xffff => 2,
                0x1_0000..=0xffff_ffff => 4,
                _ => 8,
            };
            put_words(out, &[high, low]);
            out.extend_from_slice(&limit);
            out.extend_from_slice(&[counter.kind as u8, width as u8]);
            out.extend_from_slice(&counter.detail.to_le_bytes());
            put_words(out, &[ring.newest, ring.sub_ns]);
            for count in ring.counts {
                out.extend_from_slice(&count.to_le_bytes()[..width]);
            }
        }
        State::Permitted(share) => {
            let (lapses_at, lease) = (share.lapses_at.as_nanos(), share.lease.get());
            put_words(out, &[high, low, share.serial, share.units, lapses_at, lease]);
            out.extend_from_slice(&limit);
            out.extend_from_slice(&[share.number, 0, 0, 0, 0, 0]);
        }
    }
}

/// Adds a limit's record; false if its names are longer than any policy's.
pub(super) fn put_limit(out: &mut Vec<u8>, limit: &LimitName) -> bool {
    let parts = [&limit.api, &limit.name, &limit.window];
    if parts.iter().any(|part| part.len() > usize::from(u16::MAX)) {
        return false;
    }
    out.extend_from_slice(&limit.id.0.to_le_bytes());
    out.extend_from_slice(&[limit.kind as u8, 0]);
    for part in parts {
        out.extend_from_slice(&(part.len() as u16).to_le_bytes());
    }
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
    true
}

/// Adds a window's record.
pub(super) fn put_window(out: &mut Vec<u8>, window: Nanos) {
    put_words(out, &[window.get()]);
}

/// Adds a session's record.
pub(super) fn put_session(out: &mut Vec<u8>, session: &SavedSession) {
    put_words(out, &[session.name, session.highest, session.used_at.as_nanos()]);
    put_words(out, &session.done);
}

/// Adds a record for each permit that a session's requests were given. Returns how many.
pub(super) fn put_granted(out: &mut Vec<u8>, session: &SavedSession) -> u32 {
    for (number, permit) in &session.permits {
        put_words(out, &[session.name, *number]);
        out.extend_from_slice(&permit.0);
    }
    session.permits.len() as u32
}

pub(super) fn put_words(out: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// What is left to be read. Reading past the end gives zeroes: lengths are compared before.
pub(super) struct Read<'a>(pub(super) &'a [u8]);

impl<'a> Read<'a> {
    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let Some((array, rest)) = self.0.split_first_chunk::<N>() else {
            self.0 = &[];
            return [0; N];
        };
        self.0 = rest;
        *array
    }

    pub(super) fn u8(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    #[inline]
    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub(super) fn key(&mut self) -> Key {
        Key::from_words([self.u64(), self.u64()])
    }

    fn kind(&mut self) -> Result<Kind, &'static str> {
        kind(self.u8()).ok_or("a kind that is unknown")
    }

    fn narrow(&mut self) -> Result<Counter<'static>, &'static str> {
        let (key, value) = (self.key(), self.u64());
        let (limit, kind) = (LimitId(self.u16()), self.kind()?);
        self.u8();
        Ok(Counter { key, kind, limit, detail: self.u32(), state: State::Narrow(value) })
    }

    fn cell(&mut self) -> Result<Counter<'static>, &'static str> {
        let (key, cell) = (self.key(), [self.u64(), self.u64(), self.u64(), self.u64()]);
        let (limit, kind) = (LimitId(self.u16()), self.kind()?);
        self.u8();
        Ok(Counter { key, kind, limit, detail: self.u32(), state: State::Cell(cell) })
    }

    fn ring<'r>(&mut self, ring: &'r mut Ring) -> Result<Counter<'r>, &'static str> {
        if self.0.len() < RING_HEAD_BYTES {
            return Err("a sliding window that breaks off");
        }
        let (key, limit, kind) = (self.key(), LimitId(self.u16()), self.kind()?);
        let (width, detail) = (usize::from(self.u8()), self.u32());
        (ring.newest, ring.sub_ns, ring.total) = (self.u64(), self.u64(), 0);
        if ![2, 4, 8].contains(&width) || self.0.len() < SUBS * width {
            return Err("a sliding window that breaks off");
        }
        for count in &mut ring.counts {
            *count = match width {
                2 => self.u16().into(),
                4 => self.u32().into(),
                _ => self.u64(),
            };
            ring.total = ring.total.checked_add(*count).ok_or("counts past any sum")?;
        }
        Ok(Counter { key, kind, limit, detail, state: State::Ring(ring) })
    }

    fn share(&mut self) -> Counter<'static> {
        let (key, serial, units) = (self.key(), self.u64(), self.u64());
        let (lapses_at, lease) = (Timestamp::from_nanos(self.u64()), Nanos::new(self.u64()));
        let (limit, number) = (LimitId(self.u16()), self.u8());
        self.array::<5>();
        let state = State::Permitted(Permitted { serial, number, units, lapses_at, lease });
        Counter { key, kind: Kind::Concurrent, limit, detail: u16::MAX.into(), state }
    }

    fn limit(&mut self) -> Option<LimitName> {
        if self.0.len() < LIMIT_HEAD_BYTES {
            return None;
        }
        let (id, kind) = (LimitId(self.u16()), kind(self.u8())?);
        self.u8();
        let lengths = [self.u16(), self.u16(), self.u16()];
        let mut text = |length: u16| {
            let (text, rest) = self.0.split_at_checked(length.into())?;
            self.0 = rest;
            Some(core::str::from_utf8(text).ok()?.to_owned())
        };
        let [api, name, window] = [text(lengths[0])?, text(lengths[1])?, text(lengths[2])?];
        Some(LimitName { id, kind, api, name, window })
    }

    fn session(&mut self) -> SavedSession {
        let (name, highest) = (self.u64(), self.u64());
        let used_at = Timestamp::from_nanos(self.u64());
        let done = core::array::from_fn(|_| self.u64());
        SavedSession { name, highest, used_at, done, permits: Vec::new() }
    }

    fn granted(&mut self) -> (RequestId, PermitId) {
        let id = RequestId { session: self.u64(), sequence: self.u64() };
        let mut permit = [0; 16];
        permit[..8].copy_from_slice(&self.u64().to_le_bytes());
        permit[8..].copy_from_slice(&self.u64().to_le_bytes());
        (id, PermitId(permit))
    }
}

pub(super) fn kind(number: u8) -> Option<Kind> {
    [
        Kind::Bucket,
        Kind::Sliding,
        Kind::Fixed,
        Kind::Calendar,
        Kind::Concurrent,
        Kind::Level,
        Kind::Cap,
    ]
    .into_iter()
    .find(|kind| *kind as u8 == number)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    Read(&bytes[at..]).u32()
}

pub(super) fn unequal(expected: u32, found: u32) -> String {
    format!("checksum is {found:#010x}, expected {expected:#010x}")
}

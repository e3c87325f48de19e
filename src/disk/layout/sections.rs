//! Sections: written one after the other, each chained to what came before it, and read back. What
//! is read is first compared with its checksum.

use core::ops::Range;

use crate::engine::kinds::{Ring, SUBS};
use crate::engine::permit::PermitId;
use crate::engine::session::{RequestId, SavedSession};
use crate::engine::table::Counter;
use crate::engine::time::Nanos;

use super::words::{Read, u32_at, unequal};
use super::{
    Damage, END_BYTES, GRANTED_BYTES, HEADER_BYTES, Header, LimitName, SECTION_HEADER_BYTES,
    SESSION_BYTES, SectionKind, Totals, WINDOW_BYTES,
};

const SECTION_MAGIC: [u8; 4] = *b"SECT";

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

/// Turns sections into bytes, each chained to what came before it.
pub(in crate::disk) struct Encoder {
    chain: u32,
    totals: Totals,
}

impl Encoder {
    /// Begins behind this header.
    pub(in crate::disk) fn begin(header: &[u8; HEADER_BYTES]) -> Self {
        let totals = Totals { bytes: HEADER_BYTES as u64, ..Totals::default() };
        Self { chain: u32_at(header, HEADER_BYTES - 4), totals }
    }

    /// The header of a section with this payload of so many records.
    pub(in crate::disk) fn section(
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
    pub(in crate::disk) fn end(mut self) -> (Totals, [u8; SECTION_HEADER_BYTES + END_BYTES]) {
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
pub(in crate::disk) fn outline(bytes: &[u8]) -> Result<Outline, Damage> {
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
    pub(in crate::disk) fn counters(
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

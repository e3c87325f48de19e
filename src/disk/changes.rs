//! The file of changes by hand: written at its end, synced before anybody is told, and now and then
//! written anew with what still counts. `FORMAT.md` has it by byte offset.
//!
//! What was synced and does not verify is damage; what was being written when the power went is cut
//! off. They are told apart by what comes behind: every record says how much of the file was
//! synced before it, and a record is only written once that is so.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use crate::engine::time::{Timestamp, UtcTime};
use crate::policy::ByHand;

use super::by_hand::{self, CHANGE_BYTES_MAX};
use super::layout::{Read, u32_at, unequal};
use super::storage::{File, Storage};

/// The file's name.
pub(super) const NAME: &str = "changes";

/// Its name while it is written anew.
const UNFINISHED: &str = "changes.tmp";

const MAGIC: [u8; 8] = *b"TKHAND\r\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 40;
const RECORD_MAGIC: [u8; 4] = *b"CHNG";
const RECORD_HEADER_BYTES: usize = 64;

/// The kind of a record that only says how much was synced.
const MARK: u16 = 255;

/// The file is written anew once more than this was added to it, and more than it began with: so
/// each byte is written about twice, however often that is.
pub const ADDED_BYTES_MAX: u64 = 1 << 20;

/// Bytes that are gathered before they are written.
const WRITE_BYTES: usize = 256 << 10;

/// A change by hand with its place among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number; of what the file begins with, the number of the last change that is in it.
    pub number: u64,
    /// When it was written, in cluster time.
    pub time: Timestamp,
    /// When it was written, by the system's wall clock.
    pub wall: UtcTime,
    /// The change.
    pub change: ByHand,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Number of the change.
    pub number: u64,
    /// Cluster time of writing.
    pub time: Timestamp,
    /// Wall time of writing.
    pub wall: UtcTime,
}

/// Where the file is damaged, and how one can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoilt {
    /// Byte of the file at which what is wrong begins.
    pub offset: u64,
    /// What was found, and what was expected.
    pub what: String,
}

impl core::fmt::Display for Spoilt {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "offset {}: {}", self.offset, self.what)
    }
}

/// A file of changes whose bytes have been verified, but for a torn end.
pub struct ReadChanges<B> {
    bytes: B,
    /// Bytes that are whole.
    whole: usize,
    last: Place,
}

impl<B: Deref<Target = [u8]>> ReadChanges<B> {
    /// Verifies the file of an instance.
    ///
    /// # Errors
    /// The first damage. A torn end is none.
    pub fn verify(bytes: B, instance: [u8; 16]) -> Result<Self, Spoilt> {
        let (whole, last) = verify(&bytes, instance)?;
        Ok(Self { bytes, whole, last })
    }

    /// Number and moment of the last record.
    pub fn last(&self) -> Place {
        self.last
    }

    /// Bytes of a torn end, which counts for nothing: nobody was told that it is kept.
    pub fn torn(&self) -> usize {
        self.bytes.len() - self.whole
    }

    /// All changes, in order.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let mut at = HEADER_BYTES;
        core::iter::from_fn(move || {
            while at < self.whole {
                let head = Head::read(&self.bytes[at..])?;
                let payload = at + RECORD_HEADER_BYTES;
                at = payload + head.bytes;
                if head.kind != MARK {
                    let change = by_hand::read(head.kind, &self.bytes[payload..at]).ok()?;
                    let Place { number, time, wall } = head.place;
                    return Some(Record { number, time, wall, change });
                }
            }
            None
        })
    }
}

/// A record's header.
struct Head {
    kind: u16,
    bytes: usize,
    payload_checksum: u32,
    place: Place,
    at: u64,
    synced: u64,
}

impl Head {
    /// Reads the fields; nothing is believed of them yet.
    fn read(bytes: &[u8]) -> Option<Self> {
        let head = bytes.first_chunk::<RECORD_HEADER_BYTES>()?;
        let mut read = Read(&head[4..]);
        let (kind, zero) = (read.u16(), read.u16());
        let (length, payload_checksum) = (read.u32(), read.u32());
        let number = read.u64();
        let (time, wall) = (Timestamp::from_nanos(read.u64()), UtcTime::from_nanos(read.u64()));
        let (at, synced) = (read.u64(), read.u64());
        let is_one = head[..4] == RECORD_MAGIC && zero == 0;
        let place = Place { number, time, wall };
        let bytes = usize::try_from(length).ok()?;
        is_one.then_some(Self { kind, bytes, payload_checksum, place, at, synced })
    }

    /// Reads a header that was written at this place of a file whose header has this checksum.
    fn verified(bytes: &[u8], at: usize, file: u32) -> Option<Self> {
        let head = bytes.get(at..)?.first_chunk::<RECORD_HEADER_BYTES>()?;
        let own = crc32c::crc32c_append(file, &head[..RECORD_HEADER_BYTES - 8]);
        let is_own = own == u32_at(head, RECORD_HEADER_BYTES - 8);
        Self::read(head).filter(|head| is_own && head.at == at as u64)
    }
}

/// How many bytes are whole, and the last record's place.
fn verify(bytes: &[u8], instance: [u8; 16]) -> Result<(usize, Place), Spoilt> {
    let spoilt = |offset: usize, what: String| Spoilt { offset: offset as u64, what };
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        let what = format!("the file has {} bytes, a header has {HEADER_BYTES}", bytes.len());
        return Err(spoilt(0, what));
    };
    if header[..8] != MAGIC {
        return Err(spoilt(0, "this is no file of changes: it does not begin as one".to_owned()));
    }
    let mut read = Read(&header[8..]);
    let version = read.u32();
    if version != VERSION {
        let what = format!("format version is {version}, this program reads {VERSION}");
        return Err(spoilt(8, what));
    }
    let file = crc32c::crc32c(&header[..HEADER_BYTES - 4]);
    let found = u32_at(header, HEADER_BYTES - 4);
    if found != file {
        return Err(spoilt(0, unequal(file, found)));
    }
    read.u32();
    if read.array() != instance {
        return Err(spoilt(16, "it is another instance's".to_owned()));
    }
    let (mut at, mut chain, mut last) = (HEADER_BYTES, file, Place::default());
    let mut is_begun = false;
    let broken = loop {
        if at == bytes.len() {
            break None;
        }
        match record(bytes, at, file, chain) {
            Ok((head, next, linked)) => {
                if head.place.number < last.number {
                    break Some("its number is lower than that before it".to_owned());
                }
                is_begun |= head.kind == MARK;
                (at, chain, last) = (next, linked, head.place);
            }
            Err(what) => break Some(what),
        }
    };
    // A file gets its name only once what it begins with, and the mark behind that, are synced.
    let Some(what) = broken.or_else(|| (!is_begun).then(|| "the file ends too early".to_owned()))
    else {
        return Ok((at, last));
    };
    if !is_begun || is_synced(bytes, at, file) {
        return Err(spoilt(at, what));
    }
    Ok((at, last))
}

/// Verifies the record at this place; returns where the next one is, and the chain to it.
fn record(bytes: &[u8], at: usize, file: u32, chain: u32) -> Result<(Head, usize, u32), String> {
    let Some(head) = Head::verified(bytes, at, file) else {
        return Err("no record begins here that verifies".to_owned());
    };
    let raw = &bytes[at..at + RECORD_HEADER_BYTES];
    let expected = crc32c::crc32c_append(chain, &raw[..RECORD_HEADER_BYTES - 4]);
    let found = u32_at(raw, RECORD_HEADER_BYTES - 4);
    if found != expected {
        return Err(format!("its chain's {}", unequal(expected, found)));
    }
    let start = at + RECORD_HEADER_BYTES;
    let payload = start.checked_add(head.bytes).and_then(|end| bytes.get(start..end));
    let Some(payload) = payload else {
        return Err(format!("it has {} bytes, the file only {}", head.bytes, bytes.len() - start));
    };
    let checksum = crc32c::crc32c(payload);
    if checksum != head.payload_checksum {
        return Err(unequal(head.payload_checksum, checksum));
    }
    match head.kind {
        MARK if payload.is_empty() => {}
        MARK => return Err("a mark that is not empty".to_owned()),
        kind => _ = by_hand::read(kind, payload)?,
    }
    let end = start + payload.len();
    Ok((head, end, found))
}

/// Whether the byte at this place was synced, by the word of a record behind it.
fn is_synced(bytes: &[u8], place: usize, file: u32) -> bool {
    let behind = bytes.get(place + 1..).unwrap_or_default();
    let begins = behind.windows(RECORD_MAGIC.len()).enumerate();
    begins.filter(|(_, window)| *window == RECORD_MAGIC).any(|(offset, _)| {
        let head = Head::verified(bytes, place + 1 + offset, file);
        head.is_some_and(|head| head.synced > place as u64)
    })
}

/// The file of changes, being written.
pub struct ChangeFile<S: Storage> {
    storage: Arc<S>,
    instance: [u8; 16],
    /// None: there is none yet, or what was written last may be torn, so that it has to be written
    /// anew.
    open: Option<Open<S::File>>,
}

struct Open<F> {
    file: F,
    out: Vec<u8>,
    header: u32,
    chain: u32,
    /// Bytes of the file, those in `out` included.
    bytes: u64,
    synced: u64,
    /// Bytes that the file began with.
    begun: u64,
    last: Place,
}

impl<S: Storage> ChangeFile<S> {
    pub(super) fn new(storage: Arc<S>, instance: [u8; 16]) -> Self {
        Self { storage, instance, open: None }
    }

    /// Whether there is a file to which changes can be added.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Bytes of the file, and of those the ones added since it was written anew.
    pub fn bytes(&self) -> (u64, u64) {
        self.open.as_ref().map_or((0, 0), |open| (open.bytes, open.bytes - open.begun))
    }

    /// Whether so much was added that the file should be written anew.
    pub fn is_long(&self) -> bool {
        let long = |open: &Open<_>| open.bytes - open.begun > ADDED_BYTES_MAX.max(open.begun);
        self.open.as_ref().is_some_and(long)
    }

    /// Adds changes, each numbered no lower than those before, and syncs them together.
    ///
    /// # Errors
    /// The operating system's, or that a change is too long. Nothing can be added then until the
    /// file is written anew.
    pub fn add<'r>(&mut self, records: impl IntoIterator<Item = &'r Record>) -> io::Result<()> {
        let Some(mut open) = self.open.take() else {
            return Err(io::Error::other("the file has to be written anew"));
        };
        for record in records {
            open.put(record)?;
        }
        open.sync()?;
        // Not synced by itself: it protects from then on what is before it, once it gets there.
        open.mark();
        if open.flush().is_ok() {
            self.open = Some(open);
        }
        Ok(())
    }

    /// Writes the file anew, and puts it in the place of the old one.
    ///
    /// # Errors
    /// As for [`ChangeFile::add`]. The old file may still be there then, or the new one.
    pub fn rewrite(&mut self, at: Place, records: impl Iterator<Item = Record>) -> io::Result<()> {
        self.open = None;
        // What an attempt left that came to nothing.
        match self.storage.remove(UNFINISHED) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut open = Open::begin(self.storage.create(UNFINISHED)?, self.instance)?;
        for record in records {
            open.put(&record)?;
        }
        open.last = at;
        // True once the file has the name that counts.
        open.synced = open.bytes;
        open.mark();
        open.sync()?;
        open.begun = open.bytes;
        self.storage.rename(UNFINISHED, NAME)?;
        self.storage.sync_names()?;
        self.open = Some(open);
        Ok(())
    }
}

impl<F: File> Open<F> {
    fn begin(file: F, instance: [u8; 16]) -> io::Result<Self> {
        let mut out = Vec::with_capacity(WRITE_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&instance);
        out.extend_from_slice(&[0; 4]);
        let header = crc32c::crc32c(&out);
        out.extend_from_slice(&header.to_le_bytes());
        let (bytes, last) = (out.len() as u64, Place::default());
        Ok(Self { file, out, header, chain: header, bytes, synced: 0, begun: 0, last })
    }

    fn put(&mut self, record: &Record) -> io::Result<()> {
        let mut payload = Vec::new();
        let kind = by_hand::put(&mut payload, &record.change);
        if payload.len() > CHANGE_BYTES_MAX {
            let found = payload.len();
            let message = format!("a change of {found} bytes, allowed are {CHANGE_BYTES_MAX}");
            return Err(io::Error::other(message));
        }
        self.last = Place { number: record.number, time: record.time, wall: record.wall };
        self.put_record(kind, &payload);
        if self.out.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn mark(&mut self) {
        self.put_record(MARK, &[]);
    }

    fn put_record(&mut self, kind: u16, payload: &[u8]) {
        let from = self.out.len();
        self.out.extend_from_slice(&RECORD_MAGIC);
        self.out.extend_from_slice(&kind.to_le_bytes());
        self.out.extend_from_slice(&[0; 2]);
        self.out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.out.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        let Place { number, time, wall } = self.last;
        for word in [number, time.as_nanos(), wall.as_nanos(), self.bytes, self.synced] {
            self.out.extend_from_slice(&word.to_le_bytes());
        }
        let own = crc32c::crc32c_append(self.header, &self.out[from..]);
        self.out.extend_from_slice(&own.to_le_bytes());
        self.chain = crc32c::crc32c_append(self.chain, &self.out[from..]);
        self.out.extend_from_slice(&self.chain.to_le_bytes());
        self.out.extend_from_slice(payload);
        self.bytes += (RECORD_HEADER_BYTES + payload.len()) as u64;
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync()?;
        self.synced = self.bytes;
        Ok(())
    }
}

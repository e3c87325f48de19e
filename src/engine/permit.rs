//! Permits: what a check holds of concurrency limits, and the id by which anyone can give it back.
//!
//! An id is a serial number and a keyed hash of it, so that nobody can guess another's. One id
//! stands for all concurrency limits of its check: each has a *share*, numbered from 0, which is
//! in the table under a key derived from serial and share.

use core::fmt;

use super::key::{Key, KeySpace, Seed};
use super::time::Nanos;

/// What a check was given of concurrency limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Gives it back, or keeps it longer, from anywhere.
    pub id: PermitId,
    /// Time until the first of its shares lapses.
    pub lapses_after: Nanos,
}

/// The name of a permit: 16 bytes without meaning to others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PermitId(pub [u8; 16]);

impl fmt::Display for PermitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for PermitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PermitId({self})")
    }
}

/// Bits of an id's first word that number the permit; the others say how many shares it has.
const SERIAL_BITS: u32 = 56;

/// A permit's number and shares, as its id says them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serial {
    word: u64,
}

impl Serial {
    /// The permit of this number with so many shares.
    pub(super) const fn new(number: u64, shares: u8) -> Self {
        Self { word: number & ((1 << SERIAL_BITS) - 1) | (shares as u64) << SERIAL_BITS }
    }

    /// The serial with this word, as [`Serial::word`] gave it.
    pub(super) const fn from_word(word: u64) -> Self {
        Self { word }
    }

    pub(super) const fn word(self) -> u64 {
        self.word
    }

    pub(super) const fn shares(self) -> u8 {
        (self.word >> SERIAL_BITS) as u8
    }
}

/// The seeds of ids and of the keys of shares.
pub(super) struct PermitSpaces {
    tags: KeySpace,
    shares: KeySpace,
}

impl PermitSpaces {
    pub(super) fn derive(seed: &Seed) -> Self {
        let space = |of: &str| KeySpace::derive(seed, [&b"permit"[..], of.as_bytes()]);
        Self { tags: space("tag"), shares: space("share") }
    }

    /// The id of a permit.
    pub(super) fn id(&self, serial: Serial) -> PermitId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&serial.word.to_le_bytes());
        bytes[8..].copy_from_slice(&self.tag(serial).to_le_bytes());
        PermitId(bytes)
    }

    /// What an id says; `None` if nobody was given it.
    pub(super) fn serial(&self, id: PermitId) -> Option<Serial> {
        let word = |at: usize| Some(u64::from_le_bytes(*id.0.get(at..)?.first_chunk()?));
        let (serial, tag) = (Serial { word: word(0)? }, word(8)?);
        (self.tag(serial) == tag).then_some(serial)
    }

    fn tag(&self, serial: Serial) -> u64 {
        self.tags.key_of_one(&serial.word.to_le_bytes()).low
    }

    /// Under which key the table has a share.
    pub(super) fn key(&self, serial: Serial, share: u8) -> Key {
        let mut bytes = [0; 9];
        bytes[..8].copy_from_slice(&serial.word.to_le_bytes());
        bytes[8] = share;
        self.shares.key_of_one(&bytes)
    }
}

//! FILES. What outlives the process: snapshots of the table, changes by hand, and who the instance is.
//!
//! Owns the formats (`FORMAT.md` beside this file, by byte offset) and the order of writes, syncs
//! and renames; alone maps memory. It decides nothing and knows no door: `node` calls it. A byte
//! from disk never panics and is never believed before its checksum was compared.
//!
//! `log` is the log of a node of a cluster, in a directory of its own.
//!
//! `layout` is pure, bytes to values and back. `storage` is the seam, with real files behind it,
//! and in tests a disk that loses, tears and refuses.

// Mapping a file is unsafe; `files` says why it is sound.
#![allow(unsafe_code)]

mod layout;

mod identity;

mod error;

mod storage;

mod files;

mod snapshot;

mod by_hand;

mod changes;

mod home;

pub mod log;

#[cfg(test)]
pub(crate) mod faulty;

#[cfg(test)]
mod tests;

pub use by_hand::{decode_change, encode_change};
pub use changes::{ADDED_BYTES_MAX, ChangeFile, Place, ReadChanges, Record, Spoilt};
pub use error::DiskError;
pub use files::{Directory, Mapped, boot_id};
pub use home::{ENDING, Home, KEPT, Restore};
pub use identity::{Identity, name_of};
pub use layout::{
    Damage, Header, LimitName, Outline, Section, SectionKind, Totals, VERSION, verify,
};
pub use snapshot::{Ahead, Beside, Loaded, Moment, Verified, WriteError, Written, rest};
pub use storage::{File, Storage};

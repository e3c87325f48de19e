//! An instance's directory: who it is, which snapshots there are, which one counts.
//!
//! A snapshot is written under a name of its own, synced, renamed, the names synced, and read
//! back; only then the one before the previous is removed. So there is, at every moment, either
//! the old one or the new one, whole, under a name that counts.

use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use crate::engine::table::Table;

use super::changes::{self, ChangeFile, ReadChanges};
use super::error::DiskError;
use super::files::{self, Directory, OpenError};
use super::identity::{self, Identity};
use super::layout::{Damage, outline};
use super::snapshot::{Beside, Moment, Verified, WriteError, Written, write};
use super::storage::{File, Storage};

/// How names of snapshots end.
pub const ENDING: &str = ".snap";

/// How names of files end that are being written. What has this name at the start is rubbish.
const UNFINISHED: &str = ".tmp";

/// How names of snapshots end that the operator told us not to use.
const SET_ASIDE: &str = ".snap.aside";

/// Snapshots that are kept.
pub const KEPT: usize = 2;

/// Names that an operating system or a backup puts into directories, and those of a cluster's node.
const HARMLESS: &[&str] = &[files::LOCK, "lost+found", "node", "log"];

/// Which snapshot is restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restore {
    /// The last one.
    #[default]
    Latest,
    /// The one before it. The last one is set aside.
    Previous,
}

/// An instance's directory.
pub struct Home<S: Storage> {
    storage: Arc<S>,
    /// For people.
    path: String,
    identity: Identity,
    /// Numbers of the snapshots, the last one last.
    numbers: Vec<u64>,
    last_number: u64,
}

impl Home<Directory> {
    /// Opens a directory on disk, see [`Home::take`].
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, fresh: Identity) -> Result<Self, DiskError> {
        let name = path.display().to_string();
        let storage = Directory::open(path).map_err(|error| match error {
            OpenError::Locked => DiskError::Locked { path: name.clone() },
            OpenError::Io(source) => {
                DiskError::Io { doing: "open the data directory", path: name.clone(), source }
            }
        })?;
        Self::take(storage, name, fresh)
    }
}

impl<S: Storage> Home<S> {
    /// Takes a directory: the one of an instance, or an empty one, in which `fresh` then begins.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn take(storage: S, path: String, fresh: Identity) -> Result<Self, DiskError> {
        let failed = |doing, name: &str, source| DiskError::Io {
            doing,
            path: if name.is_empty() { path.clone() } else { format!("{path}/{name}") },
            source,
        };
        let mut names = storage.names().map_err(|error| failed("list", "", error))?;
        names.sort();
        for name in names.iter().filter(|name| name.ends_with(UNFINISHED)) {
            storage.remove(name).map_err(|error| failed("remove", name, error))?;
        }
        names.retain(|name| !name.ends_with(UNFINISHED) && !HARMLESS.contains(&&**name));
        let identity = if names.iter().any(|name| name == identity::NAME) {
            let bytes = storage.read(identity::NAME);
            let bytes = bytes.map_err(|error| failed("read", identity::NAME, error))?;
            Identity::decode(&bytes).map_err(|what| DiskError::Identity {
                path: format!("{path}/{}", identity::NAME),
                what,
            })?
        } else if let Some(found) = names.first() {
            return Err(DiskError::Foreign { path, found: found.clone() });
        } else {
            let unfinished = format!("{}{UNFINISHED}", identity::NAME);
            put_whole(&storage, &unfinished, identity::NAME, &fresh.encode())
                .map_err(|error| failed("write", identity::NAME, error))?;
            fresh
        };
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number(name, ENDING)).collect();
        numbers.sort_unstable();
        let aside = names.iter().filter_map(|name| number(name, SET_ASIDE));
        let last_number = numbers.iter().copied().chain(aside).max().unwrap_or_default();
        let storage = Arc::new(storage);
        Ok(Self { storage, path, identity, numbers, last_number })
    }

    /// Reads and verifies the changes by hand. `None`: there were none yet.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn read_changes(&self) -> Result<Option<ReadChanges<S::Bytes>>, DiskError> {
        let path = || format!("{}/{}", self.path, changes::NAME);
        let bytes = match self.storage.read(changes::NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|source| DiskError::Io { doing: "read", path: path(), source })?,
        };
        let read = ReadChanges::verify(bytes, self.identity.id);
        read.map(Some).map_err(|spoilt| DiskError::Changes { path: path(), spoilt })
    }

    /// The file of changes by hand, to be written anew before any is added.
    pub fn change_file(&self) -> ChangeFile<S> {
        ChangeFile::new(Arc::clone(&self.storage), self.identity.id)
    }

    /// Who the instance is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The number of the snapshot to come.
    pub fn next_number(&self) -> u64 {
        self.last_number + 1
    }

    /// The path of a snapshot, for people.
    pub fn path_of(&self, number: u64) -> String {
        format!("{}/{}", self.path, name_of(number))
    }

    /// Reads and verifies the snapshot that is to be restored. `None`: there is none yet.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn restore(&mut self, which: Restore) -> Result<Option<Verified<S::Bytes>>, DiskError> {
        let place = match (which, self.numbers.len()) {
            (Restore::Latest, 0) => return Ok(None),
            (Restore::Latest, snapshots) => snapshots - 1,
            (Restore::Previous, snapshots) => snapshots
                .checked_sub(2)
                .ok_or_else(|| DiskError::NoPrevious { path: self.path.clone() })?,
        };
        let verified = self.read(self.numbers[place])?;
        if which == Restore::Previous
            && let Some(number) = self.numbers.pop()
        {
            // Else the next start would use it, or the next snapshot keep it as its previous one.
            let aside = format!("{number:012}{SET_ASIDE}");
            let set_aside = self.storage.rename(&name_of(number), &aside);
            set_aside.and_then(|()| self.storage.sync_names()).map_err(|source| DiskError::Io {
                doing: "set aside",
                path: self.path_of(number),
                source,
            })?;
        }
        Ok(Some(verified))
    }

    /// The number of the snapshot that counts, if there is one.
    pub fn last(&self) -> Option<u64> {
        self.numbers.last().copied()
    }

    /// The numbers of the snapshots that are kept, the last one last.
    pub fn numbers(&self) -> &[u64] {
        &self.numbers
    }

    /// A snapshot's bytes as they are in the file, verified or not.
    ///
    /// # Errors
    /// The operating system's.
    pub fn bytes(&self, number: u64) -> io::Result<S::Bytes> {
        self.storage.read(&name_of(number))
    }

    /// A file for a snapshot that comes from elsewhere, and the number that it will have.
    ///
    /// # Errors
    /// The operating system's.
    pub fn receive(&mut self) -> io::Result<(u64, S::File)> {
        self.last_number += 1;
        let number = self.last_number;
        Ok((number, self.storage.create(&format!("{number:012}{UNFINISHED}"))?))
    }

    /// Makes a snapshot that came from elsewhere the one that counts, once it is verified. Its
    /// file was synced.
    ///
    /// # Errors
    /// See [`WriteError`]; the one before it then still counts.
    pub fn received(&mut self, number: u64) -> Result<(), WriteError> {
        let unfinished = format!("{number:012}{UNFINISHED}");
        let kept = self.keep(number, &unfinished, &mut || {});
        if kept.is_err() {
            self.forget(number);
        }
        kept
    }

    /// Forgets a snapshot whose rest does not come.
    pub fn forget(&mut self, number: u64) {
        // The next start removes it anyway.
        let _ = self.storage.remove(&format!("{number:012}{UNFINISHED}"));
    }

    /// Reads and verifies a snapshot.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn read(&self, number: u64) -> Result<Verified<S::Bytes>, DiskError> {
        let path = self.path_of(number);
        let bytes = self.storage.read(&name_of(number)).map_err(|source| DiskError::Io {
            doing: "read",
            path: path.clone(),
            source,
        })?;
        let verified = Verified::verify(bytes).map_err(|damage| self.damaged(number, damage))?;
        let header = verified.outline().header;
        if header.instance != self.identity.id || header.seed != self.identity.seed {
            let (found, expected) = (header.instance, self.identity.id);
            return Err(DiskError::OtherInstance { path, found, expected });
        }
        Ok(verified)
    }

    /// Says that a snapshot is damaged, and what there is in its place.
    pub fn damaged(&self, number: u64, damage: Damage) -> DiskError {
        let previous = self.numbers.iter().rev().find(|other| **other < number);
        let previous = previous.map(|previous| self.path_of(*previous));
        DiskError::Damaged { path: self.path_of(number), damage, previous }
    }

    /// Writes the snapshot of a moment, numbered as its header says, and makes it the one that
    /// counts.
    ///
    /// # Errors
    /// See [`WriteError`]; the one before it then still counts.
    pub fn write<T: Deref<Target = Table>>(
        &mut self,
        beside: &Beside,
        moment: Moment<T>,
        pace: &mut dyn FnMut(),
    ) -> Result<Written, WriteError> {
        let number = beside.header.number;
        // Whatever becomes of it, no other file gets its number.
        self.last_number = self.last_number.max(number);
        let unfinished = format!("{number:012}{UNFINISHED}");
        let written = write(&*self.storage, &unfinished, beside, moment, pace)
            .and_then(|written| self.keep(number, &unfinished, pace).map(|()| written));
        if written.is_err() {
            // It may never have come to be, and the next start removes it anyway.
            let _ = self.storage.remove(&unfinished);
        }
        written
    }

    fn keep(
        &mut self,
        number: u64,
        unfinished: &str,
        pace: &mut dyn FnMut(),
    ) -> Result<(), WriteError> {
        // Read back before it gets the name that counts: a page cache can be wrong, too.
        let bytes = self.storage.read(unfinished)?;
        let outline = outline(&bytes).map_err(WriteError::Unreadable)?;
        for section in &outline.sections {
            section.verify(&bytes).map_err(WriteError::Unreadable)?;
            pace();
        }
        drop(bytes);
        let name = name_of(number);
        self.storage.rename(unfinished, &name)?;
        self.storage.sync_names()?;
        self.numbers.push(number);
        while self.numbers.len() > KEPT {
            let oldest = self.numbers.remove(0);
            // One too many does no harm.
            let _ = self.storage.remove(&name_of(oldest));
        }
        Ok(())
    }
}

fn name_of(number: u64) -> String {
    format!("{number:012}{ENDING}")
}

/// The number in a file's name.
fn number(name: &str, ending: &str) -> Option<u64> {
    let digits = name.strip_suffix(ending)?;
    let is_number = digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

/// Writes a small file so that it is there whole or not at all.
pub(super) fn put_whole<S: Storage>(
    storage: &S,
    unfinished: &str,
    name: &str,
    bytes: &[u8],
) -> io::Result<()> {
    let mut file = storage.create(unfinished)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync()?;
    storage.rename(unfinished, name)?;
    storage.sync_names()
}

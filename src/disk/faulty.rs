//! A disk in memory that does what disks may do: after a loss of power any of the sectors that
//! were not synced are there, in any subset, some of them torn, and any of the changed names; a
//! sync may fail and what it should have written is gone though it still reads well; room ends in
//! the middle of a write; writes are short; bits flip.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::storage::{File, Storage};

const SECTOR: usize = 512;

/// A disk; clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Power is lost at the operation with this number; a write has come half way.
    Crash { at: usize },
    /// The operation with this number fails; a sync loses what it should have written.
    Fail { at: usize },
    /// There is room for so many bytes.
    Full { bytes: usize },
}

#[derive(Default)]
struct State {
    files: Vec<Inode>,
    /// As programs see them.
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    changed_names: Vec<NameChange>,
    operations: usize,
    fault: Fault,
    has_crashed: bool,
    has_struck: bool,
    written: usize,
    writes_short: bool,
    random: u64,
}

#[derive(Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    unsynced: BTreeSet<usize>,
}

#[derive(Clone)]
enum NameChange {
    Added(String, usize),
    Renamed(String, String, usize),
    Removed(String),
}

/// A file of the disk, being written.
pub(crate) struct Handle {
    disk: Disk,
    inode: usize,
}

impl Disk {
    pub(crate) fn set_fault(&self, fault: Fault) {
        self.state().fault = fault;
    }

    /// From now on most writes take only a part.
    pub(crate) fn write_short(&self) {
        self.state().writes_short = true;
    }

    /// Whether power was lost.
    pub(crate) fn is_off(&self) -> bool {
        self.state().has_crashed
    }

    /// Whether the fault has come to pass since this was asked last.
    pub(crate) fn has_struck(&self) -> bool {
        core::mem::take(&mut self.state().has_struck)
    }

    pub(crate) fn operations(&self) -> usize {
        self.state().operations
    }

    /// Flips a bit of a file.
    pub(crate) fn flip(&self, name: &str, bit: usize) {
        let mut state = self.state();
        let inode = state.names[name];
        state.files[inode].bytes[bit / 8] ^= 1 << (bit % 8);
    }

    /// The disk as it may be after a loss of power now; one of the many ways, chosen by `seed`.
    pub(crate) fn after_loss_of_power(&self, seed: u64) -> Self {
        let state = self.state();
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let files: Vec<Inode> = state.files.iter().map(|file| file.survivor(&mut random)).collect();
        let mut names = state.synced_names.clone();
        for change in &state.changed_names {
            if random.below(2) == 0 {
                change.apply(&mut names);
            }
        }
        let synced_names = names.clone();
        Self(Arc::new(Mutex::new(State { files, names, synced_names, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Counts an operation; the lucky ones go on.
    fn operate(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.has_crashed {
            return Err(io::Error::other("the power is off"));
        }
        let number = state.operations;
        state.operations += 1;
        match state.fault {
            Fault::Fail { at } if at == number => {
                state.has_struck = true;
                Err(io::Error::from_raw_os_error(5))
            }
            Fault::Crash { at } if at == number => {
                state.has_struck = true;
                state.has_crashed = true;
                Err(io::Error::other("the power went off"))
            }
            _ => Ok(state),
        }
    }
}

impl Inode {
    fn put(&mut self, from: usize, bytes: &[u8]) {
        let to = from + bytes.len();
        self.bytes.resize(to.max(self.bytes.len()), 0);
        self.bytes[from..to].copy_from_slice(bytes);
        self.unsynced.extend(from / SECTOR..to.div_ceil(SECTOR));
    }

    fn survivor(&self, random: &mut Random) -> Self {
        let mut bytes = self.synced.clone();
        // The length is written by itself. What was cut off may be back.
        if self.bytes.len() < bytes.len() {
            bytes.truncate([bytes.len(), self.bytes.len()][random.below(2) as usize]);
        } else {
            let grown = self.bytes.len() - bytes.len();
            let part = random.below(grown as u64 + 1) as usize;
            let grown = [0, grown, part][random.below(3) as usize];
            bytes.resize(self.synced.len() + grown, 0);
        }
        for sector in &self.unsynced {
            let from = (sector * SECTOR).min(bytes.len());
            let whole = (from + SECTOR).min(bytes.len());
            let to = match random.below(3) {
                0 => from,
                1 => whole,
                _ => from + random.below((whole - from) as u64 + 1) as usize,
            };
            let to = to.min(self.bytes.len()).max(from);
            if from < self.bytes.len() {
                bytes[from..to].copy_from_slice(&self.bytes[from..to]);
            }
        }
        Self { synced: bytes.clone(), bytes, unsynced: BTreeSet::new() }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Added(name, inode) => _ = names.insert(name.clone(), *inode),
            Self::Renamed(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Removed(name) => _ = names.remove(name),
        }
    }
}

impl State {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.changed_names.push(change);
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for Disk {
    type File = Handle;
    type Bytes = Vec<u8>;

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Handle> {
        let mut state = self.operate()?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.files.len();
        state.files.push(Inode::default());
        state.change(NameChange::Added(name.to_owned(), inode));
        Ok(Handle { disk: self.clone(), inode })
    }

    fn append(&self, name: &str) -> io::Result<Handle> {
        let inode = self.operate()?.find(name)?;
        Ok(Handle { disk: self.clone(), inode })
    }

    fn open(&self, name: &str) -> io::Result<Handle> {
        self.append(name)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.state();
        Ok(state.files[state.find(name)?].bytes.clone())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.operate()?;
        let inode = state.find(from)?;
        state.change(NameChange::Renamed(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.operate()?;
        state.find(name)?;
        state.change(NameChange::Removed(name.to_owned()));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.operate()?;
        state.synced_names = state.names.clone();
        state.changed_names.clear();
        Ok(())
    }
}

impl Handle {
    fn put(&self, bytes: &[u8], offset: Option<u64>) -> io::Result<usize> {
        let state = self.disk.operate();
        let at =
            |state: &State| offset.map_or(state.files[self.inode].bytes.len(), |at| at as usize);
        let Ok(mut state) = state else {
            // Half of it may have come to the page cache before the power went.
            let error = state.err();
            let mut state = self.disk.state();
            let at = at(&state);
            state.files[self.inode].put(at, &bytes[..bytes.len() / 2]);
            return Err(error.unwrap_or_else(|| io::ErrorKind::Other.into()));
        };
        let mut room = bytes.len();
        if state.writes_short && room > 0 {
            let mut random = Random(state.random ^ 0xD1B5_4A32_D192_ED03);
            room = 1 + random.below(room as u64) as usize;
            state.random = random.0;
        }
        if let Fault::Full { bytes } = state.fault {
            room = room.min(bytes.saturating_sub(state.written));
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        state.written += room;
        let at = at(&state);
        state.files[self.inode].put(at, &bytes[..room]);
        Ok(room)
    }
}

impl io::Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes, None)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl File for Handle {
    fn sync(&self) -> io::Result<()> {
        match self.disk.operate() {
            Ok(mut state) => {
                let file = &mut state.files[self.inode];
                file.synced = file.bytes.clone();
                file.unsynced.clear();
                Ok(())
            }
            Err(error) => {
                let mut state = self.disk.state();
                if !state.has_crashed {
                    // The pages are marked clean all the same: no later sync writes them.
                    let length = state.files[self.inode].bytes.len();
                    state.files[self.inode].unsynced.clear();
                    state.files[self.inode].synced.resize(length, 0);
                }
                Err(error)
            }
        }
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.operate()?;
        let file = &mut state.files[self.inode].bytes;
        file.resize(file.len().max(bytes as usize), 0);
        Ok(())
    }

    /// What is behind the cut may be back until it is synced; zeros in its place are as new bytes.
    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.operate()?;
        let file = &mut state.files[self.inode];
        let was = file.bytes.len().max(file.synced.len());
        file.bytes.truncate(bytes as usize);
        file.unsynced.extend(bytes as usize / SECTOR..was.div_ceil(SECTOR));
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.put(bytes, Some(offset))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let file = &state.files[self.inode].bytes;
        let from = (offset as usize).min(file.len());
        let room = bytes.len().min(file.len() - from);
        bytes[..room].copy_from_slice(&file[from..from + room]);
        Ok(room)
    }
}

/// Xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        for (left, shift) in [(true, 13), (false, 7), (true, 17)] {
            self.0 ^= if left { self.0 << shift } else { self.0 >> shift };
        }
        (self.0 >> 11) % bound
    }
}

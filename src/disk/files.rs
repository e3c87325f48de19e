//! Real files in a real directory. The one file that maps memory.

use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, MmapOptions};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::storage::{File, Storage};

/// The file whose lock says that a process uses the directory.
pub(super) const LOCK: &str = "lock";

/// A directory, locked for this process until it is dropped.
pub struct Directory {
    path: PathBuf,
    /// Nobody else has it as long as it is open.
    _lock: fs::File,
}

/// Why a directory cannot be had.
#[derive(Debug)]
pub enum OpenError {
    /// Operator: another process uses it.
    Locked,
    /// Operator: the operating system refuses.
    Io(io::Error),
}

impl Directory {
    /// Opens a directory, made if there is none, and locks it.
    ///
    /// # Errors
    /// The system's, or that another process has it.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        if !path.exists() {
            make(path).map_err(OpenError::Io)?;
        }
        let lock = options().create(true).write(true).truncate(false).open(path.join(LOCK));
        let lock = lock.map_err(OpenError::Io)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked),
            Err(TryLockError::Error(error)) => Err(OpenError::Io(error)),
        }
    }
}

/// Makes a directory that outlives a loss of power.
fn make(path: &Path) -> io::Result<()> {
    // It holds the seed of all keys, so it is nobody else's to read.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::File::open(parent)?.sync_all(),
        _ => fs::File::open(".")?.sync_all(),
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

impl Storage for Directory {
    type File = fs::File;
    type Bytes = Mapped;

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<fs::File> {
        options().read(true).write(true).create_new(true).open(self.path.join(name))
    }

    fn append(&self, name: &str) -> io::Result<fs::File> {
        options().append(true).open(self.path.join(name))
    }

    fn open(&self, name: &str) -> io::Result<fs::File> {
        options().read(true).write(true).open(self.path.join(name))
    }

    fn read(&self, name: &str) -> io::Result<Mapped> {
        Mapped::open(&self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }
}

impl File for fs::File {
    fn sync(&self) -> io::Result<()> {
        (&*self).flush()?;
        self.sync_data()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match fallocate(self, FallocateFlags::empty(), 0, bytes) {
            // Some file systems cannot; then the room is found when it is written to.
            Err(Errno::OPNOTSUPP) => self.set_len(bytes),
            allocated => Ok(allocated?),
        }
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, bytes, offset)
    }
}

/// The id of the kernel's present run: another one after every loss of power.
///
/// # Errors
/// The operating system's.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.trim().chars().filter(|digit| *digit != '-').collect();
    match u128::from_str_radix(&digits, 16) {
        Ok(id) if digits.len() == 32 => Ok(id.to_be_bytes()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("boot id is {text:?}"))),
    }
}

/// A file's bytes, mapped. An empty file has no mapping.
pub struct Mapped(Option<Mmap>);

impl Mapped {
    /// Maps a file, whole and for reading.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = fs::File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self(None));
        }
        // Safety: nobody changes the file while it is mapped: files of the directory are written
        // under another name and not changed after that but at their ends, which are not mapped (the
        // log's are, but they are mapped only before anything is written to them), and its lock
        // keeps other processes of ours away. The mapping is private. (Whoever cuts the file off
        // from outside meanwhile
        // ends the process with a signal; no byte is taken for another.)
        let mapped = unsafe { MmapOptions::new().map_copy_read_only(&file)? };
        // A hint. Without it a cold file comes page by page.
        let _ = mapped.advise(Advice::Sequential);
        let _ = mapped.advise(Advice::WillNeed);
        Ok(Self(Some(mapped)))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

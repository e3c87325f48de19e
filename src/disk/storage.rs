//! The seam to the operating system's files: one directory, flat. Real files are behind it, and in
//! tests a disk that loses, tears and refuses.

use std::io::{self, Write};
use std::ops::Deref;

/// One directory of files.
pub trait Storage {
    /// A file being written.
    type File: File;
    /// A file's bytes.
    type Bytes: Deref<Target = [u8]> + Sync;

    /// Names of all files, in no order.
    ///
    /// # Errors
    /// The operating system's.
    fn names(&self) -> io::Result<Vec<String>>;

    /// A new file. It, and its name, may be lost until both are synced.
    ///
    /// # Errors
    /// The operating system's; also if there is one of this name.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// A file that is there, to be written to at its end.
    ///
    /// # Errors
    /// The operating system's.
    fn append(&self, name: &str) -> io::Result<Self::File>;

    /// A file that is there, to be read and written at any place.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// All of a file.
    ///
    /// # Errors
    /// The operating system's.
    fn read(&self, name: &str) -> io::Result<Self::Bytes>;

    /// Gives a file another name, in place of the file that had it.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The operating system's.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Waits until all names, new and changed, would outlive a loss of power.
    ///
    /// # Errors
    /// The operating system's. What has become of the names is not known then.
    fn sync_names(&self) -> io::Result<()>;
}

/// A file being written. Writing may be short.
pub trait File: Write {
    /// Waits until all that was written would outlive a loss of power.
    ///
    /// # Errors
    /// The operating system's. What was written may be lost then, even if a later call succeeds.
    fn sync(&self) -> io::Result<()>;

    /// Makes the file so long, and has room for all of it. What is new reads as zeros.
    ///
    /// # Errors
    /// The operating system's, above all that there is no room.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Cuts the file off behind so many bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn truncate(&self, bytes: u64) -> io::Result<()>;

    /// Writes some of the bytes at this place; returns how many.
    ///
    /// # Errors
    /// The operating system's.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Reads some bytes from this place; returns how many, 0 at the file's end.
    ///
    /// # Errors
    /// The operating system's.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of the bytes at this place.
    ///
    /// # Errors
    /// The operating system's. Some of them may be written.
    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

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
    fn sync(&mut self) -> io::Result<()>;
}

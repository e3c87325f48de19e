//! A node's snapshots, as peers send and receive them.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::File;

use super::host::Disk;
use super::machine::{SharedHome, lock};
use super::peer::{Reading, Receiving, Snapshots};
use super::types::{SnapshotFile, SnapshotMeta};

/// The snapshots of a home.
pub(super) struct HomeSnapshots<S: Disk>(pub(super) SharedHome<S>);

struct Sent<B>(B);

struct Received<S: Disk> {
    home: SharedHome<S>,
    number: u64,
    file: Option<S::File>,
}

impl<S: Disk> Snapshots for HomeSnapshots<S> {
    fn read(&self, file: SnapshotFile) -> io::Result<Box<dyn Reading>> {
        Ok(Box::new(Sent(lock(&self.0).bytes(file.number)?)))
    }

    fn receive(&self, _meta: &SnapshotMeta, _length: u64) -> io::Result<Box<dyn Receiving>> {
        let (number, file) = lock(&self.0).receive()?;
        Ok(Box::new(Received { home: Arc::clone(&self.0), number, file: Some(file) }))
    }
}

impl<B: core::ops::Deref<Target = [u8]> + Send> Reading for Sent<B> {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    fn chunk(&mut self, offset: u64, length: usize) -> io::Result<Bytes> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let to = from.saturating_add(length).min(self.0.len());
        Ok(Bytes::copy_from_slice(&self.0[from..to]))
    }
}

impl<S: Disk> Receiving for Received<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Err(io::Error::other("the snapshot is whole already")),
        }
    }

    fn finish(mut self: Box<Self>) -> io::Result<SnapshotFile> {
        if let Some(file) = &mut self.file.take() {
            file.sync()?;
        }
        let kept = lock(&self.home).received(self.number);
        kept.map_err(|error| io::Error::other(error.to_string()))?;
        Ok(SnapshotFile { number: self.number })
    }
}

impl<S: Disk> Drop for Received<S> {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            lock(&self.home).forget(self.number);
        }
    }
}

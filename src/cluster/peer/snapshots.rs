//! Snapshots from node to node: a manifest with the length, chunks, and an end with the checksum of
//! all. Nothing counts until who receives has verified the whole; what is cut short is discarded.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{interval, timeout};

use crate::cluster::types::{SnapshotFile, SnapshotMeta, Vote};
use crate::cluster::wire::{self, CHUNK_BYTES_MAX, Frame, Kind, SnapshotBegin};

use super::Environment;
use super::connection::{Connection, Turn};
use super::seam::{aside, late, within};

/// Time that one chunk may take, or the wait for a sign that the receiver is at work.
pub(super) const CHUNK_TIME_MAX: Duration = Duration::from_secs(10);
/// How often who installs says that it is at work.
const WORKING_TIME: Duration = Duration::from_secs(1);
/// Snapshots received at a time.
pub(super) const RECEIVING_MAX: usize = 1;
/// How long a snapshot waits for the one before it to be given up.
pub(super) const RECEIVING_WAIT: Duration = Duration::from_secs(1);

/// Where snapshots are kept. All calls may wait for a disk.
pub trait Snapshots: Send + Sync + 'static {
    /// Opens a snapshot of this node to be sent. It stays readable until dropped.
    ///
    /// # Errors
    /// If it is gone or damaged.
    fn read(&self, file: SnapshotFile) -> io::Result<Box<dyn Reading>>;

    /// Begins a snapshot of `length` bytes from a peer, in a place where it does not count yet.
    ///
    /// # Errors
    /// If there is no room for it.
    fn receive(&self, meta: &SnapshotMeta, length: u64) -> io::Result<Box<dyn Receiving>>;
}

/// A snapshot that is sent.
pub trait Reading: Send {
    /// Its bytes.
    fn length(&self) -> u64;

    /// The bytes from `offset`, up to `length` of them and never none; asked in order.
    ///
    /// # Errors
    /// That of the disk.
    fn chunk(&mut self, offset: u64, length: usize) -> io::Result<Bytes>;
}

/// A snapshot that is received. Dropping it discards it.
pub trait Receiving: Send {
    /// Adds bytes.
    ///
    /// # Errors
    /// That of the disk; the snapshot is then given up.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Verifies and syncs the whole, which from then on counts.
    ///
    /// # Errors
    /// If it is damaged, or that of the disk.
    fn finish(self: Box<Self>) -> io::Result<SnapshotFile>;
}

/// Sends a snapshot and waits until it is installed; the receiver's vote.
pub(super) async fn send(
    environment: &Environment,
    connection: &mut Connection,
    vote: Vote,
    meta: SnapshotMeta,
    file: SnapshotFile,
) -> io::Result<Vote> {
    let net = &*environment.net;
    let snapshots = Arc::clone(&environment.snapshots);
    let mut reading = aside(net, move || snapshots.read(file)).await??;
    let length = reading.length();
    connection.put(|out| wire::put_snapshot_begin(&SnapshotBegin { vote, length, meta }, out))?;
    let frame = answer(connection).await?;
    if frame.kind != Kind::SnapshotReady {
        return outcome(&frame);
    }
    let (mut offset, mut checksum) = (0, 0);
    while offset < length {
        let want = CHUNK_BYTES_MAX.min(usize::try_from(length - offset).unwrap_or(usize::MAX));
        let (back, chunk) = aside(net, move || {
            let chunk = reading.chunk(offset, want);
            (reading, chunk)
        })
        .await?;
        reading = back;
        let chunk = chunk?;
        if chunk.is_empty() || chunk.len() > want {
            let text = format!("{} bytes at {offset} of a snapshot of {length}", chunk.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        checksum = crc32c::crc32c_append(checksum, &chunk);
        connection.put(|out| wire::put_numbered(Kind::SnapshotChunk, offset, &chunk, out))?;
        offset += chunk.len() as u64;
        // The receiver may give up early; nothing else comes from it now.
        match within(CHUNK_TIME_MAX, connection.turn(true)).await? {
            Turn::Room => {}
            Turn::Frame(frame) => return outcome(&frame),
        }
    }
    connection.put(|out| wire::put_snapshot_end(checksum, out))?;
    loop {
        let frame = answer(connection).await?;
        if frame.kind != Kind::SnapshotWorking {
            let vote = outcome(&frame)?;
            environment.counters.snapshots_sent.fetch_add(1, Relaxed);
            return Ok(vote);
        }
    }
}

async fn answer(connection: &mut Connection) -> io::Result<Frame> {
    within(CHUNK_TIME_MAX, connection.expect_frame()).await
}

/// How it ended.
fn outcome(frame: &Frame) -> io::Result<Vote> {
    match frame.kind {
        Kind::SnapshotDone => Ok(wire::snapshot_done(&frame.body)?),
        Kind::SnapshotFailed => Err(io::Error::other(wire::text(&frame.body))),
        _ => Err(wire::WireError::Kind(frame.kind as u8).into()),
    }
}

/// Receives what [`send`] sends after its manifest, up to a verified file.
pub(super) async fn receive(
    environment: &Environment,
    connection: &mut Connection,
    begin: &SnapshotBegin,
) -> io::Result<SnapshotFile> {
    let net = &*environment.net;
    let (snapshots, meta, length) =
        (Arc::clone(&environment.snapshots), begin.meta.clone(), begin.length);
    let mut receiving = aside(net, move || snapshots.receive(&meta, length)).await??;
    connection.put(|out| wire::put_empty(Kind::SnapshotReady, out))?;
    let (mut received, mut checksum) = (0, 0);
    let expected = loop {
        let frame = within(CHUNK_TIME_MAX, connection.expect_frame()).await?;
        match frame.kind {
            Kind::SnapshotChunk => {}
            Kind::SnapshotEnd => break wire::snapshot_end(&frame.body)?,
            kind => return Err(wire::WireError::Kind(kind as u8).into()),
        }
        let (offset, chunk) = wire::numbered(frame.body)?;
        let after = received + chunk.len() as u64;
        if offset != received || chunk.is_empty() || after > length {
            let text = format!(
                "a chunk of {} bytes at {offset}, expected at {received} of {length}",
                chunk.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        checksum = crc32c::crc32c_append(checksum, &chunk);
        received = after;
        let (back, written) = aside(net, move || {
            let written = receiving.write(&chunk);
            (receiving, written)
        })
        .await?;
        receiving = back;
        written?;
    };
    if received != length || checksum != expected {
        let text = format!(
            "a snapshot of {received} bytes with checksum {checksum:#010x} came, expected {length} \
             with {expected:#010x}"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let file = working(connection, aside(net, move || receiving.finish())).await???;
    environment.counters.snapshots_received.fetch_add(1, Relaxed);
    Ok(file)
}

/// Says at intervals that it is at work, until `work` is done. There is no limit to how long that is:
/// tables differ in size.
pub(super) async fn working<T>(
    connection: &mut Connection,
    work: impl Future<Output = T>,
) -> io::Result<T> {
    let mut work = core::pin::pin!(work);
    let mut sign = interval(WORKING_TIME);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            _ = sign.tick() => {
                connection.put(|out| wire::put_empty(Kind::SnapshotWorking, out))?;
                if timeout(CHUNK_TIME_MAX, connection.flush()).await.is_err() {
                    return Err(late(CHUNK_TIME_MAX));
                }
            }
        }
    }
}

/// Says that it failed, and why.
pub(super) async fn failed(connection: &mut Connection, error: &io::Error) -> io::Result<()> {
    let text = error.to_string();
    connection.put(|out| wire::put_snapshot_failed(&text, out))?;
    within(CHUNK_TIME_MAX, connection.flush()).await
}

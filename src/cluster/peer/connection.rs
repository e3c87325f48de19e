//! A connection that carries frames. What was not yet written and not yet taken is in it, so that
//! whoever waits for it may give up at any moment and the next one goes on where it stood.

use core::future::poll_fn;
use core::pin::{Pin, pin};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::time::{Sleep, sleep};

use crate::cluster::wire::{self, Frame, Kind, WireError};

use super::Counters;
use super::seam::{Stream, late};

/// Time between signs of life.
pub(super) const PING_TIME: Duration = Duration::from_millis(250);
/// Who dialed gives a connection up after so many of these times without a byte.
pub(super) const SILENT_MAX_DIALED: u32 = 4;
/// Who accepted, after so many: a connection may rest between two uses.
pub(super) const SILENT_MAX_ACCEPTED: u32 = 20;

/// Bytes asked for with one read, but for the rest of a longer frame.
const READ_BYTES: usize = 64 << 10;
/// Bytes that wait to be written before more is encoded, but for one frame.
pub(super) const WRITE_BYTES: usize = 256 << 10;

/// A connection.
pub(super) struct Connection {
    stream: Stream,
    /// Not yet taken.
    input: BytesMut,
    /// Not yet written.
    output: BytesMut,
    expected: &'static [Kind],
    counters: Arc<Counters>,
    /// Whether anything was read since it was asked last.
    has_read: bool,
}

impl Connection {
    /// Of the frames that come, only those of `expected` are read.
    pub(super) fn new(stream: Stream, expected: &'static [Kind], counters: Arc<Counters>) -> Self {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { stream, input, output, expected, counters, has_read: false }
    }

    /// Other frames are expected from here on.
    pub(super) fn expect(&mut self, expected: &'static [Kind]) {
        self.expected = expected;
    }

    /// Whether enough waits to be written.
    pub(super) fn is_full(&self) -> bool {
        self.output.len() >= WRITE_BYTES
    }

    /// Whether anything waits to be written.
    pub(super) fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// Whether bytes have come since the last call.
    pub(super) fn has_read(&mut self) -> bool {
        core::mem::take(&mut self.has_read)
    }

    /// Adds a frame to what is to be written.
    pub(super) fn put<T>(
        &mut self,
        put: impl FnOnce(&mut BytesMut) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        let value = put(&mut self.output)?;
        self.counters.frames_sent.fetch_add(1, Relaxed);
        Ok(value)
    }

    /// Writes what waits.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.counters.bytes_sent.fetch_add(written as u64, Relaxed);
            self.output.advance(written);
        }
        if self.output.capacity() > 4 * WRITE_BYTES {
            self.output = BytesMut::new();
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// The next frame, or `None` at the end of the stream.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Frame>>> {
        loop {
            if let Some(frame) = wire::take(&mut self.input, self.expected)? {
                self.counters.frames_received.fetch_add(1, Relaxed);
                return Poll::Ready(Ok(Some(frame)));
            }
            if self.input.capacity() - self.input.len() < READ_BYTES / 16 {
                self.input.reserve(READ_BYTES);
            }
            let read = ready!(self.poll_read(cx))?;
            if read == 0 && self.input.is_empty() {
                return Poll::Ready(Ok(None));
            }
            if read == 0 {
                let text = "the connection ended within a frame";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = ready!(pin!(self.stream.read_buf(&mut self.input)).poll(cx))?;
        self.counters.bytes_received.fetch_add(read as u64, Relaxed);
        self.has_read |= read > 0;
        Poll::Ready(Ok(read))
    }

    /// Writes what waits.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// The next frame; what waits is written meanwhile.
    pub(super) async fn frame(&mut self) -> io::Result<Option<Frame>> {
        poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            self.poll_frame(cx)
        })
        .await
    }

    /// The next frame, or, if it is waited for, that all is written.
    pub(super) async fn turn(&mut self, wants_room: bool) -> io::Result<Turn> {
        poll_fn(|cx| {
            match self.poll_flush(cx) {
                Poll::Ready(Ok(())) if wants_room => return Poll::Ready(Ok(Turn::Room)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                _ => {}
            }
            Poll::Ready(match ready!(self.poll_frame(cx))? {
                Some(frame) => Ok(Turn::Frame(frame)),
                None => Err(ended()),
            })
        })
        .await
    }

    /// The next frame, or none until something else happens if it must not be read; what waits is written
    /// either way.
    pub(super) async fn frame_if(&mut self, reads: bool) -> io::Result<Frame> {
        poll_fn(|cx| match self.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ if reads => Poll::Ready(ready!(self.poll_frame(cx))?.ok_or_else(ended)),
            _ => Poll::Pending,
        })
        .await
    }

    /// The next frame, where an end of the stream is an error.
    pub(super) async fn expect_frame(&mut self) -> io::Result<Frame> {
        self.frame().await?.ok_or_else(ended)
    }
}

/// What happened to a connection.
pub(super) enum Turn {
    /// This came.
    Frame(Frame),
    /// All is written.
    Room,
}

/// Says at intervals that this end lives, and notices when the other says nothing.
pub(super) struct Pulse {
    next: Pin<Box<Sleep>>,
    silent: u32,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { next: Box::pin(sleep(PING_TIME)), silent: 0 }
    }

    /// Waits until a sign of life is due.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.next.as_mut().poll(cx));
        self.next = Box::pin(sleep(PING_TIME));
        Poll::Ready(())
    }

    /// Waits until a sign of life is due.
    pub(super) async fn due(&mut self) {
        poll_fn(|cx| self.poll_due(cx)).await;
    }

    /// Adds a sign of life, which is due, to what is to be written.
    ///
    /// # Errors
    /// If nothing has come `silent_max` times in a row.
    pub(super) fn beat(&mut self, connection: &mut Connection, silent_max: u32) -> io::Result<()> {
        self.silent = if connection.has_read() { 0 } else { self.silent + 1 };
        if self.silent >= silent_max {
            return Err(late(PING_TIME * silent_max));
        }
        // A peer that does not read finds one sign as good as many.
        if connection.is_flushed() {
            connection.put(|out| wire::put_empty(Kind::Ping, out))?;
        }
        Ok(())
    }
}

/// What is said of a peer that closed the connection.
pub(super) fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection")
}

//! Finding frames in a stream of bytes, wherever the stream was cut.

use alloc::vec::Vec;

use crate::codec::Reader;
use crate::error::{DecodeError, FrameError};
use crate::header::{Flags, Header, Op};
use crate::limits::{HEADER_BYTES, ITEM_HEADER_BYTES};

/// A whole frame: its header and the bytes behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The first 16 bytes.
    pub header: Header,
    /// All bytes behind the header.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The message without its envelope, as [`Request`](crate::Request) and
    /// [`Response`](crate::Response) decode it.
    #[inline]
    pub fn message(&self) -> Message<'a> {
        Message {
            op: self.header.op,
            flags: self.header.flags,
            body: self.body,
            offset: HEADER_BYTES as u32,
        }
    }
}

/// Op, flags and body: what a frame and a batch item have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What the message is.
    pub op: Op,
    /// Its flags.
    pub flags: Flags,
    /// The bytes behind its header.
    pub body: &'a [u8],
    /// Where the body begins, in bytes from the start of the frame.
    pub offset: u32,
}

impl<'a> Message<'a> {
    /// Takes one batch item from the bytes.
    ///
    /// # Errors
    /// `BAD_FRAME` if its length is below that of its header or beyond the bytes.
    #[inline]
    pub(crate) fn read_item(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let at = *reader;
        let length = reader.u32("item length")? as usize;
        let op = Op(reader.u16("item op")?);
        let flags = Flags(reader.u16("item flags")?);
        let Some(rest) = length.checked_sub(ITEM_HEADER_BYTES) else {
            let (min, max) = (ITEM_HEADER_BYTES as u64, u64::from(u32::MAX));
            let code = crate::status::Code::BadFrame;
            return Err(at.out_of_range(code, "item length", length as u64, min, max));
        };
        let offset = reader.offset();
        let body = reader.take(rest, "item length")?;
        Ok(Self { op, flags, body, offset })
    }

    /// Whether a frame with this message is to be answered. One with NO_REPLY is not, neither with
    /// its result nor with an error, unless the error closes the connection; but a flag that means
    /// nothing with the op silences nothing.
    #[inline]
    pub fn wants_reply(&self) -> bool {
        let quiet = Flags::NO_REPLY;
        !(self.flags.contains(quiet) && self.op.flags_allowed().contains(quiet))
    }

    /// The error that these flags hold others than `allowed`.
    #[cold]
    pub fn unsupported_flag(&self, allowed: Flags) -> DecodeError {
        // The flags end the header of an item; in a frame's, the call id follows.
        let back = if self.offset as usize == HEADER_BYTES { 10 } else { 2 };
        let offset = self.offset.saturating_sub(back);
        let (found, max) = (u64::from(self.flags.0), u64::from(allowed.0));
        let code = crate::status::Code::UnsupportedFlag;
        DecodeError { code, field: "flags", offset, found, min: 0, max }
    }

    /// The error that this op is not one that can be decoded here.
    #[cold]
    pub fn unsupported_op(&self) -> DecodeError {
        // In a frame, flags and call id follow the op; in an item, only flags.
        let back = if self.offset as usize == HEADER_BYTES { 12 } else { 4 };
        let offset = self.offset.saturating_sub(back);
        let found = u64::from(self.op.0);
        let code = crate::status::Code::UnsupportedOp;
        DecodeError { code, field: "op", offset, found, min: 1, max: 0 }
    }
}

/// The frame at the front of `bytes` and how many bytes it takes, or `None` while it is not whole.
///
/// The length is judged as soon as its four bytes are there: a frame above `max` is an error long
/// before a caller would make room for it.
///
/// # Errors
/// If the length is below 16 or above `max`. The stream cannot be read any further.
#[inline]
pub fn next_frame(bytes: &[u8], max: usize) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return match bytes.first_chunk() {
            Some(length) => judge_length(u32::from_le_bytes(*length), max).map(|_| None),
            None => Ok(None),
        };
    };
    let [l0, l1, l2, l3, o0, o1, f0, f1, c0, c1, c2, c3, c4, c5, c6, c7] = *header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let body_bytes = judge_length(length, max)?;
    let Some(body) = rest.get(..body_bytes) else { return Ok(None) };
    let header = Header {
        length,
        op: Op(u16::from_le_bytes([o0, o1])),
        flags: Flags(u16::from_le_bytes([f0, f1])),
        call: u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
    };
    Ok(Some((Frame { header, body }, length as usize)))
}

/// Bytes of the body of a frame of this length.
#[inline]
fn judge_length(length: u32, max: usize) -> Result<usize, FrameError> {
    let frame_bytes = length as usize;
    if frame_bytes > max {
        return Err(FrameError::TooLong { length, max: max as u32 });
    }
    frame_bytes.checked_sub(HEADER_BYTES).ok_or(FrameError::TooShort { length })
}

/// Bytes that arrived and the frames in them: for callers that have no buffer of their own.
///
/// Holds at most one frame more than the caller appends between two calls of
/// [`next_frame`](Self::next_frame).
#[derive(Clone, Debug)]
pub struct Assembler {
    bytes: Vec<u8>,
    taken: usize,
    frame_bytes_max: usize,
}

impl Assembler {
    /// Takes frames of at most `frame_bytes_max` bytes.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { bytes: Vec::new(), taken: 0, frame_bytes_max }
    }

    /// Allows frames of another length from now on, as after the handshake.
    pub fn allow_frame_bytes(&mut self, max: usize) {
        self.frame_bytes_max = max;
    }

    /// Appends what arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// As [`next_frame`]; every later call fails alike.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        match next_frame(rest, self.frame_bytes_max)? {
            Some((frame, consumed)) => {
                self.taken += consumed;
                Ok(Some(frame))
            }
            None => Ok(None),
        }
    }

    /// Bytes that have arrived and belong to no frame taken yet.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.taken
    }
}

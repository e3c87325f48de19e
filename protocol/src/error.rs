//! What can be wrong with bytes, and with values that are to become bytes.
//!
//! Both name the field, what was found and what was allowed, so that a message can be made from
//! them; nothing is formatted before someone asks for it.

use core::fmt;

use crate::status::Code;

/// Bytes that are not a message of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The error code to answer with.
    pub code: Code,
    /// The field, as `SPEC.md` names it.
    pub field: &'static str,
    /// Where the field begins, in bytes from the start of the frame.
    pub offset: u32,
    /// The number found: a value, or a count of bytes.
    pub found: u64,
    /// Lowest number allowed.
    pub min: u64,
    /// Highest number allowed; below `min` if no number is.
    pub max: u64,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, offset, found, min, max, .. } = self;
        if self.code == Code::UnsupportedOp {
            write!(f, "op {found:#06x} is not supported")
        } else if self.code == Code::UnsupportedFlag {
            write!(f, "flags {found:#06x}: must-understand bits allowed here are {max:#06x}")
        } else if min == max {
            write!(f, "{field} at byte {offset}: found {found}, allowed {min}")
        } else if min > max {
            write!(f, "{field} at byte {offset}: found {found}, which is not allowed")
        } else {
            write!(f, "{field} at byte {offset}: found {found}, allowed {min} to {max}")
        }
    }
}

impl core::error::Error for DecodeError {}

/// Why the bytes at the front of a stream are no frame. The stream cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The length is below that of a header.
    TooShort {
        /// The length found.
        length: u32,
    },
    /// The length is above the maximum.
    TooLong {
        /// The length found.
        length: u32,
        /// The maximum.
        max: u32,
    },
}

impl FrameError {
    /// The same, as the error to answer with before closing.
    pub fn to_decode_error(self) -> DecodeError {
        let min = crate::limits::HEADER_BYTES as u64;
        let (code, length, max) = match self {
            Self::TooShort { length } => {
                (Code::BadFrame, length, crate::limits::FRAME_BYTES_MAX as u64)
            }
            Self::TooLong { length, max } => (Code::TooLarge, length, u64::from(max)),
        };
        DecodeError { code, field: "length", offset: 0, found: u64::from(length), min, max }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_decode_error(), f)
    }
}

impl core::error::Error for FrameError {}

/// A value that does not fit its field. The buffer is left as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeError {
    /// The field, as `SPEC.md` names it.
    pub field: &'static str,
    /// The number found: a value, a count of items or of bytes.
    pub found: u64,
    /// Highest number allowed.
    pub max: u64,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, allowed at most {}", self.field, self.found, self.max)
    }
}

impl core::error::Error for EncodeError {}

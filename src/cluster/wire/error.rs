//! What is wrong with bytes of a peer or of a file.

use core::fmt;

use super::VERSION;

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireError {
    /// A frame of another version.
    Version(u8),
    /// A frame of a kind that is not known, or not expected here.
    Kind(u8),
    /// A body or value longer than its kind allows.
    Length {
        /// Of what.
        what: &'static str,
        /// Its bytes.
        found: usize,
        /// The most it may have.
        max: usize,
    },
    /// The checksum differs.
    Checksum,
    /// The frame is whole and what it says makes no sense.
    Body {
        /// Of what.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(found) => write!(f, "frame version is {found}, expected {VERSION}"),
            Self::Kind(found) => write!(f, "a frame of kind {found} is not expected here"),
            Self::Length { what, found, max } => {
                write!(f, "{what} has {found} bytes, at most {max} are allowed")
            }
            Self::Checksum => f.write_str("a frame's checksum differs from its bytes"),
            Self::Body { what, why } => write!(f, "{what}: {why}"),
        }
    }
}

impl core::error::Error for WireError {}

impl From<WireError> for std::io::Error {
    fn from(error: WireError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

pub(super) fn wrong(what: &'static str, why: impl fmt::Display) -> WireError {
    WireError::Body { what, why: why.to_string() }
}

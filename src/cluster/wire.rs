//! What peers say to each other, as bytes: frames, and the values in them. Pure.
//!
//! Values are in the layout of bincode's first version (fixed little-endian numbers, lengths of 8
//! bytes), which other crates write too. Entries of the log, chunks of snapshots and frames
//! of links are never copied on the way in: they are slices of what was read.
//!
//! A frame is a header of [`HEADER_BYTES`] and a body. By byte offset, little-endian:
//!
//! | at | bytes | |
//! | --- | --- | --- |
//! | 0 | 4 | length of the body, at most what its kind allows |
//! | 4 | 1 | [`VERSION`] |
//! | 5 | 1 | kind |
//! | 6 | 2 | zero |
//! | 8 | 4 | CRC32C of the 8 bytes before and of the body |

mod error;

mod values;

mod membership;

mod greetings;

mod appends;

mod calls;

mod snapshots;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use appends::{APPEND_HEAD_BYTES_MAX, ENTRY_HEAD_BYTES};

pub(super) use appends::{
    Envelope, Sequence, append, append_answer, last_of, put_append, put_append_answer,
};
pub(super) use calls::{
    numbered, put_empty, put_failure, put_link, put_numbered, put_transfer, put_transfer_answer,
    put_vote, put_vote_answer, transfer, transfer_answer, vote, vote_answer,
};
pub use error::WireError;
pub(super) use greetings::{
    Hello, Purpose, Welcome, hello, put_hello, put_refusal, put_welcome, refusal, welcome,
};
pub use greetings::{Reason, Refusal};
pub use membership::{
    Members, decode_membership, decode_snapshot_meta, decode_stored_membership, encode_membership,
    encode_snapshot_meta, encode_stored_membership,
};
pub(super) use snapshots::{
    SnapshotBegin, put_snapshot_begin, put_snapshot_done, put_snapshot_end, put_snapshot_failed,
    snapshot_begin, snapshot_done, snapshot_end,
};
pub(super) use values::text;

/// Version of the frames and of what is in them.
pub const VERSION: u8 = 1;
/// Bytes of a frame before its body.
pub const HEADER_BYTES: usize = 12;
/// Longest body of an append: entries beyond it go into the next frame.
pub const APPEND_BYTES_MAX: usize = 4 << 20;
/// Longest entry that fits an append.
pub const ENTRY_BYTES_MAX: usize = APPEND_BYTES_MAX - APPEND_HEAD_BYTES_MAX - ENTRY_HEAD_BYTES;
/// Longest body of a vote, an answer or an acknowledgement.
pub const ANSWER_BYTES_MAX: usize = 256;
/// Longest body of a hello or its answer.
pub const HELLO_BYTES_MAX: usize = 768;
/// Longest name of a cluster.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest reason, in words, of a refusal or a failure.
pub const TEXT_BYTES_MAX: usize = 512;
/// Longest question or reply of [`ask`](super::peer::Peers::ask).
pub const ASK_BYTES_MAX: usize = 16 << 10;
/// Longest frame of a link.
pub const LINK_BYTES_MAX: usize = 1 << 20;
/// Bytes of a snapshot in one frame.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;
/// Longest encoded membership.
pub const MEMBERSHIP_BYTES_MAX: usize = 64 << 10;
/// Longest encoded [`SnapshotMeta`](super::types::SnapshotMeta).
pub const SNAPSHOT_META_BYTES_MAX: usize = MEMBERSHIP_BYTES_MAX + 128;

macro_rules! kinds {
    ($($name:ident = $code:literal, $max:expr;)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kind { $($name = $code),* }

        impl Kind {
            fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// Longest body.
            pub(super) const fn body_bytes_max(self) -> usize {
                match self { $(Self::$name => $max),* }
            }

            #[cfg(test)]
            const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

kinds! {
    Hello = 1, HELLO_BYTES_MAX;
    Welcome = 2, HELLO_BYTES_MAX;
    Refusal = 3, HELLO_BYTES_MAX;
    Ping = 4, 0;
    Pong = 5, 0;
    Append = 16, APPEND_BYTES_MAX;
    AppendAnswer = 17, ANSWER_BYTES_MAX;
    Vote = 32, ANSWER_BYTES_MAX;
    PreVote = 33, ANSWER_BYTES_MAX;
    VoteAnswer = 34, ANSWER_BYTES_MAX;
    Transfer = 35, ANSWER_BYTES_MAX;
    TransferAnswer = 36, ANSWER_BYTES_MAX;
    Ask = 37, 8 + ASK_BYTES_MAX;
    AskAnswer = 38, 8 + ASK_BYTES_MAX;
    Failure = 39, 8 + TEXT_BYTES_MAX;
    SnapshotBegin = 48, 64 + SNAPSHOT_META_BYTES_MAX;
    SnapshotReady = 49, 0;
    SnapshotChunk = 50, 8 + CHUNK_BYTES_MAX;
    SnapshotEnd = 51, 8;
    SnapshotWorking = 52, 0;
    SnapshotDone = 53, ANSWER_BYTES_MAX;
    SnapshotFailed = 54, TEXT_BYTES_MAX;
    Link = 64, LINK_BYTES_MAX;
}

/// A whole frame whose checksum was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// What it is.
    pub(super) kind: Kind,
    /// What it says.
    pub(super) body: Bytes,
}

/// Appends a frame whose body `fill` writes. Nothing is appended if it fails or writes too much.
pub(super) fn put(
    out: &mut BytesMut,
    kind: Kind,
    fill: impl FnOnce(&mut BytesMut) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let start = out.len();
    out.put_bytes(0, HEADER_BYTES);
    let filled = fill(out).and_then(|()| {
        let found = out.len() - start - HEADER_BYTES;
        let max = kind.body_bytes_max();
        if found > max {
            Err(WireError::Length { what: name(kind), found, max })
        } else {
            Ok(found)
        }
    });
    match filled {
        Ok(length) => {
            let frame = &mut out[start..];
            // The maxima are far below 4 GiB.
            frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
            frame[4] = VERSION;
            frame[5] = kind as u8;
            let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..8]), &frame[HEADER_BYTES..]);
            frame[8..12].copy_from_slice(&crc.to_le_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Takes the frame at the front, once it is whole. Only kinds of `expected` are read, so that
/// nobody can announce more than is wanted of them. Reserves what the rest of the frame needs.
pub(super) fn take(buffer: &mut BytesMut, expected: &[Kind]) -> Result<Option<Frame>, WireError> {
    let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
    if header[4] != VERSION {
        return Err(WireError::Version(header[4]));
    }
    let kind = Kind::from_code(header[5]).filter(|kind| expected.contains(kind));
    let Some(kind) = kind.filter(|_| header[6] == 0 && header[7] == 0) else {
        return Err(WireError::Kind(header[5]));
    };
    let (length, max) = (word(0) as usize, kind.body_bytes_max());
    if length > max {
        return Err(WireError::Length { what: name(kind), found: length, max });
    }
    let checksum = word(8);
    let head = crc32c::crc32c(&header[..8]);
    let Some(missing) = (HEADER_BYTES + length).checked_sub(buffer.len()).filter(|&m| m > 0) else {
        let mut frame = buffer.split_to(HEADER_BYTES + length).freeze();
        frame.advance(HEADER_BYTES);
        if crc32c::crc32c_append(head, &frame) != checksum {
            return Err(WireError::Checksum);
        }
        return Ok(Some(Frame { kind, body: frame }));
    };
    buffer.reserve(missing);
    Ok(None)
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Append => "an append",
        Kind::Ask => "a question",
        Kind::AskAnswer => "a reply",
        Kind::Link => "a link's frame",
        Kind::SnapshotChunk => "a chunk",
        Kind::Hello | Kind::Welcome | Kind::Refusal => "a hello or its answer",
        _ => "a frame",
    }
}

#[cfg(test)]
mod tests;

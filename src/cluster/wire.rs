//! What peers say to each other, as bytes: frames, and the values in them. Pure.
//!
//! Alone names bincode, in the layout of its first version (fixed little-endian numbers, lengths
//! of 8 bytes), which other crates write too. Entries of the log, chunks of snapshots and frames
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

use core::fmt;
use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EntryPayload, LogIdOptionExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::types::{
    Entry, LeaderId, LogEntry, LogId, Member, Membership, NodeId, SnapshotMeta, TypeConfig, Vote,
};

#[cfg(test)]
mod tests;

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
/// Longest encoded [`SnapshotMeta`].
pub const SNAPSHOT_META_BYTES_MAX: usize = MEMBERSHIP_BYTES_MAX + 128;

const APPEND_HEAD_BYTES_MAX: usize = 128;
const ENTRY_HEAD_BYTES: usize = 8 + 8 + 8 + 1 + 4;
const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;
const MAGIC: [u8; 8] = *b"TKPEER\r\n";

/// The voters and learners that an entry of the log names.
pub type Members = openraft::Membership<NodeId, Member>;

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

fn wrong(what: &'static str, why: impl fmt::Display) -> WireError {
    WireError::Body { what, why: why.to_string() }
}

/// Writes `value` in at most `MAX` bytes.
fn encode<const MAX: usize>(
    what: &'static str,
    value: &impl Serialize,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let config = bincode::config::legacy().with_limit::<MAX>();
    let mut writer = BoundedWriter { out, left: MAX };
    match bincode::serde::encode_into_std_write(value, &mut writer, config) {
        Ok(_) => Ok(()),
        Err(error) => Err(wrong(what, error)),
    }
}

/// Reads a value at the front, of at most `MAX` bytes, and says how many it took.
fn decode_front<const MAX: usize, T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<(T, usize), WireError> {
    let config = bincode::config::legacy().with_limit::<MAX>();
    bincode::serde::decode_from_slice(bytes, config).map_err(|error| wrong(what, error))
}

/// Reads a value that is all there is.
fn decode<const MAX: usize, T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, WireError> {
    let (value, taken) = decode_front::<MAX, T>(what, bytes)?;
    if taken != bytes.len() {
        return Err(wrong(what, format_args!("{} bytes follow it", bytes.len() - taken)));
    }
    Ok(value)
}

/// bincode's limit holds for reading only.
struct BoundedWriter<'a> {
    out: &'a mut BytesMut,
    left: usize,
}

impl std::io::Write for BoundedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.left {
            return Err(std::io::Error::other("it is longer than is allowed"));
        }
        self.left -= bytes.len();
        self.out.put_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// For files.

/// The bytes of a membership as an entry of the log has it.
///
/// # Errors
/// If it is longer than [`MEMBERSHIP_BYTES_MAX`].
pub fn encode_membership(members: &Members) -> Result<Bytes, WireError> {
    let mut out = BytesMut::new();
    put_membership(members, &mut out)?;
    Ok(out.freeze())
}

/// Reads what [`encode_membership`] wrote.
///
/// # Errors
/// If the bytes are damaged, or if a voter is no member.
pub fn decode_membership(bytes: &[u8]) -> Result<Members, WireError> {
    let read: Members = decode::<MEMBERSHIP_BYTES_MAX, _>("a membership", bytes)?;
    valid(&read)
}

/// The bytes of a membership with the entry that made it.
///
/// # Errors
/// If it is longer than [`SNAPSHOT_META_BYTES_MAX`].
pub fn encode_stored_membership(membership: &Membership) -> Result<Bytes, WireError> {
    let mut out = BytesMut::new();
    encode::<SNAPSHOT_META_BYTES_MAX>("a membership", membership, &mut out)?;
    Ok(out.freeze())
}

/// Reads what [`encode_stored_membership`] wrote.
///
/// # Errors
/// If the bytes are damaged, or if a voter is no member.
pub fn decode_stored_membership(bytes: &[u8]) -> Result<Membership, WireError> {
    let read: Membership = decode::<SNAPSHOT_META_BYTES_MAX, _>("a membership", bytes)?;
    valid_stored(&read)?;
    Ok(read)
}

/// The bytes of what is known of a snapshot.
///
/// # Errors
/// If they are more than [`SNAPSHOT_META_BYTES_MAX`].
pub fn encode_snapshot_meta(meta: &SnapshotMeta) -> Result<Bytes, WireError> {
    let mut out = BytesMut::new();
    encode::<SNAPSHOT_META_BYTES_MAX>("a snapshot's meta", meta, &mut out)?;
    Ok(out.freeze())
}

/// Reads what [`encode_snapshot_meta`] wrote.
///
/// # Errors
/// If the bytes are damaged, or if a voter is no member.
pub fn decode_snapshot_meta(bytes: &[u8]) -> Result<SnapshotMeta, WireError> {
    let read: SnapshotMeta = decode::<SNAPSHOT_META_BYTES_MAX, _>("a snapshot's meta", bytes)?;
    valid_stored(&read.last_membership)?;
    Ok(read)
}

fn put_membership(members: &Members, out: &mut BytesMut) -> Result<(), WireError> {
    encode::<MEMBERSHIP_BYTES_MAX>("a membership", members, out)
}

/// Raft takes it for granted that every voter is a member.
fn valid(members: &Members) -> Result<Members, WireError> {
    let voters: Vec<BTreeSet<NodeId>> = members.get_joint_config().clone();
    let nodes: BTreeMap<NodeId, Member> =
        members.nodes().map(|(id, member)| (*id, member.clone())).collect();
    Members::new(voters, nodes).map_err(|error| wrong("a membership", error))
}

/// A node that belongs to nothing yet has an empty membership, which is no valid entry.
fn valid_stored(membership: &Membership) -> Result<(), WireError> {
    if *membership == Membership::default() {
        return Ok(());
    }
    valid(membership.membership()).map(drop)
}

// Greetings.

/// What a connection is for. Each has one of its own per peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Purpose {
    /// Entries of the log, many in flight.
    Append = 1,
    /// Signs of life of the leader, which nothing may delay.
    Heartbeat = 2,
    /// One snapshot after the other.
    Snapshot = 3,
    /// Votes, transfers, questions.
    Control = 4,
    /// Opaque frames, one way.
    Link = 5,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Append => "append",
            Self::Heartbeat => "heartbeat",
            Self::Snapshot => "snapshot",
            Self::Control => "control",
            Self::Link => "link",
        })
    }
}

/// The first frame of who dials. Its layout stays, so that all versions can refuse each other:
/// magic 8 bytes, versions 2 and 2, cluster 16, from 8, to 8, purpose 1, length of the name 1, name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// Lowest version spoken.
    pub(super) version_min: u16,
    /// Highest.
    pub(super) version_max: u16,
    /// The cluster's id.
    pub(super) cluster: [u8; 16],
    /// The cluster's name.
    pub(super) name: String,
    /// Who dials.
    pub(super) from: NodeId,
    /// Whom they want.
    pub(super) to: NodeId,
    /// What for.
    pub(super) purpose: Purpose,
}

/// The answer of who accepts: version 2 bytes, cluster 16, from 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Welcome {
    /// The version to speak from here on.
    pub(super) version: u16,
    /// The cluster's id.
    pub(super) cluster: [u8; 16],
    /// Who accepts.
    pub(super) from: NodeId,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No version is spoken by both.
    Version = 1,
    /// Another cluster, or none.
    Cluster = 2,
    /// A cluster of another name.
    Name = 3,
    /// The node reached is not the one that was wanted.
    WrongNode = 4,
    /// The node that dials says it is the one that it dials.
    Itself = 5,
    /// There are as many connections as there may be.
    Busy = 6,
    /// It could not join the cluster: its disk refused to note it.
    Unready = 7,
}

/// A refusal: reason 1 byte, then what was found and what was expected, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// What was found and expected, for people.
    pub detail: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused: {}", self.detail)
    }
}

pub(super) fn put_hello(hello: &Hello, out: &mut BytesMut) -> Result<(), WireError> {
    let found = hello.name.len();
    if found > NAME_BYTES_MAX {
        let what = "the cluster's name";
        return Err(WireError::Length { what, found, max: NAME_BYTES_MAX });
    }
    put(out, Kind::Hello, |out| {
        out.put_slice(&MAGIC);
        out.put_u16_le(hello.version_min);
        out.put_u16_le(hello.version_max);
        out.put_slice(&hello.cluster);
        out.put_u64_le(hello.from);
        out.put_u64_le(hello.to);
        out.put_u8(hello.purpose as u8);
        out.put_u8(found as u8);
        out.put_slice(hello.name.as_bytes());
        Ok(())
    })
}

pub(super) fn hello(mut body: &[u8]) -> Result<Hello, WireError> {
    const WHAT: &str = "a hello";
    let short = |_| wrong(WHAT, "it ends early");
    let mut magic = [0; 8];
    body.try_copy_to_slice(&mut magic).map_err(short)?;
    if magic != MAGIC {
        return Err(wrong(WHAT, "it is no peer's"));
    }
    let version_min = body.try_get_u16_le().map_err(short)?;
    let version_max = body.try_get_u16_le().map_err(short)?;
    let mut cluster = [0; 16];
    body.try_copy_to_slice(&mut cluster).map_err(short)?;
    let from = body.try_get_u64_le().map_err(short)?;
    let to = body.try_get_u64_le().map_err(short)?;
    let purpose = match body.try_get_u8().map_err(short)? {
        1 => Purpose::Append,
        2 => Purpose::Heartbeat,
        3 => Purpose::Snapshot,
        4 => Purpose::Control,
        5 => Purpose::Link,
        other => return Err(wrong(WHAT, format_args!("purpose is {other}, at most 5 is known"))),
    };
    let length = usize::from(body.try_get_u8().map_err(short)?);
    if length > NAME_BYTES_MAX || length != body.len() {
        return Err(wrong(WHAT, "the name's length is wrong"));
    }
    let Ok(name) = core::str::from_utf8(body) else {
        return Err(wrong(WHAT, "the name is not UTF-8"));
    };
    let name = name.to_owned();
    Ok(Hello { version_min, version_max, cluster, name, from, to, purpose })
}

pub(super) fn put_welcome(welcome: &Welcome, out: &mut BytesMut) -> Result<(), WireError> {
    put(out, Kind::Welcome, |out| {
        out.put_u16_le(welcome.version);
        out.put_slice(&welcome.cluster);
        out.put_u64_le(welcome.from);
        Ok(())
    })
}

pub(super) fn welcome(mut body: &[u8]) -> Result<Welcome, WireError> {
    let short = |_| wrong("a welcome", "it ends early");
    let version = body.try_get_u16_le().map_err(short)?;
    let mut cluster = [0; 16];
    body.try_copy_to_slice(&mut cluster).map_err(short)?;
    let from = body.try_get_u64_le().map_err(short)?;
    ends("a welcome", body)?;
    Ok(Welcome { version, cluster, from })
}

pub(super) fn put_refusal(refusal: &Refusal, out: &mut BytesMut) -> Result<(), WireError> {
    put(out, Kind::Refusal, |out| {
        out.put_u8(refusal.reason as u8);
        put_text(&refusal.detail, out);
        Ok(())
    })
}

pub(super) fn refusal(mut body: &[u8]) -> Result<Refusal, WireError> {
    let reason = match body.try_get_u8().unwrap_or(0) {
        1 => Reason::Version,
        2 => Reason::Cluster,
        3 => Reason::Name,
        4 => Reason::WrongNode,
        5 => Reason::Itself,
        6 => Reason::Busy,
        7 => Reason::Unready,
        other => return Err(wrong("a refusal", format_args!("its reason is {other}"))),
    };
    Ok(Refusal { reason, detail: text(body) })
}

fn ends(what: &'static str, rest: &[u8]) -> Result<(), WireError> {
    if rest.is_empty() {
        return Ok(());
    }
    Err(wrong(what, format_args!("{} bytes follow it", rest.len())))
}

/// Text for people is cut rather than refused.
pub(super) fn put_text(text: &str, out: &mut BytesMut) {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    out.put_slice(&text.as_bytes()[..end]);
}

pub(super) fn text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(TEXT_BYTES_MAX)]);
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

// Appends.

/// Which append: those of one session are answered in order, and one error ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sequence {
    /// Grows with each session of the connection.
    pub(super) session: u64,
    /// Grows by one with each append of the session.
    pub(super) number: u64,
}

#[derive(Serialize, Deserialize)]
struct AppendHead {
    sequence: Sequence,
    vote: Vote,
    prev: Option<LogId>,
    commit: Option<LogId>,
    count: u32,
}

/// What goes with every frame of one append.
pub(super) struct Envelope {
    /// The leader's vote.
    pub(super) vote: Vote,
    /// Up to where the log is committed.
    pub(super) commit: Option<LogId>,
}

/// Appends a frame with as many of the entries, which follow `prev`, as it takes (none if there
/// are none), and says how many.
///
/// # Errors
/// If the first entry alone is too long.
pub(super) fn put_append(
    sequence: Sequence,
    envelope: &Envelope,
    prev: Option<LogId>,
    entries: &[LogEntry],
    out: &mut BytesMut,
) -> Result<usize, WireError> {
    let mut count = 0;
    put(out, Kind::Append, |out| {
        let start = out.len();
        let Envelope { vote, commit } = *envelope;
        let head = AppendHead { sequence, vote, prev, commit, count: 0 };
        encode::<APPEND_HEAD_BYTES_MAX>("an append", &head, out)?;
        let count_at = out.len() - 4;
        for entry in entries {
            let before = out.len();
            put_entry(entry, out)?;
            if out.len() - start > APPEND_BYTES_MAX {
                let found = out.len() - before - ENTRY_HEAD_BYTES;
                out.truncate(before);
                if count == 0 {
                    let what = "an entry of the log";
                    return Err(WireError::Length { what, found, max: ENTRY_BYTES_MAX });
                }
                break;
            }
            count += 1;
        }
        out[count_at..count_at + 4].copy_from_slice(&(count as u32).to_le_bytes());
        Ok(())
    })?;
    Ok(count)
}

/// Term 8, node 8, index 8, kind 1, length 4, bytes.
fn put_entry(entry: &LogEntry, out: &mut BytesMut) -> Result<(), WireError> {
    let LogId { leader_id, index } = entry.log_id;
    out.put_u64_le(leader_id.term);
    out.put_u64_le(leader_id.node_id);
    out.put_u64_le(index);
    match &entry.payload {
        EntryPayload::Blank => {
            out.put_u8(BLANK);
            out.put_u32_le(0);
        }
        EntryPayload::Normal(Entry(bytes)) => {
            let found = bytes.len();
            if found > ENTRY_BYTES_MAX {
                let what = "an entry of the log";
                return Err(WireError::Length { what, found, max: ENTRY_BYTES_MAX });
            }
            out.put_u8(NORMAL);
            out.put_u32_le(found as u32);
            out.put_slice(bytes);
        }
        EntryPayload::Membership(members) => {
            out.put_u8(MEMBERSHIP);
            let length_at = out.len();
            out.put_u32_le(0);
            put_membership(members, out)?;
            let length = (out.len() - length_at - 4) as u32;
            out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
        }
    }
    Ok(())
}

/// Reads an append. What Raft takes for granted is verified: that the vote is a leader's and that
/// the entries follow each other, without gap, none from after that leader.
pub(super) fn append(
    body: &Bytes,
) -> Result<(Sequence, AppendEntriesRequest<TypeConfig>), WireError> {
    const WHAT: &str = "an append";
    let short = |_| wrong(WHAT, "it ends early");
    let (head, taken): (AppendHead, usize) = decode_front::<APPEND_HEAD_BYTES_MAX, _>(WHAT, body)?;
    let AppendHead { sequence, vote, prev, commit, count } = head;
    if !vote.committed {
        return Err(wrong(WHAT, "its vote is not a leader's"));
    }
    let mut rest = body.slice(taken..);
    let count = count as usize;
    if count > rest.len() / ENTRY_HEAD_BYTES {
        return Err(wrong(WHAT, format_args!("{count} entries do not fit it")));
    }
    let mut entries = Vec::with_capacity(count);
    let mut last = prev;
    for _ in 0..count {
        let term = rest.try_get_u64_le().map_err(short)?;
        let node_id = rest.try_get_u64_le().map_err(short)?;
        let index = rest.try_get_u64_le().map_err(short)?;
        let kind = rest.try_get_u8().map_err(short)?;
        let length = rest.try_get_u32_le().map_err(short)? as usize;
        if length > rest.len() {
            return Err(wrong(WHAT, "an entry is longer than what is left"));
        }
        let bytes = rest.split_to(length);
        let payload = match kind {
            BLANK if bytes.is_empty() => EntryPayload::Blank,
            NORMAL => EntryPayload::Normal(Entry(bytes)),
            MEMBERSHIP => EntryPayload::Membership(decode_membership(&bytes)?),
            _ => return Err(wrong(WHAT, format_args!("an entry's kind is {kind}"))),
        };
        let log_id = LogId { leader_id: LeaderId { term, node_id }, index };
        let is_next = match last {
            None => index == 0,
            Some(last) => {
                Some(index) == last.index.checked_add(1) && last.leader_id <= log_id.leader_id
            }
        };
        if !is_next || log_id.leader_id > vote.leader_id {
            return Err(wrong(WHAT, format_args!("entry {log_id} cannot follow there")));
        }
        last = Some(log_id);
        entries.push(LogEntry { log_id, payload });
    }
    ends(WHAT, &rest)?;
    bounded(WHAT, prev)?;
    bounded(WHAT, last)?;
    bounded(WHAT, commit)?;
    let request = AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit: commit };
    Ok((sequence, request))
}

/// An index that has a next one.
fn bounded(what: &'static str, log_id: Option<LogId>) -> Result<(), WireError> {
    match log_id {
        Some(LogId { index: u64::MAX, .. }) => Err(wrong(what, "an index is out of range")),
        _ => Ok(()),
    }
}

/// The last entry of a request, or the one before if it has none.
pub(super) fn last_of(prev: Option<LogId>, entries: &[LogEntry]) -> Option<LogId> {
    entries.last().map(|entry| entry.log_id).or(prev)
}

#[derive(Serialize, Deserialize)]
enum AppendResult {
    Matched(Option<LogId>),
    Conflict(LogId),
    HigherVote(Vote),
}

pub(super) fn put_append_answer(
    sequence: Sequence,
    result: &StreamAppendResult<TypeConfig>,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let result = match *result {
        Ok(matched) => AppendResult::Matched(matched),
        Err(StreamAppendError::Conflict(log_id)) => AppendResult::Conflict(log_id),
        Err(StreamAppendError::HigherVote(vote)) => AppendResult::HigherVote(vote),
    };
    put(out, Kind::AppendAnswer, |out| {
        encode::<ANSWER_BYTES_MAX>("an answer", &(sequence, result), out)
    })
}

pub(super) fn append_answer(
    body: &[u8],
) -> Result<(Sequence, StreamAppendResult<TypeConfig>), WireError> {
    let (sequence, result) = decode::<ANSWER_BYTES_MAX, (Sequence, _)>("an answer", body)?;
    let result = match result {
        AppendResult::Matched(matched) => Ok(matched),
        AppendResult::Conflict(log_id) => Err(StreamAppendError::Conflict(log_id)),
        AppendResult::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
    };
    Ok((sequence, result))
}

// Votes, transfers, questions: each with a number, by which its answer finds it.

#[derive(Serialize, Deserialize)]
struct VoteBody {
    vote: Vote,
    last: Option<LogId>,
    is_transfer: bool,
}

/// `kind` is [`Kind::Vote`] or [`Kind::PreVote`].
pub(super) fn put_vote(
    kind: Kind,
    number: u64,
    request: &VoteRequest<TypeConfig>,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let VoteRequest { vote, last_log_id, leadership_transfer, .. } = *request;
    let body = VoteBody { vote, last: last_log_id, is_transfer: leadership_transfer };
    put(out, kind, |out| encode::<ANSWER_BYTES_MAX>("a vote", &(number, body), out))
}

pub(super) fn vote(body: &[u8]) -> Result<(u64, VoteRequest<TypeConfig>), WireError> {
    let (number, body) = decode::<ANSWER_BYTES_MAX, (u64, VoteBody)>("a vote", body)?;
    if body.vote.committed {
        return Err(wrong("a vote", "nobody asks for a vote that is a leader's"));
    }
    bounded("a vote", body.last)?;
    let mut request = VoteRequest::new(body.vote, body.last);
    request.leadership_transfer = body.is_transfer;
    Ok((number, request))
}

#[derive(Serialize, Deserialize)]
struct VoteAnswerBody {
    vote: Vote,
    is_granted: bool,
    last: Option<LogId>,
}

pub(super) fn put_vote_answer(
    number: u64,
    answer: &VoteResponse<TypeConfig>,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let VoteResponse { vote, vote_granted, last_log_id } = *answer;
    let body = VoteAnswerBody { vote, is_granted: vote_granted, last: last_log_id };
    put(out, Kind::VoteAnswer, |out| encode::<ANSWER_BYTES_MAX>("a vote", &(number, body), out))
}

pub(super) fn vote_answer(body: &[u8]) -> Result<(u64, VoteResponse<TypeConfig>), WireError> {
    let (number, body) = decode::<ANSWER_BYTES_MAX, (u64, VoteAnswerBody)>("a vote", body)?;
    bounded("a vote", body.last)?;
    Ok((number, VoteResponse::new(body.vote, body.last, body.is_granted)))
}

#[derive(Serialize, Deserialize)]
struct TransferBody {
    from: Vote,
    to: NodeId,
    last: Option<LogId>,
}

pub(super) fn put_transfer(
    number: u64,
    request: &TransferLeaderRequest<TypeConfig>,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let last = request.last_log_id().copied();
    let body = TransferBody { from: *request.from_leader(), to: *request.to_node_id(), last };
    put(out, Kind::Transfer, |out| encode::<ANSWER_BYTES_MAX>("a transfer", &(number, body), out))
}

pub(super) fn transfer(body: &[u8]) -> Result<(u64, TransferLeaderRequest<TypeConfig>), WireError> {
    let (number, body) = decode::<ANSWER_BYTES_MAX, (u64, TransferBody)>("a transfer", body)?;
    if !body.from.committed {
        return Err(wrong("a transfer", "its vote is not a leader's"));
    }
    bounded("a transfer", body.last)?;
    Ok((number, TransferLeaderRequest::new(body.from, body.to, body.last)))
}

#[derive(Serialize, Deserialize)]
enum TransferResult {
    Accepted,
    VoteChanged { expected: Vote, actual: Vote },
    LogNotFlushed { expected: Option<LogId>, actual: Option<LogId> },
}

pub(super) fn put_transfer_answer(
    number: u64,
    answer: &TransferLeaderResponse<TypeConfig>,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let result = match *answer {
        Ok(()) => TransferResult::Accepted,
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            TransferResult::VoteChanged { expected, actual }
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            TransferResult::LogNotFlushed { expected, actual }
        }
    };
    put(out, Kind::TransferAnswer, |out| {
        encode::<ANSWER_BYTES_MAX>("a transfer", &(number, result), out)
    })
}

pub(super) fn transfer_answer(
    body: &[u8],
) -> Result<(u64, TransferLeaderResponse<TypeConfig>), WireError> {
    let (number, result) = decode::<ANSWER_BYTES_MAX, (u64, _)>("a transfer", body)?;
    let answer = match result {
        TransferResult::Accepted => Ok(()),
        TransferResult::VoteChanged { expected, actual } => {
            Err(TransferLeaderError::VoteChanged { expected, actual })
        }
        TransferResult::LogNotFlushed { expected, actual } => {
            Err(TransferLeaderError::LogNotFlushed { expected, actual })
        }
    };
    Ok((number, answer))
}

/// A number and bytes: [`Kind::Ask`], [`Kind::AskAnswer`], [`Kind::SnapshotChunk`] (where the number is
/// the offset).
pub(super) fn put_numbered(
    kind: Kind,
    number: u64,
    bytes: &[u8],
    out: &mut BytesMut,
) -> Result<(), WireError> {
    put(out, kind, |out| {
        out.put_u64_le(number);
        out.put_slice(bytes);
        Ok(())
    })
}

pub(super) fn numbered(mut body: Bytes) -> Result<(u64, Bytes), WireError> {
    let number = body.try_get_u64_le().map_err(|_| wrong("a frame", "it ends early"))?;
    Ok((number, body))
}

pub(super) fn put_failure(number: u64, why: &str, out: &mut BytesMut) -> Result<(), WireError> {
    put(out, Kind::Failure, |out| {
        out.put_u64_le(number);
        put_text(why, out);
        Ok(())
    })
}

pub(super) fn put_empty(kind: Kind, out: &mut BytesMut) -> Result<(), WireError> {
    put(out, kind, |_| Ok(()))
}

pub(super) fn put_link(frame: &[u8], out: &mut BytesMut) -> Result<(), WireError> {
    put(out, Kind::Link, |out| {
        out.put_slice(frame);
        Ok(())
    })
}

// Snapshots.

/// What comes before the chunks of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotBegin {
    /// The leader's vote.
    pub(super) vote: Vote,
    /// Bytes of all chunks.
    pub(super) length: u64,
    /// What the snapshot is.
    pub(super) meta: SnapshotMeta,
}

pub(super) fn put_snapshot_begin(
    begin: &SnapshotBegin,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    const MAX: usize = Kind::SnapshotBegin.body_bytes_max();
    put(out, Kind::SnapshotBegin, |out| encode::<MAX>("a snapshot", begin, out))
}

pub(super) fn snapshot_begin(body: &[u8]) -> Result<SnapshotBegin, WireError> {
    const MAX: usize = Kind::SnapshotBegin.body_bytes_max();
    let begin: SnapshotBegin = decode::<MAX, _>("a snapshot", body)?;
    let last = begin.meta.last_log_id;
    let membership = &begin.meta.last_membership;
    valid_stored(membership)?;
    bounded("a snapshot", last)?;
    if !begin.vote.committed {
        return Err(wrong("a snapshot", "its vote is not a leader's"));
    }
    if last.is_some_and(|last| last.leader_id > begin.vote.leader_id) {
        return Err(wrong("a snapshot", "it is from after its leader"));
    }
    if membership.log_id().index() > last.index() {
        return Err(wrong("a snapshot", "its membership is from after its last entry"));
    }
    Ok(begin)
}

/// The checksum, CRC32C, of all that was sent, and that nothing follows.
pub(super) fn put_snapshot_end(checksum: u32, out: &mut BytesMut) -> Result<(), WireError> {
    put(out, Kind::SnapshotEnd, |out| {
        out.put_u64_le(u64::from(checksum));
        Ok(())
    })
}

pub(super) fn snapshot_end(mut body: &[u8]) -> Result<u32, WireError> {
    let checksum = body.try_get_u64_le().ok().and_then(|checksum| u32::try_from(checksum).ok());
    let checksum = checksum.ok_or_else(|| wrong("a snapshot's end", "it ends early"))?;
    ends("a snapshot's end", body)?;
    Ok(checksum)
}

pub(super) fn put_snapshot_done(vote: Vote, out: &mut BytesMut) -> Result<(), WireError> {
    put(out, Kind::SnapshotDone, |out| encode::<ANSWER_BYTES_MAX>("a vote", &vote, out))
}

pub(super) fn snapshot_done(body: &[u8]) -> Result<Vote, WireError> {
    decode::<ANSWER_BYTES_MAX, _>("a vote", body)
}

pub(super) fn put_snapshot_failed(why: &str, out: &mut BytesMut) -> Result<(), WireError> {
    put(out, Kind::SnapshotFailed, |out| {
        put_text(why, out);
        Ok(())
    })
}

//! Greetings: who dials, whom, what for, and the answer.

use core::fmt;

use bytes::{Buf, BufMut, BytesMut};

use crate::cluster::types::NodeId;

use super::error::{WireError, wrong};
use super::values::{ends, put_text, text};
use super::{Kind, NAME_BYTES_MAX, put};

const MAGIC: [u8; 8] = *b"TKPEER\r\n";

/// What a connection is for. Each has one of its own per peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::cluster) enum Purpose {
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
pub(in crate::cluster) struct Hello {
    /// Lowest version spoken.
    pub(in crate::cluster) version_min: u16,
    /// Highest.
    pub(in crate::cluster) version_max: u16,
    /// The cluster's id.
    pub(in crate::cluster) cluster: [u8; 16],
    /// The cluster's name.
    pub(in crate::cluster) name: String,
    /// Who dials.
    pub(in crate::cluster) from: NodeId,
    /// Whom they want.
    pub(in crate::cluster) to: NodeId,
    /// What for.
    pub(in crate::cluster) purpose: Purpose,
}

/// The answer of who accepts: version 2 bytes, cluster 16, from 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) struct Welcome {
    /// The version to speak from here on.
    pub(in crate::cluster) version: u16,
    /// The cluster's id.
    pub(in crate::cluster) cluster: [u8; 16],
    /// Who accepts.
    pub(in crate::cluster) from: NodeId,
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

pub(in crate::cluster) fn put_hello(hello: &Hello, out: &mut BytesMut) -> Result<(), WireError> {
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

pub(in crate::cluster) fn hello(mut body: &[u8]) -> Result<Hello, WireError> {
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

pub(in crate::cluster) fn put_welcome(
    welcome: &Welcome,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    put(out, Kind::Welcome, |out| {
        out.put_u16_le(welcome.version);
        out.put_slice(&welcome.cluster);
        out.put_u64_le(welcome.from);
        Ok(())
    })
}

pub(in crate::cluster) fn welcome(mut body: &[u8]) -> Result<Welcome, WireError> {
    let short = |_| wrong("a welcome", "it ends early");
    let version = body.try_get_u16_le().map_err(short)?;
    let mut cluster = [0; 16];
    body.try_copy_to_slice(&mut cluster).map_err(short)?;
    let from = body.try_get_u64_le().map_err(short)?;
    ends("a welcome", body)?;
    Ok(Welcome { version, cluster, from })
}

pub(in crate::cluster) fn put_refusal(
    refusal: &Refusal,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    put(out, Kind::Refusal, |out| {
        out.put_u8(refusal.reason as u8);
        put_text(&refusal.detail, out);
        Ok(())
    })
}

pub(in crate::cluster) fn refusal(mut body: &[u8]) -> Result<Refusal, WireError> {
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

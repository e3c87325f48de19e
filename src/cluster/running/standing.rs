//! How a node stands, by its own word: what nodes ask each other about once a second.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::cluster::counts::Counts;
use crate::cluster::host::{Host, Readings};
use crate::cluster::origin::Origin;

/// How a node stands, by its own word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// By how much its wall clock is ahead of cluster time, in nanoseconds.
    pub ahead_nanos: u64,
    /// The index of the last entry that it applied.
    pub applied: u64,
    /// At which index its table was last hashed; 0 if it was not.
    pub hashed_at: u64,
    /// The hash.
    pub hash: u64,
    /// Counters in its table.
    pub keys: u64,
    /// The term of a leader whose clock it finds to run fast; 0 if it finds none.
    pub fast_clock: u64,
}

const STANDING_BYTES: usize = 48;

impl Standing {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(STANDING_BYTES);
        let Self { ahead_nanos, applied, hashed_at, hash, keys, fast_clock } = *self;
        for word in [ahead_nanos, applied, hashed_at, hash, keys, fast_clock] {
            out.put_u64_le(word);
        }
        out.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        (bytes.len() == STANDING_BYTES).then(|| Self {
            ahead_nanos: bytes.get_u64_le(),
            applied: bytes.get_u64_le(),
            hashed_at: bytes.get_u64_le(),
            hash: bytes.get_u64_le(),
            keys: bytes.get_u64_le(),
            fast_clock: bytes.get_u64_le(),
        })
    }
}

/// What a question between nodes begins with.
pub(super) const ASK_STANDING: u8 = 1;

/// How the node stands that these are of.
pub(super) fn standing(
    origin: &Origin,
    counts: &Counts,
    host: &dyn Host,
    readings: &dyn Readings,
) -> Standing {
    let applied = origin.applied();
    let reading = readings.read();
    let time = applied.now.time.as_nanos() + reading.raw.saturating_sub(applied.raw);
    let (hashed_at, hash) = counts.checksum().unwrap_or_default();
    Standing {
        ahead_nanos: reading.wall.saturating_sub(time),
        applied: applied.log_id.map_or(0, |log_id| log_id.index),
        hashed_at,
        hash,
        keys: host.table().usage().keys,
        fast_clock: counts.fast_clock(),
    }
}

//! Records of sections: counters, names of limits, windows, sessions and their permits.

use crate::engine::command::LimitId;
use crate::engine::kinds::{Ring, SUBS};
use crate::engine::permit::PermitId;
use crate::engine::quota::Kind;
use crate::engine::session::{RequestId, SavedSession};
use crate::engine::table::{Counter, Permitted, State};
use crate::engine::time::{Nanos, Timestamp};

use super::words::{Read, put_words};
use super::{LimitName, NARROW_BYTES, SectionKind};

const RING_HEAD_BYTES: usize = 40;
const LIMIT_HEAD_BYTES: usize = 10;

/// Which section a counter goes to.
pub(in crate::disk) fn kind_of(counter: &Counter<'_>) -> SectionKind {
    match counter.state {
        State::Narrow(_) => SectionKind::Narrow,
        State::Cell(_) => SectionKind::Cells,
        State::Ring(_) => SectionKind::Rings,
        State::Permitted(_) => SectionKind::Shares,
    }
}

/// Adds a counter's record.
pub(in crate::disk) fn put_counter(out: &mut Vec<u8>, counter: &Counter<'_>) {
    let [high, low] = counter.key.words();
    let limit = counter.limit.0.to_le_bytes();
    match counter.state {
        State::Narrow(value) => {
            let mut record = [0; NARROW_BYTES];
            record[..8].copy_from_slice(&high.to_le_bytes());
            record[8..16].copy_from_slice(&low.to_le_bytes());
            record[16..24].copy_from_slice(&value.to_le_bytes());
            record[24..26].copy_from_slice(&limit);
            record[26] = counter.kind as u8;
            record[28..].copy_from_slice(&counter.detail.to_le_bytes());
            out.extend_from_slice(&record);
        }
        State::Cell([a, b, c, d]) => {
            put_words(out, &[high, low, a, b, c, d]);
            out.extend_from_slice(&limit);
            out.extend_from_slice(&[counter.kind as u8, 0]);
            out.extend_from_slice(&counter.detail.to_le_bytes());
        }
        State::Ring(ring) => {
            let most = ring.counts.iter().copied().max().unwrap_or_default();
            let width: usize = match most {
                0..=0xffff => 2,
                0x1_0000..=0xffff_ffff => 4,
                _ => 8,
            };
            put_words(out, &[high, low]);
            out.extend_from_slice(&limit);
            out.extend_from_slice(&[counter.kind as u8, width as u8]);
            out.extend_from_slice(&counter.detail.to_le_bytes());
            put_words(out, &[ring.newest, ring.sub_ns]);
            for count in ring.counts {
                out.extend_from_slice(&count.to_le_bytes()[..width]);
            }
        }
        State::Permitted(share) => {
            let (lapses_at, lease) = (share.lapses_at.as_nanos(), share.lease.get());
            put_words(out, &[high, low, share.serial, share.units, lapses_at, lease]);
            out.extend_from_slice(&limit);
            out.extend_from_slice(&[share.number, 0, 0, 0, 0, 0]);
        }
    }
}

/// Adds a limit's record; false if its names are longer than any policy's.
pub(in crate::disk) fn put_limit(out: &mut Vec<u8>, limit: &LimitName) -> bool {
    let parts = [&limit.api, &limit.name, &limit.window];
    if parts.iter().any(|part| part.len() > usize::from(u16::MAX)) {
        return false;
    }
    out.extend_from_slice(&limit.id.0.to_le_bytes());
    out.extend_from_slice(&[limit.kind as u8, 0]);
    for part in parts {
        out.extend_from_slice(&(part.len() as u16).to_le_bytes());
    }
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
    true
}

/// Adds a window's record.
pub(in crate::disk) fn put_window(out: &mut Vec<u8>, window: Nanos) {
    put_words(out, &[window.get()]);
}

/// Adds a session's record.
pub(in crate::disk) fn put_session(out: &mut Vec<u8>, session: &SavedSession) {
    put_words(out, &[session.name, session.highest, session.used_at.as_nanos()]);
    put_words(out, &session.done);
}

/// Adds a record for each permit that a session's requests were given. Returns how many.
pub(in crate::disk) fn put_granted(out: &mut Vec<u8>, session: &SavedSession) -> u32 {
    for (number, permit) in &session.permits {
        put_words(out, &[session.name, *number]);
        out.extend_from_slice(&permit.0);
    }
    session.permits.len() as u32
}

impl Read<'_> {
    fn kind(&mut self) -> Result<Kind, &'static str> {
        kind(self.u8()).ok_or("a kind that is unknown")
    }

    pub(super) fn narrow(&mut self) -> Result<Counter<'static>, &'static str> {
        let (key, value) = (self.key(), self.u64());
        let (limit, kind) = (LimitId(self.u16()), self.kind()?);
        self.u8();
        Ok(Counter { key, kind, limit, detail: self.u32(), state: State::Narrow(value) })
    }

    pub(super) fn cell(&mut self) -> Result<Counter<'static>, &'static str> {
        let (key, cell) = (self.key(), [self.u64(), self.u64(), self.u64(), self.u64()]);
        let (limit, kind) = (LimitId(self.u16()), self.kind()?);
        self.u8();
        Ok(Counter { key, kind, limit, detail: self.u32(), state: State::Cell(cell) })
    }

    pub(super) fn ring<'r>(&mut self, ring: &'r mut Ring) -> Result<Counter<'r>, &'static str> {
        if self.0.len() < RING_HEAD_BYTES {
            return Err("a sliding window that breaks off");
        }
        let (key, limit, kind) = (self.key(), LimitId(self.u16()), self.kind()?);
        let (width, detail) = (usize::from(self.u8()), self.u32());
        (ring.newest, ring.sub_ns, ring.total) = (self.u64(), self.u64(), 0);
        if ![2, 4, 8].contains(&width) || self.0.len() < SUBS * width {
            return Err("a sliding window that breaks off");
        }
        for count in &mut ring.counts {
            *count = match width {
                2 => self.u16().into(),
                4 => self.u32().into(),
                _ => self.u64(),
            };
            ring.total = ring.total.checked_add(*count).ok_or("counts past any sum")?;
        }
        Ok(Counter { key, kind, limit, detail, state: State::Ring(ring) })
    }

    pub(super) fn share(&mut self) -> Counter<'static> {
        let (key, serial, units) = (self.key(), self.u64(), self.u64());
        let (lapses_at, lease) = (Timestamp::from_nanos(self.u64()), Nanos::new(self.u64()));
        let (limit, number) = (LimitId(self.u16()), self.u8());
        self.array::<5>();
        let state = State::Permitted(Permitted { serial, number, units, lapses_at, lease });
        Counter { key, kind: Kind::Concurrent, limit, detail: u16::MAX.into(), state }
    }

    pub(super) fn limit(&mut self) -> Option<LimitName> {
        if self.0.len() < LIMIT_HEAD_BYTES {
            return None;
        }
        let (id, kind) = (LimitId(self.u16()), kind(self.u8())?);
        self.u8();
        let lengths = [self.u16(), self.u16(), self.u16()];
        let mut text = |length: u16| {
            let (text, rest) = self.0.split_at_checked(length.into())?;
            self.0 = rest;
            Some(core::str::from_utf8(text).ok()?.to_owned())
        };
        let [api, name, window] = [text(lengths[0])?, text(lengths[1])?, text(lengths[2])?];
        Some(LimitName { id, kind, api, name, window })
    }

    pub(super) fn session(&mut self) -> SavedSession {
        let (name, highest) = (self.u64(), self.u64());
        let used_at = Timestamp::from_nanos(self.u64());
        let done = core::array::from_fn(|_| self.u64());
        SavedSession { name, highest, used_at, done, permits: Vec::new() }
    }

    pub(super) fn granted(&mut self) -> (RequestId, PermitId) {
        let id = RequestId { session: self.u64(), sequence: self.u64() };
        let mut permit = [0; 16];
        permit[..8].copy_from_slice(&self.u64().to_le_bytes());
        permit[8..].copy_from_slice(&self.u64().to_le_bytes());
        (id, PermitId(permit))
    }
}

pub(in crate::disk) fn kind(number: u8) -> Option<Kind> {
    [
        Kind::Bucket,
        Kind::Sliding,
        Kind::Fixed,
        Kind::Calendar,
        Kind::Concurrent,
        Kind::Level,
        Kind::Cap,
    ]
    .into_iter()
    .find(|kind| *kind as u8 == number)
}

//! A change by hand as bytes, and back. Pure; `FORMAT.md` is the same by byte offset.

use crate::engine::command::CHARGES_MAX;
use crate::engine::key::Key;
use crate::engine::kinds::{Boundaries, Period};
use crate::engine::quota::{Align, Kind, Quota, UNITS_MAX};
use crate::engine::session::RequestId;
use crate::engine::time::{Nanos, Now, Timestamp, UtcTime};
use crate::policy::maxima::KEY_ATTRIBUTES_MAX;
use crate::policy::{Account, ByHand, Identity, Mode, OverrideRecord, SetCounter, SetCounters};

use super::layout::{self, Read, put_words};

/// The most bytes of one change: more than the doors let in.
pub(super) const CHANGE_BYTES_MAX: usize = 256 << 10;

/// Numbers of what is kept of a change.
pub(super) mod kind {
    pub(in crate::disk) const SET_OVERRIDE: u16 = 1;
    pub(in crate::disk) const CLEAR_OVERRIDE: u16 = 2;
    pub(in crate::disk) const PUT_IDENTITY: u16 = 3;
    pub(in crate::disk) const REMOVE_IDENTITY: u16 = 4;
    pub(in crate::disk) const SET_COUNTERS: u16 = 5;
}

/// A change's bytes, for who keeps it elsewhere.
pub fn encode_change(change: &ByHand) -> Vec<u8> {
    let mut out = vec![0; 2];
    let kind = put(&mut out, change);
    out[..2].copy_from_slice(&kind.to_le_bytes());
    out
}

/// What [`encode_change`] gave.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode_change(bytes: &[u8]) -> Result<ByHand, &'static str> {
    let (kind, rest) = bytes.split_first_chunk::<2>().ok_or("the change is cut off")?;
    read(u16::from_le_bytes(*kind), rest)
}

/// Adds a change's bytes; returns the number of its kind.
pub(super) fn put(out: &mut Vec<u8>, change: &ByHand) -> u16 {
    match change {
        ByHand::SetOverride(record) => {
            put_override(out, record);
            kind::SET_OVERRIDE
        }
        ByHand::ClearOverride { api, limit, key, who } => {
            put_text(out, api.as_bytes());
            put_text(out, limit.as_bytes());
            put_key(out, key.as_deref());
            put_text(out, who.as_bytes());
            kind::CLEAR_OVERRIDE
        }
        ByHand::PutIdentity(Identity { api, attribute, value, account }) => {
            put_text(out, api.as_bytes());
            put_text(out, attribute.as_bytes());
            put_text(out, value);
            put_text(out, account.account.as_bytes());
            put_optional(out, account.tier.as_deref());
            kind::PUT_IDENTITY
        }
        ByHand::RemoveIdentity { api, attribute, value } => {
            put_text(out, api.as_bytes());
            put_text(out, attribute.as_bytes());
            put_text(out, value);
            kind::REMOVE_IDENTITY
        }
        ByHand::SetCounters(set) => {
            let (session, sequence) = set.id.map_or((0, 0), |id| (id.session, id.sequence));
            let Now { time, utc } = set.now;
            put_words(out, &[time.as_nanos(), utc.as_nanos(), set.used, session, sequence]);
            out.extend_from_slice(&(set.counters.len() as u16).to_le_bytes());
            for counter in &set.counters {
                put_counter(out, counter);
            }
            kind::SET_COUNTERS
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text);
}

fn put_optional(out: &mut Vec<u8>, text: Option<&str>) {
    out.push(text.is_some().into());
    if let Some(text) = text {
        put_text(out, text.as_bytes());
    }
}

fn put_key(out: &mut Vec<u8>, key: Option<&[(String, String)]>) {
    out.push(key.is_some().into());
    if let Some(key) = key {
        out.push(key.len() as u8);
        for text in key.iter().flat_map(|(name, value)| [name, value]) {
            put_text(out, text.as_bytes());
        }
    }
}

fn put_override(out: &mut Vec<u8>, record: &OverrideRecord) {
    put_text(out, record.api.as_bytes());
    put_text(out, record.limit.as_bytes());
    put_key(out, record.key.as_deref());
    put_optional(out, record.quota.as_deref());
    let mode = record.mode.and_then(|mode| Mode::ALL.into_iter().position(|known| known == mode));
    out.push(mode.map_or(0, |place| place as u8 + 1));
    out.push(record.until.is_some().into());
    let until = record.until.unwrap_or_default();
    put_words(out, &[until.as_nanos(), record.set_at.as_nanos()]);
    put_text(out, record.who.as_bytes());
    put_text(out, record.reason.as_bytes());
}

fn put_counter(out: &mut Vec<u8>, counter: &SetCounter) {
    let [high, low] = counter.key.words();
    put_words(out, &[high, low]);
    out.push(counter.quota.kind() as u8);
    put_words(out, &words_of(&counter.quota));
    for name in [&counter.api, &counter.limit, &counter.window] {
        put_text(out, name.as_bytes());
    }
}

/// The numbers of a quota that has a counter.
fn words_of(quota: &Quota) -> [u64; 5] {
    match quota {
        Quota::Bucket(bucket) => {
            let (units, window) = bucket.rate();
            [units, window.get(), bucket.burst(), 0, 0]
        }
        Quota::Sliding(sliding) => [sliding.units(), sliding.window().get(), 0, 0, 0],
        Quota::Fixed(fixed) => [fixed.units(), fixed.window().get(), fixed.align() as u64, 0, 0],
        Quota::Calendar(calendar) => {
            let Boundaries { opens_at, ends_at, next_ends_at } = calendar.boundaries();
            let at = [opens_at, ends_at, next_ends_at].map(u64::from);
            [calendar.units(), calendar.period() as u64, at[0], at[1], at[2]]
        }
        Quota::Concurrent(concurrent) => [concurrent.units(), concurrent.lease().get(), 0, 0, 0],
        Quota::Level(level) => [level.units(), 0, 0, 0, 0],
        Quota::Cap(_) | Quota::Unlimited(_) => [0; 5],
    }
}

/// Reads a change.
///
/// # Errors
/// What is wrong with its bytes.
pub(super) fn read(number: u16, bytes: &[u8]) -> Result<ByHand, &'static str> {
    let mut fields = Fields(Read(bytes));
    let change = match number {
        kind::SET_OVERRIDE => ByHand::SetOverride(fields.record()?),
        kind::CLEAR_OVERRIDE => ByHand::ClearOverride {
            api: fields.text()?,
            limit: fields.text()?,
            key: fields.key()?,
            who: fields.text()?,
        },
        kind::PUT_IDENTITY => ByHand::PutIdentity(Identity {
            api: fields.text()?.into(),
            attribute: fields.text()?.into(),
            value: fields.bytes()?.into(),
            account: Account {
                account: fields.text()?.into(),
                tier: fields.optional()?.map(String::into_boxed_str),
            },
        }),
        kind::REMOVE_IDENTITY => ByHand::RemoveIdentity {
            api: fields.text()?.into(),
            attribute: fields.text()?.into(),
            value: fields.bytes()?.into(),
        },
        kind::SET_COUNTERS => ByHand::SetCounters(fields.counters()?),
        _ => return Err("a kind of change that is unknown"),
    };
    if fields.0.0.is_empty() { Ok(change) } else { Err("a change that goes on after its end") }
}

struct Fields<'a>(Read<'a>);

const SHORT: &str = "a change that breaks off";

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        if self.0.0.len() < N { Err(SHORT) } else { Ok(self.0.array()) }
    }

    fn u8(&mut self) -> Result<u8, &'static str> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_le_bytes)
    }

    fn is_there(&mut self) -> Result<bool, &'static str> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a mark of presence that is neither 0 nor 1"),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], &'static str> {
        let length = u32::from_le_bytes(self.array()?);
        let length = usize::try_from(length).map_err(|_| SHORT)?;
        let (text, rest) = self.0.0.split_at_checked(length).ok_or(SHORT)?;
        self.0.0 = rest;
        Ok(text)
    }

    fn text(&mut self) -> Result<String, &'static str> {
        let text = core::str::from_utf8(self.bytes()?);
        text.map(str::to_owned).map_err(|_| "a text that is not UTF-8")
    }

    fn optional(&mut self) -> Result<Option<String>, &'static str> {
        if self.is_there()? { self.text().map(Some) } else { Ok(None) }
    }

    fn key(&mut self) -> Result<Option<Vec<(String, String)>>, &'static str> {
        if !self.is_there()? {
            return Ok(None);
        }
        let parts = usize::from(self.u8()?);
        if parts > KEY_ATTRIBUTES_MAX {
            return Err("a key of more attributes than any has");
        }
        (0..parts).map(|_| Ok((self.text()?, self.text()?))).collect::<Result<_, _>>().map(Some)
    }

    fn record(&mut self) -> Result<OverrideRecord, &'static str> {
        let (api, limit, key, quota) = (self.text()?, self.text()?, self.key()?, self.optional()?);
        let mode = match usize::from(self.u8()?).checked_sub(1) {
            None => None,
            Some(place) => Some(*Mode::ALL.get(place).ok_or("a mode that is unknown")?),
        };
        let ends = self.is_there()?;
        let until = Some(UtcTime::from_nanos(self.u64()?)).filter(|_| ends);
        let set_at = UtcTime::from_nanos(self.u64()?);
        let (who, reason) = (self.text()?, self.text()?);
        Ok(OverrideRecord { api, limit, key, quota, mode, until, set_at, who, reason })
    }

    fn counters(&mut self) -> Result<SetCounters, &'static str> {
        let now =
            Now { time: Timestamp::from_nanos(self.u64()?), utc: UtcTime::from_nanos(self.u64()?) };
        let used = self.u64()?;
        let (session, sequence) = (self.u64()?, self.u64()?);
        let id = (sequence != 0).then_some(RequestId { session, sequence });
        let count = usize::from(u16::from_le_bytes(self.array()?));
        if used > UNITS_MAX || !(1..=CHARGES_MAX).contains(&count) {
            return Err("more counters, or more units of them, than a request can set");
        }
        let counters = (0..count).map(|_| self.counter()).collect::<Result<_, _>>()?;
        Ok(SetCounters { now, used, id, counters })
    }

    fn counter(&mut self) -> Result<SetCounter, &'static str> {
        let key = Key::from_words([self.u64()?, self.u64()?]);
        let kind = layout::kind(self.u8()?).ok_or("a kind that is unknown")?;
        let mut words = [0; 5];
        for word in &mut words {
            *word = self.u64()?;
        }
        let quota = quota(kind, words).ok_or("numbers that no limit has")?;
        let (api, limit, window) = (self.text()?.into(), self.text()?.into(), self.text()?.into());
        Ok(SetCounter { key, quota, api, limit, window })
    }
}

fn quota(kind: Kind, [a, b, c, d, e]: [u64; 5]) -> Option<Quota> {
    let second = |word| u32::try_from(word).ok();
    let made = match kind {
        Kind::Bucket => Quota::bucket(a, Nanos::new(b), c),
        Kind::Sliding => Quota::sliding(a, Nanos::new(b)),
        Kind::Fixed => {
            let align = [Align::Clock, Align::First].into_iter().find(|it| *it as u64 == c)?;
            Quota::fixed(a, Nanos::new(b), align)
        }
        Kind::Calendar => {
            let periods = [Period::Day, Period::Week, Period::Month];
            let period = periods.into_iter().find(|it| *it as u64 == b)?;
            let (opens_at, ends_at, next_ends_at) = (second(c)?, second(d)?, second(e)?);
            Quota::calendar(a, period, Boundaries { opens_at, ends_at, next_ends_at })
        }
        Kind::Concurrent => Quota::concurrent(a, Nanos::new(b)),
        Kind::Level => Quota::level(a),
        Kind::Cap => return None,
    };
    made.ok()
}

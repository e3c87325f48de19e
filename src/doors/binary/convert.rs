//! Between the engine's and policy's values and the wire's.

use tollkeeper_protocol::request::{InlineLimit, InlineQuota};
use tollkeeper_protocol::response::{LimitInfo, LimitNumbers, NO_TIME, Slot, StaticHeader, Terse};
use tollkeeper_protocol::response::{Prepared, Witness};
use tollkeeper_protocol::status::{self, Code};
use tollkeeper_protocol::{Capabilities, EncodeError, Envelope, Op};

use crate::doors::InlineSpaces;
use crate::engine::command::{Amend, Charge, Effect, LimitId};
use crate::engine::decision::{Decision, Reading, Refusal, Retry, Verdict};
use crate::engine::group::Undecided;
use crate::engine::kinds::NextUnit;
use crate::engine::permit::Permit;
use crate::engine::quota::{Align, Kind, Quota, QuotaError};
use crate::engine::time::{Nanos, Now};
use crate::policy::{Handle, Mode, ResolveError, SlotUse, Unavailable};

// What the policy lets through, the protocol can carry.
const _: () = {
    use crate::engine::{command, quota};
    use crate::policy::maxima;
    use tollkeeper_protocol::limits;
    assert!(maxima::SLOTS_MAX <= limits::SLOTS_MAX);
    assert!(maxima::METERS_MAX <= limits::METERS_MAX);
    assert!(maxima::HANDLE_LIMITS_MAX <= limits::HANDLE_LIMITS_MAX);
    assert!(maxima::HEADERS_MAX <= limits::HEADERS_MAX);
    assert!(maxima::HEADER_VALUE_BYTES_MAX <= limits::HEADER_VALUE_BYTES_MAX);
    assert!(maxima::BODY_BYTES_MAX <= limits::BODY_BYTES_MAX);
    assert!(maxima::NAME_BYTES_MAX <= limits::NAME_BYTES_MAX);
    assert!(maxima::VALUE_BYTES_MAX == limits::VALUE_BYTES_MAX);
    assert!(command::CHARGES_MAX <= limits::CHECK_LIMITS_MAX);
    assert!(quota::UNITS_MAX == limits::UNITS_MAX && quota::UNITS_MAX == limits::COST_MAX);
    assert!(quota::WINDOW_MIN.get() == limits::WINDOW_NANOS_MIN);
    assert!(quota::WINDOW_MAX.get() == limits::WINDOW_NANOS_MAX);
};

/// What the one built-in principal may do: everything that version 1 has.
pub(super) const CAPABILITIES: Capabilities = Capabilities(
    Capabilities::CHECK.0
        | Capabilities::PEEK.0
        | Capabilities::INLINE.0
        | Capabilities::PERMITS.0
        | Capabilities::ADJUST.0,
);

pub(super) fn verdict(verdict: Verdict) -> status::Decision {
    match verdict {
        Verdict::Allow => status::Decision::Allow,
        Verdict::Deny => status::Decision::Deny,
    }
}

pub(super) fn retry(retry: Retry) -> status::Retry {
    match retry {
        Retry::Now => status::Retry::None,
        Retry::After(span) => status::Retry::After(span.get()),
        Retry::Never => status::Retry::Never,
        Retry::OnOthers(span) => status::Retry::OnOthers(span.map(Nanos::get)),
    }
}

pub(super) fn permit(permit: Permit) -> tollkeeper_protocol::Permit {
    let id = tollkeeper_protocol::PermitId(permit.id.0);
    tollkeeper_protocol::Permit { id, expires_nanos: permit.lapses_after.get() }
}

/// An amount after the fact, with its sign.
pub(super) fn amend(units: i64) -> Amend {
    let amount = units.unsigned_abs();
    if units < 0 { Amend::GiveBack(amount) } else { Amend::Add(amount) }
}

/// Standalone, nothing is logged: index and position are zero.
pub(super) fn witness(policy_version: u64, now: Now, (log_index, position): (u64, u32)) -> Witness {
    Witness { policy_version, log_index, position, cluster_nanos: now.time.as_nanos() }
}

/// The code for what a cluster did not decide.
pub(super) fn undecided_code(undecided: Undecided) -> Code {
    match undecided {
        Undecided::NoQuorum => Code::NoQuorum,
        Undecided::Unknown => Code::UnknownOutcome,
        // STALE_HANDLE is about a handle's names, which may be as they were.
        Undecided::Stale | Undecided::Overloaded => Code::Overloaded,
        Undecided::Late => Code::DeadlineExceeded,
        Undecided::Stopping => Code::ShuttingDown,
    }
}

/// The part that every answer has. `limits` are the wire's indexes of the readings' limits.
#[inline]
pub(super) fn terse(
    decision: &Decision,
    readings: &[Reading],
    index_of: impl Fn(usize) -> Option<u16>,
    policy_version: u64,
    place: (u64, u32),
) -> Terse {
    let binding = decision.binding;
    let denied = decision.verdict == Verdict::Deny;
    let wait = match binding.and_then(|binding| readings.get(binding)) {
        Some(reading) if denied => retry(reading.retry()),
        _ => status::Retry::None,
    };
    Terse {
        decision: verdict(decision.verdict),
        unmatched: false,
        failed_open: false,
        binding: binding.and_then(index_of),
        retry: wait,
        witness: witness(policy_version, decision.now, place),
    }
}

pub(super) fn numbers(index: u16, reading: &Reading) -> LimitNumbers {
    LimitNumbers {
        index,
        verdict: if reading.fits { status::Decision::Allow } else { status::Decision::Deny },
        shadow: reading.effect == Effect::Shadow,
        retry: retry(reading.retry()),
        limit: reading.limit(),
        remaining: reading.remaining(),
        next_nanos: match reading.next_unit() {
            NextUnit::All => 0,
            NextUnit::After(span) => span.get().min(NO_TIME - 1),
            NextUnit::Unknown => NO_TIME,
        },
        full_nanos: reading.full_after().map_or(NO_TIME, |span| span.get().min(NO_TIME - 1)),
    }
}

/// An inline limit as a charge. The wire's ranges are the engine's, so a number that the codec let
/// pass is a quota.
pub(super) fn charge(
    spaces: &InlineSpaces,
    inline: &InlineLimit<'_>,
) -> Result<Charge, QuotaError> {
    let InlineLimit { cost, quota, key } = *inline;
    let (quota, key) = match quota {
        InlineQuota::Bucket { units, window_nanos, burst } => {
            let quota = Quota::bucket(units, Nanos::new(window_nanos), burst)?;
            (quota, spaces.bucket.key_of_one(key))
        }
        InlineQuota::Fixed { units, window_nanos, align } => {
            let align = match align {
                status::Align::Clock => Align::Clock,
                status::Align::First => Align::First,
            };
            let quota = Quota::fixed(units, Nanos::new(window_nanos), align)?;
            let parts = [&window_nanos.to_le_bytes()[..], &[align as u8], key];
            (quota, spaces.fixed.key(parts))
        }
        InlineQuota::Sliding { units, window_nanos } => {
            let quota = Quota::sliding(units, Nanos::new(window_nanos))?;
            (quota, spaces.sliding.key([&window_nanos.to_le_bytes()[..], key]))
        }
        InlineQuota::Concurrent { units, lease_nanos } => {
            let quota = Quota::concurrent(units, Nanos::new(lease_nanos))?;
            (quota, spaces.concurrent.key_of_one(key))
        }
        InlineQuota::Level { units } => (Quota::level(units)?, spaces.level.key_of_one(key)),
        // A cap has no counter: its key is of no meaning.
        InlineQuota::Cap { units } => (Quota::cap(units)?, spaces.level.key_of_one(key)),
    };
    Ok(Charge::new(key, quota, cost, LimitId::INLINE))
}

fn kind(kind: Kind) -> status::Kind {
    match kind {
        Kind::Bucket => status::Kind::Bucket,
        Kind::Sliding => status::Kind::Sliding,
        Kind::Fixed => status::Kind::Fixed,
        Kind::Calendar => status::Kind::Calendar,
        Kind::Concurrent => status::Kind::Concurrent,
        Kind::Level => status::Kind::Level,
        Kind::Cap => status::Kind::Cap,
    }
}

fn when_unavailable(unavailable: Unavailable) -> status::WhenUnavailable {
    match unavailable {
        Unavailable::Allow => status::WhenUnavailable::Allow,
        Unavailable::Deny => status::WhenUnavailable::Deny,
    }
}

/// The answer to PREPARE, given to `encode`.
pub(super) fn with_prepared<R>(
    handle: &Handle,
    policy_version: u64,
    encode: impl FnOnce(&Prepared<'_>) -> R,
) -> R {
    let slots: Vec<_> = handle
        .slots()
        .iter()
        .map(|slot| Slot {
            usage: match slot.slot_use {
                SlotUse::Route => status::SlotUse::Route,
                SlotUse::Key => status::SlotUse::Key,
                SlotUse::Select => status::SlotUse::Select,
                SlotUse::Text => status::SlotUse::Text,
            },
            required: slot.required,
            name: &slot.name,
        })
        .collect();
    let meters: Vec<&str> = handle.meters().iter().map(|meter| &**meter).collect();
    let limits: Vec<_> = handle
        .limits()
        .iter()
        .map(|limit| LimitInfo {
            kind: kind(limit.kind()),
            mode: match limit.mode {
                Mode::Enforce => status::Mode::Enforce,
                Mode::Shadow => status::Mode::Shadow,
                Mode::Off => status::Mode::Off,
            },
            limit: limit.quota.limit(),
            name: &limit.name,
            window: &limit.window,
        })
        .collect();
    let headers: Vec<&str> = handle.header_names().collect();
    let static_headers: Vec<_> = handle
        .denial_headers()
        .iter()
        .map(|(name, value)| StaticHeader { name, value: value.as_bytes() })
        .collect();
    encode(&Prepared {
        handle: handle.number(),
        when_unavailable: when_unavailable(handle.when_unavailable()),
        denied_status: handle.denial_status(),
        layout: handle.layout(),
        policy_version,
        api: handle.api(),
        class: handle.class().unwrap_or_default(),
        slots: slots[..].into(),
        meters: meters[..].into(),
        limits: limits[..].into(),
        headers: headers[..].into(),
        static_headers: static_headers[..].into(),
    })
}

/// The answer to PREPARE as a frame.
pub(super) fn encode_prepared(
    handle: &Handle,
    policy_version: u64,
    envelope: Envelope,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    with_prepared(handle, policy_version, |prepared| prepared.encode(envelope, out))
}

pub(super) fn refusal_code(refusal: Refusal) -> Code {
    match refusal {
        Refusal::TableFull { .. } => Code::TableFull,
        Refusal::TooManyCharges { .. } => Code::TooManyItems,
        Refusal::UnlikeQuotas => Code::BadLimit,
        Refusal::PermitsCannotBeSet { .. } => Code::BadCost,
        Refusal::HorizonPassed | Refusal::WindowPassed => Code::Internal,
    }
}

pub(super) fn resolve_code(error: &ResolveError) -> Code {
    match error {
        ResolveError::BadAttribute { .. } => Code::BadAttribute,
        ResolveError::CostTooLarge { .. } => Code::BadCost,
        ResolveError::TooManyLimits { .. } => Code::TooManyItems,
    }
}

/// The capability that a request takes beyond being let in.
pub(super) fn capability(op: Op) -> Capabilities {
    match op {
        Op::CHECK => Capabilities::CHECK,
        Op::PEEK => Capabilities::PEEK,
        Op::CHECK_INLINE => Capabilities::CHECK.union(Capabilities::INLINE),
        Op::PEEK_INLINE => Capabilities::PEEK.union(Capabilities::INLINE),
        Op::SET | Op::ADJUST | Op::SESSION => Capabilities::ADJUST,
        Op::SET_INLINE | Op::ADJUST_INLINE => Capabilities::ADJUST.union(Capabilities::INLINE),
        Op::RELEASE | Op::RENEW => Capabilities::PERMITS,
        _ => Capabilities(0),
    }
}

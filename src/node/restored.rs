//! What a start takes over from the last run: counters, time, sessions, changes by hand, and from
//! where on to number permits and sessions, so that nothing is given twice.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::disk::{Directory, DiskError, Home, Record, Restore};
use crate::doors::Instance;
use crate::engine::command::{Amend, Charge};
use crate::engine::kinds::NARROW_HORIZON;
use crate::engine::session::{RequestId, SavedSession};
use crate::engine::table::{Stamp, Table};
use crate::engine::time::{Nanos, Timestamp, UtcTime};
use crate::policy::{ByHand, Identities, Identity, LimitInfo, OverrideRecord, Policy, SetCounters};

use super::StartError;

const YEAR: u64 = 365 * 86_400 * 1_000_000_000;

/// Permits and sessions that may have been given since the last snapshot and are forgotten: more
/// than any snapshot's interval holds, and there are numbers for a million restarts.
const FORGOTTEN_MAX: u64 = 1 << 36;

/// Numbers for each second of wall time, so that numbers go on where there is no snapshot at all.
const NUMBERS_PER_SECOND: u64 = 1 << 24;

/// What was taken over from a snapshot.
pub(super) struct Restored {
    /// Cluster time now: the snapshot's, and the time since.
    pub(super) time: Timestamp,
    next_permit: u64,
    sessions_opened: u64,
    sessions: Vec<SavedSession>,
    utc: UtcTime,
    /// Number of the last change by hand that its counters have.
    changed: u64,
}

/// What was taken over of changes by hand.
#[derive(Default)]
pub(super) struct Changed {
    /// Cluster time now by the last change, and the time since.
    pub(super) time: Timestamp,
    /// Number of the last change.
    pub(super) last: u64,
    /// Counters that were set, and may not be in every snapshot.
    pub(super) sets: Vec<Record>,
    overrides: Vec<OverrideRecord>,
    identities: Identities,
    /// Requests that were done after the snapshot.
    done: Vec<RequestId>,
}

/// Loads a snapshot into an empty table. `None`: there is none yet.
pub(super) fn restore(
    home: &mut Home<Directory>,
    which: Restore,
    policy: &Policy,
    table: &mut Table,
    wall: UtcTime,
) -> Result<Option<Restored>, StartError> {
    let Some(verified) = home.restore(which)? else { return Ok(None) };
    let header = verified.outline().header;
    let loaded = verified.load(table, |old| {
        let is_same = |new: &&LimitInfo| {
            (new.kind, &*new.api, &*new.name, &*new.window)
                == (old.kind, &*old.api, &*old.name, &*old.window)
        };
        policy.limits().iter().find(is_same).map(|new| new.id)
    });
    let loaded = loaded.map_err(|damage| -> DiskError { home.damaged(header.number, damage) })?;
    let down = wall - header.wall;
    let time = time_after(header.time, header.wall, wall);
    let path = home.path_of(header.number);
    if time.as_nanos() >= NARROW_HORIZON {
        let found = time.as_nanos() / YEAR;
        return Err(StartError::TooOld { path, found });
    }
    if time.as_nanos() >= NARROW_HORIZON - YEAR {
        let days = (NARROW_HORIZON - time.as_nanos()) / (YEAR / 365);
        tracing::warn!(
            days,
            "in so many days this data directory is seven years old, and all checks are refused; \
             begin a new one before"
        );
    }
    tracing::info!(
        file = path,
        counters = loaded.counters,
        of_unknown_limits = loaded.of_unknown_limits,
        down_seconds = down.get() as f64 / 1e9,
        "restored"
    );
    Ok(Some(Restored {
        time,
        next_permit: header.next_permit,
        sessions_opened: header.sessions_opened,
        sessions: verified.sessions(),
        utc: header.utc,
        changed: header.applied.0,
    }))
}

/// Cluster time now, where it was `time` when the system's wall clock was at `then`.
fn time_after(time: Timestamp, then: UtcTime, wall: UtcTime) -> Timestamp {
    // A wall clock that was set back while nobody ran costs time and gives none.
    time.after(wall - then)
}

/// Makes the changes by hand again that came after the snapshot: counters at once, the rest is
/// handed on by [`Changed::take_over`].
pub(super) fn change(
    home: &Home<Directory>,
    restored: Option<&Restored>,
    policy: &Policy,
    table: &Table,
    wall: UtcTime,
) -> Result<Changed, StartError> {
    let after = restored.map_or(0, |restored| restored.changed);
    let mut changed = Changed { last: after, ..Changed::default() };
    let Some(read) = home.read_changes()? else { return Ok(changed) };
    if read.torn() > 0 {
        tracing::info!(bytes = read.torn(), "a change that was being written is left out");
    }
    let last = read.last();
    changed.last = last.number.max(after);
    changed.time = time_after(last.time, last.wall, wall);
    let (mut set, mut refused) = (0, 0);
    for record in read.records() {
        match record.change {
            ByHand::SetOverride(record) => {
                let is_same = |other: &OverrideRecord| {
                    other.is_for(&record.api, &record.limit, record.key.as_deref())
                };
                changed.overrides.retain(|other| !is_same(other));
                changed.overrides.push(record);
            }
            ByHand::ClearOverride { api, limit, key, .. } => {
                changed.overrides.retain(|other| !other.is_for(&api, &limit, key.as_deref()));
            }
            ByHand::PutIdentity(Identity { api, attribute, value, account }) => {
                // There are no more than there may be: they were all there at one time.
                let _ = changed.identities.put(&api, &attribute, &value, account);
            }
            ByHand::RemoveIdentity { api, attribute, value } => {
                changed.identities.remove(&api, &attribute, &value);
            }
            ByHand::SetCounters(ref counters) => {
                if record.number > after {
                    let is_set = set_again(counters, policy, table);
                    set += usize::from(is_set);
                    refused += usize::from(!is_set);
                    changed.done.extend(counters.id);
                }
                changed.sets.push(record);
            }
        }
    }
    if refused > 0 {
        tracing::warn!(refused, "counters that were set by hand have no room in the table now");
    }
    tracing::info!(
        overrides = changed.overrides.len(),
        identities = changed.identities.count(),
        set_again = set,
        "changes by hand restored"
    );
    Ok(changed)
}

/// Sets counters as they were set, at the moment of then; false if there is no room for them.
fn set_again(set: &SetCounters, policy: &Policy, table: &Table) -> bool {
    let charges: Vec<Charge> = set.counters.iter().map(|counter| counter.charge(policy)).collect();
    let mut stamp = Stamp::new(|| set.now);
    let amended = table.pin().amend(&charges, Amend::Set(set.used), &mut stamp, &mut Vec::new());
    amended.is_ok()
}

impl Changed {
    /// Puts in force what was beside the policy, and notes which requests were done.
    pub(super) fn take_over(&mut self, instance: &Instance) {
        let overrides = std::mem::take(&mut self.overrides);
        instance.take_over(overrides, std::mem::take(&mut self.identities));
        let mut sessions = instance.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let now = instance.clock.now().time;
        for id in self.done.drain(..) {
            // A session that began after the snapshot is forgotten, and so are its numbers.
            if sessions.is_done(id, now) == Ok(false) {
                sessions.mark_done(id);
            }
        }
    }
}

/// Numbers permits and sessions past all that were ever given, and remembers the sessions.
pub(super) fn number_on(instance: &Instance, restored: Option<Restored>, wall: UtcTime) {
    let by_time = (wall.as_nanos() / Nanos::from_secs(1).get()).saturating_mul(NUMBERS_PER_SECOND);
    let after = |number: u64| number.saturating_add(FORGOTTEN_MAX).max(by_time);
    let (next_permit, opened, sessions, taken_at) = match restored {
        Some(restored) => (
            after(restored.next_permit),
            after(restored.sessions_opened),
            restored.sessions,
            restored.utc.as_nanos(),
        ),
        None => (by_time.max(1), by_time, Vec::new(), 0),
    };
    instance.table.load().number_permits_from(next_permit);
    instance.sessions.lock().unwrap_or_else(PoisonError::into_inner).restore(opened, sessions);
    instance.cells.snapshots.taken_at.store(taken_at, Ordering::Relaxed);
}

//! What a start takes over from the last run: counters, time, sessions, and from where on to
//! number permits and sessions, so that nothing is given twice.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::disk::{Directory, DiskError, Home, Restore};
use crate::doors::Instance;
use crate::engine::kinds::NARROW_HORIZON;
use crate::engine::session::SavedSession;
use crate::engine::table::Table;
use crate::engine::time::{Nanos, Timestamp, UtcTime};
use crate::policy::Policy;

use super::StartError;
use super::keeper::limit_names;

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
    let names = limit_names(policy);
    let loaded = verified.load(table, |old| {
        let is_same = |new: &&crate::disk::LimitName| {
            (new.kind, &new.api, &new.name, &new.window)
                == (old.kind, &old.api, &old.name, &old.window)
        };
        names.iter().find(is_same).map(|new| new.id)
    });
    let loaded = loaded.map_err(|damage| -> DiskError { home.damaged(header.number, damage) })?;
    // A wall clock that was set back while nobody ran costs time and gives none.
    let down = wall - header.wall;
    let time = header.time.after(down);
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
    }))
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

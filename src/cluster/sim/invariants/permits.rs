//! Promise 1, of permits: no more are held at once than the limit says, by true time. A permit is
//! surely held from the reply that gave it until somebody asks for its release, or until its lease
//! is over by the fastest clock.

use crate::engine::permit::PermitId;

use super::super::limits::{LEASE, PERMITS};

/// Parts in a million by which clocks may be off.
const OFF_PPM: u64 = 2000;

/// The permits that clients were given.
#[derive(Default)]
pub(in super::super) struct Permits {
    given: Vec<Given>,
}

struct Given {
    id: PermitId,
    units: u64,
    from: u64,
    until: u64,
}

/// When a lease is over at the earliest that was given to a call at this time.
fn lapses(called_at: u64) -> u64 {
    called_at + LEASE.get() / (1_000_000 + OFF_PPM) * 1_000_000
}

impl Permits {
    pub(in super::super) fn given(&mut self, id: PermitId, units: u64, called: u64, replied: u64) {
        self.given.push(Given { id, units, from: replied, until: lapses(called) });
    }

    /// Somebody asks for its release, whatever comes of it.
    pub(in super::super) fn asked_back(&mut self, id: PermitId, at: u64) {
        for given in self.given.iter_mut().filter(|given| given.id == id) {
            given.until = given.until.min(at);
        }
    }

    pub(in super::super) fn check(&self) -> Result<(), String> {
        // Of equal times what ends comes first.
        let mut changes: Vec<(u64, bool, u64)> = Vec::new();
        for given in self.given.iter().filter(|given| given.from < given.until) {
            changes.push((given.until, false, given.units));
            changes.push((given.from, true, given.units));
        }
        changes.sort_unstable();
        let mut held = 0;
        for (at, is_given, units) in changes {
            held = if is_given { held + units } else { held - units };
            if held > PERMITS {
                let at = at as f64 / 1e9;
                return Err(format!("{held} permits are held at {at:.3} s, at most {PERMITS} may"));
            }
        }
        let mut ids: Vec<[u8; 16]> = self.given.iter().map(|given| given.id.0).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("permit {:?} was given twice", PermitId(pair[0]))),
            None => Ok(()),
        }
    }
}

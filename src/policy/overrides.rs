//! Overrides: limits that differ from the policy for one key or for all, until a date. They are
//! data beside the policy, compiled against it.

use std::collections::HashMap;

use crate::engine::command::LimitId;
use crate::engine::key::Key;
use crate::engine::quota::Quota;
use crate::engine::time::UtcTime;

use super::handle::Mode;

/// What a limit is for some keys instead of what the policy says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Override {
    /// Its numbers; `None` leaves those of the policy.
    pub quota: Option<Quota>,
    /// Whether it is in force; `None` leaves what the policy says.
    pub mode: Option<Mode>,
    /// When it ends by itself.
    pub until: Option<UtcTime>,
}

impl Override {
    fn holds(&self, now: UtcTime) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// Every override, by the numbers of one compiled policy.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    all: HashMap<u16, Override>,
    keyed: HashMap<(u16, Key), Override>,
}

impl Overrides {
    /// The override of a limit for this key at this moment: the key's own before the one for all.
    #[inline]
    pub(super) fn find(&self, limit: LimitId, key: Key, now: UtcTime) -> Option<&Override> {
        if self.all.is_empty() && self.keyed.is_empty() {
            return None;
        }
        let of_key = self.keyed.get(&(limit.0, key)).filter(|found| found.holds(now));
        of_key.or_else(|| self.all.get(&limit.0).filter(|found| found.holds(now)))
    }

    pub(super) fn put(&mut self, limit: LimitId, key: Option<Key>, value: Override) {
        match key {
            Some(key) => self.keyed.insert((limit.0, key), value),
            None => self.all.insert(limit.0, value),
        };
    }
}

//! Changes by hand, as values: what people and programs change beside the policy and beside
//! requests, and expect to find again.

use crate::engine::command::{Charge, LimitId};
use crate::engine::key::Key;
use crate::engine::kinds::Form;
use crate::engine::quota::Quota;
use crate::engine::session::RequestId;
use crate::engine::time::Now;

use super::{Identity, OverrideRecord, Policy};

/// A change by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ByHand {
    /// An override was set, in place of the one for the same limit and key.
    SetOverride(OverrideRecord),
    /// The override for this limit and key was cleared.
    ClearOverride {
        /// Name of the API.
        api: String,
        /// Name of the limit, as it was set.
        limit: String,
        /// For whom, sorted; `None` is everybody.
        key: Option<Vec<(String, String)>>,
        /// Who cleared it, by their own word.
        who: String,
    },
    /// It was noted whose an identity is.
    PutIdentity(Identity),
    /// An identity was forgotten.
    RemoveIdentity {
        /// Name of the API.
        api: Box<str>,
        /// The attribute.
        attribute: Box<str>,
        /// Its value.
        value: Box<[u8]>,
    },
    /// What counters have used was set.
    SetCounters(SetCounters),
}

/// Counters that were set to one number at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetCounters {
    /// When.
    pub now: Now,
    /// Units that they have used since.
    pub used: u64,
    /// Which request it was, if it may be sent again.
    pub id: Option<RequestId>,
    /// Which counters.
    pub counters: Vec<SetCounter>,
}

/// A counter that was set, by the numbers of then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetCounter {
    /// Which counter.
    pub key: Key,
    /// By which numbers it was set.
    pub quota: Quota,
    /// Name of the limit's API; empty for an inline limit.
    pub api: Box<str>,
    /// Name of the limit.
    pub limit: Box<str>,
    /// Name of its window.
    pub window: Box<str>,
}

impl SetCounter {
    /// The counter of a charge, by its limit's names in `policy`. `None`: it has no counter.
    pub fn of(charge: &Charge, policy: &Policy) -> Option<Self> {
        if charge.quota.form() == Form::None {
            return None;
        }
        let named = policy.limit(charge.limit);
        let name = |of: fn(&super::LimitInfo) -> &str| named.map(of).unwrap_or_default().into();
        Some(Self {
            key: charge.key,
            quota: charge.quota,
            api: name(|limit| &limit.api),
            limit: name(|limit| &limit.name),
            window: name(|limit| &limit.window),
        })
    }

    /// The charge by which the counter is set again under `policy`. The counter of a limit that the
    /// policy does not have is kept with the inline ones, as snapshots do it.
    pub fn charge(&self, policy: &Policy) -> Charge {
        let is_same = |limit: &&super::LimitInfo| {
            (limit.kind, &*limit.api, &*limit.name, &*limit.window)
                == (self.quota.kind(), &*self.api, &*self.limit, &*self.window)
        };
        let limit = policy.limits().iter().find(is_same).map_or(LimitId::INLINE, |limit| limit.id);
        Charge::new(self.key, self.quota, 0, limit)
    }
}

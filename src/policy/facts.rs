//! What is known of one request once its route, tier and account are found: what conditions,
//! tables of values and keys look at.

use super::resolve::{Found, Request};
use super::route::Sets;

/// A request as limits see it.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) request: Request<'a>,
    /// Sets of routes that the request is in, one bit each.
    pub(super) matched: &'a [u64],
    /// The method, `HEAD` counting as `GET`; empty where the caller has routed.
    pub(super) method: &'a [u8],
    /// The path in normal form; empty where the caller has routed.
    pub(super) path: &'a [u8],
    /// Index of the customer's tier; `None` if none was said, or one that the API does not have.
    pub(super) tier: Option<u16>,
    /// Its name.
    pub(super) tier_name: Option<&'a [u8]>,
    /// Whether the request says a tier, be it one that the API does not have.
    pub(super) says_tier: bool,
    /// Slot of `account`, where identities stand for accounts.
    pub(super) account_slot: Option<u16>,
    /// What that slot holds, or the account that one of the request's identities belongs to.
    pub(super) account: Option<&'a [u8]>,
}

impl<'a> Facts<'a> {
    /// Of a request of which nothing but its tier is known.
    pub(super) fn of_tier(tier: Option<u16>) -> Self {
        Self {
            request: Request::default(),
            matched: &[],
            method: &[],
            path: &[],
            tier,
            tier_name: None,
            says_tier: tier.is_some(),
            account_slot: None,
            account: None,
        }
    }

    /// The value of an attribute.
    #[inline]
    pub(super) fn value(&self, slot: u16) -> Option<&'a [u8]> {
        if self.account_slot == Some(slot) { self.account } else { self.request.value(slot) }
    }

    /// What is wrong where a tier is needed and there is none.
    pub(super) fn bad_tier(&self, slot: u16) -> (u16, Found) {
        (slot, if self.says_tier { Found::Unfit } else { Found::Missing })
    }

    /// Whether the request is in any of `sets`.
    #[inline]
    pub(super) fn is_in(&self, sets: &Sets) -> bool {
        sets.meet(self.matched)
    }

    /// Whether the request's tier is one of `tiers`.
    pub(super) fn has_tier_of(&self, tiers: &Sets) -> bool {
        self.tier.is_some_and(|tier| tiers.has(tier))
    }
}

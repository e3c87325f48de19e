//! Identities: which account the API keys, sessions and bot users belong to that requests bring.

use std::collections::HashMap;

/// What is on record of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Whose it is.
    pub account: Box<str>,
    /// The account's tier, if it is on record.
    pub tier: Option<Box<str>>,
}

/// Every identity that is on record.
#[derive(Clone, Debug, Default)]
pub struct Identities {
    /// By API and attribute, by value.
    by_attribute: HashMap<Box<str>, HashMap<Box<str>, ByValue>>,
}

type ByValue = HashMap<Box<[u8]>, Account>;

impl Identities {
    /// Notes that a value of an attribute stands for an account; what was on record of it before.
    pub fn put(
        &mut self,
        api: &str,
        attribute: &str,
        value: &[u8],
        account: Account,
    ) -> Option<Account> {
        let of_api = self.by_attribute.entry(api.into()).or_default();
        of_api.entry(attribute.into()).or_default().insert(value.into(), account)
    }

    /// Forgets an identity; what was on record of it.
    pub fn remove(&mut self, api: &str, attribute: &str, value: &[u8]) -> Option<Account> {
        self.by_attribute.get_mut(api)?.get_mut(attribute)?.remove(value)
    }

    /// Whom a value of an attribute stands for.
    #[inline]
    pub fn find(&self, api: &str, attribute: &str, value: &[u8]) -> Option<&Account> {
        self.by_attribute.get(api)?.get(attribute)?.get(value)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_attribute.values().flat_map(HashMap::values).map(HashMap::len).sum()
    }
}

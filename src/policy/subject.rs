//! Identities: which account the API keys, sessions and bot users belong to that requests bring.

use std::collections::HashMap;
use std::sync::Arc;

use super::fingerprint::Fingerprint;
use super::maxima::IDENTITIES_MAX;

/// What is on record of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Whose it is.
    pub account: Box<str>,
    /// The account's tier, if it is on record.
    pub tier: Option<Box<str>>,
}

/// An identity with what is on record of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the API.
    pub api: Box<str>,
    /// The attribute, such as `api_key`.
    pub attribute: Box<str>,
    /// Its value.
    pub value: Box<[u8]>,
    /// What it stands for.
    pub account: Account,
}

/// Every identity that is on record. A clone shares all of them, and a change copies one share in
/// `SHARDS`, so that readers keep what they have while it changes.
#[derive(Clone, Debug, Default)]
pub struct Identities {
    /// None until the first identity comes.
    shards: Vec<Arc<Shard>>,
    count: usize,
}

/// By value. Hardly ever do two APIs or attributes have the same one.
type Shard = HashMap<Box<[u8]>, Vec<Identity>>;

/// Shares of the identities.
const SHARDS: usize = 1024;

/// Operator: there are all the identities that there may be, [`IDENTITIES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl Identities {
    /// Notes that a value of an attribute stands for an account; what was on record of it before.
    ///
    /// # Errors
    /// If it is one more than may be.
    pub fn put(
        &mut self,
        api: &str,
        attribute: &str,
        value: &[u8],
        account: Account,
    ) -> Result<Option<Account>, TooMany> {
        if self.shards.is_empty() {
            self.shards = vec![Arc::default(); SHARDS];
        }
        let shard = Arc::make_mut(&mut self.shards[shard_of(value)]);
        let of_value = shard.entry(value.into()).or_default();
        if let Some(known) = of_value.iter_mut().find(|known| known.is(api, attribute)) {
            return Ok(Some(core::mem::replace(&mut known.account, account)));
        }
        if self.count >= IDENTITIES_MAX {
            return Err(TooMany);
        }
        let (api, attribute) = (api.into(), attribute.into());
        of_value.push(Identity { api, attribute, value: value.into(), account });
        self.count += 1;
        Ok(None)
    }

    /// Forgets an identity; what was on record of it.
    pub fn remove(&mut self, api: &str, attribute: &str, value: &[u8]) -> Option<Account> {
        self.find(api, attribute, value)?;
        let shard = Arc::make_mut(self.shards.get_mut(shard_of(value))?);
        let of_value = shard.get_mut(value)?;
        let place = of_value.iter().position(|known| known.is(api, attribute))?;
        let removed = of_value.swap_remove(place);
        if of_value.is_empty() {
            shard.remove(value);
        }
        self.count -= 1;
        Some(removed.account)
    }

    /// Whom a value of an attribute stands for.
    #[inline]
    pub fn find(&self, api: &str, attribute: &str, value: &[u8]) -> Option<&Account> {
        let of_value = self.shards.get(shard_of(value))?.get(value)?;
        let found = of_value.iter().find(|known| known.is(api, attribute))?;
        Some(&found.account)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Identity> {
        self.shards.iter().flat_map(|shard| shard.values()).flatten()
    }
}

impl Identity {
    fn is(&self, api: &str, attribute: &str) -> bool {
        *self.api == *api && *self.attribute == *attribute
    }
}

/// Spreads honest values evenly; within a share it is a keyed hash that finds them.
fn shard_of(value: &[u8]) -> usize {
    let hash = Fingerprint::new().part(value).finish();
    (hash ^ hash >> 32) as usize % SHARDS
}

//! Changes while running: of the policy, of overrides, of identities. Each is made on a copy of
//! what is in force and takes its place by one swap, so that a check sees all of it or none.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::time::UtcTime;
use crate::policy::maxima::{IDENTITIES_MAX, OVERRIDES_MAX, REASON_BYTES_MAX, VALUE_BYTES_MAX};
use crate::policy::{
    Account, ByHand, Change, Context, Identities, Identity, Mode, Numbers, OverrideRecord,
    Overrides, Policy, RuleNumbers, RunOut, did_you_mean, diff,
};

use super::changes::{Batch, Full, Kept};
use super::journal::Event;
use super::{Instance, cap_limits};

/// What checks are resolved by: a policy in force, and what differs from it.
pub struct Loaded {
    /// The policy. Shared, since overrides and identities change without it.
    pub policy: Arc<Policy>,
    /// A file, a directory, or the built-in example, for people.
    pub origin: String,
    /// When it was loaded.
    pub loaded_at: UtcTime,
    /// Which accounts the identities that requests bring belong to.
    pub identities: Identities,
    /// Limits that differ from the policy for some keys.
    overrides: Overrides,
    /// For each handle, by number from 1, whether an override touches any of its limits; empty if
    /// there are none.
    overridden: Vec<bool>,
}

impl Loaded {
    /// A policy as it is to come into force.
    pub fn new(policy: Policy, origin: String, loaded_at: UtcTime) -> Self {
        Self {
            policy: Arc::new(policy),
            origin,
            loaded_at,
            identities: Identities::default(),
            overrides: Overrides::default(),
            overridden: Vec::new(),
        }
    }

    fn with_overrides(mut self, overrides: Overrides) -> Self {
        self.overridden.clear();
        if !overrides.is_empty() {
            let handles = self.policy.handles();
            let last = handles.iter().map(|handle| handle.number() as usize).max();
            self.overridden.resize(last.unwrap_or_default(), false);
            for handle in handles {
                let touched = handle.limits().iter().any(|limit| overrides.touches(limit.id));
                self.overridden[handle.number() as usize - 1] = touched;
            }
        }
        self.overrides = overrides;
        self
    }

    /// A copy with other identities or overrides to come.
    fn copy(&self) -> Self {
        Self {
            policy: Arc::clone(&self.policy),
            origin: self.origin.clone(),
            loaded_at: self.loaded_at,
            identities: self.identities.clone(),
            overrides: self.overrides.clone(),
            overridden: self.overridden.clone(),
        }
    }

    /// Whether an override touches a limit of the handle of that number, so that its numbers
    /// depend on the key.
    #[inline]
    pub fn is_overridden(&self, number: u32) -> bool {
        let index = (number as usize).wrapping_sub(1);
        self.overridden.get(index).copied().unwrap_or(false)
    }

    /// Whether there are overrides, which end at moments.
    #[inline]
    pub fn has_overrides(&self) -> bool {
        !self.overridden.is_empty()
    }

    /// What requests are resolved by at this moment.
    #[inline]
    pub fn context(&self, now: UtcTime) -> Context<'_> {
        Context {
            now,
            identities: Some(&self.identities).filter(|identities| identities.count() > 0),
            overrides: Some(&self.overrides).filter(|_| self.has_overrides()),
        }
    }

    /// Names of the APIs, with their numbers in the counts.
    pub fn apis(&self) -> impl Iterator<Item = (&str, usize)> {
        let apis = self.policy.handles().iter().filter(|handle| handle.class().is_none());
        apis.map(|handle| (handle.api(), handle.api_number()))
    }
}

/// An override, and whether it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// As it was set.
    pub record: OverrideRecord,
    /// Why it is not: it does not fit the policy that came since.
    pub problem: Option<String>,
}

/// What is in force beside the policy, and the changes by hand that made it so and still wait.
pub struct InForce {
    /// Every override, the latest last.
    pub overrides: Vec<OverrideRecord>,
    /// Every identity.
    pub identities: Identities,
    /// The changes that waited to be kept.
    pub batch: Batch,
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Caller: what it names or says is wrong.
    Wrong(String),
    /// Operator: there are as many as may be.
    TooMany(String),
}

impl From<Full> for Failure {
    fn from(full: Full) -> Self {
        Self::TooMany(full.to_string())
    }
}

/// What came of reading the policy again.
#[derive(Debug, Default)]
pub struct Reloads {
    succeeded: AtomicU64,
    failed: AtomicU64,
    last: Mutex<Option<(String, UtcTime)>>,
}

impl Reloads {
    /// How many came into force.
    pub fn succeeded(&self) -> u64 {
        self.succeeded.load(Ordering::Relaxed)
    }

    /// How many did not.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Notes one that did not come into force, and why.
    pub fn note_failure(&self, why: String, at: UtcTime) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((why, at));
    }

    fn note_success(&self) {
        self.succeeded.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Why the last one did not come into force, and when; `None` if it did.
    pub fn last_failure(&self) -> Option<(String, UtcTime)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Who changes what is in force takes turns here; who reads it never comes by.
pub struct Control {
    state: Mutex<State>,
    /// What came of reading the policy again.
    pub reloads: Reloads,
}

struct State {
    numbers: Numbers,
    rule_numbers: RuleNumbers,
    overrides: Vec<Standing>,
}

impl Control {
    /// Control of an instance whose first policy is `loaded`, which gets its numbers.
    pub(super) fn begin(loaded: &mut Loaded) -> Result<Self, RunOut> {
        let (mut numbers, mut rule_numbers) = (Numbers::default(), RuleNumbers::default());
        // Nobody else has it yet.
        if let Some(policy) = Arc::get_mut(&mut loaded.policy) {
            numbers.assign(policy)?;
            rule_numbers.assign(policy);
        }
        let state = Mutex::new(State { numbers, rule_numbers, overrides: Vec::new() });
        Ok(Self { state, reloads: Reloads::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// All overrides by the numbers of `policy`; each is noted as fitting it or not.
    fn compile(&mut self, policy: &Policy) -> Overrides {
        let mut overrides = Overrides::default();
        for standing in &mut self.overrides {
            standing.problem = standing.record.add_to(&mut overrides, policy).err();
        }
        overrides
    }
}

impl Instance {
    /// Puts another policy in force. Returns what becomes of each limit's counters.
    ///
    /// # Errors
    /// If there are no more numbers; the policy in force stays.
    pub fn reload(
        &self,
        policy: Policy,
        origin: String,
        now: UtcTime,
    ) -> Result<Vec<Change>, RunOut> {
        let numbers = self.control.lock().numbers.clone();
        self.replace(policy, origin, now, numbers)
    }

    /// As [`Instance::reload`], going on from these numbers.
    ///
    /// # Errors
    /// As [`Instance::reload`].
    pub fn replace(
        &self,
        mut policy: Policy,
        origin: String,
        now: UtcTime,
        mut numbers: Numbers,
    ) -> Result<Vec<Change>, RunOut> {
        let mut state = self.control.lock();
        let before = self.policy.load_full();
        numbers.assign(&mut policy)?;
        state.rule_numbers.assign(&mut policy);
        let changes = diff(&before.policy, &policy);
        cap_limits(&self.table.load(), &policy);
        state.numbers = numbers;
        let overrides = state.compile(&policy);
        let mut loaded = Loaded::new(policy, origin, now);
        loaded.identities = before.identities.clone();
        self.policy.store(Arc::new(loaded.with_overrides(overrides)));
        self.control.reloads.note_success();
        Ok(changes)
    }

    /// Numbers of everything that has had one since the start.
    pub fn numbers(&self) -> Numbers {
        self.control.lock().numbers.clone()
    }

    /// Every override that has not ended.
    pub fn overrides(&self) -> Vec<Standing> {
        let now = self.clock.now().utc;
        let state = self.control.lock();
        let holds = |standing: &&Standing| standing.record.until.is_none_or(|until| now < until);
        state.overrides.iter().filter(holds).cloned().collect()
    }

    /// Sets an override, in place of what was set for the same limit and key. Returns how many
    /// counters' limits it replaces, each window by itself; everybody's count as one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn set_override(&self, mut record: OverrideRecord) -> Result<(usize, Kept), Failure> {
        if let Some(key) = &mut record.key {
            key.sort();
        }
        for (what, text) in [("reason", &record.reason), ("who", &record.who)] {
            if text.len() > REASON_BYTES_MAX {
                let bytes = text.len();
                let message = format!("`{what}` has {bytes} bytes, allowed are {REASON_BYTES_MAX}");
                return Err(Failure::Wrong(message));
            }
        }
        if record.until.is_some_and(|until| until <= record.set_at) {
            return Err(Failure::Wrong("`until` is in the past".to_owned()));
        }
        let mut state = self.control.lock();
        let loaded = self.policy.load_full();
        // On its own first: what does not fit leaves no trace.
        let count =
            record.add_to(&mut Overrides::default(), &loaded.policy).map_err(Failure::Wrong)?;
        let place = state.overrides.iter().position(|standing| {
            standing.record.is_for(&record.api, &record.limit, record.key.as_deref())
        });
        if place.is_none() && state.overrides.len() >= OVERRIDES_MAX {
            let message = format!("there are {OVERRIDES_MAX} overrides, which is all there may be");
            return Err(Failure::TooMany(message));
        }
        self.changes.has_room()?;
        let change = ByHand::SetOverride(record.clone());
        self.journal.tell(Event::Changed(format!(
            "override of {}.{} for {}: {}{} by {:?}, reason {:?}",
            record.api,
            record.limit,
            record.whom(),
            record.mode.map_or("", Mode::name),
            record.quota.as_deref().unwrap_or_default(),
            record.who,
            record.reason,
        )));
        let overrides = match place {
            // The latest counts where two name the same window, so it goes to the end.
            Some(place) => {
                state.overrides.remove(place);
                state.overrides.push(Standing { record, problem: None });
                state.compile(&loaded.policy)
            }
            None => {
                let mut overrides = loaded.overrides.clone();
                let _ = record.add_to(&mut overrides, &loaded.policy);
                state.overrides.push(Standing { record, problem: None });
                overrides
            }
        };
        self.policy.store(Arc::new(loaded.copy().with_overrides(overrides)));
        Ok((count, self.changes.keep(change)))
    }

    /// Clears the overrides that `which` picks. Returns how many there were.
    fn clear_where(&self, state: &mut State, which: impl Fn(&OverrideRecord) -> bool) -> usize {
        let before = state.overrides.len();
        state.overrides.retain(|standing| !which(&standing.record));
        let cleared = before - state.overrides.len();
        if cleared > 0 {
            let loaded = self.policy.load_full();
            let overrides = state.compile(&loaded.policy);
            self.policy.store(Arc::new(loaded.copy().with_overrides(overrides)));
        }
        cleared
    }

    /// Clears the override that was set for this limit and key. Returns whether there was one.
    ///
    /// # Errors
    /// If too many changes wait to be kept.
    pub fn clear_override(
        &self,
        api: &str,
        limit: &str,
        key: Option<&[(String, String)]>,
        who: &str,
    ) -> Result<(bool, Kept), Failure> {
        let key = key.map(|key| {
            let mut key = key.to_vec();
            key.sort();
            key
        });
        let mut state = self.control.lock();
        self.changes.has_room()?;
        let is_meant = |record: &OverrideRecord| record.is_for(api, limit, key.as_deref());
        if self.clear_where(&mut state, is_meant) == 0 {
            return Ok((false, Kept::default()));
        }
        let whom = key.as_ref().map_or("*".to_owned(), |key| format!("{key:?}"));
        let what = format!("override of {api}.{limit} for {whom} cleared by {who:?}");
        self.journal.tell(Event::Changed(what));
        let (api, limit, who) = (api.to_owned(), limit.to_owned(), who.to_owned());
        Ok((true, self.changes.keep(ByHand::ClearOverride { api, limit, key, who })))
    }

    /// Takes over what was in force beside the policy in an earlier run. Overrides that have ended
    /// are left out; those that do not fit the policy stand and are not in force.
    pub fn take_over(&self, overrides: Vec<OverrideRecord>, identities: Identities) {
        let mut state = self.control.lock();
        let now = self.clock.now().utc;
        let holds = |record: &OverrideRecord| record.until.is_none_or(|until| now < until);
        let overrides = overrides.into_iter().filter(holds);
        let standing = overrides.map(|record| Standing { record, problem: None });
        state.overrides = standing.collect();
        let loaded = self.policy.load_full();
        let overrides = state.compile(&loaded.policy);
        let mut changed = loaded.copy().with_overrides(overrides);
        changed.identities = identities;
        self.policy.store(Arc::new(changed));
    }

    /// What is in force beside the policy, after all changes by hand up to one, and those that were
    /// still waiting to be kept.
    pub fn in_force(&self) -> InForce {
        let state = self.control.lock();
        // Nobody changes overrides or identities as long as the state is locked.
        let batch = self.changes.turn().map(|mut turn| turn.take()).unwrap_or_default();
        let overrides = state.overrides.iter().map(|standing| standing.record.clone()).collect();
        let identities = self.policy.load().identities.clone();
        InForce { overrides, identities, batch }
    }

    /// Forgets overrides that have ended; checks have not heeded them since.
    pub fn forget_ended(&self) {
        let now = self.clock.now().utc;
        let ended = |record: &OverrideRecord| record.until.is_some_and(|until| until <= now);
        if self.policy.load().has_overrides() {
            let mut state = self.control.lock();
            self.clear_where(&mut state, ended);
        }
    }

    /// Notes whose an identity is. Returns what was on record of it before.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn put_identity(
        &self,
        api: &str,
        attribute: &str,
        value: &str,
        account: Account,
    ) -> Result<(Option<Account>, Kept), Failure> {
        let _state = self.control.lock();
        let loaded = self.policy.load_full();
        let handle = loaded.policy.handle_of(api, None).ok_or_else(|| {
            let help = did_you_mean(api, loaded.policy.apis()).unwrap_or_default();
            Failure::Wrong(format!("unknown API `{api}`; {help}"))
        })?;
        let known: Vec<&str> = handle.identities().collect();
        if !known.contains(&attribute) {
            let message = match known.as_slice() {
                [] => format!(
                    "nothing stands for accounts in API `{api}`; its policy may say what does: \
                     `subject.account = [\"{attribute}\", …]`"
                ),
                known => format!(
                    "`{attribute}` stands for no account in API `{api}`, allowed are {}",
                    known.join(", ")
                ),
            };
            return Err(Failure::Wrong(message));
        }
        if let Some(tier) = account.tier.as_deref()
            && !handle.tiers().any(|known| known == tier)
        {
            let tiers = handle.tiers().collect::<Vec<_>>().join(", ");
            let message = format!("API `{api}` has no tier `{tier}`, its tiers are {tiers}");
            return Err(Failure::Wrong(message));
        }
        for (what, text) in [("value", value), ("account", &account.account)] {
            if text.is_empty() || text.len() > VALUE_BYTES_MAX {
                let bytes = text.len();
                let message =
                    format!("`{what}` has {bytes} bytes, allowed are 1 to {VALUE_BYTES_MAX}");
                return Err(Failure::Wrong(message));
            }
        }
        self.changes.has_room()?;
        let mut changed = loaded.copy();
        let put = changed.identities.put(api, attribute, value.as_bytes(), account.clone());
        let before = put.map_err(|_| {
            let message =
                format!("there are {IDENTITIES_MAX} identities, which is all there may be");
            Failure::TooMany(message)
        })?;
        self.policy.store(Arc::new(changed));
        let tier = account.tier.as_deref().unwrap_or("none");
        let text = &account.account;
        // The value may be a secret, such as an API key.
        let what =
            format!("identity of API {api}: a value of {attribute} is {text}'s, tier {tier}");
        self.journal.tell(Event::Changed(what));
        let (api, attribute, value) = (api.into(), attribute.into(), value.as_bytes().into());
        let identity = Identity { api, attribute, value, account };
        Ok((before, self.changes.keep(ByHand::PutIdentity(identity))))
    }

    /// Forgets an identity. Returns what was on record of it.
    ///
    /// # Errors
    /// If too many changes wait to be kept.
    pub fn remove_identity(
        &self,
        api: &str,
        attribute: &str,
        value: &str,
    ) -> Result<(Option<Account>, Kept), Failure> {
        let _state = self.control.lock();
        self.changes.has_room()?;
        let loaded = self.policy.load_full();
        let mut changed = loaded.copy();
        let Some(removed) = changed.identities.remove(api, attribute, value.as_bytes()) else {
            return Ok((None, Kept::default()));
        };
        self.policy.store(Arc::new(changed));
        let text = &removed.account;
        let what = format!("identity of API {api}: a value of {attribute} is no more {text}'s");
        self.journal.tell(Event::Changed(what));
        let (api, attribute, value) = (api.into(), attribute.into(), value.as_bytes().into());
        let kept = self.changes.keep(ByHand::RemoveIdentity { api, attribute, value });
        Ok((Some(removed), kept))
    }
}

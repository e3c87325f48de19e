//! Overrides: limits that differ from the policy for one key or for all, until a date. They are
//! data beside the policy, compiled against it.

use std::collections::HashMap;

use crate::engine::command::LimitId;
use crate::engine::key::Key;
use crate::engine::quota::Quota;
use crate::engine::time::UtcTime;

use super::Policy;
use super::address::{self, KEY_BYTES};
use super::error::did_you_mean;
use super::handle::{Handle, Limit, Mode};
use super::key::{self, Part};
use super::maxima::{KEY_ATTRIBUTES_MAX, OVERRIDE_COUNTERS_MAX};
use super::quota_text::QuotaText;

/// One override as it is given, by names.
#[derive(Clone, Copy, Debug)]
pub struct OverrideText<'a> {
    /// Name of the API.
    pub api: &'a str,
    /// Name of a limit, or of one window of it: `plan.hour`; `*` is all of the API.
    pub limit: &'a str,
    /// For whom: a value for each part of the limit's `per`, by its name there. Parts that the
    /// policy knows all values of, such as `route`, may be left out. `None` is everybody.
    pub key: Option<&'a [(&'a str, &'a [u8])]>,
    /// The numbers, as the policy would write them.
    pub quota: Option<&'a str>,
    /// Whether the limit is in force.
    pub mode: Option<Mode>,
    /// When it ends by itself.
    pub until: Option<UtcTime>,
}

/// An override as it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverrideRecord {
    /// Name of the API.
    pub api: String,
    /// Name of the limit, or of one window of it; `*` is all of the API.
    pub limit: String,
    /// For whom, by the names in the limit's `per`, sorted; `None` is everybody.
    pub key: Option<Vec<(String, String)>>,
    /// The numbers, as a policy would write them.
    pub quota: Option<String>,
    /// Whether the limit is in force.
    pub mode: Option<Mode>,
    /// When it ends.
    pub until: Option<UtcTime>,
    /// When it was set.
    pub set_at: UtcTime,
    /// Who set it, by their own word.
    pub who: String,
    /// Why.
    pub reason: String,
}

impl OverrideRecord {
    /// Adds it to what is in force under a policy; see [`Overrides::add`].
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn add_to(&self, overrides: &mut Overrides, policy: &Policy) -> Result<usize, String> {
        let key: Option<Vec<(&str, &[u8])>> = self
            .key
            .as_ref()
            .map(|key| key.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect());
        let text = OverrideText {
            api: &self.api,
            limit: &self.limit,
            key: key.as_deref(),
            quota: self.quota.as_deref(),
            mode: self.mode,
            until: self.until,
        };
        overrides.add(policy, &text)
    }

    /// Whether it was set for this limit and key.
    pub fn is_for(&self, api: &str, limit: &str, key: Option<&[(String, String)]>) -> bool {
        self.api == api && self.limit == limit && self.key.as_deref() == key
    }

    /// For whom it is, for people.
    pub fn whom(&self) -> String {
        let Some(key) = &self.key else { return "*".to_owned() };
        let parts: Vec<String> =
            key.iter().map(|(name, value)| format!("{name}={value}")).collect();
        parts.join(" ")
    }
}

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
    /// One bit for each limit that any override is for.
    touched: Vec<u64>,
    all: HashMap<u16, Override>,
    keyed: HashMap<(u16, Key), Override>,
}

impl Overrides {
    /// The override of a limit for this key at this moment: the key's own before the one for all.
    #[inline]
    pub(super) fn find(&self, limit: LimitId, key: Key, now: UtcTime) -> Option<&Override> {
        let of_key = self.keyed.get(&(limit.0, key)).filter(|found| found.holds(now));
        of_key.or_else(|| self.all.get(&limit.0).filter(|found| found.holds(now)))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.keyed.is_empty()
    }

    /// Whether any override is for this limit, so that its numbers depend on the key.
    #[inline]
    pub fn touches(&self, limit: LimitId) -> bool {
        let word = self.touched.get(usize::from(limit.0 / 64));
        word.is_some_and(|word| word >> (limit.0 % 64) & 1 != 0)
    }

    /// Adds an override, by the names of `policy`. Returns how many counters' limits it replaces,
    /// each window by itself.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn add(&mut self, policy: &Policy, text: &OverrideText<'_>) -> Result<usize, String> {
        let Some(handle) = policy.handle_of(text.api, None) else {
            let help = did_you_mean(text.api, policy.apis()).unwrap_or_default();
            return Err(format!("unknown API `{}`; {help}", text.api));
        };
        if text.limit == EVERY {
            return self.add_to_all(policy, handle, text);
        }
        let (name, window) = match text.limit.split_once('.') {
            Some((name, window)) => (name, Some(window)),
            None => (text.limit, None),
        };
        let limits: Vec<&Limit> = handle
            .limits
            .iter()
            .filter(|limit| *limit.name == *name && window.is_none_or(|w| *limit.window == *w))
            .collect();
        let Some(first) = limits.first() else {
            let names = handle.limits.iter().map(|limit| &*limit.name);
            let help = did_you_mean(name, names).unwrap_or_default();
            return Err(format!("API `{}` has no limit `{}`; {help}", text.api, text.limit));
        };
        let quotas = quotas(&limits, text.quota)?;
        let keys = match text.key {
            None => vec![],
            Some(key) => values_of(first, key)?,
        };
        let mut count = 0;
        for (limit, quota) in limits.iter().zip(quotas) {
            if quota.is_none() && text.mode.is_none() {
                continue;
            }
            let value = Override { quota, mode: text.mode, until: text.until };
            self.touch(limit.id);
            if text.key.is_none() {
                self.all.insert(limit.id.0, value);
                count += 1;
            }
            for values in &keys {
                let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
                let subject = key::subject_of_values(&limit.space, &values);
                self.keyed.insert((limit.id.0, limit.space.key(subject)), value);
                count += 1;
            }
        }
        if count == 0 { Err("the override changes nothing".to_owned()) } else { Ok(count) }
    }

    /// Adds one for every limit of an API: numbers differ from limit to limit, so for everybody
    /// and without them.
    fn add_to_all(
        &mut self,
        policy: &Policy,
        handle: &Handle,
        text: &OverrideText<'_>,
    ) -> Result<usize, String> {
        if text.key.is_some() || text.quota.is_some_and(|quota| quota != UNLIMITED) {
            let message = "of all limits together, allowed are off, shadow, enforce and unlimited \
                           for `*`";
            return Err(message.to_owned());
        }
        // One that is off is no part of what is to stop; it comes on by its own name only.
        let on = handle.limits.iter().filter(|limit| limit.mode != Mode::Off);
        let mut names: Vec<&str> = on.map(|limit| &*limit.name).collect();
        names.dedup();
        names.iter().map(|limit| self.add(policy, &OverrideText { limit, ..*text })).sum()
    }

    fn touch(&mut self, limit: LimitId) {
        let word = usize::from(limit.0 / 64);
        if self.touched.len() <= word {
            self.touched.resize(word + 1, 0);
        }
        self.touched[word] |= 1 << (limit.0 % 64);
    }
}

/// Stands for every limit of an API.
const EVERY: &str = "*";

/// The numbers of a limit that counts and never denies.
const UNLIMITED: &str = "unlimited";

/// For each window of a limit its new numbers, if the text has some for it.
fn quotas(limits: &[&Limit], text: Option<&str>) -> Result<Vec<Option<Quota>>, String> {
    let (Some(text), Some(first)) = (text, limits.first()) else {
        return Ok(vec![None; limits.len()]);
    };
    let read = first.terms.read(text).map_err(|error| match error.help {
        Some(help) => format!("{}; {help}", error.message),
        None => error.message,
    })?;
    let windows = match read {
        QuotaText::Unlimited => {
            let unlimited = |limit: &&Limit| Some(limit.terms.unlimited(limit.window_kind));
            return Ok(limits.iter().map(unlimited).collect());
        }
        QuotaText::Windows(windows) => windows,
    };
    let known = |window: &&super::quota_text::Window| {
        limits.iter().all(|limit| limit.window_kind != window.kind)
    };
    if let Some(odd) = windows.iter().find(known) {
        let names: Vec<&str> = limits.iter().map(|limit| &*limit.window).collect();
        return Err(format!(
            "limit `{}` has no window `{}`, its windows are {}",
            first.name,
            odd.name,
            names.join(", ")
        ));
    }
    let quota_of = |limit: &&Limit| {
        let window = windows.iter().find(|window| window.kind == limit.window_kind);
        window.map(|window| window.quota)
    };
    Ok(limits.iter().map(quota_of).collect())
}

/// The values of all keys that are meant.
fn values_of(limit: &Limit, key: &[(&str, &[u8])]) -> Result<Vec<Vec<Vec<u8>>>, String> {
    let names: Vec<&str> = limit.per_names.iter().map(|name| &**name).collect();
    let by = names.join(", ");
    if let Some((odd, _)) = key.iter().find(|(name, _)| !names.iter().any(|n| is_called(n, name))) {
        return Err(format!("limit `{}` is per {by}, not per {odd}", limit.name));
    }
    debug_assert!(names.len() <= KEY_ATTRIBUTES_MAX);
    let mut all: Vec<Vec<Vec<u8>>> = vec![Vec::new()];
    for (part, name) in limit.per.iter().zip(names) {
        let given = key.iter().find(|(known, _)| is_called(name, known)).map(|(_, value)| *value);
        let values: Vec<Vec<u8>> = match (part, given) {
            (Part::Address { prefix, .. }, Some(value)) => {
                let address = address::parse(value);
                let address = address.ok_or_else(|| format!("`{name}` is no address"))?;
                vec![address::key_form(address, *prefix, &mut [0; KEY_BYTES]).to_vec()]
            }
            (_, Some(value)) => vec![value.to_vec()],
            (Part::Set(sets), None) => sets.iter().map(|(_, name)| name.to_vec()).collect(),
            (_, None) => {
                return Err(format!("limit `{}` is per {by}, and `{name}` is missing", limit.name));
            }
        };
        if all.len() * values.len() > OVERRIDE_COUNTERS_MAX {
            return Err(format!(
                "these are more than {OVERRIDE_COUNTERS_MAX} counters of limit `{}`; say `{name}`",
                limit.name
            ));
        }
        all = all
            .iter()
            .flat_map(|front| {
                values.iter().map(move |value| {
                    front.iter().cloned().chain([value.clone()]).collect::<Vec<_>>()
                })
            })
            .collect();
    }
    Ok(all)
}

/// Whether a part of a key has this name: that of its attribute will do.
fn is_called(part: &str, name: &str) -> bool {
    part == name || part.split_once('/').is_some_and(|(attribute, _)| attribute == name)
}

#[cfg(test)]
mod tests {
    use super::super::{Account, Context, Identities, Request, Scratch, Source};
    use super::*;
    use crate::engine::command::{Charge, Effect};
    use crate::engine::key::Seed;
    use crate::engine::kinds::UNLIMITED;
    use crate::engine::time::{Nanos, SECOND};

    const POLICY: &str = r#"schema = 1
[api.a]
tiers = ["free", "pro"]
subject.account = ["api_key", "session"]
[api.a.limit]
jobs = { on = ["/x", "/y"], per = ["account", "route"], concurrent = 3, lease = "1min" }
login = { on = "/login", per = ["ip/64"], bucket = "9/min" }
plan = { per = ["account"], except = "/login", fixed.tier = { free = "5/min, 50/day", pro = "10/min, 100/day" } }
"#;

    fn policy() -> Policy {
        match Policy::compile(&[Source { name: "p", text: POLICY }], &Seed::new([7; 16])) {
            Ok(policy) => policy,
            Err(errors) => panic!("{errors}"),
        }
    }

    /// What a request is charged by limits and windows.
    fn charges(
        policy: &Policy,
        context: &Context<'_>,
        path: &str,
        attributes: &[(&str, &str)],
    ) -> Vec<(String, Charge)> {
        let handle = policy.handle_of("a", None).unwrap();
        let mut values = vec![None; handle.slots().len()];
        values[0] = Some(&b"GET"[..]);
        values[1] = Some(path.as_bytes());
        for (name, value) in attributes {
            values[handle.slot(name).unwrap()] = Some(value.as_bytes());
        }
        let request = Request { values: &values, costs: &[] };
        let (mut charges, mut limits) = (Vec::new(), Vec::new());
        let scratch = &mut Scratch::default();
        handle.resolve(&request, context, scratch, &mut charges, &mut limits).unwrap();
        let name = |index: &u16| {
            let limit = &handle.limits()[usize::from(*index)];
            format!("{}.{}", limit.name, limit.window)
        };
        limits.iter().map(name).zip(charges).collect()
    }

    fn numbers(found: &[(String, Charge)]) -> String {
        let one = |(name, charge): &(String, Charge)| format!("{name}={}", charge.quota.limit());
        found.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn for_key<'a>(
        limit: &'a str,
        key: &'a [(&'a str, &'a [u8])],
        quota: &'a str,
    ) -> OverrideText<'a> {
        let (key, quota) = (Some(key), Some(quota));
        OverrideText { api: "a", limit, key, quota, mode: None, until: None }
    }

    #[test]
    fn an_identity_stands_for_its_account_and_tier_and_the_gateway_counts_before_it() {
        let policy = policy();
        let mut identities = Identities::default();
        let account = |account: &str, tier: &str| Account {
            account: account.into(),
            tier: Some(tier.into()),
        };
        identities.put("a", "api_key", b"k1", account("a1", "pro")).unwrap();
        identities.put("a", "session", b"s1", account("a1", "pro")).unwrap();
        let context = Context { identities: Some(&identities), ..Context::default() };
        let of = |attributes: &[(&str, &str)]| charges(&policy, &context, "/z", attributes);
        let by_key = of(&[("api_key", "k1")]);
        assert_eq!(numbers(&by_key), "plan.minute=10 plan.day=100");
        let same = |a: &[(String, Charge)], b: &[(String, Charge)]| a[0].1.key == b[0].1.key;
        assert!(same(&by_key, &of(&[("session", "s1")])));
        assert!(same(&by_key, &of(&[("account", "a1"), ("tier", "pro")])));
        assert!(!same(&by_key, &of(&[("account", "a2"), ("tier", "pro")])));
        // What the gateway says wins, and a tier on record is that of its own account.
        assert_eq!(
            numbers(&of(&[("session", "s1"), ("tier", "free")])),
            "plan.minute=5 plan.day=50"
        );
        assert!(same(&of(&[("session", "s1"), ("account", "a1")]), &by_key));
        assert_eq!(identities.count(), 2);
        assert_eq!(identities.remove("a", "session", b"s1"), Some(account("a1", "pro")));
        assert_eq!(identities.find("a", "session", b"s1"), None);
    }

    #[test]
    fn an_override_replaces_the_numbers_of_one_key_until_its_date() {
        let policy = policy();
        let mut overrides = Overrides::default();
        let until = Some(UtcTime::from_nanos(100 * SECOND));
        let text = for_key("plan", &[("account", b"a1")], "60/min, 700/day");
        assert_eq!(overrides.add(&policy, &OverrideText { until, ..text }), Ok(2));
        let at = |secs: u64, account: &str| {
            let now = UtcTime::from_nanos(secs * SECOND);
            let context = Context { now, overrides: Some(&overrides), ..Context::default() };
            numbers(&charges(&policy, &context, "/z", &[("account", account), ("tier", "free")]))
        };
        assert_eq!(at(99, "a1"), "plan.minute=60 plan.day=700");
        assert_eq!(at(100, "a1"), "plan.minute=5 plan.day=50");
        assert_eq!(at(99, "a2"), "plan.minute=5 plan.day=50");
    }

    #[test]
    fn one_window_all_keys_and_parts_left_out_can_be_meant() {
        let policy = policy();
        let mut overrides = Overrides::default();
        let everybody = OverrideText {
            api: "a",
            limit: "plan.day",
            key: None,
            quota: Some("unlimited"),
            mode: None,
            until: None,
        };
        overrides.add(&policy, &everybody).unwrap();
        let jobs = for_key("jobs", &[("account", b"a1")], "7");
        assert_eq!(overrides.add(&policy, &jobs), Ok(2));
        let login = for_key("login", &[("ip", b"::ffff:192.0.2.1")], "1/min burst 2");
        assert_eq!(overrides.add(&policy, &login), Ok(1));
        let off =
            OverrideText { limit: "login", quota: None, mode: Some(Mode::Shadow), ..everybody };
        overrides.add(&policy, &off).unwrap();
        let context = Context { overrides: Some(&overrides), ..Context::default() };
        let of =
            |path: &str, attributes: &[(&str, &str)]| charges(&policy, &context, path, attributes);
        let free = [("account", "a1"), ("tier", "free")];
        let all = UNLIMITED.to_string();
        let expected = format!("jobs.=7 plan.minute=5 plan.day={all}");
        assert_eq!(numbers(&of("/x", &free)), expected);
        assert_eq!(numbers(&of("/y", &free)), expected);
        let other = of("/y", &[("account", "a2"), ("tier", "free")]);
        assert_eq!(numbers(&other), format!("jobs.=3 plan.minute=5 plan.day={all}"));
        // The key's own override counts before the one for all.
        let login = of("/login", &[("ip", "192.0.2.1")]);
        assert_eq!(numbers(&login), "login.=2");
        assert_eq!(login[0].1.quota, Quota::bucket(1, Nanos::from_secs(60), 2).unwrap());
        assert_eq!(login[0].1.effect, Effect::Enforce);
        assert_eq!(of("/login", &[("ip", "192.0.2.2")])[0].1.effect, Effect::Shadow);
    }

    #[test]
    fn all_limits_of_an_api_go_off_at_once_and_one_that_is_off_comes_on() {
        let policy = policy();
        let mut overrides = Overrides::default();
        let all = OverrideText {
            api: "a",
            limit: "*",
            key: None,
            quota: None,
            mode: Some(Mode::Off),
            until: None,
        };
        assert_eq!(overrides.add(&policy, &all), Ok(4));
        let context = Context { overrides: Some(&overrides), ..Context::default() };
        let free = [("account", "a1"), ("tier", "free"), ("ip", "192.0.2.1")];
        for path in ["/x", "/login", "/z"] {
            assert!(charges(&policy, &context, path, &free).is_empty(), "{path}");
        }
        let numbered = OverrideText { quota: Some("1/min"), ..all };
        assert!(overrides.add(&policy, &numbered).unwrap_err().contains("of all limits together"));

        let text = POLICY.replace("bucket = \"9/min\"", "bucket = \"9/min\", mode = \"off\"");
        let source = Source { name: "p", text: &text };
        let policy = Policy::compile(&[source], &Seed::new([7; 16])).unwrap();
        let mut overrides = Overrides::default();
        let key: &[(&str, &[u8])] = &[("ip", b"192.0.2.1")];
        let on = OverrideText { mode: Some(Mode::Enforce), ..for_key("login", key, "2/min") };
        overrides.add(&policy, &on).unwrap();
        let context = Context { overrides: Some(&overrides), ..Context::default() };
        let of = |ip| numbers(&charges(&policy, &context, "/login", &[("ip", ip)]));
        assert_eq!((of("192.0.2.1").as_str(), of("192.0.2.2").as_str()), ("login.=2", ""));
    }

    #[test]
    fn what_an_override_names_must_exist() {
        let policy = policy();
        let mut overrides = Overrides::default();
        let account: &[(&str, &[u8])] = &[("account", b"a1")];
        for (text, message) in [
            (
                OverrideText { api: "b", ..for_key("plan", account, "1/min") },
                "unknown API `b`; did you mean `a`?",
            ),
            (
                for_key("plna", account, "1/min"),
                "API `a` has no limit `plna`; did you mean `plan`?",
            ),
            (
                for_key("plan", account, "1/hour"),
                "limit `plan` has no window `hour`, its windows are minute, day",
            ),
            (for_key("plan", account, "1/m"), "`m` is no unit of time; min or month?"),
            (
                for_key("plan", &[("team", b"t")], "1/min"),
                "limit `plan` is per account, not per team",
            ),
            (
                for_key("jobs", &[("route", b"/x")], "1"),
                "limit `jobs` is per account, route, and `account` is missing",
            ),
            (for_key("login", &[("ip", b"x")], "1/min"), "`ip/64` is no address"),
            (
                OverrideText { quota: None, ..for_key("plan", account, "") },
                "the override changes nothing",
            ),
        ] {
            assert_eq!(overrides.add(&policy, &text).unwrap_err(), message);
        }
        assert!(overrides.is_empty());
    }
}

//! Overrides and identities as JSON, in both directions. Pure but for asking the instance.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::doors::asked::Bad;
use crate::doors::json;
use crate::doors::{Failure, Instance, Kept, Standing};
use crate::engine::time::{Nanos, UtcTime};
use crate::policy::{
    Account, ByHand, Identity, Mode, OverrideRecord, Policy, moment_of, moment_text, span,
};

/// The most identities that one answer lists.
pub(super) const LISTED_MAX: usize = 10_000;

/// Stands for everybody, and for every limit.
const EVERY: &str = "*";

/// One override, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverrideReport {
    /// Name of the API.
    pub api: String,
    /// Name of the limit, or of one window of it; `*` is all of the API.
    pub limit: String,
    /// For whom; absent for everybody.
    pub key: Option<Map<String, Value>>,
    /// Its numbers.
    pub quota: Option<String>,
    /// Whether the limit is in force.
    pub mode: Option<String>,
    /// When it ends.
    pub until: Option<String>,
    /// When it was set.
    pub set_at: String,
    /// By whom, by their own word.
    pub who: String,
    /// Why.
    pub reason: String,
    /// Why it is not in force: it does not fit the policy that came since.
    pub problem: Option<String>,
}

impl From<Standing> for OverrideReport {
    fn from(Standing { record, problem }: Standing) -> Self {
        let value = |(name, value): (String, String)| (name, Value::String(value));
        Self {
            api: record.api,
            limit: record.limit,
            key: record.key.map(|key| key.into_iter().map(value).collect()),
            quota: record.quota,
            mode: record.mode.map(|mode| mode.name().to_owned()),
            until: record.until.map(moment_text),
            set_at: moment_text(record.set_at),
            who: record.who,
            reason: record.reason,
            problem,
        }
    }
}

/// One identity, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityReport {
    /// Name of the API.
    pub api: String,
    /// The attribute.
    pub attribute: String,
    /// Its value.
    pub value: String,
    /// Whose it is.
    pub account: String,
    /// The account's tier, if it is on record.
    pub tier: Option<String>,
}

impl From<&Identity> for IdentityReport {
    fn from(identity: &Identity) -> Self {
        let Account { account, tier } = &identity.account;
        Self {
            api: identity.api.to_string(),
            attribute: identity.attribute.to_string(),
            value: String::from_utf8_lossy(&identity.value).into_owned(),
            account: account.to_string(),
            tier: tier.as_ref().map(ToString::to_string),
        }
    }
}

/// Which override is meant.
pub(super) struct Which {
    pub(super) api: String,
    pub(super) limit: String,
    pub(super) key: Option<Vec<(String, String)>>,
    pub(super) who: String,
}

/// Which identity is meant, and what of it is to be on record.
pub(super) struct IdentityAsked {
    pub(super) api: String,
    pub(super) attribute: String,
    pub(super) value: String,
    pub(super) account: Option<Account>,
}

struct Fields(Map<String, Value>);

impl Fields {
    fn parse(body: &[u8], allowed: &[&str]) -> Result<Self, Bad> {
        let wrong = |message| Bad::new("BAD_REQUEST", message);
        let value =
            json::parse(body).map_err(|error| wrong(format!("the body is no JSON: {error}")))?;
        let Value::Object(fields) = value else {
            return Err(wrong("the body is no object".to_owned()));
        };
        match fields.keys().find(|name| !allowed.contains(&name.as_str())) {
            None => Ok(Self(fields)),
            Some(name) => {
                let name = &name[..name.floor_char_boundary(64)];
                Err(wrong(format!("unknown field `{name}`, allowed are {}", allowed.join(", "))))
            }
        }
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Bad> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => {
                let message = format!("field `{name}` is no string, allowed is a string");
                Err(Bad::new("BAD_REQUEST", message))
            }
        }
    }

    fn needed(&mut self, name: &str) -> Result<String, Bad> {
        let missing = || Bad::new("BAD_REQUEST", format!("field `{name}` is missing"));
        self.text(name)?.ok_or_else(missing)
    }

    /// `"*"` is everybody; it must be said, since it reaches far.
    fn key(&mut self) -> Result<Option<Vec<(String, String)>>, Bad> {
        let wrong = || {
            let message = "field `key` is wrong or missing, allowed are an object of strings, or \
                           \"*\" for everybody";
            Bad::new("BAD_REQUEST", message)
        };
        match self.0.remove("key") {
            Some(Value::String(every)) if every == EVERY => Ok(None),
            Some(Value::Object(fields)) if !fields.is_empty() => fields
                .into_iter()
                .map(|(name, value)| match value {
                    Value::String(value) => Ok((name, value)),
                    _ => Err(wrong()),
                })
                .collect::<Result<_, _>>()
                .map(Some),
            _ => Err(wrong()),
        }
    }
}

/// Reads what to set.
pub(super) fn set(body: &[u8], now: UtcTime) -> Result<OverrideRecord, Bad> {
    const FIELDS: [&str; 9] =
        ["api", "limit", "key", "quota", "mode", "until", "for", "who", "reason"];
    let mut fields = Fields::parse(body, &FIELDS)?;
    let wrong = |message: String| Bad::new("BAD_REQUEST", message);
    let until = match (fields.text("until")?, fields.text("for")?) {
        (None, None) => None,
        (Some(until), None) => Some(moment_of(&until).ok_or_else(|| {
            wrong(format!(
                "`{until}` is no moment, allowed are days and moments as in 2027-01-01 and \
                 2027-01-01T12:00:00Z"
            ))
        })?),
        (None, Some(text)) => {
            let span = span_of(&text).map_err(|error| wrong(format!("field `for`: {error}")))?;
            Some(now.after(span))
        }
        (Some(_), Some(_)) => {
            return Err(wrong("both `until` and `for` are given, allowed is one".to_owned()));
        }
    };
    let mode = match fields.text("mode")? {
        None => None,
        Some(word) => {
            Some(Mode::ALL.into_iter().find(|mode| mode.name() == word).ok_or_else(|| {
                wrong(format!("mode is `{word}`, allowed are enforce, shadow, off"))
            })?)
        }
    };
    let quota = fields.text("quota")?;
    if quota.is_none() && mode.is_none() {
        return Err(wrong("neither `quota` nor `mode` is given".to_owned()));
    }
    Ok(OverrideRecord {
        api: fields.needed("api")?,
        limit: fields.needed("limit")?,
        key: fields.key()?,
        quota,
        mode,
        until,
        set_at: now,
        who: fields.text("who")?.unwrap_or_default(),
        reason: fields.text("reason")?.unwrap_or_default(),
    })
}

/// A span as policies write it, or with `h` and `d`, as people type it.
fn span_of(text: &str) -> Result<Nanos, String> {
    let long = match text.as_bytes() {
        [.., digit, b'h'] if digit.is_ascii_digit() => format!("{text}our"),
        [.., digit, b'd'] if digit.is_ascii_digit() => format!("{text}ay"),
        _ => text.to_owned(),
    };
    span(&long)
}

/// Reads what to clear.
pub(super) fn clear(body: &[u8]) -> Result<Which, Bad> {
    let mut fields = Fields::parse(body, &["api", "limit", "key", "who"])?;
    Ok(Which {
        api: fields.needed("api")?,
        limit: fields.needed("limit")?,
        key: fields.key()?,
        who: fields.text("who")?.unwrap_or_default(),
    })
}

/// Reads an identity; `api` may be left out where one API alone takes the attribute for accounts.
pub(super) fn identity(
    body: &[u8],
    policy: &Policy,
    with_account: bool,
) -> Result<IdentityAsked, Bad> {
    let allowed: &[&str] = match with_account {
        true => &["api", "attribute", "value", "account", "tier"],
        false => &["api", "attribute", "value"],
    };
    let mut fields = Fields::parse(body, allowed)?;
    let (attribute, value) = (fields.needed("attribute")?, fields.needed("value")?);
    let account = match with_account {
        false => None,
        true => {
            let account = fields.needed("account")?.into_boxed_str();
            Some(Account { account, tier: fields.text("tier")?.map(String::into_boxed_str) })
        }
    };
    let api = match fields.text("api")? {
        Some(api) => api,
        None => only_api(policy, &attribute)?,
    };
    Ok(IdentityAsked { api, attribute, value, account })
}

/// The one API in which this attribute stands for accounts.
fn only_api(policy: &Policy, attribute: &str) -> Result<String, Bad> {
    let of = |api: &&str| {
        let handle = policy.handle_of(api, None);
        handle.is_some_and(|handle| handle.identities().any(|known| known == attribute))
    };
    let found: Vec<&str> = policy.apis().filter(of).collect();
    match found.as_slice() {
        [api] => Ok((*api).to_owned()),
        [] => {
            let message = format!("`{attribute}` stands for accounts in no API of the policy");
            Err(Bad::new("BAD_REQUEST", message))
        }
        apis => {
            let apis = apis.join(", ");
            let message = format!("`{attribute}` stands for accounts in {apis}; say which `api`");
            Err(Bad::new("BAD_REQUEST", message))
        }
    }
}

/// Makes a change by hand at this node. Returns what is answered, and when it is on disk.
///
/// # Errors
/// What is wrong with it; nothing has changed then.
pub(crate) fn make(instance: &Instance, change: ByHand) -> Result<(Value, Kept), Failure> {
    let account = |was: Account| json!({ "account": was.account, "tier": was.tier });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match change {
        ByHand::SetOverride(record) => {
            let (counters, kept) = instance.set_override(record)?;
            Ok((json!({ "counters": counters }), kept))
        }
        ByHand::ClearOverride { api, limit, key, who } => {
            let (cleared, kept) = instance.clear_override(&api, &limit, key.as_deref(), &who)?;
            Ok((json!({ "cleared": cleared }), kept))
        }
        ByHand::PutIdentity(Identity { api, attribute, value, account: new }) => {
            let (before, kept) = instance.put_identity(&api, &attribute, &text(&value), new)?;
            Ok((json!({ "api": api, "before": before.map(account) }), kept))
        }
        ByHand::RemoveIdentity { api, attribute, value } => {
            let (removed, kept) = instance.remove_identity(&api, &attribute, &text(&value))?;
            Ok((json!({ "api": api, "removed": removed.map(account) }), kept))
        }
        ByHand::SetCounters(_) => {
            Err(Failure::Wrong("counters are set by a request, not by a change".to_owned()))
        }
    }
}

/// The identities of an API, or of all; sorted, at most [`LISTED_MAX`], and how many there are.
pub(super) fn identities(
    instance: &Instance,
    wanted: &dyn Fn(&Identity) -> bool,
) -> (Vec<IdentityReport>, usize) {
    let loaded = instance.policy.load();
    let mut found: Vec<&Identity> = loaded.identities.iter().filter(|id| wanted(id)).collect();
    let all = found.len();
    let place = |id: &&Identity| (id.api.clone(), id.attribute.clone(), id.value.clone());
    found.sort_by_cached_key(place);
    (found.into_iter().take(LISTED_MAX).map(IdentityReport::from).collect(), all)
}

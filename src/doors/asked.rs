//! JSON to a request. Pure: bytes in, a request or what is wrong with them out.

use serde_json::{Map, Value};

use crate::engine::quota::UNITS_MAX;
use crate::policy::{Handle, Policy, Request, SlotUse};

use super::json;
use super::report::ErrorReport;

/// The fields of a request.
const FIELDS: [&str; 7] = ["api", "method", "path", "class", "attributes", "cost", "costs"];

/// The fields of a subject.
const SUBJECT_FIELDS: [&str; 4] = ["api", "method", "path", "attributes"];

/// The meter that `cost` is for.
const REQUESTS: &str = "requests";

/// The most characters of a found value that an error repeats.
const FOUND_CHARS_MAX: usize = 64;

/// A check or peek as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    api: String,
    target: Target,
    attributes: Vec<(String, String)>,
    costs: Vec<(String, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Route {
        method: String,
        path: String,
    },
    Class(String),
    /// Of all requests of a subject, or of those of a method, a path.
    Subject {
        method: Option<String>,
        path: Option<String>,
    },
}

/// A request in the terms of its handle.
pub(super) struct Placed<'a> {
    pub(super) handle: &'a Handle,
    pub(super) values: Vec<Option<&'a [u8]>>,
    pub(super) costs: Vec<u64>,
}

impl Placed<'_> {
    /// The request for the desk.
    pub(super) fn request(&self) -> Request<'_> {
        Request { values: &self.values, costs: &self.costs }
    }
}

/// Caller: a request that cannot be asked. The code is the protocol's where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad(pub(super) ErrorReport);

impl Bad {
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Self(ErrorReport { code: code.to_owned(), message: message.into() })
    }

    pub(super) fn field(name: &str, found: &Value, allowed: &str) -> Self {
        let found = shown(&found.to_string());
        Self::new("BAD_REQUEST", format!("field `{name}` is {found}, allowed is {allowed}"))
    }
}

/// A found value, cut to a length that a message can hold.
pub(super) fn shown(found: &str) -> String {
    match found.char_indices().nth(FOUND_CHARS_MAX) {
        None => found.to_owned(),
        Some((end, _)) => format!("{}… ({} bytes)", &found[..end], found.len()),
    }
}

impl Asked {
    /// Reads a body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Bad> {
        Self::of(object(body)?)
    }

    /// Reads a request's fields.
    pub(super) fn of(mut fields: Map<String, Value>) -> Result<Self, Bad> {
        Ok(Self {
            api: api(&mut fields, &FIELDS)?,
            target: target(&mut fields)?,
            attributes: attributes(fields.remove("attributes"))?,
            costs: costs(fields.remove("cost"), fields.remove("costs"))?,
        })
    }

    /// Reads a body that names a subject: an API, attributes, and maybe of which requests.
    pub(super) fn parse_subject(body: &[u8]) -> Result<Self, Bad> {
        let mut fields = object(body)?;
        let api = api(&mut fields, &SUBJECT_FIELDS)?;
        let (method, path) = (text(&mut fields, "method")?, text(&mut fields, "path")?);
        Ok(Self {
            api,
            target: Target::Subject { method, path },
            attributes: attributes(fields.remove("attributes"))?,
            costs: Vec::new(),
        })
    }

    /// The first attribute that no limit of the handle reads, and what there is instead: people
    /// mistype, where gateways send all that they have.
    pub(super) fn check_attributes(&self, handle: &Handle) -> Result<(), Bad> {
        let slots = || handle.slots().iter().filter(|slot| slot.slot_use != SlotUse::Route);
        let known = |name: &str| slots().any(|slot| *slot.name == *name);
        let Some((name, _)) = self.attributes.iter().find(|(name, _)| !known(name)) else {
            return Ok(());
        };
        let names = || slots().map(|slot| &*slot.name);
        let help = crate::policy::did_you_mean(name, names());
        let help = help.map_or(String::new(), |help| format!("; {help}"));
        let (name, names) = (shown(name), list(names()));
        let message =
            format!("no limit reads the attribute `{name}`{help} (attributes are {names})");
        Err(Bad::new("BAD_ATTRIBUTE", message))
    }

    /// Finds the handle, and puts values and costs where it expects them. Attributes that it does
    /// not know are left out: a gateway may send all that it has.
    pub(super) fn place<'a>(&'a self, policy: &'a Policy) -> Result<Placed<'a>, Bad> {
        let api = shown(&self.api);
        let class = match &self.target {
            Target::Route { .. } | Target::Subject { .. } => None,
            Target::Class(class) => Some(class.as_str()),
        };
        let Some(handle) = policy.handle_of(&self.api, class) else {
            if policy.handle_of(&self.api, None).is_none() {
                let known = list(policy.apis());
                let message = format!("the policy has no API `{api}`, allowed are {known}");
                return Err(Bad::new("UNKNOWN_API", message));
            }
            let (class, known) =
                (shown(class.unwrap_or_default()), list(policy.classes(&self.api)));
            let message = format!("API `{api}` has no class `{class}`, allowed are {known}");
            return Err(Bad::new("UNKNOWN_CLASS", message));
        };
        let mut values = vec![None; handle.slots().len()];
        for (slot, value) in handle.slots().iter().zip(&mut values) {
            *value = self.value_of(&slot.name, slot.slot_use)?.map(str::as_bytes);
        }
        Ok(Placed { handle, values, costs: self.place_costs(handle)? })
    }

    fn value_of(&self, name: &str, slot_use: SlotUse) -> Result<Option<&str>, Bad> {
        let attribute = self.attributes.iter().find(|(known, _)| known == name);
        let attribute = attribute.map(|(_, value)| value.as_str());
        let (method, path) = match &self.target {
            _ if slot_use != SlotUse::Route => return Ok(attribute),
            Target::Class(_) => return Ok(attribute),
            Target::Route { method, path } => (Some(method), Some(path)),
            Target::Subject { method, path } => (method.as_ref(), path.as_ref()),
        };
        if attribute.is_some() {
            let message = format!("`{name}` is a field of the request, not one of `attributes`");
            return Err(Bad::new("BAD_REQUEST", message));
        }
        Ok(if name == "method" { method } else { path }.map(String::as_str))
    }

    /// Meters that are not named are charged as if none were: 1 for requests, 0 for any other.
    fn place_costs(&self, handle: &Handle) -> Result<Vec<u64>, Bad> {
        if self.costs.is_empty() {
            return Ok(Vec::new());
        }
        let meters = handle.meters();
        let mut costs: Vec<u64> =
            meters.iter().map(|meter| u64::from(&**meter == REQUESTS)).collect();
        for (name, cost) in &self.costs {
            let Some(index) = handle.meter(name) else {
                let (name, known) = (shown(name), list(meters.iter().map(|meter| &**meter)));
                let message = format!("no limit reads the meter `{name}`, allowed are {known}");
                return Err(Bad::new("BAD_COST", message));
            };
            costs[index] = *cost;
        }
        Ok(costs)
    }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Reads a body that is an object.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, Bad> {
    let value = json::parse(body)
        .map_err(|error| Bad::new("BAD_REQUEST", format!("the body is no JSON: {error}")))?;
    match value {
        Value::Object(fields) => Ok(fields),
        other => {
            let found = shown(&other.to_string());
            Err(Bad::new("BAD_REQUEST", format!("the body is {found}, allowed is an object")))
        }
    }
}

/// Takes the field that names the API, of an object that may have these fields and no others.
fn api(fields: &mut Map<String, Value>, allowed: &[&str]) -> Result<String, Bad> {
    if let Some(unknown) = fields.keys().find(|name| !allowed.contains(&name.as_str())) {
        let (unknown, allowed) = (shown(unknown), allowed.join(", "));
        let message = format!("unknown field `{unknown}`, allowed are {allowed}");
        return Err(Bad::new("BAD_REQUEST", message));
    }
    text(fields, "api")?.ok_or_else(|| {
        Bad::new("BAD_REQUEST", "field `api` is missing, allowed is the name of an API")
    })
}

/// Takes a field that is text, if it is there.
pub(super) fn text(fields: &mut Map<String, Value>, name: &str) -> Result<Option<String>, Bad> {
    match fields.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(Bad::field(name, &other, "a string")),
    }
}

fn target(fields: &mut Map<String, Value>) -> Result<Target, Bad> {
    let mut take = |name| text(fields, name);
    match (take("method")?, take("path")?, take("class")?) {
        (Some(method), Some(path), None) => Ok(Target::Route { method, path }),
        (None, None, Some(class)) => Ok(Target::Class(class)),
        (method, path, class) => {
            let given = [
                ("method", method.is_some()),
                ("path", path.is_some()),
                ("class", class.is_some()),
            ];
            let found = list(given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name));
            let message = format!(
                "of the fields `method`, `path` and `class` there are {found}, allowed are \
                 `method` and `path` together or `class` alone"
            );
            Err(Bad::new("BAD_REQUEST", message))
        }
    }
}

fn attributes(found: Option<Value>) -> Result<Vec<(String, String)>, Bad> {
    let fields = match found {
        None => return Ok(Vec::new()),
        Some(Value::Object(fields)) => fields,
        Some(other) => return Err(Bad::field("attributes", &other, "an object of strings")),
    };
    let attribute = |(name, value): (String, Value)| match value {
        Value::String(text) => Ok((name, text)),
        other => Err(Bad::field(&format!("attributes.{}", shown(&name)), &other, "a string")),
    };
    fields.into_iter().map(attribute).collect()
}

fn costs(cost: Option<Value>, costs: Option<Value>) -> Result<Vec<(String, u64)>, Bad> {
    match (cost, costs) {
        (None, None) => Ok(Vec::new()),
        (Some(found), None) => Ok(vec![(REQUESTS.to_owned(), units("cost", &found)?)]),
        (None, Some(Value::Object(fields))) => fields
            .into_iter()
            .map(|(name, found)| {
                let cost = units(&format!("costs.{}", shown(&name)), &found)?;
                Ok((name, cost))
            })
            .collect(),
        (None, Some(other)) => Err(Bad::field("costs", &other, "an object of whole numbers")),
        (Some(_), Some(_)) => {
            let message = "both `cost` and `costs` are given, allowed is one of them";
            Err(Bad::new("BAD_REQUEST", message))
        }
    }
}

fn units(name: &str, found: &Value) -> Result<u64, Bad> {
    let allowed = || format!("a whole number from 0 to {UNITS_MAX}");
    match found.as_u64() {
        Some(units) if units <= UNITS_MAX => Ok(units),
        _ => {
            let Bad(error) = Bad::field(name, found, &allowed());
            Err(Bad::new("BAD_COST", error.message))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::engine::key::Seed;
    use crate::policy::{BUILT_IN, Source};

    use super::*;

    fn policy(text: &str) -> Policy {
        let seed = Seed::new([7; 16]);
        Policy::compile(&[Source { name: "p", text }], &seed).unwrap()
    }

    fn refused(body: &str) -> String {
        let policy = policy(BUILT_IN.text);
        let error = match Asked::parse(body.as_bytes()) {
            Err(Bad(error)) => error,
            Ok(asked) => match asked.place(&policy) {
                Err(Bad(error)) => error,
                Ok(_) => panic!("{body} was taken"),
            },
        };
        format!("{}: {}", error.code, error.message)
    }

    #[test]
    fn values_go_where_the_handle_expects_them() {
        let policy = policy(BUILT_IN.text);
        let body = r#"{"api":"media","method":"POST","path":"/v1/images","cost":2,
            "attributes":{"unknown":"u","team":"t1"}}"#;
        let asked = Asked::parse(body.as_bytes()).unwrap();
        let placed = asked.place(&policy).unwrap();
        let (api, team) = (placed.handle, placed.handle.slot("team").unwrap());
        assert_eq!((api.api(), api.class()), ("media", None));
        assert_eq!(placed.values[..2], [Some(&b"POST"[..]), Some(&b"/v1/images"[..])]);
        assert_eq!(placed.values[team], Some(&b"t1"[..]));
        assert_eq!(placed.costs, [2]);

        let body = r#"{"api":"media","class":"read"}"#;
        let asked = Asked::parse(body.as_bytes()).unwrap();
        let placed = asked.place(&policy).unwrap();
        assert_eq!(placed.handle.class(), Some("read"));
        assert!(placed.costs.is_empty() && placed.values.iter().all(Option::is_none));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_was_found_and_what_is_allowed() {
        for (body, expected) in [
            ("", "BAD_REQUEST: the body is no JSON: EOF while parsing a value at line 1 column 0"),
            ("[1]", "BAD_REQUEST: the body is [1], allowed is an object"),
            (
                r#"{"class":"read"}"#,
                "BAD_REQUEST: field `api` is missing, allowed is the name of an API",
            ),
            (r#"{"api":7,"class":"read"}"#, "BAD_REQUEST: field `api` is 7, allowed is a string"),
            (
                r#"{"api":"media","class":"read","pth":1}"#,
                "BAD_REQUEST: unknown field `pth`, allowed are api, method, path, class, attributes, cost, costs",
            ),
            (
                r#"{"api":"media","method":"GET"}"#,
                "BAD_REQUEST: of the fields `method`, `path` and `class` there are method, allowed are `method` and `path` together or `class` alone",
            ),
            (
                r#"{"api":"media","class":"read","attributes":{"team":7}}"#,
                "BAD_REQUEST: field `attributes.team` is 7, allowed is a string",
            ),
            (
                r#"{"api":"media","class":"read","cost":-1}"#,
                "BAD_COST: field `cost` is -1, allowed is a whole number from 0 to 9007199254740992",
            ),
            (
                r#"{"api":"media","class":"read","costs":{"requests":9007199254740993}}"#,
                "BAD_COST: field `costs.requests` is 9007199254740993, allowed is a whole number from 0 to 9007199254740992",
            ),
            (
                r#"{"api":"media","class":"read","costs":{"bytes":1}}"#,
                "BAD_COST: no limit reads the meter `bytes`, allowed are requests",
            ),
            (
                r#"{"api":"media","class":"read","cost":1,"costs":{}}"#,
                "BAD_REQUEST: both `cost` and `costs` are given, allowed is one of them",
            ),
            (
                r#"{"api":"x","class":"read"}"#,
                "UNKNOWN_API: the policy has no API `x`, allowed are media",
            ),
            (
                r#"{"api":"media","class":"x"}"#,
                "UNKNOWN_CLASS: API `media` has no class `x`, allowed are",
            ),
            (
                r#"{"api":"media","method":"GET","path":"/","attributes":{"path":"/x"}}"#,
                "BAD_REQUEST: `path` is a field of the request, not one of `attributes`",
            ),
        ] {
            let found = refused(body);
            assert!(found.starts_with(expected), "{found}\nis not\n{expected}");
        }
        let long = format!("{{\"api\":\"{}\",\"class\":\"x\"}}", "é".repeat(1000));
        assert!(refused(&long).len() < 300);
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Asked::parse(&body);
        }

        #[test]
        fn no_object_panics(
            api in "(media|x)?",
            class in prop::option::of("(read|files_post|[a-z]{0,3})"),
            cost in any::<i64>(),
        ) {
            let policy = policy(BUILT_IN.text);
            let body = serde_json::json!({"api": api, "class": class, "cost": cost});
            if let Ok(asked) = Asked::parse(body.to_string().as_bytes()) {
                let _ = asked.place(&policy).map(|placed| placed.costs);
            }
        }
    }
}

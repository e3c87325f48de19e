//! What commands ask of a server, as it is typed: an API, a request or a class, attributes, costs.

use clap::Args;
use tollkeeper_protocol::client::{CheckArgs, Client, Description, Handle};
use tollkeeper_protocol::limits::COST_MAX;
use tollkeeper_protocol::request::Form;
use tollkeeper_protocol::status::SlotUse;

use crate::policy::did_you_mean;

use super::connection::{Failure, connect};

/// The meter that a cost without a name is for.
const REQUESTS: &str = "requests";

/// What is asked, and whom.
#[derive(Args)]
pub(super) struct Asked {
    /// API, as the server's policy names it
    api: String,
    /// A request, which the server routes, as "POST /v1/images" (a path alone is a GET), or the
    /// name of a class
    #[arg(value_name = "\"METHOD PATH\"|CLASS")]
    target: Target,
    /// What else the request says of itself
    #[arg(value_name = "NAME=VALUE")]
    attributes: Vec<Attribute>,
    /// Where the server listens for the binary protocol
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7440", env = "TOLLKEEPER_SERVER")]
    server: String,
    /// One compact JSON object a line instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct Costs {
    /// Units that a check takes [default: 1 of the meter `requests`]; repeat it for several meters
    #[arg(long = "cost", value_name = "N|METER=N", allow_negative_numbers = true)]
    costs: Vec<Cost>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Route { method: String, path: String },
    Class(String),
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (method, path) = match text.split_once(char::is_whitespace) {
            Some((method, path)) => (method, path.trim_start()),
            None if text.starts_with('/') => ("GET", text),
            None if text.is_empty() => return Err("it is empty".into()),
            None => return Ok(Self::Class(text.to_owned())),
        };
        if !path.starts_with('/') {
            return Err(format!("`{path}` is no path: a path begins with `/`"));
        }
        Ok(Self::Route { method: method.to_ascii_uppercase(), path: path.to_owned() })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    pub(super) name: String,
    pub(super) value: String,
}

impl std::str::FromStr for Attribute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err("an attribute is written as `name=value`".into()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Cost {
    meter: String,
    units: u64,
}

impl std::str::FromStr for Cost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (meter, units) = text.split_once('=').unwrap_or((REQUESTS, text));
        let allowed = || format!("allowed are whole numbers from 0 to {COST_MAX}");
        let units = units.parse().ok().filter(|units| *units <= COST_MAX).ok_or_else(allowed)?;
        Ok(Self { meter: meter.to_owned(), units })
    }
}

/// A connection, and what is to be asked over it.
pub(super) struct Prepared {
    pub(super) client: Client,
    pub(super) handle: Handle,
    pub(super) args: CheckArgs,
    pub(super) json: bool,
}

impl Asked {
    pub(super) async fn prepare(&self, costs: &Costs) -> Result<Prepared, Failure> {
        let client = connect(&self.server).await?;
        let class = match &self.target {
            Target::Route { .. } => None,
            Target::Class(class) => Some(class.as_str()),
        };
        let handle = client.prepare(&self.api, class).await?;
        let description = handle.description();
        let args = self
            .values(&description)
            .map_err(Failure::Typed)?
            .costs(costs.by_meter(&description).map_err(Failure::Typed)?)
            .form(Form::FULL);
        Ok(Prepared { client, handle, args, json: self.json })
    }

    /// The attributes in the slots of `description`. Doors ignore an attribute that nothing reads,
    /// as gateways send all that they have; who types it has misspelt it.
    fn values(&self, description: &Description) -> Result<CheckArgs, String> {
        let mut args = CheckArgs::new();
        if let Target::Route { method, path } = &self.target {
            args = args.value("method", method.as_str()).value("path", path.as_str());
        }
        let slots: Vec<&str> = description
            .slots
            .iter()
            .filter(|slot| slot.usage != SlotUse::Route)
            .map(|slot| slot.name.as_str())
            .collect();
        for (place, Attribute { name, value }) in self.attributes.iter().enumerate() {
            if !slots.contains(&name.as_str()) {
                return Err(unknown("attribute", name, &slots));
            }
            if self.attributes[..place].iter().any(|before| before.name == *name) {
                return Err(format!("attribute `{name}` is given twice"));
            }
            args = args.value(name.clone(), value.as_str());
        }
        Ok(args)
    }
}

impl Costs {
    /// None typed.
    pub(super) const fn none() -> Self {
        Self { costs: Vec::new() }
    }

    /// Costs by meter, as JSON.
    pub(super) fn as_object(&self) -> serde_json::Map<String, serde_json::Value> {
        self.costs.iter().map(|cost| (cost.meter.clone(), cost.units.into())).collect()
    }

    /// Costs in the order of the meters of `description`; none if none was typed. Meters that are
    /// not named are charged as if none were: 1 for requests, 0 for any other.
    fn by_meter(&self, description: &Description) -> Result<Vec<u64>, String> {
        let Self { costs } = self;
        if costs.is_empty() {
            return Ok(Vec::new());
        }
        let meters: Vec<&str> = description.meters.iter().map(String::as_str).collect();
        let mut by_meter: Vec<u64> =
            meters.iter().map(|meter| u64::from(*meter == REQUESTS)).collect();
        for (place, Cost { meter, units }) in costs.iter().enumerate() {
            let index = description.meter(meter).ok_or_else(|| unknown("meter", meter, &meters))?;
            if costs[..place].iter().any(|before| before.meter == *meter) {
                return Err(format!("the cost of meter `{meter}` is given twice"));
            }
            by_meter[index] = *units;
        }
        Ok(by_meter)
    }
}

fn unknown(thing: &str, name: &str, known: &[&str]) -> String {
    let mut message = format!("no limit reads the {thing} `{name}`");
    if let Some(guess) = did_you_mean(name, known.iter().copied()) {
        message.push_str("; ");
        message.push_str(&guess);
    }
    match known {
        [] => message.push_str(&format!(" (there is no {thing})")),
        _ => message.push_str(&format!(" ({thing}s are {})", known.join(", "))),
    }
    message
}

#[cfg(test)]
mod tests {
    use tollkeeper_protocol::client::SlotDescription;
    use tollkeeper_protocol::status::WhenUnavailable;

    use super::*;

    #[test]
    fn a_space_or_a_slash_makes_a_request_of_it_and_all_else_is_a_class() {
        let route = |method: &str, path: &str| {
            Ok(Target::Route { method: method.into(), path: path.into() })
        };
        assert_eq!("POST /v1/images".parse(), route("POST", "/v1/images"));
        assert_eq!("post  /v1/a b".parse(), route("POST", "/v1/a b"));
        assert_eq!("/v1/images?x=1".parse(), route("GET", "/v1/images?x=1"));
        assert_eq!("images_post".parse(), Ok(Target::Class("images_post".into())));
        assert!("POST v1/images".parse::<Target>().unwrap_err().contains("`v1/images`"));
        assert!(" ".parse::<Target>().is_err());
    }

    #[test]
    fn attributes_and_costs_are_split_at_the_first_equals_sign() {
        let attribute = Attribute { name: "team".into(), value: "a=b".into() };
        assert_eq!("team=a=b".parse(), Ok(attribute));
        assert!("team".parse::<Attribute>().is_err() && "=t".parse::<Attribute>().is_err());
        assert_eq!("5".parse(), Ok(Cost { meter: REQUESTS.into(), units: 5 }));
        assert_eq!("up=0".parse(), Ok(Cost { meter: "up".into(), units: 0 }));
        for wrong in ["", "-1", "up=", "up=x", "9007199254740993"] {
            assert!(wrong.parse::<Cost>().is_err(), "{wrong}");
        }
    }

    fn description(slots: &[(&str, SlotUse)], meters: &[&str]) -> Description {
        let slot = |(name, usage): &(&str, SlotUse)| SlotDescription {
            name: (*name).to_owned(),
            usage: *usage,
            required: false,
        };
        Description {
            handle: 1,
            layout: 1,
            policy_version: 1,
            api: "media".into(),
            class: String::new(),
            when_unavailable: WhenUnavailable::Allow,
            denied_status: 429,
            slots: slots.iter().map(slot).collect(),
            meters: meters.iter().map(ToString::to_string).collect(),
            limits: Vec::new(),
            headers: Vec::new(),
            static_headers: Vec::new(),
        }
    }

    #[test]
    fn what_nothing_reads_is_an_error_that_says_what_is_read() {
        let description = description(
            &[("method", SlotUse::Route), ("team", SlotUse::Key), ("request_id", SlotUse::Text)],
            &["requests", "up"],
        );
        let values = |attributes: &[&str]| {
            let asked = Asked {
                api: "media".into(),
                target: Target::Class("read".into()),
                attributes: attributes.iter().map(|text| text.parse().unwrap()).collect(),
                server: String::new(),
                json: false,
            };
            asked.values(&description).map(|_| ())
        };
        assert_eq!(values(&["team=t1", "request_id=r"]), Ok(()));
        assert_eq!(
            values(&["taem=t1"]).unwrap_err(),
            "no limit reads the attribute `taem`; did you mean `team`? \
             (attributes are team, request_id)"
        );
        assert!(values(&["method=GET"]).is_err());
        assert_eq!(values(&["team=a", "team=b"]).unwrap_err(), "attribute `team` is given twice");

        let costs = |costs: &[&str]| {
            let costs = costs.iter().map(|text| text.parse().unwrap()).collect();
            Costs { costs }.by_meter(&description)
        };
        assert_eq!(costs(&[]), Ok(vec![]));
        assert_eq!(costs(&["3"]), Ok(vec![3, 0]));
        assert_eq!(costs(&["up=3"]), Ok(vec![1, 3]));
        assert_eq!(
            costs(&["down=3"]).unwrap_err(),
            "no limit reads the meter `down` (meters are requests, up)"
        );
        assert!(costs(&["up=3", "up=4"]).is_err());
    }
}

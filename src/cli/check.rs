//! `tollkeeper check` and `peek`: one request asked by hand, over the binary protocol.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::num::NonZeroU64;
use std::pin::Pin;
use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tollkeeper_protocol::client::{
    Answer, CheckArgs, Client, ClientError, Description, Handle, OnUnavailable, Options,
    ServerError,
};
use tollkeeper_protocol::limits::COST_MAX;
use tollkeeper_protocol::request::{Form, Intent};
use tollkeeper_protocol::response::{LimitNumbers, NO_TIME};
use tollkeeper_protocol::status::{Decision, Retry, SlotUse, WhenUnavailable};

use crate::doors::report::{Binding, ErrorReport, LimitReport, Report, finite, version_text};
use crate::policy::did_you_mean;

use super::text::{self, Tally};
use super::{FAILED, fail};

/// Exit code if any check was denied.
const DENIED: u8 = 1;

/// Checks of `--count` in flight.
const IN_FLIGHT: usize = 64;

/// From so many checks on, a terminal shows how far they are.
const LONG_RUN: u64 = 10_000;

/// Longest wait for an answer: people would rather wait than be told to try again.
const DEADLINE: Duration = Duration::from_secs(5);

/// The meter that a cost without a name is for.
const REQUESTS: &str = "requests";

/// Asks a running server whether a request may pass, and charges it if it may.
///
/// Prints the limit that binds: the one that denied, or the one with the least left. Exits 0 if
/// allowed, 1 if denied (with --count: if any was), 2 on an error or if no decision could be had.
#[derive(Args)]
#[command(after_help = "Examples:
  tollkeeper check media \"POST /v1/images\" team=t1
      allow images_post · 119 of 120 left · full in 1 s
  tollkeeper check media \"POST /v1/images\" team=t1 --count 121
      121 checks · 120 allowed · 1 denied, the first was number 121
      deny images_post · 0 of 120 left · retry in 1 s · full in 120 s
  tollkeeper check media images_post team=t1 --cost 5 --json
      one compact object: decision, status, binding, limits, headers, body, ...")]
pub(super) struct Check {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    costs: Costs,
    /// Sends so many checks, one after the other on one connection, and sums up
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU64>,
}

/// Asks a running server whether a request may pass, and charges nothing.
///
/// Prints what `check` would, before the request is charged. Exits 0 if it would be allowed, 1 if
/// denied, 2 on an error or if no decision could be had.
#[derive(Args)]
#[command(after_help = "Examples:
  tollkeeper peek media \"POST /v1/images\" team=t1
  tollkeeper peek media images_post team=t1 --cost 50 --json")]
pub(super) struct Peek {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    costs: Costs,
}

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

impl Check {
    pub(super) fn run(self) -> ExitCode {
        block_on(async {
            let prepared = self.asked.prepare(&self.costs).await?;
            match self.count {
                None => prepared.ask_once(Intent::Charge).await,
                Some(count) => prepared.check_many(count.get()).await,
            }
        })
    }
}

impl Peek {
    pub(super) fn run(self) -> ExitCode {
        block_on(async { self.asked.prepare(&self.costs).await?.ask_once(Intent::Peek).await })
    }
}

/// Why a command has nothing to show.
pub(super) enum Failure {
    /// The caller: what was typed does not fit the policy.
    Typed(String),
    /// Whoever the error says.
    Client(ClientError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl Failure {
    fn tell(&self) -> ExitCode {
        match self {
            Self::Typed(message) => fail(message),
            Self::Client(ClientError::Unreachable { addr, source }) => {
                super::unreachable(addr, source)
            }
            Self::Client(error) => fail(&error.to_string()),
        }
    }
}

pub(super) fn block_on(command: impl Future<Output = Result<ExitCode, Failure>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("event loop: {error}")),
    };
    runtime.block_on(command).unwrap_or_else(|failure| failure.tell())
}

/// A connection, and what is to be asked over it.
pub(super) struct Prepared {
    pub(super) client: Client,
    pub(super) handle: Handle,
    pub(super) args: CheckArgs,
    pub(super) json: bool,
}

/// Connects as this program.
pub(super) async fn connect(server: &str) -> Result<Client, Failure> {
    let options = Options {
        client: concat!("tollkeeper-cli/", env!("CARGO_PKG_VERSION")).into(),
        deadline: DEADLINE,
        on_unavailable: OnUnavailable::Report,
        ..Options::default()
    };
    Ok(Client::connect(server, options).await?)
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

impl Prepared {
    async fn ask_once(&self, intent: Intent) -> Result<ExitCode, Failure> {
        let outcome = match intent {
            Intent::Charge => self.client.check(&self.handle, &self.args).await,
            Intent::Peek => self.client.peek(&self.handle, &self.args).await,
        };
        let report = self.report(outcome)?;
        let line = if self.json { as_json(&report) } else { text::answer(&report) };
        let _ = writeln!(io::stdout().lock(), "{line}");
        let mut tally = Tally::default();
        tally.add(&report);
        Ok(exit_code(&tally))
    }

    /// Many checks, decided in the order in which they are sent.
    async fn check_many(&self, count: u64) -> Result<ExitCode, Failure> {
        let bar = (!self.json && count >= LONG_RUN && io::stderr().is_terminal())
            .then(|| progress_bar(count));
        let mut stdout = BufWriter::new(io::stdout().lock());
        let mut tally = Tally::default();
        let mut last = None;
        let mut waiting = InOrder::default();
        let mut left = count;
        let ended = loop {
            while left > 0 && waiting.len() < IN_FLIGHT {
                waiting.push(self.client.check(&self.handle, &self.args));
                left -= 1;
            }
            let Some(outcome) = waiting.next().await else { break Ok(()) };
            let report = match self.report(outcome) {
                Ok(report) => report,
                Err(failure) => break Err(failure),
            };
            tally.add(&report);
            // Whoever closed the pipe wants no more checks.
            if self.json && writeln!(stdout, "{}", as_json(&report)).is_err() {
                return Ok(exit_code(&tally));
            }
            if let Some(bar) = &bar {
                bar.inc(1);
            }
            last = Some(report);
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        if let Some(last) = last.filter(|_| !self.json) {
            let _ = writeln!(stdout, "{}\n{}", tally.line(), text::answer(&last));
        }
        let _ = stdout.flush();
        ended.map(|()| exit_code(&tally))
    }

    /// An outcome as it is told. What the server had no decision for is answered by the handle's
    /// `when_unavailable`, as a gateway would, and says so.
    fn report(&self, outcome: Result<Answer, ClientError>) -> Result<Report, Failure> {
        let description = self.handle.description();
        match outcome {
            Ok(answer) => Ok(report(&answer, &description)),
            Err(ClientError::Refused(error)) if error.code.is_unavailable() => {
                Ok(undecided(&error, &description))
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn exit_code(tally: &Tally) -> ExitCode {
    match tally {
        Tally { undecided: 1.., .. } => ExitCode::from(FAILED),
        Tally { denied: 1.., .. } => ExitCode::from(DENIED),
        _ => ExitCode::SUCCESS,
    }
}

fn as_json(report: &Report) -> String {
    serde_json::to_string(report).expect("a report has only names as keys")
}

fn progress_bar(count: u64) -> ProgressBar {
    let style = "{bar:40} {percent}% · {pos} checks";
    ProgressBar::new(count)
        .with_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()))
}

/// An answer in the shape that all doors tell people.
fn report(answer: &Answer, description: &Description) -> Report {
    let named = |index: u16| description.limits.get(usize::from(index));
    let window = |window: &str| Some(window.to_owned()).filter(|window| !window.is_empty());
    let known = |nanos: u64| (nanos != NO_TIME).then_some(nanos);
    let limit = |numbers: &LimitNumbers| {
        let limit = named(numbers.index)?;
        Some(LimitReport {
            name: limit.name.clone(),
            window: window(&limit.window),
            kind: limit.kind.name(),
            limit: finite(numbers.limit),
            remaining: finite(numbers.remaining),
            retry: match numbers.retry {
                Retry::None => "now",
                Retry::After(_) => "after",
                Retry::Never => "never",
                Retry::OnOthers(_) => "on_others",
            },
            retry_after_ns: match numbers.retry {
                Retry::After(nanos) => Some(nanos),
                Retry::OnOthers(nanos) => nanos,
                Retry::None | Retry::Never => None,
            },
            next_ns: known(numbers.next_nanos),
            full_ns: known(numbers.full_nanos),
            mode: limit.mode.name(),
        })
    };
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let numbers = answer.numbers.iter().flat_map(|numbers| &numbers.limits);
    let mut limits: Vec<LimitReport> = numbers.filter_map(limit).collect();
    limits.sort_by(|a, b| (&a.name, &a.window).cmp(&(&b.name, &b.window)));
    let rendered = answer.rendered.as_ref();
    Report {
        decision: word(answer.decision),
        status: rendered.map_or(200, |rendered| rendered.status),
        binding: answer
            .binding
            .and_then(named)
            .map(|limit| Binding { name: limit.name.clone(), window: window(&limit.window) }),
        limits,
        permit: answer.permit.map(|permit| permit.id.to_string()),
        headers: rendered
            .iter()
            .flat_map(|rendered| &rendered.headers)
            .map(|(name, value)| (name.clone(), lossy(value)))
            .collect(),
        content_type: rendered
            .map(|rendered| rendered.content_type.clone())
            .filter(|content_type| !content_type.is_empty()),
        body: rendered.and_then(|rendered| rendered.body.as_deref()).map(lossy),
        policy_version: version_text(answer.witness.policy_version),
        error: answer.failed_open.then(|| ErrorReport {
            code: "FAILED_OPEN".into(),
            message: "the limits' `when_unavailable` let the request pass".into(),
        }),
    }
}

/// What a gateway does with a request that the server has no decision for.
fn undecided(error: &ServerError, description: &Description) -> Report {
    let (decision, status) = match description.when_unavailable {
        WhenUnavailable::Allow => (Decision::Allow, 200),
        WhenUnavailable::Deny => (Decision::Deny, description.denied_status),
    };
    let headers = match decision {
        Decision::Allow => &[][..],
        Decision::Deny => &description.static_headers[..],
    };
    Report {
        decision: word(decision),
        status,
        binding: None,
        limits: Vec::new(),
        permit: None,
        headers: headers
            .iter()
            .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned()))
            .collect(),
        content_type: None,
        body: None,
        policy_version: version_text(description.policy_version),
        error: Some(ErrorReport { code: error.code.name().into(), message: error.message.clone() }),
    }
}

fn word(decision: Decision) -> &'static str {
    match decision {
        Decision::Allow => "allow",
        Decision::Deny => "deny",
    }
}

/// Futures that are begun in the order in which they came, and whose outputs come in that order.
///
/// The client sends a request when its future is first polled. Every poll goes from the oldest to
/// the newest, so requests are sent, and decided, in their order.
struct InOrder<F: Future> {
    places: VecDeque<Place<F>>,
}

enum Place<F: Future> {
    Waiting(Pin<Box<F>>),
    Done(F::Output),
}

impl<F: Future> Default for InOrder<F> {
    fn default() -> Self {
        Self { places: VecDeque::new() }
    }
}

impl<F: Future> InOrder<F> {
    fn len(&self) -> usize {
        self.places.len()
    }

    fn push(&mut self, future: F) {
        self.places.push_back(Place::Waiting(Box::pin(future)));
    }

    /// The output of the oldest; `None` if there is none.
    async fn next(&mut self) -> Option<F::Output> {
        poll_fn(|context| {
            for place in &mut self.places {
                if let Place::Waiting(future) = place
                    && let Poll::Ready(output) = future.as_mut().poll(context)
                {
                    *place = Place::Done(output);
                }
            }
            match self.places.pop_front() {
                Some(Place::Done(output)) => Poll::Ready(Some(output)),
                Some(waiting) => {
                    self.places.push_front(waiting);
                    Poll::Pending
                }
                None => Poll::Ready(None),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tollkeeper_protocol::client::SlotDescription;

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

    #[test]
    fn futures_are_begun_and_told_in_their_order() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let begun = RefCell::new(Vec::new());
        let begin = async |number: usize| {
            begun.borrow_mut().push(number);
            // The older, the longer.
            for _ in number..100 {
                tokio::task::yield_now().await;
            }
            number
        };
        let told = runtime.block_on(async {
            let mut waiting = InOrder::default();
            (0..100).for_each(|number| waiting.push(begin(number)));
            let mut told = Vec::new();
            while let Some(number) = waiting.next().await {
                told.push(number);
            }
            told
        });
        let all: Vec<usize> = (0..100).collect();
        assert_eq!((&told, &*begun.borrow()), (&all, &all));
    }
}

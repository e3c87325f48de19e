//! What a connection says and is answered. A function of bytes: [`Session::read`] turns commands
//! into items of a batch, [`Plan::write`] what became of them into bytes.

use std::sync::Arc;

use crate::doors::{Batch, Instance, Intent, Outcome, Problem, answer};
use crate::engine::command::{Amend, Charge, LimitId};
use crate::engine::decision::{Reading, Retry, Verdict};
use crate::engine::permit::PermitId;
use crate::engine::quota::{Quota, UNITS_MAX, WINDOW_MAX};
use crate::engine::time::Nanos;
use crate::policy::{Handle, Rendered, Request, ResolveError, SlotUse};

use super::parse::{Arguments, Command};
use super::reply::{self, Version};
use super::throttle::{self, LastQuota, Throttle};
use super::{CHECKS_MAX, COMMANDS_MAX, REPLY_BYTES_MAX};

/// What all connections of the door share.
pub(super) struct Ground {
    pub(super) instance: Arc<Instance>,
    password: Option<Box<[u8]>>,
}

impl Ground {
    pub(super) fn new(instance: Arc<Instance>, password: Option<&str>) -> Self {
        Self { instance, password: password.map(|password| password.as_bytes().into()) }
    }

    /// Whether clients must say a password.
    pub(super) fn needs_password(&self) -> bool {
        self.password.is_some()
    }

    /// Compares in a time that does not depend on where the difference is.
    pub(super) fn is_password(&self, given: &[u8]) -> bool {
        let Some(password) = &self.password else { return true };
        let differences =
            given.iter().zip(password).fold(0, |all, (a, b)| core::hint::black_box(all | (a ^ b)));
        given.len() == password.len() && differences == 0
    }
}

/// One connection's part of the conversation.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) version: Version,
    pub(super) admitted: bool,
    pub(super) name: Vec<u8>,
    quota: LastQuota,
}

/// What one reading of commands is to be answered, in order.
#[derive(Default)]
pub(super) struct Plan {
    /// Replies that are known at once.
    pub(super) text: Vec<u8>,
    steps: Vec<Step>,
    /// Commands in it.
    pub(super) commands: u64,
    /// Error replies among those that are known at once.
    pub(super) errors: u64,
    checks: usize,
}

enum Step {
    /// The text up to here.
    Text(usize),
    /// `CL.THROTTLE` by an item.
    Throttle(usize),
    /// A check of the policy by an item.
    Check(usize, Version),
    /// `DEL`: the first of so many pairs of items, a look and a reset.
    Deleted(usize, usize),
    /// An item that answers with a number: a release, a renewal.
    Number(usize),
}

/// How far the input was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes of it.
    pub(super) consumed: usize,
    /// Whether commands that are there wait for the next round.
    pub(super) more: bool,
    /// Whether the connection ends behind the answers.
    pub(super) closes: bool,
}

impl Session {
    pub(super) fn new(id: u64, ground: &Ground) -> Self {
        Self {
            id,
            version: Version::Two,
            admitted: !ground.needs_password(),
            name: Vec::new(),
            quota: LastQuota::default(),
        }
    }

    /// Forgets what the client said of itself.
    pub(super) fn reset(&mut self, ground: &Ground) {
        *self = Self::new(self.id, ground);
    }

    /// Reads the commands of `input`, as many as one answer may be for.
    pub(super) fn read(
        &mut self,
        ground: &Ground,
        input: &[u8],
        command: &mut Command,
        batch: &mut Batch,
        plan: &mut Plan,
    ) -> Progress {
        let mut consumed = 0;
        loop {
            if plan.is_full() {
                let more = consumed < input.len();
                return Progress { consumed, more, closes: false };
            }
            match command.read(&input[consumed..]) {
                Ok(None) => return Progress { consumed, more: false, closes: false },
                Ok(Some(length)) => {
                    let arguments = command.arguments(&input[consumed..]);
                    consumed += length;
                    if arguments.len() == 0 {
                        continue;
                    }
                    plan.commands += 1;
                    if self.obey(ground, arguments, batch, plan) == Then::Close {
                        return Progress { consumed, more: false, closes: true };
                    }
                }
                Err(malformed) => {
                    plan.commands += 1;
                    plan.error(&format!("ERR {}", malformed.message()));
                    return Progress { consumed: input.len(), more: false, closes: true };
                }
            }
        }
    }

    fn obey(
        &mut self,
        ground: &Ground,
        arguments: Arguments<'_>,
        batch: &mut Batch,
        plan: &mut Plan,
    ) -> Then {
        let name = arguments.get(0);
        if self.admitted && name.eq_ignore_ascii_case(b"CL.THROTTLE") {
            match self.throttle(ground, arguments, batch) {
                Ok(index) => plan.steps.push(Step::Throttle(index)),
                Err(message) => plan.error(&message),
            }
            return Then::GoOn;
        }
        // Of a browser that was sent here by a page, or of somebody's mistake: nothing behind it
        // is meant for us.
        if name.eq_ignore_ascii_case(b"POST") || name.eq_ignore_ascii_case(b"HOST:") {
            plan.error("ERR this is no HTTP server");
            return Then::Close;
        }
        let upper = name.to_ascii_uppercase();
        if !self.admitted && !matches!(&upper[..], b"AUTH" | b"HELLO" | b"QUIT" | b"RESET") {
            plan.error("NOAUTH Authentication required.");
            return Then::GoOn;
        }
        let done = match &upper[..] {
            b"TOLL.CHECK" => self.check(arguments, batch, Intent::Charge, plan),
            b"TOLL.PEEK" => self.check(arguments, batch, Intent::Peek, plan),
            b"TOLL.RELEASE" => permit_of(arguments, 2..=2).map(|permit| {
                plan.steps.push(Step::Number(batch.release(permit)));
            }),
            b"TOLL.RENEW" => renew(arguments, batch).map(|index| {
                plan.steps.push(Step::Number(index));
            }),
            b"DEL" | b"UNLINK" => delete(ground, arguments, batch).map(|(first, count)| {
                plan.steps.push(Step::Deleted(first, count));
            }),
            _ => return self.converse(&upper, ground, arguments, plan),
        };
        if let Err(message) = done {
            plan.error(&message);
        }
        Then::GoOn
    }

    fn throttle(
        &mut self,
        ground: &Ground,
        arguments: Arguments<'_>,
        batch: &mut Batch,
    ) -> Result<usize, String> {
        let space = &ground.instance.inline.bucket;
        Ok(match throttle::read(arguments, space, &mut self.quota)? {
            Throttle::Take(charge) => batch.inline(&[charge], Intent::Charge),
            Throttle::GiveBack(charge, units) => batch.amend_inline(charge, Amend::GiveBack(units)),
        })
    }

    /// `TOLL.CHECK API METHOD PATH [name value ...]`, where a name of `@cost` or `@cost.METER` is
    /// an amount and any other an attribute.
    fn check(
        &self,
        arguments: Arguments<'_>,
        batch: &mut Batch,
        intent: Intent,
        plan: &mut Plan,
    ) -> Result<(), String> {
        if arguments.len() < 4 {
            return Err(arity(arguments));
        }
        if !arguments.len().is_multiple_of(2) {
            return Err("ERR syntax error: a name has no value".to_owned());
        }
        let loaded = Arc::clone(batch.loaded());
        let api = core::str::from_utf8(arguments.get(1)).ok();
        let handle = api.and_then(|api| loaded.policy.handle_of(api, None)).ok_or_else(|| {
            let known: Vec<&str> = loaded.policy.apis().collect();
            let (found, known) = (shown(arguments.get(1)), known.join(", "));
            format!("ERR the policy has no API '{found}', allowed are {known}")
        })?;
        let pairs: Vec<(&[u8], &[u8])> = (4..arguments.len())
            .step_by(2)
            .map(|at| (arguments.get(at), arguments.get(at + 1)))
            .collect();
        let value = |name: &[u8]| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1);
        for (index, (name, _)) in pairs.iter().enumerate() {
            if pairs[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(format!("ERR '{}' comes twice", shown(name)));
            }
        }
        let values: Vec<Option<&[u8]>> = handle
            .slots()
            .iter()
            .map(|slot| match (slot.slot_use, &*slot.name) {
                (SlotUse::Route, "method") => Some(arguments.get(2)),
                (SlotUse::Route, _) => Some(arguments.get(3)),
                (_, name) => value(name.as_bytes()),
            })
            .collect();
        let costs = costs(handle, &pairs)?;
        let index = batch.check(handle, &Request { values: &values, costs: &costs }, intent);
        plan.checks += 1;
        plan.steps.push(Step::Check(index, self.version));
        Ok(())
    }
}

/// Whether the connection goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    GoOn,
    Close,
}

/// Meters that are not named are charged as if none were: 1 for requests, 0 for any other.
fn costs(handle: &Handle, pairs: &[(&[u8], &[u8])]) -> Result<Vec<u64>, String> {
    let mut costs = Vec::new();
    for (name, value) in pairs {
        let meter = match *name {
            b"@cost" => "requests",
            [b'@', b'c', b'o', b's', b't', b'.', meter @ ..] => {
                core::str::from_utf8(meter).unwrap_or_default()
            }
            [b'@', ..] => {
                let name = shown(name);
                return Err(format!("ERR unknown option '{name}', allowed are @cost, @cost.METER"));
            }
            _ => continue,
        };
        if costs.is_empty() {
            let of = |meter: &str| u64::from(meter == "requests");
            costs = handle.meters().iter().map(|meter| of(meter)).collect();
        }
        let index = handle.meter(meter).ok_or_else(|| {
            let known: Vec<&str> = handle.meters().iter().map(|meter| &**meter).collect();
            let known = known.join(", ");
            format!("ERR no limit reads the meter '{meter}', allowed are {known}")
        })?;
        let cost = core::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        costs[index] = cost.filter(|cost| *cost <= UNITS_MAX).ok_or_else(|| {
            format!(
                "ERR cost is '{}', allowed is a whole number from 0 to {UNITS_MAX}",
                shown(value)
            )
        })?;
    }
    Ok(costs)
}

fn permit_of(
    arguments: Arguments<'_>,
    count: core::ops::RangeInclusive<usize>,
) -> Result<PermitId, String> {
    if !count.contains(&arguments.len()) {
        return Err(arity(arguments));
    }
    let text = core::str::from_utf8(arguments.get(1)).ok().filter(|text| text.len() == 32);
    let number = text.and_then(|text| u128::from_str_radix(text, 16).ok());
    let permit = number.map(|number| PermitId(number.to_be_bytes()));
    permit.ok_or_else(|| {
        let found = shown(arguments.get(1));
        format!("ERR '{found}' is no permit, allowed are 32 hexadecimal digits")
    })
}

/// `TOLL.RENEW PERMIT [milliseconds]`.
fn renew(arguments: Arguments<'_>, batch: &mut Batch) -> Result<usize, String> {
    let permit = permit_of(arguments, 2..=3)?;
    let lease = match arguments.len() {
        3 => {
            let millis = core::str::from_utf8(arguments.get(2)).ok().and_then(|ms| ms.parse().ok());
            let millis: u64 = millis.ok_or("ERR value is not an integer or out of range")?;
            Some(Nanos::new(millis.saturating_mul(1_000_000)))
        }
        _ => None,
    };
    Ok(batch.renew(permit, lease))
}

/// `DEL key ...` of `CL.THROTTLE`'s keys: a counter begins anew, whatever its numbers.
fn delete(
    ground: &Ground,
    arguments: Arguments<'_>,
    batch: &mut Batch,
) -> Result<(usize, usize), String> {
    if arguments.len() < 2 {
        return Err(arity(arguments));
    }
    let first = batch.len();
    // By numbers under which no counter is full: what it holds shows whatever filled it.
    let quota = Quota::bucket(1, WINDOW_MAX, UNITS_MAX).map_err(|error| format!("ERR {error}"))?;
    let space = &ground.instance.inline.bucket;
    let keys: Result<Vec<_>, String> =
        arguments.from(1).map(|key| throttle::key(key, space)).collect();
    let keys = keys?;
    for key in &keys {
        let charge = Charge::new(*key, quota, 0, LimitId::INLINE);
        batch.inline(&[charge], Intent::Peek);
        batch.amend_inline(charge, Amend::Set(0));
    }
    Ok((first, keys.len()))
}

/// What Redis says of a command with too many or too few arguments.
pub(super) fn arity(arguments: Arguments<'_>) -> String {
    let name = shown(arguments.get(0)).to_ascii_lowercase();
    format!("ERR wrong number of arguments for '{name}' command")
}

/// Found bytes, cut to a length that a message can hold.
pub(super) fn shown(found: &[u8]) -> String {
    String::from_utf8_lossy(&found[..found.len().min(128)]).into_owned()
}

impl Plan {
    /// Empties it for the next round.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.steps.clear();
        (self.commands, self.errors, self.checks) = (0, 0, 0);
    }

    fn is_full(&self) -> bool {
        self.checks >= CHECKS_MAX
            || self.commands >= COMMANDS_MAX as u64
            || self.text.len() >= REPLY_BYTES_MAX
    }

    /// A reply that is known at once.
    pub(super) fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.text);
        match self.steps.last_mut() {
            Some(Step::Text(end)) => *end = self.text.len(),
            _ => self.steps.push(Step::Text(self.text.len())),
        }
    }

    pub(super) fn error(&mut self, message: &str) {
        self.errors += 1;
        self.say(|out| reply::error(out, message));
    }

    /// Writes all replies in order. Returns how many were errors.
    pub(super) fn write(&self, batch: &Batch, out: &mut Vec<u8>) -> u64 {
        let mut errors = self.errors;
        let mut from = 0;
        for step in &self.steps {
            let written = match *step {
                Step::Text(end) => {
                    out.extend_from_slice(&self.text[from..end]);
                    from = end;
                    true
                }
                Step::Throttle(index) => write_throttle(batch, index, out),
                Step::Check(index, version) => write_check(batch, index, version, out),
                Step::Deleted(first, count) => write_deleted(batch, first, count, out),
                Step::Number(index) => write_number(batch, index, out),
            };
            errors += u64::from(!written);
        }
        errors
    }
}

/// Writes a problem as the error that it is; for `||` behind what would have written the answer.
fn write_problem(problem: &Problem, out: &mut Vec<u8>) -> bool {
    match problem {
        // Clients know this word of Redis: it has no room, and only for what is new.
        Problem::Refused(refusal @ crate::engine::decision::Refusal::TableFull { .. }) => {
            reply::error(out, &format!("OOM {refusal}"));
        }
        Problem::Refused(refusal) => reply::error(out, &format!("ERR {refusal}")),
        // As Redis says it of a cluster without a majority.
        Problem::Undecided(undecided) => {
            reply::error(out, &format!("CLUSTERDOWN {}", undecided.describe()));
        }
        Problem::Resolve(_) => reply::error(out, "ERR the request does not fit the policy"),
    }
    false
}

fn undecided(out: &mut Vec<u8>) -> bool {
    reply::error(out, "ERR the command was not decided");
    false
}

fn write_throttle(batch: &Batch, index: usize, out: &mut Vec<u8>) -> bool {
    match batch.outcome(index) {
        Outcome::Decided { decision, readings: [reading], .. } => {
            throttle::reply(out, decision.verdict, reading);
            true
        }
        Outcome::Amended(_, [reading]) => {
            throttle::reply(out, Verdict::Allow, reading);
            true
        }
        Outcome::Failed(problem) => write_problem(problem, out),
        _ => undecided(out),
    }
}

fn write_deleted(batch: &Batch, first: usize, count: usize, out: &mut Vec<u8>) -> bool {
    let mut deleted = 0;
    for pair in 0..count {
        let (look, reset) = (first + 2 * pair, first + 2 * pair + 1);
        if let Outcome::Failed(problem) = batch.outcome(reset) {
            return write_problem(problem, out);
        }
        if let Outcome::Decided { readings: [reading], .. } = batch.outcome(look) {
            deleted += i64::from(reading.full_after().is_some_and(|span| span > Nanos::ZERO));
        }
    }
    reply::integer(out, deleted);
    true
}

fn write_number(batch: &Batch, index: usize, out: &mut Vec<u8>) -> bool {
    match batch.outcome(index) {
        Outcome::Released(units) => {
            reply::integer(out, i64::try_from(units).unwrap_or(i64::MAX));
            true
        }
        Outcome::Renewed(kept) => {
            let millis = kept.map(|span| span.get().div_ceil(1_000_000));
            reply::integer(out, millis.map_or(-1, |ms| i64::try_from(ms).unwrap_or(i64::MAX)));
            true
        }
        Outcome::BadLease(error) => {
            reply::error(out, &format!("ERR {error}"));
            false
        }
        _ => undecided(out),
    }
}

/// The names of a check's reply, in the order of their values.
const CHECK_NAMES: [&str; 9] = [
    "decision",
    "status",
    "binding",
    "remaining",
    "retry_after_ms",
    "headers",
    "body",
    "permit",
    "error",
];

fn write_check(batch: &Batch, index: usize, version: Version, out: &mut Vec<u8>) -> bool {
    let Some(handle) = batch.handle(index) else { return undecided(out) };
    let (verdict, binding, permit, error) = match batch.outcome(index) {
        Outcome::Decided { decision, readings, limits } => {
            let place = decision.binding;
            let limit = place.and_then(|place| limits.get(place));
            let limit = limit.and_then(|index| handle.limits().get(usize::from(*index)));
            let binding = limit.zip(place.and_then(|place| readings.get(place)));
            (decision.verdict, binding, decision.permit, None)
        }
        Outcome::FailedOpen(problem) => (Verdict::Allow, None, None, Some(problem)),
        Outcome::Failed(Problem::Resolve(
            error @ (ResolveError::CostTooLarge { .. } | ResolveError::TooManyLimits { .. }),
        )) => {
            reply::error(out, &format!("ERR {}", error.describe(handle)));
            return false;
        }
        Outcome::Failed(problem) => (Verdict::Deny, None, None, Some(problem)),
        _ => return undecided(out),
    };
    let mut rendered = Rendered::default();
    if batch.render(index, &mut rendered).is_none() {
        return undecided(out);
    }
    reply::map(out, version, CHECK_NAMES.len());
    for name in CHECK_NAMES {
        reply::bulk(out, name.as_bytes());
        match name {
            "decision" => {
                reply::bulk(out, if verdict == Verdict::Allow { b"allow" } else { b"deny" });
            }
            "status" => reply::integer(out, rendered.status().into()),
            "binding" => optional(out, version, binding.map(|(limit, _)| limit.full_name())),
            "remaining" => {
                let remaining = binding.map(|(_, reading)| reading.remaining());
                number(out, version, remaining.and_then(crate::doors::report::finite));
            }
            "retry_after_ms" => {
                let wait = binding.and_then(|(_, reading)| wait(verdict, reading));
                number(out, version, wait.map(|span| span.get().div_ceil(1_000_000)));
            }
            "headers" => write_headers(handle, &rendered, version, out),
            "body" => optional(out, version, rendered.body()),
            "permit" => optional(out, version, permit.map(|permit| permit.id.to_string())),
            _ => {
                let error = error.map(|problem| answer::problem_report(problem, handle));
                let text = error.map(|error| format!("{} {}", error.code, error.message));
                optional(out, version, text);
            }
        }
    }
    true
}

/// How long until the same request passes, where time alone brings that.
fn wait(verdict: Verdict, reading: &Reading) -> Option<Nanos> {
    match reading.retry() {
        _ if verdict == Verdict::Allow => None,
        Retry::After(span) => Some(span),
        Retry::OnOthers(span) => span,
        Retry::Now | Retry::Never => None,
    }
}

fn write_headers(handle: &Handle, rendered: &Rendered, version: Version, out: &mut Vec<u8>) {
    let content_type = rendered.content_type().map(|value| ("Content-Type", value));
    let headers = handle.header_names().zip(rendered.headers());
    let headers = headers.filter_map(|(name, value)| Some((name, value?))).chain(content_type);
    let headers: Vec<(&str, &str)> = headers.collect();
    reply::map(out, version, headers.len());
    for (name, value) in headers {
        reply::bulk(out, name.as_bytes());
        reply::bulk(out, value.as_bytes());
    }
}

fn optional(out: &mut Vec<u8>, version: Version, text: Option<impl AsRef<str>>) {
    match text {
        Some(text) => reply::bulk(out, text.as_ref().as_bytes()),
        None => reply::null(out, version),
    }
}

fn number(out: &mut Vec<u8>, version: Version, number: Option<u64>) {
    match number {
        Some(number) => reply::integer(out, i64::try_from(number).unwrap_or(i64::MAX)),
        None => reply::null(out, version),
    }
}

#[cfg(test)]
mod tests;

//! Typed policy to flat tables: names become numbers, and what no single line shows is checked.

use std::sync::Arc;

use crate::engine::command::{CHARGES_MAX, LimitId};
use crate::engine::key::{KeySpace, Seed};
use crate::engine::quota::{Align, Kind, Quota};

use super::answer::{Answers, Feed, Header};
use super::error::{Errors, Span, did_you_mean};
use super::fingerprint::Fingerprint;
use super::handle::{Handle, Limit, Mode, One, Slot, SlotUse, Unavailable};
use super::maxima::{
    HANDLE_LIMITS_MAX, HANDLES_MAX, HEADERS_MAX, LIMITS_MAX, METERS_MAX, POLICY_BYTES_MAX,
    SLOTS_MAX, STATIC_HEADERS_MAX,
};
use super::parse::{self, ApiText, Document, HeaderText, LimitText, MatchText, RouteText};
use super::presets::{RESET_DEFAULT, Shows};
use super::resolve::REQUESTS;
use super::route::{Route, Router, SetId, Sets};
use super::template::{Names, Placeholder, Template, limit_named};
use super::tree::Text;
use super::{LimitInfo, LoadErrors, Policy, Source, script};

/// Compiles all `sources` into one policy.
pub(super) fn compile(sources: &[Source<'_>], seed: &Seed) -> Result<Policy, LoadErrors> {
    let mut errors = Errors::default();
    let mut policy = Policy {
        version: version(sources),
        handles: Vec::new(),
        limits: Vec::new(),
        tests: Vec::new(),
    };
    let Document { mut apis, tests } = read(sources, &mut errors);
    if sources.iter().all(|source| source.text.len() <= POLICY_BYTES_MAX) {
        // By name, so that the order in which things are written never matters.
        apis.sort_by(|a, b| a.name.value.cmp(&b.name.value));
        for pair in apis.windows(2).filter(|pair| pair[0].name.value == pair[1].name.value) {
            let message = format!("API `{}` is defined twice", pair[1].name.value);
            errors.push(pair[1].name.span, message);
        }
        for api in &apis {
            Compiler::new(api, seed, &mut errors).compile(&mut policy);
        }
        if errors.len() == 0 {
            policy.tests = tests
                .iter()
                .filter_map(|test| script::compile(test, &policy, sources, &mut errors))
                .collect();
        }
    }
    errors.finish(sources.iter().map(|source| (source.name, source.text)))?;
    Ok(policy)
}

fn version(sources: &[Source<'_>]) -> u64 {
    let mut fingerprint = Fingerprint::new();
    for source in sources {
        fingerprint.part(source.text.as_bytes());
    }
    fingerprint.finish()
}

fn read(sources: &[Source<'_>], errors: &mut Errors) -> Document {
    let mut all = Document::default();
    for (index, source) in sources.iter().enumerate() {
        if source.text.len() > POLICY_BYTES_MAX {
            let message =
                format!("{} bytes of policy, allowed are {POLICY_BYTES_MAX}", source.text.len());
            errors.push(Span::new(index, 0..0), message);
            continue;
        }
        let document = parse::parse(index, source.text, errors);
        all.apis.extend(document.apis);
        all.tests.extend(document.tests);
    }
    all
}

/// Compiles one API.
struct Compiler<'a> {
    text: &'a ApiText,
    seed: &'a Seed,
    errors: &'a mut Errors,
    /// Names of the classes, sorted; each is the set of routes of its index.
    classes: Vec<&'a str>,
    /// All routes, each with its set. Sets after the classes are lists of single limits.
    routes: Vec<(SetId, &'a Route)>,
    sets: usize,
    limits: Vec<ApiLimit>,
    attributes: Vec<String>,
}

/// A limit, each window by itself, before it stands in a handle.
struct ApiLimit {
    limit: Limit,
    meter: String,
    /// Indexes among the API's attributes.
    per: Vec<u16>,
    /// Classes of `on`; `None` is every request.
    on_classes: Option<Vec<SetId>>,
    except_classes: Vec<SetId>,
}

impl ApiLimit {
    fn enforced(&self) -> bool {
        self.limit.mode == Mode::Enforce
    }
}

impl<'a> Compiler<'a> {
    fn new(text: &'a ApiText, seed: &'a Seed, errors: &'a mut Errors) -> Self {
        Self {
            text,
            seed,
            errors,
            classes: Vec::new(),
            routes: Vec::new(),
            sets: 0,
            limits: Vec::new(),
            attributes: Vec::new(),
        }
    }

    fn compile(mut self, policy: &mut Policy) {
        let text = self.text;
        if policy.handles.len() + text.classes.len() >= HANDLES_MAX {
            let message = format!("more than {HANDLES_MAX} APIs and classes");
            self.errors.push(text.name.span, message);
            return;
        }
        self.read_classes();
        if !self.read_limits(policy) {
            return;
        }
        let answers = Arc::new(self.read_answers());
        let mut handles = vec![self.handle(None, &answers)];
        for class in 0..self.classes.len() {
            handles.push(self.handle(Some(class as SetId), &answers));
        }
        for mut handle in handles {
            handle.number = policy.handles.len() as u32 + 1;
            policy.handles.push(handle);
        }
    }

    fn read_classes(&mut self) {
        let text = self.text;
        let mut classes: Vec<_> = text.classes.iter().collect();
        classes.sort_by(|a, b| a.name.value.cmp(&b.name.value));
        for class in classes {
            let set = self.sets as SetId;
            self.sets += 1;
            self.classes.push(&class.name.value);
            self.add_routes(set, class.routes.iter());
        }
    }

    /// Adds the routes of one list, among which none may hide or cross another.
    fn add_routes(&mut self, set: SetId, list: impl Iterator<Item = &'a RouteText>) {
        let list: Vec<&RouteText> = list.collect();
        for (index, second) in list.iter().enumerate() {
            for first in &list[..index] {
                self.check_pair(first, second);
            }
            self.routes.push((set, &second.route));
        }
    }

    fn check_pair(&mut self, first: &RouteText, second: &RouteText) {
        let (a, b) = (&first.text.value, &second.text.value);
        let (hidden, by) = if first.route.covers(&second.route) {
            (second, a)
        } else if second.route.covers(&first.route) {
            (first, b)
        } else if let Some(request) = first.route.overlap(&second.route) {
            let message = format!("routes `{a}` and `{b}` overlap");
            let help = format!("both match `{request}`; routes of one list must not");
            self.errors.push_with_help(second.text.span, message, help);
            return;
        } else {
            return;
        };
        let message = format!("unreachable route `{}`", hidden.text.value);
        let help = format!("`{by}` in the same list matches all that it does");
        self.errors.push_with_help(hidden.text.span, message, help);
    }

    /// The classes and the set of routes that a list names.
    fn read_matches(&mut self, list: &'a [MatchText]) -> (Vec<SetId>, Option<SetId>) {
        let mut classes: Vec<SetId> = Vec::new();
        let mut routes = Vec::new();
        for entry in list {
            match entry {
                MatchText::Class(name) => {
                    if let Some(class) = self.class_named(name) {
                        if classes.contains(&class) {
                            let message = format!("class `{}` stands here twice", name.value);
                            self.errors.push(name.span, message);
                        }
                        classes.push(class);
                    }
                }
                MatchText::Route(route) => routes.push(route),
            }
        }
        if routes.is_empty() {
            return (classes, None);
        }
        let set = self.sets as SetId;
        self.sets = (self.sets + 1).min(usize::from(SetId::MAX));
        self.add_routes(set, routes.into_iter());
        (classes, Some(set))
    }

    fn class_named(&mut self, name: &Text) -> Option<SetId> {
        if let Ok(index) = self.classes.binary_search(&name.value.as_str()) {
            return Some(index as SetId);
        }
        let help = did_you_mean(&name.value, self.classes.iter().copied()).unwrap_or_else(|| {
            match self.classes.as_slice() {
                [] => "the API has no classes; a route begins with `/` or a method".to_owned(),
                classes => format!("classes are {}", classes.join(", ")),
            }
        });
        self.errors.push_with_help(name.span, format!("unknown class `{}`", name.value), help);
        None
    }

    /// `false` if there are too many of them to go on.
    fn read_limits(&mut self, policy: &mut Policy) -> bool {
        let text = self.text;
        let mut limits: Vec<&LimitText> = text.limits.iter().collect();
        limits.sort_by(|a, b| a.name.value.cmp(&b.name.value));
        for limit in limits {
            self.read_limit(limit, policy);
        }
        let few = self.limits.len() <= HANDLE_LIMITS_MAX;
        if !few {
            let message = format!(
                "API `{}` has {} limits, allowed are {HANDLE_LIMITS_MAX}",
                text.name.value,
                self.limits.len()
            );
            self.errors.push(text.name.span, message);
        }
        few
    }

    fn read_limit(&mut self, text: &'a LimitText, policy: &mut Policy) {
        let on = text.on.as_ref().map(|on| self.read_matches(on));
        let (except_classes, except_routes) = self.read_matches(&text.except);
        if let Some((classes, None)) = &on
            && !classes.is_empty()
            && classes.iter().all(|class| except_classes.contains(class))
        {
            let message = format!("no request can reach limit `{}`", text.name.value);
            self.errors.push_with_help(
                text.name.span,
                message,
                "`except` takes away all that `on` gives",
            );
        }
        let per: Vec<u16> = text.per.iter().map(|name| self.attribute(&name.value)).collect();
        let sets_of = |classes: &[SetId], routes: Option<SetId>| {
            Sets::new(classes.iter().copied().chain(routes))
        };
        for window in &text.windows {
            if text.cost > window.quota.limit() {
                let message = format!(
                    "a cost of {} never fits: limit `{}` holds {}",
                    text.cost,
                    text.name.value,
                    window.quota.limit()
                );
                self.errors.push(text.quota_span, message);
            }
            if policy.limits.len() >= LIMITS_MAX {
                let message = format!("more than {LIMITS_MAX} limits in the policy");
                self.errors.push(text.name.span, message);
                return;
            }
            let id = LimitId(policy.limits.len() as u16 + 1);
            policy.limits.push(LimitInfo {
                id,
                api: self.text.name.value.as_str().into(),
                name: text.name.value.as_str().into(),
                window: window.name.as_str().into(),
                kind: window.quota.kind(),
                mode: text.mode,
                keys_max: text.keys_max,
            });
            let limit = Limit {
                name: text.name.value.as_str().into(),
                window: window.name.as_str().into(),
                quota: window.quota,
                id,
                mode: text.mode,
                status: text.status,
                when_unavailable: text.when_unavailable,
                meter: 0,
                cost: text.cost,
                unasked_cost: 0,
                per: Box::default(),
                skip_missing: text.skip_missing,
                space: key_space(self.seed, &self.text.name.value, text, &window.quota),
                on: on.as_ref().map(|(classes, routes)| sets_of(classes, *routes)),
                except: sets_of(&except_classes, except_routes),
            };
            self.limits.push(ApiLimit {
                limit,
                meter: text.meter.as_ref().map_or(REQUESTS, |meter| &meter.value).to_owned(),
                per: per.clone(),
                on_classes: on.as_ref().map(|(classes, _)| classes.clone()),
                except_classes: except_classes.clone(),
            });
        }
    }

    fn attribute(&mut self, name: &str) -> u16 {
        let known = self.attributes.iter().position(|known| known == name);
        known.unwrap_or_else(|| {
            self.attributes.push(name.to_owned());
            self.attributes.len() - 1
        }) as u16
    }

    fn read_answers(&mut self) -> Answers {
        let text = self.text;
        let limits: Vec<(String, String)> = self
            .limits
            .iter()
            .map(|of| (of.limit.name.to_string(), of.limit.window.to_string()))
            .collect();
        let mut names = Names {
            limits: &limits,
            attributes: &mut self.attributes,
            incomplete: text.incomplete,
        };
        let errors = &mut *self.errors;
        let mut headers: Vec<Header> = Vec::new();
        for of_preset in text.headers.preset {
            let field = match of_preset.shows {
                Shows::Field(field) => field,
                Shows::Reset => text.headers.reset.unwrap_or(RESET_DEFAULT),
            };
            let always = Some(Template::header_value(Placeholder::Fed(field)));
            headers.push(Header { name: of_preset.name.into(), always, denied: None });
        }
        let mut read = |of: &HeaderText| {
            (of.name.value.clone(), Template::header(&of.value, &mut names, errors))
        };
        for (name, template) in text.headers.always.iter().map(&mut read) {
            header_named(&mut headers, &name).always = template;
        }
        for (name, template) in text.headers.denied.iter().map(&mut read) {
            header_named(&mut headers, &name).denied = template;
        }
        let retry_after = Template::header_value(Placeholder::RetryAfter);
        let no_store = Template::header_text("no-store");
        for (name, template) in [("Retry-After", retry_after), ("Cache-Control", no_store)] {
            header_named(&mut headers, name).denied.get_or_insert(template);
        }
        let constant = headers.iter().filter(|h| h.constant_on_denial().is_some()).count();
        if constant > STATIC_HEADERS_MAX {
            let message =
                format!("{constant} headers of constant value, allowed are {STATIC_HEADERS_MAX}");
            errors.push(text.name.span, message);
        }
        if headers.len() > HEADERS_MAX {
            let message = format!("{} headers, allowed are {HEADERS_MAX}", headers.len());
            errors.push(text.name.span, message);
        }
        let mut from = Vec::new();
        for name in &text.headers.from {
            from.extend(feed(name, &names, errors));
        }
        if from.is_empty() {
            from.push(Feed::Binding);
        }
        let body = text.body.as_ref().and_then(|body| Template::json(body, &mut names, errors));
        Answers { headers, from, body }
    }

    /// The handle of a class, or of the API itself. It gets its number later.
    fn handle(&mut self, class: Option<SetId>, answers: &Arc<Answers>) -> Handle {
        let text = self.text;
        let applies = |of: &&ApiLimit| match class {
            None => true,
            Some(class) => {
                of.on_classes.as_ref().is_none_or(|on| on.contains(&class))
                    && !of.except_classes.contains(&class)
            }
        };
        let limits: Vec<&ApiLimit> = self.limits.iter().filter(applies).collect();
        let (slots, attribute_slots) = self.slots(class, &limits, answers);
        let meters = meters(&limits);
        let enforced = || limits.iter().filter(|of| of.enforced());
        let unavailable = enforced().map(|of| of.limit.when_unavailable).max();
        let mut statuses = enforced().map(|of| of.limit.status);
        let status = statuses.next().filter(|first| statuses.all(|other| other == *first));
        // Of an API, only the limits without `on` are sure to apply at once.
        let at_once = enforced().filter(|of| class.is_some() || of.on_classes.is_none()).count();
        let problems = [
            ("attributes", slots.len(), SLOTS_MAX),
            ("meters", meters.len(), METERS_MAX),
            ("limits that apply at once", at_once, CHARGES_MAX),
        ];
        for (what, found, max) in problems {
            if found > max {
                let message = format!("{found} {what}, allowed are {max}");
                self.errors.push(text.name.span, message);
            }
        }
        let place = |all: &[ApiLimit], of: &ApiLimit| {
            let id = of.limit.id;
            all.iter().position(|known| known.limit.id == id)
        };
        let mut limit_indexes = vec![None; self.limits.len()];
        let mut flat = Vec::with_capacity(limits.len());
        for (index, of) in limits.iter().enumerate() {
            if let Some(place) = place(&self.limits, of) {
                limit_indexes[place] = Some(index as u16);
            }
            let mut limit = of.limit.clone();
            let meter = meters.iter().position(|meter| **meter == *of.meter);
            limit.meter = meter.unwrap_or_default() as u16;
            limit.unasked_cost = if of.meter == REQUESTS { limit.cost } else { 0 };
            let slot = |attribute: &u16| attribute_slots[usize::from(*attribute)];
            limit.per = of.per.iter().filter_map(slot).collect();
            flat.push(limit);
        }
        let constant = |header: &Header| {
            let value = header.constant_on_denial()?;
            Some((header.name.clone(), Box::from(value)))
        };
        let one = class.and_then(|_| One::of(&flat));
        let router = class.is_none().then(|| Router::new(self.sets, self.routes.iter().copied()));
        let mut handle = Handle {
            number: 0,
            layout: 0,
            api: text.name.value.as_str().into(),
            class: class.map(|class| self.classes[usize::from(class)].into()),
            slots: slots.into(),
            meters: meters.into(),
            limits: flat.into(),
            when_unavailable: unavailable.unwrap_or(Unavailable::Allow),
            denial_status: status.unwrap_or(429),
            denial_headers: answers.headers.iter().filter_map(constant).collect(),
            router,
            one,
            answers: answers.clone(),
            attribute_slots: attribute_slots.into(),
            limit_indexes: limit_indexes.into(),
        };
        handle.layout = layout(&handle);
        handle
    }

    /// The slots of a handle with these limits, and for each attribute of the API its slot.
    fn slots(
        &self,
        class: Option<SetId>,
        limits: &[&ApiLimit],
        answers: &Answers,
    ) -> (Vec<Slot>, Vec<Option<u16>>) {
        let mut slots = Vec::new();
        if class.is_none() {
            for name in ["method", "path"] {
                slots.push(Slot { name: name.into(), slot_use: SlotUse::Route, required: true });
            }
        }
        let shown: Vec<u16> = answers
            .headers
            .iter()
            .flat_map(|header| [&header.always, &header.denied])
            .chain([&answers.body])
            .flatten()
            .flat_map(Template::attributes)
            .collect();
        let mut attribute_slots = vec![None; self.attributes.len()];
        for (index, name) in self.attributes.iter().enumerate() {
            let index = index as u16;
            let reads = |of: &&&ApiLimit| of.per.contains(&index);
            let slot_use = if limits.iter().any(|of| reads(&of)) {
                SlotUse::Key
            } else if shown.contains(&index) {
                SlotUse::Text
            } else {
                continue;
            };
            let required =
                limits.iter().filter(reads).any(|of| of.enforced() && !of.limit.skip_missing);
            attribute_slots[usize::from(index)] = Some(slots.len() as u16);
            slots.push(Slot { name: name.as_str().into(), slot_use, required });
        }
        (slots, attribute_slots)
    }
}

/// The meters that these limits charge: `requests` first, others by name.
fn meters(limits: &[&ApiLimit]) -> Vec<Box<str>> {
    let mut meters: Vec<&str> = limits.iter().map(|of| of.meter.as_str()).collect();
    meters.sort_by_key(|meter| (*meter != REQUESTS, *meter));
    meters.dedup();
    meters.into_iter().map(Box::from).collect()
}

/// Everything that makes a counter itself but its values. The numbers are not part of it, so an
/// edit of them keeps usage, except for a window's length and alignment: another window counts
/// anew. The window counts by its length, not its place among others, so a second window keeps
/// the first.
fn key_space(seed: &Seed, api: &str, limit: &LimitText, quota: &Quota) -> KeySpace {
    let window = match quota {
        Quota::Bucket(_) => String::new(),
        Quota::Fixed(fixed) => {
            let align = match fixed.align() {
                Align::Clock => "clock",
                Align::First => "first",
            };
            format!("{} ns {align}", fixed.window().get())
        }
        Quota::Sliding(sliding) => format!("{} ns", sliding.window().get()),
        _ => String::new(),
    };
    let fixed = ["policy", api, &limit.name.value, &window, quota.kind().name()];
    let names = limit.per.iter().map(|name| name.value.as_str());
    KeySpace::derive(seed, fixed.into_iter().chain(names).map(str::as_bytes))
}

fn layout(handle: &Handle) -> u64 {
    let mut hash = Fingerprint::new();
    hash.part(handle.api.as_bytes()).part(handle.class.as_deref().unwrap_or("").as_bytes());
    hash.part(&[u8::from(handle.class.is_some())]);
    hash.part(&(handle.slots.len() as u64).to_le_bytes());
    for slot in &handle.slots {
        hash.part(slot.name.as_bytes()).part(slot.slot_use.name().as_bytes());
        hash.part(&[u8::from(slot.required)]);
    }
    hash.part(&(handle.meters.len() as u64).to_le_bytes());
    for meter in &handle.meters {
        hash.part(meter.as_bytes());
    }
    hash.part(&(handle.limits.len() as u64).to_le_bytes());
    for limit in &handle.limits {
        let kind: Kind = limit.kind();
        hash.part(limit.name.as_bytes()).part(limit.window.as_bytes());
        hash.part(kind.name().as_bytes()).part(limit.mode.name().as_bytes());
    }
    for name in handle.answers.header_names() {
        hash.part(name.as_bytes());
    }
    hash.finish()
}

/// The header of that name, added if it is new.
fn header_named<'h>(headers: &'h mut Vec<Header>, name: &str) -> &'h mut Header {
    let known = headers.iter().position(|header| header.name.eq_ignore_ascii_case(name));
    let index = known.unwrap_or_else(|| {
        headers.push(Header { name: name.into(), always: None, denied: None });
        headers.len() - 1
    });
    &mut headers[index]
}

/// What an entry of `from` means: `binding`, `LIMIT` or `LIMIT.WINDOW`.
fn feed(text: &Text, names: &Names<'_>, errors: &mut Errors) -> Option<Feed> {
    if text.value == "binding" {
        return Some(Feed::Binding);
    }
    let (limit, window) = match text.value.split_once('.') {
        Some((limit, window)) => (limit, Some(window)),
        None => (text.value.as_str(), None),
    };
    match limit_named(limit, window, names) {
        Ok(limit) => Some(Feed::Limit(limit)),
        Err((message, Some(help))) => {
            errors.push_with_help(text.span, message, help);
            None
        }
        Err((message, None)) => {
            errors.push(text.span, message);
            None
        }
    }
}

#[cfg(test)]
mod tests;

//! A decision to what the caller is told: status, headers, body.

use core::fmt::{self, Write};

use crate::engine::decision::{Decision, Reading, Retry, Verdict};
use crate::engine::time::{Nanos, Now};

use super::handle::{Handle, Limit, RuleEffect, Tier, Unavailable};
use super::resolve::{Request, Resolved};
use super::structured;
use super::template::{Placeholder, Template, Values};

/// What an API answers with: the same for all its handles.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    pub(super) headers: Vec<Header>,
    /// Which limits feed headers of the preset: of each list the first that applies does.
    pub(super) feeds: Vec<Vec<Feed>>,
    pub(super) texts: Vec<Keyed>,
    pub(super) bodies: Keyed,
    /// Whether the customer's tier is shown anywhere.
    pub(super) shows_tier: bool,
}

/// Texts by what denies.
#[derive(Clone, Debug, Default)]
pub(super) struct Keyed {
    pub(super) templates: Vec<Template>,
    /// For each limit of the API, by its index among them.
    pub(super) by_limit: Vec<Option<u16>>,
    /// For each rule of the API.
    pub(super) by_rule: Vec<Option<u16>>,
}

/// One header of an answer.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) name: Box<str>,
    /// Its value on an allow, and on a denial if that has none of its own.
    pub(super) always: Option<Template>,
    /// Its value on a denial.
    pub(super) denied: Option<Template>,
}

impl Header {
    fn on(&self, verdict: Verdict) -> Option<&Template> {
        match verdict {
            Verdict::Allow => self.always.as_ref(),
            Verdict::Deny => self.denied.as_ref().or(self.always.as_ref()),
        }
    }

    /// Its value on a denial, if that is the same for all requests.
    pub(super) fn constant_on_denial(&self) -> Option<&str> {
        self.on(Verdict::Deny).and_then(Template::as_text)
    }
}

/// What may feed a preset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feed {
    /// The limit that binds.
    Binding,
    /// A limit, by its index among the API's.
    Limit(u16),
}

impl Answers {
    pub(super) fn header_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.headers.iter().map(|header| &*header.name)
    }

    /// Attributes of the request that are shown.
    pub(super) fn attributes(&self) -> impl Iterator<Item = u16> {
        let headers = self.headers.iter().flat_map(|header| [&header.always, &header.denied]);
        let keyed = self.texts.iter().chain([&self.bodies]).flat_map(|keyed| &keyed.templates);
        headers.flatten().chain(keyed).flat_map(Template::attributes)
    }
}

/// The answer to one check in HTTP's terms. Its buffers are reused.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    status: u16,
    /// Values of all headers, one after the other.
    text: String,
    /// Where each value ends, and whether there is one.
    ends: Vec<(usize, bool)>,
    body: String,
    has_body: bool,
}

impl Rendered {
    /// HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Values in the order of [`Handle::header_names`]; `None` is a header to leave out.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = Option<&str>> {
        self.ends.iter().enumerate().map(|(index, (end, present))| {
            let start = index.checked_sub(1).map_or(0, |before| self.ends[before].0);
            present.then(|| &self.text[start..*end])
        })
    }

    /// Content type of the body, if there is one.
    pub fn content_type(&self) -> Option<&'static str> {
        self.has_body.then_some("application/json")
    }

    /// The body, if there is one.
    pub fn body(&self) -> Option<&str> {
        self.has_body.then_some(self.body.as_str())
    }

    fn begin(&mut self, status: u16) {
        self.status = status;
        self.text.clear();
        self.ends.clear();
        self.body.clear();
        self.has_body = false;
    }

    fn push_header(&mut self, write: impl FnOnce(&mut String) -> bool) {
        let present = write(&mut self.text);
        self.ends.push((self.text.len(), present));
    }
}

impl Handle {
    /// Writes the answer to a request. `resolved` and `limits` are what [`Handle::resolve`]
    /// yielded for it, the latter its part of all indexes; `readings` are the engine's for its
    /// charges. There are none of either if a rule answered it.
    pub fn render(
        &self,
        resolved: &Resolved,
        limits: &[u16],
        request: &Request<'_>,
        decision: &Decision,
        readings: &[Reading],
        out: &mut Rendered,
    ) {
        if resolved.rule.is_some() {
            return self.render_ruled(resolved, request, out);
        }
        let tier = resolved.tier.or_else(|| self.tier_of(request));
        let answer = Answer { handle: self, limits, request, decision, readings, tier, rule: None };
        let status = match decision.verdict {
            Verdict::Allow => 200,
            Verdict::Deny => answer.binding_limit().map_or(self.denial_status, |l| l.status),
        };
        self.write(&answer, status, out);
    }

    /// The answer to a request that a rule decided.
    fn render_ruled(&self, resolved: &Resolved, request: &Request<'_>, out: &mut Rendered) {
        let rule = resolved.rule.filter(|rule| usize::from(*rule) < self.rules.len());
        let Some(decision) = self.ruled(resolved, Now::default()) else { return };
        let denied = decision.verdict == Verdict::Deny;
        let answer = Answer {
            handle: self,
            limits: &[],
            request,
            decision: &decision,
            readings: &[],
            tier: resolved.tier.or_else(|| self.tier_of(request)),
            rule,
        };
        let status = match rule.map(|rule| &self.rules[usize::from(rule)]) {
            Some(rule) if denied => rule.status,
            _ => 200,
        };
        self.write(&answer, status, out);
    }

    /// The decision of the rule that answers a request; `None` if the limits do, which the engine
    /// is asked for.
    #[inline]
    pub fn ruled(&self, resolved: &Resolved, now: Now) -> Option<Decision> {
        let rule = self.rules.get(usize::from(resolved.rule?))?;
        let verdict = match rule.effect {
            RuleEffect::Deny => Verdict::Deny,
            RuleEffect::Bypass => Verdict::Allow,
        };
        Some(Decision { verdict, binding: None, now, permit: None })
    }

    fn write(&self, answer: &Answer<'_>, status: u16, out: &mut Rendered) {
        let verdict = answer.decision.verdict;
        out.begin(status);
        for header in &self.answers.headers {
            out.push_header(|text| {
                header.on(verdict).is_some_and(|value| value.write_header(answer, text))
            });
        }
        if verdict == Verdict::Deny
            && let Some(body) = answer.of_keyed(&self.answers.bodies)
        {
            body.write_json(answer, &mut out.body);
            out.has_body = true;
        }
    }

    /// Writes the answer to a request that cannot be decided: a denial holds the headers whose
    /// values never change and has no body, since there are no figures to tell.
    pub fn render_unavailable(&self, when_unavailable: Unavailable, out: &mut Rendered) {
        let denied = when_unavailable == Unavailable::Deny;
        out.begin(if denied { self.denial_status } else { 200 });
        for header in &self.answers.headers {
            let value = if denied { header.constant_on_denial() } else { None };
            out.push_header(|text| {
                text.push_str(value.unwrap_or_default());
                value.is_some()
            });
        }
    }
}

/// One answer's values for placeholders.
struct Answer<'a> {
    handle: &'a Handle,
    limits: &'a [u16],
    request: &'a Request<'a>,
    decision: &'a Decision,
    readings: &'a [Reading],
    tier: Option<u16>,
    /// The rule that decided.
    rule: Option<u16>,
}

impl<'a> Answer<'a> {
    fn binding_limit(&self) -> Option<&'a Limit> {
        let index = *self.limits.get(self.decision.binding?)?;
        self.handle.limits.get(usize::from(index))
    }

    fn binding_reading(&self) -> Option<&'a Reading> {
        self.readings.get(self.decision.binding?)
    }

    /// Each limit that applies, with its reading.
    fn applying(&self) -> impl Iterator<Item = (&'a Limit, &'a Reading)> {
        let limits = self.limits.iter();
        let limits = limits.filter_map(|index| self.handle.limits.get(usize::from(*index)));
        limits.zip(self.readings)
    }

    /// A limit of the API with its reading, if it applies to this request.
    fn limit(&self, limit: u16) -> Option<(&'a Limit, &'a Reading)> {
        let index = (*self.handle.limit_indexes.get(usize::from(limit))?)?;
        let place = self.limits.iter().position(|known| *known == index)?;
        Some((self.handle.limits.get(usize::from(index))?, self.readings.get(place)?))
    }

    fn reading(&self, limit: u16) -> Option<&'a Reading> {
        self.limit(limit).map(|(_, reading)| reading)
    }

    fn fed(&self, feed: u16) -> Option<(&'a Limit, &'a Reading)> {
        let feeds = self.handle.answers.feeds.get(usize::from(feed))?;
        feeds.iter().find_map(|from| match from {
            Feed::Binding => Some((self.binding_limit()?, self.binding_reading()?)),
            Feed::Limit(limit) => self.limit(*limit),
        })
    }

    /// The text for what denied.
    fn of_keyed(&self, keyed: &'a Keyed) -> Option<&'a Template> {
        let index = match self.rule {
            Some(rule) => *keyed.by_rule.get(usize::from(rule))?,
            None => {
                let index = *self.limits.get(self.decision.binding?)?;
                let indexes = &self.handle.limit_indexes;
                let limit = indexes.iter().position(|known| *known == Some(index))?;
                *keyed.by_limit.get(limit)?
            }
        };
        keyed.templates.get(usize::from(index?))
    }

    /// How long to tell a denied request to wait, if waiting helps.
    fn retry_after(&self) -> Option<Nanos> {
        if self.decision.verdict == Verdict::Allow {
            return None;
        }
        match self.binding_reading()?.retry() {
            Retry::After(span) => Some(span),
            Retry::OnOthers(_) => self.binding_limit()?.retry_after,
            Retry::Now | Retry::Never => None,
        }
    }

    fn tier(&self) -> Option<&'a Tier> {
        self.handle.tiers.get(usize::from(self.tier?))
    }
}

impl Values for Answer<'_> {
    fn write(&self, placeholder: Placeholder, out: &mut impl Write) -> Result<bool, fmt::Error> {
        let now = self.decision.now;
        let (reading, field) = match placeholder {
            Placeholder::BindingName => {
                let rule = self.rule.and_then(|rule| self.handle.rules.get(usize::from(rule)));
                let code = rule.map(|rule| &*rule.code).filter(|code| !code.is_empty());
                return write_text(self.binding_limit().map(|limit| &*limit.name).or(code), out);
            }
            Placeholder::BindingWindow => {
                let window = self.binding_limit().map(|limit| &*limit.window);
                return write_text(window.filter(|window| !window.is_empty()), out);
            }
            Placeholder::RetryAfter => {
                let Some(span) = self.retry_after() else { return Ok(false) };
                write!(out, "{}", span.as_secs_ceil().max(1))?;
                return Ok(true);
            }
            Placeholder::Attribute(index) => {
                let slot = self.handle.attribute_slots.get(usize::from(index)).copied().flatten();
                let Some(value) = slot.and_then(|slot| self.request.value(slot)) else {
                    return Ok(false);
                };
                let value = &value[..value.len().min(super::maxima::VALUE_BYTES_MAX)];
                for chunk in value.utf8_chunks() {
                    out.write_str(chunk.valid())?;
                    if !chunk.invalid().is_empty() {
                        out.write_char(char::REPLACEMENT_CHARACTER)?;
                    }
                }
                return Ok(true);
            }
            Placeholder::Tier => return write_text(self.tier().map(|tier| &*tier.name), out),
            Placeholder::TierName => {
                return write_text(self.tier().map(|tier| &*tier.display), out);
            }
            Placeholder::Text(index) => {
                let keyed = self.handle.answers.texts.get(usize::from(index));
                let Some(text) = keyed.and_then(|keyed| self.of_keyed(keyed)) else {
                    return Ok(false);
                };
                let mut written = String::new();
                text.write_text(self, &mut written);
                out.write_str(&written)?;
                return Ok(true);
            }
            Placeholder::FedName(feed) => {
                return write_text(self.fed(feed).map(|(limit, _)| &*limit.name), out);
            }
            Placeholder::FedItem(feed) => {
                let Some((limit, reading)) = self.fed(feed) else { return Ok(false) };
                return structured::write_item(limit, reading, out);
            }
            Placeholder::Policies(form) => {
                return structured::write_policies(form, self.applying(), out);
            }
            Placeholder::Binding(field) => (self.binding_reading(), field),
            Placeholder::Limit(limit, field) => (self.reading(limit), field),
            Placeholder::Fed(feed, field) => (self.fed(feed).map(|(_, reading)| reading), field),
        };
        match reading {
            Some(reading) => field.write(reading, now, out),
            None => Ok(false),
        }
    }
}

fn write_text(text: Option<&str>, out: &mut impl Write) -> Result<bool, fmt::Error> {
    let Some(text) = text else { return Ok(false) };
    out.write_str(text)?;
    Ok(true)
}

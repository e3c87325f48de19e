//! A decision to what the caller is told: status, headers, body.

use core::fmt::{self, Write};

use crate::engine::decision::{Decision, Reading, Retry, Verdict};

use super::handle::{Handle, Unavailable};
use super::resolve::Request;
use super::template::{Placeholder, Template, Values};

/// What an API answers with: the same for all its handles.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    pub(super) headers: Vec<Header>,
    /// Which limits feed the preset: the first that applies does.
    pub(super) from: Vec<Feed>,
    pub(super) body: Option<Template>,
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
    /// Writes the answer to a request. `limits` are the indexes that [`Handle::resolve`] yielded
    /// for it, `readings` the engine's for its charges.
    pub fn render(
        &self,
        limits: &[u16],
        request: &Request<'_>,
        decision: &Decision,
        readings: &[Reading],
        out: &mut Rendered,
    ) {
        let answer = Answer { handle: self, limits, request, decision, readings };
        out.begin(match decision.verdict {
            Verdict::Allow => 200,
            Verdict::Deny => answer.binding_limit().map_or(self.denial_status, |l| l.status),
        });
        for header in &self.answers.headers {
            out.push_header(|text| {
                header.on(decision.verdict).is_some_and(|value| value.write_header(&answer, text))
            });
        }
        if decision.verdict == Verdict::Deny
            && let Some(body) = &self.answers.body
        {
            body.write_json(&answer, &mut out.body);
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
}

impl<'a> Answer<'a> {
    fn binding_limit(&self) -> Option<&'a super::handle::Limit> {
        let index = *self.limits.get(self.decision.binding?)?;
        self.handle.limits.get(usize::from(index))
    }

    fn binding_reading(&self) -> Option<&'a Reading> {
        self.readings.get(self.decision.binding?)
    }

    /// The reading of a limit of the API, if it applies to this request.
    fn reading(&self, limit: u16) -> Option<&'a Reading> {
        let index = (*self.handle.limit_indexes.get(usize::from(limit))?)?;
        let place = self.limits.iter().position(|known| *known == index)?;
        self.readings.get(place)
    }

    fn fed_reading(&self) -> Option<&'a Reading> {
        self.handle.answers.from.iter().find_map(|from| match from {
            Feed::Binding => self.binding_reading(),
            Feed::Limit(limit) => self.reading(*limit),
        })
    }
}

impl Values for Answer<'_> {
    fn write(&self, placeholder: Placeholder, out: &mut impl Write) -> Result<bool, fmt::Error> {
        let now = self.decision.now;
        let (reading, field) = match placeholder {
            Placeholder::BindingName => {
                return write_text(self.binding_limit().map(|l| &*l.name), out);
            }
            Placeholder::BindingWindow => {
                let window = self.binding_limit().map(|limit| &*limit.window);
                return write_text(window.filter(|window| !window.is_empty()), out);
            }
            Placeholder::RetryAfter => {
                let Some(Retry::After(span)) = self.binding_reading().map(Reading::retry) else {
                    return Ok(false);
                };
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
            Placeholder::Binding(field) => (self.binding_reading(), field),
            Placeholder::Limit(limit, field) => (self.reading(limit), field),
            Placeholder::Fed(field) => (self.fed_reading(), field),
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

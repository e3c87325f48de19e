//! Text with placeholders: header values and JSON bodies.
//!
//! Everything that can be wrong with a template is found when it is read; writing it cannot fail.
//! What stands around the placeholders is sent byte for byte.

use core::fmt::{self, Write};
use core::ops::Range;

use super::code::ErrorCode;
use super::error::{Errors, did_you_mean};
use super::field::Field;
use super::maxima::{
    BODY_BYTES_MAX, HEADER_VALUE_BYTES_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX, VALUE_BYTES_MAX,
};
use super::presets::PolicyForm;
use super::tree::Text;

/// Bytes of the longest value that is not an attribute's: a moment or a name.
const VALUE_PART_BYTES_MAX: usize = NAME_BYTES_MAX;

/// What a placeholder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placeholder {
    /// Name of the limit that binds.
    BindingName,
    /// Its window, if it has one with a name.
    BindingWindow,
    /// One of its figures.
    Binding(Field),
    /// Whole seconds until the same request would pass, at least 1; no value if never.
    RetryAfter,
    /// A value of the request: index among the API's attributes.
    Attribute(u16),
    /// A figure of a limit: index among the API's limits.
    Limit(u16, Field),
    /// A figure of the limit that feeds a header of a preset: index among the answers' feeds.
    Fed(u16, Field),
    /// Its name.
    FedName(u16),
    /// `"name";r=50;t=30` of it.
    FedItem(u16),
    /// Every limit that applies, with its quota and window.
    Policies(PolicyForm),
    /// The customer's tier.
    Tier,
    /// What people call it.
    TierName,
    /// A text of the policy, by its index.
    Text(u16),
}

impl Placeholder {
    fn is_number(self) -> bool {
        match self {
            Self::BindingName
            | Self::BindingWindow
            | Self::Attribute(_)
            | Self::FedName(_)
            | Self::FedItem(_)
            | Self::Policies(_)
            | Self::Tier
            | Self::TierName
            | Self::Text(_) => false,
            Self::RetryAfter => true,
            Self::Binding(field) | Self::Limit(_, field) | Self::Fed(_, field) => field.is_number(),
        }
    }
}

/// A template that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Value { placeholder: Placeholder, place: Place },
}

/// Where a placeholder stands, which decides how its value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Header,
    JsonString,
    JsonBare,
}

/// What placeholders may name.
pub(super) struct Names<'a> {
    /// Name and window of each limit of the API.
    pub(super) limits: &'a [(String, String)],
    /// Attributes of the API; a template adds those that it alone reads.
    pub(super) attributes: &'a mut Vec<String>,
    /// Whether a limit could not be read, so that an unknown name may be its name.
    pub(super) incomplete: bool,
    /// Names of the policy's texts.
    pub(super) texts: &'a [String],
    /// Whether the API has tiers.
    pub(super) has_tiers: bool,
    /// Set where a template shows the customer's tier.
    pub(super) shows_tier: &'a mut bool,
}

impl Template {
    /// The template that is one placeholder alone, in a header.
    pub(super) fn header_value(placeholder: Placeholder) -> Self {
        Self::header_parts([Err(placeholder)])
    }

    /// The header template of texts and placeholders.
    pub(super) fn header_parts(
        parts: impl IntoIterator<Item = Result<&'static str, Placeholder>>,
    ) -> Self {
        let part = |part| match part {
            Ok(text) => Part::Literal(str::to_owned(text)),
            Err(placeholder) => Part::Value { placeholder, place: Place::Header },
        };
        Self { parts: parts.into_iter().map(part).collect() }
    }

    /// Reads a text that headers and bodies may show, which is cut to [`TEXT_BYTES_MAX`].
    pub(super) fn text(text: &Text, names: &mut Names<'_>, errors: &mut Errors) -> Option<Self> {
        let before = errors.len();
        if text.value.len() > TEXT_BYTES_MAX {
            let message =
                format!("a text of {} bytes, allowed are {TEXT_BYTES_MAX}", text.value.len());
            errors.push(ErrorCode::Maximum, text.span, message);
            return None;
        }
        let template = Self::read(text, |_| Place::Header, names, errors);
        (errors.len() == before).then_some(template)
    }

    /// The header template that is this text alone.
    pub(super) fn header_text(text: &str) -> Self {
        Self { parts: vec![Part::Literal(text.to_owned())] }
    }

    /// Reads the value of a header.
    pub(super) fn header(text: &Text, names: &mut Names<'_>, errors: &mut Errors) -> Option<Self> {
        let before = errors.len();
        if let Some(at) = text.value.find(|c: char| !(' '..='~').contains(&c)) {
            let length = text.value[at..].chars().next().map_or(0, char::len_utf8);
            errors.push(
                ErrorCode::Header,
                text.span_of(at..at + length),
                "a header value holds visible ASCII characters and spaces only",
            );
        }
        if text.value.len() > HEADER_VALUE_BYTES_MAX {
            let message = format!(
                "a header value of {} bytes, allowed are {HEADER_VALUE_BYTES_MAX}",
                text.value.len()
            );
            errors.push(ErrorCode::Maximum, text.span, message);
            return None;
        }
        let template = Self::read(text, |_| Place::Header, names, errors);
        (errors.len() == before).then_some(template)
    }

    /// Reads a body, which must be JSON whatever its placeholders hold.
    pub(super) fn json(text: &Text, names: &mut Names<'_>, errors: &mut Errors) -> Option<Self> {
        let before = errors.len();
        let bytes = text.value.len();
        if bytes > BODY_BYTES_MAX {
            let message = format!("a body of {bytes} bytes, allowed are {BODY_BYTES_MAX}");
            errors.push(ErrorCode::Maximum, text.span, message);
            return None;
        }
        let within = within_strings(&text.value);
        let place = |at: usize| if within[at] { Place::JsonString } else { Place::JsonBare };
        let template = Self::read(text, place, names, errors);
        if errors.len() == before {
            check_json(text, &within, errors);
        }
        if errors.len() == before {
            template.check_size(text, errors);
        }
        (errors.len() == before).then_some(template)
    }

    fn read(
        text: &Text,
        place: impl Fn(usize) -> Place,
        names: &mut Names<'_>,
        errors: &mut Errors,
    ) -> Self {
        let mut parts = Vec::new();
        let mut literal_from = 0;
        for found in placeholders(&text.value) {
            let Some(inner) = found.inner else {
                errors.push(
                    ErrorCode::UnclosedPlaceholder,
                    text.span_of(found.range),
                    "`{` opens a placeholder that never ends",
                );
                break;
            };
            parts.push(Part::Literal(text.value[literal_from..found.range.start].to_owned()));
            literal_from = found.range.end;
            let place = place(found.range.start);
            match resolve(inner, names) {
                Ok(placeholder) => {
                    if place == Place::JsonBare && !placeholder.is_number() {
                        errors.push_with_help(
                            ErrorCode::UnquotedText,
                            text.span_of(found.range),
                            format!("`{{{inner}}}` is text, and stands outside quotes"),
                            format!("write \"{{{inner}}}\""),
                        );
                    }
                    parts.push(Part::Value { placeholder, place });
                }
                Err((message, help)) => match help {
                    Some(help) => {
                        errors.push_with_help(
                            ErrorCode::Template,
                            text.span_of(found.range),
                            message,
                            help,
                        );
                    }
                    None => errors.push(ErrorCode::Template, text.span_of(found.range), message),
                },
            }
        }
        parts.push(Part::Literal(text.value[literal_from..].to_owned()));
        parts.retain(|part| !matches!(part, Part::Literal(literal) if literal.is_empty()));
        Self { parts }
    }

    fn check_size(&self, text: &Text, errors: &mut Errors) {
        let bytes: usize = self
            .parts
            .iter()
            .map(|part| match part {
                Part::Literal(literal) => literal.len(),
                // A byte of an attribute may come out as an escape of six.
                Part::Value { placeholder: Placeholder::Attribute(_), .. } => 6 * VALUE_BYTES_MAX,
                Part::Value {
                    placeholder: Placeholder::Text(_) | Placeholder::TierName, ..
                } => 6 * TEXT_BYTES_MAX,
                Part::Value { .. } => VALUE_PART_BYTES_MAX,
            })
            .sum();
        if bytes > BODY_BYTES_MAX {
            let message = format!("a body of up to {bytes} bytes, allowed are {BODY_BYTES_MAX}");
            errors.push(ErrorCode::Maximum, text.span, message);
        }
    }

    /// The text, if there are no placeholders in it.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(literal)] => Some(literal),
            _ => None,
        }
    }

    /// Attributes that the template shows.
    pub(super) fn attributes(&self) -> impl Iterator<Item = u16> {
        self.parts.iter().filter_map(|part| match part {
            Part::Value { placeholder: Placeholder::Attribute(index), .. } => Some(*index),
            _ => None,
        })
    }

    /// Writes a header's value; `false`, with nothing written, if a placeholder has none.
    pub(super) fn write_header(&self, values: &impl Values, out: &mut String) -> bool {
        let start = out.len();
        for part in &self.parts {
            let written = match part {
                Part::Literal(literal) => out.write_str(literal).map(|()| true),
                Part::Value { placeholder, .. } => values.write(*placeholder, &mut HeaderText(out)),
            };
            if !written.unwrap_or(false) {
                out.truncate(start);
                return false;
            }
        }
        // Only ASCII was written, so every place is between characters.
        out.truncate(out.len().min(start + HEADER_VALUE_BYTES_MAX));
        true
    }

    /// Writes a text; a placeholder without a value is empty.
    pub(super) fn write_text(&self, values: &impl Values, out: &mut String) {
        let start = out.len();
        for part in &self.parts {
            // A `String` takes all that is written.
            let _ = match part {
                Part::Literal(literal) => out.write_str(literal).map(|()| true),
                Part::Value { placeholder, .. } => values.write(*placeholder, out),
            };
        }
        let mut end = out.len().min(start + TEXT_BYTES_MAX);
        while !out.is_char_boundary(end) {
            end -= 1;
        }
        out.truncate(end);
    }

    /// Writes a body.
    pub(super) fn write_json(&self, values: &impl Values, out: &mut String) {
        for part in &self.parts {
            match part {
                Part::Literal(literal) => out.push_str(literal),
                Part::Value { placeholder, place: Place::JsonBare } => {
                    if !values.write(*placeholder, out).unwrap_or(false) {
                        out.push_str("null");
                    }
                }
                Part::Value { placeholder, .. } => {
                    // Without a value the string is empty. A `String` takes all that is written.
                    let _ = values.write(*placeholder, &mut JsonText(out));
                }
            }
        }
    }
}

/// Gives placeholders their values.
pub(super) trait Values {
    /// Writes the value; `false` if there is none.
    fn write(&self, placeholder: Placeholder, out: &mut impl Write) -> Result<bool, fmt::Error>;
}

/// Writes into a header: what is no visible ASCII character becomes `?`.
struct HeaderText<'a>(&'a mut String);

impl Write for HeaderText<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let visible = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
        self.0.extend(text.chars().map(visible));
        Ok(())
    }
}

/// Writes into a JSON string: escapes what would end or break it.
struct JsonText<'a>(&'a mut String);

impl Write for JsonText<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                '\n' => self.0.push_str("\\n"),
                '\r' => self.0.push_str("\\r"),
                '\t' => self.0.push_str("\\t"),
                c if c < ' ' || c == '\u{7f}' => write!(self.0, "\\u{:04x}", u32::from(c))?,
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

struct Found<'t> {
    range: Range<usize>,
    /// `None` if the placeholder never ends.
    inner: Option<&'t str>,
}

/// Every `{` that a letter follows directly, up to its `}`.
fn placeholders(text: &str) -> impl Iterator<Item = Found<'_>> {
    let mut from = 0;
    core::iter::from_fn(move || {
        let bytes = text.as_bytes();
        let opens =
            |at: usize| bytes[at] == b'{' && bytes.get(at + 1).is_some_and(u8::is_ascii_alphabetic);
        let start = (from..bytes.len()).find(|at| opens(*at))?;
        let of_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
        let length = bytes[start + 1..].iter().take_while(|byte| of_name(byte)).count();
        let end = start + 1 + length;
        if bytes.get(end) == Some(&b'}') {
            from = end + 1;
            return Some(Found { range: start..from, inner: Some(&text[start + 1..end]) });
        }
        from = end;
        Some(Found { range: start..end, inner: None })
    })
}

type Problem = (String, Option<String>);

fn resolve(inner: &str, names: &mut Names<'_>) -> Result<Placeholder, Problem> {
    let parts: Vec<&str> = inner.split('.').collect();
    match parts.as_slice() {
        ["retry_after"] => Ok(Placeholder::RetryAfter),
        ["binding", "name"] => Ok(Placeholder::BindingName),
        ["binding", "window"] => Ok(Placeholder::BindingWindow),
        ["binding", field] => Ok(Placeholder::Binding(named_field(field, ["name", "window"])?)),
        ["attr", name] => attribute(name, names),
        ["tier", ..] if !names.has_tiers => {
            let help = "name them: `tiers = [\"free\", …]`".to_owned();
            Err(("the API has no tiers".to_owned(), Some(help)))
        }
        ["tier"] => {
            *names.shows_tier = true;
            Ok(Placeholder::Tier)
        }
        ["tier", "name"] => {
            *names.shows_tier = true;
            Ok(Placeholder::TierName)
        }
        ["text", name] => match names.texts.iter().position(|known| known == name) {
            Some(index) => Ok(Placeholder::Text(index as u16)),
            None => {
                let known = || names.texts.iter().map(String::as_str);
                let help = did_you_mean(name, known()).unwrap_or_else(|| {
                    match known().collect::<Vec<_>>().as_slice() {
                        [] => "texts are written as `text.NAME = …`, and show no others".to_owned(),
                        texts => format!("texts are {}", texts.join(", ")),
                    }
                });
                Err((format!("unknown text `{name}`"), Some(help)))
            }
        },
        [limit, window, field] => {
            let limit = limit_named(limit, Some(window), names)?;
            Ok(Placeholder::Limit(limit, named_field(field, [])?))
        }
        [limit, field] => {
            let limit = limit_named(limit, None, names)?;
            Ok(Placeholder::Limit(limit, named_field(field, [])?))
        }
        _ => {
            let words = ["retry_after", "binding", "attr", "tier", "text"];
            let help = did_you_mean(inner, words).unwrap_or_else(|| {
                "known are retry_after, binding.…, attr.…, tier, text.… and the limits".to_owned()
            });
            Err((format!("unknown placeholder `{{{inner}}}`"), Some(help)))
        }
    }
}

fn named_field<const N: usize>(name: &str, more: [&'static str; N]) -> Result<Field, Problem> {
    Field::named(name).ok_or_else(|| {
        let known = || Field::NAMES.into_iter().chain(more);
        let help = did_you_mean(name, known())
            .unwrap_or_else(|| format!("fields are {}", known().collect::<Vec<_>>().join(", ")));
        (format!("unknown field `{name}`"), Some(help))
    })
}

fn attribute(name: &str, names: &mut Names<'_>) -> Result<Placeholder, Problem> {
    if !is_name(name) {
        return Err((format!("`{name}` is no name of an attribute"), None));
    }
    if matches!(name, "method" | "path") {
        return Err((format!("`{name}` is not shown in answers"), None));
    }
    let known = names.attributes.iter().position(|known| known == name);
    let index = known.unwrap_or_else(|| {
        names.attributes.push(name.to_owned());
        names.attributes.len() - 1
    });
    Ok(Placeholder::Attribute(index as u16))
}

/// Which limit a name in a template or in `from` means: `LIMIT`, `LIMIT.WINDOW`, or `WINDOW` where
/// only one limit has such a window.
pub(super) fn limit_named(
    name: &str,
    window: Option<&str>,
    names: &Names<'_>,
) -> Result<u16, Problem> {
    find_limit(name, window, names).or_else(|problem| match names.incomplete {
        true => Ok(0),
        false => Err(problem),
    })
}

fn find_limit(name: &str, window: Option<&str>, names: &Names<'_>) -> Result<u16, Problem> {
    let of_name: Vec<usize> =
        (0..names.limits.len()).filter(|index| names.limits[*index].0 == name).collect();
    if let Some(window) = window {
        let found = of_name.iter().find(|index| names.limits[**index].1 == window);
        return match found {
            Some(index) => Ok(*index as u16),
            None if of_name.is_empty() => Err(unknown_limit(name, names)),
            None => {
                let windows: Vec<&str> =
                    of_name.iter().map(|index| names.limits[*index].1.as_str()).collect();
                let help = if windows == [""] {
                    format!("`{name}` has no windows")
                } else {
                    format!("its windows are {}", windows.join(", "))
                };
                Err((format!("limit `{name}` has no window `{window}`"), Some(help)))
            }
        };
    }
    match of_name.as_slice() {
        [index] => Ok(*index as u16),
        [first, ..] => {
            let window = &names.limits[*first].1;
            Err((
                format!("limit `{name}` has several windows"),
                Some(format!("say which, as in `{name}.{window}`")),
            ))
        }
        [] => {
            let mut of_window =
                (0..names.limits.len()).filter(|index| names.limits[*index].1 == name);
            match (of_window.next(), of_window.next()) {
                (Some(index), None) => Ok(index as u16),
                (Some(_), Some(_)) => {
                    let message = format!("several limits have a window `{name}`");
                    Err((message, Some(format!("say which, as in `LIMIT.{name}`"))))
                }
                (None, _) => Err(unknown_limit(name, names)),
            }
        }
    }
}

fn unknown_limit(name: &str, names: &Names<'_>) -> Problem {
    let limits = names.limits.iter().map(|(limit, _)| limit.as_str());
    let known = limits.clone().chain(["binding", "attr", "retry_after"]);
    let help = did_you_mean(name, known).or_else(|| {
        let mut limits: Vec<&str> = limits.collect();
        limits.dedup();
        (!limits.is_empty()).then(|| format!("limits are {}", limits.join(", ")))
    });
    (format!("unknown limit `{name}`"), help)
}

/// Whether a text may name an API, a class, a limit, an attribute or a meter.
pub(super) fn is_name(text: &str) -> bool {
    let first = text.bytes().next();
    text.len() <= NAME_BYTES_MAX
        && first.is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// For each byte of a JSON text, whether it stands within a string.
fn within_strings(text: &str) -> Vec<bool> {
    let (mut within, mut escaped) = (false, false);
    text.bytes()
        .map(|byte| {
            let was = within;
            match byte {
                _ if escaped => escaped = false,
                b'\\' if within => escaped = true,
                b'"' => within = !within,
                _ => {}
            }
            was
        })
        .collect()
}

/// Checks the text with a stand-in of the same length for each placeholder.
fn check_json(text: &Text, within: &[bool], errors: &mut Errors) {
    let mut filled = text.value.clone().into_bytes();
    for found in placeholders(&text.value) {
        let stand_in = if within[found.range.start] { b'x' } else { b'1' };
        if stand_in == b'1' {
            let neighbour = |at: Option<usize>| {
                let byte = at.and_then(|at| text.value.as_bytes().get(at));
                byte.is_none_or(|byte| b" \t\r\n:,[]{}".contains(byte))
            };
            if !neighbour(found.range.start.checked_sub(1)) || !neighbour(Some(found.range.end)) {
                let message = "outside quotes a placeholder is a whole value";
                errors.push(ErrorCode::Template, text.span_of(found.range.clone()), message);
                return;
            }
        }
        filled[found.range].fill(stand_in);
    }
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&filled) {
        let line_start: usize = text
            .value
            .split_inclusive('\n')
            .take(error.line().saturating_sub(1))
            .map(str::len)
            .sum();
        let at = (line_start + error.column().saturating_sub(1)).min(text.value.len());
        let mut end = (at + 1).min(text.value.len());
        while !text.value.is_char_boundary(end) {
            end += 1;
        }
        let message = error.to_string();
        let message = message.split(" at line").next().unwrap_or_default();
        errors.push(
            ErrorCode::Json,
            text.span_of(at.min(end)..end),
            format!("not JSON: {message}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tree::{self, Value};
    use super::*;

    fn text(value: &str) -> Text {
        let quoted = serde_json::to_string(value).unwrap().replace('\u{7f}', "\\u007f");
        let table = tree::read(0, &format!("k = {quoted}"), &mut Errors::default()).unwrap();
        match &table.entries[0].node.value {
            Value::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn limits() -> Vec<(String, String)> {
        [("calls", "minute"), ("calls", "day"), ("images_post", ""), ("login", "hour")]
            .map(|(name, window)| (name.to_owned(), window.to_owned()))
            .to_vec()
    }

    fn problems(errors: Errors) -> Vec<String> {
        match errors.finish([("t", "")].into_iter()) {
            Ok(()) => Vec::new(),
            Err(errors) => errors.iter().map(|error| error.message.clone()).collect(),
        }
    }

    fn read_json(value: &str) -> Result<Template, Vec<String>> {
        let mut errors = Errors::default();
        let mut names = Names {
            limits: &limits(),
            attributes: &mut Vec::new(),
            incomplete: false,
            texts: &["type".to_owned()],
            has_tiers: false,
            shows_tier: &mut false,
        };
        let template = Template::json(&text(value), &mut names, &mut errors);
        template.ok_or_else(|| problems(errors))
    }

    fn read_header(value: &str) -> Result<Template, Vec<String>> {
        let mut errors = Errors::default();
        let mut names = Names {
            limits: &limits(),
            attributes: &mut Vec::new(),
            incomplete: false,
            texts: &["type".to_owned()],
            has_tiers: false,
            shows_tier: &mut false,
        };
        let template = Template::header(&text(value), &mut names, &mut errors);
        template.ok_or_else(|| problems(errors))
    }

    /// Every text is this one, every number 7, but for a limit's figures, which have no value.
    struct Fixed<'a>(&'a str);

    impl Values for Fixed<'_> {
        fn write(
            &self,
            placeholder: Placeholder,
            out: &mut impl Write,
        ) -> Result<bool, fmt::Error> {
            match placeholder {
                Placeholder::Limit(..) => return Ok(false),
                placeholder if placeholder.is_number() => out.write_char('7')?,
                _ => out.write_str(self.0)?,
            }
            Ok(true)
        }
    }

    #[test]
    fn a_body_keeps_every_byte_around_its_placeholders() {
        let body = r#"{ "a":  {"b": "x{binding.name}y", "c": {retry_after} }, "d": {login.used}, "e": "{}" }"#;
        let mut out = String::new();
        read_json(body).unwrap().write_json(&Fixed("\"\\\n\u{1}é"), &mut out);
        assert_eq!(out, r#"{ "a":  {"b": "x\"\\\n\u0001éy", "c": 7 }, "d": null, "e": "{}" }"#);
    }

    #[test]
    fn a_header_without_a_value_is_left_out_and_one_with_odd_bytes_is_cleaned() {
        let mut out = String::from("before");
        assert!(!read_header("a {calls.minute.limit}").unwrap().write_header(&Fixed(""), &mut out));
        assert_eq!(out, "before");
        let header = read_header("{attr.x} of {retry_after}").unwrap();
        assert!(header.write_header(&Fixed("a\r\nb\u{e9}"), &mut out));
        assert_eq!(out, "beforea??b? of 7");
        out.clear();
        assert!(header.write_header(&Fixed(&"x".repeat(5000)), &mut out));
        assert_eq!(out.len(), HEADER_VALUE_BYTES_MAX);
    }

    #[test]
    fn template_typos_are_found_when_read() {
        for (body, message) in [
            (r#"{ "a": "{binding.nmae}" }"#, "unknown field `nmae`"),
            (r#"{ "a": "{bindings.name}" }"#, "unknown limit `bindings`"),
            (r#"{ "a": "{retry_afer}" }"#, "unknown placeholder `{retry_afer}`"),
            (r#"{ "a": "{binding.name" }"#, "`{` opens a placeholder that never ends"),
            (r#"{ "a": {binding.name} }"#, "`{binding.name}` is text, and stands outside quotes"),
            (r#"{ "a": 1{retry_after} }"#, "outside quotes a placeholder is a whole value"),
            (r#"{ "a": "{tier}" }"#, "the API has no tiers"),
            (r#"{ "a": "{text.tpye}" }"#, "unknown text `tpye`"),
            (r#"{ "a": {text.type} }"#, "`{text.type}` is text, and stands outside quotes"),
            (r#"{ "a": "{calls.limit}" }"#, "limit `calls` has several windows"),
            (r#"{ "a": "{calls.week.limit}" }"#, "limit `calls` has no window `week`"),
            (r#"{ "a": 1, }"#, "not JSON: key must be a string"),
            (r#"{ "a": 1 } x"#, "not JSON: trailing characters"),
            (r#"{ {retry_after}: 1 }"#, "not JSON: key must be a string"),
            ("", "not JSON: EOF while parsing a value"),
        ] {
            assert_eq!(read_json(body).unwrap_err(), [message], "{body}");
        }
        assert!(
            read_json(r#""{day.limit} {hour.used} {login.used} {images_post.next_go}""#).is_ok()
        );
        assert!(read_header("é").is_err());
        let body = format!("\"{}\"", "{attr.x}".repeat(11));
        assert!(read_json(&body).unwrap_err()[0].starts_with("a body of up to"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn no_template_panics_and_what_passes_is_json(
            body in r#"([{}\[\]":, \\é]|\{retry_after\}|"\{attr\.x\}"|\{binding\.name\}|1|a\.){0,12}"#,
            value in ".{0,8}",
        ) {
            let _ = read_header(&body);
            if let Ok(template) = read_json(&body) {
                let mut out = String::new();
                template.write_json(&Fixed(&value), &mut out);
                prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&out).is_ok(), "{}", out);
            }
        }

        #[test]
        fn any_value_within_quotes_reads_back(value in any::<String>()) {
            let mut out = String::new();
            read_json(r#""{attr.x}""#).unwrap().write_json(&Fixed(&value), &mut out);
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), value);
        }
    }
}

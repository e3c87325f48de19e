//! What is wrong with a policy, shown where it is wrong.
//!
//! All problems of all texts are gathered and told at once. This is the one file that knows
//! `annotate-snippets`.

use core::fmt;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};

use super::code::ErrorCode;
use super::maxima::ERRORS_MAX;

/// The longest line that is shown; of a longer one only its place is told.
const LINE_BYTES_MAX: usize = 4096;

/// A stretch of one source's text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) source: u32,
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    pub(super) fn new(source: usize, range: core::ops::Range<usize>) -> Self {
        Self { source: source as u32, start: range.start as u32, end: range.end as u32 }
    }
}

/// One problem of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    span: Span,
    /// Which sort of problem it is.
    pub code: ErrorCode,
    /// Name of the source, as it was given.
    pub source: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was found and what is allowed.
    pub message: String,
    /// How to put it right, where that is known.
    pub help: Option<String>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, line, column, message, .. } = self;
        write!(f, "{source}:{line}:{column}: {message}")
    }
}

/// All problems of a policy that did not load, in the order of the text. There is at least one.
#[derive(Clone, Debug)]
pub struct LoadErrors {
    sources: Vec<(String, String)>,
    errors: Vec<LoadError>,
    left_out: usize,
}

impl LoadErrors {
    /// Each problem.
    pub fn iter(&self) -> impl Iterator<Item = &LoadError> {
        self.errors.iter()
    }

    /// Each problem with its line of source and a caret under it, without colour.
    pub fn render_plain(&self) -> String {
        self.render(&Renderer::plain())
    }

    /// As [`LoadErrors::render_plain`], with terminal colours.
    pub fn render_colored(&self) -> String {
        self.render(&Renderer::styled())
    }

    fn render(&self, renderer: &Renderer) -> String {
        let mut out = String::new();
        for error in &self.errors {
            let (name, text) = &self.sources[error.span.source as usize];
            let title = Level::ERROR.primary_title(error.message.as_str()).id(error.code.name());
            let (line, range) = line_and_range(text, error.span);
            let mut group = if line.len() <= LINE_BYTES_MAX {
                let caret = AnnotationKind::Primary.span(range);
                let snippet = Snippet::source(line).line_start(error.line).path(name.as_str());
                title.element(snippet.annotation(caret))
            } else {
                let origin = Origin::path(name.as_str()).line(error.line);
                title.element(origin.char_column(error.column))
            };
            if let Some(help) = &error.help {
                group = group.element(Level::HELP.message(help.as_str()));
            }
            out.push_str(&renderer.render(&[group]));
            out.push_str("\n\n");
        }
        match (self.errors.len(), self.left_out) {
            (1, 0) => out.push_str("1 error in the policy\n"),
            (n, 0) => out.push_str(&format!("{n} errors in the policy\n")),
            (n, more) => out.push_str(&format!("{n} errors in the policy, and {more} more\n")),
        }
        out
    }
}

impl fmt::Display for LoadErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render_plain())
    }
}

impl core::error::Error for LoadErrors {}

/// Gathers problems while a policy is read.
#[derive(Debug, Default)]
pub(super) struct Errors {
    list: Vec<(Span, ErrorCode, String, Option<String>)>,
}

impl Errors {
    /// Notes a problem.
    pub(super) fn push(&mut self, code: ErrorCode, span: Span, message: impl Into<String>) {
        self.list.push((span, code, message.into(), None));
    }

    /// Notes a problem and how to put it right.
    pub(super) fn push_with_help(
        &mut self,
        code: ErrorCode,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.list.push((span, code, message.into(), Some(help.into())));
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// `Ok` if nothing was noted.
    pub(super) fn finish<'a>(
        self,
        sources: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), LoadErrors> {
        if self.list.is_empty() {
            return Ok(());
        }
        let sources: Vec<(String, String)> =
            sources.map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        let mut list = self.list;
        list.sort_by_key(|(span, ..)| (span.source, span.start, span.end));
        list.dedup();
        let left_out = list.len().saturating_sub(ERRORS_MAX);
        list.truncate(ERRORS_MAX);
        let errors = list
            .into_iter()
            .map(|(span, code, message, help)| {
                let (name, text) = &sources[span.source as usize];
                let (line, column) = line_and_column(text, span.start as usize);
                LoadError { span, code, source: name.clone(), line, column, message, help }
            })
            .collect();
        Err(LoadErrors { sources, errors, left_out })
    }
}

/// Line and column of a byte, both from 1, the column in characters.
pub(super) fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let at = floor_boundary(text, at);
    let before = &text[..at];
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (line, before[start..].chars().count() + 1)
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The line on which a span begins, and the part of that line which it covers: a caret under many
/// lines hides what it points at.
fn line_and_range(text: &str, span: Span) -> (&str, core::ops::Range<usize>) {
    let start = floor_boundary(text, span.start as usize);
    let end = floor_boundary(text, span.end as usize).max(start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |length| start + length);
    let range = start - line_start..end.min(line_end) - line_start;
    (&text[line_start..line_end], range)
}

/// A question for the candidate nearest to `found`, if one is near at all.
pub(crate) fn did_you_mean<'a>(
    found: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let near = (found.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (distance(found, candidate), candidate))
        .filter(|(distance, _)| *distance <= near)
        .min()
        .map(|(_, candidate)| format!("did you mean `{candidate}`?"))
}

/// Edits between two words: insert, remove, replace, or swap of two neighbours.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().flat_map(char::to_lowercase).collect();
    if a.len().abs_diff(b.len()) > 3 {
        return usize::MAX;
    }
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = core::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let words = ["bucket", "fixed", "burst"];
        assert_eq!(did_you_mean("buckte", words).unwrap(), "did you mean `bucket`?");
        assert_eq!(did_you_mean("Fixed", words).unwrap(), "did you mean `fixed`?");
        assert_eq!(did_you_mean("headers", words), None);
        assert_eq!(did_you_mean("", words), None);
    }

    #[test]
    fn a_problem_shows_its_line_and_a_caret() {
        let text = "schema = 1\nlimitz = 2\n";
        let mut errors = Errors::default();
        errors.push_with_help(
            ErrorCode::UnknownKey,
            Span::new(0, 11..17),
            "unknown key `limitz`",
            "help text",
        );
        let errors = errors.finish([("a.toml", text)].into_iter()).unwrap_err();
        let shown = errors.to_string();
        assert!(shown.contains("a.toml:2:1"), "{shown}");
        assert!(shown.contains("limitz = 2"), "{shown}");
        assert!(shown.contains("^^^^^^"), "{shown}");
        assert!(shown.contains("help text"), "{shown}");
        assert_eq!(errors.iter().next().unwrap().to_string(), "a.toml:2:1: unknown key `limitz`");
    }

    #[test]
    fn a_span_within_a_character_or_past_the_end_is_shown_too() {
        let text = "é = 'ü'";
        for start in 0..12 {
            for end in start..14 {
                let mut errors = Errors::default();
                errors.push(ErrorCode::Syntax, Span::new(0, start..end), "x");
                errors.finish([("a", text)].into_iter()).unwrap_err().render_colored();
            }
        }
    }
}

//! Others' rules as policies: text in, our text and a report of what has no equal out.

mod names;

mod yaml;

mod envoy;

use core::fmt;

pub use envoy::envoy;
pub use names::attribute_name;

/// A policy that others' rules became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Its text.
    pub policy: String,
    /// What of the rules has no equal, or means something else.
    pub notes: Vec<Note>,
}

/// What is to be said of a line of others' rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// From 1.
    pub line: usize,
    /// Words for people.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.text)
    }
}

impl core::error::Error for Note {}

//! MEANING. Text becomes typed policy, typed policy flat tables; a request becomes a resolved
//! check; a decision becomes headers and a body.
//!
//! Owns the policy language (`LANGUAGE.md` beside this file is its reference). It reads no file,
//! clock or random number, logs nothing and awaits nothing: text comes in, and no text, request or
//! decision makes it panic. It decides nothing; that is the engine's.
//!
//! A caller compiles sources with [`Policy::compile`], picks a [`Handle`], and for each request
//! calls [`Handle::resolve`], asks the engine, and calls [`Handle::render`] if it wants the answer
//! in HTTP's terms.

pub mod maxima;

mod code;

mod error;
mod tree;

mod quota_text;

mod route;

mod short;

mod address;

mod facts;

mod matcher;

mod values;

mod moment;

mod calendar;

mod key;

mod field;

mod template;

mod presets;

mod structured;

mod parse;

mod fingerprint;

mod compile;

mod reach;

mod ready;

mod handle;

mod subject;

mod overrides;

mod by_hand;

mod resolve;

mod explain;

mod usage;

mod answer;

mod script;

mod describe;

mod diff;

mod numbers;

pub mod import;

#[cfg(test)]
mod examples;

#[cfg(test)]
mod cookbook;

pub use answer::Rendered;
pub use by_hand::{ByHand, SetCounter, SetCounters};
pub use code::ErrorCode;
pub use diff::{Change, Fate, diff};
pub(crate) use error::did_you_mean;
pub use error::{LoadError, LoadErrors};
pub use explain::{Explained, Explanation, Taken, moment_of, moment_text};
pub use handle::{Handle, Limit, Mode, One, Rule, RuleEffect, Slot, SlotUse, Unavailable};
pub use numbers::{Numbered, Numbers, RuleNumbers, RunOut};
pub use overrides::{Override, OverrideRecord, OverrideText, Overrides};
pub use resolve::{Context, Found, Part, Request, ResolveError, Resolved, Scratch};
pub use script::{Failure, Test, TestOutcome, TestReport, render_report};
pub(crate) use structured::window_secs;
pub use subject::{Account, Identities, Identity, TooMany};
pub use usage::{Unknown, Usage, Use};

use crate::engine::command::LimitId;
use crate::engine::key::Seed;
use crate::engine::quota::Kind;

/// A span of time as policies write it, such as `90s` or `2min`.
///
/// # Errors
/// What is wrong with the text, for people.
pub(crate) fn span(text: &str) -> Result<crate::engine::time::Nanos, String> {
    quota_text::span(text).map_err(|error| error.message)
}

/// A quota as a limit's text could say it: `1/s burst 120`, a bucket's rate in lowest terms.
pub(crate) fn quota_written(quota: &crate::engine::quota::Quota) -> String {
    quota_text::written(quota)
}

/// One text of a policy.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// How errors call it: a path, as the operator gave it.
    pub name: &'a str,
    /// TOML.
    pub text: &'a str,
}

/// The policy that is in force where none is given: the example `media`.
pub const BUILT_IN: Source<'static> =
    Source { name: "media", text: include_str!("../../examples/policies/media.toml") };

/// A compiled policy: what all its sources say, as flat tables.
#[derive(Debug)]
pub struct Policy {
    version: u64,
    /// By name: each API, followed by its classes.
    handles: Vec<Handle>,
    /// For each number from 1 the index of its handle; [`NO_PLACE`] where there is none.
    places: Vec<u16>,
    /// By name.
    limits: Vec<LimitInfo>,
    tests: Vec<Test>,
}

/// The place of a handle that is not there.
const NO_PLACE: u16 = u16::MAX;

/// A limit as the table and metrics know it, each window by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitInfo {
    /// Its number in this policy.
    pub id: LimitId,
    /// Name of its API.
    pub api: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Name of the window; empty for a bucket.
    pub window: Box<str>,
    /// Which kind it is.
    pub kind: Kind,
    /// Whether it is in force.
    pub mode: Mode,
    /// Most counters it may have; `None`: only the table's own cap holds.
    pub keys_max: Option<u64>,
}

impl Policy {
    /// Compiles all `sources` into one policy. Keys derive from `seed`.
    ///
    /// # Errors
    /// All that is wrong with the sources.
    pub fn compile(sources: &[Source<'_>], seed: &Seed) -> Result<Self, LoadErrors> {
        compile::compile(sources, seed)
    }

    /// A hash of the texts, the same on every machine; never 0.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The version of a policy of these texts.
    pub fn version_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> u64 {
        compile::version(texts)
    }

    /// Every handle: each API, followed by its classes.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// The handle of that number.
    #[inline]
    pub fn handle(&self, number: u32) -> Option<&Handle> {
        let place = *self.places.get((number as usize).checked_sub(1)?)?;
        self.handles.get(usize::from(place))
    }

    /// Notes which handle has which number.
    fn find_places(&mut self) {
        let last = self.handles.iter().map(|handle| handle.number as usize).max();
        self.places = vec![NO_PLACE; last.unwrap_or_default()];
        for (index, handle) in self.handles.iter().enumerate() {
            self.places[handle.number as usize - 1] = index as u16;
        }
    }

    /// The handle of an API, or of one of its classes.
    pub fn handle_of(&self, api: &str, class: Option<&str>) -> Option<&Handle> {
        self.handles.iter().find(|handle| handle.api() == api && handle.class() == class)
    }

    /// Names of the APIs.
    pub fn apis(&self) -> impl Iterator<Item = &str> {
        self.handles.iter().filter(|handle| handle.class().is_none()).map(Handle::api)
    }

    /// Names of the classes of an API.
    pub fn classes<'a>(&'a self, api: &'a str) -> impl Iterator<Item = &'a str> {
        self.handles.iter().filter(move |handle| handle.api() == api).filter_map(Handle::class)
    }

    /// Every limit, by name.
    pub fn limits(&self) -> &[LimitInfo] {
        &self.limits
    }

    /// The limit of that number; `None` for inline limits, too.
    pub fn limit(&self, id: LimitId) -> Option<&LimitInfo> {
        self.limits.iter().find(|limit| limit.id == id)
    }

    /// The tests that the sources contain.
    pub fn tests(&self) -> &[Test] {
        &self.tests
    }
}

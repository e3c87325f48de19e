//! A policy in a few lines, for people.

use core::fmt::Write;

use super::handle::{Handle, Mode};
use super::{LimitInfo, Policy};

impl Policy {
    /// One line for each API: how much of what it has.
    pub fn summary(&self) -> String {
        let mut out = String::new();
        for handle in self.handles().iter().filter(|handle| handle.class().is_none()) {
            // A `String` takes all that is written.
            let _ = self.write_summary(handle, &mut out);
        }
        out
    }

    fn write_summary(&self, handle: &Handle, out: &mut String) -> core::fmt::Result {
        let limits = || self.limits().iter().filter(|limit| *limit.api == *handle.api());
        let names = |mode: Mode| names(limits().filter(|limit| limit.mode == mode));
        let (enforced, shadow, off) = (names(Mode::Enforce), names(Mode::Shadow), names(Mode::Off));
        let tests = self.tests().iter().filter(|test| test.api() == handle.api()).count();
        write!(out, "{}: {}", handle.api(), count(self.classes(handle.api()).count(), "class"))?;
        write!(out, ", {}", count(enforced + shadow + off, "limit"))?;
        match (shadow, off) {
            (0, 0) => {}
            (0, off) => write!(out, " ({off} off)")?,
            (shadow, 0) => write!(out, " ({shadow} shadow)")?,
            (shadow, off) => write!(out, " ({shadow} shadow, {off} off)")?,
        }
        writeln!(out, ", {}", count(tests, "test"))
    }
}

/// Limits, however many windows each has.
fn names<'a>(limits: impl Iterator<Item = &'a LimitInfo>) -> usize {
    let mut names: Vec<&str> = limits.map(|limit| &*limit.name).collect();
    names.dedup();
    names.len()
}

fn count(number: usize, thing: &str) -> String {
    let plural = match (number, thing.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{number} {thing}{plural}")
}

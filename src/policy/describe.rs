//! A policy in a few lines, for people.

use core::fmt::Write;

use super::handle::{Handle, Mode, RuleEffect};
use super::{LimitInfo, Policy, diff};

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

    /// Everything that the policy resolved to: tiers, rules, limits with the numbers that they can
    /// have, and what each handle takes.
    pub fn show(&self) -> String {
        let mut out = String::new();
        for handle in self.handles().iter().filter(|handle| handle.class().is_none()) {
            // A `String` takes all that is written.
            let _ = self.write_api(handle, &mut out);
        }
        out
    }

    fn write_api(&self, handle: &Handle, out: &mut String) -> core::fmt::Result {
        let api = handle.api();
        writeln!(out, "api {api}")?;
        if !handle.tiers.is_empty() {
            let tiers: Vec<&str> = handle.tiers.iter().map(|tier| &*tier.name).collect();
            writeln!(out, "  tiers   {}", tiers.join(", "))?;
        }
        for rule in handle.rules() {
            match rule.effect {
                RuleEffect::Deny => write!(out, "  deny    {}", rule.status)?,
                RuleEffect::Bypass => write!(out, "  bypass ")?,
            }
            writeln!(out, " {}", rule.code)?;
        }
        for limit in handle.limits() {
            write!(out, "  limit   {}", limit.name)?;
            if !limit.window.is_empty() {
                write!(out, ".{}", limit.window)?;
            }
            write!(out, "  {} {}", limit.kind().name(), diff::numbers(limit))?;
            if !limit.per_names.is_empty() {
                write!(out, "  per {}", limit.per_names.join(", "))?;
            }
            if let Some(meter) = handle.meters().get(usize::from(limit.meter)) {
                write!(out, "  of {meter}")?;
            }
            match limit.mode {
                Mode::Enforce => writeln!(out)?,
                mode => writeln!(out, "  {}", mode.name())?,
            }
        }
        for handle in self.handles().iter().filter(|handle| handle.api() == api) {
            let slots: Vec<&str> = handle.slots().iter().map(|slot| &*slot.name).collect();
            let limits: Vec<&str> = handle.limits().iter().map(|limit| &*limit.name).collect();
            let mut limits = limits;
            limits.dedup();
            let name = handle.class().unwrap_or("(the API)");
            let (slots, limits) = (slots.join(" "), limits.join(", "));
            writeln!(out, "  handle  {name}  takes {slots}  has {limits}")?;
        }
        Ok(())
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

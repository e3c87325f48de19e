//! `tollkeeper adjust`, `set` and `reset`: counters changed by hand, over the binary protocol.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use tollkeeper_protocol::client::{Description, SetDone};
use tollkeeper_protocol::limits::COST_MAX;

use crate::doors::report::version_text;
use crate::policy::did_you_mean;

use super::asked::{Asked, Costs, Prepared};
use super::connection::{Failure, block_on};
use super::text;

/// Moves what was used of the limits of a request, after the fact.
///
/// Adding is never refused and may leave debt, at most one further quota of it; giving back goes
/// at most until nothing is used. Limits on permits and caps on single requests are left alone.
/// Exits 0 if done, also if no limit applies, else 2.
#[derive(Args)]
#[command(after_help = "Examples:
  tollkeeper adjust llm completions key=k1 --limit tokens --by 731
      adjusted 1 counter
  tollkeeper adjust vault \"DELETE /files/:id\" account=a7 --limit storage --by=-10485760")]
pub(super) struct Adjust {
    #[command(flatten)]
    asked: Asked,
    /// Units: more were used, or with a minus sign given back
    #[arg(long, value_name = "UNITS", allow_hyphen_values = true, value_parser = units)]
    by: i64,
    #[command(flatten)]
    which: Which,
}

/// Sets what is used of the limits of a request.
///
/// More than a limit allows counts as all of it, but for a level, which becomes what is said.
/// Exits 0 if done, also if no limit applies, else 2.
#[derive(Args)]
#[command(after_help = "Examples:
  tollkeeper set media \"POST /v1/images\" team=t1 --used 100
      set 1 counter
  tollkeeper set vault upload account=a7 --limit storage --used 5368709120")]
pub(super) struct Set {
    #[command(flatten)]
    asked: Asked,
    /// Units that are used from now on
    #[arg(long, value_name = "UNITS", value_parser = clap::value_parser!(u64).range(..=COST_MAX))]
    used: u64,
    #[command(flatten)]
    which: Which,
}

/// Forgets what was used of the limits of a request.
///
/// The counters of these attributes are as if nothing had ever been charged, and their permits are
/// given back; others stay. Exits 0 if done, also if no limit applies, else 2.
#[derive(Args)]
#[command(after_help = "Examples:
  tollkeeper reset media \"POST /v1/images\" team=t1
  tollkeeper reset media images_post team=t1")]
pub(super) struct Reset {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    which: Which,
}

#[derive(Args)]
struct Which {
    /// Only this limit, or only this window of it [default: every limit that applies]
    #[arg(long, value_name = "LIMIT[.WINDOW]")]
    limit: Option<String>,
}

fn units(text: &str) -> Result<i64, String> {
    let most = COST_MAX as i64;
    let found = text.parse().ok().filter(|units: &i64| (-most..=most).contains(units));
    found.ok_or_else(|| format!("allowed are whole numbers from -{most} to {most}"))
}

impl Adjust {
    pub(super) fn run(self) -> ExitCode {
        block_on(async {
            let prepared = self.asked.prepare(&Costs::none()).await?;
            let Prepared { client, handle, args, .. } = &prepared;
            let limit = self.which.index(&handle.description())?;
            let done = client.adjust(handle, args, limit, self.by, None).await?;
            Ok(prepared.tell(&done, ("adjusted", "adjust")))
        })
    }
}

impl Set {
    pub(super) fn run(self) -> ExitCode {
        block_on(async {
            let prepared = self.asked.prepare(&Costs::none()).await?;
            let Prepared { client, handle, args, .. } = &prepared;
            let limit = self.which.index(&handle.description())?;
            let done = client.set(handle, args, limit, self.used, None).await?;
            Ok(prepared.tell(&done, ("set", "set")))
        })
    }
}

impl Reset {
    pub(super) fn run(self) -> ExitCode {
        block_on(async {
            let prepared = self.asked.prepare(&Costs::none()).await?;
            let Prepared { client, handle, args, .. } = &prepared;
            let limit = self.which.index(&handle.description())?;
            let done = client.set(handle, args, limit, 0, None).await?;
            Ok(prepared.tell(&done, ("reset", "reset")))
        })
    }
}

impl Which {
    /// The limit's place in the handle. The protocol takes one limit or all that apply, so the
    /// windows of a limit with several are named one by one.
    fn index(&self, description: &Description) -> Result<Option<u16>, Failure> {
        let Some(named) = &self.limit else { return Ok(None) };
        let full = |index: usize| {
            let limit = &description.limits[index];
            match limit.window.as_str() {
                "" => limit.name.clone(),
                window => format!("{}.{window}", limit.name),
            }
        };
        let all: Vec<String> = (0..description.limits.len()).map(full).collect();
        let found: Vec<usize> = (0..all.len())
            .filter(|&index| all[index] == *named || description.limits[index].name == *named)
            .collect();
        match found.as_slice() {
            [index] => Ok(Some(*index as u16)),
            [] => {
                let guess = did_you_mean(named, all.iter().map(String::as_str));
                let guess = guess.map_or(String::new(), |guess| format!("; {guess}"));
                let message = format!("no limit is called `{named}`{guess}");
                Err(Failure::Typed(format!("{message} (limits are {})", all.join(", "))))
            }
            [first, ..] => {
                let message = format!("limit `{named}` has several windows");
                Err(Failure::Typed(format!("{message}; say which, as in `{}`", all[*first])))
            }
        }
    }
}

impl Prepared {
    /// Says how many counters were changed, in the past tense or as what there was nothing to do.
    fn tell(&self, done: &SetDone, (past, verb): (&str, &str)) -> ExitCode {
        let counters = u64::from(done.counters);
        let line = match (self.json, counters) {
            (true, _) => {
                let policy_version = version_text(done.witness.policy_version);
                json!({ "counters": counters, "policy_version": policy_version }).to_string()
            }
            (false, 0) => format!("nothing to {verb} · no limit applies"),
            (false, _) => format!("{past} {}", text::count(counters, "counter")),
        };
        // Whoever closed the pipe does not want to know.
        let _ = writeln!(io::stdout().lock(), "{line}");
        ExitCode::SUCCESS
    }
}

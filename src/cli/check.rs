//! `tollkeeper check` and `peek`: one request asked by hand, over the binary protocol.

mod in_order;

mod report;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::num::NonZeroU64;
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tollkeeper_protocol::client::{Answer, ClientError};
use tollkeeper_protocol::request::Intent;

use crate::doors::report::Report;

use super::FAILED;
use super::asked::{Asked, Costs, Prepared};
use super::connection::{Failure, block_on};
use super::text::{self, Tally};

use in_order::InOrder;
use report::{report, undecided};

/// Exit code if any check was denied.
const DENIED: u8 = 1;

/// Checks of `--count` in flight.
const IN_FLIGHT: usize = 64;

/// From so many checks on, a terminal shows how far they are.
const LONG_RUN: u64 = 10_000;

/// Asks a running server whether a request may pass, and charges it if it may.
///
/// Prints the limit that binds: the one that denied, or the one with the least left. Exits 0 if
/// allowed, 1 if denied (with --count: if any was), 2 on an error or if no decision could be had.
#[derive(Args)]
#[command(after_help = "Examples:
  tollkeeper check media \"POST /v1/images\" team=t1
      allow images_post · 119 of 120 left · full in 1 s
  tollkeeper check media \"POST /v1/images\" team=t1 --count 121
      121 checks · 120 allowed · 1 denied, the first was number 121
      deny images_post · 0 of 120 left · retry in 1 s · full in 120 s
  tollkeeper check media images_post team=t1 --cost 5 --json
      one compact object: decision, status, binding, limits, headers, body, ...")]
pub(super) struct Check {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    costs: Costs,
    /// Sends so many checks, one after the other on one connection, and sums up
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU64>,
}

/// Asks a running server whether a request may pass, and charges nothing.
///
/// Prints what `check` would, before the request is charged. Exits 0 if it would be allowed, 1 if
/// denied, 2 on an error or if no decision could be had.
#[derive(Args)]
#[command(after_help = "Examples:
  tollkeeper peek media \"POST /v1/images\" team=t1
  tollkeeper peek media images_post team=t1 --cost 50 --json")]
pub(super) struct Peek {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    costs: Costs,
}

impl Check {
    pub(super) fn run(self) -> ExitCode {
        block_on(async {
            let prepared = self.asked.prepare(&self.costs).await?;
            match self.count {
                None => prepared.ask_once(Intent::Charge).await,
                Some(count) => prepared.check_many(count.get()).await,
            }
        })
    }
}

impl Peek {
    pub(super) fn run(self) -> ExitCode {
        block_on(async { self.asked.prepare(&self.costs).await?.ask_once(Intent::Peek).await })
    }
}

impl Prepared {
    async fn ask_once(&self, intent: Intent) -> Result<ExitCode, Failure> {
        let outcome = match intent {
            Intent::Charge => self.client.check(&self.handle, &self.args).await,
            Intent::Peek => self.client.peek(&self.handle, &self.args).await,
        };
        let report = self.report(outcome)?;
        let line = if self.json { as_json(&report) } else { text::answer(&report) };
        let _ = writeln!(io::stdout().lock(), "{line}");
        let mut tally = Tally::default();
        tally.add(&report);
        Ok(exit_code(&tally))
    }

    /// Many checks, decided in the order in which they are sent.
    async fn check_many(&self, count: u64) -> Result<ExitCode, Failure> {
        let bar = (!self.json && count >= LONG_RUN && io::stderr().is_terminal())
            .then(|| progress_bar(count));
        let mut stdout = BufWriter::new(io::stdout().lock());
        let mut tally = Tally::default();
        let mut last = None;
        let mut waiting = InOrder::default();
        let mut left = count;
        let ended = loop {
            while left > 0 && waiting.len() < IN_FLIGHT {
                waiting.push(self.client.check(&self.handle, &self.args));
                left -= 1;
            }
            let Some(outcome) = waiting.next().await else { break Ok(()) };
            let report = match self.report(outcome) {
                Ok(report) => report,
                Err(failure) => break Err(failure),
            };
            tally.add(&report);
            // Whoever closed the pipe wants no more checks.
            if self.json && writeln!(stdout, "{}", as_json(&report)).is_err() {
                return Ok(exit_code(&tally));
            }
            if let Some(bar) = &bar {
                bar.inc(1);
            }
            last = Some(report);
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        if let Some(last) = last.filter(|_| !self.json) {
            let _ = writeln!(stdout, "{}\n{}", tally.line(), text::answer(&last));
        }
        let _ = stdout.flush();
        ended.map(|()| exit_code(&tally))
    }

    /// An outcome as it is told. What the server had no decision for is answered by the handle's
    /// `when_unavailable`, as a gateway would, and says so.
    fn report(&self, outcome: Result<Answer, ClientError>) -> Result<Report, Failure> {
        let description = self.handle.description();
        match outcome {
            Ok(answer) => Ok(report(&answer, &description)),
            Err(ClientError::Refused(error)) if error.code.is_unavailable() => {
                Ok(undecided(&error, &description))
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn exit_code(tally: &Tally) -> ExitCode {
    match tally {
        Tally { undecided: 1.., .. } => ExitCode::from(FAILED),
        Tally { denied: 1.., .. } => ExitCode::from(DENIED),
        _ => ExitCode::SUCCESS,
    }
}

fn as_json(report: &Report) -> String {
    serde_json::to_string(report).expect("a report has only names as keys")
}

fn progress_bar(count: u64) -> ProgressBar {
    let style = "{bar:40} {percent}% · {pos} checks";
    ProgressBar::new(count)
        .with_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()))
}

//! `tollkeeper release` and `renew`: permits of concurrency limits, by hand.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tollkeeper_protocol::PermitId;

use crate::doors::report::version_text;
use crate::policy;

use super::connection::{Failure, block_on, connect};
use super::text;

/// Exit code if a permit could not be kept.
const NOT_HELD: u8 = 1;

/// Gives back a permit of a concurrency limit.
///
/// Any connection may do so, and doing it twice does no harm. Exits 0, also if the permit was not
/// held any more; 2 on an error.
#[derive(Args)]
#[command(after_help = "Examples:
  tollkeeper release 0100000000000001a1b2c3d4e5f60718
      released · 1 unit given back")]
pub(super) struct Release {
    #[command(flatten)]
    of: Of,
}

/// Keeps a permit of a concurrency limit for longer.
///
/// Exits 0 if it is kept, 1 if it was not held any more, 2 on an error.
#[derive(Args)]
#[command(after_help = "Examples:
  tollkeeper renew 0100000000000001a1b2c3d4e5f60718
      renewed · lapses in 30 min
  tollkeeper renew 0100000000000001a1b2c3d4e5f60718 --lease 2min")]
pub(super) struct Renew {
    #[command(flatten)]
    of: Of,
    /// How long from now on, such as `90s` or `2min` [default: as it was granted]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    lease: Option<Duration>,
}

#[derive(Args)]
struct Of {
    /// The permit, as the answer to `check --json` named it
    permit: PermitId,
    /// Where the server listens for the binary protocol
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7440", env = "TOLLKEEPER_SERVER")]
    server: String,
    /// One compact JSON object instead of text
    #[arg(long)]
    json: bool,
}

fn span(text: &str) -> Result<Duration, String> {
    policy::span(text).map(|span| Duration::from_nanos(span.get()))
}

impl Release {
    pub(super) fn run(self) -> ExitCode {
        block_on(async {
            let Of { permit, server, json } = self.of;
            let done = connect(&server).await?.release(permit).await?;
            let policy_version = version_text(done.witness.policy_version);
            say(&match (json, done.units) {
                (true, units) => {
                    json!({ "units": units, "policy_version": policy_version }).to_string()
                }
                (false, 0) => "nothing to release · the permit is not held".to_owned(),
                (false, units) => format!("released · {} given back", text::count(units, "unit")),
            });
            Ok::<_, Failure>(ExitCode::SUCCESS)
        })
    }
}

impl Renew {
    pub(super) fn run(self) -> ExitCode {
        block_on(async {
            let Of { permit, server, json } = self.of;
            let done = connect(&server).await?.renew(permit, self.lease).await?;
            let policy_version = version_text(done.witness.policy_version);
            let expires = done.expires_nanos;
            say(&match (json, expires) {
                (true, _) => {
                    json!({ "expires_ns": expires, "policy_version": policy_version }).to_string()
                }
                (false, Some(nanos)) => format!("renewed · lapses in {}", text::duration(nanos)),
                (false, None) => "not renewed · the permit is not held any more".to_owned(),
            });
            let code = if expires.is_some() { 0 } else { NOT_HELD };
            Ok::<_, Failure>(ExitCode::from(code))
        })
    }
}

fn say(line: &str) {
    // Whoever closed the pipe does not want to know.
    let _ = writeln!(io::stdout().lock(), "{line}");
}

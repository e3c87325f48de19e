//! PEOPLE. One file for each command.

mod serve;

mod text;

mod check;

mod policy;

mod bench;

pub mod load;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A rate-limiter daemon that keeps every published limit, exactly.
#[derive(Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer checks until a signal ends it
    Serve(serve::Serve),
    Check(check::Check),
    Peek(check::Peek),
    Reset(check::Reset),
    Policy(policy::PolicyCommand),
    /// Measure throughput and latency under load
    Bench(bench::Bench),
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Check(check) => check.run(),
        Command::Peek(peek) => peek.run(),
        Command::Reset(reset) => reset.run(),
        Command::Policy(policy) => policy.run(),
        Command::Bench(bench) => bench.run(),
    }
}

/// Exit code of every failure that is no denial.
const FAILED: u8 = 2;

/// Says that a server cannot be reached, and what to do about it.
fn unreachable(server: &str, error: &std::io::Error) -> ExitCode {
    use std::io::ErrorKind::{ConnectionRefused, TimedOut};
    let message = match error.kind() {
        ConnectionRefused | TimedOut => {
            format!("cannot reach {server}; is `tollkeeper serve` running?")
        }
        _ => format!("{server}: {error}"),
    };
    fail(&message)
}

/// Says what went wrong.
fn fail(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "tollkeeper: {message}");
    ExitCode::from(FAILED)
}

//! PEOPLE. One file for each command, and what several of them share.

mod serve;

mod text;

mod connection;

mod asked;

mod check;

mod amend;

mod permit;

mod policy;

mod http;

mod status;

mod explain;

mod change;

mod snapshot;

mod bench;

mod cluster;

mod log;

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

// A doc comment here would take the place of the long text that each command's struct has.
#[derive(Subcommand)]
enum Command {
    #[command(about = "Answer checks until a signal ends it")]
    Serve(Box<serve::Serve>),
    #[command(about = "Ask whether a request may pass, and charge it if it may")]
    Check(check::Check),
    #[command(about = "Ask whether a request may pass, and charge nothing")]
    Peek(check::Peek),
    #[command(about = "Move what was used of the limits of a request, after the fact")]
    Adjust(amend::Adjust),
    #[command(about = "Set what is used of the limits of a request")]
    Set(amend::Set),
    #[command(about = "Forget what was used of the limits of a request")]
    Reset(amend::Reset),
    #[command(about = "Give back a permit of a concurrency limit")]
    Release(permit::Release),
    #[command(about = "Keep a permit of a concurrency limit for longer")]
    Renew(permit::Renew),
    #[command(about = "Check and test policy files")]
    Policy(policy::PolicyCommand),
    #[command(about = "Say of each limit whether and why it applies to a request; charges nothing")]
    Explain(explain::Explain),
    #[command(about = "Say what one subject has used of every limit; charges nothing")]
    Usage(explain::Usage),
    #[command(about = "Change limits for some keys or all, until a date", name = "override")]
    Override(change::OverrideCommand),
    #[command(about = "Say whose API keys and sessions are, and of which tier")]
    Identity(change::IdentityCommand),
    #[command(about = "Show a node's policy, keys, rates and connections")]
    Status(status::Status),
    #[command(about = "Look into a snapshot, or have one taken")]
    Snapshot(snapshot::SnapshotCommand),
    #[command(about = "Begin a cluster, show it, change who belongs to it")]
    Cluster(cluster::ClusterCommand),
    #[command(about = "Replay the log of a cluster's node that is down, and say what is in it")]
    Log(log::LogCommand),
    #[command(about = "Measure throughput and latency under load")]
    Bench(bench::Bench),
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Check(check) => check.run(),
        Command::Peek(peek) => peek.run(),
        Command::Adjust(adjust) => adjust.run(),
        Command::Set(set) => set.run(),
        Command::Reset(reset) => reset.run(),
        Command::Release(release) => release.run(),
        Command::Renew(renew) => renew.run(),
        Command::Policy(policy) => policy.run(),
        Command::Explain(explain) => explain.run(),
        Command::Usage(usage) => usage.run(),
        Command::Override(change) => change.run(),
        Command::Identity(identity) => identity.run(),
        Command::Status(status) => status.run(),
        Command::Snapshot(snapshot) => snapshot.run(),
        Command::Cluster(cluster) => cluster.run(),
        Command::Log(log) => log.run(),
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

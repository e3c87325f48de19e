//! PEOPLE. One file for each command.

mod serve;

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
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
    }
}

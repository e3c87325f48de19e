//! `tollkeeper bench`: load over the binary protocol.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::load::{self, Load, Progress, Report, Target, Until};

/// Sends checks with prepared handles and tells throughput and latency.
///
/// Closed loop: every connection keeps so many checks in flight and sends a new one for each
/// answer, so latency is that of a server as busy as this load can make it.
#[derive(Args)]
pub(super) struct Bench {
    /// Where the server listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7440", env = "TOLLKEEPER_SERVER")]
    server: SocketAddr,
    /// API to check
    #[arg(long, default_value = "media")]
    api: String,
    /// Class to check; its first slot gets the key
    #[arg(long, default_value = "read")]
    class: String,
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 50)]
    connections: usize,
    /// Checks in flight on each connection, 1 to 256
    #[arg(long, value_name = "N", default_value_t = 16)]
    in_flight: usize,
    /// Different keys, drawn evenly
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    keys: u64,
    /// Checks to send in all
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    requests: Option<u64>,
    /// How long to send [default: 5]
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(super) fn run(self) -> ExitCode {
        let until = match self.requests {
            Some(requests) => Until::Requests(requests),
            None => Until::Elapsed(Duration::from_secs(self.seconds.unwrap_or(5))),
        };
        let load = Load {
            server: self.server,
            connections: self.connections.max(1),
            in_flight: self.in_flight,
            keys: self.keys,
            until,
            target: Some(Target { api: self.api.clone(), class: self.class.clone() }),
        };
        let progress = Arc::new(Progress::default());
        let bar = (!self.json && std::io::stderr().is_terminal())
            .then(|| show_progress(until, Arc::clone(&progress)));
        let report = load::run(&load, &progress);
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let report = match report {
            Ok(report) => report,
            Err(error) => return super::unreachable(&self.server.to_string(), &error),
        };
        let text = if self.json { self.as_json(&report) } else { self.as_text(&report) };
        let _ = writeln!(std::io::stdout().lock(), "{text}");
        if report.errors == 0 { ExitCode::SUCCESS } else { ExitCode::from(2) }
    }

    fn as_json(&self, report: &Report) -> String {
        json!({
            "connections": self.connections,
            "in_flight": self.in_flight,
            "keys": self.keys,
            "answers": report.answers(),
            "allowed": report.allowed,
            "denied": report.denied,
            "errors": report.errors,
            "seconds": report.elapsed.as_secs_f64(),
            "per_second": report.rate(),
            "latency_ns": {
                "p50": report.latency_at(0.5),
                "p99": report.latency_at(0.99),
                "p99.9": report.latency_at(0.999),
                "max": report.latency.max(),
            },
        })
        .to_string()
    }

    fn as_text(&self, report: &Report) -> String {
        let micros = |nanos: u64| format!("{:.1} µs", nanos as f64 / 1e3);
        format!(
            "{} answers in {:.2} s · {:.0} a second\n\
             {} allowed · {} denied · {} errors\n\
             latency p50 {} · p99 {} · p99.9 {} · max {}\n\
             {} connections · {} in flight on each · {} keys",
            report.answers(),
            report.elapsed.as_secs_f64(),
            report.rate(),
            report.allowed,
            report.denied,
            report.errors,
            micros(report.latency_at(0.5)),
            micros(report.latency_at(0.99)),
            micros(report.latency_at(0.999)),
            micros(report.latency.max()),
            self.connections,
            self.in_flight,
            self.keys,
        )
    }
}

/// A bar that follows the load from a thread of its own, so that the load need not know of it.
fn show_progress(until: Until, progress: Arc<Progress>) -> ProgressBar {
    let length = match until {
        Until::Requests(requests) => requests,
        Until::Elapsed(elapsed) => elapsed.as_millis() as u64,
    };
    let style = "{bar:40} {percent}% · {msg}";
    let bar = ProgressBar::new(length)
        .with_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()));
    let shown = bar.clone();
    let began_at = Instant::now();
    std::thread::spawn(move || {
        while !shown.is_finished() {
            let answered = progress.answered();
            shown.set_position(match until {
                Until::Requests(_) => answered,
                Until::Elapsed(_) => began_at.elapsed().as_millis() as u64,
            });
            shown.set_message(format!("{answered} answers"));
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    bar
}

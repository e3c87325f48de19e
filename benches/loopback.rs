//! What one decision costs the server process, kernel included, over loopback TCP; beside it an
//! echo server that answers frames of the same sizes and decides nothing: the floor.
//!
//! Server and echo run in processes of their own on core 0, the load on core 1, one after the
//! other in the same run. What distorts it: other work on the machine (compare the ratio, not the
//! times), frequency and cache state, and a load that cannot keep the server busy at 1 in flight.
//!
//! Counted with `perf stat` where the machine has counters; where it has none, the process's CPU
//! time stands in for cycles and instructions are not told.
//!
//! ```text
//! cargo bench --bench loopback [-- --seconds 4]
//! ```

#![allow(clippy::print_stdout, reason = "a bench is read by people")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tollkeeper::cli::load::{self, Load, Progress, Target, Until};
use tollkeeper_protocol::limits::TERSE_BYTES;

const CONNECTIONS: usize = 50;
const KEYS: u64 = 1_000_000;
const HEADER_BYTES: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--echo") {
        return echo();
    }
    let seconds = arguments
        .iter()
        .position(|argument| argument == "--seconds")
        .and_then(|place| arguments.get(place + 1)?.parse().ok())
        .unwrap_or(4);
    // Only `cargo bench` passes this; a test run has nothing to check here.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    pin(std::process::id(), 1);
    let counters = perf_counts_instructions();
    println!(
        "{CONNECTIONS} connections, {KEYS} keys, {seconds} s each, {}",
        if counters { "perf counters" } else { "no perf counters: CPU time only" }
    );
    println!(
        "{:>10} {:>8} {:>12} {:>14} {:>10} {:>12}",
        "server", "in flight", "a second", "cpu ns/answer", "p99 µs", "instructions"
    );
    for in_flight in [1, 16, 128] {
        let mut cpu = Vec::new();
        for server in [Server::Echo, Server::Tollkeeper] {
            let measured = measure(server, in_flight, seconds, counters);
            println!(
                "{:>10} {:>9} {:>12.0} {:>14.1} {:>10.1} {:>12}",
                server.name(),
                in_flight,
                measured.per_second,
                measured.cpu_nanos,
                measured.p99_nanos as f64 / 1e3,
                measured.instructions.map_or("-".into(), |count| format!("{count:.0}")),
            );
            cpu.push(measured.cpu_nanos);
        }
        println!("{:>10} {in_flight:>9}   ratio of CPU time {:.3}", "", cpu[1] / cpu[0]);
    }
}

#[derive(Clone, Copy)]
enum Server {
    Echo,
    Tollkeeper,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Tollkeeper => "tollkeeper",
        }
    }
}

struct Measured {
    per_second: f64,
    cpu_nanos: f64,
    p99_nanos: u64,
    instructions: Option<f64>,
}

fn measure(server: Server, in_flight: usize, seconds: u64, counters: bool) -> Measured {
    let (mut child, address) = start(server);
    let target = match server {
        Server::Echo => None,
        Server::Tollkeeper => Some(Target { api: "media".into(), class: "read".into() }),
    };
    let load = |seconds| Load {
        server: address,
        connections: CONNECTIONS,
        in_flight,
        keys: KEYS,
        until: Until::Elapsed(Duration::from_secs(seconds)),
        target: target.clone(),
    };
    // Once without measuring, so that the table holds its keys and the pages are there.
    load::run(&load(2), &Arc::new(Progress::default())).expect("warming up");
    let perf = counters.then(|| start_perf(child.id(), seconds));
    let before = cpu_nanos(child.id());
    let report = load::run(&load(seconds), &Arc::new(Progress::default())).expect("the load");
    let cpu = cpu_nanos(child.id()) - before;
    let instructions = perf.and_then(instructions);
    child.kill().expect("ending a child of ours");
    child.wait().expect("waiting for a child of ours");
    assert_eq!(report.errors, 0);
    let answers = report.answers() as f64;
    Measured {
        per_second: report.rate(),
        cpu_nanos: cpu as f64 / answers,
        p99_nanos: report.latency_at(0.99),
        instructions: instructions.map(|count| count / answers),
    }
}

fn start(server: Server) -> (Child, SocketAddr) {
    let mut command = match server {
        Server::Echo => {
            let mut command = Command::new(std::env::current_exe().expect("our own path"));
            command.arg("--echo");
            command
        }
        Server::Tollkeeper => {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tollkeeper"));
            command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
            command.args(["--workers", "1"]);
            command
        }
    };
    let mut child = command.stdout(Stdio::piped()).spawn().expect("starting a server");
    pin(child.id(), 0);
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a piped stdout");
    BufReader::new(stdout).read_line(&mut line).expect("a ready line");
    let address = line
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no address in {line:?}"));
    (child, address)
}

/// Puts a process, with the threads that it starts later, on one core.
fn pin(process: u32, core: usize) {
    let (core, process) = (core.to_string(), process.to_string());
    let pinned = Command::new("taskset").args(["-a", "-cp", &core, &process]).output();
    assert!(pinned.is_ok_and(|output| output.status.success()), "taskset is needed");
}

/// CPU time of all threads of a process, kernel included.
fn cpu_nanos(process: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("a live process");
    tasks
        .filter_map(|task| {
            let mut text = String::new();
            let path = task.ok()?.path().join("schedstat");
            std::fs::File::open(path).ok()?.read_to_string(&mut text).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum()
}

fn perf_counts_instructions() -> bool {
    let output = Command::new("perf").args(["stat", "-e", "instructions", "true"]).output();
    output.is_ok_and(|output| {
        output.status.success()
            && !String::from_utf8_lossy(&output.stderr).contains("not supported")
    })
}

fn start_perf(process: u32, seconds: u64) -> Child {
    Command::new("perf")
        .args(["stat", "-x,", "-e", "instructions", "-p", &process.to_string()])
        .args(["sleep", &seconds.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .expect("perf was there a moment ago")
}

fn instructions(mut perf: Child) -> Option<f64> {
    let mut text = String::new();
    perf.stderr.take()?.read_to_string(&mut text).ok()?;
    perf.wait().ok()?;
    text.lines().find(|line| line.contains("instructions"))?.split(',').next()?.parse().ok()
}

/// The floor: reads, finds the frames, answers each with as many bytes as a terse answer has.
fn echo() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket option");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        println!("echo on {}", listener.local_addr().expect("an address"));
        std::io::stdout().flush().expect("a pipe");
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(echo_connection(stream.into_std().expect("a socket")));
        }
    });
}

async fn echo_connection(stream: TcpStream) {
    stream.set_nodelay(true).expect("a socket option");
    let mut stream = tokio::net::TcpStream::from_std(stream).expect("a stream");
    let (mut input, mut out) = (vec![0; 128 * 1024], Vec::new());
    let mut held = 0;
    loop {
        let Ok(read) = stream.read(&mut input[held..]).await else { return };
        if read == 0 {
            return;
        }
        held += read;
        out.clear();
        let mut done = 0;
        while let Some(header) = input[done..held].first_chunk::<HEADER_BYTES>() {
            let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
            if length > held - done {
                break;
            }
            let mut answer = [0; HEADER_BYTES + TERSE_BYTES];
            answer[..4].copy_from_slice(&((HEADER_BYTES + TERSE_BYTES) as u32).to_le_bytes());
            answer[4..6].copy_from_slice(&[header[4], 0x80]);
            answer[8..16].copy_from_slice(&header[8..]);
            answer[16] = 1;
            out.extend_from_slice(&answer);
            done += length;
        }
        input.copy_within(done..held, 0);
        held -= done;
        if stream.write_all(&out).await.is_err() {
            return;
        }
    }
}

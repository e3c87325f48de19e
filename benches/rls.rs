//! What one call of Envoy's rate limit service costs the server process: CPU time, kernel included,
//! and under callgrind user instructions, which are the same in each run.
//!
//! Server on core 0, load on core 1; calls of one descriptor, random teams, one limit, all allowed.
//! Instructions are the difference of two runs, of N and 2N calls, so that the start drops out. What
//! distorts it: CPU time by other work on the machine; instructions by what the daemon does by
//! itself meanwhile, which is taken off by an idle run of the same length, and by valgrind's slow
//! server, which more calls wait for at a time than they would.
//!
//! Another server is measured beside ours if it is given as a command in which ADDRESS stands where
//! the address of its service does.
//!
//! ```text
//! cargo bench --bench rls [-- --calls 200000] [--callgrind] [--policy FILE] [--peer "COMMAND ADDRESS"]
//! ```

#![allow(clippy::print_stdout, reason = "a bench is read by people")]

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use hyper::Request;
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};

const PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const CONNECTIONS: u64 = 8;
const TEAMS: u64 = 10_000;

/// Calls that callgrind sees; it is some fifty times slower.
const CALLS_UNDER_CALLGRIND: u64 = 10_000;

/// One limit that nobody comes to, as a page of an API has it.
const POLICY: &str = "schema = 1\n[api.media.limit]\n\
    images = { on = \"POST /v1/images\", per = [\"team\"], fixed = \"1000000/hour\" }\n";

struct Options {
    calls: u64,
    policy: Option<String>,
    peer: Option<String>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // Only `cargo bench` passes this; a test run has nothing to check here.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let after = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1).cloned()
    };
    let callgrind = arguments.iter().any(|argument| argument == "--callgrind");
    let calls = after("--calls").map(|text| text.parse().expect("--calls is a number"));
    let default = if callgrind { CALLS_UNDER_CALLGRIND } else { 200_000 };
    let options = Options {
        calls: calls.unwrap_or(default),
        policy: after("--policy"),
        peer: after("--peer"),
    };
    pin(std::process::id(), 1);
    println!("{CONNECTIONS} connections, {TEAMS} teams, {} calls", options.calls);
    println!("{:>10} {:>10} {:>12} {:>14}", "server", "in flight", "a second", what(callgrind));
    for in_flight in [1, 16] {
        for name in ["tollkeeper", "peer"] {
            if name == "peer" && options.peer.is_none() {
                continue;
            }
            let start = |callgrind: Option<&Path>| Server::start(name, &options, callgrind);
            let (per_second, cost) = match callgrind {
                false => in_time(start(None), &options, in_flight),
                true => in_instructions(start, &options, in_flight),
            };
            println!("{name:>10} {in_flight:>10} {per_second:>12.0} {cost:>14.0}");
        }
    }
}

fn what(callgrind: bool) -> &'static str {
    if callgrind { "instructions" } else { "cpu ns/call" }
}

fn in_time(server: Server, options: &Options, in_flight: u64) -> (f64, f64) {
    // Once without measuring, so that the table holds its keys and the pages are there.
    load(server.address, options.calls / 10, in_flight);
    let before = cpu_nanos(server.child.id());
    let took = load(server.address, options.calls, in_flight);
    let cpu = cpu_nanos(server.child.id()) - before;
    (options.calls as f64 / took.as_secs_f64(), cpu as f64 / options.calls as f64)
}

fn in_instructions(
    start: impl Fn(Option<&Path>) -> Server,
    options: &Options,
    in_flight: u64,
) -> (f64, f64) {
    let folder = std::env::temp_dir().join(format!("rls-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a directory");
    let file = folder.join("out");
    let run = |calls: u64, idle: Duration| {
        let server = start(Some(&file));
        let took = load(server.address, calls, in_flight);
        std::thread::sleep(idle);
        server.stop();
        (instructions(&file), took)
    };
    let (once, _) = run(options.calls, Duration::ZERO);
    let (twice, took) = run(2 * options.calls, Duration::ZERO);
    // What it does by itself in the time that the second half took.
    let (idle, _) = run(options.calls, took / 2);
    let _ = std::fs::remove_dir_all(folder);
    let calls = options.calls as f64;
    let (by_calls, by_itself) = (twice.saturating_sub(once), idle.saturating_sub(once));
    (2.0 * calls / took.as_secs_f64(), by_calls.saturating_sub(by_itself) as f64 / calls)
}

/// A server process; killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts a server; `callgrind`: under it, to write there.
    fn start(name: &str, options: &Options, callgrind: Option<&Path>) -> Self {
        // Somebody may take the port before the server does, which then fails loudly.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let words: Vec<String> = match name {
            "peer" => {
                let command = options.peer.clone().unwrap_or_default();
                let command = command.replace("ADDRESS", &address.to_string());
                command.split_whitespace().map(str::to_owned).collect()
            }
            _ => {
                let policy = options.policy.clone().unwrap_or_else(own_policy);
                let address = address.to_string();
                let words = [
                    env!("CARGO_BIN_EXE_tollkeeper"),
                    "serve",
                    "--listen",
                    "127.0.0.1:0",
                    "--admin",
                    "127.0.0.1:0",
                    "--workers",
                    "1",
                    "--policy",
                    &policy,
                    "--rls",
                    &address,
                ];
                words.map(str::to_owned).to_vec()
            }
        };
        let mut command = match callgrind {
            None => Command::new(&words[0]),
            Some(file) => {
                let mut command = Command::new("valgrind");
                command.args(["--tool=callgrind", "--quiet"]);
                command.arg(format!("--callgrind-out-file={}", file.display())).arg(&words[0]);
                command
            }
        };
        command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", words[0]));
        pin(child.id(), 0);
        let began = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "{name} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, address }
    }

    /// Ends it as it wants to be ended, so that callgrind writes what it saw.
    fn stop(mut self) {
        let id = self.child.id().to_string();
        let kill = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &id]).status();
        assert!(kill.is_ok_and(|status| status.success()), "the server has ended by itself");
        self.child.wait().expect("waiting for a child of ours");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn own_policy() -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("rls-bench.toml");
    std::fs::write(&path, POLICY).expect("writing a policy");
    path.display().to_string()
}

/// Sends calls, so many at a time on each connection. Returns how long it took.
fn load(address: SocketAddr, calls: u64, in_flight: u64) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), async {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(address).await.expect("a connection");
            stream.set_nodelay(true).expect("a socket option");
            let (send, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
            spawn_local(async move { drop(connection.await) });
            clients.push(send);
        }
        let next = Rc::new(std::cell::Cell::new(0));
        let began = Instant::now();
        let calling: Vec<_> = (0..CONNECTIONS * in_flight)
            .map(|place| {
                let send = clients[(place % CONNECTIONS) as usize].clone();
                spawn_local(call_until(send, Rc::clone(&next), calls))
            })
            .collect();
        for calling in calling {
            calling.await.expect("a client that works");
        }
        began.elapsed()
    })
}

async fn call_until(mut send: SendRequest<Bytes>, next: Rc<std::cell::Cell<u64>>, calls: u64) {
    while next.get() < calls {
        let number = next.replace(next.get() + 1);
        send = send.ready().await.expect("room for a stream");
        // As Envoy sends them.
        let request = Request::post(format!("http://tollkeeper{PATH}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "250000m")
            .header("x-envoy-internal", "true")
            .header("x-forwarded-for", "10.0.0.1")
            .body(())
            .expect("a request");
        let (response, mut stream) = send.send_request(request, false).expect("a stream");
        // SplitMix64's mix: the same teams in each run.
        let mixed = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        stream.send_data(body(mixed % TEAMS), true).expect("a stream");
        let response = response.await.expect("an answer");
        let (head, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.expect("an answer");
            body.flow_control().release_capacity(data.len()).expect("what was read");
            bytes.extend_from_slice(&data);
        }
        let trailers = body.trailers().await.expect("an answer").unwrap_or(head.headers);
        assert_eq!(trailers["grpc-status"], "0");
        // The overall code, first of the fields, is OK.
        assert_eq!(bytes.get(5..7), Some(&[8, 1][..]));
    }
}

/// A call of one descriptor.
fn body(team: u64) -> Bytes {
    let field = |out: &mut Vec<u8>, number: u8, bytes: &[u8]| {
        out.extend_from_slice(&[number << 3 | 2, bytes.len() as u8]);
        out.extend_from_slice(bytes);
    };
    let mut descriptor = Vec::new();
    let team = format!("t{team}");
    for (key, value) in [("method", "POST"), ("path", "/v1/images"), ("team", &team)] {
        let mut entry = Vec::new();
        field(&mut entry, 1, key.as_bytes());
        field(&mut entry, 2, value.as_bytes());
        field(&mut descriptor, 1, &entry);
    }
    let mut message = Vec::new();
    field(&mut message, 1, b"media");
    field(&mut message, 2, &descriptor);
    let mut framed = vec![0, 0, 0, 0, message.len() as u8];
    framed.extend_from_slice(&message);
    framed.into()
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
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum()
}

/// What callgrind counted of a process that has ended.
fn instructions(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).expect("what callgrind wrote; is valgrind there?");
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total.and_then(|total| total.trim().parse().ok()).expect("callgrind's totals")
}

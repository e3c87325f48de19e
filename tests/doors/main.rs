//! The doors for Redis clients, HTTP and Envoy over real sockets: `openapi.json` is what the server
//! does, and clients that are broken, slow or ill-willed get a clear error or a closed connection, while
//! memory stays bounded and others are served.
//!
//! Ignored tests wait for deadlines of ten seconds.

// The figures are what some of these tests are for.
#![allow(clippy::print_stdout)]

mod maxima;
mod rls;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const MIB: u64 = 1024 * 1024;

struct Daemon {
    child: Child,
    admin: SocketAddr,
    resp: SocketAddr,
    http: SocketAddr,
    rls: SocketAddr,
}

impl Daemon {
    fn start(arguments: &[&str]) -> Self {
        let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/policies/media.toml");
        Self::with_policy(policy, arguments)
    }

    fn with_policy(policy: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tollkeeper"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"])
            .args(["--resp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--policy", policy])
            .args(["--rls", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let after = |word: &str| {
            let (_, rest) = ready.split_once(word).unwrap_or_else(|| panic!("{ready:?}"));
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        let (admin, resp, http) = (after("admin http://"), after(" · resp "), after(" · http "));
        let rls = after(" · rls ");
        Self { child, admin, resp, http, rls }
    }

    fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    fn metric(&self, name: &str) -> u64 {
        let page =
            send(self.admin, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name}")).parse::<f64>().unwrap() as u64
    }

    /// Status, head and body of one request of HTTP.
    fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> (u16, String, String) {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        for header in headers {
            request.push_str(&format!("{header}\r\n"));
        }
        request.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
        let answer = send(self.http, request.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let (status, _, body) = self.ask("POST", path, &["content-type: application/json"], body);
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body:?}")))
    }

    /// Whether others are served.
    fn assert_serves(&self) {
        assert_eq!(send(self.resp, b"PING\r\nQUIT\r\n"), "+PONG\r\n+OK\r\n");
        let (status, _) =
            self.post("/v1/peek", r#"{"api":"media","class":"read","attributes":{"team":"x"}}"#);
        assert_eq!(status, 200);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends bytes and reads to the end of the connection.
fn send(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The answer may come, and the connection end, before all of a bad request was taken.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// What of JSON Schema the page uses; a word that is not known here is a failure.
fn validate(page: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let pointer = name.strip_prefix('#').unwrap();
        let schema = page.pointer(pointer).ok_or_else(|| format!("no {name}"))?;
        return validate(page, schema, value, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = choices.iter().filter(|choice| validate(page, choice, value, at).is_ok());
        let count = fits.count();
        return if count == 1 { Ok(()) } else { Err(format!("{at}: {count} choices fit {value}")) };
    }
    const KNOWN: [&str; 14] = [
        "type",
        "properties",
        "required",
        "additionalProperties",
        "description",
        "enum",
        "items",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "pattern",
        "$ref",
        "oneOf",
    ];
    for word in schema.as_object().unwrap().keys() {
        assert!(KNOWN.contains(&word.as_str()), "{at}: {word}");
    }
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{at}: {other}"),
    };
    let fits = match &schema["type"] {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().any(|name| is(name.as_str().unwrap())),
        other => panic!("{at}: {other}"),
    };
    if !fits {
        return Err(format!("{at}: {value} is no {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|allowed| !allowed.contains(value)) {
        return Err(format!("{at}: {value} is not of {}", schema["enum"]));
    }
    if let (Some(number), Some(minimum)) = (value.as_i64(), schema["minimum"].as_i64())
        && number < minimum
    {
        return Err(format!("{at}: {number} is below {minimum}"));
    }
    if let Some(fields) = value.as_object() {
        for (name, value) in fields {
            let schema = match (&schema["properties"][name], &schema["additionalProperties"]) {
                (Value::Null, Value::Bool(false)) => return Err(format!("{at}: {name} is extra")),
                (Value::Null, other) => other,
                (known, _) => known,
            };
            validate(page, schema, value, &format!("{at}.{name}"))?;
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if !fields.contains_key(name.as_str().unwrap()) {
                return Err(format!("{at}: {name} is missing"));
            }
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        validate(page, &schema["items"], item, &format!("{at}[{index}]"))?;
    }
    Ok(())
}

#[test]
fn the_openapi_page_is_what_the_server_does() {
    let page: Value =
        serde_json::from_str(include_str!("../../src/doors/http/openapi.json")).unwrap();
    let daemon = Daemon::start(&["--http-trusted", "127.0.0.1"]);
    let note = |seen: &mut BTreeSet<String>, path: &str, status: u16, body: &str| {
        let responses = &page["paths"][path]["post"]["responses"];
        let response = &responses[status.to_string()];
        assert!(response.is_object(), "{path} answered {status}, which the page has not: {body}");
        let schema = &response["content"]["application/json"]["schema"];
        let body: Value = serde_json::from_str(body).unwrap();
        validate(&page, schema, &body, path).unwrap();
        seen.insert(status.to_string());
    };
    let json = ["content-type: application/json"];
    for (path, operations) in page["paths"].as_object().unwrap() {
        let request = &operations["post"]["requestBody"]["content"]["application/json"];
        if request.is_null() {
            continue;
        }
        let mut seen = BTreeSet::new();
        for (name, example) in request["examples"].as_object().unwrap() {
            let example = &example["value"];
            validate(&page, &request["schema"], example, name).unwrap();
            let (status, _, body) = daemon.ask("POST", path, &json, &example.to_string());
            assert_eq!(status, 200, "{path} {name}: {body}");
            note(&mut seen, path, status, &body);
        }
        for wrong in ["", "{}", "[]", r#"{"api":"media","pth":1}"#, r#"{"api":1}"#] {
            let (status, _, body) = daemon.ask("POST", path, &json, wrong);
            assert_eq!(status, 400, "{path} {wrong}: {body}");
            note(&mut seen, path, status, &body);
        }
        let (status, head, body) = daemon.ask("GET", path, &[], "");
        assert!(head.contains("\r\nallow: post"), "{head}");
        note(&mut seen, path, status, &body);
        let (status, _, body) = daemon.ask("POST", path, &["content-type: text/plain"], "{}");
        note(&mut seen, path, status, &body);
        let (status, _, body) = daemon.ask("POST", path, &json, &" ".repeat(65_537));
        note(&mut seen, path, status, &body);
        let documented: BTreeSet<String> =
            operations["post"]["responses"].as_object().unwrap().keys().cloned().collect();
        // Its deadline has a test of its own.
        let documented: BTreeSet<String> =
            documented.into_iter().filter(|status| status != "408").collect();
        assert_eq!(seen, documented, "{path}");
    }
    // Every path that the server has is on the page, and no other.
    let (status, _, body) = daemon.ask("GET", "/nowhere", &[], "");
    assert_eq!(status, 404);
    let paths = body.split_once("there are ").unwrap().1.split_once('"').unwrap().0;
    let served: BTreeSet<String> =
        paths.split(", ").map(|path| path.replace("API", "{api}")).collect();
    let documented: BTreeSet<String> = page["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(served, documented);
}

#[test]
fn a_proxy_is_answered_in_the_words_to_pass_on() {
    let stranger = Daemon::start(&[]);
    let (status, _, body) = stranger.ask("GET", "/v1/authorize/media", &[], "");
    assert_eq!(status, 403, "{body}");
    assert!(body.contains("--http-trusted"), "{body}");

    let daemon = Daemon::start(&["--http-trusted", "127.0.0.0/8", "--http-headers", "team=X-Team"]);
    let headers = ["x-forwarded-method: POST", "x-forwarded-uri: /v1/images?a=b", "x-team: t1"];
    let ask =
        |method: &str, headers: &[&str]| daemon.ask(method, "/v1/authorize/media", headers, "");
    for (index, method) in ["GET", "POST", "PUT", "HEAD"].into_iter().cycle().take(120).enumerate()
    {
        let (status, head, _) = ask(method, &headers);
        assert_eq!(status, 200, "{index} {head}");
    }
    let denied = (0..10).map(|_| ask("GET", &headers)).find(|(status, ..)| *status != 200).unwrap();
    assert_eq!(denied.0, 429);
    for header in ["retry-after: 1", "x-ratelimit-limit: 120", "content-type: application/json"] {
        assert!(denied.1.contains(header), "{header}: {}", denied.1);
    }
    assert!(denied.2.contains("too_many_requests"), "{}", denied.2);
    let original = ["x-original-method: GET", "x-original-url: http://h/v1/x", "x-team: t1"];
    let (status, head, _) = ask("GET", &original);
    assert_eq!((status, head.contains("x-ratelimit-limit: 1200")), (200, true), "{head}");
    for (headers, code) in [
        (&["x-forwarded-method: GET"][..], "BAD_REQUEST"),
        (
            &["x-forwarded-method: GET", "x-forwarded-uri: /a", "x-team: a", "x-team: b"],
            "BAD_ATTRIBUTE",
        ),
    ] {
        let (status, _, body) = ask("GET", headers);
        assert!(status == 400 && body.contains(code), "{status} {body}");
    }
    let (status, _, body) = daemon.ask("GET", "/v1/authorize/nobody", &[], "");
    assert!(status == 400 && body.contains("UNKNOWN_API"), "{body}");
    // The one API of the policy needs no name.
    assert_eq!(daemon.ask("GET", "/v1/authorize", &headers, "").0, 429);
}

#[test]
fn the_admin_door_answers_a_check_as_the_http_door_does() {
    let daemon = Daemon::start(&[]);
    let body = json!({"api": "media", "class": "read", "attributes": {"team": "t"}}).to_string();
    let (status, here) = daemon.post("/v1/peek", &body);
    assert_eq!(status, 200);
    let request = format!(
        "POST /v1/peek HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let there = send(daemon.admin, request.as_bytes());
    let mut there: Value = serde_json::from_str(there.split_once("\r\n\r\n").unwrap().1).unwrap();
    let mut here = here;
    for report in [&mut here, &mut there] {
        report["headers"].as_object_mut().unwrap().remove("X-RateLimit-Reset");
    }
    assert_eq!(here, there);
    assert_eq!(daemon.metric("tollkeeper_requests_total{protocol=\"http\"}"), 1);
}

#[test]
fn hostile_bytes_for_redis_get_an_error_or_an_end() {
    let daemon = Daemon::start(&[]);
    let long = "x".repeat(40_000);
    let huge = format!("*2\r\n$4\r\nECHO\r\n$40000\r\n{long}\r\n");
    for (bytes, expected) in [
        ("*99999999\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        ("*-5\r\nPING\r\nQUIT\r\n", "+PONG\r\n+OK\r\n"),
        ("*1\r\n$99999999999\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        (&huge, "-ERR Protocol error: invalid bulk length\r\n"),
        (&long, "-ERR Protocol error: a command has at most 32768 bytes\r\n"),
        ("GET / HTTP/1.1\r\nHost: x\r\n", "-ERR unknown command 'GET'"),
        ("\x16\x03\x01\x02\r\nQUIT\r\n", "-ERR unknown command"),
    ] {
        let answer = send(daemon.resp, bytes.as_bytes());
        assert!(answer.starts_with(expected), "{bytes:.60}: {answer}");
    }
    daemon.assert_serves();
}

#[test]
fn hostile_heads_and_bodies_get_an_error_or_an_end() {
    let daemon = Daemon::start(&[]);
    let many: String = (0..200).map(|index| format!("h{index}: x\r\n")).collect();
    let long = format!("h: {}\r\n", "x".repeat(40_000));
    for (bytes, expected) in [
        (format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n"), "HTTP/1.1 431"),
        (format!("GET / HTTP/1.1\r\nhost: x\r\n{long}\r\n"), "HTTP/1.1 431"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(40_000)), "HTTP/1.1 4"),
        ("nonsense nonsense nonsense nonsense\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        (
            "POST /v1/check HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             content-length: 99999999999\r\nconnection: close\r\n\r\n"
                .to_owned(),
            "HTTP/1.1 413",
        ),
        (
            format!(
                "POST /v1/check HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                 transfer-encoding: chunked\r\nconnection: close\r\n\r\n11171\r\n{}",
                "x".repeat(70_001)
            ),
            "HTTP/1.1 413",
        ),
    ] {
        let answer = send(daemon.http, bytes.as_bytes());
        assert!(answer.starts_with(expected), "{bytes:.60}: {answer}");
    }
    daemon.assert_serves();
}

#[test]
fn one_connection_too_many_is_told_so() {
    let daemon = Daemon::start(&["--max-connections", "4"]);
    let held: Vec<TcpStream> = (0..4)
        .flat_map(|_| [daemon.resp, daemon.http])
        .map(|address| TcpStream::connect(address).unwrap())
        .collect();
    let began = Instant::now();
    let full = |protocol: &str| {
        daemon.metric(&format!("tollkeeper_connections{{protocol=\"{protocol}\"}}")) == 4
    };
    while !(full("resp") && full("http")) {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(send(daemon.resp, b""), "-ERR max number of clients reached\r\n");
    assert!(send(daemon.http, b"").starts_with("HTTP/1.1 503"));
    drop(held);
    while full("resp") || full("http") {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    daemon.assert_serves();
}

/// Clients that ask for much and read nothing: the server stops reading them.
#[test]
fn clients_that_never_read_cost_a_bounded_amount() {
    let daemon = Daemon::start(&[]);
    daemon.assert_serves();
    let before = daemon.resident();
    let check = "TOLL.CHECK media POST /v1/images team t\r\n".repeat(500);
    let info = "INFO\r\n".repeat(4000);
    let body = json!({"checks": vec![json!({"api": "media", "class": "read", "attributes": {"team": "t"}}); 64]});
    let body = body.to_string();
    let batch = format!(
        "POST /v1/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut held = Vec::new();
    let clients = 60;
    for index in 0..clients {
        let (address, text) = match index % 3 {
            0 => (daemon.resp, check.as_str()),
            1 => (daemon.resp, info.as_str()),
            _ => (daemon.http, batch.as_str()),
        };
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        // As much as it takes; it takes no more than its answers have room for.
        let text = text.repeat(100);
        let mut sent = 0;
        while let Ok(written) = stream.write(&text.as_bytes()[sent..]) {
            sent += written;
            if sent == text.len() {
                break;
            }
        }
        held.push(stream);
    }
    daemon.assert_serves();
    std::thread::sleep(Duration::from_secs(2));
    let grown = daemon.resident().saturating_sub(before);
    println!("{clients} clients that never read: {} KiB each", grown / 1024 / clients);
    assert!(grown < clients * MIB, "{grown} bytes");
    daemon.assert_serves();
    drop(held);
}

#[test]
fn silent_connections_cost_little() {
    let daemon = Daemon::start(&[]);
    daemon.assert_serves();
    let before = daemon.resident();
    let count = 400;
    let held: Vec<TcpStream> = (0..count)
        .map(|index| {
            let address = if index % 2 == 0 { daemon.resp } else { daemon.http };
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(if index % 2 == 0 { b"*3\r\n$4\r\nEC" } else { b"GET /v1" }).unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    while daemon.metric("tollkeeper_connections{protocol=\"http\"}") < count / 2 {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    let grown = daemon.resident().saturating_sub(before);
    println!("{count} silent connections: {} bytes each", grown / count);
    assert!(grown < count * 64 * 1024, "{grown} bytes");
    daemon.assert_serves();
    drop(held);
}

#[test]
#[ignore = "waits for deadlines of ten seconds"]
fn what_is_begun_and_not_ended_ends_the_connection() {
    let daemon = Daemon::start(&[]);
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = TcpStream::connect(daemon.resp).unwrap();
            // A byte now and then buys no time.
            let mut answer = String::new();
            stream.write_all(b"*2\r\n$4\r\nECHO\r\n$100\r\n").unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            while began.elapsed() < Duration::from_secs(40) {
                if stream.write_all(b"x").is_err() || stream.read_to_string(&mut answer).is_ok() {
                    break;
                }
            }
            assert!(answer.starts_with("-ERR a command was begun"), "{answer}");
            assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
        });
        scope.spawn(|| {
            assert_eq!(send(daemon.http, b"GET /v1"), "");
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        });
        scope.spawn(|| {
            let head = "POST /v1/check HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                        content-length: 10\r\nconnection: close\r\n\r\n{";
            assert!(send(daemon.http, head.as_bytes()).starts_with("HTTP/1.1 408"));
        });
    });
    daemon.assert_serves();
}

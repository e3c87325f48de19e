//! The admin door over real sockets: what operators and Prometheus read, and what bad input gets.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollkeeper_protocol::client::{CheckArgs, Client, Options};
use tollkeeper_protocol::request::{Form, InlineLimit, InlineQuota};
use tollkeeper_protocol::status::Retry;

/// A daemon of its own for one test, on ports that the system chose.
struct Daemon {
    child: Child,
    binary: SocketAddr,
    admin: SocketAddr,
}

impl Daemon {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tollkeeper"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"])
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
        Self { binary: after("binary "), admin: after("admin http://"), child }
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    fn get(&self, path: &str) -> Response {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
    }

    fn post(&self, path: &str, body: &str) -> Response {
        let length = body.len();
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    }

    fn check(&self, body: &Value) -> Value {
        let response = self.post("/v1/check", &body.to_string());
        assert_eq!(response.status, 200, "{}", response.body);
        serde_json::from_str(&response.body).unwrap()
    }

    fn send(&self, request: &str) -> Response {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The answer may come, and the connection end, before all of a bad request was taken.
        let _ = stream.write_all(request.as_bytes());
        Response::read(&mut stream)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    /// Reads up to the end of the connection.
    fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        Self::parse(&String::from_utf8(bytes).unwrap())
    }

    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// Code and message of an error.
    fn error(&self) -> (String, String) {
        let body: Value =
            serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{}", self.body));
        let text = |name: &str| body["error"][name].as_str().unwrap().to_owned();
        (text("code"), text("message"))
    }
}

/// A page of Prometheus' text format, read as strictly as its grammar is.
fn samples(page: &str) -> HashMap<String, f64> {
    let mut samples = HashMap::new();
    let (mut helps, mut types): (HashSet<&str>, HashMap<&str, &str>) = Default::default();
    let is_name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    assert!(page.ends_with('\n'));
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty() && helps.insert(name), "{line}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name, kind).is_none(), "{line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(value.is_finite(), "{line}");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|family| types.get(family) == Some(&"histogram"))
            .unwrap_or(name);
        assert!(is_name(name) && helps.contains(family) && types.contains_key(family), "{line}");
        assert_eq!(types[family] == "counter", family.ends_with("_total"), "{line}");
        let mut rest = labels;
        while rest != "}" {
            let (label, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(label), "{line}");
            let end = value
                .char_indices()
                .scan(false, |escaped, (at, char)| {
                    let ends = char == '"' && !*escaped;
                    *escaped = char == '\\' && !*escaped;
                    Some((at, ends))
                })
                .find_map(|(at, ends)| ends.then_some(at))
                .unwrap_or_else(|| panic!("{line}"));
            rest = &value[end + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        assert!(samples.insert(series.to_owned(), value).is_none(), "{line} twice");
    }
    samples
}

fn image(team: &str) -> Value {
    let attributes = json!({ "team": team, "request_id": "r1" });
    json!({ "api": "media", "method": "POST", "path": "/v1/images", "attributes": attributes })
}

#[test]
fn counts_move_as_checks_are_made_and_the_page_keeps_the_grammar() {
    let daemon = Daemon::start(&[]);
    let before = samples(&daemon.get("/metrics").body);
    let mut bulk = image("t1");
    bulk["cost"] = json!(119);
    assert_eq!(daemon.check(&bulk)["decision"], "allow");
    assert_eq!(daemon.check(&image("t1"))["decision"], "allow");
    assert_eq!(daemon.check(&bulk)["decision"], "deny");
    let unmatched = json!({ "api": "media", "method": "DELETE", "path": "/v1/images" });
    assert_eq!(daemon.check(&unmatched)["limits"], json!([]));
    daemon.check(&json!({ "api": "media", "class": "read" }));
    assert_eq!(daemon.post("/v1/peek", &image("t9").to_string()).status, 200);
    assert_eq!(daemon.post("/v1/check", "{}").status, 400);

    let response = daemon.get("/metrics");
    assert!(response.head.contains("content-type: text/plain; version=0.0.4"), "{}", response.head);
    let after = samples(&response.body);
    let grown = |series: &str| after[series] - before[series];
    let checks = |decision: &str| {
        grown(&format!("tollkeeper_checks_total{{api=\"media\",decision=\"{decision}\"}}"))
    };
    assert_eq!(
        ["allow", "deny", "unavailable", "error"].map(checks),
        [3.0, 1.0, 1.0, 0.0],
        "each check once, peeks not"
    );
    assert_eq!(grown("tollkeeper_unmatched_total{api=\"media\"}"), 1.0);
    assert_eq!(grown("tollkeeper_unavailable_total{api=\"media\"}"), 1.0);
    let images = "api=\"media\",limit=\"images_post\"";
    let of = |outcome: &str| {
        grown(&format!("tollkeeper_decisions_total{{{images},outcome=\"{outcome}\"}}"))
    };
    assert_eq!(["allow", "deny"].map(of), [2.0, 1.0]);
    assert_eq!(grown(&format!("tollkeeper_units_total{{{images}}}")), 120.0);
    assert_eq!(grown(&format!("tollkeeper_keys{{{images}}}")), 1.0);
    assert_eq!(grown("tollkeeper_requests_total{protocol=\"admin\"}"), 8.0);
    assert_eq!(grown("tollkeeper_request_errors_total{protocol=\"admin\"}"), 1.0);
    let duration = "tollkeeper_decision_duration_seconds";
    assert_eq!(grown(&format!("{duration}_count{{protocol=\"admin\"}}")), 6.0);
    assert_eq!(after[&format!("{duration}_bucket{{protocol=\"admin\",le=\"+Inf\"}}")], 6.0);
    assert_eq!(after["tollkeeper_keys_max"], 16_777_216.0);
    assert!(after["process_resident_memory_bytes"] > 1e6 && after["process_open_fds"] > 3.0);
    // Whoever is limited is in no label.
    assert!(!response.body.contains("t1\"") && !response.body.contains("t9"));
}

#[test]
fn a_check_by_http_answers_what_the_binary_protocol_does() {
    let daemon = Daemon::start(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(daemon.binary.to_string(), Options::default()).await.unwrap();
        let handle = client.prepare("media", None).await.unwrap();
        let arguments = |cost: u64| {
            CheckArgs::new()
                .value("method", "POST")
                .value("path", "/v1/images")
                .value("team", "t1")
                .value("request_id", "r1")
                .costs([cost])
                .form(Form::FULL)
        };
        let description = handle.description();
        // One bucket for both doors: whatever one charges, the other sees.
        for (cost, decision) in [(50, "allow"), (50, "allow"), (100, "deny"), (200, "deny")] {
            let mut body = image("t1");
            body["cost"] = json!(cost);
            let path = if decision == "allow" { "/v1/check" } else { "/v1/peek" };
            let response = daemon.post(path, &body.to_string());
            let by_http: Value = serde_json::from_str(&response.body).unwrap();
            let binary = client.peek(&handle, &arguments(cost)).await.unwrap();
            assert_eq!(by_http["decision"], decision);

            let numbers = &binary.numbers.as_ref().unwrap().limits[0];
            let limit = &by_http["limits"][0];
            let name = &description.limits[usize::from(numbers.index)].name;
            assert_eq!((&limit["name"], &limit["kind"]), (&json!(name), &json!("bucket")));
            assert_eq!(by_http["binding"], json!({ "name": name, "window": null }));
            assert_eq!(limit["limit"], numbers.limit);
            // A unit a second comes back, and the binary protocol was asked a little later.
            let remaining = limit["remaining"].as_u64().unwrap();
            assert!((remaining..=remaining + 1).contains(&numbers.remaining), "{by_http}");
            let later = limit["full_ns"].as_u64().unwrap() - numbers.full_nanos;
            assert!(later < 1_000_000_000, "{by_http}");
            if decision == "allow" {
                continue;
            }
            // Neither charged, so the answers are the same.
            assert!(!binary.is_allowed());
            let rendered = binary.rendered.as_ref().unwrap();
            assert_eq!(by_http["status"], rendered.status);
            assert_eq!(by_http["content_type"], rendered.content_type);
            assert_eq!(limit["retry_after_ns"].is_null(), cost > 120, "{by_http}");
            assert_eq!(matches!(binary.retry, Retry::Never), cost > 120);
            let headers = by_http["headers"].as_object().unwrap();
            assert_eq!(headers.len(), rendered.headers.len());
            for (name, value) in &rendered.headers {
                // But for what counts down.
                if !name.ends_with("Remaining") && name != "Retry-After" {
                    assert_eq!(headers[name].as_str().unwrap().as_bytes(), value, "{name}");
                }
            }
            let body = by_http["body"].as_str().unwrap();
            assert!(body.contains("\"request_id\": \"r1\""), "{body}");
            if cost > 120 {
                assert_eq!(body.as_bytes(), rendered.body.as_ref().unwrap());
            }
        }
    });
}

#[test]
fn the_binary_protocols_checks_are_counted_apart_from_http() {
    let daemon = Daemon::start(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(async {
        let client = Client::connect(daemon.binary.to_string(), Options::default()).await.unwrap();
        let read = client.prepare("media", Some("read")).await.unwrap();
        for _ in 0..3 {
            client.check(&read, &CheckArgs::new().value("team", "t1")).await.unwrap();
        }
        let quota = InlineQuota::Bucket { units: 10, window_nanos: 60_000_000_000, burst: 10 };
        for _ in 0..2 {
            let limit = InlineLimit { cost: 7, quota, key: b"k" };
            client.check_inline(&[limit], Form::TERSE).await.unwrap();
        }
        client
    });
    let metrics = samples(&daemon.get("/metrics").body);
    let is = |series: &str, value: f64| assert_eq!(metrics[series], value, "{series}");
    is("tollkeeper_checks_total{api=\"media\",decision=\"allow\"}", 3.0);
    is("tollkeeper_decisions_total{api=\"media\",limit=\"read\",outcome=\"allow\"}", 3.0);
    is("tollkeeper_checks_total{api=\"inline\",decision=\"allow\"}", 1.0);
    is("tollkeeper_checks_total{api=\"inline\",decision=\"deny\"}", 1.0);
    is("tollkeeper_units_total{api=\"inline\",limit=\"inline\"}", 7.0);
    is("tollkeeper_keys{api=\"inline\",limit=\"inline\"}", 1.0);
    // HELLO, PREPARE, three checks and two inline ones; nothing came by HTTP before this scrape.
    is("tollkeeper_requests_total{protocol=\"binary\"}", 7.0);
    is("tollkeeper_requests_total{protocol=\"admin\"}", 0.0);
    is("tollkeeper_connections{protocol=\"binary\"}", 1.0);
    is("tollkeeper_connections_max{protocol=\"binary\"}", 10_000.0);
    drop(client);
}

#[test]
fn bad_input_gets_an_error_that_names_it() {
    let daemon = Daemon::start(&[]);
    for (body, code, words) in [
        ("{", "BAD_REQUEST", "no JSON"),
        (r#"{"api":"media","class":"read","klass":1}"#, "BAD_REQUEST", "unknown field `klass`"),
        (r#"{"api":"media","class":"read","api":"x"}"#, "BAD_REQUEST", "field `api` comes twice"),
        (r#"{"api":"media","class":"read","cost":"5"}"#, "BAD_COST", "field `cost` is \"5\""),
        (r#"{"api":"nope","class":"read"}"#, "UNKNOWN_API", "allowed are media"),
        (r#"{"api":"media","class":"nope"}"#, "UNKNOWN_CLASS", "images_post"),
    ] {
        let response = daemon.post("/v1/check", body);
        let (found, message) = response.error();
        assert_eq!((response.status, found.as_str()), (400, code), "{message}");
        assert!(message.contains(words), "{message}");
    }
    let oversized = daemon.post("/v1/check", &" ".repeat(65_537));
    assert_eq!((oversized.status, oversized.error().0.as_str()), (413, "TOO_LARGE"));
    assert!(oversized.error().1.contains("65537") && oversized.error().1.contains("65536"));
    // One that lies about its length, or gives none, is not read further than the maximum either.
    let chunk = format!("11000\r\n{}\r\n0\r\n\r\n", " ".repeat(0x11000));
    let chunked_with = |chunks: &str| {
        daemon.send(&format!(
            "POST /v1/check HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"
        ))
    };
    let chunked = chunked_with(&chunk);
    assert_eq!((chunked.status, chunked.error().0.as_str()), (413, "TOO_LARGE"));

    let form =
        "POST /v1/check HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(daemon.send(form).status, 415);
    let wrong_method = daemon.get("/v1/check");
    assert_eq!(
        (wrong_method.status, wrong_method.error().1.ends_with("allowed is POST")),
        (405, true)
    );
    let wrong_path = daemon.get("/nope");
    assert_eq!((wrong_path.status, wrong_path.error().1.contains("/metrics")), (404, true));
    assert_eq!(daemon.send("\x16\x03\x01 not HTTP\r\n\r\n").status, 400);
    let head = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    assert_eq!(daemon.send(&head).status, 431);
    let headers = format!("GET /livez HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(65));
    assert_eq!(daemon.send(&headers).status, 431);
    assert_eq!(daemon.get("/livez").status, 200);
}

#[test]
fn what_cannot_be_decided_is_answered_by_when_unavailable() {
    let directory = std::env::temp_dir().join(format!("tollkeeper-admin-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let policy = "schema = 1\n\
        [api.a]\nclass.open = [\"GET /open\"]\nclass.shut = [\"GET /shut\"]\n[api.a.limit]\n\
        open = { on = \"open\", per = [\"user\"], bucket = \"9/min\" }\n\
        shut = { on = \"shut\", per = [\"user\"], bucket = \"9/min\", when_unavailable = \"deny\" }\n";
    std::fs::write(directory.join("a.toml"), policy).unwrap();
    let daemon = Daemon::start(&["--max-keys", "1", "--policy", directory.to_str().unwrap()]);
    std::fs::remove_dir_all(&directory).unwrap();
    let check = |class: &str, attributes: Value| {
        daemon.check(&json!({ "api": "a", "class": class, "attributes": attributes }))
    };
    let first = check("open", json!({ "user": "u1" }));
    assert_eq!((&first["decision"], &first["error"]), (&json!("allow"), &Value::Null));
    for (attributes, code) in
        [(json!({ "user": "u2" }), "TABLE_FULL"), (json!({}), "BAD_ATTRIBUTE")]
    {
        let open = check("open", attributes.clone());
        assert_eq!((&open["decision"], &open["status"]), (&json!("allow"), &json!(200)));
        assert_eq!(open["error"]["code"], code);
        let shut = check("shut", attributes);
        assert_eq!((&shut["decision"], &shut["status"]), (&json!("deny"), &json!(429)));
        assert_eq!(shut["error"]["code"], code);
        assert!(shut["binding"].is_null() && shut["body"].is_null());
    }
    // A peek needs no new counter, and is no check.
    let body = json!({ "api": "a", "class": "shut", "attributes": { "user": "u2" } });
    let peek = daemon.post("/v1/peek", &body.to_string());
    assert!(peek.body.contains("\"remaining\":9"), "{}", peek.body);
    let metrics = samples(&daemon.get("/metrics").body);
    assert_eq!(metrics["tollkeeper_unavailable_total{api=\"a\"}"], 4.0);
    assert_eq!(metrics["tollkeeper_keys{api=\"a\",limit=\"open\"}"], 1.0);
}

#[test]
fn readiness_ends_before_the_connections_do() {
    let mut daemon = Daemon::start(&[]);
    for path in ["/livez", "/readyz", "/healthz", "/healthcheck"] {
        let response = daemon.get(path);
        assert_eq!((response.status, response.body.as_str()), (200, "ok\n"));
    }
    let verbose = daemon.get("/readyz?verbose").body;
    assert!(verbose.contains("[+] policy ok: built-in example \"media\""), "{verbose}");

    // A client that stays is what a drain waits for.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connected = Client::connect(daemon.binary.to_string(), Options::default());
    let _client = runtime.block_on(connected).unwrap();
    let mut probe = TcpStream::connect(daemon.admin).unwrap();
    probe.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    daemon.terminate();
    let began_at = Instant::now();
    let refused = loop {
        assert!(began_at.elapsed() < Duration::from_secs(5), "it was never unready");
        probe.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut bytes = [0; 4096];
        let count = probe.read(&mut bytes).unwrap();
        assert!(count > 0, "the door closed while it was ready");
        let response = Response::parse(std::str::from_utf8(&bytes[..count]).unwrap());
        if response.status != 200 {
            break response;
        }
    };
    assert_eq!(refused.status, 503);
    assert!(refused.body.contains("[-] serving failed: the node is draining"), "{}", refused.body);
    assert!(daemon.child.wait().unwrap().success());
    assert!(began_at.elapsed() < Duration::from_secs(4));
    assert!(TcpStream::connect(daemon.admin).is_err());
}

#[test]
fn status_shows_a_node_at_a_glance_and_says_when_there_is_none() {
    let daemon = Daemon::start(&["--max-keys", "1000", "--max-connections", "7"]);
    for _ in 0..3 {
        daemon.check(&image("t1"));
    }
    let mut never = image("t1");
    never["cost"] = json!(121);
    daemon.check(&never);
    let admin = daemon.admin.to_string();
    let status = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollkeeper"));
        // The node is on this machine, whatever proxy the environment names.
        command.env("http_proxy", "http://127.0.0.1:1").env("HTTP_PROXY", "http://127.0.0.1:1");
        command.args(["status", "--admin", &admin]).args(arguments).output().unwrap()
    };
    let text = String::from_utf8(status(&[]).stdout).unwrap();
    for words in [
        "built-in example \"media\" · version ",
        "keys         1 of 1000 · table",
        "checks       4 · ",
        "denials      1 · ",
        "connections  0 of 7",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    let images = text.lines().find(|line| line.contains("images_post")).unwrap();
    let cells: Vec<&str> = images.split_whitespace().collect();
    assert_eq!(cells, ["media", "images_post", "bucket", "enforce", "1", "800", "1"]);

    let found: Value = serde_json::from_slice(&status(&["--json"]).stdout).unwrap();
    assert_eq!((&found["checks"]["total"], &found["denials"]["total"]), (&json!(4), &json!(1)));
    assert_eq!(found["apis"], json!(["media"]));
    assert!(found["checks"]["per_second"].as_f64().unwrap() > 0.0);

    drop(daemon);
    let output = status(&[]);
    assert_eq!(output.status.code(), Some(2));
    let expected = format!("tollkeeper: cannot reach {admin}; is `tollkeeper serve` running?\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
}

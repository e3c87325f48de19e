//! What Envoy does beyond the others: a second API on the same listener, its own headers made of
//! our statuses, its failure mode, and permits that are given back when a request is done.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{
    Daemon, Front, Gateway, PATIENCE, ROOT, ask, daemon, front, front_with, logged, upstream,
};

/// Requests at once that the policy of [`permits`] lets through.
const SLOTS: u64 = 8;

/// Clients that ask at once.
const CLIENTS: u64 = 24;

/// Answers what [`super::try_out`] does not ask.
pub(super) fn try_out(gateway: &Gateway, program: &Path) {
    pages(gateway, program);
    own_headers(gateway, program);
    missing_descriptors(gateway, program);
    deny_mode(gateway, program);
    permits(gateway, program);
}

fn policy(gateway: &Gateway, name: &str, text: &str) -> String {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("{}-{name}-{}.toml", gateway.folder, std::process::id()));
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The page of `generate.toml`, and what a policy's routes make of paths as clients write them.
fn pages(gateway: &Gateway, program: &Path) {
    let daemon = daemon(&format!("{ROOT}/examples/policies"));
    let front = front(gateway, program, &daemon, upstream());
    let generate = |path: &str, user: &str| {
        let headers = format!("Host: generate.example\r\nX-User: {user}\r\n");
        ask(front.address, "POST", path, &headers).unwrap()
    };
    // Of a window that ends just now another three are let through.
    let answers: Vec<_> = (0..7).map(|_| generate("/txt2img", "u1")).collect();
    let denied = answers.iter().find(|answer| answer.status != 200).expect("a denial");
    assert!(answers[..3].iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(denied.status, 429, "{denied:?}");
    assert_eq!(denied.body, "{ \"message\": \"Too Many Attempts.\" }");
    for (name, value) in [
        ("x-ratelimit-limit", "3"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-daily-limit", "100"),
        ("x-ratelimit-type", "minute"),
        ("content-type", "application/json"),
        ("x-envoy-ratelimited", "true"),
    ] {
        assert_eq!(denied.header(name), Some(value), "{denied:?}");
    }
    let wait: u64 = denied.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{denied:?}");
    assert_eq!(answers[0].header("x-ratelimit-limit"), None, "{answers:?}");
    // A user's other endpoint, another user, and no user at all, whom nothing is known of.
    assert_eq!(generate("/img2img", "u1").status, 200);
    assert_eq!(generate("/txt2img", "u2").status, 200);
    for _ in 0..5 {
        let response = ask(front.address, "POST", "/txt2img", "Host: generate.example\r\n");
        assert_eq!(response.unwrap().status, 200);
    }
    // However a client writes a path, it is the same route.
    let headers = "Host: api.example\r\nX-Team: paths\r\n";
    let forms = ["/v1/images", "/v1/images?a=/b", "/v1/images/", "//v1///images", "/v1/./im%61ges"];
    for (index, form) in forms.into_iter().enumerate() {
        let response = ask(front.address, "POST", form, headers).unwrap();
        let left = response.header("x-ratelimit-remaining").unwrap_or("none").parse::<usize>();
        // A token may have come back meanwhile.
        assert!(left.is_ok_and(|left| (119 - index..120).contains(&left)), "{form}: {response:?}");
    }
    drop(front.process);
    let _ = std::fs::remove_dir_all(&front.folder);
}

/// Where a policy has no headers, Envoy makes its own, and they say what holds.
fn own_headers(gateway: &Gateway, program: &Path) {
    let text = "schema = 1\n[api.media.limit]\ncalls = { per = [\"team\"], sliding = \"5/min\" }\n\
                slow = { per = [\"team\"], bucket = \"100/hour burst 50\" }\n";
    let path = policy(gateway, "own", text);
    let daemon = daemon(&path);
    let on = [
        ("# enable_x_ratelimit_headers", "enable_x_ratelimit_headers"),
        ("# enable_retry_after_header", "enable_retry_after_header"),
    ];
    let front = front_with(gateway, program, &daemon, upstream(), &on);
    for index in 0..6 {
        let response = super::request(front.address, "t1").unwrap();
        let limit = response.header("x-ratelimit-limit");
        assert_eq!(limit, Some("5, 5;w=60;name=\"calls.minute\""), "{response:?}");
        let left = 4_u64.saturating_sub(index).to_string();
        assert_eq!(response.header("x-ratelimit-remaining"), Some(&*left), "{response:?}");
        let reset: u64 = response.header("x-ratelimit-reset").unwrap().parse().unwrap();
        assert!((55..=61).contains(&reset), "{response:?}");
        assert_eq!(response.status, if index < 5 { 200 } else { 429 }, "{response:?}");
        let retry = response.header("retry-after").map(str::to_owned);
        assert_eq!(retry, (index == 5).then(|| reset.to_string()), "{response:?}");
    }
    drop(front.process);
    let _ = std::fs::remove_dir_all(&front.folder);
    let _ = std::fs::remove_file(path);
}

/// A request without a header that an action names. Envoy leaves the whole descriptor out: of several
/// the others are asked about, and if none is left nobody is asked and the request passes, whatever
/// the policy says of what it cannot tell. With `skip_if_absent` it is asked, and the policy answers.
fn missing_descriptors(gateway: &Gateway, program: &Path) {
    const SENT: &str = "descriptor_key: team, skip_if_absent: true";
    const LEFT_OUT: &str = "descriptor_key: team";
    const ALSO_ALL: &str = "rate_limits: &rate_limits\n                  - actions:\n                    \
                            - generic_key: { descriptor_key: limit, descriptor_value: all }";
    let text = "schema = 1\n[api.media.limit]\n\
                calls = { per = [\"team\"], sliding = \"1000/min\", when_unavailable = \"deny\" }\n\
                all = { on = \"POST /nowhere\", per = [], fixed = \"60/day\", align = \"first\" }\n";
    let path = policy(gateway, "missing", text);
    let daemon = daemon(&path);
    let asked = || daemon.metric("tollkeeper_requests_total{protocol=\"envoy\"}");
    let ask_without = |front: &Front| {
        ask(front.address, "POST", "/v1/images", "Host: api.example\r\n").unwrap().status
    };
    for (changes, told) in [
        (&[][..], "skip_if_absent"),
        (&[(SENT, LEFT_OUT)], "left out"),
        (&[(SENT, LEFT_OUT), ("rate_limits: &rate_limits", ALSO_ALL)], "one of two left out"),
    ] {
        let front = front_with(gateway, program, &daemon, upstream(), changes);
        let before = asked();
        let statuses: Vec<u16> = (0..70).map(|_| ask_without(&front)).collect();
        let passed = statuses.iter().filter(|status| **status == 200).count();
        let asked = asked() - before;
        match told {
            "skip_if_absent" => assert_eq!((passed, asked), (0, 70), "{told}: {statuses:?}"),
            "left out" => assert_eq!((passed, asked), (70, 0), "{told}: {statuses:?}"),
            // The start has asked for some of the sixty.
            _ => {
                assert!((1..60).contains(&passed) && asked == 70, "{told}: {passed}, {asked}");
                assert!(statuses[..passed].iter().all(|status| *status == 200), "{statuses:?}");
            }
        }
        drop(front.process);
        let _ = std::fs::remove_dir_all(&front.folder);
    }
    let _ = std::fs::remove_file(path);
}

/// With the daemon killed Envoy denies, if it was told to.
fn deny_mode(gateway: &Gateway, program: &Path) {
    let mut daemon = daemon(&format!("{ROOT}/examples/policies/media.toml"));
    let deny = [("failure_mode_deny: false", "failure_mode_deny: true")];
    let front = front_with(gateway, program, &daemon, upstream(), &deny);
    // A domain that the policy does not have is a fault, and no answer.
    let unknown = ask(front.address, "POST", "/txt2img", "Host: generate.example\r\n").unwrap();
    assert_eq!(unknown.status, 500, "{unknown:?} {}", logged(&front.folder));
    daemon.process.0.kill().unwrap();
    daemon.process.0.wait().unwrap();
    assert_eq!(super::request(front.address, "t1").unwrap().status, 500);
    drop(front.process);
    let _ = std::fs::remove_dir_all(&front.folder);
}

/// An upstream that takes a while, and knows how many requests were in it at once.
fn counting_upstream(most: &Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (live, most) = (Arc::new(AtomicU64::new(0)), Arc::clone(most));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (live, most) = (Arc::clone(&live), Arc::clone(&most));
            std::thread::spawn(move || serve_slowly(stream, &live, &most));
        }
    });
    address
}

fn serve_slowly(mut stream: TcpStream, live: &AtomicU64, most: &AtomicU64) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for turn in 0_u64.. {
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
            line.clear();
        }
        if line.is_empty() {
            return;
        }
        most.fetch_max(live.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_micros(random(turn) % 6000));
        live.fetch_sub(1, Ordering::SeqCst);
        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").is_err() {
            return;
        }
    }
}

/// SplitMix64: the same numbers in each run.
fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Slots that are free, as the daemon says without Envoy.
fn free_slots(daemon: &Daemon) -> u64 {
    let body = r#"{"api":"media","method":"GET","path":"/","attributes":{"team":"t1"},"cost":0}"#;
    let mut stream = TcpStream::connect(daemon.http).unwrap();
    let request = format!(
        "POST /v1/peek HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, rest) = answer.split_once("\"remaining\":").unwrap_or_else(|| panic!("{answer}"));
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Slots of a concurrency limit come back when a request is done, is denied, or is given up at
/// any time. `TOLLKEEPER_GATEWAY_REQUESTS` says how many requests there are of each.
fn permits(gateway: &Gateway, program: &Path) {
    let text = format!(
        "schema = 1\n[api.media.limit]\n\
         slots = {{ per = [\"team\"], concurrent = {SLOTS}, lease = \"1hour\", retry_after = \"1s\" }}\n"
    );
    let path = policy(gateway, "permits", &text);
    let (daemon, most) = (daemon(&path), Arc::new(AtomicU64::new(0)));
    let Front { address, folder, process } =
        front(gateway, program, &daemon, counting_upstream(&most));
    let requests = std::env::var("TOLLKEEPER_GATEWAY_REQUESTS").ok();
    let requests: u64 = requests.map_or(1200, |text| text.parse().unwrap());
    let all_free = |what: &str| {
        let began = Instant::now();
        while free_slots(&daemon) != SLOTS {
            let free = free_slots(&daemon);
            assert!(began.elapsed() < PATIENCE, "{free} free {what}: {}", logged(&folder));
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    all_free("before");

    let began = Instant::now();
    let (passed, denied) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                for _ in 0..requests / CLIENTS {
                    let response = super::request(address, "t1").unwrap();
                    let count = if response.status == 200 { &passed } else { &denied };
                    assert!([200, 429].contains(&response.status), "{response:?}");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    all_free("after requests that came to their end");
    let (passed, denied) = (passed.into_inner(), denied.into_inner());
    let at_once = most.load(Ordering::SeqCst);
    assert!(passed > 0 && denied > 0 && at_once <= SLOTS, "{passed} {denied} {at_once}");
    println!(
        "{}: {passed} passed and {denied} were denied in {:?}, at most {at_once} of {SLOTS} at once",
        gateway.folder,
        began.elapsed()
    );

    let began = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                for turn in 0..requests / CLIENTS {
                    let chance = random(client << 32 | turn);
                    let mut stream = TcpStream::connect(address).unwrap();
                    let text = "POST /v1/images HTTP/1.1\r\nHost: x\r\nX-Team: t1\r\n\
                                Content-Length: 0\r\n\r\n";
                    stream.write_all(text.as_bytes()).unwrap();
                    // Half of them leave while the check is on its way, others later.
                    let range = if chance & 1 == 0 { 800 } else { 8000 };
                    std::thread::sleep(Duration::from_micros((chance >> 8) % range));
                }
            });
        }
    });
    all_free("after requests that were given up");
    println!(
        "{}: {requests} requests given up in {:?}, no slot lost",
        gateway.folder,
        began.elapsed()
    );
    drop(process);
    let _ = std::fs::remove_dir_all(&folder);
    let _ = std::fs::remove_file(path);
}

//! The example configs of `examples/gateways`, each loaded into its real gateway: 120 requests of a
//! burst pass, the 121st is answered with the page's status, headers and body, and with the daemon
//! killed the handle's rule holds.
//!
//! A gateway that is not installed is *skipped*: nothing is installed here, and a skip is no pass,
//! which is why this has a `main` of its own. `TOLLKEEPER_GATEWAYS=all` turns skips into failures.
//! Binaries are looked for on PATH; arguments are names of folders to try out.

#![allow(clippy::print_stdout)]

mod envoy;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const DAEMON: &str = env!("CARGO_BIN_EXE_tollkeeper");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Longer than a gateway takes to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process; killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A response as a client sees it.
#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &&str| {
            line.split_once(':').is_some_and(|(found, _)| found.eq_ignore_ascii_case(name))
        };
        self.head.lines().find(named)?.split_once(':').map(|(_, value)| value.trim())
    }
}

fn request(address: SocketAddr, team: &str) -> std::io::Result<Response> {
    ask(address, "POST", "/v1/images?size=1", &format!("Host: api.example\r\nX-Team: {team}\r\n"))
}

/// One request with these headers.
fn ask(address: SocketAddr, method: &str, path: &str, headers: &str) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let text = format!(
        "{method} {path} HTTP/1.1\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    // In one piece: the second of two small ones would wait for the first one's acknowledgement.
    stream.write_all(text.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(body) } else { body.to_owned() };
    Ok(Response { status, head: head.to_owned(), body })
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap_or(0);
        if length == 0 {
            break;
        }
        whole.push_str(&rest[..length]);
        body = rest[length..].trim_start_matches("\r\n");
    }
    whole
}

/// An upstream that answers 200 `hello` to whatever comes.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut line = String::new();
        // Heads without bodies are all that comes.
        while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
            line.clear();
        }
        if line.is_empty() {
            return;
        }
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        if stream.write_all(response).is_err() {
            return;
        }
    }
}

/// A port that nobody has now. Somebody may take it before the gateway does, who then fails loudly.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

struct Daemon {
    process: Running,
    _stdout: BufReader<std::process::ChildStdout>,
    binary: SocketAddr,
    admin: SocketAddr,
    http: SocketAddr,
    rls: SocketAddr,
}

impl Daemon {
    /// A count of the daemon's own.
    fn metric(&self, name: &str) -> u64 {
        let page = ask(self.admin, "GET", "/metrics", "Host: x\r\n").unwrap().body;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name}: {page}")).parse::<f64>().unwrap() as u64
    }
}

fn daemon(policy: &str) -> Daemon {
    let mut child = Command::new(DAEMON)
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--http", "127.0.0.1:0", "--http-trusted", "127.0.0.1"])
        .args(["--http-headers", "team=X-Team", "--rls", "127.0.0.1:0", "--policy", policy])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut ready = String::new();
    stdout.read_line(&mut ready).unwrap();
    let address = |word: &str| -> SocketAddr {
        let rest = ready.split_once(word).unwrap().1;
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    let (binary, http, rls) = (address(" binary "), address(" · http "), address(" · rls "));
    let admin = address(" admin http://");
    Daemon { process: Running(child), _stdout: stdout, binary, admin, http, rls }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian has servers where only root looks.
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// What a gateway is told, and how it differs from others.
struct Gateway {
    folder: &'static str,
    program: &'static str,
    /// What must be there beside the program.
    needs: &'static [&'static str],
    arguments: &'static [&'static str],
    /// Files beside those of its folder.
    also: &'static [&'static str],
    /// Whether a client sees the headers of an allowed request.
    tells_allowed: bool,
    /// Whether it knows the handle's rule for a daemon that is dead.
    heeds_rule: bool,
    /// What a client is answered then by the rule "allow".
    when_dead: u16,
    /// What else it does, once that was as it should be.
    also_try: Option<fn(&Gateway, &Path)>,
}

/// A gateway that serves.
struct Front {
    address: SocketAddr,
    folder: PathBuf,
    process: Running,
}

fn logged(folder: &Path) -> String {
    let read = |name| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    format!("{}\n{}", read("log"), read("error.log"))
}

/// Starts a gateway with its example config, and waits until it serves.
fn front(gateway: &Gateway, program: &Path, daemon: &Daemon, upstream: SocketAddr) -> Front {
    front_with(gateway, program, daemon, upstream, &[])
}

/// As [`front`], with changes to the config.
fn front_with(
    gateway: &Gateway,
    program: &Path,
    daemon: &Daemon,
    upstream: SocketAddr,
    changes: &[(&str, &str)],
) -> Front {
    let address = free_address();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "gateway-{}-{}",
        gateway.folder,
        std::process::id()
    ));
    std::fs::create_dir_all(&folder).unwrap();
    let examples = Path::new(ROOT).join("examples/gateways");
    let own = std::fs::read_dir(examples.join(gateway.folder)).unwrap();
    let files = own.map(|entry| entry.unwrap().path());
    for file in files.chain(gateway.also.iter().map(|also| examples.join(also))) {
        let text = std::fs::read_to_string(&file).unwrap();
        // The examples' addresses are what a reader would have; ours are those that are free.
        let text = text
            .replace(":8080", &format!(":{}", address.port()))
            .replace("port_value: 8080", &format!("port_value: {}", address.port()))
            .replace("port_value: 8081", &format!("port_value: {}", daemon.rls.port()))
            .replace("port_value: 9000", &format!("port_value: {}", upstream.port()))
            .replace("127.0.0.1:9000", &upstream.to_string())
            .replace("127.0.0.1:7443", &daemon.http.to_string())
            .replace("port = 7440", &format!("port = {}", daemon.binary.port()));
        let text = changes.iter().fold(text, |text, (old, new)| text.replace(old, new));
        std::fs::write(folder.join(file.file_name().unwrap()), text).unwrap();
    }
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let arguments = gateway.arguments.iter();
    let arguments = arguments.map(|text| text.replace("DIR", folder.to_str().unwrap()));
    let child = Command::new(program)
        .args(arguments)
        .current_dir(&folder)
        .env("HOME", &folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let process = Running(child);
    let began = Instant::now();
    // Its start is not the burst: another team asks until it answers as it should.
    while !request(address, "warm").is_ok_and(|response| response.status == 200) {
        assert!(
            began.elapsed() < PATIENCE,
            "{} does not start: {}",
            gateway.folder,
            logged(&folder)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Front { address, folder, process }
}

/// Why a gateway cannot be tried out here; `None`: it was, and did as it should.
fn try_out(gateway: &Gateway) -> Option<String> {
    let Some(program) = find(gateway.program) else {
        return Some(format!("there is no {} on PATH", gateway.program));
    };
    if let Some(missing) = gateway.needs.iter().find(|file| !Path::new(file).exists()) {
        return Some(format!("there is no {missing}"));
    }
    let mut daemon = daemon(&format!("{ROOT}/examples/policies/media.toml"));
    let upstream = upstream();
    let Front { address: front, folder, process } = front(gateway, &program, &daemon, upstream);
    let logged = || logged(&folder);

    let burst = Instant::now();
    for index in 0..120 {
        let response = request(front, "t1").unwrap();
        assert_eq!(response.status, 200, "{index}: {response:?} {}", logged());
        assert_eq!(response.body, "hello", "{response:?}");
        if gateway.tells_allowed {
            assert_eq!(response.header("x-ratelimit-limit"), Some("120"), "{response:?}");
            if burst.elapsed() < Duration::from_secs(1) {
                let left = (119 - index).to_string();
                assert_eq!(response.header("x-ratelimit-remaining"), Some(&*left));
            }
        }
    }
    // A token comes back each second, so a slow machine gets a few more before the bucket is empty.
    let spare = burst.elapsed().as_secs() + 1;
    let denied = (0..=spare)
        .map(|_| request(front, "t1").unwrap())
        .find(|response| response.status != 200)
        .expect("the bucket is never empty");
    assert_eq!(denied.status, 429, "{denied:?}");
    assert_eq!(denied.header("x-ratelimit-limit"), Some("120"), "{denied:?}");
    assert_eq!(denied.header("x-ratelimit-remaining"), Some("0"), "{denied:?}");
    assert_eq!(denied.header("retry-after"), Some("1"), "{denied:?}");
    assert_eq!(denied.header("cache-control"), Some("no-store"), "{denied:?}");
    assert!(denied.header("content-type").unwrap().starts_with("application/json"), "{denied:?}");
    let message = "\"message\": \"Rate limit exceeded for images_post. Retry after 1s.\"";
    assert!(denied.body.contains("\"code\": \"too_many_requests\""), "{denied:?}");
    assert!(denied.body.contains(message), "{denied:?}");
    assert_eq!(request(front, "t2").unwrap().status, 200);
    let took = burst.elapsed();

    daemon.process.0.kill().unwrap();
    daemon.process.0.wait().unwrap();
    let response = request(front, "t1").unwrap();
    assert_eq!(response.status, gateway.when_dead, "{response:?} {}", logged());
    drop(process);
    println!("{}: {} requests in {took:?}", gateway.folder, 121 + spare);
    if let Some(also_try) = gateway.also_try {
        also_try(gateway, &program);
    }
    if gateway.heeds_rule {
        deny_when_dead(gateway, &program, upstream, &folder);
    }
    let _ = std::fs::remove_dir_all(&folder);
    None
}

/// With the daemon killed, a handle that says to deny is heeded too.
fn deny_when_dead(gateway: &Gateway, program: &Path, upstream: SocketAddr, folder: &Path) {
    let text = std::fs::read_to_string(format!("{ROOT}/examples/policies/media.toml")).unwrap();
    let text = text.replace(
        "bucket = \"60/min burst 120\" }",
        "bucket = \"60/min burst 120\", when_unavailable = \"deny\" }",
    );
    let policy = folder.join("policy.toml");
    std::fs::write(&policy, text).unwrap();
    let mut daemon = daemon(policy.to_str().unwrap());
    let front = front(gateway, program, &daemon, upstream);
    daemon.process.0.kill().unwrap();
    daemon.process.0.wait().unwrap();
    let response = request(front.address, "t1").unwrap();
    assert_eq!(response.status, 429, "{response:?} {}", logged(&front.folder));
    assert_eq!(response.header("cache-control"), Some("no-store"), "{response:?}");
    let _ = std::fs::remove_dir_all(&front.folder);
}

const NGINX: &[&str] =
    &["-p", "DIR", "-c", "DIR/nginx.conf", "-e", "DIR/error.log", "-g", "daemon off;"];

const GATEWAYS: [Gateway; 6] = [
    Gateway {
        folder: "envoy",
        program: "envoy",
        needs: &[],
        arguments: &["-c", "envoy.yaml", "--use-dynamic-base-id", "--log-level", "warning"],
        also: &[],
        tells_allowed: true,
        heeds_rule: false,
        when_dead: 200,
        also_try: Some(envoy::try_out),
    },
    Gateway {
        folder: "nginx-lua",
        program: "nginx",
        needs: &["/usr/lib/nginx/modules/ngx_http_lua_module.so"],
        arguments: NGINX,
        also: &["lua/tollkeeper.lua"],
        tells_allowed: true,
        heeds_rule: true,
        when_dead: 200,
        also_try: None,
    },
    Gateway {
        folder: "nginx-njs",
        program: "nginx",
        needs: &["/usr/lib/nginx/modules/ngx_http_js_module.so"],
        arguments: NGINX,
        also: &[],
        tells_allowed: true,
        heeds_rule: false,
        when_dead: 200,
        also_try: None,
    },
    Gateway {
        folder: "haproxy",
        program: "haproxy",
        needs: &[],
        arguments: &["-f", "haproxy.cfg", "-db"],
        also: &["lua/tollkeeper.lua"],
        tells_allowed: true,
        heeds_rule: true,
        when_dead: 200,
        also_try: None,
    },
    Gateway {
        folder: "caddy",
        program: "caddy",
        needs: &[],
        arguments: &["run", "--config", "Caddyfile", "--adapter", "caddyfile"],
        also: &[],
        tells_allowed: true,
        heeds_rule: false,
        when_dead: 200,
        also_try: None,
    },
    // It denies what it cannot ask about, whatever the policy says.
    Gateway {
        folder: "traefik",
        program: "traefik",
        needs: &[],
        arguments: &["--configFile=traefik.toml"],
        also: &[],
        tells_allowed: false,
        heeds_rule: false,
        when_dead: 500,
        also_try: None,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        GATEWAYS.iter().for_each(|gateway| println!("{}: test", gateway.folder));
        return ExitCode::SUCCESS;
    }
    // The usual harness's options mean nothing here.
    let wanted: Vec<&String> = arguments.iter().filter(|name| !name.starts_with('-')).collect();
    let chosen = |gateway: &&Gateway| {
        wanted.is_empty() || wanted.iter().any(|name| gateway.folder.contains(name.as_str()))
    };
    let all = std::env::var("TOLLKEEPER_GATEWAYS").is_ok_and(|which| which == "all");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for gateway in GATEWAYS.iter().filter(chosen) {
        let count = match std::panic::catch_unwind(|| try_out(gateway)) {
            Ok(None) => ("ok".to_owned(), &mut passed),
            Ok(Some(why)) if all => (format!("FAILED: {why}"), &mut failed),
            Ok(Some(why)) => (format!("SKIPPED: {why}"), &mut skipped),
            Err(_) => ("FAILED".to_owned(), &mut failed),
        };
        println!("test {} ... {}", gateway.folder, count.0);
        *count.1 += 1;
    }
    println!("gateways: {passed} passed; {failed} failed; {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

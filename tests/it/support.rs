//! Processes: a daemon on ports that the system chose, and commands that ask it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_tollkeeper");

/// Longer than anything here takes; who waits so long waits for something that will not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    /// Kept open: a daemon may write to it until it ends.
    _stdout: BufReader<ChildStdout>,
    log: Option<JoinHandle<String>>,
    /// Hears of each line of the log.
    logged: mpsc::Receiver<String>,
    /// The line that said that it is ready.
    pub(crate) ready: String,
    /// Address of the binary protocol.
    pub(crate) address: SocketAddr,
    /// Address of the admin door.
    pub(crate) admin: SocketAddr,
}

/// The binary with these arguments, and nothing of the environment that it would heed.
pub(crate) fn command<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOLLKEEPER_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

impl Daemon {
    /// Starts a daemon with the built-in example and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let mut child = command(["serve", "--listen", "127.0.0.1:0"])
            .args(arguments)
            // So that arguments may say another.
            .env("TOLLKEEPER_ADMIN", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (log, logged) = mpsc::channel();
        let log = std::thread::spawn(move || {
            let mut all = String::new();
            for line in stderr.lines().map_while(Result::ok) {
                all.push_str(&line);
                all.push('\n');
                // Most tests do not listen.
                let _ = log.send(line);
            }
            all
        });
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        let address = ready
            .split_once(" binary ")
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .and_then(|address| address.parse().ok());
        let admin = ready
            .split_once("http://")
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .and_then(|address| address.parse().ok());
        let (Some(address), Some(admin)) = (address, admin) else {
            let _ = child.kill();
            panic!("no ready line: {ready:?}\n{}", log.join().unwrap_or_default());
        };
        Self { child, _stdout: stdout, log: Some(log), logged, ready, address, admin }
    }

    /// `tollkeeper COMMAND ARGUMENTS --server` this one.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        run(command(arguments).args(["--server", &self.address.to_string()]))
    }

    /// `tollkeeper COMMAND ARGUMENTS --admin` this one.
    pub(crate) fn tell(&self, arguments: &[&str]) -> Output {
        run(command(arguments).args(["--admin", &self.admin.to_string()]))
    }

    /// Waits for a line of the log and returns it.
    pub(crate) fn wait_for_log(&self, words: &str) -> String {
        while let Ok(line) = self.logged.recv_timeout(PATIENCE) {
            if line.contains(words) {
                return line;
            }
        }
        panic!("the log never said {words:?}");
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&self) {
        self.signal("KILL");
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        // The shell's own `kill`: there need not be a program of that name.
        let kill = Command::new("sh").args(["-c", "kill -$1 \"$0\"", &id, name]).status().unwrap();
        assert!(kill.success());
    }

    /// Waits for its end and returns its status and its log.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        (status, self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Each line of stdout as JSON.
    pub(crate) fn json(&self) -> Vec<Value> {
        let parsed = self.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        parsed.unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The decisions on stdout.
    pub(crate) fn decisions(&self) -> Vec<String> {
        let decision = |report: Value| report["decision"].as_str().unwrap().to_owned();
        self.json().into_iter().map(decision).collect()
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    Output {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A directory of this test's own; removed when dropped.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a file and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Reads a socket to its end.
pub(crate) fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

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
        Starting::new(&[&["--listen", "127.0.0.1:0"], arguments].concat()).ready()
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

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
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

/// A daemon that does not say yet that it is ready; killed when dropped.
pub(crate) struct Starting {
    child: Option<Child>,
    stdout: Option<BufReader<ChildStdout>>,
    log: Option<JoinHandle<String>>,
    logged: Option<mpsc::Receiver<String>>,
}

impl Starting {
    pub(crate) fn new(arguments: &[&str]) -> Self {
        Self::of(command(["serve"]).args(arguments))
    }

    /// Starts a command that becomes a daemon.
    pub(crate) fn of(command: &mut Command) -> Self {
        let mut child = command
            // So that arguments may say another.
            .env("TOLLKEEPER_ADMIN", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
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
        let (child, stdout) = (Some(child), Some(stdout));
        Self { child, stdout, log: Some(log), logged: Some(logged) }
    }

    /// Waits until it is ready.
    pub(crate) fn ready(self) -> Daemon {
        self.or_ended().unwrap_or_else(|log| panic!("no ready line\n{log}"))
    }

    /// Waits until it is ready, or has ended: then its log.
    pub(crate) fn or_ended(mut self) -> Result<Daemon, String> {
        let mut ready = String::new();
        let mut stdout = self.stdout.take().unwrap();
        stdout.read_line(&mut ready).unwrap();
        let after = |word: &str| -> Option<SocketAddr> {
            let (_, rest) = ready.split_once(word)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let addresses = (after(" binary "), after("http://"));
        let mut child = self.child.take().unwrap();
        let (Some(address), Some(admin)) = addresses else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(self.log.take().unwrap().join().unwrap_or_default());
        };
        let (log, logged) = (self.log.take(), self.logged.take().unwrap());
        Ok(Daemon { child, _stdout: stdout, log, logged, ready, address, admin })
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A mount namespace of its own, where a test puts other files in place of some; gone when dropped.
pub(crate) struct Room(Child);

impl Room {
    /// One in which this script has run. `None`, having said so, where that is not permitted.
    #[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
    pub(crate) fn new(script: &str) -> Option<Self> {
        let script = format!("{script} && echo ready && exec sleep 3600");
        let holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let ready = holder.ok().and_then(|mut holder| {
            let (mut line, out) = (String::new(), holder.stdout.take()?);
            let read = BufReader::new(out).read_line(&mut line);
            let room = Self(holder);
            (read.is_ok() && line == "ready\n").then_some(room)
        });
        if ready.is_none() {
            println!("skipped: mount namespaces are not permitted here");
        }
        ready
    }

    /// The same program with the same arguments and environment, in this room.
    pub(crate) fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--mount=/proc/{}/ns/mnt", self.0.id()));
        inside.arg("--").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside.stdin(Stdio::null());
        inside
    }

    /// Runs a script in it.
    pub(crate) fn run(&self, script: &str) {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        assert!(self.inside(&shell).status().unwrap().success(), "{script}");
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
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

//! A node's admin door, asked over HTTP.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::config::ADMIN;

use super::fail;

/// How long the answer may take.
const TIME_MAX: Duration = Duration::from_secs(5);

/// The most bytes of the answer: thousands of limits fit.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// Whom to ask, and in which form to tell.
#[derive(Args)]
pub(super) struct Node {
    /// Admin address of the node
    #[arg(long, value_name = "ADDR", default_value_t = ADMIN, env = "TOLLKEEPER_ADMIN")]
    pub(super) admin: SocketAddr,
    /// One JSON object instead of text
    #[arg(long)]
    pub(super) json: bool,
}

/// What a node asks of who changes something.
#[derive(Args)]
pub(super) struct Key {
    /// File with the token that the node asks for, the same as the daemon's
    #[arg(long, value_name = "FILE", env = "TOLLKEEPER_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
}

impl Key {
    /// What the token makes of the header `Authorization`; `None` without one.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub(super) fn authorization(&self) -> Result<Option<String>, String> {
        let Some(file) = &self.admin_token_file else { return Ok(None) };
        let token = std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read token {}: {error}", file.display()))?;
        Ok(Some(format!("Bearer {}", token.trim())))
    }
}

/// Why there is no answer.
pub(super) enum Unanswered {
    /// Nobody is there.
    Unreachable(io::Error),
    /// Somebody is there who does not answer as a node does, or who refuses.
    Unlike(String),
}

impl Unanswered {
    /// Says so.
    pub(super) fn tell(&self, node: &Node) -> ExitCode {
        match self {
            Self::Unreachable(error) => super::unreachable(&node.admin.to_string(), error),
            Self::Unlike(what) => fail(&format!("{}: {what}", node.admin)),
        }
    }
}

impl Node {
    /// Gets a path.
    pub(super) fn get(&self, path: &str) -> Result<String, Unanswered> {
        read(agent().get(format!("http://{}{path}", self.admin)).call())
    }

    /// Posts a body.
    pub(super) fn post(
        &self,
        path: &str,
        body: &Value,
        key: Option<&Key>,
    ) -> Result<String, Unanswered> {
        self.post_within(path, body, key, TIME_MAX)
    }

    /// Posts a body to what may take its time.
    pub(super) fn post_within(
        &self,
        path: &str,
        body: &Value,
        key: Option<&Key>,
        time_max: Duration,
    ) -> Result<String, Unanswered> {
        let mut request = agent_within(time_max).post(format!("http://{}{path}", self.admin));
        request = request.header("content-type", "application/json");
        let authorization = key.map_or(Ok(None), Key::authorization);
        if let Some(authorization) = authorization.map_err(Unanswered::Unlike)? {
            request = request.header("authorization", authorization);
        }
        read(request.send(body.to_string()))
    }
}

/// No proxy, whatever the environment says: the node is asked, and nobody else.
fn agent() -> ureq::Agent {
    agent_within(TIME_MAX)
}

fn agent_within(time_max: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(time_max))
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .user_agent(concat!("tollkeeper/", env!("CARGO_PKG_VERSION")))
        .build();
    config.new_agent()
}

type Answer = Result<ureq::http::Response<ureq::Body>, ureq::Error>;

fn read(answer: Answer) -> Result<String, Unanswered> {
    let mut answer = answer.map_err(unanswered)?;
    let status = answer.status();
    let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
    let text = body.read_to_string().map_err(unanswered)?;
    if status.is_success() {
        return Ok(text);
    }
    // A node says what is wrong.
    let error = serde_json::from_str::<Value>(&text).ok();
    let message = error.as_ref().and_then(|error| error["error"]["message"].as_str());
    Err(Unanswered::Unlike(match message {
        Some(message) => message.to_owned(),
        None => format!("it answers {status}; is it the node's admin address?"),
    }))
}

fn unanswered(error: ureq::Error) -> Unanswered {
    match error {
        ureq::Error::Io(error) => Unanswered::Unreachable(error),
        ureq::Error::ConnectionFailed => {
            Unanswered::Unreachable(io::ErrorKind::ConnectionRefused.into())
        }
        ureq::Error::Timeout(_) => Unanswered::Unreachable(io::ErrorKind::TimedOut.into()),
        other => Unanswered::Unlike(other.to_string()),
    }
}

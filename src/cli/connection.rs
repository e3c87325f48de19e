//! Commands over the binary protocol: their connection, and why one has nothing to show.

use std::process::ExitCode;
use std::time::Duration;

use tollkeeper_protocol::client::{Client, ClientError, OnUnavailable, Options};

use super::fail;

/// Longest wait for an answer: people would rather wait than be told to try again.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a command has nothing to show.
pub(super) enum Failure {
    /// The caller: what was typed does not fit the policy.
    Typed(String),
    /// Whoever the error says.
    Client(ClientError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl Failure {
    fn tell(&self) -> ExitCode {
        match self {
            Self::Typed(message) => fail(message),
            Self::Client(ClientError::Unreachable { addr, source }) => {
                super::unreachable(addr, source)
            }
            Self::Client(error) => fail(&error.to_string()),
        }
    }
}

pub(super) fn block_on(command: impl Future<Output = Result<ExitCode, Failure>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("event loop: {error}")),
    };
    runtime.block_on(command).unwrap_or_else(|failure| failure.tell())
}

/// Connects as this program.
pub(super) async fn connect(server: &str) -> Result<Client, Failure> {
    let options = Options {
        client: concat!("tollkeeper-cli/", env!("CARGO_PKG_VERSION")).into(),
        deadline: DEADLINE,
        on_unavailable: OnUnavailable::Report,
        ..Options::default()
    };
    Ok(Client::connect(server, options).await?)
}

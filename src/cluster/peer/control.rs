//! Questions with one answer each, many at a time, over one connection per peer: votes, transfers,
//! and what others ask of the node.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use openraft::raft::{TransferLeaderRequest, VoteRequest};
use tokio::sync::{mpsc, oneshot};

use crate::cluster::types::TypeConfig;
use crate::cluster::wire::{self, Frame, Kind, Purpose, WireError};

use super::connection::{Connection, Pulse, SILENT_MAX_DIALED, Turn};
use super::handshake::dial;
use super::seam::{Backoff, within};
use super::{Environment, Peer};

/// Questions to one peer that wait, and as many that are under way.
pub(super) const CALLS_MAX: usize = 64;

const ANSWERS: &[Kind] =
    &[Kind::VoteAnswer, Kind::TransferAnswer, Kind::AskAnswer, Kind::Failure, Kind::Ping];

/// A question.
pub(super) enum Call {
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Transfer(TransferLeaderRequest<TypeConfig>),
    Ask(Bytes),
}

impl Call {
    fn put(&self, number: u64, out: &mut BytesMut) -> Result<(), WireError> {
        match self {
            Self::Vote(request) => wire::put_vote(Kind::Vote, number, request, out),
            Self::PreVote(request) => wire::put_vote(Kind::PreVote, number, request, out),
            Self::Transfer(request) => wire::put_transfer(number, request, out),
            Self::Ask(bytes) => wire::put_numbered(Kind::Ask, number, bytes, out),
        }
    }
}

/// Where questions to one peer are put.
pub(super) struct Control {
    calls: mpsc::Sender<Waiting>,
}

struct Waiting {
    call: Call,
    answer: oneshot::Sender<io::Result<Frame>>,
}

impl Control {
    pub(super) fn new() -> (Self, Calls) {
        let (calls, receiver) = mpsc::channel(CALLS_MAX);
        (Self { calls }, Calls(receiver))
    }

    /// Asks, and waits for the answer.
    pub(super) async fn call(&self, call: Call, time: Duration) -> io::Result<Frame> {
        let (answer, answered) = oneshot::channel();
        self.calls.try_send(Waiting { call, answer }).map_err(|_| {
            let text = format!("{CALLS_MAX} questions to this peer wait already");
            io::Error::new(io::ErrorKind::WouldBlock, text)
        })?;
        let answered = async {
            answered.await.unwrap_or_else(|_| Err(io::Error::other("the connection is gone")))
        };
        let frame = within(time, answered).await?;
        if frame.kind == Kind::Failure {
            let (_, text) = wire::numbered(frame.body)?;
            return Err(io::Error::other(wire::text(&text)));
        }
        Ok(frame)
    }
}

/// The other end of [`Control`].
pub(super) struct Calls(mpsc::Receiver<Waiting>);

/// Carries questions to `peer` for as long as it may. Dials when there is one.
pub(super) async fn run(environment: Arc<Environment>, peer: Arc<Peer>, mut calls: Calls) {
    let mut backoff = Backoff::new();
    while let Some(first) = calls.0.recv().await {
        if first.answer.is_closed() {
            continue;
        }
        let (local, net) = (&environment.local, &*environment.net);
        let address = peer.address();
        let counters = &environment.counters;
        match dial(net, local, counters, peer.node, &address, Purpose::Control).await {
            Ok(mut connection) => {
                backoff.reset();
                connection.expect(ANSWERS);
                if let Err(error) = carry(&mut connection, &mut calls, first).await {
                    tracing::debug!(peer = peer.node, %error, "the control connection is gone");
                }
            }
            Err(error) => {
                tracing::debug!(peer = peer.node, address, %error, "cannot be reached");
                let waiting = core::iter::from_fn(|| calls.0.try_recv().ok());
                for waiting in core::iter::once(first).chain(waiting) {
                    let _ =
                        waiting.answer.send(Err(io::Error::new(error.kind(), error.to_string())));
                }
                backoff.wait().await;
            }
        }
    }
}

/// Carries questions until the connection breaks.
async fn carry(connection: &mut Connection, calls: &mut Calls, first: Waiting) -> io::Result<()> {
    let mut under_way = BTreeMap::new();
    let mut pulse = Pulse::new();
    let mut number = 0;
    let mut next = Some(first);
    loop {
        if let Some(Waiting { call, answer }) = next.take() {
            match connection.put(|out| call.put(number, out)) {
                Ok(()) => _ = under_way.insert(number, answer),
                Err(error) => _ = answer.send(Err(error.into())),
            }
            number += 1;
        }
        select! {
            waiting = calls.0.recv(), if under_way.len() < CALLS_MAX => match waiting {
                Some(waiting) => next = Some(waiting),
                None => return Ok(()),
            },
            turn = connection.turn(false) => {
                let Turn::Frame(frame) = turn? else { continue };
                if frame.kind == Kind::Ping {
                    continue;
                }
                let (number, _) = wire::numbered(frame.body.clone())?;
                // Whoever asked may have given up.
                if let Some(answer) = under_way.remove(&number) {
                    let _ = answer.send(Ok(frame));
                }
            }
            () = pulse.due() => {
                under_way.retain(|_, answer: &mut oneshot::Sender<_>| !answer.is_closed());
                pulse.beat(connection, SILENT_MAX_DIALED)?;
            }
        }
    }
}

//! A client of all nodes of a cluster.
//!
//! Any node takes any request. Each charge has a request id, so one whose answer was lost is sent
//! again, to the next node, and is still charged once: a node that is killed, paused or restarted
//! costs its callers time, and no request.

mod ids;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    Answer, CheckArgs, Client, ClientError, Counters, Handle, Options, ServerInfo, SetDone,
};
use crate::permit::PermitId;
use crate::request::{Form, InlineLimit, Intent, RequestId};
use crate::response::{ReleaseAnswer, RenewAnswer};
use crate::status::Code;
use ids::{Found, Ids, Taken};

/// The shortest time that one try of a request waits for its answer, if there is so much left.
const TRY_MIN: Duration = Duration::from_millis(50);

/// Makes a call at one node after the other. A macro, as futures of closures that borrow are not
/// known to be `Send`.
macro_rules! at_any_node {
    ($tries:ident, |$node:ident, $within:ident| $call:expr) => {
        loop {
            let ($node, $within) = $tries.begin();
            let outcome = timeout($within, $call).await;
            if let Some(outcome) = $tries.end(outcome, $within).await {
                break outcome;
            }
        }
    };
}

/// Makes a call under a request id of its own.
macro_rules! once {
    ($cluster:ident, $until:expr, |$node:ident, $within:ident, $id:ident| $call:expr) => {{
        let until = $until;
        loop {
            let taken = $cluster.take_id(until).await?;
            let $id = taken.id();
            let mut tries = $cluster.tries(until);
            let outcome = at_any_node!(tries, |$node, $within| $call);
            if !tries.is_forgotten(&outcome, $id) {
                break outcome;
            }
        }
    }};
}

/// Connections to all nodes of a cluster, shared by clones. Requests go to one node for as long as
/// it answers, and to the next one when it does not.
#[derive(Clone, Debug)]
pub struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    nodes: Vec<Client>,
    /// Index of the node that answered last.
    preferred: AtomicUsize,
    ids: Ids,
    deadline: Duration,
    pause: Duration,
}

impl Cluster {
    /// Connects to the nodes at these addresses (`host:port`). Those that do not answer now are
    /// tried on; must be called within a tokio runtime. A deadline of `options` is for a request
    /// with all its tries.
    ///
    /// # Errors
    /// What the last node said, if none takes this client.
    pub async fn connect(
        addrs: impl IntoIterator<Item = impl Into<String>>,
        options: Options,
    ) -> Result<Self, ClientError> {
        let (deadline, pause) = (options.deadline, options.backoff_min);
        let begun: Vec<_> = addrs
            .into_iter()
            .map(|addr| tokio::spawn(Client::begin(addr.into(), options.clone())))
            .collect();
        let (mut nodes, mut preferred) = (Vec::with_capacity(begun.len()), None);
        let mut refused = ClientError::Closed;
        for begun in begun {
            let (node, outcome) = begun.await.map_err(|_| ClientError::Closed)?;
            match outcome {
                Ok(()) => preferred = preferred.or(Some(nodes.len())),
                Err(error) => refused = error,
            }
            nodes.push(node);
        }
        let Some(preferred) = preferred else { return Err(refused) };
        let preferred = AtomicUsize::new(preferred);
        Ok(Self(Arc::new(Inner { nodes, preferred, ids: Ids::default(), deadline, pause })))
    }

    /// What the node that answered last said of itself.
    pub fn server(&self) -> Arc<ServerInfo> {
        self.preferred().server()
    }

    /// What was counted, at all nodes together.
    pub fn counters(&self) -> Counters {
        self.0.nodes.iter().map(Client::counters).fold(Counters::default(), |sum, of| Counters {
            failed_open: sum.failed_open + of.failed_open,
            failed_closed: sum.failed_closed + of.failed_closed,
            reconnects: sum.reconnects + of.reconnects,
        })
    }

    fn preferred(&self) -> &Client {
        &self.0.nodes[self.0.preferred.load(Ordering::Relaxed)]
    }

    /// As [`Client::prepare`]; the handle is good at all nodes.
    ///
    /// # Errors
    /// As [`Client::prepare`].
    pub async fn prepare(&self, api: &str, class: Option<&str>) -> Result<Handle, ClientError> {
        let mut tries = self.tries(self.until(None));
        at_any_node!(tries, |node, _within| node.prepare(api, class))
    }

    /// As [`Client::check`], charged once however often it has to be sent.
    ///
    /// # Errors
    /// As [`Client::check`].
    pub async fn check(&self, handle: &Handle, args: &CheckArgs) -> Result<Answer, ClientError> {
        let outcome = self.check_or_fail(handle, args).await;
        self.preferred().settle(handle, outcome)
    }

    async fn check_or_fail(
        &self,
        handle: &Handle,
        args: &CheckArgs,
    ) -> Result<Answer, ClientError> {
        once!(self, self.until(args.deadline), |node, within, id| {
            let args = args.clone().once(id).deadline(within);
            async move { node.decide_or_fail(handle, &args, Intent::Charge).await }
        })
    }

    /// As [`Client::peek`].
    ///
    /// # Errors
    /// As [`Client::peek`].
    pub async fn peek(&self, handle: &Handle, args: &CheckArgs) -> Result<Answer, ClientError> {
        let mut tries = self.tries(self.until(args.deadline));
        let outcome = at_any_node!(tries, |node, within| {
            let args = args.clone().deadline(within);
            async move { node.decide_or_fail(handle, &args, Intent::Peek).await }
        });
        self.preferred().settle(handle, outcome)
    }

    /// As [`Client::check_inline`], charged once however often it has to be sent.
    ///
    /// # Errors
    /// As [`Client::check_inline`].
    pub async fn check_inline(
        &self,
        limits: &[InlineLimit<'_>],
        form: Form,
    ) -> Result<Answer, ClientError> {
        once!(self, self.until(None), |node, _within, id| node.check_inline_once(limits, form, id))
    }

    /// As [`Client::set`], done once however often it has to be sent.
    ///
    /// # Errors
    /// As [`Client::set`].
    pub async fn set(
        &self,
        handle: &Handle,
        args: &CheckArgs,
        limit: Option<u16>,
        used: u64,
    ) -> Result<SetDone, ClientError> {
        once!(self, self.until(args.deadline), |node, _within, id| {
            node.set(handle, args, limit, used, Some(id))
        })
    }

    /// As [`Client::adjust`], done once however often it has to be sent.
    ///
    /// # Errors
    /// As [`Client::adjust`].
    pub async fn adjust(
        &self,
        handle: &Handle,
        args: &CheckArgs,
        limit: Option<u16>,
        units: i64,
    ) -> Result<SetDone, ClientError> {
        once!(self, self.until(args.deadline), |node, _within, id| {
            node.adjust(handle, args, limit, units, Some(id))
        })
    }

    /// As [`Client::release`].
    ///
    /// # Errors
    /// As [`Client::release`].
    pub async fn release(&self, permit: PermitId) -> Result<ReleaseAnswer, ClientError> {
        let mut tries = self.tries(self.until(None));
        at_any_node!(tries, |node, _within| node.release(permit))
    }

    /// As [`Client::renew`].
    ///
    /// # Errors
    /// As [`Client::renew`].
    pub async fn renew(
        &self,
        permit: PermitId,
        lease: Option<Duration>,
    ) -> Result<RenewAnswer, ClientError> {
        let mut tries = self.tries(self.until(None));
        at_any_node!(tries, |node, _within| node.renew(permit, lease))
    }

    fn until(&self, deadline: Option<Duration>) -> Instant {
        Instant::now() + deadline.unwrap_or(self.0.deadline)
    }

    fn tries(&self, until: Instant) -> Tries<'_> {
        let first = self.0.preferred.load(Ordering::Relaxed);
        Tries { inner: &self.0, until, first, round: 0, pause: self.0.pause, charged: false }
    }

    async fn take_id(&self, until: Instant) -> Result<Taken<'_>, ClientError> {
        loop {
            let freed = self.0.ids.freed();
            match self.0.ids.find() {
                Found::Id(id) => return Ok(id),
                Found::Full => timeout_at(until, freed).await.map_err(|_| ClientError::Busy)?,
                Found::None => {
                    let mut tries = self.tries(until);
                    let session = at_any_node!(tries, |node, _within| node.session())?;
                    self.0.ids.add(session);
                }
            }
        }
    }
}

/// The tries of one request, at one node after the other until one answers.
struct Tries<'c> {
    inner: &'c Inner,
    until: Instant,
    first: usize,
    round: usize,
    pause: Duration,
    /// Whether a try that failed may have been charged.
    charged: bool,
}

impl<'c> Tries<'c> {
    fn index(&self) -> usize {
        (self.first + self.round) % self.inner.nodes.len()
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Where to try now, and for how long: half of the time that is left, so that there is some
    /// for the next.
    fn begin(&self) -> (&'c Client, Duration) {
        let left = self.left();
        (&self.inner.nodes[self.index()], (left / 2).max(TRY_MIN).min(left))
    }

    /// What comes of the request, unless it is to be tried again.
    async fn end<T>(
        &mut self,
        outcome: Result<Result<T, ClientError>, Elapsed>,
        after: Duration,
    ) -> Option<Result<T, ClientError>> {
        let error = match outcome.unwrap_or(Err(ClientError::TimedOut { after })) {
            Err(error) if may_try_again(&error) => error,
            outcome => {
                self.inner.preferred.store(self.index(), Ordering::Relaxed);
                return Some(outcome);
            }
        };
        self.charged |= !error.charged_nothing();
        if self.left() <= self.pause {
            return Some(Err(error));
        }
        self.round += 1;
        if self.round.is_multiple_of(self.inner.nodes.len()) {
            // All of them failed.
            sleep(self.pause).await;
            self.pause *= 2;
        }
        None
    }

    /// Whether the request is to get an id of another session: the server has forgotten this one,
    /// and nothing was charged under it.
    fn is_forgotten<T>(&self, outcome: &Result<T, ClientError>, id: RequestId) -> bool {
        match outcome {
            Err(ClientError::Refused(error)) if error.code == Code::UnknownSession => {
                self.inner.ids.forget(id.session);
                !self.charged && Instant::now() < self.until
            }
            _ => false,
        }
    }
}

/// Whether another node, or another moment, may have a better answer.
fn may_try_again(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(error) => matches!(
            error.code,
            Code::DeadlineExceeded
                | Code::UnknownOutcome
                | Code::Overloaded
                | Code::ShuttingDown
                | Code::NoQuorum
                | Code::NotLeader
                | Code::DiskFull
                | Code::Internal
        ),
        ClientError::Busy
        | ClientError::Unreachable { .. }
        | ClientError::Lost { .. }
        | ClientError::TimedOut { .. }
        | ClientError::BadAnswer(_)
        | ClientError::WrongAnswer => true,
        ClientError::BadArgument(_) | ClientError::UnknownSlot { .. } | ClientError::Closed => {
            false
        }
    }
}

//! The async client: one multiplexed connection to one node, and [`Cluster`], which has one to each
//! node and sends again what got no answer.
//!
//! [`Client`] is cheap to clone and shared by all tasks of a process. Requests are encoded by the
//! task that asks, written together by one driver task (`connection`), and matched to their
//! answers by call id. Every queue has a maximum. What happens to a check when no decision can be
//! had is the handle's own rule, and never silent: it is counted, and told to
//! [`Options::on_event`].

mod answer;
mod cluster;
mod connection;
mod error;
mod handle;
mod options;
mod session;

pub use answer::{Answer, Numbers, Rendered, SetDone};
pub use cluster::Cluster;
pub use error::{ClientError, ServerError};
pub use handle::{BatchItem, CheckArgs, Description, Handle, LimitDescription, SlotDescription};
pub use options::{Counters, Event, OnEvent, OnUnavailable, Options, ServerInfo};
pub use session::Session;

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::codec::List;
use crate::error::EncodeError;
use crate::framing::next_frame;
use crate::header::Envelope;
use crate::limits::ANSWER_BYTES_MAX;
use crate::permit::PermitId;
use crate::request::{
    Adjust, AdjustInline, BatchRequest, CheckInline, Form, InlineLimit, Intent, Ping, Prepare,
    Release, Renew, Reply, Request, RequestId, Set, SetInline,
};
use crate::response::{Prepared, ReleaseAnswer, RenewAnswer, Response};
use crate::status::{Code, WhenUnavailable};
use connection::{Command, Shared};

/// Requests that wait for room in flight; the next one waits for room here until its deadline.
pub const QUEUE_MAX: usize = 1_024;

/// A connection to one node, shared by its clones. Closes when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

impl Client {
    /// Connects to `addr` (`host:port`) and shakes hands. Later the connection is made anew
    /// whenever it is lost. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] if nothing answers, [`ClientError::Refused`] if the server
    /// does not want this client.
    pub async fn connect(addr: impl Into<String>, options: Options) -> Result<Self, ClientError> {
        let (client, outcome) = Self::begin(addr.into(), options).await;
        outcome.map(|()| client)
    }

    /// A client that goes on trying if nothing answers at first.
    async fn begin(addr: String, options: Options) -> (Self, Result<(), ClientError>) {
        let shared = Arc::new(Shared::new(addr, options));
        let opened = connection::open(&shared).await;
        let (link, outcome) = match opened {
            Ok(link) => (Some(link), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(connection::drive(shared.clone(), link, queue));
        (Self { commands, shared }, outcome)
    }

    /// The address given to [`connect`](Self::connect).
    pub fn addr(&self) -> &str {
        &self.shared.addr
    }

    /// What the server said of itself at the last handshake.
    pub fn server(&self) -> Arc<ServerInfo> {
        self.shared.server()
    }

    /// What was counted since the first connection.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// Asks for the handle of an API, or of one of its classes.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `UNKNOWN_API` or `UNKNOWN_CLASS`, or any trouble on the way.
    pub async fn prepare(&self, api: &str, class: Option<&str>) -> Result<Handle, ClientError> {
        Ok(Handle::new(self.describe(api, class).await?))
    }

    async fn describe(&self, api: &str, class: Option<&str>) -> Result<Description, ClientError> {
        let request = Request::Prepare(Prepare { api, class });
        let frame = self.call(&request, None).await?;
        match response(&frame)? {
            Response::Prepare(prepared) => Ok(Description::from_wire(&prepared)),
            _ => Err(ClientError::WrongAnswer),
        }
    }

    /// Checks and charges.
    ///
    /// When no decision can be had, the answer is the one that the handle's `when_unavailable`
    /// prescribes ([`Answer::unavailable`] says so), unless
    /// [`OnUnavailable::Report`] was chosen. A stale handle is prepared anew and the check sent
    /// once more, as nothing was charged.
    ///
    /// # Errors
    /// [`ClientError`], of which only a mistake of the caller's remains if the handle decides.
    pub async fn check(&self, handle: &Handle, args: &CheckArgs) -> Result<Answer, ClientError> {
        self.decide(handle, args, Intent::Charge).await
    }

    /// As [`check`](Self::check), and charges nothing.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub async fn peek(&self, handle: &Handle, args: &CheckArgs) -> Result<Answer, ClientError> {
        self.decide(handle, args, Intent::Peek).await
    }

    async fn decide(
        &self,
        handle: &Handle,
        args: &CheckArgs,
        intent: Intent,
    ) -> Result<Answer, ClientError> {
        let outcome = self.decide_or_fail(handle, args, intent).await;
        self.settle(handle, outcome)
    }

    /// Turns the lack of a decision into the one that the handle prescribes.
    fn settle(
        &self,
        handle: &Handle,
        outcome: Result<Answer, ClientError>,
    ) -> Result<Answer, ClientError> {
        match outcome {
            Err(error)
                if error.is_unavailable()
                    && self.shared.options.on_unavailable == OnUnavailable::ByHandle =>
            {
                let description = handle.description();
                let allow = description.when_unavailable == WhenUnavailable::Allow;
                self.shared.unavailable(allow, &error);
                Ok(Answer::without_decision(&description, error))
            }
            Ok(answer) => {
                if answer.failed_open {
                    self.shared.failed_open_by_server();
                }
                Ok(answer)
            }
            outcome => outcome,
        }
    }

    async fn decide_or_fail(
        &self,
        handle: &Handle,
        args: &CheckArgs,
        intent: Intent,
    ) -> Result<Answer, ClientError> {
        let known = handle.description();
        let outcome = self.decide_once(&known, &known, args, intent).await;
        let Err(ClientError::Refused(error)) = &outcome else { return outcome };
        if !matches!(error.code, Code::StaleHandle | Code::UnknownHandle) {
            return outcome;
        }
        let fresh = self.refresh(handle, &known, error).await?;
        self.decide_once(&known, &fresh, args, intent).await
    }

    /// The description after `error` said that `known` is stale.
    async fn refresh(
        &self,
        handle: &Handle,
        known: &Description,
        error: &ServerError,
    ) -> Result<Arc<Description>, ClientError> {
        let fresh = match error.layout.as_deref().map(Prepared::decode_body) {
            Some(Ok(prepared)) => Description::from_wire(&prepared),
            _ => {
                let class = Some(known.class.as_str()).filter(|class| !class.is_empty());
                self.describe(&known.api, class).await?
            }
        };
        self.shared.tell(&Event::HandleChanged { api: known.api.clone() });
        Ok(handle.replace(fresh))
    }

    async fn decide_once(
        &self,
        written_for: &Description,
        description: &Description,
        args: &CheckArgs,
        intent: Intent,
    ) -> Result<Answer, ClientError> {
        let values = args.values_for(written_for, description)?;
        let check = args.request(description, intent, &values);
        let frame = self.call(&Request::Check(check), args.deadline).await?;
        answer(&frame, Some(description))
    }

    /// Checks inline limits, all or nothing. Without a handle there is no rule for when no decision
    /// can be had, so that is always an error here.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn check_inline(
        &self,
        limits: &[InlineLimit<'_>],
        form: Form,
    ) -> Result<Answer, ClientError> {
        self.decide_inline(limits, form, Intent::Charge, None).await
    }

    /// As [`check_inline`](Self::check_inline), under an id of [`session`](Self::session): however
    /// often it is sent, it is charged once.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn check_inline_once(
        &self,
        limits: &[InlineLimit<'_>],
        form: Form,
        id: RequestId,
    ) -> Result<Answer, ClientError> {
        self.decide_inline(limits, form, Intent::Charge, Some(id)).await
    }

    /// As [`check_inline`](Self::check_inline), and charges nothing.
    ///
    /// # Errors
    /// As [`check_inline`](Self::check_inline).
    pub async fn peek_inline(
        &self,
        limits: &[InlineLimit<'_>],
        form: Form,
    ) -> Result<Answer, ClientError> {
        self.decide_inline(limits, form, Intent::Peek, None).await
    }

    async fn decide_inline(
        &self,
        limits: &[InlineLimit<'_>],
        form: Form,
        intent: Intent,
        id: Option<RequestId>,
    ) -> Result<Answer, ClientError> {
        let limits = List::from(limits);
        let (tied, no_forward, deadline_nanos) = (false, false, None);
        let check = CheckInline { intent, form, tied, no_forward, id, deadline_nanos, limits };
        let frame = self.call(&Request::CheckInline(check), None).await?;
        answer(&frame, None)
    }

    /// Sets what the counters of these values have used: of the limit at index `limit`, or of
    /// all that apply. 0 resets, which of concurrency limits gives back every permit. With an `id`
    /// of [`session`](Self::session) it may be sent again and is done once. A stale handle is
    /// prepared anew if no index was given.
    ///
    /// # Errors
    /// [`ClientError`]; `FORBIDDEN` without the capability adjust.
    pub async fn set(
        &self,
        handle: &Handle,
        args: &CheckArgs,
        limit: Option<u16>,
        used: u64,
        id: Option<RequestId>,
    ) -> Result<SetDone, ClientError> {
        self.change(handle, args, limit, Change::Set(used), id).await
    }

    /// Moves what the counters of these values have used, after the fact: of the limit at index
    /// `limit`, or of all that apply. Positive `units` were used, negative ones are given back; at
    /// most 2^53 either way. Else as [`set`](Self::set).
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn adjust(
        &self,
        handle: &Handle,
        args: &CheckArgs,
        limit: Option<u16>,
        units: i64,
        id: Option<RequestId>,
    ) -> Result<SetDone, ClientError> {
        self.change(handle, args, limit, Change::Adjust(units), id).await
    }

    async fn change(
        &self,
        handle: &Handle,
        args: &CheckArgs,
        limit: Option<u16>,
        change: Change,
        id: Option<RequestId>,
    ) -> Result<SetDone, ClientError> {
        let known = handle.description();
        let outcome = self.change_once(&known, &known, args, limit, change, id).await;
        let Err(ClientError::Refused(error)) = &outcome else { return outcome };
        if limit.is_some() || !matches!(error.code, Code::StaleHandle | Code::UnknownHandle) {
            return outcome;
        }
        let fresh = self.refresh(handle, &known, error).await?;
        self.change_once(&known, &fresh, args, limit, change, id).await
    }

    async fn change_once(
        &self,
        written_for: &Description,
        description: &Description,
        args: &CheckArgs,
        limit: Option<u16>,
        change: Change,
        id: Option<RequestId>,
    ) -> Result<SetDone, ClientError> {
        let values = args.values_for(written_for, description)?;
        let Description { handle, layout, .. } = *description;
        let (reply, values) = (Reply::Wanted, values[..].into());
        let request = match change {
            Change::Set(used) => {
                Request::Set(Set { handle, layout, used, limit, id, reply, values })
            }
            Change::Adjust(units) => {
                Request::Adjust(Adjust { handle, layout, units, limit, id, reply, values })
            }
        };
        self.set_done(&request).await
    }

    /// Sets what an inline limit's counter has used: the limit's `cost`.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn set_inline(
        &self,
        limit: InlineLimit<'_>,
        id: Option<RequestId>,
    ) -> Result<SetDone, ClientError> {
        let reply = Reply::Wanted;
        self.set_done(&Request::SetInline(SetInline { id, reply, limit })).await
    }

    /// Moves what an inline limit's counter has used; the limit's `cost` is 0.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn adjust_inline(
        &self,
        limit: InlineLimit<'_>,
        units: i64,
        id: Option<RequestId>,
    ) -> Result<SetDone, ClientError> {
        let reply = Reply::Wanted;
        self.set_done(&Request::AdjustInline(AdjustInline { units, id, reply, limit })).await
    }

    async fn set_done(&self, request: &Request<'_>) -> Result<SetDone, ClientError> {
        let frame = self.call(request, None).await?;
        match response(&frame)? {
            Response::Set(set) => Ok(SetDone { counters: set.counters, witness: set.witness }),
            _ => Err(ClientError::WrongAnswer),
        }
    }

    /// Gives a permit back. One that is not held any more, released before or lapsed, is no error:
    /// the answer's `units` are 0 then. So it may be sent again.
    ///
    /// # Errors
    /// [`ClientError`]; `FORBIDDEN` without the capability permits.
    pub async fn release(&self, permit: PermitId) -> Result<ReleaseAnswer, ClientError> {
        let request = Request::Release(Release { permit, reply: Reply::Wanted });
        let frame = self.call(&request, None).await?;
        match response(&frame)? {
            Response::Release(answer) => Ok(answer),
            _ => Err(ClientError::WrongAnswer),
        }
    }

    /// Gives a permit back and does not wait for it, so that it can be called where nothing can
    /// wait, such as in a `Drop`. Whether it arrived is not told: if it is lost with the
    /// connection, the permit lapses with its lease.
    ///
    /// # Errors
    /// [`ClientError::Busy`] if too many requests wait already, [`ClientError::Closed`]. Nothing
    /// was sent then.
    pub fn release_and_forget(&self, permit: PermitId) -> Result<(), ClientError> {
        let mut frame = Vec::new();
        Release { permit, reply: Reply::None }.encode(Envelope::Call(0), &mut frame)?;
        let command = Command { frame: Bytes::from(frame), reply: None };
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => ClientError::Busy,
            TrySendError::Closed(_) => ClientError::Closed,
        })
    }

    /// Keeps a permit for another `lease` from now, 1 ms to 366 days, or for as long as it was
    /// granted. The answer says when it lapses; `None` if it was not held any more.
    ///
    /// # Errors
    /// [`ClientError`]; `FORBIDDEN` without the capability permits, `BAD_LIMIT` if the lease is
    /// out of range.
    pub async fn renew(
        &self,
        permit: PermitId,
        lease: Option<Duration>,
    ) -> Result<RenewAnswer, ClientError> {
        let lease_nanos =
            lease.map(|lease| u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX).max(1));
        let request = Request::Renew(Renew { permit, lease_nanos, reply: Reply::Wanted });
        let frame = self.call(&request, None).await?;
        match response(&frame)? {
            Response::Renew(answer) => Ok(answer),
            _ => Err(ClientError::WrongAnswer),
        }
    }

    /// Opens a session, whose ids let checks, [`set`](Self::set) and [`adjust`](Self::adjust) be
    /// sent again without being done again.
    ///
    /// # Errors
    /// [`ClientError`]; `FORBIDDEN` without the capability check, `OVERLOADED` if the server
    /// remembers as many sessions as it can.
    pub async fn session(&self) -> Result<Session, ClientError> {
        let frame = self.call(&Request::Session, None).await?;
        match response(&frame)? {
            Response::Session(answer) => Ok(Session::new(&answer)),
            _ => Err(ClientError::WrongAnswer),
        }
    }

    /// Sends several checks and peeks in one frame; each is decided by itself, and fails by
    /// itself. Items whose handle was stale are sent once more, one by one. What an item gets when
    /// no decision can be had is as in [`check`](Self::check).
    ///
    /// # Errors
    /// If the batch as a whole does not fit its maxima, or is refused by the server.
    pub async fn batch(
        &self,
        items: &[BatchItem<'_>],
    ) -> Result<Vec<Result<Answer, ClientError>>, ClientError> {
        let known: Vec<_> = items.iter().map(BatchItem::description).collect();
        let mut frame = Vec::new();
        let mut batch = BatchRequest::begin(0, &mut frame);
        for (item, description) in items.iter().zip(&known) {
            item.encode(description.as_deref(), &mut batch)?;
        }
        batch.finish();
        let outcomes = match self.exchange(frame, None).await {
            Ok(frame) => batch_answers(&frame, &known)?,
            Err(error) if error.is_unavailable() => {
                items.iter().map(|_| Err(error.copy())).collect()
            }
            Err(error) => return Err(error),
        };
        let mut answers = Vec::with_capacity(items.len());
        for ((item, known), outcome) in items.iter().zip(&known).zip(outcomes) {
            answers.push(self.batch_outcome(item, known.as_deref(), outcome).await);
        }
        Ok(answers)
    }

    async fn batch_outcome(
        &self,
        item: &BatchItem<'_>,
        known: Option<&Description>,
        outcome: Result<Answer, ClientError>,
    ) -> Result<Answer, ClientError> {
        let (BatchItem::Handle { handle, args, intent }, Some(known)) = (item, known) else {
            return outcome;
        };
        let outcome = match outcome {
            Err(ClientError::Refused(error))
                if matches!(error.code, Code::StaleHandle | Code::UnknownHandle) =>
            {
                match self.refresh(handle, known, &error).await {
                    Ok(fresh) => self.decide_once(known, &fresh, args, *intent).await,
                    Err(error) => Err(error),
                }
            }
            outcome => outcome,
        };
        self.settle(handle, outcome)
    }

    /// Asks for a sign of life and returns how long it took.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        let sent_at = Instant::now();
        let frame = self.call(&Request::Ping(Ping { payload: &[] }), None).await?;
        match response(&frame)? {
            Response::Ping(_) => Ok(sent_at.elapsed()),
            _ => Err(ClientError::WrongAnswer),
        }
    }

    async fn call(
        &self,
        request: &Request<'_>,
        deadline: Option<Duration>,
    ) -> Result<Bytes, ClientError> {
        let mut frame = Vec::new();
        request.encode(Envelope::Call(0), &mut frame)?;
        self.exchange(frame, deadline).await
    }

    /// Sends a frame and waits for its answer. A frame that crossed a GOAWAY was not charged and
    /// is sent once more.
    async fn exchange(
        &self,
        frame: Vec<u8>,
        deadline: Option<Duration>,
    ) -> Result<Bytes, ClientError> {
        let after = deadline.unwrap_or(self.shared.options.deadline);
        let until = Instant::now() + after;
        let frame = Bytes::from(frame);
        let mut may_repeat = true;
        loop {
            let (reply, answered) = oneshot::channel();
            let command = Command { frame: frame.clone(), reply: Some(reply) };
            let exchange = async {
                self.commands.send(command).await.map_err(|_| ClientError::Closed)?;
                answered.await.map_err(|_| ClientError::Closed)?
            };
            let bytes = match timeout_at(until, exchange).await {
                Ok(outcome) => outcome?,
                Err(_) => return Err(ClientError::TimedOut { after }),
            };
            match response(&bytes)? {
                Response::Error(error) if error.code == Code::ShuttingDown && may_repeat => {
                    may_repeat = false;
                }
                Response::Error(error) => {
                    return Err(ClientError::refused(&error));
                }
                _ => return Ok(bytes),
            }
        }
    }
}

/// What a request does to what counters have used.
#[derive(Clone, Copy)]
enum Change {
    Set(u64),
    Adjust(i64),
}

impl From<EncodeError> for ClientError {
    fn from(error: EncodeError) -> Self {
        Self::BadArgument(error)
    }
}

/// The answer in a frame that the driver has found whole.
fn response(frame: &[u8]) -> Result<Response<'_>, ClientError> {
    match next_frame(frame, ANSWER_BYTES_MAX) {
        Ok(Some((frame, _))) => Response::decode(&frame.message()).map_err(ClientError::BadAnswer),
        _ => Err(ClientError::WrongAnswer),
    }
}

fn answer(frame: &[u8], description: Option<&Description>) -> Result<Answer, ClientError> {
    match response(frame)? {
        Response::Check(answer) => Ok(Answer::from_wire(&answer, description)),
        _ => Err(ClientError::WrongAnswer),
    }
}

fn batch_answers(
    frame: &[u8],
    known: &[Option<Arc<Description>>],
) -> Result<Vec<Result<Answer, ClientError>>, ClientError> {
    let Response::Batch(batch) = response(frame)? else { return Err(ClientError::WrongAnswer) };
    if batch.items.len() != known.len() {
        return Err(ClientError::WrongAnswer);
    }
    let answer = |(item, description): (_, &Option<Arc<Description>>)| match Response::decode(&item)
    {
        Ok(Response::Check(answer)) => Ok(Answer::from_wire(&answer, description.as_deref())),
        Ok(Response::Error(error)) => Err(ClientError::refused(&error)),
        Ok(_) => Err(ClientError::WrongAnswer),
        Err(error) => Err(ClientError::BadAnswer(error)),
    };
    Ok(batch.items.iter().zip(known).map(answer).collect())
}

/// The parts of an I/O error that can be told to several callers.
fn copy_io(error: &std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(number) => std::io::Error::from_raw_os_error(number),
        None => std::io::Error::new(error.kind(), error.to_string()),
    }
}

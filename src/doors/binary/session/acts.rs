//! Acts: requests that decide nothing. Permits are given back and kept longer, counters amended,
//! sessions opened.

use std::sync::PoisonError;

use tollkeeper_protocol::request::{self, Release, Renew, Request};
use tollkeeper_protocol::response::{
    BatchResponse, ErrorAnswer, ReleaseAnswer, RenewAnswer, SessionAnswer, SetAnswer,
};
use tollkeeper_protocol::status::Code;
use tollkeeper_protocol::{Envelope, Message, Op, RequestId};

use crate::doors::Problem;
use crate::engine::command::{Amend, Charge};
use crate::engine::permit::PermitId;
use crate::engine::session::{self, Full};
use crate::engine::time::{Nanos, Now};
use crate::policy::{self, ByHand, Handle, SetCounter, SetCounters};

use super::super::convert;
use super::asking::{allowed, handle_of, with_values};
use super::work::Work;
use super::wrong::Wrong;

/// What an act is answered.
pub(super) enum Done {
    Amended(SetAnswer),
    Released(ReleaseAnswer),
    Renewed(RenewAnswer),
    Opened(SessionAnswer),
}

impl Done {
    /// Appends the answer to a frame.
    pub(super) fn encode(&self, op: Op, envelope: Envelope, out: &mut Vec<u8>) {
        match self {
            Self::Amended(answer) => answer.encode(op, envelope, out),
            Self::Released(answer) => answer.encode(envelope, out),
            Self::Renewed(answer) => answer.encode(envelope, out),
            Self::Opened(answer) => answer.encode(envelope, out),
        }
    }

    /// Appends the answer to an item of a batch.
    pub(super) fn push(&self, op: Op, response: &mut BatchResponse<'_>) {
        match self {
            Self::Amended(answer) => response.set(op, answer),
            Self::Released(answer) => response.release(answer),
            Self::Renewed(answer) => response.renew(answer),
            Self::Opened(_) => {
                let message = "a session is no item of a batch";
                response.error(&ErrorAnswer::new(Code::Internal, message));
            }
        }
    }
}

/// Whether an op is an act.
pub(super) fn is_act(op: Op) -> bool {
    let acts = [Op::SET, Op::SET_INLINE, Op::ADJUST, Op::ADJUST_INLINE, Op::RELEASE, Op::RENEW];
    acts.contains(&op) || op == Op::SESSION
}

/// What a request wants amended, by a handle.
struct Wanted<'m> {
    handle: u32,
    layout: u64,
    values: tollkeeper_protocol::codec::Sparse<'m>,
    limit: Option<u16>,
}

impl<F: FnMut() -> Now> Work<'_, '_, F> {
    /// Does what a message asks for, and says what came of it.
    pub(super) fn act(
        &mut self,
        message: &Message<'_>,
        request: &Request<'_>,
    ) -> Result<Done, Wrong> {
        allowed(message.op)?;
        match *request {
            Request::Set(set) => {
                let request::Set { handle, layout, values, limit, used, id, .. } = set;
                let wanted = Wanted { handle, layout, values, limit };
                self.amend(&wanted, Amend::Set(used), id)
            }
            Request::Adjust(adjust) => {
                let request::Adjust { handle, layout, values, limit, units, id, .. } = adjust;
                let wanted = Wanted { handle, layout, values, limit };
                self.amend(&wanted, convert::amend(units), id)
            }
            Request::SetInline(set) => {
                let charge = convert::charge(&self.desk.instance.inline, &set.limit);
                let charge = charge.map_err(Wrong::Quota)?;
                self.amend_charges(&[charge], Amend::Set(charge.cost), set.id, Wrong::Inline)
            }
            Request::AdjustInline(adjust) => {
                let charge = convert::charge(&self.desk.instance.inline, &adjust.limit);
                let charge = charge.map_err(Wrong::Quota)?;
                let amend = convert::amend(adjust.units);
                self.amend_charges(&[charge], amend, adjust.id, Wrong::Inline)
            }
            Request::Release(Release { permit, .. }) => self.release(PermitId(permit.0)),
            Request::Renew(Renew { permit, lease_nanos, .. }) => {
                self.renew(PermitId(permit.0), lease_nanos.map(Nanos::new))
            }
            Request::Session => self.open_session(),
            _ => Err(Wrong::Decode(message.unsupported_op())),
        }
    }

    fn release(&mut self, permit: PermitId) -> Result<Done, Wrong> {
        let units = self.desk.release(self.pinned, permit, self.stamp);
        let units = units.map_err(|problem| Wrong::Problem(0, problem))?;
        self.tied.retain(|tied| *tied != permit);
        Ok(Done::Released(ReleaseAnswer { units, witness: self.witness() }))
    }

    fn renew(&mut self, permit: PermitId, lease: Option<Nanos>) -> Result<Done, Wrong> {
        let renewed = self.desk.renew(self.pinned, permit, lease, self.stamp);
        let renewed = renewed.map_err(|problem| Wrong::Problem(0, problem))?;
        let renewed = renewed.map_err(Wrong::Quota)?;
        let expires_nanos = renewed.map(Nanos::get);
        Ok(Done::Renewed(RenewAnswer { expires_nanos, witness: self.witness() }))
    }

    fn amend(
        &mut self,
        wanted: &Wanted<'_>,
        amend: Amend,
        id: Option<RequestId>,
    ) -> Result<Done, Wrong> {
        let Wanted { handle: number, layout, values, limit } = *wanted;
        let handle: &Handle = handle_of(self.loaded, number, layout)?;
        let resolved = with_values(&values, handle.slots().len(), |values| {
            self.desk.resolve(
                self.loaded,
                self.pinned,
                handle,
                &policy::Request { values, costs: &[] },
            )
        })
        .map_err(|error| Wrong::Problem(number, Problem::Resolve(error)))?;
        let charges: Vec<Charge> = self.desk.charges[resolved.charges()]
            .iter()
            .zip(&self.desk.limits[resolved.limits()])
            .filter(|(_, index)| limit.is_none_or(|limit| limit == **index))
            .map(|(charge, _)| *charge)
            .collect();
        let wrong = |refusal| Wrong::Problem(number, Problem::Refused(refusal));
        self.amend_charges(&charges, amend, id, wrong)
    }

    /// Amends, once for each request id. The sessions stay locked meanwhile, so that the same
    /// request on another connection waits for this one.
    fn amend_charges(
        &mut self,
        charges: &[Charge],
        amend: Amend,
        id: Option<RequestId>,
        wrong: impl Fn(crate::engine::decision::Refusal) -> Wrong,
    ) -> Result<Done, Wrong> {
        let id = id.map(convert::request_id);
        if self.desk.asks_cluster() {
            let amended = self.desk.amend_once(charges, amend, id);
            let counters = amended.map_err(|problem| match problem {
                Problem::Refused(refusal) => wrong(refusal),
                problem => Wrong::Problem(0, problem),
            })?;
            let (counters, witness) = (counters as u32, self.witness());
            return Ok(Done::Amended(SetAnswer { counters, witness }));
        }
        let instance = std::sync::Arc::clone(&self.desk.instance);
        let now = self.stamp.now();
        let mut sessions = None;
        if let Some(id) = id {
            let mut locked = instance.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            let found = locked.find(id, now.time);
            if found.map_err(|error| Wrong::Problem(0, Problem::BadId(error)))?.is_some() {
                let counters = charges.len() as u32;
                return Ok(Done::Amended(SetAnswer { counters, witness: self.witness() }));
            }
            sessions = Some((locked, id));
        }
        // What was adjusted is kept or forgotten with the charges that it corrects; what was set
        // stands by itself.
        let turn = match amend {
            Amend::Set(used) => {
                let turn = instance.changes.turn_to_set().map_err(Wrong::TooManyChanges)?;
                turn.map(|turn| (turn, used))
            }
            Amend::Add(_) | Amend::GiveBack(_) => None,
        };
        let readings = &mut self.desk.readings;
        let (counters, now) =
            self.pinned.amend(charges, amend, self.stamp, readings).map_err(wrong)?;
        if let Some((mut turn, used)) = turn {
            let policy = &self.loaded.policy;
            let of = |charge: &Charge| SetCounter::of(charge, policy);
            let counters: Vec<SetCounter> = charges.iter().filter_map(of).collect();
            let id = sessions.as_ref().map(|(_, id)| *id);
            if !counters.is_empty() {
                let set = SetCounters { now, used, id, counters };
                self.kept = Some(turn.keep(ByHand::SetCounters(set)));
            }
        }
        if let Some((mut sessions, id)) = sessions {
            sessions.mark_done(id, None);
        }
        Ok(Done::Amended(SetAnswer { counters: counters as u32, witness: self.witness() }))
    }

    fn open_session(&mut self) -> Result<Done, Wrong> {
        let (window, idle_nanos) = (session::WINDOW as u32, session::IDLE.get());
        if self.desk.asks_cluster() {
            let opened = self.desk.open_session().map_err(|problem| Wrong::Problem(0, problem))?;
            let session = opened.map_err(|Full| Wrong::TooManySessions)?;
            return Ok(Done::Opened(SessionAnswer { session, window, idle_nanos }));
        }
        let mut sessions =
            self.desk.instance.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let session =
            sessions.open(self.stamp.now().time).map_err(|Full| Wrong::TooManySessions)?;
        Ok(Done::Opened(SessionAnswer { session, window, idle_nanos }))
    }

    pub(super) fn witness(&self) -> tollkeeper_protocol::response::Witness {
        let version = self.loaded.policy.version();
        convert::witness(version, self.stamp.now(), self.desk.witness())
    }

    /// Does an act that came in a frame, and answers it.
    pub(super) fn act_in_frame(
        &mut self,
        message: &Message<'_>,
        request: &Request<'_>,
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) -> Result<(), Wrong> {
        let done = self.act(message, request);
        self.desk.clear();
        done?.encode(message.op, envelope, out);
        Ok(())
    }
}

//! Acts, here or by the cluster: counters amended, permits given back and kept longer, sessions
//! opened.

use crate::doors::docket::Heard;
use crate::engine::command::{Amend, Charge};
use crate::engine::group::{Command, Outcome};
use crate::engine::permit::PermitId;
use crate::engine::quota::QuotaError;
use crate::engine::session::{Full, RequestId};
use crate::engine::table::{Pinned, Stamp};
use crate::engine::time::{Nanos, Now};

use super::passes::COLLECTED;
use super::{Desk, Problem};

impl Desk {
    /// Amends counters, here or by the cluster. Returns how many.
    ///
    /// # Errors
    /// Why none was.
    pub fn amend<F: FnMut() -> Now>(
        &mut self,
        pinned: &Pinned<'_>,
        charges: &[Charge],
        amend: Amend,
        stamp: &mut Stamp<F>,
    ) -> Result<usize, Problem> {
        self.readings.clear();
        let Some(docket) = &mut self.docket else {
            let amended = pinned.amend(charges, amend, stamp, &mut self.readings);
            return amended.map(|(counters, _)| counters).map_err(Problem::Refused);
        };
        let command = Command::Amend { charges: charges.len() as u16, amend, id: None };
        match docket.ask(command, charges) {
            Heard::Outcome(Outcome::Amended(counters), _) => Ok(*counters),
            Heard::Outcome(Outcome::Refused(refusal), _) => Err(Problem::Refused(*refusal)),
            Heard::Collected => Err(COLLECTED),
            heard => Err(heard.problem()),
        }
    }

    /// Has the cluster amend counters, once for each request id. Returns how many.
    ///
    /// # Errors
    /// Why none was.
    pub(in crate::doors) fn amend_once(
        &mut self,
        charges: &[Charge],
        amend: Amend,
        id: Option<RequestId>,
    ) -> Result<usize, Problem> {
        let command = Command::Amend { charges: charges.len() as u16, amend, id };
        let Some(docket) = &mut self.docket else { return Err(COLLECTED) };
        match docket.ask(command, charges) {
            Heard::Outcome(Outcome::Amended(counters), _) => Ok(*counters),
            Heard::Outcome(Outcome::Repeated { .. }, _) => Ok(charges.len()),
            Heard::Outcome(Outcome::Refused(refusal), _) => Err(Problem::Refused(*refusal)),
            Heard::Outcome(Outcome::BadId(error), _) => Err(Problem::BadId(*error)),
            heard => Err(heard.problem()),
        }
    }

    /// Gives a permit back, here or by the cluster. Returns the units that it held.
    ///
    /// # Errors
    /// If the cluster does not say.
    pub fn release<F: FnMut() -> Now>(
        &mut self,
        pinned: &Pinned<'_>,
        permit: PermitId,
        stamp: &mut Stamp<F>,
    ) -> Result<u64, Problem> {
        let Some(docket) = &mut self.docket else { return Ok(pinned.release(permit, stamp)) };
        match docket.ask(Command::Release(permit), &[]) {
            Heard::Outcome(Outcome::Released(units), _) => Ok(*units),
            heard => Err(heard.problem()),
        }
    }

    /// Keeps a permit, here or by the cluster. Returns for how long; `None` if it holds nothing.
    ///
    /// # Errors
    /// If the cluster does not say; within, if the lease is out of range.
    pub fn renew<F: FnMut() -> Now>(
        &mut self,
        pinned: &Pinned<'_>,
        permit: PermitId,
        lease: Option<Nanos>,
        stamp: &mut Stamp<F>,
    ) -> Result<Result<Option<Nanos>, QuotaError>, Problem> {
        let Some(docket) = &mut self.docket else {
            return Ok(pinned.renew(permit, lease, stamp));
        };
        match docket.ask(Command::Renew(permit, lease), &[]) {
            Heard::Outcome(Outcome::Renewed(kept), _) => Ok(Ok(*kept)),
            Heard::Outcome(Outcome::BadLease(error), _) => Ok(Err(*error)),
            heard => Err(heard.problem()),
        }
    }

    /// Has the cluster open a session.
    ///
    /// # Errors
    /// If the cluster does not say; within, if there are all there may be.
    pub(in crate::doors) fn open_session(&mut self) -> Result<Result<u64, Full>, Problem> {
        let Some(docket) = &mut self.docket else { return Err(COLLECTED) };
        match docket.ask(Command::Open, &[]) {
            Heard::Outcome(Outcome::Opened(name), _) => Ok(Ok(*name)),
            Heard::Outcome(Outcome::NoSession(full), _) => Ok(Err(*full)),
            heard => Err(heard.problem()),
        }
    }
}

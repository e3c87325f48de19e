//! Where a cluster decides: the pass that only collects, and the one that hears what came of it.

use core::ops::Range;

use crate::doors::docket::{Docket, Heard};
use crate::engine::command::CHARGES_MAX;
use crate::engine::decision::Refusal;
use crate::engine::group::{Once, Outcome, Undecided};
use crate::engine::session::RequestId;
use crate::engine::table::{Pinned, Stamp};
use crate::engine::time::Now;
use crate::metrics::cells::Cells;

use super::{Desk, Problem};

/// What requests are answered with that are only collected; nobody reads it.
pub(super) const COLLECTED: Problem = Problem::Undecided(Undecided::Stale);

impl Heard<'_> {
    /// Why a request has no outcome, where it has none that fits it.
    pub(in crate::doors) fn problem(&self) -> Problem {
        match self {
            Self::Undecided(undecided) => Problem::Undecided(*undecided),
            Self::Collected => COLLECTED,
            Self::Denied(..) | Self::Outcome(..) => Problem::Undecided(Undecided::Unknown),
        }
    }
}

impl Desk {
    /// Begins to collect what a cluster is to decide; until [`Desk::end_collecting`] nothing is
    /// decided and nothing counted.
    pub(in crate::doors) fn begin_collecting(&mut self) {
        let consensus = self.instance.consensus.get();
        let in_contact = consensus.is_some_and(|it| it.is_in_contact());
        let led_by_other = consensus.and_then(|it| it.led_by_other());
        self.docket = Some(Docket::new(in_contact, led_by_other));
        self.swap_counts();
    }

    /// What was collected.
    pub(in crate::doors) fn end_collecting(&mut self) -> Docket {
        self.swap_counts();
        let mut docket = self.docket.take().unwrap_or_else(|| Docket::new(false, None));
        docket.moment = self.moment;
        docket
    }

    fn swap_counts(&mut self) {
        let protocol = self.cells.protocol();
        let unseen = self.unseen.take();
        let unseen = unseen.unwrap_or_else(|| Cells::new().worker(protocol));
        self.unseen = Some(core::mem::replace(&mut self.cells, unseen));
    }

    /// The node that leads, if another one does.
    pub(in crate::doors) fn led_by_other(&self) -> Option<u64> {
        self.docket.as_ref().and_then(Docket::led_by_other)
    }

    /// Asks again for what was collected, to be told what came of it.
    pub(in crate::doors) fn begin_hearing(&mut self, docket: Docket) {
        self.docket = Some(docket);
    }

    /// From now on the table here decides again.
    pub(in crate::doors) fn end_hearing(&mut self) {
        self.docket = None;
    }

    /// Whether a cluster decides what is asked now.
    pub(in crate::doors) fn asks_cluster(&self) -> bool {
        self.docket.is_some()
    }

    /// Whether a tied permit is let in for which there is room now, or not.
    pub(in crate::doors) fn lets_in(&mut self, has_room: bool) -> bool {
        self.docket.as_mut().map_or(has_room, |docket| docket.let_in(has_room))
    }

    /// Whether requests are asked again to be told what came of them.
    pub(in crate::doors) fn is_hearing(&self) -> bool {
        self.docket.as_ref().is_some_and(Docket::is_heard)
    }

    /// Leaves it to the cluster to keep to a deadline; false if there is none.
    pub(in crate::doors) fn leave_deadline(&mut self, nanos: u64) -> bool {
        if let Some(docket) = &mut self.docket {
            docket.note_deadline(nanos);
        }
        self.docket.is_some()
    }

    /// Whether requests are only collected.
    pub(super) fn is_collecting(&self) -> bool {
        self.docket.as_ref().is_some_and(|docket| !docket.is_heard())
    }

    /// Where in the log the last request was decided.
    pub fn witness(&self) -> (u64, u32) {
        self.docket.as_ref().map_or((0, 0), Docket::witness)
    }

    #[cold]
    pub(super) fn ask_cluster<F: FnMut() -> Now>(
        &mut self,
        pinned: &Pinned<'_>,
        charges: Range<usize>,
        id: Option<RequestId>,
        stamp: &mut Stamp<F>,
    ) -> Result<Once, Problem> {
        let Some(docket) = &mut self.docket else {
            return Err(Problem::Undecided(Undecided::Unknown));
        };
        // Refused in both passes as the table would: an entry of the log has no room for so many.
        if charges.len() > CHARGES_MAX {
            return Err(Problem::Refused(Refusal::TooManyCharges { found: charges.len() }));
        }
        let heard = docket.check(pinned, &self.charges[charges], id, stamp);
        self.readings.clear();
        match heard {
            Heard::Denied(decision, readings) => {
                self.readings.extend_from_slice(readings);
                Ok(Once::First(decision))
            }
            Heard::Outcome(Outcome::Decided { decision, .. }, readings) => {
                self.readings.extend_from_slice(readings);
                Ok(Once::First(*decision))
            }
            Heard::Outcome(Outcome::Repeated { decision, .. }, readings) => {
                self.readings.extend_from_slice(readings);
                Ok(Once::Again(*decision))
            }
            Heard::Outcome(Outcome::Refused(refusal), _) => Err(Problem::Refused(*refusal)),
            Heard::Outcome(Outcome::BadId(error), _) => Err(Problem::BadId(*error)),
            Heard::Undecided(undecided) => Err(Problem::Undecided(undecided)),
            // No outcome of a check: what was charged is not known.
            Heard::Outcome(..) => Err(Problem::Undecided(Undecided::Unknown)),
            Heard::Collected => Err(COLLECTED),
        }
    }
}

//! Where a cluster decides, a desk asks in two passes. The first collects what would be performed;
//! the second goes over the same bytes with the same policy at the same moment, and takes from the
//! docket what came of each request. Asking is a function of bytes, policy and moment, so both
//! passes ask for the same.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::engine::command::{Charge, ChargeOn};
use crate::engine::decision::{Decision, Reading, Verdict};
use crate::engine::group::{Command, Group, Outcome, Performed, Undecided};
use crate::engine::session::RequestId;
use crate::engine::table::{Pinned, Stamp};
use crate::engine::time::{Now, UtcTime};

/// A group's outcomes, once it is performed.
pub type Awaited = Pin<Box<dyn Future<Output = Result<Performed, Undecided>> + Send>>;

/// What came of a change, for people, once it is made.
pub type AwaitedChange =
    Pin<Box<dyn Future<Output = Result<Result<String, String>, Undecided>> + Send>>;

/// Whoever performs groups for a node that does not decide by itself. `node` gives it to the
/// doors.
pub trait Consensus: Send + Sync {
    /// Has a group performed that was resolved by this version of the policy. It is too late
    /// `deadline_nanos` from now.
    fn perform(&self, group: &Group, policy: u64, deadline_nanos: Option<u64>) -> Awaited;

    /// Has a group performed of which nobody wants to hear.
    fn perform_unheard(&self, group: &Group, policy: u64);

    /// Whether this node was in contact with a leader that had a majority, less than an election
    /// timeout ago: then what its table refuses now is refused.
    fn is_in_contact(&self) -> bool;

    /// The node that leads, if another one does.
    fn led_by_other(&self) -> Option<u64>;

    /// Counts denials that took no entry.
    fn count_shortcuts(&self, denials: u64);
}

/// What a desk asks of a cluster at a time, and what came of it.
pub struct Docket {
    /// What is asked.
    group: Group,
    /// For each request, where its outcome is.
    places: Vec<Place>,
    /// Readings of those that were denied here.
    readings: Vec<Reading>,
    may_deny: bool,
    /// The node that led when it began, if another one did.
    led_by_other: Option<u64>,
    deadline_nanos: Option<u64>,
    /// By which moment calendar windows and overrides were found.
    pub(super) moment: Option<UtcTime>,
    heard: Option<Result<Performed, Undecided>>,
    next: usize,
    denied: u64,
    /// Whether there was room for each tied permit that was asked for, in order.
    let_in: Vec<bool>,
    next_let_in: usize,
}

#[derive(Clone, Copy)]
enum Place {
    /// Denied by the applied table.
    Denied { decision: Decision, from: usize, to: usize },
    /// The group's command with this number.
    Command(usize),
}

/// What a docket says of a request.
pub(super) enum Heard<'d> {
    /// It was collected.
    Collected,
    /// It was denied here.
    Denied(Decision, &'d [Reading]),
    /// This came of it.
    Outcome(&'d Outcome, &'d [Reading]),
    /// Nothing came of it.
    Undecided(Undecided),
}

impl Docket {
    /// A docket to collect on. `may_deny`: what the applied table refuses may be refused at once.
    pub(super) fn new(may_deny: bool, led_by_other: Option<u64>) -> Self {
        Self {
            group: Group::default(),
            places: Vec::new(),
            readings: Vec::new(),
            may_deny,
            led_by_other,
            deadline_nanos: None,
            moment: None,
            heard: None,
            next: 0,
            denied: 0,
            let_in: Vec::new(),
            next_let_in: 0,
        }
    }

    /// How many requests were denied without the cluster.
    pub(super) fn denied(&self) -> u64 {
        self.denied
    }

    /// The node that led when it was begun, if another one than this did: both passes say the same
    /// to who wants no other node.
    pub(super) fn led_by_other(&self) -> Option<u64> {
        self.led_by_other
    }

    /// Whether the second pass has begun.
    pub(super) fn is_heard(&self) -> bool {
        self.heard.is_some()
    }

    /// What is to be performed; `None` if nothing is.
    pub(super) fn group(&self) -> Option<&Group> {
        Some(&self.group).filter(|group| !group.commands.is_empty())
    }

    /// Nanoseconds until the first of its requests is too late.
    pub(super) fn deadline_nanos(&self) -> Option<u64> {
        self.deadline_nanos
    }

    /// A request is too late after so long.
    pub(super) fn note_deadline(&mut self, nanos: u64) {
        self.deadline_nanos = Some(self.deadline_nanos.map_or(nanos, |least| least.min(nanos)));
    }

    /// Begins the second pass. `None`: nothing was to be performed.
    pub(super) fn hear(&mut self, heard: Option<Result<Performed, Undecided>>) {
        self.next = 0;
        self.heard = Some(heard.unwrap_or_else(|| Ok(Performed::default())));
    }

    /// The moment of what was performed, if anything was.
    pub(super) fn now(&self) -> Option<Now> {
        match &self.heard {
            Some(Ok(performed)) if !performed.outcomes.list.is_empty() => {
                Some(performed.outcomes.now)
            }
            _ => None,
        }
    }

    /// The index of the entry of what was asked last, and how many requests of it came before.
    pub(super) fn witness(&self) -> (u64, u32) {
        let place = self.next.checked_sub(1).and_then(|last| self.places.get(last));
        match (place, &self.heard) {
            (Some(Place::Command(number)), Some(Ok(performed))) => {
                (performed.index, performed.position + *number as u32)
            }
            _ => (0, 0),
        }
    }

    /// A check is asked.
    pub(super) fn check<F: FnMut() -> Now>(
        &mut self,
        pinned: &Pinned<'_>,
        charges: &[Charge],
        id: Option<RequestId>,
        stamp: &mut Stamp<F>,
    ) -> Heard<'_> {
        if self.heard.is_some() {
            return self.next();
        }
        // Nothing may overtake what the same connection asked before.
        let may_deny = self.may_deny && id.is_none() && self.group.commands.is_empty();
        if may_deny && !charges.iter().any(|charge| charge.on == ChargeOn::Always) {
            let mut readings = Vec::new();
            if let Ok(decision) = pinned.peek(charges, stamp, &mut readings)
                && decision.verdict == Verdict::Deny
            {
                let from = self.readings.len();
                self.readings.append(&mut readings);
                let to = self.readings.len();
                self.places.push(Place::Denied { decision, from, to });
                self.denied += 1;
                return Heard::Collected;
            }
        }
        let count = charges.len() as u16;
        self.collect(Command::Check { charges: count, id }, charges)
    }

    /// A tied permit is asked for, and there is room for it now or not. Returns whether there was
    /// when it was collected: permits lapse between the passes, and both must ask for the same.
    pub(super) fn let_in(&mut self, has_room: bool) -> bool {
        if self.heard.is_none() {
            self.let_in.push(has_room);
            return has_room;
        }
        let was_let_in = self.let_in.get(self.next_let_in).copied();
        self.next_let_in += 1;
        was_let_in.unwrap_or(false)
    }

    /// Anything is asked.
    pub(super) fn ask(&mut self, command: Command, charges: &[Charge]) -> Heard<'_> {
        if self.heard.is_some() { self.next() } else { self.collect(command, charges) }
    }

    fn collect(&mut self, command: Command, charges: &[Charge]) -> Heard<'_> {
        self.places.push(Place::Command(self.group.commands.len()));
        self.group.commands.push(command);
        self.group.charges.extend_from_slice(charges);
        Heard::Collected
    }

    fn next(&mut self) -> Heard<'_> {
        let place = self.places.get(self.next).copied();
        self.next += 1;
        match (place, &self.heard) {
            (Some(Place::Denied { decision, from, to }), _) => {
                Heard::Denied(decision, &self.readings[from..to])
            }
            (Some(Place::Command(_)), Some(Err(undecided))) => Heard::Undecided(*undecided),
            (Some(Place::Command(number)), Some(Ok(performed))) => {
                let outcomes = &performed.outcomes;
                match outcomes.list.get(number) {
                    Some(outcome) => {
                        let readings = match outcome {
                            Outcome::Decided { readings, .. }
                            | Outcome::Repeated { readings, .. } => {
                                outcomes.readings.get(readings.clone()).unwrap_or_default()
                            }
                            _ => &[],
                        };
                        Heard::Outcome(outcome, readings)
                    }
                    None => Heard::Undecided(Undecided::Unknown),
                }
            }
            // The passes asked for different things. They cannot; what was charged is not known.
            _ => Heard::Undecided(Undecided::Unknown),
        }
    }
}

/// The cluster of a node that has one.
pub type ConsensusHandle = Arc<dyn Consensus>;

//! Groups: requests that are performed together, in order, at one moment.
//!
//! A node that decides by itself performs requests as they come. In a cluster what a door's read
//! brought travels as one group, and every node performs it when its entry is applied: the same
//! groups in the same order at the same moments give the same table everywhere.

use alloc::vec::Vec;
use core::ops::Range;

use super::command::{Amend, Charge};
use super::decision::{Decision, Reading, Refusal, Verdict, binding};
use super::permit::{Permit, PermitId};
use super::quota::QuotaError;
use super::session::{Full, RequestId, SessionError, Sessions};
use super::table::{Pinned, Stamp};
use super::time::{Nanos, Now};

/// The most commands of one group.
pub const COMMANDS_MAX: usize = 4096;

/// Requests of one door's read, resolved.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// What is asked, in order.
    pub commands: Vec<Command>,
    /// Charges of the commands, one command's after the other's.
    pub charges: Vec<Charge>,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Makes the next so many charges, all or none.
    Check {
        /// How many.
        charges: u16,
        /// By which it is known if it is sent again.
        id: Option<RequestId>,
    },
    /// Amends the counters of the next so many charges.
    Amend {
        /// How many.
        charges: u16,
        /// To what.
        amend: Amend,
        /// By which it is known if it is sent again.
        id: Option<RequestId>,
    },
    /// Gives a permit back.
    Release(PermitId),
    /// Keeps a permit from now on, for so long or for as long as it was given.
    Renew(PermitId, Option<Nanos>),
    /// Opens a session.
    Open,
}

impl Command {
    /// How many of the group's charges are this command's.
    pub fn charges(&self) -> usize {
        match *self {
            Self::Check { charges, .. } | Self::Amend { charges, .. } => usize::from(charges),
            Self::Release(_) | Self::Renew(..) | Self::Open => 0,
        }
    }

    /// By which it is known if it is sent again.
    pub fn id(&self) -> Option<RequestId> {
        match *self {
            Self::Check { id, .. } | Self::Amend { id, .. } => id,
            Self::Release(_) | Self::Renew(..) | Self::Open => None,
        }
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A check was decided.
    Decided {
        /// How.
        decision: Decision,
        /// Its readings in [`Outcomes::readings`].
        readings: Range<usize>,
    },
    /// A request with this id was done before; nothing was charged now. A check was allowed then,
    /// and its readings are as of now.
    Repeated {
        /// The moment, and the permit that the check was given, if it still holds anything. It is
        /// kept from now on for as long as it was given.
        decision: Decision,
        /// The check's readings in [`Outcomes::readings`].
        readings: Range<usize>,
    },
    /// The engine would not. Nothing was charged.
    Refused(Refusal),
    /// So many counters were amended.
    Amended(usize),
    /// A permit was given back that held so many units.
    Released(u64),
    /// A permit is kept for so long; `None` if it holds nothing any more.
    Renewed(Option<Nanos>),
    /// A permit cannot be kept for so long.
    BadLease(QuotaError),
    /// A session of this name was opened.
    Opened(u64),
    /// There are all the sessions there may be.
    NoSession(Full),
    /// The request id cannot be judged. Nothing was charged.
    BadId(SessionError),
}

/// What came of a group.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// The moment of all of it.
    pub now: Now,
    /// What came of each command.
    pub list: Vec<Outcome>,
    /// Readings of all checks.
    pub readings: Vec<Reading>,
}

/// Why there are no outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// Us: the policy changed on the way. Nothing was charged; resolve again.
    Stale,
    /// Operator: no leader is in contact with a majority. Nothing was charged.
    NoQuorum,
    /// Operator: it was handed over and nothing was heard in time; it may be performed yet.
    Unknown,
    /// Operator: too many requests wait, or the group is too large. Nothing was charged.
    Overloaded,
    /// Caller: its deadline passed before it was handed over. Nothing was charged.
    Late,
    /// Operator: the node stops. Nothing was charged.
    Stopping,
}

impl Undecided {
    /// What it is, for people.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Stale => "the policy changed on the way; nothing was charged, ask again",
            Self::NoQuorum => "no leader is in contact with a majority; nothing was charged",
            Self::Unknown => "nothing was heard from the leader in time; it may yet be charged",
            Self::Overloaded => "too many requests wait at this node; nothing was charged",
            Self::Late => "the request's deadline passed before it was decided",
            Self::Stopping => "the node is stopping; nothing was charged",
        }
    }
}

/// What came of a group, and where in the log it is.
#[derive(Clone, Debug, Default)]
pub struct Performed {
    /// What came of each command.
    pub outcomes: Outcomes,
    /// The index of its entry.
    pub index: u64,
    /// How many commands of the entry came before it.
    pub position: u32,
}

impl Group {
    /// Empties the group and keeps its room.
    pub fn clear(&mut self) {
        self.commands.clear();
        self.charges.clear();
    }

    /// Performs all commands at one moment. `refused` says of a command, by its place, why it is
    /// not to be performed. What came of each goes to `outcomes`, if somebody wants to know.
    pub fn perform(
        &self,
        pinned: &Pinned<'_>,
        sessions: &mut Sessions,
        now: Now,
        refused: impl Fn(usize) -> Option<Refusal>,
        mut outcomes: Option<&mut Outcomes>,
        readings: &mut Vec<Reading>,
    ) {
        for charge in &self.charges {
            pinned.prefetch(charge.key);
        }
        if let Some(outcomes) = &mut outcomes {
            outcomes.now = now;
            outcomes.list.reserve(self.commands.len());
            outcomes.readings.reserve(self.charges.len());
        }
        let mut at = 0;
        for (place, command) in self.commands.iter().enumerate() {
            let charges = &self.charges[at..at + command.charges()];
            at += command.charges();
            readings.clear();
            let refusal = match (refused(place), command.id()) {
                // What was done before needs no room now.
                (Some(_), Some(id)) if sessions.find(id, now.time) != Ok(None) => None,
                (refusal, _) => refusal,
            };
            let outcome = match refusal {
                Some(refusal) => Outcome::Refused(refusal),
                None => perform(command, charges, pinned, sessions, now, readings),
            };
            let Some(outcomes) = &mut outcomes else { continue };
            let begin = outcomes.readings.len();
            outcomes.readings.extend_from_slice(readings);
            let range = begin..outcomes.readings.len();
            outcomes.list.push(match outcome {
                Outcome::Decided { decision, .. } => Outcome::Decided { decision, readings: range },
                Outcome::Repeated { decision, .. } => {
                    Outcome::Repeated { decision, readings: range }
                }
                other => other,
            });
        }
    }
}

fn perform(
    command: &Command,
    charges: &[Charge],
    pinned: &Pinned<'_>,
    sessions: &mut Sessions,
    now: Now,
    readings: &mut Vec<Reading>,
) -> Outcome {
    let mut stamp = Stamp::new(|| now);
    match *command {
        Command::Check { id: None, .. } => match pinned.check(charges, &mut stamp, readings) {
            Ok(decision) => Outcome::Decided { decision, readings: 0..0 },
            Err(refusal) => Outcome::Refused(refusal),
        },
        Command::Check { id: Some(id), .. } => {
            match check_once(pinned, sessions, charges, id, &mut stamp, readings) {
                Ok(Once::First(decision)) => Outcome::Decided { decision, readings: 0..0 },
                Ok(Once::Again(decision)) => Outcome::Repeated { decision, readings: 0..0 },
                Err(NotOnce::Refused(refusal)) => Outcome::Refused(refusal),
                Err(NotOnce::BadId(error)) => Outcome::BadId(error),
            }
        }
        Command::Amend { amend, id, .. } => {
            match id.map_or(Ok(None), |id| sessions.find(id, now.time)) {
                Ok(None) => {}
                Ok(Some(_)) => {
                    let decision = allowed_before(now, None, &[]);
                    return Outcome::Repeated { decision, readings: 0..0 };
                }
                Err(error) => return Outcome::BadId(error),
            }
            let amended = pinned.amend(charges, amend, &mut stamp, readings);
            readings.clear();
            match amended {
                Ok((counters, _)) => {
                    if let Some(id) = id {
                        sessions.mark_done(id, None);
                    }
                    Outcome::Amended(counters)
                }
                Err(refusal) => Outcome::Refused(refusal),
            }
        }
        Command::Release(id) => Outcome::Released(pinned.release(id, &mut stamp)),
        Command::Renew(id, lease) => match pinned.renew(id, lease, &mut stamp) {
            Ok(kept) => Outcome::Renewed(kept),
            Err(error) => Outcome::BadLease(error),
        },
        Command::Open => match sessions.open(now.time) {
            Ok(name) => Outcome::Opened(name),
            Err(full) => Outcome::NoSession(full),
        },
    }
}

/// What came of a check with a request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Once {
    /// It was decided now.
    First(Decision),
    /// It was allowed before, and nothing was charged now.
    Again(Decision),
}

/// Why a check with a request id was not decided. Nothing was charged now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOnce {
    /// The engine would not.
    Refused(Refusal),
    /// Whether it was charged before cannot be told.
    BadId(SessionError),
}

/// Decides a check that is charged once, however often it comes. A denial is decided anew: only
/// charges are remembered. One that was charged is allowed again, with the counters as they stand
/// now, and its permit is kept from now on for as long as it was given.
///
/// # Errors
/// See [`NotOnce`].
pub fn check_once<F: FnMut() -> Now>(
    pinned: &Pinned<'_>,
    sessions: &mut Sessions,
    charges: &[Charge],
    id: RequestId,
    stamp: &mut Stamp<F>,
    readings: &mut Vec<Reading>,
) -> Result<Once, NotOnce> {
    let now = stamp.now();
    let Some(done) = sessions.find(id, now.time).map_err(NotOnce::BadId)? else {
        let decision = pinned.check(charges, stamp, readings).map_err(NotOnce::Refused)?;
        if decision.verdict == Verdict::Allow {
            sessions.mark_done(id, decision.permit.map(|permit| permit.id));
        }
        return Ok(Once::First(decision));
    };
    let kept = done.permit.and_then(|id| {
        // Without a lease of one's own there is none that could be out of range.
        let lapses_after = pinned.renew(id, None, stamp).ok().flatten()?;
        Some(Permit { id, lapses_after })
    });
    let peeked = pinned.peek(charges, stamp, readings).map_err(NotOnce::Refused)?;
    Ok(Once::Again(allowed_before(peeked.now, kept, readings)))
}

/// A decision to allow that was made before, as it is told at another moment.
fn allowed_before(now: Now, permit: Option<Permit>, readings: &[Reading]) -> Decision {
    let verdict = Verdict::Allow;
    Decision { verdict, binding: binding(verdict, readings), now, permit }
}

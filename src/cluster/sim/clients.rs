//! Clients: each asks one group after the other, at any node. What came of a request without an id
//! that was not answered is not known; one with an id is sent again, at any node, until it is.

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::engine::decision::Verdict;
use crate::engine::group::{Command, Group, Outcome, Performed, Undecided};
use crate::engine::permit::PermitId;
use crate::engine::session::RequestId;

use super::history::{Asked, Done, Known};
use super::limits::{KEYS, Limit};
use super::random::Random;
use super::world::World;

/// Ticks between a client's answer and its next request, at most.
const THINKS_MAX: u64 = 25;

type Answer = oneshot::Receiver<Result<Performed, Undecided>>;

pub(super) struct Client {
    number: usize,
    random: Random,
    session: Option<u64>,
    /// The number of the next request with an id.
    next: u64,
    /// One with an id whose outcome is not known: its number and cost.
    unanswered: Option<(u64, u64)>,
    /// A permit that it was given.
    permit: Option<PermitId>,
    pending: Option<Pending>,
    next_at: u64,
}

struct Pending {
    node: usize,
    boot: u64,
    called_at: u64,
    policy: u64,
    what: What,
    answer: Answer,
}

enum What {
    Checks(Vec<Asked>),
    WithId(u64, u64),
    Open,
    Release,
}

/// Answers by kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) allowed: u64,
    pub(super) denied: u64,
    pub(super) repeated: u64,
    pub(super) unknown: u64,
    pub(super) stale: u64,
    pub(super) refused: u64,
}

impl Client {
    pub(super) fn new(number: usize, random: Random) -> Self {
        let next_at = 100 + number as u64;
        Self {
            number,
            random,
            session: None,
            next: 1,
            unanswered: None,
            permit: None,
            pending: None,
            next_at,
        }
    }

    /// Whether it has no request under way and none to be sent again.
    pub(super) fn is_done(&self) -> bool {
        self.pending.is_none() && self.unanswered.is_none()
    }

    /// Takes an answer, or asks. `asks`: it may begin something new.
    pub(super) fn step(&mut self, world: &mut World, asks: bool) {
        if let Some(mut pending) = self.pending.take() {
            let is_gone = world.boot(pending.node) != pending.boot;
            match pending.answer.try_recv() {
                Err(TryRecvError::Empty) if !is_gone => {
                    self.pending = Some(pending);
                    return;
                }
                Err(_) => self.answered(world, pending, Err(Undecided::Unknown)),
                Ok(answer) => self.answered(world, pending, answer),
            }
            self.next_at = world.tick + self.random.between(1, THINKS_MAX);
        }
        if world.tick < self.next_at || !(asks || self.unanswered.is_some()) {
            return;
        }
        let Some(node) = world.some_up(&mut self.random) else { return };
        let (what, group) = self.choose();
        if let [Command::Release(permit)] = group.commands[..] {
            world.oracle.lock().unwrap().permits.asked_back(permit, world.nanos());
        }
        let policy = world.policy_at(node);
        let answer = world.ask(node, &group, policy);
        let (boot, called_at) = (world.boot(node), world.nanos());
        self.pending = Some(Pending { node, boot, called_at, policy, what, answer });
    }

    fn choose(&mut self) -> (What, Group) {
        let mut group = Group::default();
        let Some(session) = self.session else {
            group.commands.push(Command::Open);
            return (What::Open, group);
        };
        let again = self.unanswered.or_else(|| {
            let cost = self.random.between(1, 3);
            self.random.in_thousand(250).then(|| {
                self.next += 1;
                (self.next - 1, cost)
            })
        });
        if let Some((sequence, cost)) = again {
            self.unanswered = again;
            group.charges.push(Limit::Once.charge(cost));
            let id = Some(RequestId { session, sequence });
            group.commands.push(Command::Check { charges: 1, id });
            return (What::WithId(sequence, cost), group);
        }
        if self.permit.is_some()
            && self.random.in_thousand(300)
            && let Some(permit) = self.permit.take()
        {
            group.commands.push(Command::Release(permit));
            return (What::Release, group);
        }
        let count = self.random.between(1, 4);
        let asked: Vec<Asked> = (0..count).map(|_| self.check()).collect();
        for check in &asked {
            group.charges.extend(check.charges.iter().map(|(limit, cost)| limit.charge(*cost)));
            group.commands.push(Command::Check { charges: check.charges.len() as u16, id: None });
        }
        (What::Checks(asked), group)
    }

    fn check(&mut self) -> Asked {
        let cost = self.random.between(1, 3);
        let limits: &[Limit] = match self.random.below(10) {
            0 | 1 => &[Limit::Hot],
            2 => &[Limit::Sliding],
            3 => &[Limit::DayBucket],
            4 => &[Limit::Day, Limit::Hot],
            5 => &[Limit::Hot, Limit::Sliding, Limit::DayBucket],
            6 => &[Limit::Permits],
            7 => &[Limit::Permits, Limit::Hot],
            8 => return Asked { charges: vec![(Limit::Kept, cost)] },
            _ => {
                let key = Limit::PerKey(self.random.below(KEYS));
                return Asked { charges: vec![(key, 1), (Limit::Kept, cost)] };
            }
        };
        let mut charges = vec![(Limit::TwinBefore, cost)];
        charges.extend(limits.iter().map(|limit| (*limit, cost)));
        charges.push((Limit::TwinBehind, cost));
        Asked { charges }
    }

    fn answered(
        &mut self,
        world: &mut World,
        pending: Pending,
        answer: Result<Performed, Undecided>,
    ) {
        let Pending { node, called_at, policy, what, .. } = pending;
        let mut words = vec![4, self.number as u64, node as u64, called_at];
        match &answer {
            Ok(performed) => {
                words.extend([performed.index, performed.outcomes.now.time.as_nanos()]);
                words.extend(performed.outcomes.list.iter().map(code));
            }
            Err(why) => words.push(100 + *why as u64),
        }
        let oracle = world.oracle.clone();
        let mut oracle = oracle.lock().unwrap();
        oracle.note(
            || {
                let client = self.number;
                match &answer {
                    Ok(done) => {
                        let list = &done.outcomes.list;
                        format!(
                            "client {client} hears from node {node}: entry {}: {list:?}",
                            done.index
                        )
                    }
                    Err(why) => format!("client {client} hears from node {node}: {why:?}"),
                }
            },
            &words,
        );
        if let Ok(performed) = &answer {
            oracle.policies.performed(policy, performed.outcomes.now);
            world.decided(node, called_at);
        }
        match &answer {
            Err(Undecided::Unknown) => world.tally.unknown += 1,
            Err(Undecided::Stale) => world.tally.stale += 1,
            Err(_) => world.tally.refused += 1,
            Ok(_) => {}
        }
        let replied_at = world.nanos();
        match what {
            What::Open => {
                if let Ok(performed) = answer
                    && let [Outcome::Opened(name)] = performed.outcomes.list[..]
                {
                    self.session = Some(name);
                }
            }
            // Whether it was still held does not matter.
            What::Release => {}
            What::WithId(sequence, cost) => {
                let Ok(performed) = answer else { return };
                match &performed.outcomes.list[..] {
                    [Outcome::Decided { decision, .. }] if decision.verdict == Verdict::Allow => {
                        world.tally.allowed += 1;
                    }
                    [Outcome::Repeated { .. }] => world.tally.repeated += 1,
                    other => {
                        let client = self.number;
                        let why = format!("client {client}, request {sequence}: {other:?}");
                        oracle.hold(Err(why));
                    }
                }
                self.unanswered = None;
                oracle.once.insert((self.number, sequence), cost);
            }
            What::Checks(asked) => {
                for (place, asked) in asked.into_iter().enumerate() {
                    let known = match &answer {
                        Err(Undecided::Unknown) => Known::Unknown,
                        Err(_) => Known::NotCharged,
                        Ok(performed) => match &performed.outcomes.list[place] {
                            Outcome::Decided { decision, .. } => match decision.verdict {
                                Verdict::Allow => {
                                    world.tally.allowed += 1;
                                    if let Some(permit) = decision.permit {
                                        let units = asked.cost_of(Limit::Permits);
                                        oracle
                                            .permits
                                            .given(permit.id, units, called_at, replied_at);
                                        self.permit = Some(permit.id);
                                    }
                                    Known::Charged
                                }
                                Verdict::Deny => {
                                    world.tally.denied += 1;
                                    Known::NotCharged
                                }
                            },
                            _ => Known::NotCharged,
                        },
                    };
                    oracle.done.push(Done { asked, called_at, replied_at, known });
                }
            }
        }
    }
}

fn code(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Decided { decision, .. } if decision.verdict == Verdict::Allow => 1,
        Outcome::Decided { .. } => 2,
        Outcome::Repeated { .. } => 3,
        Outcome::Opened(name) => *name,
        _ => 4,
    }
}

/// The change that puts a policy in force.
pub(super) fn policy_change(version: u64) -> Bytes {
    Bytes::copy_from_slice(&version.to_le_bytes())
}

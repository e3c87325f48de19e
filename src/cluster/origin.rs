//! Requests that were asked at this node and are not answered yet.
//!
//! The node at which something was asked answers it, when it applies the entry that has it. Until
//! then the request is kept here, with the term for which it was handed to that term's leader.
//! Entries of a term come before those of the next, so once an entry of a later term is applied,
//! whatever was handed over for an earlier one and has not been seen was not performed and never
//! will be: it is handed over again, to the new leader.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, oneshot};

use crate::engine::command::CHARGES_MAX;
use crate::engine::decision::Refusal;
use crate::engine::group::{COMMANDS_MAX, Command, Group, Performed, Undecided};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::time::Now;

use super::entry::{CHANGE_BYTES_MAX, GROUP_BYTES_MAX, Tag, encode_group};
use super::host::{Readings, advancing};
use super::types::{LeaderId, LogId};

/// The most requests that wait at one node. Past it they are refused at once.
pub(super) const WAITING_MAX: usize = 16_384;

/// The most bytes of requests that wait at one node.
pub(super) const WAITING_BYTES_MAX: usize = 64 << 20;

/// For how long a request may wait for a leader that it can be handed to, in nanoseconds: an
/// election timeout.
pub(super) const LEADERLESS_NANOS: u64 = 300_000_000;

/// For how long a request may wait that was handed over, in nanoseconds. A new leader has been
/// found by then, if there can be one: a leader that hears nobody keeps its followers for a second,
/// and several elections fit the rest. So the longest that a request waits for an answer of any kind
/// is this and [`LEADERLESS_NANOS`], and a look of the batcher on top.
pub(super) const UNKNOWN_NANOS: u64 = 3_000_000_000;

/// Where the node stands.
#[derive(Clone, Copy, Debug)]
pub struct Applied {
    /// The last entry that was applied.
    pub log_id: Option<LogId>,
    /// The moment of the last entry that has one.
    pub now: Now,
    /// This node's raw clock when it applied that.
    pub raw: u64,
}

impl Applied {
    /// Whose entry was applied last.
    pub fn leader(&self) -> Option<LeaderId> {
        self.log_id.map(|log_id| log_id.leader_id)
    }
}

/// What is to be handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A group, encoded, and the version of the policy by which it was resolved.
    Group {
        /// The version.
        policy: u64,
        /// The group.
        body: Bytes,
    },
    /// A change.
    Change(Bytes),
}

impl Asked {
    fn bytes(&self) -> usize {
        match self {
            Self::Group { body, .. } => body.len(),
            Self::Change(change) => change.len(),
        }
    }
}

enum Reply {
    Group(oneshot::Sender<Result<Performed, Undecided>>),
    Change(oneshot::Sender<Result<Result<String, String>, Undecided>>),
    /// Nobody waits.
    None,
}

impl Reply {
    fn refuse(self, why: Undecided) {
        // Whoever asked may have gone.
        match self {
            Self::Group(reply) => _ = reply.send(Err(why)),
            Self::Change(reply) => _ = reply.send(Err(why)),
            Self::None => {}
        }
    }
}

struct Waiting {
    asked: Asked,
    reply: Reply,
    asked_at: u64,
    /// When it is too late to hand it over.
    late_at: u64,
    /// For which term it was handed over last, and when first.
    handed_over: Option<(u64, u64)>,
}

struct State {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    bytes: usize,
    /// Those to be handed over, in the order in which they were asked.
    fresh: VecDeque<u64>,
    applied: Applied,
    stopping: bool,
}

/// The requests asked at this node, and how far it has applied the log.
pub struct Origin {
    node: u64,
    incarnation: u64,
    readings: Arc<dyn Readings>,
    state: Mutex<State>,
    /// Something is to be handed over, or something was applied.
    pub news: Notify,
}

impl Origin {
    /// Nothing asked yet, in this run of a node.
    pub fn new(node: u64, incarnation: u64, readings: Arc<dyn Readings>) -> Self {
        let applied = Applied { log_id: None, now: Now::default(), raw: 0 };
        let (waiting, fresh) = (BTreeMap::new(), VecDeque::new());
        let state = State { next: 1, waiting, bytes: 0, fresh, applied, stopping: false };
        Self { node, incarnation, readings, state: Mutex::new(state), news: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// How far the log has been applied.
    pub fn applied(&self) -> Applied {
        self.lock().applied
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Asks for a group to be performed. It is too late `deadline_nanos` from now, if it was not
    /// handed over by then.
    pub fn perform(
        &self,
        group: &Group,
        policy: u64,
        deadline_nanos: Option<u64>,
    ) -> oneshot::Receiver<Result<Performed, Undecided>> {
        let (reply, answer) = oneshot::channel();
        self.ask_group(group, policy, Reply::Group(reply), deadline_nanos);
        answer
    }

    /// As [`Origin::perform`], for nobody who waits.
    pub fn perform_unheard(&self, group: &Group, policy: u64) {
        self.ask_group(group, policy, Reply::None, None);
    }

    fn ask_group(&self, group: &Group, policy: u64, reply: Reply, deadline_nanos: Option<u64>) {
        // In an entry of the log no node could apply it, and all would end.
        let is_long = |command: &Command| command.charges() > CHARGES_MAX;
        if group.commands.len() > COMMANDS_MAX || group.commands.iter().any(is_long) {
            return reply.refuse(Undecided::Overloaded);
        }
        let mut body = BytesMut::new();
        encode_group(group, &mut body);
        let asked = Asked::Group { policy, body: body.freeze() };
        self.ask(asked, reply, GROUP_BYTES_MAX, deadline_nanos);
    }

    /// Asks for a change to be made.
    pub fn change(
        &self,
        change: Bytes,
    ) -> oneshot::Receiver<Result<Result<String, String>, Undecided>> {
        let (reply, answer) = oneshot::channel();
        self.ask(Asked::Change(change), Reply::Change(reply), CHANGE_BYTES_MAX, None);
        answer
    }

    fn ask(&self, asked: Asked, reply: Reply, bytes_max: usize, deadline_nanos: Option<u64>) {
        let now = self.readings.read().raw;
        let late_at = deadline_nanos.map_or(u64::MAX, |nanos| now.saturating_add(nanos));
        let mut state = self.lock();
        let bytes = asked.bytes();
        let full = state.waiting.len() >= WAITING_MAX || state.bytes + bytes > WAITING_BYTES_MAX;
        if state.stopping {
            return reply.refuse(Undecided::Stopping);
        }
        if full || bytes > bytes_max {
            return reply.refuse(Undecided::Overloaded);
        }
        let sequence = state.next;
        state.next += 1;
        state.bytes += bytes;
        let waiting = Waiting { asked, reply, asked_at: now, late_at, handed_over: None };
        state.waiting.insert(sequence, waiting);
        state.fresh.push_back(sequence);
        drop(state);
        self.news.notify_one();
    }

    /// The next request to be handed to the leader of `term`, if `fits` likes its size. Those that
    /// are too late are answered so. There is none while it is not known what became of those that
    /// were handed over for earlier terms: they may have to go first, and a leader takes a node's
    /// requests in the order of their sequences only.
    pub(super) fn hand_over(
        &self,
        term: u64,
        fits: impl Fn(usize) -> bool,
    ) -> Option<(Tag, Asked)> {
        let now = self.readings.read().raw;
        let mut state = self.lock();
        let state = &mut *state;
        if state.owes(term) {
            return None;
        }
        while let Some(&sequence) = state.fresh.front() {
            let Some(waiting) = state.waiting.get_mut(&sequence) else {
                state.fresh.pop_front();
                continue;
            };
            if now >= waiting.late_at && waiting.handed_over.is_none() {
                state.fresh.pop_front();
                state.refuse(sequence, Undecided::Late);
                continue;
            }
            if !fits(waiting.asked.bytes()) {
                return None;
            }
            state.fresh.pop_front();
            let first = waiting.handed_over.map_or(now, |(_, first)| first);
            waiting.handed_over = Some((term, first));
            let tag = Tag { origin: self.node, incarnation: self.incarnation, sequence };
            return Some((tag, waiting.asked.clone()));
        }
        None
    }

    /// These were handed over to this node itself and got into no entry: they wait as if they never
    /// had been.
    pub(super) fn give_back(&self, sequences: impl Iterator<Item = u64>) {
        let mut state = self.lock();
        let state = &mut *state;
        let fresh = state.fresh.len();
        for sequence in sequences {
            if let Some(waiting) = state.waiting.get_mut(&sequence) {
                waiting.handed_over = None;
                state.fresh.push_back(sequence);
            }
        }
        if state.fresh.len() > fresh {
            state.fresh.make_contiguous().sort_unstable();
        }
    }

    /// What was handed over for `term` is to be handed over again, in order: its leader is new, or
    /// the link to it. The leader knows what it has already. What was handed over for an earlier
    /// term stays away until that is known to be lost.
    pub(super) fn hand_over_again(&self, term: u64) {
        let mut state = self.lock();
        let applied = state.applied.leader().map_or(0, |leader| leader.term);
        state.again(|handed_over| {
            handed_over == term || handed_over < applied || planted(Mutant::HandOverTwice)
        });
    }

    /// Whether nothing may be handed over for `term` yet.
    pub(super) fn owes(&self, term: u64) -> bool {
        self.lock().owes(term)
    }

    /// Answers what has waited for too long. `has_leader`: there is one that takes requests.
    pub(super) fn expire(&self, has_leader: bool) {
        let now = self.readings.read().raw;
        let mut state = self.lock();
        let mut over = Vec::new();
        for (&sequence, waiting) in &state.waiting {
            let age = now.saturating_sub(waiting.asked_at);
            let why = match waiting.handed_over {
                None if now >= waiting.late_at => Undecided::Late,
                None if age >= LEADERLESS_NANOS && has_leader => Undecided::Overloaded,
                None if age >= LEADERLESS_NANOS => Undecided::NoQuorum,
                Some((_, first)) if now.saturating_sub(first) >= UNKNOWN_NANOS => {
                    Undecided::Unknown
                }
                _ => continue,
            };
            over.push((sequence, why));
        }
        for (sequence, why) in over {
            state.refuse(sequence, why);
        }
    }

    /// Answers everything that waits: the node stops.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        let over: Vec<(u64, bool)> = state
            .waiting
            .iter()
            .map(|(&sequence, waiting)| (sequence, waiting.handed_over.is_some()))
            .collect();
        for (sequence, handed_over) in over {
            let why = if handed_over { Undecided::Unknown } else { Undecided::Stopping };
            state.refuse(sequence, why);
        }
    }

    /// Whether this run of this node asked it, and somebody still waits for the outcome.
    pub(super) fn awaits(&self, tag: &Tag) -> bool {
        self.is_ours(tag) && self.lock().waiting.contains_key(&tag.sequence)
    }

    fn is_ours(&self, tag: &Tag) -> bool {
        tag.origin == self.node && tag.incarnation == self.incarnation
    }

    /// A group was applied.
    pub(super) fn performed(&self, tag: &Tag, outcome: Result<Performed, Undecided>) {
        if !self.is_ours(tag) {
            return;
        }
        let waiting = self.lock().remove(tag.sequence);
        if let Some(Reply::Group(reply)) = waiting.map(|waiting| waiting.reply) {
            let _ = reply.send(outcome);
        }
    }

    /// A change was applied.
    pub(super) fn changed(&self, tag: &Tag, outcome: Result<String, String>) {
        if !self.is_ours(tag) {
            return;
        }
        let waiting = self.lock().remove(tag.sequence);
        if let Some(Reply::Change(reply)) = waiting.map(|waiting| waiting.reply) {
            let _ = reply.send(Ok(outcome));
        }
    }

    /// An entry was applied; `now` is its moment, if it has one.
    pub(super) fn applied_to(&self, log_id: LogId, now: Option<Now>) {
        let raw = advancing(self.readings.read());
        let mut state = self.lock();
        let term = log_id.leader_id.term;
        let is_later = state.applied.leader().is_none_or(|leader| leader.term < term);
        state.applied.log_id = Some(log_id);
        if let Some(now) = now {
            (state.applied.now, state.applied.raw) = (now, raw);
        }
        if is_later {
            state.again(|handed_over| handed_over < term);
        }
        drop(state);
        self.news.notify_one();
    }

    /// A snapshot took the place of entries. What was handed over may have been in them.
    pub(super) fn skipped_to(&self, log_id: Option<LogId>, now: Now) {
        let raw = advancing(self.readings.read());
        let mut state = self.lock();
        state.applied = Applied { log_id, now, raw };
        let over: Vec<u64> = state
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.handed_over.is_some())
            .map(|(&sequence, _)| sequence)
            .collect();
        for sequence in over {
            state.refuse(sequence, Undecided::Unknown);
        }
    }
}

impl State {
    fn remove(&mut self, sequence: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&sequence)?;
        self.bytes -= waiting.asked.bytes();
        Some(waiting)
    }

    fn refuse(&mut self, sequence: u64, why: Undecided) {
        if let Some(waiting) = self.remove(sequence) {
            waiting.reply.refuse(why);
        }
    }

    /// Whether something that was handed over for a term before this one may be to be handed over
    /// again.
    fn owes(&self, term: u64) -> bool {
        let is_decided = self.applied.leader().is_some_and(|leader| leader.term >= term);
        let is_earlier = |(of, _): (u64, u64)| of < term;
        !is_decided
            && !planted(Mutant::HandOverTwice)
            && self.waiting.values().any(|it| it.handed_over.is_some_and(is_earlier))
    }

    /// Has everything handed over anew that was handed over for a term that `lost` says.
    fn again(&mut self, lost: impl Fn(u64) -> bool) {
        let is_fresh = |waiting: &Waiting| waiting.handed_over.is_none_or(|(term, _)| lost(term));
        let fresh = self.waiting.iter().filter(|(_, waiting)| is_fresh(waiting));
        self.fresh = fresh.map(|(&sequence, _)| sequence).collect();
    }
}

/// Of what a leader refused, by place.
pub(super) fn refusal_at(refused: &[(u32, Refusal)], place: usize) -> Option<Refusal> {
    let place = u32::try_from(place).ok()?;
    let at = refused.binary_search_by_key(&place, |(place, _)| *place).ok()?;
    Some(refused[at].1)
}

#[cfg(test)]
mod tests;

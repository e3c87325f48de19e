//! Hands requests to the leader, and at the leader makes entries of them.
//!
//! One task at each node. It never holds an entry back to make it larger: while nothing is on its
//! way, whatever waits is sealed at once, and while entries are, what comes meanwhile goes into the
//! next one. So entries grow with load by themselves.

mod handed_over;

mod inbox;

mod lead;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::Raft;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::storage::RaftStateMachine;

use crate::clock::{Reading, Stamper};
#[cfg(test)]
use crate::engine::mutant::{Mutant, planted};

use super::counts::Counts;
use super::entry::{Record, Tag, What};
use super::host::{Host, Readings, advancing};
use super::origin::{LEADERLESS_NANOS, Origin};
use super::types::{Entry, LeaderId, NodeId, TypeConfig, acked_ago};

use handed_over::{HandedOver, Item};
use lead::Lead;

pub use inbox::Inbox;

/// Entries that a leader has proposed and not applied. With two the disk and the network always
/// have work; more would make entries smaller, and each costs much by itself.
const UNAPPLIED_MAX: usize = 3;

/// Requests that wait at a leader for an entry before it takes in more: those of a full inbox come
/// on top at most.
const OPEN_MAX: usize = 16_384;

/// The most bytes of one frame from node to node.
const FRAME_BYTES_MAX: usize = 900 << 10;

/// How often things are looked at that nobody tells of.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// For how long a leader hands nothing more to Raft once no majority answers, and a node nothing
/// more to a leader of whom it does not hear: what is not handed over was surely not charged.
const OUT_OF_CONTACT: Duration = Duration::from_nanos(LEADERLESS_NANOS);

/// How long a leader waits that may not propose at the moment.
const RETRY_AFTER: Duration = Duration::from_millis(5);

/// Sends frames to other nodes, in order. The seam to the peers.
pub trait Links: Send + Sync + 'static {
    /// Sends a frame, or says that it cannot now: the link is down, or too much is on its way.
    fn send(&self, to: NodeId, frame: Bytes) -> bool;

    /// Whether the link is up.
    fn is_up(&self, to: NodeId) -> bool;
}

/// What one node is for the batcher at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The leader of this term, which has applied an entry of it, so all earlier ones.
    Leading(LeaderId),
    /// A leader that has yet to, or that no majority answers.
    Beginning,
    /// A node that knows the leader of this term.
    Following(NodeId, u64),
    /// A node that knows of none, or does not hear of it.
    Alone,
}

/// Hands over and seals. One for each node, run as a task.
pub struct Batcher<SM: RaftStateMachine<TypeConfig>> {
    raft: Raft<TypeConfig, SM>,
    origin: Arc<Origin>,
    inbox: Arc<Inbox>,
    links: Arc<dyn Links>,
    host: Arc<dyn Host>,
    readings: Arc<dyn Readings>,
    counts: Arc<Counts>,
    /// Of a leader.
    lead: Option<Lead>,
    /// To whom and for which term this node hands over, and the highest sequence so far.
    handing_to: Option<(NodeId, u64, u64)>,
}

impl<SM: RaftStateMachine<TypeConfig>> Batcher<SM> {
    /// A batcher for the node of `origin`.
    pub fn new(
        raft: Raft<TypeConfig, SM>,
        origin: Arc<Origin>,
        inbox: Arc<Inbox>,
        links: Arc<dyn Links>,
        host: Arc<dyn Host>,
        readings: Arc<dyn Readings>,
        counts: Arc<Counts>,
    ) -> Self {
        Self { raft, origin, inbox, links, host, readings, counts, lead: None, handing_to: None }
    }

    /// Works until Raft stops.
    pub async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            select! {
                () = self.origin.news.notified() => {}
                _ = looks.tick() => {
                    let takes = match self.role() {
                        Role::Leading(_) => true,
                        Role::Following(_, term) => !self.origin.owes(term),
                        Role::Beginning | Role::Alone => false,
                    };
                    self.origin.expire(takes);
                }
            }
            match self.role() {
                Role::Leading(leader) => {
                    if self.lead.as_ref().is_none_or(|lead| lead.leader != leader) {
                        self.begin(leader);
                    }
                    self.take_in();
                    if self.seal().await.is_err() {
                        break;
                    }
                }
                Role::Following(leader, term) => {
                    // There is a later term, so this one's leader does not come back.
                    self.lead = None;
                    self.inbox.drain();
                    self.hand_over(leader, term);
                }
                // A leader that hears nobody may yet go on in its term, with what others handed over.
                Role::Beginning | Role::Alone => self.give_back(),
            }
        }
        self.origin.stop();
    }

    fn role(&self) -> Role {
        if let Ok(leader) = self.raft.as_leader() {
            let is_heard = is_answered(&self.raft, acked_ago(&leader), OUT_OF_CONTACT);
            let leader = leader.to_committed_leader_id();
            let ready = is_heard && self.origin.applied().leader() == Some(leader);
            return if ready { Role::Leading(leader) } else { Role::Beginning };
        }
        let metrics = self.raft.metrics();
        let metrics = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&metrics);
        match metrics.current_leader {
            Some(leader) if leader != self.origin.node() && self.hears(leader) => {
                Role::Following(leader, metrics.current_term)
            }
            _ => Role::Alone,
        }
    }

    fn hears(&self, leader: NodeId) -> bool {
        self.inbox.has_heard(self.readings.read().raw, OUT_OF_CONTACT) && self.links.is_up(leader)
    }

    /// The first entry of a leader: its clock begins, with wall time as a majority has it.
    fn begin(&mut self, leader: LeaderId) {
        let applied = self.origin.applied();
        let reading = self.readings.read();
        let reading = Reading { raw: advancing(reading), ..reading };
        let raw = (applied.raw > 0).then_some(applied.raw);
        let time =
            applied.now.time.as_nanos() + raw.map_or(0, |raw| reading.raw.saturating_sub(raw));
        let ahead = self.counts.ahead.agreed(reading.wall.saturating_sub(time));
        let stamper = Stamper::begin(applied.now, raw, reading, ahead);
        self.handing_to = None;
        self.lead = Some(Lead {
            leader,
            stamper,
            open: VecDeque::new(),
            taken: HashMap::new(),
            unapplied: Arc::new(AtomicUsize::new(0)),
            returned: Arc::default(),
            fenced: false,
        });
        self.origin.hand_over_again(leader.term);
    }

    /// Gives the leader what is fresh here.
    fn hand_over(&mut self, leader: NodeId, term: u64) {
        let relinked = self.inbox.relinked.swap(false, Ordering::AcqRel);
        let mut after = match self.handing_to {
            Some((to, of, after)) if (to, of) == (leader, term) && !relinked => after,
            _ => {
                self.origin.hand_over_again(term);
                0
            }
        };
        loop {
            let mut frame = HandedOver { term, after, items: Vec::new() };
            let mut bytes = 0;
            let fits = |bytes: usize, more: usize| bytes == 0 || bytes + more < FRAME_BYTES_MAX;
            while let Some((tag, asked)) = self.origin.hand_over(term, |more| fits(bytes, more)) {
                let item = Item::of(tag, asked);
                bytes += item.bytes() + 64;
                after = after.max(tag.sequence);
                frame.items.push(item);
            }
            if frame.items.is_empty() {
                break;
            }
            let items = frame.items.len() as u64;
            if !self.links.send(leader, frame.encode()) {
                // Once the link is up again all of it is handed over anew.
                self.handing_to = None;
                return;
            }
            self.counts.forwarded.fetch_add(items, Ordering::Relaxed);
        }
        self.handing_to = Some((leader, term, after));
    }

    /// Takes in what was asked here and what other nodes handed over.
    fn take_in(&mut self) {
        let Some(lead) = &mut self.lead else { return };
        lead.take_returned();
        let term = lead.leader.term;
        // What finds no room stays where it is: here until it is told so, elsewhere on the link.
        while lead.open.len() < OPEN_MAX
            && let Some((tag, asked)) = self.origin.hand_over(term, |_| true)
        {
            // Each comes once, but for what was given back.
            lead.open.push_back(Item::of(tag, asked));
        }
        if lead.open.len() >= OPEN_MAX {
            return;
        }
        for HandedOver { term: of, after, items } in self.inbox.drain() {
            let Some(first) = items.first() else { continue };
            let Tag { origin, incarnation, .. } = *first.tag();
            let taken = match lead.taken.get(&origin) {
                Some((run, taken)) if *run == incarnation => *taken,
                _ => 0,
            };
            // Of a term that is over it comes again. Behind a gap, it comes again with what was
            // lost; the node that sent it learns of the broken link, too.
            if of != term || after > taken {
                continue;
            }
            for item in items {
                lead.take(item);
            }
        }
    }

    /// Gives back what was asked here and is in no entry: it surely was not charged, and is answered
    /// so unless a majority answers soon.
    fn give_back(&mut self) {
        let Some(lead) = &mut self.lead else { return };
        lead.take_returned();
        let node = self.origin.node();
        let (own, others) = core::mem::take(&mut lead.open)
            .into_iter()
            .partition::<VecDeque<Item>, _>(|item| item.tag().origin == node);
        lead.open = others;
        self.origin.give_back(own.iter().map(|item| item.tag().sequence));
    }

    /// Makes entries of what is open and proposes them, as long as few are on their way.
    async fn seal(&mut self) -> Result<(), ()> {
        loop {
            let Some(lead) = &mut self.lead else { return Ok(()) };
            if lead.unapplied.load(Ordering::Acquire) >= UNAPPLIED_MAX {
                return Ok(());
            }
            let what = if lead.fenced {
                match lead.next(&*self.host, &self.counts) {
                    Some(what) => what,
                    None => return Ok(()),
                }
            } else {
                lead.fenced = true;
                What::Fence
            };
            let raw = advancing(self.readings.read());
            if let Some(ahead) = self.counts.ahead.steer_to() {
                lead.stamper.steer(raw, ahead);
            }
            let now = lead.stamper.stamp(raw);
            let record = Record { now, what };
            let bytes = record.encode();
            self.counts.proposed(&record, bytes.len());
            #[cfg(test)]
            if planted(Mutant::AnswerBeforeApply) {
                answer_before_apply(&record, &*self.host, &self.origin);
            }
            let (responder, done) = ProgressResponder::complete_only();
            let write = self.raft.write(Entry(bytes));
            let write = write.with_leader(lead.leader).responder(responder);
            lead.unapplied.fetch_add(1, Ordering::AcqRel);
            if write.await.is_err() {
                return Err(());
            }
            let (unapplied, returned) = (Arc::clone(&lead.unapplied), Arc::clone(&lead.returned));
            let origin = Arc::clone(&self.origin);
            let counts = Arc::clone(&self.counts);
            let proposed_at = raw;
            let readings = Arc::clone(&self.readings);
            tokio::spawn(async move {
                let outcome = done.await;
                if let Ok(Err(ClientWriteError::ForwardToLeader(_))) = outcome {
                    // Surely not appended. If this node leads on, it is proposed again.
                    tokio::time::sleep(RETRY_AFTER).await;
                    counts.resubmitted.fetch_add(1, Ordering::Relaxed);
                    let mut returned = returned.lock().unwrap_or_else(PoisonError::into_inner);
                    returned.extend(record.into_items());
                } else if let Ok(Ok(_)) = outcome {
                    counts.committed(readings.read().raw.saturating_sub(proposed_at));
                }
                unapplied.fetch_sub(1, Ordering::AcqRel);
                origin.news.notify_one();
            });
        }
    }
}

/// Whether a majority answered this leader less than `span` ago. A leader that is the only voter is
/// its own majority, and no answer tells it so.
pub(super) fn is_answered<SM: RaftStateMachine<TypeConfig>>(
    raft: &Raft<TypeConfig, SM>,
    acked_before: Option<Duration>,
    span: Duration,
) -> bool {
    acked_before.is_some_and(|before| before < span) || raft.voter_ids().count() == 1
}

#[cfg(test)]
fn answer_before_apply(record: &Record, host: &dyn Host, origin: &Origin) {
    use super::entry::decode_group;
    use crate::engine::group::{Command, Group, Outcome, Outcomes, Performed};
    use crate::engine::table::Stamp;
    let What::Groups(groups) = &record.what else { return };
    let (table, mut group, mut readings) = (host.table(), Group::default(), Vec::new());
    for tagged in groups.iter().filter(|tagged| origin.awaits(&tagged.tag)) {
        decode_group(tagged.body.clone(), &mut group).unwrap();
        let mut outcomes = Outcomes { now: record.now, ..Outcomes::default() };
        let (pinned, mut at) = (table.pin(), 0);
        for command in &group.commands {
            let charges = &group.charges[at..at + command.charges()];
            at += command.charges();
            if !matches!(command, Command::Check { .. }) {
                return;
            }
            let peeked = pinned.peek(charges, &mut Stamp::new(|| record.now), &mut readings);
            let (decision, from) = (peeked.unwrap(), outcomes.readings.len());
            outcomes.readings.append(&mut readings);
            let readings = from..outcomes.readings.len();
            outcomes.list.push(Outcome::Decided { decision, readings });
        }
        let performed = Performed { outcomes, index: 0, position: 0 };
        origin.performed(&tagged.tag, Ok(performed));
    }
}

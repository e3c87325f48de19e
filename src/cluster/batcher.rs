//! Hands requests to the leader, and at the leader makes entries of them.
//!
//! One task at each node. It never holds an entry back to make it larger: while nothing is on its
//! way, whatever waits is sealed at once, and while entries are, what comes meanwhile goes into the
//! next one. So entries grow with load by themselves.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::Raft;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::storage::RaftStateMachine;

use crate::clock::{Reading, Stamper};
use crate::engine::command::Charge;
use crate::engine::decision::Refusal;
use crate::engine::group::{Command, Group};
use crate::engine::kinds::Form;
#[cfg(test)]
use crate::engine::mutant::{Mutant, planted};
use crate::engine::table::Table;

use super::counts::Counts;
use super::entry::{
    COMMANDS_PER_ENTRY, ENTRY_BYTES_MAX, GROUPS_MAX, Record, Tag, Tagged, What, decode_group,
};
use super::host::{Host, Readings, advancing};
use super::origin::{Asked, LEADERLESS_NANOS, Origin};
use super::types::{Entry, LeaderId, NodeId, TypeConfig, acked_ago};

/// Entries that a leader has proposed and not applied. With two the disk and the network always
/// have work; more would make entries smaller, and each costs much by itself.
const UNAPPLIED_MAX: usize = 3;

/// The most bytes of requests handed over by other nodes that wait at a leader. A link from which
/// more comes is not read until there is room.
const INBOX_BYTES_MAX: usize = 64 << 20;

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

enum Item {
    Group(Tagged),
    Change(Tag, Bytes),
}

impl Item {
    fn tag(&self) -> &Tag {
        match self {
            Self::Group(group) => &group.tag,
            Self::Change(tag, _) => tag,
        }
    }

    fn of(tag: Tag, asked: Asked) -> Self {
        match asked {
            Asked::Group { policy, body } => {
                Self::Group(Tagged { tag, policy, refused: Vec::new(), body })
            }
            Asked::Change(change) => Self::Change(tag, change),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Group(group) => group.bytes(),
            Self::Change(_, change) => change.len() + 32,
        }
    }
}

/// What one node hands over to a leader at a time.
struct HandedOver {
    term: u64,
    /// The highest sequence that this node handed over in this term before; 0 if it begins anew.
    after: u64,
    items: Vec<Item>,
}

/// Requests handed over by other nodes, as they came.
#[derive(Default)]
pub struct Inbox {
    frames: Mutex<VecDeque<HandedOver>>,
    bytes: AtomicUsize,
    relinked: AtomicBool,
    heard_at: AtomicU64,
    committed: AtomicU64,
}

impl Inbox {
    /// Takes in a frame from another node. Returns whether there is room for more.
    ///
    /// # Errors
    /// If the frame is none.
    pub fn take(&self, frame: Bytes) -> Result<bool, super::entry::Malformed> {
        let bytes = frame.len();
        let handed_over = HandedOver::decode(frame)?;
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).push_back(handed_over);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(before + bytes < INBOX_BYTES_MAX)
    }

    /// A link to another node is new: what came of frames on the one before is not known.
    pub fn note_relinked(&self) {
        self.relinked.store(true, Ordering::Release);
    }

    /// A leader was heard of, at this moment of the raw clock, which has committed its log up to
    /// this index.
    pub fn note_heard(&self, raw: u64, committed: u64) {
        self.committed.store(committed, Ordering::Relaxed);
        self.heard_at.store(raw, Ordering::Release);
    }

    /// How far the leader had committed its log when it was last heard of; 0 if it never was.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Whether a leader was heard of less than `span` before this moment of the raw clock.
    pub fn has_heard(&self, raw: u64, span: Duration) -> bool {
        let heard_at = self.heard_at.load(Ordering::Acquire);
        heard_at > 0 && u128::from(raw.saturating_sub(heard_at)) < span.as_nanos()
    }

    /// Whether a frame has room.
    pub fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) < INBOX_BYTES_MAX
    }

    fn drain(&self) -> VecDeque<HandedOver> {
        self.bytes.store(0, Ordering::Relaxed);
        core::mem::take(&mut *self.frames.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl HandedOver {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64_le(self.term);
        out.put_u64_le(self.after);
        out.put_u32_le(self.items.len() as u32);
        for item in &self.items {
            match item {
                Item::Group(group) => {
                    out.put_u8(1);
                    group.encode(&mut out);
                }
                Item::Change(tag, change) => {
                    out.put_u8(2);
                    tag.encode(&mut out);
                    out.put_u32_le(change.len() as u32);
                    out.put_slice(change);
                }
            }
        }
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Result<Self, super::entry::Malformed> {
        use super::entry::Malformed;
        if bytes.len() < 20 {
            return Err(Malformed::Short);
        }
        let (term, after, count) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u32_le());
        let mut items = Vec::new();
        for _ in 0..count {
            if bytes.is_empty() {
                return Err(Malformed::Short);
            }
            items.push(match bytes.get_u8() {
                1 => Item::Group(Tagged::decode(&mut bytes)?),
                2 => {
                    let tag = Tag::decode(&mut bytes)?;
                    let length = bytes.try_get_u32_le().map_err(|_| Malformed::Short)? as usize;
                    if bytes.len() < length {
                        return Err(Malformed::Short);
                    }
                    Item::Change(tag, bytes.split_to(length))
                }
                other => {
                    let found = other.into();
                    return Err(Malformed::Field { field: "the kind of a request", found });
                }
            });
        }
        Ok(Self { term, after, items })
    }
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

/// A leader's state.
struct Lead {
    leader: LeaderId,
    stamper: Stamper,
    open: VecDeque<Item>,
    /// Of each other node: its run, and the highest sequence that was taken.
    taken: HashMap<NodeId, (u64, u64)>,
    unapplied: Arc<AtomicUsize>,
    /// Items of entries that surely were not appended, to be proposed again.
    returned: Arc<Mutex<Vec<Item>>>,
    /// Whether its first entry was proposed.
    fenced: bool,
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

impl Record {
    fn into_items(self) -> Vec<Item> {
        match self.what {
            What::Groups(groups) => groups.into_iter().map(Item::Group).collect(),
            What::Change { tag, change } => vec![Item::Change(tag, change)],
            What::Fence | What::Checksum => Vec::new(),
        }
    }
}

impl Lead {
    /// Puts what surely was not appended where it was.
    fn take_returned(&mut self) {
        let returned =
            core::mem::take(&mut *self.returned.lock().unwrap_or_else(PoisonError::into_inner));
        for item in returned.into_iter().rev() {
            self.open.push_front(item);
        }
    }

    /// Takes in what another node handed over, unless it was before.
    fn take(&mut self, item: Item) {
        let Tag { origin, incarnation, sequence } = *item.tag();
        let taken = self.taken.entry(origin).or_insert((incarnation, 0));
        if taken.0 != incarnation {
            *taken = (incarnation, 0);
        }
        if sequence > taken.1 {
            taken.1 = sequence;
            self.open.push_back(item);
        }
    }

    /// What the next entry applies.
    fn next(&mut self, host: &dyn Host, counts: &Counts) -> Option<What> {
        if counts.checksum_is_due() {
            return Some(What::Checksum);
        }
        if let Some(Item::Change(..)) = self.open.front() {
            let Some(Item::Change(tag, change)) = self.open.pop_front() else { return None };
            return Some(What::Change { tag, change });
        }
        let table = host.table();
        let (mut groups, mut bytes, mut commands) = (Vec::new(), 0, 0);
        while let Some(Item::Group(_)) = self.open.front() {
            let Some(Item::Group(mut group)) = self.open.pop_front() else { break };
            let count = group.body.get(..4).map_or(0, |mut count| count.get_u32_le() as usize);
            let over = bytes + group.bytes() > ENTRY_BYTES_MAX
                || commands + count > COMMANDS_PER_ENTRY
                || groups.len() >= GROUPS_MAX;
            if over && !groups.is_empty() {
                self.open.push_front(Item::Group(group));
                break;
            }
            bytes += group.bytes();
            commands += count;
            refuse_for_room(&table, &mut group);
            groups.push(group);
        }
        (!groups.is_empty()).then_some(What::Groups(groups))
    }
}

#[cfg(test)]
fn answer_before_apply(record: &Record, host: &dyn Host, origin: &Origin) {
    use crate::engine::group::{Command, Outcome, Outcomes, Performed};
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

/// The counters that may be on their way into a table that no check of room has counted yet: all
/// of the entries that are not applied.
const HEADROOM: u64 = (UNAPPLIED_MAX * COMMANDS_PER_ENTRY) as u64;

/// Refuses commands that would bring a new counter, where there may be no room for it. Only the
/// leader does, before it proposes: applying never refuses, so nodes cannot differ.
fn refuse_for_room(table: &Table, tagged: &mut Tagged) {
    if table.is_roomy(HEADROOM) {
        return;
    }
    let mut group = Group::default();
    if decode_group(tagged.body.clone(), &mut group).is_err() {
        return;
    }
    let pinned = table.pin();
    let mut at = 0;
    for (place, command) in group.commands.iter().enumerate() {
        let charges = &group.charges[at..at + command.charges()];
        at += command.charges();
        // A check that takes nothing of a limit brings no counter, nor does a limit that keeps none.
        let changes = matches!(command, Command::Amend { .. });
        let counted =
            |charge: &&Charge| (changes || charge.cost > 0) && charge.quota.form() != Form::None;
        let refusal = charges.iter().filter(counted).find_map(|charge| {
            let room = table.room_for(charge.limit, 1).err()?;
            (!pinned.has(charge.key)).then_some(room)
        });
        if let Some(refusal @ Refusal::TableFull { .. }) = refusal {
            tagged.refused.push((place as u32, refusal));
        }
    }
}

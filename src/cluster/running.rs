//! A node of a cluster, put together: log, machine, peers and batcher around one Raft.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Config, Raft, RaftMetrics, ServerState, SnapshotPolicy};

use crate::clock::Watchdog;

use super::batcher::{Batcher, Inbox, Links, is_answered};
use super::counts::Counts;
use super::host::{Disk, Host, Readings};
use super::log_store::LogStore;
use super::machine::{Machine, SharedHome};
use super::origin::Origin;
use super::peer::{self, BoxFuture, Local, Net, Peers, Way};
use super::snapshots::HomeSnapshots;
use super::types::{Member, NodeId, TypeConfig, acked_ago};

/// How often a leader is heard of, in milliseconds.
const HEARTBEAT_MILLIS: u64 = 50;

/// The shortest and the longest time without a leader before a node asks to be elected.
pub(super) const ELECTION_MILLIS: (u64, u64) = (150, 300);

/// How long a leader that hears nobody keeps its followers, in milliseconds.
const QUORUM_LOSS_MILLIS: u64 = 1000;

/// The longest that installing a snapshot may take, in milliseconds.
const INSTALL_MILLIS: u64 = 120_000;

/// Entries that are kept behind a snapshot, for nodes that were away for a moment.
const LOG_KEPT: u64 = if cfg!(test) { 50 } else { 20_000 };

/// Entries in one append.
pub(super) const APPEND_ENTRIES_MAX: u64 = 64;

/// How often nodes ask each other for their clocks and how far they are.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Entries after which a snapshot is taken.
const SNAPSHOT_ENTRIES: u64 = 100_000;

/// How often new members are looked for, to which there is to be a link.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Every so many rounds of asking the tables are hashed and compared, where they are small.
const CHECKSUM_ROUNDS: u64 = 30;

/// The most counters of a table that is hashed without being asked.
const CHECKSUM_KEYS_MAX: u64 = 200_000;

/// A node's Raft.
pub(super) type NodeRaft<S> = Raft<TypeConfig, Machine<S>>;

/// What a node is put together from.
pub struct Parts<S: Disk> {
    /// Who it is.
    pub local: Local,
    /// Its address for peers.
    pub listen: String,
    /// How others reach it.
    pub member: Member,
    /// Its snapshots.
    pub home: SharedHome<S>,
    /// Its log.
    pub log: crate::disk::log::Log<S>,
    /// How much of it is kept.
    pub log_kept: LogKept,
    /// What the log is applied to.
    pub host: Arc<dyn Host>,
    /// Its clocks.
    pub readings: Arc<dyn Readings>,
    /// Its network.
    pub net: Arc<dyn Net>,
    /// A random number of this run.
    pub incarnation: u64,
}

/// How much of a log is kept once a snapshot has what is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogKept {
    /// A little, for nodes that were away for a moment.
    #[default]
    BehindSnapshot,
    /// All of it, so that it can be replayed from its first entry on. The disk fills.
    Whole,
}

/// A node that runs.
pub struct Running<S: Disk> {
    /// Its Raft.
    pub raft: NodeRaft<S>,
    /// What was asked at it.
    pub origin: Arc<Origin>,
    /// What it counts.
    pub counts: Arc<Counts>,
    /// Its transport.
    pub peers: Peers,
    member: Member,
    host: Arc<dyn Host>,
    readings: Arc<dyn Readings>,
    standing: Arc<Mutex<BTreeMap<NodeId, Standing>>>,
    inbox: Arc<Inbox>,
    links: Arc<PeerLinks>,
    /// Nodes that are dialed although they are no members yet.
    guests: Mutex<BTreeSet<NodeId>>,
}

/// How a node stands, by its own word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// By how much its wall clock is ahead of cluster time, in nanoseconds.
    pub ahead_nanos: u64,
    /// The index of the last entry that it applied.
    pub applied: u64,
    /// At which index its table was last hashed; 0 if it was not.
    pub hashed_at: u64,
    /// The hash.
    pub hash: u64,
    /// Counters in its table.
    pub keys: u64,
    /// The term of a leader whose clock it finds to run fast; 0 if it finds none.
    pub fast_clock: u64,
}

/// How Raft stands at a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The node.
    pub node: NodeId,
    /// What it is.
    pub state: &'static str,
    /// The leader that it knows of.
    pub leader: Option<NodeId>,
    /// The term that it knows of.
    pub term: u64,
    /// The index of the last entry applied.
    pub applied: u64,
    /// The index of its last snapshot.
    pub snapshot: Option<u64>,
    /// The index up to which its log was let go.
    pub purged: Option<u64>,
    /// Members: number, peer address, whether it votes.
    pub members: Vec<(NodeId, String, bool)>,
}

const STANDING_BYTES: usize = 48;

impl Standing {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(STANDING_BYTES);
        let Self { ahead_nanos, applied, hashed_at, hash, keys, fast_clock } = *self;
        for word in [ahead_nanos, applied, hashed_at, hash, keys, fast_clock] {
            out.put_u64_le(word);
        }
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        (bytes.len() == STANDING_BYTES).then(|| Self {
            ahead_nanos: bytes.get_u64_le(),
            applied: bytes.get_u64_le(),
            hashed_at: bytes.get_u64_le(),
            hash: bytes.get_u64_le(),
            keys: bytes.get_u64_le(),
            fast_clock: bytes.get_u64_le(),
        })
    }
}

/// What a question between nodes begins with.
const ASK_STANDING: u8 = 1;

/// Frames and questions of peers, on their way to the batcher.
struct Desk {
    inbox: Arc<Inbox>,
    origin: Arc<Origin>,
    counts: Arc<Counts>,
    host: Arc<dyn Host>,
    readings: Arc<dyn Readings>,
    connections: Arc<Mutex<HashMap<NodeId, u64>>>,
}

impl Desk {
    fn standing(&self) -> Standing {
        standing(&self.origin, &self.counts, &*self.host, &*self.readings)
    }
}

fn standing(
    origin: &Origin,
    counts: &Counts,
    host: &dyn Host,
    readings: &dyn Readings,
) -> Standing {
    let applied = origin.applied();
    let reading = readings.read();
    let time = applied.now.time.as_nanos() + reading.raw.saturating_sub(applied.raw);
    let (hashed_at, hash) = counts.checksum().unwrap_or_default();
    Standing {
        ahead_nanos: reading.wall.saturating_sub(time),
        applied: applied.log_id.map_or(0, |log_id| log_id.index),
        hashed_at,
        hash,
        keys: host.table().usage().keys,
        fast_clock: counts.fast_clock(),
    }
}

impl peer::Inbox for Desk {
    fn received(
        &self,
        from: NodeId,
        _connection: u64,
        frame: Bytes,
    ) -> Option<BoxFuture<'static, ()>> {
        match self.inbox.take(frame) {
            Ok(has_room) => {
                self.origin.news.notify_one();
                if has_room {
                    return None;
                }
                let inbox = Arc::clone(&self.inbox);
                Some(Box::pin(async move {
                    while !inbox.has_room() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }))
            }
            Err(malformed) => {
                tracing::warn!(peer = from, %malformed, "a frame that no node sends");
                None
            }
        }
    }

    fn connected(&self, peer: NodeId, way: Way, connection: u64) {
        if way == Way::Out {
            let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            connections.insert(peer, connection);
            self.inbox.note_relinked();
            self.origin.news.notify_one();
        }
    }

    fn disconnected(&self, peer: NodeId, way: Way, connection: u64) {
        if way == Way::Out {
            let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            if connections.get(&peer) == Some(&connection) {
                connections.remove(&peer);
            }
        }
    }

    fn asked(&self, _from: NodeId, question: Bytes) -> Bytes {
        match question.first() {
            Some(&ASK_STANDING) => self.standing().encode(),
            _ => Bytes::new(),
        }
    }

    fn heard(&self, committed: u64) {
        self.inbox.note_heard(self.readings.read().raw, committed);
    }

    fn joined(&self, _cluster: [u8; 16], _from: NodeId) -> io::Result<()> {
        Err(io::Error::other("the node is in a cluster already"))
    }
}

/// Links of a node to its peers.
struct PeerLinks {
    peers: Peers,
    connections: Arc<Mutex<HashMap<NodeId, u64>>>,
}

impl Links for PeerLinks {
    fn send(&self, to: NodeId, frame: Bytes) -> bool {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(connection) = connections.get(&to).copied() else { return false };
        drop(connections);
        self.peers.send(to, connection, frame).is_ok()
    }

    fn is_up(&self, to: NodeId) -> bool {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&to)
    }
}

impl<S: Disk> Running<S> {
    /// Puts a node together and starts it. Needs a tokio runtime, on which all of it then runs.
    ///
    /// # Errors
    /// What Raft finds wrong with what is on disk, or the address that cannot be had.
    pub async fn start(parts: Parts<S>) -> io::Result<Arc<Self>> {
        let Parts { local, listen, member, home, log, log_kept, host, readings, net, incarnation } =
            parts;
        let node = local.node;
        let counts: Arc<Counts> = Arc::default();
        let origin = Arc::new(Origin::new(node, incarnation, Arc::clone(&readings)));
        let machine = Machine::new(
            Arc::clone(&host),
            Arc::clone(&origin),
            Arc::clone(&counts),
            Arc::clone(&readings),
            Arc::clone(&home),
        );
        let inbox: Arc<Inbox> = Arc::default();
        let connections: Arc<Mutex<HashMap<NodeId, u64>>> = Arc::default();
        let desk = Desk {
            inbox: Arc::clone(&inbox),
            origin: Arc::clone(&origin),
            counts: Arc::clone(&counts),
            host: Arc::clone(&host),
            readings: Arc::clone(&readings),
            connections: Arc::clone(&connections),
        };
        let snapshots = Arc::new(HomeSnapshots(home));
        let listener = net.listen(&listen).await?;
        let peers = Peers::new(Arc::clone(&net), local, snapshots, Arc::new(desk));
        let links = Arc::new(PeerLinks { peers: peers.clone(), connections });
        let config = Arc::new(config(log_kept).map_err(io::Error::other)?);
        let raft =
            Raft::new(node, config, peers.networks(), LogStore::new(Arc::new(log)), machine).await;
        let raft = raft.map_err(io::Error::other)?;
        let running = Arc::new(Self {
            raft: raft.clone(),
            origin: Arc::clone(&origin),
            counts: Arc::clone(&counts),
            peers: peers.clone(),
            member,
            host: Arc::clone(&host),
            readings: Arc::clone(&readings),
            standing: Arc::default(),
            inbox: Arc::clone(&inbox),
            links: Arc::clone(&links),
            guests: Mutex::default(),
        });
        let served = raft.clone();
        tokio::spawn(async move { peers.serve(listener, served).await });
        let batcher = Batcher::new(raft, origin, inbox, links, host, readings, counts);
        tokio::spawn(batcher.run());
        tokio::spawn(ask_around(Arc::downgrade(&running)));
        Ok(running)
    }

    /// Begins a cluster of these members. Does nothing if it has begun.
    ///
    /// # Errors
    /// Why Raft would not.
    pub async fn initialize(&self, members: BTreeMap<NodeId, Member>) -> Result<(), String> {
        if self.raft.is_initialized().await.map_err(|error| error.to_string())? {
            return Ok(());
        }
        self.raft.initialize(members).await.map_err(|error| error.to_string())
    }

    /// Does something in which a node that is no member yet is dialed.
    pub async fn with_guest<T>(&self, node: NodeId, work: impl Future<Output = T>) -> T {
        let guests = || self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests().insert(node);
        let done = work.await;
        guests().remove(&node);
        done
    }

    /// Sees to a link to each other member: whichever leads next, requests can go there at once.
    /// One that is no member any more is not dialed again.
    fn know_members(&self) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        for (node, member) in membership.nodes() {
            if *node != metrics.id {
                // The transport has said so in the log, and tries again.
                let _ = self.peers.know(*node, member);
            }
        }
        // A node that was removed itself may only not have heard yet that it was not.
        if membership.get_node(&metrics.id).is_some() {
            let guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
            self.peers.forget_all_but(|node| {
                membership.get_node(&node).is_some() || guests.contains(&node)
            });
        }
    }

    /// Hands leadership over if a majority finds this leader's clock to run fast: cluster time
    /// follows it, and with it every refill.
    async fn heed_complaints(&self, metrics: &RaftMetrics<TypeConfig>, voters: &[NodeId]) {
        if metrics.state != ServerState::Leader {
            return;
        }
        let complaints = {
            let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            let term = metrics.current_term;
            let of = |node: &&NodeId| standing.get(node).is_some_and(|it| it.fast_clock == term);
            voters.iter().filter(of).count()
        };
        if complaints <= voters.len() / 2 {
            return;
        }
        tracing::error!(
            complaints,
            "this node's clock runs fast, say most nodes: it hands leadership over; have its \
             hardware looked at"
        );
        match self.transfer(None).await {
            Ok(()) => _ = self.counts.clock_handovers.fetch_add(1, Ordering::Relaxed),
            Err(error) => tracing::error!(error, "leadership could not be handed over"),
        }
    }

    /// Has a snapshot taken.
    ///
    /// # Errors
    /// If Raft has stopped.
    pub async fn snapshot(&self) -> Result<(), String> {
        self.raft.trigger().snapshot().await.map_err(|error| error.to_string())
    }

    /// Whether this node has heard of a leader with a majority less than an election timeout ago,
    /// and has applied what it knows of.
    pub fn is_in_contact(&self) -> bool {
        const MAX: Duration = Duration::from_millis(ELECTION_MILLIS.0);
        let applied = self.origin.applied();
        if let Ok(leader) = self.raft.as_leader() {
            let acked = acked_ago(&leader);
            return applied.leader() == Some(leader.to_committed_leader_id())
                && is_answered(&self.raft, acked, MAX);
        }
        if !self.inbox.has_heard(self.readings.read().raw, MAX) {
            return false;
        }
        // A node that only catches up has a table of long ago. Its own log does not tell: what it
        // missed may not have come yet.
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let known = metrics.last_log_index.unwrap_or_default().max(self.inbox.committed());
        let index = applied.log_id.map_or(0, |log_id| log_id.index);
        applied.leader().is_some_and(|leader| leader.term == metrics.current_term)
            && known.saturating_sub(index) <= APPEND_ENTRIES_MAX
    }

    /// Whether what is asked here can be decided: this node leads, or its link to the leader is up.
    pub fn can_decide(&self) -> bool {
        let node = self.origin.node();
        let reaches = |leader: NodeId| leader == node || self.links.is_up(leader);
        self.is_in_contact() && self.leader().is_some_and(reaches)
    }

    /// How a node stands, by its own word, which it is asked for now; `None` if it does not answer.
    pub(super) async fn ask_standing(&self, node: NodeId) -> Option<Standing> {
        let asked = self.peers.ask(node, Bytes::from_static(&[ASK_STANDING])).await;
        asked.ok().and_then(Standing::decode)
    }

    /// How this node stands.
    pub fn standing(&self) -> Standing {
        standing(&self.origin, &self.counts, &*self.host, &*self.readings)
    }

    /// How the others stood when they were last asked.
    pub fn others(&self) -> BTreeMap<NodeId, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The leader that this node knows of.
    pub fn leader(&self) -> Option<NodeId> {
        self.raft.metrics().borrow_watched().current_leader
    }

    /// How Raft stands at this node.
    pub fn view(&self) -> View {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let members = membership
            .nodes()
            .map(|(node, member)| (*node, member.peer.clone(), voters.contains(node)));
        let index = |log_id: Option<super::types::LogId>| log_id.map(|log_id| log_id.index);
        View {
            node: metrics.id,
            state: match metrics.state {
                ServerState::Leader => "leader",
                ServerState::Follower => "follower",
                ServerState::Candidate => "candidate",
                ServerState::Learner => "learner",
                ServerState::Shutdown => "stopped",
            },
            leader: metrics.current_leader,
            term: metrics.current_term,
            applied: index(metrics.last_applied).unwrap_or_default(),
            snapshot: index(metrics.snapshot),
            purged: index(metrics.purged),
            members: members.collect(),
        }
    }

    /// How others reach this node.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Waits until Raft has ended, and says why: by itself it does so with the first error of its log
    /// or its machine, after which this node can do nothing any more.
    pub async fn ended(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(why) = &metrics.borrow_watched().running_state {
                return why.to_string();
            }
            if metrics.changed().await.is_err() {
                return "its task is gone".to_owned();
            }
        }
    }

    /// Stops Raft.
    pub async fn stop(&self) {
        self.origin.stop();
        let _ = self.raft.shutdown().await;
    }
}

fn config(log_kept: LogKept) -> Result<Config, openraft::ConfigError> {
    let config = Config {
        cluster_name: "tollkeeper".to_owned(),
        heartbeat_interval: HEARTBEAT_MILLIS,
        election_timeout_min: ELECTION_MILLIS.0,
        election_timeout_max: ELECTION_MILLIS.1,
        install_snapshot_timeout: INSTALL_MILLIS,
        max_payload_entries: APPEND_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        max_in_snapshot_log_to_keep: match log_kept {
            LogKept::BehindSnapshot => LOG_KEPT,
            LogKept::Whole => u64::MAX,
        },
        enable_pre_vote: Some(true),
        // What a restarted leader knows of time and of its term is gone.
        enable_leader_restore: Some(false),
        quorum_loss_probe_interval: Some(QUORUM_LOSS_MILLIS),
        ..Config::default()
    };
    config.validate()
}

/// Asks the other nodes for their clocks and how far they are, and compares tables.
async fn ask_around<S: Disk>(running: Weak<Running<S>>) {
    let looks_between = (ASK_EVERY.as_millis() / LOOK_EVERY.as_millis()).max(1) as u64;
    let (mut rounds, mut looks) = (0_u64, 0_u64);
    let mut watchdog = Watchdog::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(running) = running.upgrade() else { return };
        running.know_members();
        looks += 1;
        if !looks.is_multiple_of(looks_between) {
            continue;
        }
        let metrics = running.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let applied = running.origin.applied();
        if let Some(leader) = applied.leader() {
            watchdog.note(leader.term, applied.now.time.as_nanos(), applied.raw);
            running.counts.note_fast_clock(watchdog.fast());
        }
        let own = running.standing();
        let mut said = HashMap::new();
        if own.applied > 0 {
            said.insert(metrics.id, own.ahead_nanos);
        }
        for (node, member) in membership.nodes() {
            if *node == metrics.id || running.peers.know(*node, member).is_err() {
                continue;
            }
            let asked = running.ask_standing(*node).await;
            let mut standing = running.standing.lock().unwrap_or_else(PoisonError::into_inner);
            match asked {
                Some(other) => {
                    standing.insert(*node, other);
                    if other.applied > 0 && voters.contains(node) {
                        said.insert(*node, other.ahead_nanos);
                    }
                    compare(&running.counts, &own, *node, &other);
                }
                None => _ = standing.remove(node),
            }
        }
        running.counts.ahead.note(said, voters.len());
        running.heed_complaints(&metrics, &voters).await;
        rounds += 1;
        if rounds.is_multiple_of(CHECKSUM_ROUNDS) && own.keys <= CHECKSUM_KEYS_MAX {
            running.counts.ask_checksum();
            running.origin.news.notify_one();
        }
    }
}

/// Compares two tables that were hashed at one index.
fn compare(counts: &Counts, own: &Standing, node: NodeId, other: &Standing) {
    let comparable = own.hashed_at > 0 && own.hashed_at == other.hashed_at;
    if comparable && own.hash != other.hash {
        counts.diverged.store(true, Ordering::Relaxed);
        tracing::error!(
            index = own.hashed_at,
            node,
            own = own.hash,
            other = other.hash,
            "two nodes have different tables at one index: one of them is wrong; report this, and \
             replace the node that differs from the majority"
        );
    }
}

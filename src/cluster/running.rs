//! A node of a cluster, put together: log, machine, peers and batcher around one Raft.

mod links;

mod rounds;

mod standing;

mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Config, Raft, SnapshotPolicy};

use super::batcher::{Batcher, Inbox, Links, is_answered};
use super::counts::Counts;
use super::host::{Disk, Host, Readings};
use super::log_store::LogStore;
use super::machine::{Machine, SharedHome};
use super::origin::Origin;
use super::peer::{Local, Net, Peers};
use super::snapshots::HomeSnapshots;
use super::types::{Member, NodeId, TypeConfig, acked_ago};

use links::{Desk, PeerLinks};
use rounds::ask_around;
use standing::{ASK_STANDING, standing};

pub use standing::Standing;
pub use view::View;

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

/// Entries after which a snapshot is taken.
const SNAPSHOT_ENTRIES: u64 = 100_000;

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

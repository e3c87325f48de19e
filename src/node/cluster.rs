//! A node that belongs to a cluster: how it joins one, and what it gives the doors.

mod host;

pub(super) mod inspect;

mod steering;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::{self, Clock};
use crate::cluster::peer::{self, BoxFuture, Local, NO_CLUSTER, Net, Peers, Tcp, Way};
use crate::cluster::{
    LogKept, Machine, Member, NodeId, Parts, Running, SharedHome, SystemReadings,
};
use crate::config::{ClusterConfig, Config, Fsync};
use crate::disk::log::{Durability, Log, Settings, Tail};
use crate::disk::{Directory, Home, Identity, boot_id};
use crate::doors::{Initialize, Instance, Loaded, admin};
use crate::engine::key::Seed;
use crate::engine::table::Table;
use crate::engine::time::Timestamp;

use super::signals::Ends;
use super::{
    EXIT_LOG_FAILED, EXIT_RAFT_ENDED, StartError, access, load_policy, random_bytes, serve,
};

use host::{InstanceHost, Sources};

/// The folder of the log in the data directory.
const LOG: &str = "log";

/// The file that says which node of which cluster the directory is, and whom it is to begin the
/// cluster with.
const NODE: &str = "node";

/// How long a member may take to say that it joins.
const JOIN_TIME_MAX: Duration = Duration::from_secs(10);

/// How often it is asked.
const JOIN_RETRY: Duration = Duration::from_millis(200);

/// For the answer to whoever began the cluster to go out.
const GOODBYE: Duration = Duration::from_millis(100);

/// How long leadership may take to be handed over at shutdown.
const HAND_OVER_TIME_MAX: Duration = Duration::from_secs(2);

/// What a node that joins is asked: the first byte, then id and seed of the cluster.
const ASK_JOIN: u8 = 2;

/// How often a leader looks whether the log has brought a policy.
const SEED_EVERY: Duration = Duration::from_millis(100);

type NodeMachine = Machine<Directory>;
pub(super) type Node = Running<Directory>;

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Runs a node of a cluster until a signal ends it; first, where it has not joined, until it has.
pub(super) fn run(
    config: &Config,
    cluster: &ClusterConfig,
    ready: impl FnOnce(&str),
) -> Result<(), StartError> {
    let Some(data) = &config.data else {
        let source = io::Error::other("a node of a cluster needs --data");
        return Err(StartError::System { what: "data directory", source });
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("event loop"))?;
    let mut ends = {
        let _inside = runtime.enter();
        Ends::hear()?
    };
    let joined = match Joined::read_of(data, cluster)? {
        Some(joined) => joined,
        None => match runtime.block_on(join(config, cluster, &mut ends))? {
            Some(joined) => {
                joined.write(data).map_err(system("data directory"))?;
                joined
            }
            None => return Ok(()),
        },
    };
    let home = Home::open(data, joined.identity)?;
    let identity = home.identity();
    let seed = Seed::new(identity.seed);
    let (policy, origin) = load_policy(None, &seed)?;
    let table = Table::new(config.keys_max, &seed);
    table.keep_caps_elsewhere();
    let loaded = Loaded::new(policy, origin, clock::wall_now());
    let clock = Clock::start_at(Timestamp::from_nanos(1));
    let instance =
        Instance::with_table(table, config.connections_max, identity.id, &seed, clock, loaded)
            .map_err(|error| StartError::Policy(error.to_string()))?;
    let host = Arc::new(InstanceHost::new(Arc::clone(&instance), identity, seed, config.keys_max));
    let log = open_log(&data.join(LOG), identity, cluster)?;
    let parts = Parts {
        local: Local::new(cluster.node_id, identity.id, cluster.name.clone())
            .map_err(system("cluster"))?,
        listen: cluster.peer_listen.to_string(),
        member: Member {
            peer: cluster.advertise.clone(),
            clients: cluster.advertise_clients.clone(),
        },
        home: SharedHome::new(Mutex::new(home)),
        log,
        log_kept: if cluster.keeps_log { LogKept::Whole } else { LogKept::BehindSnapshot },
        host: Arc::clone(&host) as Arc<dyn crate::cluster::Host>,
        readings: Arc::new(SystemReadings),
        net: Arc::new(Tcp),
        incarnation: u64::from_le_bytes(first_half(random_bytes()?)),
    };
    let thread = ClusterThread::start(parts, joined.members)?;
    let node = Arc::clone(&thread.node);
    let _ = instance.consensus.set(Arc::new(steering::Consensus::new(Arc::clone(&node))));
    let steering = steering::Steering::new(
        Arc::clone(&node),
        Arc::clone(&instance),
        Arc::clone(&host),
        thread.runtime.clone(),
    );
    let _ = instance.steering.set(Arc::new(steering));
    thread.runtime.spawn(seed_policy(
        Arc::clone(&node),
        Arc::clone(&host),
        seed_sources(config.policy.as_deref())?,
    ));
    let served = runtime.block_on(serve(config, seed, instance, None, Some(&thread), ends, ready));
    thread.stop();
    served
}

fn first_half(bytes: [u8; 16]) -> [u8; 8] {
    core::array::from_fn(|at| bytes[at])
}

fn open_log(
    path: &Path,
    identity: Identity,
    cluster: &ClusterConfig,
) -> Result<Log<Directory>, StartError> {
    let boot = boot_id().map_err(system("boot id"))?;
    let salt = u64::from_le_bytes(first_half(random_bytes()?));
    let mut settings = Settings::new(identity.id, path.display().to_string(), boot, salt);
    settings.durability = match cluster.fsync {
        Fsync::Always => Durability::Always,
        Fsync::Interval(span) => Durability::Interval(span),
        Fsync::Os => Durability::Os,
    };
    settings.on_failure = Some(Box::new(|error| {
        // What became of the bytes is not known, so nothing may be said on their strength.
        tracing::error!(
            %error,
            "the log cannot be written; the node stops, and the others go on: see to its disk (is it \
             full?) and start it again"
        );
        std::process::exit(EXIT_LOG_FAILED.into());
    }));
    let storage = Directory::open(path).map_err(|error| {
        let source = io::Error::other(format!("{}: {error:?}", path.display()));
        StartError::System { what: "the log's directory", source }
    })?;
    let (log, recovered) = Log::open(storage, settings)?;
    if let Some(cut) = &recovered.cut {
        tracing::info!(
            path = cut.path,
            offset = cut.offset,
            what = cut.what,
            "the log's end was cut off: it was being written when the power went, and nobody was \
             told that it was there"
        );
    }
    if recovered.tail == Tail::MayBeGone {
        let node = cluster.node_id;
        let source = io::Error::other(format!(
            "power was lost while --fsync let answers out before the disk had them: the end of the \
             log may be gone, and with it votes and charges that node {node} has told others of, so \
             it must not take part under its number again. At the leader `tollkeeper cluster remove \
             {node}`; start this one with an empty --data and a --node-id that was never used; at the \
             leader `tollkeeper cluster add`. If most nodes say this, charges may be lost: begin a new \
             cluster, or keep one of them for `tollkeeper log inspect`"
        ));
        return Err(StartError::System { what: "the log", source });
    }
    Ok(log)
}

/// Texts of the policy that a cluster begins with, should this node lead it then.
fn seed_sources(path: Option<&Path>) -> Result<Sources, StartError> {
    let Some(path) = path else {
        let crate::policy::Source { name, text } = crate::policy::BUILT_IN;
        let origin = format!("built-in example \"{name}\"");
        return Ok(Sources { origin, texts: vec![(name.to_owned(), text.to_owned())] });
    };
    let texts = super::read_policy(path)
        .map_err(|source| StartError::ReadPolicy { path: path.to_owned(), source })?;
    Ok(Sources { origin: path.display().to_string(), texts })
}

/// Puts the first policy into the log, where this node leads and there is none.
async fn seed_policy(node: Arc<Node>, host: Arc<InstanceHost>, sources: Sources) {
    while !host.is_seeded() {
        if node.raft.is_leader() && node.origin.applied().now.time.as_nanos() > 0 {
            let made = node.origin.change(Bytes::from(sources.to_change())).await;
            if let Ok(Ok(Err(why))) = made {
                tracing::error!(why, "the policy does not compile; apply another");
                return;
            }
        }
        tokio::time::sleep(SEED_EVERY).await;
    }
}

/// The thread on which Raft, its peers and its batcher run.
pub(super) struct ClusterThread {
    pub(super) node: Arc<Node>,
    pub(super) runtime: tokio::runtime::Handle,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
}

impl ClusterThread {
    fn start(
        parts: Parts<Directory>,
        members: BTreeMap<NodeId, Member>,
    ) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("event loop"))?;
        let handle = runtime.handle().clone();
        let (started, start) = std::sync::mpsc::channel();
        let (stop, mut stopped) = watch::channel(false);
        let thread = std::thread::Builder::new().name("cluster".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let running = Running::start(parts).await;
                let node = match running {
                    Ok(node) => node,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                if !members.is_empty()
                    && let Err(error) = node.initialize(members).await
                {
                    tracing::error!(error, "the cluster does not begin");
                }
                let _ = started.send(Ok(Arc::clone(&node)));
                tokio::select! {
                    _ = stopped.wait_for(|stop| *stop) => node.stop().await,
                    why = node.ended() => exit_ended(&why),
                }
            });
        });
        let thread = thread.map_err(system("thread of the cluster"))?;
        let node = start.recv().map_err(|_| io::Error::other("it ended")).flatten();
        let node = node.map_err(system("node of the cluster"))?;
        Ok(Self { node, runtime: handle, stop, thread })
    }

    /// Hands leadership over, where this node has it and another one can take it.
    pub(super) async fn hand_over(&self) {
        if !self.node.raft.is_leader() {
            return;
        }
        let node = Arc::clone(&self.node);
        let handed = self.runtime.spawn(async move { node.transfer(None).await });
        match tokio::time::timeout(HAND_OVER_TIME_MAX, handed).await {
            Ok(Ok(Ok(()))) => tracing::info!("leadership is handed over"),
            Ok(Ok(Err(why))) => tracing::warn!(why, "leadership is not handed over"),
            _ => tracing::warn!("leadership is not handed over in time"),
        }
    }

    fn stop(self) {
        let _ = self.stop.send(true);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the cluster had ended");
        }
    }
}

/// Without Raft the node decides nothing any more, and a supervisor should know.
fn exit_ended(why: &str) -> ! {
    tracing::error!(
        why,
        "Raft has ended at this node; the node stops, and the others go on: start it again, and if it \
         stops so again, replace it: `cluster remove` at the leader, an empty --data, a new --node-id, \
         `cluster add`"
    );
    std::process::exit(EXIT_RAFT_ENDED.into());
}

/// What a node knows once it has joined.
struct Joined {
    identity: Identity,
    node: NodeId,
    name: String,
    /// With whom it is to begin the cluster; of the others none.
    members: BTreeMap<NodeId, Member>,
}

impl Joined {
    /// What the data directory says, if it is a node's.
    fn read(data: &Path) -> Result<Option<Self>, StartError> {
        let path = data.join(NODE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StartError::System { what: "the file `node`", source }),
        };
        let mut lines = text.lines();
        let mut next = || lines.next().unwrap_or_default().to_owned();
        let (node, name, bytes) = (next(), next(), next());
        let node =
            node.parse().map_err(|_| wrong(data, format!("it begins with {node:?}, no number")))?;
        let bytes: Vec<u8> = (0..bytes.len() / 2)
            .filter_map(|at| u8::from_str_radix(bytes.get(2 * at..2 * at + 2)?, 16).ok())
            .collect();
        let identity = Identity::decode(&bytes).map_err(|why| wrong(data, why))?;
        let members = lines
            .filter_map(|line| {
                let (node, peer) = line.split_once(' ')?;
                let member = Member { peer: peer.to_owned(), clients: String::new() };
                Some((node.parse().ok()?, member))
            })
            .collect();
        Ok(Some(Self { identity, node, name, members }))
    }

    /// The same, where it is this node's.
    fn read_of(data: &Path, cluster: &ClusterConfig) -> Result<Option<Self>, StartError> {
        let Some(joined) = Self::read(data)? else { return Ok(None) };
        if joined.node != cluster.node_id || joined.name != cluster.name {
            let (node, name) = (joined.node, joined.name);
            let why = format!(
                "it is node {node} of cluster {name:?}, started as node {} of {:?}",
                cluster.node_id, cluster.name
            );
            return Err(wrong(data, why));
        }
        Ok(Some(joined))
    }

    fn write(&self, data: &Path) -> io::Result<()> {
        use std::fmt::Write as _;
        use std::io::Write as _;
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let mut text = format!("{}\n{}\n", self.node, self.name);
        for byte in self.identity.encode() {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        for (node, member) in &self.members {
            let _ = writeln!(text, "{node} {}", member.peer);
        }
        // The directory is the instance's before it is anybody's.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data)?;
        let unfinished = data.join("node.tmp");
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(unfinished, data.join(NODE))?;
        std::fs::File::open(data)?.sync_all()
    }
}

/// Says what is wrong with the file `node`.
fn wrong(data: &Path, why: String) -> StartError {
    let source = io::Error::other(format!("{}: {why}", data.join(NODE).display()));
    StartError::System { what: "data directory", source }
}

/// Peers of a node that has not joined.
struct Doorstep {
    node: NodeId,
    joined: mpsc::UnboundedSender<Identity>,
}

impl peer::Inbox for Doorstep {
    fn received(&self, _: NodeId, _: u64, _: Bytes) -> Option<BoxFuture<'static, ()>> {
        None
    }

    fn connected(&self, _: NodeId, _: Way, _: u64) {}

    fn disconnected(&self, _: NodeId, _: Way, _: u64) {}

    fn asked(&self, from: NodeId, question: Bytes) -> Bytes {
        let identity = match question.split_first() {
            Some((&ASK_JOIN, identity)) => Identity::decode(identity),
            _ => return Bytes::new(),
        };
        match identity {
            Ok(identity) => {
                tracing::info!(peer = from, node = self.node, "joins a cluster");
                let _ = self.joined.send(identity);
                Bytes::from_static(b"ok")
            }
            Err(_) => Bytes::new(),
        }
    }

    fn joined(&self, _cluster: [u8; 16], _from: NodeId) -> io::Result<()> {
        Ok(())
    }
}

struct NoSnapshots;

impl peer::Snapshots for NoSnapshots {
    fn read(&self, _: crate::cluster::SnapshotFile) -> io::Result<Box<dyn peer::Reading>> {
        Err(io::Error::other("there are none"))
    }

    fn receive(
        &self,
        _: &crate::cluster::SnapshotMeta,
        _: u64,
    ) -> io::Result<Box<dyn peer::Receiving>> {
        Err(io::Error::other("the node has not joined"))
    }
}

/// Waits until the node is told which cluster it belongs to, by whoever begins one here or by a
/// node of it. `None`: a signal ended it.
async fn join(
    config: &Config,
    cluster: &ClusterConfig,
    ends: &mut Ends,
) -> Result<Option<Joined>, StartError> {
    let local = Local::new(cluster.node_id, NO_CLUSTER, cluster.name.clone());
    let local = local.map_err(system("cluster"))?;
    let (joined, mut joins) = mpsc::unbounded_channel();
    let doorstep = Arc::new(Doorstep { node: cluster.node_id, joined });
    let net: Arc<dyn Net> = Arc::new(Tcp);
    let peers = Peers::new(Arc::clone(&net), local, Arc::new(NoSnapshots), doorstep);
    let listener = net.listen(&cluster.peer_listen.to_string()).await;
    let address = cluster.peer_listen;
    let listen = |door, address| move |source| StartError::Listen { door, address, source };
    let listener = listener.map_err(listen("peers", address))?;
    let served = peers.clone();
    let served = tokio::spawn(async move { served.serve_questions::<NodeMachine>(listener).await });
    let begun: Arc<Mutex<Option<Joined>>> = Arc::default();
    let (begin, mut begins) = mpsc::unbounded_channel::<()>();
    let initialize = initialize(peers.clone(), cluster.clone(), Arc::clone(&begun), begin);
    let admin =
        admin::Listener::open_waiting(config.admin, cluster.node_id, initialize, access(config)?)
            .map_err(listen("admin", config.admin))?;
    let (stop, stopped) = oneshot::channel::<()>();
    let admin = tokio::spawn(admin.serve(async move {
        let _ = stopped.await;
    }));
    tracing::info!(
        node = cluster.node_id,
        cluster = cluster.name,
        peers = %cluster.peer_listen,
        admin = %config.admin,
        "waits to join: `tollkeeper cluster init` at one node begins the cluster"
    );
    let outcome = tokio::select! {
        Some(identity) = joins.recv() => Some(Joined {
            identity,
            node: cluster.node_id,
            name: cluster.name.clone(),
            members: BTreeMap::new(),
        }),
        Some(()) = begins.recv() => begun.lock().unwrap_or_else(PoisonError::into_inner).take(),
        () = ends.next() => None,
    };
    // What was asked is still answered.
    tokio::time::sleep(GOODBYE).await;
    let _ = stop.send(());
    let _ = admin.await;
    served.abort();
    let _ = served.await;
    Ok(outcome)
}

/// Begins a cluster: gives every member id and seed.
fn initialize(
    peers: Peers,
    cluster: ClusterConfig,
    begun: Arc<Mutex<Option<Joined>>>,
    begin: mpsc::UnboundedSender<()>,
) -> Initialize {
    Box::new(move |members| {
        let (peers, cluster) = (peers.clone(), cluster.clone());
        let (begun, begin) = (Arc::clone(&begun), begin.clone());
        Box::pin(async move {
            if !members.contains_key(&cluster.node_id) {
                return Err(format!(
                    "this is node {}, members are {:?}: ask one of them",
                    cluster.node_id,
                    members.keys().collect::<Vec<_>>()
                ));
            }
            let random = || random_bytes().map_err(|error| error.to_string());
            let identity = Identity { id: random()?, seed: random()?, made_at: clock::wall_now() };
            peers.local().set_cluster(identity.id);
            let members: BTreeMap<NodeId, Member> = members
                .into_iter()
                .map(|(node, peer)| (node, Member { peer, clients: String::new() }))
                .collect();
            for (node, member) in &members {
                if *node != cluster.node_id {
                    invite(&peers, *node, member, identity).await?;
                }
            }
            let report: BTreeMap<String, String> = members
                .iter()
                .map(|(node, member)| (node.to_string(), member.peer.clone()))
                .collect();
            let name = cluster.name.clone();
            let joined = Joined { identity, node: cluster.node_id, name, members };
            *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(joined);
            let _ = begin.send(());
            let id = crate::disk::name_of(identity.id);
            Ok(serde_json::json!({ "cluster": cluster.name, "id": id, "members": report }))
        })
    })
}

/// Has a node join: it is given the cluster's id and seed.
pub(super) async fn invite(
    peers: &Peers,
    node: NodeId,
    member: &Member,
    identity: Identity,
) -> Result<(), String> {
    let mut question = vec![ASK_JOIN];
    question.extend_from_slice(&identity.encode());
    let question = Bytes::from(question);
    let failed = |why: String| {
        format!(
            "node {node} at {} does not join: {why}; is it started with this --cluster, this \
             --node-id and an empty --data?",
            member.peer
        )
    };
    peers.know(node, member).map_err(|error| failed(error.to_string()))?;
    let mut why = "no answer".to_owned();
    let asking = async {
        loop {
            match peers.ask(node, question.clone()).await {
                Ok(answer) if &answer[..] == b"ok" => return,
                Ok(_) => "it is in a cluster already".clone_into(&mut why),
                Err(error) => why = error.to_string(),
            }
            tokio::time::sleep(JOIN_RETRY).await;
        }
    };
    let asked = tokio::time::timeout(JOIN_TIME_MAX, asking).await;
    asked.map_err(|_| failed(why))
}

//! How a node joins a cluster: it waits to be told of one, by whoever begins one at it or by a node
//! of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::cluster::peer::{self, BoxFuture, Local, NO_CLUSTER, Net, Peers, Tcp, Way};
use crate::cluster::{Machine, Member, NodeId, SnapshotFile, SnapshotMeta};
use crate::config::{ClusterConfig, Config};
use crate::disk::{Directory, Identity};
use crate::doors::{Initialize, admin};
use crate::node::signals::Ends;
use crate::node::{StartError, access, random_bytes};

use super::joined::Joined;
use super::system;

/// How long a member may take to say that it joins.
const JOIN_TIME_MAX: Duration = Duration::from_secs(10);

/// How often it is asked.
const JOIN_RETRY: Duration = Duration::from_millis(200);

/// For the answer to whoever began the cluster to go out.
const GOODBYE: Duration = Duration::from_millis(100);

/// What a node that joins is asked: the first byte, then id and seed of the cluster.
const ASK_JOIN: u8 = 2;

type NodeMachine = Machine<Directory>;

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
    fn read(&self, _: SnapshotFile) -> io::Result<Box<dyn peer::Reading>> {
        Err(io::Error::other("there are none"))
    }

    fn receive(&self, _: &SnapshotMeta, _: u64) -> io::Result<Box<dyn peer::Receiving>> {
        Err(io::Error::other("the node has not joined"))
    }
}

/// Waits until the node is told which cluster it belongs to, by whoever begins one here or by a
/// node of it. `None`: a signal ended it.
pub(super) async fn join(
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

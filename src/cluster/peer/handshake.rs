//! Who is at the other end. Both say which cluster, node and version they are, and whom they want;
//! what does not fit is refused with a reason that names what was found and what was expected.

use core::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::cluster::types::NodeId;
use crate::cluster::wire::{self, Hello, Kind, Purpose, Reason, Refusal, Welcome};

use super::connection::{Connection, ended};
use super::seam::{Net, aside, within};
use super::{Counters, Inbox};

/// Lowest and highest version of the protocol that is spoken. Nodes that make other keys of the same
/// request would count it apart, so how keys derive from the seed is part of it.
const VERSION_MIN: u16 = 2;
const VERSION_MAX: u16 = 2;
/// Time to connect, and time for a greeting and its answer.
pub(super) const GREETING_TIME_MAX: Duration = Duration::from_millis(1_000);

/// The cluster of a node that belongs to none yet. It accepts peers and joins the first one's
/// cluster; it dials nobody.
pub const NO_CLUSTER: [u8; 16] = [0; 16];

/// Who this node is to its peers.
pub struct Local {
    /// Number in the cluster.
    pub node: NodeId,
    /// Name of the cluster, at most 64 bytes, the same on all nodes: a guard against nodes that are
    /// configured into the wrong cluster.
    pub name: String,
    cluster: RwLock<[u8; 16]>,
    /// Held while a cluster is joined, so that only one is.
    joining: tokio::sync::Mutex<()>,
}

impl Local {
    /// Node `node` of the cluster with that id, which may be [`NO_CLUSTER`], and that name.
    ///
    /// # Errors
    /// If the name is longer than 64 bytes.
    pub fn new(node: NodeId, cluster: [u8; 16], name: impl Into<String>) -> io::Result<Self> {
        let name = name.into();
        if name.len() > wire::NAME_BYTES_MAX {
            let (found, max) = (name.len(), wire::NAME_BYTES_MAX);
            let text = format!("the cluster's name has {found} bytes, at most {max} are allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self { node, name, cluster: RwLock::new(cluster), joining: Default::default() })
    }

    /// The cluster's id, or [`NO_CLUSTER`].
    pub fn cluster(&self) -> [u8; 16] {
        *self.cluster.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Belongs to that cluster from here on. Whoever makes a cluster calls it, once.
    pub fn set_cluster(&self, cluster: [u8; 16]) {
        *self.cluster.write().unwrap_or_else(PoisonError::into_inner) = cluster;
    }
}

/// Connects to `peer` at `address` and greets it.
pub(super) async fn dial(
    net: &dyn Net,
    local: &Local,
    counters: &Arc<Counters>,
    peer: NodeId,
    address: &str,
    purpose: Purpose,
) -> io::Result<Connection> {
    use std::sync::atomic::Ordering::Relaxed;
    let cluster = local.cluster();
    if cluster == NO_CLUSTER {
        return Err(io::Error::other("this node belongs to no cluster yet, so it dials nobody"));
    }
    let greet = async {
        let stream = net.connect(address).await?;
        let mut connection =
            Connection::new(stream, &[Kind::Welcome, Kind::Refusal], Arc::clone(counters));
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            cluster,
            name: local.name.clone(),
            from: local.node,
            to: peer,
            purpose,
        };
        connection.put(|out| wire::put_hello(&hello, out))?;
        let answer = connection.expect_frame().await?;
        if answer.kind == Kind::Refusal {
            let refusal = wire::refusal(&answer.body)?;
            tracing::warn!(peer, address, %purpose, reason = ?refusal.reason, "{refusal}");
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, Refused(refusal)));
        }
        let welcome = wire::welcome(&answer.body)?;
        if welcome.from != peer || welcome.cluster != cluster {
            let text = format!(
                "node {} of cluster {} answers at {address}, expected node {peer} of cluster {}",
                welcome.from,
                name(welcome.cluster),
                name(cluster)
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if !(VERSION_MIN..=VERSION_MAX).contains(&welcome.version) {
            let text = format!("node {peer} chose version {} unasked", welcome.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(connection)
    };
    let dialed = within(GREETING_TIME_MAX, greet).await;
    let count = if dialed.is_ok() { &counters.dialed } else { &counters.dial_failures };
    count.fetch_add(1, Relaxed);
    dialed
}

/// Hears the greeting of who connected from `address` and answers it. The connection then expects
/// nothing yet.
pub(super) async fn accept(
    connection: &mut Connection,
    local: &Local,
    inbox: &Arc<dyn Inbox>,
    net: &dyn Net,
) -> io::Result<Hello> {
    let hear = async {
        let frame = connection.frame().await?.ok_or_else(ended)?;
        let hello = wire::hello(&frame.body)?;
        let mut judged = judge(&hello, local);
        if judged.is_ok() && local.cluster() == NO_CLUSTER {
            judged = join(&hello, local, inbox, net).await;
        }
        match judged {
            Ok(version) => {
                let welcome = Welcome { version, cluster: hello.cluster, from: local.node };
                connection.put(|out| wire::put_welcome(&welcome, out))?;
                connection.flush().await?;
                Ok(hello)
            }
            Err(refusal) => {
                connection.put(|out| wire::put_refusal(&refusal, out))?;
                connection.flush().await?;
                Err(io::Error::new(io::ErrorKind::PermissionDenied, Refused(refusal)))
            }
        }
    };
    hear.await
}

/// Refuses a hello for want of room.
pub(super) async fn refuse(mut connection: Connection, max: usize) -> io::Result<()> {
    let detail = format!("there are {max} connections of peers, which is the most allowed");
    connection.put(|out| wire::put_refusal(&Refusal { reason: Reason::Busy, detail }, out))?;
    within(GREETING_TIME_MAX, connection.flush()).await
}

/// Joins the cluster of who dials, unless this node belongs to one by now.
async fn join(
    hello: &Hello,
    local: &Local,
    inbox: &Arc<dyn Inbox>,
    net: &dyn Net,
) -> Result<u16, Refusal> {
    let _only = local.joining.lock().await;
    if local.cluster() == NO_CLUSTER {
        let (cluster, from, inbox) = (hello.cluster, hello.from, Arc::clone(inbox));
        let noted = aside(net, move || inbox.joined(cluster, from)).await.flatten();
        noted.map_err(|error| Refusal {
            reason: Reason::Unready,
            detail: format!("node {} cannot note which cluster it is in: {error}", local.node),
        })?;
        tracing::info!(peer = from, cluster = name(cluster), "joined");
        local.set_cluster(cluster);
    }
    judge(hello, local)
}

/// The version to speak, or why not to.
fn judge(hello: &Hello, local: &Local) -> Result<u16, Refusal> {
    let refuse = |reason, detail| Err(Refusal { reason, detail });
    let Hello { version_min, version_max, cluster, name: ref theirs, from, to, .. } = *hello;
    let own = local.cluster();
    if version_min > VERSION_MAX || version_max < VERSION_MIN || version_min > version_max {
        let detail = format!(
            "node {from} speaks versions {version_min} to {version_max}, node {} {VERSION_MIN} to \
             {VERSION_MAX}",
            local.node
        );
        return refuse(Reason::Version, detail);
    }
    if *theirs != local.name {
        let detail = format!(
            "node {from} is in cluster {theirs:?} by name, node {} in {:?}",
            local.node, local.name
        );
        return refuse(Reason::Name, detail);
    }
    if cluster == NO_CLUSTER || (own != NO_CLUSTER && own != cluster) {
        return Err(other_cluster(hello, own));
    }
    if to != local.node {
        let detail = format!("node {from} wants node {to} and has reached node {}", local.node);
        return refuse(Reason::WrongNode, detail);
    }
    if from == local.node {
        let detail = format!("two nodes say that they are node {from}, or it dials itself");
        return refuse(Reason::Itself, detail);
    }
    Ok(version_max.min(VERSION_MAX))
}

fn other_cluster(hello: &Hello, own: [u8; 16]) -> Refusal {
    let (found, expected) = (name(hello.cluster), name(own));
    let detail = format!("node {} is in cluster {found}, expected {expected}", hello.from);
    Refusal { reason: Reason::Cluster, detail }
}

/// A cluster's id as people see it.
fn name(cluster: [u8; 16]) -> String {
    if cluster == NO_CLUSTER { "none".to_owned() } else { crate::disk::name_of(cluster) }
}

/// A refusal as the cause of an [`io::Error`].
#[derive(Debug)]
pub(super) struct Refused(pub(super) Refusal);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl core::error::Error for Refused {}

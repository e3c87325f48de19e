//! Three nodes on the toy store: election, pipelined appends, cut connections, snapshots.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::{FuturesUnordered, iter};
use openraft::errors::{ClientWriteError, RaftError};

use super::node::{CLUSTER, Node, until};
use crate::cluster::types::Entry;

const ENTRY_BYTES: usize = 512;

async fn cluster() -> Vec<Node> {
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(Node::start(id, CLUSTER, "test").await);
    }
    let members: BTreeMap<_, _> = nodes.iter().map(|n| (n.id, n.member.clone())).collect();
    nodes[0].raft.initialize(members).await.unwrap();
    nodes
}

async fn leader(nodes: &[Node]) -> usize {
    until("a leader", || nodes.iter().any(|node| node.raft.is_leader())).await;
    nodes.iter().position(|node| node.raft.is_leader()).unwrap()
}

fn entry(number: u64) -> Bytes {
    let mut bytes = BytesMut::zeroed(ENTRY_BYTES);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes.freeze()
}

/// Writes each, many at a time.
async fn write(node: &Node, numbers: core::ops::Range<u64>) {
    let raft = &node.raft;
    let write = |number| async move {
        for _ in 0..500 {
            match raft.client_write(Entry(entry(number))).await {
                Ok(_) => return 1,
                // Surely not appended: a new leader waits for its first quorum.
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                    tokio::time::sleep(core::time::Duration::from_millis(10)).await;
                }
                Err(_) => break,
            }
        }
        0
    };
    let written: u64 =
        iter(numbers.clone()).map(write).buffered(512).fold(0, async |a, b| a + b).await;
    assert_eq!(written, numbers.end - numbers.start);
}

async fn converge(nodes: &[&Node], count: usize) {
    until("all have applied", || nodes.iter().all(|n| n.machine.entries().len() == count)).await;
    let first = nodes[0].machine.entries();
    for node in nodes {
        assert!(node.machine.entries() == first, "node {} differs", node.id);
    }
}

async fn stop(nodes: Vec<Node>) {
    let stops: FuturesUnordered<_> = nodes.into_iter().map(Node::stop).collect();
    stops.collect::<Vec<()>>().await;
}

#[tokio::test]
async fn three_nodes_elect_and_replicate() {
    let nodes = cluster().await;
    let lead = leader(&nodes).await;
    write(&nodes[lead], 0..10_000).await;
    converge(&nodes.iter().collect::<Vec<_>>(), 10_000).await;
    // Which of the writes under way comes first is Raft's to say; none is lost or there twice.
    let mut entries = nodes[0].machine.entries();
    entries.sort_unstable_by_key(|entry| entry[..8].iter().rev().copied().collect::<Vec<_>>());
    assert!(entries.iter().cloned().eq((0..10_000).map(entry)));
    // Appends went many at a time: one frame each would be more than two per entry.
    let sent = nodes[lead].peers.counters().frames_sent.load(Relaxed);
    assert!(sent < 10_000, "{sent} frames");
    assert_eq!(nodes.iter().map(|n| n.peers.counters().broken.load(Relaxed)).sum::<u64>(), 0);
    stop(nodes).await;
}

#[tokio::test]
async fn cut_connections_lose_nothing() {
    let nodes = cluster().await;
    let lead = leader(&nodes).await;
    let cuts = async {
        for _ in 0..20 {
            tokio::time::sleep(core::time::Duration::from_millis(20)).await;
            nodes[lead].net.cut();
        }
    };
    let writes = async {
        for round in 0..10 {
            write(&nodes[lead], round * 500..(round + 1) * 500).await;
        }
    };
    tokio::join!(cuts, writes);
    converge(&nodes.iter().collect::<Vec<_>>(), 5_000).await;
    let dialed = nodes[lead].peers.counters().dialed.load(Relaxed);
    assert!(dialed > 20, "{dialed} connections");
    stop(nodes).await;
}

#[tokio::test]
async fn a_leader_that_falls_silent_is_replaced_and_comes_back() {
    let nodes = cluster().await;
    let lead = leader(&nodes).await;
    write(&nodes[lead], 0..100).await;
    nodes[lead].net.mute(true);
    let other = |lead| move |at: &usize| *at != lead;
    let others: Vec<_> = (0..3).filter(other(lead)).collect();
    until("another leader", || others.iter().any(|at| nodes[*at].raft.is_leader())).await;
    let next = *others.iter().find(|at| nodes[**at].raft.is_leader()).unwrap();
    write(&nodes[next], 100..200).await;
    nodes[lead].net.mute(false);
    converge(&nodes.iter().collect::<Vec<_>>(), 200).await;
    stop(nodes).await;
}

#[tokio::test]
async fn leadership_is_handed_over() {
    let nodes = cluster().await;
    let lead = leader(&nodes).await;
    write(&nodes[lead], 0..10).await;
    converge(&nodes.iter().collect::<Vec<_>>(), 10).await;
    let heir = (lead + 1) % 3;
    nodes[lead].raft.trigger().transfer_leader(nodes[heir].id).await.unwrap();
    until("the heir leads", || nodes[heir].raft.is_leader()).await;
    stop(nodes).await;
}

#[tokio::test]
async fn an_empty_learner_gets_a_snapshot() {
    let mut nodes = cluster().await;
    let lead = leader(&nodes).await;
    write(&nodes[lead], 0..10_000).await;
    nodes[lead].raft.trigger().snapshot().await.unwrap();
    until("a snapshot", || nodes[lead].machine.has_snapshot()).await;
    until("a purge", || {
        use openraft::async_runtime::WatchReceiver;
        nodes[lead].raft.metrics().borrow_watched().purged.is_some()
    })
    .await;
    let learner = Node::start(4, super::super::NO_CLUSTER, "test").await;
    // What fails is tried again.
    learner.machine.refuse(true);
    nodes[lead].raft.add_learner(4, learner.member.clone(), false).await.unwrap();
    let dialed = || nodes[lead].peers.counters().dialed.load(Relaxed);
    let before = dialed();
    until("it was refused", || dialed() > before + 3).await;
    assert!(learner.machine.entries().is_empty());
    learner.machine.refuse(false);
    until("it has the snapshot", || learner.machine.has_snapshot()).await;
    converge(&[&nodes[lead], &learner], 10_000).await;
    assert_eq!(*learner.heard.joined.lock().unwrap(), Some(CLUSTER));
    // The sender counts it once the answer has come.
    let sent = || nodes[lead].peers.counters().snapshots_sent.load(Relaxed);
    until("it is answered", || sent() == 1).await;
    assert_eq!(learner.peers.counters().snapshots_received.load(Relaxed), 1);
    let bytes = learner.peers.counters().bytes_received.load(Relaxed);
    assert!(bytes > 5_000_000, "{bytes} bytes");
    write(&nodes[lead], 10_000..10_100).await;
    converge(&[&nodes[lead], &learner], 10_100).await;
    nodes.push(learner);
    stop(nodes).await;
}

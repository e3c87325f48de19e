//! Who is let in, and what comes of bytes that are no peer's.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use proptest::prelude::Rng;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::node::{CLUSTER, Node, until};
use crate::cluster::peer::NO_CLUSTER;
use crate::cluster::wire::{self, Hello, Kind, Purpose, Reason};

fn hello() -> Hello {
    Hello {
        version_min: 2,
        version_max: 2,
        cluster: CLUSTER,
        name: "test".to_owned(),
        from: 2,
        to: 1,
        purpose: Purpose::Control,
    }
}

async fn connect(node: &Node, hello: &Hello) -> (TcpStream, wire::Frame) {
    let mut out = BytesMut::new();
    wire::put_hello(hello, &mut out).unwrap();
    let mut stream = TcpStream::connect(&node.member.peer).await.unwrap();
    stream.write_all(&out).await.unwrap();
    let mut input = BytesMut::new();
    loop {
        if let Some(frame) = wire::take(&mut input, &[Kind::Welcome, Kind::Refusal]).unwrap() {
            return (stream, frame);
        }
        assert!(stream.read_buf(&mut input).await.unwrap() > 0, "no answer to {hello:?}");
    }
}

#[tokio::test]
async fn who_does_not_fit_is_told_why() {
    let node = Node::start(1, CLUSTER, "test").await;
    let other = [8; 16];
    let cases = [
        (Hello { version_min: 3, version_max: 9, ..hello() }, Reason::Version, "3 to 9"),
        (Hello { version_min: 0, version_max: 0, ..hello() }, Reason::Version, "2 to 2"),
        (Hello { cluster: other, ..hello() }, Reason::Cluster, "0808"),
        (Hello { cluster: NO_CLUSTER, ..hello() }, Reason::Cluster, "none"),
        (Hello { name: "prod".to_owned(), ..hello() }, Reason::Name, "\"prod\""),
        (Hello { to: 3, ..hello() }, Reason::WrongNode, "wants node 3"),
        (Hello { from: 1, ..hello() }, Reason::Itself, "node 1"),
    ];
    for (hello, reason, says) in &cases {
        let (mut stream, frame) = connect(&node, hello).await;
        assert_eq!(frame.kind, Kind::Refusal, "{hello:?}");
        let refusal = wire::refusal(&frame.body).unwrap();
        assert_eq!(refusal.reason, *reason);
        assert!(refusal.detail.contains(says), "{refusal}");
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    }
    let refused = node.peers.counters().refused.load(Relaxed);
    assert_eq!(refused, cases.len() as u64);
    let (_stream, frame) = connect(&node, &Hello { version_max: 7, ..hello() }).await;
    let welcome = wire::welcome(&frame.body).unwrap();
    assert_eq!((welcome.version, welcome.cluster, welcome.from), (2, CLUSTER, 1));
    node.stop().await;
}

#[tokio::test]
async fn a_node_of_no_cluster_joins_the_first_and_only_once_it_is_noted() {
    let node = Node::start(1, NO_CLUSTER, "test").await;
    node.heard.refuses.store(true, Relaxed);
    let (_, frame) = connect(&node, &hello()).await;
    assert_eq!(wire::refusal(&frame.body).unwrap().reason, Reason::Unready);
    assert_eq!(node.peers.local().cluster(), NO_CLUSTER);
    node.heard.refuses.store(false, Relaxed);
    let wrong = Hello { to: 3, ..hello() };
    assert_eq!(connect(&node, &wrong).await.1.kind, Kind::Refusal);
    assert_eq!(node.peers.local().cluster(), NO_CLUSTER);
    let (own, other) = (hello(), Hello { cluster: [9; 16], ..hello() });
    let (first, second) = tokio::join!(connect(&node, &own), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        connect(&node, &other).await
    });
    assert_eq!((first.1.kind, second.1.kind), (Kind::Welcome, Kind::Refusal));
    assert_eq!(*node.heard.joined.lock().unwrap(), Some(CLUSTER));
    node.stop().await;
}

#[tokio::test]
async fn a_newer_connection_replaces_the_old() {
    let node = Node::start(1, CLUSTER, "test").await;
    let (mut old, _) = connect(&node, &hello()).await;
    let (_new, frame) = connect(&node, &hello()).await;
    assert_eq!(frame.kind, Kind::Welcome);
    let ended = async { while old.read(&mut [0; 64]).await.unwrap() > 0 {} };
    tokio::time::timeout(Duration::from_secs(2), ended).await.expect("the old one is closed");
    node.stop().await;
}

#[tokio::test]
async fn one_node_that_answers_for_another_is_not_believed() {
    let nodes = [Node::start(1, CLUSTER, "test").await, Node::start(2, CLUSTER, "test").await];
    nodes[0].peers.know(3, &nodes[1].member).unwrap();
    let failures = || nodes[0].peers.counters().dial_failures.load(Relaxed);
    until("it fails", || failures() > 2).await;
    assert_eq!(nodes[0].heard.link(3), None);
    for node in nodes {
        node.stop().await;
    }
}

/// Bytes of every kind before and after a greeting: the connection ends, the node serves on.
#[tokio::test]
async fn hostile_bytes_end_their_connection_only() {
    let node = Node::start(1, CLUSTER, "test").await;
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let rng = runner.rng();
    let purposes =
        [Purpose::Append, Purpose::Heartbeat, Purpose::Snapshot, Purpose::Control, Purpose::Link];
    for case in 0..300 {
        let mut bytes = vec![0; 1 + case % 200];
        rng.fill_bytes(&mut bytes);
        let mut stream = if case % 3 == 0 {
            TcpStream::connect(&node.member.peer).await.unwrap()
        } else {
            connect(&node, &Hello { purpose: purposes[case % 5], ..hello() }).await.0
        };
        if case % 3 == 2 {
            // Whole frames, right but for their bodies.
            let kinds =
                [Kind::Append, Kind::SnapshotBegin, Kind::Vote, Kind::PreVote, Kind::Transfer];
            let mut out = BytesMut::new();
            wire::put(&mut out, kinds[rng.next_u32() as usize % 5], |out| {
                out.put_slice(&bytes);
                Ok(())
            })
            .unwrap();
            bytes = out.to_vec();
        }
        // It may be closed already.
        let _ = stream.write_all(&bytes).await;
        if case % 7 == 0 {
            let _ = stream.shutdown().await;
            let _ = tokio::time::timeout(Duration::from_millis(5), stream.read(&mut [0; 64])).await;
        }
    }
    let (_stream, frame) = connect(&node, &hello()).await;
    assert_eq!(frame.kind, Kind::Welcome);
    assert!(node.peers.counters().broken.load(Relaxed) > 50);
    assert!(!node.raft.is_leader());
    node.stop().await;
}

#[tokio::test]
async fn who_says_nothing_is_let_go_and_keeps_nobody_out() {
    let node = Node::start(1, CLUSTER, "test").await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(&node.member.peer).await.unwrap());
    }
    until("they are let go", || node.peers.counters().refused.load(Relaxed) >= 200).await;
    assert_eq!(connect(&node, &hello()).await.1.kind, Kind::Welcome);
    node.stop().await;
}

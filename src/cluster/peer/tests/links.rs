//! Links and questions: order, what is lost with a connection, and who waits for whom.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::node::{CLUSTER, Node, Told, until};
use crate::cluster::peer::{LINK_QUEUE_BYTES_MAX, LinkError, Way};
use crate::cluster::types::NodeId;
use crate::cluster::wire::LINK_BYTES_MAX;

async fn two() -> [Node; 2] {
    let nodes = [Node::start(1, CLUSTER, "test").await, Node::start(2, CLUSTER, "test").await];
    nodes[0].peers.know(2, &nodes[1].member).unwrap();
    nodes[1].peers.know(1, &nodes[0].member).unwrap();
    // Nobody is their own peer.
    nodes[0].peers.know(1, &nodes[0].member).unwrap();
    nodes
}

async fn up(node: &Node, peer: NodeId, after: u64) -> u64 {
    let newest = || node.heard.link(peer).filter(|connection| *connection > after);
    until("the link is up", || newest().is_some()).await;
    newest().unwrap()
}

fn frame(number: u32) -> Bytes {
    Bytes::copy_from_slice(&number.to_le_bytes())
}

fn number(frame: &Bytes) -> u32 {
    u32::from_le_bytes(frame[..4].try_into().unwrap())
}

#[tokio::test]
async fn frames_arrive_in_order_and_many_in_one_write() {
    let [one, two] = two().await;
    let link = up(&one, 2, 0).await;
    for at in 0..4_000 {
        one.peers.send(2, link, frame(at)).unwrap();
    }
    until("all came", || two.heard.frames().len() == 4_000).await;
    assert!(two.heard.frames().iter().map(number).eq(0..4_000));
    let back = up(&two, 1, 0).await;
    let long = Bytes::from(vec![9; LINK_BYTES_MAX]);
    two.peers.send(1, back, long.clone()).unwrap();
    until("it came", || one.heard.frames() == [long.clone()]).await;
    let longer = Bytes::from(vec![9; LINK_BYTES_MAX + 1]);
    assert_eq!(two.peers.send(1, back, longer), Err(LinkError::TooLong));
    assert_eq!(two.peers.send(3, back, frame(0)), Err(LinkError::Down));
    one.stop().await;
    two.stop().await;
}

/// Sends what was not acknowledged again, from the first, over each new connection.
#[tokio::test]
async fn what_a_cut_lost_is_sent_again_in_order() {
    let [one, two] = two().await;
    let mut link = up(&one, 2, 0).await;
    let (mut next, mut cuts) = (0, 0);
    while next < 20_000 {
        match one.peers.send(2, link, frame(next)) {
            Ok(()) => next += 1,
            Err(LinkError::Full) => tokio::task::yield_now().await,
            Err(error) => {
                assert_eq!(error, LinkError::Down);
                // A connection that is gone takes nothing, not even once another is up.
                let old = link;
                link = up(&one, 2, link).await;
                assert_eq!(one.peers.send(2, old, frame(next)), Err(LinkError::Down));
                next = two.heard.frames().last().map_or(0, |frame| number(frame) + 1);
            }
        }
        if next % 97 == 0 {
            tokio::task::yield_now().await;
        }
        if next > (cuts + 1) * 3_000 && cuts < 5 {
            one.net.cut();
            cuts += 1;
        }
    }
    assert_eq!(cuts, 5);
    until("the last came", || two.heard.frames().last() == Some(&frame(19_999))).await;
    // On each connection the frames follow each other without a gap.
    let mut last = None;
    for told in two.heard.told.lock().unwrap().iter() {
        match told {
            Told::Up(1, Way::In, _) => last = None,
            Told::Frame(1, connection, frame) => {
                let at = number(frame);
                assert!(last.is_none_or(|(on, before)| (on, before + 1) == (*connection, at)));
                last = Some((*connection, at));
            }
            _ => {}
        }
    }
    // Whichever connection brought it, each came.
    let mut all: Vec<_> = two.heard.frames().iter().map(number).collect();
    all.sort_unstable();
    all.dedup();
    assert!(all.into_iter().eq(0..20_000));
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_full_inbox_stops_the_sender() {
    let [one, two] = two().await;
    let link = up(&one, 2, 0).await;
    two.heard.is_full.store(true, Relaxed);
    let long = Bytes::from(vec![1; LINK_BYTES_MAX]);
    let mut sent = 0;
    // The queue takes its maximum, and the sockets what they take, while the inbox takes one.
    for _ in 0..25 {
        while one.peers.send(2, link, long.clone()).is_ok() {
            sent += 1;
        }
        tokio::time::sleep(core::time::Duration::from_millis(100)).await;
    }
    assert!((LINK_QUEUE_BYTES_MAX / LINK_BYTES_MAX..64).contains(&sent), "{sent} frames");
    assert_eq!(two.heard.frames().len(), 1);
    assert_eq!(one.peers.send(2, link, long.clone()), Err(LinkError::Full));
    // It was no silence: the connection is the same.
    assert_eq!(one.heard.link(2), Some(link));
    two.heard.is_full.store(false, Relaxed);
    two.heard.room.notify_one();
    until("all came", || two.heard.frames().len() == sent).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_silent_peer_is_noticed() {
    let [one, two] = two().await;
    let link = up(&one, 2, 0).await;
    one.net.mute(true);
    until("the link is down", || one.heard.link(2).is_none()).await;
    assert_eq!(one.peers.send(2, link, frame(1)), Err(LinkError::Down));
    one.net.mute(false);
    up(&one, 2, link).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_question_has_one_reply_or_an_error() {
    let [one, two] = two().await;
    let question = Bytes::from_static(b"what time is it");
    let reply = one.peers.ask(2, question.clone()).await.unwrap();
    assert_eq!(reply[..question.len()], question[..]);
    assert_eq!(reply[question.len()..], 1u64.to_le_bytes());
    let asks = (0..200).map(|_| one.peers.ask(2, question.clone()));
    let mut replies = 0;
    for asked in futures_util::future::join_all(asks).await {
        match asked {
            Ok(_) => replies += 1,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    assert!(replies >= 64, "{replies} replies");
    let kind = async |node, question| one.peers.ask(node, question).await.unwrap_err().kind();
    assert_eq!(kind(9, question.clone()).await, std::io::ErrorKind::NotFound);
    let long = Bytes::from(vec![0; 20_000]);
    assert_eq!(kind(2, long).await, std::io::ErrorKind::InvalidInput);
    one.net.mute(true);
    assert_eq!(kind(2, question).await, std::io::ErrorKind::TimedOut);
    one.stop().await;
    two.stop().await;
}

//! One node of a test: its port, its Raft, what came over links, and a network that can be cut.

use core::pin::Pin;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use openraft::Config;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::store::{Log, Machine};
use crate::cluster::peer::{BoxFuture, Inbox, Listen, Local, Net, Peers, Stream, Tcp, Way};
use crate::cluster::types::{Member, NodeId, TypeConfig};

pub(super) const CLUSTER: [u8; 16] = [7; 16];
pub(super) type Raft = openraft::Raft<TypeConfig, Machine>;

/// TCP whose connections break when it is cut, and say nothing while it is mute.
#[derive(Default)]
pub(super) struct Cuttable {
    cuts: Arc<AtomicU64>,
    is_mute: Arc<AtomicBool>,
}

impl Cuttable {
    /// Breaks every connection there is.
    pub(super) fn cut(&self) {
        self.cuts.fetch_add(1, Relaxed);
    }

    pub(super) fn mute(&self, is_mute: bool) {
        self.is_mute.store(is_mute, Relaxed);
    }
}

impl Net for Cuttable {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let (cuts, is_mute) = (Arc::clone(&self.cuts), Arc::clone(&self.is_mute));
            let stream = Tcp.connect(address).await?;
            Ok(Box::new(Cut { made: cuts.load(Relaxed), cuts, is_mute, stream }) as Stream)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listen>>> {
        Tcp.listen(address)
    }

    fn aside(&self, work: Box<dyn FnOnce() + Send>) {
        Tcp.aside(work);
    }
}

struct Cut {
    made: u64,
    cuts: Arc<AtomicU64>,
    is_mute: Arc<AtomicBool>,
    stream: Stream,
}

impl Cut {
    fn check(&self) -> Poll<io::Result<()>> {
        if self.cuts.load(Relaxed) != self.made {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.is_mute.load(Relaxed) { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        core::task::ready!(self.check())?;
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Cut {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        core::task::ready!(self.check())?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What an inbox was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Frame(NodeId, u64, Bytes),
    Up(NodeId, Way, u64),
    Down(NodeId, Way, u64),
}

#[derive(Default)]
pub(super) struct Heard {
    pub(super) told: Mutex<Vec<Told>>,
    pub(super) joined: Mutex<Option<[u8; 16]>>,
    /// While it is set, one frame is taken and no more.
    pub(super) is_full: AtomicBool,
    pub(super) room: Arc<Notify>,
    pub(super) refuses: AtomicBool,
}

impl Heard {
    pub(super) fn frames(&self) -> Vec<Bytes> {
        let frame = |told: &Told| match told {
            Told::Frame(_, _, frame) => Some(frame.clone()),
            _ => None,
        };
        self.told.lock().unwrap().iter().filter_map(frame).collect()
    }

    /// The newest connection of the link to `peer`, if it is up.
    pub(super) fn link(&self, peer: NodeId) -> Option<u64> {
        let told = self.told.lock().unwrap();
        told.iter().rev().find_map(|told| match told {
            Told::Up(of, Way::Out, connection) if *of == peer => Some(Some(*connection)),
            Told::Down(of, Way::Out, _) if *of == peer => Some(None),
            _ => None,
        })?
    }
}

impl Inbox for Heard {
    fn received(
        &self,
        from: NodeId,
        connection: u64,
        frame: Bytes,
    ) -> Option<BoxFuture<'static, ()>> {
        self.told.lock().unwrap().push(Told::Frame(from, connection, frame));
        let room = Arc::clone(&self.room);
        let is_full = self.is_full.load(Relaxed);
        is_full.then(|| Box::pin(async move { room.notified().await }) as BoxFuture<'static, ()>)
    }

    fn connected(&self, peer: NodeId, way: Way, connection: u64) {
        self.told.lock().unwrap().push(Told::Up(peer, way, connection));
    }

    fn disconnected(&self, peer: NodeId, way: Way, connection: u64) {
        self.told.lock().unwrap().push(Told::Down(peer, way, connection));
    }

    fn asked(&self, from: NodeId, question: Bytes) -> Bytes {
        let mut reply = question.to_vec();
        reply.extend_from_slice(&from.to_le_bytes());
        reply.into()
    }

    fn joined(&self, cluster: [u8; 16], _: NodeId) -> io::Result<()> {
        if self.refuses.load(Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *self.joined.lock().unwrap() = Some(cluster);
        Ok(())
    }
}

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) member: Member,
    pub(super) net: Arc<Cuttable>,
    pub(super) peers: Peers,
    pub(super) raft: Raft,
    pub(super) machine: Machine,
    pub(super) heard: Arc<Heard>,
    server: JoinHandle<()>,
}

impl Node {
    pub(super) async fn start(id: NodeId, cluster: [u8; 16], name: &str) -> Self {
        let net = Arc::new(Cuttable::default());
        let (machine, heard) = (Machine::default(), Arc::new(Heard::default()));
        let local = Local::new(id, cluster, name).unwrap();
        let snapshots = Arc::new(machine.clone());
        let inbox = Arc::clone(&heard);
        let peers = Peers::new(Arc::clone(&net) as Arc<dyn Net>, local, snapshots, inbox);
        let config = Config {
            heartbeat_interval: 50,
            election_timeout_min: 300,
            election_timeout_max: 600,
            max_payload_entries: 64,
            enable_pre_vote: Some(true),
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: 0,
            ..Config::default()
        };
        let config = Arc::new(config.validate().unwrap());
        let log = Log::default();
        let raft = Raft::new(id, config, peers.networks(), log, machine.clone()).await.unwrap();
        let listener = net.listen("127.0.0.1:0").await.unwrap();
        let member = Member { peer: listener.address().unwrap(), clients: String::new() };
        let server = tokio::spawn({
            let (peers, raft) = (peers.clone(), raft.clone());
            async move { peers.serve(listener, raft).await }
        });
        Self { id, member, net, peers, raft, machine, heard, server }
    }

    pub(super) async fn stop(self) {
        self.server.abort();
        let _ = self.raft.shutdown().await;
    }
}

/// Waits until it holds.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

//! Threads of a door: connections are accepted in one place, as many as there may be, and handed
//! to the threads in turn. A connection stays on its thread for life.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet};

use crate::metrics::cells::Protocol;

use super::{ConnectionGuard, Connections, Instance, SharedDesk};

/// Accepted connections that wait for their thread.
const HANDED_OVER_MAX: usize = 1024;

/// Pause after an accept that failed for want of descriptors or memory: the cause will not be
/// gone at once, and a loop that spins helps nobody.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What serves one connection.
pub(super) type Served = Pin<Box<dyn Future<Output = ()>>>;

/// What one thread does with its connections.
pub(super) type Serve = Box<dyn Fn(Accepted) -> Served>;

/// A connection with who is at its other end.
pub(super) struct Accepted {
    pub(super) stream: tokio::net::TcpStream,
    pub(super) peer: SocketAddr,
    /// Becomes true when the door closes: what has been read is answered, and no more is read.
    pub(super) stopped: watch::Receiver<bool>,
}

/// What is peculiar to a door.
pub(super) struct Door {
    /// How it counts.
    pub(super) protocol: Protocol,
    /// What a connection is told that is one too many.
    pub(super) refusal: &'static [u8],
    /// Makes what serves the connections of one thread.
    pub(super) serve: Arc<dyn Fn(Arc<SharedDesk>) -> Serve + Send + Sync>,
}

/// A door, open but not yet served.
pub struct Listener {
    listener: TcpListener,
    refusal: &'static [u8],
    connections: Arc<Connections>,
    handovers: Vec<mpsc::Sender<Handover>>,
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

struct Handover {
    stream: TcpStream,
    peer: SocketAddr,
    guard: ConnectionGuard,
}

impl Listener {
    /// Takes the address and starts `count` threads. `grace` is how long connections have to end
    /// once the door closes.
    ///
    /// # Errors
    /// The operating system's: mostly that the address is taken.
    pub(super) fn open(
        door: &Door,
        address: SocketAddr,
        count: NonZeroUsize,
        grace: Duration,
        instance: &Arc<Instance>,
        connections: &Arc<Connections>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = watch::channel(false);
        let (mut handovers, mut threads) = (Vec::new(), Vec::new());
        for index in 0..count.get() {
            let (handover, handed_over) = mpsc::channel(HANDED_OVER_MAX);
            let runtime =
                runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
            let desk = SharedDesk::new(door.protocol, instance);
            let (serve, stopped) = (Arc::clone(&door.serve), stopped.clone());
            let name = format!("{}-{index}", door.protocol.name());
            threads.push(std::thread::Builder::new().name(name).spawn(move || {
                let run = run(serve(desk), handed_over, stopped, grace);
                LocalSet::new().block_on(&runtime, run);
            })?);
            handovers.push(handover);
        }
        let connections = Arc::clone(connections);
        Ok(Self { listener, refusal: door.refusal, connections, handovers, threads, stop })
    }

    /// The address taken, with the port that the system chose if none was given.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts until `stop` is done, then lets connections end.
    ///
    /// # Errors
    /// If the socket cannot be watched at all.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let mut stop = pin!(stop);
        let mut turn = 0;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stop => break,
            };
            let Ok((stream, peer)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Ok(stream) = stream.into_std() else { continue };
            // Answers are written whole; waiting to fill a segment only delays them.
            let _ = stream.set_nodelay(true);
            let Some(guard) = self.connections.admit() else {
                refuse(stream, self.refusal);
                continue;
            };
            turn += 1;
            // The thread is behind: accepting waits for it, and the backlog holds the rest.
            let handover = &self.handovers[turn % self.handovers.len()];
            let _ = handover.send(Handover { stream, peer, guard }).await;
        }
        drop(listener);
        let _ = self.stop.send(true);
        let join = || self.threads.into_iter().for_each(|thread| drop(thread.join()));
        let _ = tokio::task::spawn_blocking(join).await;
        Ok(())
    }
}

/// Tells a connection that it is one too many.
fn refuse(mut stream: TcpStream, refusal: &[u8]) {
    // A fresh socket's buffer takes a hundred bytes; if it does not, the close says it all.
    let _ = io::Write::write(&mut stream, refusal);
}

async fn run(
    serve: Serve,
    mut handed_over: mpsc::Receiver<Handover>,
    stopped: watch::Receiver<bool>,
    grace: Duration,
) {
    let mut tasks = JoinSet::new();
    let mut stop = stopped.clone();
    loop {
        tokio::select! {
            Some(Handover { stream, peer, guard }) = handed_over.recv() => {
                let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
                let served = serve(Accepted { stream, peer, stopped: stopped.clone() });
                tasks.spawn_local(async move {
                    served.await;
                    drop(guard);
                });
            }
            Some(_) = tasks.join_next() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    let all = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(grace, all).await;
}

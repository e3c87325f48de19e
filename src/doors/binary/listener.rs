//! Accepts connections, as many as there may be, and hands them to the workers in turn.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tollkeeper_protocol::status::Code;

use crate::doors::Instance;

use super::session::Session;
use super::worker::{self, Handover, Worker};

/// Pause after an accept that failed for want of descriptors or memory: the cause will not be
/// gone at once, and a loop that spins helps nobody.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// The binary door, open.
pub struct Listener {
    listener: TcpListener,
    workers: Vec<Worker>,
    stop: watch::Sender<bool>,
    instance: Arc<Instance>,
}

impl Listener {
    /// Takes the address and starts `workers` threads. `grace` is how long clients have to leave
    /// once the door closes.
    ///
    /// # Errors
    /// The operating system's: mostly that the address is taken.
    pub fn open(
        address: SocketAddr,
        workers: NonZeroUsize,
        grace: Duration,
        instance: Arc<Instance>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = watch::channel(false);
        let start = |index| worker::start(index, Arc::clone(&instance), stopped.clone(), grace);
        let workers = (0..workers.get()).map(start).collect::<io::Result<_>>()?;
        Ok(Self { listener, workers, stop, instance })
    }

    /// The address taken, with the port that the system chose if none was given.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts until `stop` is done, then lets the workers finish.
    ///
    /// # Errors
    /// If the socket cannot be watched at all.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let mut stop = core::pin::pin!(stop);
        let mut turn = 0;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stop => break,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Ok(stream) = stream.into_std() else { continue };
            // Answers are written whole; waiting to fill a segment only delays them.
            let _ = stream.set_nodelay(true);
            let Some(guard) = self.instance.connect() else {
                refuse(stream);
                continue;
            };
            turn += 1;
            let worker = &self.workers[turn % self.workers.len()];
            // The worker is behind: accepting waits for it, and the backlog holds the rest.
            let _ = worker.handover.send(Handover { stream, guard }).await;
        }
        drop(listener);
        self.instance.drain();
        let _ = self.stop.send(true);
        let join = || self.workers.into_iter().for_each(|worker| drop(worker.thread.join()));
        let _ = tokio::task::spawn_blocking(join).await;
        Ok(())
    }
}

/// Tells a connection that it is one too many.
fn refuse(mut stream: std::net::TcpStream) {
    let mut out = Vec::new();
    Session::default().close(
        Code::Overloaded,
        "the server has all the connections it takes",
        &mut out,
    );
    // A fresh socket's buffer takes a hundred bytes; if it does not, the close says it all.
    let _ = io::Write::write(&mut stream, &out);
}

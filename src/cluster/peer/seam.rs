//! What the transport needs of the outside: connections, and a thread for work that blocks. A
//! simulation puts in its own.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// A future that is kept in a box.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A connection's two directions.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection.
pub type Stream = Box<dyn Wire>;

/// The network.
pub trait Net: Send + Sync + 'static {
    /// Connects to `HOST:PORT`. The caller bounds the time.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>>;

    /// Takes the address `HOST:PORT`; with port 0 any that is free.
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listen>>>;

    /// Does work that waits for a disk, without making the event loop wait.
    fn aside(&self, work: Box<dyn FnOnce() + Send>);
}

/// An address taken.
pub trait Listen: Send + Sync {
    /// The next connection, and where it comes from.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, String)>>;

    /// The address taken, `HOST:PORT`.
    ///
    /// # Errors
    /// The operating system's.
    fn address(&self) -> io::Result<String>;
}

/// TCP, of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Net for Tcp {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            // What is written is whole; waiting to fill a segment only delays it.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Stream)
        })
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listen>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            Ok(Box::new(listener) as Box<dyn Listen>)
        })
    }

    fn aside(&self, work: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(work);
    }
}

impl Listen for TcpListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, String)>> {
        Box::pin(async move {
            let (stream, from) = TcpListener::accept(self).await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as Stream, from.to_string()))
        })
    }

    fn address(&self) -> io::Result<String> {
        Ok(self.local_addr()?.to_string())
    }
}

/// Fails with `TimedOut` unless `work` is done within `time`.
pub(super) async fn within<T>(
    time: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::time::timeout(time, work).await.unwrap_or_else(|_| Err(late(time)))
}

/// What is said of a peer that did not answer within `time`.
pub(super) fn late(time: Duration) -> io::Error {
    let text = format!("no answer within {} ms", time.as_millis());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// The result of work that waits for a disk.
pub(super) async fn aside<T: Send + 'static>(
    net: &dyn Net,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    net.aside(Box::new(move || _ = done.send(work())));
    result.await.map_err(|_| io::Error::other("the work ended before its result"))
}

/// Waits that grow from one failure to the next, up to a maximum.
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The first wait.
    pub(super) const MIN: Duration = Duration::from_millis(10);
    /// The longest.
    pub(super) const MAX: Duration = Duration::from_millis(500);

    pub(super) fn new() -> Self {
        Self { next: Self::MIN }
    }

    /// How long to wait now.
    pub(super) fn next(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(Self::MAX);
        now
    }

    pub(super) async fn wait(&mut self) {
        sleep(self.next()).await;
    }

    pub(super) fn reset(&mut self) {
        self.next = Self::MIN;
    }
}

//! Accepts connections and keeps to their maxima; what they say is for the routes.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::doors::{Initialize, Instance};

use super::access::Access;
use super::cluster::waiting_router;
use super::routes::router;
use super::vitals::Vitals;
use super::{
    CLOSE_TIME_MAX, CONNECTION_TIME_MAX, CONNECTIONS_MAX, HEAD_BYTES_MAX, HEAD_TIME_MAX,
    HEADERS_MAX,
};

/// How long to wait after the system could not accept, for instance for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The admin door, open but not yet served.
pub struct Listener {
    listener: TcpListener,
    router: Router,
    vitals: Option<Arc<Vitals>>,
}

impl Listener {
    /// Takes the address.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(
        address: SocketAddr,
        instance: Arc<Instance>,
        vitals: Arc<Vitals>,
        access: Access,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let router = router(instance, Arc::clone(&vitals), access);
        Ok(Self { listener, router, vitals: Some(vitals) })
    }

    /// Takes the address for a node that has not joined its cluster: only how it stands and
    /// beginning one are answered.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open_waiting(
        address: SocketAddr,
        node: u64,
        initialize: Initialize,
        access: Access,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, router: waiting_router(node, initialize, access), vitals: None })
    }

    /// The address taken, with the port that the system chose if none was given.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts until `stop` is done, then lets requests in progress end.
    ///
    /// # Errors
    /// If the socket cannot be watched at all.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let (stopping, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut stop = pin!(stop);
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    match accepted {
                        Ok((stream, _)) => {
                            connections.spawn(connection(stream, self.router.clone(), stopped.clone()));
                        }
                        Err(_) => sleep(ACCEPT_PAUSE).await,
                    }
                }
                Some(_) = connections.join_next() => {}
                () = &mut stop => break,
            }
            if let Some(vitals) = &self.vitals {
                vitals.connections.store(connections.len() as u64, Ordering::Relaxed);
            }
        }
        drop(listener);
        let _ = stopping.send(true);
        while connections.join_next().await.is_some() {}
        Ok(())
    }
}

/// Serves a connection until it, its time or the door ends.
async fn connection(stream: TcpStream, router: Router, mut stopped: watch::Receiver<bool>) {
    // Answers are written whole; waiting to fill a segment only delays them.
    let _ = stream.set_nodelay(true);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = pin!(served);
    tokio::select! {
        // A broken connection ends like a closed one: there is nobody to tell.
        _ = served.as_mut() => return,
        () = sleep(CONNECTION_TIME_MAX) => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = timeout(CLOSE_TIME_MAX, served).await;
}

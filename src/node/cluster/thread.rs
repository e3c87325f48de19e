//! The thread on which Raft, its peers and its batcher run.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::cluster::{Member, NodeId, Parts, Running};
use crate::disk::Directory;
use crate::node::{EXIT_RAFT_ENDED, StartError};

use super::{Node, system};

/// How long leadership may take to be handed over at shutdown.
const HAND_OVER_TIME_MAX: Duration = Duration::from_secs(2);

/// The thread on which Raft, its peers and its batcher run.
pub(in crate::node) struct ClusterThread {
    pub(super) node: Arc<Node>,
    pub(super) runtime: tokio::runtime::Handle,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
}

impl ClusterThread {
    pub(super) fn start(
        parts: Parts<Directory>,
        members: BTreeMap<NodeId, Member>,
    ) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("event loop"))?;
        let handle = runtime.handle().clone();
        let (started, start) = std::sync::mpsc::channel();
        let (stop, mut stopped) = watch::channel(false);
        let thread = std::thread::Builder::new().name("cluster".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let running = Running::start(parts).await;
                let node = match running {
                    Ok(node) => node,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                if !members.is_empty()
                    && let Err(error) = node.initialize(members).await
                {
                    tracing::error!(error, "the cluster does not begin");
                }
                let _ = started.send(Ok(Arc::clone(&node)));
                tokio::select! {
                    _ = stopped.wait_for(|stop| *stop) => node.stop().await,
                    why = node.ended() => exit_ended(&why),
                }
            });
        });
        let thread = thread.map_err(system("thread of the cluster"))?;
        let node = start.recv().map_err(|_| io::Error::other("it ended")).flatten();
        let node = node.map_err(system("node of the cluster"))?;
        Ok(Self { node, runtime: handle, stop, thread })
    }

    /// Hands leadership over, where this node has it and another one can take it.
    pub(in crate::node) async fn hand_over(&self) {
        if !self.node.raft.is_leader() {
            return;
        }
        let node = Arc::clone(&self.node);
        let handed = self.runtime.spawn(async move { node.transfer(None).await });
        match tokio::time::timeout(HAND_OVER_TIME_MAX, handed).await {
            Ok(Ok(Ok(()))) => tracing::info!("leadership is handed over"),
            Ok(Ok(Err(why))) => tracing::warn!(why, "leadership is not handed over"),
            _ => tracing::warn!("leadership is not handed over in time"),
        }
    }

    pub(super) fn stop(self) {
        let _ = self.stop.send(true);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the cluster had ended");
        }
    }
}

/// Without Raft the node decides nothing any more, and a supervisor should know.
fn exit_ended(why: &str) -> ! {
    tracing::error!(
        why,
        "Raft has ended at this node; the node stops, and the others go on: start it again, and if it \
         stops so again, replace it: `cluster remove` at the leader, an empty --data, a new --node-id, \
         `cluster add`"
    );
    std::process::exit(EXIT_RAFT_ENDED.into());
}

//! What operators ask of a cluster, by the admin door.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use serde_json::Value;

use crate::metrics::cells::ClusterFigures;
use crate::policy::ByHand;

use super::docket::AwaitedChange;

/// What came of something that an operator asked for, as JSON, or why nothing did.
pub type Steered = Pin<Box<dyn Future<Output = Result<Value, String>> + Send>>;

/// Changes and questions that concern all nodes of a cluster. `node` gives it to the admin door.
pub trait Steering: Send + Sync {
    /// Makes a change by hand at all nodes.
    fn by_hand(&self, change: &ByHand) -> AwaitedChange;

    /// Puts a policy in force at all nodes: where it comes from, and names and texts.
    fn policy(&self, origin: String, texts: Vec<(String, String)>) -> AwaitedChange;

    /// What this node counts of the cluster.
    fn figures(&self) -> ClusterFigures;

    /// How the nodes stand.
    fn status(&self) -> Steered;

    /// Whether this node serves: why it does not.
    ///
    /// # Errors
    /// What it waits for.
    fn readiness(&self) -> Result<String, String>;

    /// Adds a node that listens for peers at an address, as one that learns. Does nothing if it
    /// learns already.
    fn add(&self, node: u64, peer: String) -> Steered;

    /// Gives a node that learns a vote, once it has caught up; says how far it is.
    fn promote(&self, node: u64) -> Steered;

    /// Removes a node.
    fn remove(&self, node: u64) -> Steered;

    /// Hands leadership to a node, or to whichever has caught up.
    fn transfer(&self, to: Option<u64>) -> Steered;

    /// Has this node take a snapshot.
    fn snapshot(&self) -> Steered;
}

/// Begins a cluster: members by number, with their peer addresses.
pub type Initialize = Box<dyn Fn(BTreeMap<u64, String>) -> Steered + Send + Sync>;

//! A whole cluster in one thread: every node's own code, from what is asked at it down to the bytes
//! of its log, on a simulated network, disk and clock, from one seed. The same seed gives the same
//! run, event by event.
//!
//! A run has two phases. In the first, things go wrong: bytes are late or lost, ways are cut in
//! one direction or both, connections break, nodes lose power and with it what was not synced,
//! stand still, or find their wall clock set, disks fail. Then all that ends, and exact answers
//! have to come back. What must hold is in `invariants`, one file each. A run in which something
//! that was planned did not go wrong is void.
//!
//! ```text
//! cargo test --lib cluster::sim                            # a few seeds, and planted bugs
//! TOLLKEEPER_SIM_SEEDS=1000 cargo test --lib sim::tests::campaign -- --ignored --nocapture
//! TOLLKEEPER_SIM_SEED=7 cargo test --lib sim::tests::seeds -- --nocapture    # with its trace
//! ```
//!
//! Each node has a tokio runtime of its own whose clock stands still; the world moves each on by a
//! millisecond, one after the other, in an order of chance. Losing power drops the runtime, and all
//! tasks with it. The network is our own, behind [`super::peer::Net`]: that of turmoil sends
//! nothing again that was lost, so one loss would end a connection, where TCP is late; and it has
//! no node that stands still and finds that time has passed.
//!
//! In test builds only, since it uses the faulty disk, and plants bugs.

mod clients;
mod clock;
mod faults;
mod history;
mod host;
mod invariants;
mod limits;
mod network;
mod node;
mod random;
mod runtime;
mod tests;
mod watch;
mod world;

pub use runtime::Runtime;

pub(super) use runtime::is_running;

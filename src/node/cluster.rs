//! A node that belongs to a cluster: how it starts, and what it gives the doors.

mod joined;

mod joining;

mod thread;

mod host;

pub(super) mod inspect;

mod steering;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::{self, Clock};
use crate::cluster::peer::{Local, Tcp};
use crate::cluster::{LogKept, Member, Parts, Running, SharedHome, SystemReadings};
use crate::config::{ClusterConfig, Config, Fsync};
use crate::disk::log::{Durability, Log, Settings, Tail};
use crate::disk::{Directory, Home, Identity, boot_id};
use crate::doors::{Instance, Loaded};
use crate::engine::key::Seed;
use crate::engine::table::Table;
use crate::engine::time::Timestamp;

use super::signals::Ends;
use super::{EXIT_LOG_FAILED, StartError, load_policy, random_bytes, serve};

use host::{InstanceHost, Sources};
use joined::Joined;
use joining::join;

pub(super) use thread::ClusterThread;

/// The folder of the log in the data directory.
const LOG: &str = "log";

/// How often a leader looks whether the log has brought a policy.
const SEED_EVERY: Duration = Duration::from_millis(100);

pub(super) type Node = Running<Directory>;

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Runs a node of a cluster until a signal ends it; first, where it has not joined, until it has.
pub(super) fn run(
    config: &Config,
    cluster: &ClusterConfig,
    ready: impl FnOnce(&str),
) -> Result<(), StartError> {
    let Some(data) = &config.data else {
        let source = io::Error::other("a node of a cluster needs --data");
        return Err(StartError::System { what: "data directory", source });
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("event loop"))?;
    let mut ends = {
        let _inside = runtime.enter();
        Ends::hear()?
    };
    let joined = match Joined::read_of(data, cluster)? {
        Some(joined) => joined,
        None => match runtime.block_on(join(config, cluster, &mut ends))? {
            Some(joined) => {
                joined.write(data).map_err(system("data directory"))?;
                joined
            }
            None => return Ok(()),
        },
    };
    let home = Home::open(data, joined.identity)?;
    let identity = home.identity();
    let seed = Seed::new(identity.seed);
    let (policy, origin) = load_policy(None, &seed)?;
    let table = Table::new(config.keys_max, &seed);
    table.keep_caps_elsewhere();
    let loaded = Loaded::new(policy, origin, clock::wall_now());
    let clock = Clock::start_at(Timestamp::from_nanos(1));
    let instance =
        Instance::with_table(table, config.connections_max, identity.id, &seed, clock, loaded)
            .map_err(|error| StartError::Policy(error.to_string()))?;
    let host = Arc::new(InstanceHost::new(Arc::clone(&instance), identity, seed, config.keys_max));
    let log = open_log(&data.join(LOG), identity, cluster)?;
    let parts = Parts {
        local: Local::new(cluster.node_id, identity.id, cluster.name.clone())
            .map_err(system("cluster"))?,
        listen: cluster.peer_listen.to_string(),
        member: Member {
            peer: cluster.advertise.clone(),
            clients: cluster.advertise_clients.clone(),
        },
        home: SharedHome::new(Mutex::new(home)),
        log,
        log_kept: if cluster.keeps_log { LogKept::Whole } else { LogKept::BehindSnapshot },
        host: Arc::clone(&host) as Arc<dyn crate::cluster::Host>,
        readings: Arc::new(SystemReadings),
        net: Arc::new(Tcp),
        incarnation: u64::from_le_bytes(first_half(random_bytes()?)),
    };
    let thread = ClusterThread::start(parts, joined.members)?;
    let node = Arc::clone(&thread.node);
    let _ = instance.consensus.set(Arc::new(steering::Consensus::new(Arc::clone(&node))));
    let steering = steering::Steering::new(
        Arc::clone(&node),
        Arc::clone(&instance),
        Arc::clone(&host),
        thread.runtime.clone(),
    );
    let _ = instance.steering.set(Arc::new(steering));
    thread.runtime.spawn(seed_policy(
        Arc::clone(&node),
        Arc::clone(&host),
        seed_sources(config.policy.as_deref())?.to_change().map_err(StartError::Policy)?,
    ));
    let served = runtime.block_on(serve(config, seed, instance, None, Some(&thread), ends, ready));
    thread.stop();
    served
}

fn first_half(bytes: [u8; 16]) -> [u8; 8] {
    core::array::from_fn(|at| bytes[at])
}

fn open_log(
    path: &Path,
    identity: Identity,
    cluster: &ClusterConfig,
) -> Result<Log<Directory>, StartError> {
    let boot = boot_id().map_err(system("boot id"))?;
    let salt = u64::from_le_bytes(first_half(random_bytes()?));
    let mut settings = Settings::new(identity.id, path.display().to_string(), boot, salt);
    settings.durability = match cluster.fsync {
        Fsync::Always => Durability::Always,
        Fsync::Interval(span) => Durability::Interval(span),
        Fsync::Os => Durability::Os,
    };
    settings.on_failure = Some(Box::new(|error| {
        // What became of the bytes is not known, so nothing may be said on their strength.
        tracing::error!(
            %error,
            "the log cannot be written; the node stops, and the others go on: see to its disk (is it \
             full?) and start it again"
        );
        std::process::exit(EXIT_LOG_FAILED.into());
    }));
    let storage = Directory::open(path).map_err(|error| {
        let source = io::Error::other(format!("{}: {error:?}", path.display()));
        StartError::System { what: "the log's directory", source }
    })?;
    let (log, recovered) = Log::open(storage, settings)?;
    if let Some(cut) = &recovered.cut {
        tracing::info!(
            path = cut.path,
            offset = cut.offset,
            what = cut.what,
            "the log's end was cut off: it was being written when the power went, and nobody was \
             told that it was there"
        );
    }
    if recovered.tail == Tail::MayBeGone {
        let node = cluster.node_id;
        let source = io::Error::other(format!(
            "power was lost while --fsync let answers out before the disk had them: the end of the \
             log may be gone, and with it votes and charges that node {node} has told others of, so \
             it must not take part under its number again. At the leader `tollkeeper cluster remove \
             {node}`; start this one with an empty --data and a --node-id that was never used; at the \
             leader `tollkeeper cluster add`. If most nodes say this, charges may be lost: begin a new \
             cluster, or keep one of them for `tollkeeper log inspect`"
        ));
        return Err(StartError::System { what: "the log", source });
    }
    Ok(log)
}

/// Texts of the policy that a cluster begins with, should this node lead it then.
fn seed_sources(path: Option<&Path>) -> Result<Sources, StartError> {
    let Some(path) = path else {
        let crate::policy::Source { name, text } = crate::policy::BUILT_IN;
        let origin = format!("built-in example \"{name}\"");
        return Ok(Sources { origin, texts: vec![(name.to_owned(), text.to_owned())] });
    };
    let texts = super::read_policy(path)
        .map_err(|source| StartError::ReadPolicy { path: path.to_owned(), source })?;
    Ok(Sources { origin: path.display().to_string(), texts })
}

/// Puts the first policy into the log, where this node leads and there is none.
async fn seed_policy(node: Arc<Node>, host: Arc<InstanceHost>, policy: Bytes) {
    while !host.is_seeded() {
        if node.raft.is_leader() && node.origin.applied().now.time.as_nanos() > 0 {
            let made = node.origin.change(policy.clone()).await;
            if let Ok(Ok(Err(why))) = made {
                tracing::error!(why, "the policy does not compile; apply another");
                return;
            }
        }
        tokio::time::sleep(SEED_EVERY).await;
    }
}

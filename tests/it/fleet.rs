//! Nodes of a cluster: processes on loopback that know each other.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use serde_json::Value;
use tollkeeper_protocol::client::{Client, ClientError, Cluster, OnUnavailable, Options};
use tollkeeper_protocol::status::Code;

use crate::support::{Daemon, Directory, PATIENCE, Room, Starting, command, run};

/// Where one node listens, and where the others are told to find it.
#[derive(Clone, Copy)]
pub(crate) struct Seat {
    pub(crate) clients: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) peers: SocketAddr,
    /// Where others find it: `peers`, or what stands before it.
    pub(crate) advertised: SocketAddr,
}

/// The nodes of a cluster, numbered from 1 and kept from 0.
pub(crate) struct Fleet {
    pub(crate) directory: Directory,
    pub(crate) seats: Vec<Seat>,
    pub(crate) nodes: Vec<Option<Daemon>>,
    policy: String,
    /// What each node is started with besides.
    pub(crate) environment: Vec<Vec<(String, String)>>,
    /// Flags of all nodes besides.
    pub(crate) flags: Vec<String>,
    /// Where each node is run, if not where the test is.
    pub(crate) rooms: Vec<Option<Room>>,
}

/// Addresses that nobody listens on: the system chose their ports.
pub(crate) fn reserve(count: usize) -> Vec<SocketAddr> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

impl Fleet {
    /// `members` nodes of a cluster that has begun, and seats for as many more as `spare`.
    pub(crate) fn begin(name: &str, policy: &str, members: usize, spare: usize) -> Self {
        let mut fleet = Self::plan(name, policy, members + spare);
        fleet.init(members);
        fleet
    }

    /// Seats, and nobody on them.
    pub(crate) fn plan(name: &str, policy: &str, count: usize) -> Self {
        let directory = Directory::new(name);
        let policy = directory.write("policy.toml", policy);
        let addresses = reserve(3 * count);
        let seat = |at: &[SocketAddr]| Seat {
            clients: at[0],
            admin: at[1],
            peers: at[2],
            advertised: at[2],
        };
        let seats = addresses.chunks(3).map(seat).collect();
        let nodes = (0..count).map(|_| None).collect();
        Self {
            directory,
            seats,
            nodes,
            policy,
            environment: vec![Vec::new(); count],
            flags: Vec::new(),
            rooms: (0..count).map(|_| None).collect(),
        }
    }

    /// Begins the cluster with the first `members` nodes.
    pub(crate) fn init(&mut self, members: usize) {
        let starting: Vec<Starting> = (0..members).map(|node| self.start(node)).collect();
        let list: Vec<String> = (0..members).map(|node| self.member(node)).collect();
        let members: Vec<&str> = list.iter().flat_map(|member| ["--member", member]).collect();
        let init = [&["cluster", "init"], &members[..]].concat();
        let began = Instant::now();
        loop {
            let output = self.tell(0, &init);
            if output.code == 0 {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{output:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        for (node, starting) in starting.into_iter().enumerate() {
            self.nodes[node] = Some(starting.ready());
        }
        self.await_ready();
    }

    /// A node as `cluster init` and `add` name it.
    pub(crate) fn member(&self, node: usize) -> String {
        format!("{}={}", node + 1, self.seats[node].advertised)
    }

    /// The directory of a node's files.
    pub(crate) fn data(&self, node: usize) -> String {
        self.directory.0.join(format!("node-{}", node + 1)).display().to_string()
    }

    /// Starts a node, and does not wait.
    pub(crate) fn start(&self, node: usize) -> Starting {
        let seat = self.seats[node];
        let mut serve = command(["serve", "--cluster", "test", "--policy", &self.policy]);
        serve
            .args(["--node-id", &(node + 1).to_string(), "--data", &self.data(node)])
            .args(["--listen", &seat.clients.to_string(), "--admin", &seat.admin.to_string()])
            .args(["--peer-listen", &seat.peers.to_string()])
            .args(["--advertise", &seat.advertised.to_string(), "--workers", "2"])
            .args(&self.flags);
        serve.envs(self.environment[node].iter().map(|(name, value)| (name, value)));
        match &self.rooms[node] {
            Some(room) => Starting::of(&mut room.inside(&serve)),
            None => Starting::of(&mut serve),
        }
    }

    /// Starts nodes that were stopped, and waits until they serve.
    pub(crate) fn restart(&mut self, nodes: &[usize]) {
        let starting: Vec<Starting> = nodes.iter().map(|&node| self.start(node)).collect();
        for (&node, starting) in nodes.iter().zip(starting) {
            self.nodes[node] = Some(starting.ready());
        }
    }

    /// Kills a node, as power that fails does.
    pub(crate) fn kill(&mut self, node: usize) {
        let daemon = self.nodes[node].take().unwrap();
        daemon.kill();
        let _ = daemon.wait();
    }

    pub(crate) fn node(&self, node: usize) -> &Daemon {
        self.nodes[node].as_ref().unwrap()
    }

    /// The nodes that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&node| self.nodes[node].is_some()).collect()
    }

    /// `tollkeeper ARGUMENTS --admin` a node, whether it has joined or not.
    pub(crate) fn tell(&self, node: usize, arguments: &[&str]) -> crate::support::Output {
        run(command(arguments).args(["--admin", &self.seats[node].admin.to_string()]))
    }

    /// What a node says of the cluster.
    pub(crate) fn status(&self, node: usize) -> Option<Value> {
        let output = self.tell(node, &["cluster", "status", "--json"]);
        (output.code == 0).then(|| output.json().remove(0))
    }

    /// Waits until something is so.
    pub(crate) fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            if began.elapsed() > PATIENCE {
                let all: Vec<Option<Value>> =
                    self.running().into_iter().map(|node| self.status(node)).collect();
                panic!("never: {what}; {all:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until each node that runs is ready to serve.
    pub(crate) fn await_ready(&self) {
        self.await_ready_of(&self.running());
    }

    /// Waits until these nodes are ready to serve.
    pub(crate) fn await_ready_of(&self, nodes: &[usize]) {
        for &node in nodes {
            let url = format!("http://{}/readyz", self.seats[node].admin);
            self.until("ready", |_| ureq::get(&url).call().is_ok().then_some(()));
        }
    }

    /// The node that leads, once one does and itself says so.
    pub(crate) fn leader(&self) -> usize {
        self.until("a leader", |fleet| {
            fleet
                .running()
                .into_iter()
                .find(|&node| fleet.status(node).is_some_and(|status| status["state"] == "leader"))
        })
    }

    /// A client of all nodes, which sends again what got no answer.
    pub(crate) async fn cluster_client(&self, deadline: Duration) -> Cluster {
        let addresses = self.seats.iter().map(|seat| seat.clients.to_string());
        Cluster::connect(addresses, options(deadline)).await.unwrap()
    }

    /// A client of a node.
    pub(crate) async fn client(&self, node: usize) -> Client {
        connect(self.seats[node].clients, Duration::from_secs(10)).await
    }
}

/// A client that tells what it was told.
pub(crate) async fn connect(address: SocketAddr, deadline: Duration) -> Client {
    Client::connect(address.to_string(), options(deadline)).await.unwrap()
}

fn options(deadline: Duration) -> Options {
    Options {
        deadline,
        backoff_max: Duration::from_millis(100),
        on_unavailable: OnUnavailable::Report,
        ..Options::default()
    }
}

/// The code that a server refused with.
pub(crate) fn code(error: &ClientError) -> Option<Code> {
    match error {
        ClientError::Refused(refused) => Some(refused.code),
        _ => None,
    }
}

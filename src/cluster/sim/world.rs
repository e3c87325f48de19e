//! The world: nodes, their network, clients and faults, moved on by one millisecond at a time from
//! one seed, all on one thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::cluster::host::Host;
use crate::disk::faulty;
use crate::engine::group::{Group, Performed, Undecided};
use crate::engine::table::Stamp;

use super::clients::{Client, Tally, policy_change};
use super::clock::{DRIFT_PPM_MAX, TICK_NANOS, True};
use super::faults::{Fault, Planned, plan};
use super::history::{Oracle, SharedOracle};
use super::invariants::{all_or_none, bound, kept, once, recovery};
use super::limits::{FIRST_POLICY, KEYS, Limit};
use super::network::Network;
use super::node::{Node, Up, id, member};
use super::random::Random;

/// Ticks of the phase in which things go wrong.
const FAULTY: u64 = 5_000;

/// The first of its ticks in which they do: a cluster has begun by then.
const FAULTY_FROM: u64 = 600;

/// Ticks that clients go on for at least when nothing goes wrong any more.
const HEALED: u64 = 1_000;

/// Ticks after which a fault that came to nothing is tried again.
const TRY_AGAIN_AFTER: u64 = 300;

const CLIENTS: usize = 8;

/// Ticks in which a disk has written whatever waited.
const SLOW_DISK: u64 = 200;

const YEAR_NANOS: u64 = 365 * 86_400 * 1_000_000_000;

pub(super) struct World {
    pub(super) tick: u64,
    pub(super) oracle: SharedOracle,
    pub(super) tally: Tally,
    now: True,
    random: Random,
    network: Network,
    nodes: Vec<Node>,
    plan: Vec<Planned>,
    /// What ends when.
    ends: Vec<(u64, End)>,
    /// The next node that votes loses power.
    is_voter_doomed: bool,
    policy: u64,
    healed_at: Option<u64>,
    /// Which nodes have decided what was asked after faults ended.
    decide: Vec<bool>,
    /// The tick in which the last of them did.
    recovered_at: Option<u64>,
    /// Nodes that stopped since their log could not be written.
    stops: u64,
    /// Snapshots that failed, or in the middle of which power was lost.
    struck: u64,
    /// Nodes that lost power when they had voted.
    voters_lost: u64,
}

enum End {
    Network,
    Cut(usize, usize),
}

/// What came of a run.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) nodes: usize,
    /// The hash of all that happened.
    pub(super) trace: u64,
    pub(super) events: u64,
    pub(super) entries: usize,
    pub(super) restores: u64,
    /// Ticks from the end of all faults until every node decided.
    pub(super) recovered_after: Option<u64>,
    pub(super) tally: Tally,
    pub(super) fired: BTreeMap<Fault, u64>,
    pub(super) verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Everything that was planned went wrong, and nothing broke.
    Held,
    /// Not all that was planned went wrong, so the run says nothing.
    Void(String),
    /// Something broke.
    Broken(String),
}

impl World {
    fn new(seed: u64, says_all: bool) -> Self {
        let mut random = Random::new(seed);
        let count = if random.in_thousand(250) { 5 } else { 3 };
        let network = Network::new(count, random.fork());
        let nodes = (0..count)
            .map(|number| {
                let drift = random.between(0, 2 * DRIFT_PPM_MAX) as i64 - DRIFT_PPM_MAX as i64;
                Node::new(number, random.fork(), drift)
            })
            .collect();
        let plan = plan(&mut random, FAULTY_FROM, FAULTY);
        Self {
            tick: 0,
            oracle: Arc::new(Mutex::new(Oracle::new(count, says_all))),
            tally: Tally::default(),
            now: Arc::new(AtomicU64::new(0)),
            random,
            network,
            nodes,
            plan,
            ends: Vec::new(),
            is_voter_doomed: false,
            policy: FIRST_POLICY,
            healed_at: None,
            decide: vec![false; count],
            recovered_at: None,
            stops: 0,
            struck: 0,
            voters_lost: 0,
        }
    }

    // For clients.

    pub(super) fn nanos(&self) -> u64 {
        self.tick * TICK_NANOS
    }

    pub(super) fn boot(&self, node: usize) -> u64 {
        self.nodes[node].boot
    }

    /// A node that is up, and not paused.
    pub(super) fn some_up(&self, random: &mut Random) -> Option<usize> {
        let up = self.nodes.iter().filter(|node| node.up.is_some() && node.paused_until.is_none());
        let up: Vec<usize> = up.map(|node| node.number).collect();
        random.pick(&up)
    }

    fn up(&self, node: usize) -> &Up {
        self.nodes[node].up.as_ref().unwrap()
    }

    pub(super) fn policy_at(&self, node: usize) -> u64 {
        self.up(node).host.policy_version()
    }

    pub(super) fn ask(
        &self,
        node: usize,
        group: &Group,
        policy: u64,
    ) -> oneshot::Receiver<Result<Performed, Undecided>> {
        self.up(node).running.origin.perform(group, policy, None)
    }

    /// A node decided what was asked at that time.
    pub(super) fn decided(&mut self, node: usize, called_at: u64) {
        if self.healed_at.is_some_and(|healed_at| called_at >= healed_at * TICK_NANOS) {
            self.decide[node] = true;
            if !self.decide.contains(&false) {
                self.recovered_at.get_or_insert(self.tick);
            }
        }
    }

    // The run.

    fn note(&self, words: &[u64], what: impl FnOnce() -> String) {
        self.oracle.lock().unwrap().note(what, words);
    }

    fn start(&mut self, node: usize) {
        let started = self.nodes[node].start(&self.network, &self.now, &self.oracle);
        self.note(&[5, node as u64], || format!("node {node} starts"));
        self.oracle.lock().unwrap().hold(started);
    }

    fn crash(&mut self, node: usize, down: u64) {
        self.note(&[6, node as u64], || format!("node {node} loses power for {down} ms"));
        self.nodes[node].crash(&self.network);
        self.nodes[node].down_until = self.tick + down;
    }

    fn leader(&self) -> Option<usize> {
        let leads = |node: &&Node| {
            node.paused_until.is_none()
                && node.up.as_ref().is_some_and(|up| up.running.raft.is_leader())
        };
        self.nodes.iter().find(leads).map(|node| node.number)
    }

    fn is_broken(&self) -> bool {
        self.oracle.lock().unwrap().broken.is_some()
    }

    /// One millisecond.
    fn step(&mut self, clients: &mut [Client], asks: bool) {
        self.tick += 1;
        self.now.store(self.nanos(), Ordering::Relaxed);
        self.oracle.lock().unwrap().now = self.nanos();
        self.network.tick(self.tick);
        self.end_faults();
        if self.healed_at.is_none() {
            self.fire_faults();
        }
        for client in clients {
            client.step(self, asks);
        }
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        self.random.shuffle(&mut order);
        for number in order {
            let votes = self.oracle.lock().unwrap().votes.of(number);
            let node = &mut self.nodes[number];
            let Some(up) = &node.up else {
                if node.down_until <= self.tick {
                    self.start(number);
                }
                continue;
            };
            match node.paused_until {
                Some(until) if until > self.tick => {
                    node.owed += 1;
                    continue;
                }
                _ => node.paused_until = None,
            }
            up.run(core::mem::take(&mut node.owed));
            if let (Some(log_id), Some(state)) =
                (up.running.origin.applied().log_id, up.host.last())
            {
                self.oracle.lock().unwrap().reached(number, log_id.index, state);
            }
            self.struck += u64::from(node.home.has_struck());
            if node.home.is_off() {
                let down = self.random.between(1, 500);
                self.crash(number, down);
                continue;
            }
            if up.has_failed.load(Ordering::Relaxed) {
                self.stops += 1;
                let down = self.random.between(50, 500);
                self.crash(number, down);
                continue;
            }
            let voted = self.oracle.lock().unwrap().votes.of(number);
            let voted_for_other = voted != votes
                && voted.is_some_and(|vote| vote.node != id(number) && !vote.is_committed);
            if self.is_voter_doomed && voted_for_other {
                self.is_voter_doomed = false;
                self.voters_lost += 1;
                let down = self.random.between(1, 30);
                self.crash(number, down);
            }
        }
    }

    fn end_faults(&mut self) {
        let tick = self.tick;
        for (_, end) in self.ends.extract_if(.., |(at, _)| *at <= tick) {
            match end {
                End::Network => {
                    self.network.set_latency(1, 2);
                    self.network.set_loss(0);
                }
                End::Cut(from, to) => self.network.mend(from, to),
            }
        }
    }

    fn fire_faults(&mut self) {
        for place in 0..self.plan.len() {
            let Planned { at, fault, has_fired, armed } = self.plan[place];
            let passed = self.came_to_pass(fault);
            if let (Some((_, before)), Some(passed)) = (armed, passed)
                && passed > before
            {
                self.plan[place].has_fired = true;
                continue;
            }
            let is_waiting = armed.is_some_and(|(at, _)| self.tick < at + TRY_AGAIN_AFTER);
            if at > self.tick || has_fired || is_waiting || !self.fire(fault) {
                continue;
            }
            self.note(&[7, fault as u64], || format!("fault: {fault:?}"));
            match passed {
                Some(before) => self.plan[place].armed = Some((self.tick, before)),
                None => self.plan[place].has_fired = true,
            }
        }
    }

    /// Of faults that may yet come to nothing: how often such a fault came to pass.
    fn came_to_pass(&self, fault: Fault) -> Option<u64> {
        match fault {
            Fault::DiskFails | Fault::CrashWriting => Some(self.stops),
            Fault::SnapshotFails | Fault::CrashSnapshot => Some(self.struck),
            Fault::CrashVoter => Some(self.voters_lost),
            Fault::Policy => Some(self.oracle.lock().unwrap().policies.switches() as u64),
            _ => None,
        }
    }

    /// Has something go wrong, if it can now.
    fn fire(&mut self, fault: Fault) -> bool {
        let mut random = self.random.fork();
        let Some(some) = self.some_up(&mut random) else { return false };
        let count = self.nodes.len();
        let until = self.tick + random.between(100, 900);
        match fault {
            Fault::Slow => {
                let most = random.between(5, 120);
                self.network.set_latency(1, most);
                self.ends.push((until, End::Network));
            }
            Fault::Loss => {
                self.network.set_loss(random.between(50, 400));
                self.ends.push((until, End::Network));
            }
            Fault::Split => {
                let side = random.between(1, (1 << count) - 2);
                let is_in = |node: usize| side >> node & 1 == 1;
                self.split(is_in, until);
            }
            Fault::SplitLeader => {
                let Some(leader) = self.leader() else { return false };
                self.split(|node| node == leader, until);
            }
            Fault::OneWay => {
                let to = (some + random.between(1, count as u64 - 1) as usize) % count;
                self.network.cut(some, to);
                self.ends.push((until, End::Cut(some, to)));
            }
            Fault::Reset => {
                let to = (some + random.between(1, count as u64 - 1) as usize) % count;
                self.network.reset(some, to);
            }
            Fault::Crash => self.crash(some, random.between(20, 800)),
            Fault::CrashLeader => {
                let Some(leader) = self.leader() else { return false };
                self.crash(leader, random.between(5, 800));
            }
            Fault::CrashAll => {
                for node in 0..count {
                    if self.nodes[node].up.is_some() {
                        self.crash(node, random.between(1, 300));
                    }
                }
            }
            Fault::CrashVoter => {
                let Some(leader) = self.leader() else { return false };
                self.crash(leader, random.between(20, 400));
                self.is_voter_doomed = true;
            }
            Fault::Pause => self.nodes[some].paused_until = Some(until),
            Fault::PauseLeader => {
                let Some(leader) = self.leader() else { return false };
                self.nodes[leader].paused_until = Some(until);
            }
            Fault::Step => self.step_wall(some, &mut random),
            Fault::StepAll => (0..count).for_each(|node| self.step_wall(node, &mut random)),
            Fault::DiskFails => {
                let log = &self.nodes[some].log;
                let at = log.operations() + random.between(1, 6) as usize;
                log.set_fault(faulty::Fault::Fail { at });
            }
            Fault::CrashWriting => {
                let log = &self.nodes[some].log;
                let at = log.operations() + random.between(1, 8) as usize;
                log.set_fault(faulty::Fault::Crash { at });
            }
            Fault::Snapshot => self.snapshot(some),
            Fault::SnapshotFails | Fault::CrashSnapshot => {
                let home = &self.nodes[some].home;
                let at = home.operations() + random.below(6) as usize;
                home.set_fault(if fault == Fault::SnapshotFails {
                    faulty::Fault::Fail { at }
                } else {
                    faulty::Fault::Crash { at }
                });
                self.snapshot(some);
            }
            Fault::Policy => {
                let Some(leader) = self.leader() else { return false };
                self.policy += 1;
                let change = policy_change(self.policy);
                drop(self.up(leader).running.origin.change(change));
            }
            Fault::Away => {
                // The others take snapshots meanwhile, and purge.
                self.crash(some, random.between(900, 1500));
                for node in self.nodes.iter().filter(|node| node.up.is_some()) {
                    let up = self.up(node.number);
                    let running = Arc::clone(&up.running);
                    up.spawn(async move {
                        tokio::time::sleep(core::time::Duration::from_millis(800)).await;
                        let _ = running.snapshot().await;
                    });
                }
            }
        }
        true
    }

    fn snapshot(&self, node: usize) {
        let up = self.up(node);
        let running = Arc::clone(&up.running);
        up.spawn(async move { _ = running.snapshot().await });
    }

    fn split(&mut self, is_in: impl Fn(usize) -> bool, until: u64) {
        for from in 0..self.nodes.len() {
            for to in (0..self.nodes.len()).filter(|to| is_in(from) != is_in(*to)) {
                self.network.cut(from, to);
                self.ends.push((until, End::Cut(from, to)));
            }
        }
    }

    fn step_wall(&mut self, node: usize, random: &mut Random) {
        let most = [1_000_000_000, 3_600_000_000_000, 10 * YEAR_NANOS];
        let most = random.pick(&most).unwrap();
        let step = random.between(0, 2 * most) as i64 - most as i64;
        self.nodes[node].wall_off.fetch_add(step, Ordering::Relaxed);
    }

    /// Nothing goes wrong any more.
    fn heal(&mut self) {
        self.healed_at = Some(self.tick);
        self.note(&[8], || "all faults end".to_owned());
        self.network.heal();
        self.ends.clear();
        for node in &mut self.nodes {
            node.paused_until = None;
            node.down_until = 0;
            node.log.set_fault(faulty::Fault::None);
            node.home.set_fault(faulty::Fault::None);
        }
    }

    /// What was planned and did not come to be.
    fn missing(&self) -> Vec<String> {
        let befell = self.network.befell();
        let plans =
            |faults: &[Fault]| self.plan.iter().any(|planned| faults.contains(&planned.fault));
        let never = self.plan.iter().filter(|planned| !planned.has_fired);
        let mut missing: Vec<String> =
            never.map(|planned| format!("{:?}", planned.fault)).collect();
        let mut demand = |is_there: bool, what: &str| {
            if !is_there {
                missing.push(what.to_owned());
            }
        };
        let cuts = [Fault::Split, Fault::SplitLeader, Fault::OneWay];
        demand(!plans(&[Fault::Loss]) || befell.lost > 0, "nothing was lost");
        demand(!plans(&cuts) || befell.held > 0, "no cut held anything up");
        demand(!plans(&[Fault::Reset]) || befell.broken > 0, "no connection broke");
        demand(self.tally.allowed > 0 && self.tally.denied > 0, "nothing was decided");
        missing
    }

    /// What must hold once all is over.
    fn check_all(&self) -> Result<(), String> {
        let oracle = self.oracle.lock().unwrap();
        oracle.policies.check()?;
        oracle.permits.check()?;
        let keys = (0..KEYS).map(Limit::PerKey);
        let bounded = [Limit::Hot, Limit::Sliding, Limit::DayBucket, Limit::Day];
        for limit in bounded.into_iter().chain(keys) {
            bound::check(limit, &oracle.done)?;
        }
        for node in &self.nodes {
            let Some(up) = &node.up else { continue };
            let (table, now) = (up.host.table(), up.running.origin.applied().now);
            let used = |limit: Limit| {
                let mut readings = Vec::new();
                let charges = [limit.charge(0)];
                let peeked = table.pin().peek(&charges, &mut Stamp::new(|| now), &mut readings);
                peeked.map_err(|refusal| refusal.to_string())?;
                readings[0].fill.used().ok_or_else(|| "the counter counts nothing".to_owned())
            };
            all_or_none::check(used(Limit::TwinBefore)?, used(Limit::TwinBehind)?)?;
            for limit in [Limit::Kept, Limit::TwinBefore, Limit::TwinBehind, Limit::Day] {
                kept::check(limit, used(limit)?, &oracle.done)?;
            }
            once::check(used(Limit::Once)?, &oracle.once)?;
        }
        Ok(())
    }

    fn applied(&self) -> Vec<u64> {
        let applied = |node: &Node| {
            let up = node.up.as_ref()?;
            Some(up.running.origin.applied().log_id.map_or(0, |log_id| log_id.index))
        };
        self.nodes.iter().map(|node| applied(node).unwrap_or_default()).collect()
    }

    fn go(&mut self, clients: &mut [Client]) -> Result<(), String> {
        (0..self.nodes.len()).for_each(|node| self.start(node));
        let members = (0..self.nodes.len()).map(|node| (id(node), member(node))).collect();
        if let Some(up) = &self.nodes[0].up {
            let running = Arc::clone(&up.running);
            up.spawn(async move { _ = running.initialize(members).await });
        }
        let broken = |world: &Self| match &world.oracle.lock().unwrap().broken {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        };
        while self.tick < FAULTY && !self.is_broken() {
            self.step(clients, true);
        }
        broken(self)?;
        self.heal();
        let healed_at = self.tick;
        while !self.is_broken()
            && self.tick < healed_at + recovery::DECIDES_WITHIN
            && (self.tick < healed_at + HEALED || self.decide.contains(&false))
        {
            self.step(clients, true);
        }
        broken(self)?;
        recovery::decides(&self.decide)?;
        let until = self.tick + recovery::SETTLES_WITHIN;
        let waiting =
            |clients: &[Client]| clients.iter().filter(|client| !client.is_done()).count();
        while !self.is_broken()
            && self.tick < until
            && recovery::settles(&self.applied(), waiting(clients)).is_err()
        {
            self.step(clients, false);
        }
        broken(self)?;
        recovery::settles(&self.applied(), waiting(clients))?;
        self.check_all()?;
        self.check_replay()
    }

    /// What a node's log comes to when it is replayed is what the node has come to.
    fn check_replay(&mut self) -> Result<(), String> {
        let number = self.random.below(self.nodes.len() as u64) as usize;
        // What a majority has is applied, whether or not its own disk is so far.
        let up = self.up(number);
        let applied = up.running.origin.applied().log_id.map(|log_id| log_id.index);
        let expected = (applied, up.host.last());
        (0..SLOW_DISK).for_each(|_| self.step(&mut [], false));
        let replayed = self.nodes[number].replay(applied, &self.oracle)?;
        if replayed != expected {
            return Err(format!(
                "node {number} has {expected:x?}, and its log comes to {replayed:x?}"
            ));
        }
        match &self.oracle.lock().unwrap().broken {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        }
    }
}

/// Runs a seed on this thread, with the faults that it draws or with these.
pub(super) fn run(seed: u64, plan: Option<Vec<Planned>>, says_all: bool) -> Report {
    super::runtime::begin(seed);
    let mut world = World::new(seed, says_all);
    world.plan = plan.unwrap_or(world.plan);
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|number| Client::new(number, world.random.fork())).collect();
    let gone = world.go(&mut clients);
    let missing = world.missing();
    let verdict = match gone {
        Err(why) => Verdict::Broken(why),
        Ok(()) if !missing.is_empty() => Verdict::Void(missing.join(", ")),
        Ok(()) => Verdict::Held,
    };
    let mut fired = BTreeMap::new();
    for planned in world.plan.iter().filter(|planned| planned.has_fired) {
        *fired.entry(planned.fault).or_default() += 1;
    }
    let oracle = world.oracle.lock().unwrap();
    Report {
        seed,
        nodes: world.nodes.len(),
        trace: oracle.trace(),
        events: oracle.events,
        entries: oracle.same_state.entries(),
        restores: oracle.restores,
        recovered_after: world.recovered_at.zip(world.healed_at).map(|(at, from)| at - from),
        tally: world.tally,
        fired,
        verdict,
    }
}

//! Looks into the data directory of a node that is down: what its log has, and what comes of it
//! when it is replayed. Changes nothing there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use crate::cluster::{Audit, Plan, Replayed, SharedHome, Tag, replay};
use crate::config;
use crate::disk::log::{Position, Stored, Tail, Vote};
use crate::disk::{Directory, DiskError, Home, LimitName, boot_id, name_of};
use crate::doors::{Instance, Loaded};
use crate::engine::command::{Charge, LimitId};
use crate::engine::decision::Verdict;
use crate::engine::group::{Command, Group, Outcome, Performed};
use crate::engine::key::Seed;
use crate::engine::table::Table;
use crate::engine::time::{Timestamp, UtcTime};
use crate::node::keeper::limit_names;
use crate::node::{StartError, load_policy};

use super::host::InstanceHost;
use super::joined::Joined;
use super::{LOG, system};

/// What is done with each command that is replayed.
pub type EachLine = Box<dyn FnMut(Line) + Send + Sync>;

/// What is looked for.
#[derive(Default)]
pub struct Inspection {
    /// Up to which entry the log is replayed; `None`: the last one that was noted as committed.
    pub to: Option<u64>,
    /// Is given each command.
    pub each: Option<EachLine>,
}

/// A command, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The index of its entry.
    pub index: u64,
    /// How many commands of the entry came before it: answers carry both.
    pub position: u32,
    /// What was asked.
    pub command: &'static str,
    /// What came of it.
    pub outcome: &'static str,
    /// The limits that apply to it, by name, and how many units of each it asked for.
    pub charges: Vec<(String, u64)>,
}

/// What was found.
pub struct Inspected {
    /// The node.
    pub node: u64,
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's id.
    pub id: String,
    /// Segments of the log, and their bytes.
    pub segments: (usize, u64),
    /// Records that were ever written.
    pub records: u64,
    /// The index of the first entry.
    pub first: Option<u64>,
    /// The last entry, or the last one purged.
    pub last: Option<Position>,
    /// The last entry purged.
    pub purged: Option<Position>,
    /// The last entry that was noted as committed.
    pub committed: Option<Position>,
    /// The last vote.
    pub vote: Option<Vote>,
    /// What the next start will cut off: the file, behind how many bytes, what is there.
    pub cut: Option<(String, u64, String)>,
    /// Whether the end of the log may be gone, so that the node does not start.
    pub may_be_short: bool,
    /// What the replay came to.
    pub replayed: Replayed,
    /// Commands that were replayed.
    pub commands: Commands,
    /// Of each limit that some check met.
    pub limits: Vec<LimitTotals>,
    /// Counters in the table at the end.
    pub keys: u64,
    /// The version of the policy in force at the end.
    pub policy: u64,
}

/// Commands by what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// Checks that were allowed.
    pub allowed: u64,
    /// Checks that were denied.
    pub denied: u64,
    /// Requests that were done before.
    pub repeated: u64,
    /// What the engine or the leader would not do, and request ids that cannot be judged.
    pub refused: u64,
    /// Amendments.
    pub amended: u64,
    /// Permits that were given back, or were gone.
    pub released: u64,
    /// Permits that were kept for longer, or were gone.
    pub renewed: u64,
    /// Sessions that were opened.
    pub opened: u64,
}

/// Checks of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitTotals {
    /// Its name.
    pub name: String,
    /// The name of its kind.
    pub kind: &'static str,
    /// Checks to which it applied.
    pub asked: u64,
    /// Those of them that were allowed.
    pub allowed: u64,
    /// Units that those asked for.
    pub units: u64,
}

/// Looks into a data directory.
///
/// # Errors
/// It is no node's, or in use; its log or a snapshot is damaged; an entry cannot be applied.
pub fn inspect(data: &Path, inspection: Inspection) -> Result<Inspected, StartError> {
    let Inspection { to, each } = inspection;
    let Some(Joined { identity, node, name, .. }) = Joined::read(data)? else {
        let source = std::io::Error::other(format!("{}: there is no file `node`", data.display()));
        return Err(StartError::System { what: "the data directory of a cluster's node", source });
    };
    let home = SharedHome::new(Mutex::new(Home::open(data, identity)?));
    let path = data.join(LOG);
    let storage = Directory::open(&path).map_err(|error| DiskError::Io {
        doing: "open the log's directory",
        path: path.display().to_string(),
        source: std::io::Error::other(format!("{error:?}")),
    })?;
    let boot = boot_id().map_err(system("boot id"))?;
    let log = Stored::read(&storage, &path.display().to_string(), identity.id, boot)?;
    let mut inspected = Inspected {
        node,
        cluster: name,
        id: name_of(identity.id),
        segments: (log.segments(), log.bytes()),
        records: log.records(),
        first: log.first(),
        last: log.last(),
        purged: log.purged(),
        committed: log.committed(),
        vote: log.vote(),
        cut: log.cut().map(|cut| (cut.path.clone(), cut.offset, cut.what.clone())),
        may_be_short: log.tail() == Tail::MayBeGone,
        replayed: Replayed::default(),
        commands: Commands::default(),
        limits: Vec::new(),
        keys: 0,
        policy: 0,
    };

    let seed = Seed::new(identity.seed);
    let (policy, origin) = load_policy(None, &seed)?;
    // As many as any node may have had: the leader alone refuses for want of room, and has.
    let table = Table::new(config::KEYS_MAX_HIGHEST, &seed);
    table.keep_caps_elsewhere();
    let loaded = Loaded::new(policy, origin, UtcTime::default());
    let clock = Clock::start_at(Timestamp::from_nanos(1));
    let instance = Instance::with_table(table, 1, identity.id, &seed, clock, loaded)
        .map_err(|error| StartError::Policy(error.to_string()))?;
    let keys_max = config::KEYS_MAX_HIGHEST;
    let host = InstanceHost::new(Arc::clone(&instance), identity, seed, keys_max);
    let auditor = Arc::new(Auditor {
        instance: Arc::clone(&instance),
        found: Mutex::new(Found { each, ..Found::default() }),
    });
    let host = Arc::new(host.audited(Arc::clone(&auditor) as Arc<dyn Audit>));
    let plan = Plan { node, home, log, host, to };
    inspected.replayed = replay(plan).map_err(system("the log"))?;

    let names = names_of(&instance);
    let Found { commands, limits, .. } =
        core::mem::take(&mut *auditor.found.lock().unwrap_or_else(PoisonError::into_inner));
    inspected.commands = commands;
    inspected.limits = limits
        .into_iter()
        .map(|(limit, Totals { asked, allowed, units })| {
            let (name, kind) = names.get(&limit).map_or_else(
                || (unnamed(limit), ""),
                |limit| (full_name(limit), limit.kind.name()),
            );
            LimitTotals { name, kind, asked, allowed, units }
        })
        .collect();
    inspected.keys = instance.table.load().usage().keys;
    inspected.policy = instance.policy.load().policy.version();
    Ok(inspected)
}

/// What was found so far.
#[derive(Default)]
struct Found {
    commands: Commands,
    limits: BTreeMap<LimitId, Totals>,
    names: BTreeMap<LimitId, LimitName>,
    each: Option<EachLine>,
}

#[derive(Clone, Copy, Default)]
struct Totals {
    asked: u64,
    allowed: u64,
    units: u64,
}

struct Auditor {
    instance: Arc<Instance>,
    found: Mutex<Found>,
}

impl Audit for Auditor {
    fn performed(&self, _: &Tag, group: &Group, performed: &Performed) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = 0;
        let outcomes = &performed.outcomes.list;
        for (place, (command, outcome)) in group.commands.iter().zip(outcomes).enumerate() {
            let charges = &group.charges[at..at + command.charges()];
            at += command.charges();
            found.note(command, outcome, charges);
            if let Some(mut each) = found.each.take() {
                let place = (performed.index, performed.position + place as u32);
                each(found.line(&self.instance, place, command, outcome, charges));
                found.each = Some(each);
            }
        }
    }
}

impl Found {
    fn note(&mut self, command: &Command, outcome: &Outcome, charges: &[Charge]) {
        let commands = &mut self.commands;
        let is_allowed = matches!(outcome, Outcome::Decided { decision, .. }
            if decision.verdict == Verdict::Allow);
        *match outcome {
            Outcome::Decided { .. } if is_allowed => &mut commands.allowed,
            Outcome::Decided { .. } => &mut commands.denied,
            Outcome::Repeated { .. } => &mut commands.repeated,
            Outcome::Amended(_) => &mut commands.amended,
            Outcome::Released(_) => &mut commands.released,
            Outcome::Renewed(_) => &mut commands.renewed,
            Outcome::Opened(_) => &mut commands.opened,
            Outcome::Refused(_)
            | Outcome::BadLease(_)
            | Outcome::NoSession(_)
            | Outcome::BadId(_) => &mut commands.refused,
        } += 1;
        if !matches!((command, outcome), (Command::Check { .. }, Outcome::Decided { .. })) {
            return;
        }
        for charge in charges {
            let totals = self.limits.entry(charge.limit).or_default();
            totals.asked += 1;
            totals.allowed += u64::from(is_allowed);
            totals.units += if is_allowed { charge.cost } else { 0 };
        }
    }

    fn line(
        &mut self,
        instance: &Instance,
        (index, position): (u64, u32),
        command: &Command,
        outcome: &Outcome,
        charges: &[Charge],
    ) -> Line {
        let command = match command {
            Command::Check { .. } => "check",
            Command::Amend { .. } => "amend",
            Command::Release(_) => "release",
            Command::Renew(..) => "renew",
            Command::Open => "session",
        };
        let outcome = match outcome {
            Outcome::Decided { decision, .. } => match decision.verdict {
                Verdict::Allow => "allow",
                Verdict::Deny => "deny",
            },
            Outcome::Repeated { .. } => "repeated",
            Outcome::Amended(_)
            | Outcome::Released(_)
            | Outcome::Renewed(_)
            | Outcome::Opened(_) => "done",
            Outcome::Refused(_)
            | Outcome::BadLease(_)
            | Outcome::NoSession(_)
            | Outcome::BadId(_) => "refused",
        };
        let charges =
            charges.iter().map(|charge| (self.name(instance, charge.limit), charge.cost)).collect();
        Line { index, position, command, outcome, charges }
    }

    fn name(&mut self, instance: &Instance, limit: LimitId) -> String {
        if limit != LimitId::INLINE && !self.names.contains_key(&limit) {
            // The log has brought a policy.
            self.names = names_of(instance);
        }
        self.names.get(&limit).map_or_else(|| unnamed(limit), full_name)
    }
}

/// All limits that ever had a number.
fn names_of(instance: &Instance) -> BTreeMap<LimitId, LimitName> {
    limit_names(&instance.numbers()).into_iter().map(|limit| (limit.id, limit)).collect()
}

fn full_name(limit: &LimitName) -> String {
    let LimitName { api, name, window, .. } = limit;
    let dot = if window.is_empty() { "" } else { "." };
    format!("{api}.{name}{dot}{window}")
}

fn unnamed(limit: LimitId) -> String {
    match limit {
        LimitId::INLINE => "inline".to_owned(),
        LimitId(number) => format!("limit {number}"),
    }
}

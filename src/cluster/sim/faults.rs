//! What goes wrong, and when: drawn from the seed, some kinds in a run and others not. A fault that
//! cannot be yet waits until it can; one that never could makes the run void.

use super::random::Random;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Fault {
    /// Everything takes longer on the way, each time another time.
    Slow,
    /// Much is lost on the way.
    Loss,
    /// Some nodes do not reach the others, nor these them.
    Split,
    /// The leader is split off.
    SplitLeader,
    /// A node does not reach another, but is reached.
    OneWay,
    /// All connections between two nodes break.
    Reset,
    /// A node loses power.
    Crash,
    /// The leader does.
    CrashLeader,
    /// All nodes do.
    CrashAll,
    /// The leader loses power, and the next node that votes does when it has.
    CrashVoter,
    /// A node does nothing for a while.
    Pause,
    /// The leader does nothing for a while.
    PauseLeader,
    /// A wall clock is set by up to ten years.
    Step,
    /// All wall clocks are.
    StepAll,
    /// A disk fails at one of the next operations, and its node stops.
    DiskFails,
    /// A node loses power at one of the next operations of its disk; a write has come half way.
    CrashWriting,
    /// A node takes a snapshot.
    Snapshot,
    /// A node takes a snapshot and its disk fails meanwhile.
    SnapshotFails,
    /// A node takes a snapshot and loses power meanwhile.
    CrashSnapshot,
    /// Another policy is put in force.
    Policy,
    /// A node is away for so long that the others have let go of what it needs.
    Away,
}

pub(super) const ALL: [Fault; 21] = [
    Fault::Slow,
    Fault::Loss,
    Fault::Split,
    Fault::SplitLeader,
    Fault::OneWay,
    Fault::Reset,
    Fault::Crash,
    Fault::CrashLeader,
    Fault::CrashAll,
    Fault::CrashVoter,
    Fault::Pause,
    Fault::PauseLeader,
    Fault::Step,
    Fault::StepAll,
    Fault::DiskFails,
    Fault::CrashWriting,
    Fault::Snapshot,
    Fault::SnapshotFails,
    Fault::CrashSnapshot,
    Fault::Policy,
    Fault::Away,
];

/// A fault to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) at: u64,
    pub(super) fault: Fault,
    pub(super) has_fired: bool,
    /// When it was last seen to, and how often such a fault had come to pass by then.
    pub(super) armed: Option<(u64, u64)>,
}

impl Planned {
    pub(super) const fn new(at: u64, fault: Fault) -> Self {
        Self { at, fault, has_fired: false, armed: None }
    }
}

/// Faults between two ticks, by time.
pub(super) fn plan(random: &mut Random, from: u64, to: u64) -> Vec<Planned> {
    let mut plan = Vec::new();
    for fault in ALL {
        if !random.in_thousand(400) {
            continue;
        }
        for _ in 0..random.between(1, 3) {
            // What waits for its moment needs time for it.
            let at = random.between(from, from + (to - from) * 3 / 4);
            plan.push(Planned::new(at, fault));
        }
    }
    if plan.is_empty() {
        plan.push(Planned::new(from, Fault::CrashLeader));
    }
    plan.sort_by_key(|planned| (planned.at, planned.fault));
    plan
}

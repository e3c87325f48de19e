//! Raft's state machine: applies the log to this node's table, by the same engine as a node that
//! decides by itself, and keeps snapshots of it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

use crate::disk::{Beside, Header, Home, Moment, rest};
use crate::engine::group::{Group, Outcomes, Performed, Undecided};
use crate::engine::mutant::{Mutant, planted};
use crate::engine::table::Table;
use crate::engine::time::{Now, Timestamp, UtcTime};

use super::aside::aside;
use super::counts::Counts;
use super::entry::{Record, What, decode_group};
use super::host::{Disk, Host, Readings, Restored};
use super::origin::{Origin, refusal_at};
use super::types::{
    Applied, Entry, LogEntry, LogId, Membership, Snapshot, SnapshotFile, SnapshotMeta, TypeConfig,
};
use super::wire;

/// The part of the counters that may change while a snapshot is written, as in `node`'s own.
const NOTED_PARTS: u64 = 2;

/// Fewest counters that may change meanwhile.
const NOTED_MIN: u64 = 65_536;

/// A node's snapshots, shared by who writes, who sends and who receives them.
pub type SharedHome<S> = Arc<Mutex<Home<S>>>;

/// Locks a home. Who panicked with it has left files that the next start removes.
pub(super) fn lock<S: Disk>(home: &SharedHome<S>) -> MutexGuard<'_, Home<S>> {
    home.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state machine of one node.
pub struct Machine<S: Disk> {
    host: Arc<dyn Host>,
    origin: Arc<Origin>,
    counts: Arc<Counts>,
    readings: Arc<dyn Readings>,
    home: SharedHome<S>,
    applied: Option<LogId>,
    membership: Membership,
    now: Now,
    group: Group,
    readings_of_one: Vec<crate::engine::decision::Reading>,
}

impl<S: Disk> Machine<S> {
    /// A machine that has applied nothing.
    pub fn new(
        host: Arc<dyn Host>,
        origin: Arc<Origin>,
        counts: Arc<Counts>,
        readings: Arc<dyn Readings>,
        home: SharedHome<S>,
    ) -> Self {
        Self {
            host,
            origin,
            counts,
            readings,
            home,
            applied: None,
            membership: Membership::default(),
            now: Now::default(),
            group: Group::default(),
            readings_of_one: Vec::new(),
        }
    }

    /// The last entry that was applied.
    pub(super) fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// The moment of the last entry that has one.
    pub(super) fn now(&self) -> Now {
        self.now
    }

    /// The members, as of the last entry that was applied.
    pub(super) fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Applies an entry, which is the next one.
    ///
    /// # Errors
    /// No node wrote such an entry.
    pub(super) fn apply_entry(&mut self, entry: LogEntry) -> io::Result<()> {
        let log_id = entry.log_id;
        let now = match entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(Entry(bytes)) => Some(self.apply_record(log_id, bytes)?),
            EntryPayload::Membership(membership) => {
                self.membership = Membership::new(Some(log_id), membership);
                None
            }
        };
        self.applied = Some(log_id);
        self.origin.applied_to(log_id, now);
        Ok(())
    }

    /// Takes over a snapshot of this node's home.
    ///
    /// # Errors
    /// It cannot be read, or does not fit.
    pub(super) fn take_over(&mut self, meta: &SnapshotMeta, number: u64) -> io::Result<()> {
        let (restored, now) = restore(&self.home, &*self.host, number)?;
        self.host.restore(restored).map_err(io::Error::other)?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.now = now;
        self.host.follow(now);
        self.origin.skipped_to(self.applied, now);
        Ok(())
    }

    /// Applies one of our entries. Its moment is returned.
    fn apply_record(&mut self, log_id: LogId, bytes: Bytes) -> io::Result<Now> {
        let record = Record::decode(bytes).map_err(|malformed| broken(log_id, &malformed))?;
        // A leader stamps later than all before it; were one not to, time would still not go back.
        self.now =
            Now { time: self.now.time.max(record.now.time), utc: self.now.utc.max(record.now.utc) };
        let now = self.now;
        match record.what {
            What::Groups(groups) => {
                let host = Arc::clone(&self.host);
                let table = host.table();
                let pinned = table.pin();
                let mut sessions = host.sessions().lock().unwrap_or_else(PoisonError::into_inner);
                let version = host.policy_version();
                let mut position = 0;
                for tagged in groups {
                    if tagged.policy != version && !planted(Mutant::StaleApplied) {
                        self.origin.performed(&tagged.tag, Err(Undecided::Stale));
                        continue;
                    }
                    decode_group(tagged.body, &mut self.group)
                        .map_err(|malformed| broken(log_id, &malformed))?;
                    let audit = host.audit();
                    let is_heard = audit.is_some() || self.origin.awaits(&tagged.tag);
                    let mut outcomes = is_heard.then(Outcomes::default);
                    self.group.perform(
                        &pinned,
                        &mut sessions,
                        now,
                        |place| refusal_at(&tagged.refused, place),
                        outcomes.as_mut(),
                        &mut self.readings_of_one,
                    );
                    if let Some(outcomes) = outcomes {
                        let performed = Performed { outcomes, index: log_id.index, position };
                        if let Some(audit) = audit {
                            audit.performed(&tagged.tag, &self.group, &performed);
                        }
                        self.origin.performed(&tagged.tag, Ok(performed));
                    } else {
                        self.origin.performed(&tagged.tag, Err(Undecided::Unknown));
                    }
                    position += self.group.commands.len() as u32;
                }
                self.counts.applied_commands(position.into());
            }
            What::Fence => {}
            What::Change { tag, change } => {
                let outcome = self.host.change(&change, now);
                self.origin.changed(&tag, outcome);
            }
            What::Checksum => {
                let hash = self.host.table().hash(now);
                // While a snapshot is written there is none, and that is no difference.
                if hash != 0 {
                    self.counts.note_checksum(log_id.index, hash);
                }
            }
        }
        self.host.follow(now);
        Ok(now)
    }
}

/// An entry that no node wrote: applying anything else in its place would make nodes differ.
fn broken(log_id: LogId, what: &dyn std::error::Error) -> io::Error {
    let message = format!("entry {} of the log cannot be applied: {what}", log_id.index);
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl<S: Disk> RaftStateMachine<TypeConfig> for Machine<S> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder<S>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.apply_entry(entry)?;
            if let Some(responder) = responder {
                responder.send(Applied);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Self::SnapshotBuilder> {
        Some(self.get_snapshot_builder().await)
    }

    /// The moment of a snapshot: between two entries, so exact at one index.
    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        let table = self.host.table();
        let noted_max = (table.usage().keys_max / NOTED_PARTS).max(NOTED_MIN);
        let moment = Moment::mark(table, noted_max);
        let meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        let identity = lock(&self.home).identity();
        let header = Header {
            instance: identity.id,
            seed: identity.seed,
            number: 0,
            time: self.now.time,
            utc: self.now.utc,
            wall: UtcTime::from_nanos(self.readings.read().wall),
            policy: 0,
            next_permit: moment.as_ref().map_or(0, Moment::next_permit),
            applied: self.applied.map_or((0, 0), |id| (id.index, id.leader_id.term)),
            sessions_opened: 0,
        };
        let (mut beside, opaque) = self.host.beside(header);
        beside.cluster = encode_manifest(&meta, &opaque);
        Builder { beside, moment, meta, home: Arc::clone(&self.home) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        self.take_over(meta, snapshot.number)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let home = lock(&self.home);
        let Some(number) = home.last() else { return Ok(None) };
        let meta = meta_of(&home, number)?;
        Ok(Some(Snapshot { meta, snapshot: SnapshotFile { number } }))
    }
}

/// What a snapshot says of itself to Raft.
///
/// # Errors
/// It cannot be read.
pub(super) fn meta_of<S: Disk>(home: &Home<S>, number: u64) -> io::Result<SnapshotMeta> {
    let verified = home.read(number).map_err(io::Error::other)?;
    decode_manifest(verified.cluster()).map(|(meta, _)| meta)
}

/// What a snapshot's cluster section says: its meta with its length before it, then what the host
/// keeps.
fn encode_manifest(meta: &SnapshotMeta, opaque: &[u8]) -> Vec<u8> {
    // A membership is bounded when it is proposed, so it is in bounds here.
    let meta = wire::encode_snapshot_meta(meta).unwrap_or_default();
    let mut out = Vec::with_capacity(4 + meta.len() + opaque.len());
    out.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    out.extend_from_slice(&meta);
    out.extend_from_slice(opaque);
    out
}

fn decode_manifest(bytes: &[u8]) -> io::Result<(SnapshotMeta, Bytes)> {
    let damaged = || io::Error::other("the snapshot's cluster section is cut off");
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (meta, opaque) = rest.split_at_checked(length).ok_or_else(damaged)?;
    let meta = wire::decode_snapshot_meta(meta).map_err(io::Error::other)?;
    Ok((meta, Bytes::copy_from_slice(opaque)))
}

/// Reads a snapshot into a table of its own, whole, before anything of it counts.
fn restore<S: Disk>(
    home: &SharedHome<S>,
    host: &dyn Host,
    number: u64,
) -> io::Result<(Restored, Now)> {
    let home = lock(home);
    let verified = home.read(number).map_err(io::Error::other)?;
    let header = verified.outline().header;
    let (_, opaque) = decode_manifest(verified.cluster())?;
    let mut table: Table = host.empty_table();
    // Limits have the same numbers at all nodes and for as long as the cluster lives.
    let loaded = verified.load(&mut table, |limit| Some(limit.id));
    loaded.map_err(|damage| io::Error::other(home.damaged(number, damage)))?;
    table.number_permits_from(header.next_permit);
    let now = Now {
        time: Timestamp::from_nanos(header.time.as_nanos()),
        utc: UtcTime::from_nanos(header.utc.as_nanos()),
    };
    let mut sessions = (header.sessions_opened, verified.sessions());
    if planted(Mutant::SessionsNotRestored) {
        sessions.1.clear();
    }
    Ok((Restored { table, sessions, opaque, now }, now))
}

/// Writes a snapshot whose moment has been marked.
pub struct Builder<S: Disk> {
    beside: Beside,
    moment: Option<Moment<Arc<Table>>>,
    meta: SnapshotMeta,
    home: SharedHome<S>,
}

impl<S: Disk> RaftSnapshotBuilder<TypeConfig> for Builder<S> {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        match self.write().await {
            Ok(number) => {
                Ok(Snapshot { meta: self.meta.clone(), snapshot: SnapshotFile { number } })
            }
            Err(error) => {
                // Raft ends with an error from here, and nothing is wrong with this node: its log
                // has everything, and keeps it until a later snapshot, which is due after as many
                // entries again. A meta of nothing says that there is no news.
                tracing::error!(%error, "no snapshot was taken; the log is kept until the next");
                Ok(Snapshot { meta: SnapshotMeta::default(), snapshot: SnapshotFile { number: 0 } })
            }
        }
    }
}

impl<S: Disk> Builder<S> {
    async fn write(&mut self) -> io::Result<u64> {
        let moment = self.moment.take();
        let moment = moment.ok_or_else(|| io::Error::other("another snapshot is being taken"))?;
        let home = Arc::clone(&self.home);
        let mut beside = Beside {
            header: self.beside.header,
            limits: core::mem::take(&mut self.beside.limits),
            sessions: core::mem::take(&mut self.beside.sessions),
            cluster: core::mem::take(&mut self.beside.cluster),
        };
        let written = aside(move || {
            // Nobody else needs the home for long: receiving a snapshot waits.
            let mut home = lock(&home);
            beside.header.number = home.next_number();
            let number = beside.header.number;
            home.write(&beside, moment, &mut rest()).map(|_| number)
        });
        written.await?.map_err(|error| io::Error::other(error.to_string()))
    }
}

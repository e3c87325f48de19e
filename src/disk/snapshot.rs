//! Writing a snapshot and restoring one.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Os;
use crate::engine::command::LimitId;
use crate::engine::permit::PermitId;
use crate::engine::session::{RequestId, SavedSession};
use crate::engine::table::{Counter, Found, Loader, Ready, Snapshot, Spent, Table, Walked};
use crate::engine::time::Nanos;

use super::layout::{
    Damage, Encoder, Header, LimitName, Outline, SECTION_BYTES, Section, SectionKind, Totals,
    kind_of, outline, put_counter, put_granted, put_limit, put_session, put_window,
};
use super::storage::{File, Storage};

/// Slots that are looked at before others get their turn: well below a millisecond's work.
const SLOTS_PER_STEP: usize = 4096;

/// Bytes after which what was written is synced, so that no sync has much to do.
const SYNC_BYTES: u64 = 16 << 20;

/// The shortest rest between two steps. The system's timers are no finer.
const REST_MIN: Duration = Duration::from_micros(50);

/// Longer than this a step only takes because the disk is slow, and then others have rested.
const REST_MAX: Duration = Duration::from_millis(2);

/// Threads that verify and load, at most.
const THREADS_MAX: usize = 8;

/// Why a snapshot was not written. The ones before it are as they were.
#[derive(Debug)]
pub enum WriteError {
    /// Operator: the operating system refuses.
    Io(io::Error),
    /// Operator: too many counters changed meanwhile.
    Spent {
        /// The most that may.
        noted_max: u64,
    },
    /// Us: what was written does not read back.
    Unreadable(Damage),
}

impl std::fmt::Display for WriteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Spent { noted_max } => {
                write!(f, "more than {noted_max} counters changed while it was taken")
            }
            Self::Unreadable(damage) => write!(f, "it does not read back: {damage}"),
        }
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Spent> for WriteError {
    fn from(Spent { noted_max }: Spent) -> Self {
        Self::Spent { noted_max }
    }
}

/// A table made ready for a snapshot, whose moment is yet to come.
pub struct Ahead<T: Deref<Target = Table>>(Ready<T>);

impl<T: Deref<Target = Table> + Clone> Ahead<T> {
    /// Makes a table ready. `None`: another snapshot is being written. The caller must not have
    /// entered the table, nor hold a lock that is waited for by somebody who has.
    pub fn of(table: T) -> Option<Self> {
        Ready::take(table).map(Self)
    }

    /// Marks this moment. Until its snapshot is written, at most `noted_max` counters may change
    /// that the writer has not come to. This waits for nobody.
    pub fn mark(self, noted_max: u64) -> Moment<T> {
        Moment(self.0.begin(noted_max))
    }
}

/// The moment of a snapshot that is yet to be written. Dropped, it is forgotten.
pub struct Moment<T: Deref<Target = Table>>(Snapshot<T>);

impl<T: Deref<Target = Table> + Clone> Moment<T> {
    /// Makes ready and marks this moment, see [`Ahead`].
    pub fn mark(table: T, noted_max: u64) -> Option<Self> {
        Ahead::of(table).map(|ahead| ahead.mark(noted_max))
    }
}

impl<T: Deref<Target = Table>> Moment<T> {
    /// From where on permits were numbered at this moment.
    pub fn next_permit(&self) -> u64 {
        self.0.next_permit()
    }
}

/// What goes into a snapshot beside the counters.
pub struct Beside {
    /// What it says of itself first.
    pub header: Header,
    /// Names of the limits that counters name by number.
    pub limits: Vec<LimitName>,
    /// Sessions.
    pub sessions: Vec<SavedSession>,
    /// What a cluster keeps beside its counters; empty without one.
    pub cluster: Vec<u8>,
}

/// Writes the snapshot of a moment into a new file, and syncs it. `pace` is called between steps
/// of work, and while threads are waited for, and should wait a little.
///
/// # Errors
/// See [`WriteError`]. The file may be there, in part.
pub(super) fn write<S: Storage, T: Deref<Target = Table>>(
    storage: &S,
    name: &str,
    beside: &Beside,
    Moment(mut snapshot): Moment<T>,
    pace: &mut dyn FnMut(),
) -> Result<Written, WriteError> {
    while !snapshot.is_settled() {
        pace();
    }
    let header = beside.header.encode();
    let mut file = storage.create(name)?;
    file.write_all(&header)?;
    let mut out = Sections { file, encoder: Encoder::begin(&header), unsynced: 0 };
    let mut limits = Pending::default();
    for limit in &beside.limits {
        limits.records += u32::from(put_limit(&mut limits.payload, limit));
    }
    out.put(SectionKind::Limits, false, &mut limits)?;
    let mut windows = Pending::default();
    for window in snapshot.windows() {
        put_window(&mut windows.payload, window);
        windows.records += 1;
    }
    out.put(SectionKind::Windows, false, &mut windows)?;
    let mut sessions = Pending::default();
    for session in &beside.sessions {
        put_session(&mut sessions.payload, session);
        sessions.records += 1;
    }
    out.put(SectionKind::Sessions, false, &mut sessions)?;
    let mut granted = Pending::default();
    for session in &beside.sessions {
        granted.records += put_granted(&mut granted.payload, session);
        if granted.payload.len() >= SECTION_BYTES {
            out.put(SectionKind::Granted, false, &mut granted)?;
        }
    }
    out.put(SectionKind::Granted, false, &mut granted)?;
    let records = u32::from(!beside.cluster.is_empty());
    let mut cluster = Pending { payload: beside.cluster.clone(), records };
    out.put(SectionKind::Cluster, false, &mut cluster)?;
    let mut pending = PendingCounters::default();
    loop {
        let walked = snapshot.walk(SLOTS_PER_STEP, |found, counter| pending.add(found, counter))?;
        pending.flush(if walked == Walked::All { 0 } else { SECTION_BYTES }, &mut out)?;
        if walked == Walked::All {
            break;
        }
        pace();
    }
    let noted = snapshot.noted();
    drop(snapshot);
    let (totals, end) = out.encoder.end();
    out.file.write_all(&end)?;
    out.file.sync()?;
    Ok(Written { totals, noted })
}

/// Rests between steps of work, each time as long as was worked since the last rest, so that
/// whoever needs the processor meanwhile waits for a step at most.
pub fn rest() -> impl FnMut() {
    let mut rested_at = Os::raw();
    move || {
        let worked = Duration::from_nanos(Os::raw().saturating_sub(rested_at));
        std::thread::sleep(worked.clamp(REST_MIN, REST_MAX));
        rested_at = Os::raw();
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// How much there is of everything.
    pub totals: Totals,
    /// Counters noted while it was written.
    pub noted: u64,
}

/// Sections on their way into a file.
struct Sections<F: File> {
    file: F,
    encoder: Encoder,
    unsynced: u64,
}

impl<F: File> Sections<F> {
    /// Writes a section, if there is anything in it.
    fn put(&mut self, kind: SectionKind, is_noted: bool, pending: &mut Pending) -> io::Result<()> {
        if pending.records == 0 {
            return Ok(());
        }
        let Pending { payload, records } = pending;
        self.file.write_all(&self.encoder.section(kind, is_noted, *records, payload))?;
        self.file.write_all(payload)?;
        self.unsynced += payload.len() as u64;
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.sync()?;
        }
        payload.clear();
        *records = 0;
        Ok(())
    }
}

/// Records that make up a section once there are enough of them.
#[derive(Default)]
struct Pending {
    payload: Vec<u8>,
    records: u32,
}

const COUNTER_KINDS: [SectionKind; 4] =
    [SectionKind::Narrow, SectionKind::Cells, SectionKind::Rings, SectionKind::Shares];

/// Pending sections of counters: of each kind those in place, and those noted.
#[derive(Default)]
struct PendingCounters([[Pending; COUNTER_KINDS.len()]; 2]);

impl PendingCounters {
    fn add(&mut self, found: Found, counter: &Counter<'_>) {
        let kind = kind_of(counter);
        let place = COUNTER_KINDS.iter().position(|known| *known == kind).unwrap_or_default();
        let pending = &mut self.0[usize::from(found == Found::Noted)][place];
        put_counter(&mut pending.payload, counter);
        pending.records += 1;
    }

    /// Writes those that have at least so many bytes.
    fn flush<F: File>(&mut self, bytes_min: usize, out: &mut Sections<F>) -> io::Result<()> {
        for (noted, kinds) in self.0.iter_mut().enumerate() {
            for (kind, pending) in COUNTER_KINDS.into_iter().zip(kinds) {
                if pending.payload.len() >= bytes_min {
                    out.put(kind, noted == 1, pending)?;
                }
            }
        }
        Ok(())
    }
}

/// A snapshot's bytes, of which every one has been verified.
pub struct Verified<B> {
    bytes: B,
    outline: Outline,
}

/// What came back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Counters and shares of permits.
    pub counters: u64,
    /// Of these, those whose limit the policy no longer has.
    pub of_unknown_limits: u64,
}

impl<B: Deref<Target = [u8]> + Sync> Verified<B> {
    /// Verifies all of a snapshot's bytes.
    ///
    /// # Errors
    /// The first damage found.
    pub fn verify(bytes: B) -> Result<Self, Damage> {
        let outline = outline(&bytes)?;
        in_parallel(&outline.sections, |section| section.verify(&bytes))?;
        Ok(Self { bytes, outline })
    }

    /// Its header, sections and counts.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// The names of its limits.
    ///
    /// # Errors
    /// A record that is none.
    pub fn limits(&self) -> Result<Vec<LimitName>, Damage> {
        let mut limits = Vec::new();
        for section in self.of(SectionKind::Limits) {
            limits.extend(section.limits(&self.bytes)?);
        }
        Ok(limits)
    }

    /// Its sessions, with the permits that their requests were given.
    pub fn sessions(&self) -> Vec<SavedSession> {
        let mut permits: BTreeMap<u64, Vec<(u64, PermitId)>> = BTreeMap::new();
        for section in self.of(SectionKind::Granted) {
            for (RequestId { session, sequence }, permit) in section.granted(&self.bytes) {
                permits.entry(session).or_default().push((sequence, permit));
            }
        }
        let of = |section: &Section| section.sessions(&self.bytes);
        let mut sessions: Vec<SavedSession> = self.of(SectionKind::Sessions).flat_map(of).collect();
        for session in &mut sessions {
            session.permits = permits.remove(&session.name).unwrap_or_default();
        }
        sessions
    }

    /// What a cluster keeps beside its counters; empty without one.
    pub fn cluster(&self) -> &[u8] {
        let section = self.of(SectionKind::Cluster).next();
        section.map_or(&[], |section| &self.bytes[section.payload.clone()])
    }

    /// Loads all counters into an empty table. `id_of` gives a limit's number in the policy now in
    /// force; counters of limits that it does not know are kept with the inline ones, where no
    /// request finds them, until they are fresh: a policy that comes back finds their debt.
    ///
    /// # Errors
    /// A record that no counter can be. The table is then of no use.
    pub fn load(
        &self,
        table: &mut Table,
        id_of: impl Fn(&LimitName) -> Option<LimitId>,
    ) -> Result<Loaded, Damage> {
        let names = self.limits()?;
        let most = names.iter().map(|limit| usize::from(limit.id.0) + 1).max().unwrap_or_default();
        let mut limits = vec![LimitId::INLINE; most];
        let mut is_known = vec![true; most];
        for name in &names {
            let id = id_of(name);
            let place = usize::from(name.id.0);
            (limits[place], is_known[place]) = (id.unwrap_or(LimitId::INLINE), id.is_some());
        }
        let windows: Vec<Nanos> = self
            .of(SectionKind::Windows)
            .flat_map(|section| section.windows(&self.bytes))
            .collect();
        table.reserve(self.outline.totals.counters());
        let table = &*table;
        let sections: Vec<Section> = self
            .outline
            .sections
            .iter()
            .filter(|section| COUNTER_KINDS.contains(&section.kind))
            .cloned()
            .collect();
        let sums = Mutex::new(Loaded::default());
        in_parallel(&sections, |section| {
            let loader = Loader::new(table, &limits, &windows);
            let mut loader = loader.map_err(|unfit| section.damage(0, unfit.to_string()))?;
            let mut loaded = Loaded::default();
            section.counters(&self.bytes, |counter| {
                let is_new = loader.load(counter).map_err(|unfit| unfit.0)?;
                loaded.counters += u64::from(is_new);
                let known = is_known.get(usize::from(counter.limit.0)).copied();
                let is_unknown = known.map_or(counter.limit != LimitId::INLINE, |known| !known);
                loaded.of_unknown_limits += u64::from(is_new && is_unknown);
                Ok(())
            })?;
            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            sums.counters += loaded.counters;
            sums.of_unknown_limits += loaded.of_unknown_limits;
            Ok(())
        })?;
        table.number_permits_from(self.outline.header.next_permit);
        Ok(sums.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn of(&self, kind: SectionKind) -> impl Iterator<Item = &Section> {
        self.outline.sections.iter().filter(move |section| section.kind == kind)
    }
}

/// Works on all sections, as many at a time as there are processors. Of several that are damaged
/// the first is told.
fn in_parallel(
    sections: &[Section],
    work: impl Fn(&Section) -> Result<(), Damage> + Sync,
) -> Result<(), Damage> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.min(THREADS_MAX).min(sections.len());
    if threads <= 1 {
        return sections.iter().try_for_each(work);
    }
    let (next, first) = (AtomicUsize::new(0), Mutex::new(None::<Damage>));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(section) = sections.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Err(damage) = work(section) else { continue };
                    let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|first| damage.offset < first.offset) {
                        *first = Some(damage);
                    }
                    // Enough is known.
                    next.store(sections.len(), Ordering::Relaxed);
                }
            });
        }
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

//! Opens a log: reads it, cuts off what was never finished, and makes sure of the rest.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::disk::error::DiskError;
use crate::disk::storage::{File, Storage};

use super::facts::Facts;
use super::held::{Points, Recent};
use super::layout::{Flaw, Mark, Record, SegmentHeader};
use super::replay::{ENDING, Place, Replayed, name_of, replay};
use super::shared::{Segment, Shared, State};
use super::writer::{MARK, UNFINISHED, Writer, create};
use super::{Cut, Durability, Log, Recovered, SEGMENT_BYTES_MIN, Settings, Tail};

/// Opens a log for whoever calls the writer by hand.
///
/// # Errors
/// See [`DiskError`]. Nothing was changed, but for files that were never finished.
pub fn begin<S: Storage>(
    storage: S,
    settings: Settings,
) -> Result<(Log<S>, Writer<S>, Recovered), DiskError> {
    let path = settings.path.clone();
    let failed = |doing, name: &str| {
        let path = if name.is_empty() { path.clone() } else { format!("{path}/{name}") };
        move |source| DiskError::Io { doing, path, source }
    };
    let segment_bytes = settings.segment_bytes.max(SEGMENT_BYTES_MIN);
    let names = storage.names().map_err(failed("list", ""))?;
    for name in names.iter().filter(|name| name.ends_with(UNFINISHED)) {
        storage.remove(name).map_err(failed("remove", name))?;
    }
    let old_mark = read_mark(&storage, &names, &path, settings.id)?;
    let is_short = old_mark.is_some_and(|mark| mark.may_be_short(settings.boot));
    let mark = Mark {
        id: settings.id,
        boot: settings.boot,
        segment: 0,
        floor: 0,
        is_weak: settings.durability != Durability::Always,
        is_short,
    };
    let mut numbers = numbers_of(&names);
    if numbers.is_empty() && old_mark.is_none() {
        let header = SegmentHeader {
            id: settings.id,
            number: 1,
            first_record: 1,
            bytes: segment_bytes,
            chain: 0,
            facts: Facts::default(),
        };
        create(&storage, &header).map_err(failed("create", &name_of(1)))?;
        numbers.push(1);
    }
    let needed = split_needed(&mut numbers);
    let segments = read_segments(&storage, needed, &path)?;
    let mut recent = Recent::new(settings.recent_bytes);
    let mut points = Points::default();
    let each = |place: Place, record: &Record, facts: &Facts| {
        follow(&mut recent, &mut points, place, record, facts);
    };
    let replayed = replay(&path, settings.id, old_mark, &segments, each)?;
    let Replayed { facts, header, next, torn, .. } = replayed;
    let (_, bytes) = segments.last().expect("there is one");
    let length = bytes.len() as u64;
    let unproven = bytes[replayed.unproven as usize..next.offset as usize].to_vec();
    // Nothing may be mapped while it is changed.
    drop(segments);
    let mut files = BTreeMap::new();
    for (number, seed, _) in &replayed.segments {
        let name = name_of(*number);
        let file = storage.open(&name).map_err(failed("open", &name))?;
        files.insert(*number, Arc::new(Segment { number: *number, seed: *seed, file }));
    }
    let active = Arc::clone(&files[&header.number]);
    let name = name_of(header.number);
    let mend = || -> io::Result<()> {
        let file = &active.file;
        if torn.is_some() {
            file.truncate(next.offset)?;
        }
        if torn.is_some() || length < header.bytes {
            file.allocate(header.bytes)?;
        }
        // If a sync failed before, the page cache has what the disk has not, and takes it for
        // written.
        file.write_all_at(&unproven, replayed.unproven)?;
        file.sync()?;
        storage.sync_names()
    };
    mend().map_err(failed("mend", &name))?;
    for number in numbers {
        let name = name_of(number);
        storage.remove(&name).map_err(failed("remove", &name))?;
    }
    let cut = torn.map(|what| Cut { path: format!("{path}/{name}"), offset: next.offset, what });
    let recovered = Recovered {
        records: next.record - 1,
        cut,
        tail: if is_short { Tail::MayBeGone } else { Tail::Whole },
    };
    let mut state = State::new(facts, recent, points, next.record);
    state.segments = files;
    let shared = Shared::new(state);
    let mut sealed: Vec<_> =
        replayed.segments.iter().map(|(number, _, highest)| (*number, *highest)).collect();
    let highest = sealed.pop().and_then(|(_, highest)| highest);
    let mut writer = Writer {
        storage,
        shared: Arc::clone(&shared),
        durability: settings.durability,
        segment_bytes,
        on_failure: settings.on_failure,
        mark,
        active,
        room: header.bytes,
        next,
        floor: next.record - 1,
        facts,
        sealed,
        highest,
        buffer: Vec::new(),
        written: Vec::new(),
    };
    let opened = writer.put_mark().and_then(|()| {
        writer.encode(&Record::Opened(settings.salt))?;
        writer.write()
    });
    opened.map_err(failed("write", &name))?;
    shared.lock().next_record = writer.next.record;
    let log = Log::new(shared, path, segment_bytes);
    Ok((log, writer, recovered))
}

/// The mark, if there is one.
pub(super) fn read_mark<S: Storage>(
    storage: &S,
    names: &[String],
    path: &str,
    id: [u8; 16],
) -> Result<Option<Mark>, DiskError> {
    if !names.iter().any(|name| name == MARK) {
        return Ok(None);
    }
    let bytes = storage.read(MARK).map_err(|source| DiskError::Io {
        doing: "read",
        path: format!("{path}/{MARK}"),
        source,
    })?;
    mark_of(&bytes, path, id).map(Some)
}

/// The numbers of all segments that there are, in order.
pub(super) fn numbers_of(names: &[String]) -> Vec<u64> {
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    numbers
}

/// Those that make the log; what stays behind is purged.
pub(super) fn split_needed(numbers: &mut Vec<u64>) -> Vec<u64> {
    // Of what is purged a removal may have been lost and the next one not.
    let gap = (1..numbers.len()).rev().find(|at| numbers[*at] != numbers[at - 1] + 1);
    numbers.split_off(gap.unwrap_or_default())
}

/// The bytes of these segments.
pub(super) fn read_segments<S: Storage>(
    storage: &S,
    numbers: Vec<u64>,
    path: &str,
) -> Result<Vec<(u64, S::Bytes)>, DiskError> {
    let read = |number| {
        let name = name_of(number);
        let bytes = storage.read(&name).map_err(|source| DiskError::Io {
            doing: "read",
            path: format!("{path}/{name}"),
            source,
        })?;
        Ok((number, bytes))
    };
    numbers.into_iter().map(read).collect()
}

fn mark_of(bytes: &[u8], path: &str, id: [u8; 16]) -> Result<Mark, DiskError> {
    let path = format!("{path}/{MARK}");
    match Mark::decode(bytes) {
        Ok(mark) if mark.id == id => Ok(mark),
        Ok(Mark { id: found, .. }) => Err(DiskError::OtherInstance { path, found, expected: id }),
        Err(Flaw::Damage(what)) => Err(DiskError::LogDamaged { path, offset: 0, what }),
        Err(Flaw::Version(found)) => Err(DiskError::LogVersion { path, found }),
    }
}

/// Keeps entries at hand as they are read. `facts` are what it comes to with this record.
fn follow(recent: &mut Recent, points: &mut Points, place: Place, record: &Record, facts: &Facts) {
    match record {
        Record::Entry(entry) => {
            points.push(entry.position.index, place);
            recent.push(place.record, entry.clone());
            recent.evict(place.record);
        }
        Record::Truncate(_) => {
            let next = facts.next().unwrap_or_default();
            points.truncate(next);
            recent.truncate(next);
        }
        Record::Purge(position) => {
            recent.purge(position.index);
            if facts.first().is_none() {
                points.clear();
            } else {
                points.purge(position.index);
            }
        }
        Record::Vote(_) | Record::Committed(_) | Record::Opened(_) => {}
    }
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(ENDING)?;
    let is_number = digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

//! What must never happen to a log: what was called back is gone, a vote goes back, an entry is
//! another one than was written, and a torn end is taken for lost data or lost data for a torn end.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use crate::disk::faulty::{Disk, Fault};
use crate::disk::storage::{File, Storage};
use crate::disk::{Directory, DiskError};

use super::layout::{Record, SEGMENT_HEADER_BYTES};
use super::replay::{name_of, replay};
use super::{
    Cut, Done, Durability, Entry, Log, Position, Recovered, SEGMENT_BYTES_MIN, Settings, Stored,
    Tail, Vote, Writer, begin,
};

const ID: [u8; 16] = *b"a log of a node.";
const BOOT: [u8; 16] = [1; 16];

const FIXTURE: &[u8] = include_bytes!("../../../tests/fixtures/log-1.log");
const FIXTURE_MARK: &[u8] = include_bytes!("../../../tests/fixtures/log-1.mark");

pub(super) fn settings(salt: u64) -> Settings {
    Settings {
        segment_bytes: SEGMENT_BYTES_MIN,
        recent_bytes: 1500,
        ..Settings::new(ID, "log".to_owned(), BOOT, salt)
    }
}

/// What is done to a log.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// So many entries of so many bytes.
    Append(usize, usize),
    Vote,
    /// Drops so many of the last entries.
    Truncate(u64),
    /// Drops so many of the first entries.
    Purge(u64),
    /// Goes on so far behind the last entry, as a snapshot from elsewhere makes it.
    Jump(u64),
    Note,
    Turn,
}

/// What a log should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plain {
    pub(super) vote: Option<Vote>,
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) purged: Option<Position>,
    pub(super) committed: Option<Position>,
    pub(super) term: u64,
}

impl Plain {
    pub(super) fn last(&self) -> Option<Position> {
        self.entries.values().last().map(|entry| entry.position).or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn entry(&self, bytes: usize) -> Entry {
        let position = Position { term: self.term, node: self.term % 3, index: self.next() };
        let byte = (position.index * 7 + self.term * 31) as u8;
        let payload = Bytes::from(vec![byte; bytes + (position.index % 11) as usize]);
        Entry { position, kind: byte, payload }
    }
}

/// As far as others can tell.
fn is_same(log: &Log<Disk>, plain: &Plain) -> Result<(), String> {
    let found = (log.vote(), log.purged(), log.committed(), log.first(), log.last());
    let first = plain.entries.keys().next().copied();
    let expected = (plain.vote, plain.purged, plain.committed, first, plain.last());
    if found != expected {
        return Err(format!("found {found:?}, expected {expected:?}"));
    }
    let entries = log.read(0..u64::MAX, usize::MAX).map_err(|error| error.to_string())?;
    if !entries.iter().eq(plain.entries.values()) {
        return Err(format!("{} entries, expected {}", entries.len(), plain.entries.len()));
    }
    Ok(())
}

/// A log in use, and what it should be after each record.
pub(super) struct Run {
    pub(super) log: Log<Disk>,
    writer: Writer<Disk>,
    pub(super) states: Vec<Plain>,
    /// States up to this one were called back.
    told: Arc<AtomicUsize>,
    failures: Arc<AtomicUsize>,
}

impl Run {
    pub(super) fn begin(disk: &Disk, settings: Settings, state: Plain) -> Result<Self, DiskError> {
        let (log, writer, _) = begin(disk.clone(), settings)?;
        let (told, failures) = (Arc::default(), Arc::default());
        Ok(Self { log, writer, states: vec![state], told, failures })
    }

    /// Is called back about all so far.
    fn done(&self, state: usize) -> Done {
        let (told, failures) = (Arc::clone(&self.told), Arc::clone(&self.failures));
        Box::new(move |outcome| {
            if outcome.is_err() {
                failures.fetch_add(1, Ordering::Relaxed);
                return;
            }
            assert_eq!(failures.load(Ordering::Relaxed), 0, "well again after an error");
            told.fetch_max(state, Ordering::Relaxed);
        })
    }

    pub(super) fn now(&self) -> &Plain {
        self.states.last().unwrap()
    }

    pub(super) fn act(&mut self, op: &Op) {
        let mut state = self.now().clone();
        match *op {
            Op::Append(count, bytes) => {
                let mut entries = Vec::new();
                for _ in 0..count {
                    let entry = state.entry(bytes);
                    state.entries.insert(entry.position.index, entry.clone());
                    entries.push(entry);
                    self.states.push(state.clone());
                }
                let done = self.done(self.states.len() - 1);
                self.log.append(entries, done);
            }
            Op::Vote => {
                state.term += 1;
                let vote =
                    Vote { term: state.term, node: 2, is_committed: state.term.is_multiple_of(2) };
                state.vote = Some(vote);
                self.states.push(state);
                let done = self.done(self.states.len() - 1);
                self.log.save_vote(vote, done);
            }
            Op::Truncate(count) => {
                for _ in 0..count {
                    state.entries.pop_last();
                }
                state.term += 1;
                self.log.truncate_after(state.last().map(|last| last.index)).unwrap();
                self.states.push(state);
            }
            Op::Purge(count) => {
                for _ in 0..count {
                    let first = state.entries.pop_first();
                    state.purged = first.map(|(_, entry)| entry.position).or(state.purged);
                }
                if let Some(purged) = state.purged {
                    self.log.purge_to(purged);
                    self.states.push(state);
                }
            }
            Op::Jump(ahead) => {
                let index = state.next() + ahead;
                let purged = Position { term: state.term, node: 1, index };
                state.entries.clear();
                state.purged = Some(purged);
                self.log.purge_to(purged);
                self.states.push(state);
            }
            Op::Note => {
                if let Some(last) = state.last() {
                    state.committed = Some(last);
                    self.log.note_committed(last);
                    self.states.push(state);
                }
            }
            Op::Turn => self.writer.turn(),
        }
    }

    /// The states that may be found after a loss of power.
    fn possible(&self) -> &[Plain] {
        &self.states[self.told.load(Ordering::Relaxed)..]
    }
}

/// Some of everything, over several segments.
fn script() -> Vec<Op> {
    use Op::*;
    vec![
        Vote,
        Turn,
        Append(3, 300),
        Turn,
        Note,
        Append(1, 700),
        Append(2, 0),
        Turn,
        Truncate(2),
        Append(2, 500),
        Vote,
        Turn,
        Note,
        Turn,
        Append(5, 600),
        Turn,
        Purge(6),
        Append(1, 90),
        Turn,
        Append(4, 900),
        Truncate(3),
        Turn,
        Append(3, 400),
        Turn,
        Vote,
        Purge(5),
        Turn,
        Append(2, 1000),
        Append(2, 1000),
        Turn,
        Jump(4),
        Turn,
        Append(2, 200),
        Turn,
    ]
}

fn play(disk: &Disk, ops: &[Op]) -> Option<Run> {
    let mut run = Run::begin(disk, settings(1), Plain::default()).ok()?;
    ops.iter().for_each(|op| run.act(op));
    Some(run)
}

/// Opens a log and tells which of the states it is in.
fn found(disk: &Disk, salt: u64, possible: &[Plain]) -> Plain {
    let (log, _, _) = begin(disk.clone(), settings(salt)).unwrap_or_else(|error| panic!("{error}"));
    let state = possible.iter().find(|state| is_same(&log, state).is_ok());
    state.cloned().unwrap_or_else(|| {
        let whys: Vec<_> = possible.iter().map(|state| is_same(&log, state)).collect();
        panic!("it is none of the possible ones: {whys:#?}")
    })
}

#[test]
fn the_script_does_what_it_should() {
    let disk = Disk::default();
    let run = play(&disk, &script()).unwrap();
    is_same(&run.log, run.now()).unwrap();
    assert_eq!(run.possible().len(), 1);
    let segments: Vec<_> =
        disk.names().unwrap().into_iter().filter(|name| name.ends_with(".log")).collect();
    // Some are used up, and some of these are purged.
    assert!(!segments.contains(&name_of(1)) && !segments.contains(&name_of(2)), "{segments:?}");
    drop(run);
    let again = play(&disk, &[]).unwrap();
    let last = disk.names().unwrap().into_iter().rfind(|name| name.ends_with(".log")).unwrap();
    assert!(last > name_of(4), "{last}");
    drop(again);
}

/// Whatever happens at whichever operation, and whatever a loss of power then leaves of what was
/// not synced: nothing that was called back is gone, and the log is as it was after some record.
/// It goes on from there, and a second loss of power, in the middle of opening it or later, leaves
/// what the first one left.
#[test]
fn a_crash_at_any_operation_loses_nothing_that_was_called_back() {
    const SEEDS: u64 = 10;
    let whole = Disk::default();
    drop(play(&whole, &script()).unwrap());
    let operations = whole.operations();
    assert!(operations > 90, "{operations}");
    let (mut cases, mut newer, mut cuts) = (0, 0, 0);
    for at in 0..operations {
        for fault in [Fault::Crash { at }, Fault::Fail { at }] {
            let disk = Disk::default();
            disk.set_fault(fault);
            let run = play(&disk, &script());
            let states = run.as_ref().map_or(vec![Plain::default()], |run| run.possible().to_vec());
            if let Some(run) = &run {
                let last = run.failures.load(Ordering::Relaxed);
                assert!(last > 0 || states.len() == 1, "nobody was told");
            }
            for seed in 0..SEEDS {
                let (_, _, recovered) = begin(disk.after_loss_of_power(seed), settings(2)).unwrap();
                cuts += u64::from(recovered.cut.is_some());
                let survivor = disk.after_loss_of_power(seed);
                // Power is lost once more while it is opened.
                survivor.set_fault(Fault::Crash { at: (seed * 7 + at as u64) as usize % 14 });
                drop(begin(survivor.clone(), settings(2)));
                let survivor = survivor.after_loss_of_power(seed + 1000);
                let state = found(&survivor, 3, &states);
                cases += 1;
                newer += u64::from(state != states[0]);
                let mut run = Run::begin(&survivor, settings(4), state.clone()).unwrap();
                run.act(&Op::Append(2, 100));
                run.act(&Op::Turn);
                run.act(&Op::Append(2, 100));
                run.act(&Op::Vote);
                run.act(&Op::Turn);
                assert_eq!(run.possible().len(), 1);
                found(&survivor.after_loss_of_power(seed + 2000), 5, run.possible());
            }
        }
    }
    // A run in which nothing was at stake proves nothing.
    assert!(newer > 0 && newer < cases && cuts > 100, "{newer} of {cases}, {cuts} cuts");
}

/// A sync that failed leaves pages that read well and are not on disk; no later sync writes them.
/// So whoever opens the log writes them again.
#[test]
fn what_is_found_after_a_failed_sync_is_on_disk_from_then_on() {
    let whole = Disk::default();
    drop(play(&whole, &script()).unwrap());
    for at in 0..whole.operations() {
        let disk = Disk::default();
        disk.set_fault(Fault::Fail { at });
        let run = play(&disk, &script());
        let states = run.as_ref().map_or(vec![Plain::default()], |run| run.possible().to_vec());
        let state = found(&disk, 2, &states);
        for seed in 0..6 {
            found(&disk.after_loss_of_power(seed), 3, std::slice::from_ref(&state));
        }
    }
}

/// After the first error nothing is written, everybody hears of it, once, and so does the hook.
#[test]
fn the_first_error_is_the_last_word() {
    let disk = Disk::default();
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&told);
    let on_failure: super::OnFailure =
        Box::new(move |error| hook.lock().unwrap().push(("hook", error.raw_os_error())));
    let settings = Settings { on_failure: Some(on_failure), ..settings(1) };
    let mut run = Run::begin(&disk, settings, Plain::default()).unwrap();
    run.act(&Op::Append(1, 10));
    run.act(&Op::Turn);
    // The write of the next turn succeeds, its sync does not.
    disk.set_fault(Fault::Fail { at: disk.operations() + 1 });
    for _ in 0..3 {
        let told = Arc::clone(&told);
        let entry = run.now().entry(10);
        run.states.push({
            let mut state = run.now().clone();
            state.entries.insert(entry.position.index, entry.clone());
            state
        });
        let done = move |outcome: io::Result<()>| {
            told.lock().unwrap().push(("append", outcome.unwrap_err().raw_os_error()));
        };
        run.log.append(vec![entry], Box::new(done));
    }
    run.act(&Op::Turn);
    let operations = disk.operations();
    run.act(&Op::Vote);
    run.act(&Op::Turn);
    run.writer.sync();
    assert_eq!(run.writer.close().unwrap_err().raw_os_error(), Some(5));
    run.act(&Op::Append(1, 10));
    assert_eq!(run.failures.load(Ordering::Relaxed), 2);
    assert_eq!(disk.operations(), operations);
    let told = told.lock().unwrap().clone();
    assert_eq!(told[0].0, "hook");
    assert_eq!(told[1..], [("append", Some(5)); 3]);
}

/// Whoever follows how far the log is on disk hears the newest first, and nothing twice.
#[test]
fn those_of_one_turn_are_called_from_the_last_to_the_first() {
    let mut run = Run::begin(&Disk::default(), settings(1), Plain::default()).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    for number in 0..6 {
        let told = Arc::clone(&told);
        let done: Done =
            Box::new(move |outcome| told.lock().unwrap().push((number, outcome.is_ok())));
        if number % 2 == 0 {
            let position = Position { term: 1, node: 1, index: number / 2 };
            run.log.append(vec![Entry { position, kind: 0, payload: Bytes::new() }], done);
        } else {
            run.log.save_vote(Vote { term: number, node: 1, is_committed: false }, done);
        }
        if number == 2 {
            run.act(&Op::Turn);
        }
    }
    run.act(&Op::Turn);
    run.act(&Op::Turn);
    assert_eq!(*told.lock().unwrap(), [2, 1, 0, 5, 4, 3].map(|number| (number, true)));
}

/// What waits goes out with one write and one sync, whatever it is.
#[test]
fn a_turn_is_one_write_and_one_sync() {
    let disk = Disk::default();
    let mut run = Run::begin(&disk, settings(1), Plain::default()).unwrap();
    run.act(&Op::Append(2, 10));
    run.act(&Op::Vote);
    run.act(&Op::Note);
    run.act(&Op::Append(2, 10));
    let before = disk.operations();
    run.act(&Op::Turn);
    assert_eq!(disk.operations(), before + 2);
    assert_eq!(run.possible().len(), 1);
    // Nobody waits for a note.
    run.act(&Op::Note);
    run.act(&Op::Turn);
    assert_eq!(disk.operations(), before + 3);
}

#[test]
fn what_cannot_be_is_refused_and_the_rest_goes_on() {
    let disk = Disk::default();
    let mut run = Run::begin(&disk, settings(1), Plain::default()).unwrap();
    run.act(&Op::Append(2, 10));
    let told = Arc::new(Mutex::new(Vec::new()));
    let wrong = |index, bytes| {
        let position = Position { term: 1, node: 1, index };
        let entry = Entry { position, kind: 0, payload: Bytes::from(vec![0; bytes]) };
        let told = Arc::clone(&told);
        let done = move |outcome: io::Result<()>| {
            let error = outcome.unwrap_err();
            told.lock().unwrap().push((error.kind(), error.to_string()));
        };
        run.log.append(vec![entry], Box::new(done));
    };
    wrong(5, 0);
    wrong(1, 0);
    wrong(2, SEGMENT_BYTES_MIN as usize);
    run.log.truncate_after(Some(7)).unwrap();
    run.act(&Op::Append(1, 10));
    run.act(&Op::Purge(2));
    let error = run.log.truncate_after(Some(0)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    run.act(&Op::Turn);
    is_same(&run.log, run.now()).unwrap();
    let told = told.lock().unwrap();
    assert!(told.iter().all(|(kind, _)| *kind == io::ErrorKind::InvalidInput));
    assert!(told[2].1.contains("entry 5 where 2 is the next"), "{told:?}");
    assert!(told[0].1.contains("entry 2 has 4096 bytes, allowed are 3880"), "{told:?}");
}

/// Takes what the disk holds now to another one, without a part of it.
fn copy(disk: &Disk, change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> Disk {
    let copy = Disk::default();
    for name in disk.names().unwrap() {
        if let Some(bytes) = change(&name, disk.read(&name).unwrap()) {
            copy.create(&name).unwrap().write_all_at(&bytes, 0).unwrap();
        }
    }
    copy
}

fn recovered(disk: &Disk) -> Result<Recovered, String> {
    begin(disk.clone(), settings(9)).map(|(_, _, recovered)| recovered).map_err(|e| e.to_string())
}

#[test]
fn lost_data_is_refused_and_a_torn_end_is_cut() {
    let disk = Disk::default();
    let mut run = Run::begin(&disk, settings(1), Plain::default()).unwrap();
    for _ in 0..3 {
        run.act(&Op::Append(2, 100));
        run.act(&Op::Turn);
    }
    let at = |record: u64| {
        let mut offset = None;
        let bytes = disk.read(&name_of(1)).unwrap();
        let each = |place: super::replay::Place, _: &Record, _: &super::facts::Facts| {
            if place.record == record {
                offset = Some(place.offset);
            }
        };
        replay("log", ID, None, &[(1, bytes)], each).unwrap();
        offset.unwrap()
    };
    let end = at(7) + 56 + 112;
    assert!(recovered(&copy(&disk, |_, bytes| Some(bytes))).unwrap().cut.is_none());
    // The last record of the last batch: nothing proves that it was ever on disk.
    let flipped = |record: u64, byte: u64| {
        let offset = (at(record) + byte) as usize;
        recovered(&copy(&disk, |name, mut bytes| {
            if name.ends_with(".log") {
                bytes[offset] ^= 4;
            }
            Some(bytes)
        }))
    };
    let Cut { path, offset, what } = flipped(7, 70).unwrap().cut.unwrap();
    assert_eq!((path, offset), ("log/000000000001.log".to_owned(), at(7)));
    assert!(what.contains("checksum is wrong"), "{what}");
    // Its length.
    assert!(flipped(7, 1).unwrap().cut.unwrap().what.contains("header"));
    // The last of the batch before, which the later ones say was on disk.
    for byte in [0, 2, 50, 54, 70] {
        let error = flipped(5, byte).unwrap_err();
        for part in [
            "log/000000000001.log is damaged at offset",
            &format!("offset {}", at(5)),
            "record 5, which was on disk",
            "record 7 at offset",
            "remove the node from the cluster",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
    // All that follows is gone, too.
    let zeroed = |from: u64| {
        recovered(&copy(&disk, |name, mut bytes| {
            if name.ends_with(".log") {
                bytes[from as usize..].fill(0);
            }
            Some(bytes)
        }))
    };
    assert_eq!(zeroed(end).unwrap().records, 8 - 1);
    assert_eq!(zeroed(at(6)).unwrap().records, 5);
    // Once it was left in order there is no doubt about its end.
    run.writer.close().unwrap();
    assert!(zeroed(at(7)).unwrap_err().contains("record 7, which was on disk: nothing is there"));
    assert!(flipped(7, 70).unwrap_err().contains("record 7"));
    let gone = recovered(&copy(&disk, |name, bytes| (name == "mark").then_some(bytes)));
    assert!(gone.unwrap_err().contains("000000000001.log is gone"));
}

#[test]
fn files_that_are_gone_or_of_others_are_refused() {
    let disk = Disk::default();
    let mut run = Run::begin(&disk, settings(1), Plain::default()).unwrap();
    for _ in 0..8 {
        run.act(&Op::Append(2, 900));
        run.act(&Op::Turn);
    }
    let last = (1..).take_while(|number| disk.read(&name_of(*number)).is_ok()).last().unwrap();
    assert!(last >= 4, "{last}");
    for number in 1..=last {
        let without = copy(&disk, |name, bytes| (name != name_of(number)).then_some(bytes));
        let error = recovered(&without).unwrap_err();
        assert!(error.contains(&format!("{} is gone", name_of(number))), "{error}");
        let header = copy(&disk, |name, mut bytes| {
            if name == name_of(number) {
                bytes[SEGMENT_HEADER_BYTES - 30] ^= 1;
            }
            Some(bytes)
        });
        let error = recovered(&header).unwrap_err();
        assert!(error.contains(&format!("{} is damaged at offset 0", name_of(number))), "{error}");
    }
    let other = Settings { id: [9; 16], ..settings(2) };
    let error = begin(disk.clone(), other).err().unwrap().to_string();
    assert!(error.contains("of instance"), "{error}");
    // A removal that was lost, when the next was not.
    run.act(&Op::Purge(13));
    run.act(&Op::Turn);
    assert!(disk.read(&name_of(2)).is_err());
    let left = copy(&disk, |_, bytes| Some(bytes));
    let old = run.now().clone();
    left.create(&name_of(1)).unwrap().write_all_at(b"whatever was in it", 0).unwrap();
    found(&left, 3, &[old]);
    assert!(left.read(&name_of(1)).is_err());
}

/// With every bit of a log flipped, one at a time: it is refused, or what comes out is what went
/// in, up to some record that nothing proves to have been on disk.
#[test]
fn no_flipped_bit_makes_another_entry() {
    let disk = Disk::default();
    let settings = Settings { segment_bytes: 16 << 10, ..settings(1) };
    let mut run = Run::begin(&disk, settings, Plain::default()).unwrap();
    run.act(&Op::Vote);
    while disk.read(&name_of(4)).is_err() {
        run.act(&Op::Append(3, 500));
        run.act(&Op::Note);
        run.act(&Op::Turn);
        run.act(&Op::Truncate(1));
    }
    for _ in 0..3 {
        run.act(&Op::Append(4, 300));
        run.act(&Op::Turn);
    }
    let mut segments: Vec<(u64, Vec<u8>)> =
        (1..=4).map(|number| (number, disk.read(&name_of(number)).unwrap())).collect();
    let mut expected = Vec::new();
    let whole = replay("log", ID, None, &segments, |_, record, _| expected.push(record.clone()));
    let whole = whole.unwrap();
    let (mut refused, mut cut, mut same) = (0_u64, 0_u64, 0_u64);
    for at in 0..segments.len() {
        for bit in 0..segments[at].1.len() * 8 {
            segments[at].1[bit / 8] ^= 1 << (bit % 8);
            let mut count = 0;
            let outcome = replay("log", ID, None, &segments, |_, record, _| {
                assert!(expected[count] == *record, "segment {}, bit {bit}", at + 1);
                count += 1;
            });
            match outcome {
                Err(_) => refused += 1,
                Ok(replayed) => {
                    assert_eq!(replayed.next.record, count as u64 + 1);
                    assert!(count as u64 >= whole.floor, "segment {}, bit {bit}", at + 1);
                    if count == expected.len() {
                        same += 1;
                    } else {
                        assert!(replayed.torn.is_some());
                        cut += 1;
                    }
                }
            }
            segments[at].1[bit / 8] ^= 1 << (bit % 8);
        }
    }
    assert_eq!(refused + cut + same, 8 << 16);
    assert!(refused > 300_000 && cut > 1000 && same > 0);
}

#[test]
fn in_the_weak_modes_nobody_waits_and_a_loss_of_power_is_told() {
    for durability in [Durability::Os, Durability::Interval(Duration::from_secs(1))] {
        let disk = Disk::default();
        let weak = |boot: u8| Settings { durability, boot: [boot; 16], ..settings(boot.into()) };
        let tail = |disk: &Disk, boot| {
            begin(disk.clone(), weak(boot)).map(|(_, writer, recovered)| (writer, recovered.tail))
        };
        let mut run = Run::begin(&disk, weak(1), Plain::default()).unwrap();
        let before = disk.operations();
        run.act(&Op::Append(2, 50));
        run.act(&Op::Vote);
        run.act(&Op::Turn);
        assert_eq!(run.possible().len(), 1);
        assert_eq!(disk.operations(), before + 1);
        // The process is killed: the page cache is there.
        assert_eq!(tail(&disk, 1).unwrap().1, Tail::Whole);
        // Power is lost, or so it seems.
        let lost = disk.after_loss_of_power(1);
        let (mut writer, found) = tail(&lost, 2).unwrap();
        assert_eq!(found, Tail::MayBeGone);
        // That is not forgotten, however it is left.
        writer.close().unwrap();
        assert_eq!(tail(&lost, 2).unwrap().1, Tail::MayBeGone);
        let always = Settings { boot: [3; 16], ..settings(3) };
        assert_eq!(begin(lost.clone(), always).unwrap().2.tail, Tail::MayBeGone);
        // Left in order it outlives a loss of power.
        run.act(&Op::Append(2, 50));
        run.writer.close().unwrap();
        let state = run.now().clone();
        let (disk, state) = (disk.after_loss_of_power(2), &[state]);
        assert_eq!(tail(&disk, 2).unwrap().1, Tail::Whole);
        found_in(&disk, state);
    }
}

fn found_in(disk: &Disk, states: &[Plain]) {
    found(disk, 77, states);
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0..5_usize, 0..900_usize).prop_map(|(count, bytes)| Op::Append(count, bytes)),
        1 => Just(Op::Vote),
        1 => (1..4_u64).prop_map(Op::Truncate),
        1 => (1..6_u64).prop_map(Op::Purge),
        1 => (0..3_u64).prop_map(Op::Jump),
        1 => Just(Op::Note),
        4 => Just(Op::Turn),
    ]
}

pub(super) fn ops() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is done, in whatever order, with memory for few entries or for none, and opened
    /// again at any moment: it reads as a plain list does.
    #[test]
    fn it_is_what_a_plain_list_is(
        ops in ops(),
        recent_bytes in prop_oneof![Just(0_usize), 0..5000_usize],
        opened_after in 0..60_usize,
        ranges in proptest::collection::vec((0..60_u64, 0..60_u64, 0..4000_usize), 1..8),
    ) {
        let disk = Disk::default();
        disk.write_short();
        let settings = |salt| Settings { recent_bytes, ..settings(salt) };
        let mut run = Run::begin(&disk, settings(1), Plain::default()).unwrap();
        for (number, op) in ops.iter().enumerate() {
            if let Op::Truncate(count) = op
                && *count > run.now().entries.len() as u64
            {
                continue;
            }
            run.act(op);
            prop_assert_eq!(is_same(&run.log, run.now()), Ok(()));
            let all = &run.now().entries;
            for (from, to, bytes_max) in &ranges {
                let found = run.log.read(*from..*to, *bytes_max).unwrap();
                let mut bytes = 0;
                let expected = all.range(*from..(*to).max(*from)).map(|(_, entry)| entry);
                let expected: Vec<_> = expected
                    .enumerate()
                    .take_while(|(place, entry)| {
                        bytes += entry.payload.len();
                        *place == 0 || bytes <= *bytes_max
                    })
                    .map(|(_, entry)| entry.clone())
                    .collect();
                prop_assert_eq!(found, expected);
            }
            if number == opened_after {
                run.act(&Op::Turn);
                let state = run.now().clone();
                drop(run);
                run = Run::begin(&disk, settings(2), state).unwrap();
            }
        }
    }
}

/// The file was written by the first version of the format and never again
/// (`cargo test --lib -- --ignored writes_the_log_fixture` wrote it).
#[test]
fn a_log_of_version_1_is_read_for_ever() {
    let disk = Disk::default();
    disk.create(&name_of(1)).unwrap().write_all_at(FIXTURE, 0).unwrap();
    disk.create("mark").unwrap().write_all_at(FIXTURE_MARK, 0).unwrap();
    let (written, _) = fixture();
    found(&disk, 5, &[written]);
    let (log, _, recovered) = begin(disk, settings(6)).unwrap();
    // Its first record says that it was opened, as does the last one by now.
    assert_eq!((recovered.records, recovered.tail), (13, Tail::Whole));
    assert_eq!(log.vote(), Some(Vote { term: 3, node: 2, is_committed: false }));
    assert_eq!(log.purged(), Some(Position { term: 1, node: 1, index: 1 }));
    let entries = log.read(3..4, 0).unwrap();
    assert_eq!(entries[0].position, Position { term: 2, node: 2, index: 3 });
    assert_eq!((entries[0].kind, &entries[0].payload[..]), (83, &[83; 33][..]));
}

/// One of every record.
fn fixture() -> (Plain, Disk) {
    let disk = Disk::default();
    let ops = [
        Op::Vote,
        Op::Append(5, 30),
        Op::Note,
        Op::Turn,
        Op::Truncate(2),
        Op::Append(1, 30),
        Op::Vote,
        Op::Purge(2),
        Op::Turn,
    ];
    let mut run = Run::begin(&disk, settings(42), Plain::default()).unwrap();
    for op in &ops {
        run.act(op);
    }
    run.writer.close().unwrap();
    (run.now().clone(), disk)
}

#[test]
#[ignore = "writes the files that others read"]
fn writes_the_log_fixture() {
    let (_, disk) = fixture();
    for (name, ending) in [(&*name_of(1), "log"), ("mark", "mark")] {
        let path = format!("{}/tests/fixtures/log-1.{ending}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, disk.read(name).unwrap()).unwrap();
    }
}

/// A directory that is removed in the end.
struct Place(std::path::PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The thread and real files: who waits is called, once, and a second start reads it all.
#[test]
fn a_thread_writes_real_files() {
    for durability in
        [Durability::Always, Durability::Interval(Duration::from_millis(1)), Durability::Os]
    {
        let name = format!("tollkeeper-log-{}-{durability:?}", std::process::id());
        let place = Place(std::env::temp_dir().join(name));
        let open = || {
            let settings = Settings { durability, ..settings(3) };
            Log::open(Directory::open(&place.0).unwrap(), settings).unwrap()
        };
        let (log, recovered) = open();
        assert_eq!(recovered, Recovered { records: 0, cut: None, tail: Tail::Whole });
        let mut plain = Plain::default();
        let (sender, receiver) = std::sync::mpsc::channel();
        for number in 0..200 {
            let entry = plain.entry(100);
            plain.entries.insert(entry.position.index, entry.clone());
            let sender = sender.clone();
            let done =
                move |outcome: io::Result<()>| sender.send((number, outcome.is_ok())).unwrap();
            log.append(vec![entry], Box::new(done));
        }
        let mut told: Vec<_> = receiver.iter().take(200).collect();
        told.sort_unstable();
        assert!(told.iter().copied().eq((0..200).map(|number| (number, true))));
        log.purge_to(plain.entries[&99].position);
        log.close().unwrap();
        let refused = sender.clone();
        log.save_vote(
            Vote { term: 9, node: 9, is_committed: false },
            Box::new(move |outcome| refused.send((999, outcome.is_ok())).unwrap()),
        );
        assert_eq!(receiver.recv(), Ok((999, false)));
        drop(log);
        let (log, recovered) = open();
        assert_eq!((recovered.cut, recovered.tail), (None, Tail::Whole));
        let entries = log.read(0..u64::MAX, usize::MAX).unwrap();
        assert!(entries.iter().eq(plain.entries.range(100..).map(|(_, entry)| entry)));
        assert!(!place.0.join(name_of(1)).exists());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Whoever looks into a log that nobody writes finds the entries that count, in order, and
    /// leaves everything as it is.
    #[test]
    fn what_lies_there_is_read_and_not_touched(ops in ops()) {
        let disk = Disk::default();
        let mut run = Run::begin(&disk, settings(1), Plain::default()).unwrap();
        for op in &ops {
            run.act(op);
        }
        run.act(&Op::Turn);
        let plain = run.now().clone();
        let before = disk.operations();
        let stored = Stored::read(&disk, "log", ID, BOOT).unwrap();
        let found =
            (stored.vote(), stored.purged(), stored.committed(), stored.first(), stored.last());
        let first = plain.entries.keys().next().copied();
        let expected = (plain.vote, plain.purged, plain.committed, first, plain.last());
        prop_assert_eq!(found, expected);
        let mut entries = Vec::new();
        stored.for_each(|entry| { entries.push(entry); Ok::<_, ()>(()) }).unwrap();
        prop_assert!(entries.iter().eq(plain.entries.values()), "{} entries", entries.len());
        let ended = stored.for_each(|entry| Err(entry.position.index));
        prop_assert_eq!(ended.err(), first);
        prop_assert_eq!(disk.operations(), before);
        prop_assert!(stored.cut().is_none() && stored.tail() == Tail::Whole);
    }
}

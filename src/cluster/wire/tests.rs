//! What is written is read back; the bytes are as they were; no bytes panic.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, TransferLeaderError, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::cluster::types::{
    Entry, LeaderId, LogEntry, LogId, Member, Membership, NodeId, SnapshotMeta, TypeConfig, Vote,
};

const ALL: &[Kind] = Kind::ALL;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn body(put: impl FnOnce(&mut BytesMut) -> Result<(), WireError>) -> Bytes {
    let mut out = BytesMut::new();
    put(&mut out).unwrap();
    let frame = take(&mut out, ALL).unwrap().unwrap();
    assert!(out.is_empty());
    frame.body
}

fn log_id(term: u64, node_id: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id }, index }
}

fn vote_of(term: u64, node_id: u64, committed: bool) -> Vote {
    Vote { leader_id: LeaderId { term, node_id }, committed }
}

fn member(port: u16) -> Member {
    Member { peer: format!("n:{port}"), clients: String::new() }
}

fn members(ids: impl IntoIterator<Item = NodeId>) -> Members {
    let ids: BTreeSet<NodeId> = ids.into_iter().collect();
    let nodes: BTreeMap<_, _> = ids.iter().map(|id| (*id, member(*id as u16))).collect();
    Members::new(vec![ids], nodes).unwrap()
}

prop_compose! {
    fn log_ids()(term in 0..9u64, node in 0..9u64, index in 0..u64::MAX) -> LogId {
        log_id(term, node, index)
    }
}

prop_compose! {
    fn votes()(term: u64, node: u64, committed: bool) -> Vote { vote_of(term, node, committed) }
}

fn some_members() -> impl Strategy<Value = Members> {
    btree_set(0..50u64, 1..6).prop_map(members)
}

/// Requests as a leader makes them.
fn requests() -> impl Strategy<Value = AppendEntriesRequest<TypeConfig>> {
    let payload = prop_oneof![
        Just(EntryPayload::Blank),
        vec(any::<u8>(), 0..200).prop_map(|bytes| EntryPayload::Normal(Entry(bytes.into()))),
        some_members().prop_map(EntryPayload::Membership),
    ];
    let first = proptest::option::of((0..5u64, 0..5u64, 0..1u64 << 40));
    (first, vec((0..2u64, payload), 0..20), proptest::option::of(log_ids())).prop_map(
        |(prev, payloads, leader_commit)| {
            let prev = prev.map(|(term, node, index)| log_id(term, node, index));
            let (mut term, mut index) = prev.map_or((0, 0), |p| (p.leader_id.term, p.index + 1));
            let node = prev.map_or(0, |prev| prev.leader_id.node_id);
            let mut entries = Vec::new();
            for (step, payload) in payloads {
                term += step;
                entries.push(LogEntry { log_id: log_id(term, node, index), payload });
                index += 1;
            }
            let vote = vote_of(term, node, true);
            AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit }
        },
    )
}

fn put_request(request: &AppendEntriesRequest<TypeConfig>, out: &mut BytesMut) -> usize {
    let envelope = Envelope { vote: request.vote, commit: request.leader_commit };
    let sequence = Sequence { session: 3, number: 4 };
    put_append(sequence, &envelope, request.prev_log_id, &request.entries, out).unwrap()
}

fn same(a: &AppendEntriesRequest<TypeConfig>, b: &AppendEntriesRequest<TypeConfig>) -> bool {
    (a.vote, a.prev_log_id, a.leader_commit) == (b.vote, b.prev_log_id, b.leader_commit)
        && a.entries.len() == b.entries.len()
        && a.entries
            .iter()
            .zip(&b.entries)
            .all(|(a, b)| a.log_id == b.log_id && a.payload == b.payload)
}

proptest! {
    #[test]
    fn appends_come_back(request in requests()) {
        let read = body(|out| {
            assert_eq!(put_request(&request, out), request.entries.len());
            Ok(())
        });
        let (sequence, back) = append(&read).unwrap();
        prop_assert_eq!(sequence, Sequence { session: 3, number: 4 });
        prop_assert!(same(&back, &request));
        // Entries are slices of the frame.
        let frame = read.as_ptr_range();
        for entry in &back.entries {
            if let EntryPayload::Normal(Entry(bytes)) = &entry.payload {
                prop_assert!(bytes.is_empty() || frame.contains(&bytes.as_ptr()));
            }
        }
    }

    #[test]
    fn a_byte_changed_is_noticed(request in requests(), at: proptest::sample::Index, bit in 0..8u32) {
        let mut out = BytesMut::new();
        put_request(&request, &mut out);
        let at = at.index(out.len());
        out[at] ^= 1u8 << bit;
        // A longer length waits for bytes that never come.
        let read = take(&mut out, ALL);
        prop_assert!(!matches!(read, Ok(Some(_))), "{:?}", read);
    }

    #[test]
    fn answers_come_back(
        session: u64, number: u64, vote in votes(), last in proptest::option::of(log_ids()), at in log_ids(), flag: bool
    ) {
        let sequence = Sequence { session, number };
        for result in [
            Ok(last),
            Err(StreamAppendError::Conflict(at)),
            Err(StreamAppendError::HigherVote(vote)),
        ] {
            let read = body(|out| put_append_answer(sequence, &result, out));
            prop_assert_eq!(append_answer(&read).unwrap(), (sequence, result));
        }
        let answer = VoteResponse::new(vote, last, flag);
        let read = body(|out| put_vote_answer(number, &answer, out));
        prop_assert_eq!(vote_answer(&read).unwrap(), (number, answer));

        let mut request = VoteRequest::new(Vote { committed: false, ..vote }, last);
        request.leadership_transfer = flag;
        let read = body(|out| put_vote(Kind::PreVote, number, &request, out));
        prop_assert_eq!(super::vote(&read).unwrap(), (number, request));

        let request = TransferLeaderRequest::new(Vote { committed: true, ..vote }, session, last);
        let read = body(|out| put_transfer(number, &request, out));
        prop_assert_eq!(transfer(&read).unwrap(), (number, request));
        for answer in [
            Ok(()),
            Err(TransferLeaderError::VoteChanged { expected: vote, actual: vote }),
            Err(TransferLeaderError::LogNotFlushed { expected: last, actual: Some(at) }),
        ] {
            let read = body(|out| put_transfer_answer(number, &answer, out));
            prop_assert_eq!(transfer_answer(&read).unwrap(), (number, answer));
        }
        let read = body(|out| put_snapshot_done(vote, out));
        prop_assert_eq!(snapshot_done(&read).unwrap(), vote);
    }

    #[test]
    fn greetings_come_back(
        cluster: [u8; 16], from: u64, to: u64, name in "[a-zä]{0,20}", text in ".{0,900}"
    ) {
        let purpose = Purpose::Snapshot;
        let greeting = Hello { version_min: 1, version_max: 7, cluster, name, from, to, purpose };
        let read = body(|out| put_hello(&greeting, out));
        prop_assert_eq!(hello(&read).unwrap(), greeting);
        let answer = Welcome { version: 3, cluster, from };
        prop_assert_eq!(welcome(&body(|out| put_welcome(&answer, out))).unwrap(), answer);
        // Text is cut, and has nothing in it that a terminal would obey.
        let answer = Refusal { reason: Reason::Name, detail: text };
        let read = refusal(&body(|out| put_refusal(&answer, out))).unwrap();
        prop_assert_eq!(read.reason, Reason::Name);
        prop_assert!(read.detail.len() <= TEXT_BYTES_MAX);
        prop_assert!(!read.detail.chars().any(char::is_control));
    }

    #[test]
    fn memberships_and_manifests_come_back(
        members in some_members(), last in log_ids(), length: u64
    ) {
        let bytes = encode_membership(&members).unwrap();
        prop_assert_eq!(&decode_membership(&bytes).unwrap(), &members);
        let stored = Membership::new(Some(last), members);
        let bytes = encode_stored_membership(&stored).unwrap();
        prop_assert_eq!(&decode_stored_membership(&bytes).unwrap(), &stored);
        let meta = SnapshotMeta { last_log_id: Some(last), last_membership: stored };
        let bytes = encode_snapshot_meta(&meta).unwrap();
        prop_assert_eq!(&decode_snapshot_meta(&bytes).unwrap(), &meta);
        let begin = SnapshotBegin { vote: vote_of(9, 9, true), length, meta };
        let read = body(|out| put_snapshot_begin(&begin, out));
        prop_assert_eq!(snapshot_begin(&read).unwrap(), begin);
    }

    /// Bytes after a right header and checksum too, which is where the values are read.
    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = take(&mut BytesMut::from(&bytes[..]), ALL);
        let bytes = Bytes::from(bytes);
        let _ = append(&bytes);
        let _ = append_answer(&bytes);
        let _ = vote(&bytes);
        let _ = vote_answer(&bytes);
        let _ = transfer(&bytes);
        let _ = transfer_answer(&bytes);
        let _ = hello(&bytes);
        let _ = welcome(&bytes);
        let _ = refusal(&bytes);
        let _ = numbered(bytes.clone());
        let _ = snapshot_begin(&bytes);
        let _ = snapshot_end(&bytes);
        let _ = snapshot_done(&bytes);
        let _ = text(&bytes);
        let _ = decode_membership(&bytes);
        let _ = decode_stored_membership(&bytes);
        let _ = decode_snapshot_meta(&bytes);
    }

    /// Values that are nearly right get further than noise does.
    #[test]
    fn no_damaged_append_panics(
        request in requests(), changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4)
    ) {
        let mut out = BytesMut::new();
        put_request(&request, &mut out);
        let mut read = out[HEADER_BYTES..].to_vec();
        for (at, byte) in changes {
            let at = at.index(read.len());
            read[at] = byte;
        }
        if let Ok((_, request)) = append(&Bytes::from(read)) {
            let first = request.prev_log_id.map_or(0, |prev| prev.index + 1);
            for (next, entry) in (first..).zip(&request.entries) {
                prop_assert_eq!(entry.log_id.index, next);
            }
        }
    }

    #[test]
    fn frames_arrive_in_any_pieces(
        frames in vec(vec(any::<u8>(), 0..300), 1..8), cuts in vec(1..97usize, 1..60)
    ) {
        let mut wire = BytesMut::new();
        frames.iter().for_each(|frame| put_link(frame, &mut wire).unwrap());
        let (mut input, mut read) = (BytesMut::new(), Vec::new());
        let mut cuts = cuts.into_iter().cycle();
        while !wire.is_empty() {
            let piece = cuts.next().unwrap().min(wire.len());
            input.extend_from_slice(&wire.split_to(piece));
            while let Some(frame) = take(&mut input, &[Kind::Link]).unwrap() {
                read.push(frame.body.to_vec());
            }
        }
        prop_assert_eq!(read, frames);
    }
}

#[test]
fn an_append_takes_as_many_entries_as_fit() {
    let payload = Bytes::from(vec![5; 1 << 20]);
    let entries: Vec<_> = (0..9)
        .map(|index| LogEntry {
            log_id: log_id(1, 1, index),
            payload: EntryPayload::Normal(Entry(payload.clone())),
        })
        .collect();
    let envelope = Envelope { vote: vote_of(1, 1, true), commit: None };
    let sequence = Sequence { session: 1, number: 1 };
    let mut out = BytesMut::new();
    assert_eq!(put_append(sequence, &envelope, None, &entries, &mut out), Ok(3));
    let frame = take(&mut out, &[Kind::Append]).unwrap().unwrap();
    assert_eq!(append(&frame.body).unwrap().1.entries.len(), 3);

    let with = |bytes| LogEntry {
        log_id: log_id(1, 1, 0),
        payload: EntryPayload::Normal(Entry(vec![0; bytes].into())),
    };
    let largest = [with(ENTRY_BYTES_MAX)];
    assert_eq!(put_append(sequence, &envelope, None, &largest, &mut out), Ok(1));
    out.clear();
    let longer = [with(ENTRY_BYTES_MAX + 1)];
    let error = put_append(sequence, &envelope, None, &longer, &mut out).unwrap_err();
    assert!(matches!(error, WireError::Length { max: ENTRY_BYTES_MAX, .. }), "{error}");
    assert!(out.is_empty());
}

#[test]
fn what_raft_takes_for_granted_is_refused() {
    let entry =
        |term, index| LogEntry { log_id: log_id(term, 1, index), payload: EntryPayload::Blank };
    let refused = |vote, prev, entries: &[LogEntry]| {
        let mut out = BytesMut::new();
        let sequence = Sequence { session: 1, number: 1 };
        put_append(sequence, &Envelope { vote, commit: None }, prev, entries, &mut out).unwrap();
        append(&take(&mut out, ALL).unwrap().unwrap().body).is_err()
    };
    let leader = vote_of(2, 1, true);
    assert!(!refused(leader, Some(log_id(1, 1, 4)), &[entry(1, 5), entry(2, 6)]));
    assert!(refused(vote_of(2, 1, false), None, &[]), "a candidate's");
    assert!(refused(leader, Some(log_id(1, 1, 4)), &[entry(1, 6)]), "a gap");
    assert!(refused(leader, None, &[entry(1, 1)]), "a gap at the beginning");
    assert!(refused(leader, Some(log_id(2, 1, 4)), &[entry(1, 5)]), "an earlier term");
    assert!(refused(leader, None, &[entry(3, 0)]), "a later leader's");
    assert!(refused(leader, Some(log_id(1, 1, u64::MAX)), &[]), "no index after it");
    let committed = body(|out| put_vote(Kind::Vote, 1, &VoteRequest::new(leader, None), out));
    assert!(vote(&committed).is_err());
    // A voter that is no member, which no function of Raft would make.
    let good = encode_membership(&members([1, 2])).unwrap();
    let at = good.windows(8).position(|word| word == 2u64.to_le_bytes());
    let mut bad = good.to_vec();
    // The first 2 is the length of the voters, then 1, then the voter 2.
    assert_eq!(at, Some(8));
    bad[24] = 3;
    assert!(decode_membership(&bad).is_err());
}

#[test]
fn what_is_announced_beyond_the_maximum_is_refused_at_once() {
    for &kind in ALL {
        let mut out = BytesMut::new();
        out.put_u32_le(kind.body_bytes_max() as u32 + 1);
        out.put_slice(&[VERSION, kind as u8, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(take(&mut out.clone(), ALL), Err(WireError::Length { .. })), "{kind:?}");
        assert_eq!(take(&mut out, &[]), Err(WireError::Kind(kind as u8)));
    }
    let mut other = BytesMut::from(&[0, 0, 0, 0, VERSION + 1, 4, 0, 0, 0, 0, 0, 0][..]);
    assert_eq!(take(&mut other, ALL), Err(WireError::Version(VERSION + 1)));
    // The membership of 65,536 and more bytes.
    let huge = Member { peer: "x".repeat(MEMBERSHIP_BYTES_MAX), clients: String::new() };
    let huge = Members::new(vec![BTreeSet::from([1])], BTreeMap::from([(1, huge)])).unwrap();
    assert!(encode_membership(&huge).is_err());
    // A length of 2^60 elements, which must not be reserved.
    let mut bytes = (1u64 << 60).to_le_bytes().to_vec();
    bytes.extend([0; 64]);
    assert!(decode_membership(&bytes).is_err());
}

/// The bytes of each type, which nodes of the next release read too.
#[test]
fn golden_bytes() {
    let (vote, at) = (vote_of(5, 2, true), log_id(4, 1, 9));
    let sequence = Sequence { session: 1, number: 2 };
    let members = members([1]);
    let stored = Membership::new(Some(at), members.clone());
    let meta = SnapshotMeta { last_log_id: Some(at), last_membership: stored.clone() };
    let entries = [
        LogEntry { log_id: log_id(4, 1, 10), payload: EntryPayload::Blank },
        LogEntry {
            log_id: log_id(5, 2, 11),
            payload: EntryPayload::Normal(Entry(Bytes::from_static(b"abc"))),
        },
    ];
    let envelope = Envelope { vote, commit: None };
    let greeting = Hello {
        version_min: 1,
        version_max: 1,
        cluster: [0xc1; 16],
        name: "t".to_owned(),
        from: 1,
        to: 2,
        purpose: Purpose::Link,
    };
    let frame = |put: &dyn Fn(&mut BytesMut) -> Result<(), WireError>| {
        let mut out = BytesMut::new();
        put(&mut out).unwrap();
        hex(&out)
    };
    let mut candidate = VoteRequest::new(vote_of(6, 3, false), Some(at));
    candidate.leadership_transfer = true;
    let granted = VoteResponse::new(vote, Some(at), true);
    let transfer = TransferLeaderRequest::new(vote, 3, Some(at));
    let begin = SnapshotBegin { vote, length: 300, meta: meta.clone() };
    let welcome = Welcome { version: 1, cluster: [0xc1; 16], from: 2 };
    let refusal = Refusal { reason: Reason::Cluster, detail: "no".to_owned() };
    let found = [
        hex(&encode_membership(&members).unwrap()),
        hex(&encode_stored_membership(&stored).unwrap()),
        hex(&encode_snapshot_meta(&meta).unwrap()),
        frame(&|out| put_hello(&greeting, out)),
        frame(&|out| put_welcome(&welcome, out)),
        frame(&|out| put_refusal(&refusal, out)),
        frame(&|out| put_empty(Kind::Ping, out)),
        frame(&|out| put_append(sequence, &envelope, Some(at), &entries, out).map(drop)),
        frame(&|out| put_append_answer(sequence, &Ok(Some(at)), out)),
        frame(&|out| put_append_answer(sequence, &Err(StreamAppendError::Conflict(at)), out)),
        frame(&|out| put_append_answer(sequence, &Err(StreamAppendError::HigherVote(vote)), out)),
        frame(&|out| put_vote(Kind::Vote, 7, &candidate, out)),
        frame(&|out| put_vote_answer(7, &granted, out)),
        frame(&|out| put_transfer(7, &transfer, out)),
        frame(&|out| put_transfer_answer(7, &Ok(()), out)),
        frame(&|out| put_numbered(Kind::Ask, 7, b"?", out)),
        frame(&|out| put_failure(7, "no", out)),
        frame(&|out| put_snapshot_begin(&begin, out)),
        frame(&|out| put_numbered(Kind::SnapshotChunk, 256, b"chunk", out)),
        frame(&|out| put_snapshot_end(0x0102_0304, out)),
        frame(&|out| put_snapshot_done(vote, out)),
        frame(&|out| put_snapshot_failed("no", out)),
        frame(&|out| put_link(b"frame", out)),
    ];
    let golden: Vec<_> = include_str!("golden.txt").lines().collect();
    assert_eq!(found.join("\n"), golden.join("\n"));
}

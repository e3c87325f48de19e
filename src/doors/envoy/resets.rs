//! Which answers a client did not want to hear: resets of streams, seen in the bytes that come.
//!
//! A proxy that gives a request up while its check is on the way resets the stream, and never says
//! again what became of it. If the answer was on the way too, the stream has ended for the library
//! that speaks HTTP/2, which drops the reset. A permit in that answer would be held by nobody until
//! its lease ends, so resets are looked for here, and the permit is given back. Pure.

use std::collections::VecDeque;

use crate::engine::permit::PermitId;

/// Answers with permits that a connection remembers: more than can be on their way to a proxy.
const GRANTS_MAX: usize = 1024;

/// Resets that a connection remembers for calls that are still being decided.
const RESETS_MAX: usize = 1024;

/// Bytes that a client of HTTP/2 begins with.
const PREFACE_BYTES: usize = 24;

const HEAD_BYTES: usize = 9;

/// The type of the frame that resets a stream.
const RST_STREAM: u8 = 3;

/// The frames of a connection, as far as their heads.
pub(super) struct Frames {
    /// Bytes to skip before the next head.
    skip: usize,
    head: [u8; HEAD_BYTES],
    filled: usize,
}

impl Frames {
    /// A connection of which nothing was read.
    pub(super) const fn new() -> Self {
        Self { skip: PREFACE_BYTES, head: [0; HEAD_BYTES], filled: 0 }
    }

    /// Goes over what has come, and tells the numbers of the streams that it resets.
    pub(super) fn read(&mut self, mut bytes: &[u8], mut on_reset: impl FnMut(u32)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            (self.skip, bytes) = (self.skip - skipped, &bytes[skipped..]);
            if bytes.is_empty() {
                return;
            }
            let taken = (HEAD_BYTES - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            (self.filled, bytes) = (self.filled + taken, &bytes[taken..]);
            if self.filled < HEAD_BYTES {
                return;
            }
            let [l0, l1, l2, kind, _, s0, s1, s2, s3] = self.head;
            self.filled = 0;
            self.skip = u32::from_be_bytes([0, l0, l1, l2]) as usize;
            if kind == RST_STREAM {
                // The first bit is reserved.
                on_reset(u32::from_be_bytes([s0, s1, s2, s3]) & (u32::MAX >> 1));
            }
        }
    }
}

/// Which permit the answer on which stream holds.
#[derive(Default)]
pub(super) struct Grants {
    granted: VecDeque<(u32, PermitId)>,
    reset: VecDeque<u32>,
}

impl Grants {
    /// An answer with a permit is about to be sent. False if nobody will hear it.
    #[must_use]
    pub(super) fn give(&mut self, stream: u32, permit: PermitId) -> bool {
        if self.reset.contains(&stream) {
            return false;
        }
        if self.granted.len() >= GRANTS_MAX {
            self.granted.pop_front();
        }
        self.granted.push_back((stream, permit));
        true
    }

    /// A stream was reset. Returns what its answer held.
    pub(super) fn reset(&mut self, stream: u32) -> Option<PermitId> {
        // What was answered last is looked at first: a reset follows within a round trip.
        if let Some(place) = self.granted.iter().rposition(|(granted, _)| *granted == stream) {
            return self.granted.remove(place).map(|(_, permit)| permit);
        }
        if self.reset.len() >= RESETS_MAX {
            self.reset.pop_front();
        }
        self.reset.push_back(stream);
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    struct Frame {
        kind: u8,
        stream: u32,
        payload: Vec<u8>,
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let frame = (0_u8..10, 0_u32..1 << 31, prop::collection::vec(any::<u8>(), 0..40));
        let frame = frame.prop_map(|(kind, stream, payload)| Frame { kind, stream, payload });
        prop::collection::vec(frame, 0..12)
    }

    fn bytes_of(frames: &[Frame]) -> Vec<u8> {
        let mut bytes = vec![b'P'; PREFACE_BYTES];
        for Frame { kind, stream, payload } in frames {
            bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
            bytes.extend_from_slice(&[*kind, 0]);
            // The reserved bit is to be ignored.
            bytes.extend_from_slice(&(stream | 1 << 31).to_be_bytes());
            bytes.extend_from_slice(payload);
        }
        bytes
    }

    proptest! {
        #[test]
        fn every_reset_is_seen_wherever_reads_are_cut(
            frames in frames(),
            cuts in prop::collection::vec(1_usize..20, 1..200),
        ) {
            let bytes = bytes_of(&frames);
            let (mut scanner, mut seen) = (Frames::new(), Vec::new());
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                scanner.read(now, |stream| seen.push(stream));
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let resets = frames.iter().filter(|frame| frame.kind == RST_STREAM);
            let expected: Vec<u32> = resets.map(|frame| frame.stream).collect();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn any_bytes_are_gone_over(bytes: Vec<u8>) {
            Frames::new().read(&bytes, |_| {});
        }

        // Whatever comes first, a permit is told once, and to whoever comes second.
        #[test]
        fn a_permit_is_given_back_once(
            steps in prop::collection::vec((any::<bool>(), 0_u32..6), 0..40),
        ) {
            let mut grants = Grants::default();
            let (mut granted, mut reset) = (Vec::new(), Vec::new());
            for (gives, stream) in steps {
                let permit = PermitId([stream as u8; 16]);
                if gives && !granted.contains(&stream) {
                    prop_assert_eq!(grants.give(stream, permit), !reset.contains(&stream));
                    granted.push(stream);
                } else if !gives && !reset.contains(&stream) {
                    let held = granted.contains(&stream).then_some(permit);
                    prop_assert_eq!(grants.reset(stream), held);
                    reset.push(stream);
                }
            }
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut grants = Grants::default();
        for stream in 0..10_000 {
            assert!(grants.give(stream, PermitId([0; 16])));
            let _ = grants.reset(stream + 100_000);
        }
        assert_eq!((grants.granted.len(), grants.reset.len()), (GRANTS_MAX, RESETS_MAX));
        assert_eq!(grants.reset(9_999), Some(PermitId([0; 16])));
        assert_eq!(grants.reset(0), None);
    }
}

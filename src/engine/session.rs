//! Sessions: what has been done of the requests that a client may send again.
//!
//! A request id is a session and a sequence number within it. Of each session the highest number
//! seen and which of the numbers right below it were done are remembered; a number further below
//! cannot be told any more. Whether a number was done is all that is kept.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::key::{KeySpace, Seed};
use super::time::{Nanos, Timestamp};

/// Numbers of a session that are remembered: the highest and those right below it.
pub const WINDOW: u64 = 1024;

/// The most sessions at one time.
pub const SESSIONS_MAX: usize = 10_000;

/// After so long without a request a session may be forgotten.
pub const IDLE: Nanos = Nanos::from_secs(600);

/// Which request this is, however often it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// The session, as [`Sessions::open`] named it.
    pub session: u64,
    /// The client's number, from 1.
    pub sequence: u64,
}

/// Why a request id cannot be judged. The request was not done now; whether it was before cannot
/// be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionError {
    /// Caller: there is no such session, or it was idle for too long.
    Unknown,
    /// Caller: the number is too far below the highest.
    Stale {
        /// The lowest number that can be told.
        lowest: u64,
    },
}

/// There are [`SESSIONS_MAX`] sessions, and none of them is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// All sessions of an instance.
pub struct Sessions {
    sessions: BTreeMap<u64, Session>,
    names: KeySpace,
    opened: u64,
}

/// A session as a snapshot has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedSession {
    /// Its name.
    pub name: u64,
    /// The highest number seen.
    pub highest: u64,
    /// When a request of it last came.
    pub used_at: Timestamp,
    /// Which numbers were done, at the number modulo [`WINDOW`].
    pub done: [u64; (WINDOW / 64) as usize],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Session {
    highest: u64,
    /// Which numbers were done, at the number modulo the window.
    done: [u64; (WINDOW / 64) as usize],
    used_at: Timestamp,
}

impl Session {
    fn forget(&mut self, number: u64) {
        let (word, bit) = place(number);
        self.done[word] &= !(1 << bit);
    }

    /// Makes room up to a number; those that leave the window are forgotten.
    fn reach(&mut self, number: u64) {
        if number <= self.highest {
            return;
        }
        if number - self.highest >= WINDOW {
            self.done = [0; _];
        } else {
            (self.highest + 1..=number).for_each(|number| self.forget(number));
        }
        self.highest = number;
    }
}

const fn place(number: u64) -> (usize, u64) {
    let place = number % WINDOW;
    ((place / 64) as usize, place % 64)
}

impl Sessions {
    /// No sessions yet. Their names derive from `seed`, so that nobody guesses another's.
    pub fn new(seed: &Seed) -> Self {
        let names = KeySpace::derive(seed, [&b"session"[..]]);
        Self { sessions: BTreeMap::new(), names, opened: 0 }
    }

    /// How many were ever opened, and each that is remembered.
    pub fn saved(&self) -> (u64, Vec<SavedSession>) {
        let saved = self.sessions.iter().map(|(&name, session)| {
            let Session { highest, done, used_at } = *session;
            SavedSession { name, highest, used_at, done }
        });
        (self.opened, saved.collect())
    }

    /// Remembers what a snapshot remembered. `opened` must be past every session ever opened, so
    /// that no name is given twice.
    pub fn restore(&mut self, opened: u64, saved: impl IntoIterator<Item = SavedSession>) {
        self.opened = opened;
        for SavedSession { name, highest, used_at, done } in saved.into_iter().take(SESSIONS_MAX) {
            self.sessions.insert(name, Session { highest, done, used_at });
        }
    }

    /// Opens a session. If there are too many, idle ones make room.
    ///
    /// # Errors
    /// If none is idle.
    pub fn open(&mut self, now: Timestamp) -> Result<u64, Full> {
        if self.sessions.len() >= SESSIONS_MAX {
            self.sessions.retain(|_, session| now.since(session.used_at) <= IDLE);
            if self.sessions.len() >= SESSIONS_MAX {
                return Err(Full);
            }
        }
        self.opened += 1;
        let name = self.names.key_of_one(&self.opened.to_le_bytes()).low;
        let done = [0; _];
        self.sessions.insert(name, Session { highest: 0, done, used_at: now });
        Ok(name)
    }

    /// Whether a request was done before.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub fn is_done(&mut self, id: RequestId, now: Timestamp) -> Result<bool, SessionError> {
        let session = self.sessions.get_mut(&id.session).ok_or(SessionError::Unknown)?;
        session.used_at = session.used_at.max(now);
        let lowest = session.highest.saturating_add(1).saturating_sub(WINDOW).max(1);
        if id.sequence < lowest {
            return Err(SessionError::Stale { lowest });
        }
        let (word, bit) = place(id.sequence);
        Ok(id.sequence <= session.highest && session.done[word] >> bit & 1 == 1)
    }

    /// Remembers that a request was done. It was just asked for with [`Sessions::is_done`].
    pub fn mark_done(&mut self, id: RequestId) {
        if let Some(session) = self.sessions.get_mut(&id.session) {
            session.reach(id.sequence);
            let (word, bit) = place(id.sequence);
            session.done[word] |= 1 << bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(0).after(Nanos::from_secs(seconds))
    }

    proptest! {
        /// Against a set of all numbers ever done.
        #[test]
        fn a_request_is_done_once(numbers in prop::collection::vec(
            prop_oneof![1..=20_u64, 1..=3000_u64, 1..=1_000_000_u64], 1..200,
        )) {
            let mut sessions = Sessions::new(&Seed::new([1; 16]));
            let session = sessions.open(at(1)).unwrap();
            let (mut done, mut highest) = (BTreeSet::new(), 0);
            for sequence in numbers {
                let id = RequestId { session, sequence };
                let known = sessions.is_done(id, at(2));
                if sequence + WINDOW <= highest {
                    let lowest = highest + 1 - WINDOW;
                    prop_assert_eq!(known, Err(SessionError::Stale { lowest }));
                    continue;
                }
                prop_assert_eq!(known, Ok(!done.insert(sequence)));
                sessions.mark_done(id);
                highest = highest.max(sequence);
            }
        }
    }

    #[test]
    fn only_idle_sessions_make_room() {
        let mut sessions = Sessions::new(&Seed::new([1; 16]));
        let names: BTreeSet<u64> =
            (0..SESSIONS_MAX).map(|_| sessions.open(at(1)).unwrap()).collect();
        assert_eq!(names.len(), SESSIONS_MAX);
        assert_eq!(sessions.open(at(601)), Err(Full));
        let used = RequestId { session: *names.first().unwrap(), sequence: 1 };
        assert_eq!(sessions.is_done(used, at(500)), Ok(false));
        assert!(sessions.open(at(602)).is_ok());
        assert_eq!(sessions.is_done(used, at(602)), Ok(false));
        let gone = RequestId { session: *names.last().unwrap(), sequence: 1 };
        assert_eq!(sessions.is_done(gone, at(602)), Err(SessionError::Unknown));
    }
}

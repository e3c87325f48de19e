//! Sessions: what has been done of the requests that a client may send again.
//!
//! A request id is a session and a sequence number within it. Of each session the highest number
//! seen and which of the numbers right below it were done are remembered; a number further below
//! cannot be told any more. Whether a number was done is all that is kept, and of a check that was
//! given a permit, which.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use super::key::{KeySpace, Seed};
use super::permit::PermitId;
use super::time::{Nanos, Timestamp};

/// Numbers of a session that are remembered: the highest and those right below it.
pub const WINDOW: u64 = 1024;

/// Permits of a session that are remembered; with one more the oldest request's is forgotten.
pub const PERMITS_MAX: usize = 256;

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

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => write!(f, "there is no such session, or it was idle for too long"),
            Self::Stale { lowest } => {
                write!(f, "the lowest sequence that can still be told is {lowest}")
            }
        }
    }
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

/// What is remembered of a request that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The permit that it was given, if it is remembered.
    pub permit: Option<PermitId>,
}

/// A session as a snapshot has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedSession {
    /// Its name.
    pub name: u64,
    /// The highest number seen.
    pub highest: u64,
    /// When a request of it last came.
    pub used_at: Timestamp,
    /// Which numbers were done, at the number modulo [`WINDOW`].
    pub done: [u64; (WINDOW / 64) as usize],
    /// Permits that were given, by number.
    pub permits: Vec<(u64, PermitId)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    highest: u64,
    /// Which numbers were done, at the number modulo the window.
    done: [u64; (WINDOW / 64) as usize],
    used_at: Timestamp,
    permits: BTreeMap<u64, PermitId>,
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
        let lowest = self.lowest();
        while self.permits.first_key_value().is_some_and(|(&number, _)| number < lowest) {
            self.permits.pop_first();
        }
    }

    /// The lowest number that can be told.
    fn lowest(&self) -> u64 {
        self.highest.saturating_add(1).saturating_sub(WINDOW).max(1)
    }

    fn is_done(&self, number: u64) -> bool {
        let (word, bit) = place(number);
        number <= self.highest && self.done[word] >> bit & 1 == 1
    }

    /// Marks a number in the window as done.
    fn mark_done(&mut self, number: u64, permit: Option<PermitId>) {
        self.reach(number);
        let (word, bit) = place(number);
        self.done[word] |= 1 << bit;
        if let Some(permit) = permit {
            self.permits.insert(number, permit);
            if self.permits.len() > PERMITS_MAX {
                self.permits.pop_first();
            }
        }
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
        let saved = self.sessions.iter().map(|(&name, session)| SavedSession {
            name,
            highest: session.highest,
            used_at: session.used_at,
            done: session.done,
            permits: session.permits.iter().map(|(&number, &permit)| (number, permit)).collect(),
        });
        (self.opened, saved.collect())
    }

    /// Remembers what a snapshot remembered. `opened` must be past every session ever opened, so
    /// that no name is given twice.
    pub fn restore(&mut self, opened: u64, saved: impl IntoIterator<Item = SavedSession>) {
        self.opened = opened;
        for saved in saved.into_iter().take(SESSIONS_MAX) {
            let SavedSession { name, highest, used_at, done, permits } = saved;
            let permits = permits.into_iter().take(PERMITS_MAX).collect();
            self.sessions.insert(name, Session { highest, done, used_at, permits });
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
        let (done, permits) = ([0; _], BTreeMap::new());
        self.sessions.insert(name, Session { highest: 0, done, used_at: now, permits });
        Ok(name)
    }

    /// What is remembered of a request; `None` if it was not done.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub fn find(&mut self, id: RequestId, now: Timestamp) -> Result<Option<Done>, SessionError> {
        let session = self.sessions.get_mut(&id.session).ok_or(SessionError::Unknown)?;
        session.used_at = session.used_at.max(now);
        let lowest = session.lowest();
        if id.sequence < lowest {
            return Err(SessionError::Stale { lowest });
        }
        let permit = session.permits.get(&id.sequence).copied();
        Ok(session.is_done(id.sequence).then_some(Done { permit }))
    }

    /// Remembers that a request was done, and the permit that it was given. It was just asked for
    /// with [`Sessions::find`].
    pub fn mark_done(&mut self, id: RequestId, permit: Option<PermitId>) {
        if let Some(session) = self.sessions.get_mut(&id.session) {
            session.mark_done(id.sequence, permit);
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
                let known = sessions.find(id, at(2));
                if sequence + WINDOW <= highest {
                    let lowest = highest + 1 - WINDOW;
                    prop_assert_eq!(known, Err(SessionError::Stale { lowest }));
                    continue;
                }
                let done = (!done.insert(sequence)).then_some(Done { permit: None });
                prop_assert_eq!(known, Ok(done));
                sessions.mark_done(id, None);
                highest = highest.max(sequence);
            }
        }
    }

    #[test]
    fn the_latest_permits_are_remembered() {
        let mut sessions = Sessions::new(&Seed::new([1; 16]));
        let session = sessions.open(at(1)).unwrap();
        let id = |sequence| RequestId { session, sequence };
        let permit = |sequence: u64| PermitId(u128::from(sequence).to_le_bytes());
        let given = PERMITS_MAX as u64 + 1;
        for sequence in 1..=given {
            assert_eq!(sessions.find(id(sequence), at(1)), Ok(None));
            sessions.mark_done(id(sequence), Some(permit(sequence)));
        }
        assert_eq!(sessions.find(id(1), at(1)), Ok(Some(Done { permit: None })));
        for sequence in 2..=given {
            let done = Done { permit: Some(permit(sequence)) };
            assert_eq!(sessions.find(id(sequence), at(1)), Ok(Some(done)));
        }
        sessions.mark_done(id(given + WINDOW), None);
        let (_, saved) = sessions.saved();
        assert_eq!(saved[0].permits, []);
    }

    #[test]
    fn only_idle_sessions_make_room() {
        let mut sessions = Sessions::new(&Seed::new([1; 16]));
        let names: BTreeSet<u64> =
            (0..SESSIONS_MAX).map(|_| sessions.open(at(1)).unwrap()).collect();
        assert_eq!(names.len(), SESSIONS_MAX);
        assert_eq!(sessions.open(at(601)), Err(Full));
        let used = RequestId { session: *names.first().unwrap(), sequence: 1 };
        assert_eq!(sessions.find(used, at(500)), Ok(None));
        assert!(sessions.open(at(602)).is_ok());
        assert_eq!(sessions.find(used, at(602)), Ok(None));
        let gone = RequestId { session: *names.last().unwrap(), sequence: 1 };
        assert_eq!(sessions.find(gone, at(602)), Err(SessionError::Unknown));
    }
}

//! The header of a frame and of a batch item: length, op, flags and (frames only) the call id.

use core::fmt;

use crate::limits::HEADER_BYTES;

/// What a frame is. Requests have the top bit clear, answers have the request's number with the
/// top bit set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Op(pub u16);

impl Op {
    /// Opens a connection; the first frame each way.
    pub const HELLO: Self = Self(0x0001);
    /// Is answered at once.
    pub const PING: Self = Self(0x0002);
    /// Server to client: send no new requests here. Has no answer.
    pub const GOAWAY: Self = Self(0x0003);
    /// Asks for the handle of an API or a class.
    pub const PREPARE: Self = Self(0x0004);
    /// Checks by handle and charges.
    pub const CHECK: Self = Self(0x0010);
    /// Checks inline limits and charges.
    pub const CHECK_INLINE: Self = Self(0x0011);
    /// Checks by handle and charges nothing.
    pub const PEEK: Self = Self(0x0012);
    /// Checks inline limits and charges nothing.
    pub const PEEK_INLINE: Self = Self(0x0013);
    /// Sets what the counters of a handle and values have used.
    pub const SET: Self = Self(0x0014);
    /// Sets what the counter of an inline limit has used.
    pub const SET_INLINE: Self = Self(0x0015);
    /// Moves what the counters of a handle and values have used by a signed amount, after the fact.
    pub const ADJUST: Self = Self(0x0016);
    /// The same for an inline limit.
    pub const ADJUST_INLINE: Self = Self(0x0017);
    /// Several requests in one frame, each decided by itself.
    pub const BATCH: Self = Self(0x0018);
    /// Reserved: every limit that applies or why not.
    pub const EXPLAIN: Self = Self(0x0019);
    /// Gives a permit back.
    pub const RELEASE: Self = Self(0x0020);
    /// Keeps a permit longer.
    pub const RENEW: Self = Self(0x0021);
    /// Reserved: replaces a reservation by what was really used.
    pub const SETTLE: Self = Self(0x0022);
    /// Reserved: asks for an allotment of units to spend locally.
    pub const ALLOT: Self = Self(0x0023);
    /// Reserved: gives the rest of an allotment back.
    pub const RETURN: Self = Self(0x0024);
    /// Opens a session that request ids belong to.
    pub const SESSION: Self = Self(0x0028);
    /// First op for private use; never given a meaning here.
    pub const PRIVATE_FIRST: Self = Self(0x7000);
    /// Last op for private use.
    pub const PRIVATE_LAST: Self = Self(0x7FFF);
    /// Server to client: a request got no decision.
    pub const ERROR: Self = Self(0xFFFF);

    /// The op of the answer to this request.
    #[inline]
    pub const fn answer(self) -> Self {
        Self(self.0 | 0x8000)
    }

    /// Has the top bit set, as only frames from the server have.
    #[inline]
    pub const fn is_answer(self) -> bool {
        self.0 & 0x8000 != 0
    }

    /// The must-understand flags that a frame of this op may have; a batch's item may have them
    /// too, but for NO_REPLY.
    #[inline]
    pub const fn flags_allowed(self) -> Flags {
        const CHECK: Flags = Flags::NUMBERS.union(Flags::DEADLINE);
        const CHARGE: Flags = Flags::REQUEST_ID.union(Flags::TIED).union(Flags::NO_FORWARD);
        const CHANGE: Flags = Flags::REQUEST_ID.union(Flags::NO_REPLY);
        match self {
            Self::CHECK => CHECK.union(CHARGE).union(Flags::RENDERED),
            Self::CHECK_INLINE => CHECK.union(CHARGE),
            Self::PEEK => CHECK.union(Flags::RENDERED),
            Self::PEEK_INLINE => CHECK,
            Self::SET | Self::SET_INLINE | Self::ADJUST | Self::ADJUST_INLINE => CHANGE,
            Self::BATCH | Self::RELEASE | Self::RENEW => Flags::NO_REPLY,
            _ => Flags(0),
        }
    }

    /// The name as `SPEC.md` prints it; of an answer, that of its request. Empty if none.
    pub const fn name(self) -> &'static str {
        if self.0 == Self::ERROR.0 {
            return "ERROR";
        }
        match Self(self.0 & 0x7FFF) {
            Self::HELLO => "HELLO",
            Self::PING => "PING",
            Self::GOAWAY => "GOAWAY",
            Self::PREPARE => "PREPARE",
            Self::CHECK => "CHECK",
            Self::CHECK_INLINE => "CHECK_INLINE",
            Self::PEEK => "PEEK",
            Self::PEEK_INLINE => "PEEK_INLINE",
            Self::SET => "SET",
            Self::SET_INLINE => "SET_INLINE",
            Self::ADJUST => "ADJUST",
            Self::ADJUST_INLINE => "ADJUST_INLINE",
            Self::BATCH => "BATCH",
            Self::EXPLAIN => "EXPLAIN",
            Self::RELEASE => "RELEASE",
            Self::RENEW => "RENEW",
            Self::SETTLE => "SETTLE",
            Self::ALLOT => "ALLOT",
            Self::RETURN => "RETURN",
            Self::SESSION => "SESSION",
            _ => "",
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Op({:#06x} {})", self.0, self.name())
    }
}

/// The flags of a frame or an item. Their meaning depends on the direction.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u16);

impl Flags {
    /// Both ways: the numbers block is wanted, or is there.
    pub const NUMBERS: Self = Self(1);
    /// Both ways: the rendered block is wanted, or is there.
    pub const RENDERED: Self = Self(1 << 1);
    /// Request: a deadline follows.
    pub const DEADLINE: Self = Self(1 << 2);
    /// Request: a request id (session and sequence) follows.
    pub const REQUEST_ID: Self = Self(1 << 3);
    /// Request: no answer is wanted. Of frames only.
    pub const NO_REPLY: Self = Self(1 << 4);
    /// Request, reserved: an answer from an allotment will do.
    pub const LEASED: Self = Self(1 << 5);
    /// Request: permits that this check is granted go back when the connection closes.
    pub const TIED: Self = Self(1 << 6);
    /// Request: a node that does not lead its cluster says so instead of handing the check on.
    pub const NO_FORWARD: Self = Self(1 << 7);
    /// Answer: no limit applied to the request.
    pub const UNMATCHED: Self = Self(1 << 8);
    /// Answer: no decision could be had, and `when_unavailable` let the request pass.
    pub const FAILED_OPEN: Self = Self(1 << 9);
    /// Answer: the body was longer than its maximum and is left out.
    pub const BODY_OMITTED: Self = Self(1 << 10);
    /// Answer: the permit block is there.
    pub const PERMIT: Self = Self(1 << 11);

    /// The bits of a request that a server must know to answer it.
    pub const MUST_UNDERSTAND: Self = Self(0x0FFF);

    /// Holds every bit of `flags`.
    #[inline]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Those of `self` that are not in `flags`.
    #[inline]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }

    /// Both sets together.
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// `self` if `yes`, else no flag.
    #[inline]
    pub const fn only_if(self, yes: bool) -> Self {
        Self(self.0 * yes as u16)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flags({:#06x})", self.0)
    }
}

/// The first 16 bytes of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the whole frame, these included.
    pub length: u32,
    /// What the frame is.
    pub op: Op,
    /// Its flags.
    pub flags: Flags,
    /// Chosen by the client and returned in the answer; 0 in frames nobody asked for.
    pub call: u64,
}

/// Where a message goes: into a frame of its own, or into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// A frame with this call id.
    Call(u64),
    /// An item of a batch.
    Item,
}

impl Envelope {
    /// Bytes of the header that goes before the body.
    #[inline]
    pub const fn header_bytes(self) -> usize {
        match self {
            Self::Call(_) => HEADER_BYTES,
            Self::Item => crate::limits::ITEM_HEADER_BYTES,
        }
    }
}

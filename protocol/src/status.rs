//! The tables of numbers that name things: decisions, kinds, modes, error codes.
//!
//! Each is one table with a sentence per row; `SPEC.md` prints the same rows. Nothing here is
//! decided, only named.

use core::fmt;

/// Declares an enum of wire numbers: a table of variants with their numbers.
macro_rules! wire_numbers {
    (
        $(#[$meta:meta])*
        $name:ident: $repr:ident { $($(#[$row:meta])* $variant:ident = $number:literal,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name { $($(#[$row])* $variant = $number,)+ }

        impl $name {
            /// Every row of the table, in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The row with this number, if the table has one.
            #[inline]
            pub const fn from_wire(number: $repr) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }

            /// The number on the wire.
            #[inline]
            pub const fn to_wire(self) -> $repr {
                self as $repr
            }
        }
    };
}

wire_numbers! {
    /// What a check came to.
    Decision: u8 {
        /// The request may pass; all limits that apply were charged (CHECK) or would be (PEEK).
        Allow = 1,
        /// The request may not pass; nothing was charged.
        Deny = 2,
    }
}

wire_numbers! {
    /// The kind of a limit. Numbers are given to kinds that a server may not have yet.
    Kind: u8 {
        /// Token bucket: units per window, and a burst.
        Bucket = 1,
        /// At most so many units in any window, aligned or not.
        Sliding = 2,
        /// At most so many units in each window, one after the other.
        Fixed = 3,
        /// At most so many units in a day, week or month of some time zone.
        Calendar = 4,
        /// At most so many permits at once.
        Concurrent = 5,
        /// At most so much held, moved up and down, never reset.
        Level = 6,
        /// No single request above so much.
        Cap = 7,
    }
}

wire_numbers! {
    /// What a limit's verdict does.
    Mode: u8 {
        /// It decides.
        Enforce = 1,
        /// It is counted and shown, and decides nothing.
        Shadow = 2,
        /// It is known and explained, and neither counted nor decided.
        Off = 3,
    }
}

wire_numbers! {
    /// Where the windows of a fixed limit begin.
    Align: u8 {
        /// At multiples of the window since 1970-01-01T00:00:00Z.
        Clock = 0,
        /// At the first charge of each counter.
        First = 1,
    }
}

wire_numbers! {
    /// What a handle's slot is read for.
    SlotUse: u8 {
        /// It finds the route and so the class: the method and the path.
        Route = 1,
        /// It is part of a counter's key.
        Key = 2,
        /// It selects a limit, or a number from a table.
        Select = 3,
        /// It is only repeated in a body or a header.
        Text = 4,
    }
}

wire_numbers! {
    /// What to do with a request when no decision can be had.
    WhenUnavailable: u8 {
        /// Let it pass, and be loud about it.
        Allow = 1,
        /// Refuse it with the handle's denial status and static headers.
        Deny = 2,
    }
}

wire_numbers! {
    /// Why a request got no decision. The first byte says who must act: 1 the caller, 2 the
    /// operator, 3 the authors of the server.
    Code: u16 {
        /// The bytes are not a frame of this protocol; the detail names the field.
        BadFrame = 0x0101,
        /// No version in the client's range is spoken here; the detail gives the server's range.
        UnsupportedVersion = 0x0102,
        /// The op is unknown, or reserved and not implemented.
        UnsupportedOp = 0x0103,
        /// A must-understand flag is unknown, reserved, or means nothing with this op.
        UnsupportedFlag = 0x0104,
        /// A frame, value, key or name is longer than its maximum.
        TooLarge = 0x0105,
        /// A batch, or a list, has more items than its maximum.
        TooManyItems = 0x0106,
        /// The handshake, a started frame, or an idle connection took too long.
        TimedOut = 0x0107,
        /// The policy has no API of this name.
        UnknownApi = 0x0108,
        /// The API has no class of this name.
        UnknownClass = 0x0109,
        /// No handle has this number, and none ever had its layout.
        UnknownHandle = 0x010A,
        /// The handle's names have changed since it was prepared; the detail is the new answer to
        /// PREPARE.
        StaleHandle = 0x010B,
        /// A slot that a limit needs is missing or holds a value that the limit cannot use.
        BadAttribute = 0x010C,
        /// The numbers of an inline limit or a lease are out of range, or the limit's kind is not
        /// offered here.
        BadLimit = 0x010D,
        /// A cost or an amount is out of range, or there are more costs than meters.
        BadCost = 0x010E,
        /// The request's own deadline passed before it was decided.
        DeadlineExceeded = 0x010F,
        /// Reserved for the cluster: it cannot be told whether the request was charged.
        UnknownOutcome = 0x0110,
        /// The server does not know the session, or no longer. This request did nothing; whether an
        /// earlier try of it did cannot be told.
        UnknownSession = 0x0111,
        /// The sequence lies behind those that the server remembers of the session. This request
        /// did nothing; whether an earlier try of it did cannot be told.
        StaleSequence = 0x0112,
        /// The connection has not said HELLO, or its credential was refused.
        Unauthenticated = 0x0201,
        /// The principal lacks a capability; the detail says which.
        Forbidden = 0x0202,
        /// The counter is new and the table is at its maximum for this limit or overall.
        TableFull = 0x0203,
        /// The server has more work than it can do, or more connections, sessions or tied permits
        /// than their maxima.
        Overloaded = 0x0204,
        /// The server is stopping and takes no new requests.
        ShuttingDown = 0x0205,
        /// Reserved for the cluster: no majority of nodes can be reached.
        NoQuorum = 0x0206,
        /// Reserved for the cluster: this node cannot take the request and the leader can.
        NotLeader = 0x0207,
        /// Reserved for nodes that write before they answer: the disk is full.
        DiskFull = 0x0208,
        /// The server broke one of its own rules; it has logged which.
        Internal = 0x0301,
    }
}

/// Who must act on an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// The caller: its code or its input is wrong.
    Caller,
    /// Whoever runs the server.
    Operator,
    /// The authors of the server.
    Us,
}

impl Code {
    /// Who must act.
    pub const fn actor(self) -> Actor {
        match self.to_wire() >> 8 {
            1 => Actor::Caller,
            2 => Actor::Operator,
            _ => Actor::Us,
        }
    }

    /// Counts towards [`PROTOCOL_ERRORS_MAX`](crate::limits::PROTOCOL_ERRORS_MAX): the client
    /// does not speak the protocol.
    pub const fn is_protocol_error(self) -> bool {
        matches!(
            self,
            Self::BadFrame
                | Self::UnsupportedOp
                | Self::UnsupportedFlag
                | Self::TooLarge
                | Self::TooManyItems
        )
    }

    /// This request charged nothing, for certain. Of `UNKNOWN_SESSION` and `STALE_SEQUENCE` that
    /// says nothing of an earlier try with the same request id.
    pub const fn charged_nothing(self) -> bool {
        !matches!(self, Self::UnknownOutcome | Self::Internal)
    }

    /// No decision could be had, and the handle's `when_unavailable` says what to do.
    pub const fn is_unavailable(self) -> bool {
        matches!(
            self,
            Self::BadAttribute
                | Self::DeadlineExceeded
                | Self::UnknownOutcome
                | Self::TableFull
                | Self::Overloaded
                | Self::ShuttingDown
                | Self::NoQuorum
                | Self::NotLeader
                | Self::DiskFull
                | Self::Internal
        )
    }

    /// The name as `SPEC.md` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadFrame => "BAD_FRAME",
            Self::UnsupportedVersion => "UNSUPPORTED_VERSION",
            Self::UnsupportedOp => "UNSUPPORTED_OP",
            Self::UnsupportedFlag => "UNSUPPORTED_FLAG",
            Self::TooLarge => "TOO_LARGE",
            Self::TooManyItems => "TOO_MANY_ITEMS",
            Self::TimedOut => "TIMED_OUT",
            Self::UnknownApi => "UNKNOWN_API",
            Self::UnknownClass => "UNKNOWN_CLASS",
            Self::UnknownHandle => "UNKNOWN_HANDLE",
            Self::StaleHandle => "STALE_HANDLE",
            Self::BadAttribute => "BAD_ATTRIBUTE",
            Self::BadLimit => "BAD_LIMIT",
            Self::BadCost => "BAD_COST",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::UnknownOutcome => "UNKNOWN_OUTCOME",
            Self::UnknownSession => "UNKNOWN_SESSION",
            Self::StaleSequence => "STALE_SEQUENCE",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::Forbidden => "FORBIDDEN",
            Self::TableFull => "TABLE_FULL",
            Self::Overloaded => "OVERLOADED",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::NoQuorum => "NO_QUORUM",
            Self::NotLeader => "NOT_LEADER",
            Self::DiskFull => "DISK_FULL",
            Self::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Kind {
    /// The word of the policy language.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bucket => "bucket",
            Self::Sliding => "sliding",
            Self::Fixed => "fixed",
            Self::Calendar => "calendar",
            Self::Concurrent => "concurrent",
            Self::Level => "level",
            Self::Cap => "cap",
        }
    }
}

impl Mode {
    /// The word of the policy language.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

/// When the same request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// It passes now; there is nothing to wait for.
    None,
    /// After so many nanoseconds, exactly, if nobody charges meanwhile. At least 1.
    After(u64),
    /// Never: its cost can never fit, as a cap always says.
    Never,
    /// When others give back what they hold. Of permits, the nanoseconds until the first one
    /// lapses, if known; of a level none, as time brings nothing back.
    OnOthers(Option<u64>),
}

impl Retry {
    /// Kind and nanoseconds as on the wire.
    #[inline]
    pub const fn to_wire(self) -> (u8, u64) {
        match self {
            Self::None => (0, 0),
            Self::After(nanos) => (1, nanos),
            Self::Never => (2, 0),
            Self::OnOthers(Some(nanos)) => (3, nanos),
            Self::OnOthers(None) => (3, 0),
        }
    }

    /// From kind and nanoseconds on the wire, if the kind is known.
    #[inline]
    pub const fn from_wire(kind: u8, nanos: u64) -> Option<Self> {
        match (kind, nanos) {
            (0, _) => Some(Self::None),
            (1, nanos) => Some(Self::After(nanos)),
            (2, _) => Some(Self::Never),
            (3, 0) => Some(Self::OnOthers(None)),
            (3, nanos) => Some(Self::OnOthers(Some(nanos))),
            _ => None,
        }
    }
}

/// What a principal may do; a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(pub u32);

impl Capabilities {
    /// CHECK by handle.
    pub const CHECK: Self = Self(1);
    /// PEEK by handle.
    pub const PEEK: Self = Self(1 << 1);
    /// Inline limits, together with the capability for what is done with them.
    pub const INLINE: Self = Self(1 << 2);
    /// RELEASE and RENEW.
    pub const PERMITS: Self = Self(1 << 3);
    /// SET and ADJUST, and SESSION, which serves them.
    pub const ADJUST: Self = Self(1 << 4);
    /// Reserved: changes to the server itself.
    pub const ADMIN: Self = Self(1 << 5);
    /// Every capability of version 1.
    pub const ALL: Self = Self(0x3F);

    /// Holds every bit of `needed`.
    #[inline]
    pub const fn contains(self, needed: Self) -> bool {
        self.0 & needed.0 == needed.0
    }

    /// Both sets together.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_survives_the_wire() {
        for &code in Code::ALL {
            assert_eq!(Code::from_wire(code.to_wire()), Some(code));
        }
        for &kind in Kind::ALL {
            assert_eq!(Kind::from_wire(kind.to_wire()), Some(kind));
        }
    }

    #[test]
    fn codes_are_sorted_by_who_must_act() {
        assert!(Code::ALL.is_sorted());
        assert_eq!(Code::BadFrame.actor(), Actor::Caller);
        assert_eq!(Code::TableFull.actor(), Actor::Operator);
        assert_eq!(Code::Internal.actor(), Actor::Us);
    }
}

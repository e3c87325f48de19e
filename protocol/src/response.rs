//! What a server answers: every answer, both ways.
//!
//! Clients ignore bytes behind the last field they know, so that answers can grow.

use alloc::vec::Vec;

use crate::codec::{Element, List, Reader, Sparse, Writer, patch_u32};
use crate::error::{DecodeError, EncodeError};
use crate::framing::Message;
use crate::header::{Envelope, Flags, Op};
use crate::limits::{
    ANSWER_BYTES_MAX, BATCH_ITEMS_MAX, BODY_BYTES_MAX, CHECK_LIMITS_MAX, FOUND_BYTES_MAX,
    HANDLE_LIMITS_MAX, HEADER_BYTES, HEADER_VALUE_BYTES_MAX, HEADERS_MAX, ITEM_HEADER_BYTES,
    MESSAGE_BYTES_MAX, METERS_MAX, PERMIT_BYTES, PING_BYTES_MAX, SLOTS_MAX, STATIC_HEADERS_MAX,
    TERSE_BYTES,
};
use crate::permit::{Permit, PermitId};
use crate::request::{Form, NO_LIMIT, index_or_none};
use crate::status::{Capabilities, Code, Decision, Kind, Mode, Retry, SlotUse, WhenUnavailable};

/// A duration or a moment that does not exist.
pub const NO_TIME: u64 = u64::MAX;
/// The limit of a limit that never denies.
pub const UNLIMITED: u64 = u64::MAX;
/// The length of a body that is not there.
const NO_BODY: u32 = u32::MAX;
/// The offset in an error that concerns no byte of the frame.
const NO_OFFSET: u32 = u32::MAX;

/// Any answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Response<'a> {
    /// To HELLO.
    Hello(HelloAnswer<'a>),
    /// To PING.
    Ping(PingAnswer<'a>),
    /// To PREPARE.
    Prepare(Prepared<'a>),
    /// To a check or a peek, by handle or inline.
    Check(Answer<'a>),
    /// To SET and ADJUST, by handle or inline.
    Set(SetAnswer),
    /// To RELEASE.
    Release(ReleaseAnswer),
    /// To RENEW.
    Renew(RenewAnswer),
    /// To SESSION.
    Session(SessionAnswer),
    /// To BATCH.
    Batch(BatchAnswer<'a>),
    /// To nothing: the server is about to leave.
    GoAway(GoAway<'a>),
    /// To any request that got no decision, or to nothing (call id 0) before the server closes.
    Error(ErrorAnswer<'a>),
}

impl<'a> Response<'a> {
    /// Decodes the message of a frame or of a batch's item.
    ///
    /// # Errors
    /// If it is no answer of this protocol; the server is then not to be trusted any further.
    #[inline]
    pub fn decode(message: &Message<'a>) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(message.body, message.offset);
        let op = Op(message.op.0 & 0x7FFF);
        if message.op == Op::ERROR {
            return ErrorAnswer::decode(&mut reader).map(Self::Error);
        }
        if !message.op.is_answer() {
            return Err(message.unsupported_op());
        }
        match op {
            Op::CHECK | Op::PEEK | Op::CHECK_INLINE | Op::PEEK_INLINE => {
                Answer::decode(&mut reader, message.flags).map(Self::Check)
            }
            Op::BATCH => BatchAnswer::decode(&mut reader).map(Self::Batch),
            Op::HELLO => HelloAnswer::decode(&mut reader).map(Self::Hello),
            Op::PING => PingAnswer::decode(&mut reader).map(Self::Ping),
            Op::PREPARE => Prepared::read(&mut reader).map(Self::Prepare),
            Op::SET | Op::SET_INLINE | Op::ADJUST | Op::ADJUST_INLINE => {
                SetAnswer::decode(&mut reader).map(Self::Set)
            }
            Op::RELEASE => ReleaseAnswer::decode(&mut reader).map(Self::Release),
            Op::RENEW => RenewAnswer::decode(&mut reader).map(Self::Renew),
            Op::SESSION => SessionAnswer::decode(&mut reader).map(Self::Session),
            Op::GOAWAY => GoAway::decode(&mut reader).map(Self::GoAway),
            _ => Err(message.unsupported_op()),
        }
    }

    /// Appends the answer to a request of this op.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(
        &self,
        request: Op,
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        match self {
            Self::Hello(answer) => answer.encode(envelope, out),
            Self::Ping(answer) => answer.encode(envelope, out),
            Self::Prepare(answer) => answer.encode(envelope, out),
            Self::Check(answer) => answer.encode(request, envelope, out),
            Self::Set(answer) => {
                answer.encode(request, envelope, out);
                Ok(())
            }
            Self::Release(answer) => {
                answer.encode(envelope, out);
                Ok(())
            }
            Self::Renew(answer) => {
                answer.encode(envelope, out);
                Ok(())
            }
            Self::Session(answer) => {
                answer.encode(envelope, out);
                Ok(())
            }
            Self::Batch(answer) => answer.encode(envelope, out),
            Self::GoAway(answer) => answer.encode(out),
            Self::Error(answer) => answer.encode(envelope, out),
        }
    }
}

/// The maxima of one server, as it tells them to its clients. Those of this crate by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maxima(pub [u64; Maxima::COUNT]);

macro_rules! maxima {
    ($($(#[$meta:meta])* $name:ident = $code:literal: $default:expr,)+) => {
        impl Maxima {
            /// How many maxima version 1 knows.
            pub const COUNT: usize = [$($code,)+].len();
            const DEFAULTS: Self = Self([$($default as u64,)+]);
            /// Name and number of each, in the order of their codes, which count from 1.
            pub const NAMES: [&'static str; Self::COUNT] = [$(stringify!($name),)+];

            $($(#[$meta])* pub const fn $name(&self) -> u64 { self.0[$code - 1] })+
        }
    };
}

maxima! {
    /// Bytes of a frame before the handshake.
    handshake_frame_bytes = 1: crate::limits::HANDSHAKE_FRAME_BYTES_MAX,
    /// Bytes of a frame to the server.
    frame_bytes = 2: crate::limits::FRAME_BYTES_MAX,
    /// Bytes of a frame to the client.
    answer_bytes = 3: crate::limits::ANSWER_BYTES_MAX,
    /// Items of a batch.
    batch_items = 4: crate::limits::BATCH_ITEMS_MAX,
    /// Requests in flight on one connection.
    in_flight = 5: crate::limits::IN_FLIGHT_MAX,
    /// Bytes of answers waiting to be read before the server stops reading.
    write_buffer_bytes = 6: crate::limits::WRITE_BUFFER_BYTES_MAX,
    /// Connections to the server.
    connections = 7: crate::limits::CONNECTIONS_MAX,
    /// Milliseconds to a whole HELLO.
    handshake_millis = 8: crate::limits::HANDSHAKE_MILLIS_MAX,
    /// Milliseconds from a frame's first byte to its last.
    frame_millis = 9: crate::limits::FRAME_MILLIS_MAX,
    /// Milliseconds without progress of a reader.
    stall_millis = 10: crate::limits::STALL_MILLIS_MAX,
    /// Milliseconds without a frame.
    idle_millis = 11: crate::limits::IDLE_MILLIS_MAX,
    /// Protocol errors until the server closes.
    protocol_errors = 12: crate::limits::PROTOCOL_ERRORS_MAX,
    /// Slots of a handle.
    slots = 13: crate::limits::SLOTS_MAX,
    /// Bytes of a value.
    value_bytes = 14: crate::limits::VALUE_BYTES_MAX,
    /// Inline limits of a check.
    inline_limits = 15: crate::limits::INLINE_LIMITS_MAX,
    /// Bytes of an inline key.
    inline_key_bytes = 16: crate::limits::INLINE_KEY_BYTES_MAX,
    /// Bytes of a name.
    name_bytes = 17: crate::limits::NAME_BYTES_MAX,
    /// Bytes of a credential.
    credential_bytes = 18: crate::limits::CREDENTIAL_BYTES_MAX,
    /// Meters of a handle.
    meters = 19: crate::limits::METERS_MAX,
    /// Limits of a handle.
    handle_limits = 20: crate::limits::HANDLE_LIMITS_MAX,
    /// Limits that apply to one check.
    check_limits = 21: crate::limits::CHECK_LIMITS_MAX,
    /// Response headers of a handle.
    headers = 22: crate::limits::HEADERS_MAX,
    /// Static headers of a denial.
    static_headers = 23: crate::limits::STATIC_HEADERS_MAX,
    /// Bytes of a response header's value.
    header_value_bytes = 24: crate::limits::HEADER_VALUE_BYTES_MAX,
    /// Bytes of a rendered body.
    body_bytes = 25: crate::limits::BODY_BYTES_MAX,
    /// Bytes of a message for people.
    message_bytes = 26: crate::limits::MESSAGE_BYTES_MAX,
    /// Bytes of a found value that an error repeats.
    found_bytes = 27: crate::limits::FOUND_BYTES_MAX,
    /// Bytes of a PING's payload.
    ping_bytes = 28: crate::limits::PING_BYTES_MAX,
    /// Highest cost.
    cost = 29: crate::limits::COST_MAX,
    /// Highest units per window, and burst.
    units = 30: crate::limits::UNITS_MAX,
    /// Shortest window in nanoseconds (the one minimum of the table).
    window_nanos_min = 31: crate::limits::WINDOW_NANOS_MIN,
    /// Longest window in nanoseconds.
    window_nanos = 32: crate::limits::WINDOW_NANOS_MAX,
    /// Tied permits of one connection.
    tied_permits = 33: crate::limits::TIED_PERMITS_MAX,
    /// Sequences of a session that are remembered.
    session_window = 34: crate::limits::SESSION_WINDOW_MAX,
    /// Sessions that the server remembers.
    sessions = 35: crate::limits::SESSIONS_MAX,
}

impl Default for Maxima {
    fn default() -> Self {
        Self::DEFAULTS
    }
}

impl Maxima {
    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut maxima = Self::default();
        for _ in 0..reader.u16("count of maxima")? {
            let code = usize::from(reader.u16("maximum code")?);
            let number = reader.u64("maximum")?;
            // Codes above those of version 1 are for clients that know them.
            if let Some(known) = code.checked_sub(1).and_then(|index| maxima.0.get_mut(index)) {
                *known = number;
            }
        }
        Ok(maxima)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.u16(Self::COUNT as u16);
        for (code, number) in (1..).zip(self.0) {
            writer.u16(code);
            writer.u64(number);
        }
    }

    /// These maxima with the number behind this code (counted from 1) replaced.
    pub fn with(mut self, code: usize, number: u64) -> Self {
        if let Some(known) = code.checked_sub(1).and_then(|index| self.0.get_mut(index)) {
            *known = number;
        }
        self
    }
}

/// The answer to HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloAnswer<'a> {
    /// The version that both sides speak from now on.
    pub version: u16,
    /// What the principal may do.
    pub capabilities: Capabilities,
    /// What the server offers beyond version 1; no bit has a meaning yet.
    pub features: u64,
    /// Another one after every start without state: counters of another instance are other counters.
    pub instance: [u8; 16],
    /// Who the client is taken for.
    pub principal: &'a str,
    /// The server's name and version, for people.
    pub server: &'a str,
    /// Every maximum.
    pub maxima: Maxima,
}

impl<'a> HelloAnswer<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let version = reader.u16("version")?;
        reader.u16("reserved")?;
        let capabilities = Capabilities(reader.u32("capabilities")?);
        let features = reader.u64("features")?;
        let instance = reader.bytes("instance")?;
        let principal = reader.name("principal")?;
        let server = reader.name("server")?;
        let maxima = Maxima::read(reader)?;
        Ok(Self { version, capabilities, features, instance, principal, server, maxima })
    }

    /// Appends the answer.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::HELLO.answer(), Flags::default());
        writer.u16(self.version);
        writer.u16(0);
        writer.u32(self.capabilities.0);
        writer.u64(self.features);
        writer.raw(&self.instance);
        writer.name("principal", self.principal);
        writer.name("server", self.server);
        self.maxima.write(&mut writer);
        writer.finish(crate::limits::HANDSHAKE_FRAME_BYTES_MAX)
    }
}

/// The answer to PING.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingAnswer<'a> {
    /// Cluster time in nanoseconds.
    pub cluster_nanos: u64,
    /// The node's wall time: nanoseconds since 1970-01-01T00:00:00Z.
    pub wall_nanos: u64,
    /// What the PING carried.
    pub payload: &'a [u8],
}

impl<'a> PingAnswer<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            cluster_nanos: reader.u64("cluster time")?,
            wall_nanos: reader.u64("wall time")?,
            payload: reader.bytes16("payload", PING_BYTES_MAX)?,
        })
    }

    /// Appends the answer.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::PING.answer(), Flags::default());
        writer.u64(self.cluster_nanos);
        writer.u64(self.wall_nanos);
        writer.bytes16("payload", self.payload, PING_BYTES_MAX);
        writer.finish(ANSWER_BYTES_MAX)
    }
}

/// A value that the caller sends with a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot<'a> {
    /// What it is read for.
    pub usage: SlotUse,
    /// A check without it cannot be decided.
    pub required: bool,
    /// The attribute's name.
    pub name: &'a str,
}

impl<'a> Element<'a> for Slot<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let at = *reader;
        let usage = reader.u8("slot use")?;
        let Some(usage) = SlotUse::from_wire(usage) else {
            return Err(at.unknown("slot use", u64::from(usage)));
        };
        let required = reader.u8("slot bits")? & 1 != 0;
        Ok(Self { usage, required, name: reader.name("slot")? })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.u8(self.usage.to_wire());
        writer.u8(u8::from(self.required));
        writer.name("slot", self.name);
    }
}

/// A limit of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitInfo<'a> {
    /// Its kind.
    pub kind: Kind,
    /// What its verdict does.
    pub mode: Mode,
    /// The number that a caller is told: a bucket's burst, another kind's units. 0 if it depends
    /// on the request, [`UNLIMITED`] if it never denies.
    pub limit: u64,
    /// Its name.
    pub name: &'a str,
    /// Its window's name (`minute`), empty for kinds without one.
    pub window: &'a str,
}

impl<'a> Element<'a> for LimitInfo<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let at = *reader;
        let kind = reader.u8("limit kind")?;
        let mode = reader.u8("limit mode")?;
        let (Some(kind), Some(mode)) = (Kind::from_wire(kind), Mode::from_wire(mode)) else {
            return Err(at.unknown("limit kind or mode", u64::from(kind)));
        };
        let limit = reader.u64("limit number")?;
        let name = reader.name("limit")?;
        Ok(Self { kind, mode, limit, name, window: reader.name("window")? })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.u8(self.kind.to_wire());
        writer.u8(self.mode.to_wire());
        writer.u64(self.limit);
        writer.name("limit", self.name);
        writer.name("window", self.window);
    }
}

/// A header of a denial whose value is always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticHeader<'a> {
    /// The header's name.
    pub name: &'a str,
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Element<'a> for StaticHeader<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let name = reader.name("static header")?;
        Ok(Self { name, value: reader.bytes16("static header", HEADER_VALUE_BYTES_MAX)? })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.name("static header", self.name);
        writer.bytes16("static header", self.value, HEADER_VALUE_BYTES_MAX);
    }
}

/// The answer to PREPARE: all a caller must know to check and to act when no answer comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prepared<'a> {
    /// Number to check with; the same on all connections and nodes of one policy.
    pub handle: u32,
    /// What to do when no decision can be had.
    pub when_unavailable: WhenUnavailable,
    /// The HTTP status of a denial.
    pub denied_status: u16,
    /// Changes whenever slots, meters, limits or headers do. Sent back with every check.
    pub layout: u64,
    /// The policy that this was made from.
    pub policy_version: u64,
    /// The API's name.
    pub api: &'a str,
    /// The class's name, empty if the server finds the class itself.
    pub class: &'a str,
    /// Values that a check may carry, in the order of the presence bitmap.
    pub slots: List<'a, Slot<'a>>,
    /// Meters, in the order of a check's costs.
    pub meters: List<'a, &'a str>,
    /// Limits, in the order of the indexes in answers.
    pub limits: List<'a, LimitInfo<'a>>,
    /// Names of the response headers, in the order of a rendered answer's values.
    pub headers: List<'a, &'a str>,
    /// Headers of a denial that is made without an answer.
    pub static_headers: List<'a, StaticHeader<'a>>,
}

impl<'a> Prepared<'a> {
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        fn count(
            reader: &Reader<'_>,
            field: &'static str,
            found: usize,
            max: usize,
        ) -> Result<usize, DecodeError> {
            if found <= max {
                return Ok(found);
            }
            Err(reader.out_of_range(Code::TooManyItems, field, found as u64, 0, max as u64))
        }
        let handle = reader.u32("handle")?;
        let at = *reader;
        let when_unavailable = reader.u8("when unavailable")?;
        let Some(when_unavailable) = WhenUnavailable::from_wire(when_unavailable) else {
            return Err(at.unknown("when unavailable", u64::from(when_unavailable)));
        };
        reader.u8("reserved")?;
        let denied_status = reader.u16("denied status")?;
        let layout = reader.u64("layout")?;
        let policy_version = reader.u64("policy version")?;
        let api = reader.name("api")?;
        let class = reader.name("class")?;
        let slots = usize::from(reader.u8("count of slots")?);
        let slots = reader.list(count(reader, "count of slots", slots, SLOTS_MAX)?)?;
        let meters = usize::from(reader.u8("count of meters")?);
        let meters = reader.list(count(reader, "count of meters", meters, METERS_MAX)?)?;
        let limits = usize::from(reader.u16("count of limits")?);
        let limits = reader.list(count(reader, "count of limits", limits, HANDLE_LIMITS_MAX)?)?;
        let headers = usize::from(reader.u8("count of headers")?);
        let headers = reader.list(count(reader, "count of headers", headers, HEADERS_MAX)?)?;
        let fixed = usize::from(reader.u8("count of static headers")?);
        let fixed = count(reader, "count of static headers", fixed, STATIC_HEADERS_MAX)?;
        let static_headers = reader.list(fixed)?;
        Ok(Self {
            handle,
            when_unavailable,
            denied_status,
            layout,
            policy_version,
            api,
            class,
            slots,
            meters,
            limits,
            headers,
            static_headers,
        })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.u32(self.handle);
        writer.u8(self.when_unavailable.to_wire());
        writer.u8(0);
        writer.u16(self.denied_status);
        writer.u64(self.layout);
        writer.u64(self.policy_version);
        writer.name("api", self.api);
        writer.name("class", self.class);
        writer.check("count of slots", self.slots.len() as u64, SLOTS_MAX as u64);
        writer.u8(self.slots.len() as u8);
        self.slots.write(writer);
        writer.check("count of meters", self.meters.len() as u64, METERS_MAX as u64);
        writer.u8(self.meters.len() as u8);
        self.meters.write(writer);
        writer.check("count of limits", self.limits.len() as u64, HANDLE_LIMITS_MAX as u64);
        writer.u16(self.limits.len() as u16);
        self.limits.write(writer);
        writer.check("count of headers", self.headers.len() as u64, HEADERS_MAX as u64);
        writer.u8(self.headers.len() as u8);
        self.headers.write(writer);
        let fixed = self.static_headers.len();
        writer.check("count of static headers", fixed as u64, STATIC_HEADERS_MAX as u64);
        writer.u8(fixed as u8);
        self.static_headers.write(writer);
    }

    /// Appends the answer.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::PREPARE.answer(), Flags::default());
        self.write(&mut writer);
        writer.finish(ANSWER_BYTES_MAX)
    }

    /// Appends the body alone, to be kept for [`encode_prepared`] and [`Detail::Layout`].
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode_body(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::bare(out);
        self.write(&mut writer);
        writer.finish_bare()
    }

    /// Decodes a body alone, as [`Detail::Layout`] carries it.
    ///
    /// # Errors
    /// If it is not the body of an answer to PREPARE.
    pub fn decode_body(body: &'a [u8]) -> Result<Self, DecodeError> {
        Self::read(&mut Reader::new(body, 0))
    }
}

/// Appends an answer to PREPARE whose body was made before.
///
/// # Errors
/// If the body is too long; then nothing was appended.
pub fn encode_prepared(
    body: &[u8],
    envelope: Envelope,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let mut writer = Writer::begin(out, envelope, Op::PREPARE.answer(), Flags::default());
    writer.raw(body);
    writer.finish(ANSWER_BYTES_MAX)
}

/// Where and when a decision was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Witness {
    /// The policy that decided.
    pub policy_version: u64,
    /// Index of the log entry that decided; 0 standalone.
    pub log_index: u64,
    /// Position within that entry; 0 standalone.
    pub position: u32,
    /// Cluster time of the decision in nanoseconds.
    pub cluster_nanos: u64,
}

impl Witness {
    #[inline]
    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let position = reader.u32("position")?;
        let policy_version = reader.u64("policy version")?;
        let log_index = reader.u64("log index")?;
        let cluster_nanos = reader.u64("cluster time")?;
        Ok(Self { policy_version, log_index, position, cluster_nanos })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.u32(self.position);
        writer.u64(self.policy_version);
        writer.u64(self.log_index);
        writer.u64(self.cluster_nanos);
    }
}

/// What every answer to a check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terse {
    /// Allow or deny.
    pub decision: Decision,
    /// No limit applied.
    pub unmatched: bool,
    /// No decision could be had, and `when_unavailable` let the request pass.
    pub failed_open: bool,
    /// The limit that denied, or on allow the one with the least left. An index into the
    /// handle's limits, or into the check's own. `None` if no limit applied.
    pub binding: Option<u16>,
    /// When the same request may pass.
    pub retry: Retry,
    /// Where and when it was decided.
    pub witness: Witness,
}

impl Terse {
    fn to_flags(self) -> Flags {
        Flags::UNMATCHED.only_if(self.unmatched).union(Flags::FAILED_OPEN.only_if(self.failed_open))
    }

    /// The fixed part at the front of an answer.
    #[inline]
    fn to_bytes(self) -> [u8; TERSE_BYTES] {
        let (retry_kind, retry_nanos) = self.retry.to_wire();
        let mut bytes = [0; TERSE_BYTES];
        bytes[0] = self.decision.to_wire();
        bytes[1] = retry_kind;
        bytes[2..4].copy_from_slice(&self.binding.unwrap_or(NO_LIMIT).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.witness.position.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.witness.policy_version.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.witness.log_index.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.witness.cluster_nanos.to_le_bytes());
        bytes[32..40].copy_from_slice(&retry_nanos.to_le_bytes());
        bytes
    }

    #[inline]
    fn read(reader: &mut Reader<'_>, flags: Flags) -> Result<Self, DecodeError> {
        let at = *reader;
        let decision = reader.u8("decision")?;
        let retry_kind = reader.u8("retry kind")?;
        let binding = index_or_none(reader.u16("binding limit")?);
        let witness = Witness::read(reader)?;
        let retry_nanos = reader.u64("retry")?;
        let Some(decision) = Decision::from_wire(decision) else {
            return Err(at.unknown("decision", u64::from(decision)));
        };
        let Some(retry) = Retry::from_wire(retry_kind, retry_nanos) else {
            return Err(at.unknown("retry kind", u64::from(retry_kind)));
        };
        Ok(Self {
            decision,
            unmatched: flags.contains(Flags::UNMATCHED),
            failed_open: flags.contains(Flags::FAILED_OPEN),
            binding,
            retry,
            witness,
        })
    }

    /// Appends the terse answer to a request of this op: the hot path.
    #[inline]
    pub fn encode(&self, request: Op, envelope: Envelope, out: &mut Vec<u8>) {
        let flags = self.to_flags();
        let body = self.to_bytes();
        match envelope {
            Envelope::Call(call) => {
                let mut frame = [0; HEADER_BYTES + TERSE_BYTES];
                frame[0..4].copy_from_slice(&((HEADER_BYTES + TERSE_BYTES) as u32).to_le_bytes());
                frame[4..6].copy_from_slice(&request.answer().0.to_le_bytes());
                frame[6..8].copy_from_slice(&flags.0.to_le_bytes());
                frame[8..16].copy_from_slice(&call.to_le_bytes());
                frame[16..].copy_from_slice(&body);
                out.extend_from_slice(&frame);
            }
            Envelope::Item => {
                let mut item = [0; ITEM_HEADER_BYTES + TERSE_BYTES];
                let length = (ITEM_HEADER_BYTES + TERSE_BYTES) as u32;
                item[0..4].copy_from_slice(&length.to_le_bytes());
                item[4..6].copy_from_slice(&request.answer().0.to_le_bytes());
                item[6..8].copy_from_slice(&flags.0.to_le_bytes());
                item[8..].copy_from_slice(&body);
                out.extend_from_slice(&item);
            }
        }
    }
}

/// What one limit says of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LimitNumbers {
    /// Index into the handle's limits, or into the check's own.
    pub index: u16,
    /// What this limit says for itself.
    pub verdict: Decision,
    /// The limit was in shadow mode: its verdict decided nothing.
    pub shadow: bool,
    /// When this limit would let the same request pass.
    pub retry: Retry,
    /// A bucket's burst, another kind's units; [`UNLIMITED`] if it never denies.
    pub limit: u64,
    /// Units left after this decision, of a cap all of them; [`UNLIMITED`] if it never denies.
    pub remaining: u64,
    /// Nanoseconds until one more unit is left: of permits until the first one lapses. 0 if all
    /// are, [`NO_TIME`] if time brings none, as of levels and caps.
    pub next_nanos: u64,
    /// Nanoseconds until all units are left (bucket, sliding) or the window ends (fixed,
    /// calendar); [`NO_TIME`] for other kinds.
    pub full_nanos: u64,
}

impl<'a> Element<'a> for LimitNumbers {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let at = *reader;
        let index = reader.u16("limit index")?;
        let verdict = reader.u8("verdict")?;
        let retry_kind = reader.u8("retry kind")?;
        let bits = reader.u32("limit bits")?;
        let limit = reader.u64("limit")?;
        let remaining = reader.u64("remaining")?;
        let retry_nanos = reader.u64("retry")?;
        let next_nanos = reader.u64("next unit")?;
        let full_nanos = reader.u64("full or window end")?;
        let Some(verdict) = Decision::from_wire(verdict) else {
            return Err(at.unknown("verdict", u64::from(verdict)));
        };
        let Some(retry) = Retry::from_wire(retry_kind, retry_nanos) else {
            return Err(at.unknown("retry kind", u64::from(retry_kind)));
        };
        let shadow = bits & 1 != 0;
        Ok(Self { index, verdict, shadow, retry, limit, remaining, next_nanos, full_nanos })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        let (retry_kind, retry_nanos) = self.retry.to_wire();
        writer.u16(self.index);
        writer.u8(self.verdict.to_wire());
        writer.u8(retry_kind);
        writer.u32(u32::from(self.shadow));
        writer.u64(self.limit);
        writer.u64(self.remaining);
        writer.u64(retry_nanos);
        writer.u64(self.next_nanos);
        writer.u64(self.full_nanos);
    }
}

/// The numbers of every limit that applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Numbers<'a> {
    /// The node's wall time: nanoseconds since 1970-01-01T00:00:00Z.
    pub wall_nanos: u64,
    /// One entry a limit, at most [`CHECK_LIMITS_MAX`].
    pub limits: List<'a, LimitNumbers>,
}

/// A response that a gateway can send as it is, or take headers from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rendered<'a> {
    /// HTTP status: 200 on allow, where the upstream's own status is sent.
    pub status: u16,
    /// Values by the handle's header names; those without a value are left out.
    pub headers: Sparse<'a>,
    /// The body's content type; empty if there is no body.
    pub content_type: &'a str,
    /// The body of a denial.
    pub body: Option<&'a [u8]>,
}

/// The answer to CHECK and PEEK, by handle or inline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer<'a> {
    /// Decision, binding limit, retry, witness.
    pub terse: Terse,
    /// Each limit's numbers, if asked for.
    pub numbers: Option<Numbers<'a>>,
    /// Status, headers and body, if asked for.
    pub rendered: Option<Rendered<'a>>,
    /// The body was longer than its maximum and is left out.
    pub body_omitted: bool,
    /// What the check was granted of concurrency limits, if anything. Never left out.
    pub permit: Option<Permit>,
}

impl<'a> From<Terse> for Answer<'a> {
    fn from(terse: Terse) -> Self {
        Self { terse, numbers: None, rendered: None, body_omitted: false, permit: None }
    }
}

impl<'a> Answer<'a> {
    #[inline]
    fn decode(reader: &mut Reader<'a>, flags: Flags) -> Result<Self, DecodeError> {
        let terse = Terse::read(reader, flags)?;
        let mut numbers = None;
        if flags.contains(Flags::NUMBERS) {
            let wall_nanos = reader.u64("wall time")?;
            let at = *reader;
            let count = usize::from(reader.u16("count of limits")?);
            if count > CHECK_LIMITS_MAX {
                let (found, max) = (count as u64, CHECK_LIMITS_MAX as u64);
                return Err(at.out_of_range(Code::TooManyItems, "count of limits", found, 0, max));
            }
            numbers = Some(Numbers { wall_nanos, limits: reader.list(count)? });
        }
        let mut rendered = None;
        if flags.contains(Flags::RENDERED) {
            let status = reader.u16("status")?;
            let presence = reader.u64("header presence")?;
            let headers = reader.sparse(presence, "header value", HEADER_VALUE_BYTES_MAX)?;
            let content_type = reader.text16("content type", HEADER_VALUE_BYTES_MAX)?;
            let at = *reader;
            let length = reader.u32("body length")?;
            let body = if length == NO_BODY {
                None
            } else if length as usize > BODY_BYTES_MAX {
                let (found, max) = (u64::from(length), BODY_BYTES_MAX as u64);
                return Err(at.out_of_range(Code::TooLarge, "body", found, 0, max));
            } else {
                Some(reader.take(length as usize, "body")?)
            };
            rendered = Some(Rendered { status, headers, content_type, body });
        }
        let mut permit = None;
        if flags.contains(Flags::PERMIT) {
            let id = PermitId(reader.bytes("permit")?);
            permit = Some(Permit { id, expires_nanos: reader.u64("expires")? });
        }
        let body_omitted = flags.contains(Flags::BODY_OMITTED);
        Ok(Self { terse, numbers, rendered, body_omitted, permit })
    }

    /// Appends the answer to a request of this op. A body that is too long is left out, and the
    /// answer says so.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    #[inline]
    pub fn encode(
        &self,
        request: Op,
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let has_blocks = self.numbers.is_some() || self.rendered.is_some() || self.permit.is_some();
        if !has_blocks && !self.body_omitted {
            self.terse.encode(request, envelope, out);
            return Ok(());
        }
        self.encode_blocks(request, envelope, out)
    }

    fn encode_blocks(
        &self,
        request: Op,
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let form =
            Form { numbers: self.numbers.is_some(), rendered: self.rendered.is_some() }.to_flags();
        let body = self.rendered.and_then(|rendered| rendered.body);
        let too_long = body.is_some_and(|body| body.len() > BODY_BYTES_MAX);
        let omitted = Flags::BODY_OMITTED.only_if(self.body_omitted || too_long);
        let permit = Flags::PERMIT.only_if(self.permit.is_some());
        let flags = self.terse.to_flags().union(form).union(omitted).union(permit);
        let mut writer = Writer::begin(out, envelope, request.answer(), flags);
        writer.raw(&self.terse.to_bytes());
        if let Some(numbers) = &self.numbers {
            writer.u64(numbers.wall_nanos);
            let count = numbers.limits.len();
            writer.check("count of limits", count as u64, CHECK_LIMITS_MAX as u64);
            writer.u16(count as u16);
            numbers.limits.write(&mut writer);
        }
        if let Some(rendered) = &self.rendered {
            writer.u16(rendered.status);
            writer.u64(rendered.headers.presence());
            rendered.headers.write(&mut writer, "header value", HEADER_VALUE_BYTES_MAX);
            let content_type = rendered.content_type.as_bytes();
            writer.bytes16("content type", content_type, HEADER_VALUE_BYTES_MAX);
            match body.filter(|_| !too_long) {
                Some(body) => {
                    writer.u32(body.len() as u32);
                    writer.raw(body);
                }
                None => writer.u32(NO_BODY),
            }
        }
        if let Some(permit) = &self.permit {
            writer.raw(&permit.id.0);
            writer.u64(permit.expires_nanos);
        }
        writer.finish(ANSWER_BYTES_MAX)
    }

    /// What must be told whatever else is left out: the decision, and the permit, which could not
    /// be given back without its id.
    pub fn shortest(&self) -> Answer<'static> {
        Answer { permit: self.permit, ..self.terse.into() }
    }
}

/// The answer to SET and ADJUST, by handle or inline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAnswer {
    /// Counters that were set or moved.
    pub counters: u32,
    /// Where and when.
    pub witness: Witness,
}

impl SetAnswer {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let counters = reader.u32("counters")?;
        Ok(Self { counters, witness: Witness::read(reader)? })
    }

    /// Appends the answer to a request of this op.
    pub fn encode(&self, request: Op, envelope: Envelope, out: &mut Vec<u8>) {
        let mut writer = Writer::begin(out, envelope, request.answer(), Flags::default());
        writer.u32(self.counters);
        self.witness.write(&mut writer);
        // Thirty-two bytes always fit.
        let _ = writer.finish(ANSWER_BYTES_MAX);
    }
}

/// The answer to RELEASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseAnswer {
    /// Units given back, over all limits; 0 if the permit was not held any more.
    pub units: u64,
    /// Where and when.
    pub witness: Witness,
}

impl ReleaseAnswer {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let units = reader.u64("units")?;
        reader.u32("reserved")?;
        Ok(Self { units, witness: Witness::read(reader)? })
    }

    /// Appends the answer.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) {
        let mut writer = Writer::begin(out, envelope, Op::RELEASE.answer(), Flags::default());
        writer.u64(self.units);
        writer.u32(0);
        self.witness.write(&mut writer);
        // Forty bytes always fit.
        let _ = writer.finish(ANSWER_BYTES_MAX);
    }
}

/// The answer to RENEW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenewAnswer {
    /// Nanoseconds from now until the permit lapses, at least 1 and the earliest if it holds
    /// several limits; `None` if it was not held any more.
    pub expires_nanos: Option<u64>,
    /// Where and when.
    pub witness: Witness,
}

impl RenewAnswer {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let expires_nanos = Some(reader.u64("expires")?).filter(|nanos| *nanos != 0);
        reader.u32("reserved")?;
        Ok(Self { expires_nanos, witness: Witness::read(reader)? })
    }

    /// Appends the answer.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) {
        let mut writer = Writer::begin(out, envelope, Op::RENEW.answer(), Flags::default());
        writer.u64(self.expires_nanos.unwrap_or(0));
        writer.u32(0);
        self.witness.write(&mut writer);
        // Forty bytes always fit.
        let _ = writer.finish(ANSWER_BYTES_MAX);
    }
}

/// The answer to SESSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionAnswer {
    /// The session's number, for [`RequestId`](crate::RequestId)s.
    pub session: u64,
    /// Sequences that the server remembers: the highest it has seen, and those right below it.
    pub window: u32,
    /// Nanoseconds without a request of the session after which it may be forgotten.
    pub idle_nanos: u64,
}

impl SessionAnswer {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let session = reader.u64("session")?;
        let window = reader.u32("window")?;
        reader.u32("reserved")?;
        Ok(Self { session, window, idle_nanos: reader.u64("idle")? })
    }

    /// Appends the answer.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) {
        let mut writer = Writer::begin(out, envelope, Op::SESSION.answer(), Flags::default());
        writer.u64(self.session);
        writer.u32(self.window);
        writer.u32(0);
        writer.u64(self.idle_nanos);
        // Twenty-four bytes always fit.
        let _ = writer.finish(ANSWER_BYTES_MAX);
    }
}

/// The answer to BATCH: one message an item, in the items' order. Each is decoded by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchAnswer<'a> {
    /// An answer, or an error, for each item.
    pub items: List<'a, Message<'a>>,
}

impl<'a> BatchAnswer<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let at = *reader;
        let count = reader.u32("count of items")?;
        if count as usize > BATCH_ITEMS_MAX {
            let (found, max) = (u64::from(count), BATCH_ITEMS_MAX as u64);
            return Err(at.out_of_range(Code::TooManyItems, "count of items", found, 1, max));
        }
        Ok(Self { items: reader.list(count as usize)? })
    }

    /// Appends the answer.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::BATCH.answer(), Flags::default());
        writer.check("count of items", self.items.len() as u64, BATCH_ITEMS_MAX as u64);
        writer.u32(self.items.len() as u32);
        self.items.write(&mut writer);
        writer.finish(ANSWER_BYTES_MAX)
    }
}

/// Writes the answer to a BATCH item by item. Never fails: where room is short, an item keeps its
/// decision and its permit, or its error code, and loses what goes beyond it.
#[derive(Debug)]
pub struct BatchResponse<'b> {
    out: &'b mut Vec<u8>,
    start: usize,
    items: usize,
    expected: usize,
}

impl<'b> BatchResponse<'b> {
    /// Begins the answer to a batch of `expected` items, at most [`BATCH_ITEMS_MAX`].
    pub fn begin(call: u64, expected: usize, out: &'b mut Vec<u8>) -> Self {
        let start = out.len();
        let op = Op::BATCH.answer();
        let mut writer = Writer::begin(out, Envelope::Call(call), op, Flags::default());
        writer.u32(0);
        Self { out, start, items: 0, expected }
    }

    /// The answer to the next item, a check or peek, which had this op.
    #[inline]
    pub fn answer(&mut self, request: Op, answer: &Answer<'_>) {
        let before = self.out.len();
        if answer.encode(request, Envelope::Item, self.out).is_err() || !self.leaves_room() {
            self.out.truncate(before);
            // Terse and permit always fit.
            let _ = answer.shortest().encode(request, Envelope::Item, self.out);
        }
        self.items += 1;
    }

    /// The answer to the next item, a SET or ADJUST, which had this op.
    pub fn set(&mut self, request: Op, answer: &SetAnswer) {
        answer.encode(request, Envelope::Item, self.out);
        self.items += 1;
    }

    /// The answer to the next item, a RELEASE.
    pub fn release(&mut self, answer: &ReleaseAnswer) {
        answer.encode(Envelope::Item, self.out);
        self.items += 1;
    }

    /// The answer to the next item, a RENEW.
    pub fn renew(&mut self, answer: &RenewAnswer) {
        answer.encode(Envelope::Item, self.out);
        self.items += 1;
    }

    /// The error of the next item.
    pub fn error(&mut self, error: &ErrorAnswer<'_>) {
        let before = self.out.len();
        if error.encode(Envelope::Item, self.out).is_err() || !self.leaves_room() {
            self.out.truncate(before);
            let bare = ErrorAnswer { message: "", detail: Detail::None, ..*error };
            // Without message and detail an error is shorter than a terse answer.
            let _ = bare.encode(Envelope::Item, self.out);
        }
        self.items += 1;
    }

    /// Every item still to come fits at least as a terse answer with a permit. No other answer
    /// without an error's words is longer.
    #[inline]
    fn leaves_room(&self) -> bool {
        let left = self.expected.saturating_sub(self.items + 1);
        let used = self.out.len() - self.start;
        used + left * (ITEM_HEADER_BYTES + TERSE_BYTES + PERMIT_BYTES) <= ANSWER_BYTES_MAX
    }

    /// Ends the answer.
    pub fn finish(self) {
        let length = (self.out.len() - self.start) as u32;
        patch_u32(self.out, self.start, length);
        patch_u32(self.out, self.start + HEADER_BYTES, self.items as u32);
    }
}

/// GOAWAY: send no new requests on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoAway<'a> {
    /// Why.
    pub code: Code,
    /// Milliseconds until the server closes, whatever is still in flight.
    pub grace_millis: u32,
    /// For people.
    pub message: &'a str,
}

impl<'a> GoAway<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let code = reader.u16("code")?;
        reader.u16("reserved")?;
        let grace_millis = reader.u32("grace")?;
        let message = reader.text16("message", MESSAGE_BYTES_MAX)?;
        let code = Code::from_wire(code).unwrap_or(Code::Internal);
        Ok(Self { code, grace_millis, message })
    }

    /// Appends the frame; its call id is 0.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let op = Op::GOAWAY.answer();
        let mut writer = Writer::begin(out, Envelope::Call(0), op, Flags::default());
        writer.u16(self.code.to_wire());
        writer.u16(0);
        writer.u32(self.grace_millis);
        writer.bytes16("message", self.message.as_bytes(), MESSAGE_BYTES_MAX);
        writer.finish(ANSWER_BYTES_MAX)
    }
}

/// What an error says beyond its code, for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Detail<'a> {
    /// Nothing.
    #[default]
    None,
    /// `UNSUPPORTED_VERSION`: what the server speaks.
    Versions {
        /// Lowest version.
        min: u16,
        /// Highest version.
        max: u16,
    },
    /// A number out of its range.
    Range {
        /// The field, as `SPEC.md` names it.
        field: &'a str,
        /// The number found.
        found: u64,
        /// Lowest number allowed.
        min: u64,
        /// Highest number allowed; below `min` if none is.
        max: u64,
    },
    /// `BAD_ATTRIBUTE`: a value that a limit cannot use.
    Attribute {
        /// The limit's name; empty if it is no single limit's matter.
        limit: &'a str,
        /// The attribute's name.
        attribute: &'a str,
        /// What was sent, at most its first [`FOUND_BYTES_MAX`] bytes; `None` if nothing was.
        found: Option<&'a [u8]>,
    },
    /// `STALE_HANDLE`: the body of the new answer to PREPARE, see [`Prepared::decode_body`].
    Layout(&'a [u8]),
    /// `FORBIDDEN`: the capabilities that it takes.
    Capability(Capabilities),
    /// A detail of a number this crate does not know.
    Unknown(u8),
}

/// ERROR: a request that got no decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ErrorAnswer<'a> {
    /// What is wrong.
    pub code: Code,
    /// The server closes the connection after this frame.
    pub closes: bool,
    /// Offset in the frame of the field at fault, if a field is.
    pub offset: Option<u32>,
    /// Nanoseconds after which to try again, 0 if the server cannot tell.
    pub retry_nanos: u64,
    /// For people: what was found, what is allowed.
    pub message: &'a str,
    /// For programs.
    pub detail: Detail<'a>,
}

impl<'a> ErrorAnswer<'a> {
    /// An error without offset, retry or detail that leaves the connection open. A message above
    /// [`MESSAGE_BYTES_MAX`] is cut.
    pub fn new(code: Code, message: &'a str) -> Self {
        let message =
            message.get(..message.floor_char_boundary(MESSAGE_BYTES_MAX)).unwrap_or_default();
        Self { code, closes: false, offset: None, retry_nanos: 0, message, detail: Detail::None }
    }

    /// The error for bytes that could not be decoded; `message` is for people.
    pub fn from_decode(error: &DecodeError, message: &'a str) -> Self {
        let DecodeError { field, found, min, max, .. } = *error;
        Self {
            offset: Some(error.offset),
            detail: Detail::Range { field, found, min, max },
            ..Self::new(error.code, message)
        }
    }

    /// The same, and the connection closes after it.
    pub fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// The same with a detail.
    pub fn with_detail(mut self, detail: Detail<'a>) -> Self {
        self.detail = detail;
        self
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let code = reader.u16("code")?;
        let closes = reader.u8("closes")? & 1 != 0;
        let kind = reader.u8("detail kind")?;
        let offset = reader.u32("offset")?;
        let retry_nanos = reader.u64("retry")?;
        let message = reader.text16("message", MESSAGE_BYTES_MAX)?;
        let length = reader.u32("detail length")? as usize;
        let offset_of_detail = reader.offset();
        let mut body = Reader::new(reader.take(length, "detail")?, offset_of_detail);
        let detail = match kind {
            0 => Detail::None,
            1 => Detail::Versions {
                min: body.u16("lowest version")?,
                max: body.u16("highest version")?,
            },
            2 => Detail::Range {
                found: body.u64("found")?,
                min: body.u64("lowest")?,
                max: body.u64("highest")?,
                field: body.name("field")?,
            },
            3 => {
                let limit = body.name("limit")?;
                let attribute = body.name("attribute")?;
                let present = body.u8("found")? != 0;
                let found = body.bytes16("found", FOUND_BYTES_MAX)?;
                Detail::Attribute { limit, attribute, found: Some(found).filter(|_| present) }
            }
            4 => Detail::Layout(body.rest()),
            5 => Detail::Capability(Capabilities(body.u32("capability")?)),
            other => Detail::Unknown(other),
        };
        // Of a code that a later version added only the worst can be assumed.
        let code = Code::from_wire(code).unwrap_or(Code::Internal);
        let offset = Some(offset).filter(|offset| *offset != NO_OFFSET);
        Ok(Self { code, closes, offset, retry_nanos, message, detail })
    }

    /// Appends the error.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::ERROR, Flags::default());
        writer.u16(self.code.to_wire());
        writer.u8(u8::from(self.closes));
        let kind = match self.detail {
            Detail::None => 0,
            Detail::Versions { .. } => 1,
            Detail::Range { .. } => 2,
            Detail::Attribute { .. } => 3,
            Detail::Layout(_) => 4,
            Detail::Capability(_) => 5,
            Detail::Unknown(kind) => kind,
        };
        writer.u8(kind);
        writer.u32(self.offset.unwrap_or(NO_OFFSET));
        writer.u64(self.retry_nanos);
        writer.bytes16("message", self.message.as_bytes(), MESSAGE_BYTES_MAX);
        let name = |name: &str| 1 + name.len();
        let length = match self.detail {
            Detail::None | Detail::Unknown(_) => 0,
            Detail::Versions { .. } => 4,
            Detail::Range { field, .. } => 24 + name(field),
            Detail::Attribute { limit, attribute, found } => {
                let found = found.unwrap_or_default().len().min(FOUND_BYTES_MAX);
                name(limit) + name(attribute) + 3 + found
            }
            Detail::Layout(body) => body.len(),
            Detail::Capability(_) => 4,
        };
        writer.u32(length as u32);
        match self.detail {
            Detail::None | Detail::Unknown(_) => {}
            Detail::Versions { min, max } => {
                writer.u16(min);
                writer.u16(max);
            }
            Detail::Range { field, found, min, max } => {
                writer.u64(found);
                writer.u64(min);
                writer.u64(max);
                writer.name("field", field);
            }
            Detail::Attribute { limit, attribute, found } => {
                writer.name("limit", limit);
                writer.name("attribute", attribute);
                writer.u8(u8::from(found.is_some()));
                let found = found.unwrap_or_default();
                let cut = found.get(..FOUND_BYTES_MAX).unwrap_or(found);
                writer.bytes16("found", cut, FOUND_BYTES_MAX);
            }
            Detail::Layout(body) => writer.raw(body),
            Detail::Capability(capability) => writer.u32(capability.0),
        }
        writer.finish(ANSWER_BYTES_MAX)
    }
}

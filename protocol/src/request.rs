//! What a client asks: every request, both ways.
//!
//! A decoded request borrows from its frame and allocates nothing; lengths and ranges have been
//! checked, names have not been looked up. What a request means is decided elsewhere.

use alloc::vec::Vec;

use crate::codec::{Element, List, Reader, Sparse, Writer, patch_u32};
use crate::error::{DecodeError, EncodeError};
use crate::framing::Message;
use crate::header::{Envelope, Flags, Op};
use crate::limits::{
    BATCH_ITEMS_MAX, COST_MAX, CREDENTIAL_BYTES_MAX, FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX,
    HEADER_BYTES, INLINE_KEY_BYTES_MAX, INLINE_LIMITS_MAX, METERS_MAX, PING_BYTES_MAX, SLOTS_MAX,
    UNITS_MAX, UNITS_MIN, VALUE_BYTES_MAX, WINDOW_NANOS_MAX, WINDOW_NANOS_MIN,
};
use crate::permit::PermitId;
use crate::status::{Align, Code, Kind};

/// The four bytes that open the body of HELLO.
pub const MAGIC: [u8; 4] = *b"TOLL";
/// The limit index that stands for all limits that apply (in SET and ADJUST), or none (in an
/// answer).
pub const NO_LIMIT: u16 = 0xFFFF;

/// Any request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Request<'a> {
    /// The handshake.
    Hello(Hello<'a>),
    /// Is answered at once.
    Ping(Ping<'a>),
    /// Asks for a handle.
    Prepare(Prepare<'a>),
    /// CHECK or PEEK by handle.
    Check(Check<'a>),
    /// CHECK or PEEK of inline limits.
    CheckInline(CheckInline<'a>),
    /// SET by handle.
    Set(Set<'a>),
    /// SET of an inline limit.
    SetInline(SetInline<'a>),
    /// ADJUST by handle.
    Adjust(Adjust<'a>),
    /// ADJUST of an inline limit.
    AdjustInline(AdjustInline<'a>),
    /// Gives a permit back.
    Release(Release),
    /// Keeps a permit longer.
    Renew(Renew),
    /// Opens a session for request ids. It has no fields.
    Session,
    /// Several requests.
    Batch(Batch<'a>),
}

impl<'a> Request<'a> {
    /// Decodes the message of a frame or of a batch item.
    ///
    /// # Errors
    /// The error to answer with. None of them but a HELLO's wrong magic spoils the stream.
    #[inline]
    pub fn decode(message: &Message<'a>) -> Result<Self, DecodeError> {
        Ok(match message.op {
            Op::CHECK => Self::Check(Check::decode(message, Intent::Charge)?),
            Op::PEEK => Self::Check(Check::decode(message, Intent::Peek)?),
            Op::CHECK_INLINE => Self::CheckInline(CheckInline::decode(message, Intent::Charge)?),
            Op::PEEK_INLINE => Self::CheckInline(CheckInline::decode(message, Intent::Peek)?),
            Op::BATCH => Self::Batch(Batch::decode(message)?),
            Op::HELLO => Self::Hello(Hello::decode(message)?),
            Op::PING => Self::Ping(Ping::decode(message)?),
            Op::PREPARE => Self::Prepare(Prepare::decode(message)?),
            Op::SET => Self::Set(Set::decode(message)?),
            Op::SET_INLINE => Self::SetInline(SetInline::decode(message)?),
            Op::ADJUST => Self::Adjust(Adjust::decode(message)?),
            Op::ADJUST_INLINE => Self::AdjustInline(AdjustInline::decode(message)?),
            Op::RELEASE => Self::Release(Release::decode(message)?),
            Op::RENEW => Self::Renew(Renew::decode(message)?),
            Op::SESSION => {
                open(message)?.finish()?;
                Self::Session
            }
            _ => return Err(message.unsupported_op()),
        })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Hello(request) => request.encode(envelope, out),
            Self::Ping(request) => request.encode(envelope, out),
            Self::Prepare(request) => request.encode(envelope, out),
            Self::Check(request) => request.encode(envelope, out),
            Self::CheckInline(request) => request.encode(envelope, out),
            Self::Set(request) => request.encode(envelope, out),
            Self::SetInline(request) => request.encode(envelope, out),
            Self::Adjust(request) => request.encode(envelope, out),
            Self::AdjustInline(request) => request.encode(envelope, out),
            Self::Release(request) => request.encode(envelope, out),
            Self::Renew(request) => request.encode(envelope, out),
            Self::Session => {
                let writer = Writer::begin(out, envelope, Op::SESSION, Flags::default());
                writer.finish(FRAME_BYTES_MAX)
            }
            Self::Batch(request) => request.encode(envelope, out),
        }
    }
}

/// The body of a message whose must-understand flags all mean something with its op.
#[inline]
fn open<'a>(message: &Message<'a>) -> Result<Reader<'a>, DecodeError> {
    let allowed = message.op.flags_allowed();
    let needed = message.flags.0 & Flags::MUST_UNDERSTAND.0;
    if Flags(needed).without(allowed) == Flags::default() {
        Ok(Reader::new(message.body, message.offset))
    } else {
        Err(message.unsupported_flag(allowed))
    }
}

/// Whether a request wants its answer. Those that are always answered, such as checks, do not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reply {
    /// It does.
    #[default]
    Wanted,
    /// It does not: nothing is answered, neither a result nor an error, but for an error that
    /// closes the connection. Of frames only; an item of a batch is written without it.
    None,
}

impl Reply {
    #[inline]
    fn from_flags(flags: Flags) -> Self {
        if flags.contains(Flags::NO_REPLY) { Self::None } else { Self::Wanted }
    }

    fn to_flags(self, envelope: Envelope) -> Flags {
        let in_frame = matches!(envelope, Envelope::Call(_));
        Flags::NO_REPLY.only_if(in_frame && self == Self::None)
    }
}

/// Names a request within a session, so that sending it again does nothing again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The session, from the answer to SESSION.
    pub session: u64,
    /// The client's number of the request within the session, counted from 1.
    pub sequence: u64,
}

impl RequestId {
    #[inline]
    fn read(reader: &mut Reader<'_>, flags: Flags) -> Result<Option<Self>, DecodeError> {
        if !flags.contains(Flags::REQUEST_ID) {
            return Ok(None);
        }
        let session = reader.u64("session")?;
        let at = *reader;
        let sequence = reader.u64("sequence")?;
        if sequence == 0 {
            return Err(at.out_of_range(Code::BadFrame, "sequence", 0, 1, u64::MAX));
        }
        Ok(Some(Self { session, sequence }))
    }

    fn write(id: Option<Self>, writer: &mut Writer<'_>) {
        if let Some(Self { session, sequence }) = id {
            writer.u64(session);
            writer.u64(sequence);
        }
    }
}

/// The flags of a request that changes counters.
fn change_flags(id: Option<RequestId>, reply: Reply, envelope: Envelope) -> Flags {
    Flags::REQUEST_ID.only_if(id.is_some()).union(reply.to_flags(envelope))
}

/// Whether a check charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Charge if allowed.
    Charge,
    /// Only say what a charge would come to.
    Peek,
}

/// How much an answer is to tell; the terse part always comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Form {
    /// Each limit's numbers.
    pub numbers: bool,
    /// Status, header values and body, ready to send. By handle only.
    pub rendered: bool,
}

impl Form {
    /// Decision, binding limit and retry.
    pub const TERSE: Self = Self { numbers: false, rendered: false };
    /// Each limit's numbers as well.
    pub const NUMBERS: Self = Self { numbers: true, rendered: false };
    /// Status, header values and body as well.
    pub const RENDERED: Self = Self { numbers: false, rendered: true };
    /// Everything.
    pub const FULL: Self = Self { numbers: true, rendered: true };

    #[inline]
    fn from_flags(flags: Flags) -> Self {
        Self { numbers: flags.contains(Flags::NUMBERS), rendered: flags.contains(Flags::RENDERED) }
    }

    /// The flags that ask for this form, or say that it is there.
    #[inline]
    pub const fn to_flags(self) -> Flags {
        Flags::NUMBERS.only_if(self.numbers).union(Flags::RENDERED.only_if(self.rendered))
    }
}

/// HELLO: who speaks, and which versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Lowest version that the client speaks.
    pub version_min: u16,
    /// Highest version that the client speaks.
    pub version_max: u16,
    /// The client's name and version, for people.
    pub client: &'a str,
    /// How the credential is to be read; 0 if there is none.
    pub credential_scheme: u8,
    /// What proves who the client is; empty if there is nothing.
    pub credential: &'a [u8],
}

impl<'a> Hello<'a> {
    fn decode(message: &Message<'a>) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let at = reader;
        let magic = reader.u32("magic")?;
        if magic != u32::from_le_bytes(MAGIC) {
            let expected = u64::from(u32::from_le_bytes(MAGIC));
            let found = u64::from(magic);
            return Err(at.out_of_range(Code::BadFrame, "magic", found, expected, expected));
        }
        let version_min = reader.u16("lowest version")?;
        let at = reader;
        let version_max = reader.u16("highest version")?;
        if version_max < version_min {
            let (found, min) = (u64::from(version_max), u64::from(version_min));
            return Err(at.out_of_range(Code::BadFrame, "highest version", found, min, 0xFFFF));
        }
        let client = reader.name("client")?;
        let credential_scheme = reader.u8("credential scheme")?;
        let credential = reader.bytes16("credential", CREDENTIAL_BYTES_MAX)?;
        // Bytes behind these belong to later versions, which this one must be able to refuse.
        Ok(Self { version_min, version_max, client, credential_scheme, credential })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::HELLO, Flags::default());
        writer.raw(&MAGIC);
        writer.u16(self.version_min);
        writer.u16(self.version_max);
        writer.name("client", self.client);
        writer.u8(self.credential_scheme);
        writer.bytes16("credential", self.credential, CREDENTIAL_BYTES_MAX);
        writer.finish(HANDSHAKE_FRAME_BYTES_MAX)
    }
}

/// PING: bytes that come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping<'a> {
    /// Returned as they are.
    pub payload: &'a [u8],
}

impl<'a> Ping<'a> {
    fn decode(message: &Message<'a>) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let payload = reader.bytes16("payload", PING_BYTES_MAX)?;
        reader.finish()?;
        Ok(Self { payload })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::PING, Flags::default());
        writer.bytes16("payload", self.payload, PING_BYTES_MAX);
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// PREPARE: the API, and the class if the caller knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepare<'a> {
    /// The API's name.
    pub api: &'a str,
    /// The class's name; `None` lets the server find the class by method and path.
    pub class: Option<&'a str>,
}

impl<'a> Prepare<'a> {
    fn decode(message: &Message<'a>) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let api = reader.name("api")?;
        let class = reader.name("class")?;
        reader.finish()?;
        Ok(Self { api, class: Some(class).filter(|class| !class.is_empty()) })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::PREPARE, Flags::default());
        writer.name("api", self.api);
        writer.name("class", self.class.unwrap_or_default());
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// CHECK or PEEK by handle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Check<'a> {
    /// Charge, or only say what a charge would come to.
    pub intent: Intent,
    /// How much the answer is to tell.
    pub form: Form,
    /// Permits that are granted go back when the connection closes. A peek, which is granted none,
    /// is written without it.
    pub tied: bool,
    /// A node that does not lead its cluster answers NOT_LEADER instead of handing the check on. A
    /// peek, which is never handed on, is written without it.
    pub no_forward: bool,
    /// The handle's number.
    pub handle: u32,
    /// The layout that came with the handle.
    pub layout: u64,
    /// With one, the check charges at most once however often it is sent. A peek is written without
    /// it.
    pub id: Option<RequestId>,
    /// Nanoseconds, from its arrival, after which the caller no longer wants an answer.
    pub deadline_nanos: Option<u64>,
    /// Cost for each meter in order, each at most [`COST_MAX`]; if empty, 1 for the first meter.
    /// Meters without a cost are charged 0.
    pub costs: List<'a, u64>,
    /// Values by slot.
    pub values: Sparse<'a>,
}

impl<'a> Check<'a> {
    /// Decodes the message of CHECK (to charge) or PEEK. [`Request::decode`] does so too; a
    /// server that has looked at the op already saves the way through that enum.
    ///
    /// # Errors
    /// The error to answer with.
    #[inline]
    pub fn decode(message: &Message<'a>, intent: Intent) -> Result<Self, DecodeError> {
        // Most checks have neither costs nor a deadline, and nothing wrong. They take this
        // straight way; the others are told apart by the general one.
        match Self::plain(message, intent) {
            Some(check) => Ok(check),
            None => Self::decode_any(message, intent),
        }
    }

    /// Decodes a check that has neither costs, a deadline nor an id, is neither tied nor to
    /// stay here, and has nothing wrong.
    /// `None` says that it is not of that kind, no more.
    #[inline(always)]
    pub fn plain(message: &Message<'a>, intent: Intent) -> Option<Self> {
        let form = Form::from_flags(message.flags);
        if message.flags != form.to_flags() {
            return None;
        }
        let (fixed, rest) = message.body.split_first_chunk::<17>()?;
        let (handle, fixed) = fixed.split_first_chunk()?;
        let (presence, fixed) = fixed.split_first_chunk()?;
        let (layout, costs) = fixed.split_first_chunk()?;
        if costs != [0] {
            return None;
        }
        let presence = u32::from_le_bytes(*presence);
        let values = Sparse::whole(u64::from(presence), rest, VALUE_BYTES_MAX)?;
        Some(Self {
            intent,
            form,
            tied: false,
            no_forward: false,
            handle: u32::from_le_bytes(*handle),
            layout: u64::from_le_bytes(*layout),
            id: None,
            deadline_nanos: None,
            costs: List::EMPTY,
            values,
        })
    }

    #[inline(never)]
    fn decode_any(message: &Message<'a>, intent: Intent) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let flags = message.flags;
        let handle = reader.u32("handle")?;
        let presence = reader.u32("presence")?;
        let layout = reader.u64("layout")?;
        let costs = usize::from(reader.u8("count of costs")?);
        let deadline_nanos = read_deadline(&mut reader, flags)?;
        let id = RequestId::read(&mut reader, flags)?;
        let costs = if costs == 0 { List::EMPTY } else { read_costs(&mut reader, costs)? };
        let values = reader.sparse(u64::from(presence), "value", VALUE_BYTES_MAX)?;
        reader.finish()?;
        let (form, tied) = (Form::from_flags(flags), flags.contains(Flags::TIED));
        let no_forward = flags.contains(Flags::NO_FORWARD);
        Ok(Self {
            intent,
            form,
            tied,
            no_forward,
            handle,
            layout,
            id,
            deadline_nanos,
            costs,
            values,
        })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let op = match self.intent {
            Intent::Charge => Op::CHECK,
            Intent::Peek => Op::PEEK,
        };
        let id = self.id.filter(|_| self.intent == Intent::Charge);
        let charging = Flags::TIED
            .only_if(self.tied)
            .union(Flags::NO_FORWARD.only_if(self.no_forward))
            .only_if(self.intent == Intent::Charge);
        let options = charging.union(options(self.deadline_nanos, id));
        let mut writer = Writer::begin(out, envelope, op, self.form.to_flags().union(options));
        writer.u32(self.handle);
        write_presence(&mut writer, &self.values);
        writer.u64(self.layout);
        writer.check("count of costs", self.costs.len() as u64, METERS_MAX as u64);
        writer.u8(self.costs.len() as u8);
        if let Some(nanos) = self.deadline_nanos {
            writer.u64(nanos);
        }
        RequestId::write(id, &mut writer);
        for cost in self.costs {
            writer.check("cost", cost, COST_MAX);
            writer.u64(cost);
        }
        self.values.write(&mut writer, "value", VALUE_BYTES_MAX);
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// The flags of a check that say what else is in its body.
#[inline]
fn options(deadline_nanos: Option<u64>, id: Option<RequestId>) -> Flags {
    let deadline = Flags::DEADLINE.only_if(deadline_nanos.is_some());
    deadline.union(Flags::REQUEST_ID.only_if(id.is_some()))
}

#[inline]
fn read_deadline(reader: &mut Reader<'_>, flags: Flags) -> Result<Option<u64>, DecodeError> {
    if flags.contains(Flags::DEADLINE) { reader.u64("deadline").map(Some) } else { Ok(None) }
}

fn read_costs<'a>(reader: &mut Reader<'a>, count: usize) -> Result<List<'a, u64>, DecodeError> {
    if count > METERS_MAX {
        let max = METERS_MAX as u64;
        return Err(reader.out_of_range(Code::BadCost, "count of costs", count as u64, 0, max));
    }
    let mut walk = *reader;
    for _ in 0..count {
        read_cost(&mut walk, "cost")?;
    }
    reader.list(count)
}

#[inline]
fn read_cost(reader: &mut Reader<'_>, field: &'static str) -> Result<u64, DecodeError> {
    let at = *reader;
    let cost = reader.u64(field)?;
    if cost > COST_MAX {
        return Err(at.out_of_range(Code::BadCost, field, cost, 0, COST_MAX));
    }
    Ok(cost)
}

fn write_presence(writer: &mut Writer<'_>, values: &Sparse<'_>) {
    let presence = values.presence();
    let slots = u64::from(u64::BITS - presence.leading_zeros());
    writer.check("slot", slots, SLOTS_MAX as u64);
    writer.u32(presence as u32);
}

/// The numbers of an inline limit; ranges are checked when they are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InlineQuota {
    /// Token bucket.
    Bucket {
        /// Units that come back in each window, [`UNITS_MIN`] to [`UNITS_MAX`].
        units: u64,
        /// Nanoseconds, [`WINDOW_NANOS_MIN`] to [`WINDOW_NANOS_MAX`].
        window_nanos: u64,
        /// Units at most at one instant, [`UNITS_MIN`] to [`UNITS_MAX`].
        burst: u64,
    },
    /// So many units in each window.
    Fixed {
        /// Units, [`UNITS_MIN`] to [`UNITS_MAX`].
        units: u64,
        /// Nanoseconds, [`WINDOW_NANOS_MIN`] to [`WINDOW_NANOS_MAX`].
        window_nanos: u64,
        /// Where windows begin.
        align: Align,
    },
    /// So many units in any window, wherever it begins.
    Sliding {
        /// Units, [`UNITS_MIN`] to [`UNITS_MAX`].
        units: u64,
        /// Nanoseconds, [`WINDOW_NANOS_MIN`] to [`WINDOW_NANOS_MAX`].
        window_nanos: u64,
    },
    /// So many units held at once, as permits.
    Concurrent {
        /// Units, [`UNITS_MIN`] to [`UNITS_MAX`].
        units: u64,
        /// Nanoseconds until a permit lapses that nobody renews, [`WINDOW_NANOS_MIN`] to
        /// [`WINDOW_NANOS_MAX`].
        lease_nanos: u64,
    },
    /// So much held, moved up by checks and down by ADJUST.
    Level {
        /// Units, [`UNITS_MIN`] to [`UNITS_MAX`].
        units: u64,
    },
    /// So much in one check. It has no counter.
    Cap {
        /// Units, [`UNITS_MIN`] to [`UNITS_MAX`].
        units: u64,
    },
}

/// One inline limit and the key of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InlineLimit<'a> {
    /// What a check costs (at most [`COST_MAX`]), or what SET sets; 0 in ADJUST.
    pub cost: u64,
    /// Kind and numbers.
    pub quota: InlineQuota,
    /// Addresses the counter, together with the kind and, of windows, window and alignment.
    pub key: &'a [u8],
}

impl<'a> Element<'a> for InlineLimit<'a> {
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let cost = read_cost(reader, "cost")?;
        let units = read_ranged(reader, "units", UNITS_MIN, UNITS_MAX)?;
        let window_at = *reader;
        let window_nanos = reader.u64("window")?;
        let burst_at = *reader;
        let burst = reader.u64("burst")?;
        let kind_at = *reader;
        let kind = reader.u8("kind")?;
        let align_at = *reader;
        let align = reader.u8("align")?;
        let window = |min, max| in_range(&window_at, "window", window_nanos, min, max);
        let windowed = || window(WINDOW_NANOS_MIN, WINDOW_NANOS_MAX);
        let no_burst = || in_range(&burst_at, "burst", burst, 0, 0);
        let no_align = || in_range(&align_at, "align", u64::from(align), 0, 0);
        let quota = match Kind::from_wire(kind) {
            Some(Kind::Bucket) => {
                windowed()?;
                in_range(&burst_at, "burst", burst, UNITS_MIN, UNITS_MAX)?;
                no_align()?;
                InlineQuota::Bucket { units, window_nanos, burst }
            }
            Some(Kind::Fixed) => {
                windowed()?;
                no_burst()?;
                let found = u64::from(align);
                let Some(align) = Align::from_wire(align) else {
                    return Err(align_at.out_of_range(Code::BadLimit, "align", found, 0, 1));
                };
                InlineQuota::Fixed { units, window_nanos, align }
            }
            Some(Kind::Sliding) => {
                windowed()?;
                no_burst()?;
                no_align()?;
                InlineQuota::Sliding { units, window_nanos }
            }
            Some(Kind::Concurrent) => {
                windowed()?;
                no_burst()?;
                no_align()?;
                InlineQuota::Concurrent { units, lease_nanos: window_nanos }
            }
            Some(Kind::Level) => {
                window(0, 0)?;
                no_burst()?;
                no_align()?;
                InlineQuota::Level { units }
            }
            Some(Kind::Cap) => {
                window(0, 0)?;
                no_burst()?;
                no_align()?;
                InlineQuota::Cap { units }
            }
            // A calendar needs a time zone, which only a policy can name.
            Some(Kind::Calendar) | None => {
                return Err(kind_at.out_of_range(Code::BadLimit, "kind", u64::from(kind), 1, 0));
            }
        };
        let key = reader.bytes16("key", INLINE_KEY_BYTES_MAX)?;
        Ok(Self { cost, quota, key })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        let (kind, align, units, window_nanos, burst) = match self.quota {
            InlineQuota::Bucket { units, window_nanos, burst } => {
                writer.check("burst", burst, UNITS_MAX);
                (Kind::Bucket, 0, units, window_nanos, burst)
            }
            InlineQuota::Fixed { units, window_nanos, align } => {
                (Kind::Fixed, align.to_wire(), units, window_nanos, 0)
            }
            InlineQuota::Sliding { units, window_nanos } => {
                (Kind::Sliding, 0, units, window_nanos, 0)
            }
            InlineQuota::Concurrent { units, lease_nanos } => {
                (Kind::Concurrent, 0, units, lease_nanos, 0)
            }
            InlineQuota::Level { units } => (Kind::Level, 0, units, 0, 0),
            InlineQuota::Cap { units } => (Kind::Cap, 0, units, 0, 0),
        };
        writer.check("cost", self.cost, COST_MAX);
        writer.check("units", units, UNITS_MAX);
        writer.check("window", window_nanos, WINDOW_NANOS_MAX);
        writer.u64(self.cost);
        writer.u64(units);
        writer.u64(window_nanos);
        writer.u64(burst);
        writer.u8(kind.to_wire());
        writer.u8(align);
        writer.bytes16("key", self.key, INLINE_KEY_BYTES_MAX);
    }
}

#[inline]
fn in_range(
    at: &Reader<'_>,
    field: &'static str,
    found: u64,
    min: u64,
    max: u64,
) -> Result<(), DecodeError> {
    if (min..=max).contains(&found) {
        return Ok(());
    }
    Err(at.out_of_range(Code::BadLimit, field, found, min, max))
}

#[inline]
fn read_ranged(
    reader: &mut Reader<'_>,
    field: &'static str,
    min: u64,
    max: u64,
) -> Result<u64, DecodeError> {
    let at = *reader;
    let found = reader.u64(field)?;
    in_range(&at, field, found, min, max)?;
    Ok(found)
}

/// CHECK or PEEK of inline limits: all are charged, or none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CheckInline<'a> {
    /// Charge, or only say what a charge would come to.
    pub intent: Intent,
    /// How much the answer is to tell; never rendered.
    pub form: Form,
    /// Permits that are granted go back when the connection closes. A peek, which is granted none,
    /// is written without it.
    pub tied: bool,
    /// A node that does not lead its cluster answers NOT_LEADER instead of handing the check on. A
    /// peek, which is never handed on, is written without it.
    pub no_forward: bool,
    /// With one, the check charges at most once however often it is sent. A peek is written without
    /// it.
    pub id: Option<RequestId>,
    /// Nanoseconds, from its arrival, after which the caller no longer wants an answer.
    pub deadline_nanos: Option<u64>,
    /// The limits, 1 to [`INLINE_LIMITS_MAX`].
    pub limits: List<'a, InlineLimit<'a>>,
}

impl<'a> CheckInline<'a> {
    fn decode(message: &Message<'a>, intent: Intent) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let flags = message.flags;
        let at = reader;
        let count = usize::from(reader.u8("count of limits")?);
        if count == 0 || count > INLINE_LIMITS_MAX {
            let code = if count == 0 { Code::BadFrame } else { Code::TooManyItems };
            let max = INLINE_LIMITS_MAX as u64;
            return Err(at.out_of_range(code, "count of limits", count as u64, 1, max));
        }
        let deadline_nanos = read_deadline(&mut reader, flags)?;
        let id = RequestId::read(&mut reader, flags)?;
        let limits = reader.list(count)?;
        reader.finish()?;
        let (form, tied) = (Form::from_flags(flags), flags.contains(Flags::TIED));
        let no_forward = flags.contains(Flags::NO_FORWARD);
        Ok(Self { intent, form, tied, no_forward, id, deadline_nanos, limits })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let op = match self.intent {
            Intent::Charge => Op::CHECK_INLINE,
            Intent::Peek => Op::PEEK_INLINE,
        };
        let id = self.id.filter(|_| self.intent == Intent::Charge);
        let charging = Flags::TIED
            .only_if(self.tied)
            .union(Flags::NO_FORWARD.only_if(self.no_forward))
            .only_if(self.intent == Intent::Charge);
        let options = charging.union(options(self.deadline_nanos, id));
        let form = Form { numbers: self.form.numbers, rendered: false };
        let mut writer = Writer::begin(out, envelope, op, form.to_flags().union(options));
        writer.check("count of limits", self.limits.len() as u64, INLINE_LIMITS_MAX as u64);
        writer.u8(self.limits.len() as u8);
        if let Some(nanos) = self.deadline_nanos {
            writer.u64(nanos);
        }
        RequestId::write(id, &mut writer);
        self.limits.write(&mut writer);
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// SET by handle: what the counters of these values have used. RESET is SET 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Set<'a> {
    /// The handle's number.
    pub handle: u32,
    /// The layout that came with the handle.
    pub layout: u64,
    /// Units used from now on, at most [`COST_MAX`].
    pub used: u64,
    /// The limit's index in the handle, or `None` for every limit that applies.
    pub limit: Option<u16>,
    /// With one, the request is done at most once.
    pub id: Option<RequestId>,
    /// Whether it is to be answered.
    pub reply: Reply,
    /// Values by slot.
    pub values: Sparse<'a>,
}

impl<'a> Set<'a> {
    fn decode(message: &Message<'a>) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let handle = reader.u32("handle")?;
        let presence = reader.u32("presence")?;
        let layout = reader.u64("layout")?;
        let used = read_cost(&mut reader, "used")?;
        let limit = index_or_none(reader.u16("limit")?);
        let id = RequestId::read(&mut reader, message.flags)?;
        let values = reader.sparse(u64::from(presence), "value", VALUE_BYTES_MAX)?;
        reader.finish()?;
        let reply = Reply::from_flags(message.flags);
        Ok(Self { handle, layout, used, limit, id, reply, values })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let flags = change_flags(self.id, self.reply, envelope);
        let mut writer = Writer::begin(out, envelope, Op::SET, flags);
        writer.u32(self.handle);
        write_presence(&mut writer, &self.values);
        writer.u64(self.layout);
        writer.check("used", self.used, COST_MAX);
        writer.u64(self.used);
        writer.u16(self.limit.unwrap_or(NO_LIMIT));
        RequestId::write(self.id, &mut writer);
        self.values.write(&mut writer, "value", VALUE_BYTES_MAX);
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// SET of an inline limit's counter; the limit's `cost` is what it has used from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetInline<'a> {
    /// With one, the request is done at most once.
    pub id: Option<RequestId>,
    /// Whether it is to be answered.
    pub reply: Reply,
    /// The limit, its key, and in `cost` the units used: of a concurrency limit always 0.
    pub limit: InlineLimit<'a>,
}

impl<'a> SetInline<'a> {
    fn decode(message: &Message<'a>) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let id = RequestId::read(&mut reader, message.flags)?;
        let at = reader;
        let limit = InlineLimit::read(&mut reader)?;
        reader.finish()?;
        if limit.cost > Self::used_max(&limit.quota) {
            return Err(at.out_of_range(Code::BadCost, "cost", limit.cost, 0, 0));
        }
        Ok(Self { id, reply: Reply::from_flags(message.flags), limit })
    }

    /// Permits can be given back by whoever resets a counter, but not granted.
    fn used_max(quota: &InlineQuota) -> u64 {
        if matches!(quota, InlineQuota::Concurrent { .. }) { 0 } else { COST_MAX }
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let flags = change_flags(self.id, self.reply, envelope);
        let mut writer = Writer::begin(out, envelope, Op::SET_INLINE, flags);
        RequestId::write(self.id, &mut writer);
        writer.check("cost", self.limit.cost, Self::used_max(&self.limit.quota));
        self.limit.write(&mut writer);
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// ADJUST by handle: moves what the counters of these values have used, after the fact. Never
/// refused; down to fresh at most, and up to twice the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjust<'a> {
    /// The handle's number.
    pub handle: u32,
    /// The layout that came with the handle.
    pub layout: u64,
    /// Units: positive were used, negative are given back; at most [`COST_MAX`] either way.
    pub units: i64,
    /// The limit's index in the handle, or `None` for every limit that applies.
    pub limit: Option<u16>,
    /// With one, the request is done at most once.
    pub id: Option<RequestId>,
    /// Whether it is to be answered.
    pub reply: Reply,
    /// Values by slot.
    pub values: Sparse<'a>,
}

impl<'a> Adjust<'a> {
    fn decode(message: &Message<'a>) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let handle = reader.u32("handle")?;
        let presence = reader.u32("presence")?;
        let layout = reader.u64("layout")?;
        let units = read_amount(&mut reader)?;
        let limit = index_or_none(reader.u16("limit")?);
        let id = RequestId::read(&mut reader, message.flags)?;
        let values = reader.sparse(u64::from(presence), "value", VALUE_BYTES_MAX)?;
        reader.finish()?;
        let reply = Reply::from_flags(message.flags);
        Ok(Self { handle, layout, units, limit, id, reply, values })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let flags = change_flags(self.id, self.reply, envelope);
        let mut writer = Writer::begin(out, envelope, Op::ADJUST, flags);
        writer.u32(self.handle);
        write_presence(&mut writer, &self.values);
        writer.u64(self.layout);
        write_amount(&mut writer, self.units);
        writer.u16(self.limit.unwrap_or(NO_LIMIT));
        RequestId::write(self.id, &mut writer);
        self.values.write(&mut writer, "value", VALUE_BYTES_MAX);
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// ADJUST of an inline limit's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdjustInline<'a> {
    /// Units: positive were used, negative are given back; at most [`COST_MAX`] either way.
    pub units: i64,
    /// With one, the request is done at most once.
    pub id: Option<RequestId>,
    /// Whether it is to be answered.
    pub reply: Reply,
    /// The limit and its key; its `cost` is 0.
    pub limit: InlineLimit<'a>,
}

impl<'a> AdjustInline<'a> {
    fn decode(message: &Message<'a>) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let units = read_amount(&mut reader)?;
        let id = RequestId::read(&mut reader, message.flags)?;
        let at = reader;
        let limit = InlineLimit::read(&mut reader)?;
        reader.finish()?;
        if limit.cost != 0 {
            return Err(at.out_of_range(Code::BadCost, "cost", limit.cost, 0, 0));
        }
        Ok(Self { units, id, reply: Reply::from_flags(message.flags), limit })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let flags = change_flags(self.id, self.reply, envelope);
        let mut writer = Writer::begin(out, envelope, Op::ADJUST_INLINE, flags);
        write_amount(&mut writer, self.units);
        RequestId::write(self.id, &mut writer);
        writer.check("cost", self.limit.cost, 0);
        self.limit.write(&mut writer);
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// A signed amount. Errors tell it without its sign, as their numbers have none.
fn read_amount(reader: &mut Reader<'_>) -> Result<i64, DecodeError> {
    let at = *reader;
    let amount = reader.u64("units")?.cast_signed();
    let size = amount.unsigned_abs();
    if size > COST_MAX {
        return Err(at.out_of_range(Code::BadCost, "units", size, 0, COST_MAX));
    }
    Ok(amount)
}

fn write_amount(writer: &mut Writer<'_>, amount: i64) {
    writer.check("units", amount.unsigned_abs(), COST_MAX);
    writer.u64(amount.cast_unsigned());
}

/// RELEASE: gives back what a permit still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The permit.
    pub permit: PermitId,
    /// Whether it is to be answered.
    pub reply: Reply,
}

impl Release {
    fn decode(message: &Message<'_>) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let permit = PermitId(reader.bytes("permit")?);
        reader.finish()?;
        Ok(Self { permit, reply: Reply::from_flags(message.flags) })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// None: the permit always fits.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::RELEASE, self.reply.to_flags(envelope));
        writer.raw(&self.permit.0);
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// RENEW: keeps a permit from now on for another lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renew {
    /// The permit.
    pub permit: PermitId,
    /// Nanoseconds from now until it lapses, [`WINDOW_NANOS_MIN`] to [`WINDOW_NANOS_MAX`]; `None`
    /// for the lease of each limit that it holds.
    pub lease_nanos: Option<u64>,
    /// Whether it is to be answered.
    pub reply: Reply,
}

impl Renew {
    fn decode(message: &Message<'_>) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let permit = PermitId(reader.bytes("permit")?);
        let at = reader;
        let lease_nanos = Some(reader.u64("lease")?).filter(|nanos| *nanos != 0);
        if let Some(nanos) = lease_nanos {
            in_range(&at, "lease", nanos, WINDOW_NANOS_MIN, WINDOW_NANOS_MAX)?;
        }
        reader.finish()?;
        Ok(Self { permit, lease_nanos, reply: Reply::from_flags(message.flags) })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::RENEW, self.reply.to_flags(envelope));
        writer.raw(&self.permit.0);
        let nanos = self.lease_nanos.unwrap_or(0);
        writer.check("lease", nanos, WINDOW_NANOS_MAX);
        writer.u64(nanos);
        writer.finish(FRAME_BYTES_MAX)
    }
}

#[inline]
pub(crate) fn index_or_none(index: u16) -> Option<u16> {
    if index == NO_LIMIT { None } else { Some(index) }
}

/// BATCH: messages that are decided one by one, in order, and answered in one frame.
///
/// The items' lengths have been checked; each item is decoded by itself, by
/// [`decode_item`], and may fail by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Batch<'a> {
    /// Whether it is to be answered, all of it or nothing.
    pub reply: Reply,
    /// The items in order, 1 to [`BATCH_ITEMS_MAX`].
    pub items: List<'a, Message<'a>>,
}

impl<'a> Element<'a> for Message<'a> {
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Self::read_item(reader)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.u32((self.body.len() + crate::limits::ITEM_HEADER_BYTES) as u32);
        writer.u16(self.op.0);
        writer.u16(self.flags.0);
        writer.raw(self.body);
    }
}

impl<'a> Batch<'a> {
    fn decode(message: &Message<'a>) -> Result<Self, DecodeError> {
        let mut reader = open(message)?;
        let at = reader;
        let count = reader.u32("count of items")?;
        let items = count as usize;
        if items == 0 || items > BATCH_ITEMS_MAX {
            let code = if items == 0 { Code::BadFrame } else { Code::TooManyItems };
            let max = BATCH_ITEMS_MAX as u64;
            return Err(at.out_of_range(code, "count of items", u64::from(count), 1, max));
        }
        let items = reader.list(items)?;
        reader.finish()?;
        Ok(Self { reply: Reply::from_flags(message.flags), items })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::BATCH, self.reply.to_flags(envelope));
        writer.check("count of items", self.items.len() as u64, BATCH_ITEMS_MAX as u64);
        writer.u32(self.items.len() as u32);
        self.items.write(&mut writer);
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// An item of a batch: a check or a peek, or a change of counters or permits. It is answered in any
/// case, within the batch's answer, so NO_REPLY means nothing here.
///
/// # Errors
/// The error to answer this one item with.
#[inline]
pub fn decode_item<'a>(item: &Message<'a>) -> Result<Request<'a>, DecodeError> {
    match item.op {
        Op::CHECK | Op::PEEK | Op::CHECK_INLINE | Op::PEEK_INLINE => Request::decode(item),
        Op::SET | Op::SET_INLINE | Op::ADJUST | Op::ADJUST_INLINE | Op::RELEASE | Op::RENEW => {
            if item.flags.contains(Flags::NO_REPLY) {
                let allowed = item.op.flags_allowed().without(Flags::NO_REPLY);
                return Err(item.unsupported_flag(allowed));
            }
            Request::decode(item)
        }
        _ => Err(item.unsupported_op()),
    }
}

/// Writes a BATCH request item by item.
#[derive(Debug)]
pub struct BatchRequest<'b> {
    out: &'b mut Vec<u8>,
    start: usize,
    items: usize,
}

impl<'b> BatchRequest<'b> {
    /// Begins a batch with this call id.
    pub fn begin(call: u64, out: &'b mut Vec<u8>) -> Self {
        let start = out.len();
        let mut writer = Writer::begin(out, Envelope::Call(call), Op::BATCH, Flags::default());
        writer.u32(0);
        Self { out, start, items: 0 }
    }

    /// Appends an item.
    ///
    /// # Errors
    /// If the item, or one item more, does not fit; the batch is as it was and can be finished.
    pub fn push(&mut self, item: &Request<'_>) -> Result<(), EncodeError> {
        if self.items == BATCH_ITEMS_MAX {
            let max = BATCH_ITEMS_MAX as u64;
            return Err(EncodeError { field: "count of items", found: max + 1, max });
        }
        let end = self.out.len();
        item.encode(Envelope::Item, self.out)?;
        let length = self.out.len() - self.start;
        if length > FRAME_BYTES_MAX {
            self.out.truncate(end);
            let (found, max) = (length as u64, FRAME_BYTES_MAX as u64);
            return Err(EncodeError { field: "length", found, max });
        }
        self.items += 1;
        Ok(())
    }

    /// Ends the batch and returns how many items it has.
    pub fn finish(self) -> usize {
        let length = (self.out.len() - self.start) as u32;
        patch_u32(self.out, self.start, length);
        patch_u32(self.out, self.start + HEADER_BYTES, self.items as u32);
        self.items
    }
}

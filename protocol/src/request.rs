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
use crate::status::{Align, Code, Kind};

/// The four bytes that open the body of HELLO.
pub const MAGIC: [u8; 4] = *b"TOLL";
/// The limit index that stands for all limits that apply (in SET), or none (in an answer).
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
    /// Several checks and peeks.
    Batch(Batch<'a>),
}

impl<'a> Request<'a> {
    /// Decodes the message of a frame or of a batch item.
    ///
    /// # Errors
    /// The error to answer with. None of them but a HELLO's wrong magic spoils the stream.
    #[inline]
    pub fn decode(message: &Message<'a>) -> Result<Self, DecodeError> {
        let reader = Reader::new(message.body, message.offset);
        let flags = message.flags;
        Ok(match message.op {
            Op::CHECK => Self::Check(Check::decode(message, Intent::Charge)?),
            Op::PEEK => Self::Check(Check::decode(message, Intent::Peek)?),
            Op::CHECK_INLINE => {
                Self::CheckInline(CheckInline::decode(reader, flags, Intent::Charge)?)
            }
            Op::PEEK_INLINE => Self::CheckInline(CheckInline::decode(reader, flags, Intent::Peek)?),
            Op::BATCH => Self::Batch(Batch::decode(reader, flags)?),
            Op::HELLO => Self::Hello(Hello::decode(reader, flags)?),
            Op::PING => Self::Ping(Ping::decode(reader, flags)?),
            Op::PREPARE => Self::Prepare(Prepare::decode(reader, flags)?),
            Op::SET => Self::Set(Set::decode(reader, flags)?),
            Op::SET_INLINE => Self::SetInline(SetInline::decode(reader, flags)?),
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
            Self::Batch(request) => request.encode(envelope, out),
        }
    }
}

/// Refuses must-understand flags other than `allowed`.
#[inline]
fn only(reader: &Reader<'_>, flags: Flags, allowed: Flags) -> Result<(), DecodeError> {
    if flags.0 & Flags::MUST_UNDERSTAND.0 & !allowed.0 == 0 {
        Ok(())
    } else {
        Err(unsupported_flag(reader, flags, allowed))
    }
}

#[cold]
#[inline(never)]
fn unsupported_flag(reader: &Reader<'_>, flags: Flags, allowed: Flags) -> DecodeError {
    // The flags end the header of an item; in a frame's, the call id follows.
    let back = if reader.offset() as usize == HEADER_BYTES { 10 } else { 2 };
    let offset = reader.offset().saturating_sub(back);
    let (found, max) = (u64::from(flags.0), u64::from(allowed.0));
    DecodeError { code: Code::UnsupportedFlag, field: "flags", offset, found, min: 0, max }
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
    fn decode(mut reader: Reader<'a>, flags: Flags) -> Result<Self, DecodeError> {
        only(&reader, flags, Flags::default())?;
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
    fn decode(mut reader: Reader<'a>, flags: Flags) -> Result<Self, DecodeError> {
        only(&reader, flags, Flags::default())?;
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
    fn decode(mut reader: Reader<'a>, flags: Flags) -> Result<Self, DecodeError> {
        only(&reader, flags, Flags::default())?;
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
    /// The handle's number.
    pub handle: u32,
    /// The layout that came with the handle.
    pub layout: u64,
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

    /// Decodes a check that has neither costs nor a deadline, and nothing wrong. `None` says that
    /// it is not of that kind, no more.
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
            handle: u32::from_le_bytes(*handle),
            layout: u64::from_le_bytes(*layout),
            deadline_nanos: None,
            costs: List::EMPTY,
            values,
        })
    }

    #[inline(never)]
    fn decode_any(message: &Message<'a>, intent: Intent) -> Result<Self, DecodeError> {
        const ALLOWED: Flags = Flags::NUMBERS.union(Flags::RENDERED).union(Flags::DEADLINE);
        let mut reader = Reader::new(message.body, message.offset);
        let flags = message.flags;
        only(&reader, flags, ALLOWED)?;
        let handle = reader.u32("handle")?;
        let presence = reader.u32("presence")?;
        let layout = reader.u64("layout")?;
        let costs = usize::from(reader.u8("count of costs")?);
        let deadline_nanos = read_deadline(&mut reader, flags)?;
        let costs = if costs == 0 { List::EMPTY } else { read_costs(&mut reader, costs)? };
        let values = reader.sparse(u64::from(presence), "value", VALUE_BYTES_MAX)?;
        reader.finish()?;
        let form = Form::from_flags(flags);
        Ok(Self { intent, form, handle, layout, deadline_nanos, costs, values })
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
        let deadline = Flags::DEADLINE.only_if(self.deadline_nanos.is_some());
        let mut writer = Writer::begin(out, envelope, op, self.form.to_flags().union(deadline));
        writer.u32(self.handle);
        write_presence(&mut writer, &self.values);
        writer.u64(self.layout);
        writer.check("count of costs", self.costs.len() as u64, METERS_MAX as u64);
        writer.u8(self.costs.len() as u8);
        if let Some(nanos) = self.deadline_nanos {
            writer.u64(nanos);
        }
        for cost in self.costs {
            writer.check("cost", cost, COST_MAX);
            writer.u64(cost);
        }
        self.values.write(&mut writer, "value", VALUE_BYTES_MAX);
        writer.finish(FRAME_BYTES_MAX)
    }
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
}

/// One inline limit and the key of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InlineLimit<'a> {
    /// What a check costs (at most [`COST_MAX`]), or what SET sets.
    pub cost: u64,
    /// Kind and numbers.
    pub quota: InlineQuota,
    /// Addresses the counter, together with kind, window and alignment.
    pub key: &'a [u8],
}

impl<'a> Element<'a> for InlineLimit<'a> {
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let cost = read_cost(reader, "cost")?;
        let units = read_ranged(reader, "units", UNITS_MIN, UNITS_MAX)?;
        let window_nanos = read_ranged(reader, "window", WINDOW_NANOS_MIN, WINDOW_NANOS_MAX)?;
        let burst_at = *reader;
        let burst = reader.u64("burst")?;
        let kind_at = *reader;
        let kind = reader.u8("kind")?;
        let align_at = *reader;
        let align = reader.u8("align")?;
        let quota = match Kind::from_wire(kind) {
            Some(Kind::Bucket) => {
                in_range(&burst_at, "burst", burst, UNITS_MIN, UNITS_MAX)?;
                in_range(&align_at, "align", u64::from(align), 0, 0)?;
                InlineQuota::Bucket { units, window_nanos, burst }
            }
            Some(Kind::Fixed) => {
                in_range(&burst_at, "burst", burst, 0, 0)?;
                let found = u64::from(align);
                let Some(align) = Align::from_wire(align) else {
                    return Err(align_at.out_of_range(Code::BadLimit, "align", found, 0, 1));
                };
                InlineQuota::Fixed { units, window_nanos, align }
            }
            _ => return Err(kind_at.out_of_range(Code::BadLimit, "kind", u64::from(kind), 1, 0)),
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
    /// Nanoseconds, from its arrival, after which the caller no longer wants an answer.
    pub deadline_nanos: Option<u64>,
    /// The limits, 1 to [`INLINE_LIMITS_MAX`].
    pub limits: List<'a, InlineLimit<'a>>,
}

impl<'a> CheckInline<'a> {
    fn decode(mut reader: Reader<'a>, flags: Flags, intent: Intent) -> Result<Self, DecodeError> {
        const ALLOWED: Flags = Flags::NUMBERS.union(Flags::DEADLINE);
        only(&reader, flags, ALLOWED)?;
        let at = reader;
        let count = usize::from(reader.u8("count of limits")?);
        if count == 0 || count > INLINE_LIMITS_MAX {
            let code = if count == 0 { Code::BadFrame } else { Code::TooManyItems };
            let max = INLINE_LIMITS_MAX as u64;
            return Err(at.out_of_range(code, "count of limits", count as u64, 1, max));
        }
        let deadline_nanos = read_deadline(&mut reader, flags)?;
        let limits = reader.list(count)?;
        reader.finish()?;
        Ok(Self { intent, form: Form::from_flags(flags), deadline_nanos, limits })
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
        let deadline = Flags::DEADLINE.only_if(self.deadline_nanos.is_some());
        let form = Form { numbers: self.form.numbers, rendered: false };
        let mut writer = Writer::begin(out, envelope, op, form.to_flags().union(deadline));
        writer.check("count of limits", self.limits.len() as u64, INLINE_LIMITS_MAX as u64);
        writer.u8(self.limits.len() as u8);
        if let Some(nanos) = self.deadline_nanos {
            writer.u64(nanos);
        }
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
    /// Values by slot.
    pub values: Sparse<'a>,
}

impl<'a> Set<'a> {
    fn decode(mut reader: Reader<'a>, flags: Flags) -> Result<Self, DecodeError> {
        only(&reader, flags, Flags::default())?;
        let handle = reader.u32("handle")?;
        let presence = reader.u32("presence")?;
        let layout = reader.u64("layout")?;
        let used = read_cost(&mut reader, "used")?;
        let limit = reader.u16("limit")?;
        let values = reader.sparse(u64::from(presence), "value", VALUE_BYTES_MAX)?;
        reader.finish()?;
        Ok(Self { handle, layout, used, limit: index_or_none(limit), values })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::SET, Flags::default());
        writer.u32(self.handle);
        write_presence(&mut writer, &self.values);
        writer.u64(self.layout);
        writer.check("used", self.used, COST_MAX);
        writer.u64(self.used);
        writer.u16(self.limit.unwrap_or(NO_LIMIT));
        self.values.write(&mut writer, "value", VALUE_BYTES_MAX);
        writer.finish(FRAME_BYTES_MAX)
    }
}

#[inline]
pub(crate) fn index_or_none(index: u16) -> Option<u16> {
    if index == NO_LIMIT { None } else { Some(index) }
}

/// SET of an inline limit's counter; the limit's `cost` is what it has used from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetInline<'a> {
    /// The limit, its key, and in `cost` the units used.
    pub limit: InlineLimit<'a>,
}

impl<'a> SetInline<'a> {
    fn decode(mut reader: Reader<'a>, flags: Flags) -> Result<Self, DecodeError> {
        only(&reader, flags, Flags::default())?;
        let limit = InlineLimit::read(&mut reader)?;
        reader.finish()?;
        Ok(Self { limit })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::SET_INLINE, Flags::default());
        self.limit.write(&mut writer);
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// BATCH: messages that are decided one by one, in order, and answered in one frame.
///
/// The items' lengths have been checked; each item is decoded by itself, by
/// [`Request::decode`], and may fail by itself. Only checks and peeks are allowed in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Batch<'a> {
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
    fn decode(mut reader: Reader<'a>, flags: Flags) -> Result<Self, DecodeError> {
        only(&reader, flags, Flags::default())?;
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
        Ok(Self { items })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// The field that does not fit; then nothing was appended.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut writer = Writer::begin(out, envelope, Op::BATCH, Flags::default());
        writer.check("count of items", self.items.len() as u64, BATCH_ITEMS_MAX as u64);
        writer.u32(self.items.len() as u32);
        self.items.write(&mut writer);
        writer.finish(FRAME_BYTES_MAX)
    }
}

/// An item of a batch that may be decided: a check or a peek.
///
/// # Errors
/// The error to answer this one item with.
#[inline]
pub fn decode_item<'a>(item: &Message<'a>) -> Result<Request<'a>, DecodeError> {
    match item.op {
        Op::CHECK | Op::PEEK | Op::CHECK_INLINE | Op::PEEK_INLINE => Request::decode(item),
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

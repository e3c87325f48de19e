//! The fixed layout of our log entries and of the groups in them. Pure; `FORMAT.md` beside this
//! file has it by byte offset.
//!
//! An entry is read by every node, perhaps years after it was written, so nothing in it depends on
//! a library's idea of a layout, and what a byte means changes with the format's number only.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::engine::command::{Amend, Charge, ChargeOn, Effect, LimitId};
use crate::engine::decision::Refusal;
use crate::engine::group::{COMMANDS_MAX, Command, Group};
use crate::engine::key::Key;
use crate::engine::permit::PermitId;
use crate::engine::quota::Quota;
use crate::engine::session::RequestId;
use crate::engine::time::{Nanos, Now, Timestamp, UtcTime};

/// The layout described here.
const FORMAT: u8 = 1;

/// The arithmetic of applying. It changes only once every node of a cluster can do the new one.
const SEMANTICS: u8 = 1;

const HEADER_BYTES: usize = 32;
const GROUP_HEADER_BYTES: usize = 40;
const TERM_BYTES: usize = 32;
const REFUSED_BYTES: usize = 16;

/// The most bytes of a group's body.
pub const GROUP_BYTES_MAX: usize = 1 << 19;

/// The most bytes of an entry, but for a change of the policy.
pub const ENTRY_BYTES_MAX: usize = 1 << 21;

/// The most commands that a leader puts into one entry, but for a first group that has more.
pub const COMMANDS_PER_ENTRY: usize = 16_384;

/// The most groups of an entry.
pub const GROUPS_MAX: usize = 8192;

/// The most bytes of a change, which may be a whole policy: it travels in one frame.
pub const CHANGE_BYTES_MAX: usize = 800 << 10;

/// An entry of the log.
#[derive(Clone, Debug)]
pub struct Record {
    /// The moment at which it is applied, stamped by the leader that proposed it.
    pub now: Now,
    /// What it has applied.
    pub what: What,
}

/// What an entry has applied.
#[derive(Clone, Debug)]
pub enum What {
    /// Requests.
    Groups(Vec<Tagged>),
    /// The first entry of a leader: its clock begins.
    Fence,
    /// A change of policy, overrides or identities, as whoever decides on them encodes it.
    Change {
        /// Who waits for it.
        tag: Tag,
        /// The change.
        change: Bytes,
    },
    /// Every node hashes its table here, to be compared with the others'.
    Checksum,
}

/// Which request of which node something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// The node at which it was asked, and which answers it.
    pub origin: u64,
    /// Which run of that node; random.
    pub incarnation: u64,
    /// The run's number for it, from 1, in the order in which they were asked.
    pub sequence: u64,
}

/// A group, who asked it, and by which policy it was resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// Who asked.
    pub tag: Tag,
    /// Version of the policy by which it was resolved.
    pub policy: u64,
    /// Commands that the leader refused, by place, in order.
    pub refused: Vec<(u32, Refusal)>,
    /// The group, encoded.
    pub body: Bytes,
}

/// Bytes that are no entry. The log is damaged, or was written by a later version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There is less than what was announced.
    #[error("the entry ends too early")]
    Short,
    /// There is more.
    #[error("the entry has {0} bytes too many")]
    Long(usize),
    /// A field has a value that it cannot have.
    #[error("{field} is {found}")]
    Field {
        /// Which one.
        field: &'static str,
        /// What was found.
        found: u64,
    },
}

const KIND_GROUPS: u8 = 1;
const KIND_FENCE: u8 = 2;
const KIND_CHANGE: u8 = 3;
const KIND_CHECKSUM: u8 = 4;

fn malformed(field: &'static str, found: impl Into<u64>) -> Malformed {
    Malformed::Field { field, found: found.into() }
}

/// Takes so many bytes off the front.
fn take(bytes: &mut Bytes, count: usize) -> Result<Bytes, Malformed> {
    if bytes.len() < count { Err(Malformed::Short) } else { Ok(bytes.split_to(count)) }
}

impl Record {
    /// The entry's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + self.what.bytes());
        let (kind, parts) = match &self.what {
            What::Groups(groups) => (KIND_GROUPS, groups.len() as u32),
            What::Fence => (KIND_FENCE, 0),
            What::Change { change, .. } => (KIND_CHANGE, change.len() as u32),
            What::Checksum => (KIND_CHECKSUM, 0),
        };
        out.put_slice(&[FORMAT, SEMANTICS, kind, 0]);
        out.put_u32_le(parts);
        out.put_u64_le(self.now.time.as_nanos());
        out.put_u64_le(self.now.utc.as_nanos());
        out.put_u64_le(0);
        match &self.what {
            What::Groups(groups) => groups.iter().for_each(|group| group.encode(&mut out)),
            What::Change { tag, change } => {
                tag.encode(&mut out);
                out.put_slice(change);
            }
            What::Fence | What::Checksum => {}
        }
        out.freeze()
    }

    /// Reads an entry. Bodies of groups are not looked into.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn decode(mut bytes: Bytes) -> Result<Self, Malformed> {
        let mut header = take(&mut bytes, HEADER_BYTES)?;
        let (format, semantics, kind) = (header.get_u8(), header.get_u8(), header.get_u8());
        if format != FORMAT {
            return Err(malformed("the entry's format", format));
        }
        if semantics != SEMANTICS {
            return Err(malformed("the entry's semantics", semantics));
        }
        header.advance(1);
        let parts = header.get_u32_le() as usize;
        let time = Timestamp::from_nanos(header.get_u64_le());
        let now = Now { time, utc: UtcTime::from_nanos(header.get_u64_le()) };
        let what = match kind {
            KIND_GROUPS => {
                if parts > GROUPS_MAX {
                    return Err(malformed("the number of groups", parts as u64));
                }
                let groups = (0..parts).map(|_| Tagged::decode(&mut bytes));
                What::Groups(groups.collect::<Result<_, _>>()?)
            }
            KIND_FENCE => What::Fence,
            KIND_CHANGE => {
                let tag = Tag::decode(&mut bytes)?;
                What::Change { tag, change: take(&mut bytes, parts)? }
            }
            KIND_CHECKSUM => What::Checksum,
            other => return Err(malformed("the entry's kind", other)),
        };
        if bytes.is_empty() { Ok(Self { now, what }) } else { Err(Malformed::Long(bytes.len())) }
    }
}

impl What {
    fn bytes(&self) -> usize {
        match self {
            Self::Groups(groups) => groups.iter().map(Tagged::bytes).sum(),
            Self::Change { change, .. } => Tag::BYTES + change.len(),
            Self::Fence | Self::Checksum => 0,
        }
    }
}

impl Tag {
    const BYTES: usize = 24;

    /// Appends the tag's bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.origin);
        out.put_u64_le(self.incarnation);
        out.put_u64_le(self.sequence);
    }

    /// Takes a tag off the front of some bytes.
    ///
    /// # Errors
    /// If they are too few.
    pub fn decode(bytes: &mut Bytes) -> Result<Self, Malformed> {
        let mut tag = take(bytes, Self::BYTES)?;
        Ok(Self {
            origin: tag.get_u64_le(),
            incarnation: tag.get_u64_le(),
            sequence: tag.get_u64_le(),
        })
    }
}

impl Tagged {
    /// Bytes of the group in an entry.
    pub fn bytes(&self) -> usize {
        GROUP_HEADER_BYTES + self.refused.len() * REFUSED_BYTES + self.body.len()
    }

    /// Appends the group's bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        self.tag.encode(out);
        out.put_u64_le(self.policy);
        out.put_u32_le(self.body.len() as u32);
        out.put_u32_le(self.refused.len() as u32);
        for (place, refusal) in &self.refused {
            // The leader refuses for want of room only.
            let (limit, keys_max) = match *refusal {
                Refusal::TableFull { limit, keys_max } => (limit, keys_max),
                _ => (None, 0),
            };
            out.put_u32_le(*place);
            out.put_u32_le(limit.map_or(u32::MAX, |limit| u32::from(limit.0)));
            out.put_u64_le(keys_max);
        }
        out.put_slice(&self.body);
    }

    /// Takes a group off the front of some bytes.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn decode(bytes: &mut Bytes) -> Result<Self, Malformed> {
        let tag = Tag::decode(bytes)?;
        let mut header = take(bytes, GROUP_HEADER_BYTES - Tag::BYTES)?;
        let policy = header.get_u64_le();
        let (body, refused) = (header.get_u32_le() as usize, header.get_u32_le() as usize);
        if body > GROUP_BYTES_MAX {
            return Err(malformed("the bytes of a group", body as u64));
        }
        if refused > COMMANDS_MAX {
            return Err(malformed("the number of refused commands", refused as u64));
        }
        let mut records = take(bytes, refused * REFUSED_BYTES)?;
        let refused = (0..refused).map(|_| {
            let (place, limit) = (records.get_u32_le(), records.get_u32_le());
            let limit = u16::try_from(limit).ok().map(LimitId);
            (place, Refusal::TableFull { limit, keys_max: records.get_u64_le() })
        });
        let refused = refused.collect();
        Ok(Self { tag, policy, refused, body: take(bytes, body)? })
    }
}

const OP_CHECK: u8 = 1;
const OP_AMEND: u8 = 2;
const OP_RELEASE: u8 = 3;
const OP_RENEW: u8 = 4;
const OP_OPEN: u8 = 5;

/// Set in an op that carries a request id.
const WITH_ID: u8 = 0x80;

/// Encodes a group. Equal checks one after the other are one record with a count.
///
/// A charge is its key, its cost and the number of a *term*: limit, numbers, effect. Few terms
/// serve many charges.
pub fn encode_group(group: &Group, out: &mut BytesMut) {
    let mut terms: Vec<[u8; TERM_BYTES]> = Vec::new();
    let mut body = BytesMut::with_capacity(group.commands.len() * 8 + group.charges.len() * 32);
    let (mut at, mut records) = (0, 0_u32);
    // Where the last check without an id is in the body, and its count.
    let mut last: Option<(usize, u16)> = None;
    for command in &group.commands {
        let charges = &group.charges[at..at + command.charges()];
        at += command.charges();
        let begin = body.len();
        encode_command(command, charges, &mut terms, &mut body);
        let folds = matches!(command, Command::Check { id: None, .. });
        match last {
            Some((from, count))
                if folds
                    && count < u16::MAX
                    && body[from + 4..begin] == body[begin + 4..]
                    && body[from..from + 2] == body[begin..begin + 2] =>
            {
                let count = count + 1;
                body[from + 2..from + 4].copy_from_slice(&count.to_le_bytes());
                body.truncate(begin);
                last = Some((from, count));
            }
            _ => {
                records += 1;
                last = folds.then_some((begin, 1));
            }
        }
    }
    out.reserve(8 + terms.len() * TERM_BYTES + body.len());
    out.put_u32_le(records);
    out.put_u32_le(terms.len() as u32);
    for term in &terms {
        out.put_slice(term);
    }
    out.put_slice(&body);
}

/// Op, number of charges, count; then what the op has, then its charges.
fn encode_command(
    command: &Command,
    charges: &[Charge],
    terms: &mut Vec<[u8; TERM_BYTES]>,
    out: &mut BytesMut,
) {
    let (op, id) = match *command {
        Command::Check { id, .. } => (OP_CHECK, id),
        Command::Amend { id, .. } => (OP_AMEND, id),
        Command::Release(_) => (OP_RELEASE, None),
        Command::Renew(..) => (OP_RENEW, None),
        Command::Open => (OP_OPEN, None),
    };
    let flag = if id.is_some() { WITH_ID } else { 0 };
    out.put_slice(&[op | flag, charges.len() as u8]);
    out.put_u16_le(1);
    if let Some(RequestId { session, sequence }) = id {
        out.put_u64_le(session);
        out.put_u64_le(sequence);
    }
    match *command {
        Command::Amend { amend, .. } => {
            let (kind, units) = match amend {
                Amend::Add(units) => (1, units),
                Amend::GiveBack(units) => (2, units),
                Amend::Set(units) => (3, units),
            };
            out.put_u8(kind);
            out.put_u64_le(units);
        }
        Command::Release(id) => out.put_slice(&id.0),
        Command::Renew(id, lease) => {
            out.put_slice(&id.0);
            out.put_u64_le(lease.map_or(0, Nanos::get));
        }
        Command::Check { .. } | Command::Open => {}
    }
    for charge in charges {
        let term = term(charge);
        let place = terms.iter().rposition(|known| *known == term).unwrap_or_else(|| {
            terms.push(term);
            terms.len() - 1
        });
        let [high, low] = charge.key.words();
        out.put_u64_le(high);
        out.put_u64_le(low);
        out.put_u64_le(charge.cost);
        out.put_u16_le(place as u16);
    }
}

fn term(charge: &Charge) -> [u8; TERM_BYTES] {
    let (code, words) = charge.quota.words();
    let shadow = u8::from(charge.effect == Effect::Shadow);
    let always = u8::from(charge.on == ChargeOn::Always);
    let mut term = [0; TERM_BYTES];
    (term[0], term[1]) = (code, shadow | always << 1);
    term[2..4].copy_from_slice(&charge.limit.0.to_le_bytes());
    for (word, to) in words.iter().zip(term[8..].chunks_exact_mut(8)) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    term
}

/// A charge without key and cost, as a term says it.
fn decode_term(mut term: Bytes) -> Result<Charge, Malformed> {
    let (code, flags) = (term.get_u8(), term.get_u8());
    let limit = LimitId(term.get_u16_le());
    term.advance(4);
    let words = [term.get_u64_le(), term.get_u64_le(), term.get_u64_le()];
    let quota = Quota::from_words(code, words);
    let quota = quota.ok_or_else(|| malformed("the kind or a number of a quota", code))?;
    if flags > 3 {
        return Err(malformed("the flags of a quota", flags));
    }
    let effect = if flags & 1 == 0 { Effect::Enforce } else { Effect::Shadow };
    let on = if flags & 2 == 0 { ChargeOn::Allow } else { ChargeOn::Always };
    Ok(Charge { key: Key::from_words([0; 2]), quota, cost: 0, limit, effect, on })
}

/// Reads a group into an emptied one.
///
/// # Errors
/// See [`Malformed`].
pub fn decode_group(mut bytes: Bytes, group: &mut Group) -> Result<(), Malformed> {
    group.clear();
    let mut header = take(&mut bytes, 8)?;
    let (records, terms) = (header.get_u32_le(), header.get_u32_le() as usize);
    if terms > usize::from(u16::MAX) {
        return Err(malformed("the number of quotas", terms as u64));
    }
    let terms: Vec<Charge> =
        (0..terms).map(|_| decode_term(take(&mut bytes, TERM_BYTES)?)).collect::<Result<_, _>>()?;
    for _ in 0..records {
        decode_command(&mut bytes, &terms, group)?;
    }
    if bytes.is_empty() { Ok(()) } else { Err(Malformed::Long(bytes.len())) }
}

fn decode_command(bytes: &mut Bytes, terms: &[Charge], group: &mut Group) -> Result<(), Malformed> {
    let mut front = take(bytes, 4)?;
    let (op, charges, count) = (front.get_u8(), front.get_u8(), front.get_u16_le());
    let id = if op & WITH_ID == 0 {
        None
    } else {
        let mut id = take(bytes, 16)?;
        Some(RequestId { session: id.get_u64_le(), sequence: id.get_u64_le() })
    };
    let charges = u16::from(charges);
    let command = match op & !WITH_ID {
        OP_CHECK => Command::Check { charges, id },
        OP_AMEND => {
            let mut amend = take(bytes, 9)?;
            let (kind, units) = (amend.get_u8(), amend.get_u64_le());
            let amend = match kind {
                1 => Amend::Add(units),
                2 => Amend::GiveBack(units),
                3 => Amend::Set(units),
                other => return Err(malformed("the kind of an amendment", other)),
            };
            Command::Amend { charges, amend, id }
        }
        OP_RELEASE => Command::Release(permit(bytes)?),
        OP_RENEW => {
            let permit = permit(bytes)?;
            let lease = take(bytes, 8)?.get_u64_le();
            Command::Renew(permit, (lease != 0).then(|| Nanos::new(lease)))
        }
        OP_OPEN => Command::Open,
        other => return Err(malformed("the op of a command", other)),
    };
    if group.commands.len() + usize::from(count) > COMMANDS_MAX || count == 0 {
        return Err(malformed("the count of a command", count));
    }
    let begin = group.charges.len();
    for _ in 0..command.charges() {
        let mut charge = take(bytes, 26)?;
        let key = Key::from_words([charge.get_u64_le(), charge.get_u64_le()]);
        let (cost, place) = (charge.get_u64_le(), charge.get_u16_le());
        let term = terms.get(usize::from(place));
        let term = term.ok_or_else(|| malformed("the quota of a charge", place))?;
        group.charges.push(Charge { key, cost, ..*term });
    }
    let end = group.charges.len();
    group.commands.push(command);
    for _ in 1..count {
        group.commands.push(command);
        group.charges.extend_from_within(begin..end);
    }
    Ok(())
}

fn permit(bytes: &mut Bytes) -> Result<PermitId, Malformed> {
    let mut id = [0; 16];
    take(bytes, 16)?.copy_to_slice(&mut id);
    Ok(PermitId(id))
}

#[cfg(test)]
mod tests;

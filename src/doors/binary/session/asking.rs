//! The first pass: each check is resolved as it is met, and its counters are fetched.

use tollkeeper_protocol::codec::Sparse;
use tollkeeper_protocol::limits::{METERS_MAX, SLOTS_MAX, TIED_PERMITS_MAX};
use tollkeeper_protocol::request::{self, Check, Request, decode_item};
use tollkeeper_protocol::{Flags, Message, Op, RequestId};

use crate::doors::{Intent, Loaded, Problem};
use crate::engine::key::Key;
use crate::engine::time::Now;
use crate::policy::{self, Handle, Resolved};

use super::super::convert;
use super::acts::is_act;
use super::work::{Act, Asked, Of, Order, What, Work};
use super::wrong::Wrong;

impl<F: FnMut() -> Now> Work<'_, '_, F> {
    /// Takes in a check or peek, to be decided with the others.
    #[inline]
    pub(super) fn ask(&mut self, call: u64, message: &Message<'_>) {
        if let Some((number, key)) = self.one_key(message) {
            self.pinned.prefetch(key);
            let what = What::One { number, key };
            return self.buffers.asked.push(Asked { call, what, op: message.op });
        }
        self.ask_anyhow(call, message);
    }

    /// Handle and key of a check that asks tersely, at the usual cost, of a class that comes down
    /// to one limit; `None` for any other.
    #[inline(always)]
    fn one_key(&self, message: &Message<'_>) -> Option<(u32, Key)> {
        if message.op != Op::CHECK || message.flags != Flags::default() {
            return None;
        }
        allowed(Op::CHECK).ok()?;
        let check = Check::plain(message, request::Intent::Charge)?;
        let handle = self.loaded.policy.handle(check.handle)?;
        let one = handle.one().filter(|_| !self.loaded.is_overridden(check.handle))?;
        let known = check.values.presence() >> handle.slots().len() == 0;
        if handle.layout() != check.layout || !known {
            return None;
        }
        let value = check.values.value(usize::from(one.slot))?;
        Some((check.handle, one.key(value)))
    }

    #[cold]
    fn ask_anyhow(&mut self, call: u64, message: &Message<'_>) {
        let taken = match message.op {
            Op::CHECK => self.take(call, message, request::Intent::Charge),
            Op::PEEK => self.take(call, message, request::Intent::Peek),
            _ if is_act(message.op) => self.take_act(call, message),
            _ => self.take_inline(call, message),
        };
        if let Err(wrong) = taken {
            self.take_wrong(call, message.op, wrong);
        }
    }

    #[cold]
    fn take_wrong(&mut self, call: u64, op: Op, wrong: Wrong) {
        let what = What::Wrong(self.buffers.wrongs.len());
        self.buffers.wrongs.push(wrong);
        self.buffers.asked.push(Asked { call, what, op });
    }

    /// Resolves a check or peek by handle.
    #[inline]
    fn take(
        &mut self,
        call: u64,
        message: &Message<'_>,
        wanted: request::Intent,
    ) -> Result<(), Wrong> {
        let check = Check::decode(message, wanted).map_err(Wrong::Decode)?;
        allowed(message.op)?;
        self.stay(check.no_forward)?;
        let number = check.handle;
        let handle = handle_of(self.loaded, number, check.layout)?;
        let resolved = self.resolve(handle, &check)?;
        self.tie(check.tied)?;
        let body_at = self.place_of(message.body);
        let body_bytes = message.body.len() as u32;
        let order = Order {
            form: check.form,
            intent: intent(check.intent, check.id),
            deadline_nanos: check.deadline_nanos,
            tied: check.tied,
            of: Of::Handle { number, body_at, body_bytes, resolved },
        };
        self.order(call, message.op, order);
        Ok(())
    }

    /// Where a body is in the input.
    fn place_of(&self, body: &[u8]) -> u32 {
        (body.as_ptr() as usize - self.input.as_ptr() as usize) as u32
    }

    /// Takes in an item of a batch that decides nothing.
    fn take_act(&mut self, call: u64, message: &Message<'_>) -> Result<(), Wrong> {
        // What it says is wrong is told in its place; what it asks for is done in its turn.
        decode_item(message).map_err(Wrong::Decode)?;
        let (body_at, body_bytes) = (self.place_of(message.body), message.body.len() as u32);
        let what = What::Act(self.buffers.acts.len());
        let Message { flags, offset, .. } = *message;
        self.buffers.acts.push(Act { flags, body_at, body_bytes, offset });
        self.buffers.asked.push(Asked { call, what, op: message.op });
        Ok(())
    }

    /// A check that is not to be handed on is wrong where another node leads.
    fn stay(&self, no_forward: bool) -> Result<(), Wrong> {
        match self.desk.led_by_other() {
            Some(leader) if no_forward => Err(Wrong::NotLeader(leader)),
            _ => Ok(()),
        }
    }

    /// Takes room for one more tied permit, of a check with which nothing else is wrong. If there is
    /// none, those that have lapsed make some.
    fn tie(&mut self, tied: bool) -> Result<(), Wrong> {
        if !tied {
            return Ok(());
        }
        if self.tied.len() + self.tying >= TIED_PERMITS_MAX {
            self.tied.retain(|permit| self.pinned.may_hold(*permit));
        }
        let has_room = self.tied.len() + self.tying < TIED_PERMITS_MAX;
        if !self.desk.lets_in(has_room) {
            return Err(Wrong::TooManyTied);
        }
        self.tying += 1;
        Ok(())
    }

    fn order(&mut self, call: u64, op: Op, order: Order) {
        let what = What::Order(self.buffers.orders.len());
        self.buffers.orders.push(order);
        self.buffers.asked.push(Asked { call, what, op });
    }

    #[inline]
    fn resolve(&mut self, handle: &Handle, check: &Check<'_>) -> Result<Resolved, Wrong> {
        let slots = handle.slots().len();
        let (presence, found) = (check.values.presence(), check.costs.len());
        if presence.checked_shr(slots as u32).is_some_and(|beyond| beyond != 0) {
            return Err(Wrong::UnknownSlot { presence, slots });
        }
        let mut costs = [0; METERS_MAX];
        let costs = if found == 0 {
            // No cost at all is one request.
            &[][..]
        } else {
            let max = handle.meters().len();
            if found > max {
                return Err(Wrong::TooManyCosts { found, max });
            }
            for (cost, to) in check.costs.iter().zip(&mut costs) {
                *to = cost;
            }
            // One cost that is there puts those that are not at zero.
            &costs[..max]
        };
        let resolved = with_values(&check.values, slots, |values| {
            self.desk.resolve(self.loaded, self.pinned, handle, &policy::Request { values, costs })
        });
        resolved.map_err(|error| {
            self.desk.count_error(handle.api_number());
            Wrong::Problem(handle.number(), Problem::Resolve(error))
        })
    }

    /// Resolves a check or peek of inline limits.
    fn take_inline(&mut self, call: u64, message: &Message<'_>) -> Result<(), Wrong> {
        let check = match request::decode_item(message).map_err(Wrong::Decode)? {
            Request::CheckInline(check) => check,
            _ => return Err(Wrong::Decode(message.unsupported_op())),
        };
        allowed(message.op)?;
        self.stay(check.no_forward)?;
        let charges_at = self.desk.charges.len();
        for limit in check.limits {
            let charge =
                convert::charge(&self.desk.instance.inline, &limit).map_err(Wrong::Quota)?;
            self.pinned.prefetch(charge.key);
            self.desk.charges.push(charge);
        }
        self.tie(check.tied)?;
        let count = self.desk.charges.len() - charges_at;
        let order = Order {
            form: check.form,
            intent: intent(check.intent, check.id),
            deadline_nanos: check.deadline_nanos,
            tied: check.tied,
            of: Of::Inline { charges_at, count },
        };
        self.order(call, message.op, order);
        Ok(())
    }
}

/// Slots of a handle that has few, as most have.
const FEW_SLOTS: usize = 4;

/// Gives `take` the values by slot, as the policy wants them.
#[inline]
pub(super) fn with_values<'a, R>(
    sparse: &Sparse<'a>,
    slots: usize,
    take: impl FnOnce(&[Option<&'a [u8]>]) -> R,
) -> R {
    if slots <= FEW_SLOTS {
        let mut values = [None; FEW_SLOTS];
        fill(&mut values, sparse);
        take(&values[..slots])
    } else {
        let mut values = [None; SLOTS_MAX];
        fill(&mut values, sparse);
        take(&values[..slots.min(SLOTS_MAX)])
    }
}

#[inline]
fn fill<'a>(values: &mut [Option<&'a [u8]>], sparse: &Sparse<'a>) {
    for (slot, value) in sparse.iter() {
        if let Some(place) = values.get_mut(slot) {
            *place = Some(value);
        }
    }
}

#[inline]
pub(super) fn handle_of(loaded: &Loaded, number: u32, layout: u64) -> Result<&Handle, Wrong> {
    let handle = loaded.policy.handle(number).ok_or(Wrong::UnknownHandle(number))?;
    if handle.layout() == layout { Ok(handle) } else { Err(Wrong::StaleHandle(number)) }
}

#[inline]
fn intent(intent: request::Intent, id: Option<RequestId>) -> Intent {
    match (intent, id) {
        (request::Intent::Charge, None) => Intent::Charge,
        (request::Intent::Charge, Some(id)) => Intent::ChargeOnce(convert::request_id(id)),
        (request::Intent::Peek, _) => Intent::Peek,
    }
}

/// Tests the principal's capabilities, item by item.
#[inline]
pub(super) fn allowed(op: Op) -> Result<(), Wrong> {
    let needed = convert::capability(op);
    if convert::CAPABILITIES.contains(needed) { Ok(()) } else { Err(Wrong::Forbidden(needed)) }
}

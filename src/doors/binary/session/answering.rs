//! The second pass: what waits is decided or done in its order, and answered.

use tollkeeper_protocol::request::{self, Check, Form, decode_item};
use tollkeeper_protocol::response::{
    Answer, ErrorAnswer, Numbers, Rendered as WireRendered, Terse,
};
use tollkeeper_protocol::status::{Code, Decision as WireDecision, Retry as WireRetry};
use tollkeeper_protocol::{Envelope, Flags, Message, Op};

use crate::doors::{Answered, Cause, Due, Intent};
use crate::engine::command::Charge;
use crate::engine::decision::{Decision, Reading};
use crate::engine::key::Key;
use crate::engine::time::Now;
use crate::policy::{self, Handle};

use super::super::convert;
use super::acts::Done;
use super::asking::with_values;
use super::work::{Act, Asked, Of, Order, What, Work};
use super::wrong::{Wrong, cut, encode_error};

/// What a request is answered.
pub(super) enum Reply<'a> {
    Decided(&'a Answer<'a>),
    Done(&'a Done),
    Error(&'a ErrorAnswer<'a>),
}

enum Decided {
    Handle(Answered),
    Inline(Decision),
}

impl<F: FnMut() -> Now> Work<'_, '_, F> {
    /// Decides and answers the common check. False leaves it to [`Work::answer`].
    #[inline]
    pub(super) fn answer_one(&mut self, asked: &Asked, out: &mut Vec<u8>) -> bool {
        let What::One { number, key } = asked.what else { return false };
        if self.desk.asks_cluster() {
            return false;
        }
        let Some(handle) = self.loaded.policy.handle(number) else { return false };
        let Some(one) = handle.one() else { return false };
        let charge = Charge::new(key, one.quota, one.cost, one.limit);
        let api = handle.api_number();
        let decided = self.desk.decide_one(self.pinned, api, &charge, self.stamp);
        let Some(reading) = decided else { return false };
        if !reading.fits {
            let journal = &self.desk.instance.journal;
            let cause = Cause::Limit(one.limit);
            if journal.is_due(cause, self.stamp.now().time) {
                let version = self.loaded.policy.version();
                let due = Due { cause, index: one.limit_index, place: Some(0) };
                journal.denied(handle, due, version, &policy::Request::default());
            }
        }
        let answer = Terse {
            decision: if reading.fits { WireDecision::Allow } else { WireDecision::Deny },
            unmatched: false,
            failed_open: false,
            binding: Some(one.limit_index),
            retry: convert::retry(reading.retry()),
            witness: self.witness(),
        };
        answer.encode(asked.op, Envelope::Call(asked.call), out);
        true
    }

    /// A common check that the engine refused, to be decided as any other.
    #[cold]
    fn order_of_one(&mut self, number: u32, key: Key) -> Result<Order, Wrong> {
        let one = self.loaded.policy.handle(number).and_then(Handle::one);
        let one = one.ok_or(Wrong::UnknownHandle(number))?;
        let charge = Charge::new(key, one.quota, one.cost, one.limit);
        let resolved = self.desk.take(charge, one.limit_index);
        let of = Of::Handle { number, body_at: 0, body_bytes: 0, resolved };
        let (form, intent) = (Form::TERSE, Intent::Charge);
        Ok(Order { form, intent, deadline_nanos: None, tied: false, of })
    }

    /// Decides or does what waits, and gives `reply` what it is answered.
    #[inline]
    pub(super) fn answer(&mut self, asked: &Asked, reply: impl FnOnce(Reply<'_>)) {
        let order = match asked.what {
            What::One { number, key } => self.order_of_one(number, key),
            What::Order(place) => Ok(self.buffers.orders[place]),
            What::Act(place) => return self.answer_act(asked.op, place, reply),
            What::Wrong(place) => Err(self.buffers.wrongs[place]),
        };
        let wrong = match order.and_then(|order| Ok((order, self.decide(&order)?))) {
            Ok((order, Decided::Handle(answered))) => {
                return self.answer_handle(asked.op, &order, &answered, |answer| {
                    reply(Reply::Decided(answer));
                });
            }
            Ok((order, Decided::Inline(decision))) => {
                return self.answer_inline(&order, &decision, |answer| {
                    reply(Reply::Decided(answer));
                });
            }
            Err(wrong) => wrong,
        };
        self.desk.cells.errors.add(1);
        wrong.with_error(self.loaded, |error| reply(Reply::Error(error)));
    }

    #[cold]
    fn answer_act(&mut self, op: Op, place: usize, reply: impl FnOnce(Reply<'_>)) {
        let Act { flags, body_at, body_bytes, offset } = self.buffers.acts[place];
        let body = &self.input[body_at as usize..(body_at + body_bytes) as usize];
        let message = Message { op, flags, body, offset };
        let done = decode_item(&message).map_err(Wrong::Decode);
        match done.and_then(|request| self.act(&message, &request)) {
            Ok(done) => reply(Reply::Done(&done)),
            Err(wrong) => {
                self.desk.cells.errors.add(1);
                wrong.with_error(self.loaded, |error| reply(Reply::Error(error)));
            }
        }
    }

    /// What a decision gave of concurrency limits, as it is told; tied, if that was asked for.
    fn permit(
        &mut self,
        order: &Order,
        decision: &Decision,
    ) -> Option<tollkeeper_protocol::Permit> {
        let permit = decision.permit?;
        if order.tied {
            self.tied.push(permit.id);
        }
        Some(convert::permit(permit))
    }

    fn decide(&mut self, order: &Order) -> Result<Decided, Wrong> {
        if let Some(deadline) = order.deadline_nanos
            && !self.desk.leave_deadline(deadline)
        {
            let elapsed = self.stamp.now().time.since(self.arrived).get();
            if elapsed >= deadline {
                return Err(Wrong::DeadlineExceeded);
            }
        }
        match order.of {
            Of::Handle { number, ref resolved, .. } => {
                let Some(handle) = self.loaded.policy.handle(number) else {
                    return Err(Wrong::UnknownHandle(number));
                };
                let api = handle.api_number();
                let (pinned, stamp) = (self.pinned, &mut *self.stamp);
                self.desk
                    .decide(pinned, api, handle, resolved, order.intent, stamp)
                    .map(Decided::Handle)
                    .map_err(|problem| Wrong::Problem(number, problem))
            }
            Of::Inline { charges_at, count } => {
                let charges = charges_at..charges_at + count;
                self.desk
                    .decide_inline(self.pinned, charges, order.intent, self.stamp)
                    .map(Decided::Inline)
                    .map_err(|problem| Wrong::Problem(0, problem))
            }
        }
    }

    fn answer_handle(
        &mut self,
        op: Op,
        order: &Order,
        answered: &Answered,
        reply: impl FnOnce(&Answer<'_>),
    ) {
        let Of::Handle { ref resolved, .. } = order.of else { return };
        let permit = match answered {
            Answered::Decided(decision) => {
                if order.intent.charges() && self.desk.has_denials(decision) {
                    self.tell_of_denials(op, order, decision);
                }
                self.permit(order, decision)
            }
            Answered::FailedOpen(_) => None,
        };
        let version = self.loaded.policy.version();
        let limits = &self.desk.limits[resolved.limits()];
        let terse = match answered {
            Answered::Decided(decision) => {
                let index_of = |place: usize| limits.get(place).copied();
                let terse = convert::terse(
                    decision,
                    &self.desk.readings,
                    index_of,
                    version,
                    self.desk.witness(),
                );
                Terse { unmatched: resolved.unmatched, ..terse }
            }
            Answered::FailedOpen(_) => Terse {
                decision: WireDecision::Allow,
                unmatched: false,
                failed_open: true,
                binding: None,
                retry: WireRetry::None,
                witness: self.witness(),
            },
        };
        if order.form == Form::TERSE {
            return reply(&Answer { permit, ..terse.into() });
        }
        self.answer_at_length(op, order, answered, (terse, permit), reply);
    }

    /// Hands over denials to be logged, if it is time to.
    fn tell_of_denials(&self, op: Op, order: &Order, decision: &Decision) {
        let Of::Handle { number, ref resolved, .. } = order.of else { return };
        let Some(handle) = self.loaded.policy.handle(number) else { return };
        self.desk.denials_due(handle, resolved, decision, |due| {
            self.tell_of_denial(op, order, handle, due);
        });
    }

    /// Hands over a denial, with what the policy lets be logged of the request.
    #[cold]
    fn tell_of_denial(&self, op: Op, order: &Order, handle: &Handle, due: Due) {
        let Of::Handle { body_at, body_bytes, .. } = order.of else { return };
        let version = self.loaded.policy.version();
        let journal = &self.desk.instance.journal;
        let message = message_of(self.input, op, order, body_at, body_bytes);
        match Check::decode(&message, request::Intent::Peek) {
            Ok(check) => with_values(&check.values, handle.slots().len(), |values| {
                journal.denied(handle, due, version, &policy::Request { values, costs: &[] });
            }),
            // Of one that was resolved in a shorter way, whose handle logs nothing of it.
            Err(_) => journal.denied(handle, due, version, &policy::Request::default()),
        }
    }

    /// An answer with numbers, rendered, or both.
    fn answer_at_length(
        &mut self,
        op: Op,
        order: &Order,
        answered: &Answered,
        (terse, permit): (Terse, Option<tollkeeper_protocol::Permit>),
        reply: impl FnOnce(&Answer<'_>),
    ) {
        let Of::Handle { number, body_at, body_bytes, ref resolved } = order.of else { return };
        let limits = &self.desk.limits[resolved.limits()];
        let now = self.stamp.now();
        let readings: &[Reading] = match answered {
            Answered::Decided(_) => &self.desk.readings,
            Answered::FailedOpen(_) => &[],
        };
        self.buffers.numbers.clear();
        let numbers = limits.iter().zip(readings);
        self.buffers.numbers.extend(numbers.map(|(index, read)| convert::numbers(*index, read)));
        let numbers = order.form.numbers.then(|| Numbers {
            wall_nanos: now.utc.as_nanos(),
            limits: self.buffers.numbers[..].into(),
        });
        let handle = self.loaded.policy.handle(number).filter(|_| order.form.rendered);
        let Some(handle) = handle else {
            return reply(&Answer { terse, numbers, rendered: None, body_omitted: false, permit });
        };
        let rendered = &mut self.buffers.rendered;
        match answered {
            Answered::Decided(decision) => {
                let message = message_of(self.input, op, order, body_at, body_bytes);
                // It was decoded before.
                let Ok(check) = Check::decode(&message, request::Intent::Peek) else { return };
                with_values(&check.values, handle.slots().len(), |values| {
                    let request = policy::Request { values, costs: &[] };
                    handle.render(resolved, limits, &request, decision, readings, rendered);
                });
            }
            Answered::FailedOpen(_) => {
                handle.render_unavailable(policy::Unavailable::Allow, rendered);
            }
        }
        let headers: Vec<Option<&[u8]>> =
            rendered.headers().map(|value| value.map(str::as_bytes)).collect();
        let rendered = WireRendered {
            status: rendered.status(),
            headers: headers[..].into(),
            content_type: rendered.content_type().unwrap_or_default(),
            body: rendered.body().map(str::as_bytes),
        };
        let rendered = Some(rendered);
        reply(&Answer { terse, numbers, rendered, body_omitted: false, permit });
    }

    fn answer_inline(
        &mut self,
        order: &Order,
        decision: &Decision,
        reply: impl FnOnce(&Answer<'_>),
    ) {
        let permit = self.permit(order, decision);
        let readings = &self.desk.readings;
        let index_of = |place: usize| u16::try_from(place).ok();
        let version = self.loaded.policy.version();
        let terse = convert::terse(decision, readings, index_of, version, self.desk.witness());
        self.buffers.numbers.clear();
        if order.form.numbers {
            let numbers = readings.iter().enumerate();
            self.buffers.numbers.extend(numbers.filter_map(|(index, read)| {
                u16::try_from(index).ok().map(|index| convert::numbers(index, read))
            }));
        }
        let numbers = order.form.numbers.then(|| Numbers {
            wall_nanos: decision.now.utc.as_nanos(),
            limits: self.buffers.numbers[..].into(),
        });
        reply(&Answer { terse, numbers, rendered: None, body_omitted: false, permit });
    }

    pub(super) fn prepare(
        &mut self,
        prepare: &request::Prepare<'_>,
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) {
        let request::Prepare { api, class } = *prepare;
        let policy = &self.loaded.policy;
        let Some(handle) = policy.handle_of(api, class) else {
            self.desk.cells.errors.add(1);
            let (code, message) = if policy.handle_of(api, None).is_none() {
                (Code::UnknownApi, format!("the policy has no API `{api}`"))
            } else {
                let class = class.unwrap_or_default();
                (Code::UnknownClass, format!("API `{api}` has no class `{class}`"))
            };
            return encode_error(&ErrorAnswer::new(code, cut(&message)), envelope, out);
        };
        if convert::encode_prepared(handle, policy.version(), envelope, out).is_err() {
            let message = "the handle exceeds the protocol's maxima";
            encode_error(&ErrorAnswer::new(Code::Internal, message), envelope, out);
        }
    }
}

fn message_of<'i>(
    input: &'i [u8],
    op: Op,
    order: &Order,
    body_at: u32,
    body_bytes: u32,
) -> Message<'i> {
    let deadline = Flags::DEADLINE.only_if(order.deadline_nanos.is_some());
    let id = Flags::REQUEST_ID.only_if(order.intent.id().is_some());
    let flags = order.form.to_flags().union(deadline).union(id);
    let (from, to) = (body_at as usize, (body_at + body_bytes) as usize);
    Message { op, flags, body: &input[from..to], offset: 0 }
}

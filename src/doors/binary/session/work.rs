//! What waits between the two passes over the desk: checks that were met and are not decided, and
//! what they are decided with.

use tollkeeper_protocol::request::Form;
use tollkeeper_protocol::response::LimitNumbers;
use tollkeeper_protocol::{Flags, Op};

use crate::doors::{Desk, Intent, Kept, Loaded};
use crate::engine::key::Key;
use crate::engine::permit::PermitId;
use crate::engine::table::{Pinned, Stamp};
use crate::engine::time::Timestamp;
use crate::policy::{Rendered, Resolved};

use super::wrong::Wrong;

/// Buffers that one thread reuses for all its sessions.
#[derive(Default)]
pub struct SessionBuffers {
    pub(super) asked: Vec<Asked>,
    pub(super) orders: Vec<Order>,
    pub(super) acts: Vec<Act>,
    pub(super) wrongs: Vec<Wrong>,
    pub(super) numbers: Vec<LimitNumbers>,
    pub(super) rendered: Rendered,
    /// Answers of passes that only collect.
    pub(super) unsaid: Vec<u8>,
}

/// A check or peek that waits to be decided. Kept small: a read brings many.
pub(super) struct Asked {
    /// Where its answer goes; of no meaning for an item of a batch.
    pub(super) call: u64,
    pub(super) what: What,
    pub(super) op: Op,
}

pub(super) enum What {
    /// Of a class that comes down to one limit: the counter's key. Terse, at the usual cost.
    One { number: u32, key: Key },
    /// Anything else that can be decided: its place in [`SessionBuffers::orders`].
    Order(usize),
    /// An item of a batch that decides nothing: its place in [`SessionBuffers::acts`].
    Act(usize),
    /// Nothing that can be decided: the place of the reason in [`SessionBuffers::wrongs`].
    Wrong(usize),
}

/// An item of a batch that decides nothing: where its body is in the input, to be done in its turn.
#[derive(Clone, Copy)]
pub(super) struct Act {
    pub(super) flags: Flags,
    pub(super) body_at: u32,
    pub(super) body_bytes: u32,
    pub(super) offset: u32,
}

/// A check or peek with everything that it may ask for.
#[derive(Clone, Copy)]
pub(super) struct Order {
    pub(super) form: Form,
    pub(super) intent: Intent,
    pub(super) deadline_nanos: Option<u64>,
    /// Whether permits that it is given go back when the connection closes.
    pub(super) tied: bool,
    pub(super) of: Of,
}

#[derive(Clone, Copy)]
pub(super) enum Of {
    /// Of a handle. The body, there in the input, has the values for a rendered answer.
    Handle { number: u32, body_at: u32, body_bytes: u32, resolved: Resolved },
    /// Of inline limits: its charges, from here and so many.
    Inline { charges_at: usize, count: usize },
}

/// What a batch of frames is answered with: the thread's desk and buffers, the policy and the
/// table as they are now, the moment.
pub(super) struct Work<'w, 't, F> {
    pub(super) desk: &'w mut Desk,
    pub(super) buffers: &'w mut SessionBuffers,
    pub(super) loaded: &'w Loaded,
    pub(super) pinned: &'w Pinned<'t>,
    pub(super) stamp: &'w mut Stamp<F>,
    pub(super) arrived: Timestamp,
    pub(super) input: &'w [u8],
    /// The session's tied permits, and how many checks that may tie more wait for their decision.
    pub(super) tied: Vec<PermitId>,
    pub(super) tying: usize,
    /// Tells when the last change by hand is on disk, and with it those before it.
    pub(super) kept: Option<Kept>,
}

impl<F> Work<'_, '_, F> {
    pub(super) fn reuse(&mut self, mut asked: Vec<Asked>) {
        asked.clear();
        self.buffers.asked = asked;
        self.buffers.orders.clear();
        self.buffers.acts.clear();
        self.buffers.wrongs.clear();
        self.tying = 0;
        self.desk.clear();
    }
}

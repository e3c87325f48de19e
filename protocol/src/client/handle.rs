//! Prepared APIs and classes, and what is checked by them.

use alloc::borrow::Cow;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;
use std::sync::{PoisonError, RwLock};

use super::error::ClientError;
use crate::codec::{List, Sparse};
use crate::request::{
    BatchRequest, Check, CheckInline, Form, InlineLimit, Intent, Request, RequestId,
};
use crate::response::Prepared;
use crate::status::{Kind, Mode, SlotUse, WhenUnavailable};

/// A prepared API or class. Clones share it; when the server says that it is stale, all of them
/// get its new description.
#[derive(Clone, Debug)]
pub struct Handle(Arc<RwLock<Arc<Description>>>);

impl Handle {
    pub(super) fn new(description: Description) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(description))))
    }

    /// What the server last said of this handle.
    pub fn description(&self) -> Arc<Description> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn replace(&self, description: Description) -> Arc<Description> {
        let description = Arc::new(description);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = description.clone();
        description
    }
}

/// What a server says of a handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its number.
    pub handle: u32,
    /// Stands for all names below.
    pub layout: u64,
    /// The policy that it was made from.
    pub policy_version: u64,
    /// The API's name.
    pub api: String,
    /// The class's name, empty if the server finds the class.
    pub class: String,
    /// What to do when no decision can be had.
    pub when_unavailable: WhenUnavailable,
    /// HTTP status of a denial.
    pub denied_status: u16,
    /// Values that a check may carry.
    pub slots: Vec<SlotDescription>,
    /// Meters, in the order of costs.
    pub meters: Vec<String>,
    /// Limits, in the order of the indexes in answers.
    pub limits: Vec<LimitDescription>,
    /// Names of the response headers.
    pub headers: Vec<String>,
    /// Headers of a denial that is made without an answer.
    pub static_headers: Vec<(String, Vec<u8>)>,
}

/// A value that a check may carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotDescription {
    /// The attribute's name.
    pub name: String,
    /// What it is read for.
    pub usage: SlotUse,
    /// A check without it cannot be decided.
    pub required: bool,
}

/// A limit of a handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitDescription {
    /// Its name.
    pub name: String,
    /// Its window's name, or empty.
    pub window: String,
    /// Its kind.
    pub kind: Kind,
    /// What its verdict does.
    pub mode: Mode,
    /// The number that a caller is told; 0 if it depends on the request.
    pub limit: u64,
}

impl Description {
    pub(super) fn from_wire(prepared: &Prepared<'_>) -> Self {
        Self {
            handle: prepared.handle,
            layout: prepared.layout,
            policy_version: prepared.policy_version,
            api: prepared.api.to_string(),
            class: prepared.class.to_string(),
            when_unavailable: prepared.when_unavailable,
            denied_status: prepared.denied_status,
            slots: prepared
                .slots
                .iter()
                .map(|slot| SlotDescription {
                    name: slot.name.to_string(),
                    usage: slot.usage,
                    required: slot.required,
                })
                .collect(),
            meters: prepared.meters.iter().map(str::to_string).collect(),
            limits: prepared
                .limits
                .iter()
                .map(|limit| LimitDescription {
                    name: limit.name.to_string(),
                    window: limit.window.to_string(),
                    kind: limit.kind,
                    mode: limit.mode,
                    limit: limit.limit,
                })
                .collect(),
            headers: prepared.headers.iter().map(str::to_string).collect(),
            static_headers: prepared
                .static_headers
                .iter()
                .map(|header| (header.name.to_string(), header.value.to_vec()))
                .collect(),
        }
    }

    /// The index of the slot of this name.
    pub fn slot(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|slot| slot.name == name)
    }

    /// The index of the meter of this name.
    pub fn meter(&self, name: &str) -> Option<usize> {
        self.meters.iter().position(|meter| meter == name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    Name(Cow<'static, str>),
    Index(usize),
}

/// What one check says: values, costs, the form of the answer, and a deadline.
#[derive(Clone, Debug, Default)]
pub struct CheckArgs {
    values: Vec<(At, Vec<u8>)>,
    costs: Vec<u64>,
    form: Form,
    tied: bool,
    no_forward: bool,
    id: Option<RequestId>,
    pub(super) deadline: Option<Duration>,
}

impl CheckArgs {
    /// No values, cost 1 of the first meter, a terse answer.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the value of the slot of this name.
    pub fn value(mut self, slot: impl Into<Cow<'static, str>>, value: impl Into<Vec<u8>>) -> Self {
        self.values.push((At::Name(slot.into()), value.into()));
        self
    }

    /// With the value of the slot at this index of the handle's description.
    pub fn value_at(mut self, slot: usize, value: impl Into<Vec<u8>>) -> Self {
        self.values.push((At::Index(slot), value.into()));
        self
    }

    /// With costs for the meters in order, each at most 2^53.
    pub fn costs(mut self, costs: impl Into<Vec<u64>>) -> Self {
        self.costs = costs.into();
        self
    }

    /// With an answer of this form.
    pub fn form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    /// With permits that go back when the connection closes, if any are granted. This client's
    /// connection is made anew when it is lost; permits stay with the one that is gone.
    pub fn tied(mut self) -> Self {
        self.tied = true;
        self
    }

    /// Not to be handed on: a node that does not lead its cluster answers NOT_LEADER.
    pub fn no_forward(mut self) -> Self {
        self.no_forward = true;
        self
    }

    /// Under an id of [`Client::session`](super::Client::session): however often it is sent, it is
    /// charged once. A permit that comes after the caller has given up is not given back then, as
    /// another try has it too.
    pub fn once(mut self, id: RequestId) -> Self {
        self.id = Some(id);
        self
    }

    /// With a deadline of its own. The server is told, and decides nothing after it.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Some(after);
        self
    }

    /// Values by slot of `description`; indexes were meant for `written_for`. A slot that a new
    /// description no longer has is left out.
    pub(super) fn values_for(
        &self,
        written_for: &Description,
        description: &Description,
    ) -> Result<Vec<Option<&[u8]>>, ClientError> {
        let mut values = alloc::vec![None; description.slots.len()];
        for (at, value) in &self.values {
            let name = match at {
                At::Name(name) => Some(&**name),
                At::Index(index) => written_for.slots.get(*index).map(|slot| slot.name.as_str()),
            };
            let name = name.filter(|name| written_for.slot(name).is_some());
            let Some(name) = name else {
                let slot = match at {
                    At::Name(name) => name.to_string(),
                    At::Index(index) => index.to_string(),
                };
                let slots = written_for.slots.iter().map(|slot| slot.name.clone()).collect();
                return Err(ClientError::UnknownSlot { slot, slots });
            };
            if let Some(place) = description.slot(name).and_then(|index| values.get_mut(index)) {
                *place = Some(value.as_slice());
            }
        }
        Ok(values)
    }

    pub(super) fn request<'a>(
        &'a self,
        description: &Description,
        intent: Intent,
        values: &'a [Option<&'a [u8]>],
    ) -> Check<'a> {
        Check {
            intent,
            form: self.form,
            tied: self.tied,
            no_forward: self.no_forward,
            handle: description.handle,
            layout: description.layout,
            id: self.id,
            deadline_nanos: self
                .deadline
                .map(|after| u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)),
            costs: List::from(&self.costs[..]),
            values: Sparse::from(values),
        }
    }
}

/// One member of a batch.
#[derive(Clone, Debug)]
pub enum BatchItem<'a> {
    /// A check or a peek by handle.
    Handle {
        /// The handle.
        handle: &'a Handle,
        /// Charge or peek.
        intent: Intent,
        /// What the check says.
        args: &'a CheckArgs,
    },
    /// A check or a peek of inline limits.
    Inline {
        /// Charge or peek.
        intent: Intent,
        /// The form of the answer; never rendered.
        form: Form,
        /// The limits.
        limits: &'a [InlineLimit<'a>],
    },
}

impl BatchItem<'_> {
    pub(super) fn description(&self) -> Option<Arc<Description>> {
        match self {
            Self::Handle { handle, .. } => Some(handle.description()),
            Self::Inline { .. } => None,
        }
    }

    pub(super) fn encode(
        &self,
        description: Option<&Description>,
        batch: &mut BatchRequest<'_>,
    ) -> Result<(), ClientError> {
        match (self, description) {
            (Self::Handle { args, intent, .. }, Some(description)) => {
                let values = args.values_for(description, description)?;
                batch.push(&Request::Check(args.request(description, *intent, &values)))?;
            }
            (Self::Inline { intent, form, limits }, _) => {
                let (intent, form, limits) = (*intent, *form, List::from(*limits));
                let check = CheckInline {
                    intent,
                    form,
                    tied: false,
                    no_forward: false,
                    id: None,
                    deadline_nanos: None,
                    limits,
                };
                batch.push(&Request::CheckInline(check))?;
            }
            (Self::Handle { .. }, None) => unreachable!("a handle always has a description"),
        }
        Ok(())
    }
}

//! What a batch holds: what is asked, by places in buffers that outlive it, and what became of it.

use std::ops::Range;

use crate::doors::{Intent, Problem};
use crate::engine::command::{Amend, Charge};
use crate::engine::decision::{Decision, Reading};
use crate::engine::permit::PermitId;
use crate::engine::quota::QuotaError;
use crate::engine::time::Nanos;
use crate::policy::{ResolveError, Resolved};

/// What a batch holds, one item or request after the other. A thread's batches hand it on, because
/// making room anew takes longer than deciding one check.
#[derive(Default)]
pub(super) struct Room {
    pub(super) items: Vec<Item>,
    /// Values of all requests, one after the other.
    pub(super) bytes: Vec<u8>,
    /// Where each value lies.
    pub(super) values: Vec<Option<Range<usize>>>,
    pub(super) costs: Vec<u64>,
    /// Limits that callers picked, by their index in the handle.
    pub(super) named: Vec<u16>,
    /// Requests that are checked together.
    pub(super) parts: Vec<AskedPart>,
    /// Charges of inline items.
    pub(super) charges: Vec<Charge>,
    /// For each reading of a handle's item the index of its limit there.
    pub(super) limits: Vec<u16>,
    pub(super) readings: Vec<Reading>,
}

impl Room {
    pub(super) fn clear(&mut self) {
        let Self { items, bytes, values, costs, named, parts, charges, limits, readings } = self;
        items.clear();
        bytes.clear();
        values.clear();
        costs.clear();
        named.clear();
        parts.clear();
        charges.clear();
        limits.clear();
        readings.clear();
    }
}

pub(super) struct Item {
    pub(super) ask: Ask,
    pub(super) outcome: Settled,
}

pub(super) enum Ask {
    Check {
        request: Asked,
        intent: Intent,
    },
    /// Requests of one handle, by their places in the batch.
    Together {
        parts: Range<usize>,
        intent: Intent,
    },
    Inline {
        charges: Range<usize>,
        intent: Intent,
    },
    Amend {
        request: Asked,
        limit: Option<u16>,
        amend: Amend,
    },
    AmendInline {
        charge: usize,
        amend: Amend,
    },
    Release(PermitId),
    Renew(PermitId, Option<Nanos>),
}

/// A request of a handle.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) handle: u32,
    pub(super) values: Range<usize>,
    pub(super) costs: Range<usize>,
    /// On which limits; `None`: on those that apply.
    pub(super) named: Option<Range<usize>>,
}

/// One of the requests of a check.
pub(super) struct AskedPart {
    pub(super) request: Asked,
    /// What it came down to, once it is resolved: its charges' place among those of the check.
    pub(super) resolved: Option<Result<(Resolved, usize), ResolveError>>,
}

/// An outcome, by places in the batch.
pub(super) enum Settled {
    Pending,
    Decided {
        resolved: Option<Resolved>,
        decision: Decision,
        limits: usize,
        readings: Range<usize>,
    },
    FailedOpen(Problem),
    Failed(Problem),
    Amended {
        counters: usize,
        readings: Range<usize>,
    },
    Released(u64),
    Renewed(Result<Option<Nanos>, QuotaError>),
}

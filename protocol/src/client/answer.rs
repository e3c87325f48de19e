//! Answers that outlive their frame.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::error::ClientError;
use super::handle::Description;
use crate::permit::Permit;
use crate::response::{self, LimitNumbers, Witness};
use crate::status::{Decision, Retry, WhenUnavailable};

/// The answer to a check or a peek.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Allow or deny.
    pub decision: Decision,
    /// The limit that denied, or has the least left: an index into the handle's limits, or into
    /// the inline limits.
    pub binding: Option<u16>,
    /// When the same request may pass.
    pub retry: Retry,
    /// No limit applied.
    pub unmatched: bool,
    /// Allowed without a decision, by the server or by this client.
    pub failed_open: bool,
    /// Where and when it was decided.
    pub witness: Witness,
    /// Each limit's numbers, if asked for.
    pub numbers: Option<Numbers>,
    /// Status, headers and body, if asked for.
    pub rendered: Option<Rendered>,
    /// What the check was granted of concurrency limits, if anything: to be given back by
    /// [`Client::release`](super::Client::release).
    pub permit: Option<Permit>,
    /// Why this client made the answer itself, by the handle's `when_unavailable`; `None` if the
    /// server answered.
    pub unavailable: Option<Arc<ClientError>>,
}

/// The numbers of every limit that applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The node's wall time: nanoseconds since 1970-01-01T00:00:00Z.
    pub wall_nanos: u64,
    /// One entry a limit.
    pub limits: Vec<LimitNumbers>,
}

/// A response to send, or to take headers from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// HTTP status; 200 on allow.
    pub status: u16,
    /// Names and values, in the handle's order.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body's content type; empty if there is no body.
    pub content_type: String,
    /// The body of a denial.
    pub body: Option<Vec<u8>>,
}

/// What SET or ADJUST did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetDone {
    /// Counters that were set or moved.
    pub counters: u32,
    /// Where and when.
    pub witness: Witness,
}

impl Answer {
    /// May the request pass?
    pub fn is_allowed(&self) -> bool {
        self.decision == Decision::Allow
    }

    pub(super) fn from_wire(
        answer: &response::Answer<'_>,
        description: Option<&Description>,
    ) -> Self {
        let names = description.map(|description| &description.headers[..]).unwrap_or_default();
        let terse = answer.terse;
        Self {
            decision: terse.decision,
            binding: terse.binding,
            retry: terse.retry,
            unmatched: terse.unmatched,
            failed_open: terse.failed_open,
            witness: terse.witness,
            numbers: answer.numbers.map(|numbers| Numbers {
                wall_nanos: numbers.wall_nanos,
                limits: numbers.limits.iter().collect(),
            }),
            rendered: answer.rendered.map(|rendered| Rendered {
                status: rendered.status,
                headers: rendered
                    .headers
                    .iter()
                    .filter_map(|(index, value)| Some((names.get(index)?.clone(), value.to_vec())))
                    .collect(),
                content_type: rendered.content_type.to_string(),
                body: rendered.body.map(<[u8]>::to_vec),
            }),
            permit: answer.permit,
            unavailable: None,
        }
    }

    /// What the handle prescribes when no decision can be had.
    pub(super) fn without_decision(description: &Description, error: ClientError) -> Self {
        let allow = description.when_unavailable == WhenUnavailable::Allow;
        let rendered = Rendered {
            status: if allow { 200 } else { description.denied_status },
            headers: if allow { Vec::new() } else { description.static_headers.clone() },
            content_type: String::new(),
            body: None,
        };
        Self {
            decision: if allow { Decision::Allow } else { Decision::Deny },
            binding: None,
            retry: Retry::None,
            unmatched: false,
            failed_open: allow,
            witness: Witness::default(),
            numbers: None,
            rendered: Some(rendered),
            permit: None,
            unavailable: Some(Arc::new(error)),
        }
    }
}

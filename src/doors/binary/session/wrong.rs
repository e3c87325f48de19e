//! Why a request gets an error, and the error in the protocol's terms: code, words, detail.

use tollkeeper_protocol::limits::{MESSAGE_BYTES_MAX, TIED_PERMITS_MAX};
use tollkeeper_protocol::response::{Detail, ErrorAnswer};
use tollkeeper_protocol::status::Code;
use tollkeeper_protocol::{Capabilities, DecodeError, Envelope};

use crate::doors::{Full, Loaded, Problem};
use crate::engine::decision::Refusal;
use crate::engine::quota::QuotaError;
use crate::policy::{self, Found};

use super::super::convert;

/// Why a request gets an error.
#[derive(Clone, Copy)]
pub(super) enum Wrong {
    Decode(DecodeError),
    UnknownHandle(u32),
    StaleHandle(u32),
    UnknownSlot {
        presence: u64,
        slots: usize,
    },
    TooManyCosts {
        found: usize,
        max: usize,
    },
    Problem(u32, Problem),
    Inline(Refusal),
    /// Numbers that the codec lets through and the engine does not: their ranges are asserted to
    /// be the same, and a limit that is left out would let too much pass.
    Quota(QuotaError),
    Forbidden(Capabilities),
    DeadlineExceeded,
    /// Another node leads, this one.
    NotLeader(u64),
    TooManySessions,
    TooManyTied,
    TooManyChanges(Full),
}

impl Wrong {
    /// Makes the error of it, with words, for `encode`.
    #[cold]
    pub(super) fn with_error<R>(
        self,
        loaded: &Loaded,
        encode: impl FnOnce(&ErrorAnswer<'_>) -> R,
    ) -> R {
        let handle_of = |number| loaded.policy.handle(number);
        match self {
            Self::Decode(error) => encode(&error_of(&error, cut(&error.to_string()))),
            Self::UnknownHandle(number) => {
                let message = format!("no handle has the number {number}; PREPARE by name");
                encode(&ErrorAnswer::new(Code::UnknownHandle, &message))
            }
            Self::StaleHandle(number) => {
                let error =
                    ErrorAnswer::new(Code::StaleHandle, "the handle's names changed; see detail");
                let Some(handle) = handle_of(number) else { return encode(&error) };
                let mut body = Vec::new();
                let version = loaded.policy.version();
                let made = convert::with_prepared(handle, version, |prepared| {
                    prepared.encode_body(&mut body)
                });
                match made {
                    Ok(()) => encode(&error.with_detail(Detail::Layout(&body))),
                    Err(_) => encode(&error),
                }
            }
            Self::UnknownSlot { presence, slots } => {
                let message = format!("the handle has {slots} slots, presence is {presence:#b}");
                let max = (1 << slots) - 1;
                let detail = Detail::Range { field: "presence", found: presence, min: 0, max };
                encode(&ErrorAnswer::new(Code::BadFrame, &message).with_detail(detail))
            }
            Self::TooManyCosts { found, max } => {
                let (found, max) = (found as u64, max as u64);
                let message = format!("{found} costs for {max} meters");
                let detail = Detail::Range { field: "count of costs", found, min: 0, max };
                encode(&ErrorAnswer::new(Code::BadCost, &message).with_detail(detail))
            }
            Self::Problem(number, Problem::Refused(refusal)) => {
                let _ = number;
                Self::Inline(refusal).with_error(loaded, encode)
            }
            Self::Problem(_, Problem::Undecided(undecided)) => {
                let code = convert::undecided_code(undecided);
                encode(&ErrorAnswer::new(code, undecided.describe()))
            }
            Self::Problem(number, Problem::Resolve(error)) => {
                let code = convert::resolve_code(&error);
                let Some(handle) = handle_of(number) else {
                    return encode(&ErrorAnswer::new(code, "the handle is gone"));
                };
                let message = error.describe(handle).to_string();
                let answer = ErrorAnswer::new(code, cut(&message));
                let policy::ResolveError::BadAttribute { limit, slot, found, .. } = error else {
                    return encode(&answer);
                };
                let limit = limit.and_then(|limit| handle.limits().get(usize::from(limit)));
                let detail = Detail::Attribute {
                    limit: limit.map(|limit| &*limit.name).unwrap_or_default(),
                    attribute: handle
                        .slots()
                        .get(usize::from(slot))
                        .map(|slot| &*slot.name)
                        .unwrap_or_default(),
                    found: match found {
                        Found::Missing => None,
                        Found::Unfit | Found::TooLong { .. } => Some(b""),
                    },
                };
                encode(&answer.with_detail(detail))
            }
            Self::Inline(refusal) => {
                let message = refusal.to_string();
                encode(&ErrorAnswer::new(convert::refusal_code(refusal), cut(&message)))
            }
            Self::Quota(error) => {
                let message = error.to_string();
                let QuotaError { number, found, min, max } = error;
                let detail = Detail::Range { field: number, found, min, max };
                encode(&ErrorAnswer::new(Code::BadLimit, cut(&message)).with_detail(detail))
            }
            Self::Forbidden(capability) => {
                let error = ErrorAnswer::new(Code::Forbidden, "the principal may not do this");
                encode(&error.with_detail(Detail::Capability(capability)))
            }
            Self::Problem(_, Problem::BadId(error)) => {
                let code = convert::session_code(error);
                encode(&ErrorAnswer::new(code, &error.to_string()))
            }
            Self::NotLeader(leader) => {
                let message = format!("node {leader} leads; this node was told not to hand on");
                encode(&ErrorAnswer::new(Code::NotLeader, &message))
            }
            Self::TooManySessions => {
                let message = "the server has all the sessions it takes, and none is idle";
                encode(&ErrorAnswer::new(Code::Overloaded, message))
            }
            Self::TooManyTied => {
                let message = "the connection has all the tied permits it may have";
                let max = TIED_PERMITS_MAX as u64;
                let detail = Detail::Range { field: "tied_permits", found: max + 1, min: 0, max };
                encode(&ErrorAnswer::new(Code::Overloaded, message).with_detail(detail))
            }
            Self::TooManyChanges(full) => {
                encode(&ErrorAnswer::new(Code::Overloaded, &full.to_string()))
            }
            Self::DeadlineExceeded => {
                let message = "the request's deadline passed before it was decided";
                encode(&ErrorAnswer::new(Code::DeadlineExceeded, message))
            }
        }
    }
}

pub(super) fn error_of<'a>(error: &DecodeError, message: &'a str) -> ErrorAnswer<'a> {
    ErrorAnswer::from_decode(error, message)
}

/// A message at most as long as the protocol allows.
pub(super) fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)]
}

pub(super) fn encode_error(error: &ErrorAnswer<'_>, envelope: Envelope, out: &mut Vec<u8>) {
    if error.encode(envelope, out).is_err() {
        // Only a message or a name can be too long; the code alone always fits.
        let _ = ErrorAnswer { message: "", detail: Detail::None, ..*error }.encode(envelope, out);
    }
}

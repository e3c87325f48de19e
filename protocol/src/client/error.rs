//! What can go wrong between a caller and a decision.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use super::copy_io;
use crate::error::{DecodeError, EncodeError};
use crate::response::{Detail, ErrorAnswer};
use crate::status::Code;

/// Why there is no decision, sorted by who must act.
#[derive(Debug)]
pub enum ClientError {
    /// The caller: an argument does not fit its field.
    BadArgument(EncodeError),
    /// The caller: the handle has no slot of this name or index.
    UnknownSlot {
        /// What was given.
        slot: String,
        /// The slots that there are.
        slots: Vec<String>,
    },
    /// Whoever the code says: the server answered with an error.
    Refused(Box<ServerError>),
    /// The operator: as many requests wait as may. This one was not sent.
    Busy,
    /// The operator: nothing answers at this address. The request was not sent.
    Unreachable {
        /// The address.
        addr: String,
        /// Why.
        source: std::io::Error,
    },
    /// The operator: the connection was lost before the answer. The request may have been charged.
    Lost {
        /// The address.
        addr: String,
    },
    /// The operator: no answer in time. The request may have been charged.
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// The authors of the server: its answer is none of this protocol.
    BadAnswer(DecodeError),
    /// The authors of the server: its answer is one to another question.
    WrongAnswer,
    /// The client's runtime has stopped.
    Closed,
}

/// An error that the server answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// What is wrong.
    pub code: Code,
    /// For people.
    pub message: String,
    /// When to try again, if the server can tell.
    pub retry_after: Option<Duration>,
    /// `BAD_ATTRIBUTE`: the limit (or empty), the attribute, and what was found of it, if anything.
    pub attribute: Option<(String, String, Option<Vec<u8>>)>,
    /// `STALE_HANDLE`: the body of the new answer to PREPARE.
    pub(super) layout: Option<Vec<u8>>,
}

impl ServerError {
    pub(super) fn from_wire(error: &ErrorAnswer<'_>) -> Self {
        let mut owned = Self {
            code: error.code,
            message: error.message.to_string(),
            retry_after: Some(error.retry_nanos)
                .filter(|nanos| *nanos > 0)
                .map(Duration::from_nanos),
            attribute: None,
            layout: None,
        };
        match error.detail {
            Detail::Attribute { limit, attribute, found } => {
                owned.attribute =
                    Some((limit.to_string(), attribute.to_string(), found.map(<[u8]>::to_vec)));
            }
            Detail::Layout(body) => owned.layout = Some(body.to_vec()),
            _ => {}
        }
        owned
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl core::error::Error for ServerError {}

impl ClientError {
    pub(super) fn refused(error: &ErrorAnswer<'_>) -> Self {
        Self::Refused(Box::new(ServerError::from_wire(error)))
    }

    /// No decision could be had and the caller is not to blame: a handle's `when_unavailable`
    /// applies.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Refused(error) => error.code.is_unavailable(),
            Self::BadArgument(_) | Self::UnknownSlot { .. } => false,
            _ => true,
        }
    }

    /// Nothing was charged, for certain.
    pub fn charged_nothing(&self) -> bool {
        match self {
            Self::Refused(error) => error.code.charged_nothing(),
            Self::BadArgument(_)
            | Self::UnknownSlot { .. }
            | Self::Busy
            | Self::Unreachable { .. } => true,
            _ => false,
        }
    }

    /// The same error for another caller.
    pub(super) fn copy(&self) -> Self {
        match self {
            Self::BadArgument(error) => Self::BadArgument(*error),
            Self::UnknownSlot { slot, slots } => {
                Self::UnknownSlot { slot: slot.clone(), slots: slots.clone() }
            }
            Self::Refused(error) => Self::Refused(error.clone()),
            Self::Busy => Self::Busy,
            Self::Unreachable { addr, source } => {
                Self::Unreachable { addr: addr.clone(), source: copy_io(source) }
            }
            Self::Lost { addr } => Self::Lost { addr: addr.clone() },
            Self::TimedOut { after } => Self::TimedOut { after: *after },
            Self::BadAnswer(error) => Self::BadAnswer(*error),
            Self::WrongAnswer => Self::WrongAnswer,
            Self::Closed => Self::Closed,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadArgument(error) => write!(f, "{error}"),
            Self::UnknownSlot { slot, slots } => {
                write!(f, "no slot {slot}; the handle has {}", slots.join(", "))
            }
            Self::Refused(error) => write!(f, "{error}"),
            Self::Busy => write!(f, "{} requests wait already", super::QUEUE_MAX),
            Self::Unreachable { addr, source } => write!(f, "cannot reach {addr}: {source}"),
            Self::Lost { addr } => {
                write!(f, "lost {addr} before the answer; the request may have been charged")
            }
            Self::TimedOut { after } => {
                write!(f, "no answer within {after:?}; the request may have been charged")
            }
            Self::BadAnswer(error) => write!(f, "bad answer: {error}"),
            Self::WrongAnswer => write!(f, "the answer is one to another question"),
            Self::Closed => write!(f, "the client has stopped"),
        }
    }
}

impl core::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::BadArgument(error) => Some(error),
            Self::Refused(error) => Some(&**error),
            Self::Unreachable { source, .. } => Some(source),
            Self::BadAnswer(error) => Some(error),
            _ => None,
        }
    }
}

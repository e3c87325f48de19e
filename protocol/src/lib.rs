#![doc = include_str!("../SPEC.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "client")]
extern crate std;

// In reading order; the blank lines keep them so.
pub mod limits;

pub mod status;

pub mod header;

pub mod framing;

pub mod permit;

pub mod request;

pub mod response;

pub mod error;

pub mod codec;

#[cfg(feature = "client")]
pub mod client;

pub use error::{DecodeError, EncodeError, FrameError};
pub use framing::{Assembler, Frame, Message, next_frame};
pub use header::{Envelope, Flags, Header, Op};
pub use permit::{Permit, PermitId};
pub use request::{Form, Intent, Reply, Request, RequestId};
pub use response::Response;
pub use status::{Capabilities, Code, Decision, Retry};

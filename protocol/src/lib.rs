#![doc = include_str!("../SPEC.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "client")]
extern crate std;

pub mod codec;
pub mod error;
pub mod framing;
pub mod header;
pub mod limits;
pub mod request;
pub mod response;
pub mod status;

pub use error::{DecodeError, EncodeError, FrameError};
pub use framing::{Assembler, Frame, Message, next_frame};
pub use header::{Envelope, Flags, Header, Op};
pub use request::{Form, Intent, Request};
pub use response::Response;
pub use status::{Capabilities, Code, Decision, Retry};

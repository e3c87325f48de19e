//! How a connection opens and how it is left: HELLO, GOAWAY, and frames that come before the one
//! or after the other.

use tollkeeper_protocol::limits::{VERSION_MAX, VERSION_MIN};
use tollkeeper_protocol::request::{Hello, Request};
use tollkeeper_protocol::response::{Detail, ErrorAnswer, GoAway, HelloAnswer, Maxima};
use tollkeeper_protocol::status::Code;
use tollkeeper_protocol::{Envelope, Frame, Op};

use crate::engine::time::Now;

use super::super::convert;
use super::work::Work;
use super::wrong::{encode_error, error_of};
use super::{Session, Stage};

/// The name of the one principal there is.
const PRINCIPAL: &str = "default";

/// The code of the maximum of connections in the answer to HELLO.
const CONNECTIONS_CODE: usize = 7;

/// What the server calls itself.
const SERVER: &str = concat!("tollkeeper/", env!("CARGO_PKG_VERSION"));

impl Session {
    /// Tells the client to go; what it sends from now on is refused.
    pub fn leave(&mut self, grace_millis: u32, out: &mut Vec<u8>) {
        match self.stage {
            Stage::Open => {
                self.stage = Stage::Leaving;
                let message = "the server is stopping";
                let goaway = GoAway { code: Code::ShuttingDown, grace_millis, message };
                // A fixed message always fits.
                let _ = goaway.encode(out);
            }
            Stage::Greeting => self.close(Code::ShuttingDown, "the server is stopping", out),
            Stage::Leaving | Stage::Closed => {}
        }
    }

    /// A frame before HELLO was answered, or after GOAWAY.
    #[cold]
    pub(super) fn handle_unopened<F: FnMut() -> Now>(
        &mut self,
        work: &mut Work<'_, '_, F>,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        let envelope = Envelope::Call(frame.header.call);
        if self.stage == Stage::Leaving {
            let wanted = frame.message().wants_reply();
            if wanted {
                let error = ErrorAnswer::new(Code::ShuttingDown, "the server is stopping");
                self.error(work, &error, envelope, out);
            }
            return wanted;
        }
        let message = frame.message();
        let decoded = match frame.header.op {
            Op::HELLO => Request::decode(&message),
            _ => {
                self.stage = Stage::Closed;
                let error = ErrorAnswer::new(Code::Unauthenticated, "HELLO comes first");
                encode_error(&error.closing(), envelope, out);
                return true;
            }
        };
        let refused = match decoded {
            Ok(Request::Hello(hello)) => match self.greet(work, &hello, envelope, out) {
                Ok(()) => return true,
                Err(error) => error,
            },
            Ok(_) => ErrorAnswer::new(Code::Internal, "HELLO was read as another request"),
            Err(error) => {
                self.stage = Stage::Closed;
                let text = error.to_string();
                encode_error(&error_of(&error, &text).closing(), envelope, out);
                return true;
            }
        };
        self.stage = Stage::Closed;
        encode_error(&refused.closing(), envelope, out);
        true
    }

    fn greet<F>(
        &mut self,
        work: &Work<'_, '_, F>,
        hello: &Hello<'_>,
        envelope: Envelope,
        out: &mut Vec<u8>,
    ) -> Result<(), ErrorAnswer<'static>> {
        if hello.version_min > VERSION_MAX || hello.version_max < VERSION_MIN {
            let detail = Detail::Versions { min: VERSION_MIN, max: VERSION_MAX };
            let message = "no version in common";
            return Err(ErrorAnswer::new(Code::UnsupportedVersion, message).with_detail(detail));
        }
        if hello.credential_scheme != 0 || !hello.credential.is_empty() {
            let message = "credentials are not taken here; use scheme 0 and none";
            return Err(ErrorAnswer::new(Code::Unauthenticated, message));
        }
        let instance = &work.desk.instance;
        let answer = HelloAnswer {
            version: hello.version_max.min(VERSION_MAX),
            capabilities: convert::CAPABILITIES,
            features: 0,
            instance: instance.id,
            principal: PRINCIPAL,
            server: SERVER,
            maxima: Maxima::default().with(CONNECTIONS_CODE, instance.connections.max),
        };
        // Names of ours, which are short.
        let _ = answer.encode(envelope, out);
        self.stage = Stage::Open;
        Ok(())
    }
}

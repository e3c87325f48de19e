//! gRPC around a message: its length prefix, and the status that ends a call. Pure.

use std::borrow::Cow;

use crate::engine::time::Nanos;

use super::{FOUND_CHARS_MAX, MESSAGE_BYTES_MAX, MESSAGE_TEXT_BYTES_MAX};

/// Bytes before a message: whether it is compressed, and its length.
pub(super) const PREFIX_BYTES: usize = 5;

/// How a call ended that was not answered. There is no `UNKNOWN`, which a proxy takes for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// Caller: what was sent cannot be.
    InvalidArgument = 3,
    /// Caller: it was too late before it was decided.
    DeadlineExceeded = 4,
    /// Caller: there is no such service for health to tell of.
    NotFound = 5,
    /// Caller: it has as many of these as there may be.
    ResourceExhausted = 8,
    /// Caller: there is no such method.
    Unimplemented = 12,
    /// Operator: nothing can be decided now.
    Unavailable = 14,
}

/// Why a call was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// What a caller is told whose deadline has passed.
    pub(super) fn late() -> Self {
        Self::new(Code::DeadlineExceeded, "the call's deadline passed before it was decided")
    }

    /// The message as the header `grpc-message` has it: visible ASCII, the rest escaped, and not
    /// longer than a header may be.
    pub(super) fn header(&self) -> String {
        let mut out = String::with_capacity(self.message.len());
        for &byte in self.message.as_bytes() {
            if out.len() >= MESSAGE_TEXT_BYTES_MAX {
                break;
            }
            match byte {
                b'%' | 0..0x20 | 0x7F.. => out.push_str(&format!("%{byte:02X}")),
                _ => out.push(char::from(byte)),
            }
        }
        out
    }
}

/// How long a caller waits, as the header `grpc-timeout` says it: up to eight digits and a unit.
pub(super) fn wait(header: &[u8]) -> Result<Nanos, Fault> {
    let wrong = || {
        let found = shown(&String::from_utf8_lossy(header));
        let allowed = "1 to 8 digits and one of H, M, S, m, u, n";
        Fault::invalid(format!("grpc-timeout is `{found}`, allowed are {allowed}"))
    };
    let Some((unit, digits)) = header.split_last() else { return Err(wrong()) };
    let is_number = (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let nanos = match unit {
        b'H' => 3_600_000_000_000,
        b'M' => 60_000_000_000,
        b'S' => 1_000_000_000,
        b'm' => 1_000_000,
        b'u' => 1000,
        b'n' => 1,
        _ => return Err(wrong()),
    };
    if !is_number {
        return Err(wrong());
    }
    let count = digits.iter().fold(0_u64, |count, digit| count * 10 + u64::from(digit - b'0'));
    Ok(Nanos::new(count.saturating_mul(nanos)))
}

/// The message of a call's body.
pub(super) fn unframed(body: &[u8]) -> Result<&[u8], Fault> {
    let Some((prefix, message)) = body.split_first_chunk::<PREFIX_BYTES>() else {
        let found = body.len();
        let message = format!("the body has {found} bytes, a message begins with {PREFIX_BYTES}");
        return Err(Fault::invalid(message));
    };
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        let message = "the message is compressed, allowed is none";
        return Err(Fault::new(Code::Unimplemented, message));
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(too_long(length));
    }
    if length != message.len() {
        let found = message.len();
        let message = format!("the message has {found} bytes and says that it has {length}");
        return Err(Fault::invalid(message));
    }
    Ok(message)
}

/// A found value, cut to a length that a message can hold.
pub(super) fn shown(found: &str) -> String {
    match found.char_indices().nth(FOUND_CHARS_MAX) {
        None => found.to_owned(),
        Some((end, _)) => format!("{}… ({} bytes)", &found[..end], found.len()),
    }
}

/// What a caller is told whose message is too long.
pub(super) fn too_long(found: usize) -> Fault {
    let message = format!("the message has {found} bytes, allowed are {MESSAGE_BYTES_MAX}");
    Fault::invalid(message)
}

/// A message with its prefix.
pub(super) fn framed(message: &impl prost::Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut out = Vec::with_capacity(PREFIX_BYTES + length);
    out.push(0);
    out.extend_from_slice(&(length as u32).to_be_bytes());
    message.encode_raw(&mut out);
    out
}

/// Reads a message.
pub(super) fn decode<M: prost::Message + Default>(message: impl bytes::Buf) -> Result<M, Fault> {
    let wrong = |error: prost::DecodeError| -> Cow<'static, str> {
        format!("the message cannot be read: {error}").into()
    };
    M::decode(message).map_err(|error| Fault::invalid(wrong(error)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::proto::{Entry, RateLimitDescriptor, RateLimitRequest};
    use super::*;

    #[test]
    fn a_message_is_the_length_that_it_says() {
        fn found(body: &[u8]) -> Result<&[u8], Code> {
            unframed(body).map_err(|fault| fault.code)
        }
        assert_eq!(found(&[0, 0, 0, 0, 0]), Ok(&[][..]));
        assert_eq!(found(&[0, 0, 0, 0, 2, 7, 8]), Ok(&[7, 8][..]));
        for wrong in [&[][..], &[0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 0, 0, 1]] {
            assert_eq!(found(wrong), Err(Code::InvalidArgument), "{wrong:?}");
        }
        assert_eq!(found(&[0, 0xFF, 0xFF, 0xFF, 0xFF]), Err(Code::InvalidArgument));
        assert_eq!(found(&[1, 0, 0, 0, 0]), Err(Code::Unimplemented));
    }

    #[test]
    fn a_wait_is_digits_and_a_unit() {
        for (header, nanos) in [
            ("250m", 250_000_000),
            ("1S", 1_000_000_000),
            ("0n", 0),
            ("7u", 7000),
            ("2M", 120_000_000_000),
            ("1H", 3_600_000_000_000),
            // Longer than moments can be told.
            ("99999999H", u64::MAX),
        ] {
            assert_eq!(wait(header.as_bytes()), Ok(Nanos::new(nanos)), "{header}");
        }
        for header in ["", "m", "250", "250 m", "-1S", "123456789m", "1s", "1\u{b5}"] {
            let fault = wait(header.as_bytes()).unwrap_err();
            assert_eq!(fault.code, Code::InvalidArgument, "{header}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_in_visible_ascii_of_a_bounded_length() {
        let header = Fault::invalid("100 % of `é`\n").header();
        assert_eq!(header, "100 %25 of `%C3%A9`%0A");
        let header = Fault::invalid("é".repeat(10_000)).header();
        assert!(header.len() <= MESSAGE_TEXT_BYTES_MAX + 2);
    }

    proptest! {
        #[test]
        fn what_is_framed_is_read_again(domain in ".{0,9}", hits: u32, value: Vec<u8>) {
            let entries = vec![Entry { key: "k".to_owned(), value: value.into() }];
            let descriptors = vec![RateLimitDescriptor { entries, ..Default::default() }];
            let message = RateLimitRequest { domain, descriptors, hits_addend: hits };
            let framed = framed(&message);
            prop_assert_eq!(decode::<RateLimitRequest>(unframed(&framed).unwrap()), Ok(message));
        }
    }
}

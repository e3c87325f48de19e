//! Values as bytes, by bincode, in as many as are allowed, and text. Alone names bincode.

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::TEXT_BYTES_MAX;
use super::error::{WireError, wrong};

/// Writes `value` in at most `MAX` bytes.
pub(super) fn encode<const MAX: usize>(
    what: &'static str,
    value: &impl Serialize,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let config = bincode::config::legacy().with_limit::<MAX>();
    let mut writer = BoundedWriter { out, left: MAX };
    match bincode::serde::encode_into_std_write(value, &mut writer, config) {
        Ok(_) => Ok(()),
        Err(error) => Err(wrong(what, error)),
    }
}

/// Reads a value at the front, of at most `MAX` bytes, and says how many it took.
pub(super) fn decode_front<const MAX: usize, T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<(T, usize), WireError> {
    let config = bincode::config::legacy().with_limit::<MAX>();
    bincode::serde::decode_from_slice(bytes, config).map_err(|error| wrong(what, error))
}

/// Reads a value that is all there is.
pub(super) fn decode<const MAX: usize, T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, WireError> {
    let (value, taken) = decode_front::<MAX, T>(what, bytes)?;
    if taken != bytes.len() {
        return Err(wrong(what, format_args!("{} bytes follow it", bytes.len() - taken)));
    }
    Ok(value)
}

/// bincode's limit holds for reading only.
struct BoundedWriter<'a> {
    out: &'a mut BytesMut,
    left: usize,
}

impl std::io::Write for BoundedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.left {
            return Err(std::io::Error::other("it is longer than is allowed"));
        }
        self.left -= bytes.len();
        self.out.put_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(super) fn ends(what: &'static str, rest: &[u8]) -> Result<(), WireError> {
    if rest.is_empty() {
        return Ok(());
    }
    Err(wrong(what, format_args!("{} bytes follow it", rest.len())))
}

/// Text for people is cut rather than refused.
pub(in crate::cluster) fn put_text(text: &str, out: &mut BytesMut) {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    out.put_slice(&text.as_bytes()[..end]);
}

pub(in crate::cluster) fn text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(TEXT_BYTES_MAX)]);
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

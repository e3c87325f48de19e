//! Values to bytes, in either version of the protocol.

/// A version of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Version {
    /// The one that every connection begins with.
    #[default]
    Two,
    /// With maps and nulls of their own.
    Three,
}

pub(super) fn simple(out: &mut Vec<u8>, text: &str) {
    line(out, b'+', text);
}

/// An error; its first word is its code. What would break the line is replaced.
pub(super) fn error(out: &mut Vec<u8>, text: &str) {
    line(out, b'-', text);
}

fn line(out: &mut Vec<u8>, kind: u8, text: &str) {
    out.push(kind);
    out.extend(text.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
    out.extend_from_slice(b"\r\n");
}

pub(super) fn integer(out: &mut Vec<u8>, number: i64) {
    out.push(b':');
    if number < 0 {
        out.push(b'-');
    }
    digits(out, number.unsigned_abs());
    out.extend_from_slice(b"\r\n");
}

pub(super) fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    head(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn array(out: &mut Vec<u8>, length: usize) {
    head(out, b'*', length);
}

/// The head of `pairs` names with values.
pub(super) fn map(out: &mut Vec<u8>, version: Version, pairs: usize) {
    match version {
        Version::Two => head(out, b'*', pairs * 2),
        Version::Three => head(out, b'%', pairs),
    }
}

pub(super) fn null(out: &mut Vec<u8>, version: Version) {
    out.extend_from_slice(match version {
        Version::Two => b"$-1\r\n",
        Version::Three => b"_\r\n",
    });
}

fn head(out: &mut Vec<u8>, kind: u8, length: usize) {
    out.push(kind);
    digits(out, length as u64);
    out.extend_from_slice(b"\r\n");
}

fn digits(out: &mut Vec<u8>, mut number: u64) {
    let mut text = [0; 20];
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&text[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_whole() {
        let mut out = Vec::new();
        for number in [0, 7, -1, 10, i64::MAX, i64::MIN] {
            integer(&mut out, number);
        }
        let expected =
            ":0\r\n:7\r\n:-1\r\n:10\r\n:9223372036854775807\r\n:-9223372036854775808\r\n";
        assert_eq!(out, expected.as_bytes());
    }

    #[test]
    fn an_error_stays_on_its_line() {
        let mut out = Vec::new();
        error(&mut out, "ERR a\r\n+OK\r\nb");
        assert_eq!(out, b"-ERR a  +OK  b\r\n");
    }
}

//! Bytes to commands: arrays of bulk strings, and inline commands as people and load generators
//! type them.

use core::ops::Range;

use super::{ARGUMENT_BYTES_MAX, ARGUMENTS_MAX, COMMAND_BYTES_MAX};

/// The most bytes of a length line, `\r\n` not counted.
const LENGTH_BYTES_MAX: usize = 20;

/// One command, its arguments by place. Its buffers are reused.
#[derive(Default)]
pub(super) struct Command {
    places: Vec<Range<usize>>,
    /// Whether the places are in `words`, else in the input.
    inline: bool,
    words: Vec<u8>,
}

/// Client: bytes that are no command. The connection cannot go on behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// The count of an array.
    Count,
    /// The length of an argument.
    Length,
    /// Something else than `$` before an argument.
    Expected(u8),
    /// A length line that does not end.
    LongLine,
    /// No `\r\n` behind an argument.
    NoEnd,
    /// A command longer than the maximum.
    LongCommand,
    /// An inline command with a quote that does not close.
    Quotes,
}

impl Malformed {
    /// As Redis says it.
    pub(super) fn message(self) -> String {
        match self {
            Self::Count => "Protocol error: invalid multibulk length".to_owned(),
            Self::Length => "Protocol error: invalid bulk length".to_owned(),
            Self::Expected(found) => {
                let found = char::from(if found.is_ascii_graphic() { found } else { b'?' });
                format!("Protocol error: expected '$', got '{found}'")
            }
            Self::LongLine => "Protocol error: too big mbulk count string".to_owned(),
            Self::NoEnd => "Protocol error: expected CRLF behind a bulk string".to_owned(),
            Self::LongCommand => {
                format!("Protocol error: a command has at most {COMMAND_BYTES_MAX} bytes")
            }
            Self::Quotes => "Protocol error: unbalanced quotes in request".to_owned(),
        }
    }
}

impl Command {
    /// Reads the command at the front of `input`. Returns its length; `None`: the rest is yet to
    /// come. A command without arguments is nothing, and is skipped.
    pub(super) fn read(&mut self, input: &[u8]) -> Result<Option<usize>, Malformed> {
        self.places.clear();
        let read = match input.first() {
            None => Ok(None),
            Some(b'*') => self.read_array(input),
            Some(_) => self.read_inline(input),
        };
        match read {
            Ok(None) if input.len() >= COMMAND_BYTES_MAX => Err(Malformed::LongCommand),
            Ok(Some(length)) if length > COMMAND_BYTES_MAX => Err(Malformed::LongCommand),
            read => read,
        }
    }

    fn read_array(&mut self, input: &[u8]) -> Result<Option<usize>, Malformed> {
        self.inline = false;
        let Some((count, mut at)) = length_line(input, 1, Malformed::Count)? else {
            return Ok(None);
        };
        if count > ARGUMENTS_MAX as i64 {
            return Err(Malformed::Count);
        }
        for _ in 0..count {
            match input.get(at) {
                None => return Ok(None),
                Some(b'$') => {}
                Some(other) => return Err(Malformed::Expected(*other)),
            }
            let Some((length, from)) = length_line(input, at + 1, Malformed::Length)? else {
                return Ok(None);
            };
            let length = usize::try_from(length).ok().filter(|bytes| *bytes <= ARGUMENT_BYTES_MAX);
            let Some(length) = length else { return Err(Malformed::Length) };
            let end = from + length;
            match input.get(end..end + 2) {
                None => return Ok(None),
                Some(b"\r\n") => {}
                Some(_) => return Err(Malformed::NoEnd),
            }
            self.places.push(from..end);
            at = end + 2;
        }
        Ok(Some(at))
    }

    /// One line of words between blanks; words in quotes as Redis reads them.
    fn read_inline(&mut self, input: &[u8]) -> Result<Option<usize>, Malformed> {
        self.inline = true;
        self.words.clear();
        let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let mut line = &input[..end];
        loop {
            line = line.trim_ascii_start();
            if line.is_empty() {
                return Ok(Some(end + 1));
            }
            if self.places.len() == ARGUMENTS_MAX {
                return Err(Malformed::Count);
            }
            let from = self.words.len();
            line = self.read_word(line)?;
            self.places.push(from..self.words.len());
        }
    }

    fn read_word<'l>(&mut self, mut line: &'l [u8]) -> Result<&'l [u8], Malformed> {
        loop {
            match line {
                [] => return Ok(line),
                [blank, ..] if blank.is_ascii_whitespace() => return Ok(line),
                [quote @ (b'"' | b'\''), rest @ ..] => {
                    line = self.read_quoted(*quote, rest)?;
                    // A closed quote ends its word.
                    return match line.first() {
                        Some(next) if !next.is_ascii_whitespace() => Err(Malformed::Quotes),
                        _ => Ok(line),
                    };
                }
                [byte, rest @ ..] => {
                    self.words.push(*byte);
                    line = rest;
                }
            }
        }
    }

    fn read_quoted<'l>(&mut self, quote: u8, mut line: &'l [u8]) -> Result<&'l [u8], Malformed> {
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        loop {
            let (byte, rest) = match (quote, line) {
                (_, []) => return Err(Malformed::Quotes),
                (_, [byte, rest @ ..]) if *byte == quote => return Ok(rest),
                (b'"', [b'\\', b'x', high, low, rest @ ..])
                    if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
                {
                    let (high, low) = (digit(*high).unwrap_or(0), digit(*low).unwrap_or(0));
                    (high << 4 | low, rest)
                }
                (b'"', [b'\\', escaped, rest @ ..]) => {
                    let byte = match escaped {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'b' => 8,
                        b'a' => 7,
                        other => *other,
                    };
                    (byte, rest)
                }
                (b'\'', [b'\\', b'\'', rest @ ..]) => (b'\'', rest),
                (_, [byte, rest @ ..]) => (*byte, rest),
            };
            self.words.push(byte);
            line = rest;
        }
    }

    /// The arguments, of the `input` that was read.
    pub(super) fn arguments<'a>(&'a self, input: &'a [u8]) -> Arguments<'a> {
        Arguments { places: &self.places, bytes: if self.inline { &self.words } else { input } }
    }
}

/// A command's arguments; its name is the first.
#[derive(Clone, Copy)]
pub(super) struct Arguments<'a> {
    places: &'a [Range<usize>],
    bytes: &'a [u8],
}

impl<'a> Arguments<'a> {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Empty if it is not there.
    pub(super) fn get(&self, index: usize) -> &'a [u8] {
        self.places.get(index).and_then(|place| self.bytes.get(place.clone())).unwrap_or_default()
    }

    pub(super) fn from(&self, index: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        let places = self.places.get(index..).unwrap_or_default();
        places.iter().map(move |place| bytes.get(place.clone()).unwrap_or_default())
    }
}

/// A number and the place behind its line.
fn length_line(
    input: &[u8],
    from: usize,
    wrong: Malformed,
) -> Result<Option<(i64, usize)>, Malformed> {
    let rest = input.get(from..).unwrap_or_default();
    let rest = &rest[..rest.len().min(LENGTH_BYTES_MAX + 2)];
    let Some(end) = rest.iter().position(|byte| *byte == b'\r') else {
        if rest.len() > LENGTH_BYTES_MAX {
            return Err(Malformed::LongLine);
        }
        return Ok(None);
    };
    let (negative, digits) = match &rest[..end] {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return Err(wrong);
    }
    let mut number: i64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(wrong);
        }
        let more = number.checked_mul(10).and_then(|ten| ten.checked_add(i64::from(digit - b'0')));
        number = more.ok_or(wrong)?;
    }
    match rest.get(end + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((if negative { -number } else { number }, from + end + 2))),
        Some(_) => Err(wrong),
    }
}

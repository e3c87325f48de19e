//! Permits: what a check holds of concurrency limits, and the id that gives it back.

use core::fmt;
use core::str::FromStr;

/// What a check was granted of concurrency limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permit {
    /// Gives it back or keeps it longer: one id for all concurrency limits of the check.
    pub id: PermitId,
    /// Nanoseconds from the decision until it lapses; the earliest if it holds several limits.
    pub expires_nanos: u64,
}

/// The name of a permit: opaque, not to be guessed, good on any connection to any node. Printed
/// and read as 32 hex digits, in the order of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PermitId(pub [u8; 16]);

impl fmt::Display for PermitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for PermitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PermitId({self})")
    }
}

impl FromStr for PermitId {
    type Err = PermitIdError;

    /// From exactly 32 hex digits, in either case.
    fn from_str(text: &str) -> Result<Self, PermitIdError> {
        // The number's own parser would let a sign pass.
        let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
        if digits != 32 || text.len() != 32 {
            return Err(PermitIdError { bytes: text.len(), digits });
        }
        let number = u128::from_str_radix(text, 16);
        let number = number.map_err(|_| PermitIdError { bytes: text.len(), digits })?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// A text that is no permit's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermitIdError {
    /// Bytes of the text.
    pub bytes: usize,
    /// How many of them are hex digits.
    pub digits: usize,
}

impl fmt::Display for PermitIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, digits } = self;
        write!(
            f,
            "a permit's id is 32 hex digits: found {bytes} bytes, {digits} of them hex digits"
        )
    }
}

impl core::error::Error for PermitIdError {}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn an_id_survives_its_print() {
        let id = PermitId(core::array::from_fn(|at| at as u8 * 17));
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        let zero = PermitId([0; 16]);
        assert_eq!(zero.to_string().parse(), Ok(zero));
    }

    #[test]
    fn nothing_but_32_hex_digits_is_an_id() {
        let plus = "+0112233445566778899aabbccddeeff";
        for text in [
            "",
            "0011",
            plus,
            "00112233445566778899aabbccddeeff00",
            "é0112233445566778899aabbccddeef",
        ] {
            assert!(text.parse::<PermitId>().is_err(), "{text}");
        }
    }
}

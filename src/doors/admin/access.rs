//! Who may change what is in force.

use std::net::IpAddr;

/// Whose changes, and checks, which charge, are taken. Reading is always allowed.
#[derive(Clone)]
pub enum Access {
    /// Anybody's who reaches the door: it listens on a loopback address.
    Loopback,
    /// Those of who sends this token.
    Token(Box<[u8]>),
    /// Nobody's: the door listens to the world and has no token.
    Nobody,
}

/// Operator: what cannot be a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// It is too short to keep anybody out.
    TooShort {
        /// Its length.
        bytes: usize,
    },
    /// It has a character that a header cannot carry.
    Unsendable,
}

/// The fewest bytes of a token.
const TOKEN_BYTES_MIN: usize = 16;

impl core::fmt::Display for TokenError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooShort { bytes } => {
                write!(f, "the token has {bytes} bytes, allowed are {TOKEN_BYTES_MIN} and more")
            }
            Self::Unsendable => f.write_str("the token has characters other than visible ASCII"),
        }
    }
}

/// Why a change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 403: no token would help.
    NoToken,
    /// 401: there is none, or another.
    WrongToken,
}

impl Access {
    /// The rule for a door that listens on `address`, with what its token file says, if it has one.
    ///
    /// # Errors
    /// If that is no token.
    pub fn new(address: IpAddr, token: Option<&str>) -> Result<Self, TokenError> {
        let Some(token) = token.map(str::trim) else {
            return Ok(if address.is_loopback() { Self::Loopback } else { Self::Nobody });
        };
        if token.len() < TOKEN_BYTES_MIN {
            return Err(TokenError::TooShort { bytes: token.len() });
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Unsendable);
        }
        Ok(Self::Token(token.as_bytes().into()))
    }

    /// Whether a change with this `Authorization` is taken.
    pub(super) fn check(&self, authorization: Option<&[u8]>) -> Result<(), Refusal> {
        let token = match self {
            Self::Loopback => return Ok(()),
            Self::Nobody => return Err(Refusal::NoToken),
            Self::Token(token) => token,
        };
        let given = authorization.and_then(|value| value.strip_prefix(b"Bearer "));
        match given {
            Some(given) if are_equal(given, token) => Ok(()),
            _ => Err(Refusal::WrongToken),
        }
    }
}

/// Compares in a time that depends on the lengths only, so that nobody finds a token byte by byte.
fn are_equal(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |all, (a, b)| core::hint::black_box(all | (a ^ b)));
    a.len() == b.len() && differences == 0
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const WORLD: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn without_a_token_loopback_changes_and_the_world_does_not() {
        assert_eq!(Access::new(LOOPBACK, None).unwrap().check(None), Ok(()));
        assert_eq!(Access::new(WORLD, None).unwrap().check(None), Err(Refusal::NoToken));
    }

    #[test]
    fn a_token_is_asked_of_everybody() {
        for address in [LOOPBACK, WORLD] {
            let access = Access::new(address, Some("0123456789abcdef\n")).unwrap();
            assert_eq!(access.check(Some(b"Bearer 0123456789abcdef")), Ok(()));
            for wrong in [
                None,
                Some(&b"0123456789abcdef"[..]),
                Some(b"Bearer "),
                Some(b"Bearer 0123456789abcdeF"),
                Some(b"Bearer 0123456789abcdef0"),
                Some(b"Bearer 0123456789abcde"),
            ] {
                assert_eq!(access.check(wrong), Err(Refusal::WrongToken), "{wrong:?}");
            }
        }
        let refused = |token| Access::new(WORLD, Some(token)).err();
        assert_eq!(refused("short\n"), Some(TokenError::TooShort { bytes: 5 }));
        assert_eq!(refused("0123456789 bcdef"), Some(TokenError::Unsendable));
    }
}

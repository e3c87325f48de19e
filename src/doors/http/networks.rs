//! Networks as people write them, and whether an address is in one.

use std::net::IpAddr;

/// Addresses and networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Networks(Vec<(u128, u32)>);

/// An IPv4 address as IPv6 writes it, so that both compare.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl Networks {
    /// Reads `10.0.0.0/8`, `::1` and the like.
    pub(super) fn parse(texts: &[String]) -> Result<Self, String> {
        let network = |text: &String| {
            let wrong = || {
                format!("`{text}` is no network, allowed are addresses and networks as 10.0.0.0/8")
            };
            let text = text.trim();
            let (address, length) = match text.split_once('/') {
                None => (text, None),
                Some((address, length)) => (address, Some(length)),
            };
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            let (most, before) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
            let length = match length {
                None => most,
                Some(length) => length.parse().ok().filter(|l| *l <= most).ok_or_else(wrong)?,
            };
            let shift = 128 - before - length;
            Ok((bits(address).checked_shr(shift).unwrap_or(0), shift))
        };
        texts.iter().map(network).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an address is in one of them.
    pub(super) fn hold(&self, address: IpAddr) -> bool {
        let bits = bits(address);
        self.0.iter().any(|(network, shift)| bits.checked_shr(*shift).unwrap_or(0) == *network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_its_networks() {
        let texts = ["10.1.0.0/16", "192.168.7.9", "fd00::/8", " ::1 "].map(str::to_owned);
        let networks = Networks::parse(&texts).unwrap();
        for (address, expected) in [
            ("10.1.255.255", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.0", false),
            ("192.168.7.9", true),
            ("192.168.7.8", false),
            ("fdff::1", true),
            ("fe00::1", false),
            ("::1", true),
            ("127.0.0.1", false),
        ] {
            assert_eq!(networks.hold(address.parse().unwrap()), expected, "{address}");
        }
        let every = Networks::parse(&["0.0.0.0/0".to_owned(), "::/0".to_owned()]).unwrap();
        assert!(every.hold("8.8.8.8".parse().unwrap()) && every.hold("2001::1".parse().unwrap()));
        assert!(!Networks::default().hold("127.0.0.1".parse().unwrap()));
        for wrong in ["", "10.0.0.0/33", "::/129", "x", "10.0.0.0/-1", "10.0.0.0/"] {
            assert!(Networks::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}

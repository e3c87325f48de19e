//! IP addresses in keys and conditions: the one form of an address that was written in several.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of the longest key form of an address.
pub(super) const KEY_BYTES: usize = 17;

/// An address as a request says it; IPv4 within IPv6 (mapped, or of a NAT64) is IPv4.
pub(super) fn parse(value: &[u8]) -> Option<IpAddr> {
    let address: IpAddr = core::str::from_utf8(value).ok()?.parse().ok()?;
    Some(plain(address))
}

fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let octets = v6.octets();
    let [.., a, b, c, d] = octets;
    let embedded = v6.to_ipv4_mapped().or_else(|| {
        // The well-known prefix of NAT64, RFC 6052: 64:ff9b::/96.
        let nat64 = octets.starts_with(&[0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0]);
        nat64.then(|| Ipv4Addr::new(a, b, c, d))
    });
    embedded.map_or(address, IpAddr::V4)
}

/// What stands for an address in a key: IPv4 whole, of IPv6 the first `prefix` bits.
pub(super) fn key_form(address: IpAddr, prefix: u8, out: &mut [u8; KEY_BYTES]) -> &[u8] {
    match address {
        IpAddr::V4(v4) => {
            out[0] = 4;
            out[1..5].copy_from_slice(&v4.octets());
            &out[..5]
        }
        IpAddr::V6(v6) => {
            out[0] = 6;
            out[1..].copy_from_slice(&masked(v6, prefix).to_be_bytes());
            &out[..]
        }
    }
}

fn masked(address: Ipv6Addr, prefix: u8) -> u128 {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
    u128::from(address) & mask
}

/// A network: `10.0.0.0/8`, `2001:db8::/32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Net {
    address: IpAddr,
    prefix: u8,
}

impl Net {
    /// Reads a network; `None` if the text is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then_some(Self { address, prefix })
    }

    /// Whether `value` is an address within it.
    pub(super) fn holds(&self, value: &[u8]) -> bool {
        match (parse(value), self.address) {
            (Some(IpAddr::V4(found)), IpAddr::V4(net)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                u32::from(found) & mask == u32::from(net) & mask
            }
            (Some(IpAddr::V6(found)), IpAddr::V6(net)) => {
                masked(found, self.prefix) == masked(net, self.prefix)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str, prefix: u8) -> Vec<u8> {
        key_form(parse(address.as_bytes()).unwrap(), prefix, &mut [0; KEY_BYTES]).to_vec()
    }

    #[test]
    fn ipv6_counts_by_prefix_and_ipv4_whole_however_it_is_written() {
        assert_eq!(key("2001:db8::1", 64), key("2001:DB8:0:0:ffff::9", 64));
        assert_ne!(key("2001:db8::1", 64), key("2001:db8:0:1::1", 64));
        assert_ne!(key("192.0.2.1", 64), key("192.0.2.2", 64));
        assert_eq!(key("192.0.2.1", 64), key("::ffff:192.0.2.1", 64));
        assert_eq!(key("192.0.2.1", 64), key("64:ff9b::c000:201", 64));
        assert_ne!(key("::1", 128), key("::2", 128));
        for no_address in ["", "1.2.3", "1.2.3.4:80", "x", "fe80::1%eth0"] {
            assert_eq!(parse(no_address.as_bytes()), None, "{no_address}");
        }
    }

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        let everything = Net::parse("0.0.0.0/0").unwrap();
        assert!(everything.holds(b"255.1.2.3") && !everything.holds(b"::1"));
        assert!(Net::parse("::/0").unwrap().holds(b"::1"));
        for no_net in ["10.0.0.0", "10.0.0.0/33", "::/129", "a/b", "1/2"] {
            assert_eq!(Net::parse(no_net), None, "{no_net}");
        }
    }
}

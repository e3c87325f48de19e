//! What a proxy says in headers of the request that it asks about. Pure.
//!
//! Anybody can send such headers, so they count only from peers that the operator names.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::doors::asked::Bad;
use crate::policy::{Handle, SlotUse};

use super::networks::Networks;

/// The most entries of the settings' lists.
const ENTRIES_MAX: usize = 256;

/// Before the name of an attribute makes the header that it comes in, unless the operator says
/// another.
const PREFIX: &str = "x-toll-";

const METHOD: [HeaderName; 2] =
    [HeaderName::from_static("x-forwarded-method"), HeaderName::from_static("x-original-method")];
const URI: [HeaderName; 3] = [
    HeaderName::from_static("x-forwarded-uri"),
    HeaderName::from_static("x-original-uri"),
    HeaderName::from_static("x-original-url"),
];
const HOST: [HeaderName; 2] =
    [HeaderName::from_static("x-forwarded-host"), HeaderName::from_static("x-original-host")];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Whose word counts, and in which headers they give it.
#[derive(Clone, Debug, Default)]
pub struct Forwarded {
    trusted: Networks,
    method: Option<HeaderName>,
    uri: Option<HeaderName>,
    attributes: Vec<(String, HeaderName)>,
}

impl Forwarded {
    /// Reads the settings: `trusted` are addresses and networks, `headers` are `what=Header`, where
    /// `what` is `method`, `uri` or the name of an attribute.
    ///
    /// # Errors
    /// What is wrong with which entry.
    pub fn parse(trusted: &[String], headers: &[String]) -> Result<Self, String> {
        for (name, list) in [("http-trusted", trusted), ("http-headers", headers)] {
            if list.len() > ENTRIES_MAX {
                let found = list.len();
                return Err(format!("{name} has {found} entries, allowed are {ENTRIES_MAX}"));
            }
        }
        let trusted = Networks::parse(trusted).map_err(|error| format!("http-trusted: {error}"))?;
        let mut forwarded = Self { trusted, ..Self::default() };
        for entry in headers {
            let pair = entry.split_once('=').and_then(|(what, header)| {
                Some((what.trim(), header.trim().parse::<HeaderName>().ok()?))
            });
            let Some((what, header)) = pair.filter(|(what, _)| !what.is_empty()) else {
                return Err(format!("http-headers: `{entry}` is none, allowed is what=Header"));
            };
            match what {
                "method" => forwarded.method = Some(header),
                "uri" => forwarded.uri = Some(header),
                attribute => forwarded.attributes.push((attribute.to_owned(), header)),
            }
        }
        Ok(forwarded)
    }

    /// Whether the word of a peer counts.
    pub(super) fn trusts(&self, peer: SocketAddr) -> bool {
        self.trusted.hold(peer.ip())
    }

    /// The values of a request for the slots of an API's handle.
    pub(super) fn values(
        &self,
        handle: &Handle,
        headers: &HeaderMap,
        peer: SocketAddr,
    ) -> Result<Vec<Option<Vec<u8>>>, Bad> {
        handle
            .slots()
            .iter()
            .map(|slot| match (slot.slot_use, &*slot.name) {
                (SlotUse::Route, "method") => {
                    self.needed("method", headers, &self.method, &METHOD).map(Some)
                }
                (SlotUse::Route, _) => {
                    let uri = self.needed("uri", headers, &self.uri, &URI)?;
                    Ok(Some(path_of(&uri).to_vec()))
                }
                (_, name) => self.attribute(name, headers, peer),
            })
            .collect()
    }

    fn needed(
        &self,
        what: &str,
        headers: &HeaderMap,
        named: &Option<HeaderName>,
        usual: &[HeaderName],
    ) -> Result<Vec<u8>, Bad> {
        let names = named.as_ref().map_or(usual, core::slice::from_ref);
        for name in names {
            if let Some(value) = one(headers, name)? {
                return Ok(value.as_bytes().to_vec());
            }
        }
        let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
        let names = names.join(", ");
        let message = format!("no header says the request's {what}, allowed are {names}");
        Err(Bad::new("BAD_REQUEST", message))
    }

    fn attribute(
        &self,
        name: &str,
        headers: &HeaderMap,
        peer: SocketAddr,
    ) -> Result<Option<Vec<u8>>, Bad> {
        let bytes = |value: &HeaderValue| value.as_bytes().to_vec();
        if let Some((_, header)) = self.attributes.iter().find(|(known, _)| known == name) {
            return Ok(one(headers, header)?.map(bytes));
        }
        let header = format!("{PREFIX}{}", name.replace('_', "-"));
        if let Ok(header) = header.parse::<HeaderName>()
            && let Some(value) = one(headers, &header)?
        {
            return Ok(Some(bytes(value)));
        }
        match name {
            "ip" => Ok(Some(self.client(headers, peer)?.to_string().into_bytes())),
            "host" => {
                for header in &HOST {
                    if let Some(value) = one(headers, header)? {
                        return Ok(Some(bytes(value)));
                    }
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// The client's address: of those that the request came by the last one that is no trusted
    /// proxy's. What stands before it, the client may have made up.
    fn client(&self, headers: &HeaderMap, peer: SocketAddr) -> Result<IpAddr, Bad> {
        let lines: Vec<&HeaderValue> = headers.get_all(FORWARDED_FOR).iter().collect();
        let mut client = None;
        for line in lines.iter().rev() {
            for entry in line.as_bytes().rsplit(|byte| *byte == b',') {
                let entry = String::from_utf8_lossy(entry.trim_ascii());
                let address = address_of(&entry).ok_or_else(|| {
                    let found: String = entry.chars().take(64).collect();
                    let message = format!("header `{FORWARDED_FOR}` has `{found}`, no address");
                    Bad::new("BAD_ATTRIBUTE", message)
                })?;
                client = Some(address);
                if !self.trusted.hold(address) {
                    return Ok(address);
                }
            }
        }
        if let Some(client) = client {
            return Ok(client);
        }
        let real =
            one(headers, &REAL_IP)?.and_then(|value| address_of(value.to_str().ok()?.trim()));
        Ok(real.unwrap_or(peer.ip()))
    }
}

/// The one value of a header. A header that comes twice has none: who knows which one was the
/// proxy's.
fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Bad> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => {
            let message = format!("header `{name}` comes twice, allowed is one");
            Err(Bad::new("BAD_ATTRIBUTE", message))
        }
    }
}

/// An address, with or without a port.
fn address_of(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.ip());
    }
    text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// The path of a URI, which may be whole or begin with its path.
fn path_of(uri: &[u8]) -> &[u8] {
    let scheme = uri.windows(3).position(|three| three == b"://");
    let rest = match scheme.filter(|at| uri[..*at].iter().all(u8::is_ascii_alphanumeric)) {
        None => uri,
        Some(at) => {
            let rest = &uri[at + 3..];
            let slash = rest.iter().position(|byte| b"/?#".contains(byte));
            &rest[slash.unwrap_or(rest.len())..]
        }
    };
    let end = rest.iter().position(|byte| b"?#".contains(byte)).unwrap_or(rest.len());
    if end == 0 { b"/" } else { &rest[..end] }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        };
        pairs.iter().map(pair).fold(HeaderMap::new(), |mut all, (name, value)| {
            all.append(name, value);
            all
        })
    }

    fn client(trusted: &[&str], forwarded: &[&str]) -> Result<String, String> {
        let trusted: Vec<String> = trusted.iter().map(|text| (*text).to_owned()).collect();
        let forwarded: Vec<_> = forwarded.iter().map(|text| ("x-forwarded-for", *text)).collect();
        let rules = Forwarded::parse(&trusted, &[]).unwrap();
        let peer = "10.0.0.1:99".parse().unwrap();
        let found = rules.client(&headers(&forwarded), peer);
        found.map(|address| address.to_string()).map_err(|Bad(error)| error.message)
    }

    #[test]
    fn the_client_is_the_last_address_that_no_trusted_proxy_has() {
        let trusted = ["10.0.0.0/8"];
        let is = |forwarded: &[&str], expected: &str| {
            assert_eq!(client(&trusted, forwarded).unwrap(), expected, "{forwarded:?}");
        };
        is(&[], "10.0.0.1");
        is(&["1.2.3.4"], "1.2.3.4");
        is(&["6.6.6.6, 1.2.3.4, 10.9.9.9"], "1.2.3.4");
        is(&["6.6.6.6", "1.2.3.4:55, 10.9.9.9"], "1.2.3.4");
        is(&["10.1.1.1, 10.2.2.2"], "10.1.1.1");
        is(&["[2001:db8::1]:443"], "2001:db8::1");
        // What stands before the client is not looked at.
        is(&["nonsense, 1.2.3.4"], "1.2.3.4");
        assert!(client(&trusted, &["1.2.3.4, nonsense"]).unwrap_err().contains("nonsense"));
    }

    #[test]
    fn a_path_is_what_stands_between_host_and_query() {
        for (uri, path) in [
            ("/a/b?c=/d", "/a/b"),
            ("http://host:1/a#b", "/a"),
            ("https://host?x", "/"),
            ("https://host", "/"),
            ("", "/"),
            ("/a?u=http://b/c", "/a"),
            ("/r/http://b/c", "/r/http://b/c"),
        ] {
            assert_eq!(path_of(uri.as_bytes()), path.as_bytes(), "{uri}");
        }
    }

    #[test]
    fn a_header_that_comes_twice_says_nothing() {
        let twice = headers(&[("x-toll-team", "a"), ("x-toll-team", "b")]);
        let Bad(error) = one(&twice, &"x-toll-team".parse().unwrap()).unwrap_err();
        assert_eq!(error.message, "header `x-toll-team` comes twice, allowed is one");
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let parse = |headers: &str| Forwarded::parse(&[], &[headers.to_owned()]);
        assert!(parse("team=X-Team").is_ok());
        for wrong in ["team", "=X", "team=", "team=a b"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(&format!("`{wrong}`")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(value in "[ -~]{0,60}", uri in prop::collection::vec(any::<u8>(), 0..60)) {
            path_of(&uri);
            let rules = Forwarded::parse(&["1.0.0.0/8".to_owned()], &[]).unwrap();
            let peer = "10.0.0.1:99".parse().unwrap();
            let _ = rules.client(&headers(&[("x-forwarded-for", &value)]), peer).is_ok();
        }
    }
}

//! Names of others to names that a policy may have.

use alloc::borrow::Cow;

use super::super::maxima::NAME_BYTES_MAX;
use super::super::template::is_name;

/// Words that conditions and keys of limits have for something else.
const KEPT: [&str; 2] = ["class", "route"];

/// The attribute that a descriptor's key is, where so many entries of the same key come before it:
/// the key itself where it is a name, else with `_` for what no name has, and a number from the
/// second on. What conditions keep for themselves gets a `_` at its end. The importer writes it,
/// and the door for Envoy reads by it.
pub fn attribute_name(key: &str, earlier: usize) -> Cow<'_, str> {
    if KEPT.contains(&key) {
        return attribute_name(&format!("{key}_"), earlier).into_owned().into();
    }
    if earlier == 0 && is_name(key) {
        return Cow::Borrowed(key);
    }
    let number = if earlier == 0 { String::new() } else { format!("_{}", earlier + 1) };
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut name: String = key.chars().map(|c| if fine(c) { c } else { '_' }).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        name.insert(0, '_');
    }
    name.truncate(NAME_BYTES_MAX - number.len());
    name.push_str(&number);
    Cow::Owned(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_stays_and_others_become_one() {
        assert_eq!(attribute_name("remote_address", 0), "remote_address");
        assert_eq!(attribute_name("generic_key", 1), "generic_key_2");
        assert_eq!(attribute_name(":path", 0), "_path");
        assert_eq!(attribute_name("1.2", 0), "_1_2");
        assert_eq!(attribute_name("", 0), "_");
        assert_eq!(attribute_name("route", 0), "route_");
        assert_eq!(attribute_name("class", 1), "class__2");
    }

    proptest! {
        #[test]
        fn whatever_the_key_it_is_a_name(key in ".{0,100}", earlier in 0_usize..70) {
            prop_assert!(is_name(&attribute_name(&key, earlier)));
        }
    }
}

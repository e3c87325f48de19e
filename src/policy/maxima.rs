//! Every maximum of a policy and of the requests it meets, with its number.

use crate::engine::command::CHARGES_MAX;

/// Bytes of one policy text.
pub const POLICY_BYTES_MAX: usize = 1 << 20;

/// Limits of a whole policy, each window counted by itself. The table counts inline ones beside them.
pub const LIMITS_MAX: usize = crate::engine::table::LIMITS_MAX - 1;

/// Handles of a whole policy: one for each API and one for each of its classes.
pub const HANDLES_MAX: usize = 1024;

/// Numbers of handles that one instance gives, those of policies that it served before included.
pub const HANDLE_NUMBERS_MAX: usize = 1 << 16;

/// Bytes of a name: of an API, a class, a limit, an attribute, a meter.
pub const NAME_BYTES_MAX: usize = 64;

/// Entries of one list: routes of a class, of `on` or of `except`.
pub const LIST_ENTRIES_MAX: usize = 1024;

/// Routes of one API, those that several lists name counted again.
pub const ROUTES_MAX: usize = 8192;

/// Tables of values within one another.
pub const NESTED_TABLES_MAX: usize = 6;

/// Values of one table of values, all its tables together.
pub const VALUES_MAX: usize = 8192;

/// Rules of one API that deny or let pass.
pub const RULES_MAX: usize = 1024;

/// Numbers by which rules are counted, those of policies served before included. Rules that come
/// after share the last.
pub const RULE_NUMBERS_MAX: usize = 4096;

/// Identities on record.
pub const IDENTITIES_MAX: usize = 1 << 20;

/// Overrides at one time.
pub const OVERRIDES_MAX: usize = 10_000;

/// Counters that one override names, each window by itself, where it leaves parts of the key out.
pub const OVERRIDE_COUNTERS_MAX: usize = 4096;

/// Bytes of the reason of an override, and of who set it.
pub const REASON_BYTES_MAX: usize = 256;

/// Bytes of a text that a policy names, rendered; a longer one is cut.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Segments of one route.
pub const ROUTE_SEGMENTS_MAX: usize = 64;

/// Attributes that make one key.
pub const KEY_ATTRIBUTES_MAX: usize = 16;

/// Slots of one handle. The wire keeps one presence bit for each.
pub const SLOTS_MAX: usize = 32;

/// Limits of one handle, each window counted by itself.
pub const HANDLE_LIMITS_MAX: usize = 512;

/// Meters of one handle.
pub const METERS_MAX: usize = 16;

/// Headers of one handle.
pub const HEADERS_MAX: usize = 64;

/// Headers of one handle whose values never change.
pub const STATIC_HEADERS_MAX: usize = 16;

/// Bytes of one rendered header value; a longer one is cut.
pub const HEADER_VALUE_BYTES_MAX: usize = 1024;

/// Bytes of one rendered body, whatever the request says.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one attribute value.
pub const VALUE_BYTES_MAX: usize = 1024;

/// Bytes of a request's path, query included.
pub const PATH_BYTES_MAX: usize = 8192;

/// Problems that one load reports; a text that has more is not the text that was meant.
pub const ERRORS_MAX: usize = 100;

/// Checks that the steps of one test may ask for.
pub const TEST_CHECKS_MAX: u64 = 1_000_000;

const _: () = {
    assert!(KEY_ATTRIBUTES_MAX <= SLOTS_MAX);
    assert!(LIMITS_MAX < u16::MAX as usize);
    assert!(HANDLES_MAX < u16::MAX as usize && HANDLES_MAX <= HANDLE_NUMBERS_MAX);
    assert!(RULES_MAX <= RULE_NUMBERS_MAX && RULE_NUMBERS_MAX <= u16::MAX as usize);
    assert!(CHARGES_MAX < u16::MAX as usize);
};

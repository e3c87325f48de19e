//! Named sets of response headers.

use super::field::{Field, Form};

/// One header of a preset.
pub(super) struct PresetHeader {
    pub(super) name: &'static str,
    pub(super) shows: Shows,
}

/// What a header of a preset shows of the limit that feeds it.
#[derive(Clone, Copy)]
pub(super) enum Shows {
    Field(Field),
    /// The field that `reset` names.
    Reset,
}

/// What `reset` is where it is not given.
pub(super) const RESET_DEFAULT: Field = Field::Reset(Form::Epoch);

/// Presets of the language that are still to come.
pub(super) const NOT_YET: [&str; 9] = [
    "ietf-10",
    "ietf-07",
    "ietf-06",
    "polli-03",
    "github",
    "twitter",
    "openai",
    "anthropic",
    "kong",
];

/// Presets that exist.
pub(super) const NAMES: [&str; 2] = ["x-ratelimit", "none"];

/// The headers of a preset, sent on every response.
pub(super) fn preset(name: &str) -> Option<&'static [PresetHeader]> {
    match name {
        "none" => Some(&[]),
        "x-ratelimit" => Some(&[
            PresetHeader { name: "X-RateLimit-Limit", shows: Shows::Field(Field::Limit) },
            PresetHeader { name: "X-RateLimit-Remaining", shows: Shows::Field(Field::Remaining) },
            PresetHeader { name: "X-RateLimit-Reset", shows: Shows::Reset },
        ]),
        _ => None,
    }
}

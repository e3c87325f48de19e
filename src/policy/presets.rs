//! Named sets of response headers, each header by header.

use super::field::{Field, Form};

/// A set of headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preset {
    pub(super) name: &'static str,
    /// Roles that `from` gives limits to; none if one limit feeds all headers.
    pub(super) roles: &'static [&'static str],
    pub(super) headers: &'static [PresetHeader],
}

/// One header of a preset, sent on every response.
#[derive(Debug)]
pub(super) struct PresetHeader {
    pub(super) name: &'static str,
    pub(super) feed: PresetFeed,
    pub(super) value: &'static [Piece],
}

/// Which limits feed a header: the first that applies does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PresetFeed {
    /// Those of `from`.
    From,
    /// Those of this role.
    Role(&'static str),
    /// Those of `from` with a window of this name, all limits if it names none. Without one, the
    /// header is not there.
    Window(&'static str),
}

/// A part of a header's value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece {
    Text(&'static str),
    Field(Field),
    /// The field that `reset` names, or this one.
    Reset(Field),
    /// The limit's name.
    Name,
    /// `"name";r=50;t=30`, as structured fields write it.
    Item,
    /// Every limit that applies, with its quota and window.
    Policies(PolicyForm),
}

/// How policies are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PolicyForm {
    /// `"name";q=100;w=60`.
    Named,
    /// `100;w=60`.
    Plain,
    /// `100;w=60;name="name"`.
    Envoy,
}

/// Names of all presets.
pub(super) const NAMES: [&str; 11] = [
    "x-ratelimit",
    "ietf-10",
    "ietf-07",
    "ietf-06",
    "polli-03",
    "github",
    "twitter",
    "openai",
    "anthropic",
    "kong",
    "none",
];

const LIMIT: Piece = Piece::Field(Field::Limit);
const REMAINING: Piece = Piece::Field(Field::Remaining);
const SECONDS: Field = Field::Reset(Form::Seconds);
const EPOCH: Field = Field::Reset(Form::Epoch);
const GO: Field = Field::Reset(Form::Go);
const RFC3339: Field = Field::Reset(Form::Rfc3339);

const fn header(name: &'static str, value: &'static [Piece]) -> PresetHeader {
    PresetHeader { name, feed: PresetFeed::From, value }
}

const fn of_role(name: &'static str, role: &'static str, value: &'static [Piece]) -> PresetHeader {
    PresetHeader { name, feed: PresetFeed::Role(role), value }
}

const fn of_window(
    name: &'static str,
    window: &'static str,
    value: &'static [Piece],
) -> PresetHeader {
    PresetHeader { name, feed: PresetFeed::Window(window), value }
}

const PRESETS: [Preset; 11] = [
    Preset { name: "none", roles: &[], headers: &[] },
    Preset {
        name: "x-ratelimit",
        roles: &[],
        headers: &[
            header("X-RateLimit-Limit", &[LIMIT]),
            header("X-RateLimit-Remaining", &[REMAINING]),
            header("X-RateLimit-Reset", &[Piece::Reset(EPOCH)]),
        ],
    },
    Preset {
        name: "ietf-10",
        roles: &[],
        headers: &[
            header("RateLimit-Policy", &[Piece::Policies(PolicyForm::Named)]),
            header("RateLimit", &[Piece::Item]),
        ],
    },
    Preset {
        name: "ietf-07",
        roles: &[],
        headers: &[
            header("RateLimit-Policy", &[Piece::Policies(PolicyForm::Plain)]),
            header(
                "RateLimit",
                &[
                    Piece::Text("limit="),
                    LIMIT,
                    Piece::Text(", remaining="),
                    REMAINING,
                    Piece::Text(", reset="),
                    Piece::Reset(SECONDS),
                ],
            ),
        ],
    },
    Preset {
        name: "ietf-06",
        roles: &[],
        headers: &[
            header("RateLimit-Limit", &[LIMIT]),
            header("RateLimit-Remaining", &[REMAINING]),
            header("RateLimit-Reset", &[Piece::Reset(SECONDS)]),
            header("RateLimit-Policy", &[Piece::Policies(PolicyForm::Plain)]),
        ],
    },
    Preset {
        name: "polli-03",
        roles: &[],
        headers: &[
            header(
                "X-RateLimit-Limit",
                &[LIMIT, Piece::Text(", "), Piece::Policies(PolicyForm::Envoy)],
            ),
            header("X-RateLimit-Remaining", &[REMAINING]),
            header("X-RateLimit-Reset", &[Piece::Reset(SECONDS)]),
        ],
    },
    Preset {
        name: "github",
        roles: &[],
        headers: &[
            header("x-ratelimit-limit", &[LIMIT]),
            header("x-ratelimit-remaining", &[REMAINING]),
            header("x-ratelimit-used", &[Piece::Field(Field::Used)]),
            header("x-ratelimit-reset", &[Piece::Reset(EPOCH)]),
            header("x-ratelimit-resource", &[Piece::Name]),
        ],
    },
    Preset {
        name: "twitter",
        roles: &[],
        headers: &[
            header("x-rate-limit-limit", &[LIMIT]),
            header("x-rate-limit-remaining", &[REMAINING]),
            header("x-rate-limit-reset", &[Piece::Reset(EPOCH)]),
        ],
    },
    Preset {
        name: "openai",
        roles: &["requests", "tokens"],
        headers: &[
            of_role("x-ratelimit-limit-requests", "requests", &[LIMIT]),
            of_role("x-ratelimit-limit-tokens", "tokens", &[LIMIT]),
            of_role("x-ratelimit-remaining-requests", "requests", &[REMAINING]),
            of_role("x-ratelimit-remaining-tokens", "tokens", &[REMAINING]),
            of_role("x-ratelimit-reset-requests", "requests", &[Piece::Reset(GO)]),
            of_role("x-ratelimit-reset-tokens", "tokens", &[Piece::Reset(GO)]),
        ],
    },
    Preset {
        name: "anthropic",
        roles: &["requests", "tokens", "input_tokens", "output_tokens"],
        headers: &[
            of_role("anthropic-ratelimit-requests-limit", "requests", &[LIMIT]),
            of_role("anthropic-ratelimit-requests-remaining", "requests", &[REMAINING]),
            of_role("anthropic-ratelimit-requests-reset", "requests", &[Piece::Reset(RFC3339)]),
            of_role("anthropic-ratelimit-tokens-limit", "tokens", &[LIMIT]),
            of_role("anthropic-ratelimit-tokens-remaining", "tokens", &[REMAINING]),
            of_role("anthropic-ratelimit-tokens-reset", "tokens", &[Piece::Reset(RFC3339)]),
            of_role("anthropic-ratelimit-input-tokens-limit", "input_tokens", &[LIMIT]),
            of_role("anthropic-ratelimit-input-tokens-remaining", "input_tokens", &[REMAINING]),
            of_role(
                "anthropic-ratelimit-input-tokens-reset",
                "input_tokens",
                &[Piece::Reset(RFC3339)],
            ),
            of_role("anthropic-ratelimit-output-tokens-limit", "output_tokens", &[LIMIT]),
            of_role("anthropic-ratelimit-output-tokens-remaining", "output_tokens", &[REMAINING]),
            of_role(
                "anthropic-ratelimit-output-tokens-reset",
                "output_tokens",
                &[Piece::Reset(RFC3339)],
            ),
        ],
    },
    Preset {
        name: "kong",
        roles: &[],
        headers: &[
            of_window("X-RateLimit-Limit-Second", "second", &[LIMIT]),
            of_window("X-RateLimit-Remaining-Second", "second", &[REMAINING]),
            of_window("X-RateLimit-Limit-Minute", "minute", &[LIMIT]),
            of_window("X-RateLimit-Remaining-Minute", "minute", &[REMAINING]),
            of_window("X-RateLimit-Limit-Hour", "hour", &[LIMIT]),
            of_window("X-RateLimit-Remaining-Hour", "hour", &[REMAINING]),
            of_window("X-RateLimit-Limit-Day", "day", &[LIMIT]),
            of_window("X-RateLimit-Remaining-Day", "day", &[REMAINING]),
            of_window("X-RateLimit-Limit-Month", "month", &[LIMIT]),
            of_window("X-RateLimit-Remaining-Month", "month", &[REMAINING]),
            header("RateLimit-Limit", &[LIMIT]),
            header("RateLimit-Remaining", &[REMAINING]),
            header("RateLimit-Reset", &[Piece::Reset(SECONDS)]),
        ],
    },
];

/// The preset of that name.
pub(super) fn preset(name: &str) -> Option<Preset> {
    PRESETS.iter().find(|preset| preset.name == name).copied()
}

impl Preset {
    /// Whether a header of it shows the field that `reset` names.
    pub(super) fn shows_reset(&self) -> bool {
        let mut pieces = self.headers.iter().flat_map(|header| header.value);
        pieces.any(|piece| matches!(piece, Piece::Reset(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_preset_and_every_role_feeds_a_header() {
        for name in NAMES {
            let preset = preset(name).unwrap();
            assert_eq!(preset.name, name);
            for role in preset.roles {
                assert!(preset.headers.iter().any(|h| h.feed == PresetFeed::Role(role)));
            }
        }
        assert_eq!(PRESETS.len(), NAMES.len());
    }
}

//! What sorts of errors a policy can have, for machines: the words never change their meaning.

use core::fmt;

/// The sort of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorCode {
    /// The text is no TOML 1.0.
    Syntax,
    /// `schema` is missing.
    Schema,
    /// A key that the language does not have.
    UnknownKey,
    /// A word, or the name of something that is not there.
    UnknownName,
    /// A value of another type.
    Type,
    /// A number outside its range.
    Range,
    /// More or longer than may be.
    Maximum,
    /// Something required is not there, or a list is empty.
    Missing,
    /// Two of what there is one of.
    Duplicate,
    /// A key that does not go with the others.
    Misplaced,
    /// What cannot be a name.
    Name,
    /// What is no route.
    Route,
    /// A route or a limit that no request reaches.
    Unreachable,
    /// Routes or classes that cross, where one must count.
    Overlap,
    /// A limit without a kind, or with two.
    Kind,
    /// What is no quota, rate, amount or span of time.
    Quota,
    /// A cost that never fits.
    Cost,
    /// `concurrent` without `lease`.
    MissingLease,
    /// A tier without a value.
    TierGap,
    /// Tables of values that do not go together.
    Tables,
    /// What is no anchor of the windows.
    Anchor,
    /// What cannot be part of a key.
    Key,
    /// A header that cannot be sent.
    Header,
    /// A placeholder that is wrong.
    Template,
    /// A body that is no JSON.
    Json,
    /// A step of a test that says nothing.
    Test,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 26] = [
        Self::Syntax,
        Self::Schema,
        Self::UnknownKey,
        Self::UnknownName,
        Self::Type,
        Self::Range,
        Self::Maximum,
        Self::Missing,
        Self::Duplicate,
        Self::Misplaced,
        Self::Name,
        Self::Route,
        Self::Unreachable,
        Self::Overlap,
        Self::Kind,
        Self::Quota,
        Self::Cost,
        Self::MissingLease,
        Self::TierGap,
        Self::Tables,
        Self::Anchor,
        Self::Key,
        Self::Header,
        Self::Template,
        Self::Json,
        Self::Test,
    ];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Schema => "schema",
            Self::UnknownKey => "unknown-key",
            Self::UnknownName => "unknown-name",
            Self::Type => "type",
            Self::Range => "range",
            Self::Maximum => "maximum",
            Self::Missing => "missing",
            Self::Duplicate => "duplicate",
            Self::Misplaced => "misplaced",
            Self::Name => "name",
            Self::Route => "route",
            Self::Unreachable => "unreachable",
            Self::Overlap => "overlap",
            Self::Kind => "kind",
            Self::Quota => "quota",
            Self::Cost => "cost",
            Self::MissingLease => "missing-lease",
            Self::TierGap => "tier-gap",
            Self::Tables => "tables",
            Self::Anchor => "anchor",
            Self::Key => "key",
            Self::Header => "header",
            Self::Template => "template",
            Self::Json => "json",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_lists_every_code() {
        let reference = include_str!("LANGUAGE.md");
        for code in ErrorCode::ALL {
            assert!(reference.contains(&format!("| `{code}` |")), "{code}");
        }
    }
}

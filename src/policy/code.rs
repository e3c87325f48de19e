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
    /// Something required is not there.
    Missing,
    /// Two of what there is one of.
    Duplicate,
    /// A key that does not go with the others.
    Misplaced,
    /// What cannot be a name.
    Name,
    /// What is no route.
    Route,
    /// A route that no request reaches.
    Unreachable,
    /// Routes or classes that cross, where one must count.
    Overlap,
    /// A limit without a kind.
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
    /// A class that the API does not have.
    UnknownClass,
    /// A tier that the API does not have, or tiers where it has none.
    UnknownTier,
    /// A time zone that the database does not have.
    UnknownZone,
    /// A limit, window or rule that the API does not have.
    UnknownLimit,
    /// A meter that no limit reads.
    UnknownMeter,
    /// A test of an API that is not there.
    UnknownApi,
    /// An attribute that nothing reads, or that stands for no account.
    UnknownAttribute,
    /// A permit that no step before took.
    UnknownPermit,
    /// A name that the language keeps for itself.
    ReservedName,
    /// What cannot be the name of a header.
    HeaderName,
    /// A limit with two kinds.
    SecondKind,
    /// A limit whose `except` takes all that its `on` gives.
    UnreachableLimit,
    /// `HEAD` in a condition: it counts as `GET`.
    HeadMethod,
    /// A list or a table that has nothing in it.
    Empty,
    /// Tables of values too deep within one another.
    Nesting,
    /// A segment in `per` that the limit's routes do not have.
    Segment,
    /// A prefix in `per` that no address has.
    AddressKey,
    /// What is no moment or span in a test.
    Moment,
    /// A step that lies before the one above it.
    StepOrder,
    /// An identity of a test that is not one attribute and its account.
    Identity,
    /// A `{` whose placeholder never ends.
    UnclosedPlaceholder,
    /// A placeholder of text outside the quotes of a JSON body.
    UnquotedText,
    /// `unlimited` where nothing says in which windows.
    Unlimited,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 49] = [
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
        Self::UnknownClass,
        Self::UnknownTier,
        Self::UnknownZone,
        Self::UnknownLimit,
        Self::UnknownMeter,
        Self::UnknownApi,
        Self::UnknownAttribute,
        Self::UnknownPermit,
        Self::ReservedName,
        Self::HeaderName,
        Self::SecondKind,
        Self::UnreachableLimit,
        Self::HeadMethod,
        Self::Empty,
        Self::Nesting,
        Self::Segment,
        Self::AddressKey,
        Self::Moment,
        Self::StepOrder,
        Self::Identity,
        Self::UnclosedPlaceholder,
        Self::UnquotedText,
        Self::Unlimited,
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
            Self::UnknownClass => "unknown-class",
            Self::UnknownTier => "unknown-tier",
            Self::UnknownZone => "unknown-zone",
            Self::UnknownLimit => "unknown-limit",
            Self::UnknownMeter => "unknown-meter",
            Self::UnknownApi => "unknown-api",
            Self::UnknownAttribute => "unknown-attribute",
            Self::UnknownPermit => "unknown-permit",
            Self::ReservedName => "reserved-name",
            Self::HeaderName => "header-name",
            Self::SecondKind => "second-kind",
            Self::UnreachableLimit => "unreachable-limit",
            Self::HeadMethod => "head-method",
            Self::Empty => "empty",
            Self::Nesting => "nesting",
            Self::Segment => "segment",
            Self::AddressKey => "address-key",
            Self::Moment => "moment",
            Self::StepOrder => "step-order",
            Self::Identity => "identity",
            Self::UnclosedPlaceholder => "unclosed-placeholder",
            Self::UnquotedText => "unquoted-text",
            Self::Unlimited => "unlimited",
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

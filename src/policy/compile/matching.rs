//! `on`, `except`, `when` and `unless` to conditions over numbers.

use super::super::code::ErrorCode;
use super::super::error::did_you_mean;
use super::super::matcher::{Condition, Matcher, Pattern, Test};
use super::super::parse::{self, MatchText};
use super::super::route::{SetId, Sets};
use super::super::tree::Text;
use super::{Compiler, TIER};

impl<'a> Compiler<'a> {
    /// The requests that any entry of a list means.
    pub(super) fn read_matches(&mut self, list: &[MatchText]) -> Matcher {
        let mut sets: Vec<SetId> = Vec::new();
        let mut routes = Vec::new();
        let mut conditions = Vec::new();
        for entry in list {
            match entry {
                MatchText::Class(name) => {
                    let class = self.class_named(name);
                    if class.is_some_and(|class| sets.contains(&class)) {
                        let message = format!("class `{}` stands here twice", name.value);
                        self.errors.push(ErrorCode::Duplicate, name.span, message);
                    }
                    sets.extend(class);
                }
                MatchText::Route(route) => routes.push(route),
                MatchText::All(all) => conditions.push(self.read_condition(all)),
            }
        }
        if !routes.is_empty() {
            sets.push(self.routes.add_list(routes, self.errors));
        }
        Matcher { sets: Sets::new(sets), conditions: conditions.into() }
    }

    fn read_condition(&mut self, all: &[(Text, Vec<Text>)]) -> Condition {
        let mut tests = Vec::new();
        for (key, values) in all {
            let patterns =
                || values.iter().map(|value| Pattern::parse(&value.value)).collect::<Box<[_]>>();
            tests.push(match key.value.as_str() {
                "class" => {
                    let classes: Vec<SetId> =
                        values.iter().filter_map(|name| self.class_named(name)).collect();
                    Test::Sets(Sets::new(classes))
                }
                "route" => {
                    let routes: Vec<_> =
                        values.iter().filter_map(|text| parse::route(text, self.errors)).collect();
                    Test::Sets(Sets::new([self.routes.add_list(&routes, self.errors)]))
                }
                TIER => {
                    let tiers: Vec<u16> =
                        values.iter().filter_map(|name| self.tier_named(name)).collect();
                    self.attribute(TIER);
                    Test::Tier(Sets::new(tiers))
                }
                "method" => {
                    for value in values.iter().filter(|value| value.value == "HEAD") {
                        let help = "write `GET`; it matches both";
                        self.errors.push_with_help(
                            ErrorCode::HeadMethod,
                            value.span,
                            "`HEAD` counts as `GET`",
                            help,
                        );
                    }
                    Test::Method(patterns())
                }
                "path" => Test::Path(patterns()),
                name => Test::Attribute(self.attribute(name), patterns()),
            });
        }
        Condition { tests: tests.into() }
    }

    pub(super) fn class_named(&mut self, name: &Text) -> Option<SetId> {
        if let Ok(index) = self.classes.binary_search(&name.value.as_str()) {
            return Some(index as SetId);
        }
        let help = did_you_mean(&name.value, self.classes.iter().copied()).unwrap_or_else(|| {
            match self.classes.as_slice() {
                [] => "the API has no classes; a route begins with `/` or a method".to_owned(),
                classes => format!("classes are {}", classes.join(", ")),
            }
        });
        self.errors.push_with_help(
            ErrorCode::UnknownClass,
            name.span,
            format!("unknown class `{}`", name.value),
            help,
        );
        None
    }

    pub(super) fn tier_named(&mut self, name: &Text) -> Option<u16> {
        let known = self.tiers.iter().position(|tier| *tier.name == *name.value);
        if known.is_none() {
            let names = || self.tiers.iter().map(|tier| &*tier.name);
            let help = did_you_mean(&name.value, names()).unwrap_or_else(|| {
                match names().collect::<Vec<_>>().as_slice() {
                    [] => "the API has no tiers: `tiers = [\"free\", …]`".to_owned(),
                    tiers => format!("tiers are {}", tiers.join(", ")),
                }
            });
            self.errors.push_with_help(
                ErrorCode::UnknownTier,
                name.span,
                format!("unknown tier `{}`", name.value),
                help,
            );
        }
        known.map(|place| place as u16)
    }
}

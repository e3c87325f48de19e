//! Trees of values to the form in which requests find theirs.

use super::super::code::ErrorCode;
use super::super::error::Span;
use super::super::maxima::VALUES_MAX;
use super::super::parse;
use super::super::route::SetId;
use super::super::tree::Text;
use super::super::values::{Branch, Choice, Next, OTHERS, Selector, Tree, Values};
use super::{Compiler, TIER};

/// A tree whose names are resolved.
pub(super) enum Resolved<T> {
    Leaf(T),
    Tier { of: Vec<(u16, Resolved<T>)>, other: Option<Box<Resolved<T>>> },
    Sets { of: Vec<(SetId, Resolved<T>)>, other: Option<Box<Resolved<T>>> },
    Attribute { attribute: u16, of: Vec<(Vec<u8>, Resolved<T>)>, other: Option<Box<Resolved<T>>> },
}

/// Which selectors stand above a table.
#[derive(Clone, Default)]
struct Above {
    tier: bool,
    attributes: Vec<u16>,
}

impl<'a> Compiler<'a> {
    /// Resolves the names in a tree. `what` names it in errors.
    pub(super) fn read_tree<T: Clone>(
        &mut self,
        tree: &Tree<T>,
        what: &str,
    ) -> Option<Resolved<T>> {
        let leaves = tree.leaves().len();
        if leaves > VALUES_MAX
            && let Some(branch) = tree.branches().first()
        {
            let message = format!("{leaves} values, allowed are {VALUES_MAX}");
            self.errors.push(ErrorCode::Maximum, branch.at.span, message);
            return None;
        }
        self.read_level(tree, what, &Above::default())
    }

    fn read_level<T: Clone>(
        &mut self,
        tree: &Tree<T>,
        what: &str,
        above: &Above,
    ) -> Option<Resolved<T>> {
        let branch = match tree {
            Tree::Leaf(value) => return Some(Resolved::Leaf(value.clone())),
            Tree::Branch(branch) => branch,
        };
        match branch.by {
            Selector::Tier => self.read_tiers_of(branch, what, above),
            Selector::Class | Selector::Route => self.read_sets_of(branch, what, above),
            Selector::Attribute => self.read_attribute(branch, what, above),
        }
    }

    fn other<T: Clone>(
        &mut self,
        branch: &Branch<T>,
        what: &str,
        above: &Above,
    ) -> Option<Box<Resolved<T>>> {
        let (_, tree) = branch.entries.iter().find(|(key, _)| key.value == OTHERS)?;
        self.read_level(tree, what, above).map(Box::new)
    }

    fn read_tiers_of<T: Clone>(
        &mut self,
        branch: &Branch<T>,
        what: &str,
        above: &Above,
    ) -> Option<Resolved<T>> {
        if above.tier {
            self.errors.push(
                ErrorCode::Tables,
                branch.at.span,
                "a table by tier within one by tier",
            );
            return None;
        }
        let above = Above { tier: true, ..above.clone() };
        self.attribute(TIER);
        let other = self.other(branch, what, &above);
        let mut of = Vec::new();
        for (key, tree) in branch.entries.iter().filter(|(key, _)| key.value != OTHERS) {
            let tier = self.tier_named(key);
            let value = self.read_level(tree, what, &above);
            of.extend(tier.zip(value));
        }
        if other.is_none() {
            let unknown = branch.entries.len() > of.len();
            let gaps: Vec<String> = (0..self.tiers.len())
                .filter(|tier| {
                    !self.tiers_denied[*tier]
                        && of.iter().all(|(known, _)| known != &(*tier as u16))
                })
                .map(|tier| self.tiers[tier].name.to_string())
                .collect();
            for gap in gaps.iter().filter(|_| !unknown) {
                let message = format!("tier `{gap}` has no value in {what}");
                let help = format!(
                    "give it one, for instance \"unlimited\", or a value for `\"*\"`; or deny it \
                     the API: `deny = [{{ when = {{ tier = \"{gap}\" }} }}]`"
                );
                self.errors.push_with_help(ErrorCode::TierGap, branch.at.span, message, help);
            }
        }
        Some(Resolved::Tier { of, other })
    }

    fn read_sets_of<T: Clone>(
        &mut self,
        branch: &Branch<T>,
        what: &str,
        above: &Above,
    ) -> Option<Resolved<T>> {
        let other = self.other(branch, what, above);
        let mut sets: Vec<(SetId, Span, String)> = Vec::new();
        let mut values = Vec::new();
        for (key, tree) in branch.entries.iter().filter(|(key, _)| key.value != OTHERS) {
            let set = self.set_named(branch.by, key);
            let value = self.read_level(tree, what, above);
            if let (Some(set), Some(value)) = (set, value) {
                sets.push((set, key.span, key.value.clone()));
                values.push(Some((set, value)));
            }
        }
        if self.routes.is_full() {
            return None;
        }
        let order = self.routes.narrowest_first(&sets, self.errors);
        let of = order.into_iter().filter_map(|index| values[index].take()).collect();
        Some(Resolved::Sets { of, other })
    }

    fn set_named(&mut self, by: Selector, key: &Text) -> Option<SetId> {
        if by == Selector::Class {
            return self.class_named(key);
        }
        let route = parse::route(key, self.errors)?;
        Some(self.routes.single(&route.route, key.span, self.errors))
    }

    fn read_attribute<T: Clone>(
        &mut self,
        branch: &Branch<T>,
        what: &str,
        above: &Above,
    ) -> Option<Resolved<T>> {
        let attribute = self.attribute(&branch.at.value);
        if matches!(branch.at.value.as_str(), TIER | "method" | "path" | "route" | "class") {
            let name = &branch.at.value;
            let message = format!("values by the attribute `{name}`");
            let help = match name.as_str() {
                "method" | "path" => "write `.route`".to_owned(),
                name => format!("write `.{name}`"),
            };
            self.errors.push_with_help(ErrorCode::Tables, branch.at.span, message, help);
            return None;
        }
        if above.attributes.contains(&attribute) {
            let message = format!("a table by `{0}` within one by `{0}`", branch.at.value);
            self.errors.push(ErrorCode::Tables, branch.at.span, message);
            return None;
        }
        let mut above = above.clone();
        above.attributes.push(attribute);
        let other = self.other(branch, what, &above);
        if !branch.entries.iter().any(|(key, _)| key.value == OTHERS) {
            let message = format!("values by the attribute `{}` lack `\"*\"`", branch.at.value);
            let help = "requests may say anything: `\"*\" = …` is for all other values, and none";
            self.errors.push_with_help(ErrorCode::Missing, branch.at.span, message, help);
        }
        let mut of = Vec::new();
        for (key, tree) in branch.entries.iter().filter(|(key, _)| key.value != OTHERS) {
            let value = self.read_level(tree, what, &above);
            of.extend(value.map(|value| (key.value.clone().into_bytes(), value)));
        }
        of.sort_by(|(a, _), (b, _)| a.cmp(b));
        Some(Resolved::Attribute { attribute, of, other })
    }
}

impl<T> Resolved<T> {
    /// Every value.
    pub(super) fn leaves(&self) -> Vec<&T> {
        fn gather<'t, T>(tree: &'t Resolved<T>, found: &mut Vec<&'t T>) {
            let (below, other): (Vec<&Resolved<T>>, _) = match tree {
                Resolved::Leaf(value) => return found.push(value),
                Resolved::Tier { of, other } => (of.iter().map(|(_, t)| t).collect(), other),
                Resolved::Sets { of, other } => (of.iter().map(|(_, t)| t).collect(), other),
                Resolved::Attribute { of, other, .. } => {
                    (of.iter().map(|(_, t)| t).collect(), other)
                }
            };
            for tree in below.into_iter().chain(other.as_deref()) {
                gather(tree, found);
            }
        }
        let mut found = Vec::new();
        gather(self, &mut found);
        found
    }

    /// The values in the form in which requests find theirs, each as `of` has it.
    pub(super) fn values<U>(&self, of: &mut impl FnMut(&T) -> U) -> Values<U> {
        if let Self::Leaf(value) = self {
            return Values::Same(of(value));
        }
        let mut flat = Flat { choices: Vec::new(), values: Vec::new() };
        let root = flat.add(self, of);
        Values::Chosen {
            root,
            choices: flat.choices.into_iter().flatten().collect(),
            values: flat.values.into(),
        }
    }
}

struct Flat<U> {
    choices: Vec<Option<Choice>>,
    values: Vec<U>,
}

impl<U> Flat<U> {
    fn add<T>(&mut self, tree: &Resolved<T>, of: &mut impl FnMut(&T) -> U) -> Next {
        if let Resolved::Leaf(value) = tree {
            self.values.push(of(value));
            return Next::Value((self.values.len() - 1) as u16);
        }
        // A choice stands before those that it leads to.
        let place = self.choices.len();
        self.choices.push(None);
        let other = |flat: &mut Self, other: &Option<Box<Resolved<T>>>, of: &mut _| {
            other.as_ref().map(|tree| flat.add(tree, of))
        };
        let choice = match tree {
            Resolved::Leaf(_) => return Next::Nothing,
            Resolved::Tier { of: list, other: rest } => {
                let tiers = list.iter().map(|(tier, _)| usize::from(*tier) + 1).max().unwrap_or(0);
                let rest = other(self, rest, of);
                // Tiers without a value are denied before any limit is looked at.
                let mut by_tier = vec![rest.unwrap_or(Next::Nothing); tiers];
                for (tier, tree) in list {
                    by_tier[usize::from(*tier)] = self.add(tree, of);
                }
                Choice::Tier { of: by_tier.into(), other: rest }
            }
            Resolved::Sets { of: list, other: rest } => {
                let rest = other(self, rest, of);
                let sets = list.iter().map(|(set, tree)| (*set, self.add(tree, of))).collect();
                Choice::Sets { of: sets, other: rest.unwrap_or(Next::Nothing) }
            }
            Resolved::Attribute { attribute, of: list, other: rest } => {
                let rest = other(self, rest, of);
                let values = list
                    .iter()
                    .map(|(value, tree)| (value.as_slice().into(), self.add(tree, of)))
                    .collect();
                let other = rest.unwrap_or(Next::Nothing);
                Choice::Attribute { slot: *attribute, of: values, other }
            }
        };
        self.choices[place] = Some(choice);
        Next::Choice(place as u16)
    }
}

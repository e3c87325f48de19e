//! Values that depend on the request: a scalar, or tables by tier, class, route and attribute,
//! nested in any order. As written they are a tree; a request finds its value by small integers,
//! one step for each level.

use super::facts::Facts;
use super::route::{Router, SetId};
use super::tree::Text;

/// Values as written.
#[derive(Clone, Debug)]
pub(super) enum Tree<T> {
    Leaf(T),
    Branch(Branch<T>),
}

/// One level of tables.
#[derive(Clone, Debug)]
pub(super) struct Branch<T> {
    pub(super) by: Selector,
    /// The key that names the selector.
    pub(super) at: Text,
    /// Not empty.
    pub(super) entries: Vec<(Text, Tree<T>)>,
}

/// What picks an entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selector {
    Tier,
    Class,
    Route,
    /// The attribute that [`Branch::at`] names.
    Attribute,
}

/// The key of the entry for all that have none of their own.
pub(super) const OTHERS: &str = "*";

impl<T> Tree<T> {
    /// Every value, in the order of the text.
    pub(super) fn leaves(&self) -> Vec<&T> {
        let mut found = Vec::new();
        let mut open = vec![self];
        while let Some(tree) = open.pop() {
            match tree {
                Self::Leaf(value) => found.push(value),
                Self::Branch(branch) => open.extend(branch.entries.iter().rev().map(|(_, t)| t)),
            }
        }
        found
    }

    /// Every table, the outer ones first.
    pub(super) fn branches(&self) -> Vec<&Branch<T>> {
        let mut found = Vec::new();
        let mut open = vec![self];
        while let Some(tree) = open.pop() {
            if let Self::Branch(branch) = tree {
                found.push(branch);
                open.extend(branch.entries.iter().rev().map(|(_, tree)| tree));
            }
        }
        found
    }
}

/// Values in the form in which requests find theirs.
#[derive(Clone, Debug)]
pub(super) enum Values<T> {
    /// The same for all.
    Same(T),
    /// By tables.
    Chosen { root: Next, choices: Box<[Choice]>, values: Box<[T]> },
}

/// Where to look next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Index of a value.
    Value(u16),
    /// Index of a choice.
    Choice(u16),
    /// There is no value: the limit is not for this request.
    Nothing,
}

/// One level of tables.
#[derive(Clone, Debug)]
pub(super) enum Choice {
    /// By the index of the tier.
    Tier { of: Box<[Next]>, other: Option<Next> },
    /// By the first set of routes that the request is in, the narrowest first.
    Sets { of: Box<[(SetId, Next)]>, other: Next },
    /// By the value of the attribute in this slot, sorted.
    Attribute { slot: u16, of: Box<[(Box<[u8]>, Next)]>, other: Next },
}

/// A tier that a table needs and the request does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoTier;

impl<T> Values<T> {
    /// The value for a request; `None` if the tables have none for it.
    #[inline]
    pub(super) fn find(&self, facts: &Facts<'_>) -> Result<Option<&T>, NoTier> {
        match self {
            Self::Same(value) => Ok(Some(value)),
            Self::Chosen { root, choices, values } => {
                // Most tables are by tier, and no more.
                if let (Some(tier), [Choice::Tier { of, .. }]) = (facts.tier, &**choices)
                    && let Some(Next::Value(index)) = of.get(usize::from(tier))
                {
                    return Ok(values.get(usize::from(*index)));
                }
                let found = descend(*root, choices, facts)?;
                Ok(found.and_then(|index| values.get(usize::from(index))))
            }
        }
    }

    /// Every value.
    pub(super) fn all(&self) -> &[T] {
        match self {
            Self::Same(value) => core::slice::from_ref(value),
            Self::Chosen { values, .. } => values,
        }
    }

    /// The value, if it is the same for all requests.
    pub(super) fn same(&self) -> Option<&T> {
        match self {
            Self::Same(value) => Some(value),
            Self::Chosen { .. } => None,
        }
    }

    /// The same values where attributes have other slots.
    pub(super) fn with_slots(&self, slot_of: impl Fn(u16) -> Option<u16>) -> Self
    where
        T: Clone,
    {
        let mut moved = self.clone();
        if let Self::Chosen { choices, .. } = &mut moved {
            for choice in choices {
                if let Choice::Attribute { slot, .. } = choice {
                    *slot = slot_of(*slot).unwrap_or(u16::MAX);
                }
            }
        }
        moved
    }

    fn choices(&self) -> &[Choice] {
        match self {
            Self::Same(_) => &[],
            Self::Chosen { choices, .. } => choices,
        }
    }

    /// Attributes that choose, by their indexes.
    pub(super) fn attributes(&self) -> impl Iterator<Item = u16> {
        self.choices().iter().filter_map(|choice| match choice {
            Choice::Attribute { slot, .. } => Some(*slot),
            _ => None,
        })
    }

    /// Sets of routes that choose.
    pub(super) fn sets(&self) -> impl Iterator<Item = SetId> {
        self.choices().iter().flat_map(|choice| match choice {
            Choice::Sets { of, .. } => of.iter().map(|(set, _)| *set).collect(),
            _ => Vec::new(),
        })
    }

    /// Whether nothing but tiers chooses.
    pub(super) fn hang_on_tier_alone(&self) -> bool {
        self.choices().iter().all(|choice| matches!(choice, Choice::Tier { .. }))
    }

    /// Whether tiers choose.
    pub(super) fn by_tier(&self) -> bool {
        self.choices().iter().any(|choice| matches!(choice, Choice::Tier { .. }))
    }

    /// Whether a request without a tier, or of one that the API does not have, finds no value.
    pub(super) fn needs_tier(&self) -> bool {
        self.choices().iter().any(|choice| matches!(choice, Choice::Tier { other: None, .. }))
    }
}

fn descend(root: Next, choices: &[Choice], facts: &Facts<'_>) -> Result<Option<u16>, NoTier> {
    let mut next = root;
    loop {
        let choice = match next {
            Next::Value(index) => return Ok(Some(index)),
            Next::Nothing => return Ok(None),
            // Choices refer to later ones only, so this ends.
            Next::Choice(index) => match choices.get(usize::from(index)) {
                Some(choice) => choice,
                None => return Ok(None),
            },
        };
        next = match choice {
            Choice::Tier { of, other } => {
                match facts.tier.and_then(|tier| of.get(usize::from(tier))) {
                    Some(next) => *next,
                    None => other.ok_or(NoTier)?,
                }
            }
            Choice::Sets { of, other } => {
                let first = of.iter().find(|(set, _)| Router::is_in(*set, facts.matched));
                first.map_or(*other, |(_, next)| *next)
            }
            Choice::Attribute { slot, of, other } => {
                let value = facts.value(*slot);
                let found = value.and_then(|value| {
                    let place = of.binary_search_by(|(known, _)| (**known).cmp(value)).ok()?;
                    Some(of[place].1)
                });
                found.unwrap_or(*other)
            }
        };
    }
}

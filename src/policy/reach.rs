//! Which limits a request may be for by its routes: made ready at load, so that a request looks at
//! limits that may apply to it and at no others.

use super::handle::Limit;
/// What the sets of routes that a request is in say of a handle's limits.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    /// Limits that need no set to bring them in, of one bit each.
    anywhere: Box<[u64]>,
    /// Limits of which sets alone do not decide: a condition has to be asked.
    asked: Box<[u64]>,
    /// What each set changes, side by side.
    changes: Box<[Change]>,
    /// For each set where its changes begin, and where the last one's end.
    begins: Box<[u32]>,
}

/// What being in a set of routes does to the limits of one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Change {
    word: usize,
    /// Limits that are for its requests.
    brings: u64,
    /// Limits that are not, whatever brings them.
    takes: u64,
}

impl Reach {
    /// What is to be known of a handle's limits.
    pub(super) fn new(limits: &[Limit]) -> Self {
        let nothing = vec![0; limits.len().div_ceil(64)].into_boxed_slice();
        let (mut anywhere, mut asked) = (nothing.clone(), nothing);
        let mut of_sets: Vec<Vec<Change>> = Vec::new();
        for (index, limit) in limits.iter().enumerate() {
            let (word, bit) = (index / 64, 1 << (index % 64));
            let on = limit.on.as_ref().filter(|on| on.conditions.is_empty());
            if on.is_none() {
                anywhere[word] |= bit;
            }
            let asks_on = limit.on.is_some() && on.is_none();
            if asks_on || !limit.except.conditions.is_empty() {
                asked[word] |= bit;
            }
            let brought = on.into_iter().flat_map(|on| on.sets.ids()).map(|set| (set, bit, 0));
            let taken = limit.except.sets.ids().map(|set| (set, 0, bit));
            for (set, brings, takes) in brought.chain(taken) {
                let set = usize::from(set);
                of_sets.resize_with(of_sets.len().max(set + 1), Vec::new);
                let changes = &mut of_sets[set];
                if changes.last().is_none_or(|last| last.word != word) {
                    changes.push(Change { word, ..Change::default() });
                }
                if let Some(change) = changes.last_mut() {
                    change.brings |= brings;
                    change.takes |= takes;
                }
            }
        }
        let begins = of_sets.iter().scan(0, |end, changes| {
            *end += changes.len() as u32;
            Some(*end)
        });
        let begins = core::iter::once(0).chain(begins).collect();
        Self { anywhere, asked, changes: of_sets.concat().into(), begins }
    }

    /// The limits, by index and in order, that may be for a request in these sets of routes, and of
    /// each whether [`Limit::applies`] decides that; the others are for it.
    #[inline]
    pub(super) fn limits<'r>(&'r self, matched: &'r [u64]) -> Reached<'r> {
        let left = self.word(0, matched);
        Reached { reach: self, matched, word: 0, left, asked: self.asked(0) }
    }

    #[inline]
    fn asked(&self, word: usize) -> u64 {
        self.asked.get(word).copied().unwrap_or(0)
    }

    /// One word of those limits.
    #[inline]
    fn word(&self, word: usize, matched: &[u64]) -> u64 {
        let (mut left, mut taken) = (self.anywhere.get(word).copied().unwrap_or(0), 0);
        for (at, sets) in matched.iter().enumerate() {
            let mut sets = *sets;
            while sets != 0 {
                for change in self.changes_of(at * 64 + sets.trailing_zeros() as usize) {
                    if change.word == word {
                        left |= change.brings;
                        taken |= change.takes;
                    }
                }
                sets &= sets - 1;
            }
        }
        left & !taken
    }

    #[inline]
    fn changes_of(&self, set: usize) -> &[Change] {
        match self.begins.get(set..set + 2) {
            Some(&[from, to]) => self.changes.get(from as usize..to as usize).unwrap_or(&[]),
            _ => &[],
        }
    }
}

/// Indexes of limits.
pub(super) struct Reached<'r> {
    reach: &'r Reach,
    matched: &'r [u64],
    word: usize,
    /// What is left of the word.
    left: u64,
    /// Limits of the word of which a condition has to be asked.
    asked: u64,
}

impl Iterator for Reached<'_> {
    type Item = (usize, bool);

    #[inline]
    fn next(&mut self) -> Option<(usize, bool)> {
        while self.left == 0 {
            self.word += 1;
            if self.word >= self.reach.anywhere.len() {
                return None;
            }
            self.left = self.reach.word(self.word, self.matched);
            self.asked = self.reach.asked(self.word);
        }
        let bit = self.left.trailing_zeros() as usize;
        self.left &= self.left - 1;
        Some((self.word * 64 + bit, self.asked >> bit & 1 == 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::examples::EXAMPLES;
    use super::super::facts::Facts;
    use super::super::{Handle, Policy, Request, Source};
    use crate::engine::key::Seed;

    /// Limits for nothing, for everything, with and without conditions; more of them than a word
    /// has bits.
    fn many() -> String {
        let mut text = "schema = 1\n[api.a]\nclass.x = [\"POST /x\", \"/w/*\"]\n\
                        class.y = [\"/y/:id\", \"POST /x\"]\n[api.a.limit]\n"
            .to_owned();
        let forms = [
            "on = \"x\", ",
            "on = [\"y\", \"GET /b\"], except = \"POST /x\", ",
            "on = [\"y\", { user = \"u\" }], ",
            "except = [\"x\", { user = \"u\" }], ",
            "except = \"y\", ",
            "",
        ];
        for number in 0..130 {
            let form = forms[number % forms.len()];
            text += &format!("l{number} = {{ {form}bucket = \"9/s\", per = [\"user\"] }}\n");
        }
        text
    }

    proptest! {
        /// The limits that a request reaches, and whose conditions hold, are those that apply.
        #[test]
        fn reached_and_asked_is_applies(
            matched in prop::collection::vec(any::<u64>(), 0..4),
            sparse in any::<bool>(),
            user in prop::sample::select(vec!["u", "v"]),
        ) {
            let matched: Vec<u64> =
                matched.iter().map(|word| if sparse { word & word >> 7 & word >> 31 } else { *word }).collect();
            let many = many();
            let sources = EXAMPLES.iter().copied().chain([Source { name: "many.toml", text: &many }]);
            let policy = Policy::compile(&sources.collect::<Vec<_>>(), &Seed::new([7; 16]));
            let policy = policy.unwrap();
            for handle in policy.handles() {
                let values = vec![Some(user.as_bytes()); handle.slots().len()];
                let request = Request { values: &values, costs: &[] };
                let facts = Facts { matched: &matched, ..handle.unrouted(&request) };
                let fits = |(index, asks): (usize, bool)| {
                    let is_for_it = !asks || handle.limits[index].applies(&facts);
                    is_for_it.then_some(index)
                };
                let reached: Vec<usize> = handle.reach.limits(&matched).filter_map(fits).collect();
                let applies = |handle: &Handle, index: &usize| handle.limits[*index].applies(&facts);
                let expected: Vec<usize> =
                    (0..handle.limits.len()).filter(|index| applies(handle, index)).collect();
                prop_assert_eq!(reached, expected);
            }
        }
    }
}

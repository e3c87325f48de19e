//! Numbers that outlive a policy. Counters, caps, counts and callers know limits, APIs and handles
//! by number; a name keeps its number for as long as the instance lives, so that an edit of the
//! policy moves none of them.

use core::fmt;
use std::collections::HashMap;
use std::sync::Arc;

use crate::engine::command::LimitId;
use crate::engine::quota::Kind;

use super::Policy;
use super::handle::Rule;
use super::maxima::{HANDLE_NUMBERS_MAX, LIMITS_MAX, RULE_NUMBERS_MAX};
use super::ready::Ready;

/// Which name has which number. Numbers are given in the order in which names first occur, and
/// never taken back.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// By API, limit and window; from 1. With the kind that the limit last had.
    limits: HashMap<[Box<str>; 3], (u16, Kind)>,
    /// From 0.
    apis: HashMap<Box<str>, u16>,
    /// By API and class; from 1.
    handles: HashMap<(Box<str>, Option<Box<str>>), u32>,
}

/// Operator: too many names have come and gone since the instance started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunOut {
    /// Whose numbers they are.
    pub what: &'static str,
    /// How many there are.
    pub max: usize,
}

impl fmt::Display for RunOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, max } = self;
        write!(
            f,
            "since the start policies have named more than {max} {what}, and each name keeps its \
             number; start the daemon anew to serve this policy"
        )
    }
}

impl Numbers {
    /// Gives everything in `policy` the number that its name had before, and new names new ones.
    ///
    /// # Errors
    /// If there are no more. Neither the numbers nor the policy may be used then; the caller keeps
    /// its copy.
    pub fn assign(&mut self, policy: &mut Policy) -> Result<(), RunOut> {
        let apis = &mut self.apis;
        for limit in &mut policy.limits {
            let name = [limit.api.clone(), limit.name.clone(), limit.window.clone()];
            let next = self.limits.len() + 1;
            let (number, kind) = self.limits.entry(name).or_insert((next as u16, limit.kind));
            (*kind, limit.id) = (limit.kind, LimitId(*number));
            let number = *number;
            if next > LIMITS_MAX && usize::from(number) == next {
                return Err(RunOut { what: "limits", max: LIMITS_MAX });
            }
        }
        for handle in &mut policy.handles {
            let next = self.handles.len() + 1;
            let name = (handle.api.clone(), handle.class.clone());
            handle.number = *self.handles.entry(name).or_insert(next as u32);
            if next > HANDLE_NUMBERS_MAX && handle.number as usize == next {
                return Err(RunOut { what: "APIs and classes", max: HANDLE_NUMBERS_MAX });
            }
            let next = apis.len() as u16;
            handle.api_number = *apis.entry(handle.api.clone()).or_insert(next);
            for limit in &mut handle.limits {
                let name = [handle.api.clone(), limit.name.clone(), limit.window.clone()];
                if let Some((number, _)) = self.limits.get(&name) {
                    limit.id = LimitId(*number);
                }
            }
            handle.ready = Ready::new(&handle.limits, handle.tiers.len());
            if let Some(one) = &mut handle.one
                && let Some(limit) = handle.limits.get(usize::from(one.limit_index))
            {
                one.limit = limit.id;
            }
        }
        policy.find_places();
        Ok(())
    }

    /// Every limit that ever had a number, with the kind that it last had and the names of its API,
    /// of itself and of its window. In no order.
    pub fn limits(&self) -> impl Iterator<Item = (LimitId, Kind, &[Box<str>; 3])> {
        self.limits.iter().map(|(names, (number, kind))| (LimitId(*number), *kind, names))
    }
}

/// Numbers by which one process counts rules. Nobody else knows them, so that nodes of a cluster may
/// differ in them, and a policy is never refused for want of one.
#[derive(Clone, Debug, Default)]
pub struct RuleNumbers(HashMap<(Box<str>, &'static str, String), u16>);

impl RuleNumbers {
    /// Gives every rule the number that an API's rule of its effect and name had before, and new
    /// ones new numbers; once they are used up, the last. Rules without a code go by their places.
    pub fn assign(&mut self, policy: &mut Policy) {
        let mut of_apis: HashMap<Box<str>, Arc<[Rule]>> = HashMap::new();
        for handle in policy.handles.iter_mut().filter(|handle| !handle.rules.is_empty()) {
            let rules = of_apis.entry(handle.api.clone()).or_insert_with(|| {
                let numbered =
                    |rule: &Rule| Rule { number: self.of(&handle.api, rule), ..rule.clone() };
                handle.rules.iter().map(numbered).collect()
            });
            handle.rules = Arc::clone(rules);
        }
    }

    fn of(&mut self, api: &str, rule: &Rule) -> u16 {
        let next = self.0.len();
        let name = (Box::from(api), rule.effect.name(), rule.title());
        match self.0.get(&name) {
            Some(number) => *number,
            None if next + 1 < RULE_NUMBERS_MAX => *self.0.entry(name).or_insert(next as u16),
            None => (RULE_NUMBERS_MAX - 1) as u16,
        }
    }
}

/// One name and its number, for who keeps numbers elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Numbered {
    /// Of a limit: API, limit and window, and the kind that it last had.
    Limit([Box<str>; 3], u16, Kind),
    /// Of an API.
    Api(Box<str>, u16),
    /// Of a handle: API and class.
    Handle(Box<str>, Option<Box<str>>, u32),
}

impl Numbers {
    /// Every name that ever had a number, in the order of the numbers.
    pub fn all(&self) -> Vec<Numbered> {
        let mut limits: Vec<_> = self.limits.iter().collect();
        let mut apis: Vec<_> = self.apis.iter().collect();
        let mut handles: Vec<_> = self.handles.iter().collect();
        limits.sort_by_key(|(_, number)| **number);
        apis.sort_by_key(|(_, number)| **number);
        handles.sort_by_key(|(_, number)| **number);
        let limits = limits
            .into_iter()
            .map(|(name, (number, kind))| Numbered::Limit(name.clone(), *number, *kind));
        let apis = apis.into_iter().map(|(name, number)| Numbered::Api(name.clone(), *number));
        let handles = handles
            .into_iter()
            .map(|((api, class), number)| Numbered::Handle(api.clone(), class.clone(), *number));
        limits.chain(apis).chain(handles).collect()
    }

    /// The numbers that [`Numbers::all`] told.
    pub fn of(all: impl IntoIterator<Item = Numbered>) -> Self {
        let mut numbers = Self::default();
        for numbered in all {
            match numbered {
                Numbered::Limit(name, number, kind) => {
                    numbers.limits.insert(name, (number, kind));
                }
                Numbered::Api(name, number) => _ = numbers.apis.insert(name, number),
                Numbered::Handle(api, class, number) => {
                    numbers.handles.insert((api, class), number);
                }
            }
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Handle, Source};
    use super::*;
    use crate::engine::key::Seed;

    fn policy(text: &str) -> Policy {
        let text = format!("schema = 1\n{text}");
        Policy::compile(&[Source { name: "p", text: &text }], &Seed::new([7; 16])).unwrap()
    }

    fn ids(policy: &Policy) -> Vec<(String, u16)> {
        let of = |limit: &crate::policy::LimitInfo| {
            (format!("{}.{}.{}", limit.api, limit.name, limit.window), limit.id.0)
        };
        policy.limits().iter().map(of).collect()
    }

    #[test]
    fn a_limit_that_is_gone_still_has_its_number_and_kind() {
        let text = |limit: &str| {
            policy(&format!(
                "[api.m]\nclass.c = ['/c']\n[api.m.limit]\n{limit} = {{ on = 'c', per = ['u'], level = '9' }}\n"
            ))
        };
        let mut numbers = Numbers::default();
        for name in ["l", "k"] {
            numbers.assign(&mut text(name)).unwrap();
        }
        let mut all: Vec<_> = numbers
            .limits()
            .map(|(id, kind, [api, name, window])| (id.0, kind, [&**api, &**name, &**window]))
            .collect();
        all.sort();
        assert_eq!(all, [(1, Kind::Level, ["m", "l", ""]), (2, Kind::Level, ["m", "k", ""])]);
    }

    #[test]
    fn a_rule_keeps_its_number_by_its_code_else_by_its_place() {
        let numbered = |numbers: &mut RuleNumbers, rules: &str| -> Vec<(String, u16)> {
            let mut policy = policy(&format!(
                "[api.m]\nclass.c = ['/c']\n{rules}\n[api.m.limit]\nl = {{ bucket = '1/s' }}\n"
            ));
            numbers.assign(&mut policy);
            let of = |class| policy.handle_of("m", class).unwrap().rules().to_vec();
            assert_eq!(of(None), of(Some("c")));
            let of = of(None).into_iter();
            of.map(|rule| (format!("{} {}", rule.effect.name(), rule.title()), rule.number))
                .collect()
        };
        let mut numbers = RuleNumbers::default();
        let first = "deny = [{ when = '/a', code = 'a' }, { when = '/b' }]\n\
                     bypass = [{ when = '/d', code = 'a' }]";
        assert_eq!(
            numbered(&mut numbers, first),
            [("deny a".into(), 0), ("deny #2".into(), 1), ("bypass a".into(), 2)]
        );
        let second =
            "deny = [{ when = '/x', code = 'x' }, { when = '/y' }, { when = '/a', code = 'a' }]";
        assert_eq!(
            numbered(&mut numbers, second),
            [("deny x".into(), 3), ("deny #2".into(), 1), ("deny a".into(), 0)]
        );
        for round in 0..5 {
            let rule = |at| format!("{{ when = '/r', code = 'r{round}_{at}' }}");
            let rules: Vec<String> = (0..1000).map(rule).collect();
            let found = numbered(&mut numbers, &format!("deny = [{}]", rules.join(", ")));
            let last = (RULE_NUMBERS_MAX - 1) as u16;
            assert!(found.iter().all(|(_, number)| *number <= last));
            assert_eq!(found[999].1 == last, round == 4, "{:?}", found[999]);
        }
        assert_eq!(numbered(&mut numbers, first)[0].1, 0);
    }

    #[test]
    fn a_name_keeps_its_number_wherever_it_stands() {
        let mut numbers = Numbers::default();
        let mut first = policy(
            "[api.m]\nclass.c = ['/c']\n[api.m.limit]\nl = { on = 'c', per = ['u'], bucket = '1/s' }\n\
             n = { on = '/n', fixed = '1/min, 5/day' }",
        );
        let before = first.handle_of("m", Some("c")).unwrap().number();
        numbers.assign(&mut first).unwrap();
        assert_eq!(
            ids(&first),
            [("m.l.".into(), 1), ("m.n.minute".into(), 2), ("m.n.day".into(), 3)]
        );
        assert_eq!(first.handle_of("m", Some("c")).unwrap().number(), before);
        let mut second = policy(
            "[api.a.limit]\nx = { bucket = '1/s' }\n[api.m]\nclass.b = ['/b']\nclass.c = ['/c']\n\
             [api.m.limit]\na = { on = 'b', bucket = '2/s' }\n\
             l = { on = 'c', per = ['u'], bucket = '2/s' }\nn = { on = '/n', fixed = '5/day' }",
        );
        numbers.assign(&mut second).unwrap();
        assert_eq!(
            ids(&second),
            [("a.x.".into(), 4), ("m.a.".into(), 5), ("m.l.".into(), 1), ("m.n.day".into(), 3)]
        );
        let class = second.handle_of("m", Some("c")).unwrap();
        assert_eq!((class.number(), class.one().unwrap().limit), (before, LimitId(1)));
        assert_eq!((class.api_number(), second.handle_of("a", None).unwrap().api_number()), (0, 1));
        for handle in second.handles() {
            let found = second.handle(handle.number()).map(Handle::layout);
            assert_eq!(found, Some(handle.layout()));
            for limit in handle.limits() {
                assert_eq!(second.limit(limit.id).unwrap().name, limit.name);
            }
        }
        // What is gone has no handle, and its number is nobody else's.
        let mut third = policy("[api.a.limit]\nx = { bucket = '1/s' }");
        numbers.assign(&mut third).unwrap();
        assert!(third.handle(before).is_none());
    }

    #[test]
    fn numbers_run_out() {
        let mut numbers = Numbers::default();
        for round in 0..=LIMITS_MAX / 512 {
            let names = (0..512)
                .map(|name| format!("l{round}x{name} = {{ bucket = '1/s', mode = 'off' }}\n"));
            let mut policy = policy(&format!("[api.m.limit]\n{}", names.collect::<String>()));
            let result = numbers.clone().assign(&mut policy);
            let full = round == LIMITS_MAX / 512;
            assert_eq!(result.is_err(), full, "{round}");
            if !full {
                numbers.assign(&mut policy).unwrap();
            }
        }
    }
}

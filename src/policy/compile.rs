//! Typed policy to flat tables: names become numbers, and what no single line shows is checked.

mod answers;
mod handles;
mod limits;
mod matching;
mod routes;
mod values;

use std::sync::Arc;

use crate::engine::key::Seed;

use super::code::ErrorCode;
use super::error::{Errors, Span};
use super::fingerprint::Fingerprint;
use super::handle::{Limit, Mode, Rule, RuleEffect, Tier};
use super::matcher::Matcher;
use super::maxima::{HANDLE_LIMITS_MAX, HANDLES_MAX, POLICY_BYTES_MAX, RULES_MAX};
use super::parse::{self, ApiText, Document, LimitText, MatchText};
use super::route::SetId;
use super::{LoadErrors, Policy, Source, script};
use routes::RouteSets;

/// Compiles all `sources` into one policy.
pub(super) fn compile(sources: &[Source<'_>], seed: &Seed) -> Result<Policy, LoadErrors> {
    let mut errors = Errors::default();
    let mut policy = Policy {
        version: version(sources.iter().map(|source| source.text)),
        handles: Vec::new(),
        places: Vec::new(),
        limits: Vec::new(),
        tests: Vec::new(),
    };
    let Document { mut apis, tests } = read(sources, &mut errors);
    if sources.iter().all(|source| source.text.len() <= POLICY_BYTES_MAX) {
        // By name, so that the order in which things are written never matters.
        apis.sort_by(|a, b| a.name.value.cmp(&b.name.value));
        for pair in apis.windows(2).filter(|pair| pair[0].name.value == pair[1].name.value) {
            let message = format!("API `{}` is defined twice", pair[1].name.value);
            errors.push(ErrorCode::Duplicate, pair[1].name.span, message);
        }
        for api in &apis {
            Compiler::new(api, seed, &mut errors).compile(&mut policy);
        }
        policy.find_places();
        if errors.len() == 0 {
            policy.tests = tests
                .iter()
                .filter_map(|test| script::compile(test, &policy, sources, &mut errors))
                .collect();
        }
    }
    errors.finish(sources.iter().map(|source| (source.name, source.text)))?;
    Ok(policy)
}

pub(super) fn version<'a>(texts: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut fingerprint = Fingerprint::new();
    for text in texts {
        fingerprint.part(text.as_bytes());
    }
    fingerprint.finish()
}

fn read(sources: &[Source<'_>], errors: &mut Errors) -> Document {
    let mut all = Document::default();
    for (index, source) in sources.iter().enumerate() {
        if source.text.len() > POLICY_BYTES_MAX {
            let message =
                format!("{} bytes of policy, allowed are {POLICY_BYTES_MAX}", source.text.len());
            errors.push(ErrorCode::Maximum, Span::new(index, 0..0), message);
            continue;
        }
        let document = parse::parse(index, source.text, errors);
        all.apis.extend(document.apis);
        all.tests.extend(document.tests);
    }
    all
}

/// Compiles one API.
struct Compiler<'a> {
    text: &'a ApiText,
    seed: &'a Seed,
    errors: &'a mut Errors,
    /// Names of the classes, sorted; each is the set of routes of its index.
    classes: Vec<&'a str>,
    routes: RouteSets,
    tiers: Arc<[Tier]>,
    tier_default: Option<u16>,
    /// For each tier whether a rule denies it the whole API.
    tiers_denied: Vec<bool>,
    rules: Arc<[Rule]>,
    /// Which requests the rules are for: `when`, where no entry is any request, and `unless`.
    rule_matchers: Vec<(Option<Matcher>, Matcher)>,
    limits: Vec<ApiLimit>,
    /// Names of the attributes that anything looks at.
    attributes: Vec<String>,
}

/// A limit, each window by itself, before it stands in a handle: attributes have their indexes
/// among the API's where a handle has slots.
struct ApiLimit {
    limit: Limit,
    meter: String,
}

impl ApiLimit {
    fn decides(&self) -> bool {
        self.limit.mode == Mode::Enforce
    }
}

/// The attribute that says the customer's tier.
const TIER: &str = "tier";

/// The attribute that says whose the request is, where identities stand for accounts.
const ACCOUNT: &str = "account";

impl<'a> Compiler<'a> {
    fn new(text: &'a ApiText, seed: &'a Seed, errors: &'a mut Errors) -> Self {
        Self {
            text,
            seed,
            errors,
            classes: Vec::new(),
            routes: RouteSets::default(),
            tiers: Arc::new([]),
            tier_default: None,
            tiers_denied: Vec::new(),
            rules: Arc::new([]),
            rule_matchers: Vec::new(),
            limits: Vec::new(),
            attributes: Vec::new(),
        }
    }

    fn compile(mut self, policy: &mut Policy) {
        let text = self.text;
        if policy.handles.len() + text.classes.len() >= HANDLES_MAX {
            let message = format!("more than {HANDLES_MAX} APIs and classes");
            self.errors.push(ErrorCode::Maximum, text.name.span, message);
            return;
        }
        self.read_tiers();
        self.read_classes();
        self.read_rules();
        if !self.read_limits(policy) || self.routes.is_full() {
            return;
        }
        let answers = Arc::new(self.read_answers());
        let mut handles = vec![self.handle(None, &answers)];
        for class in 0..self.classes.len() {
            handles.push(self.handle(Some(class as SetId), &answers));
        }
        for mut handle in handles {
            handle.number = policy.handles.len() as u32 + 1;
            policy.handles.push(handle);
        }
    }

    fn read_tiers(&mut self) {
        let text = self.text;
        let tier = |tier: &parse::TierText| Tier {
            name: tier.name.value.as_str().into(),
            display: tier.display.as_ref().unwrap_or(&tier.name.value).as_str().into(),
        };
        self.tiers = text.tiers.iter().map(tier).collect();
        self.tiers_denied = vec![false; self.tiers.len()];
        if let Some(name) = &text.tier_default {
            self.tier_default = self.tier_named(name);
        }
        for name in text.identities.iter().chain(&text.log_attributes) {
            self.attribute(&name.value);
        }
    }

    fn read_classes(&mut self) {
        let text = self.text;
        let mut classes: Vec<_> = text.classes.iter().collect();
        classes.sort_by(|a, b| a.name.value.cmp(&b.name.value));
        for class in classes {
            self.classes.push(&class.name.value);
            self.routes.add_list(&class.routes, self.errors);
        }
    }

    fn read_rules(&mut self) {
        let text = self.text;
        if text.rules.len() > RULES_MAX {
            let message = format!("{} rules, allowed are {RULES_MAX}", text.rules.len());
            self.errors.push(ErrorCode::Maximum, text.name.span, message);
        }
        let mut rules = Vec::new();
        let (mut denying, mut bypassing) = (0, 0);
        for rule in text.rules.iter().take(RULES_MAX) {
            let when = self.read_matches(&rule.when);
            let unless = self.read_matches(&rule.unless);
            if rule.denies && rule.unless.is_empty() {
                self.note_denied_tiers(&rule.when);
            }
            self.rule_matchers.push((Some(when).filter(|_| !rule.when.is_empty()), unless));
            let (effect, place) = match rule.denies {
                true => (RuleEffect::Deny, &mut denying),
                false => (RuleEffect::Bypass, &mut bypassing),
            };
            *place += 1;
            rules.push(Rule {
                effect,
                status: rule.status,
                code: rule.code.as_ref().map_or("", |code| &code.value).into(),
                place: *place,
                number: 0,
            });
        }
        self.rules = rules.into();
    }

    /// Tiers to which a rule denies everything need no values.
    fn note_denied_tiers(&mut self, when: &[MatchText]) {
        for entry in when {
            let MatchText::All(all) = entry else { continue };
            let [(key, tiers)] = all.as_slice() else { continue };
            if key.value != TIER {
                continue;
            }
            for tier in tiers {
                let place = self.tiers.iter().position(|known| *known.name == *tier.value);
                if let Some(denied) = place.and_then(|place| self.tiers_denied.get_mut(place)) {
                    *denied = true;
                }
            }
        }
    }

    /// `false` if there are too many of them to go on.
    fn read_limits(&mut self, policy: &mut Policy) -> bool {
        let text = self.text;
        let mut limits: Vec<&LimitText> = text.limits.iter().collect();
        limits.sort_by(|a, b| a.name.value.cmp(&b.name.value));
        for limit in limits {
            self.read_limit(limit, policy);
        }
        let few = self.limits.len() <= HANDLE_LIMITS_MAX;
        if !few {
            let message = format!(
                "API `{}` has {} limits, allowed are {HANDLE_LIMITS_MAX}",
                text.name.value,
                self.limits.len()
            );
            self.errors.push(ErrorCode::Maximum, text.name.span, message);
        }
        few
    }

    fn attribute(&mut self, name: &str) -> u16 {
        let known = self.attributes.iter().position(|known| known == name);
        known.unwrap_or_else(|| {
            self.attributes.push(name.to_owned());
            self.attributes.len() - 1
        }) as u16
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod meaning;

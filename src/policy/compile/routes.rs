//! Sets of routes: classes, lists of routes in limits and rules, and single routes; how two sets
//! lie to each other.

use super::super::code::ErrorCode;
use super::super::error::{Errors, Span};
use super::super::maxima::ROUTES_MAX;
use super::super::parse::RouteText;
use super::super::route::{Route, SetId};

/// All sets of routes of an API.
#[derive(Default)]
pub(super) struct RouteSets {
    /// Routes of each set, classes first.
    sets: Vec<Vec<Route>>,
    count: usize,
}

/// How a set of routes lies to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// Every request of the other one is in it.
    Around,
    /// No request is in both.
    Apart,
    /// Requests are in both, such as this one.
    Across(String),
}

impl RouteSets {
    /// Whether there are more routes than may be; that has been told.
    pub(super) fn is_full(&self) -> bool {
        self.count > ROUTES_MAX
    }

    pub(super) fn len(&self) -> usize {
        self.sets.len()
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = (SetId, &Route)> {
        let sets = self.sets.iter().enumerate();
        sets.flat_map(|(set, routes)| routes.iter().map(move |route| (set as SetId, route)))
    }

    pub(super) fn routes_of(&self, set: SetId) -> &[Route] {
        self.sets.get(usize::from(set)).map_or(&[], Vec::as_slice)
    }

    /// Adds a set of routes, among which none may hide or cross another.
    pub(super) fn add_list<'t>(
        &mut self,
        list: impl IntoIterator<Item = &'t RouteText>,
        errors: &mut Errors,
    ) -> SetId {
        let list: Vec<&RouteText> = list.into_iter().collect();
        for (index, second) in list.iter().enumerate() {
            for first in &list[..index] {
                check_pair(first, second, errors);
            }
        }
        let span = list.first().map(|route| route.text.span);
        self.add(list.iter().map(|route| route.route.clone()).collect(), span, errors)
    }

    /// The set that is this route alone.
    pub(super) fn single(&mut self, route: &Route, span: Span, errors: &mut Errors) -> SetId {
        let known = self.sets.iter().position(|set| **set == [route.clone()]);
        match known {
            Some(set) => set as SetId,
            None => self.add(vec![route.clone()], Some(span), errors),
        }
    }

    fn add(&mut self, routes: Vec<Route>, span: Option<Span>, errors: &mut Errors) -> SetId {
        let full = self.is_full();
        self.count += routes.len().max(1);
        if self.is_full() {
            if !full && let Some(span) = span {
                let message = format!("more than {ROUTES_MAX} routes in lists of this API");
                errors.push(ErrorCode::Maximum, span, message);
            }
            return 0;
        }
        self.sets.push(routes);
        // There are as many sets as routes at most.
        (self.sets.len() - 1) as SetId
    }

    /// How `set` lies to `other`.
    pub(super) fn lies(&self, set: SetId, other: SetId) -> Lies {
        if set == other {
            return Lies::Around;
        }
        let (mine, theirs) = (self.routes_of(set), self.routes_of(other));
        if theirs.iter().all(|theirs| mine.iter().any(|mine| mine.covers(theirs))) {
            return Lies::Around;
        }
        let mut pairs = mine.iter().flat_map(|a| theirs.iter().map(move |b| (a, b)));
        match pairs.find_map(|(a, b)| a.overlap(b)) {
            Some(request) => Lies::Across(request),
            None => Lies::Apart,
        }
    }

    /// These sets with the narrowest first. Two of them that cross are an error: nobody could say
    /// which of them counts for the requests that are in both.
    pub(super) fn narrowest_first(
        &self,
        sets: &[(SetId, Span, String)],
        errors: &mut Errors,
    ) -> Vec<usize> {
        let mut order: Vec<usize> = Vec::new();
        for (index, (set, span, name)) in sets.iter().enumerate() {
            let mut at = order.len();
            for (place, before) in order.iter().enumerate().rev() {
                let (known, _, known_name) = &sets[*before];
                match (self.lies(*known, *set), self.lies(*set, *known)) {
                    (Lies::Around, Lies::Around) => {
                        let message = format!("`{name}` and `{known_name}` are the same requests");
                        errors.push(ErrorCode::Overlap, *span, message);
                    }
                    (Lies::Around, _) => at = place,
                    (Lies::Across(request), Lies::Across(_)) => {
                        let message = format!("`{known_name}` and `{name}` overlap");
                        let help = format!(
                            "both match `{request}`, and neither is within the other: which \
                             value counts?"
                        );
                        errors.push_with_help(ErrorCode::Overlap, *span, message, help);
                    }
                    _ => {}
                }
            }
            order.insert(at, index);
        }
        order
    }
}

fn check_pair(first: &RouteText, second: &RouteText, errors: &mut Errors) {
    let (a, b) = (&first.text.value, &second.text.value);
    let (hidden, by) = if first.route.covers(&second.route) {
        (second, a)
    } else if second.route.covers(&first.route) {
        (first, b)
    } else if let Some(request) = first.route.overlap(&second.route) {
        let message = format!("routes `{a}` and `{b}` overlap");
        let help = format!("both match `{request}`; routes of one list must not");
        errors.push_with_help(ErrorCode::Overlap, second.text.span, message, help);
        return;
    } else {
        return;
    };
    let message = format!("unreachable route `{}`", hidden.text.value);
    let help = format!("`{by}` in the same list matches all that it does");
    errors.push_with_help(ErrorCode::Unreachable, hidden.text.span, message, help);
}

//! Which routes a request takes: paths in normal form, patterns over them, and one tree of all
//! patterns of an API.
//!
//! Several patterns may match one request, and all of them count. A map that answers with the one
//! best pattern cannot say that, so the tree is walked along every branch that fits: at most once
//! for each of its nodes, without allocation.

use super::maxima::ROUTE_SEGMENTS_MAX;

/// A method and a path pattern: `POST /v1/images/:id/cancel`, `GET *`, `/prompt/*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// `None` is any method.
    method: Option<String>,
    segments: Vec<Segment>,
    /// Whether any further segments may follow, none included.
    rest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(Vec<u8>),
    /// Exactly one segment, called by this name.
    Any(String),
}

/// Why a text is no route, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RouteError {
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl RouteError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl Route {
    /// Whether a text is meant as a route rather than as the name of a class.
    pub(super) fn is_meant(text: &str) -> bool {
        text.contains([' ', '/', '*'])
    }

    /// Reads a route.
    pub(super) fn parse(text: &str) -> Result<Self, RouteError> {
        let (method, pattern) = match text.split_once(' ') {
            Some((method, pattern)) => (Some(method), pattern.trim_start()),
            None => (None, text),
        };
        if let Some(method) = method {
            check_method(method)?;
        }
        let method = method.map(str::to_owned);
        if pattern == "*" {
            return Ok(Self { method, segments: Vec::new(), rest: true });
        }
        if !pattern.starts_with('/') {
            return Err(RouteError::new(format!("`{pattern}` is no path pattern"))
                .with_help("a pattern is `*` or begins with `/`"));
        }
        let mut scratch = Vec::new();
        let normal = normalize(pattern.as_bytes(), &mut scratch);
        if normal != pattern.as_bytes() {
            let normal = String::from_utf8_lossy(normal);
            return Err(RouteError::new(format!(
                "`{pattern}` matches no request: paths are put in normal form first"
            ))
            .with_help(format!("the normal form is `{normal}`")));
        }
        let mut segments = Vec::new();
        let mut rest = false;
        for segment in pattern[1..].split('/').filter(|segment| !segment.is_empty()) {
            if rest {
                return Err(RouteError::new("`*` may only stand at the end of a pattern"));
            }
            if segment == "*" {
                rest = true;
            } else if let Some(name) = segment.strip_prefix(':') {
                let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
                if name.is_empty() || !name.chars().all(fine) {
                    return Err(RouteError::new(format!("`{segment}` lacks a plain name"))
                        .with_help("a segment that varies is written as `:id`"));
                }
                segments.push(Segment::Any(name.to_owned()));
            } else if segment.contains('*') {
                return Err(RouteError::new(format!("`*` within the segment `{segment}`"))
                    .with_help("`*` is the whole rest of a path, `:name` one segment"));
            } else {
                segments.push(Segment::Literal(segment.as_bytes().to_vec()));
            }
        }
        if segments.len() > ROUTE_SEGMENTS_MAX {
            return Err(RouteError::new(format!(
                "{} segments, allowed are {ROUTE_SEGMENTS_MAX}",
                segments.len()
            )));
        }
        Ok(Self { method, segments, rest })
    }

    /// The route as it is written.
    pub(super) fn text(&self) -> String {
        let mut out = self.method.as_ref().map_or_else(String::new, |method| format!("{method} "));
        for segment in &self.segments {
            out.push('/');
            match segment {
                Segment::Literal(literal) => out.push_str(&String::from_utf8_lossy(literal)),
                Segment::Any(name) => {
                    out.push(':');
                    out.push_str(name);
                }
            }
        }
        match (self.segments.is_empty(), self.rest) {
            (true, true) => out.push('*'),
            (true, false) => out.push('/'),
            (false, true) => out.push_str("/*"),
            (false, false) => {}
        }
        out
    }

    /// Where among a path's segments the one is that is called `name`, from 0.
    pub(super) fn place_of(&self, name: &str) -> Option<usize> {
        let is_called = |segment: &Segment| matches!(segment, Segment::Any(known) if known == name);
        self.segments.iter().position(is_called)
    }

    /// Whether every request that takes `other` takes this route too.
    pub(super) fn covers(&self, other: &Self) -> bool {
        if self.method.is_some() && self.method != other.method {
            return false;
        }
        if other.rest && !self.rest {
            return false;
        }
        let (mine, theirs) = (&self.segments, &other.segments);
        let length_fits =
            if self.rest { mine.len() <= theirs.len() } else { mine.len() == theirs.len() };
        length_fits
            && mine.iter().zip(theirs).all(|(mine, theirs)| match (mine, theirs) {
                (Segment::Any(_), _) => true,
                (Segment::Literal(mine), Segment::Literal(theirs)) => mine == theirs,
                (Segment::Literal(_), Segment::Any(_)) => false,
            })
    }

    /// A request that takes both routes, if there is one.
    pub(super) fn overlap(&self, other: &Self) -> Option<String> {
        let method = match (&self.method, &other.method) {
            (Some(a), Some(b)) if a != b => return None,
            (Some(method), _) | (None, Some(method)) => method,
            (None, None) => "GET",
        };
        let (a, b) = (&self.segments, &other.segments);
        let reaches = |route: &Self, length: usize| route.rest || route.segments.len() == length;
        let length = a.len().max(b.len());
        if !reaches(self, length) || !reaches(other, length) {
            return None;
        }
        let mut request = format!("{method} ");
        for index in 0..length {
            let literal = |segments: &[Segment]| match segments.get(index) {
                Some(Segment::Literal(literal)) => Some(literal.clone()),
                _ => None,
            };
            let segment = match (literal(a), literal(b)) {
                (Some(a), Some(b)) if a != b => return None,
                (Some(literal), _) | (None, Some(literal)) => literal,
                (None, None) => b"x".to_vec(),
            };
            request.push('/');
            request.push_str(&String::from_utf8_lossy(&segment));
        }
        if length == 0 {
            request.push('/');
        }
        Some(request)
    }
}

fn check_method(method: &str) -> Result<(), RouteError> {
    if method == "HEAD" {
        return Err(
            RouteError::new("`HEAD` counts as `GET`").with_help("write `GET`; it matches both")
        );
    }
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
        let error = RouteError::new(format!("`{method}` is no method"));
        let upper = method.to_ascii_uppercase();
        return Err(if !method.is_empty() && method.bytes().all(|b| b.is_ascii_alphabetic()) {
            error.with_help(format!("methods are upper case: `{upper}`"))
        } else {
            error
        });
    }
    Ok(())
}

/// A path in the form that patterns see: cut at `?`; escapes of unreserved characters decoded, the
/// hex digits of others in upper case, a `%` that escapes nothing escaped itself; empty and dot
/// segments folded; no slash at the end; one at the beginning.
///
/// A path that is normal already comes back as it is; any other is written to `scratch`.
pub(super) fn normalize<'a>(path: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
    if is_normal(path) {
        return path;
    }
    scratch.clear();
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    let mut rest = &path[..end];
    while !rest.is_empty() {
        let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        push_segment(&rest[..length], scratch);
        rest = rest.get(length + 1..).unwrap_or_default();
    }
    if scratch.is_empty() {
        scratch.push(b'/');
    }
    scratch
}

fn push_segment(segment: &[u8], out: &mut Vec<u8>) {
    if segment.is_empty() {
        return;
    }
    let start = out.len();
    out.push(b'/');
    let mut rest = segment;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        match tail {
            [high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest = after;
                let decoded = hex(*high) << 4 | hex(*low);
                if is_unreserved(decoded) {
                    out.push(decoded);
                } else {
                    out.extend([b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]);
                }
            }
            _ => out.extend(b"%25"),
        }
    }
    match &out[start..] {
        b"/." => out.truncate(start),
        b"/.." => {
            out.truncate(start);
            let parent = out.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            out.truncate(parent);
        }
        _ => {}
    }
}

fn is_normal(path: &[u8]) -> bool {
    let [b'/', rest @ ..] = path else { return false };
    if rest.is_empty() {
        return true;
    }
    // Length of the segment so far, and whether it has held nothing but dots.
    let (mut length, mut dots) = (0usize, true);
    let mut index = 0;
    while let Some(byte) = rest.get(index) {
        match byte {
            b'?' => return false,
            b'/' => {
                if length == 0 || (dots && length <= 2) {
                    return false;
                }
                (length, dots) = (0, true);
                index += 1;
                continue;
            }
            b'%' => {
                let kept = matches!(
                    (rest.get(index + 1), rest.get(index + 2)),
                    (Some(high), Some(low)) if is_upper_hex(*high) && is_upper_hex(*low)
                        && !is_unreserved(hex(*high) << 4 | hex(*low))
                );
                if !kept {
                    return false;
                }
                dots = false;
            }
            b'.' => {}
            _ => dots = false,
        }
        length += 1;
        index += 1;
    }
    length > 0 && !(dots && length <= 2)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn is_upper_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'F')
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => 0,
    }
}

/// Number of a set of routes: a class, or the routes that one limit lists.
pub(super) type SetId = u16;

/// Sets of routes, one bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sets(Box<[u64]>);

impl Sets {
    pub(super) fn new(ids: impl IntoIterator<Item = SetId>) -> Self {
        let mut words = Vec::new();
        for id in ids {
            let word = usize::from(id / 64);
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            words[word] |= 1 << (id % 64);
        }
        Self(words.into())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Whether this set is one of them.
    pub(super) fn has(&self, id: SetId) -> bool {
        Router::is_in(id, &self.0)
    }

    /// Their numbers.
    pub(super) fn ids(&self) -> impl Iterator<Item = SetId> {
        let bits = self.0.len() * 64;
        (0..bits).map(|id| id as SetId).filter(|id| self.has(*id))
    }

    /// One bit for each of the sets from 0.
    pub(super) fn bits(&self) -> &[u64] {
        &self.0
    }

    /// Whether any of these sets is in `matched`.
    pub(super) fn meet(&self, matched: &[u64]) -> bool {
        self.0.iter().zip(matched).any(|(mine, matched)| mine & matched != 0)
    }
}

/// All routes of an API as one tree.
#[derive(Clone, Debug)]
pub(super) struct Router {
    methods: Vec<Box<[u8]>>,
    nodes: Vec<Branch>,
    /// Words that hold one bit for each set.
    words: usize,
}

#[derive(Clone, Debug, Default)]
struct Branch {
    /// Branches under a literal segment, sorted.
    literals: Vec<(Box<[u8]>, u32)>,
    /// The branch under any one segment.
    any: Option<u32>,
    /// Routes that end here.
    ends: Vec<End>,
    /// Routes that match here and all that follows.
    rests: Vec<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// Index in the router's methods; `None` is any.
    method: Option<u16>,
    set: SetId,
}

impl Router {
    /// The tree of `routes`, each with the set that it belongs to, of which there are `sets`.
    pub(super) fn new<'a>(
        sets: usize,
        routes: impl IntoIterator<Item = (SetId, &'a Route)>,
    ) -> Self {
        let words = sets.div_ceil(64);
        let mut router = Self { methods: Vec::new(), nodes: vec![Branch::default()], words };
        for (set, route) in routes {
            router.add(set, route);
        }
        router
    }

    /// Words that hold one bit for each set.
    pub(super) fn words(&self) -> usize {
        self.words
    }

    /// Whether a set is among those that a request matched.
    #[inline]
    pub(super) fn is_in(set: SetId, matched: &[u64]) -> bool {
        matched.get(usize::from(set / 64)).is_some_and(|word| word >> (set % 64) & 1 == 1)
    }

    fn add(&mut self, set: SetId, route: &Route) {
        let method = route.method.as_ref().map(|method| {
            let known = self.methods.iter().position(|known| **known == *method.as_bytes());
            known.unwrap_or_else(|| {
                self.methods.push(method.as_bytes().into());
                self.methods.len() - 1
            }) as u16
        });
        let mut node = 0;
        for segment in &route.segments {
            let fresh = self.nodes.len() as u32;
            let next = match segment {
                Segment::Literal(literal) => {
                    let literals = &mut self.nodes[node].literals;
                    match literals.binary_search_by(|(known, _)| (**known).cmp(literal)) {
                        Ok(index) => literals[index].1,
                        Err(index) => {
                            literals.insert(index, (literal.as_slice().into(), fresh));
                            fresh
                        }
                    }
                }
                Segment::Any(_) => *self.nodes[node].any.get_or_insert(fresh),
            };
            if next == fresh {
                self.nodes.push(Branch::default());
            }
            node = next as usize;
        }
        let end = End { method, set };
        let node = &mut self.nodes[node];
        if route.rest { node.rests.push(end) } else { node.ends.push(end) }
    }

    /// Which sets a request with `method` and the normal `path` is in, as bits in `matched`.
    pub(super) fn matches(&self, method: &[u8], path: &[u8], matched: &mut Vec<u64>) {
        matched.clear();
        matched.resize(self.words, 0);
        let method = if method == b"HEAD" { b"GET" } else { method };
        let method = self.methods.iter().position(|known| **known == *method);
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let rest = (!path.is_empty()).then_some(path);
        self.walk(0, rest, method.map(|index| index as u16), matched);
    }

    /// As [`Router::matches`], for one method, or for each that makes a difference if it is empty.
    pub(super) fn matches_of(&self, method: &[u8], path: &[u8]) -> Vec<Vec<u64>> {
        let any = self.methods.iter().map(|method| &**method).chain([&b""[..]]);
        let methods: Vec<&[u8]> = if method.is_empty() { any.collect() } else { vec![method] };
        let mut found = Vec::new();
        for method in methods {
            let mut matched = Vec::new();
            self.matches(method, path, &mut matched);
            if !found.contains(&matched) {
                found.push(matched);
            }
        }
        found
    }

    /// Goes down every branch that fits `rest`. Depth is at most `ROUTE_SEGMENTS_MAX`.
    fn walk(&self, node: u32, rest: Option<&[u8]>, method: Option<u16>, matched: &mut [u64]) {
        let node = &self.nodes[node as usize];
        mark(&node.rests, method, matched);
        let Some(rest) = rest else {
            mark(&node.ends, method, matched);
            return;
        };
        if node.literals.is_empty() && node.any.is_none() {
            return;
        }
        let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let (segment, tail) = (&rest[..length], rest.get(length + 1..));
        if let Ok(index) = node.literals.binary_search_by(|(known, _)| (**known).cmp(segment)) {
            self.walk(node.literals[index].1, tail, method, matched);
        }
        if let Some(any) = node.any {
            self.walk(any, tail, method, matched);
        }
    }
}

fn mark(ends: &[End], method: Option<u16>, matched: &mut [u64]) {
    for end in ends {
        if end.method.is_none() || end.method == method {
            matched[usize::from(end.set / 64)] |= 1 << (end.set % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(path: &str) -> String {
        String::from_utf8(normalize(path.as_bytes(), &mut Vec::new()).to_vec()).unwrap()
    }

    #[test]
    fn paths_come_into_normal_form() {
        for (path, expected) in [
            ("/v1/images", "/v1/images"),
            ("/v1/images?size=1&x=/../y", "/v1/images"),
            ("/v1/images/", "/v1/images"),
            ("//v1///images//", "/v1/images"),
            ("/v1/./images/.", "/v1/images"),
            ("/v1/x/../images", "/v1/images"),
            ("/../../v1", "/v1"),
            ("/v1/..", "/"),
            ("/v1/%69mages", "/v1/images"),
            ("/v1/%2E%2e/v2", "/v2"),
            ("/v1/a%2fb", "/v1/a%2Fb"),
            ("/V1/Images", "/V1/Images"),
            ("/100%", "/100%25"),
            ("/%%34%31", "/%2541"),
            ("/...", "/..."),
            ("", "/"),
            ("/", "/"),
            ("?x", "/"),
            ("v1/images", "/v1/images"),
            ("*", "/*"),
        ] {
            assert_eq!(normal(path), expected, "{path}");
        }
    }

    #[test]
    fn a_normal_path_is_not_copied() {
        for path in ["/", "/v1/images", "/a%20b/c..d/...", "/.x/y."] {
            let mut scratch = Vec::new();
            assert_eq!(normalize(path.as_bytes(), &mut scratch), path.as_bytes());
            assert_eq!(scratch.capacity(), 0, "{path}");
        }
    }

    fn matched(routes: &[&str], method: &str, path: &str) -> Vec<usize> {
        let parsed: Vec<Route> = routes.iter().map(|text| Route::parse(text).unwrap()).collect();
        let with_sets = parsed.iter().enumerate().map(|(set, route)| (set as u16, route));
        let router = Router::new(routes.len(), with_sets);
        let (mut scratch, mut words) = (Vec::new(), Vec::new());
        let path = normalize(path.as_bytes(), &mut scratch);
        router.matches(method.as_bytes(), path, &mut words);
        (0..routes.len()).filter(|set| words[set / 64] & (1 << (set % 64)) != 0).collect()
    }

    #[test]
    fn all_routes_that_fit_match_and_none_hides_another() {
        let routes = ["/a/:x", "/a/b", "/a/b/*", "/:y/b", "GET *", "POST /a/b", "/a/:x/c", "*"];
        assert_eq!(matched(&routes, "GET", "/a/b"), [0, 1, 2, 3, 4, 7]);
        assert_eq!(matched(&routes, "HEAD", "/a/b/c"), [2, 4, 6, 7]);
        assert_eq!(matched(&routes, "POST", "/a/b/?q"), [0, 1, 2, 3, 5, 7]);
        assert_eq!(matched(&routes, "PUT", "/z/c"), [7]);
        assert_eq!(matched(&routes, "PUT", "/"), [7]);
    }

    #[test]
    fn a_star_matches_an_empty_rest_and_a_name_does_not() {
        assert_eq!(matched(&["/prompt/*", "/prompt/:id"], "GET", "/prompt/"), [0]);
        assert_eq!(matched(&["/prompt/*", "/prompt/:id"], "GET", "/prompt"), [0]);
        assert_eq!(matched(&["/prompt/*", "/prompt/:id"], "GET", "/prompt/a/b"), [0]);
        assert_eq!(matched(&["/prompt/*", "/prompt/:id"], "GET", "/prompts"), [0usize; 0]);
    }

    #[test]
    fn what_is_no_route_says_why() {
        for (text, message) in [
            ("get /x", "`get` is no method"),
            ("HEAD /x", "`HEAD` counts as `GET`"),
            ("GET x", "`x` is no path pattern"),
            ("/a/*/b", "`*` may only stand at the end of a pattern"),
            ("/a/b*", "`*` within the segment `b*`"),
            ("/a/:", "`:` lacks a plain name"),
            ("/a//b", "`/a//b` matches no request: paths are put in normal form first"),
            ("/a/b/", "`/a/b/` matches no request: paths are put in normal form first"),
        ] {
            assert_eq!(Route::parse(text).unwrap_err().message, message);
        }
    }

    /// The language's rule for one route, as plainly as it can be said.
    fn naive(route: &Route, method: &str, path: &str) -> bool {
        let method = if method == "HEAD" { "GET" } else { method };
        if route.method.as_ref().is_some_and(|wanted| wanted != method) {
            return false;
        }
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        if segments.len() < route.segments.len()
            || (segments.len() > route.segments.len() && !route.rest)
        {
            return false;
        }
        route.segments.iter().zip(segments).all(|(segment, found)| match segment {
            Segment::Literal(literal) => literal == found.as_bytes(),
            Segment::Any(_) => true,
        })
    }

    fn route_text() -> impl Strategy<Value = String> {
        let segment = prop::sample::select(vec!["a", "b", "c", ":x", ":y"]);
        let method = prop::sample::select(vec!["", "GET ", "POST "]);
        (method, prop::collection::vec(segment, 0..4), any::<bool>()).prop_map(
            |(method, segments, rest)| {
                let mut text = format!("{method}/{}", segments.join("/"));
                if rest {
                    text.push_str(if segments.is_empty() { "*" } else { "/*" });
                }
                text
            },
        )
    }

    fn request() -> impl Strategy<Value = (&'static str, String)> {
        let segment = prop::sample::select(vec!["a", "b", "c", "d"]);
        let method = prop::sample::select(vec!["GET", "HEAD", "POST", "PUT"]);
        (method, prop::collection::vec(segment, 0..5))
            .prop_map(|(method, segments)| (method, format!("/{}", segments.join("/"))))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn normal_form_is_stable(path in "[a-c/.%0-9A-Fa-f?]{0,24}") {
            let once = normal(&path);
            prop_assert!(is_normal(once.as_bytes()), "{} -> {}", path, once);
            prop_assert_eq!(normal(&once), once);
        }

        #[test]
        fn normal_form_takes_any_bytes(path in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut scratch = Vec::new();
            let once = normalize(&path, &mut scratch).to_vec();
            prop_assert!(is_normal(&once));
        }

        #[test]
        fn the_tree_agrees_with_the_rule(
            routes in prop::collection::vec(route_text(), 1..80), (method, path) in request(),
        ) {
            let texts: Vec<&str> = routes.iter().map(String::as_str).collect();
            let expected: Vec<usize> = (0..texts.len())
                .filter(|index| naive(&Route::parse(texts[*index]).unwrap(), method, &path))
                .collect();
            prop_assert_eq!(matched(&texts, method, &path), expected);
        }

        #[test]
        fn covering_and_overlap_mean_what_they_say(
            a in route_text(), b in route_text(), (method, path) in request(),
        ) {
            let (a, b) = (Route::parse(&a).unwrap(), Route::parse(&b).unwrap());
            let (in_a, in_b) = (naive(&a, method, &path), naive(&b, method, &path));
            prop_assert!(!a.covers(&b) || !in_b || in_a);
            match a.overlap(&b) {
                None => prop_assert!(!(in_a && in_b)),
                Some(example) => {
                    let (method, path) = example.split_once(' ').unwrap();
                    prop_assert!(naive(&a, method, path) && naive(&b, method, path));
                }
            }
        }
    }
}

//! Headers, texts and bodies.

use super::super::answer::{Answers, Feed, Header, Keyed};
use super::super::code::ErrorCode;
use super::super::error::{Errors, did_you_mean};
use super::super::maxima::{HEADERS_MAX, STATIC_HEADERS_MAX};
use super::super::parse::{HeaderText, HeadersText, KeyedText};
use super::super::presets::{Piece, PresetFeed};
use super::super::template::{Names, Placeholder, Template, limit_named};
use super::super::tree::Text;
use super::super::values::OTHERS;
use super::{Compiler, TIER};

impl Compiler<'_> {
    pub(super) fn read_answers(&mut self) -> Answers {
        let text = self.text;
        let limits: Vec<(String, String)> = self
            .limits
            .iter()
            .map(|of| (of.limit.name.to_string(), of.limit.window.to_string()))
            .collect();
        let text_names: Vec<String> =
            text.texts.iter().map(|(name, _)| name.value.clone()).collect();
        let codes: Vec<&str> = self.rules.iter().map(|rule| &*rule.code).collect();
        let mut shows_tier = false;
        let mut names = Names {
            limits: &limits,
            attributes: &mut self.attributes,
            incomplete: text.incomplete,
            texts: &[],
            has_tiers: !self.tiers.is_empty(),
            shows_tier: &mut shows_tier,
        };
        let errors = &mut *self.errors;
        // A text shows no other text.
        let texts: Vec<Keyed> = text
            .texts
            .iter()
            .map(|(_, keyed)| keyed_of(keyed, &codes, &mut names, errors, Template::text))
            .collect();
        names.texts = &text_names;
        let (mut headers, feeds) = of_preset(&text.headers, &names, errors);
        let mut read = |of: &HeaderText| {
            (of.name.value.clone(), Template::header(&of.value, &mut names, errors))
        };
        for (name, template) in text.headers.always.iter().map(&mut read) {
            header_named(&mut headers, &name).always = template;
        }
        for (name, template) in text.headers.denied.iter().map(&mut read) {
            header_named(&mut headers, &name).denied = template;
        }
        let retry_after = Template::header_value(Placeholder::RetryAfter);
        let no_store = Template::header_text("no-store");
        for (name, template) in [("Retry-After", retry_after), ("Cache-Control", no_store)] {
            header_named(&mut headers, name).denied.get_or_insert(template);
        }
        let constant = headers.iter().filter(|h| h.constant_on_denial().is_some()).count();
        if constant > STATIC_HEADERS_MAX {
            let message =
                format!("{constant} headers of constant value, allowed are {STATIC_HEADERS_MAX}");
            errors.push(ErrorCode::Maximum, text.name.span, message);
        }
        if headers.len() > HEADERS_MAX {
            let message = format!("{} headers, allowed are {HEADERS_MAX}", headers.len());
            errors.push(ErrorCode::Maximum, text.name.span, message);
        }
        let bodies = keyed_of(&text.body, &codes, &mut names, errors, Template::json);
        if shows_tier {
            self.attribute(TIER);
        }
        Answers { headers, feeds, texts, bodies, shows_tier }
    }
}

/// The headers of the preset, and which limits feed them.
fn of_preset(
    text: &HeadersText,
    names: &Names<'_>,
    errors: &mut Errors,
) -> (Vec<Header>, Vec<Vec<Feed>>) {
    let mut feeds_of = |list: &[Text]| -> Vec<Feed> {
        list.iter().filter_map(|name| feed(name, names, errors)).collect()
    };
    let alone = text.from.iter().find(|(role, _)| role.is_none());
    let from = alone.map_or_else(Vec::new, |(_, list)| feeds_of(list));
    let role_feeds: Vec<(String, Vec<Feed>)> = text
        .from
        .iter()
        .filter_map(|(role, list)| Some((role.as_ref()?.value.clone(), feeds_of(list))))
        .collect();
    let of_window = |window: &str| -> Vec<Feed> {
        let has_window = |index: &u16| {
            names.limits.get(usize::from(*index)).is_some_and(|(_, known)| known == window)
        };
        let named = from.iter().filter_map(|feed| match feed {
            Feed::Limit(limit) => Some(*limit),
            Feed::Binding => None,
        });
        let all = 0..names.limits.len() as u16;
        match from.is_empty() || from.contains(&Feed::Binding) {
            true => all.filter(has_window).map(Feed::Limit).collect(),
            false => named.filter(has_window).map(Feed::Limit).collect(),
        }
    };
    let first = if from.is_empty() { vec![Feed::Binding] } else { from.clone() };
    let mut feeds = vec![first];
    let mut headers = Vec::new();
    for of_preset in text.preset.iter().flat_map(|preset| preset.headers) {
        let fed = match of_preset.feed {
            PresetFeed::From => Some(0),
            PresetFeed::Role(role) => {
                let list = role_feeds.iter().find(|(known, _)| known == role);
                list.map(|(_, list)| place_of(&mut feeds, list.clone()))
            }
            PresetFeed::Window(window) => {
                let list = of_window(window);
                (!list.is_empty()).then(|| place_of(&mut feeds, list))
            }
        };
        let Some(fed) = fed else { continue };
        let pieces = of_preset.value.iter().map(|piece| match *piece {
            Piece::Text(text) => Ok(text),
            Piece::Field(field) => Err(Placeholder::Fed(fed, field)),
            Piece::Reset(field) => Err(Placeholder::Fed(fed, text.reset.unwrap_or(field))),
            Piece::Name => Err(Placeholder::FedName(fed)),
            Piece::Item => Err(Placeholder::FedItem(fed)),
            Piece::Policies(form) => Err(Placeholder::Policies(form)),
        });
        let always = Some(Template::header_parts(pieces));
        headers.push(Header { name: of_preset.name.into(), always, denied: None });
    }
    (headers, feeds)
}

fn place_of(feeds: &mut Vec<Vec<Feed>>, list: Vec<Feed>) -> u16 {
    let known = feeds.iter().position(|known| *known == list);
    known.unwrap_or_else(|| {
        feeds.push(list);
        feeds.len() - 1
    }) as u16
}

/// Texts by what denies: a window of a limit before the limit, that before any window of the name.
fn keyed_of(
    text: &KeyedText,
    codes: &[&str],
    names: &mut Names<'_>,
    errors: &mut Errors,
    read: impl Fn(&Text, &mut Names<'_>, &mut Errors) -> Option<Template>,
) -> Keyed {
    let mut templates = Vec::new();
    let mut keys: Vec<(Option<&str>, u16)> = Vec::new();
    for (key, value) in text {
        if let Some(key) = key {
            check_key(key, codes, names, errors);
        }
        if let Some(template) = read(value, names, errors) {
            let all = key.as_ref().is_none_or(|key| key.value == OTHERS);
            let key = key.as_ref().map(|key| key.value.as_str()).filter(|_| !all);
            keys.push((key, templates.len() as u16));
            templates.push(template);
        }
    }
    let find = |name: &str| {
        let found = keys.iter().find(|(key, _)| *key == Some(name));
        found.map(|(_, index)| *index)
    };
    let other = keys.iter().find(|(key, _)| key.is_none()).map(|(_, index)| *index);
    let of_limit = |(limit, window): &(String, String)| {
        let windowed = (!window.is_empty()).then(|| find(&format!("{limit}.{window}"))).flatten();
        let of_window = || (!window.is_empty()).then(|| find(window)).flatten();
        windowed.or_else(|| find(limit)).or_else(of_window).or(other)
    };
    let of_code = |code: &&str| (!code.is_empty()).then(|| find(code)).flatten().or(other);
    Keyed {
        by_limit: names.limits.iter().map(of_limit).collect(),
        by_rule: codes.iter().map(of_code).collect(),
        templates,
    }
}

fn check_key(key: &Text, codes: &[&str], names: &Names<'_>, errors: &mut Errors) {
    let name = key.value.as_str();
    let limits = || names.limits.iter();
    let known = name == OTHERS
        || codes.contains(&name)
        || match name.split_once('.') {
            Some((limit, window)) => limits().any(|(l, w)| l == limit && w == window),
            None => limits().any(|(limit, window)| limit == name || window == name),
        };
    if known || names.incomplete {
        return;
    }
    let whole: Vec<String> = limits().map(|(limit, window)| format!("{limit}.{window}")).collect();
    let candidates = limits()
        .flat_map(|(limit, window)| [limit.as_str(), window.as_str()])
        .chain(whole.iter().map(String::as_str))
        .chain(codes.iter().copied());
    let help = did_you_mean(name, candidates).unwrap_or_else(|| {
        "a key is a limit, LIMIT.WINDOW, a window, the code of a rule, or \"*\"".to_owned()
    });
    errors.push_with_help(
        ErrorCode::UnknownLimit,
        key.span,
        format!("nothing is called `{name}` that denies"),
        help,
    );
}

/// The header of that name, added if it is new.
fn header_named<'h>(headers: &'h mut Vec<Header>, name: &str) -> &'h mut Header {
    let known = headers.iter().position(|header| header.name.eq_ignore_ascii_case(name));
    let index = known.unwrap_or_else(|| {
        headers.push(Header { name: name.into(), always: None, denied: None });
        headers.len() - 1
    });
    &mut headers[index]
}

/// What an entry of `from` means: `binding`, `LIMIT` or `LIMIT.WINDOW`.
fn feed(text: &Text, names: &Names<'_>, errors: &mut Errors) -> Option<Feed> {
    if text.value == "binding" {
        return Some(Feed::Binding);
    }
    let (limit, window) = match text.value.split_once('.') {
        Some((limit, window)) => (limit, Some(window)),
        None => (text.value.as_str(), None),
    };
    match limit_named(limit, window, names) {
        Ok(limit) => Some(Feed::Limit(limit)),
        Err((message, Some(help))) => {
            errors.push_with_help(ErrorCode::UnknownLimit, text.span, message, help);
            None
        }
        Err((message, None)) => {
            errors.push(ErrorCode::UnknownLimit, text.span, message);
            None
        }
    }
}

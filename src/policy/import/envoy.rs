//! Rules of envoyproxy/ratelimit: a tree of descriptors by key and value, with a rate at some.
//!
//! A rule there is for the descriptors that come down to it exactly: all of its keys in their order
//! and no more, at each level by the entry that fits best (the value, then a value with `*` in the
//! order of the file, then the key alone). The attribute `descriptor`, which the door makes of a
//! descriptor's keys, and `except` say the same here.

use super::super::template::is_name;
use super::names::attribute_name;
use super::yaml::{Node, Value, read};
use super::{Imported, Note};

/// Keys that the door keeps for itself, or the language: no attribute can be called so.
const KEPT: [&str; 6] = ["limit", "permit", "settle", "tier", "account", "descriptor"];

/// Names that no limit may have.
const NO_LIMIT: [&str; 5] = ["binding", "attr", "text", "tier", "retry_after"];

/// The longest name of a limit that is made here, so that a number fits behind it.
const NAME_BYTES: usize = 56;

/// Rules of one domain, as YAML, to a policy with one API of the domain's name.
///
/// # Errors
/// Where the rules are wrong.
pub fn envoy(text: &str) -> Result<Imported, Note> {
    let root = read(text)?;
    let mut import = Import { rules: Vec::new(), notes: Vec::new(), replaced: Vec::new() };
    let mut root = Fields::of(&root, "the file")?;
    let domain = match root.take("domain") {
        Some(node) => text_of(node, "domain")?,
        None => return Err(note(root.line, "`domain` is missing")),
    };
    if let Some(descriptors) = root.take("descriptors") {
        import.walk(descriptors, &[])?;
    }
    for key in root.rest() {
        import.note(key.line, format!("`{}` has no equal", shown(&key.value)));
    }
    let mut api = attribute_name(&domain, 0).into_owned();
    if api == "inline" {
        api.push('_');
    }
    if api != domain {
        let text =
            format!("`{domain}` cannot be the name of an API: have Envoy say domain `{api}`");
        import.note(root.line, text);
    }
    import.tell_replaced();
    let policy = import.write(&api, &domain);
    import.notes.sort_by_key(|note| note.line);
    Ok(Imported { policy, notes: import.notes })
}

struct Import {
    rules: Vec<Rule>,
    notes: Vec<Note>,
    /// Names of rules that another takes the place of, by the line that says so.
    replaced: Vec<(usize, String)>,
}

/// One level of a rule.
#[derive(Clone)]
struct Level {
    key: String,
    fits: Fits,
    /// Values of its neighbours, which fit better.
    except: Vec<String>,
    /// Whether all values of a pattern have one counter.
    shares: bool,
}

#[derive(Clone, PartialEq, Eq)]
enum Fits {
    Any,
    Value(String),
    Pattern(String),
}

struct Rule {
    levels: Vec<Level>,
    name: Option<String>,
    rate: Rate,
    shadow: bool,
}

enum Rate {
    Unlimited,
    /// Units and window, as a policy writes it.
    Fixed(u64, &'static str),
}

impl Import {
    fn note(&mut self, line: usize, text: impl Into<String>) {
        self.notes.push(note(line, text));
    }

    fn walk(&mut self, list: &Node, above: &[Level]) -> Result<(), Note> {
        let Value::List(list) = &list.value else {
            return Err(note(list.line, "`descriptors` is no list"));
        };
        let mut entries = Vec::new();
        for node in list {
            let mut fields = Fields::of(node, "a descriptor")?;
            let key = match fields.take("key") {
                Some(node) => text_of(node, "key")?,
                None => return Err(note(node.line, "a descriptor without `key`")),
            };
            let value = fields.take("value").map(|node| text_of(node, "value")).transpose()?;
            let fits = match value.filter(|value| !value.is_empty()) {
                None => Fits::Any,
                Some(value) if value.contains('*') => Fits::Pattern(value),
                Some(value) => Fits::Value(value),
            };
            let twice =
                entries.iter().any(|(_, known, fitted, _)| (known, fitted) == (&key, &fits));
            if twice {
                return Err(note(node.line, format!("key `{key}` comes twice with one value")));
            }
            entries.push((node.line, key, fits, fields));
        }
        let siblings: Vec<(String, Fits)> =
            entries.iter().map(|(_, key, fits, _)| (key.clone(), fits.clone())).collect();
        for (place, (line, key, fits, fields)) in entries.into_iter().enumerate() {
            let better = siblings.iter().enumerate().filter(|(at, (other, better))| {
                *other == key
                    && match (&fits, better) {
                        (Fits::Any, Fits::Value(_) | Fits::Pattern(_)) => true,
                        (Fits::Pattern(_), Fits::Value(_)) => true,
                        (Fits::Pattern(_), Fits::Pattern(_)) => *at < place,
                        _ => false,
                    }
            });
            let except = better.filter_map(|(_, (_, fits))| match fits {
                Fits::Value(value) | Fits::Pattern(value) => Some(value.clone()),
                Fits::Any => None,
            });
            let level = Level { except: except.collect(), key, fits, shares: false };
            self.descriptor(line, above, level, fields)?;
        }
        Ok(())
    }

    fn descriptor(
        &mut self,
        line: usize,
        above: &[Level],
        mut level: Level,
        mut fields: Fields<'_>,
    ) -> Result<(), Note> {
        if let Fits::Value(value) = &level.fits
            && is_network(value)
        {
            let text = format!("`{value}` is a network here: every address in it fits");
            self.note(line, text);
        }
        let shadow = flag(&mut fields, "shadow_mode")?;
        level.shares = flag(&mut fields, "share_threshold")?;
        if level.shares && !matches!(level.fits, Fits::Pattern(_)) {
            self.note(line, "`share_threshold` is for values with `*` only, and left out");
        }
        for (name, why) in [
            ("detailed_metric", "metrics are by limit, and hold no value of a request"),
            ("value_to_metric", "metrics are by limit, and hold no value of a request"),
            ("quota_mode", "a request is denied where one of its limits denies"),
        ] {
            if flag(&mut fields, name)? {
                self.note(line, format!("`{name}` has no equal: {why}"));
            }
        }
        let rate = fields.take("rate_limit");
        let nested = fields.take("descriptors");
        for key in fields.rest() {
            self.note(key.line, format!("`{}` has no equal", shown(&key.value)));
        }
        let levels: Vec<Level> = above.iter().cloned().chain([level]).collect();
        if let Some(rate) = rate {
            self.rule(rate, &levels, shadow)?;
        } else if shadow {
            self.note(line, "`shadow_mode` without a rate does nothing");
        }
        match nested {
            Some(nested) => self.walk(nested, &levels),
            None => Ok(()),
        }
    }

    fn rule(&mut self, node: &Node, levels: &[Level], shadow: bool) -> Result<(), Note> {
        let mut fields = Fields::of(node, "rate_limit")?;
        let name = fields.take("name").map(|node| text_of(node, "name")).transpose()?;
        if let Some(replaces) = fields.take("replaces") {
            self.replaces(replaces, name.as_deref())?;
        }
        let unlimited = flag(&mut fields, "unlimited")?;
        let unit = fields.take("unit").map(|node| Ok((node.line, text_of(node, "unit")?)));
        let unit: Option<(usize, String)> = unit.transpose()?;
        let count = fields.take("requests_per_unit");
        for key in fields.rest() {
            self.note(key.line, format!("`{}` has no equal", shown(&key.value)));
        }
        let rate = if unlimited {
            Rate::Unlimited
        } else {
            let Some((line, unit)) = unit else {
                return Err(note(node.line, "`rate_limit` without `unit`"));
            };
            let Some(window) = window(&unit) else {
                let allowed = "second, minute, hour, day, week, month, year";
                return Err(note(line, format!("unit is `{unit}`, allowed are {allowed}")));
            };
            let count = match count {
                None => 0,
                Some(node) => {
                    let found = text_of(node, "requests_per_unit")?;
                    let count = found.parse::<u32>().map_err(|_| {
                        let allowed = format!("allowed is 0 to {}", u32::MAX);
                        note(node.line, format!("requests_per_unit is `{found}`, {allowed}"))
                    })?;
                    u64::from(count)
                }
            };
            Rate::Fixed(count, window)
        };
        if let Some(level) = levels.iter().find(|level| KEPT.contains(&&*level.key)) {
            let text = format!(
                "left out: the key `{}` means something else here; have Envoy say another",
                level.key
            );
            self.note(node.line, text);
            return Ok(());
        }
        if shadow && matches!(rate, Rate::Fixed(0, _)) {
            self.note(node.line, "left out: a rate of 0 in shadow mode lets everything pass");
            return Ok(());
        }
        self.rules.push(Rule { levels: levels.to_vec(), name, rate, shadow });
        Ok(())
    }

    fn replaces(&mut self, list: &Node, own_name: Option<&str>) -> Result<(), Note> {
        let Value::List(names) = &list.value else {
            return Err(note(list.line, "`replaces` is no list"));
        };
        for node in names {
            let mut fields = Fields::of(node, "an entry of `replaces`")?;
            let name = match fields.take("name") {
                Some(name) => text_of(name, "name")?,
                None => return Err(note(node.line, "an entry of `replaces` without `name`")),
            };
            if own_name == Some(&*name) {
                return Err(note(node.line, format!("`{name}` cannot replace itself")));
            }
            self.replaced.push((list.line, name));
        }
        Ok(())
    }

    /// What becomes of `replaces`, which there is about the other descriptors of a call: a rule that
    /// one of them comes down to is left out where another comes down to a rule that replaces it.
    fn tell_replaced(&mut self) {
        for (line, name) in core::mem::take(&mut self.replaced) {
            // There, too, it then does nothing.
            if !self.rules.iter().any(|rule| rule.name.as_deref() == Some(&*name)) {
                self.note(line, format!("`replaces` is left out: no rule is called `{name}`"));
                continue;
            }
            let text = format!(
                "`replaces` has no equal: a limit here sees one descriptor and not what else is in \
                 the call, so a call that brings both is held to `{name}` too; have Envoy send only \
                 the descriptor that is to count"
            );
            self.note(line, text);
        }
    }

    fn write(&mut self, api: &str, domain: &str) -> String {
        let mut out = format!(
            "# The domain `{}` of envoyproxy/ratelimit, imported. A denied request costs nothing\n\
             # here, and descriptors of one call pass together or not at all.\n\
             schema = 1\n\n[api.{api}]\n",
            domain.replace(|c: char| c.is_control(), " "),
        );
        let mut names: Vec<String> = Vec::new();
        let (mut rules, mut limits) = (String::new(), String::new());
        for rule in &self.rules {
            let name = rule.free_name(&names);
            let (on, except) = (rule.on(), rule.except());
            match rule.rate {
                Rate::Fixed(0, _) => {
                    let unless = except.map_or(String::new(), |it| format!(", unless = {it}"));
                    rules.push_str(&format!(
                        "  {{ when = {on}{unless}, status = 429, code = {} }},\n",
                        quoted(&name)
                    ));
                }
                Rate::Unlimited | Rate::Fixed(..) => {
                    let except = except.map_or(String::new(), |it| format!(", except = {it}"));
                    let kind = match rule.rate {
                        Rate::Fixed(units, window) => format!("fixed = \"{units}/{window}\""),
                        Rate::Unlimited => "bucket = \"unlimited\"".to_owned(),
                    };
                    let mode = if rule.shadow { ", mode = \"shadow\"" } else { "" };
                    let per = rule.per();
                    limits.push_str(&format!(
                        "{name} = {{ on = {on}{except}, per = [{per}], {kind}{mode} }}\n"
                    ));
                }
            }
            names.push(name);
        }
        if !rules.is_empty() {
            out.push_str(&format!("# A rate of 0 denies.\ndeny = [\n{rules}]\n"));
        }
        if !limits.is_empty() {
            out.push_str(&format!("\n[api.{api}.limit]\n{limits}"));
        }
        out
    }
}

impl Rule {
    /// Its levels with the names of their attributes.
    fn attributes(&self) -> impl Iterator<Item = (String, &Level)> {
        self.levels.iter().enumerate().map(|(place, level)| {
            let earlier = self.levels[..place].iter().filter(|it| it.key == level.key).count();
            (attribute_name(&level.key, earlier).into_owned(), level)
        })
    }

    fn on(&self) -> String {
        let keys: Vec<&str> = self.levels.iter().map(|level| &*level.key).collect();
        let mut on = format!("{{ descriptor = {}", quoted(&keys.join(",")));
        for (attribute, level) in self.attributes() {
            if let Fits::Value(value) | Fits::Pattern(value) = &level.fits {
                on.push_str(&format!(", {attribute} = {}", quoted(value)));
            }
        }
        on + " }"
    }

    /// What its neighbours are for.
    fn except(&self) -> Option<String> {
        let tables: Vec<String> = self
            .attributes()
            .filter(|(_, level)| !level.except.is_empty())
            .map(|(attribute, level)| {
                let values: Vec<String> = level.except.iter().map(|value| quoted(value)).collect();
                format!("{{ {attribute} = [{}] }}", values.join(", "))
            })
            .collect();
        (!tables.is_empty()).then(|| format!("[{}]", tables.join(", ")))
    }

    fn per(&self) -> String {
        let varies = |level: &Level| match level.fits {
            Fits::Any => true,
            Fits::Pattern(_) => !level.shares,
            Fits::Value(_) => false,
        };
        let per = self.attributes().filter(|(_, level)| varies(level));
        per.map(|(attribute, _)| quoted(&attribute)).collect::<Vec<_>>().join(", ")
    }

    /// What the rule is called, or what its keys and values make, that no other has.
    fn free_name(&self, taken: &[String]) -> String {
        let text = self.name.clone().unwrap_or_else(|| {
            let words = self.levels.iter().map(|level| match &level.fits {
                Fits::Any => level.key.clone(),
                Fits::Value(value) | Fits::Pattern(value) => format!("{}_{value}", level.key),
            });
            words.collect::<Vec<_>>().join("_")
        });
        let mut name = attribute_name(&text, 0).into_owned();
        name.truncate(NAME_BYTES);
        if NO_LIMIT.contains(&&*name) {
            name.push('_');
        }
        let free = |name: &String| !taken.contains(name);
        let numbered = (2..).map(|number| format!("{name}_{number}"));
        let found = [name.clone()].into_iter().chain(numbered).find(free).unwrap_or(name);
        debug_assert!(is_name(&found));
        found
    }
}

/// A table of the file, of which each key is taken once.
struct Fields<'a> {
    line: usize,
    entries: Vec<&'a (Node, Node)>,
}

impl<'a> Fields<'a> {
    fn of(node: &'a Node, what: &str) -> Result<Self, Note> {
        match &node.value {
            Value::Table(entries) => {
                Ok(Self { line: node.line, entries: entries.iter().collect() })
            }
            _ => Err(note(node.line, format!("{what} is no table"))),
        }
    }

    fn take(&mut self, name: &str) -> Option<&'a Node> {
        let is = |(key, _): &&(Node, Node)| matches!(&key.value, Value::Text(text) if text == name);
        let place = self.entries.iter().position(is)?;
        Some(&self.entries.remove(place).1)
    }

    fn rest(&self) -> impl Iterator<Item = &'a Node> {
        self.entries.iter().map(|(key, _)| key)
    }
}

fn text_of(node: &Node, what: &str) -> Result<String, Note> {
    match &node.value {
        Value::Text(text) => Ok(text.clone()),
        _ => Err(note(node.line, format!("`{what}` is no text"))),
    }
}

fn flag(fields: &mut Fields<'_>, name: &str) -> Result<bool, Note> {
    let Some(node) = fields.take(name) else { return Ok(false) };
    match text_of(node, name)?.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        found => Err(note(node.line, format!("{name} is `{found}`, allowed are true and false"))),
    }
}

fn window(unit: &str) -> Option<&'static str> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "second" => "s",
        "minute" => "min",
        "hour" => "hour",
        "day" => "day",
        "week" => "week",
        // As they count there: 30 days and 365 days from the epoch.
        "month" => "30day",
        "year" => "365day",
        _ => return None,
    })
}

/// Whether conditions read a value as a network.
fn is_network(value: &str) -> bool {
    value.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<core::net::IpAddr>().is_ok() && bits.parse::<u8>().is_ok()
    })
}

fn note(line: usize, text: impl Into<String>) -> Note {
    Note { line, text: text.into() }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) => text.chars().take(64).collect(),
        Value::List(_) | Value::Table(_) => "…".to_owned(),
    }
}

/// A text as TOML has it on one line.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\U{:08X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests;

//! TOML text to a tree in which everything knows where it stands.
//!
//! This is the one file that knows the crate `toml`.

use toml::de::{DeTable, DeValue};

use super::code::ErrorCode;
use super::error::{Errors, Span};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) value: Value,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(Text),
    /// `None` if it fits no 64 bits.
    Integer(Option<i64>),
    Float,
    Boolean(bool),
    Datetime(String),
    List(Vec<Node>),
    Table(Table),
}

impl Value {
    /// The kind of value, with its article, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// A string and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub(super) value: String,
    pub(super) span: Span,
    /// Where its first character stands, if the string is written as it reads.
    verbatim_at: Option<u32>,
}

impl Text {
    /// A text that does not stand in the source as it reads.
    pub(super) fn made(value: String, span: Span) -> Self {
        Self { value, span, verbatim_at: None }
    }

    /// This text's place with a part of its characters.
    pub(super) fn part_named(&self, part: &str) -> Self {
        Self { value: part.to_owned(), ..self.clone() }
    }

    /// Where a part of the string stands; the whole of it where escapes shift the places.
    pub(super) fn span_of(&self, part: core::ops::Range<usize>) -> Span {
        match self.verbatim_at {
            Some(at) => Span {
                source: self.span.source,
                start: at + part.start as u32,
                end: at + part.end as u32,
            },
            None => self.span,
        }
    }
}

/// A table, its entries in the order of the text.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) entries: Vec<Entry>,
}

impl Table {
    /// The entry under `key`.
    pub(super) fn find(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key.value == key)
    }
}

/// One key and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Text,
    pub(super) node: Node,
}

/// Reads `text`, the source of that number; `None` if it is no TOML.
pub(super) fn read(source: usize, text: &str, errors: &mut Errors) -> Option<Table> {
    let (table, problems) = DeTable::parse_recoverable(text);
    if problems.is_empty() {
        let table = Reader { source, text }.table(table.get_ref());
        check_inline_tables(text, &table, errors);
        return Some(table);
    }
    for problem in problems {
        errors.push(
            ErrorCode::Syntax,
            Span::new(source, problem.span().unwrap_or(0..0)),
            problem.message(),
        );
    }
    None
}

/// TOML 1.0 keeps an inline table on one line, and so do its other readers.
fn check_inline_tables(text: &str, table: &Table, errors: &mut Errors) {
    for entry in &table.entries {
        check_inline_node(text, &entry.node, errors);
    }
}

fn check_inline_node(text: &str, node: &Node, errors: &mut Errors) {
    match &node.value {
        Value::Table(table) => {
            let range = node.span.start as usize..node.span.end as usize;
            if text.get(range.clone()).is_some_and(|raw| raw.starts_with('{')) {
                let mut gap_from = range.start;
                let mut newline = false;
                for value in values_within(table) {
                    let gap = text.get(gap_from..value.start as usize);
                    newline |= gap.is_some_and(|gap| gap.contains('\n'));
                    gap_from = value.end as usize;
                }
                newline |= text.get(gap_from..range.end).is_some_and(|gap| gap.contains('\n'));
                if newline {
                    let help = "use `[table]` with a line for each key, or close it on its line";
                    errors.push_with_help(
                        ErrorCode::Syntax,
                        node.span,
                        "an inline table of several lines",
                        help,
                    );
                }
            }
            check_inline_tables(text, table, errors);
        }
        Value::List(list) => {
            for node in list {
                check_inline_node(text, node, errors);
            }
        }
        _ => {}
    }
}

/// Where the values of an inline table stand, through dotted keys, in the order of the text.
fn values_within(table: &Table) -> Vec<Span> {
    let mut spans = Vec::new();
    for entry in &table.entries {
        match &entry.node.value {
            // A dotted key makes a table whose span is the key's.
            Value::Table(inner) if entry.node.span == entry.key.span => {
                spans.extend(values_within(inner));
            }
            _ => spans.push(entry.node.span),
        }
    }
    spans.sort_by_key(|span| span.start);
    spans
}

struct Reader<'a> {
    source: usize,
    text: &'a str,
}

impl Reader<'_> {
    fn table(&self, table: &DeTable<'_>) -> Table {
        let mut entries: Vec<Entry> = table
            .iter()
            .map(|(key, value)| Entry {
                key: self.string(key.get_ref(), key.span()),
                node: self.node(value.get_ref(), value.span()),
            })
            .collect();
        entries.sort_by_key(|entry| entry.key.span.start);
        Table { entries }
    }

    fn node(&self, value: &DeValue<'_>, range: core::ops::Range<usize>) -> Node {
        let span = Span::new(self.source, range.clone());
        let value = match value {
            DeValue::String(string) => Value::Text(self.string(string, range)),
            DeValue::Integer(integer) => {
                Value::Integer(i64::from_str_radix(integer.as_str(), integer.radix()).ok())
            }
            DeValue::Float(_) => Value::Float,
            DeValue::Boolean(boolean) => Value::Boolean(*boolean),
            DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
            DeValue::Array(array) => Value::List(
                array.iter().map(|value| self.node(value.get_ref(), value.span())).collect(),
            ),
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Node { span, value }
    }

    fn string(&self, value: &str, range: core::ops::Range<usize>) -> Text {
        let raw = self.text.get(range.clone()).unwrap_or_default();
        let quotes = ["'''", "\"\"\"", "'", "\""].into_iter().find(|q| raw.starts_with(q));
        let opening = quotes.map_or(0, str::len);
        // A newline right after the opening quotes of a long string is not part of it.
        let newline = match quotes {
            Some(quotes) if quotes.len() == 3 => {
                let rest = &raw[opening..];
                if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) }
            }
            _ => 0,
        };
        let at = opening + newline;
        let verbatim = raw.get(at..raw.len().saturating_sub(opening)) == Some(value);
        Text {
            value: value.to_owned(),
            span: Span::new(self.source, range.clone()),
            verbatim_at: verbatim.then_some((range.start + at) as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(toml: &str) -> Text {
        let table = read(0, toml, &mut Errors::default()).unwrap();
        match &table.entries[0].node.value {
            Value::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_part_of_a_string_is_found_in_the_text() {
        for toml in ["k = 'abc'", "k = \"abc\"", "k = '''\nabc'''", "k = \"\"\"abc\"\"\""] {
            let span = text_of(toml).span_of(1..2);
            assert_eq!(&toml[span.start as usize..span.end as usize], "b", "{toml}");
        }
        let escaped = "k = \"\\u0061bc\"";
        let span = text_of(escaped).span_of(1..2);
        assert_eq!(&escaped[span.start as usize..span.end as usize], "\"\\u0061bc\"");
    }

    #[test]
    fn all_problems_of_a_text_are_told() {
        let mut errors = Errors::default();
        assert!(read(0, "a = \nb = 1 1\nc = [\n", &mut errors).is_none());
        assert!(errors.len() >= 3);
    }

    #[test]
    fn an_inline_table_stays_on_its_line_and_its_strings_and_lists_need_not() {
        let problems = |toml: &str| {
            let mut errors = Errors::default();
            read(0, toml, &mut errors).unwrap();
            errors.len()
        };
        assert_eq!(problems("a = [{ b = 1, c.d = '''x\ny''', e = [\n1] },\n { f = 1 }]\n"), 0);
        assert_eq!(problems("[t]\na.b = 1\nc = 2\n[[u]]\nv = { w = { x = \"{\" } }"), 0);
        assert_eq!(problems("a = {\n b = 1 }\n"), 1);
        assert_eq!(problems("a = { b = { c = 1,\n d = 2 } }\n"), 1);
        assert_eq!(problems("a = [{ b = 1, # x\n }]\n"), 1);
    }

    #[test]
    fn entries_keep_the_order_of_the_text() {
        let table = read(0, "b = 1\na = 0x1_F\n", &mut Errors::default()).unwrap();
        let keys: Vec<_> = table.entries.iter().map(|entry| entry.key.value.as_str()).collect();
        assert_eq!(keys, ["b", "a"]);
        assert!(matches!(table.entries[1].node.value, Value::Integer(Some(31))));
    }
}

//! YAML to a tree of what stands there: texts, lists and tables, each with its line. What it may
//! unfold to is bounded by its own length, since references to other parts of it are refused.

use saphyr_parser::{Event, Parser};

use super::Note;

/// The most texts, lists and tables of a file together.
const NODES_MAX: usize = 100_000;

/// How deep they may lie within one another.
const DEPTH_MAX: usize = 64;

/// What stands at a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    List(Vec<Node>),
    Table(Vec<(Node, Node)>),
}

/// Reads a file of one document.
pub(super) fn read(text: &str) -> Result<Node, Note> {
    let mut open: Vec<(Node, Option<Node>)> = Vec::new();
    let (mut root, mut nodes) = (None, 0);
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let text = format!("this is no YAML: {}", error.info());
            Note { line: error.marker().line().max(1), text }
        })?;
        let line = span.start.line().max(1);
        let wrong = |text: String| Err(Note { line, text });
        let value = match event {
            Event::Alias(_) => return wrong("a reference `*…`, allowed is the text itself".into()),
            Event::Scalar(text, ..) => Value::Text(text.into_owned()),
            Event::SequenceStart(..) => Value::List(Vec::new()),
            Event::MappingStart(..) => Value::Table(Vec::new()),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some((node, _)) = open.pop() else { continue };
                close(node, &mut open, &mut root);
                continue;
            }
            Event::DocumentStart(_) if root.is_some() => {
                return wrong("a second document, allowed is one".into());
            }
            _ => continue,
        };
        nodes += 1;
        if nodes > NODES_MAX {
            return wrong(format!("more than {NODES_MAX} texts, lists and tables"));
        }
        let node = Node { line, value };
        if matches!(node.value, Value::Text(_)) {
            close(node, &mut open, &mut root);
        } else if open.len() >= DEPTH_MAX {
            return wrong(format!("lists and tables more than {DEPTH_MAX} deep"));
        } else {
            open.push((node, None));
        }
    }
    root.ok_or_else(|| Note { line: 1, text: "the file is empty".to_owned() })
}

/// Puts what is whole where it belongs.
fn close(node: Node, open: &mut [(Node, Option<Node>)], root: &mut Option<Node>) {
    let Some((parent, key)) = open.last_mut() else {
        *root = Some(node);
        return;
    };
    match (&mut parent.value, key.take()) {
        (Value::List(list), _) => list.push(node),
        (Value::Table(entries), Some(key)) => entries.push((key, node)),
        (Value::Table(_), None) => *key = Some(node),
        (Value::Text(_), _) => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_lists_and_tables_have_their_lines() {
        let node = read("a: 1\nb:\n  - 'x*'\n  - {c: d}\n").unwrap();
        let Value::Table(entries) = node.value else { panic!() };
        assert_eq!((entries[0].0.line, entries[1].1.line), (1, 3));
        let Value::List(list) = &entries[1].1.value else { panic!() };
        assert_eq!((list[0].value.clone(), list[1].line), (Value::Text("x*".into()), 4));
    }

    #[test]
    fn what_unfolds_or_nests_without_end_is_refused() {
        let refused = |text: &str| read(text).unwrap_err().text;
        assert!(refused("a: &x [1]\nb: *x\n").contains("a reference"));
        let nested: String = (0..70).map(|depth| format!("{}-\n", " ".repeat(depth))).collect();
        assert!(refused(&nested).contains("deep"), "{}", refused(&nested));
        // The parser has a limit of its own.
        assert!(refused(&"[".repeat(1000)).contains("no YAML"));
        assert!(refused("a: 1\n---\nb: 2\n").contains("a second document"));
        assert!(refused("").contains("empty"));
        assert!(refused("a: [").contains("no YAML"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-a: \\[\\]{}\n'\"|>#&*!,?0-9]{0,80}") {
            let _ = read(&text);
        }
    }
}

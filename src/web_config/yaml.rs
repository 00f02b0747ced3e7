//! YAML text → a small tree with the line of each value.
//!
//! Invariant: what the tree cannot say (aliases, tags, a key twice, a second document) is a mistake, never passed over,
//! and no mistake quotes a value, which may be a secret. It must not know what a key means.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

/// No setting is as deep; a tree that is would cost stack.
const DEEPEST: usize = 8;

/// A value and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    /// Counted from 1.
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Text as written, whatever type it looks like.
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) node: Node,
}

/// Reads one document; none at all is `Null`.
///
/// # Errors
/// The first thing that is wrong, with its line.
pub(super) fn read(text: &str) -> Result<Node, String> {
    let mut reader = Reader { parser: Parser::new_from_str(text) };
    let mut root = None;
    loop {
        match reader.next()? {
            (Event::StreamEnd, _) => return Ok(root.unwrap_or(Node { line: 1, value: Value::Null })),
            (Event::StreamStart | Event::DocumentEnd | Event::Nothing, _) => {}
            (Event::DocumentStart(_), span) if root.is_some() => {
                return Err(format!("line {}: begins a second document: keep one", span.start.line()));
            }
            (Event::DocumentStart(_), _) => {
                let first = reader.next()?;
                root = Some(reader.node(first, 0)?);
            }
            (_, span) => return Err(format!("line {}: is not valid YAML: unexpected content", span.start.line())),
        }
    }
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), String> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(format!("line {}: is not valid YAML: {}", error.marker().line(), error.info())),
            None => Err("is not valid YAML: it ends too early".to_owned()),
        }
    }

    fn node(&mut self, (event, span): (Event<'a>, Span), depth: usize) -> Result<Node, String> {
        let line = span.start.line();
        if depth > DEEPEST {
            return Err(format!("line {line}: is nested deeper than any setting"));
        }
        let value = match event {
            Event::Scalar(_, _, _, Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                return Err(format!("line {line}: has a tag: write the value without one"));
            }
            Event::Alias(_) => return Err(format!("line {line}: is an alias: write the value in its place")),
            Event::Scalar(text, ScalarStyle::Plain, ..) if ["", "~", "null", "Null", "NULL"].contains(&&*text) => {
                Value::Null
            }
            Event::Scalar(text, ..) => Value::Text(text.into_owned()),
            Event::SequenceStart(..) => Value::List(self.list(depth)?),
            Event::MappingStart(..) => Value::Map(self.map(depth)?),
            _ => return Err(format!("line {line}: a value is missing")),
        };
        Ok(Node { line, value })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, String> {
        let mut list = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(list),
                next => list.push(self.node(next, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, String> {
        let mut map: Vec<Entry> = Vec::new();
        loop {
            let next = match self.next()? {
                (Event::MappingEnd, _) => return Ok(map),
                next => next,
            };
            let Node { line, value } = self.node(next, depth + 1)?;
            let Value::Text(key) = value else {
                return Err(format!("line {line}: expected a string as key"));
            };
            if let Some(first) = map.iter().find(|entry| entry.key == key) {
                return Err(format!("line {line}: key {key:?} is a duplicate: it is first in line {}", first.line));
            }
            let next = self.next()?;
            map.push(Entry { key, line, node: self.node(next, depth + 1)? });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(text: &str) -> String {
        read(text).unwrap_err()
    }

    #[test]
    fn values_keep_their_text_and_line() {
        let root = read("---\na: 1\nb: 'null'\nc:\nd: [x, ~]\n").unwrap();
        let Value::Map(entries) = root.value else { panic!("{root:?}") };
        let shown: Vec<_> =
            entries.iter().map(|entry| format!("{} {} {:?}", entry.line, entry.key, entry.node.value)).collect();
        assert_eq!(shown[..3], ["2 a Text(\"1\")", "3 b Text(\"null\")", "4 c Null"]);
        assert!(matches!(&entries[3].node.value, Value::List(list) if list.len() == 2), "{shown:?}");
    }

    #[test]
    fn nothing_is_null() {
        for text in ["", "\n# only words\n", "---\n", "~"] {
            assert!(matches!(read(text).unwrap().value, Value::Null), "{text:?}");
        }
    }

    #[test]
    fn what_the_tree_cannot_say_is_a_mistake() {
        assert_eq!(mistake("a: &x 1\nb: *x\n"), "line 2: is an alias: write the value in its place");
        assert_eq!(mistake("a: !!binary eA==\n"), "line 1: has a tag: write the value without one");
        assert_eq!(mistake("a: 1\nb: 2\na: 3\n"), "line 3: key \"a\" is a duplicate: it is first in line 1");
        assert_eq!(mistake("a: 1\n---\nb: 2\n"), "line 2: begins a second document: keep one");
        assert_eq!(mistake(&"[".repeat(20)), "line 1: is nested deeper than any setting");
        assert_eq!(mistake(&"[".repeat(100_000)), "line 1: is not valid YAML: recursion limit exceeded");
        assert_eq!(mistake("[a]: 1\n"), "line 1: expected a string as key");
        assert!(mistake("a: [1\n").contains(": is not valid YAML: "), "{}", mistake("a: [1\n"));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! One YAML document as a tree that can be changed and written again without changing what the rest of it means.
//!
//! What a bare scalar means is decided by who reads it: `0644`, `yes` and `1e3` are different things to YAML 1.1, YAML 1.2
//! and Kubernetes. So no scalar is resolved here. A bare one stays bare with the same characters, a quoted one stays a
//! string, anchors and aliases keep their names. Comments and the way it was laid out are lost.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use granit_parser::{Event, Parser, ScalarStyle};

/// The bare word that stands for nothing in every version of YAML, as an empty place does.
const NULL: &str = "null";
/// Blanks per level.
const INDENT: usize = 2;

/// A node of a document.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Where it begins in its text, from 1; 0 where it was made here.
    pub(crate) line: usize,
    /// Its name for aliases.
    pub(crate) anchor: Option<String>,
    /// What it is.
    pub(crate) value: Value,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Text whose meaning depends on the reader.
    Bare(String),
    /// A string, whoever reads it.
    Text(String),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys, which are scalars and of which no two are alike, with their values, in the order of the document.
    Mapping(Vec<(Node, Node)>),
    /// The node of that name over again.
    Alias(String),
}

/// A document could not be read, or not be written so that it would be read as the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub(crate) struct TreeError {
    /// Where, from 1.
    pub(crate) line: usize,
    /// What is wrong.
    pub(crate) what: String,
}

/// The same content, wherever it stands.
impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.anchor == other.anchor && self.value == other.value
    }
}

impl Node {
    /// A node that was not read.
    pub(crate) fn new(value: Value) -> Self {
        Self { line: 0, anchor: None, value }
    }

    /// A string.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::new(Value::Text(text.into()))
    }

    /// The characters of a scalar.
    pub(crate) fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Bare(text) | Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value of `key`, if this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Mapping(entries) = &self.value else { return None };
        entries.iter().find(|(name, _)| name.scalar() == Some(key)).map(|(_, value)| value)
    }

    /// As [`Self::get`], to be changed.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        let Value::Mapping(entries) = &mut self.value else { return None };
        entries.iter_mut().find(|(name, _)| name.scalar() == Some(key)).map(|(_, value)| value)
    }

    /// The elements, if this is a sequence.
    pub(crate) fn elements(&self) -> &[Self] {
        if let Value::Sequence(elements) = &self.value { elements } else { &[] }
    }
}

/// Reads a document. `None` if there is nothing in it but comments.
///
/// # Errors
/// If it is not YAML; if it has what Kubernetes manifests do not have: tags, keys that are no scalars, a key twice.
pub(crate) fn parse(text: &str) -> Result<Option<Node>, TreeError> {
    let mut options = granit_parser::options! { emit_anchor_events: true };
    options.set_emit_comments(false);
    let mut reader = Reader { parser: Parser::new_from_str_with_options(text, options), names: BTreeMap::new() };
    let mut root = None;
    while let Some((event, line)) = reader.step()? {
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) | Event::DocumentEnd => {}
            event if root.is_none() => root = Some(reader.node(event, line)?),
            _ => return Err(TreeError { line, what: "a second document begins without a line `---`".to_owned() }),
        }
    }
    // A document that is empty has a scalar that stands for nothing to the parser.
    Ok(root.filter(|node| !matches!(&node.value, Value::Bare(word) if word == NULL || word == "~")))
}

/// Writes a document, without `---`.
///
/// # Errors
/// If what was written does not read as `root`: a defect, told before anyone relies on the text.
pub(crate) fn write(root: &Node) -> Result<String, TreeError> {
    let mut out = String::new();
    block(&mut out, root, 0);
    if parse(&out)?.as_ref() == Some(root) {
        return Ok(out);
    }
    Err(TreeError { line: root.line, what: "this document cannot be written without changing its meaning".to_owned() })
}

struct Reader<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    names: BTreeMap<usize, String>,
}

impl<'a> Reader<'a> {
    fn step(&mut self) -> Result<Option<(Event<'a>, usize)>, TreeError> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok((event, span))) => Ok(Some((event, span.start.line()))),
            Some(Err(error)) => Err(TreeError { line: error.marker().line(), what: error.info() }),
        }
    }

    fn expect(&mut self) -> Result<(Event<'a>, usize), TreeError> {
        self.step()?.ok_or_else(|| TreeError { line: 0, what: "the document ends in the middle".to_owned() })
    }

    /// The node that `event` begins. Depth is bounded by the parser, which nests 255 levels at most.
    fn node(&mut self, event: Event<'a>, line: usize) -> Result<Node, TreeError> {
        let (anchor, tag) = match &event {
            Event::Scalar(.., anchor, tag) => (*anchor, tag.is_some()),
            Event::SequenceStart(_, anchor, tag) | Event::MappingStart(_, anchor, tag) => (*anchor, tag.is_some()),
            _ => (0, false),
        };
        if tag {
            return Err(TreeError { line, what: "a tag (`!…`), which no manifest needs".to_owned() });
        }
        let anchor = if anchor == 0 { None } else { Some(self.anchor()?) };
        let value = match event {
            Event::Scalar(text, style, ..) => scalar(text, style),
            Event::SequenceStart(..) => Value::Sequence(self.elements()?),
            Event::MappingStart(..) => Value::Mapping(self.entries()?),
            Event::Alias(id) => Value::Alias(self.names.get(&id).cloned().unwrap_or_default()),
            other => return Err(TreeError { line, what: format!("no node, but {other:?}") }),
        };
        Ok(Node { line, anchor, value })
    }

    /// The parser names an anchor right after the node that has it.
    fn anchor(&mut self) -> Result<String, TreeError> {
        match self.expect()? {
            (Event::Anchor(id, name), _) => {
                self.names.insert(id, name.clone().into_owned());
                Ok(name.into_owned())
            }
            (other, line) => Err(TreeError { line, what: format!("no anchor, but {other:?}") }),
        }
    }

    fn elements(&mut self) -> Result<Vec<Node>, TreeError> {
        let mut elements = Vec::new();
        loop {
            match self.expect()? {
                (Event::SequenceEnd, _) => return Ok(elements),
                (event, line) => elements.push(self.node(event, line)?),
            }
        }
    }

    fn entries(&mut self) -> Result<Vec<(Node, Node)>, TreeError> {
        let (mut entries, mut seen) = (Vec::new(), BTreeSet::new());
        loop {
            let (event, line) = self.expect()?;
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let key = self.node(event, line)?;
            match key.scalar() {
                None => return Err(TreeError { line, what: "a key that is no scalar".to_owned() }),
                Some(name) if !seen.insert(name.to_owned()) => {
                    return Err(TreeError { line, what: format!("the key `{name}` is there twice") });
                }
                Some(_) => {}
            }
            let (event, line) = self.expect()?;
            entries.push((key, self.node(event, line)?));
        }
    }
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Value {
    match style {
        ScalarStyle::Plain if text.is_empty() => Value::Bare(NULL.to_owned()),
        // What spans lines with an empty one between is a string to everybody, and cannot be written bare in one line.
        ScalarStyle::Plain if !text.contains('\n') => Value::Bare(text.into_owned()),
        _ => Value::Text(text.into_owned()),
    }
}

/// Writes `node` as the value of what stands in the line already: `key:`, `-`, or nothing at all.
fn block(out: &mut String, node: &Node, depth: usize) {
    if let Some(name) = &node.anchor {
        gap(out);
        out.push('&');
        out.push_str(name);
    }
    match &node.value {
        Value::Mapping(entries) if !entries.is_empty() => {
            let mut first = beside(out, node);
            for (key, value) in entries {
                begin(out, depth, &mut first);
                if let Some(name) = &key.anchor {
                    let _ = write!(out, "&{name} ");
                }
                inline(out, key);
                out.push(':');
                // A list in a mapping is indented, as a mapping is: `- ` never stands where a key would.
                block(out, value, depth + 1);
            }
        }
        Value::Sequence(elements) if !elements.is_empty() => {
            let mut first = beside(out, node);
            for element in elements {
                begin(out, depth, &mut first);
                out.push('-');
                block(out, element, depth + 1);
            }
        }
        Value::Text(text) if is_literal(text) => literal(out, text, depth.max(1)),
        _ => {
            gap(out);
            inline(out, node);
            out.push('\n');
        }
    }
}

/// Whether the first entry of `node` stands beside the dash of a list. One that has a name does not: there, the name would be
/// the entry's.
fn beside(out: &str, node: &Node) -> bool {
    node.anchor.is_none() && out.ends_with('-')
}

/// Parts what follows from what stands in the line.
fn gap(out: &mut String) {
    if !out.is_empty() && !out.ends_with(['\n', ' ']) {
        out.push(' ');
    }
}

/// Begins an entry: beside a dash if it is the first in an element of a list, and in a line of its own otherwise.
fn begin(out: &mut String, depth: usize, first: &mut bool) {
    if std::mem::take(first) {
        out.push(' ');
        return;
    }
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out.extend(std::iter::repeat_n(' ', depth * INDENT));
}

/// Writes a scalar, an alias, or an empty collection.
fn inline(out: &mut String, node: &Node) {
    match &node.value {
        Value::Bare(text) => out.push_str(text),
        Value::Text(text) => quoted(out, text),
        Value::Alias(name) => {
            out.push('*');
            out.push_str(name);
        }
        Value::Sequence(_) => out.push_str("[]"),
        Value::Mapping(_) => out.push_str("{}"),
    }
}

/// In double quotes, where every character can be written.
fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if is_printable(c) => out.push(c),
            c if u32::from(c) <= 0xffff => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => {
                let _ = write!(out, "\\U{:08x}", u32::from(c));
            }
        }
    }
    out.push('"');
}

/// Printable to YAML 1.1 too, and no break of a line.
fn is_printable(c: char) -> bool {
    let breaks = ['\u{85}', '\u{2028}', '\u{2029}', '\u{feff}'].contains(&c);
    !breaks && !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}') && u32::from(c) < 0x1_0000
}

/// Whether `text` is readable as a `|` block, without an indicator of its indentation.
fn is_literal(text: &str) -> bool {
    let lines = || text.lines();
    text.contains('\n')
        && text.chars().all(|c| c == '\n' || is_printable(c))
        && lines().next().is_some_and(|line| !line.is_empty() && !line.starts_with(' '))
        && lines().all(|line| !line.ends_with(' '))
}

fn literal(out: &mut String, text: &str, depth: usize) {
    gap(out);
    let body = text.trim_end_matches('\n');
    out.push_str(match text.len() - body.len() {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    out.push('\n');
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        if !line.is_empty() {
            out.extend(std::iter::repeat_n(' ', depth * INDENT));
            out.push_str(line);
        }
        out.push('\n');
    }
}

/// For tests/fuzz: what is read as a document can be written, and is read as the same then.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    if let Ok(Some(root)) = parse(text)
        && let Ok(written) = write(&root)
    {
        assert_eq!(parse(&written).ok().flatten().as_ref(), Some(&root), "{written}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Trees of every shape, of strings with any character and bare words that readers do not agree on.
    fn nodes() -> impl Strategy<Value = Node> {
        let bare =
            prop::sample::select(vec!["yes", "0644", "1e3", "~", "null", "12:30", "a b", "a#b", "<<", "http://x"]);
        let text = prop_oneof!["[ -~\n\t]{0,40}", "\\PC{0,20}", any::<String>()];
        let leaf = prop_oneof![bare.prop_map(|word| Value::Bare(word.to_owned())), text.prop_map(Value::Text)];
        leaf.prop_map(Node::new).prop_recursive(4, 40, 5, |inner| {
            let mapping = prop::collection::btree_map("[ -~]{0,8}", inner.clone(), 0..5);
            let mapping =
                mapping.prop_map(|map| map.into_iter().map(|(key, value)| (Node::text(key), value)).collect());
            prop_oneof![prop::collection::vec(inner, 0..5).prop_map(Value::Sequence), mapping.prop_map(Value::Mapping)]
                .prop_map(Node::new)
        })
    }

    proptest! {
        /// `write` compares itself: that it gives a text at all says that the text reads the same.
        #[test]
        fn every_tree_can_be_written(node in nodes()) {
            let root = Node::new(Value::Mapping(vec![(Node::text("key"), node)]));
            let text = write(&root).unwrap();
            prop_assert_eq!(parse(&text).unwrap().unwrap(), root, "{}", text);
        }

        #[test]
        fn any_text_is_survived(text in "[-a-z:&*!?|> \n\"'#\\[\\]{},]{0,60}") {
            if let Ok(Some(root)) = parse(&text) {
                let _ = write(&root);
            }
        }
    }

    #[test]
    fn what_is_not_kept_is_refused() {
        for (text, what) in [
            ("a: !!str 1\n", "line 1: a tag"),
            ("a: 1\nb: 2\na: 3\n", "line 3: the key `a`"),
            ("? [a]\n: 1\n", "line 1: a key"),
            ("a: 1\n...\nb: 2\n", "line 3: a second document"),
            ("a: *b\n", "line 1: "),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(what), "{text}: {error}");
        }
        assert_eq!(parse("---\n# nothing\n").unwrap(), None);
        assert_eq!(parse("").unwrap(), None);
    }
}

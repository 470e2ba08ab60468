// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects of a cluster by name, places in them, and values to be put there: what patches of add-ons are made of.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// An object of a cluster: `Deployment/cert-manager/cert-manager-webhook`, or `ClusterRole/view` without a namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName {
    /// Its `kind`.
    pub kind: String,
    /// Its `metadata.namespace`, if it has one.
    pub namespace: Option<String>,
    /// Its `metadata.name`.
    pub name: String,
}

/// The namespace of an object that says none, unless its kind has none.
const DEFAULT_NAMESPACE: &str = "default";

impl ObjectName {
    /// Whether both are the same object: `default` is the namespace of one that says none.
    pub fn is(&self, other: &Self) -> bool {
        let namespace = |one: &Self| one.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        self.kind == other.kind && self.name == other.name && namespace(self) == namespace(other)
    }
}

impl FromStr for ObjectName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let parts: Vec<&str> = text.split('/').collect();
        let (kind, namespace, name) = match parts[..] {
            [kind, name] => (kind, None, name),
            [kind, namespace, name] => (kind, Some(namespace), name),
            _ => return Err("which has not two or three parts"),
        };
        if !kind.starts_with(|c: char| c.is_ascii_uppercase()) || !kind.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err("whose first part is not a kind, such as Deployment");
        }
        // Names of a few kinds have colons (ClusterRole/system:node); nothing has blanks.
        let is_name = |name: &str| !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control());
        if !is_name(name) || !namespace.is_none_or(is_name) {
            return Err("which has an empty part, or blanks in it");
        }
        Ok(Self { kind: kind.to_owned(), namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

/// A place in an object: `spec.template.spec.containers[name=web].args[0]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectPath {
    /// The way to it, never empty.
    pub segments: Vec<Segment>,
}

/// One step of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// The value of a key: `spec`, or `"example.org/a.b"` in quotes.
    Key(String),
    /// An element by its place in a list, from 0: `[0]`.
    Index(usize),
    /// The element of a list that has this key with this value: `[name=web]`.
    Matching {
        /// The key.
        key: String,
        /// The value, a scalar by its characters.
        value: String,
    },
    /// Behind the last element of a list: `[]`.
    End,
}

impl FromStr for ObjectPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (mut rest, mut segments) = (text, Vec::new());
        loop {
            let key;
            if let Some(quoted) = rest.strip_prefix('"') {
                (key, rest) = quoted.split_once('"').ok_or("which has a quote that does not end")?;
            } else {
                let end = rest.find(['.', '[', ']', '"']).unwrap_or(rest.len());
                (key, rest) = rest.split_at(end);
            }
            if key.is_empty() {
                return Err("which lacks a key; one with a dot or a bracket in it needs double quotes");
            }
            segments.push(Segment::Key(key.to_owned()));
            while let Some(inner) = rest.strip_prefix('[') {
                let element;
                (element, rest) = bracket(inner)?;
                segments.push(element);
            }
            if rest.is_empty() {
                break;
            }
            rest = rest.strip_prefix('.').ok_or("which has something between a key and the next dot")?;
        }
        let before_last = segments.len() - 1;
        if segments[..before_last].contains(&Segment::End) {
            return Err("which goes on behind `[]`, the end of a list");
        }
        Ok(Self { segments })
    }
}

/// What stands in brackets, and what stands behind them.
fn bracket(inner: &str) -> Result<(Segment, &str), &'static str> {
    const OPEN: &str = "which has a bracket that does not end";
    let is_key = |key: &str| !key.is_empty() && !key.contains(['"', '[', ']', '.', '=']);
    if let Some((key, quoted)) = inner.split_once("=\"")
        && is_key(key)
    {
        let (value, rest) = quoted.split_once('"').ok_or("which has a quote that does not end")?;
        let rest = rest.strip_prefix(']').ok_or(OPEN)?;
        return Ok((Segment::Matching { key: key.to_owned(), value: value.to_owned() }, rest));
    }
    let (element, rest) = inner.split_once(']').ok_or(OPEN)?;
    let segment = match element.split_once('=') {
        _ if element.is_empty() => Segment::End,
        // Quotes are around a value or nowhere: there is no way to write one with a quote in it.
        Some((key, value)) if is_key(key) && !value.is_empty() && !value.contains('"') => {
            Segment::Matching { key: key.to_owned(), value: value.to_owned() }
        }
        None if element.bytes().all(|b| b.is_ascii_digit()) => {
            Segment::Index(element.parse().map_err(|_| "which has a number that is too large")?)
        }
        _ => return Err("which has neither [0] nor [key=value] nor [] in brackets"),
    };
    Ok((segment, rest))
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show_path(&self.segments))
    }
}

/// A way as it is written.
pub fn show_path(segments: &[Segment]) -> String {
    let mut text = String::new();
    for segment in segments {
        match segment {
            Segment::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                if key.contains(['.', '[', ']']) { text += &format!("\"{key}\"") } else { text += key }
            }
            Segment::Index(index) => text += &format!("[{index}]"),
            Segment::Matching { key, value } if value.is_empty() || value.contains(']') => {
                text += &format!("[{key}=\"{value}\"]");
            }
            Segment::Matching { key, value } => text += &format!("[{key}={value}]"),
            Segment::End => text += "[]",
        }
    }
    text
}

/// A value to be put somewhere, with its type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string, whatever it looks like.
    String(String),
    /// A whole number.
    Integer(i64),
    /// Another number, finite.
    Float(f64),
    /// true or false.
    Boolean(bool),
    /// A list.
    List(Vec<Value>),
    /// Keys with values.
    Table(BTreeMap<String, Value>),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(key: &str) -> Segment {
        Segment::Key(key.to_owned())
    }

    fn matching(key: &str, value: &str) -> Segment {
        Segment::Matching { key: key.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn a_path_leads_through_keys_and_elements() {
        for (text, segments) in [
            ("spec", vec![key("spec")]),
            ("spec.a[0].b", vec![key("spec"), key("a"), Segment::Index(0), key("b")]),
            ("a[name=web].args[]", vec![key("a"), matching("name", "web"), key("args"), Segment::End]),
            ("a[x=10.0.0.1:80]", vec![key("a"), matching("x", "10.0.0.1:80")]),
            ("a[x=\"]\"][1]", vec![key("a"), matching("x", "]"), Segment::Index(1)]),
            ("a[x=\"\"]", vec![key("a"), matching("x", "")]),
            ("a[x=y=z]", vec![key("a"), matching("x", "y=z")]),
            (
                "metadata.annotations.\"example.org/a.b\"",
                vec![key("metadata"), key("annotations"), key("example.org/a.b")],
            ),
            ("data.Corefile", vec![key("data"), key("Corefile")]),
        ] {
            let path: ObjectPath = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(path.segments, segments, "{text}");
            assert_eq!(path.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_path_says_why() {
        for (text, why) in [
            ("", "lacks a key"),
            ("a.", "lacks a key"),
            (".a", "lacks a key"),
            ("[0]", "lacks a key"),
            ("a..b", "lacks a key"),
            ("a]", "between"),
            ("a[0]b", "between"),
            ("a[0", "bracket that does not end"),
            ("a[x=\"]", "quote that does not end"),
            ("a[x=\"y\"z]", "bracket that does not end"),
            ("\"a", "quote that does not end"),
            ("a[x]", "neither"),
            ("a[=x]", "neither"),
            ("a[x=]", "neither"),
            ("a[x=y\"z]", "neither"),
            ("a[x=y=\"z\"]", "neither"),
            ("a[-1]", "neither"),
            ("a[99999999999999999999]", "too large"),
            ("a[].b", "goes on behind"),
        ] {
            let found = text.parse::<ObjectPath>().unwrap_err();
            assert!(found.contains(why), "{text}: {found}");
        }
    }

    #[test]
    fn an_object_has_a_kind_perhaps_a_namespace_and_a_name() {
        for text in ["Deployment/cert-manager/cert-manager-webhook", "ClusterRole/system:node", "Job/default/migrate-"]
        {
            assert_eq!(text.parse::<ObjectName>().unwrap().to_string(), text);
        }
        for (text, why) in [
            ("web", "two or three parts"),
            ("a/b/c/d", "two or three parts"),
            ("deployment/web", "not a kind"),
            ("Deploy ment/web", "not a kind"),
            ("Deployment/", "empty part"),
            ("Deployment//web", "empty part"),
            ("Deployment/a b", "blanks"),
        ] {
            let found = text.parse::<ObjectName>().unwrap_err();
            assert!(found.contains(why), "{text}: {found}");
        }
    }

    #[test]
    fn the_default_namespace_need_not_be_said() {
        let name = |text: &str| text.parse::<ObjectName>().unwrap();
        assert!(name("Service/a").is(&name("Service/default/a")));
        assert!(!name("Service/a").is(&name("Service/b/a")));
        assert!(!name("Service/a").is(&name("Secret/a")));
    }

    /// Any path but one with quotes in a key or a value, which have no spelling.
    fn a_path() -> impl Strategy<Value = ObjectPath> {
        let a_key = || "[a-z/.=\\[\\] ]{1,6}".prop_map(Segment::Key);
        let segment = prop_oneof![
            a_key(),
            any::<usize>().prop_map(Segment::Index),
            ("[a-z/ ]{1,4}", "[a-z/.=\\[\\] ]{0,6}").prop_map(|(key, value)| Segment::Matching { key, value }),
        ];
        (a_key(), prop::collection::vec(segment, 0..6), any::<bool>()).prop_map(|(first, more, end)| {
            let segments = [first].into_iter().chain(more).chain(end.then_some(Segment::End)).collect();
            ObjectPath { segments }
        })
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[a-z0-9.\\[\\]=\"/ ]{0,30}") {
            if let Ok(path) = text.parse::<ObjectPath>() {
                prop_assert_eq!(path.to_string().parse::<ObjectPath>().unwrap(), path);
            }
            let _ = text.parse::<ObjectName>();
        }

        #[test]
        fn what_is_shown_is_read_again(path in a_path()) {
            prop_assert_eq!(path.to_string().parse::<ObjectPath>(), Ok(path));
        }
    }
}

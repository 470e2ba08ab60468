// SPDX-License-Identifier: MIT OR Apache-2.0

//! Changes of single places of an object. Whatever is changed must stand where it is changed: what anchors and aliases share
//! with another place would change there as well.

use profiles::schema::{ObjectPath, Segment, show_path};
use profiles::text::{closest, list};

use super::tree::{Node, TreeError, Value};

/// Tables whose values are strings to Kubernetes, by the key they stand under; the first two of a ConfigMap or a Secret.
const STRINGS: [&str; 6] = ["data", "stringData", "annotations", "labels", "matchLabels", "nodeSelector"];
/// How many keys or elements a message lists.
const LISTED: usize = 12;

/// The node at `path` below `node`, to be changed.
///
/// # Errors
/// If there is none; if it is shared with another place.
pub(crate) fn at<'n>(node: &'n mut Node, path: &[&str]) -> Result<&'n mut Node, TreeError> {
    let segments: Vec<Segment> = path.iter().map(|key| Segment::Key((*key).to_owned())).collect();
    descend(node, &segments)
}

/// The elements of a list.
///
/// # Errors
/// If it is none.
pub(crate) fn elements(node: &mut Node) -> Result<&mut Vec<Node>, TreeError> {
    match &mut node.value {
        Value::Sequence(elements) => Ok(elements),
        _ => Err(error(node.line, "this must be a list")),
    }
}

/// Fails where the content of `node` stands somewhere else as well, or comes from there.
///
/// # Errors
/// Just then.
pub(crate) fn own(node: &Node) -> Result<(), TreeError> {
    let shared = node.anchor.is_some() || matches!(node.value, Value::Alias(_)) || node.get("<<").is_some();
    if shared {
        let what = "anchors, aliases and `<<` share this with another place, which would change as well: write it out";
        return Err(error(node.line, what));
    }
    Ok(())
}

pub(crate) fn error(line: usize, what: impl Into<String>) -> TreeError {
    TreeError { line, what: what.into() }
}

/// Gives the place `path`, which must be there, the value `value`.
///
/// # Errors
/// As [`at`]; a value that is no string where Kubernetes wants one.
pub(crate) fn set(object: &mut Node, path: &ObjectPath, value: &profiles::schema::Value) -> Result<(), TreeError> {
    let place = descend(object, &path.segments)?;
    all_strings(place.line, &path.segments, value)?;
    own_below(place)?;
    place.value = made(value).value;
    Ok(())
}

/// Makes the place `path`, which must not be there, below one that is.
///
/// # Errors
/// As [`set`]; if it is there.
pub(crate) fn add(object: &mut Node, path: &ObjectPath, value: &profiles::schema::Value) -> Result<(), TreeError> {
    let (parent, last) = parent(object, path)?;
    let line = parent.line;
    all_strings(line, &path.segments, value)?;
    match (&mut parent.value, last) {
        (Value::Sequence(elements), Segment::End) => {
            elements.push(made(value));
            Ok(())
        }
        (_, Segment::End) => Err(error(line, format!("`{path}` is to be the end of a list, and this is none"))),
        (Value::Mapping(entries), Segment::Key(key)) => {
            if entries.iter().any(|(name, _)| name.scalar() == Some(key)) {
                return Err(error(line, format!("`{path}` is there already: `set` gives it another value")));
            }
            entries.push((Node::text(key), made(value)));
            Ok(())
        }
        (_, Segment::Key(_)) => Err(error(line, format!("`{path}` is to be a key of this, which has no keys"))),
        (_, Segment::Index(_) | Segment::Matching { .. }) => {
            Err(error(line, format!("`{path}` names an element of a list: `[]` in its place is one more")))
        }
    }
}

/// Takes the place `path`, which must be there, out.
///
/// # Errors
/// As [`at`].
pub(crate) fn delete(object: &mut Node, path: &ObjectPath) -> Result<(), TreeError> {
    let place = descend(object, &path.segments)?;
    own_below(place)?;
    let (parent, last) = parent(object, path)?;
    let index = find(parent, last, &path.segments)?;
    match &mut parent.value {
        Value::Mapping(entries) => drop(entries.remove(index)),
        Value::Sequence(elements) => drop(elements.remove(index)),
        _ => {}
    }
    Ok(())
}

/// What the last step of `path` goes on from, and that step.
fn parent<'n, 'p>(object: &'n mut Node, path: &'p ObjectPath) -> Result<(&'n mut Node, &'p Segment), TreeError> {
    let line = object.line;
    let (last, way) = path.segments.split_last().ok_or_else(|| error(line, "a path without a step"))?;
    Ok((descend(object, way)?, last))
}

fn descend<'n>(node: &'n mut Node, path: &[Segment]) -> Result<&'n mut Node, TreeError> {
    let mut here = node;
    for (depth, segment) in path.iter().enumerate() {
        own(here)?;
        let index = find(here, segment, &path[..=depth])?;
        let line = here.line;
        here = match &mut here.value {
            Value::Mapping(entries) => entries.get_mut(index).map(|(_, value)| value),
            Value::Sequence(elements) => elements.get_mut(index),
            _ => None,
        }
        .ok_or_else(|| error(line, "nothing is below this"))?;
    }
    own(here)?;
    Ok(here)
}

/// Which entry or element of `node` a step leads to; `way` ends with it.
fn find(node: &Node, segment: &Segment, way: &[Segment]) -> Result<usize, TreeError> {
    let absent = |known: Vec<&str>| {
        let near = match segment {
            Segment::Key(key) | Segment::Matching { value: key, .. } => closest(key, &known),
            _ => None,
        };
        let there = match near {
            _ if known.is_empty() => String::new(),
            Some(near) => format!("; did you mean `{near}`?"),
            None => format!("; there is {}", list(&known[..known.len().min(LISTED)])),
        };
        error(node.line, format!("there is no `{}` here{there}", show_path(way)))
    };
    match (&node.value, segment) {
        (Value::Mapping(entries), Segment::Key(key)) => {
            let found = entries.iter().position(|(name, _)| name.scalar() == Some(key));
            found.ok_or_else(|| absent(entries.iter().filter_map(|(name, _)| name.scalar()).collect()))
        }
        (Value::Sequence(elements), Segment::Index(index)) if *index < elements.len() => Ok(*index),
        (Value::Sequence(elements), Segment::Index(_)) => {
            let what = format!("there is no `{}` here: the list has {} elements", show_path(way), elements.len());
            Err(error(node.line, what))
        }
        (Value::Sequence(elements), Segment::Matching { key, value }) => {
            let of = |element: &Node| element.get(key).and_then(Node::scalar).map(str::to_owned);
            let found: Vec<usize> =
                (0..elements.len()).filter(|index| of(&elements[*index]).as_ref() == Some(value)).collect();
            match found[..] {
                [only] => Ok(only),
                [] => Err(absent(elements.iter().filter_map(|one| one.get(key)?.scalar()).collect())),
                _ => Err(error(node.line, format!("`{}` fits {} elements: use [0]", show_path(way), found.len()))),
            }
        }
        (_, Segment::Key(_)) => Err(absent(Vec::new())),
        _ => Err(error(node.line, format!("there is no `{}` here: this is no list", show_path(way)))),
    }
}

/// Fails where something below `node` has a name that another place may use.
fn own_below(node: &Node) -> Result<(), TreeError> {
    if let Some(name) = &node.anchor {
        return Err(error(
            node.line,
            format!("the anchor `&{name}` is in what is to go, and may be used elsewhere: write it out"),
        ));
    }
    match &node.value {
        Value::Sequence(elements) => elements.iter().try_for_each(own_below),
        Value::Mapping(entries) => {
            entries.iter().try_for_each(|(key, value)| own_below(key).and_then(|()| own_below(value)))
        }
        _ => Ok(()),
    }
}

/// Fails where Kubernetes takes strings alone and `value` has something else: the API server would refuse the object, in the room.
fn all_strings(line: usize, path: &[Segment], value: &profiles::schema::Value) -> Result<(), TreeError> {
    use profiles::schema::Value as Given;
    let table =
        |segment: Option<&Segment>| matches!(segment, Some(Segment::Key(key)) if STRINGS.contains(&key.as_str()));
    let in_table = path.len() >= 2 && table(path.get(path.len() - 2));
    // Right below an object, or in metadata: a CustomResource may have such keys of its own anywhere else.
    let sure = |segment: &Segment| matches!(segment, Segment::Key(key) if ["metadata", "matchLabels", "nodeSelector"].contains(&key.as_str()));
    let known = |depth: usize| depth == 1 || path.iter().any(sure);
    let bad = |value: &Given| !matches!(value, Given::String(_));
    let wrong = match value {
        _ if in_table && known(path.len() - 1) => bad(value),
        Given::Table(entries) if table(path.last()) && known(path.len()) => entries.values().any(bad),
        _ => false,
    };
    if wrong {
        let what =
            format!("Kubernetes takes nothing but strings at `{}`: put the value in double quotes", show_path(path));
        return Err(error(line, what));
    }
    Ok(())
}

/// A value as a node.
fn made(value: &profiles::schema::Value) -> Node {
    use profiles::schema::Value as Given;
    Node::new(match value {
        Given::String(text) => Value::Text(text.clone()),
        Given::Integer(number) => Value::Bare(number.to_string()),
        // With a dot or an exponent, so that it stays a number with a fraction.
        Given::Float(number) => Value::Bare(format!("{number:?}")),
        Given::Boolean(value) => Value::Bare(value.to_string()),
        Given::List(values) => Value::Sequence(values.iter().map(made).collect()),
        Given::Table(entries) => {
            Value::Mapping(entries.iter().map(|(key, value)| (Node::text(key), made(value))).collect())
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use profiles::schema::Value as Given;

    use super::super::tree::{parse, write};
    use super::*;

    const OBJECT: &str = "kind: Deployment\nmetadata:\n  name: web\n  labels: {app: web}\nspec:\n  replicas: 1\n  template:\n    spec:\n\
        \x20     containers:\n      - name: web\n        image: a/b:1\n        args: [--x, 'yes']\n      - name: side\n        env: &env\n\
        \x20       - {name: A, value: b}\n      - name: same\n        env: *env\n      - name: same\n";

    fn text(value: &str) -> Given {
        Given::String(value.to_owned())
    }

    fn after(change: impl FnOnce(&mut Node) -> Result<(), TreeError>) -> Result<String, String> {
        let mut root = parse(OBJECT).unwrap().unwrap();
        change(&mut root).map_err(|error| error.to_string())?;
        Ok(write(&root).unwrap())
    }

    fn path(text: &str) -> ObjectPath {
        text.parse().unwrap()
    }

    #[test]
    fn values_keep_their_types() {
        for (value, written) in [
            (text("yes"), "replicas: \"yes\""),
            (text("0644"), "replicas: \"0644\""),
            (Given::Integer(-3), "replicas: -3"),
            (Given::Float(3.0), "replicas: 3.0"),
            (Given::Boolean(true), "replicas: true"),
            (Given::List(vec![text("1"), Given::Integer(1)]), "replicas:\n    - \"1\"\n    - 1\n"),
            (Given::Table(BTreeMap::from([("on".to_owned(), text("off"))])), "replicas:\n    \"on\": \"off\"\n"),
            (Given::List(vec![]), "replicas: []"),
        ] {
            let text = after(|root| set(root, &path("spec.replicas"), &value)).unwrap();
            assert!(text.contains(written), "{text}");
        }
    }

    #[test]
    fn places_are_set_added_and_deleted() {
        let container = "spec.template.spec.containers[name=web]";
        let set_one = after(|root| set(root, &path(&format!("{container}.args[1]")), &text("no"))).unwrap();
        assert!(set_one.contains("- --x\n            - \"no\""), "{set_one}");
        let added = after(|root| add(root, &path(&format!("{container}.args[]")), &text("--v=2"))).unwrap();
        assert!(added.contains("- \"yes\"\n            - \"--v=2\""), "{added}");
        let key = after(|root| add(root, &path("metadata.annotations"), &Given::Table(BTreeMap::new()))).unwrap();
        assert!(key.contains("\"annotations\": {}"), "{key}");
        let gone = after(|root| delete(root, &path("spec.template.spec.containers[0]"))).unwrap();
        assert!(!gone.contains("a/b:1") && gone.contains("side"), "{gone}");
        let gone = after(|root| delete(root, &path("metadata.labels"))).unwrap();
        assert!(!gone.contains("labels"), "{gone}");
    }

    #[test]
    fn what_cannot_be_changed_says_why() {
        let set_at = |place: &str| after(|root| set(root, &path(place), &text("x"))).unwrap_err();
        let add_at = |place: &str| after(|root| add(root, &path(place), &text("x"))).unwrap_err();
        let containers = "spec.template.spec.containers";
        for (found, expected) in [
            (set_at("spec.replica"), "line 6: there is no `spec.replica` here; did you mean `replicas`?"),
            (set_at("status.x"), "line 1: there is no `status` here; there is `kind`, `metadata`, `spec`"),
            (set_at(&format!("{containers}[name=wbe].image")), "did you mean `web`?"),
            (set_at(&format!("{containers}[name=same].image")), "fits 2 elements: use [0]"),
            (set_at(&format!("{containers}[9]")), "the list has 4 elements"),
            (set_at("spec.replicas.x"), "line 6: there is no `spec.replicas.x` here"),
            (set_at("spec[0]"), "this is no list"),
            (set_at(&format!("{containers}[name=side].env[0].value")), "write it out"),
            (set_at(&format!("{containers}[2].env[0].value")), "write it out"),
            (set_at(&format!("{containers}[1]")), "the anchor `&env` is in what is to go"),
            (after(|root| delete(root, &path("spec.template"))).unwrap_err(), "the anchor `&env`"),
            (add_at("spec.replicas"), "is there already: `set`"),
            (add_at("spec.replicas[]"), "is to be the end of a list"),
            (add_at("spec.replicas.x"), "is to be a key of this"),
            (add_at(&format!("{containers}[9]")), "`[]` in its place is one more"),
            (add_at("spec.strategy.type"), "there is no `spec.strategy` here"),
        ] {
            assert!(found.contains(expected), "{expected}: {found}");
        }
    }

    #[test]
    fn where_kubernetes_takes_strings_there_are_strings() {
        let number = Given::Integer(1);
        let error = after(|root| set(root, &path("metadata.labels.app"), &number)).unwrap_err();
        assert!(error.contains("nothing but strings at `metadata.labels.app`"), "{error}");
        let table = Given::Table(BTreeMap::from([("a".to_owned(), Given::Boolean(true))]));
        assert!(after(|root| add(root, &path("data"), &table)).unwrap_err().contains("nothing but strings at `data`"));
        assert!(after(|root| add(root, &path("spec.data"), &table)).is_ok(), "nobody knows what that is");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The images that objects of a manifest name: those of containers, which kubelet will ask for, and those in arguments and
//! environment variables, which a controller may make containers of.

use std::collections::{BTreeMap, BTreeSet};

use profiles::schema::ObjectName;

use super::tree::{Node, Value};
use super::{Document, name_of};
use crate::image::oci::reference;

/// Lists that hold containers, in pods and in whatever makes pods.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// No honest manifest leads deeper through aliases; a dishonest one may lead in circles.
const ALIASES: usize = 8;

/// An image that is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// As it is written.
    pub(crate) image: String,
    /// In which object; `None` if it is none.
    pub(crate) object: Option<ObjectName>,
    /// The line of the file, from 1.
    pub(crate) line: usize,
    /// Where in it.
    pub(crate) place: Place,
}

/// Where an image is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A container is made of it. With `always`, kubelet asks a registry for it whether it is there or not.
    Container {
        /// By `imagePullPolicy`, or because the name has the tag `latest` or none, and no policy.
        always: bool,
    },
    /// An argument or a variable of a container looks like one.
    Mention,
}

/// All images that `documents` name.
pub(crate) fn named(documents: &[Document<'_>]) -> Vec<Named> {
    let mut found = Vec::new();
    for document in documents {
        let Some(root) = document.root() else { continue };
        let mut names = BTreeMap::new();
        anchors(root, &mut names);
        for object in document.objects() {
            let walk = Walk { names: &names, object: name_of(object), document };
            walk.node(object, &mut found);
        }
    }
    found
}

/// What each anchor of a document stands for.
fn anchors<'a>(node: &'a Node, names: &mut BTreeMap<&'a str, &'a Node>) {
    if let Some(name) = &node.anchor {
        names.insert(name, node);
    }
    match &node.value {
        Value::Sequence(elements) => elements.iter().for_each(|element| anchors(element, names)),
        Value::Mapping(entries) => entries.iter().for_each(|(_, value)| anchors(value, names)),
        _ => {}
    }
}

struct Walk<'a> {
    names: &'a BTreeMap<&'a str, &'a Node>,
    object: Option<ObjectName>,
    document: &'a Document<'a>,
}

impl<'a> Walk<'a> {
    /// What `node` stands for.
    fn resolved(&self, node: &'a Node) -> &'a Node {
        let mut here = node;
        for _ in 0..ALIASES {
            match &here.value {
                Value::Alias(name) => match self.names.get(name.as_str()) {
                    Some(there) => here = there,
                    None => break,
                },
                _ => break,
            }
        }
        here
    }

    /// The value of a key, that of a merged mapping where it has none of its own.
    fn field(&self, node: &'a Node, key: &str) -> Option<&'a Node> {
        let own = node.get(key).or_else(|| {
            let merged = self.resolved(node.get("<<")?);
            let from = if merged.elements().is_empty() { std::slice::from_ref(merged) } else { merged.elements() };
            from.iter().find_map(|one| self.resolved(one).get(key))
        });
        own.map(|value| self.resolved(value))
    }

    /// What an alias stands for is looked at where it stands; here, only where containers are expected.
    fn node(&self, node: &'a Node, found: &mut Vec<Named>) {
        match &node.value {
            Value::Sequence(elements) => elements.iter().for_each(|element| self.node(element, found)),
            Value::Mapping(entries) => {
                for (key, value) in entries {
                    if key.scalar().is_some_and(|key| CONTAINERS.contains(&key)) {
                        let elements = self.resolved(value).elements();
                        elements.iter().for_each(|element| self.container(self.resolved(element), found));
                    }
                    self.node(value, found);
                }
            }
            _ => {}
        }
    }

    fn container(&self, container: &'a Node, found: &mut Vec<Named>) {
        let mut push = |node: &Node, image: &str, place| {
            let line = self.document.line_of(node);
            let named = Named { image: image.to_owned(), object: self.object.clone(), line, place };
            if !found.contains(&named) {
                found.push(named);
            }
        };
        if let Some(node) = self.field(container, "image")
            && let Some(image) = node.scalar()
        {
            let policy = self.field(container, "imagePullPolicy").and_then(Node::scalar);
            let always = match policy {
                Some(policy) => policy == "Always",
                None => reference::completed(image).ends_with(":latest"),
            };
            push(node, image, Place::Container { always });
        }
        for list in ["command", "args"] {
            for node in self.field(container, list).map(Node::elements).unwrap_or_default() {
                if let Some(image) = node.scalar().and_then(in_argument) {
                    push(node, image, Place::Mention);
                }
            }
        }
        for variable in self.field(container, "env").map(Node::elements).unwrap_or_default() {
            let variable = self.resolved(variable);
            let name = self.field(variable, "name").and_then(Node::scalar).unwrap_or_default();
            if let Some(node) = self.field(variable, "value")
                && let Some(image) = node.scalar().filter(|value| is_image(value, name))
            {
                push(node, image, Place::Mention);
            }
        }
    }
}

/// The image in `--flag=image` or `image`, if it looks like one.
fn in_argument(argument: &str) -> Option<&str> {
    match argument.split_once('=') {
        Some((flag, value)) if flag.starts_with('-') => is_image(value, flag).then_some(value),
        _ => is_image(argument, "").then_some(argument),
    }
}

/// Whether a value looks like the name of an image. One that lacks a registry, `busybox:1`, looks like much else: it counts
/// where `called` says that it is an image.
fn is_image(value: &str, called: &str) -> bool {
    let says_so = called.to_ascii_lowercase().contains("image");
    let tagged = value.contains('@') || value.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if !tagged || value.contains("//") {
        return false;
    }
    if says_so {
        reference::check(&reference::completed(value)).is_ok()
    } else {
        reference::check(value).is_ok() && !is_address(value)
    }
}

/// `10.0.0.1:53/udp:1` and the like: a host of digits is the beginning of an image's name far less often than an address.
fn is_address(value: &str) -> bool {
    let host = value.split(['/', ':']).next().unwrap_or_default();
    host.parse::<std::net::IpAddr>().is_ok()
}

/// Other names for images: what a name begins with, and what it begins with instead.
pub(crate) type Renames = BTreeMap<String, String>;

/// The name that `renames` give to `image`, and the rule that does; the longest that fits.
fn renamed<'r>(image: &str, renames: &'r Renames) -> Option<(&'r str, String)> {
    let full = reference::completed(image);
    let fits = |name: &str, from: &str| {
        name.strip_prefix(from).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
    };
    let rules = renames.iter().filter_map(|(from, to)| {
        let name = [image, full.as_str()].into_iter().find(|name| fits(name, from))?;
        Some((from.as_str(), format!("{to}{}", &name[from.len()..])))
    });
    rules.max_by_key(|(from, _)| from.len())
}

/// Gives the images of a document their other names; `used` gets the rules that did something. A name that an alias shares is
/// changed where it stands.
pub(crate) fn rename(document: &mut Document<'_>, renames: &Renames, used: &mut BTreeSet<String>) {
    let wanted = |document: &Document<'_>| {
        named(std::slice::from_ref(document)).iter().any(|one| renamed(&one.image, renames).is_some())
    };
    if renames.is_empty() || !wanted(document) {
        return;
    }
    document.change(&mut |root| {
        rename_below(root, renames, used);
        Vec::new()
    });
}

fn rename_below(node: &mut Node, renames: &Renames, used: &mut BTreeSet<String>) {
    match &mut node.value {
        Value::Sequence(elements) => elements.iter_mut().for_each(|element| rename_below(element, renames, used)),
        Value::Mapping(entries) => {
            for (key, value) in entries {
                let containers = key.scalar().is_some_and(|key| CONTAINERS.contains(&key));
                if let Value::Sequence(elements) = &mut value.value
                    && containers
                {
                    elements.iter_mut().for_each(|container| rename_container(container, renames, used));
                }
                rename_below(value, renames, used);
            }
        }
        _ => {}
    }
}

fn rename_container(container: &mut Node, renames: &Renames, used: &mut BTreeSet<String>) {
    let mut give = |node: &mut Node, find: &dyn Fn(&str) -> Option<usize>| {
        let (Value::Bare(text) | Value::Text(text)) = &node.value else { return };
        let Some(begin) = find(text) else { return };
        if let Some((from, name)) = renamed(&text[begin..], renames) {
            used.insert(from.to_owned());
            node.value = Value::Text(format!("{}{name}", &text[..begin]));
        }
    };
    if let Some(image) = container.get_mut("image") {
        give(image, &|_: &str| Some(0));
    }
    for list in ["command", "args"] {
        if let Some(Node { value: Value::Sequence(elements), .. }) = container.get_mut(list) {
            // What looks like an image is the end of the argument.
            let begin =
                |argument: &str| -> Option<usize> { in_argument(argument).map(|image| argument.len() - image.len()) };
            elements.iter_mut().for_each(|argument| give(argument, &begin));
        }
    }
    if let Some(Node { value: Value::Sequence(variables), .. }) = container.get_mut("env") {
        for variable in variables {
            let name = variable.get("name").and_then(Node::scalar).unwrap_or_default().to_owned();
            if let Some(value) = variable.get_mut("value") {
                give(value, &|value: &str| is_image(value, &name).then_some(0));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{documents, text};
    use super::*;

    const MANIFEST: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: cm, namespace: cm}\nspec:\n  template:\n    spec:\n\
        \x20     initContainers:\n      - name: a\n        image: quay.io/jetstack/cm-startup:v1 # a comment\n      containers:\n\
        \x20     - name: b\n        image: \"quay.io/jetstack/cm:v1\"\n        imagePullPolicy: Always\n        args:\n\
        \x20       - --acme-http01-solver-image=quay.io/jetstack/cm-solver:v1\n        - --listen=0.0.0.0:9402\n        - --url=https://a.b/c:1\n\
        \x20       - --cluster-resource-namespace=$(POD_NAMESPACE)\n        env:\n        - {name: RELATED_IMAGE_PROXY, value: proxy:1}\n\
        \x20       - {name: OTHER, value: proxy:1}\n        - {name: HOST, value: '10.0.0.1:53/x:1'}\n\
        \x20     ephemeralContainers:\n      - {name: c, image: busybox}\n---\nkind: CustomResourceDefinition\n\
        spec: {properties: {image: {type: string}, containers: {type: array}}}\n";

    fn found(text: &str) -> Vec<(String, usize, Place)> {
        named(&documents(text).unwrap()).into_iter().map(|one| (one.image, one.line, one.place)).collect()
    }

    #[test]
    fn images_are_found_where_kubelet_and_controllers_look() {
        let once = Place::Container { always: false };
        let always = Place::Container { always: true };
        let expected = [
            ("quay.io/jetstack/cm-startup:v1", 9, once),
            ("quay.io/jetstack/cm:v1", 12, always),
            ("quay.io/jetstack/cm-solver:v1", 15, Place::Mention),
            ("proxy:1", 20, Place::Mention),
            ("busybox", 24, always),
        ];
        let expected: Vec<_> = expected.map(|(image, line, place)| (image.to_owned(), line, place)).into();
        assert_eq!(found(MANIFEST), expected);
        let objects = named(&documents(MANIFEST).unwrap());
        assert!(objects.iter().all(|one| one.object.as_ref().unwrap().to_string() == "Deployment/cm/cm"));
    }

    #[test]
    fn aliases_and_merged_mappings_are_followed_and_circles_survived() {
        let text = "kind: List\nitems:\n- kind: Pod\n  metadata: {name: a}\n  spec:\n    containers: &all\n    - &one {name: a, image: &image 'x/y:1'}\n\
            - kind: Pod\n  metadata: {name: b}\n  spec:\n    containers:\n    - <<: *one\n      name: b\n    - image: *image\n\
            - kind: Pod\n  metadata: {name: c}\n  spec:\n    containers: *all\n";
        let who: Vec<String> = named(&documents(text).unwrap())
            .iter()
            .map(|one| format!("{} {}", one.object.as_ref().unwrap(), one.image))
            .collect();
        assert_eq!(who, ["Pod/a x/y:1", "Pod/b x/y:1", "Pod/c x/y:1"]);
        for circle in [
            "a: &a\n  containers: *a\n",
            "a: &a\n- *a\n",
            "a: &a\n  b: &b\n    c: [*a, *b]\n",
            "a: &a {<<: *a, containers: [*a]}\n",
        ] {
            if let Ok(documents) = documents(circle) {
                assert_eq!(named(&documents), []);
            }
        }
    }

    fn after(text_before: &str, renames: &[(&str, &str)]) -> (String, Vec<String>) {
        let renames: Renames = renames.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
        let (mut read, mut used) = (documents(text_before).unwrap(), BTreeSet::new());
        read.iter_mut().for_each(|document| rename(document, &renames, &mut used));
        (text(&read).unwrap(), used.into_iter().collect())
    }

    #[test]
    fn names_begin_otherwise_where_a_rule_fits() {
        let rules = [
            ("quay.io/jetstack", "r.local/js"),
            ("quay.io/jetstack/cm", "other.local/cm"),
            ("docker.io/library", "r.local/lib"),
            ("quay.io/jet", "never"),
        ];
        let (text, used) = after(MANIFEST, &rules);
        let names: Vec<String> = found(&text).into_iter().map(|(image, ..)| image).collect();
        assert_eq!(
            names,
            [
                "r.local/js/cm-startup:v1",
                "other.local/cm:v1",
                "r.local/js/cm-solver:v1",
                "r.local/lib/proxy:1",
                "r.local/lib/busybox:latest"
            ]
        );
        assert_eq!(used, ["docker.io/library", "quay.io/jetstack", "quay.io/jetstack/cm"]);
        assert!(text.contains("--acme-http01-solver-image=r.local/js/cm-solver:v1"), "{text}");
        assert!(text.ends_with(MANIFEST.split_once("---\n").unwrap().1), "the definition stays as it is");
        assert!(text.contains("value: \"proxy:1\"") || text.contains("value: proxy:1"), "{text}");
        assert_eq!(after(MANIFEST, &[("gcr.io", "r.local")]), (MANIFEST.to_owned(), vec![]));
    }
}

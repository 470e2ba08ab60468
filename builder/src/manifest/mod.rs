// SPDX-License-Identifier: MIT OR Apache-2.0

//! Kubernetes manifests as text of several YAML documents. A document that is changed is written anew from its parsed form;
//! all others stay byte for byte as they came. Knows objects, no programs.

pub(crate) mod edit;
pub(crate) mod images;
mod tree;

use std::borrow::Cow;
use std::io::Read;

use anyhow::{Context, Result};
use profiles::schema::ObjectName;

pub(crate) use self::tree::{Node, TreeError, Value};

/// The largest manifest that is read, in bytes: Calico's has 0.8 MB, those with the most definitions some 5 MB.
pub(crate) const LARGEST: u64 = 16 << 20;

/// What of a file is worth reading: with more than [`LARGEST`] bytes it is no manifest.
///
/// # Errors
/// If it cannot be read.
pub fn read(file: impl Read) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut content).context("reading a manifest")?;
    Ok(content)
}

/// A document of a manifest.
#[derive(Debug, Clone)]
pub(crate) struct Document<'a> {
    /// Its place in the file, from 1.
    pub(crate) first_line: usize,
    /// With the line `---` that begins it.
    text: &'a str,
    /// Parsed; `None` if there are only comments.
    root: Option<Node>,
    changed: bool,
}

/// The documents of a manifest.
///
/// # Errors
/// Everything that cannot be read, each with its line.
pub(crate) fn documents(text: &str) -> Result<Vec<Document<'_>>, Vec<String>> {
    let (mut documents, mut problems) = (Vec::new(), Vec::new());
    for (first_line, text) in split(text) {
        match tree::parse(text) {
            Ok(root) => documents.push(Document { first_line, text, root, changed: false }),
            Err(error) => problems.push(shifted(&error, first_line)),
        }
    }
    if problems.is_empty() { Ok(documents) } else { Err(problems) }
}

/// Documents as one manifest.
///
/// # Errors
/// Documents that cannot be written without changing their meaning, each with its line.
pub(crate) fn text(documents: &[Document<'_>]) -> Result<String, Vec<String>> {
    let (mut text, mut problems) = (String::new(), Vec::new());
    for document in documents {
        match document.written() {
            Ok(written) => join(&mut text, &written),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(text) } else { Err(problems) }
}

/// Adds a document to a manifest. That of another file may begin without a marker, and the one before may end in the middle of
/// a line.
pub(crate) fn join(manifest: &mut String, document: &str) {
    if !manifest.is_empty() && !document.is_empty() {
        manifest.push_str(if manifest.ends_with('\n') { "" } else { "\n" });
        manifest.push_str(if has_marker(document) { "" } else { "---\n" });
    }
    manifest.push_str(document);
}

impl Document<'_> {
    /// The scalar at `path`.
    pub(crate) fn field(&self, path: &[&str]) -> Option<&str> {
        path.iter().try_fold(self.root.as_ref()?, |node, key| node.get(key))?.scalar()
    }

    /// Whether it is the object of that kind and name.
    pub(crate) fn is(&self, kind: &str, name: &str) -> bool {
        self.field(&["kind"]) == Some(kind) && self.field(&["metadata", "name"]) == Some(name)
    }

    /// What it was parsed to; `None` if there are only comments.
    pub(crate) fn root(&self) -> Option<&Node> {
        self.root.as_ref()
    }

    /// Its objects: itself, or the items of a list.
    pub(crate) fn objects(&self) -> Vec<&Node> {
        let Some(root) = &self.root else { return Vec::new() };
        if is_list(root) {
            root.get("items").map(|items| items.elements().iter().collect()).unwrap_or_default()
        } else {
            vec![root]
        }
    }

    /// Whether it is a list of objects.
    pub(crate) fn is_list(&self) -> bool {
        self.root.as_ref().is_some_and(is_list)
    }

    /// Changes it; gives what stood in the way, with lines of the file.
    pub(crate) fn change(&mut self, edit: &mut dyn FnMut(&mut Node) -> Vec<TreeError>) -> Vec<String> {
        self.changed = true;
        let errors = self.root.as_mut().map(edit).unwrap_or_default();
        errors.iter().map(|error| shifted(error, self.first_line)).collect()
    }

    /// Changes each object of that name; gives how many there are, and what stood in the way.
    pub(crate) fn change_object(
        &mut self,
        name: &ObjectName,
        edit: &mut dyn FnMut(&mut Node) -> Vec<TreeError>,
    ) -> (usize, Vec<String>) {
        let is_it = |node: &Node| name_of(node).is_some_and(|own| own.is(name));
        let count = self.objects().into_iter().filter(|node| is_it(node)).count();
        if count == 0 {
            return (0, Vec::new());
        }
        let problems = self.change(&mut |root| {
            if !is_list(root) {
                return edit(root);
            }
            let items = root.get_mut("items").and_then(|items| match &mut items.value {
                Value::Sequence(items) => Some(items),
                _ => None,
            });
            items.into_iter().flatten().filter(|node| is_it(node)).flat_map(&mut *edit).collect()
        });
        (count, problems)
    }

    /// Where in the file something of it stands.
    pub(crate) fn line_of(&self, node: &Node) -> usize {
        self.first_line + node.line.max(1) - 1
    }

    /// Its text, with the marker that begins it.
    ///
    /// # Errors
    /// If it is changed and cannot be written without changing its meaning.
    pub(crate) fn written(&self) -> Result<Cow<'_, str>, String> {
        match &self.root {
            Some(root) if self.changed => self.object_written(root).map(Cow::Owned),
            _ => Ok(self.text.into()),
        }
    }

    /// One of its objects as a document of its own.
    ///
    /// # Errors
    /// As [`Self::written`].
    pub(crate) fn object_written(&self, object: &Node) -> Result<String, String> {
        tree::write(object).map(|text| format!("---\n{text}")).map_err(|error| shifted(&error, self.first_line))
    }
}

/// Kind, namespace and name of an object; the name of one that gets its name from the server is what that begins with. `None` if
/// it is no object.
pub(crate) fn name_of(object: &Node) -> Option<ObjectName> {
    let metadata = object.get("metadata")?;
    let text = |key: &str| metadata.get(key).and_then(Node::scalar).map(str::to_owned);
    Some(ObjectName {
        kind: object.get("kind")?.scalar()?.to_owned(),
        namespace: text("namespace"),
        name: text("name").or_else(|| text("generateName"))?,
    })
}

/// `kind: List`, or a list of one kind, as `kubectl get -o yaml` and some tools write it.
fn is_list(root: &Node) -> bool {
    let kind = root.get("kind").and_then(Node::scalar);
    kind.is_some_and(|kind| kind.ends_with("List"))
        && matches!(root.get("items"), Some(Node { value: Value::Sequence(_), .. }))
}

/// Lines of a document are counted from where it begins.
fn shifted(error: &TreeError, first_line: usize) -> String {
    format!("line {}: {}", first_line + error.line.max(1) - 1, error.what)
}

/// The documents with the line each begins in. A line `---` begins one wherever it stands, also in what looks like a
/// string: YAML 1.2, section 9.1.2.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut begin, mut first_line, mut at) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if has_marker(line) && at > begin {
            documents.push((first_line, &text[begin..at]));
            (begin, first_line) = (at, index + 1);
        }
        at += line.len();
    }
    documents.push((first_line, &text[begin..]));
    documents
}

/// Whether a text begins with a line that begins a document.
fn has_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// For tests/fuzz: reads a manifest, document by document.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    for (_, document) in split(text) {
        tree::fuzz(document);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LISTS: &str = "# of a tool\nkind: Namespace\nmetadata: {name: a}\n---\n# only a comment\n---\nkind: List\nitems:\n\
        - kind: Secret\n  metadata: {name: b, namespace: n}\n- kind: Job\n  metadata:\n    generateName: c-\n--- # marker\n\
        kind: Namespace\nmetadata:\n  name: a\n";

    #[test]
    fn objects_are_found_in_documents_and_in_lists() {
        let documents = documents(LISTS).unwrap();
        let names = |document: &Document<'_>| -> Vec<String> {
            document.objects().into_iter().filter_map(name_of).map(|name| name.to_string()).collect()
        };
        assert_eq!(
            documents.iter().map(names).collect::<Vec<_>>(),
            [
                vec!["Namespace/a".to_owned()],
                vec![],
                vec!["Secret/n/b".to_owned(), "Job/c-".to_owned()],
                vec!["Namespace/a".to_owned()],
            ]
        );
        assert_eq!(documents.iter().map(|document| document.first_line).collect::<Vec<_>>(), [1, 4, 6, 14]);
    }

    #[test]
    fn what_is_not_changed_stays_as_it_came() {
        let mut read = documents(LISTS).unwrap();
        assert_eq!(text(&read).unwrap(), LISTS);
        let name: ObjectName = "Secret/n/b".parse().unwrap();
        let changed: Vec<usize> = read
            .iter_mut()
            .map(|document| {
                let (count, problems) = document.change_object(&name, &mut |node| {
                    node.value = Value::Bare("gone".to_owned());
                    vec![]
                });
                assert_eq!(problems, [""; 0]);
                count
            })
            .collect();
        assert_eq!(changed, [0, 0, 1, 0]);
        let text = text(&read).unwrap();
        assert!(
            text.contains("# only a comment") && text.contains("# of a tool") && !text.contains("Secret"),
            "{text}"
        );
        assert!(text.contains("- gone\n") && text.contains("generateName: c-"), "{text}");
    }

    /// Two of them are written as one file.
    #[test]
    fn a_file_without_a_last_line_break_does_not_run_into_the_next() {
        let (one, two) = (documents("kind: A").unwrap(), documents("kind: B\n").unwrap());
        let both = text(&[one, two].concat()).unwrap();
        assert_eq!(both, "kind: A\n---\nkind: B\n");
    }

    #[test]
    fn every_document_that_cannot_be_read_is_told_with_its_line() {
        let problems = documents("a: [\n---\na: 1\n---\nb: 1\nb: 2\n").unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[1].starts_with("line 6: the key `b` is there twice"), "{problems:?}");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Add-ons: manifests as they are brought, changed as the cluster file says, split into what firstboot applies first and what
//! it applies then, with an index of what it waits for. Layout: docs/contracts.md, section 3.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use profiles::Cluster;
use profiles::addon_index::{self as index, Definitions, Index};
use profiles::schema::{Addon, ObjectName, Patch, Wait};
use profiles::text::{closest, list};

use super::Bench;
use crate::error::Failure;
use crate::image::oci::reference;
use crate::manifest::images::{Place, named, rename};
use crate::manifest::{self, Document, LARGEST, Node, edit, name_of};
use crate::proof::images::Wanted;

/// The prefix of a manifest that is the file of an input.
const INPUT: &str = "input:";
/// The kind whose objects are applied, and waited for, before all others.
const DEFINITION: &str = "CustomResourceDefinition";
/// How many objects a message lists.
const LISTED: usize = 12;

/// Kinds that live in a namespace, and go to `default` if they say none: those that manifests of add-ons have.
const NAMESPACED: [&str; 22] = [
    "ConfigMap",
    "CronJob",
    "DaemonSet",
    "Deployment",
    "Endpoints",
    "HorizontalPodAutoscaler",
    "Ingress",
    "Job",
    "LimitRange",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "Pod",
    "PodDisruptionBudget",
    "ReplicaSet",
    "ReplicationController",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "Secret",
    "Service",
    "ServiceAccount",
    "StatefulSet",
];

/// What becomes of the add-ons.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Files of the payload, by path; none without add-ons.
    pub files: BTreeMap<String, String>,
    /// The images that they will ask for.
    pub wanted: Vec<Wanted>,
    /// What their user should know.
    pub warnings: Vec<String>,
}

/// The add-ons of what is built on `bench`.
///
/// # Errors
/// As [`prepare`].
pub fn of(bench: &Bench<'_>) -> Result<Prepared> {
    prepare(bench.cluster, |path| {
        let object = match path.strip_prefix(INPUT) {
            Some(input) => {
                let to = bench.cluster.files().find(|file| file.name == input).map(|file| &file.to);
                bench.sources.files.iter().find(|(own, ..)| Some(own) == to).map(|(.., object)| object)
            }
            None => bench.sources.addons.get(path),
        };
        let object = object.with_context(|| format!("the manifest {path} is not in the store"))?;
        manifest::read(bench.store.open_object(object)?).map(Some)
    })
}

/// The add-ons of `cluster`. `read` gives the content of a manifest by what the cluster file calls it, or `None` if it is not there
/// yet: then of its add-on nothing is known, and nothing is made.
///
/// # Errors
/// If `read` fails; everything in all manifests that cannot be used or changed as the cluster file says.
pub fn prepare(cluster: &Cluster, read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Prepared> {
    let (mut prepared, mut problems, mut addons) = (Prepared::default(), Vec::new(), Vec::new());
    for (number, addon) in cluster.addon.iter().enumerate() {
        let mut texts = Vec::new();
        for path in &addon.manifests {
            let Some(content) = read(path)? else { continue };
            match utf8(content) {
                Ok(text) => texts.push((path.as_str(), text)),
                Err(why) => problems.push(format!("{path}: {why}")),
            }
        }
        if texts.len() != addon.manifests.len() {
            continue;
        }
        match (Work { addon, number, prepared: &mut prepared }).run(&texts) {
            Ok(addon) => addons.push(addon),
            Err(found) => problems.extend(found),
        }
    }
    if !problems.is_empty() {
        let message = format!("the add-ons cannot be used as they are:\n  {}", problems.join("\n  "));
        let hint =
            "docs/addons.md says how objects and places are written; each patch finds what the patches above it made";
        return Err(Failure::user(message).hint(hint).into());
    }
    if !addons.is_empty() {
        let text = serde_json::to_string_pretty(&Index { schema: index::SCHEMA, addons })
            .context("writing the add-ons' index")?;
        prepared.files.insert(format!("{}/{}", index::DIR, index::INDEX), text + "\n");
    }
    Ok(prepared)
}

fn utf8(content: Vec<u8>) -> Result<String, String> {
    if content.len() as u64 > LARGEST {
        return Err(format!("it has more than {} MiB, and so is no manifest", LARGEST >> 20));
    }
    String::from_utf8(content).map_err(|error| format!("it is no text: {error}"))
}

/// One manifest of an add-on.
struct File<'a> {
    path: &'a str,
    documents: Vec<Document<'a>>,
}

/// The making of one add-on.
struct Work<'a> {
    addon: &'a Addon,
    number: usize,
    prepared: &'a mut Prepared,
}

impl Work<'_> {
    fn run(mut self, texts: &[(&str, String)]) -> Result<index::Addon, Vec<String>> {
        let (mut files, mut problems) = (Vec::new(), Vec::new());
        for (path, text) in texts {
            match manifest::documents(text) {
                Ok(documents) => files.push(File { path, documents }),
                Err(found) => problems.extend(found.iter().map(|problem| format!("{path}: {problem}"))),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        for (at, patch) in self.addon.patch.iter().enumerate() {
            problems.extend(self.patch(&mut files, at, patch));
        }
        problems.extend(self.rename(&mut files));
        problems.extend(unnamed(&files));
        if !problems.is_empty() {
            return Err(problems);
        }
        let addon = self.addon;
        let waits = addon.wait.iter().map(|wait| self.wait(&files, wait)).collect();
        self.look(&files);
        let (definitions, names, objects) = self.split(&files)?;
        let stem = format!("{:02}-{}", self.number + 1, self.addon.name);
        let mut file = |name: String, text: String| {
            self.prepared.files.insert(format!("{}/{name}", index::DIR), text);
            name
        };
        let definitions = (!names.is_empty())
            .then(|| Definitions { file: file(format!("{stem}-definitions.yaml"), definitions), names });
        let objects = (!objects.is_empty()).then(|| file(format!("{stem}.yaml"), objects));
        Ok(index::Addon { name: addon.name.clone(), definitions, objects, waits })
    }

    /// Changes the objects of one patch; gives what stands in the way.
    fn patch(&self, files: &mut [File<'_>], at: usize, patch: &Patch) -> Vec<String> {
        let (mut count, mut problems) = (0, Vec::new());
        let whose = format!("patch {} of add-on `{}`, {}", at + 1, self.addon.name, patch.object);
        let mut edit = |object: &mut Node| {
            let done = match (&patch.set, &patch.add, &patch.delete, &patch.value) {
                (Some(path), _, _, Some(value)) => edit::set(object, path, value),
                (_, Some(path), _, Some(value)) => edit::add(object, path, value),
                (_, _, Some(path), _) => edit::delete(object, path),
                // Validation lets no such patch through.
                _ => Ok(()),
            };
            done.err().into_iter().collect()
        };
        for file in files.iter_mut() {
            for document in &mut file.documents {
                let (found, told) = document.change_object(&patch.object, &mut edit);
                count += found;
                problems.extend(told.iter().map(|problem| format!("{}: {problem} ({whose})", file.path)));
            }
        }
        if count == 0 {
            let paths: Vec<&str> = files.iter().map(|file| file.path).collect();
            problems.push(format!(
                "{}: there is no such object: {whose}{}",
                paths.join(", "),
                near(files, &patch.object)
            ));
        }
        problems
    }

    /// Gives images their other names; gives the rules that fit none.
    fn rename(&self, files: &mut [File<'_>]) -> Vec<String> {
        let renames = &self.addon.images;
        if renames.is_empty() {
            return Vec::new();
        }
        let images: BTreeSet<String> =
            files.iter().flat_map(|file| named(&file.documents)).map(|one| one.image).collect();
        let mut used = BTreeSet::new();
        files.iter_mut().flat_map(|file| &mut file.documents).for_each(|document| rename(document, renames, &mut used));
        let images: Vec<&str> = images.iter().map(String::as_str).take(LISTED).collect();
        let there = if images.is_empty() { "there is none".to_owned() } else { format!("there is {}", list(&images)) };
        let idle = renames.keys().filter(|from| !used.contains(*from));
        idle.map(|from| {
            format!(
                "add-on `{}`: no image of its manifests begins with \"{from}\" of `images`; {there}",
                self.addon.name
            )
        })
        .collect()
    }

    /// What firstboot is to wait for.
    fn wait(&mut self, files: &[File<'_>], wait: &Wait) -> index::Wait {
        let version = objects(files)
            .find(|(object, _)| object.is(&wait.object))
            .and_then(|(_, node)| node.get("apiVersion")?.scalar());
        if version.is_none() {
            self.prepared.warnings.push(format!(
                "add-on `{}` waits for {}, which none of its manifests has: it must come of something else{}",
                self.addon.name,
                wait.object,
                near(files, &wait.object)
            ));
        }
        // kubectl's TYPE.VERSION.GROUP; the core group has no name, and its kinds are known without.
        let resource = match version.and_then(|version| version.split_once('/')) {
            Some((group, version)) => format!("{}.{version}.{group}", wait.object.kind),
            None => wait.object.kind.clone(),
        };
        index::Wait {
            resource,
            namespace: wait.object.namespace.clone(),
            name: wait.object.name.clone(),
            condition: wait.condition.clone(),
            timeout_seconds: wait.timeout.as_secs(),
        }
    }

    /// Which images will be asked for, and what looks wrong.
    fn look(&mut self, files: &[File<'_>]) {
        for file in files {
            for one in named(&file.documents) {
                let object = one.object.as_ref().map(|object| format!(", {object}")).unwrap_or_default();
                let by = format!("add-on `{}` ({} line {}{object})", self.addon.name, file.path, one.line);
                if one.place == (Place::Container { always: true }) {
                    self.prepared.warnings.push(format!(
                        "{by}: kubelet will ask a registry for `{}` although it is there, since its policy is Always; in a room without \
                         one, add a patch that makes `imagePullPolicy` \"IfNotPresent\"",
                        one.image
                    ));
                }
                let certain = matches!(one.place, Place::Container { .. });
                self.prepared.wanted.push(Wanted { reference: reference::completed(&one.image), by, certain });
            }
        }
        let bare: BTreeSet<String> = objects(files)
            .map(|(object, _)| object)
            .filter(|object| object.namespace.is_none() && NAMESPACED.contains(&object.kind.as_str()))
            .map(|object| object.to_string())
            .collect();
        if !bare.is_empty() {
            let shown: Vec<&str> = bare.iter().map(String::as_str).take(LISTED).collect();
            self.prepared.warnings.push(format!(
                "add-on `{}`: {} of its objects say no namespace and go to `default`: {}",
                self.addon.name,
                bare.len(),
                list(&shown)
            ));
        }
    }

    /// Definitions with their names, and everything else. A list that has both is taken apart.
    fn split(&self, files: &[File<'_>]) -> Result<(String, Vec<String>, String), Vec<String>> {
        let is_definition = |node: &Node| node.get("kind").and_then(Node::scalar) == Some(DEFINITION);
        let (mut definitions, mut others, mut names) = (String::new(), String::new(), BTreeSet::new());
        let (mut problems, mut has_others) = (Vec::new(), false);
        for file in files {
            for document in &file.documents {
                let objects = document.objects();
                let count = objects.iter().filter(|node| is_definition(node)).count();
                has_others |= count < objects.len();
                let own = objects.iter().filter(|node| is_definition(node));
                names.extend(own.filter_map(|node| name_of(node)).map(|name| name.name));
                let mut add = |definition: bool, text: Result<Cow<'_, str>, String>| match text {
                    Ok(text) => manifest::join(if definition { &mut definitions } else { &mut others }, &text),
                    Err(problem) => problems.push(format!("{}: {problem}", file.path)),
                };
                if document.is_list() && count > 0 && count < objects.len() {
                    let written = |object: &Node| document.object_written(object).map(Cow::Owned);
                    objects.into_iter().for_each(|object| add(is_definition(object), written(object)));
                } else {
                    add(count > 0, document.written());
                }
            }
        }
        if !has_others {
            others.clear();
        }
        if problems.is_empty() { Ok((definitions, Vec::from_iter(names), others)) } else { Err(problems) }
    }
}

/// The objects of manifests.
fn objects<'f>(files: &'f [File<'_>]) -> impl Iterator<Item = (ObjectName, &'f Node)> {
    let nodes = files.iter().flat_map(|file| &file.documents).flat_map(Document::objects);
    nodes.filter_map(|node| Some((name_of(node)?, node)))
}

/// What somebody may have meant who wrote `wanted`.
fn near(files: &[File<'_>], wanted: &ObjectName) -> String {
    let all: BTreeSet<String> = objects(files).map(|(object, _)| object.to_string()).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    if let Some(near) = closest(&wanted.to_string(), &all) {
        return format!("; did you mean `{near}`?");
    }
    let of_kind = all.iter().copied().filter(|name| name.starts_with(&format!("{}/", wanted.kind)));
    let of_kind: Vec<&str> = of_kind.collect();
    let shown = if of_kind.is_empty() { all } else { of_kind };
    if shown.is_empty() { String::new() } else { format!("; there is {}", list(&shown[..shown.len().min(LISTED)])) }
}

/// Objects that cannot be applied again, or not at all.
fn unnamed(files: &[File<'_>]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files {
        for document in &file.documents {
            for object in document.objects() {
                let line = document.line_of(object);
                let generated = object.get("metadata").filter(|metadata| metadata.get("name").is_none());
                let generated = generated.and_then(|metadata| metadata.get("generateName")?.scalar());
                match (name_of(object), generated) {
                    (Some(name), Some(_)) => problems.push(format!(
                        "{}: line {line}: {name} gets its name from the server, and would be there once more each time it is applied: give \
                         it one, with a patch that has object = \"{name}\" and add = \"metadata.name\"",
                        file.path
                    )),
                    (None, _) => problems.push(format!(
                        "{}: line {line}: this is no object of Kubernetes: it has no `kind`, or no `metadata.name`",
                        file.path
                    )),
                    _ => {}
                }
            }
        }
    }
    problems
}

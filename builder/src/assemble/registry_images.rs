// SPDX-License-Identifier: MIT OR Apache-2.0

//! Images of registries, for the payload: what the cluster file wants of them, and what the lock says they are. From
//! there on they are as those that a user brings in archives ([`super::image_archive`]).

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use profiles::Cluster;
use profiles::reference::Reference;
use serde::Serialize;

use super::{Bench, image_archive};
use crate::error::Failure;
use crate::inputs::image_archive::{Image, of_objects, sha256};
use crate::inputs::request::{OciRequest, Request};
use crate::lock::{ItemKind, Lock};
use crate::store::Digest;

/// The images of one input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegistryImages {
    /// The input, for messages.
    #[serde(skip)]
    pub input: String,
    /// In the cluster file's order.
    pub images: Vec<RegistryImage>,
    /// Further names of images, to those in the cluster file.
    pub names: BTreeMap<String, String>,
}

/// An image of a registry, as store objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegistryImage {
    /// Its full reference in the cluster file.
    pub reference: String,
    /// Indices that lead to it, and its manifest.
    pub manifests: Vec<Digest>,
    /// Its configuration and its layers.
    pub blobs: Vec<Digest>,
}

/// What `cluster` needs, by name.
pub(super) fn requests(cluster: &Cluster) -> impl Iterator<Item = (String, Request)> + '_ {
    cluster.ocis().map(|input| {
        let images = input.images.iter().cloned().collect();
        (input.name.clone(), Request::Oci(OciRequest { architecture: cluster.os.architecture, images }))
    })
}

/// What the lock says of what `cluster` needs.
///
/// # Errors
/// If the lock does not hold it.
pub(super) fn from_lock(cluster: &Cluster, lock: &Lock) -> Result<Vec<RegistryImages>> {
    let mut all = Vec::new();
    for input in cluster.ocis() {
        let locked = lock.inputs.get(&input.name);
        let items = &locked.with_context(|| format!("the lock has no input `{}`", input.name))?.items;
        let image = |reference: &String| -> Result<RegistryImage> {
            let own = || items.iter().filter(|item| item.kind == ItemKind::Oci && item.name == *reference);
            let (manifests, blobs): (Vec<_>, Vec<_>) = own().partition(|item| item.path.contains("/manifests/"));
            if manifests.is_empty() {
                bail!("the lock has no image {reference} for input `{}`", input.name);
            }
            let digests = |items: Vec<&crate::lock::LockedItem>| items.iter().map(|item| item.sha256).collect();
            Ok(RegistryImage { reference: reference.clone(), manifests: digests(manifests), blobs: digests(blobs) })
        };
        all.push(RegistryImages {
            input: input.name.clone(),
            images: input.images.iter().map(image).collect::<Result<_>>()?,
            names: input.names.clone(),
        });
    }
    Ok(all)
}

/// The images of one input, under all their names.
///
/// # Errors
/// Objects that do not make an image of this cluster's architecture.
pub(super) fn read(bench: &Bench<'_>, from: &RegistryImages) -> Result<Vec<Image>> {
    let image = |locked: &RegistryImage| -> Result<Vec<Image>> {
        let of = || format!("reading image {}", locked.reference);
        let reference = Reference::parse(&locked.reference)?;
        let image = of_objects(bench.store, bench.architecture(), &locked.manifests, &locked.blobs).with_context(of)?;
        let image = image.map_err(|found| Failure::verification(format!("it is for {found}"))).with_context(of)?;
        let digest = reference.digest.map(sha256).transpose().with_context(of)?;
        let Some(index) = digest.filter(|digest| *digest != image.manifest.digest) else {
            return Ok(vec![image.called(reference.names())]);
        };
        // Who asks by the digest of an index gets that index: containerd compares them.
        let indices: Vec<Digest> =
            locked.manifests.iter().filter(|digest| **digest != image.manifest.digest).copied().collect();
        let pinned = image.behind(bench.store, &index, &indices).with_context(of)?;
        let (by_digest, by_tag) = reference.names().into_iter().partition(|name| name.contains('@'));
        let images = [pinned.called(by_digest), image.called(by_tag)];
        Ok(images.into_iter().filter(|image| !image.names.is_empty()).collect())
    };
    let images = from.images.iter().map(image).collect::<Result<Vec<_>>>()?;
    image_archive::named(same_together(images.into_iter().flatten().collect()), &from.names)
}

/// Images that are the same become one with all names: two tags of one manifest.
fn same_together(images: Vec<Image>) -> Vec<Image> {
    let mut together: Vec<Image> = Vec::new();
    for image in images {
        match together.iter_mut().find(|other| other.manifest.digest == image.manifest.digest) {
            Some(other) => {
                let fresh = image.names.into_iter().filter(|name| !other.names.contains(name)).collect::<Vec<_>>();
                other.names.extend(fresh);
            }
            None => together.push(image),
        }
    }
    together
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::assemble::testing::Lab;
    use crate::image::oci::Layout;
    use crate::inputs::deb::fixtures;
    use crate::lock::{LockedInput, LockedItem};

    /// What a registry has of an image, and the lock that names it.
    struct Registry<'a> {
        lab: &'a Lab,
        lock: Lock,
    }

    impl Registry<'_> {
        fn item(&mut self, image: &str, folder: &str, bytes: &[u8]) -> Value {
            let sha256 = self.lab.store.put_bytes(bytes).unwrap();
            let item = LockedItem {
                kind: ItemKind::Oci,
                name: image.to_owned(),
                version: "1".to_owned(),
                architecture: "loong64".to_owned(),
                archive: "lab.io".to_owned(),
                path: format!("x/{folder}/sha256:{sha256}"),
                size: bytes.len() as u64,
                sha256,
            };
            let empty = || LockedInput { request: Digest::of(b""), suites: vec![], date: 0, items: vec![] };
            self.lock.inputs.entry("images".to_owned()).or_insert_with(empty).items.push(item);
            json!({ "digest": format!("sha256:{sha256}"), "size": bytes.len() })
        }

        /// An image with one compressed layer, listed by an index. Gives the digests of manifest and index.
        fn image(&mut self, name: &str, architecture: &str, file: &str) -> (String, String) {
            let tar = fixtures::tar(&[("etc/motd", file)]);
            let config = json!({ "architecture": architecture, "os": "linux",
                "rootfs": { "diff_ids": [format!("sha256:{}", Digest::of(&tar))] } });
            let config = self.item(name, "blobs", config.to_string().as_bytes());
            let layer = self.item(name, "blobs", &fixtures::gzip(&tar));
            let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
            let mut manifest = self.item(name, "manifests", manifest.to_string().as_bytes());
            manifest["platform"] = json!({ "architecture": "loong64", "os": "linux" });
            let index = self.item(name, "manifests", json!({ "manifests": [manifest] }).to_string().as_bytes());
            let digest = |link: &Value| link["digest"].as_str().unwrap().to_owned();
            (digest(&manifest), digest(&index))
        }
    }

    fn lab(images: &str, more: &str) -> Lab {
        let input = format!("[[input]]\nkind = \"oci\"\nname = \"images\"\nimages = [{images}]\n{more}\n[os]\n");
        Lab::with(|text| text.replacen("[os]\n", &input, 1))
    }

    #[test]
    fn they_come_into_the_payload_as_those_of_archives_do() {
        let (manifest, index) = {
            let lab = lab("\"a.io/x:1\"", "");
            Registry { lab: &lab, lock: Lock::default() }.image("", "loong64", "y")
        };
        let (by_index, by_manifest) = (format!("lab.io/y:1@{index}"), format!("lab.io/z@{manifest}"));
        let mut lab = lab(
            &format!("\"lab.io/x:1\", \"{by_index}\", \"lab.io/x:latest\", \"{by_manifest}\""),
            "names = { \"k8s.io/x:9\" = \"lab.io/x:latest\", \"k8s.io/y:9\" = \"lab.io/y:1\" }",
        );
        let mut registry = Registry { lab: &lab, lock: Lock::default() };
        let (x, _) = registry.image("lab.io/x:1", "loong64", "x");
        assert_eq!(registry.image("lab.io/x:latest", "loong64", "x").0, x, "two tags of one image");
        assert_eq!(registry.image(&by_index, "loong64", "y"), (manifest.clone(), index.clone()));
        registry.image(&by_manifest, "loong64", "y");
        let lock = registry.lock;
        lab.sources.vendor.registries = from_lock(&lab.cluster, &lock).unwrap();
        let bench = lab.bench();
        let asked_for = format!("lab.io/y@{index}");
        let names: BTreeMap<&str, &str> = [
            ("lab.io/x:1", &x),
            ("lab.io/x:latest", &x),
            ("k8s.io/x:9", &x),
            ("lab.io/y:1", &manifest),
            ("k8s.io/y:9", &manifest),
            (by_manifest.as_str(), &manifest),
            (asked_for.as_str(), &index),
        ]
        .map(|(name, digest)| (name, digest.as_str()))
        .into();
        let own: BTreeSet<String> = names.keys().map(ToString::to_string).collect();
        let offered = image_archive::offered(&bench).unwrap();
        assert_eq!(offered.iter().map(|one| one.reference.clone()).collect::<BTreeSet<_>>(), own);
        let further = offered.iter().find(|one| one.reference == "k8s.io/x:9").unwrap();
        assert_eq!(further.from.input.as_deref(), Some("images"));
        assert_eq!(further.from.called.as_deref(), Some("lab.io/x:latest"));
        let mut layout = Layout::new(1_700_000_000).unwrap();
        image_archive::add(&bench, &mut layout).unwrap();
        let tree = layout.finish().unwrap();
        let read = tree.content("index.json").unwrap().read(&lab.store).unwrap();
        let read: Value = serde_json::from_slice(&read).unwrap();
        let entry = |entry: &Value| {
            let name = entry["annotations"]["io.containerd.image.name"].as_str().unwrap().to_owned();
            (name, entry["digest"].as_str().unwrap().to_owned())
        };
        let listed: BTreeMap<String, String> = read["manifests"].as_array().unwrap().iter().map(entry).collect();
        let wanted = names.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect();
        assert_eq!(listed, wanted);
        // Blobs are as they came: compressed. An index is there for who asks by its digest.
        let blobs = tree.iter().filter(|(path, _)| path.starts_with("blobs/sha256/")).count();
        assert_eq!(blobs, 3 + 3 + 1);
        for item in lock.items().filter(|item| item.path.contains("/blobs/")) {
            assert!(tree.content(&format!("blobs/sha256/{}", item.sha256)).is_some(), "{}", item.path);
        }
        // What is wanted decides about the payload, whatever the input is called.
        let key = serde_json::to_string(&lab.sources.vendor).unwrap();
        assert!(key.contains(&manifest[7..]) && key.contains("k8s.io/y:9"), "{key}");
    }

    #[test]
    fn a_lock_that_does_not_fit_is_seen() {
        let lab = lab("\"lab.io/x:1\", \"lab.io/z:1\"", "");
        let mut registry = Registry { lab: &lab, lock: Lock::default() };
        registry.image("lab.io/x:1", "amd64", "x");
        let error = from_lock(&lab.cluster, &registry.lock).unwrap_err();
        assert_eq!(error.to_string(), "the lock has no image lab.io/z:1 for input `images`");
        registry.image("lab.io/z:1", "loong64", "z");
        let mut all = from_lock(&lab.cluster, &registry.lock).unwrap().remove(0);
        let fails = |all: &RegistryImages| format!("{:#}", read(&lab.bench(), all).unwrap_err());
        assert_eq!(fails(&all), "reading image lab.io/x:1: it is for linux/amd64");
        all.images.remove(0);
        read(&lab.bench(), &all).unwrap();
        let layer = all.images[0].blobs.pop().unwrap();
        assert_eq!(fails(&all), format!("reading image lab.io/z:1: blob sha256:{layer} is not in the lock"));
        all.images[0].reference = format!("lab.io/z:1@sha256:{}", "0a".repeat(32));
        all.images[0].blobs.push(layer);
        assert!(fails(&all).contains(&format!("the lock has no index sha256:{}", "0a".repeat(32))));
        all.images[0].manifests.clear();
        assert!(fails(&all).contains("the lock has 0 manifests of it"));
    }
}

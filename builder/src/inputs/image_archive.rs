// SPDX-License-Identifier: MIT OR Apache-2.0

//! Container images in a tar archive, as `docker save`, `podman save`, `ctr images export` and `skopeo copy` write it: an OCI
//! layout, or Docker's own form. Nothing is unpacked: contents are slices of the archive in the store.
//!
//! Sources: image-spec (image-layout.md, image-index.md, manifest.md, config.md); moby's image/spec/spec.md, "Combined Image
//! JSON + Filesystem Changeset Format", for `manifest.json`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use profiles::node::Architecture;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::deb::archive::{self, Archive};
use super::image::{Config, DEEPEST, Entry, Reader, is_for};
pub use super::image::{Image, of_objects, sha256};
use super::source::golang::goarch;
use crate::error::Failure;
use crate::image::oci::{Descriptor, MANIFEST, reference};
use crate::store::{Digest, Store};
use crate::tree::{Content, FileTree, layers};

/// Media type of Docker's configuration, which every runtime takes for an OCI one.
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Whether an archive holds images, rather than the files of a system.
pub fn holds_images(archive: &Archive) -> bool {
    archive.entries.iter().any(|entry| ["index.json", "manifest.json"].contains(&&*entry.path))
}

/// An archive of images.
#[derive(Debug)]
pub struct Images<'a> {
    store: &'a Store,
    files: FileTree,
    architecture: Architecture,
}

impl<'a> Images<'a> {
    /// The images of an archive (see [`archive::unpack_system`]); those for `architecture` are wanted.
    ///
    /// # Errors
    /// A path that leads through something that is not a directory.
    pub fn of(store: &'a Store, archive: &Archive, architecture: Architecture) -> Result<Self> {
        Ok(Self { store, files: layers::plain(archive)?, architecture })
    }

    /// The images, in the order of the archive.
    ///
    /// # Errors
    /// No images; a blob that is not there or not what its digest says; an image that is not for the architecture: all at once.
    pub fn read(&self) -> Result<Vec<Image>> {
        // Both are there since Docker 25; the layout says more.
        let found = if self.files.content("index.json").is_some() && self.files.content("oci-layout").is_some() {
            self.layout()?
        } else if self.files.content("manifest.json").is_some() {
            self.docker()?
        } else {
            bail!(
                Failure::user("there are no images in it: neither index.json with oci-layout nor manifest.json")
                    .hint("make it with `docker save`, `ctr images export`, or `skopeo copy … oci-archive:FILE:NAME`")
            )
        };
        let (mut images, mut problems): (Vec<Image>, Vec<String>) = (Vec::new(), Vec::new());
        for image in found {
            match image {
                Ok(image) => images.push(image),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            bail!(
                Failure::verification(problems.join("\n  "))
                    .hint(format!("save the images of linux/{}: `--platform linux/{0}`", goarch(self.architecture)))
            );
        }
        Ok(images)
    }

    /// Does `what` with a reader of the archive's blobs.
    fn with_reader<T>(&self, what: impl FnOnce(&Reader<'_>) -> T) -> T {
        let blobs = |digest: &Digest| self.files.content(&format!("blobs/sha256/{digest}")).cloned();
        let (store, architecture) = (self.store, self.architecture);
        what(&Reader { store, architecture, blobs: &blobs, place: "the archive" })
    }

    fn file<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let content = self.files.content(path);
        let content = content.with_context(|| Failure::verification(format!("{path} is not in the archive")))?;
        self.with_reader(|reader| reader.json(content, path))
    }

    /// Images of an OCI layout.
    fn layout(&self) -> Result<Vec<Result<Image, String>>> {
        let index: Index = self.file("index.json")?;
        // Several names of one image are several entries.
        let mut order: Vec<&str> = Vec::new();
        let mut names: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for entry in &index.manifests {
            if !names.contains_key(&*entry.digest) {
                order.push(&entry.digest);
            }
            let annotation = |key: &str| entry.annotations.get(key).filter(|name| !name.is_empty());
            let name =
                annotation("io.containerd.image.name").or_else(|| annotation("org.opencontainers.image.ref.name"));
            names.entry(&entry.digest).or_default().extend(name.map(|name| reference::completed(name)));
        }
        let mut images = Vec::new();
        for digest in order {
            let named = names.remove(digest).unwrap_or_default();
            let shown = named.first().cloned().unwrap_or_else(|| digest.to_owned());
            let image = self
                .with_reader(|reader| reader.image(digest, DEEPEST, &mut BTreeSet::new()))
                .with_context(|| format!("reading image {shown}"))?;
            images.push(match image {
                Ok(image) => Ok(Image { names: named.into_iter().collect(), ..image }),
                Err(platforms) => Err(self.wrong_platform(&shown, &platforms)),
            });
        }
        Ok(images)
    }

    fn wrong_platform(&self, name: &str, found: &str) -> String {
        format!("image {name} is for {found}, not for linux/{}", goarch(self.architecture))
    }

    /// Images of Docker's own form, for which a manifest is made: layers as they are once decompressed, by the digests that
    /// the configuration has for them.
    fn docker(&self) -> Result<Vec<Result<Image, String>>> {
        let entries: Vec<DockerImage> = self.file("manifest.json")?;
        let mut images = Vec::new();
        for entry in entries {
            let names: Vec<String> =
                entry.repo_tags.unwrap_or_default().iter().map(|name| reference::completed(name)).collect();
            let shown = names.first().unwrap_or(&entry.config).clone();
            let image =
                self.docker_image(&entry.config, &entry.layers).with_context(|| format!("reading image {shown}"))?;
            images.push(match image {
                Ok(image) => Ok(Image { names, ..image }),
                Err(platform) => Err(self.wrong_platform(&shown, &platform)),
            });
        }
        Ok(images)
    }

    fn docker_image(&self, config: &str, paths: &[String]) -> Result<Result<Image, String>> {
        let there = |path: &str| {
            let content = self.files.content(path);
            content.cloned().with_context(|| Failure::verification(format!("{path} is not in the archive")))
        };
        let config_content = there(config)?;
        // Bounds what is read.
        let parsed: Config = self.with_reader(|reader| reader.json(&config_content, config))?;
        let bytes = config_content.read(self.store)?;
        if !is_for(self.architecture, &parsed.os, &parsed.architecture) {
            return Ok(Err(format!("{}/{}", parsed.os, parsed.architecture)));
        }
        let diff_ids = parsed.diff_ids()?;
        if diff_ids.len() != paths.len() {
            bail!(Failure::verification(format!(
                "it has {} layers, its configuration {}",
                paths.len(),
                diff_ids.len()
            )));
        }
        let config_digest = Digest::of(&bytes);
        let mut blobs = BTreeMap::from([(config_digest, config_content)]);
        let mut layers = Vec::new();
        let mut described = Vec::new();
        for (path, wanted) in paths.iter().zip(&diff_ids) {
            let tar = self.decompressed(&there(path)?).with_context(|| format!("reading layer {path}"))?;
            self.with_reader(|reader| reader.verify(wanted, &tar)).with_context(|| format!("reading layer {path}"))?;
            described.push(serde_json::json!({
                "mediaType": LAYER, "digest": format!("sha256:{wanted}"), "size": tar.len(),
            }));
            blobs.insert(*wanted, tar.clone());
            layers.push(tar);
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": format!("sha256:{config_digest}"), "size": bytes.len() },
            "layers": described,
        });
        let manifest = serde_json::to_vec(&manifest).context("writing a manifest")?;
        let descriptor =
            Descriptor { media_type: MANIFEST.to_owned(), digest: Digest::of(&manifest), size: manifest.len() as u64 };
        blobs.insert(descriptor.digest, Content::Bytes(manifest.into()));
        Ok(Ok(Image { names: Vec::new(), manifest: descriptor, diff_ids, layers, blobs }))
    }

    /// A layer as it is, or decompressed into the store.
    fn decompressed(&self, content: &Content) -> Result<Content> {
        let start = content.open(self.store)?.read_at(0, content.len().min(4))?;
        if !start.starts_with(&[0x1f, 0x8b]) && start != [0x28, 0xb5, 0x2f, 0xfd] {
            return Ok(content.clone());
        }
        let (object, len) = self.store.put_reader(archive::decompress(content.reader(self.store)?)?, None)?;
        Ok(Content::Slice { object, offset: 0, len })
    }
}

// The structures below are those of image-spec and of moby's specification, as far as they matter here.

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// For tests/fuzz: reads images of these files.
#[cfg(fuzzing)]
pub(crate) fn fuzz(store: &Store, files: FileTree) {
    for architecture in [Architecture::Amd64, Architecture::Loong64] {
        let images = Images { store, files: files.clone(), architecture };
        for image in images.read().into_iter().flatten() {
            assert!(image.blobs.contains_key(&image.manifest.digest), "{image:?}");
        }
    }
}

#[cfg(test)]
#[path = "image_archive_tests.rs"]
mod tests;

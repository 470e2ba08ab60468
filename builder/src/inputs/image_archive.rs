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
use serde_json::Value;

use super::deb::archive::{self, Archive};
use super::source::golang::goarch;
use crate::error::Failure;
use crate::image::oci::{Descriptor, MANIFEST, reference};
use crate::store::{Digest, Store, step_key};
use crate::tree::{Content, FileTree, layers};

/// A manifest, an index or a configuration of an honest image is far smaller.
const LARGEST_JSON: u64 = 16 << 20;

/// An index may list further indices; nobody nests them deeper.
const DEEPEST: usize = 4;

/// Media type of Docker's configuration, which every runtime takes for an OCI one.
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image of an archive, for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its names in the archive: full references, or what there is in their place.
    pub names: Vec<String>,
    /// Its manifest.
    pub manifest: Descriptor,
    /// The digests of its layers once decompressed, the lowest first, as its configuration says.
    diff_ids: Vec<Digest>,
    /// Its layers.
    layers: Vec<Content>,
    /// All blobs it needs, the manifest included.
    pub blobs: BTreeMap<Digest, Content>,
}

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

    /// The content of a blob, which must be what its digest says.
    fn blob(&self, digest: &str) -> Result<(Digest, Content)> {
        let wanted: Digest = digest.strip_prefix("sha256:").context("only sha256 digests are known")?.parse()?;
        let content = self.files.content(&format!("blobs/sha256/{wanted}"));
        let content = content.with_context(|| Failure::verification(format!("blob {digest} is not in the archive")))?;
        Ok((wanted, content.clone()))
    }

    /// Checks that a blob is what its digest says.
    fn verify(&self, wanted: &Digest, content: &Content) -> Result<()> {
        let (found, _) = Digest::of_reader(&mut content.reader(self.store)?).context("reading a blob")?;
        if found != *wanted {
            bail!(Failure::verification(format!("blob sha256:{wanted} is damaged: its content is sha256:{found}")));
        }
        Ok(())
    }

    fn json<T: DeserializeOwned>(&self, content: &Content, what: &str) -> Result<T> {
        if content.len() > LARGEST_JSON {
            bail!("{what} has {} bytes", content.len());
        }
        let bytes = content.read(self.store)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Failure::verification(format!("{what} is not what it should be")).caused_by(error).into())
    }

    fn file<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let content = self.files.content(path);
        let content = content.with_context(|| Failure::verification(format!("{path} is not in the archive")))?;
        self.json(content, path)
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
            let image =
                self.image(digest, DEEPEST, &mut BTreeSet::new()).with_context(|| format!("reading image {shown}"))?;
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

    /// The image behind a digest; or, if there is none for our platform, what there is. `seen` are digests that need not be looked
    /// at again: a few small indices, each of which lists the next one many times, would be read for ever.
    fn image(&self, digest: &str, depth: usize, seen: &mut BTreeSet<String>) -> Result<Result<Image, String>> {
        let (own, content) = self.blob(digest)?;
        self.verify(&own, &content)?;
        let either: ManifestOrIndex = self.json(&content, digest)?;
        let Some(config) = either.config else {
            if depth == 0 {
                bail!(Failure::verification("its indices are nested too deeply"));
            }
            let mut others = BTreeSet::new();
            for entry in &either.manifests {
                let platform = entry.platform.as_ref();
                // BuildKit lists attestations as images for an unknown machine.
                if platform.is_some_and(|platform| platform.architecture == "unknown")
                    || !seen.insert(entry.digest.clone())
                {
                    continue;
                }
                let ours = platform.is_none_or(|platform| self.is_ours(&platform.os, &platform.architecture));
                // Archives of one platform list the others without having them.
                if !ours {
                    others.extend(platform.map(|platform| format!("{}/{}", platform.os, platform.architecture)));
                    continue;
                }
                match self.image(&entry.digest, depth - 1, seen)? {
                    Ok(image) => return Ok(Ok(image)),
                    Err(found) => drop(others.insert(found)),
                }
            }
            return Ok(Err(if others.is_empty() { "no machine".into() } else { Vec::from_iter(others).join(", ") }));
        };
        let mut blobs = BTreeMap::from([(own, content.clone())]);
        let (config_digest, config) = self.blob(&config.digest)?;
        self.verify(&config_digest, &config)?;
        blobs.insert(config_digest, config.clone());
        let config: Config = self.json(&config, "the configuration")?;
        if !self.is_ours(&config.os, &config.architecture) {
            return Ok(Err(format!("{}/{}", config.os, config.architecture)));
        }
        let mut layers = Vec::new();
        for layer in &either.layers {
            let (digest, content) = self.blob(&layer.digest)?;
            self.verify(&digest, &content)?;
            blobs.insert(digest, content.clone());
            layers.push(content);
        }
        let manifest = Descriptor {
            media_type: either.media_type.unwrap_or_else(|| MANIFEST.to_owned()),
            digest: own,
            size: content.len(),
        };
        Ok(Ok(Image { names: Vec::new(), manifest, diff_ids: config.diff_ids()?, layers, blobs }))
    }

    fn is_ours(&self, os: &str, architecture: &str) -> bool {
        os == "linux" && architecture == goarch(self.architecture)
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
        let parsed: Config = self.json(&config_content, config)?;
        let bytes = config_content.read(self.store)?;
        if !self.is_ours(&parsed.os, &parsed.architecture) {
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
            self.verify(wanted, &tar).with_context(|| format!("reading layer {path}"))?;
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

impl Image {
    /// Its layers, the lowest first: read, and checked against what the configuration says of them.
    ///
    /// # Errors
    /// A layer that is no tar archive or another one than the configuration says.
    pub fn layers(&self, store: &Store) -> Result<Vec<Archive>> {
        if self.layers.len() != self.diff_ids.len() {
            bail!(Failure::verification(format!(
                "it has {} layers, its configuration {}",
                self.layers.len(),
                self.diff_ids.len()
            )));
        }
        let layer = |(content, wanted): (&Content, &Digest)| -> Result<Archive> {
            let key = step_key("image-layer", 1, wanted)?;
            let found =
                store.cached(&key, "reading a layer", || archive::unpack_layer(store, content.reader(store)?))?;
            if found.tar != *wanted {
                bail!(Failure::verification(format!("layer sha256:{wanted} of it is damaged")));
            }
            Ok(found)
        };
        self.layers.iter().zip(&self.diff_ids).map(layer).collect()
    }
}

// The structures below are those of image-spec and of moby's specification, as far as they matter here.

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestOrIndex {
    media_type: Option<String>,
    config: Option<Link>,
    #[serde(default)]
    layers: Vec<Link>,
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Link {
    digest: String,
}

#[derive(Debug, Deserialize)]
struct Config {
    architecture: String,
    os: String,
    #[serde(default)]
    rootfs: Value,
}

impl Config {
    fn diff_ids(&self) -> Result<Vec<Digest>> {
        let ids = self.rootfs["diff_ids"].as_array().context("the configuration lists no layers")?;
        let digest = |id: &Value| -> Result<Digest> {
            let hex = id.as_str().and_then(|id| id.strip_prefix("sha256:"));
            hex.context("only sha256 digests are known")?.parse()
        };
        ids.iter().map(digest).collect()
    }
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

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What makes a container image: index, manifest, configuration and layers, by digest. Knows nothing of where their
//! blobs lie, in an archive or in the store.
//!
//! Sources: image-spec (image-index.md, manifest.md, config.md, descriptor.md).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use profiles::node::Architecture;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::deb::archive::{self, Archive};
use super::source::golang::goarch;
use crate::error::Failure;
use crate::image::oci::{Descriptor, INDEX, MANIFEST};
use crate::store::{Digest, Store, step_key};
use crate::tree::Content;

/// A manifest, an index or a configuration of an honest image is far smaller.
pub(super) const LARGEST_JSON: u64 = 16 << 20;

/// An index may list further indices; nobody nests them deeper.
pub(super) const DEEPEST: usize = 4;

/// An image, for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its names: full references, or what there is in their place.
    pub names: Vec<String>,
    /// Its manifest, or an index that lists it.
    pub manifest: Descriptor,
    /// The digests of its layers once decompressed, the lowest first, as its configuration says.
    pub(super) diff_ids: Vec<Digest>,
    /// Its layers.
    pub(super) layers: Vec<Content>,
    /// All blobs it needs, the manifest included.
    pub blobs: BTreeMap<Digest, Content>,
}

impl Image {
    /// The same image under these names alone.
    #[must_use]
    pub fn called(self, names: Vec<String>) -> Self {
        Self { names, ..self }
    }

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

impl Image {
    /// The same image under an index that lists it, perhaps by way of others: what a name leads to that has the index's
    /// digest in it. `indices` are store objects; images for other machines are not among them.
    ///
    /// # Errors
    /// If that index is not among them.
    pub fn behind(&self, store: &Store, index: &Digest, indices: &[Digest]) -> Result<Self> {
        let mut image = self.clone();
        for digest in indices {
            image.blobs.insert(*digest, object(store, digest)?);
        }
        let content = image.blobs.get(index).filter(|_| indices.contains(index));
        let content =
            content.with_context(|| Failure::verification(format!("the lock has no index sha256:{index}")))?;
        let read: ManifestOrIndex = serde_json::from_slice(&content.read(store)?).context("reading an index")?;
        let media_type = read.media_type.unwrap_or_else(|| INDEX.to_owned());
        image.manifest = Descriptor { media_type, digest: *index, size: content.len() };
        Ok(image)
    }
}

/// A whole store object.
fn object(store: &Store, digest: &Digest) -> Result<Content> {
    let len = store.size(digest).with_context(|| format!("store object {digest} is gone"))?;
    Ok(Content::Slice { object: *digest, offset: 0, len })
}

/// The digest of `sha256:…`.
///
/// # Errors
/// Another algorithm, or no digest.
pub fn sha256(digest: &str) -> Result<Digest> {
    digest.strip_prefix("sha256:").with_context(|| format!("only sha256 digests are known, not {digest}"))?.parse()
}

/// Whether something is for Linux on `architecture`.
pub(super) fn is_for(architecture: Architecture, os: &str, found: &str) -> bool {
    os == "linux" && found == goarch(architecture)
}

/// Makes images out of blobs.
pub(super) struct Reader<'a> {
    pub(super) store: &'a Store,
    pub(super) architecture: Architecture,
    /// The blob of a digest, where it is there.
    pub(super) blobs: &'a dyn Fn(&Digest) -> Option<Content>,
    /// Where the blobs lie, for messages: `the archive`.
    pub(super) place: &'static str,
}

impl Reader<'_> {
    /// The content of a blob, which must be what its digest says.
    fn blob(&self, digest: &str) -> Result<(Digest, Content)> {
        let wanted = sha256(digest)?;
        let content = (self.blobs)(&wanted)
            .with_context(|| Failure::verification(format!("blob {digest} is not in {}", self.place)))?;
        Ok((wanted, content))
    }

    /// Checks that a blob is what its digest says.
    pub(super) fn verify(&self, wanted: &Digest, content: &Content) -> Result<()> {
        // A whole object is checked by the store.
        if matches!(content, Content::Slice { object, offset: 0, .. } if object == wanted) {
            return self.store.verify(wanted);
        }
        let (found, _) = Digest::of_reader(&mut content.reader(self.store)?).context("reading a blob")?;
        if found != *wanted {
            bail!(Failure::verification(format!("blob sha256:{wanted} is damaged: its content is sha256:{found}")));
        }
        Ok(())
    }

    pub(super) fn json<T: DeserializeOwned>(&self, content: &Content, what: &str) -> Result<T> {
        if content.len() > LARGEST_JSON {
            bail!("{what} has {} bytes", content.len());
        }
        let bytes = content.read(self.store)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Failure::verification(format!("{what} is not what it should be")).caused_by(error).into())
    }

    /// The image behind a digest; or, if there is none for our platform, what there is. `seen` are digests that need not
    /// be looked at again: a few small indices, each of which lists the next one many times, would be read for ever.
    pub(super) fn image(
        &self,
        digest: &str,
        depth: usize,
        seen: &mut BTreeSet<String>,
    ) -> Result<Result<Image, String>> {
        let (own, content) = self.blob(digest)?;
        self.verify(&own, &content)?;
        let either: ManifestOrIndex = self.json(&content, digest)?;
        let Some(config) = either.config else {
            if depth == 0 {
                bail!(Failure::verification("its indices are nested too deeply"));
            }
            let mut others = BTreeSet::new();
            for entry in either.manifests.iter().filter(|entry| !entry.is_attestation()) {
                if !seen.insert(entry.digest.clone()) {
                    continue;
                }
                let platform = entry.platform.as_ref();
                let ours =
                    platform.is_none_or(|platform| is_for(self.architecture, &platform.os, &platform.architecture));
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
        if !is_for(self.architecture, &config.os, &config.architecture) {
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
}

/// The image that store objects make: its manifest, perhaps with indices that list it, and its other blobs. Or, if it
/// is not for `architecture`, what it is for.
///
/// # Errors
/// Objects that are not there or damaged; none or several manifests among them.
pub fn of_objects(
    store: &Store,
    architecture: Architecture,
    manifests: &[Digest],
    blobs: &[Digest],
) -> Result<Result<Image, String>> {
    let whole = |digest: &Digest| -> Result<(Digest, Content)> { Ok((*digest, object(store, digest)?)) };
    let contents: BTreeMap<Digest, Content> = manifests.iter().chain(blobs).map(whole).collect::<Result<_>>()?;
    let lookup = |digest: &Digest| contents.get(digest).cloned();
    let reader = Reader { store, architecture, blobs: &lookup, place: "the lock" };
    // Which entry of an index is meant was decided when it was locked.
    let mut own: Vec<&Digest> = Vec::new();
    for digest in manifests {
        let either: ManifestOrIndex = reader.json(&contents[digest], &format!("manifest sha256:{digest}"))?;
        own.extend(either.config.is_some().then_some(digest));
    }
    match own[..] {
        [one] => reader.image(&format!("sha256:{one}"), 0, &mut BTreeSet::new()),
        _ => bail!(Failure::verification(format!("the lock has {} manifests of it, and one is wanted", own.len()))),
    }
}

// The structures below are those of image-spec, as far as they matter here. What only a registry must say is optional.

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ManifestOrIndex {
    pub(super) schema_version: Option<u32>,
    pub(super) media_type: Option<String>,
    pub(super) artifact_type: Option<String>,
    pub(super) config: Option<Link>,
    #[serde(default)]
    pub(super) layers: Vec<Link>,
    #[serde(default)]
    pub(super) manifests: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Link {
    pub(super) media_type: Option<String>,
    pub(super) digest: String,
    pub(super) size: Option<u64>,
    /// Where it lies besides, for layers that no registry may hand out.
    #[serde(default)]
    pub(super) urls: Vec<String>,
}

/// An image or a further index, listed by an index.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    pub(super) digest: String,
    pub(super) size: Option<u64>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) platform: Option<Platform>,
}

impl Entry {
    /// BuildKit lists attestations as images for an unknown machine.
    pub(super) fn is_attestation(&self) -> bool {
        self.annotations.get("vnd.docker.reference.type").is_some_and(|of| of == "attestation-manifest")
            || self.platform.as_ref().is_some_and(|platform| platform.architecture == "unknown")
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Platform {
    pub(super) architecture: String,
    pub(super) os: String,
    /// A level of the architecture: `v8` of arm64, `v3` of amd64.
    #[serde(default)]
    pub(super) variant: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    pub(super) architecture: String,
    pub(super) os: String,
    #[serde(default)]
    rootfs: Value,
}

impl Config {
    pub(super) fn diff_ids(&self) -> Result<Vec<Digest>> {
        let ids = self.rootfs["diff_ids"].as_array().context("the configuration lists no layers")?;
        ids.iter().map(|id| sha256(id.as_str().context("a digest of a layer is no text")?)).collect()
    }
}

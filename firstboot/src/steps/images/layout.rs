// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payload's images: an OCI image layout in a folder.
//!
//! Source: image-spec, image-layout.md, image-index.md, manifest.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{digest, files};

/// By which annotation of the index containerd names an image, the first one that is there.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
/// An index, a manifest or a configuration is never near as large.
const DOCUMENT_LIMIT: u64 = 4 << 20;
/// An index may list further indices; nobody nests them deeper.
const DEEPEST: usize = 4;

/// The media type of a manifest whose descriptor does not say it.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The images of a layout.
#[derive(Debug)]
pub(super) struct Layout {
    dir: PathBuf,
    /// In the order of the index.
    pub images: Vec<Image>,
}

/// An image under one name. The same image under another name is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// The full reference that kubelet asks for.
    pub name: String,
    /// Its manifest, or an index.
    pub target: Blob,
    /// Indices, manifests and configurations, `target` among them.
    pub documents: BTreeSet<Blob>,
    /// Its layers.
    pub layers: BTreeSet<Blob>,
}

/// A blob as a descriptor describes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Blob {
    /// 64 hex digits of its SHA-256.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Media type.
    pub media_type: String,
}

impl Blob {
    /// Its digest as OCI writes it.
    pub fn digest(&self) -> String {
        format!("sha256:{}", self.sha256)
    }
}

/// `index.json` of the layout, or an index in it.
#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// An index or a manifest: whichever it is has what the other has not.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Layout {
    /// Reads the layout in `dir`; of its images those whose name `is_wanted`.
    ///
    /// # Errors
    /// A blob that is missing, or, of indices, manifests and configurations, that is not what its digest says. Layers are
    /// not read: containerd compares each with its image's configuration as it unpacks it.
    pub fn read(dir: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let path = dir.join("index.json");
        let text = files::read_limited(&path, DOCUMENT_LIMIT);
        let text = text.with_context(|| format!("reading {}, which lists the payload's images", path.display()))?;
        let index: Index =
            serde_json::from_slice(&text).with_context(|| format!("understanding {}", path.display()))?;
        let mut images = Vec::new();
        for descriptor in &index.manifests {
            let name = NAMES.iter().find_map(|name| descriptor.annotations.get(*name));
            if let Some(name) = name.filter(|name| is_wanted(name)) {
                images.push(image(dir, name, descriptor).with_context(|| format!("reading image {name}"))?);
            }
        }
        Ok(Self { dir: dir.to_owned(), images })
    }

    /// Where a blob lies.
    pub fn path(&self, sha256: &str) -> PathBuf {
        blob_path(&self.dir, sha256)
    }
}

fn blob_path(dir: &Path, sha256: &str) -> PathBuf {
    dir.join("blobs/sha256").join(sha256)
}

fn image(dir: &Path, name: &str, descriptor: &Descriptor) -> Result<Image> {
    let target = blob(dir, descriptor)?;
    let (mut documents, mut layers) = (BTreeSet::new(), BTreeSet::new());
    let mut left = vec![(target.clone(), 0)];
    while let Some((document, depth)) = left.pop() {
        let content = verified(dir, &document)?;
        let parts: Document =
            serde_json::from_slice(&content).with_context(|| format!("understanding {}", document.digest()))?;
        documents.insert(document);
        ensure!(depth < DEEPEST, "its indices are nested more than {DEEPEST} deep");
        // Of an index that was taken over from a registry, only what is for this machine is here.
        let here = parts.manifests.iter().filter(|manifest| is_here(dir, manifest));
        let here = here.map(|manifest| blob(dir, manifest)).collect::<Result<Vec<_>>>()?;
        ensure!(!here.is_empty() || parts.manifests.is_empty(), "nothing that its index lists is here");
        left.extend(here.into_iter().map(|manifest| (manifest, depth + 1)));
        if let Some(config) = &parts.config {
            let config = blob(dir, config)?;
            verified(dir, &config)?;
            documents.insert(config);
        }
        for layer in &parts.layers {
            layers.insert(blob(dir, layer)?);
        }
    }
    Ok(Image { name: name.to_owned(), target, documents, layers })
}

/// Whether something that an index lists is in the layout.
fn is_here(dir: &Path, descriptor: &Descriptor) -> bool {
    // What is no digest is for `blob` to refuse.
    descriptor.digest.strip_prefix("sha256:").is_none_or(|sha256| blob_path(dir, sha256).exists())
}

/// The blob of a descriptor, which must be there. Its size is that of the file.
fn blob(dir: &Path, descriptor: &Descriptor) -> Result<Blob> {
    let digest = &descriptor.digest;
    let hex =
        digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let sha256 = hex.with_context(|| format!("{digest} is no sha256"))?.to_owned();
    let path = blob_path(dir, &sha256);
    let size = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?.len();
    let media_type = descriptor.media_type.clone().unwrap_or_else(|| MANIFEST.to_owned());
    Ok(Blob { sha256, size, media_type })
}

/// The content of a small blob, which must be what its digest says: nobody after us looks.
fn verified(dir: &Path, blob: &Blob) -> Result<Vec<u8>> {
    let path = blob_path(dir, &blob.sha256);
    let content = files::read_limited(&path, DOCUMENT_LIMIT).with_context(|| format!("reading {}", path.display()))?;
    let found = digest::sha256(&content);
    ensure!(found == blob.sha256, "{} is damaged: its content is sha256:{found}", path.display());
    Ok(content)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! From references to what is locked: every blob of the image for one architecture, by digest.
//!
//! Every manifest is checked over the bytes that came; what is fetched by digest must be what the digest says, and what
//! is fetched by tag is what it is from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use profiles::node::Architecture;
use profiles::reference::Reference;
use rayon::prelude::*;

use super::address::host_of;
use super::origin;
use crate::error::{self, ErrorKind, Failure};
use crate::image::oci::MANIFEST;
use crate::inputs::download::{Downloader, Item, small};
use crate::inputs::http::GetError;
use crate::inputs::image::{Config, DEEPEST, Entry, LARGEST_JSON, Link, ManifestOrIndex, is_for, sha256};
use crate::inputs::request::OciRequest;
use crate::inputs::source::golang::goarch;
use crate::lock::{ItemKind, LockedItem};
use crate::store::Digest;

/// What registries and runtimes take of a manifest (distribution-spec, "Pushing Manifests": 4 megabytes).
const MANIFEST_LIMIT: u64 = 4 << 20;

/// How rustls begins to say that it does not believe a server.
const BAD_CERTIFICATE: &str = "invalid peer certificate";

const INDICES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] = [MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// How the types of layers begin that every runtime unpacks; the compression follows.
const LAYERS: [&str; 2] = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"];
/// Layers that their owner gives away himself, and no registry may.
const FOREIGN: [&str; 2] =
    ["application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
const COMPRESSIONS: [&str; 5] = ["", "+gzip", "+zstd", ".gzip", ".zstd"];

/// What the images of `wanted` are now.
///
/// # Errors
/// Images that are not there, not for the architecture, or not what they say: all of them. A registry that cannot be reached.
pub fn resolve(downloader: &Downloader, wanted: &OciRequest) -> Result<Vec<LockedItem>> {
    if downloader.is_offline() {
        return Err(Failure::user("images of registries have to be looked up, and --offline forbids it")
            .hint("run `imgbuild lock` on a machine with a network")
            .into());
    }
    let silent = Mutex::default();
    let pulled: Vec<Result<Pulled<'_>, Failure>> = wanted
        .images
        .par_iter()
        .map(|name| Source::of(downloader, wanted.architecture, &silent, name).and_then(Source::pull))
        .collect();
    let (mut images, mut problems) = (Vec::new(), Vec::new());
    for image in pulled {
        match image {
            Ok(image) => images.push(image),
            Err(problem) => problems.push(problem),
        }
    }
    // Together, by those who fetch: in parallel, verified, and continued where they broke off.
    let configs = images.iter().map(|image| image.source.item(&image.config)).collect::<Vec<_>>();
    match downloader.fetch(&configs) {
        Ok(()) => problems.extend(images.iter().filter_map(|image| image.check(downloader).err())),
        Err(error) => problems.push(as_failure(error)),
    }
    match all(problems) {
        None => Ok(images.iter().flat_map(Pulled::items).collect()),
        Some(failure) => Err(failure.into()),
    }
}

/// A blob, by what a descriptor says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blob {
    digest: Digest,
    size: u64,
}

/// An image that is looked up.
struct Source<'a> {
    downloader: &'a Downloader,
    architecture: Architecture,
    /// Registries that have not answered, and why: they are not waited for once more for every image.
    silent: &'a Mutex<BTreeMap<String, String>>,
    /// As the cluster file has it.
    name: &'a str,
    reference: Reference<'a>,
    addresses: Vec<String>,
}

/// An image that was found.
struct Pulled<'a> {
    source: Source<'a>,
    /// Indices, the outermost first, and the manifest.
    manifests: Vec<Blob>,
    /// Whether an index says that it is for our machine.
    promised: bool,
    config: Blob,
    layers: Vec<Blob>,
}

/// What a manifest turned out to be.
enum Document {
    Index(Vec<Entry>),
    Image { config: Link, layers: Vec<Link> },
}

impl<'a> Source<'a> {
    fn of(
        downloader: &'a Downloader,
        architecture: Architecture,
        silent: &'a Mutex<BTreeMap<String, String>>,
        name: &'a str,
    ) -> Result<Self, Failure> {
        let reference = Reference::parse(name).map_err(|error| Failure::user(error.to_string()))?;
        let addresses = downloader.registries().addresses(reference.registry)?;
        Ok(Self { downloader, architecture, silent, name, reference, addresses })
    }

    fn pull(self) -> Result<Pulled<'a>, Failure> {
        let name = self.name;
        let of_name = |mut failure: Failure| {
            failure.message = format!("image {name}: {}", failure.message);
            failure
        };
        let (mut manifests, mut next) = (Vec::new(), self.reference.digest.map(str::to_owned));
        let mut entry: Option<Entry> = None;
        for _ in 0..=DEEPEST {
            let at = next.as_deref().or(self.reference.tag).unwrap_or_default();
            let (blob, document) = self.manifest(at, entry.as_ref())?;
            manifests.push(blob);
            match document {
                Document::Index(entries) => {
                    let chosen = choose(self.architecture, entries).map_err(of_name)?;
                    next = Some(chosen.digest.clone());
                    entry = Some(chosen);
                }
                Document::Image { config, layers } => {
                    let config = blob_of(&config).map_err(|why| of_name(Failure::verification(why)))?;
                    if config.size > LARGEST_JSON {
                        let why = format!("its configuration has {} bytes", config.size);
                        return Err(of_name(Failure::verification(why)));
                    }
                    let layers: Result<Vec<Blob>, String> = layers.iter().map(blob_of).collect();
                    let layers = layers.map_err(|why| of_name(Failure::verification(why)))?;
                    let promised = entry.is_some_and(|entry| entry.platform.is_some());
                    return Ok(Pulled { source: self, manifests, promised, config, layers });
                }
            }
        }
        Err(of_name(Failure::verification("its indices are nested too deeply")))
    }

    /// What is at a tag or a digest, from the first address that has it. An `entry` of an index says what it must be.
    fn manifest(&self, at: &str, entry: Option<&Entry>) -> Result<(Blob, Document), Failure> {
        let mut last = None;
        for address in &self.addresses {
            match self.manifest_from(address, at, entry) {
                Ok(found) => return Ok(found),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.unwrap_or_else(|| Failure::new(ErrorKind::Internal, "a registry without address")))
    }

    fn manifest_from(&self, address: &str, at: &str, entry: Option<&Entry>) -> Result<(Blob, Document), Failure> {
        let silent = || self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let own = origin(address).unwrap_or_default();
        let unreachable = |why: &str| {
            // The same for all images, and said once.
            Failure::environment(format!("the registry {} cannot be asked: {why}", host_of(&own)))
                .hint(hint_for_silence(self.reference.registry, why))
        };
        if let Some(why) = silent().get(&own) {
            return Err(unreachable(why));
        }
        let url = format!("{address}/{}/manifests/{at}", self.reference.repository);
        let asked = self.downloader.patiently(|| {
            Ok(match self.downloader.registries().ask(&url)? {
                Ok(response) => {
                    let line = |name: &str| response.header(name).map(str::to_owned);
                    let (said, media_type) = (line("docker-content-digest"), line("content-type"));
                    Ok((small(response, MANIFEST_LIMIT)?, said, media_type))
                }
                Err(said) => Err(said),
            })
        });
        let of_url = |what: String| format!("image {}: {what} ({url})", self.name);
        let (bytes, said, media_type) = match asked {
            Ok(Ok(found)) => found,
            Ok(Err((404, said))) => {
                return Err(Failure::user(of_url(format!("the registry does not have it: {said}")))
                    .hint("see whether name and tag are right, and who may have removed it"));
            }
            Ok(Err((_, said))) => {
                return Err(Failure::environment(of_url(format!("the registry answers {said}")))
                    .hint(format!("`docker login {}`, if it is not public", host_of(&own))));
            }
            // A certificate is for the whole registry, too.
            Err(GetError::Permanent(why)) if !why.contains(BAD_CERTIFICATE) => {
                return Err(Failure::environment(of_url(why)));
            }
            Err(GetError::Transient(why) | GetError::Permanent(why)) => {
                silent().insert(own.clone(), why.clone());
                return Err(unreachable(&why));
            }
            Err(GetError::Failed(mut failure)) => {
                failure.message = format!("image {}: {}", self.name, failure.message);
                return Err(failure);
            }
        };
        let broken = |what: String| {
            Failure::verification(of_url(what))
                .hint("the registry or a proxy before it is broken or out of step: try later, or another with --mirror")
        };
        let found = Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
        if at.starts_with("sha256:") && at != format!("sha256:{}", found.digest) {
            return Err(broken(format!("what comes is sha256:{}", found.digest)));
        }
        if entry.and_then(|entry| entry.size).is_some_and(|size| size != found.size) {
            return Err(broken(format!("what comes has {} bytes, and another size by its index", found.size)));
        }
        // What a tag stands for has no other witness.
        if let Some(said) =
            said.filter(|said| said.starts_with("sha256:") && *said != format!("sha256:{}", found.digest))
        {
            return Err(broken(format!("the registry calls it {said}, and what comes is sha256:{}", found.digest)));
        }
        let document = understand(&bytes, media_type.as_deref()).map_err(|what| {
            Failure::user(of_url(what)).hint("only images can be put onto nodes: name one, or leave it out")
        })?;
        // `imgbuild fetch` need not ask again.
        let store = self.downloader.store();
        store.put_bytes(&bytes).map_err(|error| as_failure(error.context("keeping a manifest")))?;
        Ok((found, document))
    }

    /// The blob as something to fetch.
    fn item(&self, blob: &Blob) -> Item {
        let path = format!("{}/blobs/sha256:{}", self.reference.repository, blob.digest);
        Item {
            name: format!("the configuration of image {}", self.name),
            urls: self.addresses.iter().map(|address| format!("{address}/{path}")).collect(),
            sha256: blob.digest,
            size: blob.size,
            missing_hint: "the registry has the image's manifest and not the rest: push it again".to_owned(),
        }
    }
}

impl Pulled<'_> {
    /// Fails if the configuration, which is in the store, is of another machine or another image.
    fn check(&self, downloader: &Downloader) -> Result<(), Failure> {
        let name = self.source.name;
        let read = || -> Result<Config> {
            let object = downloader.store().open_object(&self.config.digest)?;
            serde_json::from_reader(std::io::BufReader::new(object)).context("its configuration is none")
        };
        let config = read().map_err(|error| Failure::verification(format!("image {name}: {error:#}")))?;
        if !is_for(self.source.architecture, &config.os, &config.architecture) {
            let (found, wanted) = (shown(&config.os, &config.architecture, ""), goarch(self.source.architecture));
            return Err(if self.promised {
                Failure::verification(format!("image {name}: its index says linux/{wanted}, its configuration {found}"))
                    .hint("it was put together wrongly: tell who publishes it")
            } else {
                Failure::user(format!("image {name} is for {found}, not for linux/{wanted}"))
                    .hint("take an image that is made for this machine; `names` of the input gives it the name that is asked for")
            });
        }
        let layers =
            config.diff_ids().map_err(|error| Failure::verification(format!("image {name}: {error:#}")))?.len();
        if layers != self.layers.len() {
            let what = format!("image {name} has {} layers, and {layers} by its configuration", self.layers.len());
            return Err(Failure::verification(what));
        }
        Ok(())
    }

    /// What is locked of it. A blob that two images have is listed with both.
    fn items(&self) -> Vec<LockedItem> {
        let Reference { registry, repository, tag, .. } = self.source.reference;
        let item = |folder: &str, blob: &Blob| LockedItem {
            kind: ItemKind::Oci,
            name: self.source.name.to_owned(),
            version: tag.unwrap_or_default().to_owned(),
            architecture: goarch(self.source.architecture).to_owned(),
            archive: registry.to_owned(),
            path: format!("{repository}/{folder}/sha256:{}", blob.digest),
            size: blob.size,
            sha256: blob.digest,
        };
        let manifests = self.manifests.iter().map(|blob| item("manifests", blob));
        let blobs = std::iter::once(&self.config).chain(&self.layers).map(|blob| item("blobs", blob));
        // A layer may come twice.
        let mut seen = BTreeSet::new();
        manifests.chain(blobs).filter(|item| seen.insert(item.path.clone())).collect()
    }
}

/// The entry for our machine.
fn choose(architecture: Architecture, entries: Vec<Entry>) -> Result<Entry, Failure> {
    let mut entries: Vec<Entry> = entries.into_iter().filter(|entry| !entry.is_attestation()).collect();
    let ours =
        |entry: &Entry| entry.platform.as_ref().is_some_and(|own| is_for(architecture, &own.os, &own.architecture));
    let variant = |entry: &Entry| entry.platform.as_ref().map(|own| own.variant.clone()).unwrap_or_default();
    // Of several levels of an architecture the one that the oldest machine runs: the one without, then v1, v2.
    let best = (0..entries.len()).filter(|at| ours(&entries[*at])).min_by_key(|at| variant(&entries[*at]));
    // An index of indices need not say what is in them.
    let best = best.or_else(|| entries.iter().position(|entry| entry.platform.is_none()));
    if let Some(best) = best {
        return Ok(entries.swap_remove(best));
    }
    let platforms: BTreeSet<String> = entries
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .map(|own| shown(&own.os, &own.architecture, &own.variant))
        .collect();
    let platforms = if platforms.is_empty() { "nothing".into() } else { Vec::from_iter(platforms).join(", ") };
    let wanted = goarch(architecture);
    Err(Failure::user(format!("there is none for linux/{wanted}; its index has {platforms}"))
        .hint("take an image that is made for this machine; `names` of the input gives it the name that is asked for"))
}

fn shown(os: &str, architecture: &str, variant: &str) -> String {
    if variant.is_empty() { format!("{os}/{architecture}") } else { format!("{os}/{architecture}/{variant}") }
}

fn blob_of(link: &Link) -> Result<Blob, String> {
    let digest = sha256(&link.digest).map_err(|error| format!("{error:#}"))?;
    let size = link.size.ok_or_else(|| format!("nothing says how big {} is", link.digest))?;
    Ok(Blob { digest, size })
}

/// What a manifest is; or why it is none of an image that a node could run.
fn understand(bytes: &[u8], content_type: Option<&str>) -> Result<Document, String> {
    let found: ManifestOrIndex =
        serde_json::from_slice(bytes).map_err(|error| format!("what comes is no manifest: {error}"))?;
    if found.schema_version == Some(1) {
        return Err("it is of Docker's schema 1, whose digests say nothing of layers: it has to be pushed anew".into());
    }
    // A manifest need not say itself what it is; what a server says of any file says nothing.
    let content_type = content_type.map(|text| text.split(';').next().unwrap_or(text).trim());
    let media_type = found.media_type.as_deref().or(content_type.filter(|text| text.starts_with("application/vnd.")));
    let is = |types: &[&str]| media_type.is_none_or(|own| types.contains(&own));
    // image-spec, "Note on whitelisted types": what is read as two things is none (CVE-2021-41190).
    let (is_image, is_index) = (found.config.is_some() || !found.layers.is_empty(), !found.manifests.is_empty());
    match found.config {
        Some(_) if is_index => Err("it claims to be an index and an image at once".into()),
        Some(config) if is(&MANIFESTS) => {
            let own = config.media_type.as_deref().unwrap_or(CONFIGS[0]);
            if !CONFIGS.contains(&own) {
                let kind = found.artifact_type.as_deref().unwrap_or(own);
                return Err(format!("it is no container image but an artifact of the type {kind}"));
            }
            found.layers.iter().try_for_each(layer)?;
            Ok(Document::Image { config, layers: found.layers })
        }
        None if is(&INDICES) && !is_image && (is_index || media_type.is_some()) => Ok(Document::Index(found.manifests)),
        _ => Err(format!("it is of the type {}, and does not look like an image", media_type.unwrap_or("none"))),
    }
}

/// Fails if a layer is not in the registry, or nothing that a runtime unpacks.
fn layer(link: &Link) -> Result<(), String> {
    let own = link.media_type.as_deref().unwrap_or(LAYERS[0]);
    let is = |types: &[&str]| {
        types.iter().any(|begin| own.strip_prefix(begin).is_some_and(|rest| COMPRESSIONS.contains(&rest)))
    };
    if is(&FOREIGN) || !link.urls.is_empty() {
        return Err(format!(
            "its layer {} lies outside of the registry, since its owner forbids others to hand it out ({own})",
            link.digest
        ));
    }
    if is(&LAYERS) { Ok(()) } else { Err(format!("its layer {} is of the unknown type {own}", link.digest)) }
}

/// For tests/fuzz: reads `bytes` as a manifest, with what a server may say that it is.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    for content_type in [None, Some(MANIFESTS[1]), Some(INDICES[0])] {
        match understand(bytes, content_type) {
            Ok(Document::Index(entries)) => {
                if let Ok(entry) = choose(Architecture::Amd64, entries) {
                    assert!(!entry.is_attestation(), "{entry:?}");
                }
            }
            Ok(Document::Image { config, layers }) => {
                for link in layers.iter().chain([&config]) {
                    if let Ok(blob) = blob_of(link) {
                        assert_eq!(link.digest.to_ascii_lowercase(), format!("sha256:{}", blob.digest));
                    }
                }
            }
            Err(why) => assert!(!why.is_empty()),
        }
    }
}

/// What helps when there is no answer.
fn hint_for_silence(registry: &str, why: &str) -> String {
    if why.contains(BAD_CERTIFICATE) {
        return "if its certificate is of an authority of yours, name that in `ca` of the input".into();
    }
    let why = why.to_ascii_lowercase();
    if why.contains("invalidcontenttype") || why.contains("corrupt message") {
        return format!("if it has no TLS, say so: --mirror {registry}=http://{registry}");
    }
    format!("check the network and the name, or name another registry that has the images: --mirror {registry}=URL")
}

fn as_failure(error: anyhow::Error) -> Failure {
    let hint = error::hint(&error);
    let failure = Failure::new(error::kind(&error), format!("{error:#}"));
    Failure { hint, ..failure }
}

/// One failure of many, of the worst kind, with every problem once.
fn all(mut problems: Vec<Failure>) -> Option<Failure> {
    let rank = |kind: ErrorKind| match kind {
        ErrorKind::Internal => 0,
        ErrorKind::Verification => 1,
        ErrorKind::Environment => 2,
        ErrorKind::User | ErrorKind::Outdated => 3,
    };
    let worst = problems.iter().map(|problem| problem.kind).min_by_key(|kind| rank(*kind))?;
    let mut seen = BTreeSet::new();
    problems.retain(|problem| seen.insert(problem.message.clone()));
    let text = |problem: &Failure| match &problem.source {
        Some(source) => format!("{}: {source}", problem.message),
        None => problem.message.clone(),
    };
    let message = problems.iter().map(text).collect::<Vec<_>>().join("\n  ");
    let hint = problems.iter().find(|problem| problem.kind == worst).and_then(|problem| problem.hint.clone());
    Some(Failure { hint, ..Failure::new(worst, message) })
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Two bundles of one cluster, each for nodes of one architecture, as one archive: both halves side by side in one folder, of
//! which each machine uses its own (docs/bundle.md). The halves are verified, and copied entry by entry; the same two give the
//! same bytes, in whatever order they are named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use profiles::bundle::{self, Bundle};
use profiles::node::Architecture;
use tar::EntryType;

use super::archive;
use super::disk::check_space;
use super::place::Placed;
use super::sums::signature_of;
use crate::error::{self, Failure};
use crate::image::zst;
use crate::inputs::deb::archive::{ArchiveKind, decompress, each_entry};
use crate::store::Digest;

/// Of an index, which has a line or two for each node, and of a list of checksums, which has one for each file: of each, and of all.
const TEXT_LIMIT: u64 = 64 << 20;
/// Nobody reads more than this of a list of problems.
const MOST_PROBLEMS: usize = 10;
/// What both halves have at the top, once in the result.
const SHARED: [&str; 2] = ["install", "uninstall"];
const BUILD_AGAIN: &str = "give it as `imgbuild build --output bundle` wrote it, or build it again";

/// A verified bundle for one architecture.
struct Half {
    path: PathBuf,
    file: File,
    size: u64,
    /// The one folder at the top of the archive.
    top: String,
    index: Bundle,
    /// SHA-256 of each of [`SHARED`].
    shared: BTreeMap<String, Digest>,
}

/// Writes the bundle for both architectures to `folder`, and gives its path.
///
/// # Errors
/// Archives that are no bundles, or damaged: both are looked at. Bundles of one architecture, of different clusters, with a node in
/// both, or made by different versions of imgbuild: all of it. Too little free space, failing I/O. Nothing is left behind then.
pub fn join(bundles: [&Path; 2], jobs: NonZeroUsize, folder: &Path) -> Result<PathBuf> {
    let mut halves =
        match bundles.map(|path| Half::read(path).with_context(|| format!("reading the bundle {}", path.display()))) {
            [Ok(one), Ok(other)] => [one, other],
            [Err(one), Err(other)] => return Err(both(&one, &other)),
            [Err(error), _] | [_, Err(error)] => return Err(error),
        };
    halves.sort_by_key(|half| bundle::folder(half.index.architecture));
    fit(&halves)?;
    let path = folder.join(format!("imgbuild-{}-hybrid.tar.zst", halves[0].index.cluster));
    check_space(&path, halves.iter().map(|half| half.size).sum())?;
    let placed = Placed::new(&path)?;
    let writing = || format!("writing {}", path.display());
    zst::compress(placed.file(), &archive::options(jobs), |out| {
        for (half, skipped) in halves.iter().zip([false, true]) {
            half.copy(skipped, out).with_context(|| format!("copying {}", half.path.display()))?;
        }
        out.write_all(&[0; 2 * 512]).context("writing the end of the archive")
    })
    .with_context(writing)?;
    placed.finish()?;
    Ok(path)
}

/// Two failures as one, of the kind of the first.
fn both(one: &anyhow::Error, other: &anyhow::Error) -> anyhow::Error {
    let failure = Failure::new(error::kind(one), format!("{one:#}\n{other:#}"));
    match error::hint(one).or_else(|| error::hint(other)) {
        Some(hint) => failure.hint(hint).into(),
        None => failure.into(),
    }
}

/// Fails unless the halves are two of one.
fn fit([one, other]: &[Half; 2]) -> Result<(), Failure> {
    let mut problems = Vec::new();
    let mut hint =
        "build both from the cluster's two folders, which differ in `[os] architecture` and share `secrets/`";
    let (a, b) = (&one.index, &other.index);
    if a.architecture == b.architecture {
        problems.push(format!("both are for {}", bundle::folder(a.architecture)));
    }
    if a.cluster != b.cluster || one.top != other.top {
        problems.push(format!("they are of the clusters `{}` and `{}`", a.cluster, b.cluster));
    } else if a.cluster_id != b.cluster_id {
        problems.push(format!(
            "their clusters have one name and different keys (ids {} and {}): let both folders have the same `secrets/`",
            a.cluster_id, b.cluster_id
        ));
    }
    let names: BTreeSet<&str> = a.nodes.iter().map(|node| node.name.as_str()).collect();
    let twice: Vec<&str> = b.nodes.iter().map(|node| node.name.as_str()).filter(|name| names.contains(name)).collect();
    if !twice.is_empty() {
        problems.push(format!("both have {}: a node has one architecture", twice.join(", ")));
        hint = "build each with `--profile` for the nodes of its architecture, not with `--all`";
    }
    if problems.is_empty() && one.shared != other.shared {
        problems.push("they were built by different versions of imgbuild: their scripts differ".to_owned());
        hint = "build both with the same imgbuild";
    }
    if problems.is_empty() {
        return Ok(());
    }
    let (one, other) = (one.path.display(), other.path.display());
    Err(Failure::user(format!("{one} and {other} are not the two halves of a bundle: {}", problems.join("; ")))
        .hint(hint))
}

/// What an archive is wrong by itself; but for what says so already, and for a disk that cannot be read.
fn no_bundle(error: anyhow::Error) -> anyhow::Error {
    let io = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.raw_os_error().is_some())
    };
    if error.downcast_ref::<Failure>().is_some() || error.chain().any(io) {
        return error;
    }
    Failure::verification(format!("{error:#}")).hint(BUILD_AGAIN).into()
}

impl Half {
    /// Reads every file of a bundle and compares it with the list of checksums.
    fn read(path: &Path) -> Result<Self> {
        let opening = |e| Failure::user("it cannot be opened").hint("name two bundles, by their paths").caused_by(e);
        let file = File::open(path).map_err(opening)?;
        let size = file.metadata().map_err(opening)?.len();
        let mut found = Found::default();
        decompress(&file)
            .and_then(|tar| each_entry(tar, |entry, content| found.add(&entry.path, &entry.kind, content)))
            .map_err(no_bundle)?;
        let (top, index, shared) = found.check().map_err(no_bundle)?;
        Ok(Self { path: path.to_owned(), file, size, top, index, shared })
    }

    /// Copies the entries of the archive as they are, but for its end; without the folder at the top and [`SHARED`], if
    /// these are there already.
    fn copy(&self, without_shared: bool, out: &mut impl Write) -> Result<()> {
        (&self.file).seek(SeekFrom::Start(0)).context("reading it again")?;
        let mut tar = tar::Archive::new(decompress(&self.file)?);
        let skipped: Vec<String> =
            SHARED.iter().map(|name| format!("{}/{name}", self.top)).chain([self.top.clone()]).collect();
        // Whether the header before said more about the next entry: then its name is a long one.
        let mut extended = false;
        for entry in tar.entries().context("reading it again")?.raw(true) {
            let mut entry = entry.context("reading it again")?;
            let is_extension = matches!(
                entry.header().entry_type(),
                EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink
            );
            let path = entry.path_bytes().into_owned();
            let path = path.strip_suffix(b"/").unwrap_or(&path);
            let is_shared = !extended && !is_extension && skipped.iter().any(|name| name.as_bytes() == path);
            extended = is_extension;
            if without_shared && is_shared {
                continue;
            }
            out.write_all(entry.header().as_bytes()).context("copying a header")?;
            let size = io::copy(&mut entry, out).context("copying a file")?;
            let padding = size.next_multiple_of(512) - size;
            out.write_all(&[0; 512][..usize::try_from(padding)?]).context("filling a block")?;
        }
        Ok(())
    }
}

/// What an archive has in it.
#[derive(Default)]
struct Found {
    /// SHA-256 of every file, by its path in the archive.
    files: BTreeMap<String, Digest>,
    /// What indices and lists of checksums say.
    texts: BTreeMap<String, Vec<u8>>,
    /// Bytes of them.
    text_bytes: u64,
}

impl Found {
    fn add(&mut self, path: &str, kind: &ArchiveKind, content: &mut dyn Read) -> Result<()> {
        let digest = match kind {
            ArchiveKind::Dir => return Ok(()),
            ArchiveKind::File { len, .. } => {
                let name = path.rsplit('/').next().unwrap_or_default();
                if name == bundle::INDEX || name.starts_with(SUMS) {
                    self.text_bytes = self.text_bytes.saturating_add(*len);
                    ensure!(self.text_bytes <= TEXT_LIMIT, "{path} has {len} bytes, with others more than any");
                    let mut text = Vec::new();
                    content.read_to_end(&mut text).with_context(|| format!("reading {path}"))?;
                    let digest = Digest::of(&text);
                    self.texts.insert(path.to_owned(), text);
                    digest
                } else {
                    Digest::of_reader(&mut &mut *content).with_context(|| format!("reading {path}"))?.0
                }
            }
            // An earlier file, as the reader of archives has seen to.
            ArchiveKind::HardLink(target) => *self.files.get(target).context("a link leads to no file")?,
            _ => bail!("{path} is neither a file nor a folder, and a bundle has nothing else"),
        };
        ensure!(self.files.insert(path.to_owned(), digest).is_none(), "{path} is in it twice");
        Ok(())
    }

    /// The folder at the top, the index, and the digests of what halves share.
    fn check(mut self) -> Result<(String, Bundle, BTreeMap<String, Digest>)> {
        let first = self.files.keys().next().context("it is empty")?;
        let top = first.split('/').next().unwrap_or_default().to_owned();
        let prefix = format!("{top}/");
        let mut files = BTreeMap::new();
        for (path, digest) in std::mem::take(&mut self.files) {
            let inner = path.strip_prefix(&prefix).context("it is no bundle: it has several things at the top")?;
            files.insert(inner.to_owned(), digest);
        }
        let halves =
            [Architecture::Amd64, Architecture::Loong64].map(|architecture| (architecture, bundle::sums(architecture)));
        let (architecture, sums) =
            match halves.iter().filter(|(_, sums)| files.contains_key(sums)).collect::<Vec<_>>()[..] {
                [(architecture, sums)] => (*architecture, sums.as_str()),
                [] => bail!("it is no bundle: it has no list of checksums ({}, {})", halves[0].1, halves[1].1),
                _ => bail!(
                    Failure::user("it is a bundle for both architectures already")
                        .hint("build the half that is to be replaced, and join it with the other half alone")
                ),
            };
        let text = |path: &str| self.texts.get(&format!("{prefix}{path}")).with_context(|| format!("it has no {path}"));
        let listed = understand(text(sums)?).with_context(|| format!("understanding {sums}"))?;
        let mut problems: Vec<String> = Vec::new();
        for (path, digest) in &listed {
            match files.get(path) {
                Some(found) if found == digest => {}
                Some(_) => problems.push(format!("{path} has other content")),
                None => problems.push(format!("{path} is missing")),
            }
        }
        // The signature over a list is copied with its half; who verifies it is whoever has the key.
        let signature = signature_of(sums);
        let about = |path: &str| path == sums || path == signature;
        let unlisted = files.keys().filter(|path| !about(path) && !listed.contains_key(*path));
        problems.extend(unlisted.map(|path| format!("{path} is in no list")));
        if !problems.is_empty() {
            let more = problems.len().saturating_sub(MOST_PROBLEMS);
            problems.truncate(MOST_PROBLEMS);
            let more = if more == 0 { String::new() } else { format!(", and {more} more") };
            bail!("it is damaged: {}{more}", problems.join(", "));
        }
        let own = format!("{}/", bundle::folder(architecture));
        if let Some(path) =
            files.keys().find(|path| !path.starts_with(&own) && !about(path) && !SHARED.contains(&path.as_str()))
        {
            bail!("it is no bundle: it has {path}");
        }
        let name = format!("{own}{}", bundle::INDEX);
        let index: Bundle = serde_json::from_slice(text(&name)?).with_context(|| format!("understanding {name}"))?;
        ensure!(index.schema == bundle::SCHEMA, "{name} has schema {}, known is {}", index.schema, bundle::SCHEMA);
        ensure!(index.architecture == architecture, "{name} is of another architecture");
        let shared = SHARED.iter().map(|name| -> Result<(String, Digest)> {
            let digest = files.get(*name).with_context(|| format!("it is no bundle: it has no {name}"))?;
            Ok(((*name).to_owned(), *digest))
        });
        Ok((top, index, shared.collect::<Result<_>>()?))
    }
}

/// How the names of lists of checksums begin.
const SUMS: &str = "SHA256SUMS.";

/// Lines of `sha256sum`: path to checksum.
fn understand(text: &[u8]) -> Result<BTreeMap<String, Digest>> {
    let text = std::str::from_utf8(text).context("it is not UTF-8")?;
    let line = |(number, line): (usize, &str)| {
        let entry = line.split_once("  ").and_then(|(sum, path)| Some((path.to_owned(), sum.parse().ok()?)));
        entry.with_context(|| format!("line {} is no checksum of a file", number + 1))
    };
    text.lines().enumerate().map(line).collect()
}

/// For tests/fuzz: reads a tar archive as half a bundle.
#[cfg(fuzzing)]
pub(crate) fn fuzz(tar: &[u8]) {
    let mut found = Found::default();
    if each_entry(tar, |entry, content| found.add(&entry.path, &entry.kind, content)).is_ok() {
        let _ = found.check();
    }
}

#[cfg(test)]
#[path = "hybrid_tests.rs"]
mod tests;

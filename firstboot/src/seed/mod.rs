// SPDX-License-Identifier: MIT OR Apache-2.0
//! The seed: found on a medium once, kept on the node's own disk, erased from the medium.
//!
//! `/var/lib/imgbuild/seed` is the truth as soon as it exists. A medium that turns up later is ignored, unless its
//! instance-id differs and the node never converged: whoever plugs in a stick must not re-provision a running node.

pub mod document;
pub mod label;
pub mod medium;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::console::Console;
use crate::context::{STATE_DIR, below};
use crate::failure::Failure;
use crate::files;
use document::Seed;

/// Directory seeds of cloud-init, in the order they are tried. They come before media.
const SEED_DIRS: [&str; 2] = ["/var/lib/cloud/seed/nocloud", "/var/lib/cloud/seed/nocloud-net"];
/// The largest file of a seed. A full one with all PKI is some 30 KiB.
const SEED_LIMIT: u64 = 4 << 20;
/// The files of a seed: name, and whether it must be there.
const NAMES: [(&str, bool); 3] = [("meta-data", true), ("user-data", true), ("network-config", false)];

/// The files of a seed as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawSeed {
    /// Instance id and host name.
    pub meta_data: Vec<u8>,
    /// cloud-config with our section.
    pub user_data: Vec<u8>,
    /// Network configuration, version 2; may be missing.
    pub network_config: Option<Vec<u8>>,
}

impl RawSeed {
    /// Reads the files in `dir`; `None` if it holds no seed.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let read = |name: &str| match files::read_limited(&dir.join(name), SEED_LIMIT) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", dir.join(name).display())),
        };
        let (Some(meta_data), Some(user_data)) = (read("meta-data")?, read("user-data")?) else { return Ok(None) };
        Ok(Some(Self { meta_data, user_data, network_config: read("network-config")? }))
    }

    /// What it says.
    pub fn parse(&self) -> Result<Seed> {
        document::parse(&self.meta_data, &self.user_data)
    }

    /// The host name that meta-data gives, by cloud-init's keys.
    pub fn host_name(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct MetaData {
            local_hostname: Option<String>,
            hostname: Option<String>,
        }
        let meta: MetaData = serde_saphyr::from_str(std::str::from_utf8(&self.meta_data).ok()?).ok()?;
        meta.local_hostname.or(meta.hostname)
    }

    /// Makes this the seed of the node below `root`.
    pub fn adopt(&self, root: &Path) -> Result<()> {
        adopt(self, &below(root, STATE_DIR).join("seed"))
    }

    /// Writes the files into a new directory, durably, readable by root alone.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        files::remove(dir)?;
        let parent = dir.parent().context("a seed directory has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        fs::DirBuilder::new().mode(0o700).create(dir).with_context(|| format!("creating {}", dir.display()))?;
        let contents = [Some(&self.meta_data), Some(&self.user_data), self.network_config.as_ref()];
        for ((name, _), content) in NAMES.iter().zip(contents) {
            if let Some(content) = content {
                files::write_atomic(&dir.join(name), content, 0o600, None)?;
            }
        }
        Ok(())
    }
}

/// Where seeds come from; tests have their own.
pub trait Sources {
    /// Media with a seed's label, best first.
    fn media(&self) -> Result<Vec<PathBuf>>;
    /// Mounts `device` and calls `visit` with the directory.
    fn with_mounted(&self, device: &Path, writable: bool, visit: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()>;
}

/// Whether the node ever converged: then no medium is believed any more.
#[derive(Debug, Clone, Copy)]
pub struct EverConverged(pub bool);

/// Finds the seed, adopts it, and erases the secrets where it was found.
pub fn obtain(root: &Path, sources: &dyn Sources, converged: EverConverged, console: &Console) -> Result<Seed> {
    let kept_dir = below(root, STATE_DIR).join("seed");
    recover(&kept_dir)?;
    let kept = RawSeed::read(&kept_dir)?;
    if let (Some(raw), true) = (&kept, converged.0) {
        return raw.parse();
    }
    let kept_seed = kept.as_ref().map(RawSeed::parse).transpose();
    let Some((origin, raw)) = find(root, sources, console)? else {
        return match kept_seed? {
            Some(seed) => Ok(seed),
            None => Err(no_seed().into()),
        };
    };
    let known_id = match &kept_seed {
        Ok(Some(seed)) => Some(seed.ours.instance_id.clone()),
        _ => None,
    };
    let offered = match raw.parse() {
        Ok(seed) => seed,
        Err(error) => {
            // A medium with nonsense on it does not matter to a node that has its seed.
            return match kept_seed? {
                Some(seed) => Ok(seed),
                None => Err(error.context(format!("understanding the seed on {origin}"))),
            };
        }
    };
    let seed = match kept_seed {
        Ok(Some(seed)) if known_id.as_deref() == Some(&offered.ours.instance_id) => seed,
        _ if offered.has_secrets() || !offered.expects_secrets() => {
            adopt(&raw, &kept_dir)?;
            console.line(&format!("seed: took `{}` from {origin}", offered.ours.instance_id));
            offered
        }
        Ok(Some(seed)) => seed,
        _ => return Err(erased_seed(&origin.to_string()).into()),
    };
    if let Err(error) = origin.erase_secrets(sources) {
        console.line(&format!("seed: the secrets stay on {origin}, remove it: {error:#}"));
    }
    Ok(seed)
}

fn no_seed() -> Failure {
    Failure::seed(
        "found no seed: no vfat or iso9660 filesystem labelled CIDATA holds meta-data and user-data",
        "attach the seed medium, or write this node's image again, and restart firstboot.service",
    )
}

fn erased_seed(origin: &str) -> Failure {
    Failure::seed(
        format!("the seed on {origin} was used before and its secrets are erased, and this disk has no copy of them"),
        "build this node's image again (`imgbuild --profile`), write it, and restart firstboot.service",
    )
}

/// Makes `raw` the node's seed: complete under another name first, then renamed.
fn adopt(raw: &RawSeed, kept: &Path) -> Result<()> {
    let (new, old) = (kept.with_extension("new"), kept.with_extension("old"));
    raw.write(&new)?;
    files::remove(&old)?;
    if kept.exists() {
        fs::rename(kept, &old).with_context(|| format!("moving {} away", kept.display()))?;
    }
    fs::rename(&new, kept).with_context(|| format!("renaming {} to {}", new.display(), kept.display()))?;
    let parent = kept.parent().context("a seed directory has a parent")?;
    File::open(parent).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing {}", parent.display()))?;
    files::remove(&old)
}

/// Undoes an adoption that a power cut stopped between its two renames.
fn recover(kept: &Path) -> Result<()> {
    let old = kept.with_extension("old");
    if !kept.exists() && old.exists() {
        fs::rename(&old, kept).with_context(|| format!("moving {} back", old.display()))?;
    }
    Ok(())
}

/// Where a seed was found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Directory(PathBuf),
    Device(PathBuf),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Directory(path) | Origin::Device(path) => path.display().fmt(f),
        }
    }
}

impl Origin {
    fn erase_secrets(&self, sources: &dyn Sources) -> Result<()> {
        match self {
            Origin::Directory(dir) => erase_secrets(dir),
            Origin::Device(device) => {
                let mut needed = false;
                let mut look = |dir: &Path| {
                    needed = scrubbed(dir)?.is_some();
                    Ok(())
                };
                sources.with_mounted(device, false, &mut look)?;
                if needed { sources.with_mounted(device, true, &mut |dir| erase_secrets(dir)) } else { Ok(()) }
            }
        }
    }
}

/// The first seed that is offered to this machine, and where; anybody's, not only ours.
pub fn offered(root: &Path, sources: &dyn Sources, console: &Console) -> Result<Option<(String, RawSeed)>> {
    Ok(find(root, sources, console)?.map(|(origin, raw)| (origin.to_string(), raw)))
}

fn find(root: &Path, sources: &dyn Sources, console: &Console) -> Result<Option<(Origin, RawSeed)>> {
    for dir in SEED_DIRS {
        let dir = below(root, dir);
        if let Some(raw) = RawSeed::read(&dir)? {
            return Ok(Some((Origin::Directory(dir), raw)));
        }
    }
    for device in sources.media()? {
        let mut found = None;
        let mut read = |dir: &Path| {
            found = RawSeed::read(dir)?;
            Ok(())
        };
        match sources.with_mounted(&device, false, &mut read) {
            Ok(()) => {}
            // One bad stick must not hide a good one.
            Err(error) => console.line(&format!("seed: cannot read {}: {error:#}", device.display())),
        }
        match found {
            Some(raw) => return Ok(Some((Origin::Device(device), raw))),
            None => console.log("seed", &format!("{} has the label, but no meta-data and user-data", device.display())),
        }
    }
    Ok(None)
}

/// The user-data in `dir` without its secrets; `None` if it has none.
fn scrubbed(dir: &Path) -> Result<Option<Vec<u8>>> {
    let path = dir.join("user-data");
    let text = files::read_limited(&path, SEED_LIMIT).with_context(|| format!("reading {}", path.display()))?;
    document::without_secrets(&text)
}

/// Overwrites the secrets where they are: the same clusters, so that nothing of them stays in free space.
fn erase_secrets(dir: &Path) -> Result<()> {
    let Some(mut text) = scrubbed(dir)? else { return Ok(()) };
    let path = dir.join("user-data");
    let overwrite = || -> std::io::Result<()> {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().write(true).open(&path)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let end = text.len();
        if end < length {
            // Blank lines to the old end, on the disk, before the file may shrink: shrinking alone frees clusters as they are.
            text.resize(length, b'\n');
        }
        file.write_all(&text)?;
        file.sync_all()?;
        file.set_len(end as u64)?;
        file.sync_all()
    };
    let mut overwrite = overwrite;
    overwrite().with_context(|| format!("overwriting {}", path.display()))
}

#[cfg(test)]
mod tests;

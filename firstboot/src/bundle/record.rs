// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a host was like before: `/var/lib/imgbuild/host-install.json`, on the disk before anything changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use crate::context::{STATE_DIR, below};
use crate::files::Owner;

/// Version of the record.
const SCHEMA: u32 = 1;
/// Below [`STATE_DIR`].
pub(super) const FILE: &str = "host-install.json";
/// Copies of files that are replaced, below [`STATE_DIR`].
pub(super) const SAVED: &str = "saved";

/// How far it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// Changes are being made.
    Installing,
    /// All are made; firstboot has the word.
    Installed,
    /// They are being taken back.
    Uninstalling,
    /// All are taken back: what is left is the record, and copies that nobody needs any more.
    Restored,
}

/// What was at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub(super) enum Before {
    /// Nothing.
    Absent,
    /// A file.
    File {
        /// Name of its copy in [`SAVED`].
        saved: String,
        mode: u32,
        uid: u32,
        gid: u32,
        /// Since 1970, in nanoseconds: up to the year 2554.
        modified: u64,
    },
    /// A symbolic link.
    Link { target: String },
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub schema: u32,
    pub phase: Phase,
    /// SHA-256 of the bundle's list of checksums.
    pub bundle: String,
    pub cluster_id: String,
    pub node: String,
    /// Every path outside of `owned` that the installation or firstboot writes, and what was there.
    pub paths: BTreeMap<String, Before>,
    /// Directories above those that were not there.
    pub folders: BTreeSet<String>,
    /// Directories that are firstboot's with all that is in them, and whether they were there, empty.
    pub owned: BTreeMap<String, bool>,
    /// Whether the user `etcd` has to be made.
    pub user: bool,
    /// Host name of the kernel.
    pub hostname: String,
    /// Values of kernel parameters, by path below `/proc/sys`.
    pub sysctl: BTreeMap<String, String>,
    pub interfaces: BTreeSet<String>,
    pub mounts: BTreeSet<String>,
    /// Units of those that firstboot takes over that ran.
    pub ran: BTreeSet<String>,
}

fn file() -> String {
    format!("{STATE_DIR}/{FILE}")
}

impl Record {
    /// That of the host below `root`, if there is one.
    pub(super) fn read(root: &Path) -> Result<Option<Self>> {
        let path = below(root, &file());
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let record: Self =
            serde_json::from_slice(&text).with_context(|| format!("understanding {}", path.display()))?;
        ensure!(record.schema == SCHEMA, "{} has schema {}, known is {SCHEMA}", path.display(), record.schema);
        Ok(Some(record))
    }

    pub(super) fn new(bundle: String, cluster_id: String, node: String) -> Self {
        Self {
            schema: SCHEMA,
            phase: Phase::Installing,
            bundle,
            cluster_id,
            node,
            paths: BTreeMap::new(),
            folders: BTreeSet::new(),
            owned: BTreeMap::new(),
            user: false,
            hostname: String::new(),
            sysctl: BTreeMap::new(),
            interfaces: BTreeSet::new(),
            mounts: BTreeSet::new(),
            ran: BTreeSet::new(),
        }
    }

    /// Makes it durable.
    pub(super) fn write(&self, disk: &Disk) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).context("encoding the record")?;
        text.push(b'\n');
        disk.write(&file(), &text, 0o600, Owner::ROOT)
    }

    /// The same in another phase.
    pub(super) fn enter(&mut self, phase: Phase, disk: &Disk) -> Result<()> {
        self.phase = phase;
        self.write(disk)
    }

    /// Removes it: the last thing that goes.
    pub(super) fn remove(disk: &Disk) -> Result<()> {
        disk.remove(&file())
    }

    /// Whether the path is in a directory that goes as a whole.
    pub(super) fn owns(&self, path: &str) -> bool {
        path.strip_prefix(STATE_DIR).is_some_and(is_below)
            || self.owned.keys().any(|owned| path.strip_prefix(owned.as_str()).is_some_and(is_below))
    }

    /// Notes a directory that will be firstboot's.
    pub(super) fn own(&mut self, disk: &Disk, path: &str) {
        self.owned.insert(path.to_owned(), disk.exists(path));
        self.note_folders(disk, path);
    }

    /// Notes what is at a path that will be written, and keeps a copy of a file.
    pub(super) fn note(&mut self, disk: &Disk, path: &str) -> Result<()> {
        if self.owns(path) || self.paths.contains_key(path) {
            return Ok(());
        }
        let real = disk.path(path);
        let before = match fs::symlink_metadata(&real) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Before::Absent,
            Err(error) => return Err(error).with_context(|| format!("looking at {path}")),
            Ok(meta) if meta.is_symlink() => {
                let target = fs::read_link(&real).with_context(|| format!("reading the link {path}"))?;
                let target = target.to_str().with_context(|| format!("{path} leads to a name that is not UTF-8"))?;
                Before::Link { target: target.to_owned() }
            }
            Ok(meta) if meta.is_file() => {
                let saved = format!("{:03}", self.paths.len());
                let content = fs::read(&real).with_context(|| format!("reading {path}"))?;
                disk.write(&format!("{STATE_DIR}/{SAVED}/{saved}"), &content, 0o600, Owner::ROOT)?;
                let modified = meta.modified().with_context(|| format!("asking for the time of {path}"))?;
                let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
                Before::File {
                    saved,
                    mode: meta.mode() & 0o7777,
                    uid: meta.uid(),
                    gid: meta.gid(),
                    modified: u64::try_from(since).unwrap_or(u64::MAX),
                }
            }
            Ok(_) => bail!("{path} is neither a file nor a link: nothing can be written there"),
        };
        self.paths.insert(path.to_owned(), before);
        self.note_folders(disk, path);
        Ok(())
    }

    fn note_folders(&mut self, disk: &Disk, path: &str) {
        let mut folder = path;
        while let Some((up, _)) = folder.rsplit_once('/').filter(|(up, _)| !up.is_empty() && !disk.exists(up)) {
            self.folders.insert(up.to_owned());
            folder = up;
        }
    }

    /// Puts back what was at a path.
    pub(super) fn restore(&self, disk: &Disk, path: &str) -> Result<()> {
        match self.paths.get(path) {
            None => Ok(()),
            Some(Before::Absent) => disk.remove(path),
            Some(Before::Link { target }) => match fs::read_link(disk.path(path)) {
                Ok(found) if found.as_os_str() == target.as_str() => Ok(()),
                _ => disk.link(path, target),
            },
            Some(Before::File { saved, mode, uid, gid, modified }) => {
                let copy = disk.path(&format!("{STATE_DIR}/{SAVED}/{saved}"));
                let content = fs::read(&copy).with_context(|| format!("reading {}", copy.display()))?;
                disk.write(path, &content, *mode, Owner { uid: *uid, gid: *gid })?;
                disk.set_modified(path, time(*modified))
            }
        }
    }

    /// The copy of a file as it was; empty if there was none.
    pub(super) fn saved_text(&self, disk: &Disk, path: &str) -> Result<String> {
        let Some(Before::File { saved, .. }) = self.paths.get(path) else { return Ok(String::new()) };
        let copy = disk.path(&format!("{STATE_DIR}/{SAVED}/{saved}"));
        let content = fs::read(&copy).with_context(|| format!("reading {}", copy.display()))?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    }
}

/// Whether what is left of a path behind a directory's name is that directory or in it.
fn is_below(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

fn time(nanoseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}

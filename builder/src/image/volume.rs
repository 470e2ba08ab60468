// SPDX-License-Identifier: MIT OR Apache-2.0

//! Looks through a mounted volume of any format that hadris reads. It may be from elsewhere and damaged in any byte.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use hadris_fs::FileType;
use hadris_fs::sync::{FileSystem, Volume};

/// Deepest folder that is read, and most names: a damaged folder may contain itself.
const DEPTH_MAX: usize = 16;
const NAMES_MAX: usize = 65_536;

/// A volume, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Volume label.
    pub label: String,
    /// Size of every file by path.
    pub files: BTreeMap<String, u64>,
    /// Bytes of the files that were asked for.
    pub bytes: BTreeMap<String, Vec<u8>>,
}

/// All names, and the bytes of those files of at most `limit` bytes that `want` picks.
///
/// # Errors
/// A damaged volume, or failing I/O.
pub(super) fn contents<F: FileSystem>(
    label: String,
    volume: &Volume<F>,
    limit: u64,
    want: impl Fn(&str) -> bool,
) -> Result<Contents> {
    let (mut files, mut bytes) = (BTreeMap::new(), BTreeMap::new());
    let mut folders = vec![(String::new(), 0)];
    let mut names = 0;
    while let Some((folder, depth)) = folders.pop() {
        if depth > DEPTH_MAX {
            bail!("folders are nested more than {DEPTH_MAX} deep");
        }
        let list = volume.read_dir(format!("/{folder}")).map_err(|e| anyhow!("listing `{folder}`: {e}"))?;
        for entry in list {
            let entry = entry.map_err(|e| anyhow!("listing `{folder}`: {e}"))?;
            names += 1;
            if names > NAMES_MAX {
                bail!("the volume has more than {NAMES_MAX} names");
            }
            let name = entry.name().to_str().map_err(|_| anyhow!("a name in `{folder}` is not UTF-8"))?;
            let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            if entry.file_type() == FileType::Dir {
                folders.push((path, depth + 1));
                continue;
            }
            // As the listing has it: looking for each path again would take the square of the names in a folder.
            let len = entry.metadata().len();
            if want(&path) && len <= limit {
                let content = volume.read(format!("/{path}")).map_err(|e| anyhow!("reading `{path}`: {e}"))?;
                bytes.insert(path.clone(), content);
            }
            files.insert(path, len);
        }
    }
    Ok(Contents { label, files, bytes })
}

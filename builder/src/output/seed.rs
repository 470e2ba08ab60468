// SPDX-License-Identifier: MIT OR Apache-2.0

//! The seed of one node alone, in every form that something reads: a folder, an ISO 9660 volume for a virtual machine's
//! CD-ROM drive, and a cpio archive that a boot loader appends to the initramfs. All hold the node's secrets and are
//! for their owner only.

use std::path::{Path, PathBuf};

use anyhow::Result;
use profiles::medium::FOLDER;

use super::place::Placed;
use super::place_folder::PlacedFolder;
use crate::error::Failure;
use crate::image::{cpio, seed_iso};
use crate::store::Store;
use crate::tree::{Entry, FileTree};

/// Volume label that NoCloud looks for (docs/contracts.md, section 6).
const LABEL: &str = "CIDATA";
/// Time of every file: none. What matters of a seed is its content.
const EPOCH: u32 = 0;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedFiles {
    /// The folder, `<node>-seed`.
    pub folder: PathBuf,
    /// The ISO 9660 volume, `<node>-seed.iso`.
    pub iso: PathBuf,
    /// The archive, `<node>-seed.cpio`.
    pub cpio: PathBuf,
}

/// Writes the seed `tree` of `node` into the folder `out`, in all three forms. Each appears whole.
///
/// # Errors
/// A folder of that name which holds something else; failing I/O.
pub fn write(tree: &FileTree, store: &Store, node: &str, out: &Path) -> Result<SeedFiles> {
    let files = SeedFiles {
        folder: out.join(format!("{node}-seed")),
        iso: out.join(format!("{node}-seed.iso")),
        cpio: out.join(format!("{node}-seed.cpio")),
    };
    let folder = PlacedFolder::new(&files.folder)?;
    for (path, _) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        let bytes = tree.text(store, path)?.unwrap_or_default();
        folder.write(path, bytes.as_bytes(), 0o600)?;
    }
    folder.finish(&[])?;

    let iso = Placed::new(&files.iso)?;
    seed_iso::write(tree, store, LABEL, iso.file())?;
    iso.finish()?;

    let archive = Placed::new(&files.cpio)?;
    let mut writer = std::io::BufWriter::new(archive.file());
    cpio::write(&in_medium(tree, node)?, store, EPOCH, &mut writer)?;
    let doing = || format!("writing {}", files.cpio.display());
    writer.into_inner().map_err(|e| Failure::io(doing(), e.into_error()))?;
    archive.finish()?;
    Ok(files)
}

/// The seed where an installation medium has it (docs/contracts.md, section 11): `imgbuild/nodes/<node>/`.
pub fn in_medium(tree: &FileTree, node: &str) -> Result<FileTree> {
    let mut archive = FileTree::new();
    for (path, entry) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        let target = format!("{FOLDER}/nodes/{node}/{path}");
        if let Some((folder, _)) = target.rsplit_once('/') {
            archive.ensure_dir(folder, 0o700)?;
        }
        archive.insert(&target, Entry { mtime: EPOCH, ..entry.clone() })?;
    }
    Ok(archive)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::image::testing::{store, text, tool_ok};

    #[test]
    fn three_forms_hold_the_same_and_only_their_owner_reads_them() {
        let (dir, store) = store();
        let mut tree = FileTree::new();
        let documents = [("meta-data", "instance-id: a\n"), ("user-data", "#cloud-config\nä: secret\n")];
        for (name, body) in documents {
            tree.insert(name, Entry::file(body.as_bytes(), 0o600)).unwrap();
        }
        let out = dir.path().join("out");
        let files = write(&tree, &store, "master-1", &out).unwrap();
        let again = dir.path().join("again");
        write(&tree, &store, "master-1", &again).unwrap();
        for (path, mode) in [(&files.folder, 0o700), (&files.iso, 0o600), (&files.cpio, 0o600)] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
        tool_ok("diff", "diffutils", &["-r", text(&out), text(&again)]);
        for (name, body) in documents {
            assert_eq!(std::fs::read_to_string(files.folder.join(name)).unwrap(), body);
            let path = format!("/{name}");
            let there = tool_ok("isoinfo", "genisoimage", &["-R", "-x", &path, "-i", text(&files.iso)]);
            assert_eq!(there, body);
            let path = format!("imgbuild/nodes/master-1/{name}");
            let there = tool_ok("cpio", "cpio", &["-i", "--quiet", "--to-stdout", "-F", text(&files.cpio), &path]);
            assert_eq!(there, body);
        }
        // Once more over what is there.
        write(&tree, &store, "master-1", &out).unwrap();
        tool_ok("diff", "diffutils", &["-r", text(&out), text(&again)]);
    }
}

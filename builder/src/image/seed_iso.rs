// SPDX-License-Identifier: MIT OR Apache-2.0

//! Small ISO 9660 volumes of a few files in memory: a seed for a virtual machine's CD-ROM drive. Names are kept by Rock
//! Ridge and Joliet, since plain ISO 9660 has no `user-data`. Written by hadris-iso, a pinned release candidate kept
//! behind this module.

use std::fs::File;

use anyhow::{Context, Result, anyhow, bail};
use hadris_fs::{Content, DateTime, Node, Permissions, SetAttr, Tree};
use hadris_iso::{IsoId, IsoOptions, Preserve};
use hadris_storage::host::FileDevice;

use crate::store::Store;
use crate::tree::{FileTree, Kind};

/// 1980-01-01, as on FAT volumes: a seed is the same whenever it is made.
const TIME: i64 = 315_532_800;

/// Writes a volume called `label` with the files of `tree`, all in its root, to the empty file `out`.
///
/// # Errors
/// Anything but files in the tree, a name that cannot be stored, or failing I/O.
pub fn write(tree: &FileTree, store: &Store, label: &str, out: &File) -> Result<()> {
    let mut files = Tree::new();
    for (path, entry) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        let Kind::File(content) = &entry.kind else { bail!("`{path}` is not a file") };
        let attributes = SetAttr::new().with_permissions(Permissions::new(u32::from(entry.mode)));
        let node = Node::file(Content::bytes(content.read(store)?)).with_attrs(attributes);
        files.insert(path, node).map_err(|e| anyhow!("adding `{path}` to the ISO volume: {e}"))?;
    }
    let time = DateTime::from_unix_seconds(TIME).map_err(|e| anyhow!("a fixed time: {e}"))?;
    let options = IsoOptions::default()
        .with_id(IsoId::Volume, label)
        .with_id(IsoId::Application, "IMGBUILD")
        .with_joliet()
        .with_rock_ridge()
        .with_preserve(Preserve::PERMISSIONS)
        .with_time(time);
    let device =
        FileDevice::new(out.try_clone().context("opening the ISO volume")?).context("opening the ISO volume")?;
    let report =
        hadris_iso::sync::write(device, &files, &options).map_err(|e| anyhow!("writing the ISO volume: {e}"))?;
    if let Some(warning) = report.warnings().first() {
        bail!("the ISO volume cannot hold everything: {warning}");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::image::testing::{store, text, tool_ok};
    use crate::tree::Entry;

    #[test]
    fn others_read_label_names_modes_and_bytes() {
        let (dir, store) = store();
        let path = dir.path().join("seed.iso");
        let mut tree = FileTree::new();
        tree.insert("meta-data", Entry::file(*b"instance-id: a\n", 0o600)).unwrap();
        tree.insert("user-data", Entry::file(vec![b'x'; 5000], 0o600)).unwrap();
        tree.insert("network-config", Entry::file(*b"version: 2\n", 0o644)).unwrap();
        let make = || {
            write(&tree, &store, "CIDATA", &File::create_new(&path).unwrap()).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            bytes
        };
        let bytes = make();
        assert!(bytes == make());
        std::fs::write(&path, &bytes).unwrap();
        let volume = tool_ok("isoinfo", "genisoimage", &["-d", "-i", text(&path)]);
        for line in ["Volume id: CIDATA", "Rock Ridge signatures version 1 found", "Joliet with UCS level 3 found"] {
            assert!(volume.contains(line), "{line}\n{volume}");
        }
        for names in ["-R", "-J"] {
            let content = tool_ok("isoinfo", "genisoimage", &[names, "-x", "/user-data", "-i", text(&path)]);
            assert_eq!(content, "x".repeat(5000), "{names}");
        }
        let list = tool_ok("isoinfo", "genisoimage", &["-R", "-l", "-i", text(&path)]);
        let mode =
            |name: &str| list.lines().find(|line| line.trim_end().ends_with(name)).unwrap().trim()[..10].to_owned();
        assert_eq!((mode("user-data").as_str(), mode("network-config").as_str()), ("-rw-------", "-rw-r--r--"));
        let found = tool_ok("blkid", "util-linux", &["-p", "-o", "export", text(&path)]);
        for line in ["LABEL=CIDATA", "TYPE=iso9660"] {
            assert!(found.lines().any(|found| found == line), "{line}\n{found}");
        }
    }

    #[test]
    fn only_files_are_taken() {
        let (dir, store) = store();
        let mut tree = FileTree::new();
        tree.insert("a/b", Entry::file(*b"x", 0o600)).unwrap();
        assert!(write(&tree, &store, "CIDATA", &File::create_new(dir.path().join("a.iso")).unwrap()).is_err());
    }
}

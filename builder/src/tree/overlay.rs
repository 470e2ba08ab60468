// SPDX-License-Identifier: MIT OR Apache-2.0

//! The overlays: files of `rootfs-overlays/` that are copied verbatim into an image. They are part of the binary;
//! `build.rs` lists them. No logic in them, and none here.

use anyhow::{Result, bail};

use super::{Entry, FileTree};

/// What `build.rs` lists.
#[derive(Debug)]
enum Embedded {
    /// A file's bytes, and whether it is executable.
    File(&'static [u8], bool),
    /// A symbolic link's target.
    Link(&'static str),
}

/// Path below `rootfs-overlays` to content, sorted.
static EMBEDDED: &[(&str, Embedded)] = include!(concat!(env!("OUT_DIR"), "/overlays.rs"));

/// The names of all overlays.
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = EMBEDDED.iter().filter_map(|(path, _)| Some(path.split_once('/')?.0)).collect();
    names.dedup();
    names
}

/// The tree of one overlay.
///
/// # Errors
/// There is no overlay of this name.
pub fn overlay(name: &str) -> Result<FileTree> {
    let mut tree = FileTree::new();
    for (path, what) in EMBEDDED {
        let Some(path) = path.strip_prefix(name).and_then(|path| path.strip_prefix('/')) else { continue };
        let entry = match what {
            Embedded::File(bytes, executable) => Entry::file(*bytes, if *executable { 0o755 } else { 0o644 }),
            Embedded::Link(target) => Entry::symlink(*target),
        };
        tree.insert(path, entry)?;
    }
    if tree.len() == 1 {
        bail!("there is no overlay `{name}`; there are {}", names().join(", "));
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::super::{Content, Kind};
    use super::{names, overlay};

    #[test]
    fn the_shipped_overlays() {
        assert_eq!(names(), ["bundle", "common", "containerd", "debian", "kylin"]);
        for name in names() {
            overlay(name).unwrap();
        }
        // What the runbook turns off by hand, and what networkd has in its place.
        let kylin = overlay("kylin").unwrap();
        let ignored = kylin.get("etc/NetworkManager/conf.d/90-imgbuild.conf").unwrap();
        let Kind::File(Content::Bytes(text)) = &ignored.kind else { panic!("{ignored:?}") };
        assert!(text.windows(21).any(|line| line == b"\nunmanaged-devices=*\n"));
        assert_eq!(kylin.get("etc/systemd/system/firewalld.service").unwrap().kind, Kind::Symlink("/dev/null".into()));
        assert!(overlay("none").unwrap_err().to_string().contains("common, containerd, debian, kylin"));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A file tree as a `.tar.zst`, in its place in one move. The same bytes for the same tree, wherever and however it is made.

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Context, Result};

use super::disk::check_space;
use super::place::Placed;
use crate::image::oci::layer::write_tar;
use crate::image::zst;
use crate::store::Store;
use crate::tree::{FileTree, Kind};

/// As the squashfs of an image is compressed.
const LEVEL: i32 = 7;
/// 8 MiB: what every zstd must read without being told to (RFC 8878, 3.1.1.1.2).
const WINDOW_LOG: u32 = 23;
/// Four windows.
const JOB_SIZE: u32 = 32 << 20;
/// Each job holds what it reads and what it makes of it, and zstd has room for three more (the ring of input that
/// `ZSTDMT_initCStream_internal` makes): some 400 MB with four. The machine may have a hundred processors, and a build is
/// to stay below 500 MB.
const MOST_JOBS: usize = 4;

/// Writes `tree` to `path`, readable by its owner alone. Nothing is dated later than `epoch` (seconds since 1970).
///
/// # Errors
/// Too little free space, a tree that no tar archive can hold, failing I/O. Nothing is left at `path` then.
pub fn write(tree: &FileTree, store: &Store, epoch: u32, jobs: NonZeroUsize, path: &Path) -> Result<()> {
    // Uncompressed: an upper bound, as images that come compressed do not shrink.
    let size = |kind: &Kind| if let Kind::File(content) = kind { content.len() } else { 0 };
    check_space(path, tree.iter().map(|(_, entry)| size(&entry.kind)).sum())?;
    let placed = Placed::new(path)?;
    zst::compress(placed.file(), &options(jobs), |out| write_tar(out, store, tree, epoch))
        .with_context(|| format!("writing {}", path.display()))?;
    placed.finish()
}

/// How such archives are compressed.
pub(super) fn options(jobs: NonZeroUsize) -> zst::Options {
    zst::Options { level: LEVEL, window_log: WINDOW_LOG, job_size: JOB_SIZE, jobs: jobs.get().min(MOST_JOBS) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::tree::Entry;

    /// GNU tar and zstd read it; threads and folder do not show.
    #[test]
    fn tar_lists_it_and_it_is_always_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let mut tree = FileTree::new();
        let noise: Vec<u8> = (0..9_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        tree.insert("top/big", Entry::file(noise.clone(), 0o755)).unwrap();
        tree.insert("top/again", Entry::new(Kind::HardLink("top/big".into()), 0o755)).unwrap();
        tree.insert("top/seeds", Entry::dir(0o700)).unwrap();
        tree.insert("top/seeds/user-data", Entry::file(*b"secret", 0o600)).unwrap();
        let write = |to: &str, jobs| {
            let path = dir.path().join(to).join("a.tar.zst");
            super::write(&tree, &store, 1_600_000_000, NonZeroUsize::new(jobs).unwrap(), &path).unwrap();
            path
        };
        let (one, other) = (write("one", 1), write("other", 5));
        assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(other).unwrap());
        let tar = |args: &[&str]| {
            let output = Command::new("tar").args(args).arg(&one).env("TZ", "UTC").output().expect("tar runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let out = dir.path().join("out");
        std::fs::create_dir(&out).unwrap();
        tar(&["-C", out.to_str().unwrap(), "--zstd", "-xf"]);
        assert_eq!(std::fs::read(out.join("top/again")).unwrap(), noise);
        let listed = tar(&["--numeric-owner", "--zstd", "-tvf"]);
        for line in [
            "drwxr-xr-x 0/0               0 2020-09-13 12:26 top/",
            "-rwxr-xr-x 0/0         9000000 2020-09-13 12:26 top/again",
            "hrwxr-xr-x 0/0               0 2020-09-13 12:26 top/big link to top/again",
            "drwx------ 0/0               0 2020-09-13 12:26 top/seeds/",
            "-rw------- 0/0               6 2020-09-13 12:26 top/seeds/user-data",
        ] {
            assert!(listed.lines().any(|listed| listed == line), "{line}\n{listed}");
        }
    }
}

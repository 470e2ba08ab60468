// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists the files of `rootfs-overlays`, so that they become part of the one binary. No other logic.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{env, io};

fn main() -> io::Result<()> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?).join("../rootfs-overlays");
    let root = root.canonicalize()?;
    println!("cargo::rerun-if-changed={}", root.display());
    let mut out = String::from("&[\n");
    list(&root, &root, &mut out)?;
    out.push_str("]\n");
    let to = Path::new(&env::var("OUT_DIR").map_err(io::Error::other)?).join("overlays.rs");
    fs::write(to, out)
}

/// One line for each file and link below `dir`, sorted: the path, and what is there.
fn list(root: &Path, dir: &Path, out: &mut String) -> io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let meta = fs::symlink_metadata(&path)?;
        let name = path.strip_prefix(root).map_err(io::Error::other)?.display().to_string();
        // Writing to a string cannot fail.
        if meta.is_dir() {
            list(root, &path, out)?;
        } else if meta.is_symlink() {
            let target = fs::read_link(&path)?.display().to_string();
            let _ = writeln!(out, "({name:?}, Embedded::Link({target:?})),");
        } else {
            // As git keeps it: executable or not.
            let executable = meta.permissions().mode() & 0o100 != 0;
            let path = path.display().to_string();
            let _ = writeln!(out, "({name:?}, Embedded::File(include_bytes!({path:?}), {executable})),");
        }
    }
    Ok(())
}

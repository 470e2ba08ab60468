// SPDX-License-Identifier: MIT OR Apache-2.0

//! Prepares what `imgbuild` carries inside itself, to stay one binary: the files of `rootfs-overlays`, and the static
//! `firstboot` of each architecture. `IMGBUILD_FIRSTBOOT_AMD64=/path/to/firstboot` and `IMGBUILD_FIRSTBOOT_LOONG64` embed
//! ready-made ones. Without the first, it is built here. Without the second, what `firstboot/build-static` has in its cache
//! is taken; where it has nothing, imgbuild is built all the same, and says what is missing when loong64 is wanted.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let workspace = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for input in ["Cargo.toml", "Cargo.lock", "firstboot", "profiles/src", "profiles/Cargo.toml", "rootfs-overlays"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=IMGBUILD_FIRSTBOOT_AMD64");
    println!("cargo::rerun-if-env-changed=IMGBUILD_FIRSTBOOT_LOONG64");

    let overlays = workspace.join("rootfs-overlays");
    let mut list = String::from("&[\n");
    list_overlays(&overlays, &overlays, &mut list)?;
    list.push_str("]\n");
    fs::write(out.join("overlays.rs"), list)?;

    let firstboot = match std::env::var_os("IMGBUILD_FIRSTBOOT_AMD64") {
        Some(path) => PathBuf::from(path),
        None => build_firstboot(&workspace, &out, "x86_64-unknown-linux-gnu")?,
    };
    println!("cargo::rustc-env=IMGBUILD_FIRSTBOOT_AMD64_FILE={}", firstboot.display());
    println!("cargo::rerun-if-changed={}", firstboot.display());

    let firstboot = match std::env::var_os("IMGBUILD_FIRSTBOOT_LOONG64") {
        Some(path) => PathBuf::from(path),
        None => cached_firstboot(&workspace, &out)?,
    };
    println!("cargo::rustc-env=IMGBUILD_FIRSTBOOT_LOONG64_FILE={}", firstboot.display());
    println!("cargo::rerun-if-changed={}", firstboot.display());
    Ok(())
}

/// The loong64 firstboot that `firstboot/build-static` made of these sources, or an empty file.
fn cached_firstboot(workspace: &Path, out: &Path) -> Result<PathBuf, Failure> {
    // The folder is watched, so that the next build embeds what the script puts there.
    println!("cargo::rerun-if-env-changed=XDG_CACHE_HOME");
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    if let Some(cache) = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home) {
        let made = cache.join("imgbuild-firstboot/loong64");
        if fs::create_dir_all(&made).is_ok() {
            println!("cargo::rerun-if-changed={}", made.display());
        }
    }
    let found = Command::new(workspace.join("firstboot/build-static")).arg("--cached").output()?;
    if found.status.success() {
        return Ok(PathBuf::from(String::from_utf8(found.stdout)?.trim_end()));
    }
    let none = out.join("no-firstboot");
    // It is watched: written each time, it would have the next build begin anew.
    if !none.exists() {
        fs::write(&none, b"")?;
    }
    Ok(none)
}

/// One line for each file and link below `dir`, sorted: the path, and what is there.
fn list_overlays(root: &Path, dir: &Path, out: &mut String) -> Result<(), Failure> {
    let mut entries = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let meta = fs::symlink_metadata(&path)?;
        let name = path.strip_prefix(root)?.display().to_string();
        if meta.is_dir() {
            list_overlays(root, &path, out)?;
        } else if meta.is_symlink() {
            let target = fs::read_link(&path)?.display().to_string();
            writeln!(out, "({name:?}, Embedded::Link({target:?})),")?;
        } else {
            // As git keeps it: executable or not.
            let executable = meta.permissions().mode() & 0o100 != 0;
            let path = path.display().to_string();
            writeln!(out, "({name:?}, Embedded::File(include_bytes!({path:?}), {executable})),")?;
        }
    }
    Ok(())
}

/// Runs a second cargo with a target folder of its own: the outer one holds the lock of the usual folder.
fn build_firstboot(workspace: &Path, out: &Path, target: &str) -> Result<PathBuf, Failure> {
    // OUT_DIR is <target folder>/<profile>/build/<package>-<hash>/out; debug and release share one firstboot.
    let target_dir = out.ancestors().nth(4).ok_or("OUT_DIR is too short")?.join("firstboot-static");
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))?;
    // Panic messages hold source paths: mapped, so that the binary is the same wherever it was built.
    let flags = format!(
        "-C target-feature=+crt-static --remap-path-prefix={}=imgbuild --remap-path-prefix={home}=cargo",
        workspace.display()
    );
    let mut cargo = Command::new(std::env::var("CARGO")?);
    cargo.args(["build", "--quiet", "--package", "firstboot", "--profile", "firstboot", "--target", target]);
    cargo.arg("--target-dir").arg(&target_dir).current_dir(workspace).env("RUSTFLAGS", flags);
    // What the outer cargo (or clippy) set for its own compilation does not concern the inner one.
    for name in
        ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CLIPPY_ARGS", "CARGO_TARGET_DIR"]
    {
        cargo.env_remove(name);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("building firstboot for {target} failed: {status}").into());
    }
    Ok(target_dir.join(target).join("firstboot").join("firstboot"))
}

//! Builds the static `firstboot` for every node architecture this machine can build for, so that `imgbuild` can embed it
//! and stay one binary. `IMGBUILD_FIRSTBOOT_AMD64=/path/to/firstboot` embeds a ready-made one instead.

use std::path::{Path, PathBuf};
use std::process::Command;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let workspace = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    for input in ["Cargo.toml", "Cargo.lock", "firstboot", "profiles/src", "profiles/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=IMGBUILD_FIRSTBOOT_AMD64");
    let binary = match std::env::var_os("IMGBUILD_FIRSTBOOT_AMD64") {
        Some(path) => PathBuf::from(path),
        None => build_firstboot(&workspace, "x86_64-unknown-linux-gnu")?,
    };
    println!("cargo::rustc-env=IMGBUILD_FIRSTBOOT_AMD64_FILE={}", binary.display());
    println!("cargo::rerun-if-changed={}", binary.display());
    Ok(())
}

/// Runs a second cargo with a target folder of its own: the outer one holds the lock of the usual folder.
fn build_firstboot(workspace: &Path, target: &str) -> Result<PathBuf, Failure> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // OUT_DIR is <target folder>/<profile>/build/<package>-<hash>/out; debug and release share one firstboot.
    let target_dir = out.ancestors().nth(4).ok_or("OUT_DIR is too short")?.join("firstboot-static");
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))?;
    // Panic messages hold source paths: mapped, so that the binary is the same wherever it was built.
    let flags = format!(
        "-C target-feature=+crt-static --remap-path-prefix={}=imgbuild --remap-path-prefix={home}=cargo",
        workspace.display()
    );
    let mut cargo = Command::new(std::env::var("CARGO")?);
    cargo.args([
        "build",
        "--quiet",
        "--package",
        "firstboot",
        "--profile",
        "firstboot",
        "--target",
        target,
        "--target-dir",
    ]);
    cargo.arg(&target_dir).current_dir(workspace).env("RUSTFLAGS", flags);
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

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Recipes for containerd out of Debian's source package `containerd`, for architectures and releases that no package has:
//! containerd 2 cannot serve a kubelet older than 1.23, and Debian's port to LoongArch begins with containerd 2.
//!
//! It does what `debian/rules` does, without `make`: apply the distribution's patches, set the version, compile. The
//! source has no libraries in it; they are packages, and found as on a build machine of the distribution.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use profiles::node::Architecture;
use serde::Serialize;

use super::golang::{Build, Overlay};
use super::steps::{Workshop, keep, read, replace_line, write};
use super::workspace::single_top;
use super::{Programs, Trees};
use crate::store::Store;
use crate::tree::FileTree;

/// The import path of the whole tree.
const TOP: &str = "github.com/containerd/containerd";

/// How one release of containerd is compiled. Every field is part of the step key.
#[derive(Debug, Serialize)]
pub struct Recipe {
    /// To be raised when the code below would make something else out of the same recipe.
    #[serde(skip)]
    pub step_version: u32,
    /// The release, without `v`.
    pub version: &'static str,
    /// Release of Go.
    go: &'static str,
    /// Packages the toolchain consists of.
    toolchain: &'static [&'static str],
    /// Packages with the libraries, one a line.
    libraries: &'static str,
    /// Programs, by import path below [`TOP`].
    programs: &'static [&'static str],
    /// Parts that are left out.
    tags: &'static [&'static str],
    /// Changes to libraries.
    changes: &'static [Change],
}

/// A file of a library that the compiler sees otherwise than its package has it.
#[derive(Debug, Serialize)]
struct Change {
    /// The file, by import path.
    file: &'static str,
    /// The file it is made of: itself, or another one.
    of: &'static str,
    /// One line, without its newline, is replaced.
    from: &'static str,
    to: &'static str,
}

/// containerd 1.6.20 of Debian bookworm.
const CONTAINERD_1_6_20: Recipe = Recipe {
    step_version: 1,
    version: "1.6.20",
    go: "1.19",
    toolchain: &["golang-1.19-go", "golang-1.19-src"],
    // The packages of `go list -deps`. One that is missing does not compile.
    libraries: include_str!("containerd-1.6-libraries.txt"),
    programs: &["cmd/containerd", "cmd/containerd-shim-runc-v2", "cmd/ctr"],
    // Snapshotters that nodes do not have, and that want C.
    tags: &["no_aufs", "no_btrfs", "no_devmapper", "no_zfs"],
    // Both are older than Go's port to LoongArch. They change nothing for other architectures.
    changes: &[
        Change {
            file: "go.etcd.io/bbolt/bolt_loong64.go",
            of: "go.etcd.io/bbolt/bolt_riscv64.go",
            from: "// +build riscv64",
            to: "// +build loong64",
        },
        Change {
            file: "github.com/cilium/ebpf/internal/endian_le.go",
            of: "github.com/cilium/ebpf/internal/endian_le.go",
            from: "//go:build 386 || amd64 || amd64p32 || arm || arm64 || mipsle || mips64le || mips64p32le || ppc64le || riscv64",
            to: "//go:build 386 || amd64 || amd64p32 || arm || arm64 || loong64 || mipsle || mips64le || mips64p32le || ppc64le || riscv64",
        },
    ],
};

/// The recipe for a release ("1.6.20"), if there is one.
pub fn recipe(version: &str) -> Option<&'static Recipe> {
    const RECIPES: [&Recipe; 1] = [&CONTAINERD_1_6_20];
    RECIPES.into_iter().find(|recipe| recipe.version == version)
}

impl Recipe {
    /// The packages to unpack for this recipe: the toolchain, of the architecture of this machine, and the libraries.
    pub fn packages(&self) -> Vec<&'static str> {
        self.toolchain.iter().copied().chain(self.libraries.lines()).collect()
    }

    /// Names of the programs that [`super::build`] makes.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.programs.iter().map(|path| path.rsplit('/').next().unwrap_or(path))
    }

    pub(super) fn compile(
        &self,
        store: &Store,
        trees: &Trees,
        target: Architecture,
        jobs: NonZeroUsize,
    ) -> Result<Programs> {
        self.check_release(store, &trees.upstream)?;
        let workshop = Workshop::open(store, trees, self.go, TOP, jobs)?;
        let gopath = workshop.libraries.parent().context("a folder of libraries without a name")?;
        let go = workshop.go.with_libraries(gopath);

        let overlay = self.overlay(&workshop.libraries, &workshop.path)?;
        let output = workshop.path.join("output");
        let programs: Vec<_> = self.programs.iter().map(|program| format!("{TOP}/{program}")).collect();
        let variables = [(format!("{TOP}/version.Version"), self.version.to_owned())];
        tracing::info!("compiling containerd {} for {target:?}: this takes a minute or two", self.version);
        go.build(
            &workshop.source,
            &Build {
                packages: &programs,
                target: Some(target),
                tags: self.tags,
                variables: &variables,
                overlay: Some(&overlay),
                output: &output,
            },
        )?;
        self.names().map(|name| Ok((name.to_owned(), keep(store, &output.join(name))?))).collect()
    }

    /// Makes sure that the archive is of the release that its version will claim.
    fn check_release(&self, store: &Store, upstream: &FileTree) -> Result<()> {
        let file = "version/version.go";
        let text = read(store, upstream, single_top(upstream), file)?;
        if !text.contains(&format!("\"{}+unknown\"", self.version)) {
            bail!("{file} of the source is not of release {}", self.version);
        }
        Ok(())
    }

    /// Writes the changes, and what tells the compiler of them.
    fn overlay(&self, libraries: &Path, scratch: &Path) -> Result<PathBuf> {
        let mut overlay = Overlay::default();
        for Change { file, of, from, to } in self.changes {
            let text = fs::read_to_string(libraries.join(of)).with_context(|| format!("reading {of}"))?;
            let text = replace_line(&text, from, to).with_context(|| format!("changing {of}"))?;
            overlay.replace(libraries.join(file), write(&scratch.join("overlay").join(file), &text)?);
        }
        let path = scratch.join("overlay.json");
        overlay.write(&path)?;
        Ok(path)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_names_its_packages_and_programs() {
        let recipe = recipe("1.6.20").unwrap();
        let packages = recipe.packages();
        assert_eq!(packages[..2], ["golang-1.19-go", "golang-1.19-src"]);
        assert!(packages[2..].is_sorted() && packages.len() > 50);
        assert!(packages.iter().all(|name| name.starts_with("golang-") && !name.contains(char::is_whitespace)));
        assert_eq!(recipe.names().collect::<Vec<_>>(), ["containerd", "containerd-shim-runc-v2", "ctr"]);
        assert!(super::recipe("1.6").is_none());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs compiled from source, where nobody publishes binaries that can be checked.
//!
//! A recipe takes a source package as a distribution publishes it and a toolchain unpacked from packages, and puts
//! programs into the store. Nothing of the host takes part: no installed compiler, no `make`, no shell, no environment
//! variable, no path (`-trimpath`), no clock. So the same inputs give the same bytes anywhere, and the step cache may
//! answer in place of the compiler. Owns the step and its key, and writing trees where a compiler can read them; what
//! is particular to a program is in its recipe, [`kubernetes`] or [`containerd`]. Knows nothing of images, and not where inputs come from.

pub mod containerd;
pub mod golang;
pub mod kubernetes;
pub mod patch;
mod steps;
mod workspace;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use profiles::node::Architecture;
use serde::{Deserialize, Serialize};

use crate::store::{Digest, Store, step_key};
use crate::tree::{Content, FileTree};

/// Where Debian's library packages put Go source.
const LIBRARIES: &str = "usr/share/gocode/src";

/// How something is compiled.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub enum Recipe {
    /// Kubernetes, with two programs of ours.
    Kubernetes(&'static kubernetes::Recipe),
    /// containerd.
    Containerd(&'static containerd::Recipe),
}

/// The recipe called `name` for a release (`kubernetes-1.20`, `1.20.2`), if there is one.
pub fn recipe(name: &str, version: &str) -> Option<Recipe> {
    let release = |wanted: &str, found: &str| wanted == found.rsplit_once('.').map_or(found, |(minor, _)| minor);
    match name.split_once('-')? {
        ("kubernetes", of) => kubernetes::recipe(version).filter(|r| release(of, r.version)).map(Recipe::Kubernetes),
        ("containerd", of) => containerd::recipe(version).filter(|r| release(of, r.version)).map(Recipe::Containerd),
        _ => None,
    }
}

impl Recipe {
    /// The packages to unpack for this recipe: see [`Inputs::packages`].
    pub fn packages(self, target: Architecture) -> Vec<&'static str> {
        match self {
            Self::Kubernetes(recipe) => recipe.packages(target),
            Self::Containerd(recipe) => recipe.packages(),
        }
    }

    /// Names of the programs that [`build`] makes.
    pub fn names(self) -> Vec<&'static str> {
        match self {
            Self::Kubernetes(recipe) => recipe.names().collect(),
            Self::Containerd(recipe) => recipe.names().collect(),
        }
    }

    /// Whether a program is one of ours, and not of the source package.
    pub fn is_ours(self, program: &str) -> bool {
        match self {
            Self::Kubernetes(recipe) => recipe.is_ours(program),
            Self::Containerd(_) => false,
        }
    }

    /// What is compiled, and its release.
    pub fn title(self) -> String {
        match self {
            Self::Kubernetes(recipe) => format!("Kubernetes {}", recipe.version),
            Self::Containerd(recipe) => format!("containerd {}", recipe.version),
        }
    }

    fn step_version(self) -> u32 {
        match self {
            Self::Kubernetes(recipe) => recipe.step_version,
            Self::Containerd(recipe) => recipe.step_version,
        }
    }
}

/// Everything a recipe is given, by digest: all that may influence what it makes, besides the recipe itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inputs {
    /// The upstream archive of the source package (`.orig.tar.*`).
    pub upstream: Digest,
    /// The distribution's part of it (`.debian.tar.*`), whose patches are applied.
    pub packaging: Digest,
    /// The packages that [`Recipe::packages`] names, for the architecture of this machine.
    pub packages: Vec<Digest>,
}

/// What the [`Inputs`] contain.
#[derive(Debug)]
pub struct Trees {
    /// The upstream archive. One top directory around everything is ignored.
    pub upstream: FileTree,
    /// The distribution's archive, with `debian/` at its top.
    pub packaging: FileTree,
    /// All packages unpacked over each other.
    pub packages: FileTree,
}

/// One compiled program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The store object.
    pub object: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl Program {
    /// The program as content of a file tree.
    pub fn content(&self) -> Content {
        Content::Slice { object: self.object, offset: 0, len: self.size }
    }
}

/// Compiled programs by name.
pub type Programs = BTreeMap<String, Program>;

/// The key of the step that makes the programs of `recipe`.
pub(crate) fn key(recipe: Recipe, inputs: &Inputs, target: Architecture) -> Result<Digest> {
    step_key("source", recipe.step_version(), &(recipe, inputs, target))
}

/// Makes the programs of `recipe` for `target`, or finds them in the store if the same inputs were compiled before.
///
/// `unpack` is called only if there is something to compile. `jobs` limits how many processor cores the compiler uses;
/// it does not influence the result.
///
/// # Errors
/// If the inputs are not what the recipe is for, do not compile, or the store or scratch space cannot be written.
pub fn build(
    store: &Store,
    recipe: Recipe,
    inputs: &Inputs,
    target: Architecture,
    jobs: NonZeroUsize,
    unpack: impl FnOnce() -> Result<Trees>,
) -> Result<Programs> {
    let key = key(recipe, inputs, target)?;
    if let Some(programs) = store.step::<Programs>(&key)
        && programs.values().all(|program| store.has(&program.object))
    {
        return Ok(programs);
    }
    let trees = unpack().context("unpacking the inputs of a source build")?;
    let programs = match recipe {
        Recipe::Kubernetes(recipe) => recipe.compile(store, &trees, target, jobs),
        Recipe::Containerd(recipe) => recipe.compile(store, &trees, target, jobs),
    };
    let programs = programs.with_context(|| format!("compiling {} from source", recipe.title()))?;
    store.record_step(&key, &programs)?;
    Ok(programs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn inputs() -> Inputs {
        Inputs { upstream: Digest::of(b"u"), packaging: Digest::of(b"d"), packages: vec![Digest::of(b"go")] }
    }

    const JOBS: NonZeroUsize = NonZeroUsize::MIN;

    #[test]
    fn a_known_step_is_answered_from_the_store_without_unpacking() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let recipe = recipe("kubernetes-1.20", "1.20.2").unwrap();
        let object = store.put_bytes(b"\x7fELF").unwrap();
        let programs = Programs::from([("kubeadm".to_owned(), Program { object, size: 4 })]);
        let key = key(recipe, &inputs(), Architecture::Amd64).unwrap();
        store.record_step(&key, &programs).unwrap();

        let refuse = || anyhow::bail!("unpacked");
        assert_eq!(build(&store, recipe, &inputs(), Architecture::Amd64, JOBS, refuse).unwrap(), programs);
        assert_eq!(programs["kubeadm"].content().read(&store).unwrap(), b"\x7fELF");

        // Another target, another input or a lost object is another matter.
        assert!(build(&store, recipe, &inputs(), Architecture::Loong64, JOBS, refuse).is_err());
        let other = Inputs { packages: vec![Digest::of(b"gcc")], ..inputs() };
        assert!(build(&store, recipe, &other, Architecture::Amd64, JOBS, refuse).is_err());
        std::fs::remove_file(store.path(&object)).unwrap();
        assert!(build(&store, recipe, &inputs(), Architecture::Amd64, JOBS, refuse).is_err());
    }

    #[test]
    fn recipes_are_found_by_name_and_release() {
        let title = |name, version| recipe(name, version).map(Recipe::title);
        assert_eq!(title("kubernetes-1.20", "1.20.2").unwrap(), "Kubernetes 1.20.2");
        assert_eq!(title("containerd-1.6", "1.6.20").unwrap(), "containerd 1.6.20");
        for (name, version) in
            [("kubernetes-1.2", "1.20.2"), ("containerd-1.6", "1.20.2"), ("runc-1.1", "1.1.5"), ("", "")]
        {
            assert_eq!(title(name, version), None, "{name} {version}");
        }
    }

    #[test]
    fn the_key_of_a_recipe_is_that_of_its_content() {
        // Another key would compile everything again for nothing.
        let recipe = kubernetes::recipe("1.20.2").unwrap();
        let wrapped = serde_json::to_string(&Recipe::Kubernetes(recipe)).unwrap();
        assert_eq!(wrapped, serde_json::to_string(recipe).unwrap());
    }

    #[test]
    fn a_tree_that_is_not_the_source_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let empty = || Ok(Trees { upstream: FileTree::new(), packaging: FileTree::new(), packages: FileTree::new() });
        for (name, version, file) in
            [("kubernetes-1.20", "1.20.2", "hack/lib/version.sh"), ("containerd-1.6", "1.6.20", "version/version.go")]
        {
            let recipe = recipe(name, version).unwrap();
            let error = build(&store, recipe, &inputs(), Architecture::Amd64, JOBS, empty).unwrap_err();
            assert!(format!("{error:#}").contains(file), "{error:#}");
        }
        assert_eq!(std::fs::read_dir(dir.path().join("work")).unwrap().count(), 0, "scratch left behind");
    }
}

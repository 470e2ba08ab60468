// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs compiled from source, where nobody publishes binaries that can be checked.
//!
//! A recipe takes a source package as a distribution publishes it and a toolchain unpacked from packages, and puts
//! programs into the store. Nothing of the host takes part: no installed compiler, no `make`, no shell, no environment
//! variable, no path (`-trimpath`), no clock. So the same inputs give the same bytes anywhere, and the step cache may
//! answer in place of the compiler. Owns the step and its key, and writing trees where a compiler can read them; what
//! is particular to a program is in its recipe, [`kubernetes`]. Knows nothing of images, and not where inputs come from.

pub mod golang;
pub mod kubernetes;
pub mod patch;
mod workspace;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use profiles::node::Architecture;
use serde::{Deserialize, Serialize};

use crate::store::{Digest, Store, step_key};
use crate::tree::{Content, FileTree};

/// Everything a recipe is given, by digest: all that may influence what it makes, besides the recipe itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inputs {
    /// The upstream archive of the source package (`.orig.tar.*`).
    pub upstream: Digest,
    /// The distribution's part of it (`.debian.tar.*`), whose patches are applied.
    pub packaging: Digest,
    /// The packages that [`kubernetes::Recipe::packages`] names, for the architecture of this machine.
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

/// Makes the programs of `recipe` for `target`, or finds them in the store if the same inputs were compiled before.
///
/// `unpack` is called only if there is something to compile. `jobs` limits how many processor cores the compiler uses;
/// it does not influence the result.
///
/// # Errors
/// If the inputs are not what the recipe is for, do not compile, or the store or scratch space cannot be written.
pub fn build(
    store: &Store,
    recipe: &kubernetes::Recipe,
    inputs: &Inputs,
    target: Architecture,
    jobs: NonZeroUsize,
    unpack: impl FnOnce() -> Result<Trees>,
) -> Result<Programs> {
    let key = step_key("source", recipe.step_version, &(recipe, inputs, target))?;
    if let Some(programs) = store.step::<Programs>(&key)
        && programs.values().all(|program| store.has(&program.object))
    {
        return Ok(programs);
    }
    let trees = unpack().context("unpacking the inputs of a source build")?;
    let programs = recipe
        .compile(store, &trees, target, jobs)
        .with_context(|| format!("compiling Kubernetes {} from source", recipe.version))?;
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
        let recipe = kubernetes::recipe("1.20.2").unwrap();
        let object = store.put_bytes(b"\x7fELF").unwrap();
        let programs = Programs::from([("kubeadm".to_owned(), Program { object, size: 4 })]);
        let key = step_key("source", recipe.step_version, &(recipe, &inputs(), Architecture::Amd64)).unwrap();
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
    fn a_tree_that_is_not_kubernetes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let recipe = kubernetes::recipe("1.20.2").unwrap();
        let empty = || Ok(Trees { upstream: FileTree::new(), packaging: FileTree::new(), packages: FileTree::new() });
        let error = build(&store, recipe, &inputs(), Architecture::Amd64, JOBS, empty).unwrap_err();
        assert!(format!("{error:#}").contains("hack/lib/version.sh"), "{error:#}");
        assert_eq!(std::fs::read_dir(dir.path().join("work")).unwrap().count(), 0, "scratch left behind");
    }
}

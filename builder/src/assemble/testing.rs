// SPDX-License-Identifier: MIT OR Apache-2.0

//! A bench of `lab-loong64` for unit tests: with a store that is empty, so that whatever is asked for is missed by name.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use profiles::Cluster;

use super::vendor::Vendor;
use super::{Bench, Sources, programs};
use crate::inputs::source::{self, Inputs, Program, Programs};
use crate::store::{Digest, Store};

/// What a bench borrows.
pub(super) struct Lab {
    pub store: Store,
    pub cluster: Cluster,
    pub sources: Sources,
    _folder: tempfile::TempDir,
}

impl Lab {
    /// `profiles/lab-loong64`.
    pub(super) fn loong64() -> Self {
        Self::with(str::to_owned)
    }

    /// The same with a changed cluster file.
    pub(super) fn with(change: impl FnOnce(&str) -> String) -> Self {
        Self::of(&change(include_str!("../../../profiles/lab-loong64/cluster.toml")))
    }

    /// Of any cluster file.
    pub(super) fn of(text: &str) -> Self {
        let cluster = Cluster::parse("cluster.toml", text).unwrap_or_else(|report| panic!("{report}"));
        let folder = tempfile::tempdir().unwrap();
        let inputs = |name: &str| Inputs {
            upstream: Self::upstream(name),
            packaging: Digest::of(format!("{name} packaging").as_bytes()),
            packages: vec![],
        };
        let sources = Sources {
            epoch: 1_700_000_000,
            os: vec![],
            payload: vec![],
            images: vec![vec![]; cluster.image.len()],
            programs: cluster.sources().map(|source| inputs(&source.name)).collect(),
            files: vec![],
            addons: BTreeMap::new(),
            vendor: Vendor::default(),
        };
        Self { store: Store::open(folder.path()).unwrap(), cluster, sources, _folder: folder }
    }

    /// The upstream archive of the `source` input called `name`; the store does not have it.
    pub(super) fn upstream(name: &str) -> Digest {
        Digest::of(format!("{name} upstream").as_bytes())
    }

    /// As if all sources were compiled, to programs that are none.
    pub(super) fn compiled(&self) {
        for (declared, inputs) in self.cluster.sources().zip(&self.sources.programs) {
            let recipe = programs::recipe(declared).unwrap();
            let program = |name: &'static str| {
                let object = self.store.put_bytes(name.as_bytes()).unwrap();
                (name.to_owned(), Program { object, size: name.len() as u64 })
            };
            let programs: Programs = recipe.names().into_iter().map(program).collect();
            let key = source::key(recipe, inputs, self.cluster.os.architecture).unwrap();
            self.store.record_step(&key, &programs).unwrap();
        }
    }

    pub(super) fn bench(&self) -> Bench<'_> {
        Bench { store: &self.store, cluster: &self.cluster, sources: self.sources.clone(), jobs: NonZeroUsize::MIN }
    }
}

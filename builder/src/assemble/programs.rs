// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs that the `source` inputs of a cluster file make: for the root, the payload and images. Only what is wanted is
//! compiled.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use profiles::Cluster;
use profiles::schema::SourceInput;

use super::Bench;
use crate::error::Failure;
use crate::inputs::deb::archive;
use crate::inputs::source::{self, Inputs, Programs, Recipe, Trees};
use crate::tree::{Entry, Kind, layers};

/// A program that the cluster file names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Its name.
    pub name: &'a str,
    /// The key of the cluster file that names it: for messages.
    pub by: &'static str,
}

impl<'a> Wanted<'a> {
    /// All that one key names.
    pub(super) fn all(names: &'a [String], by: &'static str) -> Vec<Self> {
        names.iter().map(|name| Self { name, by }).collect()
    }
}

/// The programs of those `source` inputs that make something of `wanted`, compiled or found in the store.
///
/// # Errors
/// If two inputs make the same program, none makes a wanted one, or one does not compile.
pub(super) fn programs(bench: &Bench<'_>, wanted: &[Wanted<'_>]) -> Result<Programs> {
    let makers = makers(bench.cluster)?;
    let missing: BTreeSet<String> = wanted
        .iter()
        .filter(|wanted| !makers.contains_key(wanted.name))
        .map(|wanted| format!("{} names `{}`, which no `source` input makes", wanted.by, wanted.name))
        .collect();
    if !missing.is_empty() {
        let known: Vec<&str> = makers.keys().copied().collect();
        let message = missing.into_iter().collect::<Vec<_>>().join("\n  ");
        bail!(Failure::user(message).hint(format!("the source inputs make: {}", known.join(", "))));
    }
    let mut programs = Programs::new();
    for (declared, inputs) in bench.cluster.sources().zip(&bench.sources.programs) {
        if wanted.iter().any(|wanted| makers.get(wanted.name).is_some_and(|maker| *maker == declared.name)) {
            programs.extend(compile(bench, declared, inputs)?);
        }
    }
    Ok(programs)
}

/// Which `source` input makes each program.
fn makers(cluster: &Cluster) -> Result<BTreeMap<&'static str, &str>> {
    let mut makers = BTreeMap::new();
    for declared in cluster.sources() {
        for name in recipe(declared)?.names() {
            if let Some(other) = makers.insert(name, declared.name.as_str()) {
                bail!(
                    Failure::user(format!("two `source` inputs make `{name}`"))
                        .hint(format!("drop input `{}` or `{other}`", declared.name))
                );
            }
        }
    }
    Ok(makers)
}

fn compile(bench: &Bench<'_>, declared: &SourceInput, inputs: &Inputs) -> Result<Programs> {
    let recipe = recipe(declared)?;
    let unpack = || {
        tracing::info!("compiling {} from source; this takes some minutes, once", recipe.title());
        let tar = |object| layers::plain(&archive::unpack_tar_object(bench.store, object)?);
        Ok(Trees {
            upstream: tar(&inputs.upstream)?,
            packaging: tar(&inputs.packaging)?,
            packages: bench.merged(&bench.named(&inputs.packages)?)?,
        })
    };
    source::build(bench.store, recipe, inputs, bench.architecture(), bench.jobs, unpack)
}

/// The recipe that a `source` input names.
pub(super) fn recipe(declared: &SourceInput) -> Result<Recipe> {
    source::recipe(&declared.recipe, &declared.version).with_context(|| {
        Failure::user(format!("there is no recipe `{}` for version {}", declared.recipe, declared.version))
            .hint("recipes: kubernetes-1.20 for 1.20.2, containerd-1.6 for 1.6.20")
    })
}

/// The program called `name`, one of those that were wanted, as a file.
pub(super) fn program(programs: &Programs, name: &str) -> Result<Entry> {
    let program = programs.get(name).with_context(|| format!("no recipe made the program `{name}`"))?;
    Ok(Entry::new(Kind::File(program.content()), 0o755))
}

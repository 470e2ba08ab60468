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
pub(super) fn makers(cluster: &Cluster) -> Result<BTreeMap<&'static str, &str>> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::assemble::testing;
    use crate::error;

    fn wanted<'a>(names: &[&'a str]) -> Vec<Wanted<'a>> {
        names.iter().map(|name| Wanted { name, by: "`[os] binaries`" }).collect()
    }

    /// Nothing of the inputs is in the store: what is compiled fails with the object it misses.
    #[test]
    fn only_the_sources_of_what_is_wanted_are_compiled() {
        let lab = testing::Lab::loong64();
        let bench = lab.bench();
        assert!(programs(&bench, &[]).unwrap().is_empty());
        for (name, of) in [("ctr", "containerd"), ("kubectl", "kubernetes"), ("pause", "kubernetes")] {
            let error = format!("{:#}", programs(&bench, &wanted(&[name])).unwrap_err());
            for source in ["containerd", "kubernetes"] {
                let asked = error.contains(&testing::Lab::upstream(source).to_string());
                assert_eq!(asked, source == of, "{name}: {error}");
            }
        }
    }

    #[test]
    fn every_program_that_nobody_makes_is_named_at_once() {
        let lab = testing::Lab::loong64();
        let error = programs(&lab.bench(), &wanted(&["ctr", "etcd", "kubectl", "haproxy"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`[os] binaries` names `etcd`, which no `source` input makes\n  \
             `[os] binaries` names `haproxy`, which no `source` input makes"
        );
        assert!(error::hint(&error).unwrap().contains("containerd-shim-runc-v2, crictl, ctr, "));
    }

    #[test]
    fn two_makers_of_one_program_are_refused() {
        let lab = testing::Lab::with(|text| {
            text.replace("name = \"containerd\"\nsuite", "name = \"again\"\nsuite").replace(
                "package = \"containerd\"\nversion = \"1.6.20\"\nrecipe = \"containerd-1.6\"",
                "package = \"kubernetes\"\nversion = \"1.20.2\"\nrecipe = \"kubernetes-1.20\"",
            )
        });
        let error = programs(&lab.bench(), &[]).unwrap_err();
        assert!(error.to_string().starts_with("two `source` inputs make `"), "{error}");
        assert_eq!(error::hint(&error).as_deref(), Some("drop input `again` or `kubernetes`"));
    }
}

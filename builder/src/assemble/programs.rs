// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs that the `source` inputs of a cluster file make: for the root, the payload and images.

use anyhow::{Context, Result, bail};
use profiles::schema::SourceInput;

use super::Bench;
use crate::error::Failure;
use crate::inputs::deb::archive;
use crate::inputs::source::{self, Programs, Recipe, Trees};
use crate::tree::{Entry, Kind, layers};

/// Compiles what the `source` inputs declare, or finds it in the store.
pub(super) fn programs(bench: &Bench<'_>) -> Result<Programs> {
    let mut programs = Programs::new();
    for (declared, inputs) in bench.cluster.sources().zip(&bench.sources.programs) {
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
        let made = source::build(bench.store, recipe, inputs, bench.architecture(), bench.jobs, unpack)?;
        if let Some(name) = made.keys().find(|name| programs.contains_key(*name)) {
            bail!(
                Failure::user(format!("two `source` inputs make `{name}`"))
                    .hint(format!("drop input `{}` or the other one", declared.name))
            );
        }
        programs.extend(made);
    }
    Ok(programs)
}

/// The recipe that a `source` input names.
pub(super) fn recipe(declared: &SourceInput) -> Result<Recipe> {
    source::recipe(&declared.recipe, &declared.version).with_context(|| {
        Failure::user(format!("there is no recipe `{}` for version {}", declared.recipe, declared.version))
            .hint("recipes: kubernetes-1.20 for 1.20.2, containerd-1.6 for 1.6.20")
    })
}

/// The program called `name`, as a file.
pub(super) fn program(programs: &Programs, name: &str, wanted_by: &str) -> Result<Entry> {
    let Some(program) = programs.get(name) else {
        let known: Vec<&str> = programs.keys().map(String::as_str).collect();
        bail!(
            Failure::user(format!("{wanted_by} names `{name}`, which no `source` input makes"))
                .hint(format!("the source inputs make: {}", known.join(", ")))
        );
    };
    Ok(Entry::new(Kind::File(program.content()), 0o755))
}

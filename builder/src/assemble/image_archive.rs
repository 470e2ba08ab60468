// SPDX-License-Identifier: MIT OR Apache-2.0

//! Images that a user brings in archives or from registries, for the payload: under the names that will be asked for,
//! and proven to run.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde::Serialize;

use super::{Bench, registry_images, vendor};
use crate::error::Failure;
use crate::image::oci::{Layout, reference};
use crate::inputs::deb::archive::{self, ArchiveKind};
use crate::inputs::image_archive::{Image, Images};
use crate::proof::elf;
use crate::proof::image_report::{Offered, Origin};
use crate::store::{Digest, step_key};
use crate::tree::Content;

/// The images of one archive, under all their names.
fn read(bench: &Bench<'_>, from: &vendor::ImageArchive) -> Result<Vec<Image>> {
    let archive = archive::unpack_system(bench.store, &from.object)?;
    named(Images::of(bench.store, &archive, bench.architecture())?.read()?, &from.names)
}

/// Images under all their names: to those they have, `names` adds further ones.
pub(super) fn named(mut images: Vec<Image>, names: &BTreeMap<String, String>) -> Result<Vec<Image>> {
    let known: BTreeSet<String> = images.iter().flat_map(|image| image.names.clone()).collect();
    let mut problems = Vec::new();
    for (further, name) in names {
        let full = reference::completed(name);
        match images.iter_mut().find(|image| image.names.iter().any(|own| own == name || *own == full)) {
            Some(image) if image.names.contains(further) => {}
            Some(image) => image.names.push(further.clone()),
            None => problems.push(format!("there is no image {name} in it, which is to be called {further}")),
        }
    }
    for image in &mut images {
        // A bare tag, as skopeo writes it, is a name that only `names` can complete.
        image.names.retain(|name| reference::check(name).is_ok());
        if image.names.is_empty() {
            problems.push(format!("its image sha256:{} has no full name", image.manifest.digest));
        }
    }
    if !problems.is_empty() {
        let known = if known.is_empty() { "none".to_owned() } else { Vec::from_iter(known).join(", ") };
        bail!(
            Failure::user(problems.join("\n  "))
                .hint(format!("`names` of the input gives images further names; those in it are: {known}"))
        );
    }
    Ok(images)
}

/// All images, each with what it is brought in.
fn all(bench: &Bench<'_>) -> Result<Vec<(String, Image)>> {
    let mut all = Vec::new();
    for from in &bench.sources.vendor.images {
        let images = read(bench, from).with_context(|| format!("reading the image archive {}", from.path))?;
        all.extend(images.into_iter().map(|image| (from.path.clone(), image)));
    }
    for from in &bench.sources.vendor.registries {
        let place = format!("input `{}`", from.input);
        let images = registry_images::read(bench, from).with_context(|| format!("reading the images of {place}"))?;
        all.extend(images.into_iter().map(|image| (place.clone(), image)));
    }
    Ok(all)
}

/// The images that are brought, by each of their names, and where they come from.
///
/// # Errors
/// Archives that cannot be read.
pub(super) fn offered(bench: &Bench<'_>) -> Result<Vec<Offered>> {
    let mut offered = Vec::new();
    for from in &bench.sources.vendor.images {
        let input =
            bench.cluster.image_archives().find(|input| input.from.place() == from.path).map(|input| &input.name);
        let named = names(bench, from, || read(bench, from));
        let named = named.with_context(|| format!("reading the image archive {}", from.path))?;
        offered.extend(origins(bench, named, &from.path, input, &from.names));
    }
    for from in &bench.sources.vendor.registries {
        let named = names(bench, from, || registry_images::read(bench, from));
        let named = named.with_context(|| format!("reading the images of input `{}`", from.input))?;
        offered.extend(origins(bench, named, "a registry", Some(&from.input), &from.names));
    }
    Ok(offered)
}

/// Images by each of their names; `further` are names that the input adds, and what these images are called there.
fn origins(
    bench: &Bench<'_>,
    named: Vec<(Vec<String>, Digest)>,
    source: &str,
    input: Option<&String>,
    further: &BTreeMap<String, String>,
) -> Vec<Offered> {
    let mut offered = Vec::new();
    for (names, manifest) in named {
        offered.extend(names.into_iter().map(|name| {
            let called = further.get(&name).cloned();
            let from = Origin { source: source.to_owned(), input: input.cloned(), called, manifest: Some(manifest) };
            Offered { reference: name, architecture: bench.architecture(), from }
        }));
    }
    offered
}

/// The names of each image of an input, and the digest of its manifest. To verify every blob takes long, and what is in the store
/// does not change.
fn names(
    bench: &Bench<'_>,
    from: &impl Serialize,
    read: impl FnOnce() -> Result<Vec<Image>>,
) -> Result<Vec<(Vec<String>, Digest)>> {
    let key = step_key("image-names", 1, &(from, bench.architecture()))?;
    bench.store.cached(&key, "reading an image archive", || {
        Ok(read()?.into_iter().map(|image| (image.names, image.manifest.digest)).collect())
    })
}

/// Adds the images to the layout of the payload.
///
/// # Errors
/// Two different images of one name; a program that cannot run on the node, with archive, image and path: all of them.
pub(super) fn add(bench: &Bench<'_>, layout: &mut Layout) -> Result<()> {
    let all = all(bench)?;
    let mut taken: BTreeMap<&str, (&str, &Image)> = BTreeMap::new();
    let mut problems = Vec::new();
    for (path, image) in &all {
        for name in &image.names {
            match taken.insert(name, (path, image)) {
                Some((other, before)) if before.manifest.digest != image.manifest.digest => {
                    problems.push(format!("{name} is in {other} and, as another image, in {path}"));
                }
                _ => {}
            }
        }
    }
    if !problems.is_empty() {
        bail!(Failure::user(problems.join("\n  ")).hint("leave it out of one of them"));
    }
    let mut programs = Vec::new();
    for (path, image) in &all {
        let shown = &image.names[0];
        let of = || format!("reading image {shown} of {path}");
        for problem in unable(bench, image).with_context(of)? {
            programs.push(format!("{path}, image {shown}: {problem}"));
        }
        let names: Vec<String> = image
            .names
            .iter()
            .filter(|name| taken.get(name.as_str()).is_some_and(|(_, taken)| std::ptr::eq(*taken, image)))
            .cloned()
            .collect();
        let blobs = image.blobs.iter().map(|(digest, content)| (*digest, content.clone()));
        layout.add_existing(&names, bench.architecture(), image.manifest.clone(), blobs).with_context(of)?;
    }
    if programs.is_empty() {
        return Ok(());
    }
    let message =
        format!("programs of images that cannot run on {}:\n  {}", bench.target()?.name, programs.join("\n  "));
    Err(Failure::verification(message).hint("take the image for this machine, and of its new world").into())
}

/// The programs of an image that cannot run on the node: path, layer and why.
fn unable(bench: &Bench<'_>, image: &Image) -> Result<Vec<String>> {
    let target = bench.target()?;
    let mut problems = Vec::new();
    for (number, layer) in image.layers(bench.store)?.iter().enumerate() {
        let look = |entry: &archive::ArchiveEntry| -> Result<Option<String>> {
            let ArchiveKind::File { offset, len } = entry.kind else { return Ok(None) };
            let content = Content::Slice { object: layer.tar, offset, len };
            let problem = elf::problem(bench.store, &entry.path, &content, &target);
            let problem = problem.with_context(|| format!("reading /{}", entry.path))?;
            Ok(problem.map(|problem| format!("/{} (layer {}): {problem}", entry.path, number + 1)))
        };
        let found = layer.entries.par_iter().map(look).collect::<Result<Vec<_>>>()?;
        problems.extend(found.into_iter().flatten());
    }
    Ok(problems)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which images the nodes of a cluster will ask for, which the payload has, and the proof that the one is in the other.

use anyhow::{Context, Result};
use profiles::Cluster;
use profiles::schema::Input;

use super::{Bench, MANIFESTS, addons, image_archive};
use crate::error::Failure;
use crate::manifest;
use crate::proof::image_report::{Offered, Report};
use crate::proof::images::{Wanted, always_pulled, doubts, problems, wanted_by_kubeadm, wanted_by_manifest};

/// The part of a cluster file that says of images: what they are asked for by, and what they are brought in. With it,
/// no package is fetched and no program compiled.
pub fn part(cluster: &Cluster) -> Cluster {
    let mut part = cluster.clone();
    let of_addons: Vec<String> = cluster
        .addon
        .iter()
        .flat_map(|addon| &addon.manifests)
        .filter_map(|path| Some(path.strip_prefix("input:")?.to_owned()))
        .collect();
    part.input.retain(|input| match input {
        Input::File(file) => file.to.starts_with(MANIFESTS) || of_addons.contains(&file.name),
        Input::Deb(_)
        | Input::Source(_)
        | Input::Tar(_)
        | Input::Rootfs(_)
        | Input::Rpm(_)
        | Input::RpmRepository(_) => false,
        Input::ImageArchive(_) | Input::Oci(_) => true,
    });
    for packages in [&mut part.os.packages, &mut part.payload.packages] {
        packages.clear();
    }
    for image in &mut part.image {
        image.packages.clear();
    }
    part
}

/// All images that are asked for, and all that the payload has.
///
/// # Errors
/// Manifests and archives that cannot be read; add-ons that cannot be changed as the cluster file says.
pub fn report(bench: &Bench<'_>) -> Result<Report> {
    Ok(Report::of(&wanted(bench, &addons::of(bench)?)?, &offered(bench)?, bench.architecture()))
}

/// Fails unless every image that a node will ask for is there, and for its architecture.
pub(super) fn prove(bench: &Bench<'_>, addons: &addons::Prepared) -> Result<()> {
    let found = problems(&wanted(bench, addons)?, &offered(bench)?, bench.architecture());
    if found.is_empty() {
        return Ok(());
    }
    Err(Failure::verification(format!("the payload would not be complete:\n  {}", found.join("\n  ")))
        .hint("a node in a room without internet cannot fetch what its image lacks; `imgbuild images` lists all images")
        .into())
}

/// What the user should know of images and manifests before they are in a room.
///
/// # Errors
/// As [`report`].
pub fn warnings(bench: &Bench<'_>) -> Result<Vec<String>> {
    let addons = addons::of(bench)?;
    let mut warnings = addons.warnings.clone();
    for (name, text) in manifests(bench)? {
        warnings.extend(always_pulled(&name, &text)?);
    }
    warnings.extend(doubts(&wanted(bench, &addons)?, &offered(bench)?, bench.architecture()));
    Ok(warnings)
}

fn wanted(bench: &Bench<'_>, addons: &addons::Prepared) -> Result<Vec<Wanted>> {
    let mut wanted = wanted_by_kubeadm(&bench.cluster.kubernetes);
    for (name, text) in manifests(bench)? {
        wanted.extend(wanted_by_manifest(&name, &text)?);
    }
    wanted.extend(addons.wanted.iter().cloned());
    Ok(wanted)
}

/// Manifests that are applied as they are, or as Calico's is: what imgbuild sets in that are no images.
fn manifests(bench: &Bench<'_>) -> Result<Vec<(String, String)>> {
    let mut manifests = Vec::new();
    for (to, _, content) in &bench.sources.files {
        let Some(name) = to.strip_prefix(MANIFESTS) else { continue };
        let content = manifest::read(bench.store.open_object(content)?)?;
        let text = String::from_utf8(content)
            .map_err(|error| Failure::user(format!("the manifest {name} is no text: {error}")));
        manifests.push((name.to_owned(), text?));
    }
    Ok(manifests)
}

/// The images of the payload, by each of their names.
pub(super) fn offered(bench: &Bench<'_>) -> Result<Vec<Offered>> {
    let assembled = bench.cluster.image.iter().map(|image| Offered::assembled(&image.reference, bench.architecture()));
    let brought = image_archive::offered(bench).context("reading the images that are brought")?;
    Ok(assembled.chain(brought).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::assemble::testing::Lab;
    use crate::error::{ErrorKind, kind};

    /// A build fails, whatever else is or is not in the store, and names that image and no other.
    #[test]
    fn a_build_without_any_one_image_fails_naming_it() {
        for text in [
            include_str!("../../../profiles/lab/cluster.toml"),
            include_str!("../../../profiles/lab-ha/cluster.toml"),
            include_str!("../../../profiles/lab-loong64/cluster.toml"),
        ] {
            let mut lab = Lab::of(text);
            let all = lab.cluster.image.clone();
            let proof = |lab: &Lab| prove(&lab.bench(), &addons::Prepared::default());
            proof(&lab).unwrap();
            let asked: Vec<String> =
                wanted_by_kubeadm(&lab.cluster.kubernetes).into_iter().map(|image| image.reference).collect();
            for missing in &asked {
                lab.cluster.image = all.iter().filter(|image| image.reference != *missing).cloned().collect();
                let error = proof(&lab).unwrap_err();
                assert_eq!(kind(&error), ErrorKind::Verification);
                let named: Vec<&String> = asked
                    .iter()
                    .filter(|one| error.to_string().contains(&format!("image `{one}` is not in the payload")))
                    .collect();
                assert_eq!(named, [missing], "{error}");
            }
        }
    }

    #[test]
    fn what_is_about_images_needs_no_mirror() {
        let lab = Lab::of(include_str!("../../../profiles/kylin-v11-ha/cluster.toml"));
        let part = part(&lab.cluster);
        let inputs: Vec<&str> = part.input.iter().map(Input::name).collect();
        assert_eq!(inputs, ["images", "calico"]);
    }
}

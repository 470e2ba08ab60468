// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild [build]`: the images of one node or of all, or one that installs them.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use crate::assemble::sbom::{self, Scope};
use crate::assemble::{self, Bench, NodeKind, bundle, calico, images, os, payload, vendor};
use crate::cli::{Options, Output};
use crate::commands::{ClusterFile, inputs, jobs, open_store, outputs, say, sign, warn};
use crate::error::Failure;
use crate::lock::Lock;
use crate::output::provenance::{self, Images, Manifest};
use crate::signing::Signer;
use crate::store::Digest;

pub(super) fn run(options: &Options) -> Result<()> {
    let mut file = ClusterFile::load(&options.cluster)?;
    let nodes = file.some_nodes(options)?;
    if outputs::only_seeds(options) {
        if options.sign.is_some() {
            return Err(Failure::user("--sign, and nothing but seeds is built: a seed carries no signature")
                .hint("leave out --sign, or name another output besides")
                .into());
        }
        return outputs::seeds(&file, &nodes, options);
    }
    let signer = sign::signer(&file, options)?;
    let signer = signer.as_ref();
    for node in file.cluster.node.iter_mut().filter(|node| nodes.contains(&node.name)) {
        node.disk_size = options.disk_size.or(node.disk_size);
    }
    let store = open_store(options)?;
    let (sources, lock) = inputs::ready(&file, options, &store)?;
    let mut bench = Bench { store: &store, cluster: &file.cluster, sources, jobs: jobs(options) };
    if bench.sources.epoch == 0 {
        bench.sources.epoch = vendor::epoch(&bench)?;
    }
    say(&calico::of(&bench)?);
    warn(&images::warnings(&bench)?);
    let pki = file.pki()?;
    let creating = |error| Failure::io(format!("creating {}", options.out.display()), error);
    fs::create_dir_all(&options.out).map_err(creating)?;
    let out = |name: String| options.out.join(name);
    let mut written: Vec<PathBuf> = Vec::new();
    let mut add = |paths: Vec<PathBuf>| written.extend(paths);
    for output in &options.output {
        match output {
            Output::Disk => add(each(&nodes, |name| {
                Ok(vec![assemble::disk(&bench, &pki, name, &out(format!("{name}.img")))?.path])
            })?),
            Output::Qcow2 => add(each(&nodes, |name| Ok(vec![outputs::qcow2(&bench, &pki, name, options)?]))?),
            Output::Seed => add(each(&nodes, |name| {
                let seed = outputs::seed(bench.cluster, bench.store, &pki, name, options)?;
                Ok(vec![seed.folder, seed.iso, seed.cpio])
            })?),
            Output::Iso => {
                let path = out(format!("{}.iso", file.cluster.cluster.name));
                add(timed(|| Ok(vec![assemble::iso(&bench, &pki, &nodes, signer, &path)?.path]))?);
            }
            Output::Pxe => {
                let path = out(format!("{}-pxe", file.cluster.cluster.name));
                add(timed(|| {
                    let pxe = assemble::pxe(&bench, &pki, &nodes, signer, &path)?;
                    for (name, memory) in &pxe.memory {
                        tracing::info!("{name} needs memory: {memory}");
                    }
                    Ok(vec![pxe.path])
                })?);
            }
            Output::Bundle => {
                let path = out(bundle::file_name(&bench));
                add(timed(|| Ok(vec![bundle::bundle(&bench, &pki, &nodes, signer, &path)?]))?);
            }
        }
    }
    provenance(&file, options, &bench, &lock, &written, signer)
}

/// Writes what goes beside the outputs: what is in them, what they were made from, and their checksums.
fn provenance(
    file: &ClusterFile,
    options: &Options,
    bench: &Bench<'_>,
    lock: &Lock,
    written: &[PathBuf],
    signer: Option<&Signer>,
) -> Result<()> {
    let cluster = bench.cluster;
    let asked = file.some_nodes(options)?;
    // In the cluster file's order, and each once, however they were asked for.
    let nodes = cluster.node.iter().filter(|node| asked.contains(&node.name));
    let with_os = options.output.iter().any(|output| !matches!(output, Output::Bundle | Output::Seed));
    let digest = |path: PathBuf| -> Result<Digest> {
        let reading = |e| Failure::io(format!("reading {}", path.display()), e);
        Ok(Digest::of(&fs::read(&path).map_err(reading)?))
    };
    let name = &cluster.cluster.name;
    let mut manifest =
        Manifest::new(name, bench.architecture(), digest(file.path.clone())?, digest(inputs::path(file))?);
    manifest.source_epoch = bench.sources.epoch;
    manifest.signing_key = cluster.cluster.signing_key.map(|key| key.to_string());
    for node in nodes {
        manifest.nodes.push(node.name.clone());
        let kind = NodeKind::of(&node.roles);
        if with_os && !manifest.images.contains_key(kind.name()) {
            let images =
                Images { root: os::build(bench, kind)?.root.object, payload: payload::build(bench, kind)?.object };
            manifest.images.insert(kind.name(), images);
        }
    }
    let bom = sbom::bom(bench, lock, Scope { nodes: &manifest.nodes, with_os })?;
    let list = provenance::write(&options.out, &bom, manifest, written, signer)?;
    let signed = signer.map_or_else(String::new, |signer| format!(", signed with {}", signer.public_key().id()));
    tracing::info!("{} is ready{signed}", list.display());
    Ok(())
}

/// One output for each node.
fn each(nodes: &[String], make: impl Fn(&str) -> Result<Vec<PathBuf>>) -> Result<Vec<PathBuf>> {
    let made = nodes.iter().map(|name| timed(|| make(name))).collect::<Result<Vec<_>>>()?;
    Ok(made.concat())
}

/// Makes one output, and says how long that took.
fn timed(make: impl FnOnce() -> Result<Vec<PathBuf>>) -> Result<Vec<PathBuf>> {
    let begun = Instant::now();
    let made = make()?;
    for path in made.iter().take(1) {
        tracing::info!("{} is ready ({:.1}s)", path.display(), begun.elapsed().as_secs_f32());
    }
    Ok(made)
}

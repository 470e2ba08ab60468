// SPDX-License-Identifier: MIT OR Apache-2.0

//! What installs nodes: media that hold the disks of several of them.

use std::path::Path;

use anyhow::{Context, Result};
use profiles::medium::machine_and_target;
use profiles::node::Role;
use profiles::schema::NodeSection;

use super::os::OsLayer;
use super::{Bench, NodeKind, disk_plan, os, version};
use crate::output::disk::DiskPlan;
use crate::output::iso::{self, Iso, IsoPlan};
use crate::output::medium::{MediumPlan, NodePlan};
use crate::output::pxe::{self, Pxe, PxePlan};
use crate::pki::Pki;
use crate::signing::Signer;

/// Writes an installation image for the nodes called `names` to `path`, signed if there is a `signer`.
///
/// # Errors
/// As [`super::disk`].
pub fn iso(bench: &Bench<'_>, pki: &Pki, names: &[String], signer: Option<&Signer>, path: &Path) -> Result<Iso> {
    let (medium, kind, os) = medium(bench, pki, names, signer)?;
    let plan = IsoPlan {
        boot_loader: os.boot_loader.content(),
        kernel: os.kernel.content(),
        initramfs: os::installer(bench, kind)?.content(),
        version: version(bench.cluster, &os),
        kernel_args: bench.cluster.os.kernel_args.clone(),
        time: bench.sources.epoch,
        medium,
    };
    iso::write(&plan, bench.store, path)
}

/// Writes a folder from which the nodes called `names` boot over the network to `path`, signed if there is a `signer`.
///
/// # Errors
/// As [`super::disk`].
pub fn pxe(bench: &Bench<'_>, pki: &Pki, names: &[String], signer: Option<&Signer>, path: &Path) -> Result<Pxe> {
    let (medium, kind, os) = medium(bench, pki, names, signer)?;
    let plan = PxePlan {
        kernel: os.kernel.content(),
        initramfs: os::installer(bench, kind)?.content(),
        kernel_args: bench.cluster.os.kernel_args.clone(),
        time: bench.sources.epoch,
        medium,
    };
    pxe::write(&plan, bench.store, path)
}

/// A medium with the nodes called `names`, and what boots them all.
fn medium(
    bench: &Bench<'_>,
    pki: &Pki,
    names: &[String],
    signer: Option<&Signer>,
) -> Result<(MediumPlan, NodeKind, OsLayer)> {
    let cluster = bench.cluster;
    let mut nodes = Vec::new();
    let mut first = None;
    // In the cluster file's order, and each once, however they were asked for.
    for node in cluster.node.iter().filter(|node| names.contains(&node.name)) {
        let (disk, os) = disk_plan(bench, pki, &node.name)?;
        let kind = NodeKind::of(&node.roles);
        nodes.push(medium_node(node, kind, disk));
        first.get_or_insert((kind, os));
    }
    // Whatever their roles are, all nodes have the same kernel and the same boot loader.
    let (kind, os) = first.with_context(|| format!("none of {names:?} is a node of the cluster"))?;
    let medium = MediumPlan {
        cluster: cluster.cluster.name.clone(),
        cluster_id: pki.cluster_id(),
        architecture: bench.architecture(),
        nodes,
        signer: signer.cloned(),
    };
    Ok((medium, kind, os))
}

/// How the installer knows a node's machine, and the disk that it installs to.
fn medium_node(node: &NodeSection, kind: NodeKind, disk: DiskPlan) -> NodePlan {
    let (machine, target) = machine_and_target(node);
    let etcd_member = node.roles.contains(&Role::Etcd);
    NodePlan { disk, kind: kind.name(), etcd_member, machine, target }
}

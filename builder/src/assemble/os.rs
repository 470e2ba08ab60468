// SPDX-License-Identifier: MIT OR Apache-2.0

//! The OS layer: the read-only root, and the kernel, initramfs and boot loader that bring it up.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use profiles::node::Architecture;
use profiles::schema::Distribution;
use serde::{Deserialize, Serialize};

use super::programs::{Wanted, programs};
use super::{Bench, NodeKind, PAYLOAD_PREFIX, firstboot, vendor};
use crate::image::cpio;
use crate::image::squashfs::{self, Packed};
use crate::proof::efi;
use crate::store::{Digest, step_key};
use crate::tree::{Content, FileTree, initramfs, os, overlay};

/// Raised when the code below makes another OS layer out of the same inputs.
const STEP_VERSION: u32 = 1;
/// The same for the installer's initramfs.
const INSTALLER_VERSION: u32 = 1;

/// zstd level of the initramfs: it is small, and written once for all nodes.
const INITRAMFS_LEVEL: i32 = 10;

/// A file in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    object: Digest,
    size: u64,
}

impl Part {
    /// The part as content of a file tree.
    pub fn content(&self) -> Content {
        Content::Slice { object: self.object, offset: 0, len: self.size }
    }
}

/// What every node of one kind boots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OsLayer {
    /// The root, as a squashfs.
    pub root: Packed,
    /// Release of the kernel, `6.1.0-49-amd64`.
    pub kernel_version: String,
    /// The kernel.
    pub kernel: Part,
    /// The initramfs.
    pub initramfs: Part,
    /// systemd-boot.
    pub boot_loader: Part,
}

/// The OS layer of nodes of one kind, made or found in the store. Where nothing of it is compiled, it is the same for all.
///
/// # Errors
/// Packages that do not make a bootable root, a library that is missing, a file of the wrong architecture.
pub fn build(bench: &Bench<'_>, kind: NodeKind) -> Result<OsLayer> {
    let firstboot = firstboot(bench.architecture())?;
    let key = key(bench, kind, firstboot, "os", STEP_VERSION)?;
    bench.store.cached(&key, "OS layer", || assemble(bench, kind, firstboot).context("assembling the OS layer"))
}

/// Everything that a step which assembles the root depends on.
fn key(bench: &Bench<'_>, kind: NodeKind, firstboot: &[u8], step: &str, version: u32) -> Result<Digest> {
    let os = &bench.cluster.os;
    step_key(
        step,
        version,
        &(
            (&bench.sources.os, &bench.sources.files, bench.sources.epoch, binaries(bench, kind)?),
            bench.sources.vendor.of_root(),
            format!("{:?} {:?} {:?}", os.distribution, os.architecture, os.alternatives),
            (Digest::of(firstboot), overlays_digest(bench, kind)?, bench.squashfs().block_size, bench.squashfs().level),
        ),
    )
}

fn assemble(bench: &Bench<'_>, kind: NodeKind, firstboot: &'static [u8]) -> Result<OsLayer> {
    match bench.cluster.rootfs().next() {
        Some(rootfs) => tracing::info!("assembling the OS layer from {}", rootfs.from.place()),
        None => tracing::info!("assembling the OS layer from {} packages", bench.sources.os.len()),
    }
    let root = root(bench, kind)?;
    bench.prove_elf(&root.tree)?;
    vendor::prove_commands(bench, &root.tree)?;
    let (kernel_version, kernel) = initramfs::kernel_image(&root.tree)?;
    efi::check(bench.store, &kernel, bench.architecture(), &format!("the kernel {kernel_version}"))?;
    let init = Content::Bytes(firstboot.into());
    let initramfs = pack_initramfs(bench, &root, init, &initramfs::Options::default())?;
    let boot_loader = boot_loader(bench, &root.tree)?;
    let packed = squashfs::pack(&root.tree, bench.store, &bench.squashfs()).context("packing the root")?;
    Ok(OsLayer { root: packed, kernel_version, kernel: part(bench, &kernel)?, initramfs, boot_loader })
}

fn pack_initramfs(bench: &Bench<'_>, root: &os::Os, init: Content, options: &initramfs::Options) -> Result<Part> {
    let files = initramfs::initramfs(bench.store, &root.tree, &root.modules, init, options)?;
    let mut writer = bench.store.writer()?;
    cpio::write_zstd(&files, bench.store, bench.sources.epoch, INITRAMFS_LEVEL, bench.jobs.get(), &mut writer)
        .context("packing the initramfs")?;
    let (object, size) = writer.commit(None)?;
    Ok(Part { object, size })
}

/// The initramfs of an installation medium, made or found in the store. It goes with the kernel of [`build`].
///
/// # Errors
/// As [`build`]; a kernel that cannot read a medium.
pub fn installer(bench: &Bench<'_>, kind: NodeKind) -> Result<Part> {
    let firstboot = firstboot(bench.architecture())?;
    let mut key = key(bench, kind, firstboot, "installer", INSTALLER_VERSION)?;
    let signing_key = bench.cluster.cluster.signing_key.map(|key| key.to_file());
    if signing_key.is_some() {
        key = step_key("installer-with-key", INSTALLER_VERSION, &(key, &signing_key))?;
    }
    bench.store.cached(&key, "the installer's initramfs", || {
        tracing::info!("assembling the installer's initramfs");
        let options = initramfs::Options { installer: true, signing_key, ..initramfs::Options::default() };
        pack_initramfs(bench, &root(bench, kind)?, Content::Bytes(firstboot.into()), &options)
            .context("assembling the installer's initramfs")
    })
}

/// Names of the compiled programs that nodes of a kind have in their root. All recipes there are make parts of Kubernetes
/// and of its container runtime: a node that is only an etcd member has none of them.
fn binary_names<'a>(bench: &Bench<'a>, kind: NodeKind) -> &'a [String] {
    match kind {
        NodeKind::Pods => &bench.cluster.os.binaries,
        NodeKind::Etcd => &[],
    }
}

/// Compiled programs of the root, by name.
fn binaries<'a>(bench: &Bench<'a>, kind: NodeKind) -> Result<BTreeMap<&'a str, Digest>> {
    let names = binary_names(bench, kind);
    let programs = programs(bench, &Wanted::all(names, "`[os] binaries`"))?;
    Ok(names.iter().filter_map(|name| Some((name.as_str(), programs.get(name)?.object))).collect())
}

/// The overlays of a distribution, in the order they are put on.
fn overlays(bench: &Bench<'_>, kind: NodeKind) -> Result<Vec<&'static str>> {
    let mut overlays = match bench.cluster.os.distribution {
        Distribution::Debian => vec!["common", "debian"],
        Distribution::Kylin => vec!["common", "kylin"],
    };
    // A packaged one brings its unit; what is compiled or released is a program alone.
    if binary_names(bench, kind).iter().any(|name| name == "containerd") || vendor::brings_containerd(bench)? {
        overlays.push("containerd");
    }
    Ok(overlays)
}

pub(super) fn overlays_digest(bench: &Bench<'_>, kind: NodeKind) -> Result<Digest> {
    let trees = overlays(bench, kind)?.into_iter().map(overlay::overlay).collect::<Result<Vec<_>>>()?;
    Ok(Digest::of(format!("{trees:?}").as_bytes()))
}

/// The root as a file tree.
pub(super) fn root(bench: &Bench<'_>, kind: NodeKind) -> Result<os::Os> {
    let mut extra = FileTree::new();
    for (to, mode, content) in &bench.sources.files {
        if !to.starts_with(PAYLOAD_PREFIX) {
            extra.insert(to.trim_start_matches('/'), bench.file(content, *mode)?)?;
        }
    }
    for (path, entry) in vendor::tar_files(bench)? {
        if !path.starts_with(PAYLOAD_PREFIX.trim_start_matches('/')) {
            extra.insert(&path, entry)?;
        }
    }
    for (name, object) in binaries(bench, kind)? {
        extra.insert(&format!("usr/bin/{name}"), bench.file(&object, 0o755)?)?;
    }
    let options = os::Options {
        overlays: overlays(bench, kind)?.iter().map(ToString::to_string).collect(),
        extra,
        alternatives: bench.cluster.os.alternatives.clone(),
    };
    if bench.sources.vendor.rootfs.is_some() {
        return vendor::root(bench, options);
    }
    bench.with_packages(&bench.sources.os, |packages| os::assemble(bench.store, packages, &options))
}

fn boot_loader(bench: &Bench<'_>, tree: &FileTree) -> Result<Part> {
    let suffix = match bench.architecture() {
        Architecture::Amd64 => "x64",
        Architecture::Loong64 => "loongarch64",
    };
    let path = format!("usr/lib/systemd/boot/efi/systemd-boot{suffix}.efi");
    let content = tree.content(&path).with_context(|| {
        let failure = crate::error::Failure::user(format!("nothing has the boot loader /{path}"));
        match bench.cluster.rootfs().next() {
            Some(_) => failure.hint(format!(
                "the root filesystem has none: bring systemd-boot of any distribution as `[[input]]` with `kind = \"file\"` \
                 and `to = \"/{path}\"`; Debian's package systemd-boot-efi has it at that path"
            )),
            None => failure.hint("add \"systemd-boot-efi\" to `[os] packages`"),
        }
    })?;
    efi::check(bench.store, content, bench.architecture(), &format!("the boot loader /{path}"))?;
    part(bench, content)
}

fn part(bench: &Bench<'_>, content: &Content) -> Result<Part> {
    let (object, size) = bench.store.put_reader(content.reader(bench.store)?, None)?;
    Ok(Part { object, size })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::assemble::testing::Lab;

    #[test]
    fn a_containerd_that_no_package_brings_gets_a_unit() {
        let mut lab = Lab::of(include_str!("../../../profiles/upstream-ha/cluster.toml"));
        let own = |lab: &Lab, kind| overlays(&lab.bench(), kind).unwrap();
        assert_eq!(own(&lab, NodeKind::Pods), ["common", "debian"]);
        lab.sources.files.push(("/usr/bin/containerd".to_owned(), 0o755, Digest::of(b"released")));
        // What is released is in every root: there is one for all.
        for kind in [NodeKind::Pods, NodeKind::Etcd] {
            assert_eq!(own(&lab, kind), ["common", "debian", "containerd"]);
        }
        let compiled = Lab::loong64();
        assert_eq!(own(&compiled, NodeKind::Pods).last(), Some(&"containerd"));
        assert!(!own(&compiled, NodeKind::Etcd).contains(&"containerd"));
    }
}

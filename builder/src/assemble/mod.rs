// SPDX-License-Identifier: MIT OR Apache-2.0

//! From verified inputs to the parts of an image: the read-only root, the payload, one node's seed. Every part is a step
//! whose key is all that may influence it, so a build makes only what is new.

pub mod addons;
pub mod bundle;
pub mod calico;
mod image_archive;
pub mod images;
mod install;
pub mod node;
pub mod os;
pub mod payload;
mod programs;
pub mod registry_images;
pub mod sbom;
pub mod sources;
#[cfg(test)]
mod testing;
pub mod vendor;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Context, Result};
use profiles::Cluster;
use profiles::node::{Architecture, Role};
use serde::Serialize;

pub use self::install::{iso, pxe};
use self::os::OsLayer;
use crate::error::Failure;
use crate::image::squashfs;
use crate::inputs::deb::archive;
use crate::inputs::source::Inputs as SourceInputs;
use crate::inputs::source::golang::goarch;
use crate::output::disk::{self, Disk, DiskPlan, Sizes, disk_guid};
use crate::output::esp::{EspParts, esp_tree};
use crate::pki::Pki;
use crate::proof::elf::Target;
use crate::store::{Digest, Store};
use crate::tree::{Content, Entry, FileTree, Kind, layers};

/// Where the payload is mounted: files that a cluster file puts here are part of it.
const PAYLOAD_PREFIX: &str = "/opt/imgbuild/";
/// Where a node finds the manifests that are applied as they are.
const MANIFESTS: &str = "/opt/imgbuild/manifests/";

/// What the parts are made from: the cluster file, and its inputs, which are all in the store.
#[derive(Debug)]
pub struct Bench<'a> {
    /// Where inputs are and results go.
    pub store: &'a Store,
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Its inputs.
    pub sources: Sources,
    /// Threads and processor cores to use; never part of a result.
    pub jobs: NonZeroUsize,
}

/// The inputs of a cluster file, as store objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sources {
    /// Nothing in an image is newer than this (seconds since 1970): the date of the newest suite that was locked.
    pub epoch: u32,
    /// Packages of the root.
    pub os: Vec<Deb>,
    /// Packages of the payload.
    pub payload: Vec<Deb>,
    /// Packages of each image, in the cluster file's order.
    pub images: Vec<Vec<Deb>>,
    /// What programs are compiled from, in the cluster file's order.
    pub programs: Vec<SourceInputs>,
    /// Files from beside the cluster file: place on the node, mode, content.
    pub files: Vec<(String, u32, Digest)>,
    /// Manifests of add-ons, by their paths beside the cluster file.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub addons: BTreeMap<String, Digest>,
    /// A vendor's system, and archives, from beside the cluster file.
    pub vendor: vendor::Vendor,
}

/// A package in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deb {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// The .deb.
    pub object: Digest,
}

/// What the roles of a node make it carry. Nodes of one kind share their root and their payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// Master or worker: it has Kubernetes, a container runtime and container images.
    Pods,
    /// Only an etcd member: it has none of these.
    Etcd,
}

impl NodeKind {
    /// The kind of a node with these roles.
    pub fn of(roles: &BTreeSet<Role>) -> Self {
        if roles.contains(&Role::Master) || roles.contains(&Role::Worker) { Self::Pods } else { Self::Etcd }
    }

    /// Its name in names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Etcd => "etcd",
        }
    }
}

impl Bench<'_> {
    /// The architecture of everything in the images.
    pub fn architecture(&self) -> Architecture {
        self.cluster.os.architecture
    }

    fn target(&self) -> Result<Target> {
        Target::of(goarch(self.architecture()))
    }

    /// The files of `packages`, laid over each other.
    fn merged(&self, packages: &[Deb]) -> Result<FileTree> {
        self.with_packages(packages, layers::merge)
    }

    /// Unpacks `packages` and hands them to `merge`.
    fn with_packages<T>(&self, packages: &[Deb], merge: impl FnOnce(&[layers::Package<'_>]) -> Result<T>) -> Result<T> {
        let objects: Vec<Digest> = packages.iter().map(|package| package.object).collect();
        let archives = archive::unpack_all(self.store, &objects)?;
        let replaces = packages.iter().map(|package| self.replaces(package)).collect::<Result<Vec<_>>>()?;
        let unpacked: Vec<layers::Package<'_>> = packages
            .iter()
            .zip(&archives)
            .zip(&replaces)
            .map(|((package, archive), replaces)| layers::Package { name: &package.name, archive, replaces })
            .collect();
        merge(&unpacked)
    }

    /// Packages by what they say of themselves.
    fn named(&self, objects: &[Digest]) -> Result<Vec<Deb>> {
        let field = |object: &Digest, name: &str| {
            let value = archive::control_field(self.store, object, name)?;
            value.with_context(|| format!("package {object} does not say its {name}"))
        };
        let deb = |object: &Digest| {
            Ok(Deb { name: field(object, "Package")?, version: field(object, "Version")?, object: *object })
        };
        objects.iter().map(deb).collect()
    }

    /// What a file of the root, the payload or an image came from: for messages.
    fn origin(&self, content: &Content) -> Option<String> {
        let Content::Slice { object, .. } = content else { return None };
        if let Some((to, ..)) = self.sources.files.iter().find(|(.., file)| file == object) {
            let path = self.cluster.files().find(|file| file.to == *to).map_or("", |file| file.from.place());
            return Some(format!("the input file {path}"));
        }
        if let Some(origin) = self.vendor_origin(object) {
            return Some(origin);
        }
        // A package's files are slices of its decompressed archive.
        let packages = self.sources.os.iter().chain(&self.sources.payload).chain(self.sources.images.iter().flatten());
        let is_from = |package: &&Deb| archive::unpack(self.store, &package.object).is_ok_and(|own| own.tar == *object);
        packages.into_iter().find(is_from).map(|package| format!("package {} {}", package.name, package.version))
    }

    /// Names of the packages whose files `package` may overwrite.
    fn replaces(&self, package: &Deb) -> Result<Vec<String>> {
        let field = archive::control_field(self.store, &package.object, "Replaces")?.unwrap_or_default();
        let names = field.split(',').filter_map(|entry| entry.split_whitespace().next());
        Ok(names.map(|name| name.split(':').next().unwrap_or(name).to_owned()).collect())
    }

    fn file(&self, content: &Digest, mode: u32) -> Result<Entry> {
        let len = self.store.size(content).with_context(|| format!("store object {content} is gone"))?;
        let mode = u16::try_from(mode & 0o7777).context("a mode has four octal digits")?;
        Ok(Entry::new(Kind::File(Content::Slice { object: *content, offset: 0, len }), mode))
    }

    fn squashfs(&self) -> squashfs::Options {
        squashfs::Options { jobs: self.jobs.get(), ..squashfs::Options::new(self.sources.epoch) }
    }
}

/// The static firstboot for `architecture`, embedded into this binary.
///
/// # Errors
/// If this imgbuild was built without one for that architecture.
pub fn firstboot(architecture: Architecture) -> Result<&'static [u8]> {
    let embedded: &'static [u8] = match architecture {
        Architecture::Amd64 => include_bytes!(env!("IMGBUILD_FIRSTBOOT_AMD64_FILE")),
        Architecture::Loong64 => include_bytes!(env!("IMGBUILD_FIRSTBOOT_LOONG64_FILE")),
    };
    if embedded.is_empty() {
        let name = goarch(architecture);
        return Err(Failure::environment(format!("this imgbuild was built without the firstboot of {name} nodes"))
            .hint("run firstboot/build-static and build imgbuild again, or use a released imgbuild")
            .into());
    }
    Ok(embedded)
}

/// What the disk of the node called `name` is made of, and what else is booted there.
fn disk_plan(bench: &Bench<'_>, pki: &Pki, name: &str) -> Result<(DiskPlan, OsLayer)> {
    let cluster = bench.cluster;
    let seed = node::seed(cluster, name, pki)?;
    let kind = NodeKind::of(&cluster.node(name)?.roles);
    let os = os::build(bench, kind)?;
    let payload = payload::build(bench, kind)?;
    let cluster_id = pki.cluster_id();
    let esp = esp_tree(&EspParts {
        architecture: bench.architecture(),
        boot_loader: os.boot_loader.content(),
        kernel: os.kernel.content(),
        initramfs: os.initramfs.content(),
        disk: disk_guid(&cluster_id, name),
        title: format!("imgbuild {name}"),
        version: version(cluster, &os),
        kernel_args: cluster.os.kernel_args.clone(),
    })?;
    let sizes = Sizes {
        disk: cluster.node(name)?.disk_size.unwrap_or(cluster.disk.size),
        esp: cluster.disk.esp_size,
        root: cluster.disk.root_size,
        payload: cluster.disk.payload_size,
    };
    let plan = DiskPlan {
        cluster_id,
        node: name.to_owned(),
        architecture: bench.architecture(),
        sizes,
        esp,
        root: os.root.object,
        payload: payload.object,
        seed: node::seed_tree(&seed)?,
    };
    Ok((plan, os))
}

/// Version of an image, for boot menus.
fn version(cluster: &Cluster, os: &OsLayer) -> String {
    format!("{} {}", cluster.kubernetes.version, os.kernel_version)
}

/// Writes the disk image of the node called `name` to `path`.
///
/// # Errors
/// As its parts; contents that do not fit; failing I/O. Nothing is left at `path` then.
pub fn disk(bench: &Bench<'_>, pki: &Pki, name: &str, path: &Path) -> Result<Disk> {
    disk::write(&disk_plan(bench, pki, name)?.0, bench.store, path)
}

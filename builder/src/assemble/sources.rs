// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a cluster file needs from outside, as named requests, and what the lock says came of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use profiles::Cluster;
use profiles::node::Architecture;
use profiles::schema::{Addon, DebInput, FileOrigin, SourceInput};

use super::{Deb, Sources, programs, vendor};
use crate::error::Failure;
use crate::inputs::request::{DebRequest, FileRequest, Origin, Request, SourceRequest};
use crate::inputs::source;
use crate::inputs::url::UrlRequest;
use crate::lock::{ItemKind, Lock};
use crate::store::Digest;

/// The request for the packages of the root.
pub(super) const OS: &str = "os";
/// That for the packages of the payload.
pub(super) const PAYLOAD: &str = "payload";

/// What packages depend on for the sake of their maintainer scripts, which never run here; docs/os-layer.md says what
/// stands for each. `linux-initramfs-tool` is what kernel packages make an initramfs with: ours is made without.
const NOT_NEEDED: [&str; 19] = [
    "adduser",
    "cpio",
    "dbus-session-bus-common",
    "debconf",
    "dpkg",
    "init-system-helpers",
    "initramfs-tools",
    "initramfs-tools-core",
    "klibc-utils",
    "libfile-find-rule-perl",
    "linux-base",
    "linux-initramfs-tool",
    "lsb-base",
    "perl",
    "perl-base",
    "sensible-utils",
    "sysvinit-utils",
    "ucf",
    "usrmerge",
];

/// The request for the packages of an image.
pub(super) fn image_name(reference: &str) -> String {
    format!("image {reference}")
}

/// The request for the toolchain of a `source` input.
pub(super) fn toolchain_name(source: &SourceInput) -> String {
    format!("{} toolchain", source.name)
}

/// Everything `cluster` needs from outside, by name.
///
/// # Errors
/// Packages without an archive to take them from; a recipe that does not exist; a
/// malformed digest.
pub fn requests(cluster: &Cluster) -> Result<BTreeMap<String, Request>> {
    let mut requests = BTreeMap::new();
    let mut packages = |name: String, archive: Option<&DebInput>, wanted: Wanted<'_>| -> Result<()> {
        if wanted.packages.is_empty() {
            return Ok(());
        }
        let archive = archive.ok_or_else(|| {
            Failure::user("packages are wanted, but there is no archive to take them from")
                .hint("add to the cluster file: [[input]] kind = \"deb\"")
        })?;
        let request = DebRequest {
            origin: origin(archive),
            architecture: source::golang::goarch(wanted.architecture).to_owned(),
            packages: wanted.packages.iter().cloned().collect(),
            dependencies: wanted.dependencies,
            excludes: NOT_NEEDED.iter().map(ToString::to_string).collect(),
            essential: false,
        };
        requests.insert(name, Request::Deb(request));
        Ok(())
    };
    // What runs on nodes comes from the first archive; a further one is for toolchains.
    let archive = cluster.debs().next();
    let architecture = cluster.os.architecture;
    let closure = |packages| Wanted { packages, dependencies: true, architecture };
    packages(OS.into(), archive, closure(&cluster.os.packages))?;
    packages(PAYLOAD.into(), archive, Wanted { dependencies: false, ..closure(&cluster.payload.packages) })?;
    for image in &cluster.image {
        packages(image_name(&image.reference), archive, closure(&image.packages))?;
    }
    for source in cluster.sources() {
        let recipe = programs::recipe(source)?;
        let toolchain: Vec<String> = recipe.packages(architecture).iter().map(ToString::to_string).collect();
        // The compiler runs here, whatever it compiles for.
        let wanted = Wanted { packages: &toolchain, dependencies: false, architecture: build_architecture()? };
        packages(toolchain_name(source), archive_with(cluster, &source.suite), wanted)?;
    }
    for source in cluster.sources() {
        let from = archive_with(cluster, &source.suite);
        let origin = Origin { suites: vec![source.suite.clone()], ..from.map(origin).unwrap_or_else(no_origin) };
        let request = SourceRequest { origin, package: source.package.clone(), version: source.version.clone() };
        requests.insert(source.name.clone(), Request::Source(request));
    }
    for file in cluster.files() {
        requests.insert(file.name.clone(), file_request(&file.name, &file.from)?);
    }
    for addon in &cluster.addon {
        let paths: BTreeSet<String> = beside(addon).cloned().collect();
        if !paths.is_empty() {
            requests.insert(addon_name(&addon.name), Request::Files { paths });
        }
    }
    vendor::requests(cluster, &mut requests)?;
    Ok(requests)
}

fn addon_name(name: &str) -> String {
    format!("add-on {name}")
}

/// The manifests of an add-on that are no files of inputs.
fn beside(addon: &Addon) -> impl Iterator<Item = &String> {
    addon.manifests.iter().filter(|path| !path.starts_with("input:"))
}

/// The request for the file of the input `name`.
pub(super) fn file_request(name: &str, from: &FileOrigin) -> Result<Request> {
    let sha256 = from.sha256.as_deref().map(str::parse).transpose();
    let sha256 = sha256.with_context(|| format!("reading the sha256 of input `{name}`"))?;
    Ok(match &from.url {
        Some(url) => {
            let checksums = from.checksums.iter().cloned().collect();
            Request::Url(UrlRequest { url: url.clone(), sha256, checksums })
        }
        None => Request::File(FileRequest { path: from.place().to_owned(), sha256 }),
    })
}

/// Packages to be asked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    packages: &'a [String],
    dependencies: bool,
    architecture: Architecture,
}

/// The archive that has a suite.
fn archive_with<'a>(cluster: &'a Cluster, suite: &str) -> Option<&'a DebInput> {
    cluster.debs().find(|input| input.suites.iter().any(|own| own == suite))
}

/// The architecture of this machine.
fn build_architecture() -> Result<Architecture> {
    let machine = std::env::consts::ARCH;
    Architecture::of_machine(machine).ok_or_else(|| {
        Failure::user(format!("no toolchain is known for a {machine} machine")).hint("build on x86_64").into()
    })
}

fn origin(input: &DebInput) -> Origin {
    Origin {
        suites: input.suites.clone(),
        components: input.components.clone(),
        keyring: None,
        check_valid_until: input.check_valid_until,
    }
}

fn no_origin() -> Origin {
    Origin { suites: Vec::new(), components: vec!["main".into()], keyring: None, check_valid_until: true }
}

/// What the lock says the requests of `cluster` came down to.
///
/// # Errors
/// If the lock does not hold what the cluster file asks for.
pub fn from_lock(cluster: &Cluster, lock: &Lock) -> Result<Sources> {
    let input = |name: &str| lock.inputs.get(name).with_context(|| format!("the lock has no input `{name}`"));
    let debs = |name: &str, wanted: bool| -> Result<Vec<Deb>> {
        if !wanted {
            return Ok(Vec::new());
        }
        let items = input(name)?.items.iter().filter(|item| item.kind == ItemKind::Deb);
        Ok(items
            .map(|item| Deb { name: item.name.clone(), version: item.version.clone(), object: item.sha256 })
            .collect())
    };
    let images = cluster
        .image
        .iter()
        .map(|image| debs(&image_name(&image.reference), !image.packages.is_empty()))
        .collect::<Result<Vec<_>>>()?;
    let mut programs = Vec::new();
    for declared in cluster.sources() {
        let files = &input(&declared.name)?.items;
        let file = |part: &str| -> Result<Digest> {
            let found = files.iter().find(|item| item.path.contains(part));
            Ok(found.with_context(|| format!("source package {} has no {part}* file", declared.package))?.sha256)
        };
        let toolchain = debs(&toolchain_name(declared), true)?;
        let package = |name: &&str| -> Result<Digest> {
            let found = toolchain.iter().find(|deb| deb.name == **name);
            Ok(found.with_context(|| format!("the lock has no toolchain package {name}"))?.object)
        };
        let wanted = programs::recipe(declared)?.packages(cluster.os.architecture);
        let packages = wanted.iter().map(package).collect::<Result<Vec<_>>>()?;
        programs.push(source::Inputs { upstream: file(".orig.tar")?, packaging: file(".debian.tar")?, packages });
    }
    let mut files = Vec::new();
    for declared in cluster.files() {
        let item = input(&declared.name)?.items.first();
        let item = item.with_context(|| format!("the lock has no file for input `{}`", declared.name))?;
        files.push((declared.to.clone(), declared.mode, item.sha256));
    }
    let mut addons = BTreeMap::new();
    for addon in &cluster.addon {
        for path in beside(addon) {
            let found = input(&addon_name(&addon.name))?.items.iter().find(|item| item.path == *path);
            let item = found.with_context(|| format!("the lock has no file {path} for add-on `{}`", addon.name))?;
            addons.insert(path.clone(), item.sha256);
        }
    }
    let epoch = lock.inputs.values().map(|input| input.date).max().unwrap_or(0);
    Ok(Sources {
        epoch,
        os: debs(OS, !cluster.os.packages.is_empty())?,
        payload: debs(PAYLOAD, !cluster.payload.packages.is_empty())?,
        images,
        programs,
        files,
        addons,
        vendor: vendor::from_lock(cluster, lock)?,
    })
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a cluster file needs from outside, as named requests, and what the lock says came of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use profiles::Cluster;
use profiles::node::Architecture;
use profiles::schema::{DebInput, SourceInput};

use super::{Deb, Sources, payload};
use crate::error::Failure;
use crate::inputs::request::{DebRequest, FileRequest, Origin, Request, SourceRequest};
use crate::inputs::source;
use crate::lock::{ItemKind, Lock};
use crate::store::Digest;

const OS: &str = "os";
const PAYLOAD: &str = "payload";

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

fn image_name(reference: &str) -> String {
    format!("image {reference}")
}

fn toolchain_name(source: &SourceInput) -> String {
    format!("{} toolchain", source.name)
}

/// Everything `cluster` needs from outside, by name.
///
/// # Errors
/// Packages without an archive to take them from; a recipe that does not exist; a malformed digest.
pub fn requests(cluster: &Cluster) -> Result<BTreeMap<String, Request>> {
    let mut requests = BTreeMap::new();
    let archive = cluster.debs().next();
    let mut packages =
        |name: String, packages: &[String], dependencies: bool, architecture: Architecture| -> Result<()> {
            if packages.is_empty() {
                return Ok(());
            }
            let archive = archive.ok_or_else(|| {
                Failure::user("packages are wanted, but there is no archive to take them from")
                    .hint("add to the cluster file: [[input]] kind = \"deb\"")
            })?;
            let request = DebRequest {
                origin: origin(archive),
                architecture: source::golang::goarch(architecture).to_owned(),
                packages: packages.iter().cloned().collect(),
                dependencies,
                excludes: NOT_NEEDED.iter().map(ToString::to_string).collect(),
                essential: false,
            };
            requests.insert(name, Request::Deb(request));
            Ok(())
        };
    let architecture = cluster.os.architecture;
    packages(OS.into(), &cluster.os.packages, true, architecture)?;
    packages(PAYLOAD.into(), &cluster.payload.packages, false, architecture)?;
    for image in &cluster.image {
        packages(image_name(&image.reference), &image.packages, true, architecture)?;
    }
    for source in cluster.sources() {
        let recipe = payload::recipe(&source.recipe, &source.version)?;
        let toolchain: Vec<String> = recipe.packages(architecture).iter().map(ToString::to_string).collect();
        // The compiler runs here, whatever it compiles for.
        packages(toolchain_name(source), &toolchain, false, build_architecture()?)?;
    }
    for source in cluster.sources() {
        let origin = Origin { suites: vec![source.suite.clone()], ..archive.map(origin).unwrap_or_else(no_origin) };
        let request = SourceRequest { origin, package: source.package.clone(), version: source.version.clone() };
        requests.insert(source.name.clone(), Request::Source(request));
    }
    for file in cluster.files() {
        let sha256 = file.sha256.parse().with_context(|| format!("reading the sha256 of input `{}`", file.name))?;
        requests.insert(file.name.clone(), Request::File(FileRequest { path: file.path.clone(), sha256 }));
    }
    Ok(requests)
}

/// The architecture of this machine.
fn build_architecture() -> Result<Architecture> {
    match std::env::consts::ARCH {
        "x86_64" => Ok(Architecture::Amd64),
        "loongarch64" => Ok(Architecture::Loong64),
        other => {
            Err(Failure::user(format!("no toolchain is known for a {other} machine")).hint("build on x86_64").into())
        }
    }
}

fn origin(input: &DebInput) -> Origin {
    Origin {
        suites: input.suites.clone(),
        components: input.components.clone(),
        keyring: None,
        check_valid_until: true,
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
    let mut programs = None;
    if let Some(declared) = cluster.sources().next() {
        let files = &input(&declared.name)?.items;
        let file = |part: &str| -> Result<Digest> {
            let found = files.iter().find(|item| item.path.contains(part));
            Ok(found.with_context(|| format!("source package {} has no {part}* file", declared.package))?.sha256)
        };
        let recipe = payload::recipe(&declared.recipe, &declared.version)?;
        let toolchain = debs(&toolchain_name(declared), true)?;
        let package = |name: &&str| -> Result<Digest> {
            let found = toolchain.iter().find(|deb| deb.name == **name);
            Ok(found.with_context(|| format!("the lock has no toolchain package {name}"))?.object)
        };
        let packages = recipe.packages(cluster.os.architecture).iter().map(package).collect::<Result<Vec<_>>>()?;
        programs = Some(source::Inputs { upstream: file(".orig.tar")?, packaging: file(".debian.tar")?, packages });
    }
    let mut files = Vec::new();
    for declared in cluster.files() {
        files.push((declared.to.clone(), declared.mode, declared.sha256.parse()?));
    }
    let epoch = lock.inputs.values().map(|input| input.date).max().unwrap_or(0);
    Ok(Sources {
        epoch,
        os: debs(OS, !cluster.os.packages.is_empty())?,
        payload: debs(PAYLOAD, !cluster.payload.packages.is_empty())?,
        images,
        programs,
        files,
    })
}

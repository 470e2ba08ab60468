// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the nodes of a build hold, as a bill of materials: packages, compiled programs and what they come from, what
//! was brought, container images and what is in those that are assembled here. Says what the lock and the inputs say of
//! themselves, and guesses nothing. docs/provenance.md lists what is left out.

mod copyright;
mod packages;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use profiles::schema::{Distribution, Input};

use self::packages::Facts;
use super::programs::{Wanted, makers, programs, recipe};
use super::sources::{OS, PAYLOAD, image_name, toolchain_name};
use super::{Bench, NodeKind, bundle, firstboot, payload};
use crate::inputs::rpm;
use crate::inputs::source::Programs;
use crate::inputs::source::golang::goarch;
use crate::lock::{ItemKind, Lock, LockedInput, LockedItem};
use crate::output::cyclonedx::{
    Bom, Component, Composition, Dependency, Kind, LicenseChoice, Metadata, Pedigree, Purl, Supplier, Tools,
};
use crate::store::Digest;

/// Version of this program, and of the programs of ours that it puts into nodes.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What everything is in.
const CLUSTER: &str = "cluster";

/// What a build made, as far as it decides about what nodes hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope<'a> {
    /// Names of the nodes.
    pub nodes: &'a [String],
    /// Whether they get an operating system; else they have one, and get some programs of the root beside it.
    pub with_os: bool,
}

/// The bill of materials of the nodes of a scope.
///
/// # Errors
/// Inputs that cannot be read; a lock that does not fit; programs or images that cannot be made.
pub fn bom(bench: &Bench<'_>, lock: &Lock, scope: Scope<'_>) -> Result<Bom> {
    Writer::new(bench, lock, scope)?.write().context("writing the bill of materials")
}

struct Writer<'a> {
    bench: &'a Bench<'a>,
    lock: &'a Lock,
    scope: Scope<'a>,
    kinds: Vec<NodeKind>,
    /// What the packages of Debian's say of themselves.
    facts: BTreeMap<Digest, Facts>,
    /// Compiled programs that nodes have.
    programs: Programs,
    /// Components of which more is there than is known.
    incomplete: Vec<String>,
}

impl<'a> Writer<'a> {
    fn new(bench: &'a Bench<'a>, lock: &'a Lock, scope: Scope<'a>) -> Result<Self> {
        let cluster = bench.cluster;
        let mut kinds = Vec::new();
        for name in scope.nodes {
            let kind = NodeKind::of(&cluster.node(name)?.roles);
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        // Toolchains stay behind: nobody unpacks them to see their licences.
        let inputs = lock.inputs.iter().filter(|(name, _)| !cluster.sources().any(|of| toolchain_name(of) == **name));
        let items = inputs.flat_map(|(_, input)| &input.items).filter(|item| item.kind == ItemKind::Deb);
        let debs = items.map(|item| item.sha256).collect();
        let mut wanted = Vec::new();
        if kinds.contains(&NodeKind::Pods) {
            wanted.extend(Wanted::all(&cluster.os.binaries, "`[os] binaries`"));
            wanted.extend(Wanted::all(&cluster.payload.binaries, "`[payload] binaries`"));
            wanted.extend(payload::crictl(cluster));
            wanted.extend(cluster.image.iter().flat_map(|image| Wanted::all(&image.binaries, "`[[image]] binaries`")));
        }
        Ok(Self {
            bench,
            lock,
            scope,
            kinds,
            facts: packages::facts(bench.store, debs)?,
            programs: programs(bench, &wanted)?,
            incomplete: Vec::new(),
        })
    }

    fn has_pods(&self) -> bool {
        self.kinds.contains(&NodeKind::Pods)
    }

    fn write(mut self) -> Result<Bom> {
        let mut components = Vec::new();
        if self.scope.with_os {
            components.push(self.operating_system());
        }
        components.extend(self.root()?);
        components.extend(self.payload()?);
        components.extend(self.images()?);
        for (name, input) in &self.lock.inputs {
            components.extend(self.brought(name, input)?);
        }
        let mut dependencies = vec![contains(CLUSTER, &components)];
        dependencies.extend(
            components
                .iter()
                .filter(|component| !component.components.is_empty())
                .map(|component| contains(&component.reference, &component.components)),
        );
        let mut bom = Bom::new(self.metadata()?, components);
        bom.dependencies = dependencies;
        if !self.incomplete.is_empty() {
            bom.compositions.push(Composition::incomplete(self.incomplete));
        }
        Ok(bom)
    }

    fn metadata(&self) -> Result<Metadata> {
        let cluster = self.bench.cluster;
        let mut component = Component {
            kind: Kind::Platform,
            reference: CLUSTER.to_owned(),
            name: cluster.cluster.name.clone(),
            ..Component::default()
        };
        component.property("architecture", goarch(self.bench.architecture()));
        for name in self.scope.nodes {
            component.property("node", name.as_str());
        }
        let tool = Component { name: "imgbuild".to_owned(), version: VERSION.to_owned(), ..Component::default() };
        Ok(Metadata { timestamp: self.timestamp()?, tools: Tools { components: vec![tool] }, component })
    }

    /// The date of the newest input: no clock takes part.
    fn timestamp(&self) -> Result<Option<String>> {
        match self.bench.sources.epoch {
            0 => Ok(None),
            epoch => {
                let time = jiff::Timestamp::from_second(epoch.into()).context("writing the build's time as a date")?;
                Ok(Some(time.to_string()))
            }
        }
    }

    fn distribution(&self) -> &'static str {
        match self.bench.cluster.os.distribution {
            Distribution::Debian => "debian",
            Distribution::Kylin => "kylin",
        }
    }

    fn operating_system(&self) -> Component {
        // Of one package: that which has the file os-release.
        let items = self.lock.inputs.get(OS).into_iter().flat_map(|input| &input.items);
        let release = items.filter_map(|item| self.facts.get(&item.sha256)).find(|facts| !facts.release.is_empty());
        Component {
            kind: Kind::OperatingSystem,
            reference: "os".to_owned(),
            name: self.distribution().to_owned(),
            version: release.map_or_else(String::new, |facts| facts.release.clone()),
            ..Component::default()
        }
    }

    // ---- What nodes have in their root and their payload ----

    fn root(&self) -> Result<Vec<Component>> {
        let mut components = Vec::new();
        for item in self.lock.inputs.get(OS).into_iter().flat_map(|input| &input.items) {
            if !self.scope.with_os && !self.is_carried(item) {
                continue;
            }
            components.push(self.component(OS, item, "root", "/")?);
        }
        if self.has_pods() {
            for name in &self.bench.cluster.os.binaries {
                components.push(self.program(name, "root", &format!("/usr/bin/{name}"))?);
            }
        }
        Ok(components)
    }

    /// Whether a bundle has programs of a package of the root.
    fn is_carried(&self, item: &LockedItem) -> bool {
        let facts = self.facts.get(&item.sha256);
        self.kinds.iter().any(|kind| facts.is_some_and(|facts| facts.has_any(bundle::programs_of_root(*kind))))
    }

    fn payload(&self) -> Result<Vec<Component>> {
        let program = firstboot(self.bench.architecture())?;
        let mut own = Component {
            reference: "payload/opt/imgbuild/bin/firstboot".to_owned(),
            name: "firstboot".to_owned(),
            version: VERSION.to_owned(),
            description: "part of imgbuild; also /init of the initramfs".to_owned(),
            hashes: vec![Digest::of(program).into()],
            ..Component::default()
        };
        own.property("place", "/opt/imgbuild/bin/firstboot");
        let mut components = vec![own];
        if !self.has_pods() {
            return Ok(components);
        }
        let cluster = self.bench.cluster;
        let crictl = payload::crictl(cluster).map(|wanted| wanted.name);
        for name in cluster.payload.binaries.iter().map(String::as_str).chain(crictl) {
            components.push(self.program(name, "payload", &format!("/opt/imgbuild/bin/{name}"))?);
        }
        for item in self.lock.inputs.get(PAYLOAD).into_iter().flat_map(|input| &input.items) {
            let mut component = self.component(PAYLOAD, item, "payload", "/opt/imgbuild/cni/bin")?;
            component.description = "its CNI plugins alone".to_owned();
            components.push(component);
        }
        Ok(components)
    }

    /// A program that was compiled here.
    fn program(&self, name: &str, part: &str, place: &str) -> Result<Component> {
        let cluster = self.bench.cluster;
        let program = self.programs.get(name).with_context(|| format!("no recipe made the program `{name}`"))?;
        let maker = makers(cluster)?.get(name).copied();
        let declared = cluster.sources().find(|source| Some(source.name.as_str()) == maker);
        let declared = declared.with_context(|| format!("no `source` input makes `{name}`"))?;
        let is_ours = recipe(declared)?.is_ours(name);
        let toolchain = toolchain_name(declared);
        let mut ancestors = Vec::new();
        if !is_ours {
            ancestors.extend(self.source_package(&declared.name)?);
        }
        if let Some(input) = self.lock.inputs.get(&toolchain) {
            for item in &input.items {
                let mut component = self.component(&toolchain, item, "", "")?;
                component.reference.clear();
                ancestors.push(component);
            }
        }
        let source = if is_ours { "a source file of imgbuild" } else { "a source package" };
        let mut component = Component {
            reference: format!("{part}{place}"),
            name: name.to_owned(),
            version: if is_ours { VERSION.to_owned() } else { declared.version.clone() },
            hashes: vec![program.object.into()],
            pedigree: Some(Pedigree {
                ancestors,
                notes: format!("compiled by imgbuild from {source}, by the recipe {}", declared.recipe),
            }),
            ..Component::default()
        };
        component.property("place", place);
        component.property("size", program.size.to_string());
        Ok(component)
    }

    /// The source package of a `source` input, with its files.
    fn source_package(&self, input: &str) -> Result<Option<Component>> {
        let Some(locked) = self.lock.inputs.get(input) else { return Ok(None) };
        let Some(first) = locked.items.first() else { return Ok(None) };
        let mut package = source_package(&first.name, &first.version);
        for item in &locked.items {
            let mut file = self.component(input, item, "", "")?;
            file.reference.clear();
            package.components.push(file);
        }
        Ok(Some(package))
    }

    // ---- Container images ----

    fn images(&mut self) -> Result<Vec<Component>> {
        let mut components = Vec::new();
        if !self.has_pods() {
            return Ok(components);
        }
        for (reference, digest) in payload::images(self.bench)? {
            let id = format!("image/{reference}");
            let mut image = container(&reference, &digest, goarch(self.bench.architecture()));
            image.reference = id.clone();
            match self.bench.cluster.image.iter().find(|image| image.reference == reference) {
                Some(declared) => {
                    let name = image_name(&reference);
                    for item in self.lock.inputs.get(&name).into_iter().flat_map(|input| &input.items) {
                        image.components.push(self.component(&name, item, &id, "/")?);
                    }
                    for name in &declared.binaries {
                        let place = format!("{}/{name}", declared.binaries_to.trim_end_matches('/'));
                        image.components.push(self.program(name, &id, &place)?);
                    }
                }
                None => self.incomplete.push(id),
            }
            components.push(image);
        }
        Ok(components)
    }

    // ---- What was brought ----

    /// The files of one input that reach nodes, but for what the parts above are made of.
    fn brought(&mut self, name: &str, input: &LockedInput) -> Result<Vec<Component>> {
        let cluster = self.bench.cluster;
        let declared = cluster.input.iter().find(|input| input.name() == name);
        // Packages and toolchains have requests of their own, by names that no input has.
        let Some(declared) = declared else { return Ok(Vec::new()) };
        let mut components = Vec::new();
        for item in &input.items {
            let place = match declared {
                // Described where its packages are, and with the programs that are made of it.
                Input::Deb(_) | Input::Source(_) => continue,
                // Described as images: the manifest of each says what all of it is.
                Input::Oci(_) => continue,
                // Keys prove packages, and no node has them.
                Input::Rpm(rpms) if rpms.keys.contains(&item.path) => continue,
                Input::RpmRepository(_) if item.kind == ItemKind::File => continue,
                Input::File(file) if !self.kinds.iter().any(|kind| payload::has_file(*kind, &file.to)) => continue,
                Input::ImageArchive(_) if !self.has_pods() => continue,
                Input::File(file) => file.to.as_str(),
                Input::Tar(tar) => tar.to.as_str(),
                _ => "/",
            };
            let id = format!("input/{name}");
            let mut component = match declared {
                Input::Rpm(_) => self.package(name, item, &id, place)?,
                _ => self.component(name, item, &id, place)?,
            };
            if item.kind == ItemKind::File {
                component.reference = format!("{id}/{}", item.path);
            }
            match declared {
                Input::Tar(tar) => {
                    for member in &tar.members {
                        component.property("member", member.as_str());
                    }
                    self.incomplete.push(component.reference.clone());
                }
                Input::Rootfs(_) | Input::ImageArchive(_) => self.incomplete.push(component.reference.clone()),
                _ => {}
            }
            components.push(component);
        }
        Ok(components)
    }

    // ---- One locked file ----

    /// A locked file of the input called `input`, in `part` of a node, at `place`.
    fn component(&self, input: &str, item: &LockedItem, part: &str, place: &str) -> Result<Component> {
        match item.kind {
            ItemKind::Deb => Ok(self.deb(input, item, part, place)),
            ItemKind::Rpm => self.package(input, item, part, place),
            ItemKind::Source | ItemKind::File | ItemKind::Url | ItemKind::Oci => {
                let mut component = origin(input, item, part, place);
                component.kind = Kind::File;
                component.name = item.path.rsplit('/').next().unwrap_or(&item.path).to_owned();
                Ok(component)
            }
        }
    }

    fn deb(&self, input: &str, item: &LockedItem, part: &str, place: &str) -> Component {
        let mut component = origin(input, item, part, place);
        component.supplier = Some(Supplier { name: "Debian".to_owned() });
        let suite = self.lock.inputs.get(input).and_then(|input| input.suites.first());
        let qualifiers =
            BTreeMap::from([("arch", item.architecture.clone()), ("distro", suite.cloned().unwrap_or_default())]);
        let purl = Purl { kind: "deb", namespace: "debian", name: &item.name, version: &item.version, qualifiers };
        component.purl = purl.to_string();
        if let Some(facts) = self.facts.get(&item.sha256) {
            component.licenses = facts.licenses.iter().map(|name| LicenseChoice::declared(name)).collect();
            component.pedigree = Some(Pedigree {
                ancestors: vec![source_package(&facts.source, &facts.source_version)],
                ..Pedigree::default()
            });
        }
        component
    }

    /// A locked file that is an RPM package, whatever kind of input it came by.
    fn package(&self, input: &str, item: &LockedItem, part: &str, place: &str) -> Result<Component> {
        let of = || format!("reading the package {}", item.path);
        let about = rpm::about(self.bench.store, &item.sha256).with_context(of)?;
        let mut component = origin(input, item, part, place);
        let version = format!("{}-{}", about.version, about.release);
        let qualifiers = BTreeMap::from([
            ("arch", about.architecture.clone()),
            ("epoch", about.epoch.map_or_else(String::new, |epoch| epoch.to_string())),
        ]);
        let purl =
            Purl { kind: "rpm", namespace: self.distribution(), name: &about.name, version: &version, qualifiers };
        component.purl = purl.to_string();
        component.reference = format!("{part}/{}", about.name);
        component.licenses = about.license.iter().map(|name| LicenseChoice::declared(name)).collect();
        component.supplier = about.vendor.map(|name| Supplier { name });
        component.pedigree = about.source.map(|name| Pedigree {
            ancestors: vec![Component { kind: Kind::File, name, ..Component::default() }],
            ..Pedigree::default()
        });
        component.name = about.name;
        component.version = match about.epoch {
            Some(epoch) if epoch > 0 => format!("{epoch}:{version}"),
            _ => version,
        };
        Ok(component)
    }
}

/// What every locked file has: its name, its hash, and where it is from.
fn origin(input: &str, item: &LockedItem, part: &str, place: &str) -> Component {
    let mut component = Component {
        reference: format!("{part}/{}", item.name),
        name: item.name.clone(),
        version: item.version.clone(),
        hashes: vec![item.sha256.into()],
        ..Component::default()
    };
    component.property("place", place);
    component.property("input", input);
    component.property("archive", item.archive.as_str());
    component.property("path", item.path.as_str());
    component.property("size", item.size.to_string());
    component
}

/// A source package of Debian's.
fn source_package(name: &str, version: &str) -> Component {
    let qualifiers = BTreeMap::from([("arch", "source".to_owned())]);
    let purl = Purl { kind: "deb", namespace: "debian", name, version, qualifiers };
    Component { name: name.to_owned(), version: version.to_owned(), purl: purl.to_string(), ..Component::default() }
}

/// An image by its full reference and the digest of its manifest.
fn container(reference: &str, manifest: &Digest, architecture: &str) -> Component {
    let name = reference.split('@').next().unwrap_or(reference);
    // A colon before the last slash is that of a port.
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, ""),
    };
    let short = repository.rsplit('/').next().unwrap_or(repository).to_lowercase();
    let digest = format!("sha256:{manifest}");
    let qualifiers = BTreeMap::from([
        ("arch", architecture.to_owned()),
        ("repository_url", repository.to_owned()),
        ("tag", tag.to_owned()),
    ]);
    let purl = Purl { kind: "oci", name: &short, version: &digest, qualifiers, ..Purl::default() };
    Component {
        kind: Kind::Container,
        name: repository.to_owned(),
        version: tag.to_owned(),
        hashes: vec![(*manifest).into()],
        purl: purl.to_string(),
        ..Component::default()
    }
}

/// Everything that is in something, each once.
fn contains(reference: &str, components: &[Component]) -> Dependency {
    let depends_on: BTreeSet<String> = components.iter().map(|component| component.reference.clone()).collect();
    Dependency { reference: reference.to_owned(), depends_on: depends_on.into_iter().collect() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "sbom_tests.rs"]
mod tests;

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a user brings besides single files: a vendor's root filesystem, packages laid over it, and archives of
//! programs. Images are [`super::image_archive`]'s.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use profiles::Cluster;
use profiles::node::Role;
use profiles::schema::{LoadBalancerSection, NetworkPlugin};
use serde::Serialize;

use super::Bench;
use super::registry_images::{self, RegistryImages};
use super::sources::file_request;
use crate::error::Failure;
use crate::inputs::deb::archive::{self, Archive};
use crate::inputs::deb::openpgp::Keyring;
use crate::inputs::image_archive::{Images, holds_images};
use crate::inputs::request::{Request, RpmRepositoryRequest};
use crate::inputs::rpm;
use crate::lock::{ItemKind, Lock};
use crate::proof::elf;
use crate::store::Digest;
use crate::tree::{Content, Entry, FileTree, Kind, layers, os, overlay, system};

/// Where units start containerd from.
const CONTAINERD: &str = "usr/bin/containerd";

/// What was brought, as store objects. Paths are for messages and no part of what is built.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Vendor {
    /// The root filesystem.
    pub rootfs: Option<Rootfs>,
    /// Packages laid over it.
    pub rpms: Vec<Rpms>,
    /// Archives of files.
    pub tars: Vec<Tar>,
    /// Archives of images.
    pub images: Vec<ImageArchive>,
    /// Images of registries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<RegistryImages>,
}

/// A root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rootfs {
    /// Path or address of the archive.
    #[serde(skip)]
    pub path: String,
    /// The archive.
    pub object: Digest,
    /// Release of the kernel to boot.
    pub kernel: Option<String>,
    /// Folders with programs for other machines.
    pub foreign: Vec<String>,
}

/// RPM packages of one input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rpms {
    /// The packages.
    pub packages: Vec<Brought>,
    /// Files with keys, one of which must have signed each package; none if no signature is asked for.
    pub keys: Vec<Brought>,
}

/// A file that was brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Brought {
    /// Its path.
    #[serde(skip)]
    pub path: String,
    /// Its content.
    pub object: Digest,
}

/// An archive of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tar {
    /// Path or address of the archive.
    #[serde(skip)]
    pub path: String,
    /// The archive.
    pub object: Digest,
    /// What is taken from it; all if empty.
    pub members: Vec<String>,
    /// Directory on the node.
    pub to: String,
}

/// An archive of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageArchive {
    /// Path or address of the archive.
    #[serde(skip)]
    pub path: String,
    /// The archive.
    pub object: Digest,
    /// Further names of images, to their names in the archive.
    pub names: BTreeMap<String, String>,
}

impl Vendor {
    /// What decides about the root.
    pub fn of_root(&self) -> impl Serialize + '_ {
        (&self.rootfs, &self.rpms, &self.tars)
    }
}

/// Adds what `cluster` needs to `requests`.
pub(super) fn requests(cluster: &Cluster, requests: &mut BTreeMap<String, Request>) -> Result<()> {
    let rootfs = cluster.rootfs().map(|input| (&input.name, &input.from));
    let tars = cluster.tars().map(|input| (&input.name, &input.from));
    let images = cluster.image_archives().map(|input| (&input.name, &input.from));
    for (name, from) in rootfs.chain(tars).chain(images) {
        requests.insert(name.clone(), file_request(name, from)?);
    }
    for input in cluster.rpms() {
        let paths = input.paths.iter().chain(&input.keys).cloned().collect();
        requests.insert(input.name.clone(), Request::Files { paths });
    }
    requests.extend(registry_images::requests(cluster));
    for input in cluster.rpm_repositories() {
        let request = RpmRepositoryRequest {
            url: input.url.clone(),
            architecture: cluster.os.architecture,
            packages: input.packages.iter().cloned().collect(),
            keys: input.keys.iter().cloned().collect(),
            index_signed: input.checks_index(),
        };
        requests.insert(input.name.clone(), Request::RpmRepository(request));
    }
    Ok(())
}

/// What the lock says of what `cluster` brings.
///
/// # Errors
/// If the lock does not hold it.
pub(super) fn from_lock(cluster: &Cluster, lock: &Lock) -> Result<Vendor> {
    let object = |name: &str, path: &str| -> Result<Digest> {
        let input = lock.inputs.get(name).with_context(|| format!("the lock has no input `{name}`"))?;
        let item = input.items.iter().find(|item| item.path == path);
        Ok(item.with_context(|| format!("the lock has no file {path} for input `{name}`"))?.sha256)
    };
    let rootfs = cluster.rootfs().next().map(|input| -> Result<Rootfs> {
        Ok(Rootfs {
            path: input.from.place().to_owned(),
            object: object(&input.name, input.from.place())?,
            kernel: input.kernel.clone(),
            foreign: input.foreign.clone(),
        })
    });
    let tars = cluster.tars().map(|input| -> Result<Tar> {
        Ok(Tar {
            path: input.from.place().to_owned(),
            object: object(&input.name, input.from.place())?,
            members: input.members.clone(),
            to: input.to.clone(),
        })
    });
    let images = cluster.image_archives().map(|input| -> Result<ImageArchive> {
        Ok(ImageArchive {
            path: input.from.place().to_owned(),
            object: object(&input.name, input.from.place())?,
            names: input.names.clone(),
        })
    });
    let rpms = cluster.rpms().map(|input| -> Result<Rpms> {
        let brought = |path: &String| -> Result<Brought> {
            Ok(Brought { path: path.clone(), object: object(&input.name, path)? })
        };
        Ok(Rpms {
            packages: input.paths.iter().map(brought).collect::<Result<_>>()?,
            keys: input.keys.iter().map(brought).collect::<Result<_>>()?,
        })
    });
    let repositories = cluster.rpm_repositories().map(|input| -> Result<Rpms> {
        let locked = lock.inputs.get(&input.name);
        let locked = locked.with_context(|| format!("the lock has no input `{}`", input.name))?;
        let items = |kind| -> Vec<Brought> {
            let items = locked.items.iter().filter(move |item| item.kind == kind);
            items.map(|item| Brought { path: item.path.clone(), object: item.sha256 }).collect()
        };
        let keys = if input.checks_packages() { items(ItemKind::File) } else { Vec::new() };
        Ok(Rpms { packages: items(ItemKind::Rpm), keys })
    });
    Ok(Vendor {
        rootfs: rootfs.transpose()?,
        rpms: rpms.chain(repositories).collect::<Result<_>>()?,
        tars: tars.collect::<Result<_>>()?,
        images: images.collect::<Result<_>>()?,
        registries: registry_images::from_lock(cluster, lock)?,
    })
}

/// The layers of the root filesystem: one, unless it is an image.
fn rootfs_layers(bench: &Bench<'_>, rootfs: &Rootfs) -> Result<Vec<Archive>> {
    let archive = archive::unpack_system(bench.store, &rootfs.object)?;
    if !holds_images(&archive) {
        return Ok(vec![archive]);
    }
    match &Images::of(bench.store, &archive, bench.architecture())?.read()?[..] {
        [image] => image.layers(bench.store),
        several => bail!(
            Failure::user(format!("it has {} images, and one is a root filesystem", several.len()))
                .hint("save that image alone")
        ),
    }
}

/// The newest time of a file below the vendor's /usr, which is the date of its newest package: what stands for the date of a
/// suite where all inputs are files. 0 without a root filesystem.
///
/// # Errors
/// If the archive cannot be read.
pub fn epoch(bench: &Bench<'_>) -> Result<u32> {
    let Some(rootfs) = &bench.sources.vendor.rootfs else { return Ok(0) };
    let layers =
        rootfs_layers(bench, rootfs).with_context(|| format!("reading the root filesystem {}", rootfs.path))?;
    let files = layers.iter().flat_map(|layer| &layer.entries);
    let times = files.filter(|entry| entry.path.starts_with("usr/") && is_file(&entry.kind)).map(|entry| entry.mtime);
    Ok(times.max().unwrap_or(0))
}

fn is_file(kind: &archive::ArchiveKind) -> bool {
    matches!(kind, archive::ArchiveKind::File { .. })
}

/// The vendor's root, with what is laid over it.
pub(super) fn root(bench: &Bench<'_>, mut options: os::Options) -> Result<os::Os> {
    let rootfs = bench.sources.vendor.rootfs.as_ref().context("there is no root filesystem")?;
    let of = || format!("reading the root filesystem {}", rootfs.path);
    let mut tree = system::system(&rootfs_layers(bench, rootfs).with_context(of)?).with_context(of)?;
    let packages = rpms(bench)?;
    let laid: Vec<layers::Package<'_>> = packages
        .iter()
        .map(|package| layers::Package { name: &package.name, archive: &package.archive, replaces: &[] })
        .collect();
    tree = layers::merge_over(tree, &laid)?;
    system::clean(&mut tree);
    let kernel = system::keep_one_kernel(&mut tree, rootfs.kernel.as_deref()).with_context(of)?;
    tracing::debug!("the kernel of {} is {kernel}", rootfs.path);
    // A released containerd has no unit; a packaged one brings its own.
    let units = ["etc/systemd/system", "usr/lib/systemd/system"];
    if !units.iter().any(|folder| tree.lookup(&format!("{folder}/containerd.service")).is_some()) {
        let mut files = overlay::overlay("containerd")?;
        files.overlay(options.extra)?;
        options.extra = files;
    }
    let mut root = os::finish(bench.store, tree, &options)?;
    own(&mut root, &packages)?;
    Ok(root)
}

/// The packages to be laid over the root, verified where there are keys.
///
/// # Errors
/// Packages that no key signed, or that cannot be read: all of them.
fn rpms(bench: &Bench<'_>) -> Result<Vec<rpm::Package>> {
    let (mut packages, mut problems) = (Vec::new(), Vec::new());
    for input in &bench.sources.vendor.rpms {
        let keys = Keyring::of_objects(bench.store, input.keys.iter().map(|key| (key.path.as_str(), &key.object)))?;
        for package in &input.packages {
            if let Some(problem) = unsigned(bench, package, keys.as_ref()) {
                problems.push(problem);
            }
            let of = || format!("reading the package {}", package.path);
            packages.push(rpm::unpack(bench.store, &package.object, bench.architecture()).with_context(of)?);
        }
    }
    if problems.is_empty() {
        return Ok(packages);
    }
    Err(Failure::verification(problems.join("\n  "))
        .hint("name the vendor's key in `keys`; without `keys`, the lock alone says what a package is")
        .into())
}

/// Why a package does not count as signed, if so.
fn unsigned(bench: &Bench<'_>, package: &Brought, keys: Option<&Keyring>) -> Option<String> {
    match rpm::verify(bench.store, &package.object, keys?) {
        Ok(fingerprint) => {
            tracing::debug!("{} is signed by {fingerprint}", package.path);
            None
        }
        Err(error) => Some(format!("package {}: {error:#}", package.path)),
    }
}

/// Gives the files of packages to the users that own them.
///
/// # Errors
/// Users and groups that nobody has: all of them.
fn own(root: &mut os::Os, packages: &[rpm::Package]) -> Result<()> {
    let mut missing = BTreeSet::new();
    for package in packages {
        for (path, (user, group)) in &package.owners {
            let ids = (root.users.user(user).map(|user| user.uid), root.users.group(group).map(|group| group.gid));
            let (Some(uid), Some(gid)) = ids else {
                missing.insert(format!("{user}:{group} of {}", package.name));
                continue;
            };
            let path = root.tree.resolve_parent(&layers::merged_path(path));
            if let Some(entry) = path.and_then(|path| root.tree.get_mut(&path)) {
                (entry.uid, entry.gid) = (uid, gid);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let missing = Vec::from_iter(missing).join(", ");
    Err(Failure::user(format!("packages have files of users that the root does not know: {missing}"))
        .hint("their scripts would have made them: declare them in a file of /usr/lib/sysusers.d, as input of kind \"file\"")
        .into())
}

/// The files of the archives of programs: path on the node without leading slash, and entry. Directories are made by need.
pub(super) fn tar_files(bench: &Bench<'_>) -> Result<Vec<(String, Entry)>> {
    let mut files = Vec::new();
    for tar in &bench.sources.vendor.tars {
        let of = || format!("taking files from {}", tar.path);
        let archive = archive::unpack_system(bench.store, &tar.object).with_context(of)?;
        files.extend(members(&layers::plain(&archive).with_context(of)?, &tar.members, &tar.to).with_context(of)?);
    }
    Ok(files)
}

/// Whether files that are put onto a root of packages have a containerd: a released program, which has no unit beside
/// it. What a vendor's root has is [`root`]'s to see.
///
/// # Errors
/// As [`tar_files`].
pub(super) fn brings_containerd(bench: &Bench<'_>) -> Result<bool> {
    if bench.sources.vendor.rootfs.is_some() {
        return Ok(false);
    }
    let is_it = |path: &str| layers::merged_path(path.trim_start_matches('/')) == CONTAINERD;
    let by_file = bench.sources.files.iter().any(|(to, ..)| is_it(to));
    Ok(by_file || tar_files(bench)?.iter().any(|(path, _)| is_it(path)))
}

/// The files that `members` name in an archive, below `to`.
fn members(archive: &FileTree, members: &[String], to: &str) -> Result<Vec<(String, Entry)>> {
    let to = to.trim_matches('/');
    let place = |name: &str| if to.is_empty() { name.to_owned() } else { format!("{to}/{name}") };
    let all = [String::new()];
    let members = if members.is_empty() { &all[..] } else { members };
    let (mut files, mut missing) = (Vec::new(), Vec::new());
    for member in members {
        match archive.get(member).map(|entry| &entry.kind) {
            Some(Kind::Dir) => {
                let below = archive.below(member).filter(|(_, entry)| entry.kind != Kind::Dir);
                let cut = if member.is_empty() { 0 } else { member.len() + 1 };
                files.extend(below.map(|(path, entry)| (place(&path[cut..]), path, entry)));
            }
            Some(_) => {
                let name = member.rsplit('/').next().unwrap_or(member);
                files.extend(archive.get(member).map(|entry| (place(name), member.as_str(), entry)));
            }
            None => missing.push(format!("`{member}`")),
        }
    }
    if !missing.is_empty() {
        let top: BTreeSet<&str> = archive.iter().filter_map(|(path, _)| path.split('/').next()).collect();
        let top: Vec<&str> = top.into_iter().filter(|name| !name.is_empty()).collect();
        bail!(
            Failure::user(format!("it has no {}", missing.join(", ")))
                .hint(format!("`tar -tf` lists what it has; at the top there is {}", top.join(", ")))
        );
    }
    let mut out = Vec::new();
    for (place, path, entry) in files {
        // Further names of a file become files: their content is stored once all the same.
        let kind = match &entry.kind {
            Kind::HardLink(_) => archive.lookup(path).map(|(_, file)| file.kind.clone()),
            Kind::File(_) | Kind::Symlink(_) => Some(entry.kind.clone()),
            _ => None,
        };
        let kind = kind.with_context(|| Failure::user(format!("`{path}` in it is neither a file nor a link")))?;
        out.push((place, Entry::new(kind, entry.mode & 0o7777)));
    }
    Ok(out)
}

/// Commands that the nodes of a cluster run, with who runs them. A vendor's root may lack any of them; packages are chosen by
/// hand, and validation knows which.
fn commands(cluster: &Cluster) -> Vec<(&'static [&'static str], &'static str)> {
    let has = |role| cluster.nodes_with(role).next().is_some();
    let mut all: Vec<(&[&str], &str)> = vec![
        (&["e2fsck", "mkfs.ext4", "resize2fs", "tune2fs"], "the initramfs makes and grows the data partition"),
        (&["ip", "modprobe", "mount", "sysctl", "systemctl"], "firstboot and systemd"),
    ];
    if has(Role::Etcd) {
        all.push((&["etcd", "etcdctl"], "the etcd members"));
    }
    if has(Role::Master) || has(Role::Worker) {
        // kubeadm's preflight: FileExisting-… that is an error, and what containerd starts.
        all.push((&["containerd", "containerd-shim-runc-v2", "runc"], "the container runtime"));
        all.push((&["conntrack", "iptables", "nsenter"], "kubeadm's preflight and kubelet"));
    }
    if matches!(cluster.load_balancer, LoadBalancerSection::Keepalived { .. }) {
        all.push((&["curl", "haproxy", "keepalived"], "the load balancer on the masters"));
    }
    if cluster.network.plugin == NetworkPlugin::Bridge {
        all.push((&["nft"], "the plugin `bridge`"));
    }
    all
}

/// Fails unless a vendor's root has every command that its nodes run, and systemd-networkd.
pub(super) fn prove_commands(bench: &Bench<'_>, root: &FileTree) -> Result<()> {
    let Some(rootfs) = &bench.sources.vendor.rootfs else { return Ok(()) };
    let folders = ["usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin"];
    let there = |name: &str| folders.iter().any(|folder| root.content(&format!("{folder}/{name}")).is_some());
    let mut missing: Vec<String> = Vec::new();
    for (names, by) in commands(bench.cluster) {
        let absent: Vec<&str> = names.iter().filter(|name| !there(name)).copied().collect();
        if !absent.is_empty() {
            missing.push(format!("{}: {by}", absent.join(", ")));
        }
    }
    if root.content("usr/lib/systemd/systemd-networkd").is_none() {
        missing.push("/usr/lib/systemd/systemd-networkd: the node's network".into());
    }
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!("the root lacks what its nodes run (from {}):\n  {}", rootfs.path, missing.join("\n  "));
    Err(Failure::verification(message)
        .hint("install it before the system is archived, or bring it as an input of kind \"rpm\", \"rpm-repository\", \"tar\" or \"file\"")
        .into())
}

impl Bench<'_> {
    /// What a file was brought in, if it is a slice of something that was.
    pub(super) fn vendor_origin(&self, object: &Digest) -> Option<String> {
        let vendor = &self.sources.vendor;
        if self.rootfs_objects().contains(object) {
            return vendor.rootfs.as_ref().map(|rootfs| format!("root filesystem {}", rootfs.path));
        }
        let packages = vendor.rpms.iter().flat_map(|input| &input.packages);
        for package in packages {
            let own = rpm::unpack(self.store, &package.object, self.architecture());
            if own.is_ok_and(|own| own.archive.tar == *object) {
                return Some(format!("package {}", package.path));
            }
        }
        let is_from = |tar: &&Tar| archive::unpack_system(self.store, &tar.object).is_ok_and(|own| own.tar == *object);
        vendor.tars.iter().find(is_from).map(|tar| format!("archive {}", tar.path))
    }

    /// The objects that the files of the vendor's root filesystem are slices of.
    fn rootfs_objects(&self) -> BTreeSet<Digest> {
        let layers = self.sources.vendor.rootfs.iter().filter_map(|rootfs| rootfs_layers(self, rootfs).ok());
        layers.flatten().map(|layer| layer.tar).collect()
    }

    /// Fails unless every program of the root, with or without a payload, can run on it.
    pub(super) fn prove_elf(&self, tree: &FileTree) -> Result<()> {
        let own = self.rootfs_objects();
        let vouched = |content: &Content| matches!(content, Content::Slice { object, .. } if own.contains(object));
        let foreign = self.sources.vendor.rootfs.as_ref().map_or(&[][..], |rootfs| &rootfs.foreign);
        let files = elf::Files { origin: &|content| self.origin(content), vouched: &vouched, foreign };
        elf::check(self.store, tree, &self.target()?, &files)?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::assemble::testing::Lab;
    use crate::inputs::deb::fixtures;
    use crate::lock::{LockedInput, LockedItem};

    const KYLIN: &str = include_str!("../../../profiles/kylin-v11-ha/cluster.toml");

    fn kylin(more: &str) -> Cluster {
        let repository = format!(
            "[[input]]\nkind = \"rpm-repository\"\nname = \"kylin\"\nurl = \"https://example.org/kylin/\"\n\
             packages = [\"haproxy\", \"ipset=7.1\"]\n{more}\n[os]\n"
        );
        Cluster::parse("cluster.toml", &KYLIN.replacen("[os]\n", &repository, 1))
            .unwrap_or_else(|report| panic!("{report}"))
    }

    /// A lock as it comes of `requests`, with made-up files.
    fn lock(requests: &BTreeMap<String, Request>) -> Lock {
        let mut lock = Lock::default();
        let item = |kind, archive: &str, path: &str| LockedItem {
            kind,
            name: path.to_owned(),
            version: String::new(),
            architecture: String::new(),
            archive: archive.to_owned(),
            path: path.to_owned(),
            size: 1,
            sha256: Digest::of(path.as_bytes()),
        };
        for (name, request) in requests {
            let items = match request {
                Request::File(file) => vec![item(ItemKind::File, "", &file.path)],
                Request::Files { paths } => paths.iter().map(|path| item(ItemKind::File, "", path)).collect(),
                Request::RpmRepository(repository) => {
                    let packages = repository.packages.iter().map(|path| item(ItemKind::Rpm, name, path));
                    packages.chain(repository.keys.iter().map(|path| item(ItemKind::File, "", path))).collect()
                }
                Request::Url(wanted) => vec![item(ItemKind::Url, "", &wanted.url)],
                Request::Deb(_) | Request::Source(_) | Request::Oci(_) => vec![],
            };
            let input = LockedInput { request: request.digest().unwrap(), suites: vec![], date: 0, items };
            lock.inputs.insert(name.clone(), input);
        }
        lock
    }

    /// Packages of files and of repositories are laid over the root alike; keys count where packages must be signed.
    #[test]
    fn packages_of_a_repository_come_after_those_of_files() {
        for (more, index_signed, keys) in [
            ("", false, &[][..]),
            ("keys = [\"inputs/k\"]", true, &["inputs/k"]),
            ("keys = [\"inputs/k\"]\nsigned = \"packages\"", false, &["inputs/k"]),
            ("keys = [\"inputs/k\"]\nsigned = \"index\"", true, &[]),
        ] {
            let (cluster, mut wanted) = (kylin(more), BTreeMap::new());
            requests(&cluster, &mut wanted).unwrap();
            let Request::RpmRepository(repository) = &wanted["kylin"] else { panic!("{wanted:?}") };
            assert_eq!(
                (repository.index_signed, repository.url.as_str()),
                (index_signed, "https://example.org/kylin/")
            );
            let vendor = from_lock(&cluster, &lock(&wanted)).unwrap();
            let paths = |brought: &[Brought]| brought.iter().map(|file| file.path.clone()).collect::<Vec<_>>();
            let [files, repository] = &vendor.rpms[..] else { panic!("{vendor:?}") };
            assert_eq!(paths(&files.packages)[0], "inputs/haproxy.rpm");
            assert_eq!(paths(&repository.packages), ["haproxy", "ipset=7.1"]);
            assert_eq!(repository.packages[0].object, Digest::of(b"haproxy"));
            assert_eq!(paths(&repository.keys), keys, "{more}");
        }
    }

    /// An archive of programs, as containerd releases them.
    fn release(lab: &Lab) -> Digest {
        let files = ["bin/containerd", "bin/ctr"].map(|name| (name, name));
        lab.store.put_bytes(&fixtures::tar(&files)).unwrap()
    }

    #[test]
    fn a_released_containerd_is_seen_where_units_start_it() {
        let upstream = || Lab::of(include_str!("../../../profiles/upstream-ha/cluster.toml"));
        let brings = |lab: &Lab| brings_containerd(&lab.bench()).unwrap();
        for (to, expected) in [("/usr/bin", true), ("/bin/", true), ("/usr/local/bin", false)] {
            let mut lab = upstream();
            assert!(!brings(&lab));
            let object = release(&lab);
            let tar = Tar { path: String::new(), object, members: vec!["bin".to_owned()], to: to.to_owned() };
            lab.sources.vendor.tars.push(tar);
            assert_eq!(brings(&lab), expected, "{to}");
        }
        let mut lab = upstream();
        lab.sources.files.push(("/usr/bin/containerd".to_owned(), 0o755, Digest::of(b"containerd")));
        assert!(brings(&lab));
        let object = Digest::of(b"a system");
        lab.sources.vendor.rootfs = Some(Rootfs { path: String::new(), object, kernel: None, foreign: vec![] });
        assert!(!brings(&lab), "a vendor's root is asked itself");
    }
}

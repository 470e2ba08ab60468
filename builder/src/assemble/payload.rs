// SPDX-License-Identifier: MIT OR Apache-2.0

//! The payload: what lies at /opt/imgbuild on a node. There are two: that of nodes that run pods, and the small one of nodes
//! that are only etcd members. Layout: docs/contracts.md, section 3.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use profiles::Cluster;
use profiles::schema::Image;
use serde::{Deserialize, Serialize};

use super::programs::{Wanted, program, programs};
use super::{Bench, Deb, NodeKind, PAYLOAD_PREFIX, addons, calico, firstboot, image_archive, images, os, vendor};
use crate::error::Failure;
use crate::image::oci::{self, Layer, Layout, Process};
use crate::image::squashfs::{self, Packed};
use crate::inputs::deb::version;
use crate::inputs::source::{self, Programs};
use crate::proof::elf;
use crate::store::{Digest, step_key};
use crate::tree::{Entry, FileTree, alternatives};

/// Raised when the code below makes another payload out of the same inputs.
const STEP_VERSION: u32 = 3;
/// The same for the list of its images.
const IMAGES_VERSION: u32 = 1;

/// Where a package keeps its CNI plugins (`/usr/lib/cni` by Debian's patch of containernetworking-plugins).
const PACKAGED_CNI: &str = "usr/lib/cni/";

/// What every node that runs pods finds in the payload's bin, and no other node.
const COMMANDS: [&str; 4] = ["crictl", "kubeadm", "kubectl", "kubelet"];

/// The name of containerd's package, source package and program.
const CONTAINERD: &str = "containerd";

/// What kubeadm 1.20 insists on besides `[payload] binaries`.
const CRICTL: &str = "crictl";

/// Folders of the payload that only nodes that run pods read, whoever put files there.
const OF_PODS: [&str; 4] = ["addons/", "cni/", "images/", "manifests/"];

/// `payload.json`: what firstboot must know of the payload it finds.
#[derive(Debug, Serialize)]
struct Description<'a> {
    schema: u32,
    architecture: &'static str,
    #[serde(flatten)]
    pods: Option<Pods<'a>>,
}

/// What a node that runs pods must know besides.
#[derive(Debug, Serialize)]
struct Pods<'a> {
    kubernetes: String,
    containerd: String,
    images: BTreeSet<String>,
    sandbox_image: &'a str,
}

/// Manifests that are not what was brought.
#[derive(Default)]
struct Manifests {
    configured: calico::Manifests,
    /// Files of the add-ons, by their place in the payload.
    addons: BTreeMap<String, String>,
}

impl Manifests {
    /// Those of the payload of nodes of that kind, proven to ask for no image that is not there.
    fn of(bench: &Bench<'_>, kind: NodeKind) -> Result<Self> {
        if kind == NodeKind::Etcd {
            return Ok(Self::default());
        }
        let addons = addons::of(bench)?;
        images::prove(bench, &addons)?;
        Ok(Self { configured: calico::of(bench)?, addons: addons.files })
    }
}

/// The payload of nodes of one kind as a squashfs, made or found in the store.
///
/// # Errors
/// If anything that a node will ask for is not in it, or its inputs do not give what the cluster file names.
pub fn build(bench: &Bench<'_>, kind: NodeKind) -> Result<Packed> {
    let manifests = Manifests::of(bench, kind)?;
    let firstboot = firstboot(bench.architecture())?;
    let key = key(bench, kind, firstboot, &manifests)?;
    bench.store.cached(&key, "payload", || {
        tracing::info!("assembling the payload");
        let tree = tree(bench, kind, firstboot, &manifests).context("assembling the payload")?;
        prove_programs(bench, kind, &tree).context("checking the payload's programs on the root")?;
        if kind == NodeKind::Pods {
            bench.store.record_step(&images_key(&key)?, &images_of(bench, &tree)?)?;
        }
        squashfs::pack(&tree, bench.store, &bench.squashfs()).context("packing the payload")
    })
}

/// Everything that the payload depends on.
fn key(bench: &Bench<'_>, kind: NodeKind, firstboot: &[u8], manifests: &Manifests) -> Result<Digest> {
    let cluster = bench.cluster;
    step_key(
        "payload",
        STEP_VERSION,
        &(
            // The packages of the root too: the payload names its containerd, and its programs are proven on it.
            (kind, &bench.sources, os::overlays_digest(bench, kind)?),
            // Sections of the cluster file; their `Debug` shows every field.
            format!("{:?} {:?} {:?}", cluster.kubernetes, cluster.payload, cluster.image),
            // And manifests that are not used as they are.
            format!(
                "{:?} {:?}{}{}",
                cluster.os,
                cluster.containerd,
                manifests.configured.values().map(|one| one.manifest.as_str()).collect::<String>(),
                manifests.addons.iter().map(|(path, text)| format!("{path} {} {text}", text.len())).collect::<String>()
            ),
            Digest::of(firstboot),
            (bench.squashfs().block_size, bench.squashfs().level),
        ),
    )
}

/// The key of the step that says which images are in the payload with this key.
fn images_key(payload: &Digest) -> Result<Digest> {
    step_key("payload-images", IMAGES_VERSION, payload)
}

/// The images of nodes that run pods: full reference, and digest of the manifest. In the order of their names.
///
/// # Errors
/// As [`build`], but that nothing is proven of programs.
pub(super) fn images(bench: &Bench<'_>) -> Result<Vec<(String, Digest)>> {
    let firstboot = firstboot(bench.architecture())?;
    let manifests = Manifests::of(bench, NodeKind::Pods)?;
    let key = images_key(&key(bench, NodeKind::Pods, firstboot, &manifests)?)?;
    bench.store.cached(&key, "the payload's images", || {
        images_of(bench, &tree(bench, NodeKind::Pods, firstboot, &manifests).context("assembling the payload")?)
    })
}

/// What the index of the image layout in a payload says.
fn images_of(bench: &Bench<'_>, payload: &FileTree) -> Result<Vec<(String, Digest)>> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Manifest>,
    }
    #[derive(Deserialize)]
    struct Manifest {
        digest: String,
        annotations: BTreeMap<String, String>,
    }
    const PATH: &str = "images/index.json";
    let of = || format!("reading {PATH} of the payload");
    let text = payload.content(PATH).with_context(of)?.read(bench.store).with_context(of)?;
    let index: Index = serde_json::from_slice(&text).with_context(of)?;
    let image = |manifest: Manifest| -> Result<(String, Digest)> {
        let name = manifest.annotations.get("org.opencontainers.image.ref.name").context("an image has no name")?;
        let digest = manifest.digest.strip_prefix("sha256:").context("a digest is no sha256")?.parse()?;
        Ok((name.clone(), digest))
    };
    index.manifests.into_iter().map(image).collect::<Result<_>>().with_context(of)
}

/// The payload of nodes of one kind as files, checked as [`build`] checks it. The step cache has no part in it.
///
/// # Errors
/// As [`build`].
pub(super) fn files(bench: &Bench<'_>, kind: NodeKind) -> Result<FileTree> {
    let tree = tree(bench, kind, firstboot(bench.architecture())?, &Manifests::of(bench, kind)?)?;
    prove_programs(bench, kind, &tree).context("checking the payload's programs on the root")?;
    Ok(tree)
}

fn tree(bench: &Bench<'_>, kind: NodeKind, firstboot: &[u8], manifests: &Manifests) -> Result<FileTree> {
    let mut tree = FileTree::new();
    tree.insert("bin/firstboot", Entry::file(firstboot, 0o755))?;
    if kind == NodeKind::Pods {
        add_kubernetes(bench, &mut tree)?;
    }
    let wanted = |path: &str| is_wanted(kind, path);
    for (to, mode, content) in &bench.sources.files {
        let Some(path) = to.strip_prefix(PAYLOAD_PREFIX).filter(|path| wanted(path)) else { continue };
        let mut entry = bench.file(content, *mode)?;
        if let Some(configured) = manifests.configured.get(to) {
            entry = Entry::file(configured.manifest.as_bytes(), entry.mode);
        }
        tree.insert(path, entry)?;
    }
    for (path, entry) in vendor::tar_files(bench)? {
        let path = path.strip_prefix(PAYLOAD_PREFIX.trim_start_matches('/'));
        if let Some(path) = path.filter(|path| wanted(path)) {
            tree.insert(path, entry)?;
        }
    }
    let absent: Vec<&str> =
        COMMANDS.iter().filter(|name| tree.content(&format!("bin/{name}")).is_none()).copied().collect();
    if kind == NodeKind::Pods && !absent.is_empty() {
        return Err(Failure::user(format!("the payload lacks {}", absent.join(", ")))
            .hint("bring them to /opt/imgbuild/bin: as input of kind \"file\" or \"tar\", or by `[payload] binaries`")
            .into());
    }
    for (path, text) in &manifests.addons {
        tree.insert(path, Entry::file(text.as_bytes(), 0o644))?;
    }
    let description = serde_json::to_vec_pretty(&describe(bench, kind)?).context("describing the payload")?;
    tree.insert("payload.json", Entry::file(description, 0o644))?;
    Ok(tree)
}

/// Whether nodes of a kind get a file of the payload, by its path there.
fn is_wanted(kind: NodeKind, path: &str) -> bool {
    let is_command = || path.strip_prefix("bin/").is_some_and(|name| COMMANDS.contains(&name));
    kind == NodeKind::Pods || !is_command() && !OF_PODS.iter().any(|folder| path.starts_with(folder))
}

/// Whether nodes of a kind get a file that goes to `to` on the node.
pub(super) fn has_file(kind: NodeKind, to: &str) -> bool {
    to.strip_prefix(PAYLOAD_PREFIX).is_none_or(|path| is_wanted(kind, path))
}

/// The program that kubeadm insists on. With sources come programs of ours; without, the user brings them all.
pub(super) fn crictl(cluster: &Cluster) -> Option<Wanted<'static>> {
    cluster.sources().next().map(|_| Wanted { name: CRICTL, by: "every payload with kubeadm" })
}

/// What a node that runs pods has besides: Kubernetes' programs, CNI plugins, container images.
fn add_kubernetes(bench: &Bench<'_>, tree: &mut FileTree) -> Result<()> {
    let cluster = bench.cluster;
    let crictl = crictl(cluster);
    let mut wanted = Wanted::all(&cluster.payload.binaries, "`[payload] binaries`");
    wanted.extend(crictl);
    wanted.extend(cluster.image.iter().flat_map(|image| Wanted::all(&image.binaries, "`[[image]] binaries`")));
    let programs = programs(bench, &wanted)?;
    for name in cluster.payload.binaries.iter().map(String::as_str).chain(crictl.map(|wanted| wanted.name)) {
        tree.insert(&format!("bin/{name}"), program(&programs, name)?)?;
    }
    for (path, entry) in bench.merged(&bench.sources.payload)?.iter() {
        if let Some(plugin) = path.strip_prefix(PACKAGED_CNI) {
            tree.insert(&format!("cni/bin/{plugin}"), entry.clone())?;
        }
    }
    let mut layout = Layout::new(bench.sources.epoch)?;
    for (image, packages) in cluster.image.iter().zip(&bench.sources.images) {
        layout.add(&self::image(bench, image, packages, &programs)?)?;
    }
    image_archive::add(bench, &mut layout)?;
    for (path, entry) in layout.finish()?.iter() {
        if !path.is_empty() {
            tree.insert(&format!("images/{path}"), entry.clone())?;
        }
    }
    tree.ensure_dir("manifests", 0o755)?;
    // Where the pod network installs plugins, the node mounts them over this directory.
    tree.ensure_dir("cni/bin", 0o755)
}

/// Fails unless every program of the payload finds what it needs on the root that the payload is mounted on.
fn prove_programs(bench: &Bench<'_>, kind: NodeKind, payload: &FileTree) -> Result<()> {
    let mut whole = os::root(bench, kind)?.tree;
    for (path, entry) in payload.iter().filter(|(path, _)| !path.is_empty()) {
        whole.insert(&format!("{}{path}", PAYLOAD_PREFIX.trim_start_matches('/')), entry.clone())?;
    }
    bench.prove_elf(&whole)
}

fn describe<'a>(bench: &'a Bench<'_>, kind: NodeKind) -> Result<Description<'a>> {
    let pods = || -> Result<Pods<'a>> {
        Ok(Pods {
            kubernetes: format!("v{}", bench.cluster.kubernetes.version),
            containerd: containerd_version(bench)?,
            images: images::offered(bench)?.into_iter().map(|image| image.reference).collect(),
            sandbox_image: &bench.cluster.kubernetes.pause_image,
        })
    };
    Ok(Description {
        schema: 1,
        architecture: source::golang::goarch(bench.architecture()),
        pods: (kind == NodeKind::Pods).then(pods).transpose()?,
    })
}

/// The upstream version of the containerd in the root. Its configuration was written for the version that the cluster
/// file declares, so the two must agree.
fn containerd_version(bench: &Bench<'_>) -> Result<String> {
    let declared = bench.cluster.containerd.version.to_string();
    if bench.sources.vendor.rootfs.is_some() {
        // Brought by the user in one of many forms, none of which says its version for certain.
        return Ok(declared);
    }
    let packaged = bench.sources.os.iter().find(|package| package.name == CONTAINERD);
    let compiled = bench.cluster.os.binaries.iter().any(|name| name == CONTAINERD);
    let source = bench.cluster.sources().find(|source| compiled && source.package == CONTAINERD);
    let found = match (packaged, source, vendor::brings_containerd(bench)?) {
        // Debian appends what it changed to the upstream version: 1.6.20~ds1-1.
        (Some(package), None, false) => version::upstream(&package.version),
        (None, Some(source), false) => &source.version,
        // Nor does a released program say it.
        (None, None, true) => return Ok(declared),
        (None, None, false) => {
            return Err(Failure::user("no containerd is in the root")
                .hint(
                    "add \"containerd\" to `[os] packages`, or a compiled one to `[os] binaries`, or bring a released \
                     one to /usr/bin as an input of kind \"tar\" or \"file\"",
                )
                .into());
        }
        _ => {
            return Err(Failure::user("the root has two containerds: a package, a compiled one, a released one")
                .hint("keep one: of `[os] packages`, of `[os] binaries`, of an input to /usr/bin")
                .into());
        }
    };
    let found = found.split(['~', '+']).next().unwrap_or(found);
    if found != declared && !found.starts_with(&format!("{declared}.")) {
        let message = format!("`[containerd] version` is {declared}, but the root has {found}");
        return Err(Failure::user(message)
            .hint("set it to that version: it decides the format of the configuration")
            .into());
    }
    Ok(found.to_owned())
}

fn image(bench: &Bench<'_>, image: &Image, packages: &[Deb], programs: &Programs) -> Result<oci::Image> {
    let of = || format!("assembling image {}", image.reference);
    let mut layers = Vec::new();
    let mut whole = FileTree::new();
    if !packages.is_empty() {
        let mut tree = bench.merged(packages).with_context(of)?;
        alternatives::link(&mut tree, &image.alternatives).with_context(of)?;
        let created_by = format!("imgbuild: packages {}", image.packages.join(" "));
        layers.push(Layer::write(bench.store, &tree, bench.sources.epoch, &created_by).with_context(of)?);
        whole = tree;
    }
    if !image.binaries.is_empty() {
        let mut tree = FileTree::new();
        for name in &image.binaries {
            let dir = image.binaries_to.trim_matches('/');
            let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
            let program = program(programs, name)?;
            whole.insert(&path, program.clone()).with_context(of)?;
            tree.insert(&path, program).with_context(of)?;
        }
        let created_by = format!("imgbuild: binaries {}", image.binaries.join(" "));
        layers.push(Layer::write(bench.store, &tree, bench.sources.epoch, &created_by).with_context(of)?);
    }
    elf::check(bench.store, &whole, &bench.target()?, &elf::Files::of(&|content| bench.origin(content)))
        .with_context(of)?;
    // An image of one program runs it; kubeadm's manifests name the program themselves.
    let entrypoint = match (&image.entrypoint[..], &image.binaries[..]) {
        ([], [only]) => vec![format!("{}/{only}", image.binaries_to.trim_end_matches('/'))],
        (given, _) => given.to_vec(),
    };
    let mut environment = image.env.clone();
    environment
        .entry("PATH".into())
        .or_insert_with(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    Ok(oci::Image {
        names: vec![image.reference.clone()],
        architecture: bench.architecture(),
        layers,
        process: Process { entrypoint, environment, ..Process::default() },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::assemble::testing::Lab;

    fn paths(tree: &FileTree) -> Vec<&str> {
        tree.iter().map(|(path, _)| path).filter(|path| !path.is_empty()).collect()
    }

    /// It asks for no program and no package: none of them is in the store.
    #[test]
    fn an_etcd_member_gets_firstboot_and_the_files_meant_for_it() {
        let mut lab = Lab::loong64();
        let text = lab.store.put_bytes(b"text").unwrap();
        for to in [
            "/etc/motd",
            "/opt/imgbuild/manifests/10-a.yaml",
            "/opt/imgbuild/cni/bin/calico",
            "/opt/imgbuild/bin/kubelet",
            "/opt/imgbuild/bin/tool",
            "/opt/imgbuild/share/note",
        ] {
            lab.sources.files.push((to.to_owned(), 0o644, text));
        }
        let tree = tree(&lab.bench(), NodeKind::Etcd, b"firstboot", &Manifests::default()).unwrap();
        assert_eq!(paths(&tree), ["bin", "bin/firstboot", "bin/tool", "payload.json", "share", "share/note"]);
        let description = tree.content("payload.json").unwrap().read(&lab.store).unwrap();
        let description: serde_json::Value = serde_json::from_slice(&description).unwrap();
        assert_eq!(description, serde_json::json!({"schema": 1, "architecture": "loong64"}));
    }

    #[test]
    fn one_containerd_is_wanted_wherever_it_is_from() {
        let mut lab = Lab::of(include_str!("../../../profiles/upstream-ha/cluster.toml"));
        let version = |lab: &Lab| containerd_version(&lab.bench()).map_err(|error| error.to_string());
        assert_eq!(version(&lab).unwrap_err(), "no containerd is in the root");
        lab.sources.files.push(("/usr/bin/containerd".to_owned(), 0o755, Digest::of(b"released")));
        assert_eq!(version(&lab).unwrap(), "2.1");
        let deb = |version: &str| Deb {
            name: "containerd".to_owned(),
            version: version.to_owned(),
            object: Digest::of(b"containerd.deb"),
        };
        lab.sources.os = vec![deb("2.1.9~ds1-1")];
        assert!(version(&lab).unwrap_err().starts_with("the root has two containerds"));
        lab.sources.files.clear();
        assert_eq!(version(&lab).unwrap(), "2.1.9");
        lab.sources.os = vec![deb("1.6.20~ds1-1")];
        assert_eq!(version(&lab).unwrap_err(), "`[containerd] version` is 2.1, but the root has 1.6.20");
    }

    #[test]
    fn a_node_that_runs_pods_gets_what_the_contract_shows() {
        let mut lab = Lab::loong64();
        // The one image of packages alone would be empty.
        lab.cluster.image.retain(|image| !image.binaries.is_empty());
        lab.compiled();
        let tree = tree(&lab.bench(), NodeKind::Pods, b"firstboot", &Manifests::default()).unwrap();
        let paths = paths(&tree);
        for path in ["bin/kubelet", "bin/crictl", "cni/bin", "images/index.json", "manifests", "payload.json"] {
            assert!(paths.contains(&path), "no {path} in {paths:?}");
        }
        let description = tree.content("payload.json").unwrap().read(&lab.store).unwrap();
        let description: serde_json::Value = serde_json::from_slice(&description).unwrap();
        assert_eq!(description["kubernetes"], "v1.20.2");
        assert_eq!(description["containerd"], "1.6.20");
        assert_eq!(description["sandbox_image"], "k8s.gcr.io/pause:3.2");
        assert_eq!(description["images"].as_array().unwrap().len(), lab.cluster.image.len());
    }
}

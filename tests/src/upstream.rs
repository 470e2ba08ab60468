// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hosts that `profiles/upstream-ha` takes everything from, played on loopback: dl.k8s.io, GitHub's releases and
//! raw files on a web server, registry.k8s.io and docker.io in a real registry. Addresses, redirects, archives, lists
//! of checksums and indices of images have the form of the real ones; in place of every program is a stand-in. Versions
//! are those that a cluster file names, everything else is written down here, so that a cluster file that is wrong
//! about it finds nothing.
//!
//! Sources, at the releases that the cluster file names: Kubernetes' `release.go` (k8s.io/release), cri-tools'
//! `hack/release.sh`, containerd's `Makefile` (`pack_release`), runc's `script/release_build.sh` and `release_sign.sh`,
//! the CNI plugins' `.github/workflows/release.yaml`, etcd's `scripts/release.sh`, Calico's `manifests/calico.yaml`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::archive::hex;
use crate::registry::{Registry, Variant, layout_of};
use crate::stand_in::{pack, program};
use crate::web::Web;

/// Hosts of files.
const HOSTS: [&str; 3] = ["dl.k8s.io", "github.com", "raw.githubusercontent.com"];
/// Registries.
const REGISTRIES: [&str; 2] = ["registry.k8s.io", "docker.io"];

/// Images of Kubernetes' own version.
const CONTROL_PLANE: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler"];
/// Further images that kubeadm 1.32 asks for (`CoreDNSVersion` and `PauseVersion` in cmd/kubeadm/app/constants).
const OF_KUBEADM: [&str; 2] = ["coredns/coredns:v1.11.3", "pause:3.10"];
/// Images of Calico's manifest.
const CALICO: [&str; 3] = ["cni", "kube-controllers", "node"];

/// What is in an archive of CNI plugins.
const PLUGINS: [&str; 20] = [
    "LICENSE",
    "README.md",
    "bandwidth",
    "bridge",
    "dhcp",
    "dummy",
    "firewall",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
];

/// A manifest in the shape of Calico's, with the images of 3.26, without the pods of its Deployment.
const MANIFEST: &str = include_str!("../../builder/tests/data/calico.yaml");
/// These pods.
const CONTROLLERS: &str = "  template:
    spec:
      containers:
        - name: calico-kube-controllers
          image: docker.io/calico/kube-controllers:v3.26.1
          imagePullPolicy: IfNotPresent
";

/// A file that a cluster file names by its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Name of the input.
    pub input: String,
    /// The address.
    pub url: String,
    /// What the cluster file says that it is.
    pub sha256: String,
    /// Addresses of lists of checksums.
    pub checksums: Vec<String>,
}

/// All files that a cluster file names by address.
///
/// # Panics
/// If one of them has no `sha256`.
pub fn pins(cluster: &str) -> Vec<Pin> {
    let table: toml::Table = cluster.parse().unwrap();
    let text = |input: &toml::Value, key: &str| {
        let value = input.get(key).and_then(toml::Value::as_str);
        value.unwrap_or_else(|| panic!("this input has no `{key}`: {input:?}")).to_owned()
    };
    let pin = |input: &toml::Value| {
        let lists = input.get("checksums").and_then(toml::Value::as_array).into_iter().flatten();
        Pin {
            input: text(input, "name"),
            url: text(input, "url"),
            sha256: text(input, "sha256"),
            checksums: lists.map(|list| list.as_str().unwrap().to_owned()).collect(),
        }
    };
    let inputs = table["input"].as_array().unwrap().iter();
    inputs.filter(|input| input.get("url").is_some()).map(pin).collect()
}

/// The hosts. They end with this value.
#[derive(Debug)]
pub struct Upstream {
    registry: Registry,
    web: Web,
    /// What is published, by address.
    files: BTreeMap<String, Vec<u8>>,
    /// References of images.
    images: Vec<String>,
    dir: tempfile::TempDir,
}

impl Upstream {
    /// With the releases that `cluster`, the text of a cluster file, names the versions of.
    pub fn new(cluster: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("registry"));
        let mut upstream = Self { registry, web: Web::serve(), files: BTreeMap::new(), images: vec![], dir };
        let pins = pins(cluster);
        let version = |input: &str| {
            let pin = pins.iter().find(|pin| pin.input == input);
            version(&pin.unwrap_or_else(|| panic!("the cluster file has no input `{input}`")).url)
        };
        upstream.kubernetes(&version("kubeadm"));
        upstream.crictl(&version("crictl"));
        upstream.containerd(&version("containerd"));
        upstream.runc(&version("runc"));
        upstream.cni_plugins(&version("cni-plugins"));
        upstream.etcd(&version("etcd"));
        upstream.calico(&version("calico-manifest"));
        upstream
    }

    /// Options of imgbuild with which it finds these hosts in place of the real ones.
    pub fn mirrors(&self) -> Vec<String> {
        let files = HOSTS.map(|host| format!("{host}={}/{host}", self.web.url));
        let images = REGISTRIES.map(|host| format!("{host}=http://{}/{host}", self.registry.host));
        files.into_iter().chain(images).flat_map(|mirror| ["--mirror".to_owned(), mirror]).collect()
    }

    /// The same cluster file with the checksums of what is here, in place of those of the real releases.
    pub fn pinned(&self, cluster: &str) -> String {
        let mut text = cluster.to_owned();
        for pin in pins(cluster) {
            assert_eq!(text.matches(&pin.sha256).count(), 1, "one file with that checksum: {pin:?}");
            text = text.replace(&pin.sha256, &self.sha256(&pin.url));
        }
        text
    }

    /// What is published at an address.
    pub fn file(&self, url: &str) -> &[u8] {
        self.files.get(url).unwrap_or_else(|| panic!("nobody publishes {url}; there are {:#?}", self.files.keys()))
    }

    /// Its SHA-256.
    pub fn sha256(&self, url: &str) -> String {
        hex(self.file(url))
    }

    /// References of all images that are there.
    pub fn images(&self) -> &[String] {
        &self.images
    }

    /// The digest of the manifest of each image for linux/amd64, as skopeo finds it in the image's index.
    pub fn digests(&self) -> BTreeMap<String, String> {
        let digest = |reference: &String| {
            let index: Value = serde_json::from_str(&self.registry.raw(reference)).unwrap();
            let entries = index["manifests"].as_array().unwrap_or_else(|| panic!("{reference} is no index: {index}"));
            let entry = entries.iter().find(|entry| is_ours(&entry["platform"]));
            let entry = entry.unwrap_or_else(|| panic!("{reference} is not for us: {index}"));
            (reference.clone(), entry["digest"].as_str().unwrap().to_owned())
        };
        self.images.iter().map(digest).collect()
    }

    /// Publishes a file where its host sends those on who ask for this address.
    pub fn publish(&mut self, url: &str, bytes: impl Into<Vec<u8>>) {
        let bytes: Vec<u8> = bytes.into();
        let path = url.strip_prefix("https://").expect("an address by https");
        let (host, rest) = path.split_once('/').expect("an address with a path");
        let file = rest.rsplit('/').next().unwrap_or_default();
        let elsewhere = match host {
            "dl.k8s.io" => Some(format!("cdn.dl.k8s.io/{rest}")),
            // By numbers, and with a signature: the file's name is in a parameter alone.
            "github.com" => {
                let asset = format!("github-production-release-asset/{}", &hex(url.as_bytes())[..32]);
                let query = format!("sp=r&sig=x%3D&rscd=attachment%3B+filename%3D{file}");
                Some(format!("release-assets.githubusercontent.com/{asset}?{query}"))
            }
            _ => None,
        };
        match elsewhere {
            Some(elsewhere) => {
                self.web.put(&elsewhere, bytes.clone());
                self.web.redirect(path, &format!("{}/{elsewhere}", self.web.url));
            }
            None => self.web.put(path, bytes.clone()),
        }
        self.files.insert(url.to_owned(), bytes);
    }

    /// Publishes a file of a release on GitHub with a list of its checksum beside it, whose name has `suffix`.
    fn release(&mut self, project: &str, version: &str, file: &str, bytes: Vec<u8>, (suffix, list): (&str, String)) {
        let folder = format!("https://github.com/{project}/releases/download/v{version}");
        self.publish(&format!("{folder}/{file}{suffix}"), list);
        self.publish(&format!("{folder}/{file}"), bytes);
    }

    /// An archive of programs and of texts that lie among them: `paths` as GNU tar is given them.
    fn archive(&self, name: &str, files: &[String], paths: &[&str]) -> Vec<u8> {
        let (folder, archive) = (self.dir.path().join(format!("{name}-files")), self.dir.path().join(name));
        for file in files {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let own = path.file_name().unwrap().to_str().unwrap();
            let is_text = own.ends_with(".md") || own == "LICENSE";
            fs::write(&path, if is_text { b"text\n".to_vec() } else { program(own) }).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(if is_text { 0o644 } else { 0o755 })).unwrap();
        }
        pack(&folder, &archive, paths);
        fs::read(archive).unwrap()
    }

    fn kubernetes(&mut self, version: &str) {
        for name in ["kubeadm", "kubectl", "kubelet"] {
            let url = format!("https://dl.k8s.io/release/v{version}/bin/linux/amd64/{name}");
            // The checksum alone, without an end of line.
            self.publish(&format!("{url}.sha256"), hex(&program(name)));
            self.publish(&url, program(name));
        }
        for name in CONTROL_PLANE {
            self.image("registry.k8s.io", &format!("{name}:v{version}"), &format!("usr/local/bin/{name}"));
        }
        for name in OF_KUBEADM {
            let own = name.split([':', '/']).next().unwrap();
            self.image("registry.k8s.io", name, own);
        }
    }

    fn crictl(&mut self, version: &str) {
        let file = format!("crictl-v{version}-linux-amd64.tar.gz");
        let bytes = self.archive(&file, &["crictl".to_owned()], &["crictl"]);
        let list = (".sha256", hex(&bytes));
        self.release("kubernetes-sigs/cri-tools", version, &file, bytes, list);
    }

    fn containerd(&mut self, version: &str) {
        let file = format!("containerd-{version}-linux-amd64.tar.gz");
        let programs = ["containerd", "containerd-shim-runc-v2", "containerd-stress", "ctr"];
        let bytes = self.archive(&file, &programs.map(|name| format!("bin/{name}")), &["bin"]);
        let list = (".sha256sum", line(&bytes, &file));
        self.release("containerd/containerd", version, &file, bytes, list);
    }

    /// One list for all machines and for the source, signed in the clear.
    fn runc(&mut self, version: &str) {
        let folder = format!("https://github.com/opencontainers/runc/releases/download/v{version}");
        let machines = ["386", "amd64", "arm64", "armel", "armhf", "loong64", "ppc64le", "riscv64", "s390x", "tar.xz"];
        let content = |machine: &str| match machine {
            "amd64" => program("runc"),
            other => format!("runc of {other}").into_bytes(),
        };
        let lines: String = machines.map(|machine| line(&content(machine), &format!("runc.{machine}"))).concat();
        let list = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{lines}-----BEGIN PGP SIGNATURE-----\n\n\
             iHUEARYKAB0WIQQ0\n=AAAA\n-----END PGP SIGNATURE-----\n"
        );
        self.publish(&format!("{folder}/runc.sha256sum"), list);
        self.publish(&format!("{folder}/runc.amd64"), program("runc"));
    }

    fn cni_plugins(&mut self, version: &str) {
        let file = format!("cni-plugins-linux-amd64-v{version}.tgz");
        let bytes = self.archive(&file, &PLUGINS.map(str::to_owned), &["."]);
        let list = (".sha256", line(&bytes, &file));
        self.release("containernetworking/plugins", version, &file, bytes, list);
    }

    /// One list for all machines; in the archive, a folder.
    fn etcd(&mut self, version: &str) {
        let top = format!("etcd-v{version}-linux-amd64");
        let names = ["README.md", "Documentation/README.md", "etcd", "etcdctl", "etcdutl"];
        let file = format!("{top}.tar.gz");
        let bytes = self.archive(&file, &names.map(|name| format!("{top}/{name}")), &[top.as_str()]);
        let others = ["darwin-amd64.zip", "linux-arm64.tar.gz", "linux-ppc64le.tar.gz", "linux-s390x.tar.gz"];
        let others = others.map(|other| line(other.as_bytes(), &format!("etcd-v{version}-{other}")));
        let folder = format!("https://github.com/etcd-io/etcd/releases/download/v{version}");
        self.publish(&format!("{folder}/SHA256SUMS"), format!("{}{}", line(&bytes, &file), others.concat()));
        self.publish(&format!("{folder}/{file}"), bytes);
    }

    /// Nothing is published beside the manifest.
    fn calico(&mut self, version: &str) {
        let url = format!("https://raw.githubusercontent.com/projectcalico/calico/v{version}/manifests/calico.yaml");
        // Of the init containers, one had an image of its own; all have one of the others' since.
        let text = format!("{MANIFEST}{CONTROLLERS}").replace("calico/pod2daemon-flexvol:", "calico/node:");
        self.publish(&url, text.replace(":v3.26.1", &format!(":v{version}")));
        for name in CALICO {
            self.image("docker.io", &format!("calico/{name}:v{version}"), &format!("usr/bin/calico-{name}"));
        }
    }

    /// Pushes an image for several machines, that for ours with a program at `path`. Kubernetes' images are listed in
    /// Docker's form, and that of the sandbox has some for Windows besides.
    fn image(&mut self, registry: &str, name: &str, path: &str) {
        let reference = format!("{registry}/{name}");
        let mut platforms = vec![
            json!({ "architecture": "amd64", "os": "linux" }),
            json!({ "architecture": "arm64", "os": "linux", "variant": "v8" }),
        ];
        if name.starts_with("pause:") {
            let windows = ["10.0.17763.5820", "10.0.20348.2461"];
            let windows = windows.map(|of| json!({ "architecture": "amd64", "os": "windows", "os.version": of }));
            platforms.extend(windows);
        }
        let variant = |platform: Value| {
            let other = || format!("{reference} for {platform}").into_bytes();
            let content = if is_ours(&platform) { program(&reference) } else { other() };
            Variant { platform, files: vec![(path.to_owned(), 0o755, content)] }
        };
        let variants: Vec<Variant> = platforms.into_iter().map(variant).collect();
        let layout = self.dir.path().join(format!("layout-{}", self.images.len()));
        layout_of(&layout, &variants);
        let format = if registry == "registry.k8s.io" { "v2s2" } else { "oci" };
        self.registry.push_as(&layout, &reference, format);
        self.images.push(reference);
    }
}

/// The version in the address of a release: `1.9.1` of `…/download/v1.9.1/…`.
fn version(url: &str) -> String {
    let version = |part: &str| {
        let rest = part.strip_prefix('v')?;
        rest.starts_with(|c: char| c.is_ascii_digit()).then(|| rest.to_owned())
    };
    url.split('/').find_map(version).unwrap_or_else(|| panic!("no version in {url}"))
}

/// Whether an image for this platform is for the nodes.
fn is_ours(platform: &Value) -> bool {
    platform["os"] == "linux" && platform["architecture"] == "amd64"
}

/// A line of a list of checksums, as sha256sum writes it.
fn line(bytes: &[u8], name: &str) -> String {
    format!("{}  {name}\n", hex(bytes))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a cluster file may say, as types. Every field's documentation begins with "Required." or "Optional, default
//! …"; `docs/cluster-file.md` is generated from these comments by a test, so keep them exact.
//! Decoding is `decode.rs` and `sections.rs`, cross-checks are `validate.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

pub use crate::node::{Architecture, ClusterDns, EncryptionAlgorithm, NetworkPlugin, ProxyMode, Role};
pub use crate::objects::{ObjectName, ObjectPath, Segment, Value, show_path};
use crate::signing::PublicKey;
use crate::text;
use crate::version::Version;

/// A valid cluster file. [`Cluster::parse`] is the only way to make one from text.
///
/// TOML: the top level
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Required. Version of this format; always 1.
    pub schema: u32,
    /// Required. `[cluster]`: the cluster's name.
    pub cluster: ClusterSection,
    /// Required. `[kubernetes]`: version and add-ons.
    pub kubernetes: KubernetesSection,
    /// Required. `[containerd]`: the container runtime.
    pub containerd: ContainerdSection,
    /// Required. `[network]`: subnets, servers of the room, pod network.
    pub network: NetworkSection,
    /// Optional, default as each of its keys. `[etcd]`: timing and size of etcd.
    pub etcd: EtcdSection,
    /// Optional, default `kind = "none"`. `[load_balancer]`: how masters are reached.
    pub load_balancer: LoadBalancerSection,
    /// Optional, default as each of its keys. `[disk]`: sizes of the disk image and its partitions.
    pub disk: DiskSection,
    /// Required. `[os]`: the read-only root.
    pub os: OsSection,
    /// Optional, default empty. `[payload]`: what lies at /opt/imgbuild besides the images.
    pub payload: PayloadSection,
    /// Required. `[[input]]`: where packages, binaries and files come from.
    pub input: Vec<Input>,
    /// Optional, default none. `[[image]]`: container images assembled by imgbuild.
    pub image: Vec<Image>,
    /// Optional, default none. `[[addon]]`: manifests that are applied to the cluster once it stands, in the file's order.
    pub addon: Vec<Addon>,
    /// Required. `[[node]]`: the machines, at least one. Append new ones at the end: with the `bridge` plugin a node's
    /// place decides its pod subnet.
    pub node: Vec<NodeSection>,
}

/// The cluster's name.
///
/// TOML: `[cluster]`
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterSection {
    /// Required. A DNS label: a-z, 0-9 and `-`.
    pub name: String,
    /// Optional, default `"7d"`. How long the credential that a node joins with is valid, from the making of its seed;
    /// 1h to 365d. A node that is switched on later needs a new seed.
    pub join_validity: Duration,
    /// Optional, default none. Public key of minisign, the second line of `minisign.pub`: `"RWQ…"`. Installers take nothing from a
    /// medium that is not signed with it, and `imgbuild build` makes no medium without `--sign` (docs/provenance.md).
    pub signing_key: Option<PublicKey>,
}

/// Kubernetes.
///
/// TOML: `[kubernetes]`
#[derive(Debug, Clone, PartialEq)]
pub struct KubernetesSection {
    /// Required. Version of kubeadm, kubelet, kubectl and the control plane, all the same: `"1.20.2"`.
    pub version: Version,
    /// Required. Registry prefix that the names of the control-plane images begin with: `"k8s.gcr.io"`.
    pub image_repository: String,
    /// Required. Full reference of the sandbox image: `"k8s.gcr.io/pause:3.2"`.
    pub pause_image: String,
    /// Optional, default `"iptables"`. kube-proxy mode: `"iptables"`, `"ipvs"` (deprecated in 1.35), or `"nftables"` (1.31
    /// and later).
    pub proxy_mode: ProxyMode,
    /// Optional, default `"coredns"`. Cluster DNS: `"coredns"` or `"none"`.
    pub dns: ClusterDns,
    /// Optional, default 6443. Port the API servers bind.
    pub apiserver_port: u16,
    /// Optional, default none. Further names and addresses in the API server's certificate; names and addresses of
    /// the nodes and of the load balancer are always in it.
    pub cert_sans: Vec<String>,
    /// Optional, default `"4m"`. How long kubeadm waits for the control plane; raise it for slow or emulated machines.
    pub control_plane_timeout: Duration,
    /// Optional, default what kubeadm does (10 s, and every second whether the API server is ready). How often kubelet
    /// asks the control plane's pods whether they are well. Raise it for slow or emulated machines: a pod that gives no
    /// good answer eight times is killed.
    pub probe_period: Option<Duration>,
    /// Optional, default `"RSA-2048"`. Keys that kubeadm makes: `"RSA-2048"` or `"ECDSA-P256"`, which is faster to make and
    /// to use, a lot so on emulated machines. The cluster's CAs are always ECDSA P-256.
    pub encryption_algorithm: EncryptionAlgorithm,
    /// Optional, default none. Further arguments of kube-apiserver: `{ "event-ttl" = "2h" }`.
    pub apiserver_extra_args: BTreeMap<String, String>,
    /// Optional, default none. Further arguments of kube-controller-manager.
    pub controller_manager_extra_args: BTreeMap<String, String>,
    /// Optional, default none. Further arguments of kube-scheduler.
    pub scheduler_extra_args: BTreeMap<String, String>,
    /// Optional, default none. Further arguments of kubelet, on every node.
    pub kubelet_extra_args: BTreeMap<String, String>,
}

/// The container runtime.
///
/// TOML: `[containerd]`
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerdSection {
    /// Required. Version, or its beginning, of the containerd that is packaged, compiled or brought: `"1.6"`. Decides the
    /// format of its configuration; the build fails when the package is another.
    pub version: Version,
}

/// Networks.
///
/// TOML: `[network]`
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkSection {
    /// Required. The subnet all nodes are in: `"10.0.2.0/24"`.
    pub node_subnet: IpNet,
    /// Optional, default none. Subnet of the other IP family that all nodes are in as well; needed when pods and services
    /// have two families.
    pub secondary_node_subnet: Option<IpNet>,
    /// Optional, default none. Default gateway, inside `node_subnet`.
    pub gateway: Option<IpAddr>,
    /// Optional, default none. DNS servers of the room. Without any, CoreDNS knows the cluster's own names and answers at
    /// once that there are no others; where servers are added later, it keeps doing so until its ConfigMap gets a `forward`.
    pub dns_servers: Vec<IpAddr>,
    /// Optional, default none. NTP servers of the room, names or addresses.
    pub ntp_servers: Vec<String>,
    /// Required. Pod networks, one per IP family: `["10.200.0.0/16"]`, that of `node_subnet` first. Each node gets a /24
    /// (IPv6: a /64) of it. The plugin `bridge` serves one family.
    pub pod_subnets: Vec<IpNet>,
    /// Required. Service networks, one per IP family: `["10.201.0.0/16"]`.
    pub service_subnets: Vec<IpNet>,
    /// Optional, default `"cluster.local"`. DNS domain of the cluster.
    pub dns_domain: String,
    /// Required. Pod network: `"bridge"` (no images needed, but the package `nftables`), `"calico"` (you bring the
    /// `calico.yaml` of a release as a `file` input below `/opt/imgbuild/manifests/`, imgbuild sets it to the cluster), or
    /// `"manifest"` (you bring your own, and it is used as it is).
    pub plugin: NetworkPlugin,
    /// Optional, default the kernel's, or what Calico finds out. MTU of pod interfaces, and of Calico's tunnels.
    pub mtu: Option<u32>,
    /// Optional, default all of its defaults. The table `[network.calico]`, for the plugin `"calico"` alone.
    pub calico: Option<CalicoSection>,
}

/// What imgbuild sets in Calico's manifest; `pod_subnets` and `mtu` of `[network]` are set in it too.
///
/// TOML: `[network.calico]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalicoSection {
    /// Optional, default `"vxlan"`. How packets of pods travel between nodes: `"vxlan"` (in UDP, port 4789), `"ipip"` (in IP,
    /// protocol 4, which virtual switches often drop), or `"none"` (as they are, where the network passes addresses that it
    /// does not know). The last two need BGP, TCP port 179. Calico looks at it when the cluster is made, and never again.
    pub encapsulation: Encapsulation,
    /// Optional, default `"kubernetes-internal-ip"`. How Calico finds the address of a node: that, which is `address` of
    /// the node; or as Calico has it, `"first-found"`, `"interface=eth.*"`, `"skip-interface=ib.*"`, `"cidr=10.0.2.0/24"`,
    /// `"can-reach=10.0.2.1"`.
    pub ip_autodetection: String,
}

/// How Calico sends packets of pods from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encapsulation {
    /// In UDP.
    Vxlan,
    /// In IP.
    Ipip,
    /// As they are.
    None,
}

impl Default for CalicoSection {
    fn default() -> Self {
        Self { encapsulation: Encapsulation::Vxlan, ip_autodetection: "kubernetes-internal-ip".to_owned() }
    }
}

/// External etcd; its members are the nodes with the role `etcd`.
///
/// TOML: `[etcd]`
#[derive(Debug, Clone, PartialEq)]
pub struct EtcdSection {
    /// Optional, default `"100ms"`. Heartbeat interval.
    pub heartbeat: Duration,
    /// Optional, default `"1s"`. Election timeout, at least five heartbeats.
    pub election: Duration,
    /// Optional, default `"2GiB"`. Size of the database at which etcd refuses writes; at most 8GiB.
    pub quota: u64,
}

/// How masters are reached.
///
/// TOML: `[load_balancer]`
#[derive(Debug, Clone, PartialEq)]
pub enum LoadBalancerSection {
    /// `kind = "none"`: a single master, reached directly.
    None,
    /// `kind = "external"`: a load balancer of the room.
    External {
        /// Required. Where it listens: `"10.0.0.5:6443"` or `"api.example.org:6443"`.
        endpoint: String,
    },
    /// `kind = "keepalived"`: haproxy and keepalived on the masters; `[os] packages` must have `haproxy`, `keepalived` and
    /// `curl`.
    Keepalived {
        /// Required. The virtual address, inside `node_subnet`, of no node.
        vip: IpAddr,
        /// Optional, default 8443. haproxy's port, never the API server's.
        port: u16,
        /// Optional, default derived from the cluster's id. VRRP virtual router id, 1 to 255, unique in the layer-2
        /// segment.
        vrid: Option<u8>,
        /// Optional, default `"2s"`. How often haproxy and keepalived ask whether the API servers serve; 1s to 60s. Raise
        /// it for slow or emulated machines.
        check_interval: Duration,
    },
}

/// Sizes, as `"512MiB"` or `"16GiB"`.
///
/// TOML: `[disk]`
#[derive(Debug, Clone, PartialEq)]
pub struct DiskSection {
    /// Optional, default `"16GiB"`. Size of the disk image. A larger disk is used to its end.
    pub size: u64,
    /// Optional, default `"256MiB"`. EFI system partition; holds two kernels.
    pub esp_size: u64,
    /// Optional, default `"2GiB"`. Each of the two root partitions.
    pub root_size: u64,
    /// Optional, default `"3GiB"`. Each of the two payload partitions.
    pub payload_size: u64,
}

/// The read-only root, made from packages or from a vendor's root filesystem.
///
/// TOML: `[os]`
#[derive(Debug, Clone, PartialEq)]
pub struct OsSection {
    /// Required. `"debian"` or `"kylin"`; decides which rootfs overlays apply.
    pub distribution: Distribution,
    /// Required. `"amd64"` or `"loong64"`.
    pub architecture: Architecture,
    /// Optional, default none. Packages of the root, from the first `deb` input; what they depend on comes by itself. Without
    /// any, an input of kind `rootfs` must bring the root, and with one there can be none.
    pub packages: Vec<String>,
    /// Optional, default none. Binaries of the `source` inputs that go to /usr/bin of nodes that are
    /// master or worker. With `"containerd"`, its unit comes too.
    pub binaries: Vec<String>,
    /// Optional, default none. Links that update-alternatives would make: `"/usr/sbin/iptables" = "/usr/sbin/iptables-nft"`.
    pub alternatives: BTreeMap<String, String>,
    /// Optional, default none. Appended to the kernel command line.
    pub kernel_args: Vec<String>,
}

/// Distribution of the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Debian.
    Debian,
    /// Kylin Server.
    Kylin,
}

/// What lies at /opt/imgbuild besides the images, on nodes that are master or worker.
///
/// TOML: `[payload]`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PayloadSection {
    /// Optional, default none. Binaries of the `source` inputs that go to /opt/imgbuild/bin.
    pub binaries: Vec<String>,
    /// Optional, default none. Packages whose CNI plugins (/usr/lib/cni) go to /opt/imgbuild/cni/bin and whose programs
    /// go to /opt/imgbuild/bin.
    pub packages: Vec<String>,
}

/// Where something comes from.
///
/// TOML: `[[input]]`
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// `kind = "deb"`: a Debian archive, on the mirror the build is given.
    Deb(DebInput),
    /// `kind = "source"`: programs compiled from a distribution's source package.
    Source(SourceInput),
    /// `kind = "file"`: a file.
    File(FileInput),
    /// `kind = "tar"`: files of an archive.
    Tar(TarInput),
    /// `kind = "rootfs"`: a vendor's root filesystem.
    Rootfs(RootfsInput),
    /// `kind = "rpm"`: RPM packages, beside the cluster file.
    Rpm(RpmInput),
    /// `kind = "rpm-repository"`: RPM packages of a repository.
    RpmRepository(RpmRepositoryInput),
    /// `kind = "image-archive"`: container images in an archive.
    ImageArchive(ImageArchiveInput),
    /// `kind = "oci"`: container images of a registry.
    Oci(OciInput),
}

/// A Debian archive.
///
/// TOML: `[[input]]` with `kind = "deb"`
#[derive(Debug, Clone, PartialEq)]
pub struct DebInput {
    /// Required. Name of the input, unique.
    pub name: String,
    /// Required. Suites, the first is the main one: `["bookworm", "bookworm-security"]`.
    pub suites: Vec<String>,
    /// Optional, default `["main"]`. Archive components.
    pub components: Vec<String>,
    /// Optional, default `true`. Whether a suite past the date in its Release file is refused. `false` for frozen
    /// snapshots, and for a suite whose archive does not renew it every week.
    pub check_valid_until: bool,
}

/// Programs compiled from a distribution's source package.
///
/// TOML: `[[input]]` with `kind = "source"`
#[derive(Debug, Clone, PartialEq)]
pub struct SourceInput {
    /// Required. Name of the input, unique.
    pub name: String,
    /// Required. Suite that has the source package: `"bookworm"`.
    pub suite: String,
    /// Required. Name of the source package: `"kubernetes"`.
    pub package: String,
    /// Required. What the package's upstream version begins with: `"1.20.2"`.
    pub version: String,
    /// Required. How it is compiled, by the name of a recipe built into imgbuild: `"kubernetes-1.20"` or
    /// `"containerd-1.6"`. The recipe brings its toolchain, from the `deb` input that has the suite.
    pub recipe: String,
}

/// A file.
///
/// TOML: `[[input]]` with `kind = "file"`
#[derive(Debug, Clone, PartialEq)]
pub struct FileInput {
    /// Required. Name of the input, unique.
    pub name: String,
    /// The keys `path` or `url`, `sha256` and `checksums`: where the file comes from, see below.
    pub from: FileOrigin,
    /// Required. Absolute path on the node. Below /opt/imgbuild it becomes part of the payload, elsewhere of the root.
    pub to: String,
    /// Optional, default `"0644"`. Mode, in octal.
    pub mode: u32,
}

/// Files of an archive (`.tar`, `.tar.gz`, `.tgz`, `.tar.xz` or `.tar.zst`), such as a released tarball of programs.
/// Owners in it do not matter: everything belongs to root.
///
/// TOML: `[[input]]` with `kind = "tar"`
#[derive(Debug, Clone, PartialEq)]
pub struct TarInput {
    /// Required. Name of the input, unique.
    pub name: String,
    /// The keys `path` or `url`, `sha256` and `checksums`: where the archive comes from, see below.
    pub from: FileOrigin,
    /// Optional, default everything. What is taken, by path in the archive: of a directory what is in it, of a file the file:
    /// `["kubernetes/server/bin/kubeadm"]`.
    pub members: Vec<String>,
    /// Required. Absolute directory on the node. Below /opt/imgbuild it becomes part of the payload, elsewhere of the root.
    pub to: String,
}

/// A vendor's root filesystem: an installed system as an archive (`.tar`, `.tar.gz`, `.tgz`, `.tar.xz` or `.tar.zst`),
/// its kernel included. Either `/` is its root, or it holds one OCI image (an OCI layout, or as `docker save` writes
/// it). docs/kylin.md says how to make one, docs/os-layer.md what becomes of it.
///
/// TOML: `[[input]]` with `kind = "rootfs"`
#[derive(Debug, Clone, PartialEq)]
pub struct RootfsInput {
    /// Required. Name of the input, unique.
    pub name: String,
    /// The keys `path` or `url`, `sha256` and `checksums`: where the archive comes from, see below.
    pub from: FileOrigin,
    /// Optional, default the only one. Release of the kernel to boot, where there are several:
    /// `"6.6.0-32.7.v2505.ky11.loongarch64"`.
    pub kernel: Option<String>,
    /// Optional, default none. Absolute directories whose programs are for other machines and stay as they are, such as the
    /// libraries of a binary translator. Everywhere else such a program fails the build.
    pub foreign: Vec<String>,
}

/// RPM packages that are laid over the root filesystem. Their scripts do not run, and what they depend on does not come by
/// itself.
///
/// TOML: `[[input]]` with `kind = "rpm"`
#[derive(Debug, Clone, PartialEq)]
pub struct RpmInput {
    /// Required. Name of the input, unique.
    pub name: String,
    /// Required. Paths of `.rpm` files, relative to the cluster file.
    pub paths: Vec<String>,
    /// Optional, default none. Paths of OpenPGP public keys, relative to the cluster file. With them, every package must be
    /// signed by one; without, the lock alone says what the packages are.
    pub keys: Vec<String>,
}

/// RPM packages of a repository as `dnf` uses it (`repodata/repomd.xml`), laid over the root filesystem as those of `kind = "rpm"`
/// are. Of each name the highest version for the architecture is taken. What they require does not come by itself: `imgbuild lock` says
/// which further packages of the repository have it.
///
/// TOML: `[[input]]` with `kind = "rpm-repository"`
#[derive(Debug, Clone, PartialEq)]
pub struct RpmRepositoryInput {
    /// Required. Name of the input, unique. `--mirror NAME=URL` takes the packages from another place than `url`.
    pub name: String,
    /// Required. The folder that has `repodata/`, as `baseurl` of a `.repo` file without variables in it: `http://`, `https://` or
    /// `file://`.
    pub url: String,
    /// Required. Names of packages, each perhaps with a version: `"haproxy"`, `"haproxy=2.6.6"`, `"haproxy=2.6.6-1.ky11"`,
    /// `"haproxy=1:2.6.6-1.ky11"`.
    pub packages: Vec<String>,
    /// Optional, default none. Paths of OpenPGP public keys, relative to the cluster file. Without, the lock alone says what the
    /// packages are.
    pub keys: Vec<String>,
    /// Optional, default `"both"` where there are `keys`. What one of them must have signed: `"packages"` (`gpgcheck` of a `.repo`
    /// file), `"index"` (`repo_gpgcheck`: `repodata/repomd.xml.asc`), or `"both"`.
    pub signed: Option<RpmSigned>,
}

/// What of an RPM repository is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RpmSigned {
    /// Each package.
    Packages,
    /// The index, which has the SHA-256 of every package.
    Index,
    /// Each package, and the index.
    Both,
}

/// Container images in an archive (`.tar`, `.tar.gz`, `.tgz`, `.tar.xz` or `.tar.zst`) as `docker save` writes it, or
/// with an OCI layout in it; it may hold many images.
///
/// TOML: `[[input]]` with `kind = "image-archive"`
#[derive(Debug, Clone, PartialEq)]
pub struct ImageArchiveInput {
    /// Required. Name of the input, unique.
    pub name: String,
    /// The keys `path` or `url`, `sha256` and `checksums`: where the archive comes from, see below.
    pub from: FileOrigin,
    /// Optional, default none. Further names of images: the name somebody will ask for, and the one in the archive:
    /// `{ "docker.io/calico/cni:v3.26.1" = "lcr.loongnix.cn/calico/cni:3.26.1" }`.
    pub names: BTreeMap<String, String>,
}

/// Where a file comes from, and what says that it is the right one. A file by `url` is downloaded and compared with all
/// that is said of it when it is locked; from then on the lock's SHA-256 counts. Where nothing is said of it,
/// `https://` alone vouches for it the first time, and `imgbuild lock` warns; `http://` does not.
///
/// TOML: `[[input]]` with `kind = "file"`, `"tar"`, `"rootfs"` or `"image-archive"`: where it comes from
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FileOrigin {
    /// Optional, default none. Path, relative to the cluster file. One of `path` and `url` must be there, and only one.
    pub path: Option<String>,
    /// Optional, default none. Address, `https://` or `http://`: `"https://dl.k8s.io/v1.32.1/bin/linux/amd64/kubeadm"`.
    /// With `--mirror HOST=URL`, what is on that host is taken from another place; the lock still names this one.
    pub url: Option<String>,
    /// Optional, default what the lock says. SHA-256 of its content, 64 hex digits.
    pub sha256: Option<String>,
    /// Optional, default none. For a `url`: lists of checksums, SHA-256 or SHA-512, as its makers publish them, by
    /// address or by path relative to the cluster file: `["https://dl.k8s.io/v1.32.1/bin/linux/amd64/kubeadm.sha256"]`.
    /// A list is a checksum alone, or has lines as `sha256sum` writes them (`checksum  name`, also with `--tag`) or as
    /// `openssl dgst` does, and must name the file.
    pub checksums: Vec<String>,
}

/// Container images of registries. `imgbuild lock` finds out what each reference stands for, and locks the digests of
/// index, manifest, configuration and layers for `[os] architecture`. Credentials are those of `docker login`
/// (docs/registry.md).
///
/// TOML: `[[input]]` with `kind = "oci"`
#[derive(Debug, Clone, PartialEq)]
pub struct OciInput {
    /// Required. Name of the input, unique.
    pub name: String,
    /// Required. Full references, each with a tag, a digest, or both, of which the digest counts:
    /// `["docker.io/calico/node:v3.29.1"]`. `--mirror docker.io=URL` asks another registry for those of `docker.io`; a
    /// registry without TLS is named so, too: `--mirror lab:5000=http://lab:5000`.
    pub images: Vec<String>,
    /// Optional, default none. Further names of images: the name somebody will ask for, and the one in `images`:
    /// `{ "docker.io/calico/cni:v3.26.1" = "lcr.loongnix.cn/calico/cni:3.26.1" }`.
    pub names: BTreeMap<String, String>,
    /// Optional, default none. Path, relative to the cluster file, of a PEM file with certificates of authorities that
    /// sign for these registries, besides those that this machine trusts. It is read when they are asked, and is not
    /// locked.
    pub ca: Option<String>,
}

/// A container image assembled by imgbuild.
///
/// TOML: `[[image]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Required. Full reference, as kubelet will ask for it: `"k8s.gcr.io/kube-proxy:v1.20.2"`.
    pub reference: String,
    /// Optional, default none. Binaries of the `source` inputs.
    pub binaries: Vec<String>,
    /// Optional, default `"/usr/local/bin"`. Directory the binaries are put in.
    pub binaries_to: String,
    /// Optional, default none. Packages unpacked into the image, with all they depend on.
    pub packages: Vec<String>,
    /// Optional, default none. Links, as in `[os.alternatives]`.
    pub alternatives: BTreeMap<String, String>,
    /// Optional, default none. Entrypoint of the image.
    pub entrypoint: Vec<String>,
    /// Optional, default `PATH` alone. Environment variables.
    pub env: BTreeMap<String, String>,
}

/// Manifests that masters apply to the cluster once it stands, changed where the file says so, and what is waited for before the
/// next add-on (docs/addons.md).
///
/// TOML: `[[addon]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Addon {
    /// Required. Name of the add-on, unique: at most 40 of a-z, 0-9 and `-`.
    pub name: String,
    /// Required. Its manifests, in order: paths relative to the cluster file, or `"input:NAME"` for the file of an input of kind
    /// `file`.
    pub manifests: Vec<String>,
    /// Optional, default none. Images under other names: what the name in a manifest begins with, up to a `/`, a `:` or all of it,
    /// and what it begins with instead: `{ "quay.io/jetstack" = "registry.example.org/jetstack" }`.
    pub images: BTreeMap<String, String>,
    /// Optional, default none. `[[addon.patch]]`: what is changed in its manifests, in order.
    pub patch: Vec<Patch>,
    /// Optional, default none. `[[addon.wait]]`: what must be so before the next add-on is applied.
    pub wait: Vec<Wait>,
}

/// A change of one place of one object. One of `set`, `add` and `delete` says which place.
///
/// TOML: `[[addon.patch]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    /// Required. The object: `"Deployment/cert-manager/cert-manager-webhook"` with its namespace, `"ClusterRole/view"` where the manifest
    /// gives it none.
    pub object: ObjectName,
    /// Optional, default none. A place that is there, whose value becomes `value`: `"spec.template.spec.containers[name=web].args[0]"`, or
    /// `'metadata.annotations."example.org/a.b"'`.
    pub set: Option<ObjectPath>,
    /// Optional, default none. A place that is not there, below one that is, and gets `value`; `args[]` is the end of a list.
    pub add: Option<ObjectPath>,
    /// Optional, default none. A place that is there, and is taken out.
    pub delete: Option<ObjectPath>,
    /// Optional, default none; `set` and `add` need it. Any value but a date: a string stays a string, whatever it looks like.
    pub value: Option<Value>,
}

/// Something that must be so in the cluster.
///
/// TOML: `[[addon.wait]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Wait {
    /// Required. The object, as in a patch; it need not be in a manifest, where something else makes it.
    pub object: ObjectName,
    /// Required. `"rolled-out"` (Deployment, DaemonSet, StatefulSet: every pod is new and serves), `"exists"`, or a condition of its status:
    /// `"Available"`, `"Established"`, `"Complete"`, `"Ready"`.
    pub condition: String,
    /// Optional, default `"10m"`. How long; 1s to 24h. Afterwards the step has failed, says what it waits for, and is tried again.
    pub timeout: Duration,
}

/// One machine.
///
/// TOML: `[[node]]`
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSection {
    /// Required. Host name and Kubernetes node name: at most 36 of a-z, 0-9, `-` and `.`.
    pub name: String,
    /// Required. One or more of `"etcd"`, `"master"`, `"worker"`. A master that is a worker too runs ordinary pods.
    pub roles: BTreeSet<Role>,
    /// Required. Address inside `node_subnet`, without prefix length.
    pub address: IpAddr,
    /// Optional, default none. Address inside `secondary_node_subnet`; required where that is given.
    pub secondary_address: Option<IpAddr>,
    /// Optional, default the only Ethernet interface. MAC address of the interface: `"52:54:00:12:34:56"`. A machine with
    /// several network cards needs it, or `interface`, and refuses to start without.
    pub mac: Option<String>,
    /// Optional, default found by `mac`. Name of the interface; masters need it with `kind = "keepalived"`.
    pub interface: Option<String>,
    /// Optional, default none. Kubernetes labels.
    pub labels: BTreeMap<String, String>,
    /// Optional, default none. OpenSSH public keys that may log in as root.
    pub ssh_authorized_keys: Vec<String>,
    /// Optional, default `[disk] size`. Size of this node's disk image.
    pub disk_size: Option<u64>,
    /// Optional, default as each of its keys. The table `[node.install]`, behind the `[[node]]` it belongs to: how an
    /// installation medium knows the machine and its disk.
    pub install: InstallSection,
}

/// How an installation medium knows the machine of a node, and which of its disks it takes (docs/installer.md).
///
/// TOML: `[node.install]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstallSection {
    /// Optional, default none. Serial number of the machine, as `dmidecode -s system-serial-number` shows it. With `mac` of the
    /// node and `asset_tag`, all that are given must fit.
    pub serial: Option<String>,
    /// Optional, default none. Asset tag of the machine, as `dmidecode -s chassis-asset-tag` shows it.
    pub asset_tag: Option<String>,
    /// Optional, default the only empty disk. The table `[node.install.disk]`, or in one line `disk = { serial = "…" }`: which
    /// disk it is.
    pub disk: InstallDisk,
    /// Optional, default `false`. Whether what is on that disk may be overwritten; wants `id`, `serial` or `wwn` of the
    /// disk. Without, a disk that is not empty is never touched.
    pub wipe: bool,
}

/// A disk of a machine; all that is given must fit, and it must fit one disk alone.
///
/// TOML: `[node.install.disk]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstallDisk {
    /// Optional, default any. Its name below /dev/disk/by-id: `"nvme-SAMSUNG_MZVL21T0_S676NX0R123456"`.
    pub id: Option<String>,
    /// Optional, default any. Its serial number: `"S676NX0R123456"`.
    pub serial: Option<String>,
    /// Optional, default any. Its world wide name: `"0x5000c500a1b2c3d4"` or `"eui.0025388b71b3f1a0"`.
    pub wwn: Option<String>,
    /// Optional, default any. Its model, as `lsblk -o MODEL` shows it.
    pub model: Option<String>,
    /// Optional, default any. The least size it has: `"400GiB"`. It never is smaller than the node's image.
    pub min_size: Option<u64>,
    /// Optional, default any. The greatest size it has: `"500GiB"`.
    pub max_size: Option<u64>,
}

/// There is no node of that name in the cluster file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cluster file has no node `{name}`; {hint}")]
pub struct UnknownNode {
    /// The name that was asked for.
    pub name: String,
    /// What to do: the nearest name, or all names.
    pub hint: String,
}

impl Input {
    /// The unique name of the input.
    pub fn name(&self) -> &str {
        match self {
            Self::Deb(input) => &input.name,
            Self::Source(input) => &input.name,
            Self::File(input) => &input.name,
            Self::Tar(input) => &input.name,
            Self::Rootfs(input) => &input.name,
            Self::Rpm(input) => &input.name,
            Self::RpmRepository(input) => &input.name,
            Self::ImageArchive(input) => &input.name,
            Self::Oci(input) => &input.name,
        }
    }
}

impl FileOrigin {
    /// The path or the address, as the cluster file has it.
    pub fn place(&self) -> &str {
        self.path.as_deref().or(self.url.as_deref()).unwrap_or_default()
    }
}

impl RpmRepositoryInput {
    /// Whether the index must be signed.
    pub fn checks_index(&self) -> bool {
        !self.keys.is_empty() && self.signed != Some(RpmSigned::Packages)
    }

    /// Whether each package must be signed.
    pub fn checks_packages(&self) -> bool {
        !self.keys.is_empty() && self.signed != Some(RpmSigned::Index)
    }
}

impl Cluster {
    /// The node called `name`.
    pub fn node(&self, name: &str) -> Result<&NodeSection, UnknownNode> {
        self.node.iter().find(|node| node.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.node.iter().map(|node| node.name.as_str()).collect();
            let hint = match text::closest(name, &names) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("it has: {}", text::list(&names)),
            };
            UnknownNode { name: name.to_owned(), hint }
        })
    }

    /// The nodes that have `role`, in the file's order.
    pub fn nodes_with(&self, role: Role) -> impl Iterator<Item = &NodeSection> {
        self.node.iter().filter(move |node| node.roles.contains(&role))
    }

    /// The Debian archives, in the file's order.
    pub fn debs(&self) -> impl Iterator<Item = &DebInput> {
        self.input.iter().filter_map(|input| if let Input::Deb(deb) = input { Some(deb) } else { None })
    }

    /// The source packages, in the file's order.
    pub fn sources(&self) -> impl Iterator<Item = &SourceInput> {
        self.input.iter().filter_map(|input| if let Input::Source(source) = input { Some(source) } else { None })
    }

    /// The files, in the file's order.
    pub fn files(&self) -> impl Iterator<Item = &FileInput> {
        self.input.iter().filter_map(|input| if let Input::File(file) = input { Some(file) } else { None })
    }

    /// The archives of files, in the file's order.
    pub fn tars(&self) -> impl Iterator<Item = &TarInput> {
        self.input.iter().filter_map(|input| if let Input::Tar(tar) = input { Some(tar) } else { None })
    }

    /// The RPM packages, in the file's order.
    pub fn rpms(&self) -> impl Iterator<Item = &RpmInput> {
        self.input.iter().filter_map(|input| if let Input::Rpm(rpm) = input { Some(rpm) } else { None })
    }

    /// The repositories of RPM packages, in the file's order.
    pub fn rpm_repositories(&self) -> impl Iterator<Item = &RpmRepositoryInput> {
        self.input
            .iter()
            .filter_map(|input| if let Input::RpmRepository(repository) = input { Some(repository) } else { None })
    }

    /// The vendor's root filesystems, in the file's order; at most one in a valid file.
    pub fn rootfs(&self) -> impl Iterator<Item = &RootfsInput> {
        self.input.iter().filter_map(|input| if let Input::Rootfs(rootfs) = input { Some(rootfs) } else { None })
    }

    /// The archives of container images, in the file's order.
    pub fn image_archives(&self) -> impl Iterator<Item = &ImageArchiveInput> {
        self.input.iter().filter_map(|input| if let Input::ImageArchive(images) = input { Some(images) } else { None })
    }

    /// The container images of registries, in the file's order.
    pub fn ocis(&self) -> impl Iterator<Item = &OciInput> {
        self.input.iter().filter_map(|input| if let Input::Oci(images) = input { Some(images) } else { None })
    }
}

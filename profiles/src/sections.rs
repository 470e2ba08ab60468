// SPDX-License-Identifier: MIT OR Apache-2.0
//! How each section of a cluster file is read into the types of `schema.rs`: names, types, bounds and defaults.
//! What several values mean together is checked in `validate.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use crate::addons;
use crate::decode::{
    Decoder, Item, Placeholder, Table, array, boolean, choice, integer, parsed, string, strings, word,
};
use crate::schema::{
    Architecture, CalicoSection, Cluster, ClusterDns, ClusterSection, ContainerdSection, DebInput, DiskSection,
    Distribution, Encapsulation, EncryptionAlgorithm, EtcdSection, FileInput, FileOrigin, Image, ImageArchiveInput,
    Input, InstallDisk, InstallSection, KubernetesSection, LoadBalancerSection, NetworkPlugin, NetworkSection,
    NodeSection, OciInput, OsSection, PayloadSection, ProxyMode, Role, RootfsInput, RpmInput, RpmRepositoryInput,
    RpmSigned, SourceInput, TarInput,
};
use crate::signing::PublicKey;
use crate::version::Version;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Reads the whole file.
pub(crate) fn cluster(t: &mut Table<'_, '_>) -> Cluster {
    Cluster {
        schema: t.required("schema", integer(1..=1)),
        cluster: t.section("cluster", |t| ClusterSection {
            name: t.required("name", word),
            join_validity: t.with_default("join_validity", Duration::from_secs(7 * 86_400), duration),
            signing_key: t.optional("signing_key", signing_key),
        }),
        kubernetes: t.section("kubernetes", kubernetes),
        containerd: t.section("containerd", |t| ContainerdSection { version: t.required("version", version) }),
        network: t.section("network", network),
        etcd: t.optional_section("etcd", etcd),
        load_balancer: t.optional_section("load_balancer", load_balancer),
        disk: t.optional_section("disk", disk),
        os: t.section("os", os),
        payload: t.optional_section("payload", |t| PayloadSection {
            binaries: t.with_default("binaries", vec![], array(word)),
            packages: t.with_default("packages", vec![], array(word)),
        }),
        input: t.tables("input", input),
        image: t.tables("image", image),
        addon: t.tables("addon", addons::addon),
        node: t.tables("node", node),
    }
}

/// A public key of minisign. What is none is not shown: it may be a secret key.
fn signing_key(decoder: &mut Decoder, item: &Item<'_>) -> Option<PublicKey> {
    match string(decoder, item)?.parse::<PublicKey>() {
        Ok(key) => Some(key),
        Err(error) => {
            let what = format!("`{}` is not a public key of minisign: {error}", item.key());
            decoder.bad(item, what, "write the second line of minisign.pub: \"RWQ…\"")
        }
    }
}

fn kubernetes(t: &mut Table<'_, '_>) -> KubernetesSection {
    const PROXY_MODES: &[(&str, ProxyMode)] =
        &[("iptables", ProxyMode::Iptables), ("ipvs", ProxyMode::Ipvs), ("nftables", ProxyMode::Nftables)];
    const DNS: &[(&str, ClusterDns)] = &[("coredns", ClusterDns::Coredns), ("none", ClusterDns::None)];
    const ALGORITHMS: &[(&str, EncryptionAlgorithm)] =
        &[("RSA-2048", EncryptionAlgorithm::Rsa2048), ("ECDSA-P256", EncryptionAlgorithm::EcdsaP256)];
    KubernetesSection {
        version: t.required("version", full_version),
        image_repository: t.required("image_repository", word),
        pause_image: t.required("pause_image", word),
        proxy_mode: t.with_default("proxy_mode", ProxyMode::Iptables, choice(PROXY_MODES)),
        dns: t.with_default("dns", ClusterDns::Coredns, choice(DNS)),
        apiserver_port: t.with_default("apiserver_port", 6443, integer(1..=65535)),
        cert_sans: t.with_default("cert_sans", vec![], array(word)),
        control_plane_timeout: t.with_default("control_plane_timeout", Duration::from_secs(240), duration),
        probe_period: t.optional("probe_period", duration),
        encryption_algorithm: t.optional("encryption_algorithm", choice(ALGORITHMS)).unwrap_or_default(),
        apiserver_extra_args: t.with_default("apiserver_extra_args", BTreeMap::new(), strings),
        controller_manager_extra_args: t.with_default("controller_manager_extra_args", BTreeMap::new(), strings),
        scheduler_extra_args: t.with_default("scheduler_extra_args", BTreeMap::new(), strings),
        kubelet_extra_args: t.with_default("kubelet_extra_args", BTreeMap::new(), strings),
    }
}

fn network(t: &mut Table<'_, '_>) -> NetworkSection {
    const PLUGINS: &[(&str, NetworkPlugin)] =
        &[("bridge", NetworkPlugin::Bridge), ("calico", NetworkPlugin::Calico), ("manifest", NetworkPlugin::Manifest)];
    let with_calico = t.has("calico");
    let calico = t.optional_section("calico", calico);
    NetworkSection {
        node_subnet: t.required("node_subnet", subnet),
        secondary_node_subnet: t.optional("secondary_node_subnet", subnet),
        gateway: t.optional("gateway", address),
        dns_servers: t.with_default("dns_servers", vec![], array(address)),
        ntp_servers: t.with_default("ntp_servers", vec![], array(word)),
        pod_subnets: t.required("pod_subnets", array(subnet)),
        service_subnets: t.required("service_subnets", array(subnet)),
        dns_domain: t.with_default("dns_domain", "cluster.local".to_owned(), word),
        plugin: t.required("plugin", choice(PLUGINS)),
        mtu: t.optional("mtu", integer(576..=65535)),
        calico: with_calico.then_some(calico),
    }
}

fn calico(t: &mut Table<'_, '_>) -> CalicoSection {
    const ENCAPSULATIONS: &[(&str, Encapsulation)] =
        &[("vxlan", Encapsulation::Vxlan), ("ipip", Encapsulation::Ipip), ("none", Encapsulation::None)];
    let default = CalicoSection::default();
    CalicoSection {
        encapsulation: t.with_default("encapsulation", default.encapsulation, choice(ENCAPSULATIONS)),
        ip_autodetection: t.with_default("ip_autodetection", default.ip_autodetection, ip_autodetection),
    }
}

/// One of Calico's methods: calico-node ends at one that it does not know.
fn ip_autodetection(decoder: &mut Decoder, item: &Item<'_>) -> Option<String> {
    let text = word(decoder, item)?;
    let good = match text.split_once('=') {
        None => ["kubernetes-internal-ip", "first-found"].contains(&text.as_str()),
        Some(("cidr", nets)) => nets.split(',').all(|net| net.trim().parse::<IpNet>().is_ok()),
        Some(("interface" | "skip-interface" | "can-reach", what)) => !what.trim().is_empty(),
        Some(_) => false,
    };
    if !good {
        let what = format!("`{}` is \"{text}\", which is not a method of Calico", item.key());
        let fix = "write \"kubernetes-internal-ip\", \"first-found\", \"interface=eth.*\", \"skip-interface=ib.*\", \
                   \"cidr=10.0.2.0/24\" or \"can-reach=10.0.2.1\"";
        return decoder.bad(item, what, fix);
    }
    Some(text)
}

fn etcd(t: &mut Table<'_, '_>) -> EtcdSection {
    EtcdSection {
        heartbeat: t.with_default("heartbeat", Duration::from_millis(100), duration),
        election: t.with_default("election", Duration::from_secs(1), duration),
        quota: t.with_default("quota", 2 * GIB, size),
    }
}

fn load_balancer(t: &mut Table<'_, '_>) -> LoadBalancerSection {
    const KINDS: &[(&str, Kind)] =
        &[("none", Kind::None), ("external", Kind::External), ("keepalived", Kind::Keepalived)];
    #[derive(Clone, Copy)]
    enum Kind {
        None,
        External,
        Keepalived,
    }
    let Some(kind) = t.with_default("kind", Some(Kind::None), |d, item| Some(choice(KINDS)(d, item))) else {
        t.abandon();
        return LoadBalancerSection::None;
    };
    match kind {
        Kind::None => LoadBalancerSection::None,
        Kind::External => LoadBalancerSection::External { endpoint: t.required("endpoint", endpoint) },
        Kind::Keepalived => LoadBalancerSection::Keepalived {
            vip: t.required("vip", address),
            port: t.with_default("port", 8443, integer(1..=65535)),
            vrid: t.optional("vrid", integer(1..=255)),
            check_interval: t.with_default("check_interval", Duration::from_secs(2), duration),
        },
    }
}

fn disk(t: &mut Table<'_, '_>) -> DiskSection {
    DiskSection {
        size: t.with_default("size", 16 * GIB, size),
        esp_size: t.with_default("esp_size", 256 * MIB, size),
        root_size: t.with_default("root_size", 2 * GIB, size),
        payload_size: t.with_default("payload_size", 3 * GIB, size),
    }
}

fn os(t: &mut Table<'_, '_>) -> OsSection {
    const DISTRIBUTIONS: &[(&str, Distribution)] = &[("debian", Distribution::Debian), ("kylin", Distribution::Kylin)];
    const ARCHITECTURES: &[(&str, Architecture)] =
        &[("amd64", Architecture::Amd64), ("loong64", Architecture::Loong64)];
    OsSection {
        distribution: t.required("distribution", choice(DISTRIBUTIONS)),
        architecture: t.required("architecture", choice(ARCHITECTURES)),
        packages: t.with_default("packages", vec![], array(word)),
        binaries: t.with_default("binaries", vec![], array(word)),
        alternatives: t.with_default("alternatives", BTreeMap::new(), strings),
        kernel_args: t.with_default("kernel_args", vec![], array(word)),
    }
}

fn input(t: &mut Table<'_, '_>) -> Input {
    const KINDS: &[(&str, Kind)] = &[
        ("deb", Kind::Deb),
        ("source", Kind::Source),
        ("file", Kind::File),
        ("tar", Kind::Tar),
        ("rootfs", Kind::Rootfs),
        ("rpm", Kind::Rpm),
        ("rpm-repository", Kind::RpmRepository),
        ("image-archive", Kind::ImageArchive),
        ("oci", Kind::Oci),
    ];
    #[derive(Clone, Copy)]
    enum Kind {
        Deb,
        Source,
        File,
        Tar,
        Rootfs,
        Rpm,
        RpmRepository,
        ImageArchive,
        Oci,
    }
    const SIGNED: &[(&str, RpmSigned)] =
        &[("packages", RpmSigned::Packages), ("index", RpmSigned::Index), ("both", RpmSigned::Both)];
    let Some(kind) = t.required("kind", |d, item| Some(choice(KINDS)(d, item))) else {
        t.abandon();
        return Input::Deb(DebInput {
            name: String::new(),
            suites: vec![],
            components: vec![],
            check_valid_until: true,
        });
    };
    match kind {
        Kind::Deb => Input::Deb(DebInput {
            name: t.required("name", word),
            suites: t.required("suites", array(word)),
            components: t.with_default("components", vec!["main".to_owned()], array(word)),
            check_valid_until: t.with_default("check_valid_until", true, boolean),
        }),
        Kind::Source => Input::Source(SourceInput {
            name: t.required("name", word),
            suite: t.required("suite", word),
            package: t.required("package", word),
            version: t.required("version", word),
            recipe: t.required("recipe", word),
        }),
        Kind::File => Input::File(FileInput {
            name: t.required("name", word),
            from: origin(t),
            to: t.required("to", absolute),
            mode: t.with_default("mode", 0o644, mode),
        }),
        Kind::Tar => Input::Tar(TarInput {
            name: t.required("name", word),
            from: origin(t),
            members: t.with_default("members", vec![], array(word)),
            to: t.required("to", absolute),
        }),
        Kind::Rootfs => Input::Rootfs(RootfsInput {
            name: t.required("name", word),
            from: origin(t),
            kernel: t.optional("kernel", word),
            foreign: t.with_default("foreign", vec![], array(absolute)),
        }),
        Kind::Rpm => Input::Rpm(RpmInput {
            name: t.required("name", word),
            paths: t.required("paths", array(word)),
            keys: t.with_default("keys", vec![], array(word)),
        }),
        Kind::RpmRepository => Input::RpmRepository(RpmRepositoryInput {
            name: t.required("name", word),
            url: t.required("url", word),
            packages: t.required("packages", array(word)),
            keys: t.with_default("keys", vec![], array(word)),
            signed: t.optional("signed", choice(SIGNED)),
        }),
        Kind::ImageArchive => Input::ImageArchive(ImageArchiveInput {
            name: t.required("name", word),
            from: origin(t),
            names: t.with_default("names", BTreeMap::new(), strings),
        }),
        Kind::Oci => Input::Oci(OciInput {
            name: t.required("name", word),
            images: t.required("images", array(word)),
            names: t.with_default("names", BTreeMap::new(), strings),
            ca: t.optional("ca", word),
        }),
    }
}

fn origin(t: &mut Table<'_, '_>) -> FileOrigin {
    FileOrigin {
        path: t.optional("path", word),
        url: t.optional("url", word),
        sha256: t.optional("sha256", sha256),
        checksums: t.with_default("checksums", vec![], array(word)),
    }
}

fn image(t: &mut Table<'_, '_>) -> Image {
    Image {
        reference: t.required("reference", word),
        binaries: t.with_default("binaries", vec![], array(word)),
        binaries_to: t.with_default("binaries_to", "/usr/local/bin".to_owned(), absolute),
        packages: t.with_default("packages", vec![], array(word)),
        alternatives: t.with_default("alternatives", BTreeMap::new(), strings),
        entrypoint: t.with_default("entrypoint", vec![], array(string)),
        env: t.with_default("env", BTreeMap::new(), strings),
    }
}

fn node(t: &mut Table<'_, '_>) -> NodeSection {
    const ROLES: &[(&str, Role)] = &[("etcd", Role::Etcd), ("master", Role::Master), ("worker", Role::Worker)];
    NodeSection {
        name: t.required("name", word),
        roles: t.required("roles", |d, item| Some(BTreeSet::from_iter(array(choice(ROLES))(d, item)?))),
        address: t.required("address", address),
        secondary_address: t.optional("secondary_address", address),
        mac: t.optional("mac", mac),
        interface: t.optional("interface", interface),
        labels: t.with_default("labels", BTreeMap::new(), strings),
        ssh_authorized_keys: t.with_default("ssh_authorized_keys", vec![], array(word)),
        disk_size: t.optional("disk_size", size),
        install: t.optional_section("install", install),
    }
}

fn install(t: &mut Table<'_, '_>) -> InstallSection {
    InstallSection {
        serial: t.optional("serial", word),
        asset_tag: t.optional("asset_tag", word),
        disk: t.optional_section("disk", |t| InstallDisk {
            id: t.optional("id", disk_id),
            serial: t.optional("serial", word),
            wwn: t.optional("wwn", word),
            model: t.optional("model", word),
            min_size: t.optional("min_size", size),
            max_size: t.optional("max_size", size),
        }),
        wipe: t.with_default("wipe", false, boolean),
    }
}

/// A name as udev gives it to a whole disk.
fn disk_id(decoder: &mut Decoder, item: &Item<'_>) -> Option<String> {
    let text = word(decoder, item)?;
    let is_partition = text
        .rsplit_once("-part")
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
    if text.contains(['/', ' ']) || is_partition {
        let what = format!("`{}` is \"{text}\", which is not the name of a disk below /dev/disk/by-id", item.key());
        return decoder.bad(item, what, "write the last part of the path alone, of the disk, not of a partition");
    }
    Some(text)
}

fn address(decoder: &mut Decoder, item: &Item<'_>) -> Option<IpAddr> {
    parsed("an IP address", "10.0.2.15")(decoder, item)
}

fn version(decoder: &mut Decoder, item: &Item<'_>) -> Option<Version> {
    parsed("a version", "1.6")(decoder, item)
}

fn full_version(decoder: &mut Decoder, item: &Item<'_>) -> Option<Version> {
    let version: Version = parsed("a version", "1.20.2")(decoder, item)?;
    if version.patch.is_none() {
        let what = format!("`{}` is {version}, which has no patch level", item.key());
        return decoder.bad(item, what, format!("write it like \"{version}.2\""));
    }
    Some(version)
}

/// A network by its first address: `10.0.2.15/24` is a mistake more often than a manner of speaking.
fn subnet(decoder: &mut Decoder, item: &Item<'_>) -> Option<IpNet> {
    let net: IpNet = parsed("a subnet", "10.0.2.0/24")(decoder, item)?;
    if net.trunc() != net {
        let what = format!("`{}` is {net}, which has bits set to the right of its prefix", item.key());
        return decoder.bad(item, what, format!("did you mean \"{}\"?", net.trunc()));
    }
    Some(net)
}

pub(crate) fn duration(decoder: &mut Decoder, item: &Item<'_>) -> Option<Duration> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    quantity(decoder, item, "a duration", "15m", &units).map(Duration::from_millis)
}

fn size(decoder: &mut Decoder, item: &Item<'_>) -> Option<u64> {
    quantity(decoder, item, "a size", "16GiB", &SIZES)
}

/// Units of sizes.
const SIZES: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Bytes of a size as the cluster file has it, `"16GiB"`.
pub fn parse_size(text: &str) -> Option<u64> {
    parse_quantity(text, &SIZES)
}

/// A whole number, not 0, with a unit. At most 2^53, so that no program on the way can lose a digit.
fn parse_quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (_, factor) = units.iter().find(|(unit, _)| *unit == &text[digits..])?;
    let number: u64 = text[..digits].parse().ok().filter(|number| *number > 0)?;
    number.checked_mul(*factor).filter(|bytes| *bytes <= 1 << 53)
}

/// A whole number with a unit.
fn quantity(decoder: &mut Decoder, item: &Item<'_>, what: &str, example: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = string(decoder, item)?;
    match parse_quantity(&text, units) {
        Some(value) => Some(value),
        None => {
            let names: Vec<&str> = units.iter().map(|(unit, _)| *unit).collect();
            let what = format!("`{}` is \"{text}\", which is not {what}", item.key());
            decoder.bad(item, what, format!("write a whole number and one of {}: \"{example}\"", names.join(", ")))
        }
    }
}

fn endpoint(decoder: &mut Decoder, item: &Item<'_>) -> Option<String> {
    let text = word(decoder, item)?;
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        let host_is_good = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_dns_name(host),
        };
        host_is_good && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if !good {
        let what = format!("`{}` is \"{text}\", which is not a host with a port", item.key());
        return decoder.bad(item, what, "write it like \"10.0.0.5:6443\" or \"api.example.org:6443\"");
    }
    Some(text)
}

/// RFC 1123, lower case: labels of 1 to 63 of a-z, 0-9 and `-`, none beginning or ending with `-`.
pub(crate) fn is_dns_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn mac(decoder: &mut Decoder, item: &Item<'_>) -> Option<String> {
    let text = string(decoder, item)?.to_ascii_lowercase();
    let parts: Vec<&str> = text.split(':').collect();
    let good = parts.len() == 6 && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
    if !good {
        let what = format!("`{}` is \"{text}\", which is not a MAC address", item.key());
        return decoder.bad(item, what, "write it like \"52:54:00:12:34:56\"");
    }
    if u8::from_str_radix(parts[0], 16).is_ok_and(|first| first & 1 == 1) {
        return decoder.bad(item, format!("{text} is a multicast MAC address, which no interface has"), "");
    }
    Some(text)
}

fn interface(decoder: &mut Decoder, item: &Item<'_>) -> Option<String> {
    let text = string(decoder, item)?;
    let good = (1..=15).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !good || text == "lo" {
        let what = format!("`{}` is \"{text}\", which is not the name of an Ethernet interface", item.key());
        return decoder.bad(item, what, "write it like \"enp1s0\"");
    }
    Some(text)
}

fn sha256(decoder: &mut Decoder, item: &Item<'_>) -> Option<String> {
    let text = string(decoder, item)?.to_ascii_lowercase();
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return decoder.bad(item, format!("`{}` is not a SHA-256", item.key()), "write its 64 hex digits");
    }
    Some(text)
}

/// An absolute path with nothing in it that could lead elsewhere.
pub(crate) fn is_clean_path(path: &str) -> bool {
    let clean = |part: &str| !part.is_empty() && part != "." && part != "..";
    !path.contains(char::is_control) && (path == "/" || path.strip_prefix('/').is_some_and(|p| p.split('/').all(clean)))
}

fn absolute(decoder: &mut Decoder, item: &Item<'_>) -> Option<String> {
    let text = string(decoder, item)?;
    if !is_clean_path(&text) {
        let what = format!("`{}` is \"{text}\", which is not a plain absolute path", item.key());
        return decoder.bad(
            item,
            what,
            "write it like \"/usr/local/bin\", without `.`, `..`, `//` or a slash at its end",
        );
    }
    Some(text)
}

fn mode(decoder: &mut Decoder, item: &Item<'_>) -> Option<u32> {
    let text = string(decoder, item)?;
    let octal = text.len() == 4 && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if octal => Some(mode),
        _ => {
            let what = format!("`{}` is \"{text}\", which is not a file mode", item.key());
            decoder.bad(item, what, "write four octal digits: \"0644\"")
        }
    }
}

impl Placeholder for String {
    fn placeholder() -> Self {
        Self::new()
    }
}

impl Placeholder for u32 {
    fn placeholder() -> Self {
        0
    }
}

impl<T> Placeholder for Vec<T> {
    fn placeholder() -> Self {
        Self::new()
    }
}

impl<T> Placeholder for BTreeSet<T> {
    fn placeholder() -> Self {
        Self::new()
    }
}

impl<T> Placeholder for Option<T> {
    fn placeholder() -> Self {
        None
    }
}

impl Placeholder for IpAddr {
    fn placeholder() -> Self {
        Self::V4(Ipv4Addr::UNSPECIFIED)
    }
}

impl Placeholder for IpNet {
    fn placeholder() -> Self {
        Self::V4(Ipv4Net::default())
    }
}

impl Placeholder for Version {
    fn placeholder() -> Self {
        Self { major: 0, minor: 0, patch: None }
    }
}

impl Placeholder for NetworkPlugin {
    fn placeholder() -> Self {
        Self::Bridge
    }
}

impl Placeholder for Distribution {
    fn placeholder() -> Self {
        Self::Debian
    }
}

impl Placeholder for Architecture {
    fn placeholder() -> Self {
        Self::Amd64
    }
}

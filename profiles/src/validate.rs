// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the values of a cluster file must satisfy together. Every check reports and goes on; a check that involves a
//! value which could not be read stays silent (see `decode.rs`).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use crate::addons;
use crate::decode::Decoder;
use crate::reference::{self, Reference};
use crate::schema::{
    Cluster, DiskSection, Distribution, FileOrigin, Input, LoadBalancerSection, NetworkPlugin, OciInput, ProxyMode,
    Role, RpmInput, RpmRepositoryInput,
};
use crate::sections::{is_clean_path, is_dns_name};
use crate::text;
use crate::validate_network;
use crate::version::KUBERNETES_MINORS;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HOUR: u64 = 3600;
/// Alignment, both partition tables, and the CIDATA partition.
const DISK_OVERHEAD: u64 = 32 * MIB;
/// What the data partition needs to hold the images and etcd's database at all.
const LEAST_DATA: u64 = 2 * GIB;

/// Runs every check.
pub(crate) fn cluster(c: &Cluster, d: &mut Decoder) {
    names(c, d);
    kubernetes(c, d);
    extra_args(c, d);
    etcd(c, d);
    roles(c, d);
    disk(c, d);
    inputs(c, d);
    images(c, d);
    addons::validate(c, d);
    os(c, d);
    nodes(c, d);
    installs(c, d);
    validate_network::cluster(c, d);
}

fn names(c: &Cluster, d: &mut Decoder) {
    let name = &c.cluster.name;
    if !is_dns_name(name) || name.contains('.') {
        let what = format!("the cluster name \"{name}\" is not a DNS label");
        d.report(&["cluster.name"], what, "", "use a-z, 0-9 and `-`, at most 63 of them");
    }
    if !(Duration::from_secs(HOUR)..=Duration::from_secs(365 * 24 * HOUR)).contains(&c.cluster.join_validity) {
        d.report(
            &["cluster.join_validity"],
            "the credential of joining nodes is valid for less than an hour or for more than a year",
            "it must outlive the time from building an image to switching its machine on, and no longer",
            "choose \"1h\" to \"365d\"",
        );
    }
    duplicates(d, "node", "name", "nodes", c.node.iter().map(|node| Some(&node.name)));
    duplicates(d, "node", "address", "nodes", c.node.iter().map(|node| Some(node.address)));
    let secondaries = c.node.iter().map(|node| node.secondary_address);
    duplicates(d, "node", "secondary_address", "nodes", secondaries);
    duplicates(d, "node", "mac", "nodes", c.node.iter().map(|node| node.mac.as_ref()));
    duplicates(d, "node", "install.serial", "nodes", c.node.iter().map(|node| node.install.serial.as_ref()));
    duplicates(d, "node", "install.asset_tag", "nodes", c.node.iter().map(|node| node.install.asset_tag.as_ref()));
    duplicates(d, "input", "name", "inputs", c.input.iter().map(|input| Some(input.name())));
    duplicates(d, "image", "reference", "images", c.image.iter().map(|image| Some(&image.reference)));
}

/// Reports each entry of `[[table]]` whose `key` has the value of an earlier one.
pub(crate) fn duplicates<T: Ord + Display>(
    d: &mut Decoder,
    table: &str,
    key: &str,
    things: &str,
    values: impl Iterator<Item = Option<T>>,
) {
    let mut first: BTreeMap<T, usize> = BTreeMap::new();
    for (index, value) in values.enumerate() {
        let Some(value) = value else { continue };
        match first.get(&value) {
            None => drop(first.insert(value, index)),
            Some(earlier) => {
                let (here, there) = (format!("{table}[{index}].{key}"), format!("{table}[{earlier}].{key}"));
                let name = match key {
                    "mac" => "MAC address",
                    "secondary_address" => "secondary address",
                    "install.serial" => "serial number",
                    "install.asset_tag" => "asset tag",
                    key => key,
                };
                let what = format!("two {things} have the {name} {value}");
                d.report(&[&here, &there], what, format!("`{there}` has it already"), "give each its own");
            }
        }
    }
}

fn kubernetes(c: &Cluster, d: &mut Decoder) {
    let k = &c.kubernetes;
    let (version, containerd) = (k.version, c.containerd.version);
    if version.major != 1 || !KUBERNETES_MINORS.contains(&version.minor) {
        let (first, last) = (KUBERNETES_MINORS.start(), KUBERNETES_MINORS.end());
        d.report(
            &["kubernetes.version"],
            format!("Kubernetes {version} is not supported"),
            "the configuration of kubeadm and kubelet differs from version to version",
            format!("choose 1.{first} to 1.{last}"),
        );
        return;
    }
    if k.proxy_mode == ProxyMode::Nftables && !version.has_nftables_proxy() {
        d.report(
            &["kubernetes.proxy_mode", "kubernetes.version"],
            format!("kube-proxy {version} has no mode \"nftables\""),
            "it needs 1.31 or later",
            "choose \"iptables\" or \"ipvs\"",
        );
    }
    let keys = ["containerd.version", "kubernetes.version"];
    if containerd.has_config_v3() && !version.speaks_cri_v1() {
        d.report(
            &keys,
            format!("containerd {containerd} cannot serve kubelet {version}"),
            "kubelet speaks CRI v1 since 1.23, and containerd 2 dropped v1alpha2",
            "use containerd 1.6 or 1.7, or a later Kubernetes",
        );
    }
    if (containerd.major, containerd.minor) < (1, 6) && version.needs_cri_v1() {
        d.report(
            &keys,
            format!("containerd {containerd} cannot serve kubelet {version}"),
            "kubelet needs CRI v1 since 1.26, which containerd has since 1.6",
            "use a later containerd",
        );
    }
    let timeout = k.control_plane_timeout;
    if timeout.subsec_millis() != 0 || timeout.as_secs() > 24 * 3600 {
        let what = "the control plane timeout is not a whole number of seconds, or longer than a day";
        d.report(&["kubernetes.control_plane_timeout"], what, "", "write it like \"15m\"");
    }
    if let Some(period) = k.probe_period
        && (period.subsec_millis() != 0 || !(1..=300).contains(&period.as_secs()))
    {
        let what = format!("the probe period {period:?} is not a whole number of seconds from 1 to 300");
        d.report(&["kubernetes.probe_period"], what, "kubelet counts in seconds", "write it like \"30s\"");
    }
    if tag(&k.pause_image).is_none() {
        let what = format!("the pause image \"{}\" has no tag", k.pause_image);
        d.report(&["kubernetes.pause_image"], what, "", "write it like \"k8s.gcr.io/pause:3.2\"");
    }
    if k.image_repository.ends_with('/') || k.image_repository.contains("://") {
        let what = format!("\"{}\" is not the beginning of an image name", k.image_repository);
        d.report(
            &["kubernetes.image_repository"],
            what,
            "",
            "write it like \"k8s.gcr.io\", without `https://` or a slash at its end",
        );
    }
    for (index, source) in c.input.iter().enumerate() {
        let Input::Source(source) = source else { continue };
        if source.package == "kubernetes" && source.version != version.to_string() {
            d.report(
                &[&format!("input[{index}].version"), "kubernetes.version"],
                format!("the source is Kubernetes {}, but the cluster is {version}", source.version),
                "kubeadm, kubelet, kubectl and the control plane must be one version",
                format!("write \"{version}\" in both places, or change both"),
            );
        }
    }
}

/// Arguments that the rendering sets itself: another value would break what depends on them.
const OUR_ARGS: &[&str] = &[
    "allocate-node-cidrs",
    "advertise-address",
    "bootstrap-kubeconfig",
    "cluster-cidr",
    "config",
    "container-runtime",
    "container-runtime-endpoint",
    "etcd-servers",
    "flex-volume-plugin-dir",
    "hostname-override",
    "kubeconfig",
    "node-ip",
    "node-labels",
    "pod-infra-container-image",
    "secure-port",
    "service-cluster-ip-range",
    "volume-plugin-dir",
];

fn extra_args(c: &Cluster, d: &mut Decoder) {
    let k = &c.kubernetes;
    let components = [
        ("apiserver_extra_args", &k.apiserver_extra_args),
        ("controller_manager_extra_args", &k.controller_manager_extra_args),
        ("scheduler_extra_args", &k.scheduler_extra_args),
        ("kubelet_extra_args", &k.kubelet_extra_args),
    ];
    for (table, args) in components {
        for (name, value) in args {
            let key = format!("kubernetes.{table}.{name}");
            let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if name.is_empty() || name.starts_with('-') || !name.chars().all(letters) {
                let what = format!("`{name}` is not the name of an argument");
                d.report(&[&key], what, "", "write it without leading dashes: \"event-ttl\" = \"2h\"");
            } else if OUR_ARGS.contains(&name.as_str()) {
                let what = format!("--{name} is set by imgbuild");
                d.report(&[&key], what, "other parts of the node depend on its value", "leave it out");
            }
            // kubeadm writes kubelet's into one line of a file that systemd splits at blanks.
            if value.contains(|c: char| {
                c.is_control() || c == '"' || c == '\\' || (c == ' ' && table.starts_with("kubelet"))
            }) {
                let what = format!("the value of --{name} has characters that would not survive");
                d.report(
                    &[&key],
                    what,
                    "it becomes part of a command line",
                    "leave out quotes, blanks and backslashes",
                );
            }
        }
    }
}

fn etcd(c: &Cluster, d: &mut Decoder) {
    let (heartbeat, election) = (c.etcd.heartbeat, c.etcd.election);
    if election < heartbeat * 5 {
        d.report(
            &["etcd.election", "etcd.heartbeat"],
            format!("the election timeout {election:?} is less than five heartbeats of {heartbeat:?}"),
            "etcd refuses to start so",
            format!("use at least \"{}ms\"; ten heartbeats are usual", heartbeat.as_millis() * 5),
        );
    }
    if election.as_secs() > 50 {
        let what = format!("the election timeout {election:?} is more than 50 s");
        d.report(&["etcd.election"], what, "etcd refuses to start so", "use at most \"50s\"");
    }
    if c.etcd.quota > 8 * GIB {
        d.report(
            &["etcd.quota"],
            "the quota of etcd is more than 8GiB",
            "etcd warns of it at start",
            "use \"8GiB\" or less",
        );
    }
}

fn roles(c: &Cluster, d: &mut Decoder) {
    if c.node.is_empty() {
        d.report(&["node"], "the file has no node", "", "add one as `[[node]]`");
        return;
    }
    for (index, node) in c.node.iter().enumerate() {
        if node.roles.is_empty() {
            let what = format!("node `{}` has no role", node.name);
            d.report(&[&format!("node[{index}].roles")], what, "", "choose from \"etcd\", \"master\", \"worker\"");
        }
    }
    // "node" as a key stays silent as soon as any node is unreadable: counting would be guessing.
    let (etcds, masters) = (c.nodes_with(Role::Etcd).count(), c.nodes_with(Role::Master).count());
    if etcds == 0 {
        d.report(
            &["node"],
            "no node has the role \"etcd\"",
            "the API server keeps everything in etcd",
            "give the role to one, three or five nodes",
        );
    } else if etcds % 2 == 0 {
        d.report(
            &["node"],
            format!("{etcds} nodes have the role \"etcd\", an even number"),
            format!("{etcds} members survive no more failures than {}, and block each other sooner", etcds - 1),
            "give the role to one, three or five nodes",
        );
    }
    match (&c.load_balancer, masters) {
        (_, 0) => {
            d.report(
                &["node"],
                "no node has the role \"master\"",
                "a cluster needs an API server",
                "give the role to one or three nodes",
            );
        }
        (LoadBalancerSection::None, 2..) => d.report(
            &["load_balancer", "node"],
            format!("{masters} masters, but no load balancer"),
            "kubelets would know a single master, and fail with it",
            "set `[load_balancer] kind` to \"keepalived\" or \"external\"",
        ),
        _ => {}
    }
}

fn disk(c: &Cluster, d: &mut Decoder) {
    let DiskSection { size, esp_size, root_size, payload_size } = c.disk;
    for (key, value) in
        [("size", size), ("esp_size", esp_size), ("root_size", root_size), ("payload_size", payload_size)]
    {
        if value % MIB != 0 {
            let what = format!("`disk.{key}` is not a whole number of MiB");
            d.report(&[&format!("disk.{key}")], what, "partitions are aligned to 1 MiB", "write it like \"512MiB\"");
        }
    }
    if esp_size < 64 * MIB {
        d.report(
            &["disk.esp_size"],
            "the EFI system partition is smaller than 64MiB",
            "it holds two kernels with their initramfs",
            "use \"256MiB\"",
        );
    }
    // At most 5 * 2^53: no overflow.
    let needed = esp_size + 2 * root_size + 2 * payload_size + DISK_OVERHEAD + LEAST_DATA;
    let parts = ["disk.esp_size", "disk.root_size", "disk.payload_size"];
    let own = c.node.iter().enumerate().filter_map(|(i, node)| Some((format!("node[{i}].disk_size"), node.disk_size?)));
    for (key, size) in std::iter::once(("disk.size".to_owned(), size)).chain(own) {
        if size < needed {
            d.report(
                &[&key, parts[0], parts[1], parts[2]],
                format!("the partitions do not fit on a disk of {}MiB", size / MIB),
                format!(
                    "EFI system partition, two roots, two payloads and at least {}GiB of data need {}MiB",
                    LEAST_DATA / GIB,
                    needed.div_ceil(MIB)
                ),
                "make the disk larger or its partitions smaller",
            );
        }
    }
}

fn inputs(c: &Cluster, d: &mut Decoder) {
    let suites: Vec<&str> = c.debs().flat_map(|deb| deb.suites.iter().map(String::as_str)).collect();
    let wants_packages =
        !c.os.packages.is_empty() || !c.payload.packages.is_empty() || c.image.iter().any(|i| !i.packages.is_empty());
    if suites.is_empty() && wants_packages {
        d.report(
            &["input", "os.packages", "payload.packages", "image"],
            "no input of kind \"deb\" has a suite",
            "packages come from one",
            "add `[[input]]` with `kind = \"deb\"` and `suites`",
        );
    }
    for (index, input) in c.input.iter().enumerate() {
        match input {
            Input::Deb(deb) => {
                for (key, values) in [("suites", &deb.suites), ("components", &deb.components)] {
                    let bad = |value: &&String| {
                        value.starts_with(['/', '.']) || value.contains(['\\', ' ']) || value.contains("..")
                    };
                    if let Some(bad) = values.iter().find(bad) {
                        let what = format!("\"{bad}\" is not the name of a {}", key.trim_end_matches('s'));
                        d.report(&[&format!("input[{index}].{key}")], what, "", "");
                    }
                }
            }
            Input::Source(source) => {
                if !suites.contains(&source.suite.as_str()) {
                    let what = format!("no input of kind \"deb\" has the suite \"{}\"", source.suite);
                    let why = "the toolchain that compiles a source comes from the suite of the source";
                    d.report(
                        &[&format!("input[{index}].suite"), "input"],
                        what,
                        why,
                        format!("the suites are {}", text::list(&suites)),
                    );
                }
            }
            Input::File(file) => origin(d, index, &file.from),
            Input::Tar(tar) => {
                archive(d, index, &tar.from);
                for (at, member) in tar.members.iter().enumerate() {
                    if !is_clean_path(&format!("/{member}")) {
                        let what = format!("\"{member}\" is not a plain path inside an archive");
                        let key = format!("input[{index}].members[{at}]");
                        d.report(&[&key], what, "", "write it like \"kubernetes/server/bin/kubeadm\"");
                    }
                }
            }
            Input::Rootfs(rootfs) => {
                archive(d, index, &rootfs.from);
                if c.rootfs().next().is_some_and(|first| first.name != rootfs.name) {
                    let what = "two inputs are root filesystems";
                    d.report(&[&format!("input[{index}].kind")], what, "there is one root", "keep one of them");
                }
            }
            Input::Rpm(rpm) => rpms(c, d, index, rpm),
            Input::RpmRepository(repository) => rpm_repository(c, d, index, repository),
            Input::ImageArchive(images) => {
                archive(d, index, &images.from);
                further_names(d, index, &images.names);
            }
            Input::Oci(images) => registry_images(d, index, images),
        }
    }
}

/// Names that images get besides their own.
fn further_names(d: &mut Decoder, index: usize, names: &BTreeMap<String, String>) {
    for name in names.keys().filter(|name| tag(name).is_none()) {
        let what = format!("\"{name}\" is not an image reference with a tag");
        let key = format!("input[{index}].names.{name}");
        d.report(&[&key], what, "", "write it like \"docker.io/calico/node:v3.26.1\"");
    }
}

fn registry_images(d: &mut Decoder, index: usize, input: &OciInput) {
    let key = |name: &str| format!("input[{index}].{name}");
    if input.images.is_empty() {
        let what = format!("input `{}` has no image", input.name);
        d.report(&[&key("images")], what, "", "name images like \"docker.io/calico/node:v3.29.1\"");
    }
    for (at, image) in input.images.iter().enumerate() {
        let place = format!("{}[{at}]", key("images"));
        let full = reference::completed(image);
        match Reference::parse(image) {
            Err(error) if full == *image => {
                d.report(&[&place], error.to_string(), "", "write it like \"docker.io/calico/node:v3.29.1\"");
            }
            Err(error) => d.report(&[&place], error.to_string(), "", format!("did you mean \"{full}\"?")),
            // Docker Hub has it in `library/`, and a node looks for it there.
            Ok(parts) if parts.registry == "docker.io" && !parts.repository.contains('/') => {
                let fix = image.replacen("docker.io/", "docker.io/library/", 1);
                let what = format!("\"{image}\" is short for another name");
                d.report(&[&place], what, "", format!("write \"{fix}\""));
            }
            Ok(_) if input.images[..at].contains(image) => {
                d.report(&[&place], format!("\"{image}\" is listed twice"), "", "keep one of them");
            }
            Ok(_) => {}
        }
    }
    further_names(d, index, &input.names);
    for (further, name) in &input.names {
        let own = |image: &String| {
            let is_name =
                Reference::parse(image).is_ok_and(|parts| parts.names().contains(&reference::completed(name)));
            is_name || image == name
        };
        if !input.images.iter().any(own) {
            let what = format!("\"{name}\", which is to be called \"{further}\" too, is not in `images`");
            let key = key(&format!("names.{further}"));
            d.report(&[&key, &format!("input[{index}].images")], what, "", "add it to `images`");
        }
    }
    if let Some(path) = &input.ca {
        inside_directory(d, &key("ca"), path);
    }
}

fn rpms(c: &Cluster, d: &mut Decoder, index: usize, rpm: &RpmInput) {
    over_a_root(c, d, index);
    if rpm.paths.is_empty() {
        let what = format!("input `{}` has no package", rpm.name);
        d.report(&[&format!("input[{index}].paths")], what, "", "name its .rpm files");
    }
    for (at, path) in rpm.paths.iter().enumerate().filter(|(_, path)| !path.ends_with(".rpm")) {
        let place = format!("input[{index}].paths[{at}]");
        d.report(&[&place], format!("\"{path}\" is not a .rpm"), "", "name binary packages");
    }
    brought(d, &format!("input[{index}].paths"), &rpm.paths);
    brought(d, &format!("input[{index}].keys"), &rpm.keys);
}

fn rpm_repository(c: &Cluster, d: &mut Decoder, index: usize, repository: &RpmRepositoryInput) {
    over_a_root(c, d, index);
    let key = |name: &str| format!("input[{index}].{name}");
    let url = &repository.url;
    let host = ["http://", "https://", "file:///"].iter().find_map(|scheme| url.strip_prefix(scheme));
    if host.is_none_or(|host| host.is_empty() || host.starts_with('/') || url.contains(['?', '#', ' '])) {
        let what = format!("\"{url}\" is not the address of a folder");
        d.report(
            &[&key("url")],
            what,
            "",
            "write it like \"https://example.org/kylin/os/loongarch64\" or \"file:///srv/repo\"",
        );
    } else if let Some((_, variable)) = url.split_once('$') {
        let name: String = variable.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let why = "dnf replaces it by what the system it runs on is, and there is no such system here";
        d.report(&[&key("url")], format!("the address has the variable ${name}"), why, "write what it stands for");
    }
    if repository.packages.is_empty() {
        let what = format!("input `{}` has no package", repository.name);
        d.report(&[&key("packages")], what, "", "name packages of the repository");
    }
    for (at, package) in repository.packages.iter().enumerate() {
        let place = format!("{}[{at}]", key("packages"));
        let name = |package: &str| package.split('=').next().unwrap_or_default().to_owned();
        let parts: Vec<&str> = package.split('=').collect();
        if parts.len() > 2 || parts.contains(&"") || package.contains(['/', '*', ' ', '<', '>']) {
            let what = format!("\"{package}\" is neither the name of a package nor name=version");
            d.report(&[&place], what, "", "write it like \"haproxy\" or \"haproxy=2.6.6-1.ky11\"");
        } else if repository.packages[..at].iter().any(|other| name(other) == name(package)) {
            d.report(&[&place], format!("\"{}\" is listed twice", name(package)), "", "keep one of them");
        }
    }
    brought(d, &key("keys"), &repository.keys);
    if repository.signed.is_some() && repository.keys.is_empty() {
        let why = "nothing says whose signature would count";
        d.report(&[&key("signed"), &key("keys")], "`signed` without `keys`", why, "name the keys, or drop `signed`");
    }
}

fn over_a_root(c: &Cluster, d: &mut Decoder, index: usize) {
    if c.rootfs().next().is_none() {
        d.report(
            &[&format!("input[{index}].kind"), "input"],
            "there are RPM packages, but no root filesystem",
            "they are laid over one; nothing here resolves what they depend on",
            "add `[[input]]` with `kind = \"rootfs\"`",
        );
    }
}

/// Files beside the cluster file, each once.
fn brought(d: &mut Decoder, key: &str, paths: &[String]) {
    for (at, path) in paths.iter().enumerate() {
        let place = format!("{key}[{at}]");
        inside_directory(d, &place, path);
        if paths[..at].contains(path) {
            d.report(&[&place], format!("\"{path}\" is listed twice"), "", "keep one of them");
        }
    }
}

pub(crate) fn inside_directory(d: &mut Decoder, key: &str, path: &str) {
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        let what = format!("\"{path}\" leads out of the directory of the cluster file");
        d.report(&[key], what, "a cluster must be whole in one directory", "");
    }
}

/// How the names of archives end that can be read.
const ARCHIVES: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst"];

fn archive(d: &mut Decoder, index: usize, from: &FileOrigin) {
    origin(d, index, from);
    let key = format!("input[{index}].{}", if from.path.is_some() { "path" } else { "url" });
    let place = from.place();
    // What an address has after a question mark is no part of the name.
    let name = if from.path.is_some() { place } else { place.split('?').next().unwrap_or_default() };
    if !name.is_empty() && !ARCHIVES.iter().any(|end| name.ends_with(end)) {
        let what = format!("\"{place}\" is not an archive: none of {}", text::list(&ARCHIVES));
        d.report(&[&key], what, "", "pack it as one of these");
    }
}

/// Where a file comes from: one place, and by http not without something that says what it must be.
fn origin(d: &mut Decoder, index: usize, from: &FileOrigin) {
    let key = |name: &str| format!("input[{index}].{name}");
    let (path_key, url_key, checksums_key) = (key("path"), key("url"), key("checksums"));
    match (&from.path, &from.url) {
        (Some(_), Some(_)) => {
            let what = format!("`input[{index}]` has both `path` and `url`");
            d.report(&[&url_key, &path_key], what, "a file comes from one place", "keep one of them");
        }
        (None, None) => d.report(
            &[&path_key, &url_key],
            format!("`input[{index}]` has neither `path` nor `url`"),
            "",
            "write `path` of a file beside the cluster file, or `url` of one to be downloaded",
        ),
        (Some(path), None) => {
            inside_directory(d, &path_key, path);
            if !from.checksums.is_empty() {
                d.report(
                    &[&checksums_key, &path_key],
                    "`checksums` of a file beside the cluster file",
                    "they are for what is downloaded",
                    "write its `sha256`, or drop them",
                );
            }
        }
        (None, Some(url)) => {
            address(d, &url_key, url);
            checksums(d, &checksums_key, &from.checksums);
            let vouched = from.sha256.is_some() || from.checksums.iter().any(|place| !place.starts_with("http://"));
            if url.starts_with("http://") && !vouched {
                d.report(
                    &[&url_key, &key("sha256"), &checksums_key],
                    format!("nothing says that what comes from {url} is the right file"),
                    "anybody on the way can change what comes by http",
                    "write `https://`, or its `sha256`, or `checksums` that come by https or lie beside the cluster file",
                );
            }
        }
    }
}

/// Lists of checksums: addresses, or files beside the cluster file.
fn checksums(d: &mut Decoder, key: &str, places: &[String]) {
    for (at, place) in places.iter().enumerate() {
        let key = format!("{key}[{at}]");
        if place.contains("://") {
            address(d, &key, place);
        } else {
            inside_directory(d, &key, place);
        }
        if places[..at].contains(place) {
            d.report(&[&key], format!("\"{place}\" is listed twice"), "", "keep one of them");
        }
    }
}

/// The address of a file that is downloaded.
fn address(d: &mut Decoder, key: &str, url: &str) {
    let rest = ["http://", "https://"].iter().find_map(|scheme| url.strip_prefix(scheme)).unwrap_or_default();
    let (host, path) = rest.split('?').next().and_then(|place| place.split_once('/')).unwrap_or_default();
    let (what, why) = if host.contains('@') {
        (format!("\"{url}\" has a name or a password in it"), "the lock names the address, and everybody may read it")
    } else if host.is_empty() || path.is_empty() || path.ends_with('/') || url.contains(['#', ' ', '\\', '"']) {
        (format!("\"{url}\" is not the address of a file"), "")
    } else {
        return;
    };
    d.report(&[key], what, why, "write it like \"https://dl.k8s.io/v1.32.1/bin/linux/amd64/kubeadm\"");
}

/// The control-plane images that kubeadm names after the version.
const CONTROL_PLANE: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"];

fn images(c: &Cluster, d: &mut Decoder) {
    let has_source = c.sources().next().is_some();
    if !c.payload.binaries.is_empty() && !has_source {
        let what = "the payload names binaries, but there is no input of kind \"source\"";
        d.report(&["payload.binaries", "input"], what, "", "add one, or drop the binaries");
    }
    if !c.os.binaries.is_empty() && !has_source {
        let what = "the root names binaries, but there is no input of kind \"source\"";
        d.report(&["os.binaries", "input"], what, "", "add one, or drop the binaries");
    }
    for (index, image) in c.image.iter().enumerate() {
        let key = |name: &str| format!("image[{index}].{name}");
        let reference = &image.reference;
        if tag(reference).is_none() || reference.contains(['@', ' ']) {
            let what = format!("\"{reference}\" is not an image reference with a tag");
            d.report(&[&key("reference")], what, "", "write it like \"k8s.gcr.io/kube-proxy:v1.20.2\"");
            continue;
        }
        if image.binaries.is_empty() && image.packages.is_empty() {
            d.report(
                &[&format!("image[{index}]")],
                format!("image \"{reference}\" is empty"),
                "",
                "give it `binaries` or `packages`",
            );
        }
        if !image.binaries.is_empty() && !has_source {
            let what = format!("image \"{reference}\" names binaries, but there is no input of kind \"source\"");
            d.report(&[&key("binaries"), "input"], what, "", "add one, or drop the binaries");
        }
        let (name, version) = (tagless(reference), c.kubernetes.version);
        let wanted = CONTROL_PLANE.iter().find(|part| name == format!("{}/{part}", c.kubernetes.image_repository));
        if let Some(part) = wanted.filter(|_| tag(reference) != Some(&format!("v{version}"))) {
            d.report(
                &[&key("reference"), "kubernetes.version", "kubernetes.image_repository"],
                format!("image \"{reference}\" is not of version {version}"),
                "kubeadm, kubelet, kubectl and the control plane must be one version",
                format!("write \"{}/{part}:v{version}\"", c.kubernetes.image_repository),
            );
        }
        links(d, &key("alternatives"), &image.alternatives);
    }
}

fn tag(reference: &str) -> Option<&str> {
    let (_, name) = reference.rsplit_once('/')?;
    name.split_once(':').map(|(_, tag)| tag).filter(|tag| !tag.is_empty())
}

fn tagless(reference: &str) -> &str {
    reference.rsplit_once(':').map_or(reference, |(name, _)| name)
}

fn os(c: &Cluster, d: &mut Decoder) {
    if c.os.packages.is_empty() && c.rootfs().next().is_none() {
        d.report(
            &["os.packages", "input"],
            "nothing says what the root is made of",
            "it has no packages, and there is no input of kind \"rootfs\"",
            "list its packages in `[os] packages`, or add a root filesystem as `[[input]]`",
        );
    } else {
        packages(c, d);
    }
    if !c.os.packages.is_empty() && c.rootfs().next().is_some() {
        d.report(
            &["os.packages", "input"],
            "the root would be made of packages and of a root filesystem",
            "Debian's packages bring a C library and a systemd of their own, which do not mix with the vendor's",
            "drop the packages, and bring what is missing as inputs of kind \"rpm\", \"rpm-repository\", \"tar\" or \"file\"",
        );
    }
    if c.os.distribution == Distribution::Kylin && c.rootfs().next().is_none() {
        d.report(
            &["os.distribution", "input"],
            "Kylin without a root filesystem",
            "nobody but its vendor has its packages",
            "add `[[input]]` with `kind = \"rootfs\"`",
        );
    }
    links(d, "os.alternatives", &c.os.alternatives);
    for (index, argument) in c.os.kernel_args.iter().enumerate() {
        let key = format!("os.kernel_args[{index}]");
        if argument.starts_with("imgbuild.") {
            d.report(
                &[&key],
                format!("the kernel argument \"{argument}\" is ours"),
                "imgbuild sets those itself",
                "drop it",
            );
        } else if argument.contains([' ', '"']) {
            d.report(
                &[&key],
                format!("the kernel argument \"{argument}\" has a blank or a quote in it"),
                "",
                "write one argument in each string",
            );
        }
    }
}

/// Packages that what the file asks for cannot do without, and that nothing else pulls in.
fn packages(c: &Cluster, d: &mut Decoder) {
    // What a vendor's root filesystem has in it, nobody knows here.
    if c.rootfs().next().is_some() {
        return;
    }
    let mut needs: Vec<(&[&str], &str, &str)> = Vec::new();
    if matches!(c.load_balancer, LoadBalancerSection::Keepalived { .. }) {
        needs.push((
            &["haproxy", "keepalived", "curl"],
            "load_balancer.kind",
            "the masters run haproxy, and keepalived, whose check is a call of curl",
        ));
    }
    if c.network.plugin == NetworkPlugin::Bridge {
        needs.push((&["nftables"], "network.plugin", "pods reach what lies outside the cluster by rules of nft"));
    }
    for (wanted, reason, why) in needs {
        let missing: Vec<&str> =
            wanted.iter().filter(|name| c.os.packages.iter().all(|other| other != **name)).copied().collect();
        if !missing.is_empty() {
            let names: Vec<String> = missing.iter().map(|name| format!("\"{name}\"")).collect();
            d.report(
                &["os.packages", reason],
                format!("`[os] packages` lacks {}", text::list(&missing)),
                why,
                format!("add to the list: {},", names.join(", ")),
            );
        }
    }
}

fn links(d: &mut Decoder, key: &str, links: &BTreeMap<String, String>) {
    for (link, target) in links {
        for path in [link, target] {
            if !is_clean_path(path) || path == "/" {
                let what = format!("\"{path}\" is not a plain absolute path");
                d.report(&[&format!("{key}.{link}"), key], what, "", "write it like \"/usr/sbin/iptables\"");
            }
        }
    }
}

fn nodes(c: &Cluster, d: &mut Decoder) {
    for (index, node) in c.node.iter().enumerate() {
        let key = |name: &str| format!("node[{index}].{name}");
        if !is_dns_name(&node.name) || node.name.len() > 36 {
            d.report(
                &[&key("name")],
                format!("\"{}\" is not a good host name", node.name),
                "RFC 1123 allows labels of a-z, 0-9 and `-` that begin and end with a letter or digit, joined by dots; \
                 some platforms on top of Kubernetes allow 36 characters in all",
                "choose a name like \"master-1\"",
            );
        }
        for (label, value) in &node.labels {
            if let Err((why, fix)) = label_problem(label, value) {
                let what = format!("node `{}` cannot have the label {label}={value}", node.name);
                d.report(&[&key("labels")], what, why, fix);
            }
        }
        for (at, line) in node.ssh_authorized_keys.iter().enumerate() {
            let mut words = line.split(' ');
            let kind = words.next().unwrap_or_default();
            if !(kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-"))
                || words.next().is_none_or(|blob| !blob.starts_with("AAAA"))
            {
                let what = format!("a key of node `{}` is not an OpenSSH public key", node.name);
                d.report(
                    &[&format!("{}[{at}]", key("ssh_authorized_keys"))],
                    what,
                    "",
                    "write a line like \"ssh-ed25519 AAAA… name\"",
                );
            }
        }
    }
}

/// What machines say whose maker or owner never filled it in: two of them would be one.
const NOT_FILLED_IN: &[&str] = &[
    "0",
    "0123456789",
    "123456789",
    "asset tag",
    "chassis asset tag",
    "default string",
    "empty",
    "no asset tag",
    "none",
    "not available",
    "not specified",
    "system serial number",
    "to be filled by o.e.m.",
    "unknown",
];

fn installs(c: &Cluster, d: &mut Decoder) {
    for (index, node) in c.node.iter().enumerate() {
        let key = |name: &str| format!("node[{index}].install.{name}");
        let install = &node.install;
        for (name, value) in [("serial", &install.serial), ("asset_tag", &install.asset_tag)] {
            let Some(value) = value else { continue };
            if NOT_FILLED_IN.contains(&value.to_lowercase().as_str()) {
                d.report(
                    &[&key(name)],
                    format!("\"{value}\" says nothing about a machine"),
                    "machines whose maker left it out all have it",
                    "drop it, and give the node's `mac`",
                );
            }
        }
        let disk = &install.disk;
        if install.wipe && disk.id.is_none() && disk.serial.is_none() && disk.wwn.is_none() {
            d.report(
                &[&key("wipe"), &key("disk")],
                format!("node `{}` may wipe a disk, but nothing says which very one", node.name),
                "a model or a size fits another disk as well, whose data would be lost",
                "give `id`, `serial` or `wwn` of the disk: `disk = { serial = \"…\" }`",
            );
        }
        if let (Some(least), Some(most)) = (disk.min_size, disk.max_size)
            && least > most
        {
            d.report(
                &[&key("disk.min_size"), &key("disk.max_size")],
                format!("no disk of node `{}` has at least {} and at most {} bytes", node.name, least, most),
                "",
                "make `max_size` larger than `min_size`",
            );
        }
        let image = node.disk_size.unwrap_or(c.disk.size);
        if let Some(most) = disk.max_size.filter(|most| *most < image) {
            d.report(
                &[&key("disk.max_size"), &format!("node[{index}].disk_size"), "disk.size"],
                format!("the image of node `{}` has {}MiB, its disk at most {}MiB", node.name, image / MIB, most / MIB),
                "the image would not fit on it",
                "make `max_size` larger, or `disk_size` of the node smaller",
            );
        }
    }
}

/// Kubernetes's rules for labels, and what kubelet may not say of itself.
fn label_problem(label: &str, value: &str) -> Result<(), (&'static str, &'static str)> {
    let is_name = |text: &str| {
        text.len() <= 63
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let (prefix, name) = label.split_once('/').unwrap_or(("", label));
    if !is_name(name) || !(prefix.is_empty() || is_dns_name(prefix)) || !(value.is_empty() || is_name(value)) {
        return Err(("Kubernetes does not allow it", "use letters, digits, `-`, `_` and `.`, at most 63 of them"));
    }
    let reserved = |domain: &str| prefix == domain || prefix.strip_suffix(domain).is_some_and(|p| p.ends_with('.'));
    let allowed = ["kubelet.kubernetes.io", "node.kubernetes.io"]
        .iter()
        .any(|domain| prefix == *domain || prefix.strip_suffix(domain).is_some_and(|p| p.ends_with('.')))
        || ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"].contains(&label);
    if (reserved("kubernetes.io") || reserved("k8s.io")) && !allowed {
        return Err((
            "a kubelet may not label its own node so, and would not start",
            "use `node.kubernetes.io/`, a prefix of your own, or none",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_which_labels_kubelet_may_set() {
        for good in ["disk", "example.org/disk", "node.kubernetes.io/instance-type", "topology.kubernetes.io/zone"] {
            assert!(label_problem(good, "x").is_ok(), "{good}");
        }
        for bad in ["node-role.kubernetes.io/worker", "kubernetes.io/hostname", "a b", "", "-a", "UPPER.org/x"] {
            assert!(label_problem(bad, "").is_err(), "{bad}");
        }
    }

    #[test]
    fn finds_tags() {
        assert_eq!(tag("k8s.gcr.io/pause:3.2"), Some("3.2"));
        assert_eq!(tag("localhost:5000/pause"), None);
        assert_eq!(tagless("localhost:5000/pause:1"), "localhost:5000/pause");
    }
}

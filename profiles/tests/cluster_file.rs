// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cluster file: the shipped one is valid, and mistakes are found, all of them, in their place.

#![allow(clippy::unwrap_used)]

use profiles::Cluster;
use proptest::prelude::*;

const HA: &str = include_str!("clusters/ha.toml");
const LAB: &str = include_str!("../lab/cluster.toml");
const KYLIN: &str = include_str!("../kylin-v11-ha/cluster.toml");
/// The last line of the second node of [`HA`].
const END_OF_ETCD2: &str = "mac = \"52:54:00:00:01:31\"";
const DUAL: &str = include_str!("clusters/dual-stack.toml");

/// The second input of [`KYLIN`].
const RPMS: &str = "kind = \"rpm\"\nname = \"load-balancer-and-ipvs\"\n\
    paths = [\"inputs/haproxy.rpm\", \"inputs/keepalived.rpm\", \"inputs/ipset.rpm\", \"inputs/ipvsadm.rpm\"]";

/// A repository in its place.
fn repository(url: &str, packages: &str, more: &str) -> String {
    format!("kind = \"rpm-repository\"\nname = \"kylin\"\nurl = \"{url}\"\npackages = [{packages}]\n{more}")
}

/// The place of the input `runc` of [`KYLIN`].
const RUNC: &str = "path = \"inputs/runc.loong64\"\n";

/// An address in its place.
fn url(url: &str, more: &str) -> String {
    format!("url = \"{url}\"\n{more}")
}

#[test]
fn files_come_from_beside_the_cluster_file_or_from_an_address() {
    let sha256 = "5ed13bb4bc1d5fb4579b8cc8c7c2245356837122f9a3fd729c2f6d1338f58dcf";
    for (place, more) in [
        ("https://h/runc", ""),
        ("https://h:8443/a%20b/runc?download=1", "checksums = [\"http://h/runc.sha256sum\"]\n"),
        ("http://h/runc", &format!("sha256 = \"{sha256}\"\n")),
        ("http://h/runc", "checksums = [\"inputs/runc.sha256sum\"]\n"),
        ("http://h/runc", "checksums = [\"http://h/runc.sha256sum\", \"https://h/runc.sha256sum\"]\n"),
    ] {
        let text = KYLIN.replacen(RUNC, &url(place, more), 1);
        let cluster = Cluster::parse("cluster.toml", &text).unwrap_or_else(|report| panic!("{report}"));
        let file = cluster.files().find(|file| file.name == "runc").unwrap();
        assert_eq!((file.from.place(), file.from.path.as_ref()), (place, None));
    }
    let cluster = Cluster::parse("cluster.toml", KYLIN).unwrap();
    assert_eq!(cluster.rootfs().next().unwrap().from.place(), "inputs/kylin-server-v11-loongarch64.tar.zst");
}

/// The tenth input of [`KYLIN`].
const IMAGES: &str = "kind = \"image-archive\"\nname = \"images\"\npath = \"inputs/images-loong64.tar.zst\"";

/// Images of a registry in its place.
fn images(images: &str, more: &str) -> String {
    format!("kind = \"oci\"\nname = \"images\"\nimages = [{images}]\n{more}")
}

/// A reference may have a tag, a digest or both, and any of its names can be what further names stand for.
#[test]
fn images_of_registries_are_named_in_full() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    let list = format!("\"lab:5000/a/b:1\", \"docker.io/calico/cni@{digest}\", \"docker.io/calico/node:v3@{digest}\"");
    let names = format!(
        "names = {{ \"x.io/b:2\" = \"lab:5000/a/b:1\", \"x.io/c:2\" = \"calico/cni@{digest}\", \"x.io/n:2\" = \"calico/node:v3\", \
         \"x.io/n:3\" = \"docker.io/calico/node:v3@{digest}\" }}\nca = \"inputs/ca.pem\""
    );
    let text = KYLIN.replacen(IMAGES, &images(&list, &names), 1);
    assert_ne!(text, KYLIN);
    let cluster = Cluster::parse("cluster.toml", &text).unwrap_or_else(|report| panic!("{report}"));
    let input = cluster.ocis().next().unwrap();
    assert_eq!((input.images.len(), input.names.len(), input.ca.as_deref()), (3, 4, Some("inputs/ca.pem")));
}

/// What is checked of a repository, by what the file says of keys.
#[test]
fn a_repository_is_checked_where_there_are_keys() {
    for (more, index, packages) in [
        ("", false, false),
        ("keys = [\"k\"]", true, true),
        ("keys = [\"k\"]\nsigned = \"both\"", true, true),
        ("keys = [\"k\"]\nsigned = \"index\"", true, false),
        ("keys = [\"k\"]\nsigned = \"packages\"", false, true),
    ] {
        let text = KYLIN.replacen(RPMS, &repository("file:///srv/kylin", "\"haproxy\", \"ipset=7.1-2\"", more), 1);
        let cluster = Cluster::parse("cluster.toml", &text).unwrap_or_else(|report| panic!("{report}"));
        let [repository] = cluster.rpm_repositories().collect::<Vec<_>>()[..] else { panic!("one repository") };
        assert_eq!((repository.checks_index(), repository.checks_packages()), (index, packages), "{more}");
    }
}

#[test]
fn the_lab_is_valid() {
    let lab = Cluster::parse("profiles/lab/cluster.toml", LAB).unwrap_or_else(|report| panic!("{report}"));
    let profile = lab.node_profile("master-1", "0123456789abcdef0123456789abcdef").unwrap();
    assert_eq!(profile.kubernetes.control_plane_endpoint, "10.0.2.15:6443");
    assert_eq!(profile.node.pod_subnet.unwrap().to_string(), "10.200.0.0/24");
}

#[test]
fn further_arguments_are_names_that_imgbuild_does_not_set() {
    let text = LAB.replacen(
        "apiserver_extra_args = { \"enable-priority-and-fairness\" = \"false\" }",
        "apiserver_extra_args = { \"--event-ttl\" = \"2h\", \"secure-port\" = \"1\" }\n\
         kubelet_extra_args = { \"v\" = \"2 --config=x\" }",
        1,
    );
    let report = Cluster::parse("cluster.toml", &text).unwrap_err().to_string();
    for said in ["`--event-ttl` is not the name", "--secure-port is set by imgbuild", "the value of --v has characters"]
    {
        assert!(report.contains(said), "{report}");
    }
}

/// What a medium is told of a node's machine and disk; nodes that say nothing are recognised by their MAC address.
#[test]
fn the_machine_and_its_disk_come_from_the_node() {
    use profiles::medium::{Machine, Target, machine_and_target};
    let install = "[node.install]\nserial = \"CN123\"\nasset_tag = \"Rack 7\"\nwipe = true\n\
                   disk = { id = \"ata-M_S\", serial = \"S\", wwn = \"0x5\", model = \"M M\", min_size = \"200GiB\", \
                   max_size = \"1TiB\" }";
    let cluster = Cluster::parse("ha.toml", &HA.replacen(END_OF_ETCD2, install, 1)).unwrap_or_else(|r| panic!("{r}"));
    let (machine, target) = machine_and_target(&cluster.node[1]);
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(machine, Machine { mac: None, serial: some("CN123"), asset_tag: some("Rack 7") });
    let expected = Target {
        id: some("ata-M_S"),
        serial: some("S"),
        wwn: some("0x5"),
        model: some("M M"),
        min_size: Some(200 << 30),
        max_size: Some(1 << 40),
        wipe: true,
    };
    assert_eq!(target, expected);
    let (machine, target) = machine_and_target(&cluster.node[0]);
    assert_eq!(machine, Machine { mac: some("52:54:00:00:01:30"), ..Machine::default() });
    assert_eq!(target, Target::default());
}

/// What one machine could be taken for twice.
#[test]
fn no_two_nodes_are_one_machine() {
    let text = HA
        .replacen("mac = \"52:54:00:00:01:30\"", "[node.install]\nserial = \"A\"\nasset_tag = \"B\"", 1)
        .replacen("mac = \"52:54:00:00:01:31\"", "[node.install]\nserial = \"A\"\nasset_tag = \"B\"", 1);
    let report = Cluster::parse("ha.toml", &text).unwrap_err();
    let keys: Vec<&str> = report.problems().iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["node[1].install.serial", "node[1].install.asset_tag"], "{report}");
    assert!(report.to_string().contains("two nodes have the serial number A"), "{report}");
}

#[test]
fn an_unknown_node_is_named() {
    let lab = Cluster::parse("cluster.toml", LAB).unwrap();
    assert_eq!(
        lab.node_profile("master1", "x").unwrap_err().to_string(),
        "the cluster file has no node `master1`; did you mean `master-1`?"
    );
}

#[test]
fn the_large_cluster_is_valid() {
    let cluster = Cluster::parse("ha.toml", HA).unwrap_or_else(|report| panic!("{report}"));
    let profile = cluster.node_profile("node1", "0123456789abcdef0123456789abcdef").unwrap();
    assert_eq!(profile.kubernetes.control_plane_endpoint, "19.190.3.100:8443");
    assert_eq!(profile.node.pod_subnet.unwrap().to_string(), "10.200.6.0/24");
}

/// Everything at once: the report of a file full of mistakes is what a person works from.
#[test]
fn every_mistake_is_reported_at_once() {
    let report = Cluster::parse("bad.toml", include_str!("clusters/bad.toml")).unwrap_err();
    insta::assert_snapshot!("bad", report);
    insta::assert_snapshot!("bad_json", serde_json::to_string_pretty(&report.to_json()).unwrap());
}

/// Text that is not TOML: its errors, and what else is certainly wrong, but nothing guessed from what was lost.
#[test]
fn mistakes_of_syntax_are_reported_at_once() {
    let text = LAB
        .replace("name = \"lab\"", "name = \"lab")
        .replace("gateway = \"10.0.2.2\"", "gateway = = \"10.0.2.2\"")
        .replace("size = \"16GiB\"", "size = \"16GB\"");
    let report = Cluster::parse("syntax.toml", &text).unwrap_err();
    insta::assert_snapshot!("syntax", report);
}

#[test]
fn an_empty_file_lacks_everything() {
    insta::assert_snapshot!("empty", Cluster::parse("empty.toml", "").unwrap_err());
}

/// One edit of a valid file, one problem: what it says, and the key it points at.
#[test]
fn each_check_finds_its_mistake() {
    let cases: &[(&str, &str, &str, &str, &str)] = &[
        // file, what is replaced, by what, the key, a part of the message
        ("lab", "schema = 1", "schema = 2", "schema", "out of bounds"),
        ("lab", "name = \"lab\"", "name = \"The Lab\"", "cluster.name", "not a DNS label"),
        ("lab", "name = \"lab\"", "nmae = \"lab\"", "cluster.nmae", "has no key `nmae`"),
        ("lab", "name = \"lab\"", "name = 7", "cluster.name", "must be a string, this is an integer"),
        ("lab", "[containerd]\nversion = \"1.6\"", "", "containerd", "missing"),
        ("lab", "[containerd]", "[containrd]", "containrd", "no key `containrd`"),
        (
            "lab",
            "[containerd]\nversion = \"1.6\"",
            "[containerd]\nversion = \"2.0\"",
            "containerd.version",
            "cannot serve",
        ),
        ("lab", "dns = \"none\"", "dns = \"corends\"", "kubernetes.dns", "cannot be \"corends\""),
        ("lab", "dns = \"none\"", "proxy_mode = \"nftables\"", "kubernetes.proxy_mode", "has no mode"),
        ("lab", "= \"15m\"", "= \"15 minutes\"", "kubernetes.control_plane_timeout", "not a duration"),
        ("lab", "= \"15m\"", "= 900", "kubernetes.control_plane_timeout", "must be a string"),
        ("lab", "= \"15m\"", "= \"1500ms\"", "kubernetes.control_plane_timeout", "whole number of seconds"),
        ("lab", "pause:3.2\"\ndns", "pause\"\ndns", "kubernetes.pause_image", "no tag"),
        ("lab", "version = \"1.20.2\"\nimage", "version = \"1.20\"\nimage", "kubernetes.version", "no patch level"),
        ("lab", "version = \"1.20.2\"\nimage", "version = \"1.18.0\"\nimage", "kubernetes.version", "not supported"),
        (
            "lab",
            "version = \"1.20.2\"\nrecipe",
            "version = \"1.20.3\"\nrecipe",
            "input[1].version",
            "but the cluster is",
        ),
        ("lab", "kube-proxy:v1.20.2", "kube-proxy:v1.20.3", "image[4].reference", "not of version"),
        ("lab", "suite = \"bookworm\"", "suite = \"trixie\"", "input[1].suite", "has the suite \"trixie\""),
        ("lab", "kind = \"source\"", "kind = \"git\"", "input[1].kind", "cannot be \"git\""),
        ("lab", "kind = \"deb\"\n", "", "input[0].kind", "has no `kind`"),
        ("lab", "\"10.0.2.0/24\"", "\"10.0.2.15/24\"", "network.node_subnet", "to the right of its prefix"),
        ("lab", "\"10.0.2.2\"", "\"10.0.3.2\"", "network.gateway", "outside the node subnet"),
        ("lab", "\"10.0.2.2\"", "\"10.0.2.15\"", "node[0].address", "address of the gateway"),
        ("lab", "[\"10.0.2.3\"]", "[\"127.0.0.53\"]", "network.dns_servers[0]", "loopback"),
        ("lab", "[\"10.0.2.3\"]", "[\"10.200.0.9\"]", "network.dns_servers[0]", "lies in the pod subnet"),
        ("lab", "\"10.200.0.0/16\"", "\"10.0.0.0/8\"", "network.pod_subnets[0]", "overlaps the node subnet"),
        ("lab", "\"10.201.0.0/16\"", "\"10.200.128.0/17\"", "network.service_subnets[0]", "overlaps the pod subnet"),
        ("lab", "\"10.201.0.0/16\"", "\"10.192.0.0/10\"", "network.service_subnets[0]", "too large"),
        ("lab", "\"10.200.0.0/16\"", "\"10.200.0.0/25\"", "network.pod_subnets[0]", "too small for one node"),
        ("lab", "\"10.200.0.0/16\"", "\"fd00::/48\"", "network.pod_subnets", "another IP family"),
        ("lab", "plugin = \"bridge\"\n", "", "network.plugin", "has no `plugin`"),
        ("lab", "plugin = \"bridge\"", "plugin = \"calico\"", "network.plugin", "no input is put below"),
        (
            "lab",
            "plugin = \"bridge\"",
            "plugin = \"bridge\"\n[network.calico]",
            "network.calico",
            "but the plugin is another",
        ),
        (
            "kylin",
            "encapsulation = \"vxlan\"",
            "encapsulation = \"gre\"",
            "network.calico.encapsulation",
            "cannot be \"gre\"",
        ),
        ("kylin", "encapsulation", "encapsulaton", "network.calico.encapsulaton", "has no key `encapsulaton`"),
        (
            "kylin",
            "\"kubernetes-internal-ip\"",
            "\"eth0\"",
            "network.calico.ip_autodetection",
            "not a method of Calico",
        ),
        (
            "kylin",
            "\"kubernetes-internal-ip\"",
            "\"cidr=19.190.3.0\"",
            "network.calico.ip_autodetection",
            "not a method of Calico",
        ),
        ("dual", "plugin = \"manifest\"", "plugin = \"calico\"", "network.pod_subnets[1]", "serves IPv4 alone"),
        ("lab", "election = \"5s\"", "election = \"2s\"", "etcd.election", "less than five heartbeats"),
        ("lab", "size = \"16GiB\"", "size = \"8GiB\"", "disk.size", "do not fit"),
        ("lab", "size = \"16GiB\"", "size = \"16GB\"", "disk.size", "not a size"),
        ("lab", "roles = [\"etcd\", \"master\", \"worker\"]", "roles = [\"master\"]", "node", "role \"etcd\""),
        ("lab", "roles = [\"etcd\", \"master\", \"worker\"]", "roles = [\"etcd\"]", "node", "role \"master\""),
        ("lab", "roles = [\"etcd\", \"master\", \"worker\"]", "roles = []", "node[0].roles", "has no role"),
        ("lab", "roles = [\"etcd\", ", "roles = [\"etc\", ", "node[0].roles[0]", "cannot be \"etc\""),
        ("lab", "\"10.0.2.15\"", "\"10.0.2.15/24\"", "node[0].address", "not an IP address"),
        ("lab", "\"10.0.2.15\"", "\"10.0.2.255\"", "node[0].address", "first or last address"),
        ("lab", "\"10.0.2.15\"", "\"169.254.1.1\"", "node[0].address", "link-local"),
        ("lab", "\"10.0.2.15\"", "\"224.0.0.1\"", "node[0].address", "multicast"),
        ("lab", "name = \"master-1\"", "name = \"Master_1\"", "node[0].name", "not a good host name"),
        ("lab", "name = \"master-1\"", "name = \"a.-b\"", "node[0].name", "not a good host name"),
        ("lab", "packages = [\"busybox-static\"]\n", "", "image[5]", "is empty"),
        ("lab", "reference = \"localhost/busybox:1\"", "reference = \"busybox\"", "image[5].reference", "with a tag"),
        (
            "lab",
            "\"/usr/sbin/ebtables-nft\"",
            "\"ebtables-nft\"",
            "os.alternatives./usr/sbin/ebtables",
            "absolute path",
        ),
        ("ha", "transparent_hugepage=never", "imgbuild.slot=b", "os.kernel_args[0]", "is ours"),
        ("ha", "name = \"etcd2\"", "name = \"etcd1\"", "node[1].name", "two nodes have the name"),
        ("ha", "\"19.190.3.131\"", "\"19.190.3.130\"", "node[1].address", "two nodes have the address"),
        ("ha", "52:54:00:00:01:31", "52:54:00:00:01:30", "node[1].mac", "two nodes have the MAC"),
        ("ha", "52:54:00:00:01:31", "52:54:00:00:01", "node[1].mac", "not a MAC address"),
        ("ha", "52:54:00:00:01:31", "53:54:00:00:01:31", "node[1].mac", "multicast MAC"),
        (
            "ha",
            "name = \"etcd2\"\nroles = [\"etcd\"]",
            "name = \"etcd2\"\nroles = [\"worker\"]",
            "node",
            "an even number",
        ),
        ("ha", "vip = \"19.190.3.100\"", "vip = \"19.190.4.100\"", "load_balancer.vip", "outside the node subnet"),
        ("ha", "vip = \"19.190.3.100\"", "vip = \"19.190.3.143\"", "load_balancer.vip", "address of node `node1`"),
        ("ha", "vip = \"19.190.3.100\"\n", "", "load_balancer.vip", "has no `vip`"),
        ("ha", "port = 8443", "port = 6443", "load_balancer.port", "would both bind port 6443"),
        ("ha", "port = 8443", "port = 2379", "load_balancer.port", "taken by another part"),
        (
            "ha",
            "kind = \"keepalived\"\nvip = \"19.190.3.100\"\nport = 8443",
            "kind = \"none\"",
            "load_balancer",
            "no load balancer",
        ),
        ("ha", "mac = \"52:54:00:00:01:40\"\ninterface = \"eth0\"", "", "node[3].interface", "has no `interface`"),
        (
            "lab",
            "name = \"lab\"",
            "name = \"lab\"\njoin_validity = \"59m\"",
            "cluster.join_validity",
            "less than an hour",
        ),
        (
            "lab",
            "name = \"lab\"",
            "name = \"lab\"\njoin_validity = \"366d\"",
            "cluster.join_validity",
            "more than a year",
        ),
        ("lab", "name = \"lab\"", "name = \"lab\"\nsigning_key = \"RWQ?\"", "cluster.signing_key", "it is not base64"),
        ("lab", "name = \"lab\"", "name = \"lab\"\nsigning_key = \"RWQA\"", "cluster.signing_key", "it has 3 bytes"),
        ("ha", "port = 8443", "check_interval = \"61s\"", "load_balancer.check_interval", "whole number of seconds"),
        ("ha", "port = 8443", "check_interval = \"500ms\"", "load_balancer.check_interval", "whole number of seconds"),
        ("ha", "\"haproxy\", ", "", "os.packages", "lacks `haproxy`"),
        ("ha", "\"keepalived\", \"curl\", ", "", "os.packages", "lacks `keepalived`, `curl`"),
        ("ha", ", \"nftables\"", "", "os.packages", "lacks `nftables`"),
        ("kylin", "kind = \"rootfs\"", "kind = \"image-archive\"", "os.packages", "nothing says what the root"),
        ("kylin", "kind = \"rootfs\"", "kind = \"image-archive\"", "os.distribution", "Kylin without a root"),
        ("kylin", "kind = \"rootfs\"", "kind = \"image-archive\"", "input[1].kind", "but no root filesystem"),
        ("kylin", "kind = \"image-archive\"", "kind = \"rootfs\"", "input[9].kind", "two inputs are root filesystems"),
        ("kylin", "inputs/kylin-", "/kylin-", "input[0].path", "leads out of"),
        ("kylin", "images-loong64.tar.zst", "images-loong64.zip", "input[9].path", "is not an archive"),
        ("kylin", "\"inputs/ipset.rpm\"", "\"inputs/ipset.deb\"", "input[1].paths[2]", "is not a .rpm"),
        ("kylin", "\"inputs/ipset.rpm\"", "\"../ipset.rpm\"", "input[1].paths[2]", "leads out of"),
        ("kylin", "\"inputs/ipset.rpm\"", "\"inputs/haproxy.rpm\"", "input[1].paths[2]", "listed twice"),
        ("kylin", RPMS, &repository("https://h/x", "\"a\"", "nme = 1"), "input[1].nme", "has no key `nme`"),
        ("kylin", RPMS, &repository("ftp://h/x", "\"a\"", ""), "input[1].url", "is not the address of a folder"),
        ("kylin", RPMS, &repository("file://srv/x", "\"a\"", ""), "input[1].url", "is not the address of a folder"),
        ("kylin", RPMS, &repository("https://h/$basearch/", "\"a\"", ""), "input[1].url", "the variable $basearch"),
        ("kylin", RPMS, &repository("https://h/x", "", ""), "input[1].packages", "has no package"),
        ("kylin", RPMS, &repository("https://h/x", "\"a\", \"b=\"", ""), "input[1].packages[1]", "neither the name"),
        ("kylin", RPMS, &repository("https://h/x", "\"a*\"", ""), "input[1].packages[0]", "neither the name"),
        ("kylin", RPMS, &repository("https://h/x", "\"a\", \"a=1\"", ""), "input[1].packages[1]", "listed twice"),
        ("kylin", RPMS, &repository("https://h/x", "\"a\"", "keys = [\"../k\"]"), "input[1].keys[0]", "leads out of"),
        ("kylin", RPMS, &repository("https://h/x", "\"a\"", "signed = \"index\""), "input[1].signed", "without `keys`"),
        (
            "kylin",
            RPMS,
            &repository("https://h/x", "\"a\"", "keys = [\"k\"]\nsigned = \"indx\""),
            "input[1].signed",
            "cannot be \"indx\"",
        ),
        ("kylin", RUNC, "", "input[6].path", "has neither `path` nor `url`"),
        ("kylin", RUNC, "path = 7\n", "input[6].path", "must be a string"),
        ("kylin", RUNC, &url("https://h/runc", RUNC), "input[6].url", "has both `path` and `url`"),
        ("kylin", RUNC, &url("https://h/", ""), "input[6].url", "is not the address of a file"),
        ("kylin", RUNC, &url("https://h", ""), "input[6].url", "is not the address of a file"),
        ("kylin", RUNC, &url("ftp://h/runc", ""), "input[6].url", "is not the address of a file"),
        ("kylin", RUNC, &url("https:///runc", ""), "input[6].url", "is not the address of a file"),
        ("kylin", RUNC, &url("https://h/runc#1", ""), "input[6].url", "is not the address of a file"),
        ("kylin", RUNC, &url("https://me:secret@h/runc", ""), "input[6].url", "has a name or a password in it"),
        ("kylin", RUNC, &url("http://h/runc", ""), "input[6].url", "nothing says that what comes from http://h/runc"),
        (
            "kylin",
            RUNC,
            &url("http://h/runc", "checksums = [\"http://h/sums\"]\n"),
            "input[6].url",
            "nothing says that",
        ),
        ("kylin", RUNC, &url("https://h/runc", "sha256 = \"5ed1\"\n"), "input[6].sha256", "is not a SHA-256"),
        ("kylin", RUNC, &url("https://h/runc", "checksums = [\"../sums\"]\n"), "input[6].checksums[0]", "leads out of"),
        (
            "kylin",
            RUNC,
            &url("https://h/runc", "checksums = [\"https://h/\"]\n"),
            "input[6].checksums[0]",
            "is not the address of a file",
        ),
        (
            "kylin",
            RUNC,
            &url("https://h/runc", "checksums = [\"sums\", \"sums\"]\n"),
            "input[6].checksums[1]",
            "is listed twice",
        ),
        (
            "kylin",
            RUNC,
            &format!("{RUNC}checksums = [\"sums\"]\n"),
            "input[6].checksums",
            "`checksums` of a file beside the cluster file",
        ),
        (
            "kylin",
            "path = \"inputs/images-loong64.tar.zst\"",
            "url = \"https://h/images.zip?x=.tar\"",
            "input[9].url",
            "is not an archive",
        ),
        ("kylin", IMAGES, &images("", ""), "input[9].images", "has no image"),
        ("kylin", IMAGES, &images("\"a.io/x\"", ""), "input[9].images[0]", "neither a tag nor a digest"),
        ("kylin", IMAGES, &images("\"calico/node:v3\"", ""), "input[9].images[0]", "is not a full image"),
        ("kylin", IMAGES, &images("\"docker.io/busybox:1\"", ""), "input[9].images[0]", "short for another"),
        ("kylin", IMAGES, &images("\"a.io/x:1@sha256:0a\"", ""), "input[9].images[0]", "is not a sha256"),
        ("kylin", IMAGES, &images("\"a.io/x:1\", \"a.io/x:1\"", ""), "input[9].images[1]", "listed twice"),
        ("kylin", IMAGES, &images("\"a.io/x:1\"", "ca = \"../ca.pem\""), "input[9].ca", "leads out of"),
        (
            "kylin",
            IMAGES,
            &images("\"a.io/x:1\"", "names = { \"x\" = \"a.io/x:1\" }"),
            "input[9].names.x",
            "not an image reference with a tag",
        ),
        (
            "kylin",
            IMAGES,
            &images("\"a.io/x:1\"", "names = { \"b.io/x:1\" = \"a.io/x:2\" }"),
            "input[9].names.b.io/x:1",
            "is not in `images`",
        ),
        ("kylin", "members = [\"bin\"]", "members = [\"../bin\"]", "input[5].members[0]", "not a plain path"),
        (
            "kylin",
            "images-loong64.tar.zst\"",
            "images-loong64.tar.zst\"\nnames = { \"calico\" = \"x\" }",
            "input[9].names.calico",
            "not an image reference with a tag",
        ),
        (
            "kylin",
            "architecture = \"loong64\"",
            "architecture = \"loong64\"\npackages = [\"curl\"]",
            "os.packages",
            "made of packages and of a root filesystem",
        ),
        ("kylin", "\"10.200.0.0/16\"", "\"11.0.0.0/7\"", "network.pod_subnets[0]", "to the right of its prefix"),
        ("kylin", "\"10.200.0.0/16\"", "\"12.0.0.0/7\"", "network.pod_subnets[0]", "too large"),
        (
            "kylin",
            "architecture = \"loong64\"",
            "architecture = \"loong64\"\npackages = [\"curl\"]",
            "input",
            "has a suite",
        ),
        (
            "dual",
            "secondary_node_subnet = \"fd00:77::/64\"\n",
            "",
            "network.secondary_node_subnet",
            "but the nodes have one",
        ),
        (
            "dual",
            "secondary_node_subnet = \"fd00:77::/64\"",
            "secondary_node_subnet = \"10.78.0.0/24\"",
            "network.secondary_node_subnet",
            "of the same IP family",
        ),
        (
            "dual",
            "secondary_address = \"fd00:77::11\"\n",
            "",
            "node[0].secondary_address",
            "has no `secondary_address`",
        ),
        ("dual", "\"fd00:77::11\"", "\"fd00:78::11\"", "node[0].secondary_address", "outside the node subnet"),
        (
            "dual",
            "\"fd00:77::12\"",
            "\"fd00:77::11\"",
            "node[1].secondary_address",
            "the secondary address fd00:77::11",
        ),
        (
            "dual",
            "[\"10.201.0.0/16\", \"fd00:201::/112\"]",
            "[\"10.201.0.0/16\"]",
            "network.service_subnets",
            "same IP families",
        ),
        ("dual", "version = \"1.32.1\"", "version = \"1.20.2\"", "network.pod_subnets", "cannot use two IP families"),
        ("dual", "plugin = \"manifest\"", "plugin = \"bridge\"", "network.pod_subnets", "serves a single pod subnet"),
        ("dual", "fd00:200::/48", "fd00::/40", "network.pod_subnets[1]", "too large"),
        (
            "ha",
            "address = \"19.190.3.143\"",
            "address = \"19.190.3.143\"\nsecondary_address = \"fd00::1\"",
            "node[6].secondary_address",
            "there is no subnet for it",
        ),
        (
            "ha",
            "node_subnet = \"19.190.3.0/24\"",
            "node_subnet = \"19.190.3.0/24\"\nsecondary_node_subnet = \"fd00::/64\"",
            "network.secondary_node_subnet",
            "but pods and services have one",
        ),
        ("ha", "quota = \"8GiB\"", "quota = \"9GiB\"", "etcd.quota", "more than 8GiB"),
        ("ha", "disk_size = \"128GiB\"", "disk_size = \"16GiB\"", "node[2].disk_size", "do not fit"),
        ("ha", END_OF_ETCD2, "[node.install]\nserail = \"X\"", "node[1].install.serail", "has no key `serail`"),
        ("ha", END_OF_ETCD2, "[node.install]\nserial = \"\"", "node[1].install.serial", "is empty"),
        ("ha", END_OF_ETCD2, "[node.install]\nserial = \"Default string\"", "node[1].install.serial", "says nothing"),
        ("ha", END_OF_ETCD2, "install = 7", "node[1].install", "must be a table"),
        ("ha", END_OF_ETCD2, "[node.install]\nwipe = true", "node[1].install.wipe", "which very one"),
        (
            "ha",
            END_OF_ETCD2,
            "[node.install]\nwipe = true\ndisk = { model = \"X\", max_size = \"9TiB\" }",
            "node[1].install.wipe",
            "which very one",
        ),
        (
            "ha",
            END_OF_ETCD2,
            "[node.install]\ndisk = { id = \"/dev/disk/by-id/ata-X\" }",
            "node[1].install.disk.id",
            "not the name of a disk",
        ),
        (
            "ha",
            END_OF_ETCD2,
            "[node.install.disk]\nid = \"ata-X_Y-part1\"",
            "node[1].install.disk.id",
            "not the name of a disk",
        ),
        (
            "ha",
            END_OF_ETCD2,
            "[node.install.disk]\nmin_size = \"3TiB\"\nmax_size = \"2TiB\"",
            "node[1].install.disk.min_size",
            "no disk of node",
        ),
        (
            "ha",
            END_OF_ETCD2,
            "[node.install]\ndisk.max_size = \"1GiB\"",
            "node[1].install.disk.max_size",
            "its disk at most 1024MiB",
        ),
        ("ha", "esp_size = \"512MiB\"", "esp_size = \"513KiB\"", "disk.esp_size", "whole number of MiB"),
        ("ha", "\"ssh-ed25519 AAAA", "\"ed25519 AAAA", "node[6].ssh_authorized_keys[0]", "not an OpenSSH public key"),
        ("ha", "node.kubernetes.io/rack", "node-role.kubernetes.io/x", "node[6].labels", "cannot have the label"),
        ("ha", "path = \"files/motd\"", "path = \"../motd\"", "input[2].path", "leads out of"),
        ("ha", "to = \"/etc/motd\"", "to = \"/etc/../motd\"", "input[2].to", "plain absolute path"),
        ("ha", "sha256 = \"e3", "sha256 = \"zz", "input[2].sha256", "not a SHA-256"),
        ("ha", "mode = \"0644\"", "mode = \"644\"", "input[2].mode", "not a file mode"),
        ("ha", "name = \"motd\"", "name = \"debian\"", "input[2].name", "two inputs have the name"),
        ("ha", "\"ntp.example.org\"", "\"ntp_1\"", "network.ntp_servers[1]", "neither a name nor"),
        ("ha", "\"api.example.org\"", "\"https://x\"", "kubernetes.cert_sans[0]", "neither a name nor"),
        ("ha", "mtu = 1400", "mtu = 1e3", "network.mtu", "must be an integer, this is a number"),
    ];
    let mut failures = String::new();
    for (file, from, to, key, message) in cases {
        let good = match *file {
            "lab" => LAB,
            "ha" => HA,
            "kylin" => KYLIN,
            "dual" => DUAL,
            other => panic!("{other}"),
        };
        assert!(good.contains(from), "{from}");
        match Cluster::parse(file, &good.replacen(from, to, 1)) {
            Ok(_) => failures += &format!("nothing wrong with {to}\n\n"),
            Err(report) => {
                let problems = report.problems();
                if !problems.iter().any(|problem| problem.key == *key && problem.what.contains(message)) {
                    failures += &format!("{key}: {message}\n{report}\n{problems:?}\n\n");
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Any text ends in a report whose places lie in the text.
    #[test]
    fn arbitrary_text_is_survived(text in "\\PC{0,300}") {
        check(&text);
    }

    /// So does a valid file after an accident.
    #[test]
    fn damaged_files_are_survived(at in 0..LAB.len(), length in 0usize..40, insert in "[\\[\\]{}=\"'#.,\\n a-z0-9\\\\ü]{0,8}") {
        let floor = |at: usize| (0..=at.min(LAB.len())).rev().find(|at| LAB.is_char_boundary(*at)).unwrap();
        check(&format!("{}{insert}{}", &LAB[..floor(at)], &LAB[floor(at + length)..]));
    }

    /// And a file whose values have other types.
    #[test]
    fn other_types_are_survived(line in 0usize..200, value in "(7|-1|1\\.5|true|\"\"|\\[\\]|\\[1, \"a\"\\]|\\{\\}|1979-05-27|\"\\\\u0000\")") {
        let lines: Vec<String> = LAB
            .lines()
            .enumerate()
            .map(|(at, text)| match text.split_once(" = ") {
                Some((key, _)) if at == line % LAB.lines().count() => format!("{key} = {value}"),
                _ => text.to_owned(),
            })
            .collect();
        check(&lines.join("\n"));
    }
}

fn check(text: &str) {
    if let Err(report) = Cluster::parse("any.toml", text) {
        assert!(!report.problems().is_empty());
        for problem in report.problems() {
            assert!(problem.span.start <= problem.span.end && problem.span.end <= text.len(), "{problem:?}");
            assert!(text.is_char_boundary(problem.span.start) && text.is_char_boundary(problem.span.end));
            assert!(!problem.what.is_empty());
        }
        assert!(!report.to_string().is_empty() && report.to_json().is_object());
    }
}

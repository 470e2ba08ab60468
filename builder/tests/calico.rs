// SPDX-License-Identifier: MIT OR Apache-2.0

//! What imgbuild sets in Calico's manifest, judged by PyYAML, a reader of YAML 1.1 as Kubernetes has one: what it finds to
//! differ is what was meant to, and nothing else.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output};

use imgbuild::assemble::calico::{Configured, Settings, configure, manifests};
use profiles::Cluster;
use profiles::schema::Encapsulation;

const MANIFEST: &str = include_str!("data/calico.yaml");
const KYLIN: &str = include_str!("../../profiles/kylin-v11-ha/cluster.toml");

/// Prints what differs between two files of documents, one difference a line: the path, what was there, what is. Elements
/// of lists that have a name go by it.
const DIFFERENCES: &str = r#"
import sys, yaml

def flat(path, node):
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flat(f"{path}.{key}", value)
    elif isinstance(node, list) and node:
        for index, value in enumerate(node):
            name = value.get("name", index) if isinstance(value, dict) else index
            yield from flat(f"{path}[{name}]", value)
    else:
        yield path, repr(node)

old, new = ([list(flat("", one)) for one in yaml.safe_load_all(open(path))] for path in sys.argv[1:])
assert len(old) == len(new), "documents"
for before, after in zip(old, new):
    for side in before, after:
        assert len(dict(side)) == len(side), "a path twice"
    before, after = dict(before), dict(after)
    for path in list(before) + [path for path in after if path not in before]:
        if before.get(path) != after.get(path):
            print(path.replace(".spec.template.spec", ""), before.get(path, "-"), after.get(path, "-"))
"#;

fn differences(old: &str, new: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let [old_path, new_path] = ["old.yaml", "new.yaml"].map(|name| dir.path().join(name));
    std::fs::write(&old_path, old).unwrap();
    std::fs::write(&new_path, new).unwrap();
    let output = Command::new("python3").args(["-c", DIFFERENCES]).arg(old_path).arg(new_path).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "these tests need python3-yaml; {errors}\n{new}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn settings() -> Settings {
    Settings::of(&Cluster::parse("kylin-v11-ha", KYLIN).unwrap()).unwrap()
}

fn configured(manifest: &str, settings: &Settings) -> Configured {
    configure(manifest, settings).unwrap_or_else(|problems| panic!("{problems:?}")).unwrap()
}

fn refused(manifest: &str) -> Vec<String> {
    configure(manifest, &settings()).unwrap_err()
}

#[track_caller]
fn edited(from: &str, to: &str) -> String {
    assert!(MANIFEST.contains(from), "{from}");
    MANIFEST.replacen(from, to, 1)
}

#[test]
fn row_28_the_pod_network_is_a_value_in_the_manifest_and_not_a_comment() {
    let found = differences(MANIFEST, &configured(MANIFEST, &settings()).manifest);
    assert_eq!(
        found,
        [
            ".data.calico_backend 'bird' 'vxlan'",
            ".containers[calico-node].env[CALICO_IPV4POOL_IPIP].value 'Always' 'Never'",
            ".containers[calico-node].env[CALICO_IPV4POOL_VXLAN].value 'Never' 'Always'",
            ".containers[calico-node].livenessProbe.exec.command[2] '-bird-live' -",
            ".containers[calico-node].readinessProbe.exec.command[2] '-bird-ready' -",
            ".volumes[flexvol-driver-host].hostPath.path \
             '/usr/libexec/kubernetes/kubelet-plugins/volume/exec/nodeagent~uds' \
             '/var/lib/kubelet/volume-plugins/nodeagent~uds'",
            ".containers[calico-node].env[IP_AUTODETECTION_METHOD].name - 'IP_AUTODETECTION_METHOD'",
            ".containers[calico-node].env[IP_AUTODETECTION_METHOD].value - 'kubernetes-internal-ip'",
            ".containers[calico-node].env[CALICO_IPV4POOL_CIDR].name - 'CALICO_IPV4POOL_CIDR'",
            ".containers[calico-node].env[CALICO_IPV4POOL_CIDR].value - '10.200.0.0/16'",
        ]
    );
}

#[test]
fn row_29_the_address_of_a_node_is_the_one_kubernetes_knows_it_by() {
    let found = |settings: &Settings| differences(MANIFEST, &configured(MANIFEST, settings).manifest).join("\n");
    let line = |method| format!("env[IP_AUTODETECTION_METHOD].value - '{method}'");
    assert!(found(&settings()).contains(&line("kubernetes-internal-ip")));
    let text = KYLIN.replace("\"kubernetes-internal-ip\"", "\"cidr=19.190.3.0/24\"");
    let other = Settings::of(&Cluster::parse("kylin-v11-ha", &text).unwrap()).unwrap();
    assert!(found(&other).contains(&line("cidr=19.190.3.0/24")));
    // It means nothing without being asked to look at all.
    let fixed = edited("value: \"autodetect\"", "value: \"10.0.0.1\"");
    let found = differences(&fixed, &configured(&fixed, &settings()).manifest).join("\n");
    assert!(found.contains("env[IP].value '10.0.0.1' 'autodetect'"), "{found}");
}

#[test]
fn row_30_packets_travel_as_the_cluster_file_says() {
    let default = Settings::of(&Cluster::parse("c", &KYLIN.replace("encapsulation = \"vxlan\"", "")).unwrap()).unwrap();
    assert_eq!(default.encapsulation, Encapsulation::Vxlan);
    let vxlan = configured(MANIFEST, &default).manifest;
    let set = |encapsulation| configured(&vxlan, &Settings { encapsulation, ..settings() }).manifest;
    let env = |variable: &str, values: &str| format!(".containers[calico-node].env[{variable}].value {values}");
    let (ipip, pool) = ("CALICO_IPV4POOL_IPIP", "CALICO_IPV4POOL_VXLAN");
    let backend = ".data.calico_backend 'vxlan' 'bird'".to_owned();
    let expected = vec![backend.clone(), env(ipip, "'Never' 'Always'"), env(pool, "'Always' 'Never'")];
    assert_eq!(differences(&vxlan, &set(Encapsulation::Ipip)), expected);
    assert_eq!(differences(&vxlan, &set(Encapsulation::None)), [backend, env(pool, "'Always' 'Never'")]);
    assert_eq!(set(Encapsulation::Vxlan), vxlan, "what is set already is written the same");
    // With BIRD, the probes ask for it.
    let ipip = configured(MANIFEST, &Settings { encapsulation: Encapsulation::Ipip, ..settings() }).manifest;
    assert!(ipip.contains("bird-live") && ipip.contains("bird-ready"));
    let mtu = configured(MANIFEST, &Settings { mtu: Some(1400), ..settings() }).manifest;
    assert!(differences(MANIFEST, &mtu).contains(&".data.veth_mtu '0' '1400'".to_owned()));
}

/// `imgbuild validate` says so as soon as the manifest is there.
#[test]
fn row_31_an_untested_pair_of_versions_is_told_before_anything_is_built() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cluster.toml"), KYLIN).unwrap();
    std::fs::create_dir(dir.path().join("inputs")).unwrap();
    let validate = || -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imgbuild"));
        command.args(["validate", "--cluster"]).arg(dir.path()).output().unwrap()
    };
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let put = |text: &str| std::fs::write(dir.path().join("inputs/calico.yaml"), text).unwrap();

    let absent = validate();
    assert!(absent.status.success() && !said(&absent).contains("warning"), "{}", said(&absent));
    put(MANIFEST);
    let untested = validate();
    let warning = "warning: Calico 3.26 (docker.io/calico/node:v3.26.1) is tested with Kubernetes 1.24 to 1.28, and this \
                   cluster has 1.32.1";
    assert!(untested.status.success() && said(&untested).contains(warning), "{}", said(&untested));
    put(&MANIFEST.replace("v3.26.1", "v3.29.1"));
    let tested = validate();
    assert!(tested.status.success() && !said(&tested).contains("warning"), "{}", said(&tested));
    put("kind: nothing\n");
    let other = validate();
    assert_eq!(other.status.code(), Some(1), "{}", said(&other));
    assert!(said(&other).contains("has a DaemonSet `calico-node` (inputs/calico.yaml)"), "{}", said(&other));
}

/// All but the two documents are the same bytes.
#[test]
fn other_documents_are_not_touched() {
    let new = configured(MANIFEST, &settings()).manifest;
    let old: Vec<&str> = MANIFEST.split("---\n").collect();
    let new: Vec<&str> = new.split("---\n").collect();
    assert_eq!(old.len(), new.len());
    for (old, new) in old.iter().zip(new) {
        let changed = old.contains("kind: ConfigMap") || old.contains("kind: DaemonSet");
        assert_eq!(changed, *old != new, "{old}\n{new}");
    }
}

/// What YAML 1.1 and 1.2 read differently, in a document that is written anew.
#[test]
fn scalars_keep_their_meaning() {
    let scalars = [
        "yes",
        "no",
        "on",
        "Off",
        "y",
        "~",
        "",
        "null",
        "true",
        "0644",
        "0o644",
        "0x1f",
        "1_000",
        "1e3",
        "1.5e+3",
        ".5",
        "12:30:45",
        "2001-12-14",
        "2001-12-14t21:59:43.10-05:00",
        ".inf",
        "-.INF",
        ".nan",
        "0b11",
        "+1",
        "v1",
        "a b",
        "\"yes\"",
        "'0644'",
        "\"1e3\"",
        "\"\"",
        "''",
        "\"12:30\"",
        "'it''s'",
        "\"a\\tb\\u0007\\x85\\U0001F600\"",
        "\"multi\n      line\n\n      text\"",
        "plain over\n      lines",
        "plain over\n\n      lines",
        ">\n      folded\n      text\n",
        "|\n      literal: yes\n        deeper\n\n      end\n",
        "|-\n      no end",
        "|+\n      more ends\n\n\n",
        "|2\n        begins with blanks\n",
        "| # comment\n      trailing  \n      blanks \n",
        "[]",
        "{}",
        "[yes, 'no', {a: 0644}]",
        "{on: off, 'on2': [1, 2]}",
        "- in\n    - line\n    -\n      - nested\n      - k: v\n        w: [x]",
        "https://host:1/#a",
        "a#b",
        "'# no comment'",
        "'- a'",
        "\"a: b\"",
        "'*a'",
        "'&a'",
        "'!a'",
        "'%a'",
        "'@a'",
        "\u{e4}\u{4e2d}\u{6587}",
    ];
    let mut more = String::new();
    for (index, scalar) in scalars.iter().enumerate() {
        more += &format!("  key{index}: {}{scalar}\n", if scalar.starts_with("- ") { "\n    " } else { "" });
    }
    more += "  first: &a-\n    yes: [0644, &b c-]\n  second: *a-\n  third:\n  - *b\n  - &list\n    - 1e3\n  - *list\n  - &map\n    k: v\n";
    more += "  fourth:\n    <<: *a-\n    010: octal key\n    \"no\": quoted key\n    ? long\n    : value\n";
    let manifest = edited("  veth_mtu: \"0\"\n", &format!("  veth_mtu: \"0\"\n{more}"));
    let new = configured(&manifest, &settings()).manifest;
    assert_eq!(differences(&manifest, &new), differences(MANIFEST, &configured(MANIFEST, &settings()).manifest));
    assert!(new.contains("0644") && new.contains("<<: *a-") && new.contains("defaultMode: 0400"), "{new}");
}

#[test]
fn lines_that_end_with_cr_lf_are_read() {
    let new = configured(&MANIFEST.replace('\n', "\r\n"), &settings()).manifest;
    assert_eq!(differences(&configured(MANIFEST, &settings()).manifest, &new), [""; 0]);
}

/// A variable that is set from elsewhere, or twice: one is left, and it is the cluster's.
#[test]
fn a_variable_has_one_value_afterwards() {
    let manifest = edited(
        "            - name: CALICO_IPV4POOL_IPIP\n",
        "            - name: CALICO_IPV4POOL_CIDR\n              valueFrom: {configMapKeyRef: {name: a, key: b}}\n            \
         - {name: CALICO_IPV4POOL_CIDR, value: 192.168.0.0/16}\n            - name: CALICO_IPV4POOL_IPIP\n",
    );
    let new = configured(&manifest, &settings()).manifest;
    let found = differences(MANIFEST, &new);
    assert!(found.contains(&".containers[calico-node].env[CALICO_IPV4POOL_CIDR].value - '10.200.0.0/16'".to_owned()));
    assert!(!new.contains("192.168") && !new.contains("configMapKeyRef: {"), "{new}");
    let literal = edited(
        "              valueFrom:\n                configMapKeyRef:\n                  name: calico-config\n                  \
         key: calico_backend\n",
        "              value: bird\n",
    );
    let found = differences(&literal, &configured(&literal, &settings()).manifest).join("\n");
    assert!(found.contains("env[CALICO_NETWORKING_BACKEND].value 'bird' 'vxlan'"), "{found}");
}

/// Newer releases spell the options of the probes so.
#[test]
fn probes_with_two_dashes_lose_bird_too() {
    let manifest = MANIFEST.replace("- -felix", "- --felix").replace("- -bird", "- --bird");
    let new = configured(&manifest, &settings()).manifest;
    assert!(new.contains("--felix-live") && !new.contains("bird"), "{new}");
}

#[test]
fn what_cannot_be_set_is_refused_with_its_line() {
    let line = |text: &str| MANIFEST.lines().position(|one| one.contains(text)).unwrap() + 1;
    let cases: &[(String, String)] = &[
        (
            edited("kind: ConfigMap", "kind: Secret"),
            "there is no ConfigMap `calico-config` in namespace kube-system".into(),
        ),
        (
            edited("name: calico-config\n  namespace: kube-system", "name: calico-config\n  namespace: calico-system"),
            format!("line {}: this must be ConfigMap `calico-config`", line("kind: ConfigMap") - 1),
        ),
        (
            edited("        - name: calico-node\n", "        - name: node\n"),
            "none of these containers is `calico-node`".into(),
        ),
        (edited("  calico_backend: \"bird\"\n", ""), "there is no `data.calico_backend` here".into()),
        (
            edited(
                "          env:\n            - name: DATASTORE",
                "          environment:\n            - name: DATASTORE",
            ),
            "there is no `env` here".into(),
        ),
        (edited("              - -felix-live\n", ""), "`livenessProbe` does not ask".into()),
        (edited("- -bird-live", "- sh -c bird-live"), "`livenessProbe` does not ask".into()),
        (
            edited("          env:\n            - name: DATA", "          env: &env\n            - name: DATA"),
            "write it out".into(),
        ),
        (
            format!("{MANIFEST}---\nkind: DaemonSet\nmetadata: {{name: calico-node}}\n"),
            "a second DaemonSet `calico-node`".into(),
        ),
        (edited("  typha_service_name: \"none\"\n", "  a: 1\n  a: 2\n"), "the key `a` is there twice".into()),
        (edited("  replicas: 1", "  replicas: [1"), "line 1".into()),
    ];
    for (manifest, expected) in cases {
        let problems = refused(manifest);
        assert!(problems.iter().any(|problem| problem.contains(expected.as_str())), "{expected}: {problems:?}");
        assert!(problems.iter().all(|problem| problem.starts_with("line ") || problem.starts_with("there is no ")));
    }
    // Everything at once.
    let both = edited("kind: ConfigMap", "kind: Secret").replace("name: IP\n", "name: IP\n              <<: {}\n");
    let both = both.replace("- -bird-ready", "- bird");
    assert_eq!(refused(&both).len(), 3, "{:?}", refused(&both));
}

/// The manifest is found by what is in it, and there is one.
#[test]
fn one_manifest_has_the_daemon_set() {
    let second = "[[input]]\nkind = \"file\"\nname = \"second\"\npath = \"inputs/second.yaml\"\n\
                  to = \"/opt/imgbuild/manifests/20-second.yaml\"\n\n[os]";
    let cluster = Cluster::parse("c", &KYLIN.replace("[os]", second)).unwrap();
    let with = |first: Option<&str>, second: Option<&str>| {
        let bytes = |text: Option<&str>| Ok(text.map(|text| text.as_bytes().to_vec()));
        manifests(&cluster, |file| bytes(if file.name == "second" { second } else { first }))
    };
    let places = |found: anyhow::Result<std::collections::BTreeMap<String, Configured>>| {
        found.unwrap().into_keys().collect::<Vec<_>>()
    };
    let other = "kind: Pod\nmetadata: {name: calico-node}\n";
    assert_eq!(places(with(Some(MANIFEST), Some(other))), ["/opt/imgbuild/manifests/10-calico.yaml"]);
    assert_eq!(places(with(Some("\u{0}{"), Some(MANIFEST))), ["/opt/imgbuild/manifests/20-second.yaml"]);
    assert_eq!(places(with(None, Some(other))), [""; 0]);
    let several = with(Some(MANIFEST), Some(MANIFEST)).unwrap_err().to_string();
    assert!(several.contains("several manifests") && several.contains("inputs/second.yaml"), "{several}");
    let none = with(Some(other), Some("")).unwrap_err().to_string();
    assert!(none.contains("(inputs/calico.yaml, inputs/second.yaml)"), "{none}");
    let broken = with(Some(&MANIFEST.replace("containers:", "kontainers:")), Some(other)).unwrap_err().to_string();
    assert!(
        broken.contains("\n  inputs/calico.yaml: line ") && broken.contains("spec.template.spec.containers"),
        "{broken}"
    );
    // No other plugin has its manifests changed.
    let text = KYLIN.replace("\"calico\"\n\n[network.calico]", "\"manifest\"\n\n[network.calico]");
    let text = text.replace("[network.calico]\n", "").replace("encapsulation = \"vxlan\"\n", "");
    let text = text.replace("ip_autodetection = \"kubernetes-internal-ip\"\n", "");
    let manifest_plugin = Cluster::parse("c", &text).unwrap();
    assert!(manifests(&manifest_plugin, |_| unreachable!()).unwrap().is_empty());
}

#[test]
#[ignore = "needs a folder with manifests of Calico's releases, named by CALICO_MANIFESTS"]
fn manifests_of_releases_differ_in_nothing_else() {
    let dir = std::env::var_os("CALICO_MANIFESTS").unwrap();
    for entry in std::fs::read_dir(Path::new(&dir)).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for found in differences(&text, &configured(&text, &settings()).manifest) {
            println!("{}: {found}", path.display());
            let known = ["calico_backend", "CALICO_IPV4POOL", "IP_AUTODETECTION_METHOD", "bird", "flexvol"];
            assert!(known.iter().any(|known| found.contains(known)), "{found}");
        }
    }
}

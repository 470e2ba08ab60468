// SPDX-License-Identifier: MIT OR Apache-2.0
//! Add-ons in a cluster file: what they say keeps its type, and each mistake is found in its place.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use profiles::Cluster;
use profiles::schema::Value;

const LAB: &str = include_str!("../lab/cluster.toml");

/// The lab with what is to be read before its first input.
fn lab(more: &str) -> String {
    LAB.replacen("[[input]]", &format!("{more}\n[[input]]"), 1)
}

const GOOD: &str = r#"
[[addon]]
name = "cert-manager"
manifests = ["addons/crds.yaml", "addons/cert-manager.yaml"]
images = { "quay.io/jetstack" = "registry.example.org/jetstack" }

[[addon.patch]]
object = "Deployment/cert-manager/cert-manager-webhook"
set = "spec.template.spec.containers[name=cert-manager].args"
value = ["--v=2", "yes"]

[[addon.patch]]
object = "ClusterRole/cert-manager:view"
add = 'metadata.annotations."example.org/a.b"'
value = "0644"

[[addon.patch]]
object = "DaemonSet/kube-system/cilium"
add = "spec.template.spec.affinity"
value = { a = { b = [1, 0x10, 1.5, true] } }

[[addon.patch]]
object = "DaemonSet/kube-system/cilium"
delete = "spec.template.spec.tolerations[0]"

[[addon.wait]]
object = "Deployment/cert-manager/cert-manager-webhook"
condition = "Available"

[[addon.wait]]
object = "DaemonSet/kube-system/cilium"
condition = "rolled-out"
timeout = "30m"
"#;

#[test]
fn an_addon_is_read_with_the_types_of_its_values() {
    let cluster = Cluster::parse("cluster.toml", &lab(GOOD)).unwrap_or_else(|report| panic!("{report}"));
    let [addon] = &cluster.addon[..] else { panic!("one add-on") };
    assert_eq!(addon.manifests, ["addons/crds.yaml", "addons/cert-manager.yaml"]);
    assert_eq!(addon.images["quay.io/jetstack"], "registry.example.org/jetstack");
    let string = |text: &str| Value::String(text.to_owned());
    let values: Vec<Option<Value>> = addon.patch.iter().map(|patch| patch.value.clone()).collect();
    let list = Value::List(vec![Value::Integer(1), Value::Integer(16), Value::Float(1.5), Value::Boolean(true)]);
    let table = |key: &str, value| Value::Table(BTreeMap::from([(key.to_owned(), value)]));
    assert_eq!(
        values,
        [
            Some(Value::List(vec![string("--v=2"), string("yes")])),
            Some(string("0644")),
            Some(table("a", table("b", list))),
            None
        ]
    );
    assert_eq!(addon.patch[1].object.to_string(), "ClusterRole/cert-manager:view");
    assert_eq!(addon.patch[3].delete.as_ref().unwrap().to_string(), "spec.template.spec.tolerations[0]");
    let waits: Vec<(&str, Duration)> = addon.wait.iter().map(|wait| (wait.condition.as_str(), wait.timeout)).collect();
    assert_eq!(waits, [("Available", Duration::from_secs(600)), ("rolled-out", Duration::from_secs(1800))]);
}

#[test]
fn each_mistake_is_found_in_its_place() {
    let file = "[[input]]\nkind = \"file\"\nname = \"klum-yaml\"\npath = \"klum.yaml\"\nto = \"/opt/imgbuild/manifests/k.yaml\"\n";
    let cases: &[(&str, &str, &str, &str)] = &[
        // what is replaced, by what, the key, a part of the message
        ("name = \"cert-manager\"", "name = \"Cert\"", "addon[0].name", "not the name of an add-on"),
        ("name = \"cert-manager\"", "nmae = \"cert-manager\"", "addon[0].nmae", "has no key `nmae`"),
        ("[\"addons/crds.yaml\", \"addons/cert-manager.yaml\"]", "[]", "addon[0].manifests", "has no manifest"),
        ("addons/crds.yaml", "../crds.yaml", "addon[0].manifests[0]", "leads out of the directory"),
        ("addons/crds.yaml", "addons/cert-manager.yaml", "addon[0].manifests[1]", "is listed twice"),
        ("addons/crds.yaml", "input:klum", "addon[0].manifests[0]", "no input of kind \"file\" is called `klum`"),
        (
            "\"quay.io/jetstack\" =",
            "\"quay.io/jetstack/\" =",
            "addon[0].images.quay.io/jetstack/",
            "is not the beginning",
        ),
        ("registry.example.org/jetstack", "quay.io/jetstack", "addon[0].images.quay.io/jetstack", "become what it is"),
        ("\"ClusterRole/cert-manager:view\"", "\"view\"", "addon[0].patch[1].object", "has not two or three parts"),
        ("\"ClusterRole/cert-manager:view\"", "7", "addon[0].patch[1].object", "must be a string"),
        ("tolerations[0]", "tolerations[0", "addon[0].patch[3].delete", "bracket that does not end"),
        ("tolerations[0]", "tolerations[]", "addon[0].patch[3].delete", "nothing to delete at the end of a list"),
        ("delete = \"spec.template.spec.tolerations[0]\"", "", "addon[0].patch[3]", "says no place"),
        ("delete = \"spec", "set = \"spec.a\"\ndelete = \"spec", "addon[0].patch[3]", "says 2 places"),
        ("delete = \"spec", "set = \"spec", "addon[0].patch[3]", "`set` has no `value`"),
        ("tolerations[0]\"", "tolerations[0]\"\nvalue = 1", "addon[0].patch[3].value", "`delete` has a `value`"),
        ("value = \"0644\"", "value = 1979-05-27", "addon[0].patch[1].value", "is a date"),
        ("value = \"0644\"", "value = inf", "addon[0].patch[1].value", "is no number that JSON has"),
        ("[1, 0x10,", "[1979-05-27,", "addon[0].patch[2].value.a.b[0]", "is a date"),
        ("\"Available\"", "\"Avail able\"", "addon[0].wait[0].condition", "is not a condition"),
        ("\"30m\"", "\"48h\"", "addon[0].wait[1].timeout", "longer than a day"),
        ("\"30m\"", "\"half an hour\"", "addon[0].wait[1].timeout", "not a duration"),
        (
            "DaemonSet/kube-system/cilium\"\ncondition",
            "Job/a\"\ncondition",
            "addon[0].wait[1].condition",
            "a Job is not rolled out",
        ),
    ];
    for (from, to, key, part) in cases {
        assert!(GOOD.contains(from), "{from}");
        let text = lab(&GOOD.replacen(from, to, 1));
        let report = Cluster::parse("cluster.toml", &text).expect_err(part);
        let found: Vec<&str> = report.problems().iter().map(|problem| problem.key.as_str()).collect();
        assert!(found.contains(key) && report.to_string().contains(part), "{part}: {found:?}\n{report}");
        assert_eq!(found.len(), 1, "{part}: {report}");
    }
    let twice =
        Cluster::parse("cluster.toml", &lab(&format!("{GOOD}{}", GOOD.replace("addons/", "more/")))).unwrap_err();
    assert!(twice.to_string().contains("two add-ons have the name cert-manager"), "{twice}");
    let applied = lab(&format!("{}{file}", GOOD.replace("addons/crds.yaml", "input:klum-yaml")));
    let report = Cluster::parse("cluster.toml", &applied).unwrap_err().to_string();
    assert!(report.contains("the file of input `klum-yaml` is applied twice"), "{report}");
    let ours = lab(&format!("{GOOD}{}", file.replace("manifests/k.yaml", "addons/k.yaml")));
    let report = Cluster::parse("cluster.toml", &ours).unwrap_err().to_string();
    assert!(report.contains("is in the folder of the add-ons"), "{report}");
    let shared = lab(&format!(
        "{}{}",
        GOOD.replace("addons/crds.yaml", "input:klum-yaml"),
        file.replace("manifests/k.yaml", "share/k.yaml")
    ));
    Cluster::parse("cluster.toml", &shared).unwrap_or_else(|report| panic!("{report}"));
}

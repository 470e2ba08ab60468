// SPDX-License-Identifier: MIT OR Apache-2.0

//! Add-ons as the payload gets them: the stack of a guide (Cilium, cert-manager, a scheduler over clusters, klum) with what it changes by
//! hand, judged by PyYAML, a reader of YAML 1.1 as Kubernetes has one; and what cannot be used, named with its place.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::process::{Command, Output};

use imgbuild::assemble::addons::{Prepared, prepare};
use profiles::Cluster;
use profiles::addon_index::Index;
use serde_json::Value;

const LAB: &str = include_str!("../../profiles/lab/cluster.toml");
/// The one that docs/addons.md shows.
const DOCS: &str = include_str!("../../docs/addons.md");

const CILIUM: &str = "# Source: cilium/templates/configmap.yaml\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: cilium-config\n  namespace: kube-system\n\
    data:\n  # Unique for each cluster.\n  cluster-name: default\n  cluster-id: \"0\"\n  debug: \"false\"\n---\n# Source: cilium/templates/daemonset.yaml\n\
    apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: cilium, namespace: kube-system}\nspec:\n  selector: {matchLabels: {k8s-app: cilium}}\n\
    \x20 template:\n    metadata: {labels: {k8s-app: cilium}}\n    spec:\n      tolerations:\n      - operator: Exists\n      containers:\n\
    \x20     - name: cilium-agent\n        image: \"docker.io/cilium/cilium:v1.8.1\"\n        imagePullPolicy: Always\n        args: [--config-dir=/tmp]\n";

const CERT_MANAGER: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: cert-manager\n---\napiVersion: v1\nkind: List\nitems:\n\
    - apiVersion: apiextensions.k8s.io/v1\n  kind: CustomResourceDefinition\n  metadata: {name: issuers.cert-manager.io}\n  spec: {group: cert-manager.io}\n\
    - apiVersion: apps/v1\n  kind: Deployment\n  metadata: {name: cert-manager-webhook, namespace: cert-manager}\n  spec:\n    template:\n      spec:\n\
    \x20       containers:\n        - name: cert-manager\n          image: quay.io/jetstack/cert-manager-webhook:v0.12.0\n          args:\n          - --v=1\n";

const DEFINITIONS: &str = "# 00-crds.yaml\n---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  name: certificates.cert-manager.io\n\
    spec:\n  versions:\n  - name: v1alpha2\n    schema: {openAPIV3Schema: {properties: {containers: {type: array}}}}\n";

const KLUM: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: klum\n  namespace: klum\nspec:\n  template:\n    spec:\n      containers:\n\
    \x20     - {name: klum, image: ibuildthecloud/klum:v0.0.1}\n";

const USER: &str = "kind: User\napiVersion: klum.cattle.io/v1alpha1\nmetadata:\n  name: c1\nspec:\n  clusterRoles:\n    - multicluster-scheduler-source\n";

fn files() -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("addons/cilium.yaml", CILIUM.to_owned()),
        ("addons/00-crds.yaml", DEFINITIONS.to_owned()),
        ("addons/cert-manager.yaml", CERT_MANAGER.to_owned()),
        ("addons/klum.yaml", KLUM.to_owned()),
        ("addons/klum-user.yaml", USER.to_owned()),
    ])
}

/// The add-ons of the documentation.
fn stack() -> String {
    DOCS.split("```toml\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .find(|block| block.contains("cilium"))
        .unwrap()
        .to_owned()
}

fn cluster(addons: &str) -> Cluster {
    let text = LAB.replacen("[[input]]", &format!("{addons}\n[[input]]"), 1);
    Cluster::parse("cluster.toml", &text).unwrap_or_else(|report| panic!("{report}"))
}

fn prepared(addons: &str, files: &BTreeMap<&str, String>) -> Result<Prepared, String> {
    let read = |path: &str| Ok(files.get(path).map(|text| text.clone().into_bytes()));
    prepare(&cluster(addons), read).map_err(|error| format!("{error:#}"))
}

/// The documents of a YAML file, as PyYAML reads them.
fn documents(text: &str) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.yaml");
    std::fs::write(&path, text).unwrap();
    let script = "import json, sys, yaml\nprint(json.dumps([one for one in yaml.safe_load_all(open(sys.argv[1])) if one is not None]))";
    let output = Command::new("python3").args(["-c", script]).arg(&path).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "these tests need python3-yaml; {errors}\n{text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_documented_stack_becomes_what_kubectl_reads() {
    let done = prepared(&stack(), &files()).unwrap();
    let paths: Vec<&str> = done.files.keys().map(String::as_str).collect();
    assert_eq!(
        paths,
        [
            "addons/01-cilium.yaml",
            "addons/02-cert-manager-definitions.yaml",
            "addons/02-cert-manager.yaml",
            "addons/03-klum.yaml",
            "addons/04-klum-users.yaml",
            "addons/index.json"
        ]
    );
    let [config, agents] = &documents(&done.files["addons/01-cilium.yaml"])[..] else { panic!("two documents") };
    assert_eq!(config["data"], serde_json::json!({"cluster-name": "c1", "cluster-id": "1", "debug": "false"}));
    let pod = &agents["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["imagePullPolicy"], "IfNotPresent");
    let terms = &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    assert_eq!(terms[0]["matchExpressions"][0]["operator"], "DoesNotExist");
    assert_eq!(pod["tolerations"], serde_json::json!([{"operator": "Exists"}]), "untouched");

    let definitions = documents(&done.files["addons/02-cert-manager-definitions.yaml"]);
    let names: Vec<&str> = definitions.iter().map(|one| one["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["certificates.cert-manager.io", "issuers.cert-manager.io"]);
    let others = documents(&done.files["addons/02-cert-manager.yaml"]);
    let kinds: Vec<&str> = others.iter().map(|one| one["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Namespace", "Deployment"], "the list is taken apart");
    let webhook = &others[1]["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        (&webhook["args"], &webhook["image"]),
        (&serde_json::json!(["--v=1", "--v=2"]), &"registry.local/jetstack/cert-manager-webhook:v0.12.0".into())
    );
    assert_eq!(done.files["addons/03-klum.yaml"], KLUM, "nothing is changed");

    let index: Index = serde_json::from_str(&done.files["addons/index.json"]).unwrap();
    let shown: Vec<String> = index
        .addons
        .iter()
        .map(|addon| {
            let waits: Vec<String> =
                addon.waits.iter().map(|wait| format!("{} {} {}", wait.resource, wait.name, wait.condition)).collect();
            format!("{}: {}", addon.name, waits.join(", "))
        })
        .collect();
    assert_eq!(
        shown,
        [
            "cilium: DaemonSet.v1.apps cilium rolled-out",
            "cert-manager: Deployment.v1.apps cert-manager-webhook Available",
            "klum: Deployment.v1.apps klum Available, CustomResourceDefinition users.klum.cattle.io Established",
            "klum-users: ",
        ]
    );
    let wanted: Vec<&str> = done.wanted.iter().map(|one| one.reference.as_str()).collect();
    let expected = [
        "docker.io/cilium/cilium:v1.8.1",
        "registry.local/jetstack/cert-manager-webhook:v0.12.0",
        "docker.io/ibuildthecloud/klum:v0.0.1",
    ];
    assert_eq!(wanted, expected);
    assert!(done.wanted[0].by.starts_with("add-on `cilium` (addons/cilium.yaml line "), "{}", done.wanted[0].by);
    let [warning] = &done.warnings[..] else { panic!("{:?}", done.warnings) };
    assert!(
        warning.contains("waits for CustomResourceDefinition/users.klum.cattle.io, which none of its manifests has"),
        "{warning}"
    );
}

/// Megabytes of definitions, comments, an object twice: all of it stays as it is.
#[test]
fn what_no_patch_names_stays_as_it_came() {
    let row = |number: usize| format!("          field{number}: {{type: string, description: \"no: 0644\"}} # yes\n");
    let schema: String = (0..40_000).map(row).collect();
    let big = format!(
        "# Licence\n---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: bigs.example.org}}\nspec:\n  versions:\n\
         \x20 - schema:\n      openAPIV3Schema:\n        properties:\n{schema}"
    );
    let twice = "---\nkind: Namespace\napiVersion: v1\nmetadata: {name: a} # twice\n---\nkind: Namespace\napiVersion: v1\nmetadata: {name: a} # twice\n";
    let last = "---\nkind: ConfigMap\napiVersion: v1\nmetadata: {name: c, namespace: a}\ndata: {on: 'off'}";
    let files = BTreeMap::from([("big.yaml", format!("{big}{twice}{last}"))]);
    let addon = "[[addon]]\nname = \"big\"\nmanifests = [\"big.yaml\"]\n";
    let done = prepared(addon, &files).unwrap();
    assert!(
        big.len() > 2 << 20
            && done.files["addons/01-big-definitions.yaml"]
                == big.split_once("---").map(|(_, rest)| format!("---{rest}")).unwrap()
    );
    assert_eq!(done.files["addons/01-big.yaml"], format!("# Licence\n{twice}{last}"));
    // One of them is changed: both are, and nothing else.
    let patch = format!(
        "{addon}[[addon.patch]]\nobject = \"Namespace/a\"\nadd = \"metadata.labels\"\nvalue = {{ \"on\" = \"yes\" }}\n"
    );
    let done = prepared(&patch, &files).unwrap();
    let found = documents(&done.files["addons/01-big.yaml"]);
    assert_eq!(found[0]["metadata"]["labels"], serde_json::json!({"on": "yes"}));
    assert_eq!(found[0], found[1]);
    assert!(done.files["addons/01-big.yaml"].ends_with(last));
}

#[test]
fn everything_that_cannot_be_done_is_told_at_once() {
    let stack = stack()
        .replace("DaemonSet/kube-system/cilium", "DaemonSet/kube-system/cilum")
        .replace("cluster-name", "cluster-nmae");
    let stack = stack.replace("\"quay.io/jetstack\" =", "\"quay.io/jet\" =");
    let mut files = files();
    files.insert("addons/klum.yaml", format!("{KLUM}---\nkind: Job\nmetadata:\n  generateName: x-\n---\nfoo: bar\n"));
    files.insert("addons/klum-user.yaml", "kind: [".to_owned());
    let told = prepared(&stack, &files).unwrap_err();
    for part in [
        "addons/cilium.yaml: line 9: there is no `data.cluster-nmae` here; did you mean `cluster-name`? (patch 1 of add-on `cilium`, \
         ConfigMap/kube-system/cilium-config)",
        "addons/cilium.yaml: there is no such object: patch 3 of add-on `cilium`, DaemonSet/kube-system/cilum; did you mean \
         `DaemonSet/kube-system/cilium`?",
        "add-on `cert-manager`: no image of its manifests begins with \"quay.io/jet\" of `images`; there is \
         `quay.io/jetstack/cert-manager-webhook:v0.12.0`",
        "addons/klum.yaml: line 12: Job/x- gets its name from the server",
        "addons/klum.yaml: line 16: this is no object of Kubernetes",
        "addons/klum-user.yaml: line ",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
}

/// One that gets its name from the server is given one.
#[test]
fn an_object_without_a_name_can_be_given_one() {
    let files = BTreeMap::from([(
        "job.yaml",
        "kind: Job\napiVersion: batch/v1\nmetadata: {generateName: x-, namespace: a}\n".to_owned(),
    )]);
    let addon = "[[addon]]\nname = \"job\"\nmanifests = [\"job.yaml\"]\n[[addon.patch]]\nobject = \"Job/a/x-\"\nadd = \"metadata.name\"\nvalue = \"x\"\n\
                 [[addon.wait]]\nobject = \"Job/a/x\"\ncondition = \"Complete\"\n";
    let done = prepared(addon, &files).unwrap();
    assert_eq!(documents(&done.files["addons/01-job.yaml"])[0]["metadata"]["name"], "x");
    let index: Index = serde_json::from_str(&done.files["addons/index.json"]).unwrap();
    assert_eq!(index.addons[0].waits[0].resource, "Job.v1.batch");
}

/// `imgbuild validate` says it as soon as the manifests are there.
#[test]
fn validate_names_manifest_object_and_what_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    let text = LAB.replacen(
        "[[input]]",
        &format!("{}\n[[input]]", stack().replace("cert-manager-webhook\"", "cert-manager-webhok\"")),
        1,
    );
    std::fs::write(dir.path().join("cluster.toml"), text).unwrap();
    let validate = || -> Output {
        Command::new(env!("CARGO_BIN_EXE_imgbuild")).args(["validate", "--cluster"]).arg(dir.path()).output().unwrap()
    };
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let absent = validate();
    assert!(absent.status.success(), "{}", said(&absent));
    std::fs::create_dir(dir.path().join("addons")).unwrap();
    for (path, text) in files() {
        std::fs::write(dir.path().join(path), text).unwrap();
    }
    let wrong = validate();
    assert_eq!(wrong.status.code(), Some(1), "{}", said(&wrong));
    let told = "there is no such object: patch 1 of add-on `cert-manager`, Deployment/cert-manager/cert-manager-webhok; did you mean \
                `Deployment/cert-manager/cert-manager-webhook`?";
    assert!(said(&wrong).contains(told), "{}", said(&wrong));
}

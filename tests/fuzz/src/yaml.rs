// SPDX-License-Identifier: MIT OR Apache-2.0

//! YAML: Kubernetes manifests, of which one is changed and all are searched for images; seeds; kubeconfigs.

use firstboot::{cert, seed};
use imgbuild::proof::images::wanted_by_manifest;
use profiles::Cluster;
use profiles::seed::{Secrets, Seed, without_secrets};

use crate::cluster::FILES;
use crate::{SEPARATOR, parts};

/// Reads `data` as each of them; of a seed it is user-data and meta-data.
pub fn run(data: &[u8]) {
    let parts = parts(data);
    let _ = seed::document::parse(parts.get(1).copied().unwrap_or_default(), parts[0]);
    let Ok(text) = std::str::from_utf8(data) else { return };
    imgbuild::fuzz::manifest(text);
    let _ = wanted_by_manifest("a.yaml", text);
    let _ = cert::try_kubeconfig_client_validity(text);
    let Ok(user) = std::str::from_utf8(parts[0]) else { return };
    // Secrets go, and nothing else.
    if let (Ok(before), Ok(Some(erased))) = (Seed::parse(user, ""), without_secrets(user)) {
        let after = Seed::parse(&erased, "").expect("what is left of a seed is one");
        assert_eq!(after, Seed { secrets: Secrets::default(), ..before }, "{erased}");
        assert_eq!(without_secrets(&erased).ok(), Some(None), "{erased}");
    }
}

const MANIFEST: &str = "# c\napiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: calico-node, labels: &l {a: 'b'}}\nspec:\n  \
    template:\n    spec:\n      initContainers:\n      - image: docker.io/calico/cni:v3.26.1\n      containers:\n        - name: x\n          \
    image: \"docker.io/calico/node:v3.26.1\"\n          env: [{name: A, value: \"yes\"}, {name: B, value: *l}]\n          text: |+\n            \
    a\n             b\n\n---\nkind: ConfigMap\ndata:\n  x: >-\n    folded\n    text\n  \"12:30\": 0644\n  ? y\n  : ~\n";
const KUBECONFIG: &str =
    "apiVersion: v1\nkind: Config\nusers:\n- name: a\n  user:\n    client-certificate-data: LS0tLS1CRUdJTg==\n";

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![MANIFEST.as_bytes().to_vec(), KUBECONFIG.as_bytes().to_vec()];
    for text in &FILES[..2] {
        let cluster = Cluster::parse("cluster.toml", text).expect("a lab's file is good");
        let profile = cluster.node_profile(&cluster.node[0].name, &"0".repeat(32)).expect("its first node");
        let secrets = Secrets([("/etc/kubernetes/pki/ca.key".to_owned(), "PEM\n".to_owned())].into());
        let seed = Seed::new(profile, secrets).expect("a seed");
        let documents = [seed.user_data().expect("user-data"), seed.meta_data().expect("meta-data")];
        seeds.push([documents[0].as_bytes(), documents[1].as_bytes()].join(SEPARATOR));
    }
    seeds
}

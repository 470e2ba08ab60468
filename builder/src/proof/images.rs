// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every container image that anything on the node will ask for is in the payload, under exactly that name.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use profiles::node::{Architecture, ClusterDns};
use profiles::schema::KubernetesSection;
use serde_json::Value;

use crate::error::Failure;
use crate::image::oci::reference;

/// An image somebody will ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The full reference, as kubelet will ask for it.
    pub reference: String,
    /// Who asks.
    pub by: String,
}

/// The CoreDNS image of each kubeadm minor from 1.19 on (`CoreDNSVersion` in cmd/kubeadm/app/constants/constants.go), newest
/// last; a minor that is not listed has the version of the one before it.
const COREDNS: &[(u32, &str)] = &[
    (19, "1.7.0"),
    (21, "v1.8.0"),
    (22, "v1.8.4"),
    (23, "v1.8.6"),
    (25, "v1.9.3"),
    (27, "v1.10.1"),
    (29, "v1.11.1"),
    (32, "v1.11.3"),
];

/// What kubeadm and the sandbox setting will ask for.
/// Source of the names: `cmd/kubeadm/app/images/images.go`. etcd is external and asks for none.
pub fn wanted_by_kubeadm(kubernetes: &KubernetesSection) -> Vec<Wanted> {
    let (repository, version) = (&kubernetes.image_repository, &kubernetes.version);
    let mut wanted: Vec<Wanted> = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"]
        .iter()
        .map(|name| Wanted { reference: format!("{repository}/{name}:v{version}"), by: format!("kubeadm {version}") })
        .collect();
    wanted.push(Wanted {
        reference: kubernetes.pause_image.clone(),
        by: "containerd's sandbox setting and kubelet (`pause_image`)".into(),
    });
    let minor = version.minor;
    if kubernetes.dns == ClusterDns::Coredns
        && let Some((_, coredns)) = COREDNS.iter().rev().find(|(from, _)| *from <= minor)
    {
        // kubeadm inserts one more path component under the upstream registry only, since 1.21.
        let upstream = repository == "registry.k8s.io" || repository == "k8s.gcr.io";
        let path = if upstream && minor >= 21 { "coredns/coredns" } else { "coredns" };
        wanted.push(Wanted {
            reference: format!("{repository}/{path}:{coredns}"),
            by: format!("kubeadm {version}, `dns = \"coredns\"`"),
        });
    }
    wanted
}

/// What the pods of a manifest will ask for: the `image` of every container of every document, by its full name.
///
/// # Errors
/// If it is not YAML.
pub fn wanted_by_manifest(name: &str, text: &str) -> Result<Vec<Wanted>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|error| Failure::user(format!("the manifest {name} is not YAML: {error}")))?;
    let mut found = BTreeSet::new();
    documents.iter().for_each(|document| containers(document, &mut found));
    let wanted = |image: String| Wanted { reference: reference::completed(&image), by: format!("the manifest {name}") };
    Ok(found.into_iter().map(wanted).collect())
}

/// Lists that hold containers, in pods and in whatever makes pods.
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];

fn containers(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let list = value.as_array().filter(|_| CONTAINERS.contains(&key.as_str()));
                let images = list.into_iter().flatten().filter_map(|container| container["image"].as_str());
                found.extend(images.map(str::to_owned));
                containers(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| containers(value, found)),
        _ => {}
    }
}

/// What does not add up: one sentence for each image that is missing or made for another architecture.
pub fn problems(wanted: &[Wanted], payload: &BTreeMap<String, Architecture>, node: Architecture) -> Vec<String> {
    let mut seen = BTreeSet::new();
    wanted
        .iter()
        .filter(|image| seen.insert(&image.reference))
        .filter_map(|image| match payload.get(&image.reference) {
            None => Some(format!(
                "image `{}` is not in the payload, but {} will ask for it; bring it in an input of kind \"image-archive\", \
                 or assemble it: [[image]] reference = \"{}\"",
                image.reference, image.by, image.reference
            )),
            Some(architecture) if *architecture != node => Some(format!(
                "image `{}`, which {} will ask for, is made for {architecture:?}, but the node is {node:?}",
                image.reference, image.by
            )),
            Some(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use profiles::node::ProxyMode;

    use super::*;

    fn kubernetes(version: &str, dns: ClusterDns) -> KubernetesSection {
        KubernetesSection {
            version: version.parse().unwrap(),
            image_repository: "k8s.gcr.io".into(),
            pause_image: "k8s.gcr.io/pause:3.2".into(),
            proxy_mode: ProxyMode::Iptables,
            dns,
            apiserver_port: 6443,
            cert_sans: Vec::new(),
            control_plane_timeout: Duration::from_secs(240),
            probe_period: None,
            encryption_algorithm: profiles::node::EncryptionAlgorithm::default(),
            apiserver_extra_args: BTreeMap::new(),
            controller_manager_extra_args: BTreeMap::new(),
            scheduler_extra_args: BTreeMap::new(),
            kubelet_extra_args: BTreeMap::new(),
        }
    }

    #[test]
    fn removing_any_one_image_is_noticed_by_name() {
        let wanted = wanted_by_kubeadm(&kubernetes("1.20.2", ClusterDns::Coredns));
        let full: BTreeMap<_, _> = wanted.iter().map(|image| (image.reference.clone(), Architecture::Amd64)).collect();
        assert_eq!(full.len(), 6);
        assert!(problems(&wanted, &full, Architecture::Amd64).is_empty());
        for image in &wanted {
            let mut less = full.clone();
            less.remove(&image.reference);
            let found = problems(&wanted, &less, Architecture::Amd64);
            assert_eq!(found.len(), 1);
            assert!(found[0].contains(&image.reference), "{found:?}");
        }
        assert_eq!(problems(&wanted, &full, Architecture::Loong64).len(), 6);
    }

    #[test]
    fn a_manifest_asks_for_the_images_of_its_containers() {
        let text = "kind: DaemonSet\nspec:\n  template:\n    spec:\n      initContainers:\n      - name: a\n        image: calico/cni:v1\n\
                    \x20     containers:\n      - {name: b, image: 'lcr.loongnix.cn/calico/node:1'}\n      - {name: c, image: calico/cni:v1}\n---\n\
                    kind: CustomResourceDefinition\nspec: {properties: {image: {type: string}, containers: {type: array}}}\n---\n";
        let references: Vec<String> =
            wanted_by_manifest("x.yaml", text).unwrap().into_iter().map(|wanted| wanted.reference).collect();
        assert_eq!(references, ["docker.io/calico/cni:v1", "lcr.loongnix.cn/calico/node:1"]);
        assert!(
            wanted_by_manifest("x.yaml", "a: [").unwrap_err().to_string().contains("the manifest x.yaml is not YAML")
        );
    }

    #[test]
    fn coredns_is_named_as_kubeadm_of_that_minor_names_it() {
        let reference = |version: &str| {
            wanted_by_kubeadm(&kubernetes(version, ClusterDns::Coredns)).pop().map(|image| image.reference)
        };
        assert_eq!(reference("1.20.2").as_deref(), Some("k8s.gcr.io/coredns:1.7.0"));
        assert_eq!(reference("1.21.1").as_deref(), Some("k8s.gcr.io/coredns/coredns:v1.8.0"));
        assert_eq!(reference("1.32.1").as_deref(), Some("k8s.gcr.io/coredns/coredns:v1.11.3"));
    }
}

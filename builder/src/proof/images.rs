// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every container image that anything on the node will ask for is in the payload, under exactly that name.

use std::collections::BTreeSet;

use anyhow::Result;
use profiles::node::{Architecture, ClusterDns};
use profiles::schema::KubernetesSection;

use crate::error::Failure;
use crate::image::oci::reference;
use crate::manifest::images::{Place, named};
use crate::manifest::{Document, documents};
use crate::proof::image_report::{Offered, Report, State};

/// An image somebody will ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The full reference, as kubelet will ask for it.
    pub reference: String,
    /// Who asks.
    pub by: String,
    /// Whether it is known that it will; otherwise something there looks like the name of an image.
    pub certain: bool,
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
    let wanted = |reference, by| Wanted { reference, by, certain: true };
    let mut asked: Vec<Wanted> = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"]
        .iter()
        .map(|name| wanted(format!("{repository}/{name}:v{version}"), format!("kubeadm {version}")))
        .collect();
    asked.push(wanted(
        kubernetes.pause_image.clone(),
        "containerd's sandbox setting and kubelet (`pause_image`)".into(),
    ));
    let minor = version.minor;
    if kubernetes.dns == ClusterDns::Coredns
        && let Some((_, coredns)) = COREDNS.iter().rev().find(|(from, _)| *from <= minor)
    {
        // kubeadm inserts one more path component under the upstream registry only, since 1.21.
        let upstream = repository == "registry.k8s.io" || repository == "k8s.gcr.io";
        let path = if upstream && minor >= 21 { "coredns/coredns" } else { "coredns" };
        let by = format!("kubeadm {version}, `dns = \"coredns\"`");
        asked.push(wanted(format!("{repository}/{path}:{coredns}"), by));
    }
    asked
}

/// What the pods of a manifest will ask for: the `image` of every container of every document, by its full name, and what in
/// their arguments and variables looks like one.
///
/// # Errors
/// If it is not YAML.
pub fn wanted_by_manifest(name: &str, text: &str) -> Result<Vec<Wanted>> {
    let documents = read(name, text)?;
    let wanted = named(&documents).into_iter().map(|one| {
        let object = one.object.map(|object| format!(" ({object})")).unwrap_or_default();
        let certain = matches!(one.place, Place::Container { .. });
        Wanted { reference: reference::completed(&one.image), by: format!("the manifest {name}{object}"), certain }
    });
    let mut seen = BTreeSet::new();
    Ok(wanted.filter(|one| seen.insert((one.reference.clone(), one.by.clone()))).collect())
}

/// Containers of a manifest for which kubelet asks a registry whether their image is there or not.
///
/// # Errors
/// If it is not YAML.
pub fn always_pulled(name: &str, text: &str) -> Result<Vec<String>> {
    let documents = read(name, text)?;
    let always = named(&documents).into_iter().filter(|one| one.place == Place::Container { always: true });
    Ok(always
        .map(|one| {
            format!(
                "the manifest {name} line {}: kubelet will ask a registry for `{}` although it is there, since its policy is Always",
                one.line, one.image
            )
        })
        .collect())
}

fn read<'t>(name: &str, text: &'t str) -> Result<Vec<Document<'t>>> {
    documents(text).map_err(|problems| {
        Failure::user(format!("the manifest {name} cannot be read:\n  {}", problems.join("\n  "))).into()
    })
}

/// What does not add up: some lines for each image that is missing or made for another architecture.
pub fn problems(wanted: &[Wanted], offered: &[Offered], node: Architecture) -> Vec<String> {
    Report::of(wanted, offered, node).images.iter().filter(|image| image.state.is_missing()).map(told).collect()
}

/// Images that something may ask for and that are not there.
pub fn doubts(wanted: &[Wanted], offered: &[Offered], node: Architecture) -> Vec<String> {
    let report = Report::of(wanted, offered, node);
    let doubts = report.images.iter().filter(|image| image.state == State::PerhapsMissing);
    doubts
        .map(|image| {
            format!("{} may ask for the image `{}`, which is not in the payload", image.askers(), image.reference)
        })
        .collect()
}

fn told(image: &crate::proof::image_report::Image) -> String {
    let (reference, by) = (&image.reference, image.askers());
    if image.state == State::OtherArchitecture {
        return format!(
            "image `{reference}`, which {by} will ask for, is made for another architecture than the node's"
        );
    }
    let add = image.add.as_deref().unwrap_or_default().replace('\n', "\n      ");
    format!("image `{reference}` is not in the payload, but {by} will ask for it; add to cluster.toml:\n      {add}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
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
        let full: Vec<Offered> =
            wanted.iter().map(|image| Offered::assembled(&image.reference, Architecture::Amd64)).collect();
        assert_eq!(full.len(), 6);
        assert!(problems(&wanted, &full, Architecture::Amd64).is_empty());
        for image in &wanted {
            let less: Vec<Offered> = full.iter().filter(|one| one.reference != image.reference).cloned().collect();
            let found = problems(&wanted, &less, Architecture::Amd64);
            assert_eq!(found.len(), 1);
            assert!(found[0].contains(&image.reference), "{found:?}");
        }
        assert_eq!(problems(&wanted, &full, Architecture::Loong64).len(), 6);
    }

    #[test]
    fn a_manifest_asks_for_the_images_of_its_containers() {
        let text = "kind: DaemonSet\nspec:\n  template:\n    spec:\n      initContainers:\n      - name: a\n        image: calico/cni:v1\n\
                    \x20     containers:\n      - {name: b, image: 'lcr.loongnix.cn/calico/node:1', args: ['--x=r.io/helper:2']}\n\
                    \x20     - {name: c, image: calico/cni:v1, imagePullPolicy: Always}\n---\n\
                    kind: CustomResourceDefinition\nspec: {properties: {image: {type: string}, containers: {type: array}}}\n---\n";
        let wanted = wanted_by_manifest("x.yaml", text).unwrap();
        let references: Vec<(&str, bool)> = wanted.iter().map(|one| (one.reference.as_str(), one.certain)).collect();
        let expected =
            [("docker.io/calico/cni:v1", true), ("lcr.loongnix.cn/calico/node:1", true), ("r.io/helper:2", false)];
        assert_eq!(references, expected);
        assert_eq!(wanted[0].by, "the manifest x.yaml");
        assert!(problems(&wanted[2..], &[], Architecture::Amd64).is_empty(), "nobody is sure of it");
        let doubts = doubts(&wanted, &[], Architecture::Amd64);
        assert_eq!(doubts, ["the manifest x.yaml may ask for the image `r.io/helper:2`, which is not in the payload"]);
        let always = always_pulled("x.yaml", text).unwrap();
        assert!(always.len() == 1 && always[0].starts_with("the manifest x.yaml line 10: "), "{always:?}");
        let error = wanted_by_manifest("x.yaml", "a: [").unwrap_err().to_string();
        assert!(error.contains("the manifest x.yaml cannot be read:\n  line "), "{error}");
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! All steps of the lab's node in a directory, with power cuts after every journal record.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::fake_etcd::{SharedEtcd, attach};
use crate::engine::converge;
use crate::journal::{Event, Journal};
use crate::payload::Payload;
use crate::runner::Output;
use crate::seed::document;
use crate::testing::{self, DISCOVERY, Lab, PROFILE};
use crate::{rendered, steps};

const READY: &str = r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;

/// What a kernel, a payload and a seed bring; the programs all succeed.
fn prepare(lab: &mut Lab, profile: &str) {
    let user_data = format!(
        "#cloud-config\nimgbuild:\n  schema: 1\n  profile: {}\n  secrets: {{/etc/kubernetes/pki/ca.key: KEY}}\n",
        profile.replace('\n', " ")
    );
    let seed = document::parse(b"instance-id: a", user_data.as_bytes()).unwrap();
    let payload = Payload { images: vec!["k8s.gcr.io/pause:3.2".into()], ..testing::payload() };
    lab.plan = rendered::plan(&seed, payload, crate::bundle::Origin::Image).unwrap();
    lab.write("/proc/meminfo", "MemTotal:        4000000 kB\n");
    lab.write("/proc/cpuinfo", "processor\t: 0\n\nprocessor\t: 1\n");
    lab.write("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids\n");
    for module in ["overlay", "br_netfilter", "nf_conntrack"] {
        lab.write(&format!("/sys/module/{module}/refcnt"), "0");
    }
    let sysctl = lab.plan.texts_below("/etc/sysctl.d/").map(|(_, text)| text.to_owned()).collect::<String>();
    for line in sysctl.lines().filter(|line| !line.starts_with('#')) {
        if let Some((key, _)) = line.split_once('=') {
            lab.write(&format!("/proc/sys/{}", key.trim().replace('.', "/")), "0\n");
        }
    }
    let pause = "k8s.gcr.io/pause:3.2";
    // The digest is that of its manifest, "{}".
    let digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    let index = serde_json::json!({"manifests": [
        {"digest": format!("sha256:{digest}"), "annotations": {"io.containerd.image.name": pause}}
    ]});
    lab.write("/opt/imgbuild/images/index.json", &index.to_string());
    lab.write(&format!("/opt/imgbuild/images/blobs/sha256/{digest}"), "{}");
    lab.runner.answer("ctr -n k8s.io images ls -q", 0, &format!("{pause}\n"), "");
    lab.runner.answer("ctr -n k8s.io images ls", 0, &format!("{pause} type sha256:{digest} 1 MiB - -\n"), "");
    lab.runner.answer(
        "kubectl --kubeconfig=/etc/kubernetes/admin.conf --request-timeout=30s get --raw /api/v1/nodes/",
        0,
        READY,
        "",
    );
    lab.write("/etc/kubernetes/discovery.conf", DISCOVERY);
    let kubelet = "kubectl --kubeconfig=/etc/kubernetes/kubelet.conf --request-timeout=30s get --raw /api/v1/nodes/";
    lab.runner.answer(kubelet, 0, READY, "");
    let discovery =
        "kubectl --kubeconfig=/etc/kubernetes/discovery.conf --request-timeout=30s get --raw /api/v1/nodes/";
    lab.runner.answer(discovery, 1, "", "Error from server (NotFound): no such node");
    let root = lab.root();
    lab.runner.on("kubeadm join", move |_| {
        std::fs::write(root.join("etc/kubernetes/kubelet.conf"), "x").unwrap();
        Output::default()
    });
}

/// The lab's profile as that of a worker beside a master.
fn worker() -> String {
    let mut profile: serde_json::Value = serde_json::from_str(PROFILE).unwrap();
    let mut peer = profile["peers"][0].clone();
    (peer["name"], peer["address"], peer["pod_subnet"]) =
        ("worker-1".into(), "10.0.2.16".into(), "10.244.1.0/24".into());
    peer["roles"] = serde_json::json!(["worker"]);
    for (key, value) in [("name", "worker-1".into()), ("roles", peer["roles"].clone())] {
        profile["node"][key] = value;
    }
    (profile["node"]["address"], profile["node"]["pod_subnet"]) = ("10.0.2.16/24".into(), "10.244.1.0/24".into());
    profile["peers"].as_array_mut().unwrap().push(peer);
    profile.to_string()
}

fn fresh(etcd: &SharedEtcd) -> Lab {
    let mut lab = Lab::new();
    prepare(&mut lab, PROFILE);
    attach(&lab, etcd);
    lab
}

fn reboot(lab: Lab, etcd: &SharedEtcd) -> Lab {
    let mut lab = lab.reboot();
    prepare(&mut lab, PROFILE);
    attach(&lab, etcd);
    lab
}

fn run(lab: &Lab, fuse: Option<usize>) -> Result<(), String> {
    let cx = lab.cx();
    cx.journal.borrow_mut().fuse = fuse;
    let steps = steps::for_profile(&lab.plan.profile).unwrap();
    converge(&cx, &steps).map_err(|(step, failure)| format!("{step}: {failure}"))
}

#[test]
fn converges_from_a_power_cut_after_every_record() {
    let lab = fresh(&SharedEtcd::default());
    run(&lab, None).unwrap();
    let records = Journal::read(&lab.root().join("var/lib/imgbuild/journal.jsonl"));
    assert_eq!(records.last().unwrap().event, Event::Converged);
    let inits = |lab: &Lab| lab.runner.take_trace().iter().filter(|line| line.starts_with("kubeadm init")).count();
    assert_eq!(inits(&lab), 1);
    for fuse in 0..records.len() {
        let etcd = SharedEtcd::default();
        let lab = fresh(&etcd);
        run(&lab, Some(fuse)).unwrap_err();
        let done: BTreeSet<String> = Journal::read(&lab.root().join("var/lib/imgbuild/journal.jsonl"))
            .into_iter()
            .filter(|record| record.event == Event::Done)
            .map(|record| record.step)
            .collect();
        let lab = reboot(lab, &etcd);
        run(&lab, None).unwrap_or_else(|error| panic!("power cut after {fuse} records: {error}"));
        let again = usize::from(!done.contains(steps::CONTROL_PLANE));
        assert_eq!(inits(&lab), again, "power cut after {fuse} records");
    }
}

#[test]
fn a_worker_converges_from_a_power_cut_after_every_record() {
    let profile = worker();
    let prepared = |mut lab: Lab| {
        prepare(&mut lab, &profile);
        lab.host.addresses.borrow_mut().push("10.0.2.16".parse().unwrap());
        lab
    };
    let path = |lab: &Lab| lab.root().join("var/lib/imgbuild/journal.jsonl");
    let lab = prepared(Lab::new());
    run(&lab, None).unwrap();
    let records = Journal::read(&path(&lab));
    assert_eq!(records.last().unwrap().event, Event::Converged);
    assert!(!lab.runner.take_trace().iter().any(|line| line.starts_with("etcdctl") || line.contains("admin.conf")));
    for fuse in 0..records.len() {
        let lab = prepared(Lab::new());
        run(&lab, Some(fuse)).unwrap_err();
        let joined =
            Journal::read(&path(&lab)).iter().any(|record| record.event == Event::Done && record.step == steps::JOIN);
        let lab = prepared(lab.reboot());
        run(&lab, None).unwrap_or_else(|error| panic!("power cut after {fuse} records: {error}"));
        let joins = lab.runner.take_trace().iter().filter(|line| line.starts_with("kubeadm join")).count();
        assert_eq!(joins, usize::from(!joined), "power cut after {fuse} records");
    }
}

/// Its payload has no Kubernetes, its root may have no containerd: nothing asks for either.
#[test]
fn an_etcd_member_converges_without_kubernetes() {
    let mut profile: serde_json::Value = serde_json::from_str(PROFILE).unwrap();
    profile["node"]["roles"] = serde_json::json!(["etcd"]);
    profile["peers"][0]["roles"] = serde_json::json!(["etcd"]);
    let mut lab = Lab::new();
    prepare(&mut lab, &profile.to_string());
    attach(&lab, &SharedEtcd::default());
    lab.plan.payload = Payload::default();
    std::fs::remove_dir_all(lab.root().join("opt/imgbuild")).unwrap();
    run(&lab, None).unwrap();
    let trace = lab.runner.take_trace();
    assert!(trace.iter().any(|line| line.contains("etcd")), "{trace:?}");
    let of_pods = ["ctr", "crictl", "containerd", "kubeadm", "kubectl", "kubelet", "runc"];
    let asked = trace.iter().find(|line| of_pods.iter().any(|program| line.contains(program)));
    assert_eq!(asked, None);
}

#[test]
fn nothing_runs_kubelet_before_init_is_done() {
    let lab = fresh(&SharedEtcd::default());
    let enabled = Rc::new(Cell::new(false));
    let (enable, ask) = (enabled.clone(), enabled.clone());
    lab.runner.on("systemctl enable --quiet kubelet", move |_| {
        enable.set(true);
        Output::default()
    });
    lab.runner.on("systemctl is-enabled --quiet kubelet", move |_| Output {
        status: i32::from(!ask.get()),
        ..Output::default()
    });
    run(&lab, None).unwrap();
    let trace = lab.runner.take_trace();
    let position = |what: &str| trace.iter().position(|line| line.starts_with(what)).unwrap();
    assert!(position("systemctl enable --quiet kubelet") > position("kubeadm init"));
    assert!(position("ctr -n k8s.io images pull") < position("kubeadm init"));
    assert!(!lab.exists("/etc/systemd/system/multi-user.target.wants/kubelet.service"));
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! All steps of the lab's node in a directory, with power cuts after every journal record.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::engine::converge;
use crate::journal::{Event, Journal};
use crate::payload::Payload;
use crate::runner::Output;
use crate::seed::document;
use crate::testing::{Lab, PROFILE};
use crate::{rendered, steps};

const READY: &str = r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;

/// What a kernel, a payload and a seed bring; the programs all succeed.
fn prepare(lab: &mut Lab) {
    let user_data = format!(
        "#cloud-config\nimgbuild:\n  schema: 1\n  profile: {}\n  secrets: {{/etc/kubernetes/pki/ca.key: KEY}}\n",
        PROFILE.replace('\n', " ")
    );
    let seed = document::parse(b"instance-id: a", user_data.as_bytes()).unwrap();
    let payload = Payload { images: vec!["k8s.gcr.io/pause:3.2".into()], ..Payload::default() };
    lab.plan = rendered::plan(&seed, payload).unwrap();
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
    lab.write("/opt/imgbuild/images/oci-layout", "{}");
    lab.write("/opt/imgbuild/images/index.json", "{}");
    lab.write("/opt/imgbuild/images/blobs/sha256/aa", "blob");
    lab.runner.answer("ctr -n k8s.io images ls -q", 0, "k8s.gcr.io/pause:3.2\n", "");
    lab.runner.answer("kubectl --kubeconfig=/etc/kubernetes/admin.conf --request-timeout=30s get node", 0, READY, "");
}

fn fresh() -> Lab {
    let mut lab = Lab::new();
    prepare(&mut lab);
    lab
}

fn reboot(lab: Lab) -> Lab {
    let mut lab = lab.reboot();
    prepare(&mut lab);
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
    let lab = fresh();
    run(&lab, None).unwrap();
    let records = Journal::read(&lab.root().join("var/lib/imgbuild/journal.jsonl"));
    assert_eq!(records.last().unwrap().event, Event::Converged);
    let inits = |lab: &Lab| lab.runner.take_trace().iter().filter(|line| line.starts_with("kubeadm init")).count();
    assert_eq!(inits(&lab), 1);
    for fuse in 0..records.len() {
        let lab = fresh();
        run(&lab, Some(fuse)).unwrap_err();
        let done: BTreeSet<String> = Journal::read(&lab.root().join("var/lib/imgbuild/journal.jsonl"))
            .into_iter()
            .filter(|record| record.event == Event::Done)
            .map(|record| record.step)
            .collect();
        let lab = reboot(lab);
        run(&lab, None).unwrap_or_else(|error| panic!("power cut after {fuse} records: {error}"));
        let again = usize::from(!done.contains(steps::INIT));
        assert_eq!(inits(&lab), again, "power cut after {fuse} records");
    }
}

#[test]
fn nothing_runs_kubelet_before_init_is_done() {
    let lab = fresh();
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
    assert!(position("ctr -n k8s.io images import") < position("kubeadm init"));
    assert!(!lab.exists("/etc/systemd/system/multi-user.target.wants/kubelet.service"));
}

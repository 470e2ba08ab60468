// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a working cluster does: nodes that are ready, pods that answer. Commands run on a machine that has `kubectl` and
//! its `admin.conf`.

use std::time::Duration;

use serde_json::Value;

use crate::disk::extract;
use crate::qemu::Vm;

/// A short command; as all limits here, for one machine with KVM.
pub const COMMAND: Duration = Duration::from_secs(20);
/// A pod that starts, a node that gets ready.
pub const POD: Duration = Duration::from_secs(60);

/// Marks of a private key in PEM, and in a kubeconfig, which has it in Base64.
const SECRETS: [&str; 2] = ["PRIVATE KEY", "client-key-data"];

/// Waits until exactly these nodes are there and `Ready`.
pub fn nodes_are_ready(vm: &mut Vm, names: &[&str]) {
    let mut names = names.to_vec();
    names.sort_unstable();
    vm.until(&get_at_last("nodes --no-headers"), POD, |done| {
        let nodes = done.output.lines().filter_map(|line| line.split_once(' '));
        let mut ready: Vec<&str> =
            nodes.filter(|(_, rest)| rest.trim_start().starts_with("Ready ")).map(|(name, _)| name).collect();
        ready.sort_unstable();
        done.status == 0 && ready == names && done.output.lines().count() == names.len()
    });
}

/// `kubectl get` for a loop: what kubectl asked an API server that was only just starting, a list that may lack nodes and
/// pods, it believes for ten minutes.
fn get_at_last(what: &str) -> String {
    format!("kubectl --cache-dir=/tmp/kubectl get {what} || {{ rm -rf /tmp/kubectl; false; }}")
}

/// What `firstboot status --json` says of a node that has just converged, without its origin, how long it took, and what of a step was
/// done before it: the same for the same node, whichever way it took into the machine.
pub fn state_but_for_its_origin(vm: &mut Vm, origin: &str) -> Value {
    let text = vm.output("firstboot status --json", COMMAND);
    let mut status: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let fields = status.as_object_mut().unwrap_or_else(|| panic!("no object: {text}"));
    assert_eq!(fields.remove("origin"), Some(origin.into()), "{text}");
    assert_eq!(fields["phase"], "converged", "{text}");
    assert!(fields.remove("seconds").is_some_and(|seconds| seconds.is_u64()), "{text}");
    let steps = fields["steps"].as_array_mut().unwrap_or_else(|| panic!("no steps: {text}"));
    assert!(!steps.is_empty(), "{text}");
    for step in steps {
        let step = step.as_object_mut().unwrap_or_else(|| panic!("a step that is none: {text}"));
        assert!(step.remove("seconds").is_some_and(|seconds| seconds.is_u64()), "{text}");
        if step["state"] == "already-done" {
            step["state"] = "done".into();
        }
    }
    status
}

/// What that is for the lab's node. Every way into a machine must end here.
pub fn state_of_the_lab() -> Value {
    serde_json::from_str(include_str!("lab-status.json")).expect("lab-status.json is JSON")
}

/// What tells one boot of a node from another one.
pub fn boot_id(vm: &mut Vm, node: &str) -> String {
    let get = get_at_last(&format!("node {node} -o jsonpath='{{.status.nodeInfo.bootID}}'"));
    vm.until(&get, POD, |done| done.status == 0 && !done.output.trim().is_empty())
}

/// Waits until a node is `Ready` as of another boot than `before`: what the API server knew of the old one does not count.
pub fn is_ready_again(vm: &mut Vm, node: &str, before: &str) {
    let get = get_at_last(&format!(
        "node {node} -o jsonpath='{{.status.nodeInfo.bootID}} {{.status.conditions[?(@.type==\"Ready\")].status}}'"
    ));
    let before = before.trim().to_owned();
    vm.until(&get, POD, move |done| {
        let words: Vec<&str> = done.output.split_whitespace().collect();
        done.status == 0 && matches!(words[..], [boot, "True"] if boot != before)
    });
}

/// Contract 6: the seed's secrets are erased from the medium once the node has its copy, which nobody else can read.
/// `image` is what the disk was written from: it has secrets, or this would check nothing.
pub fn no_secret_is_left_on_the_seed(vm: &mut Vm, image: &std::path::Path) {
    let scratch = tempfile::tempdir().expect("making a temporary folder");
    let original = std::fs::read(extract(image, "CIDATA", &scratch.path().join("seed"))).unwrap();
    let has = |mark: &str| original.windows(mark.len()).any(|bytes| bytes == mark.as_bytes());
    assert!(SECRETS.iter().any(|mark| has(mark)), "{} has no secret in its seed", image.display());
    the_seed_is_erased(vm);
}

/// The part of it that the machine itself shows.
pub fn the_seed_is_erased(vm: &mut Vm) {
    let marks = SECRETS.map(|mark| format!("-e '{mark}'")).join(" ");
    let seed = vm.output(&format!("grep -a -c {marks} /dev/disk/by-partlabel/CIDATA || true"), COMMAND);
    assert_eq!(seed.trim(), "0", "private keys are left on the seed partition of {}", vm.name());
    let modes = vm.output("stat -c '%a %n' /var/lib/imgbuild/seed /var/lib/imgbuild/seed/*", COMMAND);
    assert!(modes.lines().all(|line| line.starts_with("600 ") || line.starts_with("700 ")), "{modes}");
}

/// The payload's busybox image.
pub fn busybox(vm: &mut Vm) -> String {
    let find = r#"grep -o '"[^"]*busybox[^"]*"' /opt/imgbuild/payload.json | head -n 1 | tr -d '"'"#;
    let image = vm.output(find, COMMAND).trim().to_owned();
    assert!(!image.is_empty(), "the payload has no busybox image");
    image
}

/// Makes a pod on a node that serves its own name over HTTP on port 8080, label `app=<name>`, and waits until it runs;
/// gives its address.
pub fn web_pod(vm: &mut Vm, name: &str, node: &str, image: &str) -> String {
    let web = format!(
        "busybox mkdir -p /tmp/www && echo {name} answers > /tmp/www/index.html && \
         exec busybox httpd -f -p 8080 -h /tmp/www"
    );
    // Tolerations: a master takes no pods but those that say so.
    let manifest = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","labels":{{"app":"{name}"}}}},"spec":{{
"nodeName":"{node}","tolerations":[{{"operator":"Exists"}}],"terminationGracePeriodSeconds":1,"containers":[
{{"name":"web","image":"{image}","imagePullPolicy":"Never","command":["busybox","sh","-c","{web}"]}}]}}}}"#
    );
    apply(vm, &manifest);
    let phase = format!("kubectl get pod {name} -o jsonpath='{{.status.phase}} {{.status.podIP}}'");
    let running = vm.until(&phase, POD, |done| {
        matches!(done.output.split_whitespace().collect::<Vec<_>>()[..], ["Running", _]) && done.status == 0
    });
    running.split_whitespace().nth(1).unwrap().to_owned()
}

/// Makes a Service of the pods with the label `app=<name>`, on port 80, and gives its address.
pub fn service(vm: &mut Vm, name: &str) -> String {
    let manifest = format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}"}},
"spec":{{"selector":{{"app":"{name}"}},"ports":[{{"port":80,"targetPort":8080}}]}}}}"#
    );
    apply(vm, &manifest);
    vm.output(&format!("kubectl get service {name} -o jsonpath='{{.spec.clusterIP}}'"), COMMAND).trim().to_owned()
}

/// Refused until the controller manager has made the namespace's service account.
fn apply(vm: &mut Vm, manifest: &str) {
    vm.until(&format!("kubectl apply -f - <<'END'\n{manifest}\nEND"), POD, |done| done.status == 0);
}

/// Waits until the pod called `name` answers this machine.
pub fn node_reaches(vm: &mut Vm, address: &str, port: u16, name: &str) {
    let get = format!(
        "timeout 20 bash -c 'exec 3<>/dev/tcp/{address}/{port}; printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3'"
    );
    let answer = vm.until(&get, POD, |done| done.output.contains(&format!("{name} answers")));
    assert!(answer.contains("200 OK"), "{answer}");
}

/// Waits until the pod called `name` answers another pod, in which `kubectl exec` runs a client.
pub fn pod_reaches(vm: &mut Vm, from: &str, address: &str, port: u16, name: &str) {
    let get = format!("kubectl exec {from} -- busybox timeout 10 busybox wget -q -O - http://{address}:{port}/");
    vm.until(&get, POD, |done| done.status == 0 && done.output.contains(&format!("{name} answers")));
}

/// What `firstboot health` says, once its exit code is one of `codes`: 0 for good, 1 with warnings, 2 with errors.
pub fn health(vm: &mut Vm, codes: &[i32]) -> String {
    let said = vm.until("firstboot health", POD, |done| codes.contains(&done.status));
    println!("firstboot health on {}:\n{said}", vm.name());
    said
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The add-ons of the payload, one after another: what each defines, then everything else of it, then what it is waited for.
//!
//! Every master applies them, perhaps at once: server-side apply is idempotent, and all of them are one field manager. It also takes
//! definitions that are too large for the annotation of a client-side apply (262144 bytes).
//! No node waits for this step of another one, so that an add-on may need workers that have not joined yet.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use profiles::addon_index::{Addon, DIR, Definitions, EXISTS, INDEX, Index, ROLLED_OUT, SCHEMA, Wait};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::kubeadm::last_line;
use crate::context::{Cx, PAYLOAD_DIR, Poll};
use crate::digest::hex;
use crate::engine::{State, Step, journal_state};
use crate::kubectl;
use crate::runner::Command;

/// How long the API server may refuse an add-on: a webhook of its own, or of the one before, may have to start first.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(3);
/// The longest part of somebody else's message that is passed on, in characters.
const MESSAGE: usize = 300;

pub(super) struct Addons;

/// The text of the index; `None` if the payload has no add-on.
fn index_text(cx: &Cx<'_>) -> Result<Option<String>> {
    let path = cx.path(&format!("{PAYLOAD_DIR}/{DIR}/{INDEX}"));
    if !path.exists() {
        return Ok(None);
    }
    fs::read_to_string(&path).map(Some).with_context(|| format!("reading {}", path.display()))
}

fn index(text: &str) -> Result<Index> {
    let index: Index = serde_json::from_str(text).context("understanding the index of the payload's add-ons")?;
    ensure!(index.schema == SCHEMA, "schema {} of the add-ons' index is unknown to this firstboot", index.schema);
    Ok(index)
}

fn files(addon: &Addon) -> impl Iterator<Item = &String> {
    addon.definitions.iter().map(|definitions| &definitions.file).chain(&addon.objects)
}

/// `kubectl apply` of a file beside the index. The server knows the types: kubectl need not fetch the description of all it offers.
fn apply_command(file: &str) -> Command {
    let path = format!("{PAYLOAD_DIR}/{DIR}/{file}");
    let args =
        ["apply", "--server-side", "--force-conflicts", "--field-manager=imgbuild", "--validate=false", "-f", &path];
    kubectl::as_admin(&args).timeout(PATIENCE.as_secs())
}

/// Applies a file until the API server takes all of it.
fn apply(cx: &Cx<'_>, file: &str) -> Result<()> {
    let hint = format!("look at {PAYLOAD_DIR}/{DIR}/{file} and at what the API server says of it");
    cx.wait_for(&format!("the API server to take {file}"), PATIENCE, PAUSE, &hint, || {
        let output = cx.try_run(&apply_command(file))?;
        Ok(if output.success() { Poll::Ready(()) } else { Poll::Pending(short(&last_line(&output.stderr_tail))) })
    })
}

/// Waits until the API server serves what was defined.
fn wait_for_definitions(cx: &Cx<'_>, definitions: &Definitions) -> Result<()> {
    let hint = "look at `kubectl describe customresourcedefinition`";
    let mut left = definitions.names.iter();
    let mut next = left.next();
    cx.wait_for("the API server to serve what the add-on defines", PATIENCE, PAUSE, hint, || {
        while let Some(name) = next {
            // The path is known: nothing has to be asked for but this.
            let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
            let output = cx.try_run(&kubectl::as_admin(&["get", "--raw", &path]))?;
            if !output.success() {
                return Ok(Poll::Pending(short(&last_line(&output.stderr_tail))));
            }
            match serde_json::from_str(&output.stdout) {
                Ok(definition) => match condition(&definition, "Established") {
                    Ok(()) => next = left.next(),
                    Err(why) => return Ok(Poll::Pending(format!("{name}: {why}"))),
                },
                Err(error) => return Ok(Poll::Pending(format!("{name}: no JSON: {error}"))),
            }
        }
        Ok(Poll::Ready(()))
    })
}

/// Waits for what the cluster file says.
fn wait(cx: &Cx<'_>, wait: &Wait) -> Result<()> {
    let kind = wait.resource.split('.').next().unwrap_or_default();
    let namespace = wait.namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    let what = format!("{kind}/{namespace}{} to be {}", wait.name, wait.condition);
    let hint = "look at `kubectl describe` of it and of its pods; what needs a worker goes on when one has joined";
    cx.wait_for(&what, Duration::from_secs(wait.timeout_seconds), PAUSE, hint, || {
        let flag = wait.namespace.as_ref().map(|namespace| format!("--namespace={namespace}"));
        let mut args = vec!["get", &wait.resource, &wait.name, "--output=json"];
        args.extend(flag.as_deref());
        let output = cx.try_run(&kubectl::as_admin(&args))?;
        if !output.success() {
            return Ok(Poll::Pending(short(&last_line(&output.stderr_tail))));
        }
        let object: Value = match serde_json::from_str(&output.stdout) {
            Ok(object) => object,
            Err(error) => return Ok(Poll::Pending(format!("no JSON: {error}"))),
        };
        let state = match wait.condition.as_str() {
            EXISTS => Ok(()),
            ROLLED_OUT => rolled_out(&object),
            other => condition(&object, other),
        };
        Ok(match state {
            Ok(()) => Poll::Ready(()),
            Err(why) => Poll::Pending(short(
                &[Some(why), trouble(cx, &object)].into_iter().flatten().collect::<Vec<_>>().join("; "),
            )),
        })
    })
}

/// Whether a controller has seen the object as it is now.
fn is_seen(object: &Value) -> Result<(), String> {
    let (wanted, seen) = (object["metadata"]["generation"].as_i64(), object["status"]["observedGeneration"].as_i64());
    match (wanted, seen) {
        (Some(wanted), Some(seen)) if seen < wanted => Err("its controller has not seen it as it is now".to_owned()),
        _ => Ok(()),
    }
}

/// Whether a condition of that type is true; a controller that notes what it has seen must have seen this.
fn condition(object: &Value, kind: &str) -> Result<(), String> {
    is_seen(object)?;
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_it = |one: &&Value| one["type"].as_str().is_some_and(|own| own.eq_ignore_ascii_case(kind));
    let Some(found) = conditions.iter().find(is_it) else {
        let others: Vec<&str> = conditions.iter().filter_map(|one| one["type"].as_str()).collect();
        return Err(if others.is_empty() {
            "it has no condition yet".to_owned()
        } else {
            format!("it has no condition {kind}, only {}", others.join(", "))
        });
    };
    if found["status"] == "True" {
        return Ok(());
    }
    let said = found["message"].as_str().or(found["reason"].as_str()).unwrap_or("no reason given");
    Err(said.to_owned())
}

/// As `kubectl rollout status` sees it, for each kind of workload.
fn rolled_out(object: &Value) -> Result<(), String> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let number = |name: &str| status[name].as_i64().unwrap_or(0);
    if status["observedGeneration"].as_i64().is_none() {
        return Err("its controller has not seen it yet".to_owned());
    }
    is_seen(object)?;
    let of = |have: i64, wanted: i64, what: &str| {
        if have < wanted { Err(format!("{have} of {wanted} pods {what}")) } else { Ok(()) }
    };
    if object["kind"] == "DaemonSet" {
        let wanted = number("desiredNumberScheduled");
        of(number("updatedNumberScheduled"), wanted, "are new")?;
        return of(number("numberAvailable"), wanted, "serve");
    }
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    if object["kind"] == "StatefulSet" {
        of(number("readyReplicas"), wanted, "are ready")?;
        let partition = spec["updateStrategy"]["rollingUpdate"]["partition"].as_i64().unwrap_or(0);
        let renewed = status["updateRevision"] == status["currentRevision"];
        return if renewed { Ok(()) } else { of(number("updatedReplicas"), wanted - partition, "are new") };
    }
    of(number("updatedReplicas"), wanted, "are new")?;
    let old = number("replicas") - number("updatedReplicas");
    if old > 0 {
        return Err(format!("{old} old pods are still there"));
    }
    of(number("availableReplicas"), wanted, "serve")
}

/// What keeps the first of a workload's pods that is kept by something, in the words of the scheduler or of kubelet.
fn trouble(cx: &Cx<'_>, object: &Value) -> Option<String> {
    let labels = object["spec"]["selector"]["matchLabels"].as_object()?;
    let labels: Option<Vec<String>> =
        labels.iter().map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    let namespace = format!("--namespace={}", object["metadata"]["namespace"].as_str()?);
    let selector = format!("--selector={}", labels?.join(","));
    let output = cx.try_run(&kubectl::as_admin(&["get", "pods", &namespace, &selector, "--output=json"])).ok()?;
    let pods: Value = serde_json::from_str(&output.stdout).ok()?;
    pods["items"].as_array()?.iter().find_map(|pod| {
        let why = trouble_of(pod)?;
        Some(format!("pod {}: {why}", pod["metadata"]["name"].as_str().unwrap_or_default()))
    })
}

fn trouble_of(pod: &Value) -> Option<String> {
    let list = |name: &str| pod["status"][name].as_array().map(Vec::as_slice).unwrap_or_default();
    let unscheduled = list("conditions").iter().find(|one| one["type"] == "PodScheduled" && one["status"] == "False");
    if let Some(unscheduled) = unscheduled {
        return unscheduled["message"].as_str().map(str::to_owned);
    }
    list("initContainerStatuses").iter().chain(list("containerStatuses")).find_map(|container| {
        let waiting = container["state"]["waiting"].as_object()?;
        let reason = waiting.get("reason")?.as_str().filter(|reason| *reason != "PodInitializing")?;
        let message = waiting.get("message").and_then(Value::as_str).map(|message| format!(": {message}"));
        Some(format!("{reason}{}", message.unwrap_or_default()))
    })
}

/// A message that fits into a line of the console.
fn short(text: &str) -> String {
    match text.char_indices().nth(MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Step for Addons {
    fn id(&self) -> &'static str {
        "addons"
    }

    fn title(&self) -> &'static str {
        "applying add-ons"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        Ok(if index_text(cx)?.is_none() { State::Done } else { journal_state(self, cx) })
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        let Some(text) = index_text(cx)? else { return Ok(()) };
        for addon in index(&text)?.addons {
            cx.say(&addon.name);
            if let Some(definitions) = &addon.definitions {
                apply(cx, &definitions.file)?;
                wait_for_definitions(cx, definitions)?;
            }
            if let Some(file) = &addon.objects {
                apply(cx, file)?;
            }
            addon.waits.iter().try_for_each(|one| wait(cx, one))?;
        }
        Ok(())
    }

    fn verify(&self, _: &Cx<'_>) -> Result<()> {
        Ok(()) // apply ends when the API server took all, and what was waited for is so
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        let mut hash = Sha256::new();
        if let Ok(Some(text)) = index_text(cx) {
            hash.update(&text);
            let dir = cx.path(&format!("{PAYLOAD_DIR}/{DIR}"));
            for file in index(&text).iter().flat_map(|index| &index.addons).flat_map(files) {
                hash.update(fs::read(dir.join(Path::new(file))).unwrap_or_default());
            }
        }
        hex(&hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use serde_json::json;

    use super::*;
    use crate::engine::converge;
    use crate::failure::Exit;
    use crate::runner::Output;
    use crate::testing::Lab;

    const KUBECTL: &str = "kubectl --kubeconfig=/etc/kubernetes/admin.conf --request-timeout=30s";
    const APPLY: &str =
        "apply --server-side --force-conflicts --field-manager=imgbuild --validate=false -f /opt/imgbuild/addons";
    const ESTABLISHED: &str = r#"{"status":{"conditions":[{"type":"Established","status":"True"}]}}"#;

    /// Two add-ons, as the builder writes them; the first one defines something and is waited for.
    fn prepare(lab: &Lab) {
        let index = json!({"schema": 1, "addons": [
            {"name": "cm", "definitions": {"file": "01-cm-definitions.yaml", "names": ["a.cm.io", "b.cm.io"]},
             "objects": "01-cm.yaml", "waits": [{"resource": "Deployment.v1.apps", "namespace": "cm", "name": "hook",
             "condition": "Available", "timeout_seconds": 600}]},
            {"name": "klum", "objects": "02-klum.yaml", "waits": [{"resource": "User", "name": "c1",
             "condition": "exists", "timeout_seconds": 60}]},
        ]});
        lab.write("/opt/imgbuild/addons/index.json", &index.to_string());
        for file in ["01-cm-definitions.yaml", "01-cm.yaml", "02-klum.yaml"] {
            lab.write(&format!("/opt/imgbuild/addons/{file}"), file);
        }
        lab.runner.answer(
            &format!("{KUBECTL} get --raw /apis/apiextensions.k8s.io/v1/customresourcedefinitions/"),
            0,
            ESTABLISHED,
            "",
        );
        lab.runner.answer(&format!("{KUBECTL} get User c1"), 0, "{}", "");
        lab.runner.answer(&format!("{KUBECTL} get Deployment.v1.apps hook"), 0, &deployment(1, "True"), "");
    }

    fn deployment(seen: i64, available: &str) -> String {
        json!({"kind": "Deployment", "metadata": {"namespace": "cm", "generation": 1},
               "spec": {"selector": {"matchLabels": {"app": "hook"}}},
               "status": {"observedGeneration": seen, "conditions": [{"type": "Available", "status": available,
               "message": "Deployment does not have minimum availability."}]}})
        .to_string()
    }

    fn trace(lab: &Lab) -> Vec<String> {
        let trace = lab.runner.take_trace();
        trace.iter().map(|line| line.strip_prefix(KUBECTL).unwrap_or(line).trim().to_owned()).collect()
    }

    fn run(lab: &Lab) -> Result<(), crate::failure::Failure> {
        converge(&lab.cx(), &[Box::new(Addons)]).map_err(|(_, failure)| failure)
    }

    #[test]
    fn a_payload_without_add_ons_needs_nothing() {
        let lab = Lab::new();
        run(&lab).unwrap();
        assert_eq!(trace(&lab), [""; 0]);
        assert_eq!(lab.console_lines(), [""; 0]);
    }

    #[test]
    fn each_is_applied_and_waited_for_before_the_next_and_again_when_it_changes() {
        let lab = Lab::new();
        prepare(&lab);
        run(&lab).unwrap();
        let definition =
            |name: &str| format!("get --raw /apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        let expected = [
            format!("{APPLY}/01-cm-definitions.yaml"),
            definition("a.cm.io"),
            definition("b.cm.io"),
            format!("{APPLY}/01-cm.yaml"),
            "get Deployment.v1.apps hook --output=json --namespace=cm".to_owned(),
            format!("{APPLY}/02-klum.yaml"),
            "get User c1 --output=json".to_owned(),
        ];
        assert_eq!(trace(&lab), expected);
        let lab = lab.reboot();
        prepare(&lab);
        run(&lab).unwrap();
        assert_eq!(trace(&lab), [""; 0]);
        lab.write("/opt/imgbuild/addons/02-klum.yaml", "changed");
        run(&lab).unwrap();
        assert_eq!(trace(&lab), expected);
    }

    #[test]
    fn a_power_cut_repeats_all_of_it() {
        let lab = Lab::new();
        prepare(&lab);
        let cx = lab.cx();
        cx.journal.borrow_mut().fuse = Some(1);
        converge(&cx, &[Box::new(Addons)]).unwrap_err();
        drop(cx);
        let lab = lab.reboot();
        prepare(&lab);
        run(&lab).unwrap();
        assert_eq!(trace(&lab).iter().filter(|line| line.starts_with("apply")).count(), 3);
    }

    /// A webhook that has not started yet refuses for a while.
    #[test]
    fn what_is_refused_is_applied_again() {
        let lab = Lab::new();
        prepare(&lab);
        let refusals = Rc::new(Cell::new(2));
        let left = refusals.clone();
        lab.runner.on(&format!("{KUBECTL} {APPLY}/01-cm.yaml"), move |_| {
            left.set(left.get() - 1);
            let refused = left.get() >= 0;
            Output {
                status: i32::from(refused),
                stderr_tail: "x\nfailed calling webhook \"hook.cm.io\"".into(),
                ..Output::default()
            }
        });
        run(&lab).unwrap();
        assert_eq!(refusals.get(), -1);
        let lines = lab.console_lines().join("\n");
        assert!(lines.contains("waiting for the API server to take 01-cm.yaml (failed calling webhook"), "{lines}");
    }

    #[test]
    fn a_wait_says_what_keeps_it_and_ends_at_its_deadline() {
        let lab = Lab::new();
        prepare(&lab);
        lab.runner.answer(&format!("{KUBECTL} get Deployment.v1.apps hook"), 0, &deployment(1, "False"), "");
        let pod = json!({"items": [{"metadata": {"name": "hook-1"}, "status": {"conditions": [{"type": "PodScheduled",
            "status": "False", "message": "0/1 nodes are available: 1 node(s) had taint {node-role.kubernetes.io/master: }."}]}}]});
        lab.runner.answer(&format!("{KUBECTL} get pods --namespace=cm --selector=app=hook"), 0, &pod.to_string(), "");
        let failure = run(&lab).unwrap_err();
        assert_eq!(failure.exit, Exit::Deadline);
        assert_eq!(
            failure.reason,
            "waited 600 s for Deployment/cm/hook to be Available (Deployment does not have minimum availability.; pod hook-1: 0/1 nodes are \
             available: 1 node(s) had taint {node-role.kubernetes.io/master: }.)"
        );
        assert!(failure.hint.contains("when one has joined"));
        assert!(!trace(&lab).iter().any(|line| line.contains("02-klum")), "the next one has to wait");
        // The unit starts firstboot again, and now a worker is there.
        let lab = lab.reboot();
        prepare(&lab);
        run(&lab).unwrap();
    }

    #[test]
    fn a_condition_counts_when_its_controller_has_seen_the_object() {
        let object = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(condition(&object(&deployment(1, "True")), "available"), Ok(()));
        assert!(condition(&object(&deployment(0, "True")), "Available").unwrap_err().contains("has not seen"));
        assert!(condition(&object(&deployment(1, "True")), "Ready").unwrap_err().contains("only Available"));
        assert!(condition(&json!({}), "Ready").unwrap_err().contains("no condition yet"));
    }

    #[test]
    fn a_roll_out_is_over_when_all_pods_are_new_and_serve() {
        let object = |kind: &str, spec: Value, mut status: Value| {
            status["observedGeneration"] = 1.into();
            json!({"kind": kind, "metadata": {"generation": 1}, "spec": spec, "status": status})
        };
        let of = |kind, spec, status| rolled_out(&object(kind, spec, status));
        let replicas = || json!({"replicas": 2});
        let said = |result: Result<(), String>| result.err().unwrap_or_default();
        assert_eq!(said(of("Deployment", replicas(), json!({"updatedReplicas": 1}))), "1 of 2 pods are new");
        let status = json!({"updatedReplicas": 2, "replicas": 3, "availableReplicas": 2});
        assert_eq!(said(of("Deployment", replicas(), status)), "1 old pods are still there");
        let status = json!({"updatedReplicas": 2, "replicas": 2, "availableReplicas": 1});
        assert_eq!(said(of("Deployment", replicas(), status)), "1 of 2 pods serve");
        let status = json!({"updatedReplicas": 1, "replicas": 1, "availableReplicas": 1});
        assert_eq!(of("Deployment", json!({}), status), Ok(()));
        let status = json!({"desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 2});
        assert_eq!(said(of("DaemonSet", json!({}), status)), "2 of 3 pods serve");
        assert_eq!(of("DaemonSet", json!({}), json!({"desiredNumberScheduled": 0})), Ok(()));
        let status = json!({"readyReplicas": 2, "updateRevision": "b", "currentRevision": "a", "updatedReplicas": 1});
        assert_eq!(said(of("StatefulSet", replicas(), status)), "1 of 2 pods are new");
        assert_eq!(of("StatefulSet", replicas(), json!({"readyReplicas": 2})), Ok(()));
        let unseen = json!({"kind": "DaemonSet", "metadata": {"generation": 1}});
        assert!(said(rolled_out(&unseen)).contains("has not seen it yet"));
    }

    #[test]
    fn a_container_that_cannot_start_says_why() {
        let pod = json!({"status": {"initContainerStatuses": [{"state": {"terminated": {}}}], "containerStatuses": [
            {"state": {"waiting": {"reason": "PodInitializing"}}},
            {"state": {"waiting": {"reason": "ErrImagePull", "message": "no such host"}}}]}});
        assert_eq!(trouble_of(&pod).unwrap(), "ErrImagePull: no such host");
        assert_eq!(short(&"ä".repeat(MESSAGE + 1)).chars().count(), MESSAGE + 1);
    }

    #[test]
    fn an_index_of_another_schema_is_refused() {
        let lab = Lab::new();
        lab.write("/opt/imgbuild/addons/index.json", r#"{"schema": 2, "addons": []}"#);
        assert!(run(&lab).unwrap_err().reason.contains("schema 2"));
    }
}

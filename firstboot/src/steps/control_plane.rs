// SPDX-License-Identifier: MIT OR Apache-2.0
//! This master's control plane: initialised with certificates made beforehand, or joined to the one that is there.
//!
//! Which of the two is decided in etcd (claim.rs), not by the order of the cluster file: whoever claims first
//! initialises, and a master that finds the cluster initialised joins, whatever its name.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use profiles::node::Role;
use profiles::render::KUBEADM_CONFIG;

use super::claim::{self, Claim, JoinTurn, Key, Seen};
use super::kubeadm::{self, last_line};
use super::{CONTROL_PLANE, PEERS, join, manifests};
use crate::context::{Cx, Poll, STATE_DIR};
use crate::engine::{State, Step, was_interrupted};
use crate::failure::Failure;
use crate::journal::Progress;
use crate::kubectl;

/// How long no API server may answer, although the cluster is initialised, until a master initialises over the data.
const LOST: Duration = Duration::from_secs(15 * 60);
/// The same, if this very node initialised it: then most likely nobody else has a control plane yet.
const LOST_BY_ME: Duration = Duration::from_secs(2 * 60);

pub(super) struct ControlPlane;

/// A check by the journal of a step that makes this node part of a cluster, for good.
pub(super) fn membership(cx: &Cx<'_>, id: &str) -> Result<State> {
    let own = &cx.profile().cluster.id;
    match cx.progress(id) {
        Progress::Never => Ok(State::Needed("not part of the cluster yet".to_owned())),
        Progress::Interrupted => Ok(State::Needed("an earlier attempt did not end well".to_owned())),
        Progress::Done(cluster) if cluster == *own => Ok(State::Done),
        // A cluster is never replaced by another one behind anybody's back.
        Progress::Done(cluster) => Err(Failure::preflight(
            format!("this disk holds a node of cluster {cluster}, the seed is of {own}"),
            "re-image the disk, or attach the right seed",
        )
        .into()),
    }
}

impl Step for ControlPlane {
    fn id(&self) -> &'static str {
        CONTROL_PLANE
    }

    fn title(&self) -> &'static str {
        "forming the control plane"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        membership(cx, CONTROL_PLANE)
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        if was_interrupted(self, cx) {
            kubeadm::take_back(cx)?;
        }
        match turn(cx)? {
            Turn::Init(claim) => init(cx, claim),
            Turn::Join(turn) => {
                let again = || join::args(&cx.plan.kubeadm.resume_join);
                // kubeadm does not wait for the API server of a master that joins: it may only be starting when kubeadm gives up.
                let joined = join::join(cx)
                    .or_else(|error| {
                        resume(cx, patience(cx), again, || {}, error)?;
                        kubeadm::name_runtime(cx, kubectl::ADMINS_CONFIG)
                    })
                    .and_then(|()| wait_for_own_api(cx));
                if let Some(turn) = turn {
                    turn.end(cx);
                }
                joined
            }
        }
    }

    fn verify(&self, cx: &Cx<'_>) -> Result<()> {
        wait_for_own_api(cx)
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        cx.profile().cluster.id.clone()
    }
}

enum Turn {
    Init(Claim),
    /// Without a turn of its own where somebody else takes too long over theirs.
    Join(Option<JoinTurn>),
}

/// Waits until it is clear what this master does.
fn turn(cx: &Cx<'_>) -> Result<Turn> {
    let me = &cx.profile().node.name;
    let sole = cx.profile().peers.iter().filter(|peer| peer.roles.contains(&Role::Master)).count() == 1;
    let (mut silent, mut joining) = (Unchanged::default(), Unchanged::default());
    let hint = "look at the consoles of the etcd members and of the other masters";
    cx.wait_for("the control plane to form", PEERS, Duration::from_secs(3), hint, || {
        let seen = match claim::look(cx)? {
            Poll::Ready(seen) => seen,
            Poll::Pending(why) => return Ok(Poll::Pending(why)),
        };
        if let Some(init) = seen.init.as_ref().filter(|init| init.value != *me) {
            silent = Unchanged::default();
            return Ok(Poll::Pending(format!("{} is initialising the cluster", init.value)));
        }
        match &seen.initialised {
            None if seen.cluster.is_some() => {}
            // Later a quorum is enough. But an etcd that has lost half of its members must not be taken for a new one.
            None => match claim::unhealthy(cx)?.as_slice() {
                [] => {}
                missing => {
                    let missing = missing.join(", ");
                    return Ok(Poll::Pending(format!("a new cluster wants every etcd member; no answer from {missing}")));
                }
            },
            Some(done) if sole => cx.say(&format!(
                "etcd says that {} has initialised this cluster, and this disk does not: initialising again over its data",
                done.value
            )),
            Some(done) => {
                // Whoever is joining has found an API server; asking it too would only make it slower.
                if let Some(other) = joins_now(cx, &seen, &mut joining) {
                    silent = Unchanged::default();
                    return Ok(Poll::Pending(format!("{other} is joining")));
                }
                let why = match join::api(cx)? {
                    Poll::Ready(()) => {
                        // Being asked in vain now and then, over an hour, is not being lost.
                        silent = Unchanged::default();
                        return join_turn(cx, &seen);
                    }
                    Poll::Pending(why) => why,
                };
                let patience = if done.value == *me { LOST_BY_ME } else { LOST };
                if silent.time(done, cx.host.uptime()) < patience {
                    return Ok(Poll::Pending(format!(
                        "{} has initialised the cluster, but no API server answers: {why}",
                        done.value
                    )));
                }
                // All masters were lost at once, or the first one before anybody joined. Waiting would be for ever.
                // This cannot make a second cluster: the certificates and keys are the seed's, the data is etcd's, and
                // an API server that runs after all is one more of the same. The claim keeps it to one master.
                cx.say(&format!(
                    "NO API SERVER has answered for {} minutes, although {} has initialised this cluster: initialising \
                     again over the data in etcd, which keeps all of it",
                    patience.as_secs() / 60,
                    done.value
                ));
            }
        }
        Ok(match claim::claim(cx, &seen)? {
            Poll::Ready(claim) => Poll::Ready(Turn::Init(claim)),
            Poll::Pending(why) => Poll::Pending(why),
        })
    })
}

/// For how long the same key has been seen, unchanged.
#[derive(Default)]
struct Unchanged(Option<(Duration, Key)>);

impl Unchanged {
    fn time(&mut self, key: &Key, now: Duration) -> Duration {
        let since = match &self.0 {
            Some((since, seen)) if seen == key => *since,
            _ => now,
        };
        self.0 = Some((since, key.clone()));
        now.saturating_sub(since)
    }
}

/// The other master whose turn to join it is, unless it has had it for too long.
fn joins_now<'a>(cx: &Cx<'_>, seen: &'a Seen, joining: &mut Unchanged) -> Option<&'a str> {
    let Some(other) = others_turn(cx, seen) else {
        *joining = Unchanged::default();
        return None;
    };
    (joining.time(other, cx.host.uptime()) < patience(cx)).then_some(other.value.as_str())
}

fn others_turn<'a>(cx: &Cx<'_>, seen: &'a Seen) -> Option<&'a Key> {
    seen.join.as_ref().filter(|join| join.value != cx.profile().node.name)
}

/// Masters join one after the other: each brings an API server, whose start takes all a slow machine has, to a cluster
/// that may have no more than one to ask. This is courtesy and no lock: nobody waits for ever for one who hangs.
fn join_turn(cx: &Cx<'_>, seen: &Seen) -> Result<Poll<Turn>> {
    let Some(other) = others_turn(cx, seen) else {
        return Ok(match claim::take_turn(cx, seen)? {
            Poll::Ready(turn) => Poll::Ready(Turn::Join(Some(turn))),
            Poll::Pending(why) => Poll::Pending(why),
        });
    };
    cx.say(&format!(
        "{} has been joining for {} minutes: going on beside it",
        other.value,
        patience(cx).as_secs() / 60
    ));
    Ok(Poll::Ready(Turn::Join(None)))
}

/// `kubeadm init`, and the record that it ended well.
fn init(cx: &Cx<'_>, mut claim: Claim) -> Result<()> {
    cx.say("this node initialises the cluster");
    kubeadm::run(cx, init_args(&cx.plan.kubeadm.init), || claim.watch(cx)).or_else(|error| {
        let again = || init_args(&cx.plan.kubeadm.resume_init);
        resume(cx, SETTLE, again, || claim.watch(cx), error)
    })?;
    wait_for_own_api(cx)?;
    // Others need it to join, and must not depend on this node's later steps.
    manifests::allow_certificate_rotation(cx)?;
    // The record must never be there before what it speaks of is on the disk.
    cx.host.sync(&cx.path(STATE_DIR))?;
    claim.finish(cx)
}

fn init_args(more: &[String]) -> impl Iterator<Item = String> {
    ["init".to_owned(), format!("--config={KUBEADM_CONFIG}")].into_iter().chain(more.iter().cloned())
}

/// After the control plane runs, kubeadm asks it for some things, each once and with ten seconds of patience (its
/// client's timeout), and gives up at the first that a busy machine does not do in time. Starting from nothing would make the
/// machine busier than before, so only those are done again, with `args`, once this node's API server answers within `settle`.
/// `error` is what kubeadm gave up with; `each` runs at every line it writes.
fn resume<A: Iterator<Item = String>>(
    cx: &Cx<'_>,
    settle: Duration,
    args: impl Fn() -> A,
    mut each: impl FnMut(),
    mut error: anyhow::Error,
) -> Result<()> {
    for _ in 0..RESUMPTIONS {
        if !kubeadm::control_plane_is_made(cx) || wait_for_api(cx, settle).is_err() {
            break;
        }
        cx.say("kubeadm gave up on a control plane that runs: doing again what is left");
        cx.log(&format!("{error:#}"));
        match kubeadm::run_beside_kubelet(cx, args(), &mut each) {
            Ok(()) => return Ok(()),
            Err(again) => error = again,
        }
    }
    Err(error)
}

/// How often what is left of an init or a join is done again before it is taken back.
const RESUMPTIONS: u32 = 3;
/// How long an API server that has already answered kubeadm may be too busy to answer.
const SETTLE: Duration = Duration::from_secs(120);

/// How long an API server may take to start.
fn patience(cx: &Cx<'_>) -> Duration {
    Duration::from_secs(u64::from(cx.profile().kubernetes.control_plane_timeout_seconds).max(180))
}

/// This node's own API server, not the one that the load balancer picks.
fn wait_for_own_api(cx: &Cx<'_>) -> Result<()> {
    wait_for_api(cx, patience(cx))
}

fn wait_for_api(cx: &Cx<'_>, patience: Duration) -> Result<()> {
    let profile = cx.profile();
    let server = SocketAddr::new(profile.node.address.addr(), profile.kubernetes.apiserver_port);
    let server = format!("--server=https://{server}");
    let hint = "look at `crictl ps -a` and `journalctl -u kubelet`";
    cx.wait_for("the API server of this node to answer", patience, Duration::from_secs(1), hint, || {
        let output = cx.try_run(&kubectl::as_admin(&[&server, "get", "--raw", "/readyz"]))?;
        Ok(if output.success() { Poll::Ready(()) } else { Poll::Pending(last_line(&output.stderr_tail)) })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::fake_etcd::{SharedEtcd, attach};
    use super::*;
    use crate::engine::converge;
    use crate::runner::Output;
    use crate::testing::{DISCOVERY, Lab, join_config};

    const KUBEADM: &str = "kubeadm init --config=/etc/kubernetes/kubeadm.yaml --skip-phases=bootstrap-token";
    const REFUSED: &str =
        "The connection to the server 10.0.2.15:6443 was refused - did you specify the right host or port?";

    fn lab() -> (Lab, SharedEtcd) {
        let (lab, etcd) = (Lab::new(), SharedEtcd::default());
        attach(&lab, &etcd);
        (lab, etcd)
    }

    /// A second master, so that this one is not alone.
    fn of_two(lab: &mut Lab) {
        let mut other = lab.plan.profile.peers[0].clone();
        (other.name, other.address) = ("master-2".into(), "10.0.2.16".parse().unwrap());
        lab.plan.profile.peers.push(other);
        lab.write("/etc/kubernetes/discovery.conf", DISCOVERY);
    }

    fn key(lab: &Lab, name: &str) -> String {
        format!("/imgbuild/{}/{name}", lab.plan.profile.cluster.id)
    }

    fn run(lab: &Lab) -> Result<(), Failure> {
        converge(&lab.cx(), &[Box::new(ControlPlane)]).map_err(|(_, failure)| failure)
    }

    fn kubeadm_runs(lab: &Lab) -> Vec<String> {
        lab.runner.take_trace().into_iter().filter(|line| line.starts_with("kubeadm")).collect()
    }

    #[test]
    fn runs_once_and_shows_phases_without_tokens() {
        let (mut lab, etcd) = lab();
        lab.plan.kubeadm.init.push("--ignore-preflight-errors=ImagePull".into());
        let said = "[init] Using Kubernetes version: v1.20.2\n[certs] a\n[certs] b\n\
                    kubeadm join --token k3pqzv.0123456789abcdex\n";
        lab.runner.answer("kubeadm init", 0, said, "");
        run(&lab).unwrap();
        let trace = lab.runner.take_trace();
        let position = |end: &str| trace.iter().rposition(|line| line.ends_with(end)).unwrap();
        let init = position("--skip-phases=bootstrap-token --ignore-preflight-errors=ImagePull");
        assert!(
            init < position("apply --validate=false -f -")
                && position("apply --validate=false -f -") < position("txn -w json"),
            "{trace:?}"
        );
        assert_eq!(trace.iter().filter(|line| line.starts_with("kubeadm")).count(), 1);
        assert!(!lab.log().contains("k3pqzv"));
        insta::assert_snapshot!(lab.console_lines().join("\n"));
        for name in ["cluster", "initialised"] {
            assert_eq!(etcd.lock().unwrap().value(&key(&lab, name)).as_deref(), Some("master-1"));
        }
        assert_eq!(etcd.lock().unwrap().value(&key(&lab, "init")), None);
        let lab = lab.reboot();
        run(&lab).unwrap();
        assert!(lab.runner.take_trace().is_empty());
    }

    #[test]
    fn an_interrupted_init_is_taken_back_and_its_input_is_kept() {
        let (lab, etcd) = lab();
        let cx = lab.cx();
        cx.journal.borrow_mut().fuse = Some(1);
        converge(&cx, &[Box::new(ControlPlane)]).unwrap_err();
        drop(cx);
        let lab = lab.reboot();
        attach(&lab, &etcd);
        let input = [
            "/etc/kubernetes/kubeadm.yaml",
            "/etc/kubernetes/kubeadm-join.yaml",
            "/etc/kubernetes/discovery.conf",
            "/etc/kubernetes/pki/ca.crt",
            "/etc/kubernetes/pki/ca.key",
            "/etc/kubernetes/pki/front-proxy-ca.crt",
            "/etc/kubernetes/pki/front-proxy-ca.key",
            "/etc/kubernetes/pki/sa.key",
            "/etc/kubernetes/pki/etcd-external/client.key",
            "/var/lib/etcd/member/snap/db",
            "/var/lib/kubelet/cpu_manager_state",
        ];
        let left_overs = [
            "/etc/kubernetes/admin.conf",
            "/etc/kubernetes/manifests/kube-apiserver.yaml",
            "/etc/kubernetes/pki/apiserver.crt",
            "/etc/kubernetes/pki/apiserver-kubelet-client.key",
            "/etc/kubernetes/pki/front-proxy-client.crt",
            "/var/lib/kubelet/config.yaml",
            "/var/lib/kubelet/pki/kubelet-client-current.pem",
        ];
        input.iter().chain(&left_overs).for_each(|path| lab.write(path, "x"));
        let pods = "crictl --runtime-endpoint unix:///run/containerd/containerd.sock --timeout 60s pods";
        lab.runner.answer(pods, 0, "p1\np2\n", "");
        run(&lab).unwrap();
        input.iter().for_each(|path| assert!(lab.exists(path), "{path} was removed"));
        left_overs.iter().for_each(|path| assert!(!lab.exists(path), "{path} is still there"));
        let trace = lab.runner.take_trace();
        let position = |end: &str| trace.iter().position(|line| line.ends_with(end)).unwrap();
        assert!(position("rmp -f p1 p2") < position(KUBEADM));
    }

    #[test]
    fn a_failed_attempt_is_taken_back_and_keeps_its_turn() {
        let (lab, etcd) = lab();
        let (mut attempts, root) = (0, lab.root());
        lab.runner.on("kubeadm init", move |_| {
            attempts += 1;
            std::fs::create_dir_all(root.join("etc/kubernetes")).unwrap();
            std::fs::write(root.join("etc/kubernetes/admin.conf"), "x").unwrap();
            Output { status: i32::from(attempts == 1), stderr_tail: "timed out".into(), ..Output::default() }
        });
        run(&lab).unwrap();
        let trace = lab.runner.take_trace();
        let first = trace.iter().position(|line| line == KUBEADM).unwrap();
        assert!(trace[first + 1..].iter().any(|line| line.contains("crictl")));
        assert_eq!(trace.iter().filter(|line| *line == KUBEADM).count(), 2);
        assert!(etcd.lock().unwrap().value(&key(&lab, "initialised")).is_some());
    }

    /// A kubeadm that fails `failures` times after it has made the control plane, and what is left of it another one.
    /// Gives the number of its runs.
    fn made_but_failing(lab: &mut Lab, verb: &str, failures: u32) -> Arc<AtomicU32> {
        let left = ["--skip-phases=preflight".to_owned()];
        (lab.plan.kubeadm.resume_init, lab.plan.kubeadm.resume_join) = (left.to_vec(), left.to_vec());
        let counted = Arc::new(AtomicU32::new(0));
        let (count, root) = (counted.clone(), lab.root());
        lab.runner.on(&format!("kubeadm {verb}"), move |_| {
            let runs = count.fetch_add(1, Ordering::Relaxed) + 1;
            std::fs::create_dir_all(root.join("etc/kubernetes/manifests")).unwrap();
            for made in ["kubelet.conf", "scheduler.conf", "manifests/kube-scheduler.yaml"] {
                std::fs::write(root.join("etc/kubernetes").join(made), "x").unwrap();
            }
            let said = "error execution phase mark-control-plane: context deadline exceeded";
            Output { status: i32::from(runs <= failures), stderr_tail: said.into(), ..Output::default() }
        });
        counted
    }

    const RESUME: &str = "kubeadm init --config=/etc/kubernetes/kubeadm.yaml --skip-phases=preflight";

    #[test]
    fn what_is_left_is_done_again_where_the_control_plane_runs() {
        let (mut lab, etcd) = lab();
        made_but_failing(&mut lab, "init", 2);
        run(&lab).unwrap();
        let trace = lab.runner.take_trace();
        let runs: Vec<&String> = trace.iter().filter(|line| line.starts_with("kubeadm")).collect();
        assert_eq!(runs, [KUBEADM, RESUME, RESUME]);
        let first = trace.iter().position(|line| line == KUBEADM).unwrap();
        assert!(!trace[first..].iter().any(|line| line.contains("crictl") || line.contains("stop")), "{trace:?}");
        assert!(etcd.lock().unwrap().value(&key(&lab, "initialised")).is_some());
        assert!(lab.log().contains("context deadline exceeded"));
    }

    #[test]
    fn so_it_is_in_a_join() {
        let (mut lab, etcd) = while_another_joins(Some(4));
        made_but_failing(&mut lab, "join", 1);
        lab.plan.files.push(join_config());
        // Its API server needs far longer than kubeadm had patience.
        let mut asked = 0;
        lab.runner.on("kubectl --kubeconfig=/etc/kubernetes/admin.conf", move |_| {
            asked += 1;
            Output { status: i32::from(asked < 60), stderr_tail: REFUSED.into(), ..Output::default() }
        });
        run(&lab).unwrap();
        assert!(lab.host.slept() > SETTLE * 2);
        let trace = lab.runner.take_trace();
        let annotate = "annotate --overwrite node master-1 kubeadm.alpha.kubernetes.io/cri-socket=unix:///run/x.sock";
        assert!(trace.iter().any(|line| line.ends_with(annotate)), "{trace:?}");
        let join = "kubeadm join --config=/etc/kubernetes/kubeadm-join.yaml";
        let kubeadm: Vec<String> = trace.into_iter().filter(|line| line.starts_with("kubeadm")).collect();
        assert_eq!(kubeadm, [join.to_owned(), format!("{join} --skip-phases=preflight")]);
        assert_eq!(etcd.lock().unwrap().value(&key(&lab, "join")), None, "the turn is given back");
    }

    #[test]
    fn a_control_plane_that_stays_silent_is_taken_back() {
        let (mut lab, _) = lab();
        let runs = made_but_failing(&mut lab, "init", 1);
        lab.runner.on("kubectl --kubeconfig=/etc/kubernetes/admin.conf", move |_| {
            let silent = runs.load(Ordering::Relaxed) == 1;
            Output { status: i32::from(silent), stderr_tail: REFUSED.into(), ..Output::default() }
        });
        run(&lab).unwrap();
        assert_eq!(kubeadm_runs(&lab), [KUBEADM, KUBEADM]);
    }

    #[test]
    fn another_clusters_control_plane_is_not_replaced() {
        let (lab, _) = lab();
        run(&lab).unwrap();
        let mut lab = lab.reboot();
        lab.plan.profile.cluster.id = "f".repeat(32);
        assert_eq!(run(&lab).unwrap_err().exit.code(), 20);
        assert!(lab.runner.take_trace().is_empty());
    }

    #[test]
    fn another_clusters_etcd_is_refused_by_what_is_in_it() {
        for (key, value, named) in [
            ("/imgbuild/ffff/initialised", "cp-1", "/imgbuild/ffff/initialised = cp-1"),
            ("/registry/namespaces/default", "x", "/registry/namespaces/default, but no /imgbuild/0123456789abcdef"),
        ] {
            let (lab, etcd) = lab();
            etcd.lock().unwrap().put(key, value, 0);
            let failure = run(&lab).unwrap_err();
            assert_eq!(failure.exit.code(), 20);
            assert!(failure.reason.contains(named), "{}", failure.reason);
            assert!(kubeadm_runs(&lab).is_empty());
        }
    }

    #[test]
    fn the_first_claim_wants_every_member_and_later_ones_a_quorum() {
        let (mut lab, etcd) = lab();
        for id in 2..4 {
            let mut other = lab.plan.profile.peers[0].clone();
            (other.name, other.address) = (format!("etcd-{id}"), format!("10.0.2.2{id}").parse().unwrap());
            other.roles = [Role::Etcd].into();
            lab.plan.profile.peers.push(other);
        }
        etcd.lock().unwrap().down.insert("https://10.0.2.23:2379".into());
        let failure = run(&lab).unwrap_err();
        assert_eq!(failure.exit.code(), 40);
        assert!(failure.reason.contains("wants every etcd member; no answer from https://10.0.2.23:2379"), "{failure}");
        assert_eq!(etcd.lock().unwrap().value(&key(&lab, "cluster")), None);
        etcd.lock().unwrap().put(&key(&lab, "cluster"), "master-1", 0);
        run(&lab).unwrap();
        // Without a quorum nothing goes, and those that are missing are named.
        let lab = Lab::new();
        attach(&lab, &etcd);
        etcd.lock().unwrap().down.insert("https://10.0.2.15:2379".into());
        let failure = run(&lab).unwrap_err();
        assert!(failure.reason.contains("no answer from https://10.0.2.15:2379"), "{failure}");
    }

    #[test]
    fn waits_while_another_master_initialises_and_then_joins() {
        let (mut lab, etcd) = lab();
        of_two(&mut lab);
        let (cluster, init, initialised) = (key(&lab, "cluster"), key(&lab, "init"), key(&lab, "initialised"));
        etcd.lock().unwrap().put(&cluster, "master-2", 0);
        etcd.lock().unwrap().put(&init, "master-2", 0);
        let (asked, mut questions) = (etcd.clone(), 0);
        lab.runner.on_fed("etcdctl ", move |line, fed| {
            questions += 1;
            let mut etcd = asked.lock().unwrap();
            let output = etcd.run(line, fed);
            if questions == 9 {
                etcd.put(&initialised, "master-2", 0);
                etcd.run(line, format!("\ndel \"{init}\"\n\n\n").as_bytes());
            }
            output
        });
        lab.runner.answer(
            "kubectl --kubeconfig=/etc/kubernetes/discovery.conf --request-timeout=30s get --raw /api/v1/nodes/",
            1,
            "",
            "Error from server (NotFound): nodes \"master-1\" not found",
        );
        run(&lab).unwrap();
        assert_eq!(kubeadm_runs(&lab), ["kubeadm join --config=/etc/kubernetes/kubeadm-join.yaml"]);
        insta::assert_snapshot!(lab.console_lines().join("\n"));
    }

    /// Another master's turn to join, which ends after `answers` answers of etcd, or never.
    fn while_another_joins(answers: Option<u32>) -> (Lab, SharedEtcd) {
        let (mut lab, etcd) = lab();
        of_two(&mut lab);
        for name in ["cluster", "initialised", "join"] {
            etcd.lock().unwrap().put(&key(&lab, name), "master-2", 0);
        }
        let (join, asked, mut left) = (key(&lab, "join"), etcd.clone(), answers);
        lab.runner.on_fed("etcdctl ", move |line, fed| {
            let mut etcd = asked.lock().unwrap();
            left = left.and_then(|left| left.checked_sub(1));
            if left == Some(0) {
                etcd.run("etcdctl --endpoints=x txn -w json", format!("\ndel \"{join}\"\n\n\n").as_bytes());
            }
            etcd.run(line, fed)
        });
        let missing = "Error from server (NotFound): nodes \"master-1\" not found";
        let get = "kubectl --kubeconfig=/etc/kubernetes/discovery.conf --request-timeout=30s get --raw /api/v1/nodes/";
        lab.runner.answer(get, 1, "", missing);
        (lab, etcd)
    }

    #[test]
    fn masters_join_one_after_the_other() {
        let (lab, etcd) = while_another_joins(Some(4));
        run(&lab).unwrap();
        assert_eq!(kubeadm_runs(&lab), ["kubeadm join --config=/etc/kubernetes/kubeadm-join.yaml"]);
        let lines = lab.console_lines();
        assert!(lines.iter().any(|line| line.contains("(master-2 is joining)")), "{lines:?}");
        assert_eq!(etcd.lock().unwrap().value(&key(&lab, "join")), None, "the turn is given back");
    }

    #[test]
    fn nobody_waits_for_ever_for_a_master_that_hangs_in_its_turn() {
        let (lab, etcd) = while_another_joins(None);
        run(&lab).unwrap();
        assert_eq!(kubeadm_runs(&lab), ["kubeadm join --config=/etc/kubernetes/kubeadm-join.yaml"]);
        let slept = lab.host.slept().as_secs();
        assert!((900..960).contains(&slept), "{slept}");
        assert_eq!(etcd.lock().unwrap().value(&key(&lab, "join")).as_deref(), Some("master-2"), "it is not ours");
    }

    /// An API server that has no time for a request now and then is not lost, however long others take to join.
    #[test]
    fn a_busy_api_server_is_not_a_lost_one() {
        let (lab, etcd) = while_another_joins(None);
        let (join, cluster) = (key(&lab, "join"), etcd.clone());
        cluster.lock().unwrap().run("etcdctl --endpoints=x txn -w json", format!("\ndel \"{join}\"\n\n\n").as_bytes());
        let mut asked = 0;
        lab.runner.on(
            "kubectl --kubeconfig=/etc/kubernetes/discovery.conf --request-timeout=30s get --raw /readyz",
            move |_| {
                asked += 1;
                // While another master joins, for as long as it may, half of the requests get no answer.
                if asked == 1 {
                    cluster.lock().unwrap().put(&join, "master-2", 0);
                }
                Output { status: asked % 2, stderr_tail: REFUSED.to_owned(), ..Output::default() }
            },
        );
        run(&lab).unwrap();
        assert_eq!(kubeadm_runs(&lab), ["kubeadm join --config=/etc/kubernetes/kubeadm-join.yaml"]);
        assert!(lab.host.slept() >= LOST);
    }

    #[test]
    fn a_sole_master_that_was_re_imaged_initialises_over_the_data() {
        let (lab, etcd) = lab();
        for (name, value) in [("cluster", "master-1"), ("initialised", "master-1")] {
            etcd.lock().unwrap().put(&key(&lab, name), value, 0);
        }
        etcd.lock().unwrap().put("/registry/namespaces/default", "x", 0);
        run(&lab).unwrap();
        assert_eq!(kubeadm_runs(&lab), [KUBEADM]);
        assert!(lab.console_lines().iter().any(|line| line.contains("initialising again over its data")));
    }

    #[test]
    fn when_all_masters_are_lost_one_initialises_over_the_data_after_a_while() {
        for (who, minutes) in [("master-2", 15), ("master-1", 2)] {
            let (mut lab, etcd) = lab();
            of_two(&mut lab);
            for name in ["cluster", "initialised"] {
                etcd.lock().unwrap().put(&key(&lab, name), who, 0);
            }
            lab.runner.answer("kubectl --kubeconfig=/etc/kubernetes/discovery.conf", 1, "", REFUSED);
            run(&lab).unwrap();
            assert_eq!(kubeadm_runs(&lab), [KUBEADM]);
            let slept = lab.host.slept().as_secs();
            assert!(slept >= minutes * 60 && slept < minutes * 60 + 30, "{slept}");
            let said = format!("NO API SERVER has answered for {minutes} minutes, although {who} has initialised");
            assert!(lab.console_lines().iter().any(|line| line.contains(&said)));
            assert_eq!(etcd.lock().unwrap().value(&key(&lab, "initialised")).as_deref(), Some("master-1"));
        }
    }

    #[test]
    fn a_claim_that_is_lost_under_way_is_said_and_costs_the_attempt() {
        let (mut lab, etcd) = lab();
        of_two(&mut lab);
        let (init, initialised, stolen) = (key(&lab, "init"), key(&lab, "initialised"), etcd.clone());
        let root = lab.root();
        lab.runner.on("kubeadm init", move |_| {
            // Out of reach for more than a minute: the lease ends, and another master initialises.
            std::fs::create_dir_all(root.join("etc/kubernetes/manifests")).unwrap();
            std::fs::write(root.join("etc/kubernetes/manifests/kube-apiserver.yaml"), "x").unwrap();
            let mut etcd = stolen.lock().unwrap();
            etcd.lose_leases();
            assert_eq!(etcd.value(&init), None);
            etcd.put(&initialised, "master-2", 0);
            Output { stdout: "[certs] x\n".into(), ..Output::default() }
        });
        lab.runner.answer(
            "kubectl --kubeconfig=/etc/kubernetes/discovery.conf --request-timeout=30s get --raw /api/v1/nodes/",
            1,
            "",
            "Error from server (NotFound): x",
        );
        run(&lab).unwrap();
        let lines = lab.console_lines();
        let said = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!(said("the claim to initialise is lost"), 1, "{lines:?}");
        assert_eq!(said("the claim was lost, and master-2 has initialised the cluster"), 1, "{lines:?}");
        assert!(!lab.exists("/etc/kubernetes/manifests/kube-apiserver.yaml"));
        assert_eq!(kubeadm_runs(&lab).last().unwrap(), "kubeadm join --config=/etc/kubernetes/kubeadm-join.yaml");
        assert_eq!(etcd.lock().unwrap().value(&key(&lab, "initialised")).as_deref(), Some("master-2"));
    }
}

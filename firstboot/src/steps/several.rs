// SPDX-License-Identifier: MIT OR Apache-2.0
//! Three masters and a worker on one etcd, in every order, with power cuts at every moment.
//!
//! Each node is a thread with a disk of its own, but only the one whose turn it is runs; wherever a node runs a program,
//! sleeps or writes a record, the schedule decides who goes on. The clock is everybody's, and jumps when all sleep.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use profiles::node::{Peer, Role};

use super::fake_etcd::{SharedEtcd, attach};
use super::{CONTROL_PLANE, control_plane, join, kubelet, manifests, node_ready};
use crate::engine::{Step, converge};
use crate::journal::{Journal, Progress};
use crate::runner::Output;
use crate::testing::{DISCOVERY, Lab};

const MASTERS: usize = 3;
const SECOND: Duration = Duration::from_secs(1);
/// More than any run needs: a livelock ends here.
const STEPS: usize = 20_000;

/// Who goes on, of those that can.
#[derive(Debug, Clone)]
enum Schedule {
    /// At these moments the n-th of the others; else whoever is running, or the first.
    Switches(Vec<(usize, usize)>),
    /// Anybody, from this seed.
    Random(u64),
}

/// At this moment something befalls the node whose turn it is.
#[derive(Debug, Clone, Copy)]
struct Cut {
    moment: usize,
    seconds: u64,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// It is without power for so long.
    Off,
    /// So is everybody else.
    AllOff,
    /// It stands still for so long, while its programs go on.
    Stall,
}

#[derive(Debug, Default, Clone)]
struct Node {
    wakes: Duration,
    done: bool,
    /// When a node that had converged is back after a power cut.
    back: Option<Duration>,
    power_fails: Option<Duration>,
    kubelet_enabled: bool,
    kubelet_runs: bool,
    /// When kubelet stopped: the cluster notices 40 s later.
    silent_since: Duration,
    registered: bool,
    /// kubeadm ended well, and was not taken back.
    member: bool,
    /// Its API server answers.
    serves: bool,
    failures: Vec<String>,
}

struct State {
    now: Duration,
    moment: usize,
    running: usize,
    nodes: Vec<Node>,
    schedule: Schedule,
    cuts: Vec<Cut>,
    initialising: Option<usize>,
    inits: Vec<usize>,
    joins: Vec<usize>,
    rotation: bool,
    broken: bool,
}

struct World {
    state: Mutex<State>,
    turn: Condvar,
    etcd: SharedEtcd,
}

/// What a node's thread unwinds with when its power goes.
struct PowerCut;

impl State {
    fn next(&mut self) {
        for id in 0..self.nodes.len() {
            if self.nodes[id].back.is_some_and(|back| back <= self.now) {
                self.power_is_back(id);
            }
        }
        let awake = |state: &Self| -> Vec<usize> {
            (0..state.nodes.len()).filter(|id| !state.nodes[*id].done && state.nodes[*id].wakes <= state.now).collect()
        };
        let mut able = awake(self);
        if able.is_empty() {
            let Some(next) = self.nodes.iter().filter(|node| !node.done).map(|node| node.wakes).min() else { return };
            self.now = next;
            able = awake(self);
        }
        self.running = match &mut self.schedule {
            Schedule::Switches(switches) => {
                let others: Vec<_> = able.iter().copied().filter(|id| *id != self.running).collect();
                match switches.iter().find(|(moment, _)| *moment == self.moment) {
                    Some((_, index)) if !others.is_empty() => others[index % others.len()],
                    _ if able.contains(&self.running) => self.running,
                    _ => able[0],
                }
            }
            Schedule::Random(seed) => {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                able[(*seed >> 33) as usize % able.len()]
            }
        };
    }

    fn power_fails(&mut self, id: usize, off: Duration) {
        let now = self.now;
        let node = &mut self.nodes[id];
        if node.kubelet_runs {
            node.silent_since = now;
        }
        (node.kubelet_runs, node.serves) = (false, false);
        if node.done {
            node.back = Some(now + off);
        } else {
            (node.power_fails, node.wakes) = (Some(off), now);
        }
        if self.initialising == Some(id) {
            self.initialising = None;
        }
    }

    /// systemd starts what is enabled, and kubelet its static pods.
    fn power_is_back(&mut self, id: usize) {
        let node = &mut self.nodes[id];
        node.back = None;
        node.kubelet_runs = node.kubelet_enabled;
        node.serves = node.kubelet_enabled && node.member && id < MASTERS;
    }

    fn an_api_server_answers(&self) -> bool {
        self.nodes.iter().any(|node| node.serves)
    }

    fn ready(&self, id: usize) -> bool {
        let node = &self.nodes[id];
        node.registered && (node.kubelet_runs || self.now < node.silent_since + 40 * SECOND)
    }
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn wait_for_turn<'a>(&self, mut state: MutexGuard<'a, State>, id: usize) -> MutexGuard<'a, State> {
        while state.running != id && !state.broken {
            state = self.turn.wait(state).unwrap();
        }
        if state.broken {
            drop(state);
            resume_unwind(Box::new("another node broke the rules"));
        }
        self.etcd.lock().unwrap().now = state.now;
        state
    }

    /// Others may go first; the power may go.
    fn pass(&self, id: usize, nap: Duration, may_fail: bool) -> Duration {
        let mut state = self.state();
        state.moment += 1;
        assert!(state.moment < STEPS, "no end in sight");
        state.nodes[id].wakes = state.now + nap;
        let moment = state.moment;
        if let Some(cut) = state.cuts.iter().copied().find(|cut| cut.moment == moment) {
            let all = 0..state.nodes.len();
            let time = Duration::from_secs(cut.seconds);
            match cut.what {
                What::Off => state.power_fails(id, time),
                What::AllOff => all.for_each(|other| state.power_fails(other, time)),
                What::Stall => state.nodes[id].wakes += time,
            }
        }
        state.next();
        self.turn.notify_all();
        state = self.wait_for_turn(state, id);
        if may_fail && state.nodes[id].power_fails.is_some() {
            drop(state);
            resume_unwind(Box::new(PowerCut));
        }
        state.now
    }

    /// A node from its first boot until it has converged.
    fn live(self: &Arc<Self>, id: usize, root: &Path) {
        drop(self.wait_for_turn(self.state(), id));
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.boot(id, root))) {
                Ok(()) => break,
                Err(cause) if cause.is::<PowerCut>() => {
                    let off = self.state().nodes[id].power_fails.take().unwrap();
                    self.pass(id, off, false);
                    self.state().power_is_back(id);
                }
                Err(cause) => {
                    let mut state = match self.state.lock() {
                        Ok(state) => state,
                        Err(poisoned) => poisoned.into_inner(),
                    };
                    state.broken = true;
                    drop(state);
                    self.turn.notify_all();
                    resume_unwind(cause);
                }
            }
        }
        let mut state = self.state();
        state.nodes[id].done = true;
        state.next();
        self.turn.notify_all();
    }

    fn boot(self: &Arc<Self>, id: usize, root: &Path) {
        let lab = self.node(id, root);
        loop {
            let result = {
                let cx = lab.cx();
                let steps: Vec<Box<dyn Step>> = if id < MASTERS {
                    vec![
                        Box::new(control_plane::ControlPlane),
                        Box::new(kubelet::Kubelet),
                        Box::new(manifests::Manifests),
                    ]
                } else {
                    vec![Box::new(join::Join), Box::new(kubelet::Kubelet), Box::new(node_ready::NodeReady)]
                };
                converge(&cx, &steps)
            };
            match result {
                Ok(()) => return,
                Err((step, failure)) => {
                    self.state().nodes[id].failures.push(format!("{step}: {failure}"));
                    self.pass(id, 15 * SECOND, true); // firstboot.service starts again
                }
            }
        }
    }

    fn node(self: &Arc<Self>, id: usize, root: &Path) -> Lab {
        let mut lab = Lab::at(root);
        let profile = &mut lab.plan.profile;
        let peer = |id: usize| Peer {
            secondary_address: None,
            name: name(id),
            address: format!("10.0.2.{}", 11 + id).parse().unwrap(),
            roles: if id < MASTERS { [Role::Etcd, Role::Master].into() } else { [Role::Worker].into() },
            pod_subnet: None,
        };
        profile.peers = (0..=MASTERS).map(peer).collect();
        profile.node.name = name(id);
        profile.node.roles = peer(id).roles;
        lab.write("/etc/kubernetes/discovery.conf", DISCOVERY);
        attach(&lab, &self.etcd);
        let world = self.clone();
        *lab.host.clock.borrow_mut() = Some(Box::new(move |nap| world.pass(id, nap.unwrap_or_default(), true)));
        // etcd's answers come through the fake etcd, after others had their chance.
        let (world, etcd) = (self.clone(), self.etcd.clone());
        lab.runner.on_fed("etcdctl ", move |line, fed| {
            world.pass(id, Duration::ZERO, true);
            etcd.lock().unwrap().run(line, fed)
        });
        for program in ["kubeadm ", "kubectl ", "systemctl ", "crictl "] {
            let (world, root) = (self.clone(), root.to_owned());
            lab.runner.on(program, move |line| {
                world.pass(id, Duration::ZERO, true);
                world.program(id, line, &root)
            });
        }
        lab
    }

    fn program(&self, id: usize, line: &str, root: &Path) -> Output {
        let words: Vec<_> = line.split(' ').collect();
        let failed = |why: &str| Output { status: 1, stderr_tail: why.to_owned(), ..Output::default() };
        let succeeds =
            |yes: bool| if yes { Output::default() } else { failed("The connection to the server was refused") };
        match words.as_slice() {
            ["kubeadm", "init", ..] => self.init(id, root),
            ["kubeadm", "join", ..] => self.join(id, root),
            ["crictl", .., "pods", "-q"] => {
                let pods = if self.state().nodes[id].serves { "pod\n" } else { "" };
                Output { stdout: pods.to_owned(), ..Output::default() }
            }
            ["crictl", .., "rmp", "-f", "pod"] => {
                self.state().nodes[id].serves = false;
                Output::default()
            }
            ["systemctl", verb, .., "kubelet"] => {
                let mut state = self.state();
                let now = state.now;
                let node = &mut state.nodes[id];
                match *verb {
                    "enable" => node.kubelet_enabled = true,
                    "disable" => (node.kubelet_enabled, node.member) = (false, false),
                    "start" => node.kubelet_runs = true,
                    "stop" if node.kubelet_runs => (node.kubelet_runs, node.silent_since) = (false, now),
                    "is-enabled" => return succeeds(node.kubelet_enabled),
                    "is-active" => return succeeds(node.kubelet_runs),
                    _ => {}
                }
                Output::default()
            }
            ["kubectl", _, _, "get", "--raw", "/readyz"] => succeeds(self.state().an_api_server_answers()),
            ["kubectl", _, _, "apply", ..] => {
                let mut state = self.state();
                state.rotation |= state.an_api_server_answers();
                succeeds(state.an_api_server_answers())
            }
            ["kubectl", _, _, "get", "--raw", _] => {
                let state = self.state();
                if !state.an_api_server_answers() {
                    return succeeds(false);
                }
                if !state.nodes[id].registered {
                    return failed("Error from server (NotFound): nodes not found");
                }
                let ready = if state.ready(id) { "True" } else { "Unknown" };
                let stdout = format!(r#"{{"status":{{"conditions":[{{"type":"Ready","status":"{ready}"}}]}}}}"#);
                Output { stdout, ..Output::default() }
            }
            _ => Output::default(),
        }
    }

    fn init(&self, id: usize, root: &Path) -> Output {
        {
            let mut state = self.state();
            assert_eq!(state.initialising, None, "{} initialises at the same time", name(id));
            assert!(!state.an_api_server_answers(), "{} initialises although there is a control plane", name(id));
            assert!(clean(root), "{} was not taken back", name(id));
            state.initialising = Some(id);
            state.inits.push(id);
        }
        write(root, "etc/kubernetes/pki/apiserver.crt");
        self.pass(id, 20 * SECOND, true);
        self.etcd.lock().unwrap().put("/registry/namespaces/default", "x", 0);
        write(root, "etc/kubernetes/manifests/kube-apiserver.yaml");
        self.state().nodes[id].serves = true;
        self.pass(id, 20 * SECOND, true);
        write(root, "etc/kubernetes/admin.conf");
        let mut state = self.state();
        state.initialising = None;
        let node = &mut state.nodes[id];
        (node.kubelet_runs, node.registered, node.member) = (true, true, true);
        Output::default()
    }

    fn join(&self, id: usize, root: &Path) -> Output {
        let failed = |why: &str| Output { status: 1, stderr_tail: why.to_owned(), ..Output::default() };
        assert!(clean(root), "{} was not taken back", name(id));
        if self.state().ready(id) {
            return failed("a Node with this name is Ready");
        }
        write(root, if id < MASTERS { "etc/kubernetes/pki/apiserver.crt" } else { "etc/kubernetes/pki/ca.crt" });
        self.pass(id, 20 * SECOND, true);
        let mut state = self.state();
        if !state.an_api_server_answers() || !state.rotation {
            drop(state);
            self.pass(id, 300 * SECOND, true);
            return failed("timed out");
        }
        let node = &mut state.nodes[id];
        (node.kubelet_runs, node.registered, node.member, node.serves) = (true, true, true, id < MASTERS);
        state.joins.push(id);
        drop(state);
        write(root, "etc/kubernetes/kubelet.conf");
        Output::default()
    }
}

fn name(id: usize) -> String {
    if id < MASTERS { format!("master-{}", id + 1) } else { format!("worker-{}", id + 1 - MASTERS) }
}

fn write(root: &Path, path: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "x").unwrap();
}

/// Nothing of an earlier kubeadm is on the disk.
fn clean(root: &Path) -> bool {
    let made = ["pki/apiserver.crt", "pki/ca.crt", "manifests/kube-apiserver.yaml", "admin.conf", "kubelet.conf"];
    made.iter().all(|path| !root.join("etc/kubernetes").join(path).exists())
}

/// Where fsync costs nothing, if there is such a place.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Plays it, and gives back how many moments it took.
fn play(schedule: Schedule, cuts: &[Cut]) -> usize {
    play_out(schedule, cuts).0
}

/// Runs all nodes to the end, and checks what must always be so; gives back how many moments it took, and who ran
/// `kubeadm init`.
fn play_out(schedule: Schedule, cuts: &[Cut]) -> (usize, Vec<usize>) {
    let told = format!("{schedule:?} {cuts:?}");
    let disks = scratch();
    let count = MASTERS + 1;
    let world = Arc::new(World {
        state: Mutex::new(State {
            now: Duration::ZERO,
            moment: 0,
            running: 0,
            nodes: vec![Node::default(); count],
            schedule,
            cuts: cuts.to_vec(),
            initialising: None,
            inits: Vec::new(),
            joins: Vec::new(),
            rotation: false,
            broken: false,
        }),
        turn: Condvar::new(),
        etcd: SharedEtcd::default(),
    });
    let root = |id: usize| -> PathBuf { disks.path().join(name(id)) };
    let ended: Vec<_> = std::thread::scope(|scope| {
        let start = |id: usize| {
            let (world, root) = (world.clone(), root(id));
            scope.spawn(move || world.live(id, &root))
        };
        let threads: Vec<_> = (0..count).map(start).collect();
        threads.into_iter().map(|thread| thread.join().is_ok()).collect()
    });
    assert!(ended.iter().all(|well| *well), "{told}");
    let state = world.state();
    let failures: Vec<_> = state.nodes.iter().map(|node| &node.failures).collect();
    assert!(state.nodes.iter().all(|node| node.member), "{told}: {:?}", state.nodes);
    let off = cuts.iter().filter(|cut| cut.what != What::Stall).count();
    assert!(!state.inits.is_empty() && state.inits.len() <= 1 + off, "{told}: {:?} initialised", state.inits);
    if off == 0 {
        assert_eq!((state.inits.len(), state.joins.len()), (1, MASTERS), "{told}");
        assert!(failures.iter().all(|failures| failures.is_empty()), "{told}: {failures:?}");
    }
    let key = |name: &str| format!("/imgbuild/0123456789abcdef0123456789abcdef/{name}");
    let mut etcd = world.etcd.lock().unwrap();
    etcd.now += 61 * SECOND;
    let last = name(*state.inits.last().unwrap());
    assert_eq!(etcd.value(&key("initialised")), Some(last), "{told}");
    assert!(etcd.value(&key("cluster")).is_some() && etcd.value(&key("init")).is_none(), "{told}");
    for id in 0..MASTERS {
        let journal = Journal::open(&root(id).join("var/lib/imgbuild/journal.jsonl")).unwrap();
        assert!(matches!(journal.progress(CONTROL_PLANE), Progress::Done(_)), "{told}");
    }
    (state.moment, state.inits.clone())
}

#[test]
fn exactly_one_master_initialises_in_every_order() {
    let total = play(Schedule::Switches(Vec::new()), &[]);
    assert!(total > 50, "{total} moments");
    // One switch at every moment, then two while the claim is made.
    for moment in 1..=total {
        for other in 0..MASTERS {
            play(Schedule::Switches(vec![(moment, other)]), &[]);
        }
    }
    for first in 1..=16 {
        for second in first + 1..=16 {
            for others in 0..4 {
                play(Schedule::Switches(vec![(first, others & 1), (second, others >> 1)]), &[]);
            }
        }
    }
}

#[test]
fn a_power_cut_at_every_moment_costs_nothing_but_time() {
    for schedule in [Schedule::Switches(Vec::new()), Schedule::Random(7)] {
        let total = play(schedule.clone(), &[]);
        for moment in 1..=total {
            // Back before its claim is gone, or after.
            for seconds in [10, 100] {
                play(schedule.clone(), &[Cut { moment, seconds, what: What::Off }]);
            }
            play(schedule.clone(), &[Cut { moment, seconds: 30, what: What::AllOff }]);
        }
    }
}

#[test]
fn whoever_stands_still_between_looking_and_claiming_does_not_initialise_again() {
    let schedule = Schedule::Switches(Vec::new());
    let total = play(schedule.clone(), &[]);
    for moment in 1..=total {
        play(schedule.clone(), &[Cut { moment, seconds: 400, what: What::Stall }]);
    }
    // The first one goes off while it initialises, and stays off: there is a turn to be had again.
    let first = (1..total).find(|moment| {
        let cut = Cut { moment: *moment, seconds: 600, what: What::Off };
        play_out(schedule.clone(), &[cut]).1.len() == 2
    });
    let off = Cut { moment: first.unwrap(), seconds: 600, what: What::Off };
    let total = play(schedule.clone(), &[off]);
    for moment in off.moment + 1..=total {
        play(schedule.clone(), &[off, Cut { moment, seconds: 400, what: What::Stall }]);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 128, failure_persistence: None, ..Default::default() })]
    #[test]
    fn any_order_and_any_power_cuts_end_in_one_cluster(
        seed: u64,
        cuts in proptest::collection::vec((1..250usize, 1..400u64, 0..5u8), 0..4),
    ) {
        let what = |number| match number {
            0 => What::AllOff,
            1 | 2 => What::Stall,
            _ => What::Off,
        };
        let cut = |(moment, seconds, number)| Cut { moment, seconds, what: what(number) };
        let cuts: Vec<_> = cuts.into_iter().map(cut).collect();
        play(Schedule::Random(seed), &cuts);
    }
}

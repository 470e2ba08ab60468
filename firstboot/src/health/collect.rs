// SPDX-License-Identifier: MIT OR Apache-2.0
//! Asks everything once: programs, files, the kernel, haproxy's socket. Judges nothing.
//!
//! Two rounds of programs, each side by side. The first finds out who answers at all; the second asks the API server that
//! does: this master's own before the endpoint, so that a lost VIP hides nothing. Each program has [`SECONDS`], so the
//! whole takes at most twice that and a little, however much is broken.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use profiles::node::{LoadBalancer, NodeProfile, Peer, Role};
use serde_json::Value;

use super::Source;
use super::certificates::{self, Certificate};
use super::programs::{Programs, Ran, why};
use crate::context::{RUN_DIR, below};
use crate::etcdctl;
use crate::host::Host;
use crate::kubectl::{ADMINS_CONFIG, KUBELETS_CONFIG};
use crate::runner::Command;
use crate::status::{self, Status};

/// Time limit of a program, for a machine that is busy or emulated: there kubectl alone takes seconds to start. A server
/// that does not answer is given up earlier, by the programs' own limits.
const SECONDS: u64 = 30;
/// haproxy answers from memory.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(2);
/// A page of statistics; more than a thousand servers.
const SOCKET_LIMIT: u64 = 1 << 20;
/// Directories that fill up, and what stops when they do.
const DIRECTORIES: [&str; 3] = ["/var/lib/etcd", "/var/lib/containerd", "/var/lib/kubelet"];

/// Everything that is judged.
#[derive(Debug)]
pub(super) struct Facts {
    /// This node's clock.
    pub now: u64,
    /// `/readyz` of every master in the profile's order, then of the endpoint if it is another address.
    pub apis: Vec<Api>,
    /// Lists from the API server; on a worker of this node alone, which is all it may see.
    pub nodes: Source<Value>,
    pub pods: Source<Value>,
    pub leases: Source<Value>,
    /// What etcdctl says; by name of the member for `statuses`.
    pub members: Source<Value>,
    pub health: Source<Value>,
    pub statuses: BTreeMap<String, Source<Value>>,
    pub record: Source<String>,
    /// `ip -json address`, `ip -json neighbour`, haproxy's `show stat`.
    pub addresses: Source<Value>,
    pub neighbours: Source<Value>,
    pub haproxy: Source<String>,
    /// `systemctl show` of [`units`].
    pub units: Source<String>,
    pub certificates: Vec<Certificate>,
    pub disks: Vec<Disk>,
    /// `/proc/meminfo` and `/proc/swaps`.
    pub memory: String,
    pub swaps: String,
    pub firstboot: Source<Status>,
}

/// One API server, or the endpoint.
#[derive(Debug)]
pub(super) struct Api {
    /// The master's name; `None`: the endpoint.
    pub master: Option<String>,
    /// `https://host:port`.
    pub server: String,
    pub answer: Result<Ran, String>,
}

impl Api {
    /// It serves.
    pub fn ready(&self) -> bool {
        self.answer.as_ref().is_ok_and(|ran| ran.output.success())
    }
}

/// One filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    /// Directories on it.
    pub paths: Vec<&'static str>,
    pub bytes: u64,
    pub free: u64,
    pub inodes: u64,
    pub free_inodes: u64,
}

/// Names of nodes that have one of `roles`.
pub(super) fn peers<'a>(profile: &'a NodeProfile, roles: &'a [Role]) -> impl Iterator<Item = &'a Peer> {
    profile.peers.iter().filter(|peer| peer.roles.iter().any(|role| roles.contains(role)))
}

/// Units that must run on this node.
pub(super) fn units(profile: &NodeProfile) -> Vec<&'static str> {
    let mut units = Vec::new();
    if profile.has(Role::Etcd) {
        units.push("etcd");
    }
    if profile.has(Role::Master) && matches!(profile.load_balancer, LoadBalancer::Keepalived { .. }) {
        units.extend(["haproxy", "keepalived"]);
    }
    if profile.has(Role::Master) || profile.has(Role::Worker) {
        units.extend(["containerd", "kubelet"]);
    }
    units
}

/// Asks everything.
pub(super) fn collect(root: &Path, profile: &NodeProfile, host: &dyn Host, programs: &dyn Programs) -> Facts {
    let kubeconfig = kubeconfig(root, profile);
    // Before it is joined, a node has none: that says nothing about the API servers.
    let missing = kubeconfig.as_ref().filter(|path| !Path::new(path).exists()).cloned();
    let kubeconfig = kubeconfig.filter(|_| missing.is_none());
    let mut round = Round::default();
    let servers = kubeconfig.as_ref().map(|_| servers(profile)).unwrap_or_default();
    let probes: Vec<_> = servers
        .iter()
        .map(|(_, server)| round.ask(kubectl(kubeconfig.as_deref(), server, &["-v=8", "get", "--raw", "/readyz"])))
        .collect();
    let etcd = Etcd::ask(profile, &mut round);
    let mut show = vec!["show", "--property=Id,ActiveState,SubState,Result,NRestarts"];
    show.extend(units(profile));
    let units = round.ask(limited(Command::new("systemctl", show)));
    let mut answers = round.run(programs);

    let apis: Vec<Api> = servers
        .into_iter()
        .zip(probes)
        .map(|((master, server), index)| Api { master, server, answer: answers.take(index) })
        .collect();

    let mut round = Round::default();
    let mut lists = Lists::ask(profile, kubeconfig.as_deref(), best_server(profile, &apis), &mut round);
    if let Some(path) = missing {
        lists.nobody = Some(format!("{path} is not there: this node has not joined yet"));
    }
    let behind_vip = kubeconfig.is_some() && matches!(profile.load_balancer, LoadBalancer::Keepalived { .. });
    // After the first round: asking the endpoint is what makes the kernel look for the VIP's holder.
    let links = behind_vip.then(|| {
        let ip = |what: &str| limited(Command::new("ip", ["-json", what, "show"]));
        (round.ask(ip("address")), round.ask(ip("neighbour")))
    });
    let mut second = round.run(programs);

    let (addresses, neighbours) = match links {
        Some((addresses, neighbours)) => (second.json(addresses), second.json(neighbours)),
        None => (Source::NotAsked, Source::NotAsked),
    };
    Facts {
        now: host.unix_time(),
        apis,
        nodes: lists.answer(lists.nodes, &mut second),
        pods: lists.answer(lists.pods, &mut second),
        leases: lists.answer(lists.leases, &mut second),
        members: etcd.members.map_or(Source::NotAsked, |index| answers.json(index)),
        health: etcd.health.map_or(Source::NotAsked, |index| answers.partial_json(index)),
        statuses: etcd.statuses.into_iter().map(|(name, index)| (name, answers.json(index))).collect(),
        record: etcd.record.map_or(Source::NotAsked, |index| answers.text(index)),
        addresses,
        neighbours,
        haproxy: haproxy(root, profile),
        units: answers.text(units),
        certificates: certificates::find(root),
        disks: disks(root),
        memory: std::fs::read_to_string(below(root, "/proc/meminfo")).unwrap_or_default(),
        swaps: std::fs::read_to_string(below(root, "/proc/swaps")).unwrap_or_default(),
        firstboot: match status::read(&below(root, RUN_DIR).join("status.json")) {
            Ok(status) => Source::Known(status),
            Err(error) => Source::Failed(format!("{error:#}")),
        },
    }
}

/// Programs that run together.
#[derive(Default)]
struct Round(Vec<Command>);

impl Round {
    /// Takes it in; the number finds its answer.
    fn ask(&mut self, command: Command) -> usize {
        self.0.push(command);
        self.0.len() - 1
    }

    fn run(self, programs: &dyn Programs) -> Answers {
        Answers(programs.run_all(&self.0).into_iter().map(Some).collect())
    }
}

/// Their answers.
struct Answers(Vec<Option<Result<Ran, String>>>);

impl Answers {
    fn take(&mut self, index: usize) -> Result<Ran, String> {
        let answer = self.0.get_mut(index).and_then(Option::take);
        answer.unwrap_or_else(|| Err("it was not asked".to_owned()))
    }

    fn text(&mut self, index: usize) -> Source<String> {
        match self.take(index) {
            Ok(ran) if ran.output.success() => Source::Known(ran.output.stdout),
            Ok(ran) => Source::Failed(why(&ran)),
            Err(error) => Source::Failed(error),
        }
    }

    fn json(&mut self, index: usize) -> Source<Value> {
        match self.text(index) {
            Source::Known(text) => parse(&text),
            Source::Failed(why) => Source::Failed(why),
            Source::NotAsked => Source::NotAsked,
        }
    }

    /// JSON of a program that also exits with an error when it has something bad to say.
    fn partial_json(&mut self, index: usize) -> Source<Value> {
        match self.take(index) {
            Ok(ran) => match parse(&ran.output.stdout) {
                Source::Known(value) => Source::Known(value),
                _ => Source::Failed(why(&ran)),
            },
            Err(error) => Source::Failed(error),
        }
    }
}

fn parse(text: &str) -> Source<Value> {
    match serde_json::from_str(text) {
        Ok(value) => Source::Known(value),
        // 8 MiB is what the runner keeps.
        Err(error) if error.is_eof() && text.len() > 1 << 20 => Source::Failed("the answer is too long".to_owned()),
        Err(_) => Source::Failed("the answer is no JSON".to_owned()),
    }
}

fn limited(command: Command) -> Command {
    command.timeout(SECONDS)
}

/// The kubeconfig of this node, if its roles have one: the administrator's on masters, kubelet's own on workers.
fn kubeconfig(root: &Path, profile: &NodeProfile) -> Option<String> {
    let path = match (profile.has(Role::Master), profile.has(Role::Worker)) {
        (true, _) => ADMINS_CONFIG,
        (false, true) => KUBELETS_CONFIG,
        (false, false) => return None,
    };
    Some(below(root, path).display().to_string())
}

fn kubectl(kubeconfig: Option<&str>, server: &str, args: &[&str]) -> Command {
    let mut all = vec![format!("--kubeconfig={}", kubeconfig.unwrap_or_default()), "--request-timeout=10s".to_owned()];
    all.push(format!("--server={server}"));
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    limited(Command::new("kubectl", all))
}

/// Every master's own API server, then the endpoint.
fn servers(profile: &NodeProfile) -> Vec<(Option<String>, String)> {
    let port = profile.kubernetes.apiserver_port;
    let mut servers: Vec<_> = peers(profile, &[Role::Master])
        .map(|peer| (Some(peer.name.clone()), format!("https://{}", std::net::SocketAddr::new(peer.address, port))))
        .collect();
    let endpoint = format!("https://{}", profile.kubernetes.control_plane_endpoint);
    if servers.iter().all(|(_, server)| *server != endpoint) {
        servers.push((None, endpoint));
    }
    servers
}

/// Whom to ask for lists: this node's own API server, the endpoint, any that serves; else any that says anything at all.
fn best_server<'a>(profile: &NodeProfile, apis: &'a [Api]) -> Option<&'a str> {
    let own = |api: &&Api| api.master.as_ref() == Some(&profile.node.name);
    let serving = || apis.iter().filter(|api| api.ready());
    let answering = |api: &&Api| api.answer.as_ref().is_ok_and(|ran| super::api::date(ran).is_some());
    let best = serving().find(own).or_else(|| serving().find(|api| api.master.is_none())).or_else(|| serving().next());
    best.or_else(|| apis.iter().find(answering)).map(|api| api.server.as_str())
}

/// What is asked of etcd.
#[derive(Default)]
struct Etcd {
    members: Option<usize>,
    health: Option<usize>,
    statuses: Vec<(String, usize)>,
    record: Option<usize>,
}

impl Etcd {
    fn ask(profile: &NodeProfile, round: &mut Round) -> Self {
        // Workers have no certificate for etcd.
        if !profile.has(Role::Master) && !profile.has(Role::Etcd) {
            return Self::default();
        }
        let all = etcdctl::endpoints(profile);
        let mut ask = |endpoints: &[String], args: &[&str]| {
            round.ask(limited(etcdctl::command(profile, endpoints, args.iter().copied())))
        };
        let key = format!("/imgbuild/{}/", profile.cluster.id);
        Self {
            members: Some(ask(&all, &["member", "list", "-w", "json"])),
            health: Some(ask(&all, &["endpoint", "health", "-w", "json"])),
            // One program each: with several, etcdctl waits for the dead ones in turn.
            statuses: peers(profile, &[Role::Etcd])
                .zip(&all)
                .map(|(peer, endpoint)| {
                    let index = ask(std::slice::from_ref(endpoint), &["endpoint", "status", "-w", "json"]);
                    (peer.name.clone(), index)
                })
                .collect(),
            record: Some(ask(&all, &["get", &key, "--prefix"])),
        }
    }
}

/// What is asked of the API server.
struct Lists {
    nodes: Option<usize>,
    pods: Option<usize>,
    leases: Option<usize>,
    /// Why nothing was asked, where it should have been.
    nobody: Option<String>,
}

impl Lists {
    fn ask(profile: &NodeProfile, kubeconfig: Option<&str>, server: Option<&str>, round: &mut Round) -> Self {
        let nobody = (kubeconfig.is_some() && server.is_none()).then(|| "no API server answers".to_owned());
        let Some((kubeconfig, server)) = kubeconfig.zip(server) else {
            return Self { nodes: None, pods: None, leases: None, nobody };
        };
        // By path: `kubectl get nodes` first asks for all that the API server offers, in dozens of requests.
        let mut ask = |path: &str| Some(round.ask(kubectl(Some(kubeconfig), server, &["get", "--raw", path])));
        if profile.has(Role::Master) {
            return Self {
                nodes: ask("/api/v1/nodes"),
                pods: ask("/api/v1/namespaces/kube-system/pods"),
                leases: ask("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"),
                nobody,
            };
        }
        // A kubelet may see itself and its pods; since 1.32 only with these very selectors.
        let name = &profile.node.name;
        Self {
            nodes: ask(&format!("/api/v1/nodes?fieldSelector=metadata.name={name}")),
            pods: ask(&format!("/api/v1/namespaces/kube-system/pods?fieldSelector=spec.nodeName={name}")),
            leases: None,
            nobody,
        }
    }

    fn answer(&self, index: Option<usize>, answers: &mut Answers) -> Source<Value> {
        match (index, &self.nobody) {
            (Some(index), _) => answers.json(index),
            (None, Some(nobody)) => Source::Failed(nobody.clone()),
            (None, None) => Source::NotAsked,
        }
    }
}

/// haproxy's statistics, from its admin socket.
pub(super) fn haproxy(root: &Path, profile: &NodeProfile) -> Source<String> {
    if !units(profile).contains(&"haproxy") {
        return Source::NotAsked;
    }
    let path = below(root, "/run/haproxy/admin.sock");
    let ask = || -> std::io::Result<String> {
        let mut socket = UnixStream::connect(&path)?;
        socket.set_read_timeout(Some(SOCKET_TIMEOUT))?;
        socket.set_write_timeout(Some(SOCKET_TIMEOUT))?;
        socket.write_all(b"show stat\n")?;
        let mut text = String::new();
        socket.take(SOCKET_LIMIT).read_to_string(&mut text)?;
        Ok(text)
    };
    match ask() {
        Ok(text) => Source::Known(text),
        Err(error) => Source::Failed(format!("{}: {error}", path.display())),
    }
}

/// The filesystems below [`DIRECTORIES`], each once.
fn disks(root: &Path) -> Vec<Disk> {
    use std::os::unix::fs::MetadataExt;
    let mut disks: BTreeMap<u64, Disk> = BTreeMap::new();
    for directory in DIRECTORIES {
        let path = below(root, directory);
        let (Ok(meta), Ok(found)) = (std::fs::metadata(&path), rustix::fs::statvfs(&path)) else { continue };
        let disk = disks.entry(meta.dev()).or_insert_with(|| Disk {
            paths: Vec::new(),
            bytes: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
            inodes: found.f_files,
            free_inodes: found.f_favail,
        });
        disk.paths.push(directory);
    }
    disks.into_values().collect()
}

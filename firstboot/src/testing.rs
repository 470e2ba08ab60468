// SPDX-License-Identifier: MIT OR Apache-2.0
//! A node in a temporary directory: a runner that only pretends, a clock that only tests move.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use profiles::node::NodeProfile;
use profiles::render::{KUBEADM_JOIN_CONFIG, KubeadmArgs};
use profiles::signing::{KeyId, PublicKey};

use crate::arp::{Interface, Mac};
use crate::bundle::Origin;
use crate::console::Console;
use crate::context::Cx;
use crate::host::Host;
use crate::journal::Journal;
use crate::node::{Kind, NodePlan, PlannedFile};
use crate::payload::Payload;
use crate::peer_port::{Greeter, PeerPort};
use crate::runner::{Background, Command, Feed, Output, Runner};
use crate::status::StatusFile;

type Answer = Box<dyn FnMut(&str, &[u8]) -> Output>;
type Start = Box<dyn FnMut(&str) -> Box<dyn Background>>;
/// Takes a nap of this length, or none before a record is written; gives back the uptime.
type Clock = Box<dyn Fn(Option<Duration>) -> Duration>;

/// Answers by the longest matching prefix of the command line; everything else succeeds silently.
#[derive(Default)]
pub struct FakeRunner {
    answers: RefCell<Vec<(String, Answer)>>,
    trace: RefCell<Vec<String>>,
    pub fed: RefCell<Vec<u8>>,
    /// What runs in the background; without it, programs that never end.
    pub start: RefCell<Option<Start>>,
}

struct Endless;

impl Background for Endless {
    fn runs(&mut self) -> bool {
        true
    }
}

impl FakeRunner {
    pub fn answer(&self, prefix: &str, status: i32, stdout: &str, stderr: &str) {
        let output =
            Output { status, stdout: stdout.to_owned(), stderr_tail: stderr.to_owned(), elapsed: Duration::ZERO };
        self.on(prefix, move |_| output.clone());
    }

    pub fn on(&self, prefix: &str, mut answer: impl FnMut(&str) -> Output + 'static) {
        self.on_fed(prefix, move |line, _| answer(line));
    }

    /// The same, with what it gets on stdin.
    pub fn on_fed(&self, prefix: &str, answer: impl FnMut(&str, &[u8]) -> Output + 'static) {
        self.answers.borrow_mut().insert(0, (prefix.to_owned(), Box::new(answer)));
    }

    /// Command lines that ran, and forgets them.
    pub fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.trace.borrow_mut())
    }
}

impl Runner for FakeRunner {
    fn run(&self, command: &Command, feed: Option<Feed<'_>>, on_line: &mut dyn FnMut(&str)) -> Result<Output> {
        let line = command.to_string();
        self.trace.borrow_mut().push(line.clone());
        let mut fed = Vec::new();
        if let Some(feed) = feed {
            feed(&mut fed)?;
            self.fed.borrow_mut().clone_from(&fed);
        }
        let mut answers = self.answers.borrow_mut();
        let best = answers
            .iter_mut()
            .filter(|(prefix, _)| line.starts_with(prefix.as_str()))
            .reduce(|best, next| if next.0.len() > best.0.len() { next } else { best });
        let output = best.map(|(_, answer)| answer(&line, &fed)).unwrap_or_default();
        output.stdout.lines().chain(output.stderr_tail.lines()).for_each(on_line);
        Ok(output)
    }

    fn run_all(&self, commands: &[Command], _: usize, each: &mut dyn FnMut(usize, Result<Output>)) {
        commands.iter().enumerate().for_each(|(at, command)| each(at, self.run(command, None, &mut |_| {})));
    }

    fn start(&self, command: &Command) -> Result<Box<dyn Background>> {
        let line = command.to_string();
        self.trace.borrow_mut().push(line.clone());
        Ok(self
            .start
            .borrow_mut()
            .as_mut()
            .map_or_else(|| Box::new(Endless) as Box<dyn Background>, |start| start(&line)))
    }
}

pub struct FakeHost {
    uptime: Cell<Duration>,
    slept: Cell<Duration>,
    pub unix_time: Cell<u64>,
    pub addresses: RefCell<Vec<IpAddr>>,
    pub busy_ports: RefCell<Vec<u16>>,
    pub hostname: RefCell<String>,
    /// VRRP packets that arrive: from where, and what.
    pub adverts: RefCell<Vec<(IpAddr, Vec<u8>)>>,
    /// A clock that several nodes share.
    pub clock: RefCell<Option<Clock>>,
    /// What other members' peer ports answer; everything else is absent.
    pub peer_ports: RefCell<BTreeMap<SocketAddr, PeerPort>>,
    /// Every line that this node greeted with.
    pub greeted: Rc<RefCell<Vec<String>>>,
    /// Machines that answer for addresses.
    pub address_owners: RefCell<BTreeMap<Ipv4Addr, Mac>>,
    pub free_space: Cell<u64>,
}

struct FakeGreeter(Rc<RefCell<Vec<String>>>);

impl Greeter for FakeGreeter {
    fn say(&self, line: String) {
        self.0.borrow_mut().push(line);
    }
}

impl Default for FakeHost {
    fn default() -> Self {
        Self {
            uptime: Cell::default(),
            slept: Cell::default(),
            unix_time: Cell::new(1_800_000_000),
            addresses: RefCell::new(vec!["10.0.2.15".parse().unwrap()]),
            busy_ports: RefCell::default(),
            hostname: RefCell::new("localhost".to_owned()),
            adverts: RefCell::default(),
            clock: RefCell::default(),
            peer_ports: RefCell::default(),
            greeted: Rc::default(),
            address_owners: RefCell::default(),
            free_space: Cell::new(20 << 30),
        }
    }
}

impl FakeHost {
    pub fn slept(&self) -> Duration {
        self.slept.get()
    }

    fn shared_clock(&self, nap: Option<Duration>) -> bool {
        let clock = self.clock.borrow();
        clock.as_ref().is_some_and(|clock| {
            self.uptime.set(clock(nap));
            true
        })
    }
}

impl Host for FakeHost {
    fn unix_time(&self) -> u64 {
        self.shared_clock(None);
        self.unix_time.get()
    }
    fn uptime(&self) -> Duration {
        self.uptime.get()
    }
    fn sleep(&self, time: Duration) {
        if !self.shared_clock(Some(time)) {
            self.uptime.set(self.uptime.get() + time);
        }
        self.slept.set(self.slept.get() + time);
    }
    fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.borrow().contains(&address)
    }
    fn port_is_free(&self, port: u16) -> bool {
        !self.busy_ports.borrow().contains(&port)
    }
    fn hostname(&self) -> String {
        self.hostname.borrow().clone()
    }
    fn set_hostname(&self, name: &str) -> Result<()> {
        name.clone_into(&mut self.hostname.borrow_mut());
        Ok(())
    }
    fn sync(&self, _: &Path) -> Result<()> {
        Ok(())
    }
    fn hear_vrrp(&self, _: IpAddr, _: Option<&str>, time: Duration) -> Result<Vec<(IpAddr, Vec<u8>)>> {
        self.sleep(time);
        Ok(self.adverts.borrow().clone())
    }
    fn peer_port(&self, at: SocketAddr, _: &str) -> PeerPort {
        self.peer_ports.borrow().get(&at).cloned().unwrap_or(PeerPort::Absent)
    }
    fn greet(&self, _: SocketAddr, line: String) -> Result<Box<dyn Greeter>> {
        self.greeted.borrow_mut().push(line);
        Ok(Box::new(FakeGreeter(self.greeted.clone())))
    }
    fn address_owner(&self, _: &Interface, address: Ipv4Addr) -> Result<Option<Mac>> {
        Ok(self.address_owners.borrow().get(&address).copied())
    }
    fn free_space(&self, _: &Path) -> Result<u64> {
        Ok(self.free_space.get())
    }
}

/// A key, and its signature over `content` as minisign makes it.
pub fn signed(content: &[u8]) -> (PublicKey, String) {
    use base64ct::{Base64, Encoding};
    use blake2::{Blake2b512, Digest};
    use ed25519_dalek::{Signer, SigningKey};
    let (key, id) = (SigningKey::from_bytes(&[5; 32]), *b"firstbut");
    let comment = "cluster:lab";
    let signature = key.sign(&Blake2b512::digest(content)).to_bytes();
    let global = key.sign(&[&signature[..], comment.as_bytes()].concat()).to_bytes();
    let first = Base64::encode_string(&[&b"ED"[..], &id, &signature].concat());
    let global = Base64::encode_string(&global);
    let text = format!("untrusted comment: x\n{first}\ntrusted comment: {comment}\n{global}\n");
    (PublicKey::new(KeyId::from_bytes(id), key.verifying_key().to_bytes()), text)
}

#[derive(Clone, Default)]
pub struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shared {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.borrow().clone()).unwrap()
    }
}

/// One node.
pub struct Lab {
    root: PathBuf,
    dir: Option<tempfile::TempDir>,
    pub plan: NodePlan,
    pub runner: FakeRunner,
    pub host: FakeHost,
    console: Console,
    seen: Shared,
    log: Shared,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut lab = Self::at(dir.path());
        lab.dir = Some(dir);
        lab
    }

    /// A node whose disk somebody else keeps.
    pub fn at(root: &Path) -> Self {
        let (seen, log) = (Shared::default(), Shared::default());
        let console = Console::new(vec![Box::new(seen.clone())], Box::new(log.clone()));
        console.set_who("master-1");
        let plan = NodePlan {
            profile: profile(),
            files: Vec::new(),
            kubeadm: KubeadmArgs { init: vec!["--skip-phases=bootstrap-token".to_owned()], ..KubeadmArgs::default() },
            payload: Payload::default(),
            origin: Origin::Image,
            digest: "plan".to_owned(),
        };
        let root = root.to_owned();
        Self { root, dir: None, plan, runner: FakeRunner::default(), host: FakeHost::default(), console, seen, log }
    }

    /// The same disk, everything else new.
    pub fn reboot(self) -> Self {
        let _ = std::fs::remove_dir_all(self.root().join("run"));
        let mut lab = Self::at(&self.root);
        lab.dir = self.dir;
        lab
    }

    pub fn root(&self) -> PathBuf {
        self.root.clone()
    }

    pub fn write(&self, path: &str, content: &str) {
        let path = crate::context::below(&self.root, path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn exists(&self, path: &str) -> bool {
        crate::context::below(&self.root, path).exists()
    }

    pub fn cx(&self) -> Cx<'_> {
        Cx {
            root: self.root(),
            plan: &self.plan,
            runner: &self.runner,
            host: &self.host,
            console: &self.console,
            journal: RefCell::new(Journal::open(&self.root().join("var/lib/imgbuild/journal.jsonl")).unwrap()),
            status: RefCell::new(StatusFile::new(&self.root().join("run/imgbuild/status.json"))),
            step: RefCell::new("test"),
            interrupted: RefCell::new(BTreeSet::new()),
        }
    }

    pub fn console_lines(&self) -> Vec<String> {
        self.seen.text().lines().map(|line| line.trim_end().to_owned()).collect()
    }

    pub fn log(&self) -> String {
        self.log.text()
    }
}

/// A file of root's that a plan has.
pub fn planned(path: &str, mode: u32, text: &str) -> PlannedFile {
    PlannedFile { path: path.to_owned(), mode, owner: "root".to_owned(), kind: Kind::File(text.into()) }
}

/// What kubeadm joins with.
pub fn join_config() -> PlannedFile {
    planned(KUBEADM_JOIN_CONFIG, 0o600, "nodeRegistration:\n  criSocket: unix:///run/x.sock\n")
}

/// What the payload of a node that runs pods says.
pub fn payload() -> Payload {
    Payload { kubernetes: Some("v1.20.2".to_owned()), ..Payload::default() }
}

/// The lab's profile: one node with all roles.
pub fn profile() -> NodeProfile {
    serde_json::from_str(PROFILE).unwrap()
}

pub const PROFILE: &str = r#"{
  "schema": 1,
  "cluster": {"name": "lab", "id": "0123456789abcdef0123456789abcdef"},
  "node": {"name": "master-1", "roles": ["etcd", "master", "worker"], "architecture": "amd64",
           "address": "10.0.2.15/24", "mac": null, "pod_subnet": "10.244.0.0/24"},
  "peers": [{"name": "master-1", "address": "10.0.2.15", "roles": ["etcd", "master", "worker"],
             "pod_subnet": "10.244.0.0/24"}],
  "network": {"gateway": "10.0.2.2", "dns_servers": [], "ntp_servers": [], "pod_subnets": ["10.244.0.0/16"],
              "service_subnets": ["10.96.0.0/16"], "dns_domain": "cluster.local", "plugin": "bridge", "mtu": null},
  "kubernetes": {"version": "1.20.2", "control_plane_endpoint": "10.0.2.15:6443", "apiserver_port": 6443,
                 "cert_sans": [], "image_repository": "k8s.gcr.io", "pause_image": "k8s.gcr.io/pause:3.2",
                 "proxy_mode": "iptables", "dns": "none", "control_plane_timeout_seconds": 900},
  "etcd": {"heartbeat_ms": 100, "election_ms": 1000, "quota_bytes": 2147483648},
  "containerd": {"version": "1.6.20"},
  "load_balancer": {"kind": "none"}
}"#;

/// A join credential, without its key. Its certificate is valid from 2020 until 2120.
pub const DISCOVERY: &str = r#"
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://10.0.2.15:6443", certificate-authority-data: ""}}]
contexts: [{name: lab, context: {cluster: lab, user: node}}]
current-context: lab
users: [{name: node, user: {client-certificate-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUJGRENCdXdJVVlOSTNGUldvY3JSVUNPRkh5UUV3NnR1am9tb3dDZ1lJS29aSXpqMEVBd0l3RERFS01BZ0cKQTFVRUF3d0JlREFnRncweU1EQXhNREV3TURBd01EQmFHQTh5TVRJd01ERXdNVEF3TURBd01Gb3dEREVLTUFnRwpBMVVFQXd3QmVEQlpNQk1HQnlxR1NNNDlBZ0VHQ0NxR1NNNDlBd0VIQTBJQUJNSkMvaE9hMTRjaU1mN2g4V1ZsCkN2L0xrbUJIT1pHRTVLU3NMSmUrdER5cTh6ZHRZSXJZcTMyT05PMVdkK05qMFNSbklScmZOWDh0aklseCt1bUIKZnRZd0NnWUlLb1pJemowRUF3SURTQUF3UlFJZ1E1eDU3OWdHa0s3T2JHVmhxWHlTVUZjSzYvVC80WHNISUtGYQpuL3dsUm40Q0lRQ3IzaGlGSzNJZWhZZWRwR3l5QXJmQ1JhWGxqMTRSRGs0c05RbTJVaDdmN1E9PQotLS0tLUVORCBDRVJUSUZJQ0FURS0tLS0tCg==}}]
"#;

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A cluster that exists only in what programs print about it.

use std::cell::RefCell;
use std::collections::BTreeSet;

use profiles::node::{NodeProfile, Role};
use serde_json::{Value, json};

use crate::cert::Validity;
use crate::context::below;
use crate::health::certificates::Certificate;
use crate::health::collect::{Disk, Facts, collect, peers};
use crate::health::programs::{Programs, Ran};
use crate::health::{Report, Source};
use crate::runner::{Command, Output};
use crate::testing::FakeHost;

/// 2027-01-15 08:00:00 UTC.
pub const NOW: u64 = 1_800_000_000;
pub const DATE: &str = "Fri, 15 Jan 2027 08:00:00 GMT";
const DAY: u64 = 86_400;

pub struct World {
    pub profile: NodeProfile,
    pub nodes: Vec<Value>,
    pub pods: Vec<Value>,
    pub certificates: Vec<(&'static str, u64)>,
    /// Members of etcd, as `member list` has them.
    pub members: Value,
    /// What `endpoint status` says of each, by name.
    pub statuses: Vec<(String, Value)>,
    /// Answers that replace the usual ones: a part of the command line, exit status, stdout, stderr.
    pub instead: Vec<(&'static str, i32, String, String)>,
    pub haproxy: String,
    pub record: String,
    pub not_joined: bool,
    down: BTreeSet<String>,
    api_down: BTreeSet<String>,
    vip: Option<String>,
    asked: RefCell<Vec<String>>,
}

pub fn ago(seconds: u64) -> String {
    crate::health::time::rfc3339(NOW - seconds)
}

/// A node as an API server of 1.20 shows it, fields that nobody reads left out.
pub fn node(name: &str, address: &str, version: &str) -> Value {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": message,
               "lastHeartbeatTime": ago(60), "lastTransitionTime": ago(30 * DAY)})
    };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "creationTimestamp": ago(30 * DAY), "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "kubelet is posting ready status. AppArmor enabled"),
            ],
            "nodeInfo": {"kubeletVersion": version, "osImage": "Debian GNU/Linux 12 (bookworm)",
                         "containerRuntimeVersion": "containerd://1.6.20"},
        },
    })
}

/// A pod of kube-system that runs.
pub fn pod(name: &str, container: &str, node: &str, labels: &Value, age: u64) -> Value {
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": ago(age)});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "kube-system", "creationTimestamp": ago(age), "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": container}]},
        "status": {
            "phase": "Running",
            "conditions": [condition("Initialized"), condition("Ready"), condition("ContainersReady"), condition("PodScheduled")],
            "containerStatuses": [{"name": container, "ready": true, "started": true, "restartCount": 0,
                                   "state": {"running": {"startedAt": ago(age)}}, "lastState": {}}],
            "startTime": ago(age),
        },
    })
}

/// The pod restarted `count` times, last `last` seconds ago, and runs again.
pub fn restarted(mut pod: Value, count: u64, last: u64) -> Value {
    let status = &mut pod["status"]["containerStatuses"][0];
    status["restartCount"] = count.into();
    status["state"]["running"]["startedAt"] = ago(last).into();
    status["lastState"] = json!({"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": ago(last + 1)}});
    pod
}

/// The pod waits for its next start.
pub fn crashing(mut pod: Value, count: u64, last: u64) -> Value {
    pod["status"]["conditions"][1]["status"] = "False".into();
    let status = &mut pod["status"]["containerStatuses"][0];
    status["restartCount"] = count.into();
    status["ready"] = false.into();
    let name = pod_container(status);
    status["state"] = json!({"waiting": {"reason": "CrashLoopBackOff",
                                         "message": format!("back-off 5m0s restarting failed container={name}")}});
    status["lastState"] = json!({"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": ago(last)}});
    pod
}

fn pod_container(status: &Value) -> String {
    status["name"].as_str().unwrap_or_default().to_owned()
}

fn control_plane(name: &str, age: u64) -> Vec<Value> {
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler"]
        .iter()
        .map(|part| {
            let labels = json!({"component": part, "tier": "control-plane"});
            // Two restarts when the cluster formed are nothing.
            restarted(pod(&format!("{part}-{name}"), part, name, &labels, age), 2, age - 60)
        })
        .collect()
}

impl World {
    /// Three masters behind a VIP, three etcd, one worker, seen from one of them.
    pub fn lab_ha(name: &str) -> Self {
        let all = [
            ("etcd-1", "10.0.2.11", "etcd"),
            ("etcd-2", "10.0.2.12", "etcd"),
            ("etcd-3", "10.0.2.13", "etcd"),
            ("master-1", "10.0.2.21", "master"),
            ("master-2", "10.0.2.22", "master"),
            ("master-3", "10.0.2.23", "master"),
            ("worker-1", "10.0.2.31", "worker"),
        ];
        let nodes = all.map(|(name, address, role)| (name, address, vec![role]));
        let mut world = Self::of("lab-ha", name, &nodes, "1.20.2");
        world.pods = Vec::new();
        for master in ["master-1", "master-2", "master-3"] {
            world.pods.extend(control_plane(master, 30 * DAY));
        }
        for (index, name) in ["master-1", "master-2", "master-3", "worker-1"].iter().enumerate() {
            let proxy = json!({"k8s-app": "kube-proxy"});
            world.pods.push(pod(&format!("kube-proxy-{index}abcd"), "kube-proxy", name, &proxy, 30 * DAY));
        }
        world
    }

    /// Three hyper-converged nodes after 517 days, one of whose API servers never came back.
    pub fn course() -> Self {
        let names = ["xos-00002-294e", "xos-00003-3760", "xos-hnbk692u"];
        let addresses = ["10.107.58.51", "10.107.58.52", "10.107.58.50"];
        let roles = vec!["etcd", "master", "worker"];
        let nodes: Vec<_> =
            names.iter().zip(addresses).map(|(name, address)| (*name, address, roles.clone())).collect();
        let mut world = Self::of("course", "xos-00002-294e", &nodes, "1.25.16");
        for node in &mut world.nodes {
            node["status"]["nodeInfo"]["kubeletVersion"] = "v1.25.16-12+92530656e308a8".into();
        }
        let part = |part: &str, node: &str, count: u64, age: u64, last: u64| {
            let labels = json!({"component": part});
            restarted(pod(&format!("{part}-{node}"), part, node, &labels, age * DAY), count, last)
        };
        let proxy = |suffix: &str, node: &str, count: u64| {
            let labels = json!({"k8s-app": "kube-proxy"});
            restarted(pod(&format!("kube-proxy-{suffix}"), "kube-proxy", node, &labels, 286 * DAY), count, 40 * DAY)
        };
        let broken = part("kube-apiserver", names[2], 0, 71, 118);
        world.pods = vec![
            part("kube-apiserver", names[0], 31, 307, 56 * DAY),
            part("kube-apiserver", names[1], 43, 307, 56 * DAY),
            crashing(broken, 65301, 118),
            part("kube-controller-manager", names[0], 1202, 517, 5 * 3600),
            part("kube-controller-manager", names[1], 1229, 517, 600),
            part("kube-controller-manager", names[2], 353, 517, 60 * DAY),
            proxy("6nkbl", names[0], 5),
            proxy("j872x", names[1], 8),
            proxy("qwrxf", names[2], 6),
            part("kube-scheduler", names[0], 1211, 517, 9 * 3600),
            part("kube-scheduler", names[1], 1218, 517, 2 * DAY),
            part("kube-scheduler", names[2], 349, 517, 60 * DAY),
        ];
        world.api_down(names[2]);
        world.haproxy = world.haproxy.replace(",xos-hnbk692u,UP,L7OK", ",xos-hnbk692u,DOWN,L4CON");
        world
    }

    fn of(cluster: &str, name: &str, nodes: &[(&str, &str, Vec<&str>)], version: &str) -> Self {
        let mut profile: Value = serde_json::from_str(crate::testing::PROFILE).unwrap();
        let own = nodes.iter().find(|node| node.0 == name).unwrap();
        profile["cluster"]["name"] = cluster.into();
        profile["kubernetes"]["version"] = version.into();
        profile["kubernetes"]["control_plane_endpoint"] = "10.0.2.100:8443".into();
        profile["load_balancer"] =
            json!({"kind": "keepalived", "vip": "10.0.2.100", "port": 8443, "vrid": 77, "check_interval_seconds": 2});
        profile["node"]["name"] = name.into();
        profile["node"]["address"] = format!("{}/24", own.1).into();
        profile["node"]["roles"] = json!(own.2);
        profile["peers"] = nodes
            .iter()
            .map(|(name, address, roles)| json!({"name": name, "address": address, "roles": roles, "pod_subnet": null}))
            .collect();
        let profile: NodeProfile = serde_json::from_value(profile).unwrap();
        let etcd: Vec<_> = peers(&profile, &[Role::Etcd]).cloned().collect();
        let members = etcd.iter().enumerate().map(|(index, peer)| {
            json!({"ID": 15_985_099_378_392_235_000_u64 + index as u64, "name": peer.name,
                   "peerURLs": [format!("https://{}:2380", peer.address)],
                   "clientURLs": [format!("https://{}:2379", peer.address)]})
        });
        let statuses = etcd.iter().enumerate().map(|(index, peer)| {
            let status = json!({
                "header": {"cluster_id": 8_323_808_018_354_915_591_u64,
                           "member_id": 15_985_099_378_392_235_000_u64 + index as u64,
                           "revision": 81_234, "raft_term": 2},
                "version": "3.4.23", "dbSize": 20_480_000, "leader": 15_985_099_378_392_235_001_u64,
                "raftIndex": 90_123 - index, "raftTerm": 2, "raftAppliedIndex": 90_123 - index, "dbSizeInUse": 16_384_000});
            (peer.name.clone(), status)
        });
        let (members, statuses) = (members.collect(), statuses.collect());
        let kube: Vec<_> = peers(&profile, &[Role::Master, Role::Worker]).cloned().collect();
        let masters: Vec<_> = peers(&profile, &[Role::Master]).cloned().collect();
        let servers: String = masters.iter().map(|peer| format!("masters,{},UP,L7OK\n", peer.name)).collect();
        Self {
            nodes: kube
                .iter()
                .map(|peer| node(&peer.name, &peer.address.to_string(), &format!("v{version}")))
                .collect(),
            pods: Vec::new(),
            certificates: vec![
                ("/etc/kubernetes/pki/ca.crt", NOW + 3000 * DAY),
                ("/etc/kubernetes/pki/apiserver.crt", NOW + 300 * DAY),
            ],
            members: json!({"header": {"cluster_id": 8_323_808_018_354_915_591_u64}, "members": Value::Array(members)}),
            statuses,
            instead: Vec::new(),
            haproxy: format!(
                "# pxname,svname,status,check_status\napiserver,FRONTEND,OPEN,\n{servers}masters,BACKEND,UP,\n\n"
            ),
            record: format!(
                "/imgbuild/{0}/cluster\n{1}\n/imgbuild/{0}/initialised\n{1}\n",
                profile.cluster.id, masters[0].name
            ),
            not_joined: false,
            down: BTreeSet::new(),
            api_down: BTreeSet::new(),
            vip: masters.first().map(|peer| peer.name.clone()),
            asked: RefCell::default(),
            profile,
        }
    }

    /// The machine is off.
    pub fn down(&mut self, name: &str) {
        self.down.insert(name.to_owned());
        for node in self.nodes.iter_mut().filter(|node| node["metadata"]["name"] == name) {
            node["status"]["conditions"][3] = json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.", "lastTransitionTime": ago(720)});
        }
        for pod in self.pods.iter_mut().filter(|pod| pod["spec"]["nodeName"] == name) {
            pod["status"]["conditions"][1]["status"] = "False".into();
        }
        self.haproxy = self.haproxy.replace(&format!(",{name},UP,L7OK"), &format!(",{name},DOWN,L4TOUT"));
    }

    /// Its API server is down, the machine is not.
    pub fn api_down(&mut self, name: &str) {
        self.api_down.insert(name.to_owned());
    }

    pub fn vip_at(&mut self, name: &str) {
        self.vip = Some(name.to_owned());
    }

    pub fn nobody_has_the_vip(&mut self) {
        self.vip = None;
    }

    pub fn node_mut(&mut self, name: &str) -> &mut Value {
        self.nodes.iter_mut().find(|node| node["metadata"]["name"] == name).unwrap()
    }

    pub fn pod_mut(&mut self, name: &str) -> &mut Value {
        self.pods.iter_mut().find(|pod| pod["metadata"]["name"] == name).unwrap()
    }

    /// Command lines of the last report.
    pub fn asked(&self) -> Vec<String> {
        self.asked.borrow().clone()
    }

    pub fn facts(&self) -> Facts {
        self.asked.borrow_mut().clear();
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = below(root.path(), path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("/proc/meminfo", "MemTotal:        8000000 kB\nMemFree:  100 kB\nMemAvailable:    5000000 kB\n");
        write("/proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
        if !self.not_joined {
            write("/etc/kubernetes/admin.conf", "");
            write("/etc/kubernetes/kubelet.conf", "");
        }
        let status = format!(r#"{{"schema":1,"node":"{}","phase":"converged","seconds":9}}"#, self.profile.node.name);
        write("/run/imgbuild/status.json", &status);
        let host = FakeHost::default();
        let mut facts = collect(root.path(), &self.profile, &host, self);
        facts.disks = vec![Disk {
            paths: vec!["/var/lib/containerd", "/var/lib/kubelet"],
            bytes: 100 << 30,
            free: 61 << 30,
            inodes: 1000,
            free_inodes: 900,
        }];
        facts.certificates = self
            .certificates
            .iter()
            .map(|(path, until)| Certificate {
                path: (*path).to_owned(),
                validity: Ok(Validity { from: NOW - 400 * DAY, until: *until }),
            })
            .collect();
        // A real socket has its own test.
        if !matches!(facts.haproxy, Source::NotAsked) {
            facts.haproxy = Source::Known(self.haproxy.clone());
        }
        facts
    }

    pub fn report(&self) -> Report {
        Report::of(&self.profile, &self.facts())
    }

    fn is_down(&self, name: &str) -> bool {
        self.down.contains(name)
    }

    fn answer(&self, line: &str) -> (i32, String, String) {
        if let Some((_, status, stdout, stderr)) = self.instead.iter().find(|(part, ..)| line.contains(part)) {
            return (*status, stdout.clone(), stderr.clone());
        }
        let good = |value: &Value| (0, value.to_string(), String::new());
        match line.split(' ').next() {
            Some("kubectl") => self.kubectl(line),
            Some("etcdctl") => self.etcdctl(line),
            Some("systemctl") => {
                let units = line.rsplit_once("NRestarts ").map(|(_, units)| units).unwrap_or_default();
                let block = |unit: &str| {
                    format!("Id={unit}.service\nActiveState=active\nSubState=running\nResult=success\nNRestarts=0\n")
                };
                (0, units.split(' ').map(block).collect::<Vec<_>>().join("\n"), String::new())
            }
            Some("ip") if line.contains("address") => {
                let own = self.profile.node.address.addr().to_string();
                let mut infos = vec![json!({"family": "inet", "local": own, "prefixlen": 24})];
                if self.vip.as_ref() == Some(&self.profile.node.name) {
                    infos.push(json!({"family": "inet", "local": "10.0.2.100", "prefixlen": 24}));
                }
                good(&json!([{"ifname": "lo", "addr_info": [{"local": "127.0.0.1"}]},
                             {"ifname": "eth0", "address": "52:54:00:00:00:01", "addr_info": infos}]))
            }
            Some("ip") => good(&self.neighbours()),
            _ => panic!("nobody answers `{line}`"),
        }
    }

    fn neighbours(&self) -> Value {
        let link = |address: &str| format!("52:54:00:00:02:{}", address.rsplit('.').next().unwrap());
        let mut all: Vec<Value> = self
            .profile
            .peers
            .iter()
            .filter(|peer| peer.name != self.profile.node.name)
            .map(|peer| match self.is_down(&peer.name) {
                true => json!({"dst": peer.address, "dev": "eth0", "state": ["FAILED"]}),
                false => json!({"dst": peer.address, "dev": "eth0", "lladdr": link(&peer.address.to_string()),
                                "state": ["REACHABLE"]}),
            })
            .collect();
        let holder = self.profile.peers.iter().find(|peer| self.vip.as_ref() == Some(&peer.name));
        if let Some(holder) = holder.filter(|peer| !self.is_down(&peer.name)) {
            let lladdr = link(&holder.address.to_string());
            all.push(json!({"dst": "10.0.2.100", "dev": "eth0", "lladdr": lladdr, "state": ["STALE"]}));
        } else {
            all.push(json!({"dst": "10.0.2.100", "dev": "eth0", "state": ["FAILED"]}));
        }
        Value::Array(all)
    }

    fn serves(&self, server: &str) -> bool {
        let up = |name: &str| !self.is_down(name) && !self.api_down.contains(name);
        if server.contains("10.0.2.100:8443") {
            return peers(&self.profile, &[Role::Master]).any(|peer| up(&peer.name))
                && self.vip.as_ref().is_some_and(|name| !self.is_down(name));
        }
        self.profile.peers.iter().any(|peer| server.contains(&format!("{}:6443", peer.address)) && up(&peer.name))
    }

    fn kubectl(&self, line: &str) -> (i32, String, String) {
        let server = line.split(' ').find_map(|arg| arg.strip_prefix("--server=")).unwrap();
        if !self.serves(server) {
            let host = server.trim_start_matches("https://");
            let text =
                format!("The connection to the server {host} was refused - did you specify the right host or port?");
            return (1, String::new(), text);
        }
        if line.contains("--raw /readyz") {
            let text = format!(
                "I0115 08:00:00.879966    4101 round_trippers.go:577] Response Headers:\n\
                 I0115 08:00:00.879977    4101 round_trippers.go:580]     Date: {DATE}\n\
                 I0115 08:00:00.879979    4101 round_trippers.go:580]     Content-Type: text/plain"
            );
            return (0, "ok".to_owned(), text);
        }
        let selected = |object: &&Value| match line.split_once("?fieldSelector=") {
            Some((_, rest)) => {
                let (field, value) = rest.split_once('=').unwrap();
                object.pointer(&format!("/{}", field.replace('.', "/"))).and_then(Value::as_str) == Some(value)
            }
            None => true,
        };
        let items: Vec<Value> = match line {
            _ if line.contains("/nodes") => self.nodes.iter().filter(selected).cloned().collect(),
            _ if line.contains("/pods") => self.pods.iter().filter(selected).cloned().collect(),
            _ if line.contains("/leases") => self
                .nodes
                .iter()
                .map(|node| {
                    let name = node["metadata"]["name"].as_str().unwrap();
                    let seconds = if self.is_down(name) { 760 } else { 4 };
                    json!({"metadata": {"name": name, "namespace": "kube-node-lease"},
                           "spec": {"holderIdentity": name, "leaseDurationSeconds": 40,
                                    "renewTime": ago(seconds).replace('Z', ".123456Z")}})
                })
                .collect(),
            _ => panic!("nobody answers `{line}`"),
        };
        (0, json!({"apiVersion": "v1", "kind": "NodeList", "items": items}).to_string(), String::new())
    }

    fn etcdctl(&self, line: &str) -> (i32, String, String) {
        let etcd: Vec<_> = peers(&self.profile, &[Role::Etcd]).collect();
        let running = etcd.iter().filter(|peer| !self.is_down(&peer.name)).count();
        let quorum = running > etcd.len() / 2;
        let timeout = "Error: context deadline exceeded".to_owned();
        let refused = |address: &std::net::IpAddr| {
            format!(
                "{{\"level\":\"warn\",\"error\":\"rpc error: code = DeadlineExceeded desc = latest balancer error: connection \
                 error: desc = \\\"transport: Error while dialing dial tcp {address}:2379: connect: connection refused\\\"\"}}\n\
                 Failed to get the status of endpoint https://{address}:2379 (context deadline exceeded)"
            )
        };
        if line.contains("endpoint status") {
            let asked = etcd.iter().find(|peer| line.contains(&format!("=https://{}:2379 ", peer.address))).unwrap();
            if self.is_down(&asked.name) {
                return (1, "[]".to_owned(), refused(&asked.address));
            }
            let mut status = self.statuses.iter().find(|(name, _)| *name == asked.name).unwrap().1.clone();
            if !quorum {
                status.as_object_mut().unwrap().remove("leader");
                status["errors"] = json!(["etcdserver: no leader"]);
            }
            let endpoint = format!("https://{}:2379", asked.address);
            return (0, json!([{"Endpoint": endpoint, "Status": status}]).to_string(), String::new());
        }
        if line.contains("endpoint health") {
            let health: Vec<Value> = etcd
                .iter()
                .map(|peer| {
                    let endpoint = format!("https://{}:2379", peer.address);
                    match quorum && !self.is_down(&peer.name) {
                        true => json!({"endpoint": endpoint, "health": true, "took": "3.378856ms"}),
                        false => json!({"endpoint": endpoint, "health": false, "took": "5.000309023s",
                                        "error": "context deadline exceeded"}),
                    }
                })
                .collect();
            let all = health.iter().all(|one| one["health"] == true);
            return (i32::from(!all), Value::Array(health).to_string(), String::new());
        }
        match line {
            _ if running == 0 => (1, String::new(), timeout),
            _ if line.contains("member list") => (0, self.members.to_string(), String::new()),
            _ if !quorum => (1, String::new(), timeout),
            _ => (0, self.record.clone(), String::new()),
        }
    }
}

impl Programs for World {
    fn run_all(&self, commands: &[Command]) -> Vec<Result<Ran, String>> {
        commands
            .iter()
            .map(|command| {
                assert!(command.timeout.as_secs() <= 30, "{command} may take too long");
                let line = command.to_string();
                let (status, stdout, stderr) = self.answer(&line);
                self.asked.borrow_mut().push(line);
                let lines = stdout.lines().chain(stderr.lines()).map(str::to_owned).collect();
                let output = Output { status, stdout, stderr_tail: stderr, ..Output::default() };
                Ok(Ran { output, lines, from: NOW, until: NOW })
            })
            .collect()
    }
}

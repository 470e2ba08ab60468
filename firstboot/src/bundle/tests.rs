// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host in a directory, a bundle beside it, and a power that goes at every change.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use profiles::signing::PublicKey;

use super::*;
use crate::digest::sha256;
use crate::failure::{Exit, Failure};
use crate::journal::{Event, Journal, Record as Line};
use crate::runner::Output;
use crate::seed::Sources;
use crate::testing::{FakeHost, FakeRunner, PROFILE};

/// Where the old files of a host were last modified.
const OLD: Duration = Duration::from_secs(1_500_000_000);
const HOSTS_BEFORE: &str = "127.0.0.1 localhost\n10.0.2.9 printer\n";

/// Nobody offers a seed.
struct NoMedia;

impl Sources for NoMedia {
    fn media(&self) -> Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
    fn with_mounted(&self, device: &Path, _: bool, _: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
        panic!("{} is mounted", device.display())
    }
}

/// What others see of a file: all that uninstalling must give back.
type Tree = BTreeMap<String, (u32, String, Option<i64>)>;

struct Lab {
    dir: tempfile::TempDir,
    runner: FakeRunner,
    host: FakeHost,
}

impl Lab {
    /// A fresh Debian, and the bundle of the lab.
    fn new() -> Self {
        // Hundreds of writes that must be durable: in memory, where there is such a place.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let lab = Self { dir, runner: FakeRunner::default(), host: FakeHost::default() };
        fs::create_dir(lab.root()).unwrap();
        for folder in
            ["run/systemd/system", "etc/systemd/system/multi-user.target.wants", "opt", "usr/bin", "var/lib/rpm"]
        {
            fs::create_dir_all(lab.root().join(folder)).unwrap();
        }
        fs::remove_dir(lab.root().join("var/lib/rpm")).unwrap();
        for command in [
            "conntrack",
            "dpkg-query",
            "ip",
            "iptables",
            "iptables-save",
            "modprobe",
            "mount",
            "nft",
            "nsenter",
            "systemd-tmpfiles",
            "umount",
            "useradd",
            "userdel",
        ] {
            lab.write(&format!("/usr/bin/{command}"), "");
        }
        lab.write("/etc/hosts", HOSTS_BEFORE);
        lab.write("/etc/hostname", "somebody\n");
        lab.write("/etc/resolv.conf", "nameserver 10.0.2.3\n");
        lab.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
        lab.write("/root/.ssh/authorized_keys", "ssh-ed25519 AAAA the owner\n");
        lab.write("/etc/modules-load.d/imgbuild.conf", "of somebody else\n");
        fs::set_permissions(lab.root().join("etc/modules-load.d/imgbuild.conf"), fs::Permissions::from_mode(0o640))
            .unwrap();
        symlink(
            "/lib/systemd/system/haproxy.service",
            lab.root().join("etc/systemd/system/multi-user.target.wants/haproxy.service"),
        )
        .unwrap();
        lab.write("/proc/meminfo", "MemTotal: 4000000 kB\n");
        lab.write("/proc/cpuinfo", "processor : 0\n\nprocessor : 1\n");
        lab.write("/proc/swaps", "Filename Type Size Used Priority\n");
        lab.write(
            "/proc/net/route",
            "Iface Destination Gateway Flags RefCnt Use Metric Mask\neth0 00000000 0202000A 0003 0 0 0 00000000\n",
        );
        lab.write("/proc/self/mounts", "/dev/vda1 / ext4 rw 0 0\n");
        lab.write("/proc/sys/net/ipv4/ip_forward", "0\n");
        lab.write("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
        lab.write("/sys/class/net/eth0/address", "52:54:00:12:34:56\n");
        for module in ["overlay", "br_netfilter", "nf_conntrack"] {
            lab.write(&format!("/sys/module/{module}/refcnt"), "0\n");
        }
        for (path, _) in tree(&lab.root()) {
            let path = lab.root().join(path);
            if path.is_file() && !path.is_symlink() {
                fs::File::options().write(true).open(path).unwrap().set_modified(UNIX_EPOCH + OLD).unwrap();
            }
        }
        lab.runner.answer("systemctl is-active", 3, "", "");
        lab.runner.answer("systemctl is-active --quiet haproxy.service", 0, "", "");
        lab.runner.answer("systemctl show --property=LoadState --value", 0, "loaded\n", "");
        lab.runner.answer(
            "dpkg-query -W",
            0,
            "installed base-files\ninstalled libpodman\nconfig-files docker.io\n",
            "",
        );
        let passwd = lab.root().join("etc/passwd");
        let of_user = passwd.clone();
        lab.runner.on("useradd", move |line| {
            assert!(line.ends_with(" --user-group etcd"), "{line}");
            let text = fs::read_to_string(&of_user).unwrap() + "etcd:x:999:999::/var/lib/etcd:/usr/sbin/nologin\n";
            fs::write(&of_user, text).unwrap();
            Output::default()
        });
        lab.runner.on("userdel etcd", move |_| {
            fs::write(&passwd, "root:x:0:0:root:/root:/bin/sh\n").unwrap();
            let file = fs::File::options().write(true).open(&passwd).unwrap();
            file.set_modified(UNIX_EPOCH + OLD).unwrap();
            Output::default()
        });
        lab.make_bundle();
        lab
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("imgbuild-lab")
    }

    fn write(&self, path: &str, text: &str) {
        let path = crate::context::below(&self.root(), path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(crate::context::below(&self.root(), path)).unwrap()
    }

    fn make_bundle(&self) {
        let user_data = format!(
            "#cloud-config\nimgbuild:\n  schema: 1\n  profile: {}\n  secrets: {{/etc/kubernetes/pki/ca.key: KEY}}\n",
            PROFILE.replace('\n', " ")
        );
        let index = r#"{"schema":1,"cluster":"lab","cluster_id":"0123456789abcdef0123456789abcdef","architecture":"amd64",
                        "nodes":[{"name":"master-1","payload":"pods"}]}"#;
        let payload = r#"{"schema":1,"architecture":"amd64","kubernetes":"v1.20.2","images":[]}"#;
        let files = [
            ("install", "#!/bin/sh\n"),
            ("amd64/bundle.json", index),
            ("amd64/pods/payload.json", payload),
            ("amd64/pods/bin/firstboot", "firstboot"),
            ("amd64/pods/bin/containerd", "containerd"),
            ("amd64/pods/bin/containerd-shim-runc-v2", "shim"),
            ("amd64/pods/bin/ctr", "ctr"),
            ("amd64/pods/bin/runc", "runc"),
            ("amd64/pods/bin/etcd", "etcd"),
            ("amd64/pods/bin/etcdctl", "etcdctl"),
            ("amd64/pods/host/etc/systemd/system/firstboot.service", "[Service]\n"),
            ("amd64/pods/host/etc/tmpfiles.d/imgbuild.conf", "d /etc/kubernetes\n"),
            ("amd64/pods/host/etc/NetworkManager/conf.d/90-imgbuild.conf", "[keyfile]\n"),
            ("amd64/pods/images/index.json", "{}"),
            ("amd64/seeds/master-1/meta-data", "instance-id: lab-1\nlocal-hostname: master-1\n"),
            ("amd64/seeds/master-1/user-data", &user_data),
        ];
        let mut sums = String::new();
        for (path, text) in files {
            let to = self.bundle().join(path);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(&to, text).unwrap();
            if path.contains("/bin/") {
                fs::set_permissions(&to, fs::Permissions::from_mode(0o700)).unwrap();
            }
            sums += &format!("{}  {path}\n", sha256(text));
        }
        fs::write(self.bundle().join("SHA256SUMS.amd64"), sums).unwrap();
    }

    /// Does something to the machine; how it ended, and what was said.
    fn on<T>(&self, fuse: Option<usize>, act: impl FnOnce(&Machine<'_>) -> T) -> (T, Vec<String>) {
        let said = crate::testing::Shared::default();
        let console = Console::new(Vec::new(), Box::new(said.clone()));
        let disk = Disk::new(&self.root());
        disk.fuse.set(fuse);
        let machine = Machine {
            disk,
            runner: &self.runner,
            host: &self.host,
            console: &console,
            seeds: &NoMedia,
            is_root: true,
            architecture: "x86_64".to_owned(),
            kernel: "6.1.0-1-amd64".to_owned(),
        };
        let result = act(&machine);
        (result, said.text().lines().map(str::to_owned).collect())
    }

    fn install_with(&self, fuse: Option<usize>, profile: Option<&str>) -> (Result<()>, Vec<String>) {
        let options =
            Install { bundle: self.bundle(), profile: profile.map(str::to_owned), check_only: false, key: None };
        self.on(fuse, |machine| install(machine, &options))
    }

    fn install(&self) {
        self.install_with(None, Some("master-1")).0.unwrap();
    }

    fn uninstall_with(&self, fuse: Option<usize>, yes: bool) -> (Result<()>, Vec<String>) {
        self.on(fuse, |machine| uninstall(machine, Uninstall { yes }))
    }

    fn tree(&self) -> Tree {
        let mut all = tree(&self.root());
        // The kernel's own; a lock in /run is no trace.
        all.retain(|path, _| !["proc", "sys", "run"].iter().any(|top| path.split('/').next() == Some(top)));
        all
    }

    /// What firstboot and the cluster make of an installed host.
    fn live(&self) {
        let (seed, payload) = {
            let dir = self.root().join("var/lib/imgbuild/seed");
            let raw = crate::seed::RawSeed::read(&dir).unwrap().unwrap();
            (raw.parse().unwrap(), crate::payload::read(&self.root().join("opt/imgbuild/payload.json")).unwrap())
        };
        let plan = crate::rendered::plan(&seed, payload, Origin::of(&self.root()).unwrap()).unwrap();
        let disk = Disk::new(&self.root());
        for file in &plan.files {
            match &file.kind {
                crate::node::Kind::File(content) => {
                    disk.write(&file.path, content, file.mode, crate::files::Owner::ROOT).unwrap()
                }
                crate::node::Kind::Link(target) => disk.link(&file.path, target).unwrap(),
            }
        }
        for path in [
            "/var/lib/etcd/member/wal/0.wal",
            "/var/lib/kubelet/pki/x.pem",
            "/var/lib/containerd/io/blob",
            "/etc/kubernetes/admin.conf",
            "/root/.kube/config",
            "/root/.kube/cache/http/x",
            "/opt/cni/bin/calico",
            "/var/log/pods/x/0.log",
            "/etc/systemd/system/multi-user.target.wants/etcd.service",
        ] {
            self.write(path, "made by the cluster");
        }
        let haproxy = self.root().join("etc/systemd/system/multi-user.target.wants/haproxy.service");
        fs::remove_file(&haproxy).unwrap();
        symlink("/usr/lib/systemd/system/haproxy.service", haproxy).unwrap();
        self.host.hostname.replace("master-1".to_owned());
        self.write("/proc/sys/net/ipv4/ip_forward", "1\n");
        let mut journal = Journal::open(&self.root().join("var/lib/imgbuild/journal.jsonl")).unwrap();
        let line =
            |event| Line { at: 1, event, step: "etcd".into(), fingerprint: String::new(), detail: String::new() };
        journal.append(line(Event::Begin)).unwrap();
        journal.append(line(Event::Done)).unwrap();
    }
}

/// Everything below a directory.
fn tree(root: &Path) -> Tree {
    fn add(root: &Path, dir: &Path, tree: &mut Tree) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let (text, time) = if meta.is_symlink() {
                (fs::read_link(&path).unwrap().display().to_string(), None)
            } else if meta.is_file() {
                (String::from_utf8(fs::read(&path).unwrap()).unwrap(), Some(meta.mtime()))
            } else {
                (String::new(), None)
            };
            tree.insert(name, (meta.mode(), text, time));
            if meta.is_dir() {
                add(root, &path, tree);
            }
        }
    }
    let mut all = Tree::new();
    add(root, root, &mut all);
    all
}

/// Without times: two installations are not made in one moment.
fn without_times(tree: Tree) -> BTreeMap<String, (u32, String)> {
    tree.into_iter().map(|(path, (mode, text, _))| (path, (mode, text))).collect()
}

/// The record has times of files of this test's making in it.
fn comparable(lab: &Lab) -> BTreeMap<String, (u32, String)> {
    let mut tree = without_times(lab.tree());
    assert!(tree.remove("var/lib/imgbuild/host-install.json").is_some());
    tree
}

fn refused(result: Result<()>) -> Failure {
    let failure = Failure::from_error(&result.unwrap_err(), Exit::Internal, "");
    assert_eq!(failure.exit, Exit::Preflight, "{}", failure.reason);
    failure
}

#[test]
fn installs_and_gives_back_every_byte() {
    let lab = Lab::new();
    let before = lab.tree();
    lab.runner.take_trace();
    lab.install();
    let trace = lab.runner.take_trace();
    for wanted in [
        "systemd-tmpfiles --create /etc/tmpfiles.d/imgbuild.conf",
        "systemctl enable --quiet firstboot.service",
        "systemctl start --no-block firstboot.service",
    ] {
        assert!(trace.iter().any(|line| line == wanted), "{wanted}: {trace:#?}");
    }
    assert_eq!(Origin::of(&lab.root()).unwrap(), Origin::Bundle);
    assert_eq!(lab.read("/opt/imgbuild/bin/etcd"), "etcd");
    assert_eq!(fs::metadata(lab.root().join("opt/imgbuild/bin/etcd")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::read_link(lab.root().join("usr/bin/etcd")).unwrap(), Path::new("/opt/imgbuild/bin/etcd"));
    let hosts = lab.read("/etc/hosts");
    assert_eq!(hosts, format!("{HOSTS_BEFORE}# imgbuild: nodes of the cluster\n10.0.2.15 master-1\n# imgbuild: end\n"));
    assert!(!lab.root().join("etc/NetworkManager").exists(), "this host has none");
    assert_eq!(fs::metadata(lab.root().join("var/lib/imgbuild/seed/user-data")).unwrap().mode() & 0o7777, 0o600);
    // What is the host's stays so.
    for path in ["/etc/resolv.conf", "/root/.ssh/authorized_keys", "/etc/hostname"] {
        assert_eq!(lab.tree()[&path[1..]], before[&path[1..]], "{path}");
    }
    // Again: nothing but the start.
    let installed = lab.tree();
    lab.install();
    assert_eq!(lab.tree(), installed);

    lab.live();
    let failure = refused(lab.uninstall_with(None, false).0);
    assert!(failure.reason.contains("master-1 is an etcd member"), "{}", failure.reason);
    assert_eq!(Origin::of(&lab.root()).unwrap(), Origin::Bundle, "nothing was begun");
    lab.runner.take_trace();
    lab.uninstall_with(None, true).0.unwrap();
    let trace = lab.runner.take_trace();
    let position =
        |wanted: &str| trace.iter().position(|line| line == wanted).unwrap_or_else(|| panic!("{wanted}: {trace:#?}"));
    assert!(position("systemctl stop firstboot.service") < position("systemctl stop kubelet.service"));
    assert!(position("systemctl stop kubelet.service") < position("systemctl stop etcd.service"));
    assert!(position("systemctl daemon-reload") < position("systemctl start haproxy.service"));
    assert_eq!(lab.tree(), before);
    assert_eq!(lab.host.hostname.borrow().as_str(), "localhost");
    assert_eq!(lab.read("/proc/sys/net/ipv4/ip_forward"), "0");
    // Once more is no mistake.
    lab.uninstall_with(None, false).0.unwrap();
    assert_eq!(lab.tree(), before);
}

#[test]
fn a_power_cut_at_any_change_of_the_installation() {
    let whole = Lab::new();
    whole.install();
    let expected = comparable(&whole);
    let mut cuts = 0;
    loop {
        let lab = Lab::new();
        let before = lab.tree();
        let (result, _) = lab.install_with(Some(cuts), Some("master-1"));
        let Err(error) = result else { break };
        assert!(format!("{error:#}").contains("the power went out"), "{error:#}");
        // On: the same end.
        lab.install();
        assert_eq!(comparable(&lab), expected, "cut after {cuts} changes");
        lab.uninstall_with(None, false).0.unwrap();
        assert_eq!(lab.tree(), before, "cut after {cuts} changes, installed, uninstalled");
        // Or back: as if nothing had been.
        let lab = Lab::new();
        let before = lab.tree();
        lab.install_with(Some(cuts), Some("master-1")).0.unwrap_err();
        lab.uninstall_with(None, false).0.unwrap();
        assert_eq!(lab.tree(), before, "cut after {cuts} changes, uninstalled");
        cuts += 1;
    }
    assert!(cuts > 20, "{cuts} changes");
}

#[test]
fn a_power_cut_at_any_change_of_the_removal() {
    let mut cuts = 0;
    loop {
        let lab = Lab::new();
        let before = lab.tree();
        lab.install();
        lab.live();
        let (result, _) = lab.uninstall_with(Some(cuts), true);
        let Err(error) = result else { break };
        assert!(format!("{error:#}").contains("the power went out"), "{error:#}");
        if cuts > 0 && lab.root().join("var/lib/imgbuild/host-install.json").exists() {
            assert!(Origin::of(&lab.root()).unwrap_err().to_string().contains("removal"), "firstboot does nothing");
            refused(lab.install_with(None, Some("master-1")).0);
        }
        // Whoever began it need not say yes again.
        lab.uninstall_with(None, cuts == 0).0.unwrap();
        assert_eq!(lab.tree(), before, "cut after {cuts} changes");
        cuts += 1;
    }
    assert!(cuts > 40, "{cuts} changes");
}

#[test]
fn everything_in_the_way_is_found_at_once_and_nothing_is_written() {
    let lab = Lab::new();
    lab.runner.answer("dpkg-query -W", 0, "installed docker-ce-cli\ninstalled podman\ninstalled base-files\n", "");
    lab.runner.answer("systemctl is-active --quiet firewalld", 0, "", "");
    lab.runner.answer("modprobe --dry-run --quiet br_netfilter", 1, "", "");
    let runc = format!("{}/amd64/pods/bin/runc", lab.bundle().display());
    lab.runner.answer(
        &runc,
        127,
        "",
        "error while loading shared libraries: libseccomp.so.2: cannot open shared object file",
    );
    lab.host.addresses.borrow_mut().clear();
    lab.host.busy_ports.borrow_mut().push(10250);
    fs::remove_dir_all(lab.root().join("sys/module/br_netfilter")).unwrap();
    fs::remove_file(lab.root().join("usr/bin/conntrack")).unwrap();
    fs::remove_file(lab.root().join("etc/resolv.conf")).unwrap();
    for (path, text) in [
        ("/sys/fs/selinux/enforce", "1"),
        ("/proc/swaps", "Filename Type\n/dev/vda3 partition\n"),
        ("/proc/net/route", "Iface\n"),
        ("/usr/local/bin/kubectl", ""),
        ("/etc/systemd/system/kubelet.service", ""),
        ("/var/lib/kubelet/config.yaml", ""),
        ("/etc/cni/net.d/10-flannel.conflist", ""),
        ("/var/lib/docker/x", ""),
        ("/sys/class/net/cni0/address", ""),
        ("/proc/meminfo", "MemTotal: 900000 kB\n"),
    ] {
        lab.write(path, text);
    }
    lab.host.free_space.set(5 << 20);
    let before = lab.tree();
    lab.runner.take_trace();
    let (result, said) = lab.install_with(None, Some("master-1"));
    let failure = refused(result);
    let ids = "hw.mem, port.cp, mod.kernel, sec.selinux, sec.firewall, swap, net.address, net.route, net.resolv, net.residue, \
               sw.conflict, sw.command, sw.program, sw.files, fs.residue, disk.space";
    assert_eq!(failure.reason, format!("this machine cannot become a node yet: {ids}"));
    let line = |id: &str| said.iter().find(|line| line.contains(&format!("error {id}:"))).unwrap();
    assert!(line("sw.conflict").ends_with("then: apt-get purge docker-ce-cli podman"), "{said:#?}");
    assert!(line("sw.command").contains("lacks conntrack; apt-get install conntrack"));
    assert!(
        line("sw.program").contains("runc of the bundle does not start here: error while loading")
            && line("sw.program").contains("libseccomp")
    );
    assert!(line("sw.files").contains("/usr/local/bin/kubectl, /etc/systemd/system/kubelet.service;"));
    assert!(line("fs.residue").contains("/etc/cni/net.d, /var/lib/kubelet, /var/lib/docker;"));
    assert!(line("net.residue").contains("cni0"));
    assert_eq!(lab.tree(), before);
    assert!(!lab.root().join("run/imgbuild").exists());
    let changes = ["systemctl start", "systemctl enable", "systemctl daemon-reload", "useradd", "systemd-tmpfiles"];
    let trace = lab.runner.take_trace();
    assert!(!trace.iter().any(|ran| changes.iter().any(|change| ran.starts_with(change))), "{trace:#?}");
}

#[test]
fn rpm_hosts_are_asked_in_their_own_way() {
    let lab = Lab::new();
    lab.write("/usr/bin/rpm", "");
    lab.write("/var/lib/rpm/rpmdb.sqlite", "");
    lab.runner.answer("rpm -qa", 0, "docker-engine\nkernel\nkubernetes-kubeadm\n", "");
    fs::remove_file(lab.root().join("usr/bin/conntrack")).unwrap();
    let (result, said) = lab.install_with(None, Some("master-1"));
    assert!(refused(result).reason.ends_with("sw.conflict, sw.command"));
    assert!(said.iter().any(|line| line.ends_with("dnf remove docker-engine kubernetes-kubeadm")), "{said:#?}");
    assert!(said.iter().any(|line| line.ends_with("dnf install conntrack-tools")), "{said:#?}");
}

#[test]
fn machines_that_nothing_can_run_on() {
    let lab = Lab::new();
    let options = Install { bundle: lab.bundle(), profile: None, check_only: false, key: None };
    let with = |change: &dyn Fn(&mut Machine<'_>)| {
        let (result, _) = lab.on(None, |machine| {
            let mut other = Machine {
                disk: Disk::new(&lab.root()),
                architecture: machine.architecture.clone(),
                kernel: machine.kernel.clone(),
                ..*machine
            };
            change(&mut other);
            install(&other, &options)
        });
        refused(result).reason
    };
    assert!(with(&|machine| machine.is_root = false).ends_with("os.root"));
    assert!(with(&|machine| machine.architecture = "riscv64".into()).ends_with("os.arch"));
    let old = |machine: &mut Machine<'_>| {
        machine.architecture = "loongarch64".into();
        machine.kernel = "4.19.90-52.22.v2207.ky10".into();
    };
    assert!(with(&old).ends_with("os.world"));
    fs::remove_dir_all(lab.root().join("run/systemd")).unwrap();
    assert!(with(&|machine| machine.is_root = false).ends_with("os.root, os.systemd"));
}

#[test]
fn a_damaged_bundle_is_told_by_file_and_nothing_is_touched() {
    let lab = Lab::new();
    let before = lab.tree();
    let damaged = |path: &str, damage: &dyn Fn(&Path)| {
        let path = lab.bundle().join(path);
        let (text, mode) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().permissions());
        damage(&path);
        let (result, _) = lab.install_with(None, Some("master-1"));
        let failure = Failure::from_error(&result.unwrap_err(), Exit::Internal, "");
        assert_eq!(failure.exit, Exit::Seed, "{}", failure.reason);
        fs::remove_file(&path).ok();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, mode).unwrap();
        failure.reason
    };
    let etcd = "amd64/pods/bin/etcd";
    assert!(
        damaged(etcd, &|path| fs::write(path, "forged").unwrap())
            .ends_with("damaged: amd64/pods/bin/etcd has other content")
    );
    assert!(damaged(etcd, &|path| fs::remove_file(path).unwrap()).ends_with("amd64/pods/bin/etcd is missing"));
    let through = |path: &Path| {
        fs::remove_file(path).unwrap();
        symlink("runc", path).unwrap();
    };
    assert!(damaged(etcd, &through).ends_with("amd64/pods/bin/etcd leads through a link"));
    for (text, why) in [
        ("", "it is empty"),
        ("0123  x\n", "line 1 is no checksum"),
        (&format!("{}  ../../etc/shadow\n", "0".repeat(64)), "line 1 is no checksum"),
    ] {
        let reason = damaged("SHA256SUMS.amd64", &|path| fs::write(path, text).unwrap());
        assert!(reason.contains(why), "{reason}");
    }
    assert_eq!(lab.tree(), before);
    lab.install();
}

#[test]
fn a_bundle_must_be_signed_where_somebody_asks_for_it() {
    let lab = Lab::new();
    let list = lab.bundle().join("SHA256SUMS.amd64");
    let signature = lab.bundle().join("SHA256SUMS.amd64.minisig");
    let check = |key: Option<PublicKey>| {
        let options = Install { bundle: lab.bundle(), profile: Some("master-1".into()), check_only: true, key };
        let (result, said) = lab.on(None, |machine| install(machine, &options));
        (result.map_err(|error| error.downcast::<Failure>().unwrap()), said.join("\n"))
    };
    let (key, text) = crate::testing::signed(&fs::read(&list).unwrap());
    let refused = |key: Option<PublicKey>, why: &str| {
        let failure = check(key).0.unwrap_err();
        assert_eq!(failure.exit, Exit::Seed);
        assert!(failure.reason.contains(" is not signed by ") && failure.reason.contains(why), "{}", failure.reason);
    };
    check(None).0.unwrap();
    refused(Some(key), "SHA256SUMS.amd64.minisig cannot be read");
    fs::write(&signature, &text).unwrap();
    let (result, said) = check(Some(key));
    result.unwrap();
    assert!(said.contains(&format!("the bundle is signed by {}", key.id())), "{said}");
    let other = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3".parse().unwrap();
    refused(Some(other), "signed by another key");

    // The bundle names the key itself.
    let index = lab.bundle().join("amd64/bundle.json");
    let before = sha256(fs::read(&index).unwrap());
    let named = fs::read_to_string(&index).unwrap().replacen('{', &format!("{{\"signing_key\":\"{key}\","), 1);
    fs::write(&index, &named).unwrap();
    let sums = fs::read_to_string(&list).unwrap().replace(&before, &sha256(&named));
    fs::write(&list, &sums).unwrap();
    refused(None, "does not fit");
    fs::write(&signature, crate::testing::signed(sums.as_bytes()).1).unwrap();
    assert!(check(None).1.contains("the bundle is signed by"));
    fs::write(&signature, "hello").unwrap();
    refused(None, "it is no signature of minisign");
}

#[test]
fn the_machine_knows_which_node_it_is() {
    let name = |lab: &Lab, profile: Option<&str>| {
        let (result, said) = lab.install_with(None, profile);
        (result.map_err(|error| error.to_string()), said.join("\n"))
    };
    let (result, said) = name(&Lab::new(), None);
    result.unwrap();
    assert!(said.contains("this is master-1, by its address"), "{said}");
    // A seed of cloud-init names it, whoever made it; it is not taken.
    let lab = Lab::new();
    lab.write("/var/lib/cloud/seed/nocloud/meta-data", "{\"instance-id\": \"i\", \"local-hostname\": \"master-1\"}");
    lab.write("/var/lib/cloud/seed/nocloud/user-data", "#cloud-config\n");
    let (result, said) = name(&lab, None);
    result.unwrap();
    assert!(said.contains("this is master-1, by the seed on "), "{said}");
    assert!(lab.read("/var/lib/imgbuild/seed/user-data").contains("imgbuild:"));

    let lab = Lab::new();
    assert!(name(&lab, Some("worker-9")).0.unwrap_err().contains("it has: master-1"));
    lab.host.addresses.borrow_mut().clear();
    assert!(name(&lab, None).0.unwrap_err().starts_with("which node is this machine?"));
}

#[test]
fn checking_changes_nothing() {
    let lab = Lab::new();
    let before = lab.tree();
    let options = Install { bundle: lab.bundle(), profile: Some("master-1".into()), check_only: true, key: None };
    let (result, said) = lab.on(Some(0), |machine| install(machine, &options));
    result.unwrap();
    assert_eq!(said, ["firstboot: master-1: check: nothing is in the way"]);
    assert_eq!(lab.tree(), before);
    assert!(!lab.root().join("run/imgbuild").exists());
}

#[test]
fn what_others_wrote_to_hosts_since_stays() {
    let lab = Lab::new();
    lab.install();
    let hosts = lab.read("/etc/hosts");
    lab.write("/etc/hosts", &(hosts + "10.0.2.10 scanner\n"));
    lab.uninstall_with(None, false).0.unwrap();
    assert_eq!(lab.read("/etc/hosts"), format!("{HOSTS_BEFORE}10.0.2.10 scanner\n"));
}

/// A volume below kubelet's folder may be somebody's data.
#[test]
fn what_is_mounted_is_unmounted_or_nothing_is_removed() {
    let lab = Lab::new();
    lab.install();
    lab.live();
    let mounts = "/dev/vda1 / ext4 rw 0 0\nserver:/home /var/lib/kubelet/pods/a\\040b nfs rw 0 0\n\
                  tmpfs /var/lib/kubelet/pods/a\\040b/c tmpfs rw 0 0\n/dev/vdb /srv ext4 rw 0 0\n";
    lab.write("/proc/self/mounts", mounts);
    lab.runner.take_trace();
    let error = lab.uninstall_with(None, true).0.unwrap_err();
    let failure = Failure::from_error(&error, Exit::Internal, "");
    assert_eq!((failure.exit, failure.reason.starts_with("still mounted: ")), (Exit::Step, true), "{}", failure.reason);
    let unmounted: Vec<_> = lab.runner.take_trace().into_iter().filter(|line| line.starts_with("umount")).collect();
    assert_eq!(unmounted, ["umount /var/lib/kubelet/pods/a b/c", "umount /var/lib/kubelet/pods/a b"]);
    assert_eq!(lab.read("/var/lib/etcd/member/wal/0.wal"), "made by the cluster");
}

#[test]
fn rules_and_interfaces_of_pods_go_and_others_stay() {
    let lab = Lab::new();
    lab.install();
    lab.write("/sys/class/net/cni0/address", "");
    lab.write("/sys/class/net/eth1/address", "");
    let saved = "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FORWARD - [0:0]\n:cali-INPUT - [0:0]\n-A INPUT -j KUBE-FORWARD\n\
                 -A INPUT -p tcp -j ACCEPT\n-A INPUT -m comment --comment \"cali:x\" -j cali-INPUT\nCOMMIT\n";
    lab.runner.answer("iptables-save", 0, saved, "");
    lab.runner.answer("ip6tables-save", 0, "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", "");
    lab.runner.take_trace();
    lab.uninstall_with(None, false).0.unwrap();
    let trace = lab.runner.take_trace();
    assert!(trace.iter().any(|line| line == "ip link delete cni0"), "{trace:#?}");
    assert!(!trace.iter().any(|line| line.contains("eth1") || line == "ip6tables-restore"), "{trace:#?}");
    let fed = String::from_utf8(lab.runner.fed.borrow().clone()).unwrap();
    assert_eq!(fed, "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -j ACCEPT\nCOMMIT\n");
}

#[test]
fn a_machine_is_one_node_of_one_bundle() {
    let lab = Lab::new();
    lab.install();
    let sums = lab.bundle().join("SHA256SUMS.amd64");
    let text = fs::read_to_string(&sums).unwrap();
    // The same files, listed in another order: another bundle.
    let mut lines: Vec<_> = text.lines().collect();
    lines.reverse();
    fs::write(&sums, lines.join("\n") + "\n").unwrap();
    let failure = refused(lab.install_with(None, Some("master-1")).0);
    assert!(failure.reason.contains("master-1 of another bundle"), "{}", failure.reason);
    // A node from an image is none of ours to change.
    let lab = Lab::new();
    lab.write("/var/lib/imgbuild/journal.jsonl", "");
    let (result, said) = lab.install_with(None, Some("master-1"));
    assert!(refused(result).reason.ends_with("fs.residue"));
    assert!(said.iter().any(|line| line.contains("this machine is a node already")), "{said:#?}");
}

/// Both halves in one folder: of the other one nothing is verified and nothing taken, and its nodes are named with their machine.
#[test]
fn a_hybrid_bundle_has_nodes_of_the_other_architecture() {
    let lab = Lab::new();
    let index = |id: &str| {
        format!(
            r#"{{"schema":1,"cluster":"lab","cluster_id":"{id}","architecture":"loong64","nodes":[{{"name":"worker-l","payload":"pods"}}]}}"#
        )
    };
    let other = lab.bundle().join("loong64");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("bundle.json"), index("0123456789abcdef0123456789abcdef")).unwrap();
    fs::write(other.join("firstboot"), "torn").unwrap();
    fs::write(lab.bundle().join("SHA256SUMS.loong64"), format!("{}  loong64/firstboot\n", "0".repeat(64))).unwrap();
    let before = lab.tree();
    let ask = |profile: &str| {
        let error = lab.install_with(None, Some(profile)).0.unwrap_err();
        let failure = Failure::from_error(&error, Exit::Internal, "");
        assert_eq!(failure.exit, Exit::Seed, "{}", failure.reason);
        format!("{}; {}", failure.reason, failure.hint)
    };
    assert_eq!(
        ask("worker-l"),
        "`worker-l` is a node for loongarch64 machines, and this one is x86_64; install it there; for this machine the bundle has: master-1"
    );
    assert!(ask("worker-x").contains("the bundle has no seed of `worker-x`; it has: master-1"));
    // What is in the folder of another cluster, or is no index, says nothing.
    for text in [index("another"), "{".to_owned()] {
        fs::write(other.join("bundle.json"), text).unwrap();
        assert!(ask("worker-l").contains("the bundle has no seed of `worker-l`"));
    }
    assert_eq!(lab.tree(), before);
    let check = Install { bundle: lab.bundle(), profile: Some("master-1".to_owned()), check_only: true, key: None };
    let (result, said) = lab.on(None, |machine| install(machine, &check));
    result.unwrap();
    assert!(said.iter().any(|line| line.contains("nothing is in the way")), "{said:?}");
    lab.install();
}

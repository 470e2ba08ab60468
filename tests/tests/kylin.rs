// SPDX-License-Identifier: MIT OR Apache-2.0

//! `profiles/kylin-v11-ha` builds end to end, from stand-ins for what its user brings: a root filesystem of Debian's loong64
//! packages, unpacked by dpkg-deb and packed by GNU tar, and a small static program of that machine (busybox) in place of every
//! program and in every image. Nothing is booted. `tests/run-kylin` runs it: it wants a Debian mirror that has loong64.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use imgbuild_tests::archive::one_node;
use imgbuild_tests::build::{binary, copy_cluster, folder, repository, users_store};
use imgbuild_tests::cli::{Outcome, code, files_below, sha256};
use imgbuild_tests::disk::{cat, extract, listing, partitions, read_fat};
use imgbuild_tests::stand_in::pack;
use imgbuild_tests::tool::{run, tool};
use serde_json::{Value, json};

/// What the stand-in for Kylin is made of; the last lines are not part of it.
const PACKAGES: &str = r#"
    "linux-image-loong64", "systemd", "systemd-sysv", "udev", "dbus", "kmod", "base-files", "base-passwd", "bash", "coreutils",
    "dash", "findutils", "grep", "hostname", "login", "passwd", "procps", "sed", "tar", "util-linux", "mount", "e2fsprogs",
    "iproute2", "iptables", "conntrack", "curl", "haproxy", "keepalived", "libpam-modules", "libpam-runtime",
    "busybox-static", "systemd-boot-efi", "ipset", "ipvsadm",
"#;

/// Of these, what becomes RPM packages.
const RPMS: [&str; 4] = ["haproxy", "keepalived", "ipset", "ipvsadm"];

/// Kernel modules below kernel/ that the initramfs or a node may want; the rest of 300 MB would only take time.
const MODULES: &[&str] = &[
    "arch",
    "block",
    "crypto",
    "fs",
    "lib",
    "net",
    "drivers/ata",
    "drivers/block",
    "drivers/hid",
    "drivers/input",
    "drivers/md",
    "drivers/nvme",
    "drivers/scsi",
    "drivers/usb",
    "drivers/virtio",
];

/// Folder of stand-ins, made once: `root` (the system), `busybox`, `systemd-boot.efi`.
fn stand_ins() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let cluster = folder().join("kylin-packages");
        fs::create_dir_all(&cluster).unwrap();
        fs::write(cluster.join("cluster.toml"), packages_cluster()).unwrap();
        let mut fetch = Command::new(binary());
        fetch.args(["fetch", "--cluster"]).arg(&cluster).arg("--store").arg(users_store());
        Outcome::of(&mut fetch).succeeds();
        let lock_path = cluster.join("imgbuild.lock");
        let made = folder().join(format!("kylin-{}", &sha256(&lock_path)[..16]));
        if made.join("complete").exists() {
            return made;
        }
        let _ = fs::remove_dir_all(&made);
        let (root, aside) = (made.join("root"), made.join("aside"));
        let lock: toml::Table = fs::read_to_string(&lock_path).unwrap().parse().unwrap();
        let items = lock["input"]["os"]["items"].as_array().unwrap();
        for item in items {
            let (name, hash) = (item["name"].as_str().unwrap(), item["sha256"].as_str().unwrap());
            let deb = users_store().join("objects").join(&hash[..2]).join(&hash[2..]);
            let target = match name {
                "busybox-static" | "systemd-boot-efi" => aside.clone(),
                rpm if RPMS.contains(&rpm) => made.join("rpm").join(rpm),
                _ => root.clone(),
            };
            fs::create_dir_all(&target).unwrap();
            run(tool("dpkg-deb").arg("--extract").arg(deb).arg(target));
        }
        let busybox =
            ["usr/bin/busybox", "bin/busybox"].map(|path| aside.join(path)).into_iter().find(|path| path.is_file());
        fs::copy(busybox.expect("busybox-static has it"), made.join("busybox")).unwrap();
        let loader = "usr/lib/systemd/boot/efi/systemd-bootloongarch64.efi";
        fs::copy(aside.join(loader), made.join("systemd-boot.efi")).unwrap();
        fs::remove_dir_all(aside).unwrap();
        install(&root);
        rpms(&made);
        fs::write(made.join("complete"), "").unwrap();
        made
    })
}

fn packages_cluster() -> String {
    format!(
        r#"{}[[input]]
kind = "deb"
name = "debian"
suites = ["forky"]
check_valid_until = false
[os]
distribution = "debian"
architecture = "loong64"
packages = [{PACKAGES}]
"#,
        one_node("packages")
    )
}

/// Packages by rpmbuild, signed by a key of GnuPG: `haproxy.rpm` and so on, `unsigned.rpm`, and `key.asc`.
fn rpms(made: &Path) {
    // GnuPG's sockets want a short path.
    let home = tempfile::tempdir().unwrap();
    let gpg = || {
        let mut command = tool("gpg");
        command.env("GNUPGHOME", home.path()).args(["--batch", "--quiet"]);
        command
    };
    run(gpg().args(["--passphrase", "", "--quick-generate-key", "Vendor <vendor@example.org>", "rsa2048", "sign"]));
    fs::write(made.join("key.asc"), run(gpg().args(["--armor", "--export"]))).unwrap();
    for name in RPMS {
        let (files, top) = (made.join("rpm").join(name), made.join("rpmbuild"));
        // haproxy's package makes a folder for its user.
        let owned = if name == "haproxy" { "%attr(0750, haproxy, haproxy) /var/lib/haproxy\n" } else { "" };
        fs::create_dir_all(files.join("var/lib/haproxy")).unwrap();
        let spec = format!(
            "Name: {name}\nVersion: 1.0\nRelease: 1.standin\nSummary: stand-in\nLicense: GPL\nAutoReqProv: no\n\
             %description\nstand-in\n%install\ncp -a {}/. %{{buildroot}}/\n%files\n/usr\n{owned}",
            files.display()
        );
        let path = made.join(format!("{name}.spec"));
        fs::write(&path, spec).unwrap();
        let mut build = tool("rpmbuild");
        build.args(["-bb", "--quiet", "--target", "loongarch64", "--define", &format!("_topdir {}", top.display())]);
        for define in [
            "debug_package %{nil}",
            "__os_install_post %{nil}",
            "_build_id_links none",
            "_unpackaged_files_terminate_build 0",
            "_binary_payload w19.zstdio",
        ] {
            build.args(["--define", define]);
        }
        run(build.arg(&path));
        let built = top.join(format!("RPMS/loongarch64/{name}-1.0-1.standin.loongarch64.rpm"));
        let rpm = made.join(format!("{name}.rpm"));
        fs::copy(&built, &rpm).unwrap();
        if name == "ipset" {
            fs::copy(&built, made.join("unsigned.rpm")).unwrap();
        }
        // Debian's rpm looks for gpg2.
        let gpg = format!("__gpg {}", gpg().get_program().display());
        let path = format!("_gpg_path {}", home.path().display());
        let mut sign = tool("rpmsign");
        sign.env("GNUPGHOME", home.path()).args(["--define", "_gpg_name Vendor"]);
        run(sign.args(["--define", &path, "--define", &gpg, "--addsign"]).arg(rpm));
    }
}

/// Does to the unpacked packages what an installation leaves on a machine's disk, good and bad.
fn install(root: &Path) {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for name in ["passwd", "group"] {
        let master = fs::read_to_string(root.join(format!("usr/share/base-passwd/{name}.master"))).unwrap();
        write(&format!("etc/{name}"), &master.replace(":*:", ":x:"));
    }
    // As useradd gives them out on the vendor's system.
    let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap();
    write(
        "etc/passwd",
        &format!(
            "{passwd}chrony:x:989:989::/var/lib/chrony:/usr/sbin/nologin\nadmin:x:1000:1000::/home/admin:/bin/bash\n"
        ),
    );
    write("etc/shadow", "root:$6$salt$hash:19000:0:99999:7:::\nadmin:$6$salt$hash:19000:0:99999:7:::\n");
    for (path, text) in [
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("etc/fstab", "/dev/mapper/klas-root / xfs defaults 0 0\n"),
        ("etc/ssh/ssh_host_ed25519_key", "secret\n"),
        ("root/.ssh/authorized_keys", "ssh-ed25519 AAAA installer\n"),
        ("root/anaconda-ks.cfg", "rootpw --iscrypted $6$salt$hash\n"),
        ("home/admin/notes", "private\n"),
        ("var/log/messages", "installed\n"),
        ("boot/vmlinuz-0-rescue-0123456789abcdef", "an old kernel\n"),
        ("boot/initramfs-6.6.0.img", "an initramfs\n"),
    ] {
        write(path, text);
    }
    let modules = fs::read_dir(root.join("usr/lib/modules")).unwrap().next().unwrap().unwrap().path();
    let kernel = modules.join("kernel");
    for path in files_below(&kernel) {
        if !MODULES.iter().any(|folder| path.starts_with(folder)) {
            fs::remove_file(kernel.join(path)).unwrap();
        }
    }
    // modules.order and modules.builtin stay; depmod's own files are made anew in any case.
}

/// A folder with a copy of the cluster file and all its inputs.
struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    /// `root`: what is laid over the stand-in for Kylin. `program`: what is in the images.
    fn new(root: &[(&str, &[u8])], program: &[u8]) -> Self {
        let room = Self { dir: tempfile::tempdir_in(folder()).unwrap() };
        copy_cluster(&repository().join("profiles/kylin-v11-ha"), &room.path("cluster"));
        let inputs = room.path("cluster/inputs");
        fs::create_dir_all(&inputs).unwrap();
        let made = stand_ins();
        let busybox = made.join("busybox");
        let mut tree = made.join("root");
        if !root.is_empty() {
            // A folder of links costs nothing.
            let own = room.path("root");
            run(Command::new("cp").args(["--archive", "--link"]).args([&tree, &own]));
            for (path, bytes) in root {
                let path = own.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                let _ = fs::remove_file(&path);
                fs::write(path, bytes).unwrap();
            }
            tree = own;
        }
        pack(&tree, &inputs.join("kylin-server-v11-loongarch64.tar.zst"), &["."]);
        let programs = room.path("programs");
        for path in [
            "kubernetes/server/bin/kubeadm",
            "kubernetes/server/bin/kubelet",
            "kubernetes/server/bin/kubectl",
            "crictl",
            "bin/containerd",
            "bin/containerd-shim-runc-v2",
            "bin/ctr",
            "loopback",
            "portmap",
            "etcd",
            "etcdctl",
        ] {
            let path = programs.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy(&busybox, &path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (archive, paths) in [
            ("kubernetes-server-linux-loong64.tar.gz", &["kubernetes"][..]),
            ("crictl-linux-loong64.tar.gz", &["crictl"]),
            ("containerd-linux-loong64.tar.gz", &["bin"]),
            ("cni-plugins-linux-loong64.tgz", &["loopback", "portmap"]),
            ("etcd-linux-loong64.tar.gz", &["etcd", "etcdctl"]),
        ] {
            pack(&programs, &inputs.join(archive), paths);
        }
        fs::copy(&busybox, inputs.join("runc.loong64")).unwrap();
        fs::copy(made.join("systemd-boot.efi"), inputs.join("systemd-bootloongarch64.efi")).unwrap();
        fs::write(inputs.join("calico.yaml"), CALICO).unwrap();
        for file in RPMS.map(|name| format!("{name}.rpm")).iter().chain(&["key.asc".to_owned()]) {
            fs::copy(made.join(file), inputs.join(file)).unwrap();
        }
        room.images(&inputs, program);
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// All images but one in a layout, and that one as Docker saves it, by skopeo.
    fn images(&self, inputs: &Path, program: &[u8]) {
        let (layout, layer) = (self.path("layout"), self.path("layer"));
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        fs::create_dir_all(layer.join("usr/bin")).unwrap();
        fs::write(layer.join("usr/bin/program"), program).unwrap();
        pack(&layer, &self.path("layer.tar"), &["usr"]);
        run(tool("skopeo").arg("--version"));
        let blob = |bytes: &[u8]| {
            let file = self.path("blob");
            fs::write(&file, bytes).unwrap();
            let hash = sha256(&file);
            fs::rename(file, layout.join("blobs/sha256").join(&hash)).unwrap();
            json!({ "digest": format!("sha256:{hash}"), "size": bytes.len() })
        };
        let typed = |mut link: Value, media_type: &str| {
            link["mediaType"] = format!("application/vnd.oci.image.{media_type}").into();
            link
        };
        let layer = typed(blob(&fs::read(self.path("layer.tar")).unwrap()), "layer.v1.tar");
        let entries: Vec<Value> = IMAGES
            .iter()
            .map(|name| {
                let config = json!({
                    "architecture": "loong64", "os": "linux", "config": { "Entrypoint": ["/usr/bin/program"], "Labels": { "is": name } },
                    "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
                });
                let config = typed(blob(config.to_string().as_bytes()), "config.v1+json");
                let manifest = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "config": config, "layers": [layer] });
                let mut entry = typed(blob(manifest.to_string().as_bytes()), "manifest.v1+json");
                entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
                entry
            })
            .collect();
        let write = |entries: &[&Value]| {
            let index = json!({ "schemaVersion": 2, "manifests": entries });
            fs::write(layout.join("index.json"), index.to_string()).unwrap();
        };
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        write(&entries.iter().collect::<Vec<_>>());
        let pause = self.path("cluster/inputs/pause.tar");
        let _ = fs::remove_file(&pause);
        let source = format!("oci:{}:{}", layout.display(), IMAGES[0]);
        let target = format!("docker-archive:{}:example.org/pause:3.10", pause.display());
        run(tool("skopeo").args(["copy", "--quiet", "--insecure-policy", &source, &target]));
        write(&entries[1..].iter().collect::<Vec<_>>());
        pack(&layout, &inputs.join("images-loong64.tar.zst"), &["."]);
        let file = self.path("cluster/cluster.toml");
        let text = fs::read_to_string(&file).unwrap();
        let further = format!(
            "[[input]]\nkind = \"image-archive\"\nname = \"pause\"\npath = \"inputs/pause.tar\"\n\
             names = {{ \"{}\" = \"example.org/pause:3.10\" }}\n\n[os]\n",
            IMAGES[0]
        );
        let text = text.replace("\"inputs/ipvsadm.rpm\"]\n", "\"inputs/ipvsadm.rpm\"]\nkeys = [\"inputs/key.asc\"]\n");
        let mut text = text.replace("[os]\n", &further);
        // The smallest that hold the stand-ins.
        for (from, to) in
            [("\"64GiB\"", "\"7GiB\""), ("root_size = \"8GiB\"", "root_size = \"1536MiB\""), ("\"8GiB\"", "\"512MiB\"")]
        {
            text = text.replace(from, to);
        }
        fs::write(&file, text).unwrap();
    }

    fn build(&self, nodes: &[&str]) -> Outcome {
        let mut command = Command::new(binary());
        command.args(["build", "--offline", "--cluster"]).arg(self.path("cluster")).args(nodes);
        command.arg("--store").arg(folder().join("kylin-store")).arg("--out").arg(self.path("out"));
        self.lock();
        Outcome::of(command.current_dir(self.dir.path()))
    }

    /// Everything is a file here, so that no mirror is asked.
    fn lock(&self) {
        let mut command = Command::new(binary());
        command.args(["lock", "--cluster"]).arg(self.path("cluster"));
        command.arg("--store").arg(folder().join("kylin-store")).current_dir(self.dir.path());
        Outcome::of(&mut command).succeeds();
    }
}

/// The names that kubeadm 1.32.1 and the manifest ask for.
const IMAGES: [&str; 9] = [
    "lcr.loongnix.cn/kubernetes/pause:3.10",
    "lcr.loongnix.cn/kubernetes/kube-apiserver:v1.32.1",
    "lcr.loongnix.cn/kubernetes/kube-controller-manager:v1.32.1",
    "lcr.loongnix.cn/kubernetes/kube-scheduler:v1.32.1",
    "lcr.loongnix.cn/kubernetes/kube-proxy:v1.32.1",
    "lcr.loongnix.cn/kubernetes/coredns:v1.11.3",
    "docker.io/calico/node:v3.26.1",
    "docker.io/calico/cni:v3.26.1",
    "docker.io/calico/pod2daemon-flexvol:v3.26.1",
];

/// As much of Calico's manifest as the builder's own tests look at.
const CALICO: &str = include_str!("../../builder/tests/data/calico.yaml");

fn busybox() -> Vec<u8> {
    fs::read(stand_ins().join("busybox")).unwrap()
}

/// The same program with the object file ABI of the old world: bits 6 and 7 of e_flags (byte 48 of a 64-bit ELF header) are 0.
fn old_world() -> Vec<u8> {
    let mut bytes = busybox();
    assert_eq!(bytes[48] & 0xc0, 0x40, "busybox is of the new world");
    bytes[48] &= 0x3f;
    bytes
}

#[test]
#[ignore = "wants a mirror with loong64: tests/run-kylin"]
fn stand_in_kylin_builds_every_node() {
    let room = Room::new(&[], &busybox());
    let outcome = room.build(&["--all"]);
    outcome.succeeds();
    let out = room.path("out");
    let images: Vec<String> = files_below(&out).iter().map(|path| path.display().to_string()).collect();
    for node in ["etcd1", "etcd2", "etcd3", "master1", "master2", "master3", "node1"] {
        assert!(images.contains(&format!("{node}.img")), "{images:?}");
    }
    let image = out.join("master1.img");
    let verdict = run(tool("sgdisk").arg("-v").arg(&image));
    assert!(verdict.contains("No problems found"), "{verdict}");
    let names: Vec<String> = partitions(&image).into_iter().map(|p| p.name).collect();
    assert_eq!(names, ["ESP", "root-a", "root-b", "payload-a", "payload-b", "CIDATA", "data"]);

    // What the firmware starts.
    let root = stand_ins().join("root");
    let release = fs::read_dir(root.join("usr/lib/modules")).unwrap().next().unwrap().unwrap().file_name();
    let release = release.to_str().unwrap();
    let loader = fs::read(stand_ins().join("systemd-boot.efi")).unwrap();
    for name in ["BOOTLOONGARCH64.EFI", "BOOTLOONGARCH.EFI"] {
        assert!(read_fat(&image, "ESP", &format!("EFI/BOOT/{name}")) == loader, "{name} is not systemd-boot");
    }
    let kernel = ["usr/lib/modules/{}/vmlinuz", "boot/vmlinuz-{}"].map(|path| root.join(path.replace("{}", release)));
    let kernel = fs::read(kernel.iter().find(|path| path.exists()).unwrap()).unwrap();
    assert!(read_fat(&image, "ESP", "imgbuild/a/vmlinuz") == kernel, "the kernel is another one");
    let entry = String::from_utf8(read_fat(&image, "ESP", "loader/entries/imgbuild-a+3.conf")).unwrap();
    assert!(entry.contains("selinux=0") && entry.contains(release), "{entry}");
    let (packed, initramfs) = (room.path("initramfs.cpio.zst"), room.path("initramfs.cpio"));
    fs::write(&packed, read_fat(&image, "ESP", "imgbuild/a/initramfs.cpio.zst")).unwrap();
    run(tool("zstd").args(["-dq", "-o"]).arg(&initramfs).arg(&packed));
    let list = run(tool("cpio").args(["--quiet", "-t", "-F"]).arg(&initramfs));
    for file in ["init", "lib/modules/modules.list", "lib/modules/virtio_blk.ko"] {
        assert!(list.lines().any(|line| line == file), "{file} is not in the initramfs:\n{list}");
    }

    // The root is the vendor's, without what was the machine's.
    let root_image = extract(&image, "root-a", &room.path("root.squashfs"));
    let files = listing(&root_image);
    let paths: BTreeSet<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    for path in [
        "usr/bin/containerd",
        "usr/bin/runc",
        "usr/bin/etcd",
        "usr/sbin/haproxy",
        "usr/lib/systemd/system/containerd.service",
        "usr/lib/systemd/system/firstboot.service",
        "etc/NetworkManager/conf.d/90-imgbuild.conf",
        "efi",
        "opt/imgbuild",
        &format!("usr/lib/modules/{release}/modules.dep.bin"),
    ] {
        assert!(paths.contains(path), "the root lacks {path}");
    }
    for path in [
        "etc/ssh/ssh_host_ed25519_key",
        "root/.ssh/authorized_keys",
        "root/anaconda-ks.cfg",
        "home/admin/notes",
        "var/log/messages",
        "boot/vmlinuz-0-rescue-0123456789abcdef",
        "boot/initramfs-6.6.0.img",
    ] {
        assert!(!paths.contains(path), "the root has {path}");
    }
    assert_eq!(cat(&root_image, "etc/machine-id"), "");
    assert!(!cat(&root_image, "etc/fstab").contains("/dev/mapper"));
    let (passwd, shadow) = (cat(&root_image, "etc/passwd"), cat(&root_image, "etc/shadow"));
    assert!(passwd.contains("\netcd:x:389:389:") && passwd.contains("\nchrony:x:989:989:"), "{passwd}");
    assert!(shadow.lines().all(|line| line.split(':').nth(1) == Some("*")), "somebody has a password:\n{shadow}");
    for (path, line) in [("var/lib/etcd", "drwx------ 389/389 "), ("var/lib/haproxy", "drwxr-xr-x 388/388 ")] {
        let found = files.iter().find(|(found, _)| found == path).unwrap();
        assert!(found.1.starts_with(line), "{}", found.1);
    }

    // The payload has every image under the name that will be asked for, by skopeo's judgement.
    let payload = extract(&image, "payload-a", &room.path("payload.squashfs"));
    let unpacked = room.path("payload");
    run(tool("unsquashfs").args(["-quiet", "-no-progress", "-dest"]).arg(&unpacked).arg(&payload));
    for name in ["kubeadm", "kubelet", "kubectl", "crictl"] {
        assert!(fs::read(unpacked.join("bin").join(name)).unwrap() == busybox(), "{name} is not what was brought");
    }
    assert!(unpacked.join("cni/bin/portmap").is_file());
    let calico = fs::read_to_string(unpacked.join("manifests/10-calico.yaml")).unwrap();
    assert!(calico.contains("docker.io/calico/node:v3.26.1") && calico.contains("10.200.0.0/16"), "{calico}");
    let description: Value = serde_json::from_slice(&fs::read(unpacked.join("payload.json")).unwrap()).unwrap();
    let described: BTreeSet<&str> =
        description["images"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for name in IMAGES {
        assert!(described.contains(name), "{described:?}");
        let source = format!("oci:{}:{name}", unpacked.join("images").display());
        let target = format!("dir:{}", room.path("copy").display());
        run(tool("skopeo").args(["copy", "--quiet", "--insecure-policy", &source, &target]));
        let config: Value = serde_json::from_str(&run(tool("skopeo").args(["inspect", "--config", &source]))).unwrap();
        assert_eq!((&config["architecture"], &config["config"]["Labels"]["is"]), (&json!("loong64"), &json!(name)));
    }

    // Again, from the lock: nothing is made anew, and the bytes are the same.
    let before = sha256(&out.join("node1.img"));
    fs::remove_file(out.join("node1.img")).unwrap();
    let again = room.build(&["--profile", "node1"]);
    again.succeeds();
    assert!(!again.stderr.contains("assembling"), "{again}");
    assert_eq!(sha256(&out.join("node1.img")), before);
    // What was locked is what is built from.
    let lock = fs::read_to_string(room.path("cluster/imgbuild.lock")).unwrap();
    for path in files_below(&room.path("cluster/inputs")) {
        assert!(lock.contains(&sha256(&room.path("cluster/inputs").join(&path))), "{} is not locked", path.display());
    }
}

#[test]
#[ignore = "wants a mirror with loong64: tests/run-kylin"]
fn stand_in_kylin_a_program_for_another_machine_in_the_root_is_named() {
    let own = fs::read(std::env::current_exe().unwrap()).unwrap();
    let room = Room::new(&[("usr/libexec/stray-amd64", &own), ("opt/vendor/old", &old_world())], &busybox());
    room.build(&["--profile", "node1"]).fails(
        code::VERIFICATION,
        &[
            "/usr/libexec/stray-amd64 (root filesystem inputs/kylin-server-v11-loongarch64.tar.zst): is for another machine",
            "/opt/vendor/old (root filesystem inputs/kylin-server-v11-loongarch64.tar.zst): has the old-world ABI",
        ],
    );
    assert_eq!(files_below(&room.path("out")), [""; 0].map(PathBuf::from));
}

#[test]
#[ignore = "wants a mirror with loong64: tests/run-kylin"]
fn stand_in_kylin_a_program_for_another_machine_in_an_image_is_named() {
    let own = fs::read(std::env::current_exe().unwrap()).unwrap();
    for (program, problem) in [(old_world(), "has the old-world ABI"), (own, "is for another machine")] {
        let room = Room::new(&[], &program);
        let named =
            |archive: &str, image: &str| format!("{archive}, image {image}: /usr/bin/program (layer 1): {problem}");
        room.build(&["--profile", "node1"]).fails(
            code::VERIFICATION,
            &[&named("inputs/images-loong64.tar.zst", IMAGES[4]), &named("inputs/pause.tar", "example.org/pause:3.10")],
        );
        assert_eq!(files_below(&room.path("out")), [""; 0].map(PathBuf::from));
    }
}

#[test]
#[ignore = "wants a mirror with loong64: tests/run-kylin"]
fn stand_in_kylin_what_is_missing_is_named() {
    let room = Room::new(&[], &busybox());
    let file = room.path("cluster/cluster.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace(
            "\n[os]",
            "\n[[input]]\nkind = \"file\"\nname = \"addon\"\npath = \"inputs/addon.yaml\"\n\
        to = \"/opt/imgbuild/manifests/20-addon.yaml\"\n\n[os]",
        ),
    )
    .unwrap();
    fs::write(room.path("cluster/inputs/addon.yaml"), "spec: {containers: [{image: 'busybox:1'}]}\n").unwrap();
    room.build(&["--profile", "node1"]).fails(
        code::VERIFICATION,
        &["image `docker.io/library/busybox:1` is not in the payload, but the manifest 20-addon.yaml will ask for it"],
    );
    // A build uses what was locked; another file in its place is refused.
    fs::write(&file, &text).unwrap();
    room.lock();
    fs::write(room.path("cluster/inputs/runc.loong64"), old_world()).unwrap();
    let store = room.path("store");
    let mut command = Command::new(binary());
    command.args(["fetch", "--offline", "--cluster"]).arg(room.path("cluster")).arg("--store").arg(&store);
    Outcome::of(&mut command).fails(code::VERIFICATION, &["file inputs/runc.loong64 is not the one that was locked"]);
    // The lock moves to the new file, and the proof names it.
    let relock = || {
        let mut command = Command::new(binary());
        command.args(["lock", "--update", "runc", "load-balancer-and-ipvs", "--cluster"]).arg(room.path("cluster"));
        Outcome::of(command.arg("--store").arg(folder().join("kylin-store"))).succeeds();
    };
    relock();
    room.build(&["--profile", "node1"])
        .fails(code::VERIFICATION, &["/usr/bin/runc (the input file inputs/runc.loong64): has the old-world ABI"]);
    // A package that the vendor's key has not signed.
    fs::copy(stand_ins().join("unsigned.rpm"), room.path("cluster/inputs/ipset.rpm")).unwrap();
    relock();
    room.build(&["--profile", "node1"]).fails(code::VERIFICATION, &["package inputs/ipset.rpm: it is not signed"]);
    fs::copy(stand_ins().join("ipset.rpm"), room.path("cluster/inputs/ipset.rpm")).unwrap();
    // Without a boot loader it says what to bring.
    fs::copy(stand_ins().join("busybox"), room.path("cluster/inputs/runc.loong64")).unwrap();
    let at = text.find("# Kylin starts with GRUB").unwrap();
    let end = text.find("# The runbook fetches these").unwrap();
    fs::write(&file, format!("{}{}", &text[..at], &text[end..])).unwrap();
    relock();
    room.build(&["--profile", "node1"]).fails(
        code::USER,
        &["nothing has the boot loader /usr/lib/systemd/boot/efi/systemd-bootloongarch64.efi", "systemd-boot-efi"],
    );
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A bundle on an operating system that imgbuild did not make: `tests/run-bundle` makes a Debian with mmdebstrap, with a network
//! and a name of its own, and this boots it with no way to any network. It refuses while something is in the way, becomes
//! the lab's node, stays it over a power cut, and is afterwards what it was.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use imgbuild_tests::build::{bundle, folder};
use imgbuild_tests::qemu::{Vm, overlay, turn};
use imgbuild_tests::tool::{run, tool};
use imgbuild_tests::workload::{
    COMMAND, busybox, node_reaches, nodes_are_ready, state_but_for_its_origin, state_of_the_lab, web_pod,
};

/// Time limits as they would be with KVM; the harness multiplies them for TCG.
const CONVERGE: Duration = Duration::from_secs(300);
const BOOT: Duration = Duration::from_secs(90);
/// Every file of the bundle is read and copied.
const INSTALL: Duration = Duration::from_secs(120);

/// What `tests/run-bundle` made: `disk.raw`, `vmlinuz`, `initrd.img`.
fn host() -> PathBuf {
    let folder =
        std::env::var_os("IMGBUILD_TEST_HOST").expect("IMGBUILD_TEST_HOST names the host: use tests/run-bundle");
    PathBuf::from(folder).canonicalize().expect("IMGBUILD_TEST_HOST names a folder")
}

fn switch_on(name: &str, disk: &Path, medium: &Path) -> Vm {
    let file = |name: &str| host().join(name).to_str().expect("paths of the tests are UTF-8").to_owned();
    let mut builder = Vm::builder(&format!("bundle-{name}")).disk(disk).logs(&folder().join("logs"));
    let drive = format!("if=virtio,format=raw,readonly=on,file={}", medium.display());
    // No boot loader, so no boot entry to add an argument to.
    let arguments = "root=LABEL=host rw console=ttyS0,115200 systemd.debug_shell=ttyS1";
    builder.arguments.extend(
        ["-drive", &drive, "-kernel", &file("vmlinuz"), "-initrd", &file("initrd.img"), "-append", arguments]
            .map(str::to_owned),
    );
    builder.start()
}

/// What must be the same before and after: every file and link of /etc and /usr/bin, with content, mode, owner and time of a
/// file; names of what lies in the other places; names that the kernel has. Left out is what Debian itself rewrites.
fn state(vm: &mut Vm) -> String {
    let script = "\
        cd /; find etc usr/bin usr/sbin usr/local root \\( -path etc/machine-id -o -name 'passwd*' -o -name 'group*' -o -name 'shadow*' \
        -o -name 'gshadow*' -o -name 'subuid*' -o -name 'subgid*' -o -path etc/ld.so.cache -o -name .pwd.lock -o -name .bash_history \\) -prune \
        -o \\( -type f -printf '%p %m %U:%G %T@ ' -exec sha256sum {} \\; \\) -o \\( -type l -printf '%p -> %l\\n' \\) | sort; \
        getent passwd; getent group; ls -A /opt /srv /var/lib /var/log; hostname; ip -br link | cut -d' ' -f1; ip route; \
        sysctl net.ipv4.ip_forward vm.overcommit_memory kernel.panic; iptables-save | grep -c -e KUBE -e CNI; \
        systemctl list-unit-files --no-legend --state=enabled,masked | sort";
    vm.exec(script, INSTALL).output
}

#[test]
#[ignore = "boots a Debian that tests/run-bundle makes"]
fn booted_bundle_makes_a_node_of_an_installed_debian_and_gives_it_back() {
    let _turn = turn();
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let disk = scratch.path().join("disk.qcow2");
    overlay(&host().join("disk.raw"), &disk);
    let carried = scratch.path().join("carried");
    std::fs::create_dir(&carried).unwrap();
    std::fs::copy(bundle(), carried.join("bundle.tar.zst")).unwrap();
    let medium = scratch.path().join("medium.raw");
    run(tool("mke2fs").args(["-q", "-t", "ext4", "-L", "BUNDLE", "-d"]).args([&carried, &medium]).arg("2G"));

    let mut vm = switch_on("1-installs", &disk, &medium);
    vm.until("systemctl is-active multi-user.target", BOOT, |done| done.output.trim() == "active");
    vm.until("ip -br -4 address", BOOT, |done| done.output.contains("10.0.2.15/24"));
    vm.output(
        "mkdir /srv/bundle && mount -o ro LABEL=BUNDLE /mnt && tar --zstd -C /srv/bundle -xf /mnt/bundle.tar.zst",
        INSTALL,
    );
    let running = vm.exec("systemctl is-system-running --wait", BOOT).output;
    let before = state(&mut vm);

    // Something in the way: everything is named, and nothing changes.
    vm.output(
        "mkdir -p /var/lib/kubelet/pki && touch /var/lib/kubelet/pki/old.pem && ip link add cni0 type bridge",
        COMMAND,
    );
    let refused = vm.exec("/srv/bundle/imgbuild-lab/install --profile master-1", INSTALL);
    assert_eq!(refused.status, 20, "{}", refused.output);
    for words in ["error fs.residue: ", "/var/lib/kubelet", "error net.residue: ", "cni0"] {
        assert!(refused.output.contains(words), "{words}: {}", refused.output);
    }
    vm.output("rm -r /var/lib/kubelet && ip link delete cni0", COMMAND);
    assert_eq!(state(&mut vm), before, "a refusal changed something");
    let checked = vm.exec("/srv/bundle/imgbuild-lab/install --check", INSTALL);
    assert_eq!(checked.status, 0, "{}", checked.output);
    assert!(checked.output.contains("this is master-1, by its address"), "{}", checked.output);

    let installed = vm.exec("/srv/bundle/imgbuild-lab/install --profile master-1", INSTALL);
    assert_eq!(installed.status, 0, "{}", installed.output);
    vm.wait_for("firstboot: master-1: converged in", CONVERGE);
    println!("converged {:.0} s after power on", vm.uptime().as_secs_f64());
    assert_eq!(state_but_for_its_origin(&mut vm, "bundle"), state_of_the_lab());
    nodes_are_ready(&mut vm, &["master-1"]);
    let image = busybox(&mut vm);
    let address = web_pod(&mut vm, "web", "master-1", &image);
    node_reaches(&mut vm, &address, 8080, "web");
    vm.cut_power();

    let mut vm = switch_on("2-again", &disk, &medium);
    vm.wait_for("firstboot: master-1: already converged, nothing to do", BOOT);
    nodes_are_ready(&mut vm, &["master-1"]);

    let refused = vm.exec("/srv/bundle/imgbuild-lab/uninstall", COMMAND);
    assert_eq!(refused.status, 20, "{}", refused.output);
    assert!(refused.output.contains("an etcd member and a control plane"), "{}", refused.output);
    let gone = vm.exec("/srv/bundle/imgbuild-lab/uninstall --yes", CONVERGE);
    assert_eq!(gone.status, 0, "{}", gone.output);
    assert_eq!(state(&mut vm), before, "not as it was");
    for port in [2379, 6443, 10250] {
        let listening = vm.exec(&format!("ss -Hltn sport = :{port}"), COMMAND).output;
        assert!(listening.trim().is_empty(), "{listening}");
    }
    vm.power_down(BOOT);

    // Also after a restart, which takes the kernel's part away.
    let mut vm = switch_on("3-as-it-was", &disk, &medium);
    vm.until("systemctl is-active multi-user.target", BOOT, |done| done.output.trim() == "active");
    assert_eq!(vm.exec("systemctl is-system-running --wait", BOOT).output, running);
    vm.power_down(BOOT);
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! `lab-split` from one installation image: three virtual machines with empty disks, of which each finds out by its MAC
//! address which node it is, installs that, and goes on. Then the cluster does without the medium.
//!
//! `tests/run-iso` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::{Duration, Instant};

use imgbuild_tests::cli::contents;
use imgbuild_tests::cluster::{Built, Failures, TestCluster};
use imgbuild_tests::qemu::{Medium, turn};
use imgbuild_tests::workload::{
    COMMAND, boot_id, busybox, health, is_ready_again, node_reaches, nodes_are_ready, the_seed_is_erased, web_pod,
};

/// For one machine with KVM, as all limits: installing is reading and writing the image, twice.
const CONVERGE: Duration = Duration::from_secs(600);
/// A boot with nothing to install and nothing to converge.
const BOOT: Duration = Duration::from_secs(300);

/// The nodes, and what they are installed from.
const NODES: [(&str, Medium); 3] =
    [("etcd-1", Medium::UsbStick), ("master-1", Medium::Cd), ("worker-1", Medium::UsbStick)];

#[test]
#[ignore = "installs three machines: run it with tests/run-iso"]
fn booted_iso_installs_three_machines_by_their_mac_addresses() {
    let _turn = turn();
    let (built, iso) = Built::iso("lab-split", "lab-split-iso");
    let names = NODES.map(|(name, _)| name);
    assert_eq!(built.names(), names);
    let before = contents(&iso);
    // Larger than the image: the data partition has to grow.
    let mut cluster = TestCluster::blank(&built, "iso", "18G");

    let begun = Instant::now();
    for (name, how) in NODES {
        cluster.switch_on_with(name, |machine| machine.medium(&iso, how));
    }
    cluster.wait_converged(&names, CONVERGE, Failures::Refused);
    println!("installed and converged {} s after the first power on", begun.elapsed().as_secs());
    nodes_are_ready(cluster.vm("master-1"), &["master-1", "worker-1"]);
    health(cluster.vm("master-1"), &[0, 1]);
    for name in names {
        let address = cluster.address(name);
        let addresses = cluster.output(name, "hostname; ip -brief address", COMMAND);
        assert!(addresses.contains(name) && addresses.contains(&address), "{name} is another node:\n{addresses}");
        the_disk_is_whole(&mut cluster, name);
    }

    // From the disks alone, all at once.
    let worker = boot_id(cluster.vm("master-1"), "worker-1");
    for name in names {
        cluster.output(name, "sync", COMMAND);
        cluster.cut_power(name);
    }
    cluster.switch_on_together(&names);
    cluster.wait_converged(&names, BOOT, Failures::Expected);
    is_ready_again(cluster.vm("master-1"), "worker-1", &worker);
    let master = cluster.vm("master-1");
    let image = busybox(master);
    let pod = web_pod(master, "after-the-medium", "worker-1", &image);
    node_reaches(master, &pod, 8080, "after-the-medium");

    drop(cluster);
    assert_eq!(contents(&iso), before, "the medium was written to");
}

/// The partition table reaches to the end of the disk, and no secret is left where the node's seed was.
fn the_disk_is_whole(cluster: &mut TestCluster, name: &str) {
    let sectors =
        cluster.output(name, "cat /sys/block/vda/size /sys/block/vda/vda7/start /sys/block/vda/vda7/size", COMMAND);
    let numbers: Vec<u64> = sectors.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [disk, start, len] = numbers[..] else { panic!("{sectors}") };
    assert!(disk - (start + len) < 4096, "data of {name} ends {} sectors before the disk", disk - start - len);
    let labels = cluster.output(name, "lsblk --noheadings --output PARTLABEL /dev/vda", COMMAND);
    let labels: Vec<&str> = labels.split_whitespace().collect();
    assert_eq!(labels, ["ESP", "root-a", "root-b", "payload-a", "payload-b", "CIDATA", "data"]);
    the_seed_is_erased(cluster.vm(name));
}

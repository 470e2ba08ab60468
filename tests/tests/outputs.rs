// SPDX-License-Identifier: MIT OR Apache-2.0

//! Seeds alone, judged by cloud-init itself, and `imgbuild write` on real block devices. Needs no built lab.
//!
//! Names of tests that need root, for loop devices, begin with `root_`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imgbuild_tests::build::{binary, copy_cluster, repository};
use imgbuild_tests::cli::{Outcome, code, files_below, in_own_mounts};
use imgbuild_tests::tool::{cloud_init, run, run_bytes, tool};
use serde_json::Value;

const MIB: u64 = 1 << 20;

// ---- Seeds ----

/// A folder with a copy of the cluster `lab-split`, and the command that makes seeds of it.
fn seeds(dir: &Path) -> Command {
    copy_cluster(&repository().join("profiles/lab-split"), &dir.join("cluster"));
    let mut command = Command::new(binary());
    command
        .args(["build", "--output", "seed", "--cluster", "cluster", "--store", "store", "--offline"])
        .current_dir(dir);
    // There is no mirror, and none is asked.
    command.env("IMGBUILD_MIRROR", "http://127.0.0.1:1/none");
    command
}

/// What cloud-init's own data source finds in a folder.
fn no_cloud(folder: &Path) -> Value {
    let script = r"
import json, sys
from cloudinit import helpers
from cloudinit.sources import DataSourceNoCloud
run, seed = sys.argv[1:3]
paths = helpers.Paths({'cloud_dir': run, 'run_dir': run})
source = DataSourceNoCloud.DataSourceNoCloud({'datasource': {'NoCloud': {'fs_label': None}}}, None, paths)
source.seed_dirs = [seed]
found = source.get_data()
json.dump({'found': found, 'meta': source.metadata, 'user': source.userdata_raw.decode(),
           'network': source.network_config}, sys.stdout)
";
    let state = tempfile::tempdir().unwrap();
    let read = run(cloud_init().args(["-c", script]).args([state.path(), folder]));
    serde_json::from_str(&read).unwrap()
}

#[test]
fn cloud_init_reads_a_seed_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    Outcome::of(seeds(dir.path()).args(["--all", "--out", "out"])).succeeds();
    let out = dir.path().join("out");
    let names = |name: &str| {
        ["-seed/meta-data", "-seed/network-config", "-seed/user-data", "-seed.cpio", "-seed.iso"]
            .map(|end| format!("{name}{end}"))
    };
    let mut wanted: Vec<PathBuf> =
        ["etcd-1", "master-1", "worker-1"].iter().flat_map(|name| names(name)).map(PathBuf::from).collect();
    wanted.sort();
    assert_eq!(files_below(&out), wanted);
    for file in wanted {
        let mode = fs::metadata(out.join(&file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.display());
    }
    assert_eq!(fs::metadata(out.join("master-1-seed")).unwrap().permissions().mode() & 0o777, 0o700);

    let folder = out.join("master-1-seed");
    let seed = no_cloud(&folder);
    assert_eq!((&seed["found"], &seed["meta"]["local-hostname"]), (&Value::Bool(true), &"master-1".into()), "{seed}");
    assert!(seed["meta"]["instance-id"].as_str().unwrap().contains("-master-1-"), "{seed}");
    assert!(seed["user"].as_str().unwrap().starts_with("#cloud-config\n"));
    assert!(seed["network"]["ethernets"].is_object(), "{seed}");
    run(cloud_init().args(["-m", "cloudinit.cmd.main", "schema", "--config-file"]).arg(folder.join("user-data")));

    // The volume is one that cloud-init looks for, and has the same files, by each of its two kinds of long names.
    let iso = out.join("master-1-seed.iso");
    let volume = run(tool("blkid").args(["-p", "-o", "export"]).arg(&iso));
    for line in ["LABEL=CIDATA", "TYPE=iso9660"] {
        assert!(volume.lines().any(|found| found == line), "{line}\n{volume}");
    }
    for (kind, extension) in [("R", "rock"), ("J", "joliet")] {
        let read = dir.path().join(extension);
        fs::create_dir(&read).unwrap();
        for name in ["meta-data", "user-data", "network-config"] {
            let arguments = [format!("-{kind}"), "-x".into(), format!("/{name}"), "-i".into()];
            fs::write(read.join(name), run_bytes(tool("isoinfo").args(arguments).arg(&iso))).unwrap();
        }
        assert_eq!(no_cloud(&read), seed, "{extension}");
    }
    run(tool("cpio")
        .args(["--extract", "--make-directories", "--quiet", "--file"])
        .arg(out.join("master-1-seed.cpio"))
        .current_dir(dir.path()));
    assert_eq!(no_cloud(&dir.path().join("imgbuild/nodes/master-1")), seed);
}

#[test]
fn a_seed_is_the_same_again_and_replaces_no_folder_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = seeds(dir.path());
    Outcome::of(command.args(["--profile", "etcd-1", "--out", "one"])).succeeds();
    Outcome::of(seeds(dir.path()).args(["--profile", "etcd-1", "--out", "two"])).succeeds();
    Outcome::of(seeds(dir.path()).args(["--profile", "etcd-1", "--out", "two"])).succeeds();
    run(tool("diff").arg("-r").args(["one", "two"]).current_dir(dir.path()));
    fs::write(dir.path().join("two/etcd-1-seed/mine"), "x").unwrap();
    let outcome = Outcome::of(seeds(dir.path()).args(["--profile", "etcd-1", "--out", "two"]));
    outcome.fails(code::USER, &["etcd-1-seed holds mine, which no build puts there", "--out"]);
    assert_eq!(fs::read_to_string(dir.path().join("two/etcd-1-seed/mine")).unwrap(), "x");
}

// ---- Writing to disks ----

/// A loop device over a file of old data.
struct Loop {
    device: PathBuf,
    file: PathBuf,
}

impl Loop {
    /// A disk of `size` bytes that had another use: 0xEE everywhere, and an old ext4 where the image has its data
    /// partition.
    fn used(folder: &Path, size: u64) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "loop devices need root; `-- --skip root_` leaves these tests out"
        );
        let file = folder.join("disk");
        fs::write(&file, vec![0xee; size as usize]).unwrap();
        let device = run(tool("losetup").args(["--find", "--show"]).arg(&file)).trim().into();
        Self { device, file }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run(tool("losetup").arg("--detach").arg(&self.device));
    }
}

/// A sparse image with two partitions, of which the second is empty.
fn image(folder: &Path) -> PathBuf {
    let image = folder.join("node.img");
    let file = File::create(&image).unwrap();
    file.set_len(64 * MIB).unwrap();
    run(tool("sgdisk").args(["-n1:1M:+8M", "-c1:root-a", "-n2:9M:+40M", "-c2:data"]).arg(&image));
    file.write_all_at(&[7; 100_000], 3 * MIB).unwrap();
    image
}

fn write(image: &Path, device: &Path) -> Command {
    let mut command = Command::new(binary());
    command.arg("write").args([image, device]);
    command
}

#[test]
fn root_a_used_disk_gets_the_image_and_another_tool_finds_its_table() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Loop::used(dir.path(), 80 * MIB);
    let image = image(dir.path());
    let outcome = Outcome::of(write(&image, &disk.device).arg("--yes"));
    outcome.succeeds();
    assert!(outcome.stderr.contains("written and read back, the same"), "{outcome}");
    // By the device, not by the file behind it.
    let (wanted, got) = (fs::read(&image).unwrap(), fs::read(&disk.device).unwrap());
    let mib = MIB as usize;
    assert!(got[..9 * mib] == wanted[..9 * mib], "what is before the empty partition");
    let zeros = |from: usize, to: usize| got[from..to].iter().all(|byte| *byte == 0);
    assert!(zeros(9 * mib, 10 * mib) && zeros(48 * mib, 49 * mib) && zeros(79 * mib, 80 * mib));
    assert!(
        got[10 * mib..48 * mib].iter().all(|byte| *byte == 0xee),
        "the middle of an empty partition does not matter"
    );
    // As firstboot does with a disk that is larger than the image: the backup table moves to the end.
    run(tool("sgdisk").arg("-e").arg(&disk.device));
    let verdict = run(tool("sgdisk").arg("-v").arg(&disk.device));
    assert!(verdict.contains("No problems found"), "{verdict}");
}

#[test]
fn root_an_iso_is_copied_whole() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Loop::used(dir.path(), 16 * MIB);
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), vec![3; 3_000_000]).unwrap();
    let iso = dir.path().join("a.iso");
    run(tool("xorriso").args(["-as", "mkisofs", "-quiet", "-V", "TEST", "-o"]).arg(&iso).arg(&tree));
    Outcome::of(write(&iso, &disk.device).arg("--yes")).succeeds();
    let (wanted, got) = (fs::read(&iso).unwrap(), fs::read(&disk.device).unwrap());
    assert!(got.starts_with(&wanted));
    let found = run(tool("blkid").args(["-p", "-o", "export"]).arg(&disk.device));
    assert!(found.contains("LABEL=TEST"), "{found}");
}

#[test]
fn root_everything_that_speaks_against_a_disk_is_said_at_once_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Loop::used(dir.path(), 32 * MIB);
    let image = image(dir.path());
    // Mounted, and too small.
    run(tool("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk.device));
    let before = fs::read(&disk.file).unwrap();
    let script = "mkdir \"$2.mnt\" && mount -o ro,noload \"$1\" \"$2.mnt\" && exec \"$3\" write \"$2\" \"$1\" --yes";
    let outcome = Outcome::of(&mut in_own_mounts(script, &[&disk.device, &image, binary()]));
    let device = disk.device.display();
    outcome.fails(
        code::USER,
        &[
            &format!("nothing was written to {device}"),
            "has 33554432 bytes and the image 67108864, 32.0 MiB more",
            &format!("{device} is mounted on {}.mnt", image.display()),
        ],
    );
    let small = dir.path().join("small.iso");
    let nothing = dir.path().join("node.img.mnt");
    run(tool("xorriso").args(["-as", "mkisofs", "-quiet", "-V", "S", "-o"]).arg(&small).arg(nothing));
    Outcome::of(&mut write(&small, &disk.device)).fails(code::USER, &["nobody can be asked whether", "--yes"]);
    // Who has a disk for himself, as a filesystem or a RAID does, in whatever namespace, is not overwritten.
    let exclusive = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
    let owner = rustix::fs::open(&disk.device, exclusive, rustix::fs::Mode::empty()).unwrap();
    Outcome::of(write(&small, &disk.device).arg("--yes")).fails(code::ENVIRONMENT, &["something uses the disk"]);
    drop(owner);
    run(tool("blockdev").arg("--setro").arg(&disk.device));
    let outcome = Outcome::of(write(&small, &disk.device).arg("--yes"));
    run(tool("blockdev").arg("--setrw").arg(&disk.device));
    outcome.fails(code::USER, &["is read-only"]);
    assert!(fs::read(&disk.file).unwrap() == before, "a refused disk was written to");
}

#[test]
fn root_on_a_terminal_the_very_disk_has_to_be_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Loop::used(dir.path(), 80 * MIB);
    let image = image(dir.path());
    let name = disk.device.file_name().unwrap().to_str().unwrap();
    let answer = |text: &str| {
        // script(1) is a terminal for the command; --return hands its exit code on.
        let command = format!("{} write {} {}", binary().display(), image.display(), disk.device.display());
        let mut script = tool("script");
        script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = answer("yes");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("type its name ({name})")) && said.contains("nothing was written"), "{said}");
    assert!(fs::read(&disk.file).unwrap().iter().all(|byte| *byte == 0xee));
    let (code, said) = answer(name);
    assert_eq!(code, Some(0), "{said}");
    assert_ne!(fs::read(&disk.file).unwrap()[512], 0xee);
}

#[test]
fn a_file_is_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (image, target) = (image(dir.path()), dir.path().join("target"));
    fs::write(&target, "precious").unwrap();
    let outcome = Outcome::of(write(&image, &target).arg("--yes"));
    outcome.fails(code::USER, &["is not a disk (a block device)", "lsblk"]);
    Outcome::of(write(&target, &dir.path().join("none")).arg("--yes"))
        .fails(code::USER, &["there is no ", "has no partition table and is no ISO 9660 volume"]);
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

// ---- Serving ----

/// `imgbuild serve` on the loopback interface, until it is dropped.
struct Serving(std::process::Child);

impl Serving {
    fn start(folder: &Path, boot_file: &Path, port: u16) -> Self {
        assert!(rustix::process::geteuid().is_root(), "ports below 1024 need root; `-- --skip root_` leaves this out");
        let mut command = Command::new(binary());
        command.arg("serve").arg(folder).args(["--interface", "lo", "--http-port", &port.to_string(), "--boot-file"]);
        let mut child = command.arg(boot_file).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let first = lines.next().expect("it says something").unwrap();
        assert!(first.contains(&format!("at http://127.0.0.1:{port}/ and by TFTP")), "{first}");
        // What it says later is read, lest it wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn root_other_peoples_clients_get_what_a_folder_holds_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("pxe");
    fs::create_dir_all(folder.join("nodes")).unwrap();
    let large: Vec<u8> = (0..3_000_001u32).map(|i| (i / 5) as u8).collect();
    fs::write(folder.join("nodes/a.cpio"), &large).unwrap();
    fs::write(dir.path().join("secret"), "outside").unwrap();
    let boot_file = dir.path().join("undionly.kpxe");
    fs::write(&boot_file, vec![9; 70_000]).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _serving = Serving::start(&folder, &boot_file, port);
    let out = dir.path().join("out");
    let curl = |arguments: &[&str]| {
        _ = fs::remove_file(&out);
        let output = tool("curl")
            .args(["-sS", "-f", "--noproxy", "*", "--path-as-is", "-o"])
            .arg(&out)
            .args(arguments)
            .output()
            .unwrap();
        output.status.success().then(|| fs::read(&out).unwrap_or_default())
    };
    let http = format!("http://127.0.0.1:{port}");
    assert!(curl(&[&format!("{http}/nodes/a.cpio")]).unwrap() == large);
    assert!(curl(&[&format!("{http}/undionly.kpxe")]).unwrap() == vec![9; 70_000]);
    assert_eq!(curl(&[&format!("{http}/../secret")]), None);
    // curl asks for sizes of file and block, tftp-hpa for nothing: 512 bytes at a time.
    assert!(curl(&["--tftp-blksize", "1400", "tftp://127.0.0.1/nodes/a.cpio"]).unwrap() == large);
    assert_eq!(curl(&["tftp://127.0.0.1/../secret"]), None);
    let mut tftp = tool("tftp");
    run(tftp.args(["-m", "binary", "127.0.0.1", "-c", "get", "undionly.kpxe"]).arg(&out));
    assert!(fs::read(&out).unwrap() == vec![9; 70_000]);

    // Firmware of a BIOS asks the proxy on its own port.
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let mut packet = vec![0; 240];
    packet[..3].copy_from_slice(&[1, 1, 6]);
    packet[236..].copy_from_slice(&[99, 130, 83, 99]);
    packet.extend_from_slice(b"\x35\x01\x03\x3c\x09PXEClient\x5d\x02\x00\x00\xff");
    client.send_to(&packet, "127.0.0.1:4011").unwrap();
    let mut answer = [0; 1500];
    let len = client.recv(&mut answer).unwrap();
    assert!(answer[108..len].starts_with(b"undionly.kpxe\0"));
    assert_eq!(answer[16..20], [0; 4], "an address was handed out");

    // A second one finds the ports taken, and says which.
    let mut second = Command::new(binary());
    second.arg("serve").arg(&folder).args(["--interface", "lo", "--http-port", &port.to_string()]);
    Outcome::of(&mut second)
        .fails(code::ENVIRONMENT, &[&format!("TCP port {port}"), "UDP port 69", "UDP port 67", "UDP port 4011"]);
}

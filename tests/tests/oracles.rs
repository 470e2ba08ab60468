// SPDX-License-Identifier: MIT OR Apache-2.0

//! The built image, judged by other people's tools. A tool that is missing fails its test and names its package.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use imgbuild_tests::build::{binary, folder, lab};
use imgbuild_tests::cli::{Outcome, files_below};
use imgbuild_tests::disk::{boot_entries, entry_value, extract, partition, partitions, read_fat};
use imgbuild_tests::tool::{cloud_init, python, run, run_bytes, tool};
use serde_json::Value;

/// The image's partitions as files, taken out once.
fn part(name: &str) -> PathBuf {
    static PARTS: OnceLock<PathBuf> = OnceLock::new();
    let parts = PARTS.get_or_init(|| {
        let parts = folder().join("partitions");
        fs::create_dir_all(&parts).unwrap();
        for name in ["ESP", "root-a", "payload-a", "CIDATA"] {
            extract(&lab().image, name, &parts.join(name));
        }
        parts
    });
    parts.join(name)
}

/// The payload as files.
fn payload() -> &'static Path {
    static PAYLOAD: OnceLock<PathBuf> = OnceLock::new();
    PAYLOAD.get_or_init(|| {
        let target = folder().join("payload");
        run(tool("unsquashfs").args(["-quiet", "-no-progress", "-force", "-dest"]).arg(&target).arg(part("payload-a")));
        target
    })
}

/// The seed's `user-data`, as PyYAML reads it.
fn user_data() -> &'static Value {
    static USER_DATA: OnceLock<Value> = OnceLock::new();
    USER_DATA.get_or_init(|| {
        let file = folder().join("user-data");
        fs::write(&file, read_fat(&lab().image, "CIDATA", "user-data")).unwrap();
        let value = pyyaml(&file);
        fs::remove_file(file).unwrap();
        value
    })
}

/// Reads a YAML file, YAML 1.1 as in Kubernetes' Go libraries, with a reader that is not ours.
fn pyyaml(path: &Path) -> Value {
    let script = "import json, sys, yaml\n\
                  documents = [d for d in yaml.safe_load_all(open(sys.argv[1])) if d is not None]\n\
                  json.dump(documents[0] if len(documents) == 1 else documents, sys.stdout, default=str)";
    let json = run(python(&["yaml=python3-yaml"]).args(["-c", script]).arg(path));
    serde_json::from_str(&json).unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

// ---- Disk ----

#[test]
fn built_lab_sgdisk_finds_no_problem_with_the_partition_table() {
    let verdict = run(tool("sgdisk").arg("-v").arg(&lab().image));
    assert!(verdict.contains("No problems found"), "{verdict}");
    let table = run(tool("sgdisk").arg("-p").arg(&lab().image));
    let names: Vec<String> = partitions(&lab().image).into_iter().map(|p| p.name).collect();
    assert_eq!(names, ["ESP", "root-a", "root-b", "payload-a", "payload-b", "CIDATA", "data"], "{table}");
    assert!(names.iter().all(|name| table.contains(name.as_str())), "{table}");
    for (number, kind) in [
        (1, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
        (2, "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"),
        (6, "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"),
    ] {
        let info = run(tool("sgdisk").args(["-i", &number.to_string()]).arg(&lab().image));
        assert!(info.contains(kind), "partition {number} is not of type {kind}:\n{info}");
    }
}

#[test]
fn built_lab_partitions_are_aligned_and_lie_apart() {
    let mut last = 0;
    for found in partitions(&lab().image) {
        assert_eq!(found.offset % (1 << 20), 0, "{found:?} is not aligned to 1 MiB");
        assert!(found.offset >= last, "{found:?} overlaps the one before");
        last = found.offset + found.len;
    }
    let size = fs::metadata(&lab().image).unwrap().len();
    // The backup table needs 33 sectors at the end.
    assert!(last + 33 * 512 <= size, "the last partition ends at {last} of {size}");
}

#[test]
fn built_lab_the_image_file_is_sparse() {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(&lab().image).unwrap();
    let used = meta.blocks() * 512;
    assert!(used < meta.len() / 2, "{used} of {} bytes are on disk", meta.len());
}

// ---- FAT ----

#[test]
fn built_lab_fsck_vfat_likes_both_filesystems() {
    for name in ["ESP", "CIDATA"] {
        // Exit code 1 stands for anything it would repair.
        run(tool("fsck.vfat").args(["-n", "-v"]).arg(part(name)));
    }
}

#[test]
fn built_lab_the_esp_has_what_the_firmware_and_systemd_boot_look_for() {
    let image = &lab().image;
    let boot = read_fat(image, "ESP", "EFI/BOOT/BOOTX64.EFI");
    assert_eq!(&boot[..2], b"MZ");
    let entries = boot_entries(image);
    let entry = &entries[0];
    // The boot counter: three tries.
    assert!(entry.ends_with("+3.conf"), "{entry}");
    let entry = text(read_fat(image, "ESP", entry));
    for key in ["linux", "initrd"] {
        assert!(!read_fat(image, "ESP", entry_value(&entry, key).trim_start_matches('/')).is_empty());
    }
    let guid = run(tool("sgdisk").arg("-p").arg(image));
    let guid = guid.lines().find_map(|line| line.strip_prefix("Disk identifier (GUID): ")).unwrap().to_lowercase();
    let options = entry_value(&entry, "options").to_lowercase();
    assert!(options.contains(&format!("imgbuild.disk={guid}")), "{options} does not name the disk {guid}");
}

// ---- squashfs ----

#[test]
fn built_lab_unsquashfs_reads_root_and_payload_whole() {
    for name in ["root-a", "payload-a"] {
        let statistics = run(tool("unsquashfs").arg("-s").arg(part(name)));
        assert!(statistics.contains("Compression zstd"), "{statistics}");
        // Reads every block of every file; as nobody it could not make devices.
        let target = folder().join("unsquashed");
        _ = fs::remove_dir_all(&target);
        run(tool("unsquashfs")
            .args(["-quiet", "-no-progress", "-strict-errors", "-dest"])
            .arg(&target)
            .arg(part(name)));
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn built_lab_the_root_is_usr_merged_and_owned_by_root_and_holds_no_secret() {
    let listing = run(tool("unsquashfs").arg("-lln").arg(part("root-a")));
    let has = |path: &str| listing.lines().any(|line| line.ends_with(path));
    for link in ["squashfs-root/bin -> usr/bin", "squashfs-root/lib -> usr/lib", "squashfs-root/sbin -> usr/sbin"] {
        assert!(has(link), "no {link}");
    }
    assert!(has("squashfs-root/usr/lib/systemd/systemd"));
    for line in
        listing.lines().filter(|line| line.contains("squashfs-root/etc/") || line.contains("squashfs-root/opt/"))
    {
        let path = line.split("squashfs-root").nth(1).unwrap();
        let public = path.contains("/ssl/") || path.contains("/apt/") || path.contains("ca-certificates");
        assert!(public || !(path.ends_with(".key") || path.contains("/pki/")), "a secret in the image: {path}");
    }
}

/// depmod makes the same indices from the same modules, and modprobe finds its way by ours.
#[test]
fn built_lab_kmod_agrees_with_the_module_indices() {
    let root = folder().join("modules");
    _ = fs::remove_dir_all(&root);
    let mut unsquashfs = tool("unsquashfs");
    run(unsquashfs.args(["-quiet", "-no-progress", "-dest"]).arg(&root).arg(part("root-a")).arg("usr/lib/modules"));
    std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
    let versions: Vec<_> =
        fs::read_dir(root.join("lib/modules")).unwrap().map(|dir| dir.unwrap().file_name()).collect();
    let [version] = &versions[..] else { panic!("one kernel wanted, but {versions:?}") };

    let needs = |text: &str| -> BTreeMap<String, BTreeSet<String>> {
        let lines = text.lines().filter(|line| line.starts_with("kernel/") && line.contains(".ko:"));
        let pairs = lines.filter_map(|line| line.split_once(':'));
        pairs.map(|(module, needs)| (module.into(), needs.split_whitespace().map(Into::into).collect())).collect()
    };
    let theirs = needs(&run(tool("depmod").args(["--dry-run", "--basedir"]).arg(&root).arg(version)));
    let ours = needs(&fs::read_to_string(root.join("lib/modules").join(version).join("modules.dep")).unwrap());
    assert!(theirs.len() > 1000, "depmod knows only {} modules", theirs.len());
    assert!(ours == theirs, "modules.dep differs from depmod's");

    for (asked, file) in
        [("br_netfilter", "br_netfilter.ko"), ("fs-ext4", "ext4.ko"), ("virtio:d00000001v00001AF4", "virtio_net.ko")]
    {
        let mut modprobe = tool("modprobe");
        modprobe.args(["--show-depends", "--dirname"]).arg(&root).arg("--set-version").arg(version);
        let list = run(modprobe.arg(asked));
        let last = list.lines().last().unwrap_or_default();
        assert!(last.trim_end().ends_with(file), "modprobe {asked}:\n{list}");
    }
    fs::remove_dir_all(&root).unwrap();
}

// ---- initramfs ----

#[test]
fn built_lab_cpio_reads_the_initramfs() {
    let archive = folder().join("initramfs.cpio.zst");
    fs::write(&archive, read_fat(&lab().image, "ESP", "imgbuild/a/initramfs.cpio.zst")).unwrap();
    let plain = folder().join("initramfs.cpio");
    run(tool("zstd").args(["--quiet", "--decompress", "--force", "-o"]).arg(&plain).arg(&archive));
    let listing = run(tool("cpio").args(["--extract", "--list", "--verbose", "--quiet", "--file"]).arg(&plain));
    let find = |path: &str| {
        let found = listing.lines().find(|line| line.split_whitespace().last() == Some(path));
        found.unwrap_or_else(|| panic!("no {path} in\n{listing}"))
    };
    assert!(find("init").starts_with("-rwx"), "{}", find("init"));
    assert!(find("dev/console").starts_with("crw"), "{}", find("dev/console"));
    for path in ["dev", "proc", "sys", "run", "sysroot"] {
        assert!(find(path).starts_with('d'), "{}", find(path));
    }
    // Every module's dependencies come before it, and every module is there.
    let extract = |path: &str| {
        text(run_bytes(tool("cpio").args(["--extract", "--to-stdout", "--quiet", "--file"]).arg(&plain).arg(path)))
    };
    let mut seen = BTreeSet::new();
    for line in extract("lib/modules/modules.list").lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, needs, when, _] = fields[..] else { panic!("`{line}` has not four fields") };
        assert!(matches!(when, "always" | "match"), "{line}");
        for need in needs.split(',').filter(|need| *need != "-") {
            assert!(seen.contains(need), "{name} comes before {need}, which it needs");
        }
        find(&format!("lib/modules/{name}.ko"));
        seen.insert(name.to_owned());
    }
    for name in ["virtio_blk", "squashfs", "overlay", "ext4"] {
        assert!(seen.contains(name), "no module {name}");
    }
}

// ---- Payload ----

#[test]
fn built_lab_skopeo_finds_every_image_of_the_payload() {
    let payload_json: Value = serde_json::from_slice(&fs::read(payload().join("payload.json")).unwrap()).unwrap();
    let images = payload_json["images"].as_array().unwrap();
    assert!(images.len() >= 5, "{images:?}");
    assert!(images.contains(&payload_json["sandbox_image"]));
    for name in images.iter().map(|name| name.as_str().unwrap()) {
        let reference = format!("oci:{}:{name}", payload().join("images").display());
        let inspected: Value = serde_json::from_str(&run(tool("skopeo").args(["inspect", &reference]))).unwrap();
        assert_eq!(inspected["Architecture"], "amd64", "{name}");
        // And every blob is what its digest says: a copy reads and checks them all.
        let target = folder().join("skopeo-copy");
        _ = fs::remove_dir_all(&target);
        run(tool("skopeo").args(["copy", "--quiet", &reference, &format!("dir:{}", target.display())]));
        fs::remove_dir_all(&target).unwrap();
    }
    for program in ["kubeadm", "kubelet", "kubectl", "crictl", "firstboot"] {
        let path = payload().join("bin").join(program);
        assert_eq!(&fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))[..4], b"\x7fELF");
    }
}

#[test]
fn built_lab_the_payloads_programs_say_their_version() {
    let version = run(Command::new(payload().join("bin/kubeadm")).args(["version", "-o", "short"]));
    let payload_json: Value = serde_json::from_slice(&fs::read(payload().join("payload.json")).unwrap()).unwrap();
    assert_eq!(version.trim(), payload_json["kubernetes"].as_str().unwrap());
}

// ---- Seed ----

#[test]
fn built_lab_cloud_init_reads_the_seed() {
    let seed = tempfile::tempdir().unwrap();
    for file in ["user-data", "meta-data", "network-config"] {
        fs::write(seed.path().join(file), read_fat(&lab().image, "CIDATA", file)).unwrap();
    }
    let label = run(tool("mlabel").args(["-s", "-i", part("CIDATA").to_str().unwrap(), "::"]));
    assert!(label.contains("CIDATA"), "{label}");
    let user_data = seed.path().join("user-data");
    run(cloud_init().args(["-m", "cloudinit.cmd.main", "schema", "--config-file"]).arg(&user_data));
    // The functions that the NoCloud datasource calls, on the files it would find.
    let script = r"
import json, sys, yaml
from cloudinit.util import pathprefix2dict, load_yaml, mergemanydict
from cloudinit.net.network_state import parse_net_config_data
found = pathprefix2dict(sys.argv[1] + '/', required=['user-data', 'meta-data'], optional=['network-config', 'vendor-data'])
meta = load_yaml(found['meta-data'])
state = parse_net_config_data(load_yaml(found['network-config']))
json.dump({'meta': meta, 'interfaces': list(state.iter_interfaces())}, sys.stdout, default=str)
";
    let read: Value = serde_json::from_str(&run(cloud_init().args(["-c", script]).arg(seed.path()))).unwrap();
    assert_eq!(read["meta"]["local-hostname"], "master-1");
    assert!(read["meta"]["instance-id"].as_str().unwrap().contains("-master-1-"), "{read}");
    assert!(read["interfaces"].to_string().contains("10.0.2.15"), "{read}");
}

#[test]
fn built_lab_openssl_verifies_every_certificate_against_its_ca_and_its_key() {
    let secrets: BTreeMap<String, String> =
        serde_json::from_value(user_data()["imgbuild"]["secrets"].clone()).expect("secrets in the seed");
    let dir = tempfile::tempdir().unwrap();
    let file = |path: &str| dir.path().join(path.trim_start_matches('/'));
    for (path, pem) in &secrets {
        fs::create_dir_all(file(path).parent().unwrap()).unwrap();
        fs::write(file(path), pem).unwrap();
    }
    const K8S: &str = "/etc/kubernetes/pki";
    const ETCD: &str = "/etc/etcd/pki";
    for path in [format!("{ETCD}/ca.key"), format!("{K8S}/etcd-external/ca.key")] {
        assert!(!secrets.contains_key(&path), "no node gets etcd's CA key, but {path} is there");
    }
    let openssl = |arguments: &[&str]| {
        let mut command = tool("openssl");
        command.args(arguments);
        command
    };
    let cas =
        [format!("{K8S}/ca"), format!("{K8S}/front-proxy-ca"), format!("{K8S}/etcd-external/ca"), format!("{ETCD}/ca")];
    let leaves = [
        (format!("{K8S}/etcd-external/client"), format!("{K8S}/etcd-external/ca"), "sslclient"),
        (format!("{ETCD}/server"), format!("{ETCD}/ca"), "sslserver"),
        (format!("{ETCD}/peer"), format!("{ETCD}/ca"), "sslserver"),
        (format!("{ETCD}/peer"), format!("{ETCD}/ca"), "sslclient"),
    ];
    for ca in &cas {
        let ca = file(&format!("{ca}.crt"));
        run(openssl(&["verify", "-x509_strict", "-CAfile"]).args([&ca, &ca]));
    }
    for (leaf, ca, purpose) in &leaves {
        let (leaf, ca) = (file(&format!("{leaf}.crt")), file(&format!("{ca}.crt")));
        run(openssl(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile"]).args([&ca, &leaf]));
    }
    // Every certificate whose key is in the seed belongs to that key.
    for path in secrets.keys().filter_map(|path| path.strip_suffix(".key")) {
        let (key, certificate, public) =
            (file(&format!("{path}.key")), file(&format!("{path}.crt")), file(&format!("{path}.pub")));
        let of_key = run(openssl(&["pkey", "-pubout", "-in"]).arg(&key));
        let other = if certificate.exists() {
            run(openssl(&["x509", "-noout", "-pubkey", "-in"]).arg(&certificate))
        } else {
            fs::read_to_string(&public).unwrap_or_else(|_| panic!("{path}.key is alone"))
        };
        assert_eq!(of_key.trim(), other.trim(), "{path}");
    }
    // kubeadm's service-account key has to be one pair.
    assert!(secrets.contains_key(&format!("{K8S}/sa.key")) && secrets.contains_key(&format!("{K8S}/sa.pub")));
    // Every certificate that is in the seed was looked at.
    let known: BTreeSet<String> =
        cas.iter().chain(leaves.iter().map(|(leaf, ..)| leaf)).map(|path| format!("{path}.crt")).collect();
    let found: BTreeSet<String> = secrets.keys().filter(|path| path.ends_with(".crt")).cloned().collect();
    assert_eq!(found, known);
}

// ---- Rendered files ----

/// YAML 1.1 readers take `no`, `on` or `12:30` for something else than a string, YAML 1.2 readers don't. When both read
/// the same from a file, nothing in it is ambiguous.
#[test]
fn built_lab_every_rendered_yaml_reads_the_same_in_yaml_1_1_and_1_2() {
    let out = tempfile::tempdir().unwrap();
    Outcome::of(Command::new(binary()).args(["render", "--profile", "master-1", "--cluster"]).args([
        &lab().cluster,
        Path::new("--out"),
        out.path(),
    ]))
    .succeeds();
    let files = files_below(out.path());
    let mut seen = 0;
    for path in files.iter().map(|file| out.path().join(file)) {
        let is_yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml")
            || ["user-data", "meta-data", "network-config"].iter().any(|name| path.ends_with(name));
        if is_yaml {
            let text = fs::read_to_string(&path).unwrap();
            let ours: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            let ours: Vec<Value> = ours.into_iter().filter(|document| !document.is_null()).collect();
            let ours = if ours.len() == 1 { ours[0].clone() } else { Value::Array(ours) };
            assert_eq!(pyyaml(&path), ours, "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 3, "only {seen} YAML files in {files:?}");
}

#[test]
fn built_lab_the_seed_on_the_disk_reads_the_same_in_yaml_1_1_and_1_2() {
    let ours: Value = serde_saphyr::from_str(&text(read_fat(&lab().image, "CIDATA", "user-data"))).unwrap();
    assert!(*user_data() == ours, "the two readers differ");
    assert_eq!(ours["imgbuild"]["profile"]["node"]["name"], "master-1");
}

#[test]
fn built_lab_inspect_shows_what_the_image_is() {
    let outcome = Outcome::of(Command::new(binary()).arg("inspect").arg(&lab().image));
    outcome.succeeds();
    for part in ["master-1", "root-a", "payload-a", "CIDATA"] {
        assert!(outcome.stdout.contains(part), "no {part} in\n{outcome}");
    }
    assert!(!outcome.stdout.contains("PRIVATE KEY"), "secrets are not for terminals");
    assert!(partition(&lab().image, "data").len > 0);
}

// ---- Other forms of the disk ----

#[test]
fn built_lab_qemu_finds_the_same_disk_in_the_qcow2() {
    let out = tempfile::tempdir_in(folder()).unwrap();
    let build = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["build", "--profile", "master-1", "--offline", "--cluster"]).arg(&lab().cluster);
        Outcome::of(command.arg("--out").arg(out.path()).args(arguments)).succeeds();
    };
    build(&["--output", "qcow2"]);
    let qcow2 = out.path().join("master-1.qcow2");
    let check = run(tool("qemu-img").args(["check", "-f", "qcow2"]).arg(&qcow2));
    assert!(check.contains("No errors were found"), "{check}");
    let compare = run(tool("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2"]).arg(&lab().image).arg(&qcow2));
    assert!(compare.contains("Images are identical"), "{compare}");
    let info: Value =
        serde_json::from_str(&run(tool("qemu-img").args(["info", "--output", "json"]).arg(&qcow2))).unwrap();
    assert_eq!(info["virtual-size"], fs::metadata(&lab().image).unwrap().len());
    let used = fs::metadata(&qcow2).unwrap().len();
    assert!(used < fs::metadata(&lab().image).unwrap().len() / 2, "{used} bytes");
    fs::remove_file(qcow2).unwrap();

    // Another size: the table reaches to its end, and what lies on it is the same.
    build(&["--output", "disk", "--disk-size", "24GiB"]);
    let raw = out.path().join("master-1.img");
    assert_eq!(fs::metadata(&raw).unwrap().len(), 24 << 30);
    assert!(run(tool("sgdisk").arg("-v").arg(&raw)).contains("No problems found"));
    assert!(partition(&raw, "data").len > partition(&lab().image, "data").len);
    assert_eq!(read_fat(&raw, "CIDATA", "meta-data"), read_fat(&lab().image, "CIDATA", "meta-data"));
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What lies beside the lab's image, judged by CycloneDX' own library, coreutils and minisign, and held against the
//! image itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use imgbuild_tests::build::{binary, bundle, copy_cluster, folder, lab, repository, users_store};
use imgbuild_tests::cli::{Outcome, code, files_below, sha256};
use imgbuild_tests::disk::extract;
use imgbuild_tests::tool::{command, cyclonedx, run, tool};
use serde_json::Value;

fn out() -> &'static Path {
    lab().image.parent().unwrap()
}

/// The bill of materials of the disk image: a later build of the bundle, in the same folder, has another.
fn bom() -> &'static Value {
    static BOM: OnceLock<Value> = OnceLock::new();
    BOM.get_or_init(|| serde_json::from_slice(&fs::read(of_disk().join("lab.cdx.json")).unwrap()).unwrap())
}

/// A folder with what a build of the image leaves.
fn of_disk() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let out = folder().join("provenance");
        build(&lab().cluster, &out, &["--output", "disk,qcow2"]).succeeds();
        out
    })
}

fn build(cluster: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut command = Command::new(binary());
    command.args(["build", "--offline", "--profile", "master-1", "--cluster"]).arg(cluster).arg("--out").arg(out);
    Outcome::of(command.args(more).current_dir(folder()))
}

/// The components in `value` whose reference begins so, at any depth.
fn below<'a>(value: &'a Value, start: &str) -> Vec<&'a Value> {
    let mut found = Vec::new();
    for component in value["components"].as_array().into_iter().flatten() {
        if component["bom-ref"].as_str().is_some_and(|reference| reference.starts_with(start)) {
            found.push(component);
        }
        found.extend(below(component, start));
    }
    found
}

fn text<'a>(component: &'a Value, key: &str) -> &'a str {
    component[key].as_str().unwrap_or_else(|| panic!("no {key} in {component}"))
}

fn digest(component: &Value) -> &str {
    component["hashes"][0]["content"].as_str().unwrap_or_else(|| panic!("no hash of {component}"))
}

/// A partition of the image as a file, and unpacked.
struct Part {
    image: PathBuf,
    files: PathBuf,
}

impl Part {
    fn of(label: &str) -> Self {
        let at = |name: &str| folder().join(format!("provenance-{label}{name}"));
        let part = Self { image: at(".squashfs"), files: at("") };
        let _ = fs::remove_dir_all(&part.files);
        extract(&of_disk().join("master-1.img"), label, &part.image);
        let mut command = tool("unsquashfs");
        run(command.args(["-quiet", "-no-progress", "-no-xattrs", "-dest"]).arg(&part.files).arg(&part.image));
        part
    }

    fn root() -> &'static Self {
        static ROOT: OnceLock<Part> = OnceLock::new();
        ROOT.get_or_init(|| Self::of("root-a"))
    }

    fn payload() -> &'static Self {
        static PAYLOAD: OnceLock<Part> = OnceLock::new();
        PAYLOAD.get_or_init(|| Self::of("payload-a"))
    }
}

#[test]
fn built_lab_bill_of_materials_is_valid_cyclonedx() {
    let script = r"
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
import json
text = open(sys.argv[1]).read()
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
if error:
    sys.exit(str(error)[:2000])
def components(value):
    for component in value.get('components', []):
        yield component
        yield from components(component)
        yield from components({'components': component.get('pedigree', {}).get('ancestors', [])})
purls = 0
for component in components(json.loads(text)):
    if 'purl' in component:
        purls += 1
        url = PackageURL.from_string(component['purl'])
        wanted = component['name'].split('/')[-1].lower()
        assert url.name == wanted, component
        if url.type == 'deb':
            assert (url.namespace, url.version) == ('debian', component['version']), component
        if url.type == 'oci':
            assert url.version == 'sha256:' + component['hashes'][0]['content'], component
        assert url.to_string() == component['purl'], component
print(purls)
";
    for bom in [of_disk().join("lab.cdx.json"), {
        bundle();
        out().join("lab.cdx.json")
    }] {
        let purls: usize = run(cyclonedx().args(["-c", script]).arg(&bom)).trim().parse().unwrap();
        assert!(purls > 20, "{purls} package URLs in {}", bom.display());
    }
}

/// Debian's policy has a copyright file, or a link to another package's, in /usr/share/doc of each package: that tells
/// what is in the root. What each is, dpkg-deb tells of the file with that SHA-256.
#[test]
fn built_lab_bill_of_materials_has_every_package_of_the_root_and_nothing_more() {
    let doc = Part::root().files.join("usr/share/doc");
    let there: BTreeSet<String> = fs::read_dir(&doc)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_symlink() || entry.path().join("copyright").symlink_metadata().is_ok())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let packages: Vec<&Value> =
        below(bom(), "root/").into_iter().filter(|component| component["purl"].is_string()).collect();
    let said: BTreeSet<String> = packages.iter().map(|package| text(package, "name").to_owned()).collect();
    assert_eq!(said.len(), packages.len(), "a package is there twice");
    assert_eq!(said, there);
    for package in packages {
        let hash = digest(package);
        let deb = users_store().join("objects").join(&hash[..2]).join(&hash[2..]);
        let fields =
            run(tool("dpkg-deb").args(["--show", "--showformat", "${Package} ${Version} ${Architecture}"]).arg(&deb));
        let [name, version, architecture] = fields.split(' ').collect::<Vec<_>>()[..] else { panic!("{fields}") };
        assert_eq!((name, version), (text(package, "name"), text(package, "version")));
        assert!(text(package, "purl").contains(&format!("?arch={architecture}&")), "{package}");
        assert_eq!(sha256(&deb), hash);
        // dpkg-deb prints the field only where it is another name or another version.
        let source =
            run(tool("dpkg-deb").args(["--show", "--showformat", "${source:Package} ${source:Version}"]).arg(&deb));
        let ancestor = &package["pedigree"]["ancestors"][0];
        assert_eq!(source, format!("{} {}", text(ancestor, "name"), text(ancestor, "version")));
        // A licence is one that the copyright file names.
        let licenses = package["licenses"].as_array().into_iter().flatten();
        for license in licenses.map(|choice| text(&choice["license"], "name")) {
            let path = doc.join(name).join("copyright");
            let copyright = fs::read_to_string(&path).unwrap();
            let named = copyright.lines().any(|line| line.strip_prefix("License:").map(str::trim) == Some(license));
            assert!(named && copyright.contains("copyright-format/1.0"), "{license} in {}", path.display());
        }
    }
}

#[test]
fn built_lab_bill_of_materials_has_programs_and_images_as_the_payload_has_them() {
    let payload = &Part::payload().files;
    let programs = below(bom(), "payload/opt/imgbuild/bin/");
    let said: BTreeMap<String, String> =
        programs.iter().map(|program| (text(program, "name").to_owned(), digest(program).to_owned())).collect();
    let there: BTreeMap<String, String> = files_below(&payload.join("bin"))
        .into_iter()
        .map(|path| (path.display().to_string(), sha256(&payload.join("bin").join(path))))
        .collect();
    assert_eq!(said, there);
    let kubelet = programs.iter().find(|program| program["name"] == "kubelet").unwrap();
    let source = &kubelet["pedigree"]["ancestors"][0];
    assert_eq!(text(source, "name"), "kubernetes");
    // Debian's version of it is 1.20.5+really1.20.2.
    assert!(text(source, "version").contains("1.20.2"), "{source}");

    let index: Value = serde_json::from_slice(&fs::read(payload.join("images/index.json")).unwrap()).unwrap();
    let there: BTreeMap<String, String> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| {
            let name = image["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap();
            (name.to_owned(), image["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned())
        })
        .collect();
    let images = below(bom(), "image/").into_iter().filter(|component| component["type"] == "container");
    let said: BTreeMap<String, String> = images
        .map(|image| (format!("{}:{}", text(image, "name"), text(image, "version")), digest(image).to_owned()))
        .collect();
    assert_eq!(said, there);
    let inside: BTreeSet<&str> =
        below(bom(), "image/k8s.gcr.io/kube-proxy:v1.20.2/").into_iter().map(|one| text(one, "name")).collect();
    for name in ["kube-proxy", "iptables", "conntrack", "libc6"] {
        assert!(inside.contains(name), "{name} in {inside:?}");
    }
}

#[test]
fn built_lab_list_and_manifest_say_what_was_built() {
    let out = of_disk();
    run(command("sha256sum").args(["--check", "--strict", "--quiet", "lab.SHA256SUMS"]).current_dir(out));
    let list = fs::read_to_string(out.join("lab.SHA256SUMS")).unwrap();
    let names: Vec<&str> = list.lines().map(|line| &line[66..]).collect();
    assert_eq!(names, ["lab.cdx.json", "lab.manifest.json", "master-1.qcow2"]);
    let manifest: Value = serde_json::from_slice(&fs::read(out.join("lab.manifest.json")).unwrap()).unwrap();
    for (key, path) in
        [("cluster_file", lab().cluster.join("cluster.toml")), ("lock", lab().cluster.join("imgbuild.lock"))]
    {
        assert_eq!(manifest[key], sha256(&path), "{key}");
    }
    assert_eq!(manifest["sbom"]["sha256"], sha256(&out.join("lab.cdx.json")));
    // The squashfs of the payload is as long as it says at 40 (format of squashfs 4.0), and the partition begins with
    // it.
    let bytes = fs::read(&Part::payload().image).unwrap();
    let used = usize::try_from(u64::from_le_bytes(bytes[40..48].try_into().unwrap())).unwrap();
    let image = folder().join("provenance-payload.squashfs");
    fs::write(&image, &bytes[..used.next_multiple_of(4096)]).unwrap();
    assert_eq!(manifest["images"]["pods"]["payload"], sha256(&image));
    fs::remove_file(image).unwrap();
    Outcome::of(Command::new(binary()).arg("verify").arg(out.join("lab.SHA256SUMS"))).succeeds();
    // The same in another folder, and no path of this machine in it.
    let other = tempfile::tempdir_in(folder()).unwrap();
    build(&lab().cluster, other.path(), &["--output", "disk,qcow2"]).succeeds();
    for name in ["lab.cdx.json", "lab.manifest.json", "lab.SHA256SUMS"] {
        let text = fs::read_to_string(out.join(name)).unwrap();
        assert_eq!(text, fs::read_to_string(other.path().join(name)).unwrap(), "{name}");
        assert!(!text.contains(folder().to_str().unwrap()), "{name}");
    }
}

/// A cluster folder whose file names a key that minisign made, and that key's files.
fn with_key(room: &Path) -> (PathBuf, PathBuf, String) {
    let (public, secret) = (room.join("minisign.pub"), room.join("minisign.key"));
    run(tool("minisign").args(["-G", "-W", "-p"]).arg(&public).arg("-s").arg(&secret));
    let key = fs::read_to_string(&public).unwrap().lines().nth(1).unwrap().to_owned();
    let cluster = room.join("cluster");
    run(Command::new("cp").arg("--archive").args([&lab().cluster, &cluster]));
    let file = cluster.join("cluster.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("name = \"lab\"\n", &format!("name = \"lab\"\nsigning_key = \"{key}\"\n"), 1))
        .unwrap();
    (cluster, secret, key)
}

#[test]
fn built_lab_outputs_are_signed_for_minisign() {
    let room = tempfile::tempdir_in(folder()).unwrap();
    let (cluster, secret, key) = with_key(room.path());
    let out = room.path().join("out");
    let outputs = ["--output", "bundle,iso,pxe"];
    // Not without the key, and not with another one.
    build(&cluster, &out, &outputs).fails(code::USER, &["signing_key", "--sign minisign.key"]);
    let other = room.path().join("other.key");
    run(tool("minisign").args(["-G", "-W", "-p"]).arg(room.path().join("other.pub")).arg("-s").arg(&other));
    let sign = |key: &Path| [&outputs[..], &["--sign", key.to_str().unwrap()]].concat().join(" ");
    let with = |key: &Path| build(&cluster, &out, &sign(key).split(' ').collect::<Vec<_>>());
    with(&other).fails(code::USER, &["is the key", "sign with that key"]);
    assert!(!out.exists(), "nothing was built");
    // The outputs that carry nothing need no key.
    build(&cluster, &room.path().join("disk"), &["--output", "disk"]).succeeds();

    with(&secret).succeeds();
    let verify = |list: &Path| {
        run(tool("minisign").arg("-V").args(["-P", &key, "-m"]).arg(list));
    };
    verify(&out.join("lab.SHA256SUMS"));
    verify(&out.join("lab-pxe/SHA256SUMS"));
    run(command("sha256sum").args(["--check", "--strict", "--quiet", "lab.SHA256SUMS"]).current_dir(&out));
    run(command("tar").args(["--zstd", "-xf"]).arg(out.join("imgbuild-lab-amd64.tar.zst")).current_dir(room.path()));
    verify(&room.path().join("imgbuild-lab/SHA256SUMS.amd64"));
    let medium = room.path().join("medium");
    run(tool("xorriso")
        .args(["-osirrox", "on", "-indev"])
        .arg(out.join("lab.iso"))
        .args(["-extract", "/imgbuild"])
        .arg(&medium));
    verify(&medium.join("SHA256SUMS"));
    run(command("sha256sum").args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(&medium));
    // The initramfs has the key.
    // zstd does not take the padding behind it, and says so after it has written everything.
    let script = "zstd -dc < \"$1\" 2>/dev/null | cpio -i --quiet --to-stdout etc/imgbuild/signing.pub";
    let listed = run(command("sh").args(["-ec", script, "sh"]).arg(out.join("lab-pxe/initramfs.cpio.zst")));
    assert_eq!(listed.lines().nth(1), Some(key.as_str()));

    let imgbuild =
        |output: &Path, key: &str| Outcome::of(Command::new(binary()).arg("verify").arg(output).args(["--key", key]));
    let lists = ["imgbuild-lab-amd64.tar.zst", "lab.iso", "lab-pxe", "lab.SHA256SUMS"].map(|name| out.join(name));
    let stranger = fs::read_to_string(room.path().join("other.pub")).unwrap();
    let stranger = stranger.lines().nth(1).unwrap();
    for output in &lists {
        imgbuild(output, &key).succeeds();
        imgbuild(output, stranger).fails(code::VERIFICATION, &["is not signed by", "another key"]);
    }
    let file = Command::new(binary())
        .arg("verify")
        .arg(&lists[2])
        .arg("--key-file")
        .arg(room.path().join("minisign.pub"))
        .output();
    assert!(file.unwrap().status.success());
    // One flipped bit of a list.
    let list = out.join("lab-pxe/SHA256SUMS");
    let mut bytes = fs::read(&list).unwrap();
    bytes[3] ^= 1;
    fs::write(&list, bytes).unwrap();
    imgbuild(&lists[2], &key).fails(code::VERIFICATION, &["SHA256SUMS: is not signed by"]);
    for outcome in [with(&secret), imgbuild(&lists[1], &key)] {
        let line = fs::read_to_string(&secret).unwrap().lines().nth(1).unwrap().to_owned();
        assert!(!outcome.stderr.contains(&line[30..60]), "the secret key is shown");
    }
}

#[test]
fn a_key_with_a_password_is_opened_by_it() {
    let room = tempfile::tempdir_in(folder()).unwrap();
    copy_cluster(&repository().join("profiles/lab-split"), &room.path().join("lab"));
    let (public, secret, typed) = (room.path().join("a.pub"), room.path().join("a.key"), room.path().join("typed"));
    // Asked for twice, on standard input where that is no terminal.
    fs::write(&typed, "correct horse\ncorrect horse\n").unwrap();
    run(tool("minisign").args(["-G", "-p"]).arg(&public).arg("-s").arg(&secret).stdin(fs::File::open(typed).unwrap()));
    let with = |password: &str| {
        let mut command = Command::new(binary());
        command.args(["build", "--offline", "--all", "--cluster", "lab", "--store", "store", "--sign", "a.key"]);
        command.env("IMGBUILD_SIGN_PASSWORD", password).env("IMGBUILD_MIRROR", "http://127.0.0.1:1/none");
        Outcome::of(command.current_dir(room.path()))
    };
    let outcome = with("wrong horse");
    outcome.fails(code::USER, &["a.key: the password is wrong"]);
    // With the right one it goes on, and finds that there is no lock.
    let outcome = with("correct horse");
    outcome.fails(code::USER, &["imgbuild.lock is not there"]);
    for said in ["horse", "RWRTY0Iy"] {
        assert!(!outcome.stderr.contains(said), "{outcome}");
    }
}

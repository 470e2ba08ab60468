// SPDX-License-Identifier: MIT OR Apache-2.0

//! A small Debian archive with a signature, on a web server that can be told to misbehave.
//!
//! Packages and index are written here, byte by byte; the signature is by GnuPG. So the builder's reader is tested
//! against others' formats, not against its own writer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use crate::tool::{run, run_bytes, tool};

/// Name of the only suite.
pub const SUITE: &str = "testing-suite";

/// A package to be.
#[derive(Debug, Clone)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Path in the archive exactly as given, to content.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Package {
    /// A package of one file, of `size` bytes that do not compress.
    pub fn new(name: &str, size: usize) -> Self {
        // xorshift: any fixed noise will do.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let noise = (0..size).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let files = vec![(format!("./usr/share/{name}/data"), noise.collect())];
        Self { name: name.to_owned(), version: "1.0-1".to_owned(), files }
    }

    /// The same in another version.
    pub fn version(self, version: &str) -> Self {
        Self { version: version.to_owned(), ..self }
    }

    /// The `.deb`.
    fn bytes(&self) -> Vec<u8> {
        let control = format!(
            "Package: {}\nVersion: {}\nArchitecture: amd64\nMaintainer: Nobody <nobody@example.org>\n\
             Description: for tests\n",
            self.name, self.version
        );
        let control = tar_gz(&[("./control".to_owned(), control.into_bytes())]);
        let data = tar_gz(&self.files);
        let mut deb = b"!<arch>\n".to_vec();
        for (name, bytes) in
            [("debian-binary", b"2.0\n".as_slice()), ("control.tar.gz", &control), ("data.tar.gz", &data)]
        {
            writeln!(deb, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, "100644", bytes.len()).unwrap();
            deb.extend(bytes);
            if bytes.len() % 2 == 1 {
                deb.push(b'\n');
            }
        }
        deb
    }
}

fn tar_gz(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(vec![], Compression::fast()));
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        // Written as it is: `set_path` would refuse `..`.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        tar.append(&header, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// What the server does with one path instead of answering it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Promises the whole file and hangs up after half of it, every time.
    Truncate,
    /// Flips one bit in the middle.
    Corrupt,
    /// 404.
    Missing,
}

/// A running archive. Stops when dropped.
#[derive(Debug)]
pub struct Archive {
    /// Base URL, `http://127.0.0.1:1234/debian`.
    pub url: String,
    /// Public key that signed it, in binary form.
    pub keyring: PathBuf,
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
    /// GnuPG's folder.
    home: tempfile::TempDir,
}

#[derive(Debug, Default)]
struct Shared {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    faults: Mutex<BTreeMap<String, Fault>>,
    requests: Mutex<Vec<String>>,
}

impl Archive {
    /// Signs and serves an archive of `packages`.
    pub fn serve(packages: &[Package]) -> Self {
        let home = tempfile::Builder::new().prefix("gpg-").tempdir().unwrap();
        run(gpg(
            home.path(),
            &["--passphrase", "", "--quick-gen-key", "Archive <archive@example.org>", "rsa2048", "sign"],
        )
        .stderr(Stdio::null()));
        let keyring = home.path().join("keyring.gpg");
        fs::write(&keyring, run_bytes(gpg(home.path(), &["--export"]).stderr(Stdio::null()))).unwrap();
        let files = signed(home.path(), packages, "Sat, 01 Mar 2025 00:00:00 UTC");

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { files: Mutex::new(files), ..Shared::default() });
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&theirs);
                if Arc::strong_count(&shared) == 2 {
                    return;
                }
                // A client that hangs up is no matter for the test.
                std::thread::spawn(move || shared.answer(stream).ok());
            }
        });
        Self { url: format!("http://{address}/debian"), keyring, shared, address, home }
    }

    /// Has these packages now, and no others.
    pub fn publish(&self, packages: &[Package]) {
        *self.shared.files.lock().unwrap() = signed(self.home.path(), packages, "Sun, 02 Mar 2025 00:00:00 UTC");
    }

    /// From now on, requests whose path ends with `suffix` get `fault`.
    pub fn misbehave(&self, suffix: &str, fault: Fault) {
        self.shared.faults.lock().unwrap().insert(suffix.to_owned(), fault);
    }

    /// The server behaves again.
    pub fn behave(&self) {
        self.shared.faults.lock().unwrap().clear();
    }

    /// Paths asked for so far, relative to the base URL.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// A file of the archive.
    pub fn file(&self, path: &str) -> Vec<u8> {
        self.shared.files.lock().unwrap()[path].clone()
    }

    /// Replaces a file of the archive, behind the signature's back.
    pub fn replace(&self, path: &str, bytes: Vec<u8>) {
        self.shared.files.lock().unwrap().insert(path.to_owned(), bytes).expect("a file to replace");
    }
}

/// GnuPG with a folder of its own.
fn gpg(home: &Path, arguments: &[&str]) -> Command {
    let mut command = tool("gpg");
    command.args(["--homedir", home.to_str().unwrap(), "--batch", "--quiet", "--no-tty"]);
    command.args(arguments);
    command
}

/// The files of an archive with these packages, signed by the key in `home`.
fn signed(home: &Path, packages: &[Package], date: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut index = String::new();
    for package in packages {
        let deb = package.bytes();
        let path = format!("pool/main/{}_{}_amd64.deb", package.name, package.version);
        writeln!(
            index,
            "Package: {}\nVersion: {}\nArchitecture: amd64\nMaintainer: Nobody <nobody@example.org>\n\
             Description: for tests\nFilename: {path}\nSize: {}\nSHA256: {}\n",
            package.name,
            package.version,
            deb.len(),
            hex(&deb)
        )
        .unwrap();
        files.insert(path, deb);
    }
    let dist = format!("dists/{SUITE}");
    let plain = home.join("Packages");
    fs::write(&plain, &index).unwrap();
    let xz = run_bytes(tool("xz").arg("--stdout").arg(&plain));
    let mut gz = GzEncoder::new(vec![], Compression::fast());
    gz.write_all(index.as_bytes()).unwrap();
    let mut release = format!(
        "Origin: Test\nLabel: Test\nSuite: {SUITE}\nCodename: {SUITE}\nDate: {date}\n\
         Acquire-By-Hash: yes\nArchitectures: amd64\nComponents: main\nDescription: for tests\nSHA256:\n"
    );
    for (name, bytes) in [("Packages", index.into_bytes()), ("Packages.xz", xz), ("Packages.gz", gz.finish().unwrap())]
    {
        let folder = "main/binary-amd64";
        writeln!(release, " {} {} {folder}/{name}", hex(&bytes), bytes.len()).unwrap();
        files.insert(format!("{dist}/{folder}/by-hash/SHA256/{}", hex(&bytes)), bytes.clone());
        files.insert(format!("{dist}/{folder}/{name}"), bytes);
    }
    let unsigned = home.join("Release");
    fs::write(&unsigned, release).unwrap();
    let signed = run_bytes(gpg(home, &["--digest-algo", "SHA256", "--clearsign", "--output", "-"]).arg(&unsigned));
    files.insert(format!("{dist}/InRelease"), signed);
    files
}

impl Drop for Archive {
    fn drop(&mut self) {
        // Only the agent of this very folder.
        _ = Command::new("gpgconf").arg("--homedir").arg(self.home.path()).args(["--kill", "gpg-agent"]).status();
        // The last count tells the server to stop; a connection wakes it.
        self.shared = Arc::default();
        _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or("").trim_start_matches("/debian/").to_owned();
        let mut start = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            let header = header.to_ascii_lowercase();
            if let Some(range) = header.strip_prefix("range: bytes=") {
                start = range.trim().trim_end_matches('-').parse().unwrap_or(0);
            }
        }
        self.requests.lock().unwrap().push(path.clone());
        let fault = self.faults.lock().unwrap().iter().find(|(suffix, _)| path.ends_with(*suffix)).map(|(_, f)| *f);
        let found = self.files.lock().unwrap().get(&path).cloned();
        let Some(mut bytes) = found.filter(|_| fault != Some(Fault::Missing)) else {
            return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        };
        if fault == Some(Fault::Corrupt) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        let whole = bytes.len();
        let end = if fault == Some(Fault::Truncate) { whole / 2 } else { whole };
        let start = start.min(whole);
        let status = match start {
            0 => "200 OK".to_owned(),
            _ => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{whole}", whole.saturating_sub(1)),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", whole - start);
        stream.write_all(head.as_bytes())?;
        stream.write_all(&bytes[start.min(end)..end])
    }
}

/// A cluster file that takes `packages` from the archive's suite and nothing from anywhere else.
pub fn cluster_file(packages: &[&str]) -> String {
    format!(
        r#"schema = 1

[cluster]
name = "bad-input"

[kubernetes]
version = "1.20.2"
image_repository = "k8s.gcr.io"
pause_image = "k8s.gcr.io/pause:3.2"
dns = "none"

[containerd]
version = "1.6"

[network]
node_subnet = "10.0.2.0/24"
pod_subnets = ["10.200.0.0/16"]
service_subnets = ["10.201.0.0/16"]
plugin = "manifest"

[os]
distribution = "debian"
architecture = "amd64"
packages = {packages:?}

[[input]]
kind = "deb"
name = "debian"
suites = ["{SUITE}"]

[[node]]
name = "master-1"
roles = ["etcd", "master", "worker"]
address = "10.0.2.15"
"#
    )
}

/// The beginning of the file of a cluster with this name: one node of a current Kubernetes, and not yet what it is made of.
pub fn one_node(cluster: &str) -> String {
    format!(
        r#"schema = 1
[cluster]
name = "{cluster}"
[kubernetes]
version = "1.32.1"
image_repository = "registry.k8s.io"
pause_image = "registry.k8s.io/pause:3.10"
[containerd]
version = "2.1"
[network]
node_subnet = "10.0.2.0/24"
pod_subnets = ["10.200.0.0/16"]
service_subnets = ["10.201.0.0/16"]
plugin = "manifest"
[[node]]
name = "one"
roles = ["etcd", "master"]
address = "10.0.2.15"
"#
    )
}

/// Writes a cluster folder with [`cluster_file`] in it.
pub fn cluster_folder(folder: &Path, packages: &[&str]) -> PathBuf {
    let cluster = folder.join("cluster");
    fs::create_dir_all(&cluster).unwrap();
    fs::write(cluster.join("cluster.toml"), cluster_file(packages)).unwrap();
    cluster
}

/// The SHA-256 of some bytes, as hex.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(url: &str, path: &str, header: &str) -> Vec<u8> {
        let address = url.trim_start_matches("http://").split('/').next().unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET /debian/{path} HTTP/1.1\r\nHost: x\r\n{header}\r\n").unwrap();
        let mut answer = vec![];
        std::io::Read::read_to_end(&mut stream, &mut answer).unwrap();
        answer
    }

    #[test]
    fn gpg_and_dpkg_read_the_archive() {
        let archive = Archive::serve(&[Package::new("hello", 5000)]);
        let folder = tempfile::tempdir().unwrap();
        let release = folder.path().join("InRelease");
        fs::write(&release, archive.file(&format!("dists/{SUITE}/InRelease"))).unwrap();
        let home = folder.path().join("home");
        fs::create_dir(&home).unwrap();
        run(tool("gpg").args(["--quiet", "--no-default-keyring", "--homedir"]).args([
            &home,
            Path::new("--keyring"),
            &archive.keyring,
            Path::new("--verify"),
            &release,
        ]));
        let deb = folder.path().join("hello.deb");
        fs::write(&deb, archive.file("pool/main/hello_1.0-1_amd64.deb")).unwrap();
        let content = run(tool("dpkg-deb").arg("--contents").arg(&deb));
        assert!(content.contains("./usr/share/hello/data"), "{content}");
    }

    #[test]
    fn the_server_resumes_and_misbehaves() {
        let archive = Archive::serve(&[Package::new("hello", 5000)]);
        let path = "pool/main/hello_1.0-1_amd64.deb";
        let deb = archive.file(path);
        assert!(get(&archive.url, path, "").ends_with(&deb));
        let rest = get(&archive.url, path, "Range: bytes=100-\r\n");
        assert!(rest.starts_with(b"HTTP/1.1 206 ") && rest.ends_with(&deb[100..]));
        archive.misbehave(".deb", Fault::Truncate);
        assert!(get(&archive.url, path, "").ends_with(&deb[..deb.len() / 2]));
        archive.misbehave(".deb", Fault::Corrupt);
        assert!(!get(&archive.url, path, "").ends_with(&deb));
        archive.misbehave(".deb", Fault::Missing);
        assert!(get(&archive.url, path, "").starts_with(b"HTTP/1.1 404 "));
        archive.behave();
        assert!(get(&archive.url, path, "").ends_with(&deb));
        assert_eq!(archive.requests().len(), 6);
    }
}

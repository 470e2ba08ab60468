// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command line: what can be asked for, and how answers and errors look. No logic of its own.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use profiles::signing::PublicKey;

/// Build offline Kubernetes node images from one cluster file
///
/// Without a command, imgbuild builds: `imgbuild --profile master-1` writes out/master-1.img, a disk image that turns a bare
/// machine into that node of the cluster, with no network but its peers.
#[derive(Debug, Parser)]
#[command(name = "imgbuild", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do; `build` when nothing is said
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of every command
    #[command(flatten)]
    pub options: Options,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 the cluster file, a name or an argument is wrong; 2 a bug in imgbuild;
3 the surroundings failed (network, disk, permission); 4 something did not verify (signature, checksum, completeness);
5 `lock --check` found something newer";

/// A command.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Build the images of one node (--profile) or of all (--all)
    Build,
    /// Check the cluster file and say everything that is wrong with it
    Validate,
    /// Write imgbuild.lock: every input by version and sha256
    Lock(LockOptions),
    /// Download and verify every locked input into the store
    Fetch,
    /// Say which container images the nodes ask for, who asks, where each comes from, and what is missing; exit code 1 if one is
    ///
    /// Reads manifests and image archives from beside the cluster file; fetches no package and compiles nothing.
    Images {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write every file a node would get, for reading and review (to <out>/render); no secret is in them, and none is made
    Render,
    /// Say what is inside a built image
    Inspect {
        /// The image, for example out/master-1.img
        image: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make one bundle of two: one for x86_64 and one for loongarch64 nodes of a cluster, <out>/imgbuild-<cluster>-hybrid.tar.zst
    ///
    /// Both are as `build --output bundle` wrote them, from two cluster folders that differ in `[os] architecture` and share
    /// `secrets/`. Every file is verified first.
    Hybrid {
        /// The bundle for one architecture
        bundle: PathBuf,
        /// The bundle for the other one
        other: PathBuf,
    },
    /// Hand out a PXE folder to machines that boot from the network: HTTP, TFTP, proxyDHCP; until Ctrl-C
    ///
    /// Gives no addresses: the network needs a DHCP server that does. Everybody in that network can read the private keys in
    /// the folder.
    Serve {
        /// The folder, <out>/<cluster>-pxe
        folder: PathBuf,
        /// The network interface whose machines are served
        #[arg(long, value_name = "IF")]
        interface: String,
        /// The port of HTTP
        #[arg(long, value_name = "PORT", default_value_t = 80)]
        http_port: u16,
        /// What firmware boots: iPXE or GRUB, an EFI program or one for a BIOS; once for each kind of machine
        #[arg(long = "boot-file", visible_alias = "ipxe", value_name = "FILE")]
        boot_files: Vec<PathBuf>,
    },
    /// Say whether an output is still what was built, by the checksums it carries; exit code 4 if not
    ///
    /// A PXE folder, a bundle (packed or unpacked), an export of the store, an ISO image: every file. A disk image: its partition
    /// tables and the blobs of images; everything else is read for its structure. A list of checksums, out/lab.SHA256SUMS: every
    /// file that it names. Finds damage; and forgery, where the output is signed and the signer's public key is given.
    Verify {
        /// The output, for example out/lab.iso
        // Not called `output`: that is the name of an option of all commands, and clap takes the two for one.
        #[arg(value_name = "OUTPUT")]
        file: PathBuf,
        /// The public key that must have signed it, the second line of minisign.pub
        #[arg(long, value_name = "KEY", conflicts_with = "key_file")]
        key: Option<PublicKey>,
        /// The same in a file: minisign.pub
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Look after the store, and carry it to a machine without a network (docs/air-gap.md)
    #[command(subcommand)]
    Store(Store),
    /// Write a disk image or an ISO image to a disk of this machine, and read it back
    ///
    /// Refuses a disk that this machine uses in any way, one that is too small, and what is no disk. Without a partition table until the last
    /// byte is verified: a disk that was interrupted does not boot.
    Write {
        /// The image, for example out/master-1.img
        image: PathBuf,
        /// The disk, best by a name below /dev/disk/by-id
        device: PathBuf,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// What to do with the lock. Without an option, inputs that are not locked yet or have changed are resolved.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct LockOptions {
    /// Resolve anew, moving to the newest versions the mirror has: these inputs, or all; says what changes
    #[arg(long, value_name = "INPUT", num_args = 0..)]
    pub update: Option<Vec<String>>,
    /// Say what is newer upstream, and write nothing; exit code 5 if something is
    #[arg(long)]
    pub check: bool,
    /// Say what changes, and write nothing: from the lock to what is newest, from a lock file to that of --cluster, or from
    /// one lock file to another
    #[arg(long, value_name = "LOCK", num_args = 0..=2)]
    pub diff: Option<Vec<PathBuf>>,
}

/// What to do with the store.
#[derive(Debug, Clone, Subcommand)]
pub enum Store {
    /// Say which objects are there: sha256 and size
    List {
        /// Print JSON: the inventory that `store export --since` reads
        #[arg(long)]
        json: bool,
    },
    /// Read every object; name those that are not what their name says, and move them to damaged/ in the store
    ///
    /// Harms no build that is running. Exit code 4 if something is damaged.
    Verify,
    /// Remove what neither the lock files given nor the results of steps need
    ///
    /// Waits for builds that use the store, and lets none begin meanwhile.
    Gc {
        /// Lock files whose inputs stay, or folders with an imgbuild.lock: name those of all clusters that are built here
        #[arg(required = true, value_name = "LOCK")]
        locks: Vec<PathBuf>,
        /// Remove results of steps, too, that no build has used for so many days; with 0, all
        #[arg(long, value_name = "DAYS")]
        unused_for: Option<u16>,
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
    /// Write what the lock of --cluster names to a folder, for a drive, and read it back
    ///
    /// Run again after an interruption, it goes on; into a folder with an export, it adds to it.
    Export {
        /// What the other side has and need not get: what `imgbuild store list --json` printed there, an earlier export, or
        /// its store; may be given several times
        #[arg(long, value_name = "FILE|DIR")]
        since: Vec<PathBuf>,
        /// The folder, for example on a USB drive
        target: PathBuf,
    },
    /// Take what an export holds into the store, each object verified before it is there
    ///
    /// Run again after an interruption, it goes on. Exit code 4 if something is damaged; the rest is taken.
    Import {
        /// The folder that `store export` wrote
        folder: PathBuf,
    },
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The cluster file, or the folder that holds cluster.toml
    #[arg(long, global = true, value_name = "PATH", default_value = "profiles/lab")]
    pub cluster: PathBuf,
    /// The node to build for; may be given several times
    #[arg(long, global = true, value_name = "NODE")]
    pub profile: Vec<String>,
    /// All nodes of the cluster file
    #[arg(long, global = true, conflicts_with = "profile")]
    pub all: bool,
    /// What to make
    #[arg(long, global = true, value_enum, value_delimiter = ',', default_value = "disk")]
    pub output: Vec<Output>,
    /// Size of disk images, like 32GiB [default: `disk_size` of the node, or `[disk] size`]
    #[arg(long, global = true, value_name = "SIZE", value_parser = disk_size)]
    pub disk_size: Option<u64>,
    /// Where the outputs go
    #[arg(long, global = true, value_name = "DIR", default_value = "out")]
    pub out: PathBuf,
    /// Sign what is built with this secret key of minisign (docs/provenance.md); its password is asked for, or taken from
    /// IMGBUILD_SIGN_PASSWORD
    #[arg(long, global = true, value_name = "KEYFILE")]
    pub sign: Option<PathBuf>,
    /// The store of inputs and step results [default: $XDG_CACHE_HOME/imgbuild]
    #[arg(long, global = true, value_name = "DIR", env = "IMGBUILD_STORE")]
    pub store: Option<PathBuf>,
    /// Debian mirror: a URL for all suites, or SUITE=URL; may be given several times [default: this host's own apt
    /// sources]. INPUT=URL for an input of kind "rpm-repository", HOST=URL for what the cluster file names on a host, and for
    /// a registry of container images [default: there]
    #[arg(long, global = true, value_name = "URL", env = "IMGBUILD_MIRROR", value_delimiter = ' ')]
    pub mirror: Vec<String>,
    /// Open no network connection; what the store lacks is an error
    #[arg(long, global = true)]
    pub offline: bool,
    /// Threads and parallel downloads [default: number of CPUs, at most 8]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
    /// Say nothing but errors
    #[arg(long, global = true)]
    pub quiet: bool,
    /// How messages look on stderr
    #[arg(long, global = true, value_enum, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// A size as in the cluster file.
fn disk_size(text: &str) -> Result<u64, String> {
    profiles::parse_size(text).ok_or_else(|| "write a whole number and one of KiB, MiB, GiB, TiB: 32GiB".into())
}

/// A kind of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A raw disk image, <out>/<node>.img, to be written to the machine's disk
    Disk,
    /// The same for a virtual machine, <out>/<node>.qcow2
    Qcow2,
    /// One image for all nodes asked for, <out>/<cluster>.iso, for a USB stick, a CD or virtual media: it installs them
    Iso,
    /// One folder for all nodes asked for, <out>/<cluster>-pxe, for machines that boot from the network; see `imgbuild serve`
    Pxe,
    /// An archive for machines whose operating system is installed already, <out>/imgbuild-<cluster>-<architecture>.tar.zst,
    /// with the seeds of all nodes that are asked for; unpack it there and run ./install (docs/bundle.md)
    Bundle,
    /// What only this node knows, for cloud-init's NoCloud: <out>/<node>-seed (a folder), -seed.iso and -seed.cpio
    Seed,
}

/// How messages look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

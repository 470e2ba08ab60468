// SPDX-License-Identifier: MIT OR Apache-2.0

//! Virtual machines with UEFI firmware, in QEMU.
//!
//! **Disks.** A machine runs on a qcow2 overlay, so that the image under test is never written to. It may have several, with
//! serial numbers, and slow ones; [`Vm::written`] says what the guest wrote to each.
//!
//! **The network.** User-mode, `restrict=on`: the guest gets an address and a gateway that leads nowhere. Or, for several
//! machines, a port of a [`Switch`], which leads to the others and nowhere else.
//!
//! **The shell.** [`Vm::exec`] runs commands as root on the second serial line. Nothing is added to the image for it: the
//! disk is made over [`crate::disk::debug_overlay`], which gives the kernel one more argument,
//! `systemd.debug_shell=ttyS1`, as a person at the boot menu might.
//!
//! **The power cut.** [`Vm::cut_power`] is `kill -9`. Lost are the guest's memory, its page cache, requests under way and
//! what QEMU still holds of the overlay's tables since the guest's last flush. Kept is what the guest wrote and QEMU
//! handed to this machine's page cache, even unflushed. So it shows whether software resumes after stopping at any
//! instruction, and mostly whether it syncs; it does not show a drive that drops or reorders its own cache.
//!
//! **The accelerator.** KVM if a bounded test boot of the firmware says it works, else TCG, or User-Mode Linux (see
//! [`crate::uml`]) where a test has many machines. `IMGBUILD_TEST_ACCEL=kvm|tcg` decides without asking. Machines of another
//! architecture than this computer's always have TCG.
//!
//! **Time limits** are given for one machine with KVM on an idle computer. They are multiplied by 6 for TCG, by 3 more for
//! loongarch64, by 2 for User-Mode Linux, and by machines per processor of the computer where those are more than one: 3
//! machines on 2 processors get 9 times the time with TCG, 7 get 21 times. See [`scale`]. They only say when to give up; what a test measures is not touched.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::room::{Cable, Room, entering};
use crate::serial::{Missed, Serial};
use crate::switch::{Switch, packets};
use crate::tool::{command, run, tool, unpacked};
use crate::uml;

/// Folders in which distributions keep UEFI firmware, with the names of code and variables, best first.
const FIRMWARE: &[(&str, &str, &str)] = &[
    ("/usr/share/OVMF", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF", "OVMF_CODE.fd", "OVMF_VARS.fd"),
    ("/usr/share/edk2/x64", "OVMF_CODE.4m.fd", "OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf", "OVMF_CODE.fd", "OVMF_VARS.fd"),
];

/// Lines on the console after which nothing good comes.
const FATAL: &[&str] =
    &["Kernel panic - not syncing", "FAILED step=", "firstboot: init: FAILED:", "firstboot: install: FAILED:"];

/// The same where firstboot is expected to fail: systemd starts it again.
const FATAL_TO_ALL: &[&str] = &["Kernel panic - not syncing"];

/// The architecture of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// x86_64, which Debian calls amd64.
    Amd64,
    /// loongarch64, which Debian calls loong64.
    Loong64,
}

impl Architecture {
    /// By Debian's name, which cluster files use.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "amd64" => Some(Self::Amd64),
            "loong64" => Some(Self::Loong64),
            _ => None,
        }
    }

    /// What executes machines of this architecture here.
    pub fn accelerator(self) -> Accelerator {
        match self {
            Self::Amd64 => Accelerator::detect(),
            Self::Loong64 => Accelerator::Tcg,
        }
    }

    fn qemu(self) -> Command {
        match self {
            Self::Amd64 => tool("qemu-system-x86_64"),
            Self::Loong64 => command(unpacked("loong64/usr/bin/qemu-system-loongarch64", "qemu-system-misc")),
        }
    }

    fn arguments(self, accelerator: Accelerator) -> [&'static str; 6] {
        let (machine, emulated) = match self {
            // Without what is fast in silicon and slow in TCG: `rep movsb`, with which the kernel copies and clears pages
            // where the processor says `erms` (TCG goes byte by byte: 4 times the time of `movsq`), and AVX2, with which Go
            // computes SHA-256 (1.6 times). And without what makes each memory access or system call do more: a fifth level of page
            // tables, keys of pages, another set of translations for the kernel's accesses to a program's memory.
            Self::Amd64 => ("q35", "max,-erms,-fsrm,-avx2,-la57,-pku,-smap,-smep,-umip"),
            Self::Loong64 => ("virt", "la464"),
        };
        match accelerator {
            Accelerator::Kvm => ["-machine", machine, "-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => ["-machine", machine, "-accel", "tcg,thread=multi", "-cpu", emulated],
            Accelerator::Uml => panic!("User-Mode Linux has no part in QEMU"),
        }
    }

    /// UEFI firmware: code, and variables to copy.
    fn firmware(self) -> (PathBuf, PathBuf) {
        match self {
            Self::Amd64 => FIRMWARE
                .iter()
                .map(|(folder, code, vars)| (Path::new(folder).join(code), Path::new(folder).join(vars)))
                .find(|(code, vars)| code.exists() && vars.exists())
                .unwrap_or_else(|| {
                    panic!("UEFI firmware is missing; install the Debian package ovmf, or run tests/install-tools")
                }),
            Self::Loong64 => {
                let folder = unpacked("loong64/usr/share/qemu-efi-loongarch64", "qemu-efi-loongarch64");
                (folder.join("QEMU_EFI.fd"), folder.join("QEMU_VARS.fd"))
            }
        }
    }
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// The processor, without QEMU: see [`crate::uml`].
    Uml,
}

impl Accelerator {
    /// The accelerator of this computer for its own architecture, found once per process.
    pub fn detect() -> Self {
        static FOUND: OnceLock<Accelerator> = OnceLock::new();
        *FOUND.get_or_init(|| match std::env::var("IMGBUILD_TEST_ACCEL").as_deref() {
            Ok("kvm") => Self::Kvm,
            Ok("tcg") => Self::Tcg,
            Ok(other) => panic!("IMGBUILD_TEST_ACCEL is `{other}`; kvm or tcg wanted"),
            Err(_) if kvm_boots() => Self::Kvm,
            Err(_) => Self::Tcg,
        })
    }

    /// The same for more machines than a computer without KVM could translate for.
    pub fn of_many() -> Self {
        match (Self::detect(), std::env::var_os("IMGBUILD_TEST_ACCEL")) {
            (Self::Tcg, None) => Self::Uml,
            (found, _) => found,
        }
    }
}

/// Machines of this process that are switched on.
static MACHINES: AtomicUsize = AtomicUsize::new(0);

/// The time limit for this kind of machine, as many machines as run now, and this computer: see the module's words.
pub fn scale(limit: Duration, architecture: Architecture, accelerator: Accelerator) -> Duration {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    scaled(limit, architecture, accelerator, MACHINES.load(Ordering::SeqCst), processors)
}

fn scaled(
    limit: Duration,
    architecture: Architecture,
    accelerator: Accelerator,
    machines: usize,
    processors: usize,
) -> Duration {
    let translated = match (architecture, accelerator) {
        (_, Accelerator::Kvm) => 1.0,
        (_, Accelerator::Uml) => 2.0,
        (Architecture::Amd64, Accelerator::Tcg) => 6.0,
        // Measured on one computer: from the kernel's start to multi-user.target, about three times as long.
        (Architecture::Loong64, Accelerator::Tcg) => 18.0,
    };
    limit.mul_f64(translated * (machines as f64 / processors as f64).max(1.0))
}

/// `/dev/kvm` may open and guests hang all the same, where the machine is itself a guest. So the firmware is booted on it,
/// with nothing to start: within seconds it says on the console that it found nothing, or KVM is no use.
fn kvm_boots() -> bool {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let vm = VmBuilder { accelerator: Some(Accelerator::Kvm), memory_mib: 256, ..Vm::builder("kvm-probe") }.try_start();
    let boots = vm.is_ok_and(|vm| vm.console.wait("BdsDxe", 0, &[], Duration::from_secs(10)).is_ok());
    if !boots {
        eprintln!("KVM is there, but the firmware does not boot on it: using TCG");
    }
    boots
}

/// Tests with machines take turns: two at once on few cores only run into each other's time limits. A test that switches
/// on several machines takes one turn for all of them.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a qcow2 overlay over `backing`, to which a machine can write.
pub fn overlay(backing: &Path, overlay: &Path) {
    let format = if backing.extension().is_some_and(|e| e == "qcow2") { "qcow2" } else { "raw" };
    let backing = backing.canonicalize().unwrap();
    run(tool("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).args([&backing, overlay]));
}

/// Makes an empty qcow2 disk of this size, as QEMU writes it: `18G`.
pub fn blank(disk: &Path, size: &str) {
    run(tool("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(disk).arg(size));
}

/// A disk of a machine, on virtio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// A qcow2 file, written to; see [`overlay`].
    pub file: PathBuf,
    /// Serial number, at most 20 characters.
    pub serial: Option<String>,
    /// Bytes per second, reads and writes together; `None`: as fast as it can.
    pub speed: Option<u64>,
}

impl Disk {
    /// A disk without a serial number, as fast as it can be.
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), serial: None, speed: None }
    }

    /// QEMU's arguments for disk number `number`. What the guest sees is the node `disk<number>`; see [`Vm::written`].
    fn arguments(&self, number: usize) -> Vec<String> {
        let node = format!("disk{number}");
        let image = if self.speed.is_some() { format!("image{number}") } else { node.clone() };
        // cache.no-flush=off: the guest's flushes reach the file. See the module's words on power cuts.
        let cache = "cache.direct=off,cache.no-flush=off,discard=unmap";
        let file = format!("file.driver=file,file.filename={}", escape(&self.file));
        let mut arguments = vec!["-blockdev".to_owned(), format!("driver=qcow2,node-name={image},{cache},{file}")];
        if let Some(speed) = self.speed {
            let group = format!("speed{number}");
            let limits = json!({ "qom-type": "throttle-group", "id": group, "limits": { "bps-total": speed } });
            let throttle = format!("driver=throttle,node-name={node},throttle-group={group},file={image}");
            arguments.extend(["-object".to_owned(), limits.to_string(), "-blockdev".to_owned(), throttle]);
        }
        let serial = self.serial.as_ref().map(|serial| format!(",serial={serial}")).unwrap_or_default();
        let place = FIRST_DISK + number;
        arguments.extend(["-device".to_owned(), format!("virtio-blk-pci,drive={node},bootindex={place}{serial}")]);
        arguments
    }
}

/// How an installation medium is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// As a disk on a USB port.
    UsbStick,
    /// In a CD drive: on SATA in x86_64 machines, on SCSI in loongarch64 ones, which have no SATA.
    Cd,
}

/// The firmware tries what has the lowest number first: a network that is asked, a medium, the disks, a medium.
const NETWORK: usize = 0;
const BEFORE_DISKS: usize = 1;
const FIRST_DISK: usize = 2;
const AFTER_DISKS: usize = 100;

/// What the program that is a machine says, in the machine's folder.
const MESSAGES: &str = "messages.log";

/// What a machine is to be.
#[derive(Debug, Clone)]
pub struct VmBuilder {
    /// For file names and messages.
    pub name: String,
    /// Disks, in the order in which the firmware tries them and the kernel counts them. Without any, and without a medium,
    /// the firmware finds nothing to start.
    pub disks: Vec<Disk>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// MAC address of the only network interface.
    pub mac: String,
    /// The socket of a switch's port; without it, user-mode network.
    pub port: Option<PathBuf>,
    /// See [`VmBuilder::room`].
    room: Option<Cable>,
    /// See [`VmBuilder::uml`].
    uml: Option<uml::Boot>,
    /// Architecture.
    pub architecture: Architecture,
    /// `None`: see [`Architecture::accelerator`].
    pub accelerator: Option<Accelerator>,
    /// Folder for a copy of the console, `<name>.console.log`.
    pub logs: Option<PathBuf>,
    /// More arguments of QEMU.
    pub arguments: Vec<String>,
}

impl VmBuilder {
    /// A disk more; see [`Disk::file`].
    pub fn disk(mut self, file: &Path) -> Self {
        self.disks.push(Disk::new(file));
        self
    }

    /// A copy of the console goes there; see [`VmBuilder::logs`].
    pub fn logs(mut self, folder: &Path) -> Self {
        self.logs = Some(folder.to_owned());
        self
    }

    /// On the switch's port of that name instead of the user-mode network; `mac` is the machine's address there.
    pub fn switch(mut self, switch: &Switch, port: &str, mac: &str) -> Self {
        self.port = Some(switch.port(port));
        mac.clone_into(&mut self.mac);
        self
    }

    /// In that room, on a cable of its own, with this MAC address. The firmware tries the network first, then the disks.
    pub fn room(mut self, room: &Room, mac: &str) -> Self {
        self.room = Some(room.cable());
        mac.clone_into(&mut self.mac);
        self
    }

    /// With something to boot, a machine of User-Mode Linux. It has one disk, a raw file that is written to, and a switch's port.
    pub fn uml(mut self, boot: Option<uml::Boot>) -> Self {
        self.uml = boot;
        self
    }

    /// Architecture; x86_64 otherwise. It decides how a medium is attached, so it is set before.
    pub fn architecture(mut self, architecture: Architecture) -> Self {
        self.architecture = architecture;
        self
    }

    /// An installation medium, which the firmware tries after the disks. It cannot be written to.
    pub fn medium(self, image: &Path, how: Medium) -> Self {
        self.attach(image, how, AFTER_DISKS)
    }

    /// The same, but the firmware tries it before the disks: a stick that was left in the machine.
    pub fn medium_before_disks(self, image: &Path, how: Medium) -> Self {
        self.attach(image, how, BEFORE_DISKS)
    }

    fn attach(mut self, image: &Path, how: Medium, place: usize) -> Self {
        let file = format!("file.driver=file,file.filename={}", escape(image));
        self.arguments.extend(["-blockdev".into(), format!("driver=raw,node-name=medium,read-only=on,{file}")]);
        let (controller, device) = match (how, self.architecture) {
            (Medium::UsbStick, _) => (Some("qemu-xhci"), "usb-storage"),
            // q35 has SATA.
            (Medium::Cd, Architecture::Amd64) => (None, "ide-cd"),
            (Medium::Cd, Architecture::Loong64) => (Some("virtio-scsi-pci"), "scsi-cd"),
        };
        self.arguments.extend(controller.into_iter().flat_map(|device| ["-device".to_owned(), device.to_owned()]));
        self.arguments.extend(["-device".into(), format!("{device},drive=medium,bootindex={place}")]);
        self
    }

    /// Processors, and memory in MiB.
    pub fn size(mut self, cpus: u32, memory_mib: u32) -> Self {
        (self.cpus, self.memory_mib) = (cpus, memory_mib);
        self
    }

    /// Switches the machine on.
    ///
    /// # Panics
    /// If QEMU refuses, with its messages.
    pub fn start(self) -> Vm {
        self.try_start().unwrap_or_else(|messages| panic!("QEMU does not start: {messages}"))
    }

    fn try_start(self) -> Result<Vm, String> {
        if let Some(boot) = &self.uml {
            return Ok(self.start_uml(boot));
        }
        let accelerator = self.accelerator.unwrap_or_else(|| self.architecture.accelerator());
        let folder = tempfile::Builder::new().prefix("imgbuild-vm-").tempdir().expect("making a temporary folder");
        let (code, vars) = self.architecture.firmware();
        let own_vars = folder.path().join("vars.fd");
        fs::copy(&vars, &own_vars).expect("copying the firmware's variables");

        let mut qemu = self.architecture.qemu();
        if let Some(cable) = &self.room {
            qemu = entering(cable.pid, &qemu);
        }
        let boot = if self.room.is_some() { format!(",bootindex={NETWORK}") } else { String::new() };
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-name", &self.name])
            .args(self.architecture.arguments(accelerator))
            .args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()])
            .args(["-device", "virtio-rng-pci", "-netdev", &self.network()])
            .args(["-device", &format!("virtio-net-pci,netdev=net0,romfile=,mac={}{boot}", self.mac)]);
        for (unit, path, readonly) in [(0, &code, "on"), (1, &own_vars, "off")] {
            let path = escape(path);
            qemu.args(["-drive", &format!("if=pflash,format=raw,unit={unit},readonly={readonly},file={path}")]);
        }
        for (number, disk) in self.disks.iter().enumerate() {
            qemu.args(disk.arguments(number));
        }
        // QEMU is the client of all three, so that no byte is lost before somebody listens.
        let listeners = ["console", "shell", "monitor"].map(|line| {
            let path = folder.path().join(line);
            let listener = UnixListener::bind(&path).expect("listening on a socket");
            listener.set_nonblocking(true).expect("a listener can be non-blocking");
            qemu.args(["-chardev", &format!("socket,id={line},path={}", escape(&path))]);
            match line {
                "monitor" => qemu.args(["-mon", "chardev=monitor,mode=control"]),
                _ => qemu.args(["-serial", &format!("chardev:{line}")]),
            };
            listener
        });
        let errors = folder.path().join(MESSAGES);
        let log = File::create(&errors).expect("creating QEMU's log");
        qemu.args(&self.arguments).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = Running::spawn(&mut qemu);
        let messages = || fs::read_to_string(&errors).unwrap_or_default();
        let [console, shell, monitor] =
            listeners.map(|listener| accept(&listener, &mut child).map_err(|error| format!("{error}\n{}", messages())));
        let (console, shell) = (console?, shell?);
        let monitor = monitor.and_then(|m| Monitor::new(m).map_err(|error| format!("{error}\n{}", messages())))?;
        Ok(self.running(accelerator, child, [console, shell], Some(monitor), folder))
    }

    fn start_uml(&self, boot: &uml::Boot) -> Vm {
        let folder = tempfile::Builder::new().prefix("imgbuild-vm-").tempdir().expect("making a temporary folder");
        let ([disk], Some(port)) = (&self.disks[..], &self.port) else { panic!("one disk and a switch's port") };
        let size = (self.cpus, self.memory_mib);
        let (mut linux, lines) = boot.machine(folder.path(), size, &disk.file, (&packets(port), &self.mac));
        linux.stderr(File::create(folder.path().join(MESSAGES)).expect("creating a log"));
        let child = Running::spawn(&mut linux);
        // With the command go this process's copies of the machine's ends of its lines: when it dies, they are hung up.
        drop(linux);
        self.running(Accelerator::Uml, child, lines, None, folder)
    }

    fn running(
        &self,
        accelerator: Accelerator,
        child: Running,
        [console, shell]: [UnixStream; 2],
        monitor: Option<Monitor>,
        folder: tempfile::TempDir,
    ) -> Vm {
        let copy = self.logs.as_ref().map(|logs| {
            fs::create_dir_all(logs).expect("making the folder for logs");
            File::create(logs.join(format!("{}.console.log", self.name))).expect("creating the console's log")
        });
        Vm {
            name: self.name.clone(),
            started: Instant::now(),
            architecture: self.architecture,
            accelerator,
            child,
            console: Serial::start(console, copy),
            shell_line: Serial::start(shell, None),
            shell_is_open: false,
            monitor,
            commands: 0,
            folder,
        }
    }

    fn network(&self) -> String {
        match (&self.room, &self.port) {
            (Some(Cable { tap, .. }), _) => format!("tap,id=net0,ifname={tap},script=no,downscript=no"),
            (None, None) => "user,id=net0,restrict=on".to_owned(),
            (None, Some(path)) => format!("stream,id=net0,server=off,addr.type=unix,addr.path={}", escape(path)),
        }
    }
}

/// A machine that is switched on. It is switched off when it goes out of scope.
#[derive(Debug)]
pub struct Vm {
    name: String,
    started: Instant,
    architecture: Architecture,
    accelerator: Accelerator,
    child: Running,
    /// The first serial line: firmware, kernel, firstboot.
    pub console: Serial,
    /// The second serial line: the shell.
    shell_line: Serial,
    shell_is_open: bool,
    /// QEMU's.
    monitor: Option<Monitor>,
    commands: u64,
    /// Sockets, the firmware's variables, messages of QEMU or of User-Mode Linux.
    folder: tempfile::TempDir,
}

/// What a command in the guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Exit status.
    pub status: i32,
    /// Standard output and error, as they came.
    pub output: String,
}

impl Vm {
    /// A machine of 2 processors and 4 GiB.
    pub fn builder(name: &str) -> VmBuilder {
        VmBuilder {
            name: name.to_owned(),
            disks: vec![],
            memory_mib: 4096,
            cpus: 2,
            mac: "52:54:00:12:34:56".to_owned(),
            port: None,
            room: None,
            uml: None,
            architecture: Architecture::Amd64,
            accelerator: None,
            logs: None,
            arguments: vec![],
        }
    }

    /// For messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Time since it was switched on.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// What executes it.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// Waits until the console shows a line with `needle`, from the machine's start on, and gives that line.
    ///
    /// # Panics
    /// After `limit` (meant for KVM), when a line means failure, or when the machine stops; with the console's end.
    pub fn wait_for(&mut self, needle: &str, limit: Duration) -> String {
        self.wait(&format!("`{needle}`"), |line| line.contains(needle), 0, FATAL, limit)
    }

    /// Waits until a boot loader's menu shows `text`. Its lines have no ends, so that [`Vm::wait_for`] would see it too late.
    ///
    /// # Panics
    /// After `limit` (meant for KVM), with the console's end.
    pub fn wait_for_menu(&mut self, text: &str, limit: Duration) {
        let limit = self.scale(limit);
        let begun = Instant::now();
        while !self.console.since(0).contains(text) {
            if begun.elapsed() > limit {
                self.fail(&format!("waiting for a menu with `{text}`"), &Missed::Deadline, limit);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits as [`Vm::wait_for`] for a line that has all `words` (see [`has_words`]), from the console's position `from` on.
    /// That firstboot says `FAILED step=` is no failure: in a test of faults it is what is waited for.
    pub fn wait_for_words(&mut self, words: &[&str], from: usize, limit: Duration) -> String {
        self.wait(&format!("the words {words:?}"), |line| has_words(line, words), from, FATAL_TO_ALL, limit)
    }

    fn wait(
        &mut self,
        what: &str,
        wanted: impl Fn(&str) -> bool,
        from: usize,
        fatal: &[&str],
        limit: Duration,
    ) -> String {
        let limit = self.scale(limit);
        match self.console.wait_by(wanted, from, fatal, limit) {
            Ok(line) => line,
            Err(missed) => self.fail(&format!("waiting for {what}"), &missed, limit),
        }
    }

    /// The line with `needle` on the console, if it came already.
    ///
    /// # Panics
    /// When the machine stopped or panicked, or, unless `failures` are part of the test, firstboot failed.
    pub fn has_said(&mut self, needle: &str, failures: bool) -> Option<String> {
        let fatal = if failures { FATAL_TO_ALL } else { FATAL };
        match self.console.wait(needle, 0, fatal, Duration::ZERO) {
            Ok(line) => Some(line),
            Err(Missed::Deadline) => None,
            Err(missed) => self.fail(&format!("waiting for `{needle}`"), &missed, Duration::ZERO),
        }
    }

    /// Runs a command line as root with the guest's `sh`, the payload's programs in its `PATH`. The disk has to be made over
    /// [`crate::disk::debug_overlay`].
    ///
    /// # Panics
    /// After `limit` (meant for KVM), or when the machine stops; with the console's end. Not when the command fails.
    pub fn exec(&mut self, command: &str, limit: Duration) -> Done {
        let limit = self.scale(limit);
        if !self.shell_is_open {
            self.open_shell();
        }
        self.commands += 1;
        let (id, from) = (self.commands, self.shell_line.position());
        // The terminal's line buffer has 4095 bytes.
        let code = base64(command.as_bytes());
        assert!(code.len() < 3800, "a command of {} bytes is too long for a serial line", command.len());
        self.shell_line.send(&format!(
            "sh -c \"$(echo {code} | base64 -d)\" </dev/null >/run/exec.out 2>&1; \
             printf '\\n@%s %s %s@\\n' exec-{id} $? \"$(base64 -w0 /run/exec.out)\"\n"
        ));
        let line = match self.shell_line.wait(&format!("@exec-{id} "), from, &[], limit) {
            Ok(line) => line,
            Err(missed) => self.fail(&format!("running `{command}`"), &missed, limit),
        };
        parse_done(&line, id).unwrap_or_else(|| panic!("the shell answered `{line}`"))
    }

    /// As [`Vm::exec`], of a command that must succeed; gives what it printed.
    pub fn output(&mut self, command: &str, limit: Duration) -> String {
        let done = self.exec(command, limit);
        assert_eq!(
            done.status,
            0,
            "`{command}` on {}:\n{}\nconsole:\n{}",
            self.name,
            done.output,
            self.console.tail(50)
        );
        done.output
    }

    /// Repeats a command until `good` says yes, and gives what it printed then.
    ///
    /// # Panics
    /// After `limit` (meant for KVM), with what the command printed last.
    pub fn until(&mut self, command: &str, limit: Duration, good: impl Fn(&Done) -> bool) -> String {
        let deadline = Instant::now() + self.scale(limit);
        loop {
            let done = self.exec(command, limit);
            if good(&done) {
                return done.output;
            }
            if Instant::now() > deadline {
                let (status, output, tail) = (done.status, done.output, self.console.tail(50));
                panic!("`{command}` on {} exits {status} after {limit:?}:\n{output}\nconsole:\n{tail}", self.name);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Cuts the power: see the module's words on what that is.
    pub fn cut_power(mut self) {
        self.child.kill();
    }

    /// Presses the power button, and waits until the machine is off.
    ///
    /// # Panics
    /// After `limit` (meant for KVM), with the console's end.
    pub fn power_down(mut self, limit: Duration) {
        self.ask("system_powerdown", json!({}));
        self.wait_until_off(limit);
    }

    /// Waits until the machine is off, or restarts: it has QEMU's `-no-reboot`.
    ///
    /// # Panics
    /// After `limit` (meant for KVM), with the console's end.
    pub fn wait_until_off(mut self, limit: Duration) {
        let limit = self.scale(limit);
        let deadline = Instant::now() + limit;
        while self.child.running() {
            if Instant::now() > deadline {
                self.fail("switching off", &Missed::Deadline, limit);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How many bytes reached disk number `disk` since the machine was switched on. What the guest still has in its page
    /// cache does not count.
    pub fn written(&mut self, disk: usize) -> u64 {
        let node = format!("disk{disk}");
        let all = self.ask("query-blockstats", json!({}));
        let of_disk = all.as_array().and_then(|all| all.iter().find(|stats| stats["node-name"] == node.as_str()));
        let bytes = of_disk.and_then(|stats| stats["stats"]["wr_bytes"].as_u64());
        bytes.unwrap_or_else(|| panic!("{} has no disk {disk}: {all}", self.name))
    }

    /// Writes a picture of the screen to a PNG file. The machine must have a graphics card: `-device VGA`.
    pub fn screenshot(&mut self, file: &Path) {
        let name = file.to_str().expect("paths of the tests are UTF-8");
        self.ask("screendump", json!({ "filename": name, "format": "png" }));
    }

    /// From here on, [`Vm::exec`] uses the shell that a rescue system opens on the console.
    ///
    /// # Panics
    /// If that does not offer one within `limit` (meant for KVM), with the console's end.
    pub fn open_rescue_shell(&mut self, limit: Duration) {
        // sulogin's `Press Enter for maintenance`; of a root whose password is locked it takes any answer.
        self.wait_for("for maintenance", limit);
        self.shell_line = self.console.clone();
        self.shell_line.send("\n");
        self.greet_shell();
        // What the kernel says would be taken for a part of an answer.
        self.output("dmesg --console-level emerg", limit);
    }

    /// The shell is there once systemd runs; until then nobody answers. Before the kernel runs, this must be silent:
    /// firmware and boot loader read the second line, too, and `e` opens systemd-boot's editor.
    fn open_shell(&mut self) {
        self.wait_for("Linux version", Duration::from_secs(30));
        self.greet_shell();
    }

    fn greet_shell(&mut self) {
        let limit = self.scale(Duration::from_secs(60));
        let deadline = Instant::now() + limit;
        // Written in two parts, so that the echo of this line is not taken for its answer.
        let hello = "stty -echo 2>/dev/null; exec sh -c 'PS1= PS2= PATH=$PATH:/opt/imgbuild/bin; export PATH; \
                     KUBECONFIG=/etc/kubernetes/admin.conf; export KUBECONFIG; echo shell\"\" ready; exec sh'\n";
        loop {
            let from = self.shell_line.position();
            // Ctrl-C first: half of a line that came while the shell was starting may have left a quote open. Where the shell
            // is bash, its line editor draws anew what does not fit into a line, and loses the rest of it.
            self.shell_line.send("\x03exec sh\n");
            std::thread::sleep(Duration::from_secs(1));
            self.shell_line.send(hello);
            match self.shell_line.wait("shell ready", from, &[], Duration::from_secs(5)) {
                Ok(_) => break,
                Err(Missed::Deadline) if Instant::now() < deadline => {}
                Err(missed) => self.fail("opening the shell on a serial line", &missed, limit),
            }
        }
        self.shell_is_open = true;
    }

    /// What QEMU answers to a command.
    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let monitor = self.monitor.as_mut().unwrap_or_else(|| panic!("{} is no machine of QEMU", self.name));
        monitor.execute(command, arguments).unwrap_or_else(|error| {
            panic!("asking QEMU on {}: {error}\n{}console:\n{}", self.name, self.messages(), self.console.tail(50))
        })
    }

    fn scale(&self, limit: Duration) -> Duration {
        scale(limit, self.architecture, self.accelerator)
    }

    fn messages(&self) -> String {
        fs::read_to_string(self.folder.path().join(MESSAGES)).unwrap_or_default()
    }

    fn fail(&mut self, doing: &str, missed: &Missed, limit: Duration) -> ! {
        let why = match missed {
            Missed::Deadline => format!("{} s are over ({:?})", limit.as_secs(), self.accelerator),
            Missed::Closed => format!("the machine stopped: {}", self.messages()),
            Missed::Fatal(line) => format!("the console says `{}`", line.trim()),
        };
        let (name, after) = (&self.name, self.uptime().as_secs());
        panic!("{doing}, on {name}, {after} s after its start: {why}\nend of its console:\n{}", self.console.tail(50))
    }
}

/// Waits for QEMU to connect.
fn accept(listener: &UnixListener, child: &mut Running) -> io::Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if !child.running() || Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// QEMU's control protocol.
struct Monitor {
    reader: BufReader<UnixStream>,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Monitor")
    }
}

impl Monitor {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut monitor = Self { reader: BufReader::new(stream) };
        monitor.message(|message| message.get("QMP").is_some())?;
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    fn execute(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.reader.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut answer = self.message(|message| message.get("return").is_some() || message.get("error").is_some())?;
        if answer.get("error").is_some() {
            return Err(io::Error::other(format!("{command}: {answer}")));
        }
        Ok(answer["return"].take())
    }

    /// The next message that is `wanted`; events are passed over.
    fn message(&mut self, wanted: impl Fn(&Value) -> bool) -> io::Result<Value> {
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let message = serde_json::from_str(&line)?;
            if wanted(&message) {
                return Ok(message);
            }
        }
    }
}

/// A process that does not outlive its owner.
#[derive(Debug)]
struct Running(Child);

impl Running {
    fn spawn(command: &mut Command) -> Self {
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
        MACHINES.fetch_add(1, Ordering::SeqCst);
        Self(child)
    }

    fn running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    fn kill(&mut self) {
        // Fails when it is gone already, which is as good.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        MACHINES.fetch_sub(1, Ordering::SeqCst);
    }
}

/// In QEMU's options a comma ends a value unless it is doubled.
fn escape(path: &Path) -> String {
    path.to_str().expect("paths of the tests are UTF-8").replace(',', ",,")
}

/// Whether a line has every one of `words`, in any order, upper or lower case; `a|b` is one of the two. For messages that
/// are checked for what they say, not for how they say it.
pub fn has_words(line: &str, words: &[&str]) -> bool {
    let line = line.to_lowercase();
    words.iter().all(|word| word.split('|').any(|word| line.contains(&word.to_lowercase())))
}

fn parse_done(line: &str, id: u64) -> Option<Done> {
    let start = line.find(&format!("@exec-{id} "))?;
    let mut words = line[start..].trim_end().strip_suffix('@')?.split(' ').skip(1);
    let status = words.next()?.parse().ok()?;
    let output = String::from_utf8_lossy(&unbase64(words.next()?)?).into_owned();
    Some(Done { status, output })
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let number = (0..3).fold(0, |n, i| n << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let digit = ALPHABET[(number >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut number, mut bits) = (vec![], 0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        number = number << 6 | u32::try_from(ALPHABET.iter().position(|a| *a == byte)?).ok()?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((number >> bits & 0xff) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_its_own_inverse() {
        for text in ["", "f", "fo", "foo", "foobar \u{e4}\u{f6}\0\n"] {
            assert_eq!(unbase64(&base64(text.as_bytes())).unwrap(), text.as_bytes());
        }
        assert_eq!(base64(b"foob"), "Zm9vYg==");
    }

    #[test]
    fn limits_grow_with_machines_but_never_shrink() {
        let minutes = |accelerator, machines, processors| {
            scaled(Duration::from_secs(60), Architecture::Amd64, accelerator, machines, processors).as_secs() / 60
        };
        assert_eq!(minutes(Accelerator::Kvm, 0, 2), 1);
        assert_eq!(minutes(Accelerator::Kvm, 7, 2), 3);
        assert_eq!([1, 2, 3, 7].map(|machines| minutes(Accelerator::Tcg, machines, 2)), [6, 6, 9, 21]);
        assert_eq!(minutes(Accelerator::Tcg, 7, 16), 6);
        let loong64 = scaled(Duration::from_secs(60), Architecture::Loong64, Accelerator::Tcg, 1, 2);
        assert_eq!(loong64.as_secs() / 60, 18);
    }

    #[test]
    fn words_are_found_in_any_order() {
        let line = "firstboot: master-1: etcd: Waits for etcd-1 and etcd-2";
        assert!(has_words(line, &["etcd-1", "WAITING|waits"]));
        assert!(!has_words(line, &["etcd-1", "etcd-3"]));
    }

    #[test]
    fn answers_are_parsed_and_echoes_are_not() {
        let answer = format!("@exec-7 3 {}@", base64(b"no such file\n"));
        assert_eq!(parse_done(&answer, 7), Some(Done { status: 3, output: "no such file\n".to_owned() }));
        assert_eq!(parse_done("@exec-7 0 @", 7), Some(Done { status: 0, output: String::new() }));
        assert_eq!(parse_done("printf '\\n@%s %s %s@\\n' exec-7 $?", 7), None);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A room: an Ethernet of its own, with no way out, in which programs of this computer meet machines. There are on it:
//!
//! * the laptop, a network namespace with the interface [`INTERFACE`], for programs under test;
//! * the router, another one, which gives addresses by DHCP (dnsmasq): a room has somebody else's;
//! * the machines, each on a tap device of the laptop.
//!
//! It needs `/dev/net/tun`, and namespaces for users or root; nothing of this computer's own network changes.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::tool::{run, tool};

/// The laptop's interface; the router's has the same name.
pub const INTERFACE: &str = "lan";
/// Addresses the router gives. The lab's nodes have others.
const LEASES: &str = "10.0.2.100,10.0.2.120,255.255.255.0,1h";

/// A program that is stopped when it goes out of scope.
#[derive(Debug)]
pub struct Service(Child);

impl Service {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}")))
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails when it is gone already, which is as good.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A namespace lives as long as a process in it.
#[derive(Debug)]
struct Namespace(Service);

impl Namespace {
    /// `unshare` begins the command; the process says something when its namespaces are there.
    fn of(mut unshare: Command) -> Self {
        unshare.args(["sh", "-c", "echo there; exec sleep infinity"]);
        let mut holder = Service::start(unshare.stdout(Stdio::piped()));
        let mut line = String::new();
        let out = holder.0.stdout.take().expect("standard output is a pipe");
        BufReader::new(out).read_line(&mut line).expect("reading from a pipe");
        assert_eq!(line, "there\n", "{unshare:?}: no namespaces; may users have them here?");
        Self(holder)
    }

    fn pid(&self) -> u32 {
        self.0.0.id()
    }

    /// The same command inside.
    fn wrap(&self, command: &Command) -> Command {
        entering(self.pid(), command)
    }

    /// Starts a program inside; what it says goes to `log`.
    fn start(&self, command: &Command, log: &Path) -> Service {
        let log = File::create(log).expect("creating a log");
        Service::start(self.wrap(command).stdout(log.try_clone().unwrap()).stderr(log))
    }
}

/// The same command in the namespaces of a process.
pub(crate) fn entering(pid: u32, command: &Command) -> Command {
    let mut inside = tool("nsenter");
    inside.args(["--preserve-credentials", "--user", "--net", "--target", &pid.to_string(), "--"]);
    inside.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}

/// See the module.
#[derive(Debug)]
pub struct Room {
    _dhcp: Service,
    laptop: Namespace,
    _router: Namespace,
    /// How many cables have a machine.
    used: Cell<usize>,
}

/// For how many machines there are cables.
const CABLES: usize = 8;

/// A cable of a room, for [`crate::qemu::VmBuilder::room`].
#[derive(Debug, Clone)]
pub(crate) struct Cable {
    /// A process in the namespaces of the tap device.
    pub(crate) pid: u32,
    /// The tap device.
    pub(crate) tap: String,
}

impl Room {
    /// Sets it up. dnsmasq writes what it does to `logs`.
    ///
    /// # Panics
    /// If this computer does not let us.
    pub fn new(logs: &Path) -> Self {
        let mut unshare = tool("unshare");
        unshare.args(["--user", "--map-root-user", "--net"]);
        let laptop = Namespace::of(unshare);
        let mut unshare = tool("unshare");
        unshare.arg("--net");
        let router = Namespace::of(laptop.wrap(&unshare));
        let router_pid = router.pid().to_string();
        for arguments in [
            &["link", "add", "name", INTERFACE, "type", "bridge"][..],
            &["link", "add", "name", "cable", "type", "veth", "peer", "name", INTERFACE, "netns", &router_pid],
            &["link", "set", "cable", "master", INTERFACE, "up"],
            &["address", "add", "10.0.2.2/24", "dev", INTERFACE],
            &["link", "set", INTERFACE, "up"],
        ] {
            run(&mut laptop.wrap(tool("ip").args(arguments)));
        }
        for cable in 0..CABLES {
            let tap = tap(cable);
            run(&mut laptop.wrap(tool("ip").args(["tuntap", "add", "dev", &tap, "mode", "tap"])));
            run(&mut laptop.wrap(tool("ip").args(["link", "set", &tap, "master", INTERFACE, "up"])));
        }
        for arguments in [&["address", "add", "10.0.2.1/24", "dev", INTERFACE][..], &["link", "set", INTERFACE, "up"]] {
            run(&mut router.wrap(tool("ip").args(arguments)));
        }
        std::fs::create_dir_all(logs).expect("making the folder for logs");
        let mut dnsmasq = tool("dnsmasq");
        dnsmasq.args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--port=0",
            "--bind-interfaces",
            "--interface",
            INTERFACE,
        ]);
        dnsmasq.args(["--dhcp-authoritative", "--leasefile-ro", "--log-dhcp", &format!("--dhcp-range={LEASES}")]);
        let dhcp = router.start(&dnsmasq, &logs.join("room.dnsmasq.log"));
        Self { _dhcp: dhcp, laptop, _router: router, used: Cell::new(0) }
    }

    /// Starts a program on the laptop; what it says goes to `log`.
    pub fn start(&self, command: &Command, log: &Path) -> Service {
        self.laptop.start(command, log)
    }

    /// A cable that nobody has yet.
    pub(crate) fn cable(&self) -> Cable {
        let number = self.used.replace(self.used.get() + 1);
        assert!(number < CABLES, "a room has {CABLES} cables");
        Cable { pid: self.laptop.pid(), tap: tap(number) }
    }
}

fn tap(cable: usize) -> String {
    format!("tap{cable}")
}

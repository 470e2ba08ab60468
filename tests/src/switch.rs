// SPDX-License-Identifier: MIT OR Apache-2.0

//! An Ethernet switch in the process of the test. It needs no rights, and nothing leads out of it.
//!
//! **The wire.** QEMU (7.2 or later) connects with `-netdev stream` to a socket; a frame is its length, 4 bytes big endian,
//! and its bytes. Each port has a socket of its own, which takes one machine after the other: the next boot of a node is on
//! the same port. A machine of User-Mode Linux connects to another socket of the port, where each frame is a packet.
//!
//! **What it does.** It learns who is where, sends a frame there, and floods what is for many or for a station it does not
//! know. It never waits for a slow machine: what does not fit into a port's queue is dropped, as a real switch does.
//!
//! **What tests do with it.** [`Switch::unplug`] takes a cable out, [`Switch::plug`] puts it back. [`Switch::host`] is a
//! port for the test itself, which can hold an address or a virtual router's number. [`Switch::dump`] writes what passes to
//! a file for Wireshark or `tcpdump -r`.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::frames::{Advert, Arp, Mac, addresses, is_for_many};

/// Frames that wait for a machine; the rest is dropped.
const QUEUE: usize = 1024;

/// QEMU's limit: a packet of 64 KiB and room for headers. A longer frame means that the stream is out of step.
const LONGEST: usize = 4096 + 65536;

/// Where a dump ends.
const DUMP_LIMIT: u64 = 64 << 20;

/// The length and the frame, as they go over the wire.
type Packet = Arc<[u8]>;

/// A switch; its ports live as long as it does.
#[derive(Debug)]
pub struct Switch {
    fabric: Arc<Fabric>,
    /// The ports' sockets.
    folder: tempfile::TempDir,
}

/// What went through a port, in frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// From the machine.
    pub received: u64,
    /// To the machine.
    pub sent: u64,
    /// Not sent or not taken: the queue was full, the cable unplugged, the frame too short.
    pub dropped: u64,
}

impl Default for Switch {
    fn default() -> Self {
        Self::new()
    }
}

impl Switch {
    /// A switch without ports.
    pub fn new() -> Self {
        // In the system's folder: a socket's path has at most 107 bytes.
        let folder = tempfile::Builder::new().prefix("imgbuild-switch-").tempdir().expect("making a temporary folder");
        Self { fabric: Arc::default(), folder }
    }

    /// The socket of the port `name`, which is made if there is none.
    pub fn port(&self, name: &str) -> PathBuf {
        let mut table = self.fabric.table();
        let found = table.ports.iter().position(|port| port.name == name);
        let number = found.unwrap_or(table.ports.len());
        let path = self.folder.path().join(format!("port-{number}"));
        if found.is_none() {
            let streams = UnixListener::bind(&path).expect("listening on a socket");
            let packets = packet_socket();
            let listening = net::bind(&packets, &packet_address(&path)).and_then(|()| net::listen(&packets, 1));
            listening.expect("listening on a socket for packets");
            table.ports.push(Port::new(name));
            for listener in [Listener::Streams(streams), Listener::Packets(packets)] {
                let fabric = Arc::clone(&self.fabric);
                thread::spawn(move || serve(&fabric, number, &listener));
            }
        }
        path
    }

    /// A port of the test itself.
    ///
    /// # Panics
    /// If the name is taken.
    pub fn host(&self, name: &str) -> Host {
        let (outlet, packets) = sync_channel(QUEUE);
        let mut table = self.fabric.table();
        assert!(table.ports.iter().all(|port| port.name != name), "the switch has a port `{name}`");
        table.ports.push(Port { outlet: Some(outlet), ..Port::new(name) });
        Host { fabric: Arc::clone(&self.fabric), number: table.ports.len() - 1, packets }
    }

    /// Takes the cable out of a port: frames from it and to it are dropped.
    pub fn unplug(&self, name: &str) {
        self.set_plugged(name, false);
    }

    /// Puts the cable back.
    pub fn plug(&self, name: &str) {
        self.set_plugged(name, true);
    }

    fn set_plugged(&self, name: &str, plugged: bool) {
        let mut table = self.fabric.table();
        let number = table.number(name);
        table.ports[number].plugged = plugged;
        table.stations.retain(|_, port| *port != number);
    }

    /// What went through a port.
    pub fn count(&self, name: &str) -> Count {
        let table = self.fabric.table();
        table.ports[table.number(name)].count
    }

    /// Writes every frame from now on to a file in pcap's format, which ends at 64 MiB.
    pub fn dump(&self, path: &Path) {
        let dump = Dump::create(path).unwrap_or_else(|error| panic!("creating {}: {error}", path.display()));
        self.fabric.table().dump = Some(dump);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.fabric.closed.store(true, Ordering::SeqCst);
        let mut table = self.fabric.table();
        // Dropping it writes what it holds; a port that is still read from would keep it.
        table.dump = None;
        for number in 0..table.ports.len() {
            // A port that waits for a machine wakes up, and sees that the switch is gone. A host has no socket.
            let path = self.folder.path().join(format!("port-{number}"));
            _ = UnixStream::connect(&path);
            _ = net::connect(packet_socket(), &packet_address(&path));
        }
    }
}

/// What ports share.
#[derive(Debug, Default)]
struct Fabric {
    table: Mutex<Table>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    ports: Vec<Port>,
    stations: HashMap<Mac, usize>,
    dump: Option<Dump>,
}

struct Port {
    name: String,
    plugged: bool,
    /// There while a machine is connected.
    outlet: Option<SyncSender<Packet>>,
    count: Count,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("name", &self.name).field("plugged", &self.plugged).finish_non_exhaustive()
    }
}

impl Port {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), plugged: true, outlet: None, count: Count::default() }
    }

    fn send(&mut self, packet: &Packet) {
        // To a machine that is switched off nothing is sent, and nothing is lost.
        let Some(outlet) = &self.outlet else { return };
        if !self.plugged {
            self.count.dropped += 1;
            return;
        }
        match outlet.try_send(Arc::clone(packet)) {
            Ok(()) => self.count.sent += 1,
            Err(TrySendError::Full(_)) => self.count.dropped += 1,
            Err(TrySendError::Disconnected(_)) => self.outlet = None,
        }
    }
}

impl Table {
    fn number(&self, name: &str) -> usize {
        let found = self.ports.iter().position(|port| port.name == name);
        found.unwrap_or_else(|| panic!("the switch has no port `{name}`"))
    }
}

impl Fabric {
    /// A test that failed while it held the table must not hide its own message behind this one's.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forward(&self, from: usize, packet: &Packet) {
        let mut table = self.table();
        let table = &mut *table;
        let Some((to, sender)) = addresses(&packet[4..]) else {
            table.ports[from].count.dropped += 1;
            return;
        };
        if !table.ports[from].plugged {
            table.ports[from].count.dropped += 1;
            return;
        }
        table.ports[from].count.received += 1;
        if let Some(dump) = &mut table.dump {
            dump.write(&packet[4..]);
        }
        if !is_for_many(&sender) {
            table.stations.insert(sender, from);
        }
        match table.stations.get(&to) {
            Some(&port) if port == from => {}
            Some(&port) => table.ports[port].send(packet),
            None => {
                let others = table.ports.iter_mut().enumerate().filter(|(port, _)| *port != from);
                others.for_each(|(_, port)| port.send(packet));
            }
        }
    }
}

/// The socket for a machine that sends each frame as a packet, of the port with the socket `port`.
pub(crate) fn packets(port: &Path) -> PathBuf {
    port.with_extension("packets")
}

fn packet_socket() -> OwnedFd {
    let made = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    made.expect("making a socket for packets")
}

fn packet_address(path: &Path) -> SocketAddrUnix {
    SocketAddrUnix::new(packets(path)).expect("a short path")
}

/// Where machines connect to a port.
enum Listener {
    Streams(UnixListener),
    Packets(OwnedFd),
}

/// A machine's cable.
enum Wire {
    Stream(UnixStream),
    Packets(OwnedFd),
}

impl Listener {
    fn accept(&self) -> io::Result<Wire> {
        Ok(match self {
            Self::Streams(listener) => Wire::Stream(listener.accept()?.0),
            Self::Packets(listener) => Wire::Packets(net::accept_with(listener, SocketFlags::CLOEXEC)?),
        })
    }
}

impl Wire {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Stream(stream) => Self::Stream(stream.try_clone()?),
            Self::Packets(socket) => Self::Packets(socket.try_clone()?),
        })
    }

    /// Ends what reads from it and what writes to it.
    fn cut(&self) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.shutdown(Shutdown::Both),
            Self::Packets(socket) => Ok(net::shutdown(socket, net::Shutdown::Both)?),
        }
    }

    /// Takes frames until the machine is gone.
    fn read_frames(&self, take: impl FnMut(Packet)) -> io::Result<()> {
        match self {
            Self::Stream(stream) => read_stream(stream, take),
            Self::Packets(socket) => read_packets(socket, take),
        }
    }

    /// Writes frames until the machine or the port is gone.
    fn deliver(self, packets: &Receiver<Packet>) {
        match self {
            Self::Stream(stream) => deliver_stream(stream, packets),
            Self::Packets(socket) => {
                // The length before the frame is for streams.
                let send = |packet: &Packet| net::send(&socket, &packet[4..], SendFlags::NOSIGNAL);
                while packets.recv().is_ok_and(|packet| send(&packet).is_ok()) {}
            }
        }
    }
}

/// Takes one machine after the other.
fn serve(fabric: &Arc<Fabric>, number: usize, listener: &Listener) {
    while let Ok(wire) = listener.accept() {
        if fabric.closed.load(Ordering::SeqCst) {
            return;
        }
        let writer = wire.try_clone().expect("a socket can be cloned");
        let (outlet, packets) = sync_channel(QUEUE);
        let writing = thread::spawn(move || writer.deliver(&packets));
        fabric.table().ports[number].outlet = Some(outlet);
        // Ends when the machine does, however it ends.
        _ = wire.read_frames(|packet| fabric.forward(number, &packet));
        let mut table = fabric.table();
        table.ports[number].outlet = None;
        table.stations.retain(|_, port| *port != number);
        drop(table);
        // Should it be waiting for the machine.
        _ = wire.cut();
        _ = writing.join();
        if fabric.closed.load(Ordering::SeqCst) {
            return;
        }
    }
}

fn read_stream(stream: &UnixStream, mut take: impl FnMut(Packet)) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, stream);
    let mut packet = vec![0; 4 + LONGEST];
    loop {
        reader.read_exact(&mut packet[..4])?;
        let len = u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]]) as usize;
        if len > LONGEST {
            return Err(io::Error::other(format!("a frame of {len} bytes")));
        }
        reader.read_exact(&mut packet[4..4 + len])?;
        take(packet[..4 + len].into());
    }
}

fn read_packets(socket: &OwnedFd, mut take: impl FnMut(Packet)) -> io::Result<()> {
    let mut packet = vec![0; 4 + LONGEST];
    loop {
        let (len, _) = net::recv(socket, &mut packet[4..], RecvFlags::empty())?;
        if len == 0 {
            return Ok(());
        }
        packet[..4].copy_from_slice(&(len as u32).to_be_bytes());
        take(packet[..4 + len].into());
    }
}

fn deliver_stream(stream: UnixStream, packets: &Receiver<Packet>) {
    let mut writer = BufWriter::with_capacity(1 << 16, stream);
    while let Ok(packet) = packets.recv() {
        // As many at a time as there are.
        let more = packets.try_iter().take(QUEUE);
        let written = std::iter::once(packet).chain(more).try_for_each(|packet| writer.write_all(&packet));
        if written.and_then(|()| writer.flush()).is_err() {
            break;
        }
    }
    // What is left is for a machine that is gone: no attempt to write it when the buffer is dropped.
    drop(writer.into_parts());
}

/// The test's own port.
#[derive(Debug)]
pub struct Host {
    fabric: Arc<Fabric>,
    number: usize,
    packets: Receiver<Packet>,
}

impl Host {
    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) {
        let len = u32::try_from(frame.len()).expect("frames are short").to_be_bytes();
        self.fabric.forward(self.number, &[&len[..], frame].concat().into());
    }

    /// The next frame: what is for many, for nobody known, or for a station from which this port has sent.
    pub fn receive(&self, limit: Duration) -> Option<Vec<u8>> {
        self.packets.recv_timeout(limit).ok().map(|packet| packet[4..].to_vec())
    }

    /// The first frame in which `find` finds something.
    pub fn find<T>(&self, limit: Duration, find: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.checked_duration_since(Instant::now())?;
            if let Some(found) = find(&self.receive(left)?) {
                return Some(found);
            }
        }
    }

    /// A station at `mac` that has `address` and says so to everybody who asks, until what this gives is dropped.
    pub fn hold_address(self, mac: Mac, address: Ipv4Addr) -> Station {
        self.become_station(Duration::from_secs(3600), move |frame| {
            let asked = Arp::parse(frame?).filter(|arp| arp.target == address)?;
            asked.answer(&mac).map(|answer| answer.frame(&asked.sender_mac))
        })
    }

    /// A station at `mac` that is master of a virtual router and says so every second, until what this gives is dropped.
    pub fn hold_router(self, mac: Mac, advert: Advert) -> Station {
        self.become_station(Duration::from_secs(1), move |frame| match frame {
            None => Some(advert.frame(&mac, None)),
            // Whoever wants to send an advert to a peer, asks for its address first.
            Some(frame) => {
                let asked = Arp::parse(frame).filter(|arp| arp.target == advert.source)?;
                asked.answer(&mac).map(|answer| answer.frame(&asked.sender_mac))
            }
        })
    }

    /// Calls `act` with every frame that comes, and with nothing at least each time `every` is over; sends what it gives.
    fn become_station(
        self,
        every: Duration,
        mut act: impl FnMut(Option<&[u8]>) -> Option<Vec<u8>> + Send + 'static,
    ) -> Station {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            let mut next = Instant::now();
            while !stopped.load(Ordering::SeqCst) {
                let now = Instant::now();
                let answer = if now >= next {
                    next = now + every;
                    act(None)
                } else {
                    // Short, so that it stops soon.
                    match self.packets.recv_timeout((next - now).min(Duration::from_millis(50))) {
                        Ok(packet) => act(Some(&packet[4..])),
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                };
                if let Some(frame) = answer {
                    self.send(&frame);
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Station { stop, sent, thread: Some(thread) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut table = self.fabric.table();
        let number = self.number;
        table.ports[number].outlet = None;
        table.stations.retain(|_, port| *port != number);
    }
}

/// A station that a thread of the test plays; it goes away when it is dropped.
#[derive(Debug)]
pub struct Station {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Station {
    /// How many frames it has sent: without one, nobody has heard of it.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// A file in pcap's classic format.
#[derive(Debug)]
struct Dump {
    file: BufWriter<File>,
    written: u64,
}

impl Dump {
    fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        // Magic, version 2.4, UTC, no accuracy, no limit of a frame's length, Ethernet.
        for word in [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, LONGEST as u32, 1_u32] {
            file.write_all(&word.to_le_bytes())?;
        }
        Ok(Self { file, written: 24 })
    }

    /// A dump that cannot be written is no reason for a test to fail.
    fn write(&mut self, frame: &[u8]) {
        let len = 16 + frame.len() as u64;
        if self.written + len > DUMP_LIMIT {
            return;
        }
        self.written += len;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let words = [time.as_secs() as u32, time.subsec_micros(), frame.len() as u32, frame.len() as u32];
        _ = self.file.write_all(&words.map(u32::to_le_bytes).concat()).and_then(|()| self.file.write_all(frame));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::BROADCAST;

    const SOON: Duration = Duration::from_secs(10);

    /// What QEMU is to the switch.
    struct Machine {
        mac: Mac,
        stream: UnixStream,
    }

    impl Machine {
        fn connect(switch: &Switch, name: &str, number: u8) -> Self {
            let stream = UnixStream::connect(switch.port(name)).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            wait(|| switch.fabric.table().ports.iter().any(|port| port.name == name && port.outlet.is_some()));
            Self { mac: [0x52, 0x54, 0, 0x77, 0, number], stream }
        }

        fn send(&mut self, to: &Mac, text: &str) {
            let frame = frame(to, &self.mac, text);
            self.stream.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
            // In two parts: a stream keeps no borders.
            self.stream.write_all(&frame[..7]).unwrap();
            self.stream.write_all(&frame[7..]).unwrap();
        }

        fn receive(&mut self) -> String {
            let mut len = [0; 4];
            self.stream.read_exact(&mut len).expect("a frame");
            let mut frame = vec![0; u32::from_be_bytes(len) as usize];
            self.stream.read_exact(&mut frame).unwrap();
            String::from_utf8(frame[14..].to_vec()).unwrap()
        }
    }

    fn frame(to: &Mac, from: &Mac, text: &str) -> Vec<u8> {
        [&to[..], from, &[0x88, 0xb5], text.as_bytes()].concat()
    }

    fn wait(done: impl Fn() -> bool) {
        let deadline = Instant::now() + SOON;
        while !done() {
            assert!(Instant::now() < deadline, "not within {SOON:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn it_floods_the_unknown_and_learns() {
        let switch = Switch::new();
        let mut one = Machine::connect(&switch, "one", 1);
        let mut two = Machine::connect(&switch, "two", 2);
        let mut three = Machine::connect(&switch, "three", 3);
        one.send(&two.mac, "who are you");
        assert_eq!((two.receive().as_str(), three.receive().as_str()), ("who are you", "who are you"));
        two.send(&one.mac, "two");
        assert_eq!(one.receive(), "two");
        one.send(&two.mac, "known now");
        one.send(&BROADCAST, "everybody");
        assert_eq!(two.receive(), "known now");
        assert_eq!((two.receive().as_str(), three.receive().as_str()), ("everybody", "everybody"));
        assert_eq!(switch.count("one"), Count { received: 3, sent: 1, dropped: 0 });
        assert_eq!(switch.count("three"), Count { received: 0, sent: 2, dropped: 0 });
    }

    #[test]
    fn a_machine_whose_frames_are_packets_meets_one_whose_are_a_stream() {
        let switch = Switch::new();
        let mut qemu = Machine::connect(&switch, "qemu", 1);
        let path = packets(&switch.port("uml"));
        let mac = [0x52, 0x54, 0, 0x77, 0, 2];
        // The next boot of a node connects to the same socket.
        for boot in ["first", "second"] {
            let uml = packet_socket();
            net::connect(&uml, &SocketAddrUnix::new(&path).unwrap()).unwrap();
            wait(|| switch.fabric.table().ports.iter().any(|port| port.name == "uml" && port.outlet.is_some()));
            let sent = net::send(&uml, &frame(&qemu.mac, &mac, boot), SendFlags::NOSIGNAL).unwrap();
            assert_eq!((qemu.receive().as_str(), sent), (boot, 14 + boot.len()));
            qemu.send(&mac, "one");
            qemu.send(&mac, "another");
            let mut buffer = [0; 100];
            for text in ["one", "another"] {
                let (len, _) = net::recv(&uml, &mut buffer[..], RecvFlags::empty()).unwrap();
                assert_eq!(&buffer[14..len], text.as_bytes());
            }
            drop(uml);
            wait(|| switch.fabric.table().ports.iter().all(|port| port.name != "uml" || port.outlet.is_none()));
        }
    }

    #[test]
    fn an_unplugged_cable_carries_nothing_either_way() {
        let switch = Switch::new();
        let mut one = Machine::connect(&switch, "one", 1);
        let mut two = Machine::connect(&switch, "two", 2);
        switch.unplug("two");
        one.send(&BROADCAST, "lost");
        two.send(&BROADCAST, "lost, too");
        wait(|| switch.count("two").dropped == 2);
        switch.plug("two");
        one.send(&BROADCAST, "there");
        assert_eq!(two.receive(), "there");
        two.send(&one.mac, "back");
        assert_eq!(one.receive(), "back");
    }

    #[test]
    fn a_slow_machine_stops_nobody() {
        let switch = Switch::new();
        let mut one = Machine::connect(&switch, "one", 1);
        let mut two = Machine::connect(&switch, "two", 2);
        let _slow = Machine::connect(&switch, "slow", 3);
        let text = "x".repeat(1400);
        for _ in 0..4 * QUEUE {
            one.send(&BROADCAST, &text);
            assert_eq!(two.receive().len(), text.len());
        }
        let count = switch.count("slow");
        assert!(count.dropped > 0 && count.sent + count.dropped == 4 * QUEUE as u64, "{count:?}");
        assert_eq!(switch.count("two").dropped, 0);
    }

    #[test]
    fn the_next_boot_is_on_the_same_port() {
        let switch = Switch::new();
        let mut one = Machine::connect(&switch, "one", 1);
        let two = Machine::connect(&switch, "two", 2);
        let before = switch.port("two");
        drop(two);
        wait(|| switch.fabric.table().ports[1].outlet.is_none());
        assert_eq!(switch.port("two"), before);
        let mut two = Machine::connect(&switch, "two", 2);
        one.send(&two.mac, "again");
        assert_eq!(two.receive(), "again");
    }

    #[test]
    fn a_frame_that_cannot_be_ends_the_connection_only() {
        let switch = Switch::new();
        let mut one = Machine::connect(&switch, "one", 1);
        let mut bad = Machine::connect(&switch, "bad", 2);
        bad.stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert_eq!(bad.stream.read(&mut [0; 1]).unwrap(), 0, "hung up");
        let mut short = Machine::connect(&switch, "bad", 2);
        short.stream.write_all(&[0, 0, 0, 2, 1, 1]).unwrap();
        wait(|| switch.count("bad").dropped == 1);
        short.send(&BROADCAST, "in step");
        assert_eq!(one.receive(), "in step");
    }

    #[test]
    fn a_station_holds_an_address_until_it_goes() {
        let switch = Switch::new();
        let (address, mac) = (Ipv4Addr::new(10, 77, 0, 31), [0x52, 0x54, 0, 0, 0, 9]);
        let station = switch.host("squatter").hold_address(mac, address);
        let asker = switch.host("asker");
        let ask = |target: Ipv4Addr| {
            let sender_mac = [0x52, 0x54, 0, 0, 0, 8];
            let probe = Arp { request: true, sender_mac, sender: Ipv4Addr::UNSPECIFIED, target_mac: [0; 6], target };
            asker.send(&probe.frame(&BROADCAST));
            asker.find(Duration::from_millis(if target == address { 5000 } else { 100 }), Arp::parse)
        };
        let answer = ask(address).expect("an answer");
        assert_eq!((answer.request, answer.sender, answer.sender_mac), (false, address, mac));
        assert_eq!(ask(Ipv4Addr::new(10, 77, 0, 32)), None, "another address is free");
        assert_eq!(station.sent(), 1);
        drop(station);
        asker.send(&Arp { target_mac: [0; 6], ..answer }.frame(&BROADCAST));
        assert_eq!(asker.receive(Duration::from_millis(100)), None);
    }

    #[test]
    fn a_station_holds_a_router() {
        let switch = Switch::new();
        let advert = Advert {
            source: Ipv4Addr::new(10, 77, 0, 99),
            to: Advert::EVERYBODY,
            router: 20,
            priority: 254,
            address: Ipv4Addr::new(10, 77, 0, 98),
        };
        let hearer = switch.host("hearer");
        let _station = switch.host("router").hold_router([0x52, 0x54, 0, 0, 0, 9], advert);
        for _ in 0..2 {
            assert_eq!(hearer.find(SOON, Advert::parse), Some(advert));
        }
    }

    #[test]
    fn a_dump_has_every_frame() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("frames.pcap");
        let switch = Switch::new();
        switch.dump(&path);
        let host = switch.host("host");
        host.send(&frame(&BROADCAST, &[2; 6], "one"));
        host.send(&frame(&BROADCAST, &[2; 6], "two."));
        drop(switch);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes[..4], 0xa1b2_c3d4_u32.to_le_bytes());
        assert_eq!(bytes.len(), 24 + 16 + 17 + 16 + 18);
        assert_eq!(bytes[24 + 8..24 + 16], [17, 0, 0, 0, 17, 0, 0, 0]);
        assert!(bytes.ends_with(b"two."));
    }
}

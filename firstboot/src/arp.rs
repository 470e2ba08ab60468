// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether somebody else on the network uses an IPv4 address: ARP probes, as RFC 5227 has them.
//!
//! A probe asks for the address without claiming it (its own sender address is 0.0.0.0), so it disturbs no neighbour's
//! cache, and it works before and after the address is on the interface: a kernel never answers its own frames.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use profiles::node::Node;
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, sockopt};

/// Probes that are sent, and the time each has for its answer. RFC 5227 spreads them over up to seven seconds for networks
/// of the size of a campus; a rack answers at once.
const PROBES: u32 = 3;
const PATIENCE: Duration = Duration::from_millis(600);
const ARPHRD_ETHER: &str = "1";
const ETH_P_ARP: u16 = 0x0806;
const REQUEST: u16 = 1;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
            .collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        bytes.map(Self).with_context(|| format!("`{text}` is no MAC address"))
    }
}

/// An Ethernet interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// Its address.
    pub mac: Mac,
}

impl Interface {
    /// The interface called `name`, below `root`.
    pub fn named(root: &Path, name: &str) -> Option<Self> {
        let read = |file: &str| {
            let text = std::fs::read_to_string(root.join("sys/class/net").join(name).join(file));
            text.map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        if read("type") != ARPHRD_ETHER {
            return None;
        }
        Some(Self { name: name.to_owned(), index: read("ifindex").parse().ok()?, mac: read("address").parse().ok()? })
    }

    /// The interface that carries the node's address, as /etc/systemd/network/10-node.network chooses it: by MAC address,
    /// by name, or the only card. `None` if there is no such one, or if several could be meant.
    pub fn of_node(root: &Path, node: &Node) -> Option<Self> {
        let entries = std::fs::read_dir(root.join("sys/class/net")).ok()?;
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let wanted = node.mac.as_deref().and_then(|mac| mac.parse::<Mac>().ok());
        let mut found = names.filter(|name| {
            // Bridges and the like may have taken over a card's address; only cards have a device.
            let card = root.join("sys/class/net").join(name).join("device").exists();
            match (wanted, &node.interface) {
                (Some(mac), _) => card && Self::named(root, name).is_some_and(|interface| interface.mac == mac),
                (None, Some(interface)) => name == interface,
                (None, None) => card && Self::named(root, name).is_some(),
            }
        });
        let name = found.next()?;
        if found.next().is_some() { None } else { Self::named(root, &name) }
    }
}

/// Who else on the network of `interface` uses `address`, or is about to (it probes for it at the same time).
pub fn probe(interface: &Interface, address: Ipv4Addr) -> Result<Option<Mac>> {
    try_probe(interface, address).with_context(|| format!("asking on {} who has {address}", interface.name))
}

fn try_probe(interface: &Interface, address: Ipv4Addr) -> Result<Option<Mac>> {
    let protocol = Some(rustix::net::eth::ARP);
    let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol)?;
    let name = netdevice::index_to_name(&socket, interface.index)?;
    anyhow::ensure!(name == interface.name, "{} is gone", interface.name);
    rustix::net::bind(&socket, &LinkAddress::broadcast(interface.index))?;
    let request = request(interface.mac, address);
    for _ in 0..PROBES {
        rustix::net::sendto(&socket, &request, SendFlags::empty(), &LinkAddress::broadcast(interface.index))?;
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(left.max(Duration::from_millis(1))))?;
            let mut packet = [0; 64];
            match rustix::net::recv(&socket, &mut packet, RecvFlags::empty()) {
                Ok((length, _)) => {
                    if let Some(owner) = conflict(&packet[..length.min(packet.len())], interface.mac, address) {
                        return Ok(Some(owner));
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(None)
}

/// An ARP probe for `address`.
fn request(from: Mac, address: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    // Ethernet, IPv4, lengths of their addresses, request.
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, REQUEST as u8]);
    packet[8..14].copy_from_slice(&from.0);
    packet[24..].copy_from_slice(&address.octets());
    packet
}

/// The sender of an ARP packet that shows that it uses `address` or probes for it, if it is not us.
fn conflict(packet: &[u8], own: Mac, address: Ipv4Addr) -> Option<Mac> {
    let packet: &[u8; 28] = packet.get(..28)?.try_into().ok()?;
    if packet[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let sender = Mac(packet[8..14].try_into().ok()?);
    let (claims, asks) = (packet[14..18] == address.octets(), packet[24..28] == address.octets());
    let is_probe = packet[14..18] == [0; 4] && u16::from_be_bytes([packet[6], packet[7]]) == REQUEST;
    (sender != own && (claims || (asks && is_probe))).then_some(sender)
}

/// `struct sockaddr_ll` of packet(7), which rustix has not.
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: u16,
    index: i32,
    hardware: u16,
    kind: u8,
    length: u8,
    address: [u8; 8],
}

impl LinkAddress {
    /// Everybody on the interface.
    fn broadcast(index: u32) -> Self {
        Self {
            family: AddressFamily::PACKET.as_raw(),
            protocol: ETH_P_ARP.to_be(),
            index: i32::try_from(index).unwrap_or_default(),
            hardware: 0,
            kind: 0,
            length: 6,
            address: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        }
    }
}

// SAFETY: the pointer is to a whole `struct sockaddr_ll` (packet(7)), and readable for its size during the call.
#[allow(unsafe_code)]
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(std::ptr::from_ref(self).cast(), size_of::<Self>() as SocketAddrLen)
    }
}

/// For tests/fuzz.
#[cfg(fuzzing)]
pub(crate) fn fuzz(packet: &[u8]) {
    let own = Mac([2, 0, 0, 0, 0, 1]);
    assert_ne!(conflict(packet, own, Ipv4Addr::new(10, 0, 0, 1)), Some(own), "a node is no conflict with itself");
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 21);

    #[test]
    fn owners_and_those_who_probe_at_the_same_time_conflict() {
        assert_eq!(conflict(&request(OTHER, ADDRESS), OWN, ADDRESS), Some(OTHER));
        assert_eq!(conflict(&request(OWN, ADDRESS), OWN, ADDRESS), None, "our own probe, echoed by a switch");
        assert_eq!(conflict(&request(OTHER, Ipv4Addr::new(10, 77, 0, 22)), OWN, ADDRESS), None);
        let mut reply = request(OTHER, Ipv4Addr::UNSPECIFIED);
        reply[7] = 2;
        reply[14..18].copy_from_slice(&ADDRESS.octets());
        assert_eq!(conflict(&reply, OWN, ADDRESS), Some(OTHER));
        // Somebody who only wants to talk to the address is no conflict.
        let mut question = request(OTHER, ADDRESS);
        question[14..18].copy_from_slice(&[10, 77, 0, 99]);
        assert_eq!(conflict(&question, OWN, ADDRESS), None);
        assert_eq!(conflict(&reply[..27], OWN, ADDRESS), None);
    }

    #[test]
    fn the_nodes_interface_is_the_one_of_the_profile() {
        let root = tempfile::tempdir().unwrap();
        let add = |name: &str, mac: &str, index: &str, card: bool| {
            let dir = root.path().join("sys/class/net").join(name);
            std::fs::create_dir_all(if card { dir.join("device") } else { dir.clone() }).unwrap();
            for (file, text) in [("type", "1\n"), ("address", mac), ("ifindex", index)] {
                std::fs::write(dir.join(file), text).unwrap();
            }
        };
        add("enp1s0", "52:54:00:00:00:01\n", "2\n", true);
        add("cni0", "52:54:00:00:00:01\n", "7\n", false);
        let mut node = crate::testing::profile().node;
        let name = |node: &Node| Interface::of_node(root.path(), node).map(|found| (found.name, found.index));
        assert_eq!(name(&node), Some(("enp1s0".into(), 2)));
        add("enp2s0", "52:54:00:00:00:02\n", "3\n", true);
        assert_eq!(name(&node), None, "two cards, and the profile names none");
        node.mac = Some("52:54:00:00:00:01".into());
        assert_eq!(name(&node), Some(("enp1s0".into(), 2)));
        node.mac = None;
        node.interface = Some("enp2s0".into());
        assert_eq!(name(&node), Some(("enp2s0".into(), 3)));
    }

    #[test]
    fn macs_are_read_and_shown() {
        assert_eq!("52:54:00:00:00:02".parse::<Mac>().unwrap(), OTHER);
        assert_eq!(OTHER.to_string(), "52:54:00:00:00:02");
        for bad in ["", "52:54:00:00:00", "52:54:00:00:00:0g", "52:54:00:00:00:02:03", "5254.0000.0002"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = conflict(&bytes, OWN, ADDRESS);
        }
    }
}

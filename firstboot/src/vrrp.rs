// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hears VRRP (RFC 3768, RFC 5798): who on this network already uses which virtual router id.

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, netdevice, recvfrom, socket_with, sockopt,
};

const PROTOCOL: u8 = 112;
const GROUP4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// Nobody needs more than the first packets of a flood.
const ENOUGH: usize = 4096;

/// What a router says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    /// 2 or 3.
    pub version: u8,
    /// Virtual router id.
    pub vrid: u8,
    /// The virtual addresses.
    pub addresses: Vec<IpAddr>,
}

/// Collects the VRRP packets that arrive within `time`, as [`parse`] wants them.
pub fn listen(address: IpAddr, interface: Option<&str>, time: Duration) -> Result<Vec<(IpAddr, Vec<u8>)>> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let protocol = NonZeroU32::new(PROTOCOL.into()).map(Protocol::from_raw);
    let socket =
        socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol).context("opening a raw socket")?;
    match address {
        IpAddr::V4(own) => sockopt::set_ip_add_membership(&socket, &GROUP4, &own),
        IpAddr::V6(_) => {
            let name = interface.context("the profile names no interface")?;
            let index = netdevice::name_to_index(&socket, name).with_context(|| format!("looking for {name}"))?;
            sockopt::set_ipv6_add_membership(&socket, &GROUP6, index)
        }
    }
    .context("joining VRRP's multicast group")?;
    let deadline = Instant::now() + time;
    let mut heard = Vec::new();
    while heard.len() < ENOUGH {
        let left = deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) {
            break;
        }
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(left)).context("setting a timeout")?;
        let mut buffer = [MaybeUninit::uninit(); 2048];
        match recvfrom(&socket, &mut buffer, RecvFlags::empty()) {
            Ok(((packet, _), _, from)) => {
                if let Some(from) = from.and_then(|from| SocketAddr::try_from(from).ok()) {
                    heard.push((from.ip(), packet.to_vec()));
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("listening for VRRP"),
        }
    }
    Ok(heard)
}

/// The advert in a packet from `from`: for IPv4 with its IP header, for IPv6 without, as raw sockets give them. Anything
/// but a well-formed advert is `None`: such a packet says nothing about who uses an id.
pub fn parse(from: IpAddr, packet: &[u8]) -> Option<Advert> {
    let message = match from {
        IpAddr::V4(_) => ipv4_payload(packet)?,
        IpAddr::V6(_) => packet,
    };
    let [head, vrid, _, count, _, _, _, _, rest @ ..] = message else { return None };
    let version = head >> 4;
    // Type 1 is the only one there is, and id 0 is none.
    if head & 0xf != 1 || *vrid == 0 || *count == 0 {
        return None;
    }
    let (size, trailer) = match (version, from) {
        (2, IpAddr::V4(_)) => (4, 8), // authentication data
        (3, IpAddr::V4(_)) => (4, 0),
        (3, IpAddr::V6(_)) => (16, 0),
        _ => return None,
    };
    let length = usize::from(*count) * size;
    if rest.len() != length + trailer {
        return None;
    }
    let addresses = rest[..length].chunks_exact(size).filter_map(address).collect();
    Some(Advert { version, vrid: *vrid, addresses })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn ipv4_payload(packet: &[u8]) -> Option<&[u8]> {
    let [first, _, high, low, _, _, _, _, ttl, protocol, ..] = packet else { return None };
    let header = usize::from(first & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([*high, *low]));
    // What did not start on this network has a lower TTL, and the RFCs say to discard it.
    if first >> 4 != 4 || header < 20 || *ttl != 255 || *protocol != PROTOCOL {
        return None;
    }
    packet.get(header..total)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An IPv4 packet with an advert.
    pub(crate) fn packet(version: u8, vrid: u8, addresses: &[[u8; 4]]) -> Vec<u8> {
        let mut message = vec![version << 4 | 1, vrid, 100, addresses.len() as u8, 0, 1, 0, 0];
        message.extend(addresses.concat());
        if version == 2 {
            message.extend([0; 8]);
        }
        let total = (20 + message.len()) as u16;
        let mut packet = vec![0x45, 0xc0, (total >> 8) as u8, total as u8, 0, 1, 0, 0, 255, PROTOCOL, 0, 0];
        packet.extend([10, 0, 0, 7, 224, 0, 0, 18]);
        packet.extend(message);
        packet
    }

    const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

    #[test]
    fn reads_both_versions() {
        for version in [2, 3] {
            let advert = parse(FROM, &packet(version, 93, &[[10, 0, 0, 100], [10, 0, 0, 101]])).unwrap();
            assert_eq!((advert.version, advert.vrid), (version, 93));
            assert_eq!(advert.addresses, ["10.0.0.100", "10.0.0.101"].map(|text| text.parse::<IpAddr>().unwrap()));
        }
        let mut six = vec![0x31, 93, 100, 1, 0, 100, 0, 0];
        six.extend("fd00::100".parse::<Ipv6Addr>().unwrap().octets());
        let advert = parse("fe80::7".parse().unwrap(), &six).unwrap();
        assert_eq!(advert.addresses, ["fd00::100".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn what_is_no_advert_says_nothing() {
        let good = packet(3, 93, &[[10, 0, 0, 100]]);
        assert!(parse(FROM, &good).is_some());
        let with = |index: usize, byte: u8| {
            let mut bad = good.clone();
            bad[index] = byte;
            parse(FROM, &bad)
        };
        assert_eq!(with(0, 0x65), None, "IP version");
        assert_eq!(with(0, 0x44), None, "header length");
        assert_eq!(with(8, 64), None, "TTL");
        assert_eq!(with(9, 17), None, "protocol");
        assert_eq!(with(20, 0x41), None, "VRRP version");
        assert_eq!(with(20, 0x32), None, "type");
        assert_eq!(with(21, 0), None, "id");
        assert_eq!(with(23, 2), None, "count");
        for length in 0..good.len() {
            assert_eq!(parse(FROM, &good[..length]), None, "cut at {length}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, mut changed in proptest::collection::vec(0..40usize, 0..4), byte: u8) {
            let _ = parse(FROM, &bytes);
            let _ = parse("fe80::1".parse().unwrap(), &bytes);
            let mut packet = packet(2, 93, &[[10, 0, 0, 100]]);
            while let Some(index) = changed.pop() {
                packet[index] = byte;
            }
            let _ = parse(FROM, &packet);
        }
    }
}

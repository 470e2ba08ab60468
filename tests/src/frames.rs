// SPDX-License-Identifier: MIT OR Apache-2.0

//! The few Ethernet frames that tests read and make themselves: ARP, to hold an address that a node wants, and VRRP, to
//! hold a virtual router's number.

use std::net::Ipv4Addr;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Everybody.
pub const BROADCAST: Mac = [0xff; 6];

/// Reads `52:54:00:77:00:15`.
pub fn mac(text: &str) -> Option<Mac> {
    let byte = |part: &str| match part.bytes().all(|digit| digit.is_ascii_hexdigit()) && part.len() == 2 {
        true => u8::from_str_radix(part, 16).ok(),
        false => None,
    };
    let mut bytes = text.split(':').map(byte);
    let mut mac = Mac::default();
    for byte in &mut mac {
        *byte = bytes.next()??;
    }
    bytes.next().is_none().then_some(mac)
}

/// Who a frame is for, and who sent it; nothing if it is too short to be one.
pub fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let header = frame.get(..14)?;
    Some((header[..6].try_into().ok()?, header[6..12].try_into().ok()?))
}

/// Broadcast and multicast: for more than one station.
pub fn is_for_many(mac: &Mac) -> bool {
    mac[0] & 1 == 1
}

/// An ARP packet for IPv4 on Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// "Who has this address", else "I have it".
    pub request: bool,
    /// The sender's Ethernet address.
    pub sender_mac: Mac,
    /// The sender's address; `0.0.0.0` in a probe, with which a machine asks whether it may have an address.
    pub sender: Ipv4Addr,
    /// The Ethernet address asked for: zero in a request.
    pub target_mac: Mac,
    /// The address asked for.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Hardware Ethernet, protocol IPv4, and their addresses' lengths.
    const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

    /// Reads a frame; nothing if it is something else.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let body = frame.get(14..42)?;
        if frame[12..14] != [8, 6] || body[..6] != Self::KIND {
            return None;
        }
        let request = match body[6..8] {
            [0, 1] => true,
            [0, 2] => false,
            _ => return None,
        };
        Some(Self {
            request,
            sender_mac: body[8..14].try_into().ok()?,
            sender: ipv4(&body[14..18])?,
            target_mac: body[18..24].try_into().ok()?,
            target: ipv4(&body[24..28])?,
        })
    }

    /// The frame, for `to`.
    pub fn frame(&self, to: &Mac) -> Vec<u8> {
        let mut frame =
            [&to[..], &self.sender_mac, &[8, 6], &Self::KIND, &[0, if self.request { 1 } else { 2 }]].concat();
        frame.extend_from_slice(&self.sender_mac);
        frame.extend_from_slice(&self.sender.octets());
        frame.extend_from_slice(&self.target_mac);
        frame.extend_from_slice(&self.target.octets());
        frame.resize(60, 0);
        frame
    }

    /// What a station at `mac` answers that has the address asked for; nothing to an answer, and nothing to itself.
    pub fn answer(&self, mac: &Mac) -> Option<Self> {
        (self.request && self.sender_mac != *mac).then_some(Self {
            request: false,
            sender_mac: *mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
        })
    }
}

/// What a master of a virtual router says of itself, VRRP version 2, to everybody or, as keepalived with `unicast_peer`, to
/// one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advert {
    /// Whose.
    pub source: Ipv4Addr,
    /// For whom: [`Advert::EVERYBODY`] or a peer.
    pub to: Ipv4Addr,
    /// The virtual router's number.
    pub router: u8,
    /// The larger one wins.
    pub priority: u8,
    /// The virtual address.
    pub address: Ipv4Addr,
}

impl Advert {
    /// VRRP's multicast group.
    pub const EVERYBODY: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);

    /// The frame, from `mac`; `peer` is the Ethernet address of the receiver, for adverts that are not for everybody.
    pub fn frame(&self, mac: &Mac, peer: Option<&Mac>) -> Vec<u8> {
        let mut advert = vec![0x21, self.router, self.priority, 1, 0, 1, 0, 0];
        advert.extend_from_slice(&self.address.octets());
        advert.extend_from_slice(&[0; 8]);
        let sum = checksum(&advert).to_be_bytes();
        advert[6..8].copy_from_slice(&sum);

        let len = (20 + advert.len()) as u16;
        let mut header = vec![0x45, 0xc0, 0, 0, 0, 1, 0, 0, 255, 112, 0, 0];
        header[2..4].copy_from_slice(&len.to_be_bytes());
        header.extend_from_slice(&self.source.octets());
        header.extend_from_slice(&self.to.octets());
        let sum = checksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);

        let to = peer.copied().unwrap_or([0x01, 0, 0x5e, 0, 0, 18]);
        let mut frame = [&to[..], mac, &[8, 0], &header, &advert].concat();
        frame.resize(frame.len().max(60), 0);
        frame
    }

    /// Reads a frame; nothing if it is something else.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        if frame[12..14] != [8, 0] || packet.first()? >> 4 != 4 || *packet.get(9)? != 112 {
            return None;
        }
        let advert = packet.get(usize::from(packet[0] & 15) * 4..)?;
        // Version 2 or 3, type advertisement: the fields used here lie at the same place in both.
        if !matches!(advert.first()?, 0x21 | 0x31) {
            return None;
        }
        Some(Self {
            source: ipv4(packet.get(12..16)?)?,
            to: ipv4(packet.get(16..20)?)?,
            router: *advert.get(1)?,
            priority: *advert.get(2)?,
            address: ipv4(advert.get(8..12)?)?,
        })
    }
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

/// The Internet's checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Mac = [0x52, 0x54, 0, 0x77, 0, 1];
    const TWO: Mac = [0x52, 0x54, 0, 0x77, 0, 2];

    #[test]
    fn ethernet_addresses_are_read_and_others_are_not() {
        assert_eq!(mac("52:54:00:77:00:02"), Some(TWO));
        for wrong in
            ["", "52:54:00:77:00", "52:54:00:77:00:02:03", "52:54:00:77:00:2", "52:54:00:77:00:0x", "+1:54:00:77:00:02"]
        {
            assert_eq!(mac(wrong), None, "{wrong}");
        }
        assert!(is_for_many(&BROADCAST) && is_for_many(&[1, 0, 0x5e, 0, 0, 18]) && !is_for_many(&ONE));
    }

    /// The bytes of RFC 826 in their places, and the answer to a probe.
    #[test]
    fn a_probe_is_answered() {
        let address = Ipv4Addr::new(10, 77, 0, 31);
        let probe =
            Arp { request: true, sender_mac: ONE, sender: Ipv4Addr::UNSPECIFIED, target_mac: [0; 6], target: address };
        let frame = probe.frame(&BROADCAST);
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[..22], [&BROADCAST[..], &ONE, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat());
        assert_eq!(frame[38..42], [10, 77, 0, 31]);
        assert_eq!(Arp::parse(&frame), Some(probe));
        let answer = probe.answer(&TWO).unwrap();
        assert_eq!((answer.sender_mac, answer.sender, answer.target_mac), (TWO, address, ONE));
        assert_eq!(answer.answer(&ONE), None, "an answer is not answered");
        assert_eq!(probe.answer(&ONE), None, "nobody answers himself");
    }

    /// Checksums are right when the sum over the whole, checksum included, is all ones.
    #[test]
    fn an_advert_is_read_back_and_its_checksums_hold() {
        let (source, address) = (Ipv4Addr::new(10, 77, 0, 99), Ipv4Addr::new(10, 77, 0, 20));
        let advert = Advert { source, to: Advert::EVERYBODY, router: 77, priority: 200, address };
        let frame = advert.frame(&ONE, None);
        assert_eq!(Advert::parse(&frame), Some(advert));
        assert_eq!(checksum(&frame[14..34]), 0);
        assert_eq!(checksum(&frame[34..54]), 0);
        assert_eq!(addresses(&frame), Some(([1, 0, 0x5e, 0, 0, 18], ONE)));
    }

    #[test]
    fn cut_frames_are_nothing() {
        let target = Ipv4Addr::LOCALHOST;
        let arp = Arp { request: true, sender_mac: ONE, sender: target, target_mac: [0; 6], target }.frame(&TWO);
        let advert =
            Advert { source: target, to: target, router: 1, priority: 1, address: target }.frame(&ONE, Some(&TWO));
        for len in 0..42 {
            assert_eq!(Arp::parse(&arp[..len]), None);
            assert_eq!(Advert::parse(&arp[..len]), None);
            assert_eq!(Advert::parse(&advert[..len]), None);
        }
        assert_eq!(addresses(&arp[..13]), None);
    }
}

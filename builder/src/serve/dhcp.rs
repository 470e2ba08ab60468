// SPDX-License-Identifier: MIT OR Apache-2.0

//! DHCP packets (RFC 2131, options of RFC 2132), as far as a proxyDHCP server needs them: parsed, and written.
//!
//! By hand: the one kept crate, dhcproto, brings a DNS library and Unicode tables for options that nobody here asks
//! for.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Bytes before the options: the fields of BOOTP (236) and the cookie that says that options follow (RFC 2131, 3).
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Places of fields in a packet.
const XID: usize = 4;
const FLAGS: usize = 10;
const CLIENT: usize = 12;
const SERVER: usize = 20;
const RELAY: usize = 24;
const HARDWARE: usize = 28;
const FILE: usize = 108;
const FILE_LEN: usize = 128;
/// Least length of a packet: BOOTP's 300 bytes (RFC 951), which some boot ROMs insist on.
const LEN_MIN: usize = 300;

/// Values of `op`.
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// Numbers of options.
pub mod option {
    /// What kind of message it is.
    pub const MESSAGE_TYPE: u8 = 53;
    /// Address of the server that answers, or that is meant.
    pub const SERVER_ID: u8 = 54;
    /// Vendor class: `PXEClient…`.
    pub const CLASS: u8 = 60;
    /// Options of the vendor class (PXE specification 2.1, table 2-1).
    pub const VENDOR: u8 = 43;
    /// Name of the TFTP server.
    pub const TFTP_SERVER: u8 = 66;
    /// What to boot.
    pub const BOOT_FILE: u8 = 67;
    /// User class (RFC 3004); iPXE says `iPXE`.
    pub const USER_CLASS: u8 = 77;
    /// Architecture of the client's firmware (RFC 4578, 2.1).
    pub const ARCHITECTURE: u8 = 93;
    /// Identifier of the machine (RFC 4578, 2.3).
    pub const MACHINE_ID: u8 = 97;
    /// Options of iPXE (ipxe.org/howto/dhcpd, "gpxe-encapsulated").
    pub const IPXE: u8 = 175;
    /// Between options.
    pub(super) const PAD: u8 = 0;
    /// After the last.
    pub(super) const END: u8 = 255;
}

/// Kinds of message, values of option 53 (RFC 2132, 9.6).
pub mod message {
    /// A client looks for servers.
    pub const DISCOVER: u8 = 1;
    /// A server answers that.
    pub const OFFER: u8 = 2;
    /// A client asks one server.
    pub const REQUEST: u8 = 3;
    /// It says yes.
    pub const ACK: u8 = 5;
    /// A client that has an address asks for the rest.
    pub const INFORM: u8 = 8;
}

/// A request of a client on an Ethernet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Number of the exchange.
    pub xid: [u8; 4],
    /// Bit 15: answers are to be broadcast.
    pub flags: [u8; 2],
    /// The client's address, if it has one.
    pub client: Ipv4Addr,
    /// A relay through which it came; zeros: none.
    pub relay: Ipv4Addr,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its options.
    pub options: BTreeMap<u8, Vec<u8>>,
}

impl Request {
    /// From a packet; none if it is no request, not of an Ethernet, or malformed.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let fixed: &[u8; FIXED] = packet.first_chunk()?;
        // Hardware type 1 with addresses of 6 bytes is Ethernet.
        if fixed[..3] != [REQUEST, 1, 6] || fixed[FIXED - 4..] != COOKIE {
            return None;
        }
        let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
        let mut options: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        let mut rest = &packet[FIXED..];
        while let Some((&code, after)) = rest.split_first() {
            match code {
                option::PAD => rest = after,
                option::END => break,
                _ => {
                    let (&len, after) = after.split_first()?;
                    let value = after.get(..usize::from(len))?;
                    // One that comes again goes on (RFC 3396).
                    options.entry(code).or_default().extend_from_slice(value);
                    rest = &after[usize::from(len)..];
                }
            }
        }
        Some(Self {
            xid: fixed[XID..][..4].try_into().ok()?,
            flags: fixed[FLAGS..][..2].try_into().ok()?,
            client: address(CLIENT),
            relay: address(RELAY),
            mac: fixed[HARDWARE..][..6].try_into().ok()?,
            options,
        })
    }

    /// The kind of message.
    pub fn message(&self) -> Option<u8> {
        match self.options.get(&option::MESSAGE_TYPE)?[..] {
            [kind] => Some(kind),
            _ => None,
        }
    }

    /// The architecture of the client's firmware, the first if it has several.
    pub fn architecture(&self) -> Option<u16> {
        self.options.get(&option::ARCHITECTURE)?.first_chunk().map(|number| u16::from_be_bytes(*number))
    }

    /// The MAC address as people write it.
    pub fn mac(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// The packet that answers `request`: an address is never in it. A boot file longer than its field is in the option
/// only. Values of options are at most 255 bytes long.
pub fn reply(request: &Request, server: Ipv4Addr, boot_file: &str, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut packet = vec![0; FIXED];
    packet[..3].copy_from_slice(&[REPLY, 1, 6]);
    packet[XID..][..4].copy_from_slice(&request.xid);
    packet[FLAGS..][..2].copy_from_slice(&request.flags);
    packet[CLIENT..][..4].copy_from_slice(&request.client.octets());
    packet[SERVER..][..4].copy_from_slice(&server.octets());
    packet[HARDWARE..][..6].copy_from_slice(&request.mac);
    // The field ends in a NUL.
    if boot_file.len() < FILE_LEN {
        packet[FILE..][..boot_file.len()].copy_from_slice(boot_file.as_bytes());
    }
    packet[FIXED - 4..].copy_from_slice(&COOKIE);
    for (code, value) in options.iter().chain(&[(option::BOOT_FILE, boot_file.as_bytes())]) {
        let value = &value[..value.len().min(255)];
        packet.extend_from_slice(&[*code, value.len() as u8]);
        packet.extend_from_slice(value);
    }
    packet.push(option::END);
    packet.resize(packet.len().max(LEN_MIN), 0);
    packet
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet as firmware sends it, with these options in this order.
    pub(in crate::serve) fn packet(options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut packet = vec![0; FIXED];
        packet[..3].copy_from_slice(&[REQUEST, 1, 6]);
        packet[XID..][..4].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        packet[FLAGS] = 0x80;
        packet[HARDWARE..][..6].copy_from_slice(&[0x52, 0x54, 0, 0x77, 0, 0x15]);
        packet[FIXED - 4..].copy_from_slice(&COOKIE);
        for (code, value) in options {
            packet.extend_from_slice(&[*code, value.len() as u8]);
            packet.extend_from_slice(value);
        }
        packet.push(option::END);
        packet
    }

    #[test]
    fn a_request_is_read() {
        let mut bytes = packet(&[(53, &[1]), (93, &[0, 7]), (77, b"iP"), (77, b"XE"), (61, &[])]);
        // Padding between options, and what comes after the end does not count.
        bytes.insert(FIXED, option::PAD);
        bytes.extend_from_slice(&[53, 1, 9]);
        let request = Request::parse(&bytes).unwrap();
        assert_eq!((request.message(), request.architecture()), (Some(message::DISCOVER), Some(7)));
        assert_eq!((request.mac().as_str(), request.xid), ("52:54:00:77:00:15", [0xde, 0xad, 0xbe, 0xef]));
        assert_eq!(request.options[&option::USER_CLASS], b"iPXE");
        assert_eq!(request.options[&61], b"");
    }

    #[test]
    fn what_is_no_request_is_none() {
        let good = packet(&[(53, &[1])]);
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Request::parse(&bytes)
        };
        assert!(Request::parse(&good).is_some());
        assert_eq!(changed(0, REPLY), None);
        assert_eq!(changed(1, 32), None);
        assert_eq!(changed(2, 20), None);
        assert_eq!(changed(FIXED - 1, 0), None);
        // An option that is longer than the packet.
        assert_eq!(changed(FIXED + 1, 200), None);
        assert_eq!(Request::parse(&good[..FIXED - 1]), None);
        assert_eq!(Request::parse(&good[..FIXED + 1]), None);
        let two = Request::parse(&packet(&[(53, &[1, 2]), (93, &[7])])).unwrap();
        assert_eq!((two.message(), two.architecture()), (None, None));
    }

    #[test]
    fn a_reply_repeats_what_the_client_must_know_again() {
        let request = Request::parse(&packet(&[(53, &[1])])).unwrap();
        let server = Ipv4Addr::new(192, 168, 7, 1);
        let bytes = reply(&request, server, "ipxe.efi", &[(53, &[2])]);
        assert_eq!((bytes[0], bytes.len()), (REPLY, LEN_MIN));
        assert_eq!(bytes[XID..][..4], request.xid);
        assert_eq!(bytes[16..20], [0; 4], "no address is handed out");
        assert_eq!(bytes[SERVER..][..4], server.octets());
        assert!(bytes[FILE..].starts_with(b"ipxe.efi\0"));
        assert_eq!(bytes[FIXED..][..3], [53, 1, 2]);
        assert_eq!(bytes[FIXED + 3..][..10], *b"\x43\x08ipxe.efi");
        // A long one stands in the option alone.
        let long = format!("http://192.168.7.1/{}", "x".repeat(150));
        let bytes = reply(&request, server, &long, &[]);
        assert_eq!(bytes[FILE], 0);
        assert!(bytes.windows(long.len()).any(|part| part == long.as_bytes()));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(options in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..500) {
            let mut bytes = packet(&[]);
            bytes.truncate(FIXED);
            bytes.extend(options);
            bytes.truncate(cut.max(100));
            if let Some(request) = Request::parse(&bytes) {
                let _ = (request.message(), request.architecture());
                reply(&request, Ipv4Addr::LOCALHOST, "x", &[]);
            }
        }
    }
}

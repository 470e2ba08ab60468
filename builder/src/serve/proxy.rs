// SPDX-License-Identifier: MIT OR Apache-2.0

//! A proxyDHCP server (PXE specification 2.1, 2.2.3): tells machines that boot from the network what to boot. Addresses
//! come from the network's own DHCP server; a request that is not for booting gets no answer from here.
//!
//! Firmware gets a boot program over TFTP: iPXE. When that asks in its turn, it gets the menu over HTTP.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};

use super::dhcp::{Request, message, option, reply};
use super::folder::Firmware;

/// Port of DHCP clients.
const CLIENT_PORT: u16 = 68;
/// How firmware that boots from the network begins its vendor class (PXE specification 2.1, table 2-1), and how an
/// answer to it does.
const PXE_CLIENT: &[u8] = b"PXEClient";
/// The menu, by its name in the folder.
const MENU: &str = "boot.ipxe";
/// PXE vendor options: discovery control (6) with bit 3, "use the boot file of this answer and look for no boot
/// server"; end.
const USE_BOOT_FILE: [u8; 4] = [6, 1, 8, 255];

/// What a proxy says.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Its address.
    pub server: Ipv4Addr,
    /// Where the menu is.
    pub http_port: u16,
    /// Boot programs for firmware, by their names over TFTP.
    pub boot_files: BTreeMap<Firmware, String>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// A packet, and what it says to boot.
    Reply(Vec<u8>, String),
    /// Nothing to boot for this architecture (RFC 4578, 2.1).
    NothingFor(u16),
    /// Not for us.
    Silence,
}

impl Proxy {
    /// The answer to a request that came to `port`, 67 or 4011.
    fn answer(&self, request: &Request, port: u16) -> Answer {
        let class = request.options.get(&option::CLASS);
        // Behind a relay there is another network, whose machines do not reach this one by broadcast.
        if !class.is_some_and(|class| class.starts_with(PXE_CLIENT)) || !request.relay.is_unspecified() {
            return Answer::Silence;
        }
        let meant = request.options.get(&option::SERVER_ID).is_none_or(|id| *id == self.server.octets());
        let kind = match (request.message(), port) {
            (Some(message::DISCOVER), super::DHCP) => message::OFFER,
            // On 67, a request goes to the server that gives addresses: only 4011 is ours alone.
            (Some(message::REQUEST | message::INFORM), super::PROXY) if meant => message::ACK,
            _ => return Answer::Silence,
        };
        let is_ipxe = request.options.contains_key(&option::IPXE)
            || request.options.get(&option::USER_CLASS).is_some_and(|class| class.ends_with(b"iPXE"));
        let architecture = request.architecture().unwrap_or_default();
        let boot_file = if is_ipxe {
            match self.http_port {
                80 => format!("http://{}/{MENU}", self.server),
                port => format!("http://{}:{port}/{MENU}", self.server),
            }
        } else {
            match firmware(architecture).and_then(|firmware| self.boot_files.get(&firmware)) {
                Some(name) => name.clone(),
                None => return Answer::NothingFor(architecture),
            }
        };
        let server = self.server.octets();
        let name = self.server.to_string();
        let kind = [kind];
        let mut options: Vec<(u8, &[u8])> = vec![
            (option::MESSAGE_TYPE, &kind),
            (option::SERVER_ID, &server),
            (option::CLASS, PXE_CLIENT),
            (option::VENDOR, &USE_BOOT_FILE),
            (option::TFTP_SERVER, name.as_bytes()),
        ];
        if let Some(id) = request.options.get(&option::MACHINE_ID) {
            options.push((option::MACHINE_ID, id));
        }
        Answer::Reply(reply(request, self.server, &boot_file, &options), boot_file)
    }
}

/// Firmware by its architecture (IANA's "Processor Architecture Types" of RFC 5970). 7 was meant for EFI byte code, and
/// 9 for x86_64: all x86_64 firmware says 7.
fn firmware(architecture: u16) -> Option<Firmware> {
    match architecture {
        0 => Some(Firmware::Bios),
        7 | 9 => Some(Firmware::Amd64),
        39 => Some(Firmware::Loong64),
        _ => None,
    }
}

/// Answers requests that come to `socket` on `port`, for ever.
///
/// # Errors
/// If the socket fails for good.
pub fn serve(socket: &UdpSocket, proxy: &Proxy, port: u16) -> Result<()> {
    let mut buffer = [0; 1500];
    loop {
        let (len, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("receiving DHCP requests"),
        };
        let Some(request) = Request::parse(&buffer[..len]) else { continue };
        let mac = request.mac();
        match proxy.answer(&request, port) {
            Answer::Silence => {}
            Answer::NothingFor(architecture) => tracing::warn!(
                "dhcp: {mac} wants to boot, but there is no --boot-file for its firmware (architecture {architecture})"
            ),
            Answer::Reply(packet, boot_file) => {
                let to = destination(from, port);
                match socket.send_to(&packet, to) {
                    Ok(_) => tracing::info!("dhcp: {mac} is to boot {boot_file}"),
                    Err(error) => tracing::warn!("dhcp: answering {mac}: {error}"),
                }
            }
        }
    }
}

/// On port 67, a client has no address that anything could be sent to yet. On 4011 it has, and waits on the port it
/// sent from.
fn destination(from: SocketAddr, port: u16) -> SocketAddr {
    match port {
        super::DHCP => (Ipv4Addr::BROADCAST, CLIENT_PORT).into(),
        _ => from,
    }
}

/// For tests/fuzz: answers a packet.
#[cfg(fuzzing)]
pub(crate) fn fuzz(packet: &[u8]) {
    let Some(request) = Request::parse(packet) else { return };
    let boot_files = BTreeMap::from([(Firmware::Amd64, "snponly.efi".to_owned())]);
    let proxy = Proxy { server: Ipv4Addr::new(10, 0, 0, 1), http_port: 80, boot_files };
    for port in [super::DHCP, super::PROXY] {
        if let Answer::Reply(reply, _) = proxy.answer(&request, port) {
            // An answer to a broadcast must not be many times the question.
            assert!(reply.len() <= 1500 && Request::parse(&reply).is_none(), "{}", reply.len());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::dhcp::tests::packet;
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);
    /// What edk2 of x86_64 sends (`DHCP_CLIENT_…` in NetworkPkg/UefiPxeBcDxe), the machine identifier first byte 0.
    const OVMF: &[u8] = b"PXEClient:Arch:00007:UNDI:003000";
    const ID: [u8; 17] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

    fn proxy() -> Proxy {
        let boot_files = [(Firmware::Amd64, "ipxe.efi".to_owned()), (Firmware::Bios, "undionly.kpxe".to_owned())];
        Proxy { server: SERVER, http_port: 80, boot_files: boot_files.into() }
    }

    fn ask(options: &[(u8, &[u8])], port: u16) -> Answer {
        proxy().answer(&Request::parse(&packet(options)).unwrap(), port)
    }

    fn boot_file(answer: Answer) -> String {
        match answer {
            Answer::Reply(_, boot_file) => boot_file,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn firmware_gets_its_boot_program_and_no_address() {
        let discover = [(53, &[1][..]), (97, &ID), (93, &[0, 7]), (94, &[1, 3, 0]), (60, OVMF)];
        let Answer::Reply(bytes, boot_file) = ask(&discover, 67) else { panic!() };
        assert_eq!(boot_file, "ipxe.efi");
        assert_eq!(bytes[16..20], [0; 4], "an address was handed out");
        // As any client reads it: turned into a request, our own parser does.
        let mut request = bytes.clone();
        request[0] = 1;
        let options = Request::parse(&request).unwrap().options;
        let wanted: BTreeMap<u8, Vec<u8>> = [
            (53, vec![2]),
            (54, SERVER.octets().to_vec()),
            (60, b"PXEClient".to_vec()),
            (43, vec![6, 1, 8, 255]),
            (66, b"192.168.7.1".to_vec()),
            (67, b"ipxe.efi".to_vec()),
            (97, ID.to_vec()),
        ]
        .into();
        assert_eq!(options, wanted);
    }

    #[test]
    fn ipxe_gets_the_menu() {
        let user_class = [(53, &[1][..]), (93, &[0, 7]), (60, OVMF), (77, b"iPXE")];
        assert_eq!(boot_file(ask(&user_class, 67)), "http://192.168.7.1/boot.ipxe");
        let own_options = [(53, &[3][..]), (93, &[0, 39]), (60, b"PXEClient:Arch:00039"), (175, &[1, 1, 1])];
        assert_eq!(boot_file(ask(&own_options, 4011)), "http://192.168.7.1/boot.ipxe");
        let request = Request::parse(&packet(&user_class)).unwrap();
        let other = Proxy { http_port: 8080, ..proxy() };
        assert_eq!(boot_file(other.answer(&request, 67)), "http://192.168.7.1:8080/boot.ipxe");
    }

    #[test]
    fn each_firmware_has_its_own() {
        let at = |architecture: &[u8]| ask(&[(53, &[1]), (60, OVMF), (93, architecture)], 67);
        assert_eq!(boot_file(at(&[0, 0])), "undionly.kpxe");
        assert_eq!(boot_file(at(&[0, 9])), "ipxe.efi");
        assert_eq!(boot_file(ask(&[(53, &[1]), (60, b"PXEClient")], 67)), "undionly.kpxe");
        assert_eq!(at(&[0, 39]), Answer::NothingFor(39));
        assert_eq!(at(&[0, 11]), Answer::NothingFor(11));
    }

    #[test]
    fn who_does_not_boot_gets_no_answer() {
        let pxe = |message: u8, port: u16, more: &[(u8, &[u8])]| {
            ask(&[&[(53, &[message][..]), (60, OVMF), (93, &[0, 7])], more].concat(), port)
        };
        // An installed system, and one of another kind.
        assert_eq!(ask(&[(53, &[1]), (93, &[0, 7])], 67), Answer::Silence);
        assert_eq!(ask(&[(53, &[1]), (60, b"MSFT 5.0")], 67), Answer::Silence);
        assert_eq!(ask(&[(60, OVMF)], 67), Answer::Silence);
        // What is for the server that gives addresses, or for another proxy.
        assert_eq!(pxe(3, 67, &[]), Answer::Silence);
        assert_eq!(pxe(7, 67, &[]), Answer::Silence);
        assert_eq!(pxe(1, 4011, &[]), Answer::Silence);
        assert_eq!(pxe(3, 4011, &[(54, &[192, 168, 7, 2])]), Answer::Silence);
        assert_eq!(boot_file(pxe(3, 4011, &[(54, &SERVER.octets())])), "ipxe.efi");
        assert_eq!(boot_file(pxe(8, 4011, &[])), "ipxe.efi");
        let mut relayed = packet(&[(53, &[1]), (60, OVMF), (93, &[0, 7])]);
        relayed[24] = 10;
        assert_eq!(proxy().answer(&Request::parse(&relayed).unwrap(), 67), Answer::Silence);
    }

    #[test]
    fn a_client_with_an_address_is_answered_there() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || serve(&socket, &proxy(), 4011));
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        for junk in [&b""[..], b"x", &packet(&[(53, &[3])])] {
            client.send_to(junk, address).unwrap();
        }
        client.send_to(&packet(&[(53, &[3]), (60, OVMF), (93, &[0, 7])]), address).unwrap();
        let mut buffer = [0; 1500];
        let len = client.recv(&mut buffer).unwrap();
        assert!(buffer[108..len].starts_with(b"ipxe.efi\0"));
        assert_eq!(destination(address, 67), "255.255.255.255:68".parse().unwrap());
    }
}

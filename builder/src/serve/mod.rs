// SPDX-License-Identifier: MIT OR Apache-2.0

//! Hands out a PXE folder to machines in the same network segment: [`http`], [`tftp`], and a proxyDHCP server
//! ([`proxy`]) that tells machines what to boot and leaves their addresses to whoever gives them. One thread for each;
//! nothing is written.

pub mod dhcp;
pub mod folder;
pub mod http;
pub mod proxy;
pub mod tftp;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt as options};

use crate::error::{Failure, hint};
use folder::{Firmware, Folder};
use proxy::Proxy;

/// Ports by their RFCs: TFTP 1350, BOOTP/DHCP 2131; and the PXE specification 2.1 (2.2.3, "proxyDHCP on port 4011").
const TFTP: u16 = 69;
const DHCP: u16 = 67;
const PROXY: u16 = 4011;

/// What is served where.
#[derive(Debug, Clone)]
pub struct Config {
    /// The PXE folder.
    pub folder: PathBuf,
    /// Boot programs for firmware: iPXE, or GRUB.
    pub boot_files: Vec<PathBuf>,
    /// Name of the network interface.
    pub interface: String,
    /// TCP port of HTTP.
    pub http_port: u16,
}

/// Servers that have their ports.
#[derive(Debug)]
pub struct Server {
    address: Ipv4Addr,
    http: TcpListener,
    tftp: UdpSocket,
    dhcp: UdpSocket,
    proxy_port: UdpSocket,
    folder: Arc<Folder>,
    proxy: Arc<Proxy>,
}

impl Server {
    /// Opens the folder and all ports.
    ///
    /// # Errors
    /// All at once: a folder that is none, a boot program for no firmware, an interface without an IPv4 address, ports
    /// that are taken.
    pub fn open(config: &Config) -> Result<Self> {
        let folder = Folder::open(&config.folder, &config.boot_files);
        let address = address_of(&config.interface);
        let at = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let interface = Some(config.interface.as_str());
        let http = listen(at(config.http_port), interface);
        let [tftp, dhcp, proxy_port] = [TFTP, DHCP, PROXY].map(|port| datagrams(at(port), interface));
        match (folder, address, http, tftp, dhcp, proxy_port) {
            (Ok(folder), Ok(address), Ok(http), Ok(tftp), Ok(dhcp), Ok(proxy_port)) => {
                let proxy = Proxy { server: address, http_port: config.http_port, boot_files: folder.boot_files() };
                let (folder, proxy) = (Arc::new(folder), Arc::new(proxy));
                Ok(Self { address, http, tftp, dhcp, proxy_port, folder, proxy })
            }
            (folder, address, http, tftp, dhcp, proxy_port) => {
                let errors: Vec<anyhow::Error> =
                    [folder.err(), address.err(), http.err(), tftp.err(), dhcp.err(), proxy_port.err()]
                        .into_iter()
                        .flatten()
                        .collect();
                Err(all(&errors))
            }
        }
    }

    /// The address it hands out for itself.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Names of the boot programs that firmware is told.
    pub fn boot_files(&self) -> &BTreeMap<Firmware, String> {
        &self.proxy.boot_files
    }

    /// Serves until the process ends.
    ///
    /// # Errors
    /// If a thread cannot be started, or a socket fails for good.
    pub fn run(self) -> Result<()> {
        let Self { http, tftp, dhcp, proxy_port, folder, proxy, .. } = self;
        let (folder2, proxy2) = (folder.clone(), proxy.clone());
        let threads = [
            std::thread::Builder::new().name("http".into()).spawn(move || http::serve(&http, &folder)),
            std::thread::Builder::new().name("tftp".into()).spawn(move || tftp::serve(&tftp, &folder2)),
            std::thread::Builder::new().name("dhcp".into()).spawn(move || proxy::serve(&dhcp, &proxy, DHCP)),
            std::thread::Builder::new().name("proxy".into()).spawn(move || proxy::serve(&proxy_port, &proxy2, PROXY)),
        ];
        for thread in threads {
            let thread = thread.map_err(|e| Failure::io("starting a server", e))?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    }
}

/// Several errors as one, each with what to do about it.
fn all(errors: &[anyhow::Error]) -> anyhow::Error {
    let line = |error: &anyhow::Error| match hint(error) {
        Some(hint) => format!("{error:#}; {hint}"),
        None => format!("{error:#}"),
    };
    let kind = errors.first().map_or(crate::error::ErrorKind::Internal, crate::error::kind);
    let lines: Vec<String> = errors.iter().map(line).collect();
    Failure::new(kind, lines.join("\n  ")).into()
}

/// The IPv4 address of an interface.
fn address_of(name: &str) -> Result<Ipv4Addr> {
    let addresses = nix::ifaddrs::getifaddrs().context("listing the network interfaces")?;
    let mut names = Vec::new();
    for found in addresses {
        let address = found.address.and_then(|address| address.as_sockaddr_in().map(|v4| v4.ip()));
        if found.interface_name == name
            && let Some(address) = address
        {
            return Ok(address);
        }
        if let Some(address) = address {
            names.push(format!("{} ({address})", found.interface_name));
        }
    }
    let message = format!("there is no network interface `{name}` with an IPv4 address");
    Err(Failure::user(message).hint(format!("this machine has: {}", names.join(", "))).into())
}

/// Why a port cannot be had.
fn port_error(at: SocketAddrV4, protocol: &str, error: rustix::io::Errno) -> Failure {
    let failure = Failure::environment(format!("opening {protocol} port {}", at.port())).caused_by(error);
    match error {
        rustix::io::Errno::ADDRINUSE => {
            failure.hint("another server has it (dnsmasq, tftpd, a web server): stop that, or take another --http-port")
        }
        rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => failure.hint("ports below 1024 need root"),
        _ => failure,
    }
}

/// A socket that only sees one interface's packets: a laptop in the room may have another one to somewhere else.
fn socket(
    at: SocketAddrV4,
    interface: Option<&str>,
    kind: SocketType,
) -> std::result::Result<rustix::fd::OwnedFd, rustix::io::Errno> {
    let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
    if let Some(interface) = interface {
        let name = OsString::from(interface);
        setsockopt(&socket, sockopt::BindToDevice, &name)
            .map_err(|e| rustix::io::Errno::from_raw_os_error(e as i32))?;
    }
    match kind {
        // Of a server that was stopped a moment ago, connections may still be there.
        SocketType::STREAM => options::set_socket_reuseaddr(&socket, true)?,
        _ => options::set_socket_broadcast(&socket, true)?,
    }
    bind(&socket, &SocketAddr::V4(at))?;
    Ok(socket)
}

fn listen(at: SocketAddrV4, interface: Option<&str>) -> Result<TcpListener> {
    let socket = socket(at, interface, SocketType::STREAM).map_err(|e| port_error(at, "TCP", e))?;
    rustix::net::listen(&socket, 128).map_err(|e| port_error(at, "TCP", e))?;
    Ok(socket.into())
}

fn datagrams(at: SocketAddrV4, interface: Option<&str>) -> Result<UdpSocket> {
    Ok(socket(at, interface, SocketType::DGRAM).map_err(|e| port_error(at, "UDP", e))?.into())
}

/// Bytes for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ 0..0x10_0000 => write!(f, "{:.1} KiB", bytes as f64 / f64::from(1 << 10)),
            bytes => write!(f, "{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_missing_is_said_at_once() {
        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let config = Config {
            folder: "/no/such/folder".into(),
            boot_files: vec![],
            interface: "none9".into(),
            http_port: taken.local_addr().unwrap().port(),
        };
        let error = Server::open(&config).unwrap_err().to_string();
        for part in ["/no/such/folder", "there is no network interface `none9`", "127.0.0.1"] {
            assert!(error.contains(part), "{part}\n{error}");
        }
    }

    #[test]
    fn the_loopback_interface_has_its_address() {
        assert_eq!(address_of("lo").unwrap(), Ipv4Addr::LOCALHOST);
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = listen(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), None).unwrap_err();
        assert!(format!("{error:#}").contains(&format!("opening TCP port {port}")), "{error:#}");
        assert!(hint(&error).unwrap().contains("another server has it"));
    }
}

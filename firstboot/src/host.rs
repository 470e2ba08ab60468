// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the node's kernel says and does, behind a seam so that tests have a clock and addresses of their own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::arp::{self, Interface, Mac};
use crate::peer_port::{self, Greeter, PeerPort};

/// The kernel of the node.
pub trait Host {
    /// Seconds since 1970.
    fn unix_time(&self) -> u64;
    /// A clock that never jumps.
    fn uptime(&self) -> Duration;
    /// Waits.
    fn sleep(&self, time: Duration);
    /// Whether `address` is on an interface of this node.
    fn has_address(&self, address: IpAddr) -> bool;
    /// Whether nothing listens on the TCP port.
    fn port_is_free(&self, port: u16) -> bool;
    /// The kernel's host name.
    fn hostname(&self) -> String;
    /// Sets the kernel's host name.
    fn set_hostname(&self, name: &str) -> Result<()>;
    /// Makes everything on the filesystem that holds `path` durable.
    fn sync(&self, path: &Path) -> Result<()>;
    /// What arrives of VRRP on the interface with `address` (IPv6: called `interface`) within `time`: from where, and what.
    fn hear_vrrp(&self, address: IpAddr, interface: Option<&str>, time: Duration) -> Result<Vec<(IpAddr, Vec<u8>)>>;
    /// What answers on another etcd member's peer port.
    fn peer_port(&self, at: SocketAddr, cluster: &str) -> PeerPort;
    /// Greets on this node's own peer port until dropped.
    fn greet(&self, at: SocketAddr, line: String) -> Result<Box<dyn Greeter>>;
    /// Another machine on the network that uses `address`.
    fn address_owner(&self, interface: &Interface, address: Ipv4Addr) -> Result<Option<Mac>>;
    /// Bytes that programs may still write to the filesystem that holds `path`.
    fn free_space(&self, path: &Path) -> Result<u64>;
}

/// The real one.
#[derive(Debug)]
pub struct RealHost {
    started: Instant,
}

impl RealHost {
    /// Starts the clock.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for RealHost {
    fn default() -> Self {
        Self::new()
    }
}

impl Host for RealHost {
    fn unix_time(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn has_address(&self, address: IpAddr) -> bool {
        // Binding works for local addresses only; for IPv6 it also waits out duplicate address detection.
        UdpSocket::bind(SocketAddr::new(address, 0)).is_ok()
    }

    fn port_is_free(&self, port: u16) -> bool {
        // The wildcard, as kubeadm's own check does it: a listener on any one address counts. The IPv6 wildcard covers
        // both families where IPv6 exists.
        let any4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        TcpListener::bind(any4).is_ok()
    }

    fn hostname(&self) -> String {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }

    fn set_hostname(&self, name: &str) -> Result<()> {
        rustix::system::sethostname(name.as_bytes()).with_context(|| format!("setting the host name to {name}"))
    }

    fn sync(&self, path: &Path) -> Result<()> {
        let dir = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
        rustix::fs::syncfs(&dir).with_context(|| format!("syncing the filesystem of {}", path.display()))
    }

    fn hear_vrrp(&self, address: IpAddr, interface: Option<&str>, time: Duration) -> Result<Vec<(IpAddr, Vec<u8>)>> {
        crate::vrrp::listen(address, interface, time)
    }

    fn peer_port(&self, at: SocketAddr, cluster: &str) -> PeerPort {
        peer_port::ask(at, cluster)
    }

    fn greet(&self, at: SocketAddr, line: String) -> Result<Box<dyn Greeter>> {
        Ok(Box::new(peer_port::greet(at, line)?))
    }

    fn address_owner(&self, interface: &Interface, address: Ipv4Addr) -> Result<Option<Mac>> {
        arp::probe(interface, address)
    }

    fn free_space(&self, path: &Path) -> Result<u64> {
        let stat =
            rustix::fs::statvfs(path).with_context(|| format!("asking for the free space of {}", path.display()))?;
        Ok(stat.f_bavail * stat.f_frsize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_addresses_and_ports() {
        let host = RealHost::new();
        assert!(host.has_address("127.0.0.1".parse().unwrap()));
        assert!(!host.has_address("192.0.2.77".parse().unwrap()));
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!host.port_is_free(taken.local_addr().unwrap().port()));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! haproxy and keepalived on the masters. Both have formats of their own, written line by line.
//!
//! Where the API server is asked, it is for /readyz, which anonymous clients may see: /healthz says good of one that does
//! not serve yet. Certificates are not verified there: one that expired must not take the address away from
//! all masters, and what answers is reached directly, by its address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Context, NodeFile, RenderError, enabled, text};
use crate::node::Role;
use crate::profile::host_port;

/// Of every master in the election; the protocol's default for a router that is no address's owner (RFC 5798, 5.2.4).
const PRIORITY: u8 = 100;

/// What the profile says of the load balancer.
pub(super) struct Settings {
    pub(super) vip: IpAddr,
    pub(super) port: u16,
    pub(super) vrid: u8,
    /// Seconds between two checks.
    pub(super) interval: u32,
}

impl Settings {
    /// How long an answer may take: a slow machine is not a dead one.
    fn patience(&self) -> u32 {
        self.interval.saturating_mul(2)
    }

    /// Seconds between two adverts; three missed ones make a backup take over. 40 is the most the protocol can say.
    fn advert(&self) -> u32 {
        (self.interval / 2).clamp(1, 40)
    }

    /// `v4` or, for a virtual address of IPv6, `v6`.
    fn of_family(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
        if self.vip.is_ipv6() { v6.into() } else { v4.into() }
    }
}

pub(super) fn files(c: &Context<'_>, s: &Settings) -> Result<Vec<NodeFile>, RenderError> {
    let interface = c.profile.node.interface.as_deref().ok_or(RenderError::Invalid("interface"))?;
    Ok(vec![
        text("/etc/haproxy/haproxy.cfg", haproxy(c, s)),
        enabled("haproxy.service", "/usr/lib/systemd/system"),
        text("/etc/keepalived/keepalived.conf", keepalived(c, s, interface)),
        enabled("keepalived.service", "/usr/lib/systemd/system"),
    ])
}

/// No statistics page: nobody asked for one, and its password would be known to all. The socket is root's alone.
fn haproxy(c: &Context<'_>, s: &Settings) -> String {
    // Not the virtual address: a master that does not hold it could not bind it.
    let bind = host_port(s.of_family(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED), s.port);
    let (interval, patience) = (s.interval, s.patience());
    let mut text = format!(
        "\
# Written by imgbuild; changes are lost.
global
    log /dev/log local0
    user haproxy
    group haproxy
    maxconn 4000
    stats socket /run/haproxy/admin.sock mode 600 level admin

defaults
    mode tcp
    log global
    option tcplog
    option dontlognull
    timeout connect 5s
    # kubectl logs and watches stay silent for long
    timeout client 4h
    timeout server 4h
    timeout check {patience}s

frontend apiserver
    bind {bind}
    default_backend masters

backend masters
    balance roundrobin
    # A port that answers is not yet an API server that serves
    option httpchk GET /readyz
    http-check expect status 200
    default-server check check-ssl verify none inter {interval}s fall 3 rise 2
"
    );
    for master in c.peers_with(Role::Master) {
        let address = host_port(master.address, c.profile.kubernetes.apiserver_port);
        text += &format!("    server {} {address}\n", master.name);
    }
    text
}

/// All masters have the same priority: a backup takes over only from one that has less, so that nothing fails back by
/// itself. The check takes half of it away: the address leaves a master whose check fails as soon as another one's is
/// good. Where it fails on all of them, because no API server serves yet or all are overloaded, one keeps the address and
/// what still works stays reachable; without a weight all would leave the election, and nobody would have it. `nopreempt`
/// must not be there: with it, a dead haproxy would stay in office. The check goes through the haproxy of this node, and
/// so fails when that is dead or finds no API server at all.
///
/// No `authentication`: VRRP version 3 has none (RFC 5798), and version 2 sends its eight characters readable to the
/// whole segment. The peers are listed and `check_unicast_src` drops adverts of others instead.
fn keepalived(c: &Context<'_>, s: &Settings, interface: &str) -> String {
    let node = &c.profile.node;
    let peers: String = c
        .peers_with(Role::Master)
        .filter(|peer| peer.name != node.name)
        .map(|peer| format!("        {}\n", peer.address))
        .collect();
    let unicast = match peers.as_str() {
        // A sole master speaks to nobody; an empty list would be an error.
        "" => String::new(),
        _ => format!("    unicast_src_ip {}\n    unicast_peer {{\n{peers}    }}\n    check_unicast_src\n", c.address()),
    };
    let local = host_port(s.of_family(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST), s.port);
    format!(
        "\
# Written by imgbuild; changes are lost.
global_defs {{
    router_id {name}
    vrrp_version 3
    enable_script_security
    script_user root
}}

vrrp_script apiserver {{
    script \"/usr/bin/curl --silent --fail --insecure --globoff --max-time {patience} --output /dev/null \
https://{local}/readyz\"
    interval {interval}
    timeout {timeout}
    fall 3
    rise 2
    init_fail
    weight -{penalty}
}}

vrrp_instance apiserver {{
    state BACKUP
    interface {interface}
    virtual_router_id {vrid}
    priority {PRIORITY}
    advert_int {advert}
{unicast}    virtual_ipaddress {{
        {vip}/{prefix} dev {interface}
    }}
    track_script {{
        apiserver
    }}
}}
",
        name = node.name,
        interval = s.interval,
        patience = s.patience(),
        timeout = s.patience().saturating_add(1),
        penalty = PRIORITY / 2,
        vrid = s.vrid,
        advert = s.advert(),
        vip = s.vip,
        prefix = node.address.prefix_len(),
    )
}

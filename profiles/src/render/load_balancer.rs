// SPDX-License-Identifier: MIT OR Apache-2.0
//! haproxy and keepalived on the masters. Both have formats of their own, written line by line.

use std::net::IpAddr;

use super::{Context, NodeFile, RenderError, enabled, text};
use crate::node::Role;
use crate::profile::host_port;

pub(super) fn files(c: &Context<'_>, vip: IpAddr, port: u16, vrid: u8) -> Result<Vec<NodeFile>, RenderError> {
    let interface = c.profile.node.interface.as_deref().ok_or(RenderError::Invalid("interface"))?;
    Ok(vec![
        text("/etc/haproxy/haproxy.cfg", haproxy(c, vip, port)),
        enabled("haproxy.service", "/usr/lib/systemd/system"),
        text("/etc/keepalived/keepalived.conf", keepalived(c, vip, port, vrid, interface)),
        enabled("keepalived.service", "/usr/lib/systemd/system"),
    ])
}

/// No statistics page: nobody asked for one, and its password would be known to all.
fn haproxy(c: &Context<'_>, vip: IpAddr, port: u16) -> String {
    let any = if vip.is_ipv6() { "::" } else { "0.0.0.0" };
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

frontend apiserver
    bind {any}:{port}
    default_backend masters

backend masters
    balance roundrobin
    # A port that answers is not yet an API server that serves
    option httpchk GET /healthz
    http-check expect status 200
    default-server check check-ssl verify none inter 2s fall 3 rise 2
"
    );
    for master in c.peers_with(Role::Master) {
        let address = host_port(master.address, c.profile.kubernetes.apiserver_port);
        text += &format!("    server {} {address}\n", master.name);
    }
    text
}

/// All masters start as BACKUP with `nopreempt`: nothing fails back by itself. The check has no weight: when it fails,
/// the instance leaves the election. With a weight, `nopreempt` would keep a dead haproxy in office.
fn keepalived(c: &Context<'_>, vip: IpAddr, port: u16, vrid: u8, interface: &str) -> String {
    let node = &c.profile.node;
    let priority =
        100usize.saturating_sub(c.peers_with(Role::Master).position(|peer| peer.name == node.name).unwrap_or(0)).max(1);
    let own = c.address();
    let peers: String = c
        .peers_with(Role::Master)
        .filter(|peer| peer.name != node.name)
        .map(|peer| format!("        {}\n", peer.address))
        .collect();
    let local = host_port(if vip.is_ipv6() { [0, 0, 0, 0, 0, 0, 0, 1].into() } else { [127, 0, 0, 1].into() }, port);
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
    script \"/usr/bin/curl --silent --fail --insecure --max-time 3 --output /dev/null https://{local}/healthz\"
    interval 3
    timeout 5
    fall 3
    rise 2
    weight 0
}}

vrrp_instance apiserver {{
    state BACKUP
    nopreempt
    interface {interface}
    virtual_router_id {vrid}
    priority {priority}
    advert_int 1
    unicast_src_ip {own}
    unicast_peer {{
{peers}    }}
    virtual_ipaddress {{
        {vip}/{prefix} dev {interface}
    }}
    track_script {{
        apiserver
    }}
}}
",
        name = node.name,
        prefix = node.address.prefix_len(),
    )
}

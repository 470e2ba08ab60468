// SPDX-License-Identifier: MIT OR Apache-2.0
//! keepalived's VIP and haproxy's backends.

use std::net::IpAddr;

use profiles::node::{LoadBalancer, NodeProfile, Role};
use serde_json::Value;

use super::collect::{Facts, peers};
use super::json::{list, text};
use super::{Check, Source};

const VIP: &str = "lb.vip";
const BACKEND: &str = "lb.backend";

pub(super) fn judge(profile: &NodeProfile, facts: &Facts) -> Vec<Check> {
    let LoadBalancer::Keepalived { vip, .. } = &profile.load_balancer else { return Vec::new() };
    // A node that uses no kubeconfig never asks the VIP, and its neighbour table does not know it.
    if matches!(facts.addresses, Source::NotAsked) {
        return Vec::new();
    }
    let mut checks = vec![holder(profile, facts, *vip)];
    checks.extend(backends(&facts.haproxy));
    checks
}

/// Who holds the VIP. For other nodes the kernel's neighbour table tells: the VIP's link address is its holder's.
fn holder(profile: &NodeProfile, facts: &Facts, vip: IpAddr) -> Check {
    let subject = vip.to_string();
    let own = match &facts.addresses {
        Source::Known(links) => own_link(links, vip),
        Source::Failed(why) => {
            return Check::unknown(VIP, &subject, format!("the addresses of this node are unknown: {why}"), "");
        }
        Source::NotAsked => None,
    };
    if own.is_some() {
        return Check::ok(VIP, &subject, format!("{} (this node) holds it", profile.node.name));
    }
    let Source::Known(neighbours) = &facts.neighbours else {
        return Check::info(VIP, &subject, "this node does not hold it; who does is not visible from here");
    };
    let Some(link) = neighbour(neighbours, vip) else {
        let serves = facts.apis.iter().any(|api| api.master.is_none() && api.ready());
        return if serves {
            // Behind a router there is no link address to compare.
            Check::info(VIP, &subject, "another node holds it; which is not visible from here")
        } else {
            let advice =
                "`systemctl status keepalived haproxy` on every master; the VIP needs one whose haproxy serves";
            Check::error(VIP, &subject, "no node holds it", advice)
        };
    };
    let masters: Vec<_> = peers(profile, &[Role::Master]).filter(|peer| peer.name != profile.node.name).collect();
    let links: Vec<Option<&str>> = masters.iter().map(|peer| neighbour(neighbours, peer.address)).collect();
    if let Some(index) = links.iter().position(|found| *found == Some(link)) {
        return Check::ok(VIP, &subject, format!("{} holds it", masters[index].name));
    }
    if links.iter().all(Option::is_some) {
        let finding = format!("{link} answers for it, which is none of the other masters");
        let advice = "find the machine with that link address: it uses the VIP's address too";
        return Check::error(VIP, &subject, finding, advice);
    }
    Check::info(VIP, &subject, format!("{link} holds it; a master that is not visible from here, or a stranger"))
}

/// The interface of this node that has `address`.
fn own_link(links: &Value, address: IpAddr) -> Option<&str> {
    let has = |link: &&Value| list(link, "/addr_info").iter().any(|info| is(text(info, "/local"), address));
    list(links, "").iter().find(has).map(|link| text(link, "/ifname"))
}

/// The link address of a neighbour that answers.
fn neighbour(neighbours: &Value, address: IpAddr) -> Option<&str> {
    let found = list(neighbours, "").iter().find(|one| is(text(one, "/dst"), address))?;
    let failed = list(found, "/state").iter().any(|state| matches!(state.as_str(), Some("FAILED" | "INCOMPLETE")));
    Some(text(found, "/lladdr")).filter(|link| !link.is_empty() && !failed)
}

fn is(found: &str, address: IpAddr) -> bool {
    found.parse() == Ok(address)
}

/// haproxy's own view of the API servers, from the CSV of `show stat`.
fn backends(answer: &Source<String>) -> Vec<Check> {
    let table = match answer {
        Source::Known(table) => table,
        Source::Failed(why) => {
            let advice = "`systemctl status haproxy`";
            return vec![Check::unknown(BACKEND, "", format!("haproxy does not answer: {why}"), advice)];
        }
        Source::NotAsked => return Vec::new(),
    };
    let servers = servers(table);
    if servers.is_empty() {
        let advice = "look at /etc/haproxy/haproxy.cfg and `journalctl -u haproxy`";
        return vec![Check::unknown(BACKEND, "", "haproxy lists no servers", advice)];
    }
    let up = servers.iter().filter(|server| server.status.starts_with("UP")).count();
    let mut checks: Vec<Check> = servers
        .iter()
        .filter(|server| !server.status.starts_with("UP"))
        .map(|server| {
            let last = if server.check.is_empty() { String::new() } else { format!(" ({})", server.check) };
            let finding = format!("haproxy here sees it {}{last}", server.status);
            let advice = "see the topic `api`; if that server serves, look at the network from here to it";
            match up {
                0 => Check::error(BACKEND, &server.name, finding, advice),
                _ => Check::warning(BACKEND, &server.name, finding, advice),
            }
        })
        .collect();
    if up > 0 {
        checks.push(Check::ok(BACKEND, "", format!("haproxy here sees {up} of {} API servers up", servers.len())));
    }
    checks
}

struct Server {
    name: String,
    status: String,
    check: String,
}

/// Rows of servers, by the names in the header line: the columns differ between versions.
fn servers(table: &str) -> Vec<Server> {
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().trim_start_matches("# ").split(',').collect();
    let column = |name: &str| header.iter().position(|found| *found == name);
    let (Some(server), Some(status)) = (column("svname"), column("status")) else { return Vec::new() };
    let check = column("check_status");
    lines
        .map(|line| line.split(',').collect::<Vec<_>>())
        .filter_map(|fields| {
            let field = |index: usize| fields.get(index).copied().unwrap_or_default().to_owned();
            let name = field(server);
            let is_server = !matches!(name.as_str(), "" | "FRONTEND" | "BACKEND");
            is_server.then(|| Server { name, status: field(status), check: check.map(field).unwrap_or_default() })
        })
        .collect()
}

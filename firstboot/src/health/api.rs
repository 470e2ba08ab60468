// SPDX-License-Identifier: MIT OR Apache-2.0
//! API servers: each master's own `/readyz`, and the endpoint that all nodes use.

use profiles::node::{LoadBalancer, NodeProfile};

use super::Check;
use super::collect::{Api, Facts};
use super::programs::{Ran, why};
use super::time::from_http;

const SERVER: &str = "api.server";
const ENDPOINT: &str = "api.endpoint";

pub(super) fn judge(profile: &NodeProfile, facts: &Facts) -> Vec<Check> {
    let mut checks = Vec::new();
    let (servers, endpoints): (Vec<&Api>, Vec<&Api>) = facts.apis.iter().partition(|api| api.master.is_some());
    let ready = servers.iter().filter(|api| api.ready()).count();
    for api in servers.iter().filter(|api| !api.ready()) {
        let name = api.master.as_deref().unwrap_or_default();
        checks.push(Check::error(
            SERVER,
            name,
            format!("does not serve: {}", trouble(&api.answer)),
            advice(profile, name),
        ));
    }
    if ready > 0 {
        let margin = match (ready, servers.len()) {
            (ready, all) if ready == all => format!("{ready} of {all} API servers serve"),
            (1, all) => format!("1 of {all} API servers serves: there is no reserve left"),
            (ready, all) => format!("{ready} of {all} API servers serve"),
        };
        checks.push(Check::ok(SERVER, "", margin));
    }
    for api in endpoints {
        let address = api.server.trim_start_matches("https://");
        if api.ready() {
            checks.push(Check::ok(ENDPOINT, address, "serves"));
            continue;
        }
        let advice = match &profile.load_balancer {
            _ if ready == 0 => "bring back an API server first".to_owned(),
            LoadBalancer::Keepalived { .. } => {
                "look at `systemctl status keepalived haproxy` on the masters".to_owned()
            }
            LoadBalancer::External { .. } | LoadBalancer::None => {
                "look at the load balancer: API servers serve, but not through it".to_owned()
            }
        };
        checks.push(Check::error(ENDPOINT, address, format!("does not serve: {}", trouble(&api.answer)), advice));
    }
    checks
}

fn advice(profile: &NodeProfile, name: &str) -> String {
    let log = format!("`tail /var/log/pods/kube-system_kube-apiserver-{name}_*/kube-apiserver/*.log`");
    if name == profile.node.name {
        format!("look at `systemctl status kubelet`, then {log}")
    } else {
        format!("on {name}: is the machine up? then `systemctl status kubelet`, {log}")
    }
}

/// Why it does not serve: the checks of its own that fail, where it says so.
fn trouble(answer: &Result<Ran, String>) -> String {
    let ran = match answer {
        Ok(ran) => ran,
        Err(error) => return error.clone(),
    };
    let mut failing: Vec<&str> = Vec::new();
    for line in &ran.lines {
        for piece in line.split("[-]").skip(1) {
            let name = piece.split_whitespace().next().unwrap_or_default();
            if !name.is_empty() && !failing.contains(&name) {
                failing.push(name);
            }
        }
    }
    if failing.is_empty() { why(ran) } else { format!("not ready: {} failed", failing.join(", ")) }
}

/// The server's clock, from the `Date` header that `kubectl -v=8` shows.
pub(super) fn date(ran: &Ran) -> Option<u64> {
    ran.lines.iter().find_map(|line| from_http(line.split_once("Date: ")?.1.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::Output;

    fn said(status: i32, text: &str) -> Ran {
        let output = Output { status, ..Output::default() };
        Ran { output, lines: text.lines().map(str::to_owned).collect(), from: 0, until: 0 }
    }

    /// As kubectl 1.28 and 1.33 wrote them.
    #[test]
    fn the_date_is_found() {
        let old = "I1121 09:47:47.879966    4101 round_trippers.go:577] Response Headers:\n\
                   I1121 09:47:47.879977    4101 round_trippers.go:580]     Date: Sat, 21 Nov 2026 09:47:47 GMT\nok";
        let new = "I1121 09:47:48.203117    4126 round_trippers.go:632] \"Response\" status=\"200 OK\" headers=<\n\
                   \tContent-Length: 2\n\tDate: Sat, 21 Nov 2026 09:47:48 GMT\n >";
        assert_eq!(date(&said(0, old)), Some(1_795_254_467));
        assert_eq!(date(&said(0, new)), Some(1_795_254_468));
        assert_eq!(date(&said(0, "Date: yesterday")), None);
    }

    #[test]
    fn failing_checks_are_named_once() {
        let text = "I1121 get.go:174] \"Response Body\" body=<\n\t[+]ping ok\n\t[-]etcd failed: reason withheld\n >\n\
                    Error from server (InternalError): an error on the server (\"[+]ping ok\\n[-]etcd failed: reason \
                    withheld\\n[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\\nreadyz check failed\")";
        assert_eq!(trouble(&Ok(said(1, text))), "not ready: etcd, poststarthook/rbac/bootstrap-roles failed");
        assert_eq!(trouble(&Ok(said(1, "dial tcp 10.0.2.21:6443: connect: no route to host"))), "no route to host");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! haproxy and keepalived, running with the planned configuration.
//!
//! keepalived holds the address through which everybody reaches the API servers, so it is started once and then only told
//! to read its configuration again. Before it speaks for the first time, firstboot listens whether somebody else on this
//! network speaks under the same virtual router id: two such groups would tear both addresses back and forth.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use profiles::node::{LoadBalancer as Kind, Role};

use super::{LOAD_BALANCER, services};
use crate::arp::Interface;
use crate::context::{Cx, Poll};
use crate::engine::{State, Step};
use crate::failure::{Failure, one_line};
use crate::journal::Progress;
use crate::runner::Command;
use crate::vrrp;

const HAPROXY: &str = "haproxy";
const HAPROXY_CONFIG: &str = "/etc/haproxy/haproxy.cfg";
const KEEPALIVED: &str = "keepalived";
const KEEPALIVED_CONFIG: &str = "/etc/keepalived/keepalived.conf";
/// Masters speak every second; a backup of theirs calls them dead after a little more than three.
const LISTEN: Duration = Duration::from_secs(4);

pub(super) struct LoadBalancer;

impl Step for LoadBalancer {
    fn id(&self) -> &'static str {
        LOAD_BALANCER
    }

    fn title(&self) -> &'static str {
        "starting haproxy and keepalived"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        if cx.progress(self.id()) != Progress::Done(self.fingerprint(cx)) {
            return Ok(State::Needed("not started with this configuration yet".to_owned()));
        }
        for unit in [HAPROXY, KEEPALIVED] {
            if !services::is_enabled(cx, unit)? || !services::is_active(cx, unit)? {
                return Ok(State::Needed(format!("{unit} is not running")));
            }
        }
        Ok(State::Done)
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        let command = Command::new(HAPROXY, ["-c", "-q", "-f", HAPROXY_CONFIG]);
        cx.run(&command).context("haproxy refuses its configuration")?;
        let last = cx.journal.borrow().last_done(self.id());
        let ran_with = |part: &str| last.as_deref().is_some_and(|last| last.split(' ').any(|other| other == part));
        let [haproxy, keepalived] = parts(cx);
        bring_up(cx, HAPROXY, !ran_with(&haproxy))?;
        if last.is_none() {
            refuse_a_taken_address(cx)?;
            refuse_a_taken_router_id(cx)?;
        }
        bring_up(cx, KEEPALIVED, !ran_with(&keepalived))
    }

    fn verify(&self, _: &Cx<'_>) -> Result<()> {
        Ok(()) // apply ends when both run
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        parts(cx).join(" ")
    }
}

/// Digests of the two configurations, each with its program's name.
fn parts(cx: &Cx<'_>) -> [String; 2] {
    [(HAPROXY, HAPROXY_CONFIG), (KEEPALIVED, KEEPALIVED_CONFIG)]
        .map(|(unit, path)| format!("{unit}:{}", cx.plan.digest_of(&[path])))
}

/// Enables and starts `unit`; one that runs reads a changed configuration without a break.
fn bring_up(cx: &Cx<'_>, unit: &str, changed: bool) -> Result<()> {
    if changed && services::is_active(cx, unit)? {
        services::enable(cx, unit)?;
        services::reload(cx, unit)?;
    } else {
        services::bring_up(cx, unit, false)?;
    }
    let hint = format!("look at `journalctl -u {unit}`");
    cx.wait_for(&format!("{unit} to run"), Duration::from_secs(60), Duration::from_millis(500), &hint, || {
        let runs = services::is_active(cx, unit)?;
        Ok(if runs { Poll::Ready(()) } else { Poll::Pending(services::state(cx, unit)) })
    })
}

/// Refuses a virtual address that a machine other than our masters answers for. IPv6 does this in the kernel.
fn refuse_a_taken_address(cx: &Cx<'_>) -> Result<()> {
    let profile = cx.profile();
    let Kind::Keepalived { vip: IpAddr::V4(vip), .. } = profile.load_balancer else { return Ok(()) };
    let Some(interface) = profile.node.interface.as_deref().and_then(|name| Interface::named(&cx.root, name)) else {
        return Ok(());
    };
    let Some(owner) = cx.host.address_owner(&interface, vip)? else { return Ok(()) };
    // Another master may hold it already: then it answers for its own address, too.
    for master in profile.peers.iter().filter(|peer| peer.roles.contains(&Role::Master)) {
        if let IpAddr::V4(address) = master.address
            && cx.host.address_owner(&interface, address)? == Some(owner)
        {
            return Ok(());
        }
    }
    Err(Failure::preflight(
        format!("the virtual address {vip} is used by the machine with MAC {owner}, which is none of the masters"),
        "switch that machine off or give it another address, or give another `load_balancer.vip` in the cluster file",
    )
    .into())
}

/// Refuses a virtual router id that somebody else on this network uses.
fn refuse_a_taken_router_id(cx: &Cx<'_>) -> Result<()> {
    let profile = cx.profile();
    let Kind::Keepalived { vrid, .. } = profile.load_balancer else { return Ok(()) };
    let own = profile.node.address.addr();
    cx.say(&format!("listening for others with the virtual router id {vrid}"));
    let heard = match cx.host.hear_vrrp(own, profile.node.interface.as_deref(), LISTEN) {
        Ok(heard) => heard,
        Err(error) => {
            // A kernel without raw sockets is no reason to have no cluster.
            cx.say(&format!("cannot listen: {}; going on without", one_line(&format!("{error:#}"))));
            return Ok(());
        }
    };
    let masters: Vec<_> = profile.peers.iter().filter(|peer| peer.roles.contains(&Role::Master)).collect();
    for (from, packet) in heard {
        let Some(advert) = vrrp::parse(from, &packet) else { continue };
        if advert.vrid != vrid || from == own || masters.iter().any(|master| master.address == from) {
            continue;
        }
        let addresses: Vec<_> = advert.addresses.iter().map(ToString::to_string).collect();
        return Err(Failure::preflight(
            format!("virtual router id {vrid} is used by {from} for {}", addresses.join(", ")),
            "give another `load_balancer.vrid` in the cluster file, and build the seeds again",
        )
        .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::rc::Rc;

    use super::*;
    use crate::engine::converge;
    use crate::runner::Output;
    use crate::testing::{Lab, planned};
    use crate::vrrp::tests::packet;

    /// Units that run once they are started.
    fn prepare(lab: &mut Lab, haproxy: &str, keepalived: &str, running: &Rc<RefCell<BTreeSet<String>>>) {
        lab.plan.files = vec![planned(HAPROXY_CONFIG, 0o644, haproxy), planned(KEEPALIVED_CONFIG, 0o644, keepalived)];
        lab.plan.profile.load_balancer =
            Kind::Keepalived { vip: "10.0.2.100".parse().unwrap(), port: 8443, vrid: 93, check_interval_seconds: 2 };
        let unit = |line: &str| line.rsplit(' ').next().unwrap().to_owned();
        let (asked, started) = (running.clone(), running.clone());
        let ask =
            move |line: &str| Output { status: i32::from(!asked.borrow().contains(&unit(line))), ..Output::default() };
        lab.runner.on("systemctl is-active --quiet ", ask);
        lab.runner.on("systemctl start --no-block ", move |line| {
            started.borrow_mut().insert(unit(line));
            Output::default()
        });
    }

    fn changes(lab: &Lab) -> Vec<String> {
        let trace = lab.runner.take_trace();
        trace.into_iter().filter(|line| !line.contains(" is-") && !line.contains("reset-failed")).collect()
    }

    #[test]
    fn starts_both_once_and_reloads_only_what_changed() {
        let running = Rc::default();
        let mut lab = Lab::new();
        prepare(&mut lab, "h1", "k1", &running);
        converge(&lab.cx(), &[Box::new(LoadBalancer)]).unwrap();
        assert_eq!(
            changes(&lab),
            [
                "haproxy -c -q -f /etc/haproxy/haproxy.cfg",
                "systemctl enable --quiet haproxy",
                "systemctl start --no-block haproxy",
                "systemctl enable --quiet keepalived",
                "systemctl start --no-block keepalived",
            ]
        );
        assert_eq!(lab.host.slept(), LISTEN);
        let mut lab = lab.reboot();
        prepare(&mut lab, "h1", "k1", &running);
        converge(&lab.cx(), &[Box::new(LoadBalancer)]).unwrap();
        assert_eq!(changes(&lab), [""; 0]);
        let mut lab = lab.reboot();
        prepare(&mut lab, "h2", "k1", &running);
        converge(&lab.cx(), &[Box::new(LoadBalancer)]).unwrap();
        let changed = changes(&lab);
        assert!(changed.contains(&"systemctl reload haproxy".to_owned()), "{changed:?}");
        assert!(
            !changed.iter().any(|line| line.contains("restart") || line.contains("reload keepalived")),
            "{changed:?}"
        );
        assert_eq!(lab.host.slept(), Duration::ZERO, "listened again");
    }

    #[test]
    fn a_configuration_that_haproxy_refuses_stops_before_anything_starts() {
        let mut lab = Lab::new();
        prepare(&mut lab, "h1", "k1", &Rc::default());
        lab.runner.answer("haproxy -c", 1, "", "[ALERT] parsing [/etc/haproxy/haproxy.cfg:3]: unknown keyword 'x'");
        let (_, failure) = converge(&lab.cx(), &[Box::new(LoadBalancer)]).unwrap_err();
        assert_eq!(failure.exit.code(), 30);
        assert!(failure.reason.contains("haproxy refuses its configuration") && failure.reason.contains("keyword 'x'"));
        assert!(!changes(&lab).iter().any(|line| line.starts_with("systemctl")));
    }

    #[test]
    fn a_router_id_of_others_is_refused_and_one_of_the_masters_is_not() {
        let mut lab = Lab::new();
        prepare(&mut lab, "h1", "k1", &Rc::default());
        lab.plan.profile.peers.push(profiles::node::Peer {
            name: "master-2".into(),
            address: "10.0.2.16".parse().unwrap(),
            ..lab.plan.profile.peers[0].clone()
        });
        let adverts = |from: &str, vrid| (from.parse().unwrap(), packet(3, vrid, &[[10, 0, 0, 100]]));
        *lab.host.adverts.borrow_mut() = vec![adverts("10.0.2.16", 93), adverts("10.0.2.7", 92)];
        converge(&lab.cx(), &[Box::new(LoadBalancer)]).unwrap();

        let mut lab = Lab::new();
        prepare(&mut lab, "h1", "k1", &Rc::default());
        lab.host.adverts.borrow_mut().push(adverts("10.0.2.7", 93));
        let (_, failure) = converge(&lab.cx(), &[Box::new(LoadBalancer)]).unwrap_err();
        assert_eq!(failure.exit.code(), 20);
        assert_eq!(failure.reason, "virtual router id 93 is used by 10.0.2.7 for 10.0.0.100");
        assert!(failure.hint.contains("load_balancer.vrid"));
        assert!(!changes(&lab).iter().any(|line| line.contains("keepalived")));
    }

    #[test]
    fn an_address_of_a_stranger_is_refused_and_one_that_a_master_holds_is_not() {
        let (vip, peer) = ([10, 0, 2, 100].into(), [10, 0, 2, 16].into());
        let lab = || {
            let mut lab = Lab::new();
            prepare(&mut lab, "h1", "k1", &Rc::default());
            for (file, text) in [("type", "1"), ("ifindex", "2"), ("address", "52:54:00:12:34:56")] {
                lab.write(&format!("/sys/class/net/eth0/{file}"), text);
            }
            lab.plan.profile.node.interface = Some("eth0".into());
            let mut other = lab.plan.profile.peers[0].clone();
            (other.name, other.address) = ("master-2".into(), "10.0.2.16".parse().unwrap());
            lab.plan.profile.peers.push(other);
            lab.host.address_owners.borrow_mut().insert(vip, "52:54:00:aa:bb:cc".parse().unwrap());
            lab
        };
        let (_, failure) = converge(&lab().cx(), &[Box::new(LoadBalancer)]).unwrap_err();
        assert_eq!(failure.exit.code(), 20);
        assert!(failure.reason.contains("10.0.2.100 is used by the machine with MAC 52:54:00:aa:bb:cc"), "{failure}");

        let lab = lab();
        lab.host.address_owners.borrow_mut().insert(peer, "52:54:00:aa:bb:cc".parse().unwrap());
        converge(&lab.cx(), &[Box::new(LoadBalancer)]).unwrap();
    }
}

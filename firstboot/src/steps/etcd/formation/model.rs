// SPDX-License-Identifier: MIT OR Apache-2.0
//! Members in a world of power cuts, new disks and slow rounds, driven by the decisions of the real code.
//!
//! etcd's own guard ("has already been bootstrapped") is left out on purpose: what holds here holds without it.

use super::*;
use crate::steps::etcd::members::{Member, Next as Change};

/// What is on a disk.
#[derive(Debug, Clone, Default)]
struct Disk {
    /// Which disk: every re-imaging makes another.
    serial: u32,
    record: Option<Recorded>,
    /// The write-ahead log: the id it runs with, and the cluster whose content it has.
    wal: Option<(u64, Option<usize>)>,
}

/// What goes on in a machine that is switched on.
#[derive(Debug, Clone, PartialEq)]
enum Life {
    Off,
    /// Asking; so many answers of this round are in.
    Asking(Vec<PeerPort>),
    /// Decided to start; etcd is not there yet.
    Starting(First),
    Running,
}

struct Node {
    disk: Disk,
    life: Life,
    lost: bool,
}

/// A cluster that had a quorum once: its members by id, each with the place and whether it started.
#[derive(Clone)]
struct Cluster {
    members: Vec<(u64, usize, bool)>,
}

struct World {
    nodes: Vec<Node>,
    peers: Vec<Peer>,
    clusters: Vec<Cluster>,
    next_id: u64,
    random: u64,
    trace: Vec<String>,
}

impl World {
    fn new(seed: u64, count: usize) -> Self {
        let peers = (0..count)
            .map(|place| Peer {
                secondary_address: None,
                name: format!("etcd-{place}"),
                address: format!("10.77.0.{}", place + 1).parse().unwrap(),
                roles: [Role::Etcd].into(),
                pod_subnet: None,
            })
            .collect();
        let node = |place: usize| Node {
            disk: Disk { serial: u32::try_from(place).unwrap(), ..Disk::default() },
            life: Life::Off,
            lost: false,
        };
        let nodes = (0..count).map(node).collect();
        Self { nodes, peers, clusters: Vec::new(), next_id: 1000, random: seed * 2 + 1, trace: Vec::new() }
    }

    fn below(&mut self, limit: usize) -> usize {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 11).unwrap() % limit
    }

    fn note(&mut self, place: usize, what: &str) {
        self.trace.push(format!("{place}: {what}"));
    }

    /// The id that every member has in a cluster that starts as new: it follows from the configuration.
    fn first_id(place: usize) -> u64 {
        place as u64
    }

    fn port(&self, place: usize) -> PeerPort {
        let node = &self.nodes[place];
        match node.life {
            Life::Off | Life::Starting(_) => PeerPort::Absent,
            Life::Running => PeerPort::Etcd,
            Life::Asking(_) if node.disk.record == Some(Recorded::Agreed) => PeerPort::Waiting(Stage::Agreed),
            Life::Asking(_) => PeerPort::Waiting(Stage::Fresh),
        }
    }

    fn power_on(&mut self, place: usize) {
        if self.nodes[place].life == Life::Off {
            let has_data = self.nodes[place].disk.wal.is_some();
            self.nodes[place].life = if has_data { Life::Running } else { Life::Asking(Vec::new()) };
            self.note(place, "on");
        }
    }

    fn power_off(&mut self, place: usize) {
        self.nodes[place].life = Life::Off;
        self.note(place, "off");
    }

    fn re_image(&mut self, place: usize) {
        self.power_off(place);
        let serial = self.nodes.iter().map(|node| node.disk.serial).max().unwrap() + 1;
        self.nodes[place].disk = Disk { serial, ..Disk::default() };
        self.note(place, "re-imaged");
    }

    /// Places whose etcd runs as a member of `cluster` with its content.
    fn serving(&self, cluster: usize) -> Vec<usize> {
        let members = &self.clusters[cluster].members;
        let runs = |place: usize| match self.nodes[place].disk.wal {
            Some((id, Some(content))) => {
                self.nodes[place].life == Life::Running
                    && content == cluster
                    && members.iter().any(|member| (member.0, member.1) == (id, place))
            }
            _ => false,
        };
        let places: Vec<_> = (0..self.nodes.len()).filter(|place| runs(*place)).collect();
        if places.len() >= quorum(members.len()) { places } else { Vec::new() }
    }

    /// One move of one node.
    fn step(&mut self, place: usize) {
        match self.nodes[place].life.clone() {
            Life::Off => {}
            Life::Running => self.run_etcd(),
            Life::Starting(first) => {
                let id = match first {
                    First::New => Self::first_id(place),
                    // etcd takes the id that the others list for its address.
                    First::Existing(_) => match self.listed_unstarted(place) {
                        Some(id) => id,
                        // It finds nobody who lists it; firstboot gives up waiting for it and asks again.
                        None => {
                            self.nodes[place].life = Life::Asking(Vec::new());
                            return;
                        }
                    },
                };
                self.note(place, &format!("etcd starts {first:?}"));
                self.nodes[place].disk.wal = Some((id, None));
                self.nodes[place].life = Life::Running;
            }
            Life::Asking(mut answers) => {
                let others: Vec<_> = (0..self.nodes.len()).filter(|other| *other != place).collect();
                answers.push(self.port(others[answers.len()]));
                self.nodes[place].life = Life::Asking(answers.clone());
                if answers.len() == others.len() {
                    self.nodes[place].life = Life::Asking(Vec::new());
                    self.decide(place, &answers);
                }
            }
        }
    }

    fn listed_unstarted(&self, place: usize) -> Option<u64> {
        let serving = (0..self.clusters.len()).find(|cluster| !self.serving(*cluster).is_empty())?;
        let members = &self.clusters[serving].members;
        members.iter().find(|member| member.1 == place && !member.2).map(|member| member.0)
    }

    fn decide(&mut self, place: usize, answers: &[PeerPort]) {
        let agreed = self.nodes[place].disk.record == Some(Recorded::Agreed);
        self.nodes[place].lost = !agreed && is_lost(answers, quorum(self.nodes.len()));
        match next(agreed, answers) {
            Next::Agree => {
                self.nodes[place].disk.record = Some(Recorded::Agreed);
                self.note(place, "agreed");
            }
            Next::Start => self.nodes[place].life = Life::Starting(First::New),
            Next::Join => self.join(place),
            Next::Wait => {}
        }
    }

    fn join(&mut self, place: usize) {
        let Some(cluster) = (0..self.clusters.len()).find(|cluster| !self.serving(*cluster).is_empty()) else { return };
        if self.serving(cluster).len() < quorum(self.nodes.len()) {
            return;
        }
        let list: Vec<_> = self.clusters[cluster]
            .members
            .iter()
            .map(|(id, at, started)| Member {
                id: *id,
                name: if *started { self.peers[*at].name.clone() } else { String::new() },
                peer_urls: vec![etcdctl::peer_url(self.peers[*at].address)],
                client_urls: if *started { vec!["x".to_owned()] } else { Vec::new() },
            })
            .collect();
        let all: Vec<_> = self.peers.iter().collect();
        let change = members::next(&list, &all, all[place]);
        self.note(place, &format!("{change:?}"));
        let members = &mut self.clusters[cluster].members;
        match change {
            Change::Remove(id) => members.retain(|member| member.0 != id),
            Change::Add => {
                members.push((self.next_id, place, false));
                self.next_id += 1;
            }
            Change::Start(names) => {
                self.nodes[place].disk.record = Some(Recorded::Joining);
                self.nodes[place].life = Life::Starting(First::Existing(names));
            }
            Change::Strangers(names) => panic!("strangers {names:?}"),
        }
    }

    /// Running members find each other: those of a cluster that has a quorum, or a quorum of new ones.
    fn run_etcd(&mut self) {
        let running: Vec<(usize, u64, Option<usize>)> = (0..self.nodes.len())
            .filter(|place| self.nodes[*place].life == Life::Running)
            .filter_map(|place| self.nodes[place].disk.wal.map(|(id, content)| (place, id, content)))
            .collect();
        let content: Vec<_> = running.iter().filter_map(|one| one.2).collect();
        let Some(cluster) = content.first().copied() else {
            // The ids of a first start only: others are listed by no cluster that could run.
            let first: Vec<_> = running.into_iter().filter(|one| one.1 == Self::first_id(one.0)).collect();
            if first.len() >= quorum(self.nodes.len()) {
                self.form(&first);
            }
            return;
        };
        assert!(content.iter().all(|other| *other == cluster), "two clusters run");
        let listed = |world: &Self, place, id| {
            world.clusters[cluster].members.iter().any(|member| (member.0, member.1) == (id, place))
        };
        let able = running.iter().filter(|(place, id, _)| listed(self, *place, *id)).count();
        if able < quorum(self.clusters[cluster].members.len()) {
            return;
        }
        for (place, id, had) in running {
            if !listed(self, place, id) {
                continue;
            }
            for member in self.clusters[cluster].members.iter_mut().filter(|member| member.0 == id) {
                // Raft: an id that took part never comes back empty.
                assert!(had.is_some() || !member.2, "{place} forgot what it acknowledged");
                member.2 = true;
            }
            self.nodes[place].disk.wal = Some((id, Some(cluster)));
            self.nodes[place].disk.record = Some(Recorded::Member);
        }
    }

    fn form(&mut self, running: &[(usize, u64, Option<usize>)]) {
        for (place, node) in self.nodes.iter().enumerate() {
            let content = node.disk.wal.and_then(|wal| wal.1);
            assert_eq!(content, None, "a second cluster, while {place} has data of the first");
        }
        let members = (0..self.nodes.len())
            .map(|place| (Self::first_id(place), place, running.iter().any(|one| one.0 == place)))
            .collect();
        self.clusters.push(Cluster { members });
        let cluster = self.clusters.len() - 1;
        for (place, id, _) in running {
            self.nodes[*place].disk.wal = Some((*id, Some(cluster)));
            self.nodes[*place].disk.record = Some(Recorded::Member);
        }
        self.note(running[0].0, "a quorum: a cluster is formed");
    }

    /// Everything is on, nothing else happens: all members run in one cluster, or the loss of the majority is said.
    fn must_settle(&mut self) {
        (0..self.nodes.len()).for_each(|place| self.power_on(place));
        for _ in 0..200 {
            (0..self.nodes.len()).for_each(|place| self.step(place));
        }
        self.run_etcd();
        let contents: Vec<_> = self.nodes.iter().map(|node| node.disk.wal.and_then(|wal| wal.1)).collect();
        if contents[0].is_some() && contents.iter().all(|content| *content == contents[0]) {
            return;
        }
        // A member that started without ever seeing a quorum counts too: nobody but it knows that.
        let started = self.nodes.iter().filter(|node| node.disk.wal.is_some()).count();
        assert!(started > 0 && started < quorum(self.nodes.len()), "stuck: {contents:?}");
        assert!(
            self.nodes.iter().all(|node| node.lost || node.disk.wal.is_some()),
            "nobody says that the majority was lost: {contents:?}"
        );
    }
}

/// One world's history; `wipes` of them destroy disks.
fn live(seed: u64, count: usize, wipes: bool) -> Vec<String> {
    let mut world = World::new(seed, count);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..300 {
            let place = world.below(count);
            match world.below(40) {
                0 | 1 => world.power_off(place),
                2 if wipes => world.re_image(place),
                3..=6 => world.power_on(place),
                _ => world.step(place),
            }
        }
        world.must_settle();
    }));
    if let Err(panic) = result {
        eprintln!("world {seed} of {count} members:\n{}", world.trace.join("\n"));
        std::panic::resume_unwind(panic);
    }
    world.trace
}

#[test]
fn power_cuts_alone_lead_to_one_cluster_of_all() {
    for seed in 0..400 {
        for count in [2, 3, 5] {
            let trace = live(seed, count, false);
            let formed = trace.iter().filter(|line| line.contains("a cluster is formed")).count();
            assert_eq!(formed, 1, "world {seed} of {count} members");
            assert!(!trace.iter().any(|line| line.contains("Remove")), "world {seed} of {count} members");
        }
    }
}

#[test]
fn new_disks_never_lead_to_two_clusters() {
    let mut replaced = 0;
    for seed in 0..800 {
        for count in [2, 3, 5] {
            replaced += live(seed, count, true).iter().filter(|line| line.contains("Existing")).count();
        }
    }
    assert!(replaced > 100, "the model hardly replaces members: {replaced}");
}

#[test]
fn without_the_licence_there_would_be_two() {
    // The model notices what it is there to notice: two new disks that start on their own.
    let mut world = World::new(1, 3);
    (0..3).for_each(|place| world.nodes[place].disk.wal = Some((World::first_id(place), None)));
    (0..3).for_each(|place| world.power_on(place));
    world.run_etcd();
    world.power_off(0);
    (1..3).for_each(|place| world.re_image(place));
    (1..3).for_each(|place| world.nodes[place].disk.wal = Some((World::first_id(place), None)));
    (1..3).for_each(|place| world.power_on(place));
    let two = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run_etcd()));
    assert!(two.is_err());
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The members that a running etcd lists, and how this node becomes one of them again.

use anyhow::{Context, Result};
use profiles::node::Peer;
use serde::Deserialize;

/// One member, by `etcdctl member list -w json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Member {
    /// Decimal in JSON, hexadecimal on etcdctl's command line.
    #[serde(rename = "ID")]
    pub id: u64,
    /// Empty until it has started.
    #[serde(default)]
    pub name: String,
    #[serde(default, rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    /// Empty until it has started.
    #[serde(default, rename = "clientURLs")]
    pub client_urls: Vec<String>,
}

impl Member {
    pub(super) fn has_started(&self) -> bool {
        !self.client_urls.is_empty()
    }
}

/// Reads `etcdctl member list -w json`.
pub(super) fn parse(json: &str) -> Result<Vec<Member>> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        members: Vec<Member>,
    }
    let list: List = serde_json::from_str(json).context("understanding etcdctl's list of members")?;
    Ok(list.members)
}

/// Reads `etcdctl endpoint health -w json`: which endpoints are healthy. etcdctl fails if one is not, and lists all.
pub(super) fn healthy(json: &str) -> Vec<String> {
    #[derive(Deserialize)]
    struct Health {
        endpoint: String,
        #[serde(default)]
        health: bool,
    }
    let list: Vec<Health> = serde_json::from_str(json).unwrap_or_default();
    list.into_iter().filter(|one| one.health).map(|one| one.endpoint).collect()
}

/// What a member without data does next about a cluster that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Take this node's former self out.
    Remove(u64),
    /// Put this node in.
    Add,
    /// Start as a member that gets all data from the others; the value is etcd's `initial-cluster`.
    Start(String),
    /// The cluster has members that the cluster file does not know.
    Strangers(Vec<String>),
}

/// Decides from the list. One thing at a time: the caller asks for the list again after each.
pub(super) fn next(list: &[Member], peers: &[&Peer], own: &Peer) -> Next {
    let url = |peer: &Peer| crate::etcdctl::peer_url(peer.address);
    let known = |member: &&Member| {
        peers
            .iter()
            .any(|peer| member.peer_urls.contains(&url(peer)) && (member.name.is_empty() || member.name == peer.name))
    };
    let is_own = |member: &&Member| member.name == own.name || member.peer_urls.contains(&url(own));
    let strangers: Vec<_> = list
        .iter()
        .filter(|member| !known(member) && !is_own(member))
        .map(|member| format!("{} ({})", member.name, member.peer_urls.join(" ")))
        .collect();
    if !strangers.is_empty() {
        return Next::Strangers(strangers);
    }
    let mut own_entries = list.iter().filter(is_own);
    match (own_entries.next(), own_entries.next()) {
        (None, _) => Next::Add,
        (Some(one), None) if !one.has_started() && one.peer_urls == [url(own)] => {
            let names = list.iter().flat_map(|member| {
                let named = peers.iter().find(|peer| member.peer_urls.contains(&url(peer)));
                let name = named.map_or(member.name.as_str(), |peer| peer.name.as_str());
                member.peer_urls.iter().map(move |url| format!("{name}={url}"))
            });
            Next::Start(names.collect::<Vec<_>>().join(","))
        }
        (Some(one), _) => Next::Remove(one.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What etcdctl 3.4.23 printed, with addresses changed.
    const STARTED: &str = r#"{"header":{"cluster_id":13138198427219961931,"member_id":14006396213848689206,"raft_term":2},"members":[
        {"ID":645021446054869818,"name":"etcd-3","peerURLs":["https://10.77.0.13:2380"],"clientURLs":["https://10.77.0.13:2379"]},
        {"ID":1022504654842267446,"name":"etcd-2","peerURLs":["https://10.77.0.12:2380"],"clientURLs":["https://10.77.0.12:2379"]},
        {"ID":14006396213848689206,"name":"etcd-1","peerURLs":["https://10.77.0.11:2380"],"clientURLs":["https://10.77.0.11:2379"]}]}"#;
    const ADDED: &str = r#"{"header":{"cluster_id":13138198427219961931,"member_id":14006396213848689206,"raft_term":3},"members":[
        {"ID":1022504654842267446,"name":"etcd-2","peerURLs":["https://10.77.0.12:2380"],"clientURLs":["https://10.77.0.12:2379"]},
        {"ID":12331702123594964409,"peerURLs":["https://10.77.0.13:2380"]},
        {"ID":14006396213848689206,"name":"etcd-1","peerURLs":["https://10.77.0.11:2380"],"clientURLs":["https://10.77.0.11:2379"]}]}"#;

    fn decide(list: &[Member], own: usize) -> Next {
        let peers = super::super::tests::peers();
        let peers: Vec<_> = peers.iter().collect();
        next(list, &peers, peers[own])
    }

    #[test]
    fn a_re_imaged_member_is_removed_added_and_started() {
        let mut list = parse(STARTED).unwrap();
        assert_eq!(decide(&list, 2), Next::Remove(645_021_446_054_869_818));
        list.remove(0);
        assert_eq!(decide(&list, 2), Next::Add);
        let list = parse(ADDED).unwrap();
        let cluster = "etcd-2=https://10.77.0.12:2380,etcd-3=https://10.77.0.13:2380,etcd-1=https://10.77.0.11:2380";
        assert_eq!(decide(&list, 2), Next::Start(cluster.into()));
    }

    #[test]
    fn a_member_that_moved_is_removed_too() {
        let mut list = parse(STARTED).unwrap();
        list[0].peer_urls = vec!["https://10.77.0.99:2380".into()];
        assert_eq!(decide(&list, 2), Next::Remove(list[0].id));
        // Its name and its address as two members: one after the other goes.
        list.push(parse(ADDED).unwrap().remove(1));
        assert_eq!(decide(&list, 2), Next::Remove(list[0].id));
    }

    #[test]
    fn members_that_nobody_knows_are_not_touched() {
        let mut list = parse(STARTED).unwrap();
        list[1].name = "other".into();
        assert_eq!(decide(&list, 2), Next::Strangers(vec!["other (https://10.77.0.12:2380)".into()]));
    }

    #[test]
    fn health_is_read_even_if_etcdctl_failed() {
        let json = r#"[{"endpoint":"https://10.77.0.11:2379","health":true,"took":"7ms"},{"endpoint":"https://10.77.0.12:2379","health":false,"took":"5s","error":"context deadline exceeded"}]"#;
        assert_eq!(healthy(json), ["https://10.77.0.11:2379"]);
        assert!(healthy("").is_empty());
    }
}

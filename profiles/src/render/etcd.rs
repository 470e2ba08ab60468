// SPDX-License-Identifier: MIT OR Apache-2.0
//! An etcd member: its configuration and its unit.

use serde::Serialize;

use super::{Context, ETCD_METRICS, NodeFile, RenderError, enabled, ini, line, symlink, text};
use crate::node::{Architecture, Role};
use crate::profile::host_port;
use crate::yaml;

const CONFIG: &str = "/etc/etcd/etcd.yaml";
/// firstboot's word that etcd may start without data, and with which configuration: `CONFIG=…`. It is gone after the
/// first start, and after a reboot: etcd without data would otherwise form a cluster of its own.
const FIRST_START: &str = "/run/imgbuild/etcd.env";
const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Config {
    name: String,
    data_dir: &'static str,
    listen_peer_urls: String,
    listen_client_urls: String,
    listen_metrics_urls: &'static str,
    initial_advertise_peer_urls: String,
    advertise_client_urls: String,
    initial_cluster: String,
    initial_cluster_token: String,
    initial_cluster_state: &'static str,
    strict_reconfig_check: bool,
    heartbeat_interval: u32,
    election_timeout: u32,
    quota_backend_bytes: u64,
    logger: &'static str,
    client_transport_security: Transport,
    peer_transport_security: Transport,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Transport {
    cert_file: &'static str,
    key_file: &'static str,
    trusted_ca_file: &'static str,
    client_cert_auth: bool,
}

pub(super) fn files(c: &Context<'_>) -> Result<Vec<NodeFile>, RenderError> {
    Ok(vec![
        text(CONFIG, yaml::to_string(&config(c)).map_err(RenderError::yaml(CONFIG))?),
        text("/etc/systemd/system/etcd.service", unit(c)),
        enabled("etcd.service", "/etc/systemd/system"),
        text("/etc/systemd/system/etcd-defrag.service", defrag(c)),
        text("/etc/systemd/system/etcd-defrag.timer", defrag_timer(c)),
        symlink("/etc/systemd/system/timers.target.wants/etcd-defrag.timer", "/etc/systemd/system/etcd-defrag.timer"),
    ])
}

fn url(address: std::net::IpAddr, port: u16) -> String {
    format!("https://{}", host_port(address, port))
}

/// Client URLs of all members.
pub(super) fn endpoints(c: &Context<'_>) -> Vec<String> {
    c.peers_with(Role::Etcd).map(|peer| url(peer.address, 2379)).collect()
}

fn config(c: &Context<'_>) -> Config {
    let (address, etcd) = (c.address(), &c.profile.etcd);
    let members: Vec<String> =
        c.peers_with(Role::Etcd).map(|peer| format!("{}={}", peer.name, url(peer.address, 2380))).collect();
    Config {
        name: c.profile.node.name.clone(),
        data_dir: "/var/lib/etcd",
        listen_peer_urls: url(address, 2380),
        listen_client_urls: format!("{},https://127.0.0.1:2379", url(address, 2379)),
        listen_metrics_urls: ETCD_METRICS,
        initial_advertise_peer_urls: url(address, 2380),
        advertise_client_urls: url(address, 2379),
        initial_cluster: members.join(","),
        // Members of two clusters refuse each other.
        initial_cluster_token: c.profile.cluster.id.clone(),
        initial_cluster_state: "new",
        strict_reconfig_check: true,
        heartbeat_interval: etcd.heartbeat_ms,
        election_timeout: etcd.election_ms,
        quota_backend_bytes: etcd.quota_bytes,
        logger: "zap",
        client_transport_security: Transport {
            cert_file: "/etc/etcd/pki/server.crt",
            key_file: "/etc/etcd/pki/server.key",
            trusted_ca_file: "/etc/etcd/pki/ca.crt",
            client_cert_auth: true,
        },
        peer_transport_security: Transport {
            cert_file: "/etc/etcd/pki/peer.crt",
            key_file: "/etc/etcd/pki/peer.key",
            trusted_ca_file: "/etc/etcd/pki/ca.crt",
            client_cert_auth: true,
        },
    }
}

fn unit(c: &Context<'_>) -> String {
    let mut service = vec![
        line("Type", "notify"),
        line("User", "etcd"),
        line("Group", "etcd"),
        line("StateDirectory", "etcd"),
        line("StateDirectoryMode", "0700"),
        line("Environment", format!("CONFIG={CONFIG}")),
        line("EnvironmentFile", format!("-{FIRST_START}")),
        line("ExecStart", "/usr/bin/etcd --config-file ${CONFIG}"),
        // A member is ready when the others are: waiting for them is no failure.
        line("TimeoutStartSec", "infinity"),
        line("Restart", "always"),
        line("RestartSec", "5"),
        line("LimitNOFILE", "65536"),
        line("OOMScoreAdjust", "-999"),
    ];
    if c.profile.node.architecture == Architecture::Loong64 {
        // etcd exits at once on an architecture its authors do not test.
        service.push(line("Environment", "ETCD_UNSUPPORTED_ARCH=loong64"));
    }
    ini(&[
        (
            "Unit",
            vec![
                line("Description", "etcd"),
                line("Wants", "network-online.target"),
                line("After", "network-online.target"),
                line("ConditionPathExists", "/etc/etcd/pki/server.key"),
                // One of these two: with data, or when firstboot says so.
                line("ConditionPathExistsGlob", "|/var/lib/etcd/member/wal/*.wal"),
                line("ConditionPathExists", format!("|{FIRST_START}")),
                line("StartLimitIntervalSec", "0"),
            ],
        ),
        ("Service", service),
        ("Install", vec![line("WantedBy", "multi-user.target")]),
    ])
}

/// Kubernetes compacts etcd every five minutes, which only makes room inside the database; defragmentation gives it back.
/// A member does not answer meanwhile, so it is done only while all members are healthy, and to this one alone.
fn defrag(c: &Context<'_>) -> String {
    let pki = "/etc/etcd/pki";
    let etcdctl = |endpoints: &str, command: &str| {
        format!(
            "/usr/bin/etcdctl --endpoints={endpoints} --cacert={pki}/ca.crt --cert={pki}/peer.crt --key={pki}/peer.key {command}"
        )
    };
    ini(&[
        ("Unit", vec![line("Description", "Defragment this etcd member"), line("After", "etcd.service")]),
        (
            "Service",
            vec![
                line("Type", "oneshot"),
                line("User", "etcd"),
                line("Environment", "ETCDCTL_API=3"),
                line("ExecCondition", etcdctl(&endpoints(c).join(","), "endpoint health")),
                line("ExecStart", etcdctl(&url(c.address(), 2379), "--command-timeout=300s defrag")),
            ],
        ),
    ])
}

/// Once a week, every member at its own time. A run that was missed is not made up for: after a power cut all would do it
/// at once.
fn defrag_timer(c: &Context<'_>) -> String {
    let index = c.peers_with(Role::Etcd).position(|peer| peer.name == c.profile.node.name).unwrap_or_default();
    let (day, hour) = (WEEKDAYS[index % WEEKDAYS.len()], 2 + index / WEEKDAYS.len() % 20);
    ini(&[
        ("Unit", vec![line("Description", "Defragment this etcd member every week")]),
        ("Timer", vec![line("OnCalendar", format!("{day} *-*-* {hour:02}:30:00")), line("AccuracySec", "1min")]),
        ("Install", vec![line("WantedBy", "timers.target")]),
    ])
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Asks etcd through `etcdctl`: firstboot itself speaks no TLS.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use profiles::node::{NodeProfile, Peer, Role};

use crate::context::Cx;
use crate::failure::Failure;
use crate::runner::Command;

/// Client port of etcd.
pub const CLIENT_PORT: u16 = 2379;
/// Port on which members talk to each other.
pub const PEER_PORT: u16 = 2380;

/// Client URLs of all members, in the cluster file's order.
pub fn endpoints(profile: &NodeProfile) -> Vec<String> {
    let members = profile.peers.iter().filter(|peer| peer.roles.contains(&Role::Etcd));
    members.map(|peer| client_url(peer.address)).collect()
}

/// Client URL of the member on this node.
pub fn own_endpoint(profile: &NodeProfile) -> String {
    client_url(profile.node.address.addr())
}

/// Client URL of the member at `address`.
pub fn client_url(address: IpAddr) -> String {
    endpoint(SocketAddr::new(address, CLIENT_PORT))
}

/// Peer URL of the member at `address`.
pub fn peer_url(address: IpAddr) -> String {
    endpoint(SocketAddr::new(address, PEER_PORT))
}

fn endpoint(address: SocketAddr) -> String {
    format!("https://{address}")
}

/// `etcdctl` with this node's certificates, asking `endpoints`.
pub fn command<'a>(profile: &NodeProfile, endpoints: &[String], args: impl IntoIterator<Item = &'a str>) -> Command {
    // On a master the API server's client certificate; elsewhere the peer certificate, which also is a client's.
    let (ca, cert, key) = if profile.has(Role::Master) {
        let dir = "/etc/kubernetes/pki/etcd-external";
        (format!("{dir}/ca.crt"), format!("{dir}/client.crt"), format!("{dir}/client.key"))
    } else {
        let dir = "/etc/etcd/pki";
        (format!("{dir}/ca.crt"), format!("{dir}/peer.crt"), format!("{dir}/peer.key"))
    };
    let mut all = vec![
        format!("--endpoints={}", endpoints.join(",")),
        format!("--cacert={ca}"),
        format!("--cert={cert}"),
        format!("--key={key}"),
        "--dial-timeout=3s".to_owned(),
        "--command-timeout=5s".to_owned(),
    ];
    all.extend(args.into_iter().map(str::to_owned));
    Command::new("etcdctl", all).env("ETCDCTL_API", "3").timeout(30)
}

/// What etcd and etcdctl say of a certificate that another authority signed: whoever looks at it says the first, and
/// tells the other side one of the rest, by version of Go and TLS.
const FOREIGN: [&str; 4] = [
    "certificate signed by unknown authority",
    "tls: bad certificate",
    "tls: unknown certificate authority",
    "tls: certificate required",
];

/// Whether the text, of etcd's log or of `etcdctl --debug`, is about a certificate of another authority.
pub fn speaks_of_foreign_authority(text: &str) -> bool {
    FOREIGN.iter().any(|phrase| text.contains(phrase))
}

/// Whether the text is about a certificate whose time is over, or has not come.
pub fn speaks_of_wrong_time(text: &str) -> bool {
    text.contains("certificate has expired or is not yet valid")
}

/// The failure of members whose certificates are not valid now.
pub fn wrong_time(own: &str, other: &str) -> Failure {
    Failure::preflight(
        format!("the certificates of {own} and {other} are not valid at the time that one of their clocks says"),
        "compare `date -u` on both and set the wrong clock; if both are right, renew the certificates with new seeds",
    )
}

/// The failure of a member whose certificates are of another cluster.
pub fn foreign(own: &str, other: &str) -> Failure {
    Failure::preflight(
        format!("{other} refuses {own}'s certificates, or the other way round: their seeds are of different clusters"),
        "build the seeds of both from the same cluster file and secrets folder",
    )
}

/// Refuses if `peer` does not answer because its certificates are of another authority. By default etcdctl says nothing
/// but "context deadline exceeded", so it is asked for its log.
pub fn refuse_foreign(cx: &Cx<'_>, peer: &Peer) -> Result<()> {
    let command = command(cx.profile(), &[client_url(peer.address)], ["--debug", "endpoint", "health"]);
    let (mut is_foreign, mut is_untimely) = (false, false);
    let output = cx.run_with(&command, None, &mut |line| {
        is_foreign |= speaks_of_foreign_authority(line);
        is_untimely |= speaks_of_wrong_time(line);
    })?;
    let (own, other) = (&cx.profile().node.name, format!("{} ({})", peer.name, peer.address));
    match (output.success(), is_untimely, is_foreign) {
        // With a certificate of the wrong time the other side also says "bad certificate".
        (false, true, _) => Err(wrong_time(own, &other).into()),
        (false, false, true) => Err(foreign(own, &other).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Lab;

    /// Lines of etcdctl 3.4.23 with `--debug`.
    const UNKNOWN: &str = "WARNING: 2026/11/21 09:50:27 [core]grpc: addrConn.createTransport failed to connect to \
        {https://127.0.0.1:12379 127.0.0.1:12379 <nil> 0 <nil>}. Err: connection error: desc = \"transport: authentication \
        handshake failed: x509: certificate signed by unknown authority (possibly because of \\\"x509: ECDSA verification \
        failure\\\" while trying to verify candidate authority certificate \\\"etcd-ca\\\")\". Reconnecting...";

    #[test]
    fn certificates_of_another_cluster_are_told_from_a_dead_member() {
        let lab = Lab::new();
        let peer = lab.plan.profile.peers[0].clone();
        lab.runner.answer("etcdctl", 1, "", "Error: context deadline exceeded");
        refuse_foreign(&lab.cx(), &peer).unwrap();
        lab.runner.answer("etcdctl", 1, "", &format!("{UNKNOWN}\nError: unhealthy cluster"));
        let error = refuse_foreign(&lab.cx(), &peer).unwrap_err();
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.exit.code(), 20);
        assert!(failure.reason.contains("master-1 (10.0.2.15)") && failure.reason.contains("different clusters"));
        let late =
            UNKNOWN.replace("certificate signed by unknown authority", "certificate has expired or is not yet valid");
        lab.runner.answer("etcdctl", 1, "", &late);
        assert!(refuse_foreign(&lab.cx(), &peer).unwrap_err().to_string().contains("clocks"));
    }
}

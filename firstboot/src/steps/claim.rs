// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who initialises the cluster: agreed upon in etcd, the one thing that all masters share (docs/contracts.md, section 10).
//!
//! The keys `cluster`, `init` and `initialised` are only ever changed by transactions that compare them with what was
//! seen, so any number of masters may come at any time. `init` hangs on a lease that a program in the background keeps
//! alive: when this node goes off, the claim goes a minute later, and another master takes its turn.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::cert::decode_base64;
use crate::context::{Cx, Poll};
use crate::etcdctl;
use crate::failure::{Failure, one_line};
use crate::runner::{Background, Output};

/// How long a claim outlives its node.
const LEASE_SECONDS: u32 = 60;

/// A key that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// Name of a master.
    pub(super) value: String,
    /// Of its last change: tells a value that was written again from the old one.
    pub(super) revision: i64,
}

/// What etcd says of this cluster, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// This etcd belongs to this cluster.
    pub(super) cluster: Option<Key>,
    /// Who is running `kubeadm init`.
    pub(super) init: Option<Key>,
    /// Whose `kubeadm init` ended well.
    pub(super) initialised: Option<Key>,
    /// Whose turn it is to join.
    pub(super) join: Option<Key>,
}

/// `etcdctl -w json`: a transaction's answer. Keys and values are base64; what is zero or empty is left out.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<Response>,
}

#[derive(Debug, Deserialize)]
struct Response {
    #[serde(rename = "Response")]
    one: OneOf,
}

#[derive(Debug, Deserialize)]
struct OneOf {
    // The second is what etcdctl 3.5 and later write: their generated code has tags for JSON.
    #[serde(rename = "ResponseRange", alias = "response_range")]
    range: Option<Range>,
}

#[derive(Debug, Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Debug, Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
    mod_revision: i64,
}

impl KeyValue {
    fn text(base64: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&decode_base64(base64)?).into_owned())
    }
}

#[derive(Debug, Deserialize)]
struct Lease {
    #[serde(rename = "ID")]
    id: i64,
}

#[derive(Debug, Deserialize)]
struct Health {
    endpoint: String,
    health: bool,
}

/// Where the keys of cluster `id` are.
fn prefix(id: &str) -> String {
    format!("/imgbuild/{id}/")
}

fn etcdctl(cx: &Cx<'_>, args: &[&str], stdin: Option<&str>) -> Result<Output> {
    let profile = cx.profile();
    let command = etcdctl::command(profile, &etcdctl::endpoints(profile), args.iter().copied().chain(["-w", "json"]));
    let Some(text) = stdin else { return cx.try_run(&command) };
    let mut feed = |stdin: &mut dyn Write| stdin.write_all(text.as_bytes());
    cx.run_with(&command, Some(&mut feed), &mut |_| {})
}

/// A transaction; `Pending` if etcd did not answer, in which case it may have happened all the same.
fn transaction(cx: &Cx<'_>, compares: &[String], puts: &[String], gets: &[String]) -> Result<Poll<Answer>> {
    let section = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect::<String>() + "\n";
    let text = section(compares) + &section(&[puts, gets].concat()) + &section(&[]);
    let output = etcdctl(cx, &["txn"], Some(&text))?;
    if !output.success() {
        return Ok(Poll::Pending(silent(cx, &output)?));
    }
    let answer = serde_json::from_str(&output.stdout).context("understanding the answer of `etcdctl txn`")?;
    Ok(Poll::Ready(answer))
}

/// Why etcd does not answer, as far as one can tell.
fn silent(cx: &Cx<'_>, output: &Output) -> Result<String> {
    let missing = unhealthy(cx)?;
    Ok(if missing.is_empty() {
        format!("etcd refuses: {}", one_line(&output.stderr_tail))
    } else {
        format!("no answer from {}", missing.join(", "))
    })
}

/// Client URLs of the members that are not healthy.
pub(super) fn unhealthy(cx: &Cx<'_>) -> Result<Vec<String>> {
    let output = etcdctl(cx, &["endpoint", "health"], None)?;
    // With one unhealthy member it exits with 1, and says all the same how each of them is.
    let members: Vec<Health> = serde_json::from_str(output.stdout.trim()).unwrap_or_default();
    let healthy = |url: &String| members.iter().any(|member| member.endpoint == *url && member.health);
    Ok(etcdctl::endpoints(cx.profile()).into_iter().filter(|url| !healthy(url)).collect())
}

/// What etcd says, or why it says nothing. Another cluster's data is refused.
pub(super) fn look(cx: &Cx<'_>) -> Result<Poll<Seen>> {
    // Both in one transaction: another master's claim and its first data may appear between two questions.
    let gets = ["get \"/imgbuild/\" --prefix", "get \"/registry/\" --prefix --limit=1 --keys-only"].map(str::to_owned);
    let answer = match transaction(cx, &[], &[], &gets)? {
        Poll::Ready(answer) => answer,
        Poll::Pending(why) => return Ok(Poll::Pending(why)),
    };
    let mut ranges = answer.responses.into_iter().map(|response| response.one.range);
    let (Some(Some(ours)), Some(Some(registry))) = (ranges.next(), ranges.next()) else {
        bail!("`etcdctl txn` answered without the two ranges it was asked for");
    };
    let id = &cx.profile().cluster.id;
    let mut seen = Seen::default();
    for pair in ours.kvs {
        let name = KeyValue::text(&pair.key)?;
        let key = Key { value: KeyValue::text(&pair.value)?, revision: pair.mod_revision };
        match name.strip_prefix(&prefix(id)) {
            Some("cluster") => seen.cluster = Some(key),
            Some("init") => seen.init = Some(key),
            Some("initialised") => seen.initialised = Some(key),
            Some("join") => seen.join = Some(key),
            Some(_) => {} // of a later imgbuild
            None => return Err(foreign(id, &format!("{name} = {}", key.value)).into()),
        }
    }
    if let (None, Some(first)) = (&seen.cluster, registry.kvs.first()) {
        let what = format!("{}, but no {}cluster", KeyValue::text(&first.key)?, prefix(id));
        return Err(foreign(id, &what).into());
    }
    Ok(Poll::Ready(seen))
}

fn foreign(id: &str, what: &str) -> Failure {
    Failure::preflight(
        format!("etcd holds another cluster: it has {what}; this seed is of cluster {id}"),
        "attach the seed of that cluster, or point this one at etcd members without data",
    )
}

/// This node's turn to initialise, as long as this lives.
pub(super) struct Claim {
    keeper: Box<dyn Background>,
    lost: bool,
    /// `initialised` as it was when the turn began.
    before: Option<Key>,
}

/// Claims the turn to initialise, if nothing changed since `seen`. An older claim of this node is taken over.
pub(super) fn claim(cx: &Cx<'_>, seen: &Seen) -> Result<Poll<Claim>> {
    let unchanged = [("cluster", &seen.cluster), ("init", &seen.init), ("initialised", &seen.initialised)];
    let keeper = match hold(cx, "init", &unchanged, seen.cluster.is_none())? {
        Poll::Ready(keeper) => keeper,
        Poll::Pending(why) => return Ok(Poll::Pending(why)),
    };
    Ok(Poll::Ready(Claim { keeper, lost: false, before: seen.initialised.clone() }))
}

/// This node's turn to join, as long as this lives.
pub(super) struct JoinTurn {
    _keeper: Box<dyn Background>,
}

/// Takes the turn to join, if nobody else has taken it since `seen`.
pub(super) fn take_turn(cx: &Cx<'_>, seen: &Seen) -> Result<Poll<JoinTurn>> {
    Ok(match hold(cx, "join", &[("join", &seen.join)], false)? {
        Poll::Ready(keeper) => Poll::Ready(JoinTurn { _keeper: keeper }),
        Poll::Pending(why) => Poll::Pending(why),
    })
}

impl JoinTurn {
    /// Lets the next one join. Where that fails, the turn ends with its lease, and whoever joined has joined.
    pub(super) fn end(self, cx: &Cx<'_>) {
        let key = format!("{}join", prefix(&cx.profile().cluster.id));
        let mine = format!("value(\"{key}\") = \"{}\"", cx.profile().node.name);
        if let Err(error) = transaction(cx, &[mine], &[format!("del \"{key}\"")], &[]) {
            cx.log(&format!("the turn to join ends with its lease: {error:#}"));
        }
    }
}

/// Puts this node's name at `name` with a lease, and keeps it alive, if all of `unchanged` is as it was seen.
fn hold(cx: &Cx<'_>, name: &str, unchanged: &[(&str, &Option<Key>)], first: bool) -> Result<Poll<Box<dyn Background>>> {
    let granted = etcdctl(cx, &["lease", "grant", &LEASE_SECONDS.to_string()], None)?;
    if !granted.success() {
        return Ok(Poll::Pending(silent(cx, &granted)?));
    }
    let lease: Lease = serde_json::from_str(&granted.stdout).context("understanding `etcdctl lease grant`")?;
    let lease = format!("{:x}", lease.id);
    let (prefix, me) = (prefix(&cx.profile().cluster.id), &cx.profile().node.name);
    let as_seen = |(name, key): &(&str, &Option<Key>)| match key {
        Some(key) => format!("mod(\"{prefix}{name}\") = \"{}\"", key.revision),
        None => format!("create(\"{prefix}{name}\") = \"0\""),
    };
    let compares: Vec<String> = unchanged.iter().map(as_seen).collect();
    // A key that is put again with another lease leaves the old one: an older claim's end does not end this one.
    let mut puts = vec![format!("put --lease={lease} \"{prefix}{name}\" \"{me}\"")];
    if first {
        puts.push(format!("put \"{prefix}cluster\" \"{me}\""));
    }
    match transaction(cx, &compares, &puts, &[])? {
        Poll::Pending(why) => return Ok(Poll::Pending(why)),
        Poll::Ready(answer) if !answer.succeeded => return Ok(Poll::Pending("another master was faster".to_owned())),
        Poll::Ready(_) => {}
    }
    let profile = cx.profile();
    let keep = etcdctl::command(profile, &etcdctl::endpoints(profile), ["lease", "keep-alive", &lease]);
    let keeper = cx.runner.start(&keep)?;
    cx.log(&format!("claimed {prefix}{name} with lease {lease}"));
    Ok(Poll::Ready(keeper))
}

impl Claim {
    /// Says it once when the claim is no longer kept.
    pub(super) fn watch(&mut self, cx: &Cx<'_>) {
        if !self.lost && !self.keeper.runs() {
            self.lost = true;
            cx.say("the claim to initialise is lost: etcd was out of reach for a minute; another master may begin");
        }
    }

    /// Records that the initialisation ended well. If the claim is somebody else's by now, it did not.
    pub(super) fn finish(mut self, cx: &Cx<'_>) -> Result<()> {
        self.watch(cx);
        let (prefix, me) = (prefix(&cx.profile().cluster.id), &cx.profile().node.name);
        let compares = [format!("value(\"{prefix}init\") = \"{me}\"")];
        let puts = [format!("put \"{prefix}initialised\" \"{me}\""), format!("del \"{prefix}init\"")];
        let hint = "look at etcd; the next attempt initialises again or joins";
        let (deadline, pause) = (Duration::from_secs(180), Duration::from_secs(2));
        let taken = cx.wait_for("etcd to take the record", deadline, pause, hint, || {
            Ok(match transaction(cx, &compares, &puts, &[])? {
                Poll::Ready(answer) => Poll::Ready(answer.succeeded),
                Poll::Pending(why) => Poll::Pending(why),
            })
        })?;
        if taken {
            return Ok(());
        }
        // The record may be there already: an answer that got lost is followed by a second try, which finds no claim.
        let seen = cx.wait_for("etcd to answer", deadline, pause, hint, || look(cx))?;
        match (&seen.init, &seen.initialised) {
            (_, done @ Some(key)) if key.value == *me && *done != self.before => Ok(()),
            (Some(key), _) => Err(anyhow!("the claim was lost, and {} has it now", key.value)),
            (None, Some(key)) if *me != key.value => {
                Err(anyhow!("the claim was lost, and {} has initialised the cluster", key.value))
            }
            _ => Err(anyhow!("the claim was lost before the cluster was initialised")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Stdio};

    use super::*;
    use crate::runner::{Command, Feed, RealRunner, Runner};
    use crate::testing::Lab;

    /// A real etcd, asked without certificates.
    struct RealEtcd {
        url: String,
        process: Child,
        _data: tempfile::TempDir,
    }

    impl RealEtcd {
        fn start() -> Self {
            let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let (url, peer) = (format!("http://127.0.0.1:{}", free()), format!("http://127.0.0.1:{}", free()));
            let data = tempfile::tempdir().unwrap();
            let process = std::process::Command::new("etcd")
                .args(["--name=a", "--data-dir"])
                .arg(data.path())
                .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("a={peer}")])
                .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH.replace("loongarch64", "loong64"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("etcd in PATH: tests/install-tools installs etcd-server and etcd-client");
            Self { url, process, _data: data }
        }

        fn plain(&self, command: &Command) -> Command {
            let secured = ["--endpoints=", "--cacert=", "--cert=", "--key="];
            let mut argv = command.argv.clone();
            argv.retain(|arg| !secured.iter().any(|flag| arg.starts_with(flag)));
            argv.insert(1, format!("--endpoints={}", self.url));
            Command { argv, ..command.clone() }
        }
    }

    impl Drop for RealEtcd {
        fn drop(&mut self) {
            let _ = self.process.kill().and_then(|()| self.process.wait());
        }
    }

    impl Runner for RealEtcd {
        fn run(&self, command: &Command, feed: Option<Feed<'_>>, on_line: &mut dyn FnMut(&str)) -> Result<Output> {
            let mut output = RealRunner.run(&self.plain(command), feed, on_line)?;
            output.stdout = output.stdout.replace(&self.url, "https://10.0.2.15:2379");
            Ok(output)
        }

        fn run_all(&self, commands: &[Command], at_once: usize, each: &mut dyn FnMut(usize, Result<Output>)) {
            let plain: Vec<Command> = commands.iter().map(|command| self.plain(command)).collect();
            RealRunner.run_all(&plain, at_once, each);
        }

        fn start(&self, command: &Command) -> Result<Box<dyn Background>> {
            RealRunner.start(&self.plain(command))
        }
    }

    /// The first is of etcdctl 3.4.23, the second of 3.5.30.
    #[test]
    fn the_answers_of_every_version_are_understood() {
        for range in ["ResponseRange", "response_range"] {
            let text = format!(
                r#"{{"header":{{"revision":7}},"succeeded":true,"responses":[{{"Response":{{"{range}":{{"kvs":[
                   {{"key":"YQ==","create_revision":7,"mod_revision":7,"version":1,"value":"Yg=="}}],"count":1}}}}}}]}}"#
            );
            let answer: Answer = serde_json::from_str(&text).unwrap();
            assert_eq!(answer.responses[0].one.range.as_ref().unwrap().kvs[0].mod_revision, 7, "{text}");
        }
    }

    #[test]
    fn a_real_etcd_understands_every_word() {
        let etcd = RealEtcd::start();
        let (lab, mut other) = (Lab::new(), Lab::new());
        other.plan.profile.node.name = "master-2".into();
        let (mut cx, mut cx2) = (lab.cx(), other.cx());
        (cx.runner, cx2.runner) = (&etcd, &etcd);
        let started = std::time::Instant::now();
        while !unhealthy(&cx).unwrap().is_empty() {
            assert!(started.elapsed() < Duration::from_secs(60), "etcd does not come up");
            std::thread::sleep(Duration::from_millis(100));
        }
        let see = |cx: &Cx<'_>| match look(cx).unwrap() {
            Poll::Ready(seen) => seen,
            Poll::Pending(why) => panic!("{why}"),
        };
        let fresh = see(&cx);
        assert_eq!(fresh, Seen::default());
        // One of two that saw the same wins.
        let Poll::Ready(mut mine) = claim(&cx, &fresh).unwrap() else { panic!("no claim") };
        assert!(matches!(claim(&cx2, &fresh).unwrap(), Poll::Pending(why) if why == "another master was faster"));
        let seen = see(&cx2);
        assert_eq!(seen.init.as_ref().unwrap().value, "master-1");
        assert_eq!(seen.cluster.as_ref().unwrap().value, "master-1");
        assert_eq!(seen.initialised, None);
        std::thread::sleep(Duration::from_millis(500));
        mine.watch(&cx);
        assert!(!mine.lost, "the lease is not kept alive");
        // After a power cut the same node takes its own claim over.
        drop(mine);
        let Poll::Ready(again) = claim(&cx, &see(&cx)).unwrap() else { panic!("not taken over") };
        again.finish(&cx).unwrap();
        let done = see(&cx);
        assert_eq!((done.init.as_ref(), done.initialised.as_ref().unwrap().value.as_str()), (None, "master-1"));
        // Again over the data: only for who saw the latest record, and whoever lost the claim cannot finish.
        assert!(matches!(claim(&cx2, &seen).unwrap(), Poll::Pending(_)));
        let Poll::Ready(second) = claim(&cx2, &done).unwrap() else { panic!("no second claim") };
        let leases = RealRunner.run(
            &etcd.plain(&Command::new("etcdctl", ["--endpoints=x", "del", "--prefix", "/imgbuild/"])),
            None,
            &mut |_| {},
        );
        assert!(leases.unwrap().success());
        let error = second.finish(&cx2).unwrap_err();
        assert_eq!(error.to_string(), "the claim was lost before the cluster was initialised");
        // One at a time joins.
        let Poll::Ready(turn) = take_turn(&cx, &see(&cx)).unwrap() else { panic!("no turn") };
        assert_eq!(see(&cx2).join.unwrap().value, "master-1");
        assert!(matches!(take_turn(&cx2, &done).unwrap(), Poll::Pending(why) if why == "another master was faster"));
        turn.end(&cx);
        assert_eq!(see(&cx2).join, None);
        // Who stood still for longer than its lease takes another one.
        let late = [format!("put --lease=7b \"{}join\" \"master-1\"", prefix(&cx.profile().cluster.id))];
        let Poll::Pending(why) = transaction(&cx, &[], &late, &[]).unwrap() else { panic!("a lease out of nothing") };
        assert!(why.contains("requested lease not found"), "{why}");
        // Other people's data is refused.
        let put = |key: &str| {
            let command = etcd.plain(&Command::new("etcdctl", ["put", key, "cp-1"]));
            assert!(RealRunner.run(&command, None, &mut |_| {}).unwrap().success());
        };
        put("/registry/namespaces/default");
        assert!(look(&cx).unwrap_err().to_string().contains("/registry/namespaces/default, but no /imgbuild/"));
        put("/imgbuild/ffff/init");
        assert!(look(&cx).unwrap_err().to_string().contains("/imgbuild/ffff/init = cp-1"));
    }
}

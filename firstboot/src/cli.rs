// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands a person or systemd types.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use profiles::signing::PublicKey;
use serde::Serialize;

use crate::bundle::{Disk, Install, Machine, Origin, Uninstall};
use crate::console::Console;
use crate::context::{Cx, PAYLOAD_DIR, RUN_DIR, STATE_DIR, below};
use crate::engine::{State, converge};
use crate::failure::{Exit, Failure};
use crate::host::{Host, RealHost};
use crate::journal::{Journal, Record};
use crate::node::{NodePlan, Owners, difference};
use crate::runner::RealRunner;
use crate::seed::{EverConverged, RawSeed, document, medium};
use crate::status::{FailureStatus, Phase, Status, StatusFile, StepState};
use crate::{bundle, health, init, payload, rendered, routes, seed, status, steps};

/// Makes this node what its profile says.
#[derive(Debug, Parser)]
#[command(name = "firstboot", version, about, long_about = LONG, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

const LONG: &str = "\
Makes this node what its profile says: configuration, containerd, etcd, and a
Kubernetes control plane, from the seed and the payload alone.

The unit firstboot.service runs `firstboot apply` at every boot. It may be
interrupted at any moment and goes on where it stopped; on a node that is
already what it should be it does nothing.

See what it is doing: `firstboot status`, or `journalctl -u firstboot -f`.";

#[derive(Debug, Subcommand)]
enum Commands {
    /// Converge this node (firstboot.service runs this)
    #[command(after_help = EXIT_CODES)]
    Apply,
    /// Show what firstboot is doing, or how it ended
    Status {
        /// Print the status as JSON
        #[arg(long)]
        json: bool,
        /// Directory to take for the node's root
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
    /// Show which steps would run and why, without changing anything
    Plan {
        /// Print the plan as JSON
        #[arg(long)]
        json: bool,
        /// Directory to take for the node's root
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
    /// Show how the cluster is, as this node sees it, and what to do about it
    #[command(after_help = health::EXIT_CODES)]
    Health {
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
        /// Directory to take for the node's root
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
    /// Add routes to the pods of nodes that joined later, and publish this node's (imgbuild-routes.timer runs this)
    #[command(after_help = routes::EXIT_CODES)]
    Routes,
    /// Make this machine, whose operating system is installed already, a node (`./install` of a bundle runs this)
    #[command(after_help = EXIT_CODES)]
    HostInstall {
        /// The unpacked bundle
        #[arg(long, value_name = "DIR")]
        bundle: PathBuf,
        /// The node to become [default: by a NoCloud seed, by MAC address, by address]
        #[arg(long, value_name = "NODE")]
        profile: Option<String>,
        /// Only say what is in the way; changes nothing
        #[arg(long)]
        check: bool,
        /// The public key that must have signed the bundle, the second line of minisign.pub [default: the one that the bundle
        /// names, if any]
        #[arg(long, value_name = "KEY")]
        key: Option<PublicKey>,
    },
    /// Take back what `host-install` and firstboot changed on this machine (`./uninstall` of a bundle runs this)
    HostUninstall {
        /// Also if the node belongs to a cluster: its data goes
        #[arg(long)]
        yes: bool,
    },
    /// Run a program with DIR as its root (the initramfs uses this on itself)
    #[command(hide = true, name = "in-root")]
    InRoot {
        /// The new root
        dir: PathBuf,
        /// The program and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        argv: Vec<OsString>,
    },
}

const EXIT_CODES: &str = "\
Exit codes:
   0  the node is what its profile says
  10  no seed, or one that cannot be used
  20  the machine does not fit its profile
  30  a step failed
  40  a wait ran into its deadline
  50  internal error, or the node's own disk is broken";

/// Entry point.
pub fn main() -> ExitCode {
    let code = match Cli::parse().command {
        Commands::Apply => apply(),
        Commands::Status { json, root } => report(show_status(&root, json)),
        Commands::Plan { json, root } => report(show_plan(&root, json)),
        Commands::Health { json, root } => health::run(&root, json),
        Commands::Routes => report(routes::run(&mut |line| print(&format!("{line}\n")))),
        Commands::HostInstall { bundle, profile, check, key } => {
            on_host(|machine| bundle::install(machine, &Install { bundle, profile, check_only: check, key }))
        }
        Commands::HostUninstall { yes } => on_host(|machine| bundle::uninstall(machine, Uninstall { yes })),
        Commands::InRoot { dir, argv } => report(init::in_root::exec(&dir, &argv)),
    };
    ExitCode::from(code)
}

/// Exit code of a command for people; errors with their causes go to stderr.
fn report(result: Result<()>) -> u8 {
    let Err(error) = result else { return 0 };
    let failure = Failure::from_error(&error, Exit::Internal, "");
    eprintln!("error: {}", failure.reason);
    if !failure.hint.is_empty() {
        eprintln!("hint: {}", failure.hint);
    }
    failure.exit.code()
}

/// A change of a host, told on stdout.
fn on_host(change: impl FnOnce(&Machine<'_>) -> Result<()>) -> u8 {
    let (runner, host) = (RealRunner, RealHost::new());
    let console = Console::new(Vec::new(), Box::new(std::io::stdout()));
    let name = rustix::system::uname();
    let root = Path::new("/");
    let machine = Machine {
        disk: Disk::new(root),
        runner: &runner,
        host: &host,
        console: &console,
        seeds: &medium::Devices { runner: &runner },
        is_root: rustix::process::geteuid().is_root(),
        architecture: name.machine().to_string_lossy().into_owned(),
        kernel: name.release().to_string_lossy().into_owned(),
    };
    report(change(&machine))
}

/// Prints to stdout; a closed pipe is not an error.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn apply() -> u8 {
    let console = Console::for_unit();
    let host = RealHost::new();
    let root = Path::new("/");
    let mut status = StatusFile::new(&below(root, RUN_DIR).join("status.json"));
    status.update(|_| {});
    match try_apply(root, &console, &host, status) {
        Ok(Converged::Already) => {
            console.line("already converged, nothing to do");
            0
        }
        Ok(Converged::Now) => {
            console.line(&format!("converged in {}s", host.uptime().as_secs()));
            0
        }
        Err((step, failure)) => {
            let hint = if failure.hint.is_empty() { "see `journalctl -u firstboot`" } else { &failure.hint };
            let exit = failure.exit.code();
            let path = below(root, RUN_DIR).join("status.json");
            let mut file = StatusFile::new(&path);
            file.status = status::read(&path).unwrap_or_default();
            file.update(|status| fail(status, step, &failure, host.uptime().as_secs()));
            console.line(&format!("FAILED step={step} exit={exit}: {}; {hint}", failure.reason));
            exit
        }
    }
}

fn fail(status: &mut Status, step: &str, failure: &Failure, seconds: u64) {
    status.phase = Phase::Failed;
    status.seconds = seconds;
    status.waiting_for = None;
    status.failure = Some(FailureStatus {
        step: step.to_owned(),
        exit: failure.exit.code(),
        reason: failure.reason.clone(),
        hint: failure.hint.clone(),
    });
}

enum Converged {
    Now,
    Already,
}

fn try_apply(
    root: &Path,
    console: &Console,
    host: &RealHost,
    mut status: StatusFile,
) -> Result<Converged, (&'static str, Failure)> {
    let at = |step: &'static str, exit: Exit, hint: &'static str| {
        move |error: anyhow::Error| (step, Failure::from_error(&error, exit, hint))
    };
    let disk_hint = "check the data partition (full, read-only or broken?)";
    let _lock = lock(root).map_err(at("start", Exit::Internal, "wait for the other firstboot, or stop it"))?;
    let journal = Journal::open(&journal_path(root)).map_err(at("start", Exit::Internal, disk_hint))?;
    let runner = RealRunner;
    let origin = Origin::of(root).map_err(at("start", Exit::Internal, disk_hint))?;
    status.update(|status| status.origin = origin);
    let sources = medium::Devices { runner: &runner };
    // The seed of a bundle is there already; a medium has no say.
    let settled = EverConverged(journal.ever_converged() || origin == Origin::Bundle);
    let seed = seed::obtain(root, &sources, settled, console).map_err(at(
        "seed",
        Exit::Seed,
        "attach the seed medium and restart firstboot.service",
    ))?;
    console.set_who(&seed.profile().node.name);
    let payload = payload::read(&below(root, PAYLOAD_DIR).join("payload.json")).map_err(at(
        "payload",
        Exit::Internal,
        "the payload partition is not mounted or broken: re-image the disk",
    ))?;
    let plan = rendered::plan(&seed, payload, origin).map_err(at("seed", Exit::Seed, ""))?;
    status.update(|status| status.node.clone_from(&plan.profile.node.name));
    if journal.converged() == Some(plan.digest.as_str()) && unchanged(root, &plan) {
        status.update(|status| status.phase = Phase::Converged);
        return Ok(Converged::Already);
    }
    let steps = steps::for_profile(&plan.profile).map_err(|failure| ("plan", failure))?;
    let cx = Cx {
        root: root.to_owned(),
        plan: &plan,
        runner: &runner,
        host,
        console,
        journal: RefCell::new(journal),
        status: RefCell::new(status),
        step: RefCell::new("start"),
        interrupted: RefCell::new(BTreeSet::new()),
    };
    converge(&cx, &steps).map(|()| Converged::Now)
}

/// Whether all planned files are on the disk as they should be.
fn unchanged(root: &Path, plan: &NodePlan) -> bool {
    let owners = Owners::of_node(root);
    plan.files.iter().all(|file| matches!(difference(root, owners.as_ref(), file), Ok(None)))
}

fn journal_path(root: &Path) -> PathBuf {
    below(root, STATE_DIR).join("journal.jsonl")
}

/// Two of us would undo each other's work.
pub(crate) fn lock(root: &Path) -> Result<File> {
    let path = below(root, RUN_DIR).join("firstboot.lock");
    std::fs::create_dir_all(below(root, RUN_DIR)).context("creating /run/imgbuild")?;
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    file.try_lock().context("another firstboot is running")?;
    Ok(file)
}

fn show_status(root: &Path, json: bool) -> Result<()> {
    let path = below(root, RUN_DIR).join("status.json");
    let status = status::read(&path).context("firstboot has not run since this node started")?;
    if json {
        let text = serde_json::to_string_pretty(&status).context("encoding the status")?;
        print(&(text + "\n"));
    } else {
        print(&describe(&status));
    }
    Ok(())
}

fn describe(status: &Status) -> String {
    let node = if status.node.is_empty() { "this node" } else { &status.node };
    let phase = match status.phase {
        Phase::Running => "is converging",
        Phase::Converged => "is converged",
        Phase::Failed => "FAILED",
    };
    let mut text = format!("{node} {phase}\n");
    for step in &status.steps {
        let (mark, note) = match step.state {
            StepState::Pending => (" ", String::new()),
            StepState::Running => (">", status.waiting_for.clone().map(|what| format!(": {what}")).unwrap_or_default()),
            StepState::Done => ("+", format!(", {} s", step.seconds)),
            StepState::AlreadyDone => ("=", String::new()),
            StepState::Failed => ("!", format!(", after {} s", step.seconds)),
        };
        text += &format!("  {mark} {:<13} {}{note}\n", step.id, step.title);
    }
    if let Some(failure) = &status.failure {
        text += &format!("step {} (exit {}): {}\nhint: {}\n", failure.step, failure.exit, failure.reason, failure.hint);
    }
    if status.phase == Phase::Converged {
        text += "how the whole cluster is: `firstboot health`\n";
    }
    text
}

#[derive(Serialize)]
struct PlannedStep {
    id: &'static str,
    title: &'static str,
    needed: bool,
    why: String,
}

fn show_plan(root: &Path, json: bool) -> Result<()> {
    let dir = below(root, STATE_DIR).join("seed");
    let raw = RawSeed::read(&dir)?;
    let Some(raw) = raw else {
        return Err(Failure::seed(
            format!("{} holds no seed yet", dir.display()),
            "run `firstboot apply`, which takes it from the seed medium",
        )
        .into());
    };
    let seed = document::parse(&raw.meta_data, &raw.user_data)?;
    let payload = payload::read(&below(root, PAYLOAD_DIR).join("payload.json"))?;
    let plan = rendered::plan(&seed, payload, Origin::of(root)?)?;
    let steps = steps::for_profile(&plan.profile)?;
    let scratch = Scratch::copy_of(Journal::read(&journal_path(root)))?;
    let console = Console::new(Vec::new(), Box::new(std::io::sink()));
    console.set_who(&plan.profile.node.name);
    let host = RealHost::new();
    let cx = Cx {
        root: root.to_owned(),
        plan: &plan,
        runner: &RealRunner,
        host: &host,
        console: &console,
        journal: RefCell::new(Journal::open(&scratch.0.join("journal.jsonl"))?),
        status: RefCell::new(StatusFile::new(&scratch.0.join("status.json"))),
        step: RefCell::new("plan"),
        interrupted: RefCell::new(BTreeSet::new()),
    };
    let mut planned = Vec::new();
    for step in &steps {
        let (needed, why) = match step.check(&cx) {
            Ok(State::Done) => (false, String::new()),
            Ok(State::Needed(why)) => (true, why),
            // What an earlier step would bring is missing yet.
            Err(error) => (true, format!("{error:#}")),
        };
        planned.push(PlannedStep { id: step.id(), title: step.title(), needed, why });
    }
    if json {
        print(&(serde_json::to_string_pretty(&planned).context("encoding the plan")? + "\n"));
        return Ok(());
    }
    for step in planned {
        let what = if step.needed { format!("{} ({})", step.title, step.why) } else { "nothing to do".to_owned() };
        print(&format!("{:<13} {what}\n", step.id));
    }
    Ok(())
}

/// A directory for state that a plan must not leave on the node.
struct Scratch(PathBuf);

impl Scratch {
    fn copy_of(records: Vec<Record>) -> Result<Self> {
        let scratch = Self(std::env::temp_dir().join(format!("firstboot-plan-{}", std::process::id())));
        let mut journal = Journal::open(&scratch.0.join("journal.jsonl"))?;
        for record in records {
            journal.append(record)?;
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::journal::Event;
    use crate::node::Kind;
    use crate::status::StepStatus;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// A node that converged, in a directory.
    fn converged_node() -> tempfile::TempDir {
        let node = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &[u8]| {
            let path = node.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let profile = crate::testing::PROFILE.replace('\n', " ");
        let user_data = format!("#cloud-config\nimgbuild:\n  schema: 1\n  profile: {profile}\n");
        write("var/lib/imgbuild/seed/meta-data", b"instance-id: a\n");
        write("var/lib/imgbuild/seed/user-data", user_data.as_bytes());
        let payload = br#"{"schema":1,"architecture":"amd64","kubernetes":"v1.20.2","containerd":"1.6.20","images":[],"sandbox_image":""}"#;
        write("opt/imgbuild/payload.json", payload);
        let seed = document::parse(b"instance-id: a", user_data.as_bytes()).unwrap();
        let payload = payload::read(&node.path().join("opt/imgbuild/payload.json")).unwrap();
        let plan = rendered::plan(&seed, payload, Origin::Image).unwrap();
        for file in &plan.files {
            let path = below(node.path(), &file.path);
            match &file.kind {
                Kind::File(content) => crate::files::write_atomic(&path, content, file.mode, None).unwrap(),
                Kind::Link(target) => crate::files::link_atomic(&path, target).unwrap(),
            }
        }
        let record = Record {
            at: 0,
            event: Event::Converged,
            step: String::new(),
            fingerprint: plan.digest,
            detail: String::new(),
        };
        Journal::open(&journal_path(node.path())).unwrap().append(record).unwrap();
        node
    }

    fn apply_again(root: &Path) -> Result<Converged, (&'static str, Failure)> {
        let console = Console::new(Vec::new(), Box::new(std::io::sink()));
        try_apply(root, &console, &RealHost::new(), StatusFile::new(&below(root, RUN_DIR).join("status.json")))
    }

    #[test]
    fn a_converged_node_has_nothing_to_do_at_once() {
        let node = converged_node();
        let journal = std::fs::read(journal_path(node.path())).unwrap();
        let started = std::time::Instant::now();
        assert!(matches!(apply_again(node.path()), Ok(Converged::Already)));
        assert!(started.elapsed() < std::time::Duration::from_secs(2));
        assert_eq!(std::fs::read(journal_path(node.path())).unwrap(), journal);
        assert_eq!(status::read(&node.path().join("run/imgbuild/status.json")).unwrap().phase, Phase::Converged);
    }

    #[test]
    fn a_second_firstboot_steps_back() {
        let node = converged_node();
        let _first = lock(node.path()).unwrap();
        let (step, failure) = apply_again(node.path()).err().unwrap();
        assert_eq!((step, failure.exit), ("start", Exit::Internal));
        assert!(failure.reason.contains("another firstboot"));
    }

    #[test]
    fn a_changed_file_or_payload_is_work() {
        let node = converged_node();
        let seed = RawSeed::read(&node.path().join("var/lib/imgbuild/seed")).unwrap().unwrap();
        let seed = document::parse(&seed.meta_data, &seed.user_data).unwrap();
        let payload = payload::read(&node.path().join("opt/imgbuild/payload.json")).unwrap();
        let plan = rendered::plan(&seed, payload.clone(), Origin::Image).unwrap();
        assert!(unchanged(node.path(), &plan));
        std::fs::write(node.path().join("etc/hosts"), "by hand").unwrap();
        assert!(!unchanged(node.path(), &plan));
        let newer = payload::Payload { kubernetes: Some("v1.20.3".into()), ..payload };
        assert_ne!(rendered::plan(&seed, newer, Origin::Image).unwrap().digest, plan.digest);
    }

    #[test]
    fn status_is_readable() {
        let step = |id: &str, state| StepStatus { id: id.into(), title: "working".into(), state, seconds: 3 };
        let mut status = Status {
            node: "master-1".into(),
            waiting_for: Some("etcd to be healthy".into()),
            steps: vec![
                step("files", StepState::Done),
                step("etcd", StepState::Running),
                step("init", StepState::Pending),
            ],
            ..Status::default()
        };
        insta::assert_snapshot!(describe(&status), @r"
        master-1 is converging
          + files         working, 3 s
          > etcd          working: etcd to be healthy
            init          working
        ");
        let converged = Status { phase: Phase::Converged, node: "master-1".into(), ..Status::default() };
        insta::assert_snapshot!(describe(&converged), @r"
        master-1 is converged
        how the whole cluster is: `firstboot health`
        ");
        fail(&mut status, "etcd", &Failure::new(Exit::Deadline, "waited", "look"), 9);
        insta::assert_snapshot!(describe(&status).lines().rev().take(2).collect::<Vec<_>>().join("\n"), @r"
        hint: look
        step etcd (exit 40): waited
        ");
    }
}

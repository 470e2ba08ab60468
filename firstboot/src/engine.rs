// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs steps in a fixed order: check, apply, verify, and a durable record of each transition.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::context::{Cx, STATE_DIR};
use crate::failure::{Exit, Failure, one_line};
use crate::journal::{Event, Progress, Record};
use crate::status::{Phase, StepState, StepStatus};

/// What a step's check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The node already is what this step makes of it.
    Done,
    /// It is not, and why.
    Needed(String),
}

/// One idempotent unit of convergence.
pub trait Step {
    /// Stable name: journal, status and exit lines use it.
    fn id(&self) -> &'static str;
    /// For people, as a gerund: "importing images".
    fn title(&self) -> &'static str;
    /// Whether the node already is what this step makes of it. Changes nothing.
    fn check(&self, cx: &Cx<'_>) -> Result<State>;
    /// Makes it so. May run again after a power cut at any point of it.
    fn apply(&self, cx: &Cx<'_>) -> Result<()>;
    /// Makes sure that it is so; by default, that the check is content.
    fn verify(&self, cx: &Cx<'_>) -> Result<()> {
        match self.check(cx)? {
            State::Done => Ok(()),
            State::Needed(why) => bail!("still {why}"),
        }
    }
    /// Digest of the input of this step. Steps whose check is the journal compare it.
    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        cx.plan.digest.clone()
    }
    /// How often to try.
    fn attempts(&self) -> u32 {
        3
    }
}

/// A check by the journal alone: done with this fingerprint, or needed and why.
pub fn journal_state(step: &dyn Step, cx: &Cx<'_>) -> State {
    match cx.progress(step.id()) {
        Progress::Never => State::Needed("not done yet".to_owned()),
        Progress::Interrupted => State::Needed("was interrupted".to_owned()),
        Progress::Done(fingerprint) if fingerprint == step.fingerprint(cx) => State::Done,
        Progress::Done(_) => State::Needed("was done from other input".to_owned()),
    }
}

/// Whether an apply is the first one, or repairs an interrupted one.
pub fn was_interrupted(step: &dyn Step, cx: &Cx<'_>) -> bool {
    // The begin record of the apply that is running is itself in the journal, so look at what came before it.
    cx.interrupted.borrow().contains(step.id())
}

/// Runs all steps. The error names the step.
pub fn converge(cx: &Cx<'_>, steps: &[Box<dyn Step>]) -> Result<(), (&'static str, Failure)> {
    cx.status.borrow_mut().update(|status| {
        status.node.clone_from(&cx.profile().node.name);
        status.steps = steps
            .iter()
            .map(|step| StepStatus {
                id: step.id().to_owned(),
                title: step.title().to_owned(),
                state: StepState::Pending,
                seconds: 0,
            })
            .collect();
    });
    for step in steps {
        *cx.step.borrow_mut() = step.id();
        if let Err(failure) = run_step(cx, step.as_ref()) {
            return Err((step.id(), failure));
        }
    }
    record(cx, Event::Converged, "", &cx.plan.digest, String::new()).map_err(|failure| ("journal", failure))?;
    cx.status.borrow_mut().update(|status| status.phase = Phase::Converged);
    Ok(())
}

fn run_step(cx: &Cx<'_>, step: &dyn Step) -> Result<(), Failure> {
    let started = cx.host.uptime();
    let seconds = || cx.host.uptime().saturating_sub(started).as_secs();
    cx.status.borrow_mut().step(step.id(), StepState::Running, 0);
    let attempts = step.attempts().max(1);
    for attempt in 1.. {
        let failure = match attempt_step(cx, step) {
            Ok(changed) => {
                let state = if changed { StepState::Done } else { StepState::AlreadyDone };
                cx.status.borrow_mut().step(step.id(), state, seconds());
                if changed {
                    cx.say(&format!("done in {} s", seconds()));
                }
                return Ok(());
            }
            Err(error) => Failure::from_error(&error, Exit::Step, "see `journalctl -u firstboot` on the node"),
        };
        if attempt >= attempts || !failure.worth_retrying() {
            cx.status.borrow_mut().step(step.id(), StepState::Failed, seconds());
            return Err(failure);
        }
        let pause = Duration::from_secs(5 * u64::from(attempt));
        cx.say(&format!("attempt {attempt} of {attempts} failed: {}; again in {} s", failure, pause.as_secs()));
        cx.host.sleep(pause);
    }
    unreachable!("the loop ends by returning")
}

/// One attempt; says whether it changed anything.
fn attempt_step(cx: &Cx<'_>, step: &dyn Step) -> Result<bool> {
    let why = match step.check(cx)? {
        State::Done => {
            cx.log("nothing to do");
            return Ok(false);
        }
        State::Needed(why) => why,
    };
    cx.say(&format!("{} ({})", step.title(), one_line(&why)));
    if cx.progress(step.id()) == Progress::Interrupted {
        cx.interrupted.borrow_mut().insert(step.id());
    }
    record(cx, Event::Begin, step.id(), "", why)?;
    let started = cx.host.uptime();
    let result = step.apply(cx).and_then(|()| step.verify(cx));
    if let Err(error) = result {
        record(cx, Event::Failed, step.id(), "", one_line(&format!("{error:#}")))?;
        return Err(error);
    }
    // The record must never be on the disk before what it speaks of. /etc and /var are one filesystem.
    cx.host.sync(&cx.path(STATE_DIR))?;
    let took = cx.host.uptime().saturating_sub(started).as_secs();
    record(cx, Event::Done, step.id(), &step.fingerprint(cx), format!("{took} s"))?;
    cx.interrupted.borrow_mut().remove(step.id());
    Ok(true)
}

fn record(cx: &Cx<'_>, event: Event, step: &str, fingerprint: &str, detail: String) -> Result<(), Failure> {
    let record =
        Record { at: cx.host.unix_time(), event, step: step.to_owned(), fingerprint: fingerprint.to_owned(), detail };
    cx.journal.borrow_mut().append(record).map_err(|error| {
        Failure::from_error(&error, Exit::Internal, "check the data partition (full, read-only or broken?)")
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::rc::Rc;

    use super::*;
    use crate::testing::Lab;

    /// What survives a power cut besides the journal: which steps' effects are on the disk, and a trace.
    #[derive(Default)]
    struct World {
        applied: BTreeSet<&'static str>,
        trace: Vec<String>,
        fail: Option<(&'static str, u32)>,
    }

    struct Fake {
        id: &'static str,
        world: Rc<RefCell<World>>,
    }

    impl Step for Fake {
        fn id(&self) -> &'static str {
            self.id
        }
        fn title(&self) -> &'static str {
            "working"
        }
        fn check(&self, cx: &Cx<'_>) -> Result<State> {
            Ok(journal_state(self, cx))
        }
        fn apply(&self, cx: &Cx<'_>) -> Result<()> {
            let mut world = self.world.borrow_mut();
            let again = if was_interrupted(self, cx) { "again " } else { "" };
            world.trace.push(format!("{again}{}", self.id));
            if let Some((id, left)) = world.fail.as_mut()
                && *id == self.id
                && *left > 0
            {
                *left -= 1;
                bail!("does not work");
            }
            world.applied.insert(self.id);
            Ok(())
        }
        fn verify(&self, _: &Cx<'_>) -> Result<()> {
            anyhow::ensure!(self.world.borrow().applied.contains(self.id), "not applied");
            Ok(())
        }
    }

    const IDS: [&str; 4] = ["a", "b", "c", "d"];

    fn steps(world: &Rc<RefCell<World>>) -> Vec<Box<dyn Step>> {
        IDS.iter().map(|id| Box::new(Fake { id, world: world.clone() }) as Box<dyn Step>).collect()
    }

    #[test]
    fn resumes_after_a_power_cut_at_every_record() {
        // Two records for each step, and the last one.
        let total = IDS.len() * 2 + 1;
        for fuse in 0..total {
            let lab = Lab::new();
            let world = Rc::new(RefCell::new(World::default()));
            let cx = lab.cx();
            cx.journal.borrow_mut().fuse = Some(fuse);
            let (_, failure) = converge(&cx, &steps(&world)).unwrap_err();
            assert_eq!(failure.exit, Exit::Internal);
            drop(cx);
            world.borrow_mut().trace.clear();
            let lab = lab.reboot();
            let cx = lab.cx();
            converge(&cx, &steps(&world)).unwrap();
            // Steps whose done record was written do not run again; the one that had begun knows it was interrupted.
            let done = fuse / 2;
            let mut expected: Vec<String> = IDS[done..].iter().map(|id| (*id).to_owned()).collect();
            if fuse % 2 == 1 && fuse < IDS.len() * 2 {
                expected[0] = format!("again {}", IDS[done]);
            }
            assert_eq!(world.borrow().trace, expected, "power cut after {fuse} records");
            assert_eq!(cx.journal.borrow().converged(), Some(cx.plan.digest.as_str()));
        }
    }

    #[test]
    fn a_second_run_does_nothing() {
        let lab = Lab::new();
        let world = Rc::new(RefCell::new(World::default()));
        converge(&lab.cx(), &steps(&world)).unwrap();
        let lab = lab.reboot();
        converge(&lab.cx(), &steps(&world)).unwrap();
        assert_eq!(world.borrow().trace, IDS);
    }

    #[test]
    fn tries_again_with_pauses_and_then_fails() {
        let lab = Lab::new();
        let world = Rc::new(RefCell::new(World { fail: Some(("b", 2)), ..World::default() }));
        converge(&lab.cx(), &steps(&world)).unwrap();
        assert_eq!(world.borrow().trace, ["a", "b", "again b", "again b", "c", "d"]);
        assert_eq!(lab.host.slept(), Duration::from_secs(15));

        let lab = Lab::new();
        let world = Rc::new(RefCell::new(World { fail: Some(("b", 99)), ..World::default() }));
        let (step, failure) = converge(&lab.cx(), &steps(&world)).unwrap_err();
        assert_eq!((step, failure.exit, failure.reason.as_str()), ("b", Exit::Step, "does not work"));
        let status = crate::status::read(&lab.root().join("run/imgbuild/status.json")).unwrap();
        let states: Vec<_> = status.steps.iter().map(|step| step.state).collect();
        assert_eq!(states, [StepState::Done, StepState::Failed, StepState::Pending, StepState::Pending]);
    }

    #[test]
    fn other_input_runs_a_step_again() {
        let lab = Lab::new();
        let world = Rc::new(RefCell::new(World::default()));
        converge(&lab.cx(), &steps(&world)).unwrap();
        let mut lab = lab.reboot();
        lab.plan.digest = "another".to_owned();
        converge(&lab.cx(), &steps(&world)).unwrap();
        assert_eq!(world.borrow().trace.len(), IDS.len() * 2);
    }
}

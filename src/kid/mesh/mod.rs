//! A run between several sources, on one screen: open → gather → contend → deliver → commit → mark. Every member has one
//! transaction, in which it is read and written; each source tells the others its changes, and a key that several have
//! changed is decided before a row travels. It must never let one source go on with a decision that another has not
//! taken: if one fails before the commits, all begin again.

mod ask;
mod carry;
mod contend;
mod decide;
mod deliver;
mod foreign;
mod image;
mod keep;
mod meet;
mod offer;
mod open;
mod own;
mod record;
mod settle;
mod thorough;
mod unique;
mod whole;
mod written;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::apply::Receiver;
use super::members::Pool;
use super::report::{Progress, show};
use super::retry::{self, Care, Verdict};
use super::run::{self, Failure, Plan};
use crate::catalog::sync::Role;
use crate::error::Error;
use crate::master::slot::{Outcome, Phase, Report, Text};
use crate::master::trouble::Said;
use carry::Carried;
use offer::Offer;
use settle::Decision;

/// One attempt at a run: the members that take part, in the listed order, and what each source has for the others.
pub(super) struct Mesh<'a> {
    plan: &'a mut Plan,
    care: Care,
    run: i64,
    attempt: u32,
    members: Vec<Receiver>,
    /// For each of `members`: what it has for the others; None for a pure target.
    offers: Vec<Option<Offer>>,
    /// The relations that were copied whole, and to which members.
    copied: Vec<(i32, u64)>,
    /// What runs that died have left to this one.
    carried: Carried,
    /// The sources, by place, and relations for which a table of the keys that the source keeps to itself is there.
    kept: HashSet<(usize, i32)>,
    /// The relations for which a table of the keys that no truncation takes along is on every member.
    spared: HashSet<i32>,
    /// The relations that all sources have locked against writers before their snapshots.
    locked: HashSet<i32>,
    /// The relations whose rows are too wide to travel at once, however few they are.
    wide: HashSet<i32>,
    /// Statements for members (by their places in the sync) that go with the next question, each with its parameters.
    errands: HashMap<usize, Vec<Errand>>,
    /// Decisions that are not recorded yet, how many are, and since which number.
    decisions: Vec<Decision>,
    recorded: u64,
    since: i64,
    /// Whether any member may have been told to commit.
    committing: bool,
}

/// A statement that is sent along with others, with its parameters.
type Errand = (String, Vec<String>);

/// What ends an attempt before anything is committed.
pub(super) enum Broken {
    /// Sources that failed: the others roll back with them.
    Members(Vec<Failure>),
    /// The run itself.
    Run { error: Error, pause: bool },
    /// A customcode wants the run to end, with nothing changed.
    Ended,
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Broken::Run { error, pause: false }
    }
}

/// Runs the sync for the given members and fills in how it went.
pub fn run(plan: &mut Plan, pool: &mut Pool, members: u64, progress: &mut Progress) {
    let mut todo = members & run::active(&plan.sync);
    let mut care = Care::default();
    let mut attempt = 0;
    // Tables that the last attempt touched: what is to be locked before the snapshot when it was defeated.
    let mut touched = HashSet::new();
    loop {
        progress.attempt();
        // What an attempt has recorded under its number may have had an effect somewhere: the next one is another run.
        if std::mem::take(&mut progress.recorded)
            && let Err(error) = progress.renumber()
        {
            return progress.failed_for_good(error, false);
        }
        let (failures, again) = match one_attempt(plan, pool, todo, care, &mut touched, progress) {
            Ok(failures) => (failures, false),
            Err(_) if plan.outdated => return,
            Err(Broken::Members(failures)) => (failures, true),
            Err(Broken::Ended) => {
                // What it leaves pending would else start the next run at once, and so on.
                progress.saw_changes = false;
                return;
            }
            Err(Broken::Run { error, pause }) => {
                run::forget(plan, &error);
                match retry::judge(&error, attempt, care, true) {
                    Verdict::Again { care: next, wait } if !pause => run::again(&mut care, next, &mut attempt, wait),
                    _ => return progress.failed_for_good(error, pause),
                }
                continue;
            }
        };
        let mut wait = Duration::ZERO;
        let mut next_care = care;
        let mut retries = again;
        for Failure { index, error, fresh } in failures {
            run::forget(plan, &error);
            // An application's short transactions are waited for once more; beside whom others have something to do.
            let without = todo & !(1 << index);
            let others = attempt > 0 && without.count_ones() > 1 && without & run::sources(&plan.sync) != 0;
            match retry::judge_among(&error, attempt, care, fresh, others) {
                Verdict::Again { care, wait: pause } => {
                    retries = true;
                    wait = wait.max(pause);
                    next_care = next_care.and(care);
                }
                verdict => {
                    todo &= !(1 << index);
                    let error = run::at_member(run::explained(error), plan, index);
                    // Nobody else could serve anything.
                    if plan.sync.sources().count() == 1 && plan.sync.members[index].role == Role::Source {
                        return progress.failed(if verdict == Verdict::Down { 1 << index } else { 0 }, error);
                    }
                    progress.member_failed(1 << index, verdict == Verdict::Down, error);
                }
            }
        }
        if !retries {
            return;
        }
        run::again(&mut care, next_care, &mut attempt, wait);
    }
}

/// Whether a member that was away can be reached again: it then joins the next run.
pub fn probe(plan: &Plan, pool: &mut Pool, members: u64, slot: usize) -> Report {
    let mut report = Report { outcome: Outcome::Good, ..Report::NONE };
    let mut said = Vec::new();
    for (index, member) in plan.sync.members.iter().enumerate().filter(|(i, _)| members & (1 << i) != 0) {
        show(slot, |kid| kid.member = Text::new(&member.db.name));
        let mut ask = || {
            let mut session = pool.take(&member.db).map_err(|e| (true, e))?;
            session.conn.query("SELECT 1").map_err(|e| (session.fresh, e)).map(|_| pool.give_back(session))
        };
        // A kept connection may have died with a server that is back already.
        let answered = match ask() {
            Err((false, _)) => ask(),
            other => other,
        };
        if let Err((_, error)) = answered {
            report.outcome = Outcome::Bad;
            if retry::is_away(error.code) {
                report.down |= 1 << index;
            } else {
                report.refused |= 1 << index;
            }
            let error = run::at_member(error, plan, index);
            report.sqlstate = error.code.0;
            report.message = Text::new(&error.to_string());
            report.hint = Text::new(error.hint.as_deref().unwrap_or_default());
            said.push(error.with_mend());
        }
    }
    report.said = Said::new(&said);
    report
}

/// One attempt with one snapshot of each member. The failures are of members that the others could do without.
fn one_attempt(
    plan: &mut Plan,
    pool: &mut Pool,
    todo: u64,
    care: Care,
    touched: &mut HashSet<i32>,
    progress: &mut Progress,
) -> Result<Vec<Failure>, Broken> {
    progress.phase(Phase::Connect);
    let (mut mesh, mut failures) = Mesh::open(plan, pool, todo, care, progress);
    progress.phase(Phase::Gather);
    crate::fault::point("kid.before_gather")?;
    let served = mesh.exchange(touched, pool, progress);
    let (served, broken) = match served {
        Ok(served) => (served, None),
        Err(broken) => (0, Some(broken)),
    };
    if served != 0 {
        progress.phase(Phase::Mark);
        crate::fault::point("kid.before_mark")?;
        mesh.mark(served);
        mesh.after_copy();
        crate::fault::point("kid.after_mark")?;
    }
    let Mesh { members, .. } = mesh;
    let mut sources = Vec::new();
    for member in members {
        run::settle(member, pool, if broken.is_some() { &mut sources } else { &mut failures }, progress, served);
    }
    match broken {
        None => Ok(failures),
        Some(Broken::Members(_)) => {
            sources.append(&mut failures);
            Err(Broken::Members(sources))
        }
        Some(broken) => Err(broken),
    }
}

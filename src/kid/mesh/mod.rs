//! A run between several sources, out of the steps in the files beside this one: open → gather → contend → deliver →
//! commit → mark. Every member has one transaction, in which it is read and written; each source tells the others its
//! changes, and a key that several have changed is decided before a row travels. It must never let one source go on with a
//! decision that another has not taken: if one fails before the commits, all begin again.

mod abreast;
mod ask;
mod carry;
mod commit;
mod contend;
mod decide;
mod deliver;
mod foreign;
mod hearsay;
mod image;
mod keep;
mod later;
mod marks;
mod meet;
mod offer;
mod open;
mod own;
mod record;
mod settle;
mod stale;
mod thorough;
mod unique;
mod whole;
mod written;

use std::collections::{HashMap, HashSet};

use super::apply::Receiver;
use super::bits;
use super::current::Outdated;
use super::failure::{self, Failure, at_member, explained};
use super::members::Pool;
use super::plan::Plan;
use super::report::{Progress, show};
use super::retry::{self, Care, Tries, Verdict};
use crate::catalog::sync::Role;
use crate::error::Error;
use crate::fault;
use crate::master::slot::{Outcome, Phase, Report, Text};
use crate::master::trouble::Said;
use carry::Carried;
use hearsay::Hearsay;
use later::Unsent;
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
    /// What sources have got of those that are away.
    hearsay: Hearsay,
    /// What does not go to all for that.
    unsent: Unsent,
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
    /// The sync is another one by now.
    Outdated,
    /// It must go another way, as it knows now: it begins again.
    Otherwise,
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Broken::Run { error, pause: false }
    }
}

/// Runs the sync for the given members and fills in how it went.
pub fn run(plan: &mut Plan, pool: &mut Pool, members: u64, progress: &mut Progress) -> Result<(), Outdated> {
    let mut todo = members & bits::active(&plan.sync);
    let mut tries = Tries::default();
    // Tables that the last attempt touched: what is to be locked before the snapshot when it was defeated.
    let mut touched = HashSet::new();
    loop {
        progress.attempt();
        // What an attempt has recorded under its number may have had an effect somewhere: the next one is another run.
        if std::mem::take(&mut progress.recorded)
            && let Err(error) = progress.renumber()
        {
            progress.failed_for_good(error, false);
            return Ok(());
        }
        let (failures, mut retries) = match one_attempt(plan, pool, todo, tries.care, &mut touched, progress) {
            Ok(failures) => (failures, false),
            Err(Broken::Members(failures)) => (failures, true),
            Err(Broken::Outdated) => return Err(Outdated),
            Err(Broken::Otherwise) => continue,
            Err(Broken::Ended) => {
                // What it leaves pending would else start the next run at once, and so on.
                progress.saw_changes = false;
                return Ok(());
            }
            Err(Broken::Run { error, pause }) => {
                failure::forget(plan, &error);
                if pause || !matches!(tries.take(&error, true, false), Verdict::Again { .. }) {
                    progress.failed_for_good(error, pause);
                    return Ok(());
                }
                failure::again(&mut tries);
                continue;
            }
        };
        for Failure { index, error, fresh } in failures {
            failure::forget(plan, &error);
            // An application's short transactions are waited for once more; beside whom others have something to do.
            let without = todo & !(1 << index);
            let others = tries.attempt > 0 && without.count_ones() > 1 && without & bits::sources(&plan.sync) != 0;
            let verdict = tries.take(&error, fresh, others);
            if matches!(verdict, Verdict::Again { .. }) {
                retries = true;
                continue;
            }
            todo = without;
            let error = at_member(explained(error), plan, index);
            // Nobody else could serve anything.
            if plan.sync.sources().count() == 1 && plan.sync.members[index].role == Role::Source {
                progress.failed(if verdict == Verdict::Down { 1 << index } else { 0 }, error);
                return Ok(());
            }
            progress.member_failed(1 << index, verdict == Verdict::Down, error);
        }
        if !retries {
            return Ok(());
        }
        // One that failed may be another one by then, which has lost what the others have of it.
        if !progress.note(&plan.sync) {
            let error = Error::internal("where the members' logs are could not be noted");
            progress.failed_for_good(error, false);
            return Ok(());
        }
        failure::again(&mut tries);
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
            if retry::is_away(error.code) {
                report.down |= 1 << index;
            } else {
                report.refused |= 1 << index;
            }
            let error = at_member(explained(error), plan, index);
            report = Report { whole: false, down: report.down, refused: report.refused, ..Report::bad(&error) };
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
    fault::point("kid.before_gather")?;
    let served = mesh.exchange(touched, pool, progress);
    let (served, broken) = match served {
        Ok(served) => (served, None),
        Err(broken) => (0, Some(broken)),
    };
    if served != 0 {
        progress.phase(Phase::Mark);
        fault::point("kid.before_mark")?;
        mesh.mark(served);
        mesh.forget_heard(served);
        mesh.after_copy();
        fault::point("kid.after_mark")?;
    }
    let Mesh { members, .. } = mesh;
    let mut sources = Vec::new();
    for member in members {
        failure::settle(member, pool, if broken.is_some() { &mut sources } else { &mut failures }, progress, served);
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

impl Mesh<'_> {
    /// Everything between the first BEGIN and the last COMMIT. The members that have committed, as bits.
    fn exchange(&mut self, touched: &mut HashSet<i32>, pool: &mut Pool, progress: &mut Progress) -> Result<u64, Broken> {
        let committed = self.try_exchange(touched, pool, progress);
        progress.recorded |= self.recorded > 0;
        // Nobody was told to commit: then it is certain that what was recorded has not happened, whoever is away.
        if committed.is_err() && self.recorded > 0 && !self.committing {
            record::forget_run(&self.plan.sync.name, self.run)?;
            progress.recorded = false;
        }
        committed
    }

    fn try_exchange(&mut self, touched: &mut HashSet<i32>, pool: &mut Pool, progress: &mut Progress) -> Result<u64, Broken> {
        let sequences = self.gather(touched)?;
        fault::point("kid.after_gather")?;
        let relations = self.relations();
        if self.lacks_locks(&relations, touched) {
            return Err(Broken::Otherwise);
        }
        self.care.thorough |= self.must_look(&relations);
        let moved = self.moved_sequences(&sequences);
        if relations.is_empty() && moved.iter().all(Vec::is_empty) {
            // Nothing to do; but that is to be noted where a copy of the progress says something else, or where something is kept.
            if self.offers.iter().flatten().any(|o| o.echoed || o.unbelieved || o.heard) {
                self.note_progress(&[], false);
                self.check()?;
            }
            let noted = self.offers.iter().flatten().any(|o| o.behind != 0 || o.echoed || o.unbelieved || o.heard);
            return if noted { self.commit(pool, progress) } else { Ok(0) };
        }
        touched.extend(&relations);
        progress.saw_changes |= !relations.is_empty();
        progress.phase(Phase::Apply);
        progress.total(self.offers.iter().flatten().flat_map(|o| &o.changes).map(|c| c.changes).sum());
        self.apply(&relations, progress)?;
        self.note_carried()?;
        self.note_progress(&relations, self.all_take_part());
        // Last, because a lock on a sequence holds up who takes numbers.
        self.move_sequences(moved);
        self.check()?;
        progress.phase(Phase::Commit);
        self.commit(pool, progress)
    }

    /// Decides and writes all relations.
    fn apply(&mut self, relations: &[i32], progress: &mut Progress) -> Result<(), Broken> {
        let few = self.look(relations)?;
        let mut settlements = HashMap::new();
        for relation in relations {
            let settlement = self.settle(*relation, &few)?;
            settlements.insert(*relation, settlement);
        }
        let many: Vec<i32> = relations.iter().copied().filter(|r| !self.is_few(*r)).collect();
        self.empty_first(&many);
        let mut kept = HashMap::new();
        for relation in &many {
            let mut settlement = settlements.remove(relation).unwrap_or_default();
            if self.care.thorough {
                self.decide_clashes(*relation, &mut settlement)?;
                self.put_won(*relation, &mut settlement)?;
            }
            for at in self.changed(*relation) {
                if let Some(table) = self.kept_table(at, *relation, &mut settlement)? {
                    kept.insert((at, *relation), table);
                }
            }
            self.truncate(*relation, &kept)?;
            // Before the copy, which shall not bring them where another row has their value.
            self.write(*relation, &settlement.removed)?;
            self.copy_whole(*relation, &kept, progress)?;
            self.forget_copied(*relation);
            settlements.insert(*relation, settlement);
        }
        self.check()?;
        if self.care.thorough {
            for relation in relations {
                let decisions = self.send_thoroughly(*relation, &kept, progress)?;
                self.decisions.extend(decisions);
            }
        } else {
            let mut staged = Vec::new();
            let abreast = self.stage_abreast(&settlements, &kept, &mut staged, progress)?;
            for at in self.sources() {
                self.send(at, &few, (&settlements, &kept), &abreast, &mut staged, progress)?;
                self.check()?;
            }
            self.bring_in(&staged)?;
        }
        for relation in relations {
            let Some(mut settlement) = settlements.remove(relation) else { continue };
            self.write(*relation, &settlement.written)?;
            self.note_lost(*relation, &mut settlement);
            self.decisions.extend(settlement.decisions);
        }
        self.run_errands()?;
        if self.is_ahead() {
            relations.iter().try_for_each(|relation| self.note_heard(*relation, &kept))?;
        }
        self.renew_stale(relations)?;
        let decisions = self.adopt_orphans(relations)?;
        self.decisions.extend(decisions);
        Ok(())
    }
}

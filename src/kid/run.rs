//! One run of one sync, on one screen: gather → apply → commit → mark, for the members that the master named.
//! Receivers that were served up to the same snapshot go together; one that fails is taken again by itself, or left to
//! the master's back-off. A run must never tell a receiver's progress before that receiver has committed.

use super::ahead::{Foreseen, Guess, Habit};
use super::apply::{self, Receiver};
use super::bits;
use super::current::Outdated;
use super::deaf;
use super::failure::{self, Failure, at_member, explained};
use super::few::Handfuls;
use super::flush;
use super::foresee::Given;
use super::gather::{self, Gather, Gathered, Group, TableChanges};
use super::members::{self, Pool, Session};
use super::mesh;
use super::onetimecopy;
use super::plan::Plan;
use super::renew;
use super::replaced;
use super::report::Progress;
use super::retry::{self, Care, Tries, Verdict};
use super::rounds::Rounds;
use super::track;
use super::who;
use crate::error::Result;
use crate::fault;
use crate::master::slot::Phase;

/// Runs the sync for the given members and fills in how it went.
pub fn run(plan: &mut Plan, pool: &mut Pool, members: u64, progress: &mut Progress) -> Result<(), Outdated> {
    if let Err(error) = onetimecopy::begin(plan, pool) {
        let away = plan.sync.first_source().filter(|_| retry::is_away(error.code));
        progress.failed(away.map_or(0, |i| 1 << i), error);
        return Ok(());
    }
    if plan.sync.sources().count() > 1 {
        return mesh::run(plan, pool, members, progress);
    }
    progress.doubt_clocks(&plan.sync, "");
    match plan.source() {
        Ok(source) => run_from(plan, pool, source, members, progress),
        Err(error) => {
            progress.failed(0, error);
            Ok(())
        }
    }
}

/// The run of a sync with one source.
fn run_from(plan: &mut Plan, pool: &mut Pool, source: usize, members: u64, progress: &mut Progress) -> Result<(), Outdated> {
    let mut rounds = Rounds::new(plan.counted_at);
    loop {
        rounds.begin(progress);
        one_round(plan, pool, source, members, progress)?;
        if !rounds.go_on(plan, progress) || !progress.round(&plan.sync) {
            return Ok(());
        }
        if let Err(error) = fault::point("kid.before_next_round") {
            progress.failed(0, error);
            return Ok(());
        }
        plan.follows = true;
    }
}

/// Brings everybody up to one snapshot of the source.
fn one_round(plan: &mut Plan, pool: &mut Pool, source: usize, members: u64, progress: &mut Progress) -> Result<(), Outdated> {
    let mut todo = members & bits::active(&plan.sync) & !bits::sources(&plan.sync);
    let mut tries = Tries::default();
    while todo != 0 {
        progress.attempt();
        let failures = match one_attempt(plan, pool, source, todo, tries.care, progress) {
            Ok(Made::Served(failures)) => failures,
            Ok(Made::Outdated) => return Err(Outdated),
            // Whole tables are copied as between several sources.
            Ok(Made::WholeTables) => return mesh::run(plan, pool, todo | (1 << source), progress),
            Err(Failure { error, fresh, .. }) => {
                failure::forget(plan, &error);
                if plan.waits_on(&error) {
                    failure::stand_by();
                    continue;
                }
                match tries.take(&error, fresh, plan.patient) {
                    // It may be another one by then, which has lost what receivers have of it.
                    Verdict::Again { .. } if progress.note(&plan.sync) => {
                        failure::again(&mut tries);
                        continue;
                    }
                    Verdict::Down | Verdict::Again { .. } => {
                        progress.failed(1 << source, at_member(explained(error), plan, source))
                    }
                    Verdict::Refused => progress.failed(0, at_member(error, plan, source)),
                }
                return Ok(());
            }
        };
        todo = 0;
        for Failure { index, error, fresh } in failures {
            failure::forget(plan, &error);
            if plan.waits_on(&error) {
                failure::stand_by();
                todo |= 1 << index;
                continue;
            }
            match tries.take(&error, fresh, true) {
                Verdict::Again { .. } => todo |= 1 << index,
                verdict => progress.member_failed(1 << index, verdict == Verdict::Down, at_member(explained(error), plan, index)),
            }
        }
        failure::again(&mut tries);
    }
    Ok(())
}

/// What came of an attempt.
enum Made {
    /// All were served but these.
    Served(Vec<Failure>),
    /// Nobody: some are to get whole tables, or the sync is another one by now.
    WholeTables,
    Outdated,
}

/// One attempt. `Err`: the source failed.
fn one_attempt(
    plan: &mut Plan,
    pool: &mut Pool,
    source: usize,
    todo: u64,
    care: Care,
    progress: &mut Progress,
) -> Result<Made, Failure> {
    progress.phase(Phase::Connect);
    progress.member(&plan.sync.members[source].db.name);
    let failure = |error, fresh| Failure { index: source, error, fresh };
    let mut from = pool.take(&plan.sync.members[source].db).map_err(|e| failure(e, true))?;
    let fresh = from.fresh;
    let shapes = plan.source_shapes(source, &mut from).map_err(|e| failure(e, fresh))?;
    let given = Given { plan, source, version: from.conn.version(), shapes, care };
    Attempt { given, pool, from, progress }.make(todo).map_err(|e| failure(e, fresh))
}

/// One attempt with one snapshot of the source. Its errors are the source's; receivers keep their own.
struct Attempt<'a> {
    given: Given<'a>,
    pool: &'a mut Pool,
    from: Session,
    progress: &'a mut Progress,
}

impl Attempt<'_> {
    fn make(mut self, todo: u64) -> Result<Made> {
        let (mut receivers, mut failures) = self.open(todo)?;
        self.progress.phase(Phase::Gather);
        fault::point("kid.before_gather")?;
        let ahead = self.guess(&receivers).map(|guess| self.given.foresee(&mut self.from, &guess, &mut receivers));
        if !matches!(ahead, None | Some(Ok(Some(_)))) {
            self.given.plan.habit = Habit::default();
        }
        let (gathered, foreseen) = match ahead.transpose()?.flatten() {
            Some((gathered, foreseen)) => (gathered, Some(foreseen)),
            None => match self.gather(&receivers)? {
                Gather::Pending(gathered) => (gathered, None),
                Gather::WholeTables => return Ok(Made::WholeTables),
            },
        };
        self.progress.foreseen = foreseen.is_some();
        if !self.given.plan.is_current(&gathered.strangers)? {
            return Ok(Made::Outdated);
        }
        fault::point("kid.after_gather")?;
        let mut served = 0;
        for group in &gathered.groups {
            let (mut mine, others): (Vec<_>, Vec<_>) = receivers.into_iter().partition(|r| group.members & r.bit() != 0);
            receivers = others;
            let committed = self.serve(&gathered, group, foreseen.as_ref(), &mut mine)?;
            served |= committed;
            for receiver in mine {
                failure::settle(receiver, self.pool, &mut failures, self.progress, committed);
            }
        }
        self.mark(&gathered.snapshot, served)?;
        self.progress.brought = served != 0;
        self.given.plan.habit.learn(&gathered, served, failures.is_empty());
        self.pool.give_back(self.from);
        Ok(Made::Served(failures))
    }

    /// Connects to the receivers, and makes sure that all members are who they were and alone.
    fn open(&mut self, todo: u64) -> Result<(Vec<Receiver>, Vec<Failure>)> {
        let (plan, source) = (&mut *self.given.plan, self.given.source);
        let (mut receivers, mut failures) = plan.open(self.pool, todo, self.progress);
        renew::recognise_all(plan, Some((source, &mut self.from)), &mut receivers, &mut failures)?;
        let encoding = members::common_encoding(std::iter::once(&self.from).chain(receivers.iter().map(|r| &r.session)));
        members::speak(&mut self.from.conn, encoding)?;
        for receiver in &mut receivers {
            receiver.attempt(|conn| members::speak(conn, encoding));
        }
        if !plan.follows || self.progress.attempts > 1 {
            apply::be_alone(&mut receivers, &plan.guard());
        }
        Ok((receivers, failures))
    }

    /// Takes the snapshot, and learns what is pending for whom.
    fn gather(&mut self, receivers: &[Receiver]) -> Result<Gather> {
        let (given, alive) = (&self.given, bits::union(receivers.iter().map(Receiver::bit)));
        let sequences = given.plan.sequence_query.as_deref();
        gather::gather(&mut self.from, &given.asker(), alive, &given.shapes, sequences)
    }

    /// What is likely to be pending, where the run before was like this one.
    fn guess(&self, receivers: &[Receiver]) -> Option<Guess> {
        let usual = self.given.plan.follows && self.progress.attempts == 1 && self.given.care == Care::default();
        usual.then(|| self.given.plan.habit.guess(bits::union(receivers.iter().map(Receiver::bit)))).flatten()
    }

    /// Brings one group of receivers up to the snapshot and commits them. The bits of those that committed.
    fn serve(
        &mut self,
        gathered: &Gathered,
        group: &Group,
        foreseen: Option<&Foreseen>,
        receivers: &mut [Receiver],
    ) -> Result<u64> {
        let sequences = self.given.plan.moved_sequences(gathered.sequences.as_ref(), receivers);
        if group.changes.is_empty() && sequences.is_none() {
            return Ok(0);
        }
        let Self { given, pool, from, progress } = self;
        progress.saw_changes |= !group.changes.is_empty();
        progress.phase(Phase::Apply);
        progress.total(group.changes.iter().map(|c| c.changes).sum());
        let changes = foreseen.map_or(&group.changes, |f| &f.changes);
        let way = given.way(changes, &group.served, gathered.sequences.as_ref());
        let work = way.pass.work(receivers.iter())?;
        let now = foreseen.is_none().then(|| way.read(&mut from.conn, receivers, &work)).transpose()?;
        let Some(read) = now.as_ref().or(foreseen.map(|f| &f.read)) else { return Ok(0) };
        let done = &mut |name: &str, changes| progress.relation(name, changes);
        let rest = way.apply(&mut from.conn, receivers, (&work, &read.rows), done)?;
        let mut place = read.place.clone();
        if let Some(lsn) = gathered.unflushed.as_ref().filter(|_| !read.flushed) {
            flush::wait(&mut from.conn, pool, &given.plan.sync.members[given.source].db, lsn)?;
            place = who::place(&mut from.conn)?;
        }
        // What others are about to have of it, it must be found to have lost, also if it never answers again.
        progress.seen.insert(given.source, (from.who.identity.clone(), place));
        // Who waits for a lock to write a row is applying still.
        if rest.is_empty() {
            progress.phase(Phase::Commit);
        }
        let deaf = |index| given.plan.is_deaf(index, group.changes.iter().map(|c| c.relation));
        let committed = commit(receivers, &group.changes, &rest, (deaf, way.is_early()))?;
        progress.phase(Phase::Commit);
        for receiver in receivers.iter().filter(|r| committed & r.bit() != 0) {
            sequences.iter().for_each(|state| given.plan.gave_sequences(receiver, state));
        }
        Ok(committed)
    }

    /// Notes at the source how far those were served that have committed.
    fn mark(&mut self, snapshot: &str, served: u64) -> Result<()> {
        self.progress.phase(Phase::Mark);
        fault::point("kid.before_mark")?;
        if served != 0 {
            let place = track::end(&mut self.from.conn, &self.given.asker(), snapshot, served, &self.progress.seen)?;
            self.progress.seen.insert(self.given.source, (self.from.who.identity.clone(), place));
        } else {
            self.from.conn.query("COMMIT")?;
        }
        fault::point("kid.after_mark")
    }
}

/// Commits all receivers that have not failed: sends to all, together with what is not written yet, then collects.
fn commit(
    receivers: &mut [Receiver],
    changes: &[TableChanges],
    rest: &Handfuls<'_>,
    (deaf, early): (impl Fn(usize) -> bool, bool),
) -> Result<u64> {
    fault::point("kid.before_commit")?;
    for receiver in receivers.iter_mut() {
        let oids: Vec<u32> = changes.iter().filter_map(|c| receiver.table(c.relation).ok()).map(|t| t.oid).collect();
        let (statements, is_deaf) = (rest.statements(receiver), deaf(receiver.index));
        receiver.attempt(|conn| {
            conn.pipeline_begin()?;
            rest.queue(conn, &statements?)?;
            if is_deaf {
                deaf::queue(conn)?;
            }
            replaced::queue_commit(conn, oids.iter().copied(), early)?;
            conn.pipeline_send()
        });
        fault::point("kid.between_commits")?;
    }
    let mut committed = 0;
    for receiver in receivers.iter_mut() {
        let Some(answers) = receiver.attempt(|conn| Ok(conn.pipeline_collect())) else { continue };
        let asked = usize::from(deaf(receiver.index));
        let explained = |error, at: usize| match at.checked_sub(asked) {
            Some(at) => replaced::uncommitted(error, at),
            None => deaf::explained(error),
        };
        if let Some(answers) = rest.written(receiver, answers, explained) {
            receiver.session.place = Some(replaced::place(&answers));
            committed |= receiver.bit();
        }
    }
    fault::point("kid.after_commit")?;
    Ok(committed)
}

//! One run of one sync, on one screen: gather → apply → commit → mark, for the members that the master named.
//! Receivers that were served up to the same snapshot go together; one that fails is taken again by itself, or left to
//! the master's back-off. A run must never tell a receiver's progress before that receiver has committed.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use super::apply::{self, Counts, Pass, Receiver};
use super::copy;
use super::flush;
use super::gather::{self, Asker, Change, Gathered, Group};
use super::members::{self, Pool, Session};
use super::mend;
use super::mesh;
use super::progress;
use super::renew;
use super::replaced;
use super::report::Progress;
use super::retry::{self, Care, Verdict};
use super::sequence;
use super::shape::{self, Shapes};
use crate::catalog::sync::{Role, Sync};
use crate::error::{Error, Result, SqlState};
use crate::fault;
use crate::libpq::Rows;
use crate::master::slot::Phase;
use crate::pg::{latch, shmem};

/// What a kid keeps of a sync between runs.
pub struct Plan {
    pub sync: Sync,
    pub control: String,
    /// The catalog's generation in which it was read.
    pub generation: u64,
    pub(super) shapes: HashMap<usize, Rc<Shapes>>,
    pub(super) sequence_query: Option<String>,
    /// The sequences' state that each receiver was given last.
    sequences: HashMap<usize, String>,
    /// The connection by which each member was recognised last.
    pub(super) recognised: HashMap<usize, u64>,
    /// The last run, if it was this kid's and all went well; and whether the present one follows right after it. If not, a
    /// transaction of a run that died may be open still, and have its COMMIT under way.
    pub clean_run: Option<i64>,
    pub follows: bool,
    /// Whether the present run waits for locks however long they are held, unless its kid is needed: no other member waits for it.
    pub patient: bool,
    /// How many plans the present run has given up, whether it gives up this one, and the captured tables (by their oids)
    /// that are known not to be of the sync.
    pub(super) renewals: u32,
    pub(super) outdated: bool,
    pub(super) strangers: HashSet<u32>,
}

impl Plan {
    pub fn new(sync: Sync, control: String, generation: u64) -> Self {
        let sequence_query = sequence::query(&sync);
        Self {
            sync,
            control,
            generation,
            shapes: HashMap::new(),
            sequence_query,
            sequences: HashMap::new(),
            recognised: HashMap::new(),
            clean_run: None,
            follows: false,
            patient: false,
            renewals: 0,
            outdated: false,
            strangers: HashSet::new(),
        }
    }

    /// How long the present run waits for a lock, as `lock_timeout`.
    fn patience(&self) -> &'static str {
        if self.patient { members::LONG_PATIENCE } else { members::PATIENCE }
    }

    /// Whether it goes on waiting for a lock: as long as no other sync waits for the kid.
    fn waits_on(&self, error: &Error) -> bool {
        let short = || shmem::read(|s| s.masters.iter().any(|m| m.db == shmem::my_database() && m.short));
        self.patient && error.code == SqlState::LOCK_NOT_AVAILABLE && !short()
    }

    pub(super) fn shapes(&mut self, index: usize, session: &mut Session) -> Result<Rc<Shapes>> {
        if let Some(known) = self.shapes.get(&index) {
            return Ok(known.clone());
        }
        // Sizes are asked under a lock. A session that has failed here is not kept.
        session.conn.query(&format!("SET lock_timeout = '{}'", self.patience()))?;
        let seen = Rc::new(shape::look(&mut session.conn, &self.sync)?);
        session.conn.query("SET lock_timeout = 0")?;
        self.shapes.insert(index, seen.clone());
        Ok(seen)
    }

    /// The same for a source, which must have every table, and capture it.
    pub(super) fn source_shapes(&mut self, index: usize, session: &mut Session) -> Result<Rc<Shapes>> {
        if let Some(known) = self.shapes.get(&index) {
            return Ok(known.clone());
        }
        let seen = self.shapes(index, session)?;
        let asker = Asker { control: &self.control, sync: &self.sync, source: index };
        let checked = shape::check_complete(&self.sync, &seen).and_then(|()| mend::mend(&mut session.conn, &asker, &seen));
        // What was not found whole is looked at again.
        checked.inspect_err(|_| drop(self.shapes.remove(&index)))?;
        Ok(seen)
    }
}

/// Runs the sync for the given receivers and fills in how it went.
pub fn run(plan: &mut Plan, pool: &mut Pool, members: u64, progress: &mut Progress) {
    if let Err(error) = copy::begin(plan, pool) {
        let away = plan.sync.members.iter().position(|m| m.role == Role::Source).filter(|_| retry::is_away(error.code));
        return progress.failed(away.map_or(0, |i| 1 << i), error);
    }
    if plan.sync.sources().count() > 1 {
        return mesh::run(plan, pool, members, progress);
    }
    progress.doubt_clocks(&plan.sync, "");
    let Some(source) = plan.sync.members.iter().position(|m| m.role == Role::Source) else {
        return progress.failed(0, Error::new(SqlState::WRONG_STATE, "the sync has no source"));
    };
    let receives = |i: &usize| plan.sync.members[*i].role != Role::Source && plan.sync.members[*i].db.active;
    let mut todo = (0..plan.sync.members.len()).filter(receives).map(|i| 1 << i).fold(0, |a, b| a | b) & members;
    let mut care = Care::default();
    let mut attempt = 0;
    while todo != 0 {
        progress.attempt();
        let failures = match one_attempt(plan, pool, source, todo, care, progress) {
            Ok(failures) => failures,
            Err(_) if plan.outdated => return,
            // Whole tables are copied as between several sources.
            Err((error, _)) if gather::wants_copy(&error) => return mesh::run(plan, pool, todo | (1 << source), progress),
            Err((error, fresh)) => {
                forget(plan, &error);
                if plan.waits_on(&error) {
                    continue;
                }
                match retry::judge_among(&error, attempt, care, fresh, plan.patient) {
                    Verdict::Again { care: next, wait } => again(&mut care, next, &mut attempt, wait),
                    Verdict::Down => return progress.failed(1 << source, at_member(explained(error), plan, source)),
                    Verdict::Refused => return progress.failed(0, at_member(error, plan, source)),
                }
                continue;
            }
        };
        todo = 0;
        let mut pause = Duration::ZERO;
        let mut next_care = care;
        for Failure { index, error, fresh } in failures {
            forget(plan, &error);
            if plan.waits_on(&error) {
                todo |= 1 << index;
                continue;
            }
            match retry::judge_among(&error, attempt, care, fresh, true) {
                Verdict::Again { care, wait } => {
                    todo |= 1 << index;
                    pause = pause.max(wait);
                    next_care = next_care.and(care);
                }
                verdict => progress.member_failed(1 << index, verdict == Verdict::Down, at_member(explained(error), plan, index)),
            }
        }
        again(&mut care, next_care, &mut attempt, pause);
    }
}

/// What deltas are marked with that a run writes for other syncs: through which sync they came, and from whom.
pub(super) fn origin(plan: &Plan, source: usize) -> String {
    format!("{}:{}:{}", plan.control, plan.sync.capture_name(), plan.sync.members[source].db.name)
}

/// The members that capture what they get because `makedelta` says so, as bits, by relation.
pub(super) fn noted(sync: &Sync) -> HashMap<i32, u64> {
    let wants = |r: &crate::catalog::sync::Relation| {
        let one = |(i, m): (usize, &crate::catalog::sync::Member)| u64::from(r.makedelta.unwrap_or(m.db.makedelta)) << i;
        (r.id, sync.members.iter().enumerate().map(one).fold(0, |a, b| a | b))
    };
    sync.relations.iter().filter(|r| !r.is_sequence).map(wants).filter(|(_, bits)| *bits != 0).collect()
}

/// What the transactions of a sync's runs hold on every member that receives.
pub(super) fn guard(plan: &Plan) -> String {
    format!("bucardo run {} {}", plan.control, plan.sync.capture_name())
}

/// The members that are active, as bits.
pub(super) fn active(sync: &Sync) -> u64 {
    sync.members.iter().enumerate().filter(|(_, m)| m.db.active).fold(0, |bits, (i, _)| bits | (1 << i))
}

/// The sources, as bits.
pub(super) fn sources(sync: &Sync) -> u64 {
    sync.members.iter().enumerate().filter(|(_, m)| m.role == Role::Source).fold(0, |bits, (i, _)| bits | (1 << i))
}

/// The source that receives nothing because there is no other, as a bit.
pub(super) fn only_source(sync: &Sync) -> u64 {
    let mut sources = sync.members.iter().enumerate().filter(|(_, m)| m.role == Role::Source).map(|(i, _)| 1 << i);
    match (sources.next(), sources.next()) {
        (Some(only), None) => only,
        _ => 0,
    }
}

/// Prepares the next attempt; the wait lets whoever won finish first.
pub(super) fn again(care: &mut Care, next: Care, attempt: &mut u32, wait: Duration) {
    *care = next;
    *attempt += 1;
    if !wait.is_zero() {
        latch::wait(None, Some(wait));
    }
}

/// What was seen of the tables may be the reason: look again before the next attempt.
pub(super) fn forget(plan: &mut Plan, error: &Error) {
    if !retry::is_away(error.code) && !matches!(error.code.as_str(), "40001" | "40P01") {
        plan.shapes.clear();
    }
}

/// Says what a lock time-out means.
pub(super) fn explained(error: Error) -> Error {
    match error.code {
        SqlState::LOCK_NOT_AVAILABLE => {
            error.hint("Another transaction there holds a lock on it; it is served as soon as that ends.")
        }
        _ => error,
    }
}

/// Says at which member, unless the message does.
pub(super) fn at_member(error: Error, plan: &Plan, index: usize) -> Error {
    let place = format!("db \"{}\"", plan.sync.members[index].db.name);
    if error.message.contains(&place) { error } else { error.at(place) }
}

/// A receiver's part that failed.
pub(super) struct Failure {
    pub(super) index: usize,
    pub(super) error: Error,
    pub(super) fresh: bool,
}

/// One attempt with one snapshot of the source. `Err`: the source failed, and whether its connection was new.
fn one_attempt(
    plan: &mut Plan,
    pool: &mut Pool,
    source: usize,
    todo: u64,
    care: Care,
    progress: &mut Progress,
) -> Result<Vec<Failure>, (Error, bool)> {
    progress.phase(Phase::Connect);
    progress.member(&plan.sync.members[source].db.name);
    let mut from = pool.take(&plan.sync.members[source].db).map_err(|e| (e, true))?;
    let fresh = from.fresh;
    let fail = |e: Error| (e, fresh);
    let shapes = plan.source_shapes(source, &mut from).map_err(fail)?;
    let (mut receivers, mut failures) = open_receivers(plan, pool, todo, progress);
    recognise(plan, source, &mut from, &mut receivers, &mut failures).map_err(fail)?;
    let encoding = members::common_encoding(std::iter::once(&from).chain(receivers.iter().map(|r| &r.session)));
    members::speak(&mut from.conn, encoding).map_err(fail)?;
    for receiver in &mut receivers {
        receiver.attempt(|conn| members::speak(conn, encoding));
    }
    if !plan.follows || progress.attempts > 1 {
        apply::be_alone(&mut receivers, &guard(plan));
    }
    progress.phase(Phase::Gather);
    fault::point("kid.before_gather").map_err(fail)?;
    let asker = Asker { control: &plan.control, sync: &plan.sync, source };
    let alive = receivers.iter().fold(0, |bits, r| bits | r.bit());
    let gathered = gather::gather(&mut from.conn, &asker, alive, &shapes, plan.sequence_query.as_deref()).map_err(fail)?;
    plan.check_current(&gathered.strangers).map_err(fail)?;
    fault::point("kid.after_gather").map_err(fail)?;
    let mut served = 0;
    for group in &gathered.groups {
        let (mut mine, others): (Vec<_>, Vec<_>) = receivers.into_iter().partition(|r| group.members & r.bit() != 0);
        receivers = others;
        let result = serve(plan, pool, &shapes, &gathered, group, care, &mut from, &mut mine, progress);
        let committed = result.map_err(fail)?;
        served |= committed;
        for receiver in mine {
            settle(receiver, pool, &mut failures, progress, committed);
        }
    }
    progress.phase(Phase::Mark);
    fault::point("kid.before_mark").map_err(fail)?;
    if served != 0 {
        let asker = Asker { control: &plan.control, sync: &plan.sync, source };
        let place = progress::end(&mut from.conn, &asker, &gathered.snapshot, served).map_err(fail)?;
        progress.seen.insert(source, (from.who.identity.clone(), place));
    } else {
        from.conn.query("COMMIT").map_err(fail)?;
    }
    fault::point("kid.after_mark").map_err(fail)?;
    pool.give_back(from);
    Ok(failures)
}

/// Makes sure that the members are who they were; a receiver that is not is left out.
fn recognise(
    plan: &mut Plan,
    source: usize,
    from: &mut Session,
    receivers: &mut Vec<Receiver>,
    failures: &mut Vec<Failure>,
) -> Result<()> {
    loop {
        let mut sessions = vec![(source, &mut *from)];
        sessions.extend(receivers.iter_mut().map(|r| (r.index, &mut r.session)));
        let Err((index, error)) = renew::recognise(plan, &mut sessions) else { return Ok(()) };
        let Some(at) = receivers.iter().position(|r| r.index == index) else { return Err(error) };
        let fresh = receivers.remove(at).session.fresh;
        failures.push(Failure { index, error, fresh });
    }
}

fn open_receivers(plan: &mut Plan, pool: &mut Pool, todo: u64, progress: &Progress) -> (Vec<Receiver>, Vec<Failure>) {
    let mut receivers = Vec::new();
    let mut failures = Vec::new();
    for index in (0..plan.sync.members.len()).filter(|i| todo & (1 << i) != 0) {
        progress.member(&plan.sync.members[index].db.name);
        let opened = pool.take(&plan.sync.members[index].db).map_err(|e| (e, true)).and_then(|mut session| {
            let fresh = session.fresh;
            let shapes = plan.shapes(index, &mut session).map_err(|e| (e, fresh))?;
            let patience = plan.patience();
            Ok(Receiver { index, session, shapes, failed: None, spoilt: false, counts: Counts::default(), copied: 0, patience })
        });
        match opened {
            Ok(receiver) => receivers.push(receiver),
            Err((error, fresh)) => failures.push(Failure { index, error, fresh }),
        }
    }
    (receivers, failures)
}

/// Brings one group of receivers up to the snapshot and commits them. The bits of those that committed.
#[expect(clippy::too_many_arguments, reason = "the parts of one run, each by its name")]
fn serve(
    plan: &mut Plan,
    pool: &mut Pool,
    shapes: &Shapes,
    gathered: &Gathered,
    group: &Group,
    care: Care,
    from: &mut Session,
    receivers: &mut [Receiver],
    progress: &mut Progress,
) -> Result<u64> {
    let sequences = moved_sequences(plan, gathered.sequences.as_ref(), receivers);
    if group.changes.is_empty() && sequences.is_none() {
        return Ok(0);
    }
    progress.saw_changes |= !group.changes.is_empty();
    progress.phase(Phase::Apply);
    progress.total(group.changes.iter().map(|c| c.changes).sum());
    let pass = Pass {
        sync: &plan.sync,
        changes: &group.changes,
        window: group.window(),
        care,
        source: shapes,
        source_version: from.conn.version(),
        sequences: gathered.sequences.as_ref(),
        sequence_query: plan.sequence_query.as_deref(),
        news: super::origin::news(plan),
        excluded: HashMap::new(),
        level: true,
        noted: noted(&plan.sync),
        relayed: 0,
        guard: guard(plan),
        origin: origin(plan, plan.sync.members.iter().position(|m| m.role == Role::Source).unwrap_or(0)),
        tag: String::new(),
    };
    pass.apply(&mut from.conn, receivers, &mut |name, changes| progress.relation(name, changes))?;
    progress.phase(Phase::Commit);
    if let Some(lsn) = &gathered.unflushed {
        let source = plan.sync.members.iter().find(|m| m.role == Role::Source);
        source.map_or(Ok(()), |m| flush::wait(&mut from.conn, pool, &m.db, lsn))?;
    }
    let committed = commit(receivers, &group.changes)?;
    for receiver in receivers.iter().filter(|r| committed & r.bit() != 0) {
        if let Some(state) = &sequences {
            plan.sequences.insert(receiver.index, state.clone());
        }
    }
    Ok(committed)
}

/// The sequences' state, if any of the receivers was given another one last.
fn moved_sequences(plan: &Plan, rows: Option<&Rows>, receivers: &[Receiver]) -> Option<String> {
    let state = sequence::fingerprint(rows?);
    receivers.iter().any(|r| plan.sequences.get(&r.index) != Some(&state)).then_some(state)
}

/// Commits all receivers that have not failed: sends to all, then collects.
fn commit(receivers: &mut [Receiver], changes: &[Change]) -> Result<u64> {
    fault::point("kid.before_commit")?;
    for receiver in receivers.iter_mut() {
        let oids: Vec<u32> = changes.iter().filter_map(|c| receiver.table(c.relation).ok()).map(|t| t.oid).collect();
        receiver.attempt(|conn| {
            conn.pipeline_begin()?;
            replaced::queue_commit(conn, oids.iter().copied())?;
            conn.pipeline_send()
        });
        fault::point("kid.between_commits")?;
    }
    let mut committed = 0;
    for receiver in receivers.iter_mut() {
        if let Some(place) = receiver.attempt(replaced::committed) {
            receiver.session.place = Some(place);
            committed |= receiver.bit();
        }
    }
    fault::point("kid.after_commit")?;
    Ok(committed)
}

/// Counts what a receiver has, or notes why it has nothing; takes its connection back.
pub(super) fn settle(
    mut receiver: Receiver,
    pool: &mut Pool,
    failures: &mut Vec<Failure>,
    progress: &mut Progress,
    committed: u64,
) {
    let fresh = receiver.session.fresh;
    let error = receiver.failed.take();
    if error.is_none() && committed & receiver.bit() != 0 {
        progress.counts.add(receiver.counts);
    }
    if let Some(place) = receiver.session.place.take() {
        progress.seen.insert(receiver.index, (receiver.session.who.identity.clone(), place));
    }
    if (error.is_some() || !receiver.session.conn.is_idle())
        && !receiver.session.conn.is_broken()
        && receiver.session.conn.query("ROLLBACK").is_ok()
        && error.is_some()
    {
        receiver.session.conn.forget_prepared();
    }
    if let Some(error) = error {
        failures.push(Failure { index: receiver.index, error, fresh });
    }
    pool.give_back(receiver.session);
}

//! Whether the members are what they were when the sync ran last. One that failed over and has lost what it had committed,
//! and one that was confirmed to be another database, gets whole tables; if it is the only source, all others get them from
//! it. What somebody has captured itself and not yet given away survives. It must never believe that somebody was served who
//! may have lost what it was given.

use std::collections::HashSet;

use super::apply::Receiver;
use super::failure::Failure;
use super::gather::capture_missing;
use super::heir;
use super::members::Session;
use super::onetimecopy;
use super::plan::Plan;
use super::who;
use crate::catalog::sync::Role;
use crate::error::{Error, Result, SqlState};
use crate::pg::{shmem, spi, xact};

const SEEN: &str = "SELECT identity, place FROM bucardo.seen WHERE sync = $1 AND db = $2";
/// The place of each member after a run, for `unnest`: names, identities, places. Of one that was removed meanwhile only
/// the run counts.
const NOTE: &str = "INSERT INTO bucardo.seen AS s (sync, db, identity, place, run) \
    SELECT y.id, u.name, CASE WHEN d.name IS NULL THEN '' ELSE u.identity END, CASE WHEN d.name IS NULL THEN '' ELSE u.place END, $5 \
    FROM unnest($2::text[], $3::text[], $4::text[]) u(name, identity, place) \
    LEFT JOIN bucardo.db d ON d.name = u.name JOIN bucardo.sync y ON y.id = $1 \
    ON CONFLICT (sync, db) DO UPDATE SET identity = excluded.identity, place = excluded.place, \
    run = coalesce(excluded.run, s.run)";
const SERVED: &str =
    "SELECT served FROM bucardo.capture_progress WHERE control = $1 AND sync = $2 AND source = $3 AND member = $4";
const REWIND: &str = "SELECT bucardo.capture_rewind($1, $2, $3, $4, pg_catalog.to_timestamp($5::pg_catalog.float8))";
/// The members that are to get whole tables from a source and have not got them.
const WAITING: &str =
    "SELECT member FROM bucardo.capture_track WHERE control = $1 AND sync = $2 AND source = $3 AND copy IS NOT NULL";
/// Where a source knows its receivers to have been.
const TOLD: &str = "SELECT t.member, pg_catalog.split_part(t.place, ' ', 1), pg_catalog.split_part(t.place, ' ', 2) \
    FROM bucardo.capture_track t WHERE t.control = $1 AND t.sync = $2 AND t.source = $3 AND t.place IS NOT NULL";
/// What it knows of one counts no more.
const UNKNOWN: &str = "UPDATE bucardo.capture_track SET place = NULL WHERE control = $1 AND sync = $2 AND member = $3";
/// From that timeline on a source's receivers are served up to where its own notes say: these were set back.
const LOST: &str = "UPDATE bucardo.capture_track SET identity = $4 WHERE control = $1 AND sync = $2 AND source = $3";
const LEARN: &str = "UPDATE bucardo.db SET identity = $2 WHERE name = $1 AND identity IS NULL";

/// Where a member was after it had committed.
pub struct Seen {
    pub db: String,
    pub identity: String,
    pub place: String,
}

/// Notes where members are, in the caller's transaction. `run`: if all members have committed it.
pub fn note(sync: i32, all: &[Seen], run: Option<i64>) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let column = |of: fn(&Seen) -> &String| all.iter().map(|s| of(s).clone()).collect::<Vec<_>>();
    let args = [sync.into(), column(|s| &s.db).into(), column(|s| &s.identity).into(), column(|s| &s.place).into(), run.into()];
    spi::execute_kept(NOTE, &args).map(drop)
}

/// What the member has had before counts no more: it gets whole tables.
pub fn forget(sync: i32, db: &str) -> Result<()> {
    let sql = "UPDATE bucardo.seen SET identity = '' WHERE sync = $1 AND db = $2";
    spi::execute(sql, &[sync.into(), db.into()]).map(drop)
}

/// Looks at the connections of a run that this sync has not seen yet. An error is of the member at that place of the sync.
fn recognise(plan: &mut Plan, sessions: &mut [(usize, &mut Session)]) -> Result<(), (usize, Error)> {
    for at in 0..sessions.len() {
        let (index, who) = (sessions[at].0, sessions[at].1.who.clone());
        if let Some((other, _)) =
            sessions[..at].iter().find(|(_, s)| s.who.identity == who.identity && s.who.started == who.started)
        {
            let other = &plan.sync.members[*other].db.name;
            return Err((index, Error::new(SqlState::WRONG_STATE, format!("it is the same database as db \"{other}\""))));
        }
    }
    let is_new = |at: &usize| plan.recognised.get(&sessions[*at].0) != Some(&sessions[*at].1.number);
    let new: Vec<usize> = (0..sessions.len()).filter(is_new).collect();
    let (mut lost, mut strangers) = (Vec::new(), HashSet::new());
    let told = if new.is_empty() { Vec::new() } else { told(plan, sessions)? };
    // A source that comes back may know of a loss that nobody else does.
    let is_looked_at = |at: &usize| new.contains(at) || new.iter().any(|at| is_source(plan, sessions[*at].0));
    for at in (0..sessions.len()).filter(is_looked_at).collect::<Vec<_>>() {
        let (index, session) = (sessions[at].0, &mut *sessions[at].1);
        let found = match new.contains(&at) {
            true => look(plan, index, session, &told),
            false => lost_what_is_told(plan, index, session, &told).map(|loss| loss.map_or(Look::Known, Look::Lost)),
        };
        let found = found.map_err(|e| (index, e))?;
        if matches!(&found, Look::Again | Look::Lost(Loss { other: true, .. })) {
            strangers.insert(index);
        }
        if let Look::Lost(loss) = found {
            lost.push((at, loss));
        }
    }
    if new.iter().any(|at| is_source(plan, sessions[*at].0)) || !lost.is_empty() {
        let unsound = unsound(plan, sessions, &lost)?;
        let heir = heir::find(plan, sessions, &strangers, &unsound)?;
        for (at, loss) in &lost {
            let giver = heir.or_else(|| giver(plan, sessions, &lost, &unsound));
            make_whole(plan, sessions, *at, loss, giver).map_err(|e| (sessions[*at].0, e))?;
        }
    }
    for at in new {
        plan.recognised.insert(sessions[at].0, sessions[at].1.number);
    }
    Ok(())
}

/// Makes sure that the members are who they were; a receiver that is not is left out. An error is the source's, where that is
/// none of them.
pub fn recognise_all(
    plan: &mut Plan,
    mut source: Option<(usize, &mut Session)>,
    receivers: &mut Vec<Receiver>,
    failures: &mut Vec<Failure>,
) -> Result<()> {
    loop {
        let mut sessions: Vec<_> = source.iter_mut().map(|(index, session)| (*index, &mut **session)).collect();
        sessions.extend(receivers.iter_mut().map(|r| (r.index, &mut r.session)));
        let Err((index, error)) = recognise(plan, &mut sessions) else { return Ok(()) };
        let Some(at) = receivers.iter().position(|r| r.index == index) else { return Err(error) };
        let fresh = receivers.remove(at).session.fresh;
        failures.push(Failure { index, error, fresh });
    }
}

pub(super) fn is_source(plan: &Plan, index: usize) -> bool {
    plan.sync.members[index].role == Role::Source
}

/// The members, by their places in the sync, that may lack what others have: they give whole tables to nobody.
fn unsound(
    plan: &Plan,
    sessions: &mut [(usize, &mut Session)],
    lost: &[(usize, Loss)],
) -> Result<HashSet<usize>, (usize, Error)> {
    let mut unsound: HashSet<usize> = lost.iter().map(|(at, _)| sessions[*at].0).collect();
    let sync = plan.sync.capture_name();
    for (index, session) in sessions.iter_mut().filter(|(index, _)| is_source(plan, *index)) {
        let source = plan.sync.members[*index].db.name.as_str();
        let params = [plan.control.as_str(), &sync, source].map(Some);
        let rows = session.conn.query_params(WAITING, &params).map_err(|e| (*index, capture_missing(&plan.sync, e)))?;
        for row in 0..rows.len() {
            unsound.extend(plan.sync.members.iter().position(|m| rows.get(row, 0) == Some(&m.db.name)));
        }
    }
    Ok(unsound)
}

/// Where the sources that are there know the others to have been.
fn told(plan: &Plan, sessions: &mut [(usize, &mut Session)]) -> Result<Vec<Seen>, (usize, Error)> {
    let (mut told, sync) = (Vec::new(), plan.sync.capture_name());
    for (index, session) in sessions.iter_mut().filter(|(index, _)| is_source(plan, *index)) {
        let params = [plan.control.as_str(), &sync, &plan.sync.members[*index].db.name].map(Some);
        let rows = session.conn.query_params(TOLD, &params).map_err(|e| (*index, capture_missing(&plan.sync, e)))?;
        let seen = |row| Seen { db: rows.text(row, 0), identity: rows.text(row, 1), place: rows.text(row, 2) };
        told.extend((0..rows.len()).map(seen));
    }
    Ok(told)
}

/// Who gives whole tables: the first source that has lost nothing; where all of them have, the first.
fn giver(plan: &Plan, sessions: &[(usize, &mut Session)], lost: &[(usize, Loss)], unsound: &HashSet<usize>) -> Option<usize> {
    let sources = || (0..sessions.len()).filter(|at| is_source(plan, sessions[*at].0));
    // Of all that are away, one may have what these have lost.
    let all_lost = sources().count() == plan.sync.sources().count() && sources().all(|at| lost.iter().any(|(l, _)| *l == at));
    sources().find(|at| !unsound.contains(&sessions[*at].0)).or_else(|| sources().next().filter(|_| all_lost))
}

/// What is found at the other end of a connection.
enum Look {
    /// What is known, or was never met.
    Known,
    /// It was removed, and a member of that name was added.
    Again,
    Lost(Loss),
}

/// A member that is not what it was when the sync ran last.
struct Loss {
    why: &'static str,
    /// Whether it is another database; otherwise it is the same, and has lost commits.
    other: bool,
    /// Where its log was then, and where it is now.
    place: String,
    now: String,
}

/// Compares a member with what was noted when the sync ran last, here and by the sources (`told`).
fn look(plan: &Plan, index: usize, session: &mut Session, told: &[Seen]) -> Result<Look> {
    let (name, sync) = (plan.sync.members[index].db.name.as_str(), plan.sync.id);
    let identity = session.who.identity.as_str();
    let db = &plan.sync.members[index].db;
    if db.identity.is_none() && !db.conninfo.trim().is_empty() {
        learn(name, identity)?;
    }
    let row = |r: &spi::Row<'_>| Ok((r.get::<String>(1)?, r.get::<String>(2)?));
    let seen = xact::transaction(|| Ok(spi::select(SEEN, &[sync.into(), name.into()], row)?.pop()))?;
    if seen.as_ref().is_some_and(|(_, place)| place.is_empty()) {
        return Ok(Look::Again);
    }
    // Asked after what was seen, so that it cannot lie before it while the same server goes on.
    let now = who::place(&mut session.conn)?;
    if let Some((_, place)) = seen.as_ref().filter(|(was, _)| was != identity) {
        return Ok(Look::Lost(Loss { why: "is another database than before", other: true, place: place.clone(), now }));
    }
    match seen.map(|(_, place)| place).filter(|place| who::has_lost(&mut session.conn, place, &now)) {
        Some(place) => Ok(Look::Lost(Loss { why: LOST_COMMITS, other: false, place, now })),
        None => Ok(lost_what_is_told(plan, index, session, told)?.map_or(Look::Known, Look::Lost)),
    }
}

const LOST_COMMITS: &str = "has lost what it had committed";

/// Compares a member with what the sources know of it.
fn lost_what_is_told(plan: &Plan, index: usize, session: &mut Session, told: &[Seen]) -> Result<Option<Loss>> {
    let name = &plan.sync.members[index].db.name;
    let now = who::place(&mut session.conn)?;
    // A source that knows another database under the name has not yet served this one.
    let told = told.iter().filter(|s| s.db == *name && s.identity == session.who.identity);
    let lost = told.map(|s| s.place.clone()).find(|place| who::has_lost(&mut session.conn, place, &now));
    Ok(lost.map(|place| Loss { why: LOST_COMMITS, other: false, place, now }))
}

/// Whole tables go to a member that is not what it was, and perhaps to others.
fn make_whole(plan: &Plan, sessions: &mut [(usize, &mut Session)], at: usize, loss: &Loss, giver: Option<usize>) -> Result<()> {
    let Loss { why, other, place, now } = loss;
    let (index, sync) = (sessions[at].0, plan.sync.id);
    let (name, identity) = (plan.sync.members[index].db.name.clone(), sessions[at].1.who.identity.clone());
    let Some(giver) = giver else {
        return Err(Error::new(
            SqlState::WRONG_STATE,
            format!("it {why}, and no other source is there from which it could get it"),
        ));
    };
    let (from, alone) = (sessions[giver].0, giver == at);
    // What a source has lost has perhaps reached only some of the others.
    let all = is_source(plan, index) && !other;
    let takes = |i: &usize| if all || alone { *i != from } else { *i == index };
    let takers: Vec<String> = (0..plan.sync.members.len()).filter(takes).map(|i| plan.sync.members[i].db.name.clone()).collect();
    onetimecopy::note(&mut sessions[giver].1.conn, plan, from, "all", &takers)?;
    if all {
        let (timeline, sync) = (now.split(':').next().unwrap_or(""), plan.sync.capture_name());
        let params = [plan.control.as_str(), &sync, &name, timeline].map(Some);
        sessions[at].1.conn.query_params(LOST, &params)?;
    }
    if all && !alone {
        rewind(plan, sessions, (at, giver), place)?;
    }
    let sync_name = plan.sync.capture_name();
    for (_, session) in sessions.iter_mut().filter(|(index, _)| is_source(plan, *index)) {
        session.conn.query_params(UNKNOWN, &[plan.control.as_str(), &sync_name, &name].map(Some))?;
    }
    pgrx::warning!("bucardo: sync \"{}\": db \"{name}\" {why}: whole tables go to {}", plan.sync.name, takers.join(", "));
    xact::transaction(|| note(sync, &[Seen { db: name, identity, place: now.clone() }], None))
}

/// A source that has lost commits has also lost how far the others were served, but the giver knows up to where it was,
/// and from it the others get everything. Without this they would get old rows once more, and over newer ones. What was
/// written since `place` counts as not served, because its transactions may have the numbers of lost ones.
fn rewind(plan: &Plan, sessions: &mut [(usize, &mut Session)], (at, giver): (usize, usize), place: &str) -> Result<()> {
    let name = |at: usize| plan.sync.members[sessions[at].0].db.name.clone();
    let (source, member, sync) = (name(at), name(giver), plan.sync.capture_name());
    let rows = sessions[giver].1.conn.query_params(SERVED, &[plan.control.as_str(), &sync, &source, &member].map(Some))?;
    let (Some(served), Some(since)) = (rows.get(0, 0), who::time_of(place)) else { return Ok(()) };
    let params = [plan.control.as_str(), &sync, &source, served, since].map(Some);
    sessions[at].1.conn.query_params(REWIND, &params).map(drop)
}

/// The first time that a member is met, it is known by what is found.
fn learn(name: &str, identity: &str) -> Result<()> {
    xact::transaction(|| spi::execute(LEARN, &[name.into(), identity.into()]).map(drop))?;
    // The other kids must know it too.
    shmem::bump_generation(shmem::my_database());
    Ok(())
}

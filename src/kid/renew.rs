//! Whether the members are what they were when the sync ran last. One that failed over and has lost what it had
//! committed, and one that was confirmed to be another database, gets whole tables; if it is the only source, all others
//! get them from it. What somebody has captured itself and not yet given away survives. It must never believe that somebody was served who may have
//! lost what it was given.

use std::collections::HashMap;

use super::copy;
use super::gather::{capture_missing, text_array};
use super::members::Session;
use super::run::Plan;
use super::who;
use crate::catalog::sync::Role;
use crate::error::{Error, Result, SqlState};
use crate::pg::{shmem, spi, xact};

const SEEN: &str = "SELECT identity, place FROM bucardo.seen WHERE sync = $1 AND db = $2 AND place <> ''";
/// The place of each member after a run, for `unnest`: names, identities, places.
const NOTE: &str = "INSERT INTO bucardo.seen AS s (sync, db, identity, place, run) \
    SELECT y.id, d.name, u.identity, u.place, $5 FROM unnest($2::text[], $3::text[], $4::text[]) u(name, identity, place) \
    JOIN bucardo.db d ON d.name = u.name JOIN bucardo.sync y ON y.id = $1 \
    ON CONFLICT (sync, db) DO UPDATE SET identity = excluded.identity, place = excluded.place, \
    run = coalesce(excluded.run, s.run)";
const SERVED: &str =
    "SELECT served FROM bucardo.capture_progress WHERE control = $1 AND sync = $2 AND source = $3 AND member = $4";
const REWIND: &str = "SELECT bucardo.capture_rewind($1, $2, $3, $4, pg_catalog.to_timestamp($5::pg_catalog.float8))";
/// The sources that are none of the sync any more but have given something to a member, and in which run they did last.
const LEFT: &str = "SELECT source, run FROM bucardo.capture_progress WHERE control = $1 AND sync = $2 AND member = $3 \
    AND source <> ALL ($4::pg_catalog.text[])";
/// Whether all who took part in a run of the sync have got from the source what it had.
const GOT_ALL: &str = "SELECT EXISTS (SELECT FROM bucardo.seen WHERE sync = $1 AND db = $2 AND run >= $3)";
const FORGET: &str = "DELETE FROM bucardo.capture_progress WHERE control = $1 AND sync = $2 AND member = $3 \
    AND source <> ALL ($4::pg_catalog.text[])";
const LEARN: &str = "UPDATE bucardo.db SET identity = $2 WHERE name = $1 AND identity IS NULL";

/// Where a member was after it had committed.
pub struct Seen {
    pub db: String,
    pub identity: String,
    pub place: String,
}

/// Notes where members are, in the caller's transaction. `run`: if all who took part in it have committed.
pub fn note(sync: i32, all: &[Seen], run: Option<i64>) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let column = |of: fn(&Seen) -> &String| all.iter().map(|s| of(s).clone()).collect::<Vec<_>>();
    let args = [sync.into(), column(|s| &s.db).into(), column(|s| &s.identity).into(), column(|s| &s.place).into(), run.into()];
    spi::execute(NOTE, &args).map(drop)
}

/// What the member has had before counts no more: it gets whole tables.
pub fn forget(sync: i32, db: &str) -> Result<()> {
    let sql = "UPDATE bucardo.seen SET identity = '' WHERE sync = $1 AND db = $2";
    spi::execute(sql, &[sync.into(), db.into()]).map(drop)
}

/// Looks at the connections of a run that this sync has not seen yet. An error is of the member at that place of the sync.
pub fn recognise(plan: &mut Plan, sessions: &mut [(usize, &mut Session)]) -> Result<(), (usize, Error)> {
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
    let mut lost = Vec::new();
    for at in &new {
        let index = sessions[*at].0;
        lost.extend(look(plan, index, sessions[*at].1).map_err(|e| (index, e))?.map(|loss| (*at, loss)));
    }
    for (at, loss) in &lost {
        make_whole(plan, sessions, *at, loss, &lost).map_err(|e| (sessions[*at].0, e))?;
    }
    if new.iter().any(|at| plan.sync.members[sessions[*at].0].role == Role::Source) {
        hand_on(plan, sessions)?;
    }
    for at in new {
        plan.recognised.insert(sessions[at].0, sessions[at].1.number);
    }
    Ok(())
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

/// Compares a member with what was noted when the sync ran last.
fn look(plan: &Plan, index: usize, session: &mut Session) -> Result<Option<Loss>> {
    let (name, sync) = (plan.sync.members[index].db.name.as_str(), plan.sync.id);
    let identity = session.who.identity.as_str();
    let db = &plan.sync.members[index].db;
    if db.identity.is_none() && !db.conninfo.trim().is_empty() {
        learn(name, identity)?;
    }
    let row = |r: &spi::Row<'_>| Ok((r.get::<String>(1)?, r.get::<String>(2)?));
    let seen = xact::transaction(|| Ok(spi::select(SEEN, &[sync.into(), name.into()], row)?.pop()))?;
    let Some((was, place)) = seen else { return Ok(None) };
    let other = was != identity;
    // Asked after what was seen, so that it cannot lie before it while the same server goes on.
    let now = who::place(&mut session.conn)?;
    let why = if other {
        "is another database than before"
    } else if who::has_lost(&mut session.conn, &place, &now) {
        "has lost what it had committed"
    } else {
        return Ok(None);
    };
    Ok(Some(Loss { why, other, place, now }))
}

/// Whole tables go to a member that is not what it was, and perhaps to others, from a source that is; where none is, from
/// the first.
fn make_whole(plan: &Plan, sessions: &mut [(usize, &mut Session)], at: usize, loss: &Loss, lost: &[(usize, Loss)]) -> Result<()> {
    let Loss { why, other, place, now } = loss;
    let (index, sync) = (sessions[at].0, plan.sync.id);
    let (name, identity) = (plan.sync.members[index].db.name.clone(), sessions[at].1.who.identity.clone());
    let is_source = |i: usize| plan.sync.members[i].role == Role::Source;
    let sources: Vec<usize> = (0..sessions.len()).filter(|at| is_source(sessions[*at].0)).collect();
    let sound = |at: &&usize| !lost.iter().any(|(lost, _)| lost == *at);
    // Of all that are away, one may have what these have lost.
    let all_here = sources.len() == plan.sync.sources().count();
    let giver = sources.iter().find(sound).or(sources.first().filter(|_| all_here));
    let Some(giver) = giver.copied() else {
        return Err(Error::new(
            SqlState::WRONG_STATE,
            format!("it {why}, and no other source is there from which it could get it"),
        ));
    };
    let (from, alone) = (sessions[giver].0, giver == at);
    // What a source has lost has perhaps reached only some of the others.
    let all = is_source(index) && !other;
    let takes = |i: &usize| if all || alone { *i != from } else { *i == index };
    let takers: Vec<String> = (0..plan.sync.members.len()).filter(takes).map(|i| plan.sync.members[i].db.name.clone()).collect();
    copy::note(&mut sessions[giver].1.conn, plan, from, "all", &takers)?;
    if all && !alone {
        rewind(plan, sessions, (at, giver), place)?;
    }
    pgrx::warning!("bucardo: sync \"{}\": db \"{name}\" {why}: whole tables go to {}", plan.sync.name, takers.join(", "));
    xact::transaction(|| note(sync, &[Seen { db: name, identity, place: now.clone() }], None))
}

/// What a source that has been taken out of the sync had given in its last run may have reached only some of the others:
/// if it is not known that all have got it, they get whole tables from the one that was served last.
fn hand_on(plan: &Plan, sessions: &mut [(usize, &mut Session)]) -> Result<(), (usize, Error)> {
    let is_source = |i: usize| plan.sync.members[i].role == Role::Source;
    let (sync, sources) = (plan.sync.capture_name(), plan.sync.sources().map(|m| m.db.name.as_str()).collect::<Vec<_>>());
    let sources = text_array(&sources);
    // By the source that is gone: its last run, and who was served in it.
    let mut last: HashMap<String, (i64, usize)> = HashMap::new();
    let mut holders = Vec::new();
    for (at, (index, session)) in sessions.iter_mut().enumerate().filter(|(_, (index, _))| is_source(*index)) {
        let member = plan.sync.members[*index].db.name.as_str();
        let params = [plan.control.as_str(), &sync, member, &sources].map(Some);
        let rows = session.conn.query_params(LEFT, &params).map_err(|e| (*index, capture_missing(e)))?;
        for row in 0..rows.len() {
            let found = (rows.number(row, 1).unwrap_or(0), at);
            let best = last.entry(rows.text(row, 0)).or_insert(found);
            *best = found.max(*best);
        }
        holders.extend((rows.len() > 0).then_some(at));
    }
    for (gone, (run, giver)) in last {
        let from = sessions[giver].0;
        let args = [plan.sync.id.into(), gone.as_str().into(), run.into()];
        if xact::transaction(|| spi::value::<bool>(GOT_ALL, &args)).map_err(|e| (from, e))? == Some(true) {
            continue;
        }
        let others = (0..plan.sync.members.len()).filter(|i| *i != from);
        let takers: Vec<String> = others.map(|i| plan.sync.members[i].db.name.clone()).collect();
        copy::note(&mut sessions[giver].1.conn, plan, from, "all", &takers).map_err(|e| (from, e))?;
        let (sync, giver) = (&plan.sync.name, &plan.sync.members[from].db.name);
        pgrx::warning!(
            "bucardo: sync \"{sync}\": what db \"{gone}\" gave last, before it was taken out, may have reached db \"{giver}\" only: \
             whole tables go to {}",
            takers.join(", ")
        );
    }
    for at in holders {
        let (index, session) = &mut sessions[at];
        let member = plan.sync.members[*index].db.name.as_str();
        let params = [plan.control.as_str(), &sync, member, &sources].map(Some);
        session.conn.query_params(FORGET, &params).map_err(|e| (*index, e))?;
    }
    Ok(())
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
    let db = shmem::my_database();
    shmem::with(|s| s.master(db).map(|m| m.generation += 1));
    Ok(())
}

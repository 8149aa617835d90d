//! Whether the members are what they were when the sync ran last. One that failed over and has lost what it had
//! committed, and one that was confirmed to be another database, gets whole tables; if it is the only source, all others
//! get them from it. What somebody has captured itself and not yet given away survives. It must never believe that somebody was served who may have
//! lost what it was given.

use super::copy;
use super::members::Session;
use super::run::Plan;
use super::who;
use crate::catalog::sync::Role;
use crate::error::{Error, Result, SqlState};
use crate::pg::{shmem, spi, xact};

const SEEN: &str = "SELECT identity, place FROM bucardo.seen WHERE sync = $1 AND db = $2";
/// The place of each member after a run, for `unnest`: names, identities, places.
const NOTE: &str = "INSERT INTO bucardo.seen AS s (sync, db, identity, place) \
    SELECT y.id, d.name, u.identity, u.place FROM unnest($2::text[], $3::text[], $4::text[]) u(name, identity, place) \
    JOIN bucardo.db d ON d.name = u.name JOIN bucardo.sync y ON y.id = $1 \
    ON CONFLICT (sync, db) DO UPDATE SET identity = excluded.identity, place = excluded.place";
const SERVED: &str =
    "SELECT served FROM bucardo.capture_progress WHERE control = $1 AND sync = $2 AND source = $3 AND member = $4";
const REWIND: &str = "SELECT bucardo.capture_rewind($1, $2, $3, $4, pg_catalog.to_timestamp($5::pg_catalog.float8))";
const LEARN: &str = "UPDATE bucardo.db SET identity = $2 WHERE name = $1 AND identity IS NULL";

/// Where a member was after it had committed.
pub struct Seen {
    pub db: String,
    pub identity: String,
    pub place: String,
}

/// Notes where members are, in the caller's transaction.
pub fn note(sync: i32, all: &[Seen]) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let column = |of: fn(&Seen) -> &String| all.iter().map(|s| of(s).clone()).collect::<Vec<_>>();
    let args = [sync.into(), column(|s| &s.db).into(), column(|s| &s.identity).into(), column(|s| &s.place).into()];
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
    for at in 0..sessions.len() {
        let (index, number) = (sessions[at].0, sessions[at].1.number);
        if plan.recognised.get(&index) != Some(&number) {
            recognise_one(plan, sessions, at).map_err(|e| (index, e))?;
            plan.recognised.insert(index, number);
        }
    }
    Ok(())
}

fn recognise_one(plan: &mut Plan, sessions: &mut [(usize, &mut Session)], at: usize) -> Result<()> {
    let index = sessions[at].0;
    let (name, sync) = (plan.sync.members[index].db.name.clone(), plan.sync.id);
    let identity = sessions[at].1.who.identity.clone();
    let db = &plan.sync.members[index].db;
    if db.identity.is_none() && !db.conninfo.trim().is_empty() {
        learn(&name, &identity)?;
    }
    let row = |r: &spi::Row<'_>| Ok((r.get::<String>(1)?, r.get::<String>(2)?));
    let seen = xact::transaction(|| Ok(spi::select(SEEN, &[sync.into(), name.as_str().into()], row)?.pop()))?;
    let Some((was, place)) = seen else { return Ok(()) };
    // Asked after what was seen, so that it cannot lie before it while the same server goes on.
    let conn = &mut sessions[at].1.conn;
    let now = who::place(conn)?;
    let why = if was != identity {
        "is another database than before"
    } else if who::has_lost(conn, &place, &now) {
        "has lost what it had committed"
    } else {
        return Ok(());
    };
    let is_source = |i: usize| plan.sync.members[i].role == Role::Source;
    let alone = is_source(index) && plan.sync.sources().count() == 1;
    let giver = if alone { Some(at) } else { sessions.iter().position(|(i, _)| *i != index && is_source(*i)) };
    let Some(giver) = giver else {
        return Err(Error::new(
            SqlState::WRONG_STATE,
            format!("it {why}, and no other source is there from which it could get it"),
        ));
    };
    let from = sessions[giver].0;
    // What a source has lost has perhaps reached only some of the others.
    let all = is_source(index) && was == identity;
    let takes = |i: &usize| if all || alone { *i != from } else { *i == index };
    let takers: Vec<String> = (0..plan.sync.members.len()).filter(takes).map(|i| plan.sync.members[i].db.name.clone()).collect();
    copy::note(&mut sessions[giver].1.conn, plan, from, "all", &takers)?;
    if all && !alone {
        rewind(plan, sessions, (at, giver), &place)?;
    }
    pgrx::warning!("bucardo: sync \"{}\": db \"{name}\" {why}: whole tables go to {}", plan.sync.name, takers.join(", "));
    xact::transaction(|| note(sync, &[Seen { db: name, identity, place: now }]))
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

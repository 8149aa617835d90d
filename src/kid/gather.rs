//! The first step of a run: what is pending on the source, for whom, in which window. Opens the source's transaction
//! and takes its snapshot, which is also the place up to which the receivers will have been served.

use super::flush;
use super::members::Session;
use super::shape::{self, Shapes};
use super::statements::Window;
use crate::capture::install;
use crate::catalog::sync::Sync;
use crate::error::{Error, Result, SqlState};
use crate::ident::{quote_literal, text_array};
use crate::libpq::Rows;

/// The changes of one relation that some receivers need.
#[derive(Clone, Debug)]
pub struct TableChanges {
    /// The relation's number in the catalog.
    pub relation: i32,
    /// The place of the relation in the sync.
    pub order: usize,
    pub key: Vec<String>,
    /// Where the segments have each column of the key, from 1; empty: in the same order.
    pub slots: Vec<usize>,
    pub segments: Vec<String>,
    /// Whether the segments hold arrays of keys too.
    pub batched: bool,
    pub changes: u64,
    /// How many of the deltas are of rows that were there before.
    pub existed: u64,
    pub truncated: bool,
    pub whole: bool,
}

/// Receivers that were served up to the same snapshot, and what they need.
#[derive(Debug)]
pub struct Group {
    pub served: String,
    pub members: u64,
    pub changes: Vec<TableChanges>,
}

/// What came of asking the source.
pub enum Gather {
    Pending(Gathered),
    /// Some receiver is to get whole tables.
    WholeTables,
}

/// What the source has.
pub struct Gathered {
    pub snapshot: String,
    /// See [`flush::wait`].
    pub unflushed: Option<String>,
    pub groups: Vec<Group>,
    pub sequences: Option<Rows>,
    /// See [`strangers`].
    pub strangers: Vec<u32>,
}

/// A snapshot `xmin:xmax:xip,…` as the two values that a window compares with.
pub fn window(served: &str) -> Window {
    let mut parts = served.splitn(3, ':').skip(1);
    let xmax = parts.next().filter(|x| !x.is_empty() && x.bytes().all(|b| b.is_ascii_digit())).unwrap_or("0");
    let xip = parts.next().unwrap_or("");
    Window { xmax: xmax.to_string(), xip: format!("{{{xip}}}") }
}

/// Which control database and source ask.
pub struct Asker<'a> {
    pub control: &'a str,
    pub sync: &'a Sync,
    pub source: usize,
}

const TRACK: &str = "SELECT member, served, copy FROM bucardo.capture_track WHERE control = $1 AND sync = $2 AND source = $3";
const CHANGES: &str = "SELECT c.served, c.relid, c.keys, c.segments, c.batched, c.changes, c.existed, c.truncated, c.whole \
    FROM bucardo.capture_changes($1, $2, $3, $4::pg_catalog.text[]) c";
/// The same for a run that reads some tables ($6) anyway, of receivers that are served up to a place ($3, the window $4 and $5): those
/// that may have anything, if they are read, and of others those that have. A mark of any kind counts as a TRUNCATE. The planner
/// does not see the values, and so keeps its plan.
const LIKELY: &str = "SELECT $3::pg_catalog.text, k.relid, pg_catalog.to_json(k.keys), \
    pg_catalog.to_json(k.segments::pg_catalog.regclass[]::pg_catalog.text[]), k.batched, 0, 0, k.marked, k.renewed \
    FROM (SELECT k.*, k.by_row AND bucardo.capture_renewed(k.id, k.relid) AS renewed, k.relid IN (SELECT m.relid FROM bucardo.capture_mark m \
            WHERE m.xid >= (SELECT $4::pg_catalog.int8) OR m.xid = ANY ((SELECT $5::pg_catalog.int8[])::pg_catalog.int8[])) AS marked, \
        CASE WHEN k.native THEN k.id IN (SELECT t.capture FROM bucardo.capture_touched t) ELSE bucardo.capture_filled(k.segments) END AS filled \
        FROM bucardo.capture_sync s JOIN bucardo.capture k ON k.id = s.capture \
        WHERE s.control = (SELECT $1::pg_catalog.text) AND s.sync = (SELECT $2::pg_catalog.text) OFFSET 0) k \
    WHERE k.marked OR k.renewed OR k.filled AND (k.relid = ANY ((SELECT $6::pg_catalog.oid[])::pg_catalog.oid[]) \
        OR bucardo.capture_stirred(k.segments, $4, $5))";

/// Opens the transaction on the source and reads what the receivers in `members` need.
pub fn gather(from: &mut Session, asker: &Asker<'_>, members: u64, shapes: &Shapes, sequences: Option<&str>) -> Result<Gather> {
    from.conn.pipeline_begin()?;
    queue(from, asker, members, sequences, None)?;
    let conn = &mut from.conn;
    conn.pipeline_send()?;
    let answers = conn.pipeline_collect().map_err(|e| capture_missing(asker.sync, e))?;
    understand(asker, members, shapes, sequences.is_some(), &mut answers.into_iter())
}

/// The members' names among those of the sync.
fn names(sync: &Sync, members: u64) -> Vec<&str> {
    let wanted = sync.members.iter().enumerate().filter(|(i, _)| members & (1 << i) != 0);
    wanted.map(|(_, m)| m.db.name.as_str()).collect()
}

/// Puts the question into a pipeline. `likely`: the place up to which all of them were served last, and the tables, by their oids,
/// whose deltas are read in the same transaction without waiting for the answer.
pub fn queue(
    from: &mut Session,
    asker: &Asker<'_>,
    members: u64,
    sequences: Option<&str>,
    likely: Option<(&str, &[u32])>,
) -> Result<()> {
    let (conn, sync) = (&mut from.conn, asker.sync);
    let (captured, source) = (sync.capture_name(), sync.members[asker.source].db.name.as_str());
    let who = [asker.control, &captured, source].map(|p| Some(p.as_bytes()));
    conn.pipeline_add(begin(sync), &[], &[])?;
    conn.pipeline_add(&flush::snapshot(&from.who), &[], &[])?;
    conn.pipeline_add(TRACK, &[], &who)?;
    match likely {
        Some((served, read)) => {
            let (window, read) = (window(served), shape::oid_array(read.iter().copied()));
            let more = [served, &window.xmax, &window.xip, &read].map(|p| Some(p.as_bytes()));
            conn.pipeline_add(LIKELY, &[], &[&who[..2], &more].concat())?;
        }
        None => {
            let members = text_array(names(sync, members));
            conn.pipeline_add(CHANGES, &[], &[&who[..], &[Some(members.as_bytes())]].concat())?;
        }
    }
    if let Some(sql) = sequences {
        conn.pipeline_add(sql, &[], &[])?;
    }
    Ok(())
}

/// Takes the answers to [`queue`].
pub fn understand(
    asker: &Asker<'_>,
    members: u64,
    shapes: &Shapes,
    sequences: bool,
    answers: &mut impl Iterator<Item = Rows>,
) -> Result<Gather> {
    let (sync, wanted) = (asker.sync, names(asker.sync, members));
    let mut answers = answers.skip(1);
    let (Some(snapshot), Some(track), Some(changes)) = (answers.next(), answers.next(), answers.next()) else {
        return Err(Error::internal("the source's answer was not complete"));
    };
    let sequences = if sequences { answers.next() } else { None };
    let copied = |row: usize| track.get(row, 2).is_some() && track.get(row, 0).is_some_and(|m| wanted.contains(&m));
    if (0..track.len()).any(copied) {
        return Ok(Gather::WholeTables);
    }
    let groups = groups(sync, members, &track, &changes, shapes)?;
    let (unflushed, strangers) = (flush::unflushed(&snapshot, 1), strangers(&changes, 1, shapes));
    Ok(Gather::Pending(Gathered { snapshot: snapshot.text(0, 0), unflushed, groups, sequences, strangers }))
}

/// How the transactions of a run begin.
pub fn begin(sync: &Sync) -> &'static str {
    if sync.serializable { "BEGIN ISOLATION LEVEL SERIALIZABLE" } else { "BEGIN ISOLATION LEVEL REPEATABLE READ" }
}

/// How a user has what is missing at a source installed again.
pub fn install_again(sync: &Sync) -> String {
    format!("SELECT bucardo.update_sync({}, status => 'active');", quote_literal(&sync.name))
}

pub fn capture_missing(sync: &Sync, error: Error) -> Error {
    if install::is_missing(&error) && error.message.contains("bucardo.") {
        return Error::new(SqlState::WRONG_STATE, format!("the capture objects are missing on the source: {}", error.message))
            .hint(format!("Install them again: {}", install_again(sync)));
    }
    error
}

fn groups(sync: &Sync, members: u64, track: &Rows, changes: &Rows, shapes: &Shapes) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for (i, member) in sync.members.iter().enumerate().filter(|(i, _)| members & (1 << i) != 0) {
        let row = (0..track.len()).find(|row| track.get(*row, 0) == Some(&member.db.name));
        let served = row.map(|row| track.text(row, 1)).ok_or_else(|| {
            Error::new(SqlState::WRONG_STATE, format!("the source does not know how far db \"{}\" was served", member.db.name))
                .hint(format!("Run {}", install_again(sync)))
        })?;
        match groups.iter_mut().find(|g| g.served == served) {
            Some(group) => group.members |= 1 << i,
            None => groups.push(Group { served, members: 1 << i, changes: Vec::new() }),
        }
    }
    for row in 0..changes.len() {
        let oid: u32 = changes.number(row, 1).unwrap_or_default();
        let found = sync.relations.iter().enumerate().find(|(_, r)| shapes.get(&r.id).is_some_and(|t| t.oid == oid));
        // Captured but no longer in the sync: the master takes the capture off.
        let Some((order, relation)) = found else { continue };
        let change = TableChanges {
            relation: relation.id,
            order,
            key: strings(changes.get(row, 2))?,
            slots: Vec::new(),
            segments: strings(changes.get(row, 3))?,
            batched: changes.bool(row, 4),
            changes: changes.number(row, 5).unwrap_or_default(),
            existed: changes.number(row, 6).unwrap_or_default(),
            truncated: changes.bool(row, 7),
            whole: changes.bool(row, 8),
        };
        if let Some(group) = groups.iter_mut().find(|g| changes.get(row, 0) == Some(&g.served)) {
            group.changes.push(change);
        }
    }
    for group in &mut groups {
        group.changes.sort_by_key(|c| c.order);
    }
    Ok(groups)
}

/// The captured tables with changes that the sync, as far as it is known, does not have; by the oids in that column.
pub fn strangers(changes: &Rows, column: usize, shapes: &Shapes) -> Vec<u32> {
    let oids = (0..changes.len()).filter_map(|row| changes.number::<u32>(row, column));
    oids.filter(|oid| shapes.values().all(|t| t.oid != *oid)).collect()
}

/// Names out of a JSON array.
pub fn strings(json: Option<&str>) -> Result<Vec<String>> {
    serde_json::from_str(json.unwrap_or("[]")).map_err(|e| Error::internal(format!("the source's answer is not an array: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_becomes_a_window() {
        let w = window("100:120:100,110");
        assert_eq!((w.xmax.as_str(), w.xip.as_str()), ("120", "{100,110}"));
        let w = window("100:100:");
        assert_eq!((w.xmax.as_str(), w.xip.as_str()), ("100", "{}"));
    }

    #[test]
    fn what_is_no_snapshot_serves_everything_again() {
        assert_eq!(window("").xmax, "0");
        assert_eq!(window("a:b:c").xmax, "0");
    }
}

//! Where captured changes come from, as it stands beside them. The *origin* of what a run writes: through which sync, from
//! whom; it tells a sync's runs what is no news for them. And the *root* of a TRUNCATE: the database in which it began, with
//! the number of its mark there; it goes with the TRUNCATE through all syncs, so that none of them brings it to a member
//! twice. It must never change on the way.

use super::apply::Receiver;
use super::plan::Plan;
use super::statements::Window;
use crate::error::Result;
use crate::ident::{quote_literal, text_array};
use crate::libpq::{Conn, Rows};

/// The marks of tables, for [`Root::of`]. Parameters: the tables' oids, and the database's [`name`]. A condition may follow.
pub const MARKS: &str =
    "SELECT relid, kind, xid, root, serial, at FROM bucardo.capture_marks($1::pg_catalog.oid[], $2) WHERE true";
/// With the same parameters: relation, root and number of what is known there; one row without a relation says what begins
/// the roots of its own.
pub const KNOWN: &str = "SELECT relid, root, serial FROM bucardo.capture_known($1::pg_catalog.oid[], $2)";

/// What is written with this origin is kept for members that do not take part: other syncs have nothing to do with it.
pub fn kept(origin: &str) -> String {
    format!("kept:{origin}")
}

/// What the origins begin with that runs of a sync write.
fn of_sync(plan: &Plan) -> String {
    format!("{}:{}:", plan.control, plan.sync.capture_name())
}

/// The origin of what a source captures once more, for members of the sync that may have missed it. It names no member, so
/// that it is news for all of these.
pub fn again(plan: &Plan) -> String {
    kept(&format!("{}:again", of_sync(plan)))
}

/// The name by which the sync's control database knows a member, and no other control database does. `origin`: of what its
/// runs write.
pub fn name(origin: &str, member: &str) -> String {
    // Behind it come the sync's number, its name, and a member's, in which there are no colons.
    format!("{}:{member}", origin.rsplitn(4, ':').last().unwrap_or_default())
}

/// A further condition on deltas and marks, beginning with AND: it leaves out what living sources of this sync wrote through
/// it, and what other syncs keep.
pub fn news(plan: &Plan) -> String {
    let own = of_sync(plan);
    let origin = |m: &crate::catalog::sync::Member| format!("{own}{}", m.db.name);
    let echoes: Vec<String> = plan.sync.members.iter().map(origin).flat_map(|o| [kept(&o), o]).collect();
    format!(
        " AND (origin IS NULL OR (origin <> ALL ({}::pg_catalog.text[]) AND (NOT pg_catalog.starts_with(origin, {}) \
         OR pg_catalog.starts_with(origin, {}))))",
        quote_literal(&text_array(&echoes)),
        quote_literal(&kept("")),
        quote_literal(&kept(&own)),
    )
}

/// One TRUNCATE, wherever it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub name: String,
    pub serial: i64,
    /// When it was done there, as changes are timed.
    pub at: i64,
}

impl Root {
    /// Out of a row of [`MARKS`].
    pub fn of(rows: &Rows, row: usize) -> Self {
        let number = |column| rows.number(row, column).unwrap_or_default();
        Self { name: rows.text(row, 3), serial: number(4), at: number(5) }
    }

    /// Has a member know the TRUNCATE, and capture it with these origins. Whether it is news there. `here`: its [`name`].
    pub fn note(&self, conn: &mut Conn, oid: u32, origins: &[String], here: &str) -> Result<bool> {
        let sql = "SELECT bucardo.capture_note_truncate($1::pg_catalog.oid, $2, $3::pg_catalog.int8, $4::pg_catalog.int8, \
            $5::pg_catalog.text[], $6)";
        let (oid, serial, at, origins) = (oid.to_string(), self.serial.to_string(), self.at.to_string(), text_array(origins));
        let params = [oid.as_str(), &self.name, &serial, &at, &origins, here].map(Some);
        Ok(conn.query_params(sql, &params)?.bool(0, 0))
    }
}

/// The TRUNCATEs of a table in a source's window; the source by its name.
pub fn truncates(conn: &mut Conn, oid: u32, window: &Window, name: &str) -> Result<Vec<Root>> {
    let sql = format!("{MARKS} AND kind = 'truncate' AND {}", window.condition());
    let rows = conn.query_params(&sql, &[Some(&format!("{{{oid}}}")), Some(name)])?;
    Ok((0..rows.len()).map(|row| Root::of(&rows, row)).collect())
}

/// Whether a receiver that captures a table shall be emptied by any of these TRUNCATEs; it captures and knows them then.
pub fn note_truncates(receiver: &mut Receiver, relation: (&str, u32), roots: &[Root], origins: &[String], here: &str) -> bool {
    let (table, oid) = relation;
    let noted = |root: &Root| receiver.attempt_on(table, |conn| root.note(conn, oid, origins, here));
    roots.iter().filter_map(noted).fold(false, |any, news| any | news)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_its_name_from_the_control_database() {
        assert_eq!(name("7362:16384:12:my sync:A", "B"), "7362:16384:B");
        assert_eq!(name("control:12:s:A", "A"), "control:A");
    }
}

//! Whether two sources hand out the same numbers: the sequences behind the columns of a sync's tables, and those in the
//! sync itself, as they are on each source. For add_sync and validate_sync; it changes nothing, and what it says is advice:
//! a sync in which only one source hands out numbers at a time is healthy, so it must never be a fault.

use super::check::Checked;
use super::compare::Fault;
use super::sync::{Role, Sync};
use crate::error::{Result, SqlState};
use crate::ident::{display_qualified, quote_qualified, text_array};
use crate::libpq::Conn;

/// A sequence on one source.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbers {
    schema: String,
    name: String,
    increment: i64,
    last: i64,
}

const SEQUENCES: &str = "SELECT n.nspname, s.relname, p.seqincrement \
    FROM unnest($1::text[], $2::text[]) w(schema, name) \
    JOIN pg_catalog.pg_namespace m ON m.nspname = w.schema::name \
    JOIN pg_catalog.pg_class c ON c.relnamespace = m.oid AND c.relname = w.name::name \
    JOIN pg_catalog.pg_sequence p ON p.seqrelid = c.oid OR p.seqrelid IN (SELECT d.objid FROM pg_catalog.pg_depend d \
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = c.oid AND d.deptype IN ('a', 'i')) \
    JOIN pg_catalog.pg_class s ON s.oid = p.seqrelid JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace ORDER BY 1, 2";

/// Tells the caller of each sequence by which a later source hands out numbers of an earlier one. Where that cannot be
/// seen there is nothing to tell.
pub fn advise(sync: &Sync, checked: &mut [Checked<'_>]) {
    let mut found = Vec::new();
    if check(sync, checked, &mut found).is_ok() {
        found.iter().for_each(|f| pgrx::notice!("{}. {}", f.line(), f.fix.as_deref().unwrap_or_default()));
    }
}

fn check(sync: &Sync, checked: &mut [Checked<'_>], faults: &mut Vec<Fault>) -> Result<()> {
    let sources = sync.sources().count();
    if sources < 2 {
        return Ok(());
    }
    let mut known: Vec<(String, Vec<Numbers>)> = Vec::new();
    for c in checked.iter_mut().filter(|c| c.member.role == Role::Source) {
        let mine = numbers(&mut c.conn, sync)?;
        for one in &mine {
            let same = |(_, theirs): &&(String, Vec<Numbers>)| theirs.iter().any(|other| meets(one, other));
            let Some((other, _)) = known.iter().find(same) else { continue };
            let name = quote_qualified(&one.schema, &one.name);
            faults.push(Fault {
                code: SqlState::WRONG_STATE,
                db: c.member.db.name.clone(),
                relation: Some(display_qualified(&one.schema, &one.name)),
                fault: format!("it hands out the same numbers as on db \"{other}\""),
                fix: Some(format!(
                    "On all sources ALTER SEQUENCE {name} INCREMENT BY {sources}, with RESTART WITH another number on each, one after the other"
                )),
            });
        }
        known.push((c.member.db.name.clone(), mine));
    }
    Ok(())
}

fn numbers(conn: &mut Conn, sync: &Sync) -> Result<Vec<Numbers>> {
    let schemas = text_array(sync.relations.iter().map(|r| r.schema.as_str()));
    let names = text_array(sync.relations.iter().map(|r| r.name.as_str()));
    let rows = conn.query_params(SEQUENCES, &[Some(&schemas), Some(&names)])?;
    let mut all: Vec<Numbers> = Vec::new();
    for row in 0..rows.len() {
        let (schema, name) = (rows.text(row, 0), rows.text(row, 1));
        if all.iter().any(|n| n.schema == schema && n.name == name) {
            continue;
        }
        // The column says it even before the first number was taken, which pg_sequence_last_value does not.
        let last = conn.query(&format!("SELECT last_value FROM {}", quote_qualified(&schema, &name)))?.number(0, 0);
        all.push(Numbers { schema, name, increment: rows.number(row, 2).unwrap_or(1), last: last.unwrap_or(1) });
    }
    Ok(all)
}

/// Whether two sequences of one name come to the same number: their steps have a common measure that their places share.
fn meets(a: &Numbers, b: &Numbers) -> bool {
    let (mut x, mut y) = (a.increment.unsigned_abs(), b.increment.unsigned_abs());
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a.schema == b.schema && a.name == b.name && (i128::from(a.last) - i128::from(b.last)) % i128::from(x.max(1)) == 0
}

#[cfg(test)]
mod tests {
    use super::{Numbers, meets};

    #[test]
    fn sequences_that_meet() {
        let of = |increment, last| Numbers { schema: "s".into(), name: "q".into(), increment, last };
        assert!(meets(&of(1, 1), &of(1, 100)));
        assert!(meets(&of(2, 1), &of(2, 7)));
        assert!(!meets(&of(2, 1), &of(2, 2)), "odd and even");
        assert!(!meets(&of(-2, 1), &of(2, 2)));
        assert!(meets(&of(2, 1), &of(3, 2)));
        assert!(!meets(&of(2, 1), &of(4, 2)));
        assert!(!meets(&of(1, 1), &Numbers { name: "other".into(), ..of(1, 1) }));
    }
}

//! Whether a table got another file under a run. TRUNCATE, and an ALTER TABLE that rewrites, respect no snapshot: whoever took
//! his before, and reads or writes the table for the first time after, finds it empty. Asked when a table has been read or
//! written, and so cannot be replaced any more before the transaction ends; nothing may be committed by what was read of one
//! that was.

use super::flush;
use super::shape::oid_array;
use super::who;
use crate::error::{Error, Result, SqlState};
use crate::libpq::{Conn, Rows};

/// The tables that have another file than this transaction's snapshot knows, or another name, by which they would not have
/// been the ones that were read or written; of partitioned ones, their partitions. One that is gone has neither. The planner
/// does not see which, so that it keeps its plan, and can do nothing but look for each by its oid.
const REPLACED: &str = "SELECT p.oid::pg_catalog.regclass FROM unnest((SELECT $1::pg_catalog.oid[])::pg_catalog.oid[]) o \
    CROSS JOIN LATERAL (SELECT c.relkind, format('%I.%I', \
        (SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE n.oid = c.relnamespace), c.relname) AS name \
        FROM pg_catalog.pg_class c WHERE c.oid = o OFFSET 0) r \
    CROSS JOIN LATERAL (SELECT o AS oid UNION ALL \
        SELECT t.relid FROM pg_catalog.pg_partition_tree(CASE WHEN r.relkind = 'p' THEN o END) t) p \
    CROSS JOIN LATERAL (SELECT c.relfilenode FROM pg_catalog.pg_class c WHERE c.oid = p.oid OFFSET 0) f \
    WHERE f.relfilenode <> coalesce(pg_catalog.pg_relation_filenode(p.oid), 0) \
        OR (p.oid = o AND p.oid::pg_catalog.regclass::text <> r.name)";

/// Puts the question into a pipeline; the answer is for [`judge`].
pub fn queue(conn: &mut Conn, oids: impl Iterator<Item = u32>) -> Result<()> {
    conn.pipeline_add(REPLACED, &[], &[Some(oid_array(oids).as_bytes())])
}

/// Asks at once.
pub fn check(conn: &mut Conn, oids: impl Iterator<Item = u32>) -> Result<()> {
    judge(Some(&conn.query_params(REPLACED, &[Some(&oid_array(oids))])?))
}

/// An error that makes the run begin again, if any was.
pub fn judge(answer: Option<&Rows>) -> Result<()> {
    match answer.filter(|rows| rows.len() > 0) {
        Some(rows) => Err(replaced(&format!("table {}", rows.text(0, 0)))),
        None => Ok(()),
    }
}

/// The same as an error of the statement itself, which alone keeps a COMMIT behind it in the pipeline from being carried out.
const UNLESS: &str = "SELECT 1 / CASE WHEN EXISTS (";

/// Puts a COMMIT into a pipeline that is not carried out if any was, and the question where the log is after it. `early`: of a
/// transaction that began with [`flush::EARLY`].
pub fn queue_commit(conn: &mut Conn, oids: impl Iterator<Item = u32>, early: bool) -> Result<()> {
    conn.pipeline_add(&format!("{UNLESS}{REPLACED}) THEN 0 ELSE 1 END"), &[], &[Some(oid_array(oids).as_bytes())])?;
    conn.pipeline_add("COMMIT", &[], &[])?;
    if early {
        flush::queue(conn)?;
    }
    who::queue_place(conn)
}

/// What the failure of one of the statements of [`queue_commit`] means; `at`: which of them it was.
pub fn uncommitted(error: Error, at: usize) -> Error {
    if at == 0 && error.code == SqlState::DIVISION_BY_ZERO { replaced("a table") } else { error }
}

/// The last of the answers to [`queue_commit`].
pub fn place(answers: &[Rows]) -> String {
    answers.last().map(|place| place.text(0, 0)).unwrap_or_default()
}

/// The error that makes a run begin again.
pub fn replaced(table: &str) -> Error {
    Error::new(SqlState::SERIALIZATION_FAILURE, format!("{table} was emptied or rewritten during the run"))
}

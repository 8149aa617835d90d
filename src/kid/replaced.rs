//! Whether a table got another file under a run. TRUNCATE, and an ALTER TABLE that rewrites, respect no snapshot: whoever took
//! his before, and reads or writes the table for the first time after, finds it empty. Asked when a table has been read or
//! written, and so cannot be replaced any more before the transaction ends; nothing may be committed by what was read of one
//! that was.

use super::who;
use crate::error::{Error, Result, SqlState};
use crate::libpq::{Conn, Rows};

/// The tables that have another file than this transaction's snapshot knows; of partitioned ones, their partitions.
const REPLACED: &str = "SELECT c.oid::pg_catalog.regclass FROM pg_catalog.pg_class c WHERE c.relfilenode <> pg_catalog.pg_relation_filenode(c.oid) \
    AND c.oid IN (SELECT o FROM unnest($1::pg_catalog.oid[]) o UNION ALL SELECT p.relid FROM unnest($1::pg_catalog.oid[]) o \
        JOIN pg_catalog.pg_class r ON r.oid = o AND r.relkind = 'p', LATERAL pg_catalog.pg_partition_tree(o) p)";

/// Puts the question into a pipeline; the answer is for [`judge`].
pub fn queue(conn: &mut Conn, oids: impl Iterator<Item = u32>) -> Result<()> {
    conn.pipeline_add(REPLACED, &[], &[Some(array(oids).as_bytes())])
}

/// Asks at once.
pub fn check(conn: &mut Conn, oids: impl Iterator<Item = u32>) -> Result<()> {
    judge(Some(&conn.query_params(REPLACED, &[Some(&array(oids))])?))
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

/// Puts a COMMIT into a pipeline that is not carried out if any was, and the question where the log is after it.
pub fn queue_commit(conn: &mut Conn, oids: impl Iterator<Item = u32>) -> Result<()> {
    conn.pipeline_add(&format!("{UNLESS}{REPLACED}) THEN 0 ELSE 1 END"), &[], &[Some(array(oids).as_bytes())])?;
    who::queue_commit(conn)
}

/// Takes the answers to [`queue_commit`]: where the log is.
pub fn committed(conn: &mut Conn) -> Result<String> {
    let place = |answers: Vec<Rows>| answers.last().map(|place| place.text(0, 0)).unwrap_or_default();
    conn.pipeline_collect().map(place).map_err(|error| match conn.failed_at {
        0 if error.code.as_str() == "22012" => replaced("a table"),
        _ => error,
    })
}

fn replaced(table: &str) -> Error {
    Error::new(SqlState(*b"40001"), format!("{table} was emptied or rewritten during the run"))
}

fn array(oids: impl Iterator<Item = u32>) -> String {
    format!("{{{}}}", oids.map(|o| o.to_string()).collect::<Vec<_>>().join(","))
}

//! What was read of a source must be on its disk before others commit it. A source that falls over would else forget what
//! they have, and give the same transaction numbers to changes that then nobody would look for. It never waits when the
//! application's own commits have done so.

use super::members::Pool;
use crate::catalog::db::Db;
use crate::error::Result;
use crate::libpq::{Conn, Rows};

/// Columns to ask for together with the snapshot: how far the log must be on the disk before what the snapshot sees cannot
/// be undone, and whether it is.
pub const COLUMNS: &str =
    "pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_current_wal_flush_lsn() >= pg_catalog.pg_current_wal_insert_lsn()";
/// A further column: keeps the same place in the transaction, for [`SINCE`].
pub const KEEP: &str = "pg_catalog.set_config('bucardo_run.read', pg_catalog.pg_current_wal_insert_lsn()::text, true)";
/// Whether the log is on the disk up to there by now.
pub const SINCE: &str =
    "SELECT pg_catalog.pg_current_wal_flush_lsn() >= pg_catalog.current_setting('bucardo_run.read')::pg_catalog.pg_lsn";
const FLUSHED: &str = "SELECT pg_catalog.pg_current_wal_flush_lsn() >= $1::pg_catalog.pg_lsn";
/// A commit that waits for the disk takes everything before it along.
const FLUSH: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'local', true), \
    pg_catalog.pg_logical_emit_message(true, 'bucardo', '')";

/// Where the log must be flushed to, from the answer to [`COLUMNS`], the first of which is `column`; None: it is.
pub fn unflushed(rows: &Rows, column: usize) -> Option<String> {
    (!rows.bool(0, column + 1)).then(|| rows.text(0, column))
}

/// Waits until a source's log is on the disk up to there. Not by the run's own transaction, which commits only with the others.
pub fn wait(conn: &mut Conn, pool: &mut Pool, source: &Db, lsn: &str) -> Result<()> {
    if conn.query_params(FLUSHED, &[Some(lsn)])?.bool(0, 0) {
        return Ok(());
    }
    let mut session = pool.take_beside(source)?;
    session.conn.pipeline_begin()?;
    session.conn.pipeline_add(FLUSH, &[], &[])?;
    session.conn.pipeline_send()?;
    session.conn.pipeline_collect()?;
    pool.give_back(session);
    Ok(())
}

//! What was read of a source must be on its disk before others commit it. A source that falls over would else forget what
//! they have, and give the same transaction numbers to changes that then nobody would look for. It never waits when the
//! application's own commits have done so.

use super::members::Pool;
use super::who::{PLACE, Who};
use crate::catalog::db::Db;
use crate::error::Result;
use crate::libpq::{Conn, Rows};

/// Columns to ask for together with the snapshot: how far the log must be on the disk before what the snapshot sees cannot
/// be undone, and whether it is.
pub const COLUMNS: &str =
    "pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_current_wal_flush_lsn() >= pg_catalog.pg_current_wal_insert_lsn()";
/// The same for what is captured. Whoever waits for the disk has waited before anybody sees what he has committed; only where that
/// is not known of all, it is all that there is by now, which always has something in it of transactions that nobody sees yet.
const ALL: &str = "pg_catalog.pg_current_wal_insert_lsn()";
const ALL_UNLESS: &str = "CASE WHEN bucardo.capture_all_wait() AND NOT EXISTS (SELECT FROM bucardo.capture c WHERE NOT c.native) \
    THEN '0/0'::pg_catalog.pg_lsn ELSE pg_catalog.pg_current_wal_insert_lsn() END";

/// Asks for the snapshot, and for such columns for what is captured; keeps the first in the transaction, for [`since`].
pub fn snapshot(who: &Who) -> String {
    let bound = if who.knows_who_waits { ALL_UNLESS } else { ALL };
    format!(
        "SELECT pg_catalog.pg_current_snapshot(), b.bound, pg_catalog.pg_current_wal_flush_lsn() >= b.bound, \
         pg_catalog.set_config('bucardo_run.read', b.bound::pg_catalog.text, true) FROM (SELECT {bound} AS bound OFFSET 0) b"
    )
}

/// Whether the log is on the disk up to there by now, and where it is.
pub fn since() -> String {
    format!(
        "SELECT pg_catalog.pg_current_wal_flush_lsn() >= pg_catalog.current_setting('bucardo_run.read')::pg_catalog.pg_lsn, {PLACE}"
    )
}

const FLUSHED: &str = "SELECT pg_catalog.pg_current_wal_flush_lsn() >= $1::pg_catalog.pg_lsn";
/// For a transaction whose rows others may see before they are on the disk.
pub const EARLY: &str = "SET LOCAL synchronous_commit = off";
/// A commit that waits for the disk takes everything before it along.
const FLUSH: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'local', true), \
    pg_catalog.pg_logical_emit_message(true, 'bucardo', '')";

/// Where the log must be flushed to, from the answer to either, the first of which is `column`; None: it is.
pub fn unflushed(rows: &Rows, column: usize) -> Option<String> {
    (!rows.bool(0, column + 1)).then(|| rows.text(0, column))
}

/// Puts into a pipeline, after a commit that was not to wait for the disk, one that does, as the session is set to.
pub fn queue(conn: &mut Conn) -> Result<()> {
    ["BEGIN", "SELECT pg_catalog.pg_logical_emit_message(true, 'bucardo', '')", "COMMIT"]
        .iter()
        .try_for_each(|sql| conn.pipeline_add(sql, &[], &[]))
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

//! Puts capture on a source and takes it away again. Works over libpq for every source alike, whether the extension
//! is there (native trigger) or not (plain SQL); the SQL functions of `sql/capture.sql` do the work. It must never
//! leave a table half captured: one source, one transaction.

use crate::error::{Error, Result};
use crate::ident::quote_literal;
use crate::kid::gather::text_array;
use crate::libpq::Conn;

/// The objects of a source, for one that does not have the extension.
const SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS bucardo";
const CAPTURE: &str = include_str!("../../sql/capture.sql");
const CAPTURE_READ: &str = include_str!("../../sql/capture_read.sql");

/// Drops our objects from a member that nothing captures on any more.
pub const REMOVE_SCRIPT: &str = include_str!("../../sql/capture_remove.sql");

/// The version of the objects, as `bucardo.capture_version()` tells it.
const VERSION: i32 = 1;
/// So many tables are captured with one statement.
const BATCH: usize = 100;

/// Which sync of which control database captures. `control` is the control database's identity.
pub struct Owner<'a> {
    pub control: &'a str,
    pub sync: &'a str,
    /// The name of the member that is the source.
    pub source: &'a str,
    /// The names of the members that receive its changes.
    pub receivers: &'a [String],
}

/// A table to be captured, as it is on this source.
pub struct Captured {
    pub oid: u32,
    /// The key columns in key order.
    pub key: Vec<String>,
}

/// Makes sure that every given table is captured for the sync, in one transaction on the member. The triggers need a
/// moment without writers on each table; when a table is too busy for 5 seconds, nothing is installed (55P03).
pub fn install(conn: &mut Conn, owner: &Owner<'_>, tables: &[Captured]) -> Result<()> {
    conn.query("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '5s'; SET LOCAL search_path = pg_catalog; SET LOCAL client_min_messages = error")?;
    let installed = install_objects(conn).and_then(|()| install_tables(conn, owner, tables));
    match installed {
        Ok(()) => conn.query("COMMIT").map(drop),
        Err(error) => {
            let _rolled_back = conn.query("ROLLBACK");
            Err(explained(error, owner))
        }
    }
}

fn explained(error: Error, owner: &Owner<'_>) -> Error {
    let busy = error.code.as_str() == "55P03";
    let error = error.at(format_args!("capture could not be installed on db \"{}\"", owner.source));
    if busy { error.hint("A table is locked by another transaction. Let it end, then call again.") } else { error }
}

fn install_objects(conn: &mut Conn) -> Result<()> {
    // One at a time, also while the functions do not exist yet.
    conn.query("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('bucardo capture', 0))")?;
    let here = conn.query("SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'bucardo'), to_regprocedure('bucardo.capture_version()') IS NOT NULL")?;
    if here.bool(0, 0) {
        return Ok(());
    }
    if here.bool(0, 1) && conn.query("SELECT bucardo.capture_version()")?.number(0, 0) == Some(VERSION) {
        return Ok(());
    }
    conn.query(SCHEMA)?;
    conn.query(CAPTURE)?;
    conn.query(CAPTURE_READ).map(drop)
}

fn install_tables(conn: &mut Conn, owner: &Owner<'_>, tables: &[Captured]) -> Result<()> {
    let receivers: Vec<&str> = owner.receivers.iter().map(String::as_str).collect();
    let receivers = quote_literal(&text_array(&receivers));
    for batch in tables.chunks(BATCH) {
        let call = |table: &Captured| {
            let key: Vec<&str> = table.key.iter().map(String::as_str).collect();
            format!(
                "SELECT bucardo.capture_add({}, {}, {}, {receivers}, {}, {})",
                quote_literal(owner.control),
                quote_literal(owner.sync),
                quote_literal(owner.source),
                table.oid,
                quote_literal(&text_array(&key))
            )
        };
        let calls: Vec<String> = batch.iter().map(call).collect();
        conn.query(&calls.join("; "))?;
    }
    Ok(())
}

/// Takes all capture of a control database off a member.
pub fn uninstall_control(conn: &mut Conn, control: &str) -> Result<()> {
    conn.query(&format!("SELECT bucardo.capture_forget({}, NULL, '{{}}')", quote_literal(control)))?;
    conn.query(REMOVE_SCRIPT).map(drop)
}

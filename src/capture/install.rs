//! Puts capture on a source and takes it away again. Works over libpq for every source alike, whether the extension
//! is there (native trigger) or not (plain SQL); the SQL functions of `sql/capture*.sql` do the work. It must never
//! leave a table half captured: one source, one transaction.

use std::collections::HashMap;
use std::time::Duration;

use crate::error::{Error, Result, SqlState};
use crate::ident::{quote_literal, text_array};
use crate::libpq::Conn;
use crate::pg::latch;

/// The objects of a source, for one that does not have the extension.
const SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS bucardo";
const CAPTURE: &str = include_str!("../../sql/capture.sql");
/// All of them, in order.
const OBJECTS: [&str; 5] = [
    CAPTURE,
    include_str!("../../sql/capture_plain.sql"),
    include_str!("../../sql/capture_read.sql"),
    include_str!("../../sql/capture_purge.sql"),
    include_str!("../../sql/capture_rights.sql"),
];

/// Drops our objects from a member that nothing captures on any more.
pub const REMOVE_SCRIPT: &str = include_str!("../../sql/capture_remove.sql");

/// The version of the objects, as `bucardo.capture_version()` tells it.
const VERSION: i32 = 20;
/// Whoever waits for us while we wait for him shall not be the one who is ended: we look for that first, and try again.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '200ms'; SET LOCAL search_path = pg_catalog; \
    SET LOCAL client_min_messages = error; SET LOCAL default_table_access_method = heap; \
    SET LOCAL statement_timeout = 0; SELECT pg_catalog.set_config('transaction_timeout', '0', true) \
    WHERE pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL; \
    SELECT pg_catalog.set_config('deadlock_timeout', '1ms', true) WHERE pg_catalog.current_setting('is_superuser') = 'on'";
/// So many tables are captured with one statement.
const BATCH: usize = 100;
/// How often a busy table is tried, and the pause in between: some ten seconds in all.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

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
/// moment without writers on each table. Whoever waits for a lock makes those behind it wait too, so each try is short;
/// when a table stays too busy, nothing is installed (55P03). `whole`: rows may have been written while nothing captured.
pub fn install(conn: &mut Conn, owner: &Owner<'_>, tables: &[Captured], whole: bool) -> Result<()> {
    let mut tries = 1;
    loop {
        match install_once(conn, owner, tables, whole) {
            Err(error) if unlucky(&error) && tries < TRIES => {
                tries += 1;
                latch::wait(None, Some(PAUSE));
            }
            Err(error) => return Err(explained(error, owner)),
            Ok(()) => return warn_of_publications(conn, owner.source),
        }
    }
}

/// A publication of everything has taken our tables in as well, and a subscriber that lacks them stops, keeping the source's log.
fn warn_of_publications(conn: &mut Conn, source: &str) -> Result<()> {
    let names =
        "SELECT string_agg(quote_ident(pubname), ', ' ORDER BY pubname) FROM pg_catalog.pg_publication WHERE puballtables";
    if let Some(names) = conn.query(names)?.get(0, 0) {
        pgrx::warning!(
            "db \"{source}\" publishes all tables ({names}), from now on those of schema bucardo as well: give its subscribers these tables, or let the publication list its own"
        );
    }
    Ok(())
}

/// The same for whom nobody waits: it tries once, because trying again keeps everybody else from the table each time. Whether
/// and when it is tried again is for the sync's own back-off to say (55006).
pub fn install_at_once(conn: &mut Conn, owner: &Owner<'_>, tables: &[Captured], whole: bool) -> Result<()> {
    install_once(conn, owner, tables, whole).map_err(|error| {
        let busy = unlucky(&error);
        let mut error = explained(error, owner);
        if busy {
            error.code = SqlState::OBJECT_IN_USE;
            error = error.hint("A table is locked by another transaction. Let it end: it is tried again by itself.");
        }
        error
    })
}

fn unlucky(error: &Error) -> bool {
    matches!(error.code, SqlState::LOCK_NOT_AVAILABLE | SqlState::DEADLOCK)
}

fn install_once(conn: &mut Conn, owner: &Owner<'_>, tables: &[Captured], whole: bool) -> Result<()> {
    conn.query(BEGIN)?;
    let installed = install_objects(conn).and_then(|()| install_tables(conn, owner, tables, whole));
    conn.query(if installed.is_ok() { "COMMIT" } else { "ROLLBACK" }).and(installed)
}

fn explained(error: Error, owner: &Owner<'_>) -> Error {
    let code = error.code;
    let error = error.at(format_args!("capture could not be installed on db \"{}\"", owner.source));
    match code {
        SqlState::LOCK_NOT_AVAILABLE => error.hint("A table is locked by another transaction. Let it end, then call again."),
        SqlState::NOT_ALLOWED => error.hint("Give a superuser in the conninfo, or the role the right to what is named here."),
        _ => error,
    }
}

fn install_objects(conn: &mut Conn) -> Result<()> {
    // One at a time, also while the functions do not exist yet, and nobody who takes the objects off in between.
    conn.query("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('bucardo capture', 0))")?;
    let here = conn.query("SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'bucardo'), to_regprocedure('bucardo.capture_version()') IS NOT NULL")?;
    if here.bool(0, 0) {
        return Ok(());
    }
    if here.bool(0, 1) && conn.query("SELECT bucardo.capture_version()")?.number(0, 0) == Some(VERSION) {
        return Ok(());
    }
    conn.query(SCHEMA)?;
    OBJECTS.iter().try_for_each(|objects| conn.query(objects).map(drop))
}

fn install_tables(conn: &mut Conn, owner: &Owner<'_>, tables: &[Captured], whole: bool) -> Result<()> {
    let receivers: Vec<&str> = owner.receivers.iter().map(String::as_str).collect();
    let (control, sync) = (quote_literal(owner.control), quote_literal(owner.sync));
    // First of all: what is marked below must lie behind where the receivers begin.
    conn.query(&format!(
        "SELECT bucardo.capture_receivers({control}, {sync}, {}, {})",
        quote_literal(owner.source),
        quote_literal(&text_array(&receivers))
    ))?;
    for batch in tables.chunks(BATCH) {
        let call = |table: &Captured| {
            let key: Vec<&str> = table.key.iter().map(String::as_str).collect();
            let key = quote_literal(&text_array(&key));
            format!("SELECT bucardo.capture_add({control}, {sync}, {}, {key}, {whole})", table.oid)
        };
        let calls: Vec<String> = batch.iter().map(call).collect();
        conn.query(&calls.join("; "))?;
    }
    Ok(())
}

/// Whose progress stands on a member for a sync: sources and their receivers.
pub fn known(conn: &mut Conn, control: &str, sync: &str) -> Result<Vec<(String, String)>> {
    let sql = "SELECT source, member FROM bucardo.capture_track WHERE control = $1 AND sync = $2";
    match conn.query_params(sql, &[Some(control), Some(sync)]) {
        Err(error) if is_missing(&error) => Ok(Vec::new()),
        rows => rows.map(|rows| (0..rows.len()).map(|i| (rows.text(i, 0), rows.text(i, 1))).collect()),
    }
}

/// The source of which a database is a copy: it has that one's progress in a sync and none of its own.
pub fn is_copy<'a>(known: &'a [(String, String)], source: &str) -> Option<&'a str> {
    let own = known.iter().any(|(s, _)| s == source);
    known.first().filter(|_| !own).map(|(other, _)| other.as_str())
}

/// What is wrong with the capture of the sync's tables on a source, by the table's oid; None: nothing. Tables that are
/// missing here are not captured.
pub fn state(conn: &mut Conn, control: &str, sync: &str) -> Result<HashMap<u32, State>> {
    let sql = "SELECT s.relid, s.keys, s.fault FROM bucardo.capture_state($1, $2) s";
    let rows = match conn.query_params(sql, &[Some(control), Some(sync)]) {
        Err(error) if is_missing(&error) => return Ok(HashMap::new()),
        other => other?,
    };
    let row = |i: usize| {
        let key = serde_json::from_str(rows.get(i, 1)?).ok()?;
        Some((rows.number(i, 0)?, State { key, fault: rows.get(i, 2).map(str::to_string) }))
    };
    Ok((0..rows.len()).filter_map(row).collect())
}

/// How a captured table stands.
pub struct State {
    pub key: Vec<String>,
    pub fault: Option<String>,
}

impl State {
    /// Why the table must be captured anew, with that key. Triggers that somebody has disabled stay so.
    pub fn broken(&self, key: &[String]) -> Option<String> {
        if self.key != key {
            return Some("the key of the captured table has changed".into());
        }
        self.fault.clone().filter(|fault| !fault.ends_with(" disabled"))
    }
}

/// Whether an error only says that there is no capture on the member.
pub fn is_missing(error: &Error) -> bool {
    matches!(error.code, SqlState::INVALID_SCHEMA | SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_FUNCTION)
}

/// Takes a sync's capture, or all of a control database, off a member. How many tables have it still, because they are busy;
/// below zero: there was no time for so many.
pub fn uninstall(conn: &mut Conn, control: &str, sync: Option<&str>) -> Result<i64> {
    let sync = sync.map_or_else(|| "NULL".to_string(), quote_literal);
    let forget = format!("SELECT bucardo.capture_forget({}, {sync})", quote_literal(control));
    let left = conn.query(&forget)?.number::<i64>(0, 0).unwrap_or(0);
    if left == 0 {
        conn.query(REMOVE_SCRIPT)?;
    }
    Ok(left)
}

/// Takes off again what a call has put somewhere that has failed elsewhere. What is busy or away by now is left to the master.
pub fn take_back(conn: &mut Conn, control: &str, sync: &str) {
    let mut tries = 0;
    while tries < TRIES {
        match uninstall(conn, control, Some(sync)) {
            Ok(0) => return,
            Ok(left) if left < 0 => continue,
            Ok(_) => {}
            Err(error) if error.code == SqlState::LOCK_NOT_AVAILABLE => {}
            Err(_) => return,
        }
        tries += 1;
        latch::wait(None, Some(PAUSE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_tell_the_version_that_is_expected() {
        assert!(CAPTURE.contains(&format!("AS $body$ SELECT {VERSION} $body$;")), "VERSION and capture_version() differ");
    }

    #[test]
    fn a_copy_has_the_progress_of_another_source_only() {
        let known = |all: &[(&str, &str)]| all.iter().map(|(s, m)| (s.to_string(), m.to_string())).collect::<Vec<_>>();
        assert_eq!(is_copy(&[], "A"), None, "nothing is known of a new one");
        assert_eq!(is_copy(&known(&[("A", "B")]), "A"), None);
        assert_eq!(is_copy(&known(&[("B", "C"), ("A", "B")]), "A"), None, "its own stands there too");
        assert_eq!(is_copy(&known(&[("B", "A"), ("B", "C")]), "A"), Some("B"));
    }
}

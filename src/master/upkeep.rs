//! What the master does beside runs: purging served deltas, taking capture off where no sync needs it any more, and
//! forgetting old history. Builds statements and reads the control database; the watchers carry statements to members.

use std::sync::OnceLock;

use crate::catalog::sync::{Role, Sync};
use crate::error::Result;
use crate::guc;
use crate::ident::quote_literal;
use crate::kid::gather::text_array;
use crate::pg::{spi, xact};

/// Tokens of the upkeep statements that every source gets; others belong to removals.
pub const PURGE: u64 = 0;
pub const RECONCILE: u64 = 1;
pub const FIRST_REMOVAL: u64 = 16;

/// How this server is recognised.
pub struct ThisServer {
    pub started: String,
    pub identifier: String,
}

static THIS: OnceLock<ThisServer> = OnceLock::new();

/// This server's identity; read once.
pub fn this_server() -> &'static ThisServer {
    THIS.get_or_init(|| {
        let sql = "SELECT extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text, (SELECT s.system_identifier::text FROM pg_catalog.pg_control_system() s)";
        let read = || spi::select(sql, &[], |row| Ok(ThisServer { started: row.get(1)?, identifier: row.get(2)? }));
        let found = xact::transaction(read);
        found.ok().and_then(|all| all.into_iter().next()).unwrap_or(ThisServer { started: String::new(), identifier: String::new() })
    })
}

pub const PURGE_SQL: &str = "SELECT bucardo.capture_purge()";

/// The statement that takes everything off a source that the given syncs (of which it is a source) do not need.
pub fn reconcile_sql(control: &str, source: &str, syncs: &[&Sync]) -> String {
    let control = quote_literal(control);
    let captured = |sync: &&&Sync| sync.captures() && sync.members.iter().any(|m| m.role == Role::Source && m.db.name == source);
    let mine: Vec<&&Sync> = syncs.iter().filter(captured).collect();
    let mut keep: Vec<String> = vec!["(NULL::text, NULL::text, NULL::text)".into()];
    let mut receivers: Vec<String> = vec!["(NULL::text, NULL::text[])".into()];
    for sync in &mine {
        let name = quote_literal(&sync.capture_name());
        for relation in sync.relations.iter().filter(|r| !r.is_sequence) {
            keep.push(format!("({name}, {}, {})", quote_literal(&relation.schema), quote_literal(&relation.name)));
        }
        let names: Vec<&str> = sync.members.iter().filter(|m| m.db.name != source).map(|m| m.db.name.as_str()).collect();
        receivers.push(format!("({name}, {}::text[])", quote_literal(&text_array(&names))));
    }
    format!(
        "WITH mine AS MATERIALIZED (SELECT DISTINCT s.sync FROM bucardo.capture_sync s WHERE s.control = {control}), \
         keep (sync, schemaname, relname) AS (VALUES {keep}), receivers (sync, members) AS (VALUES {receivers}), \
         members AS MATERIALIZED (SELECT pg_catalog.count(bucardo.capture_forget_member({control}, r.sync, r.members)::text) FROM receivers r WHERE r.sync IS NOT NULL) \
         SELECT coalesce(pg_catalog.sum(bucardo.capture_forget({control}, m.sync, ARRAY(SELECT c.oid FROM keep k \
         JOIN pg_catalog.pg_namespace n ON n.nspname = k.schemaname JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = k.relname \
         WHERE k.sync = m.sync))), 0) + 0 * (SELECT * FROM members) FROM mine m",
        keep = keep.join(", "),
        receivers = receivers.join(", "),
    )
}

/// The statement that takes all capture of a sync (or of the whole control database) off a source.
pub fn forget_sql(control: &str, sync: Option<&str>) -> String {
    let sync = sync.map_or_else(|| "NULL".to_string(), quote_literal);
    format!("SELECT bucardo.capture_forget({}, {sync}, '{{}}')", quote_literal(control))
}

/// A removal that a committed transaction left to do.
pub struct Cleanup {
    pub id: i64,
    pub control: String,
    pub db: String,
    pub conninfo: String,
    pub sync: Option<String>,
}

/// The removals that wait. To be called in a transaction.
pub fn cleanups() -> Result<Vec<Cleanup>> {
    spi::select("SELECT id::bigint, control, db, conninfo, sync FROM bucardo.cleanup ORDER BY id", &[], |row| {
        Ok(Cleanup { id: row.get(1)?, control: row.get(2)?, db: row.get(3)?, conninfo: row.get(4)?, sync: row.opt(5)? })
    })
}

/// A removal is done.
pub fn cleaned(id: i64) -> Result<()> {
    xact::transaction(|| spi::execute("DELETE FROM bucardo.cleanup WHERE id = $1", &[id.into()]).map(drop))
}

/// Forgets runs and conflicts older than `bucardo.history_retention`; writes nothing when there are none.
pub fn forget_history() -> Result<()> {
    let seconds = guc::history_retention().as_secs_f64();
    let old = xact::transaction(|| {
        spi::value::<bool>(
            "SELECT EXISTS (SELECT FROM bucardo.syncrun WHERE ended < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)) \
             OR EXISTS (SELECT FROM bucardo.conflict WHERE decided_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1))",
            &[seconds.into()],
        )
    })?;
    if old != Some(true) {
        return Ok(());
    }
    xact::transaction(|| {
        spi::execute(
            "DELETE FROM bucardo.syncrun WHERE ended < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)",
            &[seconds.into()],
        )?;
        spi::execute(
            "DELETE FROM bucardo.conflict WHERE decided_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)",
            &[seconds.into()],
        )
        .map(drop)
    })
}

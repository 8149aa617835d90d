//! What the master does beside runs: purging served deltas, taking capture off where no sync needs it any more, and
//! forgetting old history. Builds statements and reads the control database; the watchers carry statements to members.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::slot::Report;
use crate::catalog::sync::{Relation, Role, Sync};
use crate::error::{Error, Result, SqlState};
use crate::guc;
use crate::ident::quote_literal;
use crate::pg::{spi, xact};

/// Tokens of the upkeep statements that every source gets; others belong to removals.
pub const PURGE: u64 = 0;
pub const LISTING: u64 = 1;
pub const RELEASE: u64 = 2;
pub const BROKEN: u64 = 3;
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

/// The statement that empties the segments of which nobody needs anything more, of tables with so many bytes of them. Its answer
/// says how many deltas these were; below zero, by one less than that: it has left tables, and is to be called again.
pub fn purge_sql(least: i64) -> String {
    format!("SELECT bucardo.capture_purge({least})")
}

/// The statement that lists what this control database has on a member.
pub fn listing_sql(control: &str) -> String {
    format!("SELECT bucardo.capture_listing({})", quote_literal(control))
}

/// The statement that names a sync whose capture is broken on a member.
pub fn broken_sql(control: &str) -> String {
    format!("SELECT * FROM bucardo.capture_broken({}) LIMIT 1", quote_literal(control))
}

/// The statement that takes stale capture off.
pub fn release_sql(control: &str, stale: &Listing) -> Result<String> {
    let stale = serde_json::to_string(stale).map_err(|e| Error::internal(format!("a listing cannot be written: {e}")))?;
    Ok(format!("SELECT bucardo.capture_release({}, {})", quote_literal(control), quote_literal(&stale)))
}

/// The statement that takes all capture of a sync (or of the whole control database) off a source.
pub fn forget_sql(control: &str, sync: Option<&str>) -> String {
    let sync = sync.map_or_else(|| "NULL".to_string(), quote_literal);
    format!("SELECT bucardo.capture_forget({}, {sync})", quote_literal(control))
}

/// A captured table of a member, as the member lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedTable {
    capture: i32,
    sync: String,
    since: String,
    schema: String,
    name: String,
}

/// A receiver whose progress a member keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedReceiver {
    sync: String,
    source: String,
    member: String,
    at: String,
}

/// What a control database has on a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    tables: Vec<ListedTable>,
    receivers: Vec<ListedReceiver>,
}

impl Listing {
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|e| Error::internal(format!("a member's listing cannot be read: {e}")))
    }

    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.receivers.is_empty()
    }

    /// Whether any table is captured under that name.
    pub fn has(&self, capture: &str) -> bool {
        self.tables.iter().any(|t| t.sync == capture)
    }

    /// All but what is captured under these names.
    pub fn without(mut self, captures: &[String]) -> Self {
        self.tables.retain(|t| !captures.contains(&t.sync));
        self.receivers.retain(|r| !captures.contains(&r.sync));
        self
    }

    /// What of it no sync of the catalog needs. Pure. A database may be known under several names: by which of them a
    /// sync has it as a source is told by the receivers that are listed.
    pub fn stale(self, syncs: &[&Sync]) -> Self {
        let find = |name: &str| syncs.iter().find(|s| s.capture_name() == name && s.captures());
        let is_source = |s: &Sync, db: &str| s.members.iter().any(|m| m.role == Role::Source && m.db.name == db);
        let (held, stale): (Vec<_>, Vec<_>) = self.receivers.into_iter().partition(|r| {
            find(&r.sync).is_some_and(|s| is_source(s, &r.source) && s.members.iter().any(|m| m.db.name == r.member))
        });
        let tables = self.tables.into_iter().filter(|t| {
            let same = |r: &Relation| !r.is_sequence && t.schema == r.schema && t.name == r.name;
            let needed = held.iter().any(|r| r.sync == t.sync) && find(&t.sync).is_some_and(|s| s.relations.iter().any(same));
            !needed
        });
        Self { tables: tables.collect(), receivers: stale }
    }
}

/// Writes the row of a run whose kid was ended, and could not.
pub fn record_lost(sync: &Sync, report: &Report) -> Result<()> {
    let sql = "INSERT INTO bucardo.syncrun (run, sync, state, started, ended, error, sqlstate) \
        SELECT $1, $2, 'bad', pg_catalog.to_timestamp($3 / 1000000.0 + 946684800), pg_catalog.clock_timestamp(), $4, $5 \
        WHERE EXISTS (SELECT FROM bucardo.sync WHERE id = $6) ON CONFLICT DO NOTHING";
    let sqlstate = String::from_utf8_lossy(&report.sqlstate);
    let (name, message) = (sync.name.as_str().into(), report.message.get().into());
    let args = [report.lost.into(), name, report.since.into(), message, sqlstate.as_ref().into(), sync.id.into()];
    let recorded = xact::transaction(|| {
        soon()?;
        spi::execute(sql, &args).map(drop)
    });
    match recorded {
        // Whoever stops the master may hold the table; it waits for nobody.
        Err(error) if error.code == SqlState::LOCK_NOT_AVAILABLE => {
            pgrx::warning!("bucardo: run {} of sync \"{}\" could not be recorded: {error}", report.lost, sync.name);
            Ok(())
        }
        recorded => recorded,
    }
}

/// The runs that are old, but for what `bucardo.status` shows of syncs that live: the newest of each state.
const OLD_RUNS: &str = "FROM bucardo.syncrun WHERE ended < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1) \
    AND run NOT IN (SELECT last.run FROM bucardo.sync s CROSS JOIN (VALUES ('good'), ('empty'), ('bad')) v(state) CROSS JOIN LATERAL \
        (SELECT r.run FROM bucardo.syncrun r WHERE r.sync = s.name AND r.state = v.state ORDER BY r.run DESC LIMIT 1) last)";

/// How many syncs the catalog has, and the last one's number: what a restore puts there tells nobody.
pub fn syncs() -> Result<(i64, i32)> {
    let read =
        || spi::select("SELECT count(*), coalesce(max(id), 0) FROM bucardo.sync", &[], |row| Ok((row.get(1)?, row.get(2)?)));
    Ok(xact::transaction(read)?.into_iter().next().unwrap_or_default())
}

/// Notes that a sync is paused. False: somebody holds its row, and the master must wait for nobody.
pub fn pause(sync: i32) -> Result<bool> {
    let sql = "WITH free AS MATERIALIZED (SELECT id FROM bucardo.sync WHERE id = $1 FOR NO KEY UPDATE SKIP LOCKED) \
        UPDATE bucardo.sync s SET paused = true FROM free WHERE s.id = free.id";
    xact::transaction(|| Ok(spi::execute(sql, &[sync.into()])? != 0))
}

/// Forgets runs and conflicts older than `bucardo.history_retention`; writes nothing when there are none. Decisions are
/// found by their numbers, in the order of which they were made: an index by time would cost every one of them.
pub fn forget_history() -> Result<()> {
    match forget_old() {
        // Whole tables may be locked as well; the master waits for nobody.
        Err(error) if error.code == SqlState::LOCK_NOT_AVAILABLE => Ok(()),
        forgotten => forgotten,
    }
}

/// Lets the transaction wait for locks no longer than that. As a query: a statement that may change something takes a
/// transaction id, and the master looks each minute.
fn soon() -> Result<()> {
    spi::value::<String>("SELECT pg_catalog.set_config('lock_timeout', '300ms', true)", &[]).map(drop)
}

fn forget_old() -> Result<()> {
    let seconds = guc::history_retention().as_secs_f64();
    let old = xact::transaction(|| {
        soon()?;
        spi::value::<bool>(
            &format!(
                "SELECT EXISTS (SELECT {OLD_RUNS}) \
             OR (SELECT decided_at FROM bucardo.conflict ORDER BY id LIMIT 1) < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)"
            ),
            &[seconds.into()],
        )
    })?;
    if old != Some(true) {
        return Ok(());
    }
    xact::transaction(|| {
        soon()?;
        // What an open transaction holds is forgotten another time.
        let sql = format!("DELETE FROM bucardo.syncrun WHERE run = ANY (ARRAY(SELECT run {OLD_RUNS} FOR UPDATE SKIP LOCKED))");
        spi::execute(&sql, &[seconds.into()])?;
        spi::execute("SET LOCAL enable_seqscan = off", &[])?;
        spi::execute(
            "WITH old AS MATERIALIZED (SELECT id FROM bucardo.conflict WHERE decided_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1) \
             AND id < coalesce((SELECT id FROM bucardo.conflict WHERE decided_at >= pg_catalog.now() - pg_catalog.make_interval(secs => $1) \
                 ORDER BY id LIMIT 1), 9223372036854775807) FOR UPDATE SKIP LOCKED) \
             DELETE FROM bucardo.conflict c USING old WHERE c.id = old.id",
            &[seconds.into()],
        )
        .map(drop)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::sync::tests::sync;
    use Role::{Fullcopy, Source, Target};

    fn table(sync: &str, name: &str) -> ListedTable {
        let (schema, since) = ("public".to_string(), "1".to_string());
        ListedTable { capture: 1, sync: sync.to_string(), since, schema, name: name.to_string() }
    }

    fn receiver(sync: &str, source: &str, member: &str) -> ListedReceiver {
        let at = "1".to_string();
        ListedReceiver { sync: sync.to_string(), source: source.to_string(), member: member.to_string(), at }
    }

    fn stale(tables: Vec<ListedTable>, receivers: Vec<ListedReceiver>, syncs: &[&Sync]) -> Listing {
        Listing { tables, receivers }.stale(syncs)
    }

    #[test]
    fn what_a_sync_needs_stays() {
        let s = sync(&[("A", Source), ("B", Target)], &["t"]);
        let found = stale(vec![table("7:s", "t"), table("7:s", "gone")], vec![receiver("7:s", "A", "B")], &[&s]);
        assert_eq!(found, Listing { tables: vec![table("7:s", "gone")], receivers: Vec::new() });
    }

    #[test]
    fn what_no_sync_knows_goes() {
        let s = sync(&[("A", Source), ("B", Target)], &["t"]);
        // A sync of that name that was removed and added again has another number.
        let all = (vec![table("6:s", "t")], vec![receiver("6:s", "A", "B")]);
        assert_eq!(stale(all.0.clone(), all.1.clone(), &[&s]), Listing { tables: all.0.clone(), receivers: all.1.clone() });
        assert_eq!(stale(all.0.clone(), all.1.clone(), &[]), Listing { tables: all.0, receivers: all.1 });
        assert!(stale(Vec::new(), Vec::new(), &[&s]).is_empty());
    }

    #[test]
    fn who_is_no_member_any_more_goes() {
        let s = sync(&[("A", Source), ("B", Target)], &["t"]);
        let found = stale(vec![table("7:s", "t")], vec![receiver("7:s", "A", "B"), receiver("7:s", "A", "C")], &[&s]);
        assert_eq!(found, Listing { tables: Vec::new(), receivers: vec![receiver("7:s", "A", "C")] });
    }

    #[test]
    fn a_database_that_is_no_source_any_more_keeps_nothing() {
        let s = sync(&[("A", Source), ("B", Target)], &["t"]);
        let listed = || (vec![table("7:s", "t")], vec![receiver("7:s", "B", "A")]);
        let (tables, receivers) = listed();
        assert_eq!(stale(tables, receivers, &[&s]), Listing { tables: listed().0, receivers: listed().1 });
        // Nor one of a sync whose members are all copied whole.
        let whole = sync(&[("B", Source), ("A", Fullcopy)], &["t"]);
        let (tables, receivers) = listed();
        assert_eq!(stale(tables, receivers, &[&whole]), Listing { tables: listed().0, receivers: listed().1 });
    }
}

//! The history of decisions, `bucardo.conflict`. It is written before the members commit, so that no decision is ever
//! without its record; what a run that died has recorded is checked against the members' progress by the next one.

use std::collections::BTreeMap;

use serde_json::Value;

use super::settle::Decision;
use crate::error::{Error, Result};
use crate::kid::run::Plan;
use crate::pg::{spi, xact};

/// When decisions must be on the disk of the control server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    /// Before anything else happens, and all that were recorded before with them.
    Now,
    /// When a later record is.
    Later,
}

/// Records decisions.
pub fn record(run: i64, sync: &str, name: impl Fn(i32) -> String, decisions: Vec<Decision>, durable: Durable) -> Result<()> {
    // Most of many decisions differ in key and rows only.
    let mut groups: BTreeMap<_, (Vec<String>, Vec<String>)> = BTreeMap::new();
    for Decision { relation, key, strategy, winner, rows } in decisions {
        let group = groups.entry((relation, strategy, winner)).or_default();
        group.0.push(key);
        group.1.push(rows);
    }
    let sql = "INSERT INTO bucardo.conflict (run, sync, relation, key, strategy, winner, rows) \
        SELECT $1, $2, $3, k::jsonb, $4, $5, i::jsonb FROM unnest($6::text[], $7::text[]) u(k, i)";
    xact::transaction(|| {
        if durable == Durable::Now {
            // A kid does not wait for the disk, but for this it must: members that commit next may be other servers. Only
            // a transaction that has a number waits.
            spi::execute("SET LOCAL synchronous_commit = on", &[])?;
            spi::execute("SELECT pg_catalog.pg_current_xact_id()", &[])?;
        }
        groups.into_iter().try_for_each(|((relation, strategy, winner), (keys, rows))| {
            let args = [run.into(), sync.into(), name(relation).into(), strategy.into(), winner.into(), keys.into(), rows.into()];
            spi::execute(sql, &args).map(drop)
        })
    })
}

/// Looks once for decisions of runs that did not end well, and that no good one has followed: whether they hold is told
/// by the members.
pub fn settle_doubt(plan: &mut Plan) {
    if plan.doubt.is_some() {
        return;
    }
    let good = "SELECT coalesce(max(r.run), 0) FROM bucardo.syncrun r WHERE r.sync = $1 AND r.state IN ('good', 'empty')";
    // Decisions of later runs have greater numbers: only those are read, however long the history is.
    let passed = "SELECT c.id FROM bucardo.conflict c WHERE c.sync = $1 AND c.run <= $2 ORDER BY c.id DESC LIMIT 1";
    let sql = "SELECT DISTINCT c.run FROM bucardo.conflict c WHERE c.id > $3 AND c.sync = $1 AND c.run > $2 AND c.strategy <> 'bucardo_abort'";
    let name = plan.sync.name.clone();
    let doubt = xact::transaction(|| {
        spi::execute("SET LOCAL enable_seqscan = off", &[])?;
        let sync = || name.as_str().into();
        let good = spi::value::<i64>(good, &[sync()])?.unwrap_or(0);
        let passed = spi::value::<i64>(passed, &[sync(), good.into()])?.unwrap_or(0);
        spi::select(sql, &[sync(), good.into(), passed.into()], |row| row.get::<i64>(1))
    });
    plan.doubt = doubt.ok();
}

/// A recorded decision, as far as it must be carried on.
pub struct Decided {
    pub relation: String,
    pub key: Value,
    /// The sources whose changes have lost.
    pub lost: Vec<String>,
    /// Whether a row was made that none of them had: whoever has committed it has it for the others.
    pub made: bool,
}

/// The decisions of a run.
pub fn decided(sync: &str, run: i64) -> Result<Vec<Decided>> {
    let sql = "SELECT relation, key::text, ARRAY(SELECT k FROM pg_catalog.jsonb_object_keys(rows) k WHERE k IS DISTINCT FROM winner), \
        winner IS NULL AND strategy <> 'bucardo_skip' FROM bucardo.conflict WHERE sync = $1 AND run = $2 AND strategy <> 'bucardo_abort'";
    xact::transaction(|| {
        spi::select(sql, &[sync.into(), run.into()], |row| {
            let key = serde_json::from_str(&row.get::<String>(2)?)
                .map_err(|e| Error::internal(format!("a conflict's key cannot be read: {e}")))?;
            Ok(Decided { relation: row.get(1)?, key, lost: row.get::<Vec<String>>(3)?, made: row.get(4)? })
        })
    })
}

/// Notes that a run which died had an effect, and that this has been carried on.
pub fn close(sync: &str, run: i64) -> Result<()> {
    let sql = "INSERT INTO bucardo.syncrun (run, sync, state, ended, conflicts, error, sqlstate) \
        SELECT $2, $1, 'bad', pg_catalog.clock_timestamp(), count(*), 'the run ended while its members committed; the next one went on with it', '57P01' \
        FROM bucardo.conflict WHERE sync = $1 AND run = $2 ON CONFLICT DO NOTHING";
    xact::transaction(|| spi::execute(sql, &[sync.into(), run.into()]).map(drop))
}

/// The number of the newest decision.
pub fn newest() -> Result<i64> {
    let newest = xact::transaction(|| spi::value("SELECT max(id) FROM bucardo.conflict", &[]))?;
    Ok(newest.unwrap_or(0))
}

/// Forgets the decisions of a run that no member has committed. All of them have greater numbers than `before`: what is
/// older is not read.
pub fn forget_run(sync: &str, run: i64, before: i64) -> Result<()> {
    let sql = "DELETE FROM bucardo.conflict WHERE id > $3 AND sync = $1 AND run = $2 AND strategy <> 'bucardo_abort'";
    xact::transaction(|| {
        spi::execute("SET LOCAL enable_seqscan = off", &[])?;
        spi::execute(sql, &[sync.into(), run.into(), before.into()]).map(drop)
    })
}

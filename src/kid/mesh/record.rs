//! The history of decisions, `bucardo.conflict`. It is written before the members commit, so that no decision is ever
//! without its record; what a run that died has recorded is checked against the members' progress by the next one
//! (`carry`), out of `bucardo.doubt`.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::settle::Decision;
use crate::error::{Error, Result};
use crate::pg::{spi, xact};

/// Records decisions. `sources`: the snapshots by which the run is carried on if it dies; None: it is not.
pub fn record(
    run: i64,
    sync: &str,
    name: impl Fn(i32) -> String,
    decisions: &[Decision],
    sources: Option<Vec<(String, String)>>,
) -> Result<()> {
    if decisions.is_empty() {
        return Ok(());
    }
    let made = |d: &Decision| Some(json!({"relation": name(d.relation), "key": d.key, "row": d.made.as_ref()?}));
    let made = Value::from(decisions.iter().filter_map(made).collect::<Vec<_>>()).to_string();
    let sources = sources.map(|all| Value::Object(all.into_iter().map(|(k, v)| (k, Value::from(v))).collect()).to_string());
    let relations: Vec<String> = decisions.iter().map(|d| name(d.relation)).collect();
    let keys: Vec<String> = decisions.iter().map(|d| d.key.to_string()).collect();
    let strategies: Vec<String> = decisions.iter().map(|d| d.strategy.clone()).collect();
    let winners: Vec<Option<String>> = decisions.iter().map(|d| d.winner.clone()).collect();
    let rows: Vec<String> = decisions.iter().map(|d| d.rows.to_string()).collect();
    xact::transaction(|| {
        // A kid does not wait for the disk, but for this it must: members that commit next may be other servers.
        spi::execute("SET LOCAL synchronous_commit = on", &[])?;
        let sql = "INSERT INTO bucardo.conflict (run, sync, relation, key, strategy, winner, rows) \
            SELECT $1, $2, r, k::jsonb, s, w, i::jsonb FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[]) u(r, k, s, w, i)";
        let args = [
            run.into(),
            sync.into(),
            relations.clone().into(),
            keys.clone().into(),
            strategies.clone().into(),
            winners.clone().into(),
            rows.clone().into(),
        ];
        spi::execute(sql, &args)?;
        if let Some(sources) = &sources {
            let sql = "INSERT INTO bucardo.doubt (sync, run, sources, made) VALUES ($1, $2, $3::jsonb, $4::jsonb)";
            spi::execute(sql, &[sync.into(), run.into(), sources.as_str().into(), made.as_str().into()])?;
        }
        Ok(())
    })
}

/// A run of which it is not known that all who took part have committed it.
pub struct Doubt {
    pub run: i64,
    /// The sources that took part, with the snapshots that they had.
    pub sources: HashMap<String, String>,
    /// What it has written beside the winners' changes: relation, key, row or null.
    pub made: Vec<(String, Map<String, Value>, Value)>,
}

/// The runs in doubt, the oldest first.
pub fn doubts(sync: &str) -> Result<Vec<Doubt>> {
    let sql = "SELECT run, sources::text, made::text FROM bucardo.doubt WHERE sync = $1 ORDER BY run";
    let unread = |e: serde_json::Error| Error::internal(format!("the record of a run cannot be read: {e}"));
    xact::transaction(|| {
        spi::select(sql, &[sync.into()], |row| {
            let made: Vec<Made> = serde_json::from_str(&row.get::<String>(3)?).map_err(unread)?;
            let sources = serde_json::from_str(&row.get::<String>(2)?).map_err(unread)?;
            Ok(Doubt { run: row.get(1)?, sources, made: made.into_iter().map(|m| (m.relation, m.key, m.row)).collect() })
        })
    })
}

#[derive(serde::Deserialize)]
struct Made {
    relation: String,
    key: Map<String, Value>,
    row: Value,
}

/// A recorded decision, as far as it must be carried on.
pub struct Decided {
    pub relation: String,
    pub key: Map<String, Value>,
    pub winner: Option<String>,
    pub rows: Map<String, Value>,
    /// The sources whose changes have lost.
    pub lost: Vec<String>,
}

/// The decisions of a run.
pub fn decided(sync: &str, run: i64) -> Result<Vec<Decided>> {
    let sql = "SELECT relation, key::text, winner, rows::text FROM bucardo.conflict \
        WHERE sync = $1 AND run = $2 AND strategy <> 'bucardo_abort' ORDER BY id";
    let unread = |e: serde_json::Error| Error::internal(format!("a conflict cannot be read: {e}"));
    xact::transaction(|| {
        spi::select(sql, &[sync.into(), run.into()], |row| {
            let key = serde_json::from_str(&row.get::<String>(2)?).map_err(unread)?;
            let rows: Map<String, Value> = serde_json::from_str(&row.get::<String>(4)?).map_err(unread)?;
            let winner: Option<String> = row.opt(3)?;
            let lost = rows.keys().filter(|k| Some(*k) != winner.as_ref()).cloned().collect();
            Ok(Decided { relation: row.get(1)?, key, winner, rows, lost })
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

/// Forgets the decisions of runs that no member has committed, or ever will.
pub fn forget_runs(sync: &str, runs: &[i64]) -> Result<()> {
    if runs.is_empty() {
        return Ok(());
    }
    let sql = "WITH gone AS (DELETE FROM bucardo.conflict WHERE sync = $1 AND run = ANY ($2) AND strategy <> 'bucardo_abort') \
        DELETE FROM bucardo.doubt WHERE sync = $1 AND run = ANY ($2)";
    xact::transaction(|| spi::execute(sql, &[sync.into(), runs.to_vec().into()]).map(drop))
}

/// Notes that all who took part in these runs have committed them.
pub fn end_doubt(sync: &str, runs: &[i64]) -> Result<()> {
    let sql = "DELETE FROM bucardo.doubt WHERE sync = $1 AND run = ANY ($2)";
    xact::transaction(|| spi::execute(sql, &[sync.into(), runs.to_vec().into()]).map(drop))
}

//! The history of decisions, `bucardo.conflict`. It is written before the members commit, so that no decision is ever
//! without its record; what a run that died has recorded is checked against the members' progress by the next one
//! (`carry`), out of `bucardo.doubt`. Many decisions are recorded in parts, while the run goes on.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use serde_json::{Map, Value};

use super::image;
use super::settle::Decision;
use crate::error::{Error, Result};
use crate::pg::{spi, xact};

/// A run that records decisions.
pub struct Run<'a> {
    pub number: i64,
    pub sync: &'a str,
    /// The newest decision of anybody before its first: what is older is not read for it.
    pub since: i64,
}

/// How far what is recorded holds.
pub enum Stand {
    /// Not at all so far, since nobody has been told to commit: if the run dies, it is forgotten.
    Part,
    /// The members are told to commit as soon as this is on the disk. Where the sources stood, by which the run is carried on
    /// if it dies; None: it is not.
    Whole(Option<HashMap<String, Stood>>),
    /// It stops the sync.
    Stop,
}

/// Decisions that differ in key and rows only, as most of many do; and these, as JSON.
type Groups = BTreeMap<(i32, Rc<str>, Option<Rc<str>>), (Vec<String>, Vec<String>)>;

/// Records decisions. Rows that jsonb does not take are left out: no record forbids what was decided.
pub fn record(run: &Run<'_>, name: impl Fn(i32) -> String, decisions: Vec<Decision>, stand: Stand) -> Result<()> {
    let mut groups = Groups::new();
    let mut made = Vec::new();
    for Decision { relation, key, strategy, winner, rows, made: row, cleared } in decisions {
        let (of, cleared) = (Value::from(name(relation)), Value::from(cleared));
        made.extend(row.map(|row| format!("{{\"relation\":{of},\"key\":{key},\"row\":{row},\"cleared\":{cleared}}}")));
        let group = groups.entry((relation, strategy, winner)).or_default();
        group.0.push(key);
        group.1.push(rows);
    }
    match write(run, &name, &groups, &made, &stand) {
        Err(error) if image::is_unfit(&error) => {
            for (keys, rows) in groups.values_mut() {
                image::make_fit(keys, rows)?;
            }
            let unfit = image::unfit(&made)?;
            let made: Vec<String> =
                made.into_iter().enumerate().filter(|(i, _)| !unfit.contains_key(i)).map(|(_, m)| m).collect();
            write(run, &name, &groups, &made, &stand)
        }
        other => other,
    }
}

fn write(run: &Run<'_>, name: impl Fn(i32) -> String, groups: &Groups, made: &[String], stand: &Stand) -> Result<()> {
    let made = format!("[{}]", made.join(","));
    let sql = "INSERT INTO bucardo.conflict (run, sync, relation, key, strategy, winner, rows) \
        SELECT $1, $2, $3, k::jsonb, $4, $5, i::jsonb FROM unnest($6::text[], $7::text[]) u(k, i)";
    let texts = |all: &[String]| all.iter().map(String::as_str).collect::<Vec<&str>>().into();
    xact::transaction(|| {
        if !matches!(stand, Stand::Part) {
            // A kid does not wait for the disk, but for this it must: members that commit next may be other servers. Only
            // a transaction that has a number waits.
            spi::execute("SET LOCAL synchronous_commit = on", &[])?;
            spi::execute("SELECT pg_catalog.pg_current_xact_id()", &[])?;
        }
        groups.iter().try_for_each(|((relation, strategy, winner), (keys, rows))| {
            let args = [
                run.number.into(),
                run.sync.into(),
                name(*relation).into(),
                (&**strategy).into(),
                winner.as_deref().into(),
                texts(keys),
                texts(rows),
            ];
            spi::execute(sql, &args).map(drop)
        })?;
        match stand {
            Stand::Part => note_doubt(run, &HashMap::new(), &made),
            Stand::Whole(Some(sources)) => note_doubt(run, sources, &made),
            Stand::Whole(None) => {
                let sql = "DELETE FROM bucardo.doubt WHERE sync = $1 AND run = $2";
                spi::execute(sql, &[run.sync.into(), run.number.into()]).map(drop)
            }
            Stand::Stop => Ok(()),
        }
    })
}

fn note_doubt(run: &Run<'_>, sources: &HashMap<String, Stood>, made: &str) -> Result<()> {
    let sources = serde_json::json!(sources).to_string();
    let sql = "INSERT INTO bucardo.doubt (sync, run, since, sources, made) VALUES ($1, $2, $3, $4::jsonb, $5::jsonb)";
    let args = [run.sync.into(), run.number.into(), run.since.into(), sources.as_str().into(), made.into()];
    spi::execute(sql, &args).map(drop)
}

/// The number of the newest decision.
pub fn newest() -> Result<i64> {
    let newest = xact::transaction(|| spi::value("SELECT max(id) FROM bucardo.conflict", &[]))?;
    Ok(newest.unwrap_or(0))
}

/// A run of which it is not known that all who took part have committed it.
#[derive(Default)]
pub struct Doubt {
    pub run: i64,
    /// Its decisions have greater numbers.
    since: i64,
    /// The sources that took part; none: nobody was told to commit.
    pub sources: HashMap<String, Stood>,
    /// What it has written beside the winners' changes.
    pub made: Vec<Made>,
}

/// Where a source stood when a run read it.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(from = "Noted")]
pub struct Stood {
    pub snapshot: String,
    /// The server and where its log was, as [`Offer`](super::offer::Offer) has it; None: that was not noted.
    pub identity: Option<String>,
}

/// As it is noted, and as it was noted once.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Noted {
    Snapshot(String),
    Stood { snapshot: String, identity: Option<String> },
}

impl From<Noted> for Stood {
    fn from(noted: Noted) -> Self {
        match noted {
            Noted::Snapshot(snapshot) => Stood { snapshot, identity: None },
            Noted::Stood { snapshot, identity } => Stood { snapshot, identity },
        }
    }
}

/// The runs in doubt, the oldest first.
pub fn doubts(sync: &str) -> Result<Vec<Doubt>> {
    let sql = "SELECT run, since, sources::text, made::text FROM bucardo.doubt WHERE sync = $1 ORDER BY run, id";
    let unread = |e: serde_json::Error| Error::internal(format!("the record of a run cannot be read: {e}"));
    let parts = xact::transaction(|| {
        spi::select(sql, &[sync.into()], |row| {
            let made: Vec<Made> = serde_json::from_str(&row.get::<String>(4)?).map_err(unread)?;
            let sources = serde_json::from_str(&row.get::<String>(3)?).map_err(unread)?;
            Ok(Doubt { run: row.get(1)?, since: row.get(2)?, sources, made })
        })
    })?;
    let mut all: Vec<Doubt> = Vec::new();
    for part in parts {
        match all.last_mut().filter(|last| last.run == part.run) {
            Some(last) => {
                last.sources.extend(part.sources);
                last.made.extend(part.made);
            }
            None => all.push(part),
        }
    }
    Ok(all)
}

impl Doubt {
    pub fn since(&self) -> i64 {
        self.since
    }
}

/// A row that a run has written on all members.
#[derive(Clone, serde::Deserialize)]
pub struct Made {
    pub relation: String,
    pub key: Map<String, Value>,
    /// Null: it was deleted.
    pub row: Value,
    /// The columns that were written where the row was there; none: all.
    #[serde(default)]
    pub cleared: Vec<String>,
    /// It is no row: somebody who has the decision does not know the row, because he had changed it himself.
    #[serde(default)]
    pub unaware: bool,
}

/// A key as [`Made::unaware`] has it.
pub fn unaware(relation: &str, key: &Map<String, Value>) -> String {
    serde_json::json!({ "relation": relation, "key": key, "row": null, "unaware": true }).to_string()
}

/// Adds such keys to the records of runs, each given by its number and what its decisions are greater than.
pub fn note_unaware(sync: &str, keys: &[(i64, i64, String)]) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut by_run: BTreeMap<(i64, i64), Vec<&str>> = BTreeMap::new();
    for (run, since, key) in keys {
        by_run.entry((*run, *since)).or_default().push(key);
    }
    xact::transaction(|| {
        // Who commits next may be another server.
        spi::execute("SET LOCAL synchronous_commit = on", &[])?;
        by_run.iter().try_for_each(|((number, since), keys)| {
            note_doubt(&Run { number: *number, sync, since: *since }, &HashMap::new(), &format!("[{}]", keys.join(",")))
        })
    })
}

/// A recorded decision, as far as it must be carried on.
pub struct Decided {
    pub relation: String,
    pub key: Map<String, Value>,
    /// None: nobody has won, or another row is written everywhere.
    pub winner: Option<String>,
    /// The row of a winner that is away, null if it has deleted it. None: it is not, or its row is not known.
    pub away: Option<Value>,
    /// Whether the winner's row could not be recorded.
    pub unfit: bool,
}

/// The decisions of a run. `here`: the sources that are not away.
pub fn decided(sync: &str, doubt: &Doubt, here: &[String]) -> Result<Vec<Decided>> {
    let sql = "SELECT relation, key::text, winner, \
        CASE WHEN winner <> ALL ($4::text[]) AND NOT coalesce(rows->winner ? 'bucardo_image', false) THEN (rows->winner)::text END, \
        coalesce(rows->winner ? 'bucardo_image', false) FROM bucardo.conflict WHERE id > $3 AND sync = $1 AND run = $2 AND strategy <> 'bucardo_abort' ORDER BY id";
    let unread = |e: serde_json::Error| Error::internal(format!("a conflict cannot be read: {e}"));
    after(|| {
        let args = [sync.into(), doubt.run.into(), doubt.since.into(), here.to_vec().into()];
        spi::select(sql, &args, |row| {
            let key = serde_json::from_str(&row.get::<String>(2)?).map_err(unread)?;
            let away = row.opt::<String>(4)?.map(|row| serde_json::from_str(&row)).transpose().map_err(unread)?;
            Ok(Decided { relation: row.get(1)?, key, winner: row.opt(3)?, away, unfit: row.get(5)? })
        })
    })
}

/// A transaction that reads decisions by their numbers: the history may be long.
fn after<T>(body: impl Fn() -> Result<T>) -> Result<T> {
    xact::transaction(|| {
        spi::execute("SET LOCAL enable_seqscan = off", &[])?;
        body()
    })
}

/// Notes that a run which died had an effect, and that this has been carried on.
pub fn close(sync: &str, doubt: &Doubt) -> Result<()> {
    let sql = "INSERT INTO bucardo.syncrun (run, sync, state, ended, conflicts, error, sqlstate) \
        SELECT $2, $1, 'bad', pg_catalog.clock_timestamp(), count(*), 'the run ended while its members committed; the next one went on with it', '57P01' \
        FROM bucardo.conflict WHERE id > $3 AND sync = $1 AND run = $2 \
        ON CONFLICT (run) DO UPDATE SET conflicts = excluded.conflicts, error = excluded.error \
        WHERE syncrun.state = 'bad' AND syncrun.sqlstate = '57P01'";
    after(|| spi::execute(sql, &[sync.into(), doubt.run.into(), doubt.since.into()]).map(drop))
}

/// Forgets the decisions of a run that no member has committed, or ever will.
pub fn forget_run(sync: &str, run: i64) -> Result<()> {
    let sql = "WITH gone AS (DELETE FROM bucardo.conflict WHERE sync = $1 AND run = $2 AND strategy <> 'bucardo_abort' \
        AND id > (SELECT min(since) FROM bucardo.doubt WHERE sync = $1 AND run = $2)) \
        DELETE FROM bucardo.doubt WHERE sync = $1 AND run = $2";
    after(|| {
        // If it came back with a crash, the members would be taken for having it as soon as they have a later run.
        spi::execute("SET LOCAL synchronous_commit = on", &[])?;
        spi::execute(sql, &[sync.into(), run.into()]).map(drop)
    })
}

/// Notes that all who took part in these runs have committed them.
pub fn end_doubt(sync: &str, runs: &[i64]) -> Result<()> {
    let sql = "DELETE FROM bucardo.doubt WHERE sync = $1 AND run = ANY ($2)";
    xact::transaction(|| spi::execute(sql, &[sync.into(), runs.to_vec().into()]).map(drop))
}

//! The history of decisions, `bucardo.conflict`. It is written before the members commit, so that no decision is ever
//! without its record; what a run that died has recorded is checked against the members' progress by the next one.

use super::settle::Decision;
use crate::error::Result;
use crate::kid::run::Plan;
use crate::pg::{spi, xact};

/// Records decisions; the number of the first.
pub fn record(run: i64, sync: &str, name: impl Fn(i32) -> String, decisions: &[Decision]) -> Result<Option<i64>> {
    if decisions.is_empty() {
        return Ok(None);
    }
    let relations: Vec<String> = decisions.iter().map(|d| name(d.relation)).collect();
    let keys: Vec<String> = decisions.iter().map(|d| d.key.to_string()).collect();
    let strategies: Vec<String> = decisions.iter().map(|d| d.strategy.clone()).collect();
    let winners: Vec<Option<String>> = decisions.iter().map(|d| d.winner.clone()).collect();
    let rows: Vec<String> = decisions.iter().map(|d| d.rows.to_string()).collect();
    xact::transaction(|| {
        let sql = "INSERT INTO bucardo.conflict (run, sync, relation, key, strategy, winner, rows) \
            SELECT $1, $2, r, k::jsonb, s, w, i::jsonb FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[]) u(r, k, s, w, i) \
            RETURNING id";
        let args = [
            run.into(),
            sync.into(),
            relations.clone().into(),
            keys.clone().into(),
            strategies.clone().into(),
            winners.clone().into(),
            rows.clone().into(),
        ];
        Ok(spi::write(sql, &args, |row| row.get::<i64>(1))?.into_iter().min())
    })
}

/// Takes back what was recorded from that number on, when no member has committed it.
pub fn take_back(run: i64, first: i64) -> Result<()> {
    xact::transaction(|| {
        spi::execute("DELETE FROM bucardo.conflict WHERE run = $1 AND id >= $2", &[run.into(), first.into()]).map(drop)
    })
}

/// Looks once for decisions of runs that never ended: whether they hold is told by the members.
pub fn settle_doubt(plan: &mut Plan) {
    if plan.doubt.is_some() {
        return;
    }
    let sql = "SELECT DISTINCT c.run FROM bucardo.conflict c WHERE c.sync = $1 AND NOT EXISTS (SELECT FROM bucardo.syncrun r WHERE r.run = c.run)";
    let name = plan.sync.name.clone();
    plan.doubt = xact::transaction(|| spi::select(sql, &[name.as_str().into()], |row| row.get::<i64>(1))).ok();
}

/// Forgets the decisions of a run that no member has committed.
pub fn forget_run(sync: &str, run: i64) -> Result<()> {
    xact::transaction(|| {
        spi::execute("DELETE FROM bucardo.conflict WHERE sync = $1 AND run = $2", &[sync.into(), run.into()]).map(drop)
    })
}

//! `bucardo.validate_sync`: all faults of a sync as it is now, as rows; what is only advice, as notices. Changes nothing.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::required;
use crate::catalog::sync::Sync;
use crate::catalog::{change, check, interleave};
use crate::error::Result;
use crate::ident::quote_literal;

type Row = (Option<String>, Option<String>, String, Option<String>);

/// What keeps the sync from running whatever its members look like. Where no member is to blame, db is null.
fn own_faults(sync: &Sync) -> Vec<Row> {
    let mut rows = Vec::new();
    if let Err(error) = change::check_shape(sync) {
        let fix = if sync.is_whole() { error.hint } else { Some(sync.completion()) };
        rows.push((None, None, error.message, fix));
    } else {
        let row = |db: &String| {
            let fix = format!("SELECT bucardo.update_db({}, status => 'active');", quote_literal(db));
            (Some(db.clone()), None, "it is inactive, and without it the sync cannot run".to_string(), Some(fix))
        };
        rows.extend(sync.asleep().iter().map(row));
    }
    rows
}

fn faults(sync: &str) -> Result<Vec<Row>> {
    let sync = change::load(sync)?;
    let mut rows = own_faults(&sync);
    let mut faults = Vec::new();
    let mut checked = check::check(&sync, None, "validate_sync", None, &mut faults)?;
    check::check_capture(&sync, &mut checked, &mut faults)?;
    interleave::advise(&sync, &mut checked);
    rows.extend(faults.into_iter().map(|f| (Some(f.db), f.relation, f.fault, f.fix)));
    Ok(rows)
}

/// Looks for faults of a sync on all members.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[expect(clippy::type_complexity, reason = "pgrx reads the columns from the type")]
fn validate_sync(
    name: Option<&str>,
) -> Result<
    TableIterator<
        'static,
        (name!(db, Option<String>), name!(relation, Option<String>), name!(fault, String), name!(fix, Option<String>)),
    >,
    ErrorReport,
> {
    Ok(TableIterator::new(faults(required(name, "name")?)?))
}

//! `bucardo.validate_sync`: all faults of a sync as it is now, as rows. Changes nothing.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::required;
use crate::catalog::{change, check, interleave};
use crate::error::Result;

type Row = (String, Option<String>, String, Option<String>);

fn faults(sync: &str) -> Result<Vec<Row>> {
    let sync = change::load(sync)?;
    let mut faults = Vec::new();
    let mut checked = check::check(&sync, None, "validate_sync", None, &mut faults)?;
    check::check_capture(&sync, &mut checked, &mut faults)?;
    interleave::check(&sync, &mut checked, &mut faults)?;
    Ok(faults.into_iter().map(|f| (f.db, f.relation, f.fault, f.fix)).collect())
}

/// Looks for faults of a sync on all members.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn validate_sync(
    name: Option<&str>,
) -> Result<
    TableIterator<
        'static,
        (name!(db, String), name!(relation, Option<String>), name!(fault, String), name!(fix, Option<String>)),
    >,
    ErrorReport,
> {
    Ok(TableIterator::new(faults(required(name, "name")?)?))
}

//! Many relations at once: add_all_tables, add_all_sequences. What is in the relgroup already is left as it is.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::{notice, required};
use crate::catalog::relation::{self, Named, Options};
use crate::catalog::{Noun, change, check, db, group, pick};
use crate::error::Result;
use crate::ident::{matches, matches_relation, one_line, parse_list, pattern};
use crate::master::notify;

/// Adds all tables of a member, or of some of its schemas, but for some.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn add_all_tables(
    relgroup: Option<&str>,
    db: Option<&str>,
    schema: default!(Option<&str>, "NULL"),
    exclude: default!(Option<&str>, "NULL"),
) -> Result<i32, ErrorReport> {
    Ok(add_all(required(relgroup, "relgroup")?, required(db, "db")?, schema, exclude, false)?)
}

/// Adds all sequences of a member, or of some of its schemas, but for some.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn add_all_sequences(
    relgroup: Option<&str>,
    db: Option<&str>,
    schema: default!(Option<&str>, "NULL"),
    exclude: default!(Option<&str>, "NULL"),
) -> Result<i32, ErrorReport> {
    Ok(add_all(required(relgroup, "relgroup")?, required(db, "db")?, schema, exclude, true)?)
}

/// The items of a list of patterns, without quotes.
fn patterns(list: Option<&str>) -> Result<Vec<String>> {
    Ok(parse_list(list.unwrap_or_default())?.iter().map(|item| pattern(item)).collect())
}

fn add_all(relgroup: &str, db: &str, schema: Option<&str>, exclude: Option<&str>, sequences: bool) -> Result<i32> {
    let (schemas, excluded) = (patterns(schema)?, patterns(exclude)?);
    Noun::Relgroup.lock(relgroup)?;
    let member = db::load(db)?.ok_or_else(|| Noun::Db.unknown(db))?;
    let syncs = group::syncs_of(Noun::Relgroup, relgroup)?;
    if !syncs.is_empty() {
        notify::require_preload()?;
    }
    let function = if sequences { "add_all_sequences" } else { "add_all_tables" };
    let before = change::load_all(&syncs)?;
    let (mut conn, identity) = check::open(&member.target, function)?;
    let mut added = Vec::new();
    let mut without_key = Vec::new();
    for (one, has_key) in pick::list(&mut conn, !sequences)?.into_iter().filter(|(one, _)| one.is_sequence == sequences) {
        let wanted = schemas.is_empty() || schemas.iter().any(|p| matches(p, &one.schema));
        if !wanted || excluded.iter().any(|p| matches_relation(p, &one.schema, &one.name)) {
            continue;
        }
        let named = Named { schema: Some(one.schema), name: one.name, is_sequence: sequences };
        if !has_key {
            without_key.push(one_line(&named.display()));
        } else if let Some(id) = relation::add(relgroup, &named, Some(db), &Options::default())? {
            added.push(id);
        }
    }
    if !without_key.is_empty() {
        notice(&format!("left out, because they have no key: {}", without_key.join(", ")));
    }
    let mut opened = Some((db.to_string(), Ok((conn, identity))));
    for sync in before.iter().filter(|_| !added.is_empty()) {
        change::engage_captured(sync, &added, function, opened.take())?;
    }
    Ok(added.len() as i32)
}

//! Relgroups: add_relgroup, remove_relgroup. The lists only; single relations come and go through `table`.

use pgrx::prelude::*;

use super::dbgroup::remove_group;
use super::{Answer, required};
use crate::catalog::pick::Item;
use crate::catalog::relation::{self, Named, Options};
use crate::catalog::{Noun, group, pick};
use crate::error::{Error, Result, SqlState};
use crate::ident::{check_name, one_line, shown};

/// Adds a relgroup with the tables of a list. No sync uses it yet, so they are looked up when one does.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn add_relgroup(name: Option<&str>, tables: default!(Option<&str>, "''")) -> Answer {
    let name = required(name, "name")?;
    check_name("relgroup", name)?;
    let names = plain_names(tables.unwrap_or_default())?;
    if !group::insert_relgroup(name)? {
        return Err(Noun::Relgroup.duplicate(name).into());
    }
    for relation in &names {
        if relation::add(name, relation, None, &Options::default())?.is_none() {
            let message = format!("{} is listed twice", one_line(&relation.display()));
            return Err(Error::new(SqlState::INVALID_PARAMETER, message).hint("Name each table once.").into());
        }
    }
    Ok(name.to_string())
}

/// A list without wildcards: there is no db in which they could be looked up.
fn plain_names(tables: &str) -> Result<Vec<Named>> {
    if tables.trim().is_empty() {
        return Ok(Vec::new());
    }
    let plain = |item| match item {
        Item::Name(schema, name) => Ok(Named { schema, name, is_sequence: false }),
        Item::All | Item::Pattern(_) => {
            Err(Error::new(SqlState::INVALID_PARAMETER, format!("\"{}\": a relgroup's list takes names only", shown(tables)))
                .hint("Add the relgroup without tables, then SELECT bucardo.add_all_tables('the relgroup', 'the db');"))
        }
    };
    pick::parse(tables)?.into_iter().map(plain).collect()
}

/// Removes a relgroup; forced, with the syncs that use it.
#[pg_extern(security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn remove_relgroup(name: Option<&str>, force: default!(Option<bool>, "false")) -> Answer {
    remove_group(Noun::Relgroup, name, force)
}

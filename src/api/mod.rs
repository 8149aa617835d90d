//! The SQL functions, thin: check what was given, call the catalog or the master, return. They run with the owner's
//! rights and a pinned search_path, so that a granted EXECUTE is all that a role needs; nobody has it by default.
//! A call that fails must leave nothing behind, on any member.

pub mod control;
mod custom;
mod customcode;
mod db;
mod dbgroup;
mod interval;
pub mod kick;
mod relgroup;
pub mod status;
mod sync;
mod table;
mod tables;
mod validate;
mod version;

use pgrx::pg_sys::panic::ErrorReport;

use crate::error::{Error, Result, SqlState};

/// What a function that changes the catalog answers: the object's name.
type Answer = Result<String, ErrorReport>;

/// An argument that must not be null.
fn required<T>(value: Option<T>, argument: &str) -> Result<T> {
    value.ok_or_else(|| {
        Error::new(SqlState::INVALID_PARAMETER, format!("{argument} must not be null")).hint(format!("Give {argument} => '…'."))
    })
}

/// Tells the caller something that is no fault.
fn notice(text: &str) {
    pgrx::notice!("{text}");
}

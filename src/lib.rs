//! The map of the extension. A change travels through the folders in this order:
//! `capture` (a row changes on a source), `master` (a kick becomes a kid; purging afterwards) and `kid` (one run of
//! one sync). `catalog` is what the user configured, `api` the SQL functions, `libpq` the
//! wire to the members and `pg` the server underneath. This file only lists and registers; it decides nothing.

use pgrx::prelude::*;

mod api;
mod capture;
mod catalog;
mod error;
mod fault;
mod guc;
mod ident;
mod kid;
mod libpq;
mod master;
mod pg;

::pgrx::pg_module_magic!(name, version);

// The tables, one noun per file, in the order in which they need each other.
extension_sql_file!("../sql/db.sql", name = "db");
extension_sql_file!("../sql/relation.sql", name = "relation", requires = ["db"]);
extension_sql_file!("../sql/sync.sql", name = "sync", requires = ["relation"]);
extension_sql_file!("../sql/custom.sql", name = "custom", requires = ["sync"]);
extension_sql_file!("../sql/run.sql", name = "run", requires = ["custom"]);
// What stands on every source, here because this database may be one.
extension_sql_file!("../sql/capture.sql", name = "capture", requires = ["run"]);
extension_sql_file!("../sql/capture_plain.sql", name = "capture_plain", requires = ["capture"]);
extension_sql_file!("../sql/capture_read.sql", name = "capture_read", requires = ["capture_plain"]);
extension_sql_file!("../sql/capture_purge.sql", name = "capture_purge", requires = ["capture_read"]);
extension_sql_file!("../sql/capture_rights.sql", name = "capture_rights", requires = ["capture_purge"]);
extension_sql_file!("../sql/native.sql", name = "native", requires = ["capture_rights"]);
extension_sql_file!(
    "../sql/view.sql",
    name = "view",
    requires =
        ["native", api::status::sync_state, api::status::master_state, api::status::process_state, api::control::begin_master]
);
extension_sql_file!("../sql/finalize.sql", name = "finalize", finalize);

/// Called by the server when the library is loaded.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    guc::init();
    if pg::shmem::is_preloading() {
        pg::shmem::init();
        if !pg::shmem::is_upgrading() {
            pg::worker::register_launcher();
        }
        pg::hook::init();
    }
}

#[cfg(not(panic = "unwind"))]
compile_error!("bucardo must be compiled with panic = \"unwind\": an error of PostgreSQL travels as a panic");

#[cfg(any(test, feature = "pg_test"))]
#[allow(clippy::unwrap_used, reason = "a test may fail by a panic; that is how it says so")]
#[path = "../pg_test/mod.rs"]
pub mod pg_test;

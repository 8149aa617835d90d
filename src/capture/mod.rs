//! Step 1 of a change: a row changes on a source and its key is written down. What does that is SQL (`sql/capture*.sql`, and
//! the native trigger in `pg/delta.rs`); here it is put onto sources and taken off them. It must never write the user's rows.

pub mod install;

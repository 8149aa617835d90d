//! Step 1 of a change: a row changes on a source and its key is written down.

pub mod install;

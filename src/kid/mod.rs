//! Step 3 of a change: one run of one sync. Read `run.rs` first, then the steps in its order.

pub mod apply;
mod bring;
pub mod copy;
mod current;
mod few;
mod flush;
pub mod gather;
mod heir;
pub mod hook;
pub mod main;
pub mod members;
pub mod mend;
pub mod mesh;
pub mod origin;
pub mod progress;
pub mod reading;
pub mod renew;
mod replaced;
pub mod report;
pub mod retry;
pub mod run;
pub mod sequence;
pub mod shape;
pub mod statements;
pub mod stream;
pub mod who;
pub mod writing;

//! The server underneath: latches, transactions, workers, shared memory, and the native triggers of capture. Together with
//! `libpq` the only place with `unsafe`. It must never decide what a sync does: of that, `shmem` keeps the master's table and
//! `captured`, `delta` and `touched` the keys that have changed, for others to read.

pub mod captured;
pub mod delta;
#[cfg(feature = "fault_points")]
pub mod fault;
pub mod hook;
pub mod latch;
mod raw;
pub mod role;
pub mod shmem;
pub mod spi;
pub mod statement;
pub mod touched;
pub mod trigger;
pub mod worker;
pub mod xact;

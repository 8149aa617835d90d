//! The server underneath: latches, transactions, workers, shared memory. Together with `libpq` the only place with
//! `unsafe`. Nothing here knows what a sync is.

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

//! Step 2 of a change: a kick becomes a kid. `launcher` keeps one master for each control database; `main` is that
//! master, with one `controller` per sync; `watch` hears of changes at the sources, `kids` does what is due.

pub mod controller;
mod farewell;
mod hear;
pub mod identity;
pub mod kids;
pub mod launcher;
pub mod main;
pub mod notify;
mod outdated;
mod publish;
mod removal;
pub mod slot;
pub mod trouble;
mod turns;
pub mod upkeep;
pub mod watch;

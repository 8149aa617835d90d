//! Whole clusters, seen from outside: the black-box suite.
//!
//! Every scenario starts servers of its own, works through the SQL interface and plain DML, and looks at the rows that are
//! there afterwards. Some stop, fail or kill a process at a named place besides (the `fault_*` functions of a test's build), or
//! look into the catalog and into what capture keeps on a source. `scratch`, `cluster`, `wire`, `wait` are the harness, `net` a replication ready to use; the
//! other modules are the scenarios, one file per theme. Nothing here may use the extension's code.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a scenario that cannot go on has failed")]

mod cluster;
mod compare;
mod footprint;
mod net;
mod proxy;
mod scratch;
mod wait;
mod wire;

/// Makes two tests of each scenario: one with the extension on the source, one with plain SQL objects only.
#[macro_export]
macro_rules! for_both {
    ($($scenario:ident),*) => { $(mod $scenario {
        #[test]
        fn native() {
            super::$scenario($crate::net::Capture::Native);
        }
        #[test]
        fn plain() {
            super::$scenario($crate::net::Capture::Plain);
        }
    })* };
}

mod ahead;
mod away;
mod badinput;
mod capture;
mod changed;
mod cleanup;
mod control;
mod crash;
mod ddl;
mod dense;
mod fallen;
mod fault;
mod frozen;
mod harness;
mod hosts;
mod identity;
mod joined;
mod keys;
mod late;
mod life;
mod lost;
mod multi;
mod oneway;
mod purge;
mod refused;
mod rewrite;
mod security;
mod standby;
mod status;
mod torture;
mod truncate;
mod types;

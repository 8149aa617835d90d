//! `bucardo.version()`. Must answer even where the library was not preloaded.

use pgrx::prelude::*;

/// The extension's version.
#[pg_extern(stable, parallel_safe)]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

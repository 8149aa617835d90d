//! What `#[pg_test]` needs of the crate, and the list of tests that run inside a server.

mod customcode;

/// Called once before the first test of a run.
pub fn setup(_options: Vec<&str>) {}

/// The settings of the server that the tests run in.
pub fn postgresql_conf_options() -> Vec<&'static str> {
    vec!["shared_preload_libraries = 'bucardo'"]
}

//! A source that falls over in the midst of a run between several sources, and comes back without what others have of it by
//! then. It goes back to it, and what an application writes on it from then on goes to all. Nothing of this may show in the
//! status as anything but well.

use crate::identity::{fail_over, two_sources, with_standby};
use crate::net::Net;
use crate::wait::wait_until;

const ROWS: &str = "SELECT string_agg(id || v, ',' ORDER BY id) FROM t WHERE v <> 'x'";

/// A run takes the changes, and its kid stands still when it has told A, the first, to commit, and nobody else.
fn stand_after_the_commit_of_a(net: &Net, changes: impl FnOnce()) {
    net.rest();
    changes();
    let passed = || net.control().number("SELECT bucardo.fault_hits('kid.between_commits')");
    let before = passed();
    net.control().exec("SELECT bucardo.fault_set('kid.between_commits', 'wait'); SELECT bucardo.resume('s')");
    wait_until("COMMIT to be sent to A", || passed() > before);
    net.wait_sql(
        "A",
        "it to have committed",
        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'bucardo kid' AND state <> 'idle')",
    );
}

/// A has what B gave it in the run in which B fell over. B's standby has not got that, and nothing tells so but the run.
#[test]
fn a_source_that_falls_over_before_it_answers_gets_back_what_it_gave() {
    let mut net = two_sources(false);
    let standby = with_standby(&net, "B");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    fail_over(&mut net, "B", standby, |net| {
        stand_after_the_commit_of_a(net, || {
            net.on("B").exec("UPDATE t SET v = 'of B' WHERE id = 1; INSERT INTO t VALUES (21, 'of B')")
        });
    });
    net.control().exec("SELECT bucardo.fault_clear()");
    net.on("A").exec("INSERT INTO t VALUES (22, 'A goes on')");
    net.on("B").exec("INSERT INTO t VALUES (23, 'B goes on')");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one(ROWS), "1of B,21of B,22A goes on,23B goes on");
    net.wait_state("good|empty");
}

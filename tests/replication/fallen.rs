//! A source that falls over in the midst of a run between several sources, or is put back to what it was: it gives the
//! numbers of transactions that others know of to other ones. What the others have of it goes back to it, and what an
//! application writes on it from then on goes to all. None of this may show in the status as anything but well.

use crate::cluster::Cluster;
use crate::identity::{fail_over, three_members, two_sources, with_standby};
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

/// So many transactions that somebody who has not got them gives their numbers for long.
fn use_numbers(net: &Net, name: &str) {
    net.on(name).exec("DO $$BEGIN FOR i IN 1 .. 300 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END$$");
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

/// B has lost a conflict in a run that A has committed, and falls over. What the application then writes there has the number
/// of a transaction that was settled.
#[test]
fn what_is_written_after_a_failover_is_not_settled_by_a_run_before() {
    let mut net = two_sources(false);
    let standby = with_standby(&net, "B");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    fail_over(&mut net, "B", standby, |net| {
        net.on("B").exec("INSERT INTO t VALUES (21, 'of B')");
        net.settle(&["t"]);
        use_numbers(net, "B");
        stand_after_the_commit_of_a(net, || {
            net.on("B").exec("UPDATE t SET v = 'of B' WHERE id IN (1, 2)");
            net.on("A").exec("UPDATE t SET v = 'of A' WHERE id IN (1, 2)");
        });
    });
    net.on("B").exec("UPDATE t SET v = 'B goes on' WHERE id = 1");
    net.control().exec("SELECT bucardo.fault_clear()");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one(ROWS), "1B goes on,2of A,21of B");
    // What B wrote did not know of A's row, and is the later one.
    assert_eq!(net.control().one("SELECT string_agg(key->>'id' || winner, ',' ORDER BY id) FROM bucardo.conflict"), "1A,2A,1B");
    net.wait_state("good|empty");
}

/// Two sources and nobody else: a third would not have what the second had, and so be told again for both.
fn two_alone() -> Net {
    let mut net = three_members("A:source,B:source", false);
    net.members.pop();
    net
}

/// The storage of A's server is put back to what it was some time ago; it goes on from there, on the same timeline.
fn put_back(net: &Net) {
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    let earlier = Cluster::copy_of(net.server_of("A"), "earlier", false);
    use_numbers(net, "A");
    for id in 21..=26 {
        net.on("A").exec(&format!("INSERT INTO t VALUES ({id}, 'lost'); SELECT pg_switch_wal()"));
    }
    net.settle(&["t"]);
    net.rest();
    net.server_of("A").replace_by_copy_of(&earlier);
}

#[test]
fn what_is_written_on_a_source_that_was_put_back_reaches_the_others() {
    let net = two_alone();
    put_back(&net);
    net.on("A").exec("UPDATE t SET v = 'A goes on' WHERE id = 1; INSERT INTO t VALUES (30, 'A goes on')");
    net.control().exec("SELECT bucardo.resume('s')");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one(ROWS), "1A goes on,21lost,22lost,23lost,24lost,25lost,26lost,30A goes on");
    net.wait_state("good|empty");
}

/// Nothing is written there until its log has passed by where it had been: what was noted of it holds no more even then.
#[test]
fn a_source_that_was_put_back_may_be_idle_at_first() {
    let net = two_alone();
    put_back(&net);
    net.on("B").exec("INSERT INTO t VALUES (29, 'B goes on')");
    net.control().exec("SELECT bucardo.resume('s')");
    net.wait_sql("A", "what it lost", "SELECT count(*) = 27 FROM t");
    net.rest();
    net.on("A").exec("UPDATE t SET v = 'A goes on' WHERE id = 1; INSERT INTO t VALUES (30, 'A goes on')");
    for _ in 0..10 {
        net.on("A").exec("CREATE TABLE beside (); DROP TABLE beside; SELECT pg_switch_wal()");
    }
    net.control().exec("SELECT bucardo.resume('s')");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one(ROWS), "1A goes on,21lost,22lost,23lost,24lost,25lost,26lost,29B goes on,30A goes on");
    net.wait_state("good|empty");
}

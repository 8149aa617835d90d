//! TRUNCATE on one source against changes on another one: rows written before it go, rows written after it survive, on all
//! members. A truncate that was rolled back did nothing.

use super::{Clock, Multi, Place, Plan};
use crate::cluster::Stop;
use crate::net::Capture;
use crate::wait::wait_until;

crate::for_both!(rows_older_than_the_truncate_go_and_newer_ones_survive, a_truncate_that_was_rolled_back_does_nothing);

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, val text); INSERT INTO t SELECT g, 'start' FROM generate_series(1, 9) g";
const ALL: &str = "SELECT coalesce(string_agg(id || val, ' ' ORDER BY id), '') FROM t";

fn ready(sources: usize, capture: Capture, clock: Clock) -> Multi {
    let m = Plan::new(sources).capture(capture).clock(clock).start();
    m.everywhere(T);
    m.sync("tables => 'public.t'");
    m
}

fn rows_older_than_the_truncate_go_and_newer_ones_survive(capture: Capture) {
    for clock in [Clock::Commit, Clock::Statement] {
        let m = ready(2, capture, clock);
        m.changes(&[
            ("B", "INSERT INTO t VALUES (20, 'B before'); UPDATE t SET val = 'B before' WHERE id = 2"),
            ("A", "TRUNCATE t"),
            ("B", "INSERT INTO t VALUES (30, 'B after'); UPDATE t SET val = 'B after' WHERE id = 3"),
            ("A", "INSERT INTO t VALUES (40, 'A after')"),
        ]);
        m.drain_equal(&["t"]);
        m.expect_everywhere(ALL, "3B after 30B after 40A after");
        assert_eq!(m.kick(), "empty");
        m.on("B").exec("INSERT INTO t VALUES (1, 'goes on')");
        m.drain_equal(&["t"]);
    }
}

fn a_truncate_that_was_rolled_back_does_nothing(capture: Capture) {
    let m = ready(2, capture, Clock::Commit);
    m.changes(&[
        ("A", "BEGIN; TRUNCATE t; ROLLBACK"),
        ("A", "BEGIN; SAVEPOINT s; TRUNCATE t; ROLLBACK TO s; UPDATE t SET val = 'A' WHERE id = 1; COMMIT"),
        ("B", "UPDATE t SET val = 'B' WHERE id = 2"),
    ]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "1A 2B 3start 4start 5start 6start 7start 8start 9start");
}

#[test]
fn rows_of_the_transaction_that_truncates() {
    for capture in crate::net::BOTH {
        let m = ready(2, capture, Clock::Commit);
        m.changes(&[
            ("B", "UPDATE t SET val = 'B' WHERE id <= 2"),
            ("A", "BEGIN; INSERT INTO t VALUES (50, 'gone'); TRUNCATE t; INSERT INTO t VALUES (1, 'A'), (51, 'A'); COMMIT"),
        ]);
        m.drain_equal(&["t"]);
        m.expect_everywhere(ALL, "1A 51A");
    }
}

#[test]
fn both_truncate() {
    let m = ready(3, Capture::Native, Clock::Commit);
    m.changes(&[
        ("A", "INSERT INTO t VALUES (20, 'A early')"),
        ("B", "TRUNCATE t; INSERT INTO t VALUES (30, 'B between')"),
        ("C", "UPDATE t SET val = 'C between' WHERE id = 1"),
        ("A", "TRUNCATE t; INSERT INTO t VALUES (40, 'A late')"),
        ("C", "INSERT INTO t VALUES (50, 'C late')"),
    ]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "40A late 50C late");
}

/// Each source's rows after its own truncate, and nothing more.
#[test]
fn an_older_truncate_meets_a_newer_one_of_another_table() {
    let m = Plan::new(2).start();
    m.everywhere(&format!("{T}; CREATE TABLE u (id int PRIMARY KEY, val text); INSERT INTO u TABLE t"));
    m.sync("tables => 'public.t,public.u'");
    m.changes(&[
        ("A", "TRUNCATE t"),
        ("B", "TRUNCATE u"),
        ("B", "INSERT INTO t VALUES (10, 'B')"),
        ("A", "INSERT INTO u VALUES (10, 'A')"),
    ]);
    m.drain_equal(&["t", "u"]);
    m.expect_everywhere(ALL, "10B");
    m.expect_everywhere("SELECT coalesce(string_agg(id || val, ' ' ORDER BY id), '') FROM u", "10A");
}

/// The loser of a truncate is told like the loser of a deletion.
#[test]
fn a_row_that_loses_to_a_truncate_is_recorded() {
    let m = ready(2, Capture::Plain, Clock::Commit);
    m.changes(&[("B", "UPDATE t SET val = 'B' WHERE id = 2"), ("A", "TRUNCATE t")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "");
    assert_eq!(m.count_conflicts(r#"key = '{"id": 2}' AND winner = 'A' AND rows->'B'->>'val' = 'B'"#), 1);
}

/// Under the strategy that prefers the truncating source only what nobody else wrote is certain to be gone.
#[test]
fn strategies_decide_between_a_truncate_and_a_row() {
    for strategy in ["bucardo_source", "bucardo_target"] {
        let m = Plan::new(2).start();
        m.everywhere(T);
        m.sync(&format!("tables => 'public.t', conflict_strategy => '{strategy}'"));
        m.changes(&[("A", "TRUNCATE t"), ("B", "UPDATE t SET val = 'B' WHERE id = 2; INSERT INTO t VALUES (20, 'B')")]);
        m.drain_equal(&["t"]);
        m.expect_everywhere("SELECT count(*) FROM t WHERE val = 'start'", "0");
        if strategy == "bucardo_target" {
            m.expect_everywhere(ALL, "2B 20B");
        }
    }
}

/// Nobody wins: the row stays as it is, on each member, and travels again when somebody changes it.
#[test]
fn a_truncate_leaves_a_row_that_is_skipped() {
    let m = Plan::new(2).start();
    m.everywhere(T);
    m.sync("tables => 'public.t', conflict_strategy => 'bucardo_skip'");
    m.changes(&[("A", "TRUNCATE t"), ("B", "UPDATE t SET val = 'B' WHERE id = 2")]);
    assert_eq!(m.kick(), "good");
    let rows: Vec<String> = ["A", "B", "T"].iter().map(|name| m.on(name).one(ALL)).collect();
    assert_eq!(rows, ["", "2B", "2start"]);
    assert_eq!(m.count_conflicts("winner IS NULL AND rows->'B'->>'val' = 'B'"), 1, "{:?}", m.conflicts("public.t"));
    m.on("B").exec("UPDATE t SET val = 'B again'");
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "2B again");
    assert_eq!(m.count_conflicts("true"), 1, "decided twice: {:?}", m.conflicts("public.t"));
}

#[test]
fn a_parent_and_its_children_are_truncated_while_a_child_comes() {
    let m = Plan::new(2).start();
    m.everywhere(
        "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent); \
         INSERT INTO parent SELECT generate_series(1, 9); INSERT INTO child VALUES (1, 1)",
    );
    m.sync("tables => 'public.parent,public.child'");
    m.changes(&[
        ("A", "TRUNCATE parent CASCADE"),
        ("B", "INSERT INTO child VALUES (2, 2)"),
        ("B", "INSERT INTO parent VALUES (20); INSERT INTO child VALUES (20, 20)"),
    ]);
    m.drain_equal(&["parent", "child"]);
    m.expect_everywhere("SELECT count(*) FROM child c LEFT JOIN parent p ON p.id = c.parent WHERE p.id IS NULL", "0");
    m.expect_everywhere("SELECT count(*) FROM child WHERE id = 20", "1");
}

#[test]
fn truncates_under_load() {
    let m = Plan::new(2).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    std::thread::scope(|threads| {
        for (n, name) in m.sources.iter().enumerate() {
            let m = &m;
            threads.spawn(move || {
                let mut conn = m.on(name);
                for g in 0..400 {
                    let id = (n + 1) * 10_000 + g;
                    let _done = conn.try_query(&format!("INSERT INTO t VALUES ({id}, '{name}')"));
                    let _done = conn.try_query(&format!("UPDATE t SET val = '{name} {g}' WHERE id < 10"));
                    if g % 100 == 50 {
                        let _done = conn.try_query("TRUNCATE t");
                    }
                }
            });
        }
    });
    // These are later than every truncate.
    m.changes(&[("A", "INSERT INTO t VALUES (-1, 'A')"), ("B", "INSERT INTO t VALUES (-2, 'B')")]);
    m.settle(&["t"]);
    m.expect_everywhere("SELECT count(*) FROM t WHERE id < 0", "2");
}

/// TRUNCATE respects no snapshot: a run that began before it would bring its rows in after it, and tell that source
/// afterwards that it had them before.
#[test]
fn a_truncate_between_the_snapshot_and_the_rows_of_a_run() {
    let m = Plan::new(3).place(Place::Beside).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text); CREATE TABLE u (id int PRIMARY KEY)");
    m.sync_over(&m.dbs(), "tables => 'public.t,public.u'");
    m.control().exec("SELECT bucardo.fault_set('kid.after_gather', 'wait')");
    m.on("B").exec("INSERT INTO t VALUES (1, 'B')");
    wait_until("the run to have its snapshots", || m.control().number("SELECT bucardo.fault_hits('kid.after_gather')") > 0);
    m.on("A").exec("TRUNCATE t; INSERT INTO t VALUES (2, 'A')");
    m.control().exec("SELECT bucardo.fault_clear()");
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "2A");
    assert_eq!(m.count_conflicts("winner = 'A' AND rows->'B'->>'val' = 'B'"), 1, "{:?}", m.conflicts("public.t"));
}

/// The same the other way round: a row that an application writes where a run is about to empty the table.
#[test]
fn a_row_between_the_snapshot_and_the_truncate_of_a_run() {
    let m = Plan::new(2).place(Place::Beside).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.control().exec("SELECT bucardo.fault_set('kid.after_gather', 'wait')");
    m.on("B").exec("TRUNCATE t");
    wait_until("the run to have its snapshots", || m.control().number("SELECT bucardo.fault_hits('kid.after_gather')") > 0);
    m.on("A").exec("INSERT INTO t VALUES (100, 'A')");
    m.control().exec("SELECT bucardo.fault_clear()");
    m.settle(&["t"]);
    m.expect_everywhere(ALL, "100A");
}

/// The target was away when A's truncate was decided against B's row. The row had reached the target before, and nobody
/// has it to send when the truncate comes there at last.
#[test]
fn a_truncate_that_comes_late_takes_nothing_along_that_has_survived_it() {
    let m = Plan::new(3).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.control().exec("SELECT bucardo.pause('s')");
    m.on("A").exec("TRUNCATE t");
    m.on("B").exec("INSERT INTO t VALUES (100, 'B')");
    m.server_of("A").stop(Stop::Fast);
    m.control().exec("SELECT bucardo.resume('s')");
    for member in ["C", "T"] {
        m.wait_sql(member, "the row", "SELECT EXISTS (SELECT FROM t WHERE id = 100)");
    }
    m.server_of("T").stop(Stop::Fast);
    m.server_of("A").launch();
    for member in ["A", "B", "C"] {
        m.wait_sql(member, "the truncate and the row", "SELECT coalesce(string_agg(id || val, ' '), '') = '100B' FROM t");
    }
    m.server_of("T").launch();
    m.settle(&["t"]);
    m.expect_everywhere(ALL, "100B");
}

/// A's truncate has lost against C's row while B was away, who had that row and has replaced it: it does not contend with
/// what B has made of the row.
#[test]
fn a_truncate_that_has_lost_contends_with_nobody_who_comes_late() {
    let m = Plan::new(3).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t', conflict_strategy => 'C A B'");
    m.control().exec("SELECT bucardo.pause('s')");
    m.changes(&[("A", "TRUNCATE t; INSERT INTO t VALUES (1, 'A')"), ("C", "UPDATE t SET val = 'C'")]);
    m.server_of("A").stop(Stop::Fast);
    m.control().exec("SELECT bucardo.resume('s')");
    for member in ["B", "T"] {
        m.wait_sql(member, "what C has written", "SELECT bool_and(val = 'C') FROM t");
    }
    m.rest();
    m.on("B").exec("UPDATE t SET val = 'B'");
    m.server_of("B").stop(Stop::Fast);
    m.server_of("A").launch();
    m.control().exec("SELECT bucardo.resume('s')");
    m.wait_sql("A", "what C has written", "SELECT count(*) = 9 AND bool_and(val = 'C') FROM t");
    m.server_of("B").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT count(*) FROM t WHERE val = 'B'", "9");
    assert_eq!(m.count_conflicts("winner = 'C' AND rows ? 'A'"), 9, "{:?}", m.conflicts("public.t"));
    assert_eq!(m.count_conflicts("true"), 9, "{:?}", m.conflicts("public.t"));
}

/// The same where nobody is there any more who could send C's rows again when A's truncate comes to B.
#[test]
fn a_truncate_that_comes_late_when_those_who_had_it_are_away() {
    let m = Plan::new(3).targets(0).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t', conflict_strategy => 'C A B'");
    m.control().exec("SELECT bucardo.pause('s')");
    m.changes(&[("A", "TRUNCATE t"), ("C", "UPDATE t SET val = 'C'")]);
    m.server_of("A").stop(Stop::Fast);
    m.control().exec("SELECT bucardo.resume('s')");
    m.wait_sql("B", "what C has written", "SELECT bool_and(val = 'C') FROM t");
    m.server_of("B").stop(Stop::Fast);
    m.server_of("A").launch();
    m.wait_sql("A", "what C has written", "SELECT count(*) = 9 AND bool_and(val = 'C') FROM t");
    m.server_of("C").stop(Stop::Fast);
    m.server_of("B").launch();
    m.on("A").exec("INSERT INTO t VALUES (100, 'A')");
    m.wait_sql("B", "what A has written", "SELECT EXISTS (SELECT FROM t WHERE id = 100)");
    m.server_of("C").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT concat_ws(' ', count(*) FILTER (WHERE val = 'C'), count(*)) FROM t", "9 10");
}

/// The same where a run that was defeated keeps writers out of one table, and a truncate has come for another meanwhile.
#[test]
fn a_row_before_the_truncate_of_a_run_that_has_locked_another_table() {
    let m = Plan::new(2).targets(0).place(Place::Beside).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text); CREATE TABLE u (id int PRIMARY KEY)");
    m.sync_over(&m.dbs(), "tables => 'public.t,public.u', conflict_strategy => 'bucardo_source'");
    m.on("A").exec("INSERT INTO t VALUES (1, 'start'); INSERT INTO u VALUES (1)");
    m.settle(&["t", "u"]);
    let hits = || m.control().number("SELECT bucardo.fault_hits('kid.after_gather')");
    let before = hits();
    let mut busy = m.on("B");
    busy.exec("BEGIN; UPDATE t SET val = 'B' WHERE id = 1");
    m.on("A").exec("UPDATE t SET val = 'A' WHERE id = 1");
    wait_until("some attempts", || hits() >= before + 3);
    let locks =
        "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 't'::regclass AND mode = 'ShareRowExclusiveLock' AND NOT granted)";
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'b' AND wait_event_type = 'Lock'";
    // One transaction after the other has the row, so that the run's snapshot is always too old, until it locks the table.
    wait_until("a run that locks the table first", || {
        let mut for_the_table = false;
        wait_until("a run to wait", || {
            let seen = m.on("B").query(&format!("SELECT ({waits}) = 1, ({locks})"));
            for_the_table = seen[0][1].as_deref() == Some("t");
            seen[0][0].as_deref() == Some("t")
        });
        if for_the_table {
            return true;
        }
        let mut next = m.on("B");
        next.send("BEGIN; UPDATE t SET val = 'B' WHERE id = 1").unwrap();
        wait_until("the next one to wait behind it", || m.on("B").number(waits) == 2);
        busy.exec("COMMIT");
        next.finish().unwrap();
        busy = next;
        false
    });
    m.on("A").exec("TRUNCATE u");
    let since = m.on("A").one("SELECT clock_timestamp()");
    m.control().exec("SELECT bucardo.fault_set('kid.after_gather', 'wait')");
    let began = format!(
        "SELECT count(DISTINCT datname) = 2 FROM pg_stat_activity WHERE datname IN ('a', 'b') AND xact_start > '{since}' \
         AND (wait_event_type = 'Lock' OR state = 'idle in transaction')"
    );
    m.wait_sql("B", "an attempt that sees the truncate", &began);
    m.wait_sql("B", "it to lock the table", locks);
    let passed = hits();
    busy.exec("COMMIT");
    wait_until("the run to have its snapshots", || hits() > passed);
    m.on("B").exec("INSERT INTO u VALUES (5)");
    m.control().exec("SELECT bucardo.fault_clear()");
    m.settle(&["t", "u"]);
    m.expect_everywhere("SELECT string_agg(id::text, ' ') FROM u", "5");
    m.expect_everywhere("SELECT val FROM t", "A");
}

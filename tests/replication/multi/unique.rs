//! Secondary unique keys between sources: two rows with different keys claim one value. The strategy decides between their
//! sources; the losing row is removed everywhere and recorded whole under its own key; other tables are not held up.

use super::{Multi, Plan};
use crate::net::Capture;
use crate::wait::wait_until;

crate::for_both!(two_sources_insert_the_same_value, values_swap_across_members, a_cyclic_shift_across_members);

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, val text)";
const ALL: &str = "SELECT coalesce(string_agg(concat_ws(' ', id, u, val), ', ' ORDER BY id), '') FROM t";

/// The row with that key and that value of `val` lost to that source, and is recorded whole.
#[track_caller]
fn assert_lost(m: &Multi, key: i32, val: &str, winner: &str) {
    let whole = format!(
        "key = '{{\"id\": {key}}}' AND winner = '{winner}' AND EXISTS (SELECT FROM jsonb_each(rows) r \
         WHERE r.value->>'val' = '{val}' AND r.value->>'id' = '{key}' AND r.value ? 'u')"
    );
    let seen = m.conflicts("public.t");
    assert_eq!(m.count_conflicts(&whole), 1, "row {key} ({val}), lost to {winner}, is not recorded once; there is {seen:#?}");
}

fn two_sources_insert_the_same_value(capture: Capture) {
    let m = Plan::new(2).capture(capture).start();
    m.everywhere(&format!("{T}; CREATE TABLE other (id int PRIMARY KEY)"));
    m.sync("tables => 'public.t,public.other'");
    m.changes(&[
        ("A", "INSERT INTO t VALUES (1, 'x', 'A'), (3, 'a', 'A'); INSERT INTO other VALUES (1)"),
        ("B", "INSERT INTO t VALUES (2, 'x', 'B'), (4, 'b', 'B'); INSERT INTO other VALUES (2)"),
    ]);
    m.drain_equal(&["t", "other"]);
    m.expect_everywhere(ALL, "2 x B, 3 a A, 4 b B");
    m.expect_everywhere("SELECT count(*) FROM other", "2");
    assert_lost(&m, 1, "A", "B");
    assert_eq!(m.count_conflicts("true"), 1);
    // The value is free again for who lost it.
    m.changes(&[("B", "UPDATE t SET u = 'y' WHERE id = 2"), ("A", "INSERT INTO t VALUES (1, 'z', 'A again')")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "1 z A again, 2 y B, 3 a A, 4 b B");
}

#[test]
fn each_strategy_decides_between_the_sources() {
    for (strategy, winner, loser) in [("bucardo_source", 1, 2), ("bucardo_target", 2, 1), ("B A", 2, 1), ("A", 1, 2)] {
        let m = Plan::new(2).start().with(T, &format!("tables => 'public.t', conflict_strategy => '{strategy}'"));
        let name = |id: i32| if id == 1 { "A" } else { "B" };
        m.changes(&[("B", "INSERT INTO t VALUES (2, 'x', 'B')"), ("A", "INSERT INTO t VALUES (1, 'x', 'A')")]);
        m.drain_equal(&["t"]);
        m.expect_everywhere(ALL, &format!("{winner} x {}", name(winner)));
        assert_lost(&m, loser, name(loser), name(winner));
    }
}

#[test]
fn a_row_that_was_there_loses_its_value_to_a_later_one() {
    let m = Plan::new(2).start();
    m.everywhere(&format!("{T}; INSERT INTO t VALUES (1, 'one', 'start'), (2, 'two', 'start'), (3, 'three', 'start')"));
    m.sync("tables => 'public.t'");
    // Both give the same new value to different rows.
    m.changes(&[
        ("A", "UPDATE t SET u = 'new', val = 'A' WHERE id = 1"),
        ("B", "UPDATE t SET u = 'new', val = 'B' WHERE id = 2"),
    ]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "2 new B, 3 three start");
    assert_lost(&m, 1, "A", "B");
}

/// A row of one source clashes with two rows of the other, by two indexes.
#[test]
fn a_row_that_hits_two_rows() {
    let two = "CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, w text UNIQUE, val text)";
    let rows = "SELECT string_agg(concat_ws(' ', id, u, w, val), ', ' ORDER BY id) FROM t";
    let m = Plan::new(2).start().with(two, "tables => 'public.t'");
    m.changes(&[
        ("A", "INSERT INTO t VALUES (1, 'x', 'p', 'A'), (2, 'q', 'y', 'A'), (3, 'r', 's', 'A')"),
        ("B", "INSERT INTO t VALUES (9, 'x', 'y', 'B')"),
    ]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(rows, "3 r s A, 9 x y B");
    assert_lost(&m, 1, "A", "B");
    assert_lost(&m, 2, "A", "B");
    // The other way round: the one row that hits two is the older one.
    m.changes(&[
        ("B", "INSERT INTO t VALUES (19, 'xx', 'yy', 'B')"),
        ("A", "INSERT INTO t VALUES (11, 'xx', 'pp', 'A'), (12, 'qq', 'yy', 'A')"),
    ]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(rows, "3 r s A, 9 x y B, 11 xx pp A, 12 qq yy A");
    assert!(m.count_conflicts(r#"key = '{"id": 19}' AND winner = 'A'"#) >= 1);
}

#[test]
fn indexes_of_every_kind() {
    let kinds = [
        ("CREATE UNIQUE INDEX ON t (u) WHERE val <> 'free'", "'x'", "'x'"),
        ("CREATE UNIQUE INDEX ON t (lower(u))", "'X'", "'x'"),
        ("CREATE UNIQUE INDEX ON t (u) NULLS NOT DISTINCT", "NULL", "NULL"),
        ("CREATE UNIQUE INDEX ON t ((u || ''), (length(u))) INCLUDE (val)", "'x'", "'x'"),
        ("ALTER TABLE t ADD UNIQUE (u) DEFERRABLE INITIALLY DEFERRED", "'x'", "'x'"),
    ];
    for (index, of_a, of_b) in kinds {
        let m = Plan::new(2).start();
        m.everywhere(&format!("CREATE TABLE t (id int PRIMARY KEY, u text, val text); {index}"));
        m.sync("tables => 'public.t'");
        m.changes(&[
            ("B", &format!("INSERT INTO t VALUES (2, {of_b}, 'B'), (4, 'b', 'B')")),
            ("A", &format!("INSERT INTO t VALUES (1, {of_a}, 'A'), (3, 'a', 'A')")),
        ]);
        m.drain_equal(&["t"]);
        m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1A 3A 4B");
        assert_lost(&m, 2, "B", "A");
        assert_eq!(m.count_conflicts("true"), 1, "{index}");
    }
}

/// Rows that exclude each other by pairs: each pair is decided, and who has lost is in nobody's way any more.
#[test]
fn exclusion_constraints() {
    let kinds = [
        "EXCLUDE USING gist (u WITH &&)",
        "EXCLUDE USING gist ((int4range(lower(u), upper(u))) WITH &&, u WITH &&) WHERE (val <> 'free')",
        "EXCLUDE USING gist (u WITH &&) DEFERRABLE INITIALLY DEFERRED",
    ];
    for kind in kinds {
        let m = Plan::new(2).start();
        m.everywhere(&format!("CREATE TABLE t (id int PRIMARY KEY, u int4range, val text, {kind})"));
        m.sync("tables => 'public.t'");
        m.changes(&[
            ("B", "INSERT INTO t VALUES (2, '[5,15)', 'B'), (4, '[100,110)', 'B'), (6, NULL, 'B')"),
            ("A", "INSERT INTO t VALUES (1, '[1,6)', 'A'), (3, '[14,20)', 'A'), (5, '[110,120)', 'A'), (7, NULL, 'A')"),
        ]);
        m.drain_equal(&["t"]);
        let rows = "SELECT string_agg(id || val, ' ' ORDER BY id) FROM t";
        m.expect_everywhere(rows, "1A 3A 4B 5A 6B 7A");
        assert_lost(&m, 2, "B", "A");
        assert_eq!(m.count_conflicts("true"), 1, "{kind}");
        // What was there before loses to a later row of another source, and ranges of one source move up.
        m.changes(&[
            ("A", "UPDATE t SET u = '[50,60)' WHERE id = 1"),
            ("B", "INSERT INTO t VALUES (8, '[59,70)', 'B')"),
            ("A", "UPDATE t SET u = '[120,130)' WHERE id = 5; UPDATE t SET u = '[110,120)' WHERE id = 4"),
        ]);
        m.drain_equal(&["t"]);
        m.expect_everywhere(rows, "3A 4B 5A 6B 7A 8B");
        assert_lost(&m, 1, "A", "B");
        assert_eq!(m.count_conflicts("true"), 2, "{kind}");
    }
}

/// What the index does not hold does not clash: NULLs, and rows that a partial index leaves out.
#[test]
fn values_that_do_not_clash() {
    let m = Plan::new(2).start();
    m.everywhere(
        "CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, val text); CREATE UNIQUE INDEX ON t (val) WHERE val LIKE 'own%'",
    );
    m.sync("tables => 'public.t'");
    m.changes(&[
        ("A", "INSERT INTO t VALUES (1, NULL, 'same'), (3, 'a', 'own a')"),
        ("B", "INSERT INTO t VALUES (2, NULL, 'same'), (4, 'b', 'own b')"),
    ]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT count(*) FROM t", "4");
    assert_eq!(m.count_conflicts("true"), 0);
}

/// An index that one member alone has: the members still converge.
#[test]
fn an_index_on_one_member_only() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, u text, val text)");
    m.on("B").exec("CREATE UNIQUE INDEX ON t (u)");
    m.sync("tables => 'public.t'");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'x', 'A')"), ("B", "INSERT INTO t VALUES (2, 'x', 'B')")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "2 x B");
    assert_lost(&m, 1, "A", "B");
}

fn values_swap_across_members(capture: Capture) {
    let m = Plan::new(2).targets(2).capture(capture).start();
    m.everywhere(&format!("{T}; INSERT INTO t SELECT g, 'u' || g, 'start' FROM generate_series(1, 20) g"));
    m.sync("tables => 'public.t'");
    let swap = |x: i32, y: i32, val: &str| {
        format!(
            "BEGIN; UPDATE t SET u = NULL WHERE id = {x}; UPDATE t SET u = 'u{x}', val = '{val}' WHERE id = {y}; \
             UPDATE t SET u = 'u{y}', val = '{val}' WHERE id = {x}; COMMIT"
        )
    };
    m.changes(&[("A", &swap(1, 2, "A")), ("B", &swap(3, 4, "B")), ("A", &swap(5, 6, "A")), ("A", &swap(19, 20, "A"))]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(
        "SELECT string_agg(u, ' ' ORDER BY id) FROM t WHERE id IN (1, 2, 3, 4, 5, 6, 19, 20)",
        "u2 u1 u4 u3 u6 u5 u20 u19",
    );
    assert_eq!(m.count_conflicts("true"), 0, "disjoint swaps are no conflicts");
    // Both swap the same two rows: the same outcome on both.
    m.changes(&[("A", &swap(7, 8, "A")), ("B", &swap(7, 8, "B"))]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT string_agg(u || val, ' ' ORDER BY id) FROM t WHERE id IN (7, 8)", "u8B u7B");
    // Overlapping swaps: whatever is left, it is valid and the same everywhere.
    m.changes(&[("A", &swap(9, 10, "A")), ("B", &swap(10, 11, "B"))]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT count(*) - count(DISTINCT u) FROM t", "0");
    assert!(m.count_conflicts(r#"key = '{"id": 10}'"#) >= 1);
}

fn a_cyclic_shift_across_members(capture: Capture) {
    let m = Plan::new(3).capture(capture).start();
    m.everywhere(&format!("{T}; INSERT INTO t SELECT g, 'u' || g, 'start' FROM generate_series(1, 9) g"));
    m.sync("tables => 'public.t'");
    // On A: 1 -> 2 -> 3 -> 1 in one transaction.
    m.on("A").exec(
        "BEGIN; UPDATE t SET u = NULL WHERE id <= 3; UPDATE t SET val = 'A', u = 'u' || CASE id WHEN 1 THEN 2 WHEN 2 THEN 3 ELSE 1 END WHERE id <= 3; COMMIT",
    );
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT string_agg(u, ' ' ORDER BY id) FROM t WHERE id <= 3", "u2 u3 u1");
    // Each source gives one row's value up and takes one that another source has just given up: no clash in the end.
    m.changes(&[
        ("A", "UPDATE t SET u = 'free 4', val = 'A' WHERE id = 4"),
        ("B", "UPDATE t SET u = 'free 5', val = 'B' WHERE id = 5"),
        ("C", "UPDATE t SET u = 'free 6', val = 'C' WHERE id = 6"),
    ]);
    m.drain_equal(&["t"]);
    m.changes(&[
        ("A", "UPDATE t SET u = 'u5' WHERE id = 4"),
        ("B", "UPDATE t SET u = 'u6' WHERE id = 5"),
        ("C", "UPDATE t SET u = 'u4' WHERE id = 6"),
    ]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT string_agg(u, ' ' ORDER BY id) FROM t WHERE id BETWEEN 4 AND 6", "u5 u6 u4");
    assert_eq!(m.count_conflicts("true"), 0);
}

/// The value moves on: A gives it up, and B, which has heard of that, takes it. No conflict, in any order of arrival.
#[test]
fn a_value_handed_on_is_no_conflict() {
    let m = Plan::new(2).start();
    m.everywhere(&format!("{T}; INSERT INTO t VALUES (1, 'x', 'start'), (2, 'y', 'start')"));
    m.sync("tables => 'public.t'");
    m.on("A").exec("DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (3, 'x', 'A')");
    m.drain_equal(&["t"]);
    m.on("B").exec("UPDATE t SET u = 'z' WHERE id = 3; UPDATE t SET u = 'x' WHERE id = 2");
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "2 x start, 3 z A");
    assert_eq!(m.count_conflicts("true"), 0);
}

/// A deferrable index refuses nothing while rows are applied: what an application stores at the same time must be seen.
#[test]
fn a_deferrable_index_doubles_nothing_between_sources() {
    let kinds = [
        ("id int PRIMARY KEY DEFERRABLE, u text, val text", "(1, 'x', 'A')", "(1, 'x', 'B')", "count(DISTINCT id)"),
        ("id int PRIMARY KEY, u text UNIQUE DEFERRABLE, val text", "(1, 'x', 'A')", "(2, 'x', 'B')", "count(DISTINCT u)"),
        (
            "id int PRIMARY KEY, u text, val text, EXCLUDE USING btree (u WITH =) DEFERRABLE",
            "(1, 'x', 'A')",
            "(2, 'x', 'B')",
            "count(DISTINCT u)",
        ),
    ];
    for (columns, of_a, of_b, distinct) in kinds {
        let m = Plan::new(2).start();
        m.everywhere(&format!("CREATE TABLE t ({columns})"));
        m.sync_over(&m.dbs(), "tables => 'public.t'");
        m.wait_served();
        let mut other = m.on("B");
        other.exec(&format!("BEGIN; INSERT INTO t VALUES {of_b}"));
        m.on("A").exec(&format!("INSERT INTO t VALUES {of_a}"));
        wait_until("the run to be over, or to wait", || {
            m.pending() == 0 || m.on("B").number("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0
        });
        other.exec("COMMIT");
        m.settle(&["t"]);
        m.expect_everywhere(&format!("SELECT count(*) || ' ' || {distinct} FROM t"), "1 1");
        assert_eq!(m.count_conflicts("true"), 1, "{columns}");
    }
}

/// A target's own row gives way to one that a source sends, whatever schema the operators of its unique index are in.
#[test]
fn a_row_of_a_target_clashes_by_the_operators_of_an_extension() {
    let m = Plan::new(2).start().with(
        "CREATE SCHEMA \"Odd Schema\"; CREATE EXTENSION ltree; CREATE EXTENSION hstore; CREATE EXTENSION citext SCHEMA \"Odd Schema\"; \
         CREATE TABLE l (id int PRIMARY KEY, u ltree UNIQUE); CREATE TABLE h (id int PRIMARY KEY, u hstore UNIQUE); \
         CREATE TABLE c (id int PRIMARY KEY, u \"Odd Schema\".citext UNIQUE)",
        "tables => 'public.l,public.h,public.c'",
    );
    m.on("T").exec("INSERT INTO l VALUES (90, 'a.b'); INSERT INTO h VALUES (90, 'a=>1'); INSERT INTO c VALUES (90, 'word')");
    m.changes(&[
        ("A", "INSERT INTO l VALUES (1, 'a.b'); INSERT INTO h VALUES (1, 'a=>1'); INSERT INTO c VALUES (1, 'WORD')"),
        ("B", "INSERT INTO l VALUES (2, 'a'); INSERT INTO h VALUES (2, 'a=>2'); INSERT INTO c VALUES (2, 'b')"),
    ]);
    m.drain_equal(&["l", "h", "c"]);
    for table in ["l", "h", "c"] {
        m.expect_everywhere(&format!("SELECT string_agg(id::text, ' ' ORDER BY id) FROM {table}"), "1 2");
    }
    assert_eq!(m.count_conflicts(r#"key = '{"id": 90}' AND winner = 'A'"#), 3);
}

/// Values that are equal only by the index's own collation.
#[test]
fn an_index_with_a_collation_of_its_own() {
    let m = Plan::new(2).start().with(
        "CREATE COLLATION anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
         CREATE TABLE t (id int PRIMARY KEY, u text, val text); CREATE UNIQUE INDEX ON t (u COLLATE anycase); \
         CREATE TABLE k (id text PRIMARY KEY, val text); CREATE UNIQUE INDEX ON k (id COLLATE anycase)",
        "tables => 'public.t,public.k'",
    );
    m.on("T").exec("INSERT INTO t VALUES (90, 'own', 'T')");
    m.changes(&[
        ("A", "INSERT INTO t VALUES (1, 'X', 'A'), (3, 'OWN', 'A'); INSERT INTO k VALUES ('X', 'A')"),
        ("B", "INSERT INTO t VALUES (2, 'x', 'B'); INSERT INTO k VALUES ('x', 'B')"),
    ]);
    m.drain_equal(&["t", "k"]);
    m.expect_everywhere(ALL, "2 x B, 3 OWN A");
    m.expect_everywhere("SELECT string_agg(id || val, ' ') FROM k", "xB");
    assert_lost(&m, 1, "A", "B");
}

/// What a deferrable index needs is needed only where something is written.
#[test]
fn an_idle_table_with_a_deferrable_index_is_not_locked() {
    let m = Plan::new(2).settings("bucardo.purge_interval = '1h'").start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text); CREATE TABLE d (id int PRIMARY KEY, u text UNIQUE DEFERRABLE)");
    m.sync("tables => 'public.t,public.d'");
    let mut busy = m.on("A");
    busy.exec("BEGIN; INSERT INTO d VALUES (1, 'one')");
    m.on("B").exec("INSERT INTO t VALUES (1, 'B')");
    let mut other = m.on("A");
    other.exec("SET lock_timeout = '500ms'");
    std::thread::scope(|threads| {
        let run = threads.spawn(|| m.kick());
        for id in 2..50 {
            other.exec(&format!("BEGIN; INSERT INTO d VALUES ({id}, '{id}'); ROLLBACK; SELECT pg_sleep(0.005)"));
        }
        assert_eq!(run.join().expect("a run"), "good");
    });
    m.expect_everywhere("SELECT string_agg(id || val, ' ') FROM t", "1B");
    busy.exec("COMMIT");
    m.drain_equal(&["t", "d"]);
    m.expect_everywhere("SELECT string_agg(id || u, ' ') FROM d", "1one");
}

//! Several sources without any conflict: changes of each reach everybody, once, and nobody is asked twice.
//!
//! If these fail, no scenario about conflicts means anything.

use super::{Clock, Place, Plan};
use crate::net::Capture;
use crate::wait::wait_until;

crate::for_both!(changes_of_each_source_reach_everybody, two_sources_only, all_sources_write_at_once);

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, val text)";

fn changes_of_each_source_reach_everybody(capture: Capture) {
    let m = Plan::new(3).targets(2).capture(capture).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    for (n, name) in m.sources.iter().enumerate() {
        let base = n * 1000;
        m.on(name).exec(&format!("INSERT INTO t SELECT {base} + g, '{name} ' || g FROM generate_series(1, 300) g"));
    }
    m.settle(&["t"]);
    assert_eq!(m.on("T").number("SELECT count(*) FROM t"), 900);
    // Each now changes what another one made.
    m.on("A").exec("UPDATE t SET val = 'changed by A' WHERE id BETWEEN 1001 AND 1100");
    m.on("B").exec("DELETE FROM t WHERE id BETWEEN 2001 AND 2100");
    m.on("C").exec("UPDATE t SET id = id + 5000 WHERE id BETWEEN 1 AND 100");
    m.settle(&["t"]);
    assert_eq!(m.on("T").number("SELECT count(*) FROM t"), 800);
    assert_eq!(m.on("U").number("SELECT count(*) FROM t WHERE val = 'changed by A'"), 100);
    assert_eq!(m.on("U").number("SELECT min(id) FROM t WHERE val LIKE 'A %'"), 101);
    assert_eq!(m.count_conflicts("true"), 0, "nothing was changed on two sources");
}

fn two_sources_only(capture: Capture) {
    let m = Plan::new(2).targets(0).capture(capture).clock(Clock::Statement).start().with(T, "tables => 'public.t'");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'A')"), ("B", "INSERT INTO t VALUES (2, 'B')")]);
    assert_eq!(m.kick(), "good");
    m.assert_equal("t");
    assert_eq!(m.kick(), "empty", "what arrived from a source is no change to send back");
    m.changes(&[("A", "DELETE FROM t WHERE id = 2"), ("B", "UPDATE t SET val = 'B' WHERE id = 1")]);
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT string_agg(id || val, ',' ORDER BY id) FROM t", "1B");
    assert_eq!(m.kick(), "empty");
    assert_eq!(m.pending(), 0);
    assert_eq!(m.count_conflicts("true"), 0);
}

/// A publication that publishes deletes refuses them on tables without a replica identity, also on ours.
#[test]
fn everything_is_published() {
    let m = Plan::new(2).start().with(T, "tables => 'public.t'");
    m.everywhere("CREATE PUBLICATION p FOR ALL TABLES");
    for round in 0..2 {
        m.changes(&[
            ("A", "INSERT INTO t VALUES (1, 'A') ON CONFLICT (id) DO UPDATE SET val = 'A'"),
            ("B", "DELETE FROM t WHERE id = 1"),
        ]);
        m.changes(&[
            ("B", &format!("INSERT INTO t VALUES (1, 'B{round}')")),
            ("A", "INSERT INTO t VALUES (1, 'A') ON CONFLICT DO NOTHING"),
        ]);
        assert_eq!(m.kick(), "good");
        m.assert_equal("t");
    }
    m.control().exec("SELECT bucardo.purge()");
}

/// Each run writes a version of what its source knows of how far everybody was served; under an old snapshot all of them stay.
#[test]
fn an_old_snapshot_does_not_keep_what_runs_have_noted() {
    let m = Plan::new(2).targets(1).settings("bucardo.purge_interval = '1h'").start().with(T, "tables => 'public.t'");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'A')"), ("B", "INSERT INTO t VALUES (2, 'B')")]);
    assert_eq!(m.kick(), "good");
    let mut old = m.on("A");
    old.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1");
    let places = [("capture_track", "served"), ("capture_progress", "run")];
    let all = |table: &str| m.on("A").one(&format!("SELECT string_agg(t::text, ';' ORDER BY member) FROM bucardo.{table} t"));
    let size = |table: &str| m.on("A").number(&format!("SELECT pg_relation_size('bucardo.{table}')"));
    for (table, column) in places {
        let before = all(table);
        let again = format!("UPDATE bucardo.{table} SET {column} = {column};");
        m.on("A").exec(&again.repeat(2000));
        assert!(size(table) > 128 * 1024, "{table}: {}", size(table));
        // A purge gives way to whoever reads the table just then.
        wait_until("the table to be small", || {
            m.control().exec("SELECT bucardo.purge()");
            size(table) < 20_000
        });
        assert_eq!(all(table), before);
    }
    m.changes(&[("A", "UPDATE t SET val = 'new' WHERE id = 2"), ("B", "UPDATE t SET val = 'new' WHERE id = 1")]);
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT string_agg(id || val, ',' ORDER BY id) FROM t", "1new,2new");
    assert_eq!((m.pending(), m.count_conflicts("true")), (0, 0));
    old.exec("COMMIT");
}

#[test]
fn a_column_that_one_member_lacks_is_named_and_the_others_go_on() {
    let m = Plan::new(2).targets(1).start().with(T, "tables => 'public.t'");
    let add = "ALTER TABLE t ADD COLUMN more int";
    ["A", "B"].iter().for_each(|name| m.on(name).exec(add));
    m.on("A").exec("INSERT INTO t VALUES (1, 'x', 2)");
    let error = m.try_kick().expect_err("T lacks a column");
    assert!(error.message.contains("db \"T\"") && error.message.contains("column \"more\" is missing"), "{error}");
    assert_eq!(m.on("B").number("SELECT more FROM t"), 2);
    m.on("T").exec(add);
    // The master may have tried again by itself.
    assert!(matches!(m.kick().as_str(), "good" | "empty"));
    m.assert_equal("t");
}

#[test]
fn sources_on_servers_of_their_own() {
    let m = Plan::new(3).place(Place::Apart).start().with(T, "tables => 'public.t'");
    m.changes(&[
        ("A", "INSERT INTO t SELECT g, 'A' FROM generate_series(1, 50) g"),
        ("B", "INSERT INTO t SELECT g, 'B' FROM generate_series(51, 100) g"),
        ("C", "INSERT INTO t SELECT g, 'C' FROM generate_series(101, 150) g"),
    ]);
    assert_eq!(m.kick(), "good");
    m.assert_equal("t");
    assert_eq!(m.on("T").number("SELECT count(*) FROM t"), 150);
    assert_eq!(m.kick(), "empty");
}

#[test]
fn counts_are_summed_over_members_and_pending_names_each_source() {
    let m = Plan::new(3).start().with(T, "tables => 'public.t'");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'A'), (2, 'A')"), ("B", "INSERT INTO t VALUES (3, 'B')")]);
    let pending = "SELECT string_agg(source || changes, ' ' ORDER BY source) FROM bucardo.pending('s')";
    assert_eq!(m.control().one(pending), "A2 B1");
    assert_eq!(m.kick(), "good");
    let counts = "SELECT upserts || '/' || deletes || '/' || conflicts FROM bucardo.status WHERE sync = 's'";
    assert_eq!(m.control().one(counts), "9/0/0", "two rows and one, to three members each");
    m.on("C").exec("DELETE FROM t WHERE id = 1");
    assert_eq!(m.kick(), "good");
    assert_eq!(m.control().one(counts), "0/3/0");
    assert_eq!(m.control().maybe(pending), None);
}

/// Disjoint keys, written by all sources at once while runs go by themselves.
fn all_sources_write_at_once(capture: Capture) {
    let m = Plan::new(3).capture(capture).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    std::thread::scope(|threads| {
        for (n, name) in m.sources.iter().enumerate() {
            let m = &m;
            threads.spawn(move || {
                let mut conn = m.on(name);
                for g in 0..400 {
                    let id = n * 10_000 + g;
                    conn.exec(&format!("INSERT INTO t VALUES ({id}, '{name}')"));
                    if g % 4 == 3 {
                        conn.exec(&format!("UPDATE t SET val = 'x' WHERE id = {id} - 1; DELETE FROM t WHERE id = {id} - 2"));
                    }
                }
            });
        }
    });
    m.settle(&["t"]);
    assert_eq!(m.on("T").number("SELECT count(*) FROM t"), 900);
    assert_eq!(m.count_conflicts("true"), 0);
}

#[test]
fn a_reader_of_any_member_sees_all_of_a_run_or_nothing() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text); CREATE TABLE u (id int PRIMARY KEY, val text)");
    m.sync_over(&m.dbs(), "tables => 'public.t,public.u'");
    let last = 150;
    std::thread::scope(|threads| {
        for (name, base) in [("A", 0), ("B", 100_000)] {
            let m = &m;
            threads.spawn(move || {
                let mut conn = m.on(name);
                for id in base + 1..=base + last {
                    conn.exec(&format!("BEGIN; INSERT INTO t VALUES ({id}, 'x'); INSERT INTO u VALUES ({id}, 'x'); COMMIT"));
                }
            });
        }
        let mut reader = m.on("T");
        crate::wait::wait_until("all pairs to arrive", || {
            let row = &reader.query("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)")[0];
            assert_eq!(row[0], row[1], "one table ahead of the other");
            row[0].as_deref() == Some("300")
        });
    });
    m.settle(&["t", "u"]);
}

/// As between one source and its targets: a few rows are held together, unless they are wide.
#[test]
fn a_few_wide_rows_of_several_sources() {
    let m = Plan::new(2).start().with(
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text); CREATE TABLE u (id int PRIMARY KEY, v text)",
        "tables => 'public.t,public.u'",
    );
    m.on("A").exec("INSERT INTO t SELECT g, g, 'small' FROM generate_series(1, 80) g");
    m.drain_equal(&["t", "u"]);
    let wide = "repeat(id || ' wide ', 500000)";
    m.changes(&[
        ("A", &format!("UPDATE t SET v = {wide}, n = 1 WHERE id <= 40; INSERT INTO u VALUES (1, 'A')")),
        (
            "B",
            "UPDATE t SET v = 'B', n = 2 WHERE id BETWEEN 40 AND 60; DELETE FROM t WHERE id = 61; INSERT INTO u VALUES (2, 'B')",
        ),
    ]);
    m.drain_equal(&["t", "u"]);
    m.expect_everywhere("SELECT count(*) || ' ' || sum(n) FILTER (WHERE id <= 60) FROM t", "79 81");
    assert_eq!(m.count_conflicts("winner = 'B'"), 1);
    assert_eq!(m.count_conflicts("true"), 1);
    assert!(m.kid_memory() < 200_000, "a kid has taken {} kB", m.kid_memory());
}

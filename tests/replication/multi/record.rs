//! What `bucardo.conflict` holds: one row per decision, with the key and every contender's row as they were, and nothing
//! for what was no conflict. The strategies themselves are looked at in `matrix` and `strategy`.

use super::{Multi, Plan};
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, val text)";

fn pair(ddl: &str, tables: &str) -> Multi {
    Plan::new(2).start().with(ddl, &format!("tables => '{tables}'"))
}

#[test]
fn rows_are_recorded_as_by_to_jsonb() {
    let m = pair(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE \"Odd Name\" (\"Key\" int PRIMARY KEY, n numeric(12,4), d timestamptz, \
         a int[], j jsonb, b bytea, f float8, m mood, dropped int, i interval, s text); ALTER TABLE \"Odd Name\" DROP COLUMN dropped",
        "public.\"Odd Name\"",
    );
    let insert = |n: &str, s: &str| {
        format!(
            "INSERT INTO \"Odd Name\" VALUES (1, {n}, '2026-05-06 07:08:09.123456+02', '{{1,NULL,3}}', '{{\"k\": [1, 2.50]}}', '\\x00ff', \
             0.1, 'ok', '1 mon 2 days 03:04:05', {s})"
        )
    };
    m.on("A").exec(&insert("1.5", "E'tab\\t \"quote\" \\\\ \u{e4}\u{1f600}'"));
    m.on("B").exec(&insert("NULL", "NULL"));
    let row = "SELECT to_jsonb(t) FROM \"Odd Name\" t";
    let wanted = format!(r#"{{"A": {}, "B": {}}}"#, m.on("A").one(row), m.on("B").one(row));
    assert_eq!(m.kick(), "good");
    m.assert_equal("\"Odd Name\"");
    let (mut control, relation) = (m.control(), "relation IN ('public.\"Odd Name\"', 'public.Odd Name')");
    let same = format!("SELECT rows = {}::jsonb FROM bucardo.conflict WHERE {relation}", crate::compare::literal(&wanted));
    assert_eq!(control.one(&same), "t", "{}\nwanted {wanted}", control.one("SELECT rows FROM bucardo.conflict"));
    assert_eq!(control.one("SELECT key FROM bucardo.conflict"), r#"{"Key": 1}"#);
}

#[test]
fn a_deletion_is_recorded_as_null() {
    let m = pair(
        "CREATE TABLE t (id int PRIMARY KEY, val text); INSERT INTO t VALUES (1, 'start'), (2, 'start'), (3, 'start')",
        "public.t",
    );
    m.changes(&[
        ("A", "DELETE FROM t WHERE id = 1"),
        ("B", "UPDATE t SET val = 'B' WHERE id <= 2"),
        ("A", "DELETE FROM t WHERE id = 2"),
        ("B", "DELETE FROM t WHERE id = 3"),
        ("A", "DELETE FROM t WHERE id = 3"),
    ]);
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT string_agg(id || val, ' ') FROM t", "1B");
    assert_eq!(
        m.conflicts("public.t"),
        [
            r#"{"id": 1}|bucardo_latest|B|{"A": null, "B": {"id": 1, "val": "B"}}"#,
            r#"{"id": 2}|bucardo_latest|A|{"A": null, "B": {"id": 2, "val": "B"}}"#
        ]
    );
    assert_eq!(m.counted(), 2);
}

#[test]
fn each_conflict_is_decided_in_one_run_and_belongs_to_it() {
    let m = Plan::new(3).start().with(T, "tables => 'public.t'");
    for round in 1..=3 {
        for name in &m.sources {
            m.on(name).exec(&format!("INSERT INTO t VALUES ({round}, '{name}') ON CONFLICT (id) DO NOTHING"));
        }
        assert_eq!(m.kick(), "good");
        assert_eq!(m.kick(), "empty");
    }
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1C 2C 3C");
    let joined = "SELECT count(DISTINCT c.run) || ' ' || count(*) || ' ' || bool_and(r.sync = 's' AND c.sync = 's' AND r.state = 'good' AND r.conflicts = 1 \
                  AND c.decided_at BETWEEN r.started - interval '1 min' AND r.ended + interval '1 min') FROM bucardo.conflict c JOIN bucardo.syncrun r USING (run)";
    assert_eq!(m.control().one(joined), "3 3 true");
    assert_eq!(m.control().number("SELECT count(*) FROM bucardo.conflict"), 3);
}

/// The same value written by both is still a change of the same row by both; whoever wins, nothing is lost.
#[test]
fn equal_changes_converge() {
    let m = pair(T, "public.t");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'same')"), ("B", "INSERT INTO t VALUES (1, 'same')")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT val FROM t", "same");
    assert!(m.count_conflicts("true") <= 1);
}

#[test]
fn tables_of_one_name_in_two_schemas_are_told_apart() {
    let m = pair(
        "CREATE SCHEMA x; CREATE TABLE x.t (id int PRIMARY KEY, val text); CREATE TABLE t (id int PRIMARY KEY, val text)",
        "public.t,x.t",
    );
    m.changes(&[
        ("A", "INSERT INTO t VALUES (1, 'A'); INSERT INTO x.t VALUES (2, 'A')"),
        ("B", "INSERT INTO x.t VALUES (2, 'B')"),
        ("B", "INSERT INTO t VALUES (3, 'B')"),
    ]);
    assert_eq!(m.kick(), "good");
    assert_eq!(m.conflicts("public.t"), [""; 0]);
    assert_eq!(m.conflicts("x.t"), [r#"{"id": 2}|bucardo_latest|B|{"A": {"id": 2, "val": "A"}, "B": {"id": 2, "val": "B"}}"#]);
    m.drain_equal(&["t", "x.t"]);
}

#[test]
fn old_decisions_are_pruned() {
    let m = pair(T, "public.t");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'A')"), ("B", "INSERT INTO t VALUES (1, 'B')")]);
    assert_eq!(m.kick(), "good");
    let mut control = m.control();
    assert_eq!(control.number("SELECT count(*) FROM bucardo.conflict"), 1);
    // What the status says of the last run, and of the last good one, stays true however old they are.
    m.changes(&[("A", "INSERT INTO t VALUES (2, 'A')")]);
    assert_eq!(m.kick(), "good");
    assert_eq!(m.kick(), "empty");
    assert_eq!(m.kick(), "empty");
    control.exec("ALTER SYSTEM SET bucardo.history_retention = '1s'");
    control.exec("ALTER SYSTEM SET bucardo.purge_interval = '1s'");
    control.exec("SELECT pg_reload_conf()");
    wait_until("the decision to be pruned", || control.number("SELECT count(*) FROM bucardo.conflict") == 0);
    let runs = "SELECT string_agg(state, ' ' ORDER BY run) FROM bucardo.syncrun WHERE sync = 's'";
    wait_until("the runs to be pruned", || control.one(runs).len() < 20);
    assert_eq!(control.one(runs), "good empty");
    let status = "SELECT state || ' ' || (last_good IS NOT NULL) || ' ' || upserts FROM bucardo.status WHERE sync = 's'";
    assert_eq!(control.one(status), "empty true 2");
}

#[test]
fn rows_of_decisions_are_not_for_everybody() {
    let m = pair(T, "public.t");
    m.control().exec("CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher; GRANT USAGE ON SCHEMA bucardo TO watcher");
    let mut watcher = m.servers[0].connect_as(crate::net::CONTROL, "watcher");
    watcher.exec("SELECT * FROM bucardo.status");
    watcher.expect_error("SELECT rows FROM bucardo.conflict", "42501");
}

/// Changes of a run that failed are decided by the run that succeeds, and recorded once.
#[test]
fn a_run_that_failed_records_nothing() {
    let m = pair("CREATE TABLE t (id int PRIMARY KEY, val text)", "public.t");
    m.on("B").exec("ALTER TABLE t ADD CONSTRAINT short CHECK (length(val) < 5)");
    m.changes(&[("B", "INSERT INTO t VALUES (1, 'B')"), ("A", "INSERT INTO t VALUES (1, 'much longer')")]);
    m.try_kick().expect_err("B refuses the row that won");
    m.on("B").exec("ALTER TABLE t DROP CONSTRAINT short");
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT val FROM t", "much longer");
    assert_eq!(
        m.conflicts("public.t"),
        [r#"{"id": 1}|bucardo_latest|A|{"A": {"id": 1, "val": "much longer"}, "B": {"id": 1, "val": "B"}}"#]
    );
}

/// JSON that jsonb does not take: the decision stands, and what can be recorded of it is.
#[test]
fn rows_that_are_no_jsonb_are_recorded_by_their_keys() {
    let m = pair("CREATE TABLE t (id int PRIMARY KEY, doc json, val text)", "public.t");
    let rows = |val: &str| {
        format!(
            "INSERT INTO t VALUES (1, '{{\"a\": \"\\u0000\"}}', '{val}'), (2, '{{\"a\": 1e400000}}', '{val}'), (3, '[1]', '{val}')"
        )
    };
    m.changes(&[("A", &rows("A")), ("B", &rows("B")), ("B", "UPDATE t SET doc = '{}' WHERE id = 2")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1B 2B 3B");
    let unfit = |id: i32| format!(r#"{{"id": {id}, "bucardo_image": "not jsonb"}}"#);
    assert_eq!(
        m.conflicts("public.t"),
        [
            format!(r#"{{"id": 1}}|bucardo_latest|B|{{"A": {0}, "B": {0}}}"#, unfit(1)),
            format!(r#"{{"id": 2}}|bucardo_latest|B|{{"A": {}, "B": {{"id": 2, "doc": {{}}, "val": "B"}}}}"#, unfit(2)),
            r#"{"id": 3}|bucardo_latest|B|{"A": {"id": 3, "doc": [1], "val": "A"}, "B": {"id": 3, "doc": [1], "val": "B"}}"#
                .to_string(),
        ]
    );
}

//! The strategies beyond the matrix: what "latest" is measured on, all tables together, chance, abort, names that did not
//! change the row, and which strategy goes first. The plain cases of each stand in `matrix`.

use super::{Clock, Multi, Plan};

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, val text)";

fn pair(clock: Clock, strategy: &str) -> Multi {
    Plan::new(2).clock(clock).start().with(T, &format!("tables => 'public.t', conflict_strategy => '{strategy}'"))
}

/// One transaction makes its change first and commits last.
fn overtaken(clock: Clock, winner: &str) {
    let m = pair(clock, "bucardo_latest");
    let mut early = m.on("A");
    early.exec("BEGIN; INSERT INTO t VALUES (1, 'A')");
    m.on("B").exec("INSERT INTO t VALUES (1, 'B')");
    early.exec("COMMIT");
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT val FROM t", winner);
    let record = format!(r#"{{"id": 1}}|bucardo_latest|{winner}|{{"A": {{"id": 1, "val": "A"}}, "B": {{"id": 1, "val": "B"}}}}"#);
    assert_eq!(m.conflicts("public.t"), [record]);
}

#[test]
fn the_commit_counts_where_its_time_is_kept() {
    overtaken(Clock::Commit, "A");
}

#[test]
fn the_statement_counts_where_it_is_not() {
    overtaken(Clock::Statement, "B");
}

/// A transaction that began long ago changes the row now: its begin counts nowhere.
#[test]
fn the_begin_of_a_transaction_never_counts() {
    for clock in [Clock::Commit, Clock::Statement] {
        let m = pair(clock, "bucardo_latest");
        let mut old = m.on("A");
        old.exec("BEGIN; SELECT now()");
        m.on("B").exec("INSERT INTO t VALUES (1, 'B')");
        old.exec("INSERT INTO t VALUES (1, 'A'); COMMIT");
        assert_eq!(m.kick(), "good");
        m.expect_everywhere("SELECT val FROM t", "A");
    }
}

#[test]
fn latest_is_judged_by_the_row_and_not_by_the_table() {
    for clock in [Clock::Commit, Clock::Statement] {
        let m = pair(clock, "bucardo_latest");
        m.changes(&[
            ("A", "INSERT INTO t VALUES (1, 'A'), (2, 'A')"),
            ("B", "INSERT INTO t VALUES (1, 'B')"),
            // A changes the table again, but not that row.
            ("A", "INSERT INTO t VALUES (3, 'A'); UPDATE t SET val = 'A again' WHERE id = 2"),
        ]);
        assert_eq!(m.kick(), "good");
        m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1B 2A again 3A");
        assert_eq!(m.counted(), 1);
    }
}

#[test]
fn what_was_served_before_does_not_count() {
    let m = pair(Clock::Commit, "bucardo_latest");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'A')"), ("B", "INSERT INTO t VALUES (1, 'B')")]);
    m.drain_equal(&["t"]);
    // A change that loses, and then one without a rival: the old decision has no say in the new one.
    m.changes(&[("A", "UPDATE t SET val = 'A2'")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT val FROM t", "A2");
    m.changes(&[("B", "UPDATE t SET val = 'B3'"), ("A", "UPDATE t SET val = 'A3'")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT val FROM t", "A3");
    assert_eq!(m.count_conflicts("true"), 2);
}

/// Several changes of the row by one source: its last one counts.
#[test]
fn the_last_of_several_changes_counts() {
    for clock in [Clock::Commit, Clock::Statement] {
        let m = pair(clock, "bucardo_latest");
        m.changes(&[
            ("A", "INSERT INTO t VALUES (1, 'A'), (2, 'A')"),
            ("B", "INSERT INTO t VALUES (1, 'B'), (2, 'B')"),
            ("A", "UPDATE t SET val = 'A2' WHERE id = 1"),
            ("A", "UPDATE t SET val = 'A3' WHERE id = 2"),
            ("B", "DELETE FROM t WHERE id = 2"),
        ]);
        assert_eq!(m.kick(), "good");
        m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1A2");
    }
}

#[test]
fn latest_of_all_tables_is_one_answer_for_the_run() {
    for clock in [Clock::Commit, Clock::Statement] {
        let m = Plan::new(2).clock(clock).start();
        m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text); CREATE TABLE u (id int PRIMARY KEY, val text)");
        m.sync("tables => 'public.t,public.u', conflict_strategy => 'bucardo_latest_all_tables'");
        m.changes(&[
            ("A", "INSERT INTO t VALUES (1, 'A'); INSERT INTO u VALUES (1, 'A')"),
            ("B", "INSERT INTO t VALUES (1, 'B'); INSERT INTO u VALUES (1, 'B')"),
            ("A", "INSERT INTO u VALUES (2, 'A')"),
        ]);
        assert_eq!(m.kick(), "good");
        m.expect_everywhere("SELECT val FROM t", "A");
        m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM u", "1A 2A");
        assert_eq!(m.count_conflicts("winner = 'A' AND strategy = 'bucardo_latest_all_tables'"), 2);
        assert_eq!(m.count_conflicts("true"), 2);
        m.changes(&[("A", "UPDATE t SET val = 'A2'"), ("B", "UPDATE t SET val = 'B2'"), ("A", "SELECT 1")]);
        assert_eq!(m.kick(), "good");
        m.expect_everywhere("SELECT val FROM t", "B2");
    }
}

#[test]
fn chance_is_even() {
    let m = Plan::new(3).start().with(T, "tables => 'public.t', conflict_strategy => 'bucardo_random'");
    for name in &m.sources {
        m.on(name).exec(&format!("INSERT INTO t SELECT g, '{name}' FROM generate_series(1, 900) g"));
    }
    assert_eq!(m.kick(), "good");
    m.assert_equal("t");
    assert_eq!(m.counted(), 900);
    for name in &m.sources {
        let won = m.on("T").number(&format!("SELECT count(*) FROM t WHERE val = '{name}'"));
        assert_eq!(m.count_conflicts(&format!("winner = '{name}'")), won);
        // 300 are expected, with a deviation of 14.
        assert!((180..420).contains(&won), "{name} won {won} of 900");
    }
}

/// Where none of those named changed the row, the first named one's row goes to all, as it is.
#[test]
fn a_name_that_did_not_change_the_row() {
    let m = Plan::new(3).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text); INSERT INTO t VALUES (1, 'start')");
    m.sync("tables => 'public.t', conflict_strategy => 'C'");
    m.changes(&[
        ("A", "UPDATE t SET val = 'A'; INSERT INTO t VALUES (2, 'A'), (3, 'A')"),
        ("B", "UPDATE t SET val = 'B'; INSERT INTO t VALUES (2, 'B'), (3, 'B')"),
        ("C", "INSERT INTO t VALUES (3, 'C')"),
    ]);
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1start 3C");
    assert_eq!(m.count_conflicts("winner = 'C' AND strategy = 'C'"), 3);
    let losers = r#"rows @> '{"A": {"id": 1, "val": "A"}, "B": {"id": 1, "val": "B"}}'"#;
    assert_eq!(m.count_conflicts(losers), 1, "what was lost is recorded");
    assert_eq!(m.kick(), "empty");
}

#[test]
fn skipped_rows_stay_and_travel_again_when_one_source_changes_them() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text); INSERT INTO t VALUES (1, 'start')");
    m.sync("tables => 'public.t', conflict_strategy => 'bucardo_skip'");
    m.changes(&[("A", "UPDATE t SET val = 'A'"), ("B", "UPDATE t SET val = 'B'"), ("A", "INSERT INTO t VALUES (2, 'A')")]);
    assert_eq!(m.kick(), "good");
    for (name, val) in [("A", "A"), ("B", "B"), ("T", "start")] {
        assert_eq!(m.on(name).one("SELECT val FROM t WHERE id = 1"), val, "on {name}");
        assert_eq!(m.on(name).one("SELECT val FROM t WHERE id = 2"), "A", "others are not held up, on {name}");
    }
    let record = r#"{"id": 1}|bucardo_skip|-|{"A": {"id": 1, "val": "A"}, "B": {"id": 1, "val": "B"}}"#;
    assert_eq!(m.conflicts("public.t"), [record]);
    assert_eq!(m.pending(), 0, "a skipped key counts as handled");
    assert_eq!(m.kick(), "empty");
    m.on("B").exec("UPDATE t SET val = 'B2' WHERE id = 1");
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT val FROM t WHERE id = 1", "B2");
    assert_eq!(m.conflicts("public.t"), [record], "one change has no rival");
}

#[test]
fn abort_changes_nothing_pauses_and_raises() {
    let m = pair(Clock::Commit, "bucardo_abort");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'A'), (2, 'A')"), ("B", "INSERT INTO t VALUES (1, 'B'), (3, 'B')")]);
    let error = m.try_kick().expect_err("a kick that ends in an abort raises");
    assert!(error.full().contains("public.t"), "the error names the relation: {error}");
    m.wait_state("paused");
    assert_eq!(m.on("A").one("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t"), "1A 2A");
    assert_eq!(m.on("B").one("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t"), "1B 3B");
    assert_eq!(m.on("T").number("SELECT count(*) FROM t"), 0, "nothing is changed anywhere");
    let last = "SELECT state FROM bucardo.syncrun WHERE sync = 's' ORDER BY run DESC LIMIT 1";
    assert_eq!(m.control().one(last), "bad");
    assert!(m.count_conflicts(r#"winner IS NULL AND strategy = 'bucardo_abort' AND key = '{"id": 1}'"#) >= 1);
    m.control().expect_error("SELECT bucardo.kick('s', '20s')", "55000");
    assert_eq!(m.pending(), 4, "nothing counts as handled");
    // Another strategy, and on it goes.
    m.control().exec("SELECT bucardo.update_sync('s', conflict_strategy => 'bucardo_source'); SELECT bucardo.resume('s')");
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1A 2A 3B");
    assert_eq!(m.count_conflicts("winner = 'A'"), 1);
}

/// Rows of different keys that cannot both be there are a conflict as well, and recorded as one.
#[test]
fn abort_by_a_unique_value_is_recorded() {
    let m = Plan::new(2).start().with(
        "CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, val text)",
        "tables => 'public.t', conflict_strategy => 'bucardo_abort'",
    );
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'x', 'A')"), ("B", "INSERT INTO t VALUES (2, 'x', 'B')")]);
    let error = m.try_kick().expect_err("a kick that ends in an abort raises");
    assert!(error.full().contains("public.t"), "{error}");
    m.wait_state("paused");
    let rows = r#"rows->'A' = '{"id": 1, "u": "x", "val": "A"}' AND rows->'B' = '{"id": 2, "u": "x", "val": "B"}'"#;
    assert_eq!(
        m.count_conflicts(&format!("winner IS NULL AND strategy = 'bucardo_abort' AND {rows}")),
        1,
        "{:?}",
        m.conflicts("public.t")
    );
    for (name, there) in [("A", "1A"), ("B", "2B")] {
        assert_eq!(m.on(name).one("SELECT id || val FROM t"), there, "nothing is changed anywhere");
    }
}

#[test]
fn abort_without_a_conflict_is_an_ordinary_run() {
    let m = pair(Clock::Statement, "bucardo_abort");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'A')"), ("B", "INSERT INTO t VALUES (2, 'B')")]);
    assert_eq!(m.kick(), "good");
    m.changes(&[("A", "DELETE FROM t WHERE id = 1"), ("B", "DELETE FROM t WHERE id = 1")]);
    m.drain_equal(&["t"]);
    assert_eq!(m.count_conflicts("true"), 0, "deleted by both is no conflict");
}

#[test]
fn a_relations_own_strategy_goes_first() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text); CREATE TABLE u (id int PRIMARY KEY, val text); CREATE TABLE v (id int PRIMARY KEY, val text)");
    m.sync("tables => 'public.t,public.u,public.v', conflict_strategy => 'bucardo_latest'");
    let own = |table: &str, strategy: &str| {
        let sql = format!("SELECT bucardo.update_table('public.{table}', 's', conflict_strategy => '{strategy}')");
        m.control().exec(&sql);
    };
    own("u", "bucardo_source");
    own("v", "bucardo_skip");
    let all = |name: &str, round: i32| {
        for table in ["t", "u", "v"] {
            m.on(name).exec(&format!("INSERT INTO {table} VALUES ({round}, '{name}')"));
        }
    };
    all("A", 1);
    all("B", 1);
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT val FROM t", "B");
    m.expect_everywhere("SELECT val FROM u", "A");
    let record = |strategy: &str, winner: &str, id: i32| {
        format!(r#"{{"id": {id}}}|{strategy}|{winner}|{{"A": {{"id": {id}, "val": "A"}}, "B": {{"id": {id}, "val": "B"}}}}"#)
    };
    assert_eq!(m.conflicts("public.t"), [record("bucardo_latest", "B", 1)]);
    assert_eq!(m.conflicts("public.u"), [record("bucardo_source", "A", 1)]);
    assert_eq!(m.conflicts("public.v"), [record("bucardo_skip", "-", 1)]);
    own("u", "bucardo_target");
    all("B", 2);
    all("A", 2);
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT val FROM t WHERE id = 2", "A");
    m.expect_everywhere("SELECT val FROM u WHERE id = 2", "B");
    assert_eq!(m.conflicts("public.u"), [record("bucardo_source", "A", 1), record("bucardo_target", "B", 2)]);
}

#[test]
fn an_unknown_strategy_is_refused() {
    let m = Plan::new(2).start();
    m.everywhere(T);
    let dbs = m.dbs();
    for strategy in ["bucardo_newest", "A X", ""] {
        let sql =
            format!("SELECT bucardo.add_sync('s', dbs => '{dbs}', tables => 'public.t', conflict_strategy => '{strategy}')");
        m.control().expect_error(&sql, "22023");
    }
    assert_eq!(m.control().number("SELECT count(*) FROM bucardo.sync"), 0);
}

/// The winner has changed nothing: its row is written by its JSON, also in what an UPDATE cannot set.
#[test]
fn a_winner_that_has_changed_nothing_gives_its_identity_column_too() {
    let m = Plan::new(3).start().with(
        "CREATE TABLE t (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, val text)",
        "tables => 'public.t', conflict_strategy => 'C'",
    );
    m.on("A").exec("INSERT INTO t VALUES (1, DEFAULT, 'start'), (2, DEFAULT, 'start')");
    m.drain_equal(&["t"]);
    let change = "ALTER TABLE t ALTER n RESTART 100; UPDATE t SET n = DEFAULT, val = 'changed' WHERE id = 1";
    m.changes(&[("A", change), ("B", change)]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT string_agg(concat_ws(' ', id, n, val), ', ' ORDER BY id) FROM t", "1 1 start, 2 2 start");
}

//! One source, two targets, ordinary changes: what everybody expects of replication, first of all.
//!
//! Each scenario changes rows on A with plain DML and looks at B and C. How changes are captured matters little here;
//! the scenarios alternate. `capture` looks at that, `types` at values, `control` at pausing and kicking.

use crate::net::{Capture, Net};

for_both!(changes_travel, keys_change, generated_and_identity, one_copy_of_everything);

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric)";

fn changes_travel(capture: Capture) {
    let net = Net::together(capture, 2).with_table(T, "public.t");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 'row ' || g, g / 3.0 FROM generate_series(1, 500) g");
    net.settle(&["t"]);
    a.exec("UPDATE t SET v = 'new', n = NULL WHERE id % 3 = 0");
    a.exec("DELETE FROM t WHERE id % 5 = 0");
    a.exec("INSERT INTO t VALUES (5, 'again', 5), (1000, NULL, NULL)");
    net.settle(&["t"]);
    a.exec("DELETE FROM t");
    net.settle(&["t"]);
    assert_eq!(net.on("C").number("SELECT count(*) FROM t"), 0);
}

#[test]
fn targets_on_other_servers_are_served_too() {
    let net = Net::apart(Capture::Plain, 2).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 100) g");
    net.settle(&["t"]);
    net.on("A").exec("UPDATE t SET v = 'x' || v; DELETE FROM t WHERE id > 50");
    net.settle(&["t"]);
}

#[test]
fn rows_that_were_there_before_are_not_copied() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere(T);
    net.on("A").exec("INSERT INTO t VALUES (1, 'old')");
    net.add_sync("tables => 'public.t'");
    net.on("A").exec("INSERT INTO t VALUES (2, 'new')");
    net.wait_served();
    assert_eq!(net.on("B").one("SELECT string_agg(v, ',') FROM t"), "new");
    net.on("A").exec("UPDATE t SET n = 1");
    net.settle(&["t"]);
}

/// Rows that were there before reach every target once, with what changes meanwhile; what only a target has goes.
fn one_copy_of_everything(capture: Capture) {
    let net = Net::apart(capture, 2);
    net.everywhere(T);
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 'old ' || g FROM generate_series(1, 3000) g");
    net.on("B").exec("INSERT INTO t VALUES (7, 'stale'), (9999, 'only here')");
    net.add_sync("tables => 'public.t', onetimecopy => 1, status => 'inactive'");
    a.exec("UPDATE t SET v = 'changed' WHERE id = 8; DELETE FROM t WHERE id = 9");
    net.control().exec("SELECT bucardo.activate('s')");
    a.exec("UPDATE t SET v = 'changed too' WHERE id = 10; INSERT INTO t VALUES (4000, 'new')");
    net.settle(&["t"]);
    net.kick();
    assert_eq!(net.control().number("SELECT onetimecopy FROM bucardo.sync"), 0, "a copy is made once");
    // Nobody writes down what is not the application's own change.
    net.on("B").exec("DELETE FROM t WHERE id <= 100");
    net.on("C").exec("TRUNCATE t");
    a.exec("UPDATE t SET v = 'later' WHERE id = 1000");
    net.wait_served();
    assert_eq!(net.on("B").number("SELECT count(*) FROM t"), 2901, "what the application deleted there came back");
    // A target that is away gets its copy when it is back, the other at once.
    net.server_of("C").stop(crate::cluster::Stop::Fast);
    net.control().exec("SELECT bucardo.update_sync('s', onetimecopy => 1)");
    net.wait_equal("t", &["B"]);
    net.server_of("C").launch();
    net.settle(&["t"]);
}

#[test]
fn a_copy_empties_tables_as_it_is_told() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere("CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int NOT NULL REFERENCES p)");
    net.on("A").exec("INSERT INTO p SELECT generate_series(1, 200); INSERT INTO c SELECT g, g FROM generate_series(1, 100) g");
    let mut b = net.on("B");
    b.exec("INSERT INTO p SELECT generate_series(150, 400); INSERT INTO c SELECT g, g FROM generate_series(150, 250) g");
    b.exec("CREATE TABLE own (p int REFERENCES p); INSERT INTO own VALUES (180)");
    let truncates = || net.control().number("SELECT truncates FROM bucardo.syncrun ORDER BY run DESC LIMIT 1");
    net.add_sync("tables => 'p, c', onetimecopy => 1, deletemethod => 'truncate', autokick => false");
    net.kick();
    net.settle(&["p", "c"]);
    assert_eq!((truncates(), b.number("SELECT count(*) FROM own")), (0, 1), "a table of B's own refers to p");
    net.control().exec("SELECT bucardo.update_sync('s', onetimecopy => 1, deletemethod => 'truncate_cascade')");
    b.exec("INSERT INTO p VALUES (999)");
    net.kick();
    net.settle(&["p", "c"]);
    assert_eq!((truncates(), b.number("SELECT count(*) FROM own")), (2, 0));
    net.control().exec("SELECT bucardo.update_sync('s', onetimecopy => 1, deletemethod => 'truncate')");
    b.exec("DROP TABLE own; INSERT INTO p VALUES (999)");
    net.kick();
    net.settle(&["p", "c"]);
    assert_eq!(truncates(), 2);
}

#[test]
fn a_copy_rebuilds_indexes_where_that_is_asked_for() {
    let net = Net::together(Capture::Plain, 1);
    let tables = ["by_table", "by_sync", "as_they_are"];
    for table in tables {
        net.everywhere(&format!("CREATE TABLE {table} (id int PRIMARY KEY, v text); INSERT INTO {table} VALUES (1, 'old')"));
        net.on("A").exec(&format!("INSERT INTO {table} SELECT g, 'new' FROM generate_series(2, 9) g"));
    }
    let files = || tables.map(|t| net.on("B").one(&format!("SELECT pg_relation_filenode('{t}_pkey')")));
    let before = files();
    net.control().exec(
        "SELECT bucardo.add_relgroup('g'), bucardo.add_table('public.by_table', 'g', rebuild_index => true), \
         bucardo.add_table('public.by_sync', 'g'), bucardo.add_table('public.as_they_are', 'g', rebuild_index => false)",
    );
    net.add_sync("relgroup => 'g', onetimecopy => 1, rebuild_index => true");
    net.settle(&tables);
    net.kick();
    let after = files();
    assert_eq!([0, 1, 2].map(|i| before[i] != after[i]), [true, true, false]);
    let analyzed = "SELECT count(*) FROM pg_stat_user_tables WHERE last_analyze IS NOT NULL AND last_vacuum IS NULL";
    net.wait_sql("B", "the statistics", &format!("SELECT ({analyzed}) = 3"));
}

fn keys_change(capture: Capture) {
    let net = Net::together(capture, 2);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE d (id int PRIMARY KEY DEFERRABLE, v text)");
    net.add_sync("tables => 'public.t,public.d'");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 20) g; INSERT INTO d SELECT * FROM t");
    net.settle(&["t", "d"]);
    a.exec("UPDATE t SET id = id + 100 WHERE id <= 5");
    a.exec("BEGIN; UPDATE t SET id = -1 WHERE id = 10; UPDATE t SET id = 10 WHERE id = 11; UPDATE t SET id = 11 WHERE id = -1; COMMIT");
    a.exec("UPDATE d SET id = 21 - id");
    net.settle(&["t", "d"]);
    assert_eq!(net.on("B").one("SELECT v FROM t WHERE id = 10"), "row 11");
    assert_eq!(net.on("C").one("SELECT v FROM d WHERE id = 1"), "row 20");
    a.exec("UPDATE d SET id = id + 1");
    a.exec("BEGIN; UPDATE t SET id = 7777 WHERE id = 12; DELETE FROM t WHERE id = 7777; COMMIT");
    net.settle(&["t", "d"]);
}

#[test]
fn columns_of_a_members_own_stay() {
    let net = Net::together(Capture::Native, 1);
    net.on("A").exec(T);
    net.on("B").exec("CREATE TABLE t (mine text DEFAULT 'fresh', n numeric, id int PRIMARY KEY, v text)");
    net.add_sync("tables => 'public.t', strict_checking => false");
    net.on("A").exec("INSERT INTO t VALUES (1, 'one'), (2, 'two')");
    net.settle(&["t"]);
    net.on("B").exec("UPDATE t SET mine = 'kept' WHERE id = 1");
    net.on("A").exec("UPDATE t SET v = v || '!'");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one("SELECT string_agg(mine, ',' ORDER BY id) FROM t"), "kept,fresh");
}

#[test]
fn unchanged_rows_are_not_touched() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g");
    net.settle(&["t"]);
    let versions = "SELECT string_agg(xmin::text, ',' ORDER BY id) FROM t WHERE id > 1";
    let before = net.on("B").one(versions);
    a.exec("UPDATE t SET v = 'changed'; UPDATE t SET v = 'v' WHERE id > 1");
    a.exec("DELETE FROM t WHERE id = 9; INSERT INTO t VALUES (9, 'v')");
    net.kick();
    net.assert_equal("t");
    a.exec("UPDATE t SET v = v");
    net.kick();
    assert_eq!(net.on("B").one(versions), before, "rows were rewritten with the values they had");
}

/// Rows whose keys are whole numbers close together are found by a walk along the index between the first and the last.
#[test]
fn rows_are_found_whether_their_keys_lie_close_together_or_far_apart() {
    let net = Net::together(Capture::Native, 1);
    for (table, kind, step) in [("close", "int", 1), ("halves", "smallint", 2), ("far", "bigint", 9_000_000_000_000_000_i64)] {
        net.everywhere(&format!("CREATE TABLE {table} (id {kind} PRIMARY KEY, v text)"));
        net.on("A").exec(&format!("INSERT INTO {table} SELECT g * {step}::{kind}, 'old' FROM generate_series(-500, 500) g"));
        net.on("B").exec(&format!(
            "INSERT INTO {table} SELECT g * {step}::{kind}, 'old' FROM generate_series(-499, 499) g WHERE g <> 3"
        ));
        net.on("B").exec(&format!("INSERT INTO {table} SELECT g * {step}::{kind}, 'only here' FROM (VALUES (-700), (700)) x(g)"));
    }
    net.add_sync("tables => 'close, halves, far'");
    for table in ["close", "halves", "far"] {
        net.on("A").exec(&format!("UPDATE {table} SET v = 'new'; DELETE FROM {table} WHERE id = 0"));
    }
    net.wait_served();
    for table in ["close", "halves", "far"] {
        let count = |of: &str| net.on("B").number(&format!("SELECT count(*) FROM {table} WHERE {of}"));
        assert_eq!(
            [count("v = 'new'"), count("v = 'old'"), count("v = 'only here'"), count("id = 0")],
            [1000, 0, 2, 0],
            "{table}"
        );
    }
}

#[test]
fn columns_are_matched_by_name() {
    let net = Net::together(Capture::Plain, 2);
    net.on("A").exec("CREATE TABLE t (id int, dropped int, a text, b int, c date, PRIMARY KEY (id, b))");
    net.on("A").exec("ALTER TABLE t DROP COLUMN dropped");
    net.on("B").exec("CREATE TABLE t (c date, b int, a text, id int, PRIMARY KEY (id, b))");
    net.on("C").exec("CREATE TABLE t (a text, id int, x int, c date, b int, PRIMARY KEY (b, id)); ALTER TABLE t DROP COLUMN x");
    net.add_sync("tables => 'public.t'");
    net.on("A").exec("INSERT INTO t VALUES (1, 'text', 2, '2026-01-02'), (2, NULL, 1, NULL)");
    net.settle(&["t"]);
    net.on("A").exec("UPDATE t SET a = 'x', c = '1999-12-31', b = b + 10");
    net.settle(&["t"]);
    assert_eq!(net.on("C").one("SELECT id || a || b FROM t WHERE c IS NOT NULL AND id = 1"), "1x12");
}

fn generated_and_identity(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k int GENERATED BY DEFAULT AS IDENTITY, a int, \
         twice int GENERATED ALWAYS AS (a * 2) STORED)",
    );
    net.add_sync("tables => 'public.t'");
    let mut a = net.on("A");
    a.exec("SELECT setval(pg_get_serial_sequence('t', 'id'), 40); INSERT INTO t (a) SELECT generate_series(1, 9)");
    net.settle(&["t"]);
    a.exec("UPDATE t SET a = a + 1; UPDATE t SET id = DEFAULT WHERE a = 3");
    a.exec("INSERT INTO t (id, a) OVERRIDING SYSTEM VALUE VALUES (7, 7)");
    net.settle(&["t"]);
    assert_eq!(net.on("B").number("SELECT count(*) FROM t WHERE twice = a * 2"), 10);
}

/// A run of few rows holds them all; but not if they are that wide.
#[test]
fn a_few_wide_rows_are_not_held_at_once() {
    let net =
        Net::together(Capture::Plain, 1).with_table("CREATE TABLE t (id int PRIMARY KEY, n int, v text, j jsonb)", "public.t");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, g, 'small', '{}' FROM generate_series(1, 80) g");
    net.settle(&["t"]);
    let wide = "repeat(id || ' wide ', 500000)";
    a.exec(&format!("UPDATE t SET v = {wide}, n = NULL WHERE id <= 60"));
    net.settle(&["t"]);
    a.exec(&format!("UPDATE t SET v = {wide} WHERE id = 70; UPDATE t SET n = 0 WHERE id > 70; DELETE FROM t WHERE id < 10; INSERT INTO t (id) VALUES (100)"));
    net.settle(&["t"]);
    // Not too wide, but too much for one round trip.
    a.exec("UPDATE t SET v = repeat('x', 100000) WHERE id BETWEEN 20 AND 50; DELETE FROM t WHERE id = 60");
    net.settle(&["t"]);
    a.exec(&format!("UPDATE t SET v = {wide}, j = jsonb_build_array({wide}) WHERE id = 80"));
    net.settle(&["t"]);
    assert!(net.kid_memory() < 200_000, "a kid has taken {} kB", net.kid_memory());
}

/// An identity column that always generates takes a value at INSERT only. It travels all the same, whether few rows change
/// or many, and a column that only the target has keeps its values.
#[test]
fn an_identity_column_beside_the_key() {
    let net = Net::together(Capture::Plain, 1);
    let columns = "id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY UNIQUE, v text";
    net.on("A").exec(&format!("CREATE TABLE t ({columns})"));
    net.on("B").exec(&format!("CREATE TABLE t ({columns}, \"Own\" text DEFAULT 'new')"));
    net.add_sync("tables => 'public.t', strict_checking => false");
    let mut a = net.on("A");
    a.exec("INSERT INTO t (id, v) SELECT g, 'start' FROM generate_series(1, 500) g");
    let same = || {
        net.wait_served();
        let rows = "SELECT md5(string_agg(concat_ws(' ', id, n, v), ',' ORDER BY id)) FROM t";
        assert_eq!(net.on("A").one(rows), net.on("B").one(rows), "{}", net.report());
    };
    same();
    net.on("B").exec("UPDATE t SET \"Own\" = 'own ' || id");
    let own = |changed: i64| {
        same();
        assert_eq!(net.on("B").number("SELECT count(*) FROM t WHERE \"Own\" <> 'own ' || id"), changed);
    };
    // Few.
    a.exec("UPDATE t SET n = DEFAULT, v = 'few' WHERE id <= 5");
    own(0);
    a.exec("BEGIN; DELETE FROM t WHERE id <= 5; INSERT INTO t (id, v) SELECT g, 'anew' FROM generate_series(1, 5) g; COMMIT");
    own(0);
    a.exec("UPDATE t SET v = 'plain' WHERE id <= 5");
    own(0);
    // Many.
    a.exec("UPDATE t SET v = 'many' WHERE id <= 300");
    own(0);
    a.exec("UPDATE t SET n = DEFAULT, v = 'anew' WHERE id <= 300");
    own(0);
    // The values move between rows.
    a.exec(
        "BEGIN; CREATE TEMP TABLE old AS SELECT id, n FROM t; DELETE FROM t; \
         INSERT INTO t OVERRIDING SYSTEM VALUE SELECT 501 - id, n, 'moved' FROM old; COMMIT",
    );
    own(0);
    a.exec(
        "BEGIN; CREATE TEMP TABLE two AS SELECT id, n FROM t WHERE id < 3; DELETE FROM t WHERE id < 3; \
         INSERT INTO t OVERRIDING SYSTEM VALUE SELECT 3 - id, n, 'swapped' FROM two; COMMIT",
    );
    own(0);
}

#[test]
fn values_of_a_secondary_unique_index_swap() {
    let net = Net::together(Capture::Native, 2);
    net.on("A").exec("CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE DEFERRABLE, w int)");
    for name in ["B", "C"] {
        net.on(name).exec("CREATE TABLE t (id int PRIMARY KEY, u text, w int); CREATE UNIQUE INDEX only_one ON t (u)");
    }
    net.add_sync("tables => 'public.t'");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 'u' || g, g FROM generate_series(1, 30) g");
    net.settle(&["t"]);
    a.exec("UPDATE t SET u = 'u' || (31 - id)");
    net.settle(&["t"]);
    a.exec("UPDATE t SET u = 'u' || CASE id WHEN 1 THEN 2 WHEN 2 THEN 3 ELSE 1 END || 'r' WHERE id <= 3");
    a.exec("BEGIN; DELETE FROM t WHERE id = 4; UPDATE t SET u = 'u27' WHERE id = 5; INSERT INTO t VALUES (100, 'u26'); COMMIT");
    net.settle(&["t"]);
    net.wait_state("good|empty");
}

/// Statements about single rows keep their plans: made while the tables were small, they must not scan them later.
#[test]
fn a_table_that_has_grown_is_not_scanned_for_single_rows() {
    let net = Net::together_with(Capture::Native, 1, "autovacuum = off").with_table(T, "public.t");
    net.everywhere("INSERT INTO t SELECT g, 'old' FROM generate_series(1, 5) g; ANALYZE t");
    let touch = |round: i32| {
        net.on("A").exec(&format!("UPDATE t SET n = {round} WHERE id = 1 + {round} % 5"));
        net.kick();
    };
    (0..12).for_each(touch);
    net.on("A").exec("INSERT INTO t SELECT g, 'new' FROM generate_series(6, 5000) g");
    net.kick();
    let scans = |member| net.on(member).number("SELECT pg_stat_get_numscans('t'::regclass) FROM pg_stat_force_next_flush()");
    for member in ["A", "B"] {
        let looked_up = |at: &str| net.on(at).number("SELECT pg_stat_get_numscans('t_pkey'::regclass)");
        // What a session has counted is seen later: when the look-ups of the last rounds are, so are scans before them.
        let (before, found) = (scans(member), looked_up(member));
        (0..12).for_each(touch);
        net.wait_sql(member, "the look-ups", &format!("SELECT pg_stat_get_numscans('t_pkey'::regclass) >= {found} + 12"));
        assert!(scans(member) - before <= 1, "{member} was scanned");
    }
    net.settle(&["t"]);
}

#[test]
fn a_reader_sees_all_of_a_run_or_nothing() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere("CREATE TABLE credit (id int PRIMARY KEY, n int); CREATE TABLE debit (id int PRIMARY KEY, n int)");
    net.add_sync("tables => 'public.credit,public.debit'");
    let last = 300;
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut a = net.on("A");
            for id in 1..=last {
                a.exec(&format!("BEGIN; INSERT INTO credit VALUES ({id}, {id}); INSERT INTO debit VALUES ({id}, {id}); COMMIT"));
            }
        });
        let mut reader = net.on("B");
        crate::wait::wait_until("all pairs to arrive", || {
            let row = &reader.query("SELECT (SELECT count(*) FROM credit), (SELECT count(*) FROM debit)")[0];
            assert_eq!(row[0], row[1], "one table ahead of the other");
            row[0].as_deref() == Some("300")
        });
    });
    net.settle(&["credit", "debit"]);
}

#[test]
fn many_tables_and_a_whole_schema_in_one_sync() {
    let net = Net::together(Capture::Plain, 1);
    let mut ddl = String::from("CREATE SCHEMA app; CREATE SCHEMA other; CREATE TABLE other.t (id int PRIMARY KEY);");
    for n in 1..=60 {
        ddl += &format!("CREATE TABLE app.t{n} (id int PRIMARY KEY, v text);");
    }
    net.everywhere(&ddl);
    net.add_sync("tables => 'app.*'");
    let mut a = net.on("A");
    for n in 1..=60 {
        a.exec(&format!("INSERT INTO app.t{n} SELECT g, 'x' FROM generate_series(1, {n}) g"));
    }
    a.exec("INSERT INTO other.t VALUES (1)");
    let names: Vec<String> = (1..=60).map(|n| format!("app.t{n}")).collect();
    net.settle(&names.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(net.on("B").number("SELECT count(*) FROM other.t"), 0);
}

#[test]
fn all_takes_every_table_with_a_key_and_every_sequence() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere(
        "CREATE SCHEMA \"Sales\"; CREATE TABLE t (id serial PRIMARY KEY, v text); CREATE TABLE keyless (v text); \
         CREATE TABLE \"Sales\".\"Order Lines\" (a int, b int, PRIMARY KEY (a, b)); \
         CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); \
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100)",
    );
    net.add_sync("tables => 'all'");
    let mut a = net.on("A");
    a.exec("INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 7); INSERT INTO keyless VALUES ('x')");
    a.exec("INSERT INTO \"Sales\".\"Order Lines\" VALUES (1, 2); INSERT INTO parts VALUES (5)");
    net.settle(&["t", "\"Sales\".\"Order Lines\"", "parts"]);
    assert_eq!(net.on("B").number("SELECT last_value FROM t_id_seq"), 7);
    assert_eq!(net.on("B").number("SELECT count(*) FROM keyless"), 0);
}

#[test]
fn a_one_time_copy_brings_the_rows_that_are_there_already() {
    let net = Net::together(Capture::Plain, 2);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text)");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 50) g");
    net.on("C").exec("INSERT INTO t VALUES (1, 'old'), (1000, 'old')");
    net.add_sync("tables => 'public.t', onetimecopy => 1");
    net.settle(&["t"]);
    net.on("A").exec("UPDATE t SET v = 'y' WHERE id = 1");
    net.settle(&["t"]);
}

/// Statistics taken while a table was being filled say that it is empty. A plan that believes them compares every key with
/// every row, and is never done.
#[test]
fn statistics_that_call_a_full_table_empty_stop_nothing() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text, u int UNIQUE) WITH (autovacuum_enabled = off)");
    net.add_sync("tables => 'public.t'");
    net.control().exec("SELECT bucardo.pause('s')");
    net.on("A").exec("INSERT INTO t SELECT g, 'old', g FROM generate_series(1, 400000) g");
    net.on("A").exec("VACUUM ANALYZE t");
    net.on("A").exec("UPDATE pg_class SET reltuples = 0 WHERE relname = 't'");
    net.control().exec("SELECT bucardo.resume('s')");
    net.settle(&["t"]);
    net.on("B").exec("VACUUM ANALYZE t");
    net.on("B").exec("UPDATE pg_class SET reltuples = 0 WHERE relname = 't'");
    net.on("A").exec("UPDATE t SET v = 'new' WHERE id % 10 = 0; DELETE FROM t WHERE id % 10 = 1");
    net.settle(&["t"]);
    // Values that move between rows go another way.
    net.on("B").exec("UPDATE pg_class SET reltuples = 0 WHERE relname = 't'");
    net.on("A")
        .exec("UPDATE t SET u = -u WHERE id % 10 = 2; UPDATE t SET u = 1 - (u + 1) WHERE u < 0; DELETE FROM t WHERE id = 3");
    net.on("A").exec("BEGIN; UPDATE t SET u = -u WHERE id IN (5, 6); UPDATE t SET u = 11 + u WHERE u < 0; COMMIT");
    net.settle(&["t"]);
}

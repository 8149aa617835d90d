//! Keys that are equal without looking alike: which rows contend is decided by the equality of the key's type.
//!
//! Also composite keys, keys in another column order on each member, and a key that is a unique index.

use super::Plan;

#[test]
fn numeric_keys_are_equal_by_value() {
    let m = Plan::new(2).start().with("CREATE TABLE t (id numeric PRIMARY KEY, val text)", "tables => 'public.t'");
    m.changes(&[
        ("A", "INSERT INTO t VALUES (1.0, 'A'), (2, 'A'), (1e20, 'A')"),
        ("B", "INSERT INTO t VALUES (1.00, 'B'), (3.5, 'B'), (100000000000000000000.000, 'B')"),
    ]);
    assert_eq!(m.kick(), "good");
    m.assert_equal("t");
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1.00B 2A 3.5B 100000000000000000000.000B");
    assert_eq!(m.count_conflicts(r#"key = '{"id": 1}' AND winner = 'B'"#), 1);
    assert_eq!(m.counted(), 2);
    // A key rewritten in another notation is the same key.
    m.changes(&[("A", "UPDATE t SET id = 2.000 WHERE id = 2"), ("B", "DELETE FROM t WHERE id = 2")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT count(*) FROM t WHERE id = 2", "0");
    m.changes(&[("B", "UPDATE t SET val = 'B2' WHERE id = 1"), ("A", "UPDATE t SET val = 'A2', id = 1 WHERE id = 1.0")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT val FROM t WHERE id = 1", "A2");
}

const COLLATION: &str = "CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";

#[test]
fn text_keys_under_a_collation_that_ignores_case() {
    let ddl = format!("{COLLATION}; CREATE TABLE t (id text COLLATE caseless PRIMARY KEY, val text)");
    let m = Plan::new(2).start().with(&ddl, "tables => 'public.t'");
    m.changes(&[
        ("A", "INSERT INTO t VALUES ('Key', 'A'), ('lonely', 'A')"),
        ("B", "INSERT INTO t VALUES ('KEY', 'B'), ('Other', 'B')"),
    ]);
    assert_eq!(m.kick(), "good");
    m.assert_equal("t");
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "KEYB lonelyA OtherB");
    assert_eq!(m.counted(), 1);
    m.on("A").exec("UPDATE t SET id = 'LONELY' WHERE id = 'lonely'");
    m.drain_equal(&["t"]);
    m.changes(&[("A", "UPDATE t SET val = 'A2' WHERE id = 'key'"), ("B", "DELETE FROM t WHERE id = 'kEy'")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT count(*) FROM t WHERE id = 'key'", "0");
}

#[test]
fn composite_keys_in_any_order_of_columns() {
    let m = Plan::new(2).start();
    m.on("A").exec("CREATE TABLE t (a int, b text, c date, val text, PRIMARY KEY (a, b, c))");
    m.on("B").exec(
        "CREATE TABLE t (val text, c date, gone int, b text, a int, PRIMARY KEY (c, a, b)); ALTER TABLE t DROP COLUMN gone",
    );
    m.on("T").exec("CREATE TABLE t (b text, val text, a int, c date, PRIMARY KEY (b, c, a))");
    m.sync("tables => 'public.t'");
    m.on("A").exec("INSERT INTO t (a, b, c, val) VALUES (1, 'x', '2026-01-02', 'A'), (1, 'x', '2026-01-03', 'A'), (2, '1', '2026-01-02', 'A')");
    m.on("B").exec(
        "INSERT INTO t (a, b, c, val) VALUES (1, 'x', '2026-01-02', 'B'), (1, 'y', '2026-01-03', 'B'), (1, 'y', 'infinity', 'B')",
    );
    assert_eq!(m.kick(), "good");
    m.assert_equal("t");
    let rows = "SELECT string_agg(concat(a, b, ' ', c, ' ', val), ', ' ORDER BY a, b, c) FROM t";
    m.expect_everywhere(rows, "1x 2026-01-02 B, 1x 2026-01-03 A, 1y 2026-01-03 B, 1y infinity B, 21 2026-01-02 A");
    let record = r#"key = '{"a": 1, "b": "x", "c": "2026-01-02"}' AND rows->'A'->>'val' = 'A' AND rows->'B'->>'val' = 'B' AND winner = 'B'"#;
    assert_eq!(m.count_conflicts(record), 1);
    assert_eq!(m.counted(), 1);
}

/// Neighbours that a sloppy concatenation of the parts of a key would take for one.
#[test]
fn parts_of_a_key_are_not_run_together() {
    let m = Plan::new(2).start().with("CREATE TABLE t (a text, b text, val text, PRIMARY KEY (a, b))", "tables => 'public.t'");
    m.on("A").exec(
        "INSERT INTO t VALUES ('a', 'bc', 'A'), ('', 'x', 'A'), ('a,b', 'c', 'A'), (E'a\\tb', 'c', 'A'), ('NULL', '\\N', 'A')",
    );
    m.on("B").exec(
        "INSERT INTO t VALUES ('ab', 'c', 'B'), ('x', '', 'B'), ('a', 'b,c', 'B'), ('a', E'b\\tc', 'B'), ('NULL', '\\N', 'B')",
    );
    assert_eq!(m.kick(), "good");
    m.assert_equal("t");
    m.expect_everywhere("SELECT count(*) FROM t", "9");
    assert_eq!(m.counted(), 1);
    assert_eq!(m.count_conflicts(r#"key = '{"a": "NULL", "b": "\\N"}'"#), 1);
}

#[test]
fn keys_of_many_types() {
    let kinds: [(&str, &str); 8] = [
        ("uuid", "'00000000-0000-0000-0000-0000000000ff'"),
        ("timestamptz", "'2026-01-02 03:04:05.678901+05:30'"),
        ("bytea", "'\\x00ff27'"),
        ("int[]", "'{1,2}'"),
        ("float8", "0.1"),
        ("interval", "'1 mon'"),
        ("jsonb", "'{\"a\": 1}'"),
        ("inet", "'10.1.2.3/8'"),
    ];
    let ddl: Vec<String> =
        kinds.iter().enumerate().map(|(n, (kind, _))| format!("CREATE TABLE k{n} (id {kind} PRIMARY KEY, val text)")).collect();
    let tables: Vec<String> = (0..kinds.len()).map(|n| format!("public.k{n}")).collect();
    let m = Plan::new(2).start().with(&ddl.join(";"), &format!("tables => '{}'", tables.join(",")));
    for name in ["A", "B"] {
        for (n, (_, value)) in kinds.iter().enumerate() {
            m.on(name).exec(&format!("INSERT INTO k{n} VALUES ({value}, '{name}')"));
        }
    }
    assert_eq!(m.kick(), "good");
    assert_eq!(m.counted(), kinds.len() as i64);
    for n in 0..kinds.len() {
        m.assert_equal(&format!("k{n}"));
        m.expect_everywhere(&format!("SELECT string_agg(val, ',') FROM k{n}"), "B");
    }
    // The same moment, in another notation, is the same key.
    m.changes(&[
        ("A", "UPDATE k5 SET val = 'A' WHERE id = '30 days'"),
        ("B", "UPDATE k5 SET id = '30 days', val = 'B2' WHERE id = '1 mon'"),
    ]);
    m.drain_equal(&["k5"]);
    m.expect_everywhere("SELECT string_agg(val, ',') FROM k5", "B2");
}

#[test]
fn a_unique_index_as_the_key() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE t (a int NOT NULL, b int NOT NULL, val text); CREATE UNIQUE INDEX the_key ON t (b, a)");
    m.sync("tables => 'public.t'");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 2, 'A'), (2, 1, 'A')"), ("B", "INSERT INTO t VALUES (1, 2, 'B')")]);
    assert_eq!(m.kick(), "good");
    m.assert_equal("t");
    assert_eq!(m.count_conflicts(r#"key = '{"a": 1, "b": 2}' AND winner = 'B'"#), 1);
}

/// In a database without an encoding a text may be any bytes. Between sources it is compared and recorded: what is no text there
/// stops the run, and nothing is decided about it, or taken for another key, or for a row that is gone.
#[test]
fn bytes_that_are_no_text_are_refused_and_not_lost() {
    let m = Plan::new(2)
        .databases("TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
        .start()
        .with("CREATE TABLE t (k text PRIMARY KEY, val text)", "tables => 'public.t', conflict_strategy => 'bucardo_source'");
    m.changes(&[("A", "INSERT INTO t VALUES ('one', 'A')"), ("B", r"INSERT INTO t VALUES ('one', E'\xe8')")]);
    let refused = |what: &str| {
        assert_eq!(m.try_kick().map_err(|e| e.sqlstate.clone()), Err("22021".into()), "{what}\n{}", m.report());
        assert!(m.last_error().contains("UTF-8"), "{}", m.last_error());
        assert_eq!(m.count_conflicts("true"), 0, "{what}");
    };
    refused("a row");
    assert_eq!(m.on("B").one("SELECT encode(val::bytea, 'hex') FROM t"), "e8");
    m.changes(&[
        ("B", "UPDATE t SET val = 'B'"),
        ("A", r"INSERT INTO t VALUES (E'caf\xe8', 'A')"),
        ("B", r"INSERT INTO t VALUES (E'caf\xe9', 'B')"),
    ]);
    refused("keys");
}

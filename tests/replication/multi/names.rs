//! Columns with the names that the statements of a run give to things of their own: a column may have any name, and its
//! rows arrive, are compared and are recorded like those of any other.

use super::Plan;

/// A whole row is taken as such also where one of its columns has the name that the statement gives to the table.
#[test]
fn a_column_named_t_is_no_row() {
    let m = Plan::new(2).start();
    m.everywhere(
        "CREATE TABLE kept (id int PRIMARY KEY, t text, u text UNIQUE); CREATE TABLE parent (id int PRIMARY KEY, t text); \
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE SET NULL, t text, s text); \
         INSERT INTO parent VALUES (1, 'start')",
    );
    m.sync("tables => 'public.kept,public.parent,public.child'");
    m.changes(&[
        ("A", "INSERT INTO kept VALUES (1, 'A', 'one'), (11, 'A', 'same'); DELETE FROM parent"),
        ("B", "INSERT INTO kept VALUES (1, 'B', 'one'), (12, 'B', 'same'); INSERT INTO child VALUES (7, 1, 'money', 'more')"),
    ]);
    m.drain_equal(&["kept", "parent", "child"]);
    m.expect_everywhere("SELECT string_agg(concat_ws(' ', id, t, u), ', ' ORDER BY id) FROM kept", "1 B one, 12 B same");
    m.expect_everywhere("SELECT concat_ws(' ', id, coalesce(parent, 0), t, s) FROM child", "7 0 money more");
    let of = |key: i32| format!("relation = 'public.kept' AND key = '{{\"id\": {key}}}' AND winner = 'B'");
    let whole = |key: i32, u: &str| format!("{} AND rows->'A' = '{{\"id\": {key}, \"t\": \"A\", \"u\": \"{u}\"}}'", of(key));
    assert_eq!(m.count_conflicts(&whole(1, "one")), 1, "{:?}", m.conflicts("public.kept"));
    assert_eq!(m.count_conflicts(&whole(11, "same")), 1, "{:?}", m.conflicts("public.kept"));
    let child = "rows->'B' = '{\"id\": 7, \"parent\": 1, \"t\": \"money\", \"s\": \"more\"}'";
    assert_eq!(m.count_conflicts(child), 1, "{:?}", m.conflicts("public.child"));
}

/// Names that stand for something in the statements of a run, in the tables that it makes, or in the grammar.
const NAMES: [&str; 58] = [
    "t",
    "s",
    "k",
    "d",
    "n",
    "r",
    "u",
    "x",
    "c",
    "o",
    "p",
    "alive",
    "number",
    "image",
    "k3",
    "a1",
    "a2",
    "e1",
    "e2",
    "t1",
    "at",
    "ord",
    "xid",
    "origin",
    "existed",
    "ks1",
    "ks2",
    "time",
    "towards",
    "open",
    "ended",
    "running",
    "source",
    "place",
    "part",
    "bucardo_source",
    "bucardo_time",
    "bucardo_source_",
    "row",
    "key",
    "keys",
    "rows",
    "new",
    "old",
    "value",
    "record",
    "select",
    "user",
    "true",
    "g",
    "i",
    "j",
    "relid",
    "kind",
    "member",
    "served",
    "id",
    "Quo\"ted",
];

fn quoted(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

fn named(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table whose key is (k2, k1), the names that they have in the statements the other way round, with a unique index over
/// more such columns and a foreign key from another one.
fn wide(key: &str) -> String {
    let columns = quoted(NAMES.iter().map(|name| format!("{} text", named(name))));
    format!(
        "CREATE TABLE parent (t int PRIMARY KEY, alive text); CREATE TABLE wide (k2 int, k1 {key}, {columns}, \
         held int REFERENCES parent ON DELETE SET NULL, PRIMARY KEY (k2, k1)); \
         CREATE UNIQUE INDEX ON wide (e2, lower(e1)) WHERE image IS NOT NULL; CREATE UNIQUE INDEX ON wide (number, n)"
    )
}

/// So many rows from there on, each value of which says where it is.
fn rows(from: i32, count: i32) -> String {
    let names = quoted(NAMES.iter().map(|name| named(name)));
    let values = quoted(NAMES.iter().map(|name| format!("'{name} ' || g")));
    format!("INSERT INTO wide (k2, k1, {names}) SELECT g, -g, {values} FROM generate_series({from}, {from} + {count} - 1) g")
}

#[test]
fn columns_named_like_a_run_names_its_own_one_way() {
    let m = Plan::new(1).start().with(&wide("int"), "tables => 'public.parent,public.wide'");
    let a = |sql: &str| {
        m.on("A").exec(sql);
        m.drain_equal(&["parent", "wide"]);
    };
    a("INSERT INTO parent VALUES (1, 'one')");
    a(&rows(1, 3));
    a("UPDATE wide SET alive = 'changed', k1 = 7, held = 1 WHERE k2 < 3; DELETE FROM wide WHERE k2 = 3");
    a(&rows(1001, 500));
    a("UPDATE wide SET alive = NULL, at = 'changed'; DELETE FROM wide WHERE k2 > 1400");
    // Values that move between rows take the thorough way.
    a("BEGIN; UPDATE wide SET number = 'aside', e2 = 'aside' WHERE k2 = 1001; \
       UPDATE wide SET number = 'number 1001', e2 = 'e2 1001', e1 = 'e1 1001', n = 'n 1001' WHERE k2 = 1002; COMMIT");
    a("DELETE FROM parent");
    assert_eq!(m.on("T").number("SELECT count(*) FROM wide"), 402);
}

#[test]
fn columns_named_like_a_run_names_its_own_between_sources() {
    // Keys that are compared by their texts, and those that only a server can compare.
    for key in ["int", "numeric"] {
        let m = Plan::new(2).start().with(&wide(key), "tables => 'public.parent,public.wide'");
        let changes = |lines: &[(&str, &str)]| {
            m.changes(lines);
            m.drain_equal(&["parent", "wide"]);
        };
        let lost = |key: i32, by: &str, column: &str, value: &str| {
            let condition = format!(
                "key->>'k2' = '{key}' AND rows->'{by}'->>'{column}' = '{value}' AND rows->'{by}'->>'alive' IS NOT NULL \
                 AND (SELECT count(*) FROM jsonb_object_keys(rows->'{by}')) = {}",
                NAMES.len() + 3
            );
            assert_eq!(m.count_conflicts(&condition), 1, "{key} {by} {column}: {:?}", m.conflicts("public.wide"));
        };
        changes(&[("A", "INSERT INTO parent VALUES (1, 'one')"), ("A", &rows(1, 3)), ("B", &rows(1001, 3))]);
        changes(&[("A", "UPDATE wide SET t = 'A' WHERE k2 = 1"), ("B", "UPDATE wide SET t = 'B' WHERE k2 = 1")]);
        lost(1, "A", "t", "A");
        changes(&[("A", &rows(11, 200)), ("B", &rows(1011, 200))]);
        changes(&[("A", "UPDATE wide SET towards = 'A'"), ("B", "UPDATE wide SET towards = 'B'")]);
        lost(1100, "A", "towards", "A");
        m.expect_everywhere("SELECT count(*) FROM wide WHERE towards = 'B'", "406");
        // Two unique indexes, each in its turn.
        let (a, b) = (rows(2001, 1), rows(2002, 1));
        changes(&[
            ("A", &format!("BEGIN; {a}; UPDATE wide SET e2 = 'same', e1 = 'x' WHERE k2 = 2001; COMMIT")),
            ("B", &format!("BEGIN; {b}; UPDATE wide SET e2 = 'same', e1 = 'X' WHERE k2 = 2002; COMMIT")),
        ]);
        lost(2001, "A", "bucardo_time", "bucardo_time 2001");
        changes(&[
            ("B", "UPDATE wide SET number = 'same', n = 'same' WHERE k2 = 1"),
            ("A", "UPDATE wide SET number = 'same', n = 'same' WHERE k2 = 2"),
        ]);
        lost(1, "B", "number", "same");
        // A row that only a receiver has makes room for one that comes.
        let here =
            |id: i32| format!("BEGIN; {}; UPDATE wide SET number = 'here', n = 'here' WHERE k2 = {id}; COMMIT", rows(id, 1));
        m.on("T").exec(&here(3001));
        changes(&[("A", &here(3002))]);
        lost(3001, "T", "image", "image 3001");
        changes(&[("A", "DELETE FROM parent"), ("B", "UPDATE wide SET held = 1, x = 'B' WHERE k2 = 1002")]);
        lost(1002, "B", "x", "B");
        m.expect_everywhere("SELECT x || count(held) FROM wide WHERE k2 = 1002 GROUP BY x", "B0");
    }
}

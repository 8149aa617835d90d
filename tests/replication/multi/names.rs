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

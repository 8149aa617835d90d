//! Foreign keys between sources: a parent goes on one side while a child comes on the other. The members converge to a state
//! in which the key holds, on all of them, and it is recorded; never a silent orphan.

use super::{Multi, Place, Plan};
use crate::net::Capture;
use crate::wait::wait_until;

crate::for_both!(a_parent_goes_while_a_child_comes);

const TWO: &str = "CREATE TABLE parent (id int PRIMARY KEY, val text); \
     CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent, val text)";
const START: &str = "INSERT INTO parent SELECT g, 'start' FROM generate_series(1, 9) g; INSERT INTO child VALUES (1, 1, 'start')";
const ORPHANS: &str = "SELECT count(*) FROM child c LEFT JOIN parent p ON p.id = c.parent WHERE p.id IS NULL";

fn family(capture: Capture) -> Multi {
    let m = Plan::new(2).capture(capture).start();
    m.everywhere(&format!("{TWO}; {START}"));
    m.sync("tables => 'public.parent,public.child'");
    m
}

#[track_caller]
fn valid(m: &Multi) {
    m.drain_equal(&["parent", "child"]);
    m.expect_everywhere(ORPHANS, "0");
    // The constraint itself must find nothing to say about what is there.
    for name in m.names() {
        let check = "ALTER TABLE child ADD CONSTRAINT again FOREIGN KEY (parent) REFERENCES parent; ALTER TABLE child DROP CONSTRAINT again";
        m.on(name).exec(check);
    }
}

fn a_parent_goes_while_a_child_comes(capture: Capture) {
    for a_first in [true, false] {
        let m = family(capture);
        let mut changes = [("A", "DELETE FROM parent WHERE id = 5"), ("B", "INSERT INTO child VALUES (50, 5, 'B')")];
        if !a_first {
            changes.reverse();
        }
        m.changes(&changes);
        valid(&m);
        assert!(m.count_conflicts("relation IN ('public.parent', 'public.child')") >= 1, "nothing is recorded");
        // Both are there, or neither.
        m.expect_everywhere(
            "SELECT (SELECT count(*) FROM parent WHERE id = 5) = (SELECT count(*) FROM child WHERE id = 50)",
            "t",
        );
        // Whichever it was: the child's row is not lost without a trace.
        let kept = m.on("T").number("SELECT count(*) FROM child WHERE id = 50");
        let traced = m.count_conflicts(r#"rows::text LIKE '%"val": "B"%' OR key = '{"id": 5}'"#);
        assert!(kept == 1 || traced >= 1, "the child is gone and nowhere recorded");
        m.on("A").exec("INSERT INTO child VALUES (60, 6, 'A')");
        valid(&m);
    }
}

#[test]
fn a_child_moves_to_a_parent_that_goes() {
    let m = family(Capture::Plain);
    m.changes(&[("A", "DELETE FROM parent WHERE id = 7"), ("B", "UPDATE child SET parent = 7, val = 'B' WHERE id = 1")]);
    valid(&m);
    assert!(m.count_conflicts("true") >= 1);
}

#[test]
fn a_parent_changes_its_key_while_a_child_comes() {
    let m = family(Capture::Native);
    m.changes(&[("B", "INSERT INTO child VALUES (50, 5, 'B')"), ("A", "UPDATE parent SET id = 55 WHERE id = 5")]);
    valid(&m);
    m.expect_everywhere("SELECT count(*) FROM parent WHERE id = 55", "1");
    assert!(m.count_conflicts("true") >= 1);
}

/// The losing row of one table is the parent of a row in the other one, which is recorded under the source that wrote it.
#[test]
fn a_parent_that_loses_takes_its_children_or_keeps_them_valid() {
    for (strategy, winner, kept, loser, gone) in [("bucardo_latest", "B", 2, "A", 1), ("bucardo_source", "A", 1, "B", 2)] {
        let m = Plan::new(2).start();
        m.everywhere(
            "CREATE TABLE parent (id int PRIMARY KEY, u text UNIQUE, val text); CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, val text)",
        );
        m.sync(&format!("tables => 'public.parent,public.child', conflict_strategy => '{strategy}'"));
        m.changes(&[
            ("A", "INSERT INTO parent VALUES (1, 'x', 'A'); INSERT INTO child VALUES (1, 1, 'A')"),
            ("B", "INSERT INTO parent VALUES (2, 'x', 'B'); INSERT INTO child VALUES (2, 2, 'B')"),
        ]);
        m.drain_equal(&["parent", "child"]);
        m.expect_everywhere(
            "SELECT count(*) FROM child c LEFT JOIN parent p ON p.id = c.parent WHERE c.parent IS NOT NULL AND p.id IS NULL",
            "0",
        );
        m.expect_everywhere("SELECT string_agg(id || val, ' ') FROM parent", &format!("{kept}{winner}"));
        assert!(m.count_conflicts("relation = 'public.parent'") >= 1);
        let of_child = format!(
            "relation = 'public.child' AND strategy = 'foreign_key' AND winner = '{winner}' \
             AND rows = '{{\"{loser}\": {{\"id\": {gone}, \"parent\": {gone}, \"val\": \"{loser}\"}}}}'"
        );
        assert_eq!(m.count_conflicts(&of_child), 1, "{:?}", m.conflicts("public.child"));
    }
}

/// Each row that goes leaves another one without its parent, further than anybody would count.
#[test]
fn a_long_chain_without_its_end_goes_whole() {
    let m = Plan::new(2).start();
    m.everywhere(
        "CREATE TABLE link (id int PRIMARY KEY, prev int REFERENCES link, val text); INSERT INTO link VALUES (1, NULL, 'start')",
    );
    m.sync("tables => 'public.link'");
    m.changes(&[
        ("A", "DELETE FROM link"),
        ("B", "INSERT INTO link SELECT n, n - 1, 'B' FROM generate_series(2, 120) n"),
        ("B", "INSERT INTO link VALUES (1000, NULL, 'B')"),
    ]);
    m.drain_equal(&["link"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ') FROM link", "1000B");
    assert_eq!(m.count_conflicts("strategy = 'foreign_key'"), 119);
}

#[test]
fn cascades_of_both_kinds() {
    for action in ["CASCADE", "SET NULL"] {
        let m = Plan::new(2).start();
        m.everywhere(&format!(
            "CREATE TABLE parent (id int PRIMARY KEY, val text); CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE {action}, val text); {START}"
        ));
        m.sync("tables => 'public.parent,public.child'");
        m.changes(&[
            ("A", "DELETE FROM parent WHERE id = 1"),
            ("B", "UPDATE child SET val = 'B' WHERE id = 1; INSERT INTO child VALUES (2, 1, 'B')"),
        ]);
        m.drain_equal(&["parent", "child"]);
        m.expect_everywhere(
            "SELECT count(*) FROM child c LEFT JOIN parent p ON p.id = c.parent WHERE c.parent IS NOT NULL AND p.id IS NULL",
            "0",
        );
        assert!(m.count_conflicts("true") >= 1, "{action}");
    }
}

/// Children listed before their parents, a table that refers to itself, two that refer to each other: rows of both sources
/// that are valid where they were made arrive whole.
#[test]
fn rows_without_a_conflict_arrive_in_any_order_of_tables() {
    let m = Plan::new(2).start();
    m.everywhere(
        "CREATE TABLE z_parent (id int PRIMARY KEY); CREATE TABLE a_child (id int PRIMARY KEY, p int REFERENCES z_parent); \
         CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree); \
         CREATE TABLE egg (id int PRIMARY KEY, hen int); CREATE TABLE hen (id int PRIMARY KEY, egg int REFERENCES egg); \
         ALTER TABLE egg ADD FOREIGN KEY (hen) REFERENCES hen DEFERRABLE INITIALLY DEFERRED",
    );
    m.sync("tables => 'public.a_child,public.z_parent,public.tree,public.egg,public.hen'");
    for (name, n) in [("A", 100), ("B", 200)] {
        m.on(name).exec(&format!(
            "BEGIN; INSERT INTO z_parent VALUES ({n}); INSERT INTO a_child VALUES ({n}, {n}); INSERT INTO tree VALUES ({n}, NULL), ({n} + 1, {n}), ({n} - 1, {n} + 1); \
             INSERT INTO egg VALUES ({n}, {n}); INSERT INTO hen VALUES ({n}, {n}); COMMIT"
        ));
    }
    let tables = ["a_child", "z_parent", "tree", "egg", "hen"];
    m.drain_equal(&tables);
    m.expect_everywhere("SELECT count(*) FROM tree", "6");
    m.on("B").exec("BEGIN; DELETE FROM a_child WHERE id = 100; DELETE FROM z_parent WHERE id = 100; DELETE FROM tree WHERE id IN (99, 101); DELETE FROM tree WHERE id = 100; COMMIT");
    m.drain_equal(&tables);
    assert_eq!(m.count_conflicts("true"), 0);
}

/// An application deletes a parent where a run is about to bring a child: neither sees the other.
#[test]
fn a_parent_is_deleted_between_the_snapshot_and_the_child_of_a_run() {
    let m = Plan::new(2).place(Place::Beside).start();
    m.everywhere(&format!("{TWO}; {START}"));
    m.sync_over(&m.dbs(), "tables => 'public.parent,public.child'");
    m.control().exec("SELECT bucardo.fault_set('kid.after_gather', 'wait')");
    m.on("B").exec("INSERT INTO child VALUES (50, 5, 'B')");
    wait_until("the run to have its snapshots", || m.control().number("SELECT bucardo.fault_hits('kid.after_gather')") > 0);
    m.on("A").exec("DELETE FROM parent WHERE id = 5");
    m.control().exec("SELECT bucardo.fault_clear()");
    m.settle(&["parent", "child"]);
    m.expect_everywhere("SELECT count(*) FROM child WHERE id = 50", "0");
    assert_eq!(
        m.count_conflicts("strategy = 'foreign_key' AND winner = 'A' AND rows->'B'->>'val' = 'B'"),
        1,
        "{:?}",
        m.conflicts("public.child")
    );
}

/// What an orphan loses where the foreign key says SET NULL, and nothing else of it.
#[test]
fn only_the_reference_becomes_null() {
    let m = Plan::new(2).start();
    m.everywhere(
        "CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1); \
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE SET NULL, j jsonb NOT NULL, js json, \
         arr int[], f float8, c text); \
         CREATE TABLE strict (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent ON DELETE SET NULL, val text)",
    );
    m.sync("tables => 'public.parent,public.child,public.strict'");
    m.changes(&[
        ("A", "DELETE FROM parent"),
        (
            "B",
            "INSERT INTO child VALUES (1, 1, 'null', '{\"b\": 1,   \"b\":2}', '[2:3]={7,NULL}', '-0', ''); \
             INSERT INTO strict VALUES (1, 1, 'B')",
        ),
    ]);
    m.drain_equal(&["parent", "child", "strict"]);
    m.expect_everywhere(
        "SELECT concat_ws('|', parent IS NULL, j, js, arr, f, c) FROM child",
        "t|null|{\"b\": 1,   \"b\":2}|[2:3]={7,NULL}|-0|",
    );
    // A column that cannot be null: the row goes.
    m.expect_everywhere("SELECT count(*) FROM strict", "0");
    assert_eq!(m.count_conflicts("relation = 'public.strict' AND winner = 'A' AND rows->'B'->>'val' = 'B'"), 1);
    assert_eq!(m.count_conflicts("relation = 'public.child' AND winner = 'A' AND rows->'B'->>'parent' = '1'"), 1);
}

#[test]
fn only_the_listed_columns_become_null() {
    let m = Plan::new(2).start();
    if m.on("A").number("SELECT current_setting('server_version_num')::int") < 150_000 {
        return;
    }
    m.everywhere(
        "CREATE TABLE tenant (id int PRIMARY KEY); INSERT INTO tenant VALUES (1); \
         CREATE TABLE parent (tenant int REFERENCES tenant, id int, PRIMARY KEY (tenant, id)); INSERT INTO parent VALUES (1, 1); \
         CREATE TABLE child (id int PRIMARY KEY, tenant int NOT NULL REFERENCES tenant, parent int, other int DEFAULT 1, \
         FOREIGN KEY (tenant, parent) REFERENCES parent ON DELETE SET NULL (parent))",
    );
    m.sync("tables => 'public.tenant,public.parent,public.child'");
    m.changes(&[("A", "DELETE FROM parent"), ("B", "INSERT INTO child VALUES (1, 1, 1)")]);
    m.drain_equal(&["tenant", "parent", "child"]);
    m.expect_everywhere("SELECT concat_ws(' ', id, tenant, coalesce(parent, 0), other) FROM child", "1 1 0 1");
}

/// What no foreign key forbids any more, no run removes.
#[test]
fn a_foreign_key_that_was_dropped_removes_no_row() {
    let m = family(Capture::Plain);
    m.on("A").exec("INSERT INTO child VALUES (2, 2, 'A')");
    m.drain_equal(&["parent", "child"]);
    m.everywhere("ALTER TABLE child DROP CONSTRAINT child_parent_fkey");
    m.on("A").exec("DELETE FROM parent WHERE id = 2");
    m.drain_equal(&["parent", "child"]);
    m.expect_everywhere("SELECT string_agg(id::text, ' ' ORDER BY id) FROM child", "1 2");
    m.on("B").exec("INSERT INTO child VALUES (50, 99, 'B')");
    m.drain_equal(&["parent", "child"]);
    m.expect_everywhere("SELECT string_agg(id::text, ' ' ORDER BY id) FROM child", "1 2 50");
    assert_eq!(m.count_conflicts("true"), 0);
}

/// A foreign key that is not validated says nothing of the rows that were there; of those to come, it does.
#[test]
fn a_foreign_key_that_is_not_valid_leaves_old_orphans() {
    let m = Plan::new(2).start();
    m.everywhere(
        "CREATE TABLE parent (id int PRIMARY KEY, val text); INSERT INTO parent SELECT g, 'start' FROM generate_series(1, 9) g; \
         CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL, val text); INSERT INTO child VALUES (7, 99, 'old'), (8, 98, 'old'); \
         ALTER TABLE child ADD FOREIGN KEY (parent) REFERENCES parent NOT VALID",
    );
    m.sync("tables => 'public.parent,public.child'");
    m.on("B").exec("UPDATE child SET val = 'new' WHERE id = 7");
    m.drain_equal(&["parent", "child"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM child", "7new 8old");
    m.changes(&[("A", "DELETE FROM parent WHERE id = 5"), ("B", "INSERT INTO child VALUES (50, 5, 'B'), (60, 6, 'B')")]);
    m.drain_equal(&["parent", "child"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM child", "7new 8old 60B");
    assert_eq!(m.count_conflicts("strategy = 'foreign_key' AND winner = 'A' AND rows->'B'->>'val' = 'B'"), 1);
    assert_eq!(m.count_conflicts("true"), 1);
}

/// What a run has removed because its parent was gone is written anew with its parent: that knows of the removal.
#[test]
fn what_was_removed_without_a_parent_comes_again_with_one() {
    for (strategy, author) in [("bucardo_latest", "A"), ("bucardo_source", "A"), ("bucardo_source", "B")] {
        let m = Plan::new(2).start();
        m.everywhere(&format!("{TWO}; INSERT INTO parent VALUES (1, 'start')"));
        m.sync(&format!("tables => 'public.parent,public.child', conflict_strategy => '{strategy}'"));
        let other = if author == "A" { "B" } else { "A" };
        m.changes(&[(other, "DELETE FROM parent"), (author, "INSERT INTO child VALUES (10, 1, 'first')")]);
        assert_eq!(m.kick(), "good");
        m.expect_everywhere("SELECT count(*) FROM child", "0");
        m.on("B").exec("INSERT INTO parent VALUES (1, 'again'); INSERT INTO child VALUES (10, 1, 'again')");
        valid(&m);
        m.expect_everywhere("SELECT string_agg(id || val, ' ') FROM child", "10again");
        assert_eq!(m.count_conflicts("strategy <> 'foreign_key'"), 0, "{:?}", m.conflicts("public.child"));
    }
}

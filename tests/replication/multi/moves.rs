//! Keys that are changed on several sources: a key moved to two places, to the same place, away under another one's update,
//! deleted there. All members converge, and no row of anybody goes without a word.

use super::Plan;
use crate::net::Capture;

crate::for_both!(one_key_moves_to_two_places, a_row_moves_while_it_is_updated);

const START: &str = "CREATE TABLE t (id int PRIMARY KEY, val text); INSERT INTO t SELECT g, 'start' FROM generate_series(1, 9) g";
const ALL: &str = "SELECT string_agg(id || val, ' ' ORDER BY id) FROM t WHERE id < 3 OR id >= 100";

/// The old key is gone on both, which is no conflict; the two new keys are two rows, each the work of one source.
fn one_key_moves_to_two_places(capture: Capture) {
    let m = Plan::new(2).capture(capture).start();
    m.everywhere(START);
    m.sync("tables => 'public.t'");
    m.changes(&[("A", "UPDATE t SET id = 102, val = 'A' WHERE id = 1"), ("B", "UPDATE t SET id = 103, val = 'B' WHERE id = 1")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "2start 102A 103B");
    assert_eq!(m.count_conflicts("true"), 0, "deleted by all contenders is no conflict");
}

#[test]
fn two_keys_move_to_one_place() {
    let m = Plan::new(2).start();
    m.everywhere(START);
    m.sync("tables => 'public.t'");
    m.changes(&[("A", "UPDATE t SET id = 100, val = 'A' WHERE id = 1"), ("B", "UPDATE t SET id = 100, val = 'B' WHERE id = 2")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "100B");
    assert_eq!(
        m.conflicts("public.t"),
        [r#"{"id": 100}|bucardo_latest|B|{"A": {"id": 100, "val": "A"}, "B": {"id": 100, "val": "B"}}"#]
    );
}

fn a_row_moves_while_it_is_updated(capture: Capture) {
    let m = Plan::new(2).capture(capture).start();
    m.everywhere(START);
    m.sync("tables => 'public.t'");
    // The update is later: the old key lives again, and the moved row stays. The move is later: the old key is gone.
    m.changes(&[
        ("A", "UPDATE t SET id = 101, val = 'A moved' WHERE id = 1"),
        ("B", "UPDATE t SET val = 'B' WHERE id IN (1, 2)"),
        ("A", "UPDATE t SET id = 102, val = 'A moved' WHERE id = 2"),
    ]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "1B 101A moved 102A moved");
    assert_eq!(
        m.conflicts("public.t"),
        [
            r#"{"id": 1}|bucardo_latest|B|{"A": null, "B": {"id": 1, "val": "B"}}"#,
            r#"{"id": 2}|bucardo_latest|A|{"A": null, "B": {"id": 2, "val": "B"}}"#
        ]
    );
}

#[test]
fn a_key_moves_away_and_another_source_takes_it() {
    let m = Plan::new(2).start();
    m.everywhere(START);
    m.sync("tables => 'public.t'");
    m.changes(&[
        ("A", "UPDATE t SET id = 101 WHERE id = 1"),
        ("B", "DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (1, 'B new')"),
    ]);
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "1B new 2start 101start");
    assert_eq!(m.count_conflicts(r#"key = '{"id": 1}' AND winner = 'B'"#), 1);
}

/// Two rows exchange their keys on A, while B changes one of them.
#[test]
fn keys_swap_while_one_row_is_updated() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text); INSERT INTO t VALUES (1, 'one'), (2, 'two')");
    m.sync("tables => 'public.t'");
    m.changes(&[("B", "UPDATE t SET val = 'B' WHERE id = 1"), ("A", "BEGIN; UPDATE t SET id = -1 WHERE id = 1; UPDATE t SET id = 1 WHERE id = 2; UPDATE t SET id = 2 WHERE id = -1; COMMIT")]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1two 2one");
    assert_eq!(m.counted().max(m.count_conflicts("true")), 1, "key 1 was changed by both, key 2 by one");
}

#[test]
fn chains_of_moves_on_all_sources() {
    let m = Plan::new(3).start();
    m.everywhere("CREATE TABLE t (a int, b int, val text, PRIMARY KEY (a, b)); INSERT INTO t SELECT g, 0, 'start' FROM generate_series(1, 30) g");
    m.sync("tables => 'public.t'");
    m.changes(&[
        ("A", "UPDATE t SET b = b + 1 WHERE a <= 10; UPDATE t SET a = a + 100 WHERE a <= 5"),
        ("B", "UPDATE t SET b = b + 1 WHERE a BETWEEN 6 AND 20; UPDATE t SET b = b + 1 WHERE a BETWEEN 11 AND 20"),
        ("C", "UPDATE t SET a = a + 100 WHERE a BETWEEN 16 AND 30"),
        ("A", "UPDATE t SET a = a - 100 WHERE a = 101; DELETE FROM t WHERE a = 10"),
    ]);
    m.drain_equal(&["t"]);
    // 1–5 moved by A (1 came back), 6–9 by A and B to the same key, 10 deleted by A later than B's move,
    // 11–15 by B, 16–20 by B to one place and by C to another, 21–30 by C.
    m.expect_everywhere("SELECT count(*) FROM t", &(5 + 4 + 5 + 10 + 10).to_string());
    m.expect_everywhere("SELECT count(*) FROM t WHERE b = 0", "15");
    m.expect_everywhere(
        "SELECT string_agg(a || '/' || b, ' ' ORDER BY a) FROM t WHERE a IN (1, 102, 6, 10, 11)",
        "1/1 6/1 11/2 102/1",
    );
}

//! Several sources have many rows of the same tables, which are fetched from all of them at the same time.

use super::Plan;
use crate::net::Capture;

crate::for_both!(many_rows_of_three_sources);

/// Rows of one table from all three sources, of another from two, of a third with a key of words from all; new ones, changed ones,
/// deleted ones, and some that two have changed.
fn many_rows_of_three_sources(capture: Capture) {
    let m = Plan::new(3).targets(2).capture(capture).start();
    let table = |name: &str| format!("CREATE TABLE {name} (id int PRIMARY KEY, val text, other numeric)");
    m.everywhere(&format!(
        "{}; {}; CREATE TABLE w (a text, b text, val text, PRIMARY KEY (a, b)); \
         INSERT INTO t SELECT g, 'start', g FROM generate_series(1, 9000) g; \
         INSERT INTO u SELECT g, 'start', g FROM generate_series(1, 9000) g; \
         INSERT INTO w SELECT 'wörd', g::text, 'start' FROM generate_series(1, 3000) g",
        table("t"),
        table("u")
    ));
    m.sync("tables => 'public.t, public.u, public.w'");
    for (n, name) in m.sources.iter().enumerate() {
        let (first, last) = (n * 3000 + 1, (n + 1) * 3000);
        m.on(name).exec(&format!(
            "UPDATE t SET val = '{name}' WHERE id BETWEEN {first} AND {last} + 100; \
             DELETE FROM t WHERE id BETWEEN {first} + 500 AND {first} + 900; \
             INSERT INTO t SELECT 10000 + g, '{name}', NULL FROM generate_series({first}, {last}) g; \
             UPDATE w SET val = '{name}' WHERE b::int % 3 = {n}; \
             DELETE FROM w WHERE b::int % 30 = {n}"
        ));
    }
    for name in ["A", "B"] {
        m.on(name).exec(&format!("UPDATE u SET val = '{name}', other = NULL WHERE (id % 2 = 0) = ('{name}' = 'A')"));
    }
    m.drain_equal(&["t", "u", "w"]);
    m.expect_everywhere(
        "SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE val = 'start'), count(*) FILTER (WHERE id > 10000)) FROM t",
        "16797 0 9000",
    );
    m.expect_everywhere(
        "SELECT concat_ws(' ', count(*) FILTER (WHERE val = 'A'), count(*) FILTER (WHERE val = 'B')) FROM u",
        "4500 4500",
    );
    m.expect_everywhere("SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE val = 'start')) FROM w", "2700 0");
    // By A and B the hundred that follow A's, by B and C those that follow B's.
    assert_eq!(m.count_conflicts("relation = 'public.t' AND winner IN ('B', 'C')"), 200);
    assert_eq!(m.count_conflicts("true"), 200);
    assert_eq!(m.kick(), "empty");
}

/// What finds no room in the kid's memory goes one source after the other.
#[test]
fn rows_that_find_no_room() {
    let m = Plan::new(2).settings("bucardo.kid_work_mem = '1MB'").start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text)");
    m.everywhere("INSERT INTO t SELECT g, 'start' FROM generate_series(1, 4000) g");
    m.sync("tables => 'public.t'");
    let attempts = || m.control().one("SELECT details->>'attempts' FROM bucardo.syncrun ORDER BY run DESC LIMIT 1");
    for (length, wanted) in [(10, "1"), (1000, "2")] {
        m.on("A").exec(&format!("UPDATE t SET val = repeat('a', {length}) WHERE id <= 2000"));
        m.on("B").exec(&format!("UPDATE t SET val = repeat('b', {length}) WHERE id > 2000"));
        assert_eq!(m.kick(), "good");
        assert_eq!(attempts(), wanted, "rows of {length} bytes");
        m.assert_equal("t");
    }
    m.expect_everywhere("SELECT count(*) FROM t WHERE length(val) = 1000", "4000");
    assert_eq!(m.count_conflicts("true"), 0);
}

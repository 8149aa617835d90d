//! Keys that are whole numbers: where they lie close together, the source is walked along its index between the least and the
//! greatest, past rows that are not to travel; where they do not, each is looked up. Whichever way, a run brings the changed
//! rows and no other, at the first attempt, and never reads a whole table for the sake of a few rows.

use crate::multi::Plan;
use crate::net::{Capture, Net};
use crate::wait::wait_until;

for_both!(
    new_rows_among_old_ones,
    a_walk_is_few_descents,
    changed_rows_among_others,
    few_rows_of_a_grown_table,
    locked_strangers
);

/// Of the last run that did anything: rows written, rows deleted, attempts.
const LAST: &str = "SELECT upserts || ' ' || deletes || ' ' || (details->>'attempts') FROM bucardo.syncrun \
                    WHERE state = 'good' ORDER BY run DESC LIMIT 1";

fn new_rows_among_old_ones(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE t (v text, id bigint PRIMARY KEY); CREATE TABLE small (id smallint PRIMARY KEY, v text);
         CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (MINVALUE) TO (2000);
         CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (2000) TO (MAXVALUE);
         INSERT INTO t SELECT 'old', 2 * g FROM generate_series(-3000, 3000) g;
         INSERT INTO small SELECT 2 * g FROM generate_series(-1000, 1000) g; INSERT INTO parts SELECT 2 * g FROM generate_series(1, 2000) g",
    );
    net.add_sync("tables => 't, small, parts', autokick => false");
    let mut a = net.on("A");
    let new = [
        // Close together, in no order, with old rows between them, in one statement and in two that overlap.
        "INSERT INTO t SELECT 'new', 2 * g + 1 FROM generate_series(-2500, 2500) g ORDER BY g * 7919 % 5003",
        "INSERT INTO t SELECT 'more', 10 * g FROM generate_series(1000, 2500) g",
        "INSERT INTO t SELECT 'more', 10 * g + 1 FROM generate_series(1000, 2500) g",
        // Far from each other; to the ends of what there is; one by one.
        "INSERT INTO t SELECT 'far', 1000000007::bigint * g FROM generate_series(1, 2000) g",
        "INSERT INTO t VALUES ('least', -9223372036854775808), ('zero', 30001), ('greatest', 9223372036854775807)",
        "INSERT INTO t VALUES ('one', 30003)",
        "INSERT INTO small SELECT 2 * g + 1, 'new' FROM generate_series(-900, 900) g",
        "INSERT INTO small VALUES (-32768, 'least'), (32767, 'greatest')",
        "INSERT INTO parts SELECT 2 * g + 1, 'new' FROM generate_series(1, 1900) g",
    ];
    new.iter().for_each(|sql| a.exec(sql));
    let changed =
        "SELECT (SELECT count(*) FROM t WHERE v <> 'old') + (SELECT count(v) FROM small) + (SELECT count(v) FROM parts)";
    let expected = a.number(changed);
    net.kick();
    ["t", "small", "parts"].iter().for_each(|table| net.assert_equal(table));
    assert_eq!(net.control().one(LAST), format!("{expected} 0 1"));
    // What came and went is nothing to copy, and one key may come twice.
    a.exec("INSERT INTO t SELECT 'again', 2 * g + 1 FROM generate_series(15100, 17400) g; INSERT INTO t VALUES ('again', 40005)");
    a.exec("DELETE FROM t WHERE v = 'again' AND id % 3 = 0; INSERT INTO t SELECT 'once more', 6 * g + 3 FROM generate_series(5100, 5300) g");
    let expected = a.number("SELECT count(*) FROM t WHERE v IN ('again', 'once more')");
    net.kick();
    net.assert_equal("t");
    assert_eq!(net.control().one(LAST), format!("{expected} 0 1"));
}

/// What the statistics of A's tables say once so many rows were fetched by index, which a session may report seconds later: how often
/// a table was read as a whole, and an index was descended.
fn scans(net: &Net, tables: &str, fetched: i64) -> (i64, i64) {
    let sum = |column: &str| {
        let which = format!("relname = ANY (string_to_array('{tables}', ' '))");
        net.on("A").number(&format!("SELECT sum({column}) FROM pg_stat_user_tables WHERE {which}"))
    };
    wait_until("the look-ups are counted", || sum("idx_tup_fetch") >= fetched);
    (sum("seq_scan"), sum("idx_scan"))
}

fn a_walk_is_few_descents(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE near (id int PRIMARY KEY, v int); CREATE TABLE far (id int PRIMARY KEY, v int);
         CREATE TABLE hot (id int PRIMARY KEY, v int); INSERT INTO hot SELECT g, 0 FROM generate_series(1, 3000) g",
    );
    net.add_sync("tables => 'near, far, hot', autokick => false");
    let mut a = net.on("A");
    a.exec("INSERT INTO near SELECT g, 1 FROM generate_series(1, 6000) g; INSERT INTO far SELECT 100 * g, 1 FROM generate_series(1, 6000) g");
    net.kick();
    let (_, walked) = scans(&net, "near", 6000);
    assert!(walked < 20, "6000 new rows by {walked} descents");
    assert!(scans(&net, "far", 6000).1 >= 6000, "rows far from each other by a walk");
    // Not by an index, on A itself.
    a.exec("UPDATE near SET v = 2 WHERE id + 0 <= 2000; UPDATE far SET v = 2 WHERE id + 0 <= 200000");
    // More changes than there are keys between these two: still nobody walks past all of them.
    a.exec("DO 'BEGIN FOR i IN 1 .. 1600 LOOP UPDATE hot SET v = v + 1 WHERE id + 0 IN (1, 3000); END LOOP; END'");
    net.kick();
    let (_, walked) = scans(&net, "near", 8000);
    assert!(walked < 25, "2000 changed rows by {walked} descents");
    assert!(scans(&net, "far", 8000).1 >= 8000);
    scans(&net, "hot", 2);
    let fetched = net.on("A").number("SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'hot'");
    assert!(fetched < 1000, "two keys by a walk past {fetched} rows");
    ["near", "far", "hot"].iter().for_each(|table| net.assert_equal(table));
}

fn changed_rows_among_others(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old' FROM generate_series(1, 10000) g;
         CREATE TABLE far (id int PRIMARY KEY, v text); INSERT INTO far SELECT 1000 * g, 'old' FROM generate_series(-2000, 2000) g",
    );
    net.add_sync("tables => 't, far', autokick => false");
    // What only B has, or has otherwise, is not touched unless its key has changed on A.
    net.on("B").exec("UPDATE t SET v = 'own' WHERE id % 2 = 0");
    let mut a = net.on("A");
    a.exec("UPDATE t SET v = 'new' WHERE id % 2 = 1 AND id BETWEEN 3000 AND 7000");
    a.exec("UPDATE t SET v = 'newer' WHERE id % 4 = 1 AND id BETWEEN 4000 AND 6000; DELETE FROM t WHERE id % 10 = 5 AND id BETWEEN 3500 AND 4500");
    a.exec("UPDATE far SET v = 'new' WHERE id % 3000 = 0; DELETE FROM far WHERE id IN (-2000000, 1000, 2000000)");
    let deleted = 10_000 + 4001 - a.number("SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM far)");
    let changed = a.number("SELECT (SELECT count(*) FROM t WHERE v <> 'old') + (SELECT count(*) FROM far WHERE v <> 'old')");
    net.kick();
    net.assert_equal("far");
    assert_eq!(net.control().one(LAST), format!("{changed} {deleted} 1"));
    let mut b = net.on("B");
    assert_eq!(b.number("SELECT count(*) FROM t WHERE v = 'own'"), 5000);
    b.exec("UPDATE t SET v = 'old' WHERE v = 'own'");
    net.assert_equal("t");
}

/// A table that was empty when the sync was made: what is known of it then is not what it is like later.
fn few_rows_of_a_grown_table(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere("CREATE TABLE t (id uuid PRIMARY KEY, v int); CREATE TABLE n (id int PRIMARY KEY, v int)");
    net.add_sync("tables => 't, n', autokick => false");
    let mut a = net.on("A");
    a.exec("INSERT INTO t VALUES (md5('0')::uuid, 0); INSERT INTO n VALUES (0, 0)");
    net.kick();
    a.exec("INSERT INTO t SELECT md5(g::text)::uuid, g FROM generate_series(1, 50000) g; INSERT INTO n SELECT 100 * g, g FROM generate_series(1, 50000) g");
    net.kick();
    // The second table's numbers are far from each other too: all of them are looked up.
    let (before, _) = scans(&net, "t n", 100_000);
    // Two that A makes itself.
    a.exec("UPDATE t SET v = -v WHERE v BETWEEN 1 AND 1000; UPDATE n SET v = -v WHERE v BETWEEN 1 AND 1000");
    drop(a);
    wait_until("A's own are counted", || scans(&net, "t n", 0).0 >= before + 2);
    net.kick();
    let fetched =
        |table: &str| net.on("A").number(&format!("SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relname = '{table}'"));
    wait_until("what the run has read is counted", || {
        scans(&net, "t n", 0).0 > before + 2 || fetched("t") > 50_900 && fetched("n") > 50_900
    });
    assert_eq!(scans(&net, "t n", 0).0, before + 2, "a whole table was read");
    assert!(fetched("t") < 60_000 && fetched("n") < 60_000, "a whole index was read");
    ["t", "n"].iter().for_each(|table| net.assert_equal(table));
}

/// Between two sources each walks along its index twice: to tell what it has changed, and to take what the other has.
#[test]
fn two_sources_walk_to_read_and_to_write() {
    let m = Plan::new(2).capture(Capture::Native).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT g, 0 FROM generate_series(1, 20000) g");
    m.sync("tables => 't'");
    m.on("A").exec("UPDATE t SET v = 1 WHERE id + 0 BETWEEN 1001 AND 4000");
    m.on("B").exec("UPDATE t SET v = 2 WHERE id + 0 BETWEEN 3901 AND 7000");
    assert_eq!(m.kick(), "good");
    m.assert_equal("t");
    assert_eq!(m.counted(), 100);
    for member in ["A", "B"] {
        let figures = "SELECT idx_tup_fetch || ' ' || idx_scan FROM pg_stat_user_tables WHERE relname = 't'";
        let mut seen = (0, 0);
        wait_until("what the run has read is counted", || {
            let text = m.on(member).one(figures);
            seen = text.split_once(' ').and_then(|(f, s)| Some((f.parse().ok()?, s.parse().ok()?))).unwrap_or_default();
            seen.0 >= 6000
        });
        // Of each conflict the row is looked up.
        assert!(seen.1 < 400, "{member} descended {} times", seen.1);
    }
}

/// How large a table is is asked of that table alone: others may be locked for as long as somebody likes.
fn locked_strangers(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE stranger (id int)");
    net.add_sync("tables => 't', autokick => false");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 1 FROM generate_series(1, 3000) g");
    net.kick();
    let mut other = net.on("A");
    other.exec("BEGIN; LOCK TABLE stranger");
    for _ in 0..3 {
        a.exec("UPDATE t SET v = v + 1 WHERE id % 2 = 0");
        net.kick();
    }
    other.exec("COMMIT");
    net.assert_equal("t");
}

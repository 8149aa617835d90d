//! Keys that are whole numbers: where they lie close together, the source is walked along its index between the least and the
//! greatest, past rows that are not to travel; where they do not, each is looked up. Whichever way, a run brings the changed
//! rows and no other, at the first attempt, and never reads a whole table for the sake of a few rows.

use crate::net::{Capture, Net};
use crate::wait::wait_until;

for_both!(new_rows_among_old_ones, changed_rows_among_others, few_rows_of_a_grown_table);

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
    // Gone before anybody came for them.
    a.exec("DELETE FROM t WHERE v = 'far' AND id % 5 = 0");
    let changed =
        "SELECT (SELECT count(*) FROM t WHERE v <> 'old') + (SELECT count(v) FROM small) + (SELECT count(v) FROM parts)";
    let expected = a.number(changed);
    net.kick();
    ["t", "small", "parts"].iter().for_each(|table| net.assert_equal(table));
    assert_eq!(net.control().one(LAST), format!("{expected} 0 1"));
    // Nothing but new rows, which go straight into the table.
    a.exec(
        "INSERT INTO t SELECT 'straight', 2 * g + 1 FROM generate_series(2600, 4900) g; INSERT INTO t VALUES ('straight', 30005)",
    );
    net.kick();
    net.assert_equal("t");
    assert_eq!(net.control().one(LAST), "2302 0 1");
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
    let scans = || {
        net.on("A").one("SELECT sum(seq_scan) || ' ' || (sum(idx_scan) > 50000 + 2000)::text FROM pg_stat_user_tables WHERE relname IN ('t', 'n')")
    };
    a.exec(
        "SET enable_seqscan = off; UPDATE t SET v = -v WHERE id IN (SELECT md5(g::text)::uuid FROM generate_series(1, 1000) g); \
            UPDATE n SET v = -v WHERE id IN (SELECT 100 * g FROM generate_series(1, 1000) g)",
    );
    let before = scans();
    net.kick();
    wait_until("the look-ups are counted", || scans().ends_with("true"));
    assert_eq!(scans().split(' ').next(), before.split(' ').next(), "a whole table was read");
    ["t", "n"].iter().for_each(|table| net.assert_equal(table));
}

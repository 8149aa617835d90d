//! TRUNCATE and sequences: the two things that travel and are not rows.
//!
//! A truncate must take effect exactly where it stood among the row changes of its transaction, and never reach a table
//! that is not replicated. Sequences travel with runs only; they may never fall behind what a run has sent.

use crate::net::{Capture, Net};

for_both!(truncate_and_rows_around_it, referenced_by_foreign_keys, several_tables_at_once, sequences);

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

fn truncate_and_rows_around_it(capture: Capture) {
    let net = Net::together(capture, 2).with_table(T, "public.t");
    let mut a = net.on("A");
    for sql in [
        "INSERT INTO t SELECT g, 'old' FROM generate_series(1, 100) g",
        "TRUNCATE t",
        "INSERT INTO t SELECT g, 'second' FROM generate_series(50, 150) g",
        "BEGIN; INSERT INTO t VALUES (1000, 'lost'); TRUNCATE t; INSERT INTO t SELECT g, 'third' FROM generate_series(90, 110) g; COMMIT",
        "BEGIN; UPDATE t SET v = 'x'; TRUNCATE t; INSERT INTO t VALUES (1, 'a'), (2, 'b'); TRUNCATE t; INSERT INTO t VALUES (2, 'c'); COMMIT",
        "BEGIN; TRUNCATE t; ROLLBACK; INSERT INTO t VALUES (3, 'after a rollback')",
        "BEGIN; SAVEPOINT s; TRUNCATE t; ROLLBACK TO s; UPDATE t SET v = 'kept' WHERE id = 2; COMMIT",
        "TRUNCATE t RESTART IDENTITY CASCADE; INSERT INTO t VALUES (7, 'cascade')",
    ] {
        a.exec(sql);
        net.settle(&["t"]);
    }
    // All of it in one go: what a target gets after having been paused.
    net.control().exec("SELECT bucardo.pause('s')");
    a.exec("INSERT INTO t VALUES (8, 'gone'); TRUNCATE t; INSERT INTO t VALUES (9, 'stays'); UPDATE t SET id = 10");
    a.exec("TRUNCATE t; INSERT INTO t VALUES (11, 'last')");
    net.control().exec("SELECT bucardo.resume('s')");
    net.settle(&["t"]);
    assert_eq!(net.on("C").one("SELECT string_agg(id::text, ',') FROM t"), "11");
}

#[test]
fn rows_only_a_target_has_go_with_a_truncate_and_the_run_counts_it() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere(T);
    net.add_sync("tables => 'public.t', autokick => false");
    net.on("B").exec("INSERT INTO t VALUES (77, 'only here')");
    net.on("A").exec("TRUNCATE t");
    assert_eq!(net.kick(), "good");
    net.assert_equal("t");
    assert_eq!(net.control().one("SELECT truncates::text FROM bucardo.syncrun ORDER BY run DESC LIMIT 1"), "1");
    assert_eq!(net.kick(), "empty");
}

fn referenced_by_foreign_keys(capture: Capture) {
    let net = Net::together(capture, 2);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t)");
    // On the target alone a table that no sync knows refers to it, too.
    net.on("B").exec("CREATE TABLE local (id int PRIMARY KEY, t int REFERENCES t)");
    net.add_sync("tables => 'public.t,public.child'");
    let mut a = net.on("A");
    a.exec("INSERT INTO t VALUES (1, 'x'), (2, 'y'); INSERT INTO child VALUES (1, 1)");
    net.settle(&["t", "child"]);
    net.on("B").exec("INSERT INTO local VALUES (1, 2)");
    a.exec("BEGIN; TRUNCATE t CASCADE; INSERT INTO t VALUES (2, 'new'); INSERT INTO child VALUES (5, 2); COMMIT");
    net.settle(&["t", "child"]);
    assert_eq!(net.on("B").number("SELECT count(*) FROM local"), 1, "a table outside the sync was emptied");
    a.exec("TRUNCATE child");
    net.settle(&["t", "child"]);
}

fn several_tables_at_once(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE SCHEMA x; CREATE TABLE x.a (id int PRIMARY KEY); CREATE TABLE x.b (id int PRIMARY KEY); CREATE TABLE x.c (id int PRIMARY KEY)",
    );
    net.add_sync("tables => 'x.*'");
    let mut a = net.on("A");
    a.exec("INSERT INTO x.a SELECT generate_series(1, 9); INSERT INTO x.b TABLE x.a; INSERT INTO x.c TABLE x.a");
    net.settle(&["x.a", "x.b", "x.c"]);
    a.exec("BEGIN; TRUNCATE x.a, x.b; INSERT INTO x.b VALUES (99); UPDATE x.c SET id = id + 50; COMMIT");
    net.settle(&["x.a", "x.b", "x.c"]);
    assert_eq!(net.on("B").number("SELECT count(*) FROM x.a"), 0);
}

fn sequence_of(net: &Net, name: &str, sequence: &str) -> String {
    net.on(name).one(&format!("SELECT last_value || ' ' || is_called FROM {sequence}"))
}

fn sequences(capture: Capture) {
    let net = Net::together(capture, 2);
    net.everywhere(
        "CREATE TABLE t (id serial PRIMARY KEY, v text); CREATE SEQUENCE down INCREMENT -3 MAXVALUE 1000 START 1000; \
         CREATE SEQUENCE fresh START 5; CREATE SCHEMA \"Odd One\"; CREATE SEQUENCE \"Odd One\".\"s.q\" AS smallint CYCLE MAXVALUE 4",
    );
    let names = ["t_id_seq", "down", "fresh", "\"Odd One\".\"s.q\""];
    net.add_sync("tables => 'public.t,public.t_id_seq,public.down,public.fresh,\"Odd One\".\"s.q\"', autokick => false");
    let equal = || names.iter().all(|s| ["B", "C"].iter().all(|m| sequence_of(&net, m, s) == sequence_of(&net, "A", s)));
    let mut a = net.on("A");
    a.exec("INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 12); SELECT nextval('down'), nextval('down'); SELECT nextval('\"Odd One\".\"s.q\"')");
    assert_eq!(net.kick(), "good");
    assert!(equal(), "sequences differ after a run");
    assert_eq!(sequence_of(&net, "C", "down"), "997 true");
    assert_eq!(sequence_of(&net, "B", "fresh"), "5 false");
    a.exec("SELECT nextval('fresh')");
    assert_eq!(net.kick(), "good", "a run that only moved a sequence is good");
    assert!(equal());
    assert_eq!(net.kick(), "empty");
    a.exec("SELECT setval('down', 4, false), setval('t_id_seq', 1, false); SELECT nextval('\"Odd One\".\"s.q\"') FROM generate_series(1, 5)");
    assert_eq!(net.kick(), "good");
    assert!(equal(), "a sequence set back stays ahead on a target");
}

//! A table gets another file under a run that has its snapshot already: TRUNCATE, and ALTER TABLE that rewrites, respect no
//! snapshot, so that the run would find it empty. What it reads then must never be taken for what the source has.

use crate::multi::{Multi, Place, Plan};
use crate::net::{Capture, Net};
use crate::wait::wait_until;

for_both!(rewritten_on_the_source);

const HELD: &str = "SELECT bucardo.fault_taken('kid.after_gather')";
const T: &str = "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT g, 0 FROM generate_series(1, 1000) g";
const REWRITE: &str = "ALTER TABLE t ALTER COLUMN n TYPE int USING n + 0";
const SUM: &str = "SELECT count(*) || ' ' || sum(n) FROM t";

/// A few rows, many, and many new ones, which are copied straight.
fn rewritten_on_the_source(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(T);
    net.add_sync("tables => 'public.t'");
    for change in [
        "UPDATE t SET n = n + 1 WHERE id <= 10",
        "UPDATE t SET n = n + 1 WHERE id <= 500",
        "INSERT INTO t SELECT g, 0 FROM generate_series(2001, 2500) g",
    ] {
        net.rest();
        net.on("A").exec(change);
        net.control().exec("SELECT bucardo.fault_set('kid.after_gather', 'wait'); SELECT bucardo.resume('s')");
        wait_until("the run to have its snapshot", || net.control().one(HELD) == "t");
        net.on("A").exec(REWRITE);
        net.control().exec("SELECT bucardo.fault_clear()");
        net.settle(&["t"]);
    }
    assert_eq!(net.on("B").one(SUM), "1500 510");
}

fn held(m: &Multi, changes: &[(&str, &str)]) {
    m.rest();
    for (name, sql) in changes {
        m.on(name).exec(sql);
    }
    m.control().exec("SELECT bucardo.fault_set('kid.after_gather', 'wait'); SELECT bucardo.resume('s')");
    wait_until("the run to have its snapshots", || m.control().one(HELD) == "t");
}

/// On a source to which nobody sends anything.
#[test]
fn rewritten_on_the_only_source_with_news() {
    let m = Plan::new(2).place(Place::Beside).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    held(&m, &[("A", "UPDATE t SET n = 1 WHERE id <= 10; DELETE FROM t WHERE id > 990")]);
    m.on("A").exec(REWRITE);
    m.control().exec("SELECT bucardo.fault_clear()");
    m.settle(&["t"]);
    m.expect_everywhere(SUM, "990 10");
}

/// On a target, where nothing that was to go would be found.
#[test]
fn rewritten_on_a_target() {
    let m = Plan::new(2).targets(1).place(Place::Beside).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    held(&m, &[("A", "DELETE FROM t WHERE id > 990"), ("B", "DELETE FROM t WHERE id < 10")]);
    m.on("T").exec(REWRITE);
    m.control().exec("SELECT bucardo.fault_clear()");
    m.settle(&["t"]);
    m.expect_everywhere(SUM, "981 0");
}

//! Members that come: a new source or target joins a sync that is under load, and is filled without a pause for anybody;
//! a member that goes is forgotten. Nothing written meanwhile is lost or written over.

use super::{Multi, Place, Plan};
use crate::net::Capture;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

crate::for_both!(a_new_empty_source_joins_under_load);

const T: &str = "CREATE TABLE t (id bigint PRIMARY KEY, val text)";

/// Writers on A and B while `meanwhile` goes on, and a little longer; how many rows were written.
fn under_load(m: &Multi, meanwhile: impl FnOnce()) -> i64 {
    let over = AtomicBool::new(false);
    let written = AtomicI64::new(0);
    std::thread::scope(|threads| {
        for (n, name) in ["A", "B"].into_iter().enumerate() {
            let (over, written) = (&over, &written);
            threads.spawn(move || {
                let mut conn = m.on(name);
                let mut id = 1_000_000 * (n as i64 + 1);
                while !over.load(Ordering::Relaxed) {
                    id += 1;
                    conn.exec(&format!("INSERT INTO t VALUES ({id}, '{name}')"));
                    written.fetch_add(1, Ordering::Relaxed);
                    // Rows that are changed again while they may be under way to the new member.
                    let _defeated =
                        conn.try_query(&format!("UPDATE t SET val = '{name} again' WHERE id IN ({}, {})", id % 500, id - 5));
                }
            });
        }
        let _end = AtEnd(&over);
        meanwhile();
        let then = written.load(Ordering::Relaxed);
        crate::wait::wait_until("writes to go on", || written.load(Ordering::Relaxed) > then + 200);
    });
    written.load(Ordering::Relaxed)
}

struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A, B and T live and filled with 3,000 rows, of which nothing is pending.
fn lively(capture: Capture) -> Multi {
    let m = Plan::new(2).capture(capture).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.on("A").exec("INSERT INTO t SELECT g, 'start' FROM generate_series(0, 2999) g");
    m.settle(&["t"]);
    m
}

fn a_new_empty_source_joins_under_load(capture: Capture) {
    let mut m = lively(capture);
    m.net.add_member("D", 0, "");
    m.on("D").exec(T);
    let written = under_load(&m, || {
        m.control().exec("SELECT bucardo.update_sync('s', dbs => 'A:source,B:source,D:source,T:target', onetimecopy => 2)");
        m.wait_sql("D", "the copy", "SELECT count(*) >= 3000 FROM t");
        m.on("D").exec("INSERT INTO t VALUES (-1, 'D'); UPDATE t SET val = 'D' WHERE id = 2500");
    });
    m.settle(&["t"]);
    m.expect_everywhere("SELECT count(*) FROM t", &(3000 + written + 1).to_string());
    m.expect_everywhere("SELECT string_agg(val, ' ') FROM t WHERE id IN (-1, 2500)", "D D");
    assert_eq!(m.control().number("SELECT onetimecopy FROM bucardo.sync WHERE name = 's'"), 0, "a copy is made once");
    m.on("D").exec("DELETE FROM t WHERE id = 2501");
    m.settle(&["t"]);
}

#[test]
fn a_new_empty_target_joins_under_load() {
    let mut m = lively(Capture::Plain);
    m.net.add_member("E", 0, "");
    m.on("E").exec(T);
    let written = under_load(&m, || {
        m.control().exec("SELECT bucardo.update_sync('s', dbs => 'A:source,B:source,T:target,E:target', onetimecopy => 2)");
        m.wait_sql("E", "the copy", "SELECT count(*) >= 3000 FROM t");
    });
    m.settle(&["t"]);
    m.expect_everywhere("SELECT count(*) FROM t", &(3000 + written).to_string());
}

/// With mode 2 a member whose table holds rows is not copied to, and none of its rows is touched.
#[test]
fn a_newcomer_that_holds_rows_keeps_them() {
    let mut m = lively(Capture::Plain);
    m.net.add_member("D", 0, "");
    m.on("D").exec(&format!("{T}; INSERT INTO t VALUES (-5, 'of D')"));
    m.control().exec("SELECT bucardo.update_sync('s', dbs => 'A:source,B:source,D:source,T:target', onetimecopy => 2)");
    m.on("A").exec("INSERT INTO t VALUES (-1, 'A')");
    m.wait_sql("D", "the new row", "SELECT count(*) = 1 FROM t WHERE id = -1");
    m.wait_served();
    assert_eq!(m.on("D").one("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t"), "-5of D -1A");
    assert_eq!(m.on("A").number("SELECT count(*) FROM t"), 3001);
}

/// A newcomer without a copy gets what changes from now on, and nothing that was there before.
#[test]
fn a_newcomer_without_a_copy() {
    let mut m = lively(Capture::Plain);
    m.net.add_member("D", 0, "");
    m.on("D").exec(T);
    m.control().exec("SELECT bucardo.update_sync('s', dbs => 'A:source,B:source,D:source,T:target')");
    m.changes(&[("A", "UPDATE t SET val = 'A' WHERE id = 1"), ("D", "INSERT INTO t VALUES (-1, 'D')")]);
    m.wait_sql("D", "the changed row", "SELECT count(*) = 1 FROM t WHERE id = 1 AND val = 'A'");
    for name in ["A", "B", "T"] {
        m.wait_sql(name, "the newcomer's row", "SELECT count(*) = 1 FROM t WHERE id = -1");
    }
    assert_eq!(m.on("D").number("SELECT count(*) FROM t"), 2);
}

#[test]
fn a_new_sync_copies_to_every_empty_member() {
    let m = Plan::new(3).targets(2).start();
    m.everywhere(T);
    m.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 500) g");
    m.on("U").exec("INSERT INTO t VALUES (-1, 'U')");
    m.sync_over(&m.dbs(), "tables => 'public.t', onetimecopy => 2");
    m.control().exec("SELECT bucardo.kick('s')");
    m.wait_equal("t", &["B", "C", "T"]);
    assert_eq!(m.on("U").number("SELECT count(*) FROM t"), 1, "not empty, not copied to");
    assert_eq!(m.count_conflicts("true"), 0);
    // What a source got by the copy is no change of its own.
    m.wait_served();
    m.on("C").exec("DELETE FROM t WHERE id = 1");
    m.wait_equal("t", &["B", "C", "T"]);
}

#[test]
fn a_source_that_leaves_is_forgotten() {
    let m = Plan::new(3).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.on("C").exec("INSERT INTO t VALUES (1, 'C')");
    m.settle(&["t"]);
    m.control().exec("SELECT bucardo.update_sync('s', dbs => 'A:source,B:source,T:target')");
    m.wait_sql("C", "its triggers to go", "SELECT count(*) = 0 FROM pg_trigger WHERE tgrelid = 't'::regclass");
    m.changes(&[
        ("C", "INSERT INTO t VALUES (2, 'C alone')"),
        ("A", "INSERT INTO t VALUES (3, 'A')"),
        ("B", "DELETE FROM t WHERE id = 1"),
    ]);
    m.wait_served();
    for name in ["A", "B", "T"] {
        m.wait_sql(name, "what the others wrote", "SELECT string_agg(id || val, ' ') = '3A' FROM t");
    }
    assert_eq!(m.on("C").one("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t"), "1C 2C alone");
    assert_eq!(m.control().one("SELECT bucardo.remove_db('C')"), "C");
}

#[test]
fn a_target_becomes_a_source_and_back() {
    let m = Plan::new(2).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'A')"), ("B", "INSERT INTO t VALUES (2, 'B')")]);
    m.settle(&["t"]);
    m.control().exec("SELECT bucardo.update_sync('s', dbs => 'A:source,B:source,T:source')");
    m.on("T").exec("UPDATE t SET val = 'T' WHERE id = 1; INSERT INTO t VALUES (3, 'T')");
    m.wait_equal("t", &["B", "T"]);
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1T 2B 3T");
    m.control().exec("SELECT bucardo.update_sync('s', dbs => 'A:source,B:source,T:target')");
    m.on("T").exec("INSERT INTO t VALUES (4, 'T alone')");
    m.on("B").exec("INSERT INTO t VALUES (5, 'B')");
    m.wait_sql("T", "the row of B", "SELECT count(*) = 1 FROM t WHERE id = 5");
    m.wait_served();
    assert_eq!(m.on("A").number("SELECT count(*) FROM t WHERE id = 4"), 0);
}

//! Order of commits, many sessions, a long backlog: nothing committed is lost, whatever commits when.
//!
//! A transaction that began long ago and commits now belongs to the run that comes now. These scenarios commit out of
//! order on purpose and compare whole tables afterwards; not one row may be missing or too many.

use crate::net::{Capture, Net};

for_both!(transactions_that_commit_late, eight_clients, a_long_backlog);

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

fn transactions_that_commit_late(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    let mut writer = net.on("A");
    let mut open: Vec<_> = (0..6).map(|_| net.on("A")).collect();
    for (n, conn) in open.iter_mut().enumerate() {
        conn.exec(&format!("BEGIN; INSERT INTO t VALUES ({n}, 'late')"));
        writer.exec(&format!("INSERT INTO t VALUES ({}, 'soon')", 100 + n));
    }
    net.settle(&["t"]);
    // They commit in an order of their own, each after runs that have passed them by.
    for n in [3, 0, 5, 1] {
        open[n].exec(&format!("UPDATE t SET v = 'x' WHERE id = {n}; INSERT INTO t VALUES ({}, 'end'); COMMIT", 200 + n));
        writer.exec(&format!("UPDATE t SET v = v || '.' WHERE id = {}", 100 + n));
        net.settle(&["t"]);
    }
    open[2].exec("ROLLBACK");
    open[4].exec("SAVEPOINT s; DELETE FROM t WHERE id = 4; ROLLBACK TO s; COMMIT");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one("SELECT string_agg(id::text, ' ' ORDER BY id) FROM t WHERE id < 100"), "0 1 3 4 5");
}

fn eight_clients(capture: Capture) {
    let net = Net::together(capture, 2);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE hot (id int PRIMARY KEY, n int)");
    net.add_sync("tables => 'public.t,public.hot'");
    net.on("A").exec("SET synchronous_commit = off; INSERT INTO hot SELECT g, 0 FROM generate_series(1, 8) g");
    std::thread::scope(|threads| {
        for client in 0..8 {
            let net = &net;
            threads.spawn(move || {
                let mut a = net.on("A");
                a.exec("SET synchronous_commit = off");
                for n in 0..1000 {
                    let id = client * 10_000 + n;
                    a.exec(&format!("INSERT INTO t VALUES ({id}, 'c{client}')"));
                    match n % 10 {
                        3 => a.exec(&format!("DELETE FROM t WHERE id = {}", id - 2)),
                        6 => a.exec(&format!("UPDATE hot SET n = n + 1 WHERE id = {}", 1 + n % 8)),
                        _ => {}
                    }
                }
            });
        }
    });
    net.settle(&["t", "hot"]);
    assert_eq!(net.on("B").number("SELECT count(*) FROM t"), 8 * 900);
    assert_eq!(net.on("C").number("SELECT sum(n) FROM hot"), 8 * 100);
}

#[test]
fn runs_pass_by_a_transaction_that_stays_open_for_the_whole_load() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let mut old = net.on("A");
    old.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t; INSERT INTO t VALUES (-1, 'oldest')");
    let mut a = net.on("A");
    for n in 0..200 {
        a.exec(&format!("INSERT INTO t VALUES ({n}, 'x')"));
    }
    net.settle(&["t"]);
    net.control().exec("SELECT bucardo.purge()");
    a.exec("UPDATE t SET v = 'y'");
    net.settle(&["t"]);
    net.control().exec("SELECT bucardo.purge()");
    old.exec("INSERT INTO t VALUES (-2, 'still'); COMMIT");
    net.settle(&["t"]);
    assert_eq!(net.on("B").number("SELECT count(*) FROM t WHERE id < 0"), 2);
}

fn a_long_backlog(capture: Capture) {
    let net = Net::together(capture, 2).with_table(T, "public.t");
    net.control().exec("SELECT bucardo.pause('s')");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 100000) g");
    a.exec("UPDATE t SET v = v || '!' WHERE id % 10 = 0; UPDATE t SET id = id + 1000000 WHERE id % 1000 = 1; DELETE FROM t WHERE id % 7 = 0");
    assert!(net.pending() >= 100_000);
    net.control().exec("SELECT bucardo.resume('s')");
    net.settle(&["t"]);
    a.exec("UPDATE t SET v = md5(v)");
    net.settle(&["t"]);
    a.exec("DELETE FROM t");
    net.settle(&["t"]);
}

#[test]
fn served_changes_are_purged_while_an_old_snapshot_is_held() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let mut old = net.on("A");
    old.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t");
    let size = "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
                WHERE nspname = 'bucardo' AND relkind = 'r'";
    let mut a = net.on("A");
    let empty = net.on("A").number(size);
    let mut control = net.control();
    for _ in 0..2 {
        a.exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 60000) g; DELETE FROM t");
        net.settle(&["t"]);
        // 120,000 served deltas take megabytes; that space comes back, by itself or when asked, although a snapshot is held.
        crate::wait::wait_until("the space of served changes to come back", || {
            control.exec("SELECT bucardo.purge()");
            net.on("A").number(size) < empty + 1_000_000
        });
    }
    old.exec("COMMIT");
}

#[test]
fn concurrent_writes_to_the_same_rows_on_the_target_do_not_stop_a_sync() {
    let net = Net::together(Capture::Plain, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 50) g");
    net.settle(&["t"]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let done = || stop.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut local = net.on("B");
            // Of a deadlock the run must be the one that gives way.
            local.exec("SET deadlock_timeout = '10min'");
            while !done() {
                local.exec("UPDATE t SET v = 'local'");
            }
        });
        for n in 0..30 {
            net.on("A").exec(&format!("UPDATE t SET v = 'n{n}'"));
        }
        net.wait_served();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    net.on("A").exec("UPDATE t SET v = 'end'");
    net.settle(&["t"]);
}

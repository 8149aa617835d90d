//! Everything dies at some time: processes by signal and by command, servers at once, the extension by DROP.
//!
//! Load goes on meanwhile, and in the end all rows are there once. Nothing of ours may hold up a DROP, a shutdown or an
//! application; no death of a worker by command may take the server with it.

use crate::cluster::{Stop, kill};
use crate::net::{CONTROL, Capture, Net};
use crate::wait::wait_until;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

for_both!(a_source_falls_over_right_after_it_was_served, a_receiver_falls_over_right_after_it_was_served);

const T: &str = "CREATE TABLE t (id bigint PRIMARY KEY, v text)";

/// Writes rows to A in small transactions while `scenario` does its worst; the source may be gone for a while. Every
/// acknowledged row must be there at the end (a row whose commit was not acknowledged may or may not be).
fn under_load(net: &Net, scenario: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let acknowledged = AtomicI64::new(0);
    std::thread::scope(|threads| {
        for client in 0..2_i64 {
            let (over, acknowledged) = (&over, &acknowledged);
            threads.spawn(move || write_until(net, client, over, acknowledged));
        }
        let _end = OnDrop(&over);
        scenario();
        let then = acknowledged.load(Ordering::Relaxed);
        wait_until("writes to go on", || acknowledged.load(Ordering::Relaxed) > then + 50);
    });
    net.settle(&["t"]);
    let there = net.on("B").number("SELECT count(*) FROM t");
    let known = acknowledged.load(Ordering::Relaxed);
    assert!(there >= known, "{known} rows were acknowledged, {there} are there");
}

/// Ends the writers also when the scenario panics: a scope waits for its threads.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn write_until(net: &Net, client: i64, over: &AtomicBool, acknowledged: &AtomicI64) {
    let mut id = client * 1_000_000_000;
    while !over.load(Ordering::Relaxed) {
        let member = &net.members[0];
        let Ok(mut conn) = net.server_of("A").try_connect(&member.db) else { continue };
        while !over.load(Ordering::Relaxed) {
            id += 1;
            let change = format!("INSERT INTO t VALUES ({id}, 'x'); UPDATE t SET v = 'y' WHERE id = {id} - 3");
            if conn.try_query(&change).is_err() {
                break;
            }
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn worker(net: &Net, kind: &str) -> Option<i32> {
    let sql = format!("SELECT pid::text FROM bucardo.activity WHERE kind = '{kind}' LIMIT 1");
    net.control().maybe(&sql).and_then(|pid| pid.parse().ok())
}

/// A worker of that kind which is not in the list.
fn fresh_worker(net: &Net, kind: &str, known: &[i32]) -> i32 {
    let mut found = None;
    wait_until(&format!("a new {kind}"), || {
        found = worker(net, kind).filter(|pid| !known.contains(pid));
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn terminated_kids_and_masters_come_back() {
    let net = Net::apart(Capture::Native, 1).with_table(T, "public.t");
    under_load(&net, || {
        for kind in ["kid", "master", "kid", "kid", "master", "master"] {
            let pid = fresh_worker(&net, kind, &[]);
            net.control().exec(&format!("SELECT pg_terminate_backend({pid}, 60000)"));
            fresh_worker(&net, kind, &[pid]);
        }
    });
    assert_eq!(net.servers[0].crash_restarts(), 0);
}

#[test]
fn the_launcher_comes_back_too() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let launcher = || net.servers[0].process("bucardo launcher");
    let pid = launcher().expect("there is a launcher");
    kill("TERM", pid);
    wait_until("a new launcher", || launcher().is_some_and(|new| new != pid));
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    assert_eq!(net.servers[0].crash_restarts(), 0);
}

#[test]
fn sessions_of_a_kid_on_the_members_are_terminated() {
    let net = Net::apart(Capture::Plain, 2).with_table(T, "public.t");
    let all_others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                      WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> 'scenario'";
    under_load(&net, || {
        for member in ["A", "B", "C", "B", "A"] {
            wait_until("a session to end", || net.on(member).number(all_others) > 0);
        }
    });
    net.servers.iter().for_each(|server| assert_eq!(server.crash_restarts(), 0));
}

#[test]
fn a_kid_killed_with_signal_9() {
    let net = Net::apart(Capture::Native, 1).with_table(T, "public.t");
    under_load(&net, || {
        for round in 1..=2 {
            kill("KILL", fresh_worker(&net, "kid", &[]));
            // A process killed so restarts the whole server: PostgreSQL's own rule.
            wait_until("the server to recover", || {
                net.servers[0].crash_restarts() >= round && net.servers[0].try_connect(CONTROL).is_ok()
            });
        }
    });
}

#[test]
fn every_server_is_restarted_at_once_under_load() {
    let net = Net::apart(Capture::Plain, 2).with_table(T, "public.t");
    under_load(&net, || {
        for server in net.servers.iter().chain(&net.servers) {
            server.restart(Stop::Immediate);
        }
    });
}

/// Nobody can write the row of a run whose kid is gone but the master.
#[test]
fn a_run_whose_kid_was_ended_is_on_record() {
    let net = Net::together(Capture::Native, 1).with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    let mut busy = net.on("B");
    busy.exec("BEGIN; LOCK TABLE t IN SHARE MODE");
    net.on("A").exec("INSERT INTO t VALUES (1)");
    let run = "SELECT max(run) FROM bucardo.activity WHERE kind = 'kid' AND phase = 'apply'";
    let mut waiting = None;
    wait_until("the kid to wait", || {
        waiting = net.control().maybe(run);
        waiting.is_some()
    });
    let run = waiting.expect("the run that was seen");
    net.control().exec("SELECT pg_terminate_backend(pid) FROM bucardo.activity WHERE kind = 'kid'");
    net.wait_sql_on_control("the row of the run", &format!("SELECT EXISTS (SELECT FROM bucardo.syncrun WHERE run = {run})"));
    let row = format!("SELECT concat_ws(' ', state, sqlstate, started <= ended, error) FROM bucardo.syncrun WHERE run = {run}");
    assert_eq!(net.control().one(&row), "bad 57P01 t the kid was ended during the run");
    busy.exec("COMMIT");
    net.settle(&["t"]);
    assert_eq!(net.control().one("SELECT last_bad IS NOT NULL FROM bucardo.status"), "t");
}

/// The application does not wait for the disk, and the source falls over before that has what the target took: then both
/// have it, or neither. Afterwards the source gives the same transaction numbers to other transactions.
fn a_source_falls_over_right_after_it_was_served(capture: Capture) {
    let net = Net::apart(capture, 1).with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    net.server_of("A").configure("wal_writer_delay = 10s\nautovacuum = off\ncheckpoint_timeout = 1h");
    net.server_of("A").restart(Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (1)");
    net.settle(&["t"]);
    let mut a = net.on("A");
    for id in 10..20 {
        a.exec(&format!("BEGIN; INSERT INTO t VALUES ({id}); ROLLBACK"));
        a.exec(&format!("SET synchronous_commit = off; INSERT INTO t VALUES ({id})"));
    }
    net.wait_sql("B", "the last one", "SELECT EXISTS (SELECT FROM t WHERE id = 19)");
    net.server_of("A").restart(Stop::Immediate);
    assert_eq!(net.on("A").one("SELECT count(*) FROM t"), "11");
    for id in 20..40 {
        net.on("A").exec(&format!("INSERT INTO t VALUES ({id})"));
    }
    net.settle(&["t"]);
    assert_eq!(net.on("B").one("SELECT count(*) FROM t"), "31");
}

/// The receiver's database says that commits need not wait for the disk; the deltas are gone when they were served.
fn a_receiver_falls_over_right_after_it_was_served(capture: Capture) {
    let net = Net::apart(capture, 1).with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    let b = net.server_of("B");
    b.configure("wal_writer_delay = 10s\nautovacuum = off\ncheckpoint_timeout = 1h\nsynchronous_commit = off");
    b.restart(Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (1)");
    net.settle(&["t"]);
    net.on("A").exec("INSERT INTO t SELECT generate_series(2, 100)");
    net.wait_sql("B", "the rows", "SELECT count(*) = 100 FROM t");
    net.kick();
    b.restart(Stop::Immediate);
    assert_eq!(net.on("B").one("SELECT count(*) FROM t"), "100");
    net.settle(&["t"]);
}

/// The same where it is told so while a kid keeps its session, and where the log passes by what was lost.
#[test]
fn a_receiver_that_need_not_wait_any_more_falls_over() {
    let net = Net::apart(Capture::Native, 1).with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    let b = net.server_of("B");
    b.configure("wal_writer_delay = 10s\nautovacuum = off\ncheckpoint_timeout = 1h");
    b.restart(Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (1)");
    net.settle(&["t"]);
    let mut own = net.on("B");
    own.exec("ALTER SYSTEM SET synchronous_commit = off");
    own.exec("SELECT pg_reload_conf()");
    wait_until("B to be set", || own.one("SHOW synchronous_commit") == "off");
    net.on("A").exec("INSERT INTO t SELECT generate_series(2, 100)");
    net.wait_sql("B", "the rows", "SELECT count(*) = 100 FROM t");
    net.rest();
    net.control().exec("SELECT bucardo.purge()");
    b.restart(Stop::Immediate);
    net.on("B").exec("SELECT pg_switch_wal()");
    net.on("B").exec("CREATE TABLE beside ()");
    net.control().exec("SELECT bucardo.resume('s')");
    net.on("A").exec("INSERT INTO t VALUES (101)");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one("SELECT count(*) FROM t"), "101");
}

#[test]
fn a_fast_shutdown_in_a_large_run_is_answered() {
    for victim in ["control", "target"] {
        let net = Net::apart(Capture::Native, 1).with_table(T, "public.t");
        net.control().exec("SELECT bucardo.pause('s')");
        net.on("A").exec("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 150000) g");
        net.control().exec("SELECT bucardo.resume('s')");
        net.wait_state("running|good");
        let server = if victim == "control" { &net.servers[0] } else { net.server_of("B") };
        server.restart(Stop::Fast);
        net.settle(&["t"]);
        assert_eq!(net.on("B").number("SELECT count(*) FROM t"), 150_000);
    }
}

#[test]
fn drop_extension_is_not_blocked_by_a_busy_sync() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 100000) g");
    net.wait_state("running|good");
    let mut control = net.control();
    control.exec("DROP EXTENSION bucardo CASCADE");
    // The application's tables are free of us, and writing goes on.
    net.on("A").exec("INSERT INTO t VALUES (-1, 'after')");
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type ILIKE '%bucardo%'";
    wait_until("master and kids to go", || control.number(workers) == 0);
    assert_eq!(control.number("SELECT count(*) FROM pg_trigger WHERE tgname ILIKE '%bucardo%'"), 0);
    control.exec("CREATE EXTENSION bucardo");
    control.exec("SELECT bucardo.ping()");
    assert_eq!(net.servers[0].crash_restarts(), 0);
}

#[test]
fn drop_database_is_not_blocked_by_a_busy_sync() {
    let net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 100000) g");
    net.wait_state("running|good");
    let mut other = net.servers[0].connect("postgres");
    other.exec(&format!("DROP DATABASE {CONTROL}"));
    let workers =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type ILIKE '%bucardo%' AND backend_type NOT ILIKE '%launcher%'";
    wait_until("master and kids to go", || other.number(workers) == 0);
    net.on("A").exec("INSERT INTO t VALUES (-1, 'the source goes on')");
    assert_eq!(net.servers[0].crash_restarts(), 0);
}

/// Not even the master can start: the status says what to change, and who waits for it is told.
#[test]
fn no_worker_slot_is_left_for_the_master() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    net.servers[0].configure("max_worker_processes = 2");
    net.servers[0].restart(Stop::Fast);
    net.wait_sql_on_control(
        "a word about max_worker_processes",
        "SELECT bool_and(last_error LIKE '%max_worker_processes%') FROM bucardo.status",
    );
    for call in ["kick('s')", "kick('s', '1s')", "start()", "ping()", "reload()"] {
        let error = net.control().expect_error(&format!("SELECT bucardo.{call}"), "55000");
        assert!(error.message.contains("max_worker_processes"), "{call}: {error}");
    }
    net.on("A").exec("INSERT INTO t VALUES (1, 'captured')");
    net.servers[0].configure("max_worker_processes = 8");
    net.servers[0].restart(Stop::Fast);
    net.settle(&["t"]);
}

#[test]
fn no_worker_slot_is_left_for_a_kid() {
    let net = Net::together_with(Capture::Native, 1, "max_worker_processes = 4\nmax_parallel_workers = 0");
    net.everywhere(T);
    let mut control = net.control();
    let mut second = net.servers[0].connect("postgres");
    // Two more databases with the extension take the slots that are left.
    for db in ["two", "three"] {
        second.exec(&format!("CREATE DATABASE {db}"));
        net.servers[0].sql(db, "CREATE EXTENSION bucardo");
    }
    // The last slot that is left is taken before a kid asks for it.
    let masters = "SELECT count(*) >= 2 FROM pg_stat_activity WHERE backend_type = 'bucardo master'";
    wait_until("the masters that there is room for", || second.one(masters) == "t");
    net.add_sync("tables => 'public.t'");
    net.on("A").exec("INSERT INTO t VALUES (1, 'queued')");
    wait_until("a word about max_worker_processes", || {
        control.number("SELECT count(*) FROM bucardo.status WHERE last_error LIKE '%max_worker_processes%'") == 1
    });
    ["two", "three"].iter().for_each(|db| second.exec(&format!("DROP DATABASE {db} WITH (FORCE)")));
    net.settle(&["t"]);
    assert_eq!(net.servers[0].crash_restarts(), 0);
}

/// Whole tables are promised once. The server of the control database dies with the run that brings them, and nothing changes
/// afterwards.
#[test]
fn a_copy_is_not_forgotten_with_the_run_that_was_to_bring_it() {
    let net = Net::apart(Capture::Native, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 50) g");
    net.settle(&["t"]);
    net.on("B").exec("DELETE FROM t WHERE id = 1");
    net.control().exec("SELECT bucardo.fault_set('kid.before_commit', 'wait')");
    net.control().exec("SELECT bucardo.update_sync('s', onetimecopy => 1)");
    net.wait_sql_on_control(
        "the copy to be about to commit",
        "SELECT onetimecopy = 0 AND bucardo.fault_hits('kid.before_commit') > 0 FROM bucardo.sync",
    );
    // A kid does not wait for the disk when it notes that: whoever does takes it along.
    net.control().exec("CREATE TABLE flushed ()");
    net.server_of("A").restart(Stop::Immediate);
    net.wait_equal("t", &["B"]);
}

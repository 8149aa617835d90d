//! The life of the workers where somebody gets in their way: networks that swallow everything, databases that are set
//! strangely, sessions that hold rows, servers without the usual databases.
//!
//! The master must wait for nobody, start with the server, and do as its owner's rights allow, whatever it meets.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::cluster::Stop;
use crate::compare::literal;
use crate::multi::Plan;
use crate::net::{CONTROL, Capture, Net};
use crate::proxy::Proxy;
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
pub const MASTER: &str = "SELECT pg_terminate_backend(pid, 60000) FROM bucardo.activity WHERE kind = 'master'";

/// A port of this machine that answers nobody: its queue is full, so that whoever connects hears nothing at all.
pub struct Silent {
    process: Child,
    pub port: String,
}

const SILENT: &str = "
import socket, sys
listener = socket.socket()
listener.bind(('127.0.0.1', 0))
listener.listen(0)
kept = []
for _ in range(8):
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(listener.getsockname())
    kept.append(one)
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
";

impl Silent {
    pub fn start() -> Silent {
        let mut python = Command::new("python3");
        python.args(["-c", SILENT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = python.spawn().expect("python3 can be run");
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).expect("it says its port");
        Silent { process, port: port.trim().to_owned() }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _gone = self.process.wait();
    }
}

#[test]
fn a_member_whose_host_answers_nobody_does_not_hold_the_master() {
    let net = Net::together_with(Capture::Native, 1, "bucardo.connect_timeout = '600s'").with_table(T, "public.t");
    let silent = Silent::start();
    let conninfo = format!("host=127.0.0.1 port={} dbname=postgres tcp_user_timeout=0", silent.port);
    let mut control = net.control();
    control.exec(&format!("SELECT bucardo.add_db('Z', '{conninfo}', check_connection => false)"));
    // A new master asks every member what it captures.
    control.exec(MASTER);
    for id in 1..=3 {
        net.on("A").exec(&format!("INSERT INTO t VALUES ({id}, 'x')"));
        net.kick();
    }
    net.assert_equal("t");
    assert_eq!(control.one("SELECT bucardo.stop('test', '60s')"), "stopped");
}

/// What the owner of the control database may do to it without being a superuser.
#[test]
fn what_the_database_is_set_to_is_not_what_the_workers_run_under() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    // The test's own sessions are older than the settings.
    let (mut control, mut a, mut b) = (net.control(), net.on("A"), net.on("B"));
    b.exec(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END $$; \
         CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow(); \
         ALTER TABLE t ENABLE ALWAYS TRIGGER slow; ALTER DATABASE b SET statement_timeout = '250ms'",
    );
    control.exec(
        "CREATE FUNCTION public.spy(name, name) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN \
           RAISE LOG 'spied by %', (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()); \
           RETURN $1 OPERATOR(pg_catalog.=) $2; END $$; \
         CREATE FUNCTION public.spy(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN \
           RAISE LOG 'spied by %', (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()); \
           RETURN $1 OPERATOR(pg_catalog.=) $2; END $$; \
         CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = name, FUNCTION = public.spy); \
         CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.spy)",
    );
    for setting in [
        "search_path = public, pg_catalog",
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "lock_timeout = '1ms'",
        "statement_timeout = '250ms'",
    ] {
        control.exec(&format!("ALTER DATABASE {CONTROL} SET {setting}"));
    }
    control.exec(MASTER);
    for id in 1..=3 {
        a.exec(&format!("INSERT INTO t VALUES ({id}, 'x')"));
        assert!(matches!(control.one("SELECT bucardo.kick('s', '80s')").as_str(), "good" | "empty"));
    }
    assert_eq!(b.number("SELECT count(*) FROM t"), 3);
    assert_eq!(control.number("SELECT count(*) FROM bucardo.syncrun WHERE error IS NOT NULL"), 0);
    let log = net.servers[0].log();
    assert!(!log.contains("spied by bucardo"), "a worker found an operator of the database's owner");
}

#[test]
fn more_dbs_than_a_sync_can_have_are_refused() {
    let net = Net::together(Capture::Native, 0);
    net.on("A").exec(T);
    let mut control = net.control();
    let names: Vec<String> = (0..65).map(|i| format!("m{i}")).collect();
    for name in &names {
        control.exec(&format!("SELECT bucardo.add_db('{name}', check_connection => false)"));
    }
    let sql = format!("SELECT bucardo.add_sync('s', dbs => '{}', tables => 'public.t')", names.join(","));
    let error = control.expect_error(&sql, "22023");
    assert!(error.full().contains("65 dbs are too many") && error.full().contains("at most 64"), "{}", error.full());
    let sql = format!("SELECT bucardo.add_sync('s', dbs => '{}', tables => 'public.t')", names[..64].join(","));
    let error = control.expect_error(&sql, "22023");
    assert!(!error.full().contains("too many"), "{}", error.full());
}

#[test]
fn a_run_that_was_cancelled_is_in_the_history() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let (mut locker, mut control) = (net.on("B"), net.control());
    locker.exec("BEGIN; LOCK t IN ACCESS EXCLUSIVE MODE");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_sql("B", "a run waiting for the lock", "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted");
    control.exec("SELECT pg_cancel_backend(pid) FROM bucardo.activity WHERE kind = 'kid' AND run IS NOT NULL");
    net.wait_sql_on_control(
        "the run that was cancelled",
        "SELECT EXISTS (SELECT FROM bucardo.syncrun WHERE state = 'bad' AND sqlstate = '57014' AND sync = 's' AND started < ended)",
    );
    locker.exec("COMMIT");
    net.settle(&["t"]);
}

#[test]
fn a_stop_that_is_rolled_back_to_a_savepoint_was_none() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let mut control = net.control();
    control.exec("BEGIN; SAVEPOINT a; SELECT bucardo.stop(); ROLLBACK TO a; COMMIT");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B"]);
    control.exec("BEGIN; SELECT bucardo.stop(); SAVEPOINT a; ROLLBACK TO a; COMMIT");
    net.wait_state("stopped");
    net.control().expect_error("SELECT bucardo.kick('s')", "55000");
    wait_until("nobody to run", || control.number("SELECT count(*) FROM bucardo.activity") == 0);
}

/// The master notes by itself that a sync is paused: not while somebody holds the sync's row, and it waits for nobody.
#[test]
fn a_session_that_holds_a_sync_does_not_hold_the_master() {
    let m = Plan::new(2).start().with(T, "tables => 'public.t', conflict_strategy => 'bucardo_abort'");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'A')"), ("B", "INSERT INTO t VALUES (1, 'B')")]);
    let mut holder = m.control();
    holder.exec("BEGIN; SELECT bucardo.update_sync('s', checktime => '1h')");
    m.try_kick().expect_err("a kick that ends in an abort raises");
    m.control().exec("SELECT bucardo.ping('80s')");
    assert_eq!(m.control().one("SELECT paused FROM bucardo.sync WHERE name = 's'"), "f");
    let runs = "SELECT count(*) FROM bucardo.syncrun";
    let before = m.control().number(runs);
    holder.exec("COMMIT");
    m.wait_state("paused");
    assert_eq!(m.control().number(runs), before, "it is paused from the run on that wanted it");
}

#[test]
fn the_master_starts_with_a_server_that_lacks_the_usual_databases() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let mut control = net.control();
    control.exec("ALTER DATABASE postgres ALLOW_CONNECTIONS false");
    let drop =
        |db: &str| wait_until("nobody to be connected", || net.control().try_query(&format!("DROP DATABASE {db}")).is_ok());
    for (id, gone) in [(1, None), (2, Some("postgres")), (3, Some("template1"))] {
        control.exec("UPDATE pg_database SET datistemplate = false WHERE datname = 'template1'");
        gone.into_iter().for_each(drop);
        net.servers[0].restart(Stop::Fast);
        control = net.control();
        net.on("A").exec(&format!("INSERT INTO t VALUES ({id}, 'x')"));
        net.wait_equal("t", &["B"]);
    }
}

/// While no master runs, a DROP EXTENSION asks for one that only takes capture off.
#[test]
fn a_drop_that_is_rolled_back_while_the_master_is_away_leaves_no_trace() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let mut control = net.control();
    control.exec(&format!("{MASTER}; BEGIN; DROP EXTENSION bucardo; ROLLBACK"));
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B"]);
    net.wait_state("good|empty");
}

#[test]
fn without_the_preload_the_catalog_can_be_changed() {
    let net = Net::together(Capture::Plain, 2).with_table(T, "public.t");
    net.servers[0].configure("shared_preload_libraries = ''");
    net.servers[0].restart(Stop::Fast);
    let mut control = net.control();
    for sql in [
        "update_sync('s', checktime => '1h')",
        "pause('s')",
        "update_db('C', status => 'inactive')",
        "remove_db('C', force => true)",
        "remove_table('public.t', 's')",
        "remove_db('A', force => true)",
        "remove_sync('s')",
        "remove_db('B')",
    ] {
        // What is refused is refused; nothing may end the server.
        let _refused = control.try_query(&format!("SELECT bucardo.{sql}"));
        assert_eq!(net.servers[0].crash_restarts(), 0, "{sql}");
    }
    assert_eq!(control.number("SELECT count(*) FROM bucardo.sync"), 0);
}

#[test]
fn a_member_that_answers_nobody_leaves_kids_to_other_syncs() {
    let net = Net::together_with(Capture::Native, 1, "bucardo.max_kids = 2");
    net.servers[0].create_database("z", "");
    net.servers[0].sql("z", T);
    net.everywhere(T);
    let (proxy, mut control) = (Proxy::to(&net.servers[0]), net.control());
    control.exec(&format!("SELECT bucardo.add_db('Z', {})", literal(&proxy.conninfo("z"))));
    for id in 1..=4 {
        control.exec(&format!("SELECT bucardo.add_sync('z{id}', dbs => 'A:source,Z:target', tables => 'public.t')"));
    }
    net.add_sync("tables => 'public.t'");
    proxy.stall();
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_sql_on_control(
        "all that cannot be served to be tried again",
        "SELECT count(*) = 4 FROM bucardo.status WHERE sync LIKE 'z%' AND state = 'stalled' AND last_error LIKE '%\"Z\"%'",
    );
    for id in 2..=9 {
        net.on("A").exec(&format!("INSERT INTO t VALUES ({id}, 'x')"));
        net.kick();
    }
    net.assert_equal("t");
}

#[test]
fn a_run_that_waits_for_a_lock_gives_its_kid_to_who_waits_for_one() {
    let net = Net::together_with(Capture::Native, 1, "bucardo.max_kids = 1").with_table(T, "public.t");
    net.everywhere("CREATE TABLE u (id int PRIMARY KEY)");
    net.control().exec(&format!("SELECT bucardo.add_sync('u', dbs => '{}', tables => 'public.u')", net.dbs()));
    let mut locker = net.on("B");
    locker.exec("BEGIN; LOCK t IN ACCESS EXCLUSIVE MODE");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_sql("B", "a run waiting for the lock", "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted");
    // The master stands between the end of the one run and the start of the other, so that there is time to see it.
    net.control().exec("SELECT bucardo.fault_set('master.before_report', 'wait')");
    net.on("A").exec("INSERT INTO u VALUES (1)");
    net.wait_sql_on_control(
        "the status to say what it waits for",
        "SELECT coalesce(last_error LIKE '%waits for a free kid%', false) FROM bucardo.status WHERE sync = 'u'",
    );
    net.control().exec("SELECT bucardo.fault_clear()");
    net.wait_equal("u", &["B"]);
    assert_eq!(net.on("A").number("SELECT count(*) FROM t"), 1);
    locker.exec("COMMIT");
    net.settle(&["t"]);
}

#[test]
fn kids_that_die_at_their_start_are_told_of() {
    let net = Net::together(Capture::Plain, 1).with_table(T, "public.t");
    let (mut control, mut a) = (net.control(), net.on("A"));
    // The master is there, and shall stay.
    net.kick();
    a.exec(&format!("ALTER DATABASE {CONTROL} ALLOW_CONNECTIONS false"));
    control.exec("SELECT pg_terminate_backend(pid, 60000) FROM bucardo.activity WHERE kind = 'kid'");
    a.exec("INSERT INTO t VALUES (1, 'x')");
    let error = "SELECT coalesce(last_error, '') FROM bucardo.status WHERE sync = 's'";
    wait_until("the status to say so", || control.one(error).contains("kids end at their start"));
    a.exec(&format!("ALTER DATABASE {CONTROL} ALLOW_CONNECTIONS true"));
    net.wait_equal("t", &["B"]);
}

/// More kids than there are places in all, over the lives of several masters.
#[test]
fn kids_whose_master_is_gone_leave_their_places() {
    let settings = "bucardo.max_kids = 16\nmax_worker_processes = 40\nmax_connections = 150";
    let net = Net::together_with(Capture::Native, 1, settings);
    let mut control = net.control();
    let tables: Vec<String> = (1..=16).map(|id| format!("t{id}")).collect();
    for t in &tables {
        net.everywhere(&format!("CREATE TABLE {t} (id int PRIMARY KEY)"));
        control.exec(&format!("SELECT bucardo.add_sync('s_{t}', dbs => '{}', tables => 'public.{t}')", net.dbs()));
    }
    control.exec("SELECT bucardo.fault_set('kid.before_gather', 'wait', 1000)");
    tables.iter().for_each(|t| net.on("A").exec(&format!("INSERT INTO {t} VALUES (1)")));
    for _ in 0..5 {
        net.wait_sql_on_control(
            "all kids to be busy",
            "SELECT count(*) = 16 FROM bucardo.activity WHERE kind = 'kid' AND run IS NOT NULL",
        );
        control.exec(MASTER);
    }
    control.exec("SELECT bucardo.fault_clear()");
    tables.iter().for_each(|t| net.wait_equal(t, &["B"]));
}

/// A DROP that waits for the transaction of `stop` has a master started, which cannot see that it is stopped.
#[test]
fn a_master_that_starts_while_it_is_being_stopped_ends() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let (mut stopper, mut dropper) = (net.control(), net.control());
    stopper.exec("BEGIN; SELECT bucardo.stop()");
    dropper.send("DROP EXTENSION bucardo").unwrap();
    let masters = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'bucardo master'";
    let mut other = net.servers[0].connect("postgres");
    wait_until("a master, and the DROP to wait", || {
        other.number(masters) == 1 && other.number("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0
    });
    other.exec(&format!("SELECT pg_cancel_backend({})", dropper.pid));
    dropper.finish().expect_err("it was cancelled");
    stopper.exec("COMMIT");
    net.wait_state("stopped");
    wait_until("the master to end", || other.number(masters) == 0);
}

#[test]
fn a_session_that_holds_the_row_of_the_control_database_does_not_hold_the_master() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let (mut control, mut holder) = (net.control(), net.control());
    control.exec("UPDATE bucardo.control SET identity = NULL");
    holder.exec("BEGIN; SELECT * FROM bucardo.control FOR UPDATE");
    control.exec(MASTER);
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B"]);
}

#[test]
fn a_session_that_holds_old_decisions_does_not_hold_the_master() {
    let m = Plan::new(2).start().with(T, "tables => 'public.t', conflict_strategy => 'bucardo_source'");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'A')"), ("B", "INSERT INTO t VALUES (1, 'B')")]);
    m.kick();
    let (mut holder, mut control) = (m.control(), m.control());
    holder.exec("BEGIN; SELECT * FROM bucardo.conflict FOR UPDATE");
    control.exec("ALTER SYSTEM SET bucardo.history_retention = '1ms'");
    // The last run of each state is kept in any case.
    control.exec("INSERT INTO bucardo.syncrun (run, sync, state, started, ended) VALUES (-1, 's', 'good', now(), now())");
    control.exec("SELECT pg_reload_conf()");
    let old = "SELECT count(*) FROM bucardo.syncrun WHERE run = -1";
    wait_until("old runs to be forgotten", || control.number(old) == 0);
    control.exec("SELECT bucardo.ping('80s')");
    assert_eq!(control.number("SELECT count(*) FROM bucardo.conflict"), 1);
}

#[test]
fn who_is_in_no_sync_any_more_is_not_held_by_a_connection() {
    let net = Net::together(Capture::Native, 2).with_table(T, "public.t");
    let (mut control, mut other) = (net.control(), net.servers[0].connect("postgres"));
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.kick();
    let mut gone = |db: &str| {
        wait_until("nobody to be connected", || other.try_query(&format!("DROP DATABASE {db}")).is_ok());
    };
    control.exec("SELECT bucardo.update_db('C', status => 'inactive')");
    gone("c");
    control.exec("SELECT bucardo.remove_sync('s'); SELECT bucardo.remove_db('B')");
    gone("b");
}

/// It waits for all clients to go, and the sessions of our workers are clients where a member is on the server.
#[test]
fn a_smart_stop_of_a_server_with_members_ends() {
    let net = Net::together(Capture::Plain, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B"]);
    net.servers[0].stop(Stop::Smart);
    net.servers[0].launch();
    net.on("A").exec("INSERT INTO t VALUES (2, 'x')");
    net.wait_equal("t", &["B"]);
}

/// pg_upgrade reads and writes what must not change meanwhile.
#[test]
fn a_server_that_is_being_upgraded_has_no_workers() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let server = &net.servers[0];
    server.set_upgrading(true);
    server.restart(Stop::Fast);
    // Whoever starts with the server was started before anybody could connect.
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    assert_eq!(server.process("bucardo launcher"), None);
    server.set_upgrading(false);
    server.restart(Stop::Fast);
    net.wait_equal("t", &["B"]);
}

#[test]
fn a_member_whose_listing_cannot_be_read_does_not_end_the_master() {
    let net = Net::together(Capture::Plain, 1).with_table(T, "public.t");
    let no_listing =
        "CREATE OR REPLACE FUNCTION bucardo.capture_listing(p_control text) RETURNS text LANGUAGE sql AS $$ SELECT 'none' $$";
    net.on("A").exec(no_listing);
    net.on("B").exec(&format!("CREATE SCHEMA bucardo; {no_listing}"));
    let mut control = net.control();
    // A new one asks all members.
    control.exec(MASTER);
    let master = "SELECT pid FROM bucardo.activity WHERE kind = 'master'";
    wait_until("the next master", || control.maybe(master).is_some());
    let before = control.one(master);
    for member in ["A", "B"] {
        let told = format!("what db \"{member}\" captures cannot be learned");
        wait_until("the log to tell", || net.servers[0].log().contains(&told));
    }
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B"]);
    assert_eq!(control.one(master), before);
}

#[test]
fn a_source_that_has_lost_all_capture_is_given_it_again() {
    let net = Net::together(Capture::Plain, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    net.on("A").exec("DROP SCHEMA bucardo CASCADE; INSERT INTO t VALUES (2, 'x')");
    net.wait_equal("t", &["B"]);
    net.on("A").exec("INSERT INTO t VALUES (3, 'x')");
    net.settle(&["t"]);
    net.wait_state("good|empty");
    let log = net.servers[0].log();
    let told = log.lines().filter(|line| line.contains("bucardo: db \"A\"")).count();
    assert!(told <= 1, "told {told} times");
}

/// Those that are more than may be end when their runs are over, however much there is to do.
#[test]
fn fewer_kids_than_before_are_kept_to() {
    let net = Net::together_with(Capture::Native, 1, "bucardo.max_kids = 4");
    let mut control = net.control();
    let tables: Vec<String> = (1..=4).map(|id| format!("t{id}")).collect();
    for t in &tables {
        net.everywhere(&format!("CREATE TABLE {t} (id int PRIMARY KEY)"));
        control.exec(&format!("SELECT bucardo.add_sync('s_{t}', dbs => '{}', tables => 'public.{t}')", net.dbs()));
    }
    let change = |id: i32| tables.iter().for_each(|t| net.on("A").exec(&format!("INSERT INTO {t} VALUES ({id})")));
    let busy = "SELECT count(*) FROM bucardo.activity WHERE kind = 'kid' AND run IS NOT NULL";
    control.exec("SELECT bucardo.fault_set('kid.before_gather', 'wait', 1000)");
    change(1);
    wait_until("four kids to be busy", || control.number(busy) == 4);
    control.exec("ALTER SYSTEM SET bucardo.max_kids = 1");
    control.exec("SELECT pg_reload_conf()");
    wait_until("the setting", || net.control().one("SHOW bucardo.max_kids") == "1");
    control.exec("SELECT bucardo.ping(); SELECT bucardo.ping()");
    change(2);
    control.exec("SELECT bucardo.fault_clear()");
    wait_until("all but one to go", || control.number("SELECT count(*) FROM bucardo.activity WHERE kind = 'kid'") == 1);
    tables.iter().for_each(|t| net.wait_equal(t, &["B"]));
    control.exec("SELECT bucardo.fault_set('kid.before_gather', 'wait', 1000)");
    change(3);
    let waits = "SELECT count(*) FROM bucardo.status WHERE last_error LIKE '%waits for a free kid%'";
    wait_until("three syncs to wait", || control.number(waits) == 3);
    assert_eq!(control.number(busy), 1);
    control.exec("SELECT bucardo.fault_clear()");
    tables.iter().for_each(|t| net.wait_equal(t, &["B"]));
}

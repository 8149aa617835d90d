//! What was made is taken away again: by remove, by DROP EXTENSION, by a rollback. And what must stay, stays: the
//! application's objects, a living older Bucardo beside us, the configuration in a dump.

use crate::cluster::{Cluster, Stop};
use crate::compare::literal;
use crate::footprint::{Footprint, assert_unchanged, wait_unchanged};
use crate::multi::Plan;
use crate::net::{CONTROL, Capture, Net};
use crate::proxy::Proxy;
use crate::scratch::{output, scratch};
use crate::wait::wait_until;

for_both!(remove_sync_and_remove_db, drop_extension, rolled_back_calls, more_tables_than_locks);

const T: &str = "CREATE TABLE t (id serial PRIMARY KEY, v text); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); \
                 CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (100)";

fn used(net: &Net) {
    net.on("A").exec("INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 100); INSERT INTO p VALUES (1) ON CONFLICT DO NOTHING; TRUNCATE t; INSERT INTO t (v) VALUES ('y')");
    net.settle(&["t", "p"]);
}

fn remove_sync_and_remove_db(capture: Capture) {
    let net = Net::apart(capture, 1);
    net.everywhere(T);
    let before = Footprint::of(&net);
    for round in 0..2 {
        net.add_sync("tables => 'all'");
        used(&net);
        net.on("A").exec("INSERT INTO t (v) VALUES ('captured and not served')");
        net.control().exec("SELECT bucardo.remove_sync('s')");
        for name in ["A", "B"] {
            net.control().exec(&format!("SELECT bucardo.remove_db('{name}')"));
        }
        // The members' rows in the catalog are gone as well: compare when they are back.
        net.control().exec("SELECT bucardo.ping()");
        if capture == Capture::Native {
            net.control().exec("SELECT bucardo.add_db('A')");
        } else {
            net.register("A");
        }
        net.register("B");
        wait_unchanged(&net, &before, &format!("round {round}: remove_sync and remove_db"));
        net.on("A").exec("TRUNCATE t, p");
        net.on("B").exec("TRUNCATE t, p");
    }
}

/// To take capture off all tables at once takes more locks than a server has; off some after the other it does not.
fn more_tables_than_locks(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "DO $$ BEGIN FOR i IN 1..250 LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY)', i); END LOOP; END $$",
    );
    net.add_sync("tables => 'all'");
    net.server_of("A").configure("max_locks_per_transaction = 10");
    net.server_of("A").restart(Stop::Fast);
    // Who reads one of them does not keep the others captured.
    let mut reader = net.on("A");
    reader.exec("BEGIN; SELECT count(*) FROM t7");
    net.control().exec("SELECT bucardo.remove_sync('s')");
    let captured = "(SELECT count(DISTINCT tgrelid) FROM pg_trigger WHERE tgname LIKE 'bucardo_capture%')";
    net.wait_sql("A", "all but the held table to be free", &format!("SELECT {captured} = 1"));
    reader.exec("COMMIT");
    net.wait_sql("A", "the held table to be free", &format!("SELECT {captured} = 0"));
}

fn drop_extension(capture: Capture) {
    let net = Net::apart(capture, 1);
    net.control().exec("DROP EXTENSION bucardo");
    net.everywhere(T);
    let objects = "SELECT string_agg(x, ' ' ORDER BY x) FROM (SELECT oid::regclass::text x FROM pg_class WHERE oid >= 16384 \
                   UNION ALL SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp' UNION ALL SELECT oid::regprocedure::text FROM pg_proc WHERE oid >= 16384 \
                   UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal UNION ALL SELECT evtname FROM pg_event_trigger) o";
    let before: Vec<String> = ["A", "B"].iter().map(|m| net.on(m).one(objects)).collect();
    net.control().exec("CREATE EXTENSION bucardo");
    if capture == Capture::Native {
        net.control().exec("SELECT bucardo.add_db('A')");
    } else {
        net.register("A");
    }
    net.register("B");
    net.add_sync("tables => 'all'");
    used(&net);
    net.control().exec("DROP EXTENSION bucardo");
    net.on("A").exec("INSERT INTO t (v) VALUES ('goes on')");
    for (name, before) in ["A", "B"].iter().zip(before) {
        let mut conn = net.on(name);
        let clean = crate::wait::reached(|| conn.one(objects) == before);
        assert!(clean, "left on {name}: {}\nbefore: {before}", conn.one(objects));
    }
}

/// What of ours is on a source of table `k`.
const OURS: &str = "SELECT (SELECT count(*) FROM pg_trigger WHERE tgrelid = 'k'::regclass) \
                    + (SELECT count(*) FROM pg_namespace WHERE nspname = 'bucardo')";

/// A sync with captured rows, its extension dropped by those statements: nothing of ours is left on the source.
fn dropped_by(before: impl FnOnce(&Net), drop: &str) {
    let net = Net::together(Capture::Plain, 1).with_table("CREATE TABLE k (id int PRIMARY KEY)", "public.k");
    net.on("A").exec("INSERT INTO k VALUES (1)");
    net.settle(&["k"]);
    before(&net);
    net.control().exec(drop);
    let mut a = net.on("A");
    wait_until("capture to be gone", || a.number(OURS) == 0);
    a.exec("INSERT INTO k VALUES (3)");
}

/// The extension goes while a removal waits for a table that an application holds.
fn dropped_while_a_removal_waits(stop: &str) {
    let net = Net::together(Capture::Plain, 1).with_table("CREATE TABLE k (id int PRIMARY KEY)", "public.k");
    let (mut busy, mut a, mut control) = (net.on("A"), net.on("A"), net.control());
    busy.exec("BEGIN; INSERT INTO k VALUES (1)");
    control.exec("SELECT bucardo.remove_sync('s'); SELECT bucardo.remove_db('A'), bucardo.remove_db('B')");
    // The master has read that there are no members any more.
    control.exec("SELECT bucardo.ping(); SELECT bucardo.ping()");
    control.exec(stop);
    control.exec("DROP EXTENSION bucardo");
    busy.exec("COMMIT");
    wait_until("capture to be gone", || a.number(OURS) == 0);
}

#[test]
fn drop_extension_while_a_removal_waits() {
    dropped_while_a_removal_waits("SELECT");
}

#[test]
fn drop_extension_that_was_stopped_while_a_removal_waits() {
    dropped_while_a_removal_waits("SELECT bucardo.stop()");
}

/// Two want to drop it, and the first of them thinks better of it, when the second waits already.
#[test]
fn drop_extension_twice_of_which_one_is_rolled_back() {
    for back in ["ROLLBACK", "ROLLBACK TO before"] {
        let net = Net::together(Capture::Plain, 1).with_table("CREATE TABLE k (id int PRIMARY KEY)", "public.k");
        let (mut first, mut second, mut a) = (net.control(), net.control(), net.on("A"));
        first.exec("BEGIN; SAVEPOINT before; DROP EXTENSION bucardo");
        second.send("DROP EXTENSION bucardo").unwrap();
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DROP EXTENSION%'";
        wait_until("the second to wait", || a.number(waits) == 1);
        first.exec(back);
        second.finish().unwrap();
        wait_until("capture to be gone", || a.number(OURS) == 0);
    }
}

/// The master has hardly heard of what was added last.
#[test]
fn drop_extension_right_after_a_sync_was_added() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere("CREATE TABLE k (id int PRIMARY KEY)");
    let (mut a, mut control) = (net.on("A"), net.control());
    control.exec("SELECT bucardo.remove_db('A'), bucardo.remove_db('B')");
    for round in 0..5 {
        let (here, there) = (literal(&net.conninfo("A")), literal(&net.conninfo("B")));
        control.exec(&format!(
            "SELECT bucardo.ping(); BEGIN; SELECT bucardo.add_db('A', {here}), bucardo.add_db('B', {there}); \
             SELECT bucardo.add_sync('s', dbs => 'A,B', tables => 'public.k'); COMMIT; DROP EXTENSION bucardo"
        ));
        wait_until(&format!("capture to be gone in round {round}"), || a.number(OURS) == 0);
        control.exec("CREATE EXTENSION bucardo");
    }
    // The same in one transaction.
    let (here, there) = (literal(&net.conninfo("A")), literal(&net.conninfo("B")));
    control.exec(&format!(
        "SELECT bucardo.ping(); BEGIN; SELECT bucardo.add_db('A', {here}), bucardo.add_db('B', {there}); \
         SELECT bucardo.add_sync('s', dbs => 'A,B', tables => 'public.k'); DROP EXTENSION bucardo; COMMIT"
    ));
    wait_until("capture to be gone", || a.number(OURS) == 0);
}

#[test]
fn drop_extension_while_an_application_writes() {
    let mut open = None;
    dropped_by(
        |net| {
            let (mut busy, mut other) = (net.on("A"), net.on("A"));
            busy.exec("BEGIN; INSERT INTO k VALUES (2)");
            let over = std::thread::spawn(move || {
                // Held while the extension goes, until capture has been tried to be taken off.
                crate::wait::reached(|| other.number("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") > 0);
                busy.exec("COMMIT");
            });
            open = Some(over);
        },
        "DROP EXTENSION bucardo",
    );
    open.expect("it was begun").join().expect("the application ends well");
}

#[test]
fn drop_extension_that_was_stopped() {
    dropped_by(|net| net.control().exec("SELECT bucardo.stop()"), "DROP EXTENSION bucardo");
}

#[test]
fn drop_extension_with_an_inactive_member() {
    dropped_by(|net| net.control().exec("SELECT bucardo.update_db('A', status => 'inactive')"), "DROP EXTENSION bucardo");
}

#[test]
fn drop_and_create_in_one_transaction() {
    dropped_by(|_| (), "BEGIN; DROP EXTENSION bucardo; CREATE EXTENSION bucardo; COMMIT");
}

#[test]
fn drop_of_the_extensions_schema() {
    dropped_by(|_| (), "DROP SCHEMA bucardo CASCADE");
}

#[test]
fn a_drop_extension_that_is_rolled_back_leaves_a_stopped_one_as_it_was() {
    let net = Net::together(Capture::Plain, 1).with_table("CREATE TABLE k (id int PRIMARY KEY)", "public.k");
    net.control().exec("SELECT bucardo.stop()");
    net.control().exec("BEGIN; DROP EXTENSION bucardo; ROLLBACK");
    net.wait_state("stopped");
    net.on("A").exec("INSERT INTO k VALUES (1)");
    net.control().exec("SELECT bucardo.start()");
    net.settle(&["k"]);
}

/// A session that rolls back to a savepoint may stay in its transaction for long.
#[test]
fn a_drop_extension_that_is_rolled_back_to_a_savepoint_was_none() {
    let net = Net::together(Capture::Plain, 1).with_table("CREATE TABLE k (id int PRIMARY KEY)", "public.k");
    let mut control = net.control();
    control.exec("BEGIN; SAVEPOINT p; DROP EXTENSION bucardo; ROLLBACK TO p");
    net.on("A").exec("INSERT INTO k VALUES (1)");
    net.wait_equal("k", &["B"]);
    control.exec("SAVEPOINT q; DROP EXTENSION bucardo; RELEASE q; ROLLBACK TO p; SAVEPOINT q; RELEASE q");
    net.on("A").exec("INSERT INTO k VALUES (2)");
    net.wait_equal("k", &["B"]);
    control.exec("SAVEPOINT q; DROP EXTENSION bucardo; RELEASE q; COMMIT");
    let mut a = net.on("A");
    wait_until("capture to be gone", || a.number(OURS) == 0);
}

fn rolled_back_calls(capture: Capture) {
    let net = Net::apart(capture, 1);
    net.everywhere(T);
    let before = Footprint::of(&net);
    let mut control = net.control();
    let add = format!("SELECT bucardo.add_sync('s', dbs => '{}', tables => 'all')", net.dbs());
    control.exec(&format!("BEGIN; {add}; ROLLBACK"));
    wait_unchanged(&net, &before, "add_sync rolled back");
    control.exec(&format!("BEGIN; {add}"));
    net.servers[0].restart(crate::cluster::Stop::Immediate);
    wait_unchanged(&net, &before, "add_sync cut off by a crash");
    net.add_sync("tables => 'all'");
    used(&net);
    // A removal that is rolled back keeps the sync at work.
    net.control().exec("BEGIN; SELECT bucardo.remove_sync('s'); ROLLBACK");
    used(&net);
}

/// A master asks a member that is away when it starts as soon as that is back.
#[test]
fn a_crash_amid_add_sync_leaves_nothing_on_a_member_that_is_away_meanwhile() {
    let net = Net::apart(Capture::Plain, 1);
    net.everywhere(T);
    let (proxy, mut control) = (Proxy::to(net.server_of("A")), net.control());
    control.exec(&format!("SELECT bucardo.update_db('A', {})", literal(&proxy.conninfo("a"))));
    let before = Footprint::of(&net);
    control.exec(&format!("BEGIN; SELECT bucardo.add_sync('s', dbs => '{}', tables => 'all')", net.dbs()));
    proxy.cut();
    net.servers[0].restart(Stop::Immediate);
    let refused = proxy.refused();
    wait_until("A to be asked again and again", || proxy.refused() > refused + 2);
    proxy.heal();
    wait_unchanged(&net, &before, "add_sync cut off by a crash");
}

/// A session that rolls back to a savepoint may stay in its transaction for long.
#[test]
fn a_call_rolled_back_to_a_savepoint_leaves_nothing_while_the_transaction_goes_on() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere(T);
    let before = Footprint::of(&net);
    let mut control = net.control();
    let add = |name: &str, table: &str| format!("SELECT bucardo.add_sync('{name}', dbs => 'A,B', tables => 'public.{table}')");
    control.exec(&format!("BEGIN; SAVEPOINT p; {}; SAVEPOINT q; {}; RELEASE q; ROLLBACK TO p", add("s", "t"), add("r", "p")));
    wait_unchanged(&net, &before, "add_sync rolled back to a savepoint");
    // What is made after that stays, also where something else is released meanwhile.
    control.exec(&format!("SAVEPOINT q; {}; RELEASE q; SAVEPOINT q; {}; ROLLBACK TO q", add("s", "t"), add("r", "p")));
    control.exec("COMMIT");
    net.on("A").exec("INSERT INTO t (v) VALUES ('x')");
    net.settle(&["t"]);
}

/// The master is stopped, and takes nothing off.
#[test]
fn an_add_sync_that_fails_on_its_second_source_leaves_nothing() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE k (id int PRIMARY KEY)");
    m.on("B").exec(
        "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'nothing is made here'; END $$; \
         CREATE EVENT TRIGGER no ON ddl_command_start WHEN TAG IN ('CREATE SCHEMA') EXECUTE FUNCTION no()",
    );
    m.control().exec("SELECT bucardo.stop()");
    let before = Footprint::of(&m);
    let add = "SELECT bucardo.add_sync('s', dbs => 'A:source,B:source', tables => 'public.k')";
    let error = m.control().expect_error(add, "P0001");
    assert!(error.full().contains("\"B\"") && error.full().contains("nothing is made here"), "{}", error.full());
    assert_unchanged(&m, &before, "an add_sync that failed");
}

/// More than shared memory can note of one transaction, and what does not fit there.
#[test]
fn many_calls_rolled_back_and_a_long_conninfo() {
    let net = Net::together_with(Capture::Plain, 1, "max_connections = 200");
    net.everywhere("CREATE TABLE k (id int PRIMARY KEY)");
    let before = Footprint::of(&net);
    let long = format!("sslcert=/{} {}", "x".repeat(1000), net.conninfo("A"));
    let mut control = net.control();
    let add = "bucardo.add_sync('s' || g, dbs => 'A,B', tables => 'public.k')";
    control.exec(&format!("BEGIN; SELECT {add} FROM generate_series(1, 70) g; ROLLBACK"));
    wait_unchanged(&net, &before, "seventy syncs rolled back");
    control.exec(&format!("SELECT bucardo.update_db('A', {})", crate::compare::literal(&long)));
    let before = Footprint::of(&net);
    control.exec(&format!("BEGIN; SELECT {add} FROM generate_series(1, 1) g; ROLLBACK"));
    wait_unchanged(&net, &before, "a sync over a long conninfo rolled back");
    net.add_sync("tables => 'public.k'");
    net.on("A").exec("INSERT INTO k VALUES (1)");
    net.settle(&["k"]);
}

#[test]
fn remove_db_by_force_takes_a_member_out_that_is_away() {
    let net = Net::apart(Capture::Native, 2);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY)");
    net.add_sync("tables => 'public.t'");
    net.server_of("C").stop(crate::cluster::Stop::Immediate);
    net.on("A").exec("INSERT INTO t VALUES (1)");
    net.wait_equal("t", &["B"]);
    net.control().expect_error("SELECT bucardo.remove_db('C')", "2BP01");
    net.control().exec("SELECT bucardo.remove_db('C', force => true)");
    net.on("A").exec("INSERT INTO t VALUES (2)");
    net.wait_equal("t", &["B"]);
    net.wait_served();
    net.wait_state("good|empty");
}

/// What waits to be taken off a member that cannot be reached is taken off where it is found again.
#[test]
fn a_removal_follows_a_member_that_moves() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere("CREATE TABLE k (id int PRIMARY KEY)");
    let (proxy, mut control, mut a) = (Proxy::to(&net.servers[0]), net.control(), net.on("A"));
    let moved = |to: &str| format!("SELECT bucardo.update_db('A', {})", literal(to));
    control.exec(&moved(&proxy.conninfo("a")));
    net.add_sync("tables => 'public.k'");
    proxy.cut();
    control.exec("SELECT bucardo.remove_sync('s')");
    // The master has begun to try.
    control.exec("SELECT bucardo.ping(); SELECT bucardo.ping()");
    assert!(a.number(OURS) > 0);
    control.exec(&moved(&net.conninfo("A")));
    wait_until("capture to be gone", || a.number(OURS) == 0);
    wait_until("nothing to be left to do", || control.number("SELECT count(*) FROM bucardo.cleanup") == 0);
}

#[test]
fn a_living_older_bucardo_is_left_alone() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text)");
    net.on("A").exec(
        "CREATE SCHEMA bucardo; CREATE TABLE bucardo.delta_public_t (id int, txntime timestamptz DEFAULT now()); \
         CREATE TABLE bucardo.track_public_t (txntime timestamptz, target text); CREATE TABLE bucardo.bucardo_delta_names (sync text); \
         CREATE FUNCTION bucardo.delta_public_t() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS \
         $$ BEGIN INSERT INTO bucardo.delta_public_t (id) VALUES (coalesce(NEW.id, OLD.id)); RETURN NULL; END $$; \
         CREATE TRIGGER bucardo_delta AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION bucardo.delta_public_t(); \
         CREATE FUNCTION bucardo.bucardo_purge_delta(i interval) RETURNS text LANGUAGE sql AS 'SELECT ''x'''",
    );
    let before = Footprint::of(&net);
    net.add_sync("tables => 'public.t'");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x'), (2, 'y')");
    net.settle(&["t"]);
    net.control().exec("SELECT bucardo.purge(); SELECT bucardo.remove_sync('s')");
    net.on("A").exec("INSERT INTO t VALUES (3, 'z')");
    assert_eq!(net.on("A").number("SELECT count(*) FROM bucardo.delta_public_t"), 3);
    wait_unchanged_but_members(&net, &before);
}

/// Member A keeps its registration, and with it what a member needs; nothing of the older one may be gone.
fn wait_unchanged_but_members(net: &Net, before: &Footprint) {
    net.control().exec("SELECT bucardo.remove_db('A')");
    net.register("A");
    wait_unchanged(net, before, "a sync beside an older Bucardo");
}

/// Dumps the control database and restores it as another one.
fn restore(net: &Net, to: &Cluster, db: &str) {
    to.create_database(db, "");
    let dump = output(scratch().server_command("pg_dump").arg("-d").arg(net.servers[0].conninfo(CONTROL)));
    let file = to.folder().join("dump.sql");
    std::fs::write(&file, dump).expect("the dump can be written");
    let mut psql = scratch().server_command("psql");
    output(psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &to.conninfo(db), "-f"]).arg(&file));
}

#[test]
fn a_restored_control_database_works_from_its_first_kick_on() {
    let net = Net::together(Capture::Plain, 1).with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1)");
    net.settle(&["t"]);
    net.control().exec("SELECT bucardo.stop()");
    restore(&net, &net.servers[0], "restored");
    let mut restored = net.servers[0].connect("restored");
    // Its master has read the catalog by now, before there was anything in it.
    restored.exec("SELECT bucardo.ping()");
    restored.exec("SELECT bucardo.kick('s', '80s')");
    net.on("A").exec("INSERT INTO t VALUES (2)");
    net.wait_equal("t", &["B"]);
}

#[test]
fn a_restored_control_database_works_once_it_is_told_to_start() {
    let net = Net::together(Capture::Plain, 1).with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1)");
    net.settle(&["t"]);
    net.control().exec("SELECT bucardo.stop()");
    restore(&net, &net.servers[0], "restored");
    let mut restored = net.servers[0].connect("restored");
    restored.exec("SELECT bucardo.ping()");
    assert_eq!(restored.one("SELECT bucardo.start()"), "already running");
    net.on("A").exec("INSERT INTO t VALUES (2)");
    net.wait_equal("t", &["B"]);
}

#[test]
fn a_dump_of_the_control_database_keeps_the_configuration() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text)");
    net.add_sync("tables => 'public.t', checktime => '1 hour', priority => 3, conflict_strategy => 'bucardo_source'");
    net.control().exec("SELECT bucardo.pause('s')");
    let plain = Cluster::start("restored", "");
    restore(&net, &plain, CONTROL);
    for table in ["db", "dbgroup", "dbmap", "relation", "relgroup", "relmap", "sync"] {
        let rows = format!(
            "SELECT coalesce(string_agg(to_jsonb(x)::text, E'\\n' ORDER BY to_jsonb(x)::text), '') FROM bucardo.{table} x"
        );
        let (here, there) = (net.control().one(&rows), plain.connect(CONTROL).one(&rows));
        assert!(!here.is_empty(), "bucardo.{table} is empty");
        assert_eq!(here, there, "bucardo.{table} differs after dump and restore");
    }
}

#[test]
fn history_and_purging_need_no_hand() {
    let net = Net::together_with(Capture::Native, 1, "bucardo.purge_interval = '1s'");
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text)");
    net.add_sync("tables => 'public.t'");
    let size = "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
                WHERE nspname = 'bucardo' AND relkind = 'r'";
    let empty = net.on("A").number(size);
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 100000) g");
    net.settle(&["t"]);
    let mut n = 0;
    wait_until("the space of served changes to come back by itself", || {
        n += 1;
        net.on("A").exec(&format!("UPDATE t SET v = 'n{n}' WHERE id = 1"));
        net.on("A").number(size) < empty + 1_000_000
    });
    net.settle(&["t"]);
}

/// At rest nothing is written: also the look for old history, once a minute, takes no transaction id.
#[test]
fn a_look_at_the_history_takes_no_transaction_id() {
    let net = Net::together_with(Capture::Native, 1, "autovacuum = off\nbucardo.purge_interval = '1h'");
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY)");
    net.add_sync("tables => 'public.t'");
    net.kick();
    let mut control = net.control();
    let (looks, next) = (
        "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relid = 'bucardo.conflict'::regclass",
        "SELECT pg_snapshot_xmax(pg_current_snapshot())::text",
    );
    let seen = control.number(looks);
    let (mut before, mut now) = (0, control.number(next));
    wait_until("the look", || {
        (before, now) = (now, control.number(next));
        control.number(looks) > seen
    });
    assert_eq!(control.number(next) - before, 0, "transaction ids");
}

for_both!(what_was_rolled_back_is_purged, a_crash_leaves_no_space_behind);

/// The master purges nothing by itself.
const UNASKED: &str = "bucardo.purge_interval = '1h'";
const HELD: &str = "SELECT coalesce(sum(pg_relation_size(g)), 0) FROM bucardo.capture c, unnest(c.segments) g";

/// Deltas that nobody will ever see take space like others.
fn what_was_rolled_back_is_purged(capture: Capture) {
    let net = Net::together_with(capture, 1, UNASKED).with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    let mut a = net.on("A");
    a.exec("BEGIN; INSERT INTO t SELECT generate_series(1, 1000); ROLLBACK");
    assert!(a.number(HELD) > 0, "nothing was captured");
    wait_until("the purge", || {
        net.control().exec("SELECT bucardo.purge(); SELECT bucardo.purge()");
        a.number(HELD) == 0
    });
}

/// A purge that fails is told in the log: nothing else would tell why the space does not come back.
#[test]
fn a_failed_purge_is_told() {
    let net = Net::together_with(Capture::Native, 1, "bucardo.purge_interval = '1s'");
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY)");
    net.add_sync("tables => 'public.t'");
    net.on("A").exec("CREATE OR REPLACE FUNCTION bucardo.capture_purge(p_least bigint) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'out of order'; END $$");
    net.on("A").exec("INSERT INTO t VALUES (1)");
    wait_until("the log to tell", || net.servers[0].log().contains("what was captured on db \"A\" could not be purged"));
}

/// The same where the server fell over before the transaction ended.
fn a_crash_leaves_no_space_behind(capture: Capture) {
    let net = Net::apart_with(capture, 1, UNASKED).with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    let mut open = net.on("A");
    open.exec("BEGIN; INSERT INTO t SELECT generate_series(1, 1000)");
    net.on("A").exec("CHECKPOINT");
    net.server_of("A").restart(Stop::Immediate);
    let mut a = net.on("A");
    assert!(a.number(HELD) > 0, "nothing was captured");
    wait_until("the purge", || net.control().try_query("SELECT bucardo.purge()").is_ok() && a.number(HELD) == 0);
}

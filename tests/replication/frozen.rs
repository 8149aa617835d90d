//! A server that is frozen, or a network that swallows everything: connections stay open and nothing ever comes. The
//! others go on, the status names the member, and it catches up by itself; but a statement that only takes its time is
//! waited for.

use crate::net::{Capture, Net};
use crate::proxy::Proxy;
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
const SOON: &str = "bucardo.connect_timeout = '3s'";

/// A source and two targets on servers of their own, with connections that are kept since a first run.
fn net(capture: Capture) -> Net {
    let net = Net::apart_with(capture, 2, SOON).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    net
}

/// Writes until the kept connections of a run have been used, and looks at who gets it.
fn others_go_on(net: &Net, freeze: impl FnOnce(), thaw: impl FnOnce()) {
    freeze();
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    net.wait_equal("t", &["B"]);
    net.wait_state("stalled");
    assert!(net.last_error().contains("\"C\""), "{}", net.last_error());
    net.on("A").exec("UPDATE t SET v = 'z'");
    net.wait_equal("t", &["B"]);
    thaw();
    net.settle(&["t"]);
    net.wait_state("good|empty");
}

#[test]
fn a_frozen_target_holds_nobody_up() {
    let net = net(Capture::Native);
    let c = net.server_of("C");
    others_go_on(&net, || c.freeze(), || c.thaw());
}

#[test]
fn a_network_that_swallows_everything_holds_nobody_up() {
    let net = net(Capture::Native);
    let proxy = Proxy::to(net.server_of("C"));
    net.control().exec(&format!("SELECT bucardo.update_db('C', '{}')", proxy.conninfo("c")));
    net.on("A").exec("INSERT INTO t VALUES (9, 'through the proxy')");
    net.settle(&["t"]);
    others_go_on(&net, || proxy.stall(), || proxy.heal());
}

#[test]
fn a_target_that_freezes_in_the_midst_of_a_run() {
    let net = net(Capture::Native);
    let mut lock = net.on("C");
    let (locker, c) = (lock.pid, net.server_of("C"));
    others_go_on(
        &net,
        || {
            lock.exec("BEGIN; LOCK t");
            // More than the buffers on the way can hold: the run waits until it may send the rest.
            net.on("A").exec("INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(10, 100000) g");
            net.wait_sql("C", "the run to wait", "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)");
            c.freeze();
        },
        || {
            c.thaw();
            net.on("C").exec(&format!("SELECT pg_terminate_backend({locker})"));
        },
    );
}

#[test]
fn a_frozen_source_is_named_and_stalls_its_sync_only() {
    let mut net = net(Capture::Plain);
    net.add_member("D", 0, "");
    net.add_member("E", 0, "");
    ["D", "E"].iter().for_each(|m| net.on(m).exec("CREATE TABLE u (id int PRIMARY KEY)"));
    net.control().exec("SELECT bucardo.add_sync('well', dbs => 'D,E', tables => 'public.u')");
    // Nobody kicks: the master finds it by itself.
    net.server_of("A").freeze();
    net.wait_state("stalled");
    assert!(net.last_error().contains("\"A\""), "{}", net.last_error());
    net.on("D").exec("INSERT INTO u VALUES (1)");
    net.wait_sql("E", "the other sync to go on", "SELECT count(*) = 1 FROM u");
    let error = net.try_kick().expect_err("the source is away");
    assert!(error.sqlstate.starts_with("08") && error.message.contains("\"A\""), "{error}");
    net.server_of("A").thaw();
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    net.wait_equal("t", &["B", "C"]);
    net.wait_state("good|empty");
}

#[test]
fn stop_and_end_are_answered_while_a_member_is_frozen() {
    let net = Net::apart_with(Capture::Native, 1, "bucardo.connect_timeout = '10min'").with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    let mut lock = net.on("B");
    lock.exec("BEGIN; LOCK t");
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    net.wait_sql("B", "the run to wait", "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)");
    net.server_of("B").freeze();
    assert_eq!(net.control().one("SELECT bucardo.stop('frozen', '80s')"), "stopped");
    net.server_of("B").thaw();
    lock.exec("ROLLBACK");
    net.control().exec("SELECT bucardo.start()");
    net.settle(&["t"]);
}

#[test]
fn a_long_statement_is_waited_for() {
    let net = net(Capture::Native);
    let mut gate = net.on("C");
    net.server_of("C").configure("log_connections = on");
    net.server_of("C").signal("HUP");
    net.wait_sql("C", "the setting", "SELECT current_setting('log_connections')::bool");
    gate.exec(
        "CREATE SEQUENCE gate; CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         LOOP EXIT WHEN (SELECT last_value FROM public.gate) > 1; PERFORM pg_sleep(0.05); END LOOP; RETURN NEW; END $$; \
         CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow(); ALTER TABLE t ENABLE ALWAYS TRIGGER slow",
    );
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    let busy = "SELECT pid || ' ' || query_start FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let mut statement = None;
    wait_until("the statement to be under way", || {
        statement = net.on("C").maybe(busy);
        statement.is_some()
    });
    // Our own waits connect too, each once; the server is asked again and again.
    let asked = || net.server_of("C").log().matches("connection received").count();
    let before = asked();
    wait_until("the server to be asked several times", || asked() > before + 3);
    net.wait_sql("C", "the statement to go on", &format!("SELECT '{}' IN ({busy})", statement.unwrap_or_default()));
    gate.exec("SELECT setval('gate', 2)");
    net.settle(&["t"]);
    assert_eq!(net.control().number("SELECT count(*) FROM bucardo.syncrun WHERE error IS NOT NULL"), 0);
}

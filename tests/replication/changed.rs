//! Living syncs are changed: members come, go and come back, calls are rolled back, and others are away meanwhile.
//!
//! A change that did not happen must leave no trace, and one that did must not be undone by what an earlier one has left to do.

use crate::cluster::Stop;
use crate::compare::literal;
use crate::footprint::{Footprint, wait_unchanged};
use crate::multi::{Place, Plan};
use crate::net::{Capture, Net};
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

/// Three sources of which C leaves and comes back by those statements; then nothing waits to be taken off, and C is served.
fn leaves_and_returns(statements: &str) {
    let m = Plan::new(3).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.on("C").exec("INSERT INTO t VALUES (1, 'C')");
    m.settle(&["t"]);
    let all = format!("SELECT bucardo.update_sync('s', dbs => '{}')", m.dbs());
    let two = all.replace("C:source,", "");
    let role = all.replace("C:source", "C:target");
    assert!(two != all && role != all);
    let triggers = "SELECT string_agg(oid::text, ' ' ORDER BY oid) FROM pg_trigger WHERE tgrelid = 't'::regclass";
    let captured = m.on("C").one(triggers);
    let mut control = m.control();
    for statement in statements.split("; ") {
        control.exec(&statement.replace("TWO", &two).replace("ROLE", &role).replace("ALL", &all));
    }
    m.on("C").exec("INSERT INTO t VALUES (2, 'C again')");
    m.wait_sql_on_control("what waited to be taken off", "SELECT count(*) = 0 FROM bucardo.cleanup");
    assert_eq!(m.on("C").one(triggers), captured, "the capture of C is another");
    m.on("C").exec("INSERT INTO t VALUES (3, 'C for good')");
    m.settle(&["t"]);
    assert_eq!(m.on("A").one("SELECT string_agg(id || v, ' ' ORDER BY id) FROM t"), "1C 2C again 3C for good");
}

#[test]
fn a_source_that_left_and_returned_while_the_master_was_stopped() {
    leaves_and_returns("SELECT bucardo.stop(); TWO; ALL; SELECT bucardo.start()");
}

#[test]
fn a_source_that_left_and_returned_in_one_transaction() {
    leaves_and_returns("BEGIN; TWO; ALL; COMMIT");
}

#[test]
fn a_source_that_was_a_target_for_a_moment() {
    leaves_and_returns("SELECT bucardo.stop(); ROLE; ALL; SELECT bucardo.start()");
}

/// Members of a living sync that a call makes sources, and then did not.
#[test]
fn a_rolled_back_change_of_a_living_sync_leaves_no_capture() {
    let mut net = Net::together(Capture::Plain, 1);
    net.add_member("C", 0, "");
    net.everywhere(T);
    net.control()
        .exec("SELECT bucardo.add_dbgroup('g', 'A:source,B:target'), bucardo.add_sync('s', dbs => 'g', tables => 'public.t')");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B"]);
    net.wait_served();
    let before = Footprint::of(&net);
    let elsewhere = literal(&net.conninfo("C"));
    let here = literal(&format!("{} application_name=other", net.conninfo("A")));
    for call in [
        "update_sync('s', dbs => 'A:source,B:source')",
        "update_dbgroup('g', 'A:source,B:source,C:source')",
        &format!("add_db('new', {elsewhere}, dbgroup => 'g', role => 'source')"),
        &format!("update_db('A', {elsewhere})"),
        // Another way to the same place: its capture is not to go.
        &format!("update_db('A', {here})"),
    ] {
        net.control().exec(&format!("BEGIN; SELECT bucardo.{call}; ROLLBACK"));
        wait_unchanged(&net, &before, call);
    }
    net.control().exec("SELECT bucardo.ping(); SELECT bucardo.ping()");
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    net.wait_equal("t", &["B"]);
}

/// The same of a call that fails at the second of two new sources.
#[test]
fn a_failed_change_of_a_living_sync_leaves_no_capture() {
    let mut net = Net::together(Capture::Plain, 1);
    net.everywhere(T);
    net.add_sync("tables => 'public.t'");
    net.add_member("C", 0, "");
    net.on("C").exec(T);
    let before = Footprint::of(&net);
    let mut busy = net.on("C");
    busy.exec("BEGIN; INSERT INTO t VALUES (1, 'x')");
    net.control().expect_error("SELECT bucardo.update_sync('s', dbs => 'A:source,B:source,C:source')", "55P03");
    busy.exec("COMMIT");
    wait_unchanged(&net, &before, "a failed update_sync");
}

#[test]
fn what_does_not_concern_a_member_that_is_away_is_not_refused() {
    let net = Net::apart(Capture::Native, 2).with_table(T, "public.t");
    net.everywhere("CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE w (id int PRIMARY KEY)");
    net.control().exec("SELECT bucardo.add_dbgroup('g', 'A,B,C'), bucardo.add_sync('other', dbs => 'g', tables => 'public.u')");
    net.server_of("C").stop(Stop::Fast);
    let mut control = net.control();
    let quiet = control.try_query("SELECT bucardo.update_table('public.t', 's', conflict_strategy => 'bucardo_source')");
    assert!(quiet.expect("it asks no member").notices.is_empty());
    control.expect_error("SELECT bucardo.update_table('public.t', 's', conflict_strategy => 'B')", "22023");
    for call in [
        "update_table('public.t', 's', strict_checking => false)",
        "add_table('public.u', 's')",
        "add_all_tables('s', 'A')",
        "add_db('D', '', dbgroup => 'g')",
    ] {
        if call.starts_with("add_db") {
            net.servers[0].create_database("d", "");
            net.servers[0].sql("d", "CREATE TABLE u (id int PRIMARY KEY)");
        }
        let call = call.replace("''", &literal(&net.servers[0].conninfo("d")));
        let reply = control.try_query(&format!("SELECT bucardo.{call}")).unwrap_or_else(|error| panic!("{call}: {error}"));
        assert!(
            reply.notices.iter().any(|n| n.severity == "WARNING" && n.message.contains("\"C\"")),
            "{call}: {:?}",
            reply.notices
        );
    }
    net.on("A").exec("INSERT INTO t VALUES (1, 'x'); INSERT INTO u VALUES (1); INSERT INTO w VALUES (1)");
    ["t", "u", "w"].iter().for_each(|table| net.wait_equal(table, &["B"]));
    net.server_of("C").launch();
    net.settle(&["t", "u", "w"]);
}

/// What it writes to a new table would not be captured.
#[test]
fn a_table_is_not_added_while_a_source_is_away() {
    let m = Plan::new(2).place(Place::Apart).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
    m.sync("tables => 'public.t'");
    m.server_of("B").stop(Stop::Fast);
    m.control().expect_error("SELECT bucardo.add_table('public.u', 's')", "08001");
    m.server_of("B").launch();
    m.control().exec("SELECT bucardo.add_table('public.u', 's')");
}

/// The relation is held by the new sync alone when the old one has gone.
#[test]
fn a_sync_is_removed_while_another_of_the_same_table_is_added() {
    let net = Net::together(Capture::Plain, 1).with_table(T, "public.t");
    let (mut adds, mut removes) = (net.control(), net.control());
    adds.exec("BEGIN; SELECT bucardo.add_sync('s2', dbs => 'A,B', tables => 'public.t')");
    let pid = removes.pid;
    let removed = std::thread::spawn(move || removes.try_query("SELECT bucardo.remove_sync('s')"));
    let waits = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'");
    let mut looks = net.control();
    wait_until("the removal to wait", || removed.is_finished() || looks.number(&waits) == 1);
    adds.exec("COMMIT");
    removed.join().expect("no panic").expect("it is removed");
    assert_eq!(looks.number("SELECT count(*) FROM bucardo.relation"), 1);
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B"]);
}

/// Who commits a prepared transaction cannot tell the master what it has changed.
#[test]
fn a_transaction_that_has_changed_the_catalog_is_not_prepared() {
    let net = Net::together(Capture::Plain, 1).with_table(T, "public.t");
    let before = Footprint::of(&net);
    let mut control = net.control();
    for call in ["pause('s')", "add_sync('s2', dbs => 'A,B', tables => 'public.t')", "stop()"] {
        control.exec(&format!("BEGIN; SELECT bucardo.{call}"));
        let error = control.expect_error("PREPARE TRANSACTION 'x'", "55000");
        assert!(!error.hint.is_empty(), "{error}");
        assert_eq!(control.number("SELECT count(*) FROM pg_prepared_xacts"), 0);
        wait_unchanged(&net, &before, call);
    }
    // Its session goes on, and what it does next is not told twice.
    control.exec("SELECT bucardo.ping()");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
}

/// A run that failed while its sync was being removed: it is not the history of the next one of that name.
#[test]
fn a_sync_that_is_added_again_has_no_history() {
    let net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    net.server_of("A").stop(Stop::Fast);
    let mut removes = net.control();
    removes.exec("BEGIN; SELECT bucardo.remove_sync('s')");
    assert!(net.try_kick().is_err());
    net.wait_sql_on_control("the run to be recorded", "SELECT count(*) > 0 FROM bucardo.syncrun WHERE state = 'bad'");
    removes.exec("COMMIT");
    net.server_of("A").launch();
    // The master has forgotten the sync.
    net.control().exec("SELECT bucardo.ping('80s'); SELECT bucardo.ping('80s')");
    net.add_sync("tables => 'public.t', autokick => false");
    assert_eq!(
        net.control().one("SELECT concat_ws(' ', state, last_good, last_bad, last_error) FROM bucardo.status WHERE sync = 's'"),
        "new"
    );
}

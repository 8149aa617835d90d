//! What the operator is told: an answered kick and the status agree, every member that is in trouble is named with its
//! own words, and nothing that is shown is about what was before.

use crate::cluster::Stop;
use crate::net::{Capture, Net};
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

fn manual(net: Net) -> Net {
    net.everywhere(T);
    net.add_sync("tables => 'public.t', autokick => false");
    net
}

fn await_point(net: &Net, point: &str) {
    let mut control = net.control();
    wait_until(&format!("{point} to be reached"), || control.one(&format!("SELECT bucardo.fault_taken('{point}')")) == "t");
}

#[test]
fn an_answered_kick_is_not_running_any_more() {
    let net = manual(Net::together(Capture::Native, 1));
    // The master comes no further than to the answer.
    net.control().exec("SELECT bucardo.fault_set('master.after_report', 'wait')");
    assert_eq!(net.kick(), "empty");
    assert_eq!(net.state(), "empty");
    net.control().exec("SELECT bucardo.fault_clear()");
}

#[test]
fn what_ends_the_master_again_and_again_is_told() {
    let net = manual(Net::together(Capture::Native, 1));
    let mut control = net.control();
    control.exec("SELECT bucardo.fault_set('master.before_reload', 'error', 1000); SELECT bucardo.reload()");
    net.wait_sql_on_control(
        "the status to tell it",
        "SELECT coalesce(last_error LIKE '%fault point master.before_reload%', false) FROM bucardo.status WHERE sync = 's'",
    );
    control.exec("SELECT bucardo.fault_clear()");
    // Who kicks waits for the next one.
    assert_eq!(net.kick(), "empty");
    assert_eq!(net.last_error(), "");
}

#[test]
fn a_source_that_lacks_a_table_is_named_although_a_target_is_down() {
    let net = manual(Net::apart(Capture::Native, 2));
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.kick();
    net.server_of("C").stop(Stop::Immediate);
    net.on("A").exec("INSERT INTO t VALUES (2, 'x')");
    assert_eq!(net.kick(), "good");
    assert_eq!(net.state(), "stalled");
    net.on("A").exec("INSERT INTO t VALUES (3, 'x'); ALTER TABLE t RENAME TO x");
    let error = net.try_kick().unwrap_err();
    assert!(error.message.contains("\"A\"") && error.message.contains("public.t"), "{error}");
    let last = net.last_error();
    assert_eq!(net.state(), "bad");
    assert!(last.contains("db \"A\"") && last.contains("public.t") && last.contains("db \"C\""), "{last}");
    net.on("A").exec("ALTER TABLE x RENAME TO t");
    net.server_of("C").launch();
    net.wait_equal("t", &["B", "C"]);
}

#[test]
fn each_member_in_trouble_is_named_with_its_own_words() {
    let net = manual(Net::apart(Capture::Native, 2));
    net.on("B").exec("ALTER TABLE t ADD CONSTRAINT lower_case CHECK (v = lower(v))");
    net.server_of("C").stop(Stop::Immediate);
    net.on("A").exec("INSERT INTO t VALUES (1, 'X')");
    let error = net.try_kick().unwrap_err();
    assert_eq!(error.sqlstate, "23514", "{error}");
    let recorded = net.control().one("SELECT error FROM bucardo.syncrun ORDER BY run LIMIT 1");
    for text in [error.message.clone(), recorded, net.last_error()] {
        assert_eq!(text.matches("lower_case").count(), 1, "{text}");
        assert!(text.contains("db \"B\"") && text.contains("db \"C\""), "{text}");
    }
    // With the time-out of a lock, what it means is told as well.
    net.on("B").exec("ALTER TABLE t DROP CONSTRAINT lower_case");
    net.wait_equal("t", &["B"]);
    let mended = "SELECT last_error NOT LIKE '%lower_case%' FROM bucardo.status WHERE sync = 's'";
    net.wait_sql_on_control("the status to know it", mended);
    let mut lock = net.on("B");
    lock.exec("BEGIN; LOCK TABLE t");
    net.on("A").exec("INSERT INTO t VALUES (2, 'x')");
    let reply = net.control().try_query("SELECT bucardo.kick('s', '80s')").unwrap();
    let warning = reply.notices.iter().map(|n| n.message.clone()).collect::<String>();
    for text in [warning, net.last_error()] {
        assert!(text.contains("db \"B\"") && text.contains("db \"C\"") && text.contains("as soon as that ends"), "{text}");
    }
    lock.exec("COMMIT");
    net.server_of("C").launch();
    net.wait_equal("t", &["B", "C"]);
}

#[test]
fn a_kid_that_has_just_begun_shows_nothing_of_its_last_run() {
    let net = manual(Net::together(Capture::Native, 1));
    let mut control = net.control();
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    assert_eq!(net.kick(), "good");
    let kid = "SELECT concat_ws(' ', coalesce(sync, '-'), coalesce(run::text, '-'), phase, coalesce(db, '-'), coalesce(relation, '-'), rows_done, rows_total) \
               FROM bucardo.activity WHERE kind = 'kid'";
    let idle_since = "SELECT since >= started FROM bucardo.activity, (SELECT max(started) AS started FROM bucardo.syncrun) r WHERE kind = 'kid'";
    wait_until("the kid to be idle", || control.one(kid) == "- - idle - -");
    assert_eq!(control.one(idle_since), "t");
    control.exec("SELECT bucardo.fault_set('kid.before_run', 'wait')");
    control.exec("SELECT bucardo.kick('s')");
    await_point(&net, "kid.before_run");
    assert_eq!(control.one(kid), "s - connect - - 0 0");
    control.exec("SELECT bucardo.fault_clear()");
    net.wait_state("empty");
}

#[test]
fn a_database_under_two_names_has_each_change_pending_once() {
    let net = manual(Net::together(Capture::Plain, 1));
    let mut control = net.control();
    control.exec(&format!("SELECT bucardo.add_db('again', {})", crate::compare::literal(&net.conninfo("A"))));
    control.exec("SELECT bucardo.add_sync('other', dbs => 'again,B', tables => 'public.t', autokick => false)");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x'), (2, 'x')");
    let pending = "SELECT string_agg(concat_ws(' ', sync, source, changes), ', ' ORDER BY sync) FROM bucardo.pending()";
    assert_eq!(control.one(pending), "other again 2, s A 2");
}

/// The master has read a catalog without the sync, and has not yet forgotten what is not in there.
#[test]
fn a_kick_of_a_new_sync_while_the_master_reads_the_catalog_is_not_lost() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere(T);
    let mut control = net.control();
    control.exec("SELECT bucardo.ping(); SELECT bucardo.fault_set('master.within_reload', 'wait'); SELECT bucardo.reload()");
    await_point(&net, "master.within_reload");
    net.add_sync("tables => 'public.t', autokick => false");
    assert_eq!(control.one("SELECT bucardo.kick('s')"), "kicked");
    control.exec("SELECT bucardo.fault_clear()");
    net.wait_state("empty");
}

#[test]
fn a_run_that_stop_has_ended_is_in_the_history() {
    let net = manual(Net::together(Capture::Native, 1));
    let mut control = net.control();
    let mut lock = net.on("B");
    lock.exec("BEGIN; LOCK TABLE t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    control.exec("SELECT bucardo.kick('s')");
    net.wait_sql("B", "the run to wait for the lock", "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)");
    let run = control.one("SELECT run FROM bucardo.activity WHERE run IS NOT NULL");
    assert_eq!(control.one("SELECT bucardo.stop()"), "stopped");
    assert_eq!(control.one(&format!("SELECT state || ' ' || sqlstate FROM bucardo.syncrun WHERE run = {run}")), "bad 57P01");
    lock.exec("COMMIT");
    control.exec("SELECT bucardo.start()");
    net.wait_equal("t", &["B"]);
}

#[test]
fn a_run_that_a_drop_has_ended_which_came_to_nothing_is_followed_by_another() {
    let net = manual(Net::together(Capture::Native, 1));
    let mut control = net.control();
    let mut lock = net.on("B");
    lock.exec("BEGIN; LOCK TABLE t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    control.exec("SELECT bucardo.kick('s')");
    net.wait_sql("B", "the run to wait for the lock", "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)");
    control.exec("BEGIN; DROP EXTENSION bucardo CASCADE; ROLLBACK");
    lock.exec("COMMIT");
    assert!(matches!(net.kick().as_str(), "good" | "empty"));
    net.assert_equal("t");
}

/// There is room for 512 in all; more run, and their status says that it does not know how.
#[test]
fn syncs_beyond_the_room_for_their_state_say_so() {
    let net = manual(Net::together(Capture::Native, 1));
    let mut control = net.control();
    control.exec("SELECT bucardo.pause('s')");
    control.exec(
        "INSERT INTO bucardo.sync OVERRIDING SYSTEM VALUE SELECT (jsonb_populate_record(s, jsonb_build_object('id', s.id + g, 'name', s.name || g))).* \
         FROM bucardo.sync s, generate_series(1, 520) g",
    );
    control.exec("SELECT bucardo.reload()");
    let told = "SELECT count(*) FROM bucardo.status WHERE warning LIKE 'this server has no room%'";
    wait_until("nine to have no room", || control.number(told) == 9);
    control.exec("DELETE FROM bucardo.sync WHERE name <> 's'; SELECT bucardo.reload(); SELECT bucardo.resume('s')");
    assert_eq!(net.kick(), "empty");
    assert_eq!(control.number(told), 0);
}

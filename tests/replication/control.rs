//! The operator's side: kicking, pausing, stopping, adding and removing under way, and what the views say meanwhile.
//!
//! The master must do what it is told at once, keep it across restarts, and never claim what is not so.

use crate::cluster::Stop;
use crate::net::{Capture, Net};
use crate::wait::wait_until;
use crate::wire::PgError;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

crate::for_both!(tables_that_kick_and_tables_that_do_not);

fn manual() -> Net {
    manual_to(2)
}

/// With one target a run waits for a lock there as long as it is held; of several, the others are not kept waiting.
fn manual_to(targets: usize) -> Net {
    let net = Net::together(Capture::Native, targets);
    net.everywhere(T);
    net.add_sync("tables => 'public.t', autokick => false");
    net
}

#[test]
fn without_autokick_a_kick_carries_the_changes_and_says_good_or_empty() {
    let net = manual();
    assert_eq!(net.state(), "new");
    assert_eq!(net.kick(), "empty");
    assert_eq!(net.state(), "empty");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, 'z')");
    assert_eq!(net.pending(), 3, "pending counts the changes, once for all targets");
    assert_eq!(net.kick(), "good");
    net.assert_equal("t");
    assert_eq!(net.pending(), 0);
    let mut control = net.control();
    assert_eq!(control.one("SELECT state || upserts || '/' || deletes FROM bucardo.status WHERE sync = 's'"), "good6/0");
    net.on("A").exec("DELETE FROM t WHERE id > 1; UPDATE t SET v = 'xx'");
    assert_eq!(net.kick(), "good");
    assert_eq!(control.one("SELECT upserts || '/' || deletes FROM bucardo.status WHERE sync = 's'"), "2/4");
    assert_eq!(
        control.one("SELECT string_agg(state || upserts || '/' || deletes, ' ' ORDER BY run) FROM bucardo.syncrun"),
        "empty0/0 good6/0 good2/4"
    );
}

#[test]
fn a_kick_waits_for_a_run_that_began_after_it() {
    let net = manual();
    let mut a = net.on("A");
    let mut control = net.control();
    for id in 1..=60 {
        a.exec(&format!("INSERT INTO t VALUES ({id}, 'x')"));
        // A run begun by this one may be under way when the next kick arrives.
        control.exec("SELECT bucardo.kick('s')");
        a.exec(&format!("INSERT INTO t VALUES ({}, 'x')", id + 1000));
        net.kick();
        net.assert_equal("t");
    }
}

#[test]
fn a_kick_without_a_timeout_answers_in_an_open_transaction() {
    let net = manual();
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    let mut open = net.control();
    open.exec("BEGIN");
    assert_eq!(open.one("SELECT bucardo.kick('s')"), "kicked");
    open.exec("COMMIT");
    net.wait_equal("t", &["B", "C"]);
}

#[test]
fn a_verbose_log_tells_what_came_of_each_run() {
    let net = Net::together_with(Capture::Native, 1, "bucardo.log_level = verbose");
    net.everywhere(T);
    net.add_sync("tables => 'public.t', autokick => false");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x'), (2, 'y')");
    assert_eq!(net.kick(), "good");
    assert_eq!(net.kick(), "empty");
    let log = net.servers[0].log();
    for line in ["was good: 2 upserts, 0 deletes, 0 truncates, 0 conflicts", "was empty: 0 upserts"] {
        assert!(log.contains(&format!("of sync \"s\" {line}")), "the log does not tell: {line}");
    }
}

#[test]
fn waiting_kicks_of_many_sessions_all_get_their_answer() {
    let net = manual();
    std::thread::scope(|threads| {
        for client in 0..8 {
            let net = &net;
            threads.spawn(move || {
                let (mut a, mut control, mut b) = (net.on("A"), net.control(), net.on("B"));
                for n in 0..15 {
                    let id = client * 1000 + n;
                    a.exec(&format!("INSERT INTO t VALUES ({id}, 'x')"));
                    let answer = control.one("SELECT bucardo.kick('s', '80s')");
                    assert!(answer == "good" || answer == "empty", "{answer}");
                    assert_eq!(b.number(&format!("SELECT count(*) FROM t WHERE id = {id}")), 1, "after {answer}");
                }
            });
        }
    });
    net.assert_equal("t");
}

/// What a table says of its own goes before what its sync says.
fn tables_that_kick_and_tables_that_do_not(capture: Capture) {
    let net = Net::together_with(capture, 1, "bucardo.max_kids = 1");
    net.everywhere("CREATE TABLE loud (id int PRIMARY KEY); CREATE TABLE quiet (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)");
    net.add_sync("tables => 'public.loud', priority => 10");
    let mut control = net.control();
    control.exec("SELECT bucardo.add_table('public.quiet', 's', autokick => false)");
    let mut a = net.on("A");
    for id in 1..=5 {
        a.exec(&format!("INSERT INTO loud VALUES ({id})"));
        net.settle(&["loud"]);
        // A look from before may still have found it: so that no run comes that nobody asked for from here on.
        (0..2).for_each(|_| assert_ne!(net.kick(), "bad"));
        a.exec(&format!("INSERT INTO quiet VALUES ({id})"));
        control.exec("SELECT bucardo.ping(); SELECT bucardo.ping()");
        assert_eq!(net.kick(), "good", "a run had taken it");
        net.assert_equal("quiet");
    }
    a.exec("INSERT INTO quiet VALUES (10); INSERT INTO loud VALUES (10)");
    net.settle(&["loud", "quiet"]);
    // A look that finds what is pending for another sync would find this too, and the only kid take it first.
    control.exec("SELECT bucardo.add_sync('next', dbs => 'A,B', tables => 'public.other')");
    a.exec("INSERT INTO quiet VALUES (11)");
    a.exec("INSERT INTO other VALUES (1)");
    net.wait_equal("other", &["B"]);
    assert_eq!(net.pending(), 1);
    // The other way round.
    control
        .exec("SELECT bucardo.update_sync('s', autokick => false), bucardo.update_table('public.loud', 's', autokick => true)");
    a.exec("INSERT INTO quiet VALUES (12)");
    a.exec("INSERT INTO other VALUES (2)");
    net.wait_equal("other", &["B"]);
    assert_eq!(net.pending(), 2);
    a.exec("INSERT INTO loud VALUES (11)");
    net.settle(&["loud", "quiet"]);
}

#[test]
fn a_kid_past_its_lifetime_goes_though_nobody_needs_it() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere(T);
    net.add_sync("tables => 'public.t', lifetime => '1 second'");
    let mut control = net.control();
    for id in 1..=3 {
        net.on("A").exec(&format!("INSERT INTO t VALUES ({id}, 'x')"));
        assert!(matches!(net.kick().as_str(), "good" | "empty"));
        net.assert_equal("t");
        wait_until("the kid to go", || control.number("SELECT count(*) FROM bucardo.activity WHERE kind = 'kid'") == 0);
    }
}

#[test]
fn checktime_runs_without_a_kick() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere(T);
    net.add_sync("tables => 'public.t', autokick => false, checktime => '1 second'");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    let mut control = net.control();
    let mut runs = || control.number("SELECT count(*) FROM bucardo.syncrun WHERE sync = 's'");
    let before = runs();
    wait_until("runs with nothing to do", || runs() > before + 1);
}

/// The master may have read the catalog while the sync was still paused.
#[test]
fn a_kick_right_after_a_resume_is_not_refused() {
    let net = Net::together(Capture::Native, 1).with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    let mut control = net.control();
    for _ in 0..200 {
        control.exec("SELECT bucardo.pause('s')");
        control.exec("SELECT bucardo.resume('s')");
        assert_eq!(control.one("SELECT bucardo.kick('s', '80s')"), "empty");
    }
}

fn refused_until(net: &Net, state: &str, resume: &str) {
    net.wait_state(state);
    net.on("A").exec("INSERT INTO t SELECT coalesce(max(id), 0) + 1, 'x' FROM t");
    let error = net.control().expect_error("SELECT bucardo.kick('s', '20s')", "55000");
    assert!(error.full().contains('s') && !error.hint.is_empty(), "no hint: {error}");
    net.servers[0].restart(Stop::Fast);
    net.wait_state(state);
    let mut control = net.control();
    control.expect_error("SELECT bucardo.kick('s', '20s')", "55000");
    assert!(net.pending() > 0);
    control.exec(resume);
    net.settle(&["t"]);
}

#[test]
fn paused_inactive_and_stopped_survive_a_restart_and_lose_nothing() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    let mut control = net.control();
    net.until_empty();
    assert_eq!(control.one("SELECT bucardo.pause('s')"), "s");
    refused_until(&net, "paused", "SELECT bucardo.resume('s')");
    net.until_empty();
    net.control().exec("SELECT bucardo.deactivate('s')");
    refused_until(&net, "inactive", "SELECT bucardo.activate('s')");
    assert_eq!(net.control().one("SELECT bucardo.stop('because')"), "stopped");
    refused_until(&net, "stopped", "SELECT bucardo.start()");
    assert_eq!(net.control().one("SELECT bucardo.start()"), "already running");
}

#[test]
fn the_master_starts_with_the_extension_and_with_the_server() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    net.control().exec("SELECT bucardo.ping()");
    for how in [Stop::Fast, Stop::Immediate] {
        net.servers[0].restart(how);
        net.control().exec("SELECT bucardo.ping()");
        net.on("A").exec("INSERT INTO t SELECT count(*), 'x' FROM t");
        net.settle(&["t"]);
    }
    let mut control = net.control();
    assert_eq!(control.number("SELECT count(*) FROM bucardo.activity WHERE kind = 'master'"), 1);
    assert!(control.one("SELECT bucardo.version()").starts_with(|c: char| c.is_ascii_digit()));
}

#[test]
fn tables_join_and_leave_a_running_sync() {
    let net = Net::together(Capture::Plain, 1).with_table(T, "public.t");
    net.everywhere("CREATE TABLE late (id int PRIMARY KEY, v text)");
    let mut a = net.on("A");
    a.exec("INSERT INTO late VALUES (1, 'before')");
    net.control().exec("SELECT bucardo.add_table('public.late', 's')");
    // From here on changes count; the answer of a kick shows that the master knows the table.
    a.exec("INSERT INTO late VALUES (2, 'after'); INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B"]);
    net.wait_sql("B", "the new table's row", "SELECT count(*) = 1 FROM late WHERE id = 2");
    net.control().exec("SELECT bucardo.remove_table('public.t', 's')");
    a.exec("INSERT INTO t VALUES (2, 'not sent'); INSERT INTO late VALUES (3, 'sent')");
    net.wait_sql("B", "the row", "SELECT count(*) = 1 FROM late WHERE id = 3");
    net.kick();
    assert_eq!(net.on("B").number("SELECT count(*) FROM t"), 1);
}

#[test]
fn a_target_joins_a_running_sync() {
    let mut net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    net.add_member("C", 0, "");
    net.on("C").exec(T);
    net.control().exec("SELECT bucardo.update_sync('s', dbs => 'A:source,B:target,C:target')");
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    net.wait_equal("t", &["B"]);
    net.wait_sql("C", "the new row", "SELECT count(*) = 1 FROM t WHERE id = 2");
    net.until_empty();
    net.control().exec("SELECT bucardo.update_sync('s', dbs => 'A:source,C:target')");
    net.on("A").exec("UPDATE t SET v = 'z'");
    net.wait_equal("t", &["C"]);
    net.kick();
    assert_eq!(net.on("B").number("SELECT count(*) FROM t WHERE v = 'z'"), 0);
}

#[test]
fn several_syncs_share_a_table_and_are_served_each_for_itself() {
    let net = Net::together(Capture::Native, 2);
    net.everywhere(T);
    let mut control = net.control();
    control.exec("SELECT bucardo.add_sync('s', dbs => 'A:source,B:target', tables => 'public.t')");
    control.exec("SELECT bucardo.add_sync('other', dbs => 'A,C', tables => 'public.t', autokick => false)");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 100) g");
    net.wait_equal("t", &["B"]);
    assert_eq!(net.on("C").number("SELECT count(*) FROM t"), 0);
    assert_eq!(control.number("SELECT sum(changes) FROM bucardo.pending('other')"), 100);
    assert_eq!(control.one("SELECT bucardo.kick('other', '80s')"), "good");
    net.assert_equal("t");
    control.exec("SELECT bucardo.remove_sync('s')");
    net.on("A").exec("DELETE FROM t WHERE id > 10");
    assert_eq!(control.one("SELECT bucardo.kick('other', '80s')"), "good");
    net.wait_equal("t", &["C"]);
}

#[test]
fn kids_are_kept_replaced_and_ended_as_the_sync_says() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere(T);
    net.add_sync("tables => 'public.t', autokick => false, maxkicks => 2");
    let mut control = net.control();
    let mut kids_seen = std::collections::BTreeSet::new();
    for id in 1..=6 {
        net.on("A").exec(&format!("INSERT INTO t VALUES ({id}, 'x')"));
        net.kick();
        kids_seen.extend(control.maybe("SELECT pid::text FROM bucardo.activity WHERE kind = 'kid'"));
    }
    assert!(kids_seen.len() >= 2, "six runs with maxkicks 2 were served by {kids_seen:?}");
    control.exec("SELECT bucardo.update_sync('s', kidsalive => false, stayalive => false)");
    net.on("A").exec("INSERT INTO t VALUES (7, 'x')");
    net.kick();
    wait_until("the kid to end", || control.number("SELECT count(*) FROM bucardo.activity WHERE kind = 'kid'") == 0);
    net.assert_equal("t");
}

/// A kick that waits while a lock on B holds its run up, and what it was told in the end.
fn kick_meanwhile(net: &Net, meanwhile: impl FnOnce()) -> Result<String, PgError> {
    let mut lock = net.on("B");
    lock.exec("BEGIN; LOCK TABLE t");
    net.on("A").exec("INSERT INTO t SELECT coalesce(max(id), 0) + 1, 'x' FROM t");
    std::thread::scope(|threads| {
        let kick = threads.spawn(|| net.try_kick());
        net.wait_sql("B", "the run to wait for the lock", "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)");
        meanwhile();
        lock.exec("ROLLBACK");
        kick.join().unwrap()
    })
}

#[test]
fn a_waiting_kick_outlives_the_master_and_is_told_of_stop_and_removal() {
    let net = manual_to(1);
    let mut control = net.control();
    let answer = kick_meanwhile(&net, || {
        control.exec("SELECT pg_terminate_backend(pid, 60000) FROM bucardo.activity WHERE kind = 'master'")
    });
    assert!(matches!(answer.as_deref(), Ok("good" | "empty")), "{answer:?}");
    net.assert_equal("t");
    let error = kick_meanwhile(&net, || control.exec("SELECT bucardo.stop()")).unwrap_err();
    assert_eq!((error.sqlstate.as_str(), error.hint.as_str()), ("55000", "SELECT bucardo.start();"));
    control.exec("SELECT bucardo.start()");
    let error = kick_meanwhile(&net, || control.exec("SELECT bucardo.remove_sync('s')")).unwrap_err();
    assert_eq!(error.sqlstate, "42704");
}

/// The master is gone before the stop is committed, and who kicks then waits for what becomes of that.
#[test]
fn a_kick_that_waits_beside_a_stop_is_told_of_it() {
    let net = manual_to(1);
    let (mut stopper, mut kicker, mut control) = (net.control(), net.control(), net.control());
    stopper.exec("BEGIN; SELECT bucardo.stop()");
    kicker.send("SELECT bucardo.kick('s', '80s')").unwrap();
    let waits = format!("SELECT wait_event = 'Extension' FROM pg_stat_activity WHERE pid = {}", kicker.pid);
    wait_until("the kick to wait", || control.maybe(&waits).is_some_and(|waits| waits == "t"));
    stopper.exec("COMMIT");
    let error = kicker.finish().unwrap_err();
    assert_eq!((error.sqlstate.as_str(), error.hint.as_str()), ("55000", "SELECT bucardo.start();"));
}

#[test]
fn a_kid_on_its_way_out_is_given_no_run() {
    let net = manual();
    let mut control = net.control();
    for manners in ["kidsalive => false", "kidsalive => true, maxkicks => 1"] {
        control.exec(&format!("SELECT bucardo.update_sync('s', {manners})"));
        // One statement after the other in one session: the next kick comes while the last kid still says goodbye.
        for _ in 0..100 {
            assert_eq!(control.one("SELECT bucardo.kick('s', '80s')"), "empty");
        }
    }
    assert_eq!(control.number("SELECT count(*) FROM bucardo.syncrun WHERE error IS NOT NULL"), 0);
}

#[test]
fn a_kid_whose_sync_was_removed_under_it_is_given_no_run() {
    let net = Net::together_with(Capture::Native, 1, "bucardo.max_kids = 1");
    net.everywhere(T);
    net.add_sync("tables => 'public.t', autokick => false");
    let mut control = net.control();
    for _ in 0..100 {
        control.exec("SELECT bucardo.add_sync('z', dbs => 'A,B', tables => 'public.t', autokick => false)");
        control.exec("SELECT bucardo.kick('z')");
        control.exec("SELECT bucardo.remove_sync('z')");
        assert_eq!(control.one("SELECT bucardo.kick('s', '80s')"), "empty");
    }
    assert_eq!(control.number("SELECT count(*) FROM bucardo.syncrun WHERE sync = 's' AND error IS NOT NULL"), 0);
}

#[test]
fn a_kick_that_goes_without_a_member_that_catches_up_names_it() {
    let net = manual();
    let (mut lock, mut control) = (net.on("B"), net.control());
    net.on("A").exec("INSERT INTO t VALUES (1, 'x'), (2, 'y')");
    // B refuses, and is then held up in a run of its own.
    lock.exec("ALTER TABLE t ADD CONSTRAINT no CHECK (id <> 2)");
    control.exec("SELECT bucardo.kick('s')");
    net.wait_state("bad");
    lock.exec("BEGIN; ALTER TABLE t DROP CONSTRAINT no");
    net.wait_sql("B", "the run of its own", "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)");
    let reply = control.try_query("SELECT bucardo.kick('s', '80s')").unwrap();
    assert!(reply.notices.iter().any(|n| n.message.contains("\"B\"")), "{:?}", reply.notices);
    lock.exec("COMMIT");
    net.wait_equal("t", &["B", "C"]);
}

#[test]
fn a_stop_that_is_rolled_back_was_none() {
    let net = manual();
    let mut control = net.control();
    control.exec("BEGIN; SELECT bucardo.stop(); ROLLBACK");
    wait_until("the master to be there again", || net.try_kick().is_ok());
    assert_ne!(net.state(), "stopped");
    control.exec("SELECT bucardo.stop()");
    control.exec("BEGIN; SELECT bucardo.stop(); ROLLBACK");
    net.control().expect_error("SELECT bucardo.kick('s')", "55000");
    net.wait_state("stopped");
}

#[test]
fn a_sync_whose_members_are_inactive_says_which_and_keeps_what_is_captured() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere(T);
    net.add_sync("tables => 'public.t'");
    let mut control = net.control();
    assert_eq!(net.kick(), "empty");
    for (id, away) in [(1, "A"), (2, "B")] {
        net.until_empty();
        control.exec(&format!("SELECT bucardo.update_db('{away}', status => 'inactive')"));
        net.on("A").exec(&format!("INSERT INTO t VALUES ({id}, 'x')"));
        for call in ["kick('s')", "kick('s', '80s')"] {
            let error = control.expect_error(&format!("SELECT bucardo.{call}"), "55000");
            assert!(error.message.contains("\"s\"") && error.message.contains(&format!("\"{away}\"")), "{error}");
            assert_eq!(error.hint, format!("SELECT bucardo.update_db('{away}', status => 'active');"));
        }
        assert_eq!(net.state(), "inactive");
        assert_eq!(net.last_error(), format!("it cannot run: db \"{away}\" is inactive"));
        assert_eq!(net.pending(), 1);
        control.exec(&format!("SELECT bucardo.update_db('{away}', status => 'active')"));
        net.settle(&["t"]);
        net.wait_state("good|empty");
    }
    // With both inactive, what sends is named; a lone target that is inactive does not keep the others from running.
    control.exec("SELECT bucardo.update_db(name, status => 'inactive') FROM bucardo.db");
    assert!(net.last_error().contains("\"A\""), "{}", net.last_error());
    control.exec("SELECT bucardo.update_db(name, status => 'active') FROM bucardo.db");
    assert_eq!(net.kick(), "empty");
}

#[test]
fn a_waiting_kick_is_told_what_was_made_inactive() {
    let net = manual_to(1);
    let mut control = net.control();
    let hold = |net: &Net, call: &str| {
        let mut busy = net.on("B");
        busy.exec("BEGIN; LOCK TABLE t");
        net.on("A").exec("INSERT INTO t SELECT coalesce(max(id), 0) + 1, 'x' FROM t");
        let mut first = net.control();
        first.send("SELECT bucardo.kick('s', '80s')").unwrap();
        net.wait_sql("B", "the run to wait for the lock", "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)");
        // A second kick needs a run of its own, which does not come any more.
        let mut second = net.control();
        second.send("SELECT bucardo.kick('s', '80s')").unwrap();
        net.wait_sql_on_control(
            "the second kick",
            "SELECT count(*) = 2 FROM pg_stat_activity WHERE query LIKE '%kick(''s''%' AND wait_event = 'Extension'",
        );
        net.control().exec(call);
        busy.exec("ROLLBACK");
        first.finish().ok();
        second.finish().unwrap_err()
    };
    let error = hold(&net, "SELECT bucardo.update_db('A', status => 'inactive')");
    assert_eq!((error.sqlstate.as_str(), error.hint.as_str()), ("55000", "SELECT bucardo.update_db('A', status => 'active');"));
    control.exec("SELECT bucardo.update_db('A', status => 'active')");
    let error = hold(&net, "SELECT bucardo.deactivate('s')");
    assert_eq!((error.message.as_str(), error.hint.as_str()), ("sync \"s\" is not active", "SELECT bucardo.activate('s');"));
}

#[test]
fn a_kick_of_a_sync_that_the_same_transaction_has_made_or_changed() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere(T);
    let mut control = net.control();
    let add = "SELECT bucardo.add_sync('s', dbs => 'A,B', tables => 'public.t', autokick => false)";
    // Nobody else sees it yet: to wait for a run would be in vain.
    for begin in ["BEGIN", "BEGIN; SAVEPOINT p"] {
        control.exec(&format!("{begin}; {add}"));
        control.exec(if begin == "BEGIN" { "SELECT" } else { "RELEASE SAVEPOINT p" });
        let error = control.expect_error("SELECT bucardo.kick('s', '80s')", "55000");
        assert!(error.message.contains("\"s\"") && error.hint.contains("COMMIT"), "{error}");
        control.exec("ROLLBACK");
    }
    // Without waiting it runs when it is there.
    for round in 1..=10 {
        control.exec(&format!("BEGIN; {add}; SELECT bucardo.kick('s'); COMMIT"));
        net.wait_state("empty");
        control.exec(if round == 10 { "SELECT" } else { "SELECT bucardo.remove_sync('s')" });
    }
    // One that others see as it was runs at once; where it rests for them, it runs after the commit.
    control.exec("BEGIN; SELECT bucardo.update_sync('s', priority => 1)");
    assert_eq!(control.one("SELECT bucardo.kick('s', '80s')"), "empty");
    control.exec("COMMIT; SELECT bucardo.pause('s')");
    net.wait_state("paused");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    control.exec("BEGIN; SELECT bucardo.resume('s')");
    let error = control.expect_error("SELECT bucardo.kick('s', '80s')", "55000");
    assert!(error.hint.contains("COMMIT"), "{error}");
    control.exec("ROLLBACK; BEGIN; SELECT bucardo.resume('s'); SELECT bucardo.kick('s')");
    // The master answers the ping after it has seen the kick.
    net.control().exec("SELECT bucardo.ping()");
    control.exec("COMMIT");
    net.wait_equal("t", &["B"]);
}

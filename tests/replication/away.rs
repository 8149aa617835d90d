//! A member that is away, slow, or refuses a row: the others go on, the status says it, and it heals by itself.
//!
//! Servers are stopped and started here. What a member still needs must be there when it is back, and nothing but the
//! member may suffer from its absence.

use crate::cluster::Stop;
use crate::net::{Capture, Net};
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

#[test]
fn a_target_that_is_away_holds_nobody_up_and_catches_up_alone() {
    let net = Net::apart(Capture::Native, 2).with_table(T, "public.t");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 50) g");
    net.settle(&["t"]);
    net.server_of("C").stop(Stop::Immediate);
    for round in 0..10 {
        a.exec(&format!("UPDATE t SET v = 'r{round}' WHERE id % 10 = {round}; INSERT INTO t VALUES (100 + {round}, 'new'); DELETE FROM t WHERE id = 1 + {round}"));
        net.wait_equal("t", &["B"]);
    }
    net.wait_state("stalled");
    assert!(net.last_error().contains('C'), "{}", net.last_error());
    assert!(net.pending() > 0, "what C has not got is pending");
    let reply = net.control().try_query("SELECT bucardo.kick('s', '80s')").unwrap();
    assert!(reply.notices.iter().any(|n| n.severity == "WARNING" && n.message.contains('C')), "{:?}", reply.notices);
    net.control().exec("SELECT bucardo.purge()");
    a.exec("TRUNCATE t; INSERT INTO t SELECT g, 'y' FROM generate_series(1, 30) g");
    net.wait_equal("t", &["B"]);
    net.control().exec("SELECT bucardo.purge()");
    net.server_of("C").launch();
    net.settle(&["t"]);
    a.exec("INSERT INTO t VALUES (999, 'again')");
    net.settle(&["t"]);
    net.wait_state("good|empty");
}

/// What waits for a sync that does not run is found by every look: a polled source is not asked for it all the time.
#[test]
fn a_polled_source_is_left_alone_while_nothing_can_be_served() {
    let net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    net.control().exec("SELECT bucardo.pause('s')");
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    wait_until("the change to be pending", || net.pending() > 0);
    let outside = || net.server_of("A").connect("postgres");
    let looks = || outside().number("SELECT xact_commit FROM pg_stat_database WHERE datname = 'a'");
    let before = looks();
    outside().exec("SELECT pg_sleep(4)");
    // With the shortest pause, 20 ms, it would be far more than a hundred.
    assert!(looks() - before < 60, "{} looks", looks() - before);
    net.control().exec("SELECT bucardo.resume('s')");
    net.settle(&["t"]);
}

/// What a database sets for its applications ends none of our sessions.
#[test]
fn sessions_outlive_the_time_outs_of_a_member() {
    let net = Net::together(Capture::Plain, 1).with_table(T, "public.t");
    let outside = || net.servers[0].connect("postgres");
    outside().exec("ALTER DATABASE a SET idle_session_timeout = '2s'; ALTER DATABASE b SET idle_session_timeout = '2s'");
    outside().exec("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname IN ('a', 'b')");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    let ours = "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE datname IN ('a', 'b') AND application_name ~ '^bucardo (kid|master)'";
    let before = outside().one(ours);
    assert!(before.contains(' '), "sessions: {before}");
    // Younger than all of them, and ended by that time-out.
    let younger = net.on("A");
    let ended = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {}", younger.pid);
    crate::wait::wait_until("a session to be ended for being idle", || outside().number(&ended) == 0);
    assert_eq!(outside().one(ours), before);
}

#[test]
fn a_target_that_is_away_across_restarts_of_the_control_server_misses_nothing() {
    let net = Net::apart(Capture::Plain, 2).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    net.server_of("B").stop(Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    net.wait_equal("t", &["C"]);
    net.servers[0].restart(Stop::Immediate);
    net.on("A").exec("DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (3, 'z')");
    net.wait_equal("t", &["C"]);
    net.wait_state("stalled");
    net.server_of("B").launch();
    net.settle(&["t"]);
}

#[test]
fn a_source_that_is_away_stalls_its_sync_only_and_loses_nothing() {
    let mut net = Net::apart(Capture::Plain, 1).with_table(T, "public.t");
    net.add_member("D", 0, "");
    net.add_member("E", 0, "");
    ["D", "E"].iter().for_each(|m| net.on(m).exec("CREATE TABLE u (id int PRIMARY KEY)"));
    net.control().exec("SELECT bucardo.add_sync('well', dbs => 'D,E', tables => 'public.u')");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B"]);
    net.server_of("A").stop(Stop::Fast);
    net.wait_state("stalled|bad");
    assert!(net.last_error().contains('A'), "{}", net.last_error());
    net.on("D").exec("INSERT INTO u VALUES (1)");
    net.wait_sql("E", "the other sync to go on", "SELECT count(*) = 1 FROM u");
    net.server_of("A").launch();
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    net.wait_equal("t", &["B"]);
    net.wait_state("good|empty");
}

#[test]
fn a_frozen_target_server_does_not_stop_the_others_for_ever() {
    let net = Net::apart(Capture::Native, 2).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    net.control().exec("SELECT bucardo.update_sync('s', stayalive => false)");
    net.kick();
    // It accepts connections (the kernel does) and never answers: only a deadline of our own ends that.
    net.server_of("C").signal("STOP");
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    net.wait_equal("t", &["B"]);
    net.wait_state("stalled");
    net.server_of("C").signal("CONT");
    net.settle(&["t"]);
}

#[test]
fn a_lock_on_a_target_delays_and_a_stop_is_still_answered() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    let mut locker = net.on("B");
    locker.exec("BEGIN; LOCK t IN ACCESS EXCLUSIVE MODE");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 10) g");
    net.wait_sql("B", "a run waiting for the lock", "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted");
    assert_eq!(net.control().one("SELECT bucardo.stop('test', '60s')"), "stopped");
    net.wait_sql("B", "nobody to wait any more", "SELECT count(*) = 0 FROM pg_locks WHERE NOT granted");
    net.control().exec("SELECT bucardo.start()");
    locker.exec("COMMIT");
    net.settle(&["t"]);
}

/// A run waits for a row of an application's, which then asks for a row of the run's: PostgreSQL ends whoever sees the circle,
/// and the run has looked for it before.
#[test]
fn a_deadlock_with_an_application_is_never_the_applications() {
    let net = Net::together(Capture::Native, 1);
    for table in ["t", "u"] {
        net.everywhere(&format!("CREATE TABLE {table} (id int PRIMARY KEY, v text)"));
    }
    net.add_sync("tables => 't, u'");
    net.on("A").exec("INSERT INTO t VALUES (1, 'old'); INSERT INTO u VALUES (1, 'old')");
    net.settle(&["t", "u"]);
    let mut app = net.on("B");
    // By far the last to look for a deadlock.
    app.exec("SET deadlock_timeout = '10s'; BEGIN; UPDATE u SET v = 'app'");
    net.on("A").exec("BEGIN; UPDATE t SET v = 'new'; UPDATE u SET v = 'new'; COMMIT");
    net.wait_sql(
        "B",
        "a run that has waited for longer than it looks for a deadlock",
        "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND clock_timestamp() - waitstart > '300ms'",
    );
    app.exec("UPDATE t SET v = 'app'");
    app.exec("COMMIT");
    net.settle(&["t", "u"]);
}

/// An application holds a lock on one target for as long as it likes: the other target is served meanwhile.
fn locked_by(lock: &str) {
    let net = Net::together(Capture::Native, 2).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'old')");
    net.settle(&["t"]);
    let mut locker = net.on("C");
    locker.exec(&format!("BEGIN; {lock}"));
    for round in 0..3 {
        net.on("A").exec(&format!("UPDATE t SET v = 'round {round}' WHERE id = 1; INSERT INTO t VALUES (10 + {round}, 'new')"));
        net.wait_equal("t", &["B"]);
    }
    net.wait_state("stalled");
    let error = net.last_error();
    assert!(error.contains("\"C\"") && error.contains("lock"), "{error}");
    locker.exec("COMMIT");
    net.settle(&["t"]);
    net.wait_state("good|empty");
}

#[test]
fn a_row_locked_on_one_target_holds_up_no_other() {
    locked_by("SELECT FROM t WHERE id = 1 FOR UPDATE");
}

#[test]
fn a_table_locked_on_one_target_holds_up_no_other() {
    locked_by("LOCK t IN ACCESS EXCLUSIVE MODE");
}

#[test]
fn a_refused_row_stops_only_that_member_and_is_named() {
    let net = Net::together(Capture::Native, 2);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY)");
    net.on("C").exec("ALTER TABLE t ADD CONSTRAINT no_poison CHECK (v <> 'poison')");
    net.add_sync("tables => 'public.t,public.other'");
    net.on("A").exec("INSERT INTO t VALUES (4711, 'poison'), (1, 'fine'); INSERT INTO other VALUES (1)");
    net.wait_equal("t", &["B"]);
    net.wait_state("bad");
    let error = net.last_error();
    for word in ["C", "t", "4711"] {
        assert!(error.contains(word), "last_error does not name {word}: {error}");
    }
    assert_eq!(net.on("C").number("SELECT count(*) FROM t"), 0, "part of a run that failed is there");
    assert_eq!(net.on("C").number("SELECT count(*) FROM other"), 0, "part of a run that failed is there");
    let code = net.control().one("SELECT sqlstate FROM bucardo.syncrun WHERE state = 'bad' ORDER BY run DESC LIMIT 1");
    assert_eq!(code, "23514");
    // While the member is tried alone a kick goes without it.
    crate::wait::wait_until("a failed run to raise its error", || net.try_kick().is_err_and(|e| e.sqlstate == "23514"));
    net.on("A").exec("INSERT INTO t VALUES (2, 'later')");
    net.wait_equal("t", &["B"]);
    net.on("C").exec("ALTER TABLE t DROP CONSTRAINT no_poison");
    net.settle(&["t", "other"]);
    net.wait_state("good|empty");
}

#[test]
fn a_trigger_that_always_fires_refuses_and_mending_the_source_heals_too() {
    let net = Net::together(Capture::Plain, 2).with_table(T, "public.t");
    net.on("B").exec(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.v = 'no' THEN RAISE EXCEPTION 'I refuse' USING errcode = 'P0042'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER no BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION no(); ALTER TABLE t ENABLE ALWAYS TRIGGER no",
    );
    net.on("A").exec("INSERT INTO t VALUES (1, 'yes'), (2, 'no')");
    net.wait_equal("t", &["C"]);
    net.wait_state("bad");
    assert!(net.last_error().contains("I refuse") && net.last_error().contains('B'), "{}", net.last_error());
    net.on("A").exec("UPDATE t SET v = 'now yes' WHERE id = 2");
    net.settle(&["t"]);
    net.wait_state("good|empty");
}

#[test]
fn a_row_taken_on_a_secondary_unique_key_by_the_target_itself() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE)");
    net.add_sync("tables => 'public.t'");
    net.on("B").exec("INSERT INTO t VALUES (100, 'taken')");
    net.on("A").exec("INSERT INTO t VALUES (1, 'taken')");
    // The source wins over what a target wrote for itself, or the run says which row is in the way; never silence.
    crate::wait::wait_until("the row, or a word about it", || {
        net.on("B").number("SELECT count(*) FROM t WHERE id = 1") == 1 || net.last_error().contains("taken")
    });
}

#[test]
fn without_autokick_a_member_that_was_left_out_is_served_after_a_restart_too() {
    let net = Net::apart(Capture::Native, 2);
    net.everywhere(T);
    net.add_sync("tables => 'public.t', autokick => false");
    net.server_of("C").stop(Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    assert_eq!(net.kick(), "good");
    net.wait_state("stalled");
    net.servers[0].restart(Stop::Fast);
    net.wait_state("stalled");
    net.server_of("C").launch();
    net.wait_equal("t", &["B", "C"]);
    net.wait_state("good|empty");
}

#[test]
fn what_is_pending_is_shown_of_the_sources_that_are_there() {
    let mut net = Net::apart(Capture::Plain, 1);
    net.everywhere(T);
    net.add_sync("tables => 'public.t', autokick => false");
    net.add_member("D", 0, "");
    net.add_member("E", 0, "");
    ["D", "E"].iter().for_each(|m| net.on(m).exec("CREATE TABLE u (id int PRIMARY KEY)"));
    let mut control = net.control();
    control.exec("SELECT bucardo.add_sync('well', dbs => 'D,E', tables => 'public.u', autokick => false)");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.on("D").exec("INSERT INTO u VALUES (1), (2)");
    net.server_of("A").stop(Stop::Fast);
    let reply = control.try_query("SELECT sync, source, changes FROM bucardo.pending()").unwrap();
    assert_eq!(reply.rows, [["well", "D", "2"].map(|v| Some(v.to_owned()))]);
    assert!(reply.notices.iter().any(|n| n.severity == "WARNING" && n.message.contains("\"A\"")), "{:?}", reply.notices);
    assert!(control.expect_error("SELECT * FROM bucardo.pending('s')", "08001").message.contains("\"A\""));
}

#[test]
fn a_sync_and_a_member_are_made_active_while_a_member_is_away() {
    let mut net = Net::apart(Capture::Native, 2).with_table(T, "public.t");
    net.add_member("D", 2, "");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.wait_equal("t", &["B", "C"]);
    let mut control = net.control();
    control.exec("SELECT bucardo.deactivate('s'); SELECT bucardo.update_db('C', status => 'inactive')");
    net.server_of("C").stop(Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    for (call, away) in [
        ("update_db('C', status => 'active')", "\"C\""),
        ("update_db('D', status => 'active')", "\"D\""),
        ("update_db('B', status => 'active')", "\"C\""),
        ("activate('s')", "\"C\""),
    ] {
        let reply = control.try_query(&format!("SELECT bucardo.{call}")).unwrap();
        assert!(reply.notices.iter().any(|n| n.severity == "WARNING" && n.message.contains(away)), "{call}: {:?}", reply.notices);
    }
    net.wait_equal("t", &["B"]);
    net.wait_state("stalled");
    // Where it is said to be it must answer.
    let elsewhere = crate::compare::literal(&net.conninfo("C"));
    control.expect_error(&format!("SELECT bucardo.update_db('C', {elsewhere})"), "08001");
    net.server_of("C").launch();
    net.wait_equal("t", &["B", "C"]);
    net.wait_state("good|empty");
}

/// C comes back while everybody else is being given whole tables: its own run does not end that one.
#[test]
fn a_copy_goes_on_beside_that_of_a_member_that_is_back() {
    let net = Net::apart(Capture::Plain, 2).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 50) g");
    net.settle(&["t"]);
    for target in ["B", "C"] {
        net.on(target).exec("UPDATE t SET v = 'of its own' WHERE id = 1");
    }
    net.server_of("C").stop(Stop::Immediate);
    net.on("A").exec("INSERT INTO t VALUES (51, 'y')");
    net.wait_sql("B", "what C does not get", "SELECT count(*) = 51 FROM t");
    net.wait_state("stalled");
    let passed = || net.control().number("SELECT bucardo.fault_hits('kid.before_commit')");
    let before = passed();
    net.control()
        .exec("SELECT bucardo.fault_set('kid.before_commit', 'wait'); SELECT bucardo.update_sync('s', onetimecopy => 1)");
    wait_until("B's copy to be about to commit", || passed() > before);
    net.server_of("C").launch();
    net.wait_equal("t", &["C"]);
    assert_eq!(net.on("B").one("SELECT v FROM t WHERE id = 1"), "of its own", "B's copy stands still");
    net.control().exec("SELECT bucardo.fault_clear()");
    net.settle(&["t"]);
    net.wait_state("good|empty");
    assert_eq!(net.control().number("SELECT count(*) FROM bucardo.syncrun WHERE state = 'bad'"), 0, "{}", net.report());
}

/// C catches up, and the copy that is asked for meanwhile is none of that run's: C still gets it.
#[test]
fn a_copy_that_is_asked_for_while_a_member_catches_up_reaches_it_too() {
    let net = Net::apart(Capture::Plain, 2).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 50) g");
    net.settle(&["t"]);
    net.server_of("C").stop(Stop::Immediate);
    net.on("A").exec("INSERT INTO t VALUES (51, 'y')");
    net.wait_equal("t", &["B"]);
    net.wait_state("stalled");
    net.control().exec("SELECT bucardo.fault_set('kid.after_commit', 'wait')");
    net.server_of("C").launch();
    net.wait_equal("t", &["C"]);
    for target in ["B", "C"] {
        net.on(target).exec("UPDATE t SET v = 'of its own' WHERE id = 1");
    }
    net.control().exec("SELECT bucardo.update_sync('s', onetimecopy => 1)");
    net.wait_equal("t", &["B"]);
    net.control().exec("SELECT bucardo.fault_clear()");
    net.wait_equal("t", &["C"]);
    net.settle(&["t"]);
    net.wait_state("good|empty");
}

/// A run that has nothing for a member asks it nothing: that it has gone is told all the same.
#[test]
fn a_target_that_went_while_there_was_nothing_for_it_is_missed() {
    let net = Net::apart(Capture::Native, 2).with_table(T, "public.t");
    // Many rows at once: no habit by which the next run would begin its transactions on a guess.
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 300) g");
    net.settle(&["t"]);
    assert_eq!(net.kick(), "empty");
    net.server_of("B").stop(Stop::Fast);
    let reply = net.control().try_query("SELECT bucardo.kick('s', '30s')").unwrap();
    assert_eq!(reply.rows[0][0].as_deref(), Some("empty"));
    assert!(reply.notices.iter().any(|n| n.severity == "WARNING" && n.message.contains("\"B\"")), "{:?}", reply.notices);
    assert_eq!(net.state(), "stalled");
    net.server_of("B").launch();
    net.on("A").exec("UPDATE t SET v = 'y'");
    net.settle(&["t"]);
}

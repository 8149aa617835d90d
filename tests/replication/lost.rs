//! Ways in which rows, or the master itself, could get lost while nobody looks: a sync removed and added again under its
//! name, a table that is away for a while beside one that goes on, a failed or forbidden DROP.

use crate::net::{BOTH, CONTROL, Capture, Net};
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

#[test]
fn a_sync_added_again_under_its_name_keeps_its_capture() {
    for capture in BOTH {
        let net = Net::together(capture, 1).with_table(T, "public.t");
        for round in 0..2 {
            // A reader keeps the old triggers from being dropped until the new sync is there.
            let mut reader = net.on("A");
            reader.exec("BEGIN; SELECT * FROM t");
            net.control().exec("SELECT bucardo.remove_sync('s')");
            net.add_sync("tables => 'public.t'");
            reader.exec("COMMIT");
            net.wait_sql_on_control("what the removal left to do", "SELECT NOT EXISTS (SELECT FROM bucardo.cleanup)");
            net.on("A").exec(&format!("INSERT INTO t VALUES ({round}, 'x')"));
            net.wait_equal("t", &["B"]);
        }
    }
}

#[test]
fn a_table_that_is_away_for_a_while_loses_nothing_beside_one_that_goes_on() {
    for capture in BOTH {
        let net =
            Net::together(capture, 1).with_table(&format!("{T}; CREATE TABLE u (id int PRIMARY KEY)"), "public.t, public.u");
        net.on("A").exec("INSERT INTO t VALUES (1, 'x'); INSERT INTO u VALUES (1)");
        net.settle(&["t", "u"]);
        net.on("A").exec("ALTER TABLE t RENAME TO renamed; INSERT INTO renamed VALUES (2, 'y'); INSERT INTO u VALUES (2)");
        // The run that meets both: whatever it answers, nothing of the table that it cannot find counts as served.
        for _ in 0..3 {
            let _answer = net.try_kick();
        }
        net.on("A").exec("INSERT INTO u VALUES (3); ALTER TABLE renamed RENAME TO t");
        net.settle(&["t", "u"]);
    }
}

#[test]
fn a_table_missing_on_the_source_is_told() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    net.on("A").exec("ALTER TABLE t RENAME TO renamed; INSERT INTO renamed VALUES (2, 'y')");
    net.wait_state("bad");
    assert!(net.last_error().contains("public.t"), "{}", net.last_error());
    net.on("A").exec("ALTER TABLE renamed RENAME TO t");
    net.settle(&["t"]);
    net.wait_state("good|empty");
}

#[test]
fn a_failed_drop_of_the_database_leaves_its_master() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    net.kick();
    let open = net.control();
    net.servers[0].connect("postgres").expect_error(&format!("DROP DATABASE {CONTROL}"), "55006");
    drop(open);
    net.control().exec("SELECT bucardo.ping('60s')");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
}

#[test]
fn who_may_not_drop_disturbs_nobody() {
    let net = Net::together(Capture::Native, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    net.control().exec("CREATE ROLE stranger LOGIN");
    let workers = "SELECT string_agg(pid::text, ',' ORDER BY pid) FROM bucardo.activity";
    let before = net.control().one(workers);
    net.servers[0].connect_as(CONTROL, "stranger").expect_error("DROP EXTENSION bucardo", "42501");
    net.servers[0].connect_as("postgres", "stranger").expect_error(&format!("DROP DATABASE {CONTROL}"), "42501");
    assert_eq!(net.control().one(workers), before);
}

#[test]
fn a_member_that_is_down_with_its_source_is_not_tried_without_pause() {
    let net = Net::apart(Capture::Plain, 2).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    net.server_of("C").stop(crate::cluster::Stop::Fast);
    net.on("A").exec("INSERT INTO t VALUES (2, 'y')");
    net.wait_state("stalled");
    net.server_of("A").stop(crate::cluster::Stop::Fast);
    // Several tries of both later the next one lies well ahead: the back-off goes from 0.2 s to 2 s.
    let mut control = net.control();
    let first = control.number("SELECT coalesce(max(run), 0) FROM bucardo.syncrun");
    wait_until("the pauses to grow", || {
        control.one("SELECT coalesce(next_try > clock_timestamp() + interval '1 s', false)::text FROM bucardo.status") == "true"
    });
    let tries = format!("FROM (SELECT started FROM bucardo.syncrun WHERE run > {first} ORDER BY run LIMIT 12) AS tries");
    wait_until("a dozen tries", || control.number(&format!("SELECT count(*) {tries}")) == 12);
    // Both together have made them, and what they had to wait for adds up, however fast the machine is.
    let waited = control.one(&format!("SELECT (max(started) - min(started) > interval '2 s')::text {tries}"));
    assert_eq!(waited, "true", "tried without pause");
}

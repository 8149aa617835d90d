//! Sequences that several sources share: never backwards on any member, whichever way they count; `is_called` and the other
//! attributes travel too; and a warning where two sources hand out the same numbers.

use super::{Multi, Plan};
use crate::net::Capture;
use crate::wait::wait_until;

crate::for_both!(never_backwards);

const SEQUENCES: &str = "CREATE TABLE t (id int PRIMARY KEY); CREATE SEQUENCE up; CREATE SEQUENCE down INCREMENT -1; \
     CREATE SEQUENCE fresh START 7; CREATE SEQUENCE steps INCREMENT 10 MINVALUE 5 START 5";

fn ready(capture: Capture) -> Multi {
    let m = Plan::new(2).capture(capture).start();
    m.everywhere(SEQUENCES);
    m.sync("tables => 'public.t,public.up,public.down,public.fresh,public.steps'");
    m
}

#[track_caller]
fn expect(m: &Multi, sequence: &str, wanted: &str) {
    m.expect_everywhere(&format!("SELECT last_value || ' ' || is_called FROM {sequence}"), wanted);
}

fn never_backwards(capture: Capture) {
    let m = ready(capture);
    let next = |name: &str, sequence: &str, times: i32| {
        m.on(name).exec(&format!("SELECT nextval('{sequence}') FROM generate_series(1, {times})"));
    };
    for (name, times) in [("A", 5), ("B", 9)] {
        ["up", "down", "steps"].iter().for_each(|s| next(name, s, times));
    }
    assert_eq!(m.kick(), "good");
    expect(&m, "up", "9 true");
    expect(&m, "down", "-9 true");
    expect(&m, "steps", "85 true");
    expect(&m, "fresh", "7 false");
    // Now the other one is ahead.
    ["up", "down", "steps"].iter().for_each(|s| next("A", s, 3));
    assert_eq!(m.kick(), "good");
    expect(&m, "up", "12 true");
    expect(&m, "down", "-12 true");
    expect(&m, "steps", "115 true");
    assert_eq!(m.kick(), "empty");
    // The same value, called on one: called everywhere, or a number would be handed out twice.
    m.on("B").exec("SELECT nextval('fresh')");
    assert_eq!(m.kick(), "good");
    expect(&m, "fresh", "7 true");
    assert_eq!(m.on("A").number("SELECT nextval('fresh')"), 8);
}

/// The number handed out last by the first source, after its application has taken some while a run was under way.
fn takes_numbers_during_a_run(m: &Multi, take: &str) {
    let hits = || m.control().number("SELECT bucardo.fault_hits('kid.after_gather')");
    let before = hits();
    m.control().exec("SELECT bucardo.fault_set('kid.after_gather', 'wait')");
    std::thread::scope(|threads| {
        let kick = threads.spawn(|| m.kick());
        wait_until("the run to have read the sequences", || hits() > before);
        m.on("A").exec(take);
        m.on("B").exec(take);
        m.control().exec("SELECT bucardo.fault_clear()");
        assert_eq!(kick.join().unwrap(), "good");
    });
}

/// A run takes its time; meanwhile the application goes beyond what the run is about to set.
#[test]
fn no_number_comes_twice_from_a_source_that_was_busy_during_a_run() {
    let m = ready(Capture::Plain);
    m.on("A").exec("SELECT nextval('up'), nextval('down'), nextval('steps') FROM generate_series(1, 10)");
    m.on("B").exec("SELECT nextval('up'), nextval('down'), nextval('steps') FROM generate_series(1, 30)");
    takes_numbers_during_a_run(&m, "SELECT nextval('up'), nextval('down'), nextval('steps') FROM generate_series(1, 100)");
    assert_eq!(m.on("A").number("SELECT nextval('up')"), 111);
    assert_eq!(m.on("A").number("SELECT nextval('down')"), -111);
    assert_eq!(m.on("A").number("SELECT nextval('steps')"), 1105);
    m.kick();
    expect(&m, "up", "130 true");
    expect(&m, "down", "-130 true");
    expect(&m, "steps", "1295 true");
    // Far behind.
    m.on("B").exec("SELECT setval('up', 10000000), setval('down', -10000000)");
    m.kick();
    expect(&m, "up", "10000000 true");
    expect(&m, "down", "-10000000 true");
}

/// The same where a sequence is made like the first source's.
#[test]
fn no_number_comes_twice_when_a_sequence_gets_other_attributes() {
    let m = ready(Capture::Plain);
    m.on("A").exec("ALTER SEQUENCE up MAXVALUE 1000000");
    m.on("B").exec("SELECT nextval('up') FROM generate_series(1, 30)");
    takes_numbers_during_a_run(&m, "SELECT nextval('up') FROM generate_series(1, 100)");
    assert_eq!(m.on("B").number("SELECT nextval('up')"), 131);
    m.kick();
    expect(&m, "up", "131 true");
    m.expect_everywhere("SELECT max_value FROM pg_sequences WHERE sequencename = 'up'", "1000000");
    // What B has handed out lies beyond what it may hand out now.
    m.on("A").exec("ALTER SEQUENCE up INCREMENT -1 MINVALUE -50 MAXVALUE -1 START -1 RESTART -3");
    m.kick();
    expect(&m, "up", "-3 false");
}

/// A target that is ahead by itself is brought in line only as far as nothing goes backwards.
#[test]
fn a_source_that_was_set_back_does_not_pull_the_others_back() {
    let m = ready(Capture::Plain);
    m.on("A").exec("SELECT setval('up', 100), setval('down', -100)");
    m.on("B").exec("SELECT setval('up', 40), setval('down', -40)");
    assert_eq!(m.kick(), "good");
    expect(&m, "up", "100 true");
    expect(&m, "down", "-100 true");
    m.on("B").exec("SELECT setval('up', 3), setval('down', -3)");
    m.on("A").exec("INSERT INTO t VALUES (1)");
    m.kick();
    for name in ["A", "T"] {
        assert!(m.on(name).number("SELECT last_value FROM up") >= 100, "went backwards on {name}");
        assert!(m.on(name).number("SELECT last_value FROM down") <= -100, "went backwards on {name}");
    }
    assert!(m.on("B").number("SELECT nextval('up')") > 100, "B hands out a number twice");
}

#[test]
fn numbers_are_handed_out_on_both_while_runs_go() {
    let m = Plan::new(2).start();
    m.everywhere(SEQUENCES);
    m.sync_over(&m.dbs(), "tables => 'public.t,public.up,public.down'");
    std::thread::scope(|threads| {
        for (n, name) in m.sources.iter().enumerate() {
            let m = &m;
            threads.spawn(move || {
                let mut conn = m.on(name);
                let (mut up, mut down) = (0, 0);
                for g in 0..300 {
                    let row = &conn.query("SELECT nextval('up'), nextval('down')")[0];
                    let number = |i: usize| row[i].as_ref().unwrap().parse::<i64>().unwrap();
                    assert!(number(0) > up && number(1) < down, "{name} saw {row:?} after {up}, {down}");
                    (up, down) = (number(0), number(1));
                    conn.exec(&format!("INSERT INTO t VALUES ({})", n * 1000 + g));
                }
            });
        }
    });
    m.settle(&["t"]);
    m.kick();
    for sequence in ["up", "down"] {
        let value = m.on("A").one(&format!("SELECT last_value::text FROM {sequence}"));
        m.expect_everywhere(&format!("SELECT last_value FROM {sequence}"), &value);
    }
}

#[test]
fn a_notice_tells_where_two_sources_hand_out_the_same_numbers() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE t (id serial PRIMARY KEY); CREATE TABLE u (id int GENERATED BY DEFAULT AS IDENTITY (INCREMENT 2) PRIMARY KEY)");
    m.on("B").exec("SELECT setval('u_id_seq', 2, false)");
    let mut control = m.control();
    let add = format!("SELECT bucardo.add_sync('s', dbs => '{}', tables => 'public.t,public.u', autokick => false)", m.dbs());
    for call in [add.as_str(), "SELECT * FROM bucardo.validate_sync('s')"] {
        let reply = control.try_query(call).unwrap();
        let about = |table: &str| reply.notices.iter().filter(|n| n.message.contains(&format!("public.{table}_id_seq"))).count();
        assert_eq!(about("t"), 1, "{call}: two sources hand out the same ids, and nobody says so");
        assert_eq!(about("u"), 0, "{call}: odd numbers on one, even ones on the other");
    }
    // It is advice: such a sync is healthy.
    assert_eq!(control.number("SELECT count(*) FROM bucardo.validate_sync('s')"), 0);
}

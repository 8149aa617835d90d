//! Runs that follow one like them read rows before they know that these are pending. Whatever comes instead of what was
//! usual, nothing may be missed and nothing taken that was not to be read.

use crate::cluster::Stop;
use crate::net::{Capture, Net};

for_both!(whatever_comes_instead, members_that_come_and_go, a_usual_table_is_locked);

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric); CREATE TABLE u (id int PRIMARY KEY, v text)";

/// Makes rows of `t` what is usual, and sees a run count on it.
fn get_used(net: &Net) {
    get_used_to(net, "INSERT INTO t VALUES (1, 'usual', 1) ON CONFLICT (id) DO UPDATE SET n = t.n + 1");
}

fn get_used_to(net: &Net, sql: &str) {
    let foreseen = || net.control().number("SELECT count(*) FROM bucardo.syncrun WHERE details->>'foreseen' = 'true'");
    let before = foreseen();
    for _ in 0..20 {
        net.on("A").exec(sql);
        net.settle(&["t"]);
        if foreseen() > before {
            return;
        }
    }
    panic!("no run was foreseen: {}", net.report());
}

fn whatever_comes_instead(capture: Capture) {
    let net = Net::apart(capture, 2).with_table(T, "public.t,public.u");
    for instead in [
        "INSERT INTO u VALUES (1, 'another table')",
        "UPDATE t SET n = -1 WHERE id = 1; INSERT INTO u VALUES (2, 'both')",
        "DELETE FROM t WHERE id = 1",
        "UPDATE t SET id = 1000 WHERE id = 1",
        "INSERT INTO t SELECT g, 'many', g FROM generate_series(2000, 2300) g",
        "INSERT INTO t SELECT g, 'as many as are few', g FROM generate_series(3000, 3099) g",
        "INSERT INTO t SELECT g, 'more than are looked at', g FROM generate_series(4000, 4101) g",
        "DO 'BEGIN FOR i IN 1 .. 150 LOOP UPDATE t SET n = i WHERE id = 1; END LOOP; END'",
        "INSERT INTO t VALUES (5000, repeat('wide', 100000))",
        "TRUNCATE t",
        "TRUNCATE u; INSERT INTO t VALUES (6000, 'and a truncated table')",
        "TRUNCATE t; INSERT INTO t VALUES (7000, 'all that is left')",
    ] {
        get_used(&net);
        net.on("A").exec(instead);
        net.settle(&["t", "u"]);
    }
    get_used(&net);
    net.everywhere("ALTER TABLE t ADD COLUMN later text DEFAULT 'x'");
    net.on("A").exec("UPDATE t SET later = 'not missed' WHERE id = 1");
    net.settle(&["t"]);
    get_used(&net);
    net.on("A").exec("ALTER TABLE t ALTER COLUMN n TYPE bigint; UPDATE t SET n = 12 WHERE id = 1");
    net.settle(&["t"]);
}

fn members_that_come_and_go(capture: Capture) {
    let net = Net::apart(capture, 2).with_table(T, "public.t,public.u");
    get_used(&net);
    net.server_of("C").stop(Stop::Immediate);
    net.on("A").exec("UPDATE t SET v = 'while C is away' WHERE id = 1");
    net.wait_equal("t", &["B"]);
    net.server_of("C").launch();
    net.settle(&["t"]);
    get_used(&net);
    // Who refuses a row is left out, and gets it with the others' next.
    net.on("B").exec("ALTER TABLE t ADD CONSTRAINT short CHECK (length(v) < 30)");
    net.on("A").exec("UPDATE t SET v = repeat('longer than that', 3) WHERE id = 1");
    net.wait_equal("t", &["C"]);
    net.wait_state("stalled|bad");
    assert!(net.last_error().contains("(id)=(1)"), "{}", net.last_error());
    net.on("B").exec("ALTER TABLE t DROP CONSTRAINT short");
    net.settle(&["t"]);
    get_used(&net);
    // A member in which somebody else changes the same row has it as the source has it afterwards.
    net.on("B").exec("UPDATE t SET v = 'own' WHERE id = 1");
    net.on("A").exec("UPDATE t SET v = 'again' WHERE id = 1");
    net.settle(&["t"]);
}

/// Who locks a table that usually changes, and does not now, holds up nothing.
fn a_usual_table_is_locked(capture: Capture) {
    let net = Net::apart(capture, 1).with_table(T, "public.t,public.u");
    net.on("A").exec("INSERT INTO t VALUES (1, 'x', 0); INSERT INTO u VALUES (1, 'x')");
    net.settle(&["t", "u"]);
    get_used_to(&net, "UPDATE t SET n = n + 1; UPDATE u SET v = v || 'x'");
    let mut holder = net.on("A");
    holder.exec("BEGIN; LOCK TABLE u");
    for n in 100..103 {
        net.on("A").exec(&format!("UPDATE t SET n = {n}"));
        net.wait_equal("t", &["B"]);
    }
    holder.exec("UPDATE u SET v = 'after the lock'; COMMIT");
    net.settle(&["t", "u"]);
}

/// A thousand rows, each committed by itself, as fast as it goes.
fn one_by_one(first: u32) -> String {
    format!("DO $$ BEGIN FOR i IN {first} .. {first} + 999 LOOP INSERT INTO t VALUES (i, 'one', i); COMMIT; END LOOP; END $$")
}

/// While more is committed a run goes on. Each row is brought and counted once; who kicks meanwhile is answered, and finds what he
/// has committed before.
#[test]
fn a_run_goes_on_while_more_comes() {
    let net = Net::together(Capture::Native, 2).with_table(T, "public.t,public.u");
    let went_on =
        || net.control().number("SELECT count(*) FROM bucardo.syncrun WHERE coalesce((details->>'rounds')::int, 1) > 1");
    let brought = || {
        net.control().number("SELECT coalesce(sum((details->'relations'->'public.t'->>'changes')::int), 0) FROM bucardo.syncrun")
    };
    get_used(&net);
    net.kick();
    let (before, mut rows) = (brought(), 1);
    for first in (1000..20_000).step_by(1000) {
        // A run does not go on while somebody waits for one: every other time nobody does.
        if first % 2000 == 0 {
            net.on("A").exec(&one_by_one(first));
        } else {
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| net.on("A").exec(&one_by_one(first)));
                while !writer.is_finished() {
                    net.on("A").exec("INSERT INTO u VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET v = u.v || 'x'");
                    let before = net.on("A").one("SELECT v FROM u");
                    net.kick();
                    assert!(net.on("B").one("SELECT v FROM u").starts_with(&before), "a kick was answered too early");
                }
            });
        }
        rows += 1000;
        net.settle(&["t", "u"]);
        if went_on() > 0 {
            break;
        }
    }
    assert!(went_on() > 0, "no run went on");
    net.kick();
    assert_eq!(brought() - before, rows - 1, "changes that were counted");
    assert_eq!(net.on("B").number("SELECT count(*) FROM t"), rows);
    // What goes wrong in a later round concerns that one only.
    net.on("B").exec("ALTER TABLE t ADD CONSTRAINT odd CHECK (id <> 50500)");
    net.on("A").exec(&one_by_one(50_000));
    net.wait_equal("t", &["C"]);
    net.wait_state("stalled|bad");
    assert!(net.last_error().contains("(id)=(50500)"), "{}", net.last_error());
    net.on("B").exec("ALTER TABLE t DROP CONSTRAINT odd");
    net.settle(&["t"]);
}

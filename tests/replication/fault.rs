//! Master and kid are failed, killed and stopped at every named place of a run, one after the other; afterwards all rows
//! are there, once. Needs a build with the cargo feature `fault_points`; a release build has none of these functions.
//!
//! A trigger on the target that always fires keeps a diary in the target's own transaction: a change delivered twice
//! shows there, even where the rows end up equal.

use crate::cluster::Stop;
use crate::net::{CONTROL, Capture, Net};
use crate::wait::wait_until;

const DIARY: &str = "CREATE TABLE diary (id bigint GENERATED ALWAYS AS IDENTITY, op text, key int, v text); \
     CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
       INSERT INTO public.diary (op, key, v) VALUES (TG_OP, coalesce(NEW.id, OLD.id), NEW.v); RETURN NULL; END $$; \
     CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note(); ALTER TABLE t ENABLE ALWAYS TRIGGER note";

fn ready() -> Net {
    let net = Net::apart(Capture::Plain, 2);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE SEQUENCE q");
    for target in ["B", "C"] {
        net.on(target).exec(DIARY);
    }
    net.add_sync("tables => 'public.t,public.q'");
    net.on("A").exec("INSERT INTO t SELECT g, 'start' FROM generate_series(1, 50) g");
    net.settle(&["t"]);
    net
}

fn points(net: &Net) -> Vec<String> {
    let all: Vec<String> =
        net.control().query("SELECT bucardo.fault_points()").into_iter().filter_map(|row| row[0].clone()).collect();
    assert!(!all.is_empty(), "no fault points: build with --features fault_points");
    all
}

/// One change of each kind, with values never seen before, so that the diary tells a repetition.
fn change_everything(net: &Net, round: usize) {
    let base = 1_000 + round * 100;
    net.on("A").exec(&format!(
        "BEGIN; INSERT INTO t SELECT {base} + g, 'r{round}' FROM generate_series(1, 40) g; UPDATE t SET v = 'r{round}' WHERE id <= 50; \
         UPDATE t SET id = {base} + 60 WHERE id = {base} + 1; DELETE FROM t WHERE id = {base} + 2; SELECT nextval('q'); COMMIT"
    ));
}

fn nothing_doubled(net: &Net, what: &str) {
    for target in ["B", "C"] {
        let twice = "SELECT coalesce(string_agg(line, ', '), '') FROM \
                     (SELECT op || ' ' || key || ' ' || coalesce(v, '') AS line FROM diary GROUP BY 1 HAVING count(*) > 1 LIMIT 5) AS twice";
        assert_eq!(net.on(target).one(twice), "", "{what}: delivered twice to {target}");
    }
}

fn await_point(net: &Net, point: &str) {
    let mut control = net.control();
    wait_until(&format!("{point} to be reached"), || {
        control.one(&format!("SELECT bucardo.fault_taken('{point}')::text")) == "true"
    });
}

/// Does `action` at every point, makes changes, and wants them all on both targets.
fn at_every_point(action: &str, disturb: impl Fn(&Net)) {
    let net = ready();
    for (round, point) in points(&net).iter().enumerate() {
        // While it is paused nobody passes a point too early; that it goes on is a change of the catalog, too.
        net.rest();
        change_everything(&net, round);
        let set =
            format!("SELECT bucardo.fault_clear(); SELECT bucardo.fault_set('{point}', '{action}'); SELECT bucardo.resume('s')");
        if action == "panic" {
            // The master may be there before the answer, or the COMMIT, of the call.
            let _cut = net.control().try_query(&set);
            wait_until(&format!("{point} to crash the server"), || net.servers[0].crash_restarts() > round);
            wait_until("the server to be there", || net.servers[0].try_connect(CONTROL).is_ok());
            net.control().exec("SELECT bucardo.resume('s')");
        } else {
            net.control().exec(&set);
            await_point(&net, point);
        }
        disturb(&net);
        net.settle(&["t"]);
        nothing_doubled(&net, &format!("{action} at {point}"));
    }
}

#[test]
fn an_error_at_every_point() {
    at_every_point("error", |_| ());
}

#[test]
fn a_death_at_every_point() {
    at_every_point("kill", |_| ());
}

#[test]
fn a_crash_of_the_server_at_every_point() {
    at_every_point("panic", |_| ());
}

#[test]
fn a_termination_at_every_point() {
    at_every_point("wait", |net| {
        let mut control = net.control();
        control.exec("SELECT count(pg_terminate_backend(pid, 30000)) FROM bucardo.activity");
        control.exec("SELECT bucardo.fault_clear()");
    });
}

#[test]
fn a_target_crashes_at_every_point() {
    at_every_point("wait", |net| {
        let mut control = net.control();
        net.server_of("B").restart(Stop::Immediate);
        control.exec("SELECT bucardo.fault_clear()");
    });
}

#[test]
fn the_source_crashes_at_every_point() {
    at_every_point("wait", |net| {
        let mut control = net.control();
        net.server_of("A").restart(Stop::Immediate);
        control.exec("SELECT bucardo.fault_clear()");
    });
}

#[test]
fn stop_is_answered_at_every_point() {
    at_every_point("wait", |net| {
        let mut control = net.control();
        assert_eq!(control.one("SELECT bucardo.stop('test', '60s')"), "stopped");
        control.exec("SELECT bucardo.fault_clear(); SELECT bucardo.start()");
    });
}

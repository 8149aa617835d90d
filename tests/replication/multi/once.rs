//! Exactly once: the run is failed, killed and crashed at every named place while it decides conflicts; afterwards every
//! conflict is recorded once, no counter was added twice, and no change that had arrived has won or lost again.
//!
//! While a source is away the others decide between themselves, and when it is back its own changes contend with what
//! they have: so there may be two records of a key then. But no two changes ever contend with each other twice.
//!
//! One sync with a table for each way to decide; all of them go through every fault. A diary on each member, kept by a
//! trigger in the member's own transaction, tells what was delivered twice. Needs a build with `fault_points`.

use super::{Multi, Place, Plan, custom};
use crate::cluster::Stop;
use crate::net::CONTROL;
use crate::wait::{reached, wait_until};

const TABLES: [&str; 4] = ["t_latest", "t_source", "t_skip", "t_merge"];

/// Notes what was written by the replication, never what the scenario itself wrote.
const DIARY: &str = "CREATE TABLE diary (id bigint GENERATED ALWAYS AS IDENTITY, tab text, op text, key int, val text); \
     CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
       IF current_setting('session_replication_role') = 'replica' THEN \
         INSERT INTO public.diary (tab, op, key, val) VALUES (TG_TABLE_NAME, TG_OP, coalesce(NEW.id, OLD.id), NEW.val); \
       END IF; RETURN NULL; END $$";

fn ready(place: Place) -> Multi {
    let m = Plan::new(3).place(place).start();
    m.everywhere(DIARY);
    for table in TABLES {
        m.everywhere(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, n int, val text); \
             CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION note(); \
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER note"
        ));
    }
    let dbs = m.dbs();
    m.sync_over(&dbs, &format!("tables => '{}'", TABLES.map(|t| format!("public.{t}")).join(",")));
    let mut control = m.control();
    for (table, strategy) in [("t_source", "bucardo_source"), ("t_skip", "bucardo_skip")] {
        control.exec(&format!("SELECT bucardo.update_table('public.{table}', 's', conflict_strategy => '{strategy}')"));
    }
    control.exec(&format!("CREATE FUNCTION merge(context jsonb) RETURNS jsonb LANGUAGE sql AS $body$ {} $body$", custom::MERGE));
    control.exec(
        "SELECT bucardo.add_customcode('merge', 'conflict', code => 'merge(jsonb)'::regprocedure, relation => 'public.t_merge')",
    );
    m
}

/// The same in every table, A first and C last: keys +1 (A, B), +2 (A, B, C), +3 (B, deleted by C), +4 and +5 uncontested.
fn contend(m: &Multi, base: usize) {
    let write = |name: &str, n: i32, keys: &[usize]| {
        let mut conn = m.on(name);
        for table in TABLES {
            let rows: Vec<String> = keys.iter().map(|k| format!("({}, {n}, '{name}')", base + k)).collect();
            conn.exec(&format!("INSERT INTO {table} VALUES {}", rows.join(", ")));
        }
    };
    write("A", 1, &[1, 2, 4]);
    write("B", 10, &[1, 2, 3, 5]);
    write("C", 100, &[2, 3]);
    let mut c = m.on("C");
    TABLES.iter().for_each(|table| c.exec(&format!("DELETE FROM {table} WHERE id = {base} + 3")));
}

fn expected(table: &str, member: &str) -> &'static str {
    match (table, member) {
        ("t_latest", _) => "1 10 B, 2 100 C, 4 1 A, 5 10 B",
        ("t_source", _) => "1 1 A, 2 1 A, 3 10 B, 4 1 A, 5 10 B",
        ("t_merge", _) => "1 11 A+B, 2 111 A+B+C, 3 10 B, 4 1 A, 5 10 B",
        (_, "A") => "1 1 A, 2 1 A, 4 1 A, 5 10 B",
        (_, "B") => "1 10 B, 2 10 B, 3 10 B, 4 1 A, 5 10 B",
        (_, "C") => "2 100 C, 4 1 A, 5 10 B",
        _ => "4 1 A, 5 10 B",
    }
}

/// An answer of the control database, which may be crashing at this moment.
fn ask(m: &Multi, sql: &str) -> Option<String> {
    let reply = m.servers[0].try_connect(CONTROL).ok()?.try_query(sql).ok()?;
    reply.rows.first()?.first()?.clone()
}

fn check(m: &Multi, base: usize, away: bool, what: &str) {
    m.wait_served();
    wait_until("the fault to be forgotten", || ask(m, "SELECT bucardo.fault_clear()::text").is_some());
    let among = format!("relation LIKE 'public.t\\_%' AND (key->>'id')::int BETWEEN {base} AND {base} + 9");
    let count = format!("SELECT count(*)::text FROM bucardo.conflict WHERE {among}");
    let recorded = reached(|| ask(m, &count).is_some_and(|n| n.parse::<usize>().unwrap() >= 3 * TABLES.len()));
    assert!(recorded, "{what}: a decision is missing\n{}", m.report());
    assert_eq!(m.kick(), "empty", "{what}");
    // What nobody has won contends again, by what the strategy says.
    let again = format!(
        "SELECT coalesce(string_agg(line, ', '), '') FROM (SELECT concat_ws(' ', c.relation, c.key, x, y) AS line \
         FROM bucardo.conflict c, jsonb_each(c.rows) x(member, image), jsonb_each(c.rows) y(member, image) WHERE {among} AND c.relation <> 'public.t_skip' \
         AND x.member < y.member GROUP BY 1 HAVING count(*) > 1) s"
    );
    assert_eq!(m.control().one(&again), "", "{what}: contended twice\n{}", m.report());
    let untold = format!(
        "SELECT coalesce(string_agg(concat_ws(' ', t, k, member), ', '), '') FROM unnest(ARRAY['{}']) t, \
         (VALUES (1, 'A', 'A'), (1, 'B', 'B'), (2, 'A', 'A'), (2, 'B', 'B'), (2, 'C', 'C'), (3, 'B', 'B'), (3, 'C', NULL)) v(k, member, val) \
         WHERE NOT EXISTS (SELECT FROM bucardo.conflict c WHERE {among} AND c.relation = 'public.' || t \
         AND (c.key->>'id')::int = {base} + k AND c.rows ? member AND c.rows->member->>'val' IS NOT DISTINCT FROM val)",
        TABLES.join("', '")
    );
    assert_eq!(m.control().one(&untold), "", "{what}: in no record\n{}", m.report());
    if !away {
        recorded_once(m, &among, &count, what);
    }
    expect_rows(m, base, away, what);
}

/// Nobody was away: one record of each decision.
fn recorded_once(m: &Multi, among: &str, count: &str, what: &str) {
    let repeated = format!(
        "SELECT coalesce(string_agg(line, ', '), '') FROM (SELECT concat_ws(' ', relation, key, count(*)) AS line \
         FROM bucardo.conflict WHERE {among} GROUP BY relation, key HAVING count(*) <> 1) s"
    );
    assert_eq!(m.control().one(&repeated), "", "{what}: decided twice\n{}", m.report());
    assert_eq!(m.control().number(count), 3 * TABLES.len() as i64, "{what}");
}

/// The keys of `t_skip` about which a member must be as it wants to be. What one source alone had changed has reached the
/// rest before the one that was away came to contend with it; it stays there.
fn own_keys(table: &str, member: &str, away: bool) -> &'static str {
    match (table, member) {
        ("t_skip", "A") if away => "1, 2, 4, 5",
        ("t_skip", "C") if away => "2, 3, 4, 5",
        ("t_skip", "T") if away => "4, 5",
        _ => "1, 2, 3, 4, 5",
    }
}

fn expect_rows(m: &Multi, base: usize, away: bool, what: &str) {
    for name in m.names() {
        let mut conn = m.on(name);
        for table in TABLES {
            let rows = format!(
                "SELECT coalesce(string_agg(concat_ws(' ', id - {base}, n, val), ', ' ORDER BY id), '') FROM {table} WHERE id - {base} IN ({})",
                own_keys(table, name, away)
            );
            assert_eq!(conn.one(&rows), expected(table, name), "{what}: {table} on {name}\n{}", m.report());
        }
        let twice = "SELECT coalesce(string_agg(line, ', '), '') FROM \
                     (SELECT concat_ws(' ', tab, op, key, val) AS line FROM diary GROUP BY 1 HAVING count(*) > 1 LIMIT 5) s";
        assert_eq!(conn.one(twice), "", "{what}: delivered twice to {name}");
    }
}

/// Conflicts meet a run at which `action` is done once at every point in turn; `disturb` does what else is to be done.
/// `away`: whether that takes a source away from the others.
fn at_every_point(place: Place, action: &str, away: bool, disturb: impl Fn(&Multi)) {
    let m = ready(place);
    let points: Vec<String> =
        m.control().query("SELECT bucardo.fault_points()").into_iter().filter_map(|row| row[0].clone()).collect();
    assert!(!points.is_empty(), "no fault points: build with --features fault_points");
    for (round, point) in points.iter().enumerate() {
        let base = 10 * (round + 1);
        let mut control = m.control();
        control.exec("SELECT bucardo.pause('s')");
        contend(&m, base);
        let begin =
            format!("SELECT bucardo.fault_clear(); SELECT bucardo.fault_set('{point}', '{action}'); SELECT bucardo.resume('s')");
        if action == "panic" {
            // The answer, and with it the resumption, may go down with the server.
            let _ = control.try_query(&begin);
            wait_until(&format!("{point} to crash the server"), || m.servers[0].crash_restarts() > round);
            wait_until("the sync to be resumed", || ask(&m, "SELECT bucardo.resume('s')::text").is_some());
        } else {
            control.exec(&begin);
            await_point(&m, point);
        }
        disturb(&m);
        check(&m, base, away, &format!("{action} at {point}"));
    }
    if action != "panic" {
        assert_eq!(m.servers[0].crash_restarts(), 0);
    }
}

fn await_point(m: &Multi, point: &str) {
    let taken = format!("SELECT bucardo.fault_taken('{point}')::text");
    wait_until(&format!("{point} to be reached"), || ask(m, &taken).as_deref() == Some("true"));
}

#[test]
fn an_error_at_every_point() {
    at_every_point(Place::Beside, "error", false, |_| ());
}

#[test]
fn a_death_at_every_point() {
    at_every_point(Place::Beside, "kill", false, |_| ());
}

#[test]
fn a_crash_of_the_control_server_at_every_point() {
    at_every_point(Place::Beside, "panic", false, |_| ());
}

#[test]
fn a_crash_of_control_and_members_at_every_point() {
    at_every_point(Place::Together, "panic", false, |_| ());
}

fn restart_at_every_point(victim: &str) {
    at_every_point(Place::Apart, "wait", victim != "T", |m| {
        m.server_of(victim).restart(Stop::Immediate);
        m.control().exec("SELECT bucardo.fault_clear()");
    });
}

#[test]
fn the_first_source_crashes_at_every_point() {
    restart_at_every_point("A");
}

#[test]
fn the_last_source_crashes_at_every_point() {
    restart_at_every_point("C");
}

#[test]
fn the_target_crashes_at_every_point() {
    restart_at_every_point("T");
}

/// While a run that has decided stands at a point, the loser writes the row again; then the run dies. The new change is
/// the latest, wherever the first run had come to.
#[test]
fn a_change_after_the_decision_is_neither_lost_nor_beaten_by_what_was_decided() {
    for point in
        ["kid.after_gather", "kid.before_commit", "kid.between_commits", "kid.after_commit", "kid.before_mark", "kid.after_mark"]
    {
        for writer in ["A", "B", "C"] {
            let m = Plan::new(3).place(Place::Beside).start();
            m.everywhere("CREATE TABLE t (id int PRIMARY KEY, val text)");
            m.sync_over(&m.dbs(), "tables => 'public.t'");
            m.control().exec("SELECT bucardo.pause('s')");
            m.changes(&[("A", "INSERT INTO t VALUES (1, 'A'), (2, 'A')"), ("B", "INSERT INTO t VALUES (1, 'B'), (3, 'B')")]);
            m.control().exec(&format!("SELECT bucardo.fault_set('{point}', 'wait'); SELECT bucardo.resume('s')"));
            await_point(&m, point);
            // The run's own row locks, if it has not committed there, may hold the statement up until it is dead.
            let mut late = m.on(writer);
            late.send("INSERT INTO t VALUES (1, 'late') ON CONFLICT (id) DO UPDATE SET val = 'late'").unwrap();
            m.control().exec("SELECT count(pg_terminate_backend(pid, 30000)) FROM bucardo.activity WHERE kind = 'kid'");
            m.control().exec("SELECT bucardo.fault_clear()");
            late.finish().unwrap_or_else(|error| panic!("the application's own statement failed: {error}"));
            m.settle(&["t"]);
            m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1late 2A 3B");
        }
    }
}

/// Rows that travel as a whole table, or in the second attempt, stand in the history of the run like others, once.
#[test]
fn what_a_run_has_copied_or_sent_again_stands_in_its_history() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE)");
    m.on("A").exec("INSERT INTO t SELECT g, g FROM generate_series(1, 500) g");
    m.sync("tables => 'public.t', onetimecopy => 2");
    let told = "SELECT concat_ws(' ', details->>'attempts', details->'relations'->'public.t'->>'changes') FROM bucardo.syncrun \
                WHERE state = 'good' ORDER BY run DESC LIMIT 1";
    assert_eq!(m.kick(), "good");
    assert_eq!(m.control().one(told), "1 500");
    m.drain();
    m.on("A").exec(
        "BEGIN; UPDATE t SET u = -1 WHERE id = 1; UPDATE t SET u = 1 WHERE id = 2; UPDATE t SET u = 2 WHERE id = 1; COMMIT",
    );
    assert_eq!(m.kick(), "good");
    // Three statements have changed a row each.
    assert_eq!(m.control().one(told), "2 3");
}

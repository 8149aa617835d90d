//! Sources that are away in turn, so that no run sees all of them: what was decided between some holds for who comes later,
//! and what nobody has won stays where it is.

use super::{Multi, Plan};
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
const ROW: &str = "SELECT coalesce((SELECT v FROM t WHERE id = 1), '-')";

/// A, B and C with one row, and a target with it.
fn ready(strategy: &str) -> Multi {
    let m = Plan::new(3).start().with(T, &format!("tables => 'public.t', conflict_strategy => '{strategy}'"));
    m.on("A").exec("INSERT INTO t VALUES (1, 'start')");
    m.drain_equal(&["t"]);
    m
}

fn away(m: &Multi, names: &[&str]) {
    for name in &m.sources {
        let status = if names.contains(name) { "inactive" } else { "active" };
        m.control().exec(&format!("SELECT bucardo.update_db('{name}', status => '{status}')"));
    }
}

fn rows(m: &Multi) -> Vec<String> {
    m.names().iter().map(|name| m.on(name).one(ROW)).collect()
}

#[test]
fn what_nobody_has_won_goes_to_nobody_by_itself() {
    let m = ready("bucardo_skip");
    away(&m, &["C"]);
    m.changes(&[("A", "UPDATE t SET v = 'a'"), ("B", "UPDATE t SET v = 'b'")]);
    assert_eq!(m.kick(), "good");
    for absent in [vec!["B"], vec!["A"], vec![]] {
        away(&m, &absent);
        m.kick();
        assert_eq!(rows(&m), ["a", "b", "start", "start"], "without {absent:?}\n{}", m.report());
    }
    m.drain();
    assert_eq!(rows(&m), ["a", "b", "start", "start"]);
    assert_eq!(m.count_conflicts("true"), 1, "{:?}", m.conflicts("public.t"));
    // A new change of anybody goes to all.
    m.on("B").exec("UPDATE t SET v = 'new'");
    m.drain_equal(&["t"]);
}

/// C changed the row too while it was away: it contends with each of the others as they meet.
#[test]
fn what_nobody_has_won_contends_with_who_was_away() {
    let m = ready("bucardo_skip");
    away(&m, &["C"]);
    m.changes(&[("A", "UPDATE t SET v = 'a'"), ("B", "UPDATE t SET v = 'b'"), ("C", "UPDATE t SET v = 'c'")]);
    m.kick();
    for absent in [vec!["B"], vec!["A"], vec![]] {
        away(&m, &absent);
        m.kick();
        assert_eq!(rows(&m), ["a", "b", "c", "start"], "without {absent:?}\n{}", m.report());
    }
    m.drain();
    assert_eq!(rows(&m), ["a", "b", "c", "start"]);
}

/// A run gives A's row to C and dies before it has told A. While C is away that row loses to the one of B, which C had before.
fn lost_while_away(strategy: &str) -> Multi {
    let m = ready(strategy);
    away(&m, &["A"]);
    m.changes(&[("A", "UPDATE t SET v = 'a'"), ("B", "UPDATE t SET v = 'b'")]);
    assert_eq!(m.kick(), "good");
    assert_eq!(rows(&m), ["a", "b", "b", "b"]);
    away(&m, &["B"]);
    m.control().exec("SELECT bucardo.fault_set('kid.before_mark', 'wait'); SELECT bucardo.kick('s')");
    wait_until("the run to have committed", || m.control().one("SELECT bucardo.fault_taken('kid.before_mark')::text") == "true");
    m.wait_sql("C", "what A has given", "SELECT v = 'a' FROM t");
    m.control().exec("SELECT bucardo.pause('s')");
    away(&m, &["C"]);
    m.control().exec("SELECT count(pg_terminate_backend(pid, 30000)) FROM bucardo.activity WHERE kind = 'kid'");
    m.control().exec("SELECT bucardo.fault_clear(); SELECT bucardo.resume('s')");
    // The run may have been taken again by itself.
    m.kick();
    assert_eq!(m.on("A").one(ROW), "b", "{}", m.report());
    assert_eq!(m.on("C").one(ROW), "a", "{}", m.report());
    m
}

#[test]
fn what_lost_while_its_holder_was_away_goes_from_there() {
    for strategy in ["bucardo_latest", "bucardo_target"] {
        let m = lost_while_away(strategy);
        away(&m, &[]);
        m.kick();
        m.drain_equal(&["t"]);
        assert_eq!(rows(&m), ["b"; 4]);
        assert_eq!(m.count_conflicts("true"), 1, "{:?}", m.conflicts("public.t"));
    }
}

/// The same where C has gone on with the row that it had: that is the last one.
#[test]
fn what_was_written_on_a_row_that_lost_is_not_written_over() {
    let m = lost_while_away("bucardo_latest");
    m.on("C").exec("UPDATE t SET v = v || 'c'");
    away(&m, &[]);
    m.kick();
    m.drain_equal(&["t"]);
    assert_eq!(rows(&m), ["ac"; 4]);
}

/// What nobody had won is no such row, though its holder knows more of it than is noted.
#[test]
fn what_nobody_has_won_is_not_lost_by_a_run_that_dies() {
    let m = ready("bucardo_skip");
    m.changes(&[("A", "UPDATE t SET v = 'a'"), ("B", "UPDATE t SET v = 'b'")]);
    m.control().exec("SELECT bucardo.fault_set('kid.before_mark', 'error'); SELECT bucardo.kick('s')");
    wait_until("the point to be passed", || m.control().one("SELECT bucardo.fault_taken('kid.before_mark')::text") == "true");
    m.control().exec("SELECT bucardo.fault_clear()");
    m.drain();
    assert_eq!(rows(&m), ["a", "b", "start", "start"]);
    assert_eq!(m.count_conflicts("true"), 1, "{:?}", m.conflicts("public.t"));
}

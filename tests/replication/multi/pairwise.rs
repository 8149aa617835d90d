//! Who knows what is known in pairs: what a member has got through a third one is noted nowhere. Members go and come one after the
//! other, so that each change goes round by others; it must not meet itself again as a stranger, nor come after what was written on it.

use super::{Multi, Place, Plan, custom};
use crate::cluster::Stop;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, n int, val text)";

fn apart(sources: usize, targets: usize, strategy: &str) -> Multi {
    let m = Plan::new(sources).targets(targets).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), &format!("tables => 'public.t', conflict_strategy => '{strategy}'"));
    m
}

fn wait_val(m: &Multi, member: &str, val: &str) {
    m.wait_sql(member, val, &format!("SELECT EXISTS (SELECT FROM t WHERE id = 1 AND val = '{val}')"));
}

/// A and B have merged their changes, then B and C the result with C's: A's share is in it once.
#[test]
fn a_merge_that_went_round_by_another_is_counted_once() {
    let m = apart(3, 0, "bucardo_source");
    m.control()
        .exec(&format!("CREATE FUNCTION decide(context jsonb) RETURNS jsonb LANGUAGE sql AS $body$ {} $body$", custom::MERGE));
    m.control().exec("SELECT bucardo.add_customcode('judge', whenrun => 'conflict', code => 'decide(jsonb)'::regprocedure)");
    m.control().exec("SELECT bucardo.pause('s')");
    m.changes(&[
        ("A", "INSERT INTO t VALUES (1, 1, 'A')"),
        ("B", "INSERT INTO t VALUES (1, 10, 'B')"),
        ("C", "INSERT INTO t VALUES (1, 100, 'C')"),
    ]);
    m.server_of("C").stop(Stop::Immediate);
    m.control().exec("SELECT bucardo.resume('s')");
    for member in ["A", "B"] {
        wait_val(&m, member, "A+B");
    }
    m.server_of("A").stop(Stop::Immediate);
    m.server_of("C").launch();
    for member in ["B", "C"] {
        m.wait_sql(member, "what three have made", "SELECT EXISTS (SELECT FROM t WHERE n = 111)");
    }
    m.server_of("A").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT n FROM t", "111");
}

/// B writes on what A has written on C's row: C's own change is no rival of that.
#[test]
fn what_was_written_on_a_change_that_came_by_another_does_not_contend_with_it() {
    let m = apart(3, 0, "bucardo_target");
    m.server_of("B").stop(Stop::Immediate);
    m.on("C").exec("INSERT INTO t VALUES (1, 1, 'C')");
    wait_val(&m, "A", "C");
    m.on("A").exec("UPDATE t SET val = 'A on C'");
    wait_val(&m, "C", "A on C");
    m.server_of("C").stop(Stop::Immediate);
    m.server_of("B").launch();
    wait_val(&m, "B", "A on C");
    m.server_of("A").stop(Stop::Immediate);
    m.on("B").exec("UPDATE t SET val = 'B on A'");
    m.server_of("C").launch();
    wait_val(&m, "C", "B on A");
    m.server_of("A").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT val FROM t", "B on A");
    assert_eq!(m.count_conflicts("true"), 0, "{:?}", m.conflicts("public.t"));
}

/// The target has got B's change on top of A's; A, which does not know that yet, must not put its own back for good.
#[test]
fn a_target_does_not_keep_what_came_late() {
    let m = apart(2, 1, "bucardo_latest");
    m.server_of("T").stop(Stop::Immediate);
    m.on("A").exec("INSERT INTO t VALUES (1, 1, 'A')");
    wait_val(&m, "B", "A");
    m.server_of("A").stop(Stop::Immediate);
    m.on("B").exec("UPDATE t SET val = 'B on A'");
    m.server_of("T").launch();
    wait_val(&m, "T", "B on A");
    m.server_of("B").stop(Stop::Immediate);
    m.server_of("A").launch();
    m.on("A").exec("INSERT INTO t VALUES (2, 2, 'A')");
    m.wait_sql("T", "a run of A alone", "SELECT EXISTS (SELECT FROM t WHERE id = 2)");
    m.server_of("T").stop(Stop::Immediate);
    m.server_of("B").launch();
    wait_val(&m, "A", "B on A");
    m.server_of("T").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1B on A 2A");
}

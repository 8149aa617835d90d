//! A run died while its members committed, and then there is nobody but one source to carry it on; and what is written on a row
//! that was carried on, before who had it first comes back.

use super::doubt::{die_after_the_first_commit, kill_the_kid, stand_after_the_commit_of};
use super::{Multi, Place, Plan, custom};
use crate::cluster::Stop;
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, n int, val text)";
const ALL: &str = "SELECT string_agg(concat_ws(' ', id, n, val), ', ' ORDER BY id) FROM t";

fn apart(sources: usize, strategy: &str) -> Multi {
    let m = Plan::new(sources).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), &format!("tables => 'public.t', conflict_strategy => '{strategy}'"));
    m
}

fn merging(sources: usize) -> Multi {
    let m = apart(sources, "bucardo_source");
    m.control()
        .exec(&format!("CREATE FUNCTION decide(context jsonb) RETURNS jsonb LANGUAGE sql AS $body$ {} $body$", custom::MERGE));
    m.control().exec("SELECT bucardo.add_customcode('judge', whenrun => 'conflict', code => 'decide(jsonb)'::regprocedure)");
    m
}

/// All have changed one row, A has won, and is the only one to have committed that.
fn die_after_a_has_won(m: &Multi) {
    let values =
        |(n, name): (usize, &&'static str)| (*name, format!("INSERT INTO t VALUES (1, {}, '{name}')", 10_i32.pow(n as u32)));
    let all: Vec<(&str, String)> = m.sources.iter().enumerate().map(values).collect();
    die_after_the_first_commit(m, &all.iter().map(|(name, sql)| (*name, sql.as_str())).collect::<Vec<_>>());
}

/// It is away since, and the others have its row from the record.
fn a_has_won(m: &Multi) {
    die_after_a_has_won(m);
    m.server_of("A").stop(Stop::Immediate);
    kill_the_kid(m);
}

fn others(m: &Multi) -> Vec<&'static str> {
    m.names().into_iter().filter(|name| *name != "A").collect()
}

/// Each run without A would carry its row out once more, over what was written since.
#[test]
fn a_source_that_is_alone_carries_a_decision_out_once() {
    let m = apart(2, "bucardo_source");
    a_has_won(&m);
    for member in others(&m) {
        m.wait_sql(member, "the winner's row", "SELECT val = 'A' FROM t");
    }
    m.on("B").exec("UPDATE t SET val = 'B later'");
    m.wait_sql("T", "what was written since", "SELECT val = 'B later' FROM t");
    for id in [2, 3] {
        m.on("B").exec(&format!("INSERT INTO t VALUES ({id}, {id}, 'B')"));
        m.wait_sql("T", "another row", &format!("SELECT EXISTS (SELECT FROM t WHERE id = {id})"));
        for member in others(&m) {
            assert_eq!(m.on(member).one("SELECT val FROM t WHERE id = 1"), "B later", "{member} after row {id}");
        }
    }
    assert_eq!(m.on("B").number("SELECT count(*) FROM bucardo.capture_settled"), 1, "noted once");
    m.server_of("A").launch();
    m.settle(&["t"]);
    m.expect_everywhere(ALL, "1 1 B later, 2 2 B, 3 3 B");
    assert_eq!(m.count_conflicts("true"), 1, "decided twice: {:?}", m.conflicts("public.t"));
}

/// Both have changed a row, and A fails as it commits what was decided about it, so that nobody has that. `away` goes then.
fn die_before_anybody_has_it(m: &Multi, away: &str) {
    // By whatever the run writes there.
    let refuse = "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not now'; END$$; \
        CREATE CONSTRAINT TRIGGER no AFTER INSERT OR UPDATE ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no()";
    m.rest();
    m.changes(&[("A", "INSERT INTO t VALUES (1, 1, 'A')"), ("B", "INSERT INTO t VALUES (1, 10, 'B'), (5, 5, 'B')")]);
    m.on("A").exec(&format!("{refuse}; ALTER TABLE t ENABLE ALWAYS TRIGGER no"));
    stand_after_the_commit_of("A", m, &[]);
    m.on("A").exec("DROP TRIGGER no ON t");
    m.server_of(away).stop(Stop::Immediate);
    kill_the_kid(m);
}

/// A decision that nobody had committed is carried out by the only source that is there. When the other one comes back, somebody has it.
#[test]
fn what_a_source_that_is_alone_has_carried_out_is_not_forgotten() {
    let m = merging(2);
    die_before_anybody_has_it(&m, "B");
    for member in ["A", "T"] {
        m.wait_sql(member, "the merged row", "SELECT n = 11 FROM t");
    }
    m.server_of("B").launch();
    m.settle(&["t"]);
    m.expect_everywhere(ALL, "1 11 A+B, 5 5 B");
    assert_eq!(m.count_conflicts("true"), 1, "{:?}", m.conflicts("public.t"));
}

/// The same of a winner that is away and has not committed that it has won: what is written on its row meanwhile knows it.
#[test]
fn a_winner_that_has_not_committed_does_not_contend_with_what_was_written_on_its_row() {
    let m = apart(2, "bucardo_source");
    die_before_anybody_has_it(&m, "A");
    for member in others(&m) {
        m.wait_sql(member, "the winner's row", "SELECT EXISTS (SELECT FROM t WHERE id = 1 AND val = 'A')");
    }
    m.on("B").exec("UPDATE t SET val = 'B later' WHERE id = 1");
    m.wait_sql("T", "what was written since", "SELECT EXISTS (SELECT FROM t WHERE val = 'B later')");
    m.server_of("A").launch();
    m.settle(&["t"]);
    m.expect_everywhere(ALL, "1 1 B later, 5 5 B");
    assert_eq!(m.count_conflicts("true"), 1, "decided twice: {:?}", m.conflicts("public.t"));
}

/// C has changed the row once more, without knowing what the run that died had decided: it is carried on without C's row being
/// written over, and C contends with A when that is back.
#[test]
fn what_is_written_without_knowing_a_decision_contends_with_it() {
    for merge in [false, true] {
        let m = if merge { merging(3) } else { apart(3, "bucardo_source") };
        die_after_a_has_won(&m);
        m.server_of("A").stop(Stop::Immediate);
        m.control().exec("SELECT bucardo.pause('s')");
        kill_the_kid(&m);
        m.on("C").exec("UPDATE t SET n = n + 1000, val = 'C unaware'");
        m.control().exec("SELECT bucardo.resume('s')");
        for member in others(&m) {
            m.wait_sql(member, "what C wrote", "SELECT EXISTS (SELECT FROM t WHERE val = 'C unaware')");
        }
        m.server_of("A").launch();
        m.settle(&["t"]);
        m.expect_everywhere(ALL, if merge { "1 1211 A+B+C+C unaware" } else { "1 1 A" });
        assert_eq!(m.count_conflicts("true"), 2, "{:?}", m.conflicts("public.t"));
    }
}

/// A row has lost its reference to a parent that is gone. Who has it from the record has all that its author wrote with it.
#[test]
fn a_row_that_lost_its_reference_is_carried_on_whole() {
    let m = Plan::new(2).targets(0).place(Place::Apart).start();
    m.everywhere(
        "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE SET NULL, val text)",
    );
    m.sync_over(&m.dbs(), "tables => 'public.parent,public.child'");
    m.on("A").exec("INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 1, 'old')");
    m.settle(&["parent", "child"]);
    die_after_the_first_commit(
        &m,
        &[("A", "UPDATE child SET parent = 2, val = 'new'"), ("B", "DELETE FROM parent WHERE id = 2")],
    );
    m.server_of("A").stop(Stop::Immediate);
    kill_the_kid(&m);
    m.wait_sql("B", "what A wrote", "SELECT val = 'new' AND parent IS NULL FROM child");
    m.server_of("A").launch();
    m.settle(&["parent", "child"]);
    m.expect_everywhere("SELECT concat_ws(' ', id, coalesce(parent, 0), val) FROM child", "1 0 new");
}

/// Whoever writes on the winner's row knows it: that does not contend with it once more when the winner comes back.
#[test]
fn what_is_written_on_a_carried_row_does_not_contend_with_it() {
    for sources in [2, 3] {
        let m = apart(sources, "bucardo_source");
        a_has_won(&m);
        for member in others(&m) {
            m.wait_sql(member, "the winner's row", "SELECT val = 'A' FROM t");
        }
        m.on("B").exec("UPDATE t SET val = 'B later'");
        for member in others(&m) {
            m.wait_sql(member, "what was written since", "SELECT val = 'B later' FROM t");
        }
        m.server_of("A").launch();
        m.settle(&["t"]);
        m.expect_everywhere(ALL, "1 1 B later");
        assert_eq!(m.count_conflicts("true"), 1, "decided twice: {:?}", m.conflicts("public.t"));
    }
}

/// The winner has deleted the row, by itself or with all others: who writes it anew has seen it go.
#[test]
fn what_is_stored_where_a_row_was_deleted_by_what_was_carried_on() {
    for (sources, deletes) in
        [(2, "DELETE FROM t WHERE id = 1"), (3, "DELETE FROM t WHERE id = 1"), (2, "TRUNCATE t"), (3, "TRUNCATE t")]
    {
        let m = apart(sources, "bucardo_source");
        m.on("A").exec("INSERT INTO t VALUES (1, 0, 'old'), (2, 0, 'old')");
        m.settle(&["t"]);
        die_after_the_first_commit(&m, &[("A", deletes), ("B", "UPDATE t SET val = 'B' WHERE id = 1")]);
        m.server_of("A").stop(Stop::Immediate);
        kill_the_kid(&m);
        for member in others(&m) {
            m.wait_sql(member, "the row to be gone", "SELECT NOT EXISTS (SELECT FROM t WHERE id = 1)");
        }
        m.on("B").exec("INSERT INTO t VALUES (1, 1, 'B later')");
        for member in others(&m) {
            m.wait_sql(member, "the new row", "SELECT EXISTS (SELECT FROM t WHERE val = 'B later')");
        }
        m.server_of("A").launch();
        m.settle(&["t"]);
        m.expect_everywhere(ALL, if deletes.starts_with("DELETE") { "1 1 B later, 2 0 old" } else { "1 1 B later" });
        assert_eq!(m.count_conflicts("true"), 1, "{deletes}: decided twice: {:?}", m.conflicts("public.t"));
    }
}

/// Nobody has won: that is so after a run that carries it on, too, also for who was away when it was decided.
#[test]
fn what_nobody_has_won_is_carried_on_as_that() {
    let m = apart(3, "bucardo_skip");
    m.rest();
    m.server_of("C").stop(Stop::Immediate);
    m.control().exec("SELECT bucardo.resume('s')");
    m.on("A").exec("INSERT INTO t VALUES (9, 9, 'A')");
    m.wait_sql("B", "a run without C", "SELECT EXISTS (SELECT FROM t WHERE id = 9)");
    die_after_the_first_commit(&m, &[("A", "INSERT INTO t VALUES (1, 1, 'A')"), ("B", "INSERT INTO t VALUES (1, 10, 'B')")]);
    m.server_of("A").stop(Stop::Immediate);
    kill_the_kid(&m);
    m.on("B").exec("INSERT INTO t VALUES (8, 8, 'B')");
    m.wait_sql("T", "a run of B alone", "SELECT EXISTS (SELECT FROM t WHERE id = 8)");
    m.server_of("C").launch();
    m.on("C").exec("INSERT INTO t VALUES (1, 100, 'C'), (7, 7, 'C')");
    m.server_of("A").launch();
    m.wait_served();
    for (member, row) in [("A", "1 1 A, "), ("B", "1 10 B, "), ("C", "1 100 C, "), ("T", "")] {
        assert_eq!(m.on(member).one(ALL), format!("{row}7 7 C, 8 8 B, 9 9 A"), "{member}\n{}", m.report());
    }
    // The next change of anybody goes to all.
    m.on("C").exec("UPDATE t SET val = 'new' WHERE id = 1");
    m.settle(&["t"]);
    m.expect_everywhere("SELECT n || val FROM t WHERE id = 1", "100new");
}

/// The same of a row that was merged: what A had added to it is not added once more.
#[test]
fn what_is_written_on_a_carried_merged_row_does_not_contend_with_it() {
    for sources in [2, 3] {
        let m = merging(sources);
        a_has_won(&m);
        let merged = if sources == 2 { 11 } else { 111 };
        for member in others(&m) {
            m.wait_sql(member, "the merged row", &format!("SELECT n = {merged} FROM t"));
        }
        m.on("B").exec("UPDATE t SET n = n + 1000, val = 'B later'");
        for member in others(&m) {
            m.wait_sql(member, "what was written since", "SELECT val = 'B later' FROM t");
        }
        m.server_of("A").launch();
        m.settle(&["t"]);
        m.expect_everywhere(ALL, &format!("1 {} B later", merged + 1000));
        assert_eq!(m.count_conflicts("true"), 1, "decided twice: {:?}", m.conflicts("public.t"));
    }
}

/// The target was away too when a row was carried on. What was merged it gets from whoever has it; the winner's own row from the
/// winner when that is back, or, if it never comes back, from whoever has it.
#[test]
fn a_target_that_was_away_gets_what_was_carried_on() {
    for (sources, merge, back) in [(2, false, true), (2, false, false), (3, false, false), (2, true, true), (3, true, false)] {
        let m = if merge { merging(sources) } else { apart(sources, "bucardo_source") };
        die_after_a_has_won(&m);
        m.server_of("A").stop(Stop::Immediate);
        m.server_of("T").stop(Stop::Immediate);
        kill_the_kid(&m);
        let n = match (merge, sources) {
            (false, _) => 1,
            (true, 2) => 11,
            (true, _) => 111,
        };
        m.wait_sql("B", "the row", &format!("SELECT n = {n} FROM t"));
        m.server_of("T").launch();
        let there = format!("SELECT EXISTS (SELECT FROM t WHERE n = {n})");
        if merge {
            m.wait_sql("T", "the merged row", &there);
        }
        if back {
            m.server_of("A").launch();
            m.settle(&["t"]);
            m.expect_everywhere("SELECT n FROM t", &n.to_string());
        } else {
            let left = m.dbs().replace("A:source,", "");
            m.control().exec(&format!("SELECT bucardo.update_sync('s', dbs => '{left}')"));
            m.wait_sql("T", "the row", &there);
        }
        assert_eq!(m.count_conflicts("true"), 1, "decided twice: {:?}", m.conflicts("public.t"));
        wait_until("a kick with nothing to do", || m.kick() == "empty");
    }
}

//! Runs that died while their members committed, and servers that fell over right after: a recorded decision holds,
//! whoever is there to carry it on; what was read of a source is on its disk before another member says that it has it.

use super::{Multi, Place, Plan, custom};
use crate::cluster::Stop;
use crate::compare::literal;
use crate::proxy::Proxy;
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, n int, val text)";

/// Another answer for each set of sources: so that a second decision would be seen.
const WHO_IS_THERE: &str = r#"SELECT jsonb_build_object('winner', CASE WHEN context->'dbs' ? 'A' THEN 'C' ELSE 'B' END)"#;

fn apart(code: &str) -> Multi {
    let m = Plan::new(3).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.control().exec(&format!("CREATE FUNCTION decide(context jsonb) RETURNS jsonb LANGUAGE sql AS $body$ {code} $body$"));
    m.control().exec("SELECT bucardo.add_customcode('judge', whenrun => 'conflict', code => 'decide(jsonb)'::regprocedure)");
    m
}

/// Changes meet in one run, whose kid stands still when the first member, A, has committed and the others have not.
pub(super) fn die_after_the_first_commit(m: &Multi, changes: &[(&str, &str)]) {
    stand_after_the_commit_of("A", m, changes);
}

pub(super) fn stand_after_the_commit_of(first: &str, m: &Multi, changes: &[(&str, &str)]) {
    m.rest();
    m.changes(changes);
    let passed = || m.control().number("SELECT bucardo.fault_hits('kid.between_commits')");
    let before = passed();
    m.control().exec("SELECT bucardo.fault_set('kid.between_commits', 'wait'); SELECT bucardo.resume('s')");
    wait_until("the first commit", || passed() > before);
    m.wait_sql(
        first,
        "it to have committed",
        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'bucardo kid' AND state <> 'idle')",
    );
}

pub(super) fn kill_the_kid(m: &Multi) {
    m.control().exec("SELECT count(pg_terminate_backend(pid, 30000)) FROM bucardo.activity WHERE kind = 'kid'");
    m.control().exec("SELECT bucardo.fault_clear()");
}

#[test]
fn a_decision_that_only_a_member_who_is_away_has_committed_holds() {
    let m = apart(WHO_IS_THERE);
    let all = [
        ("A", "INSERT INTO t VALUES (1, 1, 'A'), (4, 1, 'A')"),
        ("B", "INSERT INTO t VALUES (1, 2, 'B'), (2, 2, 'B')"),
        ("C", "INSERT INTO t VALUES (1, 3, 'C'), (2, 3, 'C'), (3, 3, 'C')"),
    ];
    die_after_the_first_commit(&m, &all);
    m.server_of("A").stop(Stop::Immediate);
    kill_the_kid(&m);
    for member in ["B", "C", "T"] {
        m.wait_sql(member, "what B and C have", "SELECT (SELECT string_agg(id::text, ' ' ORDER BY id) FROM t) = '1 2 3'");
    }
    m.wait_sql(
        "T",
        "to be equal to B",
        &format!("SELECT (SELECT val FROM t WHERE id = 2) = '{}'", m.on("B").one("SELECT val FROM t WHERE id = 2")),
    );
    m.server_of("A").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1C 2C 3C 4A");
    assert_eq!(m.count_conflicts("winner = 'C'"), 2, "{:?}", m.conflicts("public.t"));
    assert_eq!(m.count_conflicts("true"), 2, "decided twice: {:?}", m.conflicts("public.t"));
}

#[test]
fn a_merged_row_that_only_a_member_who_is_away_has_committed_holds() {
    let m = apart(custom::MERGE);
    let all = [
        ("A", "INSERT INTO t VALUES (1, 1, 'A')"),
        ("B", "INSERT INTO t VALUES (1, 10, 'B'), (2, 10, 'B')"),
        ("C", "INSERT INTO t VALUES (1, 100, 'C'), (2, 100, 'C')"),
    ];
    die_after_the_first_commit(&m, &all);
    m.server_of("A").stop(Stop::Immediate);
    kill_the_kid(&m);
    for member in ["B", "C", "T"] {
        m.wait_sql(member, "the merged row", "SELECT (SELECT n FROM t WHERE id = 2) = 110");
    }
    m.on("B").exec("UPDATE t SET n = n + 1000 WHERE id = 2");
    for member in ["C", "T"] {
        m.wait_sql(member, "the change of the merged row", "SELECT (SELECT n FROM t WHERE id = 2) = 1110");
    }
    m.server_of("A").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(concat_ws(' ', id, n, val), ', ' ORDER BY id) FROM t", "1 111 A+B+C, 2 1110 B+C");
    assert_eq!(m.count_conflicts("true"), 2, "decided twice: {:?}", m.conflicts("public.t"));
}

/// The winner is away when the others carry on: they have its row from the record.
#[test]
fn the_winner_of_a_recorded_decision_may_be_away() {
    let m = Plan::new(3).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t', conflict_strategy => 'bucardo_source'");
    let all = [
        ("A", "INSERT INTO t VALUES (1, 1, 'A')"),
        ("B", "INSERT INTO t VALUES (1, 2, 'B')"),
        ("C", "INSERT INTO t VALUES (1, 3, 'C')"),
    ];
    die_after_the_first_commit(&m, &all);
    m.server_of("A").stop(Stop::Immediate);
    kill_the_kid(&m);
    for member in ["B", "C", "T"] {
        m.wait_sql(member, "the winner's row", "SELECT (SELECT val FROM t WHERE id = 1) = 'A'");
    }
    m.server_of("A").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1A");
    assert_eq!(m.count_conflicts("true"), 1, "decided twice: {:?}", m.conflicts("public.t"));
}

/// Two have merged their changes while the third was away: its change is added to that once.
#[test]
fn a_merged_row_contends_as_one() {
    let m = apart(custom::MERGE);
    m.control().exec("SELECT bucardo.pause('s')");
    m.changes(&[
        ("A", "INSERT INTO t VALUES (1, 1, 'A')"),
        ("B", "INSERT INTO t VALUES (1, 10, 'B')"),
        ("C", "INSERT INTO t VALUES (1, 100, 'C')"),
    ]);
    m.server_of("A").stop(Stop::Immediate);
    m.control().exec("SELECT bucardo.resume('s')");
    for member in ["B", "C", "T"] {
        m.wait_sql(member, "the merged row", "SELECT (SELECT n FROM t WHERE id = 1) = 110");
    }
    m.server_of("A").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT n || val FROM t", "111A+B+C");
    assert_eq!(m.count_conflicts("true"), 2, "{:?}", m.conflicts("public.t"));
}

/// Nobody won between B and C while A was away. A has changed the row too: nobody wins against it either.
#[test]
fn what_nobody_has_won_still_contends_with_who_was_away() {
    let m = Plan::new(3).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t', conflict_strategy => 'bucardo_skip'");
    m.control().exec("SELECT bucardo.pause('s')");
    m.changes(&[
        ("A", "INSERT INTO t VALUES (1, 1, 'A')"),
        ("B", "INSERT INTO t VALUES (1, 2, 'B'), (2, 2, 'B'), (3, 2, 'B')"),
        ("C", "INSERT INTO t VALUES (1, 3, 'C'), (2, 3, 'C')"),
    ]);
    m.server_of("A").stop(Stop::Immediate);
    m.control().exec("SELECT bucardo.resume('s')");
    m.wait_sql("C", "what is not contended", "SELECT EXISTS (SELECT FROM t WHERE id = 3)");
    m.server_of("A").launch();
    m.wait_served();
    for (member, rows) in [("A", "1A 3B"), ("B", "1B 2B 3B"), ("C", "1C 2C 3B"), ("T", "3B")] {
        assert_eq!(m.on(member).one("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t"), rows, "{member}\n{}", m.report());
    }
    assert_eq!(m.conflicts("public.t").len(), 3, "{:?}", m.conflicts("public.t"));
    // The next change of anybody goes to all.
    m.on("B").exec("UPDATE t SET val = 'new'");
    m.settle(&["t"]);
}

/// A source falls over before its disk has what the others took from it. It gives the same transaction numbers to other
/// transactions afterwards.
#[test]
fn a_source_falls_over_right_after_it_was_served() {
    let m =
        Plan::new(2).place(Place::Apart).settings("wal_writer_delay = 10s\nautovacuum = off\ncheckpoint_timeout = 1h").start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.on("A").exec("INSERT INTO t VALUES (1, 1, 'A')");
    m.settle(&["t"]);
    let mut a = m.on("A");
    for id in 10..20 {
        a.exec(&format!("BEGIN; INSERT INTO t VALUES ({id}, 1, 'never'); ROLLBACK"));
        a.exec(&format!("SET synchronous_commit = off; INSERT INTO t VALUES ({id}, 1, 'fast')"));
    }
    m.wait_sql("B", "the last one", "SELECT EXISTS (SELECT FROM t WHERE id = 19)");
    m.server_of("A").restart(Stop::Immediate);
    for id in 20..40 {
        m.on("A").exec(&format!("INSERT INTO t VALUES ({id}, 1, 'later')"));
    }
    m.settle(&["t"]);
    m.expect_everywhere("SELECT count(*) FROM t", "31");
}

/// C has nothing for the others in a run in which A and B decide something, and falls over as it ends, before its disk has
/// its last transactions. It gives their numbers to others afterwards, and those must be looked for.
#[test]
fn a_source_without_news_falls_over_while_others_decide() {
    let settings = "wal_writer_delay = 10s\nautovacuum = off\ncheckpoint_timeout = 1h";
    let m = Plan::new(3).targets(0).place(Place::Apart).settings(settings).start();
    m.everywhere(&format!("{T}; CREATE TABLE beside (n int)"));
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.on("A").exec("INSERT INTO t VALUES (1, 1, 'A')");
    m.settle(&["t"]);
    m.rest();
    m.changes(&[("A", "INSERT INTO t VALUES (2, 1, 'A')"), ("B", "INSERT INTO t VALUES (2, 1, 'B')")]);
    let mut c = m.on("C");
    c.exec("SET synchronous_commit = off");
    for n in 0..60 {
        c.exec(&format!("INSERT INTO beside VALUES ({n})"));
    }
    let count = |sql: &str| m.control().number(sql);
    let (stands, runs) = ("SELECT bucardo.fault_hits('kid.before_commit')", "SELECT count(*) FROM bucardo.syncrun");
    let (before, done) = (count(stands), count(runs));
    m.control().exec("SELECT bucardo.fault_set('kid.before_commit', 'wait'); SELECT bucardo.resume('s')");
    wait_until("the run to be about to commit", || count(stands) > before);
    m.server_of("C").stop(Stop::Immediate);
    m.control().exec("SELECT bucardo.pause('s')");
    m.control().exec("SELECT bucardo.fault_clear()");
    wait_until("the run to be over", || count(runs) > done);
    m.server_of("C").launch();
    // Its log passes by where it was.
    m.on("C").exec("SELECT pg_switch_wal()");
    for id in 10..30 {
        m.on("C").exec(&format!("INSERT INTO t VALUES ({id}, 1, 'later')"));
    }
    m.control().exec("SELECT bucardo.resume('s')");
    m.settle(&["t"]);
    m.expect_everywhere("SELECT count(*) FROM t", "22");
}

/// Where no target is, the copies that sources keep of each other's progress may be behind: that is no work.
#[test]
fn a_lost_copy_of_progress_is_no_work_for_ever() {
    let m = Plan::new(2).targets(0).place(Place::Beside).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.control().exec("SELECT bucardo.fault_set('kid.before_mark', 'error')");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 1, 'A')"), ("B", "INSERT INTO t VALUES (2, 1, 'B')")]);
    m.wait_equal("t", &["B"]);
    wait_until("the point to be passed", || m.control().number("SELECT bucardo.fault_hits('kid.before_mark')") > 0);
    m.settle(&["t"]);
    wait_until("a kick with nothing to do", || m.kick() == "empty");
}

/// The COMMIT of a run that died is still on its way to the target when the next run has been there. The row is again as
/// it was, so that the next run had nothing to write.
#[test]
fn a_commit_that_comes_late_comes_to_nothing() {
    for sources in [1, 2] {
        let m = Plan::new(sources).place(Place::Apart).start();
        m.everywhere(T);
        let proxy = Proxy::to(m.server_of("T"));
        let reach = |conninfo: &str| {
            m.control().exec(&format!("SELECT bucardo.update_db('T', conninfo => {})", literal(conninfo)));
        };
        let straight = m.conninfo("T");
        reach(&proxy.conninfo("t"));
        m.sync_over(&m.dbs(), "tables => 'public.t'");
        m.on("A").exec("INSERT INTO t VALUES (1, 1, 'one')");
        m.settle(&["t"]);
        let passed = |point: &str| m.control().number(&format!("SELECT bucardo.fault_hits('kid.{point}')"));
        let ready = passed("before_commit");
        m.control().exec("SELECT bucardo.fault_set('kid.before_commit', 'wait')");
        m.on("A").exec("UPDATE t SET val = 'two'");
        wait_until("the run to be ready", || passed("before_commit") > ready);
        let (sent, receivers) = (passed("between_commits"), if sources == 1 { 1 } else { 3 });
        proxy.stall();
        m.control().exec("SELECT bucardo.fault_clear()");
        wait_until("COMMIT to be sent to all", || passed("between_commits") >= sent + receivers);
        if sources == 2 {
            m.wait_sql("B", "the commit", "SELECT val = 'two' FROM t");
        }
        kill_the_kid(&m);
        reach(&straight);
        m.on("A").exec("UPDATE t SET val = 'one'");
        m.settle(&["t"]);
        proxy.heal();
        m.wait_sql(
            "T",
            "the old session to end",
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 't' AND state LIKE 'idle in%')",
        );
        m.expect_everywhere("SELECT val FROM t", "one");
    }
}

#[test]
fn what_an_orphan_has_lost_it_loses_on_all_members() {
    let m = Plan::new(2).place(Place::Apart).start();
    m.everywhere(
        "CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1); \
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE SET NULL, val text)",
    );
    m.sync_over(&m.dbs(), "tables => 'public.parent,public.child'");
    die_after_the_first_commit(&m, &[("A", "DELETE FROM parent"), ("B", "INSERT INTO child VALUES (1, 1, 'B')")]);
    kill_the_kid(&m);
    m.settle(&["parent", "child"]);
    m.expect_everywhere("SELECT concat_ws(' ', id, coalesce(parent, 0), val) FROM child", "1 0 B");
    assert_eq!(m.count_conflicts("true"), 1, "decided twice: {:?}", m.conflicts("public.child"));
}

/// B has committed what A gave it, nobody else has; A never comes back. B has it for the others, and the decision holds.
#[test]
fn a_source_that_is_lost_for_ever_between_two_commits() {
    for removed_first in [true, false] {
        let m = Plan::new(3).place(Place::Apart).start();
        m.everywhere(T);
        m.sync_over("B:source,A:source,C:source,T:target", "tables => 'public.t'");
        let all = [
            ("C", "INSERT INTO t VALUES (1, 3, 'C'), (3, 3, 'C')"),
            ("B", "INSERT INTO t VALUES (2, 2, 'B')"),
            ("A", "INSERT INTO t VALUES (1, 1, 'A'), (4, 1, 'A')"),
        ];
        stand_after_the_commit_of("B", &m, &all);
        m.server_of("A").stop(Stop::Immediate);
        if !removed_first {
            kill_the_kid(&m);
        }
        m.control().exec("SELECT bucardo.update_sync('s', dbs => 'B:source,C:source,T:target')");
        if removed_first {
            kill_the_kid(&m);
        }
        for member in ["B", "C", "T"] {
            m.wait_sql(member, "what A gave to B", "SELECT string_agg(id || val, ' ' ORDER BY id) = '1A 2B 3C 4A' FROM t");
        }
        m.on("C").exec("UPDATE t SET val = 'C goes on' WHERE id = 1");
        for member in ["B", "T"] {
            m.wait_sql(member, "what C wrote on it", "SELECT count(*) = 1 FROM t WHERE val = 'C goes on'");
        }
        assert_eq!(m.count_conflicts("winner = 'A'"), 1, "{:?}", m.conflicts("public.t"));
        assert_eq!(m.count_conflicts("true"), 1, "decided twice: {:?}", m.conflicts("public.t"));
        m.wait_state("good|empty");
    }
}

/// The same where the one that is left is the only source.
#[test]
fn the_last_but_one_source_is_lost_for_ever_between_two_commits() {
    let m = Plan::new(2).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over("B:source,A:source,T:target", "tables => 'public.t'");
    m.on("A").exec("INSERT INTO t VALUES (5, 1, 'A')");
    m.settle(&["t"]);
    let all = [("B", "INSERT INTO t VALUES (2, 2, 'B')"), ("A", "DELETE FROM t; INSERT INTO t VALUES (1, 1, 'A'), (4, 1, 'A')")];
    stand_after_the_commit_of("B", &m, &all);
    m.server_of("A").stop(Stop::Immediate);
    kill_the_kid(&m);
    m.control().exec("SELECT bucardo.update_sync('s', dbs => 'B:source,T:target')");
    m.wait_sql("T", "what A gave to B", "SELECT string_agg(id || val, ' ' ORDER BY id) = '1A 2B 4A' FROM t");
    m.wait_state("good|empty");
}

/// The target had refused what A gave, and runs went well without it since. Then A is gone: B still has it for the target.
#[test]
fn what_a_lost_source_gave_reaches_a_target_that_had_refused_it() {
    let m = Plan::new(2).place(Place::Apart).start();
    m.everywhere(T);
    m.on("T").exec("ALTER TABLE t ADD CONSTRAINT no CHECK (val <> 'no')");
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.on("A").exec("INSERT INTO t VALUES (1, 1, 'A')");
    m.settle(&["t"]);
    m.on("A").exec("INSERT INTO t VALUES (2, 2, 'no')");
    m.wait_sql("B", "what T refuses", "SELECT count(*) = 2 FROM t");
    m.on("B").exec("INSERT INTO t VALUES (3, 3, 'B')");
    m.wait_sql("A", "what B wrote", "SELECT count(*) = 3 FROM t");
    m.server_of("A").stop(Stop::Immediate);
    m.control().exec("SELECT bucardo.update_sync('s', dbs => 'B:source,T:target')");
    m.on("T").exec("ALTER TABLE t DROP CONSTRAINT no");
    m.wait_sql("T", "what A gave to B", "SELECT string_agg(id || val, ' ' ORDER BY id) = '1A 2no 3B' FROM t");
    m.wait_state("good|empty");
}

/// A new database stands in the place of the one that was lost in that moment.
#[test]
fn a_source_that_is_replaced_between_two_commits() {
    let m = Plan::new(3).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over("B:source,C:source,A:source,T:target", "tables => 'public.t'");
    m.on("A").exec("INSERT INTO t VALUES (5, 1, 'A')");
    m.settle(&["t"]);
    stand_after_the_commit_of("B", &m, &[("A", "INSERT INTO t VALUES (1, 1, 'A'); DELETE FROM t WHERE id = 5")]);
    m.server_of("A").stop(Stop::Immediate);
    let anew = m.server_of("C");
    anew.create_database("anew", "");
    anew.sql("anew", T);
    kill_the_kid(&m);
    m.control().exec(&format!("SELECT bucardo.update_db('A', conninfo => {})", literal(&anew.conninfo("anew"))));
    for member in ["B", "C", "T"] {
        m.wait_sql(member, "what A gave to B", "SELECT string_agg(id || val, ' ' ORDER BY id) = '1A' FROM t");
    }
    wait_until("the new A to be equal", || anew.connect("anew").one("SELECT string_agg(id || val, ' ') FROM t") == "1A");
}

/// A source whose changes all have got is taken out without a whole table being copied.
#[test]
fn a_source_that_is_taken_out_in_peace_costs_nothing() {
    for removal in ["update_sync('s', dbs => 'B:source,C:source,T:target')", "remove_db('A', force => true)"] {
        let m = Plan::new(3).start();
        m.everywhere(T);
        m.sync_over(&m.dbs(), "tables => 'public.t'");
        m.changes(&[("A", "INSERT INTO t VALUES (1, 1, 'A')"), ("B", "INSERT INTO t VALUES (2, 2, 'B')")]);
        m.settle(&["t"]);
        m.on("T").exec("UPDATE t SET val = 'of T alone' WHERE id = 1");
        m.control().exec(&format!("SELECT bucardo.{removal}"));
        m.on("B").exec("INSERT INTO t VALUES (3, 3, 'B')");
        m.wait_sql("T", "what came afterwards", "SELECT count(*) = 1 FROM t WHERE id = 3");
        assert_eq!(m.on("T").one("SELECT val FROM t WHERE id = 1"), "of T alone", "a whole table was copied after {removal}");
    }
}

/// A recorded key reads otherwise as JSON than as a text; it is the same key: what was written since goes over what was recorded.
#[test]
fn a_recorded_key_of_any_type_is_found_again() {
    let m = Plan::new(2).place(Place::Apart).start();
    let key = "k timestamptz, b bool, f float8, j jsonb";
    m.everywhere(&format!(
        "CREATE TABLE t ({key}, n int, val text, PRIMARY KEY (k, b, f, j)); CREATE TABLE a (id int[] PRIMARY KEY, n int, val text)"
    ));
    m.sync_over(&m.dbs(), "tables => 'public.t,public.a'");
    m.control()
        .exec(&format!("CREATE FUNCTION decide(context jsonb) RETURNS jsonb LANGUAGE sql AS $body$ {} $body$", custom::MERGE));
    m.control().exec("SELECT bucardo.add_customcode('judge', whenrun => 'conflict', code => 'decide(jsonb)'::regprocedure)");
    let rows = |n: i32, val: &str| {
        let key = "timestamptz '2026-01-02 03:04:05.678+01', true, 0.25, '{\"a\": [1, 2]}'";
        format!("INSERT INTO t VALUES ({key}, {n}, '{val}'); INSERT INTO a VALUES ('{{1,2}}', {n}, '{val}')")
    };
    die_after_the_first_commit(&m, &[("A", &rows(1, "A")), ("B", &rows(10, "B"))]);
    m.on("A").exec("UPDATE t SET n = n + 1000; UPDATE a SET n = n + 1000");
    kill_the_kid(&m);
    m.settle(&["t", "a"]);
    m.expect_everywhere("SELECT string_agg(n || val, ' ') FROM t", "1011A+B");
    m.expect_everywhere("SELECT string_agg(n || val, ' ') FROM a", "1011A+B");
    assert_eq!(m.count_conflicts("true"), 2, "decided twice: {:?}", m.conflicts("public.t"));
}

/// A run decides, and all sources commit it, but the target refuses a row. The decision is over then: a source that is added much
/// later has not got it, and that is no reason to carry it out over what was written since.
#[test]
fn a_decision_is_over_when_all_sources_have_it() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, val text)");
    m.on("T").exec("ALTER TABLE t ADD CONSTRAINT no CHECK (val <> 'no')");
    m.sync_over(&m.dbs(), "tables => 'public.t', conflict_strategy => 'bucardo_source'");
    m.rest();
    m.changes(&[("A", "INSERT INTO t VALUES (1, 'x', 'A'), (3, 'y', 'no')"), ("B", "INSERT INTO t VALUES (2, 'x', 'B')")]);
    m.control().exec("SELECT bucardo.resume('s')");
    wait_until("the refusal to be told", || m.last_error().contains("db \"T\""));
    assert_eq!(m.on("B").one("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t"), "1A 3no");
    assert_eq!(m.count_conflicts("true"), 1, "{:?}", m.conflicts("public.t"));
    assert_eq!(m.control().number("SELECT count(*) FROM bucardo.doubt"), 0);
    m.on("T").exec("ALTER TABLE t DROP CONSTRAINT no");
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1A 3no");
}

//! Members that are away: a source that comes back with changes of its own, a source that is lost for ever. What was
//! written anywhere and reached anybody reaches everybody; conflicts are decided among all who contend, once.

use super::{Multi, Place, Plan};
use crate::cluster::Stop;
use crate::net::Capture;
use crate::wait::wait_until;

crate::for_both!(a_source_returns_after_long_with_changes_of_its_own);

const HELD: &str = "SELECT coalesce(sum(pg_relation_size(g)), 0) FROM bucardo.capture c, unnest(c.segments) g";
const T: &str = "CREATE TABLE t (id int PRIMARY KEY, val text)";

fn live(plan: Plan) -> Multi {
    let m = plan.place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m
}

/// Until those members hold the rows of A, with `away` left out.
fn others_equal(m: &Multi, away: &str) {
    let others: Vec<&str> = m.names().into_iter().filter(|name| *name != away && *name != "A").collect();
    m.wait_equal("t", &others);
}

fn a_source_returns_after_long_with_changes_of_its_own(capture: Capture) {
    let m = live(Plan::new(3).capture(capture));
    m.on("A").exec("INSERT INTO t SELECT g, 'start' FROM generate_series(1, 60) g");
    m.settle(&["t"]);
    // The last thing C writes before it is gone has reached nobody; what it missed meanwhile is much.
    m.rest();
    m.on("C").exec("UPDATE t SET val = 'C' WHERE id IN (1, 2, 3); INSERT INTO t VALUES (200, 'C'); DELETE FROM t WHERE id = 4");
    m.server_of("C").stop(Stop::Immediate);
    m.control().exec("SELECT bucardo.resume('s')");
    for round in 0..8 {
        m.on("A").exec(&format!(
            "UPDATE t SET val = 'A{round}' WHERE id % 8 = {round} AND id > 10; INSERT INTO t VALUES (100 + {round}, 'A')"
        ));
        m.on("B")
            .exec(&format!("UPDATE t SET val = 'B{round}' WHERE id = 100 + {round} - 1; DELETE FROM t WHERE id = 50 + {round}"));
        others_equal(&m, "C");
    }
    m.wait_state("stalled");
    assert!(m.last_error().contains('C'), "{}", m.last_error());
    // Contended: 1 (A later than C), 4 (deleted by C, then changed by B), 200 (inserted by both, A later).
    m.on("A").exec("UPDATE t SET val = 'A' WHERE id = 1; INSERT INTO t VALUES (200, 'A')");
    m.on("B").exec("UPDATE t SET val = 'B' WHERE id = 4");
    others_equal(&m, "C");
    m.control().exec("SELECT bucardo.purge()");
    m.server_of("C").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t WHERE id IN (1, 2, 3, 4, 200)", "1A 2C 3C 4B 200A");
    m.expect_everywhere("SELECT count(*) FROM t WHERE id BETWEEN 50 AND 57", "0");
    assert_eq!(m.count_conflicts(r#"rows ? 'C' AND (key->>'id')::int IN (1, 4, 200)"#), 3);
    assert_eq!(m.count_conflicts("rows ? 'C'"), 3, "only what both changed is a conflict");
    m.on("C").exec("INSERT INTO t VALUES (999, 'C is back')");
    m.settle(&["t"]);
    // A kick that came late has found nothing to do.
    m.wait_state("good|empty");
}

/// A is written to by others only. What it kept of their changes for C, which was away, goes when C has it.
#[test]
fn a_passive_source_keeps_nothing_for_who_is_back() {
    let m = live(Plan::new(3));
    m.on("B").exec("INSERT INTO t SELECT g, 'start' FROM generate_series(1, 20) g");
    m.settle(&["t"]);
    for change in ["UPDATE t SET val = 'B'; DELETE FROM t WHERE id = 1", "TRUNCATE t; INSERT INTO t VALUES (1, 'last')"] {
        m.server_of("C").stop(Stop::Fast);
        m.on("B").exec(change);
        m.wait_equal("t", &["A", "B"]);
        assert!(m.on("A").number(HELD) > 0, "A keeps nothing for C");
        m.server_of("C").launch();
        m.settle(&["t"]);
        m.kick();
        // A purge gives way to whoever reads just then.
        wait_until("A to keep nothing", || {
            m.control().exec("SELECT bucardo.purge(); SELECT bucardo.purge()");
            m.on("A").number(HELD) == 0
        });
        assert_eq!(m.on("A").number("SELECT count(*) FROM bucardo.capture_mark"), 0, "marks on A");
    }
    assert_eq!(m.kick(), "empty");
    m.on("C").exec("INSERT INTO t VALUES (2, 'C')");
    m.settle(&["t"]);
}

/// With one more member away nothing of that may be forgotten: B, whose changes they are, is lost.
#[test]
fn what_a_passive_source_keeps_goes_to_the_last_who_returns() {
    let m = live(Plan::new(3).targets(1));
    m.on("B").exec("INSERT INTO t SELECT g, 'start' FROM generate_series(1, 20) g");
    m.settle(&["t"]);
    m.server_of("C").stop(Stop::Fast);
    m.server_of("T").stop(Stop::Fast);
    m.on("B").exec("UPDATE t SET val = 'B'");
    m.wait_equal("t", &["A", "B"]);
    m.server_of("C").launch();
    m.wait_equal("t", &["A", "B", "C"]);
    m.control().exec("SELECT bucardo.kick('s', '80s'); SELECT bucardo.purge(); SELECT bucardo.purge()");
    m.server_of("B").stop(Stop::Immediate);
    m.server_of("T").launch();
    m.control().exec("SELECT bucardo.remove_db('B', force => true)");
    m.wait_equal("t", &["A", "C", "T"]);
    assert_eq!(m.on("T").number("SELECT count(*) FROM t WHERE val = 'B'"), 20);
}

/// C changed the row last, before it went away; the others have decided between themselves meanwhile.
#[test]
fn who_returns_contends_with_what_was_decided_without_it() {
    let m = live(Plan::new(3));
    m.on("A").exec("INSERT INTO t VALUES (1, 'start'), (2, 'start')");
    m.settle(&["t"]);
    m.rest();
    m.changes(&[("A", "UPDATE t SET val = 'A'"), ("B", "UPDATE t SET val = 'B'"), ("C", "UPDATE t SET val = 'C' WHERE id = 1")]);
    m.server_of("C").stop(Stop::Immediate);
    m.control().exec("SELECT bucardo.resume('s')");
    others_equal(&m, "C");
    assert_eq!(m.on("T").one("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t"), "1B 2B");
    m.server_of("C").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1C 2B");
    let late = r#"winner = 'C' AND key = '{"id": 1}' AND rows->'C'->>'val' = 'C' AND rows->'B'->>'val' = 'B'"#;
    assert_eq!(m.count_conflicts(late), 1);
    assert_eq!(m.count_conflicts(r#"winner = 'B' AND key = '{"id": 2}'"#), 1, "that one was decided once");
}

#[test]
fn a_target_that_is_away_gets_the_winners() {
    let m = live(Plan::new(2).targets(2));
    m.on("A").exec("INSERT INTO t SELECT g, 'start' FROM generate_series(1, 20) g");
    m.settle(&["t"]);
    m.server_of("T").stop(Stop::Fast);
    for round in 0..5 {
        m.control().exec("SELECT bucardo.pause('s')");
        m.changes(&[
            ("B", &format!("UPDATE t SET val = 'B{round}' WHERE id <= 10")),
            ("A", &format!("UPDATE t SET val = 'A{round}' WHERE id BETWEEN 6 AND 15")),
        ]);
        m.control().exec("SELECT bucardo.resume('s')");
        m.wait_equal("t", &["B", "U"]);
    }
    m.wait_state("stalled");
    let decided = m.count_conflicts("true");
    m.server_of("T").launch();
    m.settle(&["t"]);
    assert_eq!(m.count_conflicts("true"), decided, "what was decided is not decided again for who comes late");
    assert_eq!(m.on("T").one("SELECT string_agg(DISTINCT val, ' ' ORDER BY val) FROM t WHERE id <= 15"), "A4 B4");
}

/// The row that lost was there on the target before it went away: its removal waits for it.
#[test]
fn a_row_that_lost_by_a_unique_value_goes_from_who_was_away() {
    let m = Plan::new(2).targets(2).place(Place::Apart).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, val text)");
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.on("A").exec("INSERT INTO t VALUES (1, 'one', 'start'), (2, 'two', 'start'), (3, 'three', 'start')");
    m.settle(&["t"]);
    m.server_of("T").stop(Stop::Fast);
    m.control().exec("SELECT bucardo.pause('s')");
    m.changes(&[
        ("A", "UPDATE t SET u = 'new', val = 'A' WHERE id = 1"),
        ("B", "UPDATE t SET u = 'new', val = 'B' WHERE id = 2"),
    ]);
    m.control().exec("SELECT bucardo.resume('s')");
    m.wait_equal("t", &["B", "U"]);
    m.wait_state("stalled");
    m.server_of("T").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(concat_ws(' ', id, u, val), ', ' ORDER BY id) FROM t", "2 new B, 3 three start");
    assert_eq!(m.count_conflicts("true"), 1);
}

/// The row that lost takes along what refers to it, which nobody has changed: that too goes from who was away, from a source
/// as from a target.
#[test]
fn what_referred_to_a_row_that_lost_goes_from_who_was_away() {
    let m = Plan::new(3).targets(2).place(Place::Apart).start();
    m.everywhere(
        "CREATE TABLE parent (id int PRIMARY KEY, u text UNIQUE, val text); \
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent); \
         CREATE TABLE grandchild (id text PRIMARY KEY, child int REFERENCES child); \
         CREATE TABLE friend (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE SET NULL, val text)",
    );
    m.sync_over(&m.dbs(), "tables => 'public.parent,public.child,public.grandchild,public.friend'");
    m.on("A").exec(
        "INSERT INTO parent VALUES (1, 'one', 'start'), (2, 'two', 'start'); INSERT INTO child VALUES (10, 1), (20, 2); \
         INSERT INTO grandchild VALUES ('it''s', 10), ('another', 20); INSERT INTO friend VALUES (100, 1, 'of 1'), (200, 2, 'of 2')",
    );
    let tables = ["parent", "child", "grandchild", "friend"];
    m.settle(&tables);
    ["C", "T"].iter().for_each(|away| m.server_of(away).stop(Stop::Fast));
    m.rest();
    m.changes(&[
        ("A", "UPDATE parent SET u = 'new', val = 'A' WHERE id = 1"),
        ("B", "UPDATE parent SET u = 'new', val = 'B' WHERE id = 2"),
    ]);
    m.control().exec("SELECT bucardo.resume('s')");
    tables.iter().for_each(|table| m.wait_equal(table, &["B", "U"]));
    m.wait_sql("A", "the row that lost to be gone", "SELECT count(*) = 1 FROM parent");
    m.wait_state("stalled");
    ["C", "T"].iter().for_each(|back| m.server_of(back).launch());
    m.settle(&tables);
    m.expect_everywhere("SELECT string_agg(concat_ws(' ', id, u, val), ', ') FROM parent", "2 new B");
    m.expect_everywhere("SELECT string_agg(id::text, ' ') FROM child", "20");
    m.expect_everywhere("SELECT string_agg(id, ' ') FROM grandchild", "another");
    m.expect_everywhere(
        "SELECT string_agg(concat_ws(' ', id, parent, val), ', ' ORDER BY id) FROM friend",
        "100 of 1, 200 2 of 2",
    );
    assert_eq!(m.count_conflicts("true"), 4, "the parent, the child, its child, and the friend, once each");
}

/// The same for a target that takes part and fails: the sources commit without it.
#[test]
fn what_referred_to_a_row_that_lost_goes_from_a_target_that_failed() {
    let m = Plan::new(2).targets(2).start();
    m.everywhere(
        "CREATE TABLE parent (id int PRIMARY KEY, u text UNIQUE, val text); \
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent)",
    );
    m.sync_over(&m.dbs(), "tables => 'public.parent,public.child'");
    m.on("A")
        .exec("INSERT INTO parent VALUES (1, 'one', 'start'), (2, 'two', 'start'); INSERT INTO child VALUES (10, 1), (20, 2)");
    let tables = ["parent", "child"];
    m.settle(&tables);
    m.on("T").exec(
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$; \
         CREATE TRIGGER stop BEFORE DELETE ON child FOR EACH ROW EXECUTE FUNCTION stop(); ALTER TABLE child ENABLE ALWAYS TRIGGER stop",
    );
    m.control().exec("SELECT bucardo.pause('s')");
    m.changes(&[
        ("A", "UPDATE parent SET u = 'new', val = 'A' WHERE id = 1"),
        ("B", "UPDATE parent SET u = 'new', val = 'B' WHERE id = 2"),
    ]);
    m.control().exec("SELECT bucardo.resume('s')");
    m.wait_sql("U", "the child to be gone", "SELECT count(*) = 1 FROM child");
    m.on("T").exec("DROP TRIGGER stop ON child");
    m.settle(&tables);
    m.expect_everywhere("SELECT string_agg(id::text, ' ') FROM child", "20");
    assert_eq!(m.count_conflicts("true"), 2);
}

/// An application holds a row of one source for as long as it likes: the others go on among themselves.
#[test]
fn a_row_locked_on_one_source_holds_up_no_other() {
    let m = live(Plan::new(3).targets(1));
    m.on("A").exec("INSERT INTO t VALUES (1, 'start'), (2, 'start')");
    m.settle(&["t"]);
    let mut locker = m.on("C");
    locker.exec("BEGIN; SELECT FROM t WHERE id = 1 FOR UPDATE");
    m.on("A").exec("UPDATE t SET val = 'A' WHERE id = 1");
    m.on("B").exec("UPDATE t SET val = 'B' WHERE id = 2");
    others_equal(&m, "C");
    assert_eq!(m.on("T").one("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t"), "1A 2B");
    locker.exec("COMMIT");
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1A 2B");
}

/// A delivers to B while C and T are away, and never comes back: B has it for the others.
#[test]
fn what_a_lost_source_gave_to_some_reaches_the_rest() {
    let m = live(Plan::new(3));
    m.on("A").exec("INSERT INTO t SELECT g, 'start' FROM generate_series(1, 10) g");
    m.settle(&["t"]);
    for away in ["C", "T"] {
        m.server_of(away).stop(Stop::Immediate);
    }
    m.on("A").exec("UPDATE t SET val = 'last of A' WHERE id <= 5; DELETE FROM t WHERE id = 6; INSERT INTO t VALUES (100, 'last of A'); UPDATE t SET id = 107 WHERE id = 7");
    m.wait_equal("t", &["B"]);
    m.server_of("A").stop(Stop::Immediate);
    m.control().exec("SELECT bucardo.update_sync('s', dbs => 'B:source,C:source,T:target')");
    m.on("B").exec("UPDATE t SET val = 'B goes on' WHERE id = 1");
    for back in ["C", "T"] {
        m.server_of(back).launch();
    }
    m.wait_served();
    for name in ["B", "C", "T"] {
        m.wait_sql(
            name,
            "all that A gave to B",
            "SELECT coalesce(string_agg(id || val, ',' ORDER BY id), '') = \
            '1B goes on,2last of A,3last of A,4last of A,5last of A,8start,9start,10start,100last of A,107start' FROM t",
        );
    }
    m.on("C").exec("INSERT INTO t VALUES (300, 'C')");
    m.wait_sql("T", "the sync to go on without A", "SELECT count(*) = 1 FROM t WHERE id = 300");
    m.wait_state("good|empty");
    assert_eq!(m.control().one("SELECT bucardo.remove_db('A', force => true)"), "A");
}

/// The same, but one of the others has changed the row meanwhile: a conflict like any other.
#[test]
fn what_a_lost_source_gave_contends_with_what_others_wrote() {
    let m = live(Plan::new(3));
    m.on("A").exec("INSERT INTO t VALUES (1, 'start'), (2, 'start')");
    m.settle(&["t"]);
    m.rest();
    m.on("C").exec("UPDATE t SET val = 'C' WHERE id = 1");
    m.server_of("C").stop(Stop::Immediate);
    m.on("A").exec("UPDATE t SET val = 'A'");
    m.control().exec("SELECT bucardo.resume('s')");
    m.wait_equal("t", &["B", "T"]);
    m.server_of("A").stop(Stop::Immediate);
    m.control().exec("SELECT bucardo.update_sync('s', dbs => 'B:source,C:source,T:target')");
    m.server_of("C").launch();
    m.wait_served();
    for name in ["B", "C", "T"] {
        m.wait_sql(name, "the latest everywhere", "SELECT string_agg(id || val, ' ' ORDER BY id) = '1A 2A' FROM t");
    }
}

#[test]
fn all_sources_but_one_are_away_and_the_last_one_serves_the_target() {
    let m = live(Plan::new(3));
    m.on("A").exec("INSERT INTO t VALUES (1, 'start')");
    m.settle(&["t"]);
    ["A", "B"].iter().for_each(|name| m.server_of(name).stop(Stop::Fast));
    m.on("C").exec("UPDATE t SET val = 'C'; INSERT INTO t VALUES (2, 'C')");
    m.wait_sql("T", "what C wrote", "SELECT count(*) = 2 AND bool_and(val = 'C') FROM t");
    m.wait_state("stalled");
    assert!(m.last_error().contains('A') || m.last_error().contains('B'), "{}", m.last_error());
    ["A", "B"].iter().for_each(|name| m.server_of(name).launch());
    m.settle(&["t"]);
    assert_eq!(m.count_conflicts("true"), 0);
}

/// While A is away, B and C keep for it what they truncate for each other. That is no change of their own afterwards, by
/// which what B has already got from C would contend with what B has made of it.
#[test]
fn a_truncate_that_is_kept_for_who_is_away_is_none_of_its_keeper() {
    let m = Plan::new(3).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t', conflict_strategy => 'bucardo_target'");
    m.on("A").exec("INSERT INTO t VALUES (1, 'start')");
    m.settle(&["t"]);
    m.rest();
    m.server_of("A").stop(Stop::Immediate);
    m.changes(&[("B", "TRUNCATE t"), ("C", "TRUNCATE t; INSERT INTO t VALUES (5, 'C')")]);
    m.control().exec("SELECT bucardo.resume('s')");
    for member in ["B", "C", "T"] {
        m.wait_sql(member, "what C has written", "SELECT coalesce(string_agg(id || val, ' '), '') = '5C' FROM t");
    }
    m.control().exec("SELECT bucardo.pause('s')");
    m.on("B").exec("UPDATE t SET val = 'B'");
    m.server_of("A").launch();
    m.control().exec("SELECT bucardo.resume('s')");
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ') FROM t", "5B");
}

/// C had the row that lost before it went away, and what the row lost to clashes with it no more when C is back.
#[test]
fn a_row_that_lost_goes_from_a_source_that_had_it_before() {
    let m = Plan::new(3).place(Place::Apart).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, val text)");
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.wait_served();
    m.server_of("B").stop(Stop::Fast);
    m.on("A").exec("INSERT INTO t VALUES (2, 'x', 'A')");
    m.wait_equal("t", &["C", "T"]);
    m.control().exec("SELECT bucardo.pause('s')");
    m.server_of("C").stop(Stop::Fast);
    m.server_of("B").launch();
    m.on("B").exec("INSERT INTO t VALUES (1, 'x', 'B')");
    m.control().exec("SELECT bucardo.resume('s')");
    m.wait_sql("A", "the later row alone", "SELECT coalesce(string_agg(id || u, ' '), '') = '1x' FROM t");
    m.on("B").exec("UPDATE t SET u = 'y' WHERE id = 1");
    m.wait_sql("A", "what B wrote then", "SELECT u = 'y' FROM t");
    m.server_of("C").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(concat_ws(' ', id, u, val), ', ' ORDER BY id) FROM t", "1 y B");
    m.on("C").exec("INSERT INTO t VALUES (3, 'x', 'C')");
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(concat_ws(' ', id, u, val), ', ' ORDER BY id) FROM t", "1 y B, 3 x C");
    assert_eq!(m.count_conflicts("true"), 1, "{:?}", m.conflicts("public.t"));
}

/// A served the target, then B did, and only then they met, while the target was away. It had both rows, the loser's last;
/// nothing is pending towards it. And what a source writes when it knows the decision contends with nobody.
#[test]
fn what_was_decided_reaches_a_target_that_had_both_rows() {
    let m = Plan::new(2).place(Place::Apart).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t', conflict_strategy => 'bucardo_source'");
    m.on("A").exec("INSERT INTO t SELECT g, 'start' FROM generate_series(1, 3) g");
    m.settle(&["t"]);
    m.server_of("B").stop(Stop::Fast);
    m.on("A").exec("UPDATE t SET val = 'A'");
    m.wait_sql("T", "A's rows", "SELECT bool_and(val = 'A') FROM t");
    m.control().exec("SELECT bucardo.pause('s')");
    m.server_of("A").stop(Stop::Fast);
    m.server_of("B").launch();
    m.on("B").exec("UPDATE t SET val = 'B'");
    m.control().exec("SELECT bucardo.resume('s')");
    m.wait_sql("T", "B's rows", "SELECT bool_and(val = 'B') FROM t");
    m.server_of("T").stop(Stop::Fast);
    m.server_of("A").launch();
    m.wait_sql("B", "what A has won", "SELECT bool_and(val = 'A') FROM t");
    m.on("B").exec("UPDATE t SET val = 'B later' WHERE id = 2");
    m.wait_sql("A", "what B wrote then", "SELECT val = 'B later' FROM t WHERE id = 2");
    m.server_of("T").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1A 2B later 3A");
    assert_eq!(m.count_conflicts("true"), 3, "{:?}", m.conflicts("public.t"));
}

/// What was settled for a member that is away goes by keys that the table has no more.
#[test]
fn a_key_gets_another_form_while_lost_changes_wait() {
    let m = Plan::new(2)
        .place(Place::Apart)
        .start()
        .with("CREATE TABLE t (id int PRIMARY KEY, k int NOT NULL, val text)", "tables => 'public.t'");
    m.on("A").exec("INSERT INTO t SELECT g, g, 'start' FROM generate_series(1, 9) g");
    m.drain_equal(&["t"]);
    for key in ["(id, k)", "(val)"] {
        m.server_of("T").stop(Stop::Fast);
        m.changes(&[
            ("A", "UPDATE t SET val = 'A' || id WHERE id IN (1, 2)"),
            ("B", "UPDATE t SET val = 'B' || id WHERE id IN (1, 2)"),
        ]);
        m.kick();
        assert!(m.on("A").number("SELECT count(*) FROM bucardo.capture_settled") > 0, "nothing is settled for T");
        m.server_of("T").launch();
        m.everywhere("UPDATE t SET val = val || id WHERE val = 'start'");
        m.everywhere(&format!("ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY {key}"));
        m.changes(&[("A", "UPDATE t SET k = 100 + id WHERE id = 3"), ("B", "UPDATE t SET k = 200 + id WHERE id = 4")]);
        m.drain_equal(&["t"]);
        m.on("A").exec("INSERT INTO t VALUES (1000, 1, 'new ' || random())");
        m.drain_equal(&["t"]);
    }
    m.expect_everywhere("SELECT count(*) FROM t WHERE id IN (1, 2)", "2");
}

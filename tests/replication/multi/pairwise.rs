//! Who knows what by way of whom: a member has got through a third one what its author, who is away, has not served to it. Members
//! go and come one after the other, so that each change goes round by others; it must not meet itself again as a stranger, nor come
//! after what was written on it.

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

/// A has written a row and B has got it, while these were away; now A is away, too.
fn b_has_what_a_wrote(m: &Multi, away: &[&str]) {
    away.iter().for_each(|member| m.server_of(member).stop(Stop::Immediate));
    m.on("A").exec("INSERT INTO t VALUES (1, 1, 'A')");
    wait_val(m, "B", "A");
    m.server_of("A").stop(Stop::Immediate);
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
    forgotten(&m, &["A", "B", "C"]);
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
    forgotten(&m, &["A", "B", "C"]);
}

/// Who is back does not put its old row over what was written upon it by one that is away now, neither on a source nor on a target.
#[test]
fn who_is_back_does_not_write_over_what_was_written_upon_its_row() {
    let m = apart(3, 1, "bucardo_source");
    for member in ["C", "T"] {
        m.server_of(member).stop(Stop::Immediate);
    }
    m.on("A").exec("INSERT INTO t VALUES (1, 1, 'A'), (2, 1, 'A')");
    wait_val(&m, "B", "A");
    m.server_of("A").stop(Stop::Immediate);
    m.on("B").exec("UPDATE t SET val = 'B on A' WHERE id = 1; DELETE FROM t WHERE id = 2");
    for member in ["C", "T"] {
        m.server_of(member).launch();
    }
    for member in ["C", "T"] {
        wait_val(&m, member, "B on A");
    }
    m.server_of("B").stop(Stop::Immediate);
    m.server_of("A").launch();
    m.on("A").exec("INSERT INTO t VALUES (3, 3, 'A')");
    for member in ["C", "T"] {
        m.wait_sql(member, "a run of A", "SELECT EXISTS (SELECT FROM t WHERE id = 3)");
        assert_eq!(m.on(member).one("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t"), "1B on A 3A", "on {member}");
    }
    m.on("C").exec("UPDATE t SET n = 7 WHERE id = 1");
    m.wait_sql("A", "what C has written on that", "SELECT EXISTS (SELECT FROM t WHERE n = 7 AND val = 'B on A')");
    m.server_of("B").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val || n, ' ' ORDER BY id) FROM t", "1B on A7 3A3");
    assert_eq!(m.count_conflicts("true"), 0, "{:?}", m.conflicts("public.t"));
    forgotten(&m, &["A", "B", "C"]);
}

/// What is known goes on with the rows, from one to the next, as long as its author is away.
#[test]
fn what_was_heard_is_passed_on() {
    let m = apart(4, 0, "bucardo_source");
    b_has_what_a_wrote(&m, &["C", "D"]);
    for (from, to) in [("B", "C"), ("C", "D")] {
        m.server_of(to).launch();
        m.on(from).exec(&format!("UPDATE t SET val = '{from}'"));
        wait_val(&m, to, from);
        m.server_of(from).stop(Stop::Immediate);
    }
    m.on("D").exec("UPDATE t SET val = 'D'");
    m.server_of("A").launch();
    wait_val(&m, "A", "D");
    for member in ["C", "B"] {
        m.server_of(member).launch();
        wait_val(&m, member, "D");
    }
    m.settle(&["t"]);
    assert_eq!(m.count_conflicts("true"), 0, "{:?}", m.conflicts("public.t"));
    m.expect_everywhere("SELECT val FROM t", "D");
    forgotten(&m, &["A", "B", "C", "D"]);
}

/// Known is what the giver had got; what the author has written since contends.
#[test]
fn what_nobody_has_heard_contends() {
    let m = apart(3, 0, "bucardo_source");
    b_has_what_a_wrote(&m, &["C"]);
    m.on("B").exec("UPDATE t SET val = 'B on A'");
    m.server_of("C").launch();
    wait_val(&m, "C", "B on A");
    m.server_of("B").stop(Stop::Immediate);
    m.on("C").exec("UPDATE t SET val = 'C on B'");
    m.control().exec("SELECT bucardo.pause('s')");
    m.server_of("A").launch();
    m.on("A").exec("UPDATE t SET val = 'A anew'");
    m.control().exec("SELECT bucardo.resume('s')");
    wait_val(&m, "C", "A anew");
    m.server_of("B").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT val FROM t", "A anew");
    assert!(m.count_conflicts("winner = 'A'") > 0, "{:?}", m.conflicts("public.t"));
    forgotten(&m, &["A", "B", "C"]);
}

/// Of many changes those keys are noted that the giver has got from the one that is away.
#[test]
fn of_many_changes_what_was_kept_is_heard() {
    let m = apart(3, 0, "bucardo_source");
    m.on("B").exec("INSERT INTO t SELECT g, 0, 'old' FROM generate_series(1, 12000) g");
    m.settle(&["t"]);
    m.server_of("C").stop(Stop::Immediate);
    m.on("A").exec("UPDATE t SET val = 'A' WHERE id < 4");
    m.wait_sql("B", "A's rows", "SELECT count(*) = 3 FROM t WHERE val = 'A'");
    m.server_of("A").stop(Stop::Immediate);
    m.on("B").exec("UPDATE t SET n = 1 WHERE id > 1; UPDATE t SET val = 'B on A' WHERE id = 1");
    m.server_of("C").launch();
    m.wait_sql("C", "B's rows", "SELECT count(*) = 11999 FROM t WHERE n = 1");
    let heard = "SELECT string_agg(k ->> 0, ' ' ORDER BY k) FROM bucardo.capture_heard, jsonb_array_elements(keys) k";
    assert_eq!(m.on("C").one(heard), "1 2 3");
    m.server_of("B").stop(Stop::Immediate);
    m.on("C").exec("UPDATE t SET val = 'C on B' WHERE id = 1");
    m.server_of("A").launch();
    wait_val(&m, "A", "C on B");
    m.server_of("B").launch();
    m.settle(&["t"]);
    m.expect_everywhere(
        "SELECT string_agg(concat_ws(' ', val, rows, n), ', ' ORDER BY val) FROM (SELECT val, count(*) AS rows, sum(n) AS n FROM t GROUP BY val) x",
        "A 2 2, C on B 1 0, old 11997 11997",
    );
    assert_eq!(m.count_conflicts("true"), 0, "{:?}", m.conflicts("public.t"));
    forgotten(&m, &["A", "B", "C"]);
}

/// The giver's own change is older than that of the one that is away: who waits for the later one gets it from its author.
#[test]
fn what_was_not_written_upon_goes_to_who_waits_for_it() {
    let m = apart(3, 1, "bucardo_source");
    m.server_of("C").stop(Stop::Immediate);
    m.on("B").exec("INSERT INTO t VALUES (1, 1, 'B')");
    for member in ["A", "T"] {
        wait_val(&m, member, "B");
    }
    m.server_of("T").stop(Stop::Immediate);
    m.on("A").exec("UPDATE t SET val = 'A on B'");
    wait_val(&m, "B", "A on B");
    m.server_of("A").stop(Stop::Immediate);
    m.server_of("C").launch();
    wait_val(&m, "C", "A on B");
    for member in ["T", "A"] {
        m.server_of(member).launch();
    }
    m.settle(&["t"]);
    m.expect_everywhere("SELECT val FROM t", "A on B");
    forgotten(&m, &["A", "B", "C"]);
}

/// Who wins over the giver's older change has not won over the later one, upon which the giver has not written.
#[test]
fn who_has_won_over_an_older_change_contends_with_the_later_one() {
    let m = apart(3, 0, "bucardo_latest");
    m.server_of("C").stop(Stop::Immediate);
    m.on("B").exec("INSERT INTO t VALUES (1, 1, 'B')");
    wait_val(&m, "A", "B");
    m.control().exec("SELECT bucardo.pause('s')");
    m.server_of("C").launch();
    m.on("C").exec("INSERT INTO t VALUES (1, 1, 'C')");
    m.server_of("C").stop(Stop::Immediate);
    m.control().exec("SELECT bucardo.resume('s')");
    m.on("A").exec("UPDATE t SET val = 'A on B'");
    wait_val(&m, "B", "A on B");
    m.server_of("A").stop(Stop::Immediate);
    m.server_of("C").launch();
    wait_val(&m, "B", "C");
    m.server_of("A").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT val FROM t", "A on B");
    forgotten(&m, &["A", "B", "C"]);
}

/// Who has not got the later change gives an older row to who has not got either; who has the later one keeps it.
#[test]
fn an_older_row_does_not_go_to_who_has_a_later_one() {
    let m = apart(4, 0, "bucardo_source");
    m.server_of("C").stop(Stop::Immediate);
    m.on("B").exec("INSERT INTO t VALUES (1, 1, 'B')");
    for member in ["A", "D"] {
        wait_val(&m, member, "B");
    }
    m.server_of("B").stop(Stop::Immediate);
    m.on("A").exec("UPDATE t SET val = 'A on B'");
    wait_val(&m, "D", "A on B");
    m.server_of("A").stop(Stop::Immediate);
    for member in ["B", "C"] {
        m.server_of(member).launch();
    }
    m.wait_sql("C", "the row", "SELECT EXISTS (SELECT FROM t WHERE id = 1)");
    m.on("D").exec("UPDATE t SET n = 7");
    m.wait_sql("B", "what D has written", "SELECT EXISTS (SELECT FROM t WHERE n = 7)");
    m.server_of("A").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT val || n FROM t", "A on B7");
}

/// The same of more rows than are written one by one.
#[test]
fn of_many_rows_too_who_has_later_ones_keeps_them() {
    let m = apart(4, 0, "bucardo_source");
    m.server_of("C").stop(Stop::Immediate);
    m.on("B").exec("INSERT INTO t SELECT g, 1, 'B' FROM generate_series(1, 300) g");
    for member in ["A", "D"] {
        m.wait_sql(member, "B's rows", "SELECT count(*) = 300 FROM t");
    }
    m.server_of("B").stop(Stop::Immediate);
    m.on("A").exec("UPDATE t SET val = 'A on B' WHERE id > 10");
    m.wait_sql("D", "A's rows", "SELECT count(*) = 290 FROM t WHERE val = 'A on B'");
    m.server_of("A").stop(Stop::Immediate);
    for member in ["B", "C"] {
        m.server_of(member).launch();
    }
    m.wait_sql("C", "B's rows", "SELECT count(*) = 300 FROM t");
    m.on("D").exec("UPDATE t SET n = 7 WHERE id > 5");
    m.wait_sql("B", "what D has written", "SELECT count(*) = 295 FROM t WHERE n = 7");
    m.server_of("A").launch();
    m.settle(&["t"]);
    m.expect_everywhere(
        "SELECT string_agg(concat_ws(' ', val, n, rows), ', ' ORDER BY val, n) FROM (SELECT val, n, count(*) AS rows FROM t GROUP BY val, n) x",
        "A on B 7 290, B 1 5, B 7 5",
    );
    assert_eq!(m.count_conflicts("true"), 0, "{:?}", m.conflicts("public.t"));
    forgotten(&m, &["A", "B", "C", "D"]);
}

/// What was decided goes to all, also to who has been served the winner's change and has later rows of somebody else.
#[test]
fn what_has_won_goes_to_who_has_later_rows_too() {
    for rows in [2, 300] {
        let m = apart(4, 0, "bucardo_source");
        m.server_of("C").stop(Stop::Immediate);
        m.on("B").exec(&format!("INSERT INTO t SELECT g, 1, 'B' FROM generate_series(1, {rows}) g"));
        for member in ["A", "D"] {
            wait_val(&m, member, "B");
        }
        m.control().exec("SELECT bucardo.pause('s')");
        m.server_of("C").launch();
        m.on("C").exec("INSERT INTO t VALUES (1, 1, 'C')");
        m.server_of("C").stop(Stop::Immediate);
        m.server_of("B").stop(Stop::Immediate);
        m.control().exec("SELECT bucardo.resume('s')");
        m.on("A").exec("UPDATE t SET val = 'A on B' WHERE id = 2");
        m.wait_sql("D", "A's row", "SELECT EXISTS (SELECT FROM t WHERE val = 'A on B')");
        m.server_of("A").stop(Stop::Immediate);
        m.server_of("C").launch();
        wait_val(&m, "D", "C");
        m.server_of("B").launch();
        for member in ["C", "D"] {
            wait_val(&m, member, "B");
        }
        assert_eq!(m.on("D").one("SELECT val FROM t WHERE id = 2"), "A on B");
        m.on("D").exec("UPDATE t SET n = 7 WHERE id = 2");
        m.wait_sql("B", "what D has written", "SELECT EXISTS (SELECT FROM t WHERE n = 7)");
        m.server_of("A").launch();
        m.settle(&["t"]);
        m.expect_everywhere("SELECT string_agg(id || val || n, ' ' ORDER BY id) FROM t WHERE id < 3", "1B1 2A on B7");
        assert_eq!(m.on("A").number("SELECT count(*) FROM t"), rows);
        forgotten(&m, &["A", "B", "C", "D"]);
    }
}

/// Who is back gives its old row to who waits for it, and not to who has got what was written upon it.
#[test]
fn an_old_row_goes_only_to_who_waits_for_it() {
    let m = apart(4, 0, "bucardo_source");
    for member in ["B", "C"] {
        m.server_of(member).stop(Stop::Immediate);
    }
    m.on("A").exec("INSERT INTO t VALUES (1, 1, 'A')");
    wait_val(&m, "D", "A");
    m.server_of("A").stop(Stop::Immediate);
    m.on("D").exec("UPDATE t SET val = 'D on A'");
    m.server_of("C").launch();
    wait_val(&m, "C", "D on A");
    m.server_of("D").stop(Stop::Immediate);
    for member in ["A", "B"] {
        m.server_of(member).launch();
    }
    m.wait_sql("B", "the row", "SELECT EXISTS (SELECT FROM t)");
    m.on("C").exec("UPDATE t SET n = 7");
    m.wait_sql("B", "what C has written", "SELECT EXISTS (SELECT FROM t WHERE n = 7)");
    m.server_of("D").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT val || n FROM t", "D on A7");
    assert_eq!(m.count_conflicts("true"), 0, "{:?}", m.conflicts("public.t"));
    forgotten(&m, &["A", "B", "C", "D"]);
}

/// Of two that know each other's changes the one with the later row gives it to who waits for both. What is written upon it does not
/// contend with it when its author is back, whoever writes.
#[test]
fn who_has_the_later_row_gives_it() {
    for (rows, writer) in [(1, "D"), (300, "D"), (1, "B"), (1, "C")] {
        let m = apart(4, 0, "bucardo_source");
        m.server_of("C").stop(Stop::Immediate);
        m.on("B").exec(&format!("INSERT INTO t SELECT g, 1, 'B' FROM generate_series(1, {rows}) g"));
        wait_val(&m, "D", "B");
        m.on("D").exec("UPDATE t SET n = 2");
        for member in ["A", "B"] {
            m.wait_sql(member, "what D has written", "SELECT EXISTS (SELECT FROM t WHERE n = 2)");
        }
        m.server_of("B").stop(Stop::Immediate);
        m.on("A").exec("UPDATE t SET val = 'A on B' WHERE id = 1");
        wait_val(&m, "D", "A on B");
        m.server_of("A").stop(Stop::Immediate);
        for member in ["B", "C"] {
            m.server_of(member).launch();
        }
        m.wait_sql("C", "the rows", &format!("SELECT count(*) = {rows} FROM t"));
        assert_eq!(m.on("C").one("SELECT val || n FROM t WHERE id = 1"), "A on B2");
        if writer == "B" {
            wait_val(&m, "B", "A on B");
        }
        m.on(writer).exec("UPDATE t SET n = 7");
        for member in ["B", "C", "D"] {
            m.wait_sql(member, "what was written upon it", &format!("SELECT count(*) = {rows} FROM t WHERE n = 7"));
        }
        m.server_of("A").launch();
        m.settle(&["t"]);
        m.expect_everywhere("SELECT val || n FROM t WHERE id = 1", "A on B7");
        m.expect_everywhere("SELECT count(*) FROM t WHERE n = 7", &rows.to_string());
        assert_eq!(m.count_conflicts("true"), 0, "{:?}", m.conflicts("public.t"));
        forgotten(&m, &["A", "B", "C", "D"]);
    }
}

/// Who does not get a row has not heard of what it was written upon: what he writes contends with it.
#[test]
fn what_was_not_sent_is_not_heard() {
    let m = apart(5, 0, "bucardo_source");
    for member in ["D", "E"] {
        m.server_of(member).stop(Stop::Immediate);
    }
    m.on("B").exec("INSERT INTO t VALUES (1, 1, 'B')");
    for member in ["A", "C"] {
        wait_val(&m, member, "B");
    }
    m.on("C").exec("UPDATE t SET val = 'C on B'");
    for member in ["A", "B"] {
        wait_val(&m, member, "C on B");
    }
    m.server_of("C").stop(Stop::Immediate);
    m.on("A").exec("UPDATE t SET val = 'A on C'");
    wait_val(&m, "B", "A on C");
    for member in ["B", "A"] {
        m.server_of(member).stop(Stop::Immediate);
    }
    for member in ["D", "C"] {
        m.server_of(member).launch();
    }
    m.on("C").exec("INSERT INTO t VALUES (2, 2, 'C')");
    m.wait_sql("D", "C's rows", "SELECT count(*) = 2 FROM t");
    m.server_of("C").stop(Stop::Immediate);
    m.server_of("E").launch();
    m.on("D").exec("INSERT INTO t VALUES (3, 3, 'D')");
    m.wait_sql("E", "D's row", "SELECT EXISTS (SELECT FROM t WHERE id = 3)");
    m.server_of("B").launch();
    wait_val(&m, "E", "A on C");
    m.on("D").exec("UPDATE t SET n = 7 WHERE id = 1");
    m.wait_sql("E", "what D has written", "SELECT EXISTS (SELECT FROM t WHERE id = 1 AND n = 7)");
    for member in ["A", "C"] {
        m.server_of(member).launch();
    }
    m.settle(&["t"]);
    let val = m.on("D").one("SELECT val || n FROM t WHERE id = 1");
    m.expect_everywhere("SELECT val || n FROM t WHERE id = 1", &val);
    assert!(
        val == "A on C7" || m.count_conflicts("winner = 'A'") > 0 && val == "A on C1",
        "{val}: {:?}",
        m.conflicts("public.t")
    );
    forgotten(&m, &["A", "B", "C", "D", "E"]);
}

/// What is known already is not noted once more, however often a key changes while its author is away.
#[test]
fn what_is_known_is_noted_once() {
    let m = apart(4, 0, "bucardo_source");
    b_has_what_a_wrote(&m, &["C", "D"]);
    for member in ["C", "D"] {
        m.server_of(member).launch();
    }
    for round in 1..4 {
        m.on("B").exec(&format!("UPDATE t SET val = 'B{round}'"));
        for member in ["C", "D"] {
            wait_val(&m, member, &format!("B{round}"));
        }
    }
    m.server_of("B").stop(Stop::Immediate);
    for round in 1..6 {
        for (from, to) in [("C", "D"), ("D", "C")] {
            m.on(from).exec(&format!("UPDATE t SET val = '{from}{round}'"));
            wait_val(&m, to, &format!("{from}{round}"));
        }
    }
    for member in ["C", "D"] {
        assert_eq!(m.on(member).number("SELECT count(*) FROM bucardo.capture_heard"), 1, "on {member}");
    }
    for member in ["A", "B"] {
        m.server_of(member).launch();
    }
    m.settle(&["t"]);
    m.expect_everywhere("SELECT val FROM t", "D5");
    assert_eq!(m.count_conflicts("true"), 0, "{:?}", m.conflicts("public.t"));
    forgotten(&m, &["A", "B", "C", "D"]);
}

/// A target that was away when the author came back waits for his old row still: it does not go to all when it is back.
#[test]
fn an_old_row_does_not_come_with_who_was_away_longer() {
    let m = apart(3, 1, "bucardo_source");
    b_has_what_a_wrote(&m, &["C", "T"]);
    m.on("B").exec("UPDATE t SET val = 'B on A'");
    m.server_of("C").launch();
    wait_val(&m, "C", "B on A");
    m.server_of("B").stop(Stop::Immediate);
    m.server_of("A").launch();
    m.on("A").exec("INSERT INTO t VALUES (2, 2, 'A')");
    m.wait_sql("C", "a run of A", "SELECT EXISTS (SELECT FROM t WHERE id = 2)");
    m.server_of("T").launch();
    m.wait_sql("T", "a run of A", "SELECT EXISTS (SELECT FROM t WHERE id = 2)");
    assert_eq!(m.on("C").one("SELECT val FROM t WHERE id = 1"), "B on A");
    m.server_of("B").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT val FROM t WHERE id = 1", "B on A");
    assert_eq!(m.count_conflicts("true"), 0, "{:?}", m.conflicts("public.t"));
    forgotten(&m, &["A", "B", "C"]);
}

/// Nothing is noted any more where everybody has been served by everybody.
fn forgotten(m: &Multi, sources: &[&str]) {
    for source in sources {
        assert_eq!(m.on(source).number("SELECT count(*) FROM bucardo.capture_heard"), 0, "on {source}");
    }
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
    noted_for_t(&m, "B");
    m.server_of("B").stop(Stop::Immediate);
    m.server_of("A").launch();
    m.on("A").exec("INSERT INTO t VALUES (2, 2, 'A')");
    m.wait_sql("T", "a run of A alone", "SELECT EXISTS (SELECT FROM t WHERE id = 2)");
    noted_for_t(&m, "A");
    m.server_of("T").stop(Stop::Immediate);
    m.server_of("B").launch();
    wait_val(&m, "A", "B on A");
    m.server_of("T").launch();
    m.settle(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1B on A 2A");
}

/// Waits until a source has it on its disk that T was served all that it has written.
fn noted_for_t(m: &Multi, source: &str) {
    let noted = "SELECT bool_and(pg_visible_in_snapshot(t.xmin::text::xid8, s.served::pg_snapshot)) \
        FROM t, bucardo.capture_track s WHERE s.member = 'T'";
    m.wait_sql(source, "that T was served", noted);
    m.on(source).exec("CHECKPOINT");
}

//! Many conflicts among many more changes: right in every row, and counted right. How fast, the benchmarks say.

use super::Plan;
use crate::net::Capture;

crate::for_both!(a_storm, a_backlog_beyond_the_memory_of_a_kid);

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, val text)";

/// 20,000 disjoint updates on each of two sources, and 2,000 rows that both change.
fn a_storm(capture: Capture) {
    let m = Plan::new(2).capture(capture).start();
    m.everywhere(&format!("{T}; INSERT INTO t SELECT g, 'start' FROM generate_series(1, 42000) g"));
    m.sync("tables => 'public.t'");
    m.on("A").exec("UPDATE t SET val = 'A ' || id WHERE id <= 20000; UPDATE t SET val = 'A ' || id WHERE id > 40000");
    m.on("B").exec("UPDATE t SET val = 'B ' || id WHERE id > 20000");
    assert_eq!(m.kick(), "good");
    m.assert_equal("t");
    let shares = "SELECT concat_ws(' ', count(*) FILTER (WHERE val = 'A ' || id AND id <= 20000), count(*) FILTER (WHERE val = 'B ' || id AND id > 20000), \
                  count(*)) FROM t";
    m.expect_everywhere(shares, "20000 22000 42000");
    assert_eq!(m.counted(), 2000);
    assert_eq!(
        m.count_conflicts(
            "winner = 'B' AND rows->'A'->>'val' = 'A ' || (key->>'id') AND rows->'B'->>'val' = 'B ' || (key->>'id')"
        ),
        2000
    );
    assert_eq!(m.count_conflicts("true"), 2000);
    assert_eq!(m.kick(), "empty");
}

/// The same with so little memory that the contended keys cannot all be held: other ways through, the same end.
fn a_backlog_beyond_the_memory_of_a_kid(capture: Capture) {
    let m = Plan::new(3).capture(capture).settings("bucardo.kid_work_mem = '1MB'").start();
    m.everywhere(&format!("{T}; INSERT INTO t SELECT g, 'start' FROM generate_series(1, 60000) g"));
    m.sync("tables => 'public.t'");
    m.on("A").exec("UPDATE t SET val = 'A' || repeat('a', 100) WHERE id % 2 = 0");
    m.on("B").exec("UPDATE t SET val = 'B' || repeat('b', 100) WHERE id % 3 = 0");
    m.on("C").exec("DELETE FROM t WHERE id % 5 = 0");
    m.drain_equal(&["t"]);
    // 60,000 numbers: by two and three 10,000, by two and five 6,000, by three and five 4,000, by all 2,000.
    assert_eq!(m.count_conflicts("true"), 10_000 + 6_000 + 4_000 - 2 * 2_000);
    assert_eq!(m.count_conflicts("winner = 'C'"), 6_000 + 4_000 - 2_000);
    m.expect_everywhere(
        "SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE val LIKE 'B%'), count(*) FILTER (WHERE val = 'start')) FROM t",
        "48000 16000 16000",
    );
}

/// More decisions than are held at once, so that some are recorded before the run is through; then it fails.
#[test]
fn what_a_failed_run_has_recorded_of_a_storm_is_forgotten() {
    let settings = "bucardo.kid_work_mem = '1MB'\nbucardo.retry_min = '1h'\nbucardo.retry_max = '1h'";
    let m = Plan::new(2).settings(settings).start().with(T, "tables => 'public.t'");
    m.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 6000) g");
    m.on("B").exec("INSERT INTO t SELECT g, 'B' FROM generate_series(1, 6000) g");
    m.control().exec("SELECT bucardo.fault_set('kid.before_commit', 'error')");
    m.try_kick().expect_err("the run fails");
    assert_eq!(m.count_conflicts("true"), 0, "nothing of what was decided has happened");
    m.control().exec("SELECT bucardo.fault_clear(); SELECT bucardo.resume('s')");
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT count(*) FROM t WHERE val = 'B'", "6000");
    assert_eq!(m.count_conflicts("winner = 'B'"), 6000);
    assert_eq!(m.count_conflicts("true"), 6000);
    assert_eq!(m.counted(), 6000);
}

/// What a run has recorded that died before anybody was told to commit must be gone before the next one commits: from then on all
/// sources have a later run. That one's kid dies as well, right after.
#[test]
fn a_record_of_what_never_happened_does_not_outlive_the_next_run() {
    let m = Plan::new(2).settings("bucardo.kid_work_mem = '1MB'").start().with(T, "tables => 'public.t'");
    m.on("A").exec("INSERT INTO t SELECT g, 'A' FROM generate_series(1, 6000) g");
    m.on("B").exec("INSERT INTO t SELECT g, 'B' FROM generate_series(1, 6000) g");
    for point in ["kid.before_commit", "kid.after_commit"] {
        m.control().exec(&format!(
            "SELECT bucardo.fault_clear(); SELECT bucardo.fault_set('{point}', 'kill'); SELECT bucardo.resume('s')"
        ));
        let _died = m.try_kick();
        assert_eq!(m.control().number(&format!("SELECT least(bucardo.fault_hits('{point}'), 1)")), 1);
    }
    m.control().exec("SELECT bucardo.fault_clear(); SELECT bucardo.resume('s')");
    m.drain_equal(&["t"]);
    assert_eq!(m.count_conflicts("true"), 6000);
}

/// The kid dies before anybody has committed, and when one member has: each decision stands once, and holds.
#[test]
fn a_kid_dies_in_a_storm() {
    let m = Plan::new(2).start().with(T, "tables => 'public.t'");
    for (round, point) in ["kid.before_commit", "kid.between_commits"].iter().enumerate() {
        let (first, last) = (round * 5000 + 1, (round + 1) * 5000);
        m.on("A").exec(&format!("INSERT INTO t SELECT g, 'A' FROM generate_series({first}, {last}) g"));
        m.on("B").exec(&format!("INSERT INTO t SELECT g, 'B' FROM generate_series({first}, {last}) g"));
        m.control().exec(&format!("SELECT bucardo.fault_clear(); SELECT bucardo.fault_set('{point}', 'kill')"));
        let _died = m.try_kick();
        m.control().exec("SELECT bucardo.fault_clear(); SELECT bucardo.resume('s')");
        m.drain_equal(&["t"]);
        m.expect_everywhere("SELECT count(*) FROM t WHERE val = 'B'", &last.to_string());
        assert_eq!(m.count_conflicts("winner = 'B'"), last as i64, "after a death at {point}");
        assert_eq!(m.count_conflicts("true"), last as i64);
    }
}

/// The same where the strategy of another table stops the sync.
#[test]
fn a_stop_leaves_no_record_of_a_storm_elsewhere() {
    let m = Plan::new(2).start();
    m.everywhere(&format!("{T}; CREATE TABLE u (id int PRIMARY KEY, val text)"));
    m.sync("tables => 'public.t,public.u'");
    m.control().exec("SELECT bucardo.update_table('public.u', 's', conflict_strategy => 'bucardo_abort')");
    for name in ["A", "B"] {
        m.on(name).exec(&format!(
            "INSERT INTO t SELECT g, '{name}' FROM generate_series(1, 6000) g; INSERT INTO u VALUES (1, '{name}')"
        ));
    }
    m.try_kick().expect_err("a kick that ends in an abort raises");
    m.wait_state("paused");
    assert_eq!(m.count_conflicts("strategy <> 'bucardo_abort'"), 0);
    assert_eq!(m.count_conflicts("strategy = 'bucardo_abort'"), 1);
    m.control()
        .exec("SELECT bucardo.update_table('public.u', 's', conflict_strategy => 'bucardo_source'); SELECT bucardo.resume('s')");
    m.drain_equal(&["t", "u"]);
    assert_eq!(m.count_conflicts("winner = 'B'"), 6000);
    assert_eq!(m.count_conflicts("winner = 'A'"), 1);
}

/// A source wins that has changed none of the rows: all of them travel as it has them, or are deleted.
#[test]
fn the_named_winner_of_a_storm_has_changed_nothing() {
    let m = Plan::new(3).start();
    m.everywhere(&format!("{T}; INSERT INTO t SELECT g, 'start' FROM generate_series(1, 2000) g"));
    m.sync("tables => 'public.t', conflict_strategy => 'C'");
    for name in ["A", "B"] {
        m.on(name)
            .exec(&format!("UPDATE t SET val = '{name}'; INSERT INTO t SELECT g, '{name}' FROM generate_series(2001, 3500) g"));
    }
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE val = 'start')) FROM t", "2000 2000");
    assert_eq!(m.count_conflicts("winner = 'C'"), 3500);
}

/// Runs go by themselves while both sources change the same few rows as fast as they can.
#[test]
fn hot_rows_under_load_converge() {
    let m = Plan::new(3).start();
    m.everywhere(&format!("{T}; INSERT INTO t SELECT g, 'start' FROM generate_series(1, 20) g"));
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    std::thread::scope(|threads| {
        for name in &m.sources {
            let m = &m;
            threads.spawn(move || {
                let mut conn = m.on(name);
                for n in 0..1500 {
                    // A run that writes the same row may defeat the statement; an application would try again.
                    let _done = conn.try_query(&format!("UPDATE t SET val = '{name} {n}' WHERE id = {} % 20 + 1", n * 7));
                }
            });
        }
    });
    m.settle(&["t"]);
    // By now the last run that had something to do is in the history.
    m.kick();
    assert!(m.count_conflicts("true") > 0, "sources changed the same rows all the time, and nothing was a conflict");
    assert_eq!(m.count_conflicts("winner IS NULL"), 0);
    let summed = "SELECT (SELECT sum(conflicts) FROM bucardo.syncrun WHERE sync = 's' AND state = 'good') = (SELECT count(*) FROM bucardo.conflict)";
    assert_eq!(m.control().one(summed), "t", "syncrun.conflicts and bucardo.conflict do not agree");
}

/// pgbench's TPC-B in small, on two sources at once: history is merged, nothing of it is lost.
#[test]
fn two_banks_merge_their_history() {
    let m = Plan::new(2).start();
    m.everywhere(
        "CREATE TABLE accounts (aid int PRIMARY KEY, balance int); INSERT INTO accounts SELECT g, 0 FROM generate_series(1, 300) g; \
         CREATE TABLE tellers (tid int PRIMARY KEY, balance int); INSERT INTO tellers SELECT g, 0 FROM generate_series(1, 5) g; \
         CREATE TABLE history (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aid int, tid int, delta int)",
    );
    m.sync_over(&m.dbs(), "tables => 'public.accounts,public.tellers,public.history'");
    let booked: usize = std::thread::scope(|threads| {
        let client = |(n, name): (usize, &'static str)| {
            let m = &m;
            threads.spawn(move || {
                let mut conn = m.on(name);
                let book = |g: usize| {
                    let (aid, tid) = (g * (n + 3) % 300 + 1, g % 5 + 1);
                    format!(
                        "BEGIN; UPDATE accounts SET balance = balance + 1 WHERE aid = {aid}; UPDATE tellers SET balance = balance + 1 WHERE tid = {tid}; \
                         INSERT INTO history (aid, tid, delta) VALUES ({aid}, {tid}, 1); COMMIT"
                    )
                };
                (0..800)
                    .filter(|g| {
                        let done = conn.try_query(&book(*g)).is_ok();
                        if !done {
                            conn.exec("ROLLBACK");
                        }
                        done
                    })
                    .count()
            })
        };
        let clients: Vec<_> = ["A", "B", "A", "B"].into_iter().enumerate().map(client).collect();
        clients.into_iter().map(|c| c.join().unwrap()).sum()
    });
    m.settle(&["accounts", "tellers", "history"]);
    m.expect_everywhere("SELECT count(*) FROM history", &booked.to_string());
}

//! Whole tables where several sources have one to give, or where what a receiver has changed itself cannot stand beside it.

use super::{Multi, Plan};

const PARTS: &str = "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); \
     CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100); CREATE TABLE high PARTITION OF t FOR VALUES FROM (100) TO (200); \
     INSERT INTO t SELECT g, 'start' FROM generate_series(98, 102) g";
const ALL: &str = "SELECT coalesce(string_agg(id || v, ' ' ORDER BY id), '') FROM t";

fn away(m: &Multi, name: &str, away: bool) {
    let status = if away { "inactive" } else { "active" };
    m.control().exec(&format!("SELECT bucardo.update_db('{name}', status => '{status}')"));
}

/// A partition is emptied on B, and all rows of A are to be copied to the target.
#[test]
fn a_copy_and_a_partition_that_another_source_has_emptied() {
    for sources in [2, 3] {
        let m = Plan::new(sources).start().with(PARTS, "tables => 'public.t'");
        m.on("B").exec("TRUNCATE low");
        m.control().exec("SELECT bucardo.update_sync('s', onetimecopy => 1)");
        m.drain_equal(&["t"]);
        m.expect_everywhere(ALL, "100start 101start 102start");
    }
}

/// What a source has changed is still to go to one that was away; but who knew of it has emptied the partition since.
#[test]
fn a_partition_is_emptied_by_who_knew_what_another_one_had_changed() {
    let m = Plan::new(3).start().with(PARTS, "tables => 'public.t'");
    away(&m, "C", true);
    m.on("B").exec("UPDATE t SET v = 'B' WHERE id = 99");
    m.kick();
    away(&m, "B", true);
    m.on("A").exec("TRUNCATE low");
    m.kick();
    m.on("B").exec("INSERT INTO t VALUES (97, 'B')");
    m.control().exec("SELECT bucardo.update_db('B', status => 'active'), bucardo.update_db('C', status => 'active')");
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "97B 100start 101start 102start");
}

/// The copy that one source still owes to the target must not keep another one's from the first.
#[test]
fn partitions_that_two_sources_have_emptied_one_after_the_other() {
    let m = Plan::new(2).start().with(PARTS, "tables => 'public.t'");
    away(&m, "T", true);
    m.on("A").exec("TRUNCATE high");
    m.kick();
    m.on("B").exec("TRUNCATE low");
    away(&m, "T", false);
    m.drain_equal(&["t"]);
    m.expect_everywhere(ALL, "");
}

/// Both at the same time: all become equal, and what was written since is there.
#[test]
fn partitions_that_two_sources_have_emptied_at_the_same_time() {
    let m = Plan::new(3).start().with(PARTS, "tables => 'public.t'");
    m.changes(&[
        ("A", "TRUNCATE high"),
        ("B", "TRUNCATE low"),
        ("B", "INSERT INTO t VALUES (50, 'B')"),
        ("C", "UPDATE t SET v = 'C' WHERE id = 99"),
    ]);
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT string_agg(id || v, ' ' ORDER BY id) FROM t WHERE id IN (50, 99)", "50B 99C");
}

/// The rows of a table whose capture was made anew come to a source that has given a value of them to another row: the
/// strategy decides between the two, as far as it can without the time of the one.
#[test]
fn a_whole_table_comes_where_one_of_its_values_is_taken() {
    let deferred = "u text, UNIQUE (u) DEFERRABLE INITIALLY DEFERRED";
    for (columns, strategy, winner, loser, rows) in [
        ("u text UNIQUE", "bucardo_latest", "A", "B", "1x 3three 51y"),
        ("u text UNIQUE", "bucardo_target", "B", "A", "3three 50x 51y"),
        ("u text UNIQUE", "bucardo_skip", "A", "B", "1x 3three 51y"),
        (deferred, "bucardo_source", "A", "B", "1x 3three 51y"),
        (deferred, "B A", "B", "A", "3three 50x 51y"),
    ] {
        let arguments = format!("tables => 'public.t', conflict_strategy => '{strategy}'");
        let m = Plan::new(2).start().with(&format!("CREATE TABLE t (id int PRIMARY KEY, {columns})"), &arguments);
        m.on("A").exec("INSERT INTO t VALUES (3, 'three')");
        m.drain_equal(&["t"]);
        away(&m, "B", true);
        m.on("A").exec("INSERT INTO t VALUES (1, 'x')");
        m.on("B").exec("INSERT INTO t VALUES (50, 'x'), (51, 'y')");
        m.on("A").exec(
            "DO $$ BEGIN EXECUTE (SELECT format('DROP TRIGGER %I ON t', tgname) FROM pg_trigger \
             WHERE tgrelid = 't'::regclass AND tgname ~ '^bucardo_capture_i'); END $$",
        );
        m.control().exec("SELECT bucardo.update_sync('s', status => 'active')");
        away(&m, "B", false);
        m.drain_equal(&["t"]);
        m.expect_everywhere("SELECT string_agg(id || u, ' ' ORDER BY id) FROM t", rows);
        let lost = format!("winner = '{winner}' AND rows->'{loser}'->>'u' = 'x'");
        assert_eq!(m.count_conflicts(&lost), 1, "{strategy}: {:?}", m.conflicts("public.t"));
        assert_eq!(m.count_conflicts("true"), 1, "{strategy}: {:?}", m.conflicts("public.t"));
    }
}

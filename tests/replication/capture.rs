//! Every way in which a row of a captured table can change must leave its mark, and a change that was rolled back none.
//!
//! All scenarios run twice: with the extension on the source (native trigger) and without (plain SQL objects). The
//! application must notice nothing: no right needed, no `search_path` trusted, no statement refused.

use crate::net::{CONTROL, Capture, Net};
use crate::wait::wait_until;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

for_both!(statements, foreign_keys, partitions, truncated_new_partitions, row_movement, subtransactions, prepared, many_at_once);
for_both!(
    application_role,
    replica_role_and_own_triggers,
    rolled_back_with_the_session,
    first_writer_rolled_back,
    keys_of_few_rows,
    keys_of_many_rows,
    emptied_segments,
    serializable_writers,
    partitions_made_by_their_owner,
    everything_is_published,
    a_writer_that_does_not_get_the_segment,
    an_altered_key_is_marked_once,
    segments_are_heaps,
    no_statement_takes_a_transaction_id_of_its_own,
    altered_keys,
    a_dropped_domain_fails_no_statement,
    nothing_is_compiled,
    a_renamed_key_leaves_no_plan_for_one_row,
    a_locked_segment_that_is_not_in_use
);

fn statements(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    let mut a = net.on("A");
    for sql in [
        "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        "INSERT INTO t VALUES (3, 'd'), (4, 'd') ON CONFLICT (id) DO UPDATE SET v = excluded.v || '!'",
        "INSERT INTO t VALUES (4, 'nothing'), (5, 'five') ON CONFLICT DO NOTHING",
        "MERGE INTO t USING (VALUES (1, 'm'), (2, NULL), (9, 'i')) s (id, v) ON t.id = s.id \
         WHEN MATCHED AND s.v IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET v = s.v \
         WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v)",
        "WITH gone AS (DELETE FROM t WHERE id = 1 RETURNING *), new AS (INSERT INTO t SELECT 11, v FROM gone RETURNING *) \
         UPDATE t SET v = 'cte' WHERE id = 5",
        "INSERT INTO t SELECT g, 'many' FROM generate_series(100, 2100) g",
        "UPDATE t SET id = id + 10000 WHERE id BETWEEN 100 AND 1100",
        "UPDATE t SET v = NULL WHERE id > 11000; DELETE FROM t WHERE id % 7 = 0",
        "DO $$ BEGIN FOR i IN 50..60 LOOP INSERT INTO t VALUES (i, 'loop'); UPDATE t SET v = v || i WHERE id = i; END LOOP; END $$",
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM t WHERE id = 55 FOR UPDATE; FETCH c; \
         UPDATE t SET v = 'cursor' WHERE CURRENT OF c; COMMIT",
        "PREPARE p AS UPDATE t SET v = $2 WHERE id = $1; EXECUTE p(56, 'prepared'); EXECUTE p(57, 'twice')",
    ] {
        a.exec(sql);
        net.settle(&["t"]);
    }
    a.copy_in("COPY t (id, v) FROM STDIN", "70000\tcopied\n70001\t\\N\n");
    net.settle(&["t"]);
    a.exec("TRUNCATE t");
    net.settle(&["t"]);
    assert_eq!(net.on("B").number("SELECT count(*) FROM t"), 0);
}

/// Each row of a statement counts once, whatever their number and however keys of its type are kept; one of no row is none.
fn keys_of_few_rows(capture: Capture) {
    let net = Net::together(capture, 1);
    let tables = [("i", "int", "g"), ("w", "text", "'key ' || g"), ("m", "int[]", "ARRAY[g, g]")];
    for (table, kind, _) in tables {
        net.everywhere(&format!("CREATE TABLE {table} (id {kind} PRIMARY KEY, v int)"));
    }
    net.add_sync("tables => 'public.i, public.w, public.m', autokick => false");
    let mut a = net.on("A");
    for (table, _, key) in tables {
        for rows in 0..=3 {
            let moved = key.replace('g', "(g + 100)");
            for (sql, keys) in [
                (format!("INSERT INTO {table} SELECT {key}, 1 FROM generate_series(1, {rows}) g"), rows),
                (format!("UPDATE {table} SET v = v + 1"), rows),
                (format!("UPDATE {table} SET id = {moved} FROM generate_series(1, {rows}) g WHERE id = {key}"), 2 * rows),
                (format!("DELETE FROM {table}"), rows),
            ] {
                a.exec("BEGIN");
                a.exec(&sql);
                let numbered = a.one("SELECT pg_current_xact_id_if_assigned() IS NOT NULL");
                a.exec("COMMIT");
                assert_eq!((net.pending(), numbered == "t"), (keys, rows > 0), "{sql}");
                net.kick();
                net.assert_equal(table);
            }
        }
    }
}

/// An UPDATE of many rows takes the old keys along only where they are gone.
fn keys_of_many_rows(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere("CREATE DOMAIN part AS int CHECK (VALUE >= 0); CREATE TABLE t (d part, k int, v text, PRIMARY KEY (k, d))");
    net.add_sync("tables => 'public.t', autokick => false");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g % 3, g, 'start' FROM generate_series(1, 60) g");
    net.kick();
    for (sql, keys) in [
        ("UPDATE t SET v = 'x'", 60),
        ("UPDATE t SET v = v || 'y' WHERE k <= 30", 30),
        ("UPDATE t SET k = k + 1000 WHERE k % 2 = 0", 60),
        ("UPDATE t SET d = 2 - d, v = v || d WHERE k < 1000", 50),
        ("ALTER TABLE t ALTER k TYPE bigint; UPDATE t SET v = 'after'", 60),
    ] {
        a.exec(sql);
        // Of a key that is not what the segments hold, native capture keeps no single rows.
        if sql.starts_with("ALTER") {
            net.on("B").exec("ALTER TABLE t ALTER k TYPE bigint");
        } else {
            assert_eq!(net.pending(), keys, "{sql}");
        }
        net.kick();
        net.assert_equal("t");
    }
}

fn foreign_keys(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE parent (id int PRIMARY KEY); \
         CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE); \
         CREATE TABLE loose (id int PRIMARY KEY, p int DEFAULT 0 REFERENCES parent ON DELETE SET NULL ON UPDATE SET DEFAULT)",
    );
    net.add_sync("tables => 'public.child,public.parent,public.loose'");
    let mut a = net.on("A");
    a.exec("INSERT INTO parent SELECT generate_series(0, 20); INSERT INTO child SELECT id, id FROM parent; INSERT INTO loose SELECT id, id FROM parent");
    net.settle(&["parent", "child", "loose"]);
    a.exec("DELETE FROM parent WHERE id BETWEEN 1 AND 5");
    net.settle(&["parent", "child", "loose"]);
    a.exec("UPDATE parent SET id = id + 100 WHERE id > 10");
    net.settle(&["parent", "child", "loose"]);
    assert_eq!(net.on("B").number("SELECT count(*) FROM child WHERE p > 100"), 10);
    assert_eq!(net.on("B").one("SELECT count(*) || ' ' || count(p) FROM loose"), "21 16");
}

fn partitions(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE p (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region); \
         CREATE TABLE p_eu PARTITION OF p FOR VALUES IN ('eu'); \
         CREATE TABLE p_us PARTITION OF p FOR VALUES IN ('us') PARTITION BY RANGE (id); \
         CREATE TABLE p_us_1 PARTITION OF p_us FOR VALUES FROM (0) TO (100)",
    );
    net.add_sync("tables => 'public.p'");
    let mut a = net.on("A");
    a.exec("INSERT INTO p VALUES (1, 'eu', 'x'), (2, 'us', 'y')");
    a.exec("INSERT INTO p_eu VALUES (3, 'eu', 'leaf'); INSERT INTO p_us_1 VALUES (4, 'us', 'deep leaf')");
    net.settle(&["p"]);
    a.exec("UPDATE p_us_1 SET v = 'leaf changed'; DELETE FROM p_eu WHERE id = 1");
    net.settle(&["p"]);
    let more = "CREATE TABLE p_asia PARTITION OF p FOR VALUES IN ('asia'); CREATE TABLE p_old (LIKE p INCLUDING ALL)";
    net.everywhere(more);
    net.everywhere("ALTER TABLE p ATTACH PARTITION p_old FOR VALUES IN ('old')");
    a.exec("INSERT INTO p VALUES (7, 'asia', 'new'), (8, 'old', 'attached'); INSERT INTO p_asia VALUES (9, 'asia', 'l')");
    a.exec("INSERT INTO p_old VALUES (10, 'old', 'leaf'); UPDATE p_old SET v = 'leaf of its own' WHERE id = 10");
    net.settle(&["p"]);
    a.copy_in("COPY p FROM STDIN", "20\teu\tc\n21\tus\tc\n22\tasia\tc\n");
    net.settle(&["p"]);
    a.exec("TRUNCATE p_eu");
    net.settle(&["p"]);
    a.exec("TRUNCATE p");
    net.settle(&["p"]);
}

fn truncated_new_partitions(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1)",
    );
    net.add_sync("tables => 'public.p'");
    net.everywhere(
        "CREATE TABLE p_2 PARTITION OF p FOR VALUES IN (2); CREATE TABLE p_3 PARTITION OF p FOR VALUES IN (3) PARTITION BY RANGE (id); \
         CREATE TABLE p_3_1 PARTITION OF p_3 FOR VALUES FROM (0) TO (100); CREATE TABLE p_4 (LIKE p INCLUDING ALL)",
    );
    net.everywhere("ALTER TABLE p ATTACH PARTITION p_4 FOR VALUES IN (4)");
    let mut a = net.on("A");
    a.exec("INSERT INTO p SELECT g, 1 + g % 4 FROM generate_series(1, 40) g");
    net.settle(&["p"]);
    for (n, leaf) in ["p_2", "p_3", "p_4", "p_3_1", "p_2"].into_iter().enumerate() {
        a.exec(&format!("TRUNCATE {leaf}"));
        net.kick();
        net.assert_equal("p");
        a.exec(&format!("INSERT INTO p SELECT g, 1 + g % 4 FROM generate_series(41, {}) g ON CONFLICT DO NOTHING", 60 + n));
        net.settle(&["p"]);
    }
    // What was put on a partition does not stay when it has left the table.
    net.everywhere("ALTER TABLE p DETACH PARTITION p_2");
    net.control().exec("SELECT bucardo.remove_sync('s')");
    net.wait_sql("A", "the triggers to go", "SELECT NOT EXISTS (SELECT FROM pg_trigger WHERE tgname LIKE 'bucardo%')");
}

fn row_movement(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE p (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part); \
         CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p_2 PARTITION OF p FOR VALUES IN (2); \
         CREATE TABLE whole (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); \
         CREATE TABLE whole_1 PARTITION OF whole FOR VALUES FROM (0) TO (10); \
         CREATE TABLE whole_2 PARTITION OF whole FOR VALUES FROM (10) TO (100)",
    );
    net.add_sync("tables => 'public.p,public.whole'");
    let mut a = net.on("A");
    a.exec("INSERT INTO p SELECT g, 1, 'x' FROM generate_series(1, 9) g; INSERT INTO whole SELECT g, 'x' FROM generate_series(1, 9) g");
    net.settle(&["p", "whole"]);
    a.exec("UPDATE p SET part = 2, v = 'moved' WHERE id < 4; UPDATE whole SET id = id + 20 WHERE id > 6");
    net.settle(&["p", "whole"]);
    a.exec("UPDATE p SET part = 3 - part; UPDATE whole SET id = id - 20 WHERE id > 20");
    net.settle(&["p", "whole"]);
}

fn subtransactions(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 10) g");
    net.settle(&["t"]);
    a.exec(
        "BEGIN; UPDATE t SET v = 'kept' WHERE id = 1; SAVEPOINT s; UPDATE t SET v = 'undone' WHERE id = 2; DELETE FROM t WHERE id = 3; \
         ROLLBACK TO s; UPDATE t SET v = 'later' WHERE id = 4; SAVEPOINT r; INSERT INTO t VALUES (11, 'released'); RELEASE r; COMMIT",
    );
    net.settle(&["t"]);
    a.exec(
        "DO $$ BEGIN INSERT INTO t VALUES (20, 'outer'); \
           BEGIN INSERT INTO t VALUES (21, 'lost'); INSERT INTO t VALUES (1, 'duplicate'); \
           EXCEPTION WHEN unique_violation THEN INSERT INTO t VALUES (22, 'handler'); END; \
           BEGIN DELETE FROM t WHERE id = 5; RAISE EXCEPTION 'no'; EXCEPTION WHEN OTHERS THEN NULL; END; \
           UPDATE t SET v = 'end' WHERE id = 6; END $$",
    );
    net.settle(&["t"]);
    assert_eq!(net.on("B").one("SELECT string_agg(id::text, ',' ORDER BY id) FROM t WHERE id > 10"), "11,20,22");
    a.exec("BEGIN; DELETE FROM t; ROLLBACK");
    a.expect_error("INSERT INTO t VALUES (30, 'x'), (1, 'duplicate')", "23505");
    a.expect_error("BEGIN; INSERT INTO t VALUES (31, 'x'); SAVEPOINT s; SELECT 1/0; COMMIT", "22012");
    a.exec("ROLLBACK");
    net.kick();
    net.assert_equal("t");
    assert_eq!(net.pending(), 0, "a change rolled back counts as pending");
}

/// Whoever writes first into an empty segment says so, and may take it back.
fn first_writer_rolled_back(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    let mut a = net.on("A");
    for (id, script) in [
        "SAVEPOINT s; INSERT INTO t VALUES (-1, 'undone'); ROLLBACK TO s; INSERT INTO t VALUES ($, 'x')",
        "SAVEPOINT s; SAVEPOINT r; INSERT INTO t VALUES (-2, 'undone'); RELEASE r; INSERT INTO t VALUES (-3, 'undone'); \
         ROLLBACK TO s; INSERT INTO t VALUES ($, 'x')",
        "SAVEPOINT s; INSERT INTO t VALUES (-4, 'undone'); ROLLBACK TO s; SAVEPOINT r; INSERT INTO t VALUES ($, 'x'); RELEASE r",
    ]
    .iter()
    .enumerate()
    {
        a.exec("BEGIN; INSERT INTO t VALUES (-9, 'undone'); ROLLBACK");
        a.exec(&format!("BEGIN; {}; COMMIT", script.replace('$', &id.to_string())));
        net.settle(&["t"]);
        for _ in 0..3 {
            net.control().exec("SELECT bucardo.purge()");
        }
    }
    assert_eq!(net.on("B").number("SELECT count(*) FROM t"), 3);
    // Somebody else's write, which is not committed yet and never will be, is no reason to keep silent.
    let mut other = net.on("A");
    other.exec("BEGIN; INSERT INTO t VALUES (-5, 'undone')");
    a.exec("INSERT INTO t VALUES (10, 'x')");
    other.exec("ROLLBACK");
    net.settle(&["t"]);
    other.exec("INSERT INTO t VALUES (11, 'x')");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one("SELECT string_agg(id::text, ',' ORDER BY id) FROM t"), "0,1,2,10,11");
}

/// A session that has written into a segment writes into it again after it was emptied, also one whose snapshot is older.
fn emptied_segments(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    let (mut a, mut b) = (net.on("A"), net.on("A"));
    let mut id = 0;
    for _ in 0..4 {
        let mut old = net.on("A");
        old.exec("INSERT INTO t VALUES (1000, 'x') ON CONFLICT (id) DO UPDATE SET v = t.v || 'x'");
        old.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t");
        for _ in 0..4 {
            a.exec(&format!("INSERT INTO t VALUES ({id}, 'a')"));
            net.settle(&["t"]);
            net.control().exec("SELECT bucardo.purge()");
            b.exec(&format!("UPDATE t SET v = 'b' WHERE id = {id}"));
            net.settle(&["t"]);
            net.control().exec("SELECT bucardo.purge(); SELECT bucardo.purge()");
            id += 1;
        }
        old.exec(&format!("INSERT INTO t VALUES ({}, 'old'); COMMIT", 2000 + id));
        net.settle(&["t"]);
    }
    assert_eq!(net.on("B").number("SELECT count(*) FROM t"), 21);
}

/// Two transactions that are the first to write into a segment have read nothing of each other.
fn serializable_writers(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    for id in [1, 3] {
        let (mut a, mut b) = (net.on("A"), net.on("A"));
        for (conn, id) in [(&mut a, id), (&mut b, id + 1)] {
            conn.exec("BEGIN ISOLATION LEVEL SERIALIZABLE");
            conn.exec(&format!("INSERT INTO t VALUES ({id}, 'x')"));
        }
        a.exec("COMMIT");
        b.exec("COMMIT");
        net.settle(&["t"]);
        net.control().exec("SELECT bucardo.purge(); SELECT bucardo.purge()");
    }
    assert_eq!(net.on("B").number("SELECT count(*) FROM t"), 4);
}

/// A partition takes the row triggers of its parent over with the rights of who makes it; nobody else can name their function.
fn partitions_made_by_their_owner(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere("CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k)");
    net.add_sync("tables => 'public.p'");
    let mut a = net.on("A");
    a.exec("CREATE ROLE app LOGIN; GRANT ALL ON SCHEMA public TO app; ALTER TABLE p OWNER TO app");
    net.on("B").exec("CREATE TABLE p_all PARTITION OF p DEFAULT");
    let db = if capture == Capture::Native { CONTROL } else { "a" };
    let mut app = net.server_of("A").connect_as(db, "app");
    app.exec("CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p_2 (LIKE p INCLUDING ALL)");
    app.exec("ALTER TABLE p ATTACH PARTITION p_2 FOR VALUES IN (2); INSERT INTO p VALUES (1, 1), (2, 2)");
    net.settle(&["p"]);
    let called = "SELECT DISTINCT tgfoid::regproc FROM pg_trigger WHERE tgrelid = 'p_1'::regclass AND tgtype & 1 = 1";
    let called = a.one(called);
    app.expect_error(&format!("CREATE TRIGGER x AFTER INSERT ON p_1 FOR EACH ROW EXECUTE FUNCTION {called}()"), "42501");
    if capture == Capture::Plain {
        // Objects of an older version get the right as well.
        a.exec(&format!(
            "REVOKE ALL ON FUNCTION {called} FROM PUBLIC; \
             CREATE OR REPLACE FUNCTION bucardo.capture_version() RETURNS integer LANGUAGE sql AS 'SELECT 7'"
        ));
        net.control().exec("SELECT bucardo.update_sync('s', status => 'active')");
        app.exec("CREATE TABLE p_3 PARTITION OF p FOR VALUES IN (3); INSERT INTO p VALUES (3, 3)");
        net.settle(&["p"]);
    }
}

/// Who may see the schema, as everybody may that of a Bucardo 5, can make a trigger of the function that partitions need, but not
/// make it do anything with his own table.
#[test]
fn a_strangers_trigger_captures_nothing() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere(
        "CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE p_1 PARTITION OF p DEFAULT",
    );
    net.add_sync("tables => 'public.p', autokick => false");
    let mut a = net.on("A");
    a.exec("GRANT USAGE ON SCHEMA bucardo TO PUBLIC; CREATE ROLE stranger LOGIN; GRANT ALL ON SCHEMA public TO stranger");
    let called = a.one("SELECT tgfoid::regproc FROM pg_trigger WHERE tgrelid = 'p'::regclass AND tgtype & 1 = 1 LIMIT 1");
    let mut stranger = net.server_of("A").connect_as("a", "stranger");
    stranger.exec(&format!(
        "CREATE TABLE caught (who text); CREATE TYPE odd AS ENUM ('x'); \
         CREATE FUNCTION catch(odd) RETURNS int LANGUAGE sql AS $$ INSERT INTO caught VALUES (current_user); SELECT 1 $$; \
         CREATE CAST (odd AS int) WITH FUNCTION catch(odd) AS ASSIGNMENT; CREATE TABLE mine (id odd, k odd); \
         CREATE TRIGGER x AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION {called}(); INSERT INTO mine VALUES ('x', 'x')"
    ));
    assert_eq!(stranger.number("SELECT count(*) FROM caught"), 0, "the stranger's function was called with other rights");
    assert_eq!(net.pending(), 0);
    // Of tables that only inherit nobody takes triggers over.
    a.exec("CREATE TABLE i (id int PRIMARY KEY); CREATE TABLE i_1 () INHERITS (i)");
    net.on("B").exec("CREATE TABLE i (id int PRIMARY KEY)");
    net.control().exec("SELECT bucardo.add_table('public.i', 's')");
    let called = a.one("SELECT tgfoid::regproc FROM pg_trigger WHERE tgrelid = 'i'::regclass AND tgtype & 1 = 1 LIMIT 1");
    let trigger = format!("CREATE TRIGGER y AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION {called}()");
    stranger.expect_error(&trigger, "42501");
    // An old grant does not help him either.
    a.exec(&format!("GRANT EXECUTE ON FUNCTION {called}() TO PUBLIC"));
    stranger.exec(&format!("DROP TRIGGER x ON mine; {trigger}; INSERT INTO mine VALUES ('x', 'x')"));
    assert_eq!(stranger.number("SELECT count(*) FROM caught"), 0, "the stranger's function was called with other rights");
}

/// Whoever owns a captured table may give its key a type of his own: no cast and no operator of his is called with other rights.
#[test]
fn an_owners_cast_is_not_called() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere(
        "CREATE DOMAIN part AS int; CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE d (id part PRIMARY KEY); \
         CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE p_1 PARTITION OF p DEFAULT",
    );
    net.add_sync("tables => 'public.t, public.d, public.p', autokick => false");
    let mut a = net.on("A");
    a.exec("CREATE ROLE owner LOGIN; GRANT ALL ON SCHEMA public TO owner; ALTER DOMAIN part OWNER TO owner");
    a.exec("ALTER TABLE t OWNER TO owner; ALTER TABLE d OWNER TO owner; ALTER TABLE p OWNER TO owner; ALTER TABLE p_1 OWNER TO owner");
    let mut owner = net.server_of("A").connect_as("a", "owner");
    owner.exec(
        "CREATE TABLE caught (who text); CREATE TYPE odd AS (i int); \
         CREATE FUNCTION catch(odd) RETURNS int LANGUAGE sql AS $$ INSERT INTO caught VALUES (current_user); SELECT 1 $$; \
         CREATE CAST (odd AS int) WITH FUNCTION catch(odd) AS IMPLICIT; \
         CREATE FUNCTION catch(part[]) RETURNS int[] LANGUAGE sql AS $$ INSERT INTO caught VALUES (current_user); SELECT '{1}'::int[] $$; \
         CREATE CAST (part[] AS int[]) WITH FUNCTION catch(part[]) AS IMPLICIT",
    );
    owner.exec("INSERT INTO d VALUES (1), (2); UPDATE d SET id = id + 10; DELETE FROM d");
    // What is constant in a function in SQL is called while a statement is planned.
    owner.exec(
        "CREATE FUNCTION now_and_then(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN INSERT INTO caught VALUES (current_user); RETURN 1; END $$; \
         CREATE FUNCTION fold(odd) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT now_and_then(1)'; DROP CAST (odd AS int); \
         CREATE CAST (odd AS int) WITH FUNCTION fold(odd) AS IMPLICIT; ALTER TABLE d ALTER id TYPE odd USING row(id)::odd",
    );
    owner.exec("INSERT INTO d VALUES (row(1)); UPDATE d SET id = row(2); DELETE FROM d");
    owner.exec("DROP CAST (odd AS int); CREATE CAST (odd AS int) WITH FUNCTION catch(odd) AS IMPLICIT");
    for table in ["t", "p"] {
        owner.exec(&format!("ALTER TABLE {table} ALTER id TYPE odd USING row(id)::odd"));
        let more = if table == "p" { ", 1" } else { "" };
        owner.exec(&format!(
            "INSERT INTO {table} VALUES (row(1){more}); INSERT INTO {table} VALUES (row(2){more}), (row(3){more})"
        ));
        owner.exec(&format!("UPDATE {table} SET id = row(7) WHERE (id).i = 1; DELETE FROM {table}"));
    }
    assert_eq!(owner.one("SELECT coalesce(string_agg(who, ','), '') FROM caught"), "", "called with the rights of");
    assert_eq!(a.number("SELECT count(DISTINCT relid) FROM bucardo.capture_mark WHERE kind = 'whole'"), 3, "marked tables");
}

/// Segments that somebody dropped, or left out when he restored a dump, fail no statement: neither of a session that has
/// written into them before, nor of another.
#[test]
fn dropped_segments_fail_no_statement() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere(T);
    net.add_sync("tables => 'public.t', autokick => false");
    let (mut a, mut old) = (net.on("A"), net.on("A"));
    old.exec("INSERT INTO t VALUES (1, 'x'); UPDATE t SET v = 'y'; INSERT INTO t VALUES (2, 'x'), (3, 'x')");
    let segments = a.one("SELECT string_agg(g::regclass::text, ', ') FROM bucardo.capture c, unnest(c.segments) g");
    a.exec(&format!("DROP TABLE {segments}"));
    for conn in [&mut old, &mut a] {
        conn.exec(
            "UPDATE t SET v = 'z' WHERE id = 1; UPDATE t SET v = 'z'; INSERT INTO t VALUES (4, 'x'); DELETE FROM t WHERE id = 4",
        );
    }
    assert!(a.number("SELECT count(*) FROM bucardo.capture_mark WHERE kind = 'whole'") > 0, "the table is not marked");
    // Neither do they keep a newer version from being installed, nor does capture stay so.
    a.exec("CREATE OR REPLACE FUNCTION bucardo.capture_version() RETURNS integer LANGUAGE sql AS 'SELECT 7'");
    net.control().exec("SELECT bucardo.update_sync('s', status => 'active')");
    old.exec("INSERT INTO t VALUES (5, 'x')");
    net.kick();
    net.assert_equal("t");
    assert_eq!(
        a.number("SELECT count(*) FROM bucardo.capture c, unnest(c.segments) g JOIN pg_class s ON s.oid = g"),
        3,
        "segments"
    );
}

/// From 64 subtransactions with an id on, snapshots of all other sessions become slow.
fn no_statement_takes_a_transaction_id_of_its_own(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TYPE hue AS ENUM ('red', 'blue'); CREATE DOMAIN part AS numeric(10, 2) CHECK (VALUE >= 0); \
         CREATE TABLE t (id part, k varchar(5), c \"char\", h hue, \"100%\" int[], PRIMARY KEY (id, k, c, h, \"100%\")); \
         CREATE TABLE n (id int PRIMARY KEY, v text); \
         CREATE TABLE p (id part PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p_1 PARTITION OF p DEFAULT",
    );
    net.add_sync("tables => 'public.t, public.n, public.p', autokick => false");
    let mut a = net.on("A");
    a.exec("BEGIN; INSERT INTO t VALUES (1, 'a', 'x', 'red', '{1,2}'); UPDATE t SET k = 'b'; UPDATE t SET k = k; DELETE FROM t WHERE id = 2");
    a.exec("INSERT INTO t VALUES (3, 'c', 'y', 'red', '{1}'), (4, 'd', 'z', 'blue', '{}'), (5, 'e', 'z', 'blue', '{}')");
    a.exec("UPDATE t SET h = 'blue' WHERE id > 2; UPDATE t SET id = id WHERE id > 2; DELETE FROM t WHERE id < 5");
    a.exec("INSERT INTO n SELECT g FROM generate_series(1, 20) g; UPDATE n SET id = id + 100 WHERE id < 10; UPDATE n SET v = 'x'; DELETE FROM n WHERE id > 100");
    a.exec("INSERT INTO p VALUES (1), (2); UPDATE p SET id = id + 10; DELETE FROM p WHERE id = 11; COMMIT");
    let parts = a.one(
        "SELECT string_agg(format('SELECT xmin::text::bigint <> xid AS sub FROM %s', g::regclass), ' UNION ALL ') FROM bucardo.capture c, unnest(c.segments) g",
    );
    let deltas = a.one(&format!("SELECT count(*) || ' ' || count(*) FILTER (WHERE sub) FROM ({parts}) d"));
    assert!(deltas.ends_with(" 0") && deltas != "0 0", "deltas, and those with an id of their own: {deltas}");
    assert_eq!(a.number("SELECT count(*) FROM bucardo.capture_mark"), 0, "a table is marked");
    net.kick();
    net.assert_equal("t");
    net.assert_equal("n");
    net.assert_equal("p");
}

/// A session has captured keys of a domain, and the domain is gone before capture is made anew.
fn a_dropped_domain_fails_no_statement(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE DOMAIN part AS int; CREATE TABLE d (id part PRIMARY KEY, v int); \
         CREATE TABLE p (id part, v int, PRIMARY KEY (id, v)) PARTITION BY RANGE (v); CREATE TABLE p_1 PARTITION OF p DEFAULT",
    );
    net.add_sync("tables => 'public.d, public.p', autokick => false");
    let mut a = net.on("A");
    a.exec("INSERT INTO d VALUES (1, 1), (2, 2); UPDATE d SET v = 5 WHERE id = 1; INSERT INTO p VALUES (1, 1), (2, 2); UPDATE p SET v = 5 WHERE id = 1");
    net.kick();
    let drop = "ALTER TABLE d ALTER id TYPE int; ALTER TABLE p ALTER id TYPE int; DROP DOMAIN part";
    a.exec(drop);
    for table in ["d", "p"] {
        a.exec(&format!(
            "INSERT INTO {table} VALUES (3, 3); UPDATE {table} SET v = v + 1 WHERE id = 1; DELETE FROM {table} WHERE id = 2"
        ));
    }
    net.on("B").exec(drop);
    net.kick();
    net.assert_equal("d");
    net.assert_equal("p");
}

/// What is altered before capture is made anew fails no statement, and is not lost.
fn altered_keys(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE l (id varchar(3) PRIMARY KEY, n numeric(4, 1)); CREATE TABLE r (id int PRIMARY KEY); CREATE TABLE z (id int PRIMARY KEY, v int); \
         CREATE TABLE p (id varchar(3), k int DEFAULT 1, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE p_1 PARTITION OF p DEFAULT",
    );
    net.add_sync("tables => 'public.l, public.r, public.z, public.p', autokick => false");
    let mut a = net.on("A");
    for table in ["l", "p"] {
        a.exec(&format!("INSERT INTO {table} (id) VALUES ('a'), ('b'), ('c')"));
    }
    a.exec("INSERT INTO r VALUES (1), (2); INSERT INTO z VALUES (1, 1), (2, 2)");
    net.kick();
    net.assert_equal("l");
    net.assert_equal("r");
    net.assert_equal("z");
    net.assert_equal("p");
    net.everywhere(
        "ALTER TABLE l ALTER id TYPE varchar(9); ALTER TABLE p ALTER id TYPE varchar(9); ALTER TABLE r RENAME id TO key",
    );
    for table in ["l", "p"] {
        a.exec(&format!(
            "INSERT INTO {table} (id) VALUES ('a longer'), ('b longer'); UPDATE {table} SET id = 'c longer' WHERE id = 'c'"
        ));
        a.exec(&format!("INSERT INTO {table} (id) VALUES ('d longer'); DELETE FROM {table} WHERE id = 'a'"));
    }
    a.exec("UPDATE r SET key = 7 WHERE key = 1; INSERT INTO r VALUES (3), (4); DELETE FROM r WHERE key = 2");
    // A key that is null for a moment.
    a.exec("ALTER TABLE z DROP CONSTRAINT z_pkey, ALTER id DROP NOT NULL; UPDATE z SET id = NULL WHERE v = 1; INSERT INTO z VALUES (NULL, 3)");
    a.exec("UPDATE z SET id = v + 10 WHERE id IS NULL; ALTER TABLE z ADD PRIMARY KEY (id)");
    net.kick();
    net.assert_equal("l");
    net.assert_equal("r");
    net.assert_equal("z");
    net.assert_equal("p");
}

/// Whoever wants his own functions in PL/pgSQL checked, gets no errors of ours.
/// A session keeps the plans of capture's statements from its first statement on. One of many rows must not leave it plans that
/// later ones, of one row too, have compiled each time anew: that takes tens of milliseconds.
fn nothing_is_compiled(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 20000) g");
    a.exec("SET jit = on; SET jit_above_cost = 10000");
    for sql in [
        "UPDATE t SET v = 'w'",
        "UPDATE t SET v = 'x' WHERE id = 1",
        "DELETE FROM t",
        "INSERT INTO t SELECT g FROM generate_series(1, 200) g",
    ] {
        a.exec(sql);
        let compiler = a.number("SELECT position('llvmjit' IN pg_read_file('/proc/self/maps', 0, 10000000))");
        assert_eq!(compiler, 0, "loaded by {sql}");
    }
}

/// How many rows there are is known to a kept plan from the first statement of a session. One for a single row must not join
/// the transition tables of all later ones.
fn a_renamed_key_leaves_no_plan_for_one_row(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere("CREATE TABLE w (id text PRIMARY KEY, v int); CREATE TABLE i (id int PRIMARY KEY, v int)");
    net.add_sync("tables => 'public.w, public.i'");
    let mut a = net.on("A");
    a.exec("INSERT INTO w SELECT g, 1 FROM generate_series(1, 500) g; INSERT INTO i SELECT g, 1 FROM generate_series(1, 500) g");
    a.exec("UPDATE w SET id = 'x' WHERE id = '1'; UPDATE i SET id = 1000 WHERE id = 1");
    a.exec("LOAD 'auto_explain'; SET auto_explain.log_nested_statements = on; SET auto_explain.log_min_duration = 0");
    a.exec("UPDATE w SET v = 2; UPDATE i SET id = id + 2000");
    let log = net.server_of("A").log();
    assert!(log.contains("UPDATE i SET id = id + 2000"), "{log}");
    assert!(!log.contains("Nested Loop Anti Join"), "{log}");
    net.settle(&["w", "i"]);
}

/// A purge that waits for who reads a segment keeps others out of it meanwhile, but no writer: he has another one.
fn a_locked_segment_that_is_not_in_use(capture: Capture) {
    let net = Net::together_with(capture, 1, "bucardo.purge_interval = '1h'").with_table(T, "public.t");
    let mut holder = net.on("A");
    let idle = holder.one("SELECT string_agg(g::regclass::text, ', ') FROM bucardo.capture c, unnest(c.segments[2:3]) g");
    holder.exec(&format!("BEGIN; LOCK TABLE {idle} IN ACCESS EXCLUSIVE MODE"));
    let mut a = net.on("A");
    a.exec("SET lock_timeout = '1s'");
    a.exec("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 5) g; INSERT INTO t VALUES (6)");
    a.exec(
        "UPDATE t SET v = 'w' WHERE id = 1; UPDATE t SET v = 'w'; UPDATE t SET id = 7 WHERE id = 6; DELETE FROM t WHERE id = 2",
    );
    holder.exec("COMMIT");
    net.settle(&["t"]);
}

#[test]
fn extra_errors() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p_1 PARTITION OF p DEFAULT");
    net.on("A").exec("ALTER DATABASE a SET plpgsql.extra_errors = 'all'");
    net.add_sync("tables => 'public.t, public.p', autokick => false");
    let mut a = net.on("A");
    for table in ["t", "p"] {
        a.exec(&format!(
            "INSERT INTO {table} (id) VALUES (1); INSERT INTO {table} (id) VALUES (2), (3); UPDATE {table} SET id = id + 10"
        ));
        a.exec(&format!(
            "UPDATE {table} SET id = 20 WHERE id = 11; DELETE FROM {table} WHERE id = 12; DELETE FROM {table} WHERE id = 12"
        ));
    }
    assert_eq!(a.number("SELECT count(*) FROM bucardo.capture_mark"), 0, "a table is marked");
    net.kick();
    net.assert_equal("t");
    net.assert_equal("p");
    a.exec("TRUNCATE t, p");
    net.kick();
    net.assert_equal("t");
    net.assert_equal("p");
}

/// What an older version has made on a source is brought up to date, also where the key has been altered meanwhile.
#[test]
fn older_objects() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere("CREATE TABLE t (id varchar(3) COLLATE \"C\" PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
    net.add_sync("tables => 'public.t, public.u', autokick => false");
    let mut a = net.on("A");
    let lengths =
        "SELECT count(*) FROM bucardo.capture c JOIN pg_attribute a ON a.attrelid = ANY (c.segments) WHERE a.atttypmod >= 0";
    let older = a.one(
        "SELECT string_agg(format('ALTER TABLE %s ALTER k1 TYPE varchar(3) COLLATE \"C\", ALTER ks1 TYPE varchar(3)[] COLLATE \"C\"', g::regclass), '; ') \
           FROM bucardo.capture c, unnest(c.segments) g WHERE c.relname = 't'",
    );
    a.exec(&format!("{older}; CREATE OR REPLACE FUNCTION bucardo.capture_version() RETURNS integer LANGUAGE sql AS 'SELECT 7'"));
    assert_eq!(a.number(lengths), 6);
    a.exec("INSERT INTO t VALUES ('a'), ('b'); INSERT INTO u VALUES (1), (2)");
    net.everywhere("ALTER TABLE u ALTER id TYPE bigint");
    net.control().exec("SELECT bucardo.update_sync('s', status => 'active')");
    net.everywhere("ALTER TABLE t ALTER id TYPE varchar(9)");
    a.exec("INSERT INTO t VALUES ('longer'); INSERT INTO u VALUES (3); UPDATE u SET id = 30 WHERE id = 3");
    net.kick();
    net.assert_equal("t");
    net.assert_equal("u");
}

/// A publication that publishes deletes refuses them on tables without a replica identity, also on ours.
fn everything_is_published(capture: Capture) {
    let net = Net::together_with(capture, 1, "bucardo.purge_interval = '1h'").with_table(T, "public.t");
    let mut a = net.on("A");
    a.exec("CREATE PUBLICATION p FOR ALL TABLES");
    net.everywhere("CREATE TABLE other (id int PRIMARY KEY)");
    let told = net.control().try_query("SELECT bucardo.add_table('public.other', 's')").unwrap().notices;
    assert!(told.iter().any(|n| n.message.contains("publishes all tables (p)")), "no warning that p publishes everything");
    a.exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 100) g; TRUNCATE t; INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    let held = "SELECT coalesce(sum(pg_relation_size(g)), 0) FROM bucardo.capture c, unnest(c.segments) g";
    assert!(a.number(held) > 0, "nothing was captured");
    wait_until("all to be purged", || {
        net.control().exec("SELECT bucardo.purge(); SELECT bucardo.purge()");
        a.number(held) == 0
    });
    net.control().exec("SELECT bucardo.remove_sync('s')");
}

/// An error while a key is written down is the application's like any other; the server goes on.
fn a_writer_that_does_not_get_the_segment(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    let (mut a, mut other) = (net.on("A"), net.on("A"));
    a.exec("INSERT INTO t VALUES (1, 'x'), (2, 'x')");
    net.settle(&["t"]);
    let segments = a.one("SELECT string_agg(g::regclass::text, ', ') FROM bucardo.capture c, unnest(c.segments) g");
    other.exec(&format!("BEGIN; LOCK TABLE {segments} IN SHARE MODE"));
    a.exec("SET lock_timeout = '50ms'");
    for sql in ["INSERT INTO t VALUES (3, 'y')", "UPDATE t SET v = 'y'", "DELETE FROM t"] {
        a.expect_error(sql, "55P03");
    }
    a.exec("SET lock_timeout = 0; BEGIN; SET LOCAL statement_timeout = '50ms'");
    a.expect_error("UPDATE t SET v = 'y' WHERE id = 1", "57014");
    a.exec("ROLLBACK");
    other.exec("ROLLBACK");
    a.exec("UPDATE t SET v = 'z'");
    net.settle(&["t"]);
    assert_eq!(net.server_of("A").crash_restarts(), 0);
}

/// What cannot be written down row by row is marked once, not for each row.
fn an_altered_key_is_marked_once(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE p_1 PARTITION OF p DEFAULT",
    );
    net.add_sync("tables => 'public.p', autokick => false");
    let mut a = net.on("A");
    let marks = "SELECT count(*) FROM bucardo.capture_mark";
    a.exec("BEGIN; ALTER TABLE p ALTER id TYPE text");
    a.exec("INSERT INTO p SELECT 'k' || g, 1 FROM generate_series(1, 300) g");
    a.exec("SAVEPOINT s; INSERT INTO p VALUES ('gone', 1); ROLLBACK TO s");
    assert_eq!(a.number(marks), 1, "marks of one transaction");
    a.exec("TRUNCATE p; INSERT INTO p SELECT 'm' || g, 1 FROM generate_series(1, 300) g; COMMIT");
    let after = "SELECT string_agg(kind, ' ' ORDER BY id) FROM bucardo.capture_mark WHERE id > (SELECT max(id) FROM bucardo.capture_mark WHERE kind = 'truncate')";
    assert_eq!(a.one(after), "whole", "marks after the TRUNCATE");
    net.on("B").exec("ALTER TABLE p ALTER id TYPE text");
    net.kick();
    net.assert_equal("p");
}

/// The segments are heaps, whatever tables of the database are by default.
fn segments_are_heaps(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(T);
    let mut a = net.on("A");
    a.exec("CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler");
    let db = a.one("SELECT quote_ident(current_database())");
    a.exec(&format!("ALTER DATABASE {db} SET default_table_access_method = other"));
    net.add_sync("tables => 'public.t'");
    a.exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    let kinds = "SELECT string_agg(DISTINCT m.amname, ',') FROM bucardo.capture c, unnest(c.segments) g JOIN pg_class r ON r.oid = g JOIN pg_am m ON m.oid = r.relam";
    assert_eq!(a.one(kinds), "heap");
}

/// A trigger of the native function that somebody puts on a table of his own, with names of his choice: nothing is written.
#[test]
fn a_strangers_native_trigger_writes_nothing() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere("CREATE TABLE t (id text PRIMARY KEY)");
    net.add_sync("tables => 'public.t', autokick => false");
    let mut a = net.on("A");
    a.exec("CREATE ROLE stranger LOGIN; GRANT pg_monitor TO stranger; GRANT ALL ON SCHEMA public TO stranger");
    let segments = a.one("SELECT string_agg(quote_literal(r.relname), ', ' ORDER BY ord) FROM bucardo.capture c, unnest(c.segments) WITH ORDINALITY u (g, ord) JOIN pg_class r ON r.oid = u.g");
    let active = a.one("SELECT quote_literal('seg' || id || '_active') FROM bucardo.capture");
    let at_once = format!("{active}, {segments}, 'k'").replace("', '", " ");
    let rows = "SELECT count(*) FROM bucardo.db";
    let before = a.number(rows);
    let mut stranger = net.server_of("A").connect_as(CONTROL, "stranger");
    stranger.exec("CREATE TABLE mine (k text NOT NULL)");
    let other = format!("{active}, 'db', 'db', 'db', 'k'");
    for arguments in [other, format!("{active}, {segments}, 'k'"), at_once, "'x', 'y'".to_string(), "' '".to_string()] {
        stranger.exec(&format!(
            "CREATE TRIGGER x AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION bucardo.capture({arguments}); \
             INSERT INTO mine VALUES ('a'); DROP TRIGGER x ON mine"
        ));
    }
    assert_eq!((a.number(rows), net.pending()), (before, 0));
    assert_eq!(net.server_of("A").crash_restarts(), 0);
}

/// Capture that is broken is not mended by keeping everybody from a table that somebody holds.
#[test]
fn a_held_table_is_captured_anew_later() {
    let net = Net::together(Capture::Plain, 1).with_table(T, "public.t");
    let (mut a, mut other) = (net.on("A"), net.on("A"));
    a.exec("INSERT INTO t VALUES (1, 'x')");
    net.settle(&["t"]);
    other.exec("BEGIN; SELECT count(*) FROM t");
    a.exec("CREATE TABLE child () INHERITS (t)");
    let error = net.try_kick().expect_err("a table that is held");
    assert_eq!(error.sqlstate, "55006", "{}", error.message);
    other.exec("COMMIT");
    a.exec("INSERT INTO t VALUES (2, 'y')");
    net.settle(&["t"]);
}

fn prepared(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    let mut a = net.on("A");
    a.exec("BEGIN; INSERT INTO t VALUES (1, 'two-phase'); UPDATE t SET id = 2; PREPARE TRANSACTION 'one'");
    a.exec("BEGIN; INSERT INTO t VALUES (3, 'undone'); PREPARE TRANSACTION 'two'");
    a.exec("INSERT INTO t VALUES (4, 'other')");
    net.settle(&["t"]);
    net.server_of("A").restart(crate::cluster::Stop::Fast);
    let mut a = net.on("A");
    a.exec("COMMIT PREPARED 'one'");
    a.exec("ROLLBACK PREPARED 'two'");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one("SELECT string_agg(id::text, ',' ORDER BY id) FROM t"), "2,4");
}

fn many_at_once(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 40) g");
    std::thread::scope(|threads| {
        for client in 0..6 {
            let net = &net;
            threads.spawn(move || {
                let mut a = net.on("A");
                for n in 0..150 {
                    // All clients change the same 40 rows, in one order so that none is made a deadlock's victim.
                    let low = (client * 7 + n) % 20;
                    a.exec(&format!(
                        "BEGIN; UPDATE t SET v = 'c{client}n{n}' WHERE id = {low}; UPDATE t SET v = v || '+' WHERE id = {}; COMMIT",
                        low + 20
                    ));
                }
            });
        }
    });
    net.settle(&["t"]);
}

fn application_role(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    let mut a = net.on("A");
    a.exec(
        "CREATE ROLE app LOGIN; CREATE SCHEMA evil AUTHORIZATION app; GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON t TO app; \
         GRANT USAGE ON SCHEMA public TO app",
    );
    let db = if capture == Capture::Native { CONTROL } else { "a" };
    let mut app = net.server_of("A").connect_as(db, "app");
    app.exec(
        "CREATE TABLE evil.caught (what text); \
         CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$ INSERT INTO evil.caught VALUES ('now'); SELECT pg_catalog.now() $$; \
         CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ INSERT INTO evil.caught VALUES ('clock'); SELECT pg_catalog.now() $$; \
         CREATE FUNCTION evil.ne(int, int) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$; \
         CREATE OPERATOR evil.<> (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.ne); \
         CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.ne)",
    );
    app.exec("SET search_path = evil, pg_catalog, public");
    app.exec("INSERT INTO public.t VALUES (1, 'a'), (2, 'b')");
    app.exec("UPDATE public.t SET v = 'c', id = id + 10");
    app.exec("TRUNCATE public.t; INSERT INTO public.t VALUES (3, 'x'); DELETE FROM public.t WHERE id OPERATOR(pg_catalog.=) 3");
    app.exec("INSERT INTO public.t VALUES (4, 'y')");
    net.settle(&["t"]);
    assert_eq!(a.number("SELECT count(*) FROM evil.caught"), 0, "a function of the application was called");
    app.expect_error("CREATE TABLE bucardo.mine (i int)", "42501");
}

fn replica_role_and_own_triggers(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(T);
    net.on("A").exec(
        "CREATE TABLE log (id serial PRIMARY KEY, what text); \
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log (what) VALUES (TG_OP || NEW.v); NEW.v := upper(NEW.v); RETURN NEW; END $$; \
         CREATE TRIGGER zz_note BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION note()",
    );
    net.on("B").exec(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'fired on the target'; END $$; \
         CREATE TRIGGER a_no BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION no(); CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING",
    );
    net.add_sync("tables => 'public.t'");
    let mut a = net.on("A");
    a.exec("INSERT INTO t VALUES (1, 'by the application')");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one("SELECT v FROM t"), "BY THE APPLICATION");
    a.exec("DELETE FROM t");
    net.settle(&["t"]);
}

fn rolled_back_with_the_session(capture: Capture) {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    let mut doomed = net.on("A");
    doomed.exec("BEGIN; INSERT INTO t SELECT g, 'x' FROM generate_series(1, 5000) g");
    net.on("A").exec(&format!("SELECT pg_terminate_backend({}, 60000)", doomed.pid));
    net.on("A").exec("INSERT INTO t VALUES (1, 'other')");
    net.settle(&["t"]);
    assert_eq!(net.pending(), 0);
}

/// Whoever may make a schema could lay objects where the extension will look for its own: they are not taken over.
#[test]
fn the_extension_takes_over_nothing_of_a_stranger() {
    let net = Net::together(Capture::Plain, 1);
    net.on("A").exec("CREATE ROLE stranger LOGIN; GRANT CREATE ON DATABASE a TO stranger");
    net.server_of("A").connect_as("a", "stranger").exec(
        "CREATE SCHEMA bucardo; CREATE TABLE bucardo.capture_sync (control text); \
         CREATE FUNCTION bucardo.capture_version() RETURNS integer LANGUAGE sql AS 'SELECT 5'",
    );
    net.on("A").expect_error("CREATE EXTENSION bucardo", "55000");
    assert_eq!(net.on("A").number("SELECT count(*) FROM pg_extension WHERE extname = 'bucardo'"), 0);
}

/// A source gets the extension under a running sync: what is pending stays so, and nothing travels again.
#[test]
fn the_extension_comes_to_a_source() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE idle (id int PRIMARY KEY); \
         CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1)",
    );
    net.add_sync("tables => 'public.t,public.p,public.idle'");
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 20) g; INSERT INTO p SELECT g, 1 FROM generate_series(1, 5) g");
    net.settle(&["t", "p"]);
    net.rest();
    net.on("B").exec("INSERT INTO t VALUES (77, 'only here'); INSERT INTO p VALUES (77, 1)");
    a.exec("UPDATE t SET v = 'plain' WHERE id < 5; DELETE FROM t WHERE id = 6; INSERT INTO p VALUES (6, 1)");
    net.on("A").exec("CREATE EXTENSION bucardo");
    a.exec("UPDATE t SET v = 'native' WHERE id IN (4, 8); DELETE FROM t WHERE id = 7; DELETE FROM p WHERE id = 1; INSERT INTO idle VALUES (1)");
    net.control().exec("SELECT bucardo.resume('s')");
    net.wait_served();
    net.kick();
    assert_eq!(net.on("B").one("SELECT (SELECT v FROM t WHERE id = 77) || (SELECT count(*) FROM p WHERE id = 77)"), "only here1");
    net.on("B").exec("DELETE FROM t WHERE id = 77; DELETE FROM p WHERE id = 77");
    ["t", "p", "idle"].iter().for_each(|t| net.assert_equal(t));
    let native = "SELECT count(*) FROM pg_trigger WHERE tgname ~ '^bucardo_capture_[iud]' AND tgparentid = 0 AND tgfoid = 'bucardo.capture()'::regprocedure";
    assert_eq!(a.number(native), 9);
    a.exec("TRUNCATE p_1; UPDATE t SET v = 'later'");
    net.settle(&["t", "p", "idle"]);
    // It takes along all of what stood there before it.
    a.exec("BEGIN; DROP EXTENSION bucardo; UPDATE t SET v = 'free'; TRUNCATE p_1; TRUNCATE t");
    assert_eq!(a.number("SELECT count(*) FROM pg_class WHERE relnamespace = 'bucardo'::regnamespace"), 0);
    a.exec("COMMIT");
}

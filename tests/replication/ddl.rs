//! Tables change under a running sync: the application's writes never fail for it, the status says what is wrong, and
//! once both sides agree again the sync goes on by itself.

use crate::net::{Capture, Net};

for_both!(tables_change_places, a_column_added_on_both_sides, a_key_of_another_type, columns_renamed_and_dropped);
for_both!(a_former_key_may_be_null, a_parent_appears, attached_rows, a_partition_in_use_at_once, a_domain_gets_a_check);

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, n int)";

fn ready(capture: Capture) -> Net {
    let net = Net::together(capture, 1).with_table(T, "public.t");
    net.on("A").exec("INSERT INTO t SELECT g, 'x', g FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    net
}

fn a_column_added_on_both_sides(capture: Capture) {
    let net = ready(capture);
    net.on("B").exec("ALTER TABLE t ADD COLUMN added text");
    net.on("A").exec("ALTER TABLE t ADD COLUMN added text");
    net.on("A").exec("INSERT INTO t VALUES (100, 'x', 1, 'new'); UPDATE t SET added = 'set' WHERE id < 5");
    net.settle(&["t"]);
    // Now the source first: its rows do not fit until the target has the column.
    net.on("A").exec("ALTER TABLE t ADD COLUMN second int DEFAULT 7");
    net.on("A").exec("INSERT INTO t VALUES (200, 'y', 2, NULL, 8); UPDATE t SET second = 9 WHERE id = 1");
    net.wait_state("bad");
    crate::wait::wait_until("the missing column to be named", || net.last_error().contains("column \"second\" is missing"));
    assert!(net.last_error().contains("validate_sync"), "{}", net.last_error());
    assert!(!net.try_kick().expect_err("the column is missing").hint.is_empty());
    net.on("B").exec("ALTER TABLE t ADD COLUMN second int DEFAULT 7");
    net.settle(&["t"]);
    net.wait_state("good|empty");
}

fn a_key_of_another_type(capture: Capture) {
    let net = ready(capture);
    let mut same_session = net.on("A");
    same_session.exec("INSERT INTO t VALUES (50, 'before', 0)");
    net.everywhere("ALTER TABLE t ALTER COLUMN id TYPE bigint");
    same_session.exec("INSERT INTO t VALUES (5000000000, 'big', 1); UPDATE t SET v = 'after' WHERE id = 50; UPDATE t SET id = id + 6000000000 WHERE id = 3");
    net.settle(&["t"]);
    net.everywhere("ALTER TABLE t ALTER COLUMN id TYPE text");
    same_session.exec("INSERT INTO t VALUES ('word', 'text', 2); DELETE FROM t WHERE id = '5'");
    net.settle(&["t"]);
}

fn columns_renamed_and_dropped(capture: Capture) {
    let net = ready(capture);
    let mut a = net.on("A");
    net.everywhere("ALTER TABLE t RENAME COLUMN id TO \"new id\"");
    a.exec("INSERT INTO t VALUES (60, 'x', 1); UPDATE t SET v = 'y' WHERE \"new id\" = 1; DELETE FROM t WHERE \"new id\" = 2");
    net.settle(&["t"]);
    net.everywhere("ALTER TABLE t DROP COLUMN n");
    a.exec("INSERT INTO t VALUES (61, 'x'); UPDATE t SET v = 'z' WHERE \"new id\" = 3");
    net.settle(&["t"]);
    net.everywhere("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD COLUMN k2 int NOT NULL DEFAULT 0");
    net.everywhere("ALTER TABLE t ADD PRIMARY KEY (k2, \"new id\")");
    a.exec("INSERT INTO t VALUES (61, 'same id', 1), (70, 'x', 2); UPDATE t SET k2 = 5 WHERE \"new id\" = 4");
    net.settle(&["t"]);
}

/// A key column that is none any more may be null: also where the key still stands in the segments.
fn a_former_key_may_be_null(capture: Capture) {
    let net = Net::together(capture, 1).with_table("CREATE TABLE t (mail text PRIMARY KEY, n int)", "public.t");
    net.on("A").exec("INSERT INTO t SELECT 'm' || g, g FROM generate_series(1, 20) g");
    net.settle(&["t"]);
    let other_key = "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD id int; UPDATE t SET id = n; \
        ALTER TABLE t ADD PRIMARY KEY (id); ALTER TABLE t ALTER mail DROP NOT NULL";
    net.on("B").exec(other_key);
    net.on("A").exec(&format!(
        "BEGIN; {other_key}; UPDATE t SET mail = NULL WHERE n < 5; UPDATE t SET mail = NULL WHERE n = 5; \
         INSERT INTO t VALUES (NULL, 30, 30); INSERT INTO t VALUES (NULL, 31, 31), (NULL, 32, 32); \
         DELETE FROM t WHERE mail IS NULL AND n IN (1, 2, 30); DELETE FROM t WHERE n = 3; COMMIT"
    ));
    net.settle(&["t"]);
    net.on("A").exec("UPDATE t SET mail = 'again' WHERE n = 4; DELETE FROM t WHERE mail IS NULL");
    net.settle(&["t"]);
    assert_eq!(net.servers[0].crash_restarts(), 0);
}

/// What is written through a parent, which only the source has, must not pass by the capture of its child.
fn a_parent_appears(capture: Capture) {
    let net = ready(capture);
    let mut a = net.on("A");
    a.exec("CREATE TABLE parent (id int PRIMARY KEY, v text, n int) PARTITION BY RANGE (id)");
    a.exec("ALTER TABLE parent ATTACH PARTITION t FOR VALUES FROM (0) TO (1000)");
    a.exec("INSERT INTO parent VALUES (500, 'via the parent', 1); UPDATE parent SET v = 'changed' WHERE id = 1; DELETE FROM parent WHERE id = 2");
    net.settle(&["t"]);
    a.exec("INSERT INTO parent VALUES (501, 'via the parent', 1); UPDATE parent SET v = 'again' WHERE id = 1; DELETE FROM parent WHERE id = 3");
    net.settle(&["t"]);
    a.exec("ALTER TABLE parent DETACH PARTITION t; UPDATE t SET v = 'alone' WHERE id = 4; DELETE FROM t WHERE id = 5");
    net.settle(&["t"]);
    a.exec("CREATE TABLE ancestor (id int, v text, n int); ALTER TABLE t INHERIT ancestor");
    a.exec("UPDATE ancestor SET v = 'via the ancestor' WHERE id = 6; DELETE FROM ancestor WHERE id = 7");
    net.settle(&["t"]);
    a.exec(
        "UPDATE ancestor SET v = 'more' WHERE id > 8; ALTER TABLE t NO INHERIT ancestor; UPDATE t SET v = 'alone' WHERE id = 9",
    );
    net.settle(&["t"]);
}

fn attached_rows(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1); \
         CREATE TABLE p_3 PARTITION OF p FOR VALUES IN (3) PARTITION BY RANGE (id)",
    );
    net.add_sync("tables => 'public.p'");
    net.everywhere("CREATE TABLE p_2 (LIKE p INCLUDING ALL); CREATE TABLE p_3_1 (LIKE p INCLUDING ALL)");
    let mut a = net.on("A");
    a.exec("INSERT INTO p VALUES (1, 1); INSERT INTO p_2 VALUES (15, 2); INSERT INTO p_3_1 VALUES (5, 3)");
    net.everywhere("ALTER TABLE p ATTACH PARTITION p_2 FOR VALUES IN (2)");
    net.settle(&["p"]);
    net.everywhere("ALTER TABLE p_3 ATTACH PARTITION p_3_1 FOR VALUES FROM (0) TO (100)");
    net.settle(&["p"]);
    // One that comes back, watched for TRUNCATE since the first time.
    a.exec("BEGIN; ALTER TABLE p DETACH PARTITION p_2; INSERT INTO p_2 VALUES (16, 2); DELETE FROM p_2 WHERE id = 15; COMMIT");
    a.exec("ALTER TABLE p ATTACH PARTITION p_2 FOR VALUES IN (2)");
    net.settle(&["p"]);
}

/// A partition is made and written to at once: its rows travel as such, not with the whole table.
fn a_partition_in_use_at_once(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere("CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1)");
    net.add_sync("tables => 'public.p'");
    net.on("B").exec("INSERT INTO p VALUES (77, 1)");
    net.everywhere(
        "CREATE TABLE p_2 PARTITION OF p FOR VALUES IN (2); CREATE TABLE p_3 PARTITION OF p FOR VALUES IN (3) PARTITION BY RANGE (id); \
         CREATE TABLE p_3_1 PARTITION OF p_3 FOR VALUES FROM (0) TO (100)",
    );
    net.on("A").exec("INSERT INTO p SELECT g, 1 + g % 3 FROM generate_series(1, 9) g; ALTER TABLE p_2 OWNER TO pg_database_owner; ALTER TABLE p_2 RENAME TO p_two");
    net.wait_sql("A", "the partitions to be watched", "SELECT count(*) = 4 FROM pg_trigger WHERE tgname LIKE 'bucardo%root%'");
    net.wait_served();
    net.kick();
    assert_eq!(net.on("B").one("SELECT count(*) || ' ' || count(*) FILTER (WHERE id = 77) FROM p"), "10 1");
}

/// What the segments hold must not be in the way of the application's DDL.
fn a_domain_gets_a_check(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE DOMAIN whole AS int; CREATE DOMAIN positive AS whole; CREATE DOMAIN amount AS numeric(9, 2); CREATE DOMAIN word AS text COLLATE \"C\"; \
         CREATE DOMAIN code AS character(4); CREATE DOMAIN list AS int[]; \
         CREATE TABLE t (k positive, m amount, w word, c code, v text, PRIMARY KEY (k, m, w, c)); \
         CREATE TABLE p (k positive, w word PRIMARY KEY) PARTITION BY RANGE (w); CREATE TABLE p_1 PARTITION OF p DEFAULT; \
         CREATE TABLE l (k list PRIMARY KEY, v text)",
    );
    net.add_sync("tables => 'public.t,public.p,public.l'");
    let mut a = net.on("A");
    let write = "INSERT INTO t SELECT g, g / 7.0, 'w' || g, 'c', 'v' FROM generate_series(1, 20) g; INSERT INTO t VALUES (30, 1, 'w', 'c', 'v'); \
                 INSERT INTO p SELECT g, 'w' || g FROM generate_series(1, 20) g; INSERT INTO l SELECT ARRAY[g, 1], 'v' FROM generate_series(1, 5) g";
    a.exec(write);
    net.settle(&["t", "p", "l"]);
    a.exec(
        "UPDATE t SET v = 'one' WHERE k = 3; ALTER DOMAIN positive ADD CHECK (value > 0); ALTER DOMAIN whole ADD CHECK (value <> 0); \
         ALTER DOMAIN amount ADD CHECK (value < 1000); ALTER DOMAIN word ADD CHECK (value <> ''); \
         ALTER DOMAIN code ADD CHECK (value <> '')",
    );
    a.exec("ALTER DOMAIN list ADD CHECK (cardinality(value) > 0)");
    a.exec("UPDATE t SET k = k + 100, v = 'moved' WHERE k % 3 = 0; UPDATE p SET w = 'x' || w WHERE k < 9; DELETE FROM l WHERE v = 'v' AND k[1] = 2; UPDATE l SET k = k || 1");
    net.settle(&["t", "p", "l"]);
    a.exec("DELETE FROM t WHERE k < 9; DELETE FROM t WHERE k = 30; DELETE FROM p; UPDATE t SET v = 'last' WHERE k = 10");
    net.settle(&["t", "p", "l"]);
}

#[test]
fn a_table_renamed_away_on_the_target_and_back() {
    let net = ready(Capture::Native);
    net.on("B").exec("ALTER TABLE t RENAME TO hidden");
    net.on("A").exec("INSERT INTO t VALUES (30, 'x', 1)");
    net.wait_state("bad");
    assert!(net.last_error().contains("public.t") && net.last_error().contains('B'), "{}", net.last_error());
    assert!(net.control().number("SELECT count(*) FROM bucardo.validate_sync('s')") > 0);
    net.on("B").exec("ALTER TABLE hidden RENAME TO t");
    net.settle(&["t"]);
    net.wait_state("good|empty");
    assert_eq!(net.control().number("SELECT count(*) FROM bucardo.validate_sync('s')"), 0);
}

#[test]
fn a_table_dropped_on_the_target_and_made_anew() {
    let net = ready(Capture::Plain);
    net.on("B").exec("DROP TABLE t");
    net.on("A").exec("TRUNCATE t; INSERT INTO t VALUES (30, 'x', 1)");
    net.wait_state("bad");
    net.on("B").exec(T);
    net.settle(&["t"]);
}

#[test]
fn a_table_dropped_on_the_source() {
    for capture in crate::net::BOTH {
        let net = ready(capture);
        net.everywhere("CREATE TABLE other (id int PRIMARY KEY)");
        net.control().exec("SELECT bucardo.add_table('public.other', 's')");
        net.on("A").exec("INSERT INTO t VALUES (31, 'x', 1); DROP TABLE t");
        net.on("A").exec("INSERT INTO other VALUES (1)");
        net.wait_state("bad");
        assert!(net.last_error().contains("public.t"), "{}", net.last_error());
        net.control().exec("SELECT bucardo.remove_table('public.t', 's')");
        net.settle(&["other"]);
        net.wait_state("good|empty");
    }
}

#[test]
fn a_table_dropped_and_made_anew_on_the_source_is_captured_again() {
    for capture in crate::net::BOTH {
        let net = ready(capture);
        net.on("A").exec(&format!("BEGIN; DROP TABLE t; {T}; COMMIT"));
        net.on("B").exec("TRUNCATE t");
        net.wait_state("bad|good|empty");
        net.control().exec("SELECT bucardo.reload()");
        // Whatever it takes until the new table is captured: the application writes all the while.
        let mut id = 0;
        crate::wait::wait_until("a row of the new table on B", || {
            id += 1;
            net.on("A").exec(&format!("INSERT INTO t VALUES ({id}, 'x', 1)"));
            net.on("B").number("SELECT count(*) FROM t") > 0
        });
        net.on("A").exec("UPDATE t SET v = 'y'");
        net.settle(&["t"]);
    }
}

#[test]
fn a_renamed_source_table_goes_on_taking_writes() {
    for capture in crate::net::BOTH {
        let net = ready(capture);
        net.on("A").exec("ALTER TABLE t RENAME TO renamed");
        net.on("A").exec(
            "INSERT INTO renamed VALUES (40, 'x', 1); UPDATE renamed SET v = 'y' WHERE id = 1; DELETE FROM renamed WHERE id = 2",
        );
        net.wait_state("bad");
        net.on("A").exec("ALTER TABLE renamed RENAME TO t");
        net.settle(&["t"]);
    }
}

#[test]
fn a_trigger_disabled_or_dropped_by_somebody_is_told() {
    let net = ready(Capture::Native);
    net.on("A").exec("ALTER TABLE t DISABLE TRIGGER USER");
    assert!(net.control().number("SELECT count(*) FROM bucardo.validate_sync('s') WHERE db = 'A' AND fix <> ''") > 0);
    net.on("A").exec("ALTER TABLE t ENABLE TRIGGER USER; INSERT INTO t VALUES (41, 'x', 1)");
    net.settle(&["t"]);
}

#[test]
fn a_foreign_key_a_unique_index_and_a_not_null_appear_under_way() {
    let net = ready(Capture::Native);
    net.everywhere("CREATE TABLE owner (id int PRIMARY KEY)");
    net.control().exec("SELECT bucardo.add_table('public.owner', 's')");
    net.on("A").exec("INSERT INTO owner SELECT generate_series(1, 100)");
    net.settle(&["t", "owner"]);
    net.everywhere("ALTER TABLE t ADD FOREIGN KEY (id) REFERENCES owner, ALTER v SET NOT NULL, ADD UNIQUE (n)");
    net.on("A").exec("BEGIN; INSERT INTO owner VALUES (200); INSERT INTO t VALUES (200, 'z', 200); DELETE FROM t WHERE id = 3; DELETE FROM owner WHERE id = 3; COMMIT");
    net.settle(&["t", "owner"]);
}

/// Another table takes the name of a captured one: it is the one that travels from now on, and nothing of the other.
fn tables_change_places(capture: Capture) {
    let net = ready(capture);
    let mut a = net.on("A");
    a.exec("CREATE TABLE t_new (id int PRIMARY KEY, v text, n int); INSERT INTO t_new SELECT g, 'new', g FROM generate_series(1, 30) g");
    a.exec("BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; COMMIT");
    a.exec("DELETE FROM t_old WHERE id < 9; TRUNCATE t_old; UPDATE t SET v = 'later' WHERE id = 1");
    net.wait_equal("t", &["B"]);
    assert_eq!(net.on("B").number("SELECT count(*) FROM t"), 30);
    a.exec("INSERT INTO t_old SELECT g, 'old', g FROM generate_series(1, 50) g; DELETE FROM t_old WHERE id < 9; TRUNCATE t_old; DELETE FROM t WHERE id = 30");
    net.settle(&["t"]);
    a.exec("BEGIN; ALTER TABLE t RENAME TO t_new; ALTER TABLE t_old RENAME TO t; COMMIT; INSERT INTO t VALUES (77, 'back', 1)");
    net.wait_equal("t", &["B"]);
    net.settle(&["t"]);
    assert_eq!(net.on("B").one("SELECT string_agg(v, ' ') FROM t"), "back");
}

/// MERGE is refused on a table that has a rule.
#[test]
fn a_rule_comes_to_the_target() {
    let net = ready(Capture::Native);
    net.on("B").exec("CREATE RULE own AS ON INSERT TO t WHERE new.id < 0 DO INSTEAD NOTHING");
    net.on("A").exec("INSERT INTO t SELECT g, 'x', g FROM generate_series(100, 400) g; UPDATE t SET v = 'y' WHERE id < 300; DELETE FROM t WHERE id % 7 = 0");
    net.settle(&["t"]);
    net.on("B").exec("DROP RULE own ON t");
    net.on("A").exec("UPDATE t SET v = 'z'");
    net.settle(&["t"]);
}

/// What a kid knows of the tables outlives a change of the catalog, but not one of the tables.
#[test]
fn a_table_altered_while_the_sync_is_paused() {
    let net = Net::together(Capture::Native, 1).with_table("CREATE TABLE t (id int PRIMARY KEY, v text)", "public.t");
    net.on("A").exec("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    net.settle(&["t"]);
    for (change, use_it) in [
        ("ALTER TABLE t ADD COLUMN more int", "UPDATE t SET more = 5"),
        ("ALTER TABLE t DROP COLUMN v", "INSERT INTO t VALUES (3, 7)"),
        ("DROP TABLE t; CREATE TABLE t (v text, id int PRIMARY KEY)", "INSERT INTO t VALUES ('new', 1)"),
        ("SELECT 1", "UPDATE t SET v = 'as it was'"),
    ] {
        net.control().exec("SELECT bucardo.pause('s')");
        net.everywhere(change);
        net.on("A").exec(use_it);
        net.control().exec("SELECT bucardo.resume('s')");
        net.settle(&["t"]);
    }
}

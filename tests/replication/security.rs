//! Who may do and see what: nothing for PUBLIC, views for pg_monitor, passwords for nobody.

use crate::cluster::Cluster;
use crate::net::{CONTROL, Capture, Net};

/// But for the functions of row triggers: whoever makes a partition of a captured table must have the right to them. Nobody can
/// name them without a right to the schema.
const OPEN_FUNCTIONS: &str = "SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace \
                              WHERE nspname = 'bucardo' AND has_function_privilege('nobody', p.oid, 'EXECUTE') \
                              AND NOT (prorettype = 'trigger'::regtype AND (proname = 'capture' OR proname LIKE 'seg%capture%'))";
const OPEN_TABLES: &str = "SELECT coalesce(string_agg(c.oid::regclass::text, ', '), '') FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
                           WHERE nspname = 'bucardo' AND relkind IN ('r', 'v', 'm', 'p') \
                           AND has_table_privilege('nobody', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')";

#[test]
fn nothing_is_open_to_public() {
    let net = Net::together(Capture::Plain, 1).with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    net.on("A").exec("CREATE ROLE nobody; INSERT INTO t VALUES (1)");
    net.settle(&["t"]);
    for (what, mut conn) in [("control", net.control()), ("A", net.on("A")), ("B", net.on("B"))] {
        let schema =
            "SELECT count(*) FROM pg_namespace WHERE nspname = 'bucardo' AND has_schema_privilege('nobody', oid, 'USAGE')";
        assert_eq!(conn.number(schema), 0, "the schema is open to everybody on {what}");
        for query in [OPEN_FUNCTIONS, OPEN_TABLES] {
            assert_eq!(conn.one(query), "", "open to everybody on {what}");
        }
    }
    let pinned = "SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace \
                  WHERE nspname = 'bucardo' AND prosecdef AND NOT coalesce(array_to_string(proconfig, ',') ~ 'search_path', false)";
    assert_eq!(net.on("A").one(pinned), "", "SECURITY DEFINER without a pinned search_path");
    assert_eq!(net.control().one(pinned), "", "SECURITY DEFINER without a pinned search_path");
}

/// Where default privileges give every function to somebody, a table's capture function is not given: in a trigger of his own, it
/// would take a relation of his for the changed rows.
#[test]
fn default_privileges_give_nobody_a_capture_function() {
    let net = Net::together(Capture::Plain, 1);
    net.on("A").exec(
        "CREATE ROLE app; ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO app; ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO app",
    );
    let net = net.with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    let given = "SELECT count(*) || ' ' || count(*) FILTER (WHERE has_function_privilege('app', oid, 'EXECUTE')) FROM pg_proc \
                 WHERE pronamespace = 'bucardo'::regnamespace AND proname ~ '^seg[0-9]+_capture_'";
    assert_eq!(net.on("A").one(given), "1 0");
}

#[test]
fn a_monitoring_role_sees_the_views_and_no_row_images() {
    let net = Net::together(Capture::Native, 1).with_table("CREATE TABLE t (id int PRIMARY KEY)", "public.t");
    net.on("A").exec("CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher; INSERT INTO t VALUES (1)");
    net.settle(&["t"]);
    let mut watcher = net.servers[0].connect_as(CONTROL, "watcher");
    for view in ["status", "syncrun", "activity", "db", "dbgroup", "dbmap", "relation", "relgroup", "relmap", "sync"] {
        watcher.exec(&format!("SELECT * FROM bucardo.{view}"));
    }
    assert_eq!(watcher.number("SELECT count(*) FROM bucardo.status WHERE sync = 's'"), 1);
    watcher.expect_error("SELECT * FROM bucardo.conflict", "42501");
    watcher.expect_error("SELECT bucardo.pause('s')", "42501");
}

/// The errors of rows that a member refuses are in views that the monitoring role reads: they name the row by its key.
#[test]
fn an_error_shows_the_key_of_a_row_and_no_more() {
    let net = Net::together(Capture::Native, 2);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, card text, v text)");
    net.on("B").exec("ALTER TABLE t ADD CONSTRAINT refused CHECK (v <> 'no')");
    net.on("C").exec("ALTER TABLE t ALTER v SET NOT NULL; ALTER TABLE t DROP CONSTRAINT IF EXISTS refused");
    net.add_sync("tables => 'public.t', strict_checking => false");
    let row = "(4711, '4111-1111', 'no'), (4712, '4111-1111', NULL)";
    let many = "SELECT g, '4111-1111', 'yes' FROM generate_series(10001, 20000) g";
    for (what, sql) in [
        ("one by one", format!("INSERT INTO t VALUES {row}")),
        ("by COPY", format!("INSERT INTO t {many}; INSERT INTO t VALUES {row}")),
        ("staged", format!("UPDATE t SET v = v || '!' WHERE id > 5000; INSERT INTO t VALUES {row}")),
    ] {
        net.on("A").exec(&format!("BEGIN; {sql}; COMMIT"));
        for (member, key) in [("B", "4711"), ("C", "4712")] {
            let error = format!("error ~ 'db \"{member}\"' AND error ~ '[(]id[)]=[(]{key}[)]'");
            net.control().exec("SELECT bucardo.kick('s')");
            net.wait_sql_on_control(what, &format!("SELECT EXISTS (SELECT FROM bucardo.syncrun WHERE {error})"));
        }
        let mut control = net.control();
        let said = "SELECT count(*) FROM (SELECT error FROM bucardo.syncrun UNION ALL SELECT last_error FROM bucardo.status) x(e) WHERE e ~ '4111'";
        assert_eq!(control.number(said), 0, "{what}: {:?}", control.query("SELECT DISTINCT error FROM bucardo.syncrun"));
        net.on("A").exec("DELETE FROM t WHERE id < 5000");
        net.wait_state("good|empty");
        control.exec("DELETE FROM bucardo.syncrun");
    }
}

/// A target behind a password, and the whole text of everything that can be read about it.
fn everything_said(net: &Net, guarded: &Cluster) -> String {
    let mut text = net.servers[0].log() + &guarded.log();
    for server in [&net.servers[0], guarded] {
        let rows = server.sql("postgres", "SELECT query FROM pg_stat_activity");
        rows.into_iter().for_each(|row| text += row[0].as_deref().unwrap_or_default());
    }
    for table in ["db", "status", "syncrun", "activity", "dbmap"] {
        let rows = net.control().query(&format!("SELECT to_jsonb(x)::text FROM bucardo.{table} x"));
        rows.into_iter().for_each(|row| text += row[0].as_deref().unwrap_or_default());
    }
    text
}

#[test]
fn a_password_is_shown_to_nobody() {
    let net = Net::together(Capture::Native, 0);
    let guarded = Cluster::start("guarded", "log_connections = on");
    guarded.sql("postgres", "CREATE ROLE app SUPERUSER LOGIN PASSWORD 'hunter2secret'; CREATE TABLE t (id int PRIMARY KEY)");
    guarded.authenticate("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256");
    let conninfo = format!("host=127.0.0.1 port={} dbname=postgres user=app password=hunter2secret", guarded.port());
    net.on("A").exec("CREATE TABLE t (id int PRIMARY KEY)");
    net.control().exec(&format!("SELECT bucardo.add_db('P', '{conninfo}')"));
    net.control().exec("SELECT bucardo.add_sync('s', dbs => 'A:source,P:target', tables => 'public.t')");
    net.on("A").exec("INSERT INTO t VALUES (1)");
    net.wait_served();
    assert_eq!(guarded.connect("postgres").number("SELECT count(*) FROM t"), 1);
    // The word changes on the other side: the errors that follow must not repeat the old one.
    guarded.sql("postgres", "ALTER ROLE app PASSWORD 'another'");
    guarded.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
    net.on("A").exec("INSERT INTO t VALUES (2)");
    net.wait_state("stalled");
    let said = everything_said(&net, &guarded);
    assert!(!said.contains("hunter2secret"), "the password stands in: {}", around(&said, "hunter2secret"));
    let visible = net.control().one("SELECT string_agg(to_jsonb(d)::text, ' ') FROM bucardo.db d");
    assert!(visible.contains("user=app"), "the rest of the conninfo stays readable: {visible}");
    let mended = conninfo.replace("hunter2secret", "another");
    net.control().exec(&format!("SELECT bucardo.update_db('P', conninfo => '{mended}')"));
    net.wait_served();
    assert_eq!(guarded.connect("postgres").number("SELECT count(*) FROM t"), 2);
}

fn around(text: &str, word: &str) -> String {
    text.lines().filter(|line| line.contains(word)).take(3).collect::<Vec<_>>().join("\n")
}

/// From PostgreSQL 15 on, a role that may set session_replication_role will do; it need not be a superuser.
#[test]
fn a_role_that_is_no_superuser_takes_part() {
    let net = Net::together(Capture::Native, 1).with_table("CREATE TABLE t (id int PRIMARY KEY, v text)", "public.t");
    if net.on("B").number("SELECT current_setting('server_version_num')::int") < 150_000 {
        return;
    }
    net.on("B").exec("CREATE ROLE app LOGIN; GRANT SET ON PARAMETER session_replication_role TO app; ALTER TABLE t OWNER TO app");
    let conninfo = crate::compare::literal(&net.conninfo("B").replace("user=postgres", "user=app"));
    net.control().exec(&format!("SELECT bucardo.update_db('B', conninfo => {conninfo})"));
    net.on("A").exec("INSERT INTO t SELECT g, 'few' FROM generate_series(1, 5) g");
    net.kick();
    net.on("A").exec("INSERT INTO t SELECT g, 'many' FROM generate_series(10, 900) g; UPDATE t SET v = 'new' WHERE id < 400; DELETE FROM t WHERE id > 800");
    net.kick();
    net.assert_equal("t");
}

/// What stands in a call would be in the log with it when it fails, and in `pg_stat_activity` after it.
#[test]
fn a_password_in_a_call_is_neither_logged_nor_shown() {
    let net = Net::together(Capture::Native, 1);
    let mut session = net.control();
    let last = format!("SELECT query FROM pg_stat_activity WHERE pid = {}", session.number("SELECT pg_backend_pid()"));
    let nobody = "host=127.0.0.1 port=1 dbname=x user=x";
    for (call, fails) in [
        ("add_db('x', '{} password=sesame')", "08001"),
        ("add_db('x', 'postgresql://x:sesame@127.0.0.1:1/x')", "08001"),
        ("add_db('x', '{} pasword=sesame')", "22023"),
        ("add_db('A', '{} sslpassword=sesame')", "42710"),
        ("update_db('B', '{} password=sesame')", "08001"),
        ("add_db('x', '{} password=sesame', check_connection => false)", ""),
    ] {
        let sql = format!("SELECT bucardo.{}", call.replace("{}", nobody));
        match session.try_query(&sql) {
            Ok(_) => assert_eq!(fails, "", "{sql}"),
            Err(error) => assert_eq!(error.sqlstate, fails, "{sql}: {error}"),
        }
        let shown = net.control().one(&last);
        assert!(shown.contains("db(...)") && !shown.contains("sesame"), "{shown}");
    }
    // What is no secret is there as ever.
    session.expect_error("SELECT bucardo.add_db('y', 'host=127.0.0.1 port=1 dbname=open')", "08001");
    let log = net.servers[0].log();
    assert!(log.contains("dbname=open") && !log.contains("sesame"), "{log}");
    assert!(net.control().one(&last).contains("dbname=open"));
}

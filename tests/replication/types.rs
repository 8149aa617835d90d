//! Every value arrives as it was: all kinds of types, edge values, under settings that mangle text on both sides.
//!
//! The databases default to a German DateStyle, rounded floats, escaped bytea and other time zones; some are LATIN1. The
//! rows are compared under fixed settings, column by column, so that a value that became another one shows.

use crate::net::{Capture, Net};
use crate::wait::wait_until;

for_both!(all_types_under_hostile_settings, domains_that_allow_no_null);

/// Column type and a comma list of values; the row number picks one, so that each appears.
const COLUMNS: &[(&str, &str)] = &[
    ("smallint", "'-32768', '32767', '0'"),
    ("bigint", "'-9223372036854775808', '9223372036854775807', '1'"),
    ("numeric", "'NaN', 'Infinity', '-0.00000000000000000000000000001', '99999999999999999999999999999999999999.99', '1.500'"),
    ("numeric(10, 3)", "'1.100', '-9999999.999'"),
    ("real", "'NaN', 'Infinity', '-Infinity', '1.17549435e-38', '3.4028235e38', '0.1', '-0'"),
    ("float8", "'NaN', 'Infinity', '5e-324', '1.7976931348623157e308', '0.1', '0.30000000000000004', '-0'"),
    ("money", "'12.34', '-92233720368547758.08'"),
    ("boolean", "'t', 'f'"),
    (
        "text",
        "'', ' ', E'\\\\N', E'\\\\\\\\N', E'a\\tb\\nc\\rd\\be\\ff', E'\\\\', E'\\\\.', E'\"quoted\", ''single'', $$', 'ünï', E'end\\\\', 'NULL', '{}', E'\\x01\\x7f'",
    ),
    ("varchar(30)", "'abc', '', E'tab\\t'"),
    ("char(6)", "'ab', '', 'abcdef'"),
    ("name", "'a name'"),
    ("bytea", "'', E'\\\\x00ff5c0a0d09', E'\\\\x5c783030'"),
    ("date", "'2026-02-01', 'infinity', '-infinity', '4713-11-24 BC', '5874897-12-31', '2026-12-31'"),
    ("time", "'24:00:00', '00:00:00.000001'"),
    ("timetz", "'12:34:56.789+05:45', '00:00-15:59'"),
    ("timestamp", "'2026-02-01 03:04:05.678901', 'infinity', '-infinity', '0001-01-01 BC', '294276-12-31 23:59:59.999999'"),
    (
        "timestamptz",
        "'2026-02-01 03:04:05.678901+00', 'infinity', '-infinity', '2026-10-25 01:30:00+01', '1900-01-01 00:00:00+00'",
    ),
    ("interval", "'1 mon -2 days 03:04:05.000001', '-1 year', '0', '178000000 years', '1 day -00:00:01'"),
    ("inet", "'192.168.0.1/24', '::1', '::ffff:1.2.3.4/128'"),
    ("cidr", "'10.0.0.0/8', '2001:db8::/32'"),
    ("macaddr", "'08:00:2b:01:02:03'"),
    ("macaddr8", "'08:00:2b:01:02:03:04:05'"),
    ("bit(5)", "'10101', '00000'"),
    ("varbit", "'', '1', '0000000000000000000000000000000000000000000000000000000000000001'"),
    ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    ("json", "'{\"b\":1,  \"a\": [null, \"\\u00fc\"], \"b\": 2}', 'null', '\"\"'"),
    ("jsonb", "'{\"b\":1.10, \"a\": \"back\\\\slash\"}', 'null', '[]'"),
    ("xml", "'<a b=\"c\">t &amp; u</a>', 'plain content'"),
    ("tsvector", "'a:1A fat:2B,4C cat:5D ''it''''s'''"),
    ("tsquery", "'fat & (rat | ''cat dog'')'"),
    ("point", "'(0.1,-1e300)'"),
    ("box", "'(3,4),(1,2)'"),
    ("polygon", "'((0,0),(1,1),(2,0.30000000000000004))'"),
    ("circle", "'<(1,2),0.1>'"),
    ("path", "'[(0,0),(1,1)]'"),
    ("line", "'{1,2,3}'"),
    ("lseg", "'[(0,0),(1,1)]'"),
    ("int4range", "'empty', '[1,10)', '(,5)', '[7,)'"),
    ("tstzrange", "'[\"2026-01-01 00:00:00+00\",\"2026-02-01 00:00:00+00\")', '(,)'"),
    ("numrange", "'[0.1,0.2]'"),
    ("datemultirange", "'{[2026-01-01,2026-01-02), [2026-02-01,2026-03-01)}', '{}'"),
    ("int[]", "'{}', '{1,NULL,3}', '[2:4]={1,2,3}', '{{1,2},{3,4}}'"),
    ("text[]", "'{\"\",NULL,\"NULL\",\"a,b\",\"q\\\"\",\"back\\\\\\\\slash\",\"{}\",\" \"}'"),
    ("timestamptz[]", "'{\"2026-02-01 03:04:05+00\",infinity}'"),
    ("float8[]", "'{0.1,NaN,0.30000000000000004}'"),
    ("bytea[]", "ARRAY['\\x005c'::bytea, NULL, '']"),
    ("mood", "'so so', 'it''s', 'a\"b'"),
    ("mood[]", "'{\"so so\",NULL}'"),
    ("pair", "ROW(0.1, 'a,b', '2026-02-01')::pair, ROW(NULL, '', 'infinity')::pair"),
    ("pair[]", "ARRAY[ROW(0.1, E'q\"\\\\', '2026-02-01')::pair]"),
    ("email", "'a@b', ' @ '"),
    ("never_null", "'never null'"),
    ("oid", "'4294967295'"),
    ("pg_lsn", "'FF/FF'"),
    ("regclass", "'pg_class'"),
];

const TYPES: &str = "CREATE TYPE mood AS ENUM ('so so', 'it''s', 'a\"b', 'added'); \
                     CREATE TYPE pair AS (f float8, t text, d date); CREATE DOMAIN email AS text CHECK (value ~ '@'); \
                     CREATE DOMAIN never_null AS text NOT NULL";

fn hostile(net: &Net, name: &str, settings: &[&str]) {
    let db = net.on(name).one("SELECT quote_ident(current_database())");
    settings.iter().for_each(|setting| net.on(name).exec(&format!("ALTER DATABASE {db} SET {setting}")));
}

fn table_of_all_types() -> String {
    let columns: Vec<String> = COLUMNS.iter().enumerate().map(|(n, (kind, _))| format!("c{n} {kind}")).collect();
    format!("{TYPES}; CREATE TABLE t (id int PRIMARY KEY, {})", columns.join(", "))
}

/// One row that takes the values numbered `n` of every column.
fn insert_of_all_types() -> String {
    let pick = |(kind, list): &(&str, &str)| match *list {
        array if array.starts_with("ARRAY") => array.to_owned(),
        rows if rows.starts_with("ROW") => format!("(ARRAY[{rows}])[1 + g % cardinality(ARRAY[{rows}])]"),
        list => format!("(ARRAY[{list}]::text[])[1 + g % cardinality(ARRAY[{list}]::text[])]::{kind}"),
    };
    let values: Vec<String> = COLUMNS.iter().map(pick).collect();
    format!("INSERT INTO t SELECT g, {} FROM generate_series(1, 40) g", values.join(", "))
}

fn all_types_under_hostile_settings(capture: Capture) {
    let net = Net::together(capture, 2);
    hostile(
        &net,
        "A",
        &["datestyle = 'German'", "intervalstyle = 'sql_standard'", "timezone = 'Asia/Kathmandu'", "bytea_output = 'escape'"],
    );
    hostile(
        &net,
        "A",
        &["extra_float_digits = -15", "xmlbinary = hex", "standard_conforming_strings = off", "lc_monetary = 'C'"],
    );
    hostile(
        &net,
        "B",
        &["datestyle = 'SQL, DMY'", "intervalstyle = 'iso_8601'", "timezone = 'America/St_Johns'", "extra_float_digits = 0"],
    );
    hostile(
        &net,
        "B",
        &["backslash_quote = off", "client_encoding = 'LATIN9'", "search_path = 'nowhere'", "transform_null_equals = on"],
    );
    hostile(
        &net,
        "C",
        &["datestyle = 'Postgres, MDY'", "default_transaction_isolation = serializable", "statement_timeout = '50ms'"],
    );
    net.everywhere(&format!("SET search_path = public; {}", table_of_all_types()));
    net.add_sync("tables => 'public.t'");
    let mut a = net.on("A");
    a.exec(&insert_of_all_types());
    a.exec(&format!("INSERT INTO t (id, {}) VALUES (0, 'all else is null')", notnull_column()));
    net.settle(&["t"]);
    a.exec("UPDATE t SET c0 = 1 WHERE id < 20; UPDATE t SET id = -id WHERE id > 30; DELETE FROM t WHERE id = 25");
    net.settle(&["t"]);
    // An application that does not set anything writes under the hostile settings itself.
    let db = if capture == Capture::Native { crate::net::CONTROL } else { "a" };
    let mut raw = net.server_of("A").connect_raw(db);
    assert_eq!(raw.one("SHOW datestyle"), "German, DMY");
    raw.exec("UPDATE public.t SET c17 = now() WHERE id < 5");
    net.settle(&["t"]);
}

#[test]
fn a_source_whose_transactions_are_serializable_by_default_keeps_no_locks_of_ours() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY)");
    hostile(&net, "A", &["default_transaction_isolation = 'serializable'", "statement_timeout = '100ms'"]);
    net.add_sync("tables => 'public.t'");
    // As long as it is open, the server keeps what serializable transactions beside it have read.
    let mut old = net.on("A");
    old.exec("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT pg_current_xact_id()");
    let mut a = net.on("A");
    for id in 1..=5 {
        a.exec(&format!("BEGIN ISOLATION LEVEL READ COMMITTED; INSERT INTO t VALUES ({id}); COMMIT"));
        wait_until("the row", || net.on("B").number("SELECT count(*) FROM t") == id);
    }
    let ours = "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation \
                WHERE mode = 'SIReadLock' AND relnamespace = 'bucardo'::regnamespace";
    assert_eq!(net.on("A").number(ours), 0);
    net.wait_state("good|empty");
    assert_eq!(net.control().number("SELECT count(*) FROM bucardo.syncrun WHERE error IS NOT NULL"), 0);
}

fn notnull_column() -> String {
    format!("c{}", COLUMNS.iter().position(|(kind, _)| *kind == "never_null").unwrap())
}

#[test]
fn databases_of_different_encodings() {
    let mut net = Net::together(Capture::Native, 1);
    let latin = "TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'";
    net.add_member("C", 0, latin);
    net.everywhere("CREATE TABLE \"tæble\" (\"clé\" text PRIMARY KEY, v text)");
    net.add_sync("tables => 'public.tæble'");
    let mut a = net.on("A");
    a.exec("INSERT INTO \"tæble\" VALUES ('ÿ', 'àéîõü'), ('plain', '¿?'), (E'tab\\t', NULL)");
    net.settle(&["\"tæble\""]);
    // A character that LATIN1 has not: that member refuses the row, the other one takes it.
    a.exec("INSERT INTO \"tæble\" VALUES ('☃', 'snowman')");
    net.wait_equal("\"tæble\"", &["B"]);
    net.wait_state("bad|stalled");
    assert!(net.last_error().contains('C'), "{}", net.last_error());
    a.exec("DELETE FROM \"tæble\" WHERE v = 'snowman'");
    net.settle(&["\"tæble\""]);
}

#[test]
fn a_latin1_source_feeds_unicode_targets() {
    let mut net = Net::together(Capture::Plain, 1);
    net.servers[0].sql("postgres", "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'");
    let conninfo = net.servers[0].conninfo("latin");
    net.control().exec(&format!("SELECT bucardo.update_db('A', $${conninfo}$$)"));
    net.members[0].db = "latin".into();
    net.everywhere("CREATE TABLE t (k text PRIMARY KEY, v text)");
    net.add_sync("tables => 'public.t'");
    net.on("A").exec("INSERT INTO t VALUES ('ÿ', 'àéîõü'), ('ß', repeat('é', 5000)); UPDATE t SET k = k || 'ñ'");
    net.settle(&["t"]);
}

#[test]
fn large_values_travel_whole() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere("CREATE TABLE t (id int PRIMARY KEY, v text, b bytea, j jsonb); ALTER TABLE t ALTER b SET STORAGE EXTERNAL");
    net.add_sync("tables => 'public.t'");
    let mut a = net.on("A");
    a.exec(
        "INSERT INTO t SELECT g, (SELECT string_agg(md5(i::text), E'\\t') FROM generate_series(1, 32000) i), \
         decode(repeat(md5(g::text), 65000), 'hex'), NULL FROM generate_series(1, 4) g",
    );
    a.exec("INSERT INTO t VALUES (9, repeat('x', 20000000), NULL, (SELECT jsonb_object_agg(i, md5(i::text)) FROM generate_series(1, 30000) i))");
    net.settle(&["t"]);
    // Out-of-line values that did not change must not be lost when another column does.
    a.exec("UPDATE t SET j = '{}' WHERE id < 3; UPDATE t SET v = v || E'\\n' WHERE id = 9");
    net.settle(&["t"]);
}

#[test]
fn many_columns_and_wide_rows() {
    let net = Net::together(Capture::Native, 1);
    let columns: Vec<String> = (1..=400).map(|n| format!("c{n} int")).collect();
    net.everywhere(&format!("CREATE TABLE t (id int PRIMARY KEY, {})", columns.join(", ")));
    net.add_sync("tables => 'public.t'");
    let ones: Vec<String> = (1..=400).map(|n| format!("g * {n}")).collect();
    net.on("A").exec(&format!("INSERT INTO t SELECT g, {} FROM generate_series(1, 200) g", ones.join(", ")));
    net.on("A").exec("UPDATE t SET c400 = NULL, c1 = -1 WHERE id % 2 = 0");
    net.settle(&["t"]);
}

/// The objects have other oids on every member: such a value is the object's name.
#[test]
fn values_that_name_objects_travel_by_name() {
    let net = Net::together(Capture::Plain, 2);
    net.on("B").exec("CREATE TABLE first_here ()");
    net.on("C").exec("CREATE TABLE first_here (); CREATE TABLE second_here ()");
    net.everywhere(
        "CREATE TABLE named (); CREATE TYPE kind AS (i int); CREATE SCHEMA place; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; \
         CREATE TABLE t (id int PRIMARY KEY, c regclass, k regtype, n regnamespace, f regproc, a regclass[], who regrole); \
         CREATE TABLE acl (id int PRIMARY KEY, one aclitem, more aclitem[])",
    );
    net.add_sync("tables => 'public.t,public.acl'");
    let mut a = net.on("A");
    let mut rows = |from: i32, to: i32| {
        a.exec(&format!(
            "INSERT INTO t SELECT g, 'named', 'kind', 'place', 'f', ARRAY['named'::regclass, NULL], current_user::regrole \
             FROM generate_series({from}, {to}) g; \
             INSERT INTO acl SELECT g, (current_user || '=r/' || current_user)::aclitem, \
             ARRAY[(current_user || '=w/' || current_user)::aclitem] FROM generate_series({from}, {to}) g"
        ));
        net.settle(&["t", "acl"]);
    };
    // A few by parameters, many by COPY, straight and through the staging tables.
    rows(1, 3);
    rows(1001, 1500);
    net.on("A").exec("UPDATE t SET a = a || 'named'::regclass; UPDATE acl SET more = more || more");
    net.settle(&["t", "acl"]);
    let here = "SELECT count(*) FROM t WHERE c = 'named'::regclass AND k = 'kind'::regtype AND n = 'place'::regnamespace \
                AND f = 'f'::regproc AND a[3] = 'named'::regclass";
    ["B", "C"].iter().for_each(|name| assert_eq!(net.on(name).number(here), 503, "{name}"));
}

/// A row that is gone has no values, not even of a domain that allows no null.
fn domains_that_allow_no_null(capture: Capture) {
    let net = Net::together(capture, 1).with_table(
        "CREATE DOMAIN word AS text NOT NULL; CREATE DOMAIN title AS word CHECK (value <> ''); CREATE DOMAIN amount AS numeric(9, 2) NOT NULL; \
         CREATE DOMAIN code AS character(4) COLLATE \"C\" NOT NULL; CREATE DOMAIN list AS int[] NOT NULL; CREATE TYPE pair AS (a int, b text); \
         CREATE DOMAIN couple AS pair NOT NULL; \
         CREATE TABLE t (id int PRIMARY KEY, w word, n title, a amount UNIQUE, c code, l list, p couple)",
        "public.t",
    );
    let mut a = net.on("A");
    a.exec("INSERT INTO t SELECT g, 'w', 'n' || g, g / 7.0, 'c', ARRAY[g], ROW(g, 'p')::pair FROM generate_series(1, 2000) g");
    net.settle(&["t"]);
    a.exec(
        "DELETE FROM t WHERE id % 4 = 0; UPDATE t SET w = 'W', a = a + 1000, c = 'd', p = ROW(1, NULL)::pair WHERE id % 3 = 0",
    );
    net.settle(&["t"]);
    // Values that change places.
    a.exec("UPDATE t SET a = -a; UPDATE t SET a = 1000 - id WHERE id < 500; DELETE FROM t WHERE id > 1500");
    net.settle(&["t"]);
    a.exec("UPDATE t SET a = a + 5000; UPDATE t SET a = 499 + id WHERE id < 500");
    net.settle(&["t"]);
    let count = net.on("A").number("SELECT count(*) FROM t");
    assert_eq!(net.on("B").number("SELECT count(*) FROM t"), count);
}

/// Kids keep statements that say the type of each value; a column gets another one, and more is stored in it.
#[test]
fn a_column_takes_more_than_before() {
    let net = Net::together(Capture::Native, 1);
    net.everywhere("CREATE TABLE t (day date PRIMARY KEY, at date)");
    net.add_sync("tables => 'public.t'");
    for day in ["2024-01-01", "2024-01-02"] {
        net.on("A").exec(&format!("INSERT INTO t VALUES ('{day}', '{day}')"));
        net.settle(&["t"]);
    }
    net.everywhere("ALTER TABLE t ALTER day TYPE timestamp, ALTER at TYPE timestamp");
    net.control().exec("SELECT bucardo.reload()");
    net.kick();
    net.on("A").exec("INSERT INTO t VALUES ('2024-05-01 12:30', '2024-05-01 12:30'), ('2024-05-01 18:00', '2024-05-01 18:00')");
    net.settle(&["t"]);
    net.on("A").exec("UPDATE t SET at = '2024-06-01 01:02' WHERE day = '2024-05-01 18:00'");
    net.settle(&["t"]);
    net.on("A").exec("DELETE FROM t WHERE day = '2024-05-01 12:30'");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one("SELECT count(*) FROM t WHERE at = '2024-06-01 01:02'"), "1");
}

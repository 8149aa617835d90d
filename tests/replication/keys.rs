//! Any key, any name: what identifies a row may be of any type and of several columns, and what a thing is called may be
//! whatever SQL permits. Two relations whose names look alike must never be mixed up.

use crate::compare::literal;
use crate::multi::Plan;
use crate::net::{Capture, Net};
use crate::wait::wait_until;

for_both!(key_types, keys_in_their_own_words, names, lookalikes, unique_index_as_key, operators_of_extensions);

/// Key type and eight values that are different keys.
const TYPES: &[(&str, &str)] = &[
    ("uuid", "SELECT md5(g::text)::uuid"),
    ("text", "SELECT (ARRAY['', ' ', 'a', 'A', E'tab\\tnew\\nline', E'back\\\\slash', 'ünïcödé ☃', '\\N'])[g]"),
    (
        "numeric",
        "SELECT (ARRAY['NaN', '0', '0.10', '-1e40', '1e-40', '123456789012345678901234567890.5', '3', 'Infinity'])[g]::numeric",
    ),
    (
        "timestamptz",
        "SELECT CASE g WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity' ELSE '2026-03-29 01:59:59.999999+00' END::timestamptz + g * interval '1 us'",
    ),
    ("date", "SELECT CASE g WHEN 1 THEN 'infinity' ELSE '0044-03-15 BC'::date + g END::date"),
    ("bytea", "SELECT decode(repeat('00ff5c27', g), 'hex')"),
    ("color", "SELECT (enum_range(NULL::color))[g]"),
    ("positive", "SELECT g::positive"),
    ("float8", "SELECT CASE g WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' WHEN 3 THEN '4.9e-324' ELSE g / 3.0 END::float8"),
    ("inet", "SELECT ('10.0.0.' || g || '/' || 24 + g)::inet"),
    ("int4range", "SELECT int4range(g, g + 5)"),
    ("bigint[]", "SELECT ARRAY[g, NULL, g * 2]"),
    ("character(5)", "SELECT 'c' || g"),
    ("interval", "SELECT g * interval '1 mon 2 days 03:04:05.6'"),
    ("oid", "SELECT (4294967295 - g)::oid"),
    ("boolean", "SELECT g = 1 WHERE g < 3"),
    ("pair", "SELECT ROW(g, CASE WHEN g > 4 THEN 'a,' || g END)::pair"),
    ("named_pair", "SELECT ROW(g, NULL)::pair::named_pair"),
];

const HELPERS: &str = "CREATE TYPE color AS ENUM ('red', 'light red', 'it''s blue', 'Grün', 'e,5', 'f\"6', '{7}', '8'); \
                       CREATE DOMAIN positive AS int CHECK (value > 0); \
                       CREATE TYPE pair AS (n int, v text); CREATE DOMAIN named_pair AS pair";

fn key_types(capture: Capture) {
    let net = Net::together(capture, 1);
    let table = |n: usize| format!("k{n}");
    let ddl: String = TYPES
        .iter()
        .enumerate()
        .map(|(n, (kind, _))| format!("CREATE TABLE {} (k {kind} PRIMARY KEY, v int);", table(n)))
        .collect();
    net.everywhere(&format!("{HELPERS}; {ddl}"));
    net.add_sync("tables => 'public.k*'");
    let all: Vec<String> = (0..TYPES.len()).map(table).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut a = net.on("A");
    for (n, (_, values)) in TYPES.iter().enumerate() {
        a.exec(&format!("INSERT INTO {} SELECT s.k, g FROM generate_series(1, 8) g, LATERAL ({values}) s (k)", table(n)));
    }
    net.settle(&all);
    all.iter().for_each(|t| a.exec(&format!("UPDATE {t} SET v = v + 100")));
    net.settle(&all);
    all.iter().for_each(|t| a.exec(&format!("DELETE FROM {t} WHERE v % 2 = 1")));
    net.settle(&all);
    assert_eq!(net.on("B").number("SELECT count(*) FROM k1"), 4);
}

fn keys_in_their_own_words(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(&format!(
        "{HELPERS}; CREATE TABLE t (v text, b bytea, c color, u uuid, n numeric(20, 5), at timestamptz, x text COLLATE \"C\", PRIMARY KEY (c, at, n, u, b, x))"
    ));
    net.add_sync("tables => 'public.t'");
    let mut a = net.on("A");
    a.exec(
        "INSERT INTO t SELECT 'v' || g, convert_to(g::text, 'UTF8'), (enum_range(NULL::color))[1 + g % 8], md5(g::text)::uuid, g / 7.0, \
         timestamptz '2026-01-01' + g * interval '1 h', E'x\\n' || g FROM generate_series(1, 300) g",
    );
    net.settle(&["t"]);
    a.exec("UPDATE t SET n = n + 1, c = 'e,5', v = NULL WHERE b < '5'; UPDATE t SET x = x || E'\\t', at = at - interval '1 year' WHERE c = 'red'");
    a.exec("DELETE FROM t WHERE u < '8fffffff-ffff-ffff-ffff-ffffffffffff'");
    net.settle(&["t"]);
}

fn names(capture: Capture) {
    let net = Net::together(capture, 1);
    let long = "n".repeat(63);
    let wide = "ü".repeat(31);
    let odd = [
        (r#""Mixed Case""#, r#""The Table""#, r#""Key Column""#),
        (r#""a.b""#, r#""c.d""#, r#""e.f""#),
        (r#""quote""d""#, r#""it's ""so""""#, r#""k'""ey""#),
        (r#""select""#, r#""order""#, r#""user""#),
        (r#""новая""#, r#""表 ☃""#, r#""clé""#),
        (
            r#""back\slash""#,
            r#""new
line""#,
            r#""$1 %s {0}""#,
        ),
        (long.as_str(), long.as_str(), long.as_str()),
        (&format!("\"{wide}\""), &format!("\"{wide}\""), &format!("\"{wide}\"")),
    ]
    .map(|(schema, table, key)| (schema.to_owned(), format!("{schema}.{table}"), key.to_owned()));
    let ddl: String = odd
        .iter()
        .map(|(schema, table, key)| {
            format!("CREATE SCHEMA {schema}; CREATE TABLE {table} ({key} int PRIMARY KEY, \"a \"\"value\" text);")
        })
        .collect();
    net.everywhere(&ddl);
    let list = odd.iter().map(|(_, table, _)| table.as_str()).collect::<Vec<_>>();
    net.add_sync(&format!("tables => {}", literal(&list.join(", "))));
    let mut a = net.on("A");
    for (_, table, key) in &odd {
        a.exec(&format!("INSERT INTO {table} VALUES (1, 'a'), (2, 'b'), (3, 'c'); UPDATE {table} SET {key} = 4 WHERE {key} = 1"));
    }
    net.settle(&list);
    for (_, table, key) in &odd {
        a.exec(&format!("UPDATE {table} SET \"a \"\"value\" = 'z'; DELETE FROM {table} WHERE {key} = 2"));
    }
    net.settle(&list);
    list.iter().for_each(|table| a.exec(&format!("TRUNCATE {table}")));
    net.settle(&list);
    net.control().exec("SELECT bucardo.remove_sync('s')");
}

fn lookalikes(capture: Capture) {
    let net = Net::together(capture, 1);
    let stem = "x".repeat(60);
    let tables = ["a.b_c", "a_b.c", "a.\"b.c\"", "\"a.b\".c", &format!("a.{stem}_1"), &format!("a.{stem}_2"), "a.\"T\"", "a.t"];
    net.everywhere("CREATE SCHEMA a; CREATE SCHEMA a_b; CREATE SCHEMA \"a.b\"");
    tables.iter().for_each(|t| net.everywhere(&format!("CREATE TABLE {t} (id int PRIMARY KEY, v text)")));
    net.add_sync(&format!("tables => {}", literal(&tables.join(","))));
    let mut a = net.on("A");
    for (n, table) in tables.iter().enumerate() {
        a.exec(&format!("INSERT INTO {table} SELECT g, 'of {n}' FROM generate_series(1, {}) g", n + 1));
    }
    net.settle(&tables);
    a.exec("DELETE FROM a.b_c; UPDATE a_b.c SET v = 'x'; TRUNCATE a.t");
    net.settle(&tables);
    assert_eq!(net.on("B").number("SELECT count(*) FROM a.\"T\""), 7);
}

fn unique_index_as_key(capture: Capture) {
    let net = Net::together(capture, 1);
    net.everywhere(
        "CREATE TABLE wide (a int NOT NULL, b int NOT NULL, c text, v text, UNIQUE (a, b)); \
         CREATE TABLE narrow (x int NOT NULL, y int NOT NULL, z int UNIQUE, v text); CREATE UNIQUE INDEX two ON narrow (x, y); \
         CREATE UNIQUE INDEX one ON narrow (y); CREATE UNIQUE INDEX part ON narrow (x) WHERE v = 'only'; \
         CREATE TABLE named (id int NOT NULL UNIQUE, k text NOT NULL, v text); CREATE UNIQUE INDEX named_k ON named (k)",
    );
    net.control().exec(
        "SELECT bucardo.add_relgroup('g', 'public.wide,public.narrow'); \
         SELECT bucardo.add_table('public.named', 'g', db => 'A', pkey => 'named_k')",
    );
    net.add_sync("relgroup => 'g'");
    let mut a = net.on("A");
    a.exec("INSERT INTO wide SELECT g, -g, NULL, 'v' FROM generate_series(1, 50) g; INSERT INTO narrow SELECT g % 5, g, NULL, 'v' FROM generate_series(1, 50) g");
    a.exec("INSERT INTO named SELECT g, 'k' || g, 'v' FROM generate_series(1, 9) g");
    net.settle(&["wide", "narrow", "named"]);
    a.exec("UPDATE wide SET b = b * 2, c = 'c' WHERE a > 40; UPDATE narrow SET y = y + 1000 WHERE x = 1; DELETE FROM narrow WHERE x = 2");
    a.exec("UPDATE named SET k = 'new' || id WHERE id < 4; UPDATE named SET v = 'w' WHERE id > 6");
    net.settle(&["wide", "narrow", "named"]);
}

/// What `pkey` names serves only where there is no primary key.
#[test]
fn a_primary_key_goes_before_pkey() {
    let m = Plan::new(2).start();
    m.everywhere(
        "CREATE TABLE pk (id int PRIMARY KEY, k text NOT NULL CONSTRAINT pk_k UNIQUE); \
         CREATE TABLE nopk (id int NOT NULL UNIQUE, k text NOT NULL CONSTRAINT nopk_k UNIQUE)",
    );
    m.control().exec(
        "SELECT bucardo.add_relgroup('g'), bucardo.add_table('public.pk', 'g', db => 'A', pkey => 'pk_k'), \
         bucardo.add_table('public.nopk', 'g', db => 'A', pkey => 'nopk_k')",
    );
    m.sync("relgroup => 'g'");
    m.changes(&[
        ("A", "INSERT INTO pk VALUES (1, 'A'); INSERT INTO nopk VALUES (1, 'k')"),
        ("B", "INSERT INTO pk VALUES (1, 'B'); INSERT INTO nopk VALUES (2, 'k')"),
    ]);
    m.drain_equal(&["pk", "nopk"]);
    let keys = |table| m.control().one(&format!("SELECT key FROM bucardo.conflict WHERE relation = 'public.{table}'"));
    assert_eq!(keys("pk"), r#"{"id": 1}"#);
    assert_eq!(keys("nopk"), r#"{"k": "k"}"#);
}

/// Two sources, because a whole table in place of single keys shows there only: it contends with nothing.
fn operators_of_extensions(capture: Capture) {
    let m = Plan::new(2).capture(capture).start().with(
        "CREATE SCHEMA \"Odd Schema\"; CREATE EXTENSION ltree; CREATE EXTENSION citext SCHEMA \"Odd Schema\"; \
         CREATE TABLE l (k ltree PRIMARY KEY, v text); \
         CREATE TABLE p (n int, k \"Odd Schema\".citext, v text, PRIMARY KEY (n, k)) PARTITION BY LIST (n); \
         CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1)",
        "tables => 'public.l,public.p'",
    );
    let rows = "VALUES ('a'), ('b'), ('c'), ('e'), ('f')";
    m.on("A").exec(&format!(
        "INSERT INTO l SELECT k::ltree, '0' FROM ({rows}) s (k); INSERT INTO p SELECT 1, k, '0' FROM ({rows}) s (k)"
    ));
    m.drain_equal(&["l", "p"]);
    for (db, table, sql) in [
        ("B", "l", "SET v = 'B newer' WHERE k = 'b'"),
        ("B", "p", "SET v = 'B newer' WHERE k::text = 'b'"),
        ("A", "l", "SET v = 'A' WHERE k = 'a'"),
        ("A", "p", "SET v = 'A' WHERE k::text = 'a'"),
        ("B", "l", "SET v = 'B newest' WHERE k = 'a'"),
        ("B", "p", "SET v = 'B newest' WHERE k::text = 'a'"),
        ("A", "l", "SET k = 'x' || k WHERE k IN ('e', 'f')"),
        ("A", "p", "SET k = 'x.' || k WHERE k::text IN ('e', 'f')"),
        ("A", "p", "SET k = upper(k::text) WHERE k::text = 'c'"),
        ("B", "p", "SET v = 'again' WHERE k::text = 'c'"),
    ] {
        m.on(db).exec(&format!("UPDATE {table} {sql}"));
    }
    m.drain_equal(&["l", "p"]);
    m.expect_everywhere(
        "SELECT string_agg(k::text || ' ' || v, ', ' ORDER BY k::text) FROM l",
        "a B newest, b B newer, c 0, x.e 0, x.f 0",
    );
    m.expect_everywhere(
        "SELECT string_agg(k::text || ' ' || v, ', ' ORDER BY k::text COLLATE \"C\") FROM p",
        "a B newest, b B newer, c again, x.e 0, x.f 0",
    );
    assert_eq!(m.count_conflicts("winner = 'B'"), 3);
}

/// A deferrable key refuses no second row while rows are applied: what a run has brought already, and cannot know, must not
/// be brought again beside it.
#[test]
fn a_deferrable_key_doubles_no_row() {
    let net = Net::together(Capture::Plain, 1);
    net.on("A").exec("CREATE TABLE t (id int PRIMARY KEY, v text)");
    net.on("B").exec("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text)");
    net.add_sync("tables => 'public.t'");
    net.control().exec("SELECT bucardo.fault_set('kid.before_mark', 'kill')");
    net.on("A").exec("INSERT INTO t SELECT g, 'new' FROM generate_series(1, 1000) g");
    net.wait_served();
    assert_eq!(net.on("B").one("SELECT count(*) || ' ' || count(DISTINCT id) FROM t"), "1000 1000");
    net.settle(&["t"]);
    // Nor what an application stores at the same time.
    let mut other = net.on("B");
    other.exec("BEGIN; INSERT INTO t VALUES (2000, 'B')");
    net.on("A").exec("INSERT INTO t VALUES (2000, 'A')");
    wait_until("the run to be over, or to wait", || {
        net.pending() == 0 || net.on("B").number("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0
    });
    other.exec("COMMIT");
    net.settle(&["t"]);
    assert_eq!(net.on("B").one("SELECT string_agg(v, ',') FROM t WHERE id = 2000"), "A");
}

/// A key column that calls keys of the source equal would have two of its rows written to one, without an error.
#[test]
fn keys_that_would_become_one_are_refused() {
    let net = Net::together(Capture::Plain, 1);
    net.everywhere("CREATE COLLATION fold (provider = icu, locale = 'und-u-ks-level2', deterministic = false)");
    let tables = [
        ("numeric", "numeric(10,2)", "its type rounds them"),
        ("timestamptz", "date", "its type rounds them"),
        ("text", "text COLLATE fold", "its collation calls different texts equal"),
    ];
    for (here, there, why) in tables {
        net.on("A").exec(&format!("CREATE TABLE k (id {here} PRIMARY KEY, v int)"));
        net.on("B").exec(&format!("CREATE TABLE k (id {there} PRIMARY KEY, v int)"));
        let call = "SELECT bucardo.add_sync('s', dbs => 'A:source,B:target', tables => 'public.k')";
        let error = net.control().expect_error(call, "55000");
        assert!(error.message.contains(why), "{here} to {there}: {error}");
        // What it says mends it.
        net.on("B").exec(&error.hint);
        net.control().exec(call);
        net.control().exec("SELECT bucardo.remove_sync('s')");
        net.everywhere("DROP TABLE k");
    }
}

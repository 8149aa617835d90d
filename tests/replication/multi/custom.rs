//! Conflicts decided by a function of the control database: it names a winner for all, a winner or a merged row for each
//! key, or gives no answer, and then the strategy decides.

use super::{Multi, Place, Plan};
use crate::cluster::Stop;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, n int, val text)";

/// A function `decide(jsonb)` with that body, registered for all relations of all syncs.
fn decided_by(m: &Multi, language: &str, body: &str) {
    m.control().exec(&format!(
        "CREATE OR REPLACE FUNCTION decide(context jsonb) RETURNS jsonb LANGUAGE {language} AS $body$ {body} $body$"
    ));
    m.control().exec("SELECT bucardo.add_customcode('judge', whenrun => 'conflict', code => 'decide(jsonb)'::regprocedure)");
}

fn contested(sources: usize) -> Multi {
    Plan::new(sources).start().with(T, "tables => 'public.t'")
}

fn insert_on_all(m: &Multi, ids: &str) {
    for (n, name) in m.sources.iter().enumerate() {
        m.on(name).exec(&format!("INSERT INTO t SELECT g, {}, '{name}' FROM unnest(ARRAY[{ids}]) g", 10_i32.pow(n as u32)));
    }
}

/// Merges: `n` is summed over the contenders, `val` concatenated in the order of their names.
pub const MERGE: &str = "SELECT jsonb_build_object('winners', jsonb_agg(jsonb_build_object('key', c->'key', 'row', c->'key' || jsonb_build_object( \
    'n', (SELECT sum((r.value->>'n')::int) FROM jsonb_each(c->'rows') r WHERE jsonb_typeof(r.value) = 'object'), \
    'val', (SELECT string_agg(r.value->>'val', '+' ORDER BY r.key) FROM jsonb_each(c->'rows') r WHERE jsonb_typeof(r.value) = 'object'))))) \
    FROM jsonb_array_elements(context->'conflicts') c";

#[test]
fn one_winner_for_all() {
    let m = contested(3);
    decided_by(&m, "sql", r#"SELECT '{"winner": "B"}'::jsonb"#);
    insert_on_all(&m, "1, 2");
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT string_agg(id || val, ' ' ORDER BY id) FROM t", "1B 2B");
    assert_eq!(m.count_conflicts("winner = 'B'"), 2);
    assert_eq!(m.counted(), 2);
    assert_eq!(m.kick(), "empty");
}

#[test]
fn a_merged_row_goes_to_everybody() {
    let m = contested(3);
    decided_by(&m, "sql", MERGE);
    insert_on_all(&m, "1, 2, 3");
    m.on("A").exec("INSERT INTO t VALUES (4, 1, 'alone')");
    assert_eq!(m.kick(), "good");
    m.expect_everywhere(
        "SELECT string_agg(concat_ws(' ', id, n, val), ', ' ORDER BY id) FROM t",
        "1 111 A+B+C, 2 111 A+B+C, 3 111 A+B+C, 4 1 alone",
    );
    assert_eq!(m.count_conflicts("true"), 3);
    assert_eq!(m.count_conflicts(r#"rows->'C' = jsonb_build_object('id', key->'id', 'n', 100, 'val', 'C')"#), 3);
    assert_eq!(m.kick(), "empty", "a merged row is no change of anybody");
    // The next change of one source goes on from the merged row.
    m.on("B").exec("UPDATE t SET n = n + 1 WHERE id = 1");
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT n FROM t WHERE id = 1", "112");
}

/// Within the function the run's own transactions on the members are there, for a role that has no rights of its own either.
#[test]
fn a_code_reads_and_writes_in_the_runs_transactions() {
    let m = contested(2);
    m.everywhere("CREATE TABLE note (n int)");
    let mut control = m.control();
    control.exec(
        "CREATE ROLE judge; GRANT USAGE ON SCHEMA bucardo TO judge; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA bucardo TO judge; \
         GRANT CREATE ON SCHEMA public TO judge; CREATE FUNCTION trap() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS \
         $$SELECT bucardo.member_exec('T', 'INSERT INTO public.note VALUES (0)')$$",
    );
    control.exec(
        "SET ROLE judge; CREATE FUNCTION decide(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $body$ \
         DECLARE who text; n bigint; \
         BEGIN \
           SELECT q->>'val' INTO who FROM bucardo.member_query('A', 'SELECT val, 1.50 AS n FROM public.t ORDER BY id DESC LIMIT 1 -- last') q \
             WHERE q->>'n' = '1.50'; \
           n := bucardo.member_exec('T', 'INSERT INTO public.note SELECT generate_series(1, 3)'); \
           n := n + bucardo.member_exec('B', 'INSERT INTO public.note VALUES (1)'); \
           BEGIN PERFORM bucardo.member_exec('B', 'DELETE FROM public.note; SELECT 1/0'); RAISE 'no error'; EXCEPTION WHEN division_by_zero THEN NULL; END; \
           BEGIN PERFORM bucardo.member_exec('B', 'COMMIT'); RAISE 'committed'; EXCEPTION WHEN feature_not_supported THEN NULL; END; \
           BEGIN PERFORM bucardo.member_query('nobody', 'SELECT 1;'); RAISE 'found'; EXCEPTION WHEN undefined_object THEN NULL; END; \
           BEGIN PERFORM public.trap(); RAISE 'trapped'; EXCEPTION WHEN insufficient_privilege THEN NULL; END; \
           IF context->'conflicts' @> '[{\"key\": {\"id\": 2}}]' THEN RAISE 'not this one'; END IF; \
           RETURN jsonb_build_object('winner', CASE WHEN who = 'A' AND n = 4 THEN 'A' END); \
         END $body$; SELECT bucardo.add_customcode('judge', 'conflict', 'public.decide(jsonb)'); RESET ROLE",
    );
    insert_on_all(&m, "1");
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT val FROM t", "A");
    let notes = || ["A", "B", "T"].map(|name| m.on(name).number("SELECT count(*) FROM note"));
    assert_eq!(notes(), [0, 1, 3]);
    // What it did goes with the run.
    insert_on_all(&m, "2");
    assert!(m.try_kick().unwrap_err().message.contains("not this one"));
    assert_eq!(notes(), [0, 1, 3]);
    let rights = "SET ROLE judge; SELECT bucardo.member_exec('A', 'SELECT 1')";
    control.expect_error(rights, "55000");
}

#[test]
fn a_merged_row_where_one_source_deleted() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, n int, val text); INSERT INTO t VALUES (1, 0, 'start')");
    m.sync("tables => 'public.t'");
    decided_by(&m, "sql", MERGE);
    m.changes(&[("A", "UPDATE t SET n = 5, val = 'A'"), ("B", "DELETE FROM t")]);
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT n || val FROM t", "5A");
    assert_eq!(m.kick(), "empty");
}

#[test]
fn each_key_has_its_own_answer_and_those_without_go_by_the_strategy() {
    let m = contested(2);
    decided_by(
        &m,
        "sql",
        r#"SELECT '{"winners": [{"key": {"id": 1}, "db": "A"}, {"key": {"id": 2}, "row": {"id": 2, "n": 7, "val": "merged"}}]}'::jsonb"#,
    );
    insert_on_all(&m, "1, 2, 3");
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT string_agg(concat_ws(' ', id, n, val), ', ' ORDER BY id) FROM t", "1 1 A, 2 7 merged, 3 10 B");
    assert_eq!(m.count_conflicts("true"), 3);
    assert_eq!(m.count_conflicts(r#"key = '{"id": 1}' AND winner = 'A'"#), 1);
    assert_eq!(m.count_conflicts(r#"key = '{"id": 3}' AND winner = 'B' AND strategy = 'bucardo_latest'"#), 1);
}

#[test]
fn no_answer_leaves_it_to_the_strategy() {
    for answer in ["'{}'::jsonb", "NULL::jsonb", r#"'{"message": "nothing to say"}'::jsonb"#] {
        let m = contested(2);
        decided_by(&m, "sql", &format!("SELECT {answer}"));
        insert_on_all(&m, "1");
        assert_eq!(m.kick(), "good");
        m.expect_everywhere("SELECT val FROM t", "B");
        assert_eq!(
            m.conflicts("public.t"),
            [r#"{"id": 1}|bucardo_latest|B|{"A": {"n": 1, "id": 1, "val": "A"}, "B": {"n": 10, "id": 1, "val": "B"}}"#]
        );
    }
}

#[test]
fn the_context_says_what_there_is_to_decide() {
    let m = contested(2);
    m.control().exec("CREATE TABLE heard (context jsonb)");
    decided_by(&m, "plpgsql", r#"BEGIN RAISE LOG 'heard: %', context; RETURN '{"winner": "A"}'; END"#);
    m.on("A").exec("INSERT INTO t VALUES (1, 1, 'A'), (2, 1, 'A'), (9, 1, 'alone')");
    m.on("B").exec("INSERT INTO t VALUES (1, 2, 'B'), (2, 2, 'B'), (8, 2, 'alone')");
    assert_eq!(m.kick(), "good");
    let log = m.servers[0].log();
    let heard: Vec<&str> = log.lines().filter_map(|line| line.split_once("heard: ")).map(|(_, json)| json).collect();
    assert!(!heard.is_empty(), "the function was not called");
    let mut keys = vec![];
    let mut control = m.control();
    for context in heard {
        let context = crate::compare::literal(context);
        let words = "c->>'sync', c->>'whenrun', c->>'relation', (c->>'run')::bigint > 0, c ? 'dbs', c ? 'attempt'";
        assert_eq!(
            control.one(&format!("SELECT concat_ws(' ', {words}) FROM (SELECT {context}::jsonb AS c) s")),
            "s conflict public.t t t t"
        );
        let each = format!(
            "SELECT x->'key'->>'id', (x->'rows' = jsonb_build_object('A', jsonb_build_object('id', x->'key'->'id', 'n', 1, 'val', 'A'), \
             'B', jsonb_build_object('id', x->'key'->'id', 'n', 2, 'val', 'B')))::text, \
             ((x->'changed_at'->>'A')::timestamptz < (x->'changed_at'->>'B')::timestamptz)::text \
             FROM jsonb_array_elements({context}::jsonb->'conflicts') x"
        );
        for row in control.query(&each) {
            assert_eq!((row[1].as_deref(), row[2].as_deref()), (Some("true"), Some("true")), "{context}");
            keys.push(row[0].clone().unwrap());
        }
    }
    keys.sort();
    assert_eq!(keys, ["1", "2"], "only what is contested, each once");
}

#[test]
fn an_error_of_the_function_fails_the_run_and_loses_nothing() {
    let m = contested(2);
    decided_by(&m, "plpgsql", "BEGIN RAISE EXCEPTION 'I cannot decide' USING errcode = 'P0077'; END");
    insert_on_all(&m, "1");
    let error = m.try_kick().expect_err("the run failed");
    assert!(error.full().contains("I cannot decide"), "{error}");
    assert_eq!(m.on("T").number("SELECT count(*) FROM t"), 0);
    assert_eq!(m.count_conflicts("true"), 0);
    m.control().exec("SELECT bucardo.remove_customcode('judge')");
    m.drain_equal(&["t"]);
    m.expect_everywhere("SELECT val FROM t", "B");
    assert_eq!(m.count_conflicts("true"), 1);
}

#[test]
fn answers_that_cannot_be_followed_fail_the_run_in_words() {
    for answer in [
        r#"{"winner": "nobody"}"#,
        r#"{"winner": 5}"#,
        r#"{"winners": [{"key": {"id": 1}, "db": "X"}]}"#,
        r#"{"winners": [{"key": {"id": 1}, "row": {"id": 1, "unknown": 1}}]}"#,
        r#"{"winners": [{"key": {"id": 1}, "row": {"id": 2, "n": 1, "val": "another key"}}]}"#,
        r#"{"winners": [{"key": {"id": 1}, "row": {"id": 1, "n": "no number", "val": "x"}}]}"#,
        r#"{"error": "I refuse"}"#,
    ] {
        let m = contested(2);
        decided_by(&m, "sql", &format!("SELECT '{answer}'::jsonb"));
        insert_on_all(&m, "1");
        m.try_kick().expect_err(answer);
        assert!(!m.last_error().is_empty(), "{answer}");
        assert_eq!(m.on("A").one("SELECT val FROM t"), "A", "{answer}");
        assert_eq!(m.on("B").one("SELECT val FROM t"), "B", "{answer}");
        assert_eq!(m.on("T").number("SELECT count(*) FROM t"), 0, "{answer}");
        assert_eq!(m.servers[0].crash_restarts(), 0);
    }
}

#[test]
fn a_function_for_one_relation_and_one_sync_only() {
    let m = Plan::new(2).start();
    m.everywhere("CREATE TABLE t (id int PRIMARY KEY, n int, val text); CREATE TABLE u (id int PRIMARY KEY, n int, val text)");
    m.sync("tables => 'public.t,public.u'");
    m.control().exec(r#"CREATE FUNCTION first(jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"winner": "A"}'::jsonb $$"#);
    m.control().exec("SELECT bucardo.add_customcode('for_u', 'conflict', code => 'first(jsonb)'::regprocedure, sync => 's', relation => 'public.u')");
    for name in ["A", "B"] {
        m.on(name).exec(&format!("INSERT INTO t VALUES (1, 1, '{name}'); INSERT INTO u VALUES (1, 1, '{name}')"));
    }
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT val FROM t", "B");
    m.expect_everywhere("SELECT val FROM u", "A");
    m.control().exec("SELECT bucardo.update_customcode('for_u', status => 'inactive')");
    for name in ["A", "B"] {
        m.on(name).exec(&format!("UPDATE u SET val = '{name}2'"));
    }
    assert_eq!(m.kick(), "good");
    m.expect_everywhere("SELECT val FROM u", "B2");
}

/// What a code that ends the run leaves pending starts the next one later and later, not at once.
#[test]
fn runs_that_a_code_ends_do_not_follow_without_pause() {
    let m = Plan::new(2).start();
    m.everywhere(T);
    m.sync_over(&m.dbs(), "tables => 'public.t'");
    m.control().exec("SELECT bucardo.pause('s')");
    decided_by(&m, "sql", r#"SELECT '{"endsync": true}'::jsonb"#);
    insert_on_all(&m, "1");
    m.control().exec("SELECT bucardo.resume('s')");
    m.wait_sql_on_control("some runs", "SELECT count(*) >= 10 FROM bucardo.syncrun");
    // A lower bound for a wait that is meant: a slow machine only makes it longer.
    let waited = "SELECT max(started - before) >= '250 ms' FROM \
                  (SELECT started, lag(ended) OVER (ORDER BY run) AS before FROM bucardo.syncrun ORDER BY run LIMIT 10) s";
    assert_eq!(m.control().one(waited), "t", "{}", m.report());
    assert_eq!(m.kick(), "empty");
    m.control().exec("SELECT bucardo.remove_customcode('judge')");
    m.settle(&["t"]);
}

#[test]
fn a_function_that_raises_is_told_although_a_source_is_down() {
    let m = Plan::new(3).place(Place::Apart).start().with(T, "tables => 'public.t'");
    assert_eq!(m.kick(), "empty");
    decided_by(&m, "plpgsql", "BEGIN RAISE EXCEPTION 'I cannot decide'; END");
    m.server_of("C").stop(Stop::Immediate);
    assert_eq!(m.kick(), "empty");
    assert_eq!(m.state(), "stalled");
    m.changes(&[("A", "INSERT INTO t VALUES (1, 1, 'A')"), ("B", "INSERT INTO t VALUES (1, 2, 'B')")]);
    let error = m.try_kick().unwrap_err();
    assert!(error.message.contains("I cannot decide"), "{error}");
    let last = m.last_error();
    assert_eq!(m.state(), "bad", "{last}");
    assert!(last.contains("I cannot decide"), "{last}");
}

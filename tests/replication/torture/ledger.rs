//! Double-entry book-keeping: every value that an application has committed is in its place at the end, or an application
//! has replaced it, or `bucardo.conflict` has it as the loser of a decision. Nothing is lost in silence, and nothing that
//! was replaced comes back.
//!
//! Triggers keep the books in the writers' own transactions. What the replication writes is noted too, for the history
//! that a failure shows, and counts for nothing. No value is ever written twice, but one statement may write several
//! rows: so an entry is a value with its key.

use super::World;
use crate::wire::Row;
use std::collections::HashSet;

/// The tables whose values are booked, with their keys. What has a value only is never replaced.
const BOOKED: [(&str, &[&str]); 3] = [("parent", &["id"]), ("child", &["b", "a"]), ("item", &["id"])];

const BOOKS: &str = "CREATE TABLE ledger (at timestamptz DEFAULT clock_timestamp(), xid bigint DEFAULT pg_current_xact_id()::text::bigint, \
         app boolean DEFAULT current_setting('session_replication_role') <> 'replica', old text, new text, line text); \
     CREATE FUNCTION book() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE \
         mark text := format('concat_ws(''@'', %L, %s, val)', TG_TABLE_NAME, TG_ARGV[0]); before text; after text; \
     BEGIN \
         IF TG_OP = 'TRUNCATE' THEN \
             EXECUTE format('INSERT INTO public.ledger (old, line) SELECT %s, ''TRUNCATE '' || r FROM public.%I r', mark, TG_TABLE_NAME); \
             RETURN NULL; \
         END IF; \
         IF TG_OP <> 'INSERT' THEN EXECUTE format('SELECT %s FROM (SELECT ($1).*) r', mark) INTO before USING OLD; END IF; \
         IF TG_OP <> 'DELETE' THEN EXECUTE format('SELECT %s FROM (SELECT ($1).*) r', mark) INTO after USING NEW; END IF; \
         INSERT INTO public.ledger (old, new, line) VALUES (before, after, concat_ws(' ', TG_OP, OLD, '->', NEW)); \
         RETURN NULL; \
     END $$";

/// Opens the books on every member.
pub fn open(world: &World) {
    world.m.everywhere(BOOKS);
    for (table, key) in BOOKED {
        let key = key.join(", ");
        world.m.everywhere(&format!(
            "CREATE TRIGGER book AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION book('{key}'); \
             CREATE TRIGGER book_all BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION book('{key}'); \
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER book, ENABLE ALWAYS TRIGGER book_all"
        ));
    }
}

fn entries(rows: Vec<Row>) -> HashSet<String> {
    rows.into_iter().filter_map(|row| row[0].clone()).collect()
}

/// All members hold the same entries; else with the history of one that they do not.
pub fn compare(world: &World) {
    for (table, key) in BOOKED {
        let all = format!("SELECT concat_ws('@', '{table}', {}, val) FROM {table}", key.join(", "));
        let on_a = entries(world.m.on("A").query(&all));
        for name in world.m.names() {
            let there = entries(world.m.on(name).query(&all));
            expect_none(world, &format!("on A and not on {name}"), on_a.difference(&there));
            expect_none(world, &format!("on {name} and not on A"), there.difference(&on_a));
        }
    }
}

/// Compares them at quiesce.
pub fn balance(world: &World) {
    let m = &world.m;
    let (mut written, mut replaced, mut defended) = (HashSet::new(), HashSet::new(), HashSet::new());
    for source in &m.sources {
        // A row that another one's change has touched, and whose value has stayed, is the same entry.
        let ended = entries(m.on(source).query("SELECT old FROM ledger WHERE app AND new IS DISTINCT FROM old"));
        written.extend(entries(m.on(source).query("SELECT new FROM ledger WHERE app AND new IS DISTINCT FROM old")));
        // What an application touched here won against its end elsewhere, if that was decided and is on record.
        let touched = entries(m.on(source).query("SELECT new FROM ledger WHERE app AND new = old"));
        let won = BOOKED.iter().flat_map(|(table, key)| recorded(world, table, key, Some(source)));
        defended.extend(won.filter(|e| touched.contains(e) && !ended.contains(e)));
        replaced.extend(ended);
    }
    let (mut there, mut on_record) = (HashSet::new(), HashSet::new());
    for (table, key) in BOOKED {
        there
            .extend(entries(m.on("A").query(&format!("SELECT concat_ws('@', '{table}', {}, val) FROM {table}", key.join(", ")))));
        on_record.extend(recorded(world, table, key, None));
    }
    let lost = written.iter().filter(|e| !replaced.contains(*e) && !there.contains(*e) && !on_record.contains(*e));
    expect_none(world, "written, replaced by nobody, and neither there nor in bucardo.conflict", lost);
    let back = there.iter().filter(|e| replaced.contains(*e) && !defended.contains(*e));
    expect_none(world, "replaced by an application, and there again", back);
    expect_none(world, "written by nobody, and there", there.iter().filter(|e| !written.contains(*e)));
}

/// The entries in recorded decisions: of all members, or those with which one has won.
fn recorded(world: &World, table: &str, key: &[&str], winner: Option<&str>) -> HashSet<String> {
    let image = key.iter().map(|k| format!("r.value->>'{k}'")).collect::<Vec<_>>().join(", ");
    let which = winner.map_or_else(String::new, |name| format!("AND c.winner = '{name}' AND r.key = '{name}'"));
    entries(world.m.control().query(&format!(
        "SELECT DISTINCT concat_ws('@', '{table}', {image}, r.value->>'val') FROM bucardo.conflict c, jsonb_each(c.rows) r \
         WHERE c.relation = 'public.{table}' AND jsonb_typeof(r.value) = 'object' {which}"
    )))
}

fn expect_none<'a>(world: &World, what: &str, mut found: impl Iterator<Item = &'a String>) {
    let Some(first) = found.next() else { return };
    let more = found.count();
    panic!("{what}: {first}, and {more} more\n{}\n{}", history(world, first), world.m.report());
}

/// All that was ever done to the key of an entry, anywhere, by whom; and the decisions about it.
fn history(world: &World, entry: &str) -> String {
    let key = &entry[..=entry.rfind('@').expect("an entry has a key")];
    let like = format!("(starts_with(old, '{key}') OR starts_with(new, '{key}'))");
    let mut lines: Vec<String> = Vec::new();
    for name in world.m.names() {
        let sql = format!(
            "SELECT concat_ws(' ', to_char(at, 'HH24:MI:SS.US'), '{name}', xid, CASE WHEN app THEN 'app ' ELSE 'sync' END, line) FROM ledger WHERE {like} \
             AND at > clock_timestamp() - interval '90 s'"
        );
        lines.extend(world.m.on(name).query(&sql).into_iter().filter_map(|row| row[0].clone()));
    }
    let table = key.split('@').next().unwrap_or_default();
    let decisions = format!(
        "SELECT concat_ws(' ', to_char(decided_at, 'HH24:MI:SS.US'), 'run', run, strategy, 'winner', winner, key, rows) FROM bucardo.conflict \
         WHERE relation = 'public.{table}' AND decided_at > clock_timestamp() - interval '90 s'"
    );
    lines.extend(world.m.control().query(&decisions).into_iter().filter_map(|row| row[0].clone()));
    lines.sort();
    lines.join("\n")
}

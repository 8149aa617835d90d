//! Double-entry book-keeping: every value that an application has committed is in its place at the end, or an application
//! has replaced it, or `bucardo.conflict` has it as the loser of a decision. Nothing is lost in silence, and nothing that
//! was replaced comes back.
//!
//! Triggers keep the books in the applications' own transactions; they say nothing of what the replication writes. No
//! value is ever written twice, but one statement may write several rows: so an entry is a value with its key.

use super::World;
use std::collections::HashSet;

/// The tables whose values are booked, with their keys. What has a value only is never replaced.
const BOOKED: [(&str, &[&str]); 3] = [("parent", &["id"]), ("child", &["b", "a"]), ("item", &["id"])];

const BOOKS: &str = "CREATE TABLE ledger (entry text, gone boolean); \
     CREATE FUNCTION book() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE \
         old_entry text; new_entry text; \
     BEGIN \
         IF TG_OP = 'TRUNCATE' THEN \
             EXECUTE format('INSERT INTO public.ledger SELECT concat_ws(''@'', %L, %s, val), true FROM public.%1$I', TG_TABLE_NAME, TG_ARGV[0]); \
             RETURN NULL; \
         END IF; \
         IF TG_OP <> 'INSERT' THEN EXECUTE format('SELECT concat_ws(''@'', %L, %s, val) FROM (SELECT ($1).*) r', TG_TABLE_NAME, TG_ARGV[0]) INTO old_entry USING OLD; END IF; \
         IF TG_OP <> 'DELETE' THEN EXECUTE format('SELECT concat_ws(''@'', %L, %s, val) FROM (SELECT ($1).*) r', TG_TABLE_NAME, TG_ARGV[0]) INTO new_entry USING NEW; END IF; \
         IF old_entry IS DISTINCT FROM new_entry THEN \
             INSERT INTO public.ledger SELECT e, g FROM (VALUES (old_entry, true), (new_entry, false)) v(e, g) WHERE e IS NOT NULL; \
         END IF; \
         RETURN NULL; \
     END $$";

/// Opens the books on every member.
pub fn open(world: &World) {
    world.m.everywhere(BOOKS);
    for (table, key) in BOOKED {
        let key = key.join(", ");
        world.m.everywhere(&format!(
            "CREATE TRIGGER book AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION book('{key}'); \
             CREATE TRIGGER book_all BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION book('{key}')"
        ));
    }
}

fn entries(rows: Vec<crate::wire::Row>) -> HashSet<String> {
    rows.into_iter().filter_map(|row| row[0].clone()).collect()
}

/// Compares them at quiesce.
pub fn balance(world: &World) {
    let m = &world.m;
    let (mut written, mut replaced) = (HashSet::new(), HashSet::new());
    for source in &m.sources {
        written.extend(entries(m.on(source).query("SELECT entry FROM ledger WHERE NOT gone")));
        replaced.extend(entries(m.on(source).query("SELECT entry FROM ledger WHERE gone")));
    }
    let (mut there, mut recorded) = (HashSet::new(), HashSet::new());
    for (table, key) in BOOKED {
        let image = key.iter().map(|k| format!("r.value->>'{k}'")).collect::<Vec<_>>().join(", ");
        there
            .extend(entries(m.on("A").query(&format!("SELECT concat_ws('@', '{table}', {}, val) FROM {table}", key.join(", ")))));
        recorded.extend(entries(m.control().query(&format!(
            "SELECT DISTINCT concat_ws('@', '{table}', {image}, r.value->>'val') FROM bucardo.conflict c, jsonb_each(c.rows) r \
             WHERE c.relation = 'public.{table}' AND jsonb_typeof(r.value) = 'object'"
        ))));
    }
    let lost: Vec<&String> =
        written.iter().filter(|e| !replaced.contains(*e) && !there.contains(*e) && !recorded.contains(*e)).collect();
    assert!(lost.is_empty(), "written, replaced by nobody, and neither there nor in bucardo.conflict: {lost:?}\n{}", m.report());
    let back: Vec<&String> = there.iter().filter(|e| replaced.contains(*e)).collect();
    assert!(back.is_empty(), "replaced by an application, and there again: {back:?}\n{}", m.report());
    let strange: Vec<&String> = there.iter().filter(|e| !written.contains(*e)).collect();
    assert!(strange.is_empty(), "written by nobody: {strange:?}\n{}", m.report());
}

//! What the statements of a receiver say of columns that are not as others: text alone, without a server.

use super::*;
use crate::kid::shape::UniqueIndex;

fn column(name: &str, type_oid: u32) -> Column {
    Column { name: name.into(), type_oid, ..Column::default() }
}

/// A table with the key `id`.
fn table(others: &[Column]) -> Table {
    let index = UniqueIndex { expressions: vec!["id".into()], ..UniqueIndex::default() };
    let columns = [&[column("id", 20)], others].concat();
    Table { name: "t".into(), only: "ONLY t".into(), columns, uniques: vec![index], ..Table::default() }
}

fn with<T>(table: &Table, columns: &[&str], body: impl FnOnce(&Writing<'_>) -> T) -> T {
    let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
    body(&Writing { table, key: &["id".into()], columns: &columns, stage: "s".into(), noted: false })
}

#[test]
fn an_identity_that_always_generates_is_stored_anew_but_never_set() {
    let table = table(&[Column { identity: 'a', ..column("n", 23) }, column("v", 25)]);
    with(&table, &["id", "n", "v"], |w| {
        assert!(w.update_one().contains(r#"SET "v" = $4 WHERE"#), "{}", w.update_one());
        assert!(w.renew_one().is_some_and(|sql| sql.contains(r#"t."n" IS DISTINCT FROM $3"#)));
        assert_eq!((w.apply_stage(true).len(), w.apply_stage(false).len()), (3, 4));
    });
}

#[test]
fn a_generated_column_is_written_nowhere() {
    let table = table(&[Column { generated: true, ..column("g", 23) }, column("v", 25)]);
    with(&table, &["id", "g", "v"], |w| {
        assert!(!w.takes_copy() && w.renew_one().is_none());
        let all = [vec![w.insert_one(), w.update_one()], w.apply_stage(true), w.apply_stage(false)].concat();
        assert!(all.iter().all(|sql| !sql.contains(r#""g""#)), "{all:?}");
        assert_eq!((w.apply_stage(true).len(), w.apply_stage(false).len()), (2, 3));
    });
}

#[test]
fn behind_a_deferrable_key_no_row_goes_straight() {
    let mut table = table(&[]);
    assert!(with(&table, &["id"], |w| w.takes_copy()));
    table.uniques[0].deferred = true;
    assert!(!with(&table, &["id"], |w| w.takes_copy()));
}

#[test]
fn a_domain_is_staged_and_compared_as_what_it_is_over() {
    let mut table = table(&[column("d", 99_999)]);
    table.domains.insert("d".into(), "text".into());
    let (create, update) = with(&table, &["id", "d"], |w| (w.create_stage(), w.update_one()));
    assert!(create.contains(r#"t."d"::text AS a2"#), "{create}");
    assert!(update.contains(r#"ROW(t."d"::text)::pg_catalog.record"#) && update.contains("ROW($3::text)"), "{update}");
}

#[test]
fn what_only_the_receiver_has_is_kept() {
    let table = table(&[column("v", 25), column("own", 25)]);
    let all = with(&table, &["id", "v"], |w| w.apply_stage_thoroughly());
    assert!(all[3].starts_with(r#"INSERT INTO t ("id", "v", "own")"#) && all[3].contains(r#"o."own""#), "{}", all[3]);
}

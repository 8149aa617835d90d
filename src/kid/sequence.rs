//! Sequences travel with every run: the receivers get the source's value, whether it was called, and its attributes.
//! `setval` is not undone by a rollback, which is harmless here: the value is the source's in any case.

use crate::catalog::sync::{Relation, Sync};
use crate::ident::{quote_ident, quote_literal};
use crate::libpq::Rows;

fn sequences(sync: &Sync) -> impl Iterator<Item = &Relation> {
    sync.relations.iter().filter(|r| r.is_sequence)
}

fn name(relation: &Relation) -> String {
    format!("{}.{}", quote_ident(&relation.schema), quote_ident(&relation.name))
}

/// The statement that reads all sequences of the sync; None when it has none.
pub fn query(sync: &Sync) -> Option<String> {
    let one = |r: &Relation| {
        let name = name(r);
        format!(
            "SELECT {id}, s.last_value, s.is_called, p.seqstart, p.seqincrement, p.seqmin, p.seqmax, p.seqcycle \
             FROM {name} s, pg_catalog.pg_sequence p WHERE p.seqrelid = {literal}::pg_catalog.regclass",
            id = r.id,
            literal = quote_literal(&name)
        )
    };
    let all: Vec<String> = sequences(sync).map(one).collect();
    (!all.is_empty()).then(|| all.join(" UNION ALL "))
}

/// All sequences as one text, to see whether anything moved.
pub fn fingerprint(rows: &Rows) -> String {
    let row = |i: usize| (0..rows.columns()).map(|c| rows.text(i, c)).collect::<Vec<_>>().join(",");
    let mut all: Vec<String> = (0..rows.len()).map(row).collect();
    all.sort();
    all.join(";")
}

/// The statements that make a receiver's sequences equal to the source's.
pub fn statements(sync: &Sync, source: &Rows, receiver: &Rows) -> Vec<String> {
    let mut all = Vec::new();
    for relation in sequences(sync) {
        let id = relation.id.to_string();
        let find = |rows: &Rows| (0..rows.len()).find(|i| rows.text(*i, 0) == id);
        let (Some(from), Some(to)) = (find(source), find(receiver)) else { continue };
        let text = |c: usize| source.text(from, c);
        let differs = |c: usize| text(c) != receiver.text(to, c);
        let name = name(relation);
        if (3..8).any(differs) {
            let cycle = if source.bool(from, 7) { "CYCLE" } else { "NO CYCLE" };
            let restart = format!("RESTART WITH {}", text(1));
            all.push(format!(
                "ALTER SEQUENCE {name} INCREMENT BY {} MINVALUE {} MAXVALUE {} START WITH {} {restart} {cycle}",
                text(4),
                text(5),
                text(6),
                text(3)
            ));
        }
        if (1..8).any(differs) {
            let called = source.bool(from, 2);
            all.push(format!("SELECT pg_catalog.setval({}::pg_catalog.regclass, {}, {called})", quote_literal(&name), text(1)));
        }
    }
    all
}

//! Rows that a source holds and that have lost since, without its being told. A run gave them to it and died before it had noted
//! that where they came from; the next one, which decided against them, took it for one that has not got them, and it was
//! away. By its own account nothing of them is pending when it is back: it gets what became of them. Asked only where a
//! source's own account is ahead of what is noted elsewhere. It must never write over what that source has changed itself.

use super::settle::Written;
use super::{Broken, Mesh};
use crate::ident::text_array;
use crate::kid::gather::strings;
use crate::kid::reading::Reading;
use crate::kid::shape::Table;
use crate::kid::statements::Window;

/// How many rows are renewed at once.
const AT_ONCE: usize = 500;
const CAPTURE: &str = "SELECT pg_catalog.to_json(c.keys), pg_catalog.to_json(c.segments::pg_catalog.regclass[]::pg_catalog.text[]), c.batched \
    FROM bucardo.capture c WHERE c.relid = $1::pg_catalog.oid";

/// What a source captures of a relation, also where nobody waits for any of it.
pub(super) struct Captured {
    slots: Vec<usize>,
    segments: Vec<String>,
    batched: bool,
}

impl Captured {
    pub fn reading<'a>(&'a self, source: &'a Table, key: &'a [String], news: &'a str) -> Reading<'a> {
        let Self { slots, segments, batched } = self;
        Reading { slots, segments, batched: *batched, news, ..Reading::of(source, key, &[]) }
    }
}

impl Mesh<'_> {
    /// What a source captures of a relation, if its key is that of this run.
    pub(super) fn captured(&mut self, at: usize, relation: i32) -> Result<Option<Captured>, Broken> {
        let Some(oid) = self.members[at].shapes.get(&relation).map(|t| t.oid.to_string()) else { return Ok(None) };
        let found = self.members[at].attempt(|conn| conn.query_params(CAPTURE, &[Some(&oid)]));
        self.check()?;
        let Some(found) = found.filter(|rows| rows.len() > 0) else { return Ok(None) };
        let (captured, segments, batched) = (strings(found.get(0, 0))?, strings(found.get(0, 1))?, found.bool(0, 2));
        let slots = self.key_of(relation).iter().map(|k| Some(captured.iter().position(|c| c == k)? + 1)).collect();
        let slots: Option<Vec<usize>> = slots;
        Ok(slots.filter(|s| s.len() == captured.len()).map(|slots| Captured { slots, segments, batched }))
    }

    /// Whether some source may have given rows of a relation that have lost since.
    pub(super) fn may_be_stale(&self, relation: i32) -> bool {
        (0..self.members.len()).any(|at| self.gave_stale(at, relation))
    }

    fn gave_stale(&self, at: usize, relation: i32) -> bool {
        self.offers[at].as_ref().is_some_and(|o| !o.noted.is_empty()) && self.settled_of(at, relation).is_some()
    }

    /// Brings the rows as they are now, at the end of a run, to who may hold such ones.
    pub(super) fn renew_stale(&mut self, relations: &[i32]) -> Result<(), Broken> {
        for relation in relations {
            for at in self.sources().into_iter().filter(|at| self.gave_stale(*at, *relation)).collect::<Vec<_>>() {
                let noted = self.offers[at].iter().flat_map(|o| o.noted.clone()).collect::<Vec<_>>();
                for (member, noted) in noted {
                    let Some(to) = self.place(member) else { continue };
                    let keys = self.lost_since(at, *relation, member, &noted)?;
                    let keys = self.not_its_own(to, *relation, self.members[at].index, keys)?;
                    for some in keys.chunks(AT_ONCE) {
                        self.ask_rows(at, *relation, &some.iter().map(Vec::as_slice).collect::<Vec<_>>(), false)?;
                        let rows = self.take_rows(at);
                        self.check()?;
                        let towards = self.members[to].bit();
                        let row =
                            |(key, (_, row)): (&Vec<String>, _)| Written { towards, ..Written::everywhere(key.clone(), row) };
                        let written: Vec<Written> = some.iter().zip(rows).map(row).collect();
                        self.write(*relation, &written)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The keys that a member was served by a source after what that one has noted, and that have lost since.
    fn lost_since(&mut self, at: usize, relation: i32, member: usize, noted: &Window) -> Result<Vec<Vec<String>>, Broken> {
        let (key, own) = (self.key_of(relation), self.members[at].bit());
        let Some(table) = self.members[at].shapes.get(&relation).cloned() else { return Ok(Vec::new()) };
        let windows = self.offers[at].as_ref().map(|o| o.windows.clone()).unwrap_or_default();
        let Some((_, served)) = windows.into_iter().find(|(index, _)| *index == member) else { return Ok(Vec::new()) };
        let Some(captured) = self.captured(at, relation)? else { return Ok(Vec::new()) };
        // What nobody has won stays as it is.
        let lost =
            self.table_of_settled(at, relation, |entry| if entry.known || entry.open & own == 0 { u64::MAX } else { 0 })?;
        let news = self.news();
        let reading = captured.reading(&table, &key, &news);
        let had = format!("CASE WHEN {} THEN 0::pg_catalog.int8 ELSE 1::pg_catalog.int8 END", served.condition());
        let sql = format!(
            "SELECT {} FROM ({}) d WHERE d.held AND d.towards <> 0",
            reading.keys("d."),
            reading.changes(noted, "d.at", &had, lost.as_deref())
        );
        let rows = self.members[at].attempt(|conn| conn.query(&sql));
        self.check()?;
        let texts =
            |rows: &crate::libpq::Rows| (0..rows.len()).map(|row| (0..key.len()).map(|c| rows.text(row, c)).collect()).collect();
        Ok(rows.as_ref().map(texts).unwrap_or_default())
    }

    /// Those of the keys that the source `at` has not changed itself, as far as the one that gave them knows.
    fn not_its_own(
        &mut self,
        at: usize,
        relation: i32,
        giver: usize,
        keys: Vec<Vec<String>>,
    ) -> Result<Vec<Vec<String>>, Broken> {
        if keys.is_empty() || !self.changed(relation).contains(&at) {
            return Ok(keys);
        }
        let own = self.with_work(at, relation, |work, offer| {
            let window = offer.windows.iter().find(|(index, _)| *index == giver).map(|(_, w)| w.clone());
            let reading = work.reading();
            let same = reading.same("u.", "o.");
            (reading.distinct(&window.unwrap_or_else(|| offer.union()).condition()), same, reading.keys(""))
        })?;
        let Some((own, same, names)) = own else { return Ok(keys) };
        let typed = self.any_reading(at, relation, |r| r.typed_keys(0))?;
        let sql = format!("SELECT * FROM ({typed}) u({names}) WHERE NOT EXISTS (SELECT FROM ({own}) o WHERE {same})");
        let n = self.key_of(relation).len();
        let arrays: Vec<String> = (0..n).map(|c| text_array(keys.iter().map(|k| k[c].as_str()).collect::<Vec<_>>())).collect();
        let params: Vec<Option<&str>> = arrays.iter().map(|a| Some(a.as_str())).collect();
        let rows = self.members[at].attempt(|conn| conn.query_params(&sql, &params));
        self.check()?;
        let texts = |rows: &crate::libpq::Rows| (0..rows.len()).map(|row| (0..n).map(|c| rows.text(row, c)).collect()).collect();
        Ok(rows.as_ref().map(texts).unwrap_or_default())
    }
}

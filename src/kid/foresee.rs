//! What a run with one source goes by, and its first round trip where the run before was like it: the question what is pending
//! together with the rows that are likely to be. Whether the guess was right is judged in `ahead.rs`. It must never leave a
//! transaction open behind a guess that was wrong.

use std::collections::HashMap;
use std::rc::Rc;

use super::ahead::{Foreseen, Guess};
use super::apply::{Pass, Receiver};
use super::bits;
use super::failure;
use super::few::FEW;
use super::gather::{self, Asker, Gather, Gathered, TableChanges};
use super::members::Session;
use super::oneway::OneWay;
use super::origin;
use super::plan::Plan;
use super::retry::Care;
use super::shape::Shapes;
use crate::error::{Result, SqlState};
use crate::libpq::Rows;

/// What an attempt goes by.
pub struct Given<'a> {
    pub plan: &'a mut Plan,
    pub source: usize,
    pub version: i32,
    pub shapes: Rc<Shapes>,
    pub care: Care,
}

impl Given<'_> {
    pub fn asker(&self) -> Asker<'_> {
        Asker { control: &self.plan.control, sync: &self.plan.sync, source: self.source }
    }

    /// How changes since `served` go into receivers.
    pub fn way<'b>(&'b self, changes: &'b [TableChanges], served: &str, sequences: Option<&'b Rows>) -> OneWay<'b> {
        let plan = &*self.plan;
        let pass = Pass {
            sync: &plan.sync,
            changes,
            window: gather::window(served),
            care: self.care,
            source: &self.shapes,
            source_version: self.version,
            news: origin::news(plan),
            excluded: HashMap::new(),
            level: true,
            noted: plan.noted(),
            relayed: 0,
            origin: plan.origin(self.source),
            tag: String::new(),
        };
        OneWay { pass, guard: plan.guard(), sequences, sequence_query: plan.sequence_query.as_deref() }
    }

    /// Takes the snapshot and learns what is pending, as [`gather::gather`] does, with the rows that are likely to be, and the
    /// receivers' transactions open. None: the guess was wrong, and nothing has been begun.
    pub fn foresee(&self, from: &mut Session, guess: &Guess, receivers: &mut [Receiver]) -> Result<Option<(Gathered, Foreseen)>> {
        let alive = bits::union(receivers.iter().map(Receiver::bit));
        let (asker, sequences) = (self.asker(), self.plan.sequence_query.as_deref());
        let way = self.way(&guess.changes, &guess.served, None);
        let work = way.pass.work(receivers.iter())?;
        if !way.may_guess(receivers, &work) {
            return Ok(None);
        }
        from.conn.pipeline_begin()?;
        let read: Vec<u32> = work.iter().map(|w| w.table.oid).collect();
        gather::queue(from, &asker, alive, sequences, Some((&guess.served, &read)))?;
        let conn = &mut from.conn;
        // Who keeps a table locked in which nothing has changed must not hold up the others.
        conn.pipeline_add(&format!("SET LOCAL lock_timeout = '{}'", from.patience), &[], &[])?;
        way.queue(conn, &work, |item| item.reading().few_uncounted(FEW))?;
        conn.pipeline_send()?;
        way.open(receivers, &work);
        let answers = conn.pipeline_collect();
        way.opened(receivers, &work);
        match answers {
            Ok(answers) => {
                let mut answers = answers.into_iter();
                let gathered = gather::understand(&asker, alive, &self.shapes, sequences.is_some(), &mut answers)?;
                let read = way.understand(answers.skip(1).collect(), &work)?;
                if let Gather::Pending(gathered) = gathered
                    && let Some(found) = guess.confirm(gathered, read, &work)
                {
                    return Ok(Some(found));
                }
            }
            Err(error) if error.code == SqlState::LOCK_NOT_AVAILABLE => {}
            Err(error) => return Err(gather::capture_missing(&self.plan.sync, error)),
        }
        failure::undo(receivers);
        conn.query("ROLLBACK").map(|_| None)
    }
}

//! What a source gave last before it went for ever may have reached only some of the others: it died in the moment in which
//! they committed. Who holds it is seen by the progress that stands at each source, and hands it on. Asked when a source is
//! met anew, as after every change of the sync. It must never take for delivered what a run did not bring to everybody.

use std::collections::{HashMap, HashSet};

use super::gather::capture_missing;
use super::members::Session;
use super::onetimecopy;
use super::plan::Plan;
use super::renew::is_source;
use crate::error::Error;
use crate::ident::text_array;
use crate::pg::{spi, xact};

/// The sources but for the given ones that have brought something to a member, and in which run they did last.
const LEFT: &str = "SELECT source, run FROM bucardo.capture_progress WHERE control = $1 AND sync = $2 AND member = $3 \
    AND source <> member AND source <> ALL ($4::pg_catalog.text[])";
const FORGET: &str = "DELETE FROM bucardo.capture_progress WHERE control = $1 AND sync = $2 AND member = $3 \
    AND source <> ALL ($4::pg_catalog.text[])";
/// Whether all members have got what the source had up to a run.
const GOT_ALL: &str = "SELECT EXISTS (SELECT FROM bucardo.seen WHERE sync = $1 AND db = $2 AND run >= $3)";

/// The session, by its place, of the source that was served last by one that is gone: whole tables go from it to all others.
/// `strangers`: members, by their places in the sync, that may not be the database which gave under their name.
/// `unsound`: those that may lack what others have. None: there is nothing to hand on.
pub fn find(
    plan: &Plan,
    sessions: &mut [(usize, &mut Session)],
    strangers: &HashSet<usize>,
    unsound: &HashSet<usize>,
) -> Result<Option<usize>, (usize, Error)> {
    let name = |index: usize| plan.sync.members[index].db.name.as_str();
    let living = (0..plan.sync.members.len()).filter(|i| is_source(plan, *i) && !strangers.contains(i));
    let (sync, living) = (plan.sync.capture_name(), text_array(living.map(name).collect::<Vec<_>>()));
    // By the source that is gone: its last run, and who was served in it.
    let mut last: HashMap<String, (i64, usize)> = HashMap::new();
    let mut holders = Vec::new();
    for (at, (index, session)) in sessions.iter_mut().enumerate().filter(|(_, (index, _))| is_source(plan, *index)) {
        let params = [plan.control.as_str(), &sync, name(*index), &living].map(Some);
        let rows = session.conn.query_params(LEFT, &params).map_err(|e| (*index, capture_missing(&plan.sync, e)))?;
        for row in 0..rows.len() {
            let found = (rows.number(row, 1).unwrap_or(0), at);
            let best = last.entry(rows.text(row, 0)).or_insert(found);
            *best = found.max(*best);
        }
        holders.extend((rows.len() > 0).then_some(at));
    }
    let mut heir: Option<(i64, usize, String)> = None;
    for (gone, (run, at)) in last {
        let args = [plan.sync.id.into(), gone.as_str().into(), run.into()];
        let all_have_it = xact::transaction(|| spi::value::<bool>(GOT_ALL, &args)).map_err(|e| (sessions[at].0, e))?;
        if all_have_it != Some(true) {
            heir = heir.max(Some((run, at, gone)));
        }
    }
    if let Some((_, at, gone)) = &heir {
        let from = sessions[*at].0;
        if unsound.contains(&from) {
            return Ok(None);
        }
        let takers: Vec<String> = (0..plan.sync.members.len()).filter(|i| *i != from).map(|i| name(i).to_string()).collect();
        onetimecopy::note(&mut sessions[*at].1.conn, plan, from, "all", &takers).map_err(|e| (from, e))?;
        pgrx::warning!(
            "bucardo: sync \"{}\": what db \"{gone}\" gave last, before it went, may have reached db \"{}\" only: whole tables go to {}",
            plan.sync.name,
            name(from),
            takers.join(", ")
        );
    }
    for at in holders {
        let (index, session) = &mut sessions[at];
        let params = [plan.control.as_str(), &sync, name(*index), &living].map(Some);
        session.conn.query_params(FORGET, &params).map_err(|e| (*index, e))?;
    }
    Ok(heir.map(|(_, at, _)| at))
}

//! `onetimecopy`: which receivers get whole tables in their next run is noted at the first source, receiver by receiver,
//! so that one that is away gets them when it is back. Then the option is 0 again. It moves no row itself.

use super::members::Pool;
use super::plan::Plan;
use crate::catalog::sync::{Member, Role};
use crate::error::Result;
use crate::ident::text_array;
use crate::libpq::Conn;
use crate::pg::{spi, xact};

const NOTE: &str = "UPDATE bucardo.capture_track SET copy = $4 \
    WHERE control = $1 AND sync = $2 AND source = $3 AND member = ANY ($5::pg_catalog.text[])";

/// Notes what the option asks for, and takes it back.
pub fn begin(plan: &mut Plan, pool: &mut Pool) -> Result<()> {
    if plan.sync.onetimecopy == 0 {
        return Ok(());
    }
    let first = plan.source()?;
    let all = plan.sync.onetimecopy == 1;
    let gets = |(i, m): &(usize, &Member)| *i != first && (!all || m.role == Role::Target);
    let members: Vec<String> = plan.sync.members.iter().enumerate().filter(gets).map(|(_, m)| m.db.name.clone()).collect();
    let how = if all { "all" } else { "empty" };
    let mut session = pool.take(&plan.sync.members[first].db)?;
    plan.source_shapes(first, &mut session)?;
    note(&mut session.conn, plan, first, how, &members)?;
    pool.give_back(session);
    let id = plan.sync.id;
    xact::transaction(|| spi::execute("UPDATE bucardo.sync SET onetimecopy = 0 WHERE id = $1", &[id.into()]).map(drop))?;
    plan.sync.onetimecopy = 0;
    Ok(())
}

/// Notes at a source which members get whole tables from it: `all`, or those that are `empty` there.
pub fn note(conn: &mut Conn, plan: &Plan, source: usize, how: &str, members: &[String]) -> Result<()> {
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let (sync, source) = (plan.sync.capture_name(), plan.sync.members[source].db.name.as_str());
    conn.query_params(NOTE, &[plan.control.as_str(), &sync, source, how, &text_array(&members)].map(Some)).map(drop)
}

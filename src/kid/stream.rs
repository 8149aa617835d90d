//! One COPY out of the source, fanned out to a COPY into every receiver. Bytes pass through undecoded; the slowest
//! receiver sets the pace, a failed one is left behind, and memory does not grow.

use super::apply::Receiver;
use super::range::Range;
use crate::error::Result;
use crate::libpq::{Conn, CopyOut};

/// How much goes into the stage at once, in bytes: enough to make round trips cheap, little enough that source and receivers
/// are busy at the same time. Of wide rows more, up to so many rows or the most: each part costs some statements.
const CHUNK: usize = 1024 * 1024;
const ROWS: usize = 8000;
const MOST: usize = 4 * CHUNK;
/// What a binary COPY begins with.
const BINARY_HEADER: usize = 19;

/// Streams `out` of the source into all receivers that have not failed. An error is the source's; receivers keep theirs.
pub fn stream(
    source: &mut Conn,
    out: &str,
    receivers: &mut [Receiver],
    relation: &str,
    into: impl Fn(&Receiver) -> String,
) -> Result<()> {
    for receiver in receivers.iter_mut() {
        let sql = into(receiver);
        receiver.attempt_on(relation, |conn| conn.copy_in(&sql));
    }
    let result = pump(source, out, receivers, relation).map_err(|e| e.at(relation));
    for receiver in receivers.iter_mut() {
        match &result {
            Ok(()) => receiver.attempt_on(relation, |conn| conn.copy_end()).map_or((), |rows| receiver.copied = rows),
            Err(_) => {
                receiver.attempt(|conn| conn.copy_abort("the source failed"));
                receiver.spoilt = true;
            }
        }
    }
    result
}

fn pump(source: &mut Conn, out: &str, receivers: &mut [Receiver], relation: &str) -> Result<()> {
    let mut copy = source.copy_out(out)?;
    let mut chunk = Vec::with_capacity(512 * 1024);
    while copy.next_chunk(&mut chunk)? {
        for receiver in receivers.iter_mut() {
            receiver.attempt_on(relation, |conn| conn.copy_put(&chunk));
        }
    }
    Ok(())
}

/// What is done with each part of the rows, in this order for each receiver.
pub struct Parts<'a> {
    /// The COPY that takes a part in.
    pub into: &'a dyn Fn(&Receiver) -> String,
    /// Sends off what is to be done with it, without waiting.
    pub send: &'a dyn Fn(&mut Receiver, Option<Range>),
    /// Waits for that.
    pub collect: &'a dyn Fn(&mut Receiver),
    pub binary: bool,
}

/// Streams `out` part by part: while the receivers work on one, the next is fetched from the source.
pub fn stream_parts(source: &mut Conn, out: &str, receivers: &mut [Receiver], relation: &str, parts: &Parts<'_>) -> Result<()> {
    let mut copy = source.copy_out(out).map_err(|e| e.at(relation))?;
    let mut header = Vec::new();
    let mut part = Vec::with_capacity(2 * CHUNK);
    let mut next = next_part(&mut copy, &mut part, &header);
    while matches!(next, Ok(true)) {
        if parts.binary && header.is_empty() {
            header.extend_from_slice(&part[..BINARY_HEADER.min(part.len())]);
        }
        let range = parts.binary.then(|| Range::of(&part[header.len()..])).flatten();
        for receiver in receivers.iter_mut() {
            let sql = (parts.into)(receiver);
            receiver.attempt_on(relation, |conn| {
                conn.copy_in(&sql)?;
                conn.copy_put(&part)?;
                conn.copy_end().map(drop)
            });
            (parts.send)(receiver, range);
        }
        next = next_part(&mut copy, &mut part, &header);
        receivers.iter_mut().for_each(parts.collect);
    }
    next.map(drop).map_err(|e| e.at(relation))
}

/// Fetches the next part, which begins as the first one did; false when there is none.
fn next_part(copy: &mut CopyOut<'_>, part: &mut Vec<u8>, header: &[u8]) -> Result<bool> {
    part.clear();
    part.extend_from_slice(header);
    let mut rows = 0;
    while part.len() < CHUNK || (rows < ROWS && part.len() < MOST) {
        match copy.append(part)? {
            0 => break,
            more => rows += more,
        }
    }
    Ok(part.len() > header.len())
}

//! One COPY out of the source, fanned out to a COPY into every receiver. Bytes pass through undecoded; the slowest
//! receiver sets the pace, a failed one is left behind, and memory does not grow.

use super::apply::Receiver;
use crate::error::Result;
use crate::libpq::Conn;

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
            Err(_) => receiver.attempt(|conn| conn.copy_abort("the source failed")).unwrap_or(()),
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

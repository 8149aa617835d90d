//! The wire: a safe, interruptible libpq. Every member is reached through here, the control database's own too. Nothing of
//! ours in this folder blocks: each wait is on the process latch and the socket together, so that a cancel, a shutdown or a
//! configuration reload is answered in every phase; names are looked up and cancels sent by threads. What libpq asks by
//! itself it waits for: an LDAP server that a service file names, the host of a service file or of the environment, a
//! Kerberos server. It knows nothing of syncs.

mod cancel;
mod conn;
mod conninfo;
mod copy;
mod doubt;
mod ffi;
mod hosts;
mod opening;
mod pipeline;
mod resolve;
mod result;
mod together;

pub use cancel::cancel_all;
pub use conn::{Conn, Target};
pub use conninfo::Conninfo;
pub use copy::CopyOut;
pub use opening::{Opening, Step};
pub use result::Rows;
pub use together::{read_together, write_together};

//! The wire: a safe, interruptible libpq. Every member is reached through here, the control database's own too.
//! Nothing in this folder blocks: each wait is on the process latch and the socket together, so that a cancel, a
//! shutdown or a configuration reload is answered in every phase. It knows nothing of syncs.

mod cancel;
mod conn;
mod conninfo;
mod copy;
mod doubt;
mod ffi;
mod pipeline;
mod result;

pub use cancel::cancel_all;
pub use conn::{Conn, Opening, Step, Target};
pub use conninfo::Conninfo;
pub use copy::CopyOut;
pub use result::Rows;

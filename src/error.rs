//! The one error type of the extension: what went wrong, under which SQLSTATE, and how to mend it.
//! Everything between the wire and the SQL functions returns it; only `api` and the workers' edges turn it into an
//! error of PostgreSQL. It must never carry a password: whoever builds a message from a conninfo masks it first.

use std::fmt;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::PgSqlErrorCode;

use crate::ident::one_line;

/// A SQLSTATE: five characters, as PostgreSQL and libpq write it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub [u8; 5]);

impl SqlState {
    pub const UNDEFINED_OBJECT: Self = Self(*b"42704");
    pub const DUPLICATE_OBJECT: Self = Self(*b"42710");
    pub const INVALID_PARAMETER: Self = Self(*b"22023");
    pub const CANNOT_CONNECT: Self = Self(*b"08001");
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    pub const IN_USE: Self = Self(*b"2BP01");
    pub const WRONG_STATE: Self = Self(*b"55000");
    pub const READ_ONLY: Self = Self(*b"25006");
    pub const LOCK_NOT_AVAILABLE: Self = Self(*b"55P03");
    pub const TIMED_OUT: Self = Self(*b"57014");
    pub const NOT_ALLOWED: Self = Self(*b"42501");
    pub const NOT_SUPPORTED: Self = Self(*b"0A000");
    pub const SERIALIZATION_FAILURE: Self = Self(*b"40001");
    pub const DEADLOCK: Self = Self(*b"40P01");
    pub const UNIQUE_VIOLATION: Self = Self(*b"23505");
    pub const EXCLUSION_VIOLATION: Self = Self(*b"23P01");
    /// What RAISE gives: code of the user's says that it will not.
    pub const RAISED: Self = Self(*b"P0001");
    pub const INTERNAL: Self = Self(*b"XX000");

    /// Reads the five characters that libpq gives; anything else is an internal error.
    pub fn parse(text: &str) -> Self {
        <[u8; 5]>::try_from(text.as_bytes()).map_or(Self::INTERNAL, Self)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// The first two characters: the class, as `08` for connection exceptions.
    pub fn class(&self) -> &str {
        &self.as_str()[..2]
    }

    /// The number by which the server packs the five characters (six bits each, the first lowest).
    pub fn packed(&self) -> i32 {
        self.0.iter().rev().fold(0, |packed, c| (packed << 6) | i32::from(c.wrapping_sub(b'0') & 0x3f))
    }

    /// The reverse of [`SqlState::packed`].
    pub fn unpack(mut packed: i32) -> Self {
        let mut text = [b'0'; 5];
        for c in &mut text {
            *c = b'0' + (packed & 0x3f) as u8;
            packed >>= 6;
        }
        Self(text)
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error with everything a user needs to mend it.
#[derive(Clone, Debug)]
pub struct Error {
    pub code: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(code: SqlState, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None, hint: None }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(SqlState::INTERNAL, message)
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts where it happened before the message: `member "B": …`.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        // A place is made of names, which may hold anything.
        self.message = format!("{}: {}", one_line(&place.to_string()), self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        let mut report = ErrorReport::new(PgSqlErrorCode::from(error.code.packed()), error.message, "bucardo");
        if let Some(detail) = error.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = error.hint {
            report = report.set_hint(hint);
        }
        report
    }
}

impl From<pgrx::spi::Error> for Error {
    fn from(error: pgrx::spi::Error) -> Self {
        Self::internal(format!("the catalog could not be read: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::SqlState;

    #[test]
    fn a_sqlstate_survives_packing() {
        for text in ["42704", "40P01", "XX000", "08006", "2BP01"] {
            assert_eq!(SqlState::unpack(SqlState::parse(text).packed()).as_str(), text);
        }
    }
}

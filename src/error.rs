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
    pub const UNDEFINED_TABLE: Self = Self(*b"42P01");
    pub const UNDEFINED_COLUMN: Self = Self(*b"42703");
    pub const UNDEFINED_FUNCTION: Self = Self(*b"42883");
    pub const INVALID_SCHEMA: Self = Self(*b"3F000");
    pub const INVALID_CATALOG: Self = Self(*b"3D000");
    pub const DUPLICATE_OBJECT: Self = Self(*b"42710");
    pub const DATATYPE_MISMATCH: Self = Self(*b"42804");
    pub const INVALID_PARAMETER: Self = Self(*b"22023");
    pub const DIVISION_BY_ZERO: Self = Self(*b"22012");
    pub const UNTRANSLATABLE_CHARACTER: Self = Self(*b"22P05");
    pub const CANNOT_CONNECT: Self = Self(*b"08001");
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    pub const IN_USE: Self = Self(*b"2BP01");
    pub const WRONG_STATE: Self = Self(*b"55000");
    pub const READ_ONLY: Self = Self(*b"25006");
    pub const NO_SUCH_CHARACTER: Self = Self(*b"22021");
    pub const LOCK_NOT_AVAILABLE: Self = Self(*b"55P03");
    pub const OBJECT_IN_USE: Self = Self(*b"55006");
    pub const INSUFFICIENT_RESOURCES: Self = Self(*b"53000");
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    pub const TIMED_OUT: Self = Self(*b"57014");
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    pub const CRASH_SHUTDOWN: Self = Self(*b"57P02");
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    pub const IDLE_SESSION_TIMEOUT: Self = Self(*b"57P05");
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    pub const INVALID_PASSWORD: Self = Self(*b"28P01");
    pub const NOT_ALLOWED: Self = Self(*b"42501");
    pub const NOT_SUPPORTED: Self = Self(*b"0A000");
    pub const TRANSACTION_ROLLBACK: Self = Self(*b"40000");
    pub const SERIALIZATION_FAILURE: Self = Self(*b"40001");
    pub const DEADLOCK: Self = Self(*b"40P01");
    pub const UNIQUE_VIOLATION: Self = Self(*b"23505");
    pub const EXCLUSION_VIOLATION: Self = Self(*b"23P01");
    /// What RAISE gives: code of the user's says that it will not.
    pub const RAISED: Self = Self(*b"P0001");
    pub const INTERNAL: Self = Self(*b"XX000");

    /// Reads the five characters that libpq gives; anything else is an internal error.
    pub fn parse(text: &str) -> Self {
        <[u8; 5]>::try_from(text.as_bytes()).ok().filter(|s| s.is_ascii()).map_or(Self::INTERNAL, Self)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// The first two characters: the class, as `08` for connection exceptions.
    pub fn class(&self) -> &str {
        self.as_str().get(..2).unwrap_or("XX")
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

/// A message with the mend, for who has one line for both.
pub fn with_mend(message: &str, hint: &str) -> String {
    if hint.is_empty() { message.to_string() } else { format!("{message} ({hint})") }
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
    /// Whether it is about one of many rows, and does not say which.
    of_some_row: bool,
    /// The values of a row that was refused, as the server tells them. Only its key may be shown: see [`Error::with_key`].
    row: Option<String>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    const NOT_NULL: SqlState = SqlState(*b"23502");
    const FOREIGN_KEY: SqlState = SqlState(*b"23503");
    const CHECK: SqlState = SqlState(*b"23514");
    const CHECK_OPTION: SqlState = SqlState(*b"44000");

    pub fn new(code: SqlState, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None, hint: None, of_some_row: false, row: None }
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

    /// Takes what a server says beside its message. `function` is the place in its source. Whoever may read errors may not
    /// read rows: a detail that shows a whole row is kept back, and of the context the data of a COPY is cut off.
    pub fn said_by_server(mut self, function: Option<&str>, detail: Option<String>, context: Option<String>) -> Self {
        let refused = matches!(self.code, Self::NOT_NULL | Self::CHECK | Self::CHECK_OPTION);
        // The words of a trigger are its author's; a partition that is missing is told by its key.
        let whole = refused && !matches!(function, Some("exec_stmt_raise" | "ExecFindPartition"));
        let (row, detail) = if whole { (detail, None) } else { (None, detail) };
        self.row = row.and_then(|row| Some(row.get(row.find('(')? + 1..row.rfind(')')?)?.to_string()));
        self.detail = detail.or_else(|| context.map(|context| without_data(&context)));
        self
    }

    /// Names the row that was refused by its key, given the columns of the key if the table begins with them. Where a value
    /// holds what stands between values, less than the key is shown, never more.
    pub fn with_key(mut self, key: &[String]) -> Self {
        if let Some(row) = self.row.take().filter(|row| !key.is_empty() && !row.contains(") = (")) {
            let values: Vec<&str> = row.split(", ").take(key.len()).collect();
            self.detail = Some(format!("Key ({})=({}).", key.join(", "), values.join(", ")));
        }
        self
    }

    /// Marks what a statement of many rows has failed with, where that is about one of them: what PostgreSQL says of data and of
    /// what they break, and what code of the user's raises.
    pub fn of_some_row(mut self) -> Self {
        self.of_some_row = matches!(self.code.class(), "22" | "23" | "38" | "39" | "44" | "P0");
        self
    }

    /// Whether it is about a row and does not say which: the server tells the key of one that breaks a constraint between rows,
    /// in its own language.
    pub fn is_of_some_row(&self) -> bool {
        let between = matches!(self.code, SqlState::UNIQUE_VIOLATION | SqlState::EXCLUSION_VIOLATION | Self::FOREIGN_KEY);
        self.of_some_row && !self.detail.as_ref().is_some_and(|detail| between || detail.starts_with("Key ("))
    }

    /// Forgets the values of the row that was refused.
    pub fn without_row(mut self) -> Self {
        self.row = None;
        self
    }

    /// Puts where it happened before the message: `member "B": …`.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        // A place is made of names, which may hold anything.
        self.message = format!("{}: {}", one_line(&place.to_string()), self.message);
        self
    }
}

/// A context without the data of a COPY: `COPY t, line 3, column v: "…"` up to the colon. It is the outermost line, and what
/// follows belongs to the data.
fn without_data(context: &str) -> String {
    let mut kept = String::new();
    for line in context.lines() {
        let end = line.find(": ").filter(|_| line.contains("COPY"));
        kept.push_str(if kept.is_empty() { "" } else { "\n" });
        kept.push_str(&line[..end.unwrap_or(line.len())]);
        if end.is_some() {
            break;
        }
    }
    kept
}

impl Error {
    /// All of it, the mend included, as one text.
    pub fn with_mend(&self) -> String {
        with_mend(&self.to_string(), self.hint.as_deref().unwrap_or_default())
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
    use super::{Error, SqlState};

    fn said(code: &str, function: &str, detail: Option<&str>, context: Option<&str>) -> Error {
        let own = |text: &str| text.to_string();
        Error::new(SqlState::parse(code), "no").said_by_server(Some(function), detail.map(own), context.map(own))
    }

    #[test]
    fn a_row_that_was_refused_is_named_by_its_key_only() {
        let row = Some("Failing row contains (7, a, b), 4111).");
        let key = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        for code in ["23502", "23514"] {
            let error = said(code, "ExecConstraints", row, None);
            assert_eq!(error.to_string(), "no");
            assert_eq!(error.clone().with_key(&key(&["id"])).to_string(), "no (Key (id)=(7).)");
            assert_eq!(error.clone().with_key(&key(&["id", "name"])).to_string(), "no (Key (id, name)=(7, a).)");
            assert_eq!(error.with_key(&[]).to_string(), "no");
        }
        let only = said("23502", "ExecConstraints", Some("Failing row contains (7)."), None);
        assert_eq!(only.with_key(&key(&["id"])).to_string(), "no (Key (id)=(7).)");
        let columns = said("23502", "ExecConstraints", Some("Failing row contains (id, v) = (7, x)."), None);
        assert_eq!(columns.with_key(&key(&["id"])).to_string(), "no");
        let raised = said("23514", "exec_stmt_raise", Some("Ask (the) owner"), None);
        assert_eq!(raised.with_key(&key(&["id"])).to_string(), "no (Ask (the) owner)");
        assert_eq!(
            said("23505", "_bt_check_unique", Some("Key (id)=(7) already exists."), None).to_string(),
            "no (Key (id)=(7) already exists.)"
        );
    }

    #[test]
    fn the_data_of_a_copy_is_not_in_the_context() {
        let shown = |context: &str| said("22P02", "pg_strtoint32", None, Some(context)).to_string();
        assert_eq!(shown("COPY t, line 3, column v: \"4111\n1111\""), "no (COPY t, line 3, column v)");
        assert_eq!(shown("COPY t, line 3: \"7\t4111\""), "no (COPY t, line 3)");
        assert_eq!(shown("COPY t, line 3"), "no (COPY t, line 3)");
        assert_eq!(
            shown("PL/pgSQL function f() line 3 at RAISE\nCOPY t, line 1: \"7\""),
            "no (PL/pgSQL function f() line 3 at RAISE\nCOPY t, line 1)"
        );
        let refused =
            said("23514", "ExecConstraints", Some("Failing row contains (7, 4111)."), Some("COPY t, line 1: \"7\t4111\""));
        assert_eq!(refused.to_string(), "no (COPY t, line 1)");
    }

    #[test]
    fn what_a_server_makes_up_is_taken_as_it_comes() {
        for row in [") and (", ")(", "(", ")", ""] {
            let error = said("23502", "ExecConstraints", Some(row), None);
            assert_eq!(error.with_key(&["id".to_string()]).to_string(), "no", "{row}");
        }
        for code in ["0é12", "€12", "é", "", "ééé"] {
            assert_eq!(SqlState::parse(code).class(), "XX", "{code}");
        }
        assert_eq!(SqlState(*b"0\xc3\xa912").class(), "XX");
        assert_eq!(SqlState::parse("08006").class(), "08");
    }

    #[test]
    fn a_sqlstate_survives_packing() {
        for text in ["42704", "40P01", "XX000", "08006", "2BP01"] {
            assert_eq!(SqlState::unpack(SqlState::parse(text).packed()).as_str(), text);
        }
    }
}

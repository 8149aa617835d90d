//! What the user configured: one file per noun of the schema, each with the struct that the rest of the extension
//! works with and the SQL that loads and stores it. Knows SPI and the schema `bucardo`; `describe`, `pick`, `interleave`
//! and `check` alone look at members. It must never decide what a run does.

pub mod change;
pub mod check;
pub mod cleanup;
pub mod compare;
pub mod customcode;
pub mod db;
pub mod describe;
pub mod group;
pub mod interleave;
mod key;
pub mod options;
pub mod pick;
pub mod relation;
pub mod rest;
pub mod sync;

use crate::error::{Error, Result, SqlState};
use crate::pg::spi;

/// The control database's identity, under which members know it.
pub fn control_id() -> Result<String> {
    spi::value("SELECT id FROM bucardo.control", &[])?.ok_or_else(|| {
        Error::new(SqlState::WRONG_STATE, "bucardo.control is empty")
            .hint("Run DROP EXTENSION bucardo; CREATE EXTENSION bucardo;")
    })
}

/// Whether somebody has stopped the master for good.
pub fn is_stopped() -> Result<Option<bool>> {
    spi::value("SELECT stopped FROM bucardo.control", &[])
}

/// The catalog's nouns that have a name of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Noun {
    Db,
    Dbgroup,
    Relgroup,
    Sync,
    Customcode,
}

impl Noun {
    /// The word for people, which is the table's name too.
    pub fn word(self) -> &'static str {
        match self {
            Self::Db => "db",
            Self::Dbgroup => "dbgroup",
            Self::Relgroup => "relgroup",
            Self::Sync => "sync",
            Self::Customcode => "customcode",
        }
    }

    /// Whether there is one of that name.
    pub fn exists(self, name: &str) -> Result<bool> {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM bucardo.{} WHERE name = $1)", self.word());
        Ok(spi::value(&sql, &[name.into()])?.unwrap_or(false))
    }

    /// Locks the row until the transaction ends, so that nobody else changes or removes it meanwhile; 42704 without it.
    pub fn lock(self, name: &str) -> Result<()> {
        let sql = format!("SELECT name FROM bucardo.{} WHERE name = $1 FOR UPDATE", self.word());
        if spi::write(&sql, &[name.into()], |row| row.get::<String>(1))?.is_empty() { Err(self.unknown(name)) } else { Ok(()) }
    }

    pub fn unknown(self, name: &str) -> Error {
        let word = self.word();
        let hint = match self {
            Self::Db => "See bucardo.db, or add it: SELECT bucardo.add_db('…', 'host=… dbname=…');".to_string(),
            Self::Sync => "See bucardo.sync, or add it: SELECT bucardo.add_sync('…', dbs => '…', tables => '…');".to_string(),
            Self::Customcode => {
                "See bucardo.customcode, or add it: SELECT bucardo.add_customcode('…', 'conflict', code => '…(jsonb)');"
                    .to_string()
            }
            _ => format!("See bucardo.{word}, or add it: SELECT bucardo.add_{word}('…');"),
        };
        Error::new(SqlState::UNDEFINED_OBJECT, format!("{word} \"{}\" does not exist", crate::ident::shown(name))).hint(hint)
    }

    pub fn duplicate(self, name: &str) -> Error {
        let word = self.word();
        let change = if self == Self::Relgroup { "add_table" } else { "update" };
        let hint = if self == Self::Relgroup {
            "Add tables to it with bucardo.add_table, or choose another name.".to_string()
        } else {
            format!("Change it with bucardo.{change}_{word}, or choose another name.")
        };
        Error::new(SqlState::DUPLICATE_OBJECT, format!("{word} \"{name}\" exists already")).hint(hint)
    }
}

//! The options of a sync: checked, filled with their defaults, stored. A null option of add_sync is its default, one
//! of update_sync stays as it is. Whether the members can follow an option is not judged here.

use pgrx::datum::{DatumWithOid, Interval};

use crate::error::{Error, Result, SqlState};
use crate::ident::shown;
use crate::pg::spi;

/// The options in the order of add_sync.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    pub conflict_strategy: Option<&'a str>,
    pub onetimecopy: Option<i32>,
    pub autokick: Option<bool>,
    pub checktime: Option<Interval>,
    pub stayalive: Option<bool>,
    pub kidsalive: Option<bool>,
    pub lifetime: Option<Interval>,
    pub maxkicks: Option<i32>,
    pub isolation_level: Option<&'a str>,
    pub deletemethod: Option<&'a str>,
    pub rebuild_index: Option<bool>,
    pub analyze_after_copy: Option<bool>,
    pub vacuum_after_copy: Option<bool>,
    pub strict_checking: Option<bool>,
    pub priority: Option<i32>,
    pub status: Option<&'a str>,
}

fn bad(message: String, hint: &str) -> Error {
    Error::new(SqlState::INVALID_PARAMETER, message).hint(hint)
}

/// One word of a few.
fn one_of(argument: &str, value: Option<&str>, words: &[&str]) -> Result<()> {
    match value {
        Some(value) if !words.contains(&value) => Err(bad(
            format!("{argument} \"{}\" is not known", shown(value)),
            &format!("{argument} is one of: {}.", words.join(", ")),
        )),
        _ => Ok(()),
    }
}

/// `active` or `inactive`.
pub fn check_status(status: Option<&str>) -> Result<()> {
    one_of("status", status, &["active", "inactive"])
}

/// The shortest checktime: shorter ones would only keep the servers busy.
const MIN_CHECKTIME_MICROS: i128 = 10_000;

/// An interval of at least so many microseconds. For a sync that exists, zero takes it away.
fn check_interval(argument: &str, value: Option<Interval>, least: i128, new: bool) -> Result<()> {
    let none = if new { "leave it out" } else { "give '0'" };
    match value.map(|v| v.as_micros()) {
        Some(0) if !new => Ok(()),
        Some(micros) if micros < least => Err(bad(
            format!("{argument} is negative or too short"),
            &format!("Give {argument} as an interval, as '10s'; {none} for none."),
        )),
        _ => Ok(()),
    }
}

/// One error for all: a single one as it is, several with a line for each.
fn together(mut faults: Vec<Error>) -> Result<()> {
    let count = faults.len();
    let Some(last) = faults.pop() else { return Ok(()) };
    if count == 1 {
        return Err(last);
    }
    faults.push(last);
    let lines: Vec<&str> = faults.iter().map(|f| f.message.as_str()).collect();
    let hints: Vec<&str> = faults.iter().filter_map(|f| f.hint.as_deref()).collect();
    Err(bad(format!("{count} options are wrong"), &hints.join("\n")).detail(lines.join("\n")))
}

impl Options<'_> {
    /// Checks each option by itself, and says all that is wrong. `new`: of a sync that is being added. `dbs`: all there are.
    pub fn check(&self, new: bool, dbs: &[String]) -> Result<()> {
        together(self.faults(new, dbs))
    }

    pub fn faults(&self, new: bool, dbs: &[String]) -> Vec<Error> {
        let checks = [
            check_strategy(self.conflict_strategy, dbs),
            match self.onetimecopy {
                Some(0..=2) | None => Ok(()),
                Some(other) => {
                    Err(bad(format!("onetimecopy must be 0, 1 or 2, not {other}"), "Leave onetimecopy out for no copy."))
                }
            },
            check_interval("checktime", self.checktime, MIN_CHECKTIME_MICROS, new),
            check_interval("lifetime", self.lifetime, 1, new),
            match self.maxkicks {
                Some(..0) => {
                    Err(bad("maxkicks must not be negative".into(), "Give maxkicks => 0 for a kid that is never replaced."))
                }
                _ => Ok(()),
            },
            one_of("isolation_level", self.isolation_level, &["repeatable read", "serializable"]),
            one_of("deletemethod", self.deletemethod, &["delete", "truncate", "truncate_cascade"]),
            check_status(self.status),
        ];
        checks.into_iter().filter_map(Result::err).collect()
    }

    /// The columns and what they are given, in the order of the options.
    fn columns(&self) -> [(&'static str, DatumWithOid<'_>); 16] {
        [
            ("conflict_strategy", self.conflict_strategy.into()),
            ("onetimecopy", self.onetimecopy.into()),
            ("autokick", self.autokick.into()),
            ("checktime", self.checktime.into()),
            ("stayalive", self.stayalive.into()),
            ("kidsalive", self.kidsalive.into()),
            ("lifetime", self.lifetime.into()),
            ("maxkicks", self.maxkicks.into()),
            ("isolation_level", self.isolation_level.into()),
            ("deletemethod", self.deletemethod.into()),
            ("rebuild_index", self.rebuild_index.into()),
            ("analyze_after_copy", self.analyze_after_copy.into()),
            ("vacuum_after_copy", self.vacuum_after_copy.into()),
            ("strict_checking", self.strict_checking.into()),
            ("priority", self.priority.into()),
            ("status", self.status.into()),
        ]
    }

    /// Changes what is given of a sync.
    pub fn update(&self, sync: &str) -> Result<()> {
        let (columns, mut args): (Vec<_>, Vec<_>) = self.columns().into_iter().unzip();
        args.push(sync.into());
        let sets: Vec<String> = columns.iter().enumerate().map(|(i, column)| assignment(column, i + 1)).collect();
        spi::execute(&format!("UPDATE bucardo.sync SET {} WHERE name = ${}", sets.join(", "), args.len()), &args)?;
        Ok(())
    }
}

/// A column takes its argument unless that is null. Of an interval zero takes it away.
fn assignment(column: &str, n: usize) -> String {
    match column {
        "checktime" | "lifetime" => {
            format!("{column} = CASE WHEN ${n} IS NULL THEN {column} ELSE nullif(${n}, interval '0') END")
        }
        _ => format!("{column} = coalesce(${n}, {column})"),
    }
}

/// The strategies that need no names.
const STRATEGIES: [&str; 7] = [
    "bucardo_latest",
    "bucardo_latest_all_tables",
    "bucardo_source",
    "bucardo_target",
    "bucardo_random",
    "bucardo_skip",
    "bucardo_abort",
];

/// Checks a strategy: one of ours, or names of `dbs` with blanks between them.
pub fn check_strategy(strategy: Option<&str>, dbs: &[String]) -> Result<()> {
    let Some(strategy) = strategy else { return Ok(()) };
    let known = |name: &str| dbs.iter().any(|db| db == name);
    let by_names = strategy.split_whitespace().all(known) && !strategy.trim().is_empty();
    if STRATEGIES.contains(&strategy) || known(strategy) || by_names {
        return Ok(());
    }
    let hint = format!(
        "conflict_strategy is one of {}, or names of the sync's sources with blanks between them.",
        STRATEGIES.join(", ")
    );
    Err(bad(format!("conflict_strategy \"{}\" is not known", shown(strategy)), &hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies() {
        let dbs = ["A".to_string(), "B c".to_string(), "D".to_string()];
        for good in ["bucardo_latest", "A", "D A", "B c"] {
            assert!(check_strategy(Some(good), &dbs).is_ok(), "{good}");
        }
        for wrong in ["", " ", "latest", "A X", "bucardo_latest A"] {
            assert_eq!(check_strategy(Some(wrong), &dbs).unwrap_err().code, SqlState::INVALID_PARAMETER, "{wrong}");
        }
        assert!(check_strategy(None, &dbs).is_ok());
    }
}

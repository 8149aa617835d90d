//! A conninfo as libpq parses it: checked, rebuilt, and shown without its password.
//! The full text must go nowhere but to libpq and to the one table that holds it.

use std::ffi::{CStr, CString};
use std::fmt;
use std::ptr;

use super::ffi;
use crate::error::{Error, Result, SqlState};

/// What stands in a masked conninfo or message in place of a password.
const MASK: &str = "********";
/// The keywords whose values nobody may see.
const SECRETS: [&str; 5] = ["password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"];

/// The keywords and values of a connection string or URI. Has no `Debug` that would show a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Conninfo {
    pub options: Vec<(String, String)>,
}

impl Conninfo {
    /// Parses anything that libpq takes. The error is libpq's own message under 22023.
    pub fn parse(text: &str) -> Result<Self> {
        let c =
            CString::new(text).map_err(|_| Error::new(SqlState::INVALID_PARAMETER, "conninfo must not contain a null byte"))?;
        let mut message: *mut std::ffi::c_char = ptr::null_mut();
        // SAFETY: `c` is NUL-terminated and `message` is a valid place for the malloc'ed error text.
        let list = unsafe { ffi::PQconninfoParse(c.as_ptr(), &mut message) };
        if list.is_null() {
            let text = if message.is_null() {
                "out of memory".to_string()
            } else {
                // SAFETY: libpq set a NUL-terminated text that is ours to free.
                let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().trim().to_string();
                // SAFETY: allocated by libpq, freed once.
                unsafe { ffi::PQfreemem(message.cast()) };
                text
            };
            return Err(Error::new(SqlState::INVALID_PARAMETER, format!("conninfo is not valid: {}", unquoted(&text)))
                .hint("Write it as libpq takes it: 'host=… port=… dbname=… user=…', 'postgresql://…' or 'service=…'."));
        }
        let mut options = Vec::new();
        let mut at = list;
        // SAFETY: the array ends with a NULL keyword; keyword and val are NUL-terminated or NULL.
        unsafe {
            while !(*at).keyword.is_null() {
                if !(*at).val.is_null() {
                    let keyword = CStr::from_ptr((*at).keyword).to_string_lossy().into_owned();
                    options.push((keyword, CStr::from_ptr((*at).val).to_string_lossy().into_owned()));
                }
                at = at.add(1);
            }
            ffi::PQconninfoFree(list);
        }
        Ok(Self { options })
    }

    /// Whether the text holds a password, as far as can be told: one that cannot be read may.
    pub fn may_be_secret(text: &str) -> bool {
        Self::parse(text).map_or(true, |info| info.options.iter().any(|(k, _)| SECRETS.contains(&k.as_str())))
    }

    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.options.iter().find(|(k, _)| k == keyword).map(|(_, v)| v.as_str())
    }

    /// The conninfo as users may see it: passwords replaced.
    pub fn masked(&self) -> String {
        let shown = |(k, v): &(String, String)| {
            format!("{k}={}", if SECRETS.contains(&k.as_str()) { MASK.to_string() } else { quoted(v) })
        };
        self.options.iter().map(shown).collect::<Vec<_>>().join(" ")
    }

    /// A message with every password of this conninfo replaced.
    pub fn scrub(&self, message: &str) -> String {
        let secrets = self.options.iter().filter(|(k, v)| SECRETS.contains(&k.as_str()) && !v.is_empty());
        secrets.fold(message.to_string(), |text, (_, secret)| text.replace(secret.as_str(), MASK))
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

/// A value as it must be written in a connection string.
fn quoted(value: &str) -> String {
    let plain = !value.is_empty() && value.chars().all(|c| !c.is_whitespace() && c != '\'' && c != '\\');
    if plain { value.to_string() } else { format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")) }
}

/// libpq repeats what it could not parse between double quotes, and that may be a password: leave it out.
fn unquoted(message: &str) -> String {
    // The one thing that it quotes and that is none of the user's.
    const MISSING: &str = "missing \"=\" after";
    if message.starts_with(MISSING) {
        return format!("{MISSING} a keyword");
    }
    let mut parts = message.splitn(2, '"');
    match (parts.next(), parts.next()) {
        (Some(before), Some(rest)) => {
            let after = rest.rsplit_once('"').map_or("", |(_, after)| after);
            format!("{}{}", before.trim_end(), after)
        }
        _ => message.to_string(),
    }
}

//! The one hook into utility statements: DROP EXTENSION and DROP DATABASE must not wait for our workers, and COMMIT
//! PREPARED is the commit of changes that another session captured. Everything else passes untouched.

use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use pgrx::{pg_guard, pg_sys};

type Utility = unsafe extern "C-unwind" fn(
    *mut pg_sys::PlannedStmt,
    *const c_char,
    bool,
    pg_sys::ProcessUtilityContext::Type,
    pg_sys::ParamListInfo,
    *mut pg_sys::QueryEnvironment,
    *mut pg_sys::DestReceiver,
    *mut pg_sys::QueryCompletion,
);

static PREVIOUS: OnceLock<Option<Utility>> = OnceLock::new();

/// A utility statement that concerns us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Statement {
    DropExtension,
    /// The database's oid.
    DropDatabase(u32),
    CommitPrepared,
}

/// Installs the hook. Only while the server loads its preloaded libraries.
pub fn init() {
    // SAFETY: hooks are chained while libraries load, before any statement runs.
    unsafe {
        if PREVIOUS.set(pg_sys::ProcessUtility_hook).is_ok() {
            pg_sys::ProcessUtility_hook = Some(utility);
        }
    }
}

unsafe extern "C-unwind" {
    // Declared raw: through the guarded binding an application's error would lose its context and its constraint's name.
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        read_only: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        env: *mut pg_sys::QueryEnvironment,
        dest: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// The hook. An ERROR of the statement jumps over this frame, which therefore owns nothing.
unsafe extern "C-unwind" fn utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    env: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the server gives a valid statement; everything is passed on exactly as given.
    unsafe {
        let database = if concerns_us((*statement).utilityStmt) { before(statement) } else { NOT_OURS };
        match PREVIOUS.get() {
            Some(Some(next)) => next(statement, query, read_only, context, params, env, dest, completion),
            _ => standard_ProcessUtility(statement, query, read_only, context, params, env, dest, completion),
        }
        if database != NOT_OURS {
            after(database);
        }
    }
}

/// What `before` answers, beside the oid of a database that is dropped: plain numbers, because the hook may own nothing.
const NOT_OURS: u32 = u32::MAX;
const EXTENSION: u32 = u32::MAX - 1;
const PREPARED: u32 = u32::MAX - 2;

/// The cheap test by the kind of statement alone: it stands in the way of every BEGIN and COMMIT.
///
/// # Safety
/// `node` is NULL or a valid utility statement.
unsafe fn concerns_us(node: *mut pg_sys::Node) -> bool {
    use pg_sys::NodeTag::{T_DropStmt, T_DropdbStmt, T_TransactionStmt};
    // SAFETY: the tag says which struct the node is.
    unsafe {
        !node.is_null()
            && match (*node).type_ {
                T_DropdbStmt => true,
                T_DropStmt => {
                    let drop = &*node.cast::<pg_sys::DropStmt>();
                    // The extension goes with its schema.
                    drop.removeType == pg_sys::ObjectType::OBJECT_EXTENSION
                        || drop.removeType == pg_sys::ObjectType::OBJECT_SCHEMA
                            && drop.behavior == pg_sys::DropBehavior::DROP_CASCADE
                }
                T_TransactionStmt => {
                    (*node.cast::<pg_sys::TransactionStmt>()).kind == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED
                }
                _ => false,
            }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn before(statement: *mut pg_sys::PlannedStmt) -> u32 {
    // SAFETY: a valid statement that concerns us, from the hook.
    let Some(ours) = (unsafe { recognise((*statement).utilityStmt) }) else { return NOT_OURS };
    crate::master::notify::before_utility(&ours);
    match ours {
        Statement::DropExtension => EXTENSION,
        Statement::CommitPrepared => PREPARED,
        Statement::DropDatabase(database) => database,
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn after(what: u32) {
    crate::master::notify::after_utility(&match what {
        EXTENSION => Statement::DropExtension,
        PREPARED => Statement::CommitPrepared,
        database => Statement::DropDatabase(database),
    });
}

/// Which of our statements a parse tree is. A DROP by a role that may not do it concerns nobody: the server refuses it.
///
/// # Safety
/// `node` passed [`concerns_us`].
unsafe fn recognise(node: *mut pg_sys::Node) -> Option<Statement> {
    // SAFETY: the tag says which struct the node is; names are NUL-terminated; inside a transaction, as every utility
    // statement that drops is, and look-ups of what is missing answer 0.
    unsafe {
        let user = pg_sys::GetUserId();
        match (*node).type_ {
            pg_sys::NodeTag::T_DropStmt => {
                let list = (*node.cast::<pg_sys::DropStmt>()).objects;
                let length = if list.is_null() { 0 } else { (*list).length };
                let name = |i: i32| CStr::from_ptr((*pg_sys::list_nth(list, i).cast::<pg_sys::String>()).sval);
                let extension = pg_sys::get_extension_oid(c"bucardo".as_ptr(), true);
                let ours = extension != pg_sys::Oid::INVALID && (0..length).any(|i| name(i) == c"bucardo");
                (ours && pg_sys::pg_extension_ownercheck(extension, user)).then_some(Statement::DropExtension)
            }
            pg_sys::NodeTag::T_DropdbStmt => {
                let database = pg_sys::get_database_oid((*node.cast::<pg_sys::DropdbStmt>()).dbname, true);
                let may = database != pg_sys::Oid::INVALID && pg_sys::pg_database_ownercheck(database, user);
                may.then(|| Statement::DropDatabase(database.to_u32()))
            }
            pg_sys::NodeTag::T_TransactionStmt => Some(Statement::CommitPrepared),
            _ => None,
        }
    }
}

//! PostgreSQL, and what speaks its protocol: SQLSTATE, severity and routine.

use crate::{
    classify::{
        DbVerdict, Phase, Severity,
        row::{
            Means::{Always, AtConnect, BeforeCommit, OutsideTransaction, Uncommitted},
            Row, UNLISTED,
        },
    },
    kind::Kind::{Ambiguous, Broken, Conflict, Invalid, Overloaded, TimedOut, Unavailable},
};

/// What an error of PostgreSQL means, by its SQLSTATE.
///
/// `routine` is the field `R` of the error, the server's function that raised it. A code that is not listed
/// is judged by its class, which is its first two characters. FATAL and PANIC end the session: the
/// connection is discarded, and unless the code is known to come as FATAL, it counts as [lost](super::lost).
///
/// 57P01 from `ProcessInterrupts` is undone on a direct connection, and before any part of the answer came;
/// whoever knows of a pooler in between, or of a row that was delivered, takes it for lost.
///
/// The code 08P01 is also how poolers say that they are full; [`pooler`] tells.
///
/// ```
/// use steadfast::{Kind, classify::{postgres, Fate, Phase, Severity}};
///
/// // `pg_terminate_backend`, or a shutdown.
/// let routine = Some("ProcessInterrupts");
/// let verdict = postgres("57P01", Severity::Fatal, routine, Phase::Statement);
/// assert_eq!((verdict.kind, verdict.fate), (Kind::Unavailable, Fate::Discard));
///
/// // The same on a COMMIT, which may have come through.
/// let verdict = postgres("57P01", Severity::Fatal, routine, Phase::Commit);
/// assert_eq!(verdict.kind, Kind::Ambiguous);
/// ```
pub fn postgres(code: &str, severity: Severity, routine: Option<&str>, phase: Phase) -> DbVerdict {
    row(code, severity, routine).verdict(severity, phase)
}

/// What a pooler means that ends a session because it is full.
///
/// `None` for every other message. A pooler has no code of its own for being full, so the message is read. It is read only where `severity` is FATAL: then it was
/// the pooler or the server that wrote it, while an ERROR may repeat what a user typed.
///
/// ```
/// use steadfast::{Kind, classify::{pooler, Phase, Severity}};
///
/// let verdict = pooler("query_wait_timeout", Severity::Fatal, Phase::Statement).unwrap();
/// assert_eq!(verdict.kind, Kind::Overloaded);
/// assert!(pooler("query_wait_timeout", Severity::Error, Phase::Statement).is_none());
/// ```
pub fn pooler(message: &str, severity: Severity, phase: Phase) -> Option<DbVerdict> {
    if severity != Severity::Fatal {
        return None;
    }
    POOLER
        .iter()
        .find(|row| message.starts_with(row.code))
        .map(|row| row.verdict(severity, phase))
}

/// The first row that speaks of the code; a row's code may be a class.
pub(super) fn row(
    code: &str,
    severity: Severity,
    routine: Option<&str>,
) -> &'static Row<&'static str> {
    TABLE
        .iter()
        .find(|row| code.starts_with(row.code) && row.applies(severity, routine))
        .unwrap_or(&OTHER)
}

/// By code; of several rows for one code the narrower is first, the class last.
#[rustfmt::skip]
pub(super) static TABLE: &[Row<&str>] = &[
    Row::new("08007", Always(Ambiguous), "the server itself does not know how the transaction ended"),
    Row::new("08P01", Uncommitted(Unavailable), "protocol violation: the server or a pooler hung up").fatal(),
    Row::new("08P01", Always(Conflict), "the statement did not fit its bindings, so it was not run: another one has its name")
        .clear_statements(),
    Row::new("08", Uncommitted(Unavailable), "connection trouble"),
    Row::new("0A000", Always(Conflict), "a rival changed the table under a cached statement, which was not run")
        .routine("RevalidateCachedQuery")
        .clear_statements(),
    Row::new("0A", Always(Invalid), "the server can't do what the statement asks"),
    Row::new("22", Always(Invalid), "the data was refused"),
    Row::new("23", Always(Invalid), "a constraint was violated, at COMMIT a deferred one"),
    Row::new("25006", Always(Unavailable), "read-only: after a failover this server is no longer the primary, but another may be"),
    Row::new("25P02", OutsideTransaction(Unavailable), "the transaction has failed before: in one of ours the first error decides, else the connection was left so by another"),
    Row::new("25P03", Always(Unavailable), "ended for sitting idle in a transaction: rolled back, and what came after was never read").fatal(),
    Row::new("26000", Always(Conflict), "the server does not know the prepared statement, so nothing was run").clear_statements(),
    Row::new("28", Always(Broken), "the server does not let us in").fatal(),
    Row::new("28", AtConnect(Broken), "without the right to it; the session goes on"),
    Row::new("2F", Always(Invalid), "an SQL routine failed"),
    Row::new("3D", Always(Broken), "there is no such database").fatal(),
    Row::new("3D", AtConnect(Broken), "the statement names a database that is not there"),
    Row::new("40001", Always(Conflict), "serialization failure: rolled back, also where it is the answer to a COMMIT"),
    Row::new("40003", Always(Ambiguous), "the server itself does not know whether the statement was completed"),
    Row::new("40P01", Always(Conflict), "deadlock: rolled back, so that the others could go on"),
    Row::new("42P05", Always(Conflict), "a prepared statement of that name is there already, so nothing was run").clear_statements(),
    Row::new("42", Always(Invalid), "syntax, or a name that is not there, or no right to it"),
    Row::new("53300", Always(Overloaded), "too many connections: refused at the door").fatal(),
    Row::new("53", Always(Overloaded), "out of disk, memory or slots: rolled back, and may pass when others finish"),
    Row::new("55000", Always(Conflict), "the object is not in the state for it, which may pass; rolled back"),
    Row::new("55006", Always(Conflict), "the object is in use by others; rolled back"),
    Row::new("55P03", Always(Conflict), "the lock was not to be had in time; rolled back"),
    Row::new("57014", Always(TimedOut), "cancelled by a timeout or on request: rolled back"),
    Row::new("57P01", BeforeCommit(Unavailable), "the backend was told to stop, and did so where it checks for it: of 355 such statements none had committed")
        .fatal()
        .routine("ProcessInterrupts"),
    Row::new("57P01", Uncommitted(Unavailable), "the backend was told to stop, and it is not known where it did"),
    Row::new("57P03", BeforeCommit(Unavailable), "starting, recovering or shutting down: refused at the door").fatal(),
    Row::new("57P05", Always(Unavailable), "ended for sitting idle: what came after was never read").fatal(),
    Row::new("57", Uncommitted(Unavailable), "an operator or a crash stepped in"),
    Row::new("58", BeforeCommit(Unavailable), "trouble with the system or its disk: a statement is rolled back, a COMMIT may have been written"),
    Row::new("P0", Always(Invalid), "raised by a function in PL/pgSQL"),
    Row::new("XX001", BeforeCommit(Broken), "corrupt data"),
    Row::new("XX002", BeforeCommit(Broken), "corrupt index"),
    Row::new("XX", BeforeCommit(Unavailable), "internal error: a statement is rolled back, a COMMIT may have been written"),
];

static OTHER: Row<&str> = Row::new("", Always(Invalid), UNLISTED);

/// By how the message begins.
#[rustfmt::skip]
static POOLER: &[Row<&str>] = &[
    Row::new("query_wait_timeout", BeforeCommit(Overloaded), "PgBouncer had no server connection free in time, so nothing was sent on").fatal(),
    Row::new("no more connections allowed", BeforeCommit(Overloaded), "PgBouncer has as many clients as it takes: refused at the door").fatal(),
    Row::new("MaxClientsInSessionMode", BeforeCommit(Overloaded), "Supavisor has as many clients as its pool: refused at the door").fatal(),
];

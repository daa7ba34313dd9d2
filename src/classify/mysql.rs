//! MySQL and MariaDB: error numbers.

use crate::{
    classify::{
        DbVerdict, Phase, Severity,
        row::{
            Means::{Always, AtConnect, BeforeCommit, Uncommitted},
            Row, UNLISTED,
        },
    },
    kind::Kind::{Broken, Conflict, Invalid, Overloaded, TimedOut, Unavailable},
};

/// What an error of MySQL or MariaDB means, by its number.
///
/// The number, not the SQLSTATE: 1226 "too many connections of this user" has the state of a syntax error.
///
/// A deadlock (1213) has rolled back the whole transaction *and left the session outside it*: what follows
/// commits by itself. A lock timeout (1205) has rolled back its statement only, or all if it was the COMMIT
/// that waited, as beside a backup. So a transaction is over after either, and must be rolled back and begun
/// again.
///
/// ```
/// use steadfast::{Kind, classify::{mysql, Phase}};
///
/// assert_eq!(mysql(1213, Phase::Transaction).kind, Kind::Conflict);
/// assert_eq!(mysql(1040, Phase::Connect).kind, Kind::Overloaded);
/// assert_eq!(mysql(1062, Phase::Statement).kind, Kind::Invalid);
/// ```
pub fn mysql(number: u16, phase: Phase) -> DbVerdict {
    row(number).verdict(Severity::Error, phase)
}

pub(super) fn row(number: u16) -> &'static Row<u16> {
    TABLE
        .iter()
        .find(|row| row.code == number)
        .unwrap_or(&OTHER)
}

#[rustfmt::skip]
pub(super) static TABLE: &[Row<u16>] = &[
    Row::new(1020, Always(Conflict), "a rival changed the row since it was read; rolled back"),
    Row::new(1040, Always(Overloaded), "too many connections: refused at the door"),
    Row::new(1044, AtConnect(Broken), "no right to the database"),
    Row::new(1045, Always(Broken), "the server does not let us in"),
    Row::new(1047, Always(Unavailable), "the node is not part of its cluster and takes no commands; another may"),
    Row::new(1049, AtConnect(Broken), "there is no such database"),
    Row::new(1053, Uncommitted(Unavailable), "the server is shutting down"),
    Row::new(1054, Always(Invalid), "there is no such column"),
    Row::new(1062, Always(Invalid), "the key is there already"),
    Row::new(1064, Always(Invalid), "syntax"),
    Row::new(1146, Always(Invalid), "there is no such table"),
    Row::new(1152, Uncommitted(Unavailable), "the server gave the connection up"),
    Row::new(1158, Uncommitted(Unavailable), "the server could not read from the network"),
    Row::new(1159, Uncommitted(Unavailable), "the server waited in vain for the network"),
    Row::new(1160, Uncommitted(Unavailable), "the server could not write to the network, perhaps its answer"),
    Row::new(1161, Uncommitted(Unavailable), "the server waited in vain to write, perhaps its answer"),
    Row::new(1180, Uncommitted(Conflict), "the engine failed at COMMIT: most often a rival in the cluster, but the number does not say"),
    Row::new(1203, Always(Overloaded), "too many connections of this user: refused at the door"),
    Row::new(1205, Always(Conflict), "the lock was not to be had in time; only the statement is rolled back, but all if it was the COMMIT"),
    Row::new(1213, Always(Conflict), "deadlock: all of the transaction is rolled back, and the session is outside it"),
    Row::new(1226, Always(Overloaded), "this user has used up a limit, mostly that of connections"),
    Row::new(1243, Always(Conflict), "the server does not know the prepared statement, so nothing was run").clear_statements(),
    Row::new(1290, Always(Unavailable), "read-only: after a failover this server is no longer the primary, but another may be"),
    Row::new(1317, BeforeCommit(TimedOut), "the query was killed: its statement is rolled back"),
    Row::new(1406, Always(Invalid), "the data is too long"),
    Row::new(1451, Always(Invalid), "other rows refer to it"),
    Row::new(1452, Always(Invalid), "it refers to a row that is not there"),
    Row::new(1614, Always(Conflict), "deadlock in a distributed transaction; rolled back"),
    Row::new(1615, Always(Conflict), "the table changed under a prepared statement, which was not run").clear_statements(),
    Row::new(1792, Always(Invalid), "a write in a transaction that the caller began as read-only"),
    Row::new(1836, Always(Unavailable), "read-only engine: another server may be the primary"),
    Row::new(1927, Uncommitted(Unavailable), "the connection was killed"),
    Row::new(1969, BeforeCommit(TimedOut), "MariaDB's max_statement_time: the statement is rolled back"),
    Row::new(2006, Uncommitted(Unavailable), "the server has gone away, as client libraries number it"),
    Row::new(2013, Uncommitted(Unavailable), "the connection was lost in a query, as client libraries number it"),
    Row::new(3024, BeforeCommit(TimedOut), "MySQL's max_execution_time: the statement is stopped"),
    Row::new(3058, Always(Conflict), "deadlock over a lock of GET_LOCK; it was not given"),
    Row::new(3572, Always(Conflict), "MySQL's NOWAIT: the lock was not free"),
    Row::new(4031, Uncommitted(Unavailable), "the server closed the connection for sitting idle"),
];

static OTHER: Row<u16> = Row::new(0, Always(Invalid), UNLISTED);

//! SQLite: extended result codes.

use crate::{
    classify::{
        DbVerdict, Phase, Severity,
        row::{
            Means::{Always, BeforeCommit, Uncommitted},
            Row, UNLISTED,
        },
    },
    kind::Kind::{Broken, Conflict, Invalid, Overloaded, TimedOut},
};

/// What an error of SQLite means, by its extended result code.
///
/// An extended code that is not listed is judged by its primary code, `code & 0xff`.
///
/// A COMMIT that finds the database busy (5) has not ended its transaction: the COMMIT alone can be repeated.
/// A snapshot that a rival has overtaken (517) never gets better inside its transaction, which must be begun
/// again; `BEGIN IMMEDIATE` avoids it.
///
/// What was interrupted (9) and commits by itself may have been committed: a progress handler is asked once
/// more after that, and its no then comes as the answer.
///
/// ```
/// use steadfast::{Kind, classify::{sqlite, Phase}};
///
/// assert_eq!(sqlite(5, Phase::Commit).kind, Kind::Conflict);
/// // 2067 is a unique constraint, 2067 & 0xff a constraint.
/// assert_eq!(sqlite(2067, Phase::Statement).kind, Kind::Invalid);
/// ```
pub fn sqlite(code: i32, phase: Phase) -> DbVerdict {
    row(code).verdict(Severity::Error, phase)
}

pub(super) fn row(code: i32) -> &'static Row<i32> {
    let find = |code| TABLE.iter().find(|row| row.code == code);
    find(code).or_else(|| find(code & 0xff)).unwrap_or(&OTHER)
}

#[rustfmt::skip]
pub(super) static TABLE: &[Row<i32>] = &[
    Row::new(1, Always(Invalid), "SQL error, or a name that is not there"),
    Row::new(5, Always(Conflict), "busy: another connection writes; nothing was changed"),
    Row::new(6, Always(Conflict), "locked: another statement in this process holds the table"),
    Row::new(7, BeforeCommit(Overloaded), "out of memory; the statement is rolled back"),
    Row::new(8, Always(Broken), "the file can't be written"),
    Row::new(9, Uncommitted(TimedOut), "interrupted, perhaps after the commit, when the progress handler is asked once more"),
    Row::new(10, Uncommitted(Broken), "the disk failed, perhaps after the commit was written"),
    Row::new(11, Always(Broken), "corrupt"),
    Row::new(13, Always(Broken), "the disk is full"),
    Row::new(14, Always(Broken), "the file can't be opened"),
    Row::new(15, Always(Conflict), "lost the race for the locks of the write-ahead log too often"),
    Row::new(19, Always(Invalid), "a constraint was violated"),
    Row::new(20, Always(Invalid), "the type does not fit"),
    Row::new(21, Always(Invalid), "the library was used wrongly"),
    Row::new(25, Always(Invalid), "there is no such parameter"),
    Row::new(26, Always(Broken), "the file is not a database"),
    Row::new(261, Always(Conflict), "busy: another process recovers the write-ahead log"),
    Row::new(262, Always(Conflict), "locked: another connection to the shared cache holds the table"),
    Row::new(517, Always(Conflict), "a rival has written since this transaction read: begin the transaction again"),
    Row::new(773, Always(Conflict), "busy: waited for the lock as long as is allowed"),
];

static OTHER: Row<i32> = Row::new(0, Always(Invalid), UNLISTED);

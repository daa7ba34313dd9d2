//! Ready-made classifiers, and the tables behind them.
//!
//! ```text
//!   io::Error ──────────► Io ──────────────────────────────────────► Kind
//!   sqlx::Error ────────► Sqlx ───────┐
//!   the same, and where ► database() ─┤ severity, code, routine
//!   it came                           ├► postgres() ─┐
//!                                     ├► mysql()    ─┼─ phase ─► DbVerdict { kind, fate, heal, why }
//!                                     └► sqlite()   ─┘
//! ```
//!
//! What an error of a database means depends on what had been sent when it came. A connection lost in the
//! middle of a transaction has done nothing; the same error on its COMMIT may hide a transaction that is in
//! force. So the tables are asked with a [`Phase`]:
//!
//! ```
//! use steadfast::{Kind, classify::{self, Fate, Phase, Severity}};
//!
//! // Deadlock: rolled back, the connection is well.
//! let verdict = classify::postgres("40P01", Severity::Error, None, Phase::Transaction);
//! assert_eq!((verdict.kind, verdict.fate), (Kind::Conflict, Fate::Keep));
//!
//! // The connection was lost.
//! assert_eq!(classify::lost(Phase::Transaction).kind, Kind::Unavailable);
//! assert_eq!(classify::lost(Phase::Commit).kind, Kind::Ambiguous);
//! ```
//!
//! # What is in it
//!
//! | name | judges | needs |
//! |---|---|---|
//! | [`Io`] | `io::Error` | nothing |
#![cfg_attr(
    feature = "sqlx",
    doc = "| [`Sqlx`] | `sqlx::Error` of calls on a plain pool | feature `sqlx` |"
)]
#![cfg_attr(
    feature = "sqlx",
    doc = "| [`database`] | `sqlx::Error` and a [`Phase`] | feature `sqlx` |"
)]
#![cfg_attr(
    feature = "http",
    doc = "| [`HttpStatus`] | `http::Response` by its status | feature `http` |"
)]
//! | [`postgres`] | SQLSTATE, [`Severity`], routine, [`Phase`] | nothing |
//! | [`pooler`] | the message with which a PostgreSQL pooler ends a session | nothing |
//! | [`mysql`] | error number of MySQL or MariaDB, [`Phase`] | nothing |
//! | [`sqlite`] | extended result code, [`Phase`] | nothing |
//! | [`lost`] | a connection that broke, by [`Phase`] | nothing |
//!
//! # How to read the tables
//!
//! Each is a list with a row per code, and with the reason in the row, which comes back as
//! [`DbVerdict::why`]. What must not be done twice is called [`Ambiguous`](crate::Kind::Ambiguous) in doubt.
//! What a code says of the connection follows from what it says of the call: a connection is thrown away if
//! it was still being opened, if the server ended the session, or if the call was `Unavailable`, `Ambiguous`
//! or `Broken`.
//!
//! # Limits
//!
//! A table knows codes, not SQL: a `CALL` or a `DO` that commits inside can't be told from one that does not.
//! Messages are not read, since they repeat what users typed; [`pooler`] is the exception and says why it
//! may.

mod io;
mod mysql;
mod row;
mod sqlite;
mod sqlstate;
#[cfg(feature = "sqlx")]
mod sqlx;
mod verdict;

#[cfg(test)]
mod codes;

#[cfg(feature = "sqlx")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlx")))]
pub use self::sqlx::{Sqlx, database};
pub use self::{
    io::Io,
    mysql::mysql,
    sqlite::sqlite,
    sqlstate::{pooler, postgres},
    verdict::{DbVerdict, Fate, Heal, Phase, Severity, lost},
};
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub use crate::http::HttpStatus;

//! What an error of a database means, and for whom: the call, the connection, its cached statements.

use crate::{
    classify::row,
    kind::{Kind, Verdict},
};

/// What an error of a database means for the call and for its connection.
///
/// Made by [`postgres`](super::postgres), [`mysql`](super::mysql), [`sqlite`](super::sqlite) and [`lost`].
///
/// ```
/// use steadfast::{Kind, classify::{self, Heal, Phase, Severity}};
///
/// // A rival changed the table under a statement that the connection has cached.
/// let routine = Some("RevalidateCachedQuery");
/// let verdict = classify::postgres("0A000", Severity::Error, routine, Phase::Statement);
/// assert_eq!(verdict.kind, Kind::Conflict);
/// assert_eq!(verdict.heal, Heal::ClearStatements);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DbVerdict {
    /// What it means for the call.
    pub kind: Kind,
    /// What is to become of the connection.
    pub fate: Fate,
    /// What must be done on the connection before the call is repeated there.
    pub heal: Heal,
    /// The reason, for logs.
    pub why: &'static str,
}

impl DbVerdict {
    /// The connection is well and has nothing to heal.
    #[cfg(feature = "sqlx")]
    pub(super) fn keep(kind: Kind, why: &'static str) -> Self {
        Self {
            kind,
            fate: Fate::Keep,
            heal: Heal::Nothing,
            why,
        }
    }

    /// The connection must not be used again.
    #[cfg(feature = "sqlx")]
    pub(super) fn discard(kind: Kind, why: &'static str) -> Self {
        Self {
            fate: Fate::Discard,
            ..Self::keep(kind, why)
        }
    }
}

impl From<DbVerdict> for Verdict {
    fn from(verdict: DbVerdict) -> Self {
        verdict.kind.into()
    }
}

/// How far a call had come when its error arrived.
///
/// ```
/// use steadfast::{Kind, classify::{lost, Phase}};
///
/// assert_eq!(lost(Phase::Connect).kind, Kind::Unavailable);
/// assert_eq!(lost(Phase::Statement).kind, Kind::Ambiguous);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing of the call was sent: the connection was being opened or fetched.
    Connect,
    /// A statement outside a transaction was sent; it commits by itself.
    Statement,
    /// Inside an explicit transaction, before its COMMIT was sent.
    Transaction,
    /// The COMMIT was sent.
    Commit,
}

impl Phase {
    /// Every phase, in the order in which a transaction goes through them.
    pub const ALL: [Self; 4] = [
        Self::Connect,
        Self::Statement,
        Self::Transaction,
        Self::Commit,
    ];
}

/// How much an error of PostgreSQL takes with it.
///
/// ```
/// use steadfast::classify::Severity;
///
/// assert_eq!(Severity::parse("FATAL"), Severity::Fatal);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The statement; its transaction is rolled back.
    Error,
    /// The session.
    Fatal,
    /// The server, which restarts.
    Panic,
}

impl Severity {
    /// Reads the server's word: its field `V`, since field `S` is in the server's language.
    ///
    /// What is neither `FATAL` nor `PANIC` is an [`Error`](Self::Error).
    pub fn parse(word: &str) -> Self {
        match word {
            "FATAL" => Self::Fatal,
            "PANIC" => Self::Panic,
            _ => Self::Error,
        }
    }
}

/// What is to become of the connection on which an error came.
///
/// ```
/// use steadfast::classify::{lost, Fate, Phase};
///
/// assert_eq!(lost(Phase::Transaction).fate, Fate::Discard);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It can be used again.
    Keep,
    /// Close it without asking it anything: it is gone, or its state is not known.
    Discard,
}

/// What must be done on a connection before a call can be repeated there.
///
/// ```
/// use steadfast::classify::{self, Heal, Phase};
///
/// // The server no longer knows the prepared statement.
/// assert_eq!(classify::mysql(1243, Phase::Statement).heal, Heal::ClearStatements);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Heal {
    /// Nothing.
    Nothing,
    /// Forget the cached prepared statements, which the server does not know or no longer accepts.
    ClearStatements,
}

/// What it means that the connection was lost in this phase.
///
/// ```
/// use steadfast::{Kind, classify::{lost, Phase}};
///
/// // The server rolls back what was not committed.
/// assert_eq!(lost(Phase::Transaction).kind, Kind::Unavailable);
/// // It may have heard the COMMIT.
/// assert_eq!(lost(Phase::Commit).kind, Kind::Ambiguous);
/// ```
pub fn lost(phase: Phase) -> DbVerdict {
    row::LOST.verdict(Severity::Error, phase)
}

#[cfg(test)]
mod tests {
    use super::Severity::{self, Error, Fatal, Panic};

    #[test]
    fn only_the_servers_own_words_take_more_than_the_statement() {
        for (word, severity) in [
            ("PANIC", Panic),
            ("FATAL", Fatal),
            ("ERROR", Error),
            ("fatal", Error),
            ("", Error),
        ] {
            assert_eq!(Severity::parse(word), severity, "{word:?}");
        }
    }
}

//! `sqlx::Error`: what the drivers report, handed to the tables.

use std::io;

use sqlx::error::DatabaseError;

use crate::{
    classify::{DbVerdict, Phase, Severity, lost, postgres},
    error::{ConfigError, Refusal, Rejected},
    kind::{Classify, Kind, Verdict},
};

/// The classifier for calls on a plain `sqlx::Pool`.
///
/// It takes each error as that of a statement that was sent and commits by itself.
///
/// | error | kind |
/// |---|---|
/// | `Database` | by the tables of [`postgres`](super::postgres), [`mysql`](super::mysql), [`sqlite`](super::sqlite) |
/// | `Io` | [`Unavailable`](Kind::Unavailable) if nothing was sent, else [`Ambiguous`](Kind::Ambiguous) |
/// | `Protocol`, `WorkerCrashed`, and what is new to us | [`Ambiguous`](Kind::Ambiguous) |
/// | `PoolTimedOut` | [`Saturated`](Kind::Saturated) |
/// | `Tls` | [`Broken`](Kind::Broken) |
/// | `RowNotFound`, and answers that could not be read as asked | [`Invalid`](Kind::Invalid) |
/// | `PoolClosed`, `Configuration`, `Encode`, and what else never reached the database | [`Ignored`](Kind::Ignored) |
///
/// A plain pool does not say why `PoolTimedOut` came: the pool may be full, or the server down. A connect
/// error that it does report is judged as if a statement had been sent, so a host name that does not resolve
/// is `Ambiguous`. [`database`] takes the phase and is exact.
///
/// ```
/// use steadfast::{Classify, Kind, classify::Sqlx};
///
/// let missing: Result<(), _> = Err(sqlx::Error::RowNotFound);
/// assert_eq!(Sqlx.classify(missing.as_ref()).kind, Kind::Invalid);
///
/// let waited: Result<(), _> = Err(sqlx::Error::PoolTimedOut);
/// assert_eq!(Sqlx.classify(waited.as_ref()).kind, Kind::Saturated);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Sqlx;

impl<T> Classify<T, sqlx::Error> for Sqlx {
    fn classify(&self, result: Result<&T, &sqlx::Error>) -> Verdict {
        match result {
            Ok(_) => Kind::Success.into(),
            Err(error) => database(error, Phase::Statement).into(),
        }
    }
}

/// What an error of sqlx means when it comes in this phase.
///
/// A driver whose feature (`postgres`, `mysql`, `sqlite`) is off is judged by its SQLSTATE alone, and if it
/// gives none, as if the connection had been [`lost`].
///
/// ```
/// use std::io;
/// use steadfast::{Kind, classify::{self, Fate, Phase}};
///
/// let reset = sqlx::Error::Io(io::ErrorKind::ConnectionReset.into());
/// let verdict = classify::database(&reset, Phase::Transaction);
/// assert_eq!((verdict.kind, verdict.fate), (Kind::Unavailable, Fate::Discard));
/// assert_eq!(classify::database(&reset, Phase::Commit).kind, Kind::Ambiguous);
/// ```
pub fn database(error: &sqlx::Error, phase: Phase) -> DbVerdict {
    use sqlx::Error as E;
    match error {
        E::Database(error) => reported(&**error, phase),
        E::Io(error) if never_sent(error.kind()) => {
            DbVerdict::discard(Kind::Unavailable, "no connection was made")
        }
        E::PoolTimedOut => DbVerdict::keep(
            Kind::Saturated,
            "no connection was free in time; the pool does not say why",
        ),
        E::Tls(_) => DbVerdict::discard(
            Kind::Broken,
            "the two sides do not agree on TLS, or on whom to trust",
        ),
        E::RowNotFound
        | E::TypeNotFound { .. }
        | E::ColumnIndexOutOfBounds { .. }
        | E::ColumnNotFound(_)
        | E::ColumnDecode { .. }
        | E::Decode(_)
        | E::AnyDriverError(_) => DbVerdict::keep(
            Kind::Invalid,
            "the database answered, though not what the caller can use",
        ),
        E::Configuration(_)
        | E::ConfigFile(_)
        | E::Encode(_)
        | E::InvalidArgument(_)
        | E::InvalidSavePointStatement
        | E::PoolClosed => DbVerdict::keep(Kind::Ignored, "it never reached the database"),
        // `Io`, `Protocol`, `WorkerCrashed`, `BeginFailed`, and variants that sqlx will add.
        _ => lost(phase),
    }
}

/// What the database itself reported, through whichever driver.
fn reported(error: &(dyn DatabaseError + 'static), phase: Phase) -> DbVerdict {
    #[cfg(feature = "postgres")]
    if let Some(error) = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
        let severity = match error.severity() {
            sqlx::postgres::PgSeverity::Panic => Severity::Panic,
            sqlx::postgres::PgSeverity::Fatal => Severity::Fatal,
            _ => Severity::Error,
        };
        return crate::classify::pooler(error.message(), severity, phase)
            .unwrap_or_else(|| postgres(error.code(), severity, error.routine(), phase));
    }
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return crate::classify::mysql(error.number(), phase);
    }
    #[cfg(feature = "sqlite")]
    if let Some(error) = error.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
        // The extended result code, in decimal.
        let code = error.code().and_then(|code| code.parse().ok());
        return code.map_or_else(|| lost(phase), |code| crate::classify::sqlite(code, phase));
    }
    match error.code() {
        Some(code) if code.len() == 5 => postgres(&code, Severity::Error, None, phase),
        _ => lost(phase),
    }
}

/// Whether an error of this kind comes only while a connection is made: nobody listens, no address of our
/// own, no such socket or certificate, no right to it.
fn never_sent(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::AddrInUse
            | io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
    )
}

impl From<Rejected> for sqlx::Error {
    /// As [`Io`](sqlx::Error::Io), with the kind that `io::Error::from(Rejected)` gives it.
    fn from(rejected: Rejected) -> Self {
        Self::Io(rejected.into())
    }
}

impl From<ConfigError> for sqlx::Error {
    /// As [`Configuration`](sqlx::Error::Configuration).
    fn from(error: ConfigError) -> Self {
        Self::Configuration(Box::new(error))
    }
}

impl Refusal for sqlx::Error {
    fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Io(error) => error.rejected(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, error, fmt};

    use sqlx::error::ErrorKind;

    use super::*;
    use crate::classify::Fate;
    #[cfg(feature = "postgres")]
    use crate::testing::refused;

    /// The error of a driver that we do not know, with its SQLSTATE.
    #[derive(Debug)]
    struct Foreign(&'static str);

    impl fmt::Display for Foreign {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl error::Error for Foreign {}

    impl DatabaseError for Foreign {
        fn message(&self) -> &str {
            self.0
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }

        fn as_error(&self) -> &(dyn error::Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn error::Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn error::Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    fn io(kind: io::ErrorKind) -> sqlx::Error {
        sqlx::Error::Io(kind.into())
    }

    #[test]
    fn a_refusal_goes_into_an_sqlx_error_and_comes_out_again() {
        let rejected = Rejected::DeadlineExceeded { sent: true };
        let error = sqlx::Error::from(rejected.clone());
        assert!(
            matches!(&error, sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
        );
        assert_eq!(error.rejected(), Some(&rejected));
        assert_eq!(Rejected::of(&error), Some(&rejected));
    }

    #[test]
    fn a_driver_that_we_do_not_know_is_judged_by_its_sqlstate() {
        let kind = |code| database(&Foreign(code).into(), Phase::Statement).kind;
        assert_eq!(kind("40001"), Kind::Conflict);
        assert_eq!(kind("23000"), Kind::Invalid);
        assert_eq!(kind("19"), Kind::Ambiguous);
    }

    #[test]
    fn only_what_comes_while_connecting_proves_that_nothing_was_sent() {
        let kind = |error| database(&io(error), Phase::Statement).kind;
        assert_eq!(kind(io::ErrorKind::ConnectionRefused), Kind::Unavailable);
        for error in [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::TimedOut,
            io::ErrorKind::HostUnreachable,
        ] {
            assert_eq!(kind(error), Kind::Ambiguous, "{error:?}");
        }
    }

    #[test]
    fn a_connection_lost_in_a_transaction_is_discarded_and_can_be_repeated() {
        for error in [
            io(io::ErrorKind::UnexpectedEof),
            sqlx::Error::WorkerCrashed,
            sqlx::Error::Protocol("unexpected message".to_owned()),
        ] {
            assert_eq!(
                database(&error, Phase::Transaction),
                lost(Phase::Transaction)
            );
            assert_eq!(database(&error, Phase::Commit).kind, Kind::Ambiguous);
        }
    }

    #[test]
    fn a_pool_without_a_free_connection_is_full_and_loses_none() {
        let verdict = database(&sqlx::Error::PoolTimedOut, Phase::Connect);
        assert_eq!((verdict.kind, verdict.fate), (Kind::Saturated, Fate::Keep));
    }

    #[test]
    fn two_sides_that_do_not_agree_on_tls_need_somebodys_hand() {
        let tls = sqlx::Error::Tls("unknown issuer".into());
        let verdict = database(&tls, Phase::Connect);
        assert_eq!((verdict.kind, verdict.fate), (Kind::Broken, Fate::Discard));
    }

    #[cfg(feature = "postgres")]
    #[tokio::test]
    async fn an_error_that_ends_the_session_is_more_than_one_that_does_not() {
        let lost = (Kind::Ambiguous, Fate::Discard);
        for (severity, judged) in [
            ("ERROR", (Kind::Conflict, Fate::Keep)),
            ("FATAL", lost),
            ("PANIC", lost),
        ] {
            let error = refused(severity, "40001", "a rival was faster").await;
            let verdict = database(&error, Phase::Statement);
            assert_eq!((verdict.kind, verdict.fate), judged, "{severity}");
        }
    }

    #[test]
    fn what_never_reached_the_database_says_nothing_about_it() {
        let encode = sqlx::Error::Encode("too large".into());
        assert_eq!(database(&encode, Phase::Statement).kind, Kind::Ignored);
        let closed = database(&sqlx::Error::PoolClosed, Phase::Connect);
        assert_eq!(closed.kind, Kind::Ignored);
    }

    #[test]
    fn an_answer_that_could_not_be_read_is_the_callers_fault() {
        let decode = sqlx::Error::Decode("not a number".into());
        let verdict = database(&decode, Phase::Statement);
        assert_eq!(verdict.kind, Kind::Invalid);
        assert_eq!(verdict.fate, Fate::Keep);
    }
}

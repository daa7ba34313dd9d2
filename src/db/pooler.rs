/// What stands between us and the server, and what of a session survives it.
///
/// A pooler that hands out its connections by transaction gives each of a session's transactions any of its own connections. Prepared statements, `SET`,
/// `LISTEN` and advisory locks of the session then belong to a stranger's. sqlx prepares every statement, in one round trip, and runs it in a
/// second one: between the two a pooler that does not know of prepared statements may change the connection, and the call is answered with *other
/// rows*. Measured behind such a PgBouncer, that was 10 to 22 % of all calls, with and without `.persistent(false)`.
///
/// It is found out when a [`Config`](super::Config) connects: by port 6543 (Supabase) or 6432 (PgBouncer), by a host's name with `pooler` or
/// `pgbouncer` in it, by the pooler's refusal of a connection with settings, or by settings that have no effect. One line in the log says so, and why;
/// [`Db::pooler`](super::Db::pooler) tells. Where it is wrong, or [`connect_lazy`](super::Config::connect_lazy) can't ask, name the mode with
/// [`Config::pooler`](super::Config::pooler).
///
/// ```
/// use steadfast::db::{Config, PoolerMode};
///
/// let config = Config::new("postgres://app@bouncer/shop").pooler(PoolerMode::TransactionPlain);
/// ```
///
/// # Limits behind a pooler by transaction
/// - Sessions are shared. A `SET` would leak to the pooler's other clients, and an advisory lock or `LISTEN` be lost with the transaction. So nothing is set when
///   connecting. Transactions bring their own time limits, with their BEGIN; those of other statements are the role's: `ALTER ROLE app SET statement_timeout = '10s'`.
/// - A statement that was dropped is not stopped through a second connection, as its server's session may be another client's by then. The connection is
///   closed; the pooler closes the server's, which notices within [`check_interval`](super::Preset::check_interval). Where there is no transaction around the
///   statement, that interval is the role's, too: `client_connection_check_interval`.
/// - A session that was ended by an operator counts as lost, as it may be the pooler's word. So a statement outside of a transaction is
///   repeated only by [`idempotent`](super::Db::idempotent) databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PoolerMode {
    /// The server itself, or a pooler that hands out its connections by session.
    ///
    /// The time limits of the [`Preset`](super::Preset) are settings of each session, and cost no round trip.
    Direct,
    /// A pooler by transaction that knows prepared statements, as PgBouncer from 1.21 on.
    ///
    /// A call takes as many round trips as with [`Direct`](Self::Direct).
    TransactionWithPrepared,
    /// A pooler by transaction that knows nothing of prepared statements.
    ///
    /// Each call is a transaction of its own and its statement is prepared anew: BEGIN with the time limits, prepare, run, COMMIT. These are four round trips
    /// in place of one, and were measured to be right. A transaction of several statements takes two for each, and two.
    ///
    /// A text without arguments ([`sqlx::raw_sql`]) is sent as it is, in one round trip. What can't run inside of a transaction, such as `VACUUM`, has to be.
    ///
    /// [`Db::acquire`](super::Db::acquire) and [`Db::call`](super::Db::call) are refused: what is sent on a connection of one's own would be prepared on one
    /// server and run on another.
    // BEGIN could travel with the preparation, and COMMIT with what runs, if sqlx let its messages be queued: two round trips.
    TransactionPlain,
}

/// The mode that host and port suggest, and why.
pub(super) fn detect(host: &str, port: u16) -> (PoolerMode, &'static str) {
    let host = host.to_ascii_lowercase();
    let why = if host.contains("pgbouncer") {
        "the host's name says pgbouncer"
    } else if host.contains("pooler") {
        "the host's name says pooler"
    } else if port == 6543 {
        "port 6543 is that of Supabase's pooler"
    } else if port == 6432 {
        "port 6432 is that of PgBouncer"
    } else {
        return (
            PoolerMode::Direct,
            "neither host nor port speaks of a pooler",
        );
    };
    (PoolerMode::TransactionPlain, why)
}

/// Whether a pooler refused the connection because settings came with it.
///
/// To connect with the settings of [`PoolerMode::Direct`] is the probe; this is PgBouncer's answer to it.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    // There is no severity to look at without the driver, but nothing else than `FATAL` refuses a connection.
    error.as_database_error().is_some_and(|error| {
        error.code().is_some_and(|code| code == "08P01")
            && error.message().starts_with("unsupported startup parameter")
    })
}

#[cfg(test)]
mod tests {
    use super::{PoolerMode, detect};

    #[test]
    fn a_pooler_is_known_by_its_port_or_its_name() {
        for (host, port, said) in [
            ("db.example.com", 6543, "6543"),
            ("db.example.com", 6432, "6432"),
            ("aws-0-eu-central-1.pooler.supabase.com", 5432, "pooler"),
            ("ep-cool-sun-1-POOLER.eu.neon.tech", 5432, "pooler"),
            ("PgBouncer", 5432, "pgbouncer"),
            ("/var/run/pgbouncer", 5432, "pgbouncer"),
        ] {
            let (mode, why) = detect(host, port);
            assert_eq!(mode, PoolerMode::TransactionPlain, "{host}:{port}");
            assert!(why.contains(said), "{host}:{port}: {why}");
        }
    }

    #[test]
    fn any_other_address_is_the_servers_own() {
        for (host, port) in [
            ("db.example.com", 5432),
            ("pool.example.com", 65_43 + 1),
            ("localhost", 5433),
            ("", 0),
        ] {
            assert_eq!(detect(host, port).0, PoolerMode::Direct, "{host}:{port}");
        }
    }

    #[cfg(feature = "postgres")]
    mod refusal {
        use crate::{db::pooler::is_refusal, testing::refused};

        #[tokio::test]
        async fn a_pooler_that_refuses_settings_is_recognised() {
            for parameter in ["options", "extra_float_digits"] {
                let message = format!("unsupported startup parameter: {parameter}");
                assert!(
                    is_refusal(&refused("FATAL", "08P01", &message).await),
                    "{message}"
                );
            }
        }

        #[tokio::test]
        async fn any_other_refusal_is_not_a_poolers() {
            for (code, message) in [
                ("08P01", "query_wait_timeout"),
                ("42704", "unsupported startup parameter: options"),
                ("28P01", "password authentication failed for user \"x\""),
            ] {
                assert!(
                    !is_refusal(&refused("FATAL", code, message).await),
                    "{message}"
                );
            }
            assert!(!is_refusal(&sqlx::Error::PoolTimedOut));
        }
    }
}

//! What PostgreSQL says of its sessions, and how to end idle ones.

use std::{cmp::Reverse, collections::BTreeMap, fmt, iter, time::Duration};

use sqlx::{AssertSqlSafe, PgConnection, Row, postgres::PgRow};

use crate::held::{OneLine, Seconds};

/// Asks PostgreSQL who is connected, who is slow, and who blocks whom.
///
/// Long-running is a statement that has run for `long_running` or more. It takes one round trip and needs no prepared statement, so that it can be sent
/// through a pooler. It counts the session that it is sent by, and all databases of the server, since they share its connections.
///
/// Of other roles' sessions only superusers and members of `pg_read_all_stats` see more than that they exist; others get them under the state
/// `not visible`. In a transaction, PostgreSQL keeps to what it said first.
///
/// ```no_run
/// use std::time::Duration;
/// use sqlx::{Connection, PgConnection};
/// use steadfast::db;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), sqlx::Error> {
/// let mut connection = PgConnection::connect("postgres://localhost/shop").await?;
/// let diagnosis = db::diagnose(&mut connection, Duration::from_secs(30)).await?;
/// println!("{diagnosis}");
/// # Ok(()) }
/// ```
///
/// # Errors
/// What the connection or the server says.
///
/// # Cancel safety
/// It changes nothing, but the connection may be left with an answer that nobody read.
pub async fn diagnose(
    connection: &mut PgConnection,
    long_running: Duration,
) -> Result<Diagnosis, sqlx::Error> {
    let rows = sqlx::raw_sql(SESSIONS).fetch_all(connection).await?;
    let seen = rows
        .iter()
        .map(Seen::of)
        .collect::<Result<Vec<_>, sqlx::Error>>()?;
    Ok(Diagnosis::of(seen, long_running))
}

/// Ends this role's idle sessions of this application and database; says how many.
///
/// A session is ended that is `idle` or `idle in transaction`, and has been for longer than `older_than`: its transaction is rolled back, and whoever
/// holds its connection gets an error with the next statement. Another role's, another application's and another database's are left alone,
/// and so is the session that this is sent by. Other instances of the application are not told apart: their sessions are ended as well.
///
/// `application_name` is what the connections were opened with, as in [`PgConnectOptions::application_name`]; only its first 63 bytes count, which
/// must be ASCII. It takes one round trip and needs no prepared statement.
///
/// A session that begins a statement at this very moment may be ended all the same.
///
/// ```no_run
/// use std::time::Duration;
/// use sqlx::{Connection, PgConnection};
/// use steadfast::db;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), sqlx::Error> {
/// let mut connection = PgConnection::connect("postgres://localhost/shop").await?;
/// let ended = db::terminate_idle(&mut connection, "shop-web", Duration::from_secs(600)).await?;
/// println!("{ended} sessions ended");
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`sqlx::Error::InvalidArgument`] if `application_name` is empty, which would mean all that gave none, or not ASCII; else what the connection or
/// the server says.
///
/// # Cancel safety
/// Once it was polled, sessions may have been ended.
///
/// [`PgConnectOptions::application_name`]: sqlx::postgres::PgConnectOptions::application_name
pub async fn terminate_idle(
    connection: &mut PgConnection,
    application_name: &str,
    older_than: Duration,
) -> Result<u64, sqlx::Error> {
    if application_name.is_empty() {
        return Err(sqlx::Error::InvalidArgument(
            "the application name is empty: without one, other applications' sessions can't be told from ours; \
             set it in the connect options"
                .into(),
        ));
    }
    if !application_name.is_ascii() {
        return Err(sqlx::Error::InvalidArgument(format!(
            "the application name {application_name:?} is not ASCII: PostgreSQL does not keep it as it is, so no session would be found"
        )));
    }
    let sql = AssertSqlSafe(terminate(application_name, older_than));
    let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
    let ended: i64 = row.try_get(0)?;
    Ok(ended.unsigned_abs())
}

/// What PostgreSQL said of its sessions at one moment.
///
/// Its text is several tables for a terminal, in which statements are cut to 80 letters. Statements may hold secrets that were written into them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Diagnosis {
    /// How many connections the server takes.
    pub max_connections: u32,
    /// How many clients it has.
    pub used: u64,
    /// How many sessions are in each state; the most frequent comes first.
    pub by_state: Vec<(String, u64)>,
    /// Those whose statement has run for too long, the slowest first.
    pub long_running: Vec<Session>,
    /// Those in a transaction that run no statement, the longest first.
    pub idle_in_transaction: Vec<Session>,
    /// Those that wait for a lock, the longest first.
    pub blocked: Vec<Blocked>,
    /// Those that others wait for.
    pub blocking: Vec<Session>,
}

impl Diagnosis {
    fn of(mut seen: Vec<Seen>, long_running: Duration) -> Self {
        seen.sort_by_key(|seen| (Reverse(seen.session.state_for), seen.session.pid));
        let mut by_state = BTreeMap::new();
        for seen in &seen {
            *by_state.entry(seen.session.state.clone()).or_default() += 1;
        }
        let mut by_state: Vec<(String, u64)> = by_state.into_iter().collect();
        by_state.sort_by_key(|(_, count)| Reverse(*count));
        let blocked = seen.iter().filter_map(|seen| {
            Some(Blocked {
                session: seen.session.clone(),
                waits_for: seen.waits_for.clone()?,
                by: seen.blocked_by.clone(),
            })
        });
        let blocked: Vec<_> = blocked.collect();
        let blocks = |pid| blocked.iter().any(|blocked| blocked.by.contains(&pid));
        let sessions = |is_one: &dyn Fn(&Seen) -> bool| {
            let sessions = seen.iter().filter(|seen| is_one(seen));
            sessions.map(|seen| seen.session.clone()).collect()
        };
        Self {
            max_connections: seen.first().map_or(0, |seen| seen.max_connections),
            used: seen.len() as u64,
            by_state,
            long_running: sessions(&|seen| {
                let session = &seen.session;
                !seen.is_own && session.state == "active" && session.state_for >= long_running
            }),
            idle_in_transaction: sessions(&|seen| {
                seen.session.state.starts_with("idle in transaction")
            }),
            blocking: sessions(&|seen| blocks(seen.session.pid)),
            blocked,
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, max) = (self.used, self.max_connections);
        write!(f, "connections: {used} of {max} in use")?;
        let states = self.by_state.iter();
        let states = states.map(|(state, count)| [count.to_string(), state.clone()]);
        table(f, "by state", ["sessions", "state"], states)?;
        for (title, sessions) in [
            ("long-running", &self.long_running),
            ("idle in transaction", &self.idle_in_transaction),
        ] {
            table(f, title, HEAD, sessions.iter().map(Session::row))?;
        }
        let blocked = self.blocked.iter().map(|blocked| {
            let by: Vec<_> = blocked.by.iter().map(ToString::to_string).collect();
            let [pid, role, application, _, since, statement] = blocked.session.row();
            let waits_for = blocked.waits_for.clone();
            [
                pid,
                role,
                application,
                since,
                waits_for,
                by.join(", "),
                statement,
            ]
        });
        let head = [
            "pid",
            "role",
            "application",
            "for",
            "waits for",
            "blocked by",
            "statement",
        ];
        table(f, "blocked", head, blocked)?;
        table(f, "blocking", HEAD, self.blocking.iter().map(Session::row))
    }
}

/// A client's session on the server.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Session {
    /// The process that serves it.
    pub pid: i32,
    /// Who logged in.
    pub role: String,
    /// The database.
    pub database: String,
    /// The name that the application gave itself; may be empty.
    pub application: String,
    /// The client's address; `None` for a socket, or if it is not visible.
    pub client: Option<String>,
    /// As the server calls it, such as `idle in transaction`; or `not visible`.
    pub state: String,
    /// How long it has been in this state.
    pub state_for: Duration,
    /// How long its transaction has been open, if it has one.
    pub in_transaction_for: Option<Duration>,
    /// The statement that it runs, or its last one.
    pub statement: String,
}

impl Session {
    fn row(&self) -> [String; HEAD.len()] {
        [
            self.pid.to_string(),
            self.role.clone(),
            self.application.clone(),
            self.state.clone(),
            Seconds(self.state_for).to_string(),
            self.statement.clone(),
        ]
    }
}

/// A session that waits for a lock.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Blocked {
    /// Who waits.
    pub session: Session,
    /// What is locked, as the server calls it: `transactionid`, `relation`, `tuple`, `advisory`.
    pub waits_for: String,
    /// The processes that it waits for; 0 is a prepared transaction.
    pub by: Vec<i32>,
}

/// A row of [`SESSIONS`].
struct Seen {
    session: Session,
    is_own: bool,
    waits_for: Option<String>,
    blocked_by: Vec<i32>,
    max_connections: u32,
}

impl Seen {
    fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        // The server's clock may have been set back.
        let duration = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let in_transaction_for: Option<f64> = row.try_get("in_transaction_for")?;
        let blocked_by: Option<Vec<i32>> = row.try_get("blocked_by")?;
        // Workers of one statement may each block it.
        let mut blocked_by = blocked_by.unwrap_or_default();
        blocked_by.sort_unstable();
        blocked_by.dedup();
        let max_connections: i32 = row.try_get("max_connections")?;
        Ok(Self {
            session: Session {
                pid: row.try_get("pid")?,
                role: row.try_get("role")?,
                database: row.try_get("database")?,
                application: row.try_get("application")?,
                client: row.try_get("client")?,
                state: row.try_get("state")?,
                state_for: duration(row.try_get("state_for")?),
                in_transaction_for: in_transaction_for.map(duration),
                statement: row.try_get("statement")?,
            },
            is_own: row.try_get("is_own")?,
            waits_for: row.try_get("waits_for")?,
            blocked_by,
            max_connections: max_connections.unsigned_abs(),
        })
    }
}

/// Ends the idle sessions; the answer is how many.
fn terminate(application_name: &str, older_than: Duration) -> String {
    // In hexadecimal digits there is nothing to escape.
    let name: String = application_name
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let seconds = older_than.min(FOR_EVER).as_secs_f64();
    // Who was SET ROLE is still named by the role that logged in. A `name` is cut like an application's.
    format!(
        "SELECT count(*) FILTER (WHERE ended) FROM (
            SELECT pg_terminate_backend(pid) AS ended
            FROM pg_stat_activity
            WHERE usename = session_user
                AND datname = current_database()
                AND application_name = convert_from(decode('{name}', 'hex'), 'UTF8')::name::text
                AND state IN ('idle', 'idle in transaction', 'idle in transaction (aborted)')
                AND clock_timestamp() - state_change > make_interval(secs => {seconds:.6})
                AND pid <> pg_backend_pid()
        ) AS idle"
    )
}

/// A title and the rows below it, as wide as they need to be; or a title and `none`.
fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> fmt::Result {
    let rows: Vec<_> = rows
        .map(|row| row.map(|cell| OneLine(&cell).to_string()))
        .collect();
    if rows.is_empty() {
        return write!(f, "\n\n{title}: none");
    }
    write!(f, "\n\n{title}:")?;
    let lines = iter::once(head.map(ToOwned::to_owned)).chain(rows);
    let lines: Vec<_> = lines.collect();
    for line in &lines {
        let mut text = String::new();
        for (column, cell) in line.iter().enumerate() {
            let widths = lines.iter().map(|line| line[column].chars().count());
            let width = widths.max().unwrap_or(0);
            text += &format!("  {cell:width$}");
        }
        write!(f, "\n{}", text.trim_end())?;
    }
    Ok(())
}

/// Of a table of sessions.
const HEAD: [&str; 6] = ["pid", "role", "application", "state", "for", "statement"];

/// About a hundred years; the server knows no interval of many thousands.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The clients' sessions. One whose type is not visible may be a client's if it has a role, which the vacuum workers have not, and a database, which
/// the launcher of logical replication has not.
///
/// Who blocks is asked only where a lock is waited for, because that question stops the server's lock table for a moment.
const SESSIONS: &str = "
SELECT
    pid,
    usename::text AS role,
    datname::text AS database,
    coalesce(application_name, '') AS application,
    host(client_addr) AS client,
    coalesce(state, 'not visible') AS state,
    coalesce(extract(epoch FROM clock_timestamp() - state_change), 0)::float8 AS state_for,
    extract(epoch FROM clock_timestamp() - xact_start)::float8 AS in_transaction_for,
    coalesce(query, '') AS statement,
    pid = pg_backend_pid() AS is_own,
    CASE wait_event_type WHEN 'Lock' THEN wait_event END AS waits_for,
    CASE wait_event_type WHEN 'Lock' THEN pg_blocking_pids(pid) END AS blocked_by,
    current_setting('max_connections')::int4 AS max_connections
FROM pg_stat_activity
WHERE coalesce(backend_type, 'client backend') = 'client backend' AND usename IS NOT NULL AND datname IS NOT NULL";

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use super::*;
    use crate::testing::{answering, connect};

    #[test]
    fn a_diagnosis_is_tables() {
        let diagnosis = Diagnosis::of(
            vec![
                seen(101, "active", 0, "SELECT diagnosis"),
                Seen {
                    waits_for: Some("transactionid".into()),
                    blocked_by: vec![9, 0],
                    ..seen(1024, "active", 31, "UPDATE item\n  SET name = 'one'")
                },
                seen(9, "idle in transaction", 40, "SELECT 1"),
                seen(77, "idle", 500, "COMMIT"),
                seen(78, "idle", 5, "COMMIT"),
            ],
            Duration::from_secs(30),
        );
        assert_eq!(diagnosis.to_string(), TABLES);
    }

    #[test]
    fn an_empty_table_says_so() {
        let diagnosis = Diagnosis::of(vec![seen(1, "active", 99, "")], Duration::from_secs(100));
        let text = diagnosis.to_string();
        assert!(
            text.ends_with("\n\nlong-running: none\n\nidle in transaction: none\n\nblocked: none\n\nblocking: none"),
            "{text}"
        );
    }

    #[test]
    fn our_own_question_is_not_long_running() {
        let own = Seen {
            is_own: true,
            ..seen(1, "active", 0, "SELECT diagnosis")
        };
        let other = seen(2, "active", 0, "SELECT 1");
        let diagnosis = Diagnosis::of(vec![own, other], Duration::ZERO);
        let pids: Vec<_> = diagnosis.long_running.iter().map(|one| one.pid).collect();
        assert_eq!((pids, diagnosis.used), (vec![2], 2));
    }

    #[test]
    fn a_name_needs_no_escape_and_a_time_is_one_that_the_server_knows() {
        let sql = terminate("o'hara", Duration::from_millis(1_500));
        assert!(sql.contains("decode('6f2768617261', 'hex')"), "{sql}");
        assert!(sql.contains("make_interval(secs => 1.500000)"), "{sql}");
        let sql = terminate("web", Duration::MAX);
        let century = "make_interval(secs => 3153600000.000000)";
        assert!(sql.contains(century), "{sql}");
    }

    #[tokio::test]
    async fn without_a_name_that_tells_sessions_apart_the_server_is_not_asked() {
        let mut connection = connected().await;
        for name in ["", "b\u{fc}ro"] {
            let ended = terminate_idle(&mut connection, name, Duration::ZERO).await;
            let refused = matches!(ended, Err(sqlx::Error::InvalidArgument(_)));
            assert!(refused, "{name:?}: {ended:?}");
        }
    }

    /// To a server that lets it in, and then hangs up.
    async fn connected() -> PgConnection {
        const AUTHENTICATED: &[u8] = b"R\0\0\0\x08\0\0\0\0";
        const READY: &[u8] = b"Z\0\0\0\x05I";
        let (port, _) = answering([AUTHENTICATED, READY].concat());
        connect(port).await.unwrap()
    }

    fn seen(pid: i32, state: &str, seconds: u64, statement: &str) -> Seen {
        Seen {
            session: Session {
                pid,
                role: "shop".into(),
                database: "shop".into(),
                application: "web".into(),
                client: None,
                state: state.into(),
                state_for: Duration::from_secs(seconds),
                in_transaction_for: None,
                statement: statement.into(),
            },
            is_own: false,
            waits_for: None,
            blocked_by: Vec::new(),
            max_connections: 100,
        }
    }

    const TABLES: &str = "\
connections: 5 of 100 in use

by state:
  sessions  state
  2         active
  2         idle
  1         idle in transaction

long-running:
  pid   role  application  state   for    statement
  1024  shop  web          active  31.0s  UPDATE item SET name = 'one'

idle in transaction:
  pid  role  application  state                for    statement
  9    shop  web          idle in transaction  40.0s  SELECT 1

blocked:
  pid   role  application  for    waits for      blocked by  statement
  1024  shop  web          31.0s  transactionid  9, 0        UPDATE item SET name = 'one'

blocking:
  pid  role  application  state                for    statement
  9    shop  web          idle in transaction  40.0s  SELECT 1";
}

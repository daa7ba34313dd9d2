//! The codes of MariaDB, provoked on a real server in every phase in which they can be had.
//!
//! Each error is judged by `classify::database`, and its line in `codes.tsv` has to agree and to say that it was provoked.
#![cfg(feature = "mysql")]
#![allow(
    clippy::disallowed_methods,
    reason = "a real server knows no paused clock"
)]

#[path = "support/codes.rs"]
mod codes;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/server.rs"]
mod server;

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection, MySqlConnection,
    mysql::{MySqlConnectOptions, MySqlDatabaseError, MySqlPoolOptions},
};
use steadfast::{
    Kind,
    classify::{self, Fate, Phase},
};
use tokio::{sync::Mutex, time::sleep};

use crate::{
    codes::{assert_in_both_phases, execute, provoked},
    proxy::{Fault, Proxy},
    server::mariadb::MariaDb,
};

#[tokio::test]
async fn what_the_call_itself_is_at_fault_for_is_invalid() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    execute(
        &mut database.connect().await,
        "INSERT INTO part VALUES (1, 1)",
    )
    .await
    .unwrap();
    for (number, statement) in [
        (1062, "INSERT INTO item VALUES (1, 'one')"),
        (1054, "SELECT nowhere FROM item"),
        (1064, "SELEC 1"),
        (1146, "SELECT * FROM nowhere"),
        (1406, "INSERT INTO item VALUES (7, 'far too long')"),
        (1451, "DELETE FROM item WHERE id = 1"),
        (1452, "INSERT INTO part VALUES (7, 7)"),
        (1049, "CREATE TABLE nowhere.item (id int)"),
        // Of the user's own making, and so in no table.
        (65000, "SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 65000"),
    ] {
        database.assert_in_both_phases(number, statement).await;
    }
}

#[tokio::test]
async fn without_a_right_to_it_a_database_is_broken_at_connect_and_then_invalid() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let guest = database.user("").await;
    let error = MySqlConnection::connect_with(&guest).await.unwrap_err();
    provoked(1044, &error, Phase::Connect);
    let mut ours = MySqlConnection::connect_with(&guest.database("information_schema"))
        .await
        .unwrap();
    for (begin, phase) in [("DO 0", Phase::Statement), ("BEGIN", Phase::Transaction)] {
        execute(&mut ours, begin).await.unwrap();
        let create = format!("DROP DATABASE {}", database.name);
        let error = execute(&mut ours, &create).await.unwrap_err();
        provoked(1044, &error, phase);
    }
}

#[tokio::test]
async fn a_refused_login_is_broken() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let guest = database.user("").await;
    for (number, options) in [
        (1045, guest.clone().password("wrong")),
        (1049, database.options.clone().database("nowhere")),
    ] {
        let error = MySqlConnection::connect_with(&options).await.unwrap_err();
        provoked(number, &error, Phase::Connect);
        // A plain pool hands it on as the error of whatever call it was.
        let pool = MySqlPoolOptions::new().connect_lazy_with(options);
        let error = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
        provoked(number, &error, Phase::Statement);
    }
}

/// Unlike PostgreSQL's, these are not waited for by the pool.
#[tokio::test]
async fn too_many_connections_are_refused_at_the_door() {
    let limits = ["--max-connections=10", "--max-user-connections=2"];
    let Some(server) = MariaDb::start_with(&limits) else {
        return;
    };
    let database = Database::on(&server).await;
    let nothing = "information_schema";
    let one = database
        .user("WITH MAX_USER_CONNECTIONS 1")
        .await
        .database(nothing);
    let two = database.user("").await.database(nothing);
    let mut there = Vec::new();
    // The user's own limit, everybody's, and the server's, which has a place more for `root`.
    for (number, room, options) in [
        (1226, 1, &one),
        (1203, 2, &two),
        (1040, 9, &database.options),
    ] {
        let error = loop {
            match MySqlConnection::connect_with(options).await {
                Ok(connection) => there.push(connection),
                Err(error) => break error,
            }
            assert!(there.len() <= 11, "{number}");
        };
        let mine = there.iter().len();
        assert!(mine >= room, "{number}: after {mine}");
        provoked(number, &error, Phase::Connect);
        let pool = MySqlPoolOptions::new().connect_lazy_with(options.clone());
        let error = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
        provoked(number, &error, Phase::Statement);
    }
}

#[tokio::test]
async fn a_lock_that_a_rival_holds_is_a_conflict() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let mut rival = database.connect().await;
    execute(&mut rival, "BEGIN").await.unwrap();
    execute(&mut rival, "SELECT * FROM item WHERE id = 1 FOR UPDATE")
        .await
        .unwrap();
    database
        .assert_in_both_phases(1205, "SELECT * FROM item WHERE id = 1 FOR UPDATE NOWAIT")
        .await;
    let soon = "SELECT * FROM item WHERE id = 1 FOR UPDATE WAIT 1";
    database.assert_in_both_phases(1205, soon).await;
}

/// What came before the lock timeout is still there.
#[tokio::test]
async fn a_lock_timeout_rolls_back_its_statement_only() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let mut rival = database.connect().await;
    execute(&mut rival, "BEGIN").await.unwrap();
    execute(&mut rival, "UPDATE item SET name = 'rival' WHERE id = 1")
        .await
        .unwrap();
    let mut ours = database.connect().await;
    execute(&mut ours, "BEGIN").await.unwrap();
    execute(&mut ours, "INSERT INTO part VALUES (1, 2)")
        .await
        .unwrap();
    let error = execute(
        &mut ours,
        "SELECT * FROM item WHERE id = 1 FOR UPDATE NOWAIT",
    )
    .await
    .unwrap_err();
    provoked(1205, &error, Phase::Transaction);
    execute(&mut ours, "COMMIT").await.unwrap();
    assert_eq!(database.rows_of("part").await, 1);
}

/// All of it is rolled back, and the session is outside the transaction: what comes next commits by itself.
#[tokio::test]
async fn a_deadlock_leaves_the_session_outside_its_transaction() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let (mut ours, error) = database
        .deadlock("BEGIN", "UPDATE item SET name = 'ours' WHERE id = 2")
        .await;
    provoked(1213, &error, Phase::Transaction);
    assert_eq!(database.rows_of("item WHERE name = 'ours'").await, 0);
    execute(&mut ours, "INSERT INTO part VALUES (7, 2)")
        .await
        .unwrap();
    execute(&mut ours, "ROLLBACK").await.unwrap();
    assert_eq!(database.rows_of("part WHERE id = 7").await, 1);
}

#[tokio::test]
async fn a_deadlock_of_a_single_statement_is_a_conflict() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    // The rival has changed more, so that we are the victim.
    let mut rival = database.connect().await;
    execute(&mut rival, "BEGIN").await.unwrap();
    for id in 100..120 {
        execute(&mut rival, &format!("INSERT INTO item VALUES ({id}, 'r')"))
            .await
            .unwrap();
    }
    execute(&mut rival, "UPDATE item SET name = 'r' WHERE id = 2")
        .await
        .unwrap();
    let mut ours = database.connect().await;
    let update = "UPDATE item SET name = 'ours' WHERE id IN (1, 2) ORDER BY id";
    let ours_id = id(&mut ours).await;
    let (result, _) = tokio::join!(execute(&mut ours, update), async {
        database.wait_for_lock(ours_id).await;
        execute(&mut rival, "UPDATE item SET name = 'r' WHERE id = 1")
            .await
            .unwrap();
    });
    provoked(1213, &result.unwrap_err(), Phase::Statement);
    assert_eq!(database.rows_of("item WHERE name = 'ours'").await, 0);
}

/// It is told once; then the transaction can only be rolled back, and says so by another number.
#[tokio::test]
async fn a_deadlock_in_a_distributed_transaction_leaves_it_to_be_rolled_back() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let update = "UPDATE item SET name = 'ours' WHERE id = 2";
    let (mut ours, error) = database.deadlock("XA START 'ours'", update).await;
    provoked(1213, &error, Phase::Transaction);
    let error = execute(&mut ours, "XA END 'ours'").await.unwrap_err();
    assert_eq!(number_of(&error), 1399);
    execute(&mut ours, "XA ROLLBACK 'ours'").await.unwrap();
    assert_eq!(database.rows_of("item WHERE name = 'ours'").await, 0);
}

#[tokio::test]
async fn a_row_that_a_rival_has_changed_is_a_conflict() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let mut rival = database.connect().await;
    let mut ours = database.connect().await;
    execute(&mut ours, "SET innodb_snapshot_isolation = ON")
        .await
        .unwrap();
    execute(&mut ours, "BEGIN").await.unwrap();
    execute(&mut ours, "SELECT * FROM item").await.unwrap();
    execute(&mut rival, "UPDATE item SET name = 'rival' WHERE id = 1")
        .await
        .unwrap();
    let error = execute(&mut ours, "UPDATE item SET name = 'ours' WHERE id = 1")
        .await
        .unwrap_err();
    provoked(1020, &error, Phase::Transaction);
}

#[tokio::test]
async fn an_unknown_prepared_statement_was_not_run() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    database
        .assert_in_both_phases(1243, "EXECUTE nowhere")
        .await;
}

#[tokio::test]
async fn a_read_only_transaction_is_the_callers_own_fault() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let mut ours = database.connect().await;
    execute(&mut ours, "START TRANSACTION READ ONLY")
        .await
        .unwrap();
    let error = execute(&mut ours, "INSERT INTO part VALUES (1, 1)")
        .await
        .unwrap_err();
    provoked(1792, &error, Phase::Transaction);
    execute(&mut ours, "ROLLBACK").await.unwrap();
    execute(&mut ours, "SET SESSION TRANSACTION READ ONLY")
        .await
        .unwrap();
    let error = execute(&mut ours, "INSERT INTO part VALUES (1, 1)")
        .await
        .unwrap_err();
    provoked(1792, &error, Phase::Statement);
}

#[tokio::test]
async fn a_server_that_became_read_only_is_unavailable_also_for_a_commit() {
    let Some(server) = MariaDb::start() else {
        return;
    };
    let database = Database::on(&server).await;
    let mut operator = database.connect().await;
    let user = database.user("").await;
    let grant = format!("GRANT ALL ON test.* TO {}", user.get_username());
    execute(&mut operator, &grant).await.unwrap();
    let mut committing = MySqlConnection::connect_with(&user).await.unwrap();
    execute(&mut committing, "BEGIN").await.unwrap();
    execute(&mut committing, "INSERT INTO part VALUES (1, 1)")
        .await
        .unwrap();
    execute(&mut operator, "SET GLOBAL read_only = 1")
        .await
        .unwrap();
    let error = execute(&mut committing, "COMMIT").await.unwrap_err();
    provoked(1290, &error, Phase::Commit);
    drop(committing);

    let mut ours = MySqlConnection::connect_with(&user).await.unwrap();
    for (begin, phase) in [("DO 0", Phase::Statement), ("BEGIN", Phase::Transaction)] {
        execute(&mut ours, begin).await.unwrap();
        let error = execute(&mut ours, "INSERT INTO part VALUES (2, 1)")
            .await
            .unwrap_err();
        provoked(1290, &error, phase);
    }
    assert_eq!(database.rows_of("part").await, 0);
}

#[tokio::test]
async fn a_statement_past_its_time_is_timed_out_and_was_rolled_back() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let slow =
        "SET STATEMENT max_statement_time = 0.02 FOR INSERT INTO part SELECT 1, 1 + SLEEP(60)";
    database.assert_in_both_phases(1969, slow).await;
    assert_eq!(database.rows_of("part").await, 0);
}

#[tokio::test]
async fn a_killed_query_is_timed_out_and_was_rolled_back() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    for (begin, phase) in [("DO 0", Phase::Statement), ("BEGIN", Phase::Transaction)] {
        let (mut ours, error) = database.interrupt(begin, "KILL QUERY").await;
        provoked(1317, &error, phase);
        execute(&mut ours, "COMMIT").await.unwrap();
        assert_eq!(database.rows_of("part").await, 0);
    }
}

/// The COMMIT waits for the lock that a backup holds.
#[tokio::test]
async fn a_commit_that_gave_up_waiting_was_rolled_back() {
    let Some(server) = MariaDb::start() else {
        return;
    };
    let database = Database::on(&server).await;
    let mut backup = database.connect().await;
    for (number, limit) in [
        (1205, "SET lock_wait_timeout = 0"),
        (1969, "SET max_statement_time = 0.02"),
        (1317, "DO 0"),
    ] {
        let mut ours = database.connect().await;
        let id = id(&mut ours).await;
        execute(&mut ours, "BEGIN").await.unwrap();
        execute(&mut ours, "INSERT INTO part VALUES (1, 1)")
            .await
            .unwrap();
        execute(&mut ours, limit).await.unwrap();
        execute(&mut backup, "FLUSH TABLES WITH READ LOCK")
            .await
            .unwrap();
        let (result, ()) = tokio::join!(execute(&mut ours, "COMMIT"), async {
            if number == 1317 {
                let committing = "information_schema.processlist WHERE info = 'COMMIT' AND id";
                database.wait_for(&format!("{committing} = {id}")).await;
                let kill = format!("KILL QUERY {id}");
                execute(&mut database.connect().await, &kill).await.unwrap();
            }
        });
        provoked(number, &result.unwrap_err(), Phase::Commit);
        execute(&mut backup, "UNLOCK TABLES").await.unwrap();
        execute(&mut ours, "COMMIT").await.unwrap();
        assert_eq!(database.rows_of("part").await, 0, "{number}");
    }
}

#[tokio::test]
async fn a_session_that_killed_itself_says_so() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    for (begin, phase) in [("DO 0", Phase::Statement), ("BEGIN", Phase::Transaction)] {
        let mut ours = database.connect().await;
        execute(&mut ours, begin).await.unwrap();
        let error = execute(&mut ours, "KILL CONNECTION_ID()")
            .await
            .unwrap_err();
        provoked(1927, &error, phase);
        let error = ours.ping().await.unwrap_err();
        assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");
    }
}

/// Others only see it hang up.
#[tokio::test]
async fn a_session_that_shut_the_server_down_is_told_so() {
    let Some(mut server) = MariaDb::start() else {
        return;
    };
    for (begin, phase) in [("DO 0", Phase::Statement), ("BEGIN", Phase::Transaction)] {
        let mut ours = server.connect().await;
        execute(&mut ours, begin).await.unwrap();
        let shutdown = "BEGIN NOT ATOMIC SHUTDOWN; SELECT SLEEP(60); END";
        let error = execute(&mut ours, shutdown).await.unwrap_err();
        provoked(1053, &error, phase);
        let error = ours.ping().await.unwrap_err();
        assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");
        server.restart();
    }
}

#[tokio::test]
async fn a_write_to_an_engine_that_only_reads_is_unavailable() {
    let Some(server) = MariaDb::start_with(&["--innodb-force-recovery=5"]) else {
        return;
    };
    let write = "INSERT INTO mysql.gtid_slave_pos VALUES (7, 7, 7, 7)";
    assert_in_both_phases(&mut server.connect().await, 1836, write).await;
}

/// The server hangs up and says nothing.
#[tokio::test]
async fn a_killed_connection_is_lost() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    for (begin, phase, kind) in [
        ("DO 0", Phase::Statement, Kind::Ambiguous),
        ("BEGIN", Phase::Transaction, Kind::Unavailable),
    ] {
        let (_, error) = database.interrupt(begin, "KILL").await;
        assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");
        let verdict = classify::database(&error, phase);
        assert_eq!((verdict.kind, verdict.fate), (kind, Fate::Discard));
        assert_eq!(database.rows_of("part").await, 0);
    }
}

#[tokio::test]
async fn a_server_that_is_killed_or_shut_down_hangs_up() {
    let Some(mut server) = MariaDb::start() else {
        return;
    };
    for end in [MariaDb::kill9, MariaDb::stop] {
        let mut ours = server.connect().await;
        execute(&mut ours, "BEGIN").await.unwrap();
        end(&mut server);
        let error = execute(&mut ours, "SELECT 1").await.unwrap_err();
        let verdict = classify::database(&error, Phase::Transaction);
        assert_eq!(
            (verdict.kind, verdict.fate),
            (Kind::Unavailable, Fate::Discard)
        );
        let error = MySqlConnection::connect_with(&server.options())
            .await
            .unwrap_err();
        assert_eq!(
            classify::database(&error, Phase::Connect).kind,
            Kind::Unavailable
        );
        server.restart();
    }
}

#[tokio::test]
async fn an_insert_and_a_commit_whose_reply_is_lost_are_ambiguous_and_were_executed() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let proxy = Proxy::start(shared().expect("not skipped").port()).await;
    let options = database.options.clone().port(proxy.port());
    let insert = "INSERT INTO part VALUES (NULL, 1)";
    let mut ours = MySqlConnection::connect_with(&options).await.unwrap();
    sqlx::query(insert).execute(&mut ours).await.unwrap();
    proxy.set(Fault::CutReply(0));
    let error = sqlx::query(insert).execute(&mut ours).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");
    assert_eq!(
        classify::database(&error, Phase::Statement).kind,
        Kind::Ambiguous
    );
    assert_eq!(database.rows_of("part").await, 2);

    for (fault, rows) in [(Fault::CutRequest(0), 2), (Fault::CutReply(0), 3)] {
        let mut ours = MySqlConnection::connect_with(&options).await.unwrap();
        let mut transaction = ours.begin().await.unwrap();
        sqlx::query(insert)
            .execute(&mut *transaction)
            .await
            .unwrap();
        proxy.set(fault);
        let error = transaction.commit().await.unwrap_err();
        let verdict = classify::database(&error, Phase::Commit);
        assert_eq!(
            (verdict.kind, verdict.fate),
            (Kind::Ambiguous, Fate::Discard)
        );
        assert_eq!(database.rows_of("part").await, rows, "{fault:?}");
    }
}

/// A database of its own on the server that the tests of this file share, or `test` on a server that a test has to itself.
struct Database {
    name: String,
    options: MySqlConnectOptions,
}

impl Database {
    async fn of_its_own() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let server = shared()?;
        let name = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Some(Self::create(server, name).await)
    }

    async fn on(server: &MariaDb) -> Self {
        Self::create(server, "test".to_owned()).await
    }

    async fn create(server: &MariaDb, name: String) -> Self {
        let mut setup = server.connect().await;
        execute(
            &mut setup,
            &format!("CREATE DATABASE IF NOT EXISTS {name}; USE {name}"),
        )
        .await
        .unwrap();
        execute(&mut setup, TABLES).await.unwrap();
        let options = server.options().database(&name);
        Self { name, options }
    }

    async fn connect(&self) -> MySqlConnection {
        MySqlConnection::connect_with(&self.options).await.unwrap()
    }

    /// Creates a user, who has no rights yet.
    async fn user(&self, with: &str) -> MySqlConnectOptions {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let user = format!("guest{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let create = format!("CREATE USER {user} IDENTIFIED BY 'right' {with}");
        execute(&mut self.connect().await, &create).await.unwrap();
        self.options.clone().username(&user).password("right")
    }

    /// Runs what must fail as a statement that commits by itself, and in a transaction.
    async fn assert_in_both_phases(&self, number: u16, statement: &str) {
        assert_in_both_phases(&mut self.connect().await, number, statement).await;
    }

    /// Has an operator stop our session while an insert of ours is sleeping.
    async fn interrupt(&self, begin: &str, order: &str) -> (MySqlConnection, sqlx::Error) {
        let mut ours = self.connect().await;
        let id = id(&mut ours).await;
        execute(&mut ours, begin).await.unwrap();
        let insert = "INSERT INTO part SELECT 1, 1 + SLEEP(60)";
        let (result, ()) = tokio::join!(execute(&mut ours, insert), async {
            self.wait_for(&format!(
                "information_schema.processlist WHERE id = {id} AND state = 'User sleep'"
            ))
            .await;
            execute(&mut self.connect().await, &format!("{order} {id}"))
                .await
                .unwrap();
        });
        (ours, result.expect_err("it was interrupted"))
    }

    /// Has us run into a deadlock with `update`, as the one who has changed less and so is the victim.
    async fn deadlock(&self, begin: &str, update: &str) -> (MySqlConnection, sqlx::Error) {
        let mut rival = self.connect().await;
        execute(&mut rival, "BEGIN").await.unwrap();
        for id in 100..120 {
            execute(&mut rival, &format!("INSERT INTO item VALUES ({id}, 'r')"))
                .await
                .unwrap();
        }
        execute(&mut rival, "UPDATE item SET name = 'r' WHERE id = 2")
            .await
            .unwrap();
        let mut ours = self.connect().await;
        execute(&mut ours, begin).await.unwrap();
        execute(&mut ours, "UPDATE item SET name = 'ours' WHERE id = 1")
            .await
            .unwrap();
        let rival_id = id(&mut rival).await;
        let (_, result) = tokio::join!(
            execute(&mut rival, "UPDATE item SET name = 'r' WHERE id = 1"),
            async {
                self.wait_for_lock(rival_id).await;
                execute(&mut ours, update).await
            }
        );
        execute(&mut rival, "ROLLBACK").await.unwrap();
        (ours, result.expect_err("it is a deadlock"))
    }

    async fn wait_for_lock(&self, id: u64) {
        // What InnoDB shows of its transactions is as old as the last look, unless that was a tenth of a second ago. So if several tests looked as they please, none
        // would ever see anything new.
        static LOOK: Mutex<()> = Mutex::const_new(());
        let waits =
            "information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT' AND trx_mysql_thread_id";
        let waits = format!("{waits} = {id}");
        loop {
            let _alone = LOOK.lock().await;
            sleep(Duration::from_millis(110)).await;
            if self.rows_of(&waits).await > 0 {
                return;
            }
        }
    }

    async fn wait_for(&self, rows: &str) {
        while self.rows_of(rows).await == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn rows_of(&self, table: &str) -> i64 {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        sqlx::query_scalar(sql)
            .fetch_one(&mut self.connect().await)
            .await
            .unwrap()
    }
}

/// `None` if tests are told to do without servers.
fn shared() -> Option<&'static MariaDb> {
    static SHARED: OnceLock<MariaDb> = OnceLock::new();
    if server::skipped() {
        return None;
    }
    Some(SHARED.get_or_init(|| MariaDb::start().expect("it is not skipped")))
}

async fn id(connection: &mut MySqlConnection) -> u64 {
    let sql = "SELECT CAST(CONNECTION_ID() AS UNSIGNED)";
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

fn number_of(error: &sqlx::Error) -> u16 {
    let reported = error.as_database_error();
    let reported = reported.unwrap_or_else(|| panic!("not reported by the server: {error:?}"));
    reported.downcast_ref::<MySqlDatabaseError>().number()
}

const TABLES: &str = "
CREATE TABLE item (id int PRIMARY KEY, name varchar(5) NOT NULL) ENGINE=InnoDB;
INSERT INTO item VALUES (1, 'one'), (2, 'two');
CREATE TABLE part (id int PRIMARY KEY AUTO_INCREMENT, item int, FOREIGN KEY (item) REFERENCES item (id)) ENGINE=InnoDB;
";

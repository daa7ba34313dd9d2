//! The servers, the pooler and the proxy that other tests rely on: they come and go as told, and leave nothing behind.
#![cfg(feature = "postgres")]
#![allow(
    clippy::disallowed_methods,
    reason = "a real server knows no paused clock"
)]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/server.rs"]
mod server;

use std::{
    env,
    io::{BufRead, BufReader, Write, stdout},
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection, postgres::PgDatabaseError};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    proxy::{Counts, Fault, Proxy},
    server::{
        pgbouncer::PgBouncer,
        postgres::{Postgres, Stop},
    },
};

#[tokio::test]
async fn a_server_keeps_its_port_and_what_was_committed_over_every_way_to_stop_it() {
    let durable = ["fsync=on", "synchronous_commit=on", "full_page_writes=on"];
    let Some(mut server) = Postgres::start_with(&durable) else {
        return;
    };
    let port = server.port();
    let mut connection = server.connect().await;
    sqlx::query("CREATE TABLE mark (id int)")
        .execute(&mut connection)
        .await
        .unwrap();
    let mut rows = 0;
    for stop in [
        |server: &mut Postgres| server.stop(Stop::Fast),
        |server: &mut Postgres| server.stop(Stop::Immediate),
        Postgres::kill9,
    ] {
        let mut connection = server.connect().await;
        sqlx::query("INSERT INTO mark VALUES (1)")
            .execute(&mut connection)
            .await
            .unwrap();
        rows += 1;
        stop(&mut server);
        PgConnection::connect_with(&server.options())
            .await
            .unwrap_err();
        server.restart();
        assert_eq!(server.port(), port);
        let mut connection = PgConnection::connect_with(&server.socket_options())
            .await
            .unwrap();
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM mark")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(found, rows);
    }
}

#[tokio::test]
async fn a_server_knows_the_backends_of_its_clients() {
    let Some(server) = Postgres::start() else {
        return;
    };
    assert!(server.backends().await.is_empty());
    let mut connection = server.connect().await;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(server.backends().await, [u32::try_from(pid).unwrap()]);
}

#[test]
fn a_server_is_gone_after_a_panic() {
    let mut seen = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let server = Postgres::start()?;
        let pooler = PgBouncer::start(&server);
        seen = Some((server.pid(), server.data(), pooler.pid()));
        if seen.is_some() {
            panic!("as a failing test does");
        }
        Some(())
    }));
    let Some((pid, data, pooler)) = seen else {
        return;
    };
    result.unwrap_err();
    assert!(!server::alive(pid));
    assert!(!server::alive(pooler));
    assert!(!data.exists());
}

/// The test runs itself in another process, which is killed while its server is up.
#[test]
fn a_server_is_gone_after_its_test_process_was_killed() {
    if env::var_os(INNER).is_some() {
        let server = Postgres::start().expect("it is not skipped");
        println!("{} {}", server.pid(), server.data().display());
        stdout().flush().unwrap();
        thread::sleep(Duration::from_secs(60));
        return;
    }
    if server::skipped() {
        return;
    }
    let mut inner = Command::new(env::current_exe().unwrap());
    inner.args([
        "--exact",
        "--nocapture",
        "a_server_is_gone_after_its_test_process_was_killed",
    ]);
    let mut inner = inner
        .env(INNER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(inner.stdout.take().unwrap()).lines();
    let (pid, data) = lines
        .map(Result::unwrap)
        .find_map(|line| {
            let (pid, data) = line.split_once(" /")?;
            // libtest writes the test's name in front of what it prints.
            let pid: u32 = pid.rsplit(' ').next()?.parse().ok()?;
            Some((pid, std::path::PathBuf::from(format!("/{data}"))))
        })
        .expect("the inner test says so");
    assert!(server::alive(pid));
    inner.kill().unwrap();
    inner.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while server::alive(pid) || data.exists() {
        assert!(
            Instant::now() < until,
            "the server {pid} or {} is still there",
            data.display()
        );
        thread::sleep(Duration::from_millis(5));
    }
}

const INNER: &str = "STEADFAST_TEST_INNER";

#[tokio::test]
async fn a_pooler_lets_in_only_who_asks_for_nothing_at_the_door_unless_told_to_ignore_it() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let mut pooler = PgBouncer::start(&server);
    let usual = server.options().port(pooler.port());
    let timeout = [("statement_timeout", "1s")];
    for (options, refused) in [
        (usual.clone(), "extra_float_digits"),
        (pooler.options().options(timeout), "options"),
    ] {
        let error = PgConnection::connect_with(&options).await.unwrap_err();
        let error = error.as_database_error().expect("the pooler says so");
        let error = error.downcast_ref::<PgDatabaseError>();
        assert_eq!(error.code(), "08P01");
        assert_eq!(
            error.message(),
            format!("unsupported startup parameter: {refused}")
        );
    }
    pooler.connect().await.ping().await.unwrap();

    let mut lost = pooler.connect().await;
    pooler.restart();
    lost.ping().await.unwrap_err();
    pooler.connect().await.ping().await.unwrap();

    let ignoring = ["ignore_startup_parameters=extra_float_digits"];
    let ignoring = PgBouncer::start_with(&server, &ignoring);
    let usual = usual.port(ignoring.port());
    let mut ours = PgConnection::connect_with(&usual).await.unwrap();
    ours.ping().await.unwrap();
}

/// Between the round trips that prepare a statement and those that run it another client may have got the connection.
#[tokio::test]
async fn behind_a_pooler_a_statement_is_its_own_only_unnamed_and_in_a_transaction() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let pooler = PgBouncer::start(&server);
    let named = crowd(&pooler, Style::Named).await;
    assert!(named.wrong + named.failed > 0, "{named:?}");
    let unnamed = crowd(&pooler, Style::Unnamed).await;
    assert!(unnamed.wrong > 0, "{unnamed:?}");
    let in_transaction = crowd(&pooler, Style::UnnamedInTransaction).await;
    let all_right = Answers {
        right: CLIENTS * CALLS,
        ..Answers::default()
    };
    assert_eq!(in_transaction, all_right);
    assert_eq!(server.backends().await.len(), 3);
}

/// Has many clients at once ask the pooler what they know the answer to.
async fn crowd(pooler: &PgBouncer, style: Style) -> Answers {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let mut connection = pooler.connect().await;
        clients.spawn(async move {
            let mut answers = Answers::default();
            for call in 0..CALLS {
                let which = (client + call) % 3;
                let known = i64::from(call * 10 + which);
                match style.ask(&mut connection, which, call).await {
                    Ok(answer) if answer == known => answers.right += 1,
                    Ok(_) => answers.wrong += 1,
                    Err(_) => answers.failed += 1,
                }
            }
            answers
        });
    }
    let mut all = Answers::default();
    while let Some(answers) = clients.join_next().await {
        let answers = answers.unwrap();
        all.right += answers.right;
        all.wrong += answers.wrong;
        all.failed += answers.failed;
    }
    assert_eq!(all.right + all.wrong + all.failed, CLIENTS * CALLS);
    all
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Answers {
    right: u32,
    wrong: u32,
    failed: u32,
}

/// How a statement is prepared.
#[derive(Clone, Copy, Debug)]
enum Style {
    Named,
    Unnamed,
    UnnamedInTransaction,
}

impl Style {
    async fn ask(
        self,
        connection: &mut PgConnection,
        which: u32,
        call: u32,
    ) -> Result<i64, sqlx::Error> {
        let text = [
            "SELECT $1 * 10::bigint",
            "SELECT $1 * 10::bigint + 1",
            "SELECT $1 * 10::bigint + 2",
        ][which as usize];
        let query = sqlx::query_scalar(text)
            .bind(i64::from(call))
            .persistent(matches!(self, Self::Named));
        if !matches!(self, Self::UnnamedInTransaction) {
            return query.fetch_one(connection).await;
        }
        let mut transaction = connection.begin().await?;
        let answer = query.fetch_one(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(answer)
    }
}

const CLIENTS: u32 = 20;

/// Of each client.
const CALLS: u32 = 100;

#[tokio::test]
async fn the_proxy_counts_round_trips_and_does_what_networks_do() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let proxy = Proxy::start(server.port()).await;
    let options = server.options().port(proxy.port());
    let mut ours = PgConnection::connect_with(&options).await.unwrap();
    assert_eq!(proxy.take_counts().connections, 1);

    // The first use of a statement takes two round trips, and each further one.
    for round_trips in [2, 1, 1] {
        sqlx::query("SELECT 1").execute(&mut ours).await.unwrap();
        let counts = proxy.take_counts();
        assert_eq!(counts.round_trips, round_trips, "{counts:?}");
    }

    let latency = Duration::from_millis(20);
    proxy.set(Fault::Latency(latency));
    let begin = Instant::now();
    sqlx::query("SELECT 1").execute(&mut ours).await.unwrap();
    assert!(begin.elapsed() >= 2 * latency);

    proxy.set(Fault::BlackHole);
    let query = sqlx::query("SELECT 1");
    let mut silent = Box::pin(query.execute(&mut ours));
    timeout(Duration::from_millis(50), &mut silent)
        .await
        .unwrap_err();
    proxy.set(Fault::Pass);
    silent.await.unwrap();

    proxy.set(Fault::Reset);
    let error = sqlx::query("SELECT 1")
        .execute(&mut ours)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionReset),
        "{error:?}"
    );

    proxy.set(Fault::Pass);
    let mut ours = PgConnection::connect_with(&options).await.unwrap();
    proxy.kill_all();
    let error = ours.ping().await.unwrap_err();
    assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");

    // A cut lets through what it was told to, and happens once.
    let mut ours = PgConnection::connect_with(&options).await.unwrap();
    proxy.set(Fault::CutReply(3));
    ours.ping().await.unwrap_err();
    assert_eq!(proxy.fault(), Fault::Pass);
    proxy.take_counts();
    PgConnection::connect_with(&options).await.unwrap();
    assert_ne!(proxy.counts(), Counts::default());
}

//! What is repeated, and what is not: by what had been sent when it failed, and by what the caller allows.
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
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::TryStreamExt;
use sqlx::postgres::PgPoolOptions;
use steadfast::{Event, Kind, Observer, Rejected, db::PgDb};
use tokio::time::sleep;

use crate::{
    proxy::{Fault, Proxy},
    server::postgres::Postgres,
};

const MS: Duration = Duration::from_millis(1);
const INSERT: &str = "INSERT INTO entry (value) VALUES ($1)";

/// After which failures something was repeated.
#[derive(Clone, Default)]
struct Repeats(Arc<Mutex<Vec<Kind>>>);

impl Observer for Repeats {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Retry { kind, .. } = event {
            self.0.lock().unwrap().push(*kind);
        }
    }
}

impl Repeats {
    fn take(&self) -> Vec<Kind> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

struct Case {
    _server: Postgres,
    proxy: Proxy,
    direct: PgDb,
    db: PgDb,
    repeats: Repeats,
}

impl Case {
    /// A table, and a connection on which its statements are prepared: so that the first reply is that of the statement itself.
    async fn new() -> Option<Self> {
        let server = Postgres::start()?;
        let proxy = Proxy::start(server.port()).await;
        let pool = |port| {
            let options = server.options().port(port);
            PgPoolOptions::new()
                .max_connections(1)
                .connect_lazy_with(options)
        };
        let direct = PgDb::new(pool(server.port()));
        let repeats = Repeats::default();
        let db = PgDb::builder(pool(proxy.port()))
            .observer(repeats.clone())
            .build()
            .unwrap();
        sqlx::query("CREATE TABLE entry (value int)")
            .execute(&direct)
            .await
            .unwrap();
        for view in [&db, &db.idempotent(), &db.once()] {
            sqlx::query(INSERT).bind(0).execute(view).await.unwrap();
        }
        Some(Self {
            _server: server,
            proxy,
            direct,
            db,
            repeats,
        })
    }

    async fn rows(&self, value: i32) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM entry WHERE value = $1");
        count.bind(value).fetch_one(&self.direct).await.unwrap()
    }
}

#[tokio::test]
async fn an_insert_whose_reply_was_lost_is_repeated_only_where_it_may_be_done_twice() {
    let Some(case) = Case::new().await else {
        return;
    };
    case.proxy.set(Fault::CutReply(0));
    let error = sqlx::query(INSERT)
        .bind(1)
        .execute(&case.db)
        .await
        .unwrap_err();
    assert!(matches!(error, sqlx::Error::Io(_)), "{error}");
    assert_eq!((case.rows(1).await, case.repeats.take()), (1, vec![]));

    sqlx::query(INSERT).bind(0).execute(&case.db).await.unwrap();
    case.proxy.set(Fault::CutReply(0));
    sqlx::query(INSERT)
        .bind(2)
        .execute(case.db.idempotent())
        .await
        .unwrap();
    assert_eq!(
        (case.rows(2).await, case.repeats.take()),
        (2, vec![Kind::Ambiguous])
    );

    case.proxy.set(Fault::CutReply(0));
    sqlx::query(INSERT)
        .bind(3)
        .execute(case.db.once())
        .await
        .unwrap_err();
    assert_eq!((case.rows(3).await, case.repeats.take()), (1, vec![]));
}

#[tokio::test]
async fn a_statement_whose_backend_was_told_to_go_is_repeated_unless_once() {
    let Some(case) = Case::new().await else {
        return;
    };
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                WHERE state = 'active' AND query LIKE '%victim%' AND pid <> pg_backend_pid()";
    let victim = "INSERT INTO entry SELECT 7 FROM (SELECT pg_sleep(0.5)) victim";
    for (once, expected) in [(false, 1), (true, 0)] {
        sqlx::query("DELETE FROM entry WHERE value >= 6")
            .execute(&case.direct)
            .await
            .unwrap();
        let db = if once {
            case.db.once()
        } else {
            case.db.clone()
        };
        let call = tokio::spawn(async move { sqlx::query(victim).execute(&db).await });
        sleep(200 * MS).await;
        let killed = sqlx::query(kill).fetch_all(&case.direct).await.unwrap();
        assert_eq!(killed.len(), 1);
        let result = call.await.unwrap();
        assert_eq!(result.is_ok(), !once, "{result:?}");
        assert_eq!(case.rows(7).await, expected);
        let kinds = if once {
            vec![]
        } else {
            vec![Kind::Unavailable]
        };
        assert_eq!(case.repeats.take(), kinds);
    }
}

#[tokio::test]
async fn several_statements_in_one_text_are_not_repeated_once_they_were_sent() {
    let Some(case) = Case::new().await else {
        return;
    };
    let several = "INSERT INTO entry VALUES (4); INSERT INTO entry VALUES (4)";
    case.proxy.set(Fault::CutReply(0));
    sqlx::raw_sql(several).execute(&case.db).await.unwrap_err();
    assert_eq!((case.rows(4).await, case.repeats.take()), (2, vec![]));
    // A rival is no reason either: what came before him may be done.
    let conflict = "INSERT INTO entry VALUES (5); DO $$ BEGIN RAISE SQLSTATE '40001'; END $$";
    let error = sqlx::raw_sql(conflict).execute(&case.db).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "40001");
    assert_eq!(case.repeats.take(), []);
    let alone = "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$";
    sqlx::query(alone).execute(&case.db).await.unwrap_err();
    assert_eq!(case.repeats.take(), [Kind::Conflict; 7]);
}

#[tokio::test]
async fn rows_are_repeated_until_the_first_was_delivered_and_not_after() {
    let Some(case) = Case::new().await else {
        return;
    };
    let many = "SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g";
    let read = |db: PgDb| async move {
        let mut rows = sqlx::query(many).fetch(&db);
        let mut count = 0;
        while rows.try_next().await?.is_some() {
            count += 1;
        }
        Ok::<_, sqlx::Error>(count)
    };
    assert_eq!(read(case.db.clone()).await.unwrap(), 20_000);
    case.proxy.set(Fault::CutReply(10));
    assert_eq!(read(case.db.idempotent()).await.unwrap(), 20_000);
    assert_eq!(case.repeats.take(), [Kind::Ambiguous]);
    // Some thousand rows are through by then.
    sqlx::query("SELECT 1").execute(&case.db).await.unwrap();
    case.proxy.set(Fault::CutReply(5_000_000));
    let error = read(case.db.idempotent()).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::Io(_)), "{error}");
    assert_eq!(case.repeats.take(), []);
}

#[tokio::test]
async fn a_call_with_several_statements_is_repeated_only_where_it_may_be_done_twice() {
    let Some(case) = Case::new().await else {
        return;
    };
    let twice = |db: PgDb, value: i32| async move {
        let both = db.call(|mut lease| async move {
            sqlx::query(INSERT).bind(value).execute(&mut *lease).await?;
            sqlx::query("SELECT pg_sleep(0.2)")
                .execute(&mut *lease)
                .await?;
            Ok(())
        });
        both.await
    };
    for (idempotent, rows) in [(false, 1), (true, 2)] {
        let value = 10 + i32::from(idempotent);
        let db = if idempotent {
            case.db.idempotent()
        } else {
            case.db.clone()
        };
        let call = twice(db, value);
        let cut = async {
            sleep(100 * MS).await;
            case.proxy.kill_all();
        };
        let (result, ()) = tokio::join!(call, cut);
        assert_eq!(result.is_ok(), idempotent, "{result:?}");
        assert_eq!(case.rows(value).await, rows);
    }
}

#[tokio::test]
async fn a_hang_ends_with_its_attempt_and_is_repeated_only_where_it_may_be_done_twice() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect_lazy_with(server.options());
    let db = PgDb::builder(pool)
        .attempt_deadline(300 * MS)
        .build()
        .unwrap();
    sqlx::query("CREATE TABLE gate (open bool)")
        .execute(&db)
        .await
        .unwrap();
    let slow_once = "SELECT pg_sleep(CASE WHEN EXISTS (SELECT FROM gate) THEN 0 ELSE 30 END)";
    let error = sqlx::query(slow_once).execute(&db).await.unwrap_err();
    assert_eq!(
        Rejected::of(&error),
        Some(&Rejected::DeadlineExceeded { sent: true })
    );
    let call = async { sqlx::query(slow_once).execute(db.idempotent()).await };
    let open = async {
        sleep(150 * MS).await;
        sqlx::query("INSERT INTO gate VALUES (true)")
            .execute(&db)
            .await
    };
    let (result, opened) = tokio::join!(call, open);
    opened.unwrap();
    result.unwrap();
}

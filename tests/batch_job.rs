//! The example of a job in the background, on a PostgreSQL that is stopped and killed meanwhile.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(
    clippy::disallowed_methods,
    reason = "a real server lives by the real clock"
)]

#[path = "../examples/batch_job.rs"]
#[allow(dead_code, reason = "the example has a main function")]
mod batch_job;
#[path = "support/server.rs"]
mod server;

use std::time::Duration;

use sqlx::Postgres as Pg;

use crate::server::postgres::Postgres;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_killed_on_a_server_that_is_killed_does_nothing_twice()
-> Result<(), sqlx::Error> {
    // What was committed has to outlive a crash of the server.
    let Some(mut server) = Postgres::start_with(&["synchronous_commit=on"]) else {
        return Ok(());
    };
    let url = format!(
        "postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable",
        server.port()
    );
    let db = batch_job::config(url).connect::<Pg>().await?;
    let work = tokio::spawn(batch_job::work(db));
    let mut outages = 0;
    for crashes in [false, true, false, true] {
        tokio::time::sleep(Duration::from_millis(60)).await;
        if work.is_finished() {
            break;
        }
        if crashes {
            server.kill9();
        }
        server.restart();
        outages += 1;
    }
    work.await.unwrap()?;
    assert!(outages >= 2, "it was done after {outages} outages");
    Ok(())
}

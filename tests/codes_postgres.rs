//! The codes of PostgreSQL, provoked on a real server in every phase in which they can be had.
//!
//! Each error is judged by `classify::database`, and its line in `codes.tsv` has to agree and to say that it was provoked.
#![cfg(feature = "postgres")]
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
    fs,
    io::{Seek, SeekFrom, Write},
    os::unix::fs::symlink,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection, PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use steadfast::{
    Classify, Kind,
    classify::{self, Fate, Phase, Sqlx},
};
use tokio::time::sleep;

use crate::{
    codes::{assert_in_both_phases, execute, provoked},
    proxy::{Fault, Proxy},
    server::{
        pgbouncer::PgBouncer,
        postgres::{GUARDED, Postgres, Stop},
    },
};

#[tokio::test]
async fn what_the_call_itself_is_at_fault_for_is_invalid() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    for (code, statement) in [
        ("22012", "SELECT 1/0"),
        ("22001", "INSERT INTO item VALUES (7, 'far too long')"),
        ("22P02", "SELECT 'one'::int"),
        ("23505", "INSERT INTO item VALUES (1, 'twice')"),
        ("23502", "INSERT INTO item VALUES (7, NULL)"),
        ("23503", "INSERT INTO part VALUES (7)"),
        ("23514", "INSERT INTO item VALUES (-1, 'minus')"),
        ("23P01", "INSERT INTO item VALUES (7, 'one')"),
        ("2F005", "SELECT endless()"),
        ("42601", "SELEC 1"),
        ("42P01", "SELECT * FROM nowhere"),
        ("42703", "SELECT nowhere FROM item"),
        (
            "42501",
            "DO 'BEGIN SET LOCAL ROLE guest; PERFORM * FROM pg_authid; END'",
        ),
        ("P0001", "DO $$ BEGIN RAISE EXCEPTION 'no'; END $$"),
        ("0A000", "SELECT count(*) FROM item FOR UPDATE"),
        ("3D000", "SELECT pg_database_size('nowhere')"),
        // Of the user's own making, and so in no table.
        (
            "ZZ999",
            "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'ZZ999'; END $$",
        ),
    ] {
        database.assert_in_every_phase(code, statement).await;
    }
    database
        .assert_at_setup("3D000", "SELECT pg_database_size('nowhere')")
        .await;
}

#[tokio::test]
async fn a_deferred_constraint_is_checked_at_commit() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let mut ours = database.connect().await;
    for (code, statement) in [
        ("23505", "INSERT INTO late VALUES (1, NULL)"),
        ("23503", "INSERT INTO late VALUES (7, 99)"),
    ] {
        execute(&mut ours, "BEGIN").await.unwrap();
        execute(&mut ours, statement).await.unwrap();
        let error = execute(&mut ours, "COMMIT").await.unwrap_err();
        provoked(code, &error, Phase::Commit);
    }
    assert_eq!(count(&mut ours, "late").await, 1);
}

/// It looks like the call's own fault, but after a failover it is the connection's.
#[tokio::test]
async fn a_write_where_only_reading_is_allowed_is_unavailable() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let write = "DO $$ BEGIN
        SET LOCAL transaction_read_only = on; INSERT INTO item VALUES (7, 'seven');
    END $$";
    database.assert_in_every_phase("25006", write).await;
}

#[tokio::test]
async fn what_has_run_out_is_overloaded() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let sort = "DO $$ BEGIN
        SET LOCAL temp_file_limit = '64kB'; SET LOCAL work_mem = '64kB';
        PERFORM count(*) FROM (SELECT g FROM generate_series(1, 100000) g ORDER BY -g OFFSET 1) s;
    END $$";
    database.assert_in_every_phase("53400", sort).await;
    #[cfg(target_os = "linux")]
    {
        let write = "COPY (SELECT g FROM generate_series(1, 10000) g) TO '/dev/full'";
        database.assert_in_every_phase("53100", write).await;
    }
}

#[tokio::test]
async fn a_failing_disk_is_unavailable_and_ambiguous_at_commit() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let missing = "SELECT pg_read_file('nowhere')";
    database.assert_in_every_phase("58P01", missing).await;
    // Its first page can't be read, which the system calls an error of input and output.
    #[cfg(target_os = "linux")]
    {
        let unreadable = "SELECT pg_read_file('/proc/self/mem', 0, 10)";
        database.assert_in_every_phase("58030", unreadable).await;
        database.assert_at_setup("58030", unreadable).await;
    }
}

#[tokio::test]
async fn an_internal_error_is_unavailable_and_ambiguous_at_commit() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    // The array's element is of a type that is not there.
    let lookup = "SELECT array_in('{1}', 0, -1)";
    database.assert_in_every_phase("XX000", lookup).await;
    database.assert_at_setup("XX000", lookup).await;
}

#[tokio::test]
async fn an_object_in_the_wrong_state_is_a_conflict() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    database
        .assert_in_every_phase("55000", "SELECT currval('counter')")
        .await;
    let alter = "DO $$ DECLARE r record; BEGIN
        FOR r IN SELECT * FROM item LOOP ALTER TABLE item ADD COLUMN size int; END LOOP;
    END $$";
    database.assert_in_every_phase("55006", alter).await;
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
    let at_once = "SELECT * FROM item WHERE id = 1 FOR UPDATE NOWAIT";
    database.assert_in_every_phase("55P03", at_once).await;
    let soon = "DO $$ BEGIN
        SET LOCAL lock_timeout = '10ms'; UPDATE item SET name = 'ours' WHERE id = 1;
    END $$";
    database.assert_in_every_phase("55P03", soon).await;
}

#[tokio::test]
async fn a_statement_past_its_timeout_is_timed_out() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let mut ours = database.connect().await;
    execute(&mut ours, "SET statement_timeout = '20ms'")
        .await
        .unwrap();
    let error = execute(&mut ours, "SELECT pg_sleep(60)").await.unwrap_err();
    provoked("57014", &error, Phase::Statement);
    execute(&mut ours, "BEGIN").await.unwrap();
    let error = execute(&mut ours, "SELECT pg_sleep(60)").await.unwrap_err();
    provoked("57014", &error, Phase::Transaction);
}

#[tokio::test]
async fn a_cancelled_statement_is_timed_out_and_was_rolled_back() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    for phase in [Phase::Statement, Phase::Transaction, Phase::Commit] {
        let (mut ours, error) = database.interrupt("pg_cancel_backend", phase).await;
        provoked("57014", &error, phase);
        execute(&mut ours, "ROLLBACK").await.unwrap();
        assert_eq!(count(&mut ours, "item WHERE id = 7").await, 0, "{phase:?}");
    }
}

#[tokio::test]
async fn a_terminated_statement_was_rolled_back() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    for phase in [Phase::Statement, Phase::Transaction, Phase::Commit] {
        let (mut ours, error) = database.interrupt("pg_terminate_backend", phase).await;
        provoked("57P01", &error, phase);
        let next = execute(&mut ours, "SELECT 1").await.unwrap_err();
        assert!(matches!(next, sqlx::Error::Io(_)), "{next:?}");
        let mut another = database.connect().await;
        assert_eq!(
            count(&mut another, "item WHERE id = 7").await,
            0,
            "{phase:?}"
        );
    }
}

#[tokio::test]
async fn a_connection_terminated_while_idle_says_so_when_it_is_fetched() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let mut ours = database.connect().await;
    let mut operator = database.connect().await;
    let pid = pid(&mut ours).await;
    execute(
        &mut operator,
        &format!("SELECT pg_terminate_backend({pid}, 5000)"),
    )
    .await
    .unwrap();
    let error = ours.ping().await.unwrap_err();
    provoked("57P01", &error, Phase::Connect);
}

#[tokio::test]
async fn a_serialization_failure_is_a_conflict_on_a_statement_in_a_transaction_and_at_commit() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let mut rival = database.connect().await;
    let mut ours = database.connect().await;
    execute(
        &mut ours,
        "SET default_transaction_isolation = 'repeatable read'",
    )
    .await
    .unwrap();

    // Our single statement waits for a rival who changes what our snapshot saw.
    execute(&mut rival, "BEGIN").await.unwrap();
    execute(&mut rival, "UPDATE item SET name = 'rival' WHERE id = 1")
        .await
        .unwrap();
    let ours_pid = pid(&mut ours).await;
    let (result, ()) = tokio::join!(
        execute(&mut ours, "UPDATE item SET name = 'ours' WHERE id = 1"),
        async {
            database
                .wait_for(ours_pid, "wait_event_type = 'Lock'")
                .await;
            execute(&mut rival, "COMMIT").await.unwrap();
        }
    );
    provoked("40001", &result.unwrap_err(), Phase::Statement);

    execute(&mut ours, "BEGIN").await.unwrap();
    execute(&mut ours, "SELECT * FROM item").await.unwrap();
    execute(&mut rival, "UPDATE item SET name = 'again' WHERE id = 1")
        .await
        .unwrap();
    let error = execute(&mut ours, "UPDATE item SET name = 'ours' WHERE id = 1")
        .await
        .unwrap_err();
    provoked("40001", &error, Phase::Transaction);
    execute(&mut ours, "ROLLBACK").await.unwrap();

    // Each reads what the other writes; who commits first wins.
    for connection in [&mut ours, &mut rival] {
        execute(connection, "BEGIN ISOLATION LEVEL SERIALIZABLE")
            .await
            .unwrap();
        execute(connection, "SELECT sum(item) FROM part")
            .await
            .unwrap();
    }
    for connection in [&mut ours, &mut rival] {
        execute(connection, "INSERT INTO part VALUES (1)")
            .await
            .unwrap();
    }
    execute(&mut rival, "COMMIT").await.unwrap();
    let error = execute(&mut ours, "COMMIT").await.unwrap_err();
    provoked("40001", &error, Phase::Commit);
    assert_eq!(count(&mut rival, "part").await, 1);
}

#[tokio::test]
async fn a_deadlock_is_a_conflict_on_a_statement_in_a_transaction_and_at_commit() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    for phase in [Phase::Statement, Phase::Transaction, Phase::Commit] {
        let mut rival = database.connect().await;
        let mut ours = database.connect().await;
        // We are the one who looks for it, and so its victim.
        execute(&mut rival, "SET deadlock_timeout = '60s'; BEGIN")
            .await
            .unwrap();
        execute(&mut ours, "SET deadlock_timeout = '10ms'")
            .await
            .unwrap();
        execute(&mut rival, "UPDATE item SET name = name WHERE id = 2")
            .await
            .unwrap();
        let both = "DO $$ BEGIN
            UPDATE item SET name = name WHERE id = 1;
            PERFORM pg_advisory_lock(1);
            UPDATE item SET name = name WHERE id = 2;
        END $$";
        // The gate keeps us from the second row until the rival waits for the first one.
        let mut gate = database.connect().await;
        execute(&mut gate, "SELECT pg_advisory_lock(1)")
            .await
            .unwrap();
        let (ours_pid, rival_pid) = (pid(&mut ours).await, pid(&mut rival).await);
        if phase != Phase::Statement {
            execute(&mut ours, "BEGIN").await.unwrap();
        }
        let statement = if phase == Phase::Commit {
            at_commit(&mut ours, both).await;
            "COMMIT"
        } else {
            both
        };
        let opening = async {
            database.wait_for(ours_pid, "wait_event = 'advisory'").await;
            let (result, ()) = tokio::join!(
                execute(&mut rival, "UPDATE item SET name = name WHERE id = 1"),
                async {
                    database
                        .wait_for(rival_pid, "wait_event_type = 'Lock'")
                        .await;
                    execute(&mut gate, "SELECT pg_advisory_unlock(1)")
                        .await
                        .unwrap();
                }
            );
            result.expect("the other one was the victim");
        };
        let (result, ()) = tokio::join!(execute(&mut ours, statement), opening);
        provoked("40P01", &result.unwrap_err(), phase);
        execute(&mut rival, "ROLLBACK").await.unwrap();
        // What was locked for the session stays locked by whoever was let in.
        execute(&mut ours, "ROLLBACK; SELECT pg_advisory_unlock_all()")
            .await
            .unwrap();
    }
}

/// In a transaction of ours the first error decides; outside of one somebody else left it so.
#[tokio::test]
async fn a_failed_transaction_refuses_what_comes_after() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let mut ours = database.connect().await;
    execute(&mut ours, "BEGIN").await.unwrap();
    execute(&mut ours, "INSERT INTO part VALUES (1)")
        .await
        .unwrap();
    execute(&mut ours, "SELECT 1/0").await.unwrap_err();
    let error = execute(&mut ours, "SELECT 1").await.unwrap_err();
    provoked("25P02", &error, Phase::Transaction);
    provoked("25P02", &error, Phase::Statement);
    // It is a ROLLBACK, and no error.
    execute(&mut ours, "COMMIT").await.unwrap();
    assert_eq!(count(&mut ours, "part").await, 0);
}

#[tokio::test]
async fn a_session_ended_for_sitting_idle_has_not_read_what_came_after() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    for (code, setting, begin, statement, phase) in [
        (
            "25P03",
            "idle_in_transaction_session_timeout",
            "BEGIN",
            "INSERT INTO part VALUES (1)",
            Phase::Transaction,
        ),
        (
            "25P03",
            "idle_in_transaction_session_timeout",
            "BEGIN; INSERT INTO part VALUES (1)",
            "COMMIT",
            Phase::Commit,
        ),
        (
            "57P05",
            "idle_session_timeout",
            "SELECT 1",
            "INSERT INTO part VALUES (1)",
            Phase::Statement,
        ),
        (
            "57P05",
            "idle_session_timeout",
            "SELECT 1",
            "BEGIN",
            Phase::Transaction,
        ),
        (
            "25P03",
            "idle_in_transaction_session_timeout",
            "BEGIN",
            "INSERT INTO part VALUES (1)",
            Phase::Statement,
        ),
    ] {
        let mut ours = database.connect().await;
        let pid = pid(&mut ours).await;
        execute(&mut ours, &format!("SET {setting} = '10ms'"))
            .await
            .unwrap();
        execute(&mut ours, begin).await.unwrap();
        database.wait_until_gone(pid).await;
        let error = execute(&mut ours, statement).await.unwrap_err();
        provoked(code, &error, phase);
    }
    assert_eq!(count(&mut database.connect().await, "part").await, 0);
}

#[tokio::test]
async fn a_refused_login_is_broken() {
    let Some(server) = shared() else {
        return;
    };
    let mut setup = server.connect().await;
    let role = format!("CREATE ROLE {GUARDED} LOGIN PASSWORD 'right'");
    execute(&mut setup, &role).await.unwrap();
    let options = server.options();
    for (code, options) in [
        ("28000", options.clone().username("nobody_of_that_name")),
        ("28P01", options.clone().username(GUARDED).password("wrong")),
        ("3D000", options.clone().database("nowhere")),
        ("42704", options.clone().options([("nowhere", "1")])),
    ] {
        let error = PgConnection::connect_with(&options).await.unwrap_err();
        provoked(code, &error, Phase::Connect);
        // A plain pool hands it on as the error of whatever call it was.
        let pool = PgPoolOptions::new().connect_lazy_with(options);
        let error = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
        provoked(code, &error, Phase::Statement);
        let verdict = Sqlx.classify(Err::<&(), _>(&error));
        assert_eq!(
            verdict.kind,
            classify::database(&error, Phase::Statement).kind
        );
    }
    let right = options.username(GUARDED).password("right");
    PgConnection::connect_with(&right).await.unwrap();
}

#[tokio::test]
async fn too_many_connections_are_refused_at_the_door() {
    let Some(server) =
        Postgres::start_with(&["max_connections=5", "superuser_reserved_connections=1"])
    else {
        return;
    };
    let mut setup = server.connect().await;
    execute(
        &mut setup,
        "CREATE ROLE guest LOGIN; CREATE ROLE alone LOGIN CONNECTION LIMIT 1",
    )
    .await
    .unwrap();
    let alone = server.options().username("alone");
    let first = PgConnection::connect_with(&alone).await.unwrap();
    let error = PgConnection::connect_with(&alone).await.unwrap_err();
    provoked("53300", &error, Phase::Connect);

    let guest = server.options().username("guest");
    let mut connections = vec![first];
    let error = loop {
        match PgConnection::connect_with(&guest).await {
            Ok(connection) => connections.push(connection),
            Err(error) => break error,
        }
        assert!(connections.len() < 5, "the limit is not kept");
    };
    provoked("53300", &error, Phase::Connect);
}

#[tokio::test]
async fn too_many_locks_are_overloaded() {
    let settings = [
        "max_connections=5",
        "max_locks_per_transaction=10",
        "max_wal_senders=0",
    ];
    let Some(server) = Postgres::start_with(&settings) else {
        return;
    };
    let database = Database::on(&server).await;
    let locks = "SELECT pg_advisory_xact_lock(g) FROM generate_series(1, 100000) g";
    database.assert_in_every_phase("53200", locks).await;

    // As many as there is room for; those who come now need one to get in.
    let all = "DO $$ BEGIN
        FOR g IN 1..100000 LOOP
            BEGIN PERFORM pg_advisory_lock(g); EXCEPTION WHEN out_of_memory THEN EXIT; END;
        END LOOP;
    END $$";
    let mut rival = database.connect().await;
    execute(&mut rival, all).await.unwrap();
    let error = PgConnection::connect_with(&server.options())
        .await
        .unwrap_err();
    provoked("53200", &error, Phase::Connect);
}

#[tokio::test]
async fn too_many_open_files_are_overloaded() {
    let Some(server) = Postgres::start_with(&["max_files_per_process=64"]) else {
        return;
    };
    let database = Database::on(&server).await;
    let nested = "CREATE FUNCTION nested(more int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
        IF more > 0 THEN
            EXECUTE format('COPY (SELECT nested(%s)) TO ''/dev/null''', more - 1);
        END IF;
        RETURN 0;
    END $$";
    execute(&mut database.connect().await, nested)
        .await
        .unwrap();
    database
        .assert_in_every_phase("53000", "SELECT nested(64)")
        .await;
}

/// The other connection is the server's own.
#[tokio::test]
async fn a_server_that_can_not_reach_another_server_has_connection_trouble() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let database = Database::on(&server).await;
    let dblink = "CREATE EXTENSION dblink";
    execute(&mut database.connect().await, dblink)
        .await
        .expect("the modules that come with PostgreSQL are installed");
    for (code, statement) in [
        (
            "08006",
            "CREATE SUBSCRIPTION far CONNECTION 'host=127.0.0.1 port=1' PUBLICATION far WITH (create_slot = false)",
        ),
        ("08001", "SELECT dblink_connect('host=127.0.0.1 port=1')"),
        ("08003", "SELECT dblink_disconnect('far')"),
    ] {
        database.assert_in_every_phase(code, statement).await;
        database.assert_at_setup(code, statement).await;
    }
    let without_password = "DO $$ BEGIN
        SET LOCAL ROLE guest; PERFORM dblink_connect('host=127.0.0.1');
    END $$";
    database
        .assert_in_every_phase("2F003", without_password)
        .await;
}

/// The file says where the tables of the system are. A session reads it again when a rival has moved one of them.
#[tokio::test]
async fn a_session_ended_over_the_files_of_its_database_is_lost() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let database = Database::on(&server).await;
    let mut operator = database.connect().await;
    let folder: String = sqlx::query_scalar(
        "SELECT 'base/' || oid FROM pg_database WHERE datname = current_database()",
    )
    .fetch_one(&mut operator)
    .await
    .unwrap();
    let file = server.data().join(folder).join("pg_filenode.map");
    let aside = file.with_extension("aside");
    let shorten = || fs::write(&file, [0; 100]).unwrap();
    let make_unreadable = || symlink("/proc/self/mem", &file).unwrap();
    let mut faults: Vec<(&str, &dyn Fn())> = vec![("XX001", &shorten)];
    if cfg!(target_os = "linux") {
        faults.push(("58030", &make_unreadable));
    }
    for (code, fault) in faults {
        for phase in [Phase::Statement, Phase::Transaction, Phase::Commit] {
            let mut ours = database.connect().await;
            let create = "CREATE TABLE more ()";
            if phase != Phase::Statement {
                execute(&mut ours, "BEGIN").await.unwrap();
            }
            let statement = if phase == Phase::Commit {
                at_commit(&mut ours, create).await;
                "COMMIT"
            } else {
                create
            };
            execute(&mut operator, "VACUUM FULL pg_class")
                .await
                .unwrap();
            fs::rename(&file, &aside).unwrap();
            fault();
            let error = execute(&mut ours, statement).await.unwrap_err();
            provoked(code, &error, phase);

            let error = PgConnection::connect_with(&server.options())
                .await
                .unwrap_err();
            provoked(code, &error, Phase::Connect);
            fs::remove_file(&file).unwrap();
            fs::rename(&aside, &file).unwrap();
        }
    }
}

/// All its sessions are gone, and here it can't even start again.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_that_can_not_write_its_log_goes_down_in_the_middle() {
    let settings = [
        "synchronous_commit=on",
        "wal_buffers=32kB",
        "wal_writer_delay=10s",
    ];
    for code in ["53100", "XX000"] {
        for phase in [Phase::Statement, Phase::Transaction, Phase::Commit] {
            let Some(server) = Postgres::start_with(&settings) else {
                return;
            };
            execute(&mut server.connect().await, "SELECT pg_switch_wal()")
                .await
                .unwrap();
            let database = Database::on(&server).await;
            let mut ours = database.connect().await;
            let name = "SELECT pg_walfile_name(pg_current_wal_insert_lsn())";
            let name: String = sqlx::query_scalar(name).fetch_one(&mut ours).await.unwrap();
            if phase != Phase::Statement {
                execute(&mut ours, "BEGIN").await.unwrap();
            }
            if phase == Phase::Commit {
                execute(&mut ours, "INSERT INTO part VALUES (1)")
                    .await
                    .unwrap();
            }
            // Whoever opens it now finds a full disk, or a link that leads to itself.
            let file = server.data().join("pg_wal").join(&name);
            fs::rename(&file, file.with_extension("aside")).unwrap();
            let target = match code {
                "53100" => "/dev/full",
                _ => &name,
            };
            symlink(target, &file).unwrap();
            let statement = match phase {
                Phase::Commit => "COMMIT",
                // More than the buffers hold.
                Phase::Transaction => "INSERT INTO part SELECT 1 FROM generate_series(1, 10000)",
                _ => "INSERT INTO part VALUES (1)",
            };
            let error = execute(&mut ours, statement).await.unwrap_err();
            provoked(code, &error, phase);
        }
    }
}

/// By the code alone it can't be told from what ends a session because the pooler is full.
#[tokio::test]
async fn what_a_pooler_ends_a_session_for_is_connection_trouble() {
    let Some(server) = Postgres::start() else {
        return;
    };
    Database::on(&server).await;
    let pooler = PgBouncer::start_with(&server, &["idle_transaction_timeout=0.05"]);
    let refused = server.options().port(pooler.port());
    let error = PgConnection::connect_with(&refused).await.unwrap_err();
    provoked("08P01", &error, Phase::Connect);
    let pool = PgPoolOptions::new().connect_lazy_with(refused);
    let error = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
    provoked("08P01", &error, Phase::Statement);

    for (statement, phase) in [
        ("INSERT INTO part VALUES (1)", Phase::Transaction),
        ("COMMIT", Phase::Commit),
    ] {
        let mut ours = pooler.connect().await;
        execute(&mut ours, "BEGIN; INSERT INTO part VALUES (1)")
            .await
            .unwrap();
        let mut observer = server.connect().await;
        let there = "pg_stat_activity WHERE state = 'idle in transaction'";
        while count(&mut observer, there).await > 0 {
            sleep(Duration::from_millis(5)).await;
        }
        let error = execute(&mut ours, statement).await.unwrap_err();
        provoked("08P01", &error, phase);
    }
    assert_eq!(count(&mut server.connect().await, "part").await, 0);
}

#[tokio::test]
async fn a_full_pooler_is_overloaded_as_long_as_nothing_was_committed() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let settings = [
        "default_pool_size=1",
        "max_client_conn=2",
        "query_wait_timeout=0.05",
    ];
    let pooler = PgBouncer::start_with(&server, &settings);
    let mut rival = pooler.connect().await;
    execute(&mut rival, "BEGIN").await.unwrap();
    let mut ours = pooler.connect().await;
    let refused = PgConnection::connect_with(&pooler.options())
        .await
        .unwrap_err();
    let waited = execute(&mut ours, "SELECT 1").await.unwrap_err();
    for (error, phase) in [
        (&refused, Phase::Connect),
        (&refused, Phase::Statement),
        (&waited, Phase::Statement),
        (&waited, Phase::Transaction),
    ] {
        let said = error.as_database_error().expect("the pooler says so");
        assert_eq!(said.code().as_deref(), Some("08P01"));
        let verdict = classify::database(error, phase);
        assert_eq!(
            (verdict.kind, verdict.fate),
            (Kind::Overloaded, Fate::Discard),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn what_the_disk_has_garbled_is_broken_and_ambiguous_at_commit() {
    // Else the index is found out by its checksum already, which new versions have.
    let Some(mut server) = Postgres::start_with(&["ignore_checksum_failure=on"]) else {
        return;
    };
    let setup = Database::on(&server).await;
    let mut connection = setup.connect().await;
    let file = "SELECT pg_relation_filepath($1::regclass)";
    let mut files = Vec::new();
    for name in ["part", "item_pkey"] {
        let path: String = sqlx::query_scalar(file)
            .bind(name)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        files.push(server.data().join(path));
    }
    execute(&mut connection, "INSERT INTO part VALUES (1)")
        .await
        .unwrap();
    server.stop(Stop::Fast);
    // The head of the table's page, and of the index the number by which it is known to be one.
    for (file, at) in files.iter().zip([0, 24]) {
        let mut file = fs::OpenOptions::new().write(true).open(file).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[0xa5; 16]).unwrap();
    }
    server.restart();
    let database = Database {
        options: server.options(),
    };
    let by_page = "SELECT * FROM part";
    database.assert_in_every_phase("XX001", by_page).await;
    database.assert_at_setup("XX001", by_page).await;
    let by_index = "DO $$ BEGIN
        SET LOCAL enable_seqscan = off; PERFORM * FROM item WHERE id = 1;
    END $$";
    database.assert_in_every_phase("XX002", by_index).await;
    database.assert_at_setup("XX002", by_index).await;
}

#[tokio::test]
async fn a_cached_statement_that_no_longer_fits_is_cleared_and_was_not_run() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let statement = "INSERT INTO part VALUES ($1) RETURNING *";
    // Behind the driver's back, and what makes it well again.
    for (code, break_it) in [
        ("0A000", "ALTER TABLE part ADD COLUMN more int"),
        ("26000", "DEALLOCATE ALL"),
        ("08P01", "DEALLOCATE ALL; PREPARE sqlx_s_1 AS SELECT 1"),
    ] {
        for phase in [Phase::Statement, Phase::Transaction] {
            let mut ours = database.connect().await;
            sqlx::query(statement)
                .bind(1)
                .execute(&mut ours)
                .await
                .unwrap();
            execute(&mut ours, break_it).await.unwrap();
            let before = rows_of(&database, "part").await;
            if phase == Phase::Transaction {
                execute(&mut ours, "BEGIN").await.unwrap();
            }
            let error = sqlx::query(statement)
                .bind(1)
                .execute(&mut ours)
                .await
                .unwrap_err();
            provoked(code, &error, phase);
            execute(&mut ours, "ROLLBACK").await.unwrap();
            assert_eq!(rows_of(&database, "part").await, before, "{code}");

            execute(&mut ours, "DEALLOCATE ALL").await.unwrap();
            ours.clear_cached_statements().await.unwrap();
            sqlx::query(statement)
                .bind(1)
                .execute(&mut ours)
                .await
                .unwrap();
            execute(
                &mut database.connect().await,
                "ALTER TABLE part DROP COLUMN IF EXISTS more",
            )
            .await
            .unwrap();
        }
    }
}

#[tokio::test]
async fn a_statement_whose_name_is_taken_was_not_run() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    for phase in [Phase::Statement, Phase::Transaction] {
        let mut ours = database.connect().await;
        // As another client of a transaction pooler does.
        execute(&mut ours, "PREPARE sqlx_s_1 AS SELECT 1")
            .await
            .unwrap();
        if phase == Phase::Transaction {
            execute(&mut ours, "BEGIN").await.unwrap();
        }
        let error = sqlx::query("INSERT INTO part VALUES (1)")
            .execute(&mut ours)
            .await
            .unwrap_err();
        provoked("42P05", &error, phase);
        execute(&mut ours, "ROLLBACK").await.unwrap();
        assert_eq!(rows_of(&database, "part").await, 0);
    }
}

#[tokio::test]
async fn a_server_that_waits_for_its_last_client_takes_no_more() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let mut last = server.connect().await;
    server.tell(Stop::Smart);
    let error = loop {
        match PgConnection::connect_with(&server.options()).await {
            Ok(_) => sleep(Duration::from_millis(1)).await,
            Err(error) => break error,
        }
    };
    provoked("57P03", &error, Phase::Connect);
    execute(&mut last, "SELECT 1").await.unwrap();
}

#[tokio::test]
async fn a_server_that_recovers_takes_nobody_yet() {
    let Some(server) = Postgres::start() else {
        return;
    };
    let mut ours = server.connect().await;
    let victim = pid(&mut ours).await.try_into().unwrap();
    server::send("KILL", &[victim]);
    let error = execute(&mut ours, "SELECT pg_sleep(60)").await.unwrap_err();
    assert_eq!(
        classify::database(&error, Phase::Statement),
        classify::lost(Phase::Statement)
    );
    let error = loop {
        match PgConnection::connect_with(&server.options()).await {
            Err(error) if error.as_database_error().is_some() => break error,
            // It has not noticed yet, or is between the two; then a new backend is killed.
            Ok(mut connection) => {
                let victim = sqlx::query_scalar("SELECT pg_backend_pid()")
                    .fetch_one(&mut connection)
                    .await;
                if let Ok::<i32, _>(victim) = victim {
                    server::send("KILL", &[victim.try_into().unwrap()]);
                }
            }
            Err(_) => {}
        }
    };
    provoked("57P03", &error, Phase::Connect);
}

#[tokio::test]
async fn a_server_that_shuts_down_ends_its_sessions() {
    let Some(mut server) = Postgres::start() else {
        return;
    };
    Database::on(&server).await;
    let mut idle = server.connect().await;
    let mut in_transaction = server.connect().await;
    execute(&mut in_transaction, "BEGIN; INSERT INTO part VALUES (1)")
        .await
        .unwrap();
    server.stop(Stop::Fast);
    let error = execute(&mut idle, "INSERT INTO part VALUES (1)")
        .await
        .unwrap_err();
    provoked("57P01", &error, Phase::Statement);
    let error = execute(&mut in_transaction, "COMMIT").await.unwrap_err();
    provoked("57P01", &error, Phase::Commit);
    let error = PgConnection::connect_with(&server.options())
        .await
        .unwrap_err();
    assert_eq!(
        classify::database(&error, Phase::Connect).kind,
        Kind::Unavailable
    );

    server.restart();
    assert_eq!(count(&mut server.connect().await, "part").await, 0);
}

/// The backend says so from another routine than where it checks for orders.
#[tokio::test]
async fn a_backend_whose_postmaster_died_does_not_say_where_it_stopped() {
    let Some(mut server) = Postgres::start() else {
        return;
    };
    let mut connections = Vec::new();
    for phase in [Phase::Statement, Phase::Transaction, Phase::Commit] {
        let mut ours = server.connect().await;
        let backend = pid(&mut ours).await.try_into().unwrap();
        connections.push((phase, backend, ours));
    }
    server.kill9_postmaster();
    for (phase, backend, mut ours) in connections {
        while server::alive(backend) {
            sleep(Duration::from_millis(1)).await;
        }
        let error = execute(&mut ours, "SELECT 1").await.unwrap_err();
        provoked("57P01", &error, phase);
        let verdict = classify::database(&error, Phase::Statement);
        assert_eq!(
            (verdict.kind, verdict.fate),
            (Kind::Ambiguous, Fate::Discard)
        );
    }
}

/// The same error for both, as the driver sees it.
#[tokio::test]
async fn an_insert_whose_reply_is_lost_is_ambiguous_executed_or_not() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let proxy = Proxy::start(shared().expect("not skipped").port()).await;
    let insert = "INSERT INTO part VALUES (1)";

    // The first use takes two round trips, and the first one only prepares it.
    let mut ours = PgConnection::connect_with(&database.options.clone().port(proxy.port()))
        .await
        .unwrap();
    proxy.set(Fault::CutReply(0));
    let error = sqlx::query(insert).execute(&mut ours).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");
    assert_eq!(
        classify::database(&error, Phase::Statement).kind,
        Kind::Ambiguous
    );
    assert_eq!(rows_of(&database, "part").await, 0);

    let mut ours = PgConnection::connect_with(&database.options.clone().port(proxy.port()))
        .await
        .unwrap();
    sqlx::query(insert).execute(&mut ours).await.unwrap();
    assert_eq!(rows_of(&database, "part").await, 1);
    proxy.set(Fault::CutReply(0));
    let error = sqlx::query(insert).execute(&mut ours).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");
    assert_eq!(
        classify::database(&error, Phase::Statement).kind,
        Kind::Ambiguous
    );
    assert_eq!(rows_of(&database, "part").await, 2);
}

#[tokio::test]
async fn a_commit_is_ambiguous_whichever_way_is_cut() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let proxy = Proxy::start(shared().expect("not skipped").port()).await;
    let options = database.options.clone().port(proxy.port());
    for (fault, rows) in [(Fault::CutRequest(0), 0), (Fault::CutReply(0), 1)] {
        let mut ours = PgConnection::connect_with(&options).await.unwrap();
        let mut transaction = ours.begin().await.unwrap();
        sqlx::query("INSERT INTO part VALUES (1)")
            .execute(&mut *transaction)
            .await
            .unwrap();
        proxy.set(fault);
        let error = transaction.commit().await.unwrap_err();
        assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");
        let verdict = classify::database(&error, Phase::Commit);
        assert_eq!(
            (verdict.kind, verdict.fate),
            (Kind::Ambiguous, Fate::Discard)
        );
        assert_eq!(rows_of(&database, "part").await, rows, "{fault:?}");
    }
}

#[tokio::test]
async fn a_connection_lost_in_a_transaction_has_done_nothing() {
    let Some(database) = Database::of_its_own().await else {
        return;
    };
    let proxy = Proxy::start(shared().expect("not skipped").port()).await;
    let options = database.options.clone().port(proxy.port());
    let mut ours = PgConnection::connect_with(&options).await.unwrap();
    execute(&mut ours, "BEGIN").await.unwrap();
    proxy.set(Fault::CutReply(0));
    let error = execute(&mut ours, "INSERT INTO part VALUES (1)")
        .await
        .unwrap_err();
    assert_eq!(
        classify::database(&error, Phase::Transaction).kind,
        Kind::Unavailable
    );
    assert_eq!(rows_of(&database, "part").await, 0);
}

/// A schema of its own on the server that the tests of this file share.
struct Database {
    options: PgConnectOptions,
}

impl Database {
    async fn of_its_own() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let schema = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let options = shared()?
            .options()
            .options([("search_path", schema.as_str())]);
        Some(Self::create(options, &schema).await)
    }

    /// On a server that the test has to itself.
    async fn on(server: &Postgres) -> Self {
        Self::create(server.options(), "public").await
    }

    async fn create(options: PgConnectOptions, schema: &str) -> Self {
        let mut setup = PgConnection::connect_with(&options).await.unwrap();
        execute(&mut setup, &format!("CREATE SCHEMA IF NOT EXISTS {schema}"))
            .await
            .unwrap();
        execute(&mut setup, TABLES).await.unwrap();
        Self { options }
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect_with(&self.options).await.unwrap()
    }

    /// Runs what must fail as a statement that commits by itself, in a transaction, and at COMMIT.
    async fn assert_in_every_phase(&self, code: &str, statement: &str) {
        let mut ours = self.connect().await;
        assert_in_both_phases(&mut ours, code, statement).await;
        execute(&mut ours, "BEGIN").await.unwrap();
        at_commit(&mut ours, statement).await;
        let error = execute(&mut ours, "COMMIT").await.expect_err(statement);
        provoked(code, &error, Phase::Commit);
        // An ERROR has ended the transaction, which is rolled back, but not the session.
        assert_eq!(count(&mut ours, "at_commit").await, 0, "{statement}");
    }

    /// Runs what must fail as the first statement of a connection, by which it is set up before it is handed out.
    async fn assert_at_setup(&self, code: &str, statement: &str) {
        let mut ours = self.connect().await;
        let error = execute(&mut ours, statement).await.expect_err(statement);
        provoked(code, &error, Phase::Connect);
    }
    /// Has an operator call `function` on our backend while a write of ours is sleeping in this phase.
    async fn interrupt(&self, function: &str, phase: Phase) -> (PgConnection, sqlx::Error) {
        let mut ours = self.connect().await;
        let pid = pid(&mut ours).await;
        let write =
            "DO $$ BEGIN INSERT INTO item VALUES (7, 'seven'); PERFORM pg_sleep(60); END $$";
        if phase != Phase::Statement {
            execute(&mut ours, "BEGIN").await.unwrap();
        }
        let statement = if phase == Phase::Commit {
            at_commit(&mut ours, write).await;
            "COMMIT"
        } else {
            write
        };
        let operator = async {
            self.wait_for(pid, "wait_event = 'PgSleep'").await;
            let order = format!("SELECT {function}({pid})");
            execute(&mut self.connect().await, &order).await.unwrap();
        };
        let (result, ()) = tokio::join!(execute(&mut ours, statement), operator);
        (ours, result.expect_err("it was interrupted"))
    }

    /// Waits until the backend is seen in this state.
    async fn wait_for(&self, pid: i32, state: &str) {
        let mut observer = self.connect().await;
        let seen = format!("pg_stat_activity WHERE pid = {pid} AND {state}");
        while count(&mut observer, &seen).await == 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn wait_until_gone(&self, pid: i32) {
        let mut observer = self.connect().await;
        let there = format!("pg_stat_activity WHERE pid = {pid}");
        while count(&mut observer, &there).await > 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }
}

/// `None` if tests are told to do without servers.
fn shared() -> Option<&'static Postgres> {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    if server::skipped() {
        return None;
    }
    Some(SHARED.get_or_init(|| Postgres::start().expect("it is not skipped")))
}

/// Has the statement run when the transaction commits.
async fn at_commit(connection: &mut PgConnection, statement: &str) {
    let insert = sqlx::query("INSERT INTO at_commit VALUES ($1)").bind(statement);
    insert.execute(connection).await.unwrap();
}

async fn count(connection: &mut PgConnection, table: &str) -> i64 {
    let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

/// On a connection of its own.
async fn rows_of(database: &Database, table: &str) -> i64 {
    count(&mut database.connect().await, table).await
}

async fn pid(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(connection)
        .await
        .unwrap()
}

const TABLES: &str = "
DO 'BEGIN CREATE ROLE guest; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END';
CREATE TABLE item (
    id int PRIMARY KEY CHECK (id > 0),
    name varchar(5) NOT NULL,
    EXCLUDE USING btree (name WITH =)
);
INSERT INTO item VALUES (1, 'one'), (2, 'two');
CREATE TABLE part (item int REFERENCES item);
CREATE TABLE late (
    id int UNIQUE DEFERRABLE INITIALLY DEFERRED,
    item int REFERENCES item DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO late VALUES (1, 1);
CREATE FUNCTION endless() RETURNS int LANGUAGE plpgsql AS 'BEGIN END';
CREATE SEQUENCE counter;

-- A statement in here is run by the COMMIT of the transaction that put it in.
CREATE TABLE at_commit (statement text);
CREATE FUNCTION run_at_commit() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN EXECUTE NEW.statement; RETURN NULL; END';
CREATE CONSTRAINT TRIGGER run_at_commit AFTER INSERT ON at_commit
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION run_at_commit();
";

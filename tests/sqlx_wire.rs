//! What the drivers for PostgreSQL and MySQL make of a server's words, and `classify` of that.
//!
//! The server is a few bytes on a local socket, so that every word can be chosen.
#![cfg(any(feature = "postgres", feature = "mysql"))]

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    thread::{self, JoinHandle},
};

/// Serves one connection, and returns its port.
fn serve(answer: impl FnOnce(&mut TcpStream) + Send + 'static) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        answer(&mut stream);
        stream.flush().unwrap();
    });
    (port, server)
}

#[cfg(feature = "postgres")]
mod postgres {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use sqlx::{
        Connection, PgConnection,
        postgres::{PgConnectOptions, PgSslMode},
    };
    use steadfast::{
        Kind,
        classify::{DbVerdict, Fate, Heal, Phase, database},
    };

    use crate::serve;

    #[tokio::test]
    async fn a_refused_login_is_broken() {
        let error = connect([("V", "FATAL"), ("C", "28P01"), ("M", "no")]).await;
        assert_eq!(database(&error, Phase::Connect).kind, Kind::Broken);
        assert_eq!(database(&error, Phase::Statement).kind, Kind::Broken);
    }

    #[tokio::test]
    async fn a_terminated_backend_is_judged_by_its_routine() {
        let checked = [
            ("V", "FATAL"),
            ("C", "57P01"),
            ("M", "no"),
            ("R", "ProcessInterrupts"),
        ];
        let checked = query(checked).await;
        assert_eq!(
            (checked.kind, checked.fate),
            (Kind::Unavailable, Fate::Discard)
        );

        let elsewhere = query([("V", "FATAL"), ("C", "57P01"), ("M", "no"), ("R", "other")]).await;
        assert_eq!(elsewhere.kind, Kind::Ambiguous);
    }

    #[tokio::test]
    async fn a_full_pooler_is_overloaded() {
        let full = query([("V", "FATAL"), ("C", "08P01"), ("M", "query_wait_timeout")]).await;
        assert_eq!((full.kind, full.fate), (Kind::Overloaded, Fate::Discard));
    }

    #[tokio::test]
    async fn the_message_of_a_mere_error_is_not_read() {
        let error = query([("V", "ERROR"), ("C", "22P02"), ("M", "query_wait_timeout")]).await;
        assert_eq!((error.kind, error.fate), (Kind::Invalid, Fate::Keep));
    }

    #[tokio::test]
    async fn a_panic_is_a_lost_connection() {
        let panic = query([("V", "PANIC"), ("C", "53100"), ("M", "no")]).await;
        assert_eq!((panic.kind, panic.fate), (Kind::Ambiguous, Fate::Discard));
    }

    #[tokio::test]
    async fn an_outdated_cached_statement_is_healed() {
        let outdated = [
            ("V", "ERROR"),
            ("C", "0A000"),
            ("M", "no"),
            ("R", "RevalidateCachedQuery"),
        ];
        let outdated = query(outdated).await;
        assert_eq!(
            (outdated.kind, outdated.heal),
            (Kind::Conflict, Heal::ClearStatements)
        );
    }

    /// The error with which a server answers the startup packet.
    async fn connect<const N: usize>(fields: [(&'static str, &'static str); N]) -> sqlx::Error {
        let (port, server) = serve(move |stream| {
            read_startup(stream);
            stream.write_all(&error(&fields)).unwrap();
        });
        let result = PgConnection::connect_with(&options(port)).await;
        server.join().unwrap();
        result.expect_err("the server refused")
    }

    /// What the error means with which a server answers a statement.
    async fn query<const N: usize>(fields: [(&'static str, &'static str); N]) -> DbVerdict {
        let (port, server) = serve(move |stream| {
            read_startup(stream);
            stream.write_all(&message(b'R', &[0, 0, 0, 0])).unwrap();
            stream.write_all(&message(b'Z', b"I")).unwrap();
            read_query(stream);
            stream.write_all(&error(&fields)).unwrap();
            stream.write_all(&message(b'Z', b"I")).unwrap();
        });
        let mut connection = PgConnection::connect_with(&options(port)).await.unwrap();
        let result = sqlx::raw_sql("SELECT 1").execute(&mut connection).await;
        server.join().unwrap();
        database(&result.expect_err("the server said no"), Phase::Statement)
    }

    fn options(port: u16) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(port)
            .username("anybody")
            .ssl_mode(PgSslMode::Disable)
    }

    fn read_startup(stream: &mut TcpStream) {
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut rest).unwrap();
    }

    fn read_query(stream: &mut TcpStream) {
        stream.read_exact(&mut [0]).unwrap();
        read_startup(stream);
    }

    fn error(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, value) in fields {
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(value.as_bytes());
            body.push(0);
        }
        body.push(0);
        message(b'E', &body)
    }

    fn message(name: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[name], &length.to_be_bytes()[..], body].concat()
    }
}

#[cfg(feature = "mysql")]
mod mysql {
    use std::io::Write;

    use sqlx::{
        Connection, MySqlConnection,
        mysql::{MySqlConnectOptions, MySqlSslMode},
    };
    use steadfast::{
        Kind,
        classify::{Phase, database},
    };

    use crate::serve;

    #[tokio::test]
    async fn a_server_without_slots_is_overloaded() {
        assert_eq!(refused_with(1040).await, Kind::Overloaded);
    }

    /// Its SQLSTATE, 42000, would make it a fault of syntax.
    #[tokio::test]
    async fn a_user_without_slots_is_judged_by_the_number_and_overloaded() {
        assert_eq!(refused_with(1226).await, Kind::Overloaded);
    }

    /// What it means that a server greets with this error.
    async fn refused_with(number: u16) -> Kind {
        let (port, server) = serve(move |stream| {
            let [low, high] = number.to_le_bytes();
            let body = [&[0xff, low, high], &b"#42000no"[..]].concat();
            let length = u8::try_from(body.len()).unwrap();
            stream.write_all(&[length, 0, 0, 0]).unwrap();
            stream.write_all(&body).unwrap();
        });
        let options = MySqlConnectOptions::new()
            .host("127.0.0.1")
            .port(port)
            .ssl_mode(MySqlSslMode::Disabled);
        let result = MySqlConnection::connect_with(&options).await;
        server.join().unwrap();
        database(&result.expect_err("the server refused"), Phase::Connect).kind
    }
}

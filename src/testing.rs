//! What the unit tests of the pure cores share.

use std::time::{Duration, Instant};

/// An instant to count from, with room before it.
#[allow(
    clippy::disallowed_methods,
    reason = "an arbitrary origin: the cores' tests only add to it"
)]
pub(crate) fn start() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// `start + seconds`.
pub(crate) fn at(start: Instant, seconds: f64) -> Instant {
    start + Duration::from_secs_f64(seconds)
}

/// What sqlx makes of a PostgreSQL that answers the startup packet so.
#[cfg(feature = "postgres")]
pub(crate) async fn refused(severity: &str, code: &str, message: &str) -> sqlx::Error {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    use sqlx::{
        Connection, PgConnection,
        postgres::{PgConnectOptions, PgSslMode},
    };

    let fields = format!("S{severity}\0V{severity}\0C{code}\0M{message}\0\0");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut packet).unwrap();
        let length = u32::try_from(fields.len() + 4).unwrap();
        stream.write_all(b"E").unwrap();
        stream.write_all(&length.to_be_bytes()).unwrap();
        stream.write_all(fields.as_bytes()).unwrap();
    });
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .ssl_mode(PgSslMode::Disable);
    let error = PgConnection::connect_with(&options).await.unwrap_err();
    server.join().unwrap();
    error
}

//! What the unit tests of the pure cores share.

use std::time::{Duration, Instant};
#[cfg(all(feature = "tower", not(steadfast_loom)))]
use std::{
    io,
    sync::{Arc, Mutex},
};

#[cfg(not(steadfast_loom))]
use crate::event::Cause;

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

/// Every cause for a change of state.
#[cfg(not(steadfast_loom))]
pub(crate) const CAUSES: [Cause; 8] = [
    Cause::FailureRate,
    Cause::Consecutive,
    Cause::SlowRate,
    Cause::OpenTimeOver,
    Cause::ProbeFailed,
    Cause::ProbeExpired,
    Cause::ProbesSucceeded,
    Cause::Asked,
];

/// What sqlx makes of a PostgreSQL that answers the startup packet so.
#[cfg(feature = "postgres")]
pub(crate) async fn refused(severity: &str, code: &str, message: &str) -> sqlx::Error {
    let (port, _) = refusing(severity, code, message);
    connect(port).await.unwrap_err()
}

/// A connection to the PostgreSQL, or what passes for one, on this port.
#[cfg(feature = "postgres")]
pub(crate) async fn connect(port: u16) -> Result<sqlx::PgConnection, sqlx::Error> {
    use sqlx::{
        Connection, PgConnection,
        postgres::{PgConnectOptions, PgSslMode},
    };

    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .ssl_mode(PgSslMode::Disable);
    PgConnection::connect_with(&options).await
}

/// A PostgreSQL that answers every startup packet so, until the tests end: its port, and the packets.
#[cfg(feature = "postgres")]
pub(crate) fn refusing(severity: &str, code: &str, message: &str) -> (u16, Packets) {
    let fields = format!("S{severity}\0V{severity}\0C{code}\0M{message}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
    answering([b"E", &length[..], fields.as_bytes()].concat())
}

/// The same with this answer, after which it hangs up.
#[cfg(feature = "postgres")]
pub(crate) fn answering(answer: Vec<u8>) -> (u16, Packets) {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let packets = Packets::default();
    let answered = packets.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
            stream.read_exact(&mut packet).unwrap();
            let text = String::from_utf8_lossy(&packet).into_owned();
            answered.lock().expect("nobody panics with it").push(text);
            stream.write_all(&answer).unwrap();
        }
    });
    (port, packets)
}

#[cfg(feature = "postgres")]
pub(crate) type Packets = Arc<Mutex<Vec<String>>>;

/// What is logged on this thread, one line for each event.
#[cfg(all(feature = "tower", not(steadfast_loom)))]
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

#[cfg(all(feature = "tower", not(steadfast_loom)))]
impl Log {
    /// Until the guard is dropped.
    pub(crate) fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn text(&self) -> String {
        let log = self.0.lock().expect("nobody panics with it");
        String::from_utf8(log.clone()).expect("text")
    }
}

#[cfg(all(feature = "tower", not(steadfast_loom)))]
impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics with it").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

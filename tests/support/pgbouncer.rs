//! A private PgBouncer.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};

use super::{
    Kind, Server, find_program, path,
    postgres::{Postgres, options},
    versions,
};

/// A private PgBouncer in front of a private PostgreSQL, stopped when it is dropped and when the test process is gone.
///
/// Its clients share three connections to the server and may change them after every transaction. Whoever comes is let in, as the superuser. Like every old
/// or plainly configured one it refuses whom the startup packet asks for `extra_float_digits`, as sqlx does by default, or for `options`.
pub struct PgBouncer {
    server: Server<Programs>,
}

impl PgBouncer {
    /// Panics if PgBouncer is not installed.
    pub fn start(behind: &Postgres) -> Self {
        Self::start_with(behind, &[])
    }

    /// With settings as `name=value`, such as `ignore_startup_parameters=extra_float_digits` or `default_pool_size=1`.
    pub fn start_with(behind: &Postgres, settings: &[&str]) -> Self {
        // They are lines of its file, in which another section can follow.
        let databases = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres",
            behind.port()
        );
        let settings = [settings, &[&databases]].concat();
        let server = Server::start(&settings).expect("as there is a PostgreSQL, it is not skipped");
        Self { server }
    }

    /// Kills it, and with it the connections of both sides, with SIGKILL.
    pub fn kill9(&mut self) {
        self.server.end("KILL");
    }

    /// Starts it again on the same port, after killing it if it is up.
    pub fn restart(&mut self) {
        self.kill9();
        self.server.up();
    }

    pub fn port(&self) -> u16 {
        self.server.port
    }

    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// By TCP, to the database `postgres`, without asking for `extra_float_digits`.
    pub fn options(&self) -> PgConnectOptions {
        options("127.0.0.1", self.server.port).extra_float_digits(None)
    }

    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect_with(&self.options())
            .await
            .expect("the pooler takes connections")
    }
}

struct Programs {
    pgbouncer: PathBuf,
}

impl Kind for Programs {
    const NAME: &'static str = "PgBouncer";
    const INSTALL: &'static str = "Install it by one of:
  Debian, Ubuntu: sudo apt-get install --no-install-recommends pgbouncer
  Fedora:         sudo dnf install pgbouncer
  macOS:          brew install pgbouncer
or set PGBOUNCER_BIN to the folder of its program.";
    const USER: &'static str = "postgres";
    // What TERM and QUIT mean to it depends on its version; it has nothing to lose.
    const END: &'static str = "KILL";

    fn find() -> Option<Self> {
        let mut folders: Vec<PathBuf> = env::var_os("PGBOUNCER_BIN")
            .into_iter()
            .map(Into::into)
            .collect();
        folders.extend(path());
        folders.extend(["/usr/sbin", "/usr/bin", "/usr/local/sbin"].map(PathBuf::from));
        folders.extend(versions("/opt/homebrew/opt", "pgbouncer", "bin"));
        folders.extend(versions("/usr/local/opt", "pgbouncer", "bin"));
        let pgbouncer = find_program("pgbouncer", &folders)?;
        Some(Self { pgbouncer })
    }

    fn program(&self) -> &Path {
        &self.pgbouncer
    }

    fn initialize(&self, _data: &Path) -> Option<Command> {
        None
    }

    fn arguments(&self, home: &Path, port: u16, settings: &[String]) -> Vec<String> {
        let file = home.join("pgbouncer.ini");
        let lines = format!(
            "[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
{}
",
            settings.join("\n")
        );
        fs::write(&file, lines).expect("the home can be written");
        vec![file.display().to_string()]
    }

    fn ready(&self, home: &Path, _pid: u32) -> bool {
        let log = fs::read_to_string(home.join("log")).unwrap_or_default();
        log.contains("LOG process up")
    }

    fn failed(&self, log: &str) -> bool {
        log.contains("FATAL")
    }
}

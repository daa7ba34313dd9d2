//! A private MariaDB.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use sqlx::{
    Connection, MySqlConnection,
    mysql::{MySqlConnectOptions, MySqlSslMode},
};

use super::{Kind, Server, find_program, path, versions};

/// A private MariaDB, stopped when it is dropped and when the test process is gone.
///
/// `root` has no password, and the database `test` is there.
pub struct MariaDb {
    server: Server<Programs>,
}

impl MariaDb {
    /// `None` if tests are told to do without servers. Panics if MariaDB is not installed.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// With options as `--name=value`.
    pub fn start_with(options: &[&str]) -> Option<Self> {
        Server::start(options).map(|server| Self { server })
    }

    /// Kills the server with SIGKILL; its sessions are threads of it.
    pub fn kill9(&mut self) {
        self.server.end("KILL");
    }

    /// Shuts it down and waits until it is gone, if it is up.
    pub fn stop(&mut self) {
        self.server.end("TERM");
    }

    /// Starts it again on the same port, after shutting it down if it is up.
    pub fn restart(&mut self) {
        self.stop();
        self.server.up();
    }

    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// By TCP, as `root`, to the database `test`.
    pub fn options(&self) -> MySqlConnectOptions {
        MySqlConnectOptions::new()
            .host("127.0.0.1")
            .port(self.server.port)
            .username("root")
            .database("test")
            .ssl_mode(MySqlSslMode::Disabled)
    }

    pub async fn connect(&self) -> MySqlConnection {
        MySqlConnection::connect_with(&self.options())
            .await
            .expect("the server takes connections")
    }

    /// The ids of its clients' sessions.
    pub async fn backends(&self) -> Vec<u64> {
        let mut connection = self.connect().await;
        let ids = sqlx::query_scalar(
            "SELECT CAST(id AS UNSIGNED) FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND user NOT IN ('system user', 'event_scheduler')",
        )
        .fetch_all(&mut connection)
        .await
        .expect("root may see them");
        let _ = connection.close().await;
        ids
    }
}

struct Programs {
    mariadbd: PathBuf,
    install: PathBuf,
}

impl Kind for Programs {
    const NAME: &'static str = "MariaDB";
    const INSTALL: &'static str = "Install it by one of:
  Debian, Ubuntu: sudo apt-get install --no-install-recommends mariadb-server
  Fedora:         sudo dnf install mariadb-server
  macOS:          brew install mariadb
or set MARIADB_BIN to the folder of its programs.";
    const USER: &'static str = "mysql";
    const END: &'static str = "KILL";

    fn find() -> Option<Self> {
        let mut folders: Vec<PathBuf> = env::var_os("MARIADB_BIN")
            .into_iter()
            .map(Into::into)
            .collect();
        folders.extend(path());
        folders.extend(
            ["/usr/sbin", "/usr/bin", "/usr/libexec", "/usr/local/sbin"].map(PathBuf::from),
        );
        folders.extend(versions("/opt/homebrew/opt", "mariadb", "bin"));
        folders.extend(versions("/usr/local/opt", "mariadb", "bin"));
        Some(Self {
            mariadbd: find_program("mariadbd", &folders)?,
            install: find_program("mariadb-install-db", &folders)?,
        })
    }

    fn program(&self) -> &Path {
        &self.mariadbd
    }

    fn initialize(&self, data: &Path) -> Option<Command> {
        let mut command = Command::new(&self.install);
        command.args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--innodb-log-file-size=4M",
        ]);
        command.arg(format!("--datadir={}", data.display()));
        Some(command)
    }

    fn arguments(&self, home: &Path, port: u16, settings: &[String]) -> Vec<String> {
        let start = home.join("start.sql");
        fs::write(&start, "CREATE DATABASE IF NOT EXISTS test;\n")
            .expect("the home can be written");
        let mut arguments = vec![
            "--no-defaults".to_owned(),
            format!("--datadir={}", home.join("data").display()),
            format!("--socket={}", home.join("socket").display()),
            // A server that starts removes what it finds of others in the one they would share.
            format!("--tmpdir={}", home.display()),
            format!("--init-file={}", start.display()),
            format!("--port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--innodb-log-file-size=4M".to_owned(),
            "--innodb-buffer-pool-size=16M".to_owned(),
            "--innodb-flush-log-at-trx-commit=0".to_owned(),
        ];
        arguments.extend_from_slice(settings);
        arguments
    }

    fn ready(&self, home: &Path, _pid: u32) -> bool {
        let log = fs::read_to_string(home.join("log")).unwrap_or_default();
        log.contains("ready for connections")
    }

    fn failed(&self, log: &str) -> bool {
        log.contains("[ERROR] Aborting")
    }
}

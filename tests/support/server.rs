//! Private database servers, and a pooler, for tests, which may kill, stop and restart them.
//!
//! ```text
//!   test process ──pipe──► sh: a supervisor ──► the server, in a folder of its own with its own port and socket
//! ```
//!
//! The supervisor waits at a pipe. A line says with which signal to end the server; a pipe that closes, because the test process is gone in whatever way,
//! says to end it at once and to remove the folder. Should the supervisor itself be killed, the next test process sweeps up what is left.
//!
//! A server keeps its files in a copy of a template, which is made once and stays in the target folder. As root, which no server wants to be run by,
//! everything is done as the server's own user, or else as `nobody`.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "servers live by the real clock")]

#[cfg(feature = "mysql")]
pub mod mariadb;
#[cfg(feature = "postgres")]
pub mod pgbouncer;
#[cfg(feature = "postgres")]
pub mod postgres;

use std::{
    env, fs,
    hash::{BuildHasher, Hasher, RandomState},
    io::{BufRead, BufReader, Write, stderr},
    iter,
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What differs between the servers.
trait Kind {
    /// Also the beginning of the template's name.
    const NAME: &'static str;
    /// How a test's failure says to install it.
    const INSTALL: &'static str;
    /// Whom root becomes, if there is such a user.
    const USER: &'static str;
    /// The signal that ends it at once when nobody is left to ask for its data.
    const END: &'static str;

    /// The programs, or `None` if they are not installed.
    fn find() -> Option<Self>
    where
        Self: Sized;

    /// The server's program.
    fn program(&self) -> &Path;

    /// How to make a data folder, or `None` if it has no data.
    fn initialize(&self, data: &Path) -> Option<Command>;

    /// The server's arguments, with the test's own settings, which override the usual ones.
    fn arguments(&self, home: &Path, port: u16, settings: &[String]) -> Vec<String>;

    /// Whether the server with this pid takes connections.
    fn ready(&self, home: &Path, pid: u32) -> bool;

    /// Whether its log says that it gave up starting.
    fn failed(&self, log: &str) -> bool;
}

/// A server's files, and the server while it is up.
struct Server<K: Kind> {
    kind: K,
    home: PathBuf,
    port: u16,
    settings: Vec<String>,
    supervisor: Option<Supervisor>,
}

impl<K: Kind> Server<K> {
    /// `None` if tests are told to do without servers. Panics if it is not installed.
    fn start(settings: &[&str]) -> Option<Self> {
        if skipped() {
            return None;
        }
        let Some(kind) = K::find() else {
            panic!(
                "{} was not found. {}\nOr set STEADFAST_SKIP_SERVERS=1 to skip the tests that need it.",
                K::NAME,
                K::INSTALL
            );
        };
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let home = home();
        let owner = Owner::of::<K>();
        fs::create_dir_all(&home).expect("a folder in the temporary one");
        owner.give(&home);
        copy_template(&kind, &owner, &home);
        let mut server = Self {
            kind,
            home,
            port: 0,
            settings: settings.iter().map(ToString::to_string).collect(),
            supervisor: None,
        };
        server.up();
        Some(server)
    }

    /// Starts it, on the port that it had, or on a free one.
    fn up(&mut self) {
        let is_new = self.port == 0;
        for _ in 0..10 {
            if self.port == 0 {
                self.port = free_port();
            }
            let started = self.begin();
            if self.wait_until_ready(started) {
                return;
            }
            let log = self.log();
            self.end(K::END);
            let clash = log.contains("in use");
            assert!(clash, "{} does not start:\n{log}", K::NAME);
            // Somebody took the port since it was probed, or while the server was down.
            if is_new {
                self.port = 0;
            } else {
                thread::sleep(Duration::from_millis(500));
            }
        }
        panic!("{}: no port was to be had", K::NAME);
    }

    /// Starts it without waiting until it is ready.
    fn begin(&mut self) -> u32 {
        assert!(self.supervisor.is_none(), "{} is up", K::NAME);
        let _ = fs::remove_file(self.home.join("log"));
        let arguments = self.kind.arguments(&self.home, self.port, &self.settings);
        let supervisor = Supervisor::start::<K>(&self.home, self.kind.program(), &arguments);
        let pid = supervisor.server;
        self.supervisor = Some(supervisor);
        pid
    }

    fn wait_until_ready(&self, pid: u32) -> bool {
        let until = Instant::now() + START_WITHIN;
        while !self.kind.ready(&self.home, pid) {
            let log = self.log();
            if self.kind.failed(&log) {
                return false;
            }
            assert!(
                Instant::now() < until,
                "{} is not ready after {START_WITHIN:?}:\n{log}",
                K::NAME
            );
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Ends it by the signal and waits until it is gone, if it is up.
    fn end(&mut self, signal: &str) {
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.end(signal);
        }
    }

    fn pid(&self) -> u32 {
        self.supervisor.as_ref().expect("the server is up").server
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }
}

impl<K: Kind> Drop for Server<K> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = writeln!(stderr(), "the log of {}:\n{}", K::NAME, self.log());
        }
        self.end(K::END);
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// The shell that has the server as its child.
struct Supervisor {
    shell: Child,
    server: u32,
}

impl Supervisor {
    fn start<K: Kind>(home: &Path, program: &Path, arguments: &[String]) -> Self {
        let mut command = Owner::of::<K>().command("sh");
        command.args(["-c", SUPERVISE, "sh", K::END]);
        command.arg(home).arg(program).args(arguments);
        // In a process group of its own, so that a Ctrl-C at the terminal does not end it before its server.
        command.process_group(0).current_dir(home);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Where a shell says how its child ended.
        command.stderr(Stdio::null());
        let mut shell = command.spawn().expect("sh starts");
        let mut line = String::new();
        let output = shell.stdout.take().expect("it is piped");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("the shell says the server's pid");
        let server = line.trim().parse().expect("a pid");
        Self { shell, server }
    }

    fn end(mut self, signal: &str) {
        let mut pipe = self.shell.stdin.take().expect("it is piped");
        if writeln!(pipe, "{signal}").is_err() {
            // The supervisor is gone, and did not end the server.
            send("KILL", &[self.server]);
        }
        drop(pipe);
        let _ = self.shell.wait();
    }
}

/// Whom the server is run by.
struct Owner {
    ids: Option<(u32, u32)>,
}

impl Owner {
    fn of<K: Kind>() -> Self {
        let me = fs::metadata("/proc/self").map_or_else(|_| me(), |metadata| metadata.uid());
        let ids = (me == 0).then(|| {
            let users = fs::read_to_string("/etc/passwd").expect("a list of users");
            let find = |name: &str| {
                let line = users
                    .lines()
                    .find(|line| line.split(':').next() == Some(name))?;
                let mut ids = line.split(':').skip(2).map(|id| id.parse().ok());
                Some((ids.next()??, ids.next()??))
            };
            find(K::USER)
                .or_else(|| find("nobody"))
                .expect("a user to drop root's rights to")
        });
        Self { ids }
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        if let Some((user, group)) = self.ids {
            command.uid(user).gid(group);
        }
        command
    }

    fn give(&self, path: &Path) {
        if let Some((user, group)) = self.ids {
            chown(path, Some(user), Some(group)).expect("root may give files away");
        }
    }

    fn give_all(&self, path: &Path) {
        if let Some((user, group)) = self.ids {
            run(Command::new("chown")
                .arg("-R")
                .arg(format!("{user}:{group}"))
                .arg(path));
        }
    }
}

/// Sends a signal to processes, some of which may be gone.
pub fn send(signal: &str, pids: &[u32]) {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "for pid; do kill -s \"$0\" \"$pid\" 2>/dev/null; done; :",
    ]);
    command
        .arg(signal)
        .args(pids.iter().map(ToString::to_string));
    run(&mut command);
}

/// The children of a process.
fn children(parent: u32) -> Vec<u32> {
    let output = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output();
    let listed: String = match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        // Small systems have no `ps`, but Linux has this.
        _ => fs::read_dir("/proc")
            .expect("either ps or /proc")
            .filter_map(|entry| {
                let stat = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
                let pid = stat.split(' ').next()?.to_owned();
                let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.to_owned();
                Some(format!("{pid} {parent}\n"))
            })
            .collect(),
    };
    listed
        .lines()
        .filter_map(|line| {
            let mut ids = line.split_whitespace().map(str::parse);
            let (pid, its_parent) = (ids.next()?.ok()?, ids.next()?.ok()?);
            (its_parent == parent).then_some(pid)
        })
        .collect()
}

/// The first folder's program of that name.
fn find_program(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let mut programs = folders.iter().map(|folder| folder.join(name));
    programs.find(|program| program.is_file())
}

/// The folders of `PATH`.
fn path() -> Vec<PathBuf> {
    env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect()
}

/// What is at `folder/*/inner`, the highest version first.
fn versions(folder: &str, beginning: &str, inner: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix(beginning)?.trim_start_matches('@');
            let version: f64 = version.parse().unwrap_or(0.0);
            Some((version, entry.path().join(inner)))
        })
        .collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().map(|(_, path)| path).collect()
}

/// Tells a test to return, and us by its name that it did.
pub fn skipped() -> bool {
    let skipped = env::var_os("STEADFAST_SKIP_SERVERS").is_some_and(|value| value == "1");
    if skipped {
        let thread = thread::current();
        let name = thread.name().unwrap_or("a test");
        // `eprintln!` is not shown for a test that passes.
        let _ = writeln!(stderr(), "skipped, as it needs a server: {name}");
    }
    skipped
}

/// Fills the home's data folder, if it needs one, from the template, which is made first if there is none.
fn copy_template<K: Kind>(kind: &K, owner: &Owner, home: &Path) {
    let data = home.join("data");
    let Some(mut initialize) = kind.initialize(&data) else {
        return;
    };
    let version = run(Command::new(kind.program()).arg("--version"));
    let version: String = version
        .chars()
        .filter(|letter| letter.is_ascii_alphanumeric() || *letter == '.')
        .collect();
    let templates = templates();
    let template = templates.join(format!("{}-{version}", K::NAME));
    if !template.is_dir() {
        if let Some((user, group)) = owner.ids {
            initialize.uid(user).gid(group);
        }
        run(initialize.current_dir(home));
        fs::create_dir_all(&templates).expect("the target folder can be written");
        let name = home.file_name().expect("it has a name");
        let draft = templates.join(name);
        run(Command::new("cp").arg("-R").arg(&data).arg(&draft));
        // A rival that was faster has made the same.
        if fs::rename(&draft, &template).is_err() {
            let _ = fs::remove_dir_all(&draft);
        }
        return;
    }
    run(Command::new("cp").arg("-R").arg(&template).arg(&data));
    owner.give_all(&data);
}

/// In the target folder. An example is not told of it, but lies there.
fn templates() -> PathBuf {
    option_env!("CARGO_TARGET_TMPDIR").map_or_else(
        || {
            let program = env::current_exe().expect("a program");
            program.with_file_name("templates")
        },
        PathBuf::from,
    )
}

/// A folder for one server. Sockets lie in it, whose paths must be short.
fn home() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    env::temp_dir().join(format!("{HOME}{}-{count}", process::id()))
}

/// Ends the servers, and removes the folders, of test processes that are gone and whose supervisors are too.
fn sweep() {
    for entry in fs::read_dir(env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some((of, _)) = name
            .strip_prefix(HOME)
            .and_then(|rest| rest.split_once('-'))
        else {
            continue;
        };
        if of.parse().is_ok_and(alive) {
            continue;
        }
        let pid = fs::read_to_string(entry.path().join("pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse()
            && command_of(pid).contains(&name)
        {
            send("QUIT", &[pid]);
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// Whether there is such a process, other than one that is over and only waits for its parent to notice.
pub fn alive(pid: u32) -> bool {
    !command_of(pid).is_empty()
}

fn command_of(pid: u32) -> String {
    let path = format!("/proc/{pid}/cmdline");
    fs::read_to_string(path).unwrap_or_else(|_| {
        let output = Command::new("ps")
            .args(["-o", "args=", "-p", &pid.to_string()])
            .output();
        output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    })
}

fn me() -> u32 {
    run(Command::new("id").arg("-u"))
        .trim()
        .parse()
        .expect("a number")
}

/// Below those that systems give to outgoing connections: one of these could have the port when the server is to be started again.
fn free_port() -> u16 {
    let ports = iter::repeat_with(|| RandomState::new().build_hasher().finish() % 20_000);
    let ports = ports.take(1_000).map(|port| 12_000 + port as u16);
    let mut free = ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("a free port")
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How the names of the servers' folders begin; then comes the pid of the test process.
const HOME: &str = "steadfast-server-";

const START_WITHIN: Duration = Duration::from_secs(60);

/// `$1` is the signal to end the server with when the pipe closes, `$2` its folder; then comes its command.
const SUPERVISE: &str = r#"
end=$1 home=$2
shift 2
"$@" >"$home/log" 2>&1 </dev/null &
server=$!
echo "$server" >"$home/pid"
echo "$server"
if read -r signal; then
    kill -s "$signal" "$server"
    wait "$server"
else
    kill -s "$end" "$server"
    wait "$server"
    rm -rf "$home"
fi
"#;

//! A TCP proxy in front of a server, which does to the connection what networks do.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(
    clippy::disallowed_methods,
    reason = "what it delays, it delays by the real clock"
)]

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// What is done to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Pass,
    /// Each packet comes later, in either direction.
    Latency(Duration),
    /// So many bytes of replies are let through, then the connection is closed. Only once: then all passes again.
    CutReply(usize),
    /// So many bytes of requests are let through, then the connection is closed. Only once: then all passes again.
    CutRequest(usize),
    /// Nothing is let through, and nobody is told.
    BlackHole,
    /// Who sends something is answered by a reset.
    Reset,
    /// So many bytes of the answer to the next COMMIT are let through, then that connection is closed. Only once: then all passes again.
    CutCommitReply(usize),
    /// So many bytes of the next COMMIT are let through, then that connection is closed. Only once: then all passes again.
    CutCommitRequest(usize),
}

/// What has gone through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: usize,
    /// As they were read, so that what was sent in pieces may be one, and what is long may be several.
    pub requests: usize,
    pub replies: usize,
    /// How often a client had to send again after an answer.
    pub round_trips: usize,
    /// The length of the last COMMIT, a simple query of PostgreSQL that ends so.
    pub commit_request: usize,
    /// The length of the last answer to one.
    pub commit_reply: usize,
    /// Answers to a COMMIT that were cut. An answer that does not say that it was committed is not counted.
    pub cut_commit_replies: usize,
    pub cut_commit_requests: usize,
}

/// The proxy; dropped, it hangs up on everybody.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// In front of a port of this machine.
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            fault: watch::Sender::new(Fault::Pass),
            killed: watch::Sender::new(0),
            counts: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, server, Arc::clone(&shared)));
        Self {
            port,
            shared,
            accepting,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on, also for connections that are there.
    pub fn set(&self, fault: Fault) {
        self.shared.fault.send_replace(fault);
    }

    /// What is being done; a cut that has happened is over.
    pub fn fault(&self) -> Fault {
        *self.shared.fault.borrow()
    }

    /// Closes every connection that is there.
    pub fn kill_all(&self) {
        self.shared.killed.send_modify(|kills| *kills += 1);
    }

    pub fn counts(&self) -> Counts {
        *self.shared.counts.lock().expect("counting does not panic")
    }

    /// Begins to count anew, and returns what was counted.
    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut *self.shared.counts.lock().expect("counting does not panic"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.kill_all();
    }
}

struct Shared {
    fault: watch::Sender<Fault>,
    killed: watch::Sender<u64>,
    counts: Mutex<Counts>,
}

impl Shared {
    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().expect("counting does not panic"));
    }

    /// The fault that is meant for this request, which is the only one to suffer it.
    fn take_commit_fault(&self, request: &[u8]) -> Option<Fault> {
        let mut taken = None;
        self.fault.send_if_modified(|fault| {
            let is_meant = matches!(fault, Fault::CutCommitReply(_) | Fault::CutCommitRequest(_));
            let takes = is_meant && request.ends_with(COMMIT);
            if takes {
                taken = Some(std::mem::replace(fault, Fault::Pass));
            }
            takes
        });
        taken
    }
}

async fn accept(listener: TcpListener, server: u16, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        shared.count(|counts| counts.connections += 1);
        tokio::spawn(connection(client, server, Arc::clone(&shared)));
    }
}

async fn connection(mut client: TcpStream, server: u16, shared: Arc<Shared>) {
    let mut killed = shared.killed.subscribe();
    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let state = Mutex::new(State::default());
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let pump = |direction| Pump {
            direction,
            state: &state,
            shared: &shared,
        };
        tokio::select! {
            end = pump(Direction::Request).run(from_client, to_server) => end,
            end = pump(Direction::Reply).run(from_server, to_client) => end,
            _ = killed.changed() => End::Close,
        }
    };
    if end == End::Reset {
        let _ = client.set_zero_linger();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Reply,
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Close,
    Reset,
}

/// What is known of one connection.
#[derive(Default)]
struct State {
    asked: bool,
    /// So many bytes came in answer to its COMMIT.
    answer: Option<usize>,
    /// So many bytes of that answer are let through.
    cut: Option<usize>,
}

/// One direction of one connection.
struct Pump<'a> {
    direction: Direction,
    state: &'a Mutex<State>,
    shared: &'a Shared,
}

impl Pump<'_> {
    async fn run(self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> End {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = match from.read(&mut buffer).await {
                Ok(0) | Err(_) => return End::Close,
                Ok(read) => read,
            };
            self.count(&buffer[..read]);
            let (pass, end) = match self.cut_commit(&buffer[..read]) {
                Some(pass) => (pass, Some(End::Close)),
                None => self.suffer(read).await,
            };
            if to.write_all(&buffer[..pass]).await.is_err() {
                return End::Close;
            }
            if let Some(end) = end {
                return end;
            }
        }
    }

    fn count(&self, bytes: &[u8]) {
        let mut state = self.state.lock().expect("counting does not panic");
        let reply = self.direction == Direction::Reply;
        let asks_anew = !reply && !state.asked;
        state.asked = !reply;
        if !reply {
            state.answer = bytes.ends_with(COMMIT).then_some(0);
        } else if let Some(answer) = &mut state.answer {
            *answer += bytes.len();
        }
        let answer = state.answer;
        self.shared.count(|counts| {
            counts.requests += usize::from(!reply);
            counts.replies += usize::from(reply);
            counts.round_trips += usize::from(asks_anew);
            match answer {
                Some(answer) if reply => counts.commit_reply = answer,
                Some(_) => counts.commit_request = bytes.len(),
                None => {}
            }
        });
    }

    /// How many of the bytes are let through, if the connection ends after them because a COMMIT was to be cut.
    fn cut_commit(&self, bytes: &[u8]) -> Option<usize> {
        let mut state = self.state.lock().expect("counting does not panic");
        if self.direction == Direction::Request {
            let fault = self.shared.take_commit_fault(bytes)?;
            let Fault::CutCommitRequest(pass) = fault else {
                state.cut = match fault {
                    Fault::CutCommitReply(pass) => Some(pass),
                    _ => None,
                };
                return None;
            };
            self.shared.count(|counts| counts.cut_commit_requests += 1);
            return Some(pass.min(bytes.len()));
        }
        let left = state.cut.as_mut()?;
        if bytes.len() < *left {
            *left -= bytes.len();
            return None;
        }
        let committed = bytes.windows(COMMIT.len()).any(|window| window == COMMIT);
        self.shared
            .count(|counts| counts.cut_commit_replies += usize::from(committed));
        Some(*left)
    }

    /// How many of the bytes are let through, and how the connection ends after them, if it does.
    async fn suffer(&self, read: usize) -> (usize, Option<End>) {
        let mut fault = self.shared.fault.subscribe();
        loop {
            let current = *fault.borrow_and_update();
            let left = match (current, self.direction) {
                (Fault::BlackHole, _) => {
                    // The sender is in `shared`, which we hold.
                    let _ = fault.changed().await;
                    continue;
                }
                (Fault::Latency(latency), _) => {
                    sleep(latency).await;
                    return (read, None);
                }
                (Fault::Reset, Direction::Request) => return (0, Some(End::Reset)),
                (Fault::CutReply(left), Direction::Reply)
                | (Fault::CutRequest(left), Direction::Request) => left,
                _ => return (read, None),
            };
            if read < left {
                let rest = match self.direction {
                    Direction::Reply => Fault::CutReply(left - read),
                    Direction::Request => Fault::CutRequest(left - read),
                };
                self.shared.fault.send_replace(rest);
                return (read, None);
            }
            self.shared.fault.send_replace(Fault::Pass);
            return (left, Some(End::Close));
        }
    }
}

/// How a simple query of PostgreSQL that commits ends, and what the answer calls it.
const COMMIT: &[u8] = b"COMMIT\0";

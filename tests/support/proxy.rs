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
    let answered = Mutex::new(true);
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let pump = |direction| Pump {
            direction,
            answered: &answered,
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

/// One direction of one connection.
struct Pump<'a> {
    direction: Direction,
    answered: &'a Mutex<bool>,
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
            self.count();
            let (pass, end) = self.suffer(read).await;
            if to.write_all(&buffer[..pass]).await.is_err() {
                return End::Close;
            }
            if let Some(end) = end {
                return end;
            }
        }
    }

    fn count(&self) {
        let mut answered = self.answered.lock().expect("counting does not panic");
        let reply = self.direction == Direction::Reply;
        let asks_anew = !reply && *answered;
        *answered = reply;
        self.shared.count(|counts| {
            counts.requests += usize::from(!reply);
            counts.replies += usize::from(reply);
            counts.round_trips += usize::from(asks_anew);
        });
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

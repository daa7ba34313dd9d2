//! A client on reqwest that bears a flaky server: statuses judged, `Retry-After` obeyed, repeats only where they do no harm, the time that is left sent on.
//!
//! The server is a small one inside of this example, on a port of the loopback.
//!
//! Run it: `cargo run --example http_client --features http`
//!
//! ```toml
//! [dependencies]
//! steadfast = { version = "0.1", features = ["http"] }
//! axum = { version = "0.8", default-features = false, features = ["http1", "tokio"] }
//! reqwest = { version = "0.13", default-features = false }
//! thiserror = "2"
//! tokio = { version = "1.49", features = ["macros", "net", "rt-multi-thread", "time"] }
//! ```
#![allow(clippy::disallowed_methods, reason = "it shows what comes when")]

use std::{error, time::Duration};

use reqwest::{Body, Method, Request, Response, StatusCode};
use steadfast::{
    ByError, Error, Kind, Rejected, Retry, Shield, by_error,
    classify::HttpStatus,
    deadline,
    http::{DeadlineHeader, HttpStatusAnd, is_idempotent},
};
use tokio::time::Instant;

/// A client for one server. Clones share its circuit.
#[derive(Clone)]
struct Client {
    client: reqwest::Client,
    /// For what must not be done twice: repeated only where it surely was not done.
    once: Shield<Judge>,
    /// For what may be sent twice.
    repeatable: Shield<Judge>,
}

/// Statuses as HTTP has them, errors as reqwest has them.
type Judge = HttpStatusAnd<ByError<fn(&reqwest::Error) -> Kind>>;

#[derive(Debug, thiserror::Error)]
enum ClientError {
    /// It was not sent, or its time was over.
    #[error(transparent)]
    Rejected(Rejected),
    #[error(transparent)]
    Http(reqwest::Error),
    #[error("the body of this request can be read only once, so it can't be repeated")]
    NotRepeatable,
}

impl Client {
    fn new() -> Result<Self, Box<dyn error::Error>> {
        let shield = || {
            Shield::builder(HttpStatus::with_errors(by_error(judge as fn(&_) -> _)))
                .name("shop")
                .deadline(Duration::from_secs(5))
                .attempt_deadline(Duration::from_secs(2))
        };
        let once = shield().build()?;
        let breaker = once.breaker().expect("it is built with one");
        let repeatable = shield()
            .breaker(breaker)
            .retry(Retry::builder().idempotent(true).build()?)
            .build()?;
        // The shield's deadline ends with the head of the answer; this one is for its body.
        let client = reqwest::Client::builder().read_timeout(Duration::from_secs(5));
        Ok(Self {
            client: client.build()?,
            once,
            repeatable,
        })
    }

    /// Sends it as often as that is safe and helps; returns the last answer, whatever its status.
    async fn send(&self, request: Request) -> Result<Response, ClientError> {
        // A stream can't be cloned, and so not be sent again.
        if request.try_clone().is_none() {
            return Err(ClientError::NotRepeatable);
        }
        let shield = if is_idempotent(request.method(), request.headers()) {
            &self.repeatable
        } else {
            &self.once
        };
        let answer = shield.run_wrapped(|| {
            let mut attempt = request.try_clone().expect("it could be cloned before");
            DeadlineHeader::new().write(attempt.headers_mut());
            let answer = self.client.execute(attempt);
            // Between reqwest's response and that of the `http` crate, which is judged, there are conversions.
            async { answer.await.map(axum::http::Response::<Body>::from) }
        });
        match answer.await {
            Ok(response) => Ok(response.into()),
            Err(Error::Rejected(rejected)) => Err(ClientError::Rejected(rejected)),
            Err(Error::Inner(error)) => Err(ClientError::Http(error)),
        }
    }
}

/// What an error of reqwest means.
fn judge(error: &reqwest::Error) -> Kind {
    if error.is_connect() {
        Kind::Unavailable
    } else if error.is_builder() {
        Kind::Invalid
    } else {
        Kind::Ambiguous
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let server = flaky::start().await?;
    let client = Client::new()?;
    let request = |method, path| -> Result<Request, Box<dyn error::Error>> {
        Ok(Request::new(method, server.url(path)?))
    };

    // Its first answer is 503 with `Retry-After: 1`, its second one is 502.
    let start = Instant::now();
    let answer = client.send(request(Method::GET, "/read")?).await?;
    let (status, took) = (answer.status(), start.elapsed());
    println!("GET /read: {status} at the third try, after {took:.1?}");
    assert_eq!((status, server.tries("/read")), (StatusCode::OK, 3));
    assert!(took >= Duration::from_secs(1));

    // What a 502 hides may have been done: an order is not sent again ..
    let answer = client.send(request(Method::POST, "/order")?).await?;
    println!("POST /order: {}, not repeated", answer.status());
    assert_eq!(
        (answer.status(), server.tries("/order")),
        (StatusCode::BAD_GATEWAY, 1)
    );

    // .. unless the server knows by a key which orders it has.
    let mut order = request(Method::POST, "/order/with-key")?;
    let key = "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"";
    order.headers_mut().insert("idempotency-key", key.parse()?);
    let answer = client.send(order).await?;
    println!("POST /order with a key: {}, repeated", answer.status());
    assert_eq!(
        (answer.status(), server.tries("/order/with-key")),
        (StatusCode::OK, 2)
    );

    // The server is told how much time is left: of the attempt, or of what surrounds it.
    let told = client.send(request(Method::GET, "/told")?).await?;
    let told: u64 = told.text().await?.parse()?;
    let at = (Instant::now() + Duration::from_millis(300)).into_std();
    let less = deadline::scope(at, client.send(request(Method::GET, "/told")?)).await?;
    let less: u64 = less.text().await?.parse()?;
    println!("the server was told of {told} ms, and of {less} ms");
    assert!((1_000..=2_000).contains(&told) && (1..=300).contains(&less));

    // An answer that comes too late is not waited for.
    let at = (Instant::now() + Duration::from_millis(200)).into_std();
    let start = Instant::now();
    let late = deadline::scope(at, client.send(request(Method::GET, "/never")?)).await;
    let late = late.expect_err("it never comes");
    println!("GET /never: {late}, after {:.1?}", start.elapsed());
    assert!(matches!(late, ClientError::Rejected(_)));

    // A body that can be read once only is refused before anything is sent.
    let mut upload = request(Method::PUT, "/upload")?;
    *upload.body_mut() = Some(Body::wrap("as of a file".to_owned()));
    let refused = client.send(upload).await.expect_err("it can't be repeated");
    println!("PUT /upload: {refused}");
    assert_eq!(server.tries("/upload"), 0);
    Ok(())
}

/// A server that fails in the beginning.
mod flaky {
    use std::{
        collections::BTreeMap,
        io,
        sync::{Arc, Mutex},
    };

    use axum::{
        Router,
        extract::{Request, State},
        http::StatusCode,
        response::{IntoResponse, Response},
    };
    use reqwest::Url;
    use tokio::net::TcpListener;

    pub struct Server {
        base: String,
        tries: Tries,
    }

    /// How often each path was asked for.
    #[derive(Clone, Default)]
    struct Tries(Arc<Mutex<BTreeMap<String, u32>>>);

    pub async fn start() -> io::Result<Server> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let tries = Tries::default();
        let app = Router::new().fallback(answer).with_state(tries.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Server { base, tries })
    }

    impl Server {
        pub fn url(&self, path: &str) -> Result<Url, Box<dyn std::error::Error>> {
            Ok(format!("{}{path}", self.base).parse()?)
        }

        pub fn tries(&self, path: &str) -> u32 {
            let tries = self.tries.0.lock().expect("nobody panics with it");
            tries.get(path).copied().unwrap_or(0)
        }
    }

    async fn answer(State(tries): State<Tries>, request: Request) -> Response {
        let path = request.uri().path();
        let attempt = {
            let mut tries = tries.0.lock().expect("nobody panics with it");
            let count = tries.entry(path.to_owned()).or_default();
            *count += 1;
            *count
        };
        match (path, attempt) {
            ("/read", 1) => {
                let wait = [("retry-after", "1")];
                (StatusCode::SERVICE_UNAVAILABLE, wait).into_response()
            }
            ("/read", 2) | ("/order" | "/order/with-key", 1) => {
                StatusCode::BAD_GATEWAY.into_response()
            }
            ("/told", _) => {
                let told = request.headers().get("x-request-timeout-ms");
                told.cloned()
                    .map_or(StatusCode::BAD_REQUEST.into_response(), |told| {
                        told.as_bytes().to_vec().into_response()
                    })
            }
            ("/never", _) => std::future::pending().await,
            _ => StatusCode::OK.into_response(),
        }
    }
}

//! The fault layer, on tokio's paused clock.
#![cfg(feature = "test-util")]
#![allow(
    clippy::disallowed_methods,
    reason = "the test's own clock is the paused one"
)]

use std::{
    convert::Infallible,
    future,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use steadfast::{
    Kind,
    fault::{Fault, FaultService, Faults},
};
use tokio::time::{Instant, advance, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, service_fn};

const MS: Duration = Duration::from_millis(1);

/// Counts the calls that reached it and the calls that it did; each takes 100 ms.
#[derive(Clone, Default)]
struct Ledger {
    begun: Arc<AtomicU32>,
    done: Arc<AtomicU32>,
}

impl Ledger {
    /// Begun, done.
    fn read(&self) -> (u32, u32) {
        let begun = self.begun.load(Ordering::Relaxed);
        (begun, self.done.load(Ordering::Relaxed))
    }

    fn service(&self) -> impl Service<u32, Response = u32, Error = Kind> + Clone + use<> {
        let ledger = self.clone();
        service_fn(move |n: u32| {
            ledger.begun.fetch_add(1, Ordering::Relaxed);
            let ledger = ledger.clone();
            async move {
                sleep(100 * MS).await;
                ledger.done.fetch_add(1, Ordering::Relaxed);
                Ok(n + 1)
            }
        })
    }
}

fn scripted(fault: Fault) -> Faults<Kind> {
    let faults = Faults::builder(|kind| kind).script([fault]).build();
    faults.expect("the fault is a good one")
}

/// The outcome of one call with `fault`, how long it took, and what the service had begun and done by then.
async fn call(fault: Fault) -> (Result<u32, Kind>, Duration, (u32, u32)) {
    let ledger = Ledger::default();
    let mut service = scripted(fault).layer().layer(ledger.service());
    let start = Instant::now();
    let result = service.call(1).await;
    (result, start.elapsed(), ledger.read())
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_fault_is_the_services_own() {
    assert_eq!(call(Fault::Pass).await, (Ok(2), 100 * MS, (1, 1)));
}

#[tokio::test(start_paused = true)]
async fn latency_comes_before_the_service_is_called() {
    let ledger = Ledger::default();
    let mut service = scripted(Fault::Latency(300 * MS))
        .layer()
        .layer(ledger.service());
    let mut call = task::spawn(service.call(1));
    assert_pending!(call.poll());
    advance(299 * MS).await;
    assert_pending!(call.poll());
    assert_eq!(ledger.read(), (0, 0));
    advance(MS).await;
    assert!(call.is_woken());
    assert_pending!(call.poll());
    assert_eq!(ledger.read(), (1, 0));
    advance(100 * MS).await;
    assert_eq!(assert_ready!(call.poll()), Ok(2));
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_the_services_own() {
    let outcome = call(Fault::LatencyAfter(300 * MS)).await;
    assert_eq!(outcome, (Ok(2), 400 * MS, (1, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_before_the_call_has_no_effect() {
    let outcome = call(Fault::Fail(Kind::Unavailable)).await;
    assert_eq!(outcome, (Err(Kind::Unavailable), Duration::ZERO, (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_after_the_call_leaves_its_effect() {
    let outcome = call(Fault::FailAfter(Kind::Ambiguous)).await;
    assert_eq!(outcome, (Err(Kind::Ambiguous), 100 * MS, (1, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_was_begun_and_never_done() {
    let ledger = Ledger::default();
    let fault = Fault::Drop {
        after: 60 * MS,
        kind: Kind::Ambiguous,
    };
    let mut service = scripted(fault).layer().layer(ledger.service());
    let start = Instant::now();
    assert_eq!(service.call(1).await, Err(Kind::Ambiguous));
    assert_eq!(start.elapsed(), 60 * MS);
    sleep(1_000 * MS).await;
    assert_eq!(ledger.read(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_inner_call_is_dropped_before_the_failure_is_told() {
    let held = Arc::new(());
    let inner = {
        let held = held.clone();
        service_fn(move |(): ()| {
            let held = held.clone();
            async move {
                let _held = held;
                future::pending::<Result<(), Kind>>().await
            }
        })
    };
    let fault = Fault::Drop {
        after: Duration::ZERO,
        kind: Kind::Ambiguous,
    };
    let mut service = scripted(fault).layer().layer(inner);
    let mut call = task::spawn(service.call(()));
    assert_eq!(Arc::strong_count(&held), 3);
    assert_eq!(assert_ready!(call.poll()), Err(Kind::Ambiguous));
    assert_eq!(Arc::strong_count(&held), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_done_before_it_is_dropped_is_answered() {
    let outcome = call(Fault::Drop {
        after: 200 * MS,
        kind: Kind::Ambiguous,
    })
    .await;
    assert_eq!(outcome, (Ok(2), 100 * MS, (1, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_hang_never_answers_and_only_the_one_after_has_an_effect() {
    for (fault, effect) in [(Fault::Hang, (0, 0)), (Fault::HangAfter, (1, 1))] {
        let ledger = Ledger::default();
        let mut service = scripted(fault).layer().layer(ledger.service());
        let mut call = task::spawn(service.call(1));
        assert_pending!(call.poll());
        advance(200 * MS).await;
        assert_pending!(call.poll());
        advance(Duration::from_secs(24 * 3_600)).await;
        assert_pending!(call.poll());
        assert_eq!(ledger.read(), effect, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_ready_when_the_inner_service_is_not() {
    let (inner, mut handle) = tower_test::mock::pair::<u32, u32>();
    handle.allow(0);
    let faults = Faults::builder(|kind: Kind| kind.as_str().into())
        .build()
        .unwrap();
    let mut service: FaultService<_, tower::BoxError> = faults.layer().layer(inner);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());

    let mut call = task::spawn(service.call(1));
    assert_pending!(call.poll());
    handle.allow(1);
    assert_pending!(call.poll());
    let (request, respond) = handle.next_request().await.expect("the call was sent");
    respond.send_response(request + 1);
    assert_eq!(assert_ready!(call.poll()).unwrap(), 2);
}

#[tokio::test]
async fn the_same_seed_gives_the_same_faults() {
    async fn run(seed: u64) -> Vec<bool> {
        let faults = Faults::builder(|kind| kind)
            .rate(0.3, Fault::Fail(Kind::Overloaded))
            .seed(seed)
            .build()
            .unwrap();
        let inner = service_fn(async |(): ()| Ok::<_, Kind>(()));
        let mut service = faults.layer().layer(inner);
        let mut failed = Vec::new();
        for _ in 0..1_000 {
            failed.push(service.call(()).await.is_err());
        }
        let count = failed.iter().filter(|failed| **failed).count() as u64;
        assert_eq!(faults.counts().fail, count);
        assert_eq!(faults.counts().calls(), 1_000);
        assert!(
            (250..350).contains(&count),
            "{count} of 1000 at a rate of 0.3"
        );
        failed
    }
    assert_eq!(run(1).await, run(1).await);
    assert_ne!(run(1).await, run(2).await);
}

#[tokio::test]
async fn clones_share_the_script_the_switch_and_the_counts() {
    let faults = Faults::builder(|kind| kind).build().unwrap();
    let inner = service_fn(async |(): ()| Ok::<_, Kind>(()));
    let mut one = faults.layer().layer(inner);
    let mut two = one.clone();
    faults
        .append([Fault::Fail(Kind::Broken), Fault::Fail(Kind::Conflict)])
        .unwrap();
    assert_eq!(one.call(()).await, Err(Kind::Broken));
    faults.clone().disable();
    assert_eq!(two.call(()).await, Ok(()));
    faults.enable();
    assert_eq!(two.call(()).await, Err(Kind::Conflict));
    assert_eq!((faults.counts().fail, faults.counts().pass), (2, 1));
}

#[tokio::test]
async fn the_closure_that_makes_errors_may_use_the_handle() {
    use std::sync::OnceLock;
    static FAULTS: OnceLock<Faults<u64>> = OnceLock::new();
    let fail = |_| FAULTS.get().map_or(0, |faults| faults.counts().fail);
    let script = [Fault::Fail(Kind::Broken)];
    let faults = FAULTS.get_or_init(|| Faults::builder(fail).script(script).build().unwrap());
    let mut service = faults
        .layer()
        .layer(service_fn(async |(): ()| Ok::<(), u64>(())));
    assert_eq!(service.call(()).await, Err(1));
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let year = Duration::from_secs(366 * 24 * 3_600);
    let builder = || Faults::builder(|_| -> Infallible { unreachable!() });
    let refused = [
        builder().rate(1.1, Fault::Hang),
        builder().rate(f64::NAN, Fault::Hang),
        builder().rate(0.5, Fault::Hang).rate(0.6, Fault::HangAfter),
        builder().rate(0.5, Fault::FailAfter(Kind::Success)),
        builder().script([Fault::Latency(year)]),
        builder().script([Fault::Drop {
            after: year,
            kind: Kind::Ambiguous,
        }]),
    ];
    for builder in refused {
        let shown = format!("{builder:?}");
        assert!(builder.build().is_err(), "{shown}");
    }
    let rates = builder()
        .rate(0.2, Fault::Hang)
        .rate(0.4, Fault::Hang)
        .rate(0.3, Fault::Hang)
        .rate(0.1, Fault::Hang);
    assert!(rates.build().is_ok(), "0.2 + 0.4 + 0.3 + 0.1 is 1");
}

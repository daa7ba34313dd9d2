//! What a caller that is refused by an open circuit is told about when to come back.

use std::time::Duration;

use steadfast::{Breaker, Kind, Rejected};
use tokio::time::advance;

/// It was told when the probe's slot expires, half a minute later, and whoever kept to that stayed away from a healthy service.
#[tokio::test(start_paused = true)]
async fn a_caller_refused_beside_a_probe_is_told_to_come_back_soon() {
    let open_for = Duration::from_millis(500);
    let breaker = Breaker::consecutive(1).open_for(open_for).build().unwrap();
    breaker.admit().unwrap().settle(Kind::Unavailable);
    advance(open_for).await;
    let probe = breaker.admit().expect("the first caller probes");

    let refused = breaker.admit().expect_err("one probe at a time");
    assert_eq!(refused.retry_after(), Some(open_for));

    // The probe hangs: when its slot is about to expire, that is what comes next.
    advance(Duration::from_millis(29_900)).await;
    let retry_after = Duration::from_millis(100);
    let refused = breaker.admit().expect_err("the slot has not expired");
    assert_eq!(refused, Rejected::CircuitOpen { retry_after });
    drop(probe);
}

//! The same program, whose calls go through a whole shield, for `--bench size`.

mod ask;

use std::io;

use steadfast::{ConcurrencyLimiter, Shield, classify};
use tokio::runtime::Builder;

use crate::ask::ask;

fn main() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let shield = ConcurrencyLimiter::new(20)
        .and_then(|limiter| Shield::builder(classify::Io).limiter(&limiter).build())
        .map_err(io::Error::other)?;
    let answer = runtime.block_on(async { shield.run(|| ask(41)).await })?;
    println!("{answer}");
    Ok(())
}

//! A program that makes calls, for `--bench size`.

use std::io;

use tokio::runtime::Builder;

async fn ask(question: u64) -> io::Result<u64> {
    tokio::task::yield_now().await;
    question
        .checked_add(1)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn main() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let answer = runtime.block_on(async { ask(41).await })?;
    println!("{answer}");
    Ok(())
}

//! A program that makes calls, for `--bench size`.

mod ask;

use std::io;

use tokio::runtime::Builder;

use crate::ask::ask;

fn main() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let answer = runtime.block_on(async { ask(41).await })?;
    println!("{answer}");
    Ok(())
}

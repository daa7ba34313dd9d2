//! How often a successful call allocates, and how much, for each candidate: a line of name, allocations and bytes, with tabs between.
//!
//! A program of its own: the allocator that counts would slow down the others.

use allocation_counter::measure;
use candidates::{Path, Settings};
use tokio::runtime::Builder;

fn main() {
    const CALLS: u32 = 6_400;
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    for path in [Path::Ready, Path::Yield] {
        let settings = Settings { path, limit: 1_000 };
        for candidate in candidates::all(settings) {
            let block = candidate.block();
            // Whatever is bought once is paid for.
            block(CALLS);
            let allocated = measure(|| {
                block(CALLS);
            });
            let per_call = |total: u64| total as f64 / f64::from(CALLS);
            println!(
                "{path:?}\t{}\t{:.3}\t{:.0}",
                candidate.name,
                per_call(allocated.count_total),
                per_call(allocated.bytes_total),
            );
        }
    }
}

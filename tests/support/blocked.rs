//! Code that would block its thread for ever where it took a lock twice.

use std::{sync::mpsc, thread, time::Duration};

use tokio::runtime::Handle;

/// Runs `code` on a thread of its own, inside the present runtime.
///
/// # Panics
/// Where it panics, or is not done in time: a paused clock can't end a thread that waits for a lock of its own.
pub fn without_blocking(code: impl FnOnce() + Send + 'static) {
    let (finish, finished) = mpsc::channel();
    let runtime = Handle::current();
    thread::spawn(move || {
        let _entered = runtime.enter();
        code();
        // Nobody listens any more where it came late.
        let _ = finish.send(());
    });
    finished
        .recv_timeout(IN_TIME)
        .expect("the code neither panics nor blocks");
}

const IN_TIME: Duration = Duration::from_secs(10);

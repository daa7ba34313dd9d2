//! How to begin, what to set when, and how to move here.
//!
//! Pages for whoever uses the crate; each stands by itself. They are the files of `docs/guide/`, and their code is compiled and run by the tests.
//!
//! | page | when you read it |
//! |---|---|
//! | [`getting_started`] | from `cargo new` to a guarded service on axum and sqlx |
//! | [`symptoms`] | something is wrong: what the message means, where to look, what to change and what not |
//! | [`pool_sizing`] | how many connections, for how many processes, direct or through a pooler |
//! | [`layers`] | the order of layers, by pairs of don't and do |
//! | [`sharing`] | which calls share a breaker, a limiter, a budget, and which don't |
//! | [`testing`] | tests of your own service: faults, a paused clock, refusals, a real database |
//! | [`moving`] | from tower's layers and from backon: old and new, and what changes |
//! | [`replicas`] | what is per process, and a pooler as the shared pool |

/// A page. Its links lead from file to file where it is read as a file; the first definition of a link counts, so here they lead to the other pages.
macro_rules! page {
    ($name:ident, $file:literal) => {
        #[doc = "[pool-sizing]: crate::guide::pool_sizing"]
        #[doc = "[symptoms]: crate::guide::symptoms"]
        #[doc = "[replicas]: crate::guide::replicas"]
        #[doc = "[kind]: crate::Kind"]
        #[doc = "[overload]: https://github.com/steadfast-rs/steadfast/blob/main/docs/overload.md"]
        #[doc = ""]
        #[doc = include_str!(concat!("../docs/guide/", $file, ".md"))]
        pub mod $name {}
    };
}

page!(getting_started, "getting-started");
page!(symptoms, "symptoms");
page!(pool_sizing, "pool-sizing");
page!(layers, "layers");
page!(sharing, "sharing");
page!(testing, "testing");
page!(moving, "moving");
page!(replicas, "replicas");

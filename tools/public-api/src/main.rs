//! Lists every public item of a crate, one to a line, from rustdoc's JSON.

use std::{env, error::Error};

use public_api::Builder;

fn main() -> Result<(), Box<dyn Error>> {
    let json = env::args()
        .nth(1)
        .ok_or("usage: list-public-api <file of rustdoc's JSON>")?;
    let api = Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()?;
    print!("{api}");
    Ok(())
}

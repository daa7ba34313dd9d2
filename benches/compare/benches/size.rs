//! What a program grows by: the code and constants of two that differ by a shield around their call, both optimised with LTO.
//!
//! `cargo bench --bench size`; needs `size`, which comes with the linker.

use std::{error::Error, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    let without = text(env!("CARGO_BIN_EXE_size-without"))?;
    let with = text(env!("CARGO_BIN_EXE_size-with"))?;
    println!("bytes of code and constants: {without} without, {with} with a shield");
    println!("result: text_kb={:.0}", (with - without) / 1024.0);
    Ok(())
}

fn text(program: &str) -> Result<f64, Box<dyn Error>> {
    let output = Command::new("size").arg(program).output()?;
    let table = String::from_utf8(output.stdout)?;
    let figures = table.lines().nth(1).ok_or("`size` said nothing")?;
    let text = figures
        .split_whitespace()
        .next()
        .ok_or("`size` said nothing")?;
    Ok(text.parse()?)
}

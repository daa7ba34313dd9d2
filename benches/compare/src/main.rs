//! The models of overload, for steadfast and for the stacks that users would otherwise take.

#[path = "../../../tests/support/overload.rs"]
mod overload;

mod chart;
mod model;
mod stacks;

fn main() {
    let models = model::Model::all(true);
    for model in &models {
        println!("{}", model.title);
        for stack in stacks::Stack::all() {
            if stack.clock == overload::Clock::Real {
                continue;
            }
            let t = std::time::Instant::now();
            let o = model.run(stack.make, stack.clock, 1);
            println!(
                "{:22} {:6.1} {:?} {:.2} late {:.2} {:?}",
                stack.name,
                o.during * 100.0,
                o.recovered,
                o.load,
                o.late,
                t.elapsed()
            );
        }
    }
}

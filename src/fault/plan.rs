//! Which fault a call gets: the script first, then the rates.

use std::collections::VecDeque;

use super::{Counts, Fault};

/// The pure core: what is to come, what the dice say, what was chosen so far.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) script: VecDeque<Fault>,
    pub(super) rates: Vec<(f64, Fault)>,
    pub(super) enabled: bool,
    pub(super) counts: Counts,
}

impl Plan {
    /// The fault of the next call; `random` is asked for a number in `0.0..1.0` when the script is used up.
    pub(super) fn next(&mut self, random: impl FnOnce() -> f64) -> Fault {
        let fault = if !self.enabled {
            Fault::Pass
        } else if let Some(fault) = self.script.pop_front() {
            fault
        } else if self.rates.is_empty() {
            Fault::Pass
        } else {
            self.by_rate(random())
        };
        self.counts.add(fault);
        fault
    }

    fn by_rate(&self, random: f64) -> Fault {
        let mut upper = 0.0;
        for &(rate, fault) in &self.rates {
            upper += rate;
            if random < upper {
                return fault;
            }
        }
        Fault::Pass
    }
}

#[cfg(test)]
mod tests {
    use crate::kind::Kind;

    use super::*;

    const BUSY: Fault = Fault::Fail(Kind::Overloaded);

    fn plan(script: &[Fault], rates: &[(f64, Fault)]) -> Plan {
        Plan {
            script: script.iter().copied().collect(),
            rates: rates.to_vec(),
            enabled: true,
            counts: Counts::default(),
        }
    }

    #[test]
    fn the_script_comes_first_and_in_order() {
        let mut plan = plan(&[Fault::Hang, Fault::Pass], &[(1.0, BUSY)]);
        let chosen: Vec<_> = (0..4).map(|_| plan.next(|| 0.5)).collect();
        assert_eq!(chosen, [Fault::Hang, Fault::Pass, BUSY, BUSY]);
    }

    #[test]
    fn rates_stand_side_by_side_and_the_rest_passes() {
        let mut plan = plan(&[], &[(0.25, BUSY), (0.25, Fault::Hang)]);
        let chosen = [0.0, 0.249, 0.25, 0.499, 0.5, 0.999].map(|random| plan.next(|| random));
        let expected = [
            BUSY,
            BUSY,
            Fault::Hang,
            Fault::Hang,
            Fault::Pass,
            Fault::Pass,
        ];
        assert_eq!(chosen, expected);
    }

    #[test]
    fn while_it_is_off_the_script_waits() {
        let mut plan = plan(&[BUSY], &[]);
        plan.enabled = false;
        assert_eq!(plan.next(|| 0.0), Fault::Pass);
        plan.enabled = true;
        assert_eq!(plan.next(|| 0.0), BUSY);
    }
}

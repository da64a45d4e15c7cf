//! Runs one target.

use std::collections::BTreeSet;
use std::env;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::time::{ClockId, clock_gettime};

use crate::mutate::{Input, Mutated};

/// For each parser of a target; all together take about a minute.
const SECONDS: &str = "MOORING_FUZZ_SECONDS";
const SECONDS_DEFAULT: u64 = 3;
/// Where to begin: a failure names the seed that made its input.
const SEED: &str = "MOORING_FUZZ_SEED";
/// Inputs of one seed.
const BATCH: u32 = 500;
const SHRINK_MS_MAX: u32 = 10_000;
/// Enough for every change of an input; a failure is shrunk to the fewest.
const CHOICES_MAX: usize = 64;
/// What one input may take, without optimization. A documented one takes a thousandth.
const CPU_TIME_MAX: Duration = Duration::from_millis(500);

/// A test for each line `name: seeds => target;`.
macro_rules! targets {
    ($($name:ident: $seeds:path => $target:path;)*) => {
        $(#[test] fn $name() { $crate::run::run(stringify!($name), $seeds(), $target) })*
    };
}
pub(crate) use targets;

pub(crate) fn run(name: &str, seeds: Vec<Input>, target: fn(&Input)) {
    let parsers: BTreeSet<&str> = seeds.iter().map(|seed| seed.of).collect();
    let seconds = number(SECONDS).unwrap_or(SECONDS_DEFAULT);
    let share = Duration::from_secs(seconds) * u32::try_from(parsers.len()).unwrap();
    run_for(share, name, seeds, target);
}

pub(crate) fn run_for(share: Duration, name: &str, seeds: Vec<Input>, target: fn(&Input)) {
    let (mutated, ends) = (Mutated::new(seeds), Instant::now() + share);
    let first = number(SEED).unwrap_or_else(|| rand::random::<u32>().into());
    let mut inputs = 0;
    for seed in first.. {
        let found = runner(seed).run(&vec(any::<u32>(), 0..CHOICES_MAX), |choices| {
            let input = mutated.input(&choices);
            in_time(|| target(&input));
            Ok(())
        });
        if let Err(proptest::test_runner::TestError::Fail(why, choices)) = found {
            let input = mutated.input(&choices);
            panic!("{why}\n{input:?}\nagain: cargo dev fuzz --only {name} --seed {seed}");
        }
        inputs += u64::from(BATCH);
        if Instant::now() > ends {
            break;
        }
    }
    #[expect(clippy::print_stderr, reason = "a test says what it did")]
    {
        eprintln!("{name}: {inputs} inputs");
    }
}

fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: BATCH,
        failure_persistence: None,
        max_shrink_time: SHRINK_MS_MAX,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// The time of the processor: other work on the machine does not count.
fn in_time(parse: impl FnOnce()) {
    let before = cpu_time();
    parse();
    let took = cpu_time().saturating_sub(before);
    assert!(took < CPU_TIME_MAX, "one input took {took:?}");
}

fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap()
}

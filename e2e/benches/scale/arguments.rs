//! What is measured, and how much of it.

use std::path::PathBuf;

use clap::Parser;
use e2e::layout::Checkout;

use crate::fleet::Form;

/// Measures the operator on a cluster of many simulated nodes.
#[derive(Clone, Parser)]
pub(crate) struct Arguments {
    /// How many nodes.
    #[arg(long, default_value_t = 5000)]
    pub(crate) nodes: usize,
    /// How many pools, all on every node.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) pools: u8,
    /// How often the operator is started and the floor is measured, there and back.
    #[arg(long, default_value_t = 1)]
    pub(crate) rounds: u32,
    /// How many edits each time.
    #[arg(long, default_value_t = 2)]
    pub(crate) edits: u32,
    /// How many writes of the floor are under way at the same time: as many as the operator's.
    #[arg(long, default_value_t = 32)]
    pub(crate) at_once: usize,
    /// For how many seconds writes in steady state are counted.
    #[arg(long, default_value_t = 60)]
    pub(crate) rest: u64,
    /// The operator's executable.
    #[arg(long)]
    pub(crate) operator: PathBuf,
    /// Another operator to measure in the same call, on a cluster of its own.
    #[arg(long, requires = "other_chart")]
    pub(crate) other_operator: Option<PathBuf>,
    /// The chart of the other operator: its kinds, rights and flow schemas.
    #[arg(long, requires = "other_operator")]
    pub(crate) other_chart: Option<PathBuf>,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

/// What is measured.
pub(crate) struct Subject {
    /// What the names of its results end in.
    pub(crate) label: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) chart: PathBuf,
    pub(crate) form: Form,
}

impl Subject {
    /// The other operator, if one is given, then this checkout's.
    pub(crate) fn all(arguments: &Arguments) -> Vec<Self> {
        let chart = Checkout::here().path("charts/macvtap-operator");
        let own = Self { label: "", program: arguments.operator.clone(), chart, form: Form::Brief };
        let other = arguments.other_operator.clone().zip(arguments.other_chart.clone());
        let other = other.map(|(program, chart)| Self { label: "_other", program, chart, form: Form::Full });
        other.into_iter().chain([own]).collect()
    }
}

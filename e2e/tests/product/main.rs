//! The product on a real cluster, one user story after the other.

#![expect(clippy::print_stdout, reason = "what was measured belongs in the test's output")]

mod mistakes;
mod pods;
mod pools;
mod stage;

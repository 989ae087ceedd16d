//! The real helper executable, driven as the NIF drives it.
//!
//! | file | what is tested |
//! |---|---|
//! | `start` | what the helper makes of a hostile start, before it reads anything |
//! | `frames` | peers that break the protocol |
//! | `run` | programs from the start message to the report of their end |
//! | `wait` | processes that wait for their program, and supervisors that have several |
//! | `end` | everything that ends a tree, and that nothing of it is left |
//! | `common` | the NIF's part |
//! | `process` | what /proc shows |
//!
//! Every helper carries a unique mark as its argument, every program of its in the environment.
//! What carries the mark is killed when the test is over, whatever became of it.

mod common;
mod end;
mod frames;
mod process;
mod run;
mod start;
mod wait;

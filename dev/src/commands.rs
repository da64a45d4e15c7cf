//! One module for each command, with its arguments, its work and its printing. The other two hold
//! what commands share.

pub(crate) mod bench;
mod cargo;
pub(crate) mod chaos;
mod data;
pub(crate) mod demo;
pub(crate) mod fuzz;
pub(crate) mod reset;
pub(crate) mod test;
pub(crate) mod up;
pub(crate) mod worker;

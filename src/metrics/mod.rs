//! COUNTS. Cells that threads count in without sharing a cache line, and their export.

pub mod cells;

pub mod process;

pub mod export;

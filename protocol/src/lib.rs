//! Tollkeeper binary protocol.
#![no_std]

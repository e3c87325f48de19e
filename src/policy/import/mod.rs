//! Others' rules as policies: text in, our text and a report of what has no equal out.

mod names;

pub use names::attribute_name;

//! The one error of parsing: what was being read and how it was wrong.
//!
//! A single closed enum, because callers do the same with each case: count it, drop the bytes and,
//! on a control connection, say so to the other side.

use thiserror::Error;

/// Bytes that are not what their format says they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The bytes end before `what` does.
    #[error("{what} is cut short")]
    Truncated {
        /// The field or structure being read.
        what: &'static str,
    },
    /// A field holds a value its format does not know.
    #[error("{what} has the unknown value {value}")]
    Unknown {
        /// The field being read.
        what: &'static str,
        /// The value found there.
        value: u64,
    },
    /// A length or count is above the bound its format sets.
    #[error("{what} is {value} long, more than the {limit} allowed")]
    TooLong {
        /// The field being read.
        what: &'static str,
        /// The length found.
        value: usize,
        /// The most the format allows.
        limit: usize,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotText {
        /// The field being read.
        what: &'static str,
    },
    /// Bytes are left over behind a complete structure.
    #[error("{what} has {extra} bytes too many")]
    Trailing {
        /// The structure that was complete.
        what: &'static str,
        /// How many bytes follow it.
        extra: usize,
    },
}

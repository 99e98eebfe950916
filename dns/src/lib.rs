//! The names of containers: who answers to what, and the reply to one DNS query.
//!
//! Every peer publishes the names of its own containers and nobody else's. A [`NameTable`] holds what
//! all peers publish; each record says whose it is, and goes when that peer does.
//! [`answer`] reads one query and says what to do with it: send this reply, ask an upstream server,
//! or nothing at all.
//!
//! Nothing here opens a socket or knows the time. Bytes and randomness are arguments; whatever the
//! bytes are, the outcome is a value, never a panic.
//!
//! Start with [`Domain`] and [`Name`], then [`NameTable`], then [`answer`].
#![forbid(unsafe_code)]

mod answer;
mod name;
mod query;
mod shards;
mod table;

pub use answer::{Answer, Transport, Verdict, View, answer, failure};
pub use name::{Domain, Flaw, Name, NameError, ParseDomainError};
pub use table::{AddError, Filter, NameTable, Record, SetError};

//! Pure: one pool: how nodes stand to it, its status, and which changes of that are worth a write or an event.

pub mod advance;
pub mod announce;
pub mod assess;
pub mod difference;
pub mod published;
pub mod report;

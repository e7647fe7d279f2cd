//! The ring engine against rings built by hand, in any layout, and against hostile ones.

mod burst;
mod hostile;
mod model;
mod notify;
mod oracle;
mod pages;
mod twin;

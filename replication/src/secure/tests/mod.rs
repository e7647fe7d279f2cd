//! Two and three links over a network that the test holds in its hands.

mod handshakes;
mod hostile;
mod world;

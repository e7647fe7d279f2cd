//! End-to-end tests, the simulation and the checking client.

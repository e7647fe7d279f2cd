//! The vhost-user-net backend: a packet's path between uplink, log and guest.

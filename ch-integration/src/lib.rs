//! Drives the VMM, and the plover command.
//!
//! [`launch::launch`] starts a VMM with the guest's RAM on a shared file and its NIC on our
//! vhost-user socket, takes a userfaultfd from it, and hands back a [`vmm::Vmm`]. [`config`] is
//! the configuration of a whole node. No packet and no page passes through this crate's VMM side.

pub mod cloud_hypervisor;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod error;
pub mod host_facts;
pub mod keygen;
pub mod launch;
pub mod limits;
pub mod node;
pub mod operate;
pub mod qemu;
pub mod refuse;
pub mod state_blob;
pub mod vcpu_time;
pub mod vmm;

//! What lies between the nodes: DPDK ports, and who reaches whom by which. Frames can be made to
//! travel for a while, and to get lost, drawn from a seed.
//!
//! On one thread each node has a `net_ring` port: what is put into it, the node takes out; so the
//! destination's address chooses the ring. Between two threads there are pairs of `net_memif`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dpdk_config::{Eal, Mempool, Port, PortConfig};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vhost_user_plover_net::path::ports::NodePort;

use super::address::{self, NODES};

/// Packet buffers: all rings full, and what is on its way.
const MBUFS: u32 = 8191;
const MBUF_CACHE: u32 = 256;
/// Bursts that a node takes from a port at once, as the poll core does.
const BURSTS_PER_TURN: usize = 4;

/// How frames fare.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Condition {
    /// How long a frame travels; zero: it is there at once.
    pub delay: Duration,
    /// The share of frames that is lost.
    pub loss: f64,
}

/// A frame that travels.
struct OnTheWay {
    due: Instant,
    port: usize,
    frame: Vec<u8>,
}

/// The nodes of one thread, as the wire sees them.
#[derive(Debug)]
pub struct Layout {
    /// The ports, as `--vdev` takes them.
    pub devices: Vec<String>,
    /// Which ports bring frames for a node.
    pub inlets: [Vec<usize>; NODES],
    /// Which port takes a frame from one node to another.
    pub routes: [[Option<usize>; NODES]; NODES],
}

impl Layout {
    /// All nodes on one thread. Groups of one process have numbers.
    pub fn one_thread(group: usize) -> Self {
        let device = |node| format!("net_ring{}", group * NODES + node);
        Self {
            devices: (0..NODES).map(device).collect(),
            inlets: std::array::from_fn(|node| vec![node]),
            routes: std::array::from_fn(|from| {
                std::array::from_fn(|to| (from != to).then_some(to))
            }),
        }
    }
}

/// The wire.
pub struct Wire {
    ports: Vec<NodePort>,
    inlets: [Vec<usize>; NODES],
    routes: [[Option<usize>; NODES]; NODES],
    condition: Condition,
    random: SmallRng,
    on_the_way: VecDeque<OnTheWay>,
    /// Emptied buffers of frames that have arrived.
    spare: Vec<Vec<u8>>,
}

impl Wire {
    /// Opens the ports.
    pub fn open(eal: &Eal, name: &str, layout: Layout, seed: u64) -> Result<Self> {
        let room = dpdk_config::limits::DATA_ROOM_BYTES_DEFAULT;
        let pool = Mempool::new(eal, name, MBUFS, MBUF_CACHE, room)?;
        let ports = layout.devices.into_iter().map(|device| {
            let config = PortConfig::vdev(device.clone());
            let port = Port::open(eal, &config, &pool).with_context(|| format!("open {device}"))?;
            Ok(NodePort::new(port, pool.clone()))
        });
        Ok(Self {
            ports: ports.collect::<Result<_>>()?,
            inlets: layout.inlets,
            routes: layout.routes,
            condition: Condition::default(),
            random: SmallRng::seed_from_u64(seed),
            on_the_way: VecDeque::new(),
            spare: Vec::new(),
        })
    }

    /// From now on frames fare so.
    pub fn set(&mut self, condition: Condition) {
        self.condition = condition;
    }

    /// What is in the rings and on its way is gone: a new group must not hear an old one.
    pub fn clear(&mut self) {
        self.on_the_way.clear();
        for port in &mut self.ports {
            while port.receive() > 0 {}
        }
    }

    /// Puts a frame, in parts, on its way; one to everybody goes to all others.
    #[inline]
    pub fn send(&mut self, from: usize, parts: &[&[u8]]) {
        let routes = self.routes[from];
        match address::destination(parts) {
            Some(to) => {
                if let Some(port) = routes[to] {
                    self.send_by(port, parts);
                }
            }
            None => {
                for port in routes.into_iter().flatten() {
                    self.send_by(port, parts);
                }
            }
        }
    }

    #[inline]
    fn send_by(&mut self, port: usize, parts: &[&[u8]]) {
        let Condition { delay, loss } = self.condition;
        if loss > 0.0 && self.random.random_bool(loss) {
            return;
        }
        if delay.is_zero() {
            return self.ports[port].send(parts);
        }
        let mut frame = self.spare.pop().unwrap_or_default();
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        let due = Instant::now() + delay;
        self.on_the_way.push_back(OnTheWay { due, port, frame });
    }

    /// Hands what was sent to the rings; what has travelled long enough arrives.
    #[inline]
    pub fn flush(&mut self) {
        if !self.on_the_way.is_empty() {
            self.arrive(Instant::now());
        }
        self.ports.iter_mut().for_each(NodePort::flush);
    }

    fn arrive(&mut self, now: Instant) {
        while let Some(mut due) = self.on_the_way.pop_front_if(|frame| frame.due <= now) {
            self.ports[due.port].send(&[&due.frame]);
            due.frame.clear();
            self.spare.push(due.frame);
        }
    }

    /// Shows a node the frames that came for it.
    #[inline]
    pub fn receive(&mut self, node: usize, mut see: impl FnMut(&mut [u8])) {
        for port in &self.inlets[node] {
            let port = &mut self.ports[*port];
            for _ in 0..BURSTS_PER_TURN {
                if port.receive() == 0 {
                    break;
                }
                port.received(|mbuf, _| see(mbuf.data_mut()));
            }
        }
    }
}

//! Packets: the client sends them, the log brings them to guests, answers leave.

use plover_types::{Mode, Offload, RoleEntry};
use rand::Rng;

use crate::queue::What;
use crate::violation::Violation;
use crate::watch::{packet_number, pair_of};
use crate::world::World;

/// Packets that a burst of the client's holds at most.
const BURST_PACKETS_MAX: u32 = 4;

impl World {
    pub(crate) fn deliver(&mut self, host: usize) -> Result<usize, Violation> {
        let it = &mut self.hosts[host];
        let node = it.spec.id;
        let (Some(core), vm, hold) = (it.core.as_mut(), &mut it.vm, &mut it.hold) else {
            return Ok(0);
        };
        // As the poll core: a copy that is void may still be told to resume, by a command that the
        // driver had not come to.
        if !vm.is_running() || !core.copy().can_serve() {
            return Ok(0);
        }
        let (random, checker) = (&mut self.random, &mut self.checker);
        let mut violation = None;
        // The guest has room for a few packets at a time.
        let mut room = random.random_range(0..8);
        let given = core.deliver(|_, packet| {
            if room == 0 || violation.is_some() {
                return false;
            }
            room -= 1;
            let number = packet_number(packet.bytes);
            assert_eq!(packet.pair, pair_of(number), "the log keeps the queue pair");
            violation = checker.given(node, vm.image.count(), number).err();
            hold.push(vm.process(number, &mut checker.lineages, random));
            true
        });
        violation.map_or(Ok(given), Err)
    }

    pub(crate) fn transmit(&mut self, host: usize) -> Result<usize, Violation> {
        let now = self.local(host);
        let it = &mut self.hosts[host];
        let Some(core) = it.core.as_mut() else {
            return Ok(0);
        };
        let policy = core.output_policy(it.hold.has_closed());
        it.hold.set_policy(policy);
        let is_alone =
            |role: &RoleEntry| role.mode == Mode::Unprotected && role.primary == it.spec.id;
        if core.group().role().is_some_and(is_alone) && it.filling.is_none() {
            it.passed = it.vm.image.count();
        }
        if it.hold.agreed() == 0 || !core.may_transmit(now) {
            return Ok(0);
        }
        let mut sent = 0;
        while let Some(answer) = it.hold.pop_agreed() {
            self.checker.seen(it.spec.id, answer, it.passed)?;
            sent += 1;
        }
        self.checker.serves(it.spec.id, &it.vm.image)?;
        Ok(sent)
    }

    /// The switch floods: every replica's uplink sees the packets, only the primary proposes them.
    pub(crate) fn client_sends(&mut self) -> Result<(), Violation> {
        if self.now_us < self.quiet_until_us {
            self.queue.push(self.quiet_until_us, 0, 0, What::Client);
            return Ok(());
        }
        for _ in 0..self.random.random_range(1..=BURST_PACKETS_MAX) {
            let number = self.next_packet;
            self.next_packet += 1;
            let mut packet = [0u8; 64];
            packet[..8].copy_from_slice(&number.to_le_bytes());
            let pushed = self.builder.push(pair_of(number), Offload::PLAIN, &packet);
            debug_assert_eq!(pushed, Ok(()));
        }
        if let Some(burst) = self.builder.finish() {
            for host in 0..self.hosts.len() {
                let it = &self.hosts[host];
                if !it.is_up() || !it.spec.is_replica || !it.uplink_up {
                    continue;
                }
                let now = self.local(host);
                // A packet that cannot be proposed is dropped at admit, as the uplink would.
                if self.core(host).propose(now, burst.clone()).is_ok() {
                    self.pump(host)?;
                }
            }
        }
        let next = self
            .random
            .random_range(400..self.settings.client_gap_max_us);
        self.queue.push(self.now_us + next, 0, 0, What::Client);
        Ok(())
    }
}

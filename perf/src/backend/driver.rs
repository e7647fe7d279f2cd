//! What a driver of VMM and hasher does for a node, as far as it goes without either: the guest is
//! there at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use replication::epoch::{CopyCommand, CopyEvent};
use vhost_user_plover_net::EventFd;
use vhost_user_plover_net::poll::{PollCommand, PollEvent};
use vhost_user_plover_net::status::Status;

/// A core that is asked answers within a turn.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often an answer is looked for.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// The other end of a poll core.
pub struct Watcher {
    /// The node's id.
    pub node: u64,
    pub commands: Sender<PollCommand>,
    pub events: Receiver<(Instant, PollEvent)>,
    pub wake: Arc<EventFd>,
}

impl Watcher {
    /// Says that a guest waits to be booted.
    pub fn offer_guest(&self) {
        self.send(PollCommand::Copy(CopyEvent::Ready));
    }

    /// Answers what the core asked since the last call.
    pub fn serve(&self) {
        for (_, event) in self.events.try_iter() {
            match event {
                PollEvent::Command(CopyCommand::Boot) => {
                    self.send(PollCommand::Thaw { sync: None });
                    self.send(PollCommand::Copy(CopyEvent::Booted));
                }
                PollEvent::Note(notice) => eprintln!("node {}: {notice:?}", self.node),
                // No other copy is ever ready, so there are no syncs to take part in.
                _ => {}
            }
        }
    }

    /// Where the core stands; none if it does not answer.
    pub fn status(&self) -> Option<Box<Status>> {
        let (reply, answer) = bounded(1);
        self.send(PollCommand::Status(reply));
        // Asked for again and again, not waited for: to wake who waits would be a system call of
        // the core's, and those are counted.
        let deadline = Instant::now() + PATIENCE;
        loop {
            match answer.try_recv() {
                Ok(status) => return Some(status),
                Err(TryRecvError::Empty) if Instant::now() < deadline => {
                    std::thread::sleep(ASK_EVERY);
                }
                Err(_) => return None,
            }
        }
    }

    fn send(&self, command: PollCommand) {
        // Once the core is gone there is nobody to tell.
        if self.commands.send(command).is_ok() {
            self.wake.signal();
        }
    }
}

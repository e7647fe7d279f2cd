//! Messages in any order and of any content, with any fds, to the real server on a real socket,
//! while guest and poll core go on. Whatever comes: the handler does not panic, the connection
//! ends when the VMM hangs up, no fd stays behind, and the next VMM is served.
//!
//! Not looked at here: a VMM that cuts its memory file short while it is mapped. It can end us by
//! that, as it can end its guest; see the threat model.

mod message;
mod script;
pub mod station;
pub mod vmm;

use self::script::Script;
use self::station::Station;
use crate::input::Input;

/// Connections of one script.
const CONNECTIONS_MAX: usize = 3;

/// Runs the script that `data` is, then has a well-behaved VMM served.
pub fn run(data: &[u8]) {
    let station = Station::of_process();
    let mut input = Input::new(data);
    for _ in 0..=input.below(CONNECTIONS_MAX) {
        Script::new(station.connect()).run(&mut input);
    }
    station.serves();
    station.check();
}

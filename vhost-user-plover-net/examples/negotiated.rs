//! What a VMM negotiates with the card: serves one with everything switched on, sends each frame of
//! the guest back, and logs what was acknowledged. `docs/vmm-features.md` was made with it.
//!
//!     negotiated SOCKET [QUEUE_PAIRS]
//!
//! Ends with its standard input.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost_user_plover_net::{CardConfig, NicConfig, VhostUserServer, channel};

/// Frames taken at once.
const BURST: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().init();
    let mut arguments = std::env::args_os().skip(1);
    let socket = PathBuf::from(arguments.next().ok_or("name a socket")?);
    let pairs = arguments.next().map(|text| text.to_string_lossy().parse());
    let card = CardConfig {
        mac: Some([2, 0, 0, 0, 0, 2]),
        mtu: 9000,
        queue_pairs: pairs.transpose()?.unwrap_or(2),
        offloads: true,
        announce: true,
    };
    let (control, mut nic) = channel(NicConfig {
        on_memory: Box::new(|_| {}),
        written_pages: None,
        card,
    })?;
    let server = VhostUserServer::start(&socket, control)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let core = std::thread::spawn(move || {
        let mut frames = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            nic.take_commands();
            nic.take(BURST, &mut |frame| frames.push(frame.to_vec()));
            for frame in frames.drain(..) {
                nic.deliver(&frame);
            }
            nic.publish();
            std::thread::yield_now();
        }
    });
    std::io::stdin().read_to_end(&mut Vec::new())?;
    stop.store(true, Ordering::Relaxed);
    core.join().map_err(|_| "the core panicked")?;
    server.stop();
    Ok(())
}

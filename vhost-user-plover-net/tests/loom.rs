//! The protocols between two threads (or two processes) that no lock guards, under every order
//! that the memory model allows: loom runs each of these models through all of them, up to a
//! number of preemptions. They are models: the same loads, stores, fences and orders as the code,
//! on loom's atomics. The code that each stands for is named, and is to be changed with it.
//!
//! Each has a twin with one step left out, or two swapped, which loom must find: a model that
//! can't fail shows nothing.
//!
//! What is modelled as a lock is one: an eventfd is a counter behind the kernel's lock.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicU16, AtomicUsize, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;

const PREEMPTIONS_MAX: usize = 3;

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(model);
}

/// Whether loom finds an order in which `model` fails.
fn fails(model: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| check(model))).is_err()
}

/// Whether both sides put a full fence between their store and their load.
#[derive(Clone, Copy, PartialEq)]
enum Fences {
    Both,
    One,
}

/// Two sides, each of which shows something and then looks at what the other shows: the guest
/// offers a chain and looks whether kicks are wanted, the device asks for kicks and looks whether
/// there are chains (`used::want_kicks`, then `offered` in `guest_nic::sleep`); and with roles
/// swapped the used index and the driver's wish for calls (`used::publish`, `used::wants_call`).
/// If both see nothing, the sleeper sleeps for ever.
fn a_notification(fences: Fences) {
    let index = Arc::new(AtomicU16::new(0));
    let wish = Arc::new(AtomicU16::new(u16::MAX));
    let (worker_index, worker_wish) = (Arc::clone(&index), Arc::clone(&wish));
    let worker = thread::spawn(move || {
        worker_index.store(1, Release);
        fence(SeqCst);
        // With EVENT_IDX: told if the wish names the index that was just passed.
        worker_wish.load(Relaxed) == 0
    });
    wish.store(0, Relaxed);
    if fences == Fences::Both {
        fence(SeqCst);
    }
    let saw_work = index.load(Acquire) != 0;
    let told = worker.join().expect("it does not panic");
    assert!(saw_work || told, "both missed each other");
}

#[test]
fn no_kick_or_call_is_lost() {
    check(|| a_notification(Fences::Both));
    assert!(fails(|| a_notification(Fences::One)));
}

/// As `SplitRing::wants_call`: whether the guest's wish lies between two used indexes.
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The device publishes twice and asks twice; the driver takes what it sees, names the index that
/// it has seen, and looks again before it sleeps.
fn calls_of_a_burst(remembers: bool) {
    let used = Arc::new(AtomicU16::new(0));
    let event = Arc::new(AtomicU16::new(0));
    let (device_used, device_event) = (Arc::clone(&used), Arc::clone(&event));
    let device = thread::spawn(move || {
        let mut asked_at = 0;
        let mut last_call = 0;
        for index in 1..=2 {
            device_used.store(index, Release);
            fence(SeqCst);
            if passes(device_event.load(Relaxed), asked_at, index) {
                last_call = index;
            }
            // `asked_at` moves with each question, not with each call.
            if remembers || last_call == index {
                asked_at = index;
            } else {
                asked_at = index + 1;
            }
        }
        last_call
    });
    let mut seen = 0;
    loop {
        event.store(seen, Relaxed);
        fence(SeqCst);
        let index = used.load(Acquire);
        if index == seen {
            break;
        }
        seen = index;
    }
    let last_call = device.join().expect("it does not panic");
    assert!(
        seen == 2 || last_call > seen,
        "asleep at {seen}, called at {last_call}"
    );
}

#[test]
fn no_call_is_lost_when_the_device_publishes_twice() {
    check(|| calls_of_a_burst(true));
    assert!(fails(|| calls_of_a_burst(false)));
}

/// The mailbox: how many commands were posted, and the doorbell, an eventfd.
struct Mailbox {
    posted: AtomicUsize,
    doorbell: Mutex<u64>,
}

/// Where the core forgets rings of the doorbell.
#[derive(Clone, Copy, PartialEq)]
enum Drain {
    /// As `guest_nic::sleep::after_sleep`: before it takes commands.
    BeforeTaking,
    /// After it has looked for the last time before it sleeps: wrong.
    AfterLooking,
}

/// `control::mailbox`: the control thread posts and rings; the core wakes, forgets the ring, takes
/// commands, looks whether there are more (`prepare_sleep`), and sleeps until the bell rings. It
/// may not sleep while a command waits and the bell is silent. `rung` is a ring that is left from
/// earlier.
fn a_mailbox(drain: Drain, rung: u64) {
    let mailbox = Arc::new(Mailbox {
        posted: AtomicUsize::new(0),
        doorbell: Mutex::new(rung),
    });
    let callers = Arc::clone(&mailbox);
    let caller = thread::spawn(move || {
        for _ in 0..2 {
            callers.posted.fetch_add(1, AcqRel);
            *callers.doorbell.lock().expect("no one panics") += 1;
        }
    });
    let mut taken = 0;
    let mut asleep = false;
    for _ in 0..2 {
        if drain == Drain::BeforeTaking {
            *mailbox.doorbell.lock().expect("no one panics") = 0;
        }
        taken = mailbox.posted.load(Acquire);
        asleep = mailbox.posted.load(Acquire) == taken;
        if drain == Drain::AfterLooking {
            *mailbox.doorbell.lock().expect("no one panics") = 0;
        }
    }
    caller.join().expect("it does not panic");
    let waits = mailbox.posted.load(Acquire) > taken;
    let silent = *mailbox.doorbell.lock().expect("no one panics") == 0;
    assert!(
        !(asleep && waits && silent),
        "a command waits, and the core sleeps"
    );
}

#[test]
fn no_command_waits_for_a_core_that_sleeps() {
    for rung in [0, 1] {
        check(move || a_mailbox(Drain::BeforeTaking, rung));
        assert!(fails(move || a_mailbox(Drain::AfterLooking, rung)));
    }
}

/// How a page that was written is marked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Marking {
    /// As `WrittenPages::mark`: write, then a Release store of the mark.
    Release,
    /// The store ordered by nothing: wrong.
    Relaxed,
    /// Only if it is not marked, as would save a store: wrong without a fence before the look.
    Look,
    /// The mark before the write: wrong.
    MarkFirst,
}

/// The log of written pages: the poll core writes a page twice and marks it each time; the hasher
/// clears the mark (`WrittenPages::collect`), then reads the page. When the rings are paused and
/// the hasher has collected once more, its copy is what was written last.
fn a_page_log(marking: Marking) {
    let page = Arc::new(AtomicUsize::new(0));
    let mark = Arc::new(AtomicUsize::new(0));
    let (core_page, core_mark) = (Arc::clone(&page), Arc::clone(&mark));
    let core = thread::spawn(move || {
        // A store in the code. loom lets a later exchange read what another exchange left, though
        // the store came between the two; what an exchange leaves it keeps in order.
        let set = |order| _ = core_mark.swap(1, order);
        for value in 1..=2 {
            if marking == Marking::MarkFirst {
                set(Release);
            }
            core_page.store(value, Relaxed);
            match marking {
                Marking::Release => set(Release),
                Marking::Relaxed => set(Relaxed),
                Marking::Look if core_mark.load(Relaxed) == 0 => set(Release),
                Marking::Look | Marking::MarkFirst => {}
            }
        }
    });
    let mut copy = 0;
    let collect = |copy: &mut usize| {
        if mark.swap(0, AcqRel) != 0 {
            *copy = page.load(Relaxed);
        }
    };
    collect(&mut copy);
    collect(&mut copy);
    core.join().expect("it does not panic");
    collect(&mut copy);
    assert_eq!(copy, 2, "a write was not seen");
}

#[test]
fn no_write_is_missed_by_the_collector() {
    check(|| a_page_log(Marking::Release));
    for wrong in [Marking::Relaxed, Marking::Look, Marking::MarkFirst] {
        assert!(fails(move || a_page_log(wrong)), "{wrong:?}");
    }
}

//! EAL with other settings than the default. It starts once per process, so each test here starts
//! this executable again for itself alone.

use std::env;
use std::process::Command;

use dpdk_config::{DpdkError, Eal, EalConfig, HugePages, Mempool, Port, PortConfig};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

const ALONE: &str = "PLOVER_TEST_ALONE";

/// Does `work` in a process where only `test` runs.
fn alone(test: &str, work: impl FnOnce()) {
    if env::var_os(ALONE).is_some() {
        return work();
    }
    let program = env::current_exe().expect("a test has a path");
    let mut command = Command::new(program);
    command.args(["--exact", test]).env(ALONE, "1");
    let output = command.output().expect("a test can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
fn a_main_core_pins_the_calling_thread() {
    alone("a_main_core_pins_the_calling_thread", || {
        let config = EalConfig {
            main_core: Some(0),
            ..EalConfig::default()
        };
        Eal::init(&config).unwrap();
        let cores = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let allowed = (0..CpuSet::count()).filter(|&core| cores.is_set(core).unwrap());
        assert_eq!(allowed.collect::<Vec<_>>(), [0]);
    });
}

#[test]
fn a_core_that_does_not_exist_is_an_error_that_says_so() {
    alone(
        "a_core_that_does_not_exist_is_an_error_that_says_so",
        || {
            let config = EalConfig {
                main_core: Some(1023),
                ..EalConfig::default()
            };
            let error = Eal::init(&config).unwrap_err();
            assert!(matches!(error, DpdkError::Init { .. }), "{error:?}");
            assert!(error.to_string().contains("0@1023"), "{error}");
            assert!(!error.to_string().contains("no reason"), "{error}");
            let again = Eal::init(&EalConfig::default()).unwrap_err();
            assert!(matches!(again, DpdkError::AlreadyInitialised), "{again:?}");
        },
    );
}

#[test]
fn with_pci_the_bus_is_scanned_and_a_missing_device_is_named() {
    alone(
        "with_pci_the_bus_is_scanned_and_a_missing_device_is_named",
        || {
            let eal = Eal::init(&EalConfig {
                pci: true,
                ..EalConfig::default()
            })
            .unwrap();
            let pool = Mempool::new(&eal, "pci", 511, 0, 2048).unwrap();
            let mut config = PortConfig::vdev("");
            (config.vdev, config.pci) = (None, Some("fffe:99:00.0".into()));
            let error = Port::open(&eal, &config, &pool).unwrap_err();
            assert!(matches!(error, DpdkError::NoPciDevice { .. }), "{error:?}");
            assert!(error.to_string().contains("fffe:99:00.0"), "{error}");
            Port::open(&eal, &PortConfig::vdev("net_null0"), &pool).unwrap();
        },
    );
}

#[test]
fn without_enough_hugepages_init_fails_with_the_reason() {
    alone(
        "without_enough_hugepages_init_fails_with_the_reason",
        || {
            // More than any machine that runs tests has reserved.
            let memory_mib = 60 * 1024;
            let config = EalConfig {
                huge_pages: HugePages::On,
                memory_mib,
                ..EalConfig::default()
            };
            let error = Eal::init(&config).unwrap_err().to_string();
            assert!(
                error.contains("--in-memory") && !error.contains("no reason"),
                "{error}"
            );
        },
    );
}

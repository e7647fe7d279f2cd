//! Finds libdpdk, makes the bindings (bindgen, allow-listed) and compiles the C wrappers of the
//! `static inline` functions among them.

use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const INSTALL: &str = "apt-get install libdpdk-dev clang libclang-dev pkg-config";

/// What is bound; everything else of DPDK stays out.
const FUNCTIONS: &[&str] = &[
    "plover_.*",
    "rte_eal_(init|hotplug_add|hotplug_remove)",
    "rte_version",
    "rte_thread_(register|unregister)",
    "rte_mempool_(free|in_use_count|avail_count)",
    "rte_pktmbuf_(pool_create|alloc|alloc_bulk|free|free_bulk|chain)",
    "rte_eth_(rx|tx)_burst",
    "rte_eth_tx_prepare",
    "rte_eth_(rx|tx)_queue_setup",
    "rte_eth_dev_(configure|start|stop|close|info_get|set_mtu|get_mtu|get_port_by_name)",
    "rte_eth_dev_(adjust_nb_rx_tx_desc|set_link_up|set_link_down|rx_intr_ctl_q_get_fd)",
    "rte_eth_(macaddr_get|promiscuous_enable|promiscuous_disable|stats_get)",
];
const CONSTANTS: &[&str] = &[
    "RTE_PKTMBUF_HEADROOM",
    "RTE_MEMPOOL_CACHE_MAX_SIZE",
    "RTE_LOG_.*",
    "PLOVER_.*",
];

fn main() {
    println!("cargo:rerun-if-changed=wrapper.h");
    println!("cargo:rerun-if-changed=build.rs");
    let flags = compiler_flags();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let wrappers = out.join("static_wrappers");
    write_bindings(&flags, &out, &wrappers);
    compile_wrappers(&flags, &wrappers.with_extension("c"));
}

/// Tells cargo what to link (the library names differ between releases, so pkg-config says them)
/// and returns the C flags.
fn compiler_flags() -> Vec<String> {
    let found = pkg_config::Config::new()
        .atleast_version("22.11")
        .probe("libdpdk");
    if let Err(error) = found {
        panic!("\n\nlibdpdk 22.11 or newer was not found. Install it:\n    {INSTALL}\n\n{error}\n");
    }
    // The crate keeps -I and -D only; -include rte_config.h and -march matter too.
    let pkg_config = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = Command::new(pkg_config)
        .args(["--cflags", "libdpdk"])
        .output()
        .expect("pkg-config, which just ran, runs again");
    let flags = String::from_utf8(output.stdout).expect("flags of pkg-config are text");
    flags.split_whitespace().map(String::from).collect()
}

fn write_bindings(flags: &[String], out: &Path, wrappers: &Path) {
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(flags)
        .wrap_static_fns(true)
        .wrap_static_fns_path(wrappers)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .opaque_type("rte_mempool|rte_mbuf|rte_device|rte_eth_dev_data")
        .no_copy("rte_mempool|rte_mbuf")
        .generate_comments(false)
        .layout_tests(false)
        .derive_default(true);
    for function in FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    for constant in CONSTANTS {
        builder = builder.allowlist_var(constant);
    }
    // bindgen panics where it finds no libclang.
    let generated = panic::catch_unwind(AssertUnwindSafe(|| builder.generate()));
    let bindings = match generated {
        Ok(Ok(bindings)) => bindings,
        Ok(Err(error)) => {
            panic!("\n\nbindgen could not read DPDK's headers: {error}. Needed:\n    {INSTALL}\n")
        }
        Err(_) => panic!("\n\nbindgen did not run (is libclang there?). Needed:\n    {INSTALL}\n"),
    };
    bindings
        .write_to_file(out.join("bindings.rs"))
        .expect("OUT_DIR is writable");
}

fn compile_wrappers(flags: &[String], source: &Path) {
    // bindgen names our header as it was given to it, relative to this folder.
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    assert!(
        fs::exists(source).unwrap_or(false),
        "bindgen wrote no {}",
        source.display()
    );
    let mut build = cc::Build::new();
    build
        .file(source)
        .include(folder)
        .opt_level(3)
        .warnings(false)
        .cargo_warnings(false);
    for flag in flags {
        build.flag(flag);
    }
    build.compile("plover_dpdk_wrappers");
}

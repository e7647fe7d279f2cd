//! See the scenario of the same name.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| plover_net_fuzz::control::run(data));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    plover_net_fuzz::stable::main("control")
}

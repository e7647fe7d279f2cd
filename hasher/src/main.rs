//! The `plover-hasher` service: reads its arguments, logs to standard error, serves.

use std::process::ExitCode;

use clap::Parser;
use hasher::config::Config;
use hasher::error::chain;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = Config::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    // Rounds run on a worker, the node's requests on the main thread.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let served = match runtime {
        Ok(runtime) => runtime.block_on(hasher::listen::serve(config)),
        Err(error) => {
            eprintln!("plover-hasher: cannot start its threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plover-hasher: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

//! The `plover` command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use ch_integration::config::Config;
use ch_integration::demo::{self, DemoOptions};
use ch_integration::node::status_text;
use ch_integration::operate::{self, FailoverOptions, ReplaceOptions};
use ch_integration::{doctor, keygen, node};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Exit code of `status` when the node answers and its VM is not protected.
const EXIT_UNPROTECTED: u8 = 3;

/// Keeps a virtual machine serving when its host dies.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs this host's node of a group, or a card without replication, in the foreground.
    Node {
        /// The node's configuration.
        config: PathBuf,
    },
    /// Shows what a node on this host does. Exit code 0: protected; 3: serving unprotected, or no
    /// primary known; 1: no answer.
    Status {
        /// The node's configuration, or its state folder.
        node: PathBuf,
        /// The whole status as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Hands the primary's work to the backup, for maintenance: after a last sync, without waiting for
    /// a timeout, and without losing anything. Exit code 0: the other node serves; 4: refused, with
    /// the reason; 5: given up, this node serves on; 1: no answer.
    Failover(FailoverOptions),
    /// Lets a new node into the group in the place of one that is lost for good. Exit code 0: it is in
    /// the log; 4: refused, with the reason; 1: no answer.
    Replace(ReplaceOptions),
    /// Starts three nodes on this machine, kills the primary under load, and counts what was lost.
    Demo(Box<DemoOptions>),
    /// Makes the secret key of one node, and prints its public key, which every node's
    /// configuration lists for it.
    Keygen {
        /// The new file; it is readable by its owner only, and never overwritten.
        file: PathBuf,
        /// Prints the public key of a file that exists.
        #[arg(long)]
        public: bool,
        /// File and public key as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Checks whether this host can run a node, and says how to fix what it lacks.
    Doctor {
        /// Also checks what this configuration needs.
        config: Option<PathBuf>,
        /// The checks as JSON.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let result = match cli.command {
        Command::Node { config } => run_node(&config),
        Command::Status { node, json } => show_status(&node, json),
        Command::Failover(options) => operate::fail_over(&options).map(ExitCode::from),
        Command::Replace(options) => operate::replace(&options).map(ExitCode::from),
        Command::Demo(options) => run_demo(&options),
        Command::Keygen { file, public, json } => run_keygen(&file, public, json),
        Command::Doctor { config, json } => run_doctor(config.as_deref(), json),
    };
    result.unwrap_or_else(|error| {
        eprintln!("plover: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_node(config: &Path) -> Result<ExitCode> {
    node::run(Config::load(config)?)?;
    Ok(ExitCode::SUCCESS)
}

fn run_demo(options: &DemoOptions) -> Result<ExitCode> {
    let outcome = demo::run(options)?;
    Ok(if outcome.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn run_keygen(file: &Path, public: bool, json: bool) -> Result<ExitCode> {
    let report = if public {
        keygen::show(file)?
    } else {
        keygen::create(file)?
    };
    if json {
        println!(
            "{}",
            serde_json::to_string(&report).context("write the key")?
        );
    } else {
        println!("{}", report.public_key);
    }
    Ok(ExitCode::SUCCESS)
}

fn run_doctor(config: Option<&Path>, json: bool) -> Result<ExitCode> {
    let config = config.map(Config::load).transpose()?;
    let checks = doctor::check(config.as_ref());
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(&checks).context("write the checks")?
        );
    } else {
        print!("{}", doctor::text(&checks));
    }
    Ok(if doctor::all_passed(&checks) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn show_status(node: &Path, json: bool) -> Result<ExitCode> {
    let state_dir = if node.is_dir() {
        node.to_owned()
    } else {
        Config::load(node)?.state_dir().to_owned()
    };
    let answer = node::status::ask(&state_dir)?;
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(&answer).context("write the status")?
        );
    } else {
        print!("{}", status_text::of(&answer));
    }
    Ok(if status_text::is_protected(&answer) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_UNPROTECTED)
    })
}

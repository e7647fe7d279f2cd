//! The `plover` command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use ch_integration::config::NodeConfig;
use ch_integration::demo::{self, DemoOptions};
use ch_integration::{doctor, node};
use clap::{Parser, Subcommand};
use serde_json::Value;
use tracing_subscriber::EnvFilter;

/// Exit code of `status` when the node answers and its VM is not protected.
const EXIT_UNPROTECTED: u8 = 3;

/// A peer that was not heard for longer is not there.
const PEER_AGE_MAX_MS: u64 = 1000;

/// Keeps a virtual machine serving when its host dies.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs this host's node of a group, in the foreground.
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
    /// Starts three nodes on this machine, kills the primary under load, and counts what was lost.
    Demo(Box<DemoOptions>),
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
        Command::Demo(options) => run_demo(&options),
        Command::Doctor { config, json } => run_doctor(config.as_deref(), json),
    };
    result.unwrap_or_else(|error| {
        eprintln!("plover: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_node(config: &Path) -> Result<ExitCode> {
    node::run(NodeConfig::load(config)?)?;
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

fn run_doctor(config: Option<&Path>, json: bool) -> Result<ExitCode> {
    let config = config.map(NodeConfig::load).transpose()?;
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
        NodeConfig::load(node)?.state_dir
    };
    let answer = node::status::ask(&state_dir)?;
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(&answer).context("write the status")?
        );
    } else {
        print!("{}", status_text(&answer));
    }
    Ok(if is_protected(&answer["status"]) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_UNPROTECTED)
    })
}

/// A protected role is not enough: with `on_backup_loss = "stall"` it stays while the backup is
/// gone. The other replica must have been heard of, with a copy.
fn is_protected(status: &Value) -> bool {
    let has_copy = |peer: &Value| {
        let copy = peer["copy"].as_str().unwrap_or_default();
        !["absent", "void", "ready to be filled"].contains(&copy)
            && peer["age_ms"]
                .as_u64()
                .is_some_and(|age| age < PEER_AGE_MAX_MS)
    };
    let peers = status["peers"].as_array();
    let own_is_witness = status["copy"] == "absent";
    let copies = peers
        .into_iter()
        .flatten()
        .filter(|peer| has_copy(peer))
        .count();
    status["role"]["mode"] == "protected" && copies >= if own_is_witness { 2 } else { 1 }
}

fn status_text(answer: &Value) -> String {
    let (host, status) = (&answer["host"], &answer["status"]);
    let word = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut text = format!(
        "node      {} (id {}) of group {}\n",
        word(&answer["name"]),
        word(&answer["id"]),
        word(&answer["group"])
    );
    let role = &status["role"];
    if role.is_null() {
        text.push_str("role      none yet\n");
    } else {
        text.push_str(&format!(
            "role      primary is node {}, {}, generation {}\n",
            word(&role["primary"]),
            word(&role["mode"]),
            word(&role["generation"])
        ));
    }
    text.push_str(&format!(
        "leader    node {}, term {}\nhere      copy {}, serving {}\n",
        word(&status["leader"]),
        word(&status["term"]),
        word(&status["copy"]),
        word(&status["is_serving"]),
    ));
    text.push_str(&format!(
        "sync      last {}, in flight {}\noutput    {} packets held, {} released, {} discarded\n",
        word(&status["last_sync"]),
        word(&status["sync"]["sync"]),
        word(&status["held"]),
        word(&status["path"]["released"]),
        word(&status["path"]["discarded"]),
    ));
    text.push_str(&format!(
        "input     {} admitted, {} delivered, {} dropped for want of room\n",
        word(&status["path"]["admitted"]),
        word(&status["path"]["delivered"]),
        word(&status["path"]["dropped_no_room"]),
    ));
    if !host["vmm_pid"].is_null() {
        text.push_str(&format!(
            "VMM       pid {}, {}; written pages by {}\n",
            word(&host["vmm_pid"]),
            word(&host["vmm_version"]),
            word(&host["tracker"])
        ));
    }
    if !status["ring_fault"].is_null() {
        text.push_str(&format!(
            "FAULT     a ring was stopped: {}\n",
            word(&status["ring_fault"])
        ));
    }
    for peer in status["peers"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "peer      node {}: copy {}, heard {} ms ago\n",
            word(&peer["node"]),
            word(&peer["copy"]),
            word(&peer["age_ms"])
        ));
    }
    text
}

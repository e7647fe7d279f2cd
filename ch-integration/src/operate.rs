//! `plover failover` and `plover replace`: what an operator asks of a running node, and how the
//! outcome is told.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::config::NodeConfig;
use crate::node::control::{self, Request};
use crate::node::status;

/// Exit code when the node refuses, with the reason.
pub const EXIT_REFUSED: u8 = 4;

/// Exit code of a failover that was given up: the node serves on.
pub const EXIT_GIVEN_UP: u8 = 5;

/// Arguments of `plover failover`.
#[derive(Debug, Args)]
pub struct FailoverOptions {
    /// The primary's configuration, on its host.
    pub config: PathBuf,
    /// The outcome as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `plover replace`.
#[derive(Debug, Args)]
pub struct ReplaceOptions {
    /// Id of the node that is lost.
    #[arg(long, value_name = "ID")]
    pub lost: u8,
    /// The leader's configuration, on its host, with `group.nodes` as the group will be: the lost
    /// node's entry replaced by the new one's.
    pub config: PathBuf,
    /// The outcome as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Hands the primary's work to the backup. Returns the exit code.
///
/// # Errors
/// The node cannot be asked.
pub fn fail_over(options: &FailoverOptions) -> Result<u8> {
    let config = NodeConfig::load(&options.config)?;
    let answer = control::ask(&config.state_dir, &Request::Failover {}, |progress| {
        eprintln!("{}", phase(progress));
    })?;
    Ok(tell(&answer, options.json, |answer| {
        if answer["phase"] != "done" {
            return "given up: this node serves on; see its log and plover status".to_owned();
        }
        let millis = |key: &str| answer[key].as_f64().unwrap_or_default() / 1000.0;
        format!(
            "node {} serves; {:.1} ms from the request until this node shut its uplink, {:.1} ms \
             without service",
            answer["to"],
            millis("prepared_us"),
            millis("without_service_us"),
        )
    }))
}

fn phase(progress: &Value) -> &'static str {
    match progress["phase"].as_str() {
        Some("syncing") => "syncing",
        Some("handing_over") => "handing over",
        _ => "going on",
    }
}

/// Puts a new node in a lost one's place. Returns the exit code.
///
/// # Errors
/// The configuration does not name exactly one new node, or the node cannot be asked.
pub fn replace(options: &ReplaceOptions) -> Result<u8> {
    let config = NodeConfig::load(&options.config)?;
    let nodes = &config.group.nodes;
    let ids: Vec<u8> = nodes.iter().map(|node| node.id).collect();
    let id = new_node(&ids, &status::ask(&config.state_dir)?, options.lost)?;
    let new = nodes.iter().find(|node| node.id == id);
    let request = Request::Replace {
        lost: options.lost,
        new: Box::new(new.context("no such node")?.clone()),
    };
    let answer = control::ask(&config.state_dir, &request, |_| {})?;
    Ok(tell(&answer, options.json, |_| {
        format!(
            "node {id} is let in for node {}: start it with join = true and a fresh state_dir; \
             plover status shows when it is a voter and the VM protected",
            options.lost
        )
    }))
}

/// The one node of the configuration that the running group does not count among its voters.
fn new_node(ids: &[u8], status: &Value, lost: u8) -> Result<u8> {
    if ids.contains(&lost) {
        bail!(
            "group.nodes still lists node {lost}: put the new node's entry in its place, under an \
             id that was never used"
        );
    }
    let members = status["status"]["members"]
        .as_array()
        .context("the node does not tell its members; is it of this release?")?;
    let is_voter = |id: &&u8| {
        let mut members = members.iter();
        members.any(|member| member["node"] == **id && member["replaces"].is_null())
    };
    let mut new = ids.iter().filter(|id| !is_voter(id));
    match (new.next(), new.next()) {
        (Some(new), None) => Ok(*new),
        (None, _) => bail!("group.nodes lists no node that the group does not have already"),
        (Some(_), Some(_)) => {
            bail!("group.nodes lists more than one node that the group does not have")
        }
    }
}

fn tell(answer: &Value, json: bool, text: impl Fn(&Value) -> String) -> u8 {
    let refused = answer["refused"].as_str();
    match refused {
        _ if json => println!("{answer}"),
        Some(why) => eprintln!("plover: refused: {why}"),
        None => println!("{}", text(answer)),
    }
    match refused {
        Some(_) => EXIT_REFUSED,
        None if answer["phase"] == "given_up" => EXIT_GIVEN_UP,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        json!({ "status": { "members": [
            { "node": 1, "replaces": null },
            { "node": 2, "replaces": null },
            { "node": 4, "replaces": 2 },
            { "node": 3, "replaces": null },
        ] } })
    }

    #[test]
    fn the_new_node_is_the_one_that_the_group_does_not_have() {
        for new in [4, 5] {
            assert_eq!(new_node(&[1, new, 3], &status(), 2).ok(), Some(new));
        }
    }

    #[test]
    fn a_configuration_of_the_old_group_or_of_another_is_refused() {
        for ids in [[1, 2, 3], [1, 5, 6]] {
            assert!(new_node(&ids, &status(), 2).is_err());
        }
        assert!(new_node(&[1, 3], &status(), 2).is_err());
    }

    #[test]
    fn an_exit_code_tells_refused_and_given_up() {
        let text = |_: &Value| String::new();
        assert_eq!(tell(&json!({ "phase": "done" }), true, text), 0);
        assert_eq!(tell(&json!({ "refused": "no" }), true, text), EXIT_REFUSED);
        let given_up = json!({ "phase": "given_up" });
        assert_eq!(tell(&given_up, true, text), EXIT_GIVEN_UP);
    }
}

//! A host that was lost comes back as another node: a new id and a new key, a fresh folder, and every
//! node's configuration with the group as it will be.

use std::fs;

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::group::Group;
use super::network::{Host, REPLACED_ID_STEP};
use crate::keygen;

impl Group {
    /// Prepares what the new node on this host is started with. Returns the ids of the lost node and
    /// of the new one. What the lost one left is kept beside it.
    pub fn prepare_replacement(&self, host: Host) -> Result<(u64, u64)> {
        let config = self.read_config(host)?;
        let lost = config["id"].as_integer().context("a node without an id")?;
        let new = lost + i64::try_from(REPLACED_ID_STEP)?;
        for name in [host.name().to_owned(), format!("{}.key", host.name())] {
            let path = self.run_dir.join(&name);
            let kept = self.run_dir.join(format!("{name}.{lost}"));
            fs::rename(&path, &kept).with_context(|| format!("keep {}", kept.display()))?;
        }
        fs::create_dir_all(self.state_dir(host)).context("create the new node's folder")?;
        let key = keygen::create(&self.run_dir.join(format!("{}.key", host.name())))?;
        for node in Host::ALL {
            let mut config = self.read_config(node)?;
            let nodes = config["group"]["nodes"].as_array_mut();
            for entry in nodes.context("a group without nodes")? {
                if entry["id"].as_integer() == Some(lost) {
                    entry["id"] = Value::Integer(new);
                    entry["public_key"] = Value::String(key.public_key.to_string());
                }
            }
            if node == host {
                config["id"] = Value::Integer(new);
                config.insert("join".to_owned(), Value::Boolean(true));
            }
            fs::write(self.config_path(node), toml::to_string(&config)?)
                .context("write a node's configuration")?;
        }
        Ok((lost.try_into()?, new.try_into()?))
    }

    fn read_config(&self, host: Host) -> Result<Table> {
        let text = fs::read_to_string(self.config_path(host)).context("read a configuration")?;
        text.parse().context("read a node's configuration")
    }
}

//! The group's keys as the configuration names them: this node's key file, and each node's public
//! key.

use std::path::PathBuf;

use plover_keys::{Identity, KeyFileError, PublicIdentity};
use plover_types::NodeId;

use super::{NodeConfig, Security};

/// Own secret, and who the others are.
#[derive(Clone, Debug)]
pub struct GroupKeys {
    /// This node's.
    pub identity: Identity,
    /// The other nodes'.
    pub peers: Vec<(NodeId, PublicIdentity)>,
}

/// Why a node's keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The key file.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// The key file and the configuration name two keys.
    #[error(
        "key file {path} is not this node's: its public key is {found}, and group.nodes lists \
         {listed} for node {id}; put the right key file there, or write {found} into the \
         configuration of every node"
    )]
    NotOwn {
        /// The key file.
        path: PathBuf,
        /// This node.
        id: u8,
        /// The file's.
        found: Box<PublicIdentity>,
        /// The configuration's.
        listed: Box<PublicIdentity>,
    },
}

impl NodeConfig {
    /// Whether what the nodes say to each other is authenticated and encrypted. A node that is
    /// alone says nothing.
    #[must_use]
    pub fn is_secured(&self) -> bool {
        self.replication.security == Security::On && !self.is_alone()
    }

    /// The file with this node's secret key: the configured one, else `<name>.key` beside the
    /// configuration.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        let file = self.key_file.clone();
        let file = file.unwrap_or_else(|| PathBuf::from(format!("{}.key", self.name)));
        self.folder.join(file)
    }

    /// The keys, if the group is secured: the file read and checked, the others' as configured.
    pub fn keys(&self) -> Result<Option<GroupKeys>, KeysError> {
        if !self.is_secured() {
            return Ok(None);
        }
        let path = self.key_file();
        let identity = plover_keys::read(&path)?;
        let listed = self.own().and_then(|own| own.public_key);
        if let Some(listed) = listed.filter(|listed| listed != identity.public()) {
            let (id, found) = (self.id, Box::new(*identity.public()));
            let listed = Box::new(listed);
            return Err(KeysError::NotOwn {
                path,
                id,
                found,
                listed,
            });
        }
        let others = self.group.nodes.iter().filter(|node| node.id != self.id);
        let peers = others
            .filter_map(|node| Some((NodeId(node.id.into()), node.public_key?)))
            .collect();
        Ok(Some(GroupKeys { identity, peers }))
    }
}

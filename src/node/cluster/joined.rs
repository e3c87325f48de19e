//! Which node of which cluster a data directory is: the file that says it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::cluster::{Member, NodeId};
use crate::config::ClusterConfig;
use crate::disk::Identity;
use crate::node::StartError;

/// The file that says which node of which cluster the directory is, and whom it is to begin the
/// cluster with.
const NODE: &str = "node";

/// What a node knows once it has joined.
pub(super) struct Joined {
    pub(super) identity: Identity,
    pub(super) node: NodeId,
    pub(super) name: String,
    /// With whom it is to begin the cluster; of the others none.
    pub(super) members: BTreeMap<NodeId, Member>,
}

impl Joined {
    /// What the data directory says, if it is a node's.
    pub(super) fn read(data: &Path) -> Result<Option<Self>, StartError> {
        let path = data.join(NODE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StartError::System { what: "the file `node`", source }),
        };
        let mut lines = text.lines();
        let mut next = || lines.next().unwrap_or_default().to_owned();
        let (node, name, bytes) = (next(), next(), next());
        let node =
            node.parse().map_err(|_| wrong(data, format!("it begins with {node:?}, no number")))?;
        let bytes: Vec<u8> = (0..bytes.len() / 2)
            .filter_map(|at| u8::from_str_radix(bytes.get(2 * at..2 * at + 2)?, 16).ok())
            .collect();
        let identity = Identity::decode(&bytes).map_err(|why| wrong(data, why))?;
        let members = lines
            .filter_map(|line| {
                let (node, peer) = line.split_once(' ')?;
                let member = Member { peer: peer.to_owned(), clients: String::new() };
                Some((node.parse().ok()?, member))
            })
            .collect();
        Ok(Some(Self { identity, node, name, members }))
    }

    /// The same, where it is this node's.
    pub(super) fn read_of(
        data: &Path,
        cluster: &ClusterConfig,
    ) -> Result<Option<Self>, StartError> {
        let Some(joined) = Self::read(data)? else { return Ok(None) };
        if joined.node != cluster.node_id || joined.name != cluster.name {
            let (node, name) = (joined.node, joined.name);
            let why = format!(
                "it is node {node} of cluster {name:?}, started as node {} of {:?}",
                cluster.node_id, cluster.name
            );
            return Err(wrong(data, why));
        }
        Ok(Some(joined))
    }

    pub(super) fn write(&self, data: &Path) -> io::Result<()> {
        use std::fmt::Write as _;
        use std::io::Write as _;
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let mut text = format!("{}\n{}\n", self.node, self.name);
        for byte in self.identity.encode() {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        for (node, member) in &self.members {
            let _ = writeln!(text, "{node} {}", member.peer);
        }
        // The directory is the instance's before it is anybody's.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data)?;
        let unfinished = data.join("node.tmp");
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(unfinished, data.join(NODE))?;
        std::fs::File::open(data)?.sync_all()
    }
}

/// Says what is wrong with the file `node`.
fn wrong(data: &Path, why: String) -> StartError {
    let source = io::Error::other(format!("{}: {why}", data.join(NODE).display()));
    StartError::System { what: "data directory", source }
}

//! What can be wrong with a data directory, by who must act, each with what to do about it.

use core::fmt;
use std::io;

use super::changes::Spoilt;
use super::identity::name_of;
use super::layout::Damage;

/// Why a directory, or a snapshot in it, cannot be used. Nothing was loaded.
#[derive(Debug)]
pub enum DiskError {
    /// Operator: another process uses the directory.
    Locked {
        /// The directory.
        path: String,
    },
    /// Operator: the directory holds what no instance put there.
    Foreign {
        /// The directory.
        path: String,
        /// A file that is there.
        found: String,
    },
    /// Operator: the file that says who the instance is cannot be read as one.
    Identity {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// Operator: a snapshot is another instance's.
    OtherInstance {
        /// The file.
        path: String,
        /// Whose it is.
        found: [u8; 16],
        /// Whose directory it is in.
        expected: [u8; 16],
    },
    /// Operator: a snapshot is damaged.
    Damaged {
        /// The file.
        path: String,
        /// Where and how.
        damage: Damage,
        /// The one before it.
        previous: Option<String>,
    },
    /// Operator: the file of changes by hand is damaged.
    Changes {
        /// The file.
        path: String,
        /// Where and how.
        spoilt: Spoilt,
    },
    /// Operator: there is no snapshot before the last one.
    NoPrevious {
        /// The directory.
        path: String,
    },
    /// Operator: the log is damaged where it was on disk already.
    LogDamaged {
        /// The file.
        path: String,
        /// Byte of the file at which what is wrong begins.
        offset: u64,
        /// What was found, and what was expected.
        what: String,
    },
    /// Operator: a file of the log is gone.
    LogGone {
        /// The file.
        path: String,
        /// How one can tell.
        what: String,
    },
    /// Operator: another version of the program wrote the log.
    LogVersion {
        /// The file.
        path: String,
        /// Its version.
        found: u32,
    },
    /// Operator: the operating system refuses.
    Io {
        /// What was to be done.
        doing: &'static str,
        /// With which file or directory.
        path: String,
        /// Its reason.
        source: io::Error,
    },
}

/// What to do about a log that has lost what was acknowledged.
const REJOIN: &str = "The log has lost what others were told is on disk, so this node must not go \
                      on with it: remove the node from the cluster, move its log away, and add it \
                      again under a new number";

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked { path } => {
                write!(f, "another process uses {path}; each instance needs a directory of its own")
            }
            Self::Foreign { path, found } => write!(
                f,
                "{path} holds `{found}` but no instance; point --data at an empty directory, or \
                 bring back the file `{}` that belongs here",
                super::identity::NAME
            ),
            Self::Identity { path, what } => write!(
                f,
                "{path} is damaged: {what}; bring it back from a copy. Without it no snapshot \
                 here can be used: the seed of their keys is in it"
            ),
            Self::OtherInstance { path, found, expected } => write!(
                f,
                "{path} is of instance {}, this directory is of {}; move the file away",
                name_of(*found),
                name_of(*expected)
            ),
            Self::Damaged { path, damage, previous } => {
                write!(f, "{path} is damaged: {damage}; nothing was loaded. ")?;
                match previous {
                    Some(previous) => write!(
                        f,
                        "Start with `--restore previous` to use {previous}, which forgets what \
                         was charged since, or move the file away"
                    ),
                    None => f.write_str(
                        "There is no snapshot before it; move the file away to start with fresh \
                         counters",
                    ),
                }
            }
            Self::Changes { path, spoilt } => write!(
                f,
                "{path} is damaged: {spoilt}; nothing was loaded. Bring it back from a copy, or \
                 move it away to start without overrides, without identities, and without what \
                 was set by hand since the snapshot"
            ),
            Self::NoPrevious { path } => write!(
                f,
                "{path} holds no snapshot before the last one; start without `--restore previous`"
            ),
            Self::LogDamaged { path, offset, what } => {
                write!(f, "{path} is damaged at offset {offset}: {what}. {REJOIN}")
            }
            Self::LogGone { path, what } => write!(f, "{path} is gone: {what}. {REJOIN}"),
            Self::LogVersion { path, found } => write!(
                f,
                "{path} has format version {found}, this program reads {}; start the program that \
                 wrote it",
                super::log::VERSION
            ),
            Self::Io { doing, path, source } => write!(f, "cannot {doing} {path}: {source}"),
        }
    }
}

impl std::error::Error for DiskError {}

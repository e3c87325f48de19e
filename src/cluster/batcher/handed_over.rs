//! What nodes hand over to a leader, and its bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::cluster::entry::{Malformed, Record, Tag, Tagged, What};
use crate::cluster::origin::Asked;

pub(super) enum Item {
    Group(Tagged),
    Change(Tag, Bytes),
}

impl Item {
    pub(super) fn tag(&self) -> &Tag {
        match self {
            Self::Group(group) => &group.tag,
            Self::Change(tag, _) => tag,
        }
    }

    pub(super) fn of(tag: Tag, asked: Asked) -> Self {
        match asked {
            Asked::Group { policy, body } => {
                Self::Group(Tagged { tag, policy, refused: Vec::new(), body })
            }
            Asked::Change(change) => Self::Change(tag, change),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Group(group) => group.bytes(),
            Self::Change(_, change) => change.len() + 32,
        }
    }
}

/// What one node hands over to a leader at a time.
pub(super) struct HandedOver {
    pub(super) term: u64,
    /// The highest sequence that this node handed over in this term before; 0 if it begins anew.
    pub(super) after: u64,
    pub(super) items: Vec<Item>,
}

impl HandedOver {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64_le(self.term);
        out.put_u64_le(self.after);
        out.put_u32_le(self.items.len() as u32);
        for item in &self.items {
            match item {
                Item::Group(group) => {
                    out.put_u8(1);
                    group.encode(&mut out);
                }
                Item::Change(tag, change) => {
                    out.put_u8(2);
                    tag.encode(&mut out);
                    out.put_u32_le(change.len() as u32);
                    out.put_slice(change);
                }
            }
        }
        out.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Result<Self, Malformed> {
        if bytes.len() < 20 {
            return Err(Malformed::Short);
        }
        let (term, after, count) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u32_le());
        let mut items = Vec::new();
        for _ in 0..count {
            if bytes.is_empty() {
                return Err(Malformed::Short);
            }
            items.push(match bytes.get_u8() {
                1 => Item::Group(Tagged::decode(&mut bytes)?),
                2 => {
                    let tag = Tag::decode(&mut bytes)?;
                    let length = bytes.try_get_u32_le().map_err(|_| Malformed::Short)? as usize;
                    if bytes.len() < length {
                        return Err(Malformed::Short);
                    }
                    Item::Change(tag, bytes.split_to(length))
                }
                other => {
                    let found = other.into();
                    return Err(Malformed::Field { field: "the kind of a request", found });
                }
            });
        }
        Ok(Self { term, after, items })
    }
}

impl Record {
    pub(super) fn into_items(self) -> Vec<Item> {
        match self.what {
            What::Groups(groups) => groups.into_iter().map(Item::Group).collect(),
            What::Change { tag, change } => vec![Item::Change(tag, change)],
            What::Fence | What::Checksum => Vec::new(),
        }
    }
}

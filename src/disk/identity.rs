//! Who an instance is: its id, and the seed that all keys, spaces and ids of permits derive from.
//! Both are made once and written once; a directory without them is nobody's.

use core::fmt;

use crate::engine::time::UtcTime;

/// The file they are in.
pub(super) const NAME: &str = "instance";

const MAGIC: [u8; 8] = *b"TKINST\r\n";
/// Of the file, and of how keys derive from its seed: what is beside the file has such keys.
const VERSION: u32 = 2;
const BYTES: usize = 64;

/// An instance's id and seed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Names the instance; another one has other counters.
    pub id: [u8; 16],
    /// The secret of its keys.
    pub seed: [u8; 16],
    /// When it was made.
    pub made_at: UtcTime,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", name_of(self.id))
    }
}

/// An id as people see it.
pub fn name_of(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

impl Identity {
    /// The file's bytes.
    pub fn encode(&self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.id);
        out[32..48].copy_from_slice(&self.seed);
        out[48..56].copy_from_slice(&self.made_at.as_nanos().to_le_bytes());
        let checksum = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Ok(bytes) = <&[u8; BYTES]>::try_from(bytes) else {
            return Err(format!("it has {} bytes, expected {BYTES}", bytes.len()));
        };
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte]));
        let half = |at: usize| core::array::from_fn(|byte| bytes[at + byte]);
        if bytes[..8] != MAGIC {
            return Err("it is no instance's".to_owned());
        }
        if word(8) != VERSION {
            return Err(format!("format version is {}, this program reads {VERSION}", word(8)));
        }
        let checksum = crc32c::crc32c(&bytes[..60]);
        if word(60) != checksum {
            return Err(format!("checksum is {:#010x}, expected {checksum:#010x}", word(60)));
        }
        let made_at =
            UtcTime::from_nanos(u64::from_le_bytes(core::array::from_fn(|byte| bytes[48 + byte])));
        Ok(Self { id: half(16), seed: half(32), made_at })
    }
}

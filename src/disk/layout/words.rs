//! Numbers as bytes, little-endian, and back.

use crate::engine::key::Key;

pub(in crate::disk) fn put_words(out: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// What is left to be read. Reading past the end gives zeroes: lengths are compared before.
pub(in crate::disk) struct Read<'a>(pub(in crate::disk) &'a [u8]);

impl<'a> Read<'a> {
    #[inline]
    pub(in crate::disk) fn array<const N: usize>(&mut self) -> [u8; N] {
        let Some((array, rest)) = self.0.split_first_chunk::<N>() else {
            self.0 = &[];
            return [0; N];
        };
        self.0 = rest;
        *array
    }

    pub(in crate::disk) fn u8(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub(in crate::disk) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(in crate::disk) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    #[inline]
    pub(in crate::disk) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub(in crate::disk) fn key(&mut self) -> Key {
        Key::from_words([self.u64(), self.u64()])
    }
}

pub(in crate::disk) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    Read(&bytes[at..]).u32()
}

pub(in crate::disk) fn unequal(expected: u32, found: u32) -> String {
    format!("checksum is {found:#010x}, expected {expected:#010x}")
}

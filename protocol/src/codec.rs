//! Reading and writing of single fields: the only file that takes bytes apart.
//!
//! A [`Reader`] walks a slice and never past its end; a [`Writer`] appends one message to a
//! vector that the caller reuses. A [`List`] or [`Sparse`] is the same list either as values, on
//! its way out, or as bytes that were checked once, on its way in; so no list is ever allocated.

use alloc::vec::Vec;
use core::fmt;

use crate::error::{DecodeError, EncodeError};
use crate::header::{Envelope, Flags, Op};
use crate::limits::NAME_BYTES_MAX;
use crate::status::Code;

/// Walks the bytes of one body. What makes errors takes it by value, so that the good path can keep
/// it in registers.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    /// Offset in the frame of the first byte after `rest`.
    end: u32,
}

macro_rules! read_number {
    ($($(#[$meta:meta])* $name:ident $repr:ident,)+) => {
        $($(#[$meta])*
        ///
        /// # Errors
        /// `BAD_FRAME` if the bytes end before the field does.
        #[inline]
        pub fn $name(&mut self, field: &'static str) -> Result<$repr, DecodeError> {
            match self.rest.split_first_chunk() {
                Some((head, rest)) => {
                    self.rest = rest;
                    Ok($repr::from_le_bytes(*head))
                }
                None => Err(self.truncated(field, size_of::<$repr>())),
            }
        })+
    };
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which begin at byte `offset` of their frame.
    #[inline]
    pub fn new(bytes: &'a [u8], offset: u32) -> Self {
        Self { rest: bytes, end: offset.wrapping_add(bytes.len() as u32) }
    }

    /// Where in the frame the next field begins.
    #[inline]
    pub fn offset(&self) -> u32 {
        self.end.wrapping_sub(self.rest.len() as u32)
    }

    /// What has not been read yet.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    read_number! {
        /// The next byte.
        u8 u8,
        /// The next two bytes as a number.
        u16 u16,
        /// The next four bytes as a number.
        u32 u32,
        /// The next eight bytes as a number.
        u64 u64,
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// `BAD_FRAME` if there are fewer.
    #[inline]
    pub fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(count) {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(head)
            }
            None => Err(self.truncated(field, count)),
        }
    }

    /// The next `N` bytes, as they are.
    ///
    /// # Errors
    /// `BAD_FRAME` if there are fewer.
    #[inline]
    pub fn bytes<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk() {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(*head)
            }
            None => Err(self.truncated(field, N)),
        }
    }

    /// Bytes behind a two-byte length of at most `max`.
    ///
    /// # Errors
    /// `TOO_LARGE` above `max`, `BAD_FRAME` if the bytes end before the field does.
    #[inline]
    pub fn bytes16(&mut self, field: &'static str, max: usize) -> Result<&'a [u8], DecodeError> {
        self.try_bytes16(max).ok_or_else(|| self.why_not_bytes16(field, max))
    }

    /// As [`bytes16`](Self::bytes16), and nothing is read if it fails: what the hot path walks
    /// with, since it makes no error.
    #[inline(always)]
    fn try_bytes16(&mut self, max: usize) -> Option<&'a [u8]> {
        let (length, rest) = self.rest.split_first_chunk()?;
        let length = usize::from(u16::from_le_bytes(*length));
        if length > max {
            return None;
        }
        let (bytes, rest) = rest.split_at_checked(length)?;
        self.rest = rest;
        Some(bytes)
    }

    #[cold]
    #[inline(never)]
    fn why_not_bytes16(self, field: &'static str, max: usize) -> DecodeError {
        let mut walk = self;
        match walk.u16(field) {
            Err(error) => error,
            Ok(length) if usize::from(length) > max => {
                self.out_of_range(Code::TooLarge, field, u64::from(length), 0, max as u64)
            }
            Ok(length) => walk.truncated(field, usize::from(length)),
        }
    }

    /// UTF-8 behind a two-byte length of at most `max`.
    ///
    /// # Errors
    /// As [`bytes16`](Self::bytes16), and `BAD_FRAME` if it is not UTF-8.
    pub fn text16(&mut self, field: &'static str, max: usize) -> Result<&'a str, DecodeError> {
        let at = *self;
        let bytes = self.bytes16(field, max)?;
        core::str::from_utf8(bytes).map_err(|error| at.not_text(field, error.valid_up_to()))
    }

    /// A name: UTF-8 behind a one-byte length of at most [`NAME_BYTES_MAX`]; may be empty.
    ///
    /// # Errors
    /// `TOO_LARGE`, or `BAD_FRAME` if it is cut off or not UTF-8.
    pub fn name(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let at = *self;
        let length = usize::from(self.u8(field)?);
        if length > NAME_BYTES_MAX {
            let max = NAME_BYTES_MAX as u64;
            return Err(at.out_of_range(Code::TooLarge, field, length as u64, 0, max));
        }
        let bytes = self.take(length, field)?;
        core::str::from_utf8(bytes).map_err(|error| at.not_text(field, error.valid_up_to()))
    }

    /// A list of `count` elements, each checked here, so that walking it cannot fail.
    ///
    /// # Errors
    /// The first element's that is malformed.
    pub fn list<T: Element<'a>>(&mut self, count: usize) -> Result<List<'a, T>, DecodeError> {
        let begin = *self;
        for _ in 0..count {
            T::read(self)?;
        }
        Ok(List(Repr::Wire { count, reader: begin }))
    }

    /// Values behind two-byte lengths, one for each bit of `presence`, each checked here.
    ///
    /// # Errors
    /// `TOO_LARGE` for a value above `max`, `BAD_FRAME` if the bytes end too early.
    #[inline]
    pub fn sparse(
        &mut self,
        presence: u64,
        field: &'static str,
        max: usize,
    ) -> Result<Sparse<'a>, DecodeError> {
        let begin = *self;
        let mut left = presence;
        while left != 0 {
            left &= left - 1;
            if self.try_bytes16(max).is_none() {
                return Err(self.why_not_bytes16(field, max));
            }
        }
        Ok(Sparse(SparseRepr::Wire { presence, reader: begin }))
    }

    /// The end of a request: there must be nothing left.
    ///
    /// # Errors
    /// `BAD_FRAME` with the count of bytes left over.
    #[inline]
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.out_of_range(Code::BadFrame, "bytes after body", self.rest.len() as u64, 0, 0))
        }
    }

    /// The error that the bytes end before a field of `needed` bytes does.
    #[cold]
    #[inline(never)]
    pub fn truncated(self, field: &'static str, needed: usize) -> DecodeError {
        let needed = needed as u64;
        self.out_of_range(Code::BadFrame, field, self.rest.len() as u64, needed, needed)
    }

    /// The error that a number found here is not within `min` and `max`.
    #[cold]
    #[inline(never)]
    pub fn out_of_range(
        self,
        code: Code,
        field: &'static str,
        found: u64,
        min: u64,
        max: u64,
    ) -> DecodeError {
        DecodeError { code, field, offset: self.offset(), found, min, max }
    }

    /// The error that a number found here is in no table.
    #[cold]
    #[inline(never)]
    pub fn unknown(self, field: &'static str, found: u64) -> DecodeError {
        self.out_of_range(Code::BadFrame, field, found, 1, 0)
    }

    #[cold]
    #[inline(never)]
    fn not_text(self, field: &'static str, valid_up_to: usize) -> DecodeError {
        self.out_of_range(Code::BadFrame, field, valid_up_to as u64, 1, 0)
    }
}

/// One member of a [`List`].
pub trait Element<'a>: Copy {
    /// Takes one element from the bytes.
    ///
    /// # Errors
    /// If the bytes hold none.
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError>;

    /// Appends this element.
    fn write(&self, writer: &mut Writer<'_>);
}

impl<'a> Element<'a> for u64 {
    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        reader.u64("number")
    }

    #[inline]
    fn write(&self, writer: &mut Writer<'_>) {
        writer.u64(*self);
    }
}

/// A name of a meter or a header.
impl<'a> Element<'a> for &'a str {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        reader.name("name")
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.name("name", self);
    }
}

/// A list of elements: values to be written, or bytes that were checked when they were read.
#[derive(Clone, Copy)]
pub struct List<'a, T>(Repr<'a, T>);

#[derive(Clone, Copy)]
enum Repr<'a, T> {
    Values(&'a [T]),
    Wire { count: usize, reader: Reader<'a> },
}

impl<'a, T: Element<'a>> List<'a, T> {
    /// No elements.
    pub const EMPTY: Self = Self(Repr::Values(&[]));

    /// How many elements there are.
    #[inline]
    pub fn len(&self) -> usize {
        match self.0 {
            Repr::Values(values) => values.len(),
            Repr::Wire { count, .. } => count,
        }
    }

    /// Has no element.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in order.
    #[inline]
    pub fn iter(&self) -> ListIter<'a, T> {
        ListIter(self.0)
    }

    /// Appends every element.
    pub fn write(&self, writer: &mut Writer<'_>) {
        for element in self.iter() {
            element.write(writer);
        }
    }
}

impl<'a, T> From<&'a [T]> for List<'a, T> {
    fn from(values: &'a [T]) -> Self {
        Self(Repr::Values(values))
    }
}

impl<'a, T, const N: usize> From<&'a [T; N]> for List<'a, T> {
    fn from(values: &'a [T; N]) -> Self {
        Self(Repr::Values(values))
    }
}

impl<'a, T: Element<'a> + PartialEq> PartialEq for List<'a, T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'a, T: Element<'a> + fmt::Debug> fmt::Debug for List<'a, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a, T: Element<'a>> IntoIterator for List<'a, T> {
    type Item = T;
    type IntoIter = ListIter<'a, T>;

    #[inline]
    fn into_iter(self) -> ListIter<'a, T> {
        self.iter()
    }
}

/// The elements of a [`List`] in order.
#[derive(Clone)]
pub struct ListIter<'a, T>(Repr<'a, T>);

impl<'a, T: Element<'a>> Iterator for ListIter<'a, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        match &mut self.0 {
            Repr::Values(values) => {
                let (first, rest) = values.split_first()?;
                *values = rest;
                Some(*first)
            }
            Repr::Wire { count, reader } => {
                *count = count.checked_sub(1)?;
                T::read(reader).ok()
            }
        }
    }
}

/// Byte strings at some of the indexes of a known list of names: a slot's value, a header's.
#[derive(Clone, Copy)]
pub struct Sparse<'a>(SparseRepr<'a>);

#[derive(Clone, Copy)]
enum SparseRepr<'a> {
    Values(&'a [Option<&'a [u8]>]),
    Wire { presence: u64, reader: Reader<'a> },
}

impl<'a> Sparse<'a> {
    /// No value at all.
    pub const EMPTY: Self = Self(SparseRepr::Values(&[]));

    /// Values as they came, if those that `presence` tells of fill `bytes` and none is above
    /// `max`. Made for the hot path: it keeps nothing in memory but where it is.
    #[inline(always)]
    pub(crate) fn whole(presence: u64, bytes: &'a [u8], max: usize) -> Option<Self> {
        let (mut left, mut rest) = (presence, bytes);
        while left != 0 {
            left &= left - 1;
            let (length, behind) = rest.split_first_chunk()?;
            let length = usize::from(u16::from_le_bytes(*length));
            if length > max {
                return None;
            }
            rest = behind.get(length..)?;
        }
        if !rest.is_empty() {
            return None;
        }
        Some(Self(SparseRepr::Wire { presence, reader: Reader::new(bytes, 0) }))
    }

    /// A bit for each index that has a value. Indexes above 63 have none.
    #[inline]
    pub fn presence(&self) -> u64 {
        match self.0 {
            SparseRepr::Values(values) => values
                .iter()
                .take(64)
                .enumerate()
                .fold(0, |bits, (index, value)| bits | u64::from(value.is_some()) << index),
            SparseRepr::Wire { presence, .. } => presence,
        }
    }

    /// Index and value of each that is present, in order.
    #[inline]
    pub fn iter(&self) -> SparseIter<'a> {
        SparseIter { left: self.presence(), repr: self.0 }
    }

    /// The value at `index`, if present. Walks the list, but for the first value there is.
    #[inline]
    pub fn value(&self, index: usize) -> Option<&'a [u8]> {
        if let SparseRepr::Wire { presence, mut reader } = self.0
            && presence.trailing_zeros() as usize == index
        {
            let length = usize::from(reader.u16("value").ok()?);
            return reader.take(length, "value").ok();
        }
        self.iter().find(|(at, _)| *at == index).map(|(_, value)| value)
    }

    /// Appends the present values behind two-byte lengths.
    pub fn write(&self, writer: &mut Writer<'_>, field: &'static str, max: usize) {
        for (_, value) in self.iter() {
            writer.bytes16(field, value, max);
        }
    }
}

impl<'a> From<&'a [Option<&'a [u8]>]> for Sparse<'a> {
    fn from(values: &'a [Option<&'a [u8]>]) -> Self {
        Self(SparseRepr::Values(values))
    }
}

impl PartialEq for Sparse<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Sparse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Index and value of each present member of a [`Sparse`], in order.
#[derive(Clone)]
pub struct SparseIter<'a> {
    left: u64,
    repr: SparseRepr<'a>,
}

impl<'a> Iterator for SparseIter<'a> {
    type Item = (usize, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let index = self.left.trailing_zeros() as usize;
        self.left &= self.left - 1;
        let value = match &mut self.repr {
            SparseRepr::Values(values) => (*values.get(index)?)?,
            SparseRepr::Wire { reader, .. } => reader.try_bytes16(usize::MAX)?,
        };
        Some((index, value))
    }
}

/// Appends one message to a vector. The first field that does not fit makes
/// [`finish`](Self::finish) fail and leaves the vector as it was.
#[derive(Debug)]
pub struct Writer<'b> {
    out: &'b mut Vec<u8>,
    start: usize,
    error: Option<EncodeError>,
}

impl<'b> Writer<'b> {
    /// Begins a message with its header; the length is filled in at the end.
    #[inline]
    pub fn begin(out: &'b mut Vec<u8>, envelope: Envelope, op: Op, flags: Flags) -> Self {
        let start = out.len();
        let mut header = [0; 16];
        header[4..6].copy_from_slice(&op.0.to_le_bytes());
        header[6..8].copy_from_slice(&flags.0.to_le_bytes());
        if let Envelope::Call(call) = envelope {
            header[8..16].copy_from_slice(&call.to_le_bytes());
        }
        out.extend_from_slice(&header[..envelope.header_bytes()]);
        Self { out, start, error: None }
    }

    /// Begins bare fields, without a header.
    pub fn bare(out: &'b mut Vec<u8>) -> Self {
        let start = out.len();
        Self { out, start, error: None }
    }

    /// Appends a byte.
    #[inline]
    pub fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    /// Appends a number of two bytes.
    #[inline]
    pub fn u16(&mut self, value: u16) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends a number of four bytes.
    #[inline]
    pub fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends a number of eight bytes.
    #[inline]
    pub fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends bytes as they are.
    #[inline]
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Appends a two-byte length and the bytes.
    #[inline]
    pub fn bytes16(&mut self, field: &'static str, bytes: &[u8], max: usize) {
        if self.check(field, bytes.len() as u64, max.min(0xFFFF) as u64) {
            self.u16(bytes.len() as u16);
            self.raw(bytes);
        }
    }

    /// Appends a one-byte length and the name.
    pub fn name(&mut self, field: &'static str, name: &str) {
        if self.check(field, name.len() as u64, NAME_BYTES_MAX as u64) {
            self.u8(name.len() as u8);
            self.raw(name.as_bytes());
        }
    }

    /// Records that `found` is above `max`, if it is; the message then fails. True if all is well.
    #[inline]
    pub fn check(&mut self, field: &'static str, found: u64, max: u64) -> bool {
        let fits = found <= max;
        if !fits && self.error.is_none() {
            self.error = Some(EncodeError { field, found, max });
        }
        fits
    }

    /// Ends a message that began with a header, of at most `max` bytes.
    ///
    /// # Errors
    /// The first field that did not fit, or the length; then nothing was appended.
    #[inline]
    pub fn finish(mut self, max: usize) -> Result<(), EncodeError> {
        let length = self.out.len() - self.start;
        self.check("length", length as u64, max as u64);
        match self.error {
            None => {
                patch_u32(self.out, self.start, length as u32);
                Ok(())
            }
            Some(error) => self.undo(error),
        }
    }

    /// Ends bare fields.
    ///
    /// # Errors
    /// The first field that did not fit; then nothing was appended.
    pub fn finish_bare(self) -> Result<(), EncodeError> {
        match self.error {
            None => Ok(()),
            Some(error) => self.undo(error),
        }
    }

    #[cold]
    fn undo(self, error: EncodeError) -> Result<(), EncodeError> {
        self.out.truncate(self.start);
        Err(error)
    }
}

/// Puts a number of four bytes over those at `at`.
#[inline]
pub(crate) fn patch_u32(out: &mut [u8], at: usize, value: u32) {
    if let Some(bytes) = out.get_mut(at..at + 4) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}

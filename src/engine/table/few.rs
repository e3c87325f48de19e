//! Up to a few things of a check, on the stack, which cost nothing until they are there.

use core::mem::MaybeUninit;

/// At most `N` of them, in order.
pub(super) struct Few<T: Copy, const N: usize> {
    things: [MaybeUninit<T>; N],
    len: usize,
}

impl<T: Copy, const N: usize> Few<T, N> {
    #[inline]
    pub(super) const fn new() -> Self {
        Self { things: [const { MaybeUninit::uninit() }; N], len: 0 }
    }

    /// Adds one; `None` if there are `N` already.
    #[inline]
    pub(super) fn push(&mut self, thing: T) -> Option<()> {
        self.things.get_mut(self.len)?.write(thing);
        self.len += 1;
        Some(())
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[T] {
        // Safety: `push` wrote the first `len` of them, which are `N` at most.
        unsafe { core::slice::from_raw_parts(self.things.as_ptr().cast(), self.len) }
    }
}

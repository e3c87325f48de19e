//! Every maximum of the protocol, named once, with its number.
//!
//! `SPEC.md` prints the same names and numbers. A server may run with smaller ones and says so in
//! its answer to HELLO ([`Maxima`](crate::response::Maxima)); a codec never accepts larger ones.

/// Lowest protocol version that this crate speaks.
pub const VERSION_MIN: u16 = 1;
/// Highest protocol version that this crate speaks.
pub const VERSION_MAX: u16 = 1;

/// Bytes of a frame's header: length, op, flags, call id.
pub const HEADER_BYTES: usize = 16;
/// Bytes of a batch item's header: a frame's header without the call id.
pub const ITEM_HEADER_BYTES: usize = 8;
/// Bytes of the terse part that opens every answer to a check.
pub const TERSE_BYTES: usize = 40;
/// Bytes of the permit block that closes the answer to a check that was granted one.
pub const PERMIT_BYTES: usize = 24;

/// Longest frame before the handshake is done, header included: 4 KiB.
pub const HANDSHAKE_FRAME_BYTES_MAX: usize = 4 * 1024;
/// Longest frame from client to server after the handshake, header included: 64 KiB.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Longest frame from server to client, header included: 256 KiB.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Items in one BATCH.
pub const BATCH_ITEMS_MAX: usize = 1_024;
/// Requests (frames; a BATCH is one) of one connection that wait for their answers.
pub const IN_FLIGHT_MAX: usize = 256;
/// Bytes of answers that wait for a slow reader before the server stops reading: 256 KiB.
pub const WRITE_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Connections to one server.
pub const CONNECTIONS_MAX: usize = 10_000;

/// Milliseconds from accept to a whole HELLO.
pub const HANDSHAKE_MILLIS_MAX: u64 = 5_000;
/// Milliseconds from the first byte of a frame to its last.
pub const FRAME_MILLIS_MAX: u64 = 10_000;
/// Milliseconds without progress while answers wait for the client to read them.
pub const STALL_MILLIS_MAX: u64 = 10_000;
/// Milliseconds without a frame while nothing is in flight.
pub const IDLE_MILLIS_MAX: u64 = 600_000;
/// Protocol errors on one connection before the server closes it.
pub const PROTOCOL_ERRORS_MAX: usize = 16;

/// Slots of a handle; a bit of the presence bitmap each.
pub const SLOTS_MAX: usize = 32;
/// Bytes of one slot's value.
pub const VALUE_BYTES_MAX: usize = 1_024;
/// Limits in one check with inline limits.
pub const INLINE_LIMITS_MAX: usize = 16;
/// Bytes of an inline limit's key.
pub const INLINE_KEY_BYTES_MAX: usize = 512;
/// Bytes of a name: an API, class, slot, meter, limit, window, header, client, server, principal.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of what a client shows to prove who it is.
pub const CREDENTIAL_BYTES_MAX: usize = 2_048;
/// Meters of a handle.
pub const METERS_MAX: usize = 16;
/// Limits of a handle, over all its routes.
pub const HANDLE_LIMITS_MAX: usize = 512;
/// Limits that apply to one check, and so the entries of a numbers block.
pub const CHECK_LIMITS_MAX: usize = 64;
/// Response headers of a handle.
pub const HEADERS_MAX: usize = 64;
/// Headers of a denial whose values never change.
pub const STATIC_HEADERS_MAX: usize = 16;
/// Bytes of one response header's value, and of a content type.
pub const HEADER_VALUE_BYTES_MAX: usize = 1_024;
/// Bytes of a rendered body: 64 KiB.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an error's or a GOAWAY's message.
pub const MESSAGE_BYTES_MAX: usize = 256;
/// Bytes of a found value that an error repeats; longer ones are cut.
pub const FOUND_BYTES_MAX: usize = 64;
/// Bytes that a PING carries and its answer returns.
pub const PING_BYTES_MAX: usize = 64;

/// Permits of one connection that are given back when it closes.
pub const TIED_PERMITS_MAX: usize = 1_024;
/// Sequences of a session that the server remembers, the highest it has seen among them.
pub const SESSION_WINDOW_MAX: usize = 1_024;
/// Sessions that one server remembers.
pub const SESSIONS_MAX: usize = 10_000;

/// Highest cost of a check, highest amount of SET, and furthest move of ADJUST: 2^53.
pub const COST_MAX: u64 = 1 << 53;
/// Lowest units per window, and lowest burst.
pub const UNITS_MIN: u64 = 1;
/// Highest units per window, and highest burst: 2^53.
pub const UNITS_MAX: u64 = 1 << 53;
/// Shortest window, and shortest lease of a permit: 1 ms.
pub const WINDOW_NANOS_MIN: u64 = 1_000_000;
/// Longest window, and longest lease of a permit: 366 days.
pub const WINDOW_NANOS_MAX: u64 = 366 * 86_400 * 1_000_000_000;

// How the maxima relate. Each line is a promise that some other file leans on.
const _: () = {
    assert!(HANDSHAKE_FRAME_BYTES_MAX <= FRAME_BYTES_MAX);
    assert!(FRAME_BYTES_MAX <= ANSWER_BYTES_MAX, "a stale handle's answer holds a PREPARE answer");
    // One answer fits an empty write buffer, so a connection holds at most twice that.
    assert!(ANSWER_BYTES_MAX <= WRITE_BUFFER_BYTES_MAX);
    // A HELLO with the longest names and credential fits before the handshake.
    assert!(
        HEADER_BYTES + 8 + (1 + NAME_BYTES_MAX) + 1 + (2 + CREDENTIAL_BYTES_MAX)
            <= HANDSHAKE_FRAME_BYTES_MAX
    );
    // Every item of a full batch gets at least a terse answer with its permit, whatever was asked
    // for: a permit whose id is lost cannot be given back.
    assert!(
        HEADER_BYTES + 4 + BATCH_ITEMS_MAX * (ITEM_HEADER_BYTES + TERSE_BYTES + PERMIT_BYTES)
            <= ANSWER_BYTES_MAX
    );
    // The largest single check, by handle or inline, fits a frame, also as a batch's only item.
    assert!(
        HEADER_BYTES
            + 4
            + ITEM_HEADER_BYTES
            + 32
            + METERS_MAX * 8
            + SLOTS_MAX * (2 + VALUE_BYTES_MAX)
            <= FRAME_BYTES_MAX
    );
    assert!(
        HEADER_BYTES + 4 + ITEM_HEADER_BYTES + 16 + INLINE_LIMITS_MAX * (36 + INLINE_KEY_BYTES_MAX)
            <= FRAME_BYTES_MAX
    );
    // The largest single answer fits: numbers, header values, content type, body and permit.
    assert!(
        HEADER_BYTES
            + TERSE_BYTES
            + 10
            + CHECK_LIMITS_MAX * 48
            + 10
            + (HEADERS_MAX + 1) * (2 + HEADER_VALUE_BYTES_MAX)
            + 4
            + BODY_BYTES_MAX
            + PERMIT_BYTES
            <= ANSWER_BYTES_MAX
    );
    // So does the largest PREPARE answer inside an error.
    assert!(
        HEADER_BYTES
            + 24
            + MESSAGE_BYTES_MAX
            + 32
            + 2 * (1 + NAME_BYTES_MAX)
            + SLOTS_MAX * (3 + NAME_BYTES_MAX)
            + METERS_MAX * (1 + NAME_BYTES_MAX)
            + HANDLE_LIMITS_MAX * (12 + 2 * NAME_BYTES_MAX)
            + HEADERS_MAX * (1 + NAME_BYTES_MAX)
            + STATIC_HEADERS_MAX * (3 + NAME_BYTES_MAX + HEADER_VALUE_BYTES_MAX)
            <= ANSWER_BYTES_MAX
    );
    assert!(SLOTS_MAX <= u32::BITS as usize, "the presence bitmap of values is 32 bits");
    assert!(HEADERS_MAX <= u64::BITS as usize, "the presence bitmap of headers is 64 bits");
    assert!(NAME_BYTES_MAX <= u8::MAX as usize);
    assert!(METERS_MAX <= u8::MAX as usize);
    assert!(VALUE_BYTES_MAX <= u16::MAX as usize);
    assert!(HANDLE_LIMITS_MAX < u16::MAX as usize, "0xFFFF stands for no limit");
    assert!(CHECK_LIMITS_MAX <= HANDLE_LIMITS_MAX && INLINE_LIMITS_MAX <= CHECK_LIMITS_MAX);
    assert!(COST_MAX <= i64::MAX as u64, "ADJUST moves by a signed amount");
    assert!(COST_MAX <= UNITS_MAX, "a cost that no limit could ever hold is not worth carrying");
};

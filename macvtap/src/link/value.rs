//! Values of the kernel's attributes.

/// A number of four bytes.
pub(crate) fn word(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// A text, which ends at its first zero.
pub(crate) fn text(value: &[u8]) -> Option<String> {
    String::from_utf8(until_zero(value).to_vec()).ok()
}

/// The same, with a substitute for what is not text.
pub(crate) fn lossy(value: &[u8]) -> String {
    String::from_utf8_lossy(until_zero(value)).into_owned()
}

/// What stands before the first zero.
pub(crate) fn until_zero(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == 0).next().unwrap_or_default()
}

//! The 132 bytes that VERIFY sends, as far as the firmware needs them before it has the blob.

use ncs2::wire::VERIFY_HEADER_LEN;

const ELF: [u8; 4] = [0x7f, b'e', b'l', b'f'];
const MAGIC: u32 = 9709;

/// Sizes from the head of a blob. All in bytes but the counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct BlobHeader {
    pub(crate) file_bytes: u32,
    pub(crate) stages: u32,
    pub(crate) input_bytes: u32,
    pub(crate) output_bytes: u32,
    pub(crate) batch: u32,
    pub(crate) bss_bytes: u32,
    pub(crate) cmx_slices: u32,
    pub(crate) shaves: u32,
}

impl BlobHeader {
    /// `None` for anything that is no blob of version 6.
    pub(crate) fn parse(bytes: &[u8]) -> Option<BlobHeader> {
        let head = bytes.get(..VERIFY_HEADER_LEN)?;
        let word = |at: usize| {
            let raw: [u8; 4] = head[at..at + 4].try_into().unwrap_or_default();
            u32::from_le_bytes(raw)
        };
        let header = BlobHeader {
            file_bytes: word(56),
            stages: word(76),
            input_bytes: word(80),
            output_bytes: word(84),
            batch: word(88),
            bss_bytes: word(92),
            cmx_slices: word(96),
            shaves: word(100),
        };
        let known = head[..4] == ELF && word(52) == MAGIC && word(60) == 6;
        (known && header.input_bytes > 0 && header.output_bytes > 0).then_some(header)
    }
}

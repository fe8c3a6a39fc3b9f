//! Boot framing: the two firmware patches and the chunking of the image.
//!
//! The boot ROM executes the file as a list of commands. The host adds two before it sends the image; by the vendor's
//! source each is "write one byte": `98`, the address in 32 bits, the byte. The rest of the format is not understood.

/// The boot ROM is fed in transfers of this size where bcdUSB is 2.00 or higher.
pub const BOOT_CHUNK_BYTES: usize = 1 << 20;
/// The size of these transfers on a full-speed port (bcdUSB below 2.00).
pub const BOOT_CHUNK_BYTES_FULL_SPEED: usize = 64;
/// Bytes that each patch adds.
const PATCH_LEN: usize = 6;

/// How the file ends: the jump into the firmware. The watchdog switch goes before its first byte, which is also the
/// last `0xa4` of the file, the vendor's way to find it.
const JUMP: [u8; 8] = [0xa4, 0x00, 0x00, 0xd0, 0x80, 0x00, 0x00, 0x00];
/// The call that sets up the DRAM; its first occurrence counts. OpenVINO 2021.4.0 had `78` in place of `d0`.
const DDR_CALL: [u8; 5] = [0xba, 0xd0, 0xe9, 0x00, 0x70];
/// Write to 0x8020_0000, the watchdog switch; its byte follows.
const STORE_WATCHDOG: [u8; PATCH_LEN - 1] = [0x98, 0x00, 0x00, 0x20, 0x80];
/// Write to 0x7020_0c00, the DRAM type; its byte follows.
const STORE_DDR: [u8; PATCH_LEN - 1] = [0x98, 0x00, 0x0c, 0x20, 0x70];

/// Which DRAM the stick has (vendor: `MYRIAD_DDR_TYPE`). A retail stick is booted with [`DdrType::Auto`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum DdrType {
    /// `MYRIAD_DDR_AUTO`: the firmware finds out.
    #[default]
    Auto,
    /// `MYRIAD_DDR_MICRON_2GB`
    Micron2Gb,
    /// `MYRIAD_DDR_SAMSUNG_2GB`
    Samsung2Gb,
    /// `MYRIAD_DDR_HYNIX_2GB`
    Hynix2Gb,
    /// `MYRIAD_DDR_MICRON_1GB`
    Micron1Gb,
}

impl DdrType {
    /// Every type, in the order of its number.
    pub const ALL: [DdrType; 5] =
        [DdrType::Auto, DdrType::Micron2Gb, DdrType::Samsung2Gb, DdrType::Hynix2Gb, DdrType::Micron1Gb];

    /// The byte that is patched into the image, 0 to 4.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The type of that number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// What is patched into the image before it is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct FirmwarePatches {
    /// Arms the firmware's watchdog: without a ping it resets itself (when is unverified).
    pub watchdog: bool,
    /// DRAM type.
    pub ddr: DdrType,
}

impl FirmwarePatches {
    /// Reads the patches out of an image that was sent, as a virtual stick does: each is looked for directly before
    /// the place where [`patch_firmware`] puts it. `None` for an unpatched image, for one with a single patch and for
    /// values that no host writes.
    pub fn read(image: &[u8]) -> Option<Self> {
        let data = |place: usize, store: [u8; PATCH_LEN - 1]| {
            let (&data, before) = image.get(place.checked_sub(PATCH_LEN)?..place)?.split_last()?;
            (before == store).then_some(data)
        };
        let watchdog = match data(jump_place(image).ok()?, STORE_WATCHDOG)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let ddr = DdrType::from_code(data(ddr_call_place(image).ok()?, STORE_DDR)?)?;
        Some(FirmwarePatches { watchdog, ddr })
    }
}

/// A firmware file that cannot be patched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BootError {
    /// The file does not end with the jump command.
    #[error("firmware does not end with a jump (a4 00 00 d0 80 00 00 00): no place for the watchdog patch")]
    NoJump,
    /// The call that the memory-type patch goes before is missing.
    #[error("firmware lacks the call (ba d0 e9 00 70): no place for the memory-type patch")]
    NoCall,
}

fn jump_place(image: &[u8]) -> Result<usize, BootError> {
    if image.ends_with(&JUMP) { Ok(image.len() - JUMP.len()) } else { Err(BootError::NoJump) }
}

fn ddr_call_place(image: &[u8]) -> Result<usize, BootError> {
    image.windows(DDR_CALL.len()).position(|window| window == DDR_CALL).ok_or(BootError::NoCall)
}

/// Inserts both patches; the result is 12 bytes longer.
///
/// # Errors
/// A file with no place for a patch is not the firmware that this protocol was learnt from, so nothing is patched: it
/// is an error, of the missing jump first. The vendor's client only warns, adds the patch that it can and boots. A
/// caller who wants that sends [`patch_watchdog`] or [`patch_ddr`] of the image, or the image as it is; without the
/// watchdog patch nobody knows whether the firmware arms its watchdog (unverified), so keep pinging.
pub fn patch_firmware(image: &[u8], patches: FirmwarePatches) -> Result<Vec<u8>, BootError> {
    let jump = jump_place(image)?;
    let call = ddr_call_place(image)?;
    // The call ends before the jump begins: the file ends with the jump, and no byte string is both.
    let mut out = Vec::with_capacity(image.len() + 2 * PATCH_LEN);
    out.extend_from_slice(&image[..call]);
    push_patch(&mut out, STORE_DDR, patches.ddr.code());
    out.extend_from_slice(&image[call..jump]);
    push_patch(&mut out, STORE_WATCHDOG, u8::from(patches.watchdog));
    out.extend_from_slice(&image[jump..]);
    Ok(out)
}

/// Inserts the watchdog switch alone; the result is 6 bytes longer.
///
/// # Errors
/// [`BootError::NoJump`].
pub fn patch_watchdog(image: &[u8], watchdog: bool) -> Result<Vec<u8>, BootError> {
    Ok(insert(image, jump_place(image)?, STORE_WATCHDOG, u8::from(watchdog)))
}

/// Inserts the memory type alone; the result is 6 bytes longer.
///
/// # Errors
/// [`BootError::NoCall`].
pub fn patch_ddr(image: &[u8], ddr: DdrType) -> Result<Vec<u8>, BootError> {
    Ok(insert(image, ddr_call_place(image)?, STORE_DDR, ddr.code()))
}

fn insert(image: &[u8], place: usize, store: [u8; PATCH_LEN - 1], data: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(image.len() + PATCH_LEN);
    out.extend_from_slice(&image[..place]);
    push_patch(&mut out, store, data);
    out.extend_from_slice(&image[place..]);
    out
}

fn push_patch(out: &mut Vec<u8>, store: [u8; PATCH_LEN - 1], data: u8) {
    out.extend_from_slice(&store);
    out.push(data);
}

/// Bytes of each boot transfer but the last, for a device whose descriptor says `bcd_usb` (0x0200 is USB 2.00).
pub fn boot_chunk_bytes(bcd_usb: u16) -> usize {
    if bcd_usb < 0x0200 { BOOT_CHUNK_BYTES_FULL_SPEED } else { BOOT_CHUNK_BYTES }
}

/// Cuts an image into the transfers that the boot ROM is fed with, in order, none of them empty. No zero-length
/// transfer follows, even where the last one fills its packets: the vendor's client sends none.
pub fn boot_chunks(image: &[u8], bcd_usb: u16) -> impl ExactSizeIterator<Item = &[u8]> {
    image.chunks(boot_chunk_bytes(bcd_usb))
}

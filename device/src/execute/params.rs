//! A stage as its family sees it while preparing: typed parameters and resolved operands.
use ncs2::blob::{DataType, Stage};

use super::memory::{Layout, Place};

/// One stage and what its offsets count in.
pub(super) struct Context<'a> {
    blob: &'a [u8],
    consts: &'a [u8],
    layout: &'a Layout,
    pub stage: &'a Stage,
}

impl<'a> Context<'a> {
    pub fn new(blob: &'a [u8], consts: &'a [u8], layout: &'a Layout, stage: &'a Stage) -> Self {
        Context { blob, consts, layout, stage }
    }

    pub fn kind(&self) -> u32 {
        self.stage.kind.0
    }

    fn word(&self, index: usize) -> Result<[u8; 4], String> {
        let params = self.blob.get(self.stage.params.clone()).unwrap_or(&[]);
        let bytes = params.get(index * 4..index * 4 + 4).and_then(|b| b.try_into().ok());
        bytes.ok_or_else(|| format!("parameter {index} is missing"))
    }

    /// Parameter word `index`, the length word not counted.
    pub fn int(&self, index: usize) -> Result<i32, String> {
        self.word(index).map(i32::from_le_bytes)
    }

    pub fn float(&self, index: usize) -> Result<f32, String> {
        self.word(index).map(f32::from_le_bytes)
    }

    /// Half-word parameter `index` as FP16 (LRN packs two in a word).
    pub fn half(&self, index: usize) -> Result<f32, String> {
        let word = self.word(index / 2)?;
        let at = index % 2 * 2;
        Ok(half::f16::from_le_bytes([word[at], word[at + 1]]).to_f32())
    }

    pub fn flag(&self, index: usize) -> Result<bool, String> {
        Ok(self.int(index)? != 0)
    }

    /// A size: at least `least`, and of a magnitude that a chip of 512 MB can have meant.
    pub fn size(&self, index: usize, least: i32) -> Result<usize, String> {
        let value = self.int(index)?;
        if value < least || value > 1 << 24 {
            return Err(format!("parameter {index} is {value}"));
        }
        Ok(value as usize)
    }

    /// A memory index of a dimension of `place`.
    pub fn axis(&self, index: usize, place: &Place) -> Result<usize, String> {
        let axis = self.int(index)?;
        if axis < 0 || axis as usize >= place.rank {
            return Err(format!("axis {axis} of {} dimensions", place.rank));
        }
        Ok(axis as usize)
    }

    /// An operand that may be absent.
    pub fn optional(&self, index: usize) -> Result<Option<Place>, String> {
        match self.stage.buffers.get(index) {
            Some(view) if view.is_present() => {
                let place = super::resolve(view, self.layout, self.consts);
                place.map(Some).map_err(|why| format!("operand {index}: {why}"))
            }
            _ => Ok(None),
        }
    }

    /// An operand to read.
    pub fn operand(&self, index: usize) -> Result<Place, String> {
        self.optional(index)?.ok_or_else(|| format!("operand {index} is missing"))
    }

    /// An operand to write.
    pub fn target(&self, index: usize) -> Result<Place, String> {
        let place = self.operand(index)?;
        if place.is_const() {
            return Err(format!("operand {index} is written but lies in the blob"));
        }
        Ok(place)
    }

    /// Constants of an operand.
    pub fn constants(&self, index: usize) -> Result<Vec<f32>, String> {
        self.operand(index)?.constants().map_err(|why| format!("operand {index}: {why}"))
    }

    /// Number of operands in the record.
    pub fn operands(&self) -> usize {
        self.stage.buffers.len()
    }
}

/// Refuses places that are not FP16.
pub(super) fn halves(places: &[&Place]) -> Result<(), String> {
    if places.iter().any(|p| p.dtype != DataType::F16) {
        return Err("an operand is not FP16".into());
    }
    Ok(())
}

/// Refuses operands whose dims differ from each other.
pub(super) fn same_dims(a: &Place, b: &Place) -> Result<(), String> {
    if a.dims() != b.dims() {
        return Err(format!("operand dims {:?} and {:?} differ", a.dims(), b.dims()));
    }
    Ok(())
}

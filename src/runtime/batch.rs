//! Several requests in one inference: their inputs laid together, the answer taken apart.

use super::jobs::Waiting;
use crate::blob::{Blob, IoTensor};
use crate::pool::{Lease, Pool, PoolError, Use};

/// Bytes that one request of `unit` has of a tensor: all batch elements of the smallest variant.
fn share(tensor: &IoTensor, unit: &Blob) -> usize {
    tensor.bytes() * unit.graph().batch.max(1) as usize
}

/// Lays the inputs of `jobs`, each an element of `unit`, into one element of `batched`. Places that nobody fills are zero.
pub(super) fn gather(pool: &Pool, unit: &Blob, batched: &Blob, jobs: &[Waiting]) -> Result<Lease, PoolError> {
    let mut lease = pool.try_lease(batched.graph().input_bytes, Use::Input)?;
    let whole = lease.as_mut_slice();
    whole.fill(0);
    for (from, to) in unit.graph().inputs.iter().zip(&batched.graph().inputs) {
        let bytes = share(from, unit);
        for (place, job) in jobs.iter().enumerate() {
            let source = job.input.as_slice().get(from.offset..from.offset + bytes);
            let at = to.offset + place * bytes;
            if let (Some(source), Some(target)) = (source, whole.get_mut(at..at + bytes)) {
                target.copy_from_slice(source);
            }
        }
    }
    Ok(lease)
}

/// The answer of the request at `place`, as an element of `unit`.
pub(super) fn part(
    pool: &Pool,
    unit: &Blob,
    batched: &Blob,
    answer: &[u8],
    place: usize,
) -> Result<Lease, PoolError> {
    let mut lease = pool.try_lease(unit.graph().output_bytes, Use::Output)?;
    let own = lease.as_mut_slice();
    own.fill(0);
    for (to, from) in unit.graph().outputs.iter().zip(&batched.graph().outputs) {
        let bytes = share(to, unit);
        let at = from.offset + place * bytes;
        if let (Some(source), Some(target)) =
            (answer.get(at..at + bytes), own.get_mut(to.offset..to.offset + bytes))
        {
            target.copy_from_slice(source);
        }
    }
    Ok(lease)
}

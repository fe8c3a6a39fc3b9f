//! The compiled graph on the CPU, by the engine that virtual sticks have: the same FP16 storage, the same answers as
//! `--sim 1 --engine execute` gives.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use ncs2::blob::{Blob, BlobHash};
use ncs2::runtime::Fallback;
use ncs2::{Error, ErrorKind};
use ncs2_device::execute::{Arena, Program};
use parking_lot::Mutex;

/// A graph made ready, and the memory that it runs in.
struct Prepared {
    program: Program,
    arena: Mutex<Arena>,
}

/// The engine, with the graphs that it was asked for.
#[derive(Default)]
pub struct Execute(Mutex<HashMap<BlobHash, Arc<Prepared>>>);

impl Execute {
    fn prepared(&self, blob: &Blob) -> ncs2::error::Result<Arc<Prepared>> {
        if let Some(known) = self.0.lock().get(&blob.hash()) {
            return Ok(known.clone());
        }
        let program = Program::prepare(blob.bytes(), blob.graph()).map_err(|why| {
            let detail = format!("{}: {why}, which is not executed here", blob.name());
            Error::new(ErrorKind::Unsupported, "execute on the CPU").detail(detail)
        })?;
        let made = Arc::new(Prepared { arena: Mutex::new(program.arena()), program });
        self.0.lock().insert(blob.hash(), made.clone());
        Ok(made)
    }
}

impl Fallback for Execute {
    fn name(&self) -> &str {
        "cpu-execute"
    }

    fn run(&self, blob: &Blob, input: &[u8], output: &mut [u8]) -> ncs2::error::Result<()> {
        let prepared = self.prepared(blob)?;
        prepared.program.run(&mut prepared.arena.lock(), input, output);
        Ok(())
    }
}

impl fmt::Debug for Execute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Execute")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_those_of_the_engine_however_often() {
        let path = format!("{}/../../tests/data/models/tiny_fp16_s1.blob", env!("CARGO_MANIFEST_DIR"));
        let blob = Blob::open(path).expect("committed");
        let graph = blob.graph();
        let input: Vec<u8> = (0..graph.input_bytes).map(|n| (n % 60) as u8).collect();
        let program = Program::prepare(blob.bytes(), graph).expect("executed here");
        let mut expected = vec![0; graph.output_bytes];
        program.run(&mut program.arena(), &input, &mut expected);
        let engine = Execute::default();
        for _ in 0..2 {
            let mut answer = vec![0xff; graph.output_bytes];
            engine.run(&blob, &input, &mut answer).expect("an answer");
            assert_eq!(answer, expected);
        }
        assert_eq!(engine.0.lock().len(), 1, "prepared once");
    }
}

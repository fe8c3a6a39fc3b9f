//! The networks of a run: their graphs, what is sent to them, and their share of the load.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ncs2::blob::Blob;
use ncs2::{ErrorKind, Graph};

use super::flags::BenchArgs;
use super::load::Plan;
use crate::failure::{Failure, Result};
use crate::flags::ImageArgs;
use crate::tensor::input::{self, Element};

/// Different inputs that take turns, so that an answer given to the wrong request shows.
const RANDOM_INPUTS: usize = 8;
/// Largest batch that is looked for beside a graph.
const MAX_BATCH: u32 = 128;

/// One network.
pub struct Network {
    /// Its graph; with several batch variants the one of the smallest batch, which is what requests are for.
    pub blob: Blob,
    /// The variants of larger batches, which the fleet may use for requests that wait.
    pub larger: Vec<Blob>,
    /// Sent in turn.
    pub inputs: Vec<Element>,
    /// Of the load, all of them together 1.
    pub share: f64,
    references: OnceCell<Vec<Vec<u8>>>,
}

/// Where inputs come from.
pub struct Source<'a> {
    files: &'a [OsString],
    seed: u64,
    image: &'a ImageArgs,
}

impl<'a> Source<'a> {
    /// Random numbers.
    #[cfg(test)]
    pub fn random(seed: u64) -> Self {
        static IMAGE: std::sync::LazyLock<ImageArgs> = std::sync::LazyLock::new(ImageArgs::default);
        Source { files: &[], seed, image: &IMAGE }
    }

    /// As the flags say.
    pub fn of(args: &'a BenchArgs) -> Self {
        Source { files: &args.input, seed: args.random, image: &args.image }
    }
}

impl Network {
    /// A graph that gets `share` of the load.
    pub fn new(blob: Blob, source: &Source<'_>, share: f64) -> Result<Self> {
        let inputs = if source.files.is_empty() {
            input::random(blob.graph(), source.seed, RANDOM_INPUTS)
        } else {
            input::from_files(blob.graph(), source.files, source.image)?
        };
        input::refuse_idle_flags(blob.graph(), source.files, source.image)?;
        Ok(Network { blob, larger: Vec::new(), inputs, share, references: OnceCell::new() })
    }

    /// Elements of one inference.
    pub fn batch(&self) -> u32 {
        self.blob.graph().batch.max(1)
    }

    /// All variants, smallest batch first.
    pub fn variants(&self) -> Vec<Blob> {
        std::iter::once(&self.blob).chain(&self.larger).cloned().collect()
    }

    /// Batches of all variants.
    pub fn batches(&self) -> Vec<u32> {
        std::iter::once(&self.blob).chain(&self.larger).map(|b| b.graph().batch.max(1)).collect()
    }

    /// True where an answer of the `hash` engine can be foretold: not where the fleet chooses the batch, since that
    /// engine's answer is to the whole of it.
    pub fn is_checkable(&self) -> bool {
        self.larger.is_empty()
    }

    /// What the `hash` engine gives for each input, computed here.
    fn references(&self) -> &Vec<Vec<u8>> {
        self.references.get_or_init(|| {
            let answer = |input: &Element| {
                let mut bytes = vec![0; self.blob.graph().output_bytes];
                ncs2_device::hash::output(&self.blob.hash(), &input.bytes, &mut bytes);
                bytes
            };
            self.inputs.iter().map(answer).collect()
        })
    }

    /// What to send. `places` are in flight for a network with the largest share; `checked` where answers are those of
    /// the `hash` engine.
    pub fn plan(&self, places: usize, largest: f64, rate: Option<f64>, checked: bool) -> Plan {
        // A batch is filled by requests that wait.
        let batch = self.batches().last().map_or(1, |largest| largest / self.batch()).max(1);
        let places = (places as f64 * f64::from(batch) * self.share / largest.max(f64::MIN_POSITIVE)).round();
        let (places, checked) = (places as usize, checked && self.is_checkable());
        Plan {
            inputs: self.inputs.clone(),
            references: checked.then(|| self.references().clone()),
            in_flight: places.max(1),
            batch: batch as usize,
            rate: rate.map(|rate| rate * self.share),
        }
    }
}

/// The networks that the arguments name, with their shares.
pub fn open(args: &BenchArgs) -> Result<Vec<Network>> {
    let count = args.blobs.len();
    if count > 1 && !args.input.is_empty() {
        return Err(Failure::usage(
            format!("--input: expected one network beside it, found {count}"),
            "leave it out: every network gets random inputs of its own",
        ));
    }
    if !args.shares.is_empty() && args.shares.len() != count {
        return Err(Failure::usage(
            format!("--shares: expected one for each of {count} networks, found {}", args.shares.len()),
            "give as many numbers as networks",
        ));
    }
    let shares = if args.shares.is_empty() { vec![1.0; count] } else { args.shares.clone() };
    let sum: f64 = shares.iter().sum();
    let source = Source::of(args);
    let mut networks: Vec<Network> = Vec::with_capacity(count);
    for (path, share) in args.blobs.iter().zip(shares) {
        let network = Network::new(Blob::open(path)?, &source, share / sum)?;
        if networks.iter().any(|n| n.blob.hash() == network.blob.hash()) {
            return Err(Failure::usage(
                format!("{}: expected different networks, found this one twice", path.display()),
                "give --shares for their load, and --graphs for several instances of one",
            ));
        }
        networks.push(network);
    }
    Ok(networks)
}

/// The only network of a run that can have but one.
pub fn single<'a>(networks: &'a [Network], flag: &str) -> Result<&'a Network> {
    match networks {
        [network] => Ok(network),
        _ => Err(Failure::usage(
            format!("{flag}: expected one network, found {}", networks.len()),
            "measure one network at a time",
        )),
    }
}

/// The variant of `path` with this batch: itself, or `NAME@N.blob` beside it, as `compile --batch` names them.
pub fn variant(path: &Path, batch: u32) -> Result<Blob> {
    let blob = Blob::open(path)?;
    if blob.graph().batch.max(1) == batch {
        return Ok(blob);
    }
    let beside = name_of_variant(path, batch);
    if !beside.is_file() {
        return Err(Failure::new(
            ErrorKind::NotFound,
            format!(
                "{}: expected batch {batch}, found batch {} and no {}",
                path.display(),
                blob.graph().batch.max(1),
                beside.display()
            ),
            format!("make it with `ncs2ctl compile MODEL -o {} --batch 1,{batch}`", plain(path).display()),
        ));
    }
    let found = Blob::open(&beside)?;
    match found.graph().batch.max(1) {
        n if n == batch => Ok(found),
        n => Err(Failure::new(
            ErrorKind::InvalidBlob,
            format!("{}: expected batch {batch}, found batch {n}", beside.display()),
            "compile it again, or name it for what it is",
        )),
    }
}

/// Every variant that lies there, smallest batch first.
pub fn variants(path: &Path) -> Result<Vec<Blob>> {
    let own = Blob::open(path)?.graph().batch.max(1);
    (1..=MAX_BATCH)
        .filter(|&n| n == own || name_of_variant(path, n).is_file())
        .map(|n| variant(path, n))
        .collect()
}

/// `net@4.blob` for `net.blob` and for `net@1.blob`.
fn name_of_variant(path: &Path, batch: u32) -> PathBuf {
    let plain = plain(path);
    let stem = plain.file_stem().unwrap_or_default().to_string_lossy();
    match plain.extension() {
        Some(extension) => plain.with_file_name(format!("{stem}@{batch}.{}", extension.to_string_lossy())),
        None => plain.with_file_name(format!("{stem}@{batch}")),
    }
}

/// `net.blob` for `net@4.blob`: without the mark of a variant.
pub fn plain(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let Some((name, _)) = stem.rsplit_once('@').filter(|(_, n)| n.parse::<u32>().is_ok()) else {
        return path.to_owned();
    };
    match path.extension() {
        Some(extension) => path.with_file_name(format!("{name}.{}", extension.to_string_lossy())),
        None => path.with_file_name(name),
    }
}

/// The plans of all networks, on these graphs.
pub fn plans(
    networks: &[Network],
    graphs: Vec<Graph>,
    places: usize,
    rate: Option<f64>,
    checked: bool,
) -> Vec<(Graph, Plan)> {
    let largest = networks.iter().map(|n| n.share).fold(0.0, f64::max);
    graphs
        .into_iter()
        .zip(networks)
        .map(|(graph, n)| (graph, n.plan(places, largest, rate, checked)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_named_as_compile_names_them() {
        assert_eq!(name_of_variant(Path::new("a/net.blob"), 4), Path::new("a/net@4.blob"));
        assert_eq!(name_of_variant(Path::new("a/net@1.blob"), 4), Path::new("a/net@4.blob"));
        assert_eq!(name_of_variant(Path::new("net@home.blob"), 2), Path::new("net@home@2.blob"));
        assert_eq!(name_of_variant(Path::new("net"), 2), Path::new("net@2"));
    }

    #[test]
    fn shares_divide_places_and_rate() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/models/tiny_u8_s1.blob");
        let source = Source::random(0);
        let network =
            |share| Network::new(Blob::open(path).expect("committed"), &source, share).expect("inputs");
        let (heavy, light) = (network(0.75), network(0.25));
        let places = |n: &Network| n.plan(12, 0.75, Some(100.0), true);
        assert_eq!((places(&heavy).in_flight, places(&light).in_flight), (12, 4));
        assert_eq!((places(&heavy).rate, places(&light).rate), (Some(75.0), Some(25.0)));
        assert_eq!(network(0.001).plan(4, 0.999, None, false).in_flight, 1, "nobody is left out");
        assert_eq!(places(&heavy).references.map(|r| r.len()), Some(RANDOM_INPUTS));
    }
}

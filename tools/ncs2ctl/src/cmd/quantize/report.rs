//! What `quantize` says: the document, and the tables that people read.

use serde::Serialize;

use crate::failure::one_line;
use crate::output::{Output, Style, bytes, wrap};

/// What is true of every row, and why the table is as short as it is.
pub const FACTS: [&str; 2] = [
    "the chip computes in FP16 and the compiler stores weights as FP16: INT8 makes neither the graph smaller nor the stick faster",
    "an input of bytes takes half of FP16 on the link, a quarter of FP32",
];

/// The document.
#[derive(Serialize)]
#[allow(missing_docs, reason = "the names are those of the document")]
pub struct Body {
    pub simulated: bool,
    pub model: String,
    pub int8: Option<Int8>,
    pub facts: [&'static str; 2],
    /// Why a row is missing.
    pub left_out: Vec<String>,
    pub rows: Vec<Row>,
    /// The models on this computer's CPU through OpenVINO: measured, never simulated.
    pub cpu: Vec<CpuRow>,
}

/// One model on the CPU.
#[derive(Serialize)]
#[allow(missing_docs, reason = "the names are those of the document")]
pub struct CpuRow {
    pub name: &'static str,
    pub weights: &'static str,
    pub file_bytes: u64,
    pub fps: f64,
    pub p50_ms: f64,
    pub max_error: f64,
    pub cosine: f64,
    pub top1: Option<f64>,
    pub top5: Option<f64>,
}

/// What making the INT8 model plain did.
#[derive(Serialize)]
#[allow(missing_docs, reason = "the names are those of the document")]
pub struct Int8 {
    pub file: String,
    pub constants: usize,
    pub constant_bytes: usize,
    pub pairs: usize,
    pub clips: usize,
}

/// One way to compile the network.
#[derive(Serialize)]
#[allow(missing_docs, reason = "the names are those of the document")]
pub struct Row {
    pub name: &'static str,
    pub weights: &'static str,
    pub input_type: String,
    pub blob_bytes: u64,
    pub input_bytes: u64,
    /// At the most that a link carries: an estimate.
    pub link_us_estimate: f64,
    pub fps: f64,
    pub p50_ms: f64,
    pub upload_us: f64,
    pub max_error: Option<f64>,
    pub cosine: Option<f64>,
    pub top1: Option<f64>,
    pub top5: Option<f64>,
}

/// As people read it.
pub fn text(output: &Output, body: &Body) -> String {
    let mut text = output.paint(Style::Bold, one_line(&body.model));
    if body.simulated {
        text.push_str(&format!(", {}: times are a virtual stick's", output.paint(Style::Warn, "simulated")));
    }
    text.push_str("\n\n");
    let headings = [
        "graph",
        "weights",
        "size",
        "input",
        "link us",
        "fps",
        "p50 ms",
        "max error",
        "cosine",
        "top-1",
        "top-5",
    ];
    let mut table = output.table(&headings, &["graph", "weights", "input"]);
    let share = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{:.1} %", 100.0 * x));
    for row in &body.rows {
        table.add_row([
            row.name.to_owned(),
            row.weights.to_owned(),
            bytes(row.blob_bytes),
            format!("{} {}", bytes(row.input_bytes), row.input_type),
            format!("{:.0}", row.link_us_estimate),
            format!("{:.1}", row.fps),
            format!("{:.2}", row.p50_ms),
            row.max_error.map_or("-".to_owned(), |x| format!("{x:.2e}")),
            row.cosine.map_or("-".to_owned(), |x| format!("{x:.6}")),
            share(row.top1),
            share(row.top5),
        ]);
    }
    text.push_str(&output.lines(&table));
    text.push('\n');
    let headings =
        ["on this CPU", "weights", "file", "fps", "p50 ms", "max error", "cosine", "top-1", "top-5"];
    let mut table = output.table(&headings, &["on this CPU", "weights"]);
    for row in &body.cpu {
        table.add_row([
            row.name.to_owned(),
            row.weights.to_owned(),
            bytes(row.file_bytes),
            format!("{:.1}", row.fps),
            format!("{:.2}", row.p50_ms),
            format!("{:.2e}", row.max_error),
            format!("{:.6}", row.cosine),
            share(row.top1),
            share(row.top5),
        ]);
    }
    text.push_str(&output.lines(&table));
    text.push_str("  measured on this computer through OpenVINO, as --fallback openvino runs it\n\n");
    let mut line =
        |said: &str| text.push_str(&format!("  {}\n", wrap(&one_line(said), output.width() - 2, "  ")));
    if let Some(int8) = &body.int8 {
        line(&format!(
            "INT8: {} constants of {} as integers, {} pairs on activations taken out, {} Clips in their place",
            int8.constants,
            bytes(int8.constant_bytes as u64),
            int8.pairs,
            int8.clips
        ));
    }
    body.facts.iter().for_each(|fact| line(fact));
    line(
        "link us: at 350 MB/s, the most that USB 3 was seen to carry (estimate); errors against FP32 on the CPU",
    );
    body.left_out.iter().for_each(|why| line(&format!("not here: {why}")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_read_is_as_reviewed() {
        let row = |name, weights, input_type: &str, input_bytes| Row {
            name,
            weights,
            input_type: input_type.into(),
            blob_bytes: 2_490_000,
            input_bytes,
            link_us_estimate: input_bytes as f64 / 350.0,
            fps: 41.25,
            p50_ms: 24.12,
            upload_us: 400.0,
            max_error: Some(3.4e-4),
            cosine: Some(0.999_998),
            top1: Some(1.0),
            top5: None,
        };
        let cpu = |name, weights, p50_ms, max_error| CpuRow {
            name,
            weights,
            file_bytes: 4_950_000,
            fps: 1e3 / p50_ms,
            p50_ms,
            max_error,
            cosine: 0.9985,
            top1: Some(0.95),
            top5: Some(1.0),
        };
        let body = Body {
            simulated: true,
            model: "net.onnx".into(),
            int8: Some(Int8 {
                file: "net_qdq.onnx".into(),
                constants: 52,
                constant_bytes: 1_240_000,
                pairs: 40,
                clips: 26,
            }),
            facts: FACTS,
            left_out: vec![
                "an input of bytes: give --mean or --scale for a network that takes pictures".into(),
            ],
            rows: vec![
                row("as it is", "FP32", "fp16", 301_056),
                row("INT8 made plain", "INT8", "u8", 150_528),
            ],
            cpu: vec![cpu("the model", "FP32", 12.5, 0.0), cpu("the INT8 model", "INT8", 6.25, 0.01)],
        };
        insta::assert_snapshot!(text(&Output::bare(false, "quantize"), &body));
    }
}

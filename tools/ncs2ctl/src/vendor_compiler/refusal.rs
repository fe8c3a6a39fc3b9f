//! The compiler's refusals in the user's words: which layer, which operator, what to do.

use std::path::Path;

use ncs2::ErrorKind;

use super::Refused;
use crate::failure::Failure;
use crate::onnx::Model;

/// A layer that the compiler does not take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layer {
    /// The vendor's name for it: the tensor that it makes.
    pub name: String,
    /// Operator.
    pub operator: String,
}

/// The layer that a refusal names as unsupported, if that is what it says.
pub fn unsupported_layer(refused: &Refused) -> Option<Layer> {
    let (_, rest) = refused.text.split_once("Failed to compile layer \"")?;
    let (name, rest) = rest.split_once("\": ")?;
    let operator = rest.strip_prefix("unsupported layer type \"")?.split('"').next()?;
    Some(Layer { name: name.to_owned(), operator: operator.to_owned() })
}

/// A refusal as one line; `others` are further layers that were found to be unsupported.
pub fn explain(path: &Path, onnx: Option<&Model>, refused: &Refused, others: &[Layer]) -> Failure {
    let at = path.display();
    let layer = |layer: &Layer| {
        // The vendor's name is the tensor's; the node may have a better one, and its own operator.
        match onnx.and_then(|model| model.maker(&layer.name)) {
            Some(node) if node.name.is_empty() || node.name == layer.name => {
                format!("{} ({})", layer.name, node.op)
            }
            Some(node) => format!("{} ({}, makes {})", node.name, node.op, layer.name),
            None => format!("{} ({})", layer.name, layer.operator),
        }
    };
    if let Some(first) = unsupported_layer(refused) {
        let all: Vec<String> = std::iter::once(&first).chain(others).map(layer).collect();
        return unsupported(&at.to_string(), &all);
    }
    // The reader of ONNX files lists operators, not layers.
    if let Some((_, list)) = refused.text.split_once("does not support the following ONNX operations: ") {
        let operators: Vec<&str> = list.split(',').map(str::trim).filter(|o| !o.is_empty()).collect();
        let nodes = onnx.map(|model| &*model.nodes).unwrap_or_default();
        let mut all: Vec<String> = nodes
            .iter()
            .filter(|node| operators.iter().any(|o| *o == node.op))
            .map(|node| format!("{} ({})", node.label(), node.op))
            .collect();
        if all.is_empty() {
            all = operators.iter().map(|o| (*o).to_owned()).collect();
        }
        return unsupported(&at.to_string(), &all);
    }
    let dynamic = ["DynamicToStaticShape", "partially defined shape", "dynamic shape"];
    if let Some(open) = refused.open_inputs.first() {
        return Failure::new(
            ErrorKind::InvalidInput,
            format!("{at}: input {open}: expected a fixed shape, found an open one"),
            "convert the model with fixed shapes; a .onnx can be given --batch or --shape",
        );
    }
    if dynamic.iter().any(|words| refused.text.contains(words)) {
        return self::dynamic(path, &plain(&refused.text));
    }
    let about_settings = [
        "key is not supported",
        "Cannot allocate",
        "configuration option",
        "Invalid value",
        "set both option",
    ];
    let hint = match refused.phase.as_str() {
        _ if about_settings.iter().any(|words| refused.text.contains(words)) => {
            "compare --set, --streams, --shaves and --cmx with `ncs2ctl compile --help`"
        }
        "load" => "set the compiler up anew with `ncs2ctl compile --setup`",
        "read" => "the reader is of 2021: export with operator set 11 to 13, or as .xml of version 10",
        "configure" => "compare --batch with the model's own first dimension",
        "export" => "check that the disk has room",
        _ => "change the layer that is named, or cut the model before it",
    };
    Failure::new(
        ErrorKind::Unsupported,
        format!("{at}: the compiler refuses: {}", plain(&refused.text)),
        hint,
    )
}

/// A model with shapes that are not known before it runs, and what says so.
pub fn dynamic(path: &Path, why: &str) -> Failure {
    Failure::new(
        ErrorKind::InvalidInput,
        format!("{}: has shapes inside that depend on its data: {why}", path.display()),
        "export the model with fixed shapes",
    )
}

fn unsupported(at: &str, layers: &[String]) -> Failure {
    const MOST: usize = 12;
    let shown = layers.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    let more = layers.len().saturating_sub(MOST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let what = if layers.len() == 1 { "1 layer".to_owned() } else { format!("{} layers", layers.len()) };
    let hint =
        if layers.iter().any(|layer| layer.contains("quantizeLinear") || layer.contains("QuantizeLinear")) {
            "an INT8 model: `ncs2ctl quantize MODEL --int8 THIS -o BLOB` makes it plain and compiles it"
        } else {
            "replace them in the model by operators that it has, or cut the model before them"
        };
    Failure::new(
        ErrorKind::Unsupported,
        format!("{at}: the compiler has no operator for {what}: {shown}{more}"),
        hint,
    )
}

/// Without the vendor's source files, status names and repeated blanks.
fn plain(text: &str) -> String {
    let words = text.split_whitespace().filter(|word| {
        let source = word.contains(".cpp:") || word.contains(".hpp:");
        !source && !matches!(*word, "[" | "]" | "GENERAL_ERROR")
    });
    let text = words.collect::<Vec<_>>().join(" ");
    // Some texts are whole paragraphs.
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Refused {
        Refused { phase: "compile".into(), text: text.into(), open_inputs: Vec::new() }
    }

    fn said(refused: &Refused, others: &[Layer]) -> String {
        match explain(Path::new("m.onnx"), None, refused, others) {
            Failure::Report(report) => report.message,
            Failure::BrokenPipe => panic!("no report"),
        }
    }

    #[test]
    fn layers_are_named() {
        // Both texts are the compiler's own, for models made to be refused.
        let abs = refused(
            "[ GENERAL_ERROR ]  /home/x/frontend.cpp:441 Failed to compile layer \"y\": unsupported layer type \"Abs\"",
        );
        assert_eq!(said(&abs, &[]), "m.onnx: the compiler has no operator for 1 layer: y (Abs)");
        let sine = Layer { name: "s".into(), operator: "Sin".into() };
        assert_eq!(
            said(&abs, &[sine]),
            "m.onnx: the compiler has no operator for 2 layers: y (Abs), s (Sin)"
        );
        let unknown = refused(
            "Check 'unknown_operators.empty()' failed at frontend/graph.cpp:176: nGraph does not support the following ONNX operations: Frob, Det ",
        );
        assert_eq!(said(&unknown, &[]), "m.onnx: the compiler has no operator for 2 layers: Frob, Det");
    }

    #[test]
    fn other_refusals_lose_the_vendors_paths() {
        let text = "[ GENERAL_ERROR ]  /home/x/a.cpp:44 Failed to compile layer \"y\": no room";
        assert_eq!(
            said(&refused(text), &[]),
            "m.onnx: the compiler refuses: Failed to compile layer \"y\": no room"
        );
        let open = Refused { open_inputs: vec!["x".into()], ..refused("DynamicToStaticShape …") };
        assert!(said(&open, &[]).contains("input x: expected a fixed shape"));
    }
}

//! Every stage type that the `execute` engine knows, each in a small compiled graph, against what the OpenVINO CPU plugin
//! computes in FP32 for the same network and input (`tests/data/stages`, made by `tools/models/make_stage_models.py`).
//!
//! `NCS2_STAGES` names another folder of such graphs for the table.

mod execute_support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use execute_support::{TOLERANCE, array, beside, blobs, data, error, exact, input_of, integers, unpack};
use ncs2::blob::{Blob, DataType, Graph, Stage, StageKind};
use ncs2_device::execute::{NEVER_SEEN, Program, Threads};

fn folder() -> PathBuf {
    std::env::var_os("NCS2_STAGES").map_or_else(|| data("stages"), PathBuf::from)
}

/// All stages with the injected ones.
fn stages(graph: &Graph) -> Vec<&Stage> {
    let parents = graph.stages.iter();
    parents.flat_map(|s| std::iter::successors(Some(s), |s| s.injected.as_deref())).collect()
}

/// Runs a graph in memory full of NaN and compares all its outputs: the largest error, or what went wrong.
fn compare(path: &Path) -> Result<f32, String> {
    let blob = Blob::open(path).map_err(|e| e.to_string())?;
    let graph = blob.graph();
    let program = Program::prepare(blob.bytes(), graph).map_err(|e| e.to_string())?;
    let input = input_of(path, graph).ok_or("no input array beside it")?;
    let mut output = vec![0; graph.output_bytes];
    let mut arena = program.arena();
    arena.fill(0x7E00);
    program.run(&mut arena, &input, &mut output);
    let mut again = vec![0; graph.output_bytes];
    for threads in [Threads::One, Threads::All] {
        program.run_on(threads, &mut arena, &input, &mut again);
        if output != again {
            return Err("another run gives another answer".into());
        }
    }
    let mut largest = 0f32;
    for tensor in &graph.outputs {
        let (shape, reference) = array(&beside(path, "out", &tensor.name))
            .ok_or_else(|| format!("no array for output {}", tensor.name))?;
        let values = unpack(tensor, graph.batch as usize, &output);
        if values.len() != reference.len() {
            return Err(format!("{} has {} values, not shape {shape:?}", tensor.name, values.len()));
        }
        if tensor.dtype == DataType::S32
            && integers(tensor, graph.batch as usize, &output) != exact(&beside(path, "out", &tensor.name))
        {
            return Err(format!("{} is not exactly the reference", tensor.name));
        }
        let error = error(&values, &reference);
        if error > TOLERANCE && std::env::var_os("NCS2_SHOW").is_some() {
            println!("{}: found {values:?}\nexpected {reference:?}", tensor.name);
        }
        largest = largest.max(error);
    }
    Ok(largest)
}

/// A test for each graph.
macro_rules! graphs {
    ($($name:ident)*) => {
        mod agrees {
            $(
                #[test]
                fn $name() {
                    super::check(stringify!($name));
                }
            )*
        }

        const GRAPHS: &[&str] = &[$(stringify!($name)),*];
    };
}

fn check(name: &str) {
    let error = compare(&data("stages").join(name).with_extension("blob")).unwrap_or_else(|e| panic!("{e}"));
    assert!(error <= TOLERANCE, "off by {:.3} %", error * 100.0);
}

graphs! {
    average_batch4_apart avg_pool avg_pool_3d avg_pool_exclude avg_pool_include avg_pool_padded
    avg_pool_padded_begin avg_pool_padded_end avg_pool_padded_even avg_pool_padded_large avg_pool_padded_tall
    bias broadcast_bidirectional broadcast_explicit broadcast_numpy ceiling clamp concat_strided conv_1x1
    conv_3d conv_3x3 conv_3x3_small conv_5x5_stride conv_depthwise conv_depthwise_stride conv_dilated conv_elu
    conv_groups conv_im2col conv_leaky conv_pool conv_pools_batch3_apart conv_relu6 conv_unequal_strides
    ctc_decoder deconv deconv_asymmetric deconv_depthwise detection_center detection_clip detection_corner
    detection_decrease detection_few detection_images detection_keep_all detection_own_boxes
    detection_own_priors detection_pixels detection_refined detection_variance div elu equal erf exp fc
    fc_planes floor floor_mod gather_c gather_elements gather_embedding gather_indices gather_nd
    gather_nd_batches gather_w gelu gemm gemm_broadcast gemm_transposed gemm_transposed_a gemm_transposed_b
    global_avg global_max greater greater_broadcast greater_equal grn hswish inner_lrn interp_align_corners
    interp_asymmetric interp_asymmetric_down interp_half_pixel interp_linear interp_pytorch interp_tf
    interp_tf_height interp_tf_width layer_norm layer_norm_square leaky_relu less less_equal log logical_and
    logical_not logical_or logical_xor loop_backward loop_forward lrn lstm_batches lstm_bidirectional
    lstm_by_cell lstm_by_cell_long lstm_cell lstm_reverse lstm_sequence max max_clamp max_pool max_pool_3d
    max_pool_ceil max_pool_padded_begin min mish mvn_across mvn_mean mvn_outside negative
    nohw_avg_pool_exclude nohw_avg_pool_include nohw_conv_1x1 nohw_conv_3d nohw_conv_3x3 nohw_conv_3x3_small
    nohw_conv_5x5_stride nohw_conv_depthwise nohw_conv_depthwise_stride nohw_conv_dilated nohw_conv_elu
    nohw_conv_groups nohw_conv_im2col nohw_conv_leaky nohw_conv_pool nohw_conv_relu6 nohw_conv_unequal_strides
    nohw_deconv nohw_deconv_asymmetric nohw_deconv_depthwise nohw_fc nohw_fc_planes nohw_fc_rows
    nohw_global_avg nohw_global_max nohw_max_pool nohw_max_pool_3d nohw_max_pool_ceil normalize_c
    normalize_chw normalize_scaled not_equal one_hot_first one_hot_last one_hot_middle pad_constant pad_edge
    pad_reflect pad_symmetric permute_hw permute_nhwc permute_wc pools_batch3_apart pow power_half
    power_linear prelu prod prod_broadcast prod_leaky proposal_caffe proposal_few proposal_normalized
    proposal_probabilities proposal_tensorflow psroi_pooling reduce_and reduce_max reduce_mean reduce_mean_cw
    reduce_min reduce_sum reduce_sum_all reduce_sum_c reduce_sum_n reduce_sum_w relu reorg_yolo
    resample_asymmetric_floor resample_corners resample_half_ceil resample_simple resample_tf
    resample_tf_width reverse_sequence roi_align roi_align_max roi_pooling_bilinear roi_pooling_max round_away
    round_even s32_div s32_equal s32_large_sum s32_max s32_prod s32_sub s32_sum scale scale_shift
    scatter_elements scatter_elements_along scatter_update select sigmoid slice_backwards slice_begin_mask
    slice_end_mask slice_one_mask slice_steps small_batch3 small_batch3_apart small_batch3_nohw small_fp32
    small_fp32_batch2 small_nhwc small_nhwc_fp32_batch2 small_nohw small_nohw_nhwc small_s2 small_s3 small_u8
    small_u8_nhwc_batch2 softmax_c softmax_h softmax_w softplus split_views sqrt squared_difference
    ssd_detection subtract sum sum_broadcast sum_matrix sum_matrix_h sum_planes sum_planes_5d sum_relu
    sum_vector sum_vector_chw sum_vector_first sum_vector_nc sum_vector_w swish tanh tile topk_max_value
    topk_max_w topk_min_index topk_values_only yolo_v2_head yolo_v3_head
}

#[test]
fn every_graph_has_its_test() {
    let found: Vec<String> = blobs(&data("stages"))
        .iter()
        .map(|path| path.file_stem().expect("a file has a name").to_string_lossy().into_owned())
        .collect();
    assert_eq!(found, GRAPHS);
}

/// Stage types that the vendor's compiler makes of a network of known shapes, and this engine runs.
const KINDS: &[u32] = &[
    0, 1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 18, 19, 20, 21, 22, 23, 26, 28, 29, 30, 34, 35, 37, 38,
    43, 44, 45, 46, 47, 49, 57, 60, 61, 62, 63, 64, 65, 66, 67, 70, 71, 72, 73, 75, 76, 77, 78, 79, 80, 81,
    82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 94, 100, 101, 102, 103, 104, 105, 110, 111, 112, 114,
    117, 118, 119, 120, 123, 126, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140,
];

#[test]
fn every_stage_type_has_a_graph() {
    let mut kinds = BTreeSet::new();
    for path in blobs(&data("stages")) {
        let blob = Blob::open(&path).expect("committed graph");
        kinds.extend(stages(blob.graph()).iter().map(|s| s.kind.0));
    }
    let missing: Vec<_> = KINDS.iter().filter(|k| !kinds.contains(k)).collect();
    assert!(missing.is_empty(), "no graph has stages of types {missing:?}");
}

/// The documents name what is executed; so does the engine, type by type.
#[test]
fn the_documents_name_what_is_executed() {
    let docs = include_str!("../../docs/virtual-stick.md");
    let (_, rest) = docs.split_once("Executed: ").expect("the list of types");
    let (list, _) = rest.split_once('.').expect("its end");
    let named: Vec<u32> = list.split([',', ' ', '\n']).filter_map(|word| word.parse().ok()).collect();
    let mut executed: Vec<u32> = KINDS.iter().chain(&NEVER_SEEN).copied().collect();
    executed.sort_unstable();
    assert_eq!(named, executed);
    // A graph of one stage without operands: refused for what it lacks, or because nobody knows it.
    let path = data("stages").join("relu.blob");
    let blob = Blob::open(&path).expect("committed graph");
    for kind in 0..200 {
        let mut graph = blob.graph().clone();
        graph.stages.truncate(1);
        graph.stages[0] = Stage {
            kind: StageKind(kind),
            buffers: Vec::new(),
            injected: None,
            nce: None,
            ..graph.stages[0].clone()
        };
        let known = match Program::prepare(blob.bytes(), &graph) {
            Ok(_) => true,
            Err(refused) => !refused.why.contains("does not know this stage type"),
        };
        assert_eq!(known, executed.contains(&kind), "type {kind}");
    }
}

#[test]
fn table() {
    let mut wrong = Vec::new();
    for path in blobs(&folder()) {
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let blob = Blob::open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let kinds: BTreeSet<_> = stages(blob.graph()).iter().map(|s| s.kind).collect();
        let kinds: Vec<_> = kinds.iter().map(|k| format!("{} {}", k.0, k.name().unwrap_or("?"))).collect();
        match compare(&path) {
            Ok(error) => {
                println!("{name:28} {:8.4} % {}", error * 100.0, kinds.join(", "));
                if error > TOLERANCE {
                    wrong.push(name);
                }
            }
            Err(why) => {
                println!("{name:28} {why:>10} {}", kinds.join(", "));
                wrong.push(name);
            }
        }
    }
    assert!(wrong.is_empty(), "{} graphs are wrong: {wrong:?}", wrong.len());
}

//! Graphs with inputs, outputs and a batch.
use ncs2::blob::IoTensor;

use super::*;

fn tensor(name: &str, dtype: DataType, n: u32, offset: usize) -> IoTensor {
    let (dims, strides) = (vec![n], vec![dtype.bytes() as u32]);
    IoTensor { name: name.into(), dtype, order: Order(C), dims, strides, offset }
}

/// Two inputs of three elements and two outputs, batch 2: a = 2·x + 1 (from bytes), b = y.
fn two_by_two() -> (Vec<u8>, Graph) {
    let mut bench = Bench::default();
    bench.view(DataType::U8, C, &[3], vec![1], Location::Input(0));
    bench.view(DataType::F16, C, &[3], vec![2], Location::Output(0));
    bench.view(DataType::F16, C, &[3], vec![2], Location::Input(1));
    bench.view(DataType::F16, C, &[3], vec![2], Location::Output(1));
    let (blob, mut graph) = bench.graph(111, &[f(2.0), f(1.0), 0, 1]);
    let mut copy = graph.stages[0].clone();
    copy.kind = StageKind::COPY;
    copy.buffers.drain(..2);
    graph.stages[0].injected = Some(Box::new(copy));
    graph.batch = 2;
    graph.inputs = vec![tensor("x", DataType::U8, 3, 0), tensor("y", DataType::F16, 3, 64)];
    graph.outputs = vec![tensor("a", DataType::F16, 3, 64), tensor("b", DataType::F16, 3, 0)];
    (graph.input_bytes, graph.output_bytes) = (128, 128);
    (blob, graph)
}

#[test]
fn each_element_of_the_batch_has_its_place() {
    let (blob, graph) = two_by_two();
    let program = Program::prepare(&blob, &graph).expect("known stages");
    let mut input = vec![0xEE; 128];
    input[..6].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
    let halves = |values: &[f32]| -> Vec<u8> {
        values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect()
    };
    input[64..76].copy_from_slice(&halves(&[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]));
    let mut output = vec![0xDD; 128];
    program.run(&mut program.arena(), &input, &mut output);
    assert_eq!(output[..12], halves(&[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]));
    assert_eq!(output[64..76], halves(&[3.0, 5.0, 7.0, 9.0, 11.0, 13.0]));
    // No memory of earlier work leaks between the tensors.
    assert!(output[12..64].iter().chain(&output[76..]).all(|&b| b == 0));

    let mut seen = Vec::new();
    program.run_stages(&mut program.arena(), &input, &mut output, |run| {
        seen.push((run.batch, run.stage, run.kind.0, run.output(0)));
    });
    let expected = [
        (0, 0, 111, Some(vec![3.0, 5.0, 7.0])),
        (0, 0, 19, Some(vec![10.0, 20.0, 30.0])),
        (1, 0, 111, Some(vec![9.0, 11.0, 13.0])),
        (1, 0, 19, Some(vec![40.0, 50.0, 60.0])),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn programs_are_shared_between_threads() {
    fn shareable<T: Send + Sync>() {}
    shareable::<Program>();
    let (blob, graph) = two_by_two();
    let program = Program::prepare(&blob, &graph).expect("known stages");
    let mut expected = vec![0; 128];
    program.run(&mut program.arena(), &[7; 128], &mut expected);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut output = vec![0; 128];
                program.run(&mut program.arena(), &[7; 128], &mut output);
                assert_eq!(output, expected);
            });
        }
    });
}

#[test]
fn a_graph_beyond_all_measure_is_refused_before_it_costs() {
    let (blob, mut graph) = two_by_two();
    graph.bss_bytes = usize::MAX;
    assert!(Program::prepare(&blob, &graph).err().expect("too large").to_string().contains("memory"));
    let (blob, mut graph) = two_by_two();
    graph.batch = u32::MAX;
    graph.stages = vec![graph.stages[0].clone(); 1 << 11];
    assert!(Program::prepare(&blob, &graph).err().expect("too long").to_string().contains("operations"));
    let (blob, mut graph) = two_by_two();
    graph.bss_bytes = 1 << 29;
    let view = &mut graph.stages[0].buffers[1];
    (view.location, view.dims, view.strides) = (Location::Bss, vec![1 << 14; 2], vec![2, 1 << 15]);
    assert!(Program::prepare(&blob, &graph).err().expect("too large").to_string().contains("elements"));
    // Many stages that each look harmless.
    for view in &mut graph.stages[0].buffers {
        (view.dtype, view.location) = (DataType::F16, Location::Bss);
        (view.dims, view.strides) = (vec![1 << 20], vec![2]);
    }
    assert!(Program::prepare(&blob, &graph).is_ok());
    let mut many = graph.clone();
    many.stages = vec![many.stages[0].clone(); 200];
    let refusal = Program::prepare(&blob, &many).err().expect("dims do not fit").to_string();
    assert!(refusal.contains("dims"), "{refusal}");
    let (blob, mut graph) = two_by_two();
    graph.const_offset = blob.len() + 1;
    assert!(Program::prepare(&blob, &graph).is_err());
}

//! `.nncg` files: what was written is what runs, and no file that was cut off, damaged or forged does more than fail.

use nnc::build::gpu_program;
use nnc::gpu::simulated::Simulated;
use nnc::gpu::{Device, Launch};
use nnc::ir::builder::Builder;
use nnc::ir::error::Code;
use nnc::ir::eval::{Env, run};
use nnc::ir::examples::{Values, random_tensor};
use nnc::ir::ops::Op;
use nnc::ir::ops::composite::norm::Softmax;
use nnc::ir::ops::contract::{Conv, Layout, MatMul};
use nnc::ir::target::{Gpu, GpuIsa};
use nnc::ir::{DType, Dim, Error, Graph, Result, ScalarFn, Tensor, Type};
use nnc::nncg::{Artefact, VERSION};
use nnc::{Engine, Options};
use std::time::Duration;

const BOTH: [GpuIsa; 2] = [GpuIsa::SpirV, GpuIsa::Sm80];

/// A convolution, a product and rows, on a batch that the run decides.
fn network() -> Graph {
    let b = Builder::new("net");
    let x = b.input("x", Type::new(DType::F32, vec![Dim::sym("N"), Dim::Const(3), Dim::Const(9), Dim::Const(9)]));
    let constant = |shape: &[usize], seed| b.constant(random_tensor(DType::F32, shape, &Values::Small, seed));
    let conv = Conv { strides: vec![], dilations: vec![], pads: vec![1; 4], group: 1, layout: Layout::Plain, inputs: 0, outputs: 0, post: vec![] };
    let y = b.op(Op::from(conv), &[x, constant(&[16, 3, 3, 3], 1)]);
    let y = b.op(Op::Map(ScalarFn::Relu), &[y]).reshape(vec![Dim::sym("N"), Dim::Const(16 * 81)]);
    let y = b.op(Op::from(MatMul { transposed: false, packed: Dim::Const(0), post: vec![] }), &[y, constant(&[16 * 81, 40], 2)]);
    let y = b.op(Softmax { axis: 1 }, &[y]);
    b.output("y", y);
    b.finish().expect("a graph")
}

/// A logarithm that GPUs do not compute in 64 bits, between operations that they do.
fn of_two_machines() -> Graph {
    let b = Builder::new("mixed");
    let x = b.input("x", Type::of(DType::F64, &[50]));
    let y = b.op(Op::Map(ScalarFn::Log), &[x * x]);
    b.output("y", b.op(Op::Map(ScalarFn::Relu), &[y]));
    b.finish().expect("a graph")
}

fn file(graph: Graph, kinds: &[GpuIsa]) -> Vec<u8> {
    let devices: Vec<Gpu> = kinds.iter().map(|k| Gpu::new(*k)).collect();
    let program = gpu_program(graph, &devices[0], &Options::default(), &mut ()).expect("a program");
    let mut out = vec![];
    Artefact::new(program, &devices).expect("plans").write(&mut out).expect("written");
    out
}

fn read(file: &[u8]) -> Result<Artefact> {
    Artefact::read(file.to_vec().into())
}

fn inputs(graph: &Graph, batch: usize) -> Vec<Tensor> {
    let shape = |t: &Type| t.shape.iter().map(|d| d.as_const().map_or(batch, |d| d as usize)).collect::<Vec<_>>();
    graph.inputs.iter().map(|id| &graph.node(*id).types[0]).map(|t| random_tensor(t.dtype, &shape(t), &Values::Small, 3)).collect()
}

/// What the device gives is what the interpreter of graphs gives.
fn agrees(graph: &Graph, artefact: Artefact, device: GpuIsa, lanes: u32) {
    let session = artefact.on(Simulated::new(Gpu::new(device), lanes)).expect("a session");
    for batch in [2, 5] {
        let x = inputs(graph, batch);
        let want = run(graph, &x, &Env::default()).expect("the reference")[0].to_f64s();
        let got = session.run(&x).expect("the device")[0].to_f64s();
        assert_eq!(got.len(), want.len());
        let worst = got.iter().zip(&want).fold(0.0, |m: f64, (g, w)| m.max((g - w).abs()));
        assert!(worst < 1e-5, "off by {worst} on {device:?}");
    }
}

#[test]
fn what_was_written_runs() {
    let graph = network();
    let bytes = file(graph.clone(), &BOTH);
    assert_eq!(bytes, file(graph.clone(), &BOTH), "the same program gives the same bytes");
    let about = read(&bytes).expect("a file").description();
    assert_eq!((about.name.as_str(), about.target.as_deref()), ("net", Some("spirv1.5 nvptx-sm_80")));
    assert_eq!(about.inputs[0].type_text(), "f32[N,3,9,9]");
    for (device, lanes) in [(GpuIsa::SpirV, 8), (GpuIsa::Sm80, 32), (GpuIsa::Sm90, 32)] {
        agrees(&graph, read(&bytes).expect("a file"), device, lanes);
    }
    let of_one = read(&file(graph, &[GpuIsa::Sm90])).expect("a file").on(Simulated::new(Gpu::new(GpuIsa::Sm80), 32));
    let Err(e) = of_one else { panic!("code for a newer device is refused") };
    assert!(e.message().contains("nvptx-sm_90") && e.message().contains("nvptx-sm_80"), "{e:?}");
    let Err(e) = read(&bytes).expect("a file").session(Some(Engine::Jit)) else { panic!("no engine of the processor runs it") };
    assert_eq!(e.code(), Code::Input);
}

#[test]
fn the_host_computes_what_a_device_does_not_take() {
    let graph = of_two_machines();
    let mut artefact = read(&file(graph.clone(), &BOTH)).expect("a file");
    artefact.each_plan(&mut |plan| {
        let copied = plan.on_host();
        assert_eq!((copied.len(), plan.device_kernels().len() + copied.len()), (1, plan.kernels.len()), "one kernel is the host's");
        assert_eq!((&copied[0].to_device[..], copied[0].from_device.len()), (&[Dim::Const(400)][..], 2));
    });
    agrees(&graph, artefact, GpuIsa::SpirV, 8);
    // A device of fewer abilities than its kind has: its kernels go to the host one by one.
    let graph = network();
    let small = Gpu { shared_bytes: 1024, ..Gpu::new(GpuIsa::SpirV) };
    let session = read(&file(graph.clone(), &BOTH)).expect("a file").on(Simulated::new(small, 8)).expect("a session");
    let plan = session.plan().expect("a plan");
    assert!(plan.on_host().len() >= 2 && !plan.device_kernels().is_empty(), "tiles do not fit");
    let x = inputs(&graph, 2);
    let want = run(&graph, &x, &Env::default()).expect("the reference")[0].to_f64s();
    let got = session.run(&x).expect("both machines")[0].to_f64s();
    assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-5));
}

/// A device that takes everything, computes nothing, and has little memory, which is zero.
struct Null(Gpu);

impl Device for Null {
    type Buffer = Vec<u8>;
    type Kernel = ();
    type Recording = ();

    fn name(&self) -> &str {
        "null"
    }

    fn limits(&self) -> &Gpu {
        &self.0
    }

    fn allocate(&mut self, bytes: u64) -> Result<Vec<u8>> {
        if bytes > 1 << 26 { Err(Error::limit("too much memory")) } else { Ok(vec![0; bytes as usize]) }
    }

    fn bytes(buffer: &Vec<u8>) -> u64 {
        buffer.len() as u64
    }

    fn upload(&mut self, to: &Vec<u8>, at: u64, data: &[u8]) -> Result<()> {
        to.get(at as usize..).and_then(|m| m.get(..data.len())).map(|_| ()).ok_or_else(|| Error::internal("outside"))
    }

    fn download(&mut self, from: &Vec<u8>, at: u64, data: &mut [u8]) -> Result<()> {
        let m = from.get(at as usize..).and_then(|m| m.get(..data.len())).ok_or_else(|| Error::internal("outside"))?;
        data.copy_from_slice(m);
        Ok(())
    }

    fn copy(&mut self, _: &Vec<u8>, _: &Vec<u8>, _: u64) -> Result<()> {
        Ok(())
    }

    fn compile(&mut self, _: &nnc_backends::gpu::gir::Kernel) -> Result<()> {
        Ok(())
    }

    fn record(&mut self, launches: &[Launch<Null>], _: bool) -> Result<()> {
        for (memory, at, bytes) in launches.iter().flat_map(|l| &l.buffers) {
            assert!(at + bytes <= memory.len() as u64, "a launch reaches beyond its memory");
            assert!(at % self.0.alignment == 0, "a launch's buffer starts anywhere");
        }
        Ok(())
    }

    fn submit(&mut self, _: &()) -> Result<()> {
        Ok(())
    }

    fn ends(&mut self, _: &()) -> Result<Vec<Duration>> {
        Ok(vec![])
    }
}

/// Loads a file and runs it with inputs as it asks for them. What is wrong is never a bug of ours.
fn try_to_run(bytes: &[u8]) -> Result<()> {
    let ours = |e: Error| {
        assert_ne!(e.code(), Code::Internal, "{e:?}");
        e
    };
    let session = read(bytes).map_err(ours)?.on(Null(Gpu::new(GpuIsa::SpirV))).map_err(ours)?;
    let mut x = vec![];
    for p in session.inputs() {
        let shape: Vec<usize> = p.shape.iter().map(|s| s.eval(&|_| Some(2.0)).map_or(2, |n| n.clamp(0.0, 64.0) as usize)).collect();
        if shape.iter().product::<usize>() > 1 << 20 {
            return Err(Error::limit("a large input"));
        }
        x.push(Tensor::splat(p.dtype, shape, vec![0; p.dtype.bytes()].into())?);
    }
    session.run(&x).map(|_| ()).map_err(ours)
}

const HEAD: usize = 32;

/// A file of this manifest and these weights, as a forger would make it: all lengths and the checksum are right.
fn forged(manifest: &[u8], weights: &[u8]) -> Vec<u8> {
    let mut out = b"NNCG\r\n\x1a\n".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend([0; 4]);
    out.extend((manifest.len() as u64).to_le_bytes());
    out.extend((weights.len() as u64).to_le_bytes());
    out.extend(manifest);
    out.resize(out.len().next_multiple_of(64), 0);
    out.extend(weights);
    let sum = crc32fast::hash(&out);
    out.extend(sum.to_le_bytes());
    out
}

fn parts(file: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let n = u64::from_le_bytes(file[16..24].try_into().expect("eight bytes")) as usize;
    let weights = (HEAD + n).next_multiple_of(64);
    (file[HEAD..HEAD + n].to_vec(), file[weights..file.len() - 4].to_vec())
}

#[test]
fn what_is_no_whole_file_is_refused() {
    let bytes = file(network(), &[GpuIsa::SpirV]);
    let (manifest, weights) = parts(&bytes);
    assert_eq!(forged(&manifest, &weights), bytes);
    try_to_run(&bytes).expect("nothing is wrong with it");
    let code = |b: &[u8]| read(b).err().map(|e| e.code());
    for n in (0..bytes.len()).step_by(bytes.len() / 97).chain(0..200).chain(bytes.len() - 100..bytes.len()) {
        assert_eq!(code(&bytes[..n]), Some(Code::Syntax), "cut off at {n}");
    }
    for at in (0..bytes.len()).step_by(bytes.len() / 499).chain(0..HEAD) {
        let mut b = bytes.clone();
        b[at] ^= 1 << (at % 8);
        let want = if (8..12).contains(&at) { Code::Unsupported } else { Code::Syntax };
        assert_eq!(code(&b), Some(want), "a flipped bit of byte {at}");
    }
    assert_eq!(code(&[&bytes[..], &[0]].concat()), Some(Code::Syntax));
    assert_eq!(code(b"no model at all"), Some(Code::Syntax));
    // Fewer weights than the program reads.
    assert_eq!(code(&forged(&manifest, &weights[..weights.len() / 2])), Some(Code::Syntax));
}

/// Random damage with a checksum that is right: 3000 files, or `NNC_FUZZ`.
#[test]
fn forged_files_fail_as_files() {
    let cases = std::env::var("NNC_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let (manifest, weights) = parts(&file(network(), &[GpuIsa::SpirV]));
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    let (mut loaded, mut refused) = (0, 0);
    for case in 0..cases {
        let mut m = manifest.clone();
        // Kernels are most of the file; the program stands in its first part.
        let reach = if case % 3 == 0 { m.len() } else { m.len().min(6000) };
        for _ in 0..1 + case % 3 {
            let at = below(reach);
            match below(5) {
                0 => m[at] ^= 1 << below(8),
                1 => m[at] = [0, 1, 0x7f, 0x80, 0xff][below(5)],
                2 => drop(m.drain(at..(at + 1 + below(8)).min(m.len()))),
                3 => {
                    let (from, n) = (below(reach), 1 + below(40));
                    let piece: Vec<u8> = manifest[from..(from + n).min(manifest.len())].to_vec();
                    m.splice(at..at, piece);
                }
                _ => m.splice(at..at + 1, [0xff; 9].into_iter().chain([1])).for_each(drop),
            }
            m.resize(m.len().max(reach), 0);
        }
        match try_to_run(&forged(&m, &weights)) {
            Ok(()) => loaded += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(cases < 100 || (loaded > 0 && refused > cases / 2), "{loaded} ran, {refused} did not");
}

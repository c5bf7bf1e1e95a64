//! The memory plan against a checker that knows nothing of live ranges: it walks random programs along random paths and watches
//! who wrote each cell last.

use nnc_ir::Dim;
use nnc_ir::kernel::builder::KernelBuilder;
use nnc_ir::kernel::{Access, Buffer, BufferId, BufferRef, Kernel, Launch, Place, Port, Program, Step};
use nnc_ir::{DType, Loc, Type};
use nnc_passes::memory;
use std::collections::BTreeSet;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// A kernel of `reads` operands and one result. With one operand it computes element by element, so that the two may share memory.
fn kernel(reads: usize, elems: &Dim) -> Kernel {
    let mut k = KernelBuilder::new("k", 1);
    for _ in 0..reads {
        k.param(DType::F32, Access::Read, elems.clone());
    }
    let y = k.param(DType::F32, Access::Write, elems.clone());
    let n = k.dim(elems);
    k.for_each(n, |k, i| {
        let v = if reads == 1 { k.load(0, i) } else { k.num(0.0, DType::F32) };
        k.store(y, i, v);
    });
    k.finish()
}

/// A program of an input that gives the sizes N and H their values.
fn program() -> Program {
    let ty = Type::new(DType::F32, [Dim::sym("N"), Dim::sym("H")]);
    let buffer = Buffer { dtype: DType::F32, elems: ty.elems(), place: Place::Input(0) };
    Program { inputs: vec![Port { name: "x".into(), ty, buffer: BufferId(0) }], buffers: vec![buffer], ..Program::default() }
}

struct Maker {
    r: Random,
    program: Program,
    symbolic: bool,
}

impl Maker {
    fn buffer(&mut self) -> usize {
        let n = 16 * (1 + self.r.below(40) as i64);
        let elems = match (self.symbolic, self.r.below(4)) {
            (true, 0) => Dim::Const(n) * Dim::sym("N"),
            (true, 1) => Dim::Const(n) * Dim::sym("H") + Dim::Const(32),
            (true, 2) => (Dim::sym("H") + Dim::Const(1)).floor_div(&Dim::Const(2)) * Dim::Const(n),
            _ => Dim::Const(n),
        };
        self.program.buffers.push(Buffer { dtype: DType::F32, elems, place: Place::Unplanned });
        self.program.buffers.len() - 1
    }

    fn launch(&mut self, reads: &[usize], write: usize) -> Step {
        // The operands' sizes do not matter to the plan, but for sharing the result's: then they are asked to be equal.
        self.program.kernels.push(kernel(reads.len(), &Dim::sym("s0")));
        let buffers = reads.iter().chain([&write]).map(|b| BufferRef { buffer: BufferId(*b as u32), offset: Dim::Const(0) }).collect();
        let sizes = vec![self.program.buffers[write].elems.clone()];
        Step::Launch(Launch {
            kernel: self.program.kernels.len() as u32 - 1,
            buffers,
            sizes,
            flops: Dim::Const(0),
            name: "".into(),
            loc: Loc::Unknown,
        })
    }

    /// Steps that read only what is surely written: `known`, which grows.
    fn steps(&mut self, known: &mut Vec<usize>, count: usize, depth: usize) -> Vec<Step> {
        let mut out = vec![];
        for _ in 0..count {
            let pick = |m: &mut Maker, known: &[usize]| known[m.r.below(known.len())];
            let condition = |b: usize| BufferRef { buffer: BufferId(b as u32), offset: Dim::Const(0) };
            match self.r.below(if depth > 0 { 10 } else { 7 }) {
                // Often a chain, sometimes a write over something old.
                0..=5 => {
                    let reads: Vec<usize> =
                        (0..1 + self.r.below(2)).map(|k| if k == 0 { *known.last().unwrap() } else { pick(self, known) }).collect();
                    let write = if self.r.below(5) == 0 { pick(self, known) } else { self.buffer() };
                    if !reads.contains(&write) {
                        out.push(self.launch(&reads, write));
                        known.retain(|b| *b != write);
                        known.push(write);
                    }
                }
                6 => known.rotate_left(1),
                7 => {
                    let cond = pick(self, known);
                    let result = self.buffer();
                    let branch = |m: &mut Maker| {
                        let mut inside = known.clone();
                        let mut steps = m.steps(&mut inside, 4, depth - 1);
                        let from = *inside.last().unwrap();
                        steps.push(m.launch(&[from], result));
                        steps
                    };
                    let (then, otherwise) = (branch(self), branch(self));
                    out.push(Step::If { cond: condition(cond), then, otherwise });
                    known.push(result);
                }
                _ => {
                    let cond = pick(self, known);
                    let mut inside = known.clone();
                    let body = self.steps(&mut inside, 6, depth - 1);
                    out.push(Step::While { cond: condition(cond), body });
                }
            }
        }
        out
    }
}

/// Cells of 64 bytes by the buffer that wrote them last.
struct Checker<'a> {
    program: &'a Program,
    cells: Vec<usize>,
    written: BTreeSet<usize>,
    r: Random,
    /// What symbols are worth.
    symbol: i64,
}

impl Checker<'_> {
    fn cells(&self, b: usize) -> std::ops::Range<usize> {
        let value = |d: &Dim| d.eval(&|_| Some(self.symbol)).unwrap() as usize;
        let buffer = &self.program.buffers[b];
        let Place::Work { offset } = &buffer.place else { panic!("buffer {b} is not planned") };
        let (at, bytes) = (value(offset), value(&buffer.elems) * 4);
        assert_eq!(at % 64, 0, "buffer {b} is not aligned");
        assert!(at + bytes <= value(&self.program.workspace), "buffer {b} ends outside of the workspace");
        at / 64..(at + bytes).div_ceil(64)
    }

    fn read(&self, b: usize) {
        if self.written.contains(&b) {
            for c in self.cells(b) {
                assert_eq!(self.cells[c], b, "buffer {b} is read after buffer {} was written over it", self.cells[c]);
            }
        }
    }

    fn run(&mut self, steps: &[Step]) {
        for s in steps {
            match s {
                Step::Launch(l) => {
                    let (write, reads) = l.buffers.split_last().unwrap();
                    reads.iter().for_each(|r| self.read(r.buffer.0 as usize));
                    let b = write.buffer.0 as usize;
                    // A result shares its operands' memory only where it is computed element by element, and then all of it.
                    let mine = self.cells(b);
                    for x in reads.iter().map(|r| self.cells(r.buffer.0 as usize)) {
                        let apart = mine.end <= x.start || x.end <= mine.start;
                        assert!(apart || (reads.len() == 1 && mine == x), "buffer {b} is computed over its operand");
                    }
                    for c in self.cells(b) {
                        self.cells[c] = b;
                    }
                    self.written.insert(b);
                }
                Step::If { cond, then, otherwise } => {
                    self.read(cond.buffer.0 as usize);
                    let steps = if self.r.below(2) == 0 { then } else { otherwise };
                    self.run(steps);
                }
                Step::While { cond, body } => {
                    for _ in 0..self.r.below(4) {
                        self.read(cond.buffer.0 as usize);
                        self.run(body);
                    }
                    self.read(cond.buffer.0 as usize);
                }
                Step::Bind { .. } | Step::Check { .. } | Step::Decode(_) => {}
            }
        }
    }
}

#[test]
fn live_buffers_do_not_overlap() {
    for seed in 0..120 {
        let mut m = Maker { r: Random(seed), program: program(), symbolic: seed % 2 == 1 };
        let first = m.buffer();
        m.program.kernels.push(kernel(0, &Dim::sym("s0")));
        let mut steps = vec![m.launch(&[], first)];
        steps.extend(m.steps(&mut vec![first], 30, 3));
        let mut program = m.program;
        program.steps = steps;
        memory::plan(&mut program);
        for (path, symbol) in [1, 2, 5].into_iter().enumerate() {
            let bytes = program.workspace.eval(&|_| Some(symbol)).unwrap() as usize;
            let mut c = Checker { program: &program, cells: vec![usize::MAX; bytes / 64], written: BTreeSet::new(), r: Random(path as u64), symbol };
            c.run(&program.steps);
        }
    }
}

/// A chain needs two buffers, or one where it runs in place; symbolic batches plan like known ones.
#[test]
fn chains_share_memory() {
    for (elems, bytes) in [(Dim::Const(1000), Dim::Const(4032)), (Dim::sym("N") * Dim::Const(1024), Dim::sym("N") * Dim::Const(4096))] {
        for (operands, buffers) in [(1, 1), (2, 3)] {
            let mut m = Maker { r: Random(0), program: program(), symbolic: false };
            let place = Buffer { dtype: DType::F32, elems: elems.clone(), place: Place::Unplanned };
            m.program.buffers = vec![place; 1000];
            let mut steps = vec![m.launch(&[], 0), m.launch(&[], 1)];
            for i in 2..1000 {
                let reads: Vec<usize> = (0..operands).map(|k| i - 1 - k).collect();
                steps.push(m.launch(&reads, i));
            }
            m.program.steps = steps;
            memory::plan(&mut m.program);
            assert_eq!(m.program.workspace, bytes.clone() * Dim::Const(buffers), "{operands} operands");
        }
    }
}
